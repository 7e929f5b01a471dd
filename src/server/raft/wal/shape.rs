//! Where the log begins and ends and which term each index has, without the entries.

use crate::proto::raftpb::Entry;
use crate::server::raft::wal::replay::Position;
use crate::server::raft::wal::replay::Recovered;

/// As many terms as there were leaders: a few numbers, however long the log.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Shape {
    base: Position,
    /// First index of each term, ascending in both.
    terms: Vec<Position>,
    last: u64,
}

impl Shape {
    pub fn of(recovered: &Recovered) -> Shape {
        let mut shape = Shape::default();
        shape.install(recovered.base);
        recovered.entries.iter().for_each(|entry| shape.append(entry));
        shape
    }

    pub fn last_index(&self) -> u64 {
        self.last
    }

    /// The lowest index whose entry is there, or would be next.
    pub fn first_index(&self) -> u64 {
        self.base.index + 1
    }

    pub fn term_at(&self, index: u64) -> Option<u64> {
        if index == self.base.index {
            return Some(self.base.term);
        }
        if index < self.base.index || index > self.last {
            return None;
        }
        self.terms.iter().rev().find(|first| first.index <= index).map(|first| first.term)
    }

    pub fn has(&self, at: Position) -> bool {
        self.term_at(at.index) == Some(at.term)
    }

    /// An entry that follows the last one, or replaces an earlier one and all behind it.
    pub fn append(&mut self, entry: &Entry) {
        assert!(
            entry.index > self.base.index && entry.index <= self.last + 1,
            "entry {} in a log of {} to {}",
            entry.index,
            self.first_index(),
            self.last
        );
        let before = self.term_at(entry.index - 1).unwrap_or_default();
        assert!(entry.term >= before, "entry {} of term {} after term {before}", entry.index, entry.term);
        while self.terms.last().is_some_and(|first| first.index >= entry.index) {
            self.terms.pop();
        }
        if self.terms.last().is_none_or(|first| first.term != entry.term) {
            self.terms.push(Position { index: entry.index, term: entry.term });
        }
        self.last = entry.index;
    }

    /// The log begins anew.
    pub fn install(&mut self, base: Position) {
        *self = Shape { base, terms: Vec::new(), last: base.index };
    }

    /// Entries up to this index are gone, which becomes the base. Lower ones change nothing.
    pub fn release(&mut self, index: u64) {
        let Some(term) = self.term_at(index).filter(|_| index > self.base.index) else { return };
        self.base = Position { index, term };
        let gone = self.terms.iter().rposition(|first| first.index <= index).unwrap_or_default();
        self.terms.drain(..gone);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shape(entries: &[(u64, u64)]) -> Shape {
        let mut shape = Shape::default();
        for (index, term) in entries {
            shape.append(&Entry { index: *index, term: *term, ..Entry::default() });
        }
        shape
    }

    fn terms(shape: &Shape) -> Vec<Option<u64>> {
        (0..=shape.last_index() + 1).map(|index| shape.term_at(index)).collect()
    }

    #[test]
    fn terms_follow_appends_overwrites_and_installs() {
        let mut log = shape(&[(1, 1), (2, 1), (3, 2), (4, 3)]);
        assert_eq!(terms(&log), [Some(0), Some(1), Some(1), Some(2), Some(3), None]);
        log.append(&Entry { index: 3, term: 4, ..Entry::default() });
        assert_eq!(terms(&log), [Some(0), Some(1), Some(1), Some(4), None]);
        log.append(&Entry { index: 1, term: 5, ..Entry::default() });
        assert_eq!(terms(&log), [Some(0), Some(5), None]);
        log.install(Position { index: 3, term: 6 });
        assert_eq!((log.first_index(), log.last_index()), (4, 3));
        assert_eq!(terms(&log), [None, None, None, Some(6), None]);
    }

    #[test]
    fn release_keeps_the_terms_of_what_is_left() {
        for released in 0..=5 {
            let mut log = shape(&[(1, 1), (2, 1), (3, 2), (4, 2), (5, 3)]);
            let before = terms(&log);
            log.release(released);
            assert_eq!(log.first_index(), released + 1);
            let first = usize::try_from(released).unwrap();
            assert_eq!(terms(&log)[first..], before[first..], "{released}");
        }
        let mut log = shape(&[(1, 1)]);
        log.release(9);
        assert_eq!(log.first_index(), 1);
    }
}

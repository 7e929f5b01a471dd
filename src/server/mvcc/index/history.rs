//! The superseded changes of one key, oldest first, out of line because most keys have none.
//!
//! Blocks of fixed size are shared between copies, so that adding to the history of a hot key costs the same whether
//! it holds ten changes or a million, also while readers hold older copies.

use std::sync::Arc;

use crate::server::mvcc::index::mark::Mark;

/// Changes in a sealed block, and the most that are copied when a shared history grows.
const BLOCK_MARKS: usize = 64;

/// Ascending by revision.
#[derive(Clone, Debug, Default)]
pub struct History {
    sealed: Option<Arc<Vec<Arc<[Mark]>>>>,
    tail: Vec<Mark>,
}

impl History {
    pub fn from_marks(marks: &[Mark]) -> History {
        let mut history = History::default();
        marks.iter().for_each(|mark| history.push(*mark));
        history
    }

    /// Adds a change newer than all others.
    pub fn push(&mut self, mark: Mark) {
        if self.tail.len() == BLOCK_MARKS {
            let block: Arc<[Mark]> = Arc::from(self.tail.as_slice());
            self.tail.clear();
            Arc::make_mut(self.sealed.get_or_insert_default()).push(block);
        }
        self.tail.push(mark);
    }

    /// The newest change with main revision at most `at`.
    pub fn newest_at(&self, at: i64) -> Option<&Mark> {
        if self.tail.first().is_some_and(|first| first.main <= at) {
            let past = self.tail.partition_point(|mark| mark.main <= at);
            return self.tail.get(past.checked_sub(1)?);
        }
        let blocks = self.sealed.as_deref()?;
        let block = blocks.get(blocks.partition_point(|block| block[0].main <= at).checked_sub(1)?)?;
        block.get(block.partition_point(|mark| mark.main <= at).checked_sub(1)?)
    }

    pub fn iter(&self) -> impl DoubleEndedIterator<Item = &Mark> {
        let sealed = self.sealed.as_deref().map(Vec::as_slice).unwrap_or_default();
        sealed.iter().flat_map(|block| block.iter()).chain(self.tail.iter())
    }

    /// Changes with main revision at least `from`, ascending.
    pub fn since(&self, from: i64) -> impl Iterator<Item = &Mark> {
        let sealed = self.sealed.as_deref().map(Vec::as_slice).unwrap_or_default();
        let first = sealed.partition_point(|block| block[block.len() - 1].main < from);
        let old = sealed[first..].iter().flat_map(|block| block.iter());
        old.chain(self.tail.iter()).skip_while(move |mark| mark.main < from)
    }

    /// The oldest change: a history that exists is never empty.
    pub fn oldest(&self) -> Option<&Mark> {
        match self.sealed.as_deref() {
            Some(blocks) => blocks.first().and_then(|block| block.first()),
            None => self.tail.first(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::common::revision::Revision;

    fn history(length: i64) -> History {
        let marks: Vec<Mark> = (1..=length).map(|i| Mark::put(Revision::new(i * 2, 0), 2, i, false, 1)).collect();
        History::from_marks(&marks)
    }

    #[test]
    fn lookups_find_the_newest_not_after() {
        for length in [1, 63, 64, 65, 128, 129, 1000] {
            let history = history(length);
            assert_eq!(history.newest_at(1), None);
            for at in 2..=2 * length + 1 {
                assert_eq!(history.newest_at(at).map(|mark| mark.main), Some(at / 2 * 2), "{length} marks at {at}");
            }
            assert_eq!(history.iter().count() as i64, length);
            assert_eq!(history.since(length).count(), history.iter().filter(|mark| mark.main >= length).count());
            assert_eq!(history.oldest().map(|mark| mark.main), Some(2));
        }
    }

    #[test]
    fn a_copy_keeps_what_it_had() {
        let old = history(100);
        let mut new = old.clone();
        for i in 101..300 {
            new.push(Mark::put(Revision::new(i * 2, 0), 2, i, false, 1));
        }
        assert_eq!((old.iter().count(), new.iter().count()), (100, 299));
    }
}

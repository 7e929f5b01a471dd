//! One key and all its changes that are not compacted: etcd's key index with its generations, as one ascending list.
//!
//! A generation runs from a creation to its tombstone. It needs no structure of its own: every put carries the create
//! revision and version of its generation, and a tombstone ends it.

use std::sync::Arc;

use crate::common::revision::Revision;
use crate::server::mvcc::index::history::History;
use crate::server::mvcc::index::mark::Mark;

/// 56 bytes beside the key's own bytes.
#[derive(Clone, Debug)]
pub struct Entry {
    pub key: Arc<[u8]>,
    newest: Mark,
    history: Option<Arc<History>>,
}

/// What a compaction did to one key.
#[derive(Debug, Default)]
pub struct Compacted {
    /// Superseded changes, ascending.
    pub removed: Vec<Mark>,
    /// Nothing is left: the key goes.
    pub dead: bool,
}

impl Entry {
    pub fn new(key: Arc<[u8]>, mark: Mark) -> Entry {
        Entry { key, newest: mark, history: None }
    }

    /// From all marks of the key, ascending and at least one.
    pub fn from_marks(key: Arc<[u8]>, marks: &[Mark]) -> Entry {
        let (newest, older) = marks.split_last().expect("the caller found at least one mark of this key");
        let history = (!older.is_empty()).then(|| Arc::new(History::from_marks(older)));
        Entry { key, newest: *newest, history }
    }

    /// The latest change, committed or not.
    pub fn newest(&self) -> &Mark {
        &self.newest
    }

    pub fn is_alive(&self) -> bool {
        !self.newest.is_tombstone()
    }

    /// Adds a change newer than all others.
    pub fn push(&mut self, mark: Mark) {
        assert!(mark.revision() > self.newest.revision(), "{} after {}", mark.revision(), self.newest.revision());
        Arc::make_mut(self.history.get_or_insert_default()).push(self.newest);
        self.newest = mark;
    }

    /// The newest change with main revision at most `at`, a tombstone too.
    pub fn newest_at(&self, at: i64) -> Option<&Mark> {
        if self.newest.main <= at { Some(&self.newest) } else { self.history.as_deref()?.newest_at(at) }
    }

    /// What a reader at `at` sees of the key.
    pub fn alive_at(&self, at: i64) -> Option<&Mark> {
        self.newest_at(at).filter(|mark| !mark.is_tombstone())
    }

    /// All changes, ascending.
    pub fn marks(&self) -> impl DoubleEndedIterator<Item = &Mark> {
        self.history.iter().flat_map(|history| history.iter()).chain([&self.newest])
    }

    /// Changes with main revision at least `from`, ascending.
    pub fn marks_since(&self, from: i64) -> impl Iterator<Item = &Mark> {
        let older = self.history.iter().flat_map(move |history| history.since(from));
        older.chain([&self.newest].into_iter().filter(move |mark| mark.main >= from))
    }

    pub fn names(&self, revision: Revision) -> bool {
        self.marks_since(revision.main).take_while(|mark| mark.main == revision.main).any(|m| m.revision() == revision)
    }

    /// The record that etcd's hash keeps of this key at or below a compaction (server.md 3.9, step 3): a key deleted in
    /// main revision `at` keeps nothing, even when the same transaction created it again.
    pub fn hash_keeps(&self, at: i64) -> Option<&Mark> {
        if self.has_tombstone_in(at) { None } else { self.alive_at(at) }
    }

    /// Whether main revision `at` itself deleted the key.
    pub fn has_tombstone_in(&self, at: i64) -> bool {
        self.marks_since(at).take_while(|mark| mark.main == at).any(|mark| mark.is_tombstone())
    }

    /// Whether `compact(at)` would remove something. Cheap for a key that was just compacted, however long its history.
    pub fn needs_compaction(&self, at: i64) -> bool {
        let visible = self.newest_at(at).copied();
        self.marks().take_while(|mark| mark.main <= at).any(|mark| is_superseded(mark, at, visible))
    }

    /// Removes what no read or watch from `at` on can ask for: kept are the newest put not after `at` unless deleted
    /// since, tombstones in `at` itself (watchers may start there, etcd 18089), and all that is newer.
    pub fn compact(&mut self, at: i64) -> Compacted {
        let visible = self.newest_at(at).copied();
        let (removed, kept): (Vec<Mark>, Vec<Mark>) = self.marks().partition(|mark| is_superseded(mark, at, visible));
        if kept.is_empty() {
            return Compacted { removed, dead: true };
        }
        *self = Entry::from_marks(self.key.clone(), &kept);
        Compacted { removed, dead: false }
    }
}

/// `visible` is the key's newest change not after `at`.
fn is_superseded(mark: &Mark, at: i64, visible: Option<Mark>) -> bool {
    let is_visible = visible.is_some_and(|newest| newest.revision() == mark.revision());
    mark.main <= at && if mark.is_tombstone() { mark.main < at } else { !is_visible }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Changes as text: `5` a put in main 5, `6t` a tombstone; several of one main get ascending subs.
    fn entry(text: &str) -> Entry {
        let mut marks: Vec<Mark> = Vec::new();
        for word in text.split_whitespace() {
            let main: i64 = word.trim_end_matches('t').parse().unwrap();
            let sub = marks.iter().filter(|mark| mark.main == main).count() as i64;
            let revision = Revision::new(main, sub);
            let version = marks.last().map_or(0, |mark| mark.version) + 1;
            let mark = if word.ends_with('t') {
                Mark::tombstone(revision, 1)
            } else {
                Mark::put(revision, main, version, false, 1)
            };
            marks.push(mark);
        }
        Entry::from_marks(Arc::from(&b"k"[..]), &marks)
    }

    fn text(entry: &Entry) -> String {
        let word = |mark: &Mark| format!("{}{}", mark.main, if mark.is_tombstone() { "t" } else { "" });
        entry.marks().map(word).collect::<Vec<String>>().join(" ")
    }

    #[test]
    fn an_entry_is_56_bytes() {
        assert_eq!(size_of::<Entry>(), 56);
    }

    #[test]
    fn compaction_keeps_what_can_be_read_or_watched() {
        let cases = [
            ("2 3 5", 4, "3 5"),
            ("2 3 5", 5, "5"),
            ("2 3 5", 1, "2 3 5"),
            ("2 3t", 3, "3t"),
            ("2 3t", 4, "dead"),
            ("3t", 4, "dead"),
            ("2 3t 5", 3, "3t 5"),
            ("2 3t 5", 4, "5"),
            ("2 5t 5", 5, "5t 5"),
            ("2 5t 5 6", 5, "5t 5 6"),
            ("2 5t 5 6", 6, "6"),
            ("5 5t", 5, "5t"),
            ("5 5t 7", 6, "7"),
        ];
        for (before, at, after) in cases {
            let mut entry = entry(before);
            let total = entry.marks().count();
            assert_eq!(entry.needs_compaction(at), after != before, "{before} at {at}");
            let compacted = entry.compact(at);
            let left = if compacted.dead { "dead".to_owned() } else { text(&entry) };
            assert_eq!(left, after, "{before} at {at}");
            let kept = if compacted.dead { 0 } else { entry.marks().count() };
            assert_eq!(compacted.removed.len() + kept, total);
        }
    }

    #[test]
    fn hash_keeps_nothing_of_a_key_deleted_in_that_revision() {
        let cases =
            [("2 3 5", 4, Some(3)), ("2 5t 5", 5, None), ("2 5t 5", 6, Some(5)), ("2 5t 6", 5, None), ("4", 3, None)];
        for (marks, at, kept) in cases {
            assert_eq!(entry(marks).hash_keeps(at).map(|mark| mark.main), kept, "{marks} at {at}");
        }
    }

    #[test]
    fn names_knows_sub_revisions() {
        let entry = entry("2 5 5t 5");
        assert!(entry.names(Revision::new(5, 2)));
        assert!(!entry.names(Revision::new(5, 3)));
        assert!(!entry.names(Revision::new(3, 0)));
    }
}

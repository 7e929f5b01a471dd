//! Which changes every key went through: key → revisions, ordered by key, counted in O(log n).
//!
//! Cloning the index is taking a picture of it: two pointers. The writer goes on in nodes of its own where a picture
//! holds the old ones. Changes newer than a reader's revision may be in its picture and are ignored by it, so a picture
//! can be taken in the middle of a batch.

pub mod entry;
pub mod history;
pub mod mark;
pub mod node;

use std::ops::ControlFlow;
use std::sync::Arc;

use bytes::Bytes;

use crate::common::key_range::KeyRange;
use crate::common::revision::Revision;
use crate::server::mvcc::index::entry::Compacted;
use crate::server::mvcc::index::entry::Entry;
use crate::server::mvcc::index::mark::Mark;
use crate::server::mvcc::index::node::Node;

/// A copy-on-write order-statistic B-tree.
#[derive(Clone, Debug)]
pub struct Index {
    root: Arc<Node>,
}

impl Default for Index {
    fn default() -> Index {
        Index { root: Arc::new(Node::Leaf(Vec::new())) }
    }
}

/// A key that a reader sees, with the change it sees.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    pub key: Arc<[u8]>,
    pub mark: Mark,
}

impl Index {
    /// From entries sorted by key, each key once.
    pub fn build(entries: Vec<Entry>) -> Index {
        assert!(entries.is_sorted_by(|a, b| a.key < b.key), "entries to build an index from are not sorted");
        Index { root: Arc::new(Node::build(entries)) }
    }

    pub fn entry(&self, key: &[u8]) -> Option<&Entry> {
        if self.root_is_empty() { None } else { self.root.get(key) }
    }

    /// What a reader at `at` sees of the key.
    pub fn get(&self, key: &[u8], at: i64) -> Option<Mark> {
        self.entry(key)?.alive_at(at).copied()
    }

    /// Gives the key's latest mark to `change` and adds the mark it answers, which is newer than all others.
    pub fn change(&mut self, key: &[u8], mut change: impl FnMut(Option<&Mark>) -> Option<Mark>) {
        let changed = Arc::make_mut(&mut self.root).change(key, &mut change);
        if let Some(split) = changed.split {
            Node::grow(&mut self.root, split);
        }
    }

    /// Compacts the changes of one key (`Entry::compact`): the marks removed. Copies nothing if there is nothing to do.
    pub fn compact(&mut self, key: &[u8], at: i64) -> Vec<Mark> {
        if !self.entry(key).is_some_and(|entry| entry.needs_compaction(at)) {
            return Vec::new();
        }
        let Compacted { removed, dead } = Arc::make_mut(&mut self.root).compact(key, at);
        if dead {
            Node::shrink(&mut self.root);
        }
        removed
    }

    /// Keys of the range alive at `at`, at most `limit` of them, in key order.
    pub fn range(&self, range: &KeyRange, at: i64, limit: usize) -> Vec<Found> {
        let mut found = Vec::new();
        if limit == 0 {
            return found;
        }
        self.walk(range, |entry| {
            if let Some(mark) = entry.alive_at(at) {
                found.push(Found { key: entry.key.clone(), mark: *mark });
            }
            if found.len() < limit { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
        });
        found
    }

    /// How many keys of the range are alive at `at`.
    pub fn count(&self, range: &KeyRange, at: i64) -> usize {
        match range {
            KeyRange::One(key) => usize::from(self.get(key, at).is_some()),
            _ if range.is_empty() || self.root_is_empty() => 0,
            _ => self.root.count(range, at),
        }
    }

    /// Calls `visit` on every entry of the range in key order, dead ones too.
    pub fn walk<'a>(&'a self, range: &KeyRange, mut visit: impl FnMut(&'a Entry) -> ControlFlow<()>) {
        match range {
            KeyRange::One(key) => {
                let _ = self.entry(key).map(visit);
            }
            _ if range.is_empty() || self.root_is_empty() => {}
            _ => {
                let _ = self.root.walk(range, &|_| false, &mut visit);
            }
        }
    }

    /// Changes of keys of the range with `first <= main <= last`, ascending: what a watch catches up with.
    pub fn revisions_between(&self, range: &KeyRange, first: i64, last: i64) -> Vec<Revision> {
        let mut revisions = Vec::new();
        let mut visit = |entry: &Entry| {
            let inside = entry.marks_since(first).take_while(|mark| mark.main <= last);
            revisions.extend(inside.map(Mark::revision));
            ControlFlow::Continue(())
        };
        match range {
            KeyRange::One(key) => {
                let _ = self.entry(key).map(visit);
            }
            _ if range.is_empty() || self.root_is_empty() => {}
            _ => {
                let _ = self.root.walk(range, &|summary| summary.newest < first, &mut visit);
            }
        }
        revisions.sort_unstable();
        revisions
    }

    /// Whether the change is one of this key and not compacted.
    pub fn names(&self, key: &[u8], revision: Revision) -> bool {
        self.entry(key).is_some_and(|entry| entry.names(revision))
    }

    /// Keys whose latest change is a put.
    pub fn live_keys(&self) -> usize {
        self.root.summary().live
    }

    /// Calls `visit` on every entry with a key behind `after` (on all if `None`), in key order.
    pub fn walk_after<'a>(&'a self, after: Option<&[u8]>, visit: impl FnMut(&'a Entry) -> ControlFlow<()>) {
        let start = after.map(|key| Bytes::from([key, &[0]].concat())).unwrap_or_default();
        self.walk(&KeyRange::From(start), visit);
    }

    fn root_is_empty(&self) -> bool {
        self.root.width() == 0
    }

    #[cfg(test)]
    pub fn check(&self) {
        self.root.check();
    }
}

#[cfg(test)]
mod tests;

//! HashKV: etcd's checksum over the history of keys, with its rules and its quirks (server.md 3.9).
//!
//! It is folded together from the CRCs in the headers, so no value is read for it. It works on one View, in slices.

pub mod combine;

use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::PoisonError;

use crate::common::answer::Answer;
use crate::common::failure::Failure;
use crate::common::revision::Revision;
use crate::server::checkpoint::Header;
use crate::server::mvcc::hash::combine::Combiner;
use crate::server::mvcc::index::entry::Entry;
use crate::server::mvcc::view::ReadError;
use crate::server::mvcc::view::View;
use crate::server::mvcc::view::Views;

/// The hash begins with the name of etcd's bucket.
const BUCKET_NAME: &[u8] = b"key";

/// Hashes at compaction revisions that are remembered.
const CACHED_MAX: usize = 10;

/// Keys or records between two looks at the clock of whoever runs a job to its end.
const SLICE: usize = 10_000;

/// The answer to HashKV.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HashKv {
    pub hash: u32,
    pub compact_revision: i64,
    pub hash_revision: i64,
    /// The store's, for the header.
    pub revision: i64,
}

/// The hash of one finished compaction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HashValue {
    pub hash: u32,
    /// The compaction's revision.
    pub revision: i64,
    /// The compact revision before it.
    pub compact_revision: i64,
}

/// Hashes of the compactions with the highest revisions, ascending; in memory only.
#[derive(Debug, Default)]
pub struct HashCache {
    values: Vec<HashValue>,
}

impl HashCache {
    pub fn store(&mut self, value: HashValue) {
        self.values.push(value);
        self.values.sort_by_key(|value| value.revision);
        if self.values.len() > CACHED_MAX {
            self.values.remove(0);
        }
    }

    fn get(&self, revision: i64) -> Option<HashValue> {
        self.values.iter().find(|value| value.revision == revision).copied()
    }

    /// All of them, ascending by revision: what members compare after compactions.
    pub fn values(&self) -> &[HashValue] {
        &self.values
    }
}

/// HashKV at `requested`, 0 for the newest revision. Takes as long as the store is large: for a thread that may block.
pub fn hash_kv(views: &Views, requested: i64) -> Result<HashKv, ReadError> {
    let cached = views.hashes.lock().unwrap_or_else(PoisonError::into_inner).get(requested);
    let view = views.current();
    let revision = view.revision();
    // Before any check: it answers for revisions compacted away, and for 0 after a compaction to 0.
    if let Some(HashValue { hash, revision: hash_revision, compact_revision }) = cached {
        return Ok(HashKv { hash, compact_revision, hash_revision, revision });
    }
    hash_view(&view, requested)
}

/// HashKV of a View, without the cache.
pub fn hash_view(view: &View, requested: i64) -> Result<HashKv, ReadError> {
    let (revision, compact_revision) = (view.revision(), view.compact_revision());
    if requested > 0 && requested < compact_revision {
        return Err(Answer::Compacted.into());
    }
    if requested > revision {
        return Err(Answer::FutureRevision.into());
    }
    let hash_revision = if requested == 0 { revision } else { requested };
    let mut job = HashJob::new(hash_revision, compact_revision);
    loop {
        if let Some(value) = job.step(view, SLICE)? {
            return Ok(HashKv { hash: value.hash, compact_revision, hash_revision, revision });
        }
    }
}

/// The hash at one revision, computed in slices. The steps may use different Views, as long as nothing at or below the
/// revision is removed in between.
pub struct HashJob {
    at: i64,
    /// At or below it only what is visible at `at` counts.
    compact_revision: i64,
    /// A compaction keeps tombstones of its own revision, and then its kept set is not empty.
    counts_tombstones: bool,
    kept: Kept,
    stage: Stage,
    crc: u32,
    combiner: Combiner,
}

/// Etcd's kept set, as far as it lies at or below the compact revision.
#[derive(Default)]
struct Kept {
    revisions: Vec<Revision>,
    /// Whether the whole set is empty.
    is_empty: bool,
}

enum Stage {
    Keep { after: Option<Arc<[u8]>> },
    Hash { next: Revision },
}

impl HashJob {
    pub fn new(at: i64, compact_revision: i64) -> HashJob {
        // Before the first compaction everything counts, whatever is kept.
        let stage =
            if compact_revision < 0 { Stage::Hash { next: Revision::default() } } else { Stage::Keep { after: None } };
        HashJob {
            at,
            compact_revision,
            counts_tombstones: false,
            kept: Kept { revisions: Vec::new(), is_empty: true },
            stage,
            crc: crc32c::crc32c(BUCKET_NAME),
            combiner: Combiner::default(),
        }
    }

    /// The hash that a compaction to `at` leaves behind; `previous` is the compact revision before it.
    pub fn of_compaction(at: i64, previous: i64) -> HashJob {
        HashJob { counts_tombstones: true, ..HashJob::new(at, previous) }
    }

    /// Works on `budget` keys or records; the hash when it is done.
    pub fn step(&mut self, view: &View, budget: usize) -> Result<Option<HashValue>, Failure> {
        match &self.stage {
            Stage::Keep { after } => {
                let after = after.clone();
                self.keep_slice(view, after, budget.max(1));
                Ok(None)
            }
            Stage::Hash { next } => {
                let next = *next;
                self.hash_slice(view, next, budget.max(1))
            }
        }
    }

    fn keep_slice(&mut self, view: &View, after: Option<Arc<[u8]>>, budget: usize) {
        let mut left = budget;
        let mut stopped_at = None;
        view.index().walk_after(after.as_deref(), |entry| {
            self.keep(entry);
            left -= 1;
            if left > 0 {
                return ControlFlow::Continue(());
            }
            stopped_at = Some(entry.key.clone());
            ControlFlow::Break(())
        });
        self.stage = match stopped_at {
            Some(key) => Stage::Keep { after: Some(key) },
            None => {
                self.kept.revisions.sort_unstable();
                Stage::Hash { next: Revision::default() }
            }
        };
    }

    fn keep(&mut self, entry: &Entry) {
        if let Some(mark) = entry.hash_keeps(self.at) {
            self.kept.is_empty = false;
            if mark.main <= self.compact_revision {
                self.kept.revisions.push(mark.revision());
            }
        } else if self.counts_tombstones && entry.has_tombstone_in(self.at) {
            self.kept.is_empty = false;
        }
    }

    fn hash_slice(&mut self, view: &View, first: Revision, budget: usize) -> Result<Option<HashValue>, Failure> {
        let mut left = budget;
        let mut next = None;
        view.all_headers(first, Revision::new(self.at, i64::MAX), &mut |header| {
            if left == 0 {
                next = Some(header.revision);
                return ControlFlow::Break(());
            }
            left -= 1;
            if self.counts(view, &header) {
                self.crc = self.combiner.combine(self.crc, header.crc, header.hashed_bytes);
            }
            ControlFlow::Continue(())
        })?;
        if let Some(next) = next {
            self.stage = Stage::Hash { next };
            return Ok(None);
        }
        Ok(Some(HashValue { hash: self.crc, revision: self.at, compact_revision: self.compact_revision }))
    }

    fn counts(&self, view: &View, header: &Header) -> bool {
        let revision = header.revision;
        if revision.main > self.compact_revision {
            return true;
        }
        if revision.main == self.compact_revision && header.tombstone {
            return false;
        }
        match self.kept.is_empty {
            // All that is stored counts, and members must agree on what that is: what a finished compaction leaves,
            // however far this member's has come.
            true => view.index().get(&header.key, self.compact_revision).is_some_and(|m| m.revision() == revision),
            false => self.kept.revisions.binary_search(&revision).is_ok(),
        }
    }
}

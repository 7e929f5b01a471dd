//! Forgetting superseded revisions: logically at once, physically in small slices.
//!
//! `compact` moves the revision below which reads fail. The work behind it is done by `compaction_step`, as much as its
//! caller has time for:
//!
//! 1. etcd's hash at the compaction revision, over everything before something is removed (server.md 3.9);
//! 2. the headers since the last compaction name the keys that have changed; of each, the index forgets what is
//!    superseded, and the flusher hears which records go.
//!
//! A key that has not changed since the last compaction has nothing to forget, so the second part costs as much as was
//! written in between, not as much as there is. Its scan begins *at* the last compaction: tombstones of exactly that
//! revision were kept for watchers and go now.
//!
//! After a crash it starts again at the last finished mark; doing a part twice changes nothing.

use std::ops::ControlFlow;
use std::sync::PoisonError;

use bytes::Bytes;

use crate::common::answer::Answer;
use crate::common::failure::Failure;
use crate::common::revision::Revision;
use crate::server::checkpoint::Bucket;
use crate::server::mvcc::hash::HashJob;
use crate::server::mvcc::index::mark::Mark;
use crate::server::mvcc::store::Store;
use crate::server::mvcc::store::record_bytes;

/// Keys of bucket `meta` (server.md 14.6).
pub const SCHEDULED: &str = "scheduledCompactRev";
pub const FINISHED: &str = "finishedCompactRev";

/// Where the work stands after a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Progress {
    /// Nothing to do.
    Idle,
    /// Call again.
    Working,
    /// The compaction to this revision is done, durable with the next flush. There may be another.
    Finished(i64),
}

/// The compaction at work and the one that waits.
pub(super) struct Compactor {
    /// -1 before the first.
    finished: i64,
    /// The index has nothing left that the finished compaction should have removed.
    swept: bool,
    running: Option<Job>,
    /// Compactions that come while one runs become one.
    waiting: Option<i64>,
}

struct Job {
    target: i64,
    work: Work,
}

enum Work {
    Hash(Box<HashJob>),
    Remove { next: Revision },
}

impl Compactor {
    pub fn new(finished: i64) -> Compactor {
        Compactor { finished, swept: true, running: None, waiting: None }
    }

    /// After a restart. An interrupted compaction goes on, without a hash: part of its input may be gone.
    pub fn resume(scheduled: i64, finished: i64, swept: bool) -> Compactor {
        let mut compactor = Compactor { swept, ..Compactor::new(finished) };
        if scheduled > finished {
            compactor.running = Some(compactor.removal(scheduled));
        }
        compactor
    }

    /// `previous` is the compact revision before.
    fn add(&mut self, target: i64, previous: i64) {
        if self.running.is_some() {
            self.waiting = Some(target);
        } else {
            let work = Work::Hash(Box::new(HashJob::of_compaction(target, previous)));
            self.running = Some(Job { target, work });
        }
    }

    fn removal(&self, target: i64) -> Job {
        let first = if self.swept { self.finished.max(0) } else { 0 };
        Job { target, work: Work::Remove { next: Revision::new(first, 0) } }
    }

    fn finish(&mut self, target: i64) {
        self.finished = target;
        self.swept = true;
        // The hash of a compaction that was asked for while another ran is not kept (server.md 3.9).
        self.running = self.waiting.take().map(|waiting| self.removal(waiting));
    }
}

impl Store {
    /// Makes everything below `revision` unreadable. `Compacted` or `FutureRevision` if it cannot be (server.md 3.8).
    pub fn compact(&mut self, revision: i64) -> Result<(), Answer> {
        let previous = self.next.compact_revision;
        if revision <= previous {
            return Err(Answer::Compacted);
        }
        if revision > self.next.revision {
            return Err(Answer::FutureRevision);
        }
        self.next.compact_revision = revision;
        self.pairs.push(mark(SCHEDULED, revision));
        self.compactor.add(revision, previous);
        Ok(())
    }

    /// The revision up to which physical deletion is done; -1 if it never was. Durable after the next flush.
    pub fn finished_compaction(&self) -> i64 {
        self.compactor.finished
    }

    /// Whether `compaction_step` has work.
    pub fn is_compacting(&self) -> bool {
        self.compactor.running.is_some()
    }

    /// Works on about `budget` keys or records. Call it between batches until it is idle.
    pub fn compaction_step(&mut self, budget: usize) -> Result<Progress, Failure> {
        let Some(mut job) = self.compactor.running.take() else { return Ok(Progress::Idle) };
        // Readers must know the compact revision before what is below it goes.
        self.publish();
        let done = match &mut job.work {
            Work::Hash(hash) => {
                let view = self.views().current();
                if let Some(value) = hash.step(&view, budget)? {
                    let views = self.views();
                    let mut hashes = views.hashes.lock().unwrap_or_else(PoisonError::into_inner);
                    hashes.store(value);
                    job = self.compactor.removal(job.target);
                }
                false
            }
            Work::Remove { next } => {
                *next = self.remove_slice(*next, job.target, budget)?;
                next.main > job.target
            }
        };
        if !done {
            self.compactor.running = Some(job);
            return Ok(Progress::Working);
        }
        self.pairs.push(mark(FINISHED, job.target));
        self.compactor.finish(job.target);
        self.publish();
        Ok(Progress::Finished(job.target))
    }

    /// Compacts the keys that the next `budget` headers name, or fewer once as many records are removed: what is removed
    /// is the flusher's work next. Returns where to go on: behind `target` at the end.
    fn remove_slice(&mut self, first: Revision, target: i64, budget: usize) -> Result<Revision, Failure> {
        let mut named: Vec<(Revision, Bytes)> = Vec::new();
        let mut next = Revision::new(target + 1, 0);
        let view = self.views().current();
        view.all_headers(first, Revision::new(target, i64::MAX), &mut |header| {
            if named.len() >= budget.max(1) {
                next = header.revision;
                return ControlFlow::Break(());
            }
            named.push((header.revision, header.key));
            ControlFlow::Continue(())
        })?;
        // Let go of the index before changing it: a picture of it would have to be kept by copying.
        drop(view);
        self.publish();
        let mut left = budget.max(1);
        for (revision, key) in named {
            if left == 0 {
                next = revision;
                break;
            }
            let removed = self.live().index.compact(&key, target);
            for mark in &removed {
                self.next.bytes_in_use -= record_bytes(mark.hashed_bytes);
            }
            left = left.saturating_sub(removed.len());
            self.removed.extend(removed.iter().map(Mark::revision));
        }
        self.publish();
        Ok(next)
    }
}

fn mark(name: &'static str, revision: i64) -> (Bucket, Bytes, Option<Bytes>) {
    let value = Bytes::copy_from_slice(&Revision::new(revision, 0).storage_key());
    (Bucket::Meta, Bytes::from_static(name.as_bytes()), Some(value))
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::server::mvcc::testing::tables::MemoryTables;

    #[test]
    fn a_slice_ends_with_the_records_it_may_remove_and_forgets_none() {
        let mut store = Store::new(Arc::new(MemoryTables::default()));
        for main in 0..600 {
            let mut txn = store.begin();
            txn.put(&Bytes::from(format!("k{}", main % 60)), Bytes::from_static(b"v"), 0);
            txn.commit();
        }
        store.publish();
        store.compact(store.revision()).expect("a revision that can be compacted");
        let mut slices = 0;
        while store.compaction_step(20).expect("in memory") != Progress::Finished(store.revision()) {
            let removed = std::mem::take(&mut store.removed).len();
            // The last key of a slice is done whole: it has nine older versions.
            assert!(removed < 20 + 9, "{removed} records in a slice");
            slices += 1;
        }
        assert!(slices >= 540 / 29, "{slices} slices for 540 records");
        store.live().index.walk_after(None, |entry| {
            assert_eq!(entry.marks().count(), 1);
            ControlFlow::Continue(())
        });
    }
}

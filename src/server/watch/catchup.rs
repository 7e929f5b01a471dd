//! History for those who are behind: slices of it for one watcher, or all changes for the hub itself.
//!
//! A slice is bounded in revisions, bytes and records looked at, so that nobody waits long for his turn, and it never
//! splits a revision. Every slice is read from the newest View, which is held no longer than that.
//!
//! A watcher of few keys is served from the index, which names their revisions; one of many by reading everything
//! there is in revision order. Watchers of the same keys at the same place, as are left behind together, share slices.

use std::collections::VecDeque;
use std::ops::ControlFlow;
use std::sync::Arc;

use bytes::Bytes;

use crate::common::failure::Failure;
use crate::common::revision::Revision;
use crate::proto::mvccpb::KeyValue;
use crate::server::checkpoint::Record;
use crate::server::mvcc::view::Keys;
use crate::server::mvcc::view::Records;
use crate::server::mvcc::view::View;
use crate::server::watch::event;
use crate::server::watch::group::Interest;
use crate::server::watch::group::Slot;

/// Revisions in one response to a watcher that is behind (server.md 12).
pub const SLICE_REVISIONS_MAX: usize = 1000;

/// Bytes after which a slice takes no further revision.
const SLICE_BYTES: usize = 256 << 10;

/// Records that are looked at for one slice.
const SCANNED_MAX: usize = 16 << 10;

/// Keys of a range up to which the index is asked for their changes.
const INDEXED_KEYS_MAX: usize = 1024;

/// Records and bytes of one step of the hub's own catching up.
const REPLAY_RECORDS: usize = 4096;
const REPLAY_BYTES: usize = 1 << 20;

/// Slices kept for others who stand at the same place.
const KEPT_SLICES: usize = 16;

/// What of a change a watcher wants.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Wants {
    pub previous: bool,
    pub no_puts: bool,
    pub no_deletes: bool,
}

impl Wants {
    pub fn passes(self, record: &Record) -> bool {
        if record.tombstone { !self.no_deletes } else { !self.no_puts }
    }
}

/// A watcher that wants history from a revision on.
#[derive(Debug)]
pub struct Job {
    pub slot: Slot,
    /// Tells watchers apart that had the same slot one after the other.
    pub serial: u32,
    pub interest: Interest,
    pub from: i64,
    pub wants: Wants,
}

/// What a job found.
#[derive(Debug)]
pub struct Slice {
    pub slot: Slot,
    pub serial: u32,
    pub found: Found,
}

#[derive(Clone, Debug)]
pub enum Found {
    /// History begins at this revision, behind what was asked for.
    Compacted(i64),
    Events(Arc<Block>),
}

/// Encoded changes, all that concern the watcher up to a revision.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Block {
    pub bytes: Bytes,
    /// Where each event ends in `bytes`.
    pub ends: Vec<usize>,
    /// Everything up to here is in the block or before it.
    pub upto: i64,
    /// The newest revision there was.
    pub head: i64,
}

impl Block {
    /// The events one by one.
    pub fn events(&self) -> Vec<Bytes> {
        let starts = std::iter::once(0).chain(self.ends.iter().copied());
        starts.zip(&self.ends).map(|(start, end)| self.bytes.slice(start..*end)).collect()
    }
}

/// All changes from a revision on, as many as one step takes.
#[derive(Debug)]
pub struct Replayed {
    pub records: Vec<Record>,
    pub upto: i64,
    /// History begins here; changes before were lost if it is behind what was asked for.
    pub compact_revision: i64,
}

/// Collects a watcher's changes in revision order.
struct Slicer<'a> {
    job: &'a Job,
    view: &'a View,
    bytes: Vec<u8>,
    ends: Vec<usize>,
    /// The revision being taken: it is taken whole.
    current: i64,
    /// The last revision with a change that concerns the watcher, and how many there were.
    counted: i64,
    revisions: usize,
    scanned: usize,
    /// The last revision that was taken whole, once the slice is full.
    full_at: Option<i64>,
    failure: Option<Failure>,
}

impl Slicer<'_> {
    /// Called with every record that may concern the watcher.
    fn take(&mut self, revision: i64, record: impl FnOnce() -> Option<Record>) -> ControlFlow<()> {
        let full = self.revisions >= SLICE_REVISIONS_MAX || self.bytes.len() >= SLICE_BYTES;
        if revision != self.current && (full || self.scanned >= SCANNED_MAX) {
            self.full_at = Some(self.current);
            return ControlFlow::Break(());
        }
        self.scanned += 1;
        self.current = revision;
        let Some(record) = record() else { return ControlFlow::Continue(()) };
        // Counted before filters, as etcd does.
        self.revisions += usize::from(self.counted != revision);
        self.counted = revision;
        if self.job.wants.passes(&record) {
            match self.previous(&record) {
                Ok(previous) => event::encode(&record, previous, &mut self.bytes),
                Err(failure) => {
                    self.failure = Some(failure);
                    return ControlFlow::Break(());
                }
            }
            self.ends.push(self.bytes.len());
        }
        ControlFlow::Continue(())
    }

    fn previous(&self, record: &Record) -> Result<Option<KeyValue>, Failure> {
        let before = record.revision.main - 1;
        if !self.job.wants.previous || event::is_creation(record) || before < self.view.compact_revision() {
            return Ok(None);
        }
        let mark = self.view.get(&record.kv.key, before);
        mark.map(|mark| self.view.pair(&record.kv.key, &mark)).transpose()
    }

    /// Asks the index; `None` if that is no way to serve this watcher.
    fn by_index(&mut self) -> Result<Option<()>, Failure> {
        let range = self.job.interest.key_range();
        let (mut revisions, mut keys) = (Vec::new(), 0);
        // One revision more than fits tells whether the slice is full.
        self.view.index().walk(&range, |entry| {
            keys += 1;
            let marks = entry.marks_since(self.job.from).take_while(|mark| mark.main <= self.view.revision());
            revisions.extend(marks.take(SCANNED_MAX).map(|mark| mark.revision()));
            if keys > INDEXED_KEYS_MAX { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        });
        if keys > INDEXED_KEYS_MAX || (keys > 1 && revisions.len() >= SCANNED_MAX) {
            return Ok(None);
        }
        // A hot key alone: what was left out lies behind what was taken.
        revisions.sort_unstable();
        let left_out = revisions.len() >= SCANNED_MAX;
        for revision in revisions {
            let record = self.view.record(revision)?;
            if self.take(revision.main, || Some(record)).is_break() {
                return Ok(Some(()));
            }
        }
        if left_out {
            self.full_at = Some(self.current);
        }
        Ok(Some(()))
    }

    fn by_scan(&mut self) -> Result<(), Failure> {
        let view = self.view;
        let interest = &self.job.interest;
        let (first, last) = (Revision::new(self.job.from, 0), Revision::new(view.revision(), i64::MAX));
        let most = view.count(&interest.key_range(), view.revision()).saturating_mul(2) >= view.index().live_keys();
        if most {
            return view.records(first, last, &mut |record| {
                self.take(record.revision.main, || interest.contains(&record.kv.key).then_some(record))
            });
        }
        // Values are read of what matches only.
        let mut failure = None;
        view.headers(first, last, &mut |header| {
            let concerns = interest.contains(&header.key);
            let record = concerns.then(|| view.record(header.revision)).transpose();
            match record {
                Ok(record) => self.take(header.revision.main, || record),
                Err(error) => {
                    failure = Some(error);
                    ControlFlow::Break(())
                }
            }
        })?;
        failure.map_or(Ok(()), Err)
    }
}

/// Reads one slice.
pub fn slice(job: &Job, view: &View) -> Result<Found, Failure> {
    if job.from < view.compact_revision() {
        return Ok(Found::Compacted(view.compact_revision()));
    }
    let mut slicer = Slicer {
        job,
        view,
        bytes: Vec::new(),
        ends: Vec::new(),
        current: job.from - 1,
        counted: job.from - 1,
        revisions: 0,
        scanned: 0,
        full_at: None,
        failure: None,
    };
    if slicer.by_index()?.is_none() {
        slicer.by_scan()?;
    }
    if let Some(failure) = slicer.failure {
        return Err(failure);
    }
    let head = view.revision();
    let upto = slicer.full_at.unwrap_or(head);
    Ok(Found::Events(Arc::new(Block { bytes: Bytes::from(slicer.bytes), ends: slicer.ends, upto, head })))
}

/// Reads all changes from `first` on, as many as one step takes.
pub fn replay(first: i64, view: &View) -> Result<Replayed, Failure> {
    let compact_revision = view.compact_revision();
    let from = Revision::new(first.max(compact_revision), 0);
    let (mut records, mut bytes, mut full_at) = (Vec::new(), 0, None);
    view.records(from, Revision::new(view.revision(), i64::MAX), &mut |record: Record| {
        let last = records.last().map_or(record.revision.main, |last: &Record| last.revision.main);
        if last != record.revision.main && (records.len() >= REPLAY_RECORDS || bytes >= REPLAY_BYTES) {
            full_at = Some(last);
            return ControlFlow::Break(());
        }
        bytes += record.kv.key.len() + record.kv.value.len();
        records.push(record);
        ControlFlow::Continue(())
    })?;
    Ok(Replayed { records, upto: full_at.unwrap_or(view.revision()), compact_revision })
}

/// Reads slices and remembers the last few.
#[derive(Debug, Default)]
pub struct Historian {
    kept: VecDeque<(Interest, i64, Wants, Arc<Block>)>,
}

impl Historian {
    /// The slice of a job. One that was read for another watcher is as good: what happened does not change.
    pub fn slice(&mut self, job: &Job, view: impl FnOnce() -> Arc<View>) -> Result<Slice, Failure> {
        let (slot, serial) = (job.slot, job.serial);
        let same = |kept: &&(Interest, i64, Wants, Arc<Block>)| {
            kept.1 == job.from && kept.2 == job.wants && kept.0 == job.interest
        };
        if let Some((_, _, _, block)) = self.kept.iter().find(same) {
            return Ok(Slice { slot, serial, found: Found::Events(block.clone()) });
        }
        let found = slice(job, &view())?;
        if let Found::Events(block) = &found {
            self.kept.truncate(KEPT_SLICES - 1);
            self.kept.push_front((job.interest.clone(), job.from, job.wants, block.clone()));
        }
        Ok(Slice { slot, serial, found })
    }

    /// Nobody is behind: what was kept for others goes.
    pub fn forget(&mut self) {
        self.kept.clear();
    }
}

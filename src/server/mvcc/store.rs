//! The write side of the store, owned by the thread that applies entries.
//!
//! A write goes into the index and the ring at once and is readable in its own transaction; `publish` shows a batch of
//! them to readers; `take_changes` hands what is new to the flusher, and `flushed` brings the tables that hold it.

use std::sync::Arc;
use std::sync::MutexGuard;

use bytes::Bytes;

use crate::common::failure::Failure;
use crate::common::key_range::KeyRange;
use crate::common::revision::Revision;
use crate::server::checkpoint::Bucket;
use crate::server::checkpoint::Record;
use crate::server::checkpoint::Tables;
use crate::server::mvcc::compaction::Compactor;
use crate::server::mvcc::index::Found;
use crate::server::mvcc::index::Index;
use crate::server::mvcc::index::mark::Mark;
use crate::server::mvcc::view::Keys;
use crate::server::mvcc::view::Live;
use crate::server::mvcc::view::Published;
use crate::server::mvcc::view::Records;
use crate::server::mvcc::view::Views;
use crate::server::mvcc::view::stored;
use crate::server::mvcc::write::WriteTxn;

/// What a record costs beside its encoded bytes, in `bytes_in_use`: its index mark and its keys in two tables.
pub const RECORD_OVERHEAD_BYTES: u64 = 64;

/// The revision of an empty store: the first write gets the next one (server.md 3.1).
pub const FIRST_REVISION: i64 = 1;

/// What the flusher writes in one batch.
#[derive(Clone, Debug, Default)]
pub struct Changes {
    /// New records in revision order.
    pub records: Vec<Record>,
    /// Records of earlier changes that a compaction superseded.
    pub removed: Vec<Revision>,
    /// Pairs of bucket meta.
    pub pairs: Vec<(Bucket, Bytes, Option<Bytes>)>,
    /// All records up to here are in this batch or an earlier one: what `flushed` wants to hear.
    pub up_to: Revision,
    /// Bytes of the records.
    pub bytes: u64,
}

/// Keys, their history, and what the database does not have of it yet.
pub struct Store {
    views: Views,
    /// What readers see after the next `publish`.
    pub(super) next: Published,
    /// Records up to here were taken by the flusher.
    taken: Revision,
    taken_bytes_after: u64,
    pub(super) removed: Vec<Revision>,
    pub(super) pairs: Vec<(Bucket, Bytes, Option<Bytes>)>,
    pub(super) compactor: Compactor,
    pub(super) leased: Vec<(Bytes, i64)>,
}

impl Store {
    /// An empty store over empty tables.
    pub fn new(tables: Arc<dyn Tables>) -> Store {
        let next = Published { revision: FIRST_REVISION, compact_revision: -1, bytes_in_use: 0 };
        Store::assemble(Index::default(), tables, next, Compactor::new(-1))
    }

    pub(super) fn assemble(index: Index, tables: Arc<dyn Tables>, next: Published, compactor: Compactor) -> Store {
        Store {
            views: Views::new(Live::new(index, tables, next)),
            next,
            taken: Revision::new(next.revision, i64::MAX),
            taken_bytes_after: 0,
            removed: Vec::new(),
            pairs: Vec::new(),
            compactor,
            leased: Vec::new(),
        }
    }

    /// Where readers take Views.
    pub fn views(&self) -> Views {
        self.views.clone()
    }

    pub(super) fn live(&self) -> MutexGuard<'_, Live> {
        self.views.live()
    }

    /// The revision of the last committed write, published or not.
    pub fn revision(&self) -> i64 {
        self.next.revision
    }

    /// The lowest revision that can be read; -1 before the first compaction.
    pub fn compact_revision(&self) -> i64 {
        self.next.compact_revision
    }

    /// The size that clients see, as of the last committed write.
    pub fn bytes_in_use(&self) -> u64 {
        self.next.bytes_in_use
    }

    /// Keys with their leases as `restore` found them, in key order; once.
    pub fn take_leased(&mut self) -> Vec<(Bytes, i64)> {
        std::mem::take(&mut self.leased)
    }

    /// Begins a transaction: everything in it gets the next revision. It must be committed, or the node stopped.
    pub fn begin(&mut self) -> WriteTxn<'_> {
        WriteTxn::new(self)
    }

    /// Shows everything committed to readers. Called once for a batch of entries.
    pub fn publish(&mut self) {
        // Dropped behind this line, not while readers wait for the lock.
        let _old = self.live().publish(self.next);
    }

    /// Whether a change of revisions `first..=last`, which are still in memory, is of a key that is meant.
    pub fn has_recent(&self, first: i64, last: i64, is_meant: &dyn Fn(&[u8]) -> bool) -> bool {
        let live = self.live();
        let mut between = live.ring.ring().between(Revision::new(first, 0), Revision::new(last, i64::MAX));
        between.any(|record| is_meant(&record.kv.key))
    }

    /// Records of main revisions `first..=last`, ascending, as far as they are in memory: the events of a batch that
    /// was just applied. Older ones are read from a View.
    pub fn recent(&self, first: i64, last: i64) -> Vec<Record> {
        let live = self.live();
        live.ring.ring().between(Revision::new(first, 0), Revision::new(last, i64::MAX)).cloned().collect()
    }

    /// Bytes of records that the flusher has not taken.
    pub fn untaken_bytes(&self) -> u64 {
        self.taken_bytes_after
    }

    /// What changed since the last call. Until `flushed` the records stay readable from memory.
    pub fn take_changes(&mut self) -> Changes {
        let taken = self.taken;
        let newest = self.live().ring.newest().max(taken);
        let (mut young, removed): (Vec<Revision>, Vec<Revision>) =
            std::mem::take(&mut self.removed).into_iter().partition(|revision| *revision > taken);
        young.sort_unstable();
        let live = self.live();
        // A record that came and went since the last call is never stored.
        let new = live.ring.ring().between(Revision::new(taken.main, taken.sub.saturating_add(1)), newest);
        let new = new.filter(|record| record.revision > taken);
        let records: Vec<Record> = new.filter(|r| young.binary_search(&r.revision).is_err()).cloned().collect();
        drop(live);
        self.taken = newest;
        let bytes = std::mem::take(&mut self.taken_bytes_after);
        Changes { records, removed, pairs: std::mem::take(&mut self.pairs), up_to: newest, bytes }
    }

    /// The tables now hold every record up to `up_to` that is not removed; memory lets go of most of them.
    pub fn flushed(&mut self, tables: Arc<dyn Tables>, up_to: Revision) {
        assert!(up_to <= self.taken, "flushed up to {up_to}, but only {} was taken", self.taken);
        // As above: closing tables takes its time.
        let _old = self.live().stored(tables, up_to);
    }

    /// Adds a written record to the counts.
    pub(super) fn account(&mut self, hashed_bytes: u32) {
        let bytes = record_bytes(hashed_bytes);
        self.next.bytes_in_use += bytes;
        self.taken_bytes_after += bytes;
    }
}

/// A record's share of the store's size.
pub(super) fn record_bytes(hashed_bytes: u32) -> u64 {
    u64::from(hashed_bytes) + RECORD_OVERHEAD_BYTES
}

/// What was committed, published or not.
impl Keys for Store {
    fn revision(&self) -> i64 {
        self.next.revision
    }

    fn compact_revision(&self) -> i64 {
        self.next.compact_revision
    }

    fn get(&self, key: &[u8], at: i64) -> Option<Mark> {
        self.live().index.get(key, at)
    }

    fn find(&self, range: &KeyRange, at: i64, limit: usize) -> Vec<Found> {
        self.live().index.range(range, at, limit)
    }

    fn count(&self, range: &KeyRange, at: i64) -> usize {
        self.live().index.count(range, at)
    }
}

impl Records for Store {
    // The lock is not held while the database is read: readers would wait for its disk.
    fn record(&self, revision: Revision) -> Result<Record, Failure> {
        let live = self.live();
        if let Some(record) = live.ring.ring().record(revision) {
            return Ok(record.clone());
        }
        let tables = live.tables.clone();
        drop(live);
        stored(tables.as_ref(), revision)
    }
}

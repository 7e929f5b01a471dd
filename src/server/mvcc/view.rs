//! The one way anything reads: a View is a moment of the store that never changes.
//!
//! Index, ring and tables of a View are taken together under one lock. Every change above the compact revision that
//! the index names is in that ring or in those tables; one that is missing is damage, never an empty answer. (Taking
//! the index first and newer tables later loses reads, DESIGN.md 4.)
//!
//! ```text
//!   writer ── put ──▶ Live { index, ring, tables } ◀── current() ── readers
//!                       │ publish: the revision that readers may see
//!                       ▼
//!                     View { revision, compact revision, pictures of the three }
//! ```
//!
//! A View is only made when somebody asks: while nobody does, the writer changes the index in place. The pictures may
//! hold changes newer than the View's revision, from a batch that is not published; readers ignore them.

use std::ops::ControlFlow;
use std::path::Path;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::MutexGuard;
use std::sync::PoisonError;

use crate::common::answer::Answer;
use crate::common::failure::Failure;
use crate::common::key_range::KeyRange;
use crate::common::revision::Revision;
use crate::proto::mvccpb::KeyValue;
use crate::server::checkpoint::Header;
use crate::server::checkpoint::Record;
use crate::server::checkpoint::Tables;
use crate::server::mvcc::counts::Counts;
use crate::server::mvcc::hash::HashCache;
use crate::server::mvcc::hash::HashValue;
use crate::server::mvcc::index::Found;
use crate::server::mvcc::index::Index;
use crate::server::mvcc::index::mark::Mark;
use crate::server::mvcc::records::KEPT_BYTES_MAX;
use crate::server::mvcc::records::Ring;
use crate::server::mvcc::records::RingWriter;

/// Sub revisions sort below this.
const SUB_END: i64 = i64::MAX;

/// Why a read has no result.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// For the client; the same on every member.
    #[error("{0}")]
    Answer(#[from] Answer),
    /// Stops the node.
    #[error("{0}")]
    Failure(#[from] Failure),
}

/// What the index answers: without values and lease ids.
pub trait Keys {
    /// The newest revision that can be read.
    fn revision(&self) -> i64;
    /// The lowest revision that can be read; -1 before the first compaction.
    fn compact_revision(&self) -> i64;
    /// What a reader at `at` sees of the key.
    fn get(&self, key: &[u8], at: i64) -> Option<Mark>;
    /// Keys of the range alive at `at`, at most `limit`, in key order.
    fn find(&self, range: &KeyRange, at: i64, limit: usize) -> Vec<Found>;
    fn count(&self, range: &KeyRange, at: i64) -> usize;
}

/// Where the records are that the index names.
pub trait Records {
    /// The record, which exists.
    fn record(&self, revision: Revision) -> Result<Record, Failure>;

    /// The pair behind a mark of this key.
    fn pair(&self, key: &[u8], mark: &Mark) -> Result<KeyValue, Failure> {
        let record = self.record(mark.revision())?;
        if record.tombstone || record.kv.key != key {
            return Err(damaged(mark.revision(), "is not the change that the index names"));
        }
        Ok(record.kv)
    }
}

/// What a read needs: a View has it, and so has a write transaction, which sees its own writes.
pub trait Source: Keys + Records {}

impl<T: Keys + Records> Source for T {}

/// A moment of the store.
#[derive(Clone)]
pub struct View {
    revision: i64,
    compact_revision: i64,
    bytes_in_use: u64,
    index: Index,
    ring: Ring,
    tables: Arc<dyn Tables>,
}

impl View {
    /// The newest revision of this moment.
    pub fn revision(&self) -> i64 {
        self.revision
    }

    /// The lowest revision that can be read; -1 before the first compaction.
    pub fn compact_revision(&self) -> i64 {
        self.compact_revision
    }

    /// Sum of all records with a fixed overhead each: what clients see as the database's size.
    pub fn bytes_in_use(&self) -> u64 {
        self.bytes_in_use
    }

    pub fn index(&self) -> &Index {
        &self.index
    }

    /// Changes of keys of the range after main revision `after`, ascending: what a watch catches up with.
    pub fn revisions_after(&self, range: &KeyRange, after: i64) -> Vec<Revision> {
        self.index.revisions_between(range, after.saturating_add(1), self.revision)
    }

    /// Records with `first <= revision <= last` that are not compacted, ascending, until `visit` breaks.
    pub fn records(
        &self,
        first: Revision,
        last: Revision,
        visit: &mut dyn FnMut(Record) -> ControlFlow<()>,
    ) -> Result<(), Failure> {
        let mut named = |record: Record| match self.holds(&record.kv.key, record.revision) {
            true => visit(record),
            false => ControlFlow::Continue(()),
        };
        let last = last.min(Revision::new(self.revision, SUB_END));
        if self.in_tables(first, last, |first, last, open| {
            self.tables.records(first, last, &mut until(open, &mut named))
        })? {
            let _ = self.ring.between(first, last).try_for_each(|record| named(record.clone()));
        }
        Ok(())
    }

    /// Headers with `first <= revision <= last` that are not compacted, ascending, until `visit` breaks.
    pub fn headers(
        &self,
        first: Revision,
        last: Revision,
        visit: &mut dyn FnMut(Header) -> ControlFlow<()>,
    ) -> Result<(), Failure> {
        self.all_headers(first, last, &mut |header| match self.holds(&header.key, header.revision) {
            true => visit(header),
            false => ControlFlow::Continue(()),
        })
    }

    /// As `headers`, with those that a compaction has removed from the index and the flusher not yet from the tables.
    pub(super) fn all_headers(
        &self,
        first: Revision,
        last: Revision,
        visit: &mut dyn FnMut(Header) -> ControlFlow<()>,
    ) -> Result<(), Failure> {
        let last = last.min(Revision::new(self.revision, SUB_END));
        if self.in_tables(first, last, |first, last, open| self.tables.headers(first, last, &mut until(open, visit)))? {
            let _ = self.ring.between(first, last).try_for_each(|record| visit(Header::of(record)));
        }
        Ok(())
    }

    /// Whether the record is part of this View. Above the compact revision all are.
    pub(super) fn holds(&self, key: &[u8], revision: Revision) -> bool {
        revision.main > self.compact_revision || self.index.names(key, revision)
    }

    /// Runs `scan` over the part of the interval that lies before the ring. Answers whether to go on with the ring.
    fn in_tables(
        &self,
        first: Revision,
        last: Revision,
        scan: impl FnOnce(Revision, Revision, &mut bool) -> Result<(), Failure>,
    ) -> Result<bool, Failure> {
        let first = first.max(Revision::default());
        let before_ring = self.ring.first().map_or(last, |ring| last.min(before(ring)));
        let mut open = true;
        if first <= before_ring {
            scan(first, before_ring, &mut open)?;
        }
        Ok(open)
    }
}

/// Passes on to `visit` and notes when it breaks.
fn until<T>(open: &mut bool, visit: &mut dyn FnMut(T) -> ControlFlow<()>) -> impl FnMut(T) -> ControlFlow<()> {
    move |item| {
        let flow = visit(item);
        *open = flow.is_continue();
        flow
    }
}

/// The greatest revision below, with a sub that sorts right as bytes.
fn before(revision: Revision) -> Revision {
    if revision.sub > 0 {
        Revision::new(revision.main, revision.sub - 1)
    } else {
        Revision::new(revision.main - 1, SUB_END)
    }
}

pub(super) fn damaged(revision: Revision, what: &str) -> Failure {
    Failure::damaged(Path::new("the key-value store"), format!("revision {revision} {what}"))
}

impl Keys for View {
    fn revision(&self) -> i64 {
        self.revision
    }

    fn compact_revision(&self) -> i64 {
        self.compact_revision
    }

    fn get(&self, key: &[u8], at: i64) -> Option<Mark> {
        self.index.get(key, at)
    }

    fn find(&self, range: &KeyRange, at: i64, limit: usize) -> Vec<Found> {
        self.index.range(range, at, limit)
    }

    fn count(&self, range: &KeyRange, at: i64) -> usize {
        self.index.count(range, at)
    }
}

impl Records for View {
    fn record(&self, revision: Revision) -> Result<Record, Failure> {
        record_in(&self.ring, self.tables.as_ref(), revision)
    }
}

fn record_in(ring: &Ring, tables: &dyn Tables, revision: Revision) -> Result<Record, Failure> {
    match ring.record(revision) {
        Some(record) => Ok(record.clone()),
        None => stored(tables, revision),
    }
}

pub(super) fn stored(tables: &dyn Tables, revision: Revision) -> Result<Record, Failure> {
    tables.record(revision)?.ok_or_else(|| damaged(revision, "is in the index but not in the database"))
}

/// What the writer changes and readers take pictures of.
pub(super) struct Live {
    pub index: Index,
    pub ring: RingWriter,
    pub tables: Arc<dyn Tables>,
    published: Published,
    /// The View of what is published, if anybody asked since.
    cached: Option<Arc<View>>,
}

/// What readers may see.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Published {
    pub revision: i64,
    pub compact_revision: i64,
    pub bytes_in_use: u64,
}

impl Live {
    pub fn new(index: Index, tables: Arc<dyn Tables>, published: Published) -> Live {
        Live { index, ring: RingWriter::default(), tables, published, cached: None }
    }

    /// Lets readers see all that was written; their next View is a new one. The old one is handed out, to be dropped
    /// without the lock.
    pub fn publish(&mut self, published: Published) -> Option<Arc<View>> {
        self.published = published;
        self.cached.take()
    }

    /// Readers go on with the same revision, but in these tables and what is left of the ring.
    pub fn stored(&mut self, tables: Arc<dyn Tables>, up_to: Revision) -> (Arc<dyn Tables>, Option<Arc<View>>) {
        let old = std::mem::replace(&mut self.tables, tables);
        self.ring.trim(up_to, KEPT_BYTES_MAX);
        (old, self.cached.take())
    }

    fn view(&mut self) -> Arc<View> {
        let Published { revision, compact_revision, bytes_in_use } = self.published;
        let view = || {
            let (index, ring) = (self.index.clone(), self.ring.ring().clone());
            Arc::new(View { revision, compact_revision, bytes_in_use, index, ring, tables: self.tables.clone() })
        };
        self.cached.get_or_insert_with(view).clone()
    }
}

/// What is published.
impl Keys for Live {
    fn revision(&self) -> i64 {
        self.published.revision
    }

    fn compact_revision(&self) -> i64 {
        self.published.compact_revision
    }

    fn get(&self, key: &[u8], at: i64) -> Option<Mark> {
        self.index.get(key, at)
    }

    fn find(&self, range: &KeyRange, at: i64, limit: usize) -> Vec<Found> {
        self.index.range(range, at, limit)
    }

    fn count(&self, range: &KeyRange, at: i64) -> usize {
        self.index.count(range, at)
    }
}

/// Where readers on any thread take Views.
#[derive(Clone)]
pub struct Views {
    live: Arc<Mutex<Live>>,
    pub(super) hashes: Arc<Mutex<HashCache>>,
    counts: Arc<Mutex<Counts>>,
}

impl Views {
    pub(super) fn new(live: Live) -> Views {
        Views { live: Arc::new(Mutex::new(live)), hashes: Arc::default(), counts: Arc::default() }
    }

    /// What finished compactions left, ascending by revision.
    pub fn compaction_hashes(&self) -> Vec<HashValue> {
        self.hashes.lock().unwrap_or_else(PoisonError::into_inner).values().to_vec()
    }

    /// The newest published View.
    pub fn current(&self) -> Arc<View> {
        self.live().view()
    }

    /// Runs a short `select` on what is published, and returns with it where the records are that it found. No
    /// picture of the index is taken, so the writer need not copy what it changes next; it waits meanwhile.
    pub(super) fn glance<T>(&self, select: impl FnOnce(&dyn Keys) -> T) -> (T, impl Records) {
        let live = self.live();
        let selected = select(&*live);
        (selected, RecordsOf { ring: live.ring.ring().clone(), tables: live.tables.clone() })
    }

    // Only a cache: whatever a panic left in it is right.
    pub(super) fn counts(&self) -> MutexGuard<'_, Counts> {
        self.counts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    // A panic of the writer ends the process, so what it left behind is never read for long.
    pub(super) fn live(&self) -> MutexGuard<'_, Live> {
        self.live.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Ring and tables of a View without its index.
struct RecordsOf {
    ring: Ring,
    tables: Arc<dyn Tables>,
}

impl Records for RecordsOf {
    fn record(&self, revision: Revision) -> Result<Record, Failure> {
        record_in(&self.ring, self.tables.as_ref(), revision)
    }
}

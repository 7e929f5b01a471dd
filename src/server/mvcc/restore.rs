//! The store after a restart: the index is rebuilt from the headers of all records and the marks of compactions.

use std::ops::ControlFlow;
use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;

use crate::common::failure::Failure;
use crate::common::revision::Revision;
use crate::server::checkpoint::Bucket;
use crate::server::checkpoint::Buckets;
use crate::server::checkpoint::Header;
use crate::server::checkpoint::Tables;
use crate::server::mvcc::compaction::Compactor;
use crate::server::mvcc::compaction::FINISHED;
use crate::server::mvcc::compaction::SCHEDULED;
use crate::server::mvcc::index::Index;
use crate::server::mvcc::index::entry::Entry;
use crate::server::mvcc::index::mark::Mark;
use crate::server::mvcc::index::mark::SUB_MAX;
use crate::server::mvcc::store::FIRST_REVISION;
use crate::server::mvcc::store::Store;
use crate::server::mvcc::store::record_bytes;
use crate::server::mvcc::view::Published;
use crate::server::mvcc::view::damaged;

/// Larger revisions and versions in a file are damage: counting on from them would overflow.
const NUMBER_MAX: i64 = i64::MAX / 2;

/// A header, reduced to what the index keeps.
struct Row {
    key: Bytes,
    mark: Mark,
    lease: i64,
}

impl Store {
    /// The store that the tables and bucket `meta` hold. Headers that contradict each other are damage.
    pub fn restore(tables: Arc<dyn Tables>, buckets: &Buckets) -> Result<Store, Failure> {
        let mut rows = read_rows(tables.as_ref())?;
        let newest = rows.last().map_or(FIRST_REVISION, |row| row.mark.main);
        let bytes_in_use = rows.iter().map(|row| record_bytes(row.mark.hashed_bytes)).sum();
        // Stable: the revisions of a key stay in order.
        rows.sort_by(|a, b| a.key.cmp(&b.key));
        let (entries, leased) = group(&rows);
        drop(rows);

        let scheduled = mark_of_compaction(buckets, SCHEDULED)?;
        let finished = mark_of_compaction(buckets, FINISHED)?;
        let compact_revision = scheduled.max(finished);
        // The newest records may be compacted tombstones: revisions never go backwards (etcd 17780).
        let revision = newest.max(compact_revision);
        let swept = !entries.iter().any(|entry| entry.needs_compaction(finished));
        let compactor = Compactor::resume(scheduled, finished, swept);
        let next = Published { revision, compact_revision, bytes_in_use };
        let mut store = Store::assemble(Index::build(entries), tables, next, compactor);
        store.leased = leased;
        Ok(store)
    }
}

fn read_rows(tables: &dyn Tables) -> Result<Vec<Row>, Failure> {
    let mut rows: Vec<Row> = Vec::new();
    let mut wrong = None;
    tables.headers(Revision::default(), Revision::new(i64::MAX, i64::MAX), &mut |header| {
        let previous = rows.last().map(|row| row.mark.revision());
        match row_of(header, previous) {
            Ok(row) => {
                rows.push(row);
                ControlFlow::Continue(())
            }
            Err(failure) => {
                wrong = Some(failure);
                ControlFlow::Break(())
            }
        }
    })?;
    wrong.map_or(Ok(rows), Err)
}

fn row_of(header: Header, previous: Option<Revision>) -> Result<Row, Failure> {
    let revision = header.revision;
    let bad = |what: &str| Err(damaged(revision, what));
    if previous.is_some_and(|previous| previous >= revision) {
        return bad("is not in order");
    }
    if !(0..=NUMBER_MAX).contains(&revision.main) || !(0..=SUB_MAX).contains(&revision.sub) {
        return bad("is out of range");
    }
    let mark = if header.tombstone {
        Mark::tombstone(revision, header.hashed_bytes)
    } else {
        // The empty record of a revision that was bumped has no key and version 0. It is kept as etcd keeps it: HashKV
        // counts it, and no range reaches a key that is empty.
        let version = if header.key.is_empty() && header.version == 0 { 1 } else { header.version };
        if !(1..=NUMBER_MAX).contains(&version) || !(0..=revision.main).contains(&header.create_revision) {
            return bad("has an impossible version or create revision");
        }
        Mark::put(revision, header.create_revision, version, header.lease != 0, header.hashed_bytes)
    };
    Ok(Row { key: header.key, mark, lease: header.lease })
}

/// Entries in key order, and the keys that are attached to a lease with its id.
fn group(rows: &[Row]) -> (Vec<Entry>, Vec<(Bytes, i64)>) {
    let mut entries = Vec::new();
    let mut leased = Vec::new();
    let mut marks = Vec::new();
    for same_key in rows.chunk_by(|a, b| a.key == b.key) {
        let newest = &same_key[same_key.len() - 1];
        marks.clear();
        marks.extend(same_key.iter().map(|row| row.mark));
        entries.push(Entry::from_marks(Arc::from(newest.key.as_ref()), &marks));
        if newest.lease != 0 && !newest.mark.is_tombstone() {
            leased.push((Bytes::copy_from_slice(&newest.key), newest.lease));
        }
    }
    (entries, leased)
}

/// A compaction mark of bucket `meta`: -1 if there is none.
fn mark_of_compaction(buckets: &Buckets, name: &'static str) -> Result<i64, Failure> {
    let Some(bytes) = buckets.get(&(Bucket::Meta, Bytes::from_static(name.as_bytes()))) else { return Ok(-1) };
    match Revision::from_storage_key(bytes) {
        Some((revision, false)) if (0..=NUMBER_MAX).contains(&revision.main) => Ok(revision.main),
        _ => Err(Failure::damaged(Path::new("the key-value store"), format!("{name} is not a revision"))),
    }
}

//! A write transaction: any number of changes under one main revision, each readable by the next.

use bytes::Bytes;
use prost::Message;

use crate::common::failure::Failure;
use crate::common::key_range::KeyRange;
use crate::common::revision::Revision;
use crate::common::revision::STORAGE_KEY_BYTES;
use crate::proto::mvccpb::KeyValue;
use crate::server::checkpoint::Record;
use crate::server::mvcc::index::Found;
use crate::server::mvcc::index::mark::Mark;
use crate::server::mvcc::store::Store;
use crate::server::mvcc::store::record_bytes;
use crate::server::mvcc::view::Keys;
use crate::server::mvcc::view::Records;

/// Changes of one revision, main = the store's revision + 1, subs counted from 0.
pub struct WriteTxn<'a> {
    store: &'a mut Store,
    changes: i64,
}

/// What a transaction did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Committed {
    /// The store's revision now: one more than before if anything changed.
    pub revision: i64,
    /// Records written: `Store::recent(revision, revision)` has them.
    pub changes: i64,
}

impl<'a> WriteTxn<'a> {
    pub(super) fn new(store: &'a mut Store) -> WriteTxn<'a> {
        let newest = store.live().ring.newest().main;
        assert!(newest <= store.next.revision, "a transaction of revision {newest} was never committed");
        WriteTxn { store, changes: 0 }
    }

    /// The main revision of the changes.
    fn main(&self) -> i64 {
        self.store.next.revision + 1
    }

    /// Writes the pair; always a change, also with an equal value. `lease` 0 attaches none.
    pub fn put(&mut self, key: &Bytes, value: Bytes, lease: i64) {
        let revision = Revision::new(self.main(), self.changes);
        let mut kv = KeyValue { key: key.clone(), mod_revision: revision.main, value, lease, ..KeyValue::default() };
        let mut live = self.store.live();
        let mut hashed_bytes = 0;
        live.index.change(key, |old| {
            let alive = old.filter(|mark| !mark.is_tombstone());
            kv.create_revision = alive.map_or(revision.main, |mark| mark.create_revision);
            kv.version = alive.map_or(1, |mark| mark.version + 1);
            hashed_bytes = length(STORAGE_KEY_BYTES + kv.encoded_len());
            Some(Mark::put(revision, kv.create_revision, kv.version, lease != 0, hashed_bytes))
        });
        live.ring.push(Record { revision, tombstone: false, kv }, ring_bytes(hashed_bytes));
        drop(live);
        self.store.account(hashed_bytes);
        self.changes += 1;
    }

    /// Deletes the key if it is alive: whether it was.
    pub fn delete(&mut self, key: &Bytes) -> bool {
        let revision = Revision::new(self.main(), self.changes);
        let kv = KeyValue { key: key.clone(), ..KeyValue::default() };
        let hashed_bytes = length(STORAGE_KEY_BYTES + 1 + kv.encoded_len());
        let mut live = self.store.live();
        let mut deleted = false;
        live.index.change(key, |old| {
            deleted = old.is_some_and(|mark| !mark.is_tombstone());
            deleted.then(|| Mark::tombstone(revision, hashed_bytes))
        });
        if deleted {
            live.ring.push(Record { revision, tombstone: true, kv }, ring_bytes(hashed_bytes));
        }
        drop(live);
        if deleted {
            self.store.account(hashed_bytes);
            self.changes += 1;
        }
        deleted
    }

    /// Makes the changes the store's next revision; without changes the revision stays.
    pub fn commit(self) -> Committed {
        self.store.next.revision = self.revision();
        Committed { revision: self.store.next.revision, changes: self.changes }
    }
}

// Requests are limited far below 4 GiB; a length that is not only makes the size a lower bound.
fn length(bytes: usize) -> u32 {
    u32::try_from(bytes).unwrap_or(u32::MAX)
}

fn ring_bytes(hashed_bytes: u32) -> usize {
    usize::try_from(record_bytes(hashed_bytes)).unwrap_or(usize::MAX)
}

/// Reads see the transaction's own changes.
impl Keys for WriteTxn<'_> {
    fn revision(&self) -> i64 {
        self.store.next.revision + i64::from(self.changes > 0)
    }

    fn compact_revision(&self) -> i64 {
        self.store.compact_revision()
    }

    fn get(&self, key: &[u8], at: i64) -> Option<Mark> {
        self.store.get(key, at)
    }

    fn find(&self, range: &KeyRange, at: i64, limit: usize) -> Vec<Found> {
        self.store.find(range, at, limit)
    }

    fn count(&self, range: &KeyRange, at: i64) -> usize {
        self.store.count(range, at)
    }
}

impl Records for WriteTxn<'_> {
    fn record(&self, revision: Revision) -> Result<Record, Failure> {
        self.store.record(revision)
    }
}

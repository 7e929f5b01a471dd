//! A store with a flusher that the test drives: changes are taken, land later, and survive a restart once landed.

use std::sync::Arc;

use crate::common::revision::Revision;
use crate::server::checkpoint::Buckets;
use crate::server::mvcc::store::Changes;
use crate::server::mvcc::store::Store;
use crate::server::mvcc::testing::tables::MemoryTables;

/// What a member has on disk and in memory.
pub struct Harness {
    pub store: Store,
    pub tables: MemoryTables,
    pub buckets: Buckets,
    in_flight: Vec<Changes>,
}

impl Default for Harness {
    fn default() -> Harness {
        let tables = MemoryTables::default();
        let store = Store::new(Arc::new(tables.clone()));
        Harness { store, tables, buckets: Buckets::new(), in_flight: Vec::new() }
    }
}

impl Harness {
    /// Hands the changes to the flusher, which takes its time.
    pub fn take(&mut self) {
        let before = self.in_flight.last().map(|changes| changes.up_to);
        let changes = self.store.take_changes();
        let is_new = |revision: &Revision| changes.records.iter().any(|record| record.revision == *revision);
        assert!(!changes.removed.iter().any(is_new), "a record that came and went is not written at all");
        assert!(before.is_none_or(|before| changes.records.iter().all(|record| record.revision > before)));
        self.in_flight.push(changes);
    }

    /// The flusher is done with all it was given.
    pub fn land(&mut self) {
        for changes in self.in_flight.drain(..) {
            self.tables = self.tables.with(&changes.records, &changes.removed);
            for (bucket, key, value) in changes.pairs {
                match value {
                    Some(value) => self.buckets.insert((bucket, key), value),
                    None => self.buckets.remove(&(bucket, key)),
                };
            }
            self.store.flushed(Arc::new(self.tables.clone()), changes.up_to);
        }
    }

    pub fn flush(&mut self) {
        self.take();
        self.land();
    }

    /// Forgets everything that did not land.
    pub fn restart(&mut self) {
        self.in_flight.clear();
        self.store = Store::restore(Arc::new(self.tables.clone()), &self.buckets).unwrap();
    }

    pub fn finish_compactions(&mut self) {
        while self.store.is_compacting() {
            self.store.compaction_step(7).unwrap();
        }
    }
}

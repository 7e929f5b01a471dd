//! Tables in memory: what a flush leaves, without a disk.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::common::revision::Revision;
use crate::server::checkpoint::Record;
pub use crate::server::checkpoint::memory::MemoryTables;

/// Records of one moment; `with` makes those of the next.
impl MemoryTables {
    pub fn with(&self, records: &[Record], removed: &[Revision]) -> MemoryTables {
        let mut next = BTreeMap::clone(&self.records);
        for record in records {
            assert!(next.last_key_value().is_none_or(|(last, _)| *last < record.revision), "records out of order");
            next.insert(record.revision, record.clone());
        }
        for revision in removed {
            assert!(next.remove(revision).is_some(), "{revision} was removed but never stored");
        }
        MemoryTables { records: Arc::new(next) }
    }

    pub fn stored(&self) -> usize {
        self.records.len()
    }
}

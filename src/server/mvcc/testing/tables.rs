//! Tables in memory: what a flush leaves, without a disk.

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::sync::Arc;

use crate::common::failure::Failure;
use crate::common::revision::Revision;
use crate::server::checkpoint::Header;
use crate::server::checkpoint::Record;
use crate::server::checkpoint::Tables;

/// Records of one moment; `with` makes those of the next.
#[derive(Clone, Default)]
pub struct MemoryTables {
    records: Arc<BTreeMap<Revision, Record>>,
}

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

impl Tables for MemoryTables {
    fn record(&self, revision: Revision) -> Result<Option<Record>, Failure> {
        Ok(self.records.get(&revision).cloned())
    }

    fn headers(
        &self,
        first: Revision,
        last: Revision,
        visit: &mut dyn FnMut(Header) -> ControlFlow<()>,
    ) -> Result<(), Failure> {
        self.records(first, last, &mut |record| visit(Header::of(&record)))
    }

    fn records(
        &self,
        first: Revision,
        last: Revision,
        visit: &mut dyn FnMut(Record) -> ControlFlow<()>,
    ) -> Result<(), Failure> {
        if first <= last {
            let _ = self.records.range(first..=last).try_for_each(|(_, record)| visit(record.clone()));
        }
        Ok(())
    }
}

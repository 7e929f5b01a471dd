//! A checkpoint in memory with the crash semantics of the real one, for the simulator and for tests.
//!
//! A batch is durable at once and whole. A crash may take the newest batches with it, as a database does that falls back by
//! a commit (reliability.md 3.3, sentence 7); after it, handles from before refuse everything.

use std::collections::BTreeMap;
use std::collections::VecDeque;
use std::io;
use std::ops::ControlFlow;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::MutexGuard;
use std::sync::PoisonError;

use crate::common::failure::Failure;
use crate::common::revision::Revision;
use crate::server::checkpoint::Applied;
use crate::server::checkpoint::Batch;
use crate::server::checkpoint::Buckets;
use crate::server::checkpoint::Checkpoint;
use crate::server::checkpoint::Header;
use crate::server::checkpoint::Record;
use crate::server::checkpoint::Tables;

/// Batches that a crash may still take back.
const HISTORY_BATCHES: usize = 4;

/// A handle of a disk in memory; clones share the disk.
#[derive(Clone)]
pub struct MemoryCheckpoint {
    disk: Arc<Mutex<MemoryDisk>>,
    /// Crashes this handle has lived through: a disk that has seen more does not know it.
    epoch: u64,
}

#[derive(Default)]
struct MemoryDisk {
    /// What no crash can take.
    base: State,
    /// Batches behind `base`, oldest first.
    recent: VecDeque<Batch>,
    /// `base` with all of `recent`.
    newest: State,
    epoch: u64,
    /// Writes until the disk fails for good; `None`: it does not.
    writes_left: Option<u64>,
}

#[derive(Clone, Default)]
struct State {
    records: Arc<BTreeMap<Revision, Record>>,
    buckets: Buckets,
    applied: Applied,
}

impl State {
    fn apply(&mut self, batch: &Batch) {
        // Copies the map only while tables hold it; values are shared either way.
        let records = Arc::make_mut(&mut self.records);
        for record in &batch.records {
            records.insert(record.revision, record.clone());
        }
        for revision in &batch.removed {
            records.remove(revision);
        }
        for (bucket, key, value) in &batch.pairs {
            match value {
                Some(value) => self.buckets.insert((*bucket, key.clone()), value.clone()),
                None => self.buckets.remove(&(*bucket, key.clone())),
            };
        }
        self.applied = batch.applied.clone();
    }
}

impl MemoryCheckpoint {
    /// An empty disk.
    pub fn new() -> MemoryCheckpoint {
        MemoryCheckpoint { disk: Arc::default(), epoch: 0 }
    }

    /// Power off and on: the newest `lost` batches are gone (at most as many as a disk may lose), and a disk that failed was
    /// replaced by its copy. The handle to go on with.
    pub fn crash(&self, lost: usize) -> MemoryCheckpoint {
        let mut disk = self.lock();
        let kept = disk.recent.len() - lost.min(disk.recent.len());
        disk.recent.truncate(kept);
        let mut newest = disk.base.clone();
        disk.recent.iter().for_each(|batch| newest.apply(batch));
        disk.newest = newest;
        disk.epoch += 1;
        disk.writes_left = None;
        MemoryCheckpoint { disk: Arc::clone(&self.disk), epoch: disk.epoch }
    }

    /// Lets `writes` more batches through and fails every one after them.
    pub fn fail_after(&self, writes: u64) {
        self.lock().writes_left = Some(writes);
    }

    fn lock(&self) -> MutexGuard<'_, MemoryDisk> {
        self.disk.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn current(&self) -> Result<MutexGuard<'_, MemoryDisk>, Failure> {
        let disk = self.lock();
        if disk.epoch != self.epoch {
            return Err(Failure::Refused("this handle of the memory checkpoint is from before a crash".into()));
        }
        Ok(disk)
    }
}

impl Default for MemoryCheckpoint {
    fn default() -> MemoryCheckpoint {
        MemoryCheckpoint::new()
    }
}

impl Checkpoint for MemoryCheckpoint {
    fn write(&mut self, batch: &Batch) -> Result<Arc<dyn Tables>, Failure> {
        let mut disk = self.current()?;
        match &mut disk.writes_left {
            Some(0) => {
                let source = io::Error::other("simulated disk failure");
                return Err(Failure::Io { what: "cannot write", path: PathBuf::from("memory"), source });
            }
            Some(left) => *left -= 1,
            None => {}
        }
        disk.newest.apply(batch);
        disk.recent.push_back(batch.clone());
        if disk.recent.len() > HISTORY_BATCHES {
            let oldest = disk.recent.pop_front();
            oldest.iter().for_each(|batch| disk.base.apply(batch));
        }
        Ok(Arc::new(MemoryTables { records: Arc::clone(&disk.newest.records) }))
    }

    fn tables(&self) -> Result<Arc<dyn Tables>, Failure> {
        Ok(Arc::new(MemoryTables { records: Arc::clone(&self.current()?.newest.records) }))
    }

    fn buckets(&self) -> Result<(Buckets, Applied), Failure> {
        let disk = self.current()?;
        Ok((disk.newest.buckets.clone(), disk.newest.applied.clone()))
    }

    fn file_bytes(&self) -> u64 {
        self.lock().newest.records.values().map(|record| record.hashed_bytes() as u64).sum()
    }
}

/// The records as one batch left them.
#[derive(Clone, Default)]
pub struct MemoryTables {
    pub(in crate::server) records: Arc<BTreeMap<Revision, Record>>,
}

impl MemoryTables {
    /// Tables of these records, for tests that need no checkpoint.
    pub fn of(records: impl IntoIterator<Item = Record>) -> MemoryTables {
        let records = records.into_iter().map(|record| (record.revision, record)).collect();
        MemoryTables { records: Arc::new(records) }
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
            // Whether the visitor stopped early makes no difference to what comes back.
            let _ = self.records.range(first..=last).try_for_each(|(_, record)| visit(record.clone()));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::mvccpb::KeyValue;

    fn batch(main: i64) -> Batch {
        let kv = KeyValue { key: "k".into(), mod_revision: main, ..Default::default() };
        let record = Record { revision: Revision::new(main, 0), tombstone: false, kv };
        Batch {
            records: vec![record],
            removed: vec![Revision::new(main - 1, 0)],
            applied: Applied { index: main as u64, ..Default::default() },
            ..Default::default()
        }
    }

    fn index(checkpoint: &MemoryCheckpoint) -> u64 {
        checkpoint.buckets().unwrap().1.index
    }

    #[test]
    fn a_crash_takes_the_newest_batches_whole() {
        let mut before = MemoryCheckpoint::new();
        for main in 2..12 {
            before.write(&batch(main)).unwrap();
        }
        let mut after = before.crash(2);
        assert_eq!(index(&after), 9);
        let tables = after.tables().unwrap();
        assert!(tables.record(Revision::new(9, 0)).unwrap().is_some(), "its removal was lost too");
        assert!(tables.record(Revision::new(8, 0)).unwrap().is_none());
        assert!(before.write(&batch(12)).is_err() && before.tables().is_err(), "a handle from before the crash");
        after.write(&batch(10)).unwrap();
        assert_eq!(index(&after.crash(0)), 10);
        assert_eq!(index(&after.crash(100)), 11 - HISTORY_BATCHES as u64);
    }

    #[test]
    fn tables_do_not_change_under_a_reader() {
        let mut checkpoint = MemoryCheckpoint::new();
        let old = checkpoint.write(&batch(2)).unwrap();
        checkpoint.write(&batch(3)).unwrap();
        assert!(old.record(Revision::new(2, 0)).unwrap().is_some());
        assert!(old.record(Revision::new(3, 0)).unwrap().is_none());
    }

    #[test]
    fn a_failing_disk_stays_failed() {
        let mut checkpoint = MemoryCheckpoint::new();
        checkpoint.fail_after(1);
        assert!(checkpoint.write(&batch(2)).is_ok());
        assert!(checkpoint.write(&batch(3)).is_err() && checkpoint.write(&batch(4)).is_err());
        assert_eq!(index(&checkpoint), 2);
    }
}

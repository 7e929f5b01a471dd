//! The redb file on a disk that loses power: whatever of the unsynced writes survives, the file opens and holds one of two
//! states, that of the last acknowledged batch or that of the batch under way (reliability.md 2.1 B1, 3.2 D1, D5, D14).
//!
//! The disk keeps, drops or tears (in sectors of 512 bytes) every write since the last sync, by a seed. Power also goes
//! during the opening after a crash.

use std::ops::ControlFlow;
use std::sync::Mutex;

use redb::StorageBackend;

use super::*;
use crate::common::revision::Revision;
use crate::proto::mvccpb::KeyValue;
use crate::server::checkpoint::Record;
use crate::server::checkpoint::tables::EVERYTHING_LAST;

const SECTOR_BYTES: usize = 512;

/// A disk in memory that fails for good after a number of operations.
#[derive(Clone, Debug, Default)]
struct PowerDisk(Arc<Mutex<Inner>>);

#[derive(Debug, Default)]
struct Inner {
    synced: Vec<u8>,
    current: Vec<u8>,
    /// What was done since the last sync, in order.
    unsynced: Vec<Change>,
    /// Writes and syncs until the power goes; `None`: it stays.
    left: Option<u64>,
    /// Writes and syncs so far.
    done: u64,
}

#[derive(Clone, Debug)]
enum Change {
    Length(usize),
    Bytes(usize, Vec<u8>),
}

impl Change {
    fn apply(&self, file: &mut Vec<u8>) {
        match self {
            Change::Length(length) => file.resize(*length, 0),
            Change::Bytes(at, bytes) => {
                let end = at + bytes.len();
                if file.len() < end {
                    file.resize(end, 0);
                }
                file[*at..end].copy_from_slice(bytes);
            }
        }
    }
}

impl Inner {
    fn spend(&mut self) -> io::Result<()> {
        match &mut self.left {
            Some(0) => return Err(io::Error::other("no power")),
            Some(left) => *left -= 1,
            None => {}
        }
        self.done += 1;
        Ok(())
    }

    fn change(&mut self, change: Change) -> io::Result<()> {
        self.spend()?;
        change.apply(&mut self.current);
        self.unsynced.push(change);
        Ok(())
    }
}

impl StorageBackend for PowerDisk {
    fn len(&self) -> io::Result<u64> {
        Ok(self.0.lock().unwrap().current.len() as u64)
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let inner = self.0.lock().unwrap();
        let at = offset as usize;
        let bytes = inner.current.get(at..at + out.len()).ok_or(io::ErrorKind::UnexpectedEof)?;
        out.copy_from_slice(bytes);
        Ok(())
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.0.lock().unwrap().change(Change::Length(len as usize))
    }

    fn sync_data(&self) -> io::Result<()> {
        let mut inner = self.0.lock().unwrap();
        inner.spend()?;
        inner.synced = inner.current.clone();
        inner.unsynced.clear();
        Ok(())
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.0.lock().unwrap().change(Change::Bytes(offset as usize, data.to_vec()))
    }
}

struct Dice(u64);

impl Dice {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (self.0 >> 33) % limit
    }
}

impl PowerDisk {
    /// The disk as the next start finds it.
    fn after_crash(&self, dice: &mut Dice) -> PowerDisk {
        let inner = self.0.lock().unwrap();
        let mut file = inner.synced.clone();
        // Some crashes lose everything, some nothing, most a part.
        let mood = dice.below(4);
        for change in &inner.unsynced {
            match (mood, dice.below(3)) {
                (0, _) | (2.., 0) => {}
                (1, _) | (2.., 1) => change.apply(&mut file),
                _ => tear(change, dice).iter().for_each(|part| part.apply(&mut file)),
            }
        }
        let inner = Inner { synced: file.clone(), current: file, ..Default::default() };
        PowerDisk(Arc::new(Mutex::new(inner)))
    }

    fn power_for(&self, operations: Option<u64>) {
        self.0.lock().unwrap().left = operations;
    }

    fn done(&self) -> u64 {
        self.0.lock().unwrap().done
    }
}

/// Those sectors of a write that reached the disk.
fn tear(change: &Change, dice: &mut Dice) -> Vec<Change> {
    let Change::Bytes(start, bytes) = change else { return Vec::new() };
    let mut parts = Vec::new();
    let mut at = 0;
    while at < bytes.len() {
        let end = bytes.len().min(at + SECTOR_BYTES - (start + at) % SECTOR_BYTES);
        if dice.below(2) == 0 {
            parts.push(Change::Bytes(start + at, bytes[at..end].to_vec()));
        }
        at = end;
    }
    parts
}

fn open(disk: &PowerDisk) -> Result<RedbCheckpoint, Failure> {
    let path = Path::new("disk");
    let database = guarded(path, || {
        let mut builder = Database::builder();
        builder.set_cache_size(CACHE_BYTES);
        Ok(Arc::new(builder.create_with_backend(disk.clone())?))
    })?;
    Ok(RedbCheckpoint { path: path.to_owned(), database, file: tempfile::tempfile().unwrap() })
}

/// A fresh checkpoint on a synced disk.
fn created() -> (PowerDisk, RedbCheckpoint) {
    let disk = PowerDisk::default();
    let checkpoint = open(&disk).unwrap();
    checkpoint.create_tables().unwrap();
    (disk, checkpoint)
}

/// Batch `index`: ten puts, removals of what the batch before last wrote, bucket pairs.
fn batch(index: u64) -> Batch {
    let record = |sub: i64| {
        let value = vec![index as u8; 1 + (sub as usize * 977 + index as usize * 313) % 6000];
        let main = index as i64;
        let kv = KeyValue {
            key: format!("key {sub}").into(),
            mod_revision: main,
            value: value.into(),
            ..Default::default()
        };
        Record { revision: Revision::new(main, sub), tombstone: false, kv }
    };
    Batch {
        records: (0..10).map(record).collect(),
        removed: (0..7).map(|sub| Revision::new(index as i64 - 2, sub)).collect(),
        pairs: vec![(Bucket::Lease, Bytes::from(vec![index as u8 % 3]), Some(Bytes::from(vec![7; index as usize])))],
        applied: Applied { index, term: 1, ..Default::default() },
    }
}

/// Everything a checkpoint says.
type Contents = (Vec<Record>, Buckets, Applied);

fn contents(checkpoint: &dyn Checkpoint) -> Result<Contents, Failure> {
    let mut records = Vec::new();
    checkpoint.tables()?.records(Revision::default(), EVERYTHING_LAST, &mut |record| {
        records.push(record);
        ControlFlow::Continue(())
    })?;
    let (buckets, applied) = checkpoint.buckets()?;
    Ok((records, buckets, applied))
}

/// Batches in one run.
const BATCHES: u64 = 6;

/// Contents after each number of batches, by the model.
fn expected() -> Vec<Contents> {
    let mut model = crate::server::checkpoint::memory::MemoryCheckpoint::new();
    let mut states = vec![contents(&model).unwrap()];
    for index in 1..=BATCHES {
        model.write(&batch(index)).unwrap();
        states.push(contents(&model).unwrap());
    }
    states
}

/// Writes batches until the power goes: how many were acknowledged.
fn write_until_the_power_goes(checkpoint: &mut RedbCheckpoint) -> u64 {
    (1..=BATCHES).find(|index| checkpoint.write(&batch(*index)).is_err()).unwrap_or(BATCHES + 1) - 1
}

/// B1, etcd 13766: the applied index was committed by whichever transaction came first, ahead of what it speaks of;
/// after a crash those entries were skipped, and the member served another history than its peers. Here either all of a
/// batch is there, or nothing of it, and the index with it.
#[test]
fn b01_applied_index_is_committed_with_its_data() {
    let expected = expected();
    let (disk, mut checkpoint) = created();
    let before = disk.done();
    assert_eq!(write_until_the_power_goes(&mut checkpoint), BATCHES);
    assert_eq!(contents(&checkpoint).unwrap(), expected[BATCHES as usize]);
    let operations = disk.done() - before;
    drop(checkpoint);

    let mut under_way = 0;
    for seed in 0..400_u64 {
        let mut dice = Dice(seed);
        let (disk, mut checkpoint) = created();
        disk.power_for(Some(dice.below(operations)));
        let acknowledged = write_until_the_power_goes(&mut checkpoint);
        drop(checkpoint);
        let mut disk = disk.after_crash(&mut dice);
        // Sometimes the power goes again while the file is opened, repaired and closed.
        for _ in 0..dice.below(3) {
            disk.power_for(Some(dice.below(12)));
            drop(open(&disk));
            disk = disk.after_crash(&mut dice);
        }
        let checkpoint = open(&disk).unwrap_or_else(|failure| panic!("seed {seed}: {failure}"));
        let found = contents(&checkpoint).unwrap_or_else(|failure| panic!("seed {seed}: {failure}"));
        let index = found.2.index;
        assert!([acknowledged, acknowledged + 1].contains(&index), "seed {seed}: {index}, {acknowledged} acknowledged");
        assert_eq!(found, expected[index as usize], "seed {seed}");
        under_way += u64::from(index > acknowledged);
    }
    assert!(under_way > 0, "some crash came after the commit and before its acknowledgement");
}

#[test]
fn after_an_io_error_nothing_is_written_any_more() {
    let (disk, mut checkpoint) = created();
    checkpoint.write(&batch(1)).unwrap();
    disk.power_for(Some(3));
    assert!(checkpoint.write(&batch(2)).is_err());
    disk.power_for(None);
    let refusal = checkpoint.write(&batch(2)).err().map(|failure| failure.to_string());
    assert!(refusal.is_some_and(|text| text.contains("earlier disk error")), "redb latches the first error");
}

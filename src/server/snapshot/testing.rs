//! States and fixtures for the tests of this folder.

use std::path::Path;
use std::path::PathBuf;
use std::process::Command;
use std::sync::Arc;

use bytes::Bytes;

use crate::common::revision::Revision;
use crate::proto::mvccpb::KeyValue;
use crate::proto::raftpb::ConfState;
use crate::server::checkpoint::Applied;
use crate::server::checkpoint::Bucket;
use crate::server::checkpoint::Buckets;
use crate::server::checkpoint::Record;
use crate::server::checkpoint::memory::MemoryTables;
use crate::server::snapshot::contents::Frozen;
use crate::server::snapshot::contents::Import;

/// A small generator (splitmix64): equal seeds give equal states.
pub struct Seed(pub u64);

impl Seed {
    pub fn roll(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    pub fn below(&mut self, limit: u64) -> u64 {
        self.roll() % limit
    }

    fn bytes(&mut self, length: u64) -> Bytes {
        (0..length.div_ceil(8)).flat_map(|_| self.roll().to_le_bytes()).take(length as usize).collect()
    }
}

/// `count` records: puts with values up to `value_bytes_max`, tombstones, several changes in one revision.
pub fn records(seed: &mut Seed, count: usize, value_bytes_max: u64) -> Vec<Record> {
    let mut revision = Revision::new(2, 0);
    let mut records = Vec::new();
    for _ in 0..count {
        let key_bytes = 1 + seed.below(40);
        let key = seed.bytes(key_bytes);
        let tombstone = seed.below(8) == 0;
        let kv = if tombstone {
            KeyValue { key, ..Default::default() }
        } else {
            let value_bytes = seed.below(value_bytes_max + 1);
            KeyValue {
                key,
                create_revision: 1 + seed.below(revision.main as u64) as i64,
                mod_revision: revision.main,
                version: 1 + seed.below(300) as i64,
                value: seed.bytes(value_bytes),
                lease: if seed.below(2) == 0 { 0 } else { seed.roll() as i64 },
            }
        };
        records.push(Record { revision, tombstone, kv });
        revision = match seed.below(3) {
            0 => Revision::new(revision.main, revision.sub + 1),
            step => Revision::new(revision.main + step as i64, 0),
        };
    }
    records
}

/// Bucket pairs of all sorts and a state around the records.
pub fn state(seed: &mut Seed, records: Vec<Record>, pairs: u64, index: u64) -> Frozen {
    let mut buckets = Buckets::new();
    for _ in 0..pairs {
        let bucket = Bucket::ALL[seed.below(9) as usize];
        let (key_bytes, value_bytes) = (1 + seed.below(30), seed.below(200));
        buckets.insert((bucket, seed.bytes(key_bytes)), seed.bytes(value_bytes));
    }
    let conf_state = ConfState { voters: vec![1, 2, u64::MAX], learners: vec![9], ..Default::default() };
    Frozen { records: Arc::new(MemoryTables::of(records)), buckets, applied: Applied { index, term: 4, conf_state } }
}

pub fn all_records(import: &Import) -> Vec<Record> {
    import.records().unwrap().map(Result::unwrap).collect()
}

/// A fixture, unpacked into `dir`; `None`, said aloud, when the folder is not there.
pub fn fixture(dir: &Path, version: &str, name: &str) -> Option<PathBuf> {
    let Some(folder) = shared().map(|shared| shared.join("fixtures").join(version)).filter(|folder| folder.exists())
    else {
        eprintln!("SKIPPED: no fixtures of {version}; set QUORATE_SHARED to the folder that has them");
        return None;
    };
    let from = folder.join(name);
    let to = dir.join(name.trim_end_matches(".gz"));
    if name.ends_with(".gz") {
        let unpacked = Command::new("gzip").arg("-dc").arg(&from).output().unwrap();
        assert!(unpacked.status.success(), "gzip -dc {}", from.display());
        std::fs::write(&to, unpacked.stdout).unwrap();
    } else {
        std::fs::copy(&from, &to).unwrap();
    }
    Some(to)
}

fn shared() -> Option<PathBuf> {
    if let Some(shared) = std::env::var_os("QUORATE_SHARED") {
        return Some(PathBuf::from(shared));
    }
    let package = Path::new(env!("CARGO_MANIFEST_DIR"));
    package.ancestors().map(|parent| parent.join("shared")).find(|shared| shared.join("fixtures").exists())
}

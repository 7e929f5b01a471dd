//! Snapshots written by real etcd 3.6.14 and 3.7.1: our reader gives their contents and their hashes, and what we write
//! the real etcdutl reads.

use std::io::Seek;
use std::io::SeekFrom;
use std::path::Path;
use std::path::PathBuf;
use std::process::Command;
use std::sync::Arc;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use bytes::Bytes;
use quorate::proto::etcdserverpb::RangeRequest;
use quorate::server::checkpoint::Batch;
use quorate::server::checkpoint::Checkpoint;
use quorate::server::checkpoint::store::RedbCheckpoint;
use quorate::server::mvcc::hash::hash_kv;
use quorate::server::mvcc::read::range;
use quorate::server::mvcc::store::Store;
use quorate::server::run::ports::ViewRecords;
use quorate::server::snapshot::contents::Frozen;
use quorate::server::snapshot::contents::import;
use quorate::server::snapshot::hash::HashOf;
use quorate::server::snapshot::hash::hash;
use quorate::server::snapshot::send::write_image;
use serde_json::Value;

use crate::oracle::oracle;
use crate::support::shared_dir;
use crate::support::skipped;

const VERSIONS: [&str; 2] = ["etcd-3.6.14", "etcd-3.7.1"];

/// The unpacked snapshot of a version and what is expected of it.
fn fixture(test: &str, version: &str, dir: &Path) -> Option<(PathBuf, Value)> {
    let Some(shared) = shared_dir() else {
        skipped(test, "no folder shared/fixtures beside this checkout; QUORATE_SHARED can name one");
        return None;
    };
    let folder = shared.join("fixtures").join(version);
    let expected = std::fs::read(folder.join("expected.json")).expect("expected.json");
    let unpacked = Command::new("gzip").arg("-dc").arg(folder.join("snapshot.db.gz")).output().expect("gzip runs");
    assert!(unpacked.status.success());
    let path = dir.join("snapshot.db");
    std::fs::write(&path, unpacked.stdout).expect("written");
    Some((path, serde_json::from_slice(&expected).expect("JSON")))
}

/// The snapshot's state in a database of ours.
fn load(snapshot: &Path, dir: &Path) -> (Store, Frozen) {
    let import = import(snapshot).expect("a snapshot of real etcd");
    let mut checkpoint = RedbCheckpoint::open(&dir.join("db.redb")).expect("a new database");
    let batch = Batch {
        records: import.records().expect("records").collect::<Result<_, _>>().expect("whole records"),
        removed: Vec::new(),
        pairs: import
            .buckets
            .iter()
            .map(|((bucket, key), value)| (*bucket, key.clone(), Some(value.clone())))
            .collect(),
        applied: import.applied.clone(),
    };
    let tables = checkpoint.write(&batch).expect("written");
    let store = Store::restore(tables, &import.buckets).expect("restored");
    let records = Arc::new(ViewRecords(store.views().current()));
    let frozen = Frozen { records, buckets: import.buckets.clone(), applied: import.applied.clone() };
    (store, frozen)
}

fn decode(value: &Value) -> Bytes {
    Bytes::from(BASE64_STANDARD.decode(value.as_str().unwrap_or_default()).expect("base64"))
}

/// All pairs at a revision equal the expected ones.
fn check_pairs(store: &Store, revision: i64, expected: &Value) {
    let all = RangeRequest { key: "\0".into(), range_end: "\0".into(), revision, ..RangeRequest::default() };
    let found = range(store.views().current().as_ref(), &all).expect("a range").kvs;
    let expected = expected.as_array().expect("a list");
    assert_eq!(found.len(), expected.len(), "pairs at {revision}");
    for (found, expected) in found.iter().zip(expected) {
        let number = |name: &str| expected[name].as_i64().unwrap_or_default();
        assert_eq!((&found.key, &found.value), (&decode(&expected["key"]), &decode(&expected["value"])));
        assert_eq!(
            [found.create_revision, found.mod_revision, found.version, found.lease],
            [number("create_revision"), number("mod_revision"), number("version"), number("lease")]
        );
    }
}

#[test]
fn contents_and_hashes_are_those_of_real_etcd() {
    for version in VERSIONS {
        let dir = tempfile::tempdir().expect("a directory");
        let Some((snapshot, expected)) = fixture("contents_and_hashes_are_those_of_real_etcd", version, dir.path())
        else {
            return;
        };
        let (store, _) = load(&snapshot, dir.path());
        let compacted = expected["compact_revision"].as_i64().expect("a number");
        check_pairs(&store, 0, &expected["kvs"]);
        check_pairs(&store, compacted, &expected["kvs_at_compact_revision"]);
        for entry in expected["hashkv"].as_array().expect("a list") {
            let revision = entry["hash_revision"].as_i64().expect("a number");
            let hash = hash_kv(&store.views(), revision).expect("a hash");
            assert_eq!(Some(u64::from(hash.hash)), entry["hash"].as_u64(), "{version} at {revision}");
            assert_eq!(Some(hash.compact_revision), entry["compact_revision"].as_i64());
        }
    }
}

#[test]
fn what_we_write_the_real_etcdutl_reads() {
    let test = "what_we_write_the_real_etcdutl_reads";
    let Some(real) = oracle(test) else { return };
    for version in VERSIONS {
        let dir = tempfile::tempdir().expect("a directory");
        let Some((snapshot, _)) = fixture(test, version, dir.path()) else { return };
        let (store, frozen) = load(&snapshot, dir.path());
        let mut image = write_image(&frozen, dir.path(), Bytes::new()).expect("an image");
        let path = dir.path().join("ours.db");
        let mut copy = std::fs::File::create(&path).expect("a file");
        image.file.seek(SeekFrom::Start(0)).expect("the beginning");
        std::io::copy(&mut image.file, &mut copy).expect("copied");
        let output = Command::new(&real.etcdutl)
            .args(["snapshot", "status", "-w", "json"])
            .arg(&path)
            .output()
            .expect("etcdutl runs");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let status: Value = serde_json::from_slice(&output.stdout).expect("JSON");
        assert_eq!(status["revision"].as_i64(), Some(store.revision()));
        let ours = hash(&frozen, HashOf::File).expect("a hash");
        assert_eq!(status["hash"].as_u64(), Some(u64::from(ours)), "{version}");
        let theirs = Command::new(&real.etcdutl)
            .args(["snapshot", "status", "-w", "json"])
            .arg(&snapshot)
            .output()
            .expect("etcdutl runs");
        let theirs: Value = serde_json::from_slice(&theirs.stdout).expect("JSON");
        assert_eq!(status["totalKey"], theirs["totalKey"], "{version}");
        assert_eq!(status["hash"], theirs["hash"], "{version}: the same pairs give the same hash");
    }
}

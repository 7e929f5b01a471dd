//! The logs of real members, 3.6.14 and 3.7.1, applied from their first entry: the state must be the one that the
//! members themselves had, HashKV and all. Without the fixtures the test says that it skips.

use std::path::Path;
use std::path::PathBuf;
use std::process::Command;

use crate::common::failure::Failure;
use crate::disk::real::RealDisk;
use crate::proto::raftpb::Entry;
use crate::server::apply::machine::Machine;
use crate::server::apply::testing::Written;
use crate::server::checkpoint::Bucket;
use crate::server::checkpoint::Buckets;
use crate::server::mvcc::hash::hash_view;
use crate::server::raft::wal::Recovered;
use crate::server::raft::wal::Wal;
use crate::server::snapshot::contents;

/// The folder beside the checkout, or the one that `QUORATE_SHARED` names.
fn fixtures() -> Option<PathBuf> {
    let named = std::env::var_os("QUORATE_SHARED").map(PathBuf::from);
    let beside = Path::new(env!("CARGO_MANIFEST_DIR")).ancestors().map(|ancestor| ancestor.join("shared"));
    named.into_iter().chain(beside).map(|shared| shared.join("fixtures")).find(|fixtures| fixtures.is_dir())
}

/// Applies the committed entries; those about authentication must be refused by name, and count as empty here.
fn apply(machine: &mut Machine, recovered: &Recovered) -> usize {
    let mut refused = 0;
    for entry in recovered.entries.iter().filter(|entry| entry.index <= recovered.hard_state.commit) {
        if let Err(failure) = machine.apply_entry(entry) {
            assert_auth(&failure, entry.index);
            refused += 1;
            let empty = Entry { data: bytes::Bytes::new(), ..entry.clone() };
            machine.apply_entry(&empty).expect("an empty entry");
        }
    }
    refused
}

fn assert_auth(failure: &Failure, index: u64) {
    let text = failure.to_string();
    assert!(text.starts_with(&format!("log entry {index} is ")) && text.contains("authentication"), "{text}");
}

/// The buckets that do not hold users and roles, nor this member's own idea of the storage version.
fn comparable(buckets: &Buckets) -> Buckets {
    let auth = [Bucket::Auth, Bucket::AuthUsers, Bucket::AuthRoles];
    let kept = buckets.iter().filter(|((bucket, _), _)| !auth.contains(bucket));
    kept.map(|(key, value)| (key.clone(), value.clone())).collect()
}

#[test]
fn logs_of_real_members_make_the_state_that_they_had() {
    let Some(fixtures) = fixtures() else {
        eprintln!("SKIPPED: no fixtures; set QUORATE_SHARED to the folder that has them");
        return;
    };
    for version in ["etcd-3.6.14", "etcd-3.7.1"] {
        let folder = fixtures.join(version);
        let temp = tempfile::tempdir().expect("a directory");
        let archive = folder.join("m1-stopped.tar.gz");
        let unpacked = Command::new("tar").arg("-xzf").arg(&archive).arg("-C").arg(temp.path()).status();
        assert!(unpacked.expect("tar runs").success(), "tar {}", archive.display());
        let member = temp.path().join("m1-stopped").join("member");
        let recovered = Wal::inspect(&RealDisk, &member.join("wal")).expect("a log");
        let mut written = Written::default();
        let mut machine = written.machine(0);
        assert!(apply(&mut machine, &recovered) > 5, "users, roles, grants and the switch");
        while machine.store().is_compacting() {
            machine.compaction_step(7).expect("tables in memory");
        }
        machine.store.publish();
        let batch = machine.take_batch().expect("changes");
        written.write(&batch);

        let database = contents::import(&member.join("snap").join("db")).expect("a database");
        assert_eq!(comparable(&machine.buckets()), comparable(&database.buckets), "{version}");
        assert_eq!(machine.applied(), &database.applied, "{version}");

        let expected = std::fs::read(folder.join("expected.json")).expect("beside the archive");
        let expected: serde_json::Value = serde_json::from_slice(&expected).expect("JSON");
        let view = machine.store().views().current();
        for want in expected["hashkv"].as_array().expect("a list") {
            let number = |name: &str| want[name].as_i64().expect("a number");
            let hash = hash_view(&view, number("hash_revision")).expect("a revision that is kept");
            let got = (i64::from(hash.hash), hash.compact_revision, hash.hash_revision);
            let want = (number("hash"), number("compact_revision"), number("hash_revision"));
            assert_eq!(got, want, "{version}");
        }
        // A restart from what was written holds the same.
        assert_eq!(written.machine(0).buckets(), machine.buckets(), "{version}");
    }
}

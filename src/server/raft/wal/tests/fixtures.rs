//! The logs of real members, etcd 3.6.14 and 3.7.1, stopped and killed. Without the fixtures the test says that it skips.

use std::path::Path;
use std::path::PathBuf;
use std::process::Command;
use std::sync::Arc;

use crate::disk::real::RealDisk;
use crate::proto::raft_numbers::ENTRY_CONF_CHANGE;
use crate::proto::raftpb::Entry;
use crate::proto::raftpb::HardState;
use crate::server::raft::wal::Position;
use crate::server::raft::wal::Recovered;
use crate::server::raft::wal::Wal;
use crate::server::raft::wal::WalOptions;

/// The folder beside the checkout, or the one that `QUORATE_SHARED` names.
fn fixtures() -> Option<PathBuf> {
    let named = std::env::var_os("QUORATE_SHARED").map(PathBuf::from);
    let beside = Path::new(env!("CARGO_MANIFEST_DIR")).ancestors().map(|ancestor| ancestor.join("shared"));
    named.into_iter().chain(beside).map(|shared| shared.join("fixtures")).find(|fixtures| fixtures.is_dir())
}

/// Unpacks one member and gives its log directory.
fn unpack(archive: &Path, into: &Path) -> PathBuf {
    // The database is of no use here.
    let status = Command::new("tar").arg("-xzf").arg(archive).arg("-C").arg(into).args(["--exclude", "db"]).status();
    assert!(status.unwrap().success(), "tar {}", archive.display());
    let member = std::fs::read_dir(into).unwrap().next().unwrap().unwrap().path();
    member.join("member").join("wal")
}

fn check(recovered: &Recovered) {
    assert_eq!(recovered.base, Position::default());
    for (entry, index) in recovered.entries.iter().zip(1..) {
        assert_eq!(entry.index, index);
        assert!(entry.term >= 1 && entry.term <= recovered.hard_state.term);
    }
    assert!(recovered.entries.is_sorted_by_key(|entry| entry.term));
    let HardState { commit, term, vote } = recovered.hard_state;
    assert!(commit > 0xb7 && commit <= recovered.last_index() && vote != 0, "{:?}", recovered.hard_state);
    // Three bootstrap members, then a learner added, promoted, and a member removed.
    let changes = recovered.entries.iter().filter(|entry| entry.r#type == ENTRY_CONF_CHANGE).count();
    assert_eq!((changes, term), (6, 3));
    // The positions of the .snap files beside it.
    let snapshots: Vec<u64> = recovered.snapshots.iter().map(|snapshot| snapshot.index).collect();
    assert_eq!(snapshots, [0, 0x3d, 0x7a, 0xb7]);
    let voters = &recovered.snapshots[3].conf_state.as_ref().unwrap().voters;
    assert!(voters.contains(&recovered.metadata.node_id), "{voters:?}");
}

#[test]
fn logs_of_real_members_are_read_and_continued() {
    let Some(fixtures) = fixtures() else {
        println!("skipped: no fixtures");
        return;
    };
    for version in ["etcd-3.6.14", "etcd-3.7.1"] {
        let mut logs = Vec::new();
        for member in ["m1-stopped", "m2-killed"] {
            let temp = tempfile::tempdir().unwrap();
            let dir = unpack(&fixtures.join(version).join(format!("{member}.tar.gz")), temp.path());
            let inspected = Wal::inspect(&RealDisk, &dir).unwrap();
            check(&inspected);
            let (mut wal, recovered) = Wal::open(Arc::new(RealDisk), &dir, WalOptions::default()).unwrap();
            assert_eq!(recovered, inspected);
            let index = wal.last_index() + 1;
            let entry = Entry { r#type: 0, term: 4, index, data: bytes::Bytes::from_static(b"ours") };
            wal.save(Some(&HardState { term: 4, ..recovered.hard_state }), std::slice::from_ref(&entry), true).unwrap();
            drop(wal);
            let continued = Wal::inspect(&RealDisk, &dir).unwrap();
            assert_eq!(continued.entries.last(), Some(&entry));
            assert_eq!(continued.entries.len(), recovered.entries.len() + 1);
            logs.push(recovered);
        }
        // Two members of one cluster: what both have is the same.
        assert_eq!(logs[0].metadata.cluster_id, logs[1].metadata.cluster_id);
        assert_ne!(logs[0].metadata.node_id, logs[1].metadata.node_id);
        let common = logs[0].hard_state.commit.min(logs[1].hard_state.commit) as usize;
        for (ours, theirs) in logs[0].entries.iter().zip(&logs[1].entries).take(common) {
            assert_eq!(ours.data, theirs.data, "entry {}", ours.index);
        }
    }
}

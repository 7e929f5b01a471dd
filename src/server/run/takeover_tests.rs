//! Directories as etcd leaves them, taken over at once, after a death at every step, and refused.

use std::collections::BTreeMap;
use std::process::Command;
use std::sync::Arc;

use bytes::Bytes;

use super::*;
use crate::common::ids::MemberId;
use crate::common::revision::Revision;
use crate::proto::mvccpb::KeyValue;
use crate::proto::raftpb::HardState;
use crate::proto::walpb;
use crate::server::apply::testing::Written;
use crate::server::checkpoint::Bucket;
use crate::server::checkpoint::Buckets;
use crate::server::checkpoint::Record;
use crate::server::checkpoint::memory::MemoryTables;
use crate::server::cluster::member::Member;
use crate::server::mvcc::hash::hash_kv;
use crate::server::raft::wal::WalOptions;
use crate::server::run::storage::Storage;
use crate::server::snapshot::contents::Frozen;
use crate::server::snapshot::member_dir::Draft;
use crate::server::snapshot::member_dir::Layout;
use crate::server::snapshot::member_dir::Log;
use crate::server::snapshot::member_dir::write_etcd_database;
use crate::server::snapshot::testing::fixture;

const AUTH_ENABLED: (Bucket, Bytes) = (Bucket::Auth, Bytes::from_static(b"authEnabled"));

fn config() -> MachineConfig {
    Written::default().machine_config(-1)
}

fn member(id: u64) -> ((Bucket, Bytes), Bytes) {
    let member = Member { id: MemberId(id), peer_urls: vec![format!("http://h:{id}")], ..Member::default() };
    ((Bucket::Members, Bytes::from(member.id.to_string())), Bytes::from(member.to_json()))
}

/// A state with `count` puts that ends with entry `index`.
fn state(index: u64, count: i64) -> Frozen {
    let put = |main: i64| {
        let key = Bytes::from(format!("k{main}"));
        let kv = KeyValue { key, create_revision: main, mod_revision: main, version: 1, ..KeyValue::default() };
        Record { revision: Revision::new(main, 0), tombstone: false, kv }
    };
    let records = Arc::new(MemoryTables::of((2..2 + count).map(put)));
    let applied = Applied { index, term: 2, conf_state: conf_state(&[7]) };
    Frozen { records, buckets: Buckets::from([member(7)]), applied }
}

fn conf_state(voters: &[u64]) -> ConfState {
    ConfState { voters: voters.to_vec(), ..ConfState::default() }
}

/// What etcd leaves: its database, a `.snap` file, and a log that goes on behind the snapshot.
fn etcds(data: &Path, state: &Frozen, voters: &[u64], behind: u64) -> Directories {
    let Applied { index, term, .. } = state.applied;
    let log = Log {
        metadata: walpb::Metadata { node_id: 7, cluster_id: 9 },
        hard_state: HardState { term, vote: 7, commit: index + behind },
        snapshot: walpb::Snapshot { index, term, conf_state: Some(conf_state(voters)) },
        entries: (index + 1..=index + behind).map(|index| Entry { index, term, ..Entry::default() }).collect(),
    };
    let draft = Draft::begin(data, None).unwrap();
    draft.write_state(Layout::Etcd, state, Bytes::from_static(b"{}")).unwrap();
    draft.write_log(&log).unwrap();
    draft.finish().unwrap();
    Directories::new(data, None)
}

/// Every file below a directory with its content; our own lock left out.
fn files(dir: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut found = BTreeMap::new();
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(files(&path));
        } else if path.file_name().is_some_and(|name| name != "lock") {
            found.insert(path.clone(), fs::read(&path).unwrap());
        }
    }
    found
}

/// Opens the directory as a start does: applied index, revision and HashKV.
fn start(directories: &Directories) -> Result<(u64, i64, u32), Failure> {
    let storage = Storage::open(directories.clone(), WalOptions { allocate_ahead: false, ..WalOptions::default() })?;
    take_over(&storage.directories, config())?;
    let restored = storage.restore(config())?;
    let views = restored.machine.store().views();
    let hash = hash_kv(&views, 0).expect("the newest revision");
    Ok((restored.start.applied.0, restored.machine.revision(), hash.hash))
}

#[test]
fn an_etcd_directory_becomes_ours_and_is_kept_beside() {
    let temp = tempfile::tempdir().unwrap();
    let directories = etcds(temp.path(), &state(5, 20), &[7], 3);
    let before = files(&temp.path().join("member"));
    let (applied, revision, hash) = start(&directories).unwrap();
    assert_eq!((applied, revision), (8, 21));
    let kept: Vec<String> = install::names(&directories.snap).unwrap();
    assert_eq!(kept, [install::DATABASE], "etcd's own files are gone");
    // To the byte, however long we have gone on since.
    let backup: BTreeMap<PathBuf, Vec<u8>> = files(&temp.path().join(BACKUP));
    let moved = |path: &PathBuf| temp.path().join("member").join(path.strip_prefix(temp.path().join(BACKUP)).unwrap());
    assert!(backup.iter().map(|(path, content)| (moved(path), content.clone())).eq(before));
    assert_eq!(start(&directories).unwrap(), (applied, revision, hash), "and again, as any directory of ours");
    // An operator who goes back, and comes again later, finds both.
    fs::rename(temp.path().join("member"), temp.path().join("ours")).unwrap();
    let copied = Command::new("cp").arg("-a").args([temp.path().join(BACKUP), temp.path().join("member")]).status();
    assert!(copied.unwrap().success());
    assert_eq!(start(&directories).unwrap(), (applied, revision, hash));
    assert!(temp.path().join("member.etcd.2/snap/db").exists() && temp.path().join("member.etcd/snap/db").exists());
}

#[test]
fn a_log_in_another_place_stays_there_and_is_kept_too() {
    let temp = tempfile::tempdir().unwrap();
    let (data, wal) = (temp.path().join("data"), temp.path().join("log"));
    let before = etcds(&data, &state(5, 20), &[7], 3);
    fs::rename(&before.wal, &wal).unwrap();
    let segments = files(&wal);
    let directories = Directories::new(&data, Some(&wal));
    assert_eq!(start(&directories).map(|(applied, revision, _)| (applied, revision)).unwrap(), (8, 21));
    assert!(files(&data.join(BACKUP).join("wal")).values().eq(segments.values()));
    assert!(wal.exists() && !data.join("member/wal").exists());
}

#[test]
fn a_takeover_that_dies_at_any_step_begins_again() {
    let expected = {
        let temp = tempfile::tempdir().unwrap();
        start(&etcds(temp.path(), &state(5, 20), &[7], 3)).unwrap()
    };
    for steps in 0..5 {
        let temp = tempfile::tempdir().unwrap();
        let directories = etcds(temp.path(), &state(5, 20), &[7], 3);
        let before = files(&temp.path().join("member"));
        let recovered = Wal::inspect(&RealDisk, &directories.wal).unwrap();
        if steps > 0 {
            let converted = convert(&directories, &recovered, config()).unwrap();
            if steps > 1 {
                back_up(&directories).unwrap();
            }
            if steps == 2 {
                // Half a database, half a backup.
                File::options().write(true).open(&converted).unwrap().set_len(5000).unwrap();
                fs::rename(temp.path().join(BACKUP), temp.path().join(BACKUP_PART)).unwrap();
            }
            if steps == 4 {
                install::rename_durably(&converted, &directories.snap.join(install::DATABASE)).unwrap();
            }
        }
        let now = files(&temp.path().join("member"));
        assert!(before.iter().all(|(path, content)| now.get(path) == Some(content)), "after {steps} steps");
        assert_eq!(start(&directories).unwrap(), expected, "after {steps} steps");
        assert_eq!(install::names(&directories.snap).unwrap(), [install::DATABASE]);
        let mut beside = install::names(temp.path()).unwrap();
        beside.sort();
        assert_eq!(beside, ["lock", "member", BACKUP], "after {steps} steps");
        assert!(files(&temp.path().join(BACKUP)).values().eq(before.values()), "after {steps} steps");
    }
}

#[test]
fn what_cannot_be_served_is_refused_and_left_as_it_was() {
    let check = |directories: &Directories, text: &str| {
        let before = files(&directories.data);
        let refused = start(directories).expect_err(text).to_string();
        assert!(refused.contains(text), "{refused}");
        assert!(files(&directories.data) == before, "{text}");
    };
    let dir = |temp: &tempfile::TempDir, name: &str| temp.path().join(name);
    let temp = tempfile::tempdir().unwrap();
    let mut locked = state(5, 3);
    locked.buckets.insert(AUTH_ENABLED, Bytes::from_static(&[1]));
    check(&etcds(&dir(&temp, "auth"), &locked, &[7], 0), "authentication is enabled");
    let zombies = etcds(&dir(&temp, "zombies"), &state(5, 3), &[7, 8], 0);
    check(&zombies, "voters [7 8] and learners [], the database says voters [7] and learners []");
    // A database from before the snapshot that the log goes on from.
    let behind = etcds(&dir(&temp, "behind"), &state(5, 3), &[7], 0);
    write_etcd_database(&state(3, 2), &behind.snap.join("db")).unwrap();
    check(&behind, "the log goes on from a snapshot at entry 5, but");
    let damaged = etcds(&dir(&temp, "damaged"), &state(5, 300), &[7], 0);
    let database = damaged.snap.join("db");
    File::options().write(true).open(&database).unwrap().set_len(9000).unwrap();
    check(&damaged, "is damaged");
    let running = etcds(&dir(&temp, "running"), &state(5, 3), &[7], 0);
    let file = File::open(running.snap.join("db")).unwrap();
    let held = Flock::lock(file, FlockArg::LockExclusiveNonblock).unwrap_or_else(|(_, errno)| panic!("{errno}"));
    check(&running, "is open in another process: etcd still runs on it");
    drop(held);
    start(&running).unwrap();
}

#[test]
fn the_image_of_an_install_that_etcd_did_not_finish_is_taken() {
    let temp = tempfile::tempdir().unwrap();
    let directories = etcds(temp.path(), &state(9, 30), &[7], 1);
    let expected = {
        let temp = tempfile::tempdir().unwrap();
        start(&etcds(temp.path(), &state(9, 30), &[7], 1)).unwrap()
    };
    fs::rename(directories.snap.join("db"), directories.snap.join(install::incoming_name(9))).unwrap();
    write_etcd_database(&state(4, 3), &directories.snap.join("db")).unwrap();
    assert_eq!(start(&directories).unwrap(), expected);
    assert!(temp.path().join(BACKUP).join("snap").join(install::incoming_name(9)).exists());
}

#[test]
fn a_database_of_etcd_beside_ours_is_left_alone() {
    let temp = tempfile::tempdir().unwrap();
    let directories = etcds(temp.path(), &state(5, 20), &[7], 3);
    let expected = start(&directories).unwrap();
    let stray = directories.snap.join("db");
    write_etcd_database(&state(4, 3), &stray).unwrap();
    let content = fs::read(&stray).unwrap();
    assert_eq!(start(&directories).unwrap(), expected);
    assert!(fs::read(&stray).unwrap() == content);
}

/// Directories of real 3.6.14 and 3.7.1, stopped and killed. They have authentication on, which is switched off in a copy,
/// because this release does not serve such data.
#[test]
fn directories_of_real_etcd_keep_their_content() {
    let temp = tempfile::tempdir().unwrap();
    for version in ["etcd-3.6.14", "etcd-3.7.1"] {
        for name in ["m1-stopped", "m2-killed"] {
            let Some(tar) = fixture(temp.path(), version, &format!("{name}.tar.gz")) else { return };
            let to = temp.path().join(version);
            fs::create_dir_all(&to).unwrap();
            let unpacked = Command::new("tar").arg("xf").arg(&tar).arg("-C").arg(&to).status().unwrap();
            assert!(unpacked.success());
            let directories = Directories::new(&to.join(name), None);
            let refused = start(&directories).unwrap_err().to_string();
            assert!(refused.contains("authentication"), "{refused}");
            let database = directories.snap.join("db");
            let image = import(&database).unwrap();
            let (mut buckets, applied) = (image.buckets.clone(), image.applied.clone());
            buckets.insert(AUTH_ENABLED, Bytes::from_static(&[0]));
            let state = Frozen { records: Arc::new(image), buckets, applied };
            let open = directories.snap.join("open");
            write_etcd_database(&state, &open).unwrap();
            fs::rename(&open, &database).unwrap();
            let json = fixture(temp.path(), version, "expected.json").unwrap();
            let expected: serde_json::Value = serde_json::from_slice(&fs::read(json).unwrap()).unwrap();
            let (applied, revision, hash) = start(&directories).unwrap();
            assert_eq!(Some(revision), expected["revision"].as_i64(), "{version} {name}");
            assert!(applied >= expected["status"]["raftAppliedIndex"].as_u64().unwrap(), "{version} {name}");
            let hashes = expected["hashkv"].as_array().unwrap();
            let newest = hashes.iter().find(|hash| hash["hash_revision"].as_i64() == Some(revision)).unwrap();
            assert_eq!(Some(u64::from(hash)), newest["hash"].as_u64(), "{version} {name}");
        }
    }
}

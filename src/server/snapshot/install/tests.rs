//! Installs that go well, that are cut short anywhere, that cross each other; images that are not what they say.

use std::io::Seek;
use std::ops::ControlFlow;

use bytes::Bytes;

use super::*;
use crate::common::revision::Revision;
use crate::proto::raftpb::Snapshot;
use crate::server::checkpoint::Record;
use crate::server::checkpoint::tables::EVERYTHING_LAST;
use crate::server::snapshot::contents::Frozen;
use crate::server::snapshot::send::write_image;
use crate::server::snapshot::testing::Seed;
use crate::server::snapshot::testing::records;
use crate::server::snapshot::testing::state;

/// A member's snap directory with a database that has applied entry 10.
struct Member {
    dir: tempfile::TempDir,
    installer: Installer,
}

fn member() -> Member {
    let dir = tempfile::tempdir().unwrap();
    let mut database = RedbCheckpoint::open(&dir.path().join(DATABASE)).unwrap();
    database.write(&Batch { applied: Applied { index: 10, ..Default::default() }, ..Default::default() }).unwrap();
    let installer = installer(dir.path(), 10);
    Member { dir, installer }
}

fn installer(dir: &Path, applied_index: u64) -> Installer {
    Installer::new(dir, applied_index, SnapshotMetrics::register(&prometheus::Registry::new()))
}

impl Member {
    /// The image arrives: its message.
    fn receive(&self, state: &Frozen) -> Message {
        let mut image = write_image(state, self.dir.path(), Bytes::new()).unwrap();
        image.file.rewind().unwrap();
        let path = self.installer.incoming_path(state.applied.index);
        io::copy(&mut image.file, &mut File::create(path).unwrap()).unwrap();
        Message { snapshot: Some(image.snapshot), ..Default::default() }
    }

    fn prepare(&self, index: u64) {
        self.installer.prepare(&self.receive(&small(index))).unwrap();
    }

    /// Applied index of the live database.
    fn live(&self) -> u64 {
        applied_of(&self.dir.path().join(DATABASE)).unwrap().unwrap()
    }

    fn files(&self) -> Vec<String> {
        let mut names = names(self.dir.path()).unwrap();
        names.sort();
        names
    }
}

/// A state of a few records at an index.
fn small(index: u64) -> Frozen {
    let mut seed = Seed(index);
    let records = records(&mut seed, 20, 50);
    state(&mut seed, records, 10, index)
}

#[test]
fn an_installed_image_is_the_live_database() {
    let member = member();
    let mut seed = Seed(4);
    let records = records(&mut seed, 30, 1 << 20);
    let state = state(&mut seed, records.clone(), 50, 25);
    let message = member.receive(&state);
    member.installer.prepare(&message).unwrap();
    assert_eq!((member.live(), member.files().len()), (10, 2), "the image is gone, the live database is the old one");
    member.installer.finish(25).unwrap();
    assert_eq!(member.files(), [DATABASE]);

    let database = RedbCheckpoint::open(&member.dir.path().join(DATABASE)).unwrap();
    assert_eq!(database.buckets().unwrap(), (state.buckets, state.applied));
    let mut read: Vec<Record> = Vec::new();
    let visit = &mut |record| {
        read.push(record);
        ControlFlow::Continue(())
    };
    database.tables().unwrap().records(Revision::default(), EVERYTHING_LAST, visit).unwrap();
    assert!(read == records, "records");
}

#[test]
fn tables_of_the_old_database_stay_readable_after_an_install() {
    let member = member();
    let mut old = RedbCheckpoint::open(&member.dir.path().join(DATABASE)).unwrap();
    let records = records(&mut Seed(1), 500, 2000);
    let applied = Applied { index: 11, ..Default::default() };
    let tables = old.write(&Batch { records: records.clone(), applied, ..Default::default() }).unwrap();
    member.prepare(25);
    member.installer.finish(25).unwrap();
    let new = RedbCheckpoint::open(&member.dir.path().join(DATABASE)).unwrap();
    drop(old);
    for record in &records {
        assert_eq!(tables.record(record.revision).unwrap().as_ref(), Some(record));
    }
    assert_eq!(new.applied().unwrap().index, 25);
}

/// B9, etcd 10219 and 11888: the snapshot file was durable and the log said nothing of it, or the other way round, and
/// the member could not start any more: it was to commit entries that it had nowhere.
#[test]
fn b09_a_crash_between_any_two_steps_of_an_install_leaves_old_or_new() {
    let arrived = |member: &Member| drop(member.receive(&small(25)));
    let cut_off = |member: &Member| fs::write(member.installer.incoming_path(25), b"half an image").unwrap();
    let converting = |member: &Member| {
        arrived(member);
        let part = member.dir.path().join(part_name(25));
        fs::write(&part, b"half a database").unwrap();
        fs::write(part.with_extension("part.new"), b"half a database").unwrap();
    };
    let converted = |member: &Member| {
        member.prepare(25);
        arrived(member);
    };
    let finished = |member: &Member| {
        member.prepare(25);
        member.installer.finish(25).unwrap();
    };
    let image_being_built = |member: &Member| fs::write(member.dir.path().join("image-0"), b"x").unwrap();
    let both = |member: &Member| [25, 30].into_iter().for_each(|index| member.prepare(index));
    type Step<'a> = (&'a str, &'a dyn Fn(&Member), u64, u64);
    let steps: [Step<'_>; 12] = [
        ("nothing came", &|_| {}, 0, 10),
        ("nothing came, the log has a snapshot record of this database", &|_| {}, 10, 10),
        ("an image of our own was being built", &image_being_built, 10, 10),
        ("a part of the image came", &cut_off, 10, 10),
        ("the image came", &arrived, 10, 10),
        ("the image was being converted", &converting, 10, 10),
        ("prepared, the image not yet removed", &converted, 10, 10),
        ("prepared, not in the log", &|member| member.prepare(25), 10, 10),
        ("prepared, in the log", &|member| member.prepare(25), 25, 25),
        ("renamed", &finished, 25, 25),
        ("two prepared, the log has the first", &both, 25, 25),
        ("two prepared, the log has the second", &both, 30, 30),
    ];
    for (name, step, in_log, expected) in steps {
        let member = member();
        step(&member);
        // Twice: the recovery itself may be cut short behind its last step.
        for _ in 0..2 {
            recover(member.dir.path(), in_log).unwrap();
            assert_eq!(member.live(), expected, "{name}");
            assert_eq!(member.files(), [DATABASE], "{name}");
        }
    }
}

#[test]
fn a_log_that_goes_on_from_a_lost_snapshot_is_refused() {
    let member = member();
    member.prepare(20);
    let refusal = recover(member.dir.path(), 25).unwrap_err().to_string();
    assert!(refusal.contains("db.redb ends with entry 10") && refusal.contains("0000000000000019.redb"), "{refusal}");
    assert_eq!(member.files().len(), 2, "a refused start removes nothing");
    fs::remove_file(member.dir.path().join(DATABASE)).unwrap();
    assert!(recover(member.dir.path(), 25).unwrap_err().to_string().contains("is missing"));
    // A prepared file that says something else than its name is no way out.
    fs::rename(member.dir.path().join(prepared_name(20)), member.dir.path().join(prepared_name(25))).unwrap();
    assert!(recover(member.dir.path(), 25).is_err());
}

#[test]
fn a_prepared_database_older_than_the_live_one_is_removed_at_start() {
    let member = member();
    member.prepare(25);
    fs::copy(member.dir.path().join(prepared_name(25)), member.dir.path().join("copy")).unwrap();
    member.installer.finish(25).unwrap();
    fs::rename(member.dir.path().join("copy"), member.dir.path().join(prepared_name(20))).unwrap();
    recover(member.dir.path(), 20).unwrap();
    assert_eq!((member.live(), member.files().len()), (25, 1));
}

/// B10, etcd 18055 and 20133: a second snapshot that came while the first was being installed made the member panic; so
/// did an older one after a newer.
#[test]
fn b10_snapshots_may_cross() {
    // The next one comes while this one waits to be finished.
    let first = member();
    first.prepare(25);
    first.prepare(30);
    first.installer.finish(25).unwrap();
    assert_eq!(first.live(), 25);
    first.installer.finish(30).unwrap();
    assert_eq!((first.live(), first.files().len()), (30, 1));

    // An older one comes between preparing and finishing a newer one; raft ignores it.
    let second = member();
    second.prepare(30);
    second.prepare(25);
    second.installer.finish(30).unwrap();
    assert_eq!((second.live(), second.files().len()), (30, 1));
    second.prepare(25);
    second.prepare(30);
    second.installer.finish(30).unwrap();
    assert_eq!((second.live(), second.files().len()), (30, 1), "late repetitions change nothing");

    // The same one again before it is finished: the complete file is not touched.
    let third = member();
    third.prepare(25);
    let before = fs::metadata(third.dir.path().join(prepared_name(25))).unwrap().modified().unwrap();
    third.prepare(25);
    assert_eq!(fs::metadata(third.dir.path().join(prepared_name(25))).unwrap().modified().unwrap(), before);
    third.installer.finish(25).unwrap();

    // One that raft ignored goes when the member has applied beyond it, not before.
    let fourth = member();
    fourth.prepare(25);
    fourth.installer.incoming_path(40);
    assert_eq!(fourth.files().len(), 2);
    fourth.installer.applied(26);
    fourth.installer.incoming_path(40);
    assert_eq!(fourth.files(), [DATABASE]);
    assert!(fourth.installer.finish(40).is_err(), "what was never prepared cannot be finished");
}

#[test]
fn images_that_are_not_what_their_message_says_are_refused() {
    let with = |change: fn(&mut Snapshot)| {
        let member = member();
        let mut message = member.receive(&small(25));
        let snapshot = message.snapshot.as_mut().unwrap();
        let old = snapshot.metadata.as_ref().unwrap().index;
        change(snapshot);
        let index = snapshot.metadata.as_ref().map_or(old, |metadata| metadata.index);
        let (from, to) = (member.dir.path().join(incoming_name(old)), member.dir.path().join(incoming_name(index)));
        fs::rename(from, to).unwrap();
        let refusal = member.installer.prepare(&message).unwrap_err().to_string();
        let left = member.files().iter().filter(|name| index_in(name, PREPARED_SUFFIX).is_some()).count();
        assert_eq!((left, member.live()), (0, 10), "{refusal}");
        refusal
    };
    let behind = with(|snapshot| snapshot.metadata.as_mut().unwrap().index = 26);
    assert!(behind.contains("ends with entry 25, its message with entry 26"), "{behind}");
    let ahead = with(|snapshot| snapshot.metadata.as_mut().unwrap().index = 24);
    assert!(ahead.contains("ends with entry 25, its message with entry 24"), "{ahead}");
    with(|snapshot| snapshot.metadata.as_mut().unwrap().conf_state = None);
    with(|snapshot| snapshot.metadata = None);
}

#[test]
fn damaged_images_are_refused_and_a_good_one_is_taken_afterwards() {
    let member = member();
    let message = member.receive(&small(25));
    let path = member.installer.incoming_path(25);
    let good = fs::read(&path).unwrap();
    for damage in [0, 3 * 4096 + 8, 3 * 4096 + 40] {
        let mut bytes = good.clone();
        bytes[damage..damage + 8].fill(0xff);
        if damage == 0 {
            bytes.truncate(5000);
        }
        fs::write(&path, &bytes).unwrap();
        assert!(member.installer.prepare(&message).is_err(), "damage at {damage}");
        assert!(!member.dir.path().join(prepared_name(25)).exists());
    }
    fs::write(&path, &good).unwrap();
    member.installer.prepare(&message).unwrap();
    member.installer.finish(25).unwrap();
    assert_eq!(member.live(), 25);
}

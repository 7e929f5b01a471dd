//! What is saved is read back: across segments, overwrites, installs and releases, on both disks.

use std::io;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering;
use std::time::Duration;
use std::time::Instant;

use super::*;
use crate::disk::Disk;
use crate::disk::File;
use crate::disk::real::RealDisk;
use crate::server::raft::wal::Position;
use crate::server::raft::wal::WalMetrics;
use crate::server::raft::wal::segment_names;

#[test]
fn new_log_is_empty_and_begins_as_etcds_does() {
    let disk = SimDisk::new(1);
    assert!(!Wal::exists(&disk, dir()).unwrap());
    drop(create(&disk, SMALL));
    assert!(Wal::exists(&disk, dir()).unwrap());
    let (wal, recovered) = open(&disk, SMALL).unwrap();
    assert_eq!(recovered.metadata, METADATA);
    assert_eq!(recovered.hard_state, HardState::default());
    assert_eq!(recovered.snapshots, [Snapshot::default()]);
    assert_eq!((recovered.base, recovered.entries.len()), (Position::default(), 0));
    assert_eq!((wal.first_index(), wal.last_index()), (1, 0));
    let paths = segment_paths(&disk);
    assert_eq!(paths, [dir().join("0000000000000000-0000000000000000.wal")]);
    let content = disk.content(&paths[0]).unwrap();
    assert_eq!(content.len(), 2048, "preallocated");
    assert_eq!(content[..16], [4, 0, 0, 0, 0, 0, 0, 0x84, 8, 4, 0x10, 0, 0, 0, 0, 0]);
    assert!(Wal::create(Arc::new(disk), dir(), METADATA, SMALL).is_err(), "never over an existing log");
}

#[test]
fn saves_are_read_back_across_segments() {
    let disk = SimDisk::new(1);
    let mut wal = create(&disk, SMALL);
    for index in 1..=60 {
        wal.save(Some(&state(1, index - 1)), &[entry(index, 1, 100)], true).unwrap();
    }
    assert_eq!(wal.segment_count(), segment_paths(&disk).len());
    assert!(wal.segment_count() > 3);
    let mut closed = segment_paths(&disk);
    closed.pop();
    for path in closed {
        let content = disk.content(&path).unwrap();
        assert!(content.len() >= 2048 && content.len() < 2048 + 400, "{}", content.len());
    }
    let (mut wal, recovered) = open(&disk, SMALL).unwrap();
    assert_eq!(recovered.entries, entries(1..=60, 1));
    assert_eq!(recovered.hard_state, state(1, 59));
    // It goes on where it ended, with the CRC chained on.
    wal.save(Some(&state(1, 60)), &entries(61..=80, 1), true).unwrap();
    let (_, recovered) = open(&disk, SMALL).unwrap();
    assert_eq!(recovered.entries, entries(1..=80, 1));
    assert_eq!(recovered, Wal::inspect(&disk, dir()).unwrap());
}

#[test]
fn names_carry_the_next_index() {
    let disk = SimDisk::new(1);
    let mut wal = create(&disk, SMALL);
    wal.save(Some(&state(1, 0)), &entries(1..=30, 1), true).unwrap();
    let names: Vec<String> = segment_paths(&disk).iter().map(|path| path.display().to_string()).collect();
    assert_eq!(names[1], "/member/wal/0000000000000001-000000000000001f.wal");
}

#[test]
fn one_save_is_one_sync_and_a_commit_alone_is_none() {
    let disk = SimDisk::new(1);
    let mut wal = create(&disk, LARGE);
    let (syncs, operations) = (disk.syncs(), disk.operations());
    wal.save(Some(&state(1, 0)), &entries(1..=50, 1), true).unwrap();
    assert_eq!((disk.syncs() - syncs, disk.operations() - operations), (1, 2));
    wal.save(Some(&state(1, 50)), &[], false).unwrap();
    assert_eq!((disk.syncs() - syncs, disk.operations() - operations), (1, 3));
    wal.save(Some(&state(2, 50)), &[], true).unwrap();
    assert_eq!(disk.syncs() - syncs, 2);
    wal.save(None, &[], false).unwrap();
    assert_eq!(disk.operations() - operations, 5, "nothing to write");
    wal.save(None, &[entry(51, 2, 1)], false).unwrap();
    assert_eq!(disk.syncs() - syncs, 3, "entries are always synced");
}

#[test]
fn overwritten_entries_are_gone() {
    let disk = SimDisk::new(1);
    let mut wal = create(&disk, SMALL);
    wal.save(Some(&state(1, 5)), &entries(1..=40, 1), true).unwrap();
    wal.save(Some(&state(2, 5)), &entries(6..=8, 2), true).unwrap();
    assert_eq!((wal.last_index(), wal.term_at(6), wal.term_at(9)), (8, Some(2), None));
    let (wal, recovered) = open(&disk, SMALL).unwrap();
    assert_eq!(recovered.entries, [entries(1..=5, 1), entries(6..=8, 2)].concat());
    assert_eq!((wal.last_index(), wal.term_at(5), wal.term_at(6)), (8, Some(1), Some(2)));
}

#[test]
fn installed_snapshot_becomes_the_base() {
    let disk = SimDisk::new(1);
    let mut wal = create(&disk, SMALL);
    wal.save(Some(&state(1, 3)), &entries(1..=5, 1), true).unwrap();
    wal.save_snapshot(&snapshot(90, 4)).unwrap();
    assert_eq!(wal.last_index(), 5, "not before it is committed");
    wal.save(Some(&state(4, 91)), &entries(91..=95, 4), true).unwrap();
    assert_eq!((wal.first_index(), wal.last_index()), (91, 95));
    let (wal, recovered) = open(&disk, SMALL).unwrap();
    assert_eq!(recovered.base, Position { index: 90, term: 4 });
    assert_eq!(recovered.entries, entries(91..=95, 4));
    assert_eq!(recovered.snapshots, [Snapshot::default(), snapshot(90, 4)]);
    assert_eq!((wal.first_index(), wal.last_index()), (91, 95));
}

#[test]
fn checkpoint_raises_the_commit_index_to_what_was_applied() {
    let disk = SimDisk::new(1);
    let mut wal = create(&disk, SMALL);
    wal.save(Some(&state(1, 2)), &entries(1..=5, 1), true).unwrap();
    wal.save_snapshot(&snapshot(4, 1)).unwrap();
    assert_eq!(wal.hard_state(), state(1, 4));
    let (_, recovered) = open(&disk, SMALL).unwrap();
    assert_eq!(recovered.hard_state, state(1, 4));
    assert_eq!(recovered.snapshots, [Snapshot::default(), snapshot(4, 1)]);
    assert_eq!(recovered.entries, entries(1..=5, 1));
}

#[test]
fn release_keeps_the_entries_behind_its_index() {
    for released in 0..=61 {
        let disk = SimDisk::new(1);
        let mut wal = create(&disk, SMALL);
        for index in 1..=60 {
            wal.save(Some(&state(1, index)), &[entry(index, 1, 100)], true).unwrap();
        }
        wal.save_snapshot(&snapshot(60, 1)).unwrap();
        let segments = wal.segment_count();
        wal.release_to(released).unwrap();
        assert!(wal.first_index() <= released + 1, "{} after {released}", wal.first_index());
        assert!(wal.term_at(released.min(60)).is_some());
        assert_eq!(wal.segment_count() < segments, released > 13, "{released}");
        let (reopened, recovered) = open(&disk, SMALL).unwrap();
        assert_eq!(recovered.base.index + 1, wal.first_index(), "{released}");
        assert_eq!(recovered.entries, entries(wal.first_index()..=60, 1));
        assert_eq!(recovered.hard_state, state(1, 60));
        assert_eq!((reopened.first_index(), reopened.last_index()), (wal.first_index(), 60));
        assert_eq!(reopened.segment_count(), wal.segment_count());
    }
}

#[test]
fn install_survives_the_release_of_what_it_replaced() {
    let disk = SimDisk::new(1);
    let mut wal = create(&disk, SMALL);
    wal.save(Some(&state(1, 30)), &entries(1..=30, 1), true).unwrap();
    wal.save_snapshot(&snapshot(100, 2)).unwrap();
    wal.save(Some(&state(2, 100)), &[], true).unwrap();
    wal.release_to(100).unwrap();
    assert_eq!(wal.segment_count(), 1);
    let (mut wal, recovered) = open(&disk, SMALL).unwrap();
    assert_eq!((recovered.base, recovered.entries.len()), (Position { index: 100, term: 2 }, 0));
    wal.save(None, &entries(101..=130, 2), true).unwrap();
    wal.save(Some(&state(2, 130)), &entries(131..=131, 2), true).unwrap();
    wal.release_to(131).unwrap();
    let (_, recovered) = open(&disk, SMALL).unwrap();
    assert_eq!((recovered.base.index, recovered.entries.len()), (131, 0), "the oldest entry left is the base");
}

/// B17, etcd 2819, in the log: the disk is full in the middle of an append. Nothing is acknowledged any more, nothing
/// more is written, and with space again the log is read as far as it was acknowledged and goes on.
#[test]
fn b17_first_error_stops_the_log_for_good() {
    const EIO: i32 = 5;
    const ENOSPC: i32 = 28;
    for errno in [EIO, ENOSPC] {
        for n in 1..=2 {
            let disk = SimDisk::new(1);
            let mut wal = create(&disk, LARGE);
            wal.save(Some(&state(1, 0)), &entries(1..=3, 1), true).unwrap();
            disk.fail_at(n, errno);
            let first = wal.save(None, &entries(4..=6, 1), true).unwrap_err().to_string();
            let what = ["cannot write", "cannot fdatasync"][n as usize - 1];
            assert!(first.starts_with(what) && first.contains("0000000000000000-0000000000000000.wal"), "{first}");
            let operations = disk.operations();
            assert_eq!(wal.save(None, &entries(4..=6, 1), true).unwrap_err().to_string(), first);
            assert_eq!(wal.save_snapshot(&snapshot(2, 1)).unwrap_err().to_string(), first);
            assert_eq!(wal.release_to(2).unwrap_err().to_string(), first);
            assert_eq!(disk.operations(), operations, "the disk is left alone");
            // After space returns the member starts clean, with all that was acknowledged.
            let (mut wal, recovered) = open(&disk, LARGE).unwrap();
            assert_eq!(recovered.entries[..3], entries(1..=3, 1));
            let next = recovered.last_index() + 1;
            wal.save(None, &entries(next..=next + 5, 1), true).unwrap();
            assert_eq!(open(&disk, LARGE).unwrap().1.last_index(), next + 5);
        }
    }
}

/// B20, raft-engine's change log: a rewrite of the log that was broken off lost entries, or brought back a batch that
/// had never been durable. Ours rewrites nothing; a cut to a new segment and the release of old ones are what can be
/// broken off.
#[test]
fn b20_error_in_any_step_of_a_cut_or_release_stops_the_log_and_loses_nothing() {
    // Saves that fill several segments, then the release of most of them, with one operation after the other failing.
    for n in 1.. {
        let disk = SimDisk::new(1);
        let mut wal = create(&disk, SMALL);
        let before = disk.operations();
        disk.fail_at(n, 5);
        let mut acknowledged = 0;
        let run = |wal: &mut Wal, acknowledged: &mut u64| {
            for index in 1..=30 {
                wal.save(Some(&state(1, index)), &[entry(index, 1, 300)], true)?;
                *acknowledged = index;
            }
            assert!(wal.segment_count() > 3);
            wal.release_to(20)
        };
        let result = run(&mut wal, &mut acknowledged);
        if disk.operations() - before < n {
            assert!(n > 60 && wal.first_index() > 10, "{n} operations, released to {}", wal.first_index());
            break;
        }
        assert!(result.is_err(), "operation {n} failed, and nobody was told");
        wal.save(None, &[], true).unwrap_err();
        let (wal, recovered) = open(&disk, SMALL).unwrap();
        assert!(wal.first_index() <= 21, "{n}: {} is the first", wal.first_index());
        assert!(
            (acknowledged..=acknowledged + 1).contains(&recovered.last_index()),
            "{n}: {acknowledged} acknowledged"
        );
        let kept = wal.first_index()..=recovered.last_index();
        assert!(recovered.entries.iter().map(|entry| entry.index).eq(kept), "{n}: a phantom or a gap");
    }
}

#[test]
fn real_disk_keeps_logs_too_with_segments_made_ahead() {
    let temp = tempfile::tempdir().unwrap();
    let dir = temp.path().join("member").join("wal");
    let options = WalOptions { segment_bytes: 64 << 10, ..WalOptions::default() };
    let disk = || -> Arc<dyn Disk> { Arc::new(RealDisk) };
    let mut wal = Wal::create(disk(), &dir, METADATA, options).unwrap();
    let written: Vec<Entry> = (1..=300).map(|index| entry(index, 1, 1000)).collect();
    for batch in written.chunks(7) {
        wal.save(Some(&state(1, 0)), batch, true).unwrap();
    }
    assert!(wal.segment_count() >= 4);
    drop(wal);
    assert!(!dir.join("0.tmp").exists() && !dir.join("1.tmp").exists(), "a clean stop leaves no spare");
    std::fs::write(dir.join("0.tmp"), b"left by a killed process").unwrap();
    let (mut wal, recovered) = Wal::open(disk(), &dir, options).unwrap();
    assert_eq!(recovered.entries, written);
    assert!(!dir.join("0.tmp").exists());
    wal.save(Some(&state(1, 300)), &[], false).unwrap();
    wal.release_to(200).unwrap();
    drop(wal);
    let (_, recovered) = Wal::open(disk(), &dir, options).unwrap();
    assert!(recovered.base.index > 0 && recovered.base.index <= 200);
    assert_eq!(recovered.last_index(), 300);
    assert_eq!(recovered.hard_state, state(1, 300));
}

/// The real disk, on a file system whose kind does not matter.
#[derive(Clone, Copy)]
struct InPlace(bool);

struct InPlaceFile(Box<dyn File>, bool);

impl Disk for InPlace {
    fn create(&self, path: &Path) -> io::Result<Box<dyn File>> {
        Ok(Box::new(InPlaceFile(RealDisk.create(path)?, self.0)))
    }
    fn open(&self, path: &Path) -> io::Result<Box<dyn File>> {
        Ok(Box::new(InPlaceFile(RealDisk.open(path)?, self.0)))
    }
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        RealDisk.rename(from, to)
    }
    fn remove(&self, path: &Path) -> io::Result<()> {
        RealDisk.remove(path)
    }
    fn create_dir_all(&self, path: &Path) -> io::Result<()> {
        RealDisk.create_dir_all(path)
    }
    fn sync_dir(&self, path: &Path) -> io::Result<()> {
        RealDisk.sync_dir(path)
    }
    fn list(&self, path: &Path) -> io::Result<Vec<String>> {
        RealDisk.list(path)
    }
    fn exists(&self, path: &Path) -> io::Result<bool> {
        RealDisk.exists(path)
    }
}

impl File for InPlaceFile {
    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<usize> {
        self.0.read_at(offset, buffer)
    }
    fn write_at(&mut self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        self.0.write_at(offset, bytes)
    }
    fn set_len(&mut self, len: u64) -> io::Result<()> {
        self.0.set_len(len)
    }
    fn allocate(&mut self, len: u64) -> io::Result<()> {
        self.0.allocate(len)
    }
    fn len(&self) -> io::Result<u64> {
        self.0.len()
    }
    fn sync_data(&mut self) -> io::Result<()> {
        self.0.sync_data()
    }
    fn overwrites_in_place(&self) -> bool {
        self.1
    }
}

/// Saves entries until one cuts the segment, or so many. Gives the last index.
fn save_until_cut(wal: &mut Wal, entry_bytes: usize, saves_max: u64) -> u64 {
    let (first, segments) = (wal.last_index() + 1, wal.segment_count());
    for index in first..first + saves_max {
        wal.save(Some(&state(1, 0)), &[entry(index, 1, entry_bytes)], true).unwrap();
        if wal.segment_count() > segments {
            return index;
        }
    }
    first + saves_max - 1
}

#[test]
fn a_log_that_grows_goes_on_in_a_segment_that_was_written_before() {
    let temp = tempfile::tempdir().unwrap();
    let dir = temp.path().join("member").join("wal");
    let options = WalOptions { segment_bytes: 8 << 20, ..WalOptions::default() };
    let mut wal = Wal::create(Arc::new(InPlace(true)), &dir, METADATA, options).unwrap();
    // 4 MiB begin it; the file is made while small ones are written, long before they are 8 MiB.
    let mut last = save_until_cut(&mut wal, 64 << 10, 66);
    let end = Instant::now() + Duration::from_secs(60);
    while wal.segment_count() == 1 {
        assert!(Instant::now() < end, "no segment was made ahead");
        std::thread::sleep(Duration::from_millis(1));
        last = save_until_cut(&mut wal, 10, 1);
    }
    let paths: Vec<PathBuf> =
        segment_names(&RealDisk, &dir).unwrap().iter().map(|name| dir.join(name.to_string())).collect();
    let lengths: Vec<u64> = paths.iter().map(|path| std::fs::metadata(path).unwrap().len()).collect();
    assert!(lengths[0] < 8 << 20, "the first segment was cut where it was");
    assert_eq!(lengths[1], 8 << 20);
    // Nothing is gained by another one: this segment is filled to its end.
    let first_of_second = last + 1;
    save_until_cut(&mut wal, 64 << 10, 100);
    assert_eq!(wal.segment_count(), 2);
    assert!(wal.only_appends(64 << 10));
    last = wal.last_index();
    drop(wal);
    let (wal, recovered) = Wal::open(Arc::new(InPlace(true)), &dir, options).unwrap();
    assert_eq!((recovered.entries.len() as u64, recovered.last_index()), (last, last));
    assert!(recovered.entries.iter().zip(1..).all(|(entry, index)| entry.index == index));
    assert!(first_of_second < last && wal.segment_count() == 2);
}

#[test]
fn nothing_is_written_ahead_where_it_gains_nothing() {
    for (disk, fsync) in [(InPlace(false), true), (InPlace(true), false)] {
        let temp = tempfile::tempdir().unwrap();
        let dir = temp.path().join("member").join("wal");
        let options = WalOptions { segment_bytes: 8 << 20, fsync, ..WalOptions::default() };
        let mut wal = Wal::create(Arc::new(disk), &dir, METADATA, options).unwrap();
        save_until_cut(&mut wal, 64 << 10, 50);
        assert!(wal.segment_count() == 1 && !dir.join("1.tmp").exists(), "fsync {fsync}");
        assert!(wal.only_appends(64 << 10) && !wal.only_appends(4 << 20));
    }
}

#[test]
fn a_segment_that_is_needed_before_it_is_written_is_taken_as_it_is() {
    let temp = tempfile::tempdir().unwrap();
    let dir = temp.path().join("member").join("wal");
    let options = WalOptions { segment_bytes: 2 << 20, ..WalOptions::default() };
    let mut wal = Wal::create(Arc::new(InPlace(true)), &dir, METADATA, options).unwrap();
    // Each save takes a whole segment: there is no time for the next one.
    for index in 1..=8 {
        wal.save(Some(&state(1, 0)), &[entry(index, 1, 3 << 20)], true).unwrap();
    }
    assert_eq!(wal.segment_count(), 9);
    drop(wal);
    let (_, recovered) = Wal::open(Arc::new(InPlace(true)), &dir, options).unwrap();
    assert_eq!((recovered.entries.len(), recovered.last_index()), (8, 8));
    assert!(recovered.entries.iter().all(|entry| entry.data.len() == 3 << 20));
}

#[test]
fn metrics_count_writes_and_syncs() {
    let registry = prometheus::Registry::new();
    let metrics = WalMetrics::register(&registry);
    let disk = SimDisk::new(1);
    let mut wal = create(&disk, LARGE);
    let ticks = AtomicU64::new(0);
    wal.measure(metrics.clone(), Box::new(move || Duration::from_millis(ticks.fetch_add(1, Ordering::Relaxed))));
    wal.save(Some(&state(1, 0)), &entries(1..=3, 1), true).unwrap();
    wal.save(Some(&state(1, 3)), &[], false).unwrap();
    assert_eq!(metrics.fsync_seconds.get_sample_count(), 1);
    assert_eq!(metrics.write_seconds.get_sample_count(), 2);
    assert!((metrics.write_seconds.get_sample_sum() - 0.002).abs() < 1e-9);
    assert_eq!(metrics.write_bytes.get() % 8, 0);
    assert!(metrics.write_bytes.get() > 400);
}

#[test]
fn without_fsync_nothing_is_synced() {
    let disk = SimDisk::new(1);
    let mut wal = create(&disk, WalOptions { fsync: false, ..SMALL });
    wal.save(Some(&state(1, 0)), &entries(1..=40, 1), true).unwrap();
    wal.save_snapshot(&snapshot(0, 0)).unwrap();
    assert_eq!(disk.syncs(), 0);
}

#[test]
fn missing_log_and_missing_segment_are_refused() {
    let disk = SimDisk::new(1);
    assert_eq!(open(&disk, SMALL).err().unwrap().to_string(), "cannot list /member/wal: entity not found");
    let mut wal = create(&disk, SMALL);
    for index in 1..=60 {
        wal.save(Some(&state(1, index)), &[entry(index, 1, 100)], true).unwrap();
    }
    let paths = segment_paths(&disk);
    disk.remove(&paths[1]).unwrap();
    let text = open(&disk, SMALL).err().unwrap().to_string();
    assert!(text.contains("a segment is missing between"), "{text}");
    for path in &paths[2..] {
        disk.remove(path).unwrap();
    }
    disk.remove(&paths[0]).unwrap();
    assert_eq!(open(&disk, SMALL).err().unwrap().to_string(), "no log in /member/wal");
}

#[test]
fn entry_beyond_the_limit_is_refused_and_nothing_is_written() {
    let disk = SimDisk::new(1);
    let mut wal = create(&disk, LARGE);
    let operations = disk.operations();
    let data = Bytes::from(vec![0; super::super::RECORD_BYTES_MAX]);
    let error = wal.save(None, &[Entry { r#type: 0, term: 1, index: 1, data }], true).unwrap_err();
    assert!(error.to_string().contains("too large"), "{error}");
    assert_eq!(disk.operations(), operations);
    wal.save(Some(&state(1, 0)), &entries(1..=1, 1), true).unwrap();
}

//! A member's directory while somebody makes it: complete under its name, or not there at all.
//!
//! ```text
//! <data-dir>/member.part/{snap,wal}    everything is written here and synced
//! <data-dir>/member                    the rename that makes it a member's
//! ```
//! A log that is to lie elsewhere is made as `<wal-dir>.part` and renamed before the rest: a directory without a log would
//! be a new member's. What a maker that died left behind is removed by the next one.

use std::fs;
use std::fs::File;
use std::fs::OpenOptions;
use std::io;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::path::PathBuf;
use std::sync::Arc;

use bytes::Bytes;
use prost::Message;

use crate::common::failure::Failure;
use crate::disk::create_dir_durably;
use crate::disk::parent_of;
use crate::disk::real::RealDisk;
use crate::proto::raftpb::Entry;
use crate::proto::raftpb::HardState;
use crate::proto::raftpb::Snapshot;
use crate::proto::snappb;
use crate::proto::walpb;
use crate::server::checkpoint::store::sync_parent;
use crate::server::raft::wal::Wal;
use crate::server::raft::wal::WalOptions;
use crate::server::snapshot::boltfile::writer::BoltWriter;
use crate::server::snapshot::contents::Frozen;
use crate::server::snapshot::install;
use crate::server::snapshot::install::write_database;
use crate::server::snapshot::send::raft_snapshot;

/// A member's files below its data directory.
pub const MEMBER: &str = "member";

/// What is not finished yet.
const PART: &str = "member.part";

/// Ends the name of a log directory that is not finished yet.
const PART_SUFFIX: &str = ".part";

/// etcd's database below `member/snap`.
pub const ETCD_DATABASE: &str = "db";

/// Whose files a member's directory holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Layout {
    /// Our database.
    Quorate,
    /// etcd's database file and its `.snap` file. The log is the same.
    Etcd,
}

/// The log that goes with a state: it ends the state with a snapshot record.
#[derive(Debug)]
pub struct Log {
    pub metadata: walpb::Metadata,
    pub hard_state: HardState,
    /// The state's index, term and configuration.
    pub snapshot: walpb::Snapshot,
    /// From the first one on and up to the snapshot: those of a new cluster. Or all that lie behind the snapshot.
    pub entries: Vec<Entry>,
}

/// A directory being made. Dropped before `finish`, it takes everything with it.
pub struct Draft {
    data: PathBuf,
    wal: Option<PathBuf>,
    /// Directories that were not there before, outermost last.
    created: Vec<PathBuf>,
    finished: bool,
}

impl Draft {
    /// Begins in `data`, which is created if it is missing; the log goes to `wal` if that is given.
    pub fn begin(data: &Path, wal: Option<&Path>) -> Result<Draft, Failure> {
        let mut draft =
            Draft { data: data.to_owned(), wal: wal.map(Path::to_owned), created: Vec::new(), finished: false };
        let missing: Vec<&Path> =
            data.ancestors().take_while(|path| !path.as_os_str().is_empty() && !path.exists()).collect();
        draft.created = missing.into_iter().map(Path::to_owned).collect();
        for part in draft.parts() {
            remove_dir_if_there(&part)?;
        }
        create_dir(data)?;
        create_dir(&draft.snap())?;
        Ok(draft)
    }

    /// Whether `data` holds nothing but what an unfinished draft left there.
    pub fn is_free(data: &Path) -> io::Result<bool> {
        let mut entries = match fs::read_dir(data) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(true),
            Err(error) => return Err(error),
        };
        entries.try_fold(true, |free, entry| Ok(free && entry?.file_name() == PART))
    }

    /// Where the database is written.
    fn snap(&self) -> PathBuf {
        self.data.join(PART).join("snap")
    }

    fn log_part(&self) -> PathBuf {
        match &self.wal {
            Some(wal) => with_suffix(wal, PART_SUFFIX),
            None => self.data.join(PART).join("wal"),
        }
    }

    fn parts(&self) -> Vec<PathBuf> {
        vec![self.data.join(PART), self.log_part()]
    }

    /// Writes the state. `v2_store` is what members of 3.4 to 3.6 want in their `.snap` file.
    pub fn write_state(&self, layout: Layout, state: &Frozen, v2_store: Bytes) -> Result<(), Failure> {
        let snap = self.snap();
        match layout {
            Layout::Quorate => {
                let path = snap.join(install::DATABASE);
                write_database(&*state.records, &state.buckets, state.applied.clone(), &path)?;
                install::sync_file(&path)
            }
            Layout::Etcd => {
                write_etcd_database(state, &snap.join(ETCD_DATABASE))?;
                write_snap_file(&snap, &raft_snapshot(&state.applied, v2_store))
            }
        }
    }

    /// Writes the log.
    pub fn write_log(&self, log: &Log) -> Result<(), Failure> {
        let Log { metadata, hard_state, snapshot, entries } = log;
        let options = WalOptions { allocate_ahead: false, ..WalOptions::default() };
        let (disk, dir) = (Arc::new(RealDisk), self.log_part());
        let is_whole = entries.last().is_some_and(|last| last.index == snapshot.index);
        if is_whole {
            let mut wal = Wal::found(disk, &dir, *metadata, options, hard_state, entries)?;
            return wal.save_snapshot(snapshot);
        }
        let mut wal = Wal::create(disk, &dir, *metadata, options)?;
        wal.save_snapshot(snapshot)?;
        wal.save(Some(hard_state), entries, true)
    }

    /// Makes the directory a member's, durably.
    pub fn finish(mut self) -> Result<(), Failure> {
        sync_dir(&self.snap())?;
        sync_dir(&self.data.join(PART))?;
        if let Some(wal) = &self.wal {
            install::rename_durably(&self.log_part(), wal)?;
        }
        install::rename_durably(&self.data.join(PART), &self.data.join(MEMBER))?;
        sync_parent(&self.data)?;
        self.finished = true;
        Ok(())
    }
}

impl Drop for Draft {
    fn drop(&mut self) {
        if self.finished {
            return;
        }
        // The error that ended the draft is the one to tell; what stays is removed by the next draft.
        for part in self.parts() {
            let _ = fs::remove_dir_all(part);
        }
        for created in &self.created {
            let _ = fs::remove_dir(created);
        }
    }
}

/// Writes etcd's database file, mode 0600, synced.
pub fn write_etcd_database(state: &Frozen, path: &Path) -> Result<(), Failure> {
    let file = private_file(path)?;
    let mut writer = BoltWriter::create(file, path)?;
    state.write_to(&mut writer, &mut |_| Ok(()))?;
    let (file, _) = writer.finish()?;
    file.sync_all().map_err(Failure::io("cannot fsync", path))
}

/// etcd's `<term>-<index>.snap` (server.md 14.5).
fn write_snap_file(dir: &Path, snapshot: &Snapshot) -> Result<(), Failure> {
    let metadata = snapshot.metadata.as_ref().expect("a snapshot of ours says where it ends");
    let path = dir.join(format!("{:016x}-{:016x}.snap", metadata.term, metadata.index));
    let data = snapshot.encode_to_vec();
    let content = snappb::Snapshot { crc: crc32c::crc32c(&data), data: data.into() }.encode_to_vec();
    let mut file = private_file(&path)?;
    file.write_all(&content).map_err(Failure::io("cannot write", &path))?;
    file.sync_all().map_err(Failure::io("cannot fsync", &path))
}

fn private_file(path: &Path) -> Result<File, Failure> {
    let mut options = OpenOptions::new();
    let options = options.read(true).write(true).create(true).truncate(true).mode(0o600);
    options.open(path).map_err(Failure::io("cannot create", path))
}

fn create_dir(path: &Path) -> Result<(), Failure> {
    create_dir_durably(&RealDisk, path).map_err(Failure::io("cannot create directory", path))
}

fn sync_dir(path: &Path) -> Result<(), Failure> {
    let dir = File::open(path).map_err(Failure::io("cannot open directory", path))?;
    dir.sync_all().map_err(Failure::io("cannot fsync directory", path))
}

/// Removes a directory with all that is in it; it may be missing.
pub fn remove_dir_if_there(path: &Path) -> Result<(), Failure> {
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(Failure::io("cannot remove", path)(error)),
        _ => Ok(()),
    }
}

fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    // `a/b/` and `a/b` are the same place, and the suffix belongs to its name.
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(suffix);
    parent_of(path).join(name)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::server::checkpoint::Applied;
    use crate::server::checkpoint::Buckets;
    use crate::server::checkpoint::memory::MemoryTables;

    fn log(index: u64, entries: &[u64]) -> Log {
        let entry = |index: &u64| Entry { index: *index, term: 2, ..Entry::default() };
        Log {
            metadata: walpb::Metadata { node_id: 7, cluster_id: 9 },
            hard_state: HardState { term: 3, vote: 5, commit: index },
            snapshot: walpb::Snapshot { index, term: 2, conf_state: Some(Default::default()) },
            entries: entries.iter().map(entry).collect(),
        }
    }

    fn state(index: u64) -> Frozen {
        let applied = Applied { index, term: 2, ..Applied::default() };
        Frozen { records: Arc::new(MemoryTables::of([])), buckets: Buckets::new(), applied }
    }

    #[test]
    fn nothing_stays_of_a_draft_that_was_given_up() {
        let temp = tempfile::tempdir().unwrap();
        let (data, wal) = (temp.path().join("a/b"), temp.path().join("wal"));
        let draft = Draft::begin(&data, Some(&wal)).unwrap();
        draft.write_state(Layout::Etcd, &state(3), Bytes::new()).unwrap();
        draft.write_log(&log(3, &[])).unwrap();
        drop(draft);
        assert_eq!(fs::read_dir(temp.path()).unwrap().count(), 0);
    }

    #[test]
    fn a_dead_makers_leavings_are_no_obstacle() {
        let temp = tempfile::tempdir().unwrap();
        std::mem::forget(Draft::begin(temp.path(), None).unwrap());
        fs::write(temp.path().join(PART).join("snap").join("old"), "x").unwrap();
        assert!(Draft::is_free(temp.path()).unwrap());
        let draft = Draft::begin(temp.path(), None).unwrap();
        draft.write_state(Layout::Quorate, &state(3), Bytes::new()).unwrap();
        draft.write_log(&log(3, &[4, 5])).unwrap();
        draft.finish().unwrap();
        assert!(!Draft::is_free(temp.path()).unwrap());
        let files = fs::read_dir(temp.path().join("member/snap")).unwrap();
        let files: Vec<_> = files.map(|file| file.unwrap().file_name()).collect();
        assert_eq!(files, [install::DATABASE]);
    }

    #[test]
    fn a_log_begins_behind_its_state_with_everything_that_raft_promised() {
        let temp = tempfile::tempdir().unwrap();
        for (data, entries) in [("behind", &[4_u64, 5][..]), ("none behind", &[]), ("whole", &[1, 2, 3])] {
            let data = temp.path().join(data);
            let draft = Draft::begin(&data, None).unwrap();
            draft.write_state(Layout::Quorate, &state(3), Bytes::new()).unwrap();
            draft.write_log(&log(3, entries)).unwrap();
            draft.finish().unwrap();
            let read = Wal::inspect(&RealDisk, &data.join("member/wal")).unwrap();
            assert_eq!(read.hard_state, HardState { term: 3, vote: 5, commit: 3 });
            assert_eq!(read.metadata, walpb::Metadata { node_id: 7, cluster_id: 9 });
            assert_eq!(read.entries.iter().map(|entry| entry.index).collect::<Vec<_>>(), entries);
            assert_eq!(read.snapshots.iter().map(|snapshot| snapshot.index).collect::<Vec<_>>(), [0, 3]);
        }
    }
}

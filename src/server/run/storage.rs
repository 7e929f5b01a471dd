//! What a member finds on its disk, or makes there: directories, lock, log, checkpoint, and the state they give.
//!
//! The order matters: the lock first; then the log, which says who we are; then the checkpoint, which an interrupted
//! snapshot install may still have to be put in place of; then every committed entry that the checkpoint lacks.

use std::path::Path;
use std::path::PathBuf;
use std::sync::Arc;

use crate::common::failure::Failure;
use crate::common::ids::ClusterId;
use crate::common::ids::MemberId;
use crate::disk::create_dir_durably;
use crate::disk::lock::DirLock;
use crate::disk::real::RealDisk;
use crate::proto::raftpb::HardState;
use crate::proto::walpb;
use crate::server::apply::machine::Machine;
use crate::server::apply::machine::MachineConfig;
use crate::server::bootstrap::Identity;
use crate::server::checkpoint::Checkpoint;
use crate::server::checkpoint::store::RedbCheckpoint;
use crate::server::raft::bootstrap::bootstrap_entries;
use crate::server::raft::config::Start;
use crate::server::raft::wal::Recovered;
use crate::server::raft::wal::Wal;
use crate::server::raft::wal::WalOptions;
use crate::server::snapshot::install;

/// Where a member keeps its files.
#[derive(Clone, Debug)]
pub struct Directories {
    pub data: PathBuf,
    pub wal: PathBuf,
    pub snap: PathBuf,
}

impl Directories {
    /// etcd's layout: `member/wal` and `member/snap` below the data directory, or the log elsewhere.
    pub fn new(data: &Path, wal: Option<&Path>) -> Directories {
        let member = data.join("member");
        let wal = wal.map_or_else(|| member.join("wal"), Path::to_owned);
        Directories { data: data.to_owned(), wal, snap: member.join("snap") }
    }
}

/// A locked data directory.
pub struct Storage {
    pub directories: Directories,
    disk: Arc<RealDisk>,
    options: WalOptions,
    /// Held until the process ends.
    _lock: DirLock,
}

/// A member's state as its disk gives it, ready to go on.
pub struct Restored {
    pub local: MemberId,
    pub cluster: ClusterId,
    pub wal: Wal,
    pub start: Start,
    pub machine: Machine,
    pub checkpoint: RedbCheckpoint,
}

impl Storage {
    /// Creates what is missing and takes the lock.
    pub fn open(directories: Directories, options: WalOptions) -> Result<Storage, Failure> {
        create_private(&directories.data)?;
        let lock = DirLock::acquire(&directories.data).map_err(|error| Failure::Refused(error.to_string()))?;
        create_private(&directories.snap)?;
        if directories.data.join("proxy").is_dir() {
            let text = format!("{} holds a directory \"proxy\": it is no member's", directories.data.display());
            return Err(Failure::Refused(text));
        }
        Ok(Storage { directories, disk: Arc::new(RealDisk), options, _lock: lock })
    }

    /// The live database.
    pub fn database(&self) -> PathBuf {
        self.directories.snap.join(install::DATABASE)
    }

    /// Whether the member of these directories has started before.
    pub fn has_log_in(directories: &Directories) -> Result<bool, Failure> {
        Wal::exists(&RealDisk, &directories.wal)
    }

    /// Writes the log of a member that starts for the first time: founders begin with one entry for each of them, a member
    /// that joins begins with nothing.
    pub fn create_log(&self, identity: &Identity, founder: bool) -> Result<(), Failure> {
        let metadata = walpb::Metadata { node_id: identity.local.0, cluster_id: identity.cluster.0 };
        let (disk, dir) = (self.disk.clone(), &self.directories.wal);
        if !founder {
            return Wal::create(disk, dir, metadata, self.options).map(drop);
        }
        let members = identity.members.iter();
        let members: Vec<_> =
            members.map(|member| (member.id, member.name.clone(), member.peer_urls.clone())).collect();
        let (entries, hard_state, _) = bootstrap_entries(&members);
        Wal::found(disk, dir, metadata, self.options, &hard_state, &entries).map(drop)
    }

    /// Reads the log and the checkpoint, and applies what is committed and not in the checkpoint.
    pub fn restore(&self, config: MachineConfig) -> Result<Restored, Failure> {
        let (wal, recovered) = Wal::open(self.disk.clone(), &self.directories.wal, self.options)?;
        // What the log cannot replay must be in the database, and nothing more: our own snapshot records lie above, and a
        // database that fell back by a commit is behind the newest of them (reliability.md 3.3, sentence 7).
        install::recover(&self.directories.snap, recovered.base.index)?;
        let checkpoint = RedbCheckpoint::open(&self.database())?;
        let (local, cluster) = (MemberId(recovered.metadata.node_id), ClusterId(recovered.metadata.cluster_id));
        let (start, machine) = resume(config, &checkpoint, recovered)?;
        Ok(Restored { local, cluster, wal, start, machine, checkpoint })
    }
}

/// The state of a checkpoint and of a log: what the checkpoint lacks is applied.
pub fn resume(
    config: MachineConfig,
    checkpoint: &dyn Checkpoint,
    recovered: Recovered,
) -> Result<(Start, Machine), Failure> {
    let (buckets, applied) = checkpoint.buckets()?;
    let durable_index = applied.index;
    let mut machine = Machine::restore(config, checkpoint.tables()?, &buckets, applied)?;
    let hard_state = replay(&mut machine, &recovered)?;
    let applied = machine.applied();
    let start = Start {
        hard_state,
        base: (recovered.base.index, recovered.base.term),
        durable_index,
        applied: (applied.index, applied.term),
        conf_state: applied.conf_state.clone(),
        entries: recovered.entries,
    };
    Ok((start, machine))
}

/// Applies every committed entry behind the checkpoint. The commit of the log may lag behind the checkpoint, because it is
/// not synced by itself: then the checkpoint counts (reliability.md R13).
fn replay(machine: &mut Machine, recovered: &Recovered) -> Result<HardState, Failure> {
    let applied = machine.applied().index;
    let base = recovered.base.index;
    let last = recovered.entries.last().map_or(base, |entry| entry.index);
    if applied < base {
        let text = format!("the log begins behind entry {base}, but the database has applied only entry {applied}");
        return Err(Failure::Refused(text));
    }
    if applied > last {
        let text = format!("the database has applied entry {applied}, but the log ends with entry {last}");
        return Err(Failure::Refused(text));
    }
    let commit = recovered.hard_state.commit.max(applied);
    if commit > last {
        return Err(Failure::Refused(format!("the log says entry {commit} is committed, but ends with entry {last}")));
    }
    let missing = recovered.entries.iter().filter(|entry| entry.index > applied && entry.index <= commit);
    for entry in missing {
        machine.apply_entry(entry)?;
    }
    Ok(HardState { commit, ..recovered.hard_state })
}

/// Creates a directory that only we can read, durably, for what we acknowledge lies below it; an existing one with wider
/// rights is used, with a word about it.
fn create_private(path: &Path) -> Result<(), Failure> {
    use std::os::unix::fs::PermissionsExt;
    create_dir_durably(&RealDisk, path).map_err(Failure::io("cannot create directory", path))?;
    let mode = std::fs::metadata(path).map_err(Failure::io("cannot read", path))?.permissions().mode() & 0o777;
    if mode & 0o077 != 0 {
        tracing::warn!(
            dir = %path.display(),
            mode = format!("{mode:o}"),
            "a data directory should be for its owner only (0700)"
        );
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::raftpb::Entry;
    use crate::server::apply::testing::Written;
    use crate::server::bootstrap::Founder;

    /// A database that fell back by a commit, or is gone, lies behind our own snapshot record; the log has what it lacks.
    #[test]
    fn a_snapshot_record_of_our_own_asks_nothing_of_the_database() {
        let temp = tempfile::tempdir().unwrap();
        let directories = Directories::new(temp.path(), None);
        let storage = Storage::open(directories, WalOptions::default()).unwrap();
        let founder = Founder { id: MemberId(7), name: "m".to_owned(), peer_urls: vec!["http://h:1".to_owned()] };
        let identity = Identity { local: MemberId(7), cluster: ClusterId(9), members: vec![founder] };
        storage.create_log(&identity, true).unwrap();
        let entries: Vec<Entry> = (2..=4).map(|index| Entry { index, term: 2, ..Entry::default() }).collect();
        let (mut wal, recovered) =
            Wal::open(storage.disk.clone(), &storage.directories.wal, WalOptions::default()).unwrap();
        assert_eq!(recovered.entries.len(), 1, "the founder's entry came with the log");
        wal.save(Some(&HardState { term: 2, vote: 7, commit: 4 }), &entries, true).unwrap();
        wal.save_snapshot(&walpb::Snapshot { index: 3, term: 2, ..walpb::Snapshot::default() }).unwrap();
        drop(wal);
        let restored = storage.restore(Written::default().machine_config(-1)).unwrap();
        assert_eq!((restored.start.durable_index, restored.start.applied), (0, (4, 2)));
        assert_eq!(restored.machine.membership().members().count(), 1);
    }
}

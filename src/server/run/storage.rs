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
        let mut wal = Wal::create(self.disk.clone(), &self.directories.wal, metadata, self.options)?;
        if founder {
            let members: Vec<(MemberId, String, Vec<String>)> = identity
                .members
                .iter()
                .map(|member| (member.id, member.name.clone(), member.peer_urls.clone()))
                .collect();
            let (entries, hard_state, _) = bootstrap_entries(&members);
            wal.save(Some(&hard_state), &entries, true)?;
        }
        Ok(())
    }

    /// Reads the log and the checkpoint, and applies what is committed and not in the checkpoint.
    pub fn restore(&self, config: MachineConfig) -> Result<Restored, Failure> {
        let (wal, recovered) = Wal::open(self.disk.clone(), &self.directories.wal, self.options)?;
        install::recover(&self.directories.snap, snapshot_needed(&recovered))?;
        let checkpoint = RedbCheckpoint::open(&self.database())?;
        let local = MemberId(recovered.metadata.node_id);
        let cluster = ClusterId(recovered.metadata.cluster_id);
        let (machine, start) = state_of(config, &checkpoint, recovered)?;
        Ok(Restored { local, cluster, wal, start, machine, checkpoint })
    }
}

/// The entry that the checkpoint must hold at least, for the log begins behind it: where a snapshot that was received took
/// the place of older entries, its image is put in place if the checkpoint is older. A record of our own checkpoint asks
/// for nothing: the log goes on reaching the one before, should the database fall back to it (reliability.md 3.3, 7).
pub fn snapshot_needed(recovered: &Recovered) -> u64 {
    recovered.base.index
}

/// The state of a checkpoint and the log behind it, and what raft starts from.
pub fn state_of(
    config: MachineConfig,
    checkpoint: &dyn Checkpoint,
    recovered: Recovered,
) -> Result<(Machine, Start), Failure> {
    let (buckets, applied) = checkpoint.buckets()?;
    let checkpoint_index = applied.index;
    let mut machine = Machine::restore(config, checkpoint.tables()?, &buckets, applied)?;
    let hard_state = replay(&mut machine, &recovered)?;
    let applied = machine.applied();
    let start = Start {
        hard_state,
        base: (recovered.base.index, recovered.base.term),
        applied: (applied.index, applied.term),
        conf_state: applied.conf_state.clone(),
        entries: recovered.entries,
        checkpoint_index,
    };
    Ok((machine, start))
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
    Ok(HardState { commit, ..recovered.hard_state.clone() })
}

/// Creates a directory that only we can read; an existing one with wider rights is used, with a word about it.
fn create_private(path: &Path) -> Result<(), Failure> {
    use std::os::unix::fs::DirBuilderExt;
    use std::os::unix::fs::PermissionsExt;
    let created = std::fs::DirBuilder::new().recursive(true).mode(0o700).create(path);
    created.map_err(Failure::io("cannot create directory", path))?;
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

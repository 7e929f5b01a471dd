//! Adapters between the parts: each part names only the small traits it needs, here they meet.

use std::ops::ControlFlow;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::OnceLock;
use std::time::Instant;

use bytes::Bytes;

use crate::common::failure::Failure;
use crate::common::ids::MemberId;
use crate::common::revision::Revision;
use crate::proto::raftpb::ConfChange;
use crate::proto::raftpb::Snapshot;
use crate::server::apply::outcome::PeerChange;
use crate::server::apply::ports::FrozenState;
use crate::server::apply::ports::Installed;
use crate::server::apply::ports::PeerPort;
use crate::server::apply::ports::RaftReports;
use crate::server::apply::ports::Snapshots;
use crate::server::apply::queue::ApplyHandle;
use crate::server::checkpoint::Checkpoint;
use crate::server::checkpoint::Header;
use crate::server::checkpoint::Record;
use crate::server::checkpoint::flusher::Flusher;
use crate::server::checkpoint::store::RedbCheckpoint;
use crate::server::cluster::member::Member;
use crate::server::mvcc::view::View;
use crate::server::peer::transport::Peers;
use crate::server::propose::Connectivity;
use crate::server::propose::RaftPort;
use crate::server::raft::handle::Busy;
use crate::server::raft::handle::RaftHandle;
use crate::server::reconfigure::Leadership;
use crate::server::snapshot::contents::Frozen;
use crate::server::snapshot::contents::RecordSource;
use crate::server::snapshot::install::Installer;
use crate::server::snapshot::send::Images;

/// The raft thread as everybody else sees it. It starts last, so the handle comes later; what is said before is said to
/// nobody, and nothing says anything before.
#[derive(Default)]
pub struct Raft {
    handle: OnceLock<RaftHandle>,
}

impl Raft {
    pub fn connect(&self, handle: RaftHandle) {
        assert!(self.handle.set(handle).is_ok(), "raft is started once");
    }

    pub fn handle(&self) -> Option<&RaftHandle> {
        self.handle.get()
    }
}

impl RaftReports for Raft {
    fn applied(&self, index: u64) {
        if let Some(raft) = self.handle() {
            raft.applied(index);
        }
    }

    fn conf_change_applied(&self, index: u64, change: Option<ConfChange>) {
        if let Some(raft) = self.handle() {
            raft.conf_change_applied(index, change);
        }
    }

    fn snapshot_installed(&self, index: u64) {
        if let Some(raft) = self.handle() {
            raft.snapshot_installed(index);
        }
    }
}

impl RaftPort for Raft {
    fn propose(&self, request_id: u64, data: Bytes) -> Result<(), Busy> {
        self.handle().ok_or(Busy::Stopped)?.propose(request_id, data)
    }

    fn propose_here(&self, request_id: u64, data: Bytes) -> Result<(), Busy> {
        self.handle().ok_or(Busy::Stopped)?.propose_here(request_id, data)
    }

    fn propose_in_term(&self, term: u64, request_id: u64, data: Bytes) -> Result<(), Busy> {
        self.handle().ok_or(Busy::Stopped)?.propose_in_term(term, request_id, data)
    }

    fn propose_conf_change(&self, request_id: u64, change: ConfChange) -> Result<(), Busy> {
        self.handle().ok_or(Busy::Stopped)?.propose_conf_change(request_id, change)
    }

    fn read_index(&self, context: Bytes) {
        if let Some(raft) = self.handle() {
            raft.read_index(context);
        }
    }

    fn lone_leader(&self) -> bool {
        self.handle().is_some_and(RaftHandle::lone_leader)
    }
}

impl Leadership for Raft {
    fn match_index(&self, member: MemberId) -> Option<u64> {
        self.handle()?.match_index(member)
    }

    fn transfer_leader(&self, to: MemberId) {
        if let Some(raft) = self.handle() {
            raft.transfer_leader(to);
        }
    }
}

/// Images for followers, and those that came from a leader.
pub struct SnapshotWork {
    pub images: Arc<Images>,
    pub installer: Arc<Installer>,
    pub flusher: Arc<Flusher>,
    pub raft: Arc<Raft>,
    /// The live database's path.
    pub database: PathBuf,
    /// Ends the process: an image could not be written.
    pub queue: OnceLock<ApplyHandle>,
}

/// Handed to `SnapshotWork` as one, so that the building thread can own it.
#[derive(Clone)]
pub struct SnapshotPort(pub Arc<SnapshotWork>);

impl Snapshots for SnapshotPort {
    fn build(&self, frozen: FrozenState) {
        let work = Arc::clone(&self.0);
        let build = move || {
            let FrozenState { view, buckets, applied, v2_store } = frozen;
            let index = applied.index;
            let state = Frozen { records: Arc::new(ViewRecords(view)), buckets, applied };
            match work.images.build(&state, v2_store) {
                Ok(snapshot) => {
                    tracing::info!(index, "built a snapshot for a follower that is behind the log");
                    if let Some(raft) = work.raft.handle() {
                        raft.snapshot_built(snapshot);
                    }
                }
                Err(failure) => work.fail(failure),
            }
        };
        let spawned = std::thread::Builder::new().name("snapshot".to_owned()).spawn(build);
        if let Err(error) = spawned {
            self.0.fail(Failure::Refused(format!("cannot start a thread for a snapshot: {error}")));
        }
    }

    fn install(&self, snapshot: &Snapshot) -> Result<Installed, Failure> {
        let index = snapshot.metadata.as_ref().map_or(0, |metadata| metadata.index);
        self.0.installer.finish(index)?;
        let checkpoint = RedbCheckpoint::open(&self.0.database)?;
        let tables = checkpoint.tables()?;
        let (buckets, applied) = checkpoint.buckets()?;
        self.0.flusher.swap(Box::new(checkpoint))?;
        tracing::info!(index, "installed a snapshot");
        Ok(Installed { tables, buckets, applied })
    }
}

impl SnapshotWork {
    fn fail(&self, failure: Failure) {
        if let Some(queue) = self.queue.get() {
            queue.fail(failure);
        }
    }
}

/// A View as the source of an image's records.
pub struct ViewRecords(pub Arc<View>);

impl RecordSource for ViewRecords {
    fn records(
        &self,
        first: Revision,
        last: Revision,
        visit: &mut dyn FnMut(Record) -> ControlFlow<()>,
    ) -> Result<(), Failure> {
        self.0.records(first, last, visit)
    }

    fn headers(
        &self,
        first: Revision,
        last: Revision,
        visit: &mut dyn FnMut(Header) -> ControlFlow<()>,
    ) -> Result<(), Failure> {
        self.0.headers(first, last, visit)
    }
}

/// The list of peers, kept as the log says.
pub struct PeerList {
    pub peers: Arc<Peers>,
    pub local: MemberId,
}

impl PeerPort for PeerList {
    fn changed(&self, change: PeerChange) {
        match change {
            PeerChange::Added(member, urls) => self.peers.add_peer(member, &urls),
            PeerChange::Updated(member, urls) => self.peers.update_peer(member, &urls),
            PeerChange::Removed(member) => self.peers.remove_peer(member),
        }
    }

    fn replaced(&self, members: &[Member], removed: &[MemberId]) {
        for member in removed {
            self.peers.remove_peer(*member);
        }
        for member in members.iter().filter(|member| member.id != self.local) {
            self.peers.add_peer(member.id, &member.peer_urls);
        }
    }
}

/// Since when peers are heard.
pub struct Links(pub Arc<Peers>);

impl Connectivity for Links {
    fn active_since(&self, member: MemberId) -> Option<Instant> {
        self.0.active_since(member)
    }
}

//! What stands around a member's core in the simulator: ports that its threads talk to, and the judge's ears between them.

use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::Mutex;

use bytes::Bytes;

use crate::common::failure::Failure;
use crate::common::ids::MemberId;
use crate::common::revision::Revision;
use crate::disk::sim::SimDisk;
use crate::proto::raftpb::Entry;
use crate::proto::raftpb::HardState;
use crate::proto::raftpb::Message;
use crate::proto::raftpb::Snapshot;
use crate::proto::raftpb::SnapshotMetadata;
use crate::proto::walpb;
use crate::server::apply::outcome::PeerChange;
use crate::server::apply::ports::FlushPort;
use crate::server::apply::ports::FrozenState;
use crate::server::apply::ports::Installed;
use crate::server::apply::ports::PeerPort;
use crate::server::apply::ports::Snapshots;
use crate::server::apply::queue::ApplyHandle;
use crate::server::checkpoint::Applied;
use crate::server::checkpoint::Batch;
use crate::server::checkpoint::Buckets;
use crate::server::checkpoint::Checkpoint;
use crate::server::checkpoint::Record;
use crate::server::checkpoint::memory::MemoryCheckpoint;
use crate::server::cluster::member::Member as ClusterMember;
use crate::server::raft::log_store::LogStore;
use crate::server::raft::state_machine::RaftStatus;
use crate::server::raft::state_machine::Refusal;
use crate::server::raft::state_machine::StateMachine;
use crate::server::raft::state_machine::Transport;
use crate::server::raft::wal::Wal;
use crate::sim::judge::Judge;
use crate::sim::member::Files;
use crate::sim::member::lock;

/// A whole state, as it travels to a member that is far behind.
pub struct Image {
    records: Vec<Record>,
    buckets: Buckets,
    applied: Applied,
}

impl Image {
    /// A checkpoint that holds the image, and cannot be rolled back to before it: the file was synced and renamed.
    pub(super) fn checkpoint(&self) -> Result<MemoryCheckpoint, Failure> {
        let mut checkpoint = MemoryCheckpoint::new();
        let pairs = self.buckets.iter().map(|((bucket, key), value)| (*bucket, key.clone(), Some(value.clone())));
        let (records, applied) = (self.records.clone(), self.applied.clone());
        checkpoint.write(&Batch { records, removed: Vec::new(), pairs: pairs.collect(), applied: applied.clone() })?;
        Ok(checkpoint)
    }
}

/// What a running member hands to the world, and its files.
pub struct Hooks {
    pub(super) id: MemberId,
    pub(super) judge: Arc<Mutex<Judge>>,
    pub(super) files: Arc<Mutex<Files>>,
    pub outbox: Mutex<Vec<Message>>,
    /// What waits for the flusher, and whether somebody is in a hurry.
    pub(super) pending: Mutex<(Option<Batch>, bool)>,
    pub built: Mutex<Vec<(Snapshot, Arc<Image>)>>,
}

impl Transport for Hooks {
    fn send(&self, messages: Vec<Message>) {
        messages.iter().for_each(|message| lock(&self.judge).sent(message));
        lock(&self.outbox).extend(messages);
    }
}

impl FlushPort for Hooks {
    fn submit(&self, batch: Batch) {
        match &mut lock(&self.pending).0 {
            Some(pending) => pending.merge(batch),
            empty => *empty = Some(batch),
        }
    }

    fn is_full(&self) -> bool {
        false
    }

    fn flush_soon(&self) {
        lock(&self.pending).1 = true;
    }
}

impl Snapshots for Hooks {
    fn build(&self, frozen: FrozenState) {
        let FrozenState { view, buckets, applied, v2_store } = frozen;
        let mut records = Vec::new();
        let all = view.records(Revision::default(), Revision::new(i64::MAX, i64::MAX), &mut |record| {
            records.push(record);
            ControlFlow::Continue(())
        });
        if let Err(failure) = all {
            lock(&self.judge).blame(format!("{} cannot build a snapshot: {failure}", self.id));
            return;
        }
        let (index, term) = (applied.index, applied.term);
        lock(&self.judge).configuration(self.id, "a snapshot", index, &applied.conf_state);
        let metadata = SnapshotMetadata { conf_state: Some(applied.conf_state.clone()), index, term };
        let snapshot = Snapshot { data: v2_store, metadata: Some(metadata) };
        lock(&self.built).push((snapshot, Arc::new(Image { records, buckets, applied })));
    }

    fn install(&self, snapshot: &Snapshot) -> Result<Installed, Failure> {
        let index = snapshot.metadata.as_ref().map_or(0, |metadata| metadata.index);
        let mut files = lock(&self.files);
        files.finish_install(index)?;
        lock(&self.pending).0 = None;
        let tables = files.checkpoint.tables()?;
        let (buckets, applied) = files.checkpoint.buckets()?;
        Ok(Installed { tables, buckets, applied })
    }
}

impl PeerPort for Hooks {
    fn changed(&self, _change: PeerChange) {}

    fn replaced(&self, _members: &[ClusterMember], _removed: &[MemberId]) {}
}

/// The judge's ear between raft and apply.
pub(super) struct Tap {
    pub queue: ApplyHandle,
    pub hooks: Arc<Hooks>,
}

impl StateMachine for Tap {
    fn commit(&self, entries: Vec<Entry>) {
        lock(&self.hooks.judge).applies(self.hooks.id, &entries);
        self.queue.commit(entries);
    }

    fn install(&self, snapshot: Snapshot) {
        let index = snapshot.metadata.as_ref().map_or(0, |metadata| metadata.index);
        lock(&self.hooks.judge).starts_at(self.hooks.id, index);
        self.queue.install(snapshot);
    }

    fn build_snapshot(&self) {
        self.queue.build_snapshot();
    }

    fn refused(&self, request_id: u64, why: Refusal) {
        self.queue.refused(request_id, why);
    }

    fn read_ready(&self, context: Bytes, index: u64) {
        self.queue.read_ready(context, index);
    }

    fn status_changed(&self, status: RaftStatus) {
        lock(&self.hooks.judge).status(self.hooks.id, &status);
        self.queue.status_changed(status);
    }

    fn failed(&self, failure: Failure) {
        self.queue.failed(failure);
    }
}

/// The judge's ear between raft and the log. What counts as durable is what the disk says, not what was asked for.
pub(super) struct LogTap {
    pub wal: Wal,
    pub disk: SimDisk,
    pub hooks: Arc<Hooks>,
}

impl LogStore for LogTap {
    fn save(&mut self, hard_state: Option<&HardState>, entries: &[Entry], must_sync: bool) -> Result<(), Failure> {
        let syncs = self.disk.syncs();
        let saved = self.wal.save(hard_state, entries, must_sync);
        let synced = saved.is_ok() && self.disk.syncs() > syncs;
        lock(&self.hooks.judge).saved(self.hooks.id, hard_state, entries, synced);
        saved
    }

    fn save_snapshot(&mut self, snapshot: &walpb::Snapshot) -> Result<(), Failure> {
        let syncs = self.disk.syncs();
        let saved = self.wal.save_snapshot(snapshot);
        let synced = saved.is_ok() && self.disk.syncs() > syncs;
        let mut judge = lock(&self.hooks.judge);
        judge.saved_snapshot(self.hooks.id, snapshot.index, snapshot.term, synced);
        if let Some(conf_state) = &snapshot.conf_state {
            judge.configuration(self.hooks.id, "a snapshot record", snapshot.index, conf_state);
        }
        drop(judge);
        saved
    }

    fn release_to(&mut self, index: u64) -> Result<(), Failure> {
        self.wal.release_to(index)
    }

    fn only_appends(&self, bytes: usize) -> bool {
        self.wal.only_appends(bytes)
    }
}

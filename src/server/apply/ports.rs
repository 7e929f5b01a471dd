//! Whom the apply thread talks to. Nothing in here waits, except `FlushPort::submit` when the backlog is full.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

use crate::common::failure::Failure;
use crate::common::ids::MemberId;
use crate::proto::raftpb::ConfChange;
use crate::proto::raftpb::Snapshot;
use crate::server::apply::outcome::Outcome;
use crate::server::apply::outcome::PeerChange;
use crate::server::checkpoint::Applied;
use crate::server::checkpoint::Batch;
use crate::server::checkpoint::Buckets;
use crate::server::checkpoint::Record;
use crate::server::checkpoint::Tables;
use crate::server::checkpoint::flusher::Flusher;
use crate::server::cluster::member::Member;
use crate::server::mvcc::view::View;
use crate::server::raft::state_machine::RaftStatus;
use crate::server::raft::state_machine::Refusal;

/// Those who wait: proposals, reads, duties. Called on the raft thread and the apply thread.
pub trait Listener: Send + Sync {
    /// Answers of a batch, after its View can be read.
    fn answered(&self, outcomes: Vec<Outcome>);
    /// Everything up to this index can be read.
    fn applied(&self, index: u64);
    /// The first entry of a leader's term was applied: reads refused before may be asked again.
    fn term_started(&self);
    /// A snapshot took the place of entries: what became of the requests in them is unknown.
    fn outcomes_lost(&self);
    /// This member ought to raise NOSPACE for itself.
    fn out_of_space(&self);
    /// How far compaction was ordered, and how far records are deleted.
    fn compaction(&self, scheduled: i64, finished: i64);
    fn refused(&self, request_id: u64, why: Refusal);
    fn read_ready(&self, context: Bytes, index: u64);
    fn status_changed(&self, status: RaftStatus);
    /// This member was removed for good and has told its peers: the process ends, without an error.
    fn removed(&self);
}

/// What apply reports to raft: a mailbox, never full.
pub trait RaftReports: Send + Sync {
    fn applied(&self, index: u64);
    /// The configuration change at `index` is applied; `None` if raft is to use no change.
    fn conf_change_applied(&self, index: u64, change: Option<ConfChange>);
    fn snapshot_installed(&self, index: u64);
}

/// Where finished batches go.
pub trait FlushPort: Send + Sync {
    /// Hands over changes that follow all earlier ones. Waits while 64 MiB wait to be written.
    fn submit(&self, batch: Batch);
    /// So much waits to be written that the next `submit` might wait.
    fn is_full(&self) -> bool;
    /// Asks for a write of what waits, and does not wait for it.
    fn flush_soon(&self);
}

impl FlushPort for Flusher {
    fn submit(&self, batch: Batch) {
        Flusher::submit(self, batch);
    }

    fn is_full(&self) -> bool {
        Flusher::is_full(self)
    }

    fn flush_soon(&self) {
        Flusher::flush_soon(self);
    }
}

/// A state at one index, for the image of a snapshot.
pub struct FrozenState {
    pub view: Arc<View>,
    /// All pairs of all buckets.
    pub buckets: Buckets,
    pub applied: Applied,
    /// What members of 3.4 to 3.6 want in `Snapshot.data`.
    pub v2_store: Bytes,
}

/// Snapshots: built on a thread of their own, installed between two entries.
pub trait Snapshots: Send + Sync {
    /// Starts building an image; its end is told to raft, not to apply.
    fn build(&self, frozen: FrozenState);
    /// Puts the prepared image of this snapshot in the place of the checkpoint, also in the flusher. When it returns,
    /// no write to the old one will be reported any more.
    fn install(&self, snapshot: &Snapshot) -> Result<Installed, Failure>;
}

/// A checkpoint that was put in place.
pub struct Installed {
    pub tables: Arc<dyn Tables>,
    pub buckets: Buckets,
    pub applied: Applied,
}

/// The network's list of peers.
pub trait PeerPort: Send + Sync {
    /// One member came, moved or went; also this member itself.
    fn changed(&self, change: PeerChange);
    /// All members at once, after a snapshot.
    fn replaced(&self, members: &[Member], removed: &[MemberId]);
}

/// Who wants the changes of keys: the watch hub. Nothing here waits.
pub trait EventSink: Send + Sync {
    /// Whether anybody does. Asked after a batch was published.
    fn is_wanted(&self) -> bool;
    /// Whether a change of the key is anything to them. Asked after it can be read.
    fn concerns(&self, key: &[u8]) -> bool;
    /// Revisions `first..=last` changed no such key.
    fn passed(&self, first: i64, last: i64);
    /// All changes of revisions `first..=last` in order, after they can be read.
    fn records(&self, first: i64, last: i64, records: Vec<Record>);
    /// A snapshot took the place of the store.
    fn replaced(&self);
}

/// Time since some start, for metrics only: nothing that is applied depends on it.
pub type Stopwatch = Box<dyn Fn() -> Duration + Send>;

//! What the raft thread tells the rest of the member, and nothing more.
//!
//! Every method is called on the raft thread and must return at once: it may put something into a queue, never wait.

use bytes::Bytes;

use crate::common::failure::Failure;
use crate::common::ids::MemberId;
use crate::proto::raftpb::Entry;
use crate::proto::raftpb::Message;
use crate::proto::raftpb::Snapshot;

/// What the member is in its term.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Role {
    #[default]
    Follower,
    PreCandidate,
    Candidate,
    Leader,
}

/// A copy of what raft knows, published after every round in which it changed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RaftStatus {
    pub role: Role,
    pub term: u64,
    pub leader: Option<MemberId>,
    pub commit_index: u64,
    pub last_index: u64,
    /// Leads, has committed an entry in its term, and is the only voter: a read needs no quorum round.
    pub lone_leader: bool,
    /// A leader transfer is under way; proposals are dropped until it ends.
    pub transferring: bool,
}

/// Why a proposal did not enter the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// No leader is known now. It was not proposed: trying again later is safe.
    NoLeader,
    /// The library dropped it (leader transfer, too much uncommitted). Not proposed.
    Dropped,
    /// It was for the leader of a certain term, which this member is not or no longer. Not proposed.
    TermOver,
}

/// The applying side, as raft sees it.
pub trait StateMachine: Send + Sync {
    /// Committed entries in index order, each exactly once, starting behind the applied index given at start.
    fn commit(&self, entries: Vec<Entry>);
    /// The log jumped: `snapshot` is durable in the log, its image was prepared before the message was stepped.
    fn install(&self, snapshot: Snapshot);
    /// A follower needs a snapshot: build one and answer with `RaftHandle::snapshot_built`.
    fn build_snapshot(&self);
    /// The proposal with this request id is not in the log and will not be by itself.
    fn refused(&self, request_id: u64, why: Refusal);
    /// The read with this context may be served once `index` is applied.
    fn read_ready(&self, context: Bytes, index: u64);
    fn status_changed(&self, status: RaftStatus);
    /// The raft thread cannot go on; it has stopped. The process ends.
    fn failed(&self, failure: Failure);
    /// This member was removed, has told its peers for a while, and its raft thread has stopped. The process ends.
    fn removed(&self) {
        self.failed(Failure::Refused("the member has been permanently removed from the cluster".to_owned()));
    }
}

/// The network, as raft sees it.
pub trait Transport: Send + Sync {
    /// Sends what can be sent; drops and reports as unreachable what cannot. Order per peer is kept.
    fn send(&self, messages: Vec<Message>);
}

/// What peers and their connections tell raft. Implemented by the raft handle; must never block.
pub trait Inbox: Send + Sync {
    /// A message that passed `peer/validate`. Dropped when the inbox is full: raft repeats what matters.
    fn step(&self, message: Message);
    fn report_unreachable(&self, member: MemberId);
    /// The image behind a MsgSnap was delivered, or not.
    fn report_snapshot(&self, member: MemberId, delivered: bool);
}

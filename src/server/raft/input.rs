//! What goes into the raft node and what comes out of it: plain values, so that a thread, a simulator or a test can carry them.

use bytes::Bytes;

use super::state_machine::Refusal;
use crate::common::ids::MemberId;
use crate::proto::raftpb::ConfChange;
use crate::proto::raftpb::Entry;
use crate::proto::raftpb::HardState;
use crate::proto::raftpb::Message;
use crate::proto::raftpb::Snapshot;

/// Data that wants to become a log entry. The id comes back if it is refused; it is not part of the entry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Proposal {
    pub request_id: u64,
    pub data: Bytes,
}

/// One thing that happened to the member.
#[derive(Clone, Debug)]
pub enum Input {
    Tick,
    /// In this order; together they cost one message per peer.
    Propose(Vec<Proposal>),
    /// Appended by this member as the leader of this term, or refused: never handed to another leader.
    ProposeInTerm {
        term: u64,
        proposals: Vec<Proposal>,
    },
    ProposeConfChange {
        request_id: u64,
        change: ConfChange,
    },
    Peer(Message),
    Unreachable(MemberId),
    SnapshotReport {
        member: MemberId,
        delivered: bool,
    },
    /// A context that was never used before (R1).
    ReadIndex(Bytes),
    /// Everything up to this index was applied.
    Applied(u64),
    /// The configuration change at `index` was applied; `None` if it was rejected there. Before `Applied` passes it.
    ConfChangeApplied {
        index: u64,
        change: Option<ConfChange>,
    },
    /// The checkpoint holds everything up to this index durably.
    Checkpointed(u64),
    SnapshotBuilt(Snapshot),
    TransferLeader(MemberId),
    Campaign,
}

/// What the driver owes the rest of the member after a step.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Effect {
    Refused {
        request_id: u64,
        why: Refusal,
    },
    BuildSnapshot,
    /// This member was removed and has told its peers for long enough: it stops.
    Removed,
    /// A peer's message was not stepped.
    MessageDropped(&'static str),
}

/// A read that may be served once `index` is applied.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReadReady {
    pub context: Bytes,
    pub index: u64,
}

/// The work of one round, in the order of its fields; then `Node::persisted`.
#[derive(Clone, Debug, Default)]
pub struct Round {
    /// Committed and persisted in earlier rounds: may be applied at once.
    pub committed: Vec<Entry>,
    pub reads: Vec<ReadReady>,
    /// A leader's, while term and vote are unchanged: sent while the own disk works (Raft thesis 10.2.1).
    pub messages_before: Vec<Message>,
    /// To persist first: the log starts over behind it.
    pub snapshot: Option<Snapshot>,
    pub entries: Vec<Entry>,
    /// Whenever it differs from the last one given out, the commit index included.
    pub hard_state: Option<HardState>,
    /// Fdatasync before `persisted`.
    pub must_sync: bool,
    /// Promises that only hold once all of the above is durable.
    pub messages_after: Vec<Message>,
}

/// What became possible because the round is durable.
#[derive(Clone, Debug, Default)]
pub struct Persisted {
    pub messages: Vec<Message>,
    /// A lone voter's entries commit here and nowhere else.
    pub committed: Vec<Entry>,
    pub effects: Vec<Effect>,
}

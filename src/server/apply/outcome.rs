//! What an applied entry answers to whoever proposed it, and what it asks the rest of the member to do.

use crate::common::answer::Answer;
use crate::common::ids::MemberId;
use crate::proto::etcdserverpb::AlarmResponse;
use crate::proto::etcdserverpb::CompactionResponse;
use crate::proto::etcdserverpb::DeleteRangeResponse;
use crate::proto::etcdserverpb::LeaseGrantResponse;
use crate::proto::etcdserverpb::LeaseRevokeResponse;
use crate::proto::etcdserverpb::PutResponse;
use crate::proto::etcdserverpb::RangeResponse;
use crate::proto::etcdserverpb::ResponseHeader;
use crate::proto::etcdserverpb::TxnResponse;
use crate::proto::raftpb::ConfChange;
use crate::server::cluster::member::Member;

/// The response of an applied request. Its header carries the store's revision as of then and nothing else.
#[derive(Clone, Debug, PartialEq)]
pub enum Reply {
    Range(RangeResponse),
    Put(PutResponse),
    DeleteRange(DeleteRangeResponse),
    Txn(TxnResponse),
    /// Keys below are gone for readers; for the deletion itself see `Proposer::compacted_physically`.
    Compaction(CompactionResponse),
    Alarm(AlarmResponse),
    LeaseGrant(LeaseGrantResponse),
    LeaseRevoke(LeaseRevokeResponse),
    /// All members after a configuration change, in id order.
    Members(Vec<Member>),
    /// A request that has no response of its own.
    Done {
        revision: i64,
    },
}

/// What became of the request with this id.
#[derive(Clone, Debug, PartialEq)]
pub struct Outcome {
    pub request_id: u64,
    pub result: Result<Reply, Answer>,
}

/// What an entry means for others than its proposer. Done in this order by the thread.
#[derive(Clone, Debug, PartialEq)]
pub enum Effect {
    /// Raft is to use this configuration change; `None` if it was rejected or changes addresses only (DESIGN.md 3).
    ConfChange(Option<ConfChange>),
    /// Members, their addresses or the cluster version changed.
    Cluster,
    /// Connections to this peer are to change.
    Peer(PeerChange),
    /// Alarms changed.
    Alarms,
    /// A write did not fit the quota any more: raise NOSPACE for this member.
    RaiseNoSpace,
    /// A compaction was accepted up to this revision.
    Compacted(i64),
    /// The first entry of a leader's term was applied.
    TermStarted,
}

/// A change of whom this member talks to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PeerChange {
    Added(MemberId, Vec<String>),
    Updated(MemberId, Vec<String>),
    Removed(MemberId),
}

/// What applying one entry gave.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Step {
    /// `None` if nobody can be waiting for it.
    pub outcome: Option<Outcome>,
    pub effects: Vec<Effect>,
    /// etcd's name of the request, for metrics; empty for what is none.
    pub op: &'static str,
}

/// The header of a response: the revision only.
pub fn header(revision: i64) -> Option<ResponseHeader> {
    Some(ResponseHeader { revision, ..ResponseHeader::default() })
}

//! What the API needs from the member behind it, and nothing more.
//!
//! The composition root implements it over propose, read, the views and the cluster; tests over a map.

use std::sync::Arc;
use std::time::Duration;

use crate::common::answer::Answer;
use crate::common::ids::ClusterId;
use crate::common::ids::MemberId;
use crate::proto::etcdserverpb::AlarmMember;
use crate::proto::etcdserverpb::AlarmRequest;
use crate::proto::etcdserverpb::AlarmResponse;
use crate::proto::etcdserverpb::CompactionRequest;
use crate::proto::etcdserverpb::CompactionResponse;
use crate::proto::etcdserverpb::DeleteRangeRequest;
use crate::proto::etcdserverpb::DeleteRangeResponse;
use crate::proto::etcdserverpb::HashKvResponse;
use crate::proto::etcdserverpb::HashResponse;
use crate::proto::etcdserverpb::LeaseGrantRequest;
use crate::proto::etcdserverpb::LeaseGrantResponse;
use crate::proto::etcdserverpb::LeaseRevokeRequest;
use crate::proto::etcdserverpb::LeaseRevokeResponse;
use crate::proto::etcdserverpb::LeaseTimeToLiveResponse;
use crate::proto::etcdserverpb::Member;
use crate::proto::etcdserverpb::PutRequest;
use crate::proto::etcdserverpb::PutResponse;
use crate::proto::etcdserverpb::RangeRequest;
use crate::proto::etcdserverpb::RangeResponse;
use crate::proto::etcdserverpb::TxnRequest;
use crate::proto::etcdserverpb::TxnResponse;
use crate::server::watch::stream::WatchStream;

pub use crate::server::api::image_stream::Image;

/// The one thing that the API knows of raft: a copy of its status.
pub use crate::server::raft::state_machine::RaftStatus;
pub use crate::server::raft::state_machine::Role;

/// Who this member is. Fixed for its life.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    pub member: MemberId,
    pub cluster: ClusterId,
    pub name: String,
}

/// Limits of requests (server.md 12).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Bytes of one proposal; a gRPC message may have `api::MESSAGE_OVERHEAD_BYTES` more.
    pub request_bytes_max: usize,
    /// Compares, then-operations and else-operations of a transaction, each; shared with its nested ones.
    pub txn_ops_max: usize,
    /// As given: 0 is the default quota, negative is none.
    pub quota_backend_bytes: i64,
    /// RT: 5 s and two election timeouts.
    pub request_timeout: Duration,
    pub election_timeout: Duration,
    /// Between progress notices of a stream.
    pub progress_interval: Duration,
    /// A unary request that takes longer is logged; zero never.
    pub slow_request: Duration,
}

/// Bytes of the store as clients see them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StoreSizes {
    pub allocated: i64,
    pub in_use: i64,
}

impl StoreSizes {
    const PAGE_BYTES: u64 = 4096;
    /// What etcd shows of a store without a key: whoever divides by it, or takes 0 for a fault, is not surprised.
    const EMPTY_ALLOCATED: i64 = 20480;
    const EMPTY_IN_USE: i64 = 16384;

    /// Of a store that uses this much, in whole pages. Freed space is never held back (DESIGN.md 4).
    pub fn of_used(bytes: u64) -> StoreSizes {
        let pages = i64::try_from(bytes.next_multiple_of(Self::PAGE_BYTES)).unwrap_or(i64::MAX);
        StoreSizes {
            allocated: pages.saturating_add(Self::EMPTY_ALLOCATED),
            in_use: pages.saturating_add(Self::EMPTY_IN_USE),
        }
    }
}

/// A view of the store that does not change while it is held, for reads of more than one step.
///
/// Holders take a new one at least every 5 s (DESIGN.md 4). Every call may read the disk and is made on a blocking thread.
pub trait Snapshot: Send + Sync {
    /// The revision it was taken at.
    fn revision(&self) -> i64;
    /// The whole range pipeline (server.md 3.3). The header carries the revision only.
    fn range(&self, request: &RangeRequest) -> Result<RangeResponse, Answer>;
    /// A transaction that `is_read_only`.
    fn txn(&self, request: &TxnRequest) -> Result<TxnResponse, Answer>;
}

/// The member behind the API. Answers carry `header.revision` only: the API fills the rest.
///
/// A failure (disk, corruption) stops the node in the implementation and reaches the caller as `Answer::Stopped`.
#[tonic::async_trait]
pub trait Backend: Send + Sync + 'static {
    fn identity(&self) -> &Identity;
    fn limits(&self) -> &Limits;

    fn raft_status(&self) -> RaftStatus;
    fn applied_index(&self) -> u64;
    /// The newest revision that reads see.
    fn revision(&self) -> i64;
    /// Never below -1, which means never compacted.
    fn compact_revision(&self) -> i64;
    fn sizes(&self) -> StoreSizes;
    /// Every alarm of the cluster, as applied here.
    fn alarms(&self) -> Vec<AlarmMember>;
    /// All members as applied here, sorted by id.
    fn members(&self) -> Vec<Member>;
    fn is_learner(&self) -> bool;
    /// `x.y.z`; `None` until decided.
    fn cluster_version(&self) -> Option<String>;
    /// `x.y.z`; `None` when the store does not say.
    fn storage_version(&self) -> Option<String>;

    /// Waits until reads here see everything that was acknowledged anywhere before the call; at most RT.
    async fn read_barrier(&self) -> Result<(), Answer>;
    /// What reads see now.
    fn snapshot(&self) -> Arc<dyn Snapshot>;
    /// A range of few keys on what reads see now. Cheaper than by a snapshot, which makes the writer copy what it changes
    /// next. The header carries the revision only.
    fn range(&self, request: &RangeRequest) -> Result<RangeResponse, Answer>;

    /// Called before a write is checked: refuses and raises NOSPACE when `cost` bytes would not fit the quota.
    async fn check_quota(&self, cost: u64) -> Result<(), Answer>;
    async fn put(&self, request: PutRequest) -> Result<PutResponse, Answer>;
    async fn delete_range(&self, request: DeleteRangeRequest) -> Result<DeleteRangeResponse, Answer>;
    async fn txn(&self, request: TxnRequest) -> Result<TxnResponse, Answer>;
    /// `physical` returns when this member has deleted everything and made it durable; it also waits for a compaction in
    /// flight when the answer is `Compacted` (server.md 3.8).
    async fn compact(&self, request: CompactionRequest) -> Result<CompactionResponse, Answer>;
    async fn alarm(&self, request: AlarmRequest) -> Result<AlarmResponse, Answer>;

    /// Id 0 picks one.
    async fn lease_grant(&self, request: LeaseGrantRequest) -> Result<LeaseGrantResponse, Answer>;
    async fn lease_revoke(&self, request: LeaseRevokeRequest) -> Result<LeaseRevokeResponse, Answer>;
    /// Renews a lease, wherever the leader is: its time to live in seconds; `LeaseNotFound` for one that is gone.
    async fn lease_keep_alive(&self, id: i64) -> Result<i64, Answer>;
    /// What the leader knows of a lease; `LeaseNotFound` for one that is gone.
    async fn lease_time_to_live(&self, id: i64, keys: bool) -> Result<LeaseTimeToLiveResponse, Answer>;
    /// All leases as this member has them; on the leader the one that ends first first.
    fn leases(&self) -> Vec<i64>;
    /// Opens a stream of watches.
    fn open_watch(&self) -> Result<WatchStream, Answer>;

    /// Adds a member with these peer URLs, valid and sorted: the new one, and all members afterwards, by id.
    async fn member_add(&self, peer_urls: Vec<String>, is_learner: bool) -> Result<(Member, Vec<Member>), Answer>;
    /// Removes a member for good: all members afterwards.
    async fn member_remove(&self, id: MemberId) -> Result<Vec<Member>, Answer>;
    /// Gives a member other peer URLs, valid ones: all members afterwards.
    async fn member_update(&self, id: MemberId, peer_urls: Vec<String>) -> Result<Vec<Member>, Answer>;
    /// Makes a learner a voter, wherever the leader is: all members afterwards.
    async fn member_promote(&self, id: MemberId) -> Result<Vec<Member>, Answer>;
    /// Returns when `to` leads; `NotLeader` unless this member leads.
    async fn move_leader(&self, to: MemberId) -> Result<(), Answer>;

    /// Hash of the key space at a revision (server.md 3.9).
    async fn hash_kv(&self, revision: i64) -> Result<HashKvResponse, Answer>;
    /// Hash of everything stored.
    async fn hash(&self) -> Result<HashResponse, Answer>;
    /// The whole state as etcd's database file, as it is now. Takes its time, and nobody else's.
    async fn image(&self) -> Result<Image, Answer>;
    /// Makes everything applied durable in the checkpoint. Nothing has to be defragmented (DESIGN.md 4).
    async fn flush(&self) -> Result<(), Answer>;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_pages_above_those_of_an_empty_store() {
        let shown = |bytes| {
            let StoreSizes { allocated, in_use } = StoreSizes::of_used(bytes);
            (allocated, in_use)
        };
        assert_eq!((shown(0), shown(1), shown(4097)), ((20480, 16384), (24576, 20480), (28672, 24576)));
    }
}

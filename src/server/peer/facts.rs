//! What the peer port answers about the rest of the member. The composition root implements it.

use crate::common::answer::Answer;
use crate::common::ids::MemberId;
use crate::proto::etcdserverpb::HashKvResponse;
use crate::proto::etcdserverpb::LeaseTimeToLiveResponse;

/// Questions of peers that are not raft's. Errors go back with etcd's status and text.
#[tonic::async_trait]
pub trait PeerFacts: Send + Sync {
    /// The members as a JSON array, by id, without a line end (server.md 8.3).
    fn members_json(&self) -> String;
    /// `{"etcdserver":…,"etcdcluster":…,"storage":…}`, without a line end.
    fn version_json(&self) -> String;
    /// The hash at `revision` (0: now). Of the header only the revision travels.
    async fn hash_kv(&self, revision: i64) -> Result<HashKvResponse, Answer>;
    /// Whether a downgrade is under way, by a linearizable read.
    async fn downgrade_enabled(&self) -> Result<bool, Answer>;
    /// Renews a lease on the leader: its TTL in seconds.
    async fn lease_keep_alive(&self, lease: i64) -> Result<i64, Answer>;
    /// What the leader knows of a lease; `LeaseNotFound` if it does not exist.
    async fn lease_time_to_live(&self, lease: i64, keys: bool) -> Result<LeaseTimeToLiveResponse, Answer>;
    /// Promotes a learner, with the caller's token. The members afterwards, as `members_json`.
    async fn promote(&self, member: MemberId, token: Option<String>) -> Result<String, Answer>;
}

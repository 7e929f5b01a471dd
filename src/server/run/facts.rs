//! What the peer port answers about the rest of the member.

use std::sync::Arc;

use crate::common::answer::Answer;
use crate::common::ids::MemberId;
use crate::common::version::ETCD_VERSION;
use crate::proto::etcdserverpb::HashKvResponse;
use crate::proto::etcdserverpb::LeaseTimeToLiveResponse;
use crate::server::api::backend::Backend;
use crate::server::apply::published::Published;
use crate::server::cluster::member::members_to_json;
use crate::server::peer::facts::PeerFacts;
use crate::server::read::Reader;
use crate::server::run::backend::MemberBackend;

/// Facts for peers, from the parts that clients see too.
pub struct Facts {
    pub backend: Arc<MemberBackend>,
    pub published: Published,
    pub reader: Reader,
}

#[tonic::async_trait]
impl PeerFacts for Facts {
    fn members_json(&self) -> String {
        members_to_json(&self.published.cluster.view().members)
    }

    fn version_json(&self) -> String {
        // Peers take a missing version as an incompatible one (peer.md 5): this answers from the first moment on.
        let cluster = self.backend.cluster_version().unwrap_or_else(|| "not_decided".to_owned());
        let storage = self.backend.storage_version().unwrap_or_else(|| "unknown".to_owned());
        format!("{{\"etcdserver\":\"{ETCD_VERSION}\",\"etcdcluster\":\"{cluster}\",\"storage\":\"{storage}\"}}")
    }

    async fn hash_kv(&self, revision: i64) -> Result<HashKvResponse, Answer> {
        self.backend.hash_kv(revision).await
    }

    async fn downgrade_enabled(&self) -> Result<bool, Answer> {
        self.reader.barrier().await?;
        Ok(self.published.cluster.view().downgrade.is_some())
    }

    // Not passed on: the asking member looks for the leader itself.
    async fn lease_keep_alive(&self, lease: i64) -> Result<i64, Answer> {
        self.backend.leases.keeper.renew(lease).await
    }

    async fn lease_time_to_live(&self, lease: i64, keys: bool) -> Result<LeaseTimeToLiveResponse, Answer> {
        self.backend.leases.keeper.time_to_live(lease, keys).await
    }

    // Not passed on either.
    async fn promote(&self, member: MemberId, _token: Option<String>) -> Result<String, Answer> {
        let members = self.backend.promotions.promote_here(member).await?;
        Ok(members_to_json(&members))
    }
}

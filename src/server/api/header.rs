//! The header of a response: who answers, at which revision and term (server.md 0.4).

use crate::proto::etcdserverpb::ResponseHeader;
use crate::server::api::backend::Backend;

/// Completes what the store answered: it knows the revision only. A missing or zero one becomes the live revision.
pub fn complete(backend: &dyn Backend, from_store: Option<ResponseHeader>) -> Option<ResponseHeader> {
    let revision = from_store.map_or(0, |header| header.revision);
    let revision = if revision == 0 { backend.revision() } else { revision };
    Some(with_revision(backend, revision))
}

/// The header of the cluster service: its revision stays 0.
pub fn without_revision(backend: &dyn Backend) -> Option<ResponseHeader> {
    Some(with_revision(backend, 0))
}

fn with_revision(backend: &dyn Backend, revision: i64) -> ResponseHeader {
    let identity = backend.identity();
    ResponseHeader {
        cluster_id: identity.cluster.0,
        member_id: identity.member.0,
        revision,
        raft_term: backend.raft_status().term,
    }
}

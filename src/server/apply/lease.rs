//! Leases in the log: grants, revokes, checkpoints, and the keys that come with them.

use bytes::Bytes;

use crate::common::version::Version;
use crate::proto::etcdserverpb::LeaseCheckpointRequest;
use crate::proto::etcdserverpb::LeaseGrantRequest;
use crate::proto::etcdserverpb::LeaseGrantResponse;
use crate::proto::etcdserverpb::LeaseRevokeRequest;
use crate::proto::etcdserverpb::LeaseRevokeResponse;
use crate::server::apply::kv;
use crate::server::apply::kv::ApplyError;
use crate::server::apply::kv::Leases;
use crate::server::apply::outcome::header;
use crate::server::lease::Lessor;
use crate::server::mvcc::store::Store;

/// From this cluster version on checkpoints are written down (server.md 5).
pub const CHECKPOINTS_STORED_FROM: Version = Version::new(3, 6, 0);

// Leases and keys do not know each other; apply is where they meet.
impl Leases for Lessor {
    fn exists(&self, id: i64) -> bool {
        Lessor::exists(self, id)
    }

    fn attach(&mut self, id: i64, key: &Bytes) {
        // A copy: the key is a slice of its entry's buffer, and a lease outlives the entry.
        Lessor::attach(self, id, &Bytes::copy_from_slice(key));
    }

    fn detach(&mut self, id: i64, key: &Bytes) {
        Lessor::detach(self, id, key);
    }
}

/// Grants a lease under the id that the proposer chose.
pub fn grant(
    store: &Store,
    lessor: &mut Lessor,
    request: &LeaseGrantRequest,
) -> Result<LeaseGrantResponse, ApplyError> {
    let lease = lessor.grant(request.id, request.ttl)?;
    Ok(LeaseGrantResponse {
        header: header(store.revision()),
        id: lease.id,
        ttl: lease.ttl_seconds,
        ..LeaseGrantResponse::default()
    })
}

/// Ends a lease and deletes its keys, ascending, in one revision (server.md 5).
pub fn revoke(
    store: &mut Store,
    lessor: &mut Lessor,
    request: &LeaseRevokeRequest,
) -> Result<LeaseRevokeResponse, ApplyError> {
    let keys = lessor.revoke(request.id)?;
    kv::delete_keys(store, lessor, &keys)?;
    Ok(LeaseRevokeResponse { header: header(store.revision()) })
}

/// Notes what is left of leases; unknown ones are passed over, as etcd does.
pub fn checkpoint(lessor: &mut Lessor, request: &LeaseCheckpointRequest, cluster_version: Option<Version>) {
    let persist = cluster_version.is_some_and(|version| version >= CHECKPOINTS_STORED_FROM);
    for checkpoint in &request.checkpoints {
        lessor.checkpoint(checkpoint.id, checkpoint.remaining_ttl, persist);
    }
}

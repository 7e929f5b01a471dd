//! Members in the log: configuration changes, published attributes, the cluster version.

use bytes::Bytes;

use crate::common::version::Version;
use crate::proto::raft_numbers::CONF_ADD_LEARNER;
use crate::proto::raft_numbers::CONF_ADD_NODE;
use crate::proto::raft_numbers::CONF_REMOVE_NODE;
use crate::proto::raftpb::ConfChange;
use crate::server::apply::outcome::PeerChange;
use crate::server::cluster::membership::Change;

/// The key of bucket `meta` that holds the storage version.
pub const STORAGE_VERSION_KEY: &[u8] = b"storageVersion";

/// Databases before this version do not say which they are (server.md 14.6).
const STORAGE_VERSION_FROM: Version = Version::new(3, 6, 0);

/// What raft is told of an accepted change: a value of our own making, and nothing for an update of addresses, which
/// its library does not know (DESIGN.md 3).
pub fn for_raft(change: &Change) -> Option<ConfChange> {
    let r#type = match change {
        Change::Add(member) if member.is_learner => CONF_ADD_LEARNER,
        Change::Add(_) | Change::Promote(_) => CONF_ADD_NODE,
        Change::Remove(_) => CONF_REMOVE_NODE,
        Change::Update(..) => return None,
    };
    Some(ConfChange { id: 0, r#type, node_id: change.member().0, context: Bytes::new() })
}

/// What an accepted change means for connections; nothing for a promotion.
pub fn for_peers(change: &Change) -> Option<PeerChange> {
    match change {
        Change::Add(member) => Some(PeerChange::Added(member.id, member.peer_urls.clone())),
        Change::Promote(_) => None,
        Change::Remove(id) => Some(PeerChange::Removed(*id)),
        Change::Update(id, urls) => Some(PeerChange::Updated(*id, urls.clone())),
    }
}

/// The storage version that goes with a cluster version; `None` deletes it.
pub fn storage_version(cluster: Version) -> Option<Bytes> {
    (cluster >= STORAGE_VERSION_FROM).then(|| Bytes::from(cluster.line().to_string()))
}

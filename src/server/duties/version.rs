//! The cluster version: the leader proposes the lowest release line among the members (server.md 6.8).

use std::sync::Arc;
use std::time::Duration;

use crate::common::version::CLUSTER_VERSION;
use crate::common::version::MIN_CLUSTER_VERSION;
use crate::common::version::Version;
use crate::proto::membershippb::ClusterVersionSetRequest;
use crate::proto::raftinternalpb::InternalRaftRequest;
use crate::server::cluster::handle::ClusterHandle;
use crate::server::cluster::member::Member;
use crate::server::propose::Proposer;
use crate::server::raft::state_machine::Role;
use crate::server::waiters::Desk;

/// How often the leader looks at the versions of the members.
pub const CHECK_INTERVAL: Duration = Duration::from_secs(4);

/// Asks other members for their version.
#[tonic::async_trait]
pub trait VersionSource: Send + Sync {
    /// What the member's `/version` calls its server version; `None` if it cannot be reached.
    async fn server_version(&self, member: &Member) -> Option<Version>;
}

/// The version to propose now, if any. `versions` are those of all members; one that is unknown stands for nothing,
/// so the first decision falls back to the lowest and later ones wait. Only upwards: going down is a downgrade's
/// business.
pub fn decide(agreed: Option<Version>, versions: &[Option<Version>]) -> Option<Version> {
    let all: Option<Vec<Version>> = versions.iter().copied().collect();
    let lowest = all.and_then(|all| all.into_iter().min()).map(Version::line);
    match agreed {
        None => lowest.or_else(|| Version::parse(MIN_CLUSTER_VERSION)),
        Some(agreed) => lowest.filter(|lowest| *lowest > agreed),
    }
}

/// The task: looks at the beginning of each term and every `interval`, acts on the leader, ends when the member stops.
pub async fn run(
    proposer: Proposer,
    desk: Arc<Desk>,
    cluster: ClusterHandle,
    source: Arc<dyn VersionSource>,
    interval: Duration,
) {
    let mut raft = desk.watch_raft();
    loop {
        let terms = raft.borrow_and_update().terms_started;
        if desk.raft_now().status.role == Role::Leader {
            check(&proposer, &cluster, source.as_ref()).await;
        }
        tokio::select! {
            () = desk.until_stopped() => return,
            _ = raft.wait_for(|now| now.terms_started != terms) => {}
            () = tokio::time::sleep(interval) => {}
        }
    }
}

async fn check(proposer: &Proposer, cluster: &ClusterHandle, source: &dyn VersionSource) {
    let mut versions = Vec::new();
    for member in cluster.members() {
        versions.push(match member.id == cluster.local_id() {
            true => Version::parse(CLUSTER_VERSION),
            false => source.server_version(&member).await,
        });
    }
    // Before the first member is applied there is nothing to agree about.
    let Some(version) = decide(cluster.version(), &versions).filter(|_| !versions.is_empty()) else { return };
    let set = ClusterVersionSetRequest { ver: version.to_string() };
    let request = InternalRaftRequest { cluster_version_set: Some(set), ..InternalRaftRequest::default() };
    match proposer.propose(request).await {
        Ok(_) => tracing::info!(%version, "set the cluster version"),
        Err(answer) => tracing::warn!(%version, %answer, "cannot set the cluster version yet"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_lowest_line_of_all_members_is_agreed_on_and_only_grows() {
        let check = |agreed: Option<&str>, versions: &[&str], expected: Option<&str>| {
            let parse = |text: &str| Version::parse(text);
            let versions: Vec<_> = versions.iter().map(|text| parse(text)).collect();
            let decided = decide(agreed.and_then(parse), &versions);
            assert_eq!(decided, expected.and_then(parse), "{agreed:?} {versions:?}");
        };
        check(None, &["3.7.1", "3.7.0", "3.7.1"], Some("3.7.0"));
        check(None, &["3.7.1", "3.5.9"], Some("3.5.0"));
        check(None, &["3.7.1", "unknown"], Some("3.0.0"));
        check(Some("3.0.0"), &["3.7.1", "unknown"], None);
        check(Some("3.0.0"), &["3.7.1", "3.7.2"], Some("3.7.0"));
        check(Some("3.7.0"), &["3.7.1", "3.7.2"], None);
        check(Some("3.7.0"), &["3.6.1", "3.7.2"], None);
        assert_eq!(Version::parse(CLUSTER_VERSION).map(Version::line), Version::parse(CLUSTER_VERSION));
    }
}

//! What everybody but apply sees of the membership: a copy, swapped after each entry that changed it.

use std::sync::Arc;

use arc_swap::ArcSwap;

use crate::common::ids::ClusterId;
use crate::common::ids::MemberId;
use crate::common::version::Version;
use crate::server::cluster::member::Member;
use crate::server::cluster::membership::Membership;

/// The membership at one moment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ClusterView {
    /// In id order.
    pub members: Vec<Member>,
    /// Ids that may never come back, ascending.
    pub removed: Vec<MemberId>,
    pub version: Option<Version>,
    /// Target version while a downgrade is under way.
    pub downgrade: Option<String>,
}

/// Reads the membership from any thread.
#[derive(Clone, Debug)]
pub struct ClusterHandle {
    cluster: ClusterId,
    local: MemberId,
    view: Arc<ArcSwap<ClusterView>>,
}

impl ClusterHandle {
    pub fn new(cluster: ClusterId, local: MemberId) -> ClusterHandle {
        ClusterHandle { cluster, local, view: Arc::new(ArcSwap::from_pointee(ClusterView::default())) }
    }

    /// Shows a new state. Called by apply before anyone is told of the change.
    pub fn publish(&self, membership: &Membership) {
        self.view.store(Arc::new(ClusterView {
            members: membership.members().cloned().collect(),
            removed: membership.removed().collect(),
            version: membership.version(),
            downgrade: membership.downgrade().map(str::to_owned),
        }));
    }

    pub fn view(&self) -> Arc<ClusterView> {
        self.view.load_full()
    }

    pub fn cluster_id(&self) -> ClusterId {
        self.cluster
    }

    /// This member's id, whether or not the log knows it yet.
    pub fn local_id(&self) -> MemberId {
        self.local
    }

    /// Members in id order.
    pub fn members(&self) -> Vec<Member> {
        self.view.load().members.clone()
    }

    pub fn member(&self, id: MemberId) -> Option<Member> {
        let view = self.view.load();
        view.members.binary_search_by_key(&id, |member| member.id).ok().map(|at| view.members[at].clone())
    }

    /// This member; `None` before its entry is applied and after its removal.
    pub fn local(&self) -> Option<Member> {
        self.member(self.local)
    }

    pub fn is_learner(&self) -> bool {
        // Asked for every request: nothing is copied.
        self.view.load().members.iter().any(|member| member.id == self.local && member.is_learner)
    }

    pub fn is_removed(&self, id: MemberId) -> bool {
        self.view.load().removed.binary_search(&id).is_ok()
    }

    /// The agreed cluster version; `None` until the first leader decided.
    pub fn version(&self) -> Option<Version> {
        self.view.load().version
    }

    /// Ids of the voters, ascending.
    pub fn voters(&self) -> Vec<MemberId> {
        let view = self.view.load();
        view.members.iter().filter(|member| !member.is_learner).map(|member| member.id).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::server::cluster::membership::Change;

    #[test]
    fn a_published_change_is_seen_by_every_clone() {
        let handle = ClusterHandle::new(ClusterId(1), MemberId(7));
        let reader = handle.clone();
        assert_eq!(reader.local(), None);
        let mut membership = Membership::new(1);
        for id in [7, 3, 5] {
            let member =
                Member { id: MemberId(id), is_learner: id == 7, peer_urls: vec![id.to_string()], ..Member::default() };
            membership.change(Change::Add(member)).expect("a fresh member");
        }
        membership.change(Change::Remove(MemberId(3))).expect("a member");
        handle.publish(&membership);
        assert!(reader.is_learner());
        assert!(reader.is_removed(MemberId(3)));
        assert_eq!(reader.members().len(), 2);
        assert_eq!(reader.voters(), [MemberId(5)]);
        assert_eq!(reader.member(MemberId(3)), None);
    }
}

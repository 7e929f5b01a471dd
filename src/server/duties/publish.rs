//! Publishes this member: its name and client addresses, until the cluster has them.
//!
//! The client port answers only afterwards, so that whoever reaches a member finds it in the member list (server.md
//! 0.1).

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;

use crate::common::answer::Answer;
use crate::common::ids::MemberId;
use crate::proto::membershippb::Attributes;
use crate::proto::membershippb::ClusterMemberAttrSetRequest;
use crate::proto::raftinternalpb::InternalRaftRequest;
use crate::server::propose::Proposer;
use crate::server::waiters::Desk;

/// Pause after an attempt that failed at once. Attempts without a leader take RT each by themselves.
const RETRY_PAUSE: Duration = Duration::from_millis(100);

/// Tells whether this member has published itself. Clones tell the same.
#[derive(Clone, Debug)]
pub struct PublishGate {
    published: watch::Receiver<bool>,
}

impl PublishGate {
    /// Resolves once the member has published itself; never if it stops before.
    pub async fn published(&self) {
        if self.published.clone().wait_for(|published| *published).await.is_err() {
            std::future::pending::<()>().await;
        }
    }

    pub fn is_published(&self) -> bool {
        *self.published.borrow()
    }
}

/// The task that publishes.
pub struct Publisher {
    proposer: Proposer,
    desk: Arc<Desk>,
    member: MemberId,
    name: String,
    client_urls: Vec<String>,
    published: watch::Sender<bool>,
}

impl Publisher {
    /// For the member of this name and `--advertise-client-urls`; the gate opens when `run` succeeded.
    pub fn new(
        proposer: Proposer,
        desk: Arc<Desk>,
        member: MemberId,
        name: String,
        client_urls: Vec<String>,
    ) -> (Publisher, PublishGate) {
        let (published, receiver) = watch::channel(false);
        (Publisher { proposer, desk, member, name, client_urls, published }, PublishGate { published: receiver })
    }

    /// Proposes the attributes until they are applied here, or the member stops.
    pub async fn run(self) {
        loop {
            let member_attributes = Some(Attributes { name: self.name.clone(), client_urls: self.client_urls.clone() });
            let set = ClusterMemberAttrSetRequest { member_id: self.member.0, member_attributes };
            let request = InternalRaftRequest { cluster_member_attr_set: Some(set), ..InternalRaftRequest::default() };
            match self.proposer.propose(request).await {
                Ok(_) => break,
                Err(Answer::Stopped) => return,
                Err(answer) => tracing::warn!(member = %self.member, %answer, "cannot publish this member yet"),
            }
            tokio::select! {
                () = self.desk.until_stopped() => return,
                () = tokio::time::sleep(RETRY_PAUSE) => {}
            }
        }
        tracing::info!(member = %self.member, name = self.name, "published this member");
        self.published.send_replace(true);
        // The gate stays open for as long as the member runs.
        self.desk.until_stopped().await;
    }
}

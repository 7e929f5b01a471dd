//! Promotions: carried out here if this member leads, else passed on to the leader's peer port as etcd's members do.

use std::sync::Arc;
use std::time::Duration;
use std::time::Instant;

use prometheus::IntCounter;
use prometheus::IntCounterVec;
use prometheus::Opts;
use prometheus::Registry;

use crate::common::answer::Answer;
use crate::common::ids::MemberId;
use crate::server::cluster::handle::ClusterHandle;
use crate::server::cluster::member::Member;
use crate::server::cluster::member::members_from_json;
use crate::server::peer::dialer::Dialer;
use crate::server::peer::fetch::ask_promotion;
use crate::server::reconfigure::Reconfigurer;
use crate::server::waiters::Desk;

/// Pause before the leader is asked again, whoever that is then.
const RETRY_PAUSE: Duration = Duration::from_millis(50);

/// Finds the leader and asks it.
pub struct Promotions {
    pub reconfigurer: Arc<Reconfigurer>,
    pub desk: Arc<Desk>,
    pub cluster: ClusterHandle,
    pub dialer: Dialer,
    /// RT: 5 s and two election timeouts.
    pub request_timeout: Duration,
    pub metrics: PromotionMetrics,
}

impl Promotions {
    /// Promotes a learner, wherever the leader is: all members afterwards.
    pub async fn promote(&self, id: MemberId) -> Result<Vec<Member>, Answer> {
        let done = self.promote_here(id).await;
        if done != Err(Answer::NotLeader) {
            return done;
        }
        let deadline = Instant::now() + self.request_timeout;
        loop {
            let leader = self.leader(deadline).await?;
            if leader.id == self.cluster.local_id() {
                match self.promote_here(id).await {
                    Err(Answer::NotLeader) => {}
                    done => return done,
                }
            } else if let Some(done) = self.ask(&leader, id, deadline).await {
                return done;
            }
            if Instant::now() + RETRY_PAUSE > deadline {
                return Err(Answer::Timeout);
            }
            tokio::select! {
                () = tokio::time::sleep(RETRY_PAUSE) => {}
                () = self.desk.until_stopped() => return Err(Answer::Stopped),
            }
        }
    }

    /// Promotes a learner if this member leads.
    pub async fn promote_here(&self, id: MemberId) -> Result<Vec<Member>, Answer> {
        let done = self.reconfigurer.promote_here(id).await;
        self.metrics.count(&done);
        done
    }

    /// What the leader says for good; `None` if it, or another one, is to be asked again.
    async fn ask(&self, leader: &Member, id: MemberId, deadline: Instant) -> Option<Result<Vec<Member>, Answer>> {
        for url in &leader.peer_urls {
            let limit = deadline.saturating_duration_since(Instant::now());
            match ask_promotion(&self.dialer, url, id, limit).await {
                Ok(Ok(json)) => match members_from_json(&json) {
                    Some(members) => return Some(Ok(members)),
                    None => tracing::warn!(url, "the leader's answer to a promotion cannot be read"),
                },
                Ok(Err(answer)) => return Some(Err(answer)),
                Err(error) => tracing::debug!(url, %error, "cannot ask the leader for a promotion yet"),
            }
        }
        None
    }

    /// Waits until a leader is known whose addresses are, too: `NoLeader` at the deadline.
    async fn leader(&self, deadline: Instant) -> Result<Member, Answer> {
        let mut raft = self.desk.watch_raft();
        let known = async {
            loop {
                let leader = raft.borrow_and_update().status.leader;
                if let Some(member) = leader.and_then(|leader| self.cluster.member(leader)) {
                    return member;
                }
                // A leader that is not applied here yet has no addresses.
                let _ = tokio::time::timeout(RETRY_PAUSE, raft.changed()).await;
            }
        };
        tokio::select! {
            leader = known => Ok(leader),
            () = tokio::time::sleep_until(deadline.into()) => Err(Answer::NoLeader),
            () = self.desk.until_stopped() => Err(Answer::Stopped),
        }
    }
}

/// What promoting counts, by etcd's names.
#[derive(Clone)]
pub struct PromotionMetrics {
    succeeded: IntCounter,
    failed: IntCounterVec,
}

impl PromotionMetrics {
    pub fn register(registry: &Registry) -> PromotionMetrics {
        let succeeded = IntCounter::new(
            "etcd_server_learner_promote_successes",
            "The total number of successful learner promotions while this member is leader.",
        );
        let failed = Opts::new(
            "etcd_server_learner_promote_failures",
            "The total number of failed learner promotions (likely learner not ready) while this member is leader.",
        );
        let metrics = PromotionMetrics {
            succeeded: succeeded.expect("a valid name"),
            failed: IntCounterVec::new(failed, &["Reason"]).expect("a valid name"),
        };
        registry.register(Box::new(metrics.succeeded.clone())).expect("registered once");
        registry.register(Box::new(metrics.failed.clone())).expect("registered once");
        metrics
    }

    fn count(&self, done: &Result<Vec<Member>, Answer>) {
        match done {
            Ok(_) => self.succeeded.inc(),
            Err(Answer::NotLeader) => {}
            Err(answer) => self.failed.with_label_values(&[&reason(answer)]).inc(),
        }
    }
}

/// etcd counts by the error as it is inside a member.
fn reason(answer: &Answer) -> String {
    match answer {
        Answer::MemberNotFound => "membership: ID not found".to_owned(),
        Answer::MemberNotLearner => "membership: can only promote a learner member".to_owned(),
        other => other.to_string(),
    }
}

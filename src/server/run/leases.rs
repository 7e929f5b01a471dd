//! Questions about leases that only the leader can answer: asked here if this member leads, else over its peer port.

use std::sync::Arc;
use std::time::Duration;
use std::time::Instant;

use crate::common::answer::Answer;
use crate::common::ids::MemberId;
use crate::proto::etcdserverpb::LeaseTimeToLiveResponse;
use crate::server::cluster::handle::ClusterHandle;
use crate::server::duties::expiry::Keeper;
use crate::server::peer::lease_client::LeaseClient;
use crate::server::peer::lease_client::LeaseError;
use crate::server::waiters::Desk;

/// Pause before the leader is asked again, whoever that is then.
const RETRY_PAUSE: Duration = Duration::from_millis(50);

/// Finds the leader and asks it.
pub struct LeaseRouter {
    pub keeper: Keeper,
    pub client: LeaseClient,
    pub desk: Arc<Desk>,
    pub cluster: ClusterHandle,
    /// RT: 5 s and two election timeouts.
    pub request_timeout: Duration,
}

/// Who is to be asked.
enum Leader {
    Local,
    Remote(MemberId, Vec<String>),
}

impl LeaseRouter {
    /// Renews a lease: its time to live in seconds. `NoLeader` when there is none within RT.
    pub async fn keep_alive(&self, id: i64) -> Result<i64, Answer> {
        let deadline = Instant::now() + self.request_timeout;
        loop {
            match self.leader(deadline).await? {
                Leader::Local => match self.keeper.renew(id).await {
                    Err(Answer::NotLeader) => {}
                    done => return done,
                },
                Leader::Remote(leader, urls) => {
                    let limit = deadline.saturating_duration_since(Instant::now());
                    for url in urls {
                        let asked = self.while_leading(leader, self.client.keep_alive(&url, id, limit)).await;
                        if let Some(done) = asked.and_then(|asked| final_answer(&url, asked)) {
                            return done;
                        }
                    }
                }
            }
            self.pause(deadline).await?;
        }
    }

    /// What the leader knows of a lease; `LeaseNotFound` if it does not exist.
    pub async fn time_to_live(&self, id: i64, keys: bool) -> Result<LeaseTimeToLiveResponse, Answer> {
        let deadline = Instant::now() + self.request_timeout;
        loop {
            match self.leader(deadline).await? {
                Leader::Local => match self.keeper.time_to_live(id, keys).await {
                    Err(Answer::NotLeader) => {}
                    done => return done,
                },
                Leader::Remote(leader, urls) => {
                    let limit = deadline.saturating_duration_since(Instant::now());
                    for url in urls {
                        let asked = self.while_leading(leader, self.client.time_to_live(&url, id, keys, limit)).await;
                        if let Some(done) = asked.and_then(|asked| final_answer(&url, asked)) {
                            return done;
                        }
                    }
                }
            }
            self.pause(deadline).await?;
        }
    }

    /// Waits for a leader until the deadline.
    async fn leader(&self, deadline: Instant) -> Result<Leader, Answer> {
        let known = self.desk.raft_now().status.leader;
        let leader = match known {
            Some(leader) => leader,
            None => self.wait_leader(deadline).await?,
        };
        if leader == self.cluster.local_id() {
            return Ok(Leader::Local);
        }
        // A leader that this member has not applied yet has no addresses here: asked again after a pause.
        let member = self.cluster.view().members.iter().find(|member| member.id == leader).cloned();
        Ok(Leader::Remote(leader, member.map(|member| member.peer_urls).unwrap_or_default()))
    }

    async fn wait_leader(&self, deadline: Instant) -> Result<MemberId, Answer> {
        let mut raft = self.desk.watch_raft();
        tokio::select! {
            now = raft.wait_for(|now| now.status.leader.is_some()) => {
                now.ok().and_then(|now| now.status.leader).ok_or(Answer::Stopped)
            }
            () = tokio::time::sleep_until(deadline.into()) => Err(Answer::NoLeader),
            () = self.desk.until_stopped() => Err(Answer::Stopped),
        }
    }

    /// What `leader` answers; `None` as soon as it leads no longer: one that stands still takes connections and says
    /// nothing, and meanwhile the lease runs out at the next.
    async fn while_leading<T>(&self, leader: MemberId, asked: impl Future<Output = T>) -> Option<T> {
        let mut raft = self.desk.watch_raft();
        tokio::select! {
            answer = asked => Some(answer),
            _ = raft.wait_for(|now| now.status.leader.is_some_and(|known| known != leader)) => None,
            () = self.desk.until_stopped() => None,
        }
    }

    async fn pause(&self, deadline: Instant) -> Result<(), Answer> {
        if Instant::now() + RETRY_PAUSE > deadline {
            return Err(Answer::Timeout);
        }
        tokio::select! {
            () = tokio::time::sleep(RETRY_PAUSE) => Ok(()),
            () = self.desk.until_stopped() => Err(Answer::Stopped),
        }
    }
}

/// What a leader said for good; `None` if it, or another one, is to be asked again.
fn final_answer<T>(url: &str, asked: Result<T, LeaseError>) -> Option<Result<T, Answer>> {
    match asked {
        Ok(answer) => Some(Ok(answer)),
        Err(LeaseError::NotFound) => Some(Err(Answer::LeaseNotFound)),
        Err(error) => {
            tracing::debug!(url, %error, "cannot ask the leader about a lease yet");
            None
        }
    }
}

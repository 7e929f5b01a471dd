//! The only way to write: an id, a size check, a place in the log, and the outcome.

use std::sync::Arc;
use std::time::Duration;
use std::time::Instant;

use bytes::Bytes;
use prometheus::IntCounter;
use prometheus::IntGauge;
use prost::Message;
use prost::encoding::message;

use crate::common::answer::Answer;
use crate::common::ids::MemberId;
use crate::common::ids::RequestIds;
use crate::proto::etcdserverpb::AlarmRequest;
use crate::proto::etcdserverpb::AlarmType;
use crate::proto::etcdserverpb::PutRequest;
use crate::proto::etcdserverpb::alarm_request::AlarmAction;
use crate::proto::raft_numbers::CONF_ADD_LEARNER;
use crate::proto::raft_numbers::CONF_ADD_NODE;
use crate::proto::raft_numbers::CONF_REMOVE_NODE;
use crate::proto::raft_numbers::CONF_UPDATE_NODE;
use crate::proto::raftinternalpb::InternalRaftRequest;
use crate::proto::raftinternalpb::RequestHeader;
use crate::proto::raftpb::ConfChange;
use crate::server::apply::decode::HEADER_TAG;
use crate::server::apply::decode::PUT_TAG;
use crate::server::apply::outcome::Reply;
use crate::server::apply::ports::RaftReports;
use crate::server::apply::published::Published;
use crate::server::apply::queue::ApplyHandle;
use crate::server::apply::quota::put_cost;
use crate::server::apply::quota::request_cost;
use crate::server::cluster::member::Member;
use crate::server::cluster::membership::Change;
use crate::server::company::Company;
use crate::server::raft::handle::Busy;
use crate::server::raft::handle::RaftHandle;
use crate::server::raft::state_machine::Refusal;
use crate::server::waiters::Desk;
use crate::server::waiters::Notice;
use crate::server::waiters::Waiting;

/// Entries committed and not yet applied beyond which new proposals are refused (server.md 12).
pub const UNAPPLIED_ENTRIES_MAX: u64 = 5000;

/// Bytes committed and not yet applied beyond which new proposals are refused (DESIGN.md 2).
pub const UNAPPLIED_BYTES_MAX: usize = 64 << 20;

/// Pause before a proposal that found no leader is tried again; longer if there is still none.
const NO_LEADER_PAUSE: Duration = Duration::from_millis(10);

/// What proposals and reads need of raft. Never waits.
pub trait RaftPort: Send + Sync {
    fn propose(&self, request_id: u64, data: Bytes) -> Result<(), Busy>;
    /// The same for a caller who is alone: may be done before this returns, at the price of waiting for the disk.
    fn propose_here(&self, request_id: u64, data: Bytes) -> Result<(), Busy> {
        self.propose(request_id, data)
    }
    /// Appended by this member as the leader of `term`, or refused.
    fn propose_in_term(&self, term: u64, request_id: u64, data: Bytes) -> Result<(), Busy>;
    fn propose_conf_change(&self, request_id: u64, change: ConfChange) -> Result<(), Busy>;
    fn read_index(&self, context: Bytes);
    /// This member leads, has committed in its term and is the only voter.
    fn lone_leader(&self) -> bool;
}

impl RaftPort for RaftHandle {
    fn propose(&self, request_id: u64, data: Bytes) -> Result<(), Busy> {
        RaftHandle::propose(self, request_id, data)
    }

    fn propose_here(&self, request_id: u64, data: Bytes) -> Result<(), Busy> {
        RaftHandle::propose_here(self, request_id, data)
    }

    fn propose_in_term(&self, term: u64, request_id: u64, data: Bytes) -> Result<(), Busy> {
        RaftHandle::propose_in_term(self, term, request_id, data)
    }

    fn propose_conf_change(&self, request_id: u64, change: ConfChange) -> Result<(), Busy> {
        RaftHandle::propose_conf_change(self, request_id, change)
    }

    fn read_index(&self, context: Bytes) {
        RaftHandle::read_index(self, context);
    }

    fn lone_leader(&self) -> bool {
        RaftHandle::lone_leader(self)
    }
}

// Apply knows raft by this trait only.
impl RaftReports for RaftHandle {
    fn applied(&self, index: u64) {
        RaftHandle::applied(self, index);
    }

    fn conf_change_applied(&self, index: u64, change: Option<ConfChange>) {
        RaftHandle::conf_change_applied(self, index, change);
    }

    fn snapshot_installed(&self, index: u64) {
        RaftHandle::snapshot_installed(self, index);
    }
}

/// Since when peers are connected.
pub trait Connectivity: Send + Sync {
    /// `None` if this peer is not connected now.
    fn active_since(&self, member: MemberId) -> Option<Instant>;
}

/// Limits of proposals (server.md 12).
#[derive(Clone, Copy, Debug)]
pub struct ProposeLimits {
    /// `--max-request-bytes`: bytes of one log entry.
    pub request_bytes_max: usize,
    /// RT: 5 s and two election timeouts.
    pub request_timeout: Duration,
    pub election_timeout: Duration,
}

/// Proposes requests and waits for what became of them. Clones are the same proposer.
#[derive(Clone)]
pub struct Proposer {
    inner: Arc<Inner>,
}

struct Inner {
    limits: ProposeLimits,
    ids: Arc<RequestIds>,
    raft: Arc<dyn RaftPort>,
    desk: Arc<Desk>,
    queue: ApplyHandle,
    company: Arc<Company>,
    published: Published,
    connectivity: Arc<dyn Connectivity>,
    /// One task raises NOSPACE, the others wait for it.
    raising: tokio::sync::Mutex<()>,
    metrics: ProposeMetrics,
}

/// A request as it goes into the log.
struct Encoded {
    id: u64,
    data: Bytes,
}

/// What a proposer is made of.
pub struct ProposerParts {
    pub limits: ProposeLimits,
    pub ids: Arc<RequestIds>,
    pub raft: Arc<dyn RaftPort>,
    pub desk: Arc<Desk>,
    pub queue: ApplyHandle,
    /// Says whether a proposal is the only one.
    pub company: Arc<Company>,
    pub published: Published,
    pub connectivity: Arc<dyn Connectivity>,
    pub metrics: ProposeMetrics,
}

impl Proposer {
    pub fn new(parts: ProposerParts) -> Proposer {
        let ProposerParts { limits, ids, raft, desk, queue, company, published, connectivity, metrics } = parts;
        let raising = tokio::sync::Mutex::new(());
        let inner = Inner { limits, ids, raft, desk, queue, company, published, connectivity, raising, metrics };
        Proposer { inner: Arc::new(inner) }
    }

    /// Writes a request to the log and waits until it is applied here. An error from `Timeout` on means that the
    /// outcome is unknown: the entry may still be applied.
    pub fn propose(&self, request: InternalRaftRequest) -> impl Future<Output = Result<Reply, Answer>> + Send {
        // Encoded before anything waits: a request has room for every kind, and its bytes are what is carried along.
        let cost_bytes = request_cost(&request);
        self.propose_entry(self.encode(request), cost_bytes)
    }

    /// As `propose`, for the request that there is most of.
    pub fn propose_put(&self, put: &PutRequest) -> impl Future<Output = Result<Reply, Answer>> + Send {
        self.propose_entry(self.encode_put(put), put_cost(put))
    }

    async fn propose_entry(&self, entry: Encoded, cost_bytes: u64) -> Result<Reply, Answer> {
        self.check_space(cost_bytes).await?;
        let result = self.submit(entry).await;
        // Applied beyond the quota: the alarm is up before the caller hears of it. Where one is up already, of
        // whichever member, that was the reason (server.md 6.4).
        if result == Err(Answer::NoSpace) && !self.inner.published.alarms.any(AlarmType::Nospace) {
            Box::pin(self.raise_no_space()).await;
        }
        result
    }

    /// Writes what this member decided as the leader of `term`, or `NotLeader` once it is not: the entry is never handed
    /// to another leader, who may know better. For decisions by the clock (lease expiry); such entries cost nothing.
    pub fn propose_in_term(
        &self,
        term: u64,
        request: InternalRaftRequest,
    ) -> impl Future<Output = Result<Reply, Answer>> + Send + use<> {
        let Encoded { id, data } = self.encode(request);
        let proposer = self.clone();
        async move {
            proposer.admit()?;
            let inner = &proposer.inner;
            let deadline = Instant::now() + inner.limits.request_timeout;
            proposer.enter(id, Some(deadline), || inner.raft.propose_in_term(term, id, data.clone())).await
        }
    }

    /// The quota at the door: raises NOSPACE and refuses when `cost_bytes` do not fit. The API calls it before it
    /// looks at the request (server.md 6.4).
    pub async fn check_space(&self, cost_bytes: u64) -> Result<(), Answer> {
        if self.inner.published.space.allows(cost_bytes) {
            return Ok(());
        }
        // What is rare is boxed here and below: every proposal would carry the room for it.
        Box::pin(self.raise_no_space()).await;
        Err(Answer::NoSpace)
    }

    /// Raises NOSPACE for this member unless it is up already.
    pub async fn raise_no_space(&self) {
        let member_id = self.inner.published.cluster.local_id().0;
        let up = || self.inner.published.alarms.has(member_id, AlarmType::Nospace);
        if up() {
            return;
        }
        let _raising = self.inner.raising.lock().await;
        if up() {
            return;
        }
        let alarm = AlarmRequest { action: AlarmAction::Activate as i32, member_id, alarm: AlarmType::Nospace as i32 };
        tracing::warn!(
            used_bytes = self.inner.published.space.used_bytes(),
            "database space exceeded, raising an alarm"
        );
        let request = InternalRaftRequest { alarm: Some(alarm), ..InternalRaftRequest::default() };
        if let Err(answer) = self.submit(self.encode(request)).await {
            tracing::warn!(%answer, "cannot raise the alarm");
        }
    }

    /// Proposes a configuration change and waits for it with the caller's patience only, as etcd does: all members
    /// after the change.
    ///
    /// A leader drops a change silently while another one is under way, or goes away with it (R19). So it is proposed
    /// again after a while, by the same id: ids of members are never used twice, so apply rejects all but the first.
    /// Not an update, which could undo a later one.
    pub async fn configure(&self, change: Change) -> Result<Vec<Member>, Answer> {
        let may_repeat = !matches!(change, Change::Update(..));
        let id = self.inner.ids.next();
        let change = conf_change(id, &change);
        let propose = || self.inner.raft.propose_conf_change(id, change.clone()).map_err(refused_at_the_door);
        let _pending = Pending::new(&self.inner.metrics);
        let result = loop {
            let mut waiting = self.place(id)?;
            propose()?;
            let notice = loop {
                let repeat_after = if may_repeat { 2 * self.inner.limits.election_timeout } else { Duration::MAX };
                match tokio::time::timeout(repeat_after, waiting.notice()).await {
                    Ok(notice) => break notice,
                    Err(_) => propose()?,
                }
            };
            match notice {
                Notice::Answered(result) => break result?,
                Notice::Refused(Refusal::NoLeader) => Box::pin(self.until_leader(None)).await?,
                // It is in no log: another change or a hand-over is under way.
                Notice::Refused(Refusal::Dropped | Refusal::TermOver) => tokio::time::sleep(NO_LEADER_PAUSE).await,
                Notice::Lost => return Err(Answer::Timeout),
            }
        };
        match result {
            Reply::Members(members) => Ok(members),
            other => Err(Answer::Other(format!("a configuration change was answered with {other:?}"))),
        }
    }

    /// Waits until every compaction ordered before the call has deleted its records here. They are durable after the
    /// flusher's next write.
    pub async fn compacted_physically(&self) -> Result<(), Answer> {
        let mut progress = self.inner.desk.watch_compaction();
        let target = progress.borrow().scheduled;
        tokio::select! {
            _ = progress.wait_for(|now| now.finished >= target) => Ok(()),
            () = self.inner.desk.until_stopped() => Err(Answer::Stopped),
        }
    }

    /// Ids for requests and leases.
    pub fn ids(&self) -> &RequestIds {
        &self.inner.ids
    }

    /// RT of this member.
    pub fn request_timeout(&self) -> Duration {
        self.inner.limits.request_timeout
    }

    /// The log entry of a request, with a new id.
    fn encode(&self, mut request: InternalRaftRequest) -> Encoded {
        let id = self.inner.ids.next();
        request.header.get_or_insert_default().id = id;
        // One exact buffer of its own: log, WAL, peers and our own apply share it, and nothing of the caller's socket
        // buffer is retained.
        let mut data = Vec::with_capacity(request.encoded_len());
        request.encode(&mut data).expect("a Vec grows");
        Encoded { id, data: Bytes::from(data) }
    }

    /// The same for a put, without the detour over a struct with a field for every kind of request (2 KB).
    fn encode_put(&self, put: &PutRequest) -> Encoded {
        let id = self.inner.ids.next();
        let header = RequestHeader { id, ..RequestHeader::default() };
        let fields = message::encoded_len(PUT_TAG, put) + message::encoded_len(HEADER_TAG, &header);
        let mut data = Vec::with_capacity(fields);
        message::encode(PUT_TAG, put, &mut data);
        message::encode(HEADER_TAG, &header, &mut data);
        Encoded { id, data: Bytes::from(data) }
    }

    async fn submit(&self, Encoded { id, data }: Encoded) -> Result<Reply, Answer> {
        self.admit()?;
        if data.len() > self.inner.limits.request_bytes_max {
            return Err(Answer::RequestTooLarge);
        }
        let deadline = Instant::now() + self.inner.limits.request_timeout;
        let company = &self.inner.company;
        let propose = || match company.is_alone() {
            true => {
                company.writes_alone();
                self.inner.raft.propose_here(id, data.clone())
            }
            false => self.inner.raft.propose(id, data.clone()),
        };
        self.enter(id, Some(deadline), propose).await
    }

    /// Refuses when too much is committed and not yet applied.
    fn admit(&self) -> Result<(), Answer> {
        if self.inner.desk.is_stopped() {
            return Err(Answer::Stopped);
        }
        let committed = self.inner.desk.raft_now().status.commit_index;
        let entries = committed.saturating_sub(self.inner.desk.applied_index());
        match entries > UNAPPLIED_ENTRIES_MAX || self.inner.queue.unapplied_bytes() > UNAPPLIED_BYTES_MAX {
            true => Err(Answer::TooManyRequests),
            false => Ok(()),
        }
    }

    /// Hands a proposal to raft, again and again while there is no leader, and waits for its outcome.
    async fn enter(
        &self,
        id: u64,
        deadline: Option<Instant>,
        propose: impl Fn() -> Result<(), Busy>,
    ) -> Result<Reply, Answer> {
        let inner = &self.inner;
        let start = Instant::now();
        let _pending = Pending::new(&inner.metrics);
        loop {
            let mut waiting = self.place(id)?;
            propose().map_err(refused_at_the_door)?;
            let notice = match deadline {
                Some(deadline) => tokio::time::timeout_at(deadline.into(), waiting.notice()).await,
                None => Ok(waiting.notice().await),
            };
            let failed = |answer: Answer| {
                inner.metrics.failed.inc();
                Err(answer)
            };
            match notice {
                Ok(Notice::Answered(result)) => return result,
                Ok(Notice::Lost) => return failed(Answer::Timeout),
                Ok(Notice::Refused(Refusal::TermOver)) => return Err(Answer::NotLeader),
                Ok(Notice::Refused(Refusal::Dropped)) => return failed(Answer::ProposalDropped),
                Ok(Notice::Refused(Refusal::NoLeader)) => match Box::pin(self.until_leader(deadline)).await {
                    Ok(()) => {}
                    Err(answer) => return failed(answer),
                },
                Err(_) => return failed(self.timed_out(start)),
            }
        }
    }

    /// A place among those who wait.
    fn place(&self, id: u64) -> Result<Waiting, Answer> {
        let waiting = self.inner.desk.waiters.register(id).map_err(|_| Answer::TooManyRequests)?;
        // Asked after the registration: a stop in between has answered it, one before is seen here.
        if self.inner.desk.is_stopped() { Err(Answer::Stopped) } else { Ok(waiting) }
    }

    /// Waits for a leader: `ContextDeadlineExceeded` at the deadline (server.md 2.2).
    async fn until_leader(&self, deadline: Option<Instant>) -> Result<(), Answer> {
        let mut raft = self.inner.desk.watch_raft();
        let leader = async {
            tokio::time::sleep(NO_LEADER_PAUSE).await;
            // The desk keeps the sender for as long as we do.
            let _ = raft.wait_for(|now| now.status.leader.is_some()).await;
        };
        let past_deadline = async {
            match deadline {
                Some(deadline) => tokio::time::sleep_until(deadline.into()).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = leader => Ok(()),
            () = past_deadline => Err(Answer::ContextDeadlineExceeded),
            () = self.inner.desk.until_stopped() => Err(Answer::Stopped),
        }
    }

    /// Which timeout it was, for a proposal handed in at `start` (server.md 2.2).
    fn timed_out(&self, start: Instant) -> Answer {
        let inner = &self.inner;
        let now = inner.desk.raft_now();
        let window = 2 * inner.limits.election_timeout;
        if now.leader_since.is_some_and(|elected| start < elected && start + window > elected) {
            return Answer::TimeoutLeaderFailure;
        }
        let local = inner.published.cluster.local_id();
        let connected = |member: MemberId| inner.connectivity.active_since(member).is_some_and(|since| since < start);
        let connection_lost = match now.status.leader {
            None => false,
            Some(leader) if leader == local => {
                let voters = inner.published.cluster.voters();
                let reached = voters.iter().filter(|voter| **voter == local || connected(**voter)).count();
                reached < voters.len() / 2 + 1
            }
            Some(leader) => !connected(leader),
        };
        if connection_lost { Answer::TimeoutConnectionLost } else { Answer::Timeout }
    }
}

fn refused_at_the_door(busy: Busy) -> Answer {
    match busy {
        Busy::TooMany => Answer::TooManyRequests,
        Busy::Stopped => Answer::Stopped,
    }
}

/// A change as it is proposed: etcd's type and context (server.md 14.3).
pub fn conf_change(id: u64, change: &Change) -> ConfChange {
    let r#type = match change {
        Change::Add(member) if member.is_learner => CONF_ADD_LEARNER,
        Change::Add(_) | Change::Promote(_) => CONF_ADD_NODE,
        Change::Remove(_) => CONF_REMOVE_NODE,
        Change::Update(..) => CONF_UPDATE_NODE,
    };
    ConfChange { id, r#type, node_id: change.member().0, context: change.context() }
}

/// What proposing counts, by etcd's names.
#[derive(Clone)]
pub struct ProposeMetrics {
    pending: IntGauge,
    failed: IntCounter,
}

impl ProposeMetrics {
    pub fn register(registry: &prometheus::Registry) -> ProposeMetrics {
        let pending =
            IntGauge::new("etcd_server_proposals_pending", "The current number of pending proposals to commit.");
        let failed =
            IntCounter::new("etcd_server_proposals_failed_total", "The total number of failed proposals seen.");
        let metrics = ProposeMetrics { pending: pending.expect("a valid name"), failed: failed.expect("a valid name") };
        registry.register(Box::new(metrics.pending.clone())).expect("registered once");
        registry.register(Box::new(metrics.failed.clone())).expect("registered once");
        metrics
    }
}

/// Counts a proposal as pending until it is dropped, also when its caller leaves.
struct Pending<'a>(&'a IntGauge);

impl Pending<'_> {
    fn new(metrics: &ProposeMetrics) -> Pending<'_> {
        metrics.pending.inc();
        Pending(&metrics.pending)
    }
}

impl Drop for Pending<'_> {
    fn drop(&mut self) {
        self.0.dec();
    }
}

#[cfg(test)]
mod tests;

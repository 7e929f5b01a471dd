//! The only way to write: an id, a size check, a place in the log, and the outcome.

use std::sync::Arc;
use std::time::Duration;
use std::time::Instant;

use bytes::Bytes;
use prometheus::IntCounter;
use prometheus::IntGauge;
use prost::Message;

use crate::common::answer::Answer;
use crate::common::ids::MemberId;
use crate::common::ids::RequestIds;
use crate::proto::etcdserverpb::AlarmRequest;
use crate::proto::etcdserverpb::AlarmType;
use crate::proto::etcdserverpb::alarm_request::AlarmAction;
use crate::proto::raft_numbers::CONF_ADD_LEARNER;
use crate::proto::raft_numbers::CONF_ADD_NODE;
use crate::proto::raft_numbers::CONF_REMOVE_NODE;
use crate::proto::raft_numbers::CONF_UPDATE_NODE;
use crate::proto::raftinternalpb::InternalRaftRequest;
use crate::proto::raftpb::ConfChange;
use crate::server::apply::outcome::Reply;
use crate::server::apply::published::Published;
use crate::server::apply::queue::ApplyHandle;
use crate::server::apply::quota::request_cost;
use crate::server::cluster::member::Member;
use crate::server::cluster::membership::Change;
use crate::server::raft::state_machine::Refusal;
use crate::server::waiters::Desk;
use crate::server::waiters::Notice;

/// Entries committed and not yet applied beyond which new proposals are refused (server.md 12).
pub const UNAPPLIED_ENTRIES_MAX: u64 = 5000;

/// Bytes committed and not yet applied beyond which new proposals are refused (DESIGN.md 2).
pub const UNAPPLIED_BYTES_MAX: usize = 64 << 20;

/// Pause before a proposal that found no leader is tried again; longer if there is still none.
const NO_LEADER_PAUSE: Duration = Duration::from_millis(10);

/// What proposals and reads need of raft. Never waits.
pub trait RaftPort: Send + Sync {
    fn propose(&self, request_id: u64, data: Bytes) -> Result<(), Busy>;
    fn propose_conf_change(&self, request_id: u64, change: ConfChange) -> Result<(), Busy>;
    fn read_index(&self, context: Bytes);
    /// This member leads, has committed in its term and is the only voter.
    fn lone_leader(&self) -> bool;
}

/// The inbox of raft is full.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Busy;

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
    published: Published,
    connectivity: Arc<dyn Connectivity>,
    /// One task raises NOSPACE, the others wait for it.
    raising: tokio::sync::Mutex<()>,
    metrics: ProposeMetrics,
}

/// What a proposer is made of.
pub struct ProposerParts {
    pub limits: ProposeLimits,
    pub ids: Arc<RequestIds>,
    pub raft: Arc<dyn RaftPort>,
    pub desk: Arc<Desk>,
    pub queue: ApplyHandle,
    pub published: Published,
    pub connectivity: Arc<dyn Connectivity>,
    pub metrics: ProposeMetrics,
}

impl Proposer {
    pub fn new(parts: ProposerParts) -> Proposer {
        let ProposerParts { limits, ids, raft, desk, queue, published, connectivity, metrics } = parts;
        let raising = tokio::sync::Mutex::new(());
        let inner = Inner { limits, ids, raft, desk, queue, published, connectivity, raising, metrics };
        Proposer { inner: Arc::new(inner) }
    }

    /// Writes a request to the log and waits until it is applied here. An error from `Timeout` on means that the outcome is
    /// unknown: the entry may still be applied.
    pub async fn propose(&self, request: InternalRaftRequest) -> Result<Reply, Answer> {
        self.check_space(request_cost(&request)).await?;
        let result = self.submit(request).await;
        if result == Err(Answer::NoSpace) {
            // Applied beyond the quota: the alarm is up before the caller hears of it (server.md 6.4).
            self.raise_no_space().await;
        }
        result
    }

    /// The quota at the door: raises NOSPACE and refuses when `cost_bytes` do not fit. The API calls it before it looks at
    /// the request (server.md 6.4).
    pub async fn check_space(&self, cost_bytes: u64) -> Result<(), Answer> {
        if self.inner.published.space.allows(cost_bytes) {
            return Ok(());
        }
        self.raise_no_space().await;
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
        if let Err(answer) = self.submit(request).await {
            tracing::warn!(%answer, "cannot raise the alarm");
        }
    }

    /// Proposes a configuration change and waits for it with the caller's patience only, as etcd does: all members after
    /// the change.
    pub async fn configure(&self, change: Change) -> Result<Vec<Member>, Answer> {
        let r#type = match &change {
            Change::Add(member) if member.is_learner => CONF_ADD_LEARNER,
            Change::Add(_) | Change::Promote(_) => CONF_ADD_NODE,
            Change::Remove(_) => CONF_REMOVE_NODE,
            Change::Update(..) => CONF_UPDATE_NODE,
        };
        let id = self.inner.ids.next();
        let change = ConfChange { id, r#type, node_id: change.member().0, context: change.context() };
        let result = self.enter(id, None, || self.inner.raft.propose_conf_change(id, change.clone())).await?;
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

    async fn submit(&self, mut request: InternalRaftRequest) -> Result<Reply, Answer> {
        self.admit()?;
        let id = self.inner.ids.next();
        request.header.get_or_insert_default().id = id;
        // One exact buffer of its own: log, WAL, peers and our own apply share it, and nothing of the caller's socket
        // buffer is retained.
        let mut data = Vec::with_capacity(request.encoded_len());
        request.encode(&mut data).expect("a Vec grows");
        drop(request);
        if data.len() > self.inner.limits.request_bytes_max {
            return Err(Answer::RequestTooLarge);
        }
        let data = Bytes::from(data);
        let deadline = Instant::now() + self.inner.limits.request_timeout;
        self.enter(id, Some(deadline), || self.inner.raft.propose(id, data.clone())).await
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
            let mut waiting = inner.desk.waiters.register(id).map_err(|_| Answer::TooManyRequests)?;
            // Asked after the registration: a stop in between has answered it, one before is seen here.
            if inner.desk.is_stopped() {
                return Err(Answer::Stopped);
            }
            propose().map_err(|Busy| Answer::TooManyRequests)?;
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
                Ok(Notice::Refused(Refusal::Dropped)) => return failed(Answer::ProposalDropped),
                Ok(Notice::Refused(Refusal::NoLeader)) => match self.until_leader(deadline).await {
                    Ok(()) => {}
                    Err(answer) => return failed(answer),
                },
                Err(_) => return failed(self.timed_out(start)),
            }
        }
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
mod tests {
    use super::*;
    use std::collections::BTreeMap;
    use std::sync::Mutex;

    use crate::common::ids::ClusterId;
    use crate::proto::etcdserverpb::PutRequest;
    use crate::server::apply::alarm::Alarms;
    use crate::server::apply::alarm::AlarmsHandle;
    use crate::server::apply::outcome::Outcome;
    use crate::server::apply::ports::Listener;
    use crate::server::apply::quota::Space;
    use crate::server::apply::testing::empty_views;
    use crate::server::cluster::handle::ClusterHandle;
    use crate::server::cluster::membership::Membership;
    use crate::server::raft::state_machine::RaftStatus;
    use crate::server::raft::state_machine::StateMachine;
    use crate::server::waiters::DeskMetrics;

    /// What the fake raft does with a proposal.
    #[derive(Clone, Debug)]
    enum Plan {
        Answer(Result<Reply, Answer>),
        Refuse(Refusal),
        /// Refuses for want of a leader, who then turns up.
        Elect,
        Busy,
        Silence,
    }

    struct FakeRaft {
        desk: Arc<Desk>,
        alarms: AlarmsHandle,
        plans: Mutex<Vec<Plan>>,
        seen: Mutex<Vec<(u64, Bytes)>>,
    }

    impl RaftPort for FakeRaft {
        fn propose(&self, request_id: u64, data: Bytes) -> Result<(), Busy> {
            self.seen.lock().expect("no panic").push((request_id, data.clone()));
            let request = InternalRaftRequest::decode(data).expect("our own request");
            if let Some(alarm) = request.alarm {
                let mut alarms = Alarms::default();
                alarms.apply(&alarm);
                self.alarms.publish(&alarms);
            }
            let plan = match request.alarm {
                Some(_) => Plan::Answer(Ok(Reply::Done { revision: 1 })),
                None => self.plans.lock().expect("no panic").remove(0),
            };
            match plan {
                Plan::Answer(result) => self.desk.answered(vec![Outcome { request_id, result }]),
                Plan::Refuse(why) => self.desk.refused(request_id, why),
                Plan::Elect => {
                    self.desk.refused(request_id, Refusal::NoLeader);
                    self.desk.status_changed(leader(2));
                }
                Plan::Busy => return Err(Busy),
                Plan::Silence => {}
            }
            Ok(())
        }

        fn propose_conf_change(&self, request_id: u64, change: ConfChange) -> Result<(), Busy> {
            assert_eq!(change.id, request_id);
            let result = Ok(Reply::Members(vec![Member { id: MemberId(change.node_id), ..Member::default() }]));
            self.desk.answered(vec![Outcome { request_id, result }]);
            Ok(())
        }

        fn read_index(&self, _context: Bytes) {}

        fn lone_leader(&self) -> bool {
            false
        }
    }

    struct Connected(BTreeMap<MemberId, Instant>);

    impl Connectivity for Connected {
        fn active_since(&self, member: MemberId) -> Option<Instant> {
            self.0.get(&member).copied()
        }
    }

    struct Bench {
        proposer: Proposer,
        raft: Arc<FakeRaft>,
        desk: Arc<Desk>,
        queue: ApplyHandle,
    }

    const RT: Duration = Duration::from_millis(60);

    fn leader(id: u64) -> RaftStatus {
        RaftStatus { leader: Some(MemberId(id)), ..RaftStatus::default() }
    }

    fn bench(plans: &[Plan], quota: i64, connected: &[u64]) -> Bench {
        let ends_in_timeout = matches!(plans, [Plan::Silence | Plan::Refuse(Refusal::NoLeader)]);
        let registry = prometheus::Registry::new();
        let desk = Arc::new(Desk::new(0, DeskMetrics::register(&registry)));
        let alarms = AlarmsHandle::default();
        let (plans, seen) = (Mutex::new(plans.to_vec()), Mutex::default());
        let raft = Arc::new(FakeRaft { desk: desk.clone(), alarms: alarms.clone(), plans, seen });
        let queue = ApplyHandle::new(desk.clone(), Arc::new(|failure| panic!("{failure}")));
        let cluster = ClusterHandle::new(ClusterId(1), MemberId(1));
        let mut membership = Membership::new(1);
        for id in 1..=3 {
            let member = Member { id: MemberId(id), peer_urls: vec![id.to_string()], ..Member::default() };
            membership.change(Change::Add(member)).expect("a fresh member");
        }
        cluster.publish(&membership);
        let started = Instant::now();
        let connected = connected.iter().map(|id| (MemberId(*id), started)).collect();
        let proposer = Proposer::new(ProposerParts {
            limits: ProposeLimits {
                request_bytes_max: 100,
                request_timeout: if ends_in_timeout { RT } else { Duration::from_secs(60) },
                election_timeout: Duration::from_secs(10),
            },
            ids: Arc::new(RequestIds::new(MemberId(1), 0)),
            raft: raft.clone(),
            desk: desk.clone(),
            queue: queue.clone(),
            published: Published::new(cluster, alarms, Space::new(quota), empty_views()),
            connectivity: Arc::new(Connected(connected)),
            metrics: ProposeMetrics::register(&registry),
        });
        Bench { proposer, raft, desk, queue }
    }

    fn put(value: &'static [u8]) -> InternalRaftRequest {
        let put =
            PutRequest { key: Bytes::from_static(b"k"), value: Bytes::from_static(value), ..PutRequest::default() };
        InternalRaftRequest { put: Some(put), ..InternalRaftRequest::default() }
    }

    const DONE: Result<Reply, Answer> = Ok(Reply::Done { revision: 7 });

    #[tokio::test]
    async fn outcomes_of_raft_become_answers() {
        let check = async |plans: &[Plan], expected: Result<Reply, Answer>| {
            let bench = bench(plans, 0, &[]);
            assert_eq!(bench.proposer.propose(put(b"v")).await, expected, "{plans:?}");
            assert!(bench.raft.plans.lock().expect("no panic").is_empty(), "{plans:?} were all used");
            assert!(bench.desk.waiters.is_empty());
            let metrics = &bench.proposer.inner.metrics;
            assert_eq!(metrics.pending.get(), 0);
        };
        check(&[Plan::Answer(DONE)], DONE).await;
        check(&[Plan::Answer(Err(Answer::LeaseNotFound))], Err(Answer::LeaseNotFound)).await;
        check(&[Plan::Refuse(Refusal::Dropped)], Err(Answer::ProposalDropped)).await;
        check(&[Plan::Refuse(Refusal::NoLeader)], Err(Answer::ContextDeadlineExceeded)).await;
        check(&[Plan::Elect, Plan::Answer(DONE)], DONE).await;
        check(&[Plan::Busy], Err(Answer::TooManyRequests)).await;
        check(&[Plan::Silence], Err(Answer::Timeout)).await;
    }

    #[tokio::test]
    async fn a_proposal_keeps_its_id_over_retries_and_carries_it_in_the_header() {
        let bench = bench(&[Plan::Elect, Plan::Answer(DONE)], 0, &[]);
        bench.proposer.propose(put(b"v")).await.expect("applied");
        let seen = bench.raft.seen.lock().expect("no panic").clone();
        assert_eq!(seen.len(), 2);
        assert_eq!(seen[0], seen[1]);
        let request = InternalRaftRequest::decode(seen[0].1.clone()).expect("our own request");
        assert_eq!((request.id, request.header.map(|header| header.id)), (0, Some(seen[0].0)));
    }

    #[tokio::test]
    async fn a_request_over_the_limit_never_reaches_raft() {
        let bench = bench(&[Plan::Answer(DONE)], 0, &[]);
        assert_eq!(bench.proposer.propose(put(&[0; 100])).await, Err(Answer::RequestTooLarge));
        assert!(bench.raft.seen.lock().expect("no panic").is_empty());
        assert_eq!(bench.proposer.propose(put(&[0; 50])).await, DONE);
    }

    #[tokio::test]
    async fn too_much_unapplied_refuses_at_the_door() {
        let bench = bench(&[Plan::Answer(DONE)], 0, &[]);
        let ahead = |commit_index| RaftStatus { commit_index, ..leader(1) };
        bench.desk.status_changed(ahead(UNAPPLIED_ENTRIES_MAX + 1));
        assert_eq!(bench.proposer.propose(put(b"v")).await, Err(Answer::TooManyRequests));
        bench.desk.applied(1);
        assert_eq!(bench.proposer.propose(put(b"v")).await, DONE);
        let big = crate::proto::raftpb::Entry { data: vec![0; UNAPPLIED_BYTES_MAX + 1].into(), ..Default::default() };
        bench.queue.commit(vec![big]);
        assert_eq!(bench.proposer.propose(put(b"v")).await, Err(Answer::TooManyRequests));
    }

    #[tokio::test]
    async fn no_space_raises_the_alarm_once_before_it_answers() {
        let bench = bench(&[Plan::Answer(DONE), Plan::Answer(Err(Answer::NoSpace))], 300, &[]);
        assert_eq!(bench.proposer.propose(put(b"v")).await, DONE);
        assert_eq!(bench.proposer.propose(put(b"v")).await, Err(Answer::NoSpace), "applied beyond the quota");
        assert!(bench.raft.alarms.has(1, AlarmType::Nospace));
        assert_eq!(bench.proposer.propose(put(&[0; 60])).await, Err(Answer::NoSpace), "refused at the door");
        assert_eq!(bench.proposer.check_space(300).await, Err(Answer::NoSpace));
        assert_eq!(bench.raft.seen.lock().expect("no panic").len(), 3, "two puts and one alarm");
    }

    #[tokio::test]
    async fn timeouts_say_what_may_have_been_the_cause() {
        let check = async |leader_before: u64, connected: &[u64], expected: Answer| {
            let bench = bench(&[Plan::Silence], 0, connected);
            bench.desk.status_changed(leader(leader_before));
            assert_eq!(bench.proposer.propose(put(b"v")).await, Err(expected), "{leader_before} {connected:?}");
        };
        check(1, &[2], Answer::Timeout).await;
        check(1, &[], Answer::TimeoutConnectionLost).await;
        check(2, &[2], Answer::Timeout).await;
        check(2, &[3], Answer::TimeoutConnectionLost).await;
        let bench = bench(&[Plan::Silence], 0, &[2]);
        let start = Instant::now();
        bench.desk.status_changed(leader(2));
        assert_eq!(bench.proposer.timed_out(start), Answer::TimeoutLeaderFailure);
    }

    #[tokio::test]
    async fn configuration_changes_answer_with_the_members() {
        let bench = bench(&[], 0, &[]);
        let members = bench.proposer.configure(Change::Remove(MemberId(3))).await.expect("accepted");
        assert_eq!(members[0].id, MemberId(3));
    }

    #[tokio::test]
    async fn physical_compaction_is_waited_for_up_to_what_was_ordered() {
        let bench = bench(&[], 0, &[]);
        bench.proposer.compacted_physically().await.expect("nothing was ordered");
        bench.desk.compaction(9, 5);
        let waiting = tokio::spawn({
            let proposer = bench.proposer.clone();
            async move { proposer.compacted_physically().await }
        });
        tokio::task::yield_now().await;
        assert!(!waiting.is_finished());
        bench.desk.compaction(20, 9);
        waiting.await.expect("no panic").expect("the first one is done");
    }

    #[tokio::test]
    async fn the_stop_answers_who_waits_and_who_comes_later() {
        let bench = bench(&[Plan::Silence], 0, &[]);
        let waiting = tokio::spawn({
            let proposer = bench.proposer.clone();
            async move { proposer.propose(put(b"v")).await }
        });
        while bench.desk.waiters.is_empty() {
            tokio::task::yield_now().await;
        }
        bench.desk.stop();
        assert_eq!(waiting.await.expect("no panic"), Err(Answer::Stopped));
        assert_eq!(bench.proposer.propose(put(b"v")).await, Err(Answer::Stopped));
    }
}

//! Facts about proposals, with a raft that does as it is told.

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
            Plan::Busy => return Err(Busy::TooMany),
            Plan::Silence => {}
        }
        Ok(())
    }

    fn propose_in_term(&self, term: u64, request_id: u64, data: Bytes) -> Result<(), Busy> {
        if term != 1 {
            self.desk.refused(request_id, Refusal::TermOver);
            return Ok(());
        }
        self.propose(request_id, data)
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
        company: Arc::default(),
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
    let put = PutRequest { key: Bytes::from_static(b"k"), value: Bytes::from_static(value), ..PutRequest::default() };
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
async fn what_a_leader_decided_in_its_term_is_refused_once_the_term_is_over() {
    let bench = bench(&[Plan::Answer(DONE)], 0, &[]);
    assert_eq!(bench.proposer.propose_in_term(2, put(b"v")).await, Err(Answer::NotLeader));
    assert_eq!(bench.proposer.propose_in_term(1, put(b"v")).await, DONE);
    assert!(bench.desk.waiters.is_empty());
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
async fn a_put_enters_the_log_as_any_request_does() {
    let bench = bench(&[Plan::Answer(DONE), Plan::Answer(DONE)], 0, &[]);
    let request = put(b"value");
    let full = PutRequest { lease: 7, prev_kv: true, ..request.put.clone().unwrap_or_default() };
    for put in [PutRequest::default(), full] {
        bench.proposer.propose_put(&put).await.expect("applied");
        let (id, data) = bench.raft.seen.lock().expect("no panic").pop().expect("proposed");
        let header = Some(RequestHeader { id, ..RequestHeader::default() });
        let expected = InternalRaftRequest { put: Some(put), header, ..InternalRaftRequest::default() };
        assert_eq!(data, expected.encode_to_vec());
    }
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
async fn another_members_alarm_raises_none_of_our_own() {
    let bench = bench(&[Plan::Answer(Err(Answer::NoSpace))], 0, &[]);
    let mut alarms = Alarms::default();
    let (action, alarm) = (AlarmAction::Activate as i32, AlarmType::Nospace as i32);
    alarms.apply(&AlarmRequest { action, member_id: 2, alarm });
    bench.raft.alarms.publish(&alarms);
    assert_eq!(bench.proposer.propose(put(b"v")).await, Err(Answer::NoSpace));
    assert!(!bench.raft.alarms.has(1, AlarmType::Nospace));
    assert_eq!(bench.raft.seen.lock().expect("no panic").len(), 1);
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

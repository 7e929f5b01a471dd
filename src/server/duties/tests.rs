//! Duties over a whole write path: proposer, queue, apply thread, desk; raft is one that commits everything at once.

use std::sync::Arc;
use std::sync::Mutex;
use std::thread::JoinHandle;
use std::time::Duration;
use std::time::Instant;

use bytes::Bytes;

use crate::common::answer::Answer;
use crate::common::failure::Failure;
use crate::common::ids::ClusterId;
use crate::common::ids::MemberId;
use crate::common::ids::RequestIds;
use crate::common::version::Version;
use crate::proto::etcdserverpb::AlarmType;
use crate::proto::raftpb::ConfChange;
use crate::proto::raftpb::Entry;
use crate::proto::raftpb::Snapshot;
use crate::server::apply::alarm::AlarmsHandle;
use crate::server::apply::metrics::ApplyMetrics;
use crate::server::apply::outcome::PeerChange;
use crate::server::apply::outcome::Reply;
use crate::server::apply::ports::FlushPort;
use crate::server::apply::ports::FrozenState;
use crate::server::apply::ports::Installed;
use crate::server::apply::ports::Listener;
use crate::server::apply::ports::PeerPort;
use crate::server::apply::ports::RaftReports;
use crate::server::apply::ports::Snapshots;
use crate::server::apply::published::Published;
use crate::server::apply::queue::ApplyHandle;
use crate::server::apply::testing::Written;
use crate::server::apply::testing::bootstrap;
use crate::server::apply::testing::compaction;
use crate::server::apply::testing::empty_views;
use crate::server::apply::testing::put;
use crate::server::apply::thread;
use crate::server::apply::thread::CompactionPace;
use crate::server::apply::thread::ThreadParts;
use crate::server::checkpoint::Batch;
use crate::server::cluster::handle::ClusterHandle;
use crate::server::cluster::member::Member;
use crate::server::config::AutoCompaction;
use crate::server::duties::compactor;
use crate::server::duties::nospace;
use crate::server::duties::publish::Publisher;
use crate::server::duties::version;
use crate::server::duties::version::VersionSource;
use crate::server::propose::Connectivity;
use crate::server::propose::ProposeLimits;
use crate::server::propose::ProposeMetrics;
use crate::server::propose::Proposer;
use crate::server::propose::ProposerParts;
use crate::server::propose::RaftPort;
use crate::server::raft::handle::Busy;
use crate::server::raft::state_machine::RaftStatus;
use crate::server::raft::state_machine::Role;
use crate::server::raft::state_machine::StateMachine;
use crate::server::read::ReadMetrics;
use crate::server::read::Reader;
use crate::server::read::ReaderParts;
use crate::server::waiters::Desk;
use crate::server::waiters::DeskMetrics;

/// Commits what is proposed, in order; also the rest of the world, which has nothing to say.
struct World {
    queue: ApplyHandle,
    last_index: Mutex<u64>,
    written: Mutex<Written>,
}

impl World {
    fn commit(&self, r#type: u64, data: Bytes) {
        let mut index = self.last_index.lock().expect("no panic");
        *index += 1;
        self.queue.commit(vec![Entry { index: *index, term: 2, r#type, data }]);
    }
}

impl RaftPort for World {
    fn propose(&self, _request_id: u64, data: Bytes) -> Result<(), Busy> {
        self.commit(0, data);
        Ok(())
    }

    fn propose_in_term(&self, _term: u64, request_id: u64, data: Bytes) -> Result<(), Busy> {
        self.propose(request_id, data)
    }

    fn propose_conf_change(&self, _request_id: u64, change: ConfChange) -> Result<(), Busy> {
        self.commit(1, prost::Message::encode_to_vec(&change).into());
        Ok(())
    }

    fn read_index(&self, _context: Bytes) {}

    fn lone_leader(&self) -> bool {
        true
    }
}

impl RaftReports for World {
    fn applied(&self, _index: u64) {}

    fn conf_change_applied(&self, _index: u64, _change: Option<ConfChange>) {}

    fn snapshot_installed(&self, _index: u64) {}
}

impl FlushPort for World {
    fn submit(&self, batch: Batch) {
        let mut written = self.written.lock().expect("no panic");
        written.write(&batch);
        let newest = batch.records.last().map(|record| record.revision);
        self.queue.stored(Arc::new(written.tables.clone()), newest);
    }

    fn is_full(&self) -> bool {
        false
    }

    fn flush_soon(&self) {}
}

impl Snapshots for World {
    fn build(&self, _frozen: FrozenState) {}

    fn install(&self, _snapshot: &Snapshot) -> Result<Installed, Failure> {
        Err(Failure::Refused("there is no image".to_owned()))
    }
}

impl PeerPort for World {
    fn changed(&self, _change: PeerChange) {}

    fn replaced(&self, _members: &[Member], _removed: &[MemberId]) {}
}

impl Connectivity for World {
    fn active_since(&self, _member: MemberId) -> Option<Instant> {
        None
    }
}

#[tonic::async_trait]
impl VersionSource for World {
    async fn server_version(&self, member: &Member) -> Option<Version> {
        Some(Version::new(3, 6, member.id.0))
    }
}

struct Bench {
    world: Arc<World>,
    desk: Arc<Desk>,
    published: Published,
    proposer: Proposer,
    reader: Reader,
    thread: JoinHandle<()>,
}

const LONG: Duration = Duration::from_secs(60);

/// A leading member 1 of a cluster of `members`, with a whole write path behind it.
fn bench(members: u64, quota: i64) -> Bench {
    let registry = prometheus::Registry::new();
    let desk = Arc::new(Desk::new(0, DeskMetrics::register(&registry)));
    desk.status_changed(RaftStatus { role: Role::Leader, leader: Some(MemberId(1)), ..RaftStatus::default() });
    let queue = ApplyHandle::new(desk.clone(), Arc::new(|failure| panic!("{failure}")));
    let mut machine = Written::default().machine(quota);
    for entry in bootstrap(members) {
        machine.apply_entry(&entry).expect("a bootstrap entry");
    }
    let last_index = Mutex::new(members);
    let world = Arc::new(World { queue: queue.clone(), last_index, written: Mutex::default() });
    let cluster = ClusterHandle::new(ClusterId(1), MemberId(1));
    let space = machine.config().space.clone();
    let published = Published::new(cluster, AlarmsHandle::default(), space, empty_views());
    let parts = ThreadParts {
        raft: world.clone(),
        flusher: world.clone(),
        snapshots: world.clone(),
        peers: world.clone(),
        events: None,
        published: published.clone(),
        metrics: ApplyMetrics::register(&registry),
        stopwatch: Box::new(|| Duration::ZERO),
        slow_after: Duration::ZERO,
        compaction: CompactionPace { batch: 2, pause: Duration::from_millis(1) },
    };
    let thread = thread::start(machine, queue.clone(), parts).expect("a thread");
    let ids = Arc::new(RequestIds::new(MemberId(1), 0));
    let proposer = Proposer::new(ProposerParts {
        company: Arc::default(),
        limits: ProposeLimits { request_bytes_max: 1 << 20, request_timeout: LONG, election_timeout: LONG },
        ids: ids.clone(),
        raft: world.clone(),
        desk: desk.clone(),
        queue,
        published: published.clone(),
        connectivity: world.clone(),
        metrics: ProposeMetrics::register(&registry),
    });
    let reader = Reader::new(ReaderParts {
        request_timeout: LONG,
        retry: LONG,
        ids,
        raft: world.clone(),
        desk: desk.clone(),
        published: published.clone(),
        metrics: ReadMetrics::register(&registry),
    });
    Bench { world, desk, published, proposer, reader, thread }
}

impl Bench {
    fn stop(self) {
        self.desk.stop();
        self.world.queue.stop();
        self.thread.join().expect("guarded");
    }
}

/// Waits for a fact that another task makes true.
async fn until(fact: impl Fn() -> bool) {
    while !fact() {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

#[tokio::test]
async fn an_answered_write_can_be_read_at_once() {
    let bench = bench(1, 0);
    for revision in 2..50 {
        let reply = bench.proposer.propose(put("a", "v", 0)).await.expect("applied");
        let Reply::Put(response) = reply else { panic!("{reply:?}") };
        assert_eq!(response.header.map(|header| header.revision), Some(revision));
        bench.reader.barrier().await.expect("a lone leader");
        assert!(bench.reader.view().revision() >= revision);
    }
    bench.proposer.propose(compaction(40)).await.expect("applied");
    bench.proposer.compacted_physically().await.expect("not stopped");
    bench.proposer.compacted_physically().await.expect("nothing is in flight");
    assert_eq!(bench.proposer.propose(compaction(40)).await, Err(Answer::Compacted));
    bench.stop();
}

#[tokio::test]
async fn publishing_opens_the_gate_when_the_members_show_it() {
    let bench = bench(1, 0);
    let urls = vec!["http://c:1".to_owned()];
    let (publisher, gate) =
        Publisher::new(bench.proposer.clone(), bench.desk.clone(), MemberId(1), "new".to_owned(), urls.clone());
    assert!(!gate.is_published());
    let task = tokio::spawn(publisher.run());
    gate.published().await;
    let member = bench.published.cluster.local().expect("a member");
    assert_eq!((member.name.as_str(), &member.client_urls), ("new", &urls));
    assert!(gate.is_published());
    bench.stop();
    task.await.expect("it ends with the member");
}

#[tokio::test]
async fn the_leader_sets_the_lowest_version_of_all_members() {
    let check = async |members: u64, expected: Version| {
        let bench = bench(members, 0);
        let cluster = bench.published.cluster.clone();
        let (proposer, desk, source) = (bench.proposer.clone(), bench.desk.clone(), bench.world.clone());
        let task = tokio::spawn(version::run(proposer, desk, cluster.clone(), source, LONG));
        until(|| cluster.version() == Some(expected)).await;
        bench.stop();
        task.await.expect("it ends with the member");
    };
    check(1, Version::new(3, 7, 0)).await;
    check(3, Version::new(3, 6, 0)).await;
}

#[tokio::test]
async fn a_write_beyond_the_quota_raises_the_alarm_for_this_member() {
    let bench = bench(1, 300);
    let task = tokio::spawn(nospace::run(bench.proposer.clone(), bench.desk.clone()));
    bench.desk.out_of_space();
    until(|| bench.published.alarms.has(1, AlarmType::Nospace)).await;
    assert_eq!(bench.proposer.propose(put("a", "v", 0)).await, Err(Answer::NoSpace));
    bench.stop();
    task.await.expect("it ends with the member");
}

#[tokio::test]
async fn auto_compaction_compacts_on_the_leader() {
    let bench = bench(1, 0);
    for _ in 0..5 {
        bench.proposer.propose(put("a", "v", 0)).await.expect("applied");
    }
    let mode = AutoCompaction::Periodic(Duration::from_millis(10));
    let (proposer, reader) = (bench.proposer.clone(), bench.reader.clone());
    let task = tokio::spawn(compactor::run(mode, proposer, reader, bench.desk.clone()));
    until(|| bench.published.view().compact_revision() == 6).await;
    bench.stop();
    task.await.expect("it ends with the member");
}

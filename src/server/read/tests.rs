//! Facts about the read barrier, with a raft that only notes what it is asked.

use super::*;

use crate::common::ids::ClusterId;
use crate::common::ids::MemberId;
use crate::proto::raftpb::ConfChange;
use crate::server::apply::alarm::AlarmsHandle;
use crate::server::apply::ports::Listener;
use crate::server::apply::quota::Space;
use crate::server::apply::testing::empty_views;
use crate::server::cluster::handle::ClusterHandle;
use crate::server::raft::handle::Busy;
use crate::server::raft::state_machine::RaftStatus;
use crate::server::waiters::DeskMetrics;

/// Keeps the contexts that were asked for; the tests answer them.
#[derive(Default)]
struct FakeRaft {
    asked: Mutex<Vec<Bytes>>,
    lone: bool,
}

impl RaftPort for FakeRaft {
    fn propose(&self, _request_id: u64, _data: Bytes) -> Result<(), Busy> {
        Err(Busy::TooMany)
    }

    fn propose_in_term(&self, _term: u64, _request_id: u64, _data: Bytes) -> Result<(), Busy> {
        Err(Busy::TooMany)
    }

    fn propose_conf_change(&self, _request_id: u64, _change: ConfChange) -> Result<(), Busy> {
        Err(Busy::TooMany)
    }

    fn read_index(&self, context: Bytes) {
        self.asked.lock().expect("no panic").push(context);
    }

    fn lone_leader(&self) -> bool {
        self.lone
    }
}

struct Bench {
    reader: Reader,
    raft: Arc<FakeRaft>,
    desk: Arc<Desk>,
}

/// A test that waits longer than this has failed.
const PATIENCE: Duration = Duration::from_secs(30);
const LONG: Duration = Duration::from_secs(60);
const SHORT: Duration = Duration::from_millis(20);

fn bench(request_timeout: Duration, retry: Duration, lone: bool) -> Bench {
    let registry = prometheus::Registry::new();
    let desk = Arc::new(Desk::new(5, DeskMetrics::register(&registry)));
    let raft = Arc::new(FakeRaft { lone, ..FakeRaft::default() });
    let cluster = ClusterHandle::new(ClusterId(1), MemberId(1));
    let reader = Reader::new(ReaderParts {
        request_timeout,
        retry,
        ids: Arc::new(RequestIds::new(MemberId(1), 0)),
        raft: raft.clone(),
        desk: desk.clone(),
        published: Published::new(cluster, AlarmsHandle::default(), Space::new(0), empty_views()),
        metrics: ReadMetrics::register(&registry),
    });
    tokio::spawn(reader.clone().run());
    Bench { reader, raft, desk }
}

impl Bench {
    /// A read that waits, polled until its place is taken.
    async fn start(&self) -> tokio::task::JoinHandle<Result<(), Answer>> {
        let reader = self.reader.clone();
        let read = tokio::spawn(async move { reader.barrier().await });
        tokio::task::yield_now().await;
        read
    }

    /// Waits for the `n`th question.
    async fn asked(&self, n: usize) -> Bytes {
        let wait = async {
            loop {
                let context = self.raft.asked.lock().expect("no panic").get(n - 1).cloned();
                match context {
                    Some(context) => return context,
                    None => tokio::task::yield_now().await,
                }
            }
        };
        tokio::time::timeout(PATIENCE, wait).await.unwrap_or_else(|_| panic!("question {n} is never asked"))
    }
}

fn leader(id: u64) -> RaftStatus {
    RaftStatus { leader: Some(MemberId(id)), ..RaftStatus::default() }
}

/// B24, TiKV 9208 and 9351: a read that came while an index was being asked for was served with it, though a write that
/// it had to see was acknowledged after the index was taken.
#[tokio::test]
async fn b24_one_question_serves_all_who_wait_and_none_who_come_later() {
    let bench = bench(LONG, LONG, false);
    let first = bench.start().await;
    let one = bench.asked(1).await;
    let late = [bench.start().await, bench.start().await];
    bench.desk.read_ready(one.clone(), 5);
    first.await.expect("no panic").expect("confirmed");
    let two = bench.asked(2).await;
    assert_ne!(one, two);
    assert!(late.iter().all(|read| !read.is_finished()));
    bench.desk.read_ready(two, 5);
    for read in late {
        read.await.expect("no panic").expect("confirmed");
    }
    assert_eq!(bench.raft.asked.lock().expect("no panic").len(), 2);
}

#[tokio::test]
async fn a_read_waits_until_its_index_is_applied() {
    let bench = bench(LONG, LONG, false);
    let read = bench.start().await;
    bench.desk.read_ready(bench.asked(1).await, 8);
    bench.desk.applied(7);
    for _ in 0..10 {
        tokio::task::yield_now().await;
    }
    assert!(!read.is_finished());
    bench.desk.applied(8);
    read.await.expect("no panic").expect("applied");
}

/// B22, etcd 20418: the question was repeated under its old context, and late answers to the first one confirmed the
/// second.
#[tokio::test]
async fn b22_a_retry_uses_a_new_context_and_answers_to_either_count() {
    let bench = bench(LONG, SHORT, false);
    let read = bench.start().await;
    let (one, two) = (bench.asked(1).await, bench.asked(2).await);
    assert_ne!(one, two);
    assert_eq!(one.len(), 8);
    bench.desk.read_ready(one, 5);
    read.await.expect("no panic").expect("confirmed");
}

#[tokio::test]
async fn a_started_term_asks_again_at_once() {
    let bench = bench(LONG, LONG, false);
    let read = bench.start().await;
    bench.asked(1).await;
    bench.desk.term_started();
    bench.desk.read_ready(bench.asked(2).await, 5);
    read.await.expect("no panic").expect("confirmed");
}

/// B23, etcd PR 21375: the leader had changed and an index was there, and chance decided which of the two was looked
/// at.
#[tokio::test]
async fn b23_a_change_of_leader_wins_over_an_index_that_came_with_it() {
    let bench = bench(LONG, LONG, false);
    bench.desk.status_changed(leader(1));
    let read = bench.start().await;
    let context = bench.asked(1).await;
    // Both are there before the reader runs again.
    bench.desk.read_ready(context, 5);
    bench.desk.status_changed(leader(2));
    assert_eq!(read.await.expect("no panic"), Err(Answer::LeaderChanged));
}

#[tokio::test]
async fn an_unanswered_read_times_out() {
    let bench = bench(SHORT, LONG, false);
    assert_eq!(bench.reader.barrier().await, Err(Answer::Timeout));
    assert_eq!(bench.reader.inner.metrics.slow.get(), 1);
}

#[tokio::test]
async fn a_lone_leader_asks_nobody() {
    let bench = bench(LONG, LONG, true);
    bench.reader.barrier().await.expect("at once");
    assert!(bench.raft.asked.lock().expect("no panic").is_empty());
}

#[tokio::test]
async fn the_stop_answers_reads() {
    let bench = bench(LONG, LONG, false);
    let read = bench.start().await;
    bench.asked(1).await;
    let next = bench.start().await;
    bench.desk.stop();
    assert_eq!(read.await.expect("no panic"), Err(Answer::Stopped));
    assert_eq!(next.await.expect("no panic"), Err(Answer::Stopped));
    assert_eq!(bench.reader.barrier().await, Err(Answer::Stopped));
}

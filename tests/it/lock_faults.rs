//! Many on one lock while leaders are killed and paused, holders die with the lock in their hands and waiters in the
//! queue: at no revision is there a second holder.

use std::sync::Arc;
use std::sync::Mutex;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use nix::sys::signal::Signal;
use quorate::client::Client;
use quorate::client::Config;
use quorate::client::Deadline;
use quorate::client::concurrency::Session;
use quorate::common::concurrency::Queue;
use quorate::common::key_range::prefix_end;
use quorate::proto::etcdserverpb::Compare;
use quorate::proto::etcdserverpb::PutRequest;
use quorate::proto::etcdserverpb::RangeRequest;
use quorate::proto::etcdserverpb::RequestOp;
use quorate::proto::etcdserverpb::TxnRequest;
use quorate::proto::etcdserverpb::compare::CompareResult;
use quorate::proto::etcdserverpb::compare::CompareTarget;
use quorate::proto::etcdserverpb::compare::TargetUnion;
use quorate::proto::etcdserverpb::range_request::SortOrder;
use quorate::proto::etcdserverpb::range_request::SortTarget;
use quorate::proto::etcdserverpb::request_op::Request;
use quorate::proto::v3lockpb::LockRequest;
use quorate::proto::v3lockpb::lock_client::LockClient;
use tokio::task::JoinHandle;

use crate::cluster::Cluster;
use crate::cluster::channel;
use crate::support::PATIENCE;
use crate::support::eventually;

/// The lock, and what only its holder may write.
const NAME: &str = "deploy";
const GUARDED: &str = "guarded";

/// Seconds after which the lock of somebody who died is free.
const TTL_SECONDS: i64 = 3;

/// What one holder knows of its turn.
#[derive(Clone, Debug)]
struct Turn {
    key: Bytes,
    /// At which the lock was said to be its own.
    granted_at: i64,
    /// At which it wrote, guarded by its key.
    wrote_at: Vec<i64>,
}

type Turns = Arc<Mutex<Vec<Turn>>>;

/// One who takes the lock again and again; each its own client.
struct Contender {
    number: usize,
    endpoints: Vec<String>,
    turns: Turns,
    stop: Arc<AtomicBool>,
}

/// How a turn is to end.
#[derive(Clone, Copy, PartialEq)]
enum Fate {
    Unlocks,
    DiesHolding,
    DiesWaiting,
}

impl Contender {
    async fn run(self) {
        let mut round = self.number;
        while !self.stop.load(Ordering::Relaxed) {
            round += 1;
            // A dead client is one that nobody polls any more: its connections end, its lease is not renewed.
            let client = Client::open(Config::new(self.endpoints.clone())).expect("plain endpoints");
            let fate = match round % 7 {
                3 => Fate::DiesHolding,
                5 => Fate::DiesWaiting,
                _ => Fate::Unlocks,
            };
            // What fails, fails while members are down: the next round is another attempt.
            let _ = tokio::time::timeout(PATIENCE, self.turn(&client, fate, round)).await;
        }
    }

    async fn turn(&self, client: &Client, fate: Fate, round: usize) -> Option<()> {
        let mut session = client.session(TTL_SECONDS, Duration::from_secs(3)).await.ok()?;
        // Half of them ask the service of some member, half work on the keys themselves.
        let by_service = self.number.is_multiple_of(2);
        let granted = match by_service {
            true => self.ask(&mut session, fate, round).await?,
            false => self.queue_up(client, &mut session, fate).await?,
        };
        let mut turn = Turn { key: granted.0, granted_at: granted.1, wrote_at: Vec::new() };
        let create_revision = session.during(self.created(client, &turn)).await?;
        for _ in 0..2 {
            if let Some(revision) = session.during(write(client, &turn.key, create_revision)).await {
                turn.wrote_at.push(revision);
            }
        }
        self.turns.lock().expect("nobody panics").push(turn.clone());
        if fate == Fate::Unlocks {
            let unlock = quorate::proto::etcdserverpb::DeleteRangeRequest { key: turn.key, ..Default::default() };
            session.during(client.delete_range(unlock, Deadline::after(PATIENCE))).await.ok()?;
        }
        Some(())
    }

    /// By the recipe: the key, and the revision of the last answer.
    async fn queue_up(&self, client: &Client, session: &mut Session<'_>, fate: Fate) -> Option<(Bytes, i64)> {
        let (queue, lease) = (Queue::new(NAME.as_bytes()), session.lease());
        let waiting = async {
            let place = queue.enter(client, lease, Bytes::new()).await.ok()?;
            if fate == Fate::DiesWaiting {
                return None;
            }
            let header = queue.wait(client, &place).await.ok()?;
            Some((place.key, header.revision))
        };
        session.during(waiting).await
    }

    /// By the service of one of the members.
    async fn ask(&self, session: &mut Session<'_>, fate: Fate, round: usize) -> Option<(Bytes, i64)> {
        let endpoint = &self.endpoints[round % self.endpoints.len()];
        let request = LockRequest { name: NAME.into(), lease: session.lease() };
        let asking = async {
            let mut client = LockClient::new(channel(endpoint).await.ok()?);
            let asked = client.lock(request);
            let lock = match fate {
                Fate::DiesWaiting => tokio::time::timeout(Duration::from_millis(100), asked).await.ok()?,
                _ => asked.await,
            };
            let lock = lock.ok()?.into_inner();
            Some((lock.key, lock.header?.revision))
        };
        session.during(asking).await
    }

    /// The rank of its key.
    async fn created(&self, client: &Client, turn: &Turn) -> Option<i64> {
        let read = RangeRequest { key: turn.key.clone(), ..RangeRequest::default() };
        let response = client.range(read, Deadline::after(PATIENCE)).await.ok()?;
        Some(response.kvs.first()?.create_revision)
    }
}

/// Writes if the key is the one of that revision: at which revision, if it was.
async fn write(client: &Client, key: &Bytes, create_revision: i64) -> Option<i64> {
    let put = PutRequest { key: GUARDED.into(), value: key.clone(), ..PutRequest::default() };
    let request = TxnRequest {
        compare: vec![Compare {
            result: CompareResult::Equal.into(),
            target: CompareTarget::Create.into(),
            key: key.clone(),
            target_union: Some(TargetUnion::CreateRevision(create_revision)),
            ..Compare::default()
        }],
        success: vec![RequestOp { request: Some(Request::RequestPut(put)) }],
        failure: Vec::new(),
    };
    let response = client.txn(request, Deadline::after(PATIENCE)).await.ok()?;
    response.succeeded.then_some(response.header?.revision)
}

async fn until_turns(turns: &Turns, more: usize, cluster: &Cluster) {
    let goal = turns.lock().expect("nobody panics").len() + more;
    eventually("the lock to go on", async || match turns.lock().expect("nobody panics").len() {
        count if count >= goal => Ok(()),
        count => Err(cluster.logs(&format!("{count} of {goal} turns"))),
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lock_has_one_holder_at_every_revision_whoever_dies() {
    let mut cluster = Cluster::ours(3, &["--unsafe-no-fsync"]).await;
    let endpoints: Vec<String> = cluster.members.iter().map(|member| member.endpoint()).collect();
    let (turns, stop): (Turns, _) = (Turns::default(), Arc::new(AtomicBool::new(false)));
    let start = |number: usize| {
        let (endpoints, turns, stop) = (endpoints.clone(), turns.clone(), stop.clone());
        tokio::spawn(Contender { number, endpoints, turns, stop }.run())
    };
    let contenders: Vec<JoinHandle<()>> = (0..8).map(start).collect();
    until_turns(&turns, 10, &cluster).await;
    for round in 0..4 {
        let leader = cluster.leader().await;
        if round % 2 == 0 {
            cluster.members[leader].kill();
            until_turns(&turns, 5, &cluster).await;
            cluster.members[leader].start();
        } else {
            // It wakes when another one leads, and still believes in itself.
            let id = cluster.members[leader].id().await;
            cluster.members[leader].pause();
            let other = &cluster.members[(leader + 1) % 3];
            eventually("another leader", async || match other.status().await {
                Ok(status) if status.leader != id && status.leader != 0 => Ok(()),
                other => Err(format!("{other:?}")),
            })
            .await;
            cluster.members[leader].signal(Signal::SIGCONT);
            until_turns(&turns, 2, &cluster).await;
        }
        cluster.wait_ready().await;
        until_turns(&turns, 3, &cluster).await;
    }
    stop.store(true, Ordering::Relaxed);
    for contender in contenders {
        contender.await.expect("no panic");
    }

    // The store remembers who stood first at every revision.
    let client = Client::open(Config::new(endpoints)).expect("plain endpoints");
    let prefix = format!("{NAME}/");
    let holder_at = async |revision: i64| {
        let first = RangeRequest {
            key: prefix.clone().into(),
            range_end: prefix_end(prefix.as_bytes()).into(),
            revision,
            limit: 1,
            sort_order: SortOrder::Ascend.into(),
            sort_target: SortTarget::Create.into(),
            ..RangeRequest::default()
        };
        let response = client.range(first, Deadline::after(PATIENCE)).await.expect("an answer");
        response.kvs.into_iter().next().map(|kv| kv.key)
    };
    let turns = turns.lock().expect("nobody panics").clone();
    let mut writes = 0;
    for turn in &turns {
        assert_eq!(holder_at(turn.granted_at).await.as_ref(), Some(&turn.key), "granted: {turn:?}");
        for revision in &turn.wrote_at {
            assert_eq!(holder_at(*revision).await.as_ref(), Some(&turn.key), "written: {turn:?}");
            writes += 1;
        }
    }
    assert!(writes >= turns.len(), "{writes} writes in {} turns", turns.len());
    println!("{} turns, {writes} writes", turns.len());
    // Nobody is left behind: the dead leave when their leases end.
    crate::lock::until_queue_is(&cluster.members[0], &prefix, &[]).await;
    cluster.hashes_agree().await;
}

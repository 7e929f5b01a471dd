//! One client on one member: its puts are done by the thread that reads its socket. What the raft thread does for all
//! others, and what changes when they come and go, and when the member is killed meanwhile.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering;
use std::time::Instant;

use quorate::proto::etcdserverpb::Compare;
use quorate::proto::etcdserverpb::PutRequest;
use quorate::proto::etcdserverpb::RangeRequest;
use quorate::proto::etcdserverpb::RequestOp;
use quorate::proto::etcdserverpb::TxnRequest;
use quorate::proto::etcdserverpb::compare::CompareResult;
use quorate::proto::etcdserverpb::compare::CompareTarget;
use quorate::proto::etcdserverpb::compare::TargetUnion;
use quorate::proto::etcdserverpb::kv_client::KvClient;
use quorate::proto::etcdserverpb::request_op::Request;
use tonic::Status;
use tonic::transport::Channel;

use crate::cluster::Cluster;
use crate::cluster::Member;
use crate::cluster::channel;
use crate::cluster::put;
use crate::support::PATIENCE;
use crate::support::eventually;

/// Write calls of the member's thread of this name so far.
fn writes_of(member: &Member, thread: &str) -> u64 {
    let tasks = PathBuf::from(format!("/proc/{}/task", member.pid()));
    let read = |task: &PathBuf, file: &str| std::fs::read_to_string(task.join(file)).unwrap_or_default();
    let tasks = std::fs::read_dir(tasks).expect("it runs").map(|task| task.expect("a thread").path());
    let of_name: Vec<PathBuf> = tasks.filter(|task| read(task, "comm").trim() == thread).collect();
    assert_eq!(of_name.len(), 1, "threads named {thread}");
    let io = read(&of_name[0], "io");
    let count = io.lines().find_map(|line| line.strip_prefix("syscw: ")).expect("a count of write calls");
    count.parse().expect("a number")
}

async fn client(member: &Member) -> KvClient<Channel> {
    KvClient::new(channel(&member.endpoint()).await.expect("it answers"))
}

#[tokio::test]
async fn a_lone_clients_puts_wake_no_other_thread() {
    const PUTS: u64 = 50;
    // A slow disk is the raft thread's own: how fast this one is does not matter here.
    let cluster = Cluster::ours(1, &["--unsafe-no-fsync"]).await;
    let member = &cluster.members[0];
    let mut client = client(member).await;
    let mut revision = 0;
    // Somebody else's work may make each write slow for a while.
    let patience = Instant::now() + PATIENCE;
    loop {
        let before = writes_of(member, "raft");
        for _ in 0..PUTS {
            let next = put(&mut client, "key", "value").await.expect("a put");
            // Once each: nobody else writes.
            assert!(revision == 0 || next == revision + 1, "{next} after {revision}");
            revision = next;
        }
        let raft = writes_of(member, "raft") - before;
        if raft <= PUTS / 5 {
            break;
        }
        assert!(Instant::now() < patience, "{raft} writes of the raft thread for {PUTS} puts");
    }
    // Two who take turns are no company that is worth less than a batch, but each ends the other's time alone.
    let mut other = self::client(member).await;
    put(&mut other, "key", "value").await.expect("a put");
    let before = writes_of(member, "raft");
    for _ in 0..PUTS / 2 {
        put(&mut client, "key", "value").await.expect("a put");
        put(&mut other, "key", "value").await.expect("a put");
    }
    assert!(writes_of(member, "raft") - before >= PUTS, "somebody else wrote");
}

/// The counter's value and revision.
async fn read_counter(client: &mut KvClient<Channel>) -> Result<(u64, i64), Status> {
    let range = RangeRequest { key: b"counter"[..].into(), ..RangeRequest::default() };
    let kvs = client.range(range).await?.into_inner().kvs;
    let kv = kvs.first();
    let value = kv.map_or(0, |kv| String::from_utf8_lossy(&kv.value).parse().expect("a number"));
    Ok((value, kv.map_or(0, |kv| kv.mod_revision)))
}

/// Sets the counter from one value to the next: false if another was faster.
async fn increment(client: &mut KvClient<Channel>, from: u64, revision: i64) -> Result<bool, Status> {
    let compare = Compare {
        result: CompareResult::Equal as i32,
        target: CompareTarget::Mod as i32,
        key: b"counter"[..].into(),
        target_union: Some(TargetUnion::ModRevision(revision)),
        ..Compare::default()
    };
    let put = PutRequest { key: b"counter"[..].into(), value: (from + 1).to_string().into(), ..PutRequest::default() };
    let txn = TxnRequest {
        compare: vec![compare],
        success: vec![RequestOp { request: Some(Request::RequestPut(put)) }],
        ..TxnRequest::default()
    };
    Ok(client.txn(txn).await?.into_inner().succeeded)
}

/// What clients know of the counter and of their own keys.
#[derive(Default)]
struct Known {
    /// Acknowledged increments, and those whose answer was lost.
    done: AtomicU64,
    unknown: AtomicU64,
    /// The highest value of which anybody was told: nobody may see a lower one later.
    seen: AtomicU64,
}

/// Increments the counter and puts a key of its own, so many times; an error ends it.
async fn work(name: String, mut client: KvClient<Channel>, times: u64, known: Arc<Known>) -> BTreeSet<String> {
    let mut acknowledged = BTreeSet::new();
    for number in 0..times {
        let floor = known.seen.load(Ordering::SeqCst);
        let Ok((value, revision)) = read_counter(&mut client).await else { break };
        assert!(value >= floor, "{name} read {value} after somebody had seen {floor}");
        known.seen.fetch_max(value, Ordering::SeqCst);
        match increment(&mut client, value, revision).await {
            Ok(true) => {
                known.done.fetch_add(1, Ordering::SeqCst);
                known.seen.fetch_max(value + 1, Ordering::SeqCst);
            }
            Ok(false) => {}
            Err(_) => {
                known.unknown.fetch_add(1, Ordering::SeqCst);
                break;
            }
        }
        // The plain kind: applied where it is committed.
        let key = format!("{name}/{number}");
        match put(&mut client, &key, "value").await {
            Ok(_) => acknowledged.insert(key),
            Err(_) => break,
        };
    }
    acknowledged
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clients_alone_and_in_company_lose_nothing_through_kills() {
    let mut cluster = Cluster::ours(1, &[]).await;
    let known = Arc::new(Known::default());
    let mut acknowledged = BTreeSet::new();
    for round in 0..4 {
        let alone = tokio::spawn(work(format!("alone-{round}"), client(&cluster.members[0]).await, 60, known.clone()));
        acknowledged.extend(alone.await.expect("no promise was broken"));
        let mut company = Vec::new();
        for number in 0..6 {
            let client = client(&cluster.members[0]).await;
            company.push(tokio::spawn(work(format!("company-{round}-{number}"), client, 20, known.clone())));
        }
        for client in company {
            acknowledged.extend(client.await.expect("no promise was broken"));
        }
        // Alone again, and killed in the middle of it.
        let goal = known.done.load(Ordering::SeqCst) + 30;
        let client = client(&cluster.members[0]).await;
        let killed = tokio::spawn(work(format!("killed-{round}"), client, u64::MAX, known.clone()));
        eventually("increments", async || {
            let done = known.done.load(Ordering::SeqCst);
            if done >= goal { Ok(()) } else { Err(format!("{done} of {goal}")) }
        })
        .await;
        cluster.members[0].kill();
        acknowledged.extend(killed.await.expect("no promise was broken"));
        cluster.members[0].start();
        cluster.members[0].wait_ready().await;
    }
    let mut client = client(&cluster.members[0]).await;
    let (value, _) = read_counter(&mut client).await.expect("it answers");
    let (done, unknown) = (known.done.load(Ordering::SeqCst), known.unknown.load(Ordering::SeqCst));
    assert!((done..=done + unknown).contains(&value), "{value} after {done} increments and {unknown} lost answers");
    let all = RangeRequest { key: b"\0"[..].into(), range_end: b"\0"[..].into(), ..RangeRequest::default() };
    let kvs = client.range(RangeRequest { keys_only: true, ..all }).await.expect("it answers").into_inner().kvs;
    let there: BTreeSet<String> = kvs.iter().map(|kv| String::from_utf8_lossy(&kv.key).into_owned()).collect();
    let lost: Vec<&String> = acknowledged.difference(&there).collect();
    assert!(lost.is_empty(), "acknowledged and gone: {lost:?}");
    assert!(acknowledged.len() > 4 * (60 + 6 * 20), "{} puts", acknowledged.len());
    cluster.members[0].terminate();
    cluster.logs_agree();
}

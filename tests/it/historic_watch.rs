//! Watch bugs of etcd and its relatives, each as the scenario that shows it (reliability.md 2.3).

use std::collections::BTreeMap;

use nix::sys::signal::Signal;
use quorate::proto::etcdserverpb::CompactionRequest;
use quorate::proto::etcdserverpb::DeleteRangeRequest;
use quorate::proto::etcdserverpb::PutRequest;
use quorate::proto::etcdserverpb::RangeRequest;
use quorate::proto::etcdserverpb::RequestOp;
use quorate::proto::etcdserverpb::TxnRequest;
use quorate::proto::etcdserverpb::WatchCreateRequest;
use quorate::proto::etcdserverpb::kv_client::KvClient;
use quorate::proto::etcdserverpb::request_op::Request as Op;
use tonic::transport::Channel;

use crate::cluster::Cluster;
use crate::cluster::Member;
use crate::cluster::put;
use crate::support::eventually;
use crate::watching::Watches;
use crate::watching::on;

async fn lone() -> (Cluster, KvClient<Channel>) {
    let cluster = Cluster::ours(1, &["--unsafe-no-fsync"]).await;
    let kv = KvClient::new(cluster.members[0].connect().await.expect("a connection"));
    (cluster, kv)
}

async fn open(member: &Member, first: WatchCreateRequest) -> Watches {
    Watches::open(member.connect().await.expect("a connection"), first).await.expect("a stream")
}

async fn put_many(kv: &mut KvClient<Channel>, key: &str, count: usize) -> i64 {
    let mut last = 0;
    for at in 0..count {
        last = put(kv, key, &at.to_string()).await.expect("a put");
    }
    last
}

async fn compact(kv: &mut KvClient<Channel>, revision: i64) {
    kv.compact(CompactionRequest { revision, physical: true }).await.expect("a compaction");
}

fn since(revision: i64, request: WatchCreateRequest) -> WatchCreateRequest {
    WatchCreateRequest { start_revision: revision, ..request }
}

/// B30, etcd 15220. Every notice is checked against every later event by `Watches`.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn b30_a_progress_notice_never_overtakes_an_event() {
    let (cluster, mut kv) = lone().await;
    let mut watches = open(&cluster.members[0], on("k", "")).await;
    watches.create(on("k", "l"));
    watches.until("both to be created", |watches| watches.seen.len() == 2).await;
    let writer = tokio::spawn(async move {
        for at in 0..400 {
            put(&mut kv, "k", &at.to_string()).await.expect("a put");
        }
    });
    let mut asked = 0;
    while watches.seen.values().any(|seen| seen.events.len() < 400) {
        watches.ask_progress();
        asked += 1;
        watches.next().await.expect("a response");
    }
    writer.await.expect("it writes to the end");
    watches.ask_progress();
    let last = watches.seen[&0].revisions()[399];
    watches.until("a notice of the end", |watches| watches.progress.last() == Some(&last)).await;
    assert!(asked > 10 && watches.progress.len() > 2, "{asked} asked, {} answered", watches.progress.len());
}

/// B31, etcd 15271, and B35, etcd 20221. A follower stands still, and comes back by a snapshot that is compacted far beyond.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn b31_b35_a_snapshot_takes_no_watcher_back_and_no_future_one_forward() {
    let cluster = Cluster::ours(3, &["--snapshot-count", "100", "--snapshot-catchup-entries", "50"]).await;
    let leader = cluster.leader().await;
    let follower = &cluster.members[(leader + 1) % 3];
    let mut kv = KvClient::new(cluster.members[leader].connect().await.expect("a connection"));
    let first = put_many(&mut kv, "k", 5).await;
    let far = first + 700;
    let mut watches = open(follower, since(first - 2, on("k", ""))).await;
    watches.create(since(far, on("k", "")));
    watches.create(on("idle", ""));
    watches.create(since(far, on("", "\0")));
    watches.until("the present", |watches| watches.seen.len() == 4 && watches.seen[&0].events.len() == 3).await;
    let snapshots = follower.log_count("installed a snapshot");
    follower.signal(Signal::SIGSTOP);
    let last = put_many(&mut kv, "k", 600).await;
    compact(&mut kv, last - 10).await;
    follower.signal(Signal::SIGCONT);
    eventually("a snapshot", async || match follower.log_count("installed a snapshot") > snapshots {
        true => Ok(()),
        false => Err(cluster.logs("none yet")),
    })
    .await;
    watches.until("word of the gap", |watches| watches.seen[&0].ended.is_some()).await;
    assert_eq!(watches.seen[&0].ended, Some((last - 10, String::new())));
    assert!(watches.seen[&1].events.is_empty() && watches.seen[&3].events.is_empty(), "they start at {far}");
    let last = put_many(&mut kv, "k", (far + 20 - last) as usize).await;
    watches.until("the future", |watches| watches.seen[&1].revisions().last() == Some(&last)).await;
    watches.until("the future", |watches| watches.seen[&3].revisions().last() == Some(&last)).await;
    assert_eq!(watches.seen[&1].revisions(), (far..=last).collect::<Vec<_>>());
    assert_eq!(watches.seen[&3].revisions(), (far..=last).collect::<Vec<_>>());
}

fn resident_bytes(member: &Member) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", member.pid())).expect("a process");
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).expect("a size");
    let kib = line.split_whitespace().nth(1).and_then(|number| number.parse::<u64>().ok());
    kib.expect("a number") * 1024
}

/// B32, etcd 17529 and 16839.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn b32_seven_hundred_slow_watchers_lose_nothing_and_cost_little() {
    const WATCHERS: usize = 700;
    const PUTS: usize = 120;
    let (cluster, mut kv) = lone().await;
    let member = &cluster.members[0];
    let request = WatchCreateRequest { prev_kv: true, ..on("k", "") };
    let mut watches = open(member, request.clone()).await;
    (1..WATCHERS).for_each(|_| watches.create(request.clone()));
    watches.until("all to be created", |watches| watches.seen.len() == WATCHERS).await;
    let before = resident_bytes(member);
    let value = "x".repeat(10_000);
    for _ in 0..PUTS {
        put(&mut kv, "k", &value).await.expect("a put");
    }
    // Nobody has read: 1.6 GB of events are due.
    let grown = resident_bytes(member).saturating_sub(before);
    assert!(grown < 128 << 20, "{grown} bytes more");
    let mut left = WATCHERS * PUTS;
    while left > 0 {
        left -= watches.next().await.expect("a response").events.len();
        // Kept are the last ones only: the order is checked against them.
        watches.seen.values_mut().for_each(|seen| {
            let kept = seen.events.len().saturating_sub(2);
            if kept > 30 {
                seen.events.drain(..kept);
            }
        });
    }
    let grown = resident_bytes(member).saturating_sub(before);
    assert!(grown < 128 << 20, "{grown} bytes more behind it");
}

/// B33, etcd 18089, and B34, etcd 19179.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn b33_b34_a_deletion_at_the_compaction_is_seen() {
    let (cluster, mut kv) = lone().await;
    put_many(&mut kv, "k", 3).await;
    let deleted = kv.delete_range(DeleteRangeRequest { key: "k".into(), ..Default::default() }).await;
    let deleted = deleted.expect("a delete").into_inner().header.expect("a header").revision;
    put_many(&mut kv, "other", 3).await;
    compact(&mut kv, deleted).await;
    let mut watches = open(&cluster.members[0], since(deleted, on("k", ""))).await;
    watches.create(since(deleted, on("", "\0")));
    watches.create(since(deleted - 1, on("k", "")));
    watches
        .until("history", |watches| {
            watches.seen.len() == 3 && watches.seen[&0].events.len() == 1 && watches.seen[&1].events.len() == 4
        })
        .await;
    assert_eq!(watches.seen[&0].events[0].r#type, 1);
    assert_eq!(watches.seen[&0].revisions(), [deleted]);
    watches.until("its end", |watches| watches.seen[&2].ended.is_some()).await;
    assert_eq!(watches.seen[&2].ended, Some((deleted, String::new())));
}

/// B36, etcd 17247: what is one revision comes once and whole.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn b36_a_transaction_comes_once_and_whole() {
    let (cluster, mut kv) = lone().await;
    let mut watches = open(&cluster.members[0], on("k", "l")).await;
    watches.create(since(2, on("k", "l")));
    let ops = (0..20).map(|at| {
        let put = PutRequest { key: format!("k{at}").into(), value: "v".into(), ..PutRequest::default() };
        RequestOp { request: Some(Op::RequestPut(put)) }
    });
    let ops: Vec<RequestOp> = ops.collect();
    for round in 0..10 {
        let range = DeleteRangeRequest { key: "k".into(), range_end: "k5".into(), ..Default::default() };
        let deletes = vec![RequestOp { request: Some(Op::RequestDeleteRange(range)) }];
        let success = if round % 3 == 2 { deletes } else { ops.clone() };
        kv.txn(TxnRequest { success, ..TxnRequest::default() }).await.expect("a transaction");
    }
    // 7 rounds of 20 puts, 3 of deleting k0, k1, k10 to k19, k2 to k4.
    let expected = 7 * 20 + 3 * 15;
    while watches.seen.len() < 2 || watches.seen.values().any(|seen| seen.events.len() < expected) {
        let response = watches.next().await.expect("a response");
        let mut sizes: BTreeMap<i64, usize> = BTreeMap::new();
        let revisions = response.events.iter().flat_map(|event| &event.kv).map(|kv| kv.mod_revision);
        revisions.for_each(|revision| *sizes.entry(revision).or_default() += 1);
        assert!(sizes.values().all(|size| [15, 20].contains(size)), "{sizes:?}");
    }
    assert!(watches.seen.values().all(|seen| seen.events.len() == expected));
}

/// B37, etcd PR 9775 and 20709.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn b37_no_start_revision_is_too_small_or_too_great() {
    let (mut cluster, mut kv) = lone().await;
    put_many(&mut kv, "k", 3).await;
    for round in 0..2 {
        let mut watches = open(&cluster.members[0], on("k", "")).await;
        for revision in [i64::MIN, -1, 0, 1, i64::MAX - 2, i64::MAX - 1, i64::MAX] {
            watches.create(since(revision, on("k", "")));
            watches.ask_progress();
        }
        watches.until("all to be created", |watches| watches.seen.len() == 7).await;
        let failed = "etcdserver: mvcc: required revision has been compacted".to_owned();
        assert_eq!(watches.seen[&-1].ended, Some((0, failed)));
        put(&mut kv, "k", "v").await.expect("a put");
        let after = 4 + round;
        watches.until("the past", |watches| watches.seen[&2].events.len() == after).await;
        watches.until("the present", |watches| watches.seen[&1].events.len() == 1).await;
        assert!((3..6).all(|id| watches.seen[&id].events.is_empty()));
        drop(watches);
        // And on a restored store.
        cluster.members[0].kill();
        cluster.members[0].start();
        cluster.wait_ready().await;
        kv = KvClient::new(cluster.members[0].connect().await.expect("a connection"));
    }
}

/// B38, etcd 15402: events come while large answers go out on the same connection.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn b38_large_reads_on_the_same_connection_hold_up_no_event() {
    let (cluster, kv) = lone().await;
    let channel = cluster.members[0].connect().await.expect("a connection");
    large_reads_and_events(channel, kv).await;
}

/// B38, etcd 15402: there it was TLS that showed it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn b38_large_reads_over_tls_hold_up_no_event() {
    let secured = crate::tls::Secured::demanding(crate::cluster::Program::Ours).await;
    let kv = KvClient::new(secured.cluster.members[0].connect().await.expect("a connection"));
    let channel = crate::tls::channel(&secured).await.expect("let in");
    large_reads_and_events(channel, kv).await;
}

/// Reads of five megabytes on the connection of a watch, and puts whose events must come meanwhile.
async fn large_reads_and_events(channel: Channel, mut kv: KvClient<Channel>) {
    let value = "x".repeat(100_000);
    for at in 0..50 {
        put(&mut kv, &format!("big/{at}"), &value).await.expect("a put");
    }
    let mut watches = Watches::open(channel.clone(), on("k", "")).await.expect("a stream");
    let (stop, stopped) = tokio::sync::watch::channel(false);
    let readers: Vec<_> = (0..8)
        .map(|_| {
            let mut kv = KvClient::new(channel.clone()).max_decoding_message_size(usize::MAX);
            let stopped = stopped.clone();
            tokio::spawn(async move {
                while !*stopped.borrow() {
                    let all = RangeRequest { key: "big".into(), range_end: "bih".into(), ..Default::default() };
                    kv.range(all).await.expect("five megabytes");
                }
            })
        })
        .collect();
    for at in 1..=20 {
        put(&mut kv, "k", "v").await.expect("a put");
        watches.until("the event", |watches| watches.seen.get(&0).is_some_and(|seen| seen.events.len() == at)).await;
    }
    stop.send(true).expect("they listen");
    for reader in readers {
        reader.await.expect("it reads to the end");
    }
}

/// B39, Xline 491 and 677, kine 238: where history ends and the present begins, nothing is missed.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn b39_watchers_that_begin_amid_writes_miss_nothing() {
    let (cluster, mut kv) = lone().await;
    let first = put_many(&mut kv, "k", 200).await;
    let (stop, stopped) = tokio::sync::watch::channel(false);
    let mut writing = kv.clone();
    let writer = tokio::spawn(async move {
        let mut last = 0;
        while !*stopped.borrow() {
            last = put(&mut writing, "k", "v").await.expect("a put");
        }
        last
    });
    let mut all = Vec::new();
    for round in 0..12 {
        let watches = open(&cluster.members[0], since(first - 150 + round, on("k", ""))).await;
        for at in 0..10 {
            watches.create(since(
                if at % 3 == 0 { 0 } else { first - at * 15 },
                on("k", if at % 2 == 0 { "l" } else { "" }),
            ));
        }
        all.push(watches);
    }
    for watches in &mut all {
        watches.until("all to be created", |watches| watches.seen.len() == 11).await;
    }
    stop.send(true).expect("it listens");
    let last = writer.await.expect("it writes to the end");
    for watches in &mut all {
        let is_there = |seen: &crate::watching::Seen| seen.revisions().last() == Some(&last);
        watches.until("the last", |watches| watches.seen.len() == 11 && watches.seen.values().all(is_there)).await;
        for seen in watches.seen.values() {
            let revisions = seen.revisions();
            assert_eq!(revisions, (revisions[0]..=last).collect::<Vec<_>>());
        }
    }
    compact(&mut kv, last).await;
    let mut late = open(&cluster.members[0], since(last - 1, on("k", ""))).await;
    late.until("its end", |watches| watches.seen.get(&0).is_some_and(|seen| seen.ended.is_some())).await;
    assert_eq!(late.seen[&0].ended, Some((last, String::new())));
}

//! Bugs that showed something old, did something twice, or stopped serving (reliability.md 2.2), with real processes.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::AtomicUsize;
use std::sync::atomic::Ordering;
use std::time::Duration;

use quorate::client::Client;
use quorate::client::Config;
use quorate::client::Deadline;
use quorate::proto::etcdserverpb::PutRequest;
use quorate::proto::etcdserverpb::RangeRequest;
use quorate::proto::etcdserverpb::RequestOp;
use quorate::proto::etcdserverpb::TxnRequest;
use quorate::proto::etcdserverpb::kv_client::KvClient;
use quorate::proto::etcdserverpb::request_op::Request;
use tokio::task::JoinHandle;

use crate::cluster::Cluster;
use crate::cluster::Member;
use crate::support::eventually;
use crate::support::http_get;

/// The value that the member has, without asking anybody.
async fn local(member: &Member, key: &str) -> String {
    let request = RangeRequest { key: key.to_owned().into(), serializable: true, ..RangeRequest::default() };
    let channel = member.connect().await.expect("a connection");
    let response = KvClient::new(channel).range(request).await.expect("a local read").into_inner();
    String::from_utf8_lossy(&response.kvs[0].value).into_owned()
}

/// B26, etcd 3879: a member that had just started served what its log began with, while it was still reading the rest.
/// The first linearizable answer, and every answer behind a first "ready", is the newest.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn b26_a_restarted_member_says_nothing_old() {
    let mut cluster = Cluster::ours(3, &[]).await;
    let away = (cluster.leader().await + 1) % 3;
    for round in 0..3 {
        cluster.members[away].kill();
        let leader = cluster.leader().await;
        for number in 0..100 {
            cluster.members[leader].put("progress", &format!("{round}/{number}")).await.expect("a put");
        }
        let newest = format!("{round}/99");
        cluster.members[away].start();
        let member = &cluster.members[away];
        let read = eventually("a first linearizable answer", async || {
            member.get("progress").await.map_err(|status| status.to_string())
        });
        let ready = eventually("readiness", async || match http_get(member.client_port, "/readyz").await {
            (200, _) => Ok(local(member, "progress").await),
            (status, body) => Err(format!("{status} {body}")),
        });
        let (first, when_ready) = tokio::join!(read, ready);
        assert_eq!(first.kvs[0].value, newest, "{}", cluster.logs("an old value"));
        assert_eq!(when_ready, newest, "{}", cluster.logs("ready too early"));
    }
}

/// A client of ours over all members that puts new values at one key, one after the other.
struct Appender {
    key: String,
    acknowledged: Arc<AtomicUsize>,
    /// The values in the order of the calls, and which of them were acknowledged.
    task: JoinHandle<(usize, BTreeSet<String>)>,
}

impl Appender {
    fn start(number: usize, cluster: &Cluster, stop: &Arc<AtomicBool>) -> Appender {
        let endpoints = cluster.members.iter().map(Member::endpoint).collect();
        let client = Client::open(Config::new(endpoints)).expect("plain endpoints");
        let (key, acknowledged) = (format!("append/{number}"), Arc::new(AtomicUsize::new(0)));
        let (stop, counted, at) = (Arc::clone(stop), Arc::clone(&acknowledged), key.clone());
        let task = tokio::spawn(async move {
            let (mut calls, mut told) = (0, BTreeSet::new());
            while !stop.load(Ordering::Relaxed) {
                let value = calls.to_string();
                calls += 1;
                let request =
                    PutRequest { key: at.clone().into(), value: value.clone().into(), ..PutRequest::default() };
                if client.put(request, Deadline::after(Duration::from_secs(3))).await.is_ok() {
                    told.insert(value);
                    counted.fetch_add(1, Ordering::Relaxed);
                }
            }
            (calls, told)
        });
        Appender { key, acknowledged, task }
    }

    fn count(&self) -> usize {
        self.acknowledged.load(Ordering::Relaxed)
    }
}

async fn until_all_got_on(appenders: &[Appender], more: usize) {
    let goals: Vec<usize> = appenders.iter().map(|appender| appender.count() + more).collect();
    eventually("every client to get on", async || {
        let counts: Vec<usize> = appenders.iter().map(Appender::count).collect();
        let reached = counts.iter().zip(&goals).all(|(count, goal)| count >= goal);
        if reached { Ok(()) } else { Err(format!("{counts:?} of {goals:?}")) }
    })
    .await;
}

/// Every value that the key ever had, oldest first.
async fn history(member: &Member, key: &str) -> Vec<String> {
    let channel = member.connect().await.expect("a connection");
    let mut client = KvClient::new(channel);
    let mut values = Vec::new();
    let mut revision = 0;
    loop {
        let request = RangeRequest { key: key.to_owned().into(), revision, ..RangeRequest::default() };
        let response = client.range(request).await.expect("nothing is compacted").into_inner();
        let Some(kv) = response.kvs.into_iter().next() else { break };
        values.push(String::from_utf8_lossy(&kv.value).into_owned());
        revision = kv.mod_revision - 1;
    }
    values.reverse();
    values
}

/// B27, jetcd 0.8.2 (Jepsen 2024), etcd 14890, TiDB 2.1.7: clients repeated writes whose outcome was unknown. With
/// members killed under them, no call of our client may be there twice, and no acknowledged one may be missing.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn b27_no_append_is_doubled_when_members_are_killed() {
    let mut cluster = Cluster::ours(3, &["--heartbeat-interval", "50", "--election-timeout", "500"]).await;
    let stop = Arc::new(AtomicBool::new(false));
    let appenders: Vec<Appender> = (0..6).map(|number| Appender::start(number, &cluster, &stop)).collect();
    for round in 0_usize..6 {
        until_all_got_on(&appenders, 10).await;
        let victim = if round.is_multiple_of(2) { cluster.leader().await } else { round % 3 };
        cluster.members[victim].kill();
        cluster.members[victim].start();
        cluster.members[victim].wait_ready().await;
    }
    until_all_got_on(&appenders, 1).await;
    stop.store(true, Ordering::Relaxed);
    for appender in appenders {
        let (calls, told) = appender.task.await.expect("the client does not panic");
        let values = history(&cluster.members[0], &appender.key).await;
        let numbers: Vec<usize> = values.iter().map(|value| value.parse().expect("our numbers")).collect();
        // One call follows the other's end, but a given-up one may still be on its way: not in order, and once all the
        // same.
        let once: BTreeSet<String> = values.iter().cloned().collect();
        assert_eq!(once.len(), values.len(), "{} has a value twice: {numbers:?}", appender.key);
        assert!(numbers.iter().all(|number| *number < calls), "{numbers:?} of {calls} calls");
        let missing: Vec<&String> = told.difference(&once).collect();
        assert!(missing.is_empty(), "{} lacks {missing:?}", appender.key);
    }
    cluster.hashes_agree().await;
}

/// B29, Xline 640: a put that named a lease which does not exist was never answered, and nothing behind it either. It
/// is an answer, at every member, within transactions too, and the next put goes through.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn b29_a_put_with_an_unknown_lease_is_answered_and_holds_nobody_up() {
    let cluster = Cluster::ours(3, &[]).await;
    for (round, member) in cluster.members.iter().chain(&cluster.members).enumerate() {
        let mut client = KvClient::new(member.connect().await.expect("a connection"));
        let put = PutRequest { key: "leased".into(), lease: 4711, ..PutRequest::default() };
        let inside = RequestOp { request: Some(Request::RequestPut(put.clone())) };
        let alone = client.put(put).await.expect_err("there is no such lease");
        let inside = client.txn(TxnRequest { success: vec![inside], ..TxnRequest::default() }).await;
        for status in [alone, inside.expect_err("there is no such lease")] {
            assert_eq!(status.code(), tonic::Code::NotFound, "{status}");
            assert_eq!(status.message(), "etcdserver: requested lease not found");
        }
        let revision = member.put("next", &round.to_string()).await.expect("nothing holds it up");
        assert_eq!(revision, 2 + round as i64, "a refused put makes no revision");
    }
    assert!(cluster.members[0].get("leased").await.expect("a read").kvs.is_empty());
    cluster.hashes_agree().await;
}

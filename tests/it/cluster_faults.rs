//! What three processes must survive: kill -9 of one and of all, long absence, a paused leader.
//!
//! In each scenario a writer records which puts were acknowledged; at the end every one of them is readable on every
//! member and all members hash alike.

use std::collections::BTreeMap;
use std::os::unix::process::ExitStatusExt;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering;
use std::time::Duration;

use nix::sys::signal::Signal;
use quorate::faults::network::Link;
use quorate::proto::etcdserverpb::CompactionRequest;
use quorate::proto::etcdserverpb::RangeRequest;
use quorate::proto::etcdserverpb::kv_client::KvClient;
use tokio::task::JoinHandle;

use crate::cluster::Cluster;
use crate::cluster::channel;
use crate::cluster::put;
use crate::cluster::relayed;
use crate::support::eventually;

/// Writes unique keys through any member, going to the next after an error, until stopped.
pub struct Writer {
    stop: Arc<AtomicBool>,
    acknowledged: Arc<Mutex<BTreeMap<String, i64>>>,
    task: JoinHandle<()>,
}

impl Writer {
    pub fn start(prefix: &str, cluster: &Cluster) -> Writer {
        let stop = Arc::new(AtomicBool::new(false));
        let acknowledged = Arc::new(Mutex::new(BTreeMap::new()));
        let endpoints: Vec<String> = cluster.members.iter().map(|member| member.endpoint()).collect();
        let task = tokio::spawn(write(prefix.to_owned(), endpoints, Arc::clone(&stop), Arc::clone(&acknowledged)));
        Writer { stop, acknowledged, task }
    }

    fn count(&self) -> usize {
        self.acknowledged.lock().expect("no writer panicked").len()
    }

    /// Waits until `more` further writes were acknowledged: the cluster is making progress.
    pub async fn progress(&self, more: usize) {
        let goal = self.count() + more;
        eventually("acknowledged writes", async || {
            let count = self.count();
            if count >= goal { Ok(()) } else { Err(format!("{count} of {goal}")) }
        })
        .await;
    }

    pub async fn finish(self) -> BTreeMap<String, i64> {
        self.stop.store(true, Ordering::Relaxed);
        self.task.await.expect("the writer does not panic");
        Arc::try_unwrap(self.acknowledged).expect("the writer has ended").into_inner().expect("no writer panicked")
    }
}

async fn write(
    prefix: String,
    endpoints: Vec<String>,
    stop: Arc<AtomicBool>,
    acknowledged: Arc<Mutex<BTreeMap<String, i64>>>,
) {
    let mut number = 0_u64;
    for endpoint in endpoints.iter().cycle() {
        if stop.load(Ordering::Relaxed) {
            return;
        }
        let Ok(channel) = channel(endpoint).await else {
            tokio::task::yield_now().await;
            continue;
        };
        let mut client = KvClient::new(channel);
        while !stop.load(Ordering::Relaxed) {
            number += 1;
            // A key is written once: an unknown outcome is never confused with another write.
            let key = format!("{prefix}/{number:08}");
            match put(&mut client, &key, &key).await {
                Ok(revision) => acknowledged.lock().expect("no reader panicked").insert(key, revision),
                Err(_) => break,
            };
        }
    }
}

/// Every acknowledged write is on every member at its revision, and all members hash alike.
pub async fn check(cluster: &Cluster, prefix: &str, acknowledged: &BTreeMap<String, i64>) {
    assert!(!acknowledged.is_empty(), "nothing was written");
    cluster.hashes_agree().await;
    for member in &cluster.members {
        let all = RangeRequest {
            key: format!("{prefix}/").into(),
            range_end: format!("{prefix}0").into(),
            ..RangeRequest::default()
        };
        let channel = member.connect().await.expect("a connection");
        let mut client = KvClient::new(channel).max_decoding_message_size(usize::MAX);
        let response = client.range(all).await.expect("a linearizable read").into_inner();
        let there: BTreeMap<String, i64> = response
            .kvs
            .iter()
            .map(|kv| (String::from_utf8(kv.key.to_vec()).expect("our keys"), kv.mod_revision))
            .collect();
        for (key, revision) in acknowledged {
            let found = there.get(key);
            assert_eq!(found, Some(revision), "{key} on {}: {}", member.name, cluster.logs("acknowledged, then lost"));
        }
    }
}

/// B1, etcd 13766, with real processes: kill -9 under load, wherever apply and commit are; afterwards all hash alike.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn b01_killing_any_one_member_loses_nothing() {
    let mut cluster = Cluster::ours(3, &[]).await;
    let writer = Writer::start("one", &cluster);
    for position in [0, 1, 2] {
        writer.progress(50).await;
        cluster.members[position].kill();
        writer.progress(50).await;
        cluster.members[position].start();
        cluster.members[position].wait_ready().await;
    }
    let acknowledged = writer.finish().await;
    check(&cluster, "one", &acknowledged).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn killing_the_leader_again_and_again_loses_nothing() {
    let mut cluster = Cluster::ours(3, &[]).await;
    let writer = Writer::start("leader", &cluster);
    for _ in 0..4 {
        let leader = cluster.leader().await;
        writer.progress(20).await;
        cluster.members[leader].kill();
        writer.progress(20).await;
        cluster.members[leader].start();
        cluster.members[leader].wait_ready().await;
    }
    let acknowledged = writer.finish().await;
    check(&cluster, "leader", &acknowledged).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn killing_all_members_at_once_loses_nothing() {
    let mut cluster = Cluster::ours(3, &[]).await;
    let writer = Writer::start("all", &cluster);
    for _ in 0..3 {
        writer.progress(80).await;
        for member in &cluster.members {
            member.signal(Signal::SIGKILL);
        }
        for member in &mut cluster.members {
            member.wait_exit();
        }
        for member in &mut cluster.members {
            member.start();
        }
        cluster.wait_ready().await;
    }
    writer.progress(20).await;
    let acknowledged = writer.finish().await;
    check(&cluster, "all", &acknowledged).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lone_member_killed_under_load_loses_nothing() {
    let mut cluster = Cluster::ours(1, &[]).await;
    let writer = Writer::start("lone", &cluster);
    for _ in 0..8 {
        writer.progress(60).await;
        cluster.members[0].kill();
        cluster.members[0].start();
        cluster.wait_ready().await;
    }
    let acknowledged = writer.finish().await;
    check(&cluster, "lone", &acknowledged).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_follower_away_past_compaction_comes_back_by_snapshot() {
    let mut cluster = Cluster::ours(3, &["--snapshot-count", "100", "--snapshot-catchup-entries", "50"]).await;
    let leader = cluster.leader().await;
    let away = (leader + 1) % 3;
    let writer = Writer::start("away", &cluster);
    writer.progress(50).await;
    cluster.members[away].kill();
    writer.progress(600).await;
    let acknowledged = writer.finish().await;
    compact_at_head(&cluster, leader).await;
    cluster.members[away].start();
    cluster.members[away].wait_ready().await;
    check(&cluster, "away", &acknowledged).await;
    let log = cluster.members[away].log_text();
    assert!(log.contains("snapshot"), "it was expected to receive a snapshot: {}", cluster.logs("no snapshot"));
    // What came by snapshot survives its own restart.
    cluster.members[away].kill();
    cluster.members[away].start();
    cluster.members[away].wait_ready().await;
    check(&cluster, "away", &acknowledged).await;
}

async fn compact_at_head(cluster: &Cluster, through: usize) {
    let member = &cluster.members[through];
    let revision = member.put("compacted", "here").await.expect("a put");
    let channel = member.connect().await.expect("a connection");
    KvClient::new(channel).compact(CompactionRequest { revision, physical: true }).await.expect("a compaction");
}

/// B22, etcd 20418: a leader that was stopped for a while, and deposed meanwhile, took late answers to an old question
/// for a confirmation, and served a read from before the others' writes.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn b22_a_paused_leader_never_serves_what_is_no_longer_true() {
    let cluster = Cluster::ours(3, &[]).await;
    for round in 0..3 {
        let old = cluster.leader().await;
        let key = format!("paused/{round}");
        cluster.members[old].put(&key, "before").await.expect("a put");
        cluster.members[old].pause();
        let other = (old + 1) % 3;
        eventually("a write through the others", async || {
            cluster.members[other].put(&key, "after").await.map_err(|status| status.to_string())
        })
        .await;
        // Asked while it still believes that it leads; answered after it wakes up.
        let endpoint = cluster.members[old].endpoint();
        let asked = {
            let key = key.clone();
            let channel = channel(&endpoint).await;
            tokio::spawn(async move {
                let read = RangeRequest { key: key.into(), ..RangeRequest::default() };
                match channel {
                    Ok(channel) => KvClient::new(channel).range(read).await.map(tonic::Response::into_inner),
                    Err(status) => Err(status),
                }
            })
        };
        cluster.members[old].signal(Signal::SIGCONT);
        if let Ok(response) = asked.await.expect("the reader does not panic") {
            assert_eq!(response.kvs[0].value.as_ref(), b"after", "a stale read, round {round}");
        }
        cluster.members[old].wait_ready().await;
    }
    cluster.hashes_agree().await;
}

/// Two times: no wire at all until everybody noticed, then all of them back.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_network_goes_away_and_comes_back() {
    let (cluster, network) = relayed(&["--heartbeat-interval", "50", "--election-timeout", "500"]).await;
    for round in 0..2 {
        let writer = Writer::start(&format!("net{round}"), &cluster);
        writer.progress(30).await;
        network.set(|_, _| Link { cut: true, ..Link::default() });
        eventually("nobody to lead", async || {
            for member in &cluster.members {
                let status = member.status().await.map_err(|status| status.to_string())?;
                if status.leader != 0 {
                    return Err(format!("{} follows {:x}", member.name, status.leader));
                }
            }
            Ok(())
        })
        .await;
        network.heal();
        writer.progress(60).await;
        let acknowledged = writer.finish().await;
        check(&cluster, &format!("net{round}"), &acknowledged).await;
    }
}

/// Its peers cannot reach the leader any more, though it still reaches them: the others go on, and so does it later.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leader_that_nobody_reaches_stands_in_nobodys_way() {
    let (cluster, network) = relayed(&["--heartbeat-interval", "50", "--election-timeout", "500"]).await;
    for round in 0..3 {
        let leader = cluster.leader().await;
        let writer = Writer::start(&format!("half{round}"), &cluster);
        writer.progress(30).await;
        network.set(|_, to| Link { cut: to == leader, ..Link::default() });
        writer.progress(100).await;
        network.heal();
        writer.progress(30).await;
        let acknowledged = writer.finish().await;
        check(&cluster, &format!("half{round}"), &acknowledged).await;
    }
}

/// B29: killed at every stage of coming back, from the first instruction to writes under way.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn crash_upon_crash_of_all_members_and_it_still_serves() {
    let mut cluster = Cluster::ours(3, &["--snapshot-count", "50", "--snapshot-catchup-entries", "20"]).await;
    let writer = Writer::start("crash", &cluster);
    writer.progress(30).await;
    for round in 0..20 {
        tokio::time::sleep(Duration::from_millis(round * 50)).await;
        cluster.members.iter().for_each(|member| member.signal(Signal::SIGKILL));
        for member in &mut cluster.members {
            let status = member.wait_exit();
            assert_eq!(status.signal(), Some(Signal::SIGKILL as i32), "{} ended by itself: {status}", member.name);
            member.start();
        }
    }
    cluster.wait_ready().await;
    writer.progress(30).await;
    let acknowledged = writer.finish().await;
    check(&cluster, "crash", &acknowledged).await;
}

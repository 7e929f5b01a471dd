//! A real etcd 3.5.1 member among ours: writes through each, the leader on each side, equal hashes, equal logs.

use nix::sys::signal::Signal;
use quorate::proto::etcdserverpb::CompactionRequest;
use quorate::proto::etcdserverpb::kv_client::KvClient;

use crate::cluster::Cluster;
use crate::cluster::Member;
use crate::cluster::Program;
use crate::cluster::put;
use crate::members_work::took_over;
use crate::mixed_work::Acknowledged;
use crate::mixed_work::grant_lease;
use crate::mixed_work::write_through_each;
use crate::oracle::Oracle;
use crate::oracle::oracle;
use crate::support::eventually;

/// Position of the real member where there is one.
const REAL: usize = 2;

fn two_of_ours(real: &Oracle) -> [Program; 3] {
    [Program::Ours, Program::Ours, Program::Etcd(real.etcd.clone())]
}

fn one_of_ours(real: &Oracle) -> [Program; 3] {
    [Program::Ours, Program::Etcd(real.etcd.clone()), Program::Etcd(real.etcd.clone())]
}

async fn compact(member: &Member, physical: bool) {
    let revision = member.put("compact", "here").await.expect("a put");
    let channel = member.connect().await.expect("a connection");
    let request = CompactionRequest { revision: revision - 10, physical };
    KvClient::new(channel).compact(request).await.expect("a compaction");
}

/// Stops everybody and compares the logs.
fn end(mut cluster: Cluster) {
    for member in &mut cluster.members {
        member.terminate();
    }
    assert!(cluster.logs_agree() > 10, "the logs have nothing in common");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_real_member_and_two_of_ours_agree_whoever_leads() {
    let Some(real) = oracle("a_real_member_and_two_of_ours_agree_whoever_leads") else { return };
    let mut cluster = Cluster::start(&two_of_ours(real), &[]).await;
    cluster.move_leader(|leader| leader != REAL).await;
    write_through_each(&cluster, "ours-leads").await;
    compact(&cluster.members[REAL], true).await;
    cluster.hashes_agree().await;
    cluster.move_leader(|leader| leader == REAL).await;
    write_through_each(&cluster, "real-leads").await;
    compact(&cluster.members[0], true).await;
    cluster.hashes_agree().await;
    compact(&cluster.members[1], false).await;
    cluster.hashes_agree().await;
    end(cluster);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn leadership_is_handed_over_both_ways() {
    let Some(real) = oracle("leadership_is_handed_over_both_ways") else { return };
    let mut cluster = Cluster::start(&one_of_ours(real), &[]).await;
    // From a real one, by its MoveLeader: nobody waited for an election.
    cluster.move_leader(|leader| leader != 0).await;
    let before = cluster.members[0].status().await.expect("a status").raft_term;
    cluster.move_leader(|leader| leader == 0).await;
    assert!(took_over(&cluster.members[0], before), "{}", cluster.logs("it waited for an election"));
    write_through_each(&cluster, "ours").await;
    // And back, by our orderly stop.
    cluster.move_leader(|leader| leader == 0).await;
    let told = |cluster: &Cluster| cluster.members[1..].iter().map(|m| m.log_count("received MsgTimeoutNow")).sum();
    let before: usize = told(&cluster);
    cluster.members[0].terminate();
    assert_ne!(cluster.leader().await, 0);
    assert!(told(&cluster) > before, "{}", cluster.logs("nothing handed over"));
    write_through_each(&cluster, "theirs").await;
    cluster.members[0].start();
    cluster.members[0].wait_ready().await;
    cluster.hashes_agree().await;
    end(cluster);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_lost_when_members_of_either_kind_are_killed() {
    let Some(real) = oracle("nothing_is_lost_when_members_of_either_kind_are_killed") else { return };
    for programs in [two_of_ours(real), one_of_ours(real)] {
        let mut cluster = Cluster::start(&programs, &[]).await;
        let lease = grant_lease(&cluster.members[REAL]).await;
        let mut acknowledged = Acknowledged::default();
        acknowledged.work(&cluster, 0, 200, lease).await;
        for victim in 0..3 {
            // The leader first, then whoever is next: a leader and followers of each kind die in the end.
            let leader = cluster.leader().await;
            let victim = (leader + victim) % 3;
            cluster.members[victim].kill();
            acknowledged.work(&cluster, victim as u64 + 1, 100, lease).await;
            cluster.members[victim].start();
            // While it catches up, the others go on.
            acknowledged.work(&cluster, victim as u64 + 11, 50, lease).await;
            cluster.members[victim].wait_ready().await;
            compact(&cluster.members[victim], false).await;
        }
        for member in &mut cluster.members {
            member.kill();
        }
        for member in &mut cluster.members {
            member.start();
        }
        cluster.wait_ready().await;
        acknowledged.check(&cluster).await;
        assert!(acknowledged.count() > 300, "{}", cluster.logs("most writes were refused"));
        cluster.hashes_agree().await;
        end(cluster);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_paused_leader_of_either_kind_follows_when_it_wakes() {
    let Some(real) = oracle("a_paused_leader_of_either_kind_follows_when_it_wakes") else { return };
    let mut cluster = Cluster::start(&one_of_ours(real), &[]).await;
    let mut acknowledged = Acknowledged::default();
    for leads in [0, REAL] {
        cluster.move_leader(|leader| leader == leads).await;
        // It stops in the midst of writes, so that it keeps entries which the others never saw.
        let paused = &cluster.members[leads];
        let term = paused.status().await.expect("a status").raft_term;
        let other = &cluster.members[1];
        let pause = async {
            paused.put("last", "words").await.expect("a put");
            paused.signal(Signal::SIGSTOP);
            eventually("another leader", async || {
                let status = other.status().await.map_err(|status| status.to_string())?;
                if status.leader != 0 && status.raft_term > term { Ok(()) } else { Err(cluster.logs("none yet")) }
            })
            .await;
            paused.signal(Signal::SIGCONT);
        };
        tokio::join!(acknowledged.work(&cluster, leads as u64, 150, 0), pause);
        cluster.wait_ready().await;
        assert!(cluster.members[1].status().await.expect("a status").raft_term > term);
    }
    acknowledged.check(&cluster).await;
    cluster.hashes_agree().await;
    end(cluster);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn everybody_says_the_same_about_the_cluster() {
    let Some(real) = oracle("everybody_says_the_same_about_the_cluster") else { return };
    for programs in [two_of_ours(real), one_of_ours(real)] {
        let mut cluster = Cluster::start(&programs, &[]).await;
        for leads in [0, REAL] {
            cluster.move_leader(|leader| leader == leads).await;
            same_facts(&cluster, real).await;
        }
        // The version was agreed on before: it must outlive a restart of the log's readers.
        for position in [0, REAL] {
            cluster.members[position].terminate();
            cluster.members[position].start();
            cluster.members[position].wait_ready().await;
        }
        same_facts(&cluster, real).await;
        end(cluster);
    }
}

/// Cluster version 3.5.0, the same members with their names, the same leader, term and index, at every member.
async fn same_facts(cluster: &Cluster, real: &Oracle) {
    let leader = cluster.members[cluster.leader().await].id().await;
    eventually("the same facts everywhere", async || {
        let mut lists = Vec::new();
        let mut marks = Vec::new();
        for member in &cluster.members {
            let version = http_get(&member.endpoint(), "/version").await;
            if !version.contains(r#""etcdcluster":"3.5.0""#) {
                return Err(format!("{} says {version}", member.name));
            }
            lists.push(real.ctl(&member.endpoint(), &["member", "list"])?);
            let status = member.status().await.map_err(|status| status.to_string())?;
            assert!(!status.is_learner);
            marks.push((status.leader, status.raft_term, status.raft_index, status.raft_applied_index));
        }
        let names = (1..=cluster.members.len()).all(|number| lists[0].contains(&format!("started, m{number}, ")));
        let same = lists.windows(2).all(|pair| pair[0] == pair[1]) && marks.windows(2).all(|pair| pair[0] == pair[1]);
        if names && same && marks[0].0 == leader { Ok(()) } else { Err(cluster.logs(&format!("{lists:?} {marks:?}"))) }
    })
    .await;
}

/// The body of an answer, or what went wrong.
async fn http_get(endpoint: &str, path: &str) -> String {
    use tokio::io::AsyncReadExt;
    use tokio::io::AsyncWriteExt;
    let exchange = async {
        let mut stream = tokio::net::TcpStream::connect(endpoint).await?;
        let request = format!("GET {path} HTTP/1.1\r\nHost: {endpoint}\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await?;
        Ok::<_, std::io::Error>(answer)
    };
    exchange.await.unwrap_or_else(|error| error.to_string())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn snapshots_go_both_ways_between_ours_and_a_real_member() {
    let Some(real) = oracle("snapshots_go_both_ways_between_ours_and_a_real_member") else { return };
    let mut cluster = Cluster::prepare(&two_of_ours(real), &["--snapshot-count", "100"]);
    for member in &mut cluster.members[..REAL] {
        member.add_args(&["--snapshot-catchup-entries", "50"]);
    }
    cluster.members[REAL].use_config_file(&[("SnapshotCatchUpEntries", "50")]);
    for member in &mut cluster.members {
        member.start();
    }
    cluster.wait_ready().await;
    let lease = grant_lease(&cluster.members[REAL]).await;
    // Away while ours leads: the real member comes back by a snapshot of ours.
    cluster.move_leader(|leader| leader != REAL).await;
    let received = "received and saved database snapshot";
    let before = cluster.members[REAL].log_count(received);
    cluster.members[REAL].kill();
    away_writes(&cluster, 0, "real-away").await;
    cluster.members[REAL].start();
    cluster.members[REAL].wait_ready().await;
    assert!(cluster.members[REAL].log_count(received) > before, "{}", cluster.logs("it came by the log"));
    cluster.hashes_agree().await;
    // It is whole: it serves, restarts, and leads.
    cluster.members[REAL].kill();
    cluster.members[REAL].start();
    cluster.members[REAL].wait_ready().await;
    // Away while the real member leads: ours comes back by a snapshot of its.
    cluster.move_leader(|leader| leader == REAL).await;
    let before = cluster.members[0].log_count("installed a snapshot");
    cluster.members[0].kill();
    away_writes(&cluster, REAL, "ours-away").await;
    cluster.members[0].start();
    cluster.members[0].wait_ready().await;
    assert!(cluster.members[0].log_count("installed a snapshot") > before, "{}", cluster.logs("it came by the log"));
    cluster.hashes_agree().await;
    let read = cluster.members[0].get("ours-away/699").await.expect("a read");
    assert_eq!(read.count, 1);
    // Both go on from what they got, after unclean ends too; the lease crossed with the image.
    for position in [0, REAL] {
        cluster.members[position].kill();
        cluster.members[position].start();
        cluster.members[position].wait_ready().await;
    }
    let mut acknowledged = Acknowledged::default();
    acknowledged.work(&cluster, 0, 60, lease).await;
    acknowledged.check(&cluster).await;
    cluster.hashes_agree().await;
}

async fn away_writes(cluster: &Cluster, through: usize, prefix: &str) {
    let member = &cluster.members[through];
    let mut client = KvClient::new(member.connect().await.expect("a connection"));
    for number in 0..700 {
        let key = format!("{prefix}/{number}");
        put(&mut client, &key, "x").await.unwrap_or_else(|status| panic!("{}", cluster.logs(&status.to_string())));
    }
}

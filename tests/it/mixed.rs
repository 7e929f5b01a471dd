//! A real etcd 3.5.1 member among ours: writes through each, the leader on each side, equal hashes.

use quorate::proto::etcdserverpb::CompactionRequest;
use quorate::proto::etcdserverpb::MoveLeaderRequest;
use quorate::proto::etcdserverpb::RangeRequest;
use quorate::proto::etcdserverpb::kv_client::KvClient;
use quorate::proto::etcdserverpb::maintenance_client::MaintenanceClient;

use crate::cluster::Cluster;
use crate::cluster::Program;
use crate::cluster::put;
use crate::oracle::oracle;
use crate::support::eventually;

/// Position of the real member.
const REAL: usize = 2;

async fn start(test: &str) -> Option<Cluster> {
    let real = oracle(test)?;
    let programs = [Program::Ours, Program::Ours, Program::Etcd(real.etcd.clone())];
    Some(Cluster::start(&programs, &[]).await)
}

/// Some hundred writes through every member, each read back through the next one.
async fn write_through_each(cluster: &Cluster, prefix: &str) {
    for (position, member) in cluster.members.iter().enumerate().filter(|(_, member)| member.is_running()) {
        let mut client = KvClient::new(member.connect().await.expect("a connection"));
        for number in 0..100 {
            let key = format!("{prefix}/{position}/{number}");
            put(&mut client, &key, &key)
                .await
                .unwrap_or_else(|status| panic!("{}", cluster.logs(&format!("{key}: {status}"))));
        }
        let running: Vec<_> = cluster.members.iter().filter(|member| member.is_running()).collect();
        let reader = running[(position + 1) % running.len()];
        let last = reader.get(&format!("{prefix}/{position}/99")).await.expect("a linearizable read");
        assert_eq!(last.count, 1, "{prefix} through {} read at {}", member.name, reader.name);
    }
}

/// Leadership goes to any member but the one that has it until `wanted` says yes.
async fn move_leader(cluster: &mut Cluster, wanted: impl Fn(usize) -> bool) -> usize {
    for _ in 0..20 {
        let leader = cluster.leader().await;
        if wanted(leader) {
            return leader;
        }
        // Killed leaders come back as followers; who follows them is chance, so this repeats.
        cluster.members[leader].kill();
        cluster.leader().await;
        cluster.members[leader].start();
        cluster.members[leader].wait_ready().await;
    }
    panic!("{}", cluster.logs("leadership never got there"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_real_member_and_two_of_ours_agree_whoever_leads() {
    let Some(mut cluster) = start("a_real_member_and_two_of_ours_agree_whoever_leads").await else { return };
    write_through_each(&cluster, "first").await;
    cluster.hashes_agree().await;
    move_leader(&mut cluster, |leader| leader != REAL).await;
    write_through_each(&cluster, "ours-leads").await;
    cluster.hashes_agree().await;
    let leader = move_leader(&mut cluster, |leader| leader == REAL).await;
    write_through_each(&cluster, "real-leads").await;
    let member = &cluster.members[leader];
    let revision = member.put("compact", "here").await.expect("a put");
    let channel = member.connect().await.expect("a connection");
    KvClient::new(channel).compact(CompactionRequest { revision, physical: true }).await.expect("a compaction");
    cluster.hashes_agree().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_real_leader_hands_over_to_ours_on_request() {
    let Some(mut cluster) = start("the_real_leader_hands_over_to_ours_on_request").await else { return };
    let leader = move_leader(&mut cluster, |leader| leader == REAL).await;
    let target = cluster.members[0].status().await.expect("a status").header.expect("a header").member_id;
    let channel = cluster.members[leader].connect().await.expect("a connection");
    let request = MoveLeaderRequest { target_id: target };
    MaintenanceClient::new(channel).move_leader(request).await.expect("leadership moves");
    assert_eq!(cluster.leader().await, 0);
    write_through_each(&cluster, "moved").await;
    cluster.hashes_agree().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn snapshots_go_both_ways_between_ours_and_a_real_member() {
    let Some(real) = oracle("snapshots_go_both_ways_between_ours_and_a_real_member") else { return };
    let programs = [Program::Ours, Program::Ours, Program::Etcd(real.etcd.clone())];
    let extra = ["--snapshot-count", "100"];
    let mut cluster = Cluster::prepare(&programs, &extra);
    for member in &mut cluster.members[..2] {
        member.add_args(&["--snapshot-catchup-entries", "50"]);
    }
    cluster.members[REAL].use_config_file(&[("SnapshotCatchUpEntries", "50")]);
    for member in &mut cluster.members {
        member.start();
    }
    cluster.wait_ready().await;
    // Away while ours leads: the real member comes back by a snapshot of ours.
    let leader = move_leader(&mut cluster, |leader| leader != REAL).await;
    cluster.members[REAL].kill();
    away_writes(&cluster, leader, "real-away").await;
    cluster.members[REAL].start();
    cluster.members[REAL].wait_ready().await;
    cluster.hashes_agree().await;
    // Away while the real member leads: ours comes back by a snapshot of its.
    let leader = move_leader(&mut cluster, |leader| leader == REAL).await;
    cluster.members[0].kill();
    away_writes(&cluster, leader, "ours-away").await;
    cluster.members[0].start();
    cluster.members[0].wait_ready().await;
    cluster.hashes_agree().await;
    let read = cluster.members[0].get("ours-away/699").await.expect("a read");
    assert_eq!(read.count, 1);
}

async fn away_writes(cluster: &Cluster, through: usize, prefix: &str) {
    let member = &cluster.members[through];
    let mut client = KvClient::new(member.connect().await.expect("a connection"));
    for number in 0..700 {
        let key = format!("{prefix}/{number}");
        put(&mut client, &key, "x").await.unwrap_or_else(|status| panic!("{}", cluster.logs(&status.to_string())));
    }
    // A read through the log's end: nothing is left in flight.
    let all = RangeRequest { key: prefix.to_owned().into(), ..RangeRequest::default() };
    eventually("a read", async || client.clone().range(all.clone()).await.map_err(|status| status.to_string())).await;
}

//! Historic bugs about who belongs to a cluster, with real processes (reliability.md 2.4; the table is in historic/mod.rs).

use std::path::Path;

use quorate::proto::etcdserverpb::LeaseGrantRequest;
use quorate::proto::etcdserverpb::LeaseLeasesRequest;
use quorate::proto::etcdserverpb::Member as ProtoMember;
use quorate::proto::etcdserverpb::lease_client::LeaseClient;
use tonic::Code;

use crate::cluster::Cluster;
use crate::cluster::Member;
use crate::cluster::Program;
use crate::members_work::SteadyWriter;
use crate::members_work::accepted;
use crate::members_work::add;
use crate::members_work::exited;
use crate::members_work::grow;
use crate::members_work::handed_over;
use crate::members_work::join;
use crate::members_work::list;
use crate::members_work::peer_url;
use crate::members_work::promote;
use crate::members_work::remove;
use crate::members_work::update;
use crate::members_work::written;
use crate::support::eventually;
use crate::support::free_port;

const FORCE: &str = "--force-new-cluster";

/// The same list, linearizably read, at every running member.
async fn lists_agree(cluster: &Cluster) -> Vec<ProtoMember> {
    eventually("the same members everywhere", async || {
        let mut lists = Vec::new();
        for member in cluster.members.iter().filter(|member| member.is_running()) {
            let members = list(member).await.map_err(|status| cluster.logs(status.message()))?;
            let started = members.iter().all(|member| !member.name.is_empty());
            lists.push(if started { Ok(members) } else { Err(cluster.logs("one has not started")) }?);
        }
        match lists.windows(2).all(|pair| pair[0] == pair[1]) {
            true => lists.pop().ok_or_else(|| "nobody runs".to_owned()),
            false => Err(format!("{lists:?}")),
        }
    })
    .await
}

/// B12, etcd 19557, 19563, 20967, 20339: two sources of truth for the membership, in which a promotion was lost, removed
/// members came back and upgrades failed. Added, promoted, moved, removed and forced, with restarts of everybody between.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn b12_members_agree_on_who_they_are_whatever_happened() {
    let mut cluster = Cluster::prepare(&[Program::Ours], &["--snapshot-count", "10"]);
    cluster.members[0].start();
    cluster.wait_ready().await;
    let restart_all = async |cluster: &mut Cluster| {
        for member in &mut cluster.members {
            member.kill();
        }
        for member in &mut cluster.members {
            member.start();
        }
    };
    // A learner that is promoted, and everything is restarted before it has seen that by a snapshot.
    let second = cluster.prepare_joiner(&Program::Ours, &["--snapshot-count", "10"]);
    let id = join(&mut cluster, 0, second, true).await;
    accepted("the promotion", async || promote(&cluster.members[0], id).await).await;
    restart_all(&mut cluster).await;
    let members = lists_agree(&cluster).await;
    assert!(members.len() == 2 && members.iter().all(|member| !member.is_learner), "{members:?}");
    // A third one, whose address changes while it is away.
    let third = grow(&mut cluster, &Program::Ours).await;
    let third_id = cluster.members[third].id().await;
    cluster.members[third].kill();
    let url = format!("http://127.0.0.1:{}", free_port());
    accepted("the update", async || update(&cluster.members[0], third_id, &url).await).await;
    cluster.members[third].set_arg("--listen-peer-urls", &url);
    restart_all_but(&mut cluster, third).await;
    cluster.members[third].start();
    cluster.wait_ready().await;
    let members = lists_agree(&cluster).await;
    assert!(members.iter().any(|member| member.id == third_id && member.peer_ur_ls == [url.clone()]), "{members:?}");
    // Removed while it is away; it must not come back.
    cluster.members[second].kill();
    let second_id = id;
    accepted("the removal", async || remove(&cluster.members[0], second_id).await).await;
    restart_all_but(&mut cluster, second).await;
    cluster.members[second].start();
    assert_eq!(exited(&mut cluster, second).await.code(), Some(0), "{}", cluster.logs("a removed member"));
    cluster.members.remove(second);
    let members = lists_agree(&cluster).await;
    assert_eq!(members.len(), 2, "{members:?}");
    // Everybody but one is lost for good; that one goes on, and grows again.
    for member in &mut cluster.members {
        member.kill();
    }
    cluster.members.truncate(1);
    force(&mut cluster.members[0]);
    cluster.wait_ready().await;
    assert_eq!(lists_agree(&cluster).await.len(), 1);
    grow(&mut cluster, &Program::Ours).await;
    restart_all(&mut cluster).await;
    let members = lists_agree(&cluster).await;
    assert_eq!(members.len(), 2, "{members:?}");
    let banned = [second_id, third_id];
    assert!(members.iter().all(|member| !banned.contains(&member.id)), "{members:?}");
    cluster.hashes_agree().await;
    for member in &mut cluster.members {
        member.terminate();
    }
    assert!(cluster.logs_agree() > 0);
}

async fn restart_all_but(cluster: &mut Cluster, away: usize) {
    for (position, member) in cluster.members.iter_mut().enumerate().filter(|(position, _)| *position != away) {
        if member.is_running() {
            member.kill();
        }
        assert_ne!(position, away);
        member.start();
    }
    for (_, member) in cluster.members.iter().enumerate().filter(|(position, _)| *position != away) {
        // Two of three are a quorum.
        member.wait_ready().await;
    }
}

/// Starts a member with `--force-new-cluster`, this once: left in place it would throw out whoever joins later.
fn force(member: &mut Member) {
    member.add_args(&[FORCE]);
    member.start();
    member.remove_arg(FORCE);
}

/// B19, bbolt 562, 675, 695: what a member's disk has damaged is given up; the member is removed and comes back as a new
/// one, which gets everything from the others.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn b19_a_damaged_member_is_removed_and_comes_back_as_a_new_one() {
    let mut cluster = Cluster::ours(3, &[]).await;
    let writer = SteadyWriter::start(&cluster);
    let leader = cluster.leader().await;
    let victim = (leader + 1) % 3;
    let id = cluster.members[victim].id().await;
    cluster.members[victim].terminate();
    damage(&cluster.members[victim].data_dir.join("member").join("snap").join("db.redb"));
    cluster.members[victim].start();
    assert_ne!(exited(&mut cluster, victim).await.code(), Some(0), "{}", cluster.logs("damaged"));
    writer.follow(&cluster);
    accepted("the removal", async || remove(&cluster.members[leader], id).await).await;
    let url = peer_url(&cluster.members[victim]);
    accepted("the addition", async || add(&cluster.members[leader], &url, false).await).await;
    let fresh = cluster.dir.path().join("fresh.etcd");
    cluster.members[victim].replace(Program::Ours, fresh);
    cluster.members[victim].set_arg("--initial-cluster-state", "existing");
    cluster.members[victim].start();
    cluster.members[victim].wait_ready().await;
    writer.progress(&cluster).await;
    writer.check(&cluster).await;
    cluster.hashes_agree().await;
}

/// Overwrites all of a file but its first page with the same bytes.
fn damage(path: &Path) {
    let mut bytes = std::fs::read(path).expect("a database");
    let body = 4096.min(bytes.len());
    bytes[body..].fill(0x5a);
    std::fs::write(path, bytes).expect("a damaged database");
}

/// B46, etcd PR 21667: with one member of several down none could be added, though a quorum held. And an addition that
/// would leave none is refused.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn b46_a_member_is_added_beside_a_dead_one_only_while_a_quorum_is_left() {
    let mut cluster = Cluster::ours(5, &[]).await;
    let leader = cluster.leader().await;
    let [first, second] = [(leader + 1) % 5, (leader + 2) % 5];
    cluster.members[first].kill();
    // Four of six: a quorum with one dead and the new one not there yet.
    let url = format!("http://127.0.0.1:{}", free_port());
    let added = accepted("an addition", async || add(&cluster.members[leader], &url, false).await).await;
    let added = added.member.expect("the new one").id;
    accepted("its removal", async || remove(&cluster.members[leader], added).await).await;
    // Three of six would be none.
    cluster.members[second].kill();
    let other = format!("http://127.0.0.1:{}", free_port());
    eventually("the second end to be noticed", async || match add(&cluster.members[leader], &other, false).await {
        Err(status) if status.message() == "etcdserver: unhealthy cluster" && status.code() == Code::Unavailable => {
            Ok(())
        }
        // Taken before it was noticed: back, and once more.
        Ok(added) => {
            let id = added.member.expect("the new one").id;
            remove(&cluster.members[leader], id).await.map_err(|status| status.to_string())?;
            Err("it was added".to_owned())
        }
        Err(status) => Err(status.to_string()),
    })
    .await;
    cluster.members[leader].put("k", "v").await.expect("three of five are a quorum");
}

/// B48, raft-rs PR 584, qdrant 10684, 10691: a leader that is removed leaves before the others know, and there is none.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn b48_the_rest_has_a_leader_at_once_when_the_leader_is_removed() {
    let mut cluster = Cluster::ours(3, &[]).await;
    while cluster.members.len() > 1 {
        let leader = cluster.leader().await;
        let through = (leader + 1) % cluster.members.len();
        let id = cluster.members[leader].id().await;
        let term = cluster.members[through].status().await.expect("a status").raft_term;
        accepted("the removal", async || remove(&cluster.members[through], id).await).await;
        assert_eq!(exited(&mut cluster, leader).await.code(), Some(0), "{}", cluster.logs("removed"));
        let left = cluster.leader().await;
        cluster.members[left].put("after", "it").await.expect("a put");
        handed_over(&cluster, leader, term);
        cluster.members.remove(leader);
    }
}

/// B49, etcd PR 12288, 20071, 20896: forcing a new cluster panicked on learners, or kept them.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn b49_one_member_of_five_goes_on_alone_with_all_its_data() {
    let mut cluster = Cluster::ours(5, &[]).await;
    let writer = SteadyWriter::start(&cluster);
    let leader = cluster.leader().await;
    let learner = cluster.prepare_joiner(&Program::Ours, &[]);
    join(&mut cluster, leader, learner, true).await;
    let lease = grant(&cluster.members[0]).await;
    writer.progress(&cluster).await;
    writer.check(&cluster).await;
    let survivor = (leader + 1) % 5;
    let id = cluster.members[survivor].id().await;
    let before = written(&cluster.members[survivor]).await;
    for member in &mut cluster.members {
        member.kill();
    }
    let other = (survivor + 1) % 5;
    force(&mut cluster.members[survivor]);
    cluster.members[survivor].wait_ready().await;
    let members = list(&cluster.members[survivor]).await.expect("a list");
    let ids: Vec<u64> = members.iter().map(|member| member.id).collect();
    assert_eq!(ids, [id], "{members:?}");
    assert_eq!(written(&cluster.members[survivor]).await, before);
    let leases = leases(&cluster.members[survivor]).await;
    assert_eq!(leases, [lease]);
    cluster.members[survivor].put("alone", "x").await.expect("a put");
    // One of the others is told that it is out, and ends.
    cluster.members[other].start();
    assert_eq!(exited(&mut cluster, other).await.code(), Some(0), "{}", cluster.logs("removed by force"));
    // The flag left in place does no harm while it is alone, and neither does its absence.
    cluster.members[survivor].terminate();
    cluster.members[survivor].start();
    cluster.members[survivor].wait_ready().await;
    cluster.members[survivor].terminate();
    force(&mut cluster.members[survivor]);
    cluster.members[survivor].wait_ready().await;
    let reread = cluster.members[survivor].get("alone").await.expect("a read");
    assert_eq!(reread.count, 1);
    let refused = remove(&cluster.members[survivor], id).await.expect_err("it is the last");
    assert_eq!(refused.message(), "etcdserver: re-configuration failed due to not enough started members");
}

/// B49, etcd PR 12288: a learner's directory is no worse than a voter's; etcd's raft panics on it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn b49_a_learner_goes_on_alone_with_a_vote() {
    let mut cluster = Cluster::ours(1, &[]).await;
    for number in 0..20 {
        cluster.members[0].put(&format!("k{number:02}"), "x").await.expect("a put");
    }
    let learner = cluster.prepare_joiner(&Program::Ours, &[]);
    let id = join(&mut cluster, 0, learner, true).await;
    let revision = cluster.members[0].hash_kv(0).await.expect("a hash").hash_revision;
    eventually("the learner to have it all", async || {
        let hash = cluster.members[learner].status().await.map_err(|status| status.to_string())?;
        let there = hash.header.map(|header| header.revision).unwrap_or_default() >= revision;
        if there { Ok(()) } else { Err(cluster.logs("not yet")) }
    })
    .await;
    cluster.members[0].kill();
    cluster.members[learner].kill();
    force(&mut cluster.members[learner]);
    cluster.members[learner].wait_ready().await;
    let members = list(&cluster.members[learner]).await.expect("a list");
    let found: Vec<(u64, bool)> = members.iter().map(|member| (member.id, member.is_learner)).collect();
    assert_eq!(found, [(id, false)]);
    assert_eq!(cluster.members[learner].get("k19").await.expect("a read").count, 1);
    cluster.members[learner].put("k20", "y").await.expect("a put");
}

async fn grant(member: &Member) -> i64 {
    let channel = member.connect().await.expect("a connection");
    let grant = LeaseGrantRequest { ttl: 3600, id: 0 };
    LeaseClient::new(channel).lease_grant(grant).await.expect("a lease").into_inner().id
}

async fn leases(member: &Member) -> Vec<i64> {
    let channel = member.connect().await.expect("a connection");
    let all = LeaseClient::new(channel).lease_leases(LeaseLeasesRequest {}).await.expect("leases");
    all.into_inner().leases.into_iter().map(|lease| lease.id).collect()
}

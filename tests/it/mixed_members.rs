//! Members of both kinds join, are promoted and are removed, under leaders of both kinds.

use std::process::ExitStatus;

use crate::cluster::Cluster;
use crate::cluster::Member;
use crate::cluster::Program;
use crate::mixed_work::Acknowledged;
use crate::mixed_work::grant_lease;
use crate::mixed_work::write_through_each;
use crate::oracle::Oracle;
use crate::oracle::oracle;
use crate::support::eventually;

/// Runs etcdctl at a member until it says yes: a member must have been connected to a quorum for five seconds before it
/// takes changes of the membership, and has none while the one before is not applied.
async fn ctl(real: &Oracle, member: &Member, words: &[&str]) -> String {
    eventually("etcdctl to succeed", async || real.ctl(&member.endpoint(), words)).await
}

/// `member add` through `through` for the member at `joiner`, which is then started; its id.
async fn join(cluster: &mut Cluster, real: &Oracle, through: usize, joiner: usize, learner: bool) -> String {
    let name = cluster.members[joiner].name.clone();
    let urls = format!("--peer-urls=http://127.0.0.1:{}", cluster.members[joiner].peer_port);
    let mut words = vec!["member", "add", &name, &urls];
    if learner {
        words.push("--learner");
    }
    let added = ctl(real, &cluster.members[through], &words).await;
    let id = added.split_whitespace().nth(1).expect("Member <id> added to cluster").to_owned();
    cluster.members[joiner].start();
    started(cluster, real, through, &name).await;
    id
}

/// Waits until the member has published itself.
async fn started(cluster: &Cluster, real: &Oracle, through: usize, name: &str) {
    eventually("the joiner to publish itself", async || {
        let list = real.ctl(&cluster.members[through].endpoint(), &["member", "list"])?;
        let started = list.contains(&format!("started, {name}, "));
        if started { Ok(()) } else { Err(cluster.logs(&list)) }
    })
    .await;
}

/// Removed members end by themselves, without complaint, and do so again when they are started.
async fn ends_twice(cluster: &mut Cluster, position: usize) {
    assert_eq!(exited(cluster, position).await.code(), Some(0), "{}", cluster.logs("removed"));
    cluster.members[position].start();
    assert_eq!(exited(cluster, position).await.code(), Some(0), "{}", cluster.logs("started after its removal"));
}

async fn exited(cluster: &mut Cluster, position: usize) -> ExitStatus {
    for _ in 0..2000 {
        if let Some(status) = cluster.members[position].try_exit() {
            return status;
        }
        tokio::time::sleep(std::time::Duration::from_millis(30)).await;
    }
    panic!("{}", cluster.logs(&format!("{} does not end", cluster.members[position].name)));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn learners_of_both_kinds_join_are_promoted_and_vote() {
    let Some(real) = oracle("learners_of_both_kinds_join_are_promoted_and_vote") else { return };
    let etcd = Program::Etcd(real.etcd.clone());
    let mut cluster = Cluster::start(&[Program::Ours, Program::Ours, etcd.clone()], &[]).await;
    let lease = grant_lease(&cluster.members[2]).await;
    let mut acknowledged = Acknowledged::default();
    acknowledged.work(&cluster, 0, 50, lease).await;
    // A learner of the real kind while ours leads: the proposal comes from the real member and is etcd's own type 3.
    cluster.move_leader(|leader| leader < 2).await;
    let joiner = cluster.prepare_joiner(&etcd, &[]);
    let id = join(&mut cluster, real, 2, joiner, true).await;
    assert!(cluster.members[joiner].status().await.expect("a status").is_learner);
    // A second one is refused by the rule that all of them apply alike.
    let refused =
        real.ctl(&cluster.members[2].endpoint(), &["member", "add", "x", "--learner", "--peer-urls=http://h:1"]);
    assert!(refused.as_ref().is_err_and(|text| text.contains("too many learner members")), "{refused:?}");
    // Promotion is asked of the leader: a real one here.
    cluster.move_leader(|leader| leader == 2).await;
    ctl(real, &cluster.members[2], &["member", "promote", &id]).await;
    cluster.members[joiner].wait_ready().await;
    acknowledged.work(&cluster, 1, 50, lease).await;
    // A learner of ours, then a voter that counts: three of five must agree, two are away.
    let joiner = cluster.prepare_joiner(&Program::Ours, &[]);
    let id = join(&mut cluster, real, 2, joiner, true).await;
    assert!(cluster.members[joiner].status().await.expect("a status").is_learner);
    ctl(real, &cluster.members[2], &["member", "promote", &id]).await;
    cluster.members[joiner].wait_ready().await;
    assert!(!cluster.members[joiner].status().await.expect("a status").is_learner);
    cluster.members[0].kill();
    cluster.members[3].kill();
    write_through_each(&cluster, "three-of-five").await;
    acknowledged.work(&cluster, 2, 50, lease).await;
    cluster.members[0].start();
    cluster.members[3].start();
    cluster.wait_ready().await;
    acknowledged.check(&cluster).await;
    cluster.hashes_agree().await;
    for member in &mut cluster.members {
        member.terminate();
    }
    assert!(cluster.logs_agree() > 100);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ours_joins_a_real_cluster_and_is_removed_by_it() {
    let Some(real) = oracle("ours_joins_a_real_cluster_and_is_removed_by_it") else { return };
    let etcd = Program::Etcd(real.etcd.clone());
    let mut cluster = Cluster::start(&[etcd.clone(), etcd], &[]).await;
    let lease = grant_lease(&cluster.members[0]).await;
    let mut acknowledged = Acknowledged::default();
    acknowledged.work(&cluster, 0, 100, lease).await;
    let joiner = cluster.prepare_joiner(&Program::Ours, &[]);
    let id = join(&mut cluster, real, 0, joiner, false).await;
    cluster.members[joiner].wait_ready().await;
    cluster.hashes_agree().await;
    acknowledged.work(&cluster, 1, 100, lease).await;
    // It restarts from what it has, and can lead those it joined.
    cluster.members[joiner].kill();
    cluster.members[joiner].start();
    cluster.members[joiner].wait_ready().await;
    cluster.move_leader(|leader| leader == joiner).await;
    acknowledged.work(&cluster, 2, 100, lease).await;
    // New addresses, proposed to our leader as etcd's UpdateNode.
    let peer = cluster.members[1].peer_port;
    let both = format!("--peer-urls=http://127.0.0.1:{peer},http://localhost:{peer}");
    let update = format!("{:x}", cluster.members[1].id().await);
    ctl(real, &cluster.members[0], &["member", "update", &update, &both]).await;
    for member in &cluster.members {
        eventually("the new address", async || {
            let list = real.ctl(&member.endpoint(), &["member", "list"])?;
            if list.contains(&format!("http://localhost:{peer}")) { Ok(()) } else { Err(list) }
        })
        .await;
    }
    acknowledged.work(&cluster, 3, 50, lease).await;
    acknowledged.check(&cluster).await;
    cluster.hashes_agree().await;
    // Removed by a real leader.
    cluster.move_leader(|leader| leader != joiner).await;
    ctl(real, &cluster.members[0], &["member", "remove", &id]).await;
    ends_twice(&mut cluster, joiner).await;
    write_through_each(&cluster, "without-ours").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn our_leader_removes_a_real_member_and_itself() {
    let Some(real) = oracle("our_leader_removes_a_real_member_and_itself") else { return };
    let etcd = Program::Etcd(real.etcd.clone());
    let mut cluster = Cluster::start(&[Program::Ours, etcd.clone(), etcd], &[]).await;
    write_through_each(&cluster, "three").await;
    cluster.move_leader(|leader| leader == 0).await;
    let id = format!("{:x}", cluster.members[1].id().await);
    ctl(real, &cluster.members[2], &["member", "remove", &id]).await;
    ends_twice(&mut cluster, 1).await;
    write_through_each(&cluster, "two").await;
    assert_eq!(cluster.leader().await, 0);
    // The leader removes itself: the one that is left goes on alone.
    let id = format!("{:x}", cluster.members[0].id().await);
    ctl(real, &cluster.members[2], &["member", "remove", &id]).await;
    assert_eq!(exited(&mut cluster, 0).await.code(), Some(0), "{}", cluster.logs("removed"));
    assert_eq!(cluster.leader().await, 2);
    write_through_each(&cluster, "one").await;
}

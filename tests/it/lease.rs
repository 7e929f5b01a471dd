//! Leases over real processes: the leader killed and paused, followers asked, etcd's answers, clusters of both kinds.

use std::collections::BTreeSet;
use std::io::BufRead;
use std::io::BufReader;
use std::path::Path;
use std::process::Command;
use std::process::Stdio;
use std::time::Duration;
use std::time::Instant;

use nix::sys::signal::Signal;
use quorate::proto::etcdserverpb::LeaseGrantRequest;
use quorate::proto::etcdserverpb::LeaseKeepAliveRequest;
use quorate::proto::etcdserverpb::LeaseLeasesRequest;
use quorate::proto::etcdserverpb::LeaseRevokeRequest;
use quorate::proto::etcdserverpb::LeaseTimeToLiveRequest;
use quorate::proto::etcdserverpb::LeaseTimeToLiveResponse;
use quorate::proto::etcdserverpb::PutRequest;
use quorate::proto::etcdserverpb::kv_client::KvClient;
use quorate::proto::etcdserverpb::lease_client::LeaseClient;
use tonic::Code;
use tonic::Status;
use tonic::transport::Channel;

use crate::cluster::Cluster;
use crate::cluster::Member;
use crate::cluster::Program;
use crate::oracle::oracle;
use crate::support::eventually;
use crate::support::named_program;

pub async fn leases(member: &Member) -> LeaseClient<Channel> {
    LeaseClient::new(member.connect().await.expect("a connection"))
}

/// Grants a lease through this member; its id.
pub async fn grant(member: &Member, ttl: i64) -> i64 {
    let granted = leases(member).await.lease_grant(LeaseGrantRequest { ttl, id: 0 }).await;
    granted.unwrap_or_else(|status| panic!("{}: {status}", member.name)).into_inner().id
}

pub async fn put_with(member: &Member, key: &str, lease: i64) -> Result<(), Status> {
    let put = PutRequest { key: key.to_owned().into(), lease, ..PutRequest::default() };
    KvClient::new(member.connect().await?).put(put).await.map(drop)
}

/// Renews once through this member: the TTL that it tells, 0 for a lease that is gone.
pub async fn renew(member: &Member, id: i64) -> Result<i64, Status> {
    let mut client = LeaseClient::new(member.connect().await?);
    let asked = tokio_stream::iter([LeaseKeepAliveRequest { id }]);
    let answer = client.lease_keep_alive(asked).await?.into_inner().message().await?;
    Ok(answer.ok_or_else(|| Status::unavailable("the stream ended"))?.ttl)
}

pub async fn time_to_live(member: &Member, id: i64, keys: bool) -> Result<LeaseTimeToLiveResponse, Status> {
    let mut client = LeaseClient::new(member.connect().await?);
    Ok(client.lease_time_to_live(LeaseTimeToLiveRequest { id, keys }).await?.into_inner())
}

/// Waits until the lease is gone everywhere, with its key.
pub async fn until_gone(cluster: &Cluster, id: i64, key: &str) {
    for member in cluster.members.iter().filter(|member| member.is_running()) {
        eventually("the lease to be gone", async || {
            let shown = time_to_live(member, id, false).await.map_err(|status| status.to_string())?;
            let found = member.get(key).await.map_err(|status| status.to_string())?;
            match (shown.ttl, found.count) {
                (-1, 0) => Ok(()),
                other => Err(cluster.logs(&format!("{}: {other:?}", member.name))),
            }
        })
        .await;
    }
}

/// One answer in a form that compares: what varies is left out.
type Told = Result<String, (Code, String)>;

fn told<T>(answer: Result<tonic::Response<T>, Status>, show: impl Fn(T) -> String) -> Told {
    let answer = answer.map(tonic::Response::into_inner);
    answer.map(show).map_err(|status| (status.code(), status.message().to_owned()))
}

/// A fixed session with every kind of request and mistake.
async fn session(member: &Member) -> Vec<Told> {
    let channel = member.connect().await.expect("a connection");
    let (mut leases, mut kv) = (LeaseClient::new(channel.clone()), KvClient::new(channel));
    let revision = |header: Option<quorate::proto::etcdserverpb::ResponseHeader>| {
        header.map(|header| header.revision).unwrap_or_default()
    };
    let mut all = Vec::new();
    for (id, ttl) in [
        (7, 600),
        (7, 600),
        (7, 9_000_000_001),
        (8, 0),
        (9, -5),
        (-10, 700),
        (11, 9_000_000_000),
        (12, 9_000_000_001),
        (13, i64::MIN),
        (14, i64::MAX),
        (i64::MIN, 500),
        (i64::MAX, 400),
    ] {
        let answer = leases.lease_grant(LeaseGrantRequest { ttl, id }).await;
        all.push(told(answer, |granted| format!("{} {} {:?}", granted.id, granted.ttl, revision(granted.header))));
    }
    let mut put = async |key: &str, lease: i64, ignore_lease: bool| {
        let put = PutRequest { key: key.to_owned().into(), lease, ignore_lease, ..PutRequest::default() };
        told(kv.put(put).await, |put| format!("{}", revision(put.header)))
    };
    all.push(put("b", 7, false).await);
    all.push(put("a", 7, false).await);
    all.push(put("c", 7, false).await);
    all.push(put("d", 99, false).await);
    all.push(put("c", -10, false).await);
    all.push(put("e", 7, false).await);
    all.push(put("e", 0, false).await);
    all.push(put("a", 0, true).await);
    for id in [7, -10, 11, 8_888, 0, -1] {
        let answer = leases.lease_time_to_live(LeaseTimeToLiveRequest { id, keys: true }).await;
        all.push(told(answer, |shown| {
            // The clock runs while the machine is busy.
            let fresh = shown.granted_ttl > 0 && shown.ttl >= shown.granted_ttl - 30;
            let keys: BTreeSet<_> = shown.keys.into_iter().collect();
            let ttl = if fresh { "fresh".to_owned() } else { shown.ttl.to_string() };
            format!("{} {ttl} {} {keys:?} {}", shown.id, shown.granted_ttl, revision(shown.header))
        }));
    }
    let asked = [7, 8_888, 0, -10, i64::MIN].map(|id| LeaseKeepAliveRequest { id });
    let mut answers =
        leases.lease_keep_alive(tokio_stream::iter(asked)).await.expect("a stream of answers").into_inner();
    while let Some(answer) = answers.message().await.transpose() {
        let answer = answer.map(|answer| format!("{} {} {}", answer.id, answer.ttl, revision(answer.header)));
        all.push(answer.map_err(|status| (status.code(), status.message().to_owned())));
    }
    let answer = leases.lease_leases(LeaseLeasesRequest {}).await;
    // Those of two seconds may be gone.
    all.push(told(answer, |listed| {
        let ids: Vec<i64> = listed.leases.iter().map(|lease| lease.id).filter(|id| ![8, 9, 13].contains(id)).collect();
        format!("{ids:?}")
    }));
    for id in [7, 7, 0, 8_888, i64::MIN, 11] {
        let answer = leases.lease_revoke(LeaseRevokeRequest { id }).await;
        all.push(told(answer, |revoked| format!("{}", revision(revoked.header))));
    }
    all.push(put("f", 7, false).await);
    all
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn leases_are_answered_as_etcd_answers_them() {
    let Some(real) = oracle("leases_are_answered_as_etcd_answers_them") else { return };
    let ours = Cluster::ours(1, &[]).await;
    let theirs = Cluster::start(&[Program::Etcd(real.etcd.clone())], &[]).await;
    let (mine, real) = (session(&ours.members[0]).await, session(&theirs.members[0]).await);
    assert_eq!(mine.len(), real.len());
    for (number, (mine, real)) in mine.iter().zip(&real).enumerate() {
        assert_eq!(mine, real, "answer {number}: ours left, etcd right");
    }
    // Those that nobody renews end on both, and with them their keys.
    for cluster in [&ours, &theirs] {
        let id = grant(&cluster.members[0], 1).await;
        put_with(&cluster.members[0], "short", id).await.expect("a put");
        until_gone(cluster, id, "short").await;
        assert_eq!(renew(&cluster.members[0], id).await.expect("an answer"), 0);
    }
}

/// Lines of a `keep-alive` until the lease is revoked behind the second one.
async fn kept_alive(cluster: &Cluster, etcdctl: &Path, id: i64) -> Vec<String> {
    let endpoint = cluster.members[0].endpoint();
    let mut child = Command::new(etcdctl)
        .args(["--endpoints", &endpoint, "lease", "keep-alive", &format!("{id:x}")])
        .stdout(Stdio::piped())
        .spawn()
        .expect("the program starts");
    let mut lines = BufReader::new(child.stdout.take().expect("a pipe")).lines().map(|line| line.expect("text"));
    let mut told: Vec<String> = lines.by_ref().take(2).collect();
    leases(&cluster.members[0]).await.lease_revoke(LeaseRevokeRequest { id }).await.expect("revoked");
    told.extend(lines);
    assert!(child.wait().expect("it ends").success());
    told
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn our_client_keeps_leases_alive_at_members_of_both_kinds() {
    let Some(real) = oracle("our_client_keeps_leases_alive_at_members_of_both_kinds") else { return };
    let (_link, etcdctl) = named_program("etcdctl");
    for program in [Program::Ours, Program::Etcd(real.etcd.clone())] {
        let cluster = Cluster::start(&[program], &[]).await;
        let id = grant(&cluster.members[0], 3).await;
        // The same as the original does with it.
        for client in [&etcdctl, &real.etcdctl] {
            let words = ["--endpoints", &cluster.members[0].endpoint(), "lease", "keep-alive", "--once"];
            let output = Command::new(client).args(words).arg(format!("{id:x}")).output().expect("it runs");
            assert_eq!(String::from_utf8_lossy(&output.stdout), format!("lease {id:016x} keepalived with TTL(3)\n"));
        }
        let told = kept_alive(&cluster, &etcdctl, id).await;
        let beat = format!("lease {id:016x} keepalived with TTL(3)");
        let (last, beats) = told.split_last().expect("lines");
        assert_eq!(*last, format!("lease {id:016x} expired or revoked."));
        assert!(beats.len() >= 2 && beats.iter().all(|line| *line == beat), "{beats:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_member_renews_shows_and_revokes() {
    let cluster = Cluster::ours(3, &[]).await;
    let id = grant(&cluster.members[0], 60).await;
    put_with(&cluster.members[1], "key", id).await.expect("a put");
    for member in &cluster.members {
        assert_eq!(renew(member, id).await.expect("renewed"), 60, "{}", member.name);
        assert_eq!(renew(member, 12345).await.expect("an answer"), 0, "{}", member.name);
        let shown = time_to_live(member, id, true).await.expect("shown");
        assert!(shown.ttl >= 30 && shown.granted_ttl == 60, "{}: {shown:?}", member.name);
        assert_eq!(shown.keys, ["key"]);
        let header = shown.header.expect("a header");
        assert_eq!((header.member_id, header.revision), (member.id().await, 2));
    }
    // One stream, many leases, answers in order; also through a follower.
    let follower = (cluster.leader().await + 1) % 3;
    let mut ids = vec![id];
    for _ in 0..100 {
        ids.push(grant(&cluster.members[follower], 100).await);
    }
    let mut client = leases(&cluster.members[follower]).await;
    let asked = ids.clone().into_iter().map(|id| LeaseKeepAliveRequest { id });
    let mut answers = client.lease_keep_alive(tokio_stream::iter(asked)).await.expect("a stream").into_inner();
    let mut renewed = Vec::new();
    while let Some(answer) = answers.message().await.expect("no error") {
        assert!(answer.ttl == 100 || answer.id == id);
        renewed.push(answer.id);
    }
    assert_eq!(renewed, ids);
    leases(&cluster.members[follower]).await.lease_revoke(LeaseRevokeRequest { id }).await.expect("revoked");
    until_gone(&cluster, id, "key").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_left_of_a_lease_survives_the_leader() {
    let mut cluster = Cluster::ours(3, &[]).await;
    let (silent, renewed) = (grant(&cluster.members[0], 30).await, grant(&cluster.members[0], 30).await);
    put_with(&cluster.members[0], "silent", silent).await.expect("a put");
    // Past the half of its time it is written down; a renewal takes that back.
    eventually("half of the time to pass", async || {
        let shown = time_to_live(&cluster.members[0], silent, false).await.map_err(|status| status.to_string())?;
        if shown.ttl < 14 { Ok(()) } else { Err(format!("{shown:?}")) }
    })
    .await;
    assert_eq!(renew(&cluster.members[1], renewed).await.expect("renewed"), 30);
    let granted = Instant::now();
    let leader = cluster.leader().await;
    cluster.members[leader].kill();
    cluster.leader().await;
    let other = &cluster.members[(leader + 1) % 3];
    let left = |id| async move { time_to_live(other, id, false).await.expect("shown").ttl };
    // What was written down, and an election timeout. Not all of it, as without.
    let silent_left = left(silent).await;
    assert!((1..=16).contains(&silent_left), "{silent_left}");
    let renewed_left = left(renewed).await + i64::try_from(granted.elapsed().as_secs()).expect("a short test");
    assert!(renewed_left >= 29, "{renewed_left}");
    until_gone(&cluster, silent, "silent").await;
    assert!(left(renewed).await > 0);
}

/// Renews through any of these members until one says so; panics when the lease is gone.
async fn renew_through(members: &[&Member], id: i64) {
    for member in members {
        match renew(member, id).await {
            Ok(0) => panic!("{} says that the lease is gone:\n{}", member.name, member.log_text()),
            Ok(_) => return,
            Err(_) => {}
        }
    }
}

/// B41, etcd 15247 and 12528: a leader that had stood still revoked leases which lived on at its successor.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn b41_a_leader_that_slept_revokes_nothing_that_lives_at_the_next() {
    let cluster = Cluster::ours(3, &[]).await;
    let id = grant(&cluster.members[0], 5).await;
    put_with(&cluster.members[0], "key", id).await.expect("a put");
    let asleep = cluster.leader().await;
    cluster.members[asleep].signal(Signal::SIGSTOP);
    let others: Vec<&Member> = (1..3).map(|step| &cluster.members[(asleep + step) % 3]).collect();
    // Three times its time, by the others. One of them still asks the leader that sleeps when it is stopped.
    let until = Instant::now() + Duration::from_secs(15);
    while Instant::now() < until {
        renew_through(&others, id).await;
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    cluster.members[asleep].signal(Signal::SIGCONT);
    // It has found its deadline long past by the time it follows again.
    eventually("the old leader to follow", async || {
        renew_through(&others, id).await;
        let status = cluster.members[asleep].status().await.map_err(|status| status.to_string())?;
        let own = status.header.map(|header| header.member_id).unwrap_or_default();
        if status.leader != 0 && status.leader != own { Ok(()) } else { Err(cluster.logs("it leads")) }
    })
    .await;
    for member in &cluster.members {
        assert!(renew(member, id).await.expect("an answer") > 0, "{}", cluster.logs(&member.name));
        assert_eq!(member.get("key").await.expect("a read").count, 1, "{}", member.name);
    }
    // Renewed no more, it ends.
    until_gone(&cluster, id, "key").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_a_leader_renewals_end_and_grants_time_out_as_etcds_do() {
    let mut cluster = Cluster::ours(3, &[]).await;
    let id = grant(&cluster.members[0], 60).await;
    cluster.members[1].kill();
    cluster.members[2].kill();
    let alone = &cluster.members[0];
    eventually("the one that is left to know no leader", async || {
        let status = alone.status().await.map_err(|status| status.to_string())?;
        if status.leader == 0 { Ok(()) } else { Err("it knows one".to_owned()) }
    })
    .await;
    let listed = leases(alone).await.lease_leases(LeaseLeasesRequest {}).await.expect("from what it has").into_inner();
    assert_eq!(listed.leases.len(), 1);
    let mut client = leases(alone).await;
    let (renewed, shown, granted) = tokio::join!(
        renew(alone, id),
        time_to_live(alone, id, false),
        client.lease_grant(LeaseGrantRequest { ttl: 60, id: 0 })
    );
    let said = |status: Status| (status.code(), status.message().to_owned());
    let no_leader = (Code::Unavailable, "etcdserver: no leader".to_owned());
    assert_eq!(renewed.map_err(said), Err(no_leader.clone()));
    assert_eq!(shown.map(drop).map_err(said), Err(no_leader));
    let deadline = (Code::DeadlineExceeded, "context deadline exceeded".to_owned());
    assert_eq!(granted.map(drop).map_err(said), Err(deadline));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn leases_live_and_end_alike_in_clusters_of_both_kinds() {
    let Some(real) = oracle("leases_live_and_end_alike_in_clusters_of_both_kinds") else { return };
    let etcd = Program::Etcd(real.etcd.clone());
    let mut cluster = Cluster::start(&[Program::Ours, Program::Ours, etcd], &[]).await;
    for leads_real in [true, false] {
        cluster.move_leader(|leader| (leader == 2) == leads_real).await;
        let (long, short) = (grant(&cluster.members[0], 120).await, grant(&cluster.members[2], 2).await);
        put_with(&cluster.members[2], "long", long).await.expect("a put");
        put_with(&cluster.members[0], "short", short).await.expect("a put");
        // Through each of them to whoever leads: ours to the real one, the real one to ours, ours to ours.
        for member in &cluster.members {
            assert_eq!(renew(member, long).await.expect("renewed"), 120, "{}", cluster.logs(&member.name));
            assert_eq!(renew(member, 12345).await.expect("an answer"), 0, "{}", member.name);
            let shown = time_to_live(member, long, true).await.expect("shown");
            assert!(shown.ttl >= 60 && shown.granted_ttl == 120 && shown.keys == ["long"], "{shown:?}");
            assert_eq!(time_to_live(member, 12345, true).await.expect("no error").ttl, -1);
            let printed = real.ctl(&member.endpoint(), &["lease", "timetolive", &format!("{long:x}"), "--keys"]);
            assert!(printed.as_ref().is_ok_and(|text| text.ends_with("attached keys([long])\n")), "{printed:?}");
        }
        until_gone(&cluster, short, "short").await;
        // Over to the other kind: nothing is forgotten.
        cluster.move_leader(|leader| (leader == 2) != leads_real).await;
        assert_eq!(renew(&cluster.members[1], long).await.expect("renewed"), 120);
        leases(&cluster.members[2]).await.lease_revoke(LeaseRevokeRequest { id: long }).await.expect("revoked");
        until_gone(&cluster, long, "long").await;
    }
    cluster.hashes_agree().await;
    for member in &mut cluster.members {
        member.terminate();
    }
    cluster.logs_agree();
}

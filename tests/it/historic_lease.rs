//! Bugs of others with leases (reliability.md 2.4), each as the scenario to pass.

use std::collections::BTreeSet;
use std::time::Duration;

use quorate::proto::etcdserverpb::LeaseGrantRequest;
use quorate::proto::etcdserverpb::LeaseKeepAliveRequest;
use quorate::proto::etcdserverpb::LeaseLeasesRequest;
use quorate::proto::etcdserverpb::LeaseRevokeRequest;
use quorate::proto::etcdserverpb::lease_client::LeaseClient;
use tokio::task::JoinSet;

use crate::cluster::Cluster;
use crate::lease::grant;
use crate::lease::leases;
use crate::lease::put_with;
use crate::lease::renew;
use crate::lease::time_to_live;
use crate::support::eventually;

/// B42, etcd PR 20615: a renewal was answered OK for a lease whose revoke had been acknowledged.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn b42_no_renewal_succeeds_behind_an_acknowledged_revoke() {
    let cluster = Cluster::ours(3, &[]).await;
    let channels = [
        cluster.members[0].connect().await.expect("a connection"),
        cluster.members[1].connect().await.expect("a connection"),
        cluster.members[2].connect().await.expect("a connection"),
    ];
    for round in 0..60 {
        let id = grant(&cluster.members[round % 3], 60).await;
        let mut renewals = JoinSet::new();
        for channel in channels.clone() {
            let mut client = LeaseClient::new(channel);
            // Renewed without a pause until it is gone: the TTLs that were told, with the revision of each answer.
            renewals.spawn(async move {
                let mut told = Vec::new();
                loop {
                    let asked = tokio_stream::iter([LeaseKeepAliveRequest { id }]);
                    let answer = client.lease_keep_alive(asked).await.expect("a stream").into_inner().message().await;
                    let answer = answer.expect("an answer").expect("one for each request");
                    told.push(answer.ttl);
                    if answer.ttl == 0 {
                        return told;
                    }
                }
            });
        }
        let mut revoker = LeaseClient::new(channels[(round + 1) % 3].clone());
        revoker.lease_revoke(LeaseRevokeRequest { id }).await.expect("revoked");
        // Acknowledged: from here on nobody may be told that it lives.
        for member in &cluster.members {
            assert_eq!(renew(member, id).await.expect("an answer"), 0, "{} in round {round}", member.name);
            assert_eq!(time_to_live(member, id, false).await.expect("an answer").ttl, -1, "{}", member.name);
        }
        while let Some(told) = renewals.join_next().await {
            let told = told.expect("no panic");
            assert!(told.iter().rev().skip(1).all(|ttl| *ttl == 60), "{told:?}");
        }
    }
}

/// B45, etcd 14087 and PR 11731: leases that came and went left memory behind, on followers as well.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn b45_leases_that_came_and_went_leave_nothing_behind() {
    let cluster = Cluster::ours(3, &["--unsafe-no-fsync"]).await;
    let leader = cluster.leader().await;
    let churn = async |count: usize| {
        let mut workers = JoinSet::new();
        for worker in 0..8 {
            let member = &cluster.members[(leader + worker) % 3];
            let channel = member.connect_for(Duration::from_secs(60)).await.expect("a connection");
            let mut client = LeaseClient::new(channel);
            workers.spawn(async move {
                for _ in 0..count / 8 {
                    let granted = client.lease_grant(LeaseGrantRequest { ttl: 600, id: 0 }).await.expect("granted");
                    let id = granted.into_inner().id;
                    let asked = tokio_stream::iter([LeaseKeepAliveRequest { id }]);
                    let mut answers = client.lease_keep_alive(asked).await.expect("a stream").into_inner();
                    while answers.message().await.expect("no error").is_some() {}
                    client.lease_revoke(LeaseRevokeRequest { id }).await.expect("revoked");
                }
            });
        }
        while let Some(done) = workers.join_next().await {
            done.expect("no panic");
        }
    };
    let resident = |position: usize| {
        let status = std::fs::read_to_string(format!("/proc/{}/status", cluster.members[position].pid()));
        let text = status.expect("it runs");
        let line = text.lines().find(|line| line.starts_with("VmRSS:")).expect("a size");
        line.split_whitespace().nth(1).and_then(|size| size.parse::<u64>().ok()).expect("a number of kB")
    };
    // The log and the pools of connections are as large as they get after the first part.
    churn(1600).await;
    let before = [0, 1, 2].map(resident);
    churn(3200).await;
    for (position, member) in cluster.members.iter().enumerate() {
        let listed = leases(member).await.lease_leases(LeaseLeasesRequest {}).await.expect("a list").into_inner();
        assert!(listed.leases.is_empty(), "{}", member.name);
        let after = resident(position);
        // Half a KiB for each lease that is gone would be 1.6 MB; the raft log keeps 5,000 entries of some 30 bytes.
        let allowed = before[position] + 6_000;
        assert!(after < allowed, "{} grew from {} to {after} kB", member.name, before[position]);
    }
}

/// What a client that is slow to revoke sees of a lease that ends meanwhile: one of both, on every member the same.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_revoke_that_meets_the_expiry_deletes_the_keys_once() {
    let cluster = Cluster::ours(3, &[]).await;
    let mut ids = BTreeSet::new();
    for number in 0..40 {
        let id = grant(&cluster.members[number % 3], 2).await;
        put_with(&cluster.members[0], &format!("key/{number}"), id).await.expect("a put");
        ids.insert(id);
    }
    let revision = eventually("all leases to be gone", async || {
        // Revoked by hand just when they end.
        for id in ids.iter().take(3) {
            let _ = leases(&cluster.members[1]).await.lease_revoke(LeaseRevokeRequest { id: *id }).await;
        }
        let listed = leases(&cluster.members[0]).await.lease_leases(LeaseLeasesRequest {}).await;
        let listed = listed.map_err(|status| status.to_string())?.into_inner();
        let header = listed.header.map(|header| header.revision).unwrap_or_default();
        if listed.leases.is_empty() { Ok(header) } else { Err(format!("{} are left", listed.leases.len())) }
    })
    .await;
    // One revision for each put and one for each lease's end.
    assert_eq!(revision, 1 + 80);
    cluster.hashes_agree().await;
}

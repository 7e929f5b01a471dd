//! Ten thousand idle connections, and none left to accept with.

use std::process::Command;
use std::time::Instant;

use nix::sys::resource::Resource;
use nix::sys::resource::getrlimit;
use nix::sys::resource::setrlimit;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;

use crate::cluster::Cluster;
use crate::cluster::Member;
use crate::sockets::connect;
use crate::sockets::is_well;
use crate::sockets::resident;
use crate::support::eventually;
use crate::support::skipped;

/// What an HTTP/2 client says first: with it a connection may be idle for ever.
const OPENING: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ten_thousand_idle_connections_are_held_and_a_live_client_is_served() {
    const CONNECTIONS: usize = 10_000;
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE).expect("a limit");
    let wanted = CONNECTIONS as u64 + 1000;
    if hard < wanted {
        let test = "ten_thousand_idle_connections_are_held_and_a_live_client_is_served";
        return skipped(test, &format!("{hard} descriptors are not enough"));
    }
    if soft < wanted {
        // The member inherits it.
        setrlimit(Resource::RLIMIT_NOFILE, wanted, hard).expect("within the hard limit");
    }
    let mut cluster = Cluster::ours(1, &[]).await;
    let before = resident(&cluster.members[0]).0;
    let mut idle: Vec<TcpStream> = Vec::new();
    while idle.len() < CONNECTIONS {
        let mut socket = connect(cluster.members[0].client_port).await;
        socket.write_all(OPENING).await.expect("sent");
        idle.push(socket);
    }
    let descriptors = format!("/proc/{}/fd", cluster.members[0].pid());
    eventually("all to be accepted", async || match std::fs::read_dir(&descriptors).expect("a directory").count() {
        held if held >= CONNECTIONS => Ok(()),
        held => Err(format!("{held} descriptors")),
    })
    .await;
    is_well(&mut cluster.members[0], "10,000 idle connections").await;
    let each = (resident(&cluster.members[0]).0 - before) / CONNECTIONS as u64;
    println!("{each} bytes a connection");
    assert!(each < 32 << 10, "{each} bytes a connection");
    drop(idle);
    eventually("all to be closed", async || match std::fs::read_dir(&descriptors).expect("a directory").count() {
        held if held < 200 => Ok(()),
        held => Err(format!("{held} descriptors")),
    })
    .await;
    is_well(&mut cluster.members[0], "10,000 closed connections").await;
}

fn limit_descriptors(member: &Member, soft: u64) {
    let limit = format!("--nofile={soft}:");
    let set = Command::new("prlimit").args(["--pid", &member.pid().to_string(), &limit]).status();
    assert!(set.is_ok_and(|status| status.success()), "prlimit sets the limit");
}

/// EMFILE on both ports: a pause after each failure, and service once there are descriptors again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_descriptors_accepting_pauses_and_goes_on_later() {
    let test = "without_descriptors_accepting_pauses_and_goes_on_later";
    if Command::new("prlimit").arg("--version").output().is_err() {
        return skipped(test, "prlimit is not installed");
    }
    let mut cluster = Cluster::ours(1, &[]).await;
    cluster.members[0].put("before", "value").await.expect("a put");
    let held = std::fs::read_dir(format!("/proc/{}/fd", cluster.members[0].pid())).expect("a directory").count() as u64;
    let (client, peer) = (cluster.members[0].client_port, cluster.members[0].peer_port);
    limit_descriptors(&cluster.members[0], held);
    let started = Instant::now();
    let mut waiting = Vec::new();
    for port in [client, peer] {
        // Fewer than the kernel queues for the peer port.
        for _ in 0..100 {
            waiting.push(connect(port).await);
        }
    }
    let failures = "cannot accept a connection";
    eventually("some failures", async || match cluster.members[0].log_count(failures) {
        count if count >= 12 => Ok(()),
        count => Err(format!("{count} failures")),
    })
    .await;
    // Two ports, one failure each in 100 ms at most: a loop that spins writes thousands.
    let failed = cluster.members[0].log_count(failures) as u128;
    let most = 2 * (started.elapsed().as_millis() / 100 + 1);
    assert!(failed <= most, "{failed} failures, at most {most} with a pause behind each");
    drop(waiting);
    limit_descriptors(&cluster.members[0], 1024);
    is_well(&mut cluster.members[0], "no descriptors").await;
    let (status, _) = crate::support::http_get(peer, "/version").await;
    assert_eq!(status, 200, "the peer port answers again");
}

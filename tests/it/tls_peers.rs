//! TLS between members: ours alone, ours with real etcd, and those who must stay outside.

use tempfile::TempDir;

use crate::certificates::Authority;
use crate::certificates::Wanted;
use crate::cluster::Cluster;
use crate::cluster::Program;
use crate::mixed_work::write_through_each;
use crate::oracle::oracle;
use crate::support::eventually;
use crate::support::http_get;

/// Certificates of members, all of one authority.
struct Files {
    dir: TempDir,
    ours: Authority,
}

impl Files {
    fn new() -> Files {
        let dir = tempfile::tempdir().expect("a directory");
        let ours = Authority::new(dir.path(), "ours");
        Files { dir, ours }
    }

    /// Flags of the member at a position: its own certificate, and only those of our authority are let in.
    fn flags(&self, position: usize, wanted: &Wanted, more: &[&str]) -> Vec<String> {
        let pair = self.ours.issue(&format!("member{position}"), wanted);
        let own = ["--peer-cert-file", &pair.cert, "--peer-key-file", &pair.key];
        let others = ["--peer-client-cert-auth", "--peer-trusted-ca-file", &self.ours.bundle];
        own.iter().chain(&others).chain(more).map(|word| (*word).to_owned()).collect()
    }
}

/// All programs in one cluster whose members speak TLS with each other.
async fn secured(files: &Files, programs: &[Program], extra: &[&str]) -> Cluster {
    let mut cluster = Cluster::prepare(programs, extra);
    cluster.secure_peers(|position| files.flags(position, &Wanted::default(), &[]));
    for member in &mut cluster.members {
        member.start();
    }
    cluster.wait_ready().await;
    cluster
}

fn end(mut cluster: Cluster) {
    for member in &mut cluster.members {
        member.terminate();
    }
    assert!(cluster.logs_agree() > 10, "the logs have nothing in common");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn members_of_ours_replicate_over_tls_and_catch_up_by_snapshot() {
    let files = Files::new();
    let extra = ["--snapshot-count", "50", "--snapshot-catchup-entries", "50"];
    let mut cluster = secured(&files, &vec![Program::Ours; 3], &extra).await;
    write_through_each(&cluster, "all").await;
    let leader = cluster.leader().await;
    let away = (leader + 1) % 3;
    cluster.members[away].kill();
    for round in 0..3 {
        write_through_each(&cluster, &format!("two-{round}")).await;
    }
    // Renewed while they run: the next dial shows and sees the new ones.
    for position in 0..3 {
        files.flags(position, &Wanted { serial: 77, ..Wanted::default() }, &[]);
    }
    cluster.members[away].start();
    cluster.members[away].wait_ready().await;
    cluster.hashes_agree().await;
    // Nobody who does not speak TLS, or shows nothing, gets in.
    let port = cluster.members[leader].peer_port;
    assert_eq!(http_get(port, "/version").await, (0, String::new()));
    let text = "tls: first record does not look like a TLS handshake";
    eventually("a line in the log", async || {
        let log = cluster.members[leader].log_text();
        let told = log.lines().any(|line| line.contains("rejected connection on peer endpoint") && line.contains(text));
        if told { Ok(()) } else { Err(log) }
    })
    .await;
    end(cluster);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ours_and_real_members_agree_over_tls_in_both_proportions() {
    let Some(real) = oracle("ours_and_real_members_agree_over_tls_in_both_proportions") else { return };
    let etcd = Program::Etcd(real.etcd.clone());
    for programs in [[Program::Ours, Program::Ours, etcd.clone()], [Program::Ours, etcd.clone(), etcd.clone()]] {
        let files = Files::new();
        let mut cluster = secured(&files, &programs, &[]).await;
        let ours = |position: usize| matches!(programs[position], Program::Ours);
        cluster.move_leader(ours).await;
        write_through_each(&cluster, "ours-leads").await;
        cluster.move_leader(|position| !ours(position)).await;
        write_through_each(&cluster, "real-leads").await;
        cluster.members[0].kill();
        write_through_each(&cluster, "without-one").await;
        cluster.members[0].start();
        cluster.members[0].wait_ready().await;
        cluster.hashes_agree().await;
        end(cluster);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn certificates_of_their_own_making_are_enough_for_both_kinds() {
    let Some(real) = oracle("certificates_of_their_own_making_are_enough_for_both_kinds") else { return };
    let programs = [Program::Ours, Program::Etcd(real.etcd.clone()), Program::Ours];
    let mut cluster = Cluster::prepare(&programs, &[]);
    cluster.secure_peers(|_| vec!["--peer-auto-tls".to_owned()]);
    for member in &mut cluster.members {
        member.start();
    }
    cluster.wait_ready().await;
    write_through_each(&cluster, "auto").await;
    cluster.hashes_agree().await;
    assert!(cluster.members[0].data_dir.join("fixtures/peer/key.pem").exists());
    end(cluster);
}

/// Two members with certificates that all accept, and a third whose certificate must not be: it stays outside, the two go
/// on, and say `text` of it.
async fn kept_out(third: Wanted, more: impl Fn(&Files) -> Vec<String>, text: &str) {
    let files = Files::new();
    let more = more(&files);
    let more: Vec<&str> = more.iter().map(String::as_str).collect();
    let mut cluster = Cluster::prepare(&vec![Program::Ours; 3], &[]);
    cluster.secure_peers(|position| {
        let wanted = if position == 2 { third.clone() } else { Wanted { common_name: "member", ..Wanted::default() } };
        files.flags(position, &wanted, &more)
    });
    for member in &mut cluster.members {
        member.start();
    }
    for member in &cluster.members[..2] {
        member.wait_ready().await;
        member.put("two", "go on").await.expect("a put");
    }
    eventually("a line in the log", async || {
        let log = cluster.members[0].log_text();
        let told = log.lines().any(|line| line.contains("rejected connection on peer endpoint") && line.contains(text));
        if told { Ok(()) } else { Err(log) }
    })
    .await;
    assert_eq!(cluster.members[2].log_count("ready to serve client requests"), 0);
    drop(files.dir);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn members_under_another_name_stay_outside() {
    let third = Wanted { common_name: "stranger", ..Wanted::default() };
    let allowed = |_: &Files| vec!["--peer-cert-allowed-cn".to_owned(), "member,other".to_owned()];
    kept_out(third, allowed, "client certificate authentication failed").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn members_from_another_address_stay_outside() {
    let third = Wanted { common_name: "member", hosts: vec!["10.9.9.9".to_owned()], ..Wanted::default() };
    kept_out(third, |_| Vec::new(), "x509: certificate is valid for 10.9.9.9, not 127.0.0.1").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn members_with_a_revoked_certificate_stay_outside() {
    let third = Wanted { common_name: "member", serial: 0xdead, ..Wanted::default() };
    let listed = |files: &Files| vec!["--peer-crl-file".to_owned(), files.ours.revoke("list", &[0xdead])];
    kept_out(third, listed, "transport: certificate serial dead revoked").await;
}

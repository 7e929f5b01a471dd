//! A member as a process: flags, variables, addresses, files, signals (server.md 0.1, 9, 10.1, 10.6).

use std::ffi::OsStr;
use std::future::ready;
use std::io::BufRead;
use std::io::BufReader;
use std::net::TcpListener;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::path::PathBuf;
use std::process::Child;
use std::process::Command;
use std::process::ExitStatus;
use std::process::Stdio;

use nix::sys::signal::Signal;
use nix::unistd::Pid;
use quorate::proto::etcdserverpb::MemberListRequest;
use quorate::proto::etcdserverpb::RangeRequest;
use quorate::proto::etcdserverpb::cluster_client::ClusterClient;
use quorate::proto::etcdserverpb::kv_client::KvClient;
use quorate::proto::health::HealthCheckRequest;
use quorate::proto::health::health_client::HealthClient;

use crate::cluster::Cluster;
use crate::cluster::Member;
use crate::cluster::Program;
use crate::cluster::channel;
use crate::support::eventually;
use crate::support::free_port;
use crate::support::http_get;

/// A process of our program that does not outlive its test.
struct Process {
    child: Child,
}

impl Process {
    /// Starts it with these words and this environment only.
    fn start(program: &Path, words: &[&str], variables: &[(&str, &OsStr)]) -> Process {
        let child = Command::new(program)
            .args(words)
            .env_clear()
            .envs(variables.iter().copied())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .expect("the program runs");
        Process { child }
    }

    fn signal(&self, signal: Signal) {
        let pid = Pid::from_raw(i32::try_from(self.child.id()).expect("pids fit"));
        nix::sys::signal::kill(pid, signal).expect("it runs");
    }

    /// Its log lines up to the first one with this text; all of them if it ends before.
    fn log_until(&mut self, text: &str) -> Vec<String> {
        let stderr = self.child.stderr.as_mut().expect("piped");
        let mut seen = Vec::new();
        for line in BufReader::new(stderr).lines().map_while(Result::ok) {
            let found = line.contains(text);
            seen.push(line);
            if found {
                break;
            }
        }
        seen
    }

    async fn end(&mut self) -> ExitStatus {
        let mut ended = || match self.child.try_wait() {
            Ok(Some(status)) => Ok(status),
            other => Err(format!("{other:?}")),
        };
        eventually("the end of the process", || ready(ended())).await
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // Best effort: it may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Our program under the name of etcd's, in a directory of the test.
fn as_etcd(dir: &Path) -> PathBuf {
    let link = dir.join("etcd");
    std::os::unix::fs::symlink(env!("CARGO_BIN_EXE_quorate"), &link).expect("a link");
    link
}

fn url(port: u16) -> String {
    format!("http://127.0.0.1:{port}")
}

/// Waits for the end of a member, with patience but not for ever.
async fn end_of(member: &mut Member) -> ExitStatus {
    let mut ended = || member.try_exit().ok_or_else(|| member.log_text());
    eventually("the end of the member", || ready(ended())).await
}

#[tokio::test]
async fn variables_are_read_and_a_flag_beside_one_is_a_conflict_under_etcds_name_only() {
    let dir = tempfile::tempdir().expect("a directory");
    let etcd = as_etcd(dir.path());
    let (client, peer) = (url(free_port()), url(free_port()));
    let data = dir.path().join("data");
    let variables: Vec<(&str, &OsStr)> = vec![
        ("ETCD_NAME", OsStr::new("v")),
        ("ETCD_DATA_DIR", data.as_os_str()),
        ("ETCD_LISTEN_CLIENT_URLS", OsStr::new(&client)),
        ("ETCD_ADVERTISE_CLIENT_URLS", OsStr::new(&client)),
        ("ETCD_LISTEN_PEER_URLS", OsStr::new(&peer)),
        ("ETCD_INITIAL_ADVERTISE_PEER_URLS", OsStr::new(&peer)),
        ("ETCD_HEARTBEAT_INTERVAL", OsStr::new("")),
        ("ETCD_NOT_A_FLAG", OsStr::new("1")),
        // Not ours, and not text: it must not matter.
        ("OTHER", OsStr::from_bytes(b"\xff")),
    ];
    let mut member = Process::start(&etcd, &[], &variables);
    let log = member.log_until("ready to serve").join("\n");
    assert!(log.contains("\"name\":\"v\"") && log.contains("ready to serve"), "{log}");
    assert!(log.contains("unrecognized environment variable") && log.contains("ETCD_NOT_A_FLAG=1"), "{log}");
    member.signal(Signal::SIGTERM);
    assert_eq!(member.end().await.signal(), Some(Signal::SIGTERM as i32));

    let mut refused = Process::start(&etcd, &["--name", "w"], &variables);
    let log = refused.log_until("nothing says this").join("\n");
    assert_eq!(refused.end().await.code(), Some(1));
    assert!(log.contains("conflicting environment variable") && log.contains("ETCD_NAME"), "{log}");

    let native = Path::new(env!("CARGO_BIN_EXE_quorate"));
    let mut member = Process::start(native, &["server", "--name", "w"], &variables);
    let log = member.log_until("ready to serve").join("\n");
    assert!(log.contains("\"name\":\"w\""), "the flag wins: {log}");
    drop(member);

    let wrong = [("ETCD_HEARTBEAT_INTERVAL", &b"abc"[..]), ("ETCD_NAME", &b"\xff"[..])];
    for (name, text) in wrong {
        let mut refused = Process::start(&etcd, &[], &[(name, OsStr::from_bytes(text))]);
        let log = refused.log_until("nothing says this").join("\n");
        assert_eq!(refused.end().await.code(), Some(1), "{name}: {log}");
        assert!(log.contains("failed to verify flags") && log.contains(name), "{log}");
    }
}

#[tokio::test]
async fn a_member_answers_on_all_its_addresses_and_logs_to_files() {
    let mut cluster = Cluster::prepare(&[Program::Ours], &[]);
    let (second, http, metrics) = (free_port(), free_port(), free_port());
    let log = cluster.dir.path().join("own.log");
    let member = &mut cluster.members[0];
    let both = format!("{},{}", url(member.client_port), url(second));
    member.set_arg("--listen-client-urls", &both);
    let words = [
        "--listen-client-http-urls",
        &url(http),
        "--listen-metrics-urls",
        &url(metrics),
        "--log-outputs",
        log.to_str().expect("UTF-8"),
        "--log-level",
        "debug",
    ];
    member.add_args(&words);
    member.start();
    cluster.wait_ready().await;
    let member = &cluster.members[0];
    let mut other = KvClient::new(channel(&format!("127.0.0.1:{second}")).await.expect("the second address"));
    other.range(RangeRequest { key: "k".into(), ..RangeRequest::default() }).await.expect("an answer");
    assert_eq!(http_get(http, "/health").await.0, 200);
    assert_eq!(http_get(http, "/version").await.0, 200);
    assert_eq!(http_get(metrics, "/metrics").await.0, 200);
    assert_eq!(http_get(metrics, "/readyz").await.0, 200);
    assert_eq!(http_get(metrics, "/version").await.0, 404);
    assert_ne!(http_get(member.client_port, "/health").await.0, 200, "gRPC only, once HTTP has its own address");
    let text = std::fs::read_to_string(&log).expect("the log");
    assert!(text.contains("ready to serve client requests"), "{text}");
    assert_eq!(member.log_text(), "", "nothing on stderr");
    let mode = std::fs::metadata(&log).expect("the log").permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    for line in text.lines() {
        assert!(line.starts_with('{') && line.ends_with('}'), "{line}");
    }
}

#[tokio::test]
async fn what_was_decided_once_stays_and_the_rest_follows_the_flags() {
    let mut cluster = Cluster::ours(1, &[]).await;
    let member = &mut cluster.members[0];
    member.put("k", "v").await.expect("a put");
    let before = member.status().await.expect("a status").header.expect("a header");
    member.kill();
    let port = free_port();
    member.client_port = port;
    member.set_arg("--name", "renamed");
    member.set_arg("--listen-client-urls", &url(port));
    member.set_arg("--advertise-client-urls", &url(port));
    member.set_arg("--initial-cluster", "nobody=ftp://nowhere");
    member.set_arg("--initial-cluster-token", "another");
    member.set_arg("--initial-cluster-state", "existing");
    member.set_arg("--initial-advertise-peer-urls", "http://127.0.0.1:1");
    member.start();
    member.wait_ready().await;
    let after = member.status().await.expect("a status").header.expect("a header");
    assert_eq!((after.cluster_id, after.member_id), (before.cluster_id, before.member_id));
    assert!(after.raft_term > before.raft_term);
    let mut members = ClusterClient::new(member.connect().await.expect("a connection"));
    let list = members.member_list(MemberListRequest::default()).await.expect("a list").into_inner().members;
    let peer = url(member.peer_port);
    assert_eq!(list.len(), 1);
    assert_eq!((list[0].name.as_str(), &list[0].client_ur_ls[..]), ("renamed", &[url(port)][..]));
    assert_eq!(list[0].peer_ur_ls, [peer], "peer addresses change by a request only");
    assert_eq!(member.get("k").await.expect("an answer").count, 1);
}

#[tokio::test]
async fn files_are_for_their_owner_only() {
    let mut cluster = Cluster::prepare(&[Program::Ours], &[]);
    let wal = cluster.dir.path().join("elsewhere/wal");
    cluster.members[0].add_args(&["--wal-dir", wal.to_str().expect("UTF-8")]);
    cluster.members[0].start();
    cluster.wait_ready().await;
    let member = &mut cluster.members[0];
    member.put("k", "v").await.expect("a put");
    assert!(member.terminate().signal().is_some());
    let mut paths = vec![member.data_dir.clone(), wal.clone()];
    let mut files = 0;
    while let Some(path) = paths.pop() {
        let mode = std::fs::metadata(&path).expect("it is there").permissions().mode() & 0o777;
        let expected = if path.is_dir() { 0o700 } else { 0o600 };
        assert_eq!(mode, expected, "{}", path.display());
        if path.is_dir() {
            paths.extend(std::fs::read_dir(&path).expect("readable").flatten().map(|entry| entry.path()));
        } else {
            files += 1;
        }
    }
    assert!(files >= 2 && !member.data_dir.join("member/wal").exists(), "the log is elsewhere");
    // Wider rights are the operator's business: the member says a word and starts.
    std::fs::set_permissions(&member.data_dir, std::fs::Permissions::from_mode(0o755)).expect("allowed");
    member.start();
    member.wait_ready().await;
    assert_eq!(member.get("k").await.expect("an answer").count, 1);
    assert!(member.log_text().contains("should be for its owner only (0700)"));
}

#[tokio::test]
async fn a_taken_address_is_named_before_any_file_is_touched() {
    for flag in ["--listen-client-urls", "--listen-peer-urls"] {
        let mut cluster = Cluster::prepare(&[Program::Ours], &[]);
        let member = &mut cluster.members[0];
        let port = if flag == "--listen-peer-urls" { member.peer_port } else { member.client_port };
        let taken = TcpListener::bind(("127.0.0.1", port)).expect("the port is free");
        member.start();
        assert_eq!(end_of(member).await.code(), Some(1));
        let text = format!("listen tcp 127.0.0.1:{port}: bind: address already in use");
        assert!(member.log_text().contains(&text), "{}", member.log_text());
        assert!(!member.data_dir.exists());
        drop(taken);
        member.start();
        member.wait_ready().await;
    }
}

#[tokio::test]
async fn a_stop_waits_for_open_calls_and_a_second_signal_does_not() {
    // RT is 105 s: only the second signal can end the process while the test has patience.
    let mut cluster = Cluster::ours(1, &["--heartbeat-interval", "1000", "--election-timeout", "50000"]).await;
    let member = &mut cluster.members[0];
    let mut health = HealthClient::new(member.connect().await.expect("a connection"));
    let mut stream = health.watch(HealthCheckRequest::default()).await.expect("a stream").into_inner();
    assert!(stream.message().await.expect("a word").is_some());
    member.signal(Signal::SIGTERM);
    let port = member.client_port;
    eventually("the closed port", async || match TcpListener::bind(("127.0.0.1", port)) {
        Ok(_) => Ok(()),
        Err(error) => Err(error.to_string()),
    })
    .await;
    assert!(member.try_exit().is_none(), "a stream is open");
    assert!(member.log_text().contains("\"stopping\""));
    member.signal(Signal::SIGTERM);
    assert_eq!(end_of(member).await.signal(), Some(Signal::SIGTERM as i32));
    assert!(member.log_text().contains("stopping at once"));

    // Without open calls nothing is waited for; what a client keeps open idly is no call.
    member.start();
    member.wait_ready().await;
    let _idle = member.connect().await.expect("a connection");
    member.signal(Signal::SIGINT);
    assert_eq!(end_of(member).await.signal(), Some(Signal::SIGINT as i32));
    assert!(member.log_text().contains("\"stopped\""));
}

#[tokio::test]
async fn a_member_that_still_starts_can_be_stopped() {
    let mut cluster = Cluster::prepare(&[Program::Ours], &[]);
    // They take connections and never answer: asking them all takes longer than the test has patience.
    let silent: Vec<TcpListener> = (0..12).map(|_| TcpListener::bind("127.0.0.1:0").expect("a port")).collect();
    let member = &mut cluster.members[0];
    let mut initial = format!("m1={}", url(member.peer_port));
    for (number, listener) in silent.iter().enumerate() {
        initial += &format!(",s{number}={}", url(listener.local_addr().expect("bound").port()));
    }
    member.set_arg("--initial-cluster", &initial);
    member.set_arg("--initial-cluster-state", "existing");
    member.start();
    // It asks the first one.
    let asked = tokio::task::spawn_blocking(move || silent.iter().map(|one| one.accept()).next().map(|_| silent));
    let _silent = asked.await.expect("no panic").expect("a connection");
    member.signal(Signal::SIGTERM);
    assert_eq!(end_of(member).await.signal(), Some(Signal::SIGTERM as i32));
    assert!(!member.data_dir.join("member/wal").exists());
}

//! The wrong thing, typed or sent on purpose: the exact answer, and nothing lost.

use std::process::Command;
use std::process::Output;

use bytes::Bytes;
use quorate::proto::etcdserverpb::CompactionRequest;
use quorate::proto::etcdserverpb::PutRequest;
use quorate::proto::etcdserverpb::RangeRequest;
use quorate::proto::etcdserverpb::RequestOp;
use quorate::proto::etcdserverpb::TxnRequest;
use quorate::proto::etcdserverpb::kv_client::KvClient;
use quorate::proto::etcdserverpb::request_op::Request;
use tonic::Code;
use tonic::Status;

use crate::cluster::Cluster;
use crate::cluster::Program;
use crate::cluster::copy_dir;
use crate::support::eventually;
use crate::support::free_port;

/// Runs `quorate server` with these words to its end.
fn server(words: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_quorate"))
        .arg("server")
        .args(words)
        .env_clear()
        .output()
        .expect("the program runs")
}

/// Exit code and everything it said.
fn said(output: &Output) -> (Option<i32>, String) {
    let text = [output.stdout.as_slice(), output.stderr.as_slice()].concat();
    // Log lines are JSON: their quotes are escaped.
    (output.status.code(), String::from_utf8_lossy(&text).replace("\\\"", "\""))
}

fn refuses(words: &[&str], code: i32, text: &str) {
    let (found, message) = said(&server(words));
    assert_eq!(found, Some(code), "{words:?}: {message}");
    assert!(message.contains(text), "{words:?} should say {text:?}, said: {message}");
}

#[test]
fn wrong_flags_are_refused_in_etcds_words() {
    refuses(&["--foo"], 2, "flag provided but not defined: -foo");
    refuses(&["--initial-cluster-state", "foo"], 2, "invalid value \"foo\" for flag -initial-cluster-state");
    refuses(&["--heartbeat-interval", "x"], 2, "invalid value \"x\" for flag -heartbeat-interval");
    refuses(&["--pre-vote", "false"], 1, "is not a valid flag");
    refuses(
        &["--heartbeat-interval", "300"],
        1,
        "--election-timeout[1000ms] should be at least as 5 times as --heartbeat-interval[300ms]",
    );
    refuses(&["--election-timeout", "50001"], 1, "is too long, and should be set less than 50000ms");
    refuses(&["--auto-compaction-mode", "x"], 1, "unknown auto-compaction-mode");
    refuses(&["--listen-client-urls", "http://127.0.0.1:1"], 1, "--advertise-client-urls is required when");
    refuses(&["--config-file", "/nowhere"], 1, "--config-file is not supported by this release");
}

#[test]
fn wrong_urls_and_clusters_are_refused_in_etcds_words() {
    let dir = tempfile::tempdir().expect("a directory");
    let data = dir.path().join("data");
    let data = data.to_str().expect("UTF-8");
    let peer = format!("http://127.0.0.1:{}", free_port());
    let client = format!("http://127.0.0.1:{}", free_port());
    let base = [
        "--data-dir",
        data,
        "--listen-peer-urls",
        &peer,
        "--initial-advertise-peer-urls",
        &peer,
        "--listen-client-urls",
        &client,
        "--advertise-client-urls",
        &client,
    ];
    let with = |more: &[&str], code: i32, text: &str| {
        let words: Vec<&str> = base.iter().copied().chain(more.iter().copied()).collect();
        refuses(&words, code, text);
    };
    with(
        &["--name", "a", "--initial-cluster", &format!("b={peer}")],
        1,
        "couldn't find local name \"a\" in the initial cluster configuration",
    );
    with(
        &["--name", "a", "--initial-cluster", "a=http://127.0.0.1:1"],
        1,
        "--initial-cluster has a=http://127.0.0.1:1 but missing from --initial-advertise-peer-urls",
    );
    with(&["--name", "a", "--initial-cluster", &format!("a={peer},b={peer}")], 1, "has duplicate url");
    with(
        &["--name", "a", "--initial-cluster", "a=ftp://127.0.0.1:1"],
        1,
        "URL scheme must be http, https, unix, or unixs",
    );
    with(&["--name", "a", "--initial-cluster", "a=http://127.0.0.1:1/x"], 1, "URL must not contain a path");
    with(
        &["--name", "a", "--initial-cluster", "a=http://127.0.0.1"],
        1,
        "URL address does not have the form \"host:port\"",
    );
    refuses(&["--listen-peer-urls", "http://example.com:2380"], 1, "expected IP in URL for binding");
    assert!(!std::path::Path::new(data).join("member/wal").exists(), "a refused start leaves no log behind");
}

#[tokio::test]
async fn a_locked_data_directory_is_refused_and_its_owner_lives_on() {
    let cluster = Cluster::ours(1, &[]).await;
    let peer = format!("http://127.0.0.1:{}", free_port());
    let client = format!("http://127.0.0.1:{}", free_port());
    let data = cluster.members[0].data_dir.to_str().expect("UTF-8").to_owned();
    refuses(
        &[
            "--data-dir",
            &data,
            "--listen-peer-urls",
            &peer,
            "--listen-client-urls",
            &client,
            "--advertise-client-urls",
            &client,
        ],
        1,
        "another process",
    );
    cluster.members[0].put("still", "here").await.expect("the owner serves");
}

#[test]
fn a_data_directory_that_cannot_be_written_is_named() {
    let dir = tempfile::tempdir().expect("a directory");
    let file = dir.path().join("file");
    std::fs::write(&file, "x").expect("a file");
    let below = file.join("data");
    let peer = format!("http://127.0.0.1:{}", free_port());
    let client = format!("http://127.0.0.1:{}", free_port());
    let below = below.to_str().expect("UTF-8");
    refuses(
        &[
            "--data-dir",
            below,
            "--listen-peer-urls",
            &peer,
            "--listen-client-urls",
            &client,
            "--advertise-client-urls",
            &client,
        ],
        1,
        below,
    );
}

#[tokio::test]
async fn an_address_in_use_is_named() {
    let cluster = Cluster::ours(1, &[]).await;
    let dir = tempfile::tempdir().expect("a directory");
    let data = dir.path().join("data");
    let client = format!("http://{}", cluster.members[0].endpoint());
    let peer = format!("http://127.0.0.1:{}", free_port());
    refuses(
        &[
            "--data-dir",
            data.to_str().expect("UTF-8"),
            "--listen-peer-urls",
            &peer,
            "--listen-client-urls",
            &client,
            "--advertise-client-urls",
            &client,
        ],
        1,
        &cluster.members[0].endpoint(),
    );
}

#[tokio::test]
async fn a_directory_of_another_cluster_never_joins() {
    let mut one = Cluster::ours(3, &[]).await;
    let other = Cluster::ours(1, &[]).await;
    one.members[0].put("mine", "1").await.expect("a put");
    // The third member comes back with the data of another cluster under its feet.
    one.members[2].kill();
    std::fs::remove_dir_all(&one.members[2].data_dir).expect("removed");
    copy_dir(&other.members[0].data_dir, &one.members[2].data_dir);
    one.members[2].start();
    let stranger = one.members[2].data_dir.clone();
    // It serves its own cluster of one or nothing at all; the two others go on and stay alike.
    eventually("two of three to go on", async || {
        one.members[0].put("mine", "2").await.map_err(|status| status.to_string())
    })
    .await;
    let foreign = one.members[2].get("mine").await;
    assert!(
        foreign.map_or(true, |response| response.count == 0),
        "{} answered for a cluster it is not in",
        stranger.display()
    );
    one.members[2].kill();
    one.hashes_agree().await;
}

#[tokio::test]
async fn damage_in_the_log_is_refused_and_nothing_is_cut() {
    let mut cluster = Cluster::ours(1, &[]).await;
    for number in 0..50 {
        cluster.members[0].put(&format!("k{number}"), "value").await.expect("a put");
    }
    cluster.members[0].kill();
    let wal = cluster.members[0].data_dir.join("member/wal");
    let mut segments: Vec<_> = std::fs::read_dir(&wal).expect("a log").flatten().map(|entry| entry.path()).collect();
    segments.retain(|path| path.extension().is_some_and(|extension| extension == "wal"));
    segments.sort();
    let segment = segments.first().expect("a segment").clone();
    let before = std::fs::read(&segment).expect("a readable segment");
    let mut bytes = before.clone();
    // The value of a put in the middle of the log, not the tail.
    let at = bytes.windows(5).position(|window| window == b"value").expect("a value in the log");
    bytes[at] ^= 1;
    std::fs::write(&segment, &bytes).expect("damaged");
    cluster.members[0].start();
    let status = cluster.members[0].wait_exit();
    assert_eq!(status.code(), Some(1), "{}", cluster.logs("damage was accepted"));
    assert!(cluster.members[0].log_text().contains("crc mismatch"), "{}", cluster.logs("no word about it"));
    assert_eq!(std::fs::read(&segment).expect("still there"), bytes, "the damaged log was changed");
    // With the byte mended everything is there again.
    std::fs::write(&segment, &before).expect("mended");
    cluster.members[0].start();
    cluster.wait_ready().await;
    assert_eq!(cluster.members[0].get("k49").await.expect("a read").count, 1);
}

fn refused<T: std::fmt::Debug>(answer: Result<T, Status>, code: Code, text: &str) {
    let status = answer.expect_err("it was to be refused");
    assert_eq!((status.code(), status.message()), (code, text));
}

#[tokio::test]
async fn requests_over_the_limits_get_the_exact_error_and_change_nothing() {
    let cluster = Cluster::ours(1, &["--max-request-bytes", "10000", "--max-txn-ops", "4"]).await;
    let channel = cluster.members[0].connect().await.expect("a connection");
    let mut client = KvClient::new(channel);
    let before = cluster.hashes_agree().await;
    let large = PutRequest { key: "k".into(), value: Bytes::from(vec![0; 10_001]), ..PutRequest::default() };
    refused(client.put(large).await, Code::InvalidArgument, "etcdserver: request is too large");
    let huge = PutRequest { key: "k".into(), value: Bytes::from(vec![0; 600_000]), ..PutRequest::default() };
    let status = client.put(huge).await.expect_err("larger than a message may be");
    assert_eq!(status.code(), Code::ResourceExhausted, "{status}");
    let op =
        RequestOp { request: Some(Request::RequestRange(RangeRequest { key: "k".into(), ..RangeRequest::default() })) };
    let wide = TxnRequest { success: vec![op; 5], ..TxnRequest::default() };
    refused(client.txn(wide).await, Code::InvalidArgument, "etcdserver: too many operations in txn request");
    refused(client.put(PutRequest::default()).await, Code::InvalidArgument, "etcdserver: key is not provided");
    assert_eq!(cluster.hashes_agree().await, before, "a refused request left a trace");
}

#[tokio::test]
async fn future_and_compacted_revisions_get_the_exact_error() {
    let cluster = Cluster::ours(1, &[]).await;
    for number in 0..5 {
        cluster.members[0].put("k", &number.to_string()).await.expect("a put");
    }
    let channel = cluster.members[0].connect().await.expect("a connection");
    let mut client = KvClient::new(channel);
    client.compact(CompactionRequest { revision: 4, physical: true }).await.expect("a compaction");
    let at = |revision: i64| RangeRequest { key: "k".into(), revision, ..RangeRequest::default() };
    refused(client.range(at(3)).await, Code::OutOfRange, "etcdserver: mvcc: required revision has been compacted");
    refused(client.range(at(99)).await, Code::OutOfRange, "etcdserver: mvcc: required revision is a future revision");
    let kept = client.range(at(4)).await.expect("the compact revision itself is readable").into_inner();
    assert_eq!(kept.kvs[0].value.as_ref(), b"2");
    let again = CompactionRequest { revision: 4, physical: false };
    refused(client.compact(again).await, Code::OutOfRange, "etcdserver: mvcc: required revision has been compacted");
    let ahead = CompactionRequest { revision: 99, physical: false };
    refused(client.compact(ahead).await, Code::OutOfRange, "etcdserver: mvcc: required revision is a future revision");
}

#[tokio::test]
async fn garbage_on_both_ports_harms_nobody() {
    use tokio::io::AsyncWriteExt;
    let cluster = Cluster::start(&[Program::Ours], &[]).await;
    let member = &cluster.members[0];
    for port in [member.client_port, member.peer_port] {
        for garbage in [
            &b"\0\0\0\0"[..],
            b"GET / HTTP/1.1\r\n\r\n",
            b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\xff\xff\xff\xff\xff",
            &[0xff; 4096],
        ] {
            let mut socket = tokio::net::TcpStream::connect(("127.0.0.1", port)).await.expect("a connection");
            // It may be closed before all is written.
            let _ = socket.write_all(garbage).await;
            let _ = socket.shutdown().await;
        }
    }
    member.put("alive", "yes").await.expect("it still serves");
}

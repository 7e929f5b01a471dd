//! What etcd 3.7.1 answers to plain HTTP on its client and peer port, asked again of our member; and its metrics.

use std::collections::BTreeMap;
use std::collections::BTreeSet;
use std::io::Read;
use std::io::Write;
use std::net::TcpStream;
use std::path::PathBuf;

use crate::cluster::Cluster;
use crate::cluster::Program;
use crate::oracle::oracle;
use crate::recorded::lone_member;
use crate::support::PATIENCE;
use crate::support::shared_dir;
use crate::support::skipped;

/// Requests that are not compared, with the reason.
const NOT_COMPARED: [(&str, &str); 2] = [
    ("GET /debug/vars", "the figures of Go's memory; status and type are compared"),
    ("GET /metrics", "the record is cut; status and type are compared, the families in a test of their own"),
];
/// The learner that the recorded cluster had got from `member add`.
const LEARNER: &str = r#"{"id":11433156337303745795,"peerURLs":["http://127.0.0.1:1"],"isLearner":true},"#;

/// Families of the record that a member does not show, with the reason.
const MISSING_FAMILIES: [(&str, &str); 27] = [
    ("etcd_debugging_auth_revision", "authentication: later"),
    ("etcd_debugging_disk_backend_commit_rebalance_duration_seconds", "a phase of bbolt's commit"),
    ("etcd_debugging_disk_backend_commit_spill_duration_seconds", "a phase of bbolt's commit"),
    ("etcd_debugging_disk_backend_commit_write_duration_seconds", "a phase of bbolt's commit"),
    ("etcd_debugging_mvcc_db_compaction_last", "apply knows no wall clock"),
    ("etcd_debugging_mvcc_index_compaction_pause_duration_milliseconds", "index and records are compacted in one pass"),
    ("etcd_debugging_server_alarms", "no series before the first alarm"),
    ("etcd_debugging_server_watch_send_loop_control_stream_duration_seconds", "watch: later"),
    ("etcd_debugging_server_watch_send_loop_progress_duration_seconds", "watch: later"),
    ("etcd_debugging_server_watch_send_loop_watch_stream_duration_per_event_seconds", "watch: later"),
    ("etcd_debugging_server_watch_send_loop_watch_stream_duration_seconds", "watch: later"),
    ("etcd_debugging_snap_save_marshalling_duration_seconds", "no snapshot files of the v2 store"),
    ("etcd_debugging_snap_save_total_duration_seconds", "no snapshot files of the v2 store"),
    ("etcd_debugging_store_expires_total", "no v2 store"),
    ("etcd_debugging_store_watch_requests_total", "no v2 store"),
    ("etcd_debugging_store_watchers", "no v2 store"),
    ("etcd_disk_backend_defrag_duration_seconds", "defragment: later"),
    ("etcd_disk_defrag_inflight", "defragment: later"),
    ("etcd_grpc_proxy_cache_hits_total", "the proxy: later"),
    ("etcd_grpc_proxy_cache_keys_total", "the proxy: later"),
    ("etcd_grpc_proxy_cache_misses_total", "the proxy: later"),
    ("etcd_grpc_proxy_events_coalescing_total", "the proxy: later"),
    ("etcd_grpc_proxy_watchers_coalescing_total", "the proxy: later"),
    ("etcd_mvcc_db_open_read_transactions", "a View is no transaction that anyone has to close"),
    ("etcd_network_peer_sent_failures_total", "no series before the first peer that cannot be reached"),
    ("etcd_network_snapshot_receive_failures", "no series before the first failed snapshot"),
    ("etcd_server_go_version", "not written in Go"),
];
const MISSING_FAMILIES_OF_MEMBERS: [(&str, &str); 2] = [
    ("etcd_server_learner_promote_failures", "no series before the first failed promotion"),
    ("etcd_snap_fsync_duration_seconds", "no snapshot files of the v2 store"),
];

/// A request and its answer.
struct Exchange {
    head: String,
    /// Status line, content type and the headers that the record names.
    status: String,
    body: String,
}

impl Exchange {
    fn peer_port(&self) -> bool {
        self.head.contains("(peer port)")
    }

    /// Method, path and body.
    fn request(&self) -> (&str, &str, &str) {
        let head = self.head.split("(peer port)").next().unwrap_or_default().trim();
        let (method, rest) = head.split_once(' ').expect("a method and a path");
        let (path, body) = rest.split_once(' ').unwrap_or((rest, ""));
        (method, path, body)
    }
}

fn parse(text: &str) -> Vec<Exchange> {
    let parts = text.split("\n$ ").skip(1).map(|part| {
        let (head, rest) = part.split_once('\n').expect("an answer behind the request");
        let (status, body) = rest.split_once('\n').unwrap_or((rest, ""));
        let status = status.strip_prefix("< ").expect("a status");
        Exchange { head: head.to_owned(), status: status.to_owned(), body: body.trim_end_matches('\n').to_owned() }
    });
    parts.collect()
}

fn http_folder(test: &str) -> Option<PathBuf> {
    let shared = shared_dir();
    if shared.is_none() {
        skipped(test, "no shared folder beside this checkout");
    }
    shared.map(|shared| shared.join("transcripts/http-3.7.1"))
}

/// Asks over a connection of its own; status and body as the record writes them.
fn ask(port: u16, (method, path, body): (&str, &str, &str)) -> (String, String) {
    let mut socket = TcpStream::connect(("127.0.0.1", port)).expect("a connection");
    socket.set_read_timeout(Some(PATIENCE)).expect("a timeout above zero");
    let length = body.len();
    let text = format!(
        "{method} {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\nContent-Length: {length}\r\n\r\n{body}"
    );
    socket.write_all(text.as_bytes()).expect("the request is sent");
    let mut answer = Vec::new();
    socket.read_to_end(&mut answer).expect("an answer to its end");
    let answer = String::from_utf8(answer).expect("an answer in text");
    let (head, body) = answer.split_once("\r\n\r\n").expect("headers end");
    let mut lines = head.lines();
    let status = lines.next().and_then(|line| line.strip_prefix("HTTP/1.1 ")).expect("a status line");
    let headers: BTreeMap<String, &str> =
        lines.filter_map(|line| line.split_once(": ")).map(|(name, value)| (name.to_lowercase(), value)).collect();
    let mut status = format!("{status} · {}", headers.get("content-type").unwrap_or(&"None"));
    for name in ["Allow", "X-Etcd-Cluster-Id"] {
        if let Some(value) = headers.get(&name.to_lowercase()) {
            status.push_str(&format!(" · {name}: {value}"));
        }
    }
    let is_chunked = headers.get("transfer-encoding").is_some_and(|encoding| *encoding == "chunked");
    (status, if is_chunked { unchunked(body) } else { body.to_owned() })
}

fn unchunked(mut rest: &str) -> String {
    let mut body = String::new();
    while let Some((size, after)) = rest.split_once("\r\n") {
        let size = usize::from_str_radix(size, 16).expect("a chunk's size");
        body.push_str(&after[..size]);
        rest = after[size..].strip_prefix("\r\n").expect("a chunk ends");
        if size == 0 {
            break;
        }
    }
    body
}

/// A body without what varies: the time, and the order of checks, which in etcd is that of a Go map.
fn comparable(path: &str, body: &str) -> String {
    let body = body.trim_end_matches('\n').replace(LEARNER, "");
    match path {
        "/raft/probing" => body.split("\"Now\"").next().unwrap_or_default().to_owned(),
        _ if path.ends_with("?verbose") => {
            let mut lines: Vec<&str> = body.lines().collect();
            lines.sort_unstable();
            lines.join("\n")
        }
        _ => body,
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn http_endpoints_answer_as_recorded() {
    const TEST: &str = "http_endpoints_answer_as_recorded";
    let Some(folder) = http_folder(TEST) else { return };
    let text = std::fs::read_to_string(folder.join("endpoints.txt")).expect("the record");
    let cluster = lone_member().await;
    let member = &cluster.members[0];
    let advertised = format!("http://{}", member.endpoint());
    let exchanges = parse(&text);
    assert!(exchanges.len() > 30, "only {} requests were read", exchanges.len());
    let mut different = Vec::new();
    for exchange in &exchanges {
        let port = if exchange.peer_port() { member.peer_port } else { member.client_port };
        let (method, path, body) = exchange.request();
        let (status, answer) = ask(port, (method, path, body));
        let answer = answer.replace(&advertised, "http://127.0.0.1:12379");
        let left_out = NOT_COMPARED.iter().find(|(head, _)| *head == exchange.head);
        let equal = match left_out {
            Some((_, why)) => {
                println!("not compared: {}: {why}", exchange.head);
                exchange.head.starts_with("POST") || status == exchange.status
            }
            None => status == exchange.status && comparable(path, &answer) == comparable(path, &exchange.body),
        };
        if !equal {
            let Exchange { head, status: expected, body, .. } = exchange;
            different.push(format!("{head}\n--- expected\n{expected}\n{body}\n--- actual\n{status}\n{answer}"));
        }
    }
    assert!(different.is_empty(), "{}", different.join("\n"));
}

/// A family of metrics: type, label names, bounds of buckets, help.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Family {
    kind: String,
    labels: BTreeSet<String>,
    bounds: BTreeSet<String>,
    help: String,
}

/// Families of the text format, by name.
fn families(text: &str) -> BTreeMap<String, Family> {
    let mut families: BTreeMap<String, Family> = BTreeMap::new();
    let mut current = String::new();
    for line in text.lines() {
        if let Some((name, help)) = line.strip_prefix("# HELP ").and_then(|rest| rest.split_once(' ')) {
            current = name.to_owned();
            families.entry(current.clone()).or_default().help = help.to_owned();
        } else if let Some((name, kind)) = line.strip_prefix("# TYPE ").and_then(|rest| rest.split_once(' ')) {
            assert_eq!(name, current, "TYPE stands behind its HELP");
            families.entry(current.clone()).or_default().kind = kind.to_owned();
        } else if let Some((labels, _)) = line.split_once('{').and_then(|(_, rest)| rest.rsplit_once('}')) {
            let family = families.entry(current.clone()).or_default();
            for (name, value) in labels.split("\",").filter_map(|label| label.split_once("=\"")) {
                if name == "le" {
                    family.bounds.insert(value.trim_end_matches('"').to_owned());
                } else {
                    family.labels.insert(name.to_owned());
                }
            }
        }
    }
    families
}

/// The record: `name type label=value|value …`, a line a family.
fn recorded_families(text: &str) -> BTreeMap<String, Family> {
    let lines = text.lines().filter(|line| !line.starts_with('#'));
    let read = lines.map(|line| {
        let mut words = line.split(' ');
        let (name, kind) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
        let mut family = Family { kind: kind.to_owned(), ..Family::default() };
        for (label, values) in words.filter_map(|word| word.split_once('=')) {
            if label == "le" {
                family.bounds = values.split('|').map(str::to_owned).collect();
            } else {
                family.labels.insert(label.to_owned());
            }
        }
        (name.to_owned(), family)
    });
    read.collect()
}

/// What families with labels need to exist.
async fn some_requests(cluster: &Cluster) {
    let member = &cluster.members[0];
    member.put("a", "1").await.expect("an answer");
    member.get("a").await.expect("an answer");
    member.hash_kv(0).await.expect("an answer");
}

fn metrics_of(cluster: &Cluster) -> BTreeMap<String, Family> {
    families(&ask(cluster.members[0].client_port, ("GET", "/metrics", "")).1)
}

#[tokio::test(flavor = "multi_thread")]
async fn metrics_are_those_recorded() {
    const TEST: &str = "metrics_are_those_recorded";
    let Some(folder) = http_folder(TEST) else { return };
    let text = std::fs::read_to_string(folder.join("metrics.txt")).expect("the record");
    let recorded = recorded_families(&text);
    let cluster = lone_member().await;
    some_requests(&cluster).await;
    ask(cluster.members[0].client_port, ("GET", "/readyz", ""));
    let ours = metrics_of(&cluster);
    let mut wrong = Vec::new();
    let listed: BTreeMap<&str, &str> = MISSING_FAMILIES.into_iter().chain(MISSING_FAMILIES_OF_MEMBERS).collect();
    for (name, expected) in &recorded {
        match (ours.get(name), listed.get(name.as_str())) {
            (None, Some(why)) => println!("missing: {name}: {why}"),
            (None, None) => wrong.push(format!("{name} is missing")),
            (Some(_), Some(_)) => wrong.push(format!("{name} is listed as missing and is there")),
            (Some(found), None) => {
                let found = Family { help: String::new(), ..found.clone() };
                if found != *expected {
                    wrong.push(format!("{name}\n--- expected\n{expected:?}\n--- actual\n{found:?}"));
                }
            }
        }
    }
    let extra = ours.keys().filter(|name| !recorded.contains_key(*name) && !name.starts_with("quorate_"));
    wrong.extend(extra.map(|name| format!("{name} is not etcd's")));
    assert!(recorded.len() > 100 && wrong.is_empty(), "{} recorded; {}", recorded.len(), wrong.join("\n"));
}

/// The record has no help texts; a real 3.5.1 has those of the families it shares with 3.7.
#[tokio::test(flavor = "multi_thread")]
async fn metrics_have_etcds_help() {
    let Some(oracle) = oracle("metrics_have_etcds_help") else { return };
    let real = Cluster::start(&[Program::Etcd(oracle.etcd.clone())], &["--unsafe-no-fsync"]).await;
    let ours = Cluster::ours(1, &["--unsafe-no-fsync"]).await;
    some_requests(&real).await;
    some_requests(&ours).await;
    let (real, ours) = (metrics_of(&real), metrics_of(&ours));
    let mut shared = 0;
    for (name, family) in &ours {
        if let Some(expected) = real.get(name) {
            shared += 1;
            assert_eq!((&family.kind, &family.help), (&expected.kind, &expected.help), "{name}");
        }
    }
    assert!(shared > 50, "only {shared} families are shared");
}

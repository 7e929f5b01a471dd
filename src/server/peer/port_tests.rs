//! The peer port as seen by anyone who dials it: exact answers, exact bytes, and nothing that ends a member.

use std::io::Read;
use std::io::Write;
use std::net::TcpStream;

use prost::Message as _;

use crate::common::ids::ClusterId;
use crate::proto::etcdserverpb::LeaseKeepAliveRequest;
use crate::proto::raft_numbers::*;
use crate::server::peer::dialer::Dialer;
use crate::server::peer::facts::PeerFacts;
use crate::server::peer::fetch::FetchError;
use crate::server::peer::fetch::fetch_hash_kv;
use crate::server::peer::fetch::fetch_members;
use crate::server::peer::fetch::fetch_version;
use crate::server::peer::test_members::*;
use crate::server::raft::state_machine::Transport;

type Row<'a> = (&'a str, &'a str, &'a str, &'a [u8], u16, &'a str, &'a str);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_path_answers_as_etcd_does() {
    let member = Member::start(M1);
    member.peers.remove_peer(M3);
    member.peers.add_peer(M2, &["http://127.0.0.1:1".to_owned()]);
    let signed_by_2 = signed(M2);
    let to_1 = format!("{signed_by_2}X-Raft-To: {M1}\r\n");
    let other_cluster = to_1.replace(&CLUSTER.to_string(), "1");
    let old = to_1.replace("3.7.1", "2.3.8");
    let future = to_1.replace("Version: 3.0.0", "Version: 3.8.0");
    let stream_2 = format!("/raft/stream/message/{M2}");
    let stream_3 = format!("/raft/stream/msgapp/{M3}");
    let nobody: &[u8] = b"";
    let version = Facts.version_json();
    let json = r#"{"revision":3}"#.as_bytes();
    let lease = |id| LeaseKeepAliveRequest { id }.encode_to_vec();
    let (lease_5, lease_6, lease_7, lease_8) = (lease(5), lease(6), lease(7), lease(8));
    let members = "[{\"id\":1,\"peerURLs\":[\"http://127.0.0.1:1\"]}]\n";
    let id = "X-Etcd-Cluster-Id: a9a3f2aa4603e843";
    let hash = r#"{"header":{"revision":7},"hash":9,"compact_revision":-1,"hash_revision":3}"#;
    // Method, path, headers, body; status, body, a piece of the head.
    let table: Vec<Row> = vec![
        ("GET", "/raft", "", nobody, 405, "Method Not Allowed\n", "Allow: POST"),
        ("POST", "/raft", "", b"x", 412, "incompatible version\n", id),
        ("POST", "/raft", &old, b"x", 412, "incompatible version\n", id),
        ("POST", "/raft", &future, b"x", 412, "incompatible version\n", id),
        ("POST", "/raft", &other_cluster, b"x", 412, "cluster ID mismatch\n", id),
        ("POST", "/raft", &to_1, b"x", 400, "error unmarshalling raft message\n", id),
        ("POST", "/raft", &to_1, b"", 500, "error processing raft message\n", id),
        ("POST", &stream_2, &to_1, nobody, 405, "Method Not Allowed\n", "Allow: GET"),
        ("GET", &stream_2, "", nobody, 412, "incompatible version\n", id),
        ("GET", &stream_2, &other_cluster, nobody, 412, "cluster ID mismatch\n", id),
        ("GET", &stream_2, &signed_by_2, nobody, 412, "to field mismatch\n", "X-Server-Version: 3.7.1"),
        ("GET", "/raft/stream/x/1", &to_1, nobody, 404, "invalid path\n", id),
        ("GET", "/raft/stream/x", &to_1, nobody, 404, "invalid path\n", id),
        ("GET", "/raft/stream/message/zz", &to_1, nobody, 404, "invalid from\n", id),
        ("GET", "/raft/stream/message/77", &to_1, nobody, 404, "error sender not found\n", id),
        ("GET", &stream_3, &to_1, nobody, 410, "removed member\n", id),
        ("POST", "/raft/snapshot", "", b"x", 412, "incompatible version\n", id),
        ("POST", "/raft/snapshot", &to_1, b"x", 400, "failed to decode raft message (unexpected EOF)\n", id),
        (
            "POST",
            "/raft/snapshot",
            &to_1,
            &[0, 0, 0, 0, 0, 16, 0, 1],
            400,
            "failed to decode raft message (rafthttp: error limit exceeded)\n",
            id,
        ),
        ("POST", "/raft/snapshot", &to_1, &[0, 0, 0, 0, 0, 0, 0, 2, 8, 8], 400, "wrong raft message type\n", id),
        (
            "POST",
            "/raft/snapshot",
            &to_1,
            &[0, 0, 0, 0, 0, 0, 0, 2, 8, 7],
            500,
            "failed to process raft message (cannot process message to mismatch member)\n",
            id,
        ),
        ("GET", "/members", "", nobody, 200, members, id),
        ("POST", "/members", "", nobody, 405, "Method Not Allowed\n", "Allow: GET"),
        ("GET", "/version", "", nobody, 200, &version, "Content-Type: application/json"),
        ("GET", "/members/hashkv", "", nobody, 400, "error unmarshalling request\n", ""),
        ("GET", "/members/hashkv", "", json, 200, hash, id),
        ("GET", "/members/hashkv", &other_cluster, json, 412, "cluster ID mismatch\n", ""),
        (
            "GET",
            "/members/hashkv",
            "",
            br#"{"revision":8}"#,
            400,
            "mvcc: required revision is a future revision\n",
            "text/plain; charset=utf-8",
        ),
        ("GET", "/downgrade/enabled", "", nobody, 200, "false", id),
        ("GET", "/leases", "", nobody, 405, "Method Not Allowed\n", ""),
        ("POST", "/leases", "", b"garbage", 400, "error unmarshalling request\n", ""),
        ("POST", "/leases", "", &lease_5, 200, "\u{10}\u{5}\u{18}\u{3c}", "application/protobuf"),
        (
            "POST",
            "/leases",
            "",
            &lease_6,
            408,
            "waiting for node to catch up its applied index has timed out\n",
            "text/plain",
        ),
        ("POST", "/leases", "", &lease_7, 400, "etcdserver: not leader\n", ""),
        ("POST", "/leases", "", &lease_8, 404, "lease not found\n", ""),
        ("POST", "/leases/internal", "", &[0x0a, 2, 8, 5], 200, "\u{a}\u{4}\u{10}\u{5}\u{18}\u{3}", ""),
        ("POST", "/leases/internal", "", nobody, 400, "error unmarshalling request\n", ""),
        ("GET", "/members/promote/1", "", nobody, 405, "Method Not Allowed\n", "Allow: POST"),
        ("POST", "/members/promote/1", "Authorization: secret\r\n", nobody, 200, members, id),
        ("POST", "/members/promote/zz", "", nobody, 404, "member zz not found in cluster\n", id),
        ("POST", "/members/promote/3", "", nobody, 404, "membership: ID not found\n", id),
        ("POST", "/members/promote/2", "", nobody, 412, "membership: can only promote a learner member\n", id),
        ("GET", "/nosuch", "", nobody, 404, "404 page not found\n", "X-Content-Type-Options: nosniff"),
        ("GET", "/health", "", nobody, 404, "404 page not found\n", ""),
        ("GET", "/", "", nobody, 404, "404 page not found\n", ""),
    ];
    for (method, path, headers, body, status, text, head) in table {
        let answered = ask(member.address, method, path, headers, body);
        assert_eq!((answered.status, answered.body.as_str()), (status, text), "{method} {path} {headers}");
        assert!(answered.head.contains(head), "{method} {path}: no {head} in {}", answered.head);
    }
    let probed = ask(member.address, "PUT", "/raft/probing", "", b"");
    assert!(probed.body.starts_with("{\"OK\":true,\"Now\":\"20") && probed.body.ends_with("Z\"}\n"), "{probed:?}");
    assert!(!ask(member.address, "GET", "/leases", "", b"").head.contains("Allow:"));
    member.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dialed_stream_is_flushed_at_once_and_carries_exact_bytes() {
    let member = Member::start(M1);
    let gone = bind().local_addr().unwrap();
    member.peers.add_peer(M2, &[url(gone)]);
    let head = format!("GET /raft/stream/message/{M2} HTTP/1.1\r\nHost: x\r\n{}X-Raft-To: {M1}\r\n\r\n", signed(M2));
    let mut socket = TcpStream::connect(member.address).unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    socket.write_all(head.as_bytes()).unwrap();
    let mut received = Vec::new();
    let mut read_until = |wanted: &[u8]| {
        let mut chunk = [0; 4096];
        let started = std::time::Instant::now();
        while !received.windows(wanted.len()).any(|window| window == wanted) {
            let bytes = socket.read(&mut chunk).unwrap();
            // Heartbeats keep coming, so the socket's own timeout never strikes.
            assert!(bytes > 0 && started.elapsed() < PATIENCE, "stream goes without {wanted:?}: {received:?}");
            received.extend_from_slice(&chunk[..bytes]);
        }
        String::from_utf8_lossy(&received).to_lowercase()
    };
    let head = read_until(b"\r\n\r\n");
    for piece in ["200 ok", "x-server-version: 3.7.1", "x-etcd-cluster-id: a9a3f2aa4603e843", "chunked"] {
        assert!(head.contains(piece), "{piece} not in {head}");
    }
    read_until(b"\r\nA\r\n\0\0\0\0\0\0\0\x02\x08\x08\r\n");
    // There is no append stream, so appends take this one.
    let append = append(M1, M2, 5, b"x");
    member.peers.send(vec![append.clone()]);
    let append = append.encode_to_vec();
    read_until(&[&(append.len() as u64).to_be_bytes()[..], &append].concat());
    member.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn garbage_ends_only_its_own_connection() {
    let (one, two) = Member::pair().await;
    for garbage in
        [&b"\0\x01\x02\x03\r\n\r\n"[..], b"GET /raft\r\n", b"POST /raft HTTP/1.1\r\nContent-Length: x\r\n\r\n"]
    {
        let mut socket = TcpStream::connect(one.address).unwrap();
        socket.write_all(garbage).unwrap();
        let _ = socket.shutdown(std::net::Shutdown::Write);
        let mut answer = Vec::new();
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        let _ = socket.read_to_end(&mut answer);
    }
    for body in [&b"\xff\xff\xff"[..], &message(0, M2, M1).encode_to_vec(), &message(MSG_SNAP, M2, M1).encode_to_vec()]
    {
        assert!(post(one.address, "/raft", M2, body).status >= 400);
    }
    // Cut off in the middle of a message.
    let mut socket = TcpStream::connect(one.address).unwrap();
    let head = format!("POST /raft HTTP/1.1\r\nHost: x\r\n{}Content-Length: 100\r\n\r\nabc", signed(M2));
    socket.write_all(head.as_bytes()).unwrap();
    drop(socket);
    one.peers.send(vec![append(M1, M2, 5, b"x")]);
    two.peers.send(vec![message(MSG_HEARTBEAT, M2, M1)]);
    until("the append", || two.messages() == [append(M1, M2, 5, b"x")]).await;
    until("the heartbeat", || one.messages() == [message(MSG_HEARTBEAT, M2, M1)]).await;
    one.stop().await;
    two.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn idle_and_half_heard_connections_are_closed_while_streams_stay() {
    let (one, two) = Member::pair().await;
    until("two hears one", || two.peers.active_since(M1).is_some()).await;
    let since = two.peers.active_since(M1);
    for beginning in ["", "GET /version HT", "GET /version HTTP/1.1\r\nHost: x\r\n\r\n"] {
        let mut socket = TcpStream::connect(one.address).unwrap();
        socket.write_all(beginning.as_bytes()).unwrap();
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        let mut answer = Vec::new();
        let closed = tokio::task::spawn_blocking(move || socket.read_to_end(&mut answer)).await.unwrap();
        assert!(closed.is_ok(), "{beginning:?}: {closed:?}");
    }
    assert_eq!(two.peers.active_since(M1), since);
    one.stop().await;
    two.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bootstrap_questions_are_answered_by_the_first_who_can() {
    let member = Member::start(M1);
    let dead = url(bind().local_addr().unwrap());
    let urls = [dead.clone(), url(member.address)];
    let (cluster, members) = fetch_members(&Dialer::default(), &urls, PATIENCE).await.unwrap();
    assert_eq!((cluster, members), (CLUSTER, format!("{}\n", Facts.members_json())));
    assert_eq!(fetch_version(&Dialer::default(), &urls[1], PATIENCE).await.unwrap(), Facts.version_json());
    let hash = fetch_hash_kv(&Dialer::default(), &urls[1], CLUSTER, 3, PATIENCE).await.unwrap();
    assert_eq!((hash.hash, hash.header.revision, hash.compact_revision), (9, 7, -1));
    let refused = fetch_hash_kv(&Dialer::default(), &urls[1], CLUSTER, 8, PATIENCE).await.unwrap_err();
    let expected = "mvcc: required revision is a future revision";
    assert!(matches!(refused, FetchError::Refused { text, .. } if text == expected));
    let refused = fetch_hash_kv(&Dialer::default(), &urls[1], ClusterId(1), 3, PATIENCE).await.unwrap_err();
    assert!(matches!(refused, FetchError::Refused { text, .. } if text == "cluster ID mismatch"));
    assert!(fetch_members(&Dialer::default(), &[dead], PATIENCE).await.is_err());
    assert!(matches!(fetch_members(&Dialer::default(), &[], PATIENCE).await, Err(FetchError::NoUrls)));
    member.stop().await;
}

//! The client port: HTTP/1 that never ends, gRPC calls that are never finished, answers that nobody reads.

use std::time::Duration;

use bytes::Bytes;
use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use http::Request;
use prost::Message;
use quorate::proto::etcdserverpb::RangeRequest;
use tokio::io::AsyncReadExt;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::cluster::Cluster;
use crate::cluster::Member;
use crate::sockets::connect;
use crate::sockets::http1;
use crate::sockets::is_well;
use crate::sockets::pour;
use crate::support::PATIENCE;

/// Enough to see memory grow with it.
const FLOOD_BYTES: usize = 600 << 20;

/// How long no answer began when no more are expected: the test is weaker when it is too short, and never fails for it.
const NOTHING_MORE: Duration = Duration::from_secs(3);

/// A connection that speaks HTTP/2, and lets the server send this much ahead on a stream and on the whole connection.
async fn http2(member: &Member, stream_window: u32, window: u32) -> h2::client::SendRequest<Bytes> {
    let mut builder = h2::client::Builder::new();
    builder.initial_window_size(stream_window).initial_connection_window_size(window);
    let socket = TcpStream::connect(member.endpoint()).await.expect("a connection");
    let (requests, connection) = builder.handshake::<_, Bytes>(socket).await.expect("a preface");
    tokio::spawn(async move {
        // It ends when the server has had enough, or the test.
        let _ = connection.await;
    });
    requests
}

fn call(member: &Member, method: &str) -> Request<()> {
    let uri = format!("http://{}/etcdserverpb.KV/{method}", member.endpoint());
    let request = Request::builder().method("POST").uri(uri).header("content-type", "application/grpc");
    request.header("te", "trailers").body(()).expect("a request")
}

fn framed(message: &[u8]) -> Bytes {
    let length = u32::try_from(message.len()).expect("short").to_be_bytes();
    [&[0][..], &length, message].concat().into()
}

/// The status of a call with this body, from headers or trailers; `None` when the stream was reset.
async fn grpc_status(member: &Member, body: Bytes, ends: bool) -> Option<String> {
    let requests = http2(member, 1 << 20, 1 << 20).await;
    let mut requests = requests.ready().await.expect("ready");
    let (answer, mut stream) = requests.send_request(call(member, "Range"), false).expect("sent");
    stream.send_data(body, ends).expect("sent");
    let answered = async {
        let mut answer = answer.await.ok()?;
        if let Some(status) = answer.headers().get("grpc-status") {
            return Some(status.to_str().expect("digits").to_owned());
        }
        while let Some(data) = answer.body_mut().data().await {
            let _ = answer.body_mut().flow_control().release_capacity(data.ok()?.len());
        }
        let trailers = answer.body_mut().trailers().await.ok()??;
        Some(trailers.get("grpc-status")?.to_str().expect("digits").to_owned())
    };
    timeout(PATIENCE, answered).await.expect("an answer")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn wrong_messages_are_answered_and_no_length_is_believed() {
    let mut cluster = Cluster::ours(1, &[]).await;
    let member = &mut cluster.members[0];
    let valid = framed(&RangeRequest { key: "k".into(), ..RangeRequest::default() }.encode_to_vec());
    assert_eq!(grpc_status(member, valid.clone(), true).await.as_deref(), Some("0"));
    let cases: [(&str, Bytes, bool); 6] = [
        ("a length of 4 GiB", Bytes::from_static(&[0, 0xff, 0xff, 0xff, 0xff]), false),
        ("a length of 3 MiB", Bytes::from_static(&[0, 0, 0x30, 0, 0, 1, 2]), false),
        ("a message cut short", valid.slice(..valid.len() - 1), true),
        ("compressed with nothing", Bytes::from_static(&[1, 0, 0, 0, 1, 0]), true),
        ("no protobuf", framed(&[0xff; 64]), true),
        ("no message", Bytes::new(), true),
    ];
    for (what, body, ends) in cases {
        let status = grpc_status(member, body, ends).await;
        assert_ne!(status.as_deref(), Some("0"), "{what}");
        is_well(member, what).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn streams_that_never_send_their_message_are_bounded() {
    let mut cluster = Cluster::ours(1, &[]).await;
    let mut open = Vec::new();
    for _ in 0..3 {
        let mut requests = http2(&cluster.members[0], 1 << 16, 1 << 16).await;
        for _ in 0..10_000 {
            let Ok(Ok(ready)) = timeout(Duration::from_secs(1), requests.clone().ready()).await else {
                break;
            };
            requests = ready;
            open.push(requests.send_request(call(&cluster.members[0], "Put"), false).expect("sent"));
        }
    }
    assert!(open.len() > 10_000, "{} streams are open", open.len());
    is_well(&mut cluster.members[0], "open streams").await;
    drop(open);
    is_well(&mut cluster.members[0], "reset streams").await;
}

/// Three thousand answers of 1 MiB, and a client that takes none of them.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn answers_that_nobody_reads_are_bounded() {
    let mut cluster = Cluster::ours(1, &[]).await;
    let value = "v".repeat(1 << 20);
    cluster.members[0].put("large", &value).await.expect("a put");
    // From the disk: values of the newest records are shared by all answers.
    cluster.members[0].terminate();
    cluster.members[0].start();
    cluster.wait_ready().await;
    let body = framed(&RangeRequest { key: "large".into(), ..RangeRequest::default() }.encode_to_vec());
    let mut open = Vec::new();
    for _ in 0..3 {
        let mut requests = http2(&cluster.members[0], 0, 1 << 16).await;
        for _ in 0..1000 {
            requests = timeout(PATIENCE, requests.ready()).await.expect("in time").expect("ready");
            let (answer, mut stream) = requests.send_request(call(&cluster.members[0], "Range"), false).expect("sent");
            stream.send_data(body.clone(), true).expect("sent");
            open.push((answer, stream));
        }
    }
    // The headers of the answers are no proof that the bodies are made; all of them are on their way when these came.
    let (mut answers, streams): (FuturesUnordered<_>, Vec<_>) = open.into_iter().unzip();
    let mut answered = Vec::new();
    while let Ok(Some(answer)) = timeout(NOTHING_MORE, answers.next()).await {
        answered.push(answer);
    }
    assert!(answered.len() > 20, "{} answers began", answered.len());
    println!("{} answers began", answered.len());
    is_well(&mut cluster.members[0], "answers that nobody reads").await;
    drop((answers, answered, streams));
    is_well(&mut cluster.members[0], "answers that are not wanted any more").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn oversized_requests_of_http1_end_with_an_answer_or_the_connection() {
    let mut cluster = Cluster::ours(1, &[]).await;
    let (client, peer) = (cluster.members[0].client_port, cluster.members[0].peer_port);
    let long = "x".repeat(4 << 20);
    let many: String = (0..100_000).map(|number| format!("h{number}: v\r\n")).collect();
    for port in [client, peer] {
        for (what, request) in [
            ("a long request line", format!("GET /{long} HTTP/1.1\r\nHost: h\r\n\r\n")),
            ("a long header", format!("GET /health HTTP/1.1\r\nHost: h\r\nX: {long}\r\n\r\n")),
            ("many headers", format!("GET /health HTTP/1.1\r\n{many}\r\n")),
            ("no line end", long.clone()),
            ("two lengths", "POST / HTTP/1.1\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nab".to_owned()),
            (
                "a chunk of all bytes",
                format!("POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n{}", "f".repeat(40)),
            ),
        ] {
            let (status, text) = http1(port, request.as_bytes()).await;
            assert!(status == 0 || status >= 400, "{what} on {port}: {text}");
        }
        for request in [
            "POST /health HTTP/1.1\r\nHost: h\r\nContent-Length: 99999999999\r\n\r\n",
            "PUT /version HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n",
        ] {
            let mut socket = connect(port).await;
            socket.write_all(request.as_bytes()).await.expect("sent");
            let sent = pour(&mut socket, &[b'1'; 1 << 16], FLOOD_BYTES).await;
            println!("{sent} bytes of a body were taken");
        }
        is_well(&mut cluster.members[0], "oversized requests").await;
    }
}

/// The header of a request has ten seconds, however it trickles.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn headers_that_trickle_are_cut_off() {
    let mut cluster = Cluster::ours(1, &[]).await;
    let (client, peer) = (cluster.members[0].client_port, cluster.members[0].peer_port);
    let mut trickles = tokio::task::JoinSet::new();
    for port in [client, peer] {
        for opening in [&b""[..], b"P", b"PRI * HTTP/2.0\r\n", b"GET /health HTTP/1.1\r\nHost: h\r\nX-Slow: "] {
            trickles.spawn(async move {
                let (mut reading, mut writing) = connect(port).await.into_split();
                writing.write_all(opening).await.expect("sent");
                let trickling = tokio::spawn(async move {
                    while opening.len() > 20 && writing.write_all(b"x").await.is_ok() {
                        tokio::time::sleep(Duration::from_millis(300)).await;
                    }
                    // Half-open: nothing comes, and no end either.
                    std::future::pending::<()>().await;
                });
                let mut answer = Vec::new();
                let end = timeout(PATIENCE, reading.read_to_end(&mut answer)).await;
                trickling.abort();
                (port, opening, end.is_ok())
            });
        }
    }
    while let Some(done) = trickles.join_next().await {
        let (port, opening, ended) = done.expect("no panic");
        assert!(ended, "{:?} on {port} is still open", String::from_utf8_lossy(opening));
    }
    is_well(&mut cluster.members[0], "trickling headers").await;
}

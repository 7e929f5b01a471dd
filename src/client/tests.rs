//! Calls against a server that answers by script: what is repeated, where, and how often.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::sync::Arc;
use std::sync::Mutex;
use std::time::Duration;

use bytes::Bytes;
use futures_util::stream;
use http_body_util::BodyExt;
use http_body_util::StreamBody;
use hyper::body::Frame;
use hyper::body::Incoming;
use hyper::server::conn::http2;
use hyper::service::service_fn;
use hyper_util::rt::TokioExecutor;
use hyper_util::rt::TokioIo;
use prost::Message;
use tokio::net::TcpListener;
use tokio::sync::Notify;

use super::*;
use crate::common::answer::Answer;
use crate::proto::etcdserverpb::PutRequest;
use crate::proto::etcdserverpb::PutResponse;
use crate::proto::etcdserverpb::RangeRequest;
use crate::proto::etcdserverpb::RangeResponse;

type Frames = StreamBody<stream::Iter<std::vec::IntoIter<Result<Frame<Bytes>, Infallible>>>>;

/// How the server treats one request.
#[derive(Clone, Copy, Debug)]
enum Reply {
    /// An empty message, which every response type can be read from.
    Success,
    Refusal(tonic::Code, &'static str),
    /// The connection ends after the request was read.
    HangUp,
    /// No answer, ever.
    Silence,
}

/// What the server does next and what it has seen. Without further script it answers with success.
#[derive(Default)]
struct Script {
    replies: VecDeque<Reply>,
    seen: Vec<http::HeaderMap>,
}

struct Scripted {
    address: String,
    script: Arc<Mutex<Script>>,
    /// Owned so that the server ends with the test.
    _serving: tokio::task::JoinSet<()>,
}

impl Scripted {
    async fn start(replies: &[Reply]) -> Scripted {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = listener.local_addr().expect("bound").to_string();
        let script = Arc::new(Mutex::new(Script { replies: replies.iter().copied().collect(), seen: Vec::new() }));
        let mut serving = tokio::task::JoinSet::new();
        serving.spawn(serve(listener, script.clone()));
        Scripted { address, script, _serving: serving }
    }

    fn seen(&self) -> usize {
        self.script.lock().expect("no server panics").seen.len()
    }
}

async fn serve(listener: TcpListener, script: Arc<Mutex<Script>>) {
    let mut connections = tokio::task::JoinSet::new();
    while let Ok((stream, _)) = listener.accept().await {
        let (script, hang_up) = (script.clone(), Arc::new(Notify::new()));
        connections.spawn(async move {
            let ended = hang_up.clone();
            let service = service_fn(move |request| answer(request, script.clone(), hang_up.clone()));
            let connection = http2::Builder::new(TokioExecutor::new()).serve_connection(TokioIo::new(stream), service);
            tokio::select! {
                _ = connection => {}
                () = ended.notified() => {}
            }
        });
    }
}

async fn answer(
    request: http::Request<Incoming>,
    script: Arc<Mutex<Script>>,
    hang_up: Arc<Notify>,
) -> Result<http::Response<Frames>, Infallible> {
    let (head, body) = request.into_parts();
    drop(body.collect().await);
    let reply = {
        let mut script = script.lock().expect("no server panics");
        script.seen.push(head.headers);
        script.replies.pop_front().unwrap_or(Reply::Success)
    };
    let (code, text) = match reply {
        Reply::Success => (tonic::Code::Ok, ""),
        Reply::Refusal(code, text) => (code, text),
        Reply::HangUp => {
            hang_up.notify_one();
            return std::future::pending().await;
        }
        Reply::Silence => return std::future::pending().await,
    };
    let mut trailers = http::HeaderMap::new();
    trailers.insert("grpc-status", http::HeaderValue::from(code as i32));
    trailers.insert("grpc-message", http::HeaderValue::from_static(text));
    let mut frames = vec![Ok(Frame::trailers(trailers))];
    if code == tonic::Code::Ok {
        frames.insert(0, Ok(Frame::data(Bytes::from_static(&[0; 5]))));
    }
    let response = http::Response::builder().header("content-type", "application/grpc");
    Ok(response.body(StreamBody::new(stream::iter(frames))).expect("valid parts"))
}

/// A client of these servers that notes its failed attempts.
fn client(servers: &[&Scripted]) -> (Client, Arc<Mutex<Vec<String>>>) {
    let attempts: Arc<Mutex<Vec<String>>> = Arc::default();
    let noted = attempts.clone();
    let mut config = Config::new(servers.iter().map(|server| server.address.clone()).collect());
    config.token = Some("secret".to_owned());
    config.observer = Some(Arc::new(move |failed| noted.lock().expect("no holder panics").push(failed.error.clone())));
    (Client::open(config).expect("plain endpoints"), attempts)
}

fn soon() -> Deadline {
    Deadline::after(Duration::from_secs(20))
}

fn at_once() -> Deadline {
    Deadline::after(Duration::from_millis(100))
}

async fn put(client: &Client, deadline: Deadline) -> Result<PutResponse, CallError> {
    client.put(PutRequest { key: "k".into(), ..PutRequest::default() }, deadline).await
}

async fn get(client: &Client, deadline: Deadline) -> Result<RangeResponse, CallError> {
    client.range(RangeRequest { key: "k".into(), ..RangeRequest::default() }, deadline).await
}

const TIMED_OUT: Reply = Reply::Refusal(tonic::Code::Unavailable, "etcdserver: request timed out");
const NO_LEADER: Reply = Reply::Refusal(tonic::Code::Unavailable, "etcdserver: no leader");

/// B27, jetcd 0.8.2 (Jepsen 2024), etcd 14890, TiDB 2.1.7: the client repeated a call whose outcome was unknown, and
/// the write was there twice.
#[tokio::test]
async fn b27_a_write_that_may_have_been_applied_is_sent_once() {
    for (reply, told) in [
        (Reply::HangUp, "rpc error: code = Unavailable desc = error reading from server: EOF"),
        (TIMED_OUT, "etcdserver: request timed out"),
        (Reply::Refusal(tonic::Code::Unavailable, "etcdserver: leader changed"), "etcdserver: leader changed"),
    ] {
        let server = Scripted::start(&[reply]).await;
        let (client, attempts) = client(&[&server]);
        let error = put(&client, soon()).await.expect_err("the server did not confirm");
        assert_eq!(error.to_string(), told);
        assert_eq!((server.seen(), attempts.lock().expect("no holder panics").len()), (1, 1), "{told}");
    }
}

#[tokio::test]
async fn a_write_that_was_not_proposed_is_sent_again() {
    let server = Scripted::start(&[NO_LEADER, NO_LEADER]).await;
    let (client, attempts) = client(&[&server]);
    put(&client, soon()).await.expect("the third attempt is taken");
    assert_eq!((server.seen(), attempts.lock().expect("no holder panics").len()), (3, 2));
}

#[tokio::test]
async fn reads_are_repeated_until_they_are_answered() {
    let server = Scripted::start(&[Reply::HangUp, TIMED_OUT, NO_LEADER]).await;
    let (client, attempts) = client(&[&server]);
    get(&client, soon()).await.expect("the fourth attempt is answered");
    assert_eq!(server.seen(), 4);
    assert_eq!(
        attempts.lock().expect("no holder panics")[..2],
        [
            "rpc error: code = Unavailable desc = error reading from server: EOF",
            "rpc error: code = Unavailable desc = etcdserver: request timed out"
        ]
    );
}

#[tokio::test]
async fn user_errors_are_told_at_once() {
    let refusal = Reply::Refusal(tonic::Code::InvalidArgument, "etcdserver: key is not provided");
    let server = Scripted::start(&[refusal]).await;
    let (client, _) = client(&[&server]);
    let error = get(&client, soon()).await.expect_err("refused");
    assert!(error.is(&Answer::EmptyKey) && server.seen() == 1);
}

#[tokio::test]
async fn calls_go_round_and_pass_dead_endpoints_over() {
    let (one, two) = (Scripted::start(&[]).await, Scripted::start(&[]).await);
    let dead =
        Scripted { address: "127.0.0.1:1".to_owned(), script: Arc::default(), _serving: tokio::task::JoinSet::new() };
    let (client, _) = client(&[&dead, &one, &two]);
    // Which endpoint is connected first is open, so as many calls as it takes until both were used.
    while one.seen() == 0 || two.seen() == 0 {
        put(&client, soon()).await.expect("two endpoints live");
    }
    let before = (one.seen(), two.seen());
    for _ in 0..6 {
        put(&client, soon()).await.expect("two endpoints live");
    }
    assert!(one.seen() > before.0 && two.seen() > before.1);
}

#[tokio::test]
async fn a_deadline_ends_calls_that_nobody_answers() {
    let silent = Scripted::start(&[Reply::Silence]).await;
    let (waiting, attempts) = client(&[&silent]);
    let error = put(&waiting, at_once()).await.expect_err("nobody answers");
    assert!(matches!(error, CallError::Deadline { last: None }), "{error:?}");
    assert_eq!(attempts.lock().expect("no holder panics").len(), 1);

    let dead = Client::open(Config::new(vec!["127.0.0.1:1".to_owned()])).expect("plain endpoints");
    let error = get(&dead, at_once()).await.expect_err("nobody is there");
    let refused = "Error while dialing: dial tcp 127.0.0.1:1: connect: connection refused";
    assert!(matches!(&error, CallError::Deadline { last: Some(last) } if last == refused), "{error:?}");
}

#[tokio::test]
async fn calls_carry_version_token_and_deadline() {
    let server = Scripted::start(&[]).await;
    let (client, _) = client(&[&server]);
    get(&client, soon()).await.expect("answered");
    let script = server.script.lock().expect("no server panics");
    let header = |name: &str| script.seen[0].get(name).map(|value| value.to_str().expect("text").to_owned());
    assert_eq!(header("client-api-version").as_deref(), Some("3.7"));
    assert_eq!(header("token").as_deref(), Some("secret"));
    assert!(header("grpc-timeout").is_some());
}

#[tokio::test]
async fn an_oversized_request_never_leaves() {
    let server = Scripted::start(&[]).await;
    let (client, attempts) = client(&[&server]);
    let request = PutRequest { value: vec![0; 3_000_000].into(), ..PutRequest::default() };
    let size = request.encoded_len();
    let error = client.put(request, soon()).await.expect_err("too large");
    let text = format!("code = ResourceExhausted desc = trying to send message larger than max ({size} vs. 2097152)");
    assert_eq!(error.to_string(), format!("rpc error: {text}"));
    assert_eq!((server.seen(), attempts.lock().expect("no holder panics").len()), (0, 1));
}

#[tokio::test]
async fn endpoints_that_cannot_be_served_are_refused() {
    assert_eq!(Client::open(Config::new(Vec::new())).err(), Some(OpenError::NoEndpoints));
    let settings = Settings { trusted_ca_file: "/nonexistent".to_owned(), ..Settings::default() };
    let refused = ClientSide::new(&settings, GRPC_PROTOCOLS).err();
    assert_eq!(refused.as_deref(), Some("open /nonexistent: no such file or directory"));
}

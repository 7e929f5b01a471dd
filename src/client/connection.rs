//! One HTTP/2 connection to one endpoint, and the sending of one request on it.
//!
//! tonic's own channel hides whether a request left this machine. That is what decides whether a write may be repeated
//! (reliability.md B27), so the connection is hyper's and tonic only frames the messages.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering;
use std::task::Context;
use std::task::Poll;
use std::time::Duration;

use futures_util::future::BoxFuture;
use hyper::body::Incoming;
use hyper::client::conn::http2;
use hyper::client::conn::http2::SendRequest;
use hyper_util::rt::TokioExecutor;
use hyper_util::rt::TokioIo;
use hyper_util::rt::TokioTimer;
use tonic::body::Body;
use tower::Service;

use super::endpoint::Endpoint;

/// Pings closer together than this are refused by servers, so grpc-go raises the interval; so do we (ctl.md 2.1).
const KEEPALIVE_TIME_MIN: Duration = Duration::from_secs(10);

/// Bytes a server may send ahead of our reading, per stream and per connection: a page of a few MiB must not wait for
/// window updates.
pub(super) const WINDOW_BYTES: u32 = 4 << 20;

/// Longest that one attempt to connect and greet may take: grpc-go's minimum connect timeout.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(20);

/// How idle connections are watched.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Keepalive {
    pub time: Duration,
    pub timeout: Duration,
}

/// An open connection. Clones share it.
#[derive(Clone)]
pub(super) struct Connection {
    sender: SendRequest<Body>,
    /// `host:port` as dialled, and our own end, for log lines.
    pub peer: Arc<(String, String)>,
    answered: Arc<AtomicBool>,
}

/// Opens a connection to `endpoint`. The second value runs until the connection ends and must be polled meanwhile.
/// Errors are texts as etcd's client logs them.
pub(super) async fn open(
    endpoint: &Endpoint,
    keepalive: Keepalive,
) -> Result<(Connection, impl Future<Output = ()> + Send + use<>), String> {
    let greet = async {
        let socket = endpoint.dial().await.map_err(|error| format!("Error while dialing: {error}"))?;
        let peer = Arc::new((socket.peer, socket.local));
        let (sender, driver) = http2::Builder::new(TokioExecutor::new())
            .timer(TokioTimer::new())
            .initial_stream_window_size(WINDOW_BYTES)
            .initial_connection_window_size(WINDOW_BYTES)
            .keep_alive_interval(keepalive.time.max(KEEPALIVE_TIME_MIN))
            .keep_alive_timeout(keepalive.timeout)
            .handshake(TokioIo::new(socket.stream))
            .await
            .map_err(|error| format!("error reading server preface: {error}"))?;
        // How the connection ended shows in the requests that it carried.
        let ended = async move { drop(driver.await) };
        Ok((Connection { sender, peer, answered: Arc::new(AtomicBool::new(false)) }, ended))
    };
    match tokio::time::timeout(CONNECT_TIMEOUT, greet).await {
        Ok(done) => done,
        Err(_) => Err("Error while dialing: dial tcp: i/o timeout".to_owned()),
    }
}

impl Connection {
    /// Whether requests can no longer be sent.
    pub fn is_closed(&self) -> bool {
        self.sender.is_closed()
    }

    /// Whether the other side ever answered a request: a port that speaks something else accepts and hangs up.
    pub fn has_answered(&self) -> bool {
        self.answered.load(Ordering::Relaxed)
    }

    /// One request's way over this connection.
    pub fn wire(&self, authority: &str) -> Wire {
        Wire { connection: self.clone(), authority: authority.to_owned(), unsent: Arc::new(AtomicBool::new(false)) }
    }
}

/// Sends one request and remembers whether it provably never left.
#[derive(Clone)]
pub(super) struct Wire {
    connection: Connection,
    authority: String,
    unsent: Arc<AtomicBool>,
}

impl Wire {
    /// True after a failure before the first byte of the request was handed to the connection.
    pub fn never_left(&self) -> bool {
        self.unsent.load(Ordering::Relaxed)
    }
}

impl Service<http::Request<Body>> for Wire {
    type Response = http::Response<Incoming>;
    type Error = hyper::Error;
    type Future = BoxFuture<'static, Result<Self::Response, Self::Error>>;

    fn poll_ready(&mut self, _context: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, mut request: http::Request<Body>) -> Self::Future {
        let path = request.uri().path_and_query().cloned();
        let uri = http::Uri::builder().scheme("http").authority(self.authority.as_str());
        let uri = uri.path_and_query(path.unwrap_or_else(|| http::uri::PathAndQuery::from_static("/"))).build();
        // An authority that is no URI (`[a:1]`) cannot have been dialled; the path alone is then as good.
        if let Ok(uri) = uri {
            *request.uri_mut() = uri;
        }
        let Wire { mut connection, unsent, .. } = self.clone();
        Box::pin(async move {
            let sent = connection.sender.try_send_request(request).await;
            match sent {
                Ok(response) => {
                    connection.answered.store(true, Ordering::Relaxed);
                    Ok(response)
                }
                Err(mut failed) => {
                    unsent.store(failed.take_message().is_some(), Ordering::Relaxed);
                    Err(failed.into_error())
                }
            }
        })
    }
}

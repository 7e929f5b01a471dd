//! One HTTP/2 connection to one endpoint, and the sending of one request on it.
//!
//! tonic's own channel hides whether a request left this machine. That is what decides whether a write may be repeated
//! (reliability.md B27), so the connection is hyper's and tonic only frames the messages.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::PoisonError;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering;
use std::task::Context;
use std::task::Poll;
use std::time::Duration;

use futures_util::future::BoxFuture;
use http::uri::Scheme;
use hyper::body::Incoming;
use hyper::client::conn::http2;
use hyper::client::conn::http2::SendRequest;
use hyper_util::rt::TokioExecutor;
use hyper_util::rt::TokioIo;
use hyper_util::rt::TokioTimer;
use tokio::io::AsyncRead;
use tokio::io::AsyncWrite;
use tokio::io::ReadBuf;
use tokio::sync::oneshot;
use tonic::body::Body;
use tower::Service;

use super::endpoint::Endpoint;
use super::endpoint::Stream;
use crate::common::tls::ClientSide;
use crate::common::tls::words;

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
    scheme: Scheme,
    answered: Arc<AtomicBool>,
}

/// Opens a connection to `endpoint`, over TLS if that is given, and waits for the server's greeting: a port that speaks
/// something else, or that does not like our certificate, hangs up instead. The second value runs until the connection
/// ends and must be polled meanwhile. Errors are texts as etcd's client logs them.
pub(super) async fn open(
    endpoint: &Endpoint,
    tls: Option<&ClientSide>,
    keepalive: Keepalive,
) -> Result<(Connection, impl Future<Output = ()> + Send + use<>), String> {
    let greet = async {
        let socket = endpoint.dial().await.map_err(|error| format!("Error while dialing: {error}"))?;
        let peer = Arc::new((socket.peer, socket.local));
        let stream: Pin<Box<dyn Stream>> = match tls {
            None => socket.stream,
            Some(side) => {
                let failed = |error| format!("authentication handshake failed: {error}");
                Box::pin(side.connect(socket.stream, &endpoint.host()).await.map_err(failed)?)
            }
        };
        let (heard, greeting) = oneshot::channel();
        let broken = Broken::default();
        let stream = Listening { stream, heard: Some(heard), broken: broken.clone() };
        let (sender, driver) = http2::Builder::new(TokioExecutor::new())
            .timer(TokioTimer::new())
            .initial_stream_window_size(WINDOW_BYTES)
            .initial_connection_window_size(WINDOW_BYTES)
            .keep_alive_interval(keepalive.time.max(KEEPALIVE_TIME_MIN))
            .keep_alive_timeout(keepalive.timeout)
            .handshake(TokioIo::new(stream))
            .await
            .map_err(|error| format!("error reading server preface: {error}"))?;
        let mut driver = Box::pin(driver);
        tokio::select! {
            biased;
            _ = &mut driver => return Err(format!("error reading server preface: {}", broken.reason())),
            _ = greeting => {}
        }
        // How the connection ended shows in the requests that it carried.
        let ended = async move { drop(driver.await) };
        let scheme = if tls.is_some() { Scheme::HTTPS } else { Scheme::HTTP };
        Ok((Connection { sender, peer, scheme, answered: Arc::new(AtomicBool::new(false)) }, ended))
    };
    match tokio::time::timeout(CONNECT_TIMEOUT, greet).await {
        Ok(done) => done,
        Err(_) => Err("Error while dialing: dial tcp: i/o timeout".to_owned()),
    }
}

/// Why a connection broke, in Go's words: the HTTP/2 library keeps less of it.
#[derive(Clone, Default)]
struct Broken(Arc<Mutex<Option<String>>>);

impl Broken {
    fn by(&self, error: &io::Error) {
        let mut reason = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        reason.get_or_insert_with(|| words::of_io(error));
    }

    fn reason(&self) -> String {
        let mut reason = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        reason.take().unwrap_or_else(|| "EOF".to_owned())
    }
}

/// Tells when the first bytes come, and keeps what breaks the connection.
struct Listening {
    stream: Pin<Box<dyn Stream>>,
    heard: Option<oneshot::Sender<()>>,
    broken: Broken,
}

impl Listening {
    /// Whoever hangs up says why before: an alert may wait to be read.
    fn note(&mut self, context: &mut Context<'_>, written: Poll<io::Result<usize>>) -> Poll<io::Result<usize>> {
        if let Poll::Ready(Err(error)) = &written {
            let mut byte = [0];
            match self.stream.as_mut().poll_read(context, &mut ReadBuf::new(&mut byte)) {
                Poll::Ready(Err(reason)) => self.broken.by(&reason),
                Poll::Ready(Ok(())) | Poll::Pending => self.broken.by(error),
            }
        }
        written
    }
}

impl AsyncRead for Listening {
    fn poll_read(self: Pin<&mut Self>, context: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let before = buf.filled().len();
        let read = this.stream.as_mut().poll_read(context, buf);
        if buf.filled().len() > before
            && let Some(heard) = this.heard.take()
        {
            // Nobody waits any more once the time to connect is over.
            let _late = heard.send(());
        }
        if let Poll::Ready(Err(error)) = &read {
            this.broken.by(error);
        }
        read
    }
}

impl AsyncWrite for Listening {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let written = this.stream.as_mut().poll_write(context, bytes);
        this.note(context, written)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        parts: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let written = this.stream.as_mut().poll_write_vectored(context, parts);
        this.note(context, written)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.get_mut().stream.as_mut().poll_flush(context)
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.get_mut().stream.as_mut().poll_shutdown(context)
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
        let uri = http::Uri::builder().scheme(self.connection.scheme.clone()).authority(self.authority.as_str());
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

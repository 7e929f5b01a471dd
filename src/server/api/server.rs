//! The client port as a whole: accepts, tells protocols apart, serves, stops.
//!
//! Connections are bounded: above the limit nobody is accepted, so callers wait in the kernel's queue. Running out of
//! descriptors makes a pause, not a spin.

use std::convert::Infallible;
use std::future::Future;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::atomic::AtomicUsize;
use std::time::Duration;

use http::HeaderValue;
use http::Request;
use http::Response;
use http::header::CONTENT_TYPE;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::server::conn::http2;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use hyper_util::rt::TokioTimer;
use prometheus::Registry;
use tokio::sync::Semaphore;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tonic::body::Body;

use crate::server::api::backend::Backend;
use crate::server::api::calls::Calls;
use crate::server::api::calls::Starts;
use crate::server::api::http::Access;
use crate::server::api::http::HttpServer;
use crate::server::api::http::Surface;
use crate::server::api::interceptors::GrpcServer;
use crate::server::api::listener::Entry;
use crate::server::api::listener::Listener;
use crate::server::api::metrics::GrpcMetrics;
use crate::server::api::metrics::RequestMetrics;
use crate::server::api::services::Services;
use crate::server::api::socket::Protocol;
use crate::server::api::socket::Socket;
use crate::server::api::socket::Stream;
use crate::server::api::unsent::Unsent;
use crate::server::company::Company;
use crate::server::handshakes::farewell;
use crate::server::metrics::fd_limit;

/// Descriptors kept for files and peers.
const FDS_RESERVED: u64 = 150;

/// From connecting to the end of the first request's header; later headers on HTTP/1.1 have as long (reliability.md 4.4).
const HEADER_READ_TIMEOUT: Duration = Duration::from_secs(10);

/// After a failed accept, usually for want of descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Bytes that a client may send ahead on one stream: a request of the default limit in two rounds.
const STREAM_WINDOW_BYTES: u32 = 1024 * 1024;

/// The same over all streams of a connection: what one connection can make us hold.
const CONNECTION_WINDOW_BYTES: u32 = 4 * 1024 * 1024;

/// Header bytes of one request (reliability.md 4.4).
const HEADER_LIST_BYTES_MAX: u32 = 16 * 1024;

/// What the content type of a call has in it.
const GRPC: &[u8] = b"application/grpc";

/// How the port is served.
#[derive(Clone, Debug)]
pub struct ServeOptions {
    pub access: Access,
    /// Calls at once on one connection.
    pub streams_max: u32,
    /// Between pings of ours to a silent client; `None` sends none.
    pub keepalive_interval: Option<Duration>,
    /// A client that does not answer a ping for so long is cut.
    pub keepalive_timeout: Duration,
    pub connections_max: usize,
    /// `--metrics extensive`: a histogram for each method.
    pub extensive_metrics: bool,
    /// Where connections say that calls came.
    pub company: Arc<Company>,
}

/// What a listener answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// gRPC and HTTP, told apart by the first bytes.
    Client,
    /// gRPC only: the HTTP side has a listener of its own.
    GrpcOnly,
    /// The HTTP side of the client port only.
    HttpOnly,
    /// Metrics and health only.
    Metrics,
}

/// The number of connections that the soft limit of descriptors allows. An error when it allows none (server.md 0.1).
pub fn connections_max() -> Result<usize, String> {
    match fd_limit() {
        limit if limit <= FDS_RESERVED => Err(format!(
            "file descriptor limit[{limit}] of etcd process is too low, and should be set higher than {FDS_RESERVED} to ensure internal usage"
        )),
        limit => Ok(usize::try_from(limit - FDS_RESERVED).unwrap_or(usize::MAX).min(Semaphore::MAX_PERMITS)),
    }
}

/// The client-facing side of one member.
pub struct ApiServer {
    grpc: GrpcServer,
    http: HttpServer,
    options: ServeOptions,
    connections: Arc<Semaphore>,
    /// Bytes of answers that clients have not taken.
    unsent: Arc<AtomicUsize>,
    stop: watch::Sender<bool>,
    listeners: Mutex<JoinSet<()>>,
}

impl ApiServer {
    /// Registers the API's metrics, so once per registry.
    pub fn new(backend: Arc<dyn Backend>, registry: &Registry, options: ServeOptions) -> Arc<ApiServer> {
        let requests = RequestMetrics::register(registry);
        let metrics = Arc::new(GrpcMetrics::register(registry, options.extensive_metrics));
        let http = HttpServer::new(backend.clone(), registry.clone(), options.access.clone());
        Arc::new(ApiServer {
            grpc: GrpcServer::new(Services::new(backend.clone(), requests), backend, metrics),
            http,
            connections: Arc::new(Semaphore::new(options.connections_max)),
            unsent: Arc::default(),
            options,
            stop: watch::Sender::new(false),
            listeners: Mutex::new(JoinSet::new()),
        })
    }

    /// Serves a listener until `stop`. Nobody is answered before `gate` ends: callers connect and wait.
    pub fn serve(
        self: &Arc<ApiServer>,
        listener: Listener,
        role: Role,
        gate: impl Future<Output = ()> + Send + 'static,
    ) {
        let (server, mut stop) = (self.clone(), self.stop.subscribe());
        let accepting = async move {
            tokio::select! {
                () = gate => server.accept(listener, role, stop).await,
                () = stopped(&mut stop) => (),
            }
        };
        let mut listeners = self.listeners.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        listeners.spawn(accepting);
    }

    /// Stops accepting at once; lets open calls end for `grace`, then cuts them.
    pub async fn stop(&self, grace: Duration) {
        self.stop.send_replace(true);
        let mut listeners =
            std::mem::take(&mut *self.listeners.lock().unwrap_or_else(|poisoned| poisoned.into_inner()));
        let all = async { while listeners.join_next().await.is_some() {} };
        if tokio::time::timeout(grace, all).await.is_err() {
            tracing::warn!(?grace, "cut the client connections that were still open");
        }
        listeners.shutdown().await;
    }

    /// Owns the connections of one listener: they end with this future.
    async fn accept(self: Arc<ApiServer>, listener: Listener, role: Role, mut stop: watch::Receiver<bool>) {
        let mut connections = JoinSet::new();
        let mut stopping = stop.clone();
        loop {
            while connections.try_join_next().is_some() {}
            let next = async {
                let permit = self.connections.clone().acquire_owned().await.ok()?;
                Some((permit, listener.accept().await))
            };
            let (permit, accepted) = tokio::select! {
                next = next => match next {
                    Some(next) => next,
                    None => break,
                },
                () = stopped(&mut stopping) => break,
            };
            match accepted {
                Ok(stream) => {
                    let (server, entry, stop) = (self.clone(), listener.entry().clone(), stop.clone());
                    connections.spawn(async move {
                        server.connection(stream, entry, role, stop).await;
                        drop(permit);
                    });
                }
                Err(error) => {
                    tracing::warn!(url = %listener.url(), %error, "cannot accept a connection");
                    let pause = tokio::time::sleep(ACCEPT_PAUSE);
                    tokio::select! { () = pause => (), () = stopped(&mut stop) => break }
                }
            }
        }
        drop(listener);
        while connections.join_next().await.is_some() {}
    }

    async fn connection(
        self: Arc<ApiServer>,
        stream: Stream,
        entry: Entry,
        role: Role,
        mut stop: watch::Receiver<bool>,
    ) {
        let opened = tokio::select! {
            opened = open(stream, &entry) => opened,
            () = stopped(&mut stop) => return,
        };
        let Some((protocol, socket, is_secure)) = opened else { return };
        let pages = match (role, is_secure) {
            (Role::Metrics, _) => Surface::Metrics,
            (_, true) => Surface::SecureClient,
            (_, false) => Surface::Client,
        };
        let served = match (protocol, role) {
            // Without TLS whoever speaks HTTP/2 speaks gRPC (server.md 0.1).
            (Protocol::Http2, Role::GrpcOnly) => self.http2(socket, Calling::Grpc, stop).await,
            (Protocol::Http2, Role::Client) if !is_secure => self.http2(socket, Calling::Grpc, stop).await,
            (Protocol::Http2, Role::Client) => self.http2(socket, Calling::Either(pages), stop).await,
            (Protocol::Http2, Role::HttpOnly | Role::Metrics) if is_secure => {
                self.http2(socket, Calling::Pages(pages), stop).await
            }
            (Protocol::Http1, Role::Client | Role::HttpOnly | Role::Metrics) => self.http1(socket, pages, stop).await,
            (Protocol::Http2, Role::HttpOnly | Role::Metrics) | (Protocol::Http1, Role::GrpcOnly) => return,
            (Protocol::Tls, _) => return,
        };
        if let Err(error) = served {
            tracing::debug!(%error, "a client connection ended");
        }
    }

    async fn http2(
        self: Arc<ApiServer>,
        socket: Socket,
        calling: Calling,
        mut stop: watch::Receiver<bool>,
    ) -> Result<(), hyper::Error> {
        let starts = Starts::default();
        let company = self.options.company.clone();
        let mut builder = http2::Builder::new(starts.clone());
        builder
            .timer(TokioTimer::new())
            .auto_date_header(false)
            .max_concurrent_streams(self.options.streams_max)
            .max_header_list_size(HEADER_LIST_BYTES_MAX)
            .initial_stream_window_size(STREAM_WINDOW_BYTES)
            .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
            .keep_alive_interval(self.options.keepalive_interval)
            .keep_alive_timeout(self.options.keepalive_timeout);
        let unsent = Unsent::new(self.unsent.clone());
        let service = service_fn(move |mut request: Request<Incoming>| {
            let server = self.clone();
            request.extensions_mut().insert(unsent.clone());
            // Boxed, because the library moves it from hand to hand.
            Box::pin(async move {
                let answer = match calling.pages_for(&request) {
                    None => server.grpc.call(request).await,
                    Some(pages) => Box::pin(server.http.call(pages, request)).await,
                };
                Ok::<Response<Body>, Infallible>(answer)
            })
        });
        let mut connection = std::pin::pin!(builder.serve_connection(TokioIo::new(socket), service));
        let mut calls = Calls::new(starts, company.visitor());
        tokio::select! {
            ended = calls.run_with(connection.as_mut()) => return ended,
            () = stopped(&mut stop) => connection.as_mut().graceful_shutdown(),
        }
        calls.run_with(connection.as_mut()).await
    }

    async fn http1(
        self: Arc<ApiServer>,
        socket: Socket,
        surface: Surface,
        mut stop: watch::Receiver<bool>,
    ) -> Result<(), hyper::Error> {
        let mut builder = http1::Builder::new();
        // Names as Go writes them: scripts grep for them.
        builder.timer(TokioTimer::new()).header_read_timeout(HEADER_READ_TIMEOUT).title_case_headers(true);
        let service = service_fn(move |request: Request<Incoming>| {
            let server = self.clone();
            async move { Ok::<Response<Body>, Infallible>(server.http.call(surface, request).await) }
        });
        let mut connection = std::pin::pin!(builder.serve_connection(TokioIo::new(socket), service));
        tokio::select! {
            ended = connection.as_mut() => return ended,
            () = stopped(&mut stop) => connection.as_mut().graceful_shutdown(),
        }
        connection.await
    }
}

/// What is asked for on an HTTP/2 connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Calling {
    Grpc,
    /// gRPC by its content type, pages else.
    Either(Surface),
    Pages(Surface),
}

impl Calling {
    /// Which pages this request is for; `None` for a call.
    fn pages_for<B>(self, request: &Request<B>) -> Option<Surface> {
        match self {
            Calling::Grpc => None,
            Calling::Pages(pages) => Some(pages),
            Calling::Either(pages) => {
                let kind = request.headers().get(CONTENT_TYPE).map(HeaderValue::as_bytes).unwrap_or_default();
                let is_call = kind.windows(GRPC.len()).any(|part| part == GRPC);
                (!is_call).then_some(pages)
            }
        }
    }
}

/// Waits for the first words of a connection, and for its handshake. `None` for one that is not let in.
async fn open(stream: Stream, entry: &Entry) -> Option<(Protocol, Socket, bool)> {
    let sniff = async |stream| tokio::time::timeout(HEADER_READ_TIMEOUT, Socket::sniff(stream)).await.ok()?.ok();
    let (protocol, socket) = sniff(stream).await?;
    match (&entry.door, protocol) {
        // Whoever tries TLS here hears nothing, as from etcd.
        (None, Protocol::Tls) => {
            farewell(socket).await;
            None
        }
        (None, _) => Some((protocol, socket, false)),
        (Some(door), Protocol::Tls) => {
            let stream = door.let_in(socket.into_wire()?).await?;
            let (protocol, socket) = sniff(Stream::Tls(stream)).await?;
            Some((protocol, socket, true))
        }
        (Some(_), _) if entry.plain => Some((protocol, socket, false)),
        (Some(door), _) => {
            let (remote, said_nothing) = (socket.remote(), socket.said_nothing());
            door.reject(socket, remote, said_nothing).await;
            None
        }
    }
}

async fn stopped(stop: &mut watch::Receiver<bool>) {
    // An error means that the server is gone, which is a stop too.
    let _ = stop.wait_for(|stop| *stop).await;
}

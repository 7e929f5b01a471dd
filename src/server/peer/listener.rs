//! The peer port: accepts connections, lets them through their handshake if it has TLS, serves HTTP/1.1 on them, and
//! closes them all when it stops.

use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use hyper_util::rt::TokioTimer;
use tokio::io::AsyncRead;
use tokio::io::AsyncWrite;
use tokio::net::TcpListener;
use tokio::net::TcpStream;
use tokio::sync::OwnedSemaphorePermit;
use tokio::sync::Semaphore;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::timeout;

use crate::server::handshakes::Door;
use crate::server::handshakes::FIRST_BYTE;
use crate::server::handshakes::Wire;
use crate::server::peer::facts::PeerFacts;
use crate::server::peer::routes;
use crate::server::peer::routes::Context;
use crate::server::peer::stream_out::Closer;
use crate::server::peer::transport::Peers;

/// Connections on the peer port; more wait in the kernel. A cluster of nine needs about eighty.
const CONNECTIONS_MAX: usize = 1024;

/// Bytes read or written ahead on one connection; also the largest request head.
const CONNECTION_BUFFER_BYTES: usize = 64 << 10;

/// The pause after a failed accept: without file descriptors the next one fails as well, so do not spin.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// A bound socket, and the way in where TLS is spoken.
pub struct PeerSocket {
    pub socket: std::net::TcpListener,
    pub door: Option<Arc<Door>>,
}

impl From<std::net::TcpListener> for PeerSocket {
    fn from(socket: std::net::TcpListener) -> PeerSocket {
        PeerSocket { socket, door: None }
    }
}

/// A running listener. Dropping it stops it too, without waiting.
pub struct PeerListener {
    addresses: Vec<SocketAddr>,
    stop: watch::Sender<bool>,
    accepting: JoinSet<()>,
}

impl PeerListener {
    /// Serves on sockets that are bound already. Errors are those of handing a socket to the runtime.
    pub fn start(peers: &Peers, facts: Arc<dyn PeerFacts>, sockets: Vec<PeerSocket>) -> io::Result<PeerListener> {
        let handle = peers.shared.handle.clone();
        let _entered = handle.enter();
        let context = Arc::new(Context { shared: Arc::clone(&peers.shared), facts });
        let (stop, stopping) = watch::channel(false);
        let permits = Arc::new(Semaphore::new(CONNECTIONS_MAX));
        let mut addresses = Vec::new();
        let mut accepting = JoinSet::new();
        for PeerSocket { socket, door } in sockets {
            socket.set_nonblocking(true)?;
            addresses.push(socket.local_addr()?);
            let acceptor = Acceptor {
                socket: TcpListener::from_std(socket)?,
                door,
                context: Arc::clone(&context),
                permits: Arc::clone(&permits),
            };
            accepting.spawn_on(acceptor.run(stopping.clone()), &handle);
        }
        Ok(PeerListener { addresses, stop, accepting })
    }

    /// Where it listens; tells the port that the system chose for port 0.
    pub fn addresses(&self) -> &[SocketAddr] {
        &self.addresses
    }

    /// Closes the listening sockets and every connection; returns when they are closed.
    pub async fn stop(mut self) {
        self.stop.send_replace(true);
        while self.accepting.join_next().await.is_some() {}
    }
}

struct Acceptor {
    socket: TcpListener,
    door: Option<Arc<Door>>,
    context: Arc<Context>,
    permits: Arc<Semaphore>,
}

impl Acceptor {
    async fn run(self, mut stopping: watch::Receiver<bool>) {
        let mut connections = JoinSet::new();
        loop {
            tokio::select! {
                _ = stopping.wait_for(|stop| *stop) => break,
                Some(_) = connections.join_next() => {}
                (accepted, permit) = self.accept() => {
                    let (context, door) = (Arc::clone(&self.context), self.door.clone());
                    connections.spawn(open(context, door, accepted, permit));
                }
            }
        }
        drop(self.socket);
        connections.shutdown().await;
    }

    async fn accept(&self) -> (TcpStream, OwnedSemaphorePermit) {
        let permits = Arc::clone(&self.permits);
        let permit = permits.acquire_owned().await.expect("the semaphore is never closed");
        loop {
            match self.socket.accept().await {
                Ok((socket, _)) => return (socket, permit),
                Err(error) => {
                    tracing::warn!(%error, "cannot accept a connection from a peer");
                    self.context.shared.metrics.count_accept_failure();
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    }
}

/// Serves one connection, after its handshake if there is a door.
async fn open(context: Arc<Context>, door: Option<Arc<Door>>, socket: TcpStream, _permit: OwnedSemaphorePermit) {
    if let Err(error) = socket.set_nodelay(true) {
        tracing::debug!(%error, "cannot prepare a connection from a peer");
        return;
    }
    let Some(door) = door else { return serve(context, socket).await };
    let mut wire = Wire::tcp(socket, Vec::new());
    match timeout(context.shared.timing.header_timeout, wire.first_byte()).await {
        Ok(Ok(Some(FIRST_BYTE))) => {
            if let Some(stream) = door.let_in(wire).await {
                serve(context, stream).await;
            }
        }
        Ok(Ok(first)) => {
            let remote = wire.remote();
            door.reject(wire, remote, first.is_none()).await;
        }
        Ok(Err(_)) | Err(_) => {}
    }
}

/// Serves one connection until either side or its closer ends it.
async fn serve(context: Arc<Context>, socket: impl AsyncRead + AsyncWrite + Unpin) {
    let closer = Arc::new(Closer::default());
    let of_connection = Arc::clone(&closer);
    let header_timeout = context.shared.timing.header_timeout;
    let service = service_fn(move |request| {
        let answer = routes::answer(Arc::clone(&context), Arc::clone(&of_connection), request);
        async move { Ok::<_, Infallible>(answer.await) }
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(header_timeout)
        .max_buf_size(CONNECTION_BUFFER_BYTES)
        .title_case_headers(true)
        .serve_connection(TokioIo::new(socket), service);
    tokio::select! {
        served = connection => {
            if let Err(error) = served {
                tracing::debug!(%error, "connection from a peer ended");
            }
        }
        () = closer.closed() => {}
    }
}

//! The peer port: accepts connections, serves HTTP/1.1 on them, and closes them all when it stops.

use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use hyper_util::rt::TokioTimer;
use tokio::net::TcpListener;
use tokio::net::TcpStream;
use tokio::sync::OwnedSemaphorePermit;
use tokio::sync::Semaphore;
use tokio::sync::watch;
use tokio::task::JoinSet;

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

/// A running listener. Dropping it stops it too, without waiting.
pub struct PeerListener {
    addresses: Vec<SocketAddr>,
    stop: watch::Sender<bool>,
    accepting: JoinSet<()>,
}

impl PeerListener {
    /// Serves on sockets that are bound already. Errors are those of handing a socket to the runtime.
    pub fn start(
        peers: &Peers,
        facts: Arc<dyn PeerFacts>,
        sockets: Vec<std::net::TcpListener>,
    ) -> io::Result<PeerListener> {
        let handle = peers.shared.handle.clone();
        let _entered = handle.enter();
        let context = Arc::new(Context { shared: Arc::clone(&peers.shared), facts });
        let (stop, stopping) = watch::channel(false);
        let permits = Arc::new(Semaphore::new(CONNECTIONS_MAX));
        let mut addresses = Vec::new();
        let mut accepting = JoinSet::new();
        for socket in sockets {
            socket.set_nonblocking(true)?;
            addresses.push(socket.local_addr()?);
            let acceptor = Acceptor {
                socket: TcpListener::from_std(socket)?,
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
                    connections.spawn(serve(Arc::clone(&self.context), accepted, permit));
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

/// Serves one connection until either side or its closer ends it.
async fn serve(context: Arc<Context>, socket: TcpStream, _permit: OwnedSemaphorePermit) {
    if let Err(error) = socket.set_nodelay(true) {
        tracing::debug!(%error, "cannot prepare a connection from a peer");
        return;
    }
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

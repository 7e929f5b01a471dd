//! TLS handshakes of both ports: on threads of their own, bounded in number and in time.
//!
//! A handshake costs as much as a hundred small requests, reads files and may ask a name server; the runtime that
//! serves requests gets the connection when all that is done. The socket moves there and back, so that each runtime
//! waits for its own sockets only. A connection that has not said a word is no handshake yet: whoever listens waits for
//! its first byte.

use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::num::NonZero;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::MutexGuard;
use std::sync::PoisonError;
use std::task::Context;
use std::task::Poll;
use std::time::Duration;

use rustls::pki_types::CertificateDer;
use rustls::server::Acceptor;
use tokio::io::AsyncRead;
use tokio::io::AsyncReadExt;
use tokio::io::AsyncWrite;
use tokio::io::AsyncWriteExt;
use tokio::io::ReadBuf;
use tokio::net::TcpStream;
use tokio::net::UnixStream;
use tokio::runtime::Builder;
use tokio::runtime::Handle;
use tokio::runtime::Runtime;
use tokio::sync::OwnedSemaphorePermit;
use tokio::sync::Semaphore;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tokio::time::Instant;
use tokio_rustls::LazyConfigAcceptor;

use crate::common::tls::ServerSide;
use crate::common::tls::names::Leaf;
use crate::common::tls::words;

/// A handshake that takes longer is cut, as in etcd since 3.7.1 (reliability.md 4.4).
const HANDSHAKE_MAX: Duration = Duration::from_secs(10);

/// Handshakes at once. A further one waits for a place (reliability.md 4.4).
const HANDSHAKES_MAX: usize = 512;

/// While others wait, the oldest handshake is cut when it has taken so long: those who stall cannot keep others out.
const PATIENCE: Duration = Duration::from_secs(1);

/// How long a connection is kept that was not let in, so that its end is seen as one.
const FAREWELL: Duration = Duration::from_millis(200);

/// Threads for them: half of the processors, within reason.
const THREADS_MAX: usize = 4;

/// The first byte of every TLS connection: a handshake record.
pub const FIRST_BYTE: u8 = 0x16;

/// A connection on which TLS is spoken.
pub type TlsStream = tokio_rustls::server::TlsStream<Wire>;

/// A socket under TLS, with bytes that were read from it before.
#[derive(Debug)]
pub struct Wire {
    socket: Socket,
    first: Vec<u8>,
    given: usize,
}

#[derive(Debug)]
enum Socket {
    Tcp(TcpStream),
    Unix(UnixStream),
    /// On its way from one runtime to another.
    Away,
}

/// A socket that no runtime waits for.
enum Parked {
    Tcp(std::net::TcpStream),
    Unix(std::os::unix::net::UnixStream),
}

impl Wire {
    pub fn tcp(stream: TcpStream, first: Vec<u8>) -> Wire {
        Wire { socket: Socket::Tcp(stream), first, given: 0 }
    }

    pub fn unix(stream: UnixStream, first: Vec<u8>) -> Wire {
        Wire { socket: Socket::Unix(stream), first, given: 0 }
    }

    /// Waits for the first bytes and keeps them; the first of all, or `None` at the end.
    pub async fn first_byte(&mut self) -> io::Result<Option<u8>> {
        if self.first.is_empty() {
            let mut bytes = [0; 5];
            let count = self.read(&mut bytes).await?;
            self.first = bytes[..count].to_vec();
            self.given = 0;
        }
        Ok(self.first.first().copied())
    }

    pub fn remote(&self) -> Option<SocketAddr> {
        match &self.socket {
            Socket::Tcp(stream) => stream.peer_addr().ok(),
            Socket::Unix(_) | Socket::Away => None,
        }
    }

    fn park(&mut self) -> io::Result<Parked> {
        match std::mem::replace(&mut self.socket, Socket::Away) {
            Socket::Tcp(stream) => stream.into_std().map(Parked::Tcp),
            Socket::Unix(stream) => stream.into_std().map(Parked::Unix),
            Socket::Away => Err(io::ErrorKind::NotConnected.into()),
        }
    }

    /// Gives the socket to the runtime that this runs in.
    fn settle(&mut self, parked: Parked) -> io::Result<()> {
        self.socket = match parked {
            Parked::Tcp(stream) => Socket::Tcp(TcpStream::from_std(stream)?),
            Parked::Unix(stream) => Socket::Unix(UnixStream::from_std(stream)?),
        };
        Ok(())
    }
}

impl AsyncRead for Wire {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let rest = &this.first[this.given..];
        if !rest.is_empty() {
            let count = rest.len().min(buf.remaining());
            buf.put_slice(&rest[..count]);
            this.given += count;
            return Poll::Ready(Ok(()));
        }
        match &mut this.socket {
            Socket::Tcp(stream) => Pin::new(stream).poll_read(cx, buf),
            Socket::Unix(stream) => Pin::new(stream).poll_read(cx, buf),
            Socket::Away => Poll::Ready(Err(io::ErrorKind::NotConnected.into())),
        }
    }
}

impl AsyncWrite for Wire {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        match &mut self.get_mut().socket {
            Socket::Tcp(stream) => Pin::new(stream).poll_write(cx, bytes),
            Socket::Unix(stream) => Pin::new(stream).poll_write(cx, bytes),
            Socket::Away => Poll::Ready(Err(io::ErrorKind::NotConnected.into())),
        }
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        parts: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match &mut self.get_mut().socket {
            Socket::Tcp(stream) => Pin::new(stream).poll_write_vectored(cx, parts),
            Socket::Unix(stream) => Pin::new(stream).poll_write_vectored(cx, parts),
            Socket::Away => Poll::Ready(Err(io::ErrorKind::NotConnected.into())),
        }
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        // Sockets hold nothing back.
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.get_mut().socket {
            Socket::Tcp(stream) => Pin::new(stream).poll_shutdown(cx),
            Socket::Unix(stream) => Pin::new(stream).poll_shutdown(cx),
            Socket::Away => Poll::Ready(Ok(())),
        }
    }
}

/// The handshakes of one member.
pub struct Handshakes {
    /// Taken when dropped.
    runtime: Option<Runtime>,
    handle: Handle,
    places: Arc<Semaphore>,
    table: Mutex<Table>,
}

/// Those under way, by order of their beginning.
#[derive(Default)]
struct Table {
    begun: u64,
    running: BTreeMap<u64, (Instant, oneshot::Sender<()>)>,
}

impl Handshakes {
    pub fn start() -> io::Result<Arc<Handshakes>> {
        let processors = std::thread::available_parallelism().map_or(1, NonZero::get);
        let threads = (processors / 2).clamp(1, THREADS_MAX);
        let runtime = Builder::new_multi_thread().worker_threads(threads).thread_name("tls").enable_all().build()?;
        Ok(Arc::new(Handshakes {
            handle: runtime.handle().clone(),
            runtime: Some(runtime),
            places: Arc::new(Semaphore::new(HANDSHAKES_MAX)),
            table: Mutex::default(),
        }))
    }

    /// Waits for a place, if need be by cutting the oldest that takes too long.
    async fn place(self: &Arc<Handshakes>) -> Option<(Place, oneshot::Receiver<()>)> {
        let mut acquiring = std::pin::pin!(self.places.clone().acquire_owned());
        let permit = loop {
            let patience = self.patience();
            tokio::select! {
                biased;
                permit = &mut acquiring => break permit.ok()?,
                () = tokio::time::sleep(patience) => self.cut_oldest(),
            }
        };
        let (cut, is_cut) = oneshot::channel();
        let mut table = self.table();
        table.begun += 1;
        let number = table.begun;
        table.running.insert(number, (Instant::now(), cut));
        drop(table);
        Some((Place { handshakes: self.clone(), number, _permit: permit }, is_cut))
    }

    /// Until the oldest may be cut.
    fn patience(&self) -> Duration {
        let table = self.table();
        let oldest = table.running.first_key_value().map(|(_, (begun, _))| begun.elapsed());
        oldest.map_or(PATIENCE, |age| PATIENCE.saturating_sub(age))
    }

    fn cut_oldest(&self) {
        let mut table = self.table();
        let is_slow = table.running.first_key_value().is_some_and(|(_, (begun, _))| begun.elapsed() >= PATIENCE);
        if is_slow && let Some((_, (_, cut))) = table.running.pop_first() {
            // It may have ended in this very moment.
            let _ended = cut.send(());
        }
    }

    fn table(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Handshakes {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            // A runtime must not be waited for inside another.
            runtime.shutdown_background();
        }
    }
}

/// One handshake's place.
struct Place {
    handshakes: Arc<Handshakes>,
    number: u64,
    _permit: OwnedSemaphorePermit,
}

impl Drop for Place {
    fn drop(&mut self) {
        self.handshakes.table().running.remove(&self.number);
    }
}

/// Ends a task with the one who waits for it.
struct Waited<T>(JoinHandle<T>);

impl<T> Drop for Waited<T> {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Ends a connection that is not wanted. A socket that is closed with bytes unread resets the connection: the other side
/// is to see an orderly end.
pub async fn farewell(mut stream: impl AsyncRead + AsyncWrite + Unpin) {
    let draining = async {
        stream.shutdown().await?;
        let mut sink = [0; 1024];
        while stream.read(&mut sink).await? > 0 {}
        Ok::<(), io::Error>(())
    };
    let _ = tokio::time::timeout(FAREWELL, draining).await;
}

/// Why a connection is not let in.
#[derive(Debug)]
struct Rejection {
    error: String,
    /// Whom the client asked for.
    server_name: String,
    /// What it showed, if that far.
    leaf: Option<Box<Leaf>>,
}

impl From<String> for Rejection {
    fn from(error: String) -> Rejection {
        Rejection { error, server_name: String::new(), leaf: None }
    }
}

/// The way into one port: lets those in who pass its TLS, and logs the others as etcd does.
pub struct Door {
    side: Arc<ServerSide>,
    handshakes: Arc<Handshakes>,
    /// `client` or `peer`.
    port: &'static str,
}

impl Door {
    pub fn new(side: Arc<ServerSide>, handshakes: Arc<Handshakes>, port: &'static str) -> Arc<Door> {
        Arc::new(Door { side, handshakes, port })
    }

    /// The connection once its handshake is done and found good.
    pub async fn let_in(&self, wire: Wire) -> Option<Box<TlsStream>> {
        let remote = wire.remote();
        match self.shake(wire, remote).await {
            Ok(stream) => Some(stream),
            Err(rejection) => {
                self.tell(remote, &rejection);
                None
            }
        }
    }

    /// Somebody spoke something else than TLS, or went away without a word.
    pub async fn reject<S>(&self, stream: S, remote: Option<SocketAddr>, said_nothing: bool)
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        let error = if said_nothing { "EOF" } else { words::NOT_TLS };
        self.tell(remote, &Rejection::from(error.to_owned()));
        farewell(stream).await;
    }

    async fn shake(&self, mut wire: Wire, remote: Option<SocketAddr>) -> Result<Box<TlsStream>, Rejection> {
        let io = |error: io::Error| Rejection::from(words::of_io(&error));
        let Some((place, is_cut)) = self.handshakes.place().await else {
            return Err(Rejection::from("the member is stopping".to_owned()));
        };
        let (parked, side) = (wire.park().map_err(io)?, self.side.clone());
        let task = async move {
            let _place = place;
            wire.settle(parked).map_err(io)?;
            let shaken = tokio::select! {
                shaken = tokio::time::timeout(HANDSHAKE_MAX, handshake(side, wire, remote)) => shaken,
                _ = is_cut => return Err(Rejection::from("tls: too many handshakes, this one was the slowest".to_owned())),
            };
            let mut stream = shaken.unwrap_or_else(|_| Err(Rejection::from("i/o timeout".to_owned())))?;
            let parked = stream.get_mut().0.park().map_err(io)?;
            Ok((stream, parked))
        };
        let mut task = Waited(self.handshakes.handle.spawn(task));
        let done = (&mut task.0).await;
        let (mut stream, parked) = done.map_err(|error| Rejection::from(format!("tls: {error}")))??;
        stream.get_mut().0.settle(parked).map_err(io)?;
        Ok(stream)
    }

    fn tell(&self, remote: Option<SocketAddr>, rejection: &Rejection) {
        let Rejection { error, server_name, leaf } = rejection;
        let remote_addr = remote.map_or_else(|| "@".to_owned(), |remote| remote.to_string());
        let port = self.port;
        if error == "EOF" {
            // Probes and port scans do this all the time.
            return tracing::debug!(remote_addr, server_name, error, "rejected connection on {port} endpoint");
        }
        match leaf {
            Some(leaf) => {
                let ip_addresses = format!("{:?}", leaf.addresses);
                let dns_names = format!("{:?}", leaf.dns_names);
                tracing::warn!(
                    remote_addr,
                    server_name,
                    ip_addresses,
                    dns_names,
                    error,
                    "rejected connection on {port} endpoint"
                );
            }
            None => tracing::warn!(remote_addr, server_name, error, "rejected connection on {port} endpoint"),
        }
    }
}

/// One handshake, and the checks behind it.
async fn handshake(side: Arc<ServerSide>, wire: Wire, remote: Option<SocketAddr>) -> Result<Box<TlsStream>, Rejection> {
    let mut accepting = LazyConfigAcceptor::new(Acceptor::default(), wire);
    let hello = match (&mut accepting).await {
        Ok(hello) => hello,
        Err(error) => {
            if let Some(wire) = accepting.take_io() {
                farewell(wire).await;
            }
            return Err(Rejection::from(words::of_io(&error)));
        }
    };
    let server_name = hello.client_hello().server_name().unwrap_or_default().to_owned();
    let rejection =
        |error: String, leaf: Option<Box<Leaf>>| Rejection { error, server_name: server_name.clone(), leaf };
    let terms = side.terms().map_err(|error| rejection(error, None))?;
    let mut stream = match hello.into_stream(terms.config.clone()).into_fallible().await {
        Ok(stream) => Box::new(stream),
        Err((error, wire)) => {
            // Its alert was sent and is to be heard.
            farewell(wire).await;
            return Err(rejection(terms.refusal().unwrap_or_else(|| words::of_io(&error)), None));
        }
    };
    let chain: Vec<CertificateDer<'static>> =
        stream.get_ref().1.peer_certificates().unwrap_or_default().iter().map(|one| one.clone().into_owned()).collect();
    if chain.is_empty() {
        return Ok(stream);
    }
    let leaf = chain.first().and_then(|leaf| Leaf::read(leaf).ok()).map(Box::new);
    let address = remote.map(|remote| remote.ip());
    let checked = tokio::task::spawn_blocking(move || side.check(&chain, address)).await;
    match checked.unwrap_or_else(|error| Err(format!("tls: {error}"))) {
        Ok(()) => Ok(stream),
        Err(error) => {
            // A word of farewell; whoever does not hear it sees the end all the same.
            let _ = stream.shutdown().await;
            Err(rejection(error, leaf))
        }
    }
}

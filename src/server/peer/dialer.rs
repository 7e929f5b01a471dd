//! How this member opens sockets towards other members: plain, or with the peer port's TLS settings.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::OnceLock;
use std::task::Context;
use std::task::Poll;
use std::time::Duration;

use tokio::io::AsyncRead;
use tokio::io::AsyncWrite;
use tokio::io::ReadBuf;
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::client::TlsStream;

use crate::common::tls::ClientSide;
use crate::common::tls::Settings;
use crate::server::peer::http_client::DIAL_TIMEOUT;
use crate::server::peer::http_client::PeerUrl;

/// From an open socket to the end of its handshake, as Go's transport has it.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);

/// Clones share everything. The default dials https with the system's authorities.
#[derive(Clone, Debug, Default)]
pub struct Dialer {
    settings: Arc<Settings>,
    /// Made when it is first needed, if no files were named: most members never dial with TLS.
    side: Arc<OnceLock<Result<ClientSide, String>>>,
}

/// A socket to a peer.
pub(super) enum PeerStream {
    Plain(TcpStream),
    Tls(Box<TlsStream<TcpStream>>),
}

impl Dialer {
    /// Files that cannot be used are refused.
    pub fn new(settings: &Settings) -> Result<Dialer, String> {
        let dialer = Dialer { settings: Arc::new(settings.clone()), side: Arc::default() };
        // The versions alone are no wish for TLS.
        if *settings != (Settings { offer: settings.offer.clone(), ..Settings::default() }) {
            dialer.side().map(drop)?;
        }
        Ok(dialer)
    }

    fn side(&self) -> Result<&ClientSide, String> {
        // Without ALPN: members speak HTTP/1.1 with each other.
        self.side.get_or_init(|| ClientSide::new(&self.settings, &[])).as_ref().map_err(Clone::clone)
    }

    /// Opens a socket to `url`, handshake included.
    pub(super) async fn dial(&self, url: &PeerUrl) -> io::Result<PeerStream> {
        let dialed = timeout(DIAL_TIMEOUT, TcpStream::connect(url.address())).await;
        let socket = dialed.map_err(|_| io::Error::from(io::ErrorKind::TimedOut))??;
        // A closed port inside the ephemeral range can be dialed from itself; the member that owns it would then find its
        // address in use (peer.md 3.7).
        if socket.local_addr()? == socket.peer_addr()? {
            return Err(io::Error::other("connected to itself"));
        }
        socket.set_nodelay(true)?;
        if !url.is_tls() {
            return Ok(PeerStream::Plain(socket));
        }
        let side = self.side().map_err(io::Error::other)?;
        let shaken = timeout(HANDSHAKE_TIMEOUT, side.connect(socket, url.host())).await;
        let stream = shaken.unwrap_or_else(|_| Err("net/http: TLS handshake timeout".to_owned()));
        stream.map(|stream| PeerStream::Tls(Box::new(stream))).map_err(io::Error::other)
    }
}

impl AsyncRead for PeerStream {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            PeerStream::Plain(stream) => Pin::new(stream).poll_read(cx, buf),
            PeerStream::Tls(stream) => Pin::new(stream).poll_read(cx, buf),
        }
    }
}

impl AsyncWrite for PeerStream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            PeerStream::Plain(stream) => Pin::new(stream).poll_write(cx, bytes),
            PeerStream::Tls(stream) => Pin::new(stream).poll_write(cx, bytes),
        }
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        parts: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            PeerStream::Plain(stream) => Pin::new(stream).poll_write_vectored(cx, parts),
            PeerStream::Tls(stream) => Pin::new(stream).poll_write_vectored(cx, parts),
        }
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            PeerStream::Plain(stream) => Pin::new(stream).poll_flush(cx),
            PeerStream::Tls(stream) => Pin::new(stream).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            PeerStream::Plain(stream) => Pin::new(stream).poll_shutdown(cx),
            PeerStream::Tls(stream) => Pin::new(stream).poll_shutdown(cx),
        }
    }
}

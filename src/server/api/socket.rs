//! An accepted connection: TCP or unix, with the bytes that told its protocol put back in front, and the authority of
//! old clients mended.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::task::Context;
use std::task::Poll;
use std::task::ready;

use tokio::io::AsyncRead;
use tokio::io::AsyncReadExt;
use tokio::io::AsyncWrite;
use tokio::io::ReadBuf;
use tokio::net::TcpStream;
use tokio::net::UnixStream;

use crate::server::api::authority::Opening;
use crate::server::handshakes;
use crate::server::handshakes::TlsStream;
use crate::server::handshakes::Wire;

/// What a client that speaks HTTP/2 without upgrade says first (RFC 9113, 3.4).
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// Any kind of stream.
#[derive(Debug)]
pub enum Stream {
    Tcp(TcpStream),
    Unix(UnixStream),
    Tls(Box<TlsStream>),
}

/// Which protocol a connection speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    Http1,
    Http2,
    /// One of the others, once its handshake is done.
    Tls,
}

/// A stream whose first bytes were read already.
#[derive(Debug)]
pub struct Socket {
    stream: Stream,
    first: Vec<u8>,
    /// Bytes of `first` that were handed out.
    given: usize,
    /// The opening of an HTTP/2 connection, until its first headers went through.
    opening: Option<Opening>,
}

/// Bytes that are read at a time while a connection opens.
const OPENING_BYTES: usize = 1024;

impl Socket {
    /// Reads until the protocol is clear: TLS by its first byte, HTTP/2 if the whole preface comes, else HTTP/1. The
    /// caller sets a deadline.
    pub async fn sniff(mut stream: Stream) -> Result<(Protocol, Socket), io::Error> {
        let mut first = [0; PREFACE.len()];
        let mut len = 0;
        while len < PREFACE.len() && first[..len] == PREFACE[..len] {
            match stream.read(&mut first[len..]).await? {
                0 => break,
                more => len += more,
            }
        }
        let protocol = match &first[..len] {
            whole if whole == PREFACE => Protocol::Http2,
            [handshakes::FIRST_BYTE, ..] => Protocol::Tls,
            _ => Protocol::Http1,
        };
        let opening = (protocol == Protocol::Http2).then(Opening::default);
        Ok((protocol, Socket { stream, first: first[..len].to_vec(), given: 0, opening }))
    }

    /// Whether the other side went away without a word.
    pub fn said_nothing(&self) -> bool {
        self.first.is_empty()
    }

    /// The same socket for a handshake. `None` if TLS is spoken on it already.
    pub fn into_wire(self) -> Option<Wire> {
        match self.stream {
            Stream::Tcp(stream) => Some(Wire::tcp(stream, self.first)),
            Stream::Unix(stream) => Some(Wire::unix(stream, self.first)),
            Stream::Tls(_) => None,
        }
    }

    /// The other end of a TCP connection.
    pub fn remote(&self) -> Option<SocketAddr> {
        match &self.stream {
            Stream::Tcp(stream) => stream.peer_addr().ok(),
            Stream::Unix(_) | Stream::Tls(_) => None,
        }
    }

    /// Reads until there is something to hand out, or the end.
    fn poll_opening(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while let Some(opening) = self.opening.as_mut() {
            let mut bytes = [0; OPENING_BYTES];
            let mut buf = ReadBuf::new(&mut bytes);
            ready!(Pin::new(&mut self.stream).poll_read(cx, &mut buf))?;
            self.first.clear();
            self.given = 0;
            let is_end = buf.filled().is_empty();
            if is_end {
                opening.end(&mut self.first);
            }
            if is_end || opening.take(buf.filled(), &mut self.first) {
                self.opening = None;
            }
            if !self.first.is_empty() {
                break;
            }
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncRead for Stream {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Stream::Tcp(stream) => Pin::new(stream).poll_read(cx, buf),
            Stream::Unix(stream) => Pin::new(stream).poll_read(cx, buf),
            Stream::Tls(stream) => Pin::new(stream).poll_read(cx, buf),
        }
    }
}

impl AsyncRead for Socket {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if this.given == this.first.len() {
            ready!(this.poll_opening(cx))?;
        }
        let rest = &this.first[this.given..];
        if rest.is_empty() {
            return Pin::new(&mut this.stream).poll_read(cx, buf);
        }
        let len = rest.len().min(buf.remaining());
        buf.put_slice(&rest[..len]);
        this.given += len;
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Socket {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        match &mut self.get_mut().stream {
            Stream::Tcp(stream) => Pin::new(stream).poll_write(cx, bytes),
            Stream::Unix(stream) => Pin::new(stream).poll_write(cx, bytes),
            Stream::Tls(stream) => Pin::new(stream).poll_write(cx, bytes),
        }
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        parts: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match &mut self.get_mut().stream {
            Stream::Tcp(stream) => Pin::new(stream).poll_write_vectored(cx, parts),
            Stream::Unix(stream) => Pin::new(stream).poll_write_vectored(cx, parts),
            Stream::Tls(stream) => Pin::new(stream).poll_write_vectored(cx, parts),
        }
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.get_mut().stream {
            Stream::Tcp(stream) => Pin::new(stream).poll_flush(cx),
            Stream::Unix(stream) => Pin::new(stream).poll_flush(cx),
            Stream::Tls(stream) => Pin::new(stream).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.get_mut().stream {
            Stream::Tcp(stream) => Pin::new(stream).poll_shutdown(cx),
            Stream::Unix(stream) => Pin::new(stream).poll_shutdown(cx),
            Stream::Tls(stream) => Pin::new(stream).poll_shutdown(cx),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::AsyncWriteExt;

    #[tokio::test]
    async fn the_protocol_is_told_from_the_first_bytes_and_none_is_lost() {
        for (sent, protocol) in [
            (&b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\nrest"[..], Protocol::Http2),
            (b"GET / HTTP/1.1\r\n\r\n", Protocol::Http1),
            (b"PRI / HTTP/1.1\r\n\r\n", Protocol::Http1),
            (b"PRI", Protocol::Http1),
            (b"\x16\x03\x01", Protocol::Tls),
            (b"", Protocol::Http1),
        ] {
            let (mut client, server) = UnixStream::pair().expect("pair");
            let writing = tokio::spawn(async move {
                // Byte by byte: a preface may come in pieces.
                for byte in sent {
                    client.write_all(&[*byte]).await.expect("written");
                }
            });
            let (found, mut socket) = Socket::sniff(Stream::Unix(server)).await.expect("sniffed");
            let mut read = Vec::new();
            socket.read_to_end(&mut read).await.expect("read");
            writing.await.expect("done");
            assert_eq!((found, read.as_slice()), (protocol, sent));
        }
    }
}

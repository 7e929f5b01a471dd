//! A bound address: TCP or unix. Bound at start, answered later (server.md 0.1).

use std::fs;
use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;

use tokio::net::TcpListener;
use tokio::net::TcpSocket;
use tokio::net::UnixListener;
use tokio::net::lookup_host;

use crate::common::os_reason::os_reason;
use crate::common::urls::Address;
use crate::common::urls::Url;
use crate::server::api::socket::Stream;
use crate::server::handshakes::Door;

/// Connections that the kernel completes while nobody accepts: those that came before the member was published.
const BACKLOG: u32 = 1024;

/// `--socket-reuse-*`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Reuse {
    pub port: bool,
    pub address: bool,
}

/// One listening socket. A unix socket's file goes when it is dropped.
pub struct Listener {
    inner: Inner,
    url: Url,
    entry: Entry,
}

/// Who may come in: at least one of the two.
#[derive(Clone)]
pub struct Entry {
    /// Those who speak without TLS.
    pub plain: bool,
    /// Those who pass its handshake.
    pub door: Option<Arc<Door>>,
}

#[derive(Debug)]
enum Inner {
    Tcp(TcpListener),
    Unix(UnixListener, PathBuf),
}

impl Listener {
    /// Binds. The error names the address as Go does: `listen tcp 127.0.0.1:2379: bind: address already in use`.
    pub async fn bind(url: &Url, reuse: Reuse) -> Result<Listener, io::Error> {
        let inner = match url.address() {
            Address::Tcp { host, port } => {
                let named = |step: &str, error: io::Error| {
                    io::Error::new(error.kind(), format!("listen tcp {}: {step}{}", url.authority(), os_reason(&error)))
                };
                let address = resolve(&host, &port).await.map_err(|error| named("", error))?;
                Inner::Tcp(bind_tcp(address, reuse).map_err(|error| named("bind: ", error))?)
            }
            Address::Unix(path) => {
                // A file left behind by a killed member would refuse us.
                let _ = fs::remove_file(&path);
                let listener = UnixListener::bind(&path).map_err(|error| {
                    io::Error::new(error.kind(), format!("listen unix {}: bind: {}", path.display(), os_reason(&error)))
                })?;
                Inner::Unix(listener, path)
            }
        };
        Ok(Listener { inner, url: url.clone(), entry: Entry { plain: true, door: None } })
    }

    /// The same with another way in.
    pub fn with_entry(self, entry: Entry) -> Listener {
        assert!(entry.plain || entry.door.is_some(), "somebody may come in at {}", self.url);
        Listener { entry, ..self }
    }

    pub fn entry(&self) -> &Entry {
        &self.entry
    }

    pub fn url(&self) -> &Url {
        &self.url
    }

    /// The bound address, with the port that the kernel chose for 0. `None` for unix sockets.
    pub fn local_address(&self) -> Option<SocketAddr> {
        match &self.inner {
            Inner::Tcp(listener) => listener.local_addr().ok(),
            Inner::Unix(..) => None,
        }
    }

    pub async fn accept(&self) -> Result<Stream, io::Error> {
        match &self.inner {
            Inner::Tcp(listener) => {
                let (stream, _) = listener.accept().await?;
                // Requests are small and answered one by one: waiting to fill a segment would cost each 40 ms.
                stream.set_nodelay(true)?;
                Ok(Stream::Tcp(stream))
            }
            Inner::Unix(listener, _) => Ok(Stream::Unix(listener.accept().await?.0)),
        }
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        if let Inner::Unix(_, path) = self {
            let _ = fs::remove_file(path);
        }
    }
}

/// The first IPv4 address of a name, else its first: what Go binds for `localhost`.
async fn resolve(host: &str, port: &str) -> Result<SocketAddr, io::Error> {
    let number: u16 = match port {
        "" => 0,
        port => port.parse().map_err(|_| io::Error::new(io::ErrorKind::InvalidInput, "invalid port"))?,
    };
    let host = if host.is_empty() { "::" } else { host };
    let found: Vec<SocketAddr> = lookup_host((host, number)).await?.collect();
    let first = found.iter().find(|address| address.is_ipv4()).or(found.first());
    first.copied().ok_or_else(|| io::Error::new(io::ErrorKind::NotFound, "no such host"))
}

fn bind_tcp(address: SocketAddr, reuse: Reuse) -> Result<TcpListener, io::Error> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    // Go sets it on every listener: a restart must not wait for old connections.
    socket.set_reuseaddr(true)?;
    socket.set_reuseport(reuse.port)?;
    // Accepted connections inherit it.
    socket.set_keepalive(true)?;
    socket.bind(address)?;
    socket.listen(BACKLOG)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_taken_port_is_named() {
        let url = Url::parse("http://127.0.0.1:0").expect("valid");
        let first = Listener::bind(&url, Reuse::default()).await.expect("binds");
        let port = first.local_address().expect("TCP").port();
        let taken = Url::parse(&format!("http://127.0.0.1:{port}")).expect("valid");
        let error = Listener::bind(&taken, Reuse::default()).await.err().expect("taken");
        assert_eq!(error.to_string(), format!("listen tcp 127.0.0.1:{port}: bind: address already in use"));
    }

    #[tokio::test]
    async fn a_unix_socket_replaces_a_stale_file_and_removes_its_own() {
        let dir = tempfile::tempdir().expect("temp dir");
        let path = dir.path().join("s:1");
        fs::write(&path, "stale").expect("written");
        let url = Url::parse(&format!("unix://{}", path.display())).expect("valid");
        let listener = Listener::bind(&url, Reuse::default()).await.expect("binds");
        assert!(path.exists() && listener.local_address().is_none());
        drop(listener);
        assert!(!path.exists());
    }
}

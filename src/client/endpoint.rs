//! One endpoint as a user writes it, and where it is dialled.
//!
//! Nothing is refused here: an address that makes no sense looks like a dead server, as it does to etcd's
//! client (ctl.md 2.4), so its mistake is told by the dial.

use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::pin::Pin;

use tokio::io::AsyncRead;
use tokio::io::AsyncWrite;
use tokio::net::TcpStream;
use tokio::net::UnixStream;

use crate::common::os_reason::os_reason;
use crate::common::urls::split_host_port;

/// Both halves of an open connection.
pub(super) trait Stream: AsyncRead + AsyncWrite + Send {}
impl<T: AsyncRead + AsyncWrite + Send> Stream for T {}

/// An open connection before HTTP/2 is spoken, with the address at each end as log lines show them.
pub(super) struct Socket {
    pub stream: Pin<Box<dyn Stream>>,
    pub peer: String,
    pub local: String,
}

/// Where an endpoint is dialled.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Dial {
    /// `host:port`, unchecked.
    Tcp(String),
    Unix(PathBuf),
}

/// What an endpoint's scheme says of TLS.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transport {
    Plain,
    Tls,
    /// Nothing: the options decide.
    Unsaid,
}

/// An endpoint that was read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoint {
    dial: Dial,
    pub transport: Transport,
}

impl Endpoint {
    /// Reads `host:port`, `http://host:port/…`, `https://…`, `unix:path`, `unixs:path` (table in ctl.md 2.4).
    pub fn parse(text: &str) -> Endpoint {
        let plain = |dial| Endpoint { dial, transport: Transport::Plain };
        let secure = |dial| Endpoint { dial, transport: Transport::Tls };
        let unsaid = |dial| Endpoint { dial, transport: Transport::Unsaid };
        let authority = |rest: &str| Dial::Tcp(rest.split(['/', '?', '#']).next().unwrap_or_default().to_owned());
        let path = |rest: &str| Dial::Unix(PathBuf::from(rest.strip_prefix("//").unwrap_or(rest)));
        if let Some(rest) = text.strip_prefix("http://") {
            plain(authority(rest))
        } else if let Some(rest) = text.strip_prefix("https://") {
            secure(authority(rest))
        } else if let Some(rest) = text.strip_prefix("unixs:") {
            secure(path(rest))
        } else if let Some(rest) = text.strip_prefix("unix:") {
            unsaid(path(rest))
        } else {
            unsaid(Dial::Tcp(text.to_owned()))
        }
    }

    /// What the `:authority` of requests says: host and port, or the last element of a socket's path.
    pub fn authority(&self) -> String {
        match &self.dial {
            Dial::Tcp(address) => address.clone(),
            Dial::Unix(path) => path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default(),
        }
    }

    /// The name that a certificate must be valid for.
    pub fn host(&self) -> String {
        let authority = self.authority();
        let host = split_host_port(&authority).map(|(host, _)| host.to_owned());
        host.unwrap_or(authority)
    }

    /// Opens the connection. The error is the text that etcd's client logs, `dial tcp host:port: …`.
    pub(super) async fn dial(&self) -> Result<Socket, String> {
        match &self.dial {
            Dial::Tcp(address) => dial_tcp(address).await,
            Dial::Unix(path) => {
                let failed = |error: io::Error| format!("dial unix {}: connect: {}", path.display(), os_reason(&error));
                let stream = UnixStream::connect(path).await.map_err(failed)?;
                let peer = path.display().to_string();
                Ok(Socket { stream: Box::pin(stream), peer, local: "@".to_owned() })
            }
        }
    }
}

async fn dial_tcp(address: &str) -> Result<Socket, String> {
    let Some((host, port)) = address.rsplit_once(':') else {
        return Err(format!("dial tcp: address {address}: missing port in address"));
    };
    if port.parse::<u16>().is_err() {
        return Err(format!("dial tcp: lookup tcp/{port}: unknown port"));
    }
    let found: io::Result<Vec<SocketAddr>> = tokio::net::lookup_host(address).await.map(Iterator::collect);
    let addresses = found.map_err(|_| format!("dial tcp: lookup {host}: no such host"))?;
    let mut last = format!("dial tcp: lookup {host}: no such host");
    for to in addresses {
        match TcpStream::connect(to).await {
            Ok(stream) => {
                // Requests are small and waited for: Nagle would only delay them.
                stream.set_nodelay(true).map_err(|error| format!("dial tcp {to}: {}", os_reason(&error)))?;
                let local = stream.local_addr().map(|local| local.to_string()).unwrap_or_default();
                return Ok(Socket { stream: Box::pin(stream), peer: to.to_string(), local });
            }
            Err(error) => last = format!("dial tcp {to}: connect: {}", os_reason(&error)),
        }
    }
    Err(last)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn endpoints_are_read_as_the_table_says() {
        let check = |text: &str, dial: Dial, transport: Transport, authority: &str| {
            let endpoint = Endpoint::parse(text);
            assert_eq!(endpoint, Endpoint { dial, transport }, "{text}");
            assert_eq!(endpoint.authority(), authority, "{text}");
        };
        let tcp = |address: &str| Dial::Tcp(address.to_owned());
        check("127.0.0.1:2379", tcp("127.0.0.1:2379"), Transport::Unsaid, "127.0.0.1:2379");
        check("http://127.0.0.1:2379/x?y", tcp("127.0.0.1:2379"), Transport::Plain, "127.0.0.1:2379");
        check("https://h:1", tcp("h:1"), Transport::Tls, "h:1");
        check("unix:///run/a.sock", Dial::Unix("/run/a.sock".into()), Transport::Unsaid, "a.sock");
        check("unix:a.sock", Dial::Unix("a.sock".into()), Transport::Unsaid, "a.sock");
        check("unixs://a.sock", Dial::Unix("a.sock".into()), Transport::Tls, "a.sock");
        check("[a:1]", tcp("[a:1]"), Transport::Unsaid, "[a:1]");
        check("", tcp(""), Transport::Unsaid, "");
        check("foo://h:1", tcp("foo://h:1"), Transport::Unsaid, "foo://h:1");
    }

    #[tokio::test]
    async fn a_wrong_address_is_told_by_the_dial() {
        let check = async |text: &str, expected: &str| {
            let error = Endpoint::parse(text).dial().await.err().expect("must not connect");
            assert_eq!(error, expected);
        };
        check("", "dial tcp: address : missing port in address").await;
        check("http://127.0.0.1", "dial tcp: address 127.0.0.1: missing port in address").await;
        check("bogus:port", "dial tcp: lookup tcp/port: unknown port").await;
        check("127.0.0.1:1", "dial tcp 127.0.0.1:1: connect: connection refused").await;
        check("unix:/nonexistent/s", "dial unix /nonexistent/s: connect: no such file or directory").await;
    }
}

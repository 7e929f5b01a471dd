//! One HTTP/1.1 connection to another member, and requests over it. `dialer` opens the socket.

use std::io;
use std::time::Duration;

use bytes::Bytes;
use bytes::BytesMut;
use http::Request;
use http::Response;
use http_body_util::BodyExt;
use http_body_util::Full;
use http_body_util::Limited;
use http_body_util::combinators::UnsyncBoxBody;
use hyper::body::Incoming;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use tokio::task::JoinHandle;
use tokio::time::timeout;

use crate::server::peer::dialer::Dialer;

/// Opening a connection: etcd gives it one second and an election timeout (server.md 12).
pub(super) const DIAL_TIMEOUT: Duration = Duration::from_secs(2);

/// The body of an answer that is read whole; a members list of thousands fits.
pub(super) const ANSWER_BYTES_MAX: usize = 4 << 20;

/// Body of a request.
pub(super) type Body = UnsyncBoxBody<Bytes, io::Error>;

/// Where a member listens for peers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PeerUrl {
    authority: String,
    /// What the resolver gets: host and port.
    address: String,
    /// Without brackets.
    host: String,
    is_tls: bool,
}

/// Why a peer cannot be asked.
#[derive(Debug, thiserror::Error)]
pub enum RequestError {
    #[error("peer url {0} is not usable")]
    Url(String),
    #[error("cannot connect to {0}: {1}")]
    Connect(String, io::Error),
    #[error("{0} closed the connection: {1}")]
    Broken(String, hyper::Error),
    #[error("{0} did not answer in time")]
    Timeout(String),
    #[error("the body of {0}'s answer cannot be read: {1}")]
    Body(String, Box<dyn std::error::Error + Send + Sync>),
}

impl PeerUrl {
    /// Reads `http://host:port` and `https://host:port`; a path is ignored, as etcd refuses to store one.
    pub fn parse(url: &str) -> Result<PeerUrl, RequestError> {
        let wrong = || RequestError::Url(url.to_owned());
        let uri: http::Uri = url.parse().map_err(|_| wrong())?;
        let authority = uri.authority().ok_or_else(wrong)?;
        let after_host = authority.as_str().strip_prefix(authority.host());
        let is_tls = match uri.scheme_str() {
            Some("http") => false,
            Some("https") => true,
            _ => return Err(wrong()),
        };
        let port = match (after_host, authority.port_u16()) {
            (Some(""), None) => {
                if is_tls {
                    443
                } else {
                    80
                }
            }
            (Some(_), Some(port)) => port,
            // Credentials, or a port out of range.
            _ => return Err(wrong()),
        };
        if authority.host().is_empty() {
            return Err(wrong());
        }
        let host = authority.host();
        let bare = host.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(host).to_owned();
        Ok(PeerUrl { authority: authority.to_string(), address: format!("{host}:{port}"), host: bare, is_tls })
    }

    pub(super) fn address(&self) -> &str {
        &self.address
    }

    /// The name or address that the other side's certificate must be valid for.
    pub(super) fn host(&self) -> &str {
        &self.host
    }

    pub(super) fn is_tls(&self) -> bool {
        self.is_tls
    }

    /// For the Host header and for logs.
    pub fn authority(&self) -> &str {
        &self.authority
    }
}

/// An open connection; dropping it closes the socket.
#[derive(Debug)]
pub(super) struct Connection {
    sender: http1::SendRequest<Body>,
    driver: JoinHandle<()>,
    authority: String,
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.driver.abort();
    }
}

impl Connection {
    pub async fn open(dialer: &Dialer, url: &PeerUrl) -> Result<Connection, RequestError> {
        let authority = url.authority.clone();
        let socket = dialer.dial(url).await.map_err(|error| RequestError::Connect(authority.clone(), error))?;
        let handshake = http1::Builder::new().title_case_headers(true).handshake(TokioIo::new(socket)).await;
        let (sender, connection) = handshake.map_err(|error| RequestError::Broken(authority.clone(), error))?;
        let driver = tokio::spawn(async move {
            // An error here is also the error of the request or body that waits for it.
            let _ = connection.await;
        });
        Ok(Connection { sender, driver, authority })
    }

    /// Whether another request can be sent.
    pub fn is_open(&self) -> bool {
        !self.sender.is_closed()
    }

    /// Sends `request`, adding Host. Returns with the head of the answer.
    pub async fn send(&mut self, mut request: Request<Body>) -> Result<Response<Incoming>, RequestError> {
        let broken = |error| RequestError::Broken(self.authority.clone(), error);
        let host = http::HeaderValue::from_str(&self.authority);
        request.headers_mut().insert(http::header::HOST, host.expect("an authority is visible ASCII"));
        self.sender.ready().await.map_err(broken)?;
        self.sender.send_request(request).await.map_err(broken)
    }

    /// Sends `request` and reads the whole answer, all within `limit`.
    pub async fn exchange(&mut self, request: Request<Body>, limit: Duration) -> Result<Response<Bytes>, RequestError> {
        let authority = self.authority.clone();
        let whole = async {
            let (head, body) = self.send(request).await?.into_parts();
            let body = match read_body(body, ANSWER_BYTES_MAX).await {
                Ok(body) => body,
                // etcd breaks off in the middle of an answer that refuses (peer.md 3.6): the status says enough.
                Err(_) if head.status.is_client_error() || head.status.is_server_error() => Bytes::new(),
                Err(error) => return Err(RequestError::Body(authority.clone(), error)),
            };
            Ok(Response::from_parts(head, body))
        };
        timeout(limit, whole).await.unwrap_or(Err(RequestError::Timeout(authority.clone())))
    }
}

/// Collects a body of at most `bytes_max`.
pub(super) async fn read_body<B>(body: B, bytes_max: usize) -> Result<Bytes, Box<dyn std::error::Error + Send + Sync>>
where
    B: http_body::Body<Data = Bytes>,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    Ok(Limited::new(body, bytes_max).collect().await?.to_bytes())
}

/// Why a body was not read to its end.
#[derive(Debug, thiserror::Error)]
pub(super) enum ReadError {
    #[error("body is too long")]
    TooLong,
    #[error("body did not come in time")]
    Stalled,
    #[error("body broke off: {0}")]
    Broken(hyper::Error),
}

/// Collects a request's body of at most `bytes_max`, each piece of which has to come within `stall`.
pub(super) async fn read_paced(mut body: Incoming, bytes_max: usize, stall: Duration) -> Result<Bytes, ReadError> {
    let mut bytes = BytesMut::new();
    loop {
        let frame = match timeout(stall, body.frame()).await {
            Err(_) => return Err(ReadError::Stalled),
            Ok(None) => return Ok(bytes.freeze()),
            Ok(Some(Err(error))) => return Err(ReadError::Broken(error)),
            Ok(Some(Ok(frame))) => frame,
        };
        let chunk = frame.into_data().unwrap_or_default();
        if bytes.len() + chunk.len() > bytes_max {
            return Err(ReadError::TooLong);
        }
        bytes.extend_from_slice(&chunk);
    }
}

pub(super) fn full(bytes: impl Into<Bytes>) -> Body {
    Full::new(bytes.into()).map_err(|never| match never {}).boxed_unsync()
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::AsyncReadExt;
    use tokio::io::AsyncWriteExt;

    /// The answer to a request when the other side writes `head`, half a body, and goes away.
    async fn broken_off(head: &str) -> Result<Response<Bytes>, RequestError> {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = PeerUrl::parse(&format!("http://{}", listener.local_addr().unwrap())).unwrap();
        let answer = format!("HTTP/1.1 {head}\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nhalf\r\n");
        let server = async move {
            let (mut socket, _) = listener.accept().await.unwrap();
            let mut request = [0; 1024];
            assert_ne!(socket.read(&mut request).await.unwrap(), 0);
            socket.write_all(answer.as_bytes()).await.unwrap();
        };
        let client = async {
            let mut connection = Connection::open(&Dialer::default(), &url).await?;
            connection.exchange(Request::new(full("")), Duration::from_secs(60)).await
        };
        tokio::join!(server, client).1
    }

    #[tokio::test]
    async fn a_refusal_that_breaks_off_is_a_refusal_and_an_answer_that_does_is_none() {
        let refused = broken_off("500 Internal Server Error").await.unwrap();
        assert_eq!(refused.status(), 500);
        let error = broken_off("200 OK").await.unwrap_err();
        assert!(matches!(error, RequestError::Body(..)), "{error}");
    }

    #[test]
    fn only_http_urls_with_a_host_are_taken() {
        let check = |url: &str, address: Option<&str>| {
            assert_eq!(PeerUrl::parse(url).ok().map(|url| url.address).as_deref(), address, "{url}");
        };
        check("http://127.0.0.1:2380", Some("127.0.0.1:2380"));
        check("http://[::1]:2380", Some("[::1]:2380"));
        check("http://etcd-1", Some("etcd-1:80"));
        check("http://h:99999", None);
        check("http://user@h:1", None);
        check("http://h:", None);
        check("https://h:1", Some("h:1"));
        check("https://h", Some("h:443"));
        check("unix://h:1", None);
        check("h:1", None);
        check("http://", None);
        check("", None);
    }
}

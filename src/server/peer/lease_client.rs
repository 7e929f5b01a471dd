//! Asks the leader about leases, over connections that are kept: a follower passes on every renewal of its clients.

use std::collections::HashMap;
use std::sync::Mutex;
use std::sync::MutexGuard;
use std::sync::PoisonError;
use std::time::Duration;
use std::time::Instant;

use bytes::Bytes;
use http::HeaderValue;
use http::Method;
use http::Request;
use http::StatusCode;
use http::header::CONTENT_TYPE;
use prost::Message;
use tokio::time::timeout;

use crate::common::answer::Answer;
use crate::proto::etcdserverpb::LeaseKeepAliveRequest;
use crate::proto::etcdserverpb::LeaseKeepAliveResponse;
use crate::proto::etcdserverpb::LeaseTimeToLiveRequest;
use crate::proto::etcdserverpb::LeaseTimeToLiveResponse;
use crate::proto::leasepb::LeaseInternalRequest;
use crate::proto::leasepb::LeaseInternalResponse;
use crate::server::peer::dialer::Dialer;
use crate::server::peer::http_client::Connection;
use crate::server::peer::http_client::PeerUrl;
use crate::server::peer::http_client::RequestError;
use crate::server::peer::http_client::full;

/// Connections kept to one leader while nobody needs them. More are opened when more renewals come at once, and closed
/// afterwards.
const IDLE_MAX: usize = 32;

/// The other side closes a connection that idles for longer (`Timing::header_timeout`); so do we, a little before.
const IDLE_TIME_MAX: Duration = Duration::from_secs(4);

/// Why the leader could not be asked; another try may help.
#[derive(Debug, thiserror::Error)]
pub enum LeaseError {
    /// The leader does not know the lease: the one answer that is final.
    #[error("{}", Answer::LeaseNotFound)]
    NotFound,
    #[error(transparent)]
    Request(#[from] RequestError),
    #[error("the leader answers {0}")]
    Refused(StatusCode),
    #[error("the leader's answer cannot be read")]
    Malformed,
}

/// Connections to leaders' peer ports.
#[derive(Debug, Default)]
pub struct LeaseClient {
    dialer: Dialer,
    idle: Mutex<HashMap<String, Vec<Idle>>>,
}

#[derive(Debug)]
struct Idle {
    connection: Connection,
    since: Instant,
}

impl LeaseClient {
    pub fn new(dialer: Dialer) -> LeaseClient {
        LeaseClient { dialer, idle: Mutex::default() }
    }

    /// Renews a lease at the leader with this peer URL: its time to live in seconds.
    pub async fn keep_alive(&self, url: &str, id: i64, limit: Duration) -> Result<i64, LeaseError> {
        let body = LeaseKeepAliveRequest { id }.encode_to_vec();
        let answer = self.post(url, "/leases", body.into(), limit).await?;
        let response = LeaseKeepAliveResponse::decode(answer).map_err(|_| LeaseError::Malformed)?;
        if response.id == id { Ok(response.ttl) } else { Err(LeaseError::Malformed) }
    }

    /// What the leader with this peer URL knows of a lease.
    pub async fn time_to_live(
        &self,
        url: &str,
        id: i64,
        keys: bool,
        limit: Duration,
    ) -> Result<LeaseTimeToLiveResponse, LeaseError> {
        let ask = LeaseInternalRequest { lease_time_to_live_request: Some(LeaseTimeToLiveRequest { id, keys }) };
        let answer = self.post(url, "/leases/internal", ask.encode_to_vec().into(), limit).await?;
        let answer = LeaseInternalResponse::decode(answer).map_err(|_| LeaseError::Malformed)?;
        let response = answer.lease_time_to_live_response.ok_or(LeaseError::Malformed)?;
        if response.id == id { Ok(response) } else { Err(LeaseError::Malformed) }
    }

    async fn post(&self, url: &str, path: &'static str, body: Bytes, limit: Duration) -> Result<Bytes, LeaseError> {
        let peer = PeerUrl::parse(url)?;
        let asked = async {
            // A kept connection may have been closed meanwhile. Asking twice is harmless: a renewal is one either way.
            while let Some(mut kept) = self.take(peer.authority()) {
                if let Ok(answer) = kept.exchange(request(path, body.clone()), limit).await {
                    return Ok((kept, answer));
                }
            }
            let mut fresh = Connection::open(&self.dialer, &peer).await?;
            let answer = fresh.exchange(request(path, body.clone()), limit).await?;
            Ok::<_, RequestError>((fresh, answer))
        };
        let (connection, answer) =
            timeout(limit, asked).await.unwrap_or_else(|_| Err(RequestError::Timeout(url.to_owned())))?;
        self.keep(peer.authority(), connection);
        match answer.status() {
            StatusCode::OK => Ok(answer.into_body()),
            StatusCode::NOT_FOUND => Err(LeaseError::NotFound),
            status => Err(LeaseError::Refused(status)),
        }
    }

    fn take(&self, authority: &str) -> Option<Connection> {
        let mut idle = self.lock();
        let kept = idle.get_mut(authority)?;
        while let Some(newest) = kept.pop() {
            if newest.since.elapsed() < IDLE_TIME_MAX && newest.connection.is_open() {
                return Some(newest.connection);
            }
        }
        None
    }

    fn keep(&self, authority: &str, connection: Connection) {
        let mut idle = self.lock();
        // Leaders of the past are let go of with their connections.
        idle.retain(|known, kept| {
            kept.retain(|one| one.since.elapsed() < IDLE_TIME_MAX);
            known == authority || !kept.is_empty()
        });
        let kept = idle.entry(authority.to_owned()).or_default();
        if kept.len() < IDLE_MAX && connection.is_open() {
            kept.push(Idle { connection, since: Instant::now() });
        }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<String, Vec<Idle>>> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn request(path: &'static str, body: Bytes) -> Request<crate::server::peer::http_client::Body> {
    let mut request = Request::new(full(body));
    *request.method_mut() = Method::POST;
    *request.uri_mut() = http::Uri::from_static(path);
    request.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/protobuf"));
    request
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::AsyncReadExt;
    use tokio::io::AsyncWriteExt;
    use tokio::net::TcpListener;

    /// A leader that gives these answers, one a request; `close` ends the connection after each. How many connections
    /// it took.
    async fn leader(answers: Vec<(&'static str, Vec<u8>)>, close: bool) -> (String, tokio::task::JoinHandle<usize>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let served = tokio::spawn(async move {
            let mut answers = answers.into_iter().peekable();
            let mut connections = 0;
            while answers.peek().is_some() {
                let (mut socket, _) = listener.accept().await.unwrap();
                connections += 1;
                let mut request = [0; 4096];
                while answers.peek().is_some() && socket.read(&mut request).await.unwrap() > 0 {
                    let (status, body) = answers.next().unwrap();
                    let head = format!("HTTP/1.1 {status}\r\nContent-Length: {}\r\n\r\n", body.len());
                    socket.write_all(&[head.as_bytes(), &body].concat()).await.unwrap();
                    if close {
                        break;
                    }
                }
            }
            connections
        });
        (url, served)
    }

    fn renewed(id: i64, ttl: i64) -> (&'static str, Vec<u8>) {
        ("200 OK", LeaseKeepAliveResponse { header: None, id, ttl }.encode_to_vec())
    }

    const LONG: Duration = Duration::from_secs(60);

    #[tokio::test]
    async fn renewals_share_a_connection_and_survive_its_end() {
        let client = LeaseClient::default();
        let (url, served) = leader(vec![renewed(7, 60), renewed(7, 61)], false).await;
        assert_eq!(client.keep_alive(&url, 7, LONG).await.unwrap(), 60);
        assert_eq!(client.keep_alive(&url, 7, LONG).await.unwrap(), 61);
        assert_eq!(served.await.unwrap(), 1);
        let (url, served) = leader(vec![renewed(7, 60), renewed(7, 61)], true).await;
        assert_eq!(client.keep_alive(&url, 7, LONG).await.unwrap(), 60);
        assert_eq!(client.keep_alive(&url, 7, LONG).await.unwrap(), 61);
        assert_eq!(served.await.unwrap(), 2);
        assert!(matches!(client.keep_alive(&url, 7, LONG).await, Err(LeaseError::Request(_))));
    }

    #[tokio::test]
    async fn answers_of_a_leader_are_told_apart() {
        let client = LeaseClient::default();
        let answers = vec![
            ("404 Not Found", b"lease not found\n".to_vec()),
            ("408 Request Timeout", Vec::new()),
            ("400 Bad Request", Vec::new()),
            ("200 OK", b"\xff".to_vec()),
            renewed(8, 60),
        ];
        let (url, served) = leader(answers, false).await;
        let mut told = Vec::new();
        for _ in 0..5 {
            told.push(client.keep_alive(&url, 7, LONG).await.unwrap_err().to_string());
        }
        let refused = |status: &str| format!("the leader answers {status}");
        let malformed = "the leader's answer cannot be read".to_owned();
        let not_found = "etcdserver: requested lease not found".to_owned();
        let expected =
            [not_found, refused("408 Request Timeout"), refused("400 Bad Request"), malformed.clone(), malformed];
        assert_eq!(told, expected);
        served.await.unwrap();
    }
}

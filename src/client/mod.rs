//! What ctl, proxy, bench and supervisor speak to a member with: endpoints, balancing, calls.
//!
//! `Client::open` starts dialling all endpoints; each call takes the next open connection in turn, waits for one if
//! there is none, and ends by its own deadline. The calls live in files named like those of `server/api`.
//!
//! ```text
//! concurrency ──▶ kv, lease, watch
//! kv, lease, watch, cluster, maintenance ──▶ call (deadline, attempts, metadata) ──▶ balancer ──▶ connection (HTTP/2)
//!                                   └── retry: may this be sent again?
//! bench ──▶ direct (one bare connection)
//! ```

mod balancer;
mod call;
mod cluster;
pub mod concurrency;
mod connection;
pub mod direct;
pub mod endpoint;
pub mod error;
mod kv;
pub mod lease;
mod maintenance;
pub mod retry;
#[cfg(test)]
mod tests;
pub mod watch;

use std::sync::Arc;
use std::time::Duration;
use std::time::Instant;

use tonic::metadata::Ascii;
use tonic::metadata::MetadataValue;

use balancer::Balancer;
use endpoint::Endpoint;
use endpoint::Transport;

use crate::common::tls::ClientSide;
use crate::common::tls::Settings;

pub use connection::Keepalive;
pub use error::CallError;
pub use error::OpenError;

/// Largest request that is sent when nothing else was said: what servers accept, and some.
pub const SEND_BYTES_MAX: usize = 2 << 20;

/// Largest response that is read when nothing else was said: no bound that a server could reach.
pub const RECEIVE_BYTES_MAX: usize = i32::MAX as usize;

/// What a client offers by ALPN: servers of gRPC want it.
pub const GRPC_PROTOCOLS: &[&[u8]] = &[b"h2"];

/// One failed attempt of a call, told to the observer at once.
#[derive(Debug)]
pub struct FailedAttempt<'a> {
    /// `/package.Service/Method`.
    pub method: &'static str,
    /// Counted from 0.
    pub attempt: u32,
    /// The other end and our own, if the request was given to a connection.
    pub peer: Option<&'a (String, String)>,
    /// Whether it went over TLS.
    pub is_tls: bool,
    /// The status as grpc-go prints it.
    pub error: String,
}

/// Called for every failed attempt of a call that is not a stream.
pub type Observer = Arc<dyn Fn(&FailedAttempt<'_>) + Send + Sync>;

/// How to reach a cluster.
#[derive(Clone)]
pub struct Config {
    /// As the user wrote them.
    pub endpoints: Vec<String>,
    pub keepalive: Keepalive,
    pub send_bytes_max: usize,
    pub receive_bytes_max: usize,
    /// Sent with every call as metadata `token`.
    pub token: Option<String>,
    pub observer: Option<Observer>,
    /// For endpoints without a scheme this decides for TLS; for `https` ones it says how.
    pub tls: Option<Arc<ClientSide>>,
}

impl Config {
    /// These endpoints, everything else as etcd's client has it.
    pub fn new(endpoints: Vec<String>) -> Config {
        Config {
            endpoints,
            keepalive: Keepalive { time: Duration::from_secs(2), timeout: Duration::from_secs(6) },
            send_bytes_max: SEND_BYTES_MAX,
            receive_bytes_max: RECEIVE_BYTES_MAX,
            token: None,
            observer: None,
            tls: None,
        }
    }
}

/// When a call is given up.
#[derive(Clone, Copy, Debug)]
pub struct Deadline(Option<Instant>);

impl Deadline {
    /// That long from now; a time too far away is none.
    pub fn after(duration: Duration) -> Deadline {
        Deadline(Instant::now().checked_add(duration))
    }

    /// The call may wait for ever.
    pub fn none() -> Deadline {
        Deadline(None)
    }
}

/// A cluster that calls are made to. Lives inside one tokio runtime; dropping it closes its connections.
pub struct Client {
    balancer: Balancer,
    /// `:authority` of every request: the first endpoint's host and port (ctl.md 2.4).
    authority: String,
    endpoints: usize,
    is_tls: bool,
    token: Option<MetadataValue<Ascii>>,
    send_bytes_max: usize,
    receive_bytes_max: usize,
    observer: Option<Observer>,
}

impl Client {
    /// Starts dialling; does not wait for a connection. Must be called within a tokio runtime.
    pub fn open(config: Config) -> Result<Client, OpenError> {
        let endpoints: Vec<Endpoint> = config.endpoints.iter().map(|text| Endpoint::parse(text)).collect();
        let first = endpoints.first().ok_or(OpenError::NoEndpoints)?;
        // The first endpoint's scheme decides for all of them (ctl.md 2.4).
        let tls = match (first.transport, config.tls) {
            (Transport::Plain, _) => None,
            (Transport::Tls, None) => {
                let side = ClientSide::new(&Settings::default(), GRPC_PROTOCOLS).map_err(OpenError::Tls)?;
                Some(Arc::new(side))
            }
            (Transport::Tls | Transport::Unsaid, given) => given,
        };
        let token = config.token.map(|token| token.parse().map_err(|_| OpenError::BadToken)).transpose()?;
        Ok(Client {
            authority: first.authority(),
            endpoints: endpoints.len(),
            is_tls: tls.is_some(),
            balancer: Balancer::start(endpoints, tls, config.keepalive),
            token,
            send_bytes_max: config.send_bytes_max,
            receive_bytes_max: config.receive_bytes_max,
            observer: config.observer,
        })
    }
}

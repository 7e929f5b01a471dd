//! The sockets of a member, bound before anything else is done: a taken address is known before any file is touched.

use std::net::TcpListener;
use std::net::ToSocketAddrs;
use std::sync::Arc;

use crate::common::os_reason::os_reason;
use crate::common::urls::Address;
use crate::common::urls::Url;
use crate::server::api::listener::Entry;
use crate::server::api::listener::Listener;
use crate::server::api::listener::Reuse;
use crate::server::api::server::Role;
use crate::server::config::Config;
use crate::server::handshakes::Door;
use crate::server::peer::listener::PeerSocket;
use crate::server::run::security::Security;

/// Everything this member listens on.
pub struct Sockets {
    pub peer: Vec<PeerSocket>,
    pub client: Vec<(Listener, Role)>,
    pub metrics: Vec<(Listener, Role)>,
}

impl Sockets {
    /// Binds peer, client and metrics addresses. The error names the address as Go does.
    pub async fn bind(config: &Config, security: &Security) -> Result<Sockets, String> {
        let mut peer = Vec::new();
        for url in &config.listen_peer_urls {
            let door = security.peer_door.clone().filter(|_| url.scheme().is_tls());
            peer.push(PeerSocket { socket: bind_peer(url)?, door });
        }
        let reuse = Reuse { port: config.reuse_port, address: config.reuse_address };
        let grpc = if config.listen_client_http_urls.is_empty() { Role::Client } else { Role::GrpcOnly };
        let door = &security.client_door;
        let mut client = bind(&config.listen_client_urls, grpc, reuse, door).await?;
        client.extend(bind(&config.listen_client_http_urls, Role::HttpOnly, reuse, door).await?);
        let metrics = bind(&config.listen_metrics_urls, Role::Metrics, reuse, &security.metrics_door).await?;
        Ok(Sockets { peer, client, metrics })
    }
}

/// One listener for each address: an address that is given with and without TLS serves both.
async fn bind(
    urls: &[Url],
    role: Role,
    reuse: Reuse,
    door: &Option<Arc<Door>>,
) -> Result<Vec<(Listener, Role)>, String> {
    let mut listeners = Vec::new();
    for (at, url) in urls.iter().enumerate() {
        let same = |other: &&Url| other.address() == url.address();
        if urls[..at].iter().any(|other| same(&other)) {
            continue;
        }
        let all = || urls.iter().filter(same);
        let door = door.clone().filter(|_| all().any(|url| url.scheme().is_tls()));
        let entry = Entry { plain: all().any(|url| !url.scheme().is_tls()), door };
        let listener = Listener::bind(url, reuse).await.map_err(|error| error.to_string())?;
        listeners.push((listener.with_entry(entry), role));
    }
    Ok(listeners)
}

fn bind_peer(url: &Url) -> Result<TcpListener, String> {
    let named = |error: std::io::Error| format!("listen tcp {}: bind: {}", url.authority(), os_reason(&error));
    match url.address() {
        Address::Tcp { host, port } => {
            let number: u16 = port.parse().map_err(|_| format!("listen tcp {}: invalid port", url.authority()))?;
            let addresses: Vec<_> = (host.as_str(), number).to_socket_addrs().map_err(named)?.collect();
            TcpListener::bind(addresses.as_slice()).map_err(named)
        }
        Address::Unix(_) => Err(format!("peers are served over TCP only, not on {url}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn peers_listen_on_either_family() {
        // A machine may have been set up without IPv6.
        let ipv6 = TcpListener::bind("[::1]:0").is_ok().then_some("[::1]");
        for host in ["127.0.0.1", "localhost"].into_iter().chain(ipv6) {
            let url = Url::parse(&format!("http://{host}:0")).expect("valid");
            let listener = bind_peer(&url).unwrap_or_else(|error| panic!("{error}"));
            assert!(listener.local_addr().expect("bound").ip().is_loopback());
        }
    }
}

//! The sockets of a member, bound before anything else is done: a taken address is known before any file is touched.

use std::net::TcpListener;
use std::net::ToSocketAddrs;

use crate::common::os_reason::os_reason;
use crate::common::urls::Address;
use crate::common::urls::Url;
use crate::server::api::listener::Listener;
use crate::server::api::listener::Reuse;
use crate::server::api::server::Role;
use crate::server::config::Config;

/// Everything this member listens on.
pub struct Sockets {
    pub peer: Vec<TcpListener>,
    pub client: Vec<(Listener, Role)>,
    pub metrics: Vec<(Listener, Role)>,
}

impl Sockets {
    /// Binds peer, client and metrics addresses. The error names the address as Go does.
    pub async fn bind(config: &Config) -> Result<Sockets, String> {
        let peer = config.listen_peer_urls.iter().map(bind_peer).collect::<Result<Vec<_>, _>>()?;
        let reuse = Reuse { port: config.reuse_port, address: config.reuse_address };
        let grpc = if config.listen_client_http_urls.is_empty() { Role::Client } else { Role::GrpcOnly };
        let mut client = bind(&config.listen_client_urls, grpc, reuse).await?;
        client.extend(bind(&config.listen_client_http_urls, Role::HttpOnly, reuse).await?);
        let metrics = bind(&config.listen_metrics_urls, Role::Metrics, reuse).await?;
        Ok(Sockets { peer, client, metrics })
    }
}

async fn bind(urls: &[Url], role: Role, reuse: Reuse) -> Result<Vec<(Listener, Role)>, String> {
    let mut listeners = Vec::new();
    for url in urls {
        listeners.push((Listener::bind(url, reuse).await.map_err(|error| error.to_string())?, role));
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

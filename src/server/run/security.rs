//! The TLS of a member: one way in for each of its ports, one way to dial its peers. Made before anything is bound, so
//! that a wrong file is known first.

use std::sync::Arc;

use crate::common::tls::ServerSide;
use crate::common::tls::Settings;
use crate::common::tls::generate;
use crate::common::urls::Url;
use crate::server::config::Config;
use crate::server::handshakes::Door;
use crate::server::handshakes::Handshakes;
use crate::server::peer::dialer::Dialer;

/// Names of protocols, offered by ALPN.
type Protocols = &'static [&'static [u8]];

/// What the client ports offer by ALPN.
const BOTH_PROTOCOLS: Protocols = &[b"h2", b"http/1.1"];

/// Members speak HTTP/1.1 with each other.
const HTTP1: Protocols = &[b"http/1.1"];

/// Doors where a URL asks for TLS.
pub struct Security {
    pub client_door: Option<Arc<Door>>,
    pub metrics_door: Option<Arc<Door>>,
    pub peer_door: Option<Arc<Door>>,
    pub dialer: Dialer,
}

impl Security {
    /// The error is etcd's.
    pub fn open(config: &Config) -> Result<Security, String> {
        let client_urls = [config.listen_client_urls.clone(), config.listen_client_http_urls.clone()].concat();
        let client = self_signed(config, config.auto_tls, &config.client_tls, "client", &client_urls)?;
        let peer = self_signed(config, config.peer_auto_tls, &config.peer_tls, "peer", &config.listen_peer_urls)?;
        tell_ignored("client", &client, &client_urls);
        tell_ignored("peer", &peer, &config.listen_peer_urls);
        let mut doors = Doors::default();
        let client_door = doors.door(&client, "client", &client_urls, BOTH_PROTOCOLS, false)?;
        let metrics_door = doors.door(&client, "client", &config.listen_metrics_urls, BOTH_PROTOCOLS, true)?;
        let peer_door = doors.door(&peer, "peer", &config.listen_peer_urls, HTTP1, true)?;
        if is_tls(&config.listen_peer_urls) {
            tracing::info!(
                cert_file = peer.cert_file,
                trusted_ca_file = peer.trusted_ca_file,
                "starting with peer TLS"
            );
        }
        if is_tls(&client_urls) {
            tracing::info!(
                cert_file = client.cert_file,
                trusted_ca_file = client.trusted_ca_file,
                "starting with client TLS"
            );
        }
        let dialer = Dialer::new(&peer)?;
        Ok(Security { client_door, metrics_door, peer_door, dialer })
    }
}

/// Makes doors. All share the threads of their handshakes, which are started for the first.
#[derive(Default)]
struct Doors {
    handshakes: Option<Arc<Handshakes>>,
}

impl Doors {
    /// `None` if no URL asks for TLS.
    fn door(
        &mut self,
        settings: &Settings,
        port: &'static str,
        urls: &[Url],
        protocols: Protocols,
        checks_address: bool,
    ) -> Result<Option<Arc<Door>>, String> {
        if !is_tls(urls) {
            return Ok(None);
        }
        let side = Arc::new(ServerSide::new(settings, protocols, checks_address)?);
        let handshakes = match &self.handshakes {
            Some(shared) => shared.clone(),
            None => Handshakes::start().map_err(|error| format!("cannot start threads for TLS: {error}"))?,
        };
        self.handshakes = Some(handshakes.clone());
        Ok(Some(Door::new(side, handshakes, port)))
    }
}

fn is_tls(urls: &[Url]) -> bool {
    urls.iter().any(|url| url.scheme().is_tls())
}

/// With `--auto-tls` a certificate of our own making, unless one is given.
fn self_signed(
    config: &Config,
    is_wanted: bool,
    given: &Settings,
    name: &str,
    urls: &[Url],
) -> Result<Settings, String> {
    if !is_wanted {
        return Ok(given.clone());
    }
    if !given.is_empty() {
        tracing::warn!("ignoring {name} auto TLS since certs given");
        return Ok(given.clone());
    }
    let hosts: Vec<String> = urls.iter().map(|url| url.host().to_owned()).collect();
    let directory = config.data_dir.join("fixtures").join(name);
    let made = generate::self_signed(&directory, &hosts, config.self_signed_cert_validity)
        .map_err(|error| format!("failed to get {name} self-signed certs: {error}"))?;
    Ok(Settings { offer: given.offer.clone(), ..made })
}

/// URLs without TLS while TLS is configured.
fn tell_ignored(port: &str, settings: &Settings, urls: &[Url]) {
    for url in urls.iter().filter(|url| !url.scheme().is_tls()) {
        if !settings.is_empty() {
            let message = "scheme is http or unix while key and cert files are present; ignoring key and cert files";
            tracing::warn!(%url, port, "{message}");
        }
        if settings.client_cert_auth {
            let flag = if port == "peer" { "--peer-client-cert-auth" } else { "--client-cert-auth" };
            tracing::warn!(%url, port, "scheme is http or unix while {flag} is enabled; ignoring client cert auth for this URL");
        }
    }
}

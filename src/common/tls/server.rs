//! The listening side: a configuration for each handshake, and what is looked at after it.

use std::net::IpAddr;
use std::net::ToSocketAddrs;
use std::sync::Arc;

use rustls::ServerConfig;
use rustls::crypto::CryptoProvider;
use rustls::pki_types::CertificateDer;
use rustls::server::NoServerSessionStorage;
use rustls::sign::SingleCertAndKey;

use super::Settings;
use super::files;
use super::files::Bundle;
use super::judge::Judge;
use super::judge::Said;
use super::names::Leaf;

/// One listener's TLS. Cheap to share.
#[derive(Debug)]
pub struct ServerSide {
    settings: Settings,
    provider: Arc<CryptoProvider>,
    /// Whose clients are let in; `None` asks for no certificate.
    trusted: Option<Bundle>,
    protocols: &'static [&'static [u8]],
    /// Compare the client's address with its certificate.
    checks_address: bool,
}

/// What one handshake is made with.
pub struct Terms {
    pub config: Arc<ServerConfig>,
    said: Said,
}

impl Terms {
    /// Why the other side's certificate was refused, if that was it.
    pub fn refusal(&self) -> Option<String> {
        self.said.take()
    }
}

impl ServerSide {
    /// Reads every file once: what cannot be used is refused before anybody connects. `protocols` are offered by ALPN.
    pub fn new(
        settings: &Settings,
        protocols: &'static [&'static [u8]],
        checks_address: bool,
    ) -> Result<ServerSide, String> {
        let provider = settings.offer.provider();
        super::check_files(settings, &provider)?;
        let trusted = match settings.verifies_clients() {
            true => Some(Bundle::open(&settings.trusted_ca_file)?),
            false => None,
        };
        let side = ServerSide { settings: settings.clone(), provider, trusted, protocols, checks_address };
        side.terms().map(|_| side)
    }

    /// The terms of one handshake, with the certificate that is on disk now.
    pub fn terms(&self) -> Result<Terms, String> {
        let Settings { cert_file, key_file, .. } = &self.settings;
        let pair = files::key_pair(cert_file, key_file, &self.provider)?;
        let said = Said::default();
        let versions = self.settings.offer.versions();
        let builder = ServerConfig::builder_with_provider(self.provider.clone())
            .with_protocol_versions(&versions)
            .map_err(|error| format!("tls: {error}"))?;
        let builder = match &self.trusted {
            Some(trusted) => {
                let judge = Judge::of_clients(&self.settings, trusted.now(), self.provider.clone(), said.clone());
                builder.with_client_cert_verifier(Arc::new(judge))
            }
            None => builder.with_no_client_auth(),
        };
        let mut config = builder.with_cert_resolver(Arc::new(SingleCertAndKey::from(pair)));
        config.alpn_protocols = self.protocols.iter().map(|protocol| protocol.to_vec()).collect();
        // A resumed session would be let in without a look at its certificate.
        config.session_storage = Arc::new(NoServerSessionStorage {});
        config.send_tls13_tickets = 0;
        Ok(Terms { config: Arc::new(config), said })
    }

    /// What etcd looks at once the handshake is done: the client's address, and whether any certificate of its chain is
    /// revoked. May ask a name server, so it must not run on a thread that others wait for.
    pub fn check(&self, chain: &[CertificateDer<'_>], remote: Option<IpAddr>) -> Result<(), String> {
        let Some(leaf) = chain.first() else { return Ok(()) };
        if self.checks_address && !self.settings.skip_client_san_verification {
            // etcd cannot split a unix socket's address either, but nobody has peers there.
            if let Some(remote) = remote {
                check_address(&Leaf::read(leaf)?, remote.to_canonical())?;
            }
        }
        check_revoked(&self.settings, chain)
    }
}

/// Whether no certificate of a chain is revoked. Only serials are compared, as in etcd.
pub(super) fn check_revoked(settings: &Settings, chain: &[CertificateDer<'_>]) -> Result<(), String> {
    if settings.crl_file.is_empty() {
        return Ok(());
    }
    let revoked = files::revoked_serials(&settings.crl_file)?;
    for certificate in chain {
        let serial = Leaf::read(certificate)?.serial;
        if revoked.contains(&serial) {
            let digits: String = serial.iter().map(|byte| format!("{byte:02x}")).collect();
            return Err(format!("transport: certificate serial {digits} revoked"));
        }
    }
    Ok(())
}

/// Whether a certificate may come from this address: one without names may come from anywhere (server.md 10.7).
fn check_address(leaf: &Leaf, remote: IpAddr) -> Result<(), String> {
    if leaf.addresses.is_empty() && leaf.dns_names.is_empty() {
        return Ok(());
    }
    if !leaf.addresses.is_empty() {
        match leaf.check_host(&remote.to_string()) {
            Ok(()) => return Ok(()),
            Err(error) if leaf.dns_names.is_empty() => return Err(error),
            Err(_) => {}
        }
    }
    let found = dns_lookup::lookup_addr(&remote).ok().filter(|name| name.parse::<IpAddr>().is_err());
    let found = found.as_deref().map(|name| name.strip_suffix('.').unwrap_or(name));
    if found.is_some_and(|name| leaf.dns_names.iter().any(|pattern| names(pattern, name))) {
        return Ok(());
    }
    let plain = leaf.dns_names.iter().filter(|name| !name.starts_with("*."));
    let is_address = |name: &String| {
        let addresses = (name.as_str(), 0_u16).to_socket_addrs();
        addresses.is_ok_and(|mut all| all.any(|address| address.ip().to_canonical() == remote))
    };
    if plain.into_iter().any(is_address) {
        return Ok(());
    }
    let names: Vec<String> = leaf.dns_names.iter().map(|name| format!("{name:?}")).collect();
    Err(format!("tls: \"{remote}\" does not match any of DNSNames [{}]", names.join(" ")))
}

/// A star at the beginning stands for anything here, as in etcd.
fn names(pattern: &str, name: &str) -> bool {
    match pattern.strip_prefix('*').filter(|rest| rest.starts_with('.')) {
        Some(tail) => name.ends_with(tail),
        None => pattern == name,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_compared_with_names() {
        let leaf = |names: &[&str], addresses: &[&str]| Leaf {
            dns_names: names.iter().map(|name| (*name).to_owned()).collect(),
            addresses: addresses.iter().map(|address| address.parse().expect("an address")).collect(),
            ..Leaf::default()
        };
        let remote: IpAddr = "127.0.0.1".parse().expect("an address");
        assert_eq!(check_address(&leaf(&[], &[]), remote), Ok(()));
        assert_eq!(check_address(&leaf(&[], &["127.0.0.1"]), remote), Ok(()));
        assert_eq!(check_address(&leaf(&["localhost"], &["10.0.0.1"]), remote), Ok(()));
        let wrong = "x509: certificate is valid for 10.0.0.1, not 127.0.0.1";
        assert_eq!(check_address(&leaf(&[], &["10.0.0.1"]), remote), Err(wrong.to_owned()));
        let wrong = "tls: \"127.0.0.1\" does not match any of DNSNames [\"*.invalid\" \"x.invalid\"]";
        assert_eq!(check_address(&leaf(&["*.invalid", "x.invalid"], &[]), remote), Err(wrong.to_owned()));
        assert!(names("*.b.c", "a.x.b.c") && !names("*.b.c", "b.c") && names("b.c", "b.c"));
    }
}

//! The dialing side.

use std::net::IpAddr;
use std::sync::Arc;

use rustls::ClientConfig;
use rustls::client::Resumption;
use rustls::crypto::CryptoProvider;
use rustls::pki_types::ServerName;
use rustls::sign::SingleCertAndKey;
use tokio::io::AsyncRead;
use tokio::io::AsyncWrite;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::Settings;
use super::files;
use super::files::Bundle;
use super::judge::Judge;
use super::judge::Said;
use super::server::check_revoked;
use super::words;

/// How to dial with TLS. Cheap to share.
#[derive(Debug)]
pub struct ClientSide {
    settings: Settings,
    provider: Arc<CryptoProvider>,
    /// `None` believes anyone.
    trusted: Option<Bundle>,
    protocols: &'static [&'static [u8]],
}

impl ClientSide {
    /// Reads every file once: what cannot be used is refused before anything is dialed.
    pub fn new(settings: &Settings, protocols: &'static [&'static [u8]]) -> Result<ClientSide, String> {
        let provider = settings.offer.provider();
        if !settings.is_empty() {
            super::check_files(settings, &provider)?;
        }
        let trusts_all = settings.self_signed || settings.insecure_skip_verify;
        let trusted = match (trusts_all, settings.trusted_ca_file.as_str()) {
            (true, "") => None,
            // Files that are named are read in any case.
            (true, path) => Bundle::open(path).map(|_| None)?,
            (false, path) => Some(Bundle::open(path)?),
        };
        Ok(ClientSide { settings: settings.clone(), provider, trusted, protocols })
    }

    /// Speaks TLS on an open connection to `host`, a name or an address. The error is what Go would say.
    pub async fn connect<S>(&self, socket: S, host: &str) -> Result<TlsStream<S>, String>
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        let bare = host.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(host);
        let said = Said::default();
        let mut config = self.config(bare, said.clone())?;
        // What is no name cannot be asked for; the judge compares it all the same.
        let name = match ServerName::try_from(bare.to_owned()) {
            Ok(name) => name,
            Err(_) => {
                config.enable_sni = false;
                ServerName::IpAddress(IpAddr::from([0, 0, 0, 0]).into())
            }
        };
        let connecting = TlsConnector::from(Arc::new(config)).connect(name, socket);
        let stream = connecting.await.map_err(|error| said.take().unwrap_or_else(|| words::of_io(&error)))?;
        // etcd looks only at those who dial it. Who is revoked is not to be dialed either.
        check_revoked(&self.settings, stream.get_ref().1.peer_certificates().unwrap_or_default())?;
        Ok(stream)
    }

    fn config(&self, host: &str, said: Said) -> Result<ClientConfig, String> {
        let Settings { cert_file, key_file, client_cert_file, client_key_file, .. } = &self.settings;
        let authorities = self.trusted.as_ref().map(Bundle::now);
        let judge = Judge::of_server(&self.settings, authorities, host, self.provider.clone(), said);
        let versions = self.settings.offer.versions();
        let builder = ClientConfig::builder_with_provider(self.provider.clone())
            .with_protocol_versions(&versions)
            .map_err(|error| format!("tls: {error}"))?
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(judge));
        let (cert, key) = match client_cert_file.is_empty() {
            true => (cert_file, key_file),
            false => (client_cert_file, client_key_file),
        };
        let mut config = match cert.is_empty() {
            true => builder.with_no_client_auth(),
            false => {
                let pair = files::key_pair(cert, key, &self.provider)?;
                builder.with_client_cert_resolver(Arc::new(SingleCertAndKey::from(pair)))
            }
        };
        config.alpn_protocols = self.protocols.iter().map(|protocol| protocol.to_vec()).collect();
        config.resumption = Resumption::disabled();
        Ok(config)
    }
}

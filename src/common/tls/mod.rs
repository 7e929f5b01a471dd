//! TLS for every port and every client: the one place that decides what is offered, what is trusted and what is said of
//! a refusal.
//!
//! ```text
//!  flags ─▶ Settings ─┬─▶ ServerSide: a fresh configuration for every handshake, then CRL and address checks
//!                     └─▶ ClientSide: the same for every dial
//!             files (PEM, DER) · suites (Go's names) · names (what a certificate says) · judge (whom to believe)
//!             words (errors as Go's TLS tells them) · generate (self-signed)
//! ```
//! rustls with ring does the protocol: 1.2 and 1.3, forward secrecy and AEAD only. Files are read for every handshake, so
//! that what was renewed on disk is in force at once; nothing is resumed, so that what was revoked is refused at once.

pub mod client;
pub mod files;
pub mod generate;
mod judge;
pub mod names;
pub mod server;
pub mod suites;
#[cfg(test)]
mod testing;
#[cfg(test)]
mod tests;
pub mod words;

use rustls::crypto::CryptoProvider;

pub use client::ClientSide;
pub use server::ServerSide;
pub use suites::Offer;

/// What an operator said about one side: the client port, the peer port, or a client. Empty texts are nothing said.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Settings {
    pub cert_file: String,
    pub key_file: String,
    /// Shown by a member that dials; else `cert_file` is.
    pub client_cert_file: String,
    pub client_key_file: String,
    pub trusted_ca_file: String,
    pub client_cert_auth: bool,
    /// DER; looked into after every handshake.
    pub crl_file: String,
    /// One of these must be the other side's common name. Not together with `allowed_hostnames`.
    pub allowed_cns: Vec<String>,
    /// The other side's certificate must be valid for one of these.
    pub allowed_hostnames: Vec<String>,
    /// Do not compare the address of a peer with its certificate.
    pub skip_client_san_verification: bool,
    /// Our own certificate was made by us: other members have such ones too, so dialing trusts anyone.
    pub self_signed: bool,
    /// Trust anyone because the user said so.
    pub insecure_skip_verify: bool,
    pub offer: Offer,
}

impl Settings {
    /// Whether there is no certificate of our own: nothing to listen with.
    pub fn is_empty(&self) -> bool {
        self.cert_file.is_empty() && self.key_file.is_empty()
    }

    /// A client certificate is demanded and verified if either is set (server.md 10.7).
    pub fn verifies_clients(&self) -> bool {
        self.client_cert_auth || !self.trusted_ca_file.is_empty()
    }
}

/// What etcd looks at before it listens or dials.
fn check_files(settings: &Settings, provider: &CryptoProvider) -> Result<(), String> {
    let Settings { cert_file: cert, key_file: key, client_cert_file, client_key_file, .. } = settings;
    if cert.is_empty() || key.is_empty() {
        return Err(format!("KeyFile and CertFile must both be present[key: {key}, cert: {cert}]"));
    }
    files::key_pair(cert, key, provider)?;
    if client_cert_file.is_empty() != client_key_file.is_empty() {
        return Err(format!(
            "ClientKeyFile and ClientCertFile must both be present or both absent: key: {client_key_file}, cert: \
             {client_cert_file}]"
        ));
    }
    if !client_cert_file.is_empty() {
        files::key_pair(client_cert_file, client_key_file, provider)?;
    }
    if !settings.allowed_cns.is_empty() && !settings.allowed_hostnames.is_empty() {
        let (cns, hostnames) = (&settings.allowed_cns, &settings.allowed_hostnames);
        return Err(format!(
            "AllowedCNs and AllowedHostnames are mutually exclusive (cns={cns:?}, hostnames={hostnames:?})"
        ));
    }
    Ok(())
}

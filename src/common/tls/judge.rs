//! Whom to believe: the chain that the other side shows, against the authorities of a bundle, in Go's order of checks.
//!
//! The leaf's time, then its name, then the chain and its use, then what the operator allows. A certificate that is in
//! the bundle itself is believed as it is.

use std::sync::Arc;
use std::sync::Mutex;
use std::sync::PoisonError;

use rustls::CertificateError;
use rustls::DigitallySignedStruct;
use rustls::DistinguishedName;
use rustls::Error;
use rustls::SignatureScheme;
use rustls::client::danger::HandshakeSignatureValid;
use rustls::client::danger::ServerCertVerified;
use rustls::client::danger::ServerCertVerifier;
use rustls::client::verify_server_cert_signed_by_trust_anchor;
use rustls::crypto::CryptoProvider;
use rustls::crypto::verify_tls12_signature;
use rustls::crypto::verify_tls13_signature;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::ServerName;
use rustls::pki_types::UnixTime;
use rustls::server::ParsedCertificate;
use rustls::server::WebPkiClientVerifier;
use rustls::server::danger::ClientCertVerified;
use rustls::server::danger::ClientCertVerifier;

use super::Settings;
use super::files::Authorities;
use super::names::Leaf;
use super::words;

/// Why a handshake's certificate was refused, for the log: an alert says less. One for each handshake.
#[derive(Clone, Debug, Default)]
pub(super) struct Said(Arc<Mutex<Option<String>>>);

impl Said {
    fn say(&self, text: String) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(text);
    }

    pub fn take(&self) -> Option<String> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

/// Judges one handshake.
#[derive(Debug)]
pub(super) struct Judge {
    /// `None` believes anyone.
    authorities: Option<Authorities>,
    allowed_cns: Vec<String>,
    allowed_hostnames: Vec<String>,
    /// Who was dialed; `None` for a listener.
    host: Option<String>,
    provider: Arc<CryptoProvider>,
    hints: Vec<DistinguishedName>,
    said: Said,
}

/// Why a chain is refused: what the log says, and what the other side hears.
struct Refusal(String, CertificateError);

impl Judge {
    /// The judge of a listener's handshake.
    pub fn of_clients(
        settings: &Settings,
        authorities: Authorities,
        provider: Arc<CryptoProvider>,
        said: Said,
    ) -> Judge {
        let hints = authorities.roots.subjects();
        Judge { hints, ..Judge::new(settings, Some(authorities), None, provider, said) }
    }

    /// The judge of a dial. Without authorities anyone is believed.
    pub fn of_server(
        settings: &Settings,
        authorities: Option<Authorities>,
        host: &str,
        provider: Arc<CryptoProvider>,
        said: Said,
    ) -> Judge {
        Judge::new(settings, authorities, Some(host.to_owned()), provider, said)
    }

    fn new(
        settings: &Settings,
        authorities: Option<Authorities>,
        host: Option<String>,
        provider: Arc<CryptoProvider>,
        said: Said,
    ) -> Judge {
        let (allowed_cns, allowed_hostnames) = (settings.allowed_cns.clone(), settings.allowed_hostnames.clone());
        Judge { authorities, allowed_cns, allowed_hostnames, host, provider, hints: Vec::new(), said }
    }

    fn judge(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<(), Refusal> {
        let Some(authorities) = &self.authorities else { return Ok(()) };
        let bad = |text: String, alert: CertificateError| {
            Refusal(format!("tls: failed to verify certificate: {text}"), alert)
        };
        let facts = Leaf::read(leaf).map_err(|text| bad(text, CertificateError::BadEncoding))?;
        facts.check_time(now).map_err(|text| bad(text, CertificateError::Expired))?;
        if let Some(host) = &self.host {
            facts.check_host(host).map_err(|text| bad(text, CertificateError::NotValidForName))?;
        }
        let chain = match authorities.given.contains(leaf) {
            true => self.check_usage(&facts),
            false => self.check_chain(authorities, leaf, intermediates, now),
        };
        chain.map_err(|error| match error {
            Error::InvalidCertificate(error) => bad(words::of_certificate(&error), as_go_alerts(error)),
            other => bad(format!("x509: {other}"), CertificateError::BadEncoding),
        })?;
        let allowed = match (self.allowed_cns.is_empty(), self.allowed_hostnames.is_empty()) {
            (true, true) => true,
            (false, _) => self.allowed_cns.contains(&facts.common_name),
            (true, false) => self.allowed_hostnames.iter().any(|name| facts.check_host(name).is_ok()),
        };
        let text = "client certificate authentication failed";
        if allowed { Ok(()) } else { Err(Refusal(text.to_owned(), CertificateError::BadEncoding)) }
    }

    fn check_usage(&self, facts: &Leaf) -> Result<(), Error> {
        let (by_client, by_server) = facts.usable_by;
        let usable = if self.host.is_none() { by_client } else { by_server };
        if usable { Ok(()) } else { Err(Error::InvalidCertificate(CertificateError::InvalidPurpose)) }
    }

    fn check_chain(
        &self,
        authorities: &Authorities,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<(), Error> {
        let roots = &authorities.roots;
        if roots.is_empty() {
            return Err(Error::InvalidCertificate(CertificateError::UnknownIssuer));
        }
        if self.host.is_none() {
            let verifier = WebPkiClientVerifier::builder_with_provider(roots.clone(), self.provider.clone()).build();
            let verifier = verifier.map_err(|error| Error::General(error.to_string()))?;
            return verifier.verify_client_cert(leaf, intermediates, now).map(drop);
        }
        let algorithms = self.provider.signature_verification_algorithms.all;
        let parsed = ParsedCertificate::try_from(leaf)?;
        verify_server_cert_signed_by_trust_anchor(&parsed, roots, intermediates, now, algorithms)
    }

    fn verdict(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<(), Error> {
        self.judge(leaf, intermediates, now).map_err(|Refusal(text, alert)| {
            self.said.say(text);
            Error::InvalidCertificate(alert)
        })
    }

    /// Whether a signature need not be looked at: whoever is believed without a name may have made it as well, and
    /// etcd's own self-signed certificates have P-521 keys, which our cryptography cannot verify.
    fn skips(&self, scheme: SignatureScheme) -> bool {
        self.authorities.is_none() && scheme == SignatureScheme::ECDSA_NISTP521_SHA512
    }

    fn signature12(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        if self.skips(dss.scheme) {
            return Ok(HandshakeSignatureValid::assertion());
        }
        verify_tls12_signature(message, cert, dss, &self.provider.signature_verification_algorithms)
    }

    fn signature13(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        if self.skips(dss.scheme) {
            return Ok(HandshakeSignatureValid::assertion());
        }
        verify_tls13_signature(message, cert, dss, &self.provider.signature_verification_algorithms)
    }

    fn schemes(&self) -> Vec<SignatureScheme> {
        let mut schemes = self.provider.signature_verification_algorithms.supported_schemes();
        if self.authorities.is_none() {
            schemes.push(SignatureScheme::ECDSA_NISTP521_SHA512);
        }
        schemes
    }
}

/// Go tells three kinds apart, and sends `bad certificate` for the rest.
fn as_go_alerts(error: CertificateError) -> CertificateError {
    match error {
        CertificateError::UnknownIssuer | CertificateError::BadSignature => CertificateError::UnknownIssuer,
        CertificateError::Expired | CertificateError::ExpiredContext { .. } => CertificateError::Expired,
        _ => CertificateError::BadEncoding,
    }
}

impl ClientCertVerifier for Judge {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &self.hints
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        self.verdict(end_entity, intermediates, now).map(|()| ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.signature12(message, cert, dss)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.signature13(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.schemes()
    }
}

impl ServerCertVerifier for Judge {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        self.verdict(end_entity, intermediates, now).map(|()| ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.signature12(message, cert, dss)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.signature13(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.schemes()
    }
}

//! Reads certificates, keys, authorities and revocations. Errors are texts as Go's libraries word them.

use std::collections::HashSet;
use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::PoisonError;
use std::time::SystemTime;

use rustls::RootCertStore;
use rustls::crypto::CryptoProvider;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::PrivateKeyDer;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::pem::SectionKind;
use rustls::sign::CertifiedKey;
use x509_parser::prelude::FromDer;
use x509_parser::prelude::X509Certificate;
use x509_parser::revocation_list::CertificateRevocationList;

use crate::common::os_reason::os_reason;

/// A larger file is none of certificates: it is refused before it is read.
const FILE_BYTES_MAX: u64 = 16 << 20;

/// Where systems keep the authorities that everybody trusts; the first one that is there counts, as in Go.
const SYSTEM_BUNDLES: [&str; 6] = [
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/ca-bundle.pem",
    "/etc/pki/tls/cacert.pem",
    "/etc/pki/ca-trust/extracted/pem/tls-ca-bundle.pem",
    "/etc/ssl/cert.pem",
];

/// A whole file.
pub fn read(path: &str) -> Result<Vec<u8>, String> {
    let failed = |error: std::io::Error| format!("open {path}: {}", os_reason(&error));
    let length = fs::metadata(path).map_err(failed)?.len();
    if length > FILE_BYTES_MAX {
        return Err(format!("open {path}: file is larger than {FILE_BYTES_MAX} bytes"));
    }
    fs::read(path).map_err(failed)
}

/// A certificate chain and its key, which must belong together.
pub fn key_pair(cert_file: &str, key_file: &str, provider: &CryptoProvider) -> Result<Arc<CertifiedKey>, String> {
    let (cert, key) = (read(cert_file)?, read(key_file)?);
    let chain: Result<Vec<CertificateDer<'static>>, _> = CertificateDer::pem_slice_iter(&cert).collect();
    let chain = chain.map_err(|_| "tls: failed to find any PEM data in certificate input".to_owned())?;
    let Some(leaf) = chain.first() else {
        return Err(match section(&cert) {
            Some(other) => format!(
                "tls: failed to find \"CERTIFICATE\" PEM block in certificate input after skipping PEM blocks of the \
                 following types: [{other}]"
            ),
            None => "tls: failed to find any PEM data in certificate input".to_owned(),
        });
    };
    X509Certificate::from_der(leaf).map_err(|_| "x509: malformed certificate".to_owned())?;
    let key = PrivateKeyDer::from_pem_slice(&key).map_err(|_| match section(&key).as_deref() {
        Some(kind) if kind.ends_with("PRIVATE KEY") => "tls: failed to parse private key".to_owned(),
        Some("CERTIFICATE") => "tls: found a certificate rather than a key in the PEM for the private key".to_owned(),
        Some(other) => format!(
            "tls: failed to find PEM block with type ending in \"PRIVATE KEY\" in key input after skipping PEM blocks \
             of the following types: [{other}]"
        ),
        None => "tls: failed to find any PEM data in key input".to_owned(),
    })?;
    let key = provider.key_provider.load_private_key(key).map_err(|_| "tls: failed to parse private key".to_owned())?;
    let pair = CertifiedKey::new(chain, key);
    match pair.keys_match() {
        Ok(()) | Err(rustls::Error::InconsistentKeys(rustls::InconsistentKeys::Unknown)) => Ok(Arc::new(pair)),
        Err(_) => Err("tls: private key does not match public key".to_owned()),
    }
}

/// The type of the first PEM section.
fn section(pem: &[u8]) -> Option<String> {
    let text = String::from_utf8_lossy(pem);
    let (_, begun) = text.split_once("-----BEGIN ")?;
    begun.split_once("-----").map(|(kind, _)| kind.to_owned())
}

/// Whom to believe. Empty believes nobody.
#[derive(Clone, Debug)]
pub struct Authorities {
    pub roots: Arc<RootCertStore>,
    /// The certificates themselves: one that is shown as it is here is believed whoever made it.
    pub given: Arc<HashSet<CertificateDer<'static>>>,
}

impl Authorities {
    fn nobody() -> Authorities {
        Authorities { roots: Arc::new(RootCertStore::empty()), given: Arc::default() }
    }
}

/// A bundle's certificates. Anything else in the file is skipped, but a section of another kind is refused.
pub fn authorities(path: &str) -> Result<Authorities, String> {
    authorities_in(&read(path)?, true)
}

fn authorities_in(pem: &[u8], is_strict: bool) -> Result<Authorities, String> {
    let (mut roots, mut given) = (RootCertStore::empty(), HashSet::new());
    for found in <(SectionKind, Vec<u8>)>::pem_slice_iter(pem) {
        // A section that does not end is none: Go stops there without a word.
        let Ok((kind, der)) = found else { break };
        let is_certificate = kind == SectionKind::Certificate && X509Certificate::from_der(&der).is_ok();
        if !is_certificate && is_strict {
            return Err("x509: malformed tbs certificate".to_owned());
        }
        let der = CertificateDer::from(der);
        // One that the library cannot make an anchor of may still be shown as it is.
        if is_certificate && given.insert(der.clone()) {
            let _unusable = roots.add(der);
        }
    }
    Ok(Authorities { roots: Arc::new(roots), given: Arc::new(given) })
}

/// The authorities of this system.
pub fn system_authorities() -> Authorities {
    let named = std::env::var("SSL_CERT_FILE").ok();
    let places: Vec<&str> = named.as_deref().map_or(SYSTEM_BUNDLES.to_vec(), |file| vec![file]);
    let bundle = places.into_iter().find_map(|path| read(path).ok()).unwrap_or_default();
    authorities_in(&bundle, false).unwrap_or_else(|_| Authorities::nobody())
}

/// What a file was when it was read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Stamp {
    modified: Option<SystemTime>,
    length: u64,
    inode: u64,
}

impl Stamp {
    fn of(path: &Path) -> Option<Stamp> {
        use std::os::unix::fs::MetadataExt;
        let found = fs::metadata(path).ok()?;
        Some(Stamp { modified: found.modified().ok(), length: found.len(), inode: found.ino() })
    }
}

/// A bundle that is read again when its file has changed; one that cannot be read any more keeps its last content.
#[derive(Debug)]
pub struct Bundle {
    path: String,
    last: Mutex<(Option<Stamp>, Authorities)>,
}

impl Bundle {
    /// The system's authorities without a path.
    pub fn open(path: &str) -> Result<Bundle, String> {
        let (stamp, first) = match path {
            "" => (None, system_authorities()),
            path => (Stamp::of(Path::new(path)), authorities(path)?),
        };
        Ok(Bundle { path: path.to_owned(), last: Mutex::new((stamp, first)) })
    }

    pub fn now(&self) -> Authorities {
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        let stamp = Stamp::of(Path::new(&self.path));
        if !self.path.is_empty() && stamp != last.0 {
            match authorities(&self.path) {
                Ok(fresh) => *last = (stamp, fresh),
                Err(error) => {
                    tracing::warn!(ca_file = self.path, %error, "failed to reload CA certificates, using cached pool");
                    last.0 = stamp;
                }
            }
        }
        last.1.clone()
    }
}

/// The serials that a revocation list (DER) names, as big-endian numbers without zeros in front.
pub fn revoked_serials(path: &str) -> Result<HashSet<Vec<u8>>, String> {
    let der = read(path)?;
    let malformed = |_| "x509: malformed crl".to_owned();
    let (_, list) = CertificateRevocationList::from_der(&der).map_err(malformed)?;
    Ok(list.iter_revoked_certificates().map(|revoked| revoked.user_certificate.to_bytes_be()).collect())
}

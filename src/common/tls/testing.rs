//! Certificates for tests: authorities, what they issue, and what they revoke, as files in one directory.

use std::path::Path;
use std::path::PathBuf;

use rcgen::BasicConstraints;
use rcgen::CertificateParams;
use rcgen::CertificateRevocationListParams;
use rcgen::DistinguishedName;
use rcgen::DnType;
use rcgen::ExtendedKeyUsagePurpose;
use rcgen::IsCa;
use rcgen::Issuer;
use rcgen::KeyIdMethod;
use rcgen::KeyPair;
use rcgen::KeyUsagePurpose;
use rcgen::RevokedCertParams;
use rcgen::SerialNumber;

/// What is special about a certificate. The default is good for everything on this machine until 2100.
#[derive(Clone)]
pub struct Wanted {
    pub common_name: &'static str,
    /// Names and addresses.
    pub hosts: Vec<String>,
    /// First and last year.
    pub years: (i32, i32),
    pub by_client: bool,
    pub by_server: bool,
    pub serial: u64,
}

impl Default for Wanted {
    fn default() -> Wanted {
        Wanted {
            common_name: "quorate",
            hosts: vec!["localhost".to_owned(), "127.0.0.1".to_owned()],
            years: (2000, 2100),
            by_client: true,
            by_server: true,
            serial: 1000,
        }
    }
}

/// Paths of a certificate and its key.
#[derive(Clone, Debug)]
pub struct Pair {
    pub cert: String,
    pub key: String,
}

pub struct Authority {
    dir: PathBuf,
    /// Its certificate.
    pub bundle: String,
    issuer: Issuer<'static, KeyPair>,
}

fn text(path: &Path) -> String {
    path.to_str().expect("temporary paths are UTF-8").to_owned()
}

/// Appears whole: a member may read it at any moment.
pub fn write(path: &Path, bytes: &[u8]) {
    let fresh = path.with_extension("fresh");
    std::fs::write(&fresh, bytes).expect("a writable directory");
    std::fs::rename(&fresh, path).expect("a writable directory");
}

impl Authority {
    /// `<name>.crt` in `dir`.
    pub fn new(dir: &Path, name: &str) -> Authority {
        let key = KeyPair::generate().expect("a key");
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name = DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, name);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        (params.not_before, params.not_after) = (rcgen::date_time_ymd(2000, 1, 1), rcgen::date_time_ymd(2100, 1, 1));
        let certificate = params.self_signed(&key).expect("a certificate");
        let path = dir.join(format!("{name}.crt"));
        write(&path, certificate.pem().as_bytes());
        Authority { dir: dir.to_owned(), bundle: text(&path), issuer: Issuer::new(params, key) }
    }

    /// `<name>.crt` and `<name>.key`.
    pub fn issue(&self, name: &str, wanted: &Wanted) -> Pair {
        let key = KeyPair::generate().expect("a key");
        let mut params = CertificateParams::new(wanted.hosts.clone()).expect("names");
        params.distinguished_name = DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, wanted.common_name);
        params.serial_number = Some(SerialNumber::from(wanted.serial));
        let (first, last) = wanted.years;
        (params.not_before, params.not_after) = (rcgen::date_time_ymd(first, 1, 1), rcgen::date_time_ymd(last, 1, 1));
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        let usages = [
            (wanted.by_client, ExtendedKeyUsagePurpose::ClientAuth),
            (wanted.by_server, ExtendedKeyUsagePurpose::ServerAuth),
        ];
        params.extended_key_usages = usages.into_iter().filter(|(wanted, _)| *wanted).map(|(_, usage)| usage).collect();
        let certificate = params.signed_by(&key, &self.issuer).expect("a certificate");
        let (cert_path, key_path) = (self.dir.join(format!("{name}.crt")), self.dir.join(format!("{name}.key")));
        write(&key_path, key.serialize_pem().as_bytes());
        write(&cert_path, certificate.pem().as_bytes());
        Pair { cert: text(&cert_path), key: text(&key_path) }
    }

    /// `<name>.crl`, in DER.
    pub fn revoke(&self, name: &str, serials: &[u64]) -> String {
        let then = rcgen::date_time_ymd(2020, 1, 1);
        let revoked = serials.iter().map(|serial| RevokedCertParams {
            serial_number: SerialNumber::from(*serial),
            revocation_time: then,
            reason_code: None,
            invalidity_date: None,
        });
        let params = CertificateRevocationListParams {
            this_update: then,
            next_update: rcgen::date_time_ymd(2100, 1, 1),
            crl_number: SerialNumber::from(1_u64),
            issuing_distribution_point: None,
            revoked_certs: revoked.collect(),
            key_identifier_method: KeyIdMethod::Sha256,
        };
        let list = params.signed_by(&self.issuer).expect("a list");
        let path = self.dir.join(format!("{name}.crl"));
        write(&path, list.der());
        text(&path)
    }
}

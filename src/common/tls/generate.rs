//! Self-signed certificates for `--auto-tls` and `--peer-auto-tls`: made once, then kept.

use std::fs;
use std::io::Write;
use std::net::IpAddr;
use std::os::unix::fs::DirBuilderExt;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::path::PathBuf;
use std::time::Duration;
use std::time::SystemTime;
use std::time::UNIX_EPOCH;

use rcgen::CertificateParams;
use rcgen::DistinguishedName;
use rcgen::DnType;
use rcgen::ExtendedKeyUsagePurpose;
use rcgen::KeyPair;
use rcgen::KeyUsagePurpose;
use rcgen::SanType;
use rustls::crypto::ring;

use super::Settings;
use super::files;
use crate::common::os_reason::os_reason;

/// etcd counts a year as so many days.
const YEAR: Duration = Duration::from_secs(365 * 24 * 3600);

/// Years beyond which a date would have five digits.
const YEARS_MAX: u64 = 7000;

/// Settings with the certificate in `directory`, which is made if there is none, for `hosts` and for so many years.
pub fn self_signed(directory: &Path, hosts: &[String], years: u64) -> Result<Settings, String> {
    if years == 0 {
        return Err("selfSignedCertValidity is invalid,it should be greater than 0".to_owned());
    }
    let absolute = std::path::absolute(directory).map_err(|error| os_reason(&error))?;
    let (cert, key) = (absolute.join("cert.pem"), absolute.join("key.pem"));
    let text = |path: &Path| path.to_string_lossy().into_owned();
    let settings = Settings {
        cert_file: text(&cert),
        key_file: text(&key),
        client_cert_file: text(&cert),
        client_key_file: text(&key),
        self_signed: true,
        ..Settings::default()
    };
    if cert.exists() && key.exists() {
        // etcd's own have P-521 keys, which our cryptography cannot sign with: nobody trusts them by name, so new ones
        // do as well.
        match files::key_pair(&settings.cert_file, &settings.key_file, &ring::default_provider()) {
            Ok(_) => return Ok(settings),
            Err(error) => {
                tracing::warn!(directory = %absolute.display(), error, "cannot use the self-signed certificate, making a new one");
                for path in [&cert, &key] {
                    let aside = PathBuf::from(format!("{}.unusable", path.display()));
                    fs::rename(path, &aside).map_err(|error| failed(path, &error))?;
                }
            }
        }
    }
    let mut builder = fs::DirBuilder::new();
    builder.recursive(true).mode(0o700).create(&absolute).map_err(|error| failed(&absolute, &error))?;
    let (certificate, private) = make(hosts, years).map_err(|error| format!("cannot make a certificate: {error}"))?;
    write(&key, 0o600, &private)?;
    write(&cert, 0o644, &certificate)?;
    Ok(settings)
}

fn failed(path: &Path, error: &std::io::Error) -> String {
    format!("open {}: {}", path.display(), os_reason(error))
}

fn write(path: &Path, mode: u32, text: &str) -> Result<(), String> {
    let file = fs::OpenOptions::new().write(true).create(true).truncate(true).mode(mode).open(path);
    file.and_then(|mut file| file.write_all(text.as_bytes())).map_err(|error| failed(path, &error))?;
    tracing::info!(path = %path.display(), "created a file of a self-signed certificate");
    Ok(())
}

/// Certificate and key as PEM.
fn make(hosts: &[String], years: u64) -> Result<(String, String), rcgen::Error> {
    let mut names: Vec<SanType> = Vec::new();
    for host in hosts.iter().filter(|host| !host.is_empty()) {
        let name = match host.parse::<IpAddr>() {
            Ok(address) => SanType::IpAddress(address),
            Err(_) => SanType::DnsName(host.as_str().try_into()?),
        };
        if !names.contains(&name) {
            names.push(name);
        }
    }
    let mut owner = DistinguishedName::new();
    owner.push(DnType::OrganizationName, "etcd");
    let epoch = rcgen::date_time_ymd(1970, 1, 1);
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let validity = YEAR.saturating_mul(u32::try_from(years.min(YEARS_MAX)).unwrap_or(1));
    let mut params = CertificateParams::default();
    params.distinguished_name = owner;
    params.subject_alt_names = names;
    params.not_before = epoch + now;
    params.not_after = epoch + now + validity;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature, KeyUsagePurpose::KeyEncipherment];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
    let key = KeyPair::generate()?;
    let certificate = params.self_signed(&key)?;
    tracing::warn!(years, "automatically generate certificates");
    Ok((certificate.pem(), key.serialize_pem()))
}

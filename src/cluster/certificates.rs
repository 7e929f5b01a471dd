//! An authority of a cluster's own, and what it issues: one certificate for all members, one for clients.

use std::fs;
use std::io;
use std::io::Write;
use std::os::unix::fs::DirBuilderExt;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::time::Duration;
use std::time::SystemTime;
use std::time::UNIX_EPOCH;

use rcgen::BasicConstraints;
use rcgen::CertificateParams;
use rcgen::DistinguishedName;
use rcgen::DnType;
use rcgen::ExtendedKeyUsagePurpose;
use rcgen::IsCa;
use rcgen::Issuer;
use rcgen::KeyPair;
use rcgen::KeyUsagePurpose;

use crate::cluster::plan::TlsFiles;
use crate::common::os_reason::os_reason;

/// Ten years: a local cluster is thrown away before.
const VALIDITY: Duration = Duration::from_secs(3650 * 24 * 3600);
/// Clocks of containers on one machine may differ.
const BACKDATED: Duration = Duration::from_secs(3600);
const HOSTS: [&str; 3] = ["localhost", "127.0.0.1", "::1"];

/// Makes all files; those that were there are replaced.
pub fn make(files: &TlsFiles) -> Result<(), String> {
    let dir = files.ca.parent().unwrap_or(Path::new("."));
    let mut builder = fs::DirBuilder::new();
    let made = builder.recursive(true).mode(0o700).create(dir);
    made.map_err(|error| format!("cannot make {}: {}", dir.display(), os_reason(&error)))?;
    let failed = |error: rcgen::Error| format!("cannot make a certificate: {error}");
    let authority_key = KeyPair::generate().map_err(failed)?;
    let mut params = params("quorate local cluster", &[]).map_err(failed)?;
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    let certificate = params.self_signed(&authority_key).map_err(failed)?;
    write(&files.ca, 0o644, &certificate.pem())?;
    // Kept, so that more certificates can be issued.
    write(&files.ca.with_file_name("ca-key.pem"), 0o600, &authority_key.serialize_pem())?;
    let issuer = Issuer::new(params, authority_key);
    let both = [ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
    issue(&issuer, "member", &HOSTS, &both, &files.member_cert, &files.member_key)?;
    issue(&issuer, "client", &[], &both[1..], &files.cert, &files.key)
}

fn params(common_name: &str, hosts: &[&str]) -> Result<CertificateParams, rcgen::Error> {
    let mut params = CertificateParams::new(hosts.iter().map(|host| (*host).to_owned()).collect::<Vec<_>>())?;
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, common_name);
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let epoch = rcgen::date_time_ymd(1970, 1, 1);
    params.not_before = epoch + now.saturating_sub(BACKDATED);
    params.not_after = epoch + now.saturating_add(VALIDITY);
    Ok(params)
}

fn issue(
    issuer: &Issuer<'_, KeyPair>,
    common_name: &str,
    hosts: &[&str],
    usages: &[ExtendedKeyUsagePurpose],
    cert: &Path,
    key: &Path,
) -> Result<(), String> {
    let failed = |error: rcgen::Error| format!("cannot make a certificate: {error}");
    let pair = KeyPair::generate().map_err(failed)?;
    let mut params = params(common_name, hosts).map_err(failed)?;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature, KeyUsagePurpose::KeyEncipherment];
    params.extended_key_usages = usages.to_vec();
    let certificate = params.signed_by(&pair, issuer).map_err(failed)?;
    write(key, 0o600, &pair.serialize_pem())?;
    write(cert, 0o644, &certificate.pem())
}

fn write(path: &Path, mode: u32, text: &str) -> Result<(), String> {
    let written = || -> io::Result<()> {
        // A new file, for the mode: that of an old one would stay.
        match fs::remove_file(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        fs::OpenOptions::new().write(true).create_new(true).mode(mode).open(path)?.write_all(text.as_bytes())
    };
    written().map_err(|error| format!("cannot write {}: {}", path.display(), os_reason(&error)))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;
    use crate::common::tls::ClientSide;
    use crate::common::tls::Settings;

    #[test]
    fn clients_can_use_what_is_made_and_keys_are_private() {
        let dir = tempfile::tempdir().unwrap();
        let files = TlsFiles::below(dir.path());
        make(&files).unwrap();
        make(&files).unwrap();
        let text = |path: &Path| path.to_str().unwrap().to_owned();
        let settings = Settings {
            cert_file: text(&files.cert),
            key_file: text(&files.key),
            trusted_ca_file: text(&files.ca),
            ..Settings::default()
        };
        ClientSide::new(&settings, &[b"h2"]).unwrap();
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!((mode(&files.key), mode(&files.member_key), mode(&files.cert)), (0o600, 0o600, 0o644));
    }
}

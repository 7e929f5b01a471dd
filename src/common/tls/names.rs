//! What a certificate says of its owner, and whether that is who was wanted: Go's rules and Go's words.

use std::net::IpAddr;

use chrono::DateTime;
use chrono::SecondsFormat;
use rustls::pki_types::UnixTime;
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::FromDer;
use x509_parser::prelude::X509Certificate;

/// The parts of a certificate that decisions need.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Leaf {
    /// The last one, as in Go; empty if there is none.
    pub common_name: String,
    pub dns_names: Vec<String>,
    pub addresses: Vec<IpAddr>,
    pub(super) has_names: bool,
    /// Big-endian, without zeros in front.
    pub serial: Vec<u8>,
    /// Seconds since 1970.
    pub(super) not_before: i64,
    pub(super) not_after: i64,
    /// May be used by a client, by a server.
    pub usable_by: (bool, bool),
}

impl Leaf {
    pub fn read(der: &[u8]) -> Result<Leaf, String> {
        let malformed = |_| "x509: malformed certificate".to_owned();
        let (_, certificate) = X509Certificate::from_der(der).map_err(malformed)?;
        let mut leaf = Leaf {
            serial: certificate.serial.to_bytes_be(),
            not_before: certificate.validity().not_before.timestamp(),
            not_after: certificate.validity().not_after.timestamp(),
            usable_by: (true, true),
            ..Leaf::default()
        };
        for name in certificate.subject().iter_common_name() {
            leaf.common_name = name.as_str().unwrap_or_default().to_owned();
        }
        if let Some(names) = certificate.subject_alternative_name().map_err(|error| format!("x509: {error}"))? {
            leaf.has_names = true;
            for name in &names.value.general_names {
                match name {
                    GeneralName::DNSName(name) => leaf.dns_names.push((*name).to_owned()),
                    GeneralName::IPAddress(bytes) => leaf.addresses.extend(address(bytes)),
                    _ => {}
                }
            }
        }
        if let Some(usage) = certificate.extended_key_usage().map_err(|error| format!("x509: {error}"))? {
            leaf.usable_by = (usage.value.any || usage.value.client_auth, usage.value.any || usage.value.server_auth);
        }
        Ok(leaf)
    }

    /// Whether it is in force.
    pub fn check_time(&self, now: UnixTime) -> Result<(), String> {
        let now = i64::try_from(now.as_secs()).unwrap_or(i64::MAX);
        let wrong = |order: &str, bound: i64| {
            let (now, bound) = (rfc3339(now), rfc3339(bound));
            Err(format!("x509: certificate has expired or is not yet valid: current time {now} is {order} {bound}"))
        };
        match now {
            now if now < self.not_before => wrong("before", self.not_before),
            now if now > self.not_after => wrong("after", self.not_after),
            _ => Ok(()),
        }
    }

    /// Whether it is valid for this name or address.
    pub fn check_host(&self, host: &str) -> Result<(), String> {
        let bare = host.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(host);
        let (is_valid, valid_for) = match bare.parse::<IpAddr>() {
            Ok(address) => {
                let texts: Vec<String> = self.addresses.iter().map(IpAddr::to_string).collect();
                (self.addresses.iter().any(|known| known.to_canonical() == address.to_canonical()), texts.join(", "))
            }
            Err(_) => (self.dns_names.iter().any(|pattern| matches_name(pattern, bare)), self.dns_names.join(", ")),
        };
        if is_valid {
            return Ok(());
        }
        if !self.has_names && matches_name(&self.common_name, bare) {
            return Err("x509: certificate relies on legacy Common Name field, use SANs instead".to_owned());
        }
        if bare.parse::<IpAddr>().is_ok() && self.addresses.is_empty() {
            let reason = "because it doesn't contain any IP SANs";
            return Err(format!("x509: cannot validate certificate for {bare} {reason}"));
        }
        if valid_for.is_empty() {
            return Err(format!("x509: certificate is not valid for any names, but wanted to match {bare}"));
        }
        Err(format!("x509: certificate is valid for {valid_for}, not {bare}"))
    }
}

fn address(bytes: &[u8]) -> Option<IpAddr> {
    match bytes.len() {
        4 => <[u8; 4]>::try_from(bytes).ok().map(IpAddr::from),
        16 => <[u8; 16]>::try_from(bytes).ok().map(|bytes| IpAddr::from(bytes).to_canonical()),
        _ => None,
    }
}

/// A star stands for one whole label, the first.
fn matches_name(pattern: &str, host: &str) -> bool {
    let pattern = pattern.to_ascii_lowercase();
    let host = host.strip_suffix('.').unwrap_or(host).to_ascii_lowercase();
    if pattern.is_empty() || host.is_empty() {
        return false;
    }
    match (pattern.strip_prefix("*."), host.split_once('.')) {
        (Some(rest), Some((first, tail))) => !first.is_empty() && !rest.is_empty() && rest == tail,
        _ => pattern == host,
    }
}

fn rfc3339(seconds: i64) -> String {
    let time = DateTime::from_timestamp(seconds, 0).unwrap_or_default();
    time.to_rfc3339_opts(SecondsFormat::Secs, true)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn leaf(names: &[&str], addresses: &[&str]) -> Leaf {
        Leaf {
            dns_names: names.iter().map(|name| (*name).to_owned()).collect(),
            addresses: addresses.iter().map(|address| address.parse().expect("an address")).collect(),
            has_names: !names.is_empty() || !addresses.is_empty(),
            common_name: "legacy.example".to_owned(),
            not_before: 1_000_000,
            not_after: 2_000_000,
            ..Leaf::default()
        }
    }

    #[test]
    fn hosts_are_matched_as_go_does() {
        let check = |names: &[&str], addresses: &[&str], host: &str, error: &str| {
            let expected = if error.is_empty() { Ok(()) } else { Err(format!("x509: {error}")) };
            assert_eq!(leaf(names, addresses).check_host(host), expected, "{host}");
        };
        check(&["a.example"], &[], "A.Example", "");
        check(&["a.example"], &[], "a.example.", "");
        check(&["*.example"], &[], "a.example", "");
        check(&["*.example"], &[], "a.b.example", "certificate is valid for *.example, not a.b.example");
        check(&["*.example"], &[], ".example", "certificate is valid for *.example, not .example");
        check(&["other.example"], &[], "localhost", "certificate is valid for other.example, not localhost");
        check(&["x"], &["127.0.0.1", "::1"], "127.0.0.1", "");
        check(&[], &["::1"], "[::1]", "");
        let none = "cannot validate certificate for 127.0.0.1 because it doesn't contain any IP SANs";
        check(&["127.0.0.1"], &[], "127.0.0.1", none);
        check(&[], &["10.0.0.1", "10.0.0.2"], "10.0.0.3", "certificate is valid for 10.0.0.1, 10.0.0.2, not 10.0.0.3");
        let legacy = "certificate relies on legacy Common Name field, use SANs instead";
        check(&[], &[], "legacy.example", legacy);
        check(&[], &[], "x", "certificate is not valid for any names, but wanted to match x");
    }

    #[test]
    fn times_are_told() {
        let at =
            |seconds| leaf(&[], &[]).check_time(UnixTime::since_unix_epoch(std::time::Duration::from_secs(seconds)));
        assert_eq!((at(1_000_000), at(2_000_000)), (Ok(()), Ok(())));
        let head = "x509: certificate has expired or is not yet valid: current time";
        assert_eq!(at(999_999), Err(format!("{head} 1970-01-12T13:46:39Z is before 1970-01-12T13:46:40Z")));
        assert_eq!(at(2_000_001), Err(format!("{head} 1970-01-24T03:33:21Z is after 1970-01-24T03:33:20Z")));
    }

    proptest::proptest! {
        /// Certificates come from anybody who can connect.
        #[test]
        fn no_bytes_and_no_host_panic(bytes in proptest::collection::vec(0_u8.., 0..64), host in ".{0,12}") {
            let _ = Leaf::read(&bytes);
            let _ = leaf(&["*.é", "*."], &["::1"]).check_host(&host);
        }
    }
}

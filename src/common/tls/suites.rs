//! Versions and cipher suites by Go's names.

use std::sync::Arc;

use rustls::CipherSuite;
use rustls::SupportedProtocolVersion;
use rustls::crypto::CryptoProvider;
use rustls::crypto::ring;
use rustls::version::TLS12;
use rustls::version::TLS13;

/// A version that a flag can name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Version {
    Tls12,
    Tls13,
}

impl Version {
    /// Reads `TLS1.2` or `TLS1.3`; the text of the refusal is etcd's.
    pub fn parse(text: &str) -> Result<Version, String> {
        match text {
            "TLS1.2" => Ok(Version::Tls12),
            "TLS1.3" => Ok(Version::Tls13),
            _ => Err(format!("unexpected TLS version \"{text}\" (must be one of: TLS1.2, TLS1.3)")),
        }
    }
}

/// Suites of TLS 1.2 that we speak, by Go's names; two have an older name as well.
const SERVED: [(&str, CipherSuite); 8] = [
    ("TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256", CipherSuite::TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256),
    ("TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384", CipherSuite::TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384),
    ("TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256", CipherSuite::TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256),
    ("TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305", CipherSuite::TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256),
    ("TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256", CipherSuite::TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256),
    ("TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384", CipherSuite::TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384),
    ("TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256", CipherSuite::TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256),
    ("TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305", CipherSuite::TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256),
];

/// Suites of TLS 1.3: always offered, as in Go, where nobody can choose among them.
const OF_TLS13: [&str; 3] = ["TLS_AES_128_GCM_SHA256", "TLS_AES_256_GCM_SHA384", "TLS_CHACHA20_POLY1305_SHA256"];

/// Suites that Go knows and we do not speak: without forward secrecy, or with CBC, RC4 or 3DES.
const NOT_SPOKEN: [&str; 14] = [
    "TLS_RSA_WITH_RC4_128_SHA",
    "TLS_RSA_WITH_3DES_EDE_CBC_SHA",
    "TLS_RSA_WITH_AES_128_CBC_SHA",
    "TLS_RSA_WITH_AES_256_CBC_SHA",
    "TLS_RSA_WITH_AES_128_CBC_SHA256",
    "TLS_RSA_WITH_AES_128_GCM_SHA256",
    "TLS_RSA_WITH_AES_256_GCM_SHA384",
    "TLS_ECDHE_ECDSA_WITH_RC4_128_SHA",
    "TLS_ECDHE_ECDSA_WITH_AES_128_CBC_SHA",
    "TLS_ECDHE_ECDSA_WITH_AES_256_CBC_SHA",
    "TLS_ECDHE_RSA_WITH_RC4_128_SHA",
    "TLS_ECDHE_RSA_WITH_3DES_EDE_CBC_SHA",
    "TLS_ECDHE_RSA_WITH_AES_128_CBC_SHA",
    "TLS_ECDHE_RSA_WITH_AES_256_CBC_SHA",
];

/// As above, and with SHA-256.
const NOT_SPOKEN_SHA256: [&str; 2] =
    ["TLS_ECDHE_ECDSA_WITH_AES_128_CBC_SHA256", "TLS_ECDHE_RSA_WITH_AES_128_CBC_SHA256"];

/// What is offered in a handshake. The default is everything that we speak.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Offer {
    min: Option<Version>,
    max: Option<Version>,
    /// For TLS 1.2, in order of preference; empty for all.
    suites: Vec<CipherSuite>,
}

impl Offer {
    /// What three flags say together. With it come the names of suites that were left out because we do not speak them:
    /// a shorter list is never weaker. An empty one is refused.
    pub fn read(min: &str, max: &str, suites: &[String]) -> Result<(Offer, Vec<String>), String> {
        let read = |text: &str| if text.is_empty() { Ok(None) } else { Version::parse(text).map(Some) };
        let (least, most) = (read(min)?, read(max)?);
        if least > most && most.is_some() {
            return Err(format!("min version ({min}) is greater than max version ({max})"));
        }
        if !suites.is_empty() && least == Some(Version::Tls13) {
            return Err("cipher suites cannot be configured when only TLS1.3 is enabled".to_owned());
        }
        let mut offer = Offer { min: least, max: most, suites: Vec::new() };
        let mut left_out = Vec::new();
        for name in suites {
            if let Some((_, suite)) = SERVED.iter().find(|(known, _)| known == name) {
                offer.suites.push(*suite);
            } else if NOT_SPOKEN.iter().chain(&NOT_SPOKEN_SHA256).any(|known| known == name) {
                left_out.push(name.clone());
            } else if !OF_TLS13.iter().any(|known| known == name) {
                return Err(format!("unexpected TLS cipher suite \"{name}\""));
            }
        }
        if !left_out.is_empty() && offer.suites.is_empty() {
            let names = left_out.join(",");
            return Err(format!("none of the cipher suites {names} is supported by this release of quorate"));
        }
        Ok((offer, left_out))
    }

    pub(super) fn versions(&self) -> Vec<&'static SupportedProtocolVersion> {
        let allowed = |version: Version| {
            self.min.is_none_or(|least| version >= least) && self.max.is_none_or(|most| version <= most)
        };
        [(Version::Tls13, &TLS13), (Version::Tls12, &TLS12)]
            .into_iter()
            .filter(|(version, _)| allowed(*version))
            .map(|(_, known)| known)
            .collect()
    }

    /// ring's cryptography with the wanted suites.
    pub(super) fn provider(&self) -> Arc<CryptoProvider> {
        let mut provider = ring::default_provider();
        if !self.suites.is_empty() {
            let all = std::mem::take(&mut provider.cipher_suites);
            let of_tls13 = all.iter().filter(|suite| suite.tls13().is_some());
            let chosen = self.suites.iter().filter_map(|name| all.iter().find(|suite| suite.suite() == *name));
            provider.cipher_suites = of_tls13.chain(chosen).copied().collect();
        }
        Arc::new(provider)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(min: &str, max: &str, suites: &[&str]) -> Result<(Offer, Vec<String>), String> {
        let suites: Vec<String> = suites.iter().map(|name| (*name).to_owned()).collect();
        Offer::read(min, max, &suites)
    }

    #[test]
    fn wrong_offers_get_etcds_texts() {
        let check = |min: &str, max: &str, suites: &[&str], text: &str| {
            assert_eq!(read(min, max, suites).map(drop), Err(text.to_owned()));
        };
        check("TLS1.1", "", &[], "unexpected TLS version \"TLS1.1\" (must be one of: TLS1.2, TLS1.3)");
        check("TLS1.3", "TLS1.2", &[], "min version (TLS1.3) is greater than max version (TLS1.2)");
        let suite = "TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256";
        check("TLS1.3", "", &[suite], "cipher suites cannot be configured when only TLS1.3 is enabled");
        check("TLS1.2", "", &["TLS_X"], "unexpected TLS cipher suite \"TLS_X\"");
        let weak = "TLS_RSA_WITH_AES_128_CBC_SHA";
        let none = "none of the cipher suites TLS_RSA_WITH_AES_128_CBC_SHA is supported by this release of quorate";
        check("TLS1.2", "", &[weak], none);
    }

    #[test]
    fn suites_keep_their_order_and_weak_ones_are_left_out() {
        let names = ["TLS_RSA_WITH_AES_128_CBC_SHA", SERVED[7].0, "TLS_AES_128_GCM_SHA256", SERVED[0].0];
        let (offer, left_out) = read("TLS1.2", "", &names).expect("good");
        assert_eq!(left_out, [names[0]]);
        let of_tls12 = offer.provider().cipher_suites.iter().filter(|suite| suite.tls13().is_none()).count();
        assert_eq!((offer.suites.clone(), of_tls12), (vec![SERVED[7].1, SERVED[0].1], 2));
        assert_eq!(offer.versions().len(), 2);
        assert_eq!(read("TLS1.2", "TLS1.2", &[]).expect("good").0.versions(), [&TLS12]);
        assert_eq!(Offer::default().provider().cipher_suites.len(), 9);
    }

    #[test]
    fn every_served_name_is_a_suite_of_the_library() {
        let known = ring::default_provider().cipher_suites;
        assert!(SERVED.iter().all(|(_, suite)| known.iter().any(|other| other.suite() == *suite)));
    }
}

//! Which etcd we are to clients and peers, and which release of our own.

/// The etcd release whose behaviour, wire and files we keep: what `/version` and Status answer.
pub const ETCD_VERSION: &str = "3.7.1";

/// Cluster version a cluster of only our members agrees on, and the storage version we write.
pub const CLUSTER_VERSION: &str = "3.7.0";

/// The lowest peer version that may talk to us (X-Min-Cluster-Version).
pub const MIN_CLUSTER_VERSION: &str = "3.0.0";

/// Our own release.
pub const QUORATE_VERSION: &str = env!("CARGO_PKG_VERSION");

/// A version of the form x.y.z. Pre-release and build parts are dropped when read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Version {
    pub major: u64,
    pub minor: u64,
    pub patch: u64,
}

impl Version {
    pub const fn new(major: u64, minor: u64, patch: u64) -> Version {
        Version { major, minor, patch }
    }

    /// Reads `3.7.1`, `3.7.1-rc.0`, `3.7.0+build`. Three parts are needed: `3.7` crashed real members (peer.md 3.1).
    pub fn parse(text: &str) -> Option<Version> {
        let core = text.split(['-', '+']).next()?;
        let mut parts = core.split('.').map(|part| part.parse::<u64>().ok());
        let version = Version { major: parts.next()??, minor: parts.next()??, patch: parts.next()?? };
        parts.next().is_none().then_some(version)
    }

    /// The same release line, patch 0: what cluster versions look like.
    pub fn line(self) -> Version {
        Version { patch: 0, ..self }
    }
}

impl std::fmt::Display for Version {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}.{}.{}", self.major, self.minor, self.patch)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_read_and_ordered() {
        assert_eq!(Version::parse("3.7.1"), Some(Version::new(3, 7, 1)));
        assert_eq!(Version::parse("3.6.0-rc.2+x"), Some(Version::new(3, 6, 0)));
        assert_eq!(Version::parse("3.7"), None);
        assert_eq!(Version::parse("3.7.1.2"), None);
        assert!(Version::new(3, 10, 0) > Version::new(3, 9, 9));
    }
}

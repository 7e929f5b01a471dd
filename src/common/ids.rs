//! Member, cluster and request ids, and how etcd derives them.

use std::fmt;

use sha1::Digest;
use sha1::Sha1;

/// A member of a cluster. 0 is no member. Printed as lowercase hex without padding, everywhere.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct MemberId(pub u64);

/// A cluster, fixed for its life. Printed like a member id.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ClusterId(pub u64);

impl fmt::Display for MemberId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:x}", self.0)
    }
}

impl fmt::Display for ClusterId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:x}", self.0)
    }
}

impl MemberId {
    /// Parses lowercase or uppercase hex without prefix. `None` for anything else.
    pub fn from_hex(text: &str) -> Option<MemberId> {
        parse_hex(text).map(MemberId)
    }

    /// The id of a bootstrap member: SHA-1 over its sorted peer URLs and the cluster token (etcd membership, NewMember).
    pub fn of_bootstrap_member(peer_urls: &[String], token: &str) -> MemberId {
        MemberId(hash_member(peer_urls, token, ""))
    }

    /// The id of a member added at run time: empty token, decimal unix seconds appended.
    pub fn of_added_member(peer_urls: &[String], unix_seconds: u64) -> MemberId {
        MemberId(hash_member(peer_urls, "", &unix_seconds.to_string()))
    }
}

impl ClusterId {
    /// Parses hex without prefix. `None` for anything else.
    pub fn from_hex(text: &str) -> Option<ClusterId> {
        parse_hex(text).map(ClusterId)
    }

    /// The id of a cluster that starts with these members: SHA-1 over their ids, ascending, 8 bytes big-endian each.
    pub fn of_members(members: &[MemberId]) -> ClusterId {
        let mut sorted = members.to_vec();
        sorted.sort_unstable();
        let mut hash = Sha1::new();
        for member in sorted {
            hash.update(member.0.to_be_bytes());
        }
        ClusterId(first_eight(hash))
    }
}

/// Makes request ids: 16 bits of member id, 40 bits of unix milliseconds, 8 bits of counter, then counting on.
///
/// Ids of one generator never repeat; a restart continues above because time went on.
#[derive(Debug)]
pub struct RequestIds {
    prefix: u64,
    suffix: std::sync::atomic::AtomicU64,
}

impl RequestIds {
    /// A generator for `member` started at `unix_millis`.
    pub fn new(member: MemberId, unix_millis: u64) -> RequestIds {
        let suffix = (unix_millis & ((1 << 40) - 1)) << 8;
        RequestIds { prefix: (member.0 & 0xffff) << 48, suffix: std::sync::atomic::AtomicU64::new(suffix) }
    }

    /// The next id, never 0.
    pub fn next(&self) -> u64 {
        let suffix = self.suffix.fetch_add(1, std::sync::atomic::Ordering::Relaxed) + 1;
        self.prefix | (suffix & ((1 << 48) - 1))
    }

    /// A lease id chosen by the server: a request id with the top bit cleared.
    pub fn next_lease(&self) -> i64 {
        (self.next() & (u64::MAX >> 1)) as i64
    }
}

fn parse_hex(text: &str) -> Option<u64> {
    let plain = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_hexdigit());
    plain.then(|| u64::from_str_radix(text, 16).ok()).flatten()
}

fn hash_member(peer_urls: &[String], token: &str, tail: &str) -> u64 {
    let mut sorted: Vec<&str> = peer_urls.iter().map(String::as_str).collect();
    sorted.sort_unstable();
    let mut hash = Sha1::new();
    for url in sorted {
        hash.update(url.as_bytes());
    }
    hash.update(token.as_bytes());
    hash.update(tail.as_bytes());
    first_eight(hash)
}

fn first_eight(hash: Sha1) -> u64 {
    let digest = hash.finalize();
    u64::from_be_bytes(digest[..8].try_into().expect("SHA-1 has 20 bytes"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_equal_those_of_a_real_cluster() {
        // peer.md 6: three members on 53001 to 53003, token tok1.
        let url = |port: u16| vec![format!("http://127.0.0.1:{port}")];
        let members: Vec<MemberId> =
            [53001, 53002, 53003].map(|port| MemberId::of_bootstrap_member(&url(port), "tok1")).to_vec();
        assert_eq!(members[0].to_string(), "4064c276627c13e8");
        assert_eq!(members[1].to_string(), "a50afd602f55893f");
        assert_eq!(members[2].to_string(), "67a8c1728f351fbd");
        assert_eq!(ClusterId::of_members(&members).to_string(), "a9a3f2aa4603e843");
    }

    #[test]
    fn request_ids_count_up_and_carry_the_member() {
        let ids = RequestIds::new(MemberId(0xabcd_1234), 5);
        let first = ids.next();
        assert_eq!(first >> 48, 0x1234);
        assert_eq!(ids.next(), first + 1);
        assert!(ids.next_lease() > 0);
    }

    #[test]
    fn hex_is_parsed_without_sign_or_prefix() {
        assert_eq!(MemberId::from_hex("a1"), Some(MemberId(0xa1)));
        for wrong in ["", "+1", "0x1", "zz", "11111111111111111"] {
            assert_eq!(MemberId::from_hex(wrong), None, "{wrong}");
        }
    }
}

//! Who is speaking: the headers of etcd's peer protocol, written and judged.
//!
//! A missing version counts as 2.0.0 and a missing cluster id as a mismatch (server.md 14.2).

use http::HeaderMap;
use http::HeaderName;
use http::HeaderValue;

use crate::common::ids::ClusterId;
use crate::common::ids::MemberId;
use crate::common::version::ETCD_VERSION;
use crate::common::version::MIN_CLUSTER_VERSION;
use crate::common::version::Version;

pub const SERVER_FROM: HeaderName = HeaderName::from_static("x-server-from");
pub const SERVER_VERSION: HeaderName = HeaderName::from_static("x-server-version");
pub const MIN_CLUSTER: HeaderName = HeaderName::from_static("x-min-cluster-version");
pub const CLUSTER_ID: HeaderName = HeaderName::from_static("x-etcd-cluster-id");
pub const RAFT_TO: HeaderName = HeaderName::from_static("x-raft-to");
pub const PEER_URLS: HeaderName = HeaderName::from_static("x-peerurls");

/// Answer texts that both sides know.
pub const INCOMPATIBLE_VERSION: &str = "incompatible version";
pub const CLUSTER_MISMATCH: &str = "cluster ID mismatch";

/// URLs taken from one X-PeerURLs header; the rest is ignored.
const URLS_MAX: usize = 16;

/// What a member that sends no version is taken for.
const ANCIENT: Version = Version::new(2, 0, 0);

/// Adds to a request what says who we are.
pub fn sign(headers: &mut HeaderMap, local: MemberId, cluster: ClusterId, peer_urls: &[String]) {
    headers.insert(SERVER_FROM, text_value(local.to_string()));
    headers.insert(SERVER_VERSION, HeaderValue::from_static(ETCD_VERSION));
    headers.insert(MIN_CLUSTER, HeaderValue::from_static(MIN_CLUSTER_VERSION));
    headers.insert(CLUSTER_ID, text_value(cluster.to_string()));
    if let Ok(urls) = HeaderValue::from_str(&peer_urls.join(",")) {
        headers.insert(PEER_URLS, urls);
    }
}

/// A header value of ids and digits.
pub fn text_value(text: String) -> HeaderValue {
    HeaderValue::from_str(&text).expect("hex digits are a valid header value")
}

/// Who signed a request or an answer.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Signature {
    pub from: Option<MemberId>,
    pub cluster: Option<ClusterId>,
    pub to: Option<MemberId>,
    pub peer_urls: Vec<String>,
}

impl Signature {
    pub fn read(headers: &HeaderMap) -> Signature {
        let urls = text(headers, &PEER_URLS).unwrap_or_default();
        Signature {
            from: text(headers, &SERVER_FROM).and_then(MemberId::from_hex),
            cluster: text(headers, &CLUSTER_ID).and_then(ClusterId::from_hex),
            to: text(headers, &RAFT_TO).and_then(MemberId::from_hex),
            peer_urls: urls.split(',').filter(|url| !url.is_empty()).take(URLS_MAX).map(str::to_owned).collect(),
        }
    }
}

/// Whether the other side's release and ours may talk: its release reaches our minimum, and its minimum does not exceed
/// our release, major and minor compared. A version that cannot be read is incompatible; etcd itself dies of one.
pub fn versions_are_compatible(headers: &HeaderMap) -> bool {
    let version = |name: &HeaderName| match headers.contains_key(name) {
        true => text(headers, name).and_then(Version::parse),
        false => Some(ANCIENT),
    };
    let (Some(server), Some(minimum)) = (version(&SERVER_VERSION), version(&MIN_CLUSTER)) else { return false };
    let ours = Version::parse(ETCD_VERSION).expect("our own version has three parts");
    let our_minimum = Version::parse(MIN_CLUSTER_VERSION).expect("our own minimum has three parts");
    server.line() >= our_minimum.line() && minimum.line() <= ours.line()
}

/// Whether an answer names a release that can speak our stream formats. Without the header the other side would be an
/// etcd 2.0 (peer.md 3.1).
pub fn answers_with_version(headers: &HeaderMap) -> bool {
    let our_minimum = Version::parse(MIN_CLUSTER_VERSION).expect("our own minimum has three parts");
    text(headers, &SERVER_VERSION).and_then(Version::parse).is_some_and(|server| server >= our_minimum)
}

/// A header as text, if it is text.
pub fn text<'a>(headers: &'a HeaderMap, name: &HeaderName) -> Option<&'a str> {
    headers.get(name).and_then(|value| value.to_str().ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(pairs: &[(&HeaderName, &str)]) -> HeaderMap {
        pairs.iter().map(|(name, value)| ((*name).clone(), HeaderValue::from_str(value).unwrap())).collect()
    }

    #[test]
    fn what_is_signed_is_read_back() {
        let mut signed = HeaderMap::new();
        let urls = ["http://127.0.0.1:53003".to_owned(), "http://127.0.0.1:53004".to_owned()];
        sign(&mut signed, MemberId(0x67a8c1728f351fbd), ClusterId(0xa9a3f2aa4603e843), &urls);
        assert_eq!(text(&signed, &SERVER_FROM), Some("67a8c1728f351fbd"));
        assert_eq!(text(&signed, &SERVER_VERSION), Some("3.7.1"));
        assert_eq!(text(&signed, &MIN_CLUSTER), Some("3.0.0"));
        assert_eq!(text(&signed, &CLUSTER_ID), Some("a9a3f2aa4603e843"));
        let signature = Signature::read(&signed);
        assert_eq!(signature.from, Some(MemberId(0x67a8c1728f351fbd)));
        assert_eq!(signature.cluster, Some(ClusterId(0xa9a3f2aa4603e843)));
        assert_eq!((signature.to, signature.peer_urls.as_slice()), (None, &urls[..]));
        assert!(versions_are_compatible(&signed) && answers_with_version(&signed));
    }

    #[test]
    fn versions_are_judged_as_etcd_judges_them() {
        let check = |server: &str, minimum: &str, compatible: bool| {
            let pairs = [(&SERVER_VERSION, server), (&MIN_CLUSTER, minimum)];
            let sent: Vec<_> = pairs.into_iter().filter(|(_, value)| !value.is_empty()).collect();
            assert_eq!(versions_are_compatible(&headers(&sent)), compatible, "{server} {minimum}");
        };
        check("3.5.1", "3.0.0", true);
        check("3.8.0", "3.7.9", true);
        check("3.9.0", "3.8.0", false);
        check("2.3.8", "2.1.0", false);
        check("3.0.0", "", true);
        check("", "3.0.0", false);
        check("", "", false);
        check("3.7", "3.0.0", false);
        check("3.7.1", "x", false);
    }

    #[test]
    fn unreadable_ids_count_as_missing() {
        let sent = headers(&[(&SERVER_FROM, "zz"), (&CLUSTER_ID, ""), (&RAFT_TO, "0x1"), (&PEER_URLS, ",")]);
        assert_eq!(Signature::read(&sent), Signature::default());
    }
}

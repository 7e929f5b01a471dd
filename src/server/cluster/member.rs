//! One member: its name, its addresses, whether it votes; in etcd's stored JSON and in the API's message.

use serde::Deserialize;

use crate::common::ids::MemberId;
use crate::proto::etcdserverpb;
use crate::server::cluster::json;

/// A member as the log made it. Name and client URLs stay empty until it has published itself.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Member {
    pub id: MemberId,
    pub name: String,
    pub peer_urls: Vec<String>,
    pub client_urls: Vec<String>,
    pub is_learner: bool,
}

/// The JSON beside a configuration change, etcd's shape (server.md 14.3). Absent and null mean empty.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ChangeContext {
    pub member: Member,
    pub is_promote: bool,
}

/// Reads a JSON array of members, as peers send it. `None` if it is not of this shape.
pub fn members_from_json(text: &str) -> Option<Vec<Member>> {
    let wires: Vec<Wire> = serde_json::from_str(text).ok()?;
    Some(wires.into_iter().map(Wire::member).collect())
}

/// The same, written.
pub fn members_to_json(members: &[Member]) -> String {
    let members: Vec<String> = members.iter().map(Member::to_json).collect();
    format!("[{}]", members.join(","))
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Wire {
    id: u64,
    #[serde(rename = "peerURLs")]
    peer_urls: Option<Vec<String>>,
    #[serde(rename = "isLearner")]
    is_learner: Option<bool>,
    name: Option<String>,
    #[serde(rename = "clientURLs")]
    client_urls: Option<Vec<String>>,
    #[serde(rename = "isPromote")]
    is_promote: Option<bool>,
}

impl Wire {
    fn member(self) -> Member {
        Member {
            id: MemberId(self.id),
            name: self.name.unwrap_or_default(),
            peer_urls: self.peer_urls.unwrap_or_default(),
            client_urls: self.client_urls.unwrap_or_default(),
            is_learner: self.is_learner.unwrap_or_default(),
        }
    }
}

impl Member {
    /// Has the member's process ever run? (etcd: it has a name.)
    pub fn is_started(&self) -> bool {
        !self.name.is_empty()
    }

    /// The value in bucket `members`: `{"id":N,"peerURLs":[..],"isLearner":true,"name":"..","clientURLs":[..]}`, the
    /// last three left out when empty (server.md 14.6).
    pub fn to_json(&self) -> String {
        let mut out = format!("{{\"id\":{},\"peerURLs\":", self.id.0);
        json::push_strings(&mut out, &self.peer_urls);
        if self.is_learner {
            out.push_str(",\"isLearner\":true");
        }
        if !self.name.is_empty() {
            out.push_str(",\"name\":");
            json::push_string(&mut out, &self.name);
        }
        if !self.client_urls.is_empty() {
            out.push_str(",\"clientURLs\":");
            json::push_strings(&mut out, &self.client_urls);
        }
        out.push('}');
        out
    }

    /// Reads the value of bucket `members`. `None` if it is not JSON of this shape.
    pub fn from_json(bytes: &[u8]) -> Option<Member> {
        ChangeContext::from_json(bytes).map(|context| context.member)
    }
}

impl ChangeContext {
    /// Reads the context of a configuration change. `None` if it is not JSON of this shape.
    pub fn from_json(bytes: &[u8]) -> Option<ChangeContext> {
        let wire: Wire = serde_json::from_slice(bytes).ok()?;
        let is_promote = wire.is_promote.unwrap_or_default();
        Some(ChangeContext { member: wire.member(), is_promote })
    }

    /// The context as etcd writes it: a promotion has null addresses.
    pub fn to_json(&self) -> String {
        if self.is_promote {
            return format!("{{\"id\":{},\"peerURLs\":null,\"isPromote\":true}}", self.member.id.0);
        }
        self.member.to_json()
    }
}

impl From<&Member> for etcdserverpb::Member {
    fn from(member: &Member) -> etcdserverpb::Member {
        etcdserverpb::Member {
            id: member.id.0,
            name: member.name.clone(),
            peer_ur_ls: member.peer_urls.clone(),
            client_ur_ls: member.client_urls.clone(),
            is_learner: member.is_learner,
        }
    }
}

/// Reads the v2 store's `attributes` value: `{"name":"m1","clientURLs":[..]}`, both optional.
pub fn attributes_from_json(text: &str) -> Option<(String, Vec<String>)> {
    let wire: Wire = serde_json::from_str(text).ok()?;
    Some((wire.name.unwrap_or_default(), wire.client_urls.unwrap_or_default()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn member(id: u64, name: &str, client_urls: &[&str], is_learner: bool) -> Member {
        Member {
            id: MemberId(id),
            name: name.to_owned(),
            peer_urls: vec!["http://127.0.0.1:1".to_owned()],
            client_urls: client_urls.iter().map(|url| (*url).to_owned()).collect(),
            is_learner,
        }
    }

    #[test]
    fn members_are_stored_in_etcds_bytes() {
        let check = |member: Member, expected: &str| {
            assert_eq!(member.to_json(), expected);
            assert_eq!(Member::from_json(expected.as_bytes()), Some(member));
        };
        check(member(7, "", &[], false), r#"{"id":7,"peerURLs":["http://127.0.0.1:1"]}"#);
        check(member(7, "", &[], true), r#"{"id":7,"peerURLs":["http://127.0.0.1:1"],"isLearner":true}"#);
        check(
            member(u64::MAX, "m1", &["http://c:1", "http://c:2"], true),
            r#"{"id":18446744073709551615,"peerURLs":["http://127.0.0.1:1"],"isLearner":true,"name":"m1","clientURLs":["http://c:1","http://c:2"]}"#,
        );
    }

    #[test]
    fn lists_of_members_are_written_and_read() {
        let members = vec![member(7, "m1", &["http://c:1"], false), member(9, "", &[], true)];
        let json = members_to_json(&members);
        assert_eq!(members_from_json(&json), Some(members));
        assert_eq!((members_to_json(&[]).as_str(), members_from_json("{}")), ("[]", None));
    }

    #[test]
    fn contexts_accept_null_and_absent_fields() {
        let promote = ChangeContext::from_json(br#"{"id":9,"peerURLs":null,"isPromote":true}"#).expect("a promotion");
        assert!(promote.is_promote);
        assert_eq!(promote.member, Member { id: MemberId(9), ..Member::default() });
        assert_eq!(promote.to_json(), r#"{"id":9,"peerURLs":null,"isPromote":true}"#);
        assert_eq!(ChangeContext::from_json(b"{}"), Some(ChangeContext::default()));
        for wrong in [&b""[..], b"[]x", b"{\"id\":-1}", b"\xff", b"{\"peerURLs\":[1]}"] {
            assert_eq!(ChangeContext::from_json(wrong), None, "{wrong:?}");
        }
    }

    #[test]
    fn published_attributes_of_the_old_store_are_read() {
        assert_eq!(
            attributes_from_json(r#"{"name":"m1","clientURLs":["http://c:1"]}"#),
            Some(("m1".to_owned(), vec!["http://c:1".to_owned()]))
        );
        assert_eq!(attributes_from_json("{}"), Some((String::new(), Vec::new())));
        assert_eq!(attributes_from_json("x"), None);
    }
}

//! From a log entry to what it asks for. What cannot be understood stops the member: guessing would make it differ.

use bytes::Bytes;
use prost::Message;
use prost::encoding::WireType;
use prost::encoding::decode_key;
use prost::encoding::decode_varint;

use crate::common::failure::Failure;
use crate::common::ids::MemberId;
use crate::common::version::Version;
use crate::proto::etcdserverpb::AlarmRequest;
use crate::proto::etcdserverpb::CompactionRequest;
use crate::proto::etcdserverpb::DeleteRangeRequest;
use crate::proto::etcdserverpb::LeaseCheckpointRequest;
use crate::proto::etcdserverpb::LeaseGrantRequest;
use crate::proto::etcdserverpb::LeaseRevokeRequest;
use crate::proto::etcdserverpb::PutRequest;
use crate::proto::etcdserverpb::RangeRequest;
use crate::proto::etcdserverpb::TxnRequest;
use crate::proto::raft_numbers::CONF_ADD_LEARNER;
use crate::proto::raft_numbers::CONF_ADD_NODE;
use crate::proto::raft_numbers::CONF_REMOVE_NODE;
use crate::proto::raft_numbers::CONF_UPDATE_NODE;
use crate::proto::raft_numbers::ENTRY_CONF_CHANGE;
use crate::proto::raft_numbers::ENTRY_NORMAL;
use crate::proto::raftinternalpb::InternalRaftRequest;
use crate::proto::raftinternalpb::RequestHeader;
use crate::proto::raftinternalpb::V2Request;
use crate::proto::raftpb::ConfChange;
use crate::proto::raftpb::Entry;
use crate::server::cluster::member;
use crate::server::cluster::member::ChangeContext;
use crate::server::cluster::member::Member;
use crate::server::cluster::membership::Change;

/// Fields of a request in the log (raftinternal.proto).
pub const PUT_TAG: u32 = 4;
pub const HEADER_TAG: u32 = 100;

/// What an entry asks for.
#[derive(Clone, Debug, PartialEq)]
pub enum Command {
    /// A new leader's first entry.
    Empty,
    /// A request; the id finds the waiter, 0 is nobody.
    Request { id: u64, request: Request },
    /// A configuration change: what raft is to be told if it is accepted, and what it means for the members.
    Reconfigure { id: u64, raft: ConfChange, change: Change },
}

impl Command {
    /// Takes a few microseconds whatever the store holds, and starts nothing: a put that does not ask for what was there.
    pub fn is_quick(&self) -> bool {
        match self {
            Command::Request { request: Request::Put(put), .. } => {
                !put.prev_kv && !put.ignore_value && !put.ignore_lease && put.lease == 0
            }
            _ => false,
        }
    }
}

/// A request of the log.
#[derive(Clone, Debug, PartialEq)]
pub enum Request {
    /// Changes nothing: reads, and the old store's own keys.
    Nothing,
    Range(RangeRequest),
    Put(PutRequest),
    DeleteRange(DeleteRangeRequest),
    Txn(TxnRequest),
    Compaction(CompactionRequest),
    LeaseGrant(LeaseGrantRequest),
    LeaseRevoke(LeaseRevokeRequest),
    LeaseCheckpoint(LeaseCheckpointRequest),
    Alarm(AlarmRequest),
    ClusterVersion(Version),
    MemberAttributes {
        id: MemberId,
        name: String,
        client_urls: Vec<String>,
    },
    /// The target of a downgrade that begins; `None` ends one.
    Downgrade(Option<String>),
}

impl Request {
    /// etcd's name of the request, as its metrics have it.
    pub fn op(&self) -> &'static str {
        match self {
            Request::Nothing => "unknown",
            Request::Range(_) => "Range",
            Request::Put(_) => "Put",
            Request::DeleteRange(_) => "DeleteRange",
            Request::Txn(_) => "Txn",
            Request::Compaction(_) => "Compaction",
            Request::LeaseGrant(_) => "LeaseGrant",
            Request::LeaseRevoke(_) => "LeaseRevoke",
            Request::LeaseCheckpoint(_) => "LeaseCheckpoint",
            Request::Alarm(_) => "Alarm",
            Request::ClusterVersion(_) => "ClusterVersionSet",
            Request::MemberAttributes { .. } => "ClusterMemberAttrSet",
            Request::Downgrade(_) => "DowngradeInfoSet",
        }
    }
}

/// Reads an entry. A failure names its index.
pub fn decode(entry: &Entry) -> Result<Command, Failure> {
    let named = |what: String| Failure::Refused(format!("log entry {} {what}", entry.index));
    match entry.r#type {
        ENTRY_NORMAL if entry.data.is_empty() => Ok(Command::Empty),
        ENTRY_NORMAL => decode_request(&entry.data).map_err(named),
        ENTRY_CONF_CHANGE => decode_conf_change(&entry.data).map_err(named),
        other => Err(named(format!("is of type {other}, which no member writes"))),
    }
}

fn decode_request(data: &Bytes) -> Result<Command, String> {
    if let Some((id, put)) = plain_put(data) {
        return Ok(Command::Request { id, request: Request::Put(put) });
    }
    // The new form first: a request of the old store, bare, never parses as one (server.md 14.1).
    let Ok(request) = InternalRaftRequest::decode(data.clone()) else {
        let old = V2Request::decode(data.clone()).map_err(|_| "cannot be decoded".to_owned())?;
        return Ok(Command::Request { id: old.id, request: old_request(&old)? });
    };
    let header_id = request.header.as_ref().map_or(0, |header| header.id);
    let id = if request.id != 0 { request.id } else { header_id };
    match request.v2.as_ref() {
        Some(old) => {
            let id = if old.id != 0 { old.id } else { id };
            Ok(Command::Request { id, request: old_request(old)? })
        }
        None => Ok(Command::Request { id, request: new_request(request)? }),
    }
}

/// A put with a header and nothing else, which is how every member of 3.5 and later writes one. Spares the detour over a
/// struct with a field for every kind of request.
fn plain_put(data: &Bytes) -> Option<(u64, PutRequest)> {
    let mut rest = data.clone();
    let put = field(PUT_TAG, &mut rest)?;
    let header = field(HEADER_TAG, &mut rest)?;
    if !rest.is_empty() {
        return None;
    }
    Some((RequestHeader::decode(header).ok()?.id, PutRequest::decode(put).ok()?))
}

/// The message in the next field, if that has this tag.
fn field(tag: u32, rest: &mut Bytes) -> Option<Bytes> {
    let (found, wire_type) = decode_key(rest).ok()?;
    if (found, wire_type) != (tag, WireType::LengthDelimited) {
        return None;
    }
    let length = usize::try_from(decode_varint(rest).ok()?).ok()?;
    (length <= rest.len()).then(|| rest.split_to(length))
}

fn new_request(all: InternalRaftRequest) -> Result<Request, String> {
    if let Some(name) = auth_change(&all) {
        return Err(format!("is {name}: this release does not serve clusters with authentication"));
    }
    let request = if let Some(put) = all.put {
        Request::Put(put)
    } else if let Some(txn) = all.txn {
        Request::Txn(txn)
    } else if let Some(delete) = all.delete_range {
        Request::DeleteRange(delete)
    } else if let Some(range) = all.range {
        Request::Range(range)
    } else if let Some(compaction) = all.compaction {
        Request::Compaction(compaction)
    } else if let Some(grant) = all.lease_grant {
        Request::LeaseGrant(grant)
    } else if let Some(revoke) = all.lease_revoke {
        Request::LeaseRevoke(revoke)
    } else if let Some(checkpoint) = all.lease_checkpoint {
        Request::LeaseCheckpoint(checkpoint)
    } else if let Some(alarm) = all.alarm {
        Request::Alarm(alarm)
    } else if let Some(set) = all.cluster_version_set {
        Request::ClusterVersion(version(&set.ver)?)
    } else if let Some(set) = all.cluster_member_attr_set {
        let attributes = set.member_attributes.unwrap_or_default();
        let (name, client_urls) = (attributes.name, attributes.client_urls);
        Request::MemberAttributes { id: MemberId(set.member_id), name, client_urls }
    } else if let Some(set) = all.downgrade_info_set {
        Request::Downgrade(set.enabled.then_some(set.ver))
    } else if is_read(&all) {
        Request::Nothing
    } else {
        // Skipping it would make this member differ from those that know it.
        return Err("holds a request that this release does not know".to_owned());
    };
    Ok(request)
}

/// The name of an auth request that changes state, if the entry holds one.
fn auth_change(all: &InternalRaftRequest) -> Option<&'static str> {
    let held = [
        (all.auth_enable.is_some(), "AuthEnable"),
        (all.auth_disable.is_some(), "AuthDisable"),
        (all.auth_user_add.is_some(), "UserAdd"),
        (all.auth_user_delete.is_some(), "UserDelete"),
        (all.auth_user_change_password.is_some(), "UserChangePassword"),
        (all.auth_user_grant_role.is_some(), "UserGrantRole"),
        (all.auth_user_revoke_role.is_some(), "UserRevokeRole"),
        (all.auth_role_add.is_some(), "RoleAdd"),
        (all.auth_role_delete.is_some(), "RoleDelete"),
        (all.auth_role_grant_permission.is_some(), "RoleGrantPermission"),
        (all.auth_role_revoke_permission.is_some(), "RoleRevokePermission"),
    ];
    held.into_iter().find_map(|(held, name)| held.then_some(name))
}

/// Requests that etcd writes to the log though they change nothing that is stored.
fn is_read(all: &InternalRaftRequest) -> bool {
    all.authenticate.is_some()
        || all.auth_status.is_some()
        || all.auth_user_get.is_some()
        || all.auth_user_list.is_some()
        || all.auth_role_list.is_some()
        || all.auth_role_get.is_some()
        || all.downgrade_version_test.is_some()
}

/// A request of the old store: two of them matter (server.md 14.1).
fn old_request(old: &V2Request) -> Result<Request, String> {
    if old.method != "PUT" {
        return Ok(Request::Nothing);
    }
    if old.path == "/0/version" {
        return Ok(Request::ClusterVersion(version(&old.val)?));
    }
    let id = old.path.strip_prefix("/0/members/").and_then(|rest| rest.strip_suffix("/attributes"));
    match id.and_then(MemberId::from_hex) {
        Some(id) => {
            let (name, client_urls) =
                member::attributes_from_json(&old.val).ok_or("holds member attributes that cannot be read")?;
            Ok(Request::MemberAttributes { id, name, client_urls })
        }
        None => Ok(Request::Nothing),
    }
}

fn version(text: &str) -> Result<Version, String> {
    Version::parse(text).ok_or_else(|| format!("holds the cluster version {text:?}, which is none"))
}

fn decode_conf_change(data: &Bytes) -> Result<Command, String> {
    let raft = ConfChange::decode(data.clone()).map_err(|_| "holds a configuration change that cannot be decoded")?;
    let id = MemberId(raft.node_id);
    let context = || {
        let context = ChangeContext::from_json(&raft.context);
        let context = context.ok_or("holds a configuration change whose context cannot be read")?;
        match context.member.id == id {
            true => Ok(context),
            false => Err(format!("changes member {id} with the context of member {}", context.member.id)),
        }
    };
    let change = match raft.r#type {
        CONF_ADD_NODE | CONF_ADD_LEARNER => {
            let ChangeContext { member, is_promote } = context()?;
            let is_learner = raft.r#type == CONF_ADD_LEARNER;
            if is_promote { Change::Promote(id) } else { Change::Add(Member { is_learner, ..member }) }
        }
        CONF_REMOVE_NODE => Change::Remove(id),
        CONF_UPDATE_NODE => Change::Update(id, context()?.member.peer_urls),
        other => return Err(format!("holds a configuration change of type {other}, which no member writes")),
    };
    Ok(Command::Reconfigure { id: raft.id, raft, change })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::etcdserverpb::AuthEnableRequest;
    use crate::proto::etcdserverpb::AuthStatusRequest;
    use crate::proto::membershippb::ClusterVersionSetRequest;
    use crate::proto::raftinternalpb::RequestHeader;

    fn normal(data: impl Into<Bytes>) -> Entry {
        Entry { r#type: ENTRY_NORMAL, term: 2, index: 41, data: data.into() }
    }

    fn internal(request: InternalRaftRequest) -> Entry {
        normal(request.encode_to_vec())
    }

    fn change(r#type: u64, node_id: u64, context: &str) -> Entry {
        let change = ConfChange { id: 77, r#type, node_id, context: Bytes::from(context.to_owned()) };
        Entry { r#type: ENTRY_CONF_CHANGE, term: 2, index: 41, data: change.encode_to_vec().into() }
    }

    /// A request as 3.5 marshals it: every field present, zeros too.
    fn bare_old(method: &str, path: &str, val: &str) -> Vec<u8> {
        let mut out = vec![0x08, 9];
        let mut text = |field: u8, text: &str| {
            out.extend([field << 3 | 2, text.len() as u8]);
            out.extend(text.as_bytes());
        };
        text(2, method);
        text(3, path);
        text(4, val);
        out.extend([0x28, 0]);
        out.extend([0x32, 0, 0x38, 0, 0x48, 0, 0x50, 0, 0x58, 0, 0x60, 0, 0x68, 0, 0x70, 0, 0x78, 0]);
        out.extend([0x80, 1, 0]);
        out
    }

    fn refused(entry: &Entry, part: &str) {
        let text = decode(entry).expect_err(part).to_string();
        assert!(text.starts_with("log entry 41 ") && text.contains(part), "{text}");
    }

    #[test]
    fn the_id_is_field_one_or_the_headers() {
        let put = PutRequest { key: Bytes::from_static(b"k"), ..PutRequest::default() };
        let check = |id: u64, header: Option<u64>, expected: u64| {
            let header = header.map(|id| RequestHeader { id, ..RequestHeader::default() });
            let request = InternalRaftRequest { id, header, put: Some(put.clone()), ..InternalRaftRequest::default() };
            let expected = Command::Request { id: expected, request: Request::Put(put.clone()) };
            assert_eq!(decode(&internal(request)).expect("a put"), expected);
        };
        check(0, Some(5), 5);
        check(6, Some(5), 6);
        check(0, None, 0);
        assert_eq!(decode(&normal(Bytes::new())).expect("empty"), Command::Empty);
    }

    #[test]
    fn the_short_way_for_puts_agrees_with_the_long_one() {
        let put = PutRequest { key: Bytes::from_static(b"k"), value: vec![7; 300].into(), ..PutRequest::default() };
        let header = RequestHeader { id: 5, ..RequestHeader::default() };
        let (put, header) = (Some(put), Some(header));
        let plain = InternalRaftRequest { put, header, ..InternalRaftRequest::default() };
        let data = Bytes::from(plain.encode_to_vec());
        assert_eq!(plain_put(&data).map(|(id, put)| (id, Some(put))), Some((5, plain.put.clone())));
        // Cut or changed anywhere, it is read as the long way reads it, or left to it.
        for cut in 0..data.len() {
            assert_eq!(plain_put(&data.slice(..cut)), None, "cut at {cut}");
        }
        for at in 0..data.len() {
            for bit in 0..8 {
                let mut changed = data.to_vec();
                changed[at] ^= 1 << bit;
                let changed = Bytes::from(changed);
                let Some((id, put)) = plain_put(&changed) else { continue };
                let long = InternalRaftRequest::decode(changed).expect("the long way reads it too");
                let header = long.header.clone().unwrap_or_default();
                assert_eq!((long.put.clone(), header.id), (Some(put.clone()), id), "byte {at}, bit {bit}");
                let rest = InternalRaftRequest { put: long.put.clone(), header: Some(header), ..Default::default() };
                assert_eq!(long, rest, "nothing else was in it");
            }
        }
        let other = InternalRaftRequest { id: 9, ..plain };
        assert_eq!(plain_put(&other.encode_to_vec().into()), None);
    }

    #[test]
    fn requests_of_the_old_store_are_told_apart() {
        let check = |method: &str, path: &str, val: &str, expected: Request| {
            let bare = decode(&normal(bare_old(method, path, val))).expect("a bare request");
            assert_eq!(bare, Command::Request { id: 9, request: expected.clone() }, "{method} {path}");
            let old = V2Request {
                id: 9,
                method: method.to_owned(),
                path: path.to_owned(),
                val: val.to_owned(),
                ..V2Request::default()
            };
            let held = InternalRaftRequest { v2: Some(old), ..InternalRaftRequest::default() };
            let held = decode(&internal(held)).expect("a request in field 2");
            assert_eq!(held, Command::Request { id: 9, request: expected }, "{method} {path}");
        };
        check("PUT", "/0/version", "3.5.0", Request::ClusterVersion(Version::new(3, 5, 0)));
        let (name, client_urls) = ("m1".to_owned(), vec!["http://c:1".to_owned()]);
        check(
            "PUT",
            "/0/members/28e5d4791d022db/attributes",
            r#"{"name":"m1","clientURLs":["http://c:1"]}"#,
            Request::MemberAttributes { id: MemberId(0x28e_5d47_91d0_22db), name, client_urls },
        );
        for method in ["SYNC", "GET", "QGET", "POST", "DELETE", "HEAD", ""] {
            check(method, "/1/key", "x", Request::Nothing);
        }
        check("PUT", "/1/key", "x", Request::Nothing);
        check("PUT", "/0/members/zz/attributes", "x", Request::Nothing);
        refused(&normal(bare_old("PUT", "/0/version", "3.5")), "cluster version");
        refused(&normal(bare_old("PUT", "/0/members/1/attributes", "x")), "attributes");
    }

    #[test]
    fn reads_change_nothing_and_unknown_requests_stop_the_member() {
        let read = InternalRaftRequest { auth_status: Some(AuthStatusRequest {}), ..InternalRaftRequest::default() };
        assert_eq!(decode(&internal(read)).expect("a read"), Command::Request { id: 0, request: Request::Nothing });
        let auth = InternalRaftRequest { auth_enable: Some(AuthEnableRequest {}), ..InternalRaftRequest::default() };
        refused(&internal(auth), "AuthEnable");
        let version = ClusterVersionSetRequest { ver: "new".to_owned() };
        let bad = InternalRaftRequest { cluster_version_set: Some(version), ..InternalRaftRequest::default() };
        refused(&internal(bad), "cluster version");
        // Field 5000, which nobody knows.
        refused(&normal(vec![0xc2, 0xb8, 0x02, 0x00]), "does not know");
        refused(&normal(vec![0xff; 9]), "cannot be decoded");
        refused(&Entry { r#type: 2, ..normal(vec![1]) }, "type 2");
    }

    #[test]
    fn configuration_changes_are_read_by_meaning() {
        let check = |entry: Entry, expected: Change| match decode(&entry).expect("a change") {
            Command::Reconfigure { id: 77, change, .. } => assert_eq!(change, expected),
            other => panic!("{other:?}"),
        };
        let urls = vec!["u".to_owned()];
        let member = |name: &str, is_learner: bool| Member {
            id: MemberId(5),
            name: name.to_owned(),
            peer_urls: urls.clone(),
            is_learner,
            ..Member::default()
        };
        check(change(0, 5, r#"{"id":5,"peerURLs":["u"],"name":"m1"}"#), Change::Add(member("m1", false)));
        check(change(3, 5, r#"{"id":5,"peerURLs":["u"],"isLearner":true}"#), Change::Add(member("", true)));
        check(change(0, 5, r#"{"id":5,"peerURLs":null,"isPromote":true}"#), Change::Promote(MemberId(5)));
        check(change(1, 5, ""), Change::Remove(MemberId(5)));
        check(change(2, 5, r#"{"id":5,"peerURLs":["u"]}"#), Change::Update(MemberId(5), urls.clone()));
        refused(&change(0, 5, r#"{"id":6}"#), "context of member 6");
        refused(&change(0, 5, ""), "context cannot be read");
        refused(&change(4, 5, ""), "type 4");
        let bad = Entry { r#type: ENTRY_CONF_CHANGE, ..normal(vec![0xff]) };
        refused(&bad, "cannot be decoded");
    }
}

//! The `json` format: Go's `encoding/json` of the response, compact, one line; zeros and empties are left out.

use std::io;
use std::io::Write;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;

use super::EndpointHash;
use super::EndpointHealth;
use super::EndpointStatus;
use super::Report;
use super::lease;
use crate::proto::etcdserverpb::DeleteRangeResponse;
use crate::proto::etcdserverpb::Member;
use crate::proto::etcdserverpb::MemberAddResponse;
use crate::proto::etcdserverpb::PutResponse;
use crate::proto::etcdserverpb::RangeResponse;
use crate::proto::etcdserverpb::ResponseHeader;
use crate::proto::etcdserverpb::ResponseOp;
use crate::proto::etcdserverpb::TxnResponse;
use crate::proto::etcdserverpb::WatchResponse;
use crate::proto::etcdserverpb::response_op::Response;
use crate::proto::mvccpb::Event;
use crate::proto::mvccpb::KeyValue;

/// `hex` changes member ids only, and only in what member commands print (ctl.md 3).
pub fn write(report: &Report<'_>, hex: bool, out: &mut dyn Write) -> io::Result<()> {
    let text = match report {
        Report::Put(response) => put(response),
        Report::Get { response, .. } => range(response),
        Report::Delete(response) => delete(response),
        Report::Txn(response) => txn(response),
        Report::Lease(report) => {
            let header = report.header().map(|of| header(of, false)).unwrap_or_default();
            lease::json(report, header.trim_matches(['{', '}']))
        }
        Report::Watch(response) => watch(response),
        Report::MemberList(response) => members(&response.header, &response.members, hex),
        Report::MemberAdd { response, .. } => added(response, hex),
        Report::MemberRemove { response, .. } => members(&response.header, &response.members, hex),
        Report::MemberUpdate { response, .. } => members(&response.header, &response.members, hex),
        // 3.7 forgot this one.
        Report::MemberPromote { response, .. } => members(&response.header, &response.members, false),
        Report::MoveLeader { response, .. } => headed(&response.header).end(),
        Report::Status(list) => list_or_null(list, status),
        Report::Health(list) => list_or_null(list, health),
        Report::HashKv(list) => list_or_null(list, hash),
    };
    out.write_all(text.as_bytes())?;
    out.write_all(b"\n")
}

/// A JSON object being written, members in call order.
struct Object {
    text: String,
}

impl Object {
    fn new() -> Object {
        Object { text: "{".to_owned() }
    }

    fn raw(mut self, key: &str, value: &str) -> Object {
        let comma = if self.text.len() > 1 { "," } else { "" };
        self.text.push_str(&format!("{comma}\"{key}\":{value}"));
        self
    }

    /// Left out when absent.
    fn some(self, key: &str, value: Option<String>) -> Object {
        match value {
            Some(value) => self.raw(key, &value),
            None => self,
        }
    }

    /// Left out when 0.
    fn number<N: std::fmt::Display + Default + PartialEq>(self, key: &str, value: N) -> Object {
        if value == N::default() { self } else { self.raw(key, &value.to_string()) }
    }

    /// An id: a number, or a string of hex. Left out when 0.
    fn id(self, key: &str, id: u64, hex: bool) -> Object {
        match (id, hex) {
            (0, _) => self,
            (_, true) => self.raw(key, &format!("\"{id:x}\"")),
            (_, false) => self.raw(key, &id.to_string()),
        }
    }

    /// Left out when empty.
    fn text(self, key: &str, value: &str) -> Object {
        if value.is_empty() { self } else { self.raw(key, &quote(value)) }
    }

    /// Left out when false.
    fn flag(self, key: &str, value: bool) -> Object {
        if value { self.raw(key, "true") } else { self }
    }

    /// Base64; left out when empty.
    fn bytes(self, key: &str, value: &[u8]) -> Object {
        if value.is_empty() { self } else { self.raw(key, &format!("\"{}\"", STANDARD.encode(value))) }
    }

    /// Left out when empty.
    fn list<T>(self, key: &str, items: &[T], item: impl Fn(&T) -> String) -> Object {
        if items.is_empty() { self } else { self.raw(key, &list(items, item)) }
    }

    fn end(self) -> String {
        self.text + "}"
    }
}

fn list<T>(items: &[T], item: impl Fn(&T) -> String) -> String {
    format!("[{}]", items.iter().map(item).collect::<Vec<_>>().join(","))
}

fn list_or_null<T>(items: &[T], item: impl Fn(&T) -> String) -> String {
    if items.is_empty() { "null".to_owned() } else { list(items, item) }
}

/// A JSON string as Go writes it: `<`, `>`, `&` and the two line separators are escaped too.
fn quote(text: &str) -> String {
    quote_except(text, |at| matches!(at, '<' | '>' | '&' | '\u{2028}' | '\u{2029}'))
}

/// A JSON string as etcd's log lines have it: only what must be escaped is.
pub fn quote_plainly(text: &str) -> String {
    quote_except(text, |_| false)
}

fn quote_except(text: &str, escaped: impl Fn(char) -> bool) -> String {
    let mut quoted = String::with_capacity(text.len() + 2);
    quoted.push('"');
    for at in text.chars() {
        match at {
            '"' => quoted.push_str("\\\""),
            '\\' => quoted.push_str("\\\\"),
            '\n' => quoted.push_str("\\n"),
            '\r' => quoted.push_str("\\r"),
            '\t' => quoted.push_str("\\t"),
            '\x08' => quoted.push_str("\\b"),
            '\x0c' => quoted.push_str("\\f"),
            _ if at < ' ' || escaped(at) => quoted.push_str(&format!("\\u{:04x}", u32::from(at))),
            _ => quoted.push(at),
        }
    }
    quoted.push('"');
    quoted
}

fn header(header: &ResponseHeader, hex: bool) -> String {
    Object::new()
        .id("cluster_id", header.cluster_id, hex)
        .id("member_id", header.member_id, hex)
        .number("revision", header.revision)
        .number("raft_term", header.raft_term)
        .end()
}

/// An object that opens with the header.
fn headed(of: &Option<ResponseHeader>) -> Object {
    Object::new().some("header", of.as_ref().map(|of| header(of, false)))
}

fn pair(kv: &KeyValue) -> String {
    Object::new()
        .bytes("key", &kv.key)
        .number("create_revision", kv.create_revision)
        .number("mod_revision", kv.mod_revision)
        .number("version", kv.version)
        .bytes("value", &kv.value)
        .number("lease", kv.lease)
        .end()
}

fn put(response: &PutResponse) -> String {
    headed(&response.header).some("prev_kv", response.prev_kv.as_ref().map(pair)).end()
}

fn range(response: &RangeResponse) -> String {
    let object = headed(&response.header).list("kvs", &response.kvs, pair);
    object.flag("more", response.more).number("count", response.count).end()
}

fn delete(response: &DeleteRangeResponse) -> String {
    let object = headed(&response.header).number("deleted", response.deleted);
    object.list("prev_kvs", &response.prev_kvs, pair).end()
}

fn txn(response: &TxnResponse) -> String {
    let object = headed(&response.header).flag("succeeded", response.succeeded);
    object.list("responses", &response.responses, op).end()
}

/// Go's name of the union's field stands around the chosen member.
fn op(op: &ResponseOp) -> String {
    let (key, nested) = match &op.response {
        Some(Response::ResponseRange(nested)) => ("response_range", range(nested)),
        Some(Response::ResponsePut(nested)) => ("response_put", put(nested)),
        Some(Response::ResponseDeleteRange(nested)) => ("response_delete_range", delete(nested)),
        Some(Response::ResponseTxn(nested)) => ("response_txn", txn(nested)),
        None => return "{\"Response\":null}".to_owned(),
    };
    format!("{{\"Response\":{{\"{key}\":{nested}}}}}")
}

/// Go's field names, none left out. The reason stays empty: etcd's client does not hand it on.
fn watch(response: &WatchResponse) -> String {
    let event = |event: &Event| {
        Object::new()
            .number("type", event.r#type)
            .some("kv", event.kv.as_ref().map(pair))
            .some("prev_kv", event.prev_kv.as_ref().map(pair))
            .end()
    };
    Object::new()
        .raw("Header", &header(&response.header.unwrap_or_default(), false))
        .raw("Events", &list_or_null(&response.events, event))
        .raw("CompactRevision", &response.compact_revision.to_string())
        .raw("Canceled", &response.canceled.to_string())
        .raw("Created", &response.created.to_string())
        .raw("CancelReason", "\"\"")
        .end()
}

fn member(member: &Member, hex: bool) -> String {
    Object::new()
        .id("ID", member.id, hex)
        .text("name", &member.name)
        .list("peerURLs", &member.peer_ur_ls, |url| quote(url))
        .list("clientURLs", &member.client_ur_ls, |url| quote(url))
        .flag("isLearner", member.is_learner)
        .end()
}

fn members(of: &Option<ResponseHeader>, members: &[Member], hex: bool) -> String {
    let object = Object::new().some("header", of.as_ref().map(|of| header(of, hex)));
    object.list("members", members, |of| member(of, hex)).end()
}

fn added(response: &MemberAddResponse, hex: bool) -> String {
    let object = Object::new().some("header", response.header.as_ref().map(|of| header(of, hex)));
    let object = object.some("member", response.member.as_ref().map(|of| member(of, hex)));
    object.list("members", &response.members, |of| member(of, hex)).end()
}

fn status(found: &EndpointStatus) -> String {
    let status = &found.status;
    let downgrade = status
        .downgrade_info
        .as_ref()
        .map(|info| Object::new().flag("enabled", info.enabled).text("targetVersion", &info.target_version).end());
    let inner = headed(&status.header)
        .text("version", &status.version)
        .number("dbSize", status.db_size)
        .number("leader", status.leader)
        .number("raftIndex", status.raft_index)
        .number("raftTerm", status.raft_term)
        .number("raftAppliedIndex", status.raft_applied_index)
        .list("errors", &status.errors, |error| quote(error))
        .number("dbSizeInUse", status.db_size_in_use)
        .flag("isLearner", status.is_learner)
        .text("storageVersion", &status.storage_version)
        .number("dbSizeQuota", status.db_size_quota)
        .some("downgradeInfo", downgrade)
        .end();
    Object::new().raw("Endpoint", &quote(&found.endpoint)).raw("Status", &inner).end()
}

fn health(found: &EndpointHealth) -> String {
    Object::new()
        .raw("endpoint", &quote(&found.endpoint))
        .raw("health", &found.healthy.to_string())
        .raw("took", &quote(&found.took))
        .text("error", &found.error)
        .end()
}

fn hash(found: &EndpointHash) -> String {
    let inner = headed(&found.hash.header)
        .number("hash", found.hash.hash)
        .number("compact_revision", found.hash.compact_revision)
        .number("hash_revision", found.hash.hash_revision)
        .end();
    Object::new().raw("Endpoint", &quote(&found.endpoint)).raw("HashKV", &inner).end()
}

#[cfg(test)]
mod tests {
    use super::super::Format;
    use super::super::samples;
    use super::*;

    const HEADER: &str = "\"cluster_id\":12101053776118486841,\"member_id\":15985099378392235387";

    fn check(report: Report<'_>, hex: bool, expected: &str) {
        assert_eq!(samples::printed(&report, Format::Json, hex), format!("{expected}\n"));
    }

    #[test]
    fn key_values_are_base64_and_zeros_are_left_out() {
        check(
            Report::Put(&samples::put_with_prev()),
            true,
            &format!(
                "{{\"header\":{{{HEADER},\"revision\":20,\"raft_term\":2}},\"prev_kv\":{{\"key\":\"dw==\",\
                 \"create_revision\":16,\"mod_revision\":19,\"version\":4,\"value\":\"dmFsMg==\"}}}}"
            ),
        );
        check(
            Report::Get { response: &samples::one_pair(), value_only: false },
            true,
            &format!(
                "{{\"header\":{{{HEADER},\"revision\":22,\"raft_term\":2}},\"kvs\":[{{\"key\":\"azE=\",\
                 \"create_revision\":9,\"mod_revision\":9,\"version\":1,\"value\":\"djE=\"}}],\"count\":1}}"
            ),
        );
        let nothing = RangeResponse { header: samples::header(22), ..RangeResponse::default() };
        check(
            Report::Get { response: &nothing, value_only: false },
            false,
            &format!("{{\"header\":{{{HEADER},\"revision\":22,\"raft_term\":2}}}}"),
        );
    }

    #[test]
    fn a_txn_names_each_response() {
        check(
            Report::Txn(&samples::txn()),
            false,
            &format!(
                "{{\"header\":{{{HEADER},\"revision\":52,\"raft_term\":2}},\"succeeded\":true,\"responses\":[\
                 {{\"Response\":{{\"response_range\":{{\"header\":{{\"revision\":51}},\"kvs\":[{{\"key\":\"eA==\",\
                 \"create_revision\":9,\"mod_revision\":9,\"version\":1,\"value\":\"Mg==\"}}],\"count\":1}}}}}},\
                 {{\"Response\":{{\"response_put\":{{\"header\":{{\"revision\":52}}}}}}}},\
                 {{\"Response\":{{\"response_delete_range\":{{\"header\":{{\"revision\":52}},\"deleted\":1}}}}}}]}}"
            ),
        );
    }

    #[test]
    fn member_ids_become_strings_under_hex() {
        check(
            Report::MemberList(&samples::members()),
            true,
            "{\"header\":{\"cluster_id\":\"a7ef944b95711739\",\"member_id\":\"ddd67b312462fd7b\",\"raft_term\":2},\
             \"members\":[{\"ID\":\"628170c800dbcee\",\"name\":\"m3\",\"peerURLs\":[\"http://127.0.0.1:32380\"],\
             \"clientURLs\":[\"http://127.0.0.1:32379\"]},{\"ID\":\"b3a845f0edf5def2\",\
             \"peerURLs\":[\"http://127.0.0.1:42380\"],\"isLearner\":true}]}",
        );
        let decimal = samples::printed(&Report::MemberList(&samples::members()), Format::Json, false);
        assert!(decimal.contains("\"members\":[{\"ID\":443629905751424238,"), "{decimal}");
    }

    #[test]
    fn endpoints_are_a_list_or_null() {
        check(
            Report::Status(&samples::status()),
            true,
            &format!(
                "[{{\"Endpoint\":\"127.0.0.1:12379\",\"Status\":{{\"header\":{{{HEADER},\"revision\":70,\
                 \"raft_term\":2}},\
                 \"version\":\"3.7.1\",\"dbSize\":24576,\"leader\":15985099378392235387,\"raftIndex\":112,\
                 \"raftTerm\":2,\
                 \"raftAppliedIndex\":112,\"dbSizeInUse\":16384,\"storageVersion\":\"3.7.0\",\
                 \"dbSizeQuota\":2147483648,\
                 \"downgradeInfo\":{{}}}}}}]"
            ),
        );
        check(
            Report::HashKv(&samples::hashes()),
            false,
            &format!(
                "[{{\"Endpoint\":\"127.0.0.1:12379\",\"HashKV\":{{\"header\":{{{HEADER},\"revision\":2,\
                 \"raft_term\":2}},\
                 \"hash\":3305255506,\"compact_revision\":-1,\"hash_revision\":2}}}}]"
            ),
        );
        check(
            Report::Health(&samples::health()),
            false,
            "[{\"endpoint\":\"127.0.0.1:12379\",\"health\":true,\"took\":\"2.467018ms\"},{\"endpoint\":\"127.0.0.1:1\",\
             \"health\":false,\"took\":\"1.000520246s\",\"error\":\"context deadline exceeded\"}]",
        );
        check(Report::Status(&[]), false, "null");
    }

    #[test]
    fn strings_are_escaped_as_go_does() {
        assert_eq!(quote("a<b>&\"\\\n\x01\u{2028}é"), "\"a\\u003cb\\u003e\\u0026\\\"\\\\\\n\\u0001\\u2028é\"");
        assert_eq!(quote_plainly("a<b>&\"\x01"), "\"a<b>&\\\"\\u0001\"");
    }
}

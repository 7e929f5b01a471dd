//! What replies alone can show, for histories whose log is gone.
//!
//! Weaker than the replay: a write that nobody read again may be lost unseen. What is checked: no two writes have one
//! revision, revisions agree with real time and never go back on a connection, a key's revision has one content wherever
//! it is seen and was written by somebody, and a write that a later full read must show is there.

use std::collections::BTreeMap;
use std::collections::HashMap;

use bytes::Bytes;

use crate::proto::etcdserverpb::RangeRequest;
use crate::proto::etcdserverpb::RangeResponse;
use crate::proto::etcdserverpb::TxnRequest;
use crate::proto::etcdserverpb::request_op;
use crate::proto::mvccpb::KeyValue;
use crate::torture::checker::Fingerprint;
use crate::torture::checker::Operation;
use crate::torture::checker::Outcome;
use crate::torture::checker::VIOLATIONS_MAX;
use crate::torture::checker::acknowledged;
use crate::torture::checker::connections;
use crate::torture::checker::model::Request;
use crate::torture::checker::model::Response;

/// Everything that is wrong, in words.
pub fn check(operations: &[Operation], fingerprints: &[Fingerprint]) -> Vec<String> {
    let mut found = one_revision_each(operations);
    found.extend(real_time(operations));
    found.extend(connections(operations).iter().map(ToString::to_string));
    found.extend(contents(operations));
    found.extend(super::differences(fingerprints).iter().map(ToString::to_string));
    found
}

/// The revision that a write made; `None` for a read, a write without effect, or one without an answer.
fn made(call: &Operation) -> Option<i64> {
    let Outcome::Replied(response) = &call.outcome else { return None };
    match response {
        Response::Put(_) => Some(response.revision()),
        Response::DeleteRange(delete) => (delete.deleted > 0).then(|| response.revision()),
        Response::Txn(txn) => {
            let Request::Txn(request) = &call.request else { return None };
            puts(request, txn.succeeded).next().map(|_| response.revision())
        }
        Response::Compact(_) | Response::Range(_) | Response::LeaseGrant(_) | Response::LeaseRevoke(_) => None,
    }
}

/// What a branch of a transaction puts.
fn puts(txn: &TxnRequest, succeeded: bool) -> impl Iterator<Item = (&Bytes, &Bytes)> {
    let branch = if succeeded { &txn.success } else { &txn.failure };
    branch.iter().filter_map(|op| match &op.request {
        Some(request_op::Request::RequestPut(put)) => Some((&put.key, &put.value)),
        _ => None,
    })
}

fn one_revision_each(operations: &[Operation]) -> Vec<String> {
    let mut owners: HashMap<i64, usize> = HashMap::new();
    let mut found = Vec::new();
    for (at, call) in operations.iter().enumerate() {
        let Some(revision) = made(call) else { continue };
        if let Some(other) = owners.insert(revision, at) {
            found.push(format!("operations {other} and {at} were both told that they made revision {revision}"));
        }
    }
    found.truncate(VIOLATIONS_MAX);
    found
}

/// A linearizable read is not older than what was known before it began, and a write is newer.
fn real_time(operations: &[Operation]) -> Vec<String> {
    let known = acknowledged(operations);
    let mut found = Vec::new();
    for (at, call) in operations.iter().enumerate() {
        let Outcome::Replied(response) = &call.outcome else { continue };
        let serializable = matches!(&call.request, Request::Range(range) if range.serializable);
        let floor = known.before(call.start).unwrap_or(0);
        let revision = response.revision();
        if (revision < floor && !serializable) || made(call).is_some_and(|made| made <= floor) {
            found.push(format!("operation {at} is at revision {revision}, after {floor} had been acknowledged"));
        }
    }
    found.truncate(VIOLATIONS_MAX);
    found
}

/// A full read: every key of the run, in no part.
fn is_full(range: &RangeRequest, response: &RangeResponse) -> bool {
    let all = range.key.as_ref() == [0] && range.range_end.as_ref() == [0];
    all && !response.more && !range.keys_only && !range.count_only
}

fn contents(operations: &[Operation]) -> Vec<String> {
    let mut found = Vec::new();
    // Which value every key had from which revision on, as whoever wrote it was told.
    let mut written: BTreeMap<(Bytes, i64), Bytes> = BTreeMap::new();
    let mut sent: HashMap<Bytes, ()> = HashMap::new();
    for call in operations {
        let mut note = |key: &Bytes, value: &Bytes, acknowledged: bool| {
            sent.insert(value.clone(), ());
            if let Some(revision) = made(call).filter(|_| acknowledged) {
                written.insert((key.clone(), revision), value.clone());
            }
        };
        match &call.request {
            Request::Put(put) => note(&put.key, &put.value, true),
            Request::Txn(txn) => {
                let succeeded = match &call.outcome {
                    Outcome::Replied(Response::Txn(response)) => Some(response.succeeded),
                    _ => None,
                };
                for branch in [true, false] {
                    puts(txn, branch).for_each(|(key, value)| note(key, value, succeeded == Some(branch)));
                }
            }
            _ => {}
        }
    }
    let mut seen: HashMap<(Bytes, i64), KeyValue> = HashMap::new();
    for (at, call) in operations.iter().enumerate() {
        let (Request::Range(range), Outcome::Replied(Response::Range(response))) = (&call.request, &call.outcome)
        else {
            continue;
        };
        if range.keys_only {
            continue;
        }
        for kv in &response.kvs {
            let place = (kv.key.clone(), kv.mod_revision);
            if written.get(&place).is_some_and(|value| *value != kv.value) || !sent.contains_key(&kv.value) {
                found.push(format!("operation {at} read what nobody wrote there: {kv:?}"));
            }
            let before = seen.entry(place).or_insert_with(|| kv.clone());
            if before != kv {
                found.push(format!("operation {at} read {kv:?} where another read found {before:?}"));
            }
        }
        if is_full(range, response) {
            found.extend(missing(at, response, &written));
        }
    }
    found.truncate(VIOLATIONS_MAX);
    found
}

/// A key that a full read shows in an older state than its last acknowledged write at that time.
fn missing(at: usize, response: &RangeResponse, written: &BTreeMap<(Bytes, i64), Bytes>) -> Vec<String> {
    let revision = response.header.as_ref().map_or(0, |header| header.revision);
    let older = response.kvs.iter().filter(|kv| kv.mod_revision < revision).filter_map(|kv| {
        let from = (kv.key.clone(), kv.mod_revision + 1);
        let newer = written.range(from..=(kv.key.clone(), revision)).next_back()?;
        Some(format!("operation {at} read {kv:?} although revision {} had been acknowledged", newer.0.1))
    });
    older.collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::etcdserverpb::PutRequest;
    use crate::proto::etcdserverpb::PutResponse;
    use crate::proto::etcdserverpb::ResponseHeader;

    fn header(revision: i64) -> Option<ResponseHeader> {
        Some(ResponseHeader { revision, ..ResponseHeader::default() })
    }

    fn put(time: u64, key: &'static str, value: &'static str, revision: i64) -> Operation {
        let request = Request::Put(PutRequest { key: key.into(), value: value.into(), ..PutRequest::default() });
        let response = Response::Put(PutResponse { header: header(revision), prev_kv: None });
        Operation { connection: time, start: time, end: time + 1, request, outcome: Outcome::Replied(response) }
    }

    fn kv(key: &'static str, value: &'static str, revision: i64) -> KeyValue {
        KeyValue { key: key.into(), value: value.into(), mod_revision: revision, ..KeyValue::default() }
    }

    fn read(time: u64, revision: i64, kvs: &[KeyValue]) -> Operation {
        let request = RangeRequest { key: "\0".into(), range_end: "\0".into(), ..RangeRequest::default() };
        let count = kvs.len() as i64;
        let response = RangeResponse { header: header(revision), kvs: kvs.to_vec(), more: false, count };
        let outcome = Outcome::Replied(Response::Range(response));
        Operation { connection: time, start: time, end: time + 1, request: Request::Range(request), outcome }
    }

    fn honest() -> Vec<Operation> {
        vec![
            put(0, "a", "1", 2),
            put(10, "b", "2", 3),
            put(20, "a", "3", 4),
            read(30, 4, &[kv("a", "3", 4), kv("b", "2", 3)]),
        ]
    }

    fn found(change: impl FnOnce(&mut Vec<Operation>), expected: &str) {
        let mut operations = honest();
        change(&mut operations);
        let found = check(&operations, &[]);
        assert!(found.iter().any(|text| text.contains(expected)), "{expected}: {found:?}");
    }

    #[test]
    fn an_honest_history_passes_and_each_kind_of_lie_is_found() {
        assert_eq!(check(&honest(), &[]), Vec::<String>::new());
        found(|all| all.push(put(40, "c", "9", 4)), "both told");
        found(|all| all.push(read(40, 3, &[kv("a", "1", 2), kv("b", "2", 3)])), "had been acknowledged");
        found(|all| all[3] = read(30, 4, &[kv("a", "1", 2), kv("b", "2", 3)]), "although revision 4");
        found(|all| all[3] = read(30, 4, &[kv("a", "7", 4)]), "nobody wrote");
        found(|all| all.push(read(40, 4, &[kv("a", "2", 4)])), "nobody wrote");
        found(|all| all.push(put(40, "c", "9", 3)), "is at revision 3");
        let prints =
            [1, 2].map(|member| Fingerprint { member, revision: 4, compact_revision: -1, hash: member as u32 });
        assert_eq!(check(&honest(), &prints).len(), 1);
    }
}

//! Transactions: compares, paths, what later operations see, and what refuses the whole.

use super::*;
use crate::proto::etcdserverpb::DeleteRangeRequest;
use crate::proto::etcdserverpb::PutRequest;
use crate::proto::etcdserverpb::RangeRequest;
use crate::server::apply::kv::test_leases::TestLeases;
use crate::server::mvcc::testing::harness::Harness;

fn put(key: &'static str, value: &'static str) -> RequestOp {
    let request = PutRequest { key: key.into(), value: value.into(), prev_kv: true, ..PutRequest::default() };
    RequestOp { request: Some(Request::RequestPut(request)) }
}

fn get(key: &'static str, revision: i64) -> RequestOp {
    let request = RangeRequest { key: key.into(), revision, ..RangeRequest::default() };
    RequestOp { request: Some(Request::RequestRange(request)) }
}

fn delete(key: &'static str, end: &'static str) -> RequestOp {
    let request = DeleteRangeRequest { key: key.into(), range_end: end.into(), prev_kv: true };
    RequestOp { request: Some(Request::RequestDeleteRange(request)) }
}

fn nested(request: TxnRequest) -> RequestOp {
    RequestOp { request: Some(Request::RequestTxn(request)) }
}

fn then(success: Vec<RequestOp>) -> TxnRequest {
    TxnRequest { success, ..TxnRequest::default() }
}

/// Runs the request on a store with a=1 (revision 2, version 1, lease 5) and b=2 (revisions 3 and 4, version 2).
fn run(request: &TxnRequest) -> (Harness, TestLeases, Result<TxnResponse, Answer>) {
    let mut harness = Harness::default();
    let mut leases = TestLeases::with(&[5]);
    for (key, value, lease) in [("a", "1", 5), ("b", "x", 0), ("b", "2", 0)] {
        let request = PutRequest { key: key.into(), value: value.into(), lease, ..PutRequest::default() };
        crate::server::apply::kv::put(&mut harness.store, &mut leases, &request).unwrap();
    }
    let result = match txn(&mut harness.store, &mut leases, request) {
        Ok(response) => Ok(response),
        Err(ApplyError::Answer(answer)) => Err(answer),
        Err(ApplyError::Failure(failure)) => panic!("{failure}"),
    };
    (harness, leases, result)
}

/// A response in short: `T@5 [put@5(1) get@5(a=1) del@5(2: 1,2) F@0 []]`.
fn short(response: &TxnResponse) -> String {
    let text = |bytes: &Bytes| String::from_utf8_lossy(bytes).into_owned();
    let at = |header: &Option<ResponseHeader>| header.as_ref().map_or(-1, |header| header.revision);
    let ops = response.responses.iter().map(|op| match op.response.as_ref() {
        Some(Response::ResponsePut(put)) => {
            format!("put@{}({})", at(&put.header), put.prev_kv.as_ref().map_or(String::new(), |kv| text(&kv.value)))
        }
        Some(Response::ResponseRange(range)) => {
            let pairs = range.kvs.iter().map(|kv| format!("{}={}", text(&kv.key), text(&kv.value)));
            format!("get@{}({})", at(&range.header), pairs.collect::<Vec<_>>().join(","))
        }
        Some(Response::ResponseDeleteRange(delete)) => {
            let values = delete.prev_kvs.iter().map(|kv| text(&kv.value)).collect::<Vec<_>>().join(",");
            format!("del@{}({}: {values})", at(&delete.header), delete.deleted)
        }
        Some(Response::ResponseTxn(nested)) => short(nested),
        None => "none".to_owned(),
    });
    let letter = if response.succeeded { "T" } else { "F" };
    format!("{letter}@{} [{}]", at(&response.header), ops.collect::<Vec<_>>().join(" "))
}

#[test]
fn operations_see_those_before_them() {
    let cases = [
        (then(vec![]), "T@4 []"),
        (then(vec![get("a", 0)]), "T@4 [get@4(a=1)]"),
        (then(vec![get("a", 0), put("a", "3"), get("a", 0)]), "T@5 [get@4(a=1) put@5(1) get@5(a=3)]"),
        (then(vec![put("a", "3"), get("a", 4), get("b", 3)]), "T@5 [put@5(1) get@5(a=1) get@5(b=x)]"),
        (then(vec![put("c", "3"), delete("a", "\0"), get("c", 0)]), "T@5 [put@5() del@5(3: 1,2,3) get@5()]"),
        (then(vec![delete("a", "\0"), put("a", "9"), get("a", 0)]), "T@5 [del@5(2: 1,2) put@5() get@5(a=9)]"),
        (then(vec![delete("x", ""), get("a", 0)]), "T@4 [del@4(0: ) get@4(a=1)]"),
        (
            then(vec![delete("x", ""), nested(then(vec![put("x", "1")])), delete("b", "")]),
            "T@5 [del@4(0: ) T@0 [put@5()] del@5(1: 2)]",
        ),
        (then(vec![RequestOp { request: None }]), "T@4 [none]"),
        (then(vec![get("a", -1)]), "T@4 [get@4(a=1)]"),
    ];
    for (request, expected) in cases {
        let (harness, _, result) = run(&request);
        assert_eq!(short(&result.unwrap()), expected);
        let changed = expected.contains("@5");
        assert_eq!(harness.store.revision(), if changed { 5 } else { 4 });
    }
}

#[test]
fn a_key_deleted_and_put_again_in_one_transaction_begins_anew() {
    let (harness, leases, result) = run(&then(vec![delete("a", "\0"), put("a", "9"), put("b", "8")]));
    result.unwrap();
    let response = read::range(&harness.store, &RangeRequest { key: "a".into(), ..RangeRequest::default() }).unwrap();
    assert_eq!((response.kvs[0].create_revision, response.kvs[0].version), (5, 1));
    assert_eq!(leases.text(), "5:");
    let subs: Vec<i64> = harness.store.recent(5, 5).iter().map(|record| record.revision.sub).collect();
    assert_eq!(subs, [0, 1, 2, 3]);
}

#[test]
fn compares_of_nested_transactions_see_the_state_before() {
    let absent = Compare { key: "new".into(), target: CompareTarget::Version as i32, ..Compare::default() };
    let inner =
        TxnRequest { compare: vec![absent], success: vec![put("n", "absent")], failure: vec![put("n", "there")] };
    let (_, _, result) = run(&then(vec![put("new", "1"), nested(inner)]));
    assert_eq!(short(&result.unwrap()), "T@5 [put@5() T@0 [put@5()]]");
}

#[test]
fn what_refuses_an_operation_refuses_the_whole() {
    let lease = |lease: i64, ignore_value: bool| {
        let request = PutRequest { key: "k".into(), lease, ignore_value, ..PutRequest::default() };
        RequestOp { request: Some(Request::RequestPut(request)) }
    };
    let cases = [
        (vec![put("a", "9"), get("a", 5)], Answer::FutureRevision),
        (vec![put("a", "9"), get("a", -2)], Answer::Compacted),
        (vec![put("a", "9"), lease(6, true)], Answer::LeaseNotFound),
        (vec![put("k", "9"), lease(5, true)], Answer::KeyNotFound),
        (vec![put("a", "9"), nested(then(vec![get("a", 9)]))], Answer::FutureRevision),
        (vec![nested(then(vec![get("a", 9)])), lease(6, false)], Answer::FutureRevision),
        (vec![lease(6, false), nested(then(vec![get("a", 9)]))], Answer::LeaseNotFound),
    ];
    for (ops, expected) in cases {
        let (harness, leases, result) = run(&then(ops));
        assert_eq!(result.unwrap_err(), expected);
        assert_eq!((harness.store.revision(), leases.text().as_str()), (4, "5:a"));
    }
    // The path not taken is not checked.
    let request = TxnRequest { success: vec![get("a", 0)], failure: vec![get("a", 9)], ..TxnRequest::default() };
    assert!(run(&request).2.is_ok());
}

/// B8, etcd 18667: a transaction with a range at an old revision failed where the records were already deleted and went
/// through where they were not, so that its put existed on some members only.
#[test]
fn b08_ranges_below_a_compaction_are_refused_on_every_member_alike() {
    for (deleted, restarted) in [(false, false), (true, false), (false, true), (true, true)] {
        let (mut harness, mut leases, _) = run(&then(vec![]));
        harness.store.compact(4).unwrap();
        if deleted {
            harness.finish_compactions();
        }
        if deleted || restarted {
            harness.flush();
        }
        if restarted {
            harness.restart();
        }
        for (revision, refused) in [(3, true), (4, false), (0, false), (-1, true)] {
            let request = then(vec![put("z", "1"), get("b", revision)]);
            let result = txn(&mut harness.store, &mut leases, &request);
            assert_eq!(
                matches!(result, Err(ApplyError::Answer(Answer::Compacted))),
                refused,
                "{revision} {deleted} {restarted}"
            );
        }
    }
}

#[test]
fn compares_hold_as_etcds_do() {
    use CompareResult as R;
    use CompareTarget as T;
    let union = |number: i64, target: T| match target {
        T::Version => TargetUnion::Version(number),
        T::Create => TargetUnion::CreateRevision(number),
        T::Mod => TargetUnion::ModRevision(number),
        T::Lease => TargetUnion::Lease(number),
        T::Value => TargetUnion::Value(Bytes::from(number.to_string())),
    };
    let check =
        |key: &'static str, end: &'static str, target: i32, result: i32, union: Option<TargetUnion>, expected| {
            let compare = Compare { key: key.into(), range_end: end.into(), target, result, target_union: union };
            let text = format!("{compare:?}");
            let request = TxnRequest { compare: vec![compare], ..TxnRequest::default() };
            assert_eq!(run(&request).2.unwrap().succeeded, expected, "{text}");
        };
    let cases = [
        ("a", "", T::Version, R::Equal, 1, true),
        ("b", "", T::Version, R::Greater, 1, true),
        ("b", "", T::Create, R::Equal, 3, true),
        ("b", "", T::Mod, R::Less, 5, true),
        ("b", "", T::Mod, R::Less, 4, false),
        ("a", "", T::Lease, R::Equal, 5, true),
        ("b", "", T::Lease, R::Equal, 0, true),
        ("a", "", T::Value, R::Equal, 1, true),
        ("a", "", T::Value, R::NotEqual, 1, false),
        ("b", "", T::Value, R::Greater, 1, true),
        // A range holds for every key or not at all.
        ("a", "c", T::Version, R::Greater, 0, true),
        ("a", "c", T::Version, R::Equal, 1, false),
        ("a", "\0", T::Value, R::Less, 3, true),
        // A missing key, or an empty interval, is all zeros and has no value to compare.
        ("x", "", T::Version, R::Equal, 0, true),
        ("x", "z", T::Create, R::Less, 1, true),
        ("x", "", T::Lease, R::NotEqual, 0, false),
        ("x", "", T::Value, R::NotEqual, 1, false),
        ("x", "", T::Value, R::Equal, 0, false),
    ];
    for (key, end, target, result, number, expected) in cases {
        check(key, end, target as i32, result as i32, Some(union(number, target)), expected);
    }
    // Without a target, or with one of another kind, the comparison is with zero or nothing.
    check("b", "", T::Mod as i32, R::Greater as i32, None, true);
    check("b", "", T::Mod as i32, R::Equal as i32, Some(TargetUnion::Version(4)), false);
    check("a", "", T::Value as i32, R::Greater as i32, None, true);
    check("a", "", T::Value as i32, R::Equal as i32, Some(TargetUnion::Version(1)), false);
    // Numbers that etcd does not know: any target is equal, any result is true.
    check("a", "", 77, R::Equal as i32, None, true);
    check("a", "", 77, R::Less as i32, None, false);
    check("a", "", T::Version as i32, 77, Some(TargetUnion::Version(9)), true);
}

#[test]
fn all_compares_must_hold() {
    let version = |wanted: i64| Compare {
        key: "a".into(),
        target_union: Some(TargetUnion::Version(wanted)),
        ..Compare::default()
    };
    let request = |compare: Vec<Compare>| TxnRequest {
        compare,
        success: vec![put("s", "1")],
        failure: vec![put("f", "1"), put("g", "1")],
    };
    assert_eq!(short(&run(&request(vec![version(1), version(1)])).2.unwrap()), "T@5 [put@5()]");
    assert_eq!(short(&run(&request(vec![version(1), version(2)])).2.unwrap()), "F@5 [put@5() put@5()]");
}

#[test]
fn routing_looks_at_both_branches() {
    let serializable = |serializable: bool| {
        let request = RangeRequest { key: "a".into(), serializable, ..RangeRequest::default() };
        RequestOp { request: Some(Request::RequestRange(request)) }
    };
    let both = |success: Vec<RequestOp>, failure: Vec<RequestOp>| TxnRequest { success, failure, ..Default::default() };
    let cases = [
        (both(vec![], vec![]), true, true),
        (both(vec![serializable(true)], vec![serializable(true)]), true, true),
        (both(vec![serializable(true)], vec![serializable(false)]), true, false),
        (both(vec![serializable(true)], vec![put("a", "")]), false, false),
        (both(vec![nested(then(vec![serializable(true)]))], vec![]), false, false),
        (both(vec![], vec![delete("a", "")]), false, false),
    ];
    for (request, read_only, local) in cases {
        assert_eq!((is_read_only(&request), is_serializable(&request)), (read_only, local), "{request:?}");
    }
}

#[test]
fn a_transaction_of_reads_needs_no_log() {
    let (mut harness, _, _) = run(&then(vec![]));
    harness.store.publish();
    let view = harness.store.views().current();
    let compare = Compare { key: "a".into(), target_union: Some(TargetUnion::Version(1)), ..Compare::default() };
    let request = TxnRequest { compare: vec![compare], success: vec![get("a", 0), get("b", 3)], failure: vec![] };
    assert_eq!(short(&txn_read_only(&view, &request).unwrap()), "T@4 [get@4(a=1) get@4(b=x)]");
    let future = txn_read_only(&view, &then(vec![get("a", 5)]));
    assert!(matches!(future, Err(ApplyError::Answer(Answer::FutureRevision))));
    let write = txn_read_only(&view, &then(vec![put("a", "")]));
    assert!(matches!(write, Err(ApplyError::Failure(_))));
}

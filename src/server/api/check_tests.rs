//! Tables: which requests are refused, in which order, and which overlaps etcd sees.

use super::*;
use crate::proto::etcdserverpb::Compare;
use crate::server::apply::quota;
use crate::server::apply::txn::is_read_only;
use crate::server::apply::txn::is_serializable;

fn key(text: &str) -> Bytes {
    Bytes::copy_from_slice(text.as_bytes())
}

fn op(request: Request) -> RequestOp {
    RequestOp { request: Some(request) }
}

fn put_op(name: &str) -> RequestOp {
    op(Request::RequestPut(PutRequest { key: key(name), ..Default::default() }))
}

fn range_op(name: &str, serializable: bool) -> RequestOp {
    op(Request::RequestRange(RangeRequest { key: key(name), serializable, ..Default::default() }))
}

fn delete_op(from: &str, end: &str) -> RequestOp {
    op(Request::RequestDeleteRange(DeleteRangeRequest { key: key(from), range_end: key(end), prev_kv: false }))
}

fn branches(success: Vec<RequestOp>, failure: Vec<RequestOp>) -> TxnRequest {
    TxnRequest { compare: Vec::new(), success, failure }
}

fn nested(success: Vec<RequestOp>, failure: Vec<RequestOp>) -> RequestOp {
    op(Request::RequestTxn(branches(success, failure)))
}

fn compare(name: &str) -> Compare {
    Compare { key: key(name), ..Default::default() }
}

#[test]
fn ranges_are_checked_key_first() {
    let check = |name: &str, order: i32, target: i32, expected: Result<(), Answer>| {
        let request = RangeRequest { key: key(name), sort_order: order, sort_target: target, ..Default::default() };
        assert_eq!(range(&request), expected, "{name} {order} {target}");
    };
    check("k", 2, 4, Ok(()));
    check("", 9, 9, Err(Answer::EmptyKey));
    check("k", 3, 0, Err(Answer::InvalidSortOption));
    check("k", -1, 0, Err(Answer::InvalidSortOption));
    check("k", 0, 5, Err(Answer::InvalidSortOption));
}

#[test]
fn streams_take_key_order_without_filters_only() {
    let check = |change: fn(&mut RangeRequest), expected: Option<(Code, &str)>| {
        let mut request = RangeRequest { key: key("k"), ..Default::default() };
        change(&mut request);
        let status = range_stream(&request).err();
        assert_eq!(status.as_ref().map(|status| (status.code(), status.message())), expected);
    };
    let order = Some((Code::Unimplemented, "RangeStream does not support custom sort orders"));
    let filter = Some((Code::Unimplemented, "RangeStream does not support revision filters"));
    check(|_| (), None);
    check(|request| request.sort_order = 1, None);
    check(|request| request.sort_order = 2, order);
    check(|request| (request.sort_order, request.sort_target) = (1, 3), order);
    check(|request| request.sort_target = 1, order);
    check(|request| request.sort_order = 7, Some((Code::InvalidArgument, "etcdserver: invalid sort option")));
    check(|request| request.key.clear(), Some((Code::InvalidArgument, "etcdserver: key is not provided")));
    check(|request| request.min_mod_revision = 1, filter);
    check(|request| request.max_create_revision = -1, filter);
}

#[test]
fn puts_are_checked_key_value_lease() {
    let check = |name: &str, value: &str, lease: i64, ignore: (bool, bool), expected: Result<(), Answer>| {
        let request = PutRequest {
            key: key(name),
            value: key(value),
            lease,
            ignore_value: ignore.0,
            ignore_lease: ignore.1,
            prev_kv: false,
        };
        assert_eq!(put(&request), expected);
    };
    check("k", "v", 1, (false, false), Ok(()));
    check("", "v", 1, (true, true), Err(Answer::EmptyKey));
    check("k", "v", 1, (true, true), Err(Answer::ValueProvided));
    check("k", "", 1, (true, true), Err(Answer::LeaseProvided));
    check("k", "", 0, (true, true), Ok(()));
}

#[test]
fn txn_shapes_are_checked_in_etcds_order() {
    let check =
        |request: TxnRequest, expected: Result<(), Answer>| assert_eq!(txn(&request, 2), expected, "{request:?}");
    let three = vec![range_op("a", false), range_op("b", false), range_op("c", false)];
    check(branches(three.clone(), Vec::new()), Err(Answer::TooManyOps));
    check(branches(Vec::new(), three), Err(Answer::TooManyOps));
    let compares = vec![compare("a"), compare("b"), compare("")];
    check(TxnRequest { compare: compares.clone(), ..Default::default() }, Err(Answer::TooManyOps));
    check(TxnRequest { compare: compares[1..].to_vec(), ..Default::default() }, Err(Answer::EmptyKey));
    check(branches(vec![RequestOp { request: None }], Vec::new()), Err(Answer::KeyNotFound));
    check(branches(vec![put_op("a")], vec![put_op("")]), Err(Answer::EmptyKey));
    // Shape anywhere comes before overlap anywhere.
    check(branches(vec![put_op("a"), put_op("a")], vec![put_op("")]), Err(Answer::EmptyKey));
    check(branches(vec![put_op("a"), put_op("a")], Vec::new()), Err(Answer::DuplicateKey));
}

#[test]
fn the_budget_shrinks_with_nesting() {
    let leaf = || put_op("a");
    let check = |request: TxnRequest, ops_max: usize, expected: Result<(), Answer>| {
        assert_eq!(txn(&request, ops_max), expected);
    };
    check(branches(vec![nested(vec![leaf()], vec![])], vec![]), 2, Ok(()));
    check(branches(vec![nested(vec![leaf()], vec![])], vec![]), 1, Err(Answer::TooManyOps));
    // The longest list of the parent counts, also when the nested one stands in the other branch.
    check(branches(vec![leaf(), range_op("b", false)], vec![nested(vec![leaf()], vec![])]), 2, Err(Answer::TooManyOps));
    let mut deep = nested(vec![], vec![]);
    for _ in 0..100 {
        deep = nested(vec![deep], vec![]);
    }
    check(branches(vec![deep], vec![]), 1000, Err(Answer::TooManyOps));
}

#[test]
fn overlaps_are_seen_as_etcd_sees_them() {
    let check = |ops: Vec<RequestOp>, duplicate: bool| {
        let expected = if duplicate { Err(Answer::DuplicateKey) } else { Ok(()) };
        assert_eq!(txn(&branches(ops.clone(), Vec::new()), 128), expected, "then {ops:?}");
        assert_eq!(txn(&branches(Vec::new(), ops.clone()), 128), expected, "else {ops:?}");
    };
    let inner = |ops: Vec<RequestOp>| nested(ops, Vec::new());
    check(vec![put_op("a"), put_op("b")], false);
    check(vec![put_op("a"), put_op("a")], true);
    check(vec![put_op("b"), delete_op("a", "c")], true);
    check(vec![delete_op("a", "c"), put_op("b")], true);
    check(vec![delete_op("a", "c"), put_op("c")], false);
    check(vec![delete_op("b", ""), put_op("b")], true);
    check(vec![delete_op("a", "c"), delete_op("b", "d")], false);
    // Quirk: an open end is not seen.
    check(vec![delete_op("a", "\0"), put_op("b")], false);
    // One nested transaction may write a key in both branches, two siblings may not.
    check(vec![nested(vec![put_op("a")], vec![put_op("a")])], false);
    check(vec![inner(vec![put_op("a")]), inner(vec![put_op("a")])], true);
    check(vec![inner(vec![put_op("a")]), put_op("a")], true);
    check(vec![delete_op("a", "c"), inner(vec![put_op("b")])], true);
    // Quirk: a nested delete meets later siblings and the enclosing level only.
    check(vec![inner(vec![put_op("b")]), inner(vec![delete_op("a", "c")])], false);
    check(vec![inner(vec![delete_op("a", "c")]), inner(vec![put_op("b")])], true);
    check(vec![inner(vec![delete_op("a", "c")]), put_op("b")], true);
    // A delete in one branch and a put in the other of the same nested transaction never meet.
    check(vec![nested(vec![put_op("b")], vec![delete_op("a", "c")])], false);
}

#[test]
fn then_and_else_may_write_the_same_key() {
    assert_eq!(txn(&branches(vec![put_op("a")], vec![put_op("a")]), 128), Ok(()));
}

proptest::proptest! {
    /// What a socket brings is decoded and then checked or refused, whatever it is (reliability.md 4.5, F1).
    #[test]
    fn no_bytes_panic(bytes in proptest::collection::vec(proptest::prelude::any::<u8>(), 0..200)) {
        use prost::Message;
        if let Ok(request) = TxnRequest::decode(bytes.as_slice()) {
            let _ = (quota::txn_cost(&request), is_read_only(&request), is_serializable(&request), txn(&request, 128));
        }
        if let Ok(request) = RangeRequest::decode(bytes.as_slice()) {
            let _ = range_stream(&request);
        }
    }

    /// The check against a slow one that lists what each branch writes, for branches without nesting.
    #[test]
    fn flat_overlaps_equal_the_naive_answer(ops in proptest::collection::vec((0..2u8, 0..4u8, 0..5u8), 0..6)) {
        let name = |number: u8| char::from(b'a' + number).to_string();
        let branch: Vec<RequestOp> = ops
            .iter()
            .map(|(kind, from, end)| if *kind == 0 { put_op(&name(*from)) } else { delete_op(&name(*from), &name(*end)) })
            .collect();
        let puts: Vec<u8> = ops.iter().filter(|op| op.0 == 0).map(|op| op.1).collect();
        let twice = puts.iter().enumerate().any(|(at, key)| puts[..at].contains(key));
        let deleted = ops.iter().filter(|op| op.0 == 1).any(|(_, from, end)| puts.iter().any(|key| (from..end).contains(&key)));
        let expected = if twice || deleted { Err(Answer::DuplicateKey) } else { Ok(()) };
        proptest::prop_assert_eq!(txn(&branches(branch, Vec::new()), 128), expected);
    }
}

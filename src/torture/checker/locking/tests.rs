//! Two who want one lock, and every lie that they could be told.

use super::*;
use crate::proto::etcdserverpb::Compare;
use crate::proto::etcdserverpb::LeaseGrantRequest;
use crate::proto::etcdserverpb::LeaseRevokeRequest;
use crate::proto::etcdserverpb::PutRequest;
use crate::proto::etcdserverpb::RangeRequest;
use crate::proto::etcdserverpb::compare::CompareTarget;
use crate::torture::checker::Operation;
use crate::torture::checker::Outcome;

const A: &str = "lock/a/1";
const B: &str = "lock/a/2";

fn op(request: request_op::Request) -> RequestOp {
    RequestOp { request: Some(request) }
}

fn created(key: &str, revision: i64) -> Compare {
    Compare {
        target: CompareTarget::Create.into(),
        key: key.to_owned().into(),
        target_union: Some(TargetUnion::CreateRevision(revision)),
        ..Compare::default()
    }
}

fn enter(key: &str, lease: i64) -> Request {
    let put = PutRequest { key: key.to_owned().into(), lease, ..PutRequest::default() };
    let read = RangeRequest { key: key.to_owned().into(), ..RangeRequest::default() };
    Request::Txn(TxnRequest {
        compare: vec![created(key, 0)],
        success: vec![op(request_op::Request::RequestPut(put))],
        failure: vec![op(request_op::Request::RequestRange(read))],
    })
}

fn guarded(key: &str, revision: i64) -> Request {
    let put = PutRequest { key: "k".into(), value: "v".into(), ..PutRequest::default() };
    Request::Txn(TxnRequest {
        compare: vec![created(key, revision)],
        success: vec![op(request_op::Request::RequestPut(put))],
        failure: Vec::new(),
    })
}

fn grant(id: i64) -> Request {
    Request::LeaseGrant(LeaseGrantRequest { id, ttl: 3 })
}

fn said(start: u64, end: u64, key: &str, said: Said) -> LockCall {
    LockCall { start, end, key: key.to_owned(), said }
}

fn granted(revision: i64) -> Said {
    Said::Granted { revision, created: None }
}

/// A enters at 2, B at 3; A writes under its lock at 4 and goes at 5; B writes at 6, and its lease ends at 7.
fn history() -> History {
    let log = vec![
        grant(1),
        grant(2),
        enter(A, 1),
        enter(B, 2),
        guarded(A, 2),
        Request::DeleteRange(DeleteRangeRequest { key: A.into(), ..DeleteRangeRequest::default() }),
        guarded(B, 3),
        Request::LeaseRevoke(LeaseRevokeRequest { id: 2 }),
    ];
    let owned = log.iter().enumerate().filter(|(_, request)| !is_of_locks(request));
    let operations = owned.map(|(at, request)| {
        let start = at as u64 * 10;
        Operation { connection: start, start, end: 0, request: request.clone(), outcome: Outcome::Unknown }
    });
    let locks = vec![
        said(20, 25, A, granted(2)),
        said(50, 55, A, Said::Released { revision: 5, created: Some(2) }),
        said(30, 58, B, granted(5)),
    ];
    History { operations: operations.collect(), log, locks, leases_expire: true, ..History::default() }
}

fn found(change: impl FnOnce(&mut History)) -> Vec<String> {
    let mut history = history();
    change(&mut history);
    super::super::check(&history).iter().map(ToString::to_string).collect()
}

fn lie(change: impl FnOnce(&mut History), expected: &str) {
    let found = found(change);
    assert!(found.iter().any(|text| text.contains(expected)), "{expected}: {found:#?}");
}

#[test]
fn a_lock_that_goes_from_hand_to_hand_passes() {
    assert_eq!(found(|_| {}), Vec::<String>::new());
    // At any revision of its time.
    assert_eq!(found(|history| history.locks[0].said = granted(3)), Vec::<String>::new());
    let later = |history: &mut History| (history.locks[2].said, history.locks[2].end) = (granted(6), 65);
    assert_eq!(found(later), Vec::<String>::new());
    assert_eq!(
        found(|history| history.locks[2].said = Said::Granted { revision: 5, created: Some(3) }),
        Vec::<String>::new()
    );
    assert_eq!(found(|history| history.locks[2].said = Said::Elected { created: 3 }), Vec::<String>::new());
    assert_eq!(found(|history| history.locks[2].said = Said::Not("late".to_owned())), Vec::<String>::new());
}

#[test]
fn a_second_holder_is_found() {
    lie(|history| history.locks[2].said = granted(4), "an older one stood before it until 5");
    lie(|history| history.locks[2].said = granted(3), "an older one stood before it");
    lie(|history| drop(history.log.remove(5)), "for ever");
}

#[test]
fn a_grant_without_a_place_is_found() {
    lie(|history| history.locks[0].said = granted(5), "where its key was not");
    lie(|history| history.locks[2].said = granted(7), "where its key was not");
    lie(|history| history.locks[2].said = Said::Granted { revision: 5, created: Some(4) }, "of another time");
    lie(|history| history.locks[2].said = granted(9), "never was");
    lie(|history| history.locks[2].said = Said::Elected { created: 4 }, "not made at 4");
}

#[test]
fn a_grant_from_the_past_or_the_future_is_found() {
    lie(|history| history.locks[2].end = 39, "before it was sent");
    lie(
        |history| {
            let read = RangeRequest { key: "k".into(), ..RangeRequest::default() };
            let seen = Model::default().read(&read, 6);
            let outcome = Outcome::Replied(seen);
            history.operations.push(Operation {
                connection: 99,
                start: 65,
                end: 66,
                request: Request::Range(read),
                outcome,
            });
            history.locks[2].start = 67;
        },
        "after 6 had been acknowledged",
    );
}

#[test]
fn who_was_gone_before_its_turn_is_not_elected() {
    let dies = |history: &mut History| {
        // B's lease ends while A holds the lock.
        let end = history.log.remove(7);
        history.log.remove(6);
        history.log.insert(4, end);
        history
            .operations
            .retain(|call| !matches!(&call.request, Request::Txn(txn) if *txn.compare[0].key == *B.as_bytes()));
        history.locks[1].said = Said::Released { revision: 6, created: Some(2) };
        history.locks[2].said = Said::Elected { created: 3 };
    };
    lie(dies, "before it led");
}

#[test]
fn a_place_that_stays_and_one_that_nobody_asked_for_are_found() {
    lie(|history| history.locks[1].said = Said::Released { revision: 4, created: Some(2) }, "still there");
    lie(|history| drop(history.locks.remove(2)), "made 1 times, asked for 0 times");
}

#[test]
fn a_write_under_a_lock_that_another_holds_is_found() {
    let early = |history: &mut History| {
        let write = history.log.remove(6);
        history.log.insert(4, write);
    };
    lie(early, "where it did not hold the lock");
    // A guard that fails is as it should be.
    let late = |history: &mut History| {
        let write = history.log.remove(4);
        history.log.insert(6, write);
        history.locks[1].said = Said::Released { revision: 4, created: Some(2) };
        history.locks[2].said = granted(4);
        history.operations.retain(|call| !matches!(call.request, Request::LeaseRevoke(_)));
    };
    assert_eq!(found(late), Vec::<String>::new());
}

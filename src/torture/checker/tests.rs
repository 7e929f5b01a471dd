//! Histories with one planted violation each: every kind is found, and the same history without it is clean.

use bytes::Bytes;

use super::*;
use crate::proto::etcdserverpb::CompactionRequest;
use crate::proto::etcdserverpb::Compare;
use crate::proto::etcdserverpb::DeleteRangeRequest;
use crate::proto::etcdserverpb::PutRequest;
use crate::proto::etcdserverpb::RequestOp;
use crate::proto::etcdserverpb::TxnRequest;
use crate::proto::etcdserverpb::compare::TargetUnion;
use crate::proto::etcdserverpb::request_op;
use crate::proto::etcdserverpb::response_op;

fn put(key: &'static str, value: &'static str) -> Request {
    let (key, value) = (Bytes::from(key), Bytes::from(value));
    Request::Put(PutRequest { key, value, prev_kv: true, ..PutRequest::default() })
}

fn delete(key: &'static str) -> Request {
    Request::DeleteRange(DeleteRangeRequest { key: Bytes::from(key), prev_kv: true, ..DeleteRangeRequest::default() })
}

fn compact(revision: i64) -> Request {
    Request::Compact(CompactionRequest { revision, ..CompactionRequest::default() })
}

/// If `key` has `version`, it becomes `value`; otherwise it is read.
fn txn(key: &'static str, version: i64, value: &'static str) -> Request {
    let op = |request| RequestOp { request: Some(request) };
    let Request::Put(put) = put(key, value) else { unreachable!("made as a put") };
    let compare =
        Compare { key: Bytes::from(key), target_union: Some(TargetUnion::Version(version)), ..Compare::default() };
    let read = RangeRequest { key: Bytes::from(key), ..RangeRequest::default() };
    Request::Txn(TxnRequest {
        compare: vec![compare],
        success: vec![op(request_op::Request::RequestPut(put))],
        failure: vec![op(request_op::Request::RequestRange(read))],
    })
}

fn read_at(revision: i64, serializable: bool) -> Request {
    let (key, range_end) = (Bytes::from_static(b"\0"), Bytes::from_static(b"\0"));
    Request::Range(RangeRequest { key, range_end, revision, serializable, ..RangeRequest::default() })
}

fn read() -> Request {
    read_at(0, false)
}

/// Records what the model itself would answer, call after call.
#[derive(Default)]
struct Recorder {
    history: History,
    model: Model,
    now: u64,
}

impl Recorder {
    /// A call that begins and ends now, on its own connection, answered rightly. Its position.
    fn call(&mut self, request: Request) -> usize {
        let outcome = match &request {
            Request::Range(range) => Outcome::Replied(self.model.read(range, self.model.revision())),
            write => {
                self.history.log.push(write.clone());
                match self.model.apply(write) {
                    Ok(response) => Outcome::Replied(response),
                    Err(answer) => Outcome::Failed(answer),
                }
            }
        };
        self.add(request, outcome)
    }

    fn add(&mut self, request: Request, outcome: Outcome) -> usize {
        let connection = self.history.operations.len() as u64;
        let (start, end) = (self.now + 1, self.now + 2);
        self.now += 2;
        self.history.operations.push(Operation { connection, start, end, request, outcome });
        self.history.operations.len() - 1
    }

    fn at(&mut self, operation: usize) -> &mut Operation {
        &mut self.history.operations[operation]
    }

    /// The only violation there is.
    fn only(&self) -> Violation {
        let found = check(&self.history);
        assert_eq!(found.len(), 1, "{found:?}");
        found[0].clone()
    }
}

/// put a, put b, put a, delete b, txn a, read: 0 to 5.
fn some() -> Recorder {
    let mut recorder = Recorder::default();
    for request in [put("a", "1"), put("b", "2"), put("a", "3"), delete("b"), txn("a", 2, "4"), read()] {
        recorder.call(request);
    }
    assert_eq!(check(&recorder.history), []);
    recorder
}

#[test]
fn a_clean_history_of_all_kinds_is_clean() {
    let mut recorder = some();
    for request in [delete("none"), txn("a", 9, "5"), compact(4), compact(4), compact(99), read_at(5, true), read()] {
        recorder.call(request);
    }
    recorder.add(put("u", "never came"), Outcome::Unknown);
    recorder.add(put("r", "refused"), Outcome::Refused);
    recorder.add(read_at(3, false), Outcome::Failed(Answer::Compacted));
    recorder.add(read_at(90, false), Outcome::Failed(Answer::FutureRevision));
    let prints = [1, 2].map(|member| Fingerprint { member, revision: 6, compact_revision: 4, hash: 7 });
    recorder.history.fingerprints = prints.to_vec();
    assert_eq!(check(&recorder.history), []);
}

#[test]
fn an_acknowledged_write_that_is_not_in_the_log_is_lost() {
    let mut recorder = some();
    let revision = recorder.model.revision();
    let response = recorder.model.clone().apply(&put("c", "9")).unwrap();
    assert_eq!(response.revision(), revision + 1);
    let operation = recorder.add(put("c", "9"), Outcome::Replied(response));
    // The revision of its reply was never reached: the log ends before it.
    assert_eq!(check(&recorder.history)[0], Violation::Lost { operation });
}

#[test]
fn a_write_that_is_applied_twice_is_nobodys_the_second_time() {
    let mut recorder = some();
    recorder.history.log.push(put("a", "3"));
    assert_eq!(recorder.only(), Violation::Phantom { entry: 5 });
}

#[test]
fn every_field_of_a_reply_counts() {
    type Alter = fn(&mut Response);
    let alter: [(usize, Alter); 4] = [
        (2, |response| {
            if let Response::Put(put) = response {
                put.prev_kv.as_mut().unwrap().version += 1
            }
        }),
        (3, |response| {
            if let Response::DeleteRange(delete) = response {
                delete.deleted += 1
            }
        }),
        (4, |response| {
            if let Response::Txn(txn) = response {
                txn.succeeded = false
            }
        }),
        (4, |response| {
            if let Response::Txn(txn) = response {
                let Some(response_op::Response::ResponsePut(put)) = &mut txn.responses[0].response else {
                    panic!("a put")
                };
                put.prev_kv = None;
            }
        }),
    ];
    for (operation, alter) in alter {
        let mut recorder = some();
        let Outcome::Replied(response) = &mut recorder.at(operation).outcome else { panic!("answered") };
        alter(response);
        let found = recorder.only();
        assert!(matches!(&found, Violation::WrongReply { operation: at, .. } if *at == operation), "{found:?}");
    }
}

#[test]
fn two_writes_with_one_revision_are_found() {
    let mut recorder = some();
    let Outcome::Replied(Response::Put(put)) = &mut recorder.at(1).outcome else { panic!("a put") };
    put.header.as_mut().unwrap().revision = 2;
    assert!(matches!(recorder.only(), Violation::WrongReply { operation: 1, .. }));
}

#[test]
fn a_compaction_may_be_answered_with_a_later_revision_and_not_with_an_earlier_one() {
    for (further, expected) in [(1, 0), (0, 0), (-1, 1)] {
        let mut recorder = some();
        let operation = recorder.call(compact(3));
        recorder.call(put("a", "later"));
        recorder.at(operation).end = 100;
        let Outcome::Replied(Response::Compact(compacted)) = &mut recorder.at(operation).outcome else {
            panic!("a compaction")
        };
        compacted.header.as_mut().unwrap().revision += further;
        let wrong = check(&recorder.history);
        let wrong = wrong.iter().filter(|found| matches!(found, Violation::WrongReply { .. })).count();
        assert_eq!(wrong, expected, "{further}");
    }
}

#[test]
fn what_is_behind_the_known_end_of_the_log_is_not_blamed() {
    let mut recorder = some();
    recorder.call(put("c", "acknowledged last"));
    recorder.call(read());
    recorder.history.log.pop();
    assert!(check(&recorder.history).len() >= 2);
    recorder.history.tail_unknown = true;
    assert_eq!(check(&recorder.history), []);
    // What is before it is.
    recorder.history.log.pop();
    recorder.history.log.push(put("x", "never sent"));
    assert!(!check(&recorder.history).is_empty());
}

#[test]
fn members_that_end_elsewhere_than_the_log_are_adrift() {
    let mut recorder = some();
    let member = Fingerprint { member: 1, revision: 5, compact_revision: -1, hash: 7 };
    recorder.history.fingerprints = vec![member, Fingerprint { member: 2, ..member }];
    assert_eq!(recorder.only(), Violation::Adrift { revision: 6, member });
}

#[test]
fn an_error_that_the_order_does_not_give_is_wrong() {
    let mut recorder = some();
    let operation = recorder.call(compact(3));
    recorder.at(operation).outcome = Outcome::Failed(Answer::Compacted);
    assert!(matches!(recorder.only(), Violation::WrongReply { operation: at, .. } if at == operation));
}

#[test]
fn a_write_behind_one_that_was_answered_before_it_was_sent() {
    let mut recorder = some();
    // Operation 0 was sent when operation 1 had been answered, and stands before it.
    (recorder.at(0).start, recorder.at(0).end) = (100, 101);
    let found = check(&recorder.history);
    assert!(found.contains(&Violation::RealTime { operation: 0, entry: 0 }), "{found:?}");
}

#[test]
fn a_linearizable_read_is_not_old_and_a_serializable_one_may_be() {
    for serializable in [false, true] {
        let mut recorder = some();
        let Request::Range(range) = read_at(0, serializable) else { unreachable!("made as a range") };
        let old = recorder.model.read(&range, 3);
        let operation = recorder.add(Request::Range(range), Outcome::Replied(old));
        let expected = Violation::Stale { operation, revision: 3, acknowledged: 6 };
        let expected = if serializable { vec![] } else { vec![expected] };
        assert_eq!(check(&recorder.history), expected);
    }
}

#[test]
fn a_read_that_began_before_the_write_was_answered_may_be_old() {
    let mut recorder = some();
    let Request::Range(range) = read() else { unreachable!("made as a range") };
    let old = recorder.model.read(&range, 5);
    let operation = recorder.add(read(), Outcome::Replied(old));
    recorder.at(5).end = 50;
    recorder.at(4).end = 50;
    recorder.at(5).start = 11;
    recorder.at(operation).start = 10;
    assert_eq!(check(&recorder.history), []);
}

#[test]
fn a_read_that_saw_a_write_before_it_was_sent() {
    let mut recorder = some();
    let Request::Range(range) = read_at(0, true) else { unreachable!("made as a range") };
    let newest = recorder.model.read(&range, 6);
    let operation = recorder.add(Request::Range(range), Outcome::Replied(newest));
    (recorder.at(operation).start, recorder.at(operation).end) = (1, 2);
    assert_eq!(recorder.only(), Violation::FromTheFuture { operation, revision: 6 });
}

#[test]
fn the_content_of_a_read_is_the_state_at_its_revision() {
    let alter: [fn(&mut RangeResponse); 4] = [
        |range| range.kvs[0].value = Bytes::from_static(b"other"),
        |range| range.kvs.clear(),
        |range| range.count += 1,
        |range| range.more = true,
    ];
    for alter in alter {
        let mut recorder = some();
        let Outcome::Replied(Response::Range(range)) = &mut recorder.at(5).outcome else { panic!("a range") };
        alter(range);
        assert!(matches!(recorder.only(), Violation::WrongContent { operation: 5, .. }));
    }
}

#[test]
fn a_compacted_revision_is_an_error_from_then_on_and_not_before() {
    let mut recorder = some();
    let early = recorder.add(read_at(3, false), Outcome::Failed(Answer::Compacted));
    assert!(matches!(recorder.only(), Violation::WrongContent { operation, .. } if operation == early));
    recorder.at(early).outcome = Outcome::Unknown;
    recorder.call(compact(4));
    let late = recorder.call(read_at(3, false));
    assert!(matches!(recorder.only(), Violation::WrongContent { operation, .. } if operation == late));
}

#[test]
fn a_write_of_unknown_outcome_may_be_there_once_but_not_before_it_was_sent() {
    let mut recorder = some();
    recorder.at(2).outcome = Outcome::Unknown;
    assert_eq!(check(&recorder.history), []);
    recorder.at(2).start = 100;
    let found = check(&recorder.history);
    assert!(found.contains(&Violation::RealTime { operation: 2, entry: 2 }), "{found:?}");
}

#[test]
fn a_refused_write_is_never_there() {
    let mut recorder = some();
    recorder.at(2).outcome = Outcome::Refused;
    assert_eq!(recorder.only(), Violation::RefusedButDone { operation: 2, entry: 2 });
}

#[test]
fn a_write_that_nobody_sent_is_a_phantom() {
    let mut recorder = some();
    recorder.history.log.push(put("z", "?"));
    assert_eq!(recorder.only(), Violation::Phantom { entry: 5 });
}

#[test]
fn a_connection_never_goes_back() {
    let mut recorder = some();
    let Request::Range(range) = read_at(0, true) else { unreachable!("made as a range") };
    let old = recorder.model.read(&range, 3);
    let operation = recorder.add(Request::Range(range), Outcome::Replied(old));
    assert_eq!(check(&recorder.history), []);
    recorder.at(operation).connection = 5;
    assert_eq!(recorder.only(), Violation::WentBack { operation, revision: 3, before: 6 });
}

#[test]
fn members_that_differ_at_the_end_have_diverged() {
    let print = Fingerprint { member: 1, revision: 6, compact_revision: -1, hash: 7 };
    for other in [
        Fingerprint { member: 2, hash: 8, ..print },
        Fingerprint { member: 2, revision: 5, ..print },
        Fingerprint { member: 2, compact_revision: 3, ..print },
    ] {
        let mut recorder = some();
        recorder.history.fingerprints = vec![print, other];
        assert_eq!(recorder.only(), Violation::Diverged(print, other));
    }
}

//! Put, delete and compact, and the leases that writes move.

use super::*;
use crate::server::apply::kv::test_leases::TestLeases;
use crate::server::mvcc::testing::harness::Harness;

struct Bench {
    harness: Harness,
    leases: TestLeases,
}

impl Bench {
    fn new() -> Bench {
        Bench { harness: Harness::default(), leases: TestLeases::with(&[5, 7]) }
    }

    fn put(&mut self, request: PutRequest) -> Result<PutResponse, Answer> {
        answer(put(&mut self.harness.store, &mut self.leases, &request))
    }

    fn delete(&mut self, key: &'static str, range_end: &'static str, prev_kv: bool) -> DeleteRangeResponse {
        let request = DeleteRangeRequest { key: key.into(), range_end: range_end.into(), prev_kv };
        delete_range(&mut self.harness.store, &mut self.leases, &request).unwrap()
    }

    fn get(&self, key: &'static str) -> Option<KeyValue> {
        let request = RangeRequest { key: key.into(), ..RangeRequest::default() };
        range(&self.harness.store, &request).unwrap().kvs.pop()
    }
}

fn answer<T>(result: Result<T, ApplyError>) -> Result<T, Answer> {
    result.map_err(|error| match error {
        ApplyError::Answer(answer) => answer,
        ApplyError::Failure(failure) => panic!("{failure}"),
    })
}

fn request(key: &'static str, value: &'static str, lease: i64) -> PutRequest {
    PutRequest { key: key.into(), value: value.into(), lease, ..PutRequest::default() }
}

fn revision(header: Option<crate::proto::etcdserverpb::ResponseHeader>) -> i64 {
    header.unwrap().revision
}

#[test]
fn a_put_always_makes_a_revision() {
    let mut bench = Bench::new();
    assert_eq!(revision(bench.put(request("a", "1", 0)).unwrap().header), 2);
    assert_eq!(revision(bench.put(request("a", "1", 0)).unwrap().header), 3);
    let kv = bench.get("a").unwrap();
    assert_eq!((kv.create_revision, kv.mod_revision, kv.version), (2, 3, 2));
    bench.delete("a", "", false);
    bench.put(request("a", "2", 0)).unwrap();
    let kv = bench.get("a").unwrap();
    assert_eq!((kv.create_revision, kv.mod_revision, kv.version), (5, 5, 1));
}

#[test]
fn prev_kv_is_the_pair_before() {
    let mut bench = Bench::new();
    let with_prev = |value| PutRequest { prev_kv: true, ..request("a", value, 0) };
    assert_eq!(bench.put(with_prev("1")).unwrap().prev_kv, None);
    bench.harness.flush();
    bench.harness.restart();
    let prev = bench.put(with_prev("2")).unwrap().prev_kv.unwrap();
    assert_eq!((prev.value, prev.mod_revision, prev.version), (Bytes::from("1"), 2, 1));
    let deleted = bench.delete("a", "", true);
    assert_eq!(deleted.prev_kvs[0].value, "2");
    assert_eq!(bench.put(with_prev("3")).unwrap().prev_kv, None);
}

#[test]
fn a_put_moves_the_key_between_leases() {
    let cases: [(&[i64], bool, &str); 6] = [
        (&[5], false, "5:k 7:"),
        (&[5, 5], false, "5:k 7:"),
        (&[5, 7], false, "5: 7:k"),
        (&[5, 0], false, "5: 7:"),
        (&[5], true, "5:k 7:"),
        (&[0], true, "5: 7:"),
    ];
    for (puts, then_ignore_lease, expected) in cases {
        for flush in [false, true] {
            let mut bench = Bench::new();
            for lease in puts {
                bench.put(request("k", "v", *lease)).unwrap();
                if flush {
                    bench.harness.flush();
                    bench.harness.restart();
                }
            }
            if then_ignore_lease {
                bench.put(PutRequest { ignore_lease: true, ..request("k", "w", 0) }).unwrap();
            }
            assert_eq!(bench.leases.text(), expected, "{puts:?}");
            bench.delete("k", "", false);
            assert_eq!(bench.leases.text(), "5: 7:");
        }
    }
}

#[test]
fn ignored_fields_come_from_the_old_pair() {
    let mut bench = Bench::new();
    bench.put(request("k", "v", 5)).unwrap();
    bench.put(PutRequest { ignore_value: true, ..request("k", "", 7) }).unwrap();
    let kv = bench.get("k").unwrap();
    assert_eq!((kv.value, kv.lease), (Bytes::from("v"), 7));
    bench.put(PutRequest { ignore_lease: true, ..request("k", "w", 0) }).unwrap();
    let kv = bench.get("k").unwrap();
    assert_eq!((kv.value, kv.lease), (Bytes::from("w"), 7));
    bench.put(PutRequest { ignore_value: true, ..request("k", "", 0) }).unwrap();
    assert_eq!((bench.get("k").unwrap().lease, bench.leases.text().as_str()), (0, "5: 7:"));
}

#[test]
fn refused_puts_change_nothing() {
    let mut bench = Bench::new();
    let cases = [
        (PutRequest { ignore_value: true, ..request("k", "", 0) }, Answer::KeyNotFound),
        (PutRequest { ignore_lease: true, ..request("k", "v", 0) }, Answer::KeyNotFound),
        (request("k", "v", 9), Answer::LeaseNotFound),
        (PutRequest { ignore_value: true, ..request("k", "", 9) }, Answer::LeaseNotFound),
        (request("k", "v", -1), Answer::LeaseNotFound),
    ];
    for (request, expected) in cases {
        assert_eq!(bench.put(request).unwrap_err(), expected);
        assert_eq!(bench.harness.store.revision(), 1);
    }
}

#[test]
fn deletes_count_and_share_one_revision() {
    let mut bench = Bench::new();
    for key in ["a", "b", "c", "d"] {
        bench.put(request(key, "v", 5)).unwrap();
    }
    let cases =
        [("x", "", 0, 5), ("c", "a", 0, 5), ("b", "b", 0, 5), ("a", "c", 2, 6), ("a", "c", 0, 6), ("c", "\0", 2, 7)];
    for (key, end, deleted, expected) in cases {
        let response = bench.delete(key, end, false);
        assert_eq!((response.deleted, revision(response.header)), (deleted, expected), "{key} {end}");
        assert!(response.prev_kvs.is_empty());
    }
    let subs: Vec<_> = bench.harness.store.recent(6, 6).into_iter().map(|r| (r.revision.sub, r.kv.key)).collect();
    assert_eq!(subs, [(0, Bytes::from("a")), (1, Bytes::from("b"))]);
    assert_eq!(bench.leases.text(), "5: 7:");
}

#[test]
fn a_revoked_lease_takes_its_keys_in_one_revision() {
    let mut bench = Bench::new();
    let keys = ["a", "b", "c"].map(Bytes::from);
    bench.put(request("a", "v", 5)).unwrap();
    bench.put(request("c", "v", 5)).unwrap();
    let committed = delete_keys(&mut bench.harness.store, &mut bench.leases, &keys).unwrap();
    assert_eq!((committed.revision, committed.changes), (4, 2));
    let committed = delete_keys(&mut bench.harness.store, &mut bench.leases, &keys).unwrap();
    assert_eq!((committed.revision, committed.changes), (4, 0));
    assert_eq!(bench.leases.text(), "5: 7:");
}

#[test]
fn compaction_takes_each_revision_once() {
    let mut bench = Bench::new();
    bench.put(request("a", "v", 0)).unwrap();
    bench.put(request("a", "w", 0)).unwrap();
    let mut compacted = |at: i64| {
        let request = CompactionRequest { revision: at, physical: false };
        answer(compact(&mut bench.harness.store, &request)).map(|response| revision(response.header))
    };
    assert_eq!(compacted(-1), Err(Answer::Compacted));
    assert_eq!(compacted(4), Err(Answer::FutureRevision));
    assert_eq!(compacted(0), Ok(3));
    assert_eq!(compacted(0), Err(Answer::Compacted));
    assert_eq!(compacted(3), Ok(3));
    assert_eq!(compacted(2), Err(Answer::Compacted));
}

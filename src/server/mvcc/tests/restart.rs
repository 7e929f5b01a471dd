//! What a restart must find again, and what it must refuse.

use std::sync::Arc;

use bytes::Bytes;

use crate::common::failure::Failure;
use crate::common::revision::Revision;
use crate::proto::mvccpb::KeyValue;
use crate::server::checkpoint::Bucket;
use crate::server::checkpoint::Buckets;
use crate::server::checkpoint::Record;
use crate::server::mvcc::compaction::FINISHED;
use crate::server::mvcc::compaction::Progress;
use crate::server::mvcc::compaction::SCHEDULED;
use crate::server::mvcc::hash::hash_kv;
use crate::server::mvcc::store::Store;
use crate::server::mvcc::testing::harness::Harness;
use crate::server::mvcc::testing::tables::MemoryTables;
use crate::server::mvcc::view::Keys;
use crate::server::mvcc::view::Records;

fn put(store: &mut Store, key: &str, lease: i64) {
    let mut txn = store.begin();
    txn.put(&Bytes::from(key.to_owned()), Bytes::from_static(b"v"), lease);
    txn.commit();
}

fn delete(store: &mut Store, key: &str) {
    let mut txn = store.begin();
    txn.delete(&Bytes::from(key.to_owned()));
    txn.commit();
}

#[test]
fn an_empty_store_hashes_as_etcds() {
    let harness = Harness::default();
    let hash = hash_kv(&harness.store.views(), 0).unwrap();
    assert_eq!((hash.hash, hash.compact_revision, hash.hash_revision), (1_084_519_789, -1, 1));
    let negative = hash_kv(&harness.store.views(), -5).unwrap();
    assert_eq!((negative.hash, negative.hash_revision), (1_084_519_789, -5));
}

#[test]
fn a_compaction_to_0_is_remembered_as_revision_0() {
    let mut harness = Harness::default();
    put(&mut harness.store, "a", 0);
    harness.store.compact(0).unwrap();
    harness.finish_compactions();
    let hash = hash_kv(&harness.store.views(), 0).unwrap();
    assert_eq!((hash.hash, hash.compact_revision, hash.hash_revision, hash.revision), (1_084_519_789, -1, 0, 2));
}

/// B4, etcd 17780: the newest records were tombstones, compacted away, and the power went before the mark that says so:
/// the member started at a lower revision and gave the same numbers out again. The mark is or is not written here.
#[test]
fn b04_the_revision_never_goes_back() {
    for steps_before_crash in 0..20 {
        let mut harness = Harness::default();
        (0..10).for_each(|i| put(&mut harness.store, &format!("k{i}"), 0));
        (0..10).for_each(|i| delete(&mut harness.store, &format!("k{i}")));
        let revision = harness.store.revision();
        put(&mut harness.store, "last", 0);
        delete(&mut harness.store, "last");
        harness.store.compact(revision + 2).unwrap();
        for _ in 0..steps_before_crash {
            harness.store.compaction_step(3).unwrap();
        }
        harness.flush();
        harness.restart();
        assert_eq!(harness.store.revision(), revision + 2);
        assert_eq!(harness.store.compact_revision(), revision + 2);
        harness.finish_compactions();
        harness.flush();
        assert_eq!(harness.tables.stored(), 1, "the tombstone at the compaction revision stays for watchers");
        put(&mut harness.store, "next", 0);
        harness.store.compact(revision + 3).unwrap();
        harness.finish_compactions();
        harness.flush();
        assert_eq!(harness.tables.stored(), 1, "and goes with the next compaction");
        harness.restart();
        assert_eq!(harness.store.revision(), revision + 3);
    }
}

/// B4, etcd 17780, where no record is left to tell: whichever mark of the compaction is there counts as a revision.
#[test]
fn b04_marks_of_compactions_count_as_revisions() {
    for (name, scheduled_only) in [(SCHEDULED, true), (FINISHED, false)] {
        let key = (Bucket::Meta, Bytes::from_static(name.as_bytes()));
        let mark = Bytes::copy_from_slice(&Revision::new(10, 0).storage_key());
        let store = Store::restore(Arc::new(MemoryTables::default()), &Buckets::from([(key, mark)])).unwrap();
        assert_eq!((store.revision(), store.compact_revision()), (10, 10), "{name}");
        assert_eq!(store.is_compacting(), scheduled_only);
    }
}

/// B40, kine 61 and 311 (k3s 2523): a compaction deleted rows that were still the newest of their key, and a store
/// whose newest revision was compacted did not start.
#[test]
fn b40_compacting_everything_keeps_live_keys() {
    let mut harness = Harness::default();
    (0..300).for_each(|i| put(&mut harness.store, &format!("k{}", i % 7), 0));
    harness.store.compact(harness.store.revision()).unwrap();
    harness.finish_compactions();
    harness.flush();
    harness.restart();
    assert_eq!((harness.tables.stored(), harness.store.revision()), (7, 301));
    assert_eq!(harness.store.views().current().index().live_keys(), 7);
}

#[test]
fn a_compaction_asked_for_while_one_runs_waits_its_turn() {
    let mut harness = Harness::default();
    (0..10).for_each(|_| put(&mut harness.store, "k", 0));
    for at in [3, 5, 7] {
        harness.store.compact(at).unwrap();
    }
    let mut finished = Vec::new();
    while let progress @ (Progress::Working | Progress::Finished(_)) = harness.store.compaction_step(100).unwrap() {
        if let Progress::Finished(at) = progress {
            finished.push(at);
        }
    }
    assert_eq!((finished, harness.store.finished_compaction()), (vec![3, 7], 7));
}

#[test]
fn leased_keys_are_found_again() {
    let mut harness = Harness::default();
    for (key, lease) in [("b", 5), ("a", 7), ("c", 7), ("d", 9), ("b", 6), ("c", 0)] {
        put(&mut harness.store, key, lease);
    }
    delete(&mut harness.store, "d");
    harness.flush();
    harness.restart();
    assert_eq!(harness.store.take_leased(), [(Bytes::from("a"), 7), (Bytes::from("b"), 6)]);
    assert!(harness.store.take_leased().is_empty());
}

#[test]
fn leftovers_of_an_older_writer_go_with_the_next_compaction() {
    let mut harness = Harness::default();
    ["a", "a", "b"].iter().for_each(|key| put(&mut harness.store, key, 0));
    delete(&mut harness.store, "b");
    (0..5).for_each(|_| put(&mut harness.store, "c", 0));
    harness.flush();
    for name in [SCHEDULED, FINISHED] {
        let mark = Bytes::copy_from_slice(&Revision::new(6, 0).storage_key());
        harness.buckets.insert((Bucket::Meta, Bytes::from_static(name.as_bytes())), mark);
    }
    harness.restart();
    assert!(!harness.store.is_compacting());
    harness.store.compact(7).unwrap();
    harness.finish_compactions();
    harness.flush();
    assert_eq!(harness.tables.stored(), 5, "a, and c from revision 7 on");
}

#[test]
fn contradicting_headers_are_damage() {
    let record = |main: i64, sub: i64, version: i64, create_revision: i64| Record {
        revision: Revision::new(main, sub),
        tombstone: false,
        kv: KeyValue { key: "k".into(), version, create_revision, mod_revision: main, ..KeyValue::default() },
    };
    for bad in [
        record(i64::MAX, 0, 1, 2),
        record(5, 0, i64::MAX, 2),
        record(5, 0, 0, 2),
        record(5, 0, 1, 6),
        record(5, 0, 1, -1),
        record(5, 1 << 31, 1, 5),
    ] {
        let tables = MemoryTables::default().with(&[record(2, 0, 1, 2), bad], &[]);
        assert!(matches!(Store::restore(Arc::new(tables), &Buckets::new()), Err(Failure::Damaged { .. })));
    }
    let key = (Bucket::Meta, Bytes::from_static(FINISHED.as_bytes()));
    let buckets = Buckets::from([(key, Bytes::from_static(b"short"))]);
    assert!(matches!(Store::restore(Arc::new(MemoryTables::default()), &buckets), Err(Failure::Damaged { .. })));
}

/// B18, etcd 14211: the index named a revision that the store lacked, and the member panicked at every start. It is
/// damage, told once and by name: never an empty answer, never a panic.
#[test]
fn b18_a_missing_record_is_damage() {
    let mut harness = Harness::default();
    put(&mut harness.store, "k", 0);
    harness.flush();
    harness.restart();
    harness.store.flushed(Arc::new(MemoryTables::default()), Revision::new(2, 0));
    let view = harness.store.views().current();
    let mark = view.get(b"k", 2).unwrap();
    assert!(matches!(view.pair(b"k", &mark), Err(Failure::Damaged { .. })));
}

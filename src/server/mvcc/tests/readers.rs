//! Readers that hold Views between View and record, while writes, flushes and compactions run beside them.

use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering;
use std::thread;

use bytes::Bytes;

use crate::common::key_range::KeyRange;
use crate::common::revision::Revision;
use crate::proto::etcdserverpb::RangeRequest;
use crate::server::mvcc::read::range;
use crate::server::mvcc::read::range_now;
use crate::server::mvcc::testing::dice::Dice;
use crate::server::mvcc::testing::harness::Harness;
use crate::server::mvcc::view::View;
use crate::server::mvcc::view::Views;

/// Keys; every revision writes three of them with the revision as value.
const KEYS: u64 = 300;
const ROUNDS: u64 = 1500;
const READERS: u64 = 3;

fn read_whole(view: &View, at: i64) {
    let everything = Bytes::from_static(b"\0");
    let request =
        RangeRequest { key: everything.clone(), range_end: everything, revision: at, ..RangeRequest::default() };
    let response = range(view, &request).unwrap();
    assert_eq!(response.kvs.len() as i64, response.count);
    for kv in &response.kvs {
        assert!(kv.mod_revision <= at && kv.value == kv.mod_revision.to_string(), "{kv:?} at {at}");
    }
}

fn read_one(views: &Views, key: u64) {
    let request = RangeRequest { key: Bytes::from(format!("k{key}")), ..RangeRequest::default() };
    let response = range_now(views, &request).unwrap();
    for kv in &response.kvs {
        assert_eq!(kv.value, kv.mod_revision.to_string());
    }
}

fn read_history(view: &View) {
    let after = view.compact_revision().max(1);
    let mut seen = Vec::new();
    let first = Revision::new(after + 1, 0);
    view.records(first, Revision::new(i64::MAX, 0), &mut |record| {
        seen.push(record.revision);
        ControlFlow::Continue(())
    })
    .unwrap();
    let named = view.revisions_after(&KeyRange::From(Bytes::new()), after);
    assert_eq!(seen, named);
}

fn reader(views: &Views, seed: u64, stop: &AtomicBool) -> u64 {
    let mut dice = Dice::new(seed);
    let mut reads = 0;
    let mut held: Vec<Arc<View>> = Vec::new();
    while !stop.load(Ordering::Relaxed) || reads == 0 {
        held.push(views.current());
        if held.len() > 5 {
            held.remove(dice.below(5) as usize);
        }
        let view = &held[dice.below(held.len() as u64) as usize];
        read_whole(view, dice.between(view.compact_revision().max(1), view.revision()));
        (0..20).for_each(|_| read_one(views, dice.below(KEYS)));
        if dice.one_in(10) {
            read_history(view);
        }
        reads += 1;
    }
    reads
}

/// Readers stop also when the writer panics.
struct StopOnDrop<'a>(&'a AtomicBool);

impl Drop for StopOnDrop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

#[test]
fn nothing_that_a_view_names_is_ever_missing() {
    let mut harness = Harness::default();
    let stop = AtomicBool::new(false);
    let views = harness.store.views();
    thread::scope(|scope| {
        let (views, stopping) = (&views, &stop);
        let spawn = |seed| scope.spawn(move || reader(views, seed, stopping));
        let readers: Vec<_> = (0..READERS).map(spawn).collect();
        let mut dice = Dice::new(99);
        let stop_on_drop = StopOnDrop(&stop);
        for _ in 0..ROUNDS {
            let value = Bytes::from((harness.store.revision() + 1).to_string());
            let mut txn = harness.store.begin();
            for _ in 0..3 {
                let key = Bytes::from(format!("k{}", dice.below(KEYS)));
                let _ = dice.one_in(5) && txn.delete(&key);
                txn.put(&key, value.clone(), 0);
            }
            txn.commit();
            match dice.below(12) {
                0 => harness.take(),
                1 => harness.land(),
                2 => {
                    let at = dice.between(harness.store.compact_revision().max(1), harness.store.revision());
                    let _ = harness.store.compact(at);
                }
                3..=6 => {
                    harness.store.compaction_step(50).unwrap();
                }
                _ => harness.store.publish(),
            }
        }
        drop(stop_on_drop);
        for reader in readers {
            assert!(reader.join().unwrap() > 0);
        }
    });
}

/// Pages of a list at a pinned revision say how many keys are left of it, whatever is written, deleted and read beside
/// it; that they do so without counting shows in what is remembered of them.
#[test]
fn pages_of_a_list_have_the_count_of_its_revision_while_the_keys_change() {
    let mut harness = Harness::default();
    let put = |harness: &mut Harness, key: String| {
        let mut txn = harness.store.begin();
        txn.put(&Bytes::from(key), Bytes::from_static(b"v"), 0);
        txn.commit();
        harness.store.publish();
    };
    (0..200).for_each(|key| put(&mut harness, format!("k{key:03}")));
    let views = harness.store.views();
    for (limit, end) in [(7, "\0"), (7, "k150"), (99, "l"), (150, "\0"), (1000, "\0")] {
        let at = views.current().revision();
        let whole = |views: &Views, start: Bytes| {
            let request = RangeRequest { key: start, range_end: end.into(), revision: at, ..RangeRequest::default() };
            range(views.current().as_ref(), &request).unwrap()
        };
        let expected = whole(&views, "k".into());
        let mut request = RangeRequest { key: "k".into(), range_end: end.into(), limit, ..RangeRequest::default() };
        let mut kvs = Vec::new();
        loop {
            let page = range_now(&views, &request).unwrap();
            assert_eq!(page.count, whole(&views, request.key.clone()).count, "{limit} {end} from {:?}", request.key);
            kvs.extend(page.kvs);
            if !page.more {
                break;
            }
            request.key = [&kvs[kvs.len() - 1].key, &b"\0"[..]].concat().into();
            request.revision = at;
            // What a client that leaves its list behind costs: the next page is counted.
            if kvs.len() % 3 == 0 {
                let rest = KeyRange::new(request.key.clone(), request.range_end.clone());
                assert_eq!(views.counts().take(&rest, at), Some(expected.kvs.len() - kvs.len()), "the rest is known");
            }
            put(&mut harness, format!("k{:03}x{limit}", kvs.len()));
            put(&mut harness, "k199".to_owned());
            let mut txn = harness.store.begin();
            txn.delete(&Bytes::from(format!("k{:03}", 190 - kvs.len() % 50)));
            txn.commit();
            harness.store.publish();
        }
        assert_eq!(kvs, expected.kvs, "{limit} {end}");
    }
}

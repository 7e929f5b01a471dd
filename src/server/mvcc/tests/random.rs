//! Thousands of seeded operations against the naive model, with flushes, compactions and restarts in between.

use std::ops::ControlFlow;
use std::sync::Arc;

use bytes::Bytes;

use crate::common::key_range::KeyRange;
use crate::common::revision::Revision;
use crate::proto::etcdserverpb::RangeRequest;
use crate::server::checkpoint::Record;
use crate::server::mvcc::compaction::Progress;
use crate::server::mvcc::hash::hash_kv;
use crate::server::mvcc::hash::hash_view;
use crate::server::mvcc::pages::Pages;
use crate::server::mvcc::read::range;
use crate::server::mvcc::read::range_now;
use crate::server::mvcc::store::RECORD_OVERHEAD_BYTES;
use crate::server::mvcc::testing::dice::Dice;
use crate::server::mvcc::testing::harness::Harness;
use crate::server::mvcc::testing::model::Change;
use crate::server::mvcc::testing::model::Model;
use crate::server::mvcc::view::Keys;
use crate::server::mvcc::view::View;

/// An entry of the log, for the replay after a restart.
#[derive(Clone, Debug)]
enum Op {
    Txn(Vec<Change>),
    Compact(i64),
}

struct World {
    dice: Dice,
    keys: u64,
    harness: Harness,
    model: Model,
    /// Since the last flush that landed.
    log: Vec<Op>,
    /// Since the last take, not landed.
    taken: usize,
    /// Hashes that running compactions will leave: revision, compact revision before, hash.
    expected_hash: Option<(i64, i64, u32)>,
    held: Vec<(Arc<View>, Model)>,
}

impl World {
    fn new(seed: u64) -> World {
        World {
            dice: Dice::new(seed),
            keys: [5, 30, 200][seed as usize % 3],
            harness: Harness::default(),
            model: Model::default(),
            log: Vec::new(),
            taken: 0,
            expected_hash: None,
            held: Vec::new(),
        }
    }

    fn key(&mut self) -> Bytes {
        Bytes::from(format!("k{:03}", self.dice.below(self.keys)))
    }

    fn range(&mut self) -> (Bytes, Bytes) {
        let (key, end) = (self.key(), self.key());
        match self.dice.below(5) {
            0 => (key, Bytes::new()),
            1 => (key, Bytes::from_static(b"\0")),
            2 => (Bytes::from_static(b"\0"), Bytes::from_static(b"\0")),
            _ => (key, end),
        }
    }

    fn change(&mut self) -> Change {
        if self.dice.below(10) < 7 {
            let value = vec![b'v'; self.dice.below(40) as usize];
            let value = [format!("{:02}", self.dice.below(50)).into_bytes(), value].concat();
            let lease = if self.dice.one_in(5) { self.dice.between(1, 9) } else { 0 };
            return Change::Put(self.key(), Bytes::from(value), lease);
        }
        match self.dice.below(6) {
            0 => {
                let (key, end) = self.range();
                Change::Delete(KeyRange::new(key, end))
            }
            _ => Change::Delete(KeyRange::One(self.key())),
        }
    }

    fn step(&mut self) {
        match self.dice.below(100) {
            0..=59 => {
                let changes = (0..self.dice.between(1, 4)).map(|_| self.change()).collect::<Vec<_>>();
                self.execute(Op::Txn(changes), false);
            }
            60..=63 => {
                let revision = self.dice.between(self.model.compact_revision - 2, self.model.revision + 2);
                self.execute(Op::Compact(revision), false);
            }
            64..=75 => self.compaction_step(),
            76..=79 => {
                self.harness.take();
                self.taken = self.log.len();
            }
            80..=83 => {
                self.harness.land();
                self.log.drain(..self.taken);
                self.taken = 0;
            }
            84 => self.restart(),
            85..=86 => {
                self.harness.store.publish();
                self.held.push((self.harness.store.views().current(), self.model.clone()));
                if self.held.len() > 4 {
                    self.held.remove(0);
                }
            }
            _ => self.read(),
        }
    }

    fn execute(&mut self, op: Op, replay: bool) {
        let store = &mut self.harness.store;
        match &op {
            Op::Txn(changes) => {
                let mut txn = store.begin();
                for change in changes {
                    match change {
                        Change::Put(key, value, lease) => txn.put(key, value.clone(), *lease),
                        Change::Delete(range) => {
                            for found in txn.find(range, txn.revision(), usize::MAX) {
                                assert!(txn.delete(&Bytes::copy_from_slice(&found.key)));
                            }
                        }
                    }
                }
                let committed = txn.commit();
                if !replay {
                    self.model.apply(changes);
                    assert_eq!(committed.revision, self.model.revision);
                    let newest = self.model.revision;
                    let expected: Vec<&Record> =
                        self.model.records.iter().filter(|r| r.revision.main == newest).collect();
                    if committed.changes > 0 {
                        assert_eq!(store.recent(newest, newest).iter().collect::<Vec<_>>(), expected);
                    }
                }
            }
            Op::Compact(at) => {
                let idle = !store.is_compacting();
                let result = store.compact(*at);
                if !replay {
                    let previous = self.model.compact_revision;
                    assert_eq!(result.is_ok(), *at > previous && *at <= self.model.revision);
                    if result.is_ok() {
                        let hash = self.model.hash(*at, previous, true);
                        if idle {
                            self.expected_hash = Some((*at, previous, hash));
                        }
                        self.model.compact(*at);
                    }
                }
            }
        }
        if !replay {
            self.log.push(op);
        }
    }

    fn compaction_step(&mut self) {
        let budget = self.dice.between(1, 60) as usize;
        let progress = self.harness.store.compaction_step(budget).unwrap();
        if let (Progress::Finished(at), Some((revision, previous, hash))) = (progress, self.expected_hash)
            && at == revision
        {
            let got = hash_kv(&self.harness.store.views(), at).unwrap();
            assert_eq!((got.hash, got.compact_revision, got.hash_revision), (hash, previous, at));
            self.expected_hash = None;
        }
    }

    fn restart(&mut self) {
        self.harness.restart();
        self.taken = 0;
        self.expected_hash = None;
        for op in self.log.clone() {
            self.execute(op, true);
        }
        assert_eq!(self.harness.store.revision(), self.model.revision);
        assert_eq!(self.harness.store.compact_revision(), self.model.compact_revision);
    }

    fn read(&mut self) {
        self.harness.store.publish();
        let (key, range_end) = self.range();
        let low = self.model.compact_revision.max(1);
        let revision = if self.dice.one_in(3) { 0 } else { self.dice.between(low, self.model.revision) };
        let mut bound = |one_in: u64| match self.dice.one_in(one_in) {
            true => self.dice.between(-1, self.model.revision),
            false => 0,
        };
        let (min_mod_revision, max_mod_revision) = (bound(8), bound(8));
        let (min_create_revision, max_create_revision) = (bound(8), bound(8));
        let request = RangeRequest {
            key,
            range_end,
            revision,
            min_mod_revision,
            max_mod_revision,
            min_create_revision,
            max_create_revision,
            limit: if self.dice.one_in(2) { self.dice.between(-1, 8) } else { 0 },
            sort_order: self.dice.below(3) as i32,
            sort_target: self.dice.below(5) as i32,
            keys_only: self.dice.one_in(4),
            count_only: self.dice.one_in(10),
            serializable: false,
        };
        let view = self.harness.store.views().current();
        check_range(&view, &self.model, &request);
        let now = range_now(&self.harness.store.views(), &request).unwrap();
        assert_eq!((now.kvs, now.more, now.count), self.model.range(&request), "{request:?} without a View");
        check_pages(&view, &self.model, &request, self.dice.between(1, 9) as usize);
        if self.dice.one_in(4) {
            self.check_whole(&view, revision);
        }
        let held = (!self.held.is_empty()).then(|| &self.held[self.dice.below(self.held.len() as u64) as usize]);
        if let Some((view, model)) = held {
            check_range(view, model, &RangeRequest { revision: 0, ..request });
        }
    }

    fn check_whole(&mut self, view: &View, at: i64) {
        let at = if at == 0 { view.revision() } else { at };
        let hash = hash_view(view, at).unwrap();
        assert_eq!(hash.hash, self.model.hash(at, self.model.compact_revision, false), "hash at {at}");
        if self.harness.store.is_compacting() {
            return;
        }
        let bytes = |record: &Record| record.hashed_bytes() as u64 + RECORD_OVERHEAD_BYTES;
        assert_eq!(view.bytes_in_use(), self.model.records.iter().map(bytes).sum::<u64>());
        let mut records = Vec::new();
        let (first, last) = (Revision::new(at / 2, 0), Revision::new(at, i64::MAX));
        view.records(first, last, &mut |record| {
            records.push(record);
            ControlFlow::Continue(())
        })
        .unwrap();
        let inside = self.model.records.iter().filter(|r| (first..=last).contains(&r.revision));
        assert_eq!(records, inside.cloned().collect::<Vec<_>>());
        let (key, end) = self.range();
        let range = KeyRange::new(key, end);
        let after = at.max(self.model.compact_revision);
        let newer = self.model.records.iter().filter(|r| r.revision.main > after && range.contains(&r.kv.key));
        assert_eq!(view.revisions_after(&range, after), newer.map(|r| r.revision).collect::<Vec<_>>());
    }
}

fn check_range(view: &View, model: &Model, request: &RangeRequest) {
    let response = range(view, request).unwrap();
    assert_eq!((response.kvs, response.more, response.count), model.range(request), "{request:?}");
    assert_eq!(response.header.unwrap().revision, model.revision);
}

fn check_pages(view: &View, model: &Model, request: &RangeRequest, size: usize) {
    let request = RangeRequest {
        sort_order: 0,
        sort_target: 0,
        min_mod_revision: 0,
        max_mod_revision: 0,
        min_create_revision: 0,
        max_create_revision: 0,
        ..request.clone()
    };
    let mut pages = Pages::start(view, &request).unwrap();
    let mut kvs = Vec::new();
    let end = loop {
        let page = pages.next(view, size).unwrap();
        kvs.extend(page.kvs);
        if let Some(end) = page.end {
            break end;
        }
    };
    assert_eq!((kvs, end.more, end.count), model.range(&request), "{request:?} in pages of {size}");
}

fn run(seed: u64, steps: usize) {
    let mut world = World::new(seed);
    for _ in 0..steps {
        world.step();
    }
    world.harness.finish_compactions();
    world.harness.flush();
    world.harness.store.publish();
    let view = world.harness.store.views().current();
    world.check_whole(&view, 0);
    assert_eq!(world.harness.tables.stored(), world.model.records.len(), "everything superseded is gone, nothing else");
}

#[test]
fn random_operations_agree_with_the_naive_model() {
    for seed in 0..12 {
        run(seed, 1200);
    }
}

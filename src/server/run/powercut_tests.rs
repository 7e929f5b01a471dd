//! A whole member without network, clock and threads, whose power fails at random operations: log on a simulated disk,
//! raft, apply, checkpoint. After each start it is compared with a member that never stopped.
//!
//! The persistence contract (reliability.md 3.3), sentence by sentence:
//!
//! 1. *A reply only after fdatasync and apply.* Here: `Story::apply` notes a reply, and no crash takes its entry back.
//! 2. *Hard state before any promise.* Here: terms never go back; `raft/testing/driver.rs` looks at the order.
//! 3. *Frames checked before they are believed.* `wal/tests/damage.rs`, every bit of every record.
//! 4. *A torn tail is cut, damage before valid records is refused.* `wal/tests/damage.rs`; here: every start after a cut.
//! 5. *Directories are synced.* Here: names that were not synced may vanish with the power.
//! 6. *One transaction for data, applied index and the rest.* Here: any checkpoint goes on with the log, equal to the model.
//! 7. *The log is released only below the previous checkpoint.* Here: a crash may take the newest checkpoint back.
//! 8. *A snapshot install starts again at each step.* `snapshot/install/tests.rs`.
//! 9. *The first IO error is the last.* Here: a life ends with it, and what it left is as good as a power cut's;
//!    `wal/tests/crash.rs` and `checkpoint/flusher.rs`: nothing is written after it.
//! 10. *A damaged member refuses to start.* `wal/tests/damage.rs`, `checkpoint/store/crash_tests.rs`, `bad_input.rs`.

use std::collections::BTreeSet;
use std::collections::VecDeque;
use std::path::Path;
use std::sync::Arc;
use std::sync::Mutex;
use std::time::Duration;

use bytes::Bytes;
use prometheus::Registry;
use prost::Message as _;

use super::storage::resume;
use crate::common::failure::Failure;
use crate::common::ids::ClusterId;
use crate::common::ids::MemberId;
use crate::disk::sim::Dice;
use crate::disk::sim::SimDisk;
use crate::proto::raftinternalpb::InternalRaftRequest;
use crate::proto::raftinternalpb::RequestHeader;
use crate::proto::raftpb::Entry;
use crate::proto::raftpb::Message;
use crate::proto::raftpb::Snapshot;
use crate::proto::walpb;
use crate::server::apply::alarm::AlarmsHandle;
use crate::server::apply::machine::Machine;
use crate::server::apply::outcome::Effect;
use crate::server::apply::published::Published;
use crate::server::apply::testing::Written;
use crate::server::apply::testing::compaction;
use crate::server::apply::testing::delete;
use crate::server::apply::testing::grant;
use crate::server::apply::testing::put;
use crate::server::apply::testing::revoke;
use crate::server::apply::testing::txn_of_delete;
use crate::server::apply::testing::txn_of_puts;
use crate::server::checkpoint::Batch;
use crate::server::checkpoint::Bucket;
use crate::server::checkpoint::Buckets;
use crate::server::checkpoint::Checkpoint;
use crate::server::checkpoint::memory::MemoryCheckpoint;
use crate::server::cluster::handle::ClusterHandle;
use crate::server::mvcc::hash::hash_view;
use crate::server::mvcc::view::View;
use crate::server::raft::bootstrap::bootstrap_entries;
use crate::server::raft::config::CatchUp;
use crate::server::raft::config::RaftConfig;
use crate::server::raft::driver::Driver;
use crate::server::raft::driver::Parts;
use crate::server::raft::input::Input;
use crate::server::raft::input::Proposal;
use crate::server::raft::metrics::RaftMetrics;
use crate::server::raft::state_machine::RaftStatus;
use crate::server::raft::state_machine::Refusal;
use crate::server::raft::state_machine::StateMachine;
use crate::server::raft::state_machine::Transport;
use crate::server::raft::wal::Wal;
use crate::server::raft::wal::WalOptions;

const LOCAL: MemberId = MemberId(7);
const METADATA: walpb::Metadata = walpb::Metadata { node_id: LOCAL.0, cluster_id: 9 };
/// Small segments, so that a life of some twenty writes fills several and releases some.
const OPTIONS: WalOptions = WalOptions { segment_bytes: 1024, fsync: true, allocate_ahead: false };
const KEYS: [&str; 6] = ["a", "b", "c", "d", "e", "f"];
const OFF: i64 = -1;
const EIO: i32 = 5;

fn dir() -> &'static Path {
    Path::new("/member/wal")
}

/// What raft hands out, until the test applies it.
#[derive(Default)]
struct Committed(Mutex<VecDeque<Entry>>);

impl Committed {
    fn next(&self) -> Option<Entry> {
        self.0.lock().unwrap().pop_front()
    }
}

impl StateMachine for Committed {
    fn commit(&self, entries: Vec<Entry>) {
        self.0.lock().unwrap().extend(entries);
    }
    fn install(&self, _: Snapshot) {
        panic!("nobody sends a snapshot");
    }
    fn build_snapshot(&self) {
        panic!("nobody needs a snapshot");
    }
    fn refused(&self, request_id: u64, why: Refusal) {
        panic!("request {request_id} refused: {why:?}");
    }
    fn read_ready(&self, _: Bytes, _: u64) {}
    fn status_changed(&self, _: RaftStatus) {}
    fn failed(&self, failure: Failure) {
        panic!("{failure}");
    }
}

struct Nobody;

impl Transport for Nobody {
    fn send(&self, messages: Vec<Message>) {
        assert!(messages.is_empty(), "a lone voter wrote {messages:?}");
    }
}

/// One start of the member, until its power fails.
struct Life {
    driver: Driver,
    committed: Arc<Committed>,
    machine: Machine,
    published: Published,
    checkpoint: MemoryCheckpoint,
    /// Changes on their way to the checkpoint.
    batch: Option<Batch>,
}

/// A request that was answered: its entry must stay.
struct Acknowledged {
    index: u64,
    data: Bytes,
}

/// What a member has gone through, and the member that has not.
struct Story {
    disk: SimDisk,
    checkpoint: MemoryCheckpoint,
    dice: Dice,
    next_id: u64,
    /// Every entry that was committed, from index 1 on.
    history: Vec<Entry>,
    /// Has applied the history, without a stop.
    model: Machine,
    model_published: Published,
    acknowledged: Vec<Acknowledged>,
    term: u64,
    revision: i64,
    /// A checkpoint was written since the newest one was taken back: only then another may be.
    may_lose: bool,
    trace: Vec<String>,
}

fn published(machine: &Machine) -> Published {
    let cluster = ClusterHandle::new(ClusterId(METADATA.cluster_id), LOCAL);
    Published::new(cluster, AlarmsHandle::default(), machine.config().space.clone(), machine.store().views())
}

/// Everything but what depends on how far a compaction has come.
fn comparable(buckets: Buckets) -> Buckets {
    buckets.into_iter().filter(|((bucket, _), _)| *bucket != Bucket::Meta).collect()
}

fn finish_compaction(machine: &mut Machine, published: &Published) {
    while machine.store().is_compacting() {
        machine.compaction_step(100).unwrap();
    }
    machine.publish(published);
}

impl Story {
    fn new(seed: u64) -> Story {
        let model = Written::default().machine(OFF);
        let model_published = published(&model);
        Story {
            disk: SimDisk::new(seed),
            checkpoint: MemoryCheckpoint::new(),
            dice: Dice::new(seed ^ 0xd15c),
            next_id: 1,
            history: Vec::new(),
            model,
            model_published,
            acknowledged: Vec::new(),
            term: 0,
            revision: 1,
            may_lose: false,
            trace: vec![format!("seed {seed}")],
        }
    }

    fn fail(&self, text: &str) -> ! {
        panic!("{text}\n{}", self.trace.join("\n"));
    }

    /// A committed entry: the same one at its index as ever, and the model applies it.
    fn note(&mut self, entry: &Entry) {
        let at = usize::try_from(entry.index).unwrap() - 1;
        match self.history.get(at) {
            Some(known) if known == entry => return,
            Some(known) => self.fail(&format!("entry {entry:?} where {known:?} was committed")),
            None => assert_eq!(at, self.history.len(), "entry {} follows the committed ones", entry.index),
        }
        if entry.term < self.term {
            self.fail(&format!("term {} after {}", entry.term, self.term));
        }
        self.term = entry.term;
        self.history.push(entry.clone());
        self.model.apply_entry(entry).unwrap();
        finish_compaction(&mut self.model, &self.model_published);
    }

    /// Starts, through power cuts if they come, and compares.
    fn start(&mut self, crash_at: Option<u64>) -> Life {
        self.disk.crash_at(crash_at.unwrap_or(u64::MAX / 2));
        loop {
            match self.try_start() {
                Ok(mut life) => {
                    self.compare(&mut life);
                    return life;
                }
                Err(failure) if !self.disk.has_crashed() => self.fail(&format!("refused: {failure}")),
                Err(_) => self.cut_power(),
            }
        }
    }

    fn try_start(&mut self) -> Result<Life, Failure> {
        if !Wal::exists(&self.disk, dir())? {
            assert!(self.history.is_empty(), "the log is gone");
            let (entries, hard_state, _) = bootstrap_entries(&[(LOCAL, "m".into(), vec!["http://h:1".into()])]);
            let disk = Arc::new(self.disk.clone());
            drop(Wal::found(disk, dir(), METADATA, OPTIONS, &hard_state, &entries)?);
        }
        let (wal, recovered) = Wal::open(Arc::new(self.disk.clone()), dir(), OPTIONS)?;
        let (start, mut machine) = resume(Written::default().machine_config(OFF), &self.checkpoint, recovered)?;
        if start.hard_state.term < self.term {
            self.fail(&format!("term {} after {}", start.hard_state.term, self.term));
        }
        for entry in start.entries.iter().filter(|entry| entry.index <= start.applied.0) {
            self.note(entry);
        }
        self.trace.push(format!("start: base {:?}, applied {:?}", start.base, start.applied));
        let published = published(&machine);
        machine.publish(&published);
        let committed = Arc::new(Committed::default());
        let parts = Parts {
            log: Box::new(wal),
            state: committed.clone(),
            transport: Arc::new(Nobody),
            metrics: RaftMetrics::register(&Registry::new()),
            end_process: Arc::new(|thread, text| panic!("{thread}: {text}")),
        };
        let config = RaftConfig {
            tick: Duration::from_secs(3600),
            catch_up: CatchUp { entries: 3, bytes: 1 << 20 },
            snapshot_entries: 4,
            ..RaftConfig::new(LOCAL, 1)
        };
        let driver = Driver::new(&config, start, parts)?;
        let mut life = Life { driver, committed, machine, published, checkpoint: self.checkpoint.clone(), batch: None };
        life.driver.rounds()?;
        while self.apply(&mut life)? {}
        Ok(life)
    }

    /// Applies one committed entry and notes the answer. False if there is none.
    fn apply(&mut self, life: &mut Life) -> Result<bool, Failure> {
        let Some(entry) = life.committed.next() else { return Ok(false) };
        self.note(&entry);
        let step = life.machine.apply_entry(&entry)?;
        life.machine.publish(&life.published);
        if step.outcome.is_some() {
            self.acknowledged.push(Acknowledged { index: entry.index, data: entry.data.clone() });
            self.revision = life.machine.revision();
        }
        for effect in step.effects {
            if let Effect::ConfChange(change) = effect {
                life.driver.step(Input::ConfChangeApplied { index: entry.index, change })?;
            }
        }
        life.driver.step(Input::Applied(entry.index))?;
        life.driver.rounds()?;
        life.take_batch();
        Ok(true)
    }

    /// The member and the one that never stopped are the same.
    fn compare(&mut self, life: &mut Life) {
        let applied = life.machine.applied().clone();
        if applied != *self.model.applied() {
            self.fail(&format!("applied {applied:?}, committed {:?}", self.model.applied()));
        }
        let ids: Vec<u64> = self.history.iter().filter_map(request_id).collect();
        assert_eq!(ids.iter().collect::<BTreeSet<_>>().len(), ids.len(), "no request is in the log twice");
        for one in &self.acknowledged {
            let kept = usize::try_from(one.index).ok().and_then(|index| self.history.get(index - 1));
            if kept.is_none_or(|entry| entry.data != one.data) {
                self.fail(&format!("acknowledged entry {} is gone", one.index));
            }
        }
        if life.machine.revision() < self.revision {
            self.fail(&format!("revision {} after {}", life.machine.revision(), self.revision));
        }
        assert_eq!(comparable(life.machine.buckets()), comparable(self.model.buckets()), "{}", self.trace.join("\n"));
        assert_eq!(life.machine.store().bytes_in_use() > 0, self.model.store().bytes_in_use() > 0);
        let (found, wanted) = (life.published.view(), self.model_published.view());
        assert_eq!(hashes(&found), hashes(&wanted), "{}", self.trace.join("\n"));
    }

    fn request(&mut self) -> Bytes {
        let key = self.dice.pick(&KEYS);
        let revision = i64::try_from(self.dice.below(u64::try_from(self.revision).unwrap() + 1)).unwrap();
        let lease = i64::try_from(1 + self.dice.below(3)).unwrap();
        let size = self.dice.pick(&[0, 8, 60, 300]);
        let value = format!("{}{}", self.next_id, "v".repeat(size));
        let request = match self.dice.below(12) {
            0..=4 => put(key, &value, 0),
            5 => put(key, &value, lease),
            6 => txn_of_puts(&["a", "c", "e"]),
            7 => txn_of_delete(key),
            8 => delete("b", "e"),
            9 => compaction(revision),
            10 => grant(lease, 60),
            _ => revoke(lease),
        };
        let header = Some(RequestHeader { id: self.next_id, ..RequestHeader::default() });
        InternalRaftRequest { header, ..request }.encode_to_vec().into()
    }

    /// One random thing that a member does.
    fn step(&mut self, life: &mut Life) -> Result<(), Failure> {
        match self.dice.below(10) {
            0..=3 => {
                let count = 1 + self.dice.below(3);
                let mut proposals = Vec::new();
                for _ in 0..count {
                    let data = self.request();
                    proposals.push(Proposal { request_id: self.next_id, data });
                    self.next_id += 1;
                }
                self.trace.push(format!("propose {count}"));
                life.driver.step(Input::Propose(proposals))?;
                life.driver.rounds()
            }
            4..=6 => {
                let some = self.dice.below(4);
                for _ in 0..some {
                    self.apply(life)?;
                }
                Ok(())
            }
            7 | 8 => {
                let written = life.flush()?;
                if let Some(index) = written {
                    self.trace.push(format!("checkpoint {index}"));
                    self.may_lose = true;
                    life.driver.checkpoint(life.record())?;
                }
                Ok(())
            }
            _ => {
                life.machine.compaction_step(1)?;
                life.machine.publish(&life.published);
                life.take_batch();
                Ok(())
            }
        }
    }

    fn cut_power(&mut self) {
        let lost = usize::from(self.may_lose && self.dice.chance(50));
        self.may_lose &= lost == 0;
        self.trace.push(format!("power cut, {lost} checkpoints lost"));
        self.disk = self.disk.restart();
        self.checkpoint = self.checkpoint.crash(lost);
    }

    /// Lives until the power fails, a disk fails, or it is killed; several times over.
    fn live(&mut self, lives: usize) {
        for _ in 0..lives {
            let during_start = self.dice.chance(20).then(|| 1 + self.dice.below(8));
            let mut life = self.start(during_start);
            self.disk.crash_at(1 + self.dice.below(60));
            let faulty = self.dice.below(12);
            match faulty {
                0 => self.disk.fail_at(1 + self.dice.below(20), EIO),
                1 => self.checkpoint.fail_after(self.dice.below(5)),
                _ => {}
            }
            let steps = 1 + self.dice.below(60);
            let mut ended = Ok(());
            for _ in 0..steps {
                ended = self.step(&mut life);
                if ended.is_err() {
                    break;
                }
            }
            if let Err(failure) = ended
                && faulty > 1
                && !self.disk.has_crashed()
            {
                self.fail(&format!("{failure}"));
            }
            drop(life);
            // A checkpoint that failed for good is a disk to replace: its data are read from there on.
            self.checkpoint.fail_after(u64::MAX);
            match self.disk.has_crashed() || faulty == 0 || self.dice.chance(70) {
                true => self.cut_power(),
                false => self.trace.push("killed".into()),
            }
        }
        let mut life = self.start(None);
        finish_compaction(&mut life.machine, &life.published);
        self.compare(&mut life);
    }
}

fn request_id(entry: &Entry) -> Option<u64> {
    let request = InternalRaftRequest::decode(entry.data.clone()).ok()?;
    request.header.map(|header| header.id).filter(|id| *id != 0)
}

/// HashKV at some revisions that can be read, the newest among them, and what the view begins and ends with.
fn hashes(view: &View) -> (i64, i64, Vec<u32>) {
    let first = view.compact_revision().max(1);
    let revisions = (first..=view.revision()).rev().step_by(9);
    let hashes = revisions.map(|revision| hash_view(view, revision).unwrap().hash);
    (view.compact_revision(), view.revision(), hashes.collect())
}

impl Life {
    fn take_batch(&mut self) {
        let Some(later) = self.machine.take_batch() else { return };
        match &mut self.batch {
            Some(batch) => batch.merge(later),
            None => self.batch = Some(later),
        }
    }

    /// What the flusher does with what waits: the index that is durable now.
    fn flush(&mut self) -> Result<Option<u64>, Failure> {
        let Some(batch) = self.batch.take() else { return Ok(None) };
        let tables = self.checkpoint.write(&batch)?;
        self.machine.flushed(tables, batch.records.last().map(|record| record.revision));
        Ok(Some(batch.applied.index))
    }

    /// What the log is told of the newest checkpoint.
    fn record(&self) -> walpb::Snapshot {
        let (_, applied) = self.checkpoint.buckets().unwrap();
        walpb::Snapshot { index: applied.index, term: applied.term, conf_state: Some(applied.conf_state) }
    }
}

#[test]
fn a_member_that_loses_its_power_equals_one_that_did_not() {
    for seed in 0..300 {
        Story::new(seed).live(6);
    }
}

/// B29, Xline 402: after many crashes one after the other nothing moved any more. Two hundred here, by power and by
/// kill, during starts too; then it writes as ever.
#[test]
fn b29_a_member_that_crashed_two_hundred_times_still_writes() {
    let mut story = Story::new(29);
    story.live(200);
    let mut life = story.start(None);
    let before = story.acknowledged.len();
    assert!(before > 200, "{before} requests were answered in all those lives");
    let data = story.request();
    story.next_id += 1;
    let request_id = story.next_id - 1;
    life.driver.step(Input::Propose(vec![Proposal { request_id, data }])).unwrap();
    life.driver.rounds().unwrap();
    while story.apply(&mut life).unwrap() {}
    assert_eq!(story.acknowledged.len(), before + 1, "{}", story.trace.join("\n"));
}

//! Facts about the thread: who is told what in which order, and how it ends.

use super::*;

use std::sync::Mutex;
use std::sync::OnceLock;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering;
use std::sync::mpsc;

use bytes::Bytes;

use crate::common::ids::ClusterId;
use crate::common::ids::MemberId;
use crate::proto::raftpb::ConfChange;
use crate::proto::raftpb::SnapshotMetadata;
use crate::server::apply::alarm::AlarmsHandle;
use crate::server::apply::outcome::Outcome;
use crate::server::apply::outcome::PeerChange;
use crate::server::apply::ports::FrozenState;
use crate::server::apply::ports::Installed;
use crate::server::apply::ports::Listener;
use crate::server::apply::queue::INLINE_ENTRIES_MAX;
use crate::server::apply::quota::Space;
use crate::server::apply::testing::Written;
use crate::server::apply::testing::bootstrap;
use crate::server::apply::testing::compaction;
use crate::server::apply::testing::conf_entry;
use crate::server::apply::testing::empty_views;
use crate::server::apply::testing::entry;
use crate::server::apply::testing::grant;
use crate::server::apply::testing::put;
use crate::server::checkpoint::Batch;
use crate::server::checkpoint::Record;
use crate::server::cluster::handle::ClusterHandle;
use crate::server::cluster::member::Member;
use crate::server::raft::state_machine::RaftStatus;
use crate::server::raft::state_machine::Refusal;
use crate::server::raft::state_machine::StateMachine;

/// Everyone the thread talks to, in one: writes down what it is told, as text.
struct World {
    told: Mutex<Vec<String>>,
    published: Published,
    written: Mutex<Written>,
    image: Mutex<Option<Written>>,
    panic_on_flush: bool,
    is_full: AtomicBool,
    /// Set: a write to the old checkpoint is reported while the new one is put in place.
    late_report_to: OnceLock<ApplyHandle>,
}

impl World {
    fn tell(&self, text: String) {
        self.told.lock().expect("no panic").push(text);
    }

    fn revision(&self) -> i64 {
        self.published.view().revision()
    }
}

impl Listener for World {
    fn answered(&self, outcomes: Vec<Outcome>) {
        let ids: Vec<u64> = outcomes.iter().map(|outcome| outcome.request_id).collect();
        self.tell(format!("answered {ids:?} at revision {}", self.revision()));
    }

    fn applied(&self, index: u64) {
        self.tell(format!("applied {index} at revision {}", self.revision()));
    }

    fn term_started(&self) {
        self.tell("term started".to_owned());
    }

    fn outcomes_lost(&self) {
        self.tell(format!("outcomes lost at revision {}", self.revision()));
    }

    fn out_of_space(&self) {
        self.tell("out of space".to_owned());
    }

    fn compaction(&self, scheduled: i64, finished: i64) {
        self.tell(format!("compaction {scheduled} {finished}"));
    }

    fn refused(&self, _request_id: u64, _why: Refusal) {}

    fn read_ready(&self, _context: Bytes, _index: u64) {}

    fn status_changed(&self, _status: RaftStatus) {}

    fn removed(&self) {}
}

impl RaftReports for World {
    fn applied(&self, index: u64) {
        self.tell(format!("raft: applied {index}"));
    }

    fn conf_change_applied(&self, index: u64, change: Option<ConfChange>) {
        let change = change.map(|change| (change.r#type, change.node_id));
        self.tell(format!("raft: change {index} {change:?} with {} members", self.published.cluster.members().len()));
    }

    fn snapshot_installed(&self, index: u64) {
        self.tell(format!("raft: installed {index}"));
    }
}

impl FlushPort for World {
    fn submit(&self, batch: Batch) {
        assert!(!self.panic_on_flush, "the disk is on fire");
        self.tell(format!("flush {} of {} records", batch.applied.index, batch.records.len()));
        self.written.lock().expect("no panic").write(&batch);
    }

    fn is_full(&self) -> bool {
        self.is_full.load(Ordering::SeqCst)
    }

    fn flush_soon(&self) {
        self.tell("flush soon".to_owned());
    }
}

impl Snapshots for World {
    fn build(&self, frozen: FrozenState) {
        let FrozenState { view, applied, .. } = frozen;
        self.tell(format!("build {} at revision {}", applied.index, view.revision()));
    }

    fn install(&self, _snapshot: &Snapshot) -> Result<Installed, Failure> {
        if let Some(queue) = self.late_report_to.get() {
            let old = self.written.lock().expect("no panic").tables.clone();
            // Of revisions that the new state does not have: taking it would be noticed.
            queue.stored(Arc::new(old), Some(Revision::new(999, 0)));
        }
        let image = self.image.lock().expect("no panic").clone().expect("an image");
        Ok(Installed { tables: Arc::new(image.tables), buckets: image.buckets, applied: image.applied })
    }
}

impl PeerPort for World {
    fn changed(&self, change: PeerChange) {
        self.tell(format!("peers: {change:?}"));
    }

    fn replaced(&self, members: &[Member], removed: &[MemberId]) {
        self.tell(format!("peers: replaced by {} and {} removed", members.len(), removed.len()));
    }
}

impl EventSink for World {
    fn is_wanted(&self) -> bool {
        true
    }

    fn concerns(&self, _key: &[u8]) -> bool {
        true
    }

    fn passed(&self, first: i64, last: i64) {
        self.tell(format!("no events of {first} to {last}"));
    }

    fn records(&self, first: i64, last: i64, records: Vec<Record>) {
        self.tell(format!("events {} of {first} to {last} at revision {}", records.len(), self.revision()));
    }

    fn replaced(&self) {
        self.tell(format!("events: store replaced at revision {}", self.revision()));
    }
}

struct Bench {
    world: Arc<World>,
    queue: ApplyHandle,
    thread: JoinHandle<()>,
    failures: mpsc::Receiver<String>,
}

/// Everything but the thread.
struct Unstarted {
    world: Arc<World>,
    queue: ApplyHandle,
    machine: Machine,
    parts: ThreadParts,
    failures: mpsc::Receiver<String>,
}

fn start_from(written: &Written, image: Option<Written>, panic_on_flush: bool) -> Bench {
    let Unstarted { world, queue, machine, parts, failures } = unstarted(written, image, panic_on_flush);
    let thread = start(machine, queue.clone(), parts).expect("a thread");
    Bench { world, queue, thread, failures }
}

fn unstarted(written: &Written, image: Option<Written>, panic_on_flush: bool) -> Unstarted {
    let cluster = ClusterHandle::new(ClusterId(1), MemberId(1));
    let machine = written.machine(-1);
    let published = Published::new(cluster, AlarmsHandle::default(), Space::new(-1), empty_views());
    let world = Arc::new(World {
        told: Mutex::default(),
        published: published.clone(),
        written: Mutex::new(written.clone()),
        image: Mutex::new(image),
        panic_on_flush,
        is_full: AtomicBool::new(false),
        late_report_to: OnceLock::new(),
    });
    let (failed, failures) = mpsc::channel();
    let failed = Mutex::new(failed);
    let on_failure = move |failure: Failure| {
        failed.lock().expect("no panic").send(failure.to_string()).expect("the test listens");
    };
    let queue = ApplyHandle::new(world.clone(), Arc::new(on_failure));
    let parts = ThreadParts {
        raft: world.clone(),
        flusher: world.clone(),
        snapshots: world.clone(),
        peers: world.clone(),
        events: Some(world.clone()),
        published,
        metrics: ApplyMetrics::register(&prometheus::Registry::new()),
        stopwatch: Box::new(|| Duration::ZERO),
        slow_after: Duration::ZERO,
        compaction: CompactionPace { batch: 1, pause: Duration::from_millis(1) },
    };
    Unstarted { world, queue, machine, parts, failures }
}

impl Bench {
    /// Ends the thread and returns what everyone was told after the start.
    fn told(self) -> Vec<String> {
        self.queue.stop();
        self.thread.join().expect("guarded");
        assert_eq!(self.failures.try_recv().ok(), None);
        self.world.told.lock().expect("no panic").split_off(2)
    }
}

#[test]
fn a_batch_is_shown_then_reported_then_answered_then_flushed() {
    let bench = start_from(&Written::default(), None, false);
    bench.queue.commit(vec![entry(1, &put("a", "1", 0)), entry(2, &put("b", "2", 0)), entry(3, &grant(7, 60))]);
    bench.queue.build_snapshot();
    bench.queue.commit(vec![Entry { index: 4, term: 3, ..Entry::default() }]);
    let queue = bench.queue.clone();
    assert_eq!(
        bench.told(),
        [
            "applied 3 at revision 3",
            "answered [1, 2, 3] at revision 3",
            "raft: applied 3",
            "events 2 of 2 to 3 at revision 3",
            "flush 3 of 2 records",
            "build 3 at revision 3",
            "applied 4 at revision 3",
            "term started",
            "answered [] at revision 3",
            "raft: applied 4",
            "flush 4 of 0 records",
        ]
    );
    assert_eq!(queue.unapplied_bytes(), 0);
}

#[test]
fn configuration_changes_are_reported_before_index_and_answer_and_after_the_members_are_shown() {
    let bench = start_from(&Written::default(), None, false);
    let mut entries = bootstrap(2);
    entries.push(conf_entry(3, 0, 1, r#"{"id":1,"peerURLs":["http://h:7"]}"#));
    bench.queue.commit(entries);
    assert_eq!(
        bench.told(),
        [
            "applied 3 at revision 1",
            "raft: change 1 Some((0, 1)) with 2 members",
            r#"peers: Added(MemberId(1), ["http://h:1"])"#,
            "raft: change 2 Some((0, 2)) with 2 members",
            r#"peers: Added(MemberId(2), ["http://h:2"])"#,
            "raft: change 3 None with 2 members",
            "answered [1, 2, 3] at revision 1",
            "raft: applied 3",
            "flush 3 of 0 records",
        ]
    );
}

#[test]
fn a_compaction_is_told_when_ordered_and_when_deleted() {
    let bench = start_from(&Written::default(), None, false);
    bench.queue.commit(vec![entry(1, &put("a", "1", 0)), entry(2, &put("a", "2", 0)), entry(3, &compaction(3))]);
    let mut told = Vec::new();
    // The slices are done between batches, whether or not there are any.
    while !told.iter().any(|text| text == "flush soon") {
        std::thread::yield_now();
        told.clone_from(&bench.world.told.lock().expect("no panic"));
    }
    let world = bench.world.clone();
    let told = bench.told();
    assert_eq!(told[0], "compaction 3 -1");
    assert_eq!(told.last().map(String::as_str), Some("compaction 3 3"));
    let written = world.written.lock().expect("no panic");
    let stored = |main| written.tables.record(Revision::new(main, 0)).expect("memory").is_some();
    assert_eq!((stored(2), stored(3)), (false, true), "the first put is gone");
}

#[test]
fn waiting_batches_do_not_each_wait_for_a_slice_of_a_compaction() {
    let Unstarted { world, queue, machine, mut parts, .. } = unstarted(&Written::default(), None, false);
    let now = Arc::new(AtomicU64::new(1000));
    let clock = now.clone();
    parts.stopwatch = Box::new(move || Duration::from_millis(clock.load(Ordering::Relaxed)));
    let mut thread = Thread::new(machine, queue.clone(), parts);
    queue.commit((1..=9).map(|index| entry(index, &put("a", "1", 0))).chain([entry(10, &compaction(9))]).collect());
    assert!(thread.turn().expect("applied"), "the compaction begins with a slice");
    let slices = || world.told.lock().expect("no panic").iter().filter(|text| *text == "compaction 9 -1").count();
    let begun = slices();
    (11..=20).for_each(|index| queue.commit(vec![entry(index, &put("b", "1", 0))]));
    (0..9).for_each(|_| assert!(thread.turn().expect("applied")));
    assert_eq!(slices(), begun, "the pause between slices has not passed");
    now.fetch_add(1, Ordering::Relaxed);
    assert!(thread.turn().expect("applied"));
    assert_eq!(slices(), begun + 1, "a loaded member compacts too");
    assert!(!thread.turn().expect("idle"));
    assert_eq!(slices(), begun + 2, "an idle one without waiting");
}

#[test]
fn a_snapshot_replaces_everything_and_loses_outcomes() {
    let mut image = Written::default();
    let mut machine = image.machine(-1);
    for entry in bootstrap(3).iter().chain(&[entry(4, &put("x", "1", 0)), entry(5, &put("y", "1", 0))]) {
        machine.apply_entry(entry).expect("can be applied");
    }
    image.write(&machine.take_batch().expect("changes"));
    let snapshot = |index| {
        let metadata = SnapshotMetadata { index, ..SnapshotMetadata::default() };
        Snapshot { metadata: Some(metadata), ..Snapshot::default() }
    };
    let bench = start_from(&Written::default(), Some(image.clone()), false);
    bench.world.late_report_to.set(bench.queue.clone()).ok().expect("set once");
    bench.queue.install(snapshot(5));
    // The late report is in the queue before the stop.
    while !bench.world.told.lock().expect("no panic").iter().any(|text| text == "raft: installed 5") {
        std::thread::yield_now();
    }
    bench.queue.install(snapshot(4));
    bench.queue.commit(vec![entry(6, &put("z", "1", 0))]);
    let world = bench.world.clone();
    assert_eq!(
        bench.told(),
        [
            "peers: replaced by 3 and 0 removed",
            // Who waits for a compaction to be finished must not wait for one that the image replaced.
            "compaction -1 -1",
            "applied 5 at revision 3",
            "outcomes lost at revision 3",
            "events: store replaced at revision 3",
            "raft: installed 5",
            "raft: installed 4",
            "applied 6 at revision 4",
            "answered [6] at revision 4",
            "raft: applied 6",
            "events 1 of 4 to 4 at revision 4",
            "flush 6 of 1 records",
        ]
    );
    assert_eq!(world.published.cluster.members().len(), 3);
    let bench = start_from(&Written::default(), Some(image), false);
    bench.queue.install(snapshot(7));
    let text = bench.failures.recv().expect("a failure");
    assert_eq!(text, "the image of the snapshot at 7 holds the state at 5");
}

#[test]
fn the_first_failure_ends_the_thread_and_is_told_once() {
    let bench = start_from(&Written::default(), None, false);
    let bad = Entry { index: 1, data: Bytes::from_static(&[0xff; 9]), ..Entry::default() };
    bench.queue.commit(vec![bad]);
    assert_eq!(bench.failures.recv().expect("a failure"), "log entry 1 cannot be decoded");
    bench.queue.failed(Failure::Refused("the log".to_owned()));
    bench.thread.join().expect("guarded");
    assert!(bench.failures.try_recv().is_err());
}

#[test]
fn a_panic_ends_the_thread_as_a_failure_that_names_it() {
    let bench = start_from(&Written::default(), None, true);
    bench.queue.commit(vec![entry(1, &put("a", "1", 0))]);
    let text = bench.failures.recv().expect("a failure");
    assert_eq!(text, "the apply thread panicked: the disk is on fire");
    bench.thread.join().expect("guarded");
}

#[test]
fn stored_tables_replace_those_of_memory_and_old_ones_are_forgotten() {
    let bench = start_from(&Written::default(), None, false);
    bench.queue.commit(vec![entry(1, &put("a", "1", 0))]);
    while bench.world.written.lock().expect("no panic").applied.index < 1 {
        std::thread::yield_now();
    }
    let tables = bench.world.written.lock().expect("no panic").tables.clone();
    bench.queue.stored(Arc::new(tables), Some(Revision::new(2, 0)));
    bench.queue.commit(vec![entry(2, &put("a", "2", 0))]);
    let world = bench.world.clone();
    let told = bench.told();
    assert_eq!(told.last().map(String::as_str), Some("flush 2 of 1 records"));
    assert_eq!(world.revision(), 3);
}

/// Waits until the thread has nothing to do and has left its work in the queue.
fn until_parked(bench: &Bench) {
    while !bench.queue.is_parked() {
        if let Ok(failure) = bench.failures.try_recv() {
            panic!("{failure}");
        }
        std::thread::yield_now();
    }
}

#[test]
fn a_few_plain_puts_are_applied_by_who_commits_them_while_the_thread_sleeps() {
    let bench = start_from(&Written::default(), None, false);
    let told = || bench.world.told.lock().expect("no panic").split_off(2);
    until_parked(&bench);
    bench.queue.commit(vec![entry(1, &put("a", "1", 0)), entry(2, &put("b", "2", 0))]);
    assert!(bench.queue.is_parked(), "the work came back");
    let expected = [
        "applied 2 at revision 3",
        "answered [1, 2] at revision 3",
        "raft: applied 2",
        "events 2 of 2 to 3 at revision 3",
        "flush 2 of 2 records",
    ];
    assert_eq!(told(), expected, "everyone was told when `commit` returned");
    assert_eq!(bench.queue.unapplied_bytes(), 0);
    // Whatever may take longer, or start what does, is the thread's: it is given its work and goes on from there.
    let many = (0..INLINE_ENTRIES_MAX as u64 + 1).map(|n| entry(3 + n, &put("c", "3", 0))).collect::<Vec<_>>();
    let next = 3 + many.len() as u64;
    for entries in [many, vec![entry(next, &grant(7, 60))], vec![entry(next + 1, &put("d", "4", 7))]] {
        until_parked(&bench);
        bench.queue.commit(entries);
    }
    until_parked(&bench);
    bench.world.is_full.store(true, Ordering::SeqCst);
    bench.queue.commit(vec![entry(next + 2, &put("e", "5", 0))]);
    let world = bench.world.clone();
    bench.told();
    assert_eq!(world.written.lock().expect("no panic").applied.index, next + 2);
}

#[test]
fn entries_are_applied_in_their_order_whoever_applies_them() {
    let bench = start_from(&Written::default(), None, false);
    let tables = bench.world.written.lock().expect("no panic").tables.clone();
    let (queue, done) = (bench.queue.clone(), Arc::new(AtomicBool::new(false)));
    let others = std::thread::spawn({
        let done = done.clone();
        move || {
            // Reports of the flusher come at any time and must neither be lost nor keep the thread from its work.
            while !done.load(Ordering::SeqCst) {
                queue.stored(Arc::new(tables.clone()), None);
                std::thread::yield_now();
            }
        }
    });
    let mut index = 0;
    for round in 0..500_u64 {
        let count = if round % 7 == 0 { 40 } else { 1 + round % 3 };
        let entries: Vec<Entry> = (0..count).map(|n| entry(index + 1 + n, &put("a", "1", 0))).collect();
        index += count;
        bench.queue.commit(entries);
        if round % 5 == 0 {
            index += 1;
            bench.queue.commit(vec![entry(index, &grant(round as i64 + 1, 60))]);
        }
        if round % 11 == 0 {
            until_parked(&bench);
        }
    }
    done.store(true, Ordering::SeqCst);
    others.join().expect("no panic");
    let world = bench.world.clone();
    // A gap or an entry applied twice would have been a failure.
    bench.told();
    assert_eq!(world.written.lock().expect("no panic").applied.index, index);
}

#[test]
fn a_failure_in_other_hands_ends_the_thread_too() {
    let bench = start_from(&Written::default(), None, false);
    until_parked(&bench);
    bench.queue.commit(vec![entry(2, &put("a", "1", 0))]);
    let text = bench.failures.recv().expect("a failure");
    assert_eq!(text, "log entry 2 cannot be applied behind entry 0");
    bench.thread.join().expect("guarded");
}

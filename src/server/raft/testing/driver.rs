//! The raft thread with a log whose disk the test holds: what leaves before a write is durable, and what must not.

use std::collections::BTreeMap;
use std::collections::HashSet;
use std::sync::Arc;
use std::sync::Condvar;
use std::sync::Mutex;
use std::thread;
use std::thread::ThreadId;
use std::time::Duration;
use std::time::Instant;

use bytes::Bytes;

use crate::common::failure::Failure;
use crate::common::ids::MemberId;
use crate::proto::raft_numbers as numbers;
use crate::proto::raftpb::ConfChange;
use crate::proto::raftpb::ConfState;
use crate::proto::raftpb::Entry;
use crate::proto::raftpb::HardState;
use crate::proto::raftpb::Message;
use crate::proto::raftpb::Snapshot;
use crate::proto::raftpb::SnapshotMetadata;
use crate::proto::walpb;
use crate::server::raft::bootstrap::bootstrap_entries;
use crate::server::raft::config::RaftConfig;
use crate::server::raft::config::Start;
use crate::server::raft::config::UNAPPLIED_ENTRIES_MAX;
use crate::server::raft::driver;
use crate::server::raft::driver::Parts;
use crate::server::raft::handle::Busy;
use crate::server::raft::handle::RaftHandle;
use crate::server::raft::log_store::LogStore;
use crate::server::raft::metrics::RaftMetrics;
use crate::server::raft::state_machine::Inbox;
use crate::server::raft::state_machine::RaftStatus;
use crate::server::raft::state_machine::Refusal;
use crate::server::raft::state_machine::Role;
use crate::server::raft::state_machine::StateMachine;
use crate::server::raft::state_machine::Transport;

/// A test that waits longer than this has failed.
const PATIENCE: Duration = Duration::from_secs(30);

/// What happened, in order; and what the fakes are told to do.
#[derive(Default)]
pub(super) struct World {
    pub events: Vec<String>,
    /// While set, no save returns.
    pub disk_stuck: bool,
    pub disk_broken: bool,
    /// How long a save takes at least.
    pub slow: Option<Duration>,
    /// Saves begun, and by whom.
    pub writings: usize,
    pub writers: Vec<ThreadId>,
    pub apply_panics: bool,
    /// While set, committed entries are reported as applied at once.
    applies: bool,
    handle: Option<RaftHandle>,
    network: BTreeMap<u64, RaftHandle>,
}

/// All fakes of one member.
#[derive(Clone, Default)]
pub(super) struct Fake(Arc<(Mutex<World>, Condvar)>);

impl Fake {
    fn say(&self, event: String) {
        self.0.0.lock().unwrap().events.push(event);
        self.0.1.notify_all();
    }

    pub fn set(&self, change: impl FnOnce(&mut World)) {
        change(&mut self.0.0.lock().unwrap());
        self.0.1.notify_all();
    }

    pub fn events(&self) -> Vec<String> {
        self.0.0.lock().unwrap().events.clone()
    }

    /// Waits until an event with this text was said.
    pub fn until(&self, text: &str) {
        let world = self.0.0.lock().unwrap();
        let missing = |world: &mut World| !world.events.iter().any(|event| event.contains(text));
        let (world, timeout) = self.0.1.wait_timeout_while(world, PATIENCE, missing).unwrap();
        assert!(!timeout.timed_out(), "no {text} in {:#?}", world.events);
    }

    pub fn writings(&self) -> usize {
        self.0.0.lock().unwrap().writings
    }

    /// Waits until so many saves were begun.
    pub fn until_writing(&self, count: usize) {
        wait_for("a save", || self.writings() >= count);
    }

    pub fn writers(&self) -> HashSet<ThreadId> {
        self.0.0.lock().unwrap().writers.iter().copied().collect()
    }

    pub fn last_writer(&self) -> Option<ThreadId> {
        self.0.0.lock().unwrap().writers.last().copied()
    }

    fn position(&self, text: &str) -> usize {
        let events = self.events();
        events.iter().position(|event| event.contains(text)).unwrap_or_else(|| panic!("no {text} in {events:#?}"))
    }
}

impl LogStore for Fake {
    fn save(&mut self, state: Option<&HardState>, entries: &[Entry], must_sync: bool) -> Result<(), Failure> {
        self.say(format!("writing {} entries", entries.len()));
        self.set(|world| {
            world.writings += 1;
            world.writers.push(thread::current().id());
        });
        let world = self.0.0.lock().unwrap();
        let world = self.0.1.wait_while(world, |world| world.disk_stuck).unwrap();
        if let Some(slow) = world.slow {
            thread::sleep(slow);
        }
        if world.disk_broken {
            return Err(Failure::Refused("cannot fdatasync wal".to_owned()));
        }
        drop(world);
        let data: Vec<_> = entries.iter().map(|entry| String::from_utf8_lossy(&entry.data).into_owned()).collect();
        let state = state.map(|state| (state.term, state.vote, state.commit));
        self.say(format!("saved {state:?} {data:?} sync {must_sync}"));
        Ok(())
    }

    fn save_snapshot(&mut self, snapshot: &walpb::Snapshot) -> Result<(), Failure> {
        self.say(format!("recorded {}", snapshot.index));
        Ok(())
    }

    fn release_to(&mut self, index: u64) -> Result<(), Failure> {
        self.say(format!("released {index}"));
        Ok(())
    }

    fn only_appends(&self, _bytes: usize) -> bool {
        true
    }
}

impl StateMachine for Fake {
    fn commit(&self, entries: Vec<Entry>) {
        assert!(!self.0.0.lock().unwrap().apply_panics, "apply is told to panic");
        for entry in &entries {
            self.say(format!("committed {} {}", entry.index, String::from_utf8_lossy(&entry.data)));
        }
        let world = self.0.0.lock().unwrap();
        if let Some(handle) = world.handle.as_ref().filter(|_| world.applies) {
            for entry in entries.iter().filter(|entry| entry.r#type == numbers::ENTRY_CONF_CHANGE) {
                let change = prost::Message::decode(entry.data.clone()).unwrap();
                handle.conf_change_applied(entry.index, Some(change));
            }
            handle.applied(entries.last().unwrap().index);
        }
    }

    fn install(&self, snapshot: Snapshot) {
        self.say(format!("install {}", snapshot.metadata.unwrap().index));
    }

    fn build_snapshot(&self) {
        self.say("build".to_owned());
    }

    fn refused(&self, request_id: u64, why: Refusal) {
        self.say(format!("refused {request_id} {why:?}"));
    }

    fn read_ready(&self, context: Bytes, index: u64) {
        self.say(format!("read {} at {index}", String::from_utf8_lossy(&context)));
    }

    fn status_changed(&self, status: RaftStatus) {
        self.say(format!("status {:?} term {}", status.role, status.term));
    }

    fn failed(&self, failure: Failure) {
        self.say(format!("failed: {failure}"));
    }
}

impl Transport for Fake {
    fn send(&self, messages: Vec<Message>) {
        for message in messages {
            let world = self.0.0.lock().unwrap();
            let lone = world.handle.as_ref().is_some_and(RaftHandle::lone_leader);
            let peer = world.network.get(&message.to).cloned();
            drop(world);
            self.say(format!("sent {} to {} lone {lone} reject {}", message.r#type, message.to, message.reject));
            if let Some(peer) = peer {
                peer.step(message);
            }
        }
    }
}

pub(super) fn config(id: u64) -> RaftConfig {
    // One record for every checkpoint; ticks that a test never waits for unless it asks for a short one.
    RaftConfig { snapshot_entries: 1, tick: Duration::from_secs(3600), ..RaftConfig::new(MemberId(id), 7) }
}

pub(super) fn bootstrapped(voters: u64) -> Start {
    let members: Vec<_> = (1..=voters).map(|id| (MemberId(id), String::new(), Vec::new())).collect();
    let (entries, hard_state, conf_state) = bootstrap_entries(&members);
    Start { hard_state, base: (0, 0), entries, durable_index: voters, applied: (voters, 1), conf_state }
}

pub(super) fn start_with(config: &RaftConfig, start: Start) -> (RaftHandle, Fake) {
    let fake = Fake::default();
    fake.set(|world| world.applies = true);
    let ended = fake.clone();
    let parts = Parts {
        log: Box::new(fake.clone()),
        state: Arc::new(fake.clone()),
        transport: Arc::new(fake.clone()),
        metrics: RaftMetrics::register(&prometheus::Registry::new()),
        end_process: Arc::new(move |thread, text| ended.say(format!("thread {thread} ended: {text}"))),
    };
    let handle = driver::start(config, start, parts).unwrap();
    fake.set(|world| world.handle = Some(handle.clone()));
    // The first entries may have been committed before the fake knew its handle.
    handle.applied(handle.status().commit_index);
    (handle, fake)
}

pub(super) fn wait_for(what: &str, condition: impl Fn() -> bool) {
    let end = Instant::now() + PATIENCE;
    while !condition() {
        assert!(Instant::now() < end, "never: {what}");
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// A lone leader with nothing said yet.
pub(super) fn lone() -> (RaftHandle, Fake) {
    let (handle, fake) = start_with(&config(1), bootstrapped(1));
    wait_for("the lone voter leads", || {
        handle.applied(handle.status().commit_index);
        handle.lone_leader()
    });
    fake.set(|world| world.events.clear());
    (handle, fake)
}

#[test]
fn nothing_is_committed_before_the_write_returns() {
    let (handle, fake) = lone();
    fake.set(|world| world.disk_stuck = true);
    handle.propose(1, Bytes::from_static(b"value")).unwrap();
    fake.until("writing 1 entries");
    assert!(!fake.events().iter().any(|event| event.contains("value")));
    fake.set(|world| world.disk_stuck = false);
    fake.until("committed 3 value");
    assert!(fake.position("saved") < fake.position("committed 3 value"));
    handle.stop();
}

#[test]
fn no_vote_and_no_acknowledgement_leaves_before_the_write_returns() {
    let (handle, fake) = start_with(&config(1), bootstrapped(3));
    fake.set(|world| world.disk_stuck = true);
    let vote =
        Message { r#type: numbers::MSG_VOTE, to: 1, from: 2, term: 5, log_term: 1, index: 3, ..Default::default() };
    handle.step(vote);
    fake.until("writing 0 entries");
    assert!(!fake.events().iter().any(|event| event.contains("sent")));
    fake.set(|world| world.disk_stuck = false);
    fake.until("sent 6 to 2");
    assert!(fake.position("saved Some((5, 2, 3)) [] sync true") < fake.position("sent 6 to 2"));

    fake.set(|world| world.disk_stuck = true);
    let entries = vec![Entry { term: 5, index: 4, data: Bytes::from_static(b"x"), ..Default::default() }];
    let append = Message {
        r#type: numbers::MSG_APP,
        to: 1,
        from: 2,
        term: 5,
        log_term: 1,
        index: 3,
        entries,
        ..Default::default()
    };
    handle.step(append);
    fake.until("writing 1 entries");
    assert!(!fake.events().iter().any(|event| event.contains("sent 4")));
    fake.set(|world| world.disk_stuck = false);
    fake.until("sent 4 to 2 lone false reject false");
    handle.stop();
}

#[test]
fn a_new_leaders_first_messages_wait_for_its_vote_and_later_ones_do_not_wait_for_the_disk() {
    // A lone voter with a learner becomes leader within one step: term, vote and first entry are one write.
    let start =
        Start { conf_state: ConfState { voters: vec![1], learners: vec![2], ..Default::default() }, ..bootstrapped(1) };
    let (handle, fake) = start_with(&config(1), start);
    fake.until("sent 3 to 2");
    assert!(fake.position("saved Some((2, 1, 1))") < fake.position("sent 3 to 2"));
    handle.step(Message { r#type: numbers::MSG_APP_RESP, to: 1, from: 2, term: 2, index: 2, ..Default::default() });
    wait_for("the learner is known", || handle.match_index(MemberId(2)) == Some(2));
    fake.set(|world| {
        world.events.clear();
        world.disk_stuck = true;
    });
    handle.propose(1, Bytes::from_static(b"value")).unwrap();
    fake.until("writing 1 entries");
    assert!(fake.position("sent 3 to 2") < fake.position("writing 1 entries"));
    fake.set(|world| world.disk_stuck = false);
    handle.stop();
}

#[test]
fn one_write_serves_every_proposal_that_waited() {
    let (handle, fake) = lone();
    fake.set(|world| world.disk_stuck = true);
    handle.propose(1, Bytes::from_static(b"first")).unwrap();
    fake.until("writing 1 entries");
    for request in 2..=500 {
        handle.propose(request, Bytes::from_static(b"more")).unwrap();
    }
    fake.set(|world| world.disk_stuck = false);
    fake.until("writing 499 entries");
    fake.until("committed 502 more");
    handle.stop();
}

#[test]
fn the_first_failed_write_stops_the_thread() {
    let (handle, fake) = lone();
    fake.set(|world| world.disk_broken = true);
    handle.propose(1, Bytes::from_static(b"value")).unwrap();
    fake.until("failed: cannot fdatasync wal");
    assert!(!fake.events().iter().any(|event| event.contains("committed 3")));
    wait_for("proposals are refused", || handle.propose(2, Bytes::new()) == Err(Busy::Stopped));
    assert!(!handle.lone_leader());
    handle.stop();
}

#[test]
fn a_panic_ends_the_process_and_names_the_thread() {
    let (handle, fake) = lone();
    fake.set(|world| world.apply_panics = true);
    handle.propose(1, Bytes::from_static(b"value")).unwrap();
    fake.until("thread raft ended: apply is told to panic");
    wait_for("the handle knows", || handle.propose(2, Bytes::new()) == Err(Busy::Stopped));
}

#[test]
fn a_log_that_was_lost_ends_the_member() {
    let (handle, fake) = start_with(&config(1), bootstrapped(3));
    handle.step(Message { r#type: numbers::MSG_HEARTBEAT, to: 1, from: 2, term: 5, commit: 50, ..Default::default() });
    fake.until("the local log was lost");
    handle.stop();
}

#[test]
fn checkpoints_record_and_release_up_to_the_one_before() {
    let mut config = config(1);
    config.catch_up.entries = 2;
    let (handle, fake) = start_with(&config, bootstrapped(1));
    for request in 1..=20 {
        handle.propose(request, Bytes::from_static(b"v")).unwrap();
    }
    fake.until("committed 22 v");
    wait_for("all is applied", || handle.status().commit_index == 22);
    let conf_state = ConfState { voters: vec![1], ..Default::default() };
    handle.checkpointed(10, 2, conf_state.clone());
    fake.until("recorded 10");
    fake.until("released");
    assert!(fake.events().iter().any(|event| event == "released 1"), "{:#?}", fake.events());
    handle.checkpointed(22, 2, conf_state);
    fake.until("recorded 22");
    fake.until("released 10");
    let events = fake.events();
    assert!(!events.iter().any(|event| event == "released 22"), "{events:#?}");
    // A start takes only records that the hard state commits: the commit index is written before the record.
    let commit = events.iter().rposition(|event| event.contains(", 22)) [] sync false")).expect("commit index 22");
    assert!(commit < fake.position("recorded 22"));
    handle.stop();
}

#[test]
fn a_received_snapshot_is_recorded_and_committed_before_it_is_installed() {
    let (handle, fake) = start_with(&config(1), bootstrapped(3));
    let conf_state = ConfState { voters: vec![1, 2, 3], ..Default::default() };
    let metadata = SnapshotMetadata { conf_state: Some(conf_state), index: 40, term: 4 };
    let snapshot = Some(Snapshot { data: Bytes::new(), metadata: Some(metadata) });
    handle.step(Message { r#type: numbers::MSG_SNAP, to: 1, from: 2, term: 5, snapshot, ..Default::default() });
    fake.until("sent 4 to 2");
    let order = ["recorded 40", "saved Some((5, 0, 40)) [] sync true", "install 40", "sent 4 to 2"];
    let positions: Vec<usize> = order.iter().map(|text| fake.position(text)).collect();
    assert!(positions.is_sorted(), "{:#?}", fake.events());
    handle.snapshot_installed(40);
    handle.stop();
}

#[test]
fn clients_are_refused_when_apply_is_too_far_behind() {
    let (handle, fake) = lone();
    fake.set(|world| world.applies = false);
    wait_for("too many requests", || handle.propose(1, Bytes::from_static(b"v")) == Err(Busy::TooMany));
    wait_for("apply is behind", || handle.status().commit_index > UNAPPLIED_ENTRIES_MAX);
    handle.applied(handle.status().commit_index);
    wait_for("there is room again", || handle.propose(1, Bytes::from_static(b"v")).is_ok());
    handle.stop();
}

#[test]
fn no_message_of_a_larger_configuration_leaves_a_lone_leader() {
    let (handle, fake) = lone();
    let change = ConfChange { id: 9, r#type: numbers::CONF_ADD_NODE, node_id: 2, context: Bytes::new() };
    handle.propose_conf_change(9, change).unwrap();
    fake.until("to 2");
    assert!(!fake.events().iter().any(|event| event.contains("to 2 lone true")), "{:#?}", fake.events());
    handle.stop();
}

#[test]
fn the_stop_writes_the_commit_index() {
    let (handle, fake) = lone();
    handle.propose(1, Bytes::from_static(b"last")).unwrap();
    fake.until("committed 3 last");
    handle.stop();
    assert!(fake.events().last().unwrap().starts_with("saved Some((2, 1, 3)) [] sync true"), "{:#?}", fake.events());
    assert_eq!(handle.propose(2, Bytes::new()), Err(Busy::Stopped));
}

#[test]
fn three_threads_elect_a_leader_and_serve_a_write_and_a_read() {
    let members: Vec<(RaftHandle, Fake)> = (1..=3)
        .map(|id| start_with(&RaftConfig { tick: Duration::from_millis(10), ..config(id) }, bootstrapped(3)))
        .collect();
    let network: BTreeMap<u64, RaftHandle> = (1..).zip(members.iter().map(|(handle, _)| handle.clone())).collect();
    for (_, fake) in &members {
        fake.set(|world| world.network = network.clone());
    }
    let leader = || members.iter().find(|(handle, _)| handle.status().role == Role::Leader);
    wait_for("a leader", || leader().is_some());
    let (handle, fake) = leader().unwrap();
    handle.propose(1, Bytes::from_static(b"value")).unwrap();
    for (_, fake) in &members {
        fake.until("value");
    }
    handle.read_index(Bytes::from_static(b"r1"));
    fake.until("read r1 at");
    for (handle, _) in &members {
        handle.stop();
    }
}

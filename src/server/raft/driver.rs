//! The raft thread: takes everything that waits, steps the node, and does one round of its work after the other.
//!
//! One round: committed entries and reads of earlier rounds go to apply; a leader's messages leave, if its vote and term
//! are on disk; snapshot record, entries and hard state are written with one fdatasync, however many proposals they
//! carry; then everything that promised durability leaves. The thread waits for its log and for nothing else. Its first
//! error is its last: it stops, and the process ends (reliability.md 3.3, 9).
//!
//! While a lone voter's thread sleeps, a proposal that comes alone is done by whoever brings it (`RaftHandle::propose_here`):
//! the same rounds on the same driver, which the mailbox lends to one at a time. Ticks, the stop and everything else stay
//! the thread's; so does the end: an error or panic in a borrower's hands is handed to the thread, which ends of it. A
//! disk that hangs under a borrower keeps the driver from the thread's next tick, as one that hangs under the thread does.

use std::fmt;
use std::panic::AssertUnwindSafe;
use std::panic::catch_unwind;
use std::panic::resume_unwind;
use std::sync::Arc;
use std::sync::PoisonError;
use std::sync::atomic::Ordering;
use std::thread;
use std::time::Duration;
use std::time::Instant;

use super::config::RaftConfig;
use super::config::Start;
use super::handle::RaftHandle;
use super::handle::Shared;
use super::input::Effect;
use super::input::Input;
use super::log_store::LogStore;
use super::mailbox::Rest;
use super::mailbox::Waiting;
use super::metrics::RaftMetrics;
use super::node::Node;
use super::state_machine::RaftStatus;
use super::state_machine::Role;
use super::state_machine::StateMachine;
use super::state_machine::Transport;
use crate::common::failure::Failure;
use crate::common::ids::MemberId;
use crate::proto::raftpb::Entry;
use crate::proto::raftpb::Snapshot;
use crate::proto::walpb;

/// The thread's name, in logs and in what the guard reports.
pub const THREAD_NAME: &str = "raft";
/// A WAL snapshot record is also written after this many bytes of entries: half a segment, so that large values do not
/// keep many segments alive until `RaftConfig::snapshot_entries` is reached.
const SNAPSHOT_RECORD_BYTES: u64 = 32 << 20;
/// Ticks that the first election timeout keeps when the others are skipped at start: time for a leader's heartbeat.
const FIRST_TICKS: usize = 2;

/// A save that takes longer is worth a wake-up or two, and nobody but the raft thread should wait for it.
const QUICK_SAVE: Duration = Duration::from_millis(5);
/// So many quick saves in a row before the driver is lent again.
const QUICK_SAVES: u32 = 4;

/// Ends the process because a thread panicked: its name and the panic's text.
pub type EndProcess = Arc<dyn Fn(&'static str, &str) + Send + Sync>;

/// What the raft thread works with.
pub struct Parts {
    pub log: Box<dyn LogStore>,
    pub state: Arc<dyn StateMachine>,
    pub transport: Arc<dyn Transport>,
    pub metrics: RaftMetrics,
    pub end_process: EndProcess,
}

/// Starts the raft thread on a recovered log. An error means that log and checkpoint do not fit together.
pub fn start(config: &RaftConfig, start: Start, parts: Parts) -> Result<RaftHandle, Failure> {
    let state = parts.state.clone();
    let end_process = parts.end_process.clone();
    let driver = Box::new(Driver::new(config, start, parts)?);
    let shared = driver.shared.clone();
    let of_thread = shared.clone();
    let thread = thread::Builder::new()
        .name(THREAD_NAME.to_owned())
        .spawn(move || guarded(driver, &of_thread, state.as_ref(), &end_process))
        .map_err(|error| Failure::Refused(format!("cannot start the raft thread: {error}")))?;
    Ok(RaftHandle::new(shared, Some(thread)))
}

/// Runs the thread to its end, whichever it is.
fn guarded(driver: Box<Driver>, shared: &Shared, state: &dyn StateMachine, end_process: &EndProcess) {
    let end = catch_unwind(AssertUnwindSafe(|| driver.run()));
    shared.lone_leader.store(false, Ordering::SeqCst);
    shared.stopped.store(true, Ordering::Relaxed);
    shared.mailbox.close();
    match end {
        Ok(Ok(End::Stopped)) => tracing::info!("raft stopped"),
        Ok(Ok(End::Removed)) => state.removed(),
        Ok(Err(failure)) => state.failed(failure),
        Err(panic) => end_process(THREAD_NAME, panic_text(panic.as_ref())),
    }
}

fn panic_text(panic: &(dyn std::any::Any + Send)) -> &str {
    let text = panic.downcast_ref::<&'static str>().copied();
    text.or_else(|| panic.downcast_ref::<String>().map(String::as_str)).unwrap_or("a panic without a text")
}

/// Bytes of a proposal that may be done by whoever brings it.
pub(super) const LENT_BYTES_MAX: usize = 64 << 10;

/// Why the work is over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    Stopped,
    Removed,
}

/// The thread's work without the thread and its clock: what a test drives step by step, and the simulator.
pub struct Driver {
    node: Node,
    id: MemberId,
    parts: Parts,
    shared: Arc<Shared>,
    tick: Duration,
    skipped_ticks: usize,
    next_tick: Instant,
    shown: RaftStatus,
    removed: bool,
    snapshot_entries: u64,
    /// The newest checkpoint's applied index. The one before it bounds the release of the log (reliability.md 3.3, 7).
    checkpoint_index: u64,
    /// The newest WAL snapshot record's index, and the bytes of entries since. After a start the log's beginning: members
    /// that restart often must come to release their logs, too.
    recorded_index: u64,
    bytes_since_record: u64,
    /// The last saves in a row that were quick.
    quick_saves: u32,
    /// How the work ended in a borrower's hands: an end, an error, or a panic.
    ended: Option<thread::Result<Result<Option<End>, Failure>>>,
}

impl fmt::Debug for Driver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Driver").field("id", &self.id).field("shown", &self.shown).finish_non_exhaustive()
    }
}

impl Driver {
    pub fn new(config: &RaftConfig, start: Start, parts: Parts) -> Result<Driver, Failure> {
        let applied = start.applied.0;
        let (checkpoint_index, recorded_index) = (start.durable_index, start.base.0);
        let node = Node::new(config, start)?;
        let shared = Arc::new(Shared::default());
        shared.applied_index.store(applied, Ordering::Relaxed);
        let skipped_ticks =
            if config.initial_tick_advance { config.election_ticks.saturating_sub(FIRST_TICKS) } else { 0 };
        Ok(Driver {
            node,
            id: config.id,
            parts,
            shared,
            tick: config.tick,
            skipped_ticks,
            next_tick: Instant::now() + config.tick,
            shown: RaftStatus::default(),
            removed: false,
            snapshot_entries: config.snapshot_entries,
            checkpoint_index,
            recorded_index,
            bytes_since_record: 0,
            quick_saves: 0,
            ended: None,
        })
    }

    /// A handle without a thread: its `stop` waits for nobody.
    pub fn handle(&self) -> RaftHandle {
        RaftHandle::new(self.shared.clone(), None)
    }

    fn run(self: Box<Driver>) -> Result<End, Failure> {
        let shared = self.shared.clone();
        let mut driver = self;
        driver.begin()?;
        loop {
            let (rest, deadline) = (driver.rest(), driver.next_tick);
            let waiting;
            (driver, waiting) = shared.mailbox.sleep(driver, rest, deadline);
            if let Some(ended) = driver.ended.take()
                && let Some(end) = ended.unwrap_or_else(|panic| resume_unwind(panic))?
            {
                return Ok(end);
            }
            let due = driver.tick_is_due();
            if let Some(end) = driver.work(waiting, due)? {
                return Ok(end);
            }
        }
    }

    /// How the driver is left between two turns.
    pub(super) fn rest(&self) -> Rest {
        Rest {
            awaits_applied: self.node.awaits_applied(),
            // With other voters the proposer would wait for them anyway.
            lendable: self.shown.lone_leader
                && self.quick_saves >= QUICK_SAVES
                && self.parts.log.only_appends(LENT_BYTES_MAX),
            wanted: self.ended.is_some(),
        }
    }

    /// A turn of somebody who has borrowed the driver. However it ends, the thread learns of it.
    pub(super) fn work_lent(&mut self, waiting: Waiting) {
        match catch_unwind(AssertUnwindSafe(|| self.work(waiting, false))) {
            Ok(Ok(None)) => {}
            ended => self.ended = Some(ended),
        }
    }

    /// What comes before all turns.
    pub fn begin(&mut self) -> Result<(), Failure> {
        if self.node.status().role == Role::Follower {
            for _ in 0..self.skipped_ticks {
                self.step(Input::Tick)?;
            }
        }
        self.rounds()?;
        self.show();
        Ok(())
    }

    /// Does what waits, and a tick if one is due; never sleeps.
    pub fn turn(&mut self, due: bool) -> Result<Option<End>, Failure> {
        let waiting = self.shared.mailbox.take_now();
        self.work(waiting, due)
    }

    fn work(&mut self, mut waiting: Waiting, due: bool) -> Result<Option<End>, Failure> {
        let stop = waiting.stop;
        let checkpoints = std::mem::take(&mut waiting.checkpoints);
        self.step_all(waiting)?;
        if due {
            self.step(Input::Tick)?;
        }
        self.rounds()?;
        for checkpoint in checkpoints {
            self.checkpoint(checkpoint)?;
        }
        self.show();
        self.show_matches();
        if self.removed {
            return Ok(Some(End::Removed));
        }
        if stop {
            self.save_hard_state(true)?;
            return Ok(Some(End::Stopped));
        }
        Ok(None)
    }

    /// Reports before messages, messages before requests: what apply and peers say may make room for what clients want.
    fn step_all(&mut self, waiting: Waiting) -> Result<(), Failure> {
        for member in waiting.unreachable {
            self.step(Input::Unreachable(member))?;
        }
        for (member, delivered) in waiting.snapshot_reports {
            self.step(Input::SnapshotReport { member, delivered })?;
        }
        for (index, change) in waiting.conf_changes_applied {
            self.step(Input::ConfChangeApplied { index, change })?;
        }
        if waiting.applied > 0 {
            self.step(Input::Applied(waiting.applied))?;
        }
        if let Some(snapshot) = waiting.snapshot_built {
            self.step(Input::SnapshotBuilt(snapshot))?;
        }
        for message in waiting.peer {
            self.step(Input::Peer(message))?;
        }
        if let Some(member) = waiting.transfer {
            self.step(Input::TransferLeader(member))?;
        }
        if waiting.campaign {
            self.step(Input::Campaign)?;
        }
        for context in waiting.reads {
            self.step(Input::ReadIndex(context))?;
        }
        if !waiting.proposals.is_empty() {
            self.step(Input::Propose(waiting.proposals))?;
        }
        for same_term in waiting.term_proposals.chunk_by(|one, next| one.0 == next.0) {
            let proposals = same_term.iter().map(|(_, proposal)| proposal.clone()).collect();
            self.step(Input::ProposeInTerm { term: same_term[0].0, proposals })?;
        }
        for (request_id, change) in waiting.conf_changes {
            self.step(Input::ProposeConfChange { request_id, change })?;
        }
        Ok(())
    }

    /// Takes one input. What it makes possible is done by `rounds`.
    pub fn step(&mut self, input: Input) -> Result<(), Failure> {
        let effects = self.node.step(input)?;
        self.effects(effects);
        Ok(())
    }

    /// One tick at most: a process that was paused must not make up for lost ticks and start an election with them.
    fn tick_is_due(&mut self) -> bool {
        let now = Instant::now();
        let Some(late) = now.checked_duration_since(self.next_tick) else { return false };
        if late > self.tick {
            if self.shown.role == Role::Leader {
                self.parts.metrics.heartbeat_failures.inc();
            }
            self.next_tick = now + self.tick;
        } else {
            self.next_tick += self.tick;
        }
        true
    }

    /// Does rounds until nothing waits.
    pub fn rounds(&mut self) -> Result<(), Failure> {
        while self.node.has_ready() {
            self.round()?;
        }
        Ok(())
    }

    fn round(&mut self) -> Result<(), Failure> {
        let round = self.node.ready();
        self.show();
        self.commit(round.committed);
        for read in round.reads {
            self.parts.state.read_ready(read.context, read.index);
        }
        if !round.messages_before.is_empty() {
            self.parts.transport.send(round.messages_before);
        }
        if let Some(snapshot) = &round.snapshot {
            self.save_received_snapshot(snapshot)?;
        }
        if round.hard_state.is_some() || round.must_sync {
            self.bytes_since_record += round.entries.iter().map(|entry| entry.data.len() as u64).sum::<u64>();
            let started = Instant::now();
            self.parts.log.save(round.hard_state.as_ref(), &round.entries, round.must_sync)?;
            self.quick_saves = if started.elapsed() <= QUICK_SAVE { self.quick_saves.saturating_add(1) } else { 0 };
        }
        if let Some(snapshot) = round.snapshot {
            self.parts.state.install(snapshot);
        }
        let done = self.node.persisted()?;
        self.show();
        let mut messages = round.messages_after;
        messages.extend(done.messages);
        if !messages.is_empty() {
            self.parts.transport.send(messages);
        }
        self.commit(done.committed);
        self.effects(done.effects);
        Ok(())
    }

    fn commit(&self, entries: Vec<Entry>) {
        if !entries.is_empty() {
            self.parts.state.commit(entries);
        }
    }

    fn effects(&mut self, effects: Vec<Effect>) {
        for effect in effects {
            match effect {
                Effect::Refused { request_id, why } => self.parts.state.refused(request_id, why),
                Effect::BuildSnapshot => self.parts.state.build_snapshot(),
                Effect::Removed => self.removed = true,
                Effect::MessageDropped(why) => self.parts.metrics.messages_dropped.with_label_values(&[why]).inc(),
            }
        }
    }

    /// The record goes first: without a hard state that commits it, a start ignores it (server.md 10.1).
    fn save_received_snapshot(&mut self, snapshot: &Snapshot) -> Result<(), Failure> {
        let metadata = snapshot.metadata.clone().unwrap_or_default();
        let (index, term) = (metadata.index, metadata.term);
        tracing::info!(index, term, "received a snapshot");
        self.parts.log.save_snapshot(&walpb::Snapshot { index, term, conf_state: metadata.conf_state })?;
        self.recorded_index = index;
        self.checkpoint_index = self.checkpoint_index.max(index);
        self.bytes_since_record = 0;
        Ok(())
    }

    /// Once enough lies behind the checkpoint: a durable snapshot record, then the log before it may go.
    pub fn checkpoint(&mut self, checkpoint: walpb::Snapshot) -> Result<(), Failure> {
        let previous = self.checkpoint_index;
        self.checkpoint_index = previous.max(checkpoint.index);
        self.step(Input::Checkpointed(checkpoint.index))?;
        let due = checkpoint.index >= self.recorded_index.saturating_add(self.snapshot_entries)
            || (checkpoint.index > self.recorded_index && self.bytes_since_record >= SNAPSHOT_RECORD_BYTES);
        if due {
            // A start takes a record only if the newest hard state commits it, and commit alone is not written at once.
            self.save_hard_state(false)?;
            self.parts.log.save_snapshot(&checkpoint)?;
            self.recorded_index = checkpoint.index;
            self.bytes_since_record = 0;
            self.parts.log.release_to(previous.min(self.node.base_index()))?;
        }
        Ok(())
    }

    fn save_hard_state(&mut self, must_sync: bool) -> Result<(), Failure> {
        match self.node.take_unsaved_hard_state() {
            Some(state) => self.parts.log.save(Some(&state), &[], must_sync),
            None => Ok(()),
        }
    }

    /// Shows what changed, before any message of this round leaves: the lone leader's flag must fall first.
    fn show(&mut self) {
        let status = self.node.status();
        self.shared.lone_leader.store(status.lone_leader, Ordering::SeqCst);
        self.shared.commit_index.store(status.commit_index, Ordering::Relaxed);
        self.shared.unapplied_bytes.store(self.node.unapplied_bytes(), Ordering::Relaxed);
        if status == self.shown {
            return;
        }
        if (status.role, status.leader) != (self.shown.role, self.shown.leader) {
            let leader = status.leader.map(|leader| leader.to_string()).unwrap_or_default();
            tracing::info!(member = %self.id, role = ?status.role, term = status.term, leader, "raft state changed");
        }
        *self.shared.status.lock().unwrap_or_else(PoisonError::into_inner) = status;
        self.parts.metrics.show(self.id, &status, self.node.is_learner(), self.shown.leader);
        self.shown = status;
        self.parts.state.status_changed(status);
    }

    fn show_matches(&self) {
        let matches = self.node.matches().into_iter().collect();
        *self.shared.matches.lock().unwrap_or_else(PoisonError::into_inner) = matches;
    }
}

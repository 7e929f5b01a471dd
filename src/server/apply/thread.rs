//! The apply thread: takes what is committed, applies it, and tells everyone in a fixed order.
//!
//! One batch: apply; publish the View; answer waiters; report to raft; give events to the watch hub; hand the changes
//! to the flusher. So nobody is told of a revision that a read on this member cannot see, and the only thing that can
//! make the thread wait, a full flusher, comes last.

use std::any::Any;
use std::panic::AssertUnwindSafe;
use std::panic::catch_unwind;
use std::sync::Arc;
use std::thread;
use std::thread::JoinHandle;
use std::time::Duration;

use crate::common::failure::Failure;
use crate::common::revision::Revision;
use crate::proto::raftpb::Entry;
use crate::proto::raftpb::Snapshot;
use crate::server::apply::decode::Command;
use crate::server::apply::decode::decode;
use crate::server::apply::machine::Machine;
use crate::server::apply::metrics::ApplyMetrics;
use crate::server::apply::outcome::Effect;
use crate::server::apply::ports::EventSink;
use crate::server::apply::ports::FlushPort;
use crate::server::apply::ports::PeerPort;
use crate::server::apply::ports::RaftReports;
use crate::server::apply::ports::Snapshots;
use crate::server::apply::ports::Stopwatch;
use crate::server::apply::published::Published;
use crate::server::apply::queue::ApplyHandle;
use crate::server::apply::queue::Input;
use crate::server::apply::queue::NotNow;
use crate::server::checkpoint::Tables;

/// Everything the thread needs beside its state.
pub struct ThreadParts {
    pub raft: Arc<dyn RaftReports>,
    pub flusher: Arc<dyn FlushPort>,
    pub snapshots: Arc<dyn Snapshots>,
    pub peers: Arc<dyn PeerPort>,
    /// `None` while nobody watches.
    pub events: Option<Arc<dyn EventSink>>,
    pub published: Published,
    pub metrics: ApplyMetrics,
    pub stopwatch: Stopwatch,
    /// `--warning-apply-duration`; zero never warns.
    pub slow_after: Duration,
    pub compaction: CompactionPace,
}

/// How compaction shares the thread with requests.
#[derive(Clone, Copy, Debug)]
pub struct CompactionPace {
    /// `--compaction-batch-limit`: keys or records a step.
    pub batch: usize,
    /// `--compaction-sleep-interval`: pause between steps while nothing else is to do.
    pub pause: Duration,
}

/// The thread's work. Whoever owns it brings the thread: `start` does, and the simulator.
pub struct Thread {
    machine: Machine,
    queue: ApplyHandle,
    parts: ThreadParts,
    /// When the compaction at work began, by the stopwatch.
    compacting_since: Option<Duration>,
    /// When the last slice of a compaction ended.
    last_slice: Duration,
}

/// Publishes the whole state and starts the thread. It ends behind `ApplyHandle::stop`, or with the first failure,
/// which it hands to the queue's hook; a panic is such a failure.
pub fn start(machine: Machine, queue: ApplyHandle, parts: ThreadParts) -> Result<JoinHandle<()>, Failure> {
    let thread = Thread::new(machine, queue.clone(), parts);
    let guarded = move || match catch_unwind(AssertUnwindSafe(|| thread.run())) {
        Ok(Ok(())) => {}
        Ok(Err(failure)) => queue.fail(failure),
        Err(panic) => queue.fail(panicked(&*panic)),
    };
    let spawned = thread::Builder::new().name("apply".to_owned()).spawn(guarded);
    spawned.map_err(|error| Failure::Refused(format!("cannot start the apply thread: {error}")))
}

impl Thread {
    /// Publishes the whole state.
    pub fn new(mut machine: Machine, queue: ApplyHandle, parts: ThreadParts) -> Thread {
        machine.publish_all(&parts.published);
        parts.metrics.alarms_changed(machine.alarms());
        parts.metrics.cluster_changed(machine.membership());
        queue.listener().applied(machine.applied().index);
        queue.listener().compaction(machine.store().compact_revision(), machine.store().finished_compaction());
        Thread { machine, queue, parts, compacting_since: None, last_slice: Duration::ZERO }
    }

    fn run(self) -> Result<(), Failure> {
        let queue = self.queue.clone();
        let mut work = Box::new(self);
        loop {
            let pause = work.machine.store().is_compacting().then_some(work.parts.compaction.pause);
            let (returned, input) = queue.take(work, pause);
            // Lost in the hands of whoever took it, and reported there.
            let Some(returned) = returned else { return Ok(()) };
            work = returned;
            match input {
                Some(Input::Stop) => return Ok(()),
                input => work.work(input)?,
            }
        }
    }

    /// Applies entries in the place of the thread, which sleeps: puts only, which never start anything that goes on for
    /// longer, and only if the flusher cannot make the caller wait.
    pub(super) fn commit_now(&mut self, entries: Vec<Entry>) -> Result<(), NotNow> {
        let mut commands = Vec::with_capacity(entries.len());
        if self.parts.flusher.is_full() || self.machine.store().is_compacting() {
            return Err(NotNow::Entries(entries));
        }
        for entry in &entries {
            match decode(entry) {
                Ok(command) if command.is_quick() => commands.push(command),
                _ => return Err(NotNow::Entries(entries)),
            }
        }
        let commands = entries.into_iter().zip(commands.into_iter().map(Some));
        self.commit(commands).map_err(NotNow::Failure)
    }

    /// Takes one input, if any waits, and does a slice of compaction, if there is one to do; never sleeps. Whether there
    /// was an input.
    pub fn turn(&mut self) -> Result<bool, Failure> {
        let input = self.queue.take_now();
        let any = input.is_some();
        self.work(input)?;
        Ok(any)
    }

    fn work(&mut self, input: Option<Input>) -> Result<(), Failure> {
        match input {
            Some(Input::Commit(entries)) => self.commit(entries.into_iter().map(|entry| (entry, None)))?,
            Some(Input::Install(snapshot)) => self.install(&snapshot)?,
            Some(Input::BuildSnapshot) => self.parts.snapshots.build(self.machine.freeze()),
            Some(Input::Freeze(on_frozen)) => on_frozen(self.machine.freeze()),
            Some(Input::Look(on_look)) => on_look(self.machine.lessor()),
            Some(Input::Stored { tables, up_to }) => self.stored(tables, up_to),
            Some(Input::Stop) => {}
            None => return self.compact(),
        }
        // Not behind every input: entries come in small batches while others wait, and each would wait for the slices of
        // all before it. A loaded member compacts at the pace of an idle one.
        let since = (self.parts.stopwatch)().saturating_sub(self.last_slice);
        if since >= self.parts.compaction.pause { self.compact() } else { Ok(()) }
    }

    /// Applies entries, some of which were decoded before.
    fn commit(&mut self, entries: impl ExactSizeIterator<Item = (Entry, Option<Command>)>) -> Result<(), Failure> {
        let mut bytes = 0;
        let first_revision = self.revision() + 1;
        let mut outcomes = Vec::with_capacity(entries.len());
        let mut effects = Vec::new();
        for (entry, command) in entries {
            bytes += entry.data.len();
            let started = (self.parts.stopwatch)();
            let step = self.machine.apply_decoded(&entry, command)?;
            if let Some(outcome) = step.outcome {
                let elapsed = (self.parts.stopwatch)().saturating_sub(started);
                self.parts.metrics.applied(step.op, &outcome.result, elapsed, self.parts.slow_after);
                outcomes.push(outcome);
            }
            effects.extend(step.effects.into_iter().map(|effect| (entry.index, effect)));
        }
        self.publish(&effects);
        let listener = self.queue.listener();
        listener.applied(self.machine.applied().index);
        // Before the answers: whoever is told that a change of the membership is done may ask for the next one at once, and
        // raft refuses that while it does not know (etcd 15528).
        self.report(effects);
        listener.answered(outcomes);
        self.queue.applied_bytes(bytes);
        self.parts.raft.applied(self.machine.applied().index);
        self.tell_events(first_revision);
        self.flush();
        Ok(())
    }

    /// Everything that readers look at, before anyone is told.
    fn publish(&mut self, effects: &[(u64, Effect)]) {
        self.machine.publish(&self.parts.published);
        let any = |wanted: Effect| effects.iter().any(|(_, effect)| *effect == wanted);
        if any(Effect::Cluster) {
            self.machine.publish_cluster(&self.parts.published.cluster);
            self.parts.metrics.cluster_changed(self.machine.membership());
        }
        if any(Effect::Alarms) {
            self.machine.publish_alarms(&self.parts.published);
            self.parts.metrics.alarms_changed(self.machine.alarms());
        }
        // Told before the answers: a caller that waits for physical deletion looks at it behind its answer.
        if let Some(scheduled) = effects.iter().rev().find_map(|(_, effect)| match effect {
            Effect::Compacted(revision) => Some(*revision),
            _ => None,
        }) {
            self.queue.listener().compaction(scheduled, self.machine.store().finished_compaction());
        }
    }

    fn report(&self, effects: Vec<(u64, Effect)>) {
        for (index, effect) in effects {
            match effect {
                Effect::ConfChange(change) => self.parts.raft.conf_change_applied(index, change),
                Effect::Peer(change) => self.parts.peers.changed(change),
                Effect::RaiseNoSpace => self.queue.listener().out_of_space(),
                Effect::TermStarted => self.queue.listener().term_started(),
                Effect::Cluster | Effect::Alarms | Effect::Compacted(_) => {}
            }
        }
    }

    fn tell_events(&self, first_revision: i64) {
        let last_revision = self.revision();
        let events = self.parts.events.as_ref().filter(|_| last_revision >= first_revision);
        if let Some(events) = events.filter(|events| events.is_wanted()) {
            let store = self.machine.store();
            match store.has_recent(first_revision, last_revision, &|key| events.concerns(key)) {
                true => events.records(first_revision, last_revision, store.recent(first_revision, last_revision)),
                // Most of what is written nobody watches: then the hub sleeps on.
                false => events.passed(first_revision, last_revision),
            }
        }
    }

    fn flush(&mut self) {
        if let Some(batch) = self.machine.take_batch() {
            self.parts.metrics.published(self.machine.store(), &batch.records, batch.removed.len());
            self.parts.flusher.submit(batch);
        }
    }

    fn stored(&mut self, tables: Arc<dyn Tables>, up_to: Option<Revision>) {
        self.machine.flushed(tables, up_to);
    }

    /// One slice of physical compaction, if there is any to do.
    fn compact(&mut self) -> Result<(), Failure> {
        if !self.machine.store().is_compacting() {
            return Ok(());
        }
        let scheduled = self.machine.store().compact_revision();
        let started = (self.parts.stopwatch)();
        let began = *self.compacting_since.get_or_insert(started);
        let finished = self.machine.store().finished_compaction();
        self.machine.compaction_step(self.parts.compaction.batch)?;
        let now = (self.parts.stopwatch)();
        self.last_slice = now;
        self.parts.metrics.compacted_slice(now.saturating_sub(started));
        if self.machine.store().finished_compaction() != finished {
            self.compacting_since = None;
            self.parts.metrics.compacted(now.saturating_sub(began));
        }
        self.machine.publish(&self.parts.published);
        self.flush();
        if !self.machine.store().is_compacting() {
            // Whoever waits for physical deletion waits for the disk as well.
            self.parts.flusher.flush_soon();
        }
        self.queue.listener().compaction(scheduled, self.machine.store().finished_compaction());
        Ok(())
    }

    /// Replaces the whole state by that of a snapshot, between two entries.
    fn install(&mut self, snapshot: &Snapshot) -> Result<(), Failure> {
        let index = snapshot.metadata.as_ref().map_or(0, |metadata| metadata.index);
        if index <= self.machine.applied().index {
            tracing::warn!(index, applied = self.machine.applied().index, "snapshot is older than what is applied");
            self.parts.raft.snapshot_installed(index);
            return Ok(());
        }
        self.parts.metrics.installing(true);
        let installed = self.parts.snapshots.install(snapshot)?;
        self.queue.drop_stored();
        if installed.applied.index != index {
            let text = format!("the image of the snapshot at {index} holds the state at {}", installed.applied.index);
            return Err(Failure::Refused(text));
        }
        let config = self.machine.config().clone();
        self.machine = Machine::restore(config, installed.tables, &installed.buckets, installed.applied)?;
        self.machine.publish_all(&self.parts.published);
        let membership = self.machine.membership();
        let members: Vec<_> = membership.members().cloned().collect();
        let removed: Vec<_> = membership.removed().collect();
        self.parts.peers.replaced(&members, &removed);
        self.parts.metrics.alarms_changed(self.machine.alarms());
        self.parts.metrics.cluster_changed(membership);
        let listener = self.queue.listener();
        // Whoever waits for records to be deleted waits for those of the image now: no step of ours will come if it has none.
        let store = self.machine.store();
        listener.compaction(store.compact_revision(), store.finished_compaction());
        listener.applied(index);
        listener.outcomes_lost();
        if let Some(events) = &self.parts.events {
            events.replaced();
        }
        self.parts.raft.snapshot_installed(index);
        self.parts.metrics.installing(false);
        tracing::info!(index, members = members.len(), "installed a snapshot");
        Ok(())
    }

    fn revision(&self) -> i64 {
        self.machine.revision()
    }
}

/// A panic of this part, whoever ran it.
pub(super) fn panicked(panic: &(dyn Any + Send)) -> Failure {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    let text = text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("without a text");
    Failure::Refused(format!("the apply thread panicked: {text}"))
}

#[cfg(test)]
mod tests;

//! What happens to members: they start, work, fail, and hear each other.

use std::sync::Arc;

use crate::common::failure::Failure;
use crate::common::ids::MemberId;
use crate::proto::raft_numbers as numbers;
use crate::proto::raftpb::Message;
use crate::proto::raftpb::Snapshot;
use crate::server::raft::config::CatchUp;
use crate::server::raft::config::RaftConfig;
use crate::server::raft::driver::End;
use crate::server::raft::state_machine::Inbox;
use crate::sim::faults::Fault;
use crate::sim::member::Image;
use crate::sim::member::lock;
use crate::sim::network::Parcel;
use crate::sim::world::Event;
use crate::sim::world::Micros;
use crate::sim::world::SECOND;
use crate::sim::world::Stage;
use crate::sim::world::World;
use crate::torture::checker::Outcome;

/// About as many disk operations as it takes to install a snapshot.
const INSTALL_OPERATIONS: u64 = 6;
/// 2020-01-01, in milliseconds: where the simulated wall clock starts.
const EPOCH_MILLIS: u64 = 1_577_836_800_000;

impl World {
    pub(super) fn slot_of(&self, id: u64) -> usize {
        usize::try_from(id - 1).expect("members are numbered from one")
    }

    pub(super) fn wake(&mut self, member: usize) {
        let slot = &mut self.slots[member];
        if !slot.work_planned && slot.member.running.is_some() {
            slot.work_planned = true;
            let time = slot.busy_until.max(slot.paused_until).max(self.now + 50);
            self.at(time, Event::Work(member));
        }
    }

    pub(super) fn start(&mut self, member: usize) -> Result<(), String> {
        let seed = self.dice.roll();
        let slot = &mut self.slots[member];
        slot.start_planned = false;
        if slot.member.running.is_some() || slot.stage != Stage::Member {
            return Ok(());
        }
        let config = RaftConfig {
            catch_up: CatchUp { entries: self.plan.catch_up_entries, ..CatchUp::default() },
            snapshot_entries: self.plan.snapshot_entries,
            ..RaftConfig::new(slot.member.id, seed)
        };
        slot.images.clear();
        slot.flush_planned = false;
        slot.busy_until = self.now;
        let started = slot.member.start(&config, EPOCH_MILLIS + self.now / 1000);
        let tick = slot.tick;
        let life = slot.member.lives;
        self.summary.restarts += u64::from(life > 1);
        self.trace([1, member as u64, life, u64::from(started.is_ok())]);
        if let Err(failure) = started {
            return self.failed(member, &failure);
        }
        self.after(tick, Event::Tick(member));
        self.wake(member);
        Ok(())
    }

    /// A member stopped by itself: its disk had better be the reason.
    pub(super) fn failed(&mut self, member: usize, failure: &Failure) -> Result<(), String> {
        let slot = &mut self.slots[member];
        let expected = slot.member.disk().has_crashed() || slot.member.disk_is_bad;
        if !expected || !matches!(failure, Failure::Io { .. }) {
            let text = format!("member {} stopped: {failure}", slot.member.id);
            return Err(self.sentence(&text));
        }
        let delay = self.dice.below(3 * SECOND);
        self.down(member, false, delay);
        Ok(())
    }

    /// The process ends, and starts again after `delay`.
    pub(super) fn down(&mut self, member: usize, power: bool, delay: Micros) {
        let roll_back = self.dice.chance(50);
        self.collect(member);
        let slot = &mut self.slots[member];
        slot.member.stop(power, roll_back);
        slot.work_planned = false;
        slot.paused_until = 0;
        slot.apply_held_until = 0;
        if !slot.start_planned && slot.stage == Stage::Member {
            slot.start_planned = true;
            self.after(delay, Event::Start(member));
        }
        self.trace([2, member as u64, u64::from(power), delay]);
        for client in 0..self.clients.len() {
            let (target, life) = (self.clients[client].target, self.slots[member].member.lives);
            let called = self.clients[client].call.as_ref().is_some_and(|call| call.life == life);
            if target == member && called {
                self.answer(client, Outcome::Unknown);
            }
        }
    }

    pub(super) fn tick(&mut self, member: usize) {
        let slot = &mut self.slots[member];
        let Some(running) = &mut slot.member.running else { return };
        // One at most: a process that stood still does not make up for lost ticks.
        running.tick_due = true;
        let tick = slot.tick;
        self.after(tick, Event::Tick(member));
        self.wake(member);
    }

    pub(super) fn work(&mut self, member: usize) -> Result<(), String> {
        let now = self.now;
        let slot = &mut self.slots[member];
        if !slot.work_planned {
            return Ok(());
        }
        if slot.paused_until.max(slot.busy_until) > now {
            let time = slot.paused_until.max(slot.busy_until);
            self.at(time, Event::Work(member));
            return Ok(());
        }
        slot.work_planned = false;
        let Some(running) = &mut slot.member.running else { return Ok(()) };
        let mut told = running.turn_reads(now);
        let worked = running.work(if now < slot.apply_held_until { slot.apply_pace } else { usize::MAX });
        if worked.is_ok() {
            told.extend(running.turn_reads(now));
        }
        let status = running.raft.status();
        let applied = running.desk.applied_index();
        let latency = self.dice.below(slot.disk_latency_max);
        slot.busy_until = now + latency;
        self.trace([3, member as u64, status.term << 8 | status.role as u64, applied << 20 | status.commit_index]);
        self.collect(member);
        for (client, result) in told {
            match result {
                Ok(()) => self.serve(client)?,
                Err(_) => self.answer(client, Outcome::Unknown),
            }
        }
        for client in 0..self.clients.len() {
            self.poll(client);
        }
        match worked {
            Ok(None) => Ok(()),
            // Nobody has asked it to stop; it was removed, and has told its peers.
            Ok(Some(End::Removed | End::Stopped)) => self.retire(member),
            Err(failure) => self.failed(member, &failure),
        }
    }

    /// Takes what a member has put out.
    pub(super) fn collect(&mut self, member: usize) {
        let slot = &mut self.slots[member];
        let life = slot.member.lives;
        let Some(running) = &mut slot.member.running else { return };
        let messages = std::mem::take(&mut *lock(&running.hooks.outbox));
        let built = std::mem::take(&mut *lock(&running.hooks.built));
        let (wanted, urgent) = running.flush_wanted();
        let flush = wanted && (urgent || !slot.flush_planned);
        slot.flush_planned |= flush;
        if flush {
            let delay = if urgent { 0 } else { self.dice.below(self.plan.flush_after) };
            self.after(1_000 + delay, Event::Flush { member, life });
        }
        for (snapshot, image) in built {
            let delay = 1_000 + self.dice.below(300_000);
            self.after(delay, Event::SnapshotBuilt { member, life, snapshot, image });
        }
        for message in messages {
            let image = message.snapshot.as_ref().filter(|_| message.r#type == numbers::MSG_SNAP);
            let index = image.and_then(|snapshot| snapshot.metadata.as_ref()).map_or(0, |metadata| metadata.index);
            let image = self.slots[member].images.get(&index).cloned();
            let is_snapshot = message.r#type == numbers::MSG_SNAP;
            self.summary.snapshots_sent += u64::from(is_snapshot);
            let arrivals = match is_snapshot && image.is_none() {
                true => Vec::new(),
                false => self.network.arrivals(&message, self.now, &mut self.dice),
            };
            if arrivals.is_empty() && is_snapshot {
                let report = Event::SnapshotReport { from: message.from, to: message.to, delivered: false };
                self.after(100_000, report);
            }
            for time in arrivals {
                self.at(time, Event::Deliver(Parcel { message: message.clone(), image: image.clone(), freed: false }));
            }
        }
    }

    pub(super) fn deliver(&mut self, parcel: Parcel) {
        let Parcel { message, image, freed } = parcel;
        let (from, to) = (message.from, message.to);
        let member = self.slot_of(to);
        if let Some(free_at) = self.network.held_until(from, to, self.now).filter(|_| !freed) {
            // In their order, but not at once: what was sent long ago is heard long before what came after it.
            let gap = 1 + self.dice.below(self.network.trickle);
            let time = self.network.next_in_line(from, to, free_at, gap);
            self.at(time, Event::Deliver(Parcel { message, image, freed: true }));
            return;
        }
        let reached = self.hears(member, &message) && self.network.passes(&message);
        self.trace([4, from << 8 | to | message.r#type << 16, message.term << 32 | message.index, message.commit]);
        if message.r#type == numbers::MSG_SNAP {
            self.after(500, Event::SnapshotReport { from, to, delivered: reached });
        }
        if !reached {
            let sender = self.slot_of(from);
            if self.dice.chance(30)
                && let Some(running) = &self.slots[sender].member.running
            {
                running.raft.report_unreachable(MemberId(to));
            }
            return;
        }
        let index = message.snapshot.as_ref().and_then(|snapshot| snapshot.metadata.as_ref());
        let index = index.map_or(0, |metadata| metadata.index);
        let slot = &mut self.slots[member];
        if let Some(image) = image {
            // The one before it may still wait to be put in place (B10).
            self.summary.snapshots_overlapping += u64::from(slot.member.is_installing());
            slot.member.prepare(index, image);
            // Installing takes several steps on disk, and happens seldom: the power fails there more often than by chance.
            if self.plan.faults.contains(&Fault::PowerCut) && !self.calm && self.dice.chance(40) {
                slot.member.disk().crash_at(1 + self.dice.below(INSTALL_OPERATIONS));
            }
        }
        if let Some(running) = &slot.member.running {
            running.raft.step(message);
        }
        self.wake(member);
    }

    /// Whether a member takes the message: it runs, and has not applied the sender's removal (the peer port's check, R20).
    fn hears(&self, member: usize, message: &Message) -> bool {
        let Some(running) = &self.slots[member].member.running else { return false };
        !running.published.cluster.is_removed(MemberId(message.from))
    }

    pub(super) fn snapshot_report(&mut self, from: u64, to: u64, delivered: bool) {
        let member = self.slot_of(from);
        if let Some(running) = &self.slots[member].member.running {
            running.raft.report_snapshot(MemberId(to), delivered);
        }
        self.wake(member);
    }

    pub(super) fn built(&mut self, member: usize, life: u64, snapshot: Snapshot, image: Arc<Image>) {
        let slot = &mut self.slots[member];
        let Some(running) = slot.member.running.as_ref().filter(|_| slot.member.lives == life) else { return };
        let index = snapshot.metadata.as_ref().map_or(0, |metadata| metadata.index);
        slot.images.insert(index, image);
        running.raft.snapshot_built(snapshot);
        self.wake(member);
    }

    pub(super) fn flush(&mut self, member: usize, life: u64) -> Result<(), String> {
        let slot = &mut self.slots[member];
        let Some(running) = slot.member.running.as_mut().filter(|_| slot.member.lives == life) else { return Ok(()) };
        slot.flush_planned = false;
        if let Err(failure) = running.flush() {
            return self.failed(member, &failure);
        }
        self.trace([5, member as u64, life, 0]);
        self.wake(member);
        Ok(())
    }
}

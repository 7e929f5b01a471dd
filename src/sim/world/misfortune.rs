//! What goes wrong: each fault of the plan, carried out.

use crate::common::ids::MemberId;
use crate::disk::sim::Dice;
use crate::server::raft::state_machine::Role;
use crate::sim::faults::Fault;
use crate::sim::world::Event;
use crate::sim::world::Micros;
use crate::sim::world::SECOND;
use crate::sim::world::Slot;
use crate::sim::world::Stage;
use crate::sim::world::TICK;
use crate::sim::world::World;

/// Longest time without a disk operation in which a planned power cut waits for one.
const CUT_WITHIN_OPERATIONS: u64 = 40;
const EIO: i32 = 5;

impl World {
    pub(super) fn pick_member(&mut self) -> usize {
        let present = |slot: &&Slot| slot.stage == Stage::Member;
        let count = self.slots.iter().filter(present).count() as u64;
        let chosen = usize::try_from(self.dice.below(count)).expect("below a number of members");
        let mut members = self.slots.iter().enumerate().filter(|(_, slot)| present(slot));
        members.nth(chosen).map_or(0, |(at, _)| at)
    }

    /// Often the leader: most harm is done there.
    pub(super) fn pick_victim(&mut self) -> usize {
        match self.leader().filter(|_| self.dice.chance(40)) {
            Some(leader) => leader,
            None => self.pick_member(),
        }
    }

    pub(super) fn leader(&self) -> Option<usize> {
        let leads = |slot: &Slot| {
            let running = slot.member.running.as_ref();
            running.map(|running| running.raft.status()).filter(|status| status.role == Role::Leader)
        };
        let leaders = self.slots.iter().enumerate().filter_map(|(at, slot)| Some((leads(slot)?.term, at)));
        leaders.max().map(|(_, at)| at)
    }

    pub(super) fn fault(&mut self) {
        if self.calm {
            return;
        }
        let wait = self.plan.fault_every / 2 + self.dice.below(self.plan.fault_every);
        self.after(wait, Event::Fault);
        let at = self.dice.below(self.plan.faults.len() as u64);
        let fault = self.plan.faults[usize::try_from(at).expect("below a length")];
        let victim = self.pick_victim();
        let long = self.dice.pick(&[SECOND / 5, SECOND, 4 * SECOND]);
        let delay = self.dice.below(long);
        self.summary.faults += 1;
        *self.summary.faults_of.entry(fault.name()).or_default() += 1;
        self.trace([7, fault as u64, victim as u64, delay]);
        match fault {
            Fault::Kill if self.slots[victim].member.running.is_some() => self.down(victim, false, delay),
            Fault::PowerCut => {
                let operations = 1 + self.dice.below(CUT_WITHIN_OPERATIONS);
                self.slots[victim].member.disk().crash_at(operations);
            }
            Fault::Blackout => self.blackout(delay),
            Fault::DiskError => {
                let operations = 1 + self.dice.below(CUT_WITHIN_OPERATIONS);
                self.slots[victim].member.disk().fail_at(operations, EIO);
                self.slots[victim].member.disk_is_bad = true;
            }
            Fault::Pause => {
                self.slots[victim].paused_until = self.now + delay;
                // Its connections may be gone by the time it wakes up, and it does not know (R3).
                if self.dice.chance(50) {
                    self.isolate(victim, delay + SECOND);
                }
            }
            Fault::CheckpointError => self.slots[victim].member.fail_checkpoint(),
            Fault::Clog => {
                // What is on its way stays on its way; some stand still meanwhile and wake up before it arrives (B22).
                let mut free_at = self.now + delay;
                if self.dice.chance(60) {
                    self.slots[victim].paused_until = free_at;
                    free_at += self.dice.below(SECOND);
                }
                self.network.trickle = self.dice.pick(&[500, 20_000, 150_000]);
                self.network.clog(victim as u64 + 1, free_at);
            }
            Fault::StaleLeader => self.stale_leader(victim),
            Fault::ClockSkew => self.slots[victim].tick = self.dice.pick(&[TICK / 2, TICK * 4 / 5, TICK, TICK * 3 / 2]),
            Fault::Reconfigure => self.reconfigure(),
            Fault::OneWayCut => {
                let other = self.pick_member();
                self.network.cut(victim as u64 + 1, other as u64 + 1);
                self.after(delay, Event::HealCuts);
            }
            Fault::Partition => self.split(|_, dice| dice.chance(50), delay),
            Fault::IsolateLeader => self.isolate(self.leader().unwrap_or(victim), delay),
            Fault::Loss => {
                self.network.loss_percent = self.dice.pick(&[2, 10, 40]);
                self.network.double_percent = self.dice.pick(&[0, 5, 30]);
                self.after(delay, Event::HealWeather);
            }
            Fault::Delay => {
                self.network.delay_max = self.dice.pick(&[20_000, 200_000, 2_000_000]);
                self.network.slow_percent = self.dice.pick(&[10, 30, 100]);
                self.after(2 * delay, Event::HealWeather);
            }
            Fault::HoldApply => {
                self.slots[victim].apply_held_until = self.now + delay;
                // A slow one lags behind and still answers: reads must wait for it.
                self.slots[victim].apply_pace = self.dice.pick(&[0, 1, 1]);
            }
            Fault::SlowDisk => self.slots[victim].disk_latency_max = self.dice.pick(&[1_000, 20_000, 150_000]),
            Fault::Transfer => {
                let to = MemberId(victim as u64 + 1);
                if let Some(running) = self.leader().and_then(|leader| self.slots[leader].member.running.as_ref()) {
                    running.raft.transfer_leader(to);
                }
            }
            Fault::Kill => {}
        }
    }

    /// What an operator does with SIGSTOP and SIGCONT (B22): what was on its way to the leader is still there when it wakes
    /// up, and comes before the news of its successor.
    fn stale_leader(&mut self, victim: usize) {
        let leader = self.leader().unwrap_or(victim);
        // Deaf first, for less than it takes to notice: members answer it, and all of that is to come.
        let sleeps = self.now + 50_000 + self.dice.below(SECOND / 2);
        let resumes = sleeps + 3 * SECOND / 2 + self.dice.below(5 * SECOND / 2);
        self.network.trickle = self.dice.pick(&[5_000, 30_000, 100_000]);
        let free_at = resumes + self.dice.below(SECOND / 10);
        self.network.clog(leader as u64 + 1, free_at);
        self.at(self.now, Event::Rush(leader));
        self.at(sleeps, Event::Sleep { member: leader, resumes });
        self.at(resumes - 1, Event::Rush(leader));
    }

    /// Clients turn to a member.
    pub(super) fn rush(&mut self, member: usize) {
        for client in 0..self.clients.len() {
            if self.slots[member].stage == Stage::Member && self.dice.chance(40) {
                if let Some(operation) = self.clients[client].call.as_ref().map(|call| call.operation) {
                    self.lose_patience(client, operation);
                }
                self.clients[client].target = member;
            }
        }
    }

    pub(super) fn blackout(&mut self, delay: Micros) {
        for member in 0..self.slots.len() {
            if self.slots[member].member.running.is_some() {
                self.down(member, true, delay + 1);
            }
        }
    }

    pub(super) fn isolate(&mut self, member: usize, delay: Micros) {
        self.split(|other, _| other == member, delay);
    }

    /// Cuts between those that are apart and the others.
    pub(super) fn split(&mut self, is_apart: impl Fn(usize, &mut Dice) -> bool, delay: Micros) {
        let apart: Vec<bool> = (0..self.slots.len()).map(|member| is_apart(member, &mut self.dice)).collect();
        for from in 0..apart.len() {
            for to in 0..apart.len() {
                if apart[from] != apart[to] {
                    self.network.cut(from as u64 + 1, to as u64 + 1);
                }
            }
        }
        self.after(delay, Event::HealCuts);
    }
}

//! How a run ends: calm, in which the cluster must come back to work, and the judgement of its history.

use crate::proto::etcdserverpb::RangeRequest;
use crate::server::mvcc::hash::hash_kv;
use crate::server::mvcc::read::range_now;
use crate::sim::Summary;
use crate::sim::member::lock;
use crate::sim::workload;
use crate::sim::world::Micros;
use crate::sim::world::SECOND;
use crate::sim::world::Slot;
use crate::sim::world::Stage;
use crate::sim::world::TICK;
use crate::sim::world::World;
use crate::torture::checker;
use crate::torture::checker::Fingerprint;
use crate::torture::checker::Operation;
use crate::torture::checker::Outcome;
use crate::torture::checker::model::Request;
use crate::torture::checker::model::Response;

/// Within this time of calm every client must have written and all members must agree: 300 ticks.
const CALM_MAX: Micros = 30 * SECOND;

impl World {
    /// No more faults: what is broken is mended, what is armed goes off now.
    pub(super) fn calm_down(&mut self) -> Result<(), String> {
        self.calm = true;
        self.network.heal();
        for member in 0..self.slots.len() {
            let slot = &mut self.slots[member];
            slot.paused_until = 0;
            slot.tick = TICK;
            slot.apply_held_until = 0;
            slot.busy_until = self.now;
            slot.disk_latency_max = 1_000;
            // A power cut may be armed: a fresh handle of the disk knows nothing of it.
            if slot.member.running.is_some() {
                slot.work_planned = false;
                self.down(member, true, 0);
            }
        }
        Ok(())
    }

    pub(super) fn converge(&mut self) -> Result<(), String> {
        let end = self.now + CALM_MAX;
        while !self.has_converged() {
            if self.now >= end {
                return Err(self.sentence(&format!(
                    "no progress in {} calm ticks: {}",
                    CALM_MAX / TICK,
                    self.describe()
                )));
            }
            self.closing = self.clients.iter().all(|client| client.calm_writes > 0);
            self.look_after_members()?;
            self.until(self.now + TICK)?;
        }
        Ok(())
    }

    pub(super) fn has_converged(&self) -> bool {
        let committed = lock(&self.judge).committed_index();
        let settled = |slot: &Slot| {
            slot.member.running.as_ref().is_some_and(|running| {
                let compaction = *running.desk.watch_compaction().borrow();
                let status = running.raft.status();
                let compacted = compaction.finished >= compaction.scheduled;
                let leads = status.leader.is_some() && status.commit_index == committed;
                compacted && leads && running.desk.applied_index() == committed && running.reads.is_idle()
            })
        };
        let present = |slot: &&Slot| slot.stage == Stage::Member;
        self.closing
            && self.slots.iter().filter(present).all(settled)
            && self.clients.iter().all(|client| client.call.is_none())
    }

    /// One line a member, for a run that does not come to its end.
    pub(super) fn describe(&self) -> String {
        let line = |slot: &Slot| {
            let Some(running) = &slot.member.running else { return format!("\n{} is down", slot.member.id) };
            let (status, applied) = (running.raft.status(), running.desk.applied_index());
            let (compaction, reads_idle) = (*running.desk.watch_compaction().borrow(), running.reads.is_idle());
            format!("\n{} applied {applied}, {compaction:?}, reads idle {reads_idle}, {status:?}", slot.member.id)
        };
        let members: String = self.slots.iter().map(line).collect();
        let clients: Vec<(u64, bool)> =
            self.clients.iter().map(|client| (client.calm_writes, client.call.is_some())).collect();
        format!("{members}\nclients' writes and calls {clients:?}, committed {}", lock(&self.judge).committed_index())
    }

    pub(super) fn finish(mut self) -> Result<Summary, String> {
        for member in 0..self.slots.len() {
            if self.slots[member].stage == Stage::Member {
                self.last_read(member)?;
            }
        }
        let judge = self.judge.clone();
        let judge = lock(&judge);
        self.history.log = judge.committed().iter().filter_map(workload::decode).collect();
        if let Some(violation) = judge.violations().first() {
            return Err(self.sentence(violation));
        }
        let violations = checker::check(&self.history);
        if let Some(violation) = violations.first() {
            let text = format!("{violation}\n{}", self.context(violation));
            return Err(self.sentence(&text));
        }
        self.summary.seconds = self.now / SECOND;
        self.summary.operations = self.history.operations.len();
        self.summary.log_entries = judge.committed_index();
        self.summary.elections = judge.terms_led();
        self.summary.conf_changes = judge.conf_changes();
        Ok(self.summary)
    }

    /// Everything a member holds, as one more read and as its hash.
    pub(super) fn last_read(&mut self, member: usize) -> Result<(), String> {
        let running = self.slots[member].member.running.as_ref().ok_or("a member is down after convergence")?;
        let range = RangeRequest { key: "\0".into(), range_end: "\0".into(), ..RangeRequest::default() };
        let views = running.published.views();
        let response = range_now(&views, &range).map_err(|error| self.sentence(&error.to_string()))?;
        let members = running.published.cluster.view();
        lock(&self.judge).members(self.slots[member].member.id, &members);
        let hash = hash_kv(&views, 0).map_err(|error| self.sentence(&error.to_string()))?;
        let view = views.current();
        self.history.fingerprints.push(Fingerprint {
            member: member as u64 + 1,
            revision: view.revision(),
            compact_revision: view.compact_revision(),
            hash: hash.hash,
        });
        self.connections += 1;
        let connection = self.connections;
        let (start, end) = (self.stamp(), self.stamp());
        let outcome = Outcome::Replied(Response::Range(response));
        let request = Request::Range(range);
        self.history.operations.push(Operation { connection, start, end, request, outcome });
        Ok(())
    }

    /// The operation that a violation speaks of.
    pub(super) fn context(&self, violation: &checker::Violation) -> String {
        violation.operation().map_or_else(String::new, |at| format!("{:?}", self.history.operations[at]))
    }
}

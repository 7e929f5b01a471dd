//! Whole clusters on one thread: the real core of some members under faults that one seed chooses (DESIGN.md 5).
//!
//! ```text
//!   clients ──▶ member: desk · raft driver, node, log ── apply, machine, mvcc ──▶ replies ──▶ history ──▶ checker
//!                 │  ▲          │                          │
//!                 ▼  │          ▼                          ▼
//!               network      SimDisk                MemoryCheckpoint            judge: invariants, at every step
//! ```
//!
//! A run has a phase of faults and a calm phase, in which the cluster must come back to work within a number of ticks
//! and its members must agree. Everything that happens is an event at a time in microseconds; events of one time happen
//! in the order in which they were planned. Two runs of one seed have one trace.
//!
//! `world` runs the events, `member` puts a member together, `network` delays and loses, `faults` plans, `workload` asks,
//! `judge` watches, with `electorate` for who is a member; `torture/checker` reads the history when all is over.

mod electorate;
mod faults;
mod judge;
mod member;
mod network;
mod workload;
mod world;

use std::collections::BTreeMap;

use crate::sim::world::World;

/// What a run was, for comparison and for totals.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Summary {
    pub members: usize,
    /// Of the simulated clock.
    pub seconds: u64,
    pub events: u64,
    pub faults: u64,
    pub faults_of: BTreeMap<&'static str, u64>,
    pub restarts: u64,
    /// Members that came, and members that went.
    pub joined: u64,
    pub removed: u64,
    /// Changes of the membership that the log accepted.
    pub conf_changes: u64,
    pub snapshots_sent: u64,
    /// Snapshots that arrived while another one waited to be put in place.
    pub snapshots_overlapping: u64,
    pub elections: u64,
    pub operations: usize,
    /// Operations that had an answer.
    pub answered: usize,
    pub log_entries: u64,
    /// Equal for equal runs.
    pub trace: u64,
}

impl Summary {
    /// Adds another run's counts. Its members and its trace are its own.
    pub fn add(&mut self, other: &Summary) {
        let Summary { seconds, events, faults, restarts, joined, removed, conf_changes, snapshots_sent, .. } = other;
        self.seconds += seconds;
        self.events += events;
        self.faults += faults;
        self.restarts += restarts;
        self.joined += joined;
        self.removed += removed;
        self.conf_changes += conf_changes;
        self.snapshots_sent += snapshots_sent;
        self.snapshots_overlapping += other.snapshots_overlapping;
        self.elections += other.elections;
        self.operations += other.operations;
        self.answered += other.answered;
        self.log_entries += other.log_entries;
        for (name, count) in &other.faults_of {
            *self.faults_of.entry(name).or_default() += count;
        }
    }
}

/// Runs one seed. An error is a broken promise, in words; a panic is one too.
pub fn run(seed: u64) -> Result<Summary, String> {
    World::new(seed)?.run()
}

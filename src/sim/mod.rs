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
//! `world` runs the events, `member` puts a member together, `reading` is its read barrier, `network` delays and loses,
//! `faults` plans, `workload` asks, `judge` watches; `torture/checker` reads the history when all is over.

mod faults;
mod judge;
mod member;
mod network;
mod reading;
mod workload;
mod world;

use crate::sim::world::World;

/// What a run was, for comparison and for totals.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Summary {
    pub members: usize,
    /// Of the simulated clock.
    pub seconds: u64,
    pub events: u64,
    pub faults: u64,
    pub restarts: u64,
    pub snapshots_sent: u64,
    pub elections: u64,
    pub operations: usize,
    /// Operations that had an answer.
    pub answered: usize,
    pub log_entries: u64,
    /// Equal for equal runs.
    pub trace: u64,
}

/// Runs one seed. An error is a broken promise, in words; a panic is one too.
pub fn run(seed: u64) -> Result<Summary, String> {
    World::new(seed)?.run()
}

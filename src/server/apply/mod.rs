//! The apply thread: committed entries in order, into the state, deterministically.
//!
//! ```text
//!  raft ──commit──▶ queue ──▶ thread ──▶ decode ──▶ machine ──▶ kv · txn · lease · alarm · cluster
//!                               │  1 publish the View   2 answer waiters   3 events
//!                               └──▶ flusher (a Batch with the applied index)
//! ```
//!
//! `machine` is the state and what an entry does to it: no threads, no clock, so that a simulator can run it. `thread`
//! feeds it and does what it asks for, through the traits in `ports`.

pub mod alarm;
pub mod cluster;
pub mod decode;
pub mod kv;
pub mod lease;
pub mod machine;
pub mod metrics;
pub mod outcome;
pub mod ports;
pub mod published;
pub mod queue;
pub mod quota;
pub mod thread;
pub mod txn;

#[cfg(test)]
pub mod testing;

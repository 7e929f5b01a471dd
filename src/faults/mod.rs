//! Faults for real processes on this machine, and how a seed chooses them.
//!
//! ```text
//!  seed ─▶ schedule (when, what, whom, how long)
//!            kind      names of the faults, as users write them
//!  process   a child in a group of its own: killed, paused, and never left behind
//!  network   one relay a member in front of its peer port: cut, one-way, late, lossy, narrow
//!  owner    which of our processes holds a socket
//!  volume    a small ext4 of its own for a data directory: full, or cut off from its power (root)
//! ```
//!
//! Nothing in here knows what a member is.

pub mod kind;
pub mod network;
pub mod owner;
pub mod ports;
pub mod process;
pub mod schedule;
pub mod volume;

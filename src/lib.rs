//! Quorate: etcd, etcdctl and goreman in one binary.
//!
//! # Life of a request
//!
//! ```text
//!  client ─gRPC─▶ server/api ──▶ server/propose ──▶ raft thread ──▶ WAL (fdatasync) ──▶ peers
//!                   ▲                 │                │
//!                   │                 │                ▼ committed entries, in order
//!                   │  outcome by id  │           apply thread ──▶ mvcc · lease · cluster · alarms (memory)
//!                   └─────────────────┴────────────    └──▶ flusher ──▶ redb, in the background
//!
//!  watches: apply ── records ──▶ server/watch (hub) ──▶ an outbox each stream ──▶ its response body
//!  reads: api ──▶ server/read (one ReadIndex for all who wait) ──▶ View: index + ring + tables ──▶ response
//! ```
//!
//! # Code map
//!
//! * [`program`]: which program the binary is this time; `main.rs` is nothing but a call of it.
//! * [`server`]: one member. `run` puts it together; `api` is what clients see, `peer` what members see; `raft` orders,
//!   `apply` carries out, `mvcc` remembers, `watch` tells, `checkpoint` and `snapshot` are its files; `duties` is what it does unasked.
//! * [`client`] and [`ctl`]: what speaks to a member, and the command line on top.
//! * [`utl`]: what is done to files while no server runs: snapshots looked into and restored, the way back to etcd.
//! * [`supervisor`]: Procfile stacks; [`cluster`] writes some. [`bench`]: load on any etcd, and two programs compared.
//! * [`torture`]: real clusters under [`faults`] that a seed chooses, and the judge of their history. [`sim`]: whole
//!   clusters on one thread, with the same judge.
//! * [`disk`]: durable files, real and simulated. [`common`]: ids, revisions, errors, versions. [`proto`]: messages.
//!
//! # Invariants
//!
//! An acknowledged write was fdatasynced by a quorum and applied here. Members apply the same log to the same bytes:
//! equal HashKV at equal revisions. Nothing waits for the database file but the flusher. What a client, a peer or a file
//! says is checked and answered, never asserted; the first disk error ends the process.

pub mod bench;
pub mod client;
pub mod cluster;
pub mod common;
pub mod ctl;
pub mod disk;
pub mod faults;
#[cfg(test)]
mod fuzz;
pub mod program;
pub mod proto;
pub mod server;
pub mod sim;
pub mod supervisor;
pub mod torture;
pub mod utl;

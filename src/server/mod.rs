//! The server: one member of a cluster.

pub mod api;
pub mod apply;
pub mod bootstrap;
pub mod checkpoint;
pub mod cluster;
pub mod company;
pub mod config;
pub mod duties;
pub mod handshakes;
pub mod lease;
pub mod metrics;
pub mod mvcc;
pub mod peer;
pub mod propose;
pub mod raft;
pub mod read;
pub mod reconfigure;
pub mod run;
pub mod snapshot;
pub mod waiters;
pub mod watch;

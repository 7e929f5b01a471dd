//! One binary for everything that crosses a process: real members, real clients, real etcd beside them.

mod bad_input;
mod cluster;
mod cluster_faults;
mod contract;
mod differential;
mod differential_gen;
mod fixtures;
mod history;
mod mixed;
mod oracle;
mod relay;
mod supervisor;
mod support;
mod tidy;
mod torture;
mod transcripts;
mod wal_interop;

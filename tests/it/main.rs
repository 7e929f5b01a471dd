//! One binary for everything that crosses a process: real members, real clients, real etcd beside them.

mod bad_input;
mod cluster;
mod cluster_faults;
mod differential;
mod differential_gen;
mod fixtures;
mod mixed;
mod oracle;
mod simulator;
mod supervisor;
mod support;
mod tidy;
mod transcripts;

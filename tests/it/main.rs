//! One binary for everything that crosses a process: real members, real clients, real etcd beside them.

mod bad_input;
mod behaviour;
mod behaviour_process;
mod bench;
mod cluster;
mod cluster_faults;
mod contract;
mod differential;
mod differential_gen;
mod fixtures;
mod http_recorded;
mod mixed;
mod mixed_members;
mod mixed_work;
mod oracle;
mod personality;
mod real_clients;
mod recorded;
mod simulator;
mod supervisor;
mod support;
mod tidy;
mod torture;
mod transcripts;
mod wal_interop;

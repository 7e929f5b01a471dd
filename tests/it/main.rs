//! One binary for everything that crosses a process: real members, real clients, real etcd beside them.

mod bad_input;
mod cluster;
mod cluster_faults;
mod differential;
mod differential_gen;
mod fixtures;
mod history;
mod http_recorded;
mod mixed;
mod oracle;
mod personality;
mod real_clients;
mod recorded;
mod supervisor;
mod support;
mod tidy;
mod torture;
mod transcripts;

//! Quorate: etcd, etcdctl, etcdutl and goreman in one binary.

pub mod client;
pub mod common;
pub mod ctl;
pub mod disk;
pub mod program;
pub mod proto;
pub mod server;
pub mod supervisor;

//! etcd's messages and services, compiled from our own `.proto` files, under short module names.
//!
//! Enumerations stay numbers in the messages (prost keeps unknown ones), so whoever reads one checks it. `bytes` fields
//! are `bytes::Bytes`: slices of the buffer that was decoded. A value that outlives its request is copied out of the
//! socket's buffer once, by `server/propose`, before anything keeps it.

// The generated services carry attributes and shapes that our lints object to.
#![allow(missing_docs, clippy::all, clippy::pedantic)]

pub mod authpb {
    tonic::include_proto!("authpb");
}
pub mod etcdserverpb {
    tonic::include_proto!("etcdserverpb");
}
pub mod health {
    tonic::include_proto!("grpc.health.v1");
}
pub mod leasepb {
    tonic::include_proto!("leasepb");
}
pub mod membershippb {
    tonic::include_proto!("membershippb");
}
pub mod mvccpb {
    tonic::include_proto!("mvccpb");
}
pub mod raftinternalpb {
    tonic::include_proto!("raftinternalpb");
}
pub mod raftpb {
    tonic::include_proto!("raftpb");
}
pub mod snappb {
    tonic::include_proto!("snappb");
}
pub mod v3electionpb {
    tonic::include_proto!("v3electionpb");
}
pub mod v3lockpb {
    tonic::include_proto!("v3lockpb");
}
pub mod walpb {
    tonic::include_proto!("walpb");
}

/// Numbers of raft messages, entries and configuration changes as etcd writes them (server.md 14.3).
pub mod raft_numbers {
    pub const ENTRY_NORMAL: u64 = 0;
    pub const ENTRY_CONF_CHANGE: u64 = 1;

    pub const CONF_ADD_NODE: u64 = 0;
    pub const CONF_REMOVE_NODE: u64 = 1;
    pub const CONF_UPDATE_NODE: u64 = 2;
    pub const CONF_ADD_LEARNER: u64 = 3;

    pub const MSG_PROP: u64 = 2;
    pub const MSG_APP: u64 = 3;
    pub const MSG_APP_RESP: u64 = 4;
    pub const MSG_VOTE: u64 = 5;
    pub const MSG_VOTE_RESP: u64 = 6;
    pub const MSG_SNAP: u64 = 7;
    pub const MSG_HEARTBEAT: u64 = 8;
    pub const MSG_HEARTBEAT_RESP: u64 = 9;
    pub const MSG_TRANSFER_LEADER: u64 = 13;
    pub const MSG_TIMEOUT_NOW: u64 = 14;
    pub const MSG_READ_INDEX: u64 = 15;
    pub const MSG_READ_INDEX_RESP: u64 = 16;
    pub const MSG_PRE_VOTE: u64 = 17;
    pub const MSG_PRE_VOTE_RESP: u64 = 18;
}

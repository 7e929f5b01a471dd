//! The database file: a checkpoint of what was applied, written behind by one thread, read through tables.
//!
//! Two parts. *Records* are the history of keys in revision order. *Buckets* are everything small (leases, members,
//! alarms, auth, meta), held in the very names and bytes of etcd's buckets (server.md 14.6), so that an etcd database
//! file and ours convert pair by pair. Both change only in a `Batch`, which carries the applied index, term and ConfState
//! of the entry it ends with and is written in one transaction.

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::sync::Arc;

use bytes::Bytes;

use crate::common::failure::Failure;
use crate::common::revision::Revision;
use crate::proto::mvccpb::KeyValue;
use crate::proto::raftpb::ConfState;

/// etcd's buckets but `key`, ascending by name as etcd's hash wants them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Bucket {
    Alarm,
    Auth,
    AuthRoles,
    AuthUsers,
    Cluster,
    Lease,
    Members,
    MembersRemoved,
    Meta,
}

impl Bucket {
    pub const ALL: [Bucket; 9] = [
        Bucket::Alarm,
        Bucket::Auth,
        Bucket::AuthRoles,
        Bucket::AuthUsers,
        Bucket::Cluster,
        Bucket::Lease,
        Bucket::Members,
        Bucket::MembersRemoved,
        Bucket::Meta,
    ];

    /// The name in etcd's database file.
    pub fn name(self) -> &'static str {
        match self {
            Bucket::Alarm => "alarm",
            Bucket::Auth => "auth",
            Bucket::AuthRoles => "authRoles",
            Bucket::AuthUsers => "authUsers",
            Bucket::Cluster => "cluster",
            Bucket::Lease => "lease",
            Bucket::Members => "members",
            Bucket::MembersRemoved => "members_removed",
            Bucket::Meta => "meta",
        }
    }
}

/// All pairs of all buckets. `meta` holds what etcd's does, except consistent_index, term and confState: those live in
/// `Applied` and are added where an etcd file is written.
pub type Buckets = BTreeMap<(Bucket, Bytes), Bytes>;

/// One change of one key: a put, or a tombstone (then only `key` and `mod_revision` of the pair count).
#[derive(Clone, Debug, PartialEq)]
pub struct Record {
    pub revision: Revision,
    pub tombstone: bool,
    /// As etcd stores it: a put carries everything, a tombstone only the key. `mod_revision` of a tombstone stays 0.
    pub kv: KeyValue,
}

/// A record without its value: what restart, compaction and hashing read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Header {
    pub revision: Revision,
    pub tombstone: bool,
    pub key: Bytes,
    pub create_revision: i64,
    pub version: i64,
    pub lease: i64,
    /// Length of the value.
    pub value_bytes: u32,
    /// CRC-32C of etcd's storage key and etcd's encoded pair.
    pub crc: u32,
    /// Length of what `crc` covers, so that hashes combine from headers alone.
    pub hashed_bytes: u32,
}

/// How far a state has applied the log.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Applied {
    pub index: u64,
    pub term: u64,
    pub conf_state: ConfState,
}

/// What is written in one transaction.
#[derive(Clone, Debug, Default)]
pub struct Batch {
    /// New records in revision order, all newer than those of earlier batches.
    pub records: Vec<Record>,
    /// Records that a compaction superseded.
    pub removed: Vec<Revision>,
    /// Pairs of buckets: `None` deletes. Later entries win.
    pub pairs: Vec<(Bucket, Bytes, Option<Bytes>)>,
    /// The entry this batch ends with.
    pub applied: Applied,
}

/// Read-only tables of one transaction. Nothing in them changes; an entry that should be there and is not is damage.
pub trait Tables: Send + Sync {
    /// The record, its CRC checked. `None` if the tables have none at this revision.
    fn record(&self, revision: Revision) -> Result<Option<Record>, Failure>;
    /// Headers with `first <= revision <= last`, ascending, until `visit` breaks.
    fn headers(
        &self,
        first: Revision,
        last: Revision,
        visit: &mut dyn FnMut(Header) -> ControlFlow<()>,
    ) -> Result<(), Failure>;
    /// Records with `first <= revision <= last`, ascending, CRCs checked, until `visit` breaks.
    fn records(
        &self,
        first: Revision,
        last: Revision,
        visit: &mut dyn FnMut(Record) -> ControlFlow<()>,
    ) -> Result<(), Failure>;
}

/// A checkpoint that batches are written to. The real one is redb; the simulator has a map with crash semantics.
pub trait Checkpoint: Send {
    /// Writes the batch durably, all or nothing, and opens tables that hold it.
    fn write(&mut self, batch: &Batch) -> Result<Arc<dyn Tables>, Failure>;
    /// Tables of the newest durable batch.
    fn tables(&self) -> Result<Arc<dyn Tables>, Failure>;
    /// All bucket pairs and the applied mark of the newest durable batch.
    fn buckets(&self) -> Result<(Buckets, Applied), Failure>;
    /// Length of the file in bytes (a metric; clients never see it).
    fn file_bytes(&self) -> u64;
}

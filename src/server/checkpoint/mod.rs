//! The database file: a checkpoint of what was applied, written behind by one thread, read through tables.
//!
//! Two parts. *Records* are the history of keys in revision order. *Buckets* are everything small (leases, members,
//! alarms, auth, meta), held in the very names and bytes of etcd's buckets (server.md 14.6), so that an etcd database
//! file and ours convert pair by pair. Both change only in a `Batch`, which carries the applied index, term and ConfState
//! of the entry it ends with and is written in one transaction.

pub mod flusher;
pub mod memory;
pub mod metrics;
pub mod schema;
pub mod store;
pub mod tables;

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::sync::Arc;

use bytes::Bytes;
use prost::Message;

use crate::common::failure::Failure;
use crate::common::revision::Revision;
use crate::common::revision::STORAGE_KEY_BYTES;
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

impl Record {
    /// etcd's storage key: 17 bytes, 18 with a `t` behind them for a tombstone (server.md 3.1).
    pub fn storage_key(&self) -> Vec<u8> {
        storage_key(self.revision, self.tombstone)
    }

    /// The pair as etcd stores it: zero fields omitted.
    pub fn encoded(&self) -> Vec<u8> {
        self.kv.encode_to_vec()
    }

    /// CRC-32C of the storage key and the encoded pair, one behind the other: what etcd's hashes run over (server.md 3.9).
    pub fn crc(&self) -> u32 {
        let mark: &[u8] = if self.tombstone { b"t" } else { b"" };
        let key = crc32c::crc32c_append(crc32c::crc32c(&self.revision.storage_key()), mark);
        crc32c::crc32c_append(key, &self.encoded())
    }

    /// Length of what `crc` covers.
    pub fn hashed_bytes(&self) -> usize {
        STORAGE_KEY_BYTES + usize::from(self.tombstone) + self.kv.encoded_len()
    }
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

/// The key of etcd's bucket: a tombstone's has a mark behind it.
fn storage_key(revision: Revision, tombstone: bool) -> Vec<u8> {
    let mut key = revision.storage_key().to_vec();
    if tombstone {
        key.push(b't');
    }
    key
}

impl Header {
    pub fn storage_key(&self) -> Vec<u8> {
        storage_key(self.revision, self.tombstone)
    }

    /// The header that goes with a record.
    pub fn of(record: &Record) -> Header {
        let length = |bytes: usize| u32::try_from(bytes).expect("a pair is far below 4 GiB: requests are limited");
        Header {
            revision: record.revision,
            tombstone: record.tombstone,
            key: record.kv.key.clone(),
            create_revision: record.kv.create_revision,
            version: record.kv.version,
            lease: record.kv.lease,
            value_bytes: length(record.kv.value.len()),
            crc: record.crc(),
            hashed_bytes: length(record.hashed_bytes()),
        }
    }
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

impl Batch {
    /// Roughly what the batch holds in memory, in bytes: keys, values and a fixed cost an item.
    pub fn bytes(&self) -> usize {
        let records = self.records.iter().map(|record| record.kv.key.len() + record.kv.value.len() + RECORD_COST_BYTES);
        let pairs = self.pairs.iter();
        let pairs = pairs.map(|(_, key, value)| key.len() + value.as_ref().map_or(0, Bytes::len) + PAIR_COST_BYTES);
        records.sum::<usize>() + pairs.sum::<usize>() + self.removed.len() * size_of::<Revision>()
    }

    /// Nothing but the applied mark would be written.
    pub fn is_empty(&self) -> bool {
        self.records.is_empty() && self.removed.is_empty() && self.pairs.is_empty()
    }

    /// Appends a batch that follows this one.
    pub fn merge(&mut self, later: Batch) {
        assert!(
            later.applied.index >= self.applied.index,
            "a batch that ends with entry {} after one that ends with {}",
            later.applied.index,
            self.applied.index
        );
        if let (Some(last), Some(first)) = (self.records.last(), later.records.first()) {
            assert!(last.revision < first.revision, "revision {} after {}", first.revision, last.revision);
        }
        self.records.extend(later.records);
        self.removed.extend(later.removed);
        self.pairs.extend(later.pairs);
        self.applied = later.applied;
    }
}

/// What a record costs in a batch beside its key and value.
const RECORD_COST_BYTES: usize = 128;

/// What a pair costs in a batch beside its bytes.
const PAIR_COST_BYTES: usize = 80;

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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn crc_covers_storage_key_and_encoded_pair() {
        let kv = KeyValue { key: "k".into(), create_revision: 2, mod_revision: 2, version: 1, ..Default::default() };
        let put = Record { revision: Revision::new(2, 0), tombstone: false, kv };
        let mut plain = b"\0\0\0\0\0\0\0\x02_\0\0\0\0\0\0\0\0".to_vec();
        plain.extend_from_slice(b"\x0a\x01k\x10\x02\x18\x02\x20\x01");
        assert_eq!(put.crc(), crc32c::crc32c(&plain));
        assert_eq!(put.hashed_bytes(), plain.len());

        let kv = KeyValue { key: "k".into(), ..Default::default() };
        let tombstone = Record { revision: Revision::new(3, 1), tombstone: true, kv };
        let plain = b"\0\0\0\0\0\0\0\x03_\0\0\0\0\0\0\0\x01t\x0a\x01k";
        assert_eq!(tombstone.crc(), crc32c::crc32c(plain));
        let header = Header::of(&tombstone);
        assert_eq!((header.crc, header.hashed_bytes as usize), (tombstone.crc(), plain.len()));
    }
}

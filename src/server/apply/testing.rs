//! What tests of apply and of its callers share: an empty store, entries, a checkpoint in memory.

use std::sync::Arc;

use bytes::Bytes;
use prost::Message;

use crate::proto::etcdserverpb::CompactionRequest;
use crate::proto::etcdserverpb::DeleteRangeRequest;
use crate::proto::etcdserverpb::LeaseGrantRequest;
use crate::proto::etcdserverpb::LeaseRevokeRequest;
use crate::proto::etcdserverpb::PutRequest;
use crate::proto::etcdserverpb::RequestOp;
use crate::proto::etcdserverpb::TxnRequest;
use crate::proto::etcdserverpb::request_op;
use crate::proto::raft_numbers::ENTRY_CONF_CHANGE;
use crate::proto::raftinternalpb::InternalRaftRequest;
use crate::proto::raftinternalpb::RequestHeader;
use crate::proto::raftpb::ConfChange;
use crate::proto::raftpb::Entry;
use crate::server::apply::machine::Machine;
use crate::server::apply::machine::MachineConfig;
use crate::server::apply::quota::Space;
use crate::server::checkpoint::Applied;
use crate::server::checkpoint::Batch;
use crate::server::checkpoint::Buckets;
use crate::server::mvcc::store::Store;
use crate::server::mvcc::testing::tables::MemoryTables;
use crate::server::mvcc::view::Views;

/// Views of an empty store.
pub fn empty_views() -> Views {
    Store::new(Arc::new(MemoryTables::default())).views()
}

/// What a flusher has written: a checkpoint without a disk.
#[derive(Clone, Default)]
pub struct Written {
    pub tables: MemoryTables,
    pub buckets: Buckets,
    pub applied: Applied,
}

impl Written {
    pub fn write(&mut self, batch: &Batch) {
        self.tables = self.tables.with(&batch.records, &batch.removed);
        for (bucket, key, value) in &batch.pairs {
            match value {
                Some(value) => self.buckets.insert((*bucket, key.clone()), value.clone()),
                None => self.buckets.remove(&(*bucket, key.clone())),
            };
        }
        self.applied = batch.applied.clone();
    }

    pub fn machine_config(&self, quota: i64) -> MachineConfig {
        MachineConfig { space: Space::new(quota), ttl_seconds_min: 2, learners_max: 1 }
    }

    /// The machine that starts from here.
    pub fn machine(&self, quota: i64) -> Machine {
        let config = self.machine_config(quota);
        let tables = Arc::new(self.tables.clone());
        Machine::restore(config, tables, &self.buckets, self.applied.clone()).expect("a checkpoint of our own")
    }
}

/// A put of `key` with `value` and `lease`.
pub fn put(key: &'static str, value: &str, lease: i64) -> InternalRaftRequest {
    let value = Bytes::from(value.to_owned());
    let put = PutRequest { key: Bytes::from(key), value, lease, ..PutRequest::default() };
    InternalRaftRequest { put: Some(put), ..InternalRaftRequest::default() }
}

pub fn delete(key: &'static str, end: &'static str) -> InternalRaftRequest {
    let delete = DeleteRangeRequest { key: Bytes::from(key), range_end: Bytes::from(end), prev_kv: true };
    InternalRaftRequest { delete_range: Some(delete), ..InternalRaftRequest::default() }
}

/// A transaction of puts that always takes its first branch.
pub fn txn_of_puts(keys: &[&'static str]) -> InternalRaftRequest {
    let ops = keys.iter().map(|key| {
        let put = put(key, "txn", 0).put.expect("made above");
        RequestOp { request: Some(request_op::Request::RequestPut(put)) }
    });
    let txn = TxnRequest { success: ops.collect(), ..TxnRequest::default() };
    InternalRaftRequest { txn: Some(txn), ..InternalRaftRequest::default() }
}

/// A transaction that deletes one key.
pub fn txn_of_delete(key: &'static str) -> InternalRaftRequest {
    let delete = delete(key, "").delete_range.expect("made above");
    let op = RequestOp { request: Some(request_op::Request::RequestDeleteRange(delete)) };
    let txn = TxnRequest { success: vec![op], ..TxnRequest::default() };
    InternalRaftRequest { txn: Some(txn), ..InternalRaftRequest::default() }
}

pub fn compaction(revision: i64) -> InternalRaftRequest {
    let compaction = CompactionRequest { revision, ..CompactionRequest::default() };
    InternalRaftRequest { compaction: Some(compaction), ..InternalRaftRequest::default() }
}

pub fn grant(id: i64, ttl: i64) -> InternalRaftRequest {
    InternalRaftRequest { lease_grant: Some(LeaseGrantRequest { id, ttl }), ..InternalRaftRequest::default() }
}

pub fn revoke(id: i64) -> InternalRaftRequest {
    InternalRaftRequest { lease_revoke: Some(LeaseRevokeRequest { id }), ..InternalRaftRequest::default() }
}

/// The entry at `index`, of term 2, whose request has the index as its id.
pub fn entry(index: u64, request: &InternalRaftRequest) -> Entry {
    let header = Some(RequestHeader { id: index, ..RequestHeader::default() });
    let data = InternalRaftRequest { header, ..request.clone() }.encode_to_vec();
    Entry { index, term: 2, data: data.into(), ..Entry::default() }
}

/// The entry at `index` with a configuration change, whose id is the index.
pub fn conf_entry(index: u64, r#type: u64, node_id: u64, context: &str) -> Entry {
    let change = ConfChange { id: index, r#type, node_id, context: Bytes::from(context.to_owned()) };
    Entry { index, term: 2, r#type: ENTRY_CONF_CHANGE, data: change.encode_to_vec().into() }
}

/// Adds voters 1 to `n`, entries 1 to `n`, as a bootstrap does.
pub fn bootstrap(n: u64) -> Vec<Entry> {
    let entry =
        |id: u64| conf_entry(id, 0, id, &format!(r#"{{"id":{id},"peerURLs":["http://h:{id}"],"name":"m{id}"}}"#));
    (1..=n).map(entry).collect()
}

//! How much a request may add before the member calls itself full (server.md 6.4).
//!
//! The size is what apply counts: encoded records and a fixed overhead each, so that compaction alone frees space.

use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering;

use crate::proto::etcdserverpb::PutRequest;
use crate::proto::etcdserverpb::RequestOp;
use crate::proto::etcdserverpb::TxnRequest;
use crate::proto::etcdserverpb::request_op;
use crate::proto::raftinternalpb::InternalRaftRequest;

/// What a put costs beside its key and value.
const PUT_OVERHEAD_BYTES: u64 = 256;

/// What a lease costs.
pub const LEASE_GRANT_BYTES: u64 = 64;

/// Quota when the flag says 0: 2 GiB.
pub const QUOTA_BYTES_DEFAULT: u64 = 2 * 1024 * 1024 * 1024;

/// The quota and the size now, shared between apply, which keeps it, and the door, which looks.
#[derive(Clone, Debug)]
pub struct Space {
    /// `None` when switched off.
    quota_bytes: Option<u64>,
    used_bytes: Arc<AtomicU64>,
}

impl Space {
    /// `flag` is `--quota-backend-bytes`: 0 the default, negative off.
    pub fn new(flag: i64) -> Space {
        let quota_bytes = match flag {
            0 => Some(QUOTA_BYTES_DEFAULT),
            _ => u64::try_from(flag).ok(),
        };
        Space { quota_bytes, used_bytes: Arc::default() }
    }

    /// May a request of this cost be taken? What costs nothing always may.
    pub fn allows(&self, cost_bytes: u64) -> bool {
        let size = self.used_bytes().saturating_add(cost_bytes);
        cost_bytes == 0 || self.quota_bytes.is_none_or(|quota| size < quota)
    }

    /// Sum over the records: etcd's `dbSize` and `dbSizeInUse` at once.
    pub fn used_bytes(&self) -> u64 {
        self.used_bytes.load(Ordering::Relaxed)
    }

    /// `None` when switched off.
    pub fn quota_bytes(&self) -> Option<u64> {
        self.quota_bytes
    }

    pub fn set_used_bytes(&self, bytes: u64) {
        self.used_bytes.store(bytes, Ordering::Relaxed);
    }
}

/// Cost of a put.
pub fn put_cost(put: &PutRequest) -> u64 {
    PUT_OVERHEAD_BYTES + put.key.len() as u64 + put.value.len() as u64
}

/// Cost of a transaction: the dearer branch, nested ones counted. 0 exactly when no branch puts anything.
pub fn txn_cost(txn: &TxnRequest) -> u64 {
    let branch = |ops: &[RequestOp]| {
        let costs = ops.iter().map(|op| match &op.request {
            Some(request_op::Request::RequestPut(put)) => put_cost(put),
            Some(request_op::Request::RequestTxn(txn)) => txn_cost(txn),
            _ => 0,
        });
        costs.sum::<u64>()
    };
    branch(&txn.success).max(branch(&txn.failure))
}

/// Cost of any request; 0 if it adds nothing.
pub fn request_cost(request: &InternalRaftRequest) -> u64 {
    let put = request.put.as_ref().map_or(0, put_cost);
    let txn = request.txn.as_ref().map_or(0, txn_cost);
    put + txn + if request.lease_grant.is_some() { LEASE_GRANT_BYTES } else { 0 }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::Bytes;

    fn put(key: &'static str, value: &'static str) -> RequestOp {
        let put = PutRequest { key: Bytes::from(key), value: Bytes::from(value), ..PutRequest::default() };
        RequestOp { request: Some(request_op::Request::RequestPut(put)) }
    }

    #[test]
    fn a_transaction_costs_its_dearer_branch() {
        let nested = TxnRequest { failure: vec![put("abc", "de")], ..TxnRequest::default() };
        let nested = RequestOp { request: Some(request_op::Request::RequestTxn(nested)) };
        let txn = TxnRequest { success: vec![put("a", "b"), nested], failure: vec![put("a", "b")], compare: vec![] };
        assert_eq!(txn_cost(&txn), 258 + 261);
        assert_eq!(txn_cost(&TxnRequest::default()), 0);
    }

    #[test]
    fn the_quota_is_reached_not_only_passed() {
        let check = |flag: i64, used: u64, cost: u64, expected: bool| {
            let space = Space::new(flag);
            space.set_used_bytes(used);
            assert_eq!(space.allows(cost), expected, "{flag} {used} {cost}");
        };
        check(1000, 0, 999, true);
        check(1000, 0, 1000, false);
        check(1000, 900, 99, true);
        check(1000, 900, 100, false);
        check(1000, 5000, 0, true);
        check(-1, u64::MAX, u64::MAX, true);
        check(0, QUOTA_BYTES_DEFAULT - 10, 9, true);
        check(0, QUOTA_BYTES_DEFAULT - 10, 10, false);
    }
}

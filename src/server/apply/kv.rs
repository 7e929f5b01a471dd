//! Put, DeleteRange, Range and Compact as the log orders them (server.md 3.3 to 3.8).
//!
//! Requests were validated where they came in. What can still fail here fails the same way on every member.
//! Headers carry the revision only; the API adds the rest to the outermost.

use bytes::Bytes;

use crate::common::answer::Answer;
use crate::common::failure::Failure;
use crate::common::key_range::KeyRange;
use crate::proto::etcdserverpb::CompactionRequest;
use crate::proto::etcdserverpb::CompactionResponse;
use crate::proto::etcdserverpb::DeleteRangeRequest;
use crate::proto::etcdserverpb::DeleteRangeResponse;
use crate::proto::etcdserverpb::PutRequest;
use crate::proto::etcdserverpb::PutResponse;
use crate::proto::etcdserverpb::RangeRequest;
use crate::proto::etcdserverpb::RangeResponse;
use crate::proto::mvccpb::KeyValue;
use crate::server::mvcc::index::mark::Mark;
use crate::server::mvcc::read;
use crate::server::mvcc::read::header;
use crate::server::mvcc::store::Store;
use crate::server::mvcc::view::Keys;
use crate::server::mvcc::view::ReadError;
use crate::server::mvcc::view::Records;
use crate::server::mvcc::write::Committed;
use crate::server::mvcc::write::WriteTxn;

/// Why an entry had no effect, or the node has to stop.
#[derive(Debug, thiserror::Error)]
pub enum ApplyError {
    /// For the client; nothing was changed.
    #[error("{0}")]
    Answer(#[from] Answer),
    /// Stops the node.
    #[error("{0}")]
    Failure(#[from] Failure),
}

impl From<ReadError> for ApplyError {
    fn from(error: ReadError) -> ApplyError {
        match error {
            ReadError::Answer(answer) => ApplyError::Answer(answer),
            ReadError::Failure(failure) => ApplyError::Failure(failure),
        }
    }
}

/// Leases as writes see them. A key has at most one.
pub trait Leases {
    fn exists(&self, id: i64) -> bool;
    /// The lease exists, and the key has none now. The key may share its entry's buffer: copy what is kept.
    fn attach(&mut self, id: i64, key: &Bytes);
    /// The key has this lease now.
    fn detach(&mut self, id: i64, key: &Bytes);
}

pub fn put(store: &mut Store, leases: &mut dyn Leases, request: &PutRequest) -> Result<PutResponse, ApplyError> {
    check_put(store, leases, request)?;
    let mut txn = store.begin();
    let response = put_in(&mut txn, leases, request)?;
    txn.commit();
    Ok(response)
}

pub fn delete_range(
    store: &mut Store,
    leases: &mut dyn Leases,
    request: &DeleteRangeRequest,
) -> Result<DeleteRangeResponse, ApplyError> {
    let mut txn = store.begin();
    let response = delete_range_in(&mut txn, leases, request)?;
    txn.commit();
    Ok(response)
}

/// Deletes these keys, sorted, in one revision: what a lease leaves behind. No key alive: the revision stays.
pub fn delete_keys(store: &mut Store, leases: &mut dyn Leases, keys: &[Bytes]) -> Result<Committed, ApplyError> {
    assert!(keys.is_sorted(), "members would give the same keys different sub revisions");
    let mut txn = store.begin();
    for key in keys {
        if let Some(mark) = txn.get(key, txn.revision()) {
            delete_in(&mut txn, leases, key, &mark)?;
        }
    }
    Ok(txn.commit())
}

pub fn range(store: &Store, request: &RangeRequest) -> Result<RangeResponse, ApplyError> {
    Ok(read::range(store, request)?)
}

pub fn compact(store: &mut Store, request: &CompactionRequest) -> Result<CompactionResponse, ApplyError> {
    store.compact(request.revision)?;
    Ok(CompactionResponse { header: header(store.revision()) })
}

/// What refuses a put: its lease before its key.
pub(super) fn check_put(source: &dyn Keys, leases: &dyn Leases, request: &PutRequest) -> Result<(), Answer> {
    if request.lease != 0 && !leases.exists(request.lease) {
        return Err(Answer::LeaseNotFound);
    }
    let needs_key = request.ignore_value || request.ignore_lease;
    if needs_key && source.get(&request.key, source.revision()).is_none() {
        return Err(Answer::KeyNotFound);
    }
    Ok(())
}

/// Writes the pair, moves the key to its lease.
pub(super) fn put_in(
    txn: &mut WriteTxn<'_>,
    leases: &mut dyn Leases,
    request: &PutRequest,
) -> Result<PutResponse, ApplyError> {
    let old_mark = txn.get(&request.key, txn.revision());
    let reads_old = request.prev_kv || request.ignore_value || request.ignore_lease;
    let old = match &old_mark {
        Some(mark) if reads_old || mark.is_leased() => Some(txn.pair(&request.key, mark)?),
        _ => None,
    };
    // A transaction may have deleted the key since the check (a delete to the end of all keys escapes the overlap
    // check): then the old value and lease are none. etcd ends the process there.
    let old_lease = old.as_ref().map_or(0, |old| old.lease);
    let lease = if request.ignore_lease { old_lease } else { request.lease };
    let value = match &old {
        Some(old) if request.ignore_value => old.value.clone(),
        _ => request.value.clone(),
    };
    txn.put(&request.key, value, lease);
    if lease != old_lease {
        if old_lease != 0 {
            leases.detach(old_lease, &request.key);
        }
        if lease != 0 {
            leases.attach(lease, &request.key);
        }
    }
    Ok(PutResponse { header: header(txn.revision()), prev_kv: old.filter(|_| request.prev_kv) })
}

/// Deletes what is alive in the interval, in key order.
pub(super) fn delete_range_in(
    txn: &mut WriteTxn<'_>,
    leases: &mut dyn Leases,
    request: &DeleteRangeRequest,
) -> Result<DeleteRangeResponse, ApplyError> {
    let range = KeyRange::new(request.key.clone(), request.range_end.clone());
    let found = txn.find(&range, txn.revision(), usize::MAX);
    let mut prev_kvs: Vec<KeyValue> = Vec::new();
    for found in &found {
        if request.prev_kv {
            prev_kvs.push(txn.pair(&found.key, &found.mark)?);
        }
        delete_in(txn, leases, &Bytes::copy_from_slice(&found.key), &found.mark)?;
    }
    let deleted = i64::try_from(found.len()).unwrap_or(i64::MAX);
    Ok(DeleteRangeResponse { header: header(txn.revision()), deleted, prev_kvs })
}

/// Deletes a key that is alive with this mark.
fn delete_in(txn: &mut WriteTxn<'_>, leases: &mut dyn Leases, key: &Bytes, mark: &Mark) -> Result<(), ApplyError> {
    let lease = if mark.is_leased() { txn.pair(key, mark)?.lease } else { 0 };
    let deleted = txn.delete(key);
    assert!(deleted, "a key that was found alive can be deleted");
    if lease != 0 {
        leases.detach(lease, key);
    }
    Ok(())
}

#[cfg(test)]
pub mod test_leases;
#[cfg(test)]
mod tests;

//! Whether a request may enter: shape, limits, and keys that a transaction would write twice.
//!
//! Pure. Order and texts are etcd's (server.md 3.3, 3.4, 3.5, 3.7), quirks included, because clients and tests match them.

use std::collections::HashSet;

use bytes::Bytes;
use tonic::Code;

use crate::common::answer::Answer;
use crate::common::key_range::KeyRange;
use crate::proto::etcdserverpb::DeleteRangeRequest;
use crate::proto::etcdserverpb::PutRequest;
use crate::proto::etcdserverpb::RangeRequest;
use crate::proto::etcdserverpb::RequestOp;
use crate::proto::etcdserverpb::TxnRequest;
use crate::proto::etcdserverpb::range_request::SortOrder;
use crate::proto::etcdserverpb::range_request::SortTarget;
use crate::proto::etcdserverpb::request_op::Request;

/// Transactions within transactions. The operation budget ends them too, but only while every level has an operation;
/// a compare-free, one-operation chain of 128 would recurse as deep.
const NESTING_MAX: usize = 8;

pub fn range(request: &RangeRequest) -> Result<(), Answer> {
    if request.key.is_empty() {
        return Err(Answer::EmptyKey);
    }
    let known = SortOrder::try_from(request.sort_order).is_ok() && SortTarget::try_from(request.sort_target).is_ok();
    known.then_some(()).ok_or(Answer::InvalidSortOption)
}

/// A stream is always in key order. Unlike etcd 3.7.1 a NONE order with another target is refused too: there it loses
/// and repeats keys (server.md 3.4).
pub fn range_stream(request: &RangeRequest) -> Result<(), tonic::Status> {
    range(request)?;
    let by_key = request.sort_target == SortTarget::Key as i32;
    if !by_key || request.sort_order == SortOrder::Descend as i32 {
        return Err(tonic::Status::new(Code::Unimplemented, "RangeStream does not support custom sort orders"));
    }
    let bounds =
        [request.min_mod_revision, request.max_mod_revision, request.min_create_revision, request.max_create_revision];
    if bounds.iter().any(|bound| *bound != 0) {
        return Err(tonic::Status::new(Code::Unimplemented, "RangeStream does not support revision filters"));
    }
    Ok(())
}

pub fn put(request: &PutRequest) -> Result<(), Answer> {
    if request.key.is_empty() {
        return Err(Answer::EmptyKey);
    }
    if request.ignore_value && !request.value.is_empty() {
        return Err(Answer::ValueProvided);
    }
    if request.ignore_lease && request.lease != 0 {
        return Err(Answer::LeaseProvided);
    }
    Ok(())
}

pub fn delete_range(request: &DeleteRangeRequest) -> Result<(), Answer> {
    if request.key.is_empty() { Err(Answer::EmptyKey) } else { Ok(()) }
}

/// Shape first, everywhere; then overlaps of the then-branch, then of the else-branch.
pub fn txn(request: &TxnRequest, ops_max: usize) -> Result<(), Answer> {
    txn_shape(request, ops_max, 0)?;
    Writes::of(&request.success)?;
    Writes::of(&request.failure)?;
    Ok(())
}

fn txn_shape(request: &TxnRequest, budget: usize, depth: usize) -> Result<(), Answer> {
    let longest = request.compare.len().max(request.success.len()).max(request.failure.len());
    if longest > budget || depth > NESTING_MAX {
        return Err(Answer::TooManyOps);
    }
    if request.compare.iter().any(|compare| compare.key.is_empty()) {
        return Err(Answer::EmptyKey);
    }
    let rest = budget - longest;
    for op in request.success.iter().chain(&request.failure) {
        match &op.request {
            Some(Request::RequestRange(inner)) => range(inner)?,
            Some(Request::RequestPut(inner)) => put(inner)?,
            Some(Request::RequestDeleteRange(inner)) => delete_range(inner)?,
            Some(Request::RequestTxn(inner)) => txn_shape(inner, rest, depth + 1)?,
            // etcd says so (server.md 3.7).
            None => return Err(Answer::KeyNotFound),
        }
    }
    Ok(())
}

/// What one branch writes, nested transactions included.
#[derive(Default)]
struct Writes {
    puts: HashSet<Bytes>,
    deletes: Vec<KeyRange>,
}

impl Writes {
    /// Collects a branch. Deletes of the level first, then nested transactions in order, then puts of the level: a nested
    /// delete therefore meets later siblings' puts and this level's puts, but not earlier siblings' (server.md 3.7).
    fn of(ops: &[RequestOp]) -> Result<Writes, Answer> {
        let mut writes = Writes::default();
        for op in ops {
            if let Some(Request::RequestDeleteRange(delete)) = &op.request {
                writes.deletes.extend(delete_interval(delete));
            }
        }
        for op in ops {
            if let Some(Request::RequestTxn(nested)) = &op.request {
                let (then, otherwise) = (Writes::of(&nested.success)?, Writes::of(&nested.failure)?);
                writes.absorb_nested(then, otherwise)?;
            }
        }
        for op in ops {
            if let Some(Request::RequestPut(put)) = &op.request {
                writes.put(&put.key)?;
            }
        }
        Ok(writes)
    }

    /// Only one of the two branches runs, so they may write the same key; what came before must not be written by either.
    fn absorb_nested(&mut self, then: Writes, otherwise: Writes) -> Result<(), Answer> {
        for key in then.puts.iter().chain(&otherwise.puts) {
            if self.puts.contains(key) || self.deletes(key) {
                return Err(Answer::DuplicateKey);
            }
        }
        self.puts.extend(then.puts);
        self.puts.extend(otherwise.puts);
        self.deletes.extend(then.deletes);
        self.deletes.extend(otherwise.deletes);
        Ok(())
    }

    fn put(&mut self, key: &Bytes) -> Result<(), Answer> {
        if self.deletes(key) || !self.puts.insert(key.clone()) {
            return Err(Answer::DuplicateKey);
        }
        Ok(())
    }

    fn deletes(&self, key: &Bytes) -> bool {
        self.deletes.iter().any(|range| range.contains(key))
    }
}

/// The interval as etcd's check sees it: an open end compares as the one-byte key it is, so it covers nothing.
fn delete_interval(request: &DeleteRangeRequest) -> Option<KeyRange> {
    match request.range_end.as_ref() {
        [0] => None,
        _ => Some(KeyRange::new(request.key.clone(), request.range_end.clone())),
    }
}

#[cfg(test)]
#[path = "check_tests.rs"]
mod tests;

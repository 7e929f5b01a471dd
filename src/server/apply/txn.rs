//! Transactions: compares, then one of two lists of operations, all in one revision (server.md 3.7).
//!
//! 1. *Plan*: all compares, those of nested transactions too, against the state before any write.
//! 2. *Check* the chosen path: a revision that cannot be read, an unknown lease, a missing key. Nothing was written yet.
//! 3. *Execute* in order; each operation sees the ones before it.

use std::cmp::Ordering;

use bytes::Bytes;

use crate::common::answer::Answer;
use crate::common::failure::Failure;
use crate::common::key_range::KeyRange;
use crate::proto::etcdserverpb::Compare;
use crate::proto::etcdserverpb::RequestOp;
use crate::proto::etcdserverpb::ResponseHeader;
use crate::proto::etcdserverpb::ResponseOp;
use crate::proto::etcdserverpb::TxnRequest;
use crate::proto::etcdserverpb::TxnResponse;
use crate::proto::etcdserverpb::compare::CompareResult;
use crate::proto::etcdserverpb::compare::CompareTarget;
use crate::proto::etcdserverpb::compare::TargetUnion;
use crate::proto::etcdserverpb::request_op::Request;
use crate::proto::etcdserverpb::response_op::Response;
use crate::server::apply::kv::ApplyError;
use crate::server::apply::kv::Leases;
use crate::server::apply::kv::check_put;
use crate::server::apply::kv::delete_range_in;
use crate::server::apply::kv::put_in;
use crate::server::mvcc::index::mark::Mark;
use crate::server::mvcc::read;
use crate::server::mvcc::read::header;
use crate::server::mvcc::store::Store;
use crate::server::mvcc::view::Keys;
use crate::server::mvcc::view::Source;
use crate::server::mvcc::view::View;
use crate::server::mvcc::write::WriteTxn;

/// Applies a transaction. An answer means that nothing was changed.
pub fn txn(store: &mut Store, leases: &mut dyn Leases, request: &TxnRequest) -> Result<TxnResponse, ApplyError> {
    let plan = plan(store, request)?;
    check(store, leases, &plan)?;
    let mut txn = store.begin();
    let mut response = execute(&mut Target::Write(&mut txn, leases), &plan)?;
    response.header = header(txn.commit().revision);
    Ok(response)
}

/// Evaluates a transaction of reads on a View, without the log. For requests that `is_read_only`.
pub fn txn_read_only(view: &View, request: &TxnRequest) -> Result<TxnResponse, ApplyError> {
    let plan = plan(view, request)?;
    check(view, &NoLeases, &plan)?;
    let mut response = execute(&mut Target::Read(view), &plan)?;
    response.header = header(view.revision());
    Ok(response)
}

/// Whether every operation of both branches is a plain Range. A nested transaction is not, whatever it holds.
pub fn is_read_only(request: &TxnRequest) -> bool {
    all_ops(request).all(|op| matches!(op.request, Some(Request::RequestRange(_))))
}

/// Whether every operation is a serializable Range; so is a transaction of compares only (server.md trap 11).
pub fn is_serializable(request: &TxnRequest) -> bool {
    all_ops(request).all(|op| matches!(&op.request, Some(Request::RequestRange(range)) if range.serializable))
}

fn all_ops(request: &TxnRequest) -> impl Iterator<Item = &RequestOp> {
    request.success.iter().chain(&request.failure)
}

/// Which branch a transaction takes, and each transaction nested in that branch, in order.
struct Plan<'a> {
    succeeded: bool,
    ops: &'a [RequestOp],
    nested: Vec<Plan<'a>>,
}

// The depth of nesting is bounded by the decoder of the request.
fn plan<'a>(source: &dyn Source, request: &'a TxnRequest) -> Result<Plan<'a>, Failure> {
    let mut succeeded = true;
    for compare in &request.compare {
        if !holds(source, compare)? {
            succeeded = false;
            break;
        }
    }
    let ops: &[RequestOp] = if succeeded { &request.success } else { &request.failure };
    let nested = ops.iter().filter_map(|op| match &op.request {
        Some(Request::RequestTxn(nested)) => Some(plan(source, nested)),
        _ => None,
    });
    let nested = nested.collect::<Result<Vec<Plan<'_>>, Failure>>()?;
    Ok(Plan { succeeded, ops, nested })
}

/// What refuses the transaction, in the order of operations.
fn check(source: &dyn Keys, leases: &dyn Leases, plan: &Plan<'_>) -> Result<(), Answer> {
    let mut nested = plan.nested.iter();
    for op in plan.ops {
        match &op.request {
            Some(Request::RequestRange(range)) => check_revision(source, range.revision)?,
            Some(Request::RequestPut(put)) => check_put(source, leases, put)?,
            Some(Request::RequestTxn(_)) => check(source, leases, nested_plan(&mut nested))?,
            Some(Request::RequestDeleteRange(_)) | None => {}
        }
    }
    Ok(())
}

/// Unlike outside of transactions, a negative revision is compared with the compact revision, which begins at -1.
fn check_revision(source: &dyn Keys, revision: i64) -> Result<(), Answer> {
    if revision > source.revision() {
        return Err(Answer::FutureRevision);
    }
    if revision != 0 && revision < source.compact_revision() {
        return Err(Answer::Compacted);
    }
    Ok(())
}

fn nested_plan<'p, 'a>(nested: &mut impl Iterator<Item = &'p Plan<'a>>) -> &'p Plan<'a>
where
    'a: 'p,
{
    nested.next().expect("the plan has one for each nested transaction of its branch")
}

/// What operations run on.
enum Target<'a, 't> {
    Read(&'a View),
    Write(&'a mut WriteTxn<'t>, &'a mut dyn Leases),
}

impl Target<'_, '_> {
    fn source(&self) -> &dyn Source {
        match self {
            Target::Read(view) => *view,
            Target::Write(txn, _) => *txn,
        }
    }
}

fn execute(target: &mut Target<'_, '_>, plan: &Plan<'_>) -> Result<TxnResponse, ApplyError> {
    let mut nested = plan.nested.iter();
    let mut responses = Vec::with_capacity(plan.ops.len());
    for op in plan.ops {
        let response = match &op.request {
            Some(Request::RequestTxn(_)) => {
                let mut response = execute(target, nested_plan(&mut nested))?;
                response.header = Some(ResponseHeader::default());
                Some(Response::ResponseTxn(response))
            }
            Some(request) => Some(execute_op(target, request)?),
            None => None,
        };
        responses.push(ResponseOp { response });
    }
    Ok(TxnResponse { header: None, succeeded: plan.succeeded, responses })
}

fn execute_op(target: &mut Target<'_, '_>, request: &Request) -> Result<Response, ApplyError> {
    match (request, target) {
        (Request::RequestRange(range), target) => Ok(Response::ResponseRange(read::range(target.source(), range)?)),
        (Request::RequestPut(put), Target::Write(txn, leases)) => Ok(Response::ResponsePut(put_in(txn, *leases, put)?)),
        (Request::RequestDeleteRange(delete), Target::Write(txn, leases)) => {
            Ok(Response::ResponseDeleteRange(delete_range_in(txn, *leases, delete)?))
        }
        (Request::RequestTxn(_), _) => unreachable!("nested transactions are executed from their plan"),
        (Request::RequestPut(_) | Request::RequestDeleteRange(_), Target::Read(_)) => {
            Err(Failure::Refused("a write was given to a transaction of reads".to_owned()).into())
        }
    }
}

/// Whether the compare holds for every key of its interval; an empty one is like a missing key.
fn holds(source: &dyn Source, compare: &Compare) -> Result<bool, Failure> {
    let range = KeyRange::new(compare.key.clone(), compare.range_end.clone());
    let found = source.find(&range, source.revision(), usize::MAX);
    if found.is_empty() {
        // A value that is not there is not even unequal (server.md trap 10).
        let is_value = compare.target == CompareTarget::Value as i32;
        return Ok(!is_value && result_holds(compare, compare_numbers(compare, &Numbers::default())));
    }
    for found in &found {
        if !result_holds(compare, compare_key(source, compare, &found.key, &found.mark)?) {
            return Ok(false);
        }
    }
    Ok(true)
}

fn compare_key(source: &dyn Source, compare: &Compare, key: &[u8], mark: &Mark) -> Result<Ordering, Failure> {
    let target = CompareTarget::try_from(compare.target);
    if target == Ok(CompareTarget::Value) {
        let wanted = match &compare.target_union {
            Some(TargetUnion::Value(value)) => value.clone(),
            _ => Bytes::new(),
        };
        return Ok(source.pair(key, mark)?.value.cmp(&wanted));
    }
    let reads_lease = target == Ok(CompareTarget::Lease) && mark.is_leased();
    let lease = if reads_lease { source.pair(key, mark)?.lease } else { 0 };
    let numbers =
        Numbers { version: mark.version, create_revision: mark.create_revision, mod_revision: mark.main, lease };
    Ok(compare_numbers(compare, &numbers))
}

/// A number of another kind than the target says counts as 0. Targets that etcd does not know are equal.
fn compare_numbers(compare: &Compare, numbers: &Numbers) -> Ordering {
    let Ok(target) = CompareTarget::try_from(compare.target) else { return Ordering::Equal };
    let number = match target {
        CompareTarget::Version => numbers.version,
        CompareTarget::Create => numbers.create_revision,
        CompareTarget::Mod => numbers.mod_revision,
        CompareTarget::Lease => numbers.lease,
        CompareTarget::Value => return Ordering::Equal,
    };
    let wanted = match (target, &compare.target_union) {
        (CompareTarget::Version, Some(TargetUnion::Version(wanted)))
        | (CompareTarget::Create, Some(TargetUnion::CreateRevision(wanted)))
        | (CompareTarget::Mod, Some(TargetUnion::ModRevision(wanted)))
        | (CompareTarget::Lease, Some(TargetUnion::Lease(wanted))) => *wanted,
        _ => 0,
    };
    number.cmp(&wanted)
}

/// What a compare can ask of a key but its value; all 0 for one that does not exist.
#[derive(Default)]
struct Numbers {
    version: i64,
    create_revision: i64,
    mod_revision: i64,
    lease: i64,
}

/// Results that etcd does not know are true.
fn result_holds(compare: &Compare, ordering: Ordering) -> bool {
    match CompareResult::try_from(compare.result) {
        Ok(CompareResult::Equal) => ordering.is_eq(),
        Ok(CompareResult::NotEqual) => ordering.is_ne(),
        Ok(CompareResult::Greater) => ordering.is_gt(),
        Ok(CompareResult::Less) => ordering.is_lt(),
        Err(_) => true,
    }
}

/// There are no puts to check where this is used.
struct NoLeases;

impl Leases for NoLeases {
    fn exists(&self, _id: i64) -> bool {
        false
    }

    fn attach(&mut self, _id: i64, _key: &Bytes) {}

    fn detach(&mut self, _id: i64, _key: &Bytes) {}
}

#[cfg(test)]
mod tests;

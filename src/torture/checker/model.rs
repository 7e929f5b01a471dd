//! The store as one reads it in etcd's API pages: a list of versions for each key, nothing else.
//!
//! Written apart from the server on purpose: it shares no code with what it judges. It knows the requests that the
//! generators of simulator and torture make: leases end by a revoke only; no nested transactions; no sorting and no filters
//! but in what members ask of themselves for a lock, whose answers nobody sees.

use std::cmp::Ordering;
use std::collections::BTreeMap;
use std::collections::BTreeSet;

use bytes::Bytes;
use prost::Message;

use crate::common::answer::Answer;
use crate::proto::etcdserverpb::CompactionRequest;
use crate::proto::etcdserverpb::CompactionResponse;
use crate::proto::etcdserverpb::Compare;
use crate::proto::etcdserverpb::DeleteRangeRequest;
use crate::proto::etcdserverpb::DeleteRangeResponse;
use crate::proto::etcdserverpb::LeaseGrantRequest;
use crate::proto::etcdserverpb::LeaseGrantResponse;
use crate::proto::etcdserverpb::LeaseRevokeRequest;
use crate::proto::etcdserverpb::LeaseRevokeResponse;
use crate::proto::etcdserverpb::PutRequest;
use crate::proto::etcdserverpb::PutResponse;
use crate::proto::etcdserverpb::RangeRequest;
use crate::proto::etcdserverpb::RangeResponse;
use crate::proto::etcdserverpb::RequestOp;
use crate::proto::etcdserverpb::ResponseHeader;
use crate::proto::etcdserverpb::ResponseOp;
use crate::proto::etcdserverpb::TxnRequest;
use crate::proto::etcdserverpb::TxnResponse;
use crate::proto::etcdserverpb::compare::CompareResult;
use crate::proto::etcdserverpb::compare::TargetUnion;
use crate::proto::etcdserverpb::request_op;
use crate::proto::etcdserverpb::response_op;
use crate::proto::mvccpb::KeyValue;

/// What clients ask.
#[derive(Clone, Debug, PartialEq)]
pub enum Request {
    Put(PutRequest),
    DeleteRange(DeleteRangeRequest),
    Txn(TxnRequest),
    Compact(CompactionRequest),
    LeaseGrant(LeaseGrantRequest),
    LeaseRevoke(LeaseRevokeRequest),
    Range(RangeRequest),
}

/// What they are told.
#[derive(Clone, Debug, PartialEq)]
pub enum Response {
    Put(PutResponse),
    DeleteRange(DeleteRangeResponse),
    Txn(TxnResponse),
    Compact(CompactionResponse),
    LeaseGrant(LeaseGrantResponse),
    LeaseRevoke(LeaseRevokeResponse),
    Range(RangeResponse),
}

impl Request {
    /// Its bytes, the kind in front: equal for equal requests.
    pub fn to_bytes(&self) -> Vec<u8> {
        match self {
            Request::Put(put) => tagged(b'p', put),
            Request::DeleteRange(delete) => tagged(b'd', delete),
            Request::Txn(txn) => tagged(b't', txn),
            Request::Compact(compaction) => tagged(b'c', compaction),
            Request::LeaseGrant(grant) => tagged(b'g', grant),
            Request::LeaseRevoke(revoke) => tagged(b'v', revoke),
            Request::Range(range) => tagged(b'r', range),
        }
    }

    /// `None` for what `to_bytes` did not make.
    pub fn from_bytes(bytes: Bytes) -> Option<Request> {
        let (kind, message) = (*bytes.first()?, bytes.slice(1..));
        match kind {
            b'p' => PutRequest::decode(message).ok().map(Request::Put),
            b'd' => DeleteRangeRequest::decode(message).ok().map(Request::DeleteRange),
            b't' => TxnRequest::decode(message).ok().map(Request::Txn),
            b'c' => CompactionRequest::decode(message).ok().map(Request::Compact),
            b'g' => LeaseGrantRequest::decode(message).ok().map(Request::LeaseGrant),
            b'v' => LeaseRevokeRequest::decode(message).ok().map(Request::LeaseRevoke),
            b'r' => RangeRequest::decode(message).ok().map(Request::Range),
            _ => None,
        }
    }
}

fn tagged(kind: u8, message: &impl Message) -> Vec<u8> {
    let mut bytes = vec![kind];
    bytes.extend(message.encode_to_vec());
    bytes
}

impl Response {
    /// Its bytes, the kind in front.
    pub fn to_bytes(&self) -> Vec<u8> {
        match self {
            Response::Put(put) => tagged(b'p', put),
            Response::DeleteRange(delete) => tagged(b'd', delete),
            Response::Txn(txn) => tagged(b't', txn),
            Response::Compact(compaction) => tagged(b'c', compaction),
            Response::LeaseGrant(grant) => tagged(b'g', grant),
            Response::LeaseRevoke(revoke) => tagged(b'v', revoke),
            Response::Range(range) => tagged(b'r', range),
        }
    }

    /// `None` for what `to_bytes` did not make.
    pub fn from_bytes(bytes: Bytes) -> Option<Response> {
        let (kind, message) = (*bytes.first()?, bytes.slice(1..));
        match kind {
            b'p' => PutResponse::decode(message).ok().map(Response::Put),
            b'd' => DeleteRangeResponse::decode(message).ok().map(Response::DeleteRange),
            b't' => TxnResponse::decode(message).ok().map(Response::Txn),
            b'c' => CompactionResponse::decode(message).ok().map(Response::Compact),
            b'g' => LeaseGrantResponse::decode(message).ok().map(Response::LeaseGrant),
            b'v' => LeaseRevokeResponse::decode(message).ok().map(Response::LeaseRevoke),
            b'r' => RangeResponse::decode(message).ok().map(Response::Range),
            _ => None,
        }
    }

    /// The store's revision when it was answered.
    pub fn revision(&self) -> i64 {
        let header = match self {
            Response::Put(response) => &response.header,
            Response::DeleteRange(response) => &response.header,
            Response::Txn(response) => &response.header,
            Response::Compact(response) => &response.header,
            Response::LeaseGrant(response) => &response.header,
            Response::LeaseRevoke(response) => &response.header,
            Response::Range(response) => &response.header,
        };
        header.as_ref().map_or(0, |header| header.revision)
    }

    /// Without what depends on who answers, and without the headers inside a transaction, which mean nothing.
    pub fn plain(&self) -> Response {
        let revision = self.revision();
        let mut plain = self.clone();
        *plain.header() = header(revision);
        if let Response::Txn(txn) = &mut plain {
            txn.responses.iter_mut().for_each(strip);
        }
        plain
    }

    fn header(&mut self) -> &mut Option<ResponseHeader> {
        match self {
            Response::Put(response) => &mut response.header,
            Response::DeleteRange(response) => &mut response.header,
            Response::Txn(response) => &mut response.header,
            Response::Compact(response) => &mut response.header,
            Response::LeaseGrant(response) => &mut response.header,
            Response::LeaseRevoke(response) => &mut response.header,
            Response::Range(response) => &mut response.header,
        }
    }
}

fn strip(op: &mut ResponseOp) {
    match &mut op.response {
        Some(response_op::Response::ResponseRange(response)) => response.header = None,
        Some(response_op::Response::ResponsePut(response)) => response.header = None,
        Some(response_op::Response::ResponseDeleteRange(response)) => response.header = None,
        Some(response_op::Response::ResponseTxn(_)) | None => {}
    }
}

fn header(revision: i64) -> Option<ResponseHeader> {
    Some(ResponseHeader { revision, ..ResponseHeader::default() })
}

/// A key from one revision on: a pair, or deleted.
#[derive(Clone, Debug)]
struct Version {
    revision: i64,
    pair: Option<KeyValue>,
}

/// The store with its whole history: compaction only moves a mark, so that every state can be asked for.
#[derive(Clone, Debug)]
pub struct Model {
    revision: i64,
    compact_revision: i64,
    keys: BTreeMap<Bytes, Vec<Version>>,
    leases: BTreeSet<i64>,
    /// What a watcher of everything is told: revision and key, in order.
    changes: Vec<(i64, Bytes)>,
}

impl Default for Model {
    fn default() -> Model {
        Model { revision: 1, compact_revision: -1, keys: BTreeMap::new(), leases: BTreeSet::new(), changes: Vec::new() }
    }
}

impl Model {
    pub fn revision(&self) -> i64 {
        self.revision
    }

    /// Carries out one entry of the log. An error changes nothing.
    pub fn apply(&mut self, request: &Request) -> Result<Response, Answer> {
        let main = self.revision + 1;
        match request {
            Request::Put(put) => {
                self.check_lease(put.lease)?;
                let mut response = self.put(put, main);
                self.revision = main;
                response.header = header(main);
                Ok(Response::Put(response))
            }
            Request::DeleteRange(delete) => {
                let mut response = self.delete(delete, main);
                self.revision += i64::from(response.deleted > 0);
                response.header = header(self.revision);
                Ok(Response::DeleteRange(response))
            }
            Request::Txn(txn) => self.txn(txn).map(Response::Txn),
            Request::Compact(compaction) => {
                if compaction.revision <= self.compact_revision {
                    return Err(Answer::Compacted);
                }
                if compaction.revision > self.revision {
                    return Err(Answer::FutureRevision);
                }
                self.compact_revision = compaction.revision;
                Ok(Response::Compact(CompactionResponse { header: header(self.revision) }))
            }
            Request::LeaseGrant(grant) => match self.leases.insert(grant.id) {
                true => {
                    let (header, id, ttl) = (header(self.revision), grant.id, grant.ttl);
                    Ok(Response::LeaseGrant(LeaseGrantResponse { header, id, ttl, ..LeaseGrantResponse::default() }))
                }
                false => Err(Answer::LeaseExists),
            },
            Request::LeaseRevoke(revoke) => self.revoke(revoke.id).map(Response::LeaseRevoke),
            Request::Range(range) => {
                self.check_revision(range.revision)?;
                Ok(self.read(range, self.revision))
            }
        }
    }

    /// What a read answers while the store is at `now`, compactions aside.
    pub fn read(&self, range: &RangeRequest, now: i64) -> Response {
        let mut response = self.range(range, now);
        response.header = header(now);
        Response::Range(response)
    }

    fn check_revision(&self, revision: i64) -> Result<(), Answer> {
        if revision > self.revision {
            return Err(Answer::FutureRevision);
        }
        if revision > 0 && revision < self.compact_revision { Err(Answer::Compacted) } else { Ok(()) }
    }

    fn check_lease(&self, lease: i64) -> Result<(), Answer> {
        if lease == 0 || self.leases.contains(&lease) { Ok(()) } else { Err(Answer::LeaseNotFound) }
    }

    fn range(&self, range: &RangeRequest, now: i64) -> RangeResponse {
        let at = if range.revision > 0 { range.revision } else { now };
        let mut kvs = self.alive(&range.key, &range.range_end, at);
        let count = i64::try_from(kvs.len()).unwrap_or(i64::MAX);
        if range.count_only {
            return RangeResponse { count, ..RangeResponse::default() };
        }
        let limit = usize::try_from(range.limit).ok().filter(|limit| *limit > 0).unwrap_or(usize::MAX);
        let more = kvs.len() > limit;
        kvs.truncate(limit);
        if range.keys_only {
            // From the index, which knows no lease (3.7 and Quorate; 3.5 tells it).
            kvs.iter_mut().for_each(|kv| (kv.value, kv.lease) = (Bytes::new(), 0));
        }
        RangeResponse { header: None, kvs, more, count }
    }

    /// Pairs of the interval alive at `at`, in key order.
    fn alive(&self, key: &Bytes, end: &Bytes, at: i64) -> Vec<KeyValue> {
        if end.is_empty() {
            return self.get(key, at).cloned().into_iter().collect();
        }
        let inside = |candidate: &&Bytes| end.as_ref() == [0] || *candidate < end;
        let keys = self.keys.range(key.clone()..).map(|(key, _)| key).take_while(inside);
        keys.filter_map(|key| self.get(key, at)).cloned().collect()
    }

    /// Every change of every key: revision and key, in the order of their making.
    pub fn changes(&self) -> &[(i64, Bytes)] {
        &self.changes
    }

    /// The pair that the key had at revision `at`; nothing if it was deleted by then, or not yet there.
    pub fn get(&self, key: &Bytes, at: i64) -> Option<&KeyValue> {
        let versions = self.keys.get(key)?;
        let known = versions.partition_point(|version| version.revision <= at);
        versions[..known].last()?.pair.as_ref()
    }

    fn put(&mut self, put: &PutRequest, main: i64) -> PutResponse {
        let old = self.get(&put.key, main).cloned();
        let pair = KeyValue {
            key: put.key.clone(),
            create_revision: old.as_ref().map_or(main, |old| old.create_revision),
            mod_revision: main,
            version: old.as_ref().map_or(1, |old| old.version + 1),
            value: put.value.clone(),
            lease: put.lease,
        };
        self.set(&put.key, main, Some(pair));
        PutResponse { header: None, prev_kv: old.filter(|_| put.prev_kv) }
    }

    fn delete(&mut self, delete: &DeleteRangeRequest, main: i64) -> DeleteRangeResponse {
        let old = self.alive(&delete.key, &delete.range_end, main);
        for pair in &old {
            self.set(&pair.key, main, None);
        }
        let deleted = i64::try_from(old.len()).unwrap_or(i64::MAX);
        DeleteRangeResponse { header: None, deleted, prev_kvs: if delete.prev_kv { old } else { Vec::new() } }
    }

    /// Ends a lease: its keys go with it, in one revision.
    fn revoke(&mut self, id: i64) -> Result<LeaseRevokeResponse, Answer> {
        if !self.leases.remove(&id) {
            return Err(Answer::LeaseNotFound);
        }
        let main = self.revision + 1;
        let all = self.alive(&Bytes::from_static(b"\0"), &Bytes::from_static(b"\0"), self.revision);
        let held: Vec<KeyValue> = all.into_iter().filter(|pair| pair.lease == id).collect();
        held.iter().for_each(|pair| self.set(&pair.key, main, None));
        self.revision += i64::from(!held.is_empty());
        Ok(LeaseRevokeResponse { header: header(self.revision) })
    }

    fn set(&mut self, key: &Bytes, main: i64, pair: Option<KeyValue>) {
        self.keys.entry(key.clone()).or_default().push(Version { revision: main, pair });
        self.changes.push((main, key.clone()));
    }

    fn txn(&mut self, txn: &TxnRequest) -> Result<TxnResponse, Answer> {
        let succeeded = txn.compare.iter().all(|compare| self.holds(compare));
        let ops = if succeeded { &txn.success } else { &txn.failure };
        for op in ops {
            match &op.request {
                Some(request_op::Request::RequestRange(range)) => self.check_revision(range.revision)?,
                Some(request_op::Request::RequestPut(put)) => self.check_lease(put.lease)?,
                Some(request_op::Request::RequestDeleteRange(_) | request_op::Request::RequestTxn(_)) | None => {}
            }
        }
        let main = self.revision + 1;
        let mut changed = false;
        let responses = ops.iter().map(|op| self.op(op, main, &mut changed)).collect();
        if changed {
            self.revision = main;
        }
        Ok(TxnResponse { header: header(self.revision), succeeded, responses })
    }

    fn op(&mut self, op: &RequestOp, main: i64, changed: &mut bool) -> ResponseOp {
        let response = match &op.request {
            Some(request_op::Request::RequestRange(range)) => {
                Some(response_op::Response::ResponseRange(self.range(range, main)))
            }
            Some(request_op::Request::RequestPut(put)) => {
                *changed = true;
                Some(response_op::Response::ResponsePut(self.put(put, main)))
            }
            Some(request_op::Request::RequestDeleteRange(delete)) => {
                let response = self.delete(delete, main);
                *changed |= response.deleted > 0;
                Some(response_op::Response::ResponseDeleteRange(response))
            }
            Some(request_op::Request::RequestTxn(_)) | None => None,
        };
        ResponseOp { response }
    }

    /// A compare of one key. A value that is not there is not even unequal.
    fn holds(&self, compare: &Compare) -> bool {
        let pair = self.get(&compare.key, self.revision);
        let number = |of: fn(&KeyValue) -> i64| pair.map_or(0, of);
        let ordering = match &compare.target_union {
            Some(TargetUnion::Version(wanted)) => number(|pair| pair.version).cmp(wanted),
            Some(TargetUnion::CreateRevision(wanted)) => number(|pair| pair.create_revision).cmp(wanted),
            Some(TargetUnion::ModRevision(wanted)) => number(|pair| pair.mod_revision).cmp(wanted),
            Some(TargetUnion::Lease(wanted)) => number(|pair| pair.lease).cmp(wanted),
            Some(TargetUnion::Value(wanted)) => match pair {
                Some(pair) => pair.value.cmp(wanted),
                None => return false,
            },
            None => Ordering::Equal,
        };
        match CompareResult::try_from(compare.result) {
            Ok(CompareResult::Equal) => ordering.is_eq(),
            Ok(CompareResult::NotEqual) => ordering.is_ne(),
            Ok(CompareResult::Greater) => ordering.is_gt(),
            Ok(CompareResult::Less) => ordering.is_lt(),
            Err(_) => true,
        }
    }
}

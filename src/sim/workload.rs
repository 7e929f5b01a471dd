//! What clients ask: puts of values that exist once, deletes, leases, transactions, reads of all kinds, compactions.

use bytes::Bytes;
use prost::Message;

use crate::disk::sim::Dice;
use crate::proto::etcdserverpb::CompactionRequest;
use crate::proto::etcdserverpb::Compare;
use crate::proto::etcdserverpb::DeleteRangeRequest;
use crate::proto::etcdserverpb::LeaseGrantRequest;
use crate::proto::etcdserverpb::LeaseRevokeRequest;
use crate::proto::etcdserverpb::PutRequest;
use crate::proto::etcdserverpb::RangeRequest;
use crate::proto::etcdserverpb::RequestOp;
use crate::proto::etcdserverpb::TxnRequest;
use crate::proto::etcdserverpb::compare::CompareTarget;
use crate::proto::etcdserverpb::compare::TargetUnion;
use crate::proto::etcdserverpb::request_op;
use crate::proto::raftinternalpb::InternalRaftRequest;
use crate::proto::raftinternalpb::RequestHeader;
use crate::proto::raftpb::Entry;
use crate::server::apply::outcome::Reply;
use crate::sim::faults::Plan;
use crate::torture::checker::model::Request;
use crate::torture::checker::model::Response;

/// Nobody lets them run out in a run.
const LEASE_SECONDS: i64 = 1000;

/// One client's taste and memory.
#[derive(Debug)]
pub struct Workload {
    client: usize,
    keys: u64,
    compaction_percent: u64,
    reads_percent: u64,
    values: u64,
    leases: u64,
    /// The newest revision it has seen.
    pub revision: i64,
    last_value: Bytes,
}

impl Workload {
    pub fn new(client: usize, plan: &Plan) -> Workload {
        let Plan { keys, compaction_percent, reads_percent, .. } = *plan;
        Workload {
            client,
            keys,
            compaction_percent,
            reads_percent,
            values: 0,
            leases: 0,
            revision: 1,
            last_value: Bytes::new(),
        }
    }

    /// The next request. `calm`: a put, which must succeed.
    pub fn next(&mut self, dice: &mut Dice, calm: bool) -> Request {
        if calm {
            // A revoke shows whether all members know which keys a lease holds.
            return if dice.chance(30) { self.revoke(dice) } else { Request::Put(self.put(dice)) };
        }
        if dice.chance(self.compaction_percent) {
            return Request::Compact(CompactionRequest { revision: self.old_revision(dice), physical: false });
        }
        if dice.chance(self.reads_percent) {
            return Request::Range(self.range(dice));
        }
        match dice.below(16) {
            0..5 => Request::Put(self.put(dice)),
            5..8 => Request::Put(PutRequest { lease: self.lease(dice), ..self.put(dice) }),
            8 => self.grant(),
            9 => self.revoke(dice),
            10..12 => Request::DeleteRange(self.delete(dice)),
            _ => Request::Txn(self.txn(dice)),
        }
    }

    fn key(&self, dice: &mut Dice) -> Bytes {
        Bytes::from(format!("k{:02}", dice.below(self.keys)))
    }

    fn put(&mut self, dice: &mut Dice) -> PutRequest {
        self.values += 1;
        let padding = "x".repeat(usize::try_from(dice.pick(&[0, 0, 0, 40, 700])).expect("a small number"));
        let value = Bytes::from(format!("{}-{}{padding}", self.client, self.values));
        self.last_value = value.clone();
        PutRequest { key: self.key(dice), value, prev_kv: dice.chance(50), ..PutRequest::default() }
    }

    /// A lease of its own or of another client, granted, revoked, or never heard of.
    fn lease(&self, dice: &mut Dice) -> i64 {
        let client = if dice.chance(60) { self.client } else { 0 };
        lease_id(client, self.leases.saturating_sub(dice.below(3)))
    }

    fn grant(&mut self) -> Request {
        self.leases += 1;
        Request::LeaseGrant(LeaseGrantRequest { id: lease_id(self.client, self.leases), ttl: LEASE_SECONDS })
    }

    fn revoke(&self, dice: &mut Dice) -> Request {
        Request::LeaseRevoke(LeaseRevokeRequest { id: self.lease(dice) })
    }

    fn interval(&self, dice: &mut Dice) -> (Bytes, Bytes) {
        match dice.below(4) {
            0 => (Bytes::from_static(b"k"), Bytes::from_static(b"l")),
            1 => (self.key(dice), Bytes::from_static(b"\0")),
            2 => (self.key(dice), self.key(dice)),
            _ => (self.key(dice), Bytes::new()),
        }
    }

    fn delete(&mut self, dice: &mut Dice) -> DeleteRangeRequest {
        let (key, range_end) = if dice.chance(25) { self.interval(dice) } else { (self.key(dice), Bytes::new()) };
        DeleteRangeRequest { key, range_end, prev_kv: dice.chance(50) }
    }

    fn range(&mut self, dice: &mut Dice) -> RangeRequest {
        let (key, range_end) = self.interval(dice);
        RangeRequest {
            key,
            range_end,
            limit: dice.pick(&[0, 0, 1, 3]),
            revision: if dice.chance(20) { self.old_revision(dice) } else { 0 },
            serializable: dice.chance(30),
            count_only: dice.chance(10),
            keys_only: dice.chance(10),
            ..RangeRequest::default()
        }
    }

    /// Near the newest, so that compactions and reads of old revisions meet (B8).
    fn old_revision(&self, dice: &mut Dice) -> i64 {
        let back = i64::try_from(dice.below(20)).expect("a small number");
        (self.revision - back).max(1)
    }

    /// A put first, so that each transaction exists once; no key is written twice.
    fn txn(&mut self, dice: &mut Dice) -> TxnRequest {
        let compare = (0..dice.below(3)).map(|_| self.compare(dice)).collect();
        TxnRequest { compare, success: self.branch(dice), failure: self.branch(dice) }
    }

    fn compare(&mut self, dice: &mut Dice) -> Compare {
        let number = i64::try_from(dice.below(4)).expect("a small number");
        let (target, union) = match dice.below(4) {
            0 => (CompareTarget::Version, TargetUnion::Version(number)),
            1 => (CompareTarget::Create, TargetUnion::CreateRevision(self.old_revision(dice))),
            2 => (CompareTarget::Mod, TargetUnion::ModRevision(self.old_revision(dice))),
            _ => (CompareTarget::Value, TargetUnion::Value(self.last_value.clone())),
        };
        let result = i32::try_from(dice.below(4)).expect("a small number");
        Compare { result, target: target as i32, key: self.key(dice), target_union: Some(union), ..Compare::default() }
    }

    fn branch(&mut self, dice: &mut Dice) -> Vec<RequestOp> {
        let put = self.put(dice);
        let mut written = vec![put.key.clone()];
        let mut ops = vec![request_op::Request::RequestPut(put)];
        for _ in 0..dice.below(3) {
            let key = self.key(dice);
            let fresh = !written.contains(&key);
            match dice.below(3) {
                0 if fresh => {
                    ops.push(request_op::Request::RequestPut(PutRequest { key: key.clone(), ..self.put(dice) }))
                }
                1 if fresh => ops.push(request_op::Request::RequestDeleteRange(DeleteRangeRequest {
                    key: key.clone(),
                    range_end: Bytes::new(),
                    prev_kv: true,
                })),
                _ => {
                    ops.push(request_op::Request::RequestRange(self.range(dice)));
                    continue;
                }
            }
            written.push(key);
        }
        ops.into_iter().map(|request| RequestOp { request: Some(request) }).collect()
    }
}

fn lease_id(client: usize, number: u64) -> i64 {
    i64::try_from(client as u64 * 1000 + number + 1).expect("small numbers")
}

/// The entry's data for a write.
pub fn encode(id: u64, request: &Request) -> Bytes {
    let mut internal = InternalRaftRequest {
        header: Some(RequestHeader { id, ..RequestHeader::default() }),
        ..InternalRaftRequest::default()
    };
    match request.clone() {
        Request::Put(put) => internal.put = Some(put),
        Request::DeleteRange(delete) => internal.delete_range = Some(delete),
        Request::Txn(txn) => internal.txn = Some(txn),
        Request::Compact(compaction) => internal.compaction = Some(compaction),
        Request::LeaseGrant(grant) => internal.lease_grant = Some(grant),
        Request::LeaseRevoke(revoke) => internal.lease_revoke = Some(revoke),
        Request::Range(range) => internal.range = Some(range),
    }
    internal.encode_to_vec().into()
}

/// The request that an entry holds, if it is a client's.
pub fn decode(entry: &Entry) -> Option<Request> {
    let internal = InternalRaftRequest::decode(entry.data.clone()).ok().filter(|_| entry.r#type == 0)?;
    let write = internal.put.map(Request::Put).or(internal.delete_range.map(Request::DeleteRange));
    let lease = internal.lease_grant.map(Request::LeaseGrant).or(internal.lease_revoke.map(Request::LeaseRevoke));
    write.or(internal.txn.map(Request::Txn)).or(internal.compaction.map(Request::Compact)).or(lease)
}

/// A reply as clients see it.
pub fn response(reply: Reply) -> Option<Response> {
    match reply {
        Reply::Put(response) => Some(Response::Put(response)),
        Reply::DeleteRange(response) => Some(Response::DeleteRange(response)),
        Reply::Txn(response) => Some(Response::Txn(response)),
        Reply::Compaction(response) => Some(Response::Compact(response)),
        Reply::Range(response) => Some(Response::Range(response)),
        Reply::LeaseGrant(response) => Some(Response::LeaseGrant(response)),
        Reply::LeaseRevoke(response) => Some(Response::LeaseRevoke(response)),
        Reply::Alarm(_) | Reply::Members(_) | Reply::Done { .. } => None,
    }
}

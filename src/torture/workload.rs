//! What clients ask: puts of values that exist once, deletes, transactions, reads of all kinds, compactions, leases.
//!
//! Few keys, so that clients meet at them; compactions and old revisions close to the newest, so that these meet too.

use std::collections::VecDeque;

use bytes::Bytes;

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
use crate::proto::etcdserverpb::compare::CompareResult;
use crate::proto::etcdserverpb::compare::CompareTarget;
use crate::proto::etcdserverpb::compare::TargetUnion;
use crate::proto::etcdserverpb::request_op;
use crate::torture::checker::model::Request;

/// Leases that a client keeps alive, or revokes; those before them it leaves to their end.
const LEASES_MAX: usize = 2;
/// Seconds. None is below the least that a cluster grants with the timing of these runs.
const TTLS: [i64; 3] = [2, 3, 4];

/// One client's taste and memory.
#[derive(Debug)]
pub struct Workload {
    name: String,
    /// Leases have the client's number in their upper half.
    number: i64,
    granted: i64,
    leases: VecDeque<i64>,
    keys: u64,
    compacts: bool,
    dice: Dice,
    values: u64,
    last_value: Bytes,
}

impl Workload {
    pub fn new(client: usize, seed: u64, keys: u16, compacts: bool) -> Workload {
        let mut dice = Dice::new(seed ^ (client as u64).wrapping_mul(0x9E37_79B9));
        // Neighbouring seeds must not be each other's continuation.
        dice = Dice::new(dice.roll());
        let keys = u64::from(keys);
        Workload {
            name: format!("c{client}"),
            number: i64::try_from(client).unwrap_or_default() + 1,
            granted: 0,
            leases: VecDeque::new(),
            keys,
            compacts,
            dice,
            values: 0,
            last_value: Bytes::new(),
        }
    }

    /// The next request. `newest` is the newest revision that any client was told.
    pub fn next(&mut self, newest: i64) -> Request {
        match self.dice.below(100) {
            0..34 => Request::Put(self.leased_put()),
            34..42 => Request::DeleteRange(self.delete()),
            42..58 => Request::Txn(self.txn(newest)),
            58..60 if self.compacts && newest > 20 => {
                let revision = self.old_revision(newest);
                Request::Compact(CompactionRequest { revision, physical: self.dice.chance(30) })
            }
            60..62 if self.leases.len() < LEASES_MAX || self.dice.chance(15) => Request::LeaseGrant(self.grant()),
            62 if !self.leases.is_empty() && self.dice.chance(20) => {
                let id = self.leases.pop_back().unwrap_or_default();
                Request::LeaseRevoke(LeaseRevokeRequest { id })
            }
            _ => Request::Range(self.range(newest)),
        }
    }

    /// The lease to be renewed instead of the next request, now and then.
    pub fn renewal(&mut self) -> Option<i64> {
        if self.leases.is_empty() || !self.dice.chance(10) {
            return None;
        }
        let at = self.dice.below(self.leases.len() as u64);
        self.leases.get(usize::try_from(at).unwrap_or_default()).copied()
    }

    /// The lease is over, as far as the client was told.
    pub fn forget(&mut self, lease: i64) {
        self.leases.retain(|id| *id != lease);
    }

    fn grant(&mut self) -> LeaseGrantRequest {
        self.granted += 1;
        let id = (self.number << 32) | self.granted;
        if self.leases.len() == LEASES_MAX {
            self.leases.pop_front();
        }
        self.leases.push_back(id);
        LeaseGrantRequest { id, ttl: self.dice.pick(&TTLS) }
    }

    /// A put that may go with one of the client's leases.
    fn leased_put(&mut self) -> PutRequest {
        let lease = if self.dice.chance(40) { self.leases.back().copied().unwrap_or_default() } else { 0 };
        PutRequest { lease, ..self.put() }
    }

    /// A put, for whoever wants to see progress.
    pub fn put(&mut self) -> PutRequest {
        self.values += 1;
        let padding = match self.dice.below(64) {
            // So that a log fills its segments in minutes.
            0 => 60_000,
            1..6 => 1_500,
            _ => self.dice.below(80),
        };
        let value = Bytes::from(format!("{}-{}:{padding}", self.name, self.values));
        self.last_value = value.clone();
        PutRequest { key: self.key(), value, prev_kv: self.dice.chance(50), ..PutRequest::default() }
    }

    fn key(&mut self) -> Bytes {
        // Half of all requests go to three keys.
        let keys = if self.dice.chance(50) { self.keys.min(3) } else { self.keys };
        Bytes::from(format!("k{:02}", self.dice.below(keys)))
    }

    fn interval(&mut self) -> (Bytes, Bytes) {
        match self.dice.below(8) {
            0 => (Bytes::from_static(b"k"), Bytes::from_static(b"l")),
            1 => (self.key(), Bytes::from_static(b"\0")),
            2 => (self.key(), self.key()),
            _ => (self.key(), Bytes::new()),
        }
    }

    fn delete(&mut self) -> DeleteRangeRequest {
        let (key, range_end) = if self.dice.chance(10) { self.interval() } else { (self.key(), Bytes::new()) };
        DeleteRangeRequest { key, range_end, prev_kv: self.dice.chance(50) }
    }

    fn range(&mut self, newest: i64) -> RangeRequest {
        let (key, range_end) = self.interval();
        RangeRequest {
            key,
            range_end,
            limit: self.dice.pick(&[0, 0, 0, 1, 3]),
            revision: if self.dice.chance(20) { self.old_revision(newest) } else { 0 },
            serializable: self.dice.chance(30),
            count_only: self.dice.chance(5),
            keys_only: self.dice.chance(5),
            ..RangeRequest::default()
        }
    }

    fn old_revision(&mut self, newest: i64) -> i64 {
        let back = if self.dice.chance(70) { self.dice.below(25) } else { self.dice.below(250) };
        (newest - i64::try_from(back).unwrap_or_default()).max(1)
    }

    /// A put first, so that each transaction exists once; no key is written twice in one.
    fn txn(&mut self, newest: i64) -> TxnRequest {
        let compare = (0..self.dice.below(3)).map(|_| self.compare(newest)).collect();
        TxnRequest { compare, success: self.branch(), failure: self.branch() }
    }

    fn compare(&mut self, newest: i64) -> Compare {
        let number = i64::try_from(self.dice.below(4)).unwrap_or_default();
        let (target, union) = match self.dice.below(4) {
            0 => (CompareTarget::Version, TargetUnion::Version(number)),
            1 => (CompareTarget::Create, TargetUnion::CreateRevision(self.old_revision(newest))),
            2 => (CompareTarget::Mod, TargetUnion::ModRevision(self.old_revision(newest))),
            _ => (CompareTarget::Value, TargetUnion::Value(self.last_value.clone())),
        };
        // Which of two values is greater is another matter for their short forms.
        let result = match union {
            TargetUnion::Value(_) => self.dice.pick(&[CompareResult::Equal, CompareResult::NotEqual]),
            _ => self.dice.pick(&[
                CompareResult::Equal,
                CompareResult::Greater,
                CompareResult::Less,
                CompareResult::NotEqual,
            ]),
        };
        let key = self.key();
        Compare { result: result as i32, target: target as i32, key, target_union: Some(union), ..Compare::default() }
    }

    fn branch(&mut self) -> Vec<RequestOp> {
        let put = self.put();
        let mut written = vec![put.key.clone()];
        let mut ops = vec![request_op::Request::RequestPut(put)];
        for _ in 0..self.dice.below(4) {
            let key = self.key();
            let fresh = !written.contains(&key);
            let op = match self.dice.below(3) {
                0 if fresh => request_op::Request::RequestPut(PutRequest { key: key.clone(), ..self.put() }),
                1 if fresh => request_op::Request::RequestDeleteRange(DeleteRangeRequest {
                    key: key.clone(),
                    range_end: Bytes::new(),
                    prev_kv: true,
                }),
                _ => {
                    let (key, range_end) = self.interval();
                    ops.push(request_op::Request::RequestRange(RangeRequest {
                        key,
                        range_end,
                        ..RangeRequest::default()
                    }));
                    continue;
                }
            };
            written.push(key);
            ops.push(op);
        }
        ops.into_iter().map(|request| RequestOp { request: Some(request) }).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_seed_asks_the_same_and_every_kind_of_request_comes() {
        let asked = |client, seed| {
            let mut workload = Workload::new(client, seed, 12, true);
            (0..300).map(|at| workload.next(at)).collect::<Vec<_>>()
        };
        assert_eq!(asked(1, 7), asked(1, 7));
        assert_ne!(asked(1, 7), asked(2, 7));
        assert_ne!(asked(1, 7), asked(1, 8));
        let kinds: std::collections::BTreeSet<&str> = asked(1, 7)
            .iter()
            .map(|request| match request {
                Request::Put(_) => "put",
                Request::DeleteRange(_) => "delete",
                Request::Txn(_) => "txn",
                Request::Compact(_) => "compact",
                Request::Range(range) if range.serializable => "serializable",
                Request::Range(range) if range.revision > 0 => "old",
                Request::Range(_) => "range",
                Request::LeaseGrant(_) => "grant",
                Request::LeaseRevoke(_) => "revoke",
            })
            .collect();
        assert_eq!(kinds.len(), 9, "{kinds:?}");
    }
}

//! Seeded random requests, and what is left out when answers of two releases are compared.

use bytes::Bytes;
use quorate::proto::etcdserverpb::CompactionRequest;
use quorate::proto::etcdserverpb::Compare;
use quorate::proto::etcdserverpb::DeleteRangeRequest;
use quorate::proto::etcdserverpb::PutRequest;
use quorate::proto::etcdserverpb::RangeRequest;
use quorate::proto::etcdserverpb::RangeResponse;
use quorate::proto::etcdserverpb::RequestOp;
use quorate::proto::etcdserverpb::ResponseHeader;
use quorate::proto::etcdserverpb::ResponseOp;
use quorate::proto::etcdserverpb::TxnRequest;
use quorate::proto::etcdserverpb::TxnResponse;
use quorate::proto::etcdserverpb::compare::TargetUnion;
use quorate::proto::etcdserverpb::request_op::Request;
use quorate::proto::etcdserverpb::response_op::Response;
use quorate::proto::mvccpb::KeyValue;

const KEYS: [&str; 11] = ["a", "aa", "ab", "b", "b\u{0}", "ba", "c", "d", "k/1", "k/2", "k/3"];
const ENDS: [&[u8]; 8] = [b"", b"\0", b"b", b"bb", b"k0", b"k/3", b"zz", b"a"];
/// Depth of nested transactions.
const DEPTH_MAX: u32 = 2;

/// SplitMix64: one seed, one sequence, on every machine.
pub struct Random(u64);

impl Random {
    pub fn new(seed: u64) -> Random {
        Random(seed)
    }

    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below `bound`.
    pub fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }

    /// True once in `n` times.
    pub fn one_in(&mut self, n: u64) -> bool {
        self.below(n) == 0
    }

    pub fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[self.below(from.len() as u64) as usize]
    }
}

/// One step of a run.
#[derive(Clone, Debug)]
pub enum Step {
    Range(RangeRequest),
    Put(PutRequest),
    Delete(DeleteRangeRequest),
    Txn(TxnRequest),
    Compact(CompactionRequest),
    HashKv(i64),
    /// Stop and start both members.
    Restart,
}

/// Makes steps; knows the newest revision so that it asks for interesting ones.
pub struct Generator {
    pub random: Random,
    pub revision: i64,
    pub compacted: Vec<i64>,
    restarts: bool,
}

impl Generator {
    pub fn new(seed: u64, restarts: bool) -> Generator {
        Generator { random: Random::new(seed), revision: 1, compacted: Vec::new(), restarts }
    }

    pub fn step(&mut self) -> Step {
        match self.random.below(1000) {
            0..330 => Step::Range(self.range()),
            330..620 => Step::Put(self.put()),
            620..720 => Step::Delete(self.delete()),
            720..960 => Step::Txn(self.txn(0)),
            960..975 => Step::Compact(self.compaction()),
            975..998 => Step::HashKv(self.hash_revision()),
            _ if self.restarts => Step::Restart,
            _ => Step::Put(self.put()),
        }
    }

    fn key(&mut self) -> Bytes {
        if self.random.one_in(60) { Bytes::new() } else { Bytes::from(self.random.pick(&KEYS)) }
    }

    /// Mostly exact keys, sometimes every kind of end.
    fn range_end(&mut self) -> Bytes {
        if self.random.one_in(2) { Bytes::new() } else { Bytes::from_static(self.random.pick(&ENDS)) }
    }

    fn some_revision(&mut self) -> i64 {
        match self.random.below(8) {
            0 => self.revision + 1,
            1 => -1,
            2 => self.revision,
            _ => self.revision - self.random.below(12) as i64,
        }
    }

    fn bound(&mut self) -> i64 {
        if self.random.one_in(4) { self.some_revision() } else { 0 }
    }

    fn range(&mut self) -> RangeRequest {
        let plain = self.random.one_in(3);
        let (key, range_end) = (self.key(), self.range_end());
        if plain {
            return RangeRequest { key, range_end, ..RangeRequest::default() };
        }
        RangeRequest {
            key,
            range_end,
            limit: self.random.pick(&[0, 0, 0, 1, 2, 3, 5, -1]),
            revision: if self.random.one_in(3) { self.some_revision() } else { 0 },
            sort_order: self.random.pick(&[0, 0, 1, 2]),
            sort_target: self.random.pick(&[0, 0, 1, 2, 3, 4]),
            serializable: self.random.one_in(3),
            keys_only: self.random.one_in(4),
            count_only: self.random.one_in(6),
            min_mod_revision: self.bound(),
            max_mod_revision: self.bound(),
            min_create_revision: self.bound(),
            max_create_revision: self.bound(),
        }
    }

    fn put(&mut self) -> PutRequest {
        let ignore_value = self.random.one_in(10);
        let value = match self.random.below(12) {
            _ if ignore_value && !self.random.one_in(5) => Bytes::new(),
            0 => Bytes::new(),
            1 => Bytes::from(vec![b'x'; self.random.below(3000) as usize]),
            _ => Bytes::from(format!("v{}", self.random.below(9))),
        };
        PutRequest {
            key: self.key(),
            value,
            lease: if self.random.one_in(30) { 7 } else { 0 },
            prev_kv: self.random.one_in(2),
            ignore_value,
            ignore_lease: self.random.one_in(12),
        }
    }

    fn delete(&mut self) -> DeleteRangeRequest {
        // Wide deletes would leave little to look at.
        let range_end = if self.random.one_in(3) { self.range_end() } else { Bytes::new() };
        DeleteRangeRequest { key: self.key(), range_end, prev_kv: self.random.one_in(2) }
    }

    fn compare(&mut self) -> Compare {
        let number = if self.random.one_in(2) { self.some_revision() } else { self.random.below(4) as i64 };
        let target_union = match self.random.below(7) {
            0 => Some(TargetUnion::Version(number)),
            1 => Some(TargetUnion::CreateRevision(number)),
            2 => Some(TargetUnion::ModRevision(number)),
            3 | 4 => Some(TargetUnion::Value(Bytes::from(format!("v{}", self.random.below(9))))),
            5 => Some(TargetUnion::Lease(number)),
            _ => None,
        };
        let matching = match &target_union {
            Some(TargetUnion::Version(_)) | None => 0,
            Some(TargetUnion::CreateRevision(_)) => 1,
            Some(TargetUnion::ModRevision(_)) => 2,
            Some(TargetUnion::Value(_)) => 3,
            Some(TargetUnion::Lease(_)) => 4,
        };
        let target = if self.random.one_in(15) { self.random.below(5) as i32 } else { matching };
        let range_end = if self.random.one_in(4) { self.range_end() } else { Bytes::new() };
        Compare { result: self.random.below(4) as i32, target, key: self.key(), target_union, range_end }
    }

    fn op(&mut self, depth: u32) -> RequestOp {
        let request = match self.random.below(20) {
            0..7 => Some(Request::RequestRange(self.range())),
            7..13 => Some(Request::RequestPut(self.put())),
            13..16 => Some(Request::RequestDeleteRange(self.delete())),
            16..19 if depth < DEPTH_MAX => Some(Request::RequestTxn(self.txn(depth + 1))),
            19 if self.random.one_in(6) => None,
            _ => Some(Request::RequestPut(self.put())),
        };
        RequestOp { request }
    }

    fn txn(&mut self, depth: u32) -> TxnRequest {
        let reads_only = self.random.one_in(4);
        let count = |random: &mut Random| random.pick(&[0, 1, 1, 2, 3]);
        let compares = count(&mut self.random).min(2);
        let (then, otherwise) = (count(&mut self.random), count(&mut self.random));
        let mut branch = |size: i32| {
            let op = |generator: &mut Generator| match reads_only {
                true => RequestOp { request: Some(Request::RequestRange(generator.range())) },
                false => generator.op(depth),
            };
            (0..size).map(|_| op(self)).collect::<Vec<_>>()
        };
        let (success, failure) = (branch(then), branch(otherwise));
        TxnRequest { compare: (0..compares).map(|_| self.compare()).collect(), success, failure }
    }

    fn compaction(&mut self) -> CompactionRequest {
        // Zero would fill the newer releases' cache of hashes, which 3.5.1 does not have.
        let revision = self.some_revision().max(1);
        CompactionRequest { revision, physical: true }
    }

    /// Never a revision that was compacted to: newer releases answer those from a cache that 3.5.1 does not have.
    fn hash_revision(&mut self) -> i64 {
        let revision = if self.random.one_in(2) { 0 } else { self.some_revision().max(0) };
        if self.compacted.contains(&revision) { 0 } else { revision }
    }
}

/// Headers differ in everything but the revision.
pub fn only_revision(header: Option<ResponseHeader>) -> Option<ResponseHeader> {
    header.map(|header| ResponseHeader { revision: header.revision, ..ResponseHeader::default() })
}

/// 3.7 leaves the lease out of keys-only answers unless sorted by value; 3.5 shows it (server.md 3.3).
pub fn normal_range(request: &RangeRequest, mut response: RangeResponse) -> RangeResponse {
    response.header = only_revision(response.header);
    if request.keys_only && request.sort_target != 4 {
        for kv in &mut response.kvs {
            kv.lease = 0;
        }
    }
    settle_ties(request, &mut response);
    response
}

/// Neither release sorts stably, and 3.5.1 was built with another Go, whose sort leaves ties in another order: equal ones
/// are put into key order here, and those that tie with the last of a cut answer are left out. The order itself must hold.
fn settle_ties(request: &RangeRequest, response: &mut RangeResponse) {
    if request.sort_target == 0 {
        return;
    }
    let rank = |kv: &KeyValue| match request.sort_target {
        1 => (kv.version, Bytes::new()),
        2 => (kv.create_revision, Bytes::new()),
        3 => (kv.mod_revision, Bytes::new()),
        _ => (0, kv.value.clone()),
    };
    let ranks: Vec<_> = response.kvs.iter().map(rank).collect();
    // Keys-only answers have lost the values that they were sorted by.
    if request.sort_target != 4 || !request.keys_only {
        let descending = request.sort_order == 2;
        let sorted = ranks.windows(2).all(|pair| if descending { pair[0] >= pair[1] } else { pair[0] <= pair[1] });
        assert!(sorted, "{request:?} is answered out of order: {response:?}");
    }
    if let Some(last) = ranks.last().filter(|_| response.more) {
        response.kvs.retain(|kv| rank(kv) != *last);
    }
    response.kvs.sort_by(|left, right| rank(left).cmp(&rank(right)).then_with(|| left.key.cmp(&right.key)));
}

/// The same inside a transaction.
pub fn normal_txn(request: &TxnRequest, mut response: TxnResponse) -> TxnResponse {
    response.header = only_revision(response.header);
    let branch = if response.succeeded { &request.success } else { &request.failure };
    let responses = std::mem::take(&mut response.responses);
    response.responses = responses.into_iter().enumerate().map(|(at, op)| normal_op(branch.get(at), op)).collect();
    response
}

fn normal_op(request: Option<&RequestOp>, op: ResponseOp) -> ResponseOp {
    let request = request.and_then(|op| op.request.as_ref());
    let response = match (request, op.response) {
        (Some(Request::RequestRange(request)), Some(Response::ResponseRange(response))) => {
            Some(Response::ResponseRange(normal_range(request, response)))
        }
        (Some(Request::RequestTxn(request)), Some(Response::ResponseTxn(response))) => {
            Some(Response::ResponseTxn(normal_txn(request, response)))
        }
        (_, Some(Response::ResponsePut(mut response))) => {
            response.header = only_revision(response.header);
            Some(Response::ResponsePut(response))
        }
        (_, Some(Response::ResponseDeleteRange(mut response))) => {
            response.header = only_revision(response.header);
            Some(Response::ResponseDeleteRange(response))
        }
        (_, other) => other,
    };
    ResponseOp { response }
}

//! One client of the large mixed test: seeded writes of every kind with leases of its own, and what came of them.

use std::time::Duration;

use quorate::proto::etcdserverpb::CompactionRequest;
use quorate::proto::etcdserverpb::Compare;
use quorate::proto::etcdserverpb::DeleteRangeRequest;
use quorate::proto::etcdserverpb::LeaseGrantRequest;
use quorate::proto::etcdserverpb::LeaseKeepAliveRequest;
use quorate::proto::etcdserverpb::LeaseRevokeRequest;
use quorate::proto::etcdserverpb::PutRequest;
use quorate::proto::etcdserverpb::RequestOp;
use quorate::proto::etcdserverpb::TxnRequest;
use quorate::proto::etcdserverpb::compare;
use quorate::proto::etcdserverpb::kv_client::KvClient;
use quorate::proto::etcdserverpb::lease_client::LeaseClient;
use quorate::proto::etcdserverpb::request_op::Request;
use tonic::Code;
use tonic::Status;
use tonic::transport::Channel;
use tonic::transport::Endpoint;

use crate::differential_gen::Random;

/// For one write: what was proposed just when a leader went away would be waited for much longer by etcd.
const PATIENCE: Duration = Duration::from_secs(2);

/// Before the next write, when the member is away or knows no leader.
const PAUSE: Duration = Duration::from_millis(20);

/// Keys that all writers write to.
const SHARED_KEYS: u64 = 40;

/// Longer than any run.
const LONG_TTL: i64 = 7200;

/// Leases that one writer keeps at most.
const LEASES_MAX: usize = 12;

/// How many writes of each kind were acknowledged, and what must be left of them.
#[derive(Default)]
pub struct Tally {
    /// Put once, without a lease, and never deleted.
    pub keys: Vec<String>,
    /// Granted for long, and not revoked as far as is known.
    pub kept: Vec<i64>,
    /// Granted for seconds.
    pub short: Vec<i64>,
    pub revoked: Vec<i64>,
    puts: u64,
    deletes: u64,
    txns: u64,
    attached: u64,
    renewals: u64,
    compactions: u64,
    /// Refused by name, as what asks for a lease that has ended.
    refused: u64,
    /// Without an answer.
    unknown: u64,
}

impl Tally {
    pub fn add(&mut self, other: Tally) {
        self.keys.extend(other.keys);
        self.kept.extend(other.kept);
        self.short.extend(other.short);
        self.revoked.extend(other.revoked);
        self.puts += other.puts;
        self.deletes += other.deletes;
        self.txns += other.txns;
        self.attached += other.attached;
        self.renewals += other.renewals;
        self.compactions += other.compactions;
        self.refused += other.refused;
        self.unknown += other.unknown;
    }

    pub fn told(&self) -> String {
        format!(
            "{} puts ({} attached), {} deletes, {} transactions, {} leases kept, {} short, {} revoked, {} renewals, \
             {} compactions, {} refused, {} unknown",
            self.puts,
            self.attached,
            self.deletes,
            self.txns,
            self.kept.len(),
            self.short.len(),
            self.revoked.len(),
            self.renewals,
            self.compactions,
            self.refused,
            self.unknown
        )
    }

    /// Every kind was there, and enough were acknowledged; how many depends on how long the leaders were away.
    pub fn check(&self, writes: u64) {
        let acknowledged = self.puts + self.deletes + self.txns;
        assert!(acknowledged > writes / 4, "too little was acknowledged: {}", self.told());
        let leases = [self.kept.len(), self.short.len(), self.revoked.len()];
        let kinds = [self.puts, self.deletes, self.txns, self.attached, self.renewals, self.compactions];
        assert!(leases.iter().all(|count| *count > 3) && kinds.iter().all(|count| *count > 3), "{}", self.told());
    }
}

/// Writes through one member; an error is an unknown outcome, and the next write follows.
pub struct Writer {
    kv: KvClient<Channel>,
    lease: LeaseClient<Channel>,
    random: Random,
    /// Of this writer, part of its keys and leases.
    number: u64,
    writes: u64,
    /// The newest revision that it was told.
    revision: i64,
    leases: Vec<i64>,
    pub tally: Tally,
}

impl Writer {
    pub fn new(endpoint: &str, seed: u64, number: u64) -> Writer {
        let channel = Endpoint::from_shared(format!("http://{endpoint}")).expect("an address");
        // Connects when it is needed, and again when the member is back.
        let channel = channel.connect_timeout(PATIENCE).timeout(PATIENCE).connect_lazy();
        Writer {
            kv: KvClient::new(channel.clone()),
            lease: LeaseClient::new(channel),
            random: Random::new(seed.wrapping_mul(1000) + number),
            number,
            writes: 0,
            revision: 0,
            leases: Vec::new(),
            tally: Tally::default(),
        }
    }

    /// One write, to its end or until it takes too long.
    pub async fn write(&mut self) {
        self.writes += 1;
        let outcome = match self.random.below(100) {
            0..35 => self.put_for_good().await,
            35..60 => self.put_shared().await,
            60..70 => self.delete().await,
            70..87 => self.transact().await,
            87..92 => self.grant().await,
            92..95 => self.revoke().await,
            95..99 => self.renew().await,
            _ => self.compact().await,
        };
        let Err(status) = outcome else { return };
        match status.code() {
            // A lease that has ended or a revision that another one has compacted.
            Code::NotFound | Code::OutOfRange => self.tally.refused += 1,
            Code::Unavailable | Code::DeadlineExceeded | Code::Cancelled => {
                self.tally.unknown += 1;
                tokio::time::sleep(PAUSE).await;
            }
            // Of a leader that hands over.
            Code::Unknown if status.message() == "raft proposal dropped" => {
                self.tally.refused += 1;
                tokio::time::sleep(PAUSE).await;
            }
            // What was on its way when the connection ended: no member has said it.
            _ if std::error::Error::source(&status).is_some() => {
                self.tally.unknown += 1;
                tokio::time::sleep(PAUSE).await;
            }
            _ => panic!("writer {}, write {}: {status:?}", self.number, self.writes),
        }
    }

    fn shared(&mut self) -> String {
        format!("shared/{:02}", self.random.below(SHARED_KEYS))
    }

    fn some_lease(&mut self) -> Option<i64> {
        (!self.leases.is_empty()).then(|| self.random.pick(&self.leases))
    }

    fn value(&mut self) -> String {
        let long = if self.random.one_in(20) { 2000 } else { 8 };
        format!("{}/{}{}", self.number, self.writes, "x".repeat(self.random.below(long) as usize))
    }

    async fn put_for_good(&mut self) -> Result<(), Status> {
        let key = format!("ack/{}/{}", self.number, self.writes);
        let put = PutRequest { key: key.clone().into(), value: self.value().into(), ..PutRequest::default() };
        let answer = self.kv.put(put).await?.into_inner();
        self.revision = answer.header.map(|header| header.revision).unwrap_or_default();
        self.tally.puts += 1;
        self.tally.keys.push(key);
        Ok(())
    }

    /// Every other one is attached to a lease, or taken off one.
    async fn put_shared(&mut self) -> Result<(), Status> {
        let lease = if self.random.one_in(2) { self.some_lease() } else { None };
        let put = PutRequest {
            key: self.shared().into(),
            value: self.value().into(),
            lease: lease.unwrap_or_default(),
            prev_kv: self.random.one_in(4),
            ..PutRequest::default()
        };
        self.kv.put(put).await?;
        self.tally.puts += 1;
        self.tally.attached += u64::from(lease.is_some());
        Ok(())
    }

    async fn delete(&mut self) -> Result<(), Status> {
        let key = self.shared();
        let range_end = if self.random.one_in(6) { format!("{key}~") } else { String::new() };
        let delete =
            DeleteRangeRequest { key: key.into(), range_end: range_end.into(), ..DeleteRangeRequest::default() };
        self.kv.delete_range(delete).await?;
        self.tally.deletes += 1;
        Ok(())
    }

    /// If the key is there, two puts, one with a lease; if not, a deletion and a put.
    async fn transact(&mut self) -> Result<(), Status> {
        let key = self.shared();
        let exists = Compare {
            result: compare::CompareResult::Greater as i32,
            target: compare::CompareTarget::Create as i32,
            key: key.clone().into(),
            target_union: Some(compare::TargetUnion::CreateRevision(0)),
            ..Compare::default()
        };
        let (value, lease) = (self.value(), self.some_lease().unwrap_or_default());
        let put = |key: String, lease: i64| {
            let put = PutRequest { key: key.into(), value: value.clone().into(), lease, ..PutRequest::default() };
            RequestOp { request: Some(Request::RequestPut(put)) }
        };
        let more = format!("{key}/more");
        let delete = DeleteRangeRequest { key: more.clone().into(), ..DeleteRangeRequest::default() };
        let delete = RequestOp { request: Some(Request::RequestDeleteRange(delete)) };
        let success = vec![put(key.clone(), 0), put(more, lease)];
        let failure = vec![delete, put(key, 0)];
        self.kv.txn(TxnRequest { compare: vec![exists], success, failure }).await?;
        self.tally.txns += 1;
        Ok(())
    }

    /// One in three lives for seconds; every other one has an id of the writer's choice.
    async fn grant(&mut self) -> Result<(), Status> {
        if self.leases.len() >= LEASES_MAX {
            return self.revoke().await;
        }
        let short = self.random.one_in(3);
        let ttl = if short { 1 + self.random.below(4) as i64 } else { LONG_TTL };
        // Distinct for all writers and writes: what has no answer is not granted again.
        let chosen = (self.number as i64 + 1) * 1_000_000 + self.writes as i64;
        let id = if self.random.one_in(2) { chosen } else { 0 };
        let id = self.lease.lease_grant(LeaseGrantRequest { ttl, id }).await?.into_inner().id;
        self.leases.push(id);
        if short {
            self.tally.short.push(id)
        } else {
            self.tally.kept.push(id)
        }
        Ok(())
    }

    async fn revoke(&mut self) -> Result<(), Status> {
        if self.leases.is_empty() {
            return Ok(());
        }
        let id = self.leases.swap_remove(self.random.below(self.leases.len() as u64) as usize);
        // From here on it may be gone, whatever is answered.
        self.tally.kept.retain(|kept| *kept != id);
        self.lease.lease_revoke(LeaseRevokeRequest { id }).await?;
        self.tally.revoked.push(id);
        Ok(())
    }

    async fn renew(&mut self) -> Result<(), Status> {
        let Some(id) = self.some_lease() else { return Ok(()) };
        let asked = tokio_stream::iter([LeaseKeepAliveRequest { id }]);
        let renewed = async { self.lease.lease_keep_alive(asked).await?.into_inner().message().await };
        // The channel's patience ends with the answer's first line, and a real member may hold back the rest.
        let late = |_| Status::deadline_exceeded("no renewal");
        tokio::time::timeout(PATIENCE, renewed).await.map_err(late)??;
        self.tally.renewals += 1;
        Ok(())
    }

    async fn compact(&mut self) -> Result<(), Status> {
        let revision = self.revision - self.random.below(100) as i64;
        if revision <= 0 {
            return Ok(());
        }
        self.kv.compact(CompactionRequest { revision, physical: self.random.one_in(2) }).await?;
        self.tally.compactions += 1;
        Ok(())
    }
}

//! Work for clusters of ours and real members: writes of every kind through all members at once, and what must be left.

use std::time::Duration;

use quorate::proto::etcdserverpb::Compare;
use quorate::proto::etcdserverpb::DeleteRangeRequest;
use quorate::proto::etcdserverpb::LeaseGrantRequest;
use quorate::proto::etcdserverpb::PutRequest;
use quorate::proto::etcdserverpb::RangeRequest;
use quorate::proto::etcdserverpb::RequestOp;
use quorate::proto::etcdserverpb::TxnRequest;
use quorate::proto::etcdserverpb::compare;
use quorate::proto::etcdserverpb::kv_client::KvClient;
use quorate::proto::etcdserverpb::lease_client::LeaseClient;
use quorate::proto::etcdserverpb::request_op::Request;
use tonic::Code;
use tonic::Status;
use tonic::transport::Channel;

use crate::cluster::Cluster;
use crate::cluster::Member;
use crate::support::eventually;

/// Longer than any test: who ends leases is not the matter here.
const LEASE_SECONDS: i64 = 3600;

/// For one write: what was proposed just when a leader went away would be waited for much longer by etcd.
const WRITE_PATIENCE: Duration = Duration::from_secs(2);

/// Keys that all writers write to, so that transactions and deletes of one meet the puts of another.
const SHARED_KEYS: u64 = 40;

/// Some hundred writes through every running member, each read back through the next one.
pub async fn write_through_each(cluster: &Cluster, prefix: &str) {
    let running: Vec<&Member> = cluster.members.iter().filter(|member| member.is_running()).collect();
    for (position, member) in running.iter().enumerate() {
        let mut client = KvClient::new(member.connect().await.expect("a connection"));
        for number in 0..100 {
            let key = format!("{prefix}/{}/{number}", member.name);
            crate::cluster::put(&mut client, &key, &key)
                .await
                .unwrap_or_else(|status| panic!("{}", cluster.logs(&format!("{key}: {status}"))));
        }
        let reader = running[(position + 1) % running.len()];
        let last = reader.get(&format!("{prefix}/{}/99", member.name)).await.expect("a linearizable read");
        assert_eq!(last.count, 1, "{prefix} through {} read at {}", member.name, reader.name);
    }
}

/// A lease granted through a real member.
pub async fn grant_lease(member: &Member) -> i64 {
    let grant = LeaseGrantRequest { ttl: LEASE_SECONDS, id: 0 };
    let channel = member.connect().await.expect("a connection");
    LeaseClient::new(channel).lease_grant(grant).await.expect("a lease").into_inner().id
}

/// Keys whose put was acknowledged, to be found on every member afterwards.
#[derive(Default)]
pub struct Acknowledged {
    keys: Vec<String>,
}

impl Acknowledged {
    /// Puts, deletes and transactions, `count` through each member that can be reached and all of these at once; some keys
    /// are attached to the lease. An error is an unknown outcome: the client goes on.
    pub async fn work(&mut self, cluster: &Cluster, round: u64, count: u64, lease: i64) {
        let mut writers = tokio::task::JoinSet::new();
        for (number, member) in cluster.members.iter().enumerate().filter(|(_, member)| member.is_running()) {
            let Ok(channel) = member.connect_for(WRITE_PATIENCE).await else { continue };
            let client = KvClient::new(channel);
            let seed = round * 100 + number as u64;
            writers.spawn(write(client, seed, count, lease));
        }
        while let Some(keys) = writers.join_next().await {
            self.keys.extend(keys.expect("a writer ends by itself"));
        }
    }

    pub fn count(&self) -> usize {
        self.keys.len()
    }

    /// Every acknowledged key is there, read through every running member.
    pub async fn check(&self, cluster: &Cluster) {
        for member in cluster.members.iter().filter(|member| member.is_running()) {
            let all = RangeRequest { key: "ack/".into(), range_end: "ack0".into(), ..RangeRequest::default() };
            let found = eventually("a linearizable read", async || {
                let channel = member.connect().await.map_err(|status| status.to_string())?;
                // More than the client's 4 MiB never comes: the keys are short and without values.
                let read = RangeRequest { keys_only: true, ..all.clone() };
                let answer = KvClient::new(channel).range(read).await.map_err(|status| status.to_string())?;
                Ok(answer.into_inner().kvs)
            })
            .await;
            let found: std::collections::BTreeSet<_> = found.into_iter().map(|pair| pair.key).collect();
            let missing = self.keys.iter().find(|key| !found.contains(key.as_bytes()));
            assert_eq!(missing, None, "{}", cluster.logs(&format!("acknowledged, and missing at {}", member.name)));
        }
    }
}

/// One client's writes: the keys of its acknowledged puts.
async fn write(mut client: KvClient<Channel>, seed: u64, count: u64, lease: i64) -> Vec<String> {
    let mut acknowledged = Vec::new();
    let mut random = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    for number in 0..count {
        // xorshift64: enough to mix kinds and keys, the same in every run.
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        let shared = format!("shared/{:02}", (random >> 8) % SHARED_KEYS);
        let outcome = match random % 10 {
            0 => delete(&mut client, shared, (random >> 20).is_multiple_of(4)).await,
            1 | 2 => compare_and_set(&mut client, shared, number).await,
            3 | 4 => {
                let lease = if random & 0x1000 == 0 { lease } else { 0 };
                let request =
                    PutRequest { key: shared.into(), value: number.to_string().into(), lease, ..PutRequest::default() };
                client.put(request).await.map(|_| ())
            }
            kind => {
                let key = format!("ack/{seed}/{number}");
                let lease = if kind == 5 { lease } else { 0 };
                let request = PutRequest { key: key.clone().into(), lease, ..PutRequest::default() };
                let outcome = client.put(request).await.map(|_| ());
                if outcome.is_ok() {
                    acknowledged.push(key);
                }
                outcome
            }
        };
        check_error(outcome);
    }
    acknowledged
}

/// Without a leader, or when one went away, the outcome is unknown; everything else is a mistake.
fn check_error(outcome: Result<(), Status>) {
    let Err(status) = outcome else { return };
    let unknown = [Code::Unavailable, Code::DeadlineExceeded, Code::Cancelled];
    assert!(unknown.contains(&status.code()), "a write was answered with {status:?}");
}

async fn delete(client: &mut KvClient<Channel>, key: String, many: bool) -> Result<(), Status> {
    let range_end = if many { format!("{key}~") } else { String::new() };
    let request = DeleteRangeRequest { key: key.into(), range_end: range_end.into(), ..DeleteRangeRequest::default() };
    client.delete_range(request).await.map(|_| ())
}

/// Puts two keys if the first was written before, else creates it; the outcome differs by what others did meanwhile.
async fn compare_and_set(client: &mut KvClient<Channel>, key: String, number: u64) -> Result<(), Status> {
    let exists = Compare {
        result: compare::CompareResult::Greater as i32,
        target: compare::CompareTarget::Create as i32,
        key: key.clone().into(),
        target_union: Some(compare::TargetUnion::CreateRevision(0)),
        ..Compare::default()
    };
    let put = |key: String| {
        let put = PutRequest { key: key.into(), value: number.to_string().into(), ..PutRequest::default() };
        RequestOp { request: Some(Request::RequestPut(put)) }
    };
    let delete = DeleteRangeRequest { key: format!("{key}/more").into(), ..DeleteRangeRequest::default() };
    let delete = RequestOp { request: Some(Request::RequestDeleteRange(delete)) };
    let success = vec![put(key.clone()), put(format!("{key}/more"))];
    let request = TxnRequest { compare: vec![exists], success, failure: vec![delete, put(key)] };
    client.txn(request).await.map(|_| ())
}

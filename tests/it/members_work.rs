//! Changes of the membership asked of a member, and a client that writes all the while.

use std::collections::BTreeSet;
use std::process::ExitStatus;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering;
use std::time::Duration;

use quorate::proto::etcdserverpb::Member as ProtoMember;
use quorate::proto::etcdserverpb::MemberAddRequest;
use quorate::proto::etcdserverpb::MemberAddResponse;
use quorate::proto::etcdserverpb::MemberListRequest;
use quorate::proto::etcdserverpb::MemberPromoteRequest;
use quorate::proto::etcdserverpb::MemberRemoveRequest;
use quorate::proto::etcdserverpb::MemberUpdateRequest;
use quorate::proto::etcdserverpb::RangeRequest;
use quorate::proto::etcdserverpb::cluster_client::ClusterClient;
use quorate::proto::etcdserverpb::kv_client::KvClient;
use tokio::task::JoinHandle;
use tonic::Status;

use crate::cluster::Cluster;
use crate::cluster::Member;
use crate::cluster::Program;
use crate::cluster::put;
use crate::support::eventually;

/// For one write of the steady writer.
const WRITE_PATIENCE: Duration = Duration::from_secs(2);

pub async fn add(member: &Member, url: &str, is_learner: bool) -> Result<MemberAddResponse, Status> {
    let request = MemberAddRequest { peer_ur_ls: vec![url.to_owned()], is_learner };
    Ok(ClusterClient::new(member.connect().await?).member_add(request).await?.into_inner())
}

pub async fn remove(member: &Member, id: u64) -> Result<Vec<ProtoMember>, Status> {
    let removed = ClusterClient::new(member.connect().await?).member_remove(MemberRemoveRequest { id }).await?;
    Ok(removed.into_inner().members)
}

pub async fn update(member: &Member, id: u64, url: &str) -> Result<Vec<ProtoMember>, Status> {
    let request = MemberUpdateRequest { id, peer_ur_ls: vec![url.to_owned()] };
    Ok(ClusterClient::new(member.connect().await?).member_update(request).await?.into_inner().members)
}

pub async fn promote(member: &Member, id: u64) -> Result<Vec<ProtoMember>, Status> {
    let promoted = ClusterClient::new(member.connect().await?).member_promote(MemberPromoteRequest { id }).await?;
    Ok(promoted.into_inner().members)
}

pub async fn list(member: &Member) -> Result<Vec<ProtoMember>, Status> {
    let request = MemberListRequest { linearizable: true };
    Ok(ClusterClient::new(member.connect().await?).member_list(request).await?.into_inner().members)
}

pub fn peer_url(member: &Member) -> String {
    format!("http://127.0.0.1:{}", member.peer_port)
}

/// Asks again while a member says that it is not connected well enough, or not ready, yet.
pub async fn accepted<T>(what: &str, ask: impl AsyncFn() -> Result<T, Status>) -> T {
    eventually(what, async || ask().await.map_err(|status| status.to_string())).await
}

/// Adds the member at `joiner` through the one at `through` and starts it; its id.
pub async fn join(cluster: &mut Cluster, through: usize, joiner: usize, is_learner: bool) -> u64 {
    let url = peer_url(&cluster.members[joiner]);
    let added = accepted("an addition", async || add(&cluster.members[through], &url, is_learner).await).await;
    cluster.members[joiner].start();
    let name = cluster.members[joiner].name.clone();
    eventually("the joiner to publish itself", async || {
        let members = list(&cluster.members[through]).await.map_err(|status| cluster.logs(&status.to_string()))?;
        let started = members.iter().any(|member| member.name == name);
        if started { Ok(()) } else { Err(cluster.logs(&format!("{members:?}"))) }
    })
    .await;
    added.member.expect("the new member").id
}

/// One more voter of this kind, serving.
pub async fn grow(cluster: &mut Cluster, program: &Program) -> usize {
    let through = cluster.leader().await;
    let joiner = cluster.prepare_joiner(program, &[]);
    join(cluster, through, joiner, false).await;
    cluster.members[joiner].wait_ready().await;
    joiner
}

/// How a member ended that was removed.
pub async fn exited(cluster: &mut Cluster, position: usize) -> ExitStatus {
    for _ in 0..2000 {
        if let Some(status) = cluster.members[position].try_exit() {
            return status;
        }
        tokio::time::sleep(Duration::from_millis(30)).await;
    }
    panic!("{}", cluster.logs(&format!("{} does not end", cluster.members[position].name)));
}

/// Role and term of every change that a member's raft has told of, in order.
fn roles(member: &Member) -> Vec<(String, u64)> {
    let text = member.log_text();
    let lines = text.lines().filter(|line| line.contains("raft state changed"));
    let fields = lines.filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok());
    fields
        .map(|fields| {
            (fields["role"].as_str().unwrap_or_default().to_owned(), fields["term"].as_u64().unwrap_or_default())
        })
        .collect()
}

/// Whether this member took over in a later term than this one because it was told to: it stood at once and won. Who waits
/// out an election timeout first asks whether it would win, as a pre-candidate.
pub fn took_over(member: &Member, term: u64) -> bool {
    let stood_at_once = |window: &[(String, u64)]| {
        let [before, stood, won] = window else { return false };
        let next = stood.1 > term && won.1 == stood.1;
        next && before.0 != "PreCandidate" && stood.0 == "Candidate" && won.0 == "Leader"
    };
    roles(member).windows(3).any(stood_at_once)
}

/// Whether the leader of this term, which is gone, has told another member to take over. If not, it must have lost an
/// election before its removal, as it may on a machine that hardly lets it run.
pub fn handed_over(cluster: &Cluster, gone: usize, term: u64) -> bool {
    let followed = roles(&cluster.members[gone]).iter().any(|(role, later)| role == "Follower" && *later > term);
    let handed_over = cluster.members.iter().any(|member| took_over(member, term));
    assert!(handed_over || followed, "{}", cluster.logs("everybody waited for an election"));
    handed_over
}

/// Puts one key after the other, through one endpoint after the other, until it is stopped. An error is an unknown
/// outcome.
pub struct SteadyWriter {
    endpoints: Arc<std::sync::Mutex<Vec<String>>>,
    stop: Arc<AtomicBool>,
    acknowledged: Arc<AtomicU64>,
    task: JoinHandle<Vec<String>>,
}

impl SteadyWriter {
    pub fn start(cluster: &Cluster) -> SteadyWriter {
        let endpoints = Arc::new(std::sync::Mutex::new(endpoints_of(cluster)));
        let (stop, acknowledged) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let (to, until, count) = (endpoints.clone(), stop.clone(), acknowledged.clone());
        let task = tokio::spawn(async move {
            let mut keys = Vec::new();
            for number in 0u64.. {
                if until.load(Ordering::Relaxed) {
                    break;
                }
                let endpoint = {
                    let endpoints = to.lock().expect("no panic under it");
                    endpoints[number as usize % endpoints.len()].clone()
                };
                let key = format!("steady/{number:06}");
                let write =
                    async { put(&mut KvClient::new(crate::cluster::channel(&endpoint).await?), &key, "x").await };
                if let Ok(Ok(_)) = tokio::time::timeout(WRITE_PATIENCE, write).await {
                    keys.push(key);
                    count.fetch_add(1, Ordering::Relaxed);
                }
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            keys
        });
        SteadyWriter { endpoints, stop, acknowledged, task }
    }

    /// Writes through the members that run now.
    pub fn follow(&self, cluster: &Cluster) {
        *self.endpoints.lock().expect("no panic under it") = endpoints_of(cluster);
    }

    /// Waits until some more writes were acknowledged.
    pub async fn progress(&self, cluster: &Cluster) {
        let before = self.acknowledged.load(Ordering::Relaxed);
        eventually("writes to be acknowledged", async || {
            let now = self.acknowledged.load(Ordering::Relaxed);
            if now > before + 5 { Ok(()) } else { Err(cluster.logs(&format!("{before} before, {now} now"))) }
        })
        .await;
    }

    /// Stops writing; every acknowledged key is found at every running member.
    pub async fn check(self, cluster: &Cluster) -> usize {
        self.stop.store(true, Ordering::Relaxed);
        let keys = self.task.await.expect("the writer ends by itself");
        for member in cluster.members.iter().filter(|member| member.is_running()) {
            if member.status().await.is_ok_and(|status| status.is_learner) {
                continue;
            }
            let all = RangeRequest {
                key: "steady/".into(),
                range_end: "steady0".into(),
                keys_only: true,
                ..RangeRequest::default()
            };
            let found = accepted("a linearizable read", async || {
                Ok(KvClient::new(member.connect().await?).range(all.clone()).await?.into_inner().kvs)
            })
            .await;
            let found: BTreeSet<_> = found.into_iter().map(|pair| pair.key).collect();
            let missing = keys.iter().find(|key| !found.contains(key.as_bytes()));
            assert_eq!(missing, None, "{}", cluster.logs(&format!("acknowledged, and missing at {}", member.name)));
        }
        keys.len()
    }
}

/// How many keys the steady writer has left at a member.
pub async fn written(member: &Member) -> i64 {
    let count = RangeRequest {
        key: "steady/".into(),
        range_end: "steady0".into(),
        count_only: true,
        ..RangeRequest::default()
    };
    let channel = member.connect().await.expect("a connection");
    KvClient::new(channel).range(count).await.expect("a count").into_inner().count
}

fn endpoints_of(cluster: &Cluster) -> Vec<String> {
    cluster.members.iter().filter(|member| member.is_running()).map(Member::endpoint).collect()
}

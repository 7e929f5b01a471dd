//! The lock and election services over real processes: etcd's answers, the order of waiters, callers that go away, and
//! one holder at a time whoever is killed.

use std::time::Duration;

use quorate::proto::etcdserverpb::LeaseGrantRequest;
use quorate::proto::etcdserverpb::LeaseLeasesRequest;
use quorate::proto::etcdserverpb::LeaseRevokeRequest;
use quorate::proto::etcdserverpb::RangeRequest;
use quorate::proto::etcdserverpb::ResponseHeader;
use quorate::proto::etcdserverpb::kv_client::KvClient;
use quorate::proto::v3electionpb::CampaignRequest;
use quorate::proto::v3electionpb::LeaderKey;
use quorate::proto::v3electionpb::LeaderRequest;
use quorate::proto::v3electionpb::LeaderResponse;
use quorate::proto::v3electionpb::ProclaimRequest;
use quorate::proto::v3electionpb::ResignRequest;
use quorate::proto::v3electionpb::election_client::ElectionClient;
use quorate::proto::v3lockpb::LockRequest;
use quorate::proto::v3lockpb::LockResponse;
use quorate::proto::v3lockpb::UnlockRequest;
use quorate::proto::v3lockpb::lock_client::LockClient;
use tokio::task::JoinHandle;
use tonic::Request;
use tonic::Response;
use tonic::Status;
use tonic::transport::Channel;

use crate::cluster::Cluster;
use crate::cluster::Member;
use crate::cluster::Program;
use crate::lease::grant;
use crate::lease::leases;
use crate::lease::time_to_live;
use crate::oracle::oracle;
use crate::support::PATIENCE;
use crate::support::eventually;

/// A connection whose calls may wait.
pub async fn patient(member: &Member) -> Channel {
    member.connect_for(PATIENCE).await.expect("a connection")
}

fn lock_request(name: &str, lease: i64) -> LockRequest {
    LockRequest { name: name.to_owned().into(), lease }
}

fn unlock_request(key: &[u8]) -> UnlockRequest {
    UnlockRequest { key: key.to_vec().into() }
}

/// Asks for a lock beside the test.
pub fn ask(channel: &Channel, name: &str, lease: i64) -> JoinHandle<Result<LockResponse, Status>> {
    let mut client = LockClient::new(channel.clone());
    let request = lock_request(name, lease);
    tokio::spawn(async move { client.lock(request).await.map(Response::into_inner) })
}

/// All keys with this prefix, in order of creation.
pub async fn queue(member: &Member, prefix: &str) -> Result<Vec<String>, Status> {
    let channel = member.connect().await?;
    let end = quorate::common::key_range::prefix_end(prefix.as_bytes());
    let request = RangeRequest {
        key: prefix.to_owned().into(),
        range_end: end.into(),
        sort_target: quorate::proto::etcdserverpb::range_request::SortTarget::Create.into(),
        sort_order: quorate::proto::etcdserverpb::range_request::SortOrder::Ascend.into(),
        ..RangeRequest::default()
    };
    let kvs = KvClient::new(channel).range(request).await?.into_inner().kvs;
    Ok(kvs.into_iter().map(|kv| String::from_utf8_lossy(&kv.key).into_owned()).collect())
}

pub async fn until_queue_is(member: &Member, prefix: &str, expected: &[String]) {
    eventually("the queue", async || match queue(member, prefix).await {
        Ok(keys) if keys == expected => Ok(()),
        other => Err(format!("{other:?} instead of {expected:?}")),
    })
    .await;
}

/// What a script of calls was told.
struct Script<'a> {
    member: &'a Member,
    channel: Channel,
    lines: Vec<String>,
}

fn revision(header: &Option<ResponseHeader>) -> i64 {
    header.as_ref().map(|header| header.revision).unwrap_or_default()
}

impl Script<'_> {
    fn told<T>(&mut self, call: &str, answer: Result<Response<T>, Status>, show: impl Fn(&T) -> String) -> Option<T> {
        let (line, answer) = match answer {
            Ok(answer) => (show(answer.get_ref()), Some(answer.into_inner())),
            Err(status) => (format!("{:?}: {}", status.code(), status.message()), None),
        };
        self.lines.push(format!("{call} -> {line}"));
        answer
    }

    async fn lock(&mut self, name: &str, lease: i64) -> Option<LockResponse> {
        let answer = LockClient::new(self.channel.clone()).lock(lock_request(name, lease)).await;
        self.told(&format!("lock {name} {lease:x}"), answer, |lock| {
            // The member chose the lease: only the form of the key is known.
            let key = if lease == 0 { &lock.key[..name.len() + 1] } else { &lock.key[..] };
            format!("{} at {}", String::from_utf8_lossy(key), revision(&lock.header))
        })
    }

    async fn unlock(&mut self, key: &[u8]) {
        let answer = LockClient::new(self.channel.clone()).unlock(unlock_request(key)).await;
        self.told("unlock", answer, |unlock| format!("at {}", revision(&unlock.header)));
    }

    async fn campaign(&mut self, name: &str, lease: i64, value: &str) -> Option<LeaderKey> {
        let request = CampaignRequest { name: name.to_owned().into(), lease, value: value.to_owned().into() };
        let answer = ElectionClient::new(self.channel.clone()).campaign(request).await;
        let answer = self.told(&format!("campaign {name} {lease:x} {value}"), answer, |campaign| {
            let leader = campaign.leader.clone().unwrap_or_default();
            let LeaderKey { name, key, rev, lease: led } = leader;
            let shown = match lease {
                // The member chose one: a number above 0 of any length.
                0 => format!("{name:?} {rev} {}", led > 0),
                _ => format!("{name:?} {key:?} {rev} {led:x}"),
            };
            format!("{shown} at {}", revision(&campaign.header))
        });
        answer.and_then(|campaign| campaign.leader)
    }

    async fn proclaim(&mut self, leader: Option<LeaderKey>, value: &str) {
        let request = ProclaimRequest { leader, value: value.to_owned().into() };
        let answer = ElectionClient::new(self.channel.clone()).proclaim(request).await;
        self.told(&format!("proclaim {value}"), answer, |proclaim| format!("at {}", revision(&proclaim.header)));
    }

    async fn resign(&mut self, leader: Option<LeaderKey>) {
        let answer = ElectionClient::new(self.channel.clone()).resign(ResignRequest { leader }).await;
        self.told("resign", answer, |resign| format!("at {}", revision(&resign.header)));
    }

    async fn leader(&mut self, name: &str) {
        let request = LeaderRequest { name: name.to_owned().into() };
        let answer = ElectionClient::new(self.channel.clone()).leader(request).await;
        self.told(&format!("leader {name}"), answer, shown_leader);
    }

    async fn keys(&mut self, prefix: &str) {
        let keys = queue(self.member, prefix).await.expect("an answer");
        self.lines.push(format!("keys {prefix} -> {keys:?}"));
    }
}

fn shown_leader(leader: &LeaderResponse) -> String {
    let kv = leader.kv.clone().unwrap_or_default();
    let revisions = (kv.create_revision, kv.mod_revision, kv.version);
    format!("{:?} = {:?} {revisions:?} {:x} at {}", kv.key, kv.value, kv.lease, revision(&leader.header))
}

/// Calls whose answers must be etcd's, on a fresh lone member.
async fn script(member: &Member) -> Vec<String> {
    for id in [0x10, 0x2f, -5] {
        let granted = leases(member).await.lease_grant(LeaseGrantRequest { ttl: 600, id }).await;
        granted.expect("a lease");
    }
    let channel = patient(member).await;
    let mut script = Script { member, channel: channel.clone(), lines: Vec::new() };

    script.lock("n", 0x10).await;
    script.lock("n", 0x10).await;
    script.lock("n", 0x99).await;
    script.lock("n", -9).await;
    script.lock("negative", -5).await;
    script.lock("", 0x10).await;
    let waiting = ask(&channel, "n", 0x2f);
    until_queue_is(member, "n/", &["n/10".to_owned(), "n/2f".to_owned()]).await;
    script.unlock(b"n/10").await;
    let granted = waiting.await.expect("no panic");
    script.told("the wait", granted.map(Response::new), |lock| format!("{:?} at {}", lock.key, revision(&lock.header)));
    script.unlock(b"n/10").await;
    script.unlock(b"").await;
    script.unlock(b"n/2f").await;
    let own = script.lock("fresh", 0).await.expect("a lock");
    let lease = String::from_utf8_lossy(&own.key["fresh/".len()..]).into_owned();
    let lease = i64::from_str_radix(&lease, 16).expect("hexadecimal");
    let granted = time_to_live(member, lease, false).await.expect("an answer").granted_ttl;
    script.lines.push(format!("granted for {granted}"));

    script.leader("e").await;
    let led = script.campaign("e", 0x10, "a").await;
    script.campaign("e", 0x10, "a").await;
    script.leader("e").await;
    let mut observer = ElectionClient::new(channel.clone());
    let observed = observer.observe(LeaderRequest { name: "e".to_owned().into() }).await.expect("a stream");
    let mut observed = observed.into_inner();
    let mut next = async |script: &mut Script<'_>| {
        let leader = observed.message().await.map(|leader| Response::new(leader.expect("no end")));
        script.told("observed", leader, shown_leader);
    };
    next(&mut script).await;
    script.campaign("e", 0x10, "b").await;
    next(&mut script).await;
    script.proclaim(led.clone(), "c").await;
    next(&mut script).await;
    script.proclaim(None, "d").await;
    script.proclaim(led.clone().map(|led| LeaderKey { rev: led.rev + 1, ..led }), "d").await;
    script.proclaim(Some(LeaderKey::default()), "d").await;
    script.proclaim(led.clone().map(|led| LeaderKey { lease: 0x99, ..led }), "d").await;
    script.campaign("e", 0x99, "d").await;
    let request = CampaignRequest { name: "e".to_owned().into(), lease: 0x2f, value: "second".to_owned().into() };
    let mut client = ElectionClient::new(channel.clone());
    let waiting = tokio::spawn(async move { client.campaign(request).await });
    until_queue_is(member, "e/", &["e/10".to_owned(), "e/2f".to_owned()]).await;
    script.resign(None).await;
    script.resign(led.clone().map(|led| LeaderKey { rev: led.rev - 1, ..led })).await;
    // With a lease: without one etcd grants one, for nothing, which we do not.
    script.resign(Some(LeaderKey { lease: 0x10, ..LeaderKey::default() })).await;
    script.keys("e/").await;
    script.resign(led.clone()).await;
    let second = waiting.await.expect("no panic");
    script.told("the wait", second, |campaign| {
        format!("{:?} at {}", campaign.leader.clone().unwrap_or_default(), revision(&campaign.header))
    });
    next(&mut script).await;
    script.resign(led).await;
    script.keys("e/").await;
    let own = script.campaign("f", 0, "x").await.expect("elected");
    // Without a lease of its own the call gets one.
    script.proclaim(Some(LeaderKey { lease: 0, ..own.clone() }), "y").await;
    let listed = leases(member).await.lease_leases(LeaseLeasesRequest {}).await.expect("an answer");
    script.lines.push(format!("{} leases", listed.into_inner().leases.len()));
    script.lines
}

#[tokio::test(flavor = "multi_thread")]
async fn locks_and_elections_are_answered_as_etcd_does() {
    let Some(oracle) = oracle("locks_and_elections_are_answered_as_etcd_does") else { return };
    let real = Cluster::start(&[Program::Etcd(oracle.etcd.clone())], &[]).await;
    let ours = Cluster::ours(1, &[]).await;
    let (expected, found) = (script(&real.members[0]).await, script(&ours.members[0]).await);
    let pairs = expected.iter().zip(&found).filter(|(expected, found)| expected != found);
    let different: Vec<String> = pairs.map(|(expected, found)| format!("etcd: {expected}\nours: {found}")).collect();
    assert!(different.is_empty() && expected.len() == found.len(), "{}", different.join("\n"));
    println!("{} answers are equal", found.len());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lock_goes_to_those_who_wait_in_the_order_in_which_they_came() {
    let cluster = Cluster::ours(3, &[]).await;
    let mut keys = Vec::new();
    let mut waiting = Vec::new();
    for at in 0..9 {
        let member = &cluster.members[at % 3];
        let lease = grant(member, 600).await;
        waiting.push(ask(&patient(member).await, "deploy", lease));
        keys.push(format!("deploy/{lease:x}"));
        until_queue_is(&cluster.members[0], "deploy/", &keys).await;
    }
    let mut last = 0;
    for (at, (key, waiting)) in keys.iter().zip(waiting).enumerate() {
        let held = waiting.await.expect("no panic").expect("the lock");
        assert_eq!(held.key, key.as_bytes());
        assert_eq!(queue(&cluster.members[at % 3], "deploy/").await.expect("an answer"), keys[at..]);
        let header = held.header.expect("a header");
        assert!(header.revision >= last, "{header:?} before {last}, when the one ahead unlocked");
        let mut client = LockClient::new(patient(&cluster.members[(at + 1) % 3]).await);
        let unlocked = client.unlock(unlock_request(&held.key)).await.expect("unlocked").into_inner();
        // The next one's answer is of that moment or later, not of the one when it came.
        last = revision(&unlocked.header);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn who_stops_waiting_leaves_the_queue() {
    let cluster = Cluster::ours(3, &[]).await;
    let member = &cluster.members[0];
    let (held, behind) = (grant(member, 600).await, grant(member, 600).await);
    ask(&patient(member).await, "l", held).await.expect("no panic").expect("the lock");
    let with = |lease: i64| vec![format!("l/{held:x}"), format!("l/{lease:x}")];

    // The call is given up.
    let lease = grant(member, 600).await;
    let waiting = ask(&patient(member).await, "l", lease);
    until_queue_is(member, "l/", &with(lease)).await;
    waiting.abort();
    until_queue_is(member, "l/", &with(lease)[..1]).await;

    // Its time is over.
    let lease = grant(member, 600).await;
    let mut request = Request::new(lock_request("l", lease));
    request.set_timeout(Duration::from_millis(200));
    let status = LockClient::new(patient(member).await).lock(request).await.expect_err("somebody holds it");
    assert!(matches!(status.code(), tonic::Code::DeadlineExceeded | tonic::Code::Cancelled), "{status}");
    until_queue_is(member, "l/", &with(lease)[..1]).await;

    // A candidate goes; those behind it are not held up.
    let mut client = ElectionClient::new(patient(member).await);
    let leader = CampaignRequest { name: "e".to_owned().into(), lease: held, value: "leader".to_owned().into() };
    let leader = client.campaign(leader).await.expect("elected").into_inner().leader;
    let candidate = CampaignRequest { name: "e".to_owned().into(), lease, value: "x".to_owned().into() };
    let mut other = ElectionClient::new(patient(member).await);
    let standing = tokio::spawn(async move { other.campaign(candidate).await });
    until_queue_is(member, "e/", &[format!("e/{held:x}"), format!("e/{lease:x}")]).await;
    let next = CampaignRequest { name: "e".to_owned().into(), lease: behind, value: "next".to_owned().into() };
    let mut third = ElectionClient::new(patient(&cluster.members[1]).await);
    let next = tokio::spawn(async move { third.campaign(next).await });
    let all = [held, lease, behind].map(|lease| format!("e/{lease:x}"));
    until_queue_is(member, "e/", &all).await;
    standing.abort();
    until_queue_is(member, "e/", &[all[0].clone(), all[2].clone()]).await;
    client.resign(ResignRequest { leader }).await.expect("resigned");
    let elected = next.await.expect("no panic").expect("elected").into_inner().leader.expect("a leader");
    assert_eq!(elected.key, all[2].as_bytes());
}

/// B44, etcd PR 11408 (Jepsen 2020): a lock was granted to a caller whose session had died in the queue.
#[tokio::test(flavor = "multi_thread")]
async fn b44_a_session_that_ended_in_the_queue_gets_no_lock() {
    let cluster = Cluster::ours(3, &[]).await;
    let member = &cluster.members[0];
    let revoke = async |id: i64| leases(member).await.lease_revoke(LeaseRevokeRequest { id }).await.expect("revoked");
    let (held, dead, next) = (grant(member, 600).await, grant(member, 600).await, grant(member, 600).await);
    let keys = [held, dead, next].map(|lease| format!("l/{lease:x}"));
    let mut asked = Vec::new();
    for (at, lease) in [held, dead, next].into_iter().enumerate() {
        asked.push(ask(&patient(&cluster.members[at]).await, "l", lease));
        until_queue_is(member, "l/", &keys[..=at]).await;
    }
    revoke(dead).await;
    until_queue_is(member, "l/", &[keys[0].clone(), keys[2].clone()]).await;
    // The holder's lease ends: the turn of the dead one would have come.
    revoke(held).await;
    let mut answers = Vec::new();
    for waiting in asked {
        answers.push(waiting.await.expect("no panic").map(|lock| lock.key).map_err(|status| status.to_string()));
    }
    assert_eq!(answers[0].as_deref().map_err(String::as_str), Ok(keys[0].as_bytes()));
    assert!(answers[1].as_ref().is_err_and(|text| text.contains("mutex: session is expired")), "{answers:?}");
    assert_eq!(answers[2].as_deref().map_err(String::as_str), Ok(keys[2].as_bytes()));

    // The same for a candidate: etcd makes it the leader.
    let (first, dead) = (grant(member, 600).await, grant(member, 600).await);
    let mut client = ElectionClient::new(patient(member).await);
    let leader = CampaignRequest { name: "e".to_owned().into(), lease: first, value: Default::default() };
    client.campaign(leader).await.expect("elected");
    let candidate = CampaignRequest { name: "e".to_owned().into(), lease: dead, value: Default::default() };
    let standing = tokio::spawn(async move { client.campaign(candidate).await });
    until_queue_is(member, "e/", &[first, dead].map(|lease| format!("e/{lease:x}"))).await;
    revoke(dead).await;
    revoke(first).await;
    let status = standing.await.expect("no panic").expect_err("its key is gone");
    assert_eq!((status.code(), status.message()), (tonic::Code::Unknown, "election: not leader"));
}

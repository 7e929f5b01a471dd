//! Members that come and go: what is refused, what is done, and that no acknowledged write is lost meanwhile.

use std::process::Command;
use std::time::Duration;
use std::time::SystemTime;
use std::time::UNIX_EPOCH;

use quorate::common::ids::MemberId;
use quorate::proto::etcdserverpb::Member as ProtoMember;
use quorate::proto::etcdserverpb::MemberAddResponse;
use quorate::proto::etcdserverpb::MoveLeaderRequest;
use quorate::proto::etcdserverpb::RangeRequest;
use quorate::proto::etcdserverpb::kv_client::KvClient;
use quorate::proto::etcdserverpb::maintenance_client::MaintenanceClient;
use tonic::Code;
use tonic::Status;

use crate::cluster::Cluster;
use crate::cluster::Member;
use crate::cluster::Program;
use crate::cluster::put;
use crate::members_work::SteadyWriter;
use crate::members_work::accepted;
use crate::members_work::add;
use crate::members_work::exited;
use crate::members_work::grow;
use crate::members_work::handed_over;
use crate::members_work::join;
use crate::members_work::list;
use crate::members_work::peer_url;
use crate::members_work::promote;
use crate::members_work::remove;
use crate::members_work::update;
use crate::oracle::oracle;
use crate::support::eventually;
use crate::support::free_port;

async fn move_leader(member: &Member, target_id: u64) -> Result<(), Status> {
    let channel = member.connect().await?;
    MaintenanceClient::new(channel).move_leader(MoveLeaderRequest { target_id }).await.map(drop)
}

/// Answers of one side, with its own ids and addresses replaced.
#[derive(Default)]
struct Answers {
    names: Vec<(String, String)>,
    said: Vec<String>,
    /// Whom to write through between two questions: a 3.5.1 drops a change that comes right behind another one (etcd 15528).
    /// Nobody when there is no quorum.
    between: Option<String>,
}

impl Answers {
    async fn keep<T: std::fmt::Debug>(&mut self, what: &str, answer: Result<T, Status>) {
        if let Some(endpoint) = &self.between {
            let channel = crate::cluster::channel(endpoint).await.expect("a connection");
            put(&mut KvClient::new(channel), "between", "").await.expect("a put");
        }
        let text = match answer {
            Ok(answer) => format!("{answer:?}"),
            Err(status) => format!("{:?}: {}", status.code(), status.message()),
        };
        // Long ones first: the digits of a port may be part of an id.
        self.names.sort_by_key(|(from, _)| std::cmp::Reverse(from.len()));
        let text = self.names.iter().fold(text, |text, (from, to)| text.replace(from, to));
        self.said.push(format!("{what}: {text}"));
    }
}

/// Every refusal that one member can give, and the shape of every success.
async fn answers_of_one(program: Program) -> Vec<String> {
    let cluster = Cluster::start(&[program], &[]).await;
    let member = &cluster.members[0];
    let id = member.id().await;
    let mut answers = Answers { between: Some(member.endpoint()), ..Answers::default() };
    answers.names.push((id.to_string(), "SELF".to_owned()));
    answers.names.push((member.peer_port.to_string(), "PEER".to_owned()));
    answers.names.push((member.client_port.to_string(), "CLIENT".to_owned()));
    for url in ["", "bogus", "http://127.0.0.1", "http://127.0.0.1:1/", "ftp://h:1", "127.0.0.1:1"] {
        answers.keep(&format!("add {url:?}"), add(member, url, false).await.map(drop)).await;
    }
    answers.keep("add the own URL", add(member, &peer_url(member), false).await.map(drop)).await;
    answers.keep("add the own URL as learner", add(member, &peer_url(member), true).await.map(drop)).await;
    answers.keep("remove the last member", remove(member, id).await).await;
    answers.keep("remove nobody", remove(member, 1).await).await;
    answers.keep("remove 0", remove(member, 0).await).await;
    answers.keep("update nobody", update(member, 1, "http://127.0.0.1:1").await).await;
    answers.keep("promote nobody", promote(member, 1).await).await;
    answers.keep("promote a voter", promote(member, id).await).await;
    answers.keep("move to nobody", move_leader(member, 1).await).await;
    answers.keep("move to itself", move_leader(member, id).await).await;
    let learner = add(member, "http://127.0.0.1:1", true).await;
    member.put("between", "").await.expect("a put");
    let second = unix_seconds();
    let learner_id = learner.as_ref().map(|added| added.member.clone().unwrap_or_default().id).expect("a learner");
    answers.names.push((learner_id.to_string(), "LEARNER".to_owned()));
    answers.keep("add a learner", learner.map(of_addition)).await;
    answers.keep("add a second learner", add(member, "http://127.0.0.1:2", true).await.map(drop)).await;
    // An id is made of the URL and the second (server.md 6.1): in the same second it is the id that is taken.
    eventually("the next second", async || match unix_seconds() {
        now if now == second => Err(now.to_string()),
        _ => Ok(()),
    })
    .await;
    answers.keep("add the learner's URL", add(member, "http://127.0.0.1:1", false).await.map(drop)).await;
    answers.keep("promote a learner that never ran", promote(member, learner_id).await).await;
    answers.keep("move to a learner", move_leader(member, learner_id).await).await;
    answers.keep("update to a taken URL", update(member, learner_id, &peer_url(member)).await).await;
    answers.keep("update to its own URL", update(member, learner_id, "http://127.0.0.1:1").await.map(sorted)).await;
    answers.keep("update a learner", update(member, learner_id, "http://127.0.0.1:3").await.map(sorted)).await;
    answers.keep("remove the learner", remove(member, learner_id).await).await;
    answers.keep("remove it again", remove(member, learner_id).await).await;
    answers.keep("update the removed", update(member, learner_id, "http://127.0.0.1:4").await).await;
    answers.keep("promote the removed", promote(member, learner_id).await).await;
    // From here on there is no quorum.
    answers.between = None;
    let voter = add(member, "http://127.0.0.1:5", false).await;
    let voter_id = voter.as_ref().map(|added| added.member.clone().unwrap_or_default().id).expect("a voter");
    answers.names.push((voter_id.to_string(), "VOTER".to_owned()));
    answers.keep("add a voter", voter.map(of_addition)).await;
    answers.keep("add another voter", add(member, "http://127.0.0.1:6", false).await.map(drop)).await;
    answers.keep("remove the one that runs", remove(member, id).await).await;
    answers.said
}

fn unix_seconds() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()
}

/// A change's members, those that run first: their order is that of ids, which differ. Without roles: a 3.5.1 makes a voter
/// of a learner whose address is changed (B47).
fn sorted(mut members: Vec<ProtoMember>) -> Vec<String> {
    members.sort_by_key(|member| member.name.is_empty());
    members.into_iter().map(|member| format!("{:?}", ProtoMember { is_learner: false, ..member })).collect()
}

fn of_addition(added: MemberAddResponse) -> String {
    let revision = added.header.map(|header| header.revision);
    format!("revision {revision:?}, {:?} of {} members", added.member, added.members.len())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_member_gives_the_answers_of_etcd() {
    let Some(real) = oracle("one_member_gives_the_answers_of_etcd") else { return };
    let (ours, theirs) = tokio::join!(answers_of_one(Program::Ours), answers_of_one(Program::Etcd(real.etcd.clone())));
    assert_eq!(ours.len(), theirs.len());
    for (ours, theirs) in ours.iter().zip(&theirs) {
        assert_eq!(ours, theirs);
    }
}

/// What three members refuse, one of them down in the end.
async fn answers_of_three(program: Program) -> Vec<String> {
    let mut cluster = Cluster::start(&vec![program; 3], &[]).await;
    let mut answers = Answers { between: Some(cluster.members[0].endpoint()), ..Answers::default() };
    let leader = cluster.leader().await;
    let [follower, other] = [(leader + 1) % 3, (leader + 2) % 3];
    for (position, name) in [(leader, "LEADER"), (follower, "FOLLOWER"), (other, "OTHER")] {
        let member = &cluster.members[position];
        answers.names.push((member.id().await.to_string(), name.to_owned()));
    }
    let other_id = cluster.members[other].id().await;
    let taken = peer_url(&cluster.members[leader]);
    answers.keep("add at once", add(&cluster.members[follower], "http://127.0.0.1:1", false).await.map(drop)).await;
    answers.keep("move at a follower", move_leader(&cluster.members[follower], other_id).await).await;
    answers.keep("promote a voter at a follower", promote(&cluster.members[follower], other_id).await).await;
    answers.keep("promote nobody at a follower", promote(&cluster.members[follower], 1).await).await;
    for position in [leader, follower] {
        // Connected for long enough: the next check refuses.
        let refused =
            eventually("changes to be taken", async || match add(&cluster.members[position], &taken, false).await {
                Err(status) if status.code() == Code::Unavailable => Err(status.to_string()),
                other => Ok(other.map(drop)),
            })
            .await;
        answers.keep("add a taken URL", refused).await;
    }
    let learner = add(&cluster.members[follower], "http://127.0.0.1:1", true).await.expect("a learner");
    cluster.members[leader].put("between", "").await.expect("a put");
    let learner_id = learner.member.expect("the new one").id;
    answers.keep("promote it at a follower", promote(&cluster.members[follower], learner_id).await).await;
    answers
        .keep("remove it at a follower", remove(&cluster.members[follower], learner_id).await.map(|all| all.len()))
        .await;
    cluster.members[other].kill();
    let leader_id = cluster.members[leader].id().await;
    answers.between = Some(cluster.members[leader].endpoint());
    eventually("the end to be noticed", async || {
        let refused = add(&cluster.members[leader], &taken, true).await.map(drop);
        match refused.map_err(|status| status.code()) {
            Err(Code::Unavailable) => Ok(()),
            other => Err(format!("{other:?}")),
        }
    })
    .await;
    let leads = &cluster.members[leader];
    answers.keep("add with one down", add(leads, "http://127.0.0.1:1", false).await.map(drop)).await;
    answers.keep("remove one of the two that are left", remove(leads, leader_id).await.map(|all| all.len())).await;
    answers.keep("remove the one that is down", remove(leads, other_id).await.map(|all| all.len())).await;
    answers.said
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn three_members_give_the_answers_of_etcd() {
    let Some(real) = oracle("three_members_give_the_answers_of_etcd") else { return };
    let (ours, theirs) =
        tokio::join!(answers_of_three(Program::Ours), answers_of_three(Program::Etcd(real.etcd.clone())));
    assert_eq!(ours, theirs);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cluster_grows_to_five_and_shrinks_to_one_under_writes() {
    let mut cluster = Cluster::ours(1, &[]).await;
    let writer = SteadyWriter::start(&cluster);
    while cluster.members.len() < 5 {
        grow(&mut cluster, &Program::Ours).await;
        writer.follow(&cluster);
        writer.progress(&cluster).await;
    }
    // Two may go, and it works on.
    cluster.members[1].kill();
    cluster.members[3].kill();
    writer.follow(&cluster);
    writer.progress(&cluster).await;
    cluster.members[1].start();
    cluster.members[3].start();
    cluster.wait_ready().await;
    cluster.hashes_agree().await;
    while cluster.members.len() > 1 {
        // The leader goes first, then a follower, and so on.
        let leader = cluster.leader().await;
        let victim = if cluster.members.len() % 2 == 1 { leader } else { (leader + 1) % cluster.members.len() };
        let through = (victim + 1) % cluster.members.len();
        let id = cluster.members[victim].id().await;
        let members = accepted("a removal", async || remove(&cluster.members[through], id).await).await;
        assert_eq!(members.len(), cluster.members.len() - 1);
        assert_eq!(exited(&mut cluster, victim).await.code(), Some(0), "{}", cluster.logs("removed"));
        // Started again, it ends again.
        if cluster.members.len() > 2 {
            cluster.members[victim].start();
            assert_eq!(exited(&mut cluster, victim).await.code(), Some(0), "{}", cluster.logs("started again"));
        }
        cluster.members.remove(victim);
        writer.follow(&cluster);
        writer.progress(&cluster).await;
    }
    let last = cluster.members[0].id().await;
    let refused = remove(&cluster.members[0], last).await.expect_err("somebody has to stay");
    assert_eq!(refused.message(), "etcdserver: re-configuration failed due to not enough started members");
    assert!(writer.check(&cluster).await > 30);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leader_that_removes_itself_hands_over_first() {
    let mut cluster = Cluster::ours(3, &[]).await;
    let leader = cluster.leader().await;
    let id = cluster.members[leader].id().await;
    let other = (leader + 1) % 3;
    let before = cluster.members[other].status().await.expect("a status").raft_term;
    // It may end before its answer leaves, as in etcd; then the others say whether it worked.
    let removed = eventually("the removal", async || match remove(&cluster.members[leader], id).await {
        Err(status) if status.message() == "etcdserver: unhealthy cluster" => Err(status.to_string()),
        other => Ok(other),
    });
    let removed = removed.await.map(|members| members.len());
    assert!(matches!(removed, Ok(2)) || removed.is_err(), "{removed:?}");
    assert_eq!(exited(&mut cluster, leader).await.code(), Some(0), "{}", cluster.logs("removed"));
    let left = list(&cluster.members[other]).await.expect("a list");
    assert_eq!(left.len(), 2, "{}", cluster.logs("after the removal"));
    cluster.leader().await;
    if handed_over(&cluster, leader, before) {
        assert_ne!(cluster.members[leader].log_count("the leader hands over before it is removed"), 0);
    }
    cluster.members[other].put("after", "it").await.expect("a put");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn leadership_moves_as_asked_through_every_member() {
    let cluster = Cluster::ours(3, &[]).await;
    for target in [0, 1, 2, 0] {
        let leader = cluster.leader().await;
        let id = cluster.members[target].id().await;
        move_leader(&cluster.members[leader], id)
            .await
            .unwrap_or_else(|status| panic!("{}", cluster.logs(status.message())));
        assert_eq!(cluster.leader().await, target);
        cluster.members[leader].put("moved", "x").await.expect("a put through the one that led");
    }
}

/// A learner is killed again and again while it catches up and is promoted; a follower passes the promotion on.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_learner_is_promoted_through_a_follower_although_it_is_killed() {
    let mut cluster = Cluster::ours(3, &[]).await;
    let writer = SteadyWriter::start(&cluster);
    let leader = cluster.leader().await;
    let follower = (leader + 1) % 3;
    let learner = cluster.prepare_joiner(&Program::Ours, &[]);
    let id = join(&mut cluster, follower, learner, true).await;
    for _ in 0..3 {
        cluster.members[learner].kill();
        writer.progress(&cluster).await;
        cluster.members[learner].start();
    }
    learner_serves_little(&cluster.members[learner]).await;
    let members = accepted("the promotion", async || promote(&cluster.members[follower], id).await).await;
    assert!(members.iter().any(|member| member.id == id && !member.is_learner), "{members:?}");
    cluster.members[learner].kill();
    writer.progress(&cluster).await;
    cluster.members[learner].start();
    cluster.members[learner].wait_ready().await;
    // Its vote counts: three of four.
    cluster.members[follower].kill();
    writer.follow(&cluster);
    writer.progress(&cluster).await;
    let again = promote(&cluster.members[learner], id).await.expect_err("it has a vote already");
    assert_eq!(again.message(), "etcdserver: can only promote a learner member");
    writer.check(&cluster).await;
    cluster.members[follower].start();
    cluster.wait_ready().await;
    cluster.hashes_agree().await;
}

/// Status and serializable reads; everything else is refused by name.
async fn learner_serves_little(learner: &Member) {
    const REFUSED: &str = "etcdserver: rpc not supported for learner";
    eventually("the learner to serve", async || match learner.status().await {
        Ok(status) if status.is_learner => Ok(()),
        other => Err(format!("{other:?}")),
    })
    .await;
    let refusals = [
        learner.get("x").await.err(),
        learner.put("x", "y").await.err(),
        list(learner).await.err(),
        add(learner, "http://127.0.0.1:1", false).await.err(),
        remove(learner, 1).await.err(),
        promote(learner, 1).await.err(),
        move_leader(learner, 1).await.err(),
    ];
    for refused in refusals {
        let refused = refused.map(|status| (status.code(), status.message().to_owned()));
        assert_eq!(refused, Some((Code::FailedPrecondition, REFUSED.to_owned())));
    }
    let read = RangeRequest { key: "x".into(), serializable: true, ..RangeRequest::default() };
    let channel = learner.connect().await.expect("a connection");
    KvClient::new(channel).range(read).await.expect("a serializable read");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_learner_that_lags_is_not_promoted() {
    let mut cluster = Cluster::ours(1, &[]).await;
    for number in 0..100 {
        cluster.members[0].put(&format!("k{number}"), "x").await.expect("a put");
    }
    let learner = cluster.prepare_joiner(&Program::Ours, &[]);
    let added = add(&cluster.members[0], &peer_url(&cluster.members[learner]), true).await.expect("a learner");
    let id = added.member.expect("the new one").id;
    let refused = promote(&cluster.members[0], id).await.expect_err("it has nothing");
    assert_eq!(
        (refused.code(), refused.message()),
        (Code::FailedPrecondition, "etcdserver: can only promote a learner member which is in sync with leader")
    );
    cluster.members[learner].start();
    accepted("the promotion", async || promote(&cluster.members[0], id).await).await;
    cluster.members[learner].wait_ready().await;
    cluster.hashes_agree().await;
}

/// The same addresses under a new id, with a directory of its own; the old directory stays refused.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_removed_member_comes_back_as_a_new_one_at_the_same_address() {
    let mut cluster = Cluster::ours(3, &[]).await;
    let leader = cluster.leader().await;
    let victim = (leader + 1) % 3;
    let old = cluster.members[victim].id().await;
    accepted("the removal", async || remove(&cluster.members[leader], old).await).await;
    assert_eq!(exited(&mut cluster, victim).await.code(), Some(0), "{}", cluster.logs("removed"));
    let url = peer_url(&cluster.members[victim]);
    let added = accepted("the addition", async || add(&cluster.members[leader], &url, false).await).await;
    let new = added.member.expect("the new one").id;
    assert_ne!(new, old);
    // With its old directory it is still the one that was removed.
    cluster.members[victim].start();
    assert_eq!(exited(&mut cluster, victim).await.code(), Some(0), "{}", cluster.logs("the old directory"));
    let fresh = cluster.dir.path().join("fresh.etcd");
    cluster.members[victim].replace(Program::Ours, fresh);
    cluster.members[victim].set_arg("--initial-cluster-state", "existing");
    cluster.members[victim].start();
    cluster.members[victim].wait_ready().await;
    assert_eq!(cluster.members[victim].id().await, new);
    cluster.hashes_agree().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_joiner_whose_cluster_string_disagrees_does_not_start() {
    let mut cluster = Cluster::ours(1, &[]).await;
    let joiner = cluster.prepare_joiner(&Program::Ours, &[]);
    let right = format!("m1={},m2={}", peer_url(&cluster.members[0]), peer_url(&cluster.members[joiner]));
    let refused = async |cluster: &mut Cluster, initial: &str, text: &str| {
        cluster.members[joiner].set_arg("--initial-cluster", initial);
        cluster.members[joiner].start();
        let status = exited(cluster, joiner).await;
        let log = cluster.members[joiner].log_text().replace("\\\"", "\"");
        assert_eq!(status.code(), Some(1), "{log}");
        assert!(log.contains(text), "{initial} should say {text:?}: {log}");
    };
    let one = peer_url(&cluster.members[0]);
    let two = peer_url(&cluster.members[joiner]);
    // Nobody has told the cluster of it.
    refused(&mut cluster, &right, &format!("error validating peerURLs {{{one} {two}}}: member count is unequal")).await;
    add(&cluster.members[0], &two, true).await.expect("a learner");
    let third = format!("http://127.0.0.1:{}", free_port());
    let three = format!("{right},m3={third}");
    refused(&mut cluster, &three, "member count is unequal").await;
    let wrong = format!("m1={one},m2={third}");
    refused(&mut cluster, &wrong, "PeerURLs: no match found for existing member").await;
    refused(&mut cluster, &format!("m1={one},x={two}"), "couldn't find local name \"m2\"").await;
    refused(&mut cluster, &format!("m1={one},m2={one}"), "has duplicate url").await;
    refused(&mut cluster, &format!("m1={third},m2={two}"), "could not retrieve cluster information").await;
    cluster.members[joiner].set_arg("--initial-cluster", &right);
    cluster.members[joiner].start();
    eventually("it to join", async || match cluster.members[joiner].status().await {
        Ok(status) if status.is_learner => Ok(()),
        other => Err(cluster.logs(&format!("{other:?}"))),
    })
    .await;
}

/// A changed address reaches everybody: the member listens elsewhere from then on.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_moves_to_another_address() {
    let mut cluster = Cluster::ours(3, &[]).await;
    let leader = cluster.leader().await;
    let moving = (leader + 1) % 3;
    let id = cluster.members[moving].id().await;
    let url = format!("http://127.0.0.1:{}", free_port());
    let members = update(&cluster.members[leader], id, &url).await.expect("an update");
    assert!(members.iter().any(|member| member.id == id && member.peer_ur_ls == [url.clone()]));
    cluster.members[moving].terminate();
    cluster.members[moving].set_arg("--listen-peer-urls", &url);
    cluster.members[moving].set_arg("--initial-advertise-peer-urls", &url);
    cluster.members[moving].start();
    cluster.members[moving].wait_ready().await;
    // Everybody has found it: it is needed for a quorum now.
    cluster.members[(leader + 2) % 3].kill();
    cluster.members[leader].put("k", "v").await.unwrap_or_else(|status| panic!("{}", cluster.logs(status.message())));
    cluster.hashes_agree().await;
}

/// The warnings that count the votes, in the log and by the native ctl; the original's personality stays silent.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_vote_that_cannot_be_had_is_warned_of() {
    let cluster = Cluster::ours(1, &[]).await;
    let ctl = |words: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_quorate"));
        command.args(["ctl", "--endpoints", &cluster.members[0].endpoint()]).args(words).env_clear();
        let output = command.output().expect("the program runs");
        let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
        (output.status.code(), text(output.stdout), text(output.stderr))
    };
    let (code, out, err) = ctl(&["member", "add", "l", "--learner", "--peer-urls=http://127.0.0.1:1"]);
    assert_eq!((code, err.as_str()), (Some(0), ""), "a learner costs nothing: {out}");
    let (code, out, err) = ctl(&["member", "add", "m2", "--peer-urls=http://127.0.0.1:2"]);
    assert!(code == Some(0) && out.contains("ETCD_INITIAL_CLUSTER_STATE=\"existing\""), "{out}{err}");
    let said =
        "has a vote and does not answer: 2 voters, 2 votes needed, 1 answering; nothing can be written until m2 runs";
    assert!(err.starts_with("Warning: m2 (") && err.contains(said), "{err}");
    let logged = "2 voters, 2 needed, 1 reachable: nothing can be written until another voter is up";
    assert_eq!(cluster.members[0].log_count(logged), 1, "{}", cluster.logs("one warning"));
}

/// Members of both kinds ask each other for promotions.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn promotions_are_passed_on_between_ours_and_a_real_member() {
    let Some(real) = oracle("promotions_are_passed_on_between_ours_and_a_real_member") else { return };
    let etcd = Program::Etcd(real.etcd.clone());
    let mut cluster = Cluster::start(&[Program::Ours, etcd.clone(), Program::Ours], &[]).await;
    for leads_real in [true, false] {
        let leader = cluster.leader().await;
        if (leader == 1) != leads_real {
            let target = cluster.members[if leads_real { 1 } else { 0 }].id().await;
            move_leader(&cluster.members[leader], target).await.expect("a move");
        }
        let leader = cluster.leader().await;
        let through = if leader == 1 { 0 } else { 1 };
        let nobody = promote(&cluster.members[through], 1).await.expect_err("nobody");
        assert_eq!((nobody.code(), nobody.message()), (Code::NotFound, "etcdserver: member not found"));
        let voter = cluster.members[leader].id().await;
        let voter = promote(&cluster.members[through], voter).await.expect_err("a voter");
        assert_eq!(voter.message(), "etcdserver: can only promote a learner member");
        let joiner = cluster.prepare_joiner(&Program::Ours, &[]);
        let url = peer_url(&cluster.members[joiner]);
        let added = accepted("an addition", async || add(&cluster.members[through], &url, true).await).await;
        let id = added.member.expect("the new one").id;
        let early = promote(&cluster.members[through], id).await.expect_err("it never ran");
        assert!(early.message().ends_with("in sync with leader"), "{early}");
        cluster.members[joiner].start();
        let members = accepted("a promotion", async || promote(&cluster.members[through], id).await).await;
        assert!(members.iter().any(|member| member.id == id && !member.is_learner), "{members:?}");
        cluster.members[joiner].wait_ready().await;
    }
    cluster.hashes_agree().await;
}

/// Whoever has a removed member's directory, or only its id, is told so on the peer port.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn removed_members_are_refused_on_the_peer_port() {
    let mut cluster = Cluster::ours(3, &[]).await;
    let leader = cluster.leader().await;
    let victim = (leader + 1) % 3;
    let id = cluster.members[victim].id().await;
    let cluster_id = cluster.members[leader].status().await.expect("a status").header.expect("a header").cluster_id;
    accepted("the removal", async || remove(&cluster.members[leader], id).await).await;
    exited(&mut cluster, victim).await;
    for position in [leader, (leader + 2) % 3] {
        let port = cluster.members[position].peer_port;
        let to = cluster.members[position].id().await;
        let asked = eventually("an answer", async || {
            use tokio::io::AsyncReadExt;
            use tokio::io::AsyncWriteExt;
            let exchange = async {
                let mut stream = tokio::net::TcpStream::connect(("127.0.0.1", port)).await?;
                let request = format!(
                    "GET /raft/stream/message/{} HTTP/1.1\r\nHost: h\r\nX-Server-From: {}\r\nX-Server-Version: 3.7.1\r\n\
                     X-Min-Cluster-Version: 3.0.0\r\nX-Etcd-Cluster-ID: {cluster_id:x}\r\nX-Raft-To: {to:x}\r\n\r\n",
                    MemberId(id),
                    MemberId(id)
                );
                stream.write_all(request.as_bytes()).await?;
                let mut answer = [0; 512];
                let read = stream.read(&mut answer).await?;
                Ok::<_, std::io::Error>(String::from_utf8_lossy(&answer[..read]).into_owned())
            };
            let answer = tokio::time::timeout(Duration::from_secs(5), exchange).await;
            let answer = answer.map_err(|late| late.to_string())?.map_err(|error| error.to_string())?;
            // A member that has not applied the removal yet opens the stream.
            if answer.starts_with("HTTP/1.1 200") { Err(answer) } else { Ok(answer) }
        });
        let answer = asked.await;
        assert!(answer.starts_with("HTTP/1.1 410 Gone") && answer.contains("removed member"), "{answer}");
    }
}

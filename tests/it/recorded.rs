//! The recorded sessions of etcdctl 3.7.1, replayed with our etcdctl against our members.
//!
//! A lone member gets the very ids of the record, by its advertised peer URL, on which nothing needs to listen. Three
//! members have to hear each other, so they sit on free ports; those are chosen so that the ids stand in the recorded
//! order and have as many digits, and the recorded ones are put in their place. What is not replayed is listed here,
//! with the reason.

use std::net::TcpStream;
use std::path::Path;
use std::time::Duration;
use std::time::SystemTime;
use std::time::UNIX_EPOCH;

use quorate::common::ids::ClusterId;
use quorate::common::ids::MemberId;

use crate::cluster::Cluster;
use crate::cluster::Program;
use crate::members_work::add;
use crate::support::eventually;
use crate::support::free_port;
use crate::support::named_program;
use crate::support::shared_dir;
use crate::support::skipped;
use crate::transcripts::Outcome;
use crate::transcripts::Replayer;
use crate::transcripts::Step;
use crate::transcripts::parse;

/// The recorded clusters' token.
pub const TOKEN: &str = "etcd-cluster";
/// Recorded client and peer addresses of m1, m2 and m3.
const CLIENTS: [&str; 3] = ["127.0.0.1:12379", "127.0.0.1:22379", "127.0.0.1:32379"];
const PEERS: [&str; 3] = ["127.0.0.1:12380", "127.0.0.1:22380", "127.0.0.1:32380"];
/// Recorded ids of m1, m2 and m3, and of their cluster.
const MEMBER_IDS: [u64; 3] = [0xddd67b312462fd7b, 0x9e737febb6b99eee, 0x0628170c800dbcee];
const CLUSTER_ID: u64 = 0x73841b4a9097c907;
/// Revision at which member-endpoint.txt begins, after files whose commands do not exist yet.
const MEMBER_ENDPOINT_REVISION: i64 = 70;

const LATER: &str = "a command of a later release";
const GO: &str = "traces of Go's gRPC library";
const BYTES: &str = "bytes that the transcript could not hold: real_clients.rs compares them";

const NOT_IN_KV: [(&str, &str); 3] = [
    ("--debug get foo", GO),
    ("--user root get foo", "authentication: later"),
    ("--user root:pw", "authentication: later"),
];
const NOT_IN_TXN_COMPACT: [(&str, &str); 1] = [("\npanic:", "the original panics")];
const NOT_IN_THREE: [(&str, &str); 1] = [("-w protobuf member list", BYTES)];
const NOT_IN_MEMBER_ENDPOINT: [(&str, &str); 12] = [
    ("-w protobuf member list", BYTES),
    ("25410706", "the hash of what commands of later releases wrote; three-members.txt has every format"),
    ("alarm", LATER),
    ("defrag", LATER),
    ("snapshot save snap.db", "a file in the test's directory: lease and snapshot tests save there"),
    ("etcdutl -w", "another program"),
    ("etcdutl snapshot", "another program"),
    ("etcdutl hashkv", "another program"),
    ("etcdutl defrag", "another program"),
    ("etcdutl version", "another program"),
    ("etcdutl bogus", "another program"),
    ("etcdutl migrate", "another program"),
];

/// The steps of a transcript; nothing, aloud, where there is none.
fn transcript(test: &str, name: &str) -> Option<Vec<Step>> {
    let Some(shared) = shared_dir() else {
        skipped(test, "no shared folder beside this checkout");
        return None;
    };
    let path = shared.join("transcripts/etcdctl-3.7.1").join(name);
    Some(parse(&std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))))
}

fn pair(recorded: impl ToString, actual: impl ToString) -> (String, String) {
    (recorded.to_string(), actual.to_string())
}

fn check(name: &str, outcome: &Outcome) {
    println!("{name}: {} equal, {} different, left out:", outcome.equal, outcome.different.len());
    outcome.skipped.iter().for_each(|why| println!("  {why}"));
    assert!(outcome.different.is_empty(), "{name}:\n{}", outcome.different.join("\n"));
    assert!(outcome.equal > 0, "{name}: nothing was replayed");
}

/// Steps that ask the default endpoint need it to be closed, as it was when they were recorded.
fn without_default_endpoint(test: &str, steps: Vec<Step>) -> Vec<Step> {
    if TcpStream::connect(("127.0.0.1", 2379)).is_err() {
        return steps;
    }
    skipped(test, "the step that finds nothing on 127.0.0.1:2379, for something listens there");
    steps.into_iter().filter(|step| step.words[1..] != ["get", "a", "--command-timeout", "1s"]).collect()
}

/// A fresh member with the recorded ids.
pub async fn lone_member() -> Cluster {
    let mut cluster = Cluster::prepare(&[Program::Ours], &[]);
    let member = &mut cluster.members[0];
    member.set_arg("--initial-advertise-peer-urls", &format!("http://{}", PEERS[0]));
    member.set_arg("--initial-cluster", &format!("m1=http://{}", PEERS[0]));
    member.set_arg("--initial-cluster-token", TOKEN);
    member.start();
    cluster.wait_ready().await;
    cluster
}

#[tokio::test(flavor = "multi_thread")]
async fn sessions_with_a_lone_member_are_equal() {
    const TEST: &str = "sessions_with_a_lone_member_are_equal";
    let Some(kv) = transcript(TEST, "kv.txt") else { return };
    let Some(txn_compact) = transcript(TEST, "txn-compact.txt") else { return };
    let Some(member_endpoint) = transcript(TEST, "member-endpoint.txt") else { return };
    let cluster = lone_member().await;
    let (_link, etcdctl) = named_program("etcdctl");
    let replayer = Replayer::new(&etcdctl, &[pair(CLIENTS[0], cluster.members[0].endpoint())]);
    check("kv.txt", &replayer.run(&without_default_endpoint(TEST, kv), &NOT_IN_KV));
    check("txn-compact.txt", &replayer.run(&txn_compact, &NOT_IN_TXN_COMPACT));
    while cluster.members[0].put("filler", "").await.expect("an answer") < MEMBER_ENDPOINT_REVISION {}
    check("member-endpoint.txt", &replayer.run(&member_endpoint, &NOT_IN_MEMBER_ENDPOINT));
}

/// Ports of three members whose ids stand in the order of the recorded ones and are as long.
pub fn ports_in_recorded_order() -> [(u16, u16); 3] {
    let mut candidates: Vec<(u64, u16)> = Vec::new();
    loop {
        let port = free_port();
        candidates.push((MemberId::of_bootstrap_member(&[format!("http://127.0.0.1:{port}")], TOKEN).0, port));
        candidates.sort();
        let digits = |id: u64| format!("{id:x}").len();
        let short = candidates.iter().position(|(id, _)| digits(*id) == digits(MEMBER_IDS[2]));
        let full: Vec<_> = candidates.iter().filter(|(id, _)| digits(*id) == digits(MEMBER_IDS[0])).collect();
        if let (Some(third), [second, first, ..]) = (short, &full[..]) {
            return [first.1, second.1, candidates[third].1].map(|peer| (free_port(), peer));
        }
    }
}

/// Recorded and actual addresses and ids.
fn names(ports: &[(u16, u16); 3]) -> Vec<(String, String)> {
    let ids = ports.map(|(_, peer)| MemberId::of_bootstrap_member(&[format!("http://127.0.0.1:{peer}")], TOKEN));
    let cluster = ClusterId::of_members(&ids);
    let mut names = vec![pair(format!("{CLUSTER_ID:x}"), format!("{:x}", cluster.0)), pair(CLUSTER_ID, cluster.0)];
    for at in 0..3 {
        names.push(pair(CLIENTS[at], format!("127.0.0.1:{}", ports[at].0)));
        names.push(pair(PEERS[at], format!("127.0.0.1:{}", ports[at].1)));
        names.push(pair(format!("{:x}", MEMBER_IDS[at]), format!("{:x}", ids[at].0)));
        names.push(pair(MEMBER_IDS[at], ids[at].0));
    }
    names
}

/// Three members of which m2 leads, as when it was recorded.
async fn three_members(ports: &[(u16, u16); 3]) -> Cluster {
    let mut cluster = Cluster::prepare_at(&[Program::Ours, Program::Ours, Program::Ours], ports, &[]);
    for member in &mut cluster.members {
        member.set_arg("--initial-cluster-token", TOKEN);
        member.start();
    }
    cluster.wait_ready().await;
    loop {
        let leader = cluster.leader().await;
        if leader == 1 {
            return cluster;
        }
        cluster.members[leader].kill();
        cluster.leader().await;
        cluster.members[leader].start();
        cluster.wait_ready().await;
    }
}

/// Waits until every member has been connected to the others for long enough to take changes. Asked by an addition that
/// would be refused next.
async fn takes_changes(cluster: &Cluster) {
    let taken = format!("http://127.0.0.1:{}", cluster.members[0].peer_port);
    for member in &cluster.members {
        eventually("changes to be taken", async || match add(member, &taken, false).await {
            Err(status) if status.message() == "etcdserver: Peer URLs already exists" => Ok(()),
            other => Err(format!("{other:?}")),
        })
        .await;
    }
}

/// Replays a step that adds a member: the outcome, and the names with the new member's among them. Its id comes from the
/// second in which it is added, so the address is chosen to give an id at the recorded place in the order of ids.
fn add_recorded(etcdctl: &Path, names: &[(String, String)], step: &Step) -> (Outcome, Vec<(String, String)>) {
    const RECORDED: &str = "127.0.0.1:42380";
    let id_of = |recorded: u64| {
        let recorded = recorded.to_string();
        let (_, actual) = names.iter().find(|(name, _)| *name == recorded).expect("a member's id");
        actual.parse::<u64>().expect("a number")
    };
    let (low, high) = (id_of(MEMBER_IDS[1]), id_of(MEMBER_IDS[0]));
    // In the second of the last addition the same address would give the same id, which may be one that was removed.
    let second = || SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970").as_secs();
    let last = second();
    while second() == last {
        std::thread::sleep(Duration::from_millis(10));
    }
    let now = second();
    // The place may be narrow: then an address must do that gives such an id in one second less.
    let fits = |address: &String, seconds: u64| {
        let url = [format!("http://{address}")];
        let mut ids = (now..now + seconds).map(|second| MemberId::of_added_member(&url, second).0);
        ids.all(|id| low < id && id < high)
    };
    let addresses = || (1..255).flat_map(|host| (1_024..60_000).map(move |port| format!("127.0.0.{host}:{port}")));
    let found = addresses().take(1 << 20).find(|address| fits(address, 3));
    let address = found.or_else(|| addresses().find(|address| fits(address, 2))).expect("one of so many addresses");
    let mut names = names.to_vec();
    names.push(pair(RECORDED, address));
    let replayer = Replayer::new(etcdctl, &names);
    let mut actual = replayer.run_step(step);
    let id_in = |step: &Step| {
        let text = step.out.join("\n");
        let after = text.split_once("Member ").map(|(_, rest)| rest.trim_start());
        let hex = after.and_then(|rest| u64::from_str_radix(rest.split(' ').next()?, 16).ok());
        let json = text.split_once("\"member\":{\"ID\":").map(|(_, rest)| rest);
        let decimal = json.and_then(|rest| rest.split(',').next()?.parse().ok());
        hex.or(decimal).unwrap_or_else(|| panic!("no id in {text} {}", step.err.join("\n")))
    };
    let (recorded_id, actual_id): (u64, u64) = (id_in(step), id_in(&actual));
    for line in &mut actual.out {
        let hex = line.replace(&format!("{actual_id:x}"), &format!("{recorded_id:x}"));
        *line = hex.replace(&actual_id.to_string(), &recorded_id.to_string());
    }
    names.push(pair(format!("{recorded_id:x}"), format!("{actual_id:x}")));
    names.push(pair(recorded_id, actual_id));
    let (expected, actual) = (replayer.comparable(step, step), replayer.comparable(step, &actual));
    let mut outcome = Outcome::default();
    match expected == actual {
        true => outcome.equal = 1,
        false => outcome.different.push(format!("--- expected\n{expected}--- actual\n{actual}")),
    }
    (outcome, names)
}

/// Splits before the first step that has this word.
fn split_at_word(steps: &[Step], word: &str) -> usize {
    steps.iter().position(|step| step.words.iter().any(|given| given == word)).expect("such a step")
}

#[tokio::test(flavor = "multi_thread")]
async fn the_session_with_three_members_is_equal() {
    const TEST: &str = "the_session_with_three_members_is_equal";
    let Some(steps) = transcript(TEST, "three-members.txt") else { return };
    let ports = ports_in_recorded_order();
    let mut cluster = three_members(&ports).await;
    let (_link, etcdctl) = named_program("etcdctl");
    let mut replayer = Replayer::new(Path::new(&etcdctl), &names(&ports));

    let (all_up, rest) = steps.split_at(split_at_word(&steps, "--command-timeout"));
    let (before, with_learner) = all_up.split_at(split_at_word(all_up, "--learner"));
    let voter = with_learner.iter().rposition(|step| step.words.iter().any(|word| word == "add"));
    let (with_learner, with_voter) = with_learner.split_at(voter.expect("a voter is added behind the learner"));
    check("three-members.txt, all up", &replayer.run(before, &NOT_IN_THREE));
    takes_changes(&cluster).await;
    for steps in [with_learner, with_voter] {
        let names = names(&ports);
        let (added, extended) = add_recorded(&etcdctl, &names, &steps[0]);
        check("three-members.txt, an addition", &added);
        check("three-members.txt, a fourth member", &Replayer::new(&etcdctl, &extended).run(&steps[1..], &[]));
    }

    let (one_down, two_down) = rest.split_at(split_at_word(rest, "two-down"));
    cluster.members[1].kill();
    cluster.leader().await;
    replayer.leader_varies = true;
    check("three-members.txt, one down", &replayer.run(one_down, &[]));

    cluster.members[2].kill();
    eventually("a member that knows no leader", async || {
        let status = cluster.members[0].status().await.map_err(|status| status.to_string())?;
        if status.leader == 0 { Ok(()) } else { Err(format!("{:x} leads", status.leader)) }
    })
    .await;
    check("three-members.txt, two down", &replayer.run(two_down, &[]));
}

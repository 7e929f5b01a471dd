//! The recorded session of etcdctl 3.7.1 on leases, replayed with our etcdctl against a member of ours.
//!
//! The server chooses lease ids, so each grant's id is put in the place of the recorded one from then on. Seconds left
//! are masked; so is the order of a listing, whose short leases are kept alive so that a busy machine does not lose
//! them: `leases_are_answered_as_etcd_answers_them` compares the order.

use std::io::BufRead;
use std::io::BufReader;
use std::process::Command;
use std::process::Stdio;

use nix::sys::signal::Signal;
use nix::unistd::Pid;
use quorate::proto::etcdserverpb::LeaseLeasesRequest;
use tokio::task::JoinHandle;

use crate::cluster::Cluster;
use crate::cluster::Member;
use crate::lease::leases;
use crate::lease::renew;
use crate::recorded::lone_member;
use crate::support::children_heed_sigint;
use crate::support::named_program;
use crate::support::shared_dir;
use crate::support::skipped;
use crate::transcripts::Replayer;
use crate::transcripts::Step;
use crate::transcripts::parse;

/// Revision at which the recorded session began.
const REVISION: i64 = 30;
const CLIENT: &str = "127.0.0.1:12379";
/// Recorded ids in the order of the grants.
const IDS: [u64; 8] = [
    0x7d7b_a1f9_03b7_f065,
    0x7d7b_a1f9_03b7_f067,
    0x7d7b_a1f9_03b7_f069,
    0x7d7b_a1f9_03b7_f06b,
    0x7d7b_a1f9_03b7_f06d,
    0x7d7b_a1f9_03b7_f06f,
    0x7d7b_a1f9_03b7_f071,
    0x7d7b_a1f9_03b7_f073,
];

async fn listed(member: &Member) -> Vec<i64> {
    let listed = leases(member).await.lease_leases(LeaseLeasesRequest {}).await.expect("a list").into_inner();
    listed.leases.into_iter().map(|lease| lease.id).collect()
}

/// Everything that varies: seconds left, and the order of a listing.
fn comparable(replayer: &Replayer, step: &Step, result: &Step) -> String {
    let text = replayer.comparable(step, result);
    let has = |word: &str| step.words.iter().any(|given| given == word);
    if has("list") {
        let mut parts: Vec<&str> = text.split(['\n', ',', '[', ']', '}']).collect();
        parts.sort_unstable();
        return parts.join("\n");
    }
    if !has("timetolive") {
        return text;
    }
    let mut text = text;
    for (before, after) in [("remaining(", "s)"), ("\"ttl\":", ","), ("\"TTL\" : ", "\n")] {
        let Some((head, tail)) = text.split_once(before) else { continue };
        let (seconds, rest) = tail.split_once(after).expect("as recorded");
        let recent = seconds.parse().is_ok_and(|seconds: i64| (1..60).contains(&seconds));
        let shown = if recent { "<left>" } else { seconds };
        text = format!("{head}{before}{shown}{after}{rest}");
    }
    text
}

/// Keeps a short lease alive until it is aborted.
fn keep(cluster: &Cluster, id: i64) -> JoinHandle<()> {
    let endpoint = cluster.members[0].endpoint();
    tokio::spawn(async move {
        let Ok(channel) = crate::cluster::channel(&endpoint).await else { return };
        let mut client = quorate::proto::etcdserverpb::lease_client::LeaseClient::new(channel);
        let ticks = tokio::time::interval(std::time::Duration::from_millis(200));
        let asked = futures_util::StreamExt::map(tokio_stream::wrappers::IntervalStream::new(ticks), move |_| {
            quorate::proto::etcdserverpb::LeaseKeepAliveRequest { id }
        });
        let Ok(answers) = client.lease_keep_alive(asked).await else { return };
        let mut answers = answers.into_inner();
        while let Ok(Some(_)) = answers.message().await {}
    })
}

/// Runs `keep-alive` until its first line, then interrupts it: the line, and the signal that ended it.
fn interrupted(program: &std::path::Path, endpoint: &str, id: i64) -> (String, Option<i32>) {
    use std::os::unix::process::ExitStatusExt;
    children_heed_sigint();
    let mut child = Command::new(program)
        .args(["--endpoints", endpoint, "lease", "keep-alive", &format!("{id:x}")])
        .stdout(Stdio::piped())
        .spawn()
        .expect("the program starts");
    let mut line = String::new();
    BufReader::new(child.stdout.take().expect("a pipe")).read_line(&mut line).expect("a line");
    let pid = Pid::from_raw(i32::try_from(child.id()).expect("pids fit"));
    nix::sys::signal::kill(pid, Signal::SIGINT).expect("it runs");
    (line, child.wait().expect("it ends").signal())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_session_on_leases_is_equal() {
    let Some(shared) = shared_dir() else {
        return skipped("the_session_on_leases_is_equal", "no shared folder beside this checkout");
    };
    let text = std::fs::read_to_string(shared.join("transcripts/etcdctl-3.7.1/lease.txt")).expect("a transcript");
    let cluster = lone_member().await;
    let member = &cluster.members[0];
    while member.put("filler", "").await.expect("an answer") < REVISION {}
    let (_link, etcdctl) = named_program("etcdctl");
    let mut names = vec![(CLIENT.to_owned(), member.endpoint())];
    let mut known: Vec<i64> = Vec::new();
    let mut kept = Vec::new();
    let (mut equal, mut different) = (0, Vec::new());
    for step in parse(&text) {
        let replayer = Replayer::new(&etcdctl, &names);
        if step.code == -2 {
            let (line, signal) = interrupted(&etcdctl, &member.endpoint(), known[0]);
            assert_eq!((line, signal), (format!("lease {:016x} keepalived with TTL(60)\n", known[0]), Some(2)));
            equal += 1;
            continue;
        }
        let words: Vec<&str> = step.words.iter().map(String::as_str).collect();
        if words.contains(&"protobuf") {
            // The record could not hold the bytes; they are compared with etcd's own in a unit test of the format.
            continue;
        }
        let actual = replayer.run_step(&step);
        let grants = words.contains(&"grant");
        let new = if grants { listed(member).await } else { Vec::new() };
        if let Some(id) = new.into_iter().find(|id| !known.contains(id)) {
            let recorded = IDS[known.len()];
            names.push((format!("{recorded:016x}"), format!("{id:016x}")));
            names.push((recorded.to_string(), id.to_string()));
            if known.len() >= 5 {
                kept.push(keep(&cluster, id));
            }
            known.push(id);
        }
        // With the names as they are now: a grant's own id is among them.
        let replayer = Replayer::new(&etcdctl, &names);
        let renamed = |line: &String| {
            let pairs = names.iter();
            pairs.fold(line.clone(), |line, (recorded, actual)| line.replace(actual.as_str(), recorded))
        };
        let actual = Step { out: actual.out.iter().map(renamed).collect(), ..actual };
        let (expected, actual) = (comparable(&replayer, &step, &step), comparable(&replayer, &step, &actual));
        match expected == actual {
            true => equal += 1,
            false => different.push(format!("line {}\n--- expected\n{expected}--- actual\n{actual}", step.line)),
        }
    }
    kept.iter().for_each(JoinHandle::abort);
    assert!(different.is_empty(), "{}", different.join("\n"));
    assert_eq!((known.len(), equal), (IDS.len(), 46));
    assert_eq!(renew(member, known[0]).await.expect("an answer"), 0);
}

//! `lock` and `elect`: etcdctl's session, and ours and the real one at members of either kind.

use std::path::Path;
use std::process::Command;

use nix::sys::signal::Signal;
use quorate::proto::etcdserverpb::LeaseRevokeRequest;

use crate::cluster::Cluster;
use crate::cluster::Member;
use crate::cluster::Program;
use crate::lease::grant;
use crate::lease::leases;
use crate::lock::ask;
use crate::lock::patient;
use crate::lock::queue;
use crate::oracle::oracle;
use crate::recorded::lone_member;
use crate::running::Running;
use crate::support::eventually;
use crate::support::named_program;
use crate::support::shared_dir;
use crate::support::skipped;
use crate::transcripts::Replayer;
use crate::transcripts::Step;
use crate::transcripts::parse;
use crate::watch::until_watchers;

/// How the transcript tells of a line that it leaves out.
const TTL_MARK: &str = "(a JSON log line of the client: WithTTL(): TTL should be > 0, preserving current TTL)";

/// The part of a key behind the first slash is a lease, which varies.
fn masked(line: &str) -> String {
    let is_lease = |text: &str| text.len() == 16 && text.bytes().all(|byte| byte.is_ascii_hexdigit());
    match line.split_once('/') {
        Some((name, lease)) if is_lease(lease) => format!("{name}/<lease>"),
        _ => line.to_owned(),
    }
}

async fn replay(step: &Step, member: &Member, etcdctl: &Path) -> Step {
    let endpoint = member.endpoint();
    let words: Vec<String> = step.words[1..].iter().map(|word| word.replace("127.0.0.1:12379", &endpoint)).collect();
    let in_background = words.iter().position(|word| word == "#");
    let words = &words[..in_background.unwrap_or(words.len())];
    let words: Vec<String> = words.iter().filter(|word| in_background.is_none() || !word.is_empty()).cloned().collect();
    let running = Running::start(etcdctl, &words, &step.environment);
    if in_background.is_some() {
        running.until_lines(step.out.len(), 0).await;
        // Who only listens prints nothing as long as nobody leads.
        if step.out.is_empty() {
            until_watchers(member, 1).await;
        }
    }
    let (code, out, err) = running.end(in_background.map(|_| Signal::SIGINT));
    let is_ttl = |line: &str| line.starts_with('{') && line.contains("WithTTL(): TTL should be > 0");
    let err = err.into_iter().map(|line| if is_ttl(&line) { TTL_MARK.to_owned() } else { line }).collect();
    Step { out, err, code, ..step.clone() }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_session_of_locks_and_elections_is_equal() {
    const TEST: &str = "the_session_of_locks_and_elections_is_equal";
    let Some(shared) = shared_dir() else { return skipped(TEST, "no shared folder beside this checkout") };
    let text = std::fs::read_to_string(shared.join("transcripts/etcdctl-3.7.1/lock-elect.txt")).expect("a transcript");
    let cluster = lone_member().await;
    let member = &cluster.members[0];
    let (_link, etcdctl) = named_program("etcdctl");
    let replayer = Replayer::new(&etcdctl, &[("127.0.0.1:12379".to_owned(), member.endpoint())]);
    let (mut equal, mut different) = (0, Vec::new());
    for mut step in parse(&text) {
        let mut actual = replay(&step, member, &etcdctl).await;
        for lines in [&mut step.out, &mut actual.out] {
            lines.iter_mut().for_each(|line| *line = masked(line));
        }
        let (expected, actual) = (replayer.comparable(&step, &step), replayer.comparable(&step, &actual));
        match expected == actual {
            true => equal += 1,
            false => different.push(format!("line {}\n--- expected\n{expected}--- actual\n{actual}", step.line)),
        }
        // A lock that was not released would hold up the next step anyway.
        assert_eq!(queue(member, "L/").await.expect("an answer"), Vec::<String>::new(), "line {}", step.line);
    }
    assert!(different.is_empty(), "{}", different.join("\n"));
    assert_eq!(equal, 12);
}

/// What one client prints at one member, in words that compare.
struct Pairing<'a> {
    etcdctl: &'a Path,
    member: &'a Member,
    told: Vec<String>,
}

impl Pairing<'_> {
    fn start(&self, words: &[&str]) -> Running {
        let endpoint = self.member.endpoint();
        let words: Vec<String> =
            ["--endpoints", &endpoint].iter().chain(words).map(|word| (*word).to_owned()).collect();
        Running::start(self.etcdctl, &words, &[("ETCD_LOCK_REV".to_owned(), "mine".to_owned())])
    }

    fn end(&mut self, words: &[&str], running: Running, signal: Option<Signal>) {
        let (code, out, err) = running.end(signal);
        // Log lines differ with the release and the moment.
        let err: Vec<String> = err.into_iter().filter(|line| !line.starts_with('{')).collect();
        // Usage is not compared, in which releases differ: 3.5 shows it on standard output, between two errors.
        let shows_usage = |lines: &[String]| lines.iter().any(|line| line.starts_with("Usage:") || line == "NAME:");
        let (out, err) = match shows_usage(&out) || shows_usage(&err) {
            true => (Vec::new(), err[..1].to_vec()),
            false => (out, err),
        };
        let out: Vec<String> = out.iter().map(|line| shapes(line)).collect();
        self.told.push(format!("{words:?}: {code} {out:?} {err:?}"));
    }

    /// Runs a command to its end.
    fn run(&mut self, words: &[&str]) {
        let running = self.start(words);
        self.end(words, running, None);
    }

    async fn until_keys(&self, prefix: &str, count: usize) {
        eventually("so many keys", async || match queue(self.member, prefix).await {
            Ok(keys) if keys.len() == count => Ok(()),
            other => Err(format!("{other:?}")),
        })
        .await;
    }

    async fn revoke(&self, prefix: &str) {
        let keys = queue(self.member, prefix).await.expect("an answer");
        let lease = keys[0].rsplit('/').next().expect("a lease");
        let id = i64::from_str_radix(lease, 16).expect("hexadecimal");
        leases(self.member).await.lease_revoke(LeaseRevokeRequest { id }).await.expect("revoked");
    }
}

/// A line with every number of more than four digits, and every text that is a lease, left out.
fn shapes(line: &str) -> String {
    let is_varying = |word: &str| {
        let hex = word.bytes().all(|byte| byte.is_ascii_hexdigit());
        let base64 = word.len() >= 20 && word.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"+=".contains(&byte));
        (hex && word.len() > 4) || base64
    };
    let ends = |at: char| !(at.is_ascii_alphanumeric() || at == '+' || at == '=');
    let parts = line.split_inclusive(ends).map(|part| {
        let word = part.trim_end_matches(ends);
        if is_varying(word) { format!("<varies>{}", &part[word.len()..]) } else { part.to_owned() }
    });
    parts.collect()
}

async fn pairing(etcdctl: &Path, member: &Member) -> Vec<String> {
    let mut pair = Pairing { etcdctl, member, told: Vec::new() };
    pair.run(&["lock", "l", "--", "sh", "-c", "kill -9 $$"]);
    pair.run(&["lock", "l", "--", "sh", "-c", "exit 200"]);
    pair.run(&["lock", "l", "sh", "-c", "exit 0"]);
    pair.run(&["lock", "l", "./nosuch"]);
    pair.run(&["lock", "l", "/tmp"]);
    // Our own variable wins over what the program is told.
    pair.run(&["lock", "", "--", "sh", "-c", "echo $ETCD_LOCK_REV; echo ${ETCD_LOCK_KEY%%[0-9a-f]*}; cat"]);
    pair.run(&["-w", "bogus", "elect", "e"]);
    pair.run(&["elect", "e", "x", "y"]);
    pair.run(&["lock", "l", "--ttl", "x"]);
    pair.until_keys("l/", 0).await;

    for format in ["simple", "json", "fields"] {
        let words = ["-w", format, "lock", "l"];
        let running = pair.start(&words);
        running.until_lines(if format == "fields" { 12 } else { 1 }, 0).await;
        // Somebody else waits, and is told to stop.
        let waiting = ["lock", "l"];
        let second = pair.start(&waiting);
        pair.until_keys("l/", 2).await;
        pair.end(&waiting, second, Some(Signal::SIGINT));
        pair.until_keys("l/", 1).await;
        pair.end(&words, running, Some(Signal::SIGTERM));
        pair.until_keys("l/", 0).await;
    }

    // A signal while the program runs: it runs to its end, and the lock is released behind it.
    let words = ["lock", "l", "--", "sh", "-c", "echo in; sleep 1; echo out"];
    let running = pair.start(&words);
    running.until_lines(1, 0).await;
    pair.end(&words, running, Some(Signal::SIGTERM));
    pair.until_keys("l/", 0).await;

    // The lease ends.
    let words = ["lock", "l", "--ttl", "3"];
    let running = pair.start(&words);
    running.until_lines(2, 0).await;
    pair.revoke("l/").await;
    pair.end(&words, running, None);

    // A format that there is not: the lock is taken, and stays until the lease ends.
    pair.run(&["-w", "table", "lock", "stays", "--ttl", "30"]);
    pair.until_keys("stays/", 1).await;
    pair.revoke("stays/").await;

    // An election, with somebody who listens and a second candidate.
    let listening = ["elect", "-l", "e"];
    let listener = pair.start(&listening);
    let words = ["elect", "e", "first"];
    let first = pair.start(&words);
    first.until_lines(2, 0).await;
    listener.until_lines(2, 0).await;
    let words_second = ["-w", "json", "elect", "e", "second"];
    let second = pair.start(&words_second);
    pair.until_keys("e/", 2).await;
    pair.end(&words, first, Some(Signal::SIGINT));
    second.until_lines(1, 0).await;
    listener.until_lines(4, 0).await;
    let third = pair.start(&["elect", "e", "third"]);
    pair.until_keys("e/", 2).await;
    pair.end(&["elect", "e", "third"], third, Some(Signal::SIGTERM));
    pair.until_keys("e/", 1).await;
    pair.end(&words_second, second, Some(Signal::SIGTERM));
    pair.until_keys("e/", 0).await;
    pair.end(&listening, listener, Some(Signal::SIGINT));
    pair.told
}

/// Ours and the real 3.5.1, at a member of ours and at a real one.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn locks_and_elections_look_the_same_whoever_asks_whom() {
    let Some(real) = oracle("locks_and_elections_look_the_same_whoever_asks_whom") else { return };
    let theirs = Program::Etcd(real.etcd.clone());
    let (_link, etcdctl) = named_program("etcdctl");
    // Fresh members, because revisions are compared.
    let paired = async |etcdctl: &Path, program: &Program| {
        let cluster = Cluster::start(std::slice::from_ref(program), &[]).await;
        pairing(etcdctl, &cluster.members[0]).await
    };
    let expected = paired(&real.etcdctl, &theirs).await;
    for (name, client, program) in [
        ("the real client, our member", &real.etcdctl, &Program::Ours),
        ("our client, the real member", &etcdctl, &theirs),
        ("our client, our member", &etcdctl, &Program::Ours),
    ] {
        let found = paired(client, program).await;
        let pairs = expected.iter().zip(&found).filter(|(expected, found)| expected != found);
        let different: Vec<String> =
            pairs.map(|(expected, found)| format!("etcd: {expected}\nthis: {found}")).collect();
        assert!(different.is_empty(), "{name}:\n{}", different.join("\n"));
        assert_eq!(found.len(), expected.len(), "{name}");
    }
}

/// Holders of both kinds queue up together: the service's, the real client's and ours.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_service_and_both_clients_wait_for_one_another() {
    let Some(real) = oracle("the_service_and_both_clients_wait_for_one_another") else { return };
    let cluster = Cluster::ours(3, &[]).await;
    let (_link, etcdctl) = named_program("etcdctl");
    let member = &cluster.members[0];
    let held = ask(&patient(member).await, "one", grant(member, 600).await).await.expect("no panic").expect("the lock");
    let pair = |program, at: usize| Pairing { etcdctl: program, member: &cluster.members[at], told: Vec::new() };
    let (first, second) = (pair(&real.etcdctl, 1), pair(&etcdctl, 2));
    let waiting = first.start(&["lock", "one", "--", "echo", "first"]);
    first.until_keys("one/", 2).await;
    let behind = second.start(&["lock", "one", "--", "echo", "second"]);
    first.until_keys("one/", 3).await;
    let last = ask(&patient(member).await, "one", grant(member, 600).await);
    first.until_keys("one/", 4).await;
    assert!(waiting.out().is_empty() && behind.out().is_empty() && !last.is_finished());
    let key = String::from_utf8_lossy(&held.key).into_owned();
    let deleted = Command::new(&etcdctl).args(["--endpoints", &member.endpoint(), "del", &key]).output();
    assert!(deleted.expect("etcdctl").status.success());
    assert_eq!(waiting.end(None).1, ["first"]);
    assert_eq!(behind.end(None).1, ["second"]);
    last.await.expect("no panic").expect("the lock");
}

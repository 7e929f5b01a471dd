//! Watches of real processes: etcdctl's sessions, the same streams as etcd's, members that die under a watcher.

use std::collections::BTreeMap;
use std::io::Write;
use std::path::Path;
use std::process::Command;

use nix::sys::signal::Signal;
use quorate::client::Client;
use quorate::client::Config;
use quorate::proto::etcdserverpb::CompactionRequest;
use quorate::proto::etcdserverpb::DeleteRangeRequest;
use quorate::proto::etcdserverpb::PutRequest;
use quorate::proto::etcdserverpb::RequestOp;
use quorate::proto::etcdserverpb::TxnRequest;
use quorate::proto::etcdserverpb::WatchCreateRequest;
use quorate::proto::etcdserverpb::WatchResponse;
use quorate::proto::etcdserverpb::kv_client::KvClient;
use quorate::proto::etcdserverpb::request_op::Request as Op;
use tonic::transport::Channel;

use crate::cluster::Cluster;
use crate::cluster::Member;
use crate::cluster::Program;
use crate::cluster::put;
use crate::oracle::oracle;
use crate::recorded::lone_member;
use crate::running::Running;
use crate::support::eventually;
use crate::support::http_get;
use crate::support::named_program;
use crate::support::shared_dir;
use crate::support::skipped;
use crate::transcripts::Replayer;
use crate::transcripts::Step;
use crate::transcripts::parse;
use crate::watching::Seen;
use crate::watching::Watches;
use crate::watching::on;

/// The number of watchers that a member counts.
async fn watchers(member: &Member) -> i64 {
    let (_, text) = http_get(member.client_port, "/metrics").await;
    let line = text.lines().find(|line| line.starts_with("etcd_debugging_mvcc_watcher_total "));
    line.and_then(|line| line.rsplit(' ').next()?.parse().ok()).unwrap_or(-1)
}

pub async fn until_watchers(member: &Member, count: i64) {
    eventually("the watchers", async || match watchers(member).await {
        counted if counted == count => Ok(()),
        counted => Err(format!("{counted} of {count}")),
    })
    .await;
}

/// What a transcript says happened meanwhile, by the line of its step.
fn meanwhile(text: &str) -> BTreeMap<usize, Vec<Vec<String>>> {
    let mut all: BTreeMap<usize, Vec<Vec<String>>> = BTreeMap::new();
    let mut step = 0;
    for (at, line) in text.lines().enumerate() {
        if line.starts_with("$ ") {
            step = at + 1;
        } else if let Some(words) = line.strip_prefix("# meanwhile: etcdctl ") {
            all.entry(step).or_default().push(words.split(' ').map(str::to_owned).collect());
        }
    }
    all
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_session_of_watches_is_equal() {
    const TEST: &str = "the_session_of_watches_is_equal";
    let Some(shared) = shared_dir() else { return skipped(TEST, "no shared folder beside this checkout") };
    let text = std::fs::read_to_string(shared.join("transcripts/etcdctl-3.7.1/watch.txt")).expect("a transcript");
    let cluster = lone_member().await;
    let member = &cluster.members[0];
    let mut kv = KvClient::new(member.connect().await.expect("a connection"));
    // What the files before this one left behind.
    while put(&mut kv, "filler", "").await.expect("an answer") < 32 {}
    kv.compact(CompactionRequest { revision: 10, physical: true }).await.expect("a compaction");
    let (_link, etcdctl) = named_program("etcdctl");
    let replayer = Replayer::new(&etcdctl, &[("127.0.0.1:12379".to_owned(), member.endpoint())]);
    let meanwhile = meanwhile(&text);
    let (mut equal, mut different) = (0, Vec::new());
    for mut step in parse(&text) {
        // The remark behind a command in the background.
        while step.words.last().is_some_and(|word| word != "#") && step.words.contains(&"#".to_owned()) {
            step.words.pop();
        }
        step.words.retain(|word| word != "#");
        while step.words.last().is_some_and(String::is_empty) {
            step.words.pop();
        }
        if step.words.iter().any(|word| word == "protobuf") {
            for words in meanwhile.get(&step.line).into_iter().flatten() {
                run(&etcdctl, member, words);
            }
            continue;
        }
        let actual = replay(&step, member, &etcdctl, meanwhile.get(&step.line)).await;
        let (expected, actual) = (replayer.comparable(&step, &step), replayer.comparable(&step, &actual));
        match expected == actual {
            true => equal += 1,
            false => different.push(format!("line {}\n--- expected\n{expected}--- actual\n{actual}", step.line)),
        }
    }
    assert!(different.is_empty(), "{}", different.join("\n"));
    assert_eq!(equal, 18, "all but the protobuf one, whose bytes the transcript could not hold");
}

fn run(etcdctl: &Path, member: &Member, words: &[String]) {
    let output = Command::new(etcdctl).args(["--endpoints", &member.endpoint()]).args(words).output();
    assert!(output.expect("etcdctl").status.success(), "{words:?}");
}

async fn replay(step: &Step, member: &Member, etcdctl: &Path, meanwhile: Option<&Vec<Vec<String>>>) -> Step {
    let endpoint = member.endpoint();
    let words = step.words[1..].iter().map(|word| word.replace("127.0.0.1:12379", &endpoint));
    let mut running = Running::start(etcdctl, &words.collect::<Vec<_>>(), &step.environment);
    if !step.input.is_empty() {
        let mut input = step.input.trim_end_matches('\n').to_owned();
        input.push('\n');
        running.child.stdin.as_mut().expect("a pipe").write_all(input.as_bytes()).expect("it reads");
    }
    if let Some(commands) = meanwhile {
        until_watchers(member, 1).await;
        for words in commands {
            run(etcdctl, member, words);
        }
    }
    let signal = (step.code == -2).then_some(Signal::SIGINT);
    if signal.is_some() {
        running.until_lines(step.out.len(), step.err.len()).await;
    }
    let (code, out, err) = running.end(signal);
    until_watchers(member, 0).await;
    Step { out, err, code, ..step.clone() }
}

/// Runs one watch of a client, with the same writes meanwhile, and returns what it printed.
async fn printed(etcdctl: &Path, member: &Member, words: &[&str], bytes: usize) -> Vec<u8> {
    let endpoint = member.endpoint();
    let words: Vec<String> = ["--endpoints", &endpoint].iter().chain(words).map(|word| (*word).to_owned()).collect();
    let before = watchers(member).await;
    let running = Running::start(etcdctl, &words, &[]);
    until_watchers(member, before + 1).await;
    let mut kv = KvClient::new(member.connect().await.expect("a connection"));
    for (key, value) in [("w1", "one"), ("w2", "two\n\"quoted\""), ("w1", ""), ("other", "x")] {
        put(&mut kv, key, value).await.expect("a put");
    }
    let all = DeleteRangeRequest { key: "w".into(), range_end: "x".into(), ..Default::default() };
    kv.delete_range(all).await.expect("a deletion");
    // The deletion of all ends every one of these, and w2's value looks nowhere like an end.
    let is_whole = |out: &[u8]| {
        let text = String::from_utf8_lossy(out);
        text.matches("DELETE").count() >= deletions(&words) && (text.ends_with("\n\n") || text.ends_with("\"\"\n"))
    };
    eventually("the output", async || match running.out() {
        out if out.len() >= bytes && is_whole(&out) => Ok(()),
        out => Err(format!("{words:?}: {}", String::from_utf8_lossy(&out))),
    })
    .await;
    let out = running.out();
    running.end(Some(Signal::SIGINT));
    until_watchers(member, before).await;
    out
}

/// How often the deletion of w1 and w2 says DELETE: once for each that is watched, twice where a command says it, too.
fn deletions(words: &[String]) -> usize {
    let is_one_key = words.iter().any(|word| word == "w1");
    if is_one_key && !words.contains(&"sh".to_owned()) { 1 } else { 2 }
}

/// Ours and the real 3.5.1, at a member of ours and at a real one.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn etcdctl_prints_the_same_whoever_watches_whom() {
    let Some(real) = oracle("etcdctl_prints_the_same_whoever_watches_whom") else { return };
    let ours = Cluster::ours(1, &[]).await;
    let theirs = Cluster::start(&[Program::Etcd(real.etcd.clone())], &[]).await;
    let (_link, etcdctl) = named_program("etcdctl");
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    for words in [
        &["watch", "w1"][..],
        &["watch", "w", "--prefix", "--prev-kv"],
        &["watch", "w", "x"],
        &["watch", "", "--prefix", "--prev-kv"],
        &["--hex", "watch", "w", "--prefix"],
        &["watch", "w1", "--", "sh", "-c", "echo $ETCD_WATCH_EVENT_TYPE $ETCD_WATCH_KEY $ETCD_WATCH_VALUE"],
    ] {
        let expected = printed(&real.etcdctl, &theirs.members[0], words, 1).await;
        let by_real = printed(&real.etcdctl, &ours.members[0], words, expected.len()).await;
        assert_eq!(text(&by_real), text(&expected), "{words:?} at ours and at theirs");
        let by_ours = printed(&etcdctl, &ours.members[0], words, expected.len()).await;
        assert_eq!(text(&by_ours), text(&expected), "{words:?} by ours and by theirs");
    }
    // Formats that name members and revisions: both programs on the same history.
    ours.members[0].put("w9", "the end").await.expect("a put");
    for words in [
        &["-w", "fields", "watch", "w", "--prefix", "--prev-kv", "--rev", "3"][..],
        &["-w", "protobuf", "watch", "w", "--prefix", "--prev-kv", "--rev", "3"],
        &["watch", "", "--prefix", "--rev", "2", "--prev-kv"],
    ] {
        let endpoint = ours.members[0].endpoint();
        let words = ["--endpoints", &endpoint].into_iter().chain(words.iter().copied()).map(str::to_owned);
        let words: Vec<String> = words.collect();
        let (one, other) = (Running::start(&etcdctl, &words, &[]), Running::start(&real.etcdctl, &words, &[]));
        eventually("equal output", async || {
            let (one, other) = (one.out(), other.out());
            let ended = text(&one).contains("the end");
            if ended && one == other { Ok(()) } else { Err(format!("{words:?}: {} and {}", text(&one), text(&other))) }
        })
        .await;
    }
}

fn client_of(cluster: &Cluster) -> Client {
    let endpoints = cluster.members.iter().map(Member::endpoint).collect();
    Client::open(Config::new(endpoints)).expect("endpoints")
}

/// The watcher's member is killed again and again while the others are written to.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_watch_goes_on_when_its_member_dies() {
    let mut cluster = Cluster::ours(3, &[]).await;
    cluster.leader().await;
    let client = client_of(&cluster);
    let mut watcher = client.watcher(false);
    let one = watcher.watch(WatchCreateRequest { prev_kv: true, ..on("k", "") });
    let all = watcher.watch(WatchCreateRequest { fragment: true, ..on("k", "l") });
    let mut seen: BTreeMap<usize, Vec<i64>> = BTreeMap::from([(one, Vec::new()), (all, Vec::new())]);
    let mut take = |watch: usize, response: WatchResponse| {
        assert!(!response.canceled, "{response:?}");
        let revisions = response.events.iter().flat_map(|event| &event.kv).map(|kv| kv.mod_revision);
        let seen = seen.get_mut(&watch).expect("one of the two");
        seen.extend(revisions);
        seen.len()
    };
    let mut written = Vec::new();
    for round in 0..4 {
        // Which member serves it shows in its count.
        let serving = loop {
            tokio::select! {
                delivered = watcher.next() => {
                    let delivered = delivered.expect("no end");
                    take(delivered.watch, delivered.response);
                }
                () = tokio::time::sleep(std::time::Duration::from_millis(30)) => {}
            }
            let mut serving = None;
            for (at, member) in cluster.members.iter().enumerate() {
                if watchers(member).await == 2 {
                    serving = Some(at);
                }
            }
            if let Some(at) = serving {
                break at;
            }
        };
        let other = &cluster.members[(serving + 1) % 3];
        for at in 0..20 {
            written.push(other.put("k", &format!("{round} {at}")).await.expect("a put"));
        }
        if round == 3 {
            break;
        }
        cluster.members[serving].kill();
        let other = &cluster.members[(serving + 1) % 3];
        for at in 0..20 {
            let put = eventually("a put", async || {
                other.put("k", &format!("{round} again {at}")).await.map_err(|status| status.to_string())
            });
            written.push(put.await);
        }
        cluster.members[serving].start();
        cluster.members[serving].wait_ready().await;
    }
    let wanted = written.last().copied().expect("something was written");
    let mut last = BTreeMap::new();
    while last.len() < 2 || last.values().any(|revision| *revision < wanted) {
        let delivered = watcher.next().await.expect("no end");
        let revision = delivered.response.events.last().and_then(|event| event.kv.as_ref()).map(|kv| kv.mod_revision);
        take(delivered.watch, delivered.response);
        revision.map(|revision| last.insert(delivered.watch, revision));
    }
    for (watch, revisions) in seen {
        // A put that timed out may have been written once more: what the other watch saw, too.
        assert!(revisions.windows(2).all(|pair| pair[0] < pair[1]), "watch {watch}: twice or back in {revisions:?}");
        let missed: Vec<&i64> = written.iter().filter(|revision| !revisions.contains(revision)).collect();
        assert!(missed.is_empty(), "watch {watch} missed {missed:?}");
    }
}

/// A half of the connection that the client closes ends nothing; the other does.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_lives_until_its_client_leaves() {
    let cluster = Cluster::ours(1, &[]).await;
    let member = &cluster.members[0];
    let mut watches =
        Watches::open(member.connect().await.expect("a connection"), on("k", "")).await.expect("a stream");
    watches.close_requests();
    member.put("k", "v").await.expect("a put");
    watches.until("an event", |watches| watches.seen[&0].events.len() == 1).await;
    until_watchers(member, 1).await;
    drop(watches);
    until_watchers(member, 0).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn notices_come_by_themselves_when_nothing_happens() {
    let cluster = Cluster::ours(1, &["--watch-progress-notify-interval", "100ms"]).await;
    let member = &cluster.members[0];
    let request = WatchCreateRequest { progress_notify: true, ..on("k", "") };
    let mut watches = Watches::open(member.connect().await.expect("a connection"), request).await.expect("a stream");
    watches.create(on("k", ""));
    let revision = member.put("other", "v").await.expect("a put");
    watches.until("a notice", |watches| watches.seen.get(&0).is_some_and(|seen| seen.bookmark == revision)).await;
    assert_eq!(watches.seen[&1].bookmark, 0, "it wants none");
}

fn resident_bytes(member: &Member) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", member.pid())).expect("a process");
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).expect("a size");
    let kib = line.split_whitespace().nth(1).and_then(|number| number.parse::<u64>().ok());
    kib.expect("a number") * 1024
}

/// Bytes that a member grows by for each of so many watchers on keys of their own, on a few streams.
async fn bytes_a_watcher(cluster: &Cluster, watchers: usize) -> u64 {
    const STREAMS: usize = 20;
    let member = &cluster.members[0];
    let channel = member.connect().await.expect("a connection");
    let before = resident_bytes(member);
    let mut streams = Vec::new();
    for stream in 0..STREAMS {
        let key = |at: usize| format!("jobs/{stream:03}/{at:06}");
        let mut watches = Watches::open(channel.clone(), on(&key(0), "")).await.expect("a stream");
        for at in 1..watchers / STREAMS {
            watches.create(on(&key(at), ""));
            // As a client that waits now and then: what is asked ahead is bounded at both ends.
            if at % 100 == 0 {
                watches.until("some to be created", |watches| watches.seen.len() > at).await;
            }
        }
        watches.until("all to be created", |watches| watches.seen.len() == watchers / STREAMS).await;
        streams.push(watches);
    }
    let after = resident_bytes(member);
    after.saturating_sub(before) / watchers as u64
}

/// An idle watcher costs at most half of what it costs etcd, and less than 1 KiB (reliability.md 4.4).
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn fifty_thousand_idle_watchers_cost_at_most_half_of_etcds() {
    let Some(real) = oracle("fifty_thousand_idle_watchers_cost_at_most_half_of_etcds") else { return };
    let ours = Cluster::ours(1, &[]).await;
    let ours = bytes_a_watcher(&ours, 50_000).await;
    let theirs = Cluster::start(&[Program::Etcd(real.etcd.clone())], &[]).await;
    let theirs = bytes_a_watcher(&theirs, 50_000).await;
    println!("{ours} bytes a watcher, {theirs} at etcd");
    assert!(ours <= 512 && ours * 2 <= theirs, "{ours} bytes a watcher, {theirs} at etcd");
}

/// One side of the comparison with etcd.
struct Side {
    cluster: Cluster,
    kv: KvClient<Channel>,
    streams: Vec<Watches>,
}

impl Side {
    async fn start(program: Program) -> Side {
        let cluster = Cluster::start(&[program], &["--unsafe-no-fsync"]).await;
        let channel = cluster.members[0].connect().await.expect("a connection");
        let mut streams = Vec::new();
        for _ in 0..3 {
            streams.push(Watches::open(channel.clone(), on("k", "l")).await.expect("a stream"));
        }
        Side { kv: KvClient::new(channel), cluster, streams }
    }

    /// What every watch saw so far; header revisions and how events are packed are each program's own affair.
    fn told(&self) -> Vec<BTreeMap<i64, Seen>> {
        let plain = |seen: &Seen| Seen { bookmark: 0, ..seen.clone() };
        self.streams.iter().map(|stream| stream.seen.iter().map(|(id, seen)| (*id, plain(seen))).collect()).collect()
    }
}

struct Dice(u64);

impl Dice {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % bound
    }
}

async fn settle(ours: &mut Side, theirs: &mut Side, step: u64) {
    let deadline = std::time::Instant::now() + crate::support::PATIENCE;
    loop {
        for stream in ours.streams.iter_mut().chain(&mut theirs.streams) {
            while stream.poll().await {}
        }
        let (mine, real) = (ours.told(), theirs.told());
        if mine == real {
            return;
        }
        if std::time::Instant::now() > deadline {
            for (mine, real) in mine.iter().zip(&real) {
                for (id, seen) in real {
                    assert_eq!(mine.get(id), Some(seen), "watch {id}: ours left, etcd right, step {step}");
                }
                assert_eq!(mine.len(), real.len());
            }
        }
    }
}

/// The same writes and the same watches at ours and at the real 3.5.1 give the same events, ends and reasons.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn random_watches_see_what_they_see_at_etcd() {
    let Some(real) = oracle("random_watches_see_what_they_see_at_etcd") else { return };
    let mut ours = Side::start(Program::Ours).await;
    let mut theirs = Side::start(Program::Etcd(real.etcd.clone())).await;
    let mut dice = Dice(7);
    let (mut revision, mut compacted) = (1, 0);
    for step in 0..600 {
        let key = |dice: &mut Dice| format!("k{}", dice.below(6));
        match dice.below(20) {
            0..9 => {
                let request = PutRequest {
                    key: key(&mut dice).into(),
                    value: format!("v{step}").into(),
                    ..PutRequest::default()
                };
                for side in [&mut ours, &mut theirs] {
                    let header = side.kv.put(request.clone()).await.expect("a put").into_inner().header;
                    revision = header.expect("a header").revision;
                }
            }
            9..12 => {
                let mut request = DeleteRangeRequest { key: key(&mut dice).into(), ..Default::default() };
                if dice.below(3) == 0 {
                    request.range_end = key(&mut dice).into();
                }
                for side in [&mut ours, &mut theirs] {
                    let header = side.kv.delete_range(request.clone()).await.expect("an answer").into_inner().header;
                    revision = header.expect("a header").revision;
                }
            }
            12..14 => {
                let first = dice.below(4);
                let puts = (first..first + 3).map(|at| {
                    let put = PutRequest { key: format!("k{at}").into(), value: "t".into(), ..PutRequest::default() };
                    RequestOp { request: Some(Op::RequestPut(put)) }
                });
                let request = TxnRequest { success: puts.collect(), ..TxnRequest::default() };
                for side in [&mut ours, &mut theirs] {
                    let header = side.kv.txn(request.clone()).await.expect("an answer").into_inner().header;
                    revision = header.expect("a header").revision;
                }
            }
            14..18 => {
                let stream = dice.below(3) as usize;
                let range_end = match dice.below(4) {
                    0 => key(&mut dice),
                    1 => "\0".to_owned(),
                    _ => String::new(),
                };
                let past = |dice: &mut Dice| dice.below(revision as u64) as i64 + 1;
                // A negative one is refused since 3.6 only.
                let start_revision = match dice.below(5) {
                    0 | 1 => 0,
                    2 | 3 => past(&mut dice),
                    _ => revision + 1 + dice.below(9) as i64,
                };
                // At the compaction itself 3.5.1 does not show a deletion (etcd 19179).
                let start_revision = start_revision + i64::from(start_revision == compacted && compacted > 0);
                let request = WatchCreateRequest {
                    start_revision,
                    prev_kv: dice.below(2) == 0,
                    fragment: dice.below(3) == 0,
                    filters: if dice.below(3) == 0 { vec![dice.below(2) as i32] } else { Vec::new() },
                    watch_id: if dice.below(4) == 0 { dice.below(12) as i64 } else { 0 },
                    ..on(&key(&mut dice), &range_end)
                };
                ours.streams[stream].create(request.clone());
                theirs.streams[stream].create(request);
                // A watch that begins now must begin at the same revision.
                settle(&mut ours, &mut theirs, step).await;
            }
            18 => {
                let (stream, id) = (dice.below(3) as usize, dice.below(12) as i64);
                ours.streams[stream].cancel(id);
                theirs.streams[stream].cancel(id);
                settle(&mut ours, &mut theirs, step).await;
            }
            _ if revision > compacted + 10 => {
                // What is still under way would see another history, or other pairs before.
                settle(&mut ours, &mut theirs, step).await;
                compacted = revision - 5;
                for side in [&mut ours, &mut theirs] {
                    let request = CompactionRequest { revision: compacted, physical: true };
                    side.kv.compact(request).await.expect("a compaction");
                }
            }
            _ => {}
        }
    }
    settle(&mut ours, &mut theirs, u64::MAX).await;
    let events: usize = ours.told().iter().flat_map(BTreeMap::values).map(|seen| seen.events.len()).sum();
    assert!(events > 2000, "only {events} events were compared");
    drop((ours.cluster, theirs.cluster));
}

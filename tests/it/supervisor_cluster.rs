//! Generated clusters under the supervisor: they serve, learners join, links are cut and healed, members are restarted one
//! by one, and chaos keeps its promise. Acceptance of issue 6, points 4 and "cluster".

use std::os::unix::process::CommandExt;
use std::process::Child;
use std::process::Command;
use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering;
use std::time::Duration;

use nix::sys::signal::Signal;
use nix::unistd::Pid;
use quorate::client::Client;
use quorate::client::Config;
use quorate::client::Deadline;
use quorate::proto::etcdserverpb::PutRequest;
use quorate::proto::etcdserverpb::RangeRequest;
use serde_json::Value;
use tempfile::TempDir;

use crate::support::eventually;
use crate::support::from_environment;

/// A cluster in a directory of its own. Whatever still runs at the end is ended.
struct Cluster {
    dir: TempDir,
    runtime: TempDir,
    /// What `--json` printed.
    plan: Value,
}

impl Cluster {
    fn generate(flags: &str) -> Cluster {
        let mut cluster = Cluster {
            dir: tempfile::tempdir().expect("a directory"),
            runtime: tempfile::tempdir().expect("a runtime directory"),
            plan: Value::Null,
        };
        let out = cluster.check(&format!("cluster --json {flags}"), 0);
        cluster.plan = serde_json::from_str(&out).unwrap_or_else(|error| panic!("{error}: {out}"));
        cluster
    }

    fn command(&self, words: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_quorate"));
        command.arg0("quorate").args(words).current_dir(self.dir.path()).stdin(Stdio::null());
        command.env("XDG_RUNTIME_DIR", self.runtime.path());
        command
    }

    /// Runs our binary to its end; words are separated by blanks.
    fn run(&self, line: &str) -> (Option<i32>, String, String) {
        let words: Vec<&str> = line.split_whitespace().collect();
        let output = self.command(&words).output().expect("it runs");
        let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
        (output.status.code(), text(output.stdout), text(output.stderr))
    }

    fn check(&self, line: &str, code: i32) -> String {
        let (found, out, err) = self.run(line);
        assert_eq!(found, Some(code), "{line}\n{out}\n{err}");
        if code == 0 { out } else { err }
    }

    /// The same without holding up what else the test does.
    async fn ask(&self, line: &str) -> (Option<i32>, String, String) {
        let words: Vec<String> = line.split_whitespace().map(str::to_owned).collect();
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        let output = tokio::process::Command::from(self.command(&words)).output().await.expect("it runs");
        let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
        (output.status.code(), text(output.stdout), text(output.stderr))
    }

    async fn done(&self, line: &str) -> String {
        let (code, out, err) = self.ask(line).await;
        assert_eq!(code, Some(0), "{line}\n{out}\n{err}\n{}", self.logs());
        out
    }

    /// What the members have said last, for a test that fails.
    fn logs(&self) -> String {
        self.run("supervisor logs -n 15").1
    }

    /// Names of processes by the role that they have now.
    async fn with_role(&self, role: &str) -> Vec<String> {
        let (_, out, err) = self.ask("supervisor ps --json").await;
        let status: Value = serde_json::from_str(&out).unwrap_or_else(|error| panic!("{error}: {out}{err}"));
        let processes = status["processes"].as_array().expect("a list");
        let those = processes.iter().filter(|process| process["member"]["role"] == role);
        those.map(|process| process["name"].as_str().expect("a name").to_owned()).collect()
    }

    async fn leader_among(&self, wanted: impl Fn(&str) -> bool) -> String {
        eventually("a leader", async || {
            let leaders = self.with_role("leader").await;
            leaders.iter().find(|name| wanted(name)).cloned().ok_or_else(|| format!("{leaders:?}"))
        })
        .await
    }

    fn endpoints(&self) -> Vec<String> {
        let list = self.plan["endpoints"].as_array().expect("endpoints");
        list.iter().map(|url| url.as_str().expect("a URL").to_owned()).collect()
    }

    fn client_url(&self, name: &str) -> String {
        let members = self.plan["members"].as_array().expect("members");
        let member = members.iter().find(|member| member["name"] == name).expect("a member");
        member["client_url"].as_str().expect("a URL").to_owned()
    }

    /// Flags of our client for this cluster, with certificates if it has them.
    fn ctl(&self, endpoints: &str) -> String {
        let tls = &self.plan["tls"];
        let file = |name: &str| tls[name].as_str().map(str::to_owned);
        let tls = match (file("ca"), file("cert"), file("key")) {
            (Some(ca), Some(cert), Some(key)) => format!("--cacert {ca} --cert {cert} --key {key}"),
            _ => String::new(),
        };
        format!("ctl --endpoints {endpoints} {tls}")
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        // Best effort: mostly nothing runs any more.
        let _ = self.run("supervisor down --force");
    }
}

/// Writes one key after another to whoever takes it, and remembers which writes were acknowledged.
struct Writer {
    stop: Arc<AtomicBool>,
    task: tokio::task::JoinHandle<Vec<u32>>,
}

impl Writer {
    fn start(endpoints: Vec<String>) -> Writer {
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let task = tokio::spawn(async move {
            let clients: Vec<Client> = endpoints
                .into_iter()
                .map(|endpoint| Client::open(Config::new(vec![endpoint])).expect("an endpoint"))
                .collect();
            let mut acknowledged = Vec::new();
            let mut number = 0_u32;
            while !stopped.load(Ordering::Relaxed) {
                number += 1;
                let request = PutRequest { key: key(number).into(), value: "v".into(), ..PutRequest::default() };
                let client = &clients[number as usize % clients.len()];
                if client.put(request, Deadline::after(Duration::from_secs(2))).await.is_ok() {
                    acknowledged.push(number);
                }
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            acknowledged
        });
        Writer { stop, task }
    }

    async fn end(self) -> Vec<u32> {
        self.stop.store(true, Ordering::Relaxed);
        self.task.await.expect("no panic")
    }
}

fn key(number: u32) -> String {
    format!("w/{number:06}")
}

/// Every acknowledged write is there.
async fn check_writes(cluster: &Cluster, acknowledged: &[u32], at_least: usize) {
    assert!(acknowledged.len() >= at_least, "{} writes were acknowledged\n{}", acknowledged.len(), cluster.logs());
    let client = Client::open(Config::new(cluster.endpoints())).expect("endpoints");
    let request = RangeRequest { key: "w/".into(), range_end: "w0".into(), keys_only: true, ..RangeRequest::default() };
    let found = eventually("all keys", async || {
        let deadline = Deadline::after(Duration::from_secs(5));
        client.range(request.clone(), deadline).await.map_err(|error| error.to_string())
    })
    .await;
    let found: std::collections::BTreeSet<Vec<u8>> = found.kvs.into_iter().map(|pair| pair.key.to_vec()).collect();
    let lost: Vec<&u32> = acknowledged.iter().filter(|number| !found.contains(key(**number).as_bytes())).collect();
    assert!(lost.is_empty(), "acknowledged and lost: {lost:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_generated_cluster_serves_and_its_learner_is_there_and_comes_back() {
    let cluster = Cluster::generate("--size 3 --learner 1");
    cluster.done("supervisor up -d --wait").await;
    let learners = eventually("the learner", async || {
        let learners = cluster.with_role("learner").await;
        if learners.is_empty() { Err("none".to_owned()) } else { Ok(learners) }
    })
    .await;
    assert_eq!(learners, ["m4"]);
    let ctl = cluster.ctl(&cluster.endpoints().join(","));
    cluster.done(&format!("{ctl} put k v")).await;
    let there = async || {
        let serializable =
            format!("{} get k --consistency=s --print-value-only", cluster.ctl(&cluster.client_url("m4")));
        let (_, out, err) = cluster.ask(&serializable).await;
        if out.trim() == "v" { Ok(()) } else { Err(format!("{out}{err}")) }
    };
    eventually("the value at the learner", &there).await;
    // A learner that has joined does not join again, also when there is nobody to ask.
    cluster.done("supervisor down").await;
    cluster.done("supervisor up -d --wait").await;
    eventually("the value after everything was down", there).await;
    let members = cluster.done(&format!("{ctl} member list")).await;
    assert_eq!(members.lines().count(), 4, "{members}");
    cluster.done("supervisor down").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_partitioned_leader_is_replaced_and_a_healed_one_follows() {
    // Over TLS nobody can read in a request who dials.
    let cluster = Cluster::generate("--size 3 --proxy-peers --tls");
    cluster.done("supervisor up -d --wait").await;
    cluster.leader_among(|_| true).await;
    // Whoever leads by then: on a busy machine that may be another one.
    let told = cluster.done("supervisor partition leader").await;
    let old = told.trim().strip_prefix("partition ").expect("its name").to_owned();
    assert!(cluster.done("supervisor links").await.contains(&format!("{old} -> ")));
    let new = cluster.leader_among(|name| name != old).await;
    let ctl = cluster.ctl(&cluster.client_url(&new));
    cluster.done(&format!("{ctl} put k v")).await;
    let cut_off = cluster.ctl(&cluster.client_url(&old));
    let (code, ..) = cluster.ask(&format!("{cut_off} --command-timeout=1s get k")).await;
    assert_eq!(code, Some(1), "whoever is cut off cannot know what was written");
    assert_eq!(cluster.done(&format!("{cut_off} get k --consistency=s")).await, "");
    assert_eq!(cluster.done("supervisor heal").await, "heal\n");
    assert_eq!(cluster.done("supervisor links").await, "everything passes\n");
    eventually("the old leader to follow", async || {
        let (_, out, err) = cluster.ask(&format!("{cut_off} --command-timeout=2s get k --print-value-only")).await;
        if out.trim() == "v" { Ok(()) } else { Err(format!("{out}{err}")) }
    })
    .await;
    let events = cluster.done("supervisor events").await;
    assert!(events.contains("partition") && events.contains("\"healed\""), "{events}");
    cluster.done("supervisor down").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rolling_restart_under_writes_loses_none_and_the_leader_goes_last() {
    let cluster = Cluster::generate("--size 3");
    cluster.done("supervisor up -d --wait").await;
    let writer = Writer::start(cluster.endpoints());
    let told = cluster.done("supervisor rolling-restart").await;
    let acknowledged = writer.end().await;
    let restarted: Vec<&str> = told.lines().filter(|line| line.starts_with("restarting")).collect();
    assert_eq!(restarted.len(), 3, "{told}");
    assert!(restarted[2].contains("(leader)") && !restarted[..2].concat().contains("(leader)"), "{told}");
    check_writes(&cluster, &acknowledged, 3).await;
    // With one member away no other may go.
    cluster.done("supervisor stop followers").await;
    let (code, _, err) = cluster.ask("supervisor rolling-restart --timeout 200ms").await;
    assert_eq!(code, Some(1));
    assert!(err.contains("2 are needed") && err.contains("nothing was restarted"), "{err}");
    cluster.done("supervisor down").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn chaos_of_a_seed_keeps_the_quorum_and_takes_everything_back() {
    let cluster = Cluster::generate("--size 3 --proxy-peers");
    cluster.done("supervisor up -d --wait").await;
    let writer = Writer::start(cluster.endpoints());
    let seconds = from_environment("QUORATE_CHAOS_SECONDS", 6);
    let line = format!("supervisor chaos --seed 7 --keep-quorum --interval 400ms --duration {seconds}s");
    let told = cluster.done(&line).await;
    let acknowledged = writer.end().await;
    assert!(told.contains("all members are well"), "{told}");
    let planned = |told: &str| -> Vec<String> {
        let lines = told.lines().filter_map(|line| line.split_once("planned at").map(|(_, plan)| plan.to_owned()));
        lines.collect()
    };
    assert!(planned(&told).len() > 5 && told.contains(" for "), "{told}");
    check_writes(&cluster, &acknowledged, 10).await;
    assert_eq!(cluster.done("supervisor links").await, "everything passes\n");
    let again = cluster.done("supervisor chaos --seed 7 --keep-quorum --interval 400ms --duration 1s").await;
    assert_eq!(planned(&again), planned(&told)[..planned(&again).len()], "one seed makes the same choices");
    let (code, _, err) = cluster.ask("supervisor chaos --faults compact").await;
    assert_eq!(code, Some(1));
    assert!(err.contains("compact cannot be done"), "{err}");
    let events = cluster.done("supervisor events").await;
    assert!(events.contains("\"fault\"") && events.contains("seed 7"), "{events}");
    cluster.done("supervisor down").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn members_are_replaced_removed_added_and_promoted_as_long_as_there_is_a_quorum() {
    let cluster = Cluster::generate("--size 3");
    cluster.done("supervisor up -d --wait").await;
    let ctl = cluster.ctl(&cluster.client_url("m3"));
    cluster.done(&format!("{ctl} put k v")).await;
    let listed = async || cluster.done(&format!("{ctl} member list")).await;
    let id_of = |list: &str, name: &str| {
        let line = list.lines().find(|line| line.contains(&format!(" {name},"))).unwrap_or_else(|| panic!("{list}"));
        line.split(',').next().expect("an id").to_owned()
    };
    let has_value = async |name: &str| {
        let get = format!("{} get k --consistency=s --print-value-only", cluster.ctl(&cluster.client_url(name)));
        eventually("the value at the new member", async || {
            let (_, out, err) = cluster.ask(&get).await;
            if out.trim() == "v" { Ok(()) } else { Err(format!("{out}{err}")) }
        })
        .await;
    };

    // Restarted with clean data it is another member, with everything that the others have.
    let old = id_of(&listed().await, "m1");
    let out = cluster.done("supervisor restart m1 --clean").await;
    assert!(out.contains(&format!("{old} removed, added as ")), "{out}");
    has_value("m1").await;
    let list = listed().await;
    assert!(list.lines().count() == 3 && id_of(&list, "m1") != old, "{list}");
    // It stays one when it is started again.
    cluster.done("supervisor restart m1").await;
    cluster.done("supervisor wait --timeout 60s").await;

    let out = cluster.done("supervisor member remove m2").await;
    assert!(out.contains("removed from the cluster"), "{out}");
    assert_eq!(listed().await.lines().count(), 2);
    let (code, _, err) = cluster.ask("supervisor member remove m1").await;
    assert_eq!(code, Some(0), "{err}");
    let (code, _, err) = cluster.ask("supervisor member remove m3").await;
    assert_eq!(code, Some(1));
    assert!(err.contains("no quorum") || err.contains("are needed"), "{err}");
    let (code, _, err) = cluster.ask("supervisor member remove nosuch").await;
    assert!(code == Some(4) && err.contains("nosuch"), "{err}");

    let out = cluster.done("supervisor member add m2 --learner").await;
    assert!(out.contains(" without a vote, "), "{out}");
    assert_eq!(cluster.with_role("learner").await, ["m2"]);
    let (code, _, err) = cluster.ask("supervisor member add m2").await;
    assert!(code == Some(1) && err.contains("it is a member already"), "{err}");
    cluster.done("supervisor member promote m2").await;
    has_value("m2").await;
    // Two members are a quorum only together.
    let (code, _, err) = cluster.ask("supervisor member replace m2").await;
    assert_eq!(code, Some(1));
    assert!(err.contains("without it 1 of 2 voting members would be up, and 2 are needed"), "{err}");
    cluster.done("supervisor member add m1").await;
    assert_eq!(listed().await.lines().count(), 3);

    // With all of them clean the cluster begins anew.
    cluster.done("supervisor restart all --clean").await;
    cluster.done("supervisor wait --timeout 60s").await;
    assert_eq!(cluster.done(&format!("{ctl} get k")).await, "");
    assert_eq!(listed().await.lines().count(), 3);
    cluster.done("supervisor down").await;
}

struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        // Best effort: mostly it has ended.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn run_starts_what_it_has_written_and_nothing_is_overwritten() {
    let cluster = Cluster::generate("--size 1 -f Other");
    let text = std::fs::read_to_string(cluster.dir.path().join("Other")).expect("a Procfile");
    let err = cluster.check("cluster --size 1 -f Other", 1);
    assert!(err.contains("Other is there already"), "{err}");
    assert_eq!(std::fs::read_to_string(cluster.dir.path().join("Other")).expect("a Procfile"), text);
    let err = cluster.check("cluster --size 11", 2);
    assert!(err.contains("11"), "{err}");

    let mut command = cluster.command(&["cluster", "--size", "1", "--run", "--data-root", "d"]);
    let output = std::fs::File::create(cluster.dir.path().join("output")).expect("a file");
    command.stdout(output.try_clone().expect("one file, twice")).stderr(output);
    let mut running = Running(command.spawn().expect("it starts"));
    let printed = || std::fs::read_to_string(cluster.dir.path().join("output")).unwrap_or_default();
    let served = eventually("the member to serve", async || {
        let line = printed().lines().find_map(|line| line.strip_prefix("export ENDPOINTS=").map(str::to_owned));
        let endpoint = line.ok_or_else(printed)?;
        let (code, out, err) = cluster.ask(&format!("ctl --endpoints {endpoint} put k v")).await;
        if code == Some(0) { Ok(out) } else { Err(format!("{err}{}", printed())) }
    })
    .await;
    assert_eq!(served, "OK\n");
    let err = cluster.check("cluster --size 1 --force --data-root d", 1);
    assert!(err.contains("locked by another process"), "{err}");
    let pid = Pid::from_raw(i32::try_from(running.0.id()).expect("pids fit"));
    nix::sys::signal::kill(pid, Signal::SIGTERM).expect("it runs");
    running.0.wait().expect("it ends");
    assert!(cluster.dir.path().join("d/m1/member").is_dir());
    cluster.check("cluster --size 1 --force --data-root d", 0);
    assert!(!cluster.dir.path().join("d/m1").exists(), "an old member's data is not the new one's");
}

/// `check` and `export`, on the command line.
#[test]
fn a_generated_procfile_is_checked_and_exported() {
    let cluster = Cluster::generate("--size 3 --learner 1 --base-port 20000");
    let table = cluster.check("supervisor check --strict", 0);
    assert!(table.starts_with("NAME") && table.contains("\nm4 ") && table.contains("quorate cluster join"), "{table}");
    for (format, files) in [("systemd", 5), ("supervisord", 1), ("compose", 1), ("kubernetes", 1)] {
        let written = cluster.check(&format!("supervisor export {format} out-{format}"), 0);
        assert_eq!(written.lines().count(), files, "{written}");
        let again = cluster.dir.path().join(written.lines().next().expect("a file"));
        let before = std::fs::read(&again).expect("a file");
        cluster.check(&format!("supervisor export {format} out-{format}"), 0);
        assert_eq!(std::fs::read(&again).expect("a file"), before, "the same each time");
    }
    let err = cluster.check("supervisor export runit out", 1);
    assert!(err.contains("there is no format \"runit\""), "{err}");
    std::fs::write(cluster.dir.path().join("Procfile"), "a: x\nb:\nprose\n").expect("a Procfile");
    cluster.check("supervisor check", 0);
    let err = cluster.check("supervisor check --strict", 1);
    assert!(err.contains("Procfile:2: process \"b\" has an empty command") && err.contains("Procfile:3:"), "{err}");
    let (_, found, _) = cluster.run("supervisor check -l b");
    assert!(found.contains("\nb ") && !found.contains("\na "), "{found}");
}

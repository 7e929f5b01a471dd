//! `quorate torture` as its users run it: clean over clusters that keep their promises, and not over others.
//!
//! Longer: `target/release/quorate torture --duration 30m --seed 7`, or QUORATE_TORTURE_SECONDS for the runs in here.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::path::PathBuf;
use std::process::Child;
use std::process::Command;
use std::process::Output;
use std::process::Stdio;

use nix::sys::signal::Signal;
use nix::sys::signal::kill;
use nix::unistd::Pid;
use serde_json::Value;
use tempfile::TempDir;

use crate::oracle::oracle;
use crate::support::eventually;
use crate::support::skipped;

fn torture(dir: &Path, words: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_quorate"));
    command.arg("torture").arg("--dir").arg(dir).args(words).stdin(Stdio::null());
    command
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn seconds(default: &str) -> String {
    format!("{}s", std::env::var("QUORATE_TORTURE_SECONDS").unwrap_or(default.to_owned()))
}

fn report(output: &Output) -> Value {
    let said = (text(&output.stdout), text(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{error}: {said:?}"))
}

/// How often a run is repeated at most, three times as long each time, until enough was done in it.
const REPEATS_MAX: u32 = 2;

/// A run that must find nothing, and leave nothing. On a machine that hardly lets the members run it does too little to
/// show anything: then a longer one must do.
fn clean(seed: &str, faults: &str, more: &[&str]) -> Value {
    let mut repeat = 0;
    loop {
        let report = clean_run(seed, faults, more, 3_u32.pow(repeat));
        match enough(&report, more) {
            Ok(()) => return report,
            Err(what) => assert!(repeat < REPEATS_MAX, "{what}: {report:#}"),
        }
        repeat += 1;
    }
}

/// One run of the usual length times `factor`, whatever it came to do.
fn clean_run(seed: &str, faults: &str, more: &[&str], factor: u32) -> Value {
    let mut dir = tempfile::tempdir().expect("a directory");
    let usual: u32 = seconds("8").trim_end_matches('s').parse().expect("a number of seconds");
    let duration = format!("{}s", usual * factor);
    let words = [&["--seed", seed, "--faults", faults, "--duration", &duration, "--json"], more].concat();
    let output = torture(dir.path(), &words).output().expect("it runs");
    if output.status.code() != Some(0) {
        // What was found is there.
        dir.disable_cleanup(true);
        panic!("{}\n{}{}", output.status, text(&output.stdout), text(&output.stderr));
    }
    let report = report(&output);
    assert_eq!(report["settled"], true, "{report:#}");
    // Logs of members that are gone were read before.
    assert!(!report["notes"].to_string().contains("no member's log has"), "{report:#}");
    assert!(report["faults"].as_object().is_some_and(|faults| !faults.is_empty()), "{report:#}");
    assert_eq!(std::fs::read_dir(dir.path()).expect("it is there").count(), 0, "something was left behind");
    report
}

/// Whether there was something of everything, or of what there was too little.
fn enough(report: &Value, more: &[&str]) -> Result<(), String> {
    let replied = |kind: &str| report["operations"][kind]["replied"].as_u64().unwrap_or_default();
    let told = |name: &str| report[name].as_u64().unwrap_or_default();
    let responses_min = if more.contains(&"--watchers") { 0 } else { 100 };
    let locks_min = if more.contains(&"--lockers") { 0 } else { 3 };
    let counts = [
        ("puts", replied("put"), 20),
        ("transactions", replied("txn"), 5),
        ("linearizable ranges", replied("linearizable range"), 20),
        ("leases", replied("lease grant"), 5),
        ("renewals", told("renewals"), 10),
        ("log entries", told("log_entries"), 50),
        ("watch responses", told("watch_responses"), responses_min),
        ("locks", told("locks_granted"), locks_min),
    ];
    match counts.iter().find(|(_, count, min)| *min > 0 && count <= min) {
        Some((what, count, min)) => Err(format!("{count} {what}, which should be more than {min}")),
        None => Ok(()),
    }
}

#[test]
fn kills_pauses_and_restarts_break_no_promise() {
    clean("1", "kill,pause,restart,compact", &[]);
}

#[test]
fn partitions_and_late_messages_break_no_promise() {
    clean("2", "partition,delay,kill,compact", &[]);
}

#[test]
fn five_members_with_little_to_share_break_no_promise() {
    clean("3", "kill,partition,pause,compact", &["--members", "5", "--keys", "3", "--clients", "12"]);
}

#[test]
fn a_lone_client_of_a_lone_member_is_promised_the_same() {
    clean("4", "kill,restart,compact", &["--members", "1", "--clients", "1", "--lockers", "0"]);
    clean("5", "kill,pause,compact", &["--members", "1", "--clients", "3"]);
}

#[test]
fn members_that_come_and_go_break_no_promise() {
    let report = clean("7", "member,kill,partition", &[]);
    assert!(report["faults"]["member"].as_u64() > Some(0), "{report:#}");
}

/// Whether file systems can be made and mounted here; says aloud that `test` is skipped if not.
fn may_mount(test: &str) -> bool {
    if !nix::unistd::geteuid().is_root() {
        skipped(test, "only root may mount file systems");
        return false;
    }
    let tried = Command::new("mkfs.ext4").arg("-V").stderr(Stdio::null()).status();
    let there = tried.is_ok_and(|status| status.success());
    if !there {
        skipped(test, "mkfs.ext4 cannot be had");
    }
    there
}

#[test]
fn full_disks_and_power_cuts_break_no_promise() {
    if may_mount("full_disks_and_power_cuts_break_no_promise") {
        clean("4", "power-cut,disk-full,kill,compact", &[]);
    }
}

/// Otherwise the test above shows nothing.
#[test]
fn a_member_that_does_not_sync_is_found_by_power_cuts() {
    if !may_mount("a_member_that_does_not_sync_is_found_by_power_cuts") {
        return;
    }
    let runs = tempfile::tempdir().expect("a directory");
    let own = Path::new(env!("CARGO_BIN_EXE_quorate"));
    let words =
        ["--faults", "power-cut", "--seed", "6", "--duration", "60s", "--members", "1", "--", "--unsafe-no-fsync"];
    found(runs.path(), own, &words);
}

/// 3.5.1 tells of progress on request before it has told the events up to there (mended in 3.5.8).
#[test]
fn what_is_wrong_with_real_etcds_watches_is_found() {
    let Some(oracle) = oracle("what_is_wrong_with_real_etcds_watches_is_found") else { return };
    let dir = tempfile::tempdir().expect("a directory");
    let etcd = oracle.etcd.to_str().expect("UTF-8");
    // Without its elections, see below.
    let run = ["--seed", "2", "--faults", "kill,compact", "--duration", "8s", "--json"];
    let words = [&run[..], &["--lockers", "2", "--binary", etcd]].concat();
    let output = torture(dir.path(), &words).output().expect("it runs");
    assert_eq!(output.status.code(), Some(1), "{}{}", text(&output.stdout), text(&output.stderr));
    let report = report(&output);
    let findings = report["findings"].as_array().expect("a list");
    let early = |finding: &Value| finding.as_str().is_some_and(|text| text.contains("told that it had seen revision"));
    assert!(!findings.is_empty() && findings.iter().all(early), "{report:#}");
}

#[test]
fn real_etcd_comes_out_clean() {
    let Some(oracle) = oracle("real_etcd_comes_out_clean") else { return };
    let etcd = oracle.etcd.to_str().expect("UTF-8");
    // Its elections believe in candidates whose keys are gone: only the first two ways to lock.
    let words = ["--binary", etcd, "--watchers", "0", "--lockers", "2"];
    clean("5", "kill,pause,partition,compact,member", &words);
}

/// A launcher in front of our own binary that does something to the data directory, `$data`, before each start.
fn launcher(dir: &TempDir, harm: &str) -> PathBuf {
    let path = dir.path().join("launcher");
    let own = env!("CARGO_BIN_EXE_quorate");
    let script = format!(
        "#!/bin/sh\nprevious=\nfor word in \"$@\"; do\n  [ \"$previous\" = --data-dir ] && data=$word\n  previous=$word\ndone\n\
         if [ -n \"$data\" ]; then\n{harm}\nfi\nexec {own} server \"$@\"\n"
    );
    std::fs::write(&path, script).expect("a script");
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).expect("a program");
    path
}

/// A run that must find something; its findings, and where it was kept.
fn found(dir: &Path, binary: &Path, words: &[&str]) -> (String, PathBuf) {
    let binary = ["--binary", binary.to_str().expect("UTF-8"), "--json"];
    let output = torture(dir, &[&binary, words].concat()).output().expect("it runs");
    assert_eq!(output.status.code(), Some(1), "{}{}", text(&output.stdout), text(&output.stderr));
    let report = report(&output);
    let again = report["again"].as_str().expect("the command that runs it again");
    assert!(again.starts_with("quorate torture ") && again.contains("--seed"), "{again}");
    let kept = PathBuf::from(report["kept"].as_str().expect("a place where it was kept"));
    (report["findings"].to_string(), kept)
}

/// Each start goes on from what the one before found: everything since is forgotten, as by a disk that does not sync.
#[test]
fn a_member_that_forgets_what_it_acknowledged_is_found_and_found_again() {
    let (dir, runs) = (tempfile::tempdir().expect("a directory"), tempfile::tempdir().expect("a directory"));
    let harm = "saved=$data.saved\n[ -d $data ] && cp -r $data $data.now\n\
                [ -d $saved ] && rm -rf $data && mv $saved $data\n[ -d $data.now ] && mv $data.now $saved";
    let binary = launcher(&dir, harm);
    let words = ["--members", "1", "--faults", "kill", "--seed", "1", "--duration", "12s"];
    let (findings, kept) = found(runs.path(), &binary, &words);
    assert!(findings.contains("committed another entry") || findings.contains("lost"), "{findings}");
    for name in ["run.json", "schedule.txt", "history.jsonl", "log.jsonl", "m1.log", "m1/data/member"] {
        assert!(kept.join(name).exists(), "{name} was not kept");
    }
    let again = torture(runs.path(), &["--judge", kept.to_str().expect("UTF-8"), "--json"]).output().expect("it runs");
    assert_eq!(again.status.code(), Some(1), "{}", text(&again.stderr));
    assert_eq!(report(&again)["findings"].to_string(), findings);
}

#[test]
fn a_member_that_starts_from_nothing_under_its_old_name_is_found() {
    let (dir, runs) = (tempfile::tempdir().expect("a directory"), tempfile::tempdir().expect("a directory"));
    let binary = launcher(&dir, "rm -rf $data");
    let words = ["--faults", "kill,restart", "--seed", "2", "--duration", "30s"];
    let (findings, _) = found(runs.path(), &binary, &words);
    assert!(findings.contains("ended by itself") || findings.contains("committed another entry"), "{findings}");
}

#[test]
fn wrong_words_are_refused_and_nothing_is_run() {
    let dir = tempfile::tempdir().expect("a directory");
    let check = |words: &[&str], expected: &[&str]| {
        let output = torture(dir.path(), words).output().expect("it runs");
        let said = text(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{words:?}: {said}");
        assert!(expected.iter().all(|word| said.contains(word)), "{words:?}: {said}");
    };
    check(&["--faults", "earthquake"], &["earthquake", "kill, pause", "power-cut"]);
    check(&["--binary", "/nonexistent/etcd"], &["/nonexistent/etcd"]);
    check(&["--duration", "soon"], &["--duration"]);
    assert_eq!(std::fs::read_dir(dir.path()).expect("it is there").count(), 0);
}

/// Processes whose command line names the directory, the torture itself aside.
fn members_below(dir: &Path) -> usize {
    let dir = dir.to_str().expect("UTF-8").to_owned();
    let processes = std::fs::read_dir("/proc").expect("Linux").flatten();
    let named = processes.filter(|process| {
        let words = std::fs::read(process.path().join("cmdline")).unwrap_or_default();
        let words = text(&words);
        words.contains(&dir) && words.contains("--data-dir")
    });
    named.count()
}

/// Started with a long way to go; all members run.
async fn under_way(dir: &Path) -> Child {
    let words = ["--duration", "10m", "--faults", "kill,partition", "--seed", "9", "--json"];
    let child = torture(dir, &words).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("it starts");
    eventually("three members", async || match members_below(dir) {
        3 => Ok(()),
        count => Err(format!("{count} members")),
    })
    .await;
    child
}

fn signal(child: &Child, signal: Signal) {
    let pid = Pid::from_raw(i32::try_from(child.id()).expect("pids fit"));
    kill(pid, signal).expect("it runs");
}

#[tokio::test]
async fn no_member_outlives_a_torture_that_is_killed() {
    let dir = tempfile::tempdir().expect("a directory");
    let mut child = under_way(dir.path()).await;
    signal(&child, Signal::SIGKILL);
    child.wait().expect("it ended");
    eventually("nobody", async || match members_below(dir.path()) {
        0 => Ok(()),
        count => Err(format!("{count} members outlived it")),
    })
    .await;
}

#[tokio::test]
async fn an_interrupted_run_is_judged_and_says_so() {
    let dir = tempfile::tempdir().expect("a directory");
    let child = under_way(dir.path()).await;
    // Some work to judge; how much is not the matter.
    eventually("a log with entries", async || {
        let runs = std::fs::read_dir(dir.path()).map_err(|error| error.to_string())?;
        let kept = runs.flatten().any(|run| run.path().join("m1/kept/0").exists());
        if kept { Ok(()) } else { Err("no log is kept yet".to_owned()) }
    })
    .await;
    signal(&child, Signal::SIGINT);
    let output = child.wait_with_output().expect("it ends");
    let report = report(&output);
    assert_eq!(output.status.code(), Some(0), "{report:#}");
    assert_eq!(report["interrupted"], true);
    assert!(report["notes"].to_string().contains("interrupted"), "{report:#}");
    assert_eq!(members_below(dir.path()), 0);
}

//! The binary under the names of the programs it stands in for: exit codes, and which stream says what.

use std::process::Command;

use crate::oracle::oracle;
use crate::support::named_program;

/// Exit code, stdout and stderr of a program.
fn run(program: &std::path::Path, words: &[&str]) -> (Option<i32>, String, String) {
    let done = Command::new(program).args(words).env_clear().output().expect("the program runs");
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (done.status.code(), text(&done.stdout), text(&done.stderr))
}

/// Started as `name` with `words`: that exit code, and how each stream begins.
fn check(name: &str, words: &[&str], code: i32, out: &str, err: &str) {
    let (_link, program) = named_program(name);
    let (found, stdout, stderr) = run(&program, words);
    let place = format!("{name} {words:?}: {stdout}{stderr}");
    assert_eq!(found, Some(code), "{place}");
    let begins = |text: &str, start: &str| if start.is_empty() { text.is_empty() } else { text.starts_with(start) };
    assert!(begins(&stdout, out), "stdout of {place}");
    assert!(begins(&stderr, err), "stderr of {place}");
}

#[test]
fn etcd_answers_to_its_name() {
    check("etcd", &["--version"], 0, "etcd Version: 3.7.1\nGit SHA: ", "");
    check("etcd", &["-version"], 0, "etcd Version: 3.7.1\nGit SHA: ", "");
    check("etcd", &["--nosuch"], 2, "", "flag provided but not defined: -nosuch\n");
    check("etcd", &["--name"], 2, "", "flag needs an argument: -name\n");
    check("etcd", &["--heartbeat-interval", "x"], 2, "", "invalid value \"x\" for flag -heartbeat-interval");
    let (_link, etcd) = named_program("etcd");
    assert_eq!(run(&etcd, &["--help"]).0, Some(0));
    assert_eq!(run(&etcd, &["extra"]).0, Some(1));
}

#[test]
fn etcdctl_answers_to_its_name() {
    check("etcdctl", &["version"], 0, "etcdctl version: 3.7.1\nAPI version: 3.7\n", "");
    check("etcdctl", &["--nosuch"], 1, "", "Error: unknown flag: --nosuch\n");
    check("etcdctl", &["nosuch"], 1, "", "Error: unknown command \"nosuch\" for \"etcdctl\"\n");
    check("etcdctl", &["put"], 128, "", "Error: put command needs 1 argument");
    check("etcdctl", &["get", "a", "--rev", "x"], 1, "", "Error: invalid argument \"x\" for \"--rev\" flag:");
}

#[test]
fn goreman_answers_to_its_name() {
    check("goreman", &["version"], 0, "0.3.19\n", "");
    check("goreman", &["-nosuch", "start"], 2, "", "flag provided but not defined: -nosuch\n");
    let (_link, goreman) = named_program("goreman");
    assert_eq!(run(&goreman, &["-f", "/nonexistent/Procfile", "start"]).0, Some(1));
    assert_eq!(run(&goreman, &["help"]).0, Some(0));
}

/// The exit codes for the same mistakes, asked of the real programs where they can be had.
#[test]
fn exit_codes_are_those_of_the_real_programs() {
    let Some(oracle) = oracle("exit_codes_are_those_of_the_real_programs") else { return };
    let (_etcd, etcd) = named_program("etcd");
    let (_etcdctl, etcdctl) = named_program("etcdctl");
    for words in [&["--version"][..], &["--nosuch"], &["--name"], &["--heartbeat-interval", "x"], &["extra"], &["-h"]] {
        assert_eq!(run(&etcd, words).0, run(&oracle.etcd, words).0, "etcd {words:?}");
    }
    let lines = [
        "version",
        "--nosuch",
        "nosuch",
        "",
        "put",
        "get",
        "del",
        "txn x",
        "compaction",
        "get a --rev x",
        "get a --consistency x",
        "get a b --prefix",
        "put a b -w table",
        "-w nosuch get a",
        "endpoint",
        "member",
        "get a --limit x",
        "--dial-timeout x get a",
        "help",
        "help put",
        "put --help",
        "member nosuch",
    ];
    for line in lines {
        let words: Vec<&str> = line.split_whitespace().collect();
        assert_eq!(run(&etcdctl, &words).0, run(&oracle.etcdctl, &words).0, "etcdctl {line}");
    }
}

//! What is asked of a running supervisor and takes effect later or at the end: pauses with an end, restarts that wait and
//! clean, ends that end everything, followers, the journal, and what is left to read of a supervisor that ended by itself.

use std::process::Command;
use std::process::Stdio;
use std::time::Duration;
use std::time::Instant;

use nix::sys::signal::Signal;
use serde_json::Value;

use crate::supervisor_control::Running;
use crate::supervisor_control::Stack;
use crate::support::PATIENCE;

/// Waits until this holds, and says what it saw last if it never does.
fn until(what: &str, mut holds: impl FnMut() -> Result<(), String>) {
    let start = Instant::now();
    while let Err(found) = holds() {
        assert!(start.elapsed() < PATIENCE, "waited for {what}: {found}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn until_state(stack: &Stack, name: &str, wanted: &str) {
    until(&format!("{name} to be {wanted}"), || {
        let state = stack.field(name, "state");
        if state == wanted { Ok(()) } else { Err(state.to_string()) }
    });
}

/// The process's letter in /proc; nothing once it is gone.
fn letter(pid: &str) -> Option<char> {
    let stat = std::fs::read_to_string(format!("/proc/{}/stat", pid.trim())).ok()?;
    stat.rsplit_once(") ")?.1.chars().next()
}

fn is_dead(pid: &str) -> bool {
    letter(pid).is_none_or(|letter| letter == 'Z')
}

#[test]
fn a_pause_ends_by_itself_and_the_end_of_one_does_not_end_the_next() {
    let stack = Stack::new("a: exec sleep 1000\n# @b grace=1h\nb: echo $$ >b.pid; exec sleep 1000\n");
    stack.check("up -d", 0);
    stack.check("pause a --for 3s", 0);
    stack.check("resume a", 0);
    // Stopped again, by another way: the first pause has no say in it.
    stack.check("kill a -s STOP", 0);
    stack.check("pause b --for 3s", 0);
    until_state(&stack, "b", "running");
    assert_eq!(stack.field("a", "state"), "paused", "the first pause began earlier and is over, too");
    // Who stands still can be stopped at once, whatever his grace.
    let pid = stack.file("b.pid", "\n");
    stack.check("pause b", 0);
    until("b to stand still", || match letter(&pid) {
        Some('T') => Ok(()),
        other => Err(format!("{other:?}")),
    });
    stack.check("stop b", 0);
    assert!(is_dead(&pid));
    stack.check("down", 0);
}

#[test]
fn a_restart_waits_and_cleans_and_a_later_stop_ends_the_wait() {
    let stack = Stack::new(
        "# @a data-dir=data\na: if test -e data/old; then echo old; else echo new; fi >>found; mkdir -p data; \
         touch data/old; echo $$ >>pids; exec sleep 1000\n# @b data-dir=.\nb: exec sleep 1000\nc: exec sleep 1000\n",
    );
    stack.check("up -d", 0);
    stack.file("found", "new\n");
    stack.file("pids", "\n");
    stack.check("restart a", 0);
    stack.file("found", "new\nold\n");
    until("the second start", || match stack.file("pids", "\n").lines().count() {
        2 => Ok(()),
        other => Err(other.to_string()),
    });
    stack.check("restart a --clean", 0);
    stack.file("found", "new\nold\nnew\n");
    // What would be a disaster, or cannot be known, is refused before anything is stopped.
    let before = stack.field("b", "restarts");
    let err = stack.check("restart b --clean", 1);
    assert!(err.contains("is not removed: we are in it"), "{err}");
    let err = stack.check("restart c --clean", 1);
    assert!(err.contains("its data directory is not known"), "{err}");
    assert_eq!((stack.field("b", "restarts"), stack.field("b", "state")), (before, "running".into()));
    assert!(stack.dir.path().join("Procfile").exists());

    stack.check("restart a --delay 1h --no-wait", 0);
    until_state(&stack, "a", "backoff");
    stack.check("stop a --timeout 30s", 0);
    assert_eq!(stack.field("a", "state"), "exited");
    // Nobody waits an hour for the end, either.
    stack.check("restart b --delay 1h --no-wait", 0);
    until_state(&stack, "b", "backoff");
    stack.check("down", 0);
}

#[test]
fn down_by_force_has_no_patience() {
    let stack = Stack::new("# @a grace=1h\na: trap '' TERM INT; echo $$ >pid; while :; do sleep 0.1; done\n");
    stack.check("up -d", 0);
    let pid = stack.file("pid", "\n");
    stack.check("down --force", 0);
    assert!(is_dead(&pid));
}

#[test]
fn the_end_of_one_ends_everything_where_that_is_asked_for() {
    // The first may end; the second may not, and its end is everybody's.
    let stack = Stack::new(
        "# @a can-exit\na: touch a-was-here\nb: until test -e a-was-here; do sleep 0.05; done; sleep 0.3; exit 4\n\
         c: sleep 30; touch late\n",
    );
    assert_eq!(stack.run("up --exit-on any-exit").0, Some(4));
    // A good end, too.
    stack.write("Procfile", "b: true\nc: sleep 30; touch late\n");
    assert_eq!(stack.run("up --exit-on any-exit").0, Some(0));
    assert!(!stack.dir.path().join("late").exists(), "c was not waited for");
    // But not for those who wait for failures alone.
    stack.write("Procfile", "b: true\nc: sleep 0.5; touch late; exit 6\nd: sleep 30; touch later\n");
    assert_eq!(stack.run("up --exit-on any-failure").0, Some(6));
    assert!(stack.dir.path().join("late").exists() && !stack.dir.path().join("later").exists());
}

#[test]
fn who_is_waited_for_is_stopped_last_on_request() {
    let ending = |name: &str, pause: &str| {
        format!(
            "{name}: trap 'sleep {pause}; echo {name} ends; exit 0' TERM; echo up >{name}.up; \
             while :; do sleep 0.02; done\n"
        )
    };
    let stack = Stack::new(&format!("# @b after=a\n{}{}", ending("a", "0"), ending("b", "0.3")));
    let mut running = stack.start("up --reverse-stop --time off");
    stack.file("a.up", "up");
    stack.file("b.up", "up");
    running.signal(Signal::SIGTERM);
    assert_eq!(running.wait(), Some(143));
    let text = std::fs::read_to_string(stack.dir.path().join("foreground.log")).expect("its output");
    let place = |part: &str| text.find(part).unwrap_or_else(|| panic!("{part}: {text}"));
    assert!(place("| b ends") < place("| a ends"), "{text}");
}

#[test]
fn followers_hear_what_they_asked_for() {
    let stack = Stack::new(
        "a: echo early; until test -e go; do sleep 0.05; done; echo noise; echo elected; exec sleep 1000\n\
         b: echo out; echo err 1>&2; exec sleep 1000\n",
    );
    stack.check("up -d --split", 0);
    until("the first lines", || match stack.check("logs --time off", 0) {
        text if text.contains("| early") && text.contains("| out") && text.contains("! err") => Ok(()),
        text => Err(text),
    });
    assert_eq!(stack.check("logs --stderr --time off", 0), "b      ! err\n");
    // Everything is older than that.
    assert_eq!(stack.check("logs a b --since 1ms --time off", 0), "");
    assert!(stack.check("logs a --since 1h --time off", 0).contains("early"));
    assert_eq!(stack.check("events -n 1", 0).lines().count(), 1);

    let output = |name: &str| std::fs::File::create(stack.dir.path().join(name)).expect("a file");
    let follow = |words: &[&str], name: &str| {
        let mut command = stack.command(words);
        Running(command.stdout(output(name)).stderr(Stdio::null()).spawn().expect("it starts"))
    };
    let mut events = follow(&["events", "-f"], "events");
    let mut logs = follow(&["logs", "-f", "--grep", "e[l]ected|early", "--time", "off"], "logs");
    stack.file("events", "\"started\"");
    stack.file("logs", "early");
    stack.write("go", "");
    stack.file("logs", "elected");
    stack.check("stop b", 0);
    let text = stack.file("events", "\"gone\"");
    let gone = text.lines().find(|line| line.contains("\"gone\"")).expect("checked above");
    assert!(gone.contains("\"name\":\"b\"") && gone.contains("exited"), "{gone}");
    stack.check("down", 0);
    assert_eq!((events.wait(), logs.wait()), (Some(0), Some(0)), "they end with what they follow");
    let read = |name: &str| std::fs::read_to_string(stack.dir.path().join(name)).expect("its output");
    assert_eq!(read("logs"), "a      | early\na      | elected\n");
    assert!(read("events").contains("ending: asked by pid "), "{}", read("events"));
}

#[test]
fn the_journal_is_a_file_where_one_is_named() {
    let stack = Stack::new("a: exit 3\n");
    assert_eq!(stack.run("up --journal journal.jsonl").0, Some(1));
    let text = std::fs::read_to_string(stack.dir.path().join("journal.jsonl")).expect("the journal");
    let records: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect();
    let numbers: Vec<u64> = records.iter().filter_map(|record| record["number"].as_u64()).collect();
    assert_eq!(numbers, (1..=records.len() as u64).collect::<Vec<_>>());
    let exit = records.iter().find(|record| record["name"] == "a" && !record["code"].is_null()).expect("its exit");
    assert_eq!((exit["code"].as_i64(), exit["asked"].as_bool()), (Some(3), Some(false)));
    assert!(exit["user_ms"].is_u64() && exit["system_ms"].is_u64(), "{exit}");
    let err = stack.check("up --journal no/where", 1);
    assert!(err.contains("no/where: no such file or directory"), "{err}");
}

#[test]
fn a_background_supervisor_has_a_session_of_its_own_and_leaves_its_last_words() {
    let stack = Stack::new("a: until test -e go; do sleep 0.05; done; echo last words; exit 3\nb: exec sleep 1000\n");
    stack.check("up -d --exit-on any-failure", 0);
    let pid = stack.json()["supervisor"]["pid"].to_string();
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).expect("it runs");
    let session = stat.rsplit_once(") ").and_then(|(_, rest)| rest.split(' ').nth(3)).expect("a session");
    assert_eq!(session, pid);
    let log = stack.home().join("supervisor.log");
    stack.write("go", "");
    // What it removes is removed before its lock.
    until("the end", || if log.with_file_name("lock").exists() { Err("locked".to_owned()) } else { Ok(()) });
    let text = std::fs::read_to_string(&log).expect("its last words");
    assert!(text.contains("| last words") && text.contains("a ended: exit status 3"), "{text}");
    stack.check("ps", 5);
    // The next one begins anew, and leaves nothing when it is asked to end.
    stack.write("Procfile", "b: exec sleep 1000\n");
    stack.check("up -d", 0);
    stack.check("down", 0);
    assert_eq!(stack.homes(), 0);
}

#[test]
fn whoever_waits_for_an_end_hears_whether_it_was_a_good_one() {
    let stack = Stack::new("a: exit 3\nb: true\nc: exec sleep 1000\n");
    stack.check("up -d", 0);
    stack.check("wait b --for exit --timeout 30s", 0);
    stack.check("wait a --for exit --timeout 30s", 1);
    stack.check("wait nosuch --for exit", 4);
    stack.check("down", 0);
}

/// A probe goes on after it has passed: three failures in a row, and no less, make a process unhealthy, until it is well.
/// What a probe leaves behind goes with it.
#[test]
fn a_ready_process_can_fall_ill_and_get_well() {
    let probe = "sleep 1000 & echo $! >left; if test -e flap; then rm flap; exit 1; fi; test ! -e ill && echo >>looks";
    let stack = Stack::new(&format!("# @a ready=exec=\"{probe}\"\na: exec sleep 1000\n"));
    stack.check("up -d --wait", 0);
    let looks = || std::fs::read(stack.dir.path().join("looks")).map_or(0, |bytes| bytes.len());
    let unhealthy = || stack.check("logs a --time off", 0).matches("is unhealthy").count();
    stack.write("flap", "");
    until("the failure", || if stack.dir.path().join("flap").exists() { Err("no look".to_owned()) } else { Ok(()) });
    let before = looks();
    until("a good look", || if looks() > before { Ok(()) } else { Err(before.to_string()) });
    assert_eq!((stack.field("a", "state"), unhealthy()), ("ready".into(), 0), "one failure is none");
    stack.write("ill", "");
    until_state(&stack, "a", "unhealthy");
    assert_eq!((stack.run("ps --short").0, unhealthy()), (Some(3), 1));
    std::fs::remove_file(stack.dir.path().join("ill")).expect("it is there");
    until_state(&stack, "a", "ready");
    let left = stack.file("left", "\n");
    stack.check("down", 0);
    assert!(is_dead(&left));
}

/// A command that does not exist, and all else that ends at once, is no process that is up.
#[test]
fn what_ends_at_once_is_not_taken_for_ready() {
    let stack = Stack::new("a: no-such-program --flag\nb: exec sleep 1000\n");
    until("the failure", || match stack.run("up -d --wait") {
        (Some(1), _, err) => {
            let told = err.contains("a failed: it has ended with exit code 127") && err.contains("not found");
            assert!(told, "{err}");
            Ok(())
        }
        // On a machine so busy that the shell has not even looked for the program.
        (_, out, err) => {
            stack.check("down", 0);
            Err(format!("{out}{err}"))
        }
    });
    assert_eq!(stack.homes(), 0, "nothing stays");
}

/// Trap 31 of supervisor.md: a script that we run asks us to stop others, and itself.
#[test]
fn a_process_may_stop_others_and_itself() {
    let stack = Stack::new(
        "a: quorate supervisor stop b >out 2>&1 && touch asked; quorate supervisor stop a; touch never\n\
         b: exec sleep 1000\nc: exec sleep 1000\n",
    );
    stack.check("up -d", 0);
    until_state(&stack, "a", "exited");
    assert_eq!((stack.field("b", "state"), stack.field("c", "state")), ("exited".into(), "running".into()));
    assert!(stack.dir.path().join("asked").exists() && !stack.dir.path().join("never").exists());
    stack.check("down", 0);
}

/// Ctrl-C at the terminal of `chaos`: everything is taken back, and it can be begun again.
#[test]
fn chaos_that_is_interrupted_takes_everything_back() {
    let stack = Stack::new("");
    let mut generate = Command::new(env!("CARGO_BIN_EXE_quorate"));
    generate.args(["cluster", "--size", "1", "--force"]).current_dir(stack.dir.path());
    let output = generate.output().expect("it runs");
    assert!(output.status.success(), "{output:?}");
    stack.check("up -d --wait", 0);
    let mut chaos = stack.start("chaos --seed 3 --faults pause --interval 100ms --duration 10m");
    until_state(&stack, "m1", "paused");
    let err = stack.check("rolling-restart", 1);
    assert!(err.contains("chaos or a rolling restart is under way"), "{err}");
    chaos.signal(Signal::SIGINT);
    chaos.wait();
    until("the end of it", || match stack.run("chaos --seed 3 --faults pause --interval 10s --duration 10ms") {
        (Some(0), ..) => Ok(()),
        (_, _, err) => Err(err),
    });
    assert_eq!(stack.field("m1", "state"), "ready");
    stack.check("down", 0);
}

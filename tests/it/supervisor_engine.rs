//! The engine under real processes: nothing survives, stops are bounded, policies, probes and dependencies hold.
//!
//! The checks of supervisor.md 4.8 that need no socket of our own: 1 to 4, 11 and 12.

use std::io::Read;
use std::path::PathBuf;
use std::process::Stdio;

use nix::sys::signal::Signal;
use quorate::supervisor::control::Verb;
use quorate::supervisor::control::client::call;

use crate::supervisor::Running;
use crate::supervisor::Stack;
use crate::supervisor::ended;
use crate::supervisor::ended_by_its_reader;
use crate::supervisor::gone;
use crate::supervisor::is_alive;
use crate::support::eventually;
use crate::support::free_port;
use crate::support::from_environment;
use crate::support::skipped;

/// One that ignores to be asked.
const STUBBORN: &str = "trap '' TERM INT HUP; echo $$ >NAME; while :; do sleep 0.1; done";

/// Children in every place where they could hide: the same group, another session, a parent that has ended, a cleared
/// environment, and with or without our pipe.
const HIDERS: [(&str, &str); 6] = [
    ("plain", "sh -c 'echo $$ >plain; exec sleep 1000' &"),
    ("session", "setsid sh -c 'echo $$ >session; exec sleep 1000' &"),
    ("quiet", "setsid sh -c 'echo $$ >quiet; exec sleep 1000' >/dev/null 2>&1 &"),
    ("double", "(setsid sh -c 'echo $$ >double; exec sleep 1000' &);"),
    ("daemon", "(setsid sh -c 'echo $$ >daemon; exec sleep 1000' >/dev/null 2>&1 </dev/null &);"),
    ("deaf", "(setsid sh -c 'trap \"\" TERM; echo $$ >deaf; while :; do sleep 0.1; done' &);"),
];

fn hiding() -> String {
    HIDERS.map(|(_, command)| command.to_owned()).join(" ")
}

/// Gone, or a zombie, which somebody will reap.
fn is_dead(pid: &str) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(") ").is_none_or(|(_, rest)| rest.starts_with('Z'))
}

async fn hiders(stack: &Stack) -> Vec<String> {
    let mut pids = Vec::new();
    for (name, _) in HIDERS {
        pids.push(stack.file(name).await);
    }
    assert!(pids.iter().all(|pid| is_alive(pid)), "{pids:?}");
    pids
}

/// Lines of one start to its end, natively and without times.
fn lines_of(stack: &Stack) -> (Option<i32>, Vec<String>, String) {
    let (code, out, err) = stack.run("quorate", &["-logtime=false", "start"]);
    (code, out.lines().map(str::to_owned).collect(), err)
}

/// The first of these lines with that text.
fn position(lines: &[String], text: &str) -> usize {
    let found = lines.iter().position(|line| line.contains(text));
    found.unwrap_or_else(|| panic!("no line has {text:?}:\n{}", lines.join("\n")))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_survives_wherever_it_hides() {
    for ending in [Signal::SIGTERM, Signal::SIGHUP, Signal::SIGKILL] {
        let stack = Stack::new(&format!("# @a grace=500ms\na: {} wait\n", hiding()));
        let running = stack.start("quorate", &["start"]);
        let pids = hiders(&stack).await;
        running.signal(ending);
        let (code, out, _) = running.wait();
        match ending {
            Signal::SIGKILL => assert_eq!(code, None),
            signal => assert_eq!(code, Some(128 + signal as i32), "{out}"),
        }
        for pid in pids {
            gone(&pid).await;
        }
    }
}

/// Nobody can say whose it is: it has cleared its environment and left its session, group and parent.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_orphan_without_any_mark_goes_when_we_go() {
    let stack =
        Stack::new("a: (env -i /usr/bin/setsid /bin/sh -c 'echo $$ >orphan; exec sleep 1000' &) ; exec sleep 1000\n");
    let running = stack.start("quorate", &["start"]);
    let orphan = stack.file("orphan").await;
    assert!(is_alive(&orphan));
    running.signal(Signal::SIGTERM);
    assert_eq!(running.wait().0, Some(143));
    gone(&orphan).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stop_of_one_process_ends_its_strays_and_only_those() {
    let stack = Stack::new(&format!(
        "# @a grace=500ms\na: {} wait\nb: setsid sh -c 'echo $$ >other; exec sleep 1000' & wait\n",
        hiding()
    ));
    let running = stack.start("quorate", &["start"]);
    let (pids, other) = (hiders(&stack).await, stack.file("other").await);
    assert_eq!(stack.run("quorate", &["run", "stop", "a"]), (Some(0), "".into(), "".into()));
    // The stop was answered: nothing of it is left already.
    let left: Vec<_> = HIDERS.iter().zip(&pids).filter(|(_, pid)| !is_dead(pid)).collect();
    assert!(left.is_empty(), "{left:?}");
    assert!(is_alive(&other));
    assert_eq!(stack.run("quorate", &["run", "status"]).1, " a\n*b\n");
    running.signal(Signal::SIGTERM);
    running.wait();
    gone(&other).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_stubborn_processes_are_waited_for_together_and_named() {
    let stubborn = |name: &str| STUBBORN.replace("NAME", name);
    let procfile = format!("# @* grace=2s\na: {}\nb: {}\n", stubborn("pa"), stubborn("pb"));
    let stack = Stack::new(&procfile);
    let running = stack.start("quorate", &["-logtime=false", "start"]);
    let (a, b) = (stack.file("pa").await, stack.file("pb").await);
    running.signal(Signal::SIGTERM);
    let (code, out, _) = running.wait();
    assert_eq!(code, Some(143), "{out}");
    assert!(!is_alive(&a) && !is_alive(&b));
    let blockers = format!("waiting for a (pid {a}, stopping, killed in ");
    let line = out.lines().find(|line| line.contains(&blockers)).unwrap_or_else(|| panic!("nobody was named: {out}"));
    assert!(line.contains(&format!("b (pid {b}, stopping, killed in ")), "one after another: {line}");
    for name in ["a", "b"] {
        assert!(out.contains(&format!("{name} ended as asked: signal: killed")), "{out}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_is_asked_twice_kills() {
    let stack = Stack::new(&format!("# @a grace=1h\na: {}\n", STUBBORN.replace("NAME", "pa")));
    let running = stack.start("quorate", &["start"]);
    let pid = stack.file("pa").await;
    running.signal(Signal::SIGINT);
    // Two of one kind that come at once are one.
    running.signal(Signal::SIGTERM);
    let (code, ..) = running.wait();
    assert!(matches!(code, Some(130 | 143)), "{code:?}");
    gone(&pid).await;
}

fn children_of(pid: u32) -> Vec<String> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
    text.split_ascii_whitespace().map(str::to_owned).collect()
}

fn is_zombie(pid: &str) -> bool {
    let stat = std::fs::read_to_string(PathBuf::from("/proc").join(pid).join("stat")).unwrap_or_default();
    stat.rsplit_once(") ").is_some_and(|(_, rest)| rest.starts_with('Z'))
}

fn open_files(pid: u32) -> usize {
    std::fs::read_dir(format!("/proc/{pid}/fd")).map_or(0, Iterator::count)
}

/// 1,000 restarts of supervisor.md 4.8, check 4; by hand with QUORATE_SUPERVISOR_CYCLES=5000.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn restarts_leave_neither_zombies_nor_open_files() {
    let cycles = from_environment("QUORATE_SUPERVISOR_CYCLES", 40);
    // Every start leaves an orphan that ends at once, and one that has to be found.
    let stack = Stack::new("a: (true &); (setsid sleep 1000 &); exec sleep 1000\n");
    let running = stack.start("quorate", &["start"]);
    stack.status("*a\n").await;
    let (pid, address) = (running.0.id(), format!("127.0.0.1:{}", stack.port));
    let restart = |times: u64| {
        for _ in 0..times {
            call(&address, Some(Verb::Restart), &["a".to_owned()]).expect("a restart");
        }
    };
    restart(5);
    let settled = || {
        eventually("no zombies", async || match children_of(pid).iter().any(|child| is_zombie(child)) {
            true => Err(format!("{:?}", children_of(pid))),
            false => Ok(open_files(pid)),
        })
    };
    let before = settled().await;
    restart(cycles);
    eventually("as many files as before", async || {
        let after = open_files(pid);
        // The connection of the last call may be open for a moment.
        if after <= before + 1 { Ok(()) } else { Err(format!("{before} before, {after} after {cycles} restarts")) }
    })
    .await;
    settled().await;
    // The guardian, the process, and its stray.
    eventually("only what belongs there", async || match children_of(pid).len() {
        0..=3 => Ok(()),
        _ => Err(format!("{:?}", children_of(pid))),
    })
    .await;
    running.signal(Signal::SIGTERM);
    assert_eq!(running.wait().0, Some(143));
}

#[test]
fn a_process_that_fails_is_started_again_until_it_flaps() {
    let stack = Stack::new("# @a restart=on-failure restart-max=3\na: echo run; exit 3\nb: true\n");
    let (code, lines, _) = lines_of(&stack);
    assert_eq!(code, Some(1), "{lines:?}");
    let runs = lines.iter().filter(|line| line.ends_with("| run")).count();
    assert_eq!(runs, 4, "{lines:?}");
    position(&lines, "a ends too often and is not started again");
    let stack = Stack::new("# @a restart=on-failure\na: test -e again && exit 0; touch again; exit 3\n");
    let (code, lines, _) = lines_of(&stack);
    assert_eq!(code, Some(0), "it ended well at last: {lines:?}");
    position(&lines, "a is started again in ");
}

#[test]
fn what_comes_after_waits_and_what_cannot_come_fails() {
    let stack = Stack::new(
        "# @c after=b:exited-ok\n# @b after=a\n# @a ready=log=\"line (two|three)\"\n\
         c: echo c-runs\nb: echo b-runs\na: echo line one; sleep 0.1; echo line two; sleep 0.3\n",
    );
    let (code, lines, _) = lines_of(&stack);
    assert_eq!(code, Some(0), "{lines:?}");
    let order = ["line two", "a is ready after", "b-runs", "b ended: exit status 0", "c-runs"];
    let places = order.map(|text| position(&lines, text));
    assert!(places[1..].is_sorted() && places[0] < places[2], "{lines:?}");
    let stack = Stack::new("# @b after=a:exited-ok\n# @c after=b\nc: echo never\nb: echo never\na: exit 7\n");
    let (code, lines, _) = lines_of(&stack);
    assert_eq!(code, Some(1), "{lines:?}");
    position(&lines, "b is not started: a has failed");
    position(&lines, "c is not started: b has failed");
    assert!(!lines.iter().any(|line| line.ends_with("never")), "{lines:?}");
}

#[test]
fn settings_that_cannot_be_are_refused_with_their_line() {
    let check = |procfile: &str, expected: &str| {
        let stack = Stack::new(procfile);
        let (code, out, err) = stack.run("quorate", &["start"]);
        assert_eq!((code, out.as_str()), (Some(1), ""), "{err}");
        assert!(err.contains(expected), "{err}");
        // goreman does not read them.
        assert_eq!(stack.run("goreman", &["start"]).0, Some(0));
    };
    check("a: true\n# @a colour=red\n", "Procfile:2: @a: unknown setting \"colour\"");
    check("a: true\nb: true\n# @a after=b\n# @b after=a\n", "line 3: a → b → a wait for each other");
    check("# @b ready=sd-notify\na: true\n", "Procfile:1: no process is named \"b\"");
}

#[test]
fn who_is_not_ready_in_time_is_stopped_and_says_why() {
    // The port is ours, so it answers; but it is not the process's.
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = listener.local_addr().expect("an address");
    let stack = Stack::new(&format!(
        "# @a ready=tcp={address} timeout=400ms\n# @b ready=exec=\"test -e nothing\" timeout=300ms\n\
         # @c ready=delay=1h\na: sleep 1000\nb: sleep 1000\nc: exit 0\n"
    ));
    let (code, lines, _) = lines_of(&stack);
    assert_eq!(code, Some(1), "{lines:?}");
    position(&lines, &format!("a: not ready within 400ms: {address} is held by another process"));
    position(&lines, "b: not ready within 300ms: test -e nothing: exit status: 1");
    position(&lines, "c: ended before it was ready (exit status 0)");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn members_are_ready_by_every_probe() {
    let program = env!("CARGO_BIN_EXE_quorate");
    let names = ["http", "tcp", "notify", "log", "silent"];
    let mut procfile = String::new();
    for name in names {
        let (client, peer) = (free_port(), free_port());
        let ready = match name {
            "http" => format!("# @http ready=http=http://127.0.0.1:{client}/health\n"),
            "tcp" => format!("# @tcp ready=tcp=127.0.0.1:{client}\n"),
            "notify" => "# @notify ready=sd-notify\n".to_owned(),
            "log" => "# @log ready=log=\"ready to serve\"\n".to_owned(),
            _ => String::new(),
        };
        let urls = format!(
            "--listen-client-urls http://127.0.0.1:{client} --advertise-client-urls http://127.0.0.1:{client} \
             --listen-peer-urls http://127.0.0.1:{peer} --initial-advertise-peer-urls http://127.0.0.1:{peer} \
             --initial-cluster {name}=http://127.0.0.1:{peer}"
        );
        procfile.push_str(&format!("{ready}{name}: {program} server --name {name} --data-dir data-{name} {urls}\n"));
    }
    let waits = names.map(|name| format!("{name}:ready")).join(",");
    procfile.push_str(&format!("# @last after={waits}\nlast: echo yes >all-ready; exec sleep 1000\n"));
    let stack = Stack::new(&procfile);
    let mut running = stack.start("quorate", &["start"]);
    let mut out = running.0.stdout.take().expect("piped");
    let reading = tokio::task::spawn_blocking(move || {
        let mut text = String::new();
        out.read_to_string(&mut text).map(|_| text)
    });
    assert_eq!(stack.file("all-ready").await, "yes");
    running.signal(Signal::SIGTERM);
    running.0.wait().expect("it ends");
    let out = reading.await.expect("no panic").expect("UTF-8");
    for name in names {
        assert!(out.contains(&format!("{name} is ready after ")), "{name}: {out}");
        // Ended by the signal that we sent: clean.
        assert!(out.contains(&format!("{name} ended as asked: signal: terminated")), "{name}: {out}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reader_that_leaves_ends_everything() {
    assert_eq!(ended_by_its_reader("quorate").await.code(), Some(1));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_terminal_that_is_closed_ends_everything() {
    let stack = Stack::new("a: echo $$ >pid; exec sleep 1000\n");
    let line = format!("exec {} supervisor -p {} start", env!("CARGO_BIN_EXE_quorate"), stack.port);
    let mut script = std::process::Command::new("script");
    script.args(["-qec", &line, "/dev/null"]).current_dir(stack.dir.path());
    let Ok(child) = script.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null()).spawn() else {
        return skipped("a_terminal_that_is_closed_ends_everything", "no `script` to make a terminal");
    };
    let script = Running(child);
    let pid = stack.file("pid").await;
    // The terminal goes with the program that holds it.
    script.signal(Signal::SIGKILL);
    gone(&pid).await;
    eventually("the supervisor to be gone", async || {
        let (_, _, err) = stack.run("quorate", &["run", "list"]);
        if err.contains("connection refused") { Ok(()) } else { Err(err) }
    })
    .await;
}

/// As process 1 of a container orphans come to it in any case, and a signal without a handler would do nothing.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn as_process_one_it_reaps_and_ends() {
    let works = std::process::Command::new("unshare").args(["--pid", "--fork", "--mount-proc", "true"]).output();
    if !works.is_ok_and(|output| output.status.success()) {
        return skipped("as_process_one_it_reaps_and_ends", "no namespace for processes without root");
    }
    as_process_one("quorate", &["supervisor", "-p", "PORT", "start"], Signal::SIGTERM, 143).await;
    as_process_one("quorate", &["supervisor", "up"], Signal::SIGINT, 130).await;
    as_process_one("quorate", &["supervisor", "up", "--exit-on", "never"], Signal::SIGTERM, 143).await;
    as_process_one("goreman", &["-p", "PORT", "start"], Signal::SIGINT, 0).await;
}

/// One process that ends by itself when it is asked, and has an orphan that ends before it.
async fn as_process_one(name: &str, words: &[&str], signal: Signal, code: i32) {
    let stack = Stack::new(
        "a: (setsid sh -c 'sleep 0.1' &); trap 'echo stopped; exit 0' INT TERM; echo $$ >pid; while :; do sleep 0.05; done\n",
    );
    // The name decides what the binary is.
    let program = stack.dir.path().join("bin").join(name);
    std::fs::create_dir(stack.dir.path().join("bin")).expect("a directory");
    std::os::unix::fs::symlink(env!("CARGO_BIN_EXE_quorate"), &program).expect("a link");
    let port = stack.port.to_string();
    let mut command = std::process::Command::new("unshare");
    command.args(["--pid", "--fork", "--kill-child", "--mount-proc"]).arg(program);
    command.args(words.iter().map(|word| if *word == "PORT" { port.as_str() } else { word }));
    command.current_dir(stack.dir.path()).env("XDG_RUNTIME_DIR", stack.dir.path()).stdin(Stdio::null());
    let running = Running(command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("it starts"));
    stack.file("pid").await;
    let unshare = running.0.id();
    let own = eventually("process 1", async || children_of(unshare).first().cloned().ok_or("none".to_owned())).await;
    let own: u32 = own.parse().expect("a pid");
    eventually("the orphan to be reaped", async || {
        let children = children_of(own);
        // The guardian and the process are left.
        if children.len() == 2 && !children.iter().any(|child| is_zombie(child)) {
            Ok(())
        } else {
            Err(format!("{children:?}"))
        }
    })
    .await;
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(own as i32), signal).expect("it is there");
    let (found, out, err) = running.wait();
    assert_eq!(found, Some(code), "{name} {words:?}\n{out}{err}");
    assert!(
        out.contains("| stopped") || out.contains("| \x1b[mstopped"),
        "the process was asked, not killed: {out}{err}"
    );
}

#[test]
fn a_working_directory_and_an_env_file_are_a_processs_own() {
    let stack = Stack::new("# @a cwd=sub env-file=.env.a\na: pwd; echo ONE=$ONE\n# @b cwd=nosuch\nb: true\n");
    std::fs::create_dir(stack.dir.path().join("sub")).expect("a directory");
    std::fs::write(stack.dir.path().join(".env.a"), "ONE=1\n").expect("an env file");
    let mut command = stack.command("quorate", &["-logtime=false", "start"]);
    let (code, out, _) = ended(command.output().expect("it runs"));
    assert_eq!(code, Some(1));
    assert!(out.contains("/sub\n") && out.contains("| ONE=1\n"), "{out}");
    assert!(out.contains("Failed to start b: chdir nosuch: not a directory"), "{out}");
}

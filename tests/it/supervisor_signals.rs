//! Signals in and out: what each does to the supervisor, what children inherit, who is asked how often, and who kills whom
//! when the supervisor or its guardian is killed (supervisor.md 4.2, 5.3, and traps 10, 14, 19 and 26).

use std::io::Write;
use std::os::unix::process::CommandExt;
use std::process::Child;
use std::process::Command;
use std::process::Stdio;
use std::sync::Mutex;

use nix::sys::signal::Signal;
use nix::unistd::Pid;

use crate::supervisor::Running;
use crate::supervisor::Stack;
use crate::supervisor::ended;
use crate::supervisor::ended_by_its_reader;
use crate::supervisor::gone;
use crate::supervisor::is_alive;
use crate::support::eventually;

fn send(pid: &str, signal: Signal) {
    let pid = Pid::from_raw(pid.parse().expect("a pid"));
    nix::sys::signal::kill(pid, signal).expect("it is there");
}

/// The field of /proc/pid/stat behind the name, from 0: the letter of the state, the parent, the group.
fn field(pid: &str, at: usize) -> Option<String> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    stat.rsplit_once(") ")?.1.split(' ').nth(at).map(str::to_owned)
}

/// The child of a supervisor that is its guardian.
async fn guardian_of(running: &Running) -> String {
    let pid = running.0.id().to_string();
    eventually("the guardian", async || {
        let entries = std::fs::read_dir("/proc").expect("a /proc").flatten();
        let mut pids = entries.filter_map(|entry| entry.file_name().into_string().ok());
        let is_guardian = |other: &String| {
            let line = std::fs::read(format!("/proc/{other}/cmdline")).unwrap_or_default();
            field(other, 1).as_ref() == Some(&pid) && line.split(|byte| *byte == 0).any(|word| word == b"__guardian")
        };
        pids.find(is_guardian).ok_or_else(|| "none".to_owned())
    })
    .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_signal_to_end_ends_with_its_code() {
    for signal in [Signal::SIGINT, Signal::SIGQUIT, Signal::SIGHUP] {
        for (personality, code) in [("quorate", Some(128 + signal as i32)), ("goreman", Some(0))] {
            let stack = Stack::new("a: echo $$ >pid; exec sleep 1000\n");
            let running = stack.start(personality, &["start"]);
            let pid = stack.file("pid").await;
            running.signal(signal);
            let (found, out, err) = running.wait();
            assert_eq!(found, code, "{personality} {signal}\n{out}{err}");
            gone(&pid).await;
        }
    }
}

/// Trap 26: a stopped supervisor would not read, and its children would stand still with it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stop_from_the_terminal_stops_nothing() {
    let stack = Stack::new("a: exec sleep 1000\n");
    let running = stack.start("quorate", &["start"]);
    stack.status("*a\n").await;
    running.signal(Signal::SIGTSTP);
    running.signal(Signal::SIGTERM);
    let running = Mutex::new(running);
    let status = eventually("the end", async || match running.lock().expect("no panic").0.try_wait() {
        Ok(Some(status)) => Ok(status),
        other => Err(format!("{other:?}")),
    })
    .await;
    assert_eq!(status.code(), Some(143));
}

/// Trap 19: under nohup, or as a background job of a shell, we are started with signals ignored. Our children are not, or
/// a stop would never reach them.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ignored_signals_are_not_handed_down() {
    for personality in ["quorate", "goreman"] {
        let stack = Stack::new("a: grep SigIgn /proc/self/status >ignored; exec sleep 1000\n");
        let start = stack.command(personality, &["start"]);
        let words: Vec<&str> = start.get_args().map(|word| word.to_str().expect("UTF-8")).collect();
        let line = format!("trap '' INT HUP QUIT TERM PIPE; exec -a {personality} $0 \"$@\"");
        let mut command = Command::new("bash");
        command.args(["-c", &line, env!("CARGO_BIN_EXE_quorate")]).args(words).current_dir(stack.dir.path());
        command.env("XDG_RUNTIME_DIR", stack.dir.path()).stdin(Stdio::null());
        let running = Running(command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("it starts"));
        let ignored = stack.file("ignored").await;
        let mask = ignored.split_whitespace().nth(1).and_then(|word| u64::from_str_radix(word, 16).ok());
        let mask = mask.unwrap_or_else(|| panic!("{ignored:?}"));
        let bits = [Signal::SIGINT, Signal::SIGHUP, Signal::SIGQUIT, Signal::SIGTERM, Signal::SIGPIPE];
        for signal in bits {
            assert_eq!(mask & (1 << (signal as i32 - 1)), 0, "{personality} hands down an ignored {signal}: {ignored}");
        }
        assert_eq!(stack.run("goreman", &["run", "stop-all"]).0, Some(0));
        running.wait();
    }
}

/// Trap 10, and whoever has lost the parent who would have asked him.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn everybody_is_asked_to_end_and_nobody_twice() {
    // `lost` has a parent that ends without asking; `led` has one that asks.
    let waits = |name: &str| {
        format!(
            "setsid sh -c 'trap \"echo asked >>{name}.asked; sleep 0.3; exit 0\" TERM; echo $$ >{name}; \
             while :; do sleep 1000 & wait $!; done'"
        )
    };
    let stack = Stack::new(&format!(
        "# @* grace=1h\na: {} & wait\nb: {} & trap 'kill -TERM $(cat led); wait; exit 0' TERM; while :; do wait; done\n",
        waits("lost"),
        waits("led")
    ));
    let running = stack.start("quorate", &["start"]);
    let pids = [stack.file("lost").await, stack.file("led").await];
    assert_eq!(stack.run("quorate", &["run", "stop-all"]).0, Some(0));
    for pid in pids {
        gone(&pid).await;
    }
    assert_eq!((stack.file("lost.asked").await, stack.file("led.asked").await), ("asked".into(), "asked".into()));
    drop(running);
}

/// The layers of supervisor.md 5.3, one by one: with the guardian asked to go, with the guardian killed, and for somebody of
/// a group whose environment says nothing.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_layer_holds_when_the_supervisor_is_killed() {
    let stack = Stack::new(
        "a: setsid sh -c 'echo $$ >stray; exec sleep 1000' & env -i /bin/sh -c 'echo $$ >nameless; exec sleep 1000' & \
         echo $$ >leader; wait\n",
    );
    let running = stack.start("quorate", &["start"]);
    let pids = [stack.file("stray").await, stack.file("nameless").await, stack.file("leader").await];
    let guardian = guardian_of(&running).await;
    for signal in [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP, Signal::SIGQUIT] {
        send(&guardian, signal);
    }
    running.signal(Signal::SIGKILL);
    for pid in pids.iter().chain([&guardian]) {
        gone(pid).await;
    }
    // Without a guardian the kernel still ends what we have started ourselves.
    let stack = Stack::new("a: echo $$ >leader; exec sleep 1000\n");
    let running = stack.start("quorate", &["start"]);
    let leader = stack.file("leader").await;
    send(&guardian_of(&running).await, Signal::SIGKILL);
    running.signal(Signal::SIGKILL);
    gone(&leader).await;
    // Nobody is left to remove what etcd's name was offered in, where the machine has no etcd itself.
    let offered = std::env::temp_dir().join(format!("quorate-{}", running.0.id()));
    let _ = std::fs::remove_dir_all(offered);
}

/// Somebody who is nobody's child, in a group of his own, with these variables.
struct Sleeper(Child);

impl Sleeper {
    fn new(mark: &str) -> Sleeper {
        let mut command = Command::new("sleep");
        command.arg("1000").env_clear().env("QUORATE_SUPERVISOR_ID", mark).process_group(0).stdin(Stdio::null());
        Sleeper(command.spawn().expect("it starts"))
    }

    fn pid(&self) -> String {
        self.0.id().to_string()
    }

    fn started(&self) -> String {
        field(&self.pid(), 19).expect("it runs")
    }

    fn is_killed(&mut self) -> bool {
        self.0.try_wait().expect("it is ours").is_some()
    }
}

impl Drop for Sleeper {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// The guardian alone: it is told whom to kill, and kills nobody else.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_guardian_kills_who_is_listed_or_marked_and_nobody_else() {
    let dir = tempfile::tempdir().expect("a directory");
    let links = dir.path().join("links");
    std::fs::create_dir(&links).expect("a directory");
    let sleepers = ["x", "x", "x", "x", "x", "x", "1-f.2.3", "1-ff.2.3"].map(Sleeper::new);
    let mut guardian = Command::new(env!("CARGO_BIN_EXE_quorate"));
    guardian.arg0("quorate").args(["supervisor", "__guardian", "1-f"]).arg(&links).stdin(Stdio::piped());
    let mut guardian = guardian.spawn().expect("it starts");
    let [group, left, orphan, gone_orphan, other, untold, ..] = &sleepers;
    let text = format!(
        "+{}\n+{}\n-{}\n*{} {}\n*{} {}\n/{} {}\n*{} 1\n",
        group.pid(),
        left.pid(),
        left.pid(),
        orphan.pid(),
        orphan.started(),
        gone_orphan.pid(),
        gone_orphan.started(),
        gone_orphan.pid(),
        gone_orphan.started(),
        // Somebody else has the pid by now.
        other.pid(),
    );
    assert!(is_alive(&untold.pid()));
    guardian.stdin.take().expect("piped").write_all(text.as_bytes()).expect("it reads");
    assert!(guardian.wait().expect("it ends").success());
    let sleepers = Mutex::new(sleepers);
    let killed = eventually("the dead", async || {
        let killed: Vec<bool> = sleepers.lock().expect("no panic").iter_mut().map(Sleeper::is_killed).collect();
        // The kernel has killed them; it may not have told us yet.
        if killed.iter().filter(|killed| **killed).count() >= 3 { Ok(killed) } else { Err(format!("{killed:?}")) }
    })
    .await;
    assert_eq!(killed, [true, false, true, false, false, false, true, false]);
    assert!(!links.exists());
}

/// Check 12 of supervisor.md 4.8 as goreman: it ends as goreman does, but leaves nobody.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn as_goreman_a_reader_that_leaves_is_a_broken_pipe_and_a_full_device_is_nothing() {
    use std::os::unix::process::ExitStatusExt;
    assert_eq!(ended_by_its_reader("goreman").await.signal(), Some(Signal::SIGPIPE as i32));
    let stack = Stack::new("a: echo one; touch done\n");
    let full = std::fs::File::options().write(true).open("/dev/full").expect("a device");
    let output = stack.command("goreman", &["start"]).stdout(full).output().expect("it runs");
    assert_eq!(ended(output), (Some(0), "".into(), "".into()));
    assert!(stack.dir.path().join("done").exists());
}

/// Not goreman's 0.0.0.0: whoever reaches the port controls the processes (supervisor.md 1.17, C2).
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn control_is_for_this_machine_unless_it_is_said_otherwise() {
    let reaches = |stack: &Stack, host: &str| std::net::TcpStream::connect((host, stack.port)).is_ok();
    let stack = Stack::new("a: exec sleep 1000\n");
    let _running = stack.start("goreman", &["start"]);
    stack.status("*a\n").await;
    assert!(reaches(&stack, "127.0.0.1") && !reaches(&stack, "127.0.0.2"));
    let stack = Stack::new("a: exec sleep 1000\n");
    std::fs::write(stack.dir.path().join(".env"), "GOREMAN_RPC_ADDR=127.0.0.2\n").expect("an env file");
    let _running = stack.start("goreman", &["start"]);
    eventually("the other address", async || match reaches(&stack, "127.0.0.2") {
        true => Ok(()),
        false => Err("refused".to_owned()),
    })
    .await;
    assert!(!reaches(&stack, "127.0.0.1"));
}

/// Check 8 of supervisor.md 4.8: what etcd's own files are made of (1.16), unchanged: paths from where we are, prose with
/// colons, an entry that is commented out, variables in front of the command, back quotes, pipes and `&&`, and an entry that
/// controls the others through our own command line.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn procfiles_as_etcd_has_them_run_unchanged() {
    let stack = Stack::new("unused: true\n");
    let dir = stack.dir.path();
    std::fs::create_dir_all(dir.join("tools/tester")).expect("a directory");
    std::fs::create_dir_all(dir.join("bin")).expect("a directory");
    std::os::unix::fs::symlink(env!("CARGO_BIN_EXE_quorate"), dir.join("bin/etcd")).expect("a link");
    let procfile = format!(
        "# Use with: goreman -f tools/tester/Procfile start\n\
         etcd1: NAME=\"one\" sh -c 'bin/etcd --version | head -1 >$NAME' && sleep 1000\n\
         etcd2: rm -rf old && echo `echo two`:`echo $PORT` >two && exec sleep 1000\n\
         #proxy: bin/etcd grpc-proxy start --endpoints=127.0.0.1:2379\n\
         \n\
         faults: sh tools/tester/faults.sh {}\n",
        stack.port
    );
    std::fs::write(dir.join("tools/tester/Procfile"), procfile).expect("a Procfile");
    // It starts again and again what may be running, as etcd's does.
    std::fs::write(
        dir.join("tools/tester/faults.sh"),
        "run() { goreman -p $1 -f tools/tester/Procfile run $2 $3 || exit 1; }\n\
         until test -s one && test -s two; do sleep 0.05; done\n\
         run $1 stop etcd1; run $1 status >stopped; run $1 start etcd1; run $1 start etcd2; run $1 restart etcd2\n\
         run $1 status >faults; exec sleep 1000\n",
    )
    .expect("a script");
    let words = ["-f", "tools/tester/Procfile", "start"];
    let running = stack.start("goreman", &words);
    assert_eq!(stack.file("stopped").await, "etcd1\n*etcd2\n*faults", "trimmed in front");
    eventually("the second status", async || {
        let text = std::fs::read_to_string(dir.join("faults")).unwrap_or_default();
        if text == "*etcd1\n*etcd2\n*faults\n" { Ok(()) } else { Err(text) }
    })
    .await;
    assert_eq!(stack.file("one").await, "etcd Version: 3.7.1");
    assert_eq!(stack.file("two").await, "two:5100");
    running.signal(Signal::SIGINT);
    assert_eq!(running.wait().0, Some(0));
}

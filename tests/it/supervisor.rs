//! The supervisor as a process: lines, control, exit codes, and nothing left behind whoever dies.

use std::io::Read;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Child;
use std::process::Command;
use std::process::ExitStatus;
use std::process::Output;
use std::process::Stdio;

use nix::sys::signal::Signal;
use nix::unistd::Pid;
use tempfile::TempDir;

use crate::support::eventually;
use crate::support::free_port;

/// A Procfile in a directory of its own and a control port.
pub struct Stack {
    pub dir: TempDir,
    pub port: u16,
}

impl Stack {
    pub fn new(procfile: &str) -> Stack {
        let dir = tempfile::tempdir().expect("a directory");
        std::fs::write(dir.path().join("Procfile"), procfile).expect("a Procfile");
        Stack { dir, port: free_port() }
    }

    /// Our binary as goreman, or as `quorate supervisor`.
    pub fn command(&self, personality: &str, words: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_quorate"));
        command.arg0(personality);
        if personality != "goreman" {
            command.arg("supervisor");
        }
        command.arg("-p").arg(self.port.to_string()).args(words).current_dir(self.dir.path()).env("PORT", "1");
        // What a killed supervisor leaves there goes with the directory.
        command.env("XDG_RUNTIME_DIR", self.dir.path());
        command.stdin(Stdio::null());
        command
    }

    pub fn run(&self, personality: &str, words: &[&str]) -> (Option<i32>, String, String) {
        ended(self.command(personality, words).output().expect("it runs"))
    }

    pub fn start(&self, personality: &str, words: &[&str]) -> Running {
        let mut command = self.command(personality, words);
        Running(command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("it starts"))
    }

    /// Waits until `run status` answers exactly this.
    pub async fn status(&self, expected: &str) {
        eventually("that status", async || {
            let (_, status, _) = self.run("goreman", &["run", "status"]);
            if status == expected { Ok(()) } else { Err(status) }
        })
        .await;
    }

    /// Waits until a child has written this file.
    pub async fn file(&self, name: &str) -> String {
        eventually(name, async || {
            let text = std::fs::read_to_string(self.dir.path().join(name)).map_err(|error| error.to_string())?;
            if text.is_empty() { Err("empty".to_owned()) } else { Ok(text.trim().to_owned()) }
        })
        .await
    }
}

pub struct Running(pub Child);

impl Running {
    pub fn signal(&self, signal: Signal) {
        let pid = Pid::from_raw(i32::try_from(self.0.id()).expect("pids fit"));
        nix::sys::signal::kill(pid, signal).expect("it is there");
    }

    pub fn wait(mut self) -> (Option<i32>, String, String) {
        let mut text = [String::new(), String::new()];
        self.0.stdout.take().expect("piped").read_to_string(&mut text[0]).expect("UTF-8");
        self.0.stderr.take().expect("piped").read_to_string(&mut text[1]).expect("UTF-8");
        let status = self.0.wait().expect("it ends");
        let [out, err] = text;
        (status.code(), out, err)
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // Best effort: mostly it has ended.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

pub fn ended(output: Output) -> (Option<i32>, String, String) {
    let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
    (output.status.code(), text(output.stdout), text(output.stderr))
}

pub fn is_alive(pid: &str) -> bool {
    Path::new("/proc").join(pid).exists()
}

pub async fn gone(pid: &str) {
    eventually("the child to be gone", async || if is_alive(pid) { Err(pid.to_owned()) } else { Ok(()) }).await;
}

/// How a supervisor ends whose output is read as by `head -1`: what it has started is gone by then.
pub async fn ended_by_its_reader(personality: &str) -> ExitStatus {
    let stack = Stack::new("a: echo $$ >pid; while :; do echo line; sleep 0.05; done\n");
    let mut running = stack.start(personality, &["start"]);
    let pid = stack.file("pid").await;
    let mut out = running.0.stdout.take().expect("piped");
    out.read_exact(&mut [0]).expect("a letter");
    drop(out);
    let status = running.0.wait().expect("it ends");
    gone(&pid).await;
    status
}

/// goreman's lines without their times, sorted: the order of different processes is chance.
fn timeless(out: &str) -> Vec<String> {
    let line = |line: &str| match line.find("m").filter(|_| line.starts_with("\x1b[")) {
        Some(at) if line.len() > at + 10 => format!("{}{}", &line[..=at], &line[at + 10..]),
        _ => line.to_owned(),
    };
    let mut lines: Vec<String> = out.lines().map(line).collect();
    lines.sort();
    lines
}

#[test]
fn the_bytes_and_exit_codes_are_goremans() {
    // transcripts/goreman-0.3.19: check.txt and start-end.txt.
    let stack = Stack::new("a: sleep 0.1; echo one; exit 3\nlonger-name: sleep 0.2; echo two 1>&2\n");
    assert_eq!(
        stack.run("goreman", &["check"]),
        (Some(0), "valid procfile detected (a, longer-name)\n".into(), "".into())
    );
    assert_eq!(stack.run("goreman", &["version"]), (Some(0), "0.3.19\n".into(), "".into()));
    let (code, out, _) = stack.run("goreman", &["start"]);
    let expected = [
        "\x1b[32m          a | \x1b[mStarting a on port 5000",
        "\x1b[32m          a | \x1b[mTerminating a",
        "\x1b[32m          a | \x1b[mone",
        "\x1b[36mlonger-name | \x1b[mStarting longer-name on port 5100",
        "\x1b[36mlonger-name | \x1b[mTerminating longer-name",
        "\x1b[36mlonger-name | \x1b[mtwo",
    ];
    assert_eq!((code, timeless(&out)), (Some(0), expected.map(str::to_owned).to_vec()));
    let (code, _, err) = stack.run("goreman", &["-exit-on-error", "start"]);
    assert_eq!((code, err.as_str()), (Some(1), "goreman: exit status 3\n"));
    let (code, out, err) = stack.run("goreman", &["run", "list"]);
    let refused = format!("goreman: dial tcp 127.0.0.1:{}: connect: connection refused\n", stack.port);
    assert_eq!((code, out.as_str(), err), (Some(1), "", refused));
    let (code, _, err) = stack.run("goreman", &["start", "nosuch"]);
    assert_eq!((code, err.as_str()), (Some(1), "goreman: unknown proc: nosuch\n"));
    let (code, _, err) = stack.run("goreman", &["-zz", "check"]);
    assert_eq!((code, err.lines().next()), (Some(2), Some("flag provided but not defined: -zz")));
    let (code, _, err) = stack.run("goreman", &["bogus"]);
    assert_eq!((code, err.lines().next()), (Some(0), Some("Tasks:")));
}

#[test]
fn natively_failures_are_in_the_exit_code() {
    let stack = Stack::new("a: exit 3\nb: true\n");
    let (code, out, _) = stack.run("quorate", &["start"]);
    assert_eq!(code, Some(1), "{out}");
    assert!(!out.contains('\x1b'), "no colours into a pipe: {out:?}");
    let (code, ..) = stack.run("quorate", &["bogus"]);
    assert_eq!(code, Some(2));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_running_stack_is_controlled_by_name() {
    let stack = Stack::new("web: exec sleep 1000\nworker: echo $PORT >port; exec sleep 1000\n");
    let running = stack.start("goreman", &["start"]);
    stack.status("*web\n*worker\n").await;
    assert_eq!(stack.file("port").await, "5100");
    let run = |words: &[&str]| stack.run("goreman", &[&["run"], words].concat());
    let fine = (Some(0), String::new(), String::new());
    assert_eq!(run(&["list"]), (Some(0), "web\nworker\n".into(), "".into()));
    assert_eq!(run(&["stop", "web"]), fine);
    assert_eq!(run(&["status"]).1, " web\n*worker\n");
    assert_eq!(run(&["start", "web"]), fine);
    assert_eq!(run(&["status"]).1, "*web\n*worker\n");
    assert_eq!(run(&["restart", "web", "worker"]), fine);
    assert_eq!(run(&["restart-all"]), fine);
    assert_eq!(run(&["status"]).1, "*web\n*worker\n");
    assert_eq!(run(&["stop", "nosuch"]), (Some(1), "".into(), "goreman: unknown proc: nosuch\n".into()));
    assert_eq!(run(&["start", "nosuch"]), (Some(1), "".into(), "goreman: unknown name: nosuch\n".into()));
    assert_eq!(run(&["bogus"]), (Some(1), "".into(), "goreman: unknown command\n".into()));
    running.signal(Signal::SIGTERM);
    assert_eq!(running.wait().0, Some(0));
    assert!(run(&["list"]).2.contains("connection refused"));
}

/// B50, goreman 39 and 27, foreman 94 and 628: grandchildren lived on after the stop, and the stop hung at a child that
/// would not go.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn b50_nothing_is_left_however_it_ends() {
    // A grandchild in the background, and a shell that ignores to be asked.
    let procfile = "a: sleep 1000 & echo $! >grandchild; wait\nb: trap '' TERM INT HUP; echo $$ >stubborn; while :; do sleep 0.1; done\n";
    for ending in [Signal::SIGTERM, Signal::SIGKILL] {
        let stack = Stack::new(procfile);
        let running = stack.start("quorate", &["start"]);
        let (grandchild, stubborn) = (stack.file("grandchild").await, stack.file("stubborn").await);
        assert!(is_alive(&grandchild) && is_alive(&stubborn));
        running.signal(ending);
        if ending == Signal::SIGTERM {
            gone(&grandchild).await;
            // Asked twice: no more patience.
            running.signal(Signal::SIGTERM);
        }
        running.wait();
        gone(&grandchild).await;
        gone(&stubborn).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_supervisors_on_one_port_are_told_apart() {
    let stack = Stack::new("a: exec sleep 1000\n");
    let running = stack.start("quorate", &["start"]);
    stack.status("*a\n").await;
    let other = Stack { port: stack.port, ..Stack::new("a: exec sleep 1000\n") };
    let (code, _, err) = other.run("quorate", &["start"]);
    assert_eq!(code, Some(1));
    assert!(err.contains(&format!("127.0.0.1:{}", stack.port)) && err.contains("in use"), "{err}");
    assert_eq!(stack.run("quorate", &["run", "stop-all"]), (Some(0), "".into(), "".into()));
    assert_eq!(running.wait().0, Some(0));
}

#[test]
fn env_files_reach_the_children_and_bad_ones_are_named() {
    let stack = Stack::new("a: echo $ONE-$PORT\n");
    std::fs::write(stack.dir.path().join(".env"), "ONE=1\nPORT=7\n").expect("an env file");
    let (code, out, _) = stack.run("quorate", &["-logtime=false", "start"]);
    // Without the pid, and without the summary behind it.
    let out = out.split_once(", pid ").and_then(|(begin, rest)| Some(format!("{begin}{}", rest.split_once(',')?.1)));
    let expected = "system | a started on port 5000\na      | 1-5000\nsystem | a ended: exit status 0\n";
    assert_eq!(code, Some(0));
    assert!(out.as_ref().is_some_and(|out| out.starts_with(expected)), "{out:?}");
    std::fs::write(stack.dir.path().join(".env"), "nonsense\n").expect("an env file");
    let (code, _, err) = stack.run("quorate", &["start"]);
    assert_eq!(code, Some(1));
    assert!(err.contains(".env"), "{err}");
    assert_eq!(stack.run("goreman", &["start"]).0, Some(0), "goreman says nothing about it");
}

#[test]
fn procfiles_for_etcd_find_us_under_its_name() {
    let stack = Stack::new("a: etcd --version\n");
    let mut command = stack.command("quorate", &["-logtime=false", "start"]);
    let output = command.env("PATH", "/usr/bin:/bin").output().expect("it runs");
    let (_, out, _) = ended(output);
    assert!(out.contains("etcd Version: 3.7.1"), "{out}");
}

//! The native supervisor over its own socket: who is meant, what comes of it, exit codes, the background, and its end.

use std::io::Read;
use std::io::Write;
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::path::PathBuf;
use std::process::Child;
use std::process::Command;
use std::process::Stdio;
use std::time::Duration;
use std::time::Instant;

use nix::sys::signal::Signal;
use nix::unistd::Pid;
use serde_json::Value;
use tempfile::TempDir;

use crate::support::PATIENCE;
use crate::support::eventually;
use crate::support::free_port;

/// A Procfile in a directory of its own, with a runtime directory of its own. Whatever still runs at the end is ended.
pub struct Stack {
    pub dir: TempDir,
    runtime: TempDir,
}

/// Exit code, standard output, standard error.
pub type Ran = (Option<i32>, String, String);

impl Stack {
    pub fn new(procfile: &str) -> Stack {
        let stack = Stack {
            dir: tempfile::tempdir().expect("a directory"),
            runtime: tempfile::tempdir().expect("a runtime directory"),
        };
        stack.write("Procfile", procfile);
        stack
    }

    pub fn write(&self, name: &str, text: &str) {
        std::fs::write(self.dir.path().join(name), text).expect("a file");
    }

    pub fn command(&self, line: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_quorate"));
        command.arg0("quorate").arg("supervisor").args(line).current_dir(self.dir.path());
        command.env("XDG_RUNTIME_DIR", self.runtime.path()).env_remove("NO_COLOR").stdin(Stdio::null());
        command
    }

    /// Runs a command line to its end; words are separated by blanks.
    pub fn run(&self, line: &str) -> Ran {
        let words: Vec<&str> = line.split_whitespace().collect();
        let output = self.command(&words).output().expect("it runs");
        let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
        (output.status.code(), text(output.stdout), text(output.stderr))
    }

    /// The same, off this thread: a test's other work goes on.
    pub fn start(&self, line: &str) -> Running {
        let words: Vec<&str> = line.split_whitespace().collect();
        let log = std::fs::File::create(self.dir.path().join("foreground.log")).expect("a file");
        let mut command = self.command(&words);
        command.stdout(log.try_clone().expect("one file, twice")).stderr(log);
        Running(command.spawn().expect("it starts"))
    }

    pub fn check(&self, line: &str, code: i32) -> String {
        let (found, out, err) = self.run(line);
        assert_eq!(found, Some(code), "{line}\n{out}\n{err}");
        if code == 0 { out } else { err }
    }

    /// The text of a file, as soon as it holds this.
    pub fn file(&self, name: &str, part: &str) -> String {
        let start = Instant::now();
        loop {
            let text = std::fs::read_to_string(self.dir.path().join(name)).unwrap_or_default();
            if text.contains(part) {
                return text;
            }
            assert!(start.elapsed() < PATIENCE, "{name}: {text}");
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    pub fn json(&self) -> Value {
        let (_, out, err) = self.run("ps --json");
        serde_json::from_str(&out).unwrap_or_else(|error| panic!("{error}: {out}{err}"))
    }

    /// One field of one process.
    pub fn field(&self, name: &str, field: &str) -> Value {
        let status = self.json();
        let processes = status["processes"].as_array().expect("a list");
        processes.iter().find(|process| process["name"] == name).expect("it is there")[field].clone()
    }

    /// The only project directory under the runtime directory.
    pub fn home(&self) -> PathBuf {
        let entries = std::fs::read_dir(self.runtime.path().join("quorate")).expect("a directory");
        entries.flatten().map(|entry| entry.path()).next().expect("a project")
    }

    pub fn homes(&self) -> usize {
        std::fs::read_dir(self.runtime.path().join("quorate")).map_or(0, Iterator::count)
    }
}

impl Drop for Stack {
    fn drop(&mut self) {
        // Best effort: mostly nothing runs any more.
        let _ = self.run("down --force");
    }
}

pub struct Running(pub Child);

impl Running {
    pub fn signal(&self, signal: Signal) {
        let pid = Pid::from_raw(i32::try_from(self.0.id()).expect("pids fit"));
        nix::sys::signal::kill(pid, signal).expect("it is there");
    }

    pub fn wait(&mut self) -> Option<i32> {
        self.0.wait().expect("it ends").code()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

pub fn is_alive(pid: &str) -> bool {
    Path::new("/proc").join(pid).exists()
}

/// A Procfile of three of our members, and their client ports.
fn three_members() -> (String, Vec<u16>) {
    let ports: Vec<(u16, u16)> = (0..3).map(|_| (free_port(), free_port())).collect();
    let cluster: Vec<String> =
        ports.iter().enumerate().map(|(at, (_, peer))| format!("m{}=http://127.0.0.1:{peer}", at + 1)).collect();
    let cluster = cluster.join(",");
    let line = |(at, (client, peer)): (usize, &(u16, u16))| {
        let name = format!("m{}", at + 1);
        format!(
            "{name}: quorate server --name {name} --data-dir {name}.data --listen-client-urls http://127.0.0.1:{client} \
             --advertise-client-urls http://127.0.0.1:{client} --listen-peer-urls http://127.0.0.1:{peer} \
             --initial-advertise-peer-urls http://127.0.0.1:{peer} --initial-cluster {cluster}\n"
        )
    };
    (ports.iter().enumerate().map(line).collect(), ports.iter().map(|(client, _)| *client).collect())
}

#[test]
fn a_stack_in_the_background_is_controlled_by_name_and_leaves_nothing() {
    let stack = Stack::new("web.1: exec sleep 1000\nweb.2: exec sleep 1000\ndb: echo $$ >db.pid; exec sleep 1000\n");
    let out = stack.check("up -d --wait", 0);
    assert!(out.contains("3 processes ready"), "{out}");
    let db = stack.file("db.pid", "\n");
    let socket = stack.home().join("control.sock");
    assert_eq!(std::fs::metadata(&socket).expect("a socket").permissions().mode() & 0o777, 0o600);
    assert_eq!(std::fs::metadata(stack.home()).expect("a directory").permissions().mode() & 0o777, 0o700);

    let table = stack.check("ps", 0);
    assert!(table.starts_with("NAME") && table.lines().count() == 4 && !table.contains('\x1b'), "{table}");
    assert_eq!(stack.check("ps --short", 0), "web.1:running web.2:running db:running\n");
    assert_eq!(stack.check("ps --short db", 0), "db:running\n");

    stack.check("stop web.*", 0);
    assert_eq!(stack.check("ps --short", 0), "web.1:exited web.2:exited db:running\n");
    assert_eq!(stack.field("db", "usage")["pids"], 1);
    stack.check("start web.1", 0);
    stack.check("restart db --delay 1ms", 0);
    assert_eq!(stack.field("db", "restarts"), 1);
    assert!(!is_alive(db.trim()));

    stack.check("pause db", 0);
    assert_eq!(stack.field("db", "state"), "paused");
    let err = stack.check("ps --short nosuch", 4);
    assert!(err.contains("known: web.1, web.2, db"), "{err}");
    let (code, out, _) = stack.run("ps --short db");
    assert_eq!((code, out.as_str()), (Some(3), "db:paused\n"));
    stack.check("resume db", 0);

    let out = stack.check("down", 0);
    assert!(out.contains("2 processes stopped"), "{out}");
    assert_eq!(stack.homes(), 0, "nothing is left under the runtime directory");
    let err = stack.check("ps", 5);
    assert!(err.contains("no supervisor runs"), "{err}");
}

#[test]
fn what_comes_of_a_command_is_in_its_exit_code() {
    let stack = Stack::new("a: exec sleep 1000\nb: exec sleep 1000\nslow: trap '' TERM; while :; do sleep 1; done\n");
    for line in ["ps", "down", "stop a", "logs", "wait", "events"] {
        stack.check(line, 5);
    }
    stack.check("", 2);
    stack.check("bogus", 2);
    stack.check("stop", 2);
    stack.check("kill a -s NOSUCH", 2);
    stack.check("up -d", 0);
    let err = stack.check("stop a nosuch x*", 4);
    assert!(err.contains("nosuch, x*") && err.contains("known: a, b, slow"), "{err}");
    assert_eq!(stack.check("ps --short a", 0), "a:running\n", "nothing was done");
    let err = stack.check("kill leader", 4);
    assert!(err.contains("nobody is \"leader\""), "{err}");
    stack.check("resume a", 1);
    stack.check("pause a", 0);
    // One is paused, the other is not.
    stack.check("resume a b", 3);
    stack.check("stop slow --timeout 200ms", 6);
    stack.check("stop b --no-wait", 0);
    stack.check("wait b --for exit --timeout 30s", 0);
    stack.check("wait a --for exit --timeout 50ms", 6);
    stack.check("partition a | b", 1);
    let (code, out, _) = stack.run("exec a -- sh -c");
    assert_eq!((code, out.as_str()), (Some(2), ""));
    let (code, ..) = stack.run("exec a -- no-such-program");
    assert_eq!(code, Some(127));
    let output = stack.command(&["exec", "b", "--", "sh", "-c", "echo $PS:$PORT; exit 9"]).output().expect("it runs");
    assert_eq!((output.status.code(), String::from_utf8_lossy(&output.stdout).trim()), (Some(9), "b:5100"));
    stack.check("down --force", 0);
}

#[test]
fn logs_and_events_are_told_to_whoever_asks() {
    let stack = Stack::new(
        "a: echo one; echo two; echo three; exec sleep 1000\nb: echo elected leader 1>&2; exec sleep 1000\n",
    );
    stack.check("up -d", 0);
    let lines = |line: &str| stack.check(line, 0).lines().map(str::to_owned).collect::<Vec<_>>();
    let told = |line: &str, expected: &[&str]| {
        let start = Instant::now();
        loop {
            let found = lines(line);
            if found == expected {
                return;
            }
            assert!(start.elapsed() < PATIENCE, "{line}: {found:?}");
        }
    };
    told("logs a -n 2 --time off", &["a      | two", "a      | three"]);
    told("logs --grep elect --time off", &["b      | elected leader"]);
    told("logs a --grep t.* -n 1 --time off", &["a      | three"]);
    // The last of those that match, not those of the last that match.
    told("logs a --grep o -n 1 --time off", &["a      | two"]);
    let json: Value = serde_json::from_str(&lines("logs a --json -n 1")[0]).expect("JSON");
    assert_eq!((json["name"].as_str(), json["text"].as_str()), (Some("a"), Some("three")));
    stack.check("logs nosuch", 4);
    stack.check("logs --grep (", 1);
    let mut following = stack.start("logs -f --time off");
    stack.file("foreground.log", "a      | one");
    stack.check("kill b -s USR1", 0);
    let events = lines("events");
    let request = events.iter().find(|line| line.contains("\"request\"")).expect("who asked is in the journal");
    assert!(request.contains("\"name\":\"b\"") && request.contains("\"pid\":"), "{request}");
    stack.check("down", 0);
    assert_eq!(following.wait(), Some(0), "a follower ends with what it follows");
    let followed = std::fs::read_to_string(stack.dir.path().join("foreground.log")).expect("its output");
    assert!(followed.contains("a      | one") && followed.contains("a ended"), "{followed}");
}

/// Acceptance checks 6 and 13 of supervisor.md 4.8.
#[test]
fn one_project_has_one_supervisor_and_a_dead_one_is_none() {
    let stack = Stack::new("a: exec sleep 1000\n");
    stack.check("up -d", 0);
    let pid = stack.json()["supervisor"]["pid"].clone();
    for line in ["up", "up -d", "-p 1 start"] {
        let err = stack.check(line, 1);
        assert!(err.contains(&format!("pid {pid} ")) && err.contains("Procfile"), "{line}: {err}");
    }
    // Another Procfile of the same directory is another project, and then it must be said which is meant.
    stack.write("Procfile2", "b: exec sleep 1000\n");
    stack.check("up -d -f Procfile2", 0);
    assert_eq!(stack.check("ps --short", 0), "a:running\n");
    assert_eq!(stack.check("ps --short --procfile Procfile2", 0), "b:running\n");
    assert_eq!(stack.check("-f Procfile2 ps --short", 0), "b:running\n");
    stack.check("down", 0);
    assert_eq!(stack.check("ps --short", 0), "b:running\n", "it is the only one left");
    let elsewhere = stack.dir.path().to_str().expect("UTF-8").to_owned();
    assert_eq!(stack.check(&format!("-C {elsewhere} ps --short"), 0), "b:running\n");
    // As after a power loss: everything stays where it was, but nobody holds it.
    let pid = stack.json()["supervisor"]["pid"].as_i64().expect("a pid");
    let home = stack.home();
    let pid = Pid::from_raw(i32::try_from(pid).expect("pids fit"));
    nix::sys::signal::kill(pid, Signal::SIGKILL).expect("it is there");
    let start = Instant::now();
    while stack.run("ps --procfile Procfile2").0 != Some(5) {
        assert!(start.elapsed() < PATIENCE);
    }
    assert!(home.join("control.sock").exists() && home.join("lock").exists());
    stack.check("up -d -f Procfile2", 0);
    stack.check("down", 0);
}

#[test]
fn a_port_in_use_is_told_with_pid_and_command() {
    let taken = TcpListener::bind("127.0.0.1:0").expect("a port");
    let port = taken.local_addr().expect("it is bound").port();
    let member = format!(
        "etcd --listen-client-urls http://127.0.0.1:{port} --advertise-client-urls http://127.0.0.1:{port} \
         --listen-peer-urls http://127.0.0.1:{}",
        free_port()
    );
    let stack = Stack::new(&format!("m1: {member}\nweb: touch started; exec sleep 1000\n"));
    for line in ["up", "up -d", "up -d --wait"] {
        let err = stack.check(line, 1);
        let expected = format!("m1 cannot listen: 127.0.0.1:{port} is in use by pid {} (", std::process::id());
        assert!(err.contains(&expected), "{line}: {err}");
    }
    assert!(!stack.dir.path().join("started").exists() && stack.homes() == 0, "nothing was started");
    stack.write("Procfile", "web: web --port $PORT\n");
    let err = stack.check(&format!("up -b {port}"), 1);
    assert!(err.contains(&format!("web cannot have its PORT: 127.0.0.1:{port} is in use by pid")), "{err}");
}

#[test]
fn bad_procfiles_are_told_before_anything_is_started() {
    let stack = Stack::new("a: exec sleep 1000\na: exec sleep 1000\n");
    for line in ["up", "up -d"] {
        let err = stack.check(line, 1);
        assert!(err.contains("Procfile:2") && err.contains("twice"), "{err}");
    }
    stack.check("up -d -f nosuch", 1);
    stack.check("-C nosuch up", 1);
    stack.write("Procfile", "# @a nonsense=1\na: exec sleep 1000\n");
    let err = stack.check("up -d", 1);
    assert!(err.contains("Procfile:1") && err.contains("nonsense"), "{err}");
    stack.write("Procfile", "a: exec sleep 1000\n");
    let err = stack.check("up -d nosuch", 1);
    assert!(err.contains("nosuch"), "{err}");
    assert_eq!(stack.homes(), 0);
}

/// Acceptance check 9 of supervisor.md 4.8, and roles on a real cluster.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn three_members_are_up_when_they_serve_and_are_found_by_their_roles() {
    let (procfile, clients) = three_members();
    let stack = Stack::new(&procfile);
    stack.check("up -d --wait", 0);
    // Ready means ready: the first read is served, by each of them.
    for port in &clients {
        let mut command = Command::new(env!("CARGO_BIN_EXE_quorate"));
        let endpoint = format!("--endpoints=http://127.0.0.1:{port}");
        let output = command.arg0("quorate").args(["ctl", &endpoint, "get", "nothing"]).output().expect("it runs");
        assert!(output.status.success(), "{output:?}");
    }
    // A member that is busy for a moment has no role in a table that waits for nobody.
    let table = eventually("all three roles", async || {
        let table = stack.check("ps", 0);
        let has_all = table.matches("leader").count() == 1 && table.matches("follower").count() == 2;
        if has_all { Ok(table) } else { Err(table) }
    })
    .await;
    assert!(table.contains("MEMBER ID"), "{table}");
    for port in &clients {
        assert!(table.contains(&format!(":{port}")), "{table}");
    }
    let leader = || {
        let status = stack.json();
        let processes = status["processes"].as_array().expect("a list").clone();
        let leads = |process: &&Value| process["member"]["role"] == "leader";
        processes.iter().find(leads).map(|process| process["name"].as_str().expect("a name").to_owned())
    };
    let first = leader().expect("somebody leads");
    // A leader that stands still is no leader for long, and the next one is waited for.
    let out = stack.check("pause leader", 0);
    assert!(out.starts_with(&first), "{out}");
    let second = eventually("another leader", async || leader().ok_or_else(|| "nobody leads".to_owned())).await;
    assert_ne!(first, second);
    let out = stack.check("kill leader", 0);
    assert!(out.starts_with(&second), "{out}");
    stack.check(&format!("resume {first}"), 0);
    stack.check(&format!("start {second}"), 0);
    stack.check("wait --timeout 60s", 0);
    let out = stack.check("stop followers", 0);
    assert_eq!(out.lines().count(), 2, "{out}");
    stack.check("start all", 0);
    stack.check("wait --timeout 60s", 0);
    let out = stack.check("restart minority", 0);
    assert_eq!(out.lines().count(), 1, "{out}");
    stack.check("down", 0);
}

/// Acceptance check 9 of supervisor.md 4.8, the other half.
#[test]
fn a_broken_member_is_named_with_its_last_lines_and_nothing_stays() {
    let (procfile, _) = three_members();
    let broken = procfile.replace("m2: quorate server", "m2: echo it is broken; exit 7; quorate server");
    let stack = Stack::new(&broken);
    let err = stack.check("up -d --wait --timeout 60s", 1);
    assert!(err.contains("m2 failed") && err.contains("exit code 7") && err.contains("    it is broken"), "{err}");
    assert!(!err.contains("m1 failed"), "{err}");
    stack.check("ps", 5);
    // One that hangs: it takes the whole time, and no longer.
    let hanging = procfile.replace("m3: quorate server", "m3: echo I hang; sleep 1000; quorate server");
    stack.write("Procfile", &hanging);
    let err = stack.check("up --wait --timeout 3s --keep", 1);
    assert!(err.contains("m3 is not ready in time: it serves no read") && err.contains("    I hang"), "{err}");
    assert!(stack.check("ps --short m3", 0).starts_with("m3:running"), "it is kept");
    stack.check("down", 0);
}

#[test]
fn the_socket_survives_nonsense() {
    let stack = Stack::new("a: exec sleep 1000\n");
    stack.check("up -d", 0);
    let socket = stack.home().join("control.sock");
    let ask = |bytes: &[u8]| {
        let mut stream = UnixStream::connect(&socket).expect("it listens");
        stream.write_all(bytes).expect("it reads");
        let mut answer = Vec::new();
        // Being hung up on is an answer, too.
        let _ = stream.read_to_end(&mut answer);
        String::from_utf8_lossy(&answer).into_owned()
    };
    let post = |path: &str, body: &str| {
        ask(format!(
            "POST {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: {}\r\n\r\n{body}",
            body.len()
        )
        .as_bytes())
    };
    let status = |answer: &str| answer.split(' ').nth(1).unwrap_or_default().to_owned();
    ask(b"\x00\xff\xfe nonsense\r\n\r\n");
    assert_eq!(status(&ask(b"GET /v2/nothing HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")), "404");
    assert_eq!(status(&post("/v1/actions", "{")), "400");
    assert_eq!(status(&post("/v1/actions", "{\"targets\":[],\"action\":\"stop\"}")), "400");
    assert_eq!(status(&post("/v1/actions", "{\"targets\":[\"a\"],\"action\":\"explode\"}")), "400");
    assert_eq!(status(&post("/v1/actions", "{\"targets\":[\"b\"],\"action\":\"stop\"}")), "404");
    assert_eq!(status(&post("/v1/end", "[1")), "400");
    let many = format!("[\"{}\"", "[".repeat(100_000));
    assert_eq!(status(&post("/v1/actions", &many)), "400");
    let huge = "x".repeat(2 << 20);
    let head =
        format!("POST /v1/actions HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: {}\r\n\r\n", huge.len());
    let mut stream = UnixStream::connect(&socket).expect("it listens");
    stream.write_all(head.as_bytes()).expect("it reads");
    // It may hang up before everything is sent.
    let _ = stream.write_all(huge.as_bytes());
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer);
    assert_eq!(status(&String::from_utf8_lossy(&answer)), "413");
    let answer = post("/v1/actions", "{\"targets\":[\"a\"],\"action\":\"kill\",\"signal\":10}");
    assert!(answer.contains("\"ok\":true"), "{answer}");
    stack.check("down", 0);
}

#[test]
fn over_tcp_only_the_token_opens() {
    let stack = Stack::new("a: exec sleep 1000\n");
    stack.write("token", "0123456789abcdef\n");
    stack.write("wrong", "0123456789abcdeX\n");
    let port = free_port();
    let err = stack.check(&format!("up -d --listen 127.0.0.1:{port}"), 2);
    assert!(err.contains("--listen needs a --token-file"), "{err}");
    stack.check(&format!("up -d --listen 0.0.0.0:{port} --token-file token"), 2);
    let err = stack.check(&format!("up -d --listen 127.0.0.1:{port} --token-file token"), 1);
    assert!(err.contains("can be read by others"), "{err}");
    for name in ["token", "wrong"] {
        let own = std::fs::Permissions::from_mode(0o600);
        std::fs::set_permissions(stack.dir.path().join(name), own).expect("a mode");
    }
    stack.check(&format!("up -d --listen 127.0.0.1:{port} --token-file token"), 0);
    let with = |file: &str, line: &str| format!("--connect 127.0.0.1:{port} --token-file {file} {line}");
    assert_eq!(stack.check(&with("token", "ps --short"), 0), "a:running\n");
    stack.check(&with("token", "restart a"), 0);
    for line in ["ps", "stop a", "down --force", "logs -f", "reload"] {
        let err = stack.check(&with("wrong", line), 1);
        assert!(err.contains("the token is missing or wrong"), "{line}: {err}");
    }
    let mut stream = std::net::TcpStream::connect(("127.0.0.1", port)).expect("it listens");
    stream.write_all(b"GET /v1/processes HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").expect("it reads");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("an answer");
    assert!(answer.starts_with("HTTP/1.1 401 "), "{answer}");
    assert_eq!(stack.check("ps --short", 0), "a:running\n", "the socket is there all the same");
    stack.check(&with("token", "down"), 0);
    stack.check(&with("token", "ps"), 5);
}

#[test]
fn in_the_foreground_the_end_has_a_code_and_the_socket_goes_with_it() {
    let stack = Stack::new("a: exec sleep 1000\nb: exit 3\n");
    let mut up = stack.start("up a");
    let start = Instant::now();
    while stack.run("ps --short").0 != Some(0) {
        assert!(start.elapsed() < PATIENCE);
    }
    assert_eq!(stack.json()["supervisor"]["detached"], false);
    up.signal(Signal::SIGTERM);
    assert_eq!(up.wait(), Some(143));
    assert_eq!(stack.homes(), 0);
    assert_eq!(stack.run("up --exit-on any-failure").0, Some(3));
    assert_eq!(stack.run("up b").0, Some(1));
}

//! What the real goreman 0.3.19 was seen to do (`shared/transcripts/goreman-0.3.19`), done again by ours under its name.
//!
//! Lines of different processes come in any order, so each process's lines are compared by themselves; times are masked,
//! control ports are others. An event (a signal, a command of another shell) waits for the lines that were printed before
//! it. Sections in which we differ on purpose are named with the reason.

use std::collections::BTreeMap;
use std::io::Read;
use std::path::PathBuf;
use std::process::Child;
use std::process::Command;
use std::process::Stdio;
use std::str::FromStr;
use std::sync::Arc;
use std::sync::Mutex;
use std::thread::JoinHandle;
use std::time::Duration;
use std::time::Instant;

use nix::sys::signal::Signal;
use nix::unistd::Pid;
use tempfile::TempDir;

use crate::support::PATIENCE;
use crate::support::free_port;
use crate::support::named_program;
use crate::support::shared_dir;
use crate::support::skipped;

/// What goreman's client says when the supervisor left before it answered. Ours answers first (supervisor.md 1.17).
const UNANSWERED: &str = "goreman: unexpected EOF";

/// Part of a transcript with a directory of its own.
#[derive(Debug, Default)]
struct Section {
    title: String,
    acts: Vec<Act>,
}

#[derive(Clone, Debug)]
enum Act {
    /// A file that is there, or that must be there.
    File {
        name: String,
        text: String,
        expected: bool,
    },
    Step(Step),
}

/// A command and what it did.
#[derive(Clone, Debug, Default)]
struct Step {
    line: usize,
    command: String,
    items: Vec<Item>,
    err: Vec<String>,
    code: i32,
}

#[derive(Clone, Debug)]
enum Item {
    Out(String),
    Signal(Signal),
    Other(Step),
}

/// Reads a transcript. Files behind a section's first step are what it wrote if `writes`.
fn parse(text: &str, writes: bool) -> Vec<Section> {
    let mut sections: Vec<Section> = Vec::new();
    let mut other = false;
    for (at, line) in text.lines().enumerate() {
        if let Some(title) = line.strip_prefix("# --- ") {
            sections.push(Section { title: title.to_owned(), acts: Vec::new() });
            continue;
        }
        let kept: Vec<Act> = sections.iter().rev().nth(1).map(|section| section.acts.clone()).unwrap_or_default();
        let Some(section) = sections.last_mut() else { continue };
        let begun = section.acts.iter().any(|act| matches!(act, Act::Step(_)));
        if let Some(name) = line.strip_prefix("# file ") {
            let name = name.trim_end_matches(':').to_owned();
            // The only one whose path the recording leaves out.
            let name = if writes && name == "x" { "sub/out/app-web.conf".to_owned() } else { name };
            section.acts.push(Act::File { name, text: String::new(), expected: writes && begun });
            continue;
        }
        if line == "# same Procfile" {
            section.acts.extend(kept.into_iter().filter(|act| matches!(act, Act::File { .. })));
            continue;
        }
        if let Some(command) = line.strip_prefix("$ ") {
            section.acts.push(Act::Step(Step { line: at + 1, command: command.to_owned(), ..Step::default() }));
            continue;
        }
        match (section.acts.last_mut(), line) {
            (Some(Act::File { text, .. }), _) if line.starts_with('#') => {
                let line = line.strip_prefix("#   ").unwrap_or_default();
                if line != "(empty)" {
                    text.push_str(&unescape(line));
                    text.push('\n');
                }
            }
            (Some(Act::Step(step)), _) => other = item(step, at + 1, line, other),
            _ => {}
        }
    }
    sections
}

/// One line of a step. Whether lines of another shell follow.
fn item(step: &mut Step, at: usize, line: &str, other: bool) -> bool {
    if let Some((_, event)) = line.strip_prefix("# +").and_then(|event| event.split_once(" s")) {
        if let Some(signal) = event.strip_prefix(": ").and_then(|words| words.strip_suffix(" to goreman")) {
            step.items.push(Item::Signal(Signal::from_str(signal).expect("a signal")));
        }
        return event == ", another shell:";
    }
    if let Some(inner) = line.strip_prefix("#   ").filter(|_| other) {
        if let Some(command) = inner.strip_prefix("$ ") {
            step.items.push(Item::Other(Step { line: at, command: command.to_owned(), ..Step::default() }));
        } else if let Some(Item::Other(shell)) = step.items.last_mut() {
            item(shell, at, inner, false);
        }
        return true;
    }
    let (mark, rest) = line.split_at(line.len().min(2));
    match mark.trim_end() {
        ">" => step.items.push(Item::Out(rest.to_owned())),
        "!" => step.err.push(rest.to_owned()),
        "=" => step.code = rest.split_whitespace().next().and_then(|code| code.parse().ok()).expect("a code"),
        _ => {}
    }
    false
}

fn unescape(line: &str) -> String {
    line.replace("\\r", "\r").replace("\\ufeff", "\u{feff}")
}

/// The recorded control ports and the free ones in their place.
#[derive(Default)]
struct Ports(BTreeMap<String, String>);

impl Ports {
    /// The text with 250xx replaced.
    fn put(&mut self, text: &str) -> String {
        let mut out = String::new();
        let mut rest = text;
        while let Some(at) = rest.find("250") {
            let (before, from) = rest.split_at(at);
            out.push_str(before);
            let digits: String = from.chars().take_while(char::is_ascii_digit).collect();
            match digits.len() == 5 && !before.ends_with(|letter: char| letter.is_ascii_digit()) {
                true => {
                    out.push_str(self.0.entry(digits.clone()).or_insert_with(|| free_port().to_string()));
                }
                false => out.push_str(&digits),
            }
            rest = &from[digits.len()..];
        }
        out + rest
    }
}

/// A line with its escape codes spelled out and without its time.
fn masked(line: &str) -> String {
    // Two signals of the C library's own, which it has ignored in whatever it starts.
    let line = line.replace('\x1b', "\\e").replace("SigIgn:\t0000000180000000", "SigIgn:\t0000000000000000");
    // The same of a program that a program of ours has become.
    let line = line.replace("SigIgn:\t0000000080000000", "SigIgn:\t0000000000000000");
    let Some((colour, rest)) = line.strip_prefix("\\e[").and_then(|rest| rest.split_once('m')) else { return line };
    let is_time = rest.len() > 9
        && rest.bytes().take(9).enumerate().all(|(at, byte)| match at {
            2 | 5 => byte == b':',
            8 => byte == b' ',
            _ => byte.is_ascii_digit(),
        });
    match is_time {
        true => format!("\\e[{colour}mTIME {}", &rest[9..]),
        false => line,
    }
}

/// Lines by process, in order.
fn by_process<'a>(lines: impl Iterator<Item = &'a str>) -> BTreeMap<String, Vec<String>> {
    let mut found: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for line in lines {
        let line = masked(line);
        let prefix = line.split_once(" | ").filter(|_| line.starts_with("\\e[")).map(|(prefix, _)| prefix.to_owned());
        found.entry(prefix.unwrap_or_default()).or_default().push(line);
    }
    found
}

/// A running command and its output so far.
struct Running {
    child: Child,
    out: Arc<Mutex<Vec<u8>>>,
    readers: Vec<JoinHandle<Vec<u8>>>,
}

impl Running {
    fn lines(&self) -> Vec<String> {
        let bytes = self.out.lock().expect("nobody panics").clone();
        let text = bytes.utf8_chunks().fold(String::new(), |text, chunk| {
            let raw: String = chunk.invalid().iter().map(|byte| format!("\\x{byte:02x}")).collect();
            text + chunk.valid() + &raw
        });
        text.replace('\0', "\\0").split_terminator('\n').map(str::to_owned).collect()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // Best effort: mostly it has ended.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

struct Stage {
    dir: TempDir,
    programs: PathBuf,
    ports: Ports,
}

impl Stage {
    fn start(&self, command: &str) -> Running {
        let path = format!("{}:/usr/local/bin:/usr/bin:/bin", self.programs.display());
        let mut child = Command::new("bash")
            .args(["-c", command])
            .current_dir(self.dir.path())
            .env_clear()
            .env("PATH", path)
            .env("HOME", "/home/u")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("bash");
        let (mut stdout, mut stderr) = (child.stdout.take().expect("piped"), child.stderr.take().expect("piped"));
        let out = Arc::new(Mutex::new(Vec::new()));
        let seen = out.clone();
        let read_out = std::thread::spawn(move || {
            let mut piece = [0; 4096];
            while let Ok(count) = stdout.read(&mut piece) {
                if count == 0 {
                    break;
                }
                seen.lock().expect("nobody panics").extend_from_slice(&piece[..count]);
            }
            Vec::new()
        });
        let read_err = std::thread::spawn(move || {
            let mut bytes = Vec::new();
            let _ = stderr.read_to_end(&mut bytes);
            bytes
        });
        Running { child, out, readers: vec![read_out, read_err] }
    }

    /// Runs a step: what differs.
    fn run(&mut self, step: &Step) -> Result<(), String> {
        let mut command = self.ports.put(&step.command);
        if step.items.iter().any(|item| matches!(item, Item::Signal(_))) {
            command = format!("exec {command}");
        }
        let mut running = self.start(&command);
        let mut expected: Vec<String> = Vec::new();
        for item in &step.items {
            match item {
                Item::Out(line) => {
                    let line = self.ports.put(&unescape(line));
                    expected.push(line.replace("=DIR", &format!("={}", self.dir.path().display())));
                }
                Item::Signal(signal) => {
                    self.wait_for(&running, &expected)?;
                    let pid = Pid::from_raw(i32::try_from(running.child.id()).expect("pids fit"));
                    nix::sys::signal::kill(pid, *signal).map_err(|errno| format!("{signal}: {errno}"))?;
                }
                Item::Other(shell) => {
                    self.wait_for(&running, &expected)?;
                    self.run(shell).map_err(|text| format!("another shell: {text}"))?;
                }
            }
        }
        let deadline = Instant::now() + PATIENCE;
        let status = loop {
            match running.child.try_wait().expect("it can be waited for") {
                Some(status) => break status,
                None if Instant::now() > deadline => {
                    return Err(format!("line {}: it does not end; so far {:?}", step.line, running.lines()));
                }
                None => std::thread::sleep(Duration::from_millis(5)),
            }
        };
        let ends: Vec<Vec<u8>> = running.readers.drain(..).map(|reader| reader.join().expect("it reads")).collect();
        let err = String::from_utf8_lossy(&ends[1]).into_owned();
        let signal = std::os::unix::process::ExitStatusExt::signal(&status).map(|signal| -signal);
        let found = (by_process(running.lines().iter().map(String::as_str)), status.code().or(signal));
        if step.err == [UNANSWERED] && found == (BTreeMap::new(), Some(0)) {
            return Ok(());
        }
        let wanted = (by_process(expected.iter().map(String::as_str)), Some(step.code));
        if found != wanted {
            return Err(format!(
                "line {}: {}\n  wanted {wanted:?}\n  found  {found:?}\n  and {err:?}",
                step.line, step.command
            ));
        }
        self.check_err(step, &err)
    }

    /// What stands on stderr, up to where the transcript was cut.
    fn check_err(&mut self, step: &Step, err: &str) -> Result<(), String> {
        if step.err.first().is_some_and(|line| line.starts_with("panic: ")) {
            // We say what is wrong.
            return if err.is_empty() { Err(format!("line {}: not a word", step.line)) } else { Ok(()) };
        }
        let cut = step.err.iter().position(|line| line == "(cut)");
        let wanted: Vec<String> =
            step.err[..cut.unwrap_or(step.err.len())].iter().map(|line| self.ports.put(line)).collect();
        let found: Vec<&str> = err.lines().take(if cut.is_some() { wanted.len() } else { usize::MAX }).collect();
        match wanted == found {
            true => Ok(()),
            false => Err(format!("line {}: {}\n  wanted {wanted:?}\n  on stderr {err:?}", step.line, step.command)),
        }
    }

    /// Until all these lines were printed.
    fn wait_for(&self, running: &Running, expected: &[String]) -> Result<(), String> {
        let wanted = by_process(expected.iter().map(String::as_str));
        let deadline = Instant::now() + PATIENCE;
        loop {
            let lines = running.lines();
            let found = by_process(lines.iter().map(String::as_str));
            if wanted.iter().all(|(process, lines)| found.get(process).is_some_and(|found| found.len() >= lines.len()))
            {
                return Ok(());
            }
            if Instant::now() > deadline {
                return Err(format!("waited for {wanted:?}\n  found {found:?}"));
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    fn play(&mut self, section: &Section) -> Result<usize, String> {
        let mut steps = 0;
        for act in &section.acts {
            match act {
                Act::File { name, text, expected: false } => {
                    let path = self.dir.path().join(name);
                    std::fs::create_dir_all(path.parent().expect("it has one")).expect("a directory");
                    std::fs::write(path, self.ports.put(text)).expect("a file");
                }
                Act::File { name, text, expected: true } => self.check_file(name, text)?,
                Act::Step(step) => {
                    self.run(step)?;
                    steps += 1;
                }
            }
        }
        Ok(steps)
    }

    /// A file that was written. The order of the variables is chance.
    fn check_file(&self, name: &str, text: &str) -> Result<(), String> {
        let found = std::fs::read_to_string(self.dir.path().join(name)).map_err(|error| format!("{name}: {error}"))?;
        let dir = self.dir.path().canonicalize().expect("it is there");
        let wanted = text.replace("chdir DIR", &format!("chdir {}", dir.display()));
        let sorted = |text: &str| {
            let mut lines: Vec<String> = text.lines().map(str::to_owned).collect();
            lines.sort();
            lines
        };
        match sorted(&found) == sorted(&wanted) {
            true => Ok(()),
            false => Err(format!("{name}\n  wanted {wanted:?}\n  found  {found:?}")),
        }
    }
}

/// Replays a file but for the sections named, each with the reason; at least so many steps must be equal.
fn replay(file: &str, writes: bool, different: &[(&str, &str)], least: usize) {
    let Some(shared) = shared_dir() else {
        skipped(&format!("goreman_recorded {file}"), "no shared folder beside this checkout");
        return;
    };
    let path = shared.join("transcripts/goreman-0.3.19").join(file);
    let text = std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    let (programs, _) = named_program("goreman");
    let sections = parse(&text, writes);
    for (title, reason) in different {
        assert!(!reason.is_empty() && sections.iter().any(|section| section.title == *title), "no section {title:?}");
    }
    let (mut equal, mut wrong) = (0, Vec::new());
    for section in sections.iter().filter(|section| !different.iter().any(|(title, _)| *title == section.title)) {
        let dir = tempfile::tempdir().expect("a directory");
        let mut stage = Stage { dir, programs: programs.path().to_owned(), ports: Ports::default() };
        match stage.play(section) {
            Ok(steps) => equal += steps,
            Err(text) => wrong.push(format!("{}\n  {text}", section.title)),
        }
    }
    assert!(wrong.is_empty(), "{} sections of {file} differ:\n{}", wrong.len(), wrong.join("\n"));
    assert!(equal >= least, "only {equal} steps");
}

#[test]
fn checks_and_settings_are_equal() {
    let chance = [("NUL in a command", "whether the other one prints before it is stopped is chance")];
    replay("check.txt", false, &chance, 50);
}

#[test]
fn exported_jobs_are_equal() {
    replay("export.txt", true, &[], 7);
}

#[test]
fn variables_and_ports_are_equal() {
    replay("env-port.txt", false, &[], 30);
}

#[test]
fn control_from_another_shell_is_equal() {
    let different = [
        (
            "stop of a process that ignores SIGINT: killed after 10 s; calls meanwhile; a second stop waits",
            "needs shells side by side",
        ),
        (
            "the RPC port is taken: no message, the second one runs without RPC; \"run\" speaks to the first",
            "the recording leaves out how the first one was started",
        ),
        ("GOREMAN_RPC_ADDR", "ours listens on loopback unless told otherwise"),
    ];
    replay("run.txt", false, &different, 20);
}

#[test]
fn starts_and_ends_are_equal() {
    let different = [
        ("leader gone, a grandchild holds the pipe", "ours stops the grandchild, too (supervisor.md 1.17)"),
        ("SIGKILL", "ours leaves nobody behind, and says so elsewhere"),
        ("TZ in .env changes the times of the log", "shows the time of day"),
        (
            "the signal goes to the whole group; a terminal stop (SIGTSTP) stops goreman alone",
            "counts what depends on time",
        ),
        ("SIGINT, a child ignores it (killed after 10 s, the next one is signalled only then)", "takes 10 s"),
        ("second SIGINT and SIGTERM while stopping: no effect", "ours loses patience when asked twice (1.17)"),
    ];
    replay("start-end.txt", false, &different, 20);
}

#[test]
fn lines_are_equal() {
    let glued = "ours ends a partial line before its own message (supervisor.md 1.17)";
    let hands = "needs hands at a terminal";
    let different = [
        ("a process that ends with a partial line: \"Terminating\" follows on the same line (if within 2 ms)", glued),
        ("the same in a run that is stopped", glued),
        ("a long line: not cut", "a late fragment is a line of its own, there as here"),
        ("Ctrl-C on a terminal", hands),
        ("a child that reads the terminal is stopped by the kernel (SIGTTIN); Ctrl-C then takes 10 s", hands),
        ("the same (as \"Ctrl-C on a terminal\") with a terminal that hangs up", hands),
    ];
    replay("log-lines.txt", false, &different, 15);
}

#[test]
fn stops_of_stuck_children_are_equal() {
    let whole = "ours stops whatever came from a process, wherever it went (supervisor.md 1.17)";
    let different = [
        (
            "a background child of the same group (the shell lets it ignore SIGINT): killed with the group after 10 s",
            "takes 10 s",
        ),
        ("a grandchild in another session that holds the pipe: waited for without limit, then an error", whole),
        ("a grandchild in another session without the pipe: left behind", whole),
        ("a stopped (SIGSTOP) child", "ours lets it go on, and it stops at once"),
        ("leader gone, the grandchild holds the pipe, all others end: goreman does not leave", whole),
    ];
    replay("stuck-children.txt", false, &different, 2);
}

//! `quorate supervisor top` on a real terminal, which tmux is: what it shows, what its keys do, and how it ends.

use std::io::Write;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;
use std::process::Stdio;

use nix::sys::signal::Signal;
use nix::unistd::Pid;
use serde_json::Value;
use tempfile::TempDir;

use crate::support::eventually;
use crate::support::skipped;

/// Runs `top` as a shell with job control does, and says how it ended and in which state it left the terminal.
const SCRIPT: &str = r#"
set -m
cd "$1"
"$2" supervisor top
code=$?
while [ $code = 148 ]; do
  echo stopped; stty -a | tr ' ;' '\n\n' | grep -x -e '-*icanon'
  read word
  fg
  code=$?
done
echo "ended with $code"; stty -a | tr ' ;' '\n\n' | grep -x -e '-*icanon'
exec sleep 1000
"#;

/// A project with a supervisor, and a tmux server of its own with `top` on its only screen. Both end with it.
struct Desk {
    dir: TempDir,
}

impl Desk {
    /// `None`, said aloud, if there is no tmux here.
    fn new(test: &str) -> Option<Desk> {
        if Command::new("tmux").arg("-V").output().is_err() {
            skipped(test, "tmux is not installed");
            return None;
        }
        let desk = Desk { dir: tempfile::tempdir().expect("a directory") };
        desk.write("tmux.conf", "set -g status off\nset -g exit-empty off\n");
        desk.write("top.sh", SCRIPT);
        Some(desk)
    }

    fn path(&self) -> &Path {
        self.dir.path()
    }

    fn write(&self, name: &str, text: &str) {
        std::fs::write(self.path().join(name), text).expect("a file");
    }

    fn append(&self, name: &str, text: &str) {
        let file = std::fs::OpenOptions::new().append(true).open(self.path().join(name));
        file.expect("a file").write_all(text.as_bytes()).expect("a line more");
    }

    fn tmux(&self, words: &[&str]) -> String {
        let mut command = Command::new("tmux");
        command.arg("-u").arg("-S").arg(self.path().join("tmux")).arg("-f").arg(self.path().join("tmux.conf"));
        command.args(words).env("XDG_RUNTIME_DIR", self.path()).env_remove("TMUX").stdin(Stdio::null());
        let output = command.output().expect("tmux runs");
        assert!(output.status.success(), "{words:?}: {output:?}");
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    /// Runs our binary to its end: exit code, what it printed on both outputs.
    fn run(&self, words: &[&str]) -> (Option<i32>, String, String) {
        let mut command = Command::new(env!("CARGO_BIN_EXE_quorate"));
        command.arg0("quorate").args(words).current_dir(self.path()).env("XDG_RUNTIME_DIR", self.path());
        let output = command.stdin(Stdio::null()).output().expect("it runs");
        let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
        (output.status.code(), text(output.stdout), text(output.stderr))
    }

    fn done(&self, words: &[&str]) -> String {
        let (code, out, err) = self.run(words);
        assert_eq!(code, Some(0), "{words:?}\n{out}\n{err}");
        out
    }

    /// `top` in a new session of this size.
    fn open(&self, width: u16, height: u16) {
        let (width, height) = (width.to_string(), height.to_string());
        let script = self.path().join("top.sh").to_string_lossy().into_owned();
        let directory = self.path().to_string_lossy().into_owned();
        let program = env!("CARGO_BIN_EXE_quorate");
        let words = ["new-session", "-d", "-x", &width, "-y", &height, "/bin/sh", &script, &directory, program];
        self.tmux(&words);
    }

    fn close(&self) {
        self.tmux(&["kill-session"]);
    }

    fn press(&self, key: &str) {
        self.tmux(&["send-keys", key]);
    }

    fn screen(&self) -> String {
        self.tmux(&["capture-pane", "-p"])
    }

    /// The screen, as soon as it is as wanted.
    async fn seen(&self, what: &str, is_so: impl Fn(&str) -> bool) -> String {
        eventually(what, async || {
            let screen = self.screen();
            if is_so(&screen) { Ok(screen) } else { Err(screen) }
        })
        .await
    }

    async fn shows(&self, text: &str) -> String {
        self.seen(text, |screen| screen.contains(text)).await
    }

    /// Until the row of a process tells this.
    async fn tells(&self, name: &str, text: &str) -> String {
        let is_row = |row: &str| row.trim_start().starts_with(name) && row.contains(text);
        self.seen(&format!("{name} {text}"), |screen| screen.lines().any(is_row)).await
    }

    /// Until `top` has ended so, and the terminal is what it was.
    async fn ended(&self, code: i32) -> String {
        let end = format!("ended with {code}\nicanon");
        let screen = self.shows(&end).await;
        let modes = self.tmux(&["display-message", "-p", "#{alternate_on} #{cursor_flag}"]);
        assert_eq!(modes.trim(), "0 1", "the usual screen, with a cursor: {screen}");
        screen
    }

    /// The pid of `top`: the only child of the shell on the screen.
    async fn top(&self) -> Pid {
        let shell = self.tmux(&["display-message", "-p", "#{pane_pid}"]);
        let shell = shell.trim();
        eventually("a child of the shell", async || {
            let children = std::fs::read_to_string(format!("/proc/{shell}/task/{shell}/children")).unwrap_or_default();
            let pid = children.split_whitespace().next().and_then(|pid| pid.parse().ok());
            pid.map(Pid::from_raw).ok_or(children)
        })
        .await
    }

    fn status(&self) -> Value {
        let (_, out, err) = self.run(&["supervisor", "ps", "--json"]);
        serde_json::from_str(&out).unwrap_or_else(|error| panic!("{error}: {out}{err}"))
    }
}

impl Drop for Desk {
    fn drop(&mut self) {
        // Best effort: mostly both have ended.
        let socket = self.path().join("tmux");
        let _ = Command::new("tmux").arg("-S").arg(socket).arg("kill-server").stderr(Stdio::null()).status();
        let _ = self.run(&["supervisor", "down", "--force"]);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn top_shows_processes_and_lines_and_its_keys_act() {
    let Some(desk) = Desk::new("top_shows_processes_and_lines_and_its_keys_act") else { return };
    // Clearing the screen, going home, a tab, a wide letter: none of it may tear what stands there.
    let procfile = "\
web: printf '\\033[2J\\033[1;1Hhello from web\\t\\347\\275\\221 end\\n'; exec sleep 1000
db: exec tail -f spoken
";
    desk.write("Procfile", procfile);
    desk.write("spoken", "hello from db\n");
    desk.done(&["supervisor", "up", "-d"]);
    desk.open(140, 20);
    let screen = desk.shows("│hello from web  网 end").await;
    assert!(screen.lines().nth(1).is_some_and(|row| row.contains("NAME") && row.contains("web · follows")), "{screen}");
    desk.tells("web", "running").await;
    desk.press("Down");
    desk.shows("│hello from db").await;
    desk.append("spoken", "and more of it\n");
    desk.shows("│and more of it").await;

    desk.press("p");
    desk.shows("pause db: paused").await;
    desk.tells("db", "paused").await;
    desk.press("p");
    desk.shows("resume db: ").await;
    desk.tells("db", "running").await;
    desk.press("x");
    desk.shows("kill db: ").await;
    desk.tells("db", "exited").await;
    desk.press("s");
    desk.shows("start db: ").await;
    desk.tells("db", "running").await;
    desk.press("r");
    desk.shows("restart db: ").await;
    desk.seen("two starts more", |_| desk.status()["processes"][1]["restarts"] == 2).await;
    desk.tells("db", "running").await;
    desk.press("s");
    desk.shows("stop db: ").await;
    desk.tells("db", "exited").await;
    desk.press("c");
    desk.shows("partition db: no links can be changed here").await;

    for (width, height) in [(40, 10), (12, 3), (2, 1), (200, 50)] {
        desk.tmux(&["resize-window", "-x", &width.to_string(), "-y", &height.to_string()]);
        if width >= 12 {
            desk.tells("db", "exit").await;
        }
    }
    desk.press("?");
    desk.shows("kill it: SIGKILL to all of its group").await;
    desk.press("x");
    desk.seen("no help", |screen| !screen.contains("SIGKILL to all")).await;
    desk.press("Up");
    desk.shows("web · follows").await;
    // Pasted text is no row of keys, even where it has an x and a q in it.
    desk.tmux(&["set-buffer", "xq"]);
    desk.tmux(&["paste-buffer", "-p"]);
    desk.press("Enter");
    desk.seen("the log alone", |screen| !screen.contains("NAME") && screen.contains("hello from web")).await;
    assert_eq!(desk.status()["processes"][0]["state"], "running");

    desk.press("C-z");
    desk.shows("stopped\nicanon").await;
    desk.press("Enter");
    desk.shows("hello from web").await;
    desk.press("C-l");
    desk.shows("hello from web").await;
    desk.press("q");
    desk.ended(0).await;
    assert_eq!(desk.status()["processes"][0]["state"], "running", "the supervisor and its processes go on");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn top_gives_the_terminal_back_however_it_ends() {
    let Some(desk) = Desk::new("top_gives_the_terminal_back_however_it_ends") else { return };
    desk.write("Procfile", "web: exec sleep 1000\n");
    desk.open(100, 20);
    let screen = desk.ended(5).await;
    assert!(screen.contains("quorate supervisor: no supervisor runs "), "{screen}");
    desk.close();

    desk.done(&["supervisor", "up", "-d"]);
    let (code, out, err) = desk.run(&["supervisor", "top"]);
    assert_eq!((code, out.as_str(), err.lines().count()), (Some(1), "", 1), "{err}");
    assert!(err.contains("a terminal, which standard output is not"), "{err}");
    for signal in [Signal::SIGTERM, Signal::SIGHUP, Signal::SIGINT] {
        desk.open(100, 20);
        desk.tells("web", "running").await;
        nix::sys::signal::kill(desk.top().await, signal).expect("it is there");
        desk.ended(128 + signal as i32).await;
        desk.close();
    }
    // Closing the terminal ends it, too.
    desk.open(100, 20);
    desk.tells("web", "running").await;
    let top = desk.top().await;
    desk.close();
    eventually("top to end", async || match Path::new("/proc").join(top.to_string()).exists() {
        true => Err(format!("{top}")),
        false => Ok(()),
    })
    .await;
    for end in ["down", "kill"] {
        desk.open(100, 20);
        desk.tells("web", "running").await;
        match end {
            "down" => {
                desk.done(&["supervisor", "down"]);
            }
            _ => {
                let pid = desk.status()["supervisor"]["pid"].as_i64().and_then(|pid| i32::try_from(pid).ok());
                let pid = Pid::from_raw(pid.expect("a pid"));
                nix::sys::signal::kill(pid, Signal::SIGKILL).expect("it is there");
            }
        }
        let screen = desk.ended(5).await;
        assert!(screen.contains("quorate supervisor: the supervisor "), "{screen}");
        desk.close();
        if end == "down" {
            desk.done(&["supervisor", "up", "-d"]);
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn top_shows_roles_and_cuts_members_off() {
    let Some(desk) = Desk::new("top_shows_roles_and_cuts_members_off") else { return };
    desk.done(&["cluster", "--size", "3", "--proxy-peers"]);
    desk.done(&["supervisor", "up", "-d", "--wait"]);
    desk.open(160, 24);
    let screen = desk.shows(" leader ").await;
    let roles = |screen: &str, role: &str| screen.lines().filter(|row| row.contains(role)).count();
    assert_eq!((roles(&screen, " leader "), roles(&screen, " follower ")), (1, 2), "{screen}");
    let leader = screen.lines().position(|row| row.contains(" leader ")).expect("a leader") - 2;
    for _ in 0..leader {
        desk.press("Down");
    }
    let name = format!("m{}", leader + 1);
    desk.shows(&format!("{name} · follows")).await;
    desk.press("c");
    desk.shows(&format!("partition {name}: done")).await;
    desk.shows("4 links changed").await;
    let another = |screen: &str| {
        let leads = |row: &str| row.contains(" leader ") && !row.trim_start().starts_with(&name);
        screen.lines().any(leads)
    };
    desk.seen("another leader", another).await;
    desk.press("h");
    desk.shows("heal: done").await;
    let is_well = |screen: &str| {
        let rows: Vec<&str> = screen.lines().filter(|row| row.trim_start().starts_with('m')).collect();
        rows.len() == 3 && rows.iter().all(|row| row.contains(" ok ")) && !screen.contains("links changed")
    };
    desk.seen("three members that are well", is_well).await;
    // Its log is JSON, shown readable until one wants it as it is.
    desk.shows(" INFO  ").await;
    desk.press("v");
    desk.shows("\"level\":\"info\"").await;
    desk.press("p");
    desk.tells(&name, "paused").await;
    desk.tells(&name, "no answer").await;
    desk.press("p");
    desk.seen("three members that are well", is_well).await;
    desk.press("q");
    desk.ended(0).await;
}

//! A real child behind a process: its shell, its group, its one pipe, and the events that it sends.
//!
//! The shell is started by a launcher, which is this binary again (`faults::process`): it asks the kernel to be killed when
//! its parent ends and becomes the shell. The kernel means the parent's *thread*, so children are started on the main thread,
//! where the runtime is.

use std::collections::BTreeSet;
use std::future::Future;
use std::io;
use std::os::unix::process::CommandExt;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::path::PathBuf;
use std::process::Command;
use std::process::Stdio;
use std::time::Duration;

use nix::sys::signal::Signal;
use nix::sys::signal::kill;
use nix::sys::signal::killpg;
use nix::sys::wait::Id;
use nix::sys::wait::WaitPidFlag;
use nix::sys::wait::WaitStatus;
use nix::sys::wait::waitid;
use nix::unistd::Pid;
use nix::unistd::SysconfVar;
use nix::unistd::sysconf;
use tokio::signal::unix::SignalKind;
use tokio::sync::mpsc;

use crate::program::Manner;
use crate::supervisor::orphans;
use crate::supervisor::orphans::Seen;
use crate::supervisor::output::Feed;
use crate::supervisor::process::Exit;
use crate::supervisor::process::Input;
use crate::supervisor::settings::Hook;

/// The hidden word that makes our binary a launcher.
pub const LAUNCH: &str = "__launch";
/// This binary also when its file was replaced.
pub const OURSELVES: &str = "/proc/self/exe";
/// How often a group that outlives its leader is looked at: first, and when nothing has changed for long.
const GROUP_POLL: Duration = Duration::from_millis(20);
const GROUP_POLL_MAX: Duration = Duration::from_millis(250);

/// What a child needs to start.
#[derive(Clone, Debug)]
pub struct Launch {
    pub index: usize,
    pub generation: u64,
    pub command: String,
    pub environment: Vec<(String, String)>,
    pub cwd: Option<PathBuf>,
    /// What this start is marked with in its environment (`orphans`).
    pub mark: String,
    pub feed: Feed,
    pub manner: Manner,
    /// It is not the process itself.
    pub hook: Option<Hook>,
}

/// Something that happened to the process at this place, in this start of it.
#[derive(Debug)]
pub struct Event {
    pub index: usize,
    pub generation: u64,
    pub happened: Happened,
}

/// What the loop is told of.
#[derive(Debug)]
pub enum Happened {
    Input(Input),
    /// The leader is reaped.
    Exited(Exit, Option<Usage>),
    /// A pause is over; the number is the pause's.
    PauseOver(u64),
    /// Something that an action waits for.
    Moved,
    /// The data directory is removed, or why not.
    Cleaned(Result<(), String>),
}

/// Processor time of a leader and of everything that it waited for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Usage {
    pub user: Duration,
    pub system: Duration,
}

/// Starts `/bin/sh -c command` in a group of its own and a task that reports on it. The group's id is the leader's pid.
pub fn spawn(launch: Launch, events: mpsc::UnboundedSender<Event>) -> io::Result<Pid> {
    let (ends, unread) = launch.feed.connect()?;
    // Before the child is there: its end must not be missed.
    let mut changes = tokio::signal::unix::signal(SignalKind::child())?;
    let mut command = shell(&launch.command, &launch.environment, launch.cwd.as_deref(), launch.manner);
    command.stdin(ends.stdin).stdout(ends.stdout).stderr(ends.stderr);
    let mut child = tokio::process::Command::from(command).spawn()?;
    let number = child.id().ok_or_else(|| io::Error::other("it ended before it had a pid"))?;
    let group = Pid::from_raw(i32::try_from(number).map_err(io::Error::other)?);
    let (index, generation, feed) = (launch.index, launch.generation, launch.feed);
    let is_hook = launch.hook.is_some();
    let reading = unread.read(group.as_raw(), is_hook)?;
    tokio::spawn(async move {
        let report = |happened: Happened| {
            // The loop is gone only when the supervisor has ended.
            let _ = events.send(Event { index, generation, happened });
        };
        // A zombie still tells what it used; the wait that reaps it does not.
        while !is_zombie(group) && changes.recv().await.is_some() {}
        let usage = Seen::of(group.as_raw()).map(usage);
        let exit = match child.wait().await {
            Ok(status) => exit_of(status),
            Err(_) => Exit::Code(-1),
        };
        if !is_hook {
            feed.note_exit(&exit.to_string());
        }
        report(Happened::Exited(exit, usage));
        match launch.manner {
            Manner::Original => reading.ended(outlived(group, None)).await,
            // A daemon that has closed our pipe is still one of us.
            Manner::Native => {
                outlived(group, Some(&launch.mark)).await;
                reading.ended(std::future::ready(())).await;
            }
        }
        report(Happened::Input(Input::Emptied));
    });
    Ok(group)
}

/// The command that runs `line` in a shell: a group of its own, nothing to read, killed when we are.
pub fn shell(line: &str, environment: &[(String, String)], cwd: Option<&Path>, manner: Manner) -> Command {
    let line = match manner {
        Manner::Original => line.to_owned(),
        Manner::Native => elide_shell(line, search_path(environment)),
    };
    let mut command = Command::new(OURSELVES);
    let own = std::process::id().to_string();
    command.arg0("quorate").args(["supervisor", LAUNCH, &own, "/bin/sh", "/bin/sh", "-c", &line]);
    command.envs(environment.iter().map(|(key, value)| (key, value)));
    if let Some(cwd) = cwd {
        command.current_dir(cwd);
    }
    command.stdin(Stdio::null()).process_group(0);
    command
}

fn search_path(environment: &[(String, String)]) -> &str {
    environment.iter().find(|(key, _)| key == "PATH").map_or("", |(_, value)| value.as_str())
}

/// Lets a shell that has one program to run become that program: then its pid, its signals and its end are the program's
/// own (supervisor.md 5.4). Anything that is more than one command with its words is left to the shell.
fn elide_shell(command: &str, path: &str) -> String {
    const MORE_THAN_WORDS: &[char] = &['|', '&', ';', '<', '>', '(', ')', '`', '\n', '#', '\\'];
    let first = command.split_whitespace().next().unwrap_or_default();
    let plain = first.chars().all(|letter| letter.is_ascii_alphanumeric() || "_-./+".contains(letter));
    let program = first.contains('/') || path.split(':').any(|dir| std::path::Path::new(dir).join(first).is_file());
    if first.is_empty() || !plain || !program || command.contains(MORE_THAN_WORDS) {
        return command.to_owned();
    }
    format!("exec {command}")
}

/// Whether the child has ended; it is not reaped by this.
fn is_zombie(pid: Pid) -> bool {
    let flags = WaitPidFlag::WEXITED | WaitPidFlag::WNOHANG | WaitPidFlag::WNOWAIT;
    !matches!(waitid(Id::Pid(pid), flags), Ok(WaitStatus::StillAlive))
}

fn usage(seen: Seen) -> Usage {
    let per_second = sysconf(SysconfVar::CLK_TCK).ok().flatten().and_then(|ticks| u64::try_from(ticks).ok());
    let per_second = per_second.filter(|ticks| *ticks > 0).unwrap_or(100);
    let time = |ticks: u64| Duration::from_millis(ticks.saturating_mul(1000) / per_second);
    Usage { user: time(seen.user_ticks), system: time(seen.system_ticks) }
}

/// Resolves when nobody of the group is left, nor anybody with the mark.
fn outlived(group: Pid, mark: Option<&str>) -> impl Future<Output = ()> {
    let mut wait = GROUP_POLL;
    async move {
        while is_alive(group) || mark.is_some_and(|mark| !orphans::members(group.as_raw(), mark).is_empty()) {
            tokio::time::sleep(wait).await;
            wait = (wait * 5 / 4).min(GROUP_POLL_MAX);
        }
    }
}

/// Whether a process group has members.
pub fn is_alive(group: Pid) -> bool {
    killpg(group, None).is_ok()
}

/// Signals the whole group, and whoever of this start has left it; a group that is gone is fine.
///
/// A request to end is not for those who have a parent among them: it is their parent who asks them (a supervisor that we
/// supervise, say), and many programs read a second request as "now" (supervisor.md 6, trap 10).
pub fn signal(group: Pid, mark: &str, signal: Signal) {
    assert!(group.as_raw() > 1, "process group {group} is ourselves or everything");
    // First, so that nobody is orphaned out of sight in between.
    let mut strays = orphans::strays(group.as_raw(), mark);
    if is_request(signal) {
        strays.retain(Seen::is_orphan);
    }
    let _ = killpg(group, signal);
    for stray in strays {
        stray.signal(signal);
    }
}

/// Whether a program may answer a signal.
pub fn is_request(signal: Signal) -> bool {
    !matches!(signal, Signal::SIGKILL | Signal::SIGSTOP | Signal::SIGCONT)
}

/// Asks those to end whom nobody else can ask any more, each once.
pub fn ask_orphans(group: Pid, mark: &str, signal: Signal, asked: &mut BTreeSet<(i32, u64)>) {
    let strays = orphans::strays(group.as_raw(), mark).into_iter().filter(Seen::is_orphan);
    for stray in strays.filter(|stray| asked.insert((stray.pid, stray.started))) {
        stray.signal(signal);
        stray.signal(Signal::SIGCONT);
    }
}

/// Signals the leader alone.
pub fn signal_leader(leader: Pid, signal: Signal) {
    assert!(leader.as_raw() > 1, "process {leader} is ourselves or everything");
    let _ = kill(leader, signal);
}

fn exit_of(status: std::process::ExitStatus) -> Exit {
    match (status.code(), status.signal()) {
        (Some(code), _) => Exit::Code(code),
        (None, Some(signal)) => Exit::Signal(signal),
        (None, None) => Exit::Code(-1),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_single_program_takes_the_shells_place() {
        let check = |command: &str, elided: bool| {
            let expected = if elided { format!("exec {command}") } else { command.to_owned() };
            assert_eq!(elide_shell(command, "/nowhere:/bin"), expected);
        };
        check("sleep 5", true);
        check("/opt/etcd --name 'a b' --port $PORT", true);
        check("bin/etcd --name x", true);
        check("VAR=x sleep 5", false);
        check("sleep 5 && sleep 6", false);
        check("sleep 5 > log", false);
        check("trap x INT", false);
        check("exit 3", false);
        check("", false);
    }
}

//! A real child behind a process: its shell, its group, its one pipe, and the events that it sends.

use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::process::CommandExt;
use std::os::unix::process::ExitStatusExt;
use std::process::Command;
use std::process::Stdio;
use std::time::Duration;

use nix::sys::signal::Signal;
use nix::sys::signal::killpg;
use nix::unistd::Pid;
use tokio::net::unix::pipe;
use tokio::sync::mpsc;

use crate::program::Manner;
use crate::supervisor::output::Feed;
use crate::supervisor::output::store::Stream;
use crate::supervisor::process::Exit;
use crate::supervisor::process::Input;

/// How often a group that outlives its leader is looked at.
const GROUP_POLL: Duration = Duration::from_millis(20);

/// What a child needs to start.
#[derive(Clone, Debug)]
pub struct Launch {
    pub index: usize,
    pub generation: u64,
    pub command: String,
    pub environment: Vec<(String, String)>,
    pub feed: Feed,
    pub manner: Manner,
}

/// Something that happened to the process at this place, in this start of it.
#[derive(Debug)]
pub struct Event {
    pub index: usize,
    pub generation: u64,
    pub input: Input,
}

/// Starts `/bin/sh -c command` in a group of its own and a task that reports on it. The group's id is the leader's pid.
pub fn spawn(launch: Launch, events: mpsc::UnboundedSender<Event>) -> io::Result<Pid> {
    let (reader, writer) = io::pipe()?;
    let mut command = Command::new("/bin/sh");
    let line = match launch.manner {
        Manner::Original => launch.command.clone(),
        Manner::Native => elide_shell(&launch.command, search_path(&launch.environment)),
    };
    command
        .arg("-c")
        .arg(line)
        .envs(launch.environment.iter().map(|(key, value)| (key, value)))
        .stdin(Stdio::null())
        .stdout(writer.try_clone()?)
        .stderr(writer)
        .process_group(0);
    let mut child = tokio::process::Command::from(command).spawn()?;
    let number = child.id().ok_or_else(|| io::Error::other("it ended before it had a pid"))?;
    let group = Pid::from_raw(i32::try_from(number).map_err(io::Error::other)?);
    let reader = pipe::Receiver::from_owned_fd(OwnedFd::from(reader))?;
    let (index, generation) = (launch.index, launch.generation);
    let reading = launch.feed.read(reader, Stream::Out, group.as_raw());
    tokio::spawn(async move {
        let report = |input: Input| {
            // The loop is gone only when the supervisor has ended.
            let _ = events.send(Event { index, generation, input });
        };
        let exit = match child.wait().await {
            Ok(status) => exit_of(status),
            Err(_) => Exit::Code(-1),
        };
        report(Input::LeaderExited(exit));
        reading.ended(outlived(group)).await;
        report(Input::Emptied);
    });
    Ok(group)
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

/// Resolves when nobody of the group is left.
async fn outlived(group: Pid) {
    while is_alive(group) {
        tokio::time::sleep(GROUP_POLL).await;
    }
}

/// Whether a process group has members.
pub fn is_alive(group: Pid) -> bool {
    killpg(group, None).is_ok()
}

/// Signals the whole group; a group that is gone is fine.
pub fn signal(group: Pid, signal: Signal) {
    assert!(group.as_raw() > 1, "process group {group} is ourselves or everything");
    let _ = killpg(group, signal);
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

//! A second process that outlives the supervisor by a moment and leaves nothing behind.
//!
//! It reads process groups from a pipe, `+123` and `-123`, one a line. When the pipe ends, because the supervisor ended in
//! whatever way, kill -9 included, it kills every group that is still listed and removes the supervisor's directory of
//! links (supervisor.md 5.3).

use std::collections::BTreeSet;
use std::io::BufRead;
use std::io::BufReader;
use std::io::Write;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::path::PathBuf;
use std::process::Child;
use std::process::ChildStdin;
use std::process::Command;
use std::process::Stdio;

use nix::sys::signal::Signal;
use nix::sys::signal::killpg;
use nix::unistd::Pid;

/// The hidden word that makes our binary a guardian.
pub const WORD: &str = "__guardian";

/// The supervisor's end of the pipe.
#[derive(Debug)]
pub struct Guardian {
    child: Child,
    pipe: Option<ChildStdin>,
}

impl Guardian {
    /// Starts `program` as a guardian that removes `links` at the end.
    pub fn start(program: &Path, links: Option<&Path>) -> std::io::Result<Guardian> {
        let mut command = Command::new(program);
        // The name decides what the binary is; the personality of the supervisor must not leak here.
        command.arg0("quorate").args(["supervisor", WORD]);
        if let Some(links) = links {
            command.arg(links);
        }
        // A group of its own: the terminal's Ctrl-C is not for it.
        let mut child =
            command.process_group(0).stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null()).spawn()?;
        let pipe = child.stdin.take();
        Ok(Guardian { child, pipe })
    }

    pub fn watch(&mut self, group: Pid) {
        self.say(format!("+{group}\n"));
    }

    pub fn forget(&mut self, group: Pid) {
        self.say(format!("-{group}\n"));
    }

    fn say(&mut self, line: String) {
        // A guardian that was killed protects nobody; the supervisor itself still stops its children.
        if let Some(pipe) = &mut self.pipe {
            let _ = pipe.write_all(line.as_bytes());
        }
    }

    /// Ends it: whatever is still listed is killed before this returns.
    pub fn finish(mut self) {
        drop(self.pipe.take());
        let _ = self.child.wait();
    }
}

/// The guardian's whole life.
pub fn run(links: Option<PathBuf>) {
    let mut groups = BTreeSet::new();
    for line in BufReader::new(std::io::stdin()).lines() {
        let Ok(line) = line else { break };
        note(&mut groups, &line);
    }
    for group in groups {
        // Gone already is what we want.
        let _ = killpg(Pid::from_raw(group), Signal::SIGKILL);
    }
    if let Some(links) = links {
        let _ = std::fs::remove_dir_all(links);
    }
}

/// Takes one line. Groups 0 and 1, and negative ones, would hit ourselves or everything: never listed.
fn note(groups: &mut BTreeSet<i32>, line: &str) {
    let Some((sign, number)) = line.split_at_checked(1) else { return };
    match (sign, number.parse::<i32>()) {
        ("+", Ok(group)) if group > 1 => {
            groups.insert(group);
        }
        ("-", Ok(group)) => {
            groups.remove(&group);
        }
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn groups_come_and_go_and_wild_ones_are_never_listed() {
        let mut groups = BTreeSet::new();
        for line in ["+20", "+30", "-20", "+0", "+1", "+-5", "x", "", "+99999999999"] {
            note(&mut groups, line);
        }
        assert_eq!(groups.into_iter().collect::<Vec<_>>(), [30]);
    }
}

//! A second process that outlives the supervisor by a moment and leaves nothing behind.
//!
//! It reads from a pipe, one a line, process groups that come and go (`+123`, `-123`) and orphans that the supervisor has
//! adopted, with their start times (`*123 4567`, `/123 4567`). When the pipe ends, because the supervisor ended in whatever
//! way, kill -9 included, it kills everything that is still listed, then everybody with the supervisor's mark in his environment
//! until nobody is left, and removes the supervisor's directory of links (supervisor.md 5.3).
//!
//! It asks for no signal and heeds none but the last: whoever stops the supervisor's tree must not stop this first.

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
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use nix::sys::signal::Signal;
use nix::sys::signal::killpg;
use nix::unistd::Pid;

use crate::supervisor::orphans;
use crate::supervisor::orphans::Seen;
use crate::supervisor::orphans::Tag;

/// The hidden word that makes our binary a guardian.
pub const WORD: &str = "__guardian";

/// The supervisor's end of the pipe.
#[derive(Debug)]
pub struct Guardian {
    child: Child,
    pipe: Option<ChildStdin>,
    tag: Tag,
}

impl Guardian {
    /// Starts `program` as a guardian that removes `links` at the end.
    pub fn start(program: &Path, links: Option<&Path>) -> std::io::Result<Guardian> {
        let mut command = Command::new(program);
        // The name decides what the binary is; the personality of the supervisor must not leak here.
        let tag = Tag::ours();
        command.arg0("quorate").args(["supervisor", WORD, tag.id()]);
        // An outer supervisor that ends what has its mark ends us first, and then this, by itself.
        command.env_remove(orphans::VARIABLE);
        if let Some(links) = links {
            command.arg(links);
        }
        // A group of its own: the terminal's Ctrl-C is not for it.
        let mut child =
            command.process_group(0).stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null()).spawn()?;
        let pipe = child.stdin.take();
        Ok(Guardian { child, pipe, tag })
    }

    pub fn pid(&self) -> i32 {
        i32::try_from(self.child.id()).unwrap_or_default()
    }

    /// What it knows our children by.
    pub fn tag(&self) -> &Tag {
        &self.tag
    }

    pub fn watch(&mut self, group: Pid) {
        self.say(format!("+{group}\n"));
    }

    pub fn forget(&mut self, group: Pid) {
        self.say(format!("-{group}\n"));
    }

    /// Orphans that came to us, and those of them that are gone.
    pub fn adopt(&mut self, come: &[(i32, u64)], gone: &[(i32, u64)]) {
        for (sign, list) in [('*', come), ('/', gone)] {
            for (pid, started) in list {
                self.say(format!("{sign}{pid} {started}\n"));
            }
        }
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

/// The guardian's whole life: for the supervisor with this mark.
pub fn run(id: &str, links: Option<PathBuf>) {
    let unheard = Arc::new(AtomicBool::new(false));
    for signal in [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP, Signal::SIGQUIT] {
        // Unheard it would end us; then the supervisor's children are only its own.
        let _ = signal_hook::flag::register(signal as i32, Arc::clone(&unheard));
    }
    let mut listed = Listed::default();
    for line in BufReader::new(std::io::stdin()).lines() {
        let Ok(line) = line else { break };
        listed.note(&line);
    }
    for group in listed.groups {
        // Gone already is what we want.
        let _ = killpg(Pid::from_raw(group), Signal::SIGKILL);
    }
    for (pid, started) in listed.orphans {
        if let Some(seen) = Seen::of(pid).filter(|seen| seen.started == started) {
            seen.signal(Signal::SIGKILL);
        }
    }
    if !id.is_empty() {
        orphans::sweep_marked(id);
    }
    if let Some(links) = links {
        let _ = std::fs::remove_dir_all(links);
    }
}

/// Who is to be killed.
#[derive(Debug, Default)]
struct Listed {
    groups: BTreeSet<i32>,
    orphans: BTreeSet<(i32, u64)>,
}

impl Listed {
    /// Takes one line. Pids 0 and 1, and negative ones, would hit ourselves or everything: never listed.
    fn note(&mut self, line: &str) {
        let Some((sign, rest)) = line.split_at_checked(1) else { return };
        let orphan = || {
            let (pid, started) = rest.split_once(' ')?;
            Some((pid.parse::<i32>().ok()?, started.parse::<u64>().ok()?))
        };
        match (sign, rest.parse::<i32>(), orphan()) {
            ("+", Ok(group), _) if group > 1 => {
                self.groups.insert(group);
            }
            ("-", Ok(group), _) => {
                self.groups.remove(&group);
            }
            ("*", _, Some(orphan)) if orphan.0 > 1 => {
                self.orphans.insert(orphan);
            }
            ("/", _, Some(orphan)) => {
                self.orphans.remove(&orphan);
            }
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn groups_and_orphans_come_and_go_and_wild_ones_are_never_listed() {
        let mut listed = Listed::default();
        for line in ["+20", "+30", "-20", "+0", "+1", "+-5", "x", "", "+99999999999"] {
            listed.note(line);
        }
        assert_eq!(listed.groups.into_iter().collect::<Vec<_>>(), [30]);
        let mut listed = Listed::default();
        for line in ["*40 7", "*50 8", "/40 7", "/50 9", "*1 3", "*0 3", "*-4 3", "*60", "*60 x", "* "] {
            listed.note(line);
        }
        assert_eq!(listed.orphans.into_iter().collect::<Vec<_>>(), [(50, 8)]);
    }
}

//! Everything that our children start, also what tries to get away from them: found, signalled, reaped.
//!
//! ```text
//!  supervisor (subreaper) ── leader ── program ── grandchild in a session of its own
//!        └── orphan: its parent has ended, so it is ours now
//! ```
//!
//! Whoever leaves the process group is still below us, because orphans come to the nearest subreaper. To whom an orphan
//! belongs is written in its environment: every child gets `QUORATE_SUPERVISOR_ID=<supervisor>.<place>.<start>`, behind that of an
//! outer supervisor if we run under one. Orphans that cleared it are nobody's, and go when we go.
//!
//! Adopted children are reaped one by one, by their pid, and only those that nobody here started: a wait for anybody would
//! take the exit status of a child from whoever waits for it (supervisor.md 5.2).

use std::collections::BTreeMap;
use std::collections::BTreeSet;
use std::collections::VecDeque;
use std::time::Duration;
use std::time::Instant;

use nix::sys::signal::Signal;
use nix::sys::signal::kill;
use nix::sys::wait::Id;
use nix::sys::wait::WaitPidFlag;
use nix::sys::wait::waitid;
use nix::unistd::Pid;

use crate::common::procfs;
use crate::common::procfs::Stat;

/// The variable that says to which supervisor, process and start of it somebody belongs.
pub const VARIABLE: &str = "QUORATE_SUPERVISOR_ID";
/// How long the last look for survivors goes on. What does not die of SIGKILL in that time hangs in the kernel.
const SWEEP_MAX: Duration = Duration::from_secs(5);
const SWEEP_POLL: Duration = Duration::from_millis(5);

/// The mark of one supervisor.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tag {
    id: String,
    outer: Option<String>,
}

impl Tag {
    /// One that no other supervisor has: our pid, and when we were started.
    pub fn ours() -> Tag {
        let own = procfs::own_pid();
        let started = Stat::of(own).map_or(0, |stat| stat.started);
        Tag { id: format!("{own}-{started:x}"), outer: std::env::var(VARIABLE).ok().filter(|value| !value.is_empty()) }
    }

    pub fn id(&self) -> &str {
        &self.id
    }

    /// What one start of a process is marked with.
    pub fn mark(&self, place: usize, generation: u64) -> String {
        format!("{}.{place}.{generation}", self.id)
    }

    /// The variable's value for that start.
    pub fn value(&self, mark: &str) -> String {
        self.outer.as_ref().map_or_else(|| mark.to_owned(), |outer| format!("{outer},{mark}"))
    }
}

/// A process as /proc shows it. The start time tells it from another one that gets its pid later.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Seen {
    pub pid: i32,
    pub parent: i32,
    pub group: i32,
    pub started: u64,
    pub zombie: bool,
    /// Clock ticks of itself and of the children that it waited for.
    pub user_ticks: u64,
    pub system_ticks: u64,
}

impl Seen {
    /// `None` when it is gone.
    pub fn of(pid: i32) -> Option<Seen> {
        let stat = Stat::of(pid)?;
        Some(Seen {
            pid,
            parent: stat.parent,
            group: stat.group,
            started: stat.started,
            zombie: stat.zombie,
            user_ticks: stat.user_ticks.saturating_add(stat.waited_user_ticks),
            system_ticks: stat.system_ticks.saturating_add(stat.waited_system_ticks),
        })
    }

    /// Whether its environment, as it was when its program began, has this mark, or one of this supervisor.
    pub fn is_marked(&self, mark: &str) -> bool {
        let Ok(environment) = std::fs::read(format!("/proc/{}/environ", self.pid)) else { return false };
        let values = environment.split(|byte| *byte == 0).filter_map(|pair| {
            let value = pair.strip_prefix(VARIABLE.as_bytes())?.strip_prefix(b"=")?;
            std::str::from_utf8(value).ok()
        });
        let belongs = |part: &str| part.strip_prefix(mark).is_some_and(|rest| rest.is_empty() || rest.starts_with('.'));
        values.flat_map(|value| value.split(',')).any(belongs)
    }

    /// It has no parent but us.
    pub fn is_orphan(&self) -> bool {
        self.parent == procfs::own_pid()
    }

    /// A signal to this very process; to nobody if its pid is another's by now.
    pub fn signal(&self, signal: Signal) {
        if self.pid > 1 && Seen::of(self.pid).is_some_and(|now| now.started == self.started) {
            // It may have ended in between, which is what a signal is mostly for.
            let _ = kill(Pid::from_raw(self.pid), signal);
        }
    }
}

/// Makes orphans of our descendants ours.
pub fn adopt() {
    // Kernels before 3.4 cannot; then the group and the guardian have to do.
    let _ = nix::sys::prctl::set_child_subreaper(true);
}

/// Who belongs to a start of a process: its group, what descends from its leader, and what has its mark. Zombies do not count.
///
/// One look at everybody, not at the kernel's lists of children: those leave some out while others end (proc_pid_task_children(5)),
/// and a stop would be over too early.
pub fn members(group: i32, mark: &str) -> Vec<Seen> {
    let mut by_parent: BTreeMap<i32, Vec<Seen>> = BTreeMap::new();
    for seen in procfs::pids().filter_map(Seen::of) {
        by_parent.entry(seen.parent).or_default().push(seen);
    }
    let mut found = Vec::new();
    let mut open: VecDeque<(i32, bool)> = VecDeque::from([(procfs::own_pid(), false)]);
    while let Some((parent, inside)) = open.pop_front() {
        // Taken out, so that nobody is visited twice.
        for seen in by_parent.remove(&parent).unwrap_or_default() {
            let inside = inside || seen.pid == group || seen.group == group || seen.is_marked(mark);
            open.push_back((seen.pid, inside));
            if inside && !seen.zombie {
                found.push(seen);
            }
        }
    }
    found
}

/// Those of them who have left the group.
pub fn strays(group: i32, mark: &str) -> Vec<Seen> {
    let mut found = members(group, mark);
    found.retain(|seen| seen.group != group);
    found
}

/// Everybody with a mark of this supervisor, wherever they are.
pub fn marked(id: &str) -> Vec<Seen> {
    let others = procfs::pids().filter(|pid| *pid != procfs::own_pid()).filter_map(Seen::of);
    others.filter(|seen| !seen.zombie && seen.is_marked(id)).collect()
}

/// Children that nobody here started.
#[derive(Debug, Default)]
pub struct Adopted {
    /// Zombies at the last look. Whoever started a child of his own reaps it before the next one.
    dead: BTreeSet<i32>,
    living: Vec<(i32, u64)>,
}

/// What changed among the living ones.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Changes {
    pub come: Vec<(i32, u64)>,
    pub gone: Vec<(i32, u64)>,
    /// Some zombies wait for the next look.
    pub again: bool,
}

impl Adopted {
    /// Looks at our children but for the `known` ones, and reaps those that were dead at the last look, too.
    pub fn look(&mut self, known: &BTreeSet<i32>) -> Changes {
        let seen =
            procfs::children(procfs::own_pid()).into_iter().filter(|pid| !known.contains(pid)).filter_map(Seen::of);
        let (dead, living): (Vec<Seen>, Vec<Seen>) = seen.partition(|seen| seen.zombie);
        let mut still_dead = BTreeSet::new();
        for zombie in dead {
            if self.dead.contains(&zombie.pid) {
                let flags = WaitPidFlag::WEXITED | WaitPidFlag::WNOHANG;
                // Somebody else may have been quicker.
                let _ = waitid(Id::Pid(Pid::from_raw(zombie.pid)), flags);
            } else {
                still_dead.insert(zombie.pid);
            }
        }
        let living: Vec<(i32, u64)> = living.iter().map(|seen| (seen.pid, seen.started)).collect();
        let missing = |from: &[(i32, u64)], in_here: &[(i32, u64)]| -> Vec<(i32, u64)> {
            from.iter().filter(|one| !in_here.contains(one)).copied().collect()
        };
        let changes = Changes {
            come: missing(&living, &self.living),
            gone: missing(&self.living, &living),
            again: !still_dead.is_empty(),
        };
        self.dead = still_dead;
        self.living = living;
        changes
    }
}

/// Kills everything below us but for `spared`, until nothing is left.
pub async fn sweep(spared: i32) {
    let deadline = Instant::now() + SWEEP_MAX;
    while Instant::now() < deadline {
        let left: Vec<i32> =
            procfs::children_by_scan(procfs::own_pid()).into_iter().filter(|pid| *pid != spared).collect();
        if left.is_empty() {
            return;
        }
        for pid in left {
            match Seen::of(pid) {
                Some(seen) if seen.zombie => {
                    let flags = WaitPidFlag::WEXITED | WaitPidFlag::WNOHANG;
                    let _ = waitid(Id::Pid(Pid::from_raw(pid)), flags);
                }
                // Its own children come to us when it is dead, and are seen the next time round.
                Some(seen) => seen.signal(Signal::SIGKILL),
                None => {}
            }
        }
        tokio::time::sleep(SWEEP_POLL).await;
    }
}

/// The guardian's part, when the supervisor is gone: everybody with its mark, until nobody is left.
pub fn sweep_marked(id: &str) {
    let deadline = Instant::now() + SWEEP_MAX;
    while Instant::now() < deadline {
        let left = marked(id);
        if left.is_empty() {
            return;
        }
        for seen in left {
            seen.signal(Signal::SIGKILL);
        }
        std::thread::sleep(SWEEP_POLL);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    use std::os::unix::process::CommandExt;
    use std::process::Command;
    use std::process::Stdio;

    #[test]
    fn marks_are_whole_and_survive_nesting() {
        let tag = Tag { id: "12-ab".to_owned(), outer: None };
        let inner = Tag { id: "13-cd".to_owned(), outer: Some(tag.value(&tag.mark(1, 1))) };
        let value = inner.value(&inner.mark(2, 3));
        assert_eq!(value, "12-ab.1.1,13-cd.2.3");
        let mut child = Command::new("sleep")
            .arg("100")
            .env(VARIABLE, value)
            .process_group(0)
            .stdin(Stdio::null())
            .spawn()
            .unwrap();
        let seen = Seen::of(i32::try_from(child.id()).unwrap()).expect("it is there");
        // The kernel lets us go on a moment before the new program's environment can be read.
        while !seen.is_marked("12-ab") {
            std::thread::yield_now();
        }
        for mark in ["12-ab", "12-ab.1.1", "13-cd", "13-cd.2.3"] {
            assert!(seen.is_marked(mark), "{mark}");
        }
        for mark in ["12-a", "12-ab.1.10", "13-cd.2.30", "13-cd.2.31", "2-ab", "x"] {
            assert!(!seen.is_marked(mark), "{mark}");
        }
        // Not somebody else who has the pid now.
        Seen { started: seen.started + 1, ..seen }.signal(Signal::SIGKILL);
        assert!(child.try_wait().unwrap().is_none());
        seen.signal(Signal::SIGKILL);
        child.wait().unwrap();
    }
}

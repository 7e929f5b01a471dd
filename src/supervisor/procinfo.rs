//! What /proc says of a process group: the real program, how many there are, what they use, where they listen.
//!
//! Processes vanish while this is read: whatever cannot be read is not there. Sums go over the whole group and over
//! descendants that left it, because the leader may be a shell that does nothing (supervisor.md 6, trap 29).

use std::collections::BTreeMap;
use std::collections::BTreeSet;
use std::collections::HashMap;
use std::net::SocketAddr;
use std::time::Instant;

use serde::Deserialize;
use serde::Serialize;

use crate::common::procfs;
use crate::common::procfs::Stat;

/// Ticks of the clock that /proc counts CPU time in: USER_HZ, the same on every machine that Rust knows.
const TICKS_A_SECOND: f64 = 100.0;
/// Programs that run others: who looks for the real one looks behind them.
const SHELLS: [&str; 7] = ["sh", "dash", "bash", "ash", "busybox", "zsh", "ksh"];
/// Longest command line that is shown of somebody who has our port.
const COMMAND_CHARS_MAX: usize = 120;

/// All processes at one moment.
#[derive(Clone, Debug)]
pub struct Table {
    stats: BTreeMap<i32, Stat>,
    at: Instant,
}

/// What one group is and uses.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct GroupInfo {
    /// The program that was meant, behind any shell.
    pub pid: i32,
    /// A shell is in between.
    pub behind_shell: bool,
    pub pids: usize,
    /// Of one CPU. `None` until there are two samples.
    pub cpu_percent: Option<f64>,
    pub rss_bytes: u64,
    pub threads: u64,
    pub fds: u64,
    /// TCP addresses on which it listens.
    pub listen: Vec<SocketAddr>,
}

/// Somebody who listens on a port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Owner {
    pub address: SocketAddr,
    /// Not known of other users' processes.
    pub process: Option<(i32, String)>,
}

impl std::fmt::Display for Owner {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match &self.process {
            Some((pid, command)) => write!(f, "{} is in use by pid {pid} ({command})", self.address),
            None => write!(f, "{} is in use by another user's process", self.address),
        }
    }
}

impl Table {
    /// Reads it now. Without a /proc it is empty.
    pub fn read() -> Table {
        let stats = procfs::pids().filter_map(|pid| Some((pid, Stat::of(pid)?))).collect();
        Table { stats, at: Instant::now() }
    }

    /// The pids of a group, and of everything that its processes started.
    fn members(&self, group: i32) -> BTreeSet<i32> {
        let mut found: BTreeSet<i32> =
            self.stats.iter().filter(|(_, stat)| stat.group == group).map(|(pid, _)| *pid).collect();
        loop {
            let children = self.stats.iter().filter(|(pid, stat)| found.contains(&stat.parent) && !found.contains(pid));
            let children: Vec<i32> = children.map(|(pid, _)| *pid).collect();
            if children.is_empty() {
                return found;
            }
            found.extend(children);
        }
    }

    /// The program behind the shells, from the leader down, and whether there was a shell.
    fn program(&self, members: &BTreeSet<i32>, leader: i32) -> Option<(i32, bool)> {
        let mut pid = if members.contains(&leader) { leader } else { *members.first()? };
        let mut behind_shell = pid != leader;
        // Each step goes to a child, of which there are finitely many; a pid that came again could make a ring.
        for _ in 0..members.len() {
            let is_shell = self.stats.get(&pid).is_some_and(|stat| SHELLS.contains(&stat.name.as_str()));
            let mut children = self.stats.iter().filter(|(child, stat)| stat.parent == pid && members.contains(child));
            match (is_shell, children.next(), children.next()) {
                // With several children nobody can say which one was meant.
                (true, Some((child, _)), None) => {
                    pid = *child;
                    behind_shell = true;
                }
                _ => break,
            }
        }
        Some((pid, behind_shell))
    }

    /// CPU use of these processes since `before`, in percent of one CPU.
    fn cpu_percent(&self, before: &Table, members: &BTreeSet<i32>) -> Option<f64> {
        let elapsed = self.at.checked_duration_since(before.at)?.as_secs_f64();
        let used = members.iter().filter_map(|pid| {
            let now = self.stats.get(pid)?;
            let earlier = before.stats.get(pid).filter(|earlier| earlier.started == now.started);
            Some(now.ticks().saturating_sub(earlier.map_or(0, Stat::ticks)))
        });
        let used = used.sum::<u64>() as f64 / TICKS_A_SECOND;
        (elapsed > 0.0).then(|| used / elapsed * 100.0)
    }

    /// What is known of a group; `None` if nothing of it lives.
    pub fn group(&self, before: Option<&Table>, group: i32, listeners: &Listeners) -> Option<GroupInfo> {
        let members = self.members(group);
        let (pid, behind_shell) = self.program(&members, group)?;
        let mut info = GroupInfo {
            pid,
            behind_shell,
            pids: members.len(),
            cpu_percent: before.and_then(|before| self.cpu_percent(before, &members)),
            rss_bytes: 0,
            threads: 0,
            fds: 0,
            listen: Vec::new(),
        };
        for pid in &members {
            let status = procfs::status(*pid);
            let number = |name| procfs::status_number(&status, name).unwrap_or_default();
            info.rss_bytes += number("VmRSS") * 1024;
            info.threads += number("Threads");
            for inode in procfs::open_files(*pid) {
                info.fds += 1;
                info.listen.extend(inode.and_then(|inode| listeners.0.get(&inode).copied()));
            }
        }
        // Forked processes share their sockets.
        info.listen.sort();
        info.listen.dedup();
        Some(info)
    }
}

/// All listening TCP sockets of our network, by inode.
#[derive(Clone, Debug, Default)]
pub struct Listeners(HashMap<u64, SocketAddr>);

impl Listeners {
    pub fn read() -> Listeners {
        let sockets = procfs::tcp_sockets(procfs::own_pid()).into_iter().filter(|socket| socket.listening);
        Listeners(sockets.map(|socket| (socket.inode, socket.local)).collect())
    }

    /// Who would be in the way of listening on `wanted`.
    pub fn owner(&self, wanted: SocketAddr) -> Option<Owner> {
        let in_the_way = |there: &SocketAddr| {
            let same = there.ip() == wanted.ip() || there.ip().is_unspecified() || wanted.ip().is_unspecified();
            there.port() == wanted.port() && same && wanted.port() != 0
        };
        let (inode, address) = self.0.iter().find(|(_, there)| in_the_way(there))?;
        Some(Owner { address: *address, process: holder_of(*inode) })
    }
}

/// The process that has this socket open, and its command.
fn holder_of(inode: u64) -> Option<(i32, String)> {
    let pid = procfs::pids().find(|pid| procfs::open_files(*pid).any(|open| open == Some(inode)))?;
    Some((pid, command_of(pid)))
}

/// The command line of a process, shortened.
pub fn command_of(pid: i32) -> String {
    let bytes = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    // Zero bytes part the words; line feeds inside of them would tear the sentence in which this is told.
    let text = String::from_utf8_lossy(&bytes).replace(char::is_control, " ");
    let text = text.trim();
    match text.char_indices().nth(COMMAND_CHARS_MAX) {
        Some((at, _)) => format!("{}…", &text[..at]),
        None if text.is_empty() => "?".to_owned(),
        None => text.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::TcpListener;
    use std::os::unix::process::CommandExt;
    use std::process::Command;

    #[test]
    fn a_port_has_an_owner_with_a_pid_and_a_command() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let owner = Listeners::read().owner(address).unwrap();
        let (pid, command) = owner.process.clone().unwrap();
        assert_eq!(pid, i32::try_from(std::process::id()).unwrap());
        assert!(!command.is_empty() && owner.to_string().contains(&format!("pid {pid} (")), "{owner}");
        let everywhere = SocketAddr::new("0.0.0.0".parse().unwrap(), address.port());
        assert!(Listeners::read().owner(everywhere).is_some());
        drop(listener);
        // Somebody else may have it by now, a test beside this one.
        let now = Listeners::read().owner(address).and_then(|owner| owner.process);
        assert!(now.is_none_or(|(_, command)| !command.is_empty()));
    }

    #[test]
    fn the_program_behind_a_shell_is_found_and_its_group_summed() {
        let mut shell = Command::new("/bin/sh").args(["-c", "sleep 1000; true"]).process_group(0).spawn().unwrap();
        let group = i32::try_from(shell.id()).unwrap();
        let info = loop {
            let info = Table::read().group(None, group, &Listeners::default()).unwrap();
            if info.pids == 2 && command_of(info.pid).starts_with("sleep") {
                break info;
            }
            std::thread::yield_now();
        };
        assert!(info.behind_shell && info.pid != group && info.rss_bytes > 0 && info.threads == 2, "{info:?}");
        let before = Table::read();
        let again = Table::read().group(Some(&before), group, &Listeners::default()).unwrap();
        assert!(again.cpu_percent.is_some());
        nix::sys::signal::killpg(nix::unistd::Pid::from_raw(group), nix::sys::signal::Signal::SIGKILL).unwrap();
        shell.wait().unwrap();
        assert_eq!(Table::read().program(&BTreeSet::new(), group), None);
    }
}

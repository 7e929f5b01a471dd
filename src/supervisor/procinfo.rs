//! What /proc says of a process group: the real program, how many there are, what they use, where they listen.
//!
//! Processes vanish while this is read: whatever cannot be read is not there. Sums go over the whole group and over
//! descendants that left it, because the leader may be a shell that does nothing (supervisor.md 6, trap 29).

use std::collections::BTreeMap;
use std::collections::BTreeSet;
use std::collections::HashMap;
use std::net::IpAddr;
use std::net::Ipv4Addr;
use std::net::Ipv6Addr;
use std::net::SocketAddr;
use std::path::Path;
use std::time::Instant;

use serde::Deserialize;
use serde::Serialize;

/// Ticks of the clock that /proc counts CPU time in: USER_HZ, the same on every machine that Rust knows.
const TICKS_A_SECOND: f64 = 100.0;
/// The state of a listening TCP socket in /proc/net/tcp.
const LISTENING: &str = "0A";
/// Programs that run others: who looks for the real one looks behind them.
const SHELLS: [&str; 7] = ["sh", "dash", "bash", "ash", "busybox", "zsh", "ksh"];
/// Longest command line that is shown of somebody who has our port.
const COMMAND_CHARS_MAX: usize = 120;

/// One process in /proc at one moment.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Stat {
    name: String,
    parent: i32,
    group: i32,
    ticks: u64,
    /// With the pid, what makes a process itself: pids come again.
    started: u64,
}

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
        let entries = std::fs::read_dir("/proc").into_iter().flatten().flatten();
        let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
        let stat = |pid: i32| {
            let text = std::fs::read(format!("/proc/{pid}/stat")).ok()?;
            parse_stat(&String::from_utf8_lossy(&text)).map(|stat| (pid, stat))
        };
        Table { stats: pids.filter_map(stat).collect(), at: Instant::now() }
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
            Some(now.ticks.saturating_sub(earlier.map_or(0, |earlier| earlier.ticks)))
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
            let (rss, threads) = read_status(*pid);
            info.rss_bytes += rss;
            info.threads += threads;
            for inode in open_files(*pid) {
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

/// The fields of /proc/PID/stat that we need. The name may hold spaces and brackets: it ends at the last bracket.
fn parse_stat(text: &str) -> Option<Stat> {
    let (open, close) = (text.find('(')?, text.rfind(')')?);
    let name = text.get(open + 1..close)?.to_owned();
    let fields: Vec<&str> = text.get(close + 1..)?.split_whitespace().collect();
    // Field 3 of proc(5), the state, is the first of these.
    let number = |field: usize| fields.get(field - 3)?.parse::<u64>().ok();
    let signed = |field: usize| fields.get(field - 3)?.parse::<i32>().ok();
    Some(Stat {
        name,
        parent: signed(4)?,
        group: signed(5)?,
        ticks: number(14)?.saturating_add(number(15)?),
        started: number(22)?,
    })
}

/// Resident bytes and threads of a process; nothing of one that is gone.
fn read_status(pid: i32) -> (u64, u64) {
    let text = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let field = |name: &str| -> u64 {
        let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
        line.and_then(|line| line.split_whitespace().next()?.parse().ok()).unwrap_or_default()
    };
    (field("VmRSS") * 1024, field("Threads"))
}

/// The open descriptors of a process: for sockets their inodes.
fn open_files(pid: i32) -> Vec<Option<u64>> {
    let entries = std::fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten();
    entries.map(|entry| socket_inode(&std::fs::read_link(entry.path()).ok()?)).collect()
}

fn socket_inode(target: &Path) -> Option<u64> {
    target.to_str()?.strip_prefix("socket:[")?.strip_suffix(']')?.parse().ok()
}

/// All listening TCP sockets of our network, by inode.
#[derive(Clone, Debug, Default)]
pub struct Listeners(HashMap<u64, SocketAddr>);

impl Listeners {
    pub fn read() -> Listeners {
        let files = ["/proc/net/tcp", "/proc/net/tcp6"].map(|path| std::fs::read_to_string(path).unwrap_or_default());
        Listeners(files.iter().flat_map(|text| text.lines().skip(1)).filter_map(parse_socket).collect())
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

/// One line of /proc/net/tcp: the inode and the address of a listening socket.
fn parse_socket(line: &str) -> Option<(u64, SocketAddr)> {
    let fields: Vec<&str> = line.split_whitespace().collect();
    if *fields.get(3)? != LISTENING {
        return None;
    }
    let (address, port) = fields.get(1)?.split_once(':')?;
    let port = u16::from_str_radix(port, 16).ok()?;
    Some((fields.get(9)?.parse().ok()?, SocketAddr::new(parse_address(address)?, port)))
}

/// Addresses are words of 32 bits, each printed as the machine holds it.
fn parse_address(hex: &str) -> Option<IpAddr> {
    let words = hex.as_bytes().chunks(8).map(|digits| {
        let word = u32::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()?;
        Some(word.to_ne_bytes())
    });
    let bytes: Vec<u8> = words.collect::<Option<Vec<[u8; 4]>>>()?.concat();
    match bytes.len() {
        4 => Some(IpAddr::V4(Ipv4Addr::from(<[u8; 4]>::try_from(bytes).ok()?))),
        16 => {
            let address = Ipv6Addr::from(<[u8; 16]>::try_from(bytes).ok()?);
            Some(address.to_ipv4_mapped().map_or(IpAddr::V6(address), IpAddr::V4))
        }
        _ => None,
    }
}

/// The process that has this socket open, and its command.
fn holder_of(inode: u64) -> Option<(i32, String)> {
    let entries = std::fs::read_dir("/proc").ok()?.flatten();
    let mut pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
    let pid = pids.find(|pid| open_files(*pid).contains(&Some(inode)))?;
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
    fn stat_lines_are_read_whatever_the_name() {
        let line = "42 (a) b (c) S 7 40 40 0 -1 4194304 1 2 3 4 50 60 7 8 20 0 3 0 12345 1000 200 1 2 3";
        let stat = parse_stat(line).unwrap();
        assert_eq!((stat.name.as_str(), stat.parent, stat.group), ("a) b (c", 7, 40));
        assert_eq!((stat.ticks, stat.started), (110, 12345));
        for garbage in ["", "42", "42 (a", "42 )a(", "42 (a) S", "42 (a) S x y z"] {
            assert_eq!(parse_stat(garbage), None, "{garbage:?}");
        }
    }

    #[test]
    fn addresses_are_read_as_the_kernel_prints_them() {
        let line =
            "   0: 0100007F:0CEA 00000000:0000 0A 00000000:00000000 00:00000000 00000000  1000        0 4711 1 0";
        assert_eq!(parse_socket(line), Some((4711, "127.0.0.1:3306".parse().unwrap())));
        assert_eq!(parse_socket(&line.replace(" 0A ", " 01 ")), None);
        assert_eq!(parse_address("00000000000000000000000001000000"), Some("::1".parse().unwrap()));
        assert_eq!(parse_address("0000000000000000FFFF00000100007F"), Some("127.0.0.1".parse().unwrap()));
        for garbage in ["", "01", "0100007", "zz00007F", "é100007F"] {
            assert_eq!(parse_address(garbage), None, "{garbage:?}");
        }
    }

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
        assert_eq!(Listeners::read().owner(address), None);
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

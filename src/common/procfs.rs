//! /proc, read: who there is, what they use, which sockets they have open (proc(5)).
//!
//! Processes vanish while this is read: whatever cannot be read is not there.

use std::fs;
use std::net::IpAddr;
use std::net::Ipv4Addr;
use std::net::Ipv6Addr;
use std::net::SocketAddr;

/// The kernel's number for a listening socket.
const LISTENING: &str = "0A";

/// What /proc/PID/stat says of a process, as far as it counts here. Times are in ticks of the clock (USER_HZ).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stat {
    pub name: String,
    pub zombie: bool,
    pub parent: i32,
    pub group: i32,
    pub user_ticks: u64,
    pub system_ticks: u64,
    /// Of the children that it waited for.
    pub waited_user_ticks: u64,
    pub waited_system_ticks: u64,
    /// Since the machine was booted. With the pid, what makes a process itself: pids come again.
    pub started: u64,
    pub virtual_bytes: u64,
    pub resident_pages: u64,
}

impl Stat {
    /// `None` when the process is gone.
    pub fn of(pid: i32) -> Option<Stat> {
        Stat::parse(&String::from_utf8_lossy(&fs::read(format!("/proc/{pid}/stat")).ok()?))
    }

    pub fn of_ourselves() -> Option<Stat> {
        Stat::parse(&String::from_utf8_lossy(&fs::read("/proc/self/stat").ok()?))
    }

    /// The name in brackets may hold anything, brackets too: it ends at the last one.
    pub fn parse(text: &str) -> Option<Stat> {
        let (open, close) = (text.find('(')?, text.rfind(')')?);
        let fields: Vec<&str> = text.get(close + 1..)?.split_ascii_whitespace().collect();
        // The state, which proc(5) counts as the third field, is the first one here.
        let field = |number: usize| fields.get(number - 3).copied();
        let number = |at: usize| field(at)?.parse::<u64>().ok();
        Some(Stat {
            name: text.get(open + 1..close)?.to_owned(),
            zombie: matches!(field(3)?, "Z" | "X"),
            parent: field(4)?.parse().ok()?,
            group: field(5)?.parse().ok()?,
            user_ticks: number(14)?,
            system_ticks: number(15)?,
            waited_user_ticks: number(16)?,
            waited_system_ticks: number(17)?,
            started: number(22)?,
            virtual_bytes: number(23)?,
            resident_pages: number(24)?,
        })
    }

    /// CPU time of all its threads, ended ones too.
    pub fn ticks(&self) -> u64 {
        self.user_ticks.saturating_add(self.system_ticks)
    }
}

/// Every pid there is. Without a /proc there is none.
pub fn pids() -> impl Iterator<Item = i32> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok())
}

pub fn own_pid() -> i32 {
    // Pids fit: the kernel's limit is far below.
    i32::try_from(std::process::id()).unwrap_or_default()
}

/// The children of a process, by whichever of its threads.
pub fn children(pid: i32) -> Vec<i32> {
    let Ok(threads) = fs::read_dir(format!("/proc/{pid}/task")) else { return Vec::new() };
    let mut found = Vec::new();
    for thread in threads.flatten() {
        let Ok(text) = fs::read_to_string(thread.path().join("children")) else {
            return if thread.path().exists() { children_by_scan(pid) } else { found };
        };
        found.extend(text.split_ascii_whitespace().filter_map(|number| number.parse::<i32>().ok()));
    }
    found
}

/// The same without the kernel's lists, of which some have none, and which leave some out while others end
/// (proc_pid_task_children(5)).
pub fn children_by_scan(parent: i32) -> Vec<i32> {
    pids().filter(|pid| Stat::of(*pid).is_some_and(|stat| stat.parent == parent)).collect()
}

/// /proc/PID/status; empty when the process is gone.
pub fn status(pid: i32) -> String {
    fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default()
}

/// The number on one line of it, in the line's own unit. Who has ended and was not waited for has no memory.
pub fn status_number(status: &str, name: &str) -> Option<u64> {
    let line = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
    line.split_ascii_whitespace().next()?.parse().ok()
}

/// A TCP socket of the kernel's tables.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Socket {
    /// IPv4 addresses that are written as IPv6 ones are shown as what they are.
    pub local: SocketAddr,
    pub listening: bool,
    /// 0 of those that nobody has open any more.
    pub inode: u64,
}

/// The TCP sockets of the network that a process is in.
pub fn tcp_sockets(pid: i32) -> Vec<Socket> {
    let tables = ["tcp", "tcp6"].map(|table| fs::read_to_string(format!("/proc/{pid}/net/{table}")));
    tables.iter().flatten().flat_map(|table| table.lines().filter_map(Socket::parse)).collect()
}

impl Socket {
    /// One line of /proc/net/tcp: the second field is where, the fourth the state, the tenth the inode. `None` for its head.
    pub fn parse(line: &str) -> Option<Socket> {
        let mut fields = line.split_ascii_whitespace();
        let (address, port) = fields.nth(1)?.split_once(':')?;
        let local = SocketAddr::new(address_of(address)?, u16::from_str_radix(port, 16).ok()?);
        let listening = fields.nth(1)? == LISTENING;
        Some(Socket { local, listening, inode: fields.nth(5)?.parse().ok()? })
    }
}

/// Addresses are words of four bytes, each printed as the machine holds it.
fn address_of(hex: &str) -> Option<IpAddr> {
    if !hex.len().is_multiple_of(8) {
        return None;
    }
    let words = hex.as_bytes().chunks(8).map(|digits| {
        let word = u32::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()?;
        Some(word.to_ne_bytes())
    });
    let bytes = words.collect::<Option<Vec<[u8; 4]>>>()?.concat();
    match bytes.len() {
        4 => Some(IpAddr::V4(Ipv4Addr::from(<[u8; 4]>::try_from(bytes).ok()?))),
        16 => Some(IpAddr::V6(Ipv6Addr::from(<[u8; 16]>::try_from(bytes).ok()?)).to_canonical()),
        _ => None,
    }
}

/// The open descriptors of a process: of sockets the inode.
pub fn open_files(pid: i32) -> impl Iterator<Item = Option<u64>> {
    let entries = fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten();
    entries.map(|entry| {
        let target = fs::read_link(entry.path()).ok()?;
        target.to_str()?.strip_prefix("socket:[")?.strip_suffix(']')?.parse().ok()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stat_lines_are_read_whatever_the_name() {
        let line = "42 (a) b (c) S 7 40 40 0 -1 4194304 1 2 3 4 50 60 7 8 20 0 3 0 12345 1000 200 1 2 3";
        let stat = Stat::parse(line).expect("a line");
        assert_eq!((stat.name.as_str(), stat.zombie, stat.parent, stat.group), ("a) b (c", false, 7, 40));
        assert_eq!((stat.user_ticks, stat.system_ticks, stat.ticks()), (50, 60, 110));
        assert_eq!((stat.waited_user_ticks, stat.waited_system_ticks, stat.started), (7, 8, 12345));
        assert_eq!((stat.virtual_bytes, stat.resident_pages), (1000, 200));
        assert!(Stat::parse(&line.replace(") S ", ") Z ")).is_some_and(|stat| stat.zombie));
        let short = "42 (a) S 1 77 77 0 -1 x x x x x";
        for garbage in ["", "42", "42 (a", "42 )a(", "42 (x", "42 (a) S", "42 (a) Z", "42 (a) S x y z", short] {
            assert_eq!(Stat::parse(garbage), None, "{garbage:?}");
        }
    }

    #[test]
    fn status_is_read_by_name() {
        let text = "Name:\tetcd\nVmHWM:\t    30 kB\nVmRSS:\t   20 kB\nThreads:\t3\n";
        let number = |name| status_number(text, name);
        assert_eq!((number("VmRSS"), number("VmHWM"), number("Threads")), (Some(20), Some(30), Some(3)));
        assert_eq!((number("Name"), number("Vm"), number("RssAnon")), (None, None, None));
        assert!(status_number(&status(own_pid()), "VmRSS").is_some_and(|kib| kib > 0));
        assert_eq!(status(i32::MAX), "");
    }

    #[test]
    fn sockets_are_read_as_the_kernel_prints_them() {
        let line =
            "   0: 0100007F:0CEA 00000000:0000 0A 00000000:00000000 00:00000000 00000000  1000        0 4711 1 0";
        let local = "127.0.0.1:3306".parse().expect("an address");
        assert_eq!(Socket::parse(line), Some(Socket { local, listening: true, inode: 4711 }));
        let connected = Socket::parse(&line.replace(" 0A ", " 01 "));
        assert_eq!(connected, Some(Socket { local, listening: false, inode: 4711 }));
        let six = "   0: 00000000000000000000000001000000:0050 0:0 0A 0:0 00:0 0 0 0 12 1";
        assert_eq!(Socket::parse(six).map(|socket| socket.local.to_string()), Some("[::1]:80".to_owned()));
        assert_eq!(address_of("0000000000000000FFFF00000100007F"), Some(IpAddr::V4(Ipv4Addr::LOCALHOST)));
        for garbage in ["", "01", "0100007", "zz00007F", "é100007F"] {
            assert_eq!(address_of(garbage), None, "{garbage:?}");
        }
        for other in
            ["", "  sl  local_address rem_address   st", "1: x:y 0:0 0A a b c d e 5", "1: 0100007F:1F90 0:0 0A"]
        {
            assert_eq!(Socket::parse(other), None, "{other}");
        }
    }

    #[test]
    fn our_own_socket_is_among_our_files() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
        let address = listener.local_addr().expect("bound");
        let sockets = tcp_sockets(own_pid());
        let socket = sockets.iter().find(|socket| socket.local == address && socket.listening).expect("in the table");
        assert!(open_files(own_pid()).any(|inode| inode == Some(socket.inode)));
        assert_eq!(open_files(i32::MAX).count(), 0);
    }
}

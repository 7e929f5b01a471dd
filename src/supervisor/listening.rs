//! Who listens: whether a TCP port is held by a process of ours, from /proc.
//!
//! That a port answers does not say that *our* process is up: another one, of yesterday, may hold it (supervisor.md 6, trap 24).

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::net::Ipv4Addr;
use std::net::Ipv6Addr;
use std::net::SocketAddr;

use crate::supervisor::orphans;

/// The kernel's number for a listening socket.
const LISTEN: &str = "0A";

/// Whether somebody of this start of a process listens where a connection to `address` arrives.
pub fn is_ours(address: SocketAddr, group: i32, mark: &str) -> bool {
    let inodes: BTreeSet<u64> =
        sockets(group).into_iter().filter(|(at, _)| takes(*at, address)).map(|(_, inode)| inode).collect();
    !inodes.is_empty() && orphans::members(group, mark).iter().any(|seen| holds(seen.pid, &inodes))
}

/// Whether a listener at `at` gets connections to `address`.
fn takes(at: SocketAddr, address: SocketAddr) -> bool {
    let same = at.ip().is_unspecified() || at.ip().to_canonical() == address.ip().to_canonical();
    at.port() == address.port() && same
}

/// The listening sockets of the network that a process is in: where, and their inodes.
fn sockets(pid: i32) -> Vec<(SocketAddr, u64)> {
    let tables = ["tcp", "tcp6"].map(|table| std::fs::read_to_string(format!("/proc/{pid}/net/{table}")));
    tables.iter().flatten().flat_map(|text| text.lines().filter_map(listener)).collect()
}

/// One line of /proc/net/tcp: the second field is where, the fourth the state, the tenth the inode.
fn listener(line: &str) -> Option<(SocketAddr, u64)> {
    let fields: Vec<&str> = line.split_ascii_whitespace().collect();
    if *fields.get(3)? != LISTEN {
        return None;
    }
    let (host, port) = fields.get(1)?.split_once(':')?;
    let port = u16::from_str_radix(port, 16).ok()?;
    // Words of four bytes, each in the order of the machine.
    let words: Option<Vec<u8>> = (0..host.len() / 8)
        .map(|at| u32::from_str_radix(host.get(at * 8..at * 8 + 8)?, 16).ok().map(u32::to_ne_bytes))
        .collect::<Option<Vec<[u8; 4]>>>()
        .map(|words| words.concat());
    let bytes = words?;
    let host = match (<[u8; 4]>::try_from(bytes.as_slice()), <[u8; 16]>::try_from(bytes.as_slice())) {
        (Ok(four), _) => IpAddr::V4(Ipv4Addr::from(four)),
        (_, Ok(sixteen)) => IpAddr::V6(Ipv6Addr::from(sixteen)),
        _ => return None,
    };
    Some((SocketAddr::new(host, port), fields.get(9)?.parse().ok()?))
}

/// Whether a process has one of these sockets open.
fn holds(pid: i32, inodes: &BTreeSet<u64>) -> bool {
    let Ok(files) = std::fs::read_dir(format!("/proc/{pid}/fd")) else { return false };
    files.flatten().filter_map(|file| std::fs::read_link(file.path()).ok()).any(|target| {
        let inode = target.to_str().and_then(|text| text.strip_prefix("socket:[")?.strip_suffix(']')?.parse().ok());
        inode.is_some_and(|inode| inodes.contains(&inode))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_the_kernel_are_read() {
        let four =
            "   1: 0100007F:1F90 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 4711 1 0 100 0";
        assert_eq!(listener(four), Some(("127.0.0.1:8080".parse().unwrap(), 4711)));
        let six = "   0: 00000000000000000000000001000000:0050 0:0 0A 0:0 00:0 0 0 0 12 1";
        assert_eq!(listener(six), Some(("[::1]:80".parse().unwrap(), 12)));
        for other in [
            "",
            "  sl  local_address rem_address   st",
            "1: 0100007F:1F90 0:0 01 a b c d e 5",
            "1: x:y 0:0 0A a b c d e 5",
        ] {
            assert_eq!(listener(other), None, "{other}");
        }
    }

    #[test]
    fn listeners_on_all_addresses_take_any() {
        let check = |at: &str, address: &str| takes(at.parse().unwrap(), address.parse().unwrap());
        assert!(check("0.0.0.0:80", "127.0.0.1:80") && check("[::]:80", "127.0.0.1:80"));
        assert!(check("127.0.0.1:80", "127.0.0.1:80") && check("[::ffff:127.0.0.1]:80", "127.0.0.1:80"));
        assert!(!check("127.0.0.2:80", "127.0.0.1:80") && !check("0.0.0.0:81", "127.0.0.1:80"));
    }

    #[test]
    fn a_port_of_somebody_else_is_not_ours() {
        let open = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let own = i32::try_from(std::process::id()).unwrap();
        let inodes: BTreeSet<u64> = sockets(own)
            .into_iter()
            .filter(|(at, _)| takes(*at, open.local_addr().unwrap()))
            .map(|(_, inode)| inode)
            .collect();
        assert!(holds(own, &inodes));
        assert!(!is_ours(open.local_addr().unwrap(), i32::MAX, "no-such-mark"));
    }
}

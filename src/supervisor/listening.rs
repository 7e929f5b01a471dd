//! Who listens: whether a TCP port is held by a process of ours, from /proc.
//!
//! That a port answers does not say that *our* process is up: another one, of yesterday, may hold it (supervisor.md 6, trap 24).

use std::collections::BTreeSet;
use std::net::SocketAddr;

use crate::common::procfs;
use crate::supervisor::orphans;

/// Whether somebody of this start of a process listens where a connection to `address` arrives.
pub fn is_ours(address: SocketAddr, group: i32, mark: &str) -> bool {
    let inodes = takers(group, address);
    !inodes.is_empty() && orphans::members(group, mark).iter().any(|seen| holds(seen.pid, &inodes))
}

/// Whether a listener at `at` gets connections to `address`.
fn takes(at: SocketAddr, address: SocketAddr) -> bool {
    let same = at.ip().is_unspecified() || at.ip().to_canonical() == address.ip().to_canonical();
    at.port() == address.port() && same
}

/// The listeners that get connections to `address`, in the network that a process is in.
fn takers(pid: i32, address: SocketAddr) -> BTreeSet<u64> {
    let listeners = procfs::tcp_sockets(pid).into_iter().filter(|socket| socket.listening);
    listeners.filter(|socket| takes(socket.local, address)).map(|socket| socket.inode).collect()
}

/// Whether a process has one of these sockets open.
fn holds(pid: i32, inodes: &BTreeSet<u64>) -> bool {
    procfs::open_files(pid).flatten().any(|inode| inodes.contains(&inode))
}

#[cfg(test)]
mod tests {
    use super::*;

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
        let own = procfs::own_pid();
        assert!(holds(own, &takers(own, open.local_addr().unwrap())));
        assert!(!is_ours(open.local_addr().unwrap(), i32::MAX, "no-such-mark"));
    }
}

//! Which process of this machine holds a socket: `/proc/net/tcp` says which inode an address is, and a process's
//! descriptors say which inodes it has open.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use nix::unistd::Pid;
use nix::unistd::getpgid;

use crate::common::procfs;
use crate::common::procfs::Socket;

/// The process group among `groups` that holds the IPv4 socket bound to `address`.
pub fn group_of(address: SocketAddr, groups: &[i32]) -> Option<i32> {
    let inode = inode_in(&procfs::tcp_sockets(procfs::own_pid()), address)?;
    // Mostly it is the leader: a shell with one program becomes that program.
    if let Some(leader) = groups.iter().copied().find(|group| holds(*group, inode)) {
        return Some(leader);
    }
    let others = members_of(groups);
    others.into_iter().find(|(pid, _)| holds(*pid, inode)).map(|(_, group)| group)
}

/// All processes of these groups but their leaders.
fn members_of(groups: &[i32]) -> BTreeMap<i32, i32> {
    let with_group = procfs::pids().filter_map(|pid| Some((pid, getpgid(Some(Pid::from_raw(pid))).ok()?.as_raw())));
    with_group.filter(|(pid, group)| pid != group && groups.contains(group)).collect()
}

fn holds(pid: i32, inode: u64) -> bool {
    procfs::open_files(pid).any(|open| open == Some(inode))
}

/// The inode of the socket with this local address. Closed sockets that wait for stragglers belong to nobody.
fn inode_in(sockets: &[Socket], address: SocketAddr) -> Option<u64> {
    sockets.iter().find(|socket| socket.local == address && socket.inode != 0).map(|socket| socket.inode)
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;
    use std::net::TcpListener;
    use std::net::TcpStream;
    use std::os::unix::process::CommandExt;
    use std::process::Command;
    use std::process::Stdio;

    use super::*;

    #[test]
    fn an_inode_is_found_by_the_local_address() {
        let table = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n\
            \x20  0: 0100007F:1F90 0100007F:8235 06 00000000:00000000 00:00000000 00000000     0        0 0 3 0\n\
            \x20  1: 0100007F:1F90 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 51 1 0\n";
        let sockets: Vec<Socket> = table.lines().filter_map(Socket::parse).collect();
        let inode = |port| inode_in(&sockets, SocketAddr::new(Ipv4Addr::LOCALHOST.into(), port));
        assert_eq!((sockets.len(), inode(8080), inode(8081)), (2, Some(51), None));
        assert_eq!(inode_in(&[], SocketAddr::new(Ipv4Addr::LOCALHOST.into(), 1)), None);
    }

    #[test]
    fn our_own_socket_is_ours_and_not_that_of_another_group() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let stream = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let us = getpgid(None).unwrap().as_raw();
        let other = Command::new("sleep").arg("100").process_group(0).stdin(Stdio::null()).spawn();
        let mut other = other.unwrap();
        let theirs = i32::try_from(other.id()).unwrap();
        let address = stream.local_addr().unwrap();
        let found = (group_of(address, &[theirs, us]), group_of(address, &[theirs]));
        other.kill().unwrap();
        other.wait().unwrap();
        assert_eq!(found, (Some(us), None));
    }
}

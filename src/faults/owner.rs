//! Which process of this machine holds a socket: `/proc/net/tcp` says which inode an address is, and a process's
//! descriptors say which inodes it has open.

use std::collections::BTreeMap;
use std::fs;
use std::net::Ipv4Addr;
use std::net::SocketAddr;
use std::net::SocketAddrV4;

use nix::unistd::Pid;
use nix::unistd::getpgid;

/// The process group among `groups` that holds the IPv4 socket bound to `address`.
pub fn group_of(address: SocketAddr, groups: &[i32]) -> Option<i32> {
    let SocketAddr::V4(address) = address else { return None };
    let inode = inode_in(&fs::read_to_string("/proc/net/tcp").ok()?, address)?;
    let link = format!("socket:[{inode}]");
    // Mostly it is the leader: a shell with one program becomes that program.
    if let Some(leader) = groups.iter().copied().find(|group| holds(*group, &link)) {
        return Some(leader);
    }
    let others = members_of(groups);
    others.into_iter().find(|(pid, _)| holds(*pid, &link)).map(|(_, group)| group)
}

/// All processes of these groups but their leaders.
fn members_of(groups: &[i32]) -> BTreeMap<i32, i32> {
    let Ok(processes) = fs::read_dir("/proc") else { return BTreeMap::new() };
    let pids = processes.flatten().filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
    let with_group = pids.filter_map(|pid| Some((pid, getpgid(Some(Pid::from_raw(pid))).ok()?.as_raw())));
    with_group.filter(|(pid, group)| pid != group && groups.contains(group)).collect()
}

fn holds(pid: i32, link: &str) -> bool {
    let Ok(descriptors) = fs::read_dir(format!("/proc/{pid}/fd")) else { return false };
    descriptors.flatten().any(|entry| fs::read_link(entry.path()).is_ok_and(|target| target.as_os_str() == link))
}

/// The inode of the socket with this local address: `sl local_address rem_address st tx:rx tr:when retrnsmt uid timeout
/// inode`, addresses in hexadecimal, the host's bytes turned round.
fn inode_in(table: &str, address: SocketAddrV4) -> Option<u64> {
    let local = local_text(address);
    let mut rows = table.lines().skip(1).map(|line| line.split_ascii_whitespace());
    rows.find_map(|mut fields| {
        let found = fields.nth(1)? == local;
        let inode = fields.nth(7)?.parse::<u64>().ok()?;
        // Closed sockets that wait for stragglers belong to nobody.
        (found && inode != 0).then_some(inode)
    })
}

fn local_text(address: SocketAddrV4) -> String {
    let host: Ipv4Addr = *address.ip();
    format!("{:08X}:{:04X}", u32::from_ne_bytes(host.octets()), address.port())
}

#[cfg(test)]
mod tests {
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
        let inode = |port| inode_in(table, SocketAddrV4::new(Ipv4Addr::LOCALHOST, port));
        assert_eq!((inode(8080), inode(8081)), (Some(51), None));
        assert_eq!(inode_in("", SocketAddrV4::new(Ipv4Addr::LOCALHOST, 1)), None);
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

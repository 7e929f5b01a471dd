//! Before anything is started: ports that are wanted and that somebody else has.
//!
//! A member's listen URLs must be free, or it would end at once with less to say. A PORT is only a promise to a process,
//! which may not keep it: taken ports are errors where the command names PORT, else a warning.

use std::net::IpAddr;
use std::net::Ipv4Addr;
use std::net::SocketAddr;

use crate::supervisor::members::Member;
use crate::supervisor::procinfo::Listeners;

/// What a process will want.
#[derive(Clone, Copy, Debug)]
pub struct Wish<'a> {
    pub name: &'a str,
    pub command: &'a str,
    pub port: Option<u64>,
    pub member: Option<&'a Member>,
}

/// What was found: sentences that forbid the start, and sentences that are worth reading.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Found {
    pub errors: Vec<String>,
    pub warnings: Vec<String>,
}

/// Looks at all of them.
pub fn look(wishes: &[Wish<'_>], listeners: &Listeners) -> Found {
    let mut found = Found::default();
    for wish in wishes {
        let listen = wish.member.map_or(&[][..], |member| &member.listen);
        for address in listen {
            if let Some(owner) = listeners.owner(*address) {
                found.errors.push(format!("{} cannot listen: {owner}", wish.name));
            }
        }
        let port = wish.port.and_then(|port| u16::try_from(port).ok());
        let Some(port) = port else { continue };
        let names_port = wish.command.contains("$PORT") || wish.command.contains("${PORT");
        let everywhere = SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), port);
        match listeners.owner(everywhere) {
            Some(owner) if names_port && !listen.contains(&owner.address) => {
                found.errors.push(format!("{} cannot have its PORT: {owner}", wish.name));
            }
            // Members listen where their URLs say.
            Some(owner) if wish.member.is_none() && !names_port => {
                found.warnings.push(format!("{} may miss its PORT: {owner}", wish.name));
            }
            _ => {}
        }
    }
    found.errors.extend(twice(wishes));
    found
}

/// Members of one Procfile that want the same address.
fn twice(wishes: &[Wish<'_>]) -> Vec<String> {
    let mut taken: Vec<(SocketAddr, &str)> = Vec::new();
    let mut errors = Vec::new();
    for (name, member) in wishes.iter().filter_map(|wish| Some((wish.name, wish.member?))) {
        for address in &member.listen {
            match taken.iter().find(|(other, owner)| other == address && *owner != name) {
                Some((_, owner)) => errors.push(format!("{name} and {owner} both want to listen on {address}")),
                None => taken.push((*address, name)),
            }
        }
    }
    errors
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::TcpListener;

    #[test]
    fn taken_ports_are_told_with_pid_and_command() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let url = format!("etcd --listen-client-urls http://127.0.0.1:{port} --listen-peer-urls http://127.0.0.1:1");
        let member = Member::of("m1", &url, &|_| None).unwrap();
        let me = format!("127.0.0.1:{port} is in use by pid {} (", std::process::id());
        let look = |wish: Wish<'_>| super::look(&[wish], &Listeners::read());
        let wish = Wish { name: "m1", command: &url, port: None, member: Some(&member) };
        let found = look(wish);
        assert!(
            found.errors.len() == 1 && found.errors[0].starts_with(&format!("m1 cannot listen: {me}")),
            "{found:?}"
        );
        let web = Wish { name: "web", command: "web --port $PORT", port: Some(port.into()), member: None };
        assert!(look(web).errors[0].starts_with(&format!("web cannot have its PORT: {me}")));
        let quiet = Wish { command: "sleep 5", ..web };
        assert!(look(quiet).errors.is_empty() && look(quiet).warnings.len() == 1);
        drop(listener);
        assert_eq!((look(wish), look(web)), (Found::default(), Found::default()));
    }

    #[test]
    fn members_that_want_one_address_are_told() {
        let (one, two) = (Member::of("m1", "etcd", &|_| None).unwrap(), Member::of("m2", "etcd", &|_| None).unwrap());
        let wish = |name: &'static str, member| Wish { name, command: "etcd", port: None, member: Some(member) };
        let errors = twice(&[wish("m1", &one), wish("m2", &two)]);
        assert_eq!(errors[0], "m2 and m1 both want to listen on 127.0.0.1:2379");
        assert_eq!(errors.len(), 2);
    }
}

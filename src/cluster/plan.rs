//! What a generated cluster is: members with their ports, addresses and directories, and their command lines.
//!
//! ```text
//!  others ──▶ peer port (advertised) ──▶ member's own peer port       with --proxy-peers: the relay lies in between
//!  others ──▶ peer port = member's own peer port                      without
//! ```

use std::io;
use std::path::Path;
use std::path::PathBuf;

use serde::Serialize;

use crate::faults::ports;

/// With a base port: ports of neighbouring members differ by this.
const MEMBER_STEP: u16 = 10;
/// What etcd's `--initial-cluster-token` is for: two clusters that meet on one address do not mix.
const TOKEN: &str = "quorate-local";
const HOST: &str = "127.0.0.1";

/// What the cluster is to be.
#[derive(Clone, Debug)]
pub struct Wish {
    pub voters: u16,
    pub learners: u16,
    pub base_port: Option<u16>,
    pub data_root: PathBuf,
    pub proxy_peers: bool,
    pub tls: bool,
    /// Another program with etcd's flags, instead of our own.
    pub program: Option<String>,
    /// Further flags of every member.
    pub flags: Vec<String>,
}

/// One member.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Member {
    pub name: String,
    pub learner: bool,
    pub client_url: String,
    /// What it advertises.
    pub peer_url: String,
    /// Where it listens, which is somewhere else when a relay listens at the advertised address.
    pub listen_peer_url: String,
    pub data_dir: PathBuf,
    /// Ports of the relay: where it listens, and where the member does.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub relay: Option<(u16, u16)>,
}

/// Files of a cluster's own certificates.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct TlsFiles {
    pub ca: PathBuf,
    pub cert: PathBuf,
    pub key: PathBuf,
    pub member_cert: PathBuf,
    pub member_key: PathBuf,
}

impl TlsFiles {
    pub fn below(data_root: &Path) -> TlsFiles {
        let dir = data_root.join("tls");
        TlsFiles {
            ca: dir.join("ca.pem"),
            cert: dir.join("client.pem"),
            key: dir.join("client-key.pem"),
            member_cert: dir.join("member.pem"),
            member_key: dir.join("member-key.pem"),
        }
    }
}

/// A whole cluster.
#[derive(Clone, Debug, Serialize)]
pub struct Plan {
    pub members: Vec<Member>,
    /// Of the voting members: learners refuse most requests.
    pub endpoints: Vec<String>,
    pub learner_endpoints: Vec<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tls: Option<TlsFiles>,
    #[serde(skip)]
    program: Option<String>,
    #[serde(skip)]
    flags: Vec<String>,
}

impl Plan {
    /// Ports are free ones, or follow from the base port alone.
    pub fn new(wish: &Wish) -> io::Result<Plan> {
        let tls = wish.tls.then(|| TlsFiles::below(&wish.data_root));
        let scheme = if wish.tls { "https" } else { "http" };
        let url = |port: u16| format!("{scheme}://{HOST}:{port}");
        let mut members = Vec::new();
        for number in 1..=wish.voters + wish.learners {
            let port = |offset: u16| match wish.base_port {
                None => ports::free_port(),
                Some(base) => (number - 1)
                    .checked_mul(MEMBER_STEP)
                    .and_then(|step| step.checked_add(offset)?.checked_add(base))
                    .ok_or_else(|| io::Error::other(format!("ports of member {number} are above {}", u16::MAX))),
            };
            let (client, peer) = (port(0)?, port(1)?);
            let own_peer = if wish.proxy_peers { port(2)? } else { peer };
            let name = format!("m{number}");
            members.push(Member {
                learner: number > wish.voters,
                client_url: url(client),
                peer_url: url(peer),
                listen_peer_url: url(own_peer),
                data_dir: wish.data_root.join(&name),
                relay: wish.proxy_peers.then_some((peer, own_peer)),
                name,
            });
        }
        let endpoints_of = |learner: bool| {
            let those = members.iter().filter(|member| member.learner == learner);
            those.map(|member| member.client_url.clone()).collect()
        };
        let (endpoints, learner_endpoints) = (endpoints_of(false), endpoints_of(true));
        let (program, flags) = (wish.program.clone(), wish.flags.clone());
        Ok(Plan { endpoints, learner_endpoints, members, tls, program, flags })
    }

    /// The words of a member's command line: a voter's own, or a learner's behind the words that let it join.
    pub fn command(&self, member: &Member) -> Vec<String> {
        if !member.learner {
            return self.server(member);
        }
        let mut words = vec!["quorate".to_owned(), "cluster".to_owned(), "join".to_owned()];
        push(&mut words, "--endpoints", self.endpoints.join(","));
        if let Some(tls) = &self.tls {
            push(&mut words, "--cacert", text(&tls.ca));
            push(&mut words, "--cert", text(&tls.cert));
            push(&mut words, "--key", text(&tls.key));
        }
        words.push("--".to_owned());
        words.extend(self.server(member));
        words
    }

    fn server(&self, member: &Member) -> Vec<String> {
        let mut words = match &self.program {
            Some(program) => vec![program.clone()],
            None => vec!["quorate".to_owned(), "server".to_owned()],
        };
        push(&mut words, "--name", member.name.clone());
        push(&mut words, "--data-dir", text(&member.data_dir));
        push(&mut words, "--listen-client-urls", member.client_url.clone());
        push(&mut words, "--advertise-client-urls", member.client_url.clone());
        push(&mut words, "--listen-peer-urls", member.listen_peer_url.clone());
        push(&mut words, "--initial-advertise-peer-urls", member.peer_url.clone());
        push(&mut words, "--initial-cluster-token", TOKEN.to_owned());
        if !member.learner {
            let voters = self.members.iter().filter(|member| !member.learner);
            let founders: Vec<String> = voters.map(|member| format!("{}={}", member.name, member.peer_url)).collect();
            push(&mut words, "--initial-cluster", founders.join(","));
            push(&mut words, "--initial-cluster-state", "new".to_owned());
        }
        if self.learner_endpoints.len() > 1 {
            push(&mut words, "--max-learners", self.learner_endpoints.len().to_string());
        }
        if let Some(tls) = &self.tls {
            for side in ["", "peer-"] {
                push(&mut words, &format!("--{side}cert-file"), text(&tls.member_cert));
                push(&mut words, &format!("--{side}key-file"), text(&tls.member_key));
                push(&mut words, &format!("--{side}trusted-ca-file"), text(&tls.ca));
                words.push(format!("--{side}client-cert-auth"));
            }
        }
        words.extend(self.flags.iter().cloned());
        words
    }
}

fn push(words: &mut Vec<String>, flag: &str, value: String) {
    words.push(flag.to_owned());
    words.push(value);
}

fn text(path: &Path) -> String {
    path.to_string_lossy().into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wish() -> Wish {
        Wish {
            voters: 3,
            learners: 0,
            base_port: Some(20_000),
            data_root: ".quorate".into(),
            proxy_peers: false,
            tls: false,
            program: None,
            flags: Vec::new(),
        }
    }

    #[test]
    fn a_base_port_decides_everything() {
        let plan = Plan::new(&wish()).unwrap();
        assert_eq!(
            plan.command(&plan.members[1]).join(" "),
            "quorate server --name m2 --data-dir .quorate/m2 --listen-client-urls http://127.0.0.1:20010 \
             --advertise-client-urls http://127.0.0.1:20010 --listen-peer-urls http://127.0.0.1:20011 \
             --initial-advertise-peer-urls http://127.0.0.1:20011 --initial-cluster-token quorate-local \
             --initial-cluster m1=http://127.0.0.1:20001,m2=http://127.0.0.1:20011,m3=http://127.0.0.1:20021 \
             --initial-cluster-state new"
        );
        assert_eq!(plan.endpoints.join(","), "http://127.0.0.1:20000,http://127.0.0.1:20010,http://127.0.0.1:20020");
        assert!(Plan::new(&Wish { base_port: Some(65_530), ..wish() }).is_err());
    }

    #[test]
    fn with_relays_a_member_listens_elsewhere_than_it_advertises() {
        let plan = Plan::new(&Wish { proxy_peers: true, ..wish() }).unwrap();
        let words = plan.command(&plan.members[0]).join(" ");
        assert!(words.contains("--listen-peer-urls http://127.0.0.1:20002 "), "{words}");
        assert!(words.contains("--initial-advertise-peer-urls http://127.0.0.1:20001 "), "{words}");
        assert_eq!(plan.members[2].relay, Some((20_021, 20_022)));
    }

    #[test]
    fn learners_join_and_are_no_founders() {
        let plan = Plan::new(&Wish { learners: 2, tls: true, flags: vec!["--x".into()], ..wish() }).unwrap();
        let words = plan.command(&plan.members[4]).join(" ");
        assert!(words.starts_with("quorate cluster join --endpoints https://127.0.0.1:20000,"), "{words}");
        assert!(words.contains(" --cacert .quorate/tls/ca.pem ") && words.contains(" -- quorate server --name m5 "));
        assert!(!words.contains("--initial-cluster ") && words.contains("--max-learners 2 "), "{words}");
        assert!(words.ends_with("--peer-client-cert-auth --x"), "{words}");
        let founder = plan.command(&plan.members[0]).join(" ");
        assert!(!founder.contains("m4=") && founder.contains("--max-learners 2"), "{founder}");
        assert_eq!((plan.endpoints.len(), plan.learner_endpoints.len()), (3, 2));
    }

    #[test]
    fn without_a_base_port_all_ports_are_free_and_different() {
        let plan = Plan::new(&Wish { base_port: None, proxy_peers: true, ..wish() }).unwrap();
        let ports =
            plan.members.iter().flat_map(|member| [&member.client_url, &member.peer_url, &member.listen_peer_url]);
        assert_eq!(ports.collect::<std::collections::BTreeSet<_>>().len(), 9);
    }
}

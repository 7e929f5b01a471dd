//! Cluster members among the processes: found by their commands, asked for what they are.
//!
//! A command runs a member if its program is `etcd`, or `quorate` with the word `server`. Its URLs are read from its
//! flags as a shell would see them; what a shell would have to compute (`$(…)`, back-ticks) stays unknown.

use std::net::IpAddr;
use std::net::Ipv4Addr;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use serde::Deserialize;
use serde::Serialize;

use crate::client::Client;
use crate::client::Config;
use crate::client::Deadline;
use crate::client::GRPC_PROTOCOLS;
use crate::common::tls::ClientSide;
use crate::common::tls::Settings;
use crate::proto::etcdserverpb::RangeRequest;
use crate::supervisor::targets::Role;

/// Where a member serves clients when its command does not say.
const CLIENT_URL_DEFAULT: &str = "http://localhost:2379";
const PEER_URL_DEFAULT: &str = "http://localhost:2380";
const NAME_DEFAULT: &str = "default";
/// Any key does: it is read, whether it exists or not. etcd's own health check reads this one.
const PROBE_KEY: Bytes = Bytes::from_static(b"health");
/// How long a connection to our own machine may take before it counts as possible.
const KNOCK: Duration = Duration::from_millis(50);
/// Words that may stand in front of the program in a command.
const WRAPPERS: [&str; 6] = ["exec", "env", "nohup", "command", "time", "sudo"];

/// A member as its command describes it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Member {
    /// Of the process, not of the member.
    pub process: String,
    /// The member's own.
    pub name: String,
    /// Where the others are told to reach it.
    pub peer_urls: Vec<String>,
    /// It asks the cluster to take it before it starts (`quorate cluster join`).
    pub joins: bool,
    /// Nothing stands behind it in its command: words that are added there are flags of its own.
    pub ends_its_command: bool,
    /// Where to ask it: its client URLs.
    pub endpoints: Vec<String>,
    /// Where it wants to listen, for clients and peers.
    pub listen: Vec<SocketAddr>,
    /// How to reach it over TLS.
    tls: Settings,
}

/// What a member says of itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemberStatus {
    pub role: Role,
    pub member_id: u64,
    /// 0 is nobody.
    pub leader_id: u64,
    pub term: u64,
    pub index: u64,
    pub applied_index: u64,
    pub db_bytes: i64,
    pub version: String,
    pub errors: Vec<String>,
}

impl Member {
    /// The member that a process's command runs, if it runs one. `variable` looks up what the process will see.
    pub fn of(process: &str, command: &str, variable: &dyn Fn(&str) -> Option<String>) -> Option<Member> {
        let words = shell_words(command, variable);
        let (assignments, arguments) = member_arguments(&words)?;
        let last = words.rsplit(|word| *word == Word::Operator).next().unwrap_or_default();
        let ends_its_command = member_arguments(last).is_some() && !command.contains('#');
        let texts: Vec<&str> = words.iter().filter_map(Word::text).collect();
        let joins = texts.windows(2).any(|pair| pair == ["cluster", "join"]);
        let flag = |name: &str| -> Option<String> {
            let upper = format!("ETCD_{}", name.to_ascii_uppercase().replace('-', "_"));
            let assigned = || assignments.iter().find(|(key, _)| *key == upper).map(|(_, value)| value.clone());
            // As etcd has it: a flag wins over the environment.
            flag_value(&arguments, name).or_else(assigned).or_else(|| variable(&upper))
        };
        let urls = |name: &str, default: &str| split_urls(&flag(name).unwrap_or_else(|| default.to_owned()));
        let clients = urls("listen-client-urls", CLIENT_URL_DEFAULT);
        let peers = urls("listen-peer-urls", PEER_URL_DEFAULT);
        let text = |name: &str| flag(name).unwrap_or_default();
        let tls = Settings {
            cert_file: text("cert-file"),
            key_file: text("key-file"),
            client_cert_file: text("client-cert-file"),
            client_key_file: text("client-key-file"),
            trusted_ca_file: text("trusted-ca-file"),
            // It is our own child on our own machine, and nothing secret is sent.
            insecure_skip_verify: true,
            ..Settings::default()
        };
        let advertised = urls("initial-advertise-peer-urls", PEER_URL_DEFAULT);
        Some(Member {
            process: process.to_owned(),
            name: flag("name").unwrap_or_else(|| NAME_DEFAULT.to_owned()),
            peer_urls: advertised,
            joins,
            ends_its_command,
            endpoints: clients.iter().map(|url| dialable(url)).collect(),
            listen: clients.iter().chain(&peers).filter_map(|url| address_of(url)).collect(),
            tls,
        })
    }

    /// Asks it, within `budget`.
    pub async fn status(&self, budget: Duration) -> Result<MemberStatus, String> {
        self.knock().await?;
        let client = self.client()?;
        let status = client.status(Deadline::after(budget)).await.map_err(|error| error.to_string())?;
        let header = status.header.unwrap_or_default();
        let role = match (status.is_learner, status.leader) {
            (true, _) => Role::Learner,
            (false, 0) => Role::Candidate,
            (false, leader) if leader == header.member_id => Role::Leader,
            _ => Role::Follower,
        };
        Ok(MemberStatus {
            role,
            member_id: header.member_id,
            leader_id: status.leader,
            term: status.raft_term,
            index: status.raft_index,
            applied_index: status.raft_applied_index,
            db_bytes: status.db_size,
            version: status.version,
            errors: status.errors,
        })
    }

    /// A read that the leader must confirm.
    pub async fn linearizable_read(&self, budget: Duration) -> Result<(), String> {
        self.knock().await?;
        let client = self.client()?;
        let request = RangeRequest { key: PROBE_KEY, ..RangeRequest::default() };
        client.range(request, Deadline::after(budget)).await.map(|_| ()).map_err(|error| error.to_string())
    }

    /// Whether anybody listens there. The client itself is patient: it would dial again a second later, when whoever asks
    /// has long been able to ask again.
    async fn knock(&self) -> Result<(), String> {
        let addresses: Option<Vec<SocketAddr>> = self.endpoints.iter().map(|url| address_of(url)).collect();
        // What we cannot read, the client may.
        let Some(addresses) = addresses.filter(|addresses| !addresses.is_empty()) else { return Ok(()) };
        for address in &addresses {
            // One that does not even refuse is left to the client's time.
            match tokio::time::timeout(KNOCK, tokio::net::TcpStream::connect(address)).await {
                Ok(Err(_)) => {}
                Ok(Ok(_)) | Err(_) => return Ok(()),
            }
        }
        Err(format!("nobody listens on {}", self.endpoints.join(",")))
    }

    fn client(&self) -> Result<Client, String> {
        Member::client_of(&[self])
    }

    /// A client of any of these, which are members of one cluster.
    pub fn client_of(members: &[&Member]) -> Result<Client, String> {
        let mut config = Config::new(members.iter().flat_map(|member| member.endpoints.clone()).collect());
        let is_tls =
            |member: &&&Member| member.endpoints.iter().any(|url| url.starts_with("https") || url.starts_with("unixs"));
        if let Some(member) = members.iter().find(is_tls) {
            config.tls = Some(Arc::new(ClientSide::new(&member.tls, GRPC_PROTOCOLS)?));
        }
        Client::open(config).map_err(|error| error.to_string())
    }
}

/// The words of the member that a command runs, its program first; the word `server` is left out.
pub fn words_of(command: &str, variable: &dyn Fn(&str) -> Option<String>) -> Option<Vec<String>> {
    let words = shell_words(command, variable);
    let (_, arguments) = member_arguments(&words)?;
    let texts = words.iter().filter_map(Word::text);
    let runs_us = |word: &&str| Path::new(word).file_name().is_some_and(|name| name == "quorate");
    let program = if texts.clone().any(|word| runs_us(&word)) { "quorate" } else { "etcd" };
    Some(std::iter::once(program.to_owned()).chain(arguments).collect())
}

type Assignments = Vec<(String, String)>;

/// The assignments in front of a member's program and the words behind it.
fn member_arguments(words: &[Word]) -> Option<(Assignments, Vec<String>)> {
    words.split(|word| *word == Word::Operator).find_map(|simple| {
        let texts: Vec<&str> = simple.iter().filter_map(Word::text).collect();
        let is_prefix = |word: &&str| WRAPPERS.contains(word) || assignment(word).is_some();
        let at = texts.iter().position(|word| !is_prefix(word))?;
        let program = Path::new(texts[at]).file_name()?.to_str()?;
        let behind = &texts[at + 1..];
        let arguments = match program {
            // What `quorate cluster join` becomes stands behind the dashes.
            "quorate" if behind.starts_with(&["cluster", "join"]) => {
                let dashes = behind.iter().position(|word| *word == "--")?;
                let member: Vec<Word> =
                    behind[dashes + 1..].iter().map(|word| Word::Text((*word).to_owned())).collect();
                return member_arguments(&member);
            }
            // `etcd gateway` and `etcd grpc-proxy` are no members.
            "etcd" if behind.first().is_none_or(|word| word.starts_with('-')) => behind,
            "quorate" if behind.first() == Some(&"server") => &behind[1..],
            _ => return None,
        };
        let only_tells = |word: &&str| matches!(word.trim_start_matches('-'), "version" | "help" | "h");
        if arguments.iter().any(|word| word.starts_with('-') && only_tells(word)) {
            return None;
        }
        let assigned = texts[..at].iter().filter_map(|word| assignment(word));
        Some((assigned.collect(), arguments.iter().map(|word| (*word).to_owned()).collect()))
    })
}

fn assignment(word: &str) -> Option<(String, String)> {
    let (key, value) = word.split_once('=')?;
    let plain = |letter: char| letter.is_ascii_alphanumeric() || letter == '_';
    (!key.is_empty() && key.chars().all(plain)).then(|| (key.to_owned(), value.to_owned()))
}

/// The last value of a flag, in Go's spellings.
fn flag_value(arguments: &[String], name: &str) -> Option<String> {
    let mut found = None;
    let mut rest = arguments.iter();
    while let Some(word) = rest.next() {
        let Some(body) = word.strip_prefix("--").or_else(|| word.strip_prefix('-')) else { continue };
        match body.split_once('=') {
            Some((flag, value)) if flag == name => found = Some(value.to_owned()),
            None if body == name => found = rest.next().cloned(),
            _ => {}
        }
    }
    found
}

fn split_urls(list: &str) -> Vec<String> {
    list.split(',').map(str::trim).filter(|url| !url.is_empty()).map(str::to_owned).collect()
}

/// A URL to dial: who listens everywhere is asked at home.
fn dialable(url: &str) -> String {
    let home = |from: &str, to: &str| url.replacen(from, to, 1);
    if url.contains("//0.0.0.0:") {
        home("//0.0.0.0:", "//127.0.0.1:")
    } else if url.contains("//[::]:") {
        home("//[::]:", "//[::1]:")
    } else {
        url.to_owned()
    }
}

/// The address that a listen URL names, if it needs no resolver.
fn address_of(url: &str) -> Option<SocketAddr> {
    let (scheme, rest) = url.split_once("://")?;
    let authority = rest.split('/').next()?;
    if !matches!(scheme, "http" | "https") {
        return None;
    }
    match authority.strip_prefix("localhost:") {
        Some(port) => Some(SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), port.parse().ok()?)),
        None => authority.parse().ok(),
    }
}

/// A word of a command, or what separates commands.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Word {
    Text(String),
    Operator,
}

impl Word {
    fn text(&self) -> Option<&str> {
        match self {
            Word::Text(text) => Some(text),
            Word::Operator => None,
        }
    }
}

/// The words of a command as a shell splits them, with variables put in.
fn shell_words(command: &str, variable: &dyn Fn(&str) -> Option<String>) -> Vec<Word> {
    let mut words = Vec::new();
    let mut current: Option<String> = None;
    let mut letters = command.chars().peekable();
    let mut quote: Option<char> = None;
    while let Some(letter) = letters.next() {
        match (quote, letter) {
            (Some(open), letter) if letter == open => quote = None,
            (Some('\''), letter) => current.get_or_insert_default().push(letter),
            (None, '\'' | '"') => {
                quote = Some(letter);
                current.get_or_insert_default();
            }
            (_, '\\') => current.get_or_insert_default().extend(letters.next()),
            (_, '$') => {
                let value = expand(&mut letters, variable);
                current.get_or_insert_default().push_str(&value);
            }
            (Some(_), letter) => current.get_or_insert_default().push(letter),
            (None, letter) if letter.is_whitespace() => words.extend(current.take().map(Word::Text)),
            (None, ';' | '&' | '|' | '(' | ')' | '\n') => {
                words.extend(current.take().map(Word::Text));
                words.push(Word::Operator);
            }
            (None, letter) => current.get_or_insert_default().push(letter),
        }
    }
    words.extend(current.map(Word::Text));
    words
}

/// What stands behind a `$`: a name, or one in braces, with a default or without.
fn expand(letters: &mut std::iter::Peekable<std::str::Chars<'_>>, variable: &dyn Fn(&str) -> Option<String>) -> String {
    let is_name = |letter: &char| letter.is_ascii_alphanumeric() || *letter == '_';
    let mut name = String::new();
    if letters.next_if_eq(&'{').is_some() {
        name.extend(std::iter::from_fn(|| letters.next_if(|letter| *letter != '}')));
        letters.next();
        let (name, default) = name.split_once(":-").unwrap_or((&name, ""));
        return variable(name).filter(|value| !value.is_empty()).unwrap_or_else(|| default.to_owned());
    }
    name.extend(std::iter::from_fn(|| letters.next_if(is_name)));
    if name.is_empty() { "$".to_owned() } else { variable(&name).unwrap_or_default() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn member(command: &str) -> Option<Member> {
        let variable = |name: &str| (name == "PORT").then(|| "5100".to_owned());
        Member::of("m", command, &variable)
    }

    #[test]
    fn members_are_found_by_their_commands() {
        let check = |command: &str, endpoints: &[&str], listen: &[&str]| {
            let found = member(command).unwrap_or_else(|| panic!("{command} runs a member"));
            assert_eq!(found.endpoints, endpoints, "{command}");
            let found: Vec<String> = found.listen.iter().map(SocketAddr::to_string).collect();
            assert_eq!(found, listen, "{command}");
        };
        let defaults = ["127.0.0.1:2379", "127.0.0.1:2380"];
        check("etcd", &["http://localhost:2379"], &defaults);
        check(
            "bin/etcd --name infra1 --listen-client-urls http://127.0.0.1:1,http://[::1]:1 --listen-peer-urls=http://0.0.0.0:2",
            &["http://127.0.0.1:1", "http://[::1]:1"],
            &["127.0.0.1:1", "[::1]:1", "0.0.0.0:2"],
        );
        check(
            "GOGC=50 exec /opt/quorate server -listen-client-urls 'http://0.0.0.0:'$PORT --listen-peer-urls \"http://127.0.0.1:${PEER:-7}\"",
            &["http://127.0.0.1:5100"],
            &["0.0.0.0:5100", "127.0.0.1:7"],
        );
        check(
            "quorate ctl member add m4 && ETCD_LISTEN_CLIENT_URLS=http://127.0.0.1:9 quorate server",
            &["http://127.0.0.1:9"],
            &["127.0.0.1:9", "127.0.0.1:2380"],
        );
        check(
            "quorate cluster join --endpoints http://127.0.0.1:3 -- quorate server --listen-client-urls http://127.0.0.1:8",
            &["http://127.0.0.1:8"],
            &["127.0.0.1:8", "127.0.0.1:2380"],
        );
        check("etcd --listen-client-urls unix:///tmp/s", &["unix:///tmp/s"], &["127.0.0.1:2380"]);
    }

    #[test]
    fn who_it_is_to_others_is_read_from_its_flags() {
        let check = |command: &str, name: &str, peer: &str, joins: bool, ends: bool| {
            let found = member(command).unwrap_or_else(|| panic!("{command} runs a member"));
            let expected = (name, vec![peer.to_owned()], joins, ends);
            assert_eq!(
                (found.name.as_str(), found.peer_urls, found.joins, found.ends_its_command),
                expected,
                "{command}"
            );
        };
        check("etcd", "default", "http://localhost:2380", false, true);
        let flags = "--name a --initial-advertise-peer-urls http://127.0.0.1:7";
        check(&format!("true && etcd {flags} >log"), "a", "http://127.0.0.1:7", false, true);
        check(&format!("etcd {flags} | tee log"), "a", "http://127.0.0.1:7", false, false);
        check(&format!("etcd {flags} # prose"), "a", "http://127.0.0.1:7", false, false);
        let join = format!("quorate cluster join --endpoints http://127.0.0.1:3 -- quorate server {flags}");
        check(&join, "a", "http://127.0.0.1:7", true, true);
    }

    #[test]
    fn other_commands_are_no_members() {
        for command in [
            "",
            "sleep 5",
            "etcd gateway start",
            "quorate ctl get a",
            "tail -f etcd",
            "etcd --version",
            "quorate",
            "'",
            "$",
        ] {
            assert_eq!(member(command), None, "{command}");
        }
    }

    #[test]
    fn words_are_those_of_a_shell() {
        let check = |command: &str, expected: &[&str]| {
            let words = shell_words(command, &|name| (name == "A").then(|| "x y".to_owned()));
            let texts: Vec<&str> = words.iter().map(|word| word.text().unwrap_or("<op>")).collect();
            assert_eq!(texts, expected, "{command}");
        };
        check("a 'b c' \"d $A\" e\\ f ''", &["a", "b c", "d x y", "e f", ""]);
        check("a&&b;c|d", &["a", "<op>", "<op>", "b", "<op>", "c", "<op>", "d"]);
        check("${A} ${B:-z} ${B} $", &["x y", "z", "", "$"]);
        check("'open", &["open"]);
        check("a\\", &["a"]);
    }

    #[tokio::test]
    async fn a_member_that_is_not_there_is_not_waited_for() {
        let nobody = member("etcd --listen-client-urls http://127.0.0.1:1").unwrap();
        let error = nobody.status(Duration::from_secs(3600)).await.unwrap_err();
        assert_eq!(error, "nobody listens on http://127.0.0.1:1");
    }
}

//! `quorate cluster join -- PROGRAM FLAGS`: lets a member join a running cluster without a vote, and becomes the member.
//!
//! ```text
//!  has data? ─ yes ──────────────────────────────────────────────────▶ exec
//!      │ no
//!      ▼
//!  member list ─ has our peer URL? ─ no ─▶ member add (learner), again until it is taken
//!                     │ yes, never started
//!                     ▼
//!                  exec with --initial-cluster as the cluster has it
//! ```
//!
//! So the entry of a Procfile does the right thing each time it is started, also when the cluster is down by then.

use std::ffi::OsString;
use std::fs;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::path::PathBuf;
use std::process::Command;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;
use std::time::Instant;

use clap::Parser;

use crate::client::Client;
use crate::client::Config;
use crate::client::Deadline;
use crate::client::GRPC_PROTOCOLS;
use crate::common::go_duration;
use crate::common::tls::ClientSide;
use crate::common::tls::Settings;
use crate::proto::etcdserverpb::Member;
use crate::proto::etcdserverpb::MemberAddRequest;
use crate::proto::etcdserverpb::MemberListRequest;

/// One answer of the cluster.
const CALL_MAX: Duration = Duration::from_secs(2);
/// Between two attempts. A cluster wants its members together for five seconds before it takes another.
const AGAIN: Duration = Duration::from_millis(250);
/// What a shell ends with when it cannot start a program.
const EXIT_NO_PROGRAM: u8 = 127;
const EXIT_USAGE: u8 = 2;

/// Joins a running cluster without a vote, then becomes the member that follows behind --
#[derive(Clone, Debug, Parser)]
#[command(name = "quorate cluster join")]
struct Options {
    /// Clients' addresses of the cluster, separated by commas
    #[arg(long, value_delimiter = ',', required = true)]
    endpoints: Vec<String>,
    /// The cluster's authority, for https
    #[arg(long)]
    cacert: Option<String>,
    /// Our certificate, for https
    #[arg(long, requires = "key")]
    cert: Option<String>,
    /// The certificate's key
    #[arg(long, requires = "cert")]
    key: Option<String>,
    /// How long to wait for the cluster to take us
    #[arg(long, default_value = "60s", value_parser = go_duration::parse)]
    timeout: Duration,
    /// The member: a program with --name, --data-dir and --initial-advertise-peer-urls
    #[arg(last = true, required = true)]
    member: Vec<String>,
}

/// Runs the command line. Returns only if it does not become the member.
pub fn main(words: Vec<OsString>) -> ExitCode {
    let words = std::iter::once(OsString::from("quorate cluster join")).chain(words);
    let options = match Options::try_parse_from(words) {
        Ok(options) => options,
        Err(error) => {
            // Help and complaints; a reader that has gone wants neither.
            let _ = error.print();
            return ExitCode::from(u8::try_from(error.exit_code()).unwrap_or(EXIT_USAGE));
        }
    };
    match join(&options) {
        Ok(initial_cluster) => become_member(&options, &initial_cluster),
        Err(error) => {
            eprintln!("quorate cluster join: {error}");
            ExitCode::FAILURE
        }
    }
}

fn become_member(options: &Options, initial_cluster: &str) -> ExitCode {
    let [program, words @ ..] = options.member.as_slice() else { return ExitCode::from(EXIT_NO_PROGRAM) };
    // `quorate` is ourselves, also where it is not on the PATH.
    let own = std::env::current_exe().ok().filter(|_| program == "quorate");
    let program = own.unwrap_or_else(|| PathBuf::from(program));
    let mut command = Command::new(&program);
    command.args(words).args(["--initial-cluster", initial_cluster, "--initial-cluster-state", "existing"]);
    let error = command.exec();
    eprintln!("quorate cluster join: cannot start {}: {error}", program.display());
    ExitCode::from(EXIT_NO_PROGRAM)
}

/// Who we are, from the member's own flags.
#[derive(Debug, PartialEq, Eq)]
struct Own {
    name: String,
    data_dir: PathBuf,
    peer_urls: Vec<String>,
}

impl Own {
    fn of(words: &[String]) -> Result<Own, String> {
        let needed =
            |flag: &str| value_of(words, flag).ok_or_else(|| format!("the member's command line has no --{flag}"));
        let peer_urls = needed("initial-advertise-peer-urls")?.split(',').map(str::to_owned).collect();
        Ok(Own { name: needed("name")?, data_dir: needed("data-dir")?.into(), peer_urls })
    }

    fn initial_cluster(&self) -> String {
        entries(&self.name, &self.peer_urls).join(",")
    }
}

fn entries(name: &str, peer_urls: &[String]) -> Vec<String> {
    peer_urls.iter().map(|url| format!("{name}={url}")).collect()
}

/// The value of a flag in Go's forms: `-name x`, `--name x`, `--name=x`.
fn value_of(words: &[String], flag: &str) -> Option<String> {
    let mut words = words.iter();
    while let Some(word) = words.next() {
        let Some(body) = word.strip_prefix("--").or_else(|| word.strip_prefix('-')) else { continue };
        match body.split_once('=') {
            Some((name, value)) if name == flag => return Some(value.to_owned()),
            None if body == flag => return words.next().cloned(),
            _ => {}
        }
    }
    None
}

/// The value of `--initial-cluster`, once the cluster knows us.
fn join(options: &Options) -> Result<String, String> {
    let own = Own::of(&options.member)?;
    if has_data(&own.data_dir) {
        return Ok(own.initial_cluster());
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(|error| format!("cannot start: {error}"))?;
    runtime.block_on(ask_until_taken(options, &own))
}

fn has_data(dir: &Path) -> bool {
    fs::read_dir(dir.join("member").join("wal")).is_ok_and(|mut files| files.next().is_some())
}

async fn ask_until_taken(options: &Options, own: &Own) -> Result<String, String> {
    let client = Client::open(config(options)?).map_err(|error| error.to_string())?;
    let deadline = Instant::now().checked_add(options.timeout);
    let mut told = String::new();
    loop {
        let why = match ask(&client, own).await? {
            Answer::Taken(initial_cluster) => return Ok(initial_cluster),
            Answer::NotYet(why) => why,
        };
        if deadline.is_some_and(|deadline| Instant::now() >= deadline) {
            return Err(format!("not taken by the cluster after {}: {why}", go_duration::format(options.timeout)));
        }
        if why != told {
            eprintln!("quorate cluster join: waiting for the cluster: {why}");
            told = why;
        }
        tokio::time::sleep(AGAIN).await;
    }
}

fn config(options: &Options) -> Result<Config, String> {
    let mut config = Config::new(options.endpoints.clone());
    if options.endpoints.iter().any(|endpoint| endpoint.starts_with("https:")) {
        let settings = Settings {
            cert_file: options.cert.clone().unwrap_or_default(),
            key_file: options.key.clone().unwrap_or_default(),
            trusted_ca_file: options.cacert.clone().unwrap_or_default(),
            ..Settings::default()
        };
        config.tls = Some(Arc::new(ClientSide::new(&settings, GRPC_PROTOCOLS)?));
    }
    Ok(config)
}

enum Answer {
    Taken(String),
    NotYet(String),
}

/// Asks once. An error is one that asking again does not mend.
async fn ask(client: &Client, own: &Own) -> Result<Answer, String> {
    let request = MemberListRequest { linearizable: true };
    let members = match client.member_list(request, Deadline::after(CALL_MAX)).await {
        Ok(response) => response.members,
        Err(error) => return Ok(Answer::NotYet(error.to_string())),
    };
    if let Some(taken) = standing(&members, own)? {
        return Ok(taken);
    }
    let request = MemberAddRequest { peer_ur_ls: own.peer_urls.clone(), is_learner: true };
    match client.member_add(request, Deadline::after(CALL_MAX)).await {
        Ok(response) => Ok(standing(&response.members, own)?
            .unwrap_or_else(|| Answer::NotYet("it has not told us that we are a member".to_owned()))),
        Err(error) => Ok(Answer::NotYet(error.to_string())),
    }
}

/// What a list of members means for us; `None` if we are not on it.
fn standing(members: &[Member], own: &Own) -> Result<Option<Answer>, String> {
    let Some(ours) = members.iter().find(|member| member.peer_ur_ls.iter().any(|url| own.peer_urls.contains(url)))
    else {
        return Ok(None);
    };
    if !ours.name.is_empty() {
        return Err(format!(
            "member {:x} ({}) has our peer URL and was started before, but {} is empty; remove that member first: \
             quorate ctl member remove {:x}",
            ours.id,
            ours.name,
            own.data_dir.display(),
            ours.id
        ));
    }
    // One that was added and not started has no name by which it could be listed.
    if let Some(nameless) = members.iter().find(|member| member.name.is_empty() && member.id != ours.id) {
        return Ok(Some(Answer::NotYet(format!("member {:x} was added and has not started", nameless.id))));
    }
    let named = |member: &Member| {
        let name = if member.id == ours.id { &own.name } else { &member.name };
        entries(name, &member.peer_ur_ls)
    };
    Ok(Some(Answer::Taken(members.iter().flat_map(named).collect::<Vec<_>>().join(","))))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(line: &str) -> Vec<String> {
        line.split_whitespace().map(str::to_owned).collect()
    }

    fn own() -> Own {
        Own::of(&words("etcd -name=m4 --data-dir d --initial-advertise-peer-urls http://h:4")).unwrap()
    }

    fn member(id: u64, name: &str, url: &str) -> Member {
        Member { id, name: name.to_owned(), peer_ur_ls: vec![url.to_owned()], ..Member::default() }
    }

    #[test]
    fn who_we_are_is_read_from_the_members_flags() {
        let expected = Own { name: "m4".into(), data_dir: "d".into(), peer_urls: vec!["http://h:4".into()] };
        assert_eq!(own(), expected);
        assert_eq!(own().initial_cluster(), "m4=http://h:4");
        let error = Own::of(&words("etcd --name m4 --data-dir d")).unwrap_err();
        assert_eq!(error, "the member's command line has no --initial-advertise-peer-urls");
    }

    #[test]
    fn only_a_member_that_never_started_is_ours_to_start() {
        let (m1, m4) = (member(1, "m1", "http://h:1"), member(4, "", "http://h:4"));
        assert!(standing(std::slice::from_ref(&m1), &own()).unwrap().is_none());
        let Some(Answer::Taken(cluster)) = standing(&[m1.clone(), m4.clone()], &own()).unwrap() else { panic!() };
        assert_eq!(cluster, "m1=http://h:1,m4=http://h:4");
        let other = member(5, "", "http://h:5");
        assert!(matches!(standing(&[m1, m4, other], &own()), Ok(Some(Answer::NotYet(_)))));
        let started = member(4, "m4", "http://h:4");
        assert!(standing(&[started], &own()).err().unwrap().contains("quorate ctl member remove 4"));
    }
}

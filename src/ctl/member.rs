//! `member`: the cluster's members, and changes of who they are.

use std::time::Duration;

use tokio::task::JoinSet;

use super::Personality;
use super::command::Action;
use super::command::Command;
use super::error::CtlError;
use super::flags::Flag;
use super::flags::Kind;
use super::get;
use super::go_number;
use super::print::Report;
use super::session::Session;
use crate::client::Client;
use crate::client::Deadline;
use crate::common::urls;
use crate::proto::etcdserverpb::Member;
use crate::proto::etcdserverpb::MemberAddRequest;
use crate::proto::etcdserverpb::MemberListRequest;
use crate::proto::etcdserverpb::MemberUpdateRequest;

/// How long a member is waited for when votes are counted.
const VOTE_PATIENCE: Duration = Duration::from_secs(1);

const PEER_URLS: Flag = Flag::new("peer-urls", Kind::Text, "", "addresses for the other members, separated by commas");

pub static COMMAND: Command = Command {
    name: "member",
    arguments: "",
    summary: "Looks after the cluster's members",
    flags: &[],
    inherited: &[],
    action: Action::Group {
        commands: &[&ADD, &REMOVE, &UPDATE, &LIST, &PROMOTE],
        names: &["add", "remove", "update", "list", "promote"],
    },
};

static ADD: Command = Command {
    name: "add",
    arguments: "<memberName> [options]",
    summary: "Adds a member to the cluster, before it is started",
    flags: &[Flag::new("learner", Kind::Bool, "", "without a vote, until it is promoted"), PEER_URLS],
    inherited: &[],
    action: Action::Run(run_add),
};

static REMOVE: Command = Command {
    name: "remove",
    arguments: "<memberID>",
    summary: "Removes a member from the cluster for good",
    flags: &[],
    inherited: &[],
    action: Action::Run(run_remove),
};

static UPDATE: Command = Command {
    name: "update",
    arguments: "<memberID> [options]",
    summary: "Changes the addresses at which a member is reached by the others",
    flags: &[PEER_URLS],
    inherited: &[],
    action: Action::Run(run_update),
};

static LIST: Command = Command {
    name: "list",
    arguments: "",
    summary: "Lists the cluster's members",
    flags: &[Flag::new("consistency", Kind::Text, "l", "linearizable (l) or serializable (s)")],
    inherited: &[],
    action: Action::Run(run_list),
};

static PROMOTE: Command = Command {
    name: "promote",
    arguments: "<memberID>",
    summary: "Gives a learner a vote",
    flags: &[],
    inherited: &[],
    action: Action::Run(run_promote),
};

fn run_add(session: &mut Session<'_>) -> Result<(), CtlError> {
    let name = match &session.args[..] {
        [] => return Err(CtlError::bad_arguments("member name not provided")),
        [name] => String::from_utf8_lossy(name).into_owned(),
        many => {
            let words = many.iter().map(|word| String::from_utf8_lossy(word));
            let urls = words.filter(|word| word.to_ascii_lowercase().starts_with("http"));
            let hints: String = urls.map(|url| format!(", did you mean --peer-urls={url}")).collect();
            return Err(CtlError::bad_arguments(format!("too many arguments{hints}")));
        }
    };
    let (typed, peer_ur_ls) = peer_urls(session)?;
    let is_learner = session.values.bool("learner");
    let client = connect_with(session, &peer_ur_ls)?;
    let request = MemberAddRequest { peer_ur_ls, is_learner };
    let response = session.call(client.member_add(request, session.deadline()))?;
    session.report(&Report::MemberAdd { response: &response, name: &name, peer_urls: &typed })?;
    if is_learner {
        return Ok(());
    }
    let added = response.member.as_ref().map_or(0, |member| member.id);
    warn_of_votes(session, &response.members, added, &name)
}

fn run_remove(session: &mut Session<'_>) -> Result<(), CtlError> {
    let id = member_id(session)?;
    let client = session.connect()?;
    let response = session.call(client.member_remove(id, session.deadline()))?;
    session.report(&Report::MemberRemove { id, response: &response })
}

fn run_update(session: &mut Session<'_>) -> Result<(), CtlError> {
    let id = member_id(session)?;
    let (_, peer_ur_ls) = peer_urls(session)?;
    let client = connect_with(session, &peer_ur_ls)?;
    let request = MemberUpdateRequest { id, peer_ur_ls };
    let response = session.call(client.member_update(request, session.deadline()))?;
    session.report(&Report::MemberUpdate { id, response: &response })
}

fn run_list(session: &mut Session<'_>) -> Result<(), CtlError> {
    // The error names the default of get's flag, whatever was given (ctl.md 11, trap 33).
    let serializable = get::serializable(session.values.text("consistency"), "l")?;
    let client = session.connect()?;
    let request = MemberListRequest { linearizable: !serializable };
    let response = session.call(client.member_list(request, session.deadline()))?;
    session.report(&Report::MemberList(&response))
}

fn run_promote(session: &mut Session<'_>) -> Result<(), CtlError> {
    let id = member_id(session)?;
    let client = session.connect()?;
    let response = session.call(client.member_promote(id, session.deadline()))?;
    session.report(&Report::MemberPromote { id, response: &response })?;
    let name = response.members.iter().find(|member| member.id == id).map(|member| member.name.clone());
    warn_of_votes(session, &response.members, id, &name.unwrap_or_default())
}

fn member_id(session: &Session<'_>) -> Result<u64, CtlError> {
    let [id] = &session.args[..] else { return Err(CtlError::bad_arguments("member ID is not provided")) };
    go_number::parse_uint(&String::from_utf8_lossy(id), 16)
        .map_err(|why| CtlError::bad_arguments(format!("bad member ID arg ({why}), expecting ID in Hex")))
}

/// The value of `--peer-urls` as typed, and its parts.
fn peer_urls(session: &Session<'_>) -> Result<(String, Vec<String>), CtlError> {
    let typed = session.values.text("peer-urls").to_owned();
    if typed.is_empty() {
        return Err(CtlError::bad_arguments("member peer urls not provided"));
    }
    let urls = typed.split(',').map(str::to_owned).collect();
    Ok((typed, urls))
}

/// A client, unless the URLs are none: etcd's client looks at them itself, when it exists.
fn connect_with(session: &mut Session<'_>, peer_urls: &[String]) -> Result<Client, CtlError> {
    let client = session.connect()?;
    urls::parse_all(peer_urls.iter().map(String::as_str)).map_err(CtlError::failed)?;
    Ok(client)
}

/// Counts the votes after `id` got one, and says so unless it answers: a vote that is not cast counts against all others.
/// Only natively; the original says nothing.
fn warn_of_votes(session: &mut Session<'_>, members: &[Member], id: u64, name: &str) -> Result<(), CtlError> {
    if session.personality() == Personality::Etcdctl {
        return Ok(());
    }
    session.console.flush()?;
    let voters: Vec<&Member> = members.iter().filter(|member| !member.is_learner).collect();
    let mut clients = Vec::new();
    for voter in voters.iter().filter(|voter| !voter.client_ur_ls.is_empty()) {
        // An address that no client can be made for is one that does not answer.
        clients.extend(session.client(voter.client_ur_ls.clone(), "etcd-client").map(|client| (voter.id, client)).ok());
    }
    let answering = session.wait(answering(clients));
    if answering.contains(&id) {
        return Ok(());
    }
    let (majority, reachable) = (voters.len() / 2 + 1, answering.len());
    let state = match reachable.checked_sub(majority) {
        None => format!("nothing can be written until {name} runs"),
        Some(0) => format!("until {name} runs, the loss of any one of these stops all writes"),
        Some(spare) => format!("until {name} runs, {spare} of these may be lost"),
    };
    let hint = "a member added with --learner has no vote until it is promoted";
    session.console.tell(&format!(
        "Warning: {name} ({id:x}) has a vote and does not answer: {} voters, {majority} votes needed, {reachable} \
         answering; {state}. ({hint})\n",
        voters.len()
    ));
    Ok(())
}

/// Which of these members answer.
async fn answering(clients: Vec<(u64, Client)>) -> Vec<u64> {
    let mut probes = JoinSet::new();
    for (id, client) in clients {
        probes.spawn(async move { client.status(Deadline::after(VOTE_PATIENCE)).await.is_ok().then_some(id) });
    }
    let mut answering = Vec::new();
    while let Some(done) = probes.join_next().await {
        answering.extend(done.ok().flatten());
    }
    answering
}

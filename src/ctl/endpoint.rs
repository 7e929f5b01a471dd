//! `endpoint`: asks each endpoint by itself.

use std::time::Instant;

use tokio::task::JoinSet;

use super::command::Action;
use super::command::Command;
use super::error::CtlError;
use super::error::Exit;
use super::flags::Flag;
use super::flags::Kind;
use super::print::EndpointHash;
use super::print::EndpointHealth;
use super::print::EndpointStatus;
use super::print::Report;
use super::session::Session;
use crate::client::CallError;
use crate::client::Client;
use crate::client::Deadline;
use crate::common::answer::Answer;
use crate::common::go_duration;
use crate::proto::etcdserverpb::AlarmType;
use crate::proto::etcdserverpb::MemberListRequest;
use crate::proto::etcdserverpb::RangeRequest;

/// Log lines of clients for one endpoint carry this name.
const LOGGER: &str = "etcd-client";

/// Key that a healthy cluster can be asked for, whether it exists or not.
const PROBE_KEY: &[u8] = b"health";

pub static COMMAND: Command = Command {
    name: "endpoint",
    arguments: "",
    summary: "Asks each endpoint by itself",
    flags: &[],
    inherited: &[Flag::new("cluster", Kind::Bool, "", "ask all endpoints that the cluster's member list names")],
    action: Action::Group { commands: &[&HEALTH, &STATUS, &HASHKV], names: &["health", "status", "hashkv"] },
};

static HEALTH: Command = Command {
    name: "health",
    arguments: "",
    summary: "Tries whether each endpoint can serve a consistent read",
    flags: &[],
    inherited: &[],
    action: Action::Run(run_health),
};

static STATUS: Command = Command {
    name: "status",
    arguments: "",
    summary: "Shows version, size, leader and progress of each endpoint",
    flags: &[],
    inherited: &[],
    action: Action::Run(run_status),
};

static HASHKV: Command = Command {
    name: "hashkv",
    arguments: "",
    summary: "Shows the hash of each endpoint's keys and values",
    flags: &[Flag::new("rev", Kind::Int, "", "revision to hash up to, 0 for the latest")],
    inherited: &[],
    action: Action::Run(run_hashkv),
};

fn run_status(session: &mut Session<'_>) -> Result<(), CtlError> {
    let mut list = Vec::new();
    let mut failed = false;
    for endpoint in targets(session)? {
        let client = session.client(vec![endpoint.clone()], LOGGER)?;
        match session.wait(client.status(session.deadline())) {
            Ok(status) => list.push(EndpointStatus { endpoint, status }),
            Err(error) => {
                let told = session.told(&error);
                session.console.tell(&format!("Failed to get the status of endpoint {endpoint} ({told})\n"));
                failed = true;
            }
        }
    }
    session.report(&Report::Status(&list))?;
    // No line of its own for the failure (ctl.md 11, trap 17).
    if failed { Err(CtlError::Silent(Exit::Failed)) } else { Ok(()) }
}

fn run_hashkv(session: &mut Session<'_>) -> Result<(), CtlError> {
    let revision = session.values.int("rev");
    let mut list = Vec::new();
    let mut failed = None;
    for endpoint in targets(session)? {
        let client = session.client(vec![endpoint.clone()], LOGGER)?;
        match session.wait(client.hash_kv(revision, session.deadline())) {
            Ok(hash) => list.push(EndpointHash { endpoint, hash }),
            Err(error) => {
                let told = session.told(&error);
                session.console.tell(&format!("Failed to get the hash of endpoint {endpoint} ({told})\n"));
                failed = Some(told);
            }
        }
    }
    session.report(&Report::HashKv(&list))?;
    failed.map_or(Ok(()), |told| Err(CtlError::failed(told)))
}

/// Asks all endpoints at once and lists them as they answer.
fn run_health(session: &mut Session<'_>) -> Result<(), CtlError> {
    let mut clients = Vec::new();
    for endpoint in targets(session)? {
        let client = session.client(vec![endpoint.clone()], "client")?;
        clients.push((endpoint, client));
    }
    let deadline = session.deadline();
    let list = session.wait(async {
        let mut probes: JoinSet<EndpointHealth> = JoinSet::new();
        for (endpoint, client) in clients {
            probes.spawn(probe(endpoint, client, deadline));
        }
        let mut list = Vec::new();
        while let Some(done) = probes.join_next().await {
            list.extend(done.ok());
        }
        list
    });
    session.report(&Report::Health(&list))?;
    if list.iter().all(|found| found.healthy) { Ok(()) } else { Err(CtlError::failed("unhealthy cluster")) }
}

async fn probe(endpoint: String, client: Client, deadline: Deadline) -> EndpointHealth {
    let started = Instant::now();
    let request = RangeRequest { key: PROBE_KEY.into(), ..RangeRequest::default() };
    let read = client.range(request, deadline).await;
    let took = go_duration::format(started.elapsed());
    let error = match read {
        // Whoever may not read was still answered by a quorum.
        Ok(_) => active_alarms(&client, deadline).await,
        Err(error) if error.is(&Answer::PermissionDenied) => active_alarms(&client, deadline).await,
        Err(error) => error.to_string(),
    };
    EndpointHealth { endpoint, healthy: error.is_empty(), took, error }
}

/// What alarms say against an endpoint's health; empty for nothing.
async fn active_alarms(client: &Client, deadline: Deadline) -> String {
    let Ok(response) = client.alarm_list(deadline).await else { return "Unable to fetch the alarm list".to_owned() };
    let name = |alarm: i32| match AlarmType::try_from(alarm) {
        Ok(AlarmType::Nospace) => "NOSPACE ",
        Ok(AlarmType::Corrupt) => "CORRUPT ",
        Ok(AlarmType::None) | Err(_) => "UNKNOWN ",
    };
    let names: String = response.alarms.iter().map(|alarm| name(alarm.alarm)).collect();
    if names.is_empty() { names } else { format!("Active Alarm(s): {names}") }
}

/// The endpoints to ask: as typed, or with `--cluster` every client URL of every member.
fn targets(session: &mut Session<'_>) -> Result<Vec<String>, CtlError> {
    session.settle()?;
    if !session.values.bool("cluster") {
        return Ok(session.endpoints());
    }
    let failed =
        |told: String| CtlError::failed(format!("failed to fetch endpoints from etcd cluster member list: {told}"));
    let endpoints = session.endpoints().iter().map(|endpoint| endpoint.trim().to_owned()).collect();
    let client = session.client(endpoints, LOGGER).map_err(|error| match error {
        CtlError::Told { text, .. } => failed(text),
        other => other,
    })?;
    let listed: Result<_, CallError> =
        session.wait(client.member_list(MemberListRequest { linearizable: true }, session.deadline()));
    let response = listed.map_err(|error| failed(session.told(&error)))?;
    Ok(response.members.into_iter().flat_map(|member| member.client_ur_ls).collect())
}

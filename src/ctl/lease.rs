//! `lease`: grants, renews, shows and revokes leases.

use std::time::Duration;

use super::command::Action;
use super::command::Command;
use super::error::CtlError;
use super::error::Exit;
use super::flags::Flag;
use super::flags::Kind;
use super::go_number;
use super::print::Format;
use super::print::Report;
use super::print::lease;
use super::print::lease::LeaseReport;
use super::session::Session;
use crate::client::CallError;
use crate::client::Deadline;
use crate::proto::etcdserverpb::LeaseGrantRequest;

/// What the first answer to `keep-alive` may take beyond `--dial-timeout` (ctl.md 2.1).
const FIRST_ANSWER_EXTRA: Duration = Duration::from_secs(1);

pub static COMMAND: Command = Command {
    name: "lease",
    arguments: "",
    summary: "Looks after leases: keys attached to one go when it ends",
    flags: &[],
    inherited: &[],
    action: Action::Group {
        commands: &[&GRANT, &REVOKE, &TIME_TO_LIVE, &LIST, &KEEP_ALIVE],
        names: &["grant", "revoke", "timetolive", "list", "keep-alive"],
    },
};

static GRANT: Command = Command {
    name: "grant",
    arguments: "<ttl>",
    summary: "Grants a lease that lives for so many seconds unless it is renewed",
    flags: &[],
    inherited: &[],
    action: Action::Run(run_grant),
};

static REVOKE: Command = Command {
    name: "revoke",
    arguments: "<leaseID>",
    summary: "Ends a lease and deletes the keys attached to it",
    flags: &[],
    inherited: &[],
    action: Action::Run(run_revoke),
};

static TIME_TO_LIVE: Command = Command {
    name: "timetolive",
    arguments: "<leaseID> [options]",
    summary: "Shows how long a lease has still to live",
    flags: &[Flag::new("keys", Kind::Bool, "", "show the keys attached to the lease")],
    inherited: &[],
    action: Action::Run(run_time_to_live),
};

static LIST: Command = Command {
    name: "list",
    arguments: "",
    summary: "Lists the leases that there are",
    flags: &[],
    inherited: &[],
    action: Action::Run(run_list),
};

static KEEP_ALIVE: Command = Command {
    name: "keep-alive",
    arguments: "[options] <leaseID>",
    summary: "Renews a lease again and again until it ends",
    flags: &[Flag::new("once", Kind::Bool, "", "renew it once")],
    inherited: &[],
    action: Action::Run(run_keep_alive),
};

fn run_grant(session: &mut Session<'_>) -> Result<(), CtlError> {
    let [ttl] = &session.args[..] else {
        return Err(CtlError::bad_arguments("lease grant command needs TTL argument"));
    };
    let ttl = go_number::parse_int(&String::from_utf8_lossy(ttl), 10)
        .map_err(|why| CtlError::bad_arguments(format!("bad TTL ({why})")))?;
    let client = session.connect()?;
    let granted = session.wait(client.lease_grant(LeaseGrantRequest { ttl, id: 0 }, session.deadline()));
    let response =
        granted.map_err(|error| CtlError::failed(format!("failed to grant lease ({})", session.told(&error))))?;
    session.report(&Report::Lease(LeaseReport::Grant(&response)))
}

fn run_revoke(session: &mut Session<'_>) -> Result<(), CtlError> {
    let id = lease_id(session, "lease revoke command needs 1 argument")?;
    let client = session.connect()?;
    let revoked = session.wait(client.lease_revoke(id, session.deadline()));
    let response =
        revoked.map_err(|error| CtlError::failed(format!("failed to revoke lease ({})", session.told(&error))))?;
    session.report(&Report::Lease(LeaseReport::Revoke { id, response: &response }))
}

fn run_time_to_live(session: &mut Session<'_>) -> Result<(), CtlError> {
    let id = lease_id(session, "lease timetolive command needs lease ID as argument")?;
    let keys = session.values.bool("keys");
    let client = session.connect()?;
    // No deadline (ctl.md 11, trap 26).
    let shown = session.wait(client.lease_time_to_live(id, keys, Deadline::none()));
    let response = shown.map_err(|error| bad_connection(session, &error))?;
    session.report(&Report::Lease(LeaseReport::TimeToLive { response: &response, keys }))
}

fn run_list(session: &mut Session<'_>) -> Result<(), CtlError> {
    let client = session.connect()?;
    let listed = session.wait(client.leases(Deadline::none()));
    let response = listed.map_err(|error| bad_connection(session, &error))?;
    session.report(&Report::Lease(LeaseReport::List(&response)))
}

fn run_keep_alive(session: &mut Session<'_>) -> Result<(), CtlError> {
    let id = lease_id(session, "lease keep-alive command needs lease ID as argument")?;
    let client = session.connect()?;
    if session.values.bool("once") {
        let renewed = session.wait(client.lease_keep_alive_once(id, Deadline::none()));
        let response = renewed.map_err(|error| bad_connection(session, &error))?;
        return session.report(&Report::Lease(LeaseReport::KeepAlive(&response)));
    }
    let dial = Duration::from_nanos(u64::try_from(session.values.duration("dial-timeout")).unwrap_or(0));
    let mut answers = client.lease_keep_alive(id, dial + FIRST_ANSWER_EXTRA);
    while let Some(response) = session.wait(answers.next()) {
        session.report(&Report::Lease(LeaseReport::KeepAlive(&response)))?;
        session.console.flush()?;
    }
    if session.format() == Format::Simple {
        let text = format!("lease {} expired or revoked.\n", lease::padded(id));
        session.console.write_out(text.as_bytes())?;
    }
    Ok(())
}

/// The only argument as a lease's id; `needs` is told when it is missing or not alone.
fn lease_id(session: &Session<'_>, needs: &str) -> Result<i64, CtlError> {
    let [id] = &session.args[..] else { return Err(CtlError::bad_arguments(needs)) };
    go_number::parse_int(&String::from_utf8_lossy(id), 16)
        .map_err(|why| CtlError::bad_arguments(format!("bad lease ID arg ({why}), expecting ID in Hex")))
}

/// These commands take every failure for a bad connection (ctl.md 1.1).
fn bad_connection(session: &Session<'_>, error: &CallError) -> CtlError {
    CtlError::Told { exit: Exit::BadConnection, text: session.told(error) }
}

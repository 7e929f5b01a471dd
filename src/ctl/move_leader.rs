//! `move-leader`: asks the leader to hand over to another member.

use super::command::Action;
use super::command::Command;
use super::error::CtlError;
use super::go_number;
use super::print::Report;
use super::session::Session;

/// Log lines of clients for one endpoint carry this name.
const LOGGER: &str = "etcd-client";

pub static COMMAND: Command = Command {
    name: "move-leader",
    arguments: "<transferee-member-id>",
    summary: "Hands the leadership of the cluster to another member",
    flags: &[],
    inherited: &[],
    action: Action::Run(run),
};

fn run(session: &mut Session<'_>) -> Result<(), CtlError> {
    let [target] = &session.args[..] else {
        return Err(CtlError::bad_arguments("move-leader command needs 1 argument"));
    };
    let to = go_number::parse_uint(&String::from_utf8_lossy(target), 16).map_err(CtlError::bad_arguments)?;
    session.settle()?;
    let endpoints: Vec<String> = session.endpoints().iter().map(|endpoint| endpoint.trim().to_owned()).collect();
    let deadline = session.deadline();
    // Only the leader can be asked; the first endpoint that does not answer ends the search.
    for endpoint in &endpoints {
        let client = session.client(vec![endpoint.clone()], LOGGER)?;
        let status = session.call(client.status(deadline))?;
        let from = status.header.map_or(0, |header| header.member_id);
        if from == status.leader {
            let response = session.call(client.move_leader(to, deadline))?;
            return session.report(&Report::MoveLeader { from, to, response: &response });
        }
    }
    Err(CtlError::bad_arguments(format!("no leader endpoint given at [{}]", endpoints.join(" "))))
}

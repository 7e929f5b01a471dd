//! `member`: the cluster's members.

use super::command::Action;
use super::command::Command;
use super::error::CtlError;
use super::flags::Flag;
use super::flags::Kind;
use super::get;
use super::print::Report;
use super::session::Session;
use crate::proto::etcdserverpb::MemberListRequest;

pub static COMMAND: Command = Command {
    name: "member",
    arguments: "",
    summary: "Looks after the cluster's members",
    flags: &[],
    inherited: &[],
    action: Action::Group { commands: &[&LIST], names: &["add", "remove", "update", "list", "promote"] },
};

static LIST: Command = Command {
    name: "list",
    arguments: "",
    summary: "Lists the cluster's members",
    flags: &[Flag::new("consistency", Kind::Text, "l", "linearizable (l) or serializable (s)")],
    inherited: &[],
    action: Action::Run(run_list),
};

fn run_list(session: &mut Session<'_>) -> Result<(), CtlError> {
    // The error names the default of get's flag, whatever was given (ctl.md 11, trap 33).
    let serializable = get::serializable(session.values.text("consistency"), "l")?;
    let client = session.connect()?;
    let request = MemberListRequest { linearizable: !serializable };
    let response = session.call(client.member_list(request, session.deadline()))?;
    session.report(&Report::MemberList(&response))
}

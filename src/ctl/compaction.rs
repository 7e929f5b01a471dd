//! `compaction`: forgets revisions.

use super::command::Action;
use super::command::Command;
use super::error::CtlError;
use super::flags::Flag;
use super::flags::Kind;
use super::go_number;
use super::session::Session;
use crate::proto::etcdserverpb::CompactionRequest;

pub static COMMAND: Command = Command {
    name: "compaction",
    arguments: "[options] <revision>",
    summary: "Forgets what keys were before a revision",
    flags: &[Flag::new("physical", Kind::Bool, "", "return only when the old revisions are gone from the disk")],
    inherited: &[],
    action: Action::Run(run),
};

fn run(session: &mut Session<'_>) -> Result<(), CtlError> {
    let [revision] = &session.args[..] else {
        return Err(CtlError::bad_arguments("compaction command needs 1 argument"));
    };
    let revision = go_number::parse_int(&String::from_utf8_lossy(revision), 10).map_err(CtlError::failed)?;
    let request = CompactionRequest { revision, physical: session.values.bool("physical") };
    let client = session.connect()?;
    session.call(client.compact(request, session.deadline()))?;
    // Text in every format (ctl.md 3).
    session.console.write_out(format!("compacted revision {revision}\n").as_bytes())
}

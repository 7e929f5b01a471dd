//! `version`: says which etcdctl this is.

use super::command::Action;
use super::command::Command;
use super::error::CtlError;
use super::session::Session;
use crate::common::version::ETCD_VERSION;
use crate::common::version::QUORATE_VERSION;
use crate::common::version::Version;

pub static COMMAND: Command = Command {
    name: "version",
    arguments: "",
    summary: "Prints the versions of this program and of the API",
    flags: &[],
    inherited: &[],
    action: Action::Run(run),
};

fn run(session: &mut Session<'_>) -> Result<(), CtlError> {
    let line = Version::parse(ETCD_VERSION).unwrap_or(Version::new(3, 0, 0));
    let mut text = format!("etcdctl version: {ETCD_VERSION}\nAPI version: {}.{}\n", line.major, line.minor);
    if session.program() != "etcdctl" {
        text = format!("quorate version: {QUORATE_VERSION}\n{text}");
    }
    session.console.write_out(text.as_bytes())
}

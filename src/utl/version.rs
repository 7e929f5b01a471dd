//! `version`: says which etcdutl this is.

use crate::common::version::ETCD_VERSION;
use crate::common::version::QUORATE_VERSION;
use crate::common::version::Version;
use crate::utl::Session;
use crate::utl::command::Command;
use crate::utl::error::UtlError;

pub static COMMAND: Command = Command::leaf("version", "Prints the versions of this program and of the API", run);

fn run(session: &mut Session<'_>) -> Result<(), UtlError> {
    let line = Version::parse(ETCD_VERSION).unwrap_or(Version::new(3, 0, 0));
    session.report(&format!("quorate version: {QUORATE_VERSION}\n"))?;
    session.print(&format!("etcdutl version: {ETCD_VERSION}\nAPI version: {}.{}\n", line.major, line.minor))
}

//! Two programs, started in turn, under the same loads: the only source of claims about speed.
//!
//! On a shared machine one and the same program differs from itself by a third from round to round, and what runs later
//! looks faster. So rounds are interleaved case by case, the order alternates, every case starts on fresh servers with
//! fresh directories after a warm-up, and a ratio is told with its spread (`stats`).
//!
//! ```text
//!  round 1   idle: ours, theirs   put-1: theirs, ours   put-100: ours, theirs   …
//!  round 2   idle: theirs, ours   put-1: ours, theirs   put-100: theirs, ours   …
//! ```

mod case;
mod rounds;
mod servers;
mod stats;
mod table;

use std::path::Path;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use nix::sys::statfs::TMPFS_MAGIC;
use nix::sys::statfs::statfs;

pub use case::Case;
use rounds::Scale;
use servers::Servers;
use table::Program;
use table::Table;

use super::Failed;
use super::floors;
use super::options::Common;
use super::options::CompareOptions;
use crate::client::Client;
use crate::client::Config;
use crate::client::Deadline;

/// How long a member may take to say its version.
const STATUS_TIMEOUT: Duration = Duration::from_secs(10);

/// The two sides of a comparison.
const OURS: usize = 0;
const THEIRS: usize = 1;

/// Runs the comparison and tells what it showed.
pub async fn run(options: &CompareOptions, common: &Common) -> Result<ExitCode, Failed> {
    let dir = options.dir.clone().unwrap_or_else(std::env::temp_dir);
    warn_of_memory(&dir);
    let ours = match &options.binary {
        Some(binary) => absolute(binary)?,
        None => std::env::current_exe().map_err(|error| format!("cannot find myself: {error}"))?,
    };
    let binaries = [ours, absolute(&options.against)?];
    let scale = Scale { members: options.members, keys: options.key_count.max(1), quick: options.quick };
    let cases = if options.only.is_empty() { Case::all(options.members).to_vec() } else { options.only.clone() };
    let mut programs = Vec::new();
    for binary in &binaries {
        programs.push(Program { path: binary.clone(), version: version(binary, &dir).await? });
    }
    let mut table = Table::new(scale, options.rounds, programs, &cases);
    if common.floors {
        for case in cases.iter().filter(|case| !matches!(case, Case::Idle | Case::Keys)) {
            table.floors.push((*case, floors::measure(&scale.load(*case), &dir).await?));
        }
    }
    for round in 0..options.rounds as usize {
        for (position, case) in cases.iter().enumerate() {
            let first = (round + position) % 2;
            for side in [first, 1 - first] {
                let name = if side == OURS { "ours" } else { "theirs" };
                let what = format!("{}/{} {} {name}", round + 1, options.rounds, case.title(scale.key_count()));
                let figures = rounds::run(*case, scale, &binaries[side], &dir, &what).await?;
                table.add(*case, side, &figures);
            }
        }
    }
    super::say(&if common.json { table.json() } else { table.text() });
    Ok(ExitCode::SUCCESS)
}

/// Children do not start where we do when a path is relative to a search path.
fn absolute(binary: &Path) -> Result<PathBuf, String> {
    std::fs::canonicalize(binary).map_err(|error| format!("{}: {error}", binary.display()))
}

/// On a file system in memory a durable write costs nothing, and no figure about writes means anything.
fn warn_of_memory(dir: &Path) {
    if statfs(dir).is_ok_and(|found| found.filesystem_type() == TMPFS_MAGIC) {
        let dir = dir.display();
        anstream::eprintln!("quorate bench: {dir} lies in memory: syncs cost nothing there; --dir names another place");
    }
}

/// What a program calls its version; also shows that it starts.
async fn version(binary: &Path, dir: &Path) -> Result<String, String> {
    let servers = Servers::start(binary, 1, dir).await?;
    let client = Client::open(Config::new(servers.endpoints().to_vec())).map_err(|error| error.to_string())?;
    let status = client.status(Deadline::after(STATUS_TIMEOUT)).await;
    status.map(|status| status.version).map_err(|error| format!("{}: {error}", binary.display()))
}

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
mod failover;
mod leases;
mod machine;
mod markdown;
mod rounds;
mod saving;
mod servers;
mod stats;
mod table;
mod watches;

use std::path::Path;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use nix::sys::statfs::TMPFS_MAGIC;
use nix::sys::statfs::statfs;

pub use case::Case;
use case::Trial;
use machine::Machine;
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

/// What a trial takes when the work is cut short: most of it is two programs that start.
const QUICK_SECONDS: u64 = 2;

/// The two sides of a comparison.
const OURS: usize = 0;
const THEIRS: usize = 1;

/// Runs the comparison and tells what it showed.
pub async fn run(options: &CompareOptions, common: &Common) -> Result<ExitCode, Failed> {
    let dir = options.dir.clone().unwrap_or_else(std::env::temp_dir);
    warn_of_memory(&dir);
    if let Some(out) = &options.out {
        markdown::check(out)?;
    }
    let ours = match &options.binary {
        Some(binary) => absolute(binary)?,
        None => std::env::current_exe().map_err(|error| format!("cannot find myself: {error}"))?,
    };
    let binaries = [ours, absolute(&options.against)?];
    let scale = Scale { quick: options.quick };
    let trials = Trial::chosen(options.members, &options.cases);
    if !common.json {
        super::say(&plan(scale, options.rounds, &trials));
    }
    let mut programs = Vec::new();
    for binary in &binaries {
        programs.push(Program { path: binary.clone(), version: version(binary, &dir).await? });
    }
    let mut table = Table::new(scale, options.rounds, programs, &trials, Machine::of(&dir));
    let measured = measure(&mut table, options, common, &binaries, &dir).await;
    // Half an hour's figures are told also when one of the last ones failed.
    super::say(&if common.json { table.json() } else { table.text() });
    measured?;
    if let Some(out) = &options.out {
        markdown::write(&table, out)?;
    }
    Ok(ExitCode::SUCCESS)
}

/// All rounds of all trials.
async fn measure(
    table: &mut Table,
    options: &CompareOptions,
    common: &Common,
    binaries: &[PathBuf; 2],
    dir: &Path,
) -> Result<(), Failed> {
    let scale = Scale { quick: options.quick };
    let trials = table.trials().to_vec();
    if common.floors {
        for trial in trials.iter().filter(|trial| trial.members == 1 && trial.case.has_floors()) {
            table.floors.push((*trial, floors::measure(&scale.load(trial.case), dir).await?));
        }
    }
    for round in 0..options.rounds as usize {
        for (position, trial) in trials.iter().enumerate() {
            let first = (round + position) % 2;
            for side in [first, 1 - first] {
                let name = if side == OURS { "ours" } else { "theirs" };
                let what = format!("{}/{} {} {name}", round + 1, options.rounds, scale.title(*trial));
                let figures = rounds::run(*trial, scale, &binaries[side], dir, &what).await?;
                table.add(*trial, side, &figures);
            }
        }
    }
    Ok(())
}

/// What is going to be done and how long that takes, before it is begun.
fn plan(scale: Scale, rounds: u32, trials: &[Trial]) -> String {
    let rounds = u64::from(rounds);
    let seconds = |trial: &Trial| if scale.quick { QUICK_SECONDS } else { trial.seconds() } * rounds;
    let time = |seconds: u64| format!("{} min {:02} s", seconds / 60, seconds % 60);
    let mut text = format!("plan: {rounds} rounds of {} cases on both programs, about ", trials.len());
    text.push_str(&time(trials.iter().map(seconds).sum()));
    text.push('\n');
    for trial in trials {
        text.push_str(&format!("  {:>12}  {}\n", time(seconds(trial)), scale.title(*trial)));
    }
    text.push('\n');
    text
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

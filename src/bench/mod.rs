//! Load on an etcd, any etcd, and what it costs: `quorate bench`.
//!
//! ```text
//!  options ─▶ load (what, how much) ─▶ clients, one task each ─▶ client::direct ─▶ the server
//!           watching (streams, and puts before their eyes) ─▶ the same
//!                                         └─▶ latency buckets ─▶ report ◀── usage (/proc of --pid)
//!  floors   the same load on a service without work
//!  compare  two programs started in turn, the same loads, medians and ratios
//! ```
//!
//! The generator shares its machine with the server, so everything here that runs a request is kept cheap, and server
//! CPU a request is the figure to trust: requests a second depend on what the generator itself costs.

pub mod compare;
pub mod floors;
pub mod keys;
pub mod latency;
pub mod load;
pub mod options;
pub mod process;
pub mod progress;
pub mod report;
pub mod usage;
pub mod watching;
pub mod workload;

use std::ffi::OsString;
use std::io::Write;
use std::process::ExitCode;
use std::time::Duration;

use clap::Parser;
use tokio::signal::unix::SignalKind;
use tokio::signal::unix::signal;

use crate::client::Client;
use crate::client::Config;
use crate::client::Deadline;
use load::Links;
use load::Load;
use options::Command;
use options::Common;
use options::Options;
use progress::Progress;
use report::Readings;
use report::Report;
use report::WatchReport;
use usage::Reading;
use watching::Watching;

/// A command line that means nothing, as clap has it for one that cannot be read.
const EXIT_USAGE: u8 = 2;
/// Added to a signal's number, as shells do.
const EXIT_SIGNAL: u8 = 128;

/// How long a member may take to say who leads.
const STATUS_TIMEOUT: Duration = Duration::from_secs(5);

/// Why a run ended before its report.
pub struct Failed {
    text: String,
    code: u8,
}

impl From<String> for Failed {
    fn from(text: String) -> Failed {
        Failed { text, code: 1 }
    }
}

/// Runs the command line to its end.
pub fn main(words: Vec<OsString>) -> ExitCode {
    let options = match Options::try_parse_from(std::iter::once(OsString::from("quorate bench")).chain(words)) {
        Ok(options) => options,
        Err(error) => {
            // Help and complaints; a reader that has gone wants neither.
            let _ = error.print();
            return ExitCode::from(u8::try_from(error.exit_code()).unwrap_or(EXIT_USAGE));
        }
    };
    if let Command::Floor { port, dir } = options.command {
        return floors::serve(port, dir);
    }
    match run(&options) {
        Ok(code) => code,
        Err(Failed { text, code }) => {
            if !text.is_empty() {
                anstream::eprintln!("quorate bench: {text}");
            }
            ExitCode::from(code)
        }
    }
}

fn run(options: &Options) -> Result<ExitCode, Failed> {
    let mut runtime = tokio::runtime::Builder::new_multi_thread();
    if let Some(threads) = options.common.threads {
        runtime.worker_threads(usize::from(threads));
    }
    let runtime = runtime.enable_all().build().map_err(|error| format!("cannot start: {error}"))?;
    runtime.block_on(async {
        // What is started is owned by the work: dropped with it, every child ends.
        tokio::select! {
            done = dispatch(options) => done,
            number = interrupted() => Err(Failed { text: String::new(), code: EXIT_SIGNAL + number? }),
        }
    })
}

/// Waits for a signal that asks us to end; its number.
async fn interrupted() -> Result<u8, Failed> {
    let told = |error: std::io::Error| format!("cannot listen for signals: {error}");
    let mut interrupt = signal(SignalKind::interrupt()).map_err(told)?;
    let mut terminate = signal(SignalKind::terminate()).map_err(told)?;
    let mut hangup = signal(SignalKind::hangup()).map_err(told)?;
    Ok(tokio::select! {
        _ = interrupt.recv() => 2,
        _ = terminate.recv() => 15,
        _ = hangup.recv() => 1,
    })
}

async fn dispatch(options: &Options) -> Result<ExitCode, Failed> {
    let meaning = |error: options::MeaningError| Failed { text: error.to_string(), code: EXIT_USAGE };
    if let Command::Compare(compare) = &options.command {
        options.common.check_for_compare().and_then(|()| compare.check()).map_err(meaning)?;
        return Box::pin(compare::run(compare, &options.common)).await;
    }
    if let Some(watching) = options.command.watching(&options.common) {
        return Box::pin(watch(&watching.map_err(meaning)?, &options.common)).await;
    }
    let Some(load) = options.command.load(&options.common) else {
        unreachable!("all other commands are workloads");
    };
    Box::pin(measure(&load.map_err(meaning)?, &options.common)).await
}

/// Runs one workload and tells what it showed.
async fn measure(load: &Load, common: &Common) -> Result<ExitCode, Failed> {
    let endpoints = targets(common).await?;
    let links = Links::open(&endpoints, load.conns).await?;
    let floors = match common.floors {
        true => floors::measure(load, &std::env::temp_dir()).await?,
        false => Vec::new(),
    };
    load.prepare(&links).await?;
    let progress = Progress::counting(load.name, load.total);
    let before = readings(&common.pids)?;
    let outcome = load.run(&links, &progress).await;
    let after = readings(&common.pids)?;
    drop(progress);
    let report = Report { floors, ..Report::new(load, outcome, &common.pids, before, after) };
    say(&if common.json { report.json() } else { report.text() });
    Ok(if report.failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Runs watchers and puts, and tells what came to them.
async fn watch(watching: &Watching, common: &Common) -> Result<ExitCode, Failed> {
    let links = Links::open(&targets(common).await?, watching.conns).await?;
    let progress = Progress::counting(watching.name, watching.expected());
    let before = readings(&common.pids)?;
    let seen = watching.run(&links, &progress).await?;
    let after = readings(&common.pids)?;
    drop(progress);
    let report = WatchReport::new(watching, seen, &common.pids, before, after);
    say(&if common.json { report.json() } else { report.text() });
    Ok(if report.failures.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn readings(pids: &[u32]) -> Result<Readings, Failed> {
    let read = |pids: &[u32]| Reading::of(pids).map_err(|error| error.to_string());
    Ok(Readings { server: read(pids)?, client: read(&[std::process::id()])? })
}

/// The addresses to connect to: all that were given, or the leader's alone.
async fn targets(common: &Common) -> Result<Vec<String>, Failed> {
    let addresses = common.addresses();
    if !common.target_leader {
        return Ok(addresses);
    }
    for address in &addresses {
        let client = Client::open(Config::new(vec![address.clone()])).map_err(|error| error.to_string())?;
        // A member that does not answer does not lead.
        let Ok(status) = client.status(Deadline::after(STATUS_TIMEOUT)).await else { continue };
        if status.header.is_some_and(|header| header.member_id == status.leader) {
            return Ok(vec![address.clone()]);
        }
    }
    Err(format!("none of {} leads", addresses.join(", ")).into())
}

fn say(text: &str) {
    // A reader that has gone wants no more text.
    let _ = std::io::stdout().write_all(text.as_bytes());
}

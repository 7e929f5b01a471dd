//! The judge of clusters under faults: what clients saw, held against what the protocol promises. `quorate torture`.
//!
//! ```text
//!  options ─▶ runner ─▶ member (process, files) ◀── faults: schedule, network, volume
//!               │  ├──▶ changes (of the membership) ─▶ the members
//!               │  ├──▶ clients ─▶ workload ─▶ client::direct ─▶ the members
//!               │  ├──▶ watchers ─▶ streams of the members
//!               │  ├──▶ lockers ─▶ locks and elections of the members
//!               ▼             └──▶ operations
//!             run ─▶ logs (committed entries) ─▶ verdict ─▶ checker ─▶ report · files of the run
//! ```
//!
//! `checker` reads a recorded history and the log behind it, and knows nothing of how a cluster is run: the simulator
//! (`sim`) records its own. Here the histories are those of real processes, of ours and of any other etcd.

mod changes;
pub mod checker;
mod clients;
mod files;
mod lockers;
mod logs;
mod member;
mod options;
mod report;
mod runner;
mod starting;
mod values;
mod verdict;
mod watchers;
mod workload;

use std::ffi::OsString;
use std::io::IsTerminal;
use std::io::Write;
use std::path::Path;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;
use std::sync::atomic::Ordering;
use std::time::SystemTime;
use std::time::UNIX_EPOCH;

use clap::Parser;
use indicatif::ProgressBar;
use indicatif::ProgressStyle;
use tokio::signal::unix::SignalKind;
use tokio::signal::unix::signal;

use crate::faults::process;
use crate::faults::process::Launcher;
use crate::faults::volume;
use files::Kept;
use options::MeaningError;
use options::Options;
use report::Report;
use runner::Interrupts;
use runner::Runner;
use runner::Setup;
use verdict::Verdict;

/// A command line that means nothing, as clap has it for one that cannot be read.
const EXIT_USAGE: u8 = 2;
/// Nothing could be tortured. Not 1, which means that something was found.
const EXIT_NOT_RUN: u8 = 3;

/// The hidden word behind which a member is launched (`faults::process`).
const LAUNCH: &str = "__launch";

/// Runs the command line to its end.
pub fn main(words: Vec<OsString>) -> ExitCode {
    if words.first().is_some_and(|word| word == LAUNCH) {
        return process::launch(words[1..].to_vec());
    }
    let options = match Options::try_parse_from(std::iter::once(OsString::from("quorate torture")).chain(words)) {
        Ok(options) => options,
        Err(error) => {
            // Help and complaints; a reader that has gone wants neither.
            let _ = error.print();
            return ExitCode::from(u8::try_from(error.exit_code()).unwrap_or(EXIT_USAGE));
        }
    };
    let done = match &options.judge {
        Some(dir) => judge_again(dir, &options),
        None => run(&options),
    };
    done.unwrap_or_else(|Failed { text, code }| {
        anstream::eprintln!("quorate torture: {text}");
        ExitCode::from(code)
    })
}

/// Why nothing was judged.
struct Failed {
    text: String,
    code: u8,
}

impl From<String> for Failed {
    fn from(text: String) -> Failed {
        Failed { text, code: EXIT_NOT_RUN }
    }
}

impl From<MeaningError> for Failed {
    fn from(error: MeaningError) -> Failed {
        Failed { text: error.to_string(), code: EXIT_USAGE }
    }
}

fn run(options: &Options) -> Result<ExitCode, Failed> {
    let mut setup = setup(options)?;
    if setup.kinds.iter().any(|kind| kind.needs_root()) {
        // Before there are threads, which would keep the old one.
        volume::own_mount_table().map_err(|error| format!("cannot have a mount table of our own: {error}"))?;
    }
    setup.dir = files::fresh_dir(options.dir.as_deref(), setup.seed)?;
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build();
    let runtime = runtime.map_err(|error| format!("cannot start: {error}"))?;
    // On this thread, which lives as long as the process: the members end with the thread that starts them.
    let done = runtime.block_on(Box::pin(torture(options, &setup)));
    if done.is_err() {
        runner::remove(&setup.dir);
    }
    done
}

fn setup(options: &Options) -> Result<Setup, Failed> {
    let kinds = options.kinds()?;
    let own = std::env::current_exe().map_err(|error| format!("cannot find this program: {error}"))?;
    let binary = match &options.binary {
        None => own.clone(),
        Some(path) => {
            std::fs::canonicalize(path).map_err(|reason| MeaningError::Binary { path: path.clone(), reason })?
        }
    };
    let flags = options
        .flags
        .iter()
        .map(|flag| flag.clone().into_string().map_err(|flag| Failed::from(MeaningError::Flag(flag))));
    // The clock's lower digits: two runs are seldom alike, and the number is short enough to be typed.
    let clock = SystemTime::now().duration_since(UNIX_EPOCH).map_or(1, |since| since.as_millis() % 1_000_000_000);
    Ok(Setup {
        launcher: Launcher { program: own.into(), words: vec!["torture".into(), LAUNCH.into()] },
        binary,
        dir: PathBuf::new(),
        members: usize::from(options.members),
        duration: options.duration,
        seed: options.seed.unwrap_or(u64::try_from(clock).unwrap_or(1)),
        kinds,
        clients: usize::from(options.clients),
        watchers: usize::from(options.watchers),
        lockers: usize::from(options.lockers),
        rate: options.rate,
        keys: options.keys,
        flags: flags.collect::<Result<_, _>>()?,
    })
}

async fn torture(options: &Options, setup: &Setup) -> Result<ExitCode, Failed> {
    let interrupts = Interrupts::default();
    listen(&interrupts)?;
    let bar = progress();
    bar.set_message("starting the members");
    let mut runner = Runner::start(setup.clone(), interrupts).await?;
    let run = runner.torture(&mut |what| bar.set_message(what.to_owned())).await;
    bar.set_message("judging");
    let again = options.again(setup.seed, &setup.binary);
    let kept = Kept::of(setup, run, again);
    let verdict = Verdict::of(&kept);
    let keep = options.keep || !verdict.findings.is_empty();
    let left = runner.members().iter_mut().map(|member| {
        let left = member.leave_volume(keep);
        left.map_err(|error| format!("{}: {error}", member.name))
    });
    let left: Vec<String> = left.filter_map(Result::err).collect();
    bar.finish_and_clear();
    drop(runner);
    let dir = keep.then_some(setup.dir.as_path());
    let written = dir.map_or(Ok(()), |dir| kept.write(dir));
    if !keep {
        runner::remove(&setup.dir);
    }
    // A disk without room for all this does not keep the verdict back.
    left.iter().chain(written.as_ref().err()).for_each(|error| eprintln!("quorate torture: not kept: {error}"));
    Ok(tell(&Report { kept: &kept, verdict: &verdict, dir }, options.json))
}

/// A line on stderr that says what is going on, and only where somebody looks.
fn progress() -> ProgressBar {
    if !std::io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    ProgressBar::new_spinner().with_style(ProgressStyle::with_template("{msg}").expect("a constant template"))
}

/// Counts the user's wishes to end.
fn listen(interrupts: &Interrupts) -> Result<(), String> {
    for kind in [SignalKind::interrupt(), SignalKind::terminate(), SignalKind::hangup()] {
        let mut signals = signal(kind).map_err(|error| format!("cannot listen for signals: {error}"))?;
        let interrupts: Arc<AtomicUsize> = Arc::clone(interrupts);
        tokio::spawn(async move {
            while signals.recv().await.is_some() {
                interrupts.fetch_add(1, Ordering::Relaxed);
            }
        });
    }
    Ok(())
}

fn judge_again(dir: &Path, options: &Options) -> Result<ExitCode, Failed> {
    let kept = Kept::read(dir)?;
    let verdict = Verdict::of(&kept);
    Ok(tell(&Report { kept: &kept, verdict: &verdict, dir: Some(dir) }, options.json))
}

fn tell(report: &Report<'_>, json: bool) -> ExitCode {
    let text = if json { report.json() } else { report.text() };
    // A reader that has gone wants no more text.
    let _ = std::io::stdout().write_all(text.as_bytes());
    if report.verdict.findings.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

//! `up -d`: a child in a session of its own supervises; we wait for its word, and with --wait until all is well.
//!
//! ```text
//!  parent ── starts itself again with --detached-child, the pipe as standard output
//!  child  ── setsid, reads and checks everything, holds the project, starts ─▶ one line of JSON on the pipe
//!            before that line errors are the parent's to tell; from then on output goes to supervisor.log
//! ```
//!
//! Nothing runs in the child before it is alone, so no thread is lost in a fork; the working directory stays, so relative
//! paths of commands keep their meaning (supervisor.md 6, trap 30).

use std::ffi::OsString;
use std::fs::File;
use std::io::BufRead;
use std::io::BufReader;
use std::io::Read;
use std::io::Write;
use std::os::fd::AsFd;
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::process::ExitCode;
use std::time::Duration;

use serde::Deserialize;
use serde::Serialize;

use super::EXIT_FAILED;
use super::Failure;
use super::UpArgs;
use super::act;
use super::block_on;
use super::launch;
use super::launch::BackgroundLog;
use super::launch::Plan;
use super::launch::Port;
use super::launch::Sink;
use super::tell;
use super::waiting;
use super::waiting::WaitError;
use crate::common::os_reason::os_reason;
use crate::supervisor::control::http_client::Caller;
use crate::supervisor::project::Held;
use crate::supervisor::project::Project;

/// The hidden flag that makes us the child.
const CHILD: &str = "--detached-child";
/// The child's word is one short line.
const WORD_BYTES_MAX: u64 = 1 << 20;
/// What is shown of the log of a child that ended without a word.
const LINES_SHOWN: usize = 20;

/// What the child says.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Word {
    Ready { pid: u32, processes: usize, socket: std::path::PathBuf },
    Failed { text: String, code: u8 },
}

/// Starts the child and waits for its word; with `until_ready`, until all is well or that time is over.
pub fn parent(
    project: &Project,
    words: &[OsString],
    until_ready: Option<Duration>,
    keep: bool,
) -> Result<ExitCode, Failure> {
    let failed = |error: std::io::Error| Failure::new(format!("cannot go to the background: {}", os_reason(&error)));
    let (reader, writer) = std::io::pipe().map_err(failed)?;
    let program = std::env::current_exe().map_err(failed)?;
    let mut command = Command::new(program);
    command.arg0("quorate").arg("supervisor").arg(CHILD).args(words).stdout(writer);
    let mut child = command.spawn().map_err(failed)?;
    // Ours is the only end that is left open here once the command is gone.
    drop(command);
    let mut text = String::new();
    BufReader::new(reader.take(WORD_BYTES_MAX)).read_line(&mut text).map_err(failed)?;
    match serde_json::from_str::<Word>(&text) {
        Ok(Word::Failed { text, code }) => {
            let _ = child.wait();
            Err(Failure { text, code })
        }
        Ok(Word::Ready { pid, processes, socket }) => {
            let count = if processes == 1 { "1 process".to_owned() } else { format!("{processes} processes") };
            let caller = Caller::at(&socket);
            match until_ready {
                None => anstream::println!("{count} started by the supervisor with pid {pid}"),
                Some(timeout) => {
                    wait(&caller, timeout, keep)?;
                    anstream::println!("{count} ready, supervised by pid {pid}");
                }
            }
            Ok(ExitCode::SUCCESS)
        }
        Err(_) => {
            let _ = child.wait();
            let log = project.log().and_then(|path| std::fs::read_to_string(path).ok()).unwrap_or_default();
            let lines: Vec<&str> = log.lines().collect();
            let last = &lines[lines.len().saturating_sub(LINES_SHOWN)..];
            Err(Failure::new(format!("the supervisor ended at once\n{}", last.join("\n")).trim_end()))
        }
    }
}

/// Waits until everything is ready. Whatever keeps that from happening ends everything, unless it is to be kept.
fn wait(caller: &Caller, timeout: Duration, keep: bool) -> Result<(), Failure> {
    block_on(async {
        let mut terminate = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate())
            .map_err(|error| Failure::new(format!("cannot catch signals: {}", os_reason(&error))))?;
        let text = tokio::select! {
            waited = waiting::until_ready(caller, &[], Some(timeout)) => match waited {
                Ok(_) => return Ok(()),
                Err(WaitError::Lost(error)) => format!("the supervisor has ended: {error}"),
                Err(error) => waiting::report(caller, &error).await,
            },
            _ = tokio::signal::ctrl_c() => "interrupted".to_owned(),
            _ = terminate.recv() => "terminated".to_owned(),
        };
        if keep {
            return Err(Failure::new(format!("{text}\neverything is left as it is (--keep)")));
        }
        if let Err(failure) = act::end(caller, false).await {
            tell(&format!("could not stop everything: {}", failure.text));
        }
        Err(Failure { text, code: EXIT_FAILED })
    })
}

/// The child's whole life.
pub fn child(project: &Project, args: UpArgs, control: Option<Port>) -> Result<ExitCode, Failure> {
    // A session of its own, in a fork: what only the command line needed, of the program and of memory, stays behind with
    // the process that read it. No thread but the allocator's runs yet, and that one knows of forks.
    if let Err(error) = nix::unistd::daemon(true, true) {
        return Err(Failure::new(format!("cannot go to the background: {}", os_reason(&error.into()))));
    }
    let mut pipe = match std::io::stdout().as_fd().try_clone_to_owned() {
        Ok(pipe) => File::from(pipe),
        Err(error) => return Err(Failure::new(os_reason(&error))),
    };
    let prepared = prepare(project, args, control);
    let (plan, held, log) = match prepared {
        Ok(prepared) => prepared,
        Err(failure) => {
            say(&mut pipe, &Word::Failed { text: failure.text.clone(), code: failure.code });
            return Err(failure);
        }
    };
    let mut late = pipe.try_clone().ok();
    let socket = held.socket();
    let ready = Box::new(move |processes: usize| {
        say(&mut pipe, &Word::Ready { pid: std::process::id(), processes, socket });
    });
    let done = launch::run(plan, held, Sink::File(log), Some(ready));
    if let (Err(failure), Some(pipe)) = (&done, &mut late) {
        // After the word that all is well nobody listens.
        say(pipe, &Word::Failed { text: failure.text.clone(), code: failure.code });
    }
    done.map(ExitCode::from)
}

fn prepare(project: &Project, args: UpArgs, control: Option<Port>) -> Result<(Plan, Held, BackgroundLog), Failure> {
    let held = project.hold(true)?;
    let plan = Plan::of(&args, control)?;
    let failed = |error: std::io::Error| Failure::new(format!("{}: {}", held.log().display(), os_reason(&error)));
    let log = BackgroundLog::create(&held.log()).map_err(failed)?;
    let null = File::open("/dev/null").map_err(failed)?;
    // From here on the terminal that we were started from may go.
    nix::unistd::dup2_stdin(&null).map_err(|error| failed(error.into()))?;
    nix::unistd::dup2_stdout(log.file()).map_err(|error| failed(error.into()))?;
    nix::unistd::dup2_stderr(log.file()).map_err(|error| failed(error.into()))?;
    Ok((plan, held, log))
}

fn say(pipe: &mut File, word: &Word) {
    // A parent that was killed hears nothing; we go on.
    if let Ok(text) = serde_json::to_string(word) {
        let _ = pipe.write_all(format!("{text}\n").as_bytes());
    }
}

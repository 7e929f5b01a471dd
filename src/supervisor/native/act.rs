//! Commands that do something to processes of a running supervisor, and end it.

use std::io::Write;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;
use std::process::ExitCode;
use std::time::Duration;
use std::time::Instant;

use clap::Args;
use nix::sys::signal::Signal;

use super::EXIT_FAILED;
use super::EXIT_PARTIALLY;
use super::EXIT_TIMEOUT;
use super::Failure;
use super::duration;
use super::tell;
use crate::common::os_reason::os_reason;
use crate::supervisor::control::http_client::Caller;
use crate::supervisor::control::messages::ActionAnswer;
use crate::supervisor::control::messages::ActionRequest;
use crate::supervisor::control::messages::EndRequest;
use crate::supervisor::control::messages::LinkAnswer;
use crate::supervisor::control::messages::Status;
use crate::supervisor::control::query::Query;
use crate::supervisor::control::vocabulary::Action;
use crate::supervisor::control::vocabulary::NamedResult;
use crate::supervisor::links::LinkCommand;

/// How long an ended supervisor may take to be gone.
const GONE_PATIENCE: Duration = Duration::from_secs(10);
const GONE_POLL: Duration = Duration::from_millis(5);
/// What a shell ends with when there is no such program, and when it cannot be run.
const EXIT_NO_PROGRAM: u8 = 127;
const EXIT_NOT_RUNNABLE: u8 = 126;

/// Whom it is done to, and how long that is waited for.
#[derive(Debug, Args)]
pub struct TargetArgs {
    /// Names, patterns, roles, or all
    #[arg(required = true, value_name = "NAME")]
    pub targets: Vec<String>,
    /// Return as soon as it is asked for
    #[arg(long)]
    pub no_wait: bool,
    /// Give up waiting after this time; what was asked for goes on
    #[arg(long, value_name = "DURATION", value_parser = duration, conflicts_with = "no_wait")]
    pub timeout: Option<Duration>,
}

#[derive(Debug, Args)]
pub struct StopArgs {
    #[command(flatten)]
    whom: TargetArgs,
}

#[derive(Debug, Args)]
pub struct RestartArgs {
    #[command(flatten)]
    whom: TargetArgs,
    /// How long it stays down
    #[arg(long, value_name = "DURATION", value_parser = duration)]
    delay: Option<Duration>,
    /// Remove its data directory while it is down (the data-dir= of its settings); a member of a cluster leaves it and comes in
    /// anew, which needs a quorum of the others; with all members named the cluster begins anew
    #[arg(long)]
    clean: bool,
}

#[derive(Debug, Args)]
pub struct KillArgs {
    #[command(flatten)]
    whom: TargetArgs,
    /// The signal: TERM, SIGINT, 15
    #[arg(short, long, value_name = "SIGNAL", default_value = "KILL", value_parser = signal)]
    signal: Signal,
    /// The same as --signal KILL
    #[arg(short = '9', conflicts_with = "signal")]
    kill: bool,
    /// Only the process that was started, not those that it started
    #[arg(long)]
    leader_only: bool,
    /// Do not start it again, whatever its restart policy says
    #[arg(long)]
    stay_down: bool,
}

#[derive(Debug, Args)]
pub struct PauseArgs {
    #[command(flatten)]
    whom: TargetArgs,
    /// Go on by itself after this time
    #[arg(long = "for", value_name = "DURATION", value_parser = duration)]
    span: Option<Duration>,
}

#[derive(Debug, Args)]
pub struct ExecArgs {
    /// The process
    name: String,
    /// The command and its words
    #[arg(required = true, trailing_var_arg = true, allow_hyphen_values = true, value_name = "COMMAND")]
    command: Vec<String>,
}

/// A signal by its name, with or without SIG, or by its number.
fn signal(text: &str) -> Result<Signal, String> {
    let upper = text.to_ascii_uppercase();
    let named = upper.strip_prefix("SIG").unwrap_or(&upper);
    let found = match text.parse::<i32>() {
        Ok(number) => Signal::try_from(number).ok(),
        Err(_) => Signal::iterator().find(|signal| signal.as_str().strip_prefix("SIG") == Some(named)),
    };
    found.ok_or_else(|| format!("there is no signal \"{text}\""))
}

pub fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

pub async fn start(caller: &Caller, names: &[String]) -> Result<ExitCode, Failure> {
    let whom = TargetArgs { targets: names.to_vec(), no_wait: false, timeout: None };
    act(caller, whom, Action::Start).await
}

pub async fn stop(caller: &Caller, args: StopArgs) -> Result<ExitCode, Failure> {
    act(caller, args.whom, Action::Stop).await
}

pub async fn restart(caller: &Caller, args: RestartArgs) -> Result<ExitCode, Failure> {
    let delay_ms = args.delay.map_or(0, millis);
    act(caller, args.whom, Action::Restart { delay_ms, clean: args.clean }).await
}

pub async fn kill(caller: &Caller, args: KillArgs) -> Result<ExitCode, Failure> {
    let signal = if args.kill { Signal::SIGKILL } else { args.signal };
    let action = Action::Kill { signal: signal as i32, leader_only: args.leader_only, stay_down: args.stay_down };
    act(caller, args.whom, action).await
}

pub async fn pause(caller: &Caller, args: PauseArgs) -> Result<ExitCode, Failure> {
    act(caller, args.whom, Action::Pause { for_ms: args.span.map(millis) }).await
}

pub async fn resume(caller: &Caller, whom: TargetArgs) -> Result<ExitCode, Failure> {
    act(caller, whom, Action::Resume).await
}

async fn act(caller: &Caller, whom: TargetArgs, action: Action) -> Result<ExitCode, Failure> {
    let TargetArgs { targets, no_wait, timeout } = whom;
    let request = ActionRequest { targets, action, no_wait, timeout_ms: timeout.map(millis) };
    let ActionAnswer { results, timed_out } = caller.post("/v1/actions", &request).await?;
    Ok(report(&results, timed_out))
}

/// Says what came of an action for each name: the exit code.
pub fn report(results: &[NamedResult], timed_out: bool) -> ExitCode {
    let width = results.iter().map(|result| result.name.chars().count()).max().unwrap_or_default();
    for result in results {
        let line = format!("{:width$}  {}", result.name, result.text);
        if result.ok { anstream::println!("{line}") } else { anstream::eprintln!("{line}") }
    }
    let failed = results.iter().filter(|result| !result.ok).count();
    exit_code(failed, results.len(), timed_out)
}

/// Of so many of which so many failed.
pub fn exit_code(failed: usize, all: usize, timed_out: bool) -> ExitCode {
    match failed {
        0 => ExitCode::SUCCESS,
        _ if timed_out => ExitCode::from(EXIT_TIMEOUT),
        _ if failed == all => ExitCode::from(EXIT_FAILED),
        _ => ExitCode::from(EXIT_PARTIALLY),
    }
}

pub async fn links(caller: &Caller, command: &LinkCommand) -> Result<ExitCode, Failure> {
    let request = command.request().map_err(|text| Failure { text, code: 2 })?;
    let answer: LinkAnswer = caller.post("/v1/links", &request).await?;
    anstream::println!("{}", answer.text.trim_end());
    Ok(ExitCode::SUCCESS)
}

/// Ends everything, and says so.
pub async fn down(caller: &Caller, force: bool) -> Result<ExitCode, Failure> {
    let (up, pid) = end(caller, force).await?;
    let count = if up == 1 { "1 process".to_owned() } else { format!("{up} processes") };
    anstream::println!("{count} stopped; the supervisor with pid {pid} has ended");
    Ok(ExitCode::SUCCESS)
}

/// Ends everything, and returns when the supervisor itself is gone, so that the next one can start: how many processes were
/// up, and its pid.
pub async fn end(caller: &Caller, force: bool) -> Result<(usize, u32), Failure> {
    let status: Status = caller.get("/v1/processes?quick=true").await?;
    let pid = status.supervisor.pid;
    let up = status.processes.iter().filter(|process| process.view.group.is_some()).count();
    let () = caller.post("/v1/end", &EndRequest { force }).await?;
    let start = Instant::now();
    while caller.is_there() && Path::new("/proc").join(pid.to_string()).exists() {
        if start.elapsed() > GONE_PATIENCE {
            return Err(Failure::new(format!(
                "everything has stopped, but the supervisor with pid {pid} has not ended"
            )));
        }
        tokio::time::sleep(GONE_POLL).await;
    }
    Ok((up, pid))
}

/// Becomes the command. Returns only if that cannot be.
pub async fn exec(caller: &Caller, args: &ExecArgs) -> Result<ExitCode, Failure> {
    let query = Query::default().with("name", &args.name);
    let pairs: Vec<(String, String)> = caller.get(&format!("/v1/environment?{query}")).await?;
    let Some((program, words)) = args.command.split_first() else { return Ok(ExitCode::SUCCESS) };
    // What is printed so far comes first.
    let _ = std::io::stdout().flush();
    let error = Command::new(program).args(words).envs(pairs).exec();
    tell(&format!("{program}: {}", os_reason(&error)));
    let missing = error.kind() == std::io::ErrorKind::NotFound;
    Ok(ExitCode::from(if missing { EXIT_NO_PROGRAM } else { EXIT_NOT_RUNNABLE }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signals_have_names_and_numbers() {
        for text in ["TERM", "term", "SIGTERM", "15"] {
            assert_eq!(signal(text), Ok(Signal::SIGTERM), "{text}");
        }
        for text in ["", "SIG", "0", "-1", "99", "NOSUCH"] {
            assert!(signal(text).is_err(), "{text}");
        }
    }
}

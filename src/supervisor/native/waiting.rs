//! Waiting for processes: until they are ready and the cluster serves, or until they have ended.

use std::fmt::Write;
use std::process::ExitCode;
use std::time::Duration;
use std::time::Instant;

use clap::Args;
use clap::ValueEnum;

use super::EXIT_FAILED;
use super::EXIT_TIMEOUT;
use super::EXIT_UNKNOWN;
use super::Failure;
use super::duration;
use super::logs::last_lines;
use crate::supervisor::control::http_client::Caller;
use crate::supervisor::control::http_client::ControlError;
use crate::supervisor::control::messages::ActionAnswer;
use crate::supervisor::control::messages::ProcessStatus;
use crate::supervisor::control::messages::Status;
use crate::supervisor::control::vocabulary::StateName;
use crate::supervisor::targets::glob;

/// Between two looks.
const POLL: Duration = Duration::from_millis(30);
/// What is shown of a process that failed.
const LINES_SHOWN: usize = 20;
/// Nobody says of a process without a probe that it is ready: it has to live this long. A command that does not exist, or
/// that refuses its flags, has ended by then.
const SETTLED: Duration = Duration::from_millis(300);

#[derive(Debug, Args)]
pub struct WaitArgs {
    /// Names or patterns [default: all]
    #[arg(value_name = "NAME")]
    names: Vec<String>,
    /// What is waited for
    #[arg(long = "for", value_enum, default_value_t = Event::Ready)]
    event: Event,
    /// Give up after this time
    #[arg(long, value_name = "DURATION", value_parser = duration)]
    timeout: Option<Duration>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Event {
    /// Each is ready, and members serve a linearizable read
    Ready,
    /// Each has ended; the exit code is 1 if one has failed
    Exit,
}

/// How one process stands to what is waited for.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Standing {
    Done,
    /// Not yet: why.
    Waits(String),
    /// Never: why.
    Never(String),
}

/// Why it was not waited for to the end.
#[derive(Debug)]
pub enum WaitError {
    /// These processes cannot be ready, with the reasons.
    Failed(Vec<(String, String)>),
    /// These were not in time.
    Late(Vec<(String, String)>),
    Lost(ControlError),
}

impl From<ControlError> for WaitError {
    fn from(error: ControlError) -> WaitError {
        WaitError::Lost(error)
    }
}

fn readiness(process: &ProcessStatus) -> Standing {
    let view = &process.view;
    // How it ended is said anyway.
    let is_exit = |why: &&String| why.starts_with("exit status ") || why.starts_with("signal: ");
    let why = view.why.as_ref().filter(|why| !is_exit(why)).map(|why| format!(": {why}")).unwrap_or_default();
    let ended = || match &view.last_exit {
        Some(exit) => match (exit.code, exit.signal) {
            (Some(code), _) => format!("it has ended with exit code {code}{why}"),
            (None, Some(signal)) => format!("it was ended by signal {signal}{why}"),
            (None, None) => format!("it has ended{why}"),
        },
        None => format!("it could not be started{why}"),
    };
    let is_fresh = view.uptime_ms.is_some_and(|uptime| Duration::from_millis(uptime) < SETTLED);
    match view.state {
        StateName::Running if is_fresh => Standing::Waits("it has only just started".to_owned()),
        StateName::Ready | StateName::Running | StateName::Disabled => Standing::Done,
        StateName::Failed => Standing::Never(ended()),
        StateName::Flapping => Standing::Never(format!("it ends again and again{why}")),
        // One that does its work and ends is as ready as it will be; a member is not.
        StateName::Exited if process.is_member && view.wanted => Standing::Never(ended()),
        StateName::Exited => Standing::Done,
        StateName::Pending => Standing::Waits(format!("it waits for others{why}")),
        StateName::Starting => Standing::Waits(format!("it is starting{why}")),
        StateName::Unhealthy => Standing::Waits(format!("it is unhealthy{why}")),
        StateName::Paused => Standing::Waits("it is paused".to_owned()),
        StateName::Stopping => Standing::Waits("it is stopping".to_owned()),
        StateName::Backoff => Standing::Waits(format!("{}; it will be started again", ended())),
    }
}

/// Waits until all that should be up, or those of these names, are ready, and the members among them serve.
pub async fn until_ready(caller: &Caller, names: &[String], timeout: Option<Duration>) -> Result<usize, WaitError> {
    let start = Instant::now();
    let is_late = || timeout.is_some_and(|timeout| start.elapsed() >= timeout);
    let named = |name: &str| names.is_empty() || names.iter().any(|word| glob(word, name));
    loop {
        let status: Status = caller.get("/v1/processes?quick=true").await?;
        let processes: Vec<&ProcessStatus> =
            status.processes.iter().filter(|process| named(&process.view.name)).collect();
        let mut never = Vec::new();
        let mut waits = Vec::new();
        for process in &processes {
            let name = process.view.name.clone();
            match readiness(process) {
                Standing::Done => {}
                Standing::Waits(why) => waits.push((name, why)),
                Standing::Never(why) => never.push((name, why)),
            }
        }
        if !never.is_empty() {
            return Err(WaitError::Failed(never));
        }
        if waits.is_empty() {
            let reads: ActionAnswer = caller.get("/v1/reads").await?;
            let bad = reads.results.into_iter().filter(|read| !read.ok && named(&read.name));
            waits = bad.map(|read| (read.name, format!("it serves no read: {}", read.text))).collect();
            if waits.is_empty() {
                return Ok(processes.len());
            }
        }
        if is_late() {
            return Err(WaitError::Late(waits));
        }
        tokio::time::sleep(POLL).await;
    }
}

/// What went wrong, for people: each process, why, and its last lines.
pub async fn report(caller: &Caller, error: &WaitError) -> String {
    let (late, processes) = match error {
        WaitError::Lost(error) => return error.to_string(),
        WaitError::Failed(processes) => (false, processes),
        WaitError::Late(processes) => (true, processes),
    };
    let mut text = String::new();
    for (name, why) in processes {
        let verdict = if late { "is not ready in time" } else { "failed" };
        // Writing to a text cannot fail.
        let _ = writeln!(text, "{name} {verdict}: {why}");
        let lines = last_lines(caller, name, LINES_SHOWN).await;
        if !lines.is_empty() {
            let _ = writeln!(text, "its last lines:");
        }
        for line in lines {
            let _ = writeln!(text, "    {line}");
        }
    }
    text.trim_end().to_owned()
}

pub async fn wait(caller: &Caller, args: &WaitArgs) -> Result<ExitCode, Failure> {
    let status: Status = caller.get("/v1/processes?quick=true").await?;
    let known: Vec<&str> = status.processes.iter().map(|process| process.view.name.as_str()).collect();
    if let Some(unknown) = args.names.iter().find(|word| !known.iter().any(|name| glob(word, name))) {
        let text = format!("unknown process: {unknown} (known: {})", known.join(", "));
        return Err(Failure { text, code: EXIT_UNKNOWN });
    }
    if args.event == Event::Exit {
        return until_exited(caller, args).await;
    }
    match until_ready(caller, &args.names, args.timeout).await {
        Ok(_) => Ok(ExitCode::SUCCESS),
        Err(WaitError::Lost(error)) => Err(error.into()),
        Err(error) => {
            let code = if matches!(error, WaitError::Late(_)) { EXIT_TIMEOUT } else { EXIT_FAILED };
            Err(Failure { text: report(caller, &error).await, code })
        }
    }
}

async fn until_exited(caller: &Caller, args: &WaitArgs) -> Result<ExitCode, Failure> {
    let start = Instant::now();
    loop {
        let status: Status = match caller.get("/v1/processes?quick=true").await {
            Ok(status) => status,
            // The supervisor ended with the last of them, and nobody can say how they ended.
            Err(ControlError::NoSupervisor(_) | ControlError::Broken(_)) => return Ok(ExitCode::SUCCESS),
            Err(error) => return Err(error.into()),
        };
        let named = |name: &str| args.names.is_empty() || args.names.iter().any(|word| glob(word, name));
        let processes = status.processes.iter().filter(|process| named(&process.view.name));
        let mut alive = Vec::new();
        let mut failed = false;
        for process in processes {
            match process.view.state {
                StateName::Exited | StateName::Disabled => {}
                StateName::Failed | StateName::Flapping => failed = true,
                _ => alive.push(process.view.name.clone()),
            }
        }
        if alive.is_empty() {
            return Ok(if failed { ExitCode::from(EXIT_FAILED) } else { ExitCode::SUCCESS });
        }
        if args.timeout.is_some_and(|timeout| start.elapsed() >= timeout) {
            return Err(Failure { text: format!("still up: {}", alive.join(", ")), code: EXIT_TIMEOUT });
        }
        tokio::time::sleep(POLL).await;
    }
}

#[cfg(test)]
mod tests {
    use super::super::table::sample;
    use super::*;

    #[test]
    fn who_says_nothing_counts_as_up_once_it_has_lived_a_moment() {
        let stands = |state, uptime_ms| {
            let mut process = sample("a", state);
            process.view.uptime_ms = uptime_ms;
            readiness(&process)
        };
        assert_eq!(stands(StateName::Running, Some(10)), Standing::Waits("it has only just started".to_owned()));
        assert_eq!(stands(StateName::Running, Some(300)), Standing::Done);
        assert_eq!(stands(StateName::Ready, Some(10)), Standing::Done, "it has said so");
        assert_eq!(stands(StateName::Exited, None), Standing::Done);
        assert!(matches!(stands(StateName::Failed, None), Standing::Never(_)));
    }
}

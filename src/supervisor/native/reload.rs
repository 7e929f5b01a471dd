//! `reload`: the plan first, then what came of it.

use std::process::ExitCode;
use std::time::Duration;

use clap::Args;
use serde::Serialize;

use super::EXIT_TIMEOUT;
use super::Failure;
use super::act;
use super::duration;
use super::tell;
use crate::supervisor::control::http_client::Caller;
use crate::supervisor::control::messages::ReloadRequest;
use crate::supervisor::control::messages::Reloading;
use crate::supervisor::control::vocabulary::NamedResult;
use crate::supervisor::reload::Step;
use crate::supervisor::reload::StepKind;

#[derive(Debug, Args)]
pub struct ReloadArgs {
    /// Only show what would be done
    #[arg(long)]
    dry_run: bool,
    /// Plan and results as one JSON object
    #[arg(long)]
    json: bool,
    /// Give up waiting after this time; what was begun goes on
    #[arg(long, value_name = "DURATION", value_parser = duration)]
    timeout: Option<Duration>,
}

/// What `--json` prints.
#[derive(Debug, Default, Serialize)]
struct Told {
    plan: Vec<Step>,
    warnings: Vec<String>,
    /// Of those that were changed; empty for a dry run.
    results: Vec<NamedResult>,
}

pub async fn reload(caller: &Caller, args: &ReloadArgs) -> Result<ExitCode, Failure> {
    let followed = follow(caller, args);
    let told = match args.timeout {
        None => followed.await?,
        Some(timeout) => match tokio::time::timeout(timeout, followed).await {
            Ok(told) => told?,
            Err(_) => {
                tell(&format!("not done within {timeout:?}; it goes on"));
                return Ok(ExitCode::from(EXIT_TIMEOUT));
            }
        },
    };
    if args.json {
        let text = serde_json::to_string_pretty(&told).map_err(|error| Failure::new(error.to_string()))?;
        anstream::println!("{text}");
        let failed = told.results.iter().filter(|result| !result.ok).count();
        return Ok(act::exit_code(failed, told.results.len(), false));
    }
    Ok(act::report(&told.results, false))
}

async fn follow(caller: &Caller, args: &ReloadArgs) -> Result<Told, Failure> {
    let mut lines = caller.post_stream("/v1/reload", &ReloadRequest { dry_run: args.dry_run }).await?;
    let mut told = Told::default();
    while let Some(line) = lines.next().await? {
        match serde_json::from_str(&line).map_err(|error| Failure::new(format!("{line}: {error}")))? {
            Reloading::Plan { steps, warnings } => {
                if !args.json {
                    show(&steps, &warnings);
                }
                (told.plan, told.warnings) = (steps, warnings);
            }
            Reloading::Done { results } => {
                told.results = results;
                return Ok(told);
            }
        }
    }
    match args.dry_run {
        true => Ok(told),
        false => Err(Failure::new("the supervisor has ended before it was done")),
    }
}

fn show(steps: &[Step], warnings: &[String]) {
    for warning in warnings {
        anstream::eprintln!("warning: {warning}");
    }
    for step in steps {
        anstream::println!("{step}");
    }
    if steps.iter().all(|step| step.step == StepKind::Unchanged) {
        anstream::println!("nothing has changed");
    }
}

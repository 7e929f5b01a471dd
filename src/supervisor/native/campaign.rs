//! `chaos` and `rolling-restart`: asked for, and told line by line until they end. Ctrl-C hangs up, which ends them.

use std::process::ExitCode;

use super::EXIT_FAILED;
use super::Failure;
use super::tell;
use crate::supervisor::chaos::ChaosArgs;
use crate::supervisor::control::campaigns::Progress;
use crate::supervisor::control::http_client::Caller;
use crate::supervisor::control::http_client::Lines;
use crate::supervisor::rolling::RollingArgs;

pub async fn chaos(caller: &Caller, args: &ChaosArgs) -> Result<ExitCode, Failure> {
    follow(caller.post_stream("/v1/chaos", &args.request()).await?).await
}

pub async fn rolling(caller: &Caller, args: &RollingArgs) -> Result<ExitCode, Failure> {
    follow(caller.post_stream("/v1/rolling-restart", &args.request()).await?).await
}

async fn follow(mut lines: Lines) -> Result<ExitCode, Failure> {
    while let Some(line) = lines.next().await? {
        let progress = serde_json::from_str(&line).map_err(|error| Failure::new(format!("{line}: {error}")))?;
        match progress {
            Progress::Chaos(told) => anstream::println!("{told}"),
            Progress::Restart { text } => anstream::println!("{text}"),
            Progress::Ended { error: None } => return Ok(ExitCode::SUCCESS),
            Progress::Ended { error: Some(error) } => {
                tell(&error);
                return Ok(ExitCode::from(EXIT_FAILED));
            }
        }
    }
    Err(Failure::new("the supervisor has ended before it was done"))
}

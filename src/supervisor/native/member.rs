//! `member`: members of a local cluster are added, promoted, removed and replaced, with their processes.

use std::process::ExitCode;

use clap::Args;
use clap::Subcommand;

use super::Failure;
use super::act;
use super::act::TargetArgs;
use crate::supervisor::control::http_client::Caller;
use crate::supervisor::control::messages::ActionAnswer;
use crate::supervisor::roster::Change;
use crate::supervisor::roster::RosterRequest;

#[derive(Debug, Args)]
pub struct MemberArgs {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Add processes of the Procfile that are no members yet, or no longer, and start them with empty data
    Add {
        #[command(flatten)]
        whom: TargetArgs,
        /// Without a vote
        #[arg(long)]
        learner: bool,
    },
    /// Give learners a vote, as soon as they have caught up
    Promote {
        #[command(flatten)]
        whom: TargetArgs,
    },
    /// Remove members from their cluster and stop them; their data stays
    Remove {
        #[command(flatten)]
        whom: TargetArgs,
        /// Also if the others are no quorum then
        #[arg(long)]
        force: bool,
    },
    /// Remove members and add them again with empty data, one after another
    Replace {
        #[command(flatten)]
        whom: TargetArgs,
        /// Also if the others are no quorum meanwhile
        #[arg(long)]
        force: bool,
    },
}

pub async fn member(caller: &Caller, args: MemberArgs) -> Result<ExitCode, Failure> {
    let (whom, change, force) = match args.verb {
        Verb::Add { whom, learner } => (whom, Change::Add { learner }, false),
        Verb::Promote { whom } => (whom, Change::Promote, false),
        Verb::Remove { whom, force } => (whom, Change::Remove, force),
        Verb::Replace { whom, force } => (whom, Change::Replace { delay_ms: 0 }, force),
    };
    let TargetArgs { targets: names, no_wait, timeout } = whom;
    let request = RosterRequest { names, change, force, no_wait, timeout_ms: timeout.map(act::millis) };
    let ActionAnswer { results, timed_out } = caller.post("/v1/members", &request).await?;
    Ok(act::report(&results, timed_out))
}

//! `attach`: sitting at the terminal of a process.

use std::process::ExitCode;

use clap::Args;
use hyper_util::rt::TokioIo;

use super::Failure;
use super::tell;
use crate::common::os_reason::os_reason;
use crate::supervisor::control::http_client::Caller;
use crate::supervisor::control::query::Query;
use crate::supervisor::output::attach;
use crate::supervisor::output::attach::Ended;

#[derive(Debug, Args)]
pub struct AttachArgs {
    /// The process: a name, or a pattern or role that means one
    name: String,
    /// The key that leaves; the process goes on
    #[arg(long, value_name = "KEY", default_value = attach::DETACH_KEY, value_parser = attach::detach_key)]
    detach_key: u8,
}

pub async fn attach(caller: &Caller, args: &AttachArgs) -> Result<ExitCode, Failure> {
    let query = Query::default().with("name", &args.name);
    let stream = caller.upgrade(&format!("/v1/attach?{query}"), attach::PROTOCOL).await?;
    tell(&format!(
        "attached to {}; ctrl-{} leaves",
        args.name,
        char::from(args.detach_key | 0x40).to_ascii_lowercase()
    ));
    let ended = attach::attach(TokioIo::new(stream), args.detach_key).await;
    match ended.map_err(|error| Failure::new(format!("the terminal is gone: {}", os_reason(&error))))? {
        Ended::Detached => tell(&format!("left {}, which goes on", args.name)),
        Ended::Process => tell(&format!("{} has ended", args.name)),
    }
    Ok(ExitCode::SUCCESS)
}

//! `del`: removes a key or a range.

use std::time::Duration;

use bytes::Bytes;

use super::command::Action;
use super::command::Command;
use super::console::Console;
use super::error::CtlError;
use super::flags::Flag;
use super::flags::Kind;
use super::flags::Values;
use super::get;
use super::go_text;
use super::print::Report;
use super::session::Session;
use crate::proto::etcdserverpb::DeleteRangeRequest;

/// How long one may think better of removing a range.
const SECOND_THOUGHT: Duration = Duration::from_secs(2);

pub static COMMAND: Command = Command {
    name: "del",
    arguments: "[options] <key> [range_end]",
    summary: "Removes a key or a range of keys",
    flags: &[
        Flag::new("from-key", Kind::Bool, "", "remove all keys from the given one on"),
        Flag::new("prefix", Kind::Bool, "", "remove all keys that start with the given one"),
        Flag::new("prev-kv", Kind::Bool, "", "show the pairs that were removed"),
        Flag::new("range", Kind::Bool, "", "remove a range without a pause to think better of it"),
    ],
    inherited: &[],
    action: Action::Run(run),
};

fn run(session: &mut Session<'_>) -> Result<(), CtlError> {
    let request = request(&session.values, &session.args, session.console)?;
    let client = session.connect()?;
    let response = session.call(client.delete_range(request, session.deadline()))?;
    session.report(&Report::Delete(&response))
}

/// The request that flags and arguments mean. Warns and waits before a range that was not asked for by `--range`.
pub fn request(values: &Values, args: &[Bytes], console: &Console) -> Result<DeleteRangeRequest, CtlError> {
    let needs = "del command needs one argument as key and an optional argument as range_end";
    let first = args.first().filter(|_| args.len() <= 2).ok_or_else(|| CtlError::bad_arguments(needs))?;
    let (prefix, from_key) = (values.bool("prefix"), values.bool("from-key"));
    if prefix && from_key {
        return Err(CtlError::bad_arguments("`--prefix` and `--from-key` cannot be set at the same time, choose one"));
    }
    let (key, range_end) = get::key_and_end(first, args.get(1), prefix, from_key)?;
    if args.len() == 2 && !values.bool("range") {
        let (from, to) = (go_text::quote(&key), go_text::quote(&range_end));
        console.tell(&format!(
            "Warning: Keys between {from} and {to} will be deleted. Please interrupt the command within next 2 \
             seconds to \
             cancel. You can provide `--range` flag to avoid the delay.\n"
        ));
        std::thread::sleep(SECOND_THOUGHT);
    }
    Ok(DeleteRangeRequest { key, range_end, prev_kv: values.bool("prev-kv") })
}

//! `put`: stores a key.

use std::io::BufRead;

use bytes::Bytes;

use super::command::Action;
use super::command::Command;
use super::error::CtlError;
use super::flags::Flag;
use super::flags::Kind;
use super::flags::Values;
use super::go_number;
use super::print::Report;
use super::session::Session;
use crate::proto::etcdserverpb::PutRequest;

pub static COMMAND: Command = Command {
    name: "put",
    arguments: "[options] <key> <value>",
    summary: "Stores a value under a key; the value comes from standard input when it is not given",
    flags: &[
        Flag::new("ignore-lease", Kind::Bool, "", "keep the lease that the key is attached to"),
        Flag::new("ignore-value", Kind::Bool, "", "keep the value that the key has"),
        Flag::new("lease", Kind::Text, "0", "lease to attach the key to, in hexadecimal"),
        Flag::new("prev-kv", Kind::Bool, "", "show the pair that was replaced"),
    ],
    inherited: &[],
    action: Action::Run(run),
};

fn run(session: &mut Session<'_>) -> Result<(), CtlError> {
    let request = request(&session.values, &session.args, &mut session.console.input)?;
    let client = session.connect()?;
    let response = session.call(client.put(request, session.deadline()))?;
    session.report(&Report::Put(&response))
}

/// The request that flags and arguments mean. A value that is not among them is all of `input`.
pub fn request(values: &Values, args: &[Bytes], input: &mut dyn BufRead) -> Result<PutRequest, CtlError> {
    let needs = || CtlError::bad_arguments("put command needs 1 argument and input from stdin or 2 arguments");
    let key = args.first().cloned().ok_or_else(needs)?;
    let ignore_value = values.bool("ignore-value");
    if ignore_value && args.len() > 1 {
        return Err(CtlError::bad_arguments("put command needs only 1 argument when 'ignore-value' is set"));
    }
    let value = match args.get(1) {
        Some(value) => value.clone(),
        None if ignore_value => Bytes::new(),
        None => {
            let mut value = Vec::new();
            input.read_to_end(&mut value)?;
            if value.is_empty() {
                return Err(needs());
            }
            Bytes::from(value)
        }
    };
    let lease = go_number::parse_int(values.text("lease"), 16)
        .map_err(|why| CtlError::bad_arguments(format!("bad lease ID ({why}), expecting ID in Hex")))?;
    Ok(PutRequest {
        key,
        value,
        lease,
        prev_kv: values.bool("prev-kv"),
        ignore_value,
        ignore_lease: values.bool("ignore-lease"),
    })
}

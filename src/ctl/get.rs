//! `get`: reads a key or a range.

use bytes::Bytes;

use super::command::Action;
use super::command::Command;
use super::error::CtlError;
use super::flags::Flag;
use super::flags::Kind;
use super::flags::Values;
use super::go_text;
use super::print::Format;
use super::print::Report;
use super::session::Session;
use crate::common::key_range;
use crate::proto::etcdserverpb::RangeRequest;
use crate::proto::etcdserverpb::range_request::SortOrder;
use crate::proto::etcdserverpb::range_request::SortTarget;

pub static COMMAND: Command = Command {
    name: "get",
    arguments: "[options] <key> [range_end]",
    summary: "Reads a key or a range of keys",
    flags: &[
        Flag::new("consistency", Kind::Text, "l", "linearizable (l) or serializable (s)"),
        Flag::new("count-only", Kind::Bool, "", "only count the keys"),
        Flag::new("from-key", Kind::Bool, "", "read all keys from the given one on"),
        Flag::new("keys-only", Kind::Bool, "", "leave the values out"),
        Flag::new("limit", Kind::Int, "", "number of pairs at most"),
        Flag::new("max-create-rev", Kind::Int, "", "only keys created at this revision or before"),
        Flag::new("max-mod-rev", Kind::Int, "", "only keys changed at this revision or before"),
        Flag::new("min-create-rev", Kind::Int, "", "only keys created at this revision or after"),
        Flag::new("min-mod-rev", Kind::Int, "", "only keys changed at this revision or after"),
        Flag::new("order", Kind::Text, "", "order of the pairs: ASCEND or DESCEND"),
        Flag::new("prefix", Kind::Bool, "", "read all keys that start with the given one"),
        Flag::new("print-value-only", Kind::Bool, "", "print values without their keys (simple format)"),
        Flag::new("rev", Kind::Int, "", "revision to read at"),
        Flag::new("sort-by", Kind::Text, "", "what to order by: CREATE, KEY, MODIFY, VALUE or VERSION"),
        Flag::new("stream", Kind::Bool, "", "have the answer sent in pieces"),
    ],
    inherited: &[],
    action: Action::Run(run),
};

fn run(session: &mut Session<'_>) -> Result<(), CtlError> {
    let request = request(&session.values, &session.args)?;
    let client = session.connect()?;
    let deadline = session.deadline();
    let response = if session.values.bool("stream") {
        session.call(client.range_stream(request, deadline))?
    } else {
        session.call(client.range(request, deadline))?
    };
    // Both are checked behind the call only (ctl.md 11, trap 7).
    if session.values.bool("count-only") && session.format() != Format::Fields {
        return Err(CtlError::bad_arguments("--count-only is only for `--write-out=fields`"));
    }
    let value_only = session.values.bool("print-value-only");
    if value_only && session.format() != Format::Simple {
        return Err(CtlError::bad_arguments("print-value-only is only for `--write-out=simple`"));
    }
    session.report(&Report::Get { response: &response, value_only })
}

/// The request that flags and arguments mean, checked in etcdctl's order (ctl.md 4.2).
pub fn request(values: &Values, args: &[Bytes]) -> Result<RangeRequest, CtlError> {
    let needs = "get command needs one argument as key and an optional argument as range_end";
    let first = args.first().ok_or_else(|| CtlError::bad_arguments(needs))?;
    let (prefix, from_key) = (values.bool("prefix"), values.bool("from-key"));
    if prefix && from_key {
        return Err(CtlError::bad_arguments("`--prefix` and `--from-key` cannot be set at the same time, choose one"));
    }
    let (keys_only, count_only) = (values.bool("keys-only"), values.bool("count-only"));
    if keys_only && count_only {
        return Err(CtlError::bad_arguments(
            "`--keys-only` and `--count-only` cannot be set at the same time, choose one",
        ));
    }
    let serializable = serializable(values.text("consistency"), values.text("consistency"))?;
    let (key, range_end) = key_and_end(first, args.get(1), prefix, from_key)?;
    let (sort_order, sort_target) = sorting(values.text("order"), values.text("sort-by"))?;
    let (min_create_revision, max_create_revision) = bounds(values, "create", "CreateRev")?;
    let (min_mod_revision, max_mod_revision) = bounds(values, "mod", "ModRev")?;
    Ok(RangeRequest {
        key,
        range_end,
        limit: values.int("limit"),
        revision: values.int("rev").max(0),
        sort_order: sort_order.into(),
        sort_target: sort_target.into(),
        serializable,
        keys_only,
        count_only,
        min_mod_revision,
        max_mod_revision,
        min_create_revision,
        max_create_revision,
    })
}

/// Whether a read may be served without a quorum. `told` is the value that the error names.
pub fn serializable(given: &str, told: &str) -> Result<bool, CtlError> {
    match given {
        "s" => Ok(true),
        "l" => Ok(false),
        _ => Err(CtlError::bad_feature(format!("unknown consistency flag {}", go_text::quote(told.as_bytes())))),
    }
}

/// Key and range end of get and del. An empty key under `--prefix` or `--from-key` is the whole space.
pub fn key_and_end(
    first: &Bytes,
    second: Option<&Bytes>,
    prefix: bool,
    from_key: bool,
) -> Result<(Bytes, Bytes), CtlError> {
    let many = "too many arguments, only accept one argument when `--prefix` or `--from-key` is set";
    match second {
        Some(_) if prefix || from_key => Err(CtlError::bad_arguments(many)),
        Some(end) => Ok((first.clone(), end.clone())),
        None if !prefix && !from_key => Ok((first.clone(), Bytes::new())),
        None if first.is_empty() => Ok((Bytes::from_static(b"\0"), Bytes::from_static(b"\0"))),
        None if prefix => Ok((first.clone(), Bytes::from(key_range::prefix_end(first)))),
        None => Ok((first.clone(), Bytes::from_static(b"\0"))),
    }
}

fn sorting(order: &str, by: &str) -> Result<(SortOrder, SortTarget), CtlError> {
    let sort_order = match order.to_uppercase().as_str() {
        "" => SortOrder::None,
        "ASCEND" => SortOrder::Ascend,
        "DESCEND" => SortOrder::Descend,
        _ => return Err(CtlError::bad_feature(format!("bad sort order {order}"))),
    };
    let target = match by.to_uppercase().as_str() {
        "" | "KEY" => SortTarget::Key,
        "CREATE" => SortTarget::Create,
        "MODIFY" => SortTarget::Mod,
        "VALUE" => SortTarget::Value,
        "VERSION" => SortTarget::Version,
        _ => return Err(CtlError::bad_feature(format!("bad sort target {by}"))),
    };
    // Keys come in ascending order anyway: asking for it would cost the server a sort.
    let wasted = target == SortTarget::Key && sort_order == SortOrder::Ascend;
    Ok((if wasted { SortOrder::None } else { sort_order }, target))
}

/// Lowest and highest revision of a filter, 0 for open.
fn bounds(values: &Values, flag: &str, name: &str) -> Result<(i64, i64), CtlError> {
    let min = values.int(&format!("min-{flag}-rev")).max(0);
    let max = values.int(&format!("max-{flag}-rev")).max(0);
    if max > 0 && min > max {
        return Err(CtlError::bad_feature(format!("getMin{name}(={min}) > getMax{name}(={max})")));
    }
    Ok((min, max))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(args: &[&str]) -> RangeRequest {
        let args: Vec<Bytes> = args.iter().map(|arg| Bytes::copy_from_slice(arg.as_bytes())).collect();
        let flags: Vec<&'static Flag> = COMMAND.flags.iter().collect();
        let (values, words) = Values::parse(&flags, &args).unwrap_or_else(|error| panic!("{error:?}"));
        request(&values, &words).unwrap_or_else(|error| panic!("{error:?}"))
    }

    #[test]
    fn ranges_are_what_the_flags_say() {
        let check = |args: &[&str], key: &[u8], end: &[u8]| {
            let request = read(args);
            assert_eq!((request.key.as_ref(), request.range_end.as_ref()), (key, end), "{args:?}");
        };
        check(&["k"], b"k", b"");
        check(&["a", "b", "ignored"], b"a", b"b");
        check(&["a", "--prefix"], b"a", b"b");
        check(&["", "--prefix"], b"\0", b"\0");
        check(&["a", "--from-key"], b"a", b"\0");
        check(&["", "--from-key"], b"\0", b"\0");
    }

    #[test]
    fn sorting_by_key_upwards_is_not_asked_for() {
        let check = |args: &[&str], order: SortOrder, target: SortTarget| {
            let request = read(args);
            assert_eq!((request.sort_order, request.sort_target), (order.into(), target.into()), "{args:?}");
        };
        check(&["k", "--order=ascend", "--sort-by=key"], SortOrder::None, SortTarget::Key);
        check(&["k", "--order=ASCEND"], SortOrder::None, SortTarget::Key);
        check(&["k", "--order=descend"], SortOrder::Descend, SortTarget::Key);
        check(&["k", "--sort-by=VERSION"], SortOrder::None, SortTarget::Version);
        check(&["k", "--order=Ascend", "--sort-by=modify"], SortOrder::Ascend, SortTarget::Mod);
        assert_eq!(read(&["k", "--rev=-1"]).revision, 0);
        assert_eq!(read(&["k", "--min-mod-rev=5"]).min_mod_revision, 5);
    }
}

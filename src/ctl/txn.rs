//! `txn`: a transaction, typed line by line (ctl.md 4.4).
//!
//! Three blocks, each ended by an empty line: comparisons, operations if they hold, operations if not.

use std::io::BufRead;

use bytes::Bytes;

use super::command::Action;
use super::command::Command;
use super::command::Found;
use super::console::Console;
use super::del;
use super::error::CtlError;
use super::flags::Flag;
use super::flags::Kind;
use super::flags::Values;
use super::get;
use super::go_number;
use super::go_text;
use super::help;
use super::print::Report;
use super::put;
use super::session::Session;
use crate::client::Deadline;
use crate::proto::etcdserverpb::Compare;
use crate::proto::etcdserverpb::RequestOp;
use crate::proto::etcdserverpb::TxnRequest;
use crate::proto::etcdserverpb::compare::CompareResult;
use crate::proto::etcdserverpb::compare::CompareTarget;
use crate::proto::etcdserverpb::compare::TargetUnion;
use crate::proto::etcdserverpb::request_op::Request as Op;

pub static COMMAND: Command = Command {
    name: "txn",
    arguments: "[options]",
    summary: "Carries out several requests as one, on conditions",
    flags: &[Flag::new("interactive", Kind::Bool, "", "say what is expected next").with_short('i')],
    inherited: &[],
    action: Action::Run(run),
};

fn run(session: &mut Session<'_>) -> Result<(), CtlError> {
    if !session.args.is_empty() {
        return Err(CtlError::bad_arguments("txn command does not accept argument"));
    }
    let prompts = session.values.bool("interactive");
    let request = read(session.console, prompts)?;
    let client = session.connect()?;
    // etcdctl sets no deadline here, whatever --command-timeout says.
    let response = session.call(client.txn(request, Deadline::none()))?;
    session.report(&Report::Txn(&response))
}

/// Reads the three blocks. A line is judged when it is read, so its error comes before that of a missing end.
pub(crate) fn read(console: &mut Console, prompts: bool) -> Result<TxnRequest, CtlError> {
    let prompt = |console: &mut Console, text: &str| match prompts {
        true => console.write_out(text.as_bytes()).and_then(|()| console.flush()),
        false => Ok(()),
    };
    let mut request = TxnRequest::default();
    prompt(console, "compares:\n")?;
    while let Some(line) = next_line(&mut console.input)? {
        request.compare.push(comparison(&line)?);
    }
    prompt(console, "success requests (get, put, del):\n")?;
    while let Some(line) = next_line(&mut console.input)? {
        request.success.push(operation(&line, console)?);
    }
    prompt(console, "failure requests (get, put, del):\n")?;
    while let Some(line) = next_line(&mut console.input)? {
        request.failure.push(operation(&line, console)?);
    }
    Ok(request)
}

/// The next line without blanks around it; `None` for an empty one.
fn next_line(input: &mut dyn BufRead) -> Result<Option<String>, CtlError> {
    let mut line = Vec::new();
    input.read_until(b'\n', &mut line)?;
    if line.last() != Some(&b'\n') {
        return Err(CtlError::invalid_input("EOF"));
    }
    let line = String::from_utf8_lossy(&line).trim().to_owned();
    Ok(Some(line).filter(|line| !line.is_empty()))
}

/// Reads `TARGET("key") OP "value"`. Text behind the value is ignored.
fn comparison(line: &str) -> Result<Compare, CtlError> {
    let malformed = || CtlError::invalid_input(format!("malformed comparison: {line}"));
    let (target, rest) = line.split_once('(').ok_or_else(malformed)?;
    let mut parts = Parts::default();
    if parts.scan(rest).is_none() {
        let (key, value) = (go_text::quote(&parts.key), go_text::quote(&parts.value));
        let text = format!("malformed comparison: {line}; got {target}({key}) {} {value}", parts.operator);
        return Err(CtlError::invalid_input(text));
    }
    let result = match parts.operator.as_str() {
        "=" => CompareResult::Equal,
        "!=" => CompareResult::NotEqual,
        ">" => CompareResult::Greater,
        "<" => CompareResult::Less,
        // etcdctl panics here.
        other => {
            let text = format!("malformed comparison: {line} (unknown operator {other})");
            return Err(CtlError::invalid_input(text));
        }
    };
    let number = |base: u32| {
        let invalid = || CtlError::invalid_input(format!("invalid txn compare request: {line}"));
        let text = std::str::from_utf8(&parts.value).map_err(|_| invalid())?;
        go_number::parse_int(text, base).map_err(|_| invalid())
    };
    let (target, union) = match target {
        "ver" | "version" => (CompareTarget::Version, TargetUnion::Version(number(10)?)),
        "c" | "create" => (CompareTarget::Create, TargetUnion::CreateRevision(number(10)?)),
        "m" | "mod" => (CompareTarget::Mod, TargetUnion::ModRevision(number(10)?)),
        "val" | "value" => (CompareTarget::Value, TargetUnion::Value(Bytes::from(parts.value.clone()))),
        // etcdctl up to 3.7.1 panics here; later ones read hexadecimal.
        "lease" => (CompareTarget::Lease, TargetUnion::Lease(number(16)?)),
        unknown => {
            let text = format!("malformed comparison: {line} (unknown target {unknown})");
            return Err(CtlError::invalid_input(text));
        }
    };
    Ok(Compare {
        result: result.into(),
        target: target.into(),
        key: Bytes::from(parts.key),
        target_union: Some(union),
        range_end: Bytes::new(),
    })
}

/// What stands behind the opening parenthesis, as far as it was read.
#[derive(Default)]
struct Parts {
    key: Vec<u8>,
    operator: String,
    value: Vec<u8>,
}

impl Parts {
    /// Reads a quoted key, `)`, blanks, an operator, blanks, a quoted value. `None` where that ends.
    fn scan(&mut self, text: &str) -> Option<()> {
        let (key, rest) = go_text::unquote_prefix(text.trim_start())?;
        self.key = key;
        let rest = skip_blanks(rest.strip_prefix(')')?)?;
        let end = rest.find(char::is_whitespace).unwrap_or(rest.len());
        self.operator = rest[..end].to_owned();
        let (value, _) = go_text::unquote_prefix(skip_blanks(&rest[end..])?)?;
        self.value = value;
        Some(())
    }
}

/// The text behind at least one blank.
fn skip_blanks(text: &str) -> Option<&str> {
    text.starts_with(char::is_whitespace).then(|| text.trim_start())
}

/// Reads a command line of put, get or del.
fn operation(line: &str, console: &mut Console) -> Result<RequestOp, CtlError> {
    let words = split(line)?;
    let [name, args @ ..] = &words[..] else {
        return Err(CtlError::invalid_input(format!("invalid txn compare request: {line}")));
    };
    // The original's text for one word says "compare" in this place, too.
    if args.is_empty() {
        return Err(CtlError::invalid_input(format!("invalid txn compare request: {line}")));
    }
    let invalid = || CtlError::invalid_input(format!("invalid txn request: {line}"));
    let command = [&put::COMMAND, &get::COMMAND, &del::COMMAND].into_iter().find(|command| name == command.name);
    let command = command.ok_or_else(invalid)?;
    let flags: Vec<&'static Flag> = command.flags.iter().collect();
    let (values, args) = Values::parse(&flags, args).map_err(|_| {
        // The line's own usage: there is no program's name before it.
        console.tell(&format!("{}\n", help::usage("", &Found { path: vec![command, command], args: Vec::new() })));
        invalid()
    })?;
    let op = match command.name {
        // What is left of standard input belongs to the blocks that follow: a value must stand in the line.
        "put" => Op::RequestPut(put::request(&values, &args, &mut std::io::empty())?),
        "get" => Op::RequestRange(get::request(&values, &args)?),
        _ => Op::RequestDeleteRange(del::request(&values, &args, console)?),
    };
    Ok(RequestOp { request: Some(op) })
}

/// Splits a line into words: double-quoted with Go's escapes, single-quoted as they are, else up to the next blank. A
/// quote that is not at a word's start, or never closed, is a character like others.
fn split(line: &str) -> Result<Vec<Bytes>, CtlError> {
    let mut words = Vec::new();
    let mut rest = line.trim_start();
    while !rest.is_empty() {
        let (word, tail) = match rest.as_bytes()[0] {
            b'"' => match closing_quote(rest) {
                Some(end) => {
                    let read = go_text::unquote_prefix(rest).filter(|(_, tail)| tail.len() == rest.len() - end - 1);
                    read.ok_or_else(|| CtlError::invalid_input("invalid syntax"))?
                }
                None => bare(rest),
            },
            b'\'' => match rest[1..].find('\'') {
                Some(end) => (rest.as_bytes()[1..=end].to_vec(), &rest[end + 2..]),
                None => bare(rest),
            },
            _ => bare(rest),
        };
        words.push(Bytes::from(word));
        rest = tail.trim_start();
    }
    Ok(words)
}

fn bare(text: &str) -> (Vec<u8>, &str) {
    let end = text.find(char::is_whitespace).unwrap_or(text.len());
    (text.as_bytes()[..end].to_vec(), &text[end..])
}

/// Position of the quote that closes the one `text` starts with; a backslash hides the character behind it.
fn closing_quote(text: &str) -> Option<usize> {
    let mut hidden = false;
    for (at, byte) in text.bytes().enumerate().skip(1) {
        match byte {
            _ if hidden => hidden = false,
            b'\\' => hidden = true,
            b'"' => return Some(at),
            _ => {}
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read_from(input: &'static str) -> Result<TxnRequest, String> {
        let (mut console, _, _) = Console::captured(input.as_bytes());
        read(&mut console, false).map_err(|error| error.message().trim_end().to_owned())
    }

    #[test]
    fn comparisons_are_read() {
        let check = |line: &str, result: CompareResult, key: &[u8], union: TargetUnion| {
            let compare = comparison(line).unwrap_or_else(|error| panic!("{line}: {error:?}"));
            assert_eq!((compare.result, compare.key.as_ref()), (result.into(), key), "{line}");
            assert_eq!(compare.target_union, Some(union), "{line}");
        };
        check("value(\"x\") = \"1\"", CompareResult::Equal, b"x", TargetUnion::Value(Bytes::from_static(b"1")));
        check(
            "val( `a\\b`)   !=  \"\\x00\" rest",
            CompareResult::NotEqual,
            b"a\\b",
            TargetUnion::Value(Bytes::from_static(b"\0")),
        );
        check("mod(\"x\") > \"1000\"", CompareResult::Greater, b"x", TargetUnion::ModRevision(1000));
        check("m(\"x\") < \"-1\"", CompareResult::Less, b"x", TargetUnion::ModRevision(-1));
        check("create(\"x)(\") = \"0\"", CompareResult::Equal, b"x)(", TargetUnion::CreateRevision(0));
        check("ver(\"x\") = \"7\"", CompareResult::Equal, b"x", TargetUnion::Version(7));
        check("lease(\"x\") = \"7e\"", CompareResult::Equal, b"x", TargetUnion::Lease(0x7e));
    }

    #[test]
    fn malformed_comparisons_are_told_as_far_as_they_were_read() {
        let check = |line: &str, expected: &str| {
            let error = comparison(line).expect_err("must fail");
            assert_eq!((error.exit_code(), error.message()), (3, format!("Error: {expected}\n")), "{line}");
        };
        check("mod", "malformed comparison: mod");
        check("val(\"x\")=\"3\"", "malformed comparison: val(\"x\")=\"3\"; got val(\"x\")  \"\"");
        check("ver(\"x\") = 2", "malformed comparison: ver(\"x\") = 2; got ver(\"x\") = \"\"");
        check("val('x') = \"2\"", "malformed comparison: val('x') = \"2\"; got val(\"\")  \"\"");
        check("val(\"x\" ) = \"2\"", "malformed comparison: val(\"x\" ) = \"2\"; got val(\"x\")  \"\"");
        check("val(\"x\") =", "malformed comparison: val(\"x\") =; got val(\"x\") = \"\"");
        check("xx(\"x\") = \"1\"", "malformed comparison: xx(\"x\") = \"1\" (unknown target xx)");
        check("val (\"x\") = \"1\"", "malformed comparison: val (\"x\") = \"1\" (unknown target val )");
        check("mod(\"x\") = \"zz\"", "invalid txn compare request: mod(\"x\") = \"zz\"");
        check("mod(\"x\") = \"\\xff\"", "invalid txn compare request: mod(\"x\") = \"\\xff\"");
        check("mod(\"x\") >= \"1\"", "malformed comparison: mod(\"x\") >= \"1\" (unknown operator >=)");
    }

    #[test]
    fn lines_are_split_into_words() {
        let check = |line: &str, expected: Result<&[&str], &str>| {
            let words = split(line).map_err(|error| error.message());
            let expected =
                expected.map(|words| words.iter().map(|&word| Bytes::copy_from_slice(word.as_bytes())).collect());
            assert_eq!(words, expected.map_err(|text| format!("Error: {text}\n")), "{line}");
        };
        check("put z \"a b \\\"q\\\"\"", Ok(&["put", "z", "a b \"q\""]));
        check("put k 'a \"b\" \\n'", Ok(&["put", "k", "a \"b\" \\n"]));
        check("put k \"a\\nb\"", Ok(&["put", "k", "a\nb"]));
        check("put k {\"x\":1}", Ok(&["put", "k", "{\"x\":1}"]));
        check("put k \"open", Ok(&["put", "k", "\"open"]));
        check("put k 'open it", Ok(&["put", "k", "'open", "it"]));
        check("  get\ta  ", Ok(&["get", "a"]));
        check("put k ''", Ok(&["put", "k", ""]));
        check("put k \"\\q\"", Err("invalid syntax"));
    }

    #[test]
    fn three_blocks_make_a_request() {
        let request = read_from("ver(\"x\") = \"1\"\r\n\r\nput x 2 --lease=7b\nget x --prefix\n \t\ndel x\n\n");
        let request = request.unwrap_or_else(|error| panic!("{error}"));
        assert_eq!((request.compare.len(), request.success.len(), request.failure.len()), (1, 2, 1));
        assert!(
            matches!(&request.success[0].request, Some(Op::RequestPut(put)) if put.lease == 0x7b && put.value == "2")
        );
        assert!(matches!(&request.success[1].request, Some(Op::RequestRange(get)) if get.range_end == "y"));
        assert!(matches!(&request.failure[0].request, Some(Op::RequestDeleteRange(del)) if del.key == "x"));
        assert_eq!(read_from("\n\n\n"), Ok(TxnRequest::default()));
    }

    #[test]
    fn wrong_blocks_are_told() {
        let check = |input: &'static str, expected: &str| {
            assert_eq!(read_from(input), Err(format!("Error: {expected}")), "{input:?}");
        };
        check("", "EOF");
        check("\n\n", "EOF");
        check("\n\nget x", "EOF");
        check("\nput\n", "invalid txn compare request: put");
        check("\nbogus a\n", "invalid txn request: bogus a");
        check("\nget a --hex\n", "invalid txn request: get a --hex");
        check("\nput k\n\n\n", "put command needs 1 argument and input from stdin or 2 arguments");
        check("\nget a --order=x\n", "bad sort order x");
    }
}

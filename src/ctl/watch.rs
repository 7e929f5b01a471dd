//! `watch`: prints changes as they come, and runs a command for each (ctl.md 5.1).
//!
//! One watch from the command line, or with `-i` any number from standard input; either way on one stream, printed by one
//! loop, one response after the other.

use std::ffi::OsStr;
use std::io;
use std::io::BufRead;
use std::os::unix::ffi::OsStrExt;
use std::process::Command as Child;
use std::process::Stdio;

use bytes::Bytes;
use tokio::sync::mpsc;

use super::Personality;
use super::child;
use super::command::Action;
use super::command::Command;
use super::error::CtlError;
use super::error::Exit;
use super::flags::Flag;
use super::flags::FlagError;
use super::flags::Kind;
use super::flags::Values;
use super::go_text;
use super::print::Report;
use super::session::Session;
use super::txn;
use crate::client::CallError;
use crate::client::watch::Delivered;
use crate::common::answer::Answer;
use crate::common::key_range;
use crate::proto::etcdserverpb::WatchCreateRequest;
use crate::proto::etcdserverpb::WatchResponse;
use crate::proto::mvccpb::Event;

pub static COMMAND: Command = Command {
    name: "watch",
    arguments: "[options] [key or prefix] [range_end] [--] [exec-command arg1 arg2 ...]",
    summary: "Shows changes of keys as they happen, and runs a command for each",
    flags: &[
        Flag::new("interactive", Kind::Bool, "", "read watch and progress commands from standard input")
            .with_short('i'),
        Flag::new("prefix", Kind::Bool, "", "watch all keys that start with the given one"),
        Flag::new("prev-kv", Kind::Bool, "", "show the pair before each change, too"),
        Flag::new("progress-notify", Kind::Bool, "", "ask the server to say now and then that nothing happened"),
        Flag::new("rev", Kind::Int, "", "revision to begin at, 0 for now"),
    ],
    inherited: &[],
    action: Action::Run(run),
};

/// The variables that stand for a key on the command line.
const KEY_VARIABLE: &str = "ETCDCTL_WATCH_KEY";
const RANGE_END_VARIABLE: &str = "ETCDCTL_WATCH_RANGE_END";

/// Lines of standard input that wait for the loop. Full means that reading waits.
const LINES_MAX: usize = 16;

/// What to watch, and what to run for each event.
#[derive(Debug, Default, PartialEq)]
struct Order {
    request: WatchCreateRequest,
    exec: Vec<Bytes>,
}

/// Keys from the environment.
#[derive(Debug, Default)]
struct Given {
    key: String,
    range_end: String,
}

fn run(session: &mut Session<'_>) -> Result<(), CtlError> {
    let given = Given {
        key: session.take_variable(KEY_VARIABLE).unwrap_or_default(),
        range_end: session.take_variable(RANGE_END_VARIABLE).unwrap_or_default(),
    };
    if given.key.is_empty() && !given.range_end.is_empty() {
        let end = go_text::quote(given.range_end.as_bytes());
        return Err(CtlError::bad_arguments(format!("{KEY_VARIABLE} is empty but got {RANGE_END_VARIABLE}={end}")));
    }
    if session.values.bool("interactive") {
        return interactive(session, &given);
    }
    let (words, exec) = split_words(session.raw_args(), &session.args, &given)?;
    let client = session.connect()?;
    let request = request(&session.values, &words, session.values.bool("progress-notify"));
    let order = Order { request: request.map_err(CtlError::bad_arguments)?, exec };
    let mut watcher = client.watcher(session.personality() == Personality::Etcdctl);
    watcher.watch(order.request.clone());
    loop {
        match session.wait(watcher.next()) {
            Ok(Delivered { response, .. }) => {
                let ended = response.canceled;
                show(session, &response, &order.exec)?;
                if ended {
                    break;
                }
            }
            Err(error) => {
                tell_end(session, &error)?;
                break;
            }
        }
    }
    Err(CtlError::Told { exit: Exit::Interrupted, text: "watch is canceled by the server".to_owned() })
}

/// Words in front of `--` and the command behind it. `args` are all words without flags, `raw` everything typed.
fn split_words(raw: &[Bytes], args: &[Bytes], given: &Given) -> Result<(Vec<Bytes>, Vec<Bytes>), CtlError> {
    let separator = raw.iter().position(|arg| arg.as_ref() == b"--");
    let exec: Vec<Bytes> = separator.map(|at| raw[at + 1..].to_vec()).unwrap_or_default();
    if separator.is_some() && exec.is_empty() {
        return Err(CtlError::bad_arguments("bad number of arguments (found separator --, but no commands)"));
    }
    let mut words = args[..args.len() - exec.len()].to_vec();
    if !given.key.is_empty() {
        if !words.is_empty() {
            return Err(CtlError::bad_arguments("bad number of arguments (found conflicting environment key)"));
        }
        words.push(Bytes::from(given.key.clone()));
        words.extend(Some(Bytes::from(given.range_end.clone())).filter(|end| !end.is_empty()));
    }
    if words.is_empty() {
        return Err(CtlError::bad_arguments("bad number of arguments"));
    }
    Ok((words, exec))
}

/// The request that words and flags mean; the text of what is wrong with them.
fn request(values: &Values, words: &[Bytes], progress_notify: bool) -> Result<WatchCreateRequest, &'static str> {
    let key = words.first().cloned().ok_or("bad number of arguments")?;
    let prefix = values.bool("prefix");
    let (key, range_end) = match words.get(1) {
        Some(_) if prefix => return Err("`range_end` and `--prefix` are mutually exclusive"),
        Some(end) => (key, end.clone()),
        None if prefix && key.is_empty() => (Bytes::from_static(b"\0"), Bytes::from_static(b"\0")),
        None if prefix => (key.clone(), Bytes::from(key_range::prefix_end(&key))),
        None => (key, Bytes::new()),
    };
    let (start_revision, prev_kv) = (values.int("rev"), values.bool("prev-kv"));
    Ok(WatchCreateRequest { key, range_end, start_revision, prev_kv, progress_notify, ..WatchCreateRequest::default() })
}

/// Prints a response and runs the command for its events.
fn show(session: &mut Session<'_>, response: &WatchResponse, exec: &[Bytes]) -> Result<(), CtlError> {
    if response.canceled {
        session.console.tell(&format!("watch was canceled ({})\n", reason(response)));
    }
    let header = response.header.unwrap_or_default();
    let is_progress = response.events.is_empty() && !response.canceled;
    if is_progress && header.revision != 0 {
        session.console.write_out(format!("progress notify: {}\n", header.revision).as_bytes())?;
    }
    session.report(&Report::Watch(response))?;
    session.console.flush()?;
    if exec.is_empty() {
        return Ok(());
    }
    response.events.iter().try_for_each(|event| execute(session, exec, header.revision, event))
}

/// Why the server ended a watch.
fn reason(response: &WatchResponse) -> String {
    if response.compact_revision != 0 {
        Answer::Compacted.to_string()
    } else if response.cancel_reason.is_empty() {
        Answer::FutureRevision.to_string()
    } else {
        response.cancel_reason.clone()
    }
}

/// The stream ended for good: told as the end of a watch.
fn tell_end(session: &mut Session<'_>, error: &CallError) -> Result<(), CtlError> {
    session.console.tell(&format!("watch was canceled ({error})\n"));
    let ended = WatchResponse { header: Some(Default::default()), canceled: true, ..WatchResponse::default() };
    session.report(&Report::Watch(&ended))?;
    session.console.flush()
}

/// Runs the command for one event, to its end.
fn execute(session: &mut Session<'_>, exec: &[Bytes], revision: i64, event: &Event) -> Result<(), CtlError> {
    let [program, args @ ..] = exec else { return Ok(()) };
    let kv = event.kv.clone().unwrap_or_default();
    let kind = if event.r#type == 0 { "PUT" } else { "DELETE" };
    let mut command = Child::new(OsStr::from_bytes(program));
    command.args(args.iter().map(|arg| OsStr::from_bytes(arg))).stdin(Stdio::null());
    command.env("ETCD_WATCH_REVISION", revision.to_string());
    command.env("ETCD_WATCH_EVENT_TYPE", go_text::quote(kind.as_bytes()));
    command.env("ETCD_WATCH_KEY", go_text::quote(&kv.key));
    command.env("ETCD_WATCH_VALUE", go_text::quote(&kv.value));
    let failure = match command.status() {
        Ok(status) if status.success() => return Ok(()),
        Ok(status) => child::ended(status),
        Err(error) => child::not_started(program, &error),
    };
    let words: Vec<String> = exec.iter().map(|word| go_text::quote(word)).collect();
    session.console.tell(&format!("command [{}] error ({failure})\n", words.join(" ")));
    Err(CtlError::Silent(Exit::Failed))
}

/// What a line of standard input asks for.
#[derive(Debug, PartialEq)]
enum Line {
    Watch(Order),
    Progress,
    /// Told on standard error; the session goes on.
    Wrong(String),
}

fn interactive(session: &mut Session<'_>, given: &Given) -> Result<(), CtlError> {
    let client = session.connect()?;
    let mut lines = read_lines(session);
    let mut watcher = client.watcher(session.personality() == Personality::Etcdctl);
    let mut orders: Vec<Order> = Vec::new();
    let progress_notify = session.values.bool("progress-notify");
    loop {
        let happened = session.wait(async {
            tokio::select! {
                // What was typed first is asked first.
                biased;
                line = lines.recv() => Happened::Line(line),
                delivered = watcher.next() => Happened::Delivered(delivered),
            }
        });
        match happened {
            Happened::Line(Some(line)) => match read_line(&line, given, progress_notify)? {
                Line::Watch(order) => {
                    watcher.watch(order.request.clone());
                    orders.push(order);
                }
                Line::Progress => watcher.request_progress(),
                Line::Wrong(text) => session.console.tell(&text),
            },
            Happened::Line(None) => return Err(CtlError::invalid_input("error reading watch request line: EOF")),
            Happened::Delivered(Ok(Delivered { watch, response })) => {
                let exec = orders.get(watch).map(|order| order.exec.clone()).unwrap_or_default();
                show(session, &response, &exec)?;
            }
            Happened::Delivered(Err(error)) => {
                // All watches are gone; those to come get a stream of their own.
                tell_end(session, &error)?;
                orders.clear();
                watcher = client.watcher(session.personality() == Personality::Etcdctl);
            }
        }
    }
}

enum Happened {
    Line(Option<Vec<u8>>),
    Delivered(Result<Delivered, CallError>),
}

/// Reads standard input on a thread of its own: a read cannot be waited for beside a response.
fn read_lines(session: &mut Session<'_>) -> mpsc::Receiver<Vec<u8>> {
    let (sender, receiver) = mpsc::channel(LINES_MAX);
    let mut input = std::mem::replace(&mut session.console.input, Box::new(io::empty()));
    std::thread::spawn(move || {
        let mut line = Vec::new();
        // The end and an error look alike: nothing more comes. An unfinished line is none.
        while input.read_until(b'\n', &mut line).is_ok_and(|read| read > 0) && line.pop() == Some(b'\n') {
            if sender.blocking_send(std::mem::take(&mut line)).is_err() {
                return;
            }
        }
    });
    receiver
}

/// Reads one line. An error ends the session.
fn read_line(line: &[u8], given: &Given, progress_notify: bool) -> Result<Line, CtlError> {
    let text = String::from_utf8_lossy(line).into_owned();
    let words = txn::split(&text)?;
    let Some((command, args)) = words.split_first() else {
        return Ok(Line::Wrong(format!("Invalid command: {text} (watch and progress supported)\n")));
    };
    match command.as_ref() {
        b"watch" if args.is_empty() && given.key.is_empty() => {
            Ok(Line::Wrong(format!("Invalid command {text} (command type or key is not provided)\n")))
        }
        b"watch" => {
            let flags: Vec<&'static Flag> = COMMAND.flags.iter().collect();
            let (values, plain) = Values::parse(&flags, args).map_err(|error| match error {
                FlagError::Help => CtlError::bad_arguments("pflag: help requested"),
                FlagError::Wrong(text) => CtlError::bad_arguments(text),
            })?;
            let (words, exec) = split_words(args, &plain, given)?;
            Ok(match request(&values, &words, progress_notify) {
                Ok(request) => Line::Watch(Order { request, exec }),
                Err(why) => Line::Wrong(format!("Invalid command {text} ({why})\n")),
            })
        }
        b"progress" => Ok(Line::Progress),
        _ => Ok(Line::Wrong(format!("Invalid command {text} (only support watch)\n"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bytes(words: &[&str]) -> Vec<Bytes> {
        words.iter().map(|word| Bytes::copy_from_slice(word.as_bytes())).collect()
    }

    fn order(words: &[&str], given: &Given) -> Result<(Vec<Bytes>, Vec<Bytes>), String> {
        let raw = bytes(words);
        let flags: Vec<&'static Flag> = COMMAND.flags.iter().collect();
        let (_, args) = Values::parse(&flags, &raw).unwrap_or_else(|error| panic!("{error:?}"));
        split_words(&raw, &args, given).map_err(|error| error.message())
    }

    fn given(key: &str, range_end: &str) -> Given {
        Given { key: key.to_owned(), range_end: range_end.to_owned() }
    }

    #[test]
    fn words_before_the_separator_are_keys_and_those_behind_it_a_command() {
        let check = |words: &[&str], given: &Given, keys: &[&str], exec: &[&str]| {
            assert_eq!(order(words, given), Ok((bytes(keys), bytes(exec))), "{words:?}");
        };
        let none = given("", "");
        check(&["a"], &none, &["a"], &[]);
        check(&["a", "b", "--rev", "3", "c"], &none, &["a", "b", "c"], &[]);
        check(&["a", "--", "echo", "-n", "x"], &none, &["a"], &["echo", "-n", "x"]);
        check(&["a", "--", "a", "a"], &none, &["a"], &["a", "a"]);
        check(&["--rev", "1", "--", "echo"], &given("k", ""), &["k"], &["echo"]);
        check(&[], &given("k", "m"), &["k", "m"], &[]);
        let check = |words: &[&str], given: &Given, error: &str| {
            assert_eq!(order(words, given), Err(format!("Error: {error}\n")), "{words:?}");
        };
        check(&[], &none, "bad number of arguments");
        check(&["--prefix"], &none, "bad number of arguments");
        check(&["--", "echo"], &none, "bad number of arguments");
        check(&["a", "--"], &none, "bad number of arguments (found separator --, but no commands)");
        check(&["a"], &given("k", ""), "bad number of arguments (found conflicting environment key)");
        check(&["a", "--", "x"], &given("k", ""), "bad number of arguments (found conflicting environment key)");
    }

    #[test]
    fn lines_of_a_session_are_watches_progress_or_wrong() {
        let none = given("", "");
        let check = |line: &str, text: &str| {
            let read = read_line(line.as_bytes(), &none, false).unwrap_or_else(|error| panic!("{}", error.message()));
            assert_eq!(read, Line::Wrong(format!("Invalid command{text}\n")), "{line}");
        };
        check("", ":  (watch and progress supported)");
        check("bogus a", " bogus a (only support watch)");
        check("watch", " watch (command type or key is not provided)");
        check("watch a b --prefix", " watch a b --prefix (`range_end` and `--prefix` are mutually exclusive)");
        assert_eq!(read_line(b"progress", &none, false).map_err(|error| error.message()), Ok(Line::Progress));
        let read = read_line(b"watch \"a b\" --rev 7 --prev-kv -- sh -c 'x y'", &none, true);
        let request = WatchCreateRequest {
            key: "a b".into(),
            start_revision: 7,
            prev_kv: true,
            progress_notify: true,
            ..WatchCreateRequest::default()
        };
        let expected = Order { request, exec: bytes(&["sh", "-c", "x y"]) };
        assert_eq!(read.map_err(|error| error.message()), Ok(Line::Watch(expected)));
        for (line, error) in [
            ("watch a --bogus", "Error: unknown flag: --bogus\n"),
            ("watch a --", "Error: bad number of arguments (found separator --, but no commands)\n"),
        ] {
            let failed = read_line(line.as_bytes(), &none, false).expect_err("it ends the session");
            assert_eq!((failed.exit_code(), failed.message().as_str()), (128, error));
        }
    }

    #[test]
    fn prefixes_become_ranges() {
        let check = |words: &[&str], key: &[u8], end: &[u8]| {
            let raw = bytes(words);
            let flags: Vec<&'static Flag> = COMMAND.flags.iter().collect();
            let (values, args) = Values::parse(&flags, &raw).unwrap_or_else(|error| panic!("{error:?}"));
            let request = request(&values, &args, false).expect("a request");
            assert_eq!((request.key.as_ref(), request.range_end.as_ref()), (key, end), "{words:?}");
        };
        check(&["a"], b"a", b"");
        check(&["a", "c"], b"a", b"c");
        check(&["a", "--prefix"], b"a", b"b");
        check(&["", "--prefix"], b"\0", b"\0");
        check(&[""], b"", b"");
    }
}

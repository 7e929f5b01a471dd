//! etcdctl: one file a command, one file an output format.
//!
//! ```text
//! main ─▶ command (which one?) ─▶ flags (what was typed) ─▶ put, get, … (what is meant) ─▶ client ─▶ print
//! ```
//!
//! A new command is a file with a `COMMAND` and a line in `root` (or in its group). Everything that ends a command
//! early is a `CtlError`; only `main` turns it into a line and an exit code.

mod child;
pub(crate) mod command;
mod compaction;
pub(crate) mod console;
pub(crate) mod del;
mod elect;
mod endpoint;
mod environment;
mod error;
pub(crate) mod flags;
pub(crate) mod get;
mod go_number;
pub(crate) mod go_text;
pub(crate) mod help;
mod lease;
mod lock;
mod log;
mod member;
mod move_leader;
pub(crate) mod print;
pub(crate) mod put;
mod root;
mod session;
mod snapshot;
mod turn;
pub(crate) mod txn;
mod version;
mod watch;

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;
use std::process::ExitCode;

use bytes::Bytes;

use command::Action;
use command::FindError;
use command::Found;
use environment::Variables;
use error::CtlError;
use error::Exit;
use flags::Flag;
use flags::FlagError;
use flags::Values;
use session::Session;

pub use console::Console;

/// Whose habits the command line has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Personality {
    /// Started as `etcdctl`: its bytes and exit codes.
    Etcdctl,
    /// `quorate ctl`: the same, but a flag wins over the environment, and no log lines stand between the answers.
    Native,
}

impl Personality {
    /// How help and errors name the program.
    fn program(self) -> &'static str {
        match self {
            Personality::Etcdctl => "etcdctl",
            Personality::Native => "quorate ctl",
        }
    }
}

/// Runs a command line, given without the program's own name, with this process's environment and standard streams.
pub fn main(args: impl IntoIterator<Item = OsString>, personality: Personality) -> ExitCode {
    let text = |raw: OsString| raw.to_string_lossy().into_owned();
    let variables = std::env::vars_os().map(|(name, value)| (text(name), text(value))).collect();
    let args = args.into_iter().map(|arg| Bytes::from(arg.into_vec())).collect();
    ExitCode::from(run(args, variables, personality, &mut Console::standard()))
}

/// Runs a command line on any console; returns the exit code. Must not be called within a tokio runtime: it has its
/// own.
pub fn run(args: Vec<Bytes>, variables: Variables, personality: Personality, console: &mut Console) -> u8 {
    let done = dispatch(args, variables, personality, console).and_then(|()| console.flush());
    match done {
        Ok(()) => 0,
        Err(error) => {
            // What was printed before the error belongs to the answer; that it cannot be is told by the error's code.
            let flushed = console.flush();
            console.tell(&error.message());
            flushed.err().unwrap_or(error).exit_code()
        }
    }
}

fn dispatch(
    args: Vec<Bytes>,
    variables: Variables,
    personality: Personality,
    console: &mut Console,
) -> Result<(), CtlError> {
    let program = personality.program();
    let level = variables.iter().find(|(name, _)| name == "ETCD_CLIENT_DEBUG").map(|(_, level)| level.as_str());
    if log::shows_warnings(level).is_none() {
        console.tell(&log::bad_level());
    }
    let args: Vec<Bytes> = args.into_iter().map(|arg| undash(arg, console)).collect();
    let found = command::find(&root::ROOT, &args).map_err(|error| not_found(program, error))?;
    let flags: Vec<&'static Flag> = found.own_flags().into_iter().chain(found.inherited_flags()).collect();
    let (values, words) = match Values::parse(&flags, &found.args) {
        Ok(parsed) => parsed,
        Err(FlagError::Help) => return console.write_out(help::help(program, &found).as_bytes()),
        Err(FlagError::Wrong(text)) => return Err(wrong_flag(program, &found, &text)),
    };
    match found.command().action {
        Action::Group { .. } => console.write_out(help::help(program, &found).as_bytes()),
        Action::Run(action) => action(&mut Session::new(found, values, words, variables, personality, console)?),
    }
}

fn not_found(program: &str, error: FindError) -> CtlError {
    match error {
        FindError::Unsupported(name) => {
            CtlError::failed(format!("the command \"{name}\" is not part of this release of quorate yet"))
        }
        FindError::Unknown { word, suggestions } => {
            let lines: String = suggestions.iter().map(|name| format!("\t{name}\n")).collect();
            let hint = if lines.is_empty() { String::new() } else { format!("\nDid you mean this?\n{lines}\n") };
            let word = go_text::quote(word.as_bytes());
            let text =
                format!("Error: unknown command {word} for \"{program}\"\n{hint}Run '{program} --help' for usage.\n");
            CtlError::Raw { exit: Exit::Failed, text }
        }
    }
}

fn wrong_flag(program: &str, found: &Found, text: &str) -> CtlError {
    let text = format!("Error: {text}\n{}\n", help::usage(program, found));
    CtlError::Raw { exit: Exit::Failed, text }
}

/// Takes a dash that a blog's typography made long in front of a flag's name for `--` (DESIGN.md 7).
fn undash(arg: Bytes, console: &mut Console) -> Bytes {
    let Ok(text) = std::str::from_utf8(&arg) else { return arg };
    let bare = text.trim_start_matches(['–', '—']);
    let name = bare.split('=').next().unwrap_or_default();
    // Only a name that is a flag somewhere: keys and values may begin with any character.
    if bare.len() == text.len() || !is_flag_name(&root::ROOT, name) {
        return arg;
    }
    console.tell(&format!("Note: {text:?} starts with a long dash; taken for \"--{bare}\"\n"));
    Bytes::from(format!("--{bare}"))
}

fn is_flag_name(command: &command::Command, name: &str) -> bool {
    let known = command.flags.iter().chain(command.inherited).any(|flag| flag.name == name);
    match command.action {
        Action::Group { commands, .. } => known || commands.iter().any(|child| is_flag_name(child, name)),
        Action::Run(_) => known,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Exit code, standard output and standard error of a command line that needs no server.
    fn etcdctl(args: &[&str], input: &'static str) -> (u8, String, String) {
        let (mut console, out, err) = Console::captured(input.as_bytes());
        let args = args.iter().map(|arg| Bytes::copy_from_slice(arg.as_bytes())).collect();
        let code = run(args, Vec::new(), Personality::Etcdctl, &mut console);
        (code, out.text(), err.text())
    }

    #[test]
    fn mistakes_end_before_any_server_is_asked() {
        let check = |args: &[&str], input: &'static str, code: u8, text: &str| {
            assert_eq!(etcdctl(args, input), (code, String::new(), format!("Error: {text}\n")), "{args:?}");
        };
        let put = "put command needs 1 argument and input from stdin or 2 arguments";
        check(&["put"], "", 128, put);
        check(&["put", "--hex"], "", 128, put);
        check(&["put", "k"], "", 128, put);
        check(
            &["put", "k", "v", "--ignore-value"],
            "",
            128,
            "put command needs only 1 argument when 'ignore-value' is set",
        );
        let lease = "bad lease ID (strconv.ParseInt: parsing \"zz\": invalid syntax), expecting ID in Hex";
        check(&["put", "a", "1", "--lease=zz"], "", 128, lease);
        check(&["get"], "", 128, "get command needs one argument as key and an optional argument as range_end");
        let both = "`--prefix` and `--from-key` cannot be set at the same time, choose one";
        check(&["get", "k", "--prefix", "--from-key"], "", 128, both);
        check(&["del", "k", "--prefix", "--from-key"], "", 128, both);
        let many = "too many arguments, only accept one argument when `--prefix` or `--from-key` is set";
        check(&["get", "a", "b", "--prefix"], "", 128, many);
        check(&["del", "a", "b", "--prefix"], "", 128, many);
        let keys = "`--keys-only` and `--count-only` cannot be set at the same time, choose one";
        check(&["get", "k", "--keys-only", "--count-only"], "", 128, keys);
        check(&["get", "k", "--order=foo"], "", 4, "bad sort order foo");
        check(&["get", "k", "--sort-by=foo"], "", 4, "bad sort target foo");
        check(&["get", "k", "--consistency=L"], "", 4, "unknown consistency flag \"L\"");
        let revisions = "getMinCreateRev(=5) > getMaxCreateRev(=2)";
        check(&["get", "k", "--min-create-rev=5", "--max-create-rev=2"], "", 4, revisions);
        let revisions = "getMinModRev(=5) > getMaxModRev(=2)";
        check(&["get", "k", "--min-mod-rev=5", "--max-mod-rev=2"], "", 4, revisions);
        let del = "del command needs one argument as key and an optional argument as range_end";
        check(&["del"], "", 128, del);
        check(&["del", "a", "b", "c"], "", 128, del);
        check(&["txn", "extra"], "", 128, "txn command does not accept argument");
        check(
            &["txn"],
            "bogus(\"x\") = \"1\"\n",
            3,
            "malformed comparison: bogus(\"x\") = \"1\" (unknown target bogus)",
        );
        check(&["txn"], "\n\n", 3, "EOF");
        check(&["compact"], "", 128, "compaction command needs 1 argument");
        check(&["compact", "1", "2"], "", 128, "compaction command needs 1 argument");
        check(&["compact", "zz"], "", 1, "strconv.ParseInt: parsing \"zz\": invalid syntax");
        check(&["member", "add"], "", 128, "member name not provided");
        check(&["member", "add", "m9"], "", 128, "member peer urls not provided");
        let many = "too many arguments, did you mean --peer-urls=http://h:1, did you mean --peer-urls=HTTP://h:2";
        check(&["member", "add", "m9", "http://h:1", "x", "HTTP://h:2"], "", 128, many);
        let url = "URL scheme must be http, https, unix, or unixs: bogus";
        check(&["member", "add", "m9", "--peer-urls=bogus"], "", 1, url);
        let path = "URL must not contain a path: http://127.0.0.1:1/x";
        check(&["member", "update", "1", "--peer-urls=http://127.0.0.1:1/x"], "", 1, path);
        let colon = "parse \"127.0.0.1:1\": first path segment in URL cannot contain colon";
        check(&["member", "add", "m9", "--peer-urls=127.0.0.1:1"], "", 1, colon);
        let hex = "bad member ID arg (strconv.ParseUint: parsing \"zz\": invalid syntax), expecting ID in Hex";
        for command in ["remove", "update", "promote"] {
            check(&["member", command], "", 128, "member ID is not provided");
            check(&["member", command, "1", "2"], "", 128, "member ID is not provided");
            check(&["member", command, "zz"], "", 128, hex);
        }
        check(&["member", "update", "1"], "", 128, "member peer urls not provided");
        check(&["move-leader"], "", 128, "move-leader command needs 1 argument");
        check(&["move-leader", "zz"], "", 128, "strconv.ParseUint: parsing \"zz\": invalid syntax");
        check(&["member", "list", "--consistency=q"], "", 4, "unknown consistency flag \"l\"");
        check(&["-w", "bogus", "put", "k", "v"], "", 4, "unsupported output format");
        check(&["-w", "", "get", "k"], "", 4, "unsupported output format");
        check(&["--endpoints=", "get", "k"], "", 2, "etcdclient: no available endpoints");
        check(&["--cert=", "get", "k"], "", 128, "empty string is passed to --cert option");
    }

    #[test]
    fn a_deadline_that_passed_is_told_behind_its_log_line() {
        let args = ["--command-timeout=0s", "--endpoints=127.0.0.1:1", "-w", "json", "member", "list"];
        let (code, out, err) = etcdctl(&args, "");
        assert_eq!((code, out.as_str()), (1, ""));
        let (line, error) = err.split_once('\n').expect("two lines");
        assert_eq!(error, "Error: context deadline exceeded\n");
        assert!(line.contains("\"peer\":\"Peer{Addr: <nil>, LocalAddr: <nil>, AuthInfo: <nil>}\","), "{line}");
        assert!(line.contains("\"method\":\"/etcdserverpb.Cluster/MemberList\",\"attempt\":0,"), "{line}");
    }

    #[test]
    fn unknown_words_are_told_with_suggestions() {
        let check = |args: &[&str], expected: &str| {
            assert_eq!(etcdctl(args, ""), (1, String::new(), expected.to_owned()), "{args:?}");
        };
        check(
            &["nosuchcmd"],
            "Error: unknown command \"nosuchcmd\" for \"etcdctl\"\nRun 'etcdctl --help' for usage.\n",
        );
        check(
            &["gett"],
            "Error: unknown command \"gett\" for \"etcdctl\"\n\nDid you mean this?\n\tget\n\nRun 'etcdctl --help' \
             for usage.\n",
        );
        let (code, out, err) = etcdctl(&["get", "a", "--nosuchflag"], "");
        assert_eq!((code, out.as_str()), (1, ""));
        assert!(err.starts_with("Error: unknown flag: --nosuchflag\nUsage:\n  etcdctl get [options] "), "{err}");
        assert!(err.ends_with("\n\n") && !err.contains("etcdctl options"), "{err}");
        assert!(
            etcdctl(&["--version"], "").2.starts_with("Error: unknown flag: --version\nUsage:\n  etcdctl [command]\n")
        );
    }

    #[test]
    fn help_goes_to_standard_output_with_code_0() {
        for args in
            [&[][..], &["help"], &["-h"], &["endpoint", "bogus"], &["get", "--help"], &["help", "put"], &["options"]]
        {
            let (code, out, err) = etcdctl(args, "");
            assert_eq!((code, err.as_str()), (0, ""), "{args:?}");
            assert!(out.contains("Usage:\n  etcdctl ") || out.contains("--endpoints strings"), "{args:?}: {out}");
        }
        let (code, out, err) = etcdctl(&["help", "bogus"], "");
        assert_eq!((code, out.as_str()), (0, ""));
        assert!(err.starts_with("Unknown help topic [`bogus`]\nUsage:\n  etcdctl [command]\n"), "{err}");
        let version = "etcdctl version: 3.7.1\nAPI version: 3.7\n";
        assert_eq!(etcdctl(&["version", "-w", "json", "x"], ""), (0, version.to_owned(), String::new()));
    }

    #[test]
    fn long_dashes_are_understood_before_flag_names_only() {
        let (code, _, err) = etcdctl(&["—endpoints=127.0.0.1:1", "get", "–command-timeout=0s", "–k"], "");
        assert_eq!(code, 1);
        assert!(
            err.starts_with("Note: \"—endpoints=127.0.0.1:1\" starts with a long dash; taken for \"--endpoints="),
            "{err}"
        );
        assert!(err.contains("taken for \"--command-timeout=0s\"\n") && !err.contains("\"--k\""), "{err}");
    }
}

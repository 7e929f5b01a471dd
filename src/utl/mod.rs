//! etcdutl: what is done to files while no server runs. One file a command.
//!
//! ```text
//! main ─▶ command (which one?) ─▶ ctl's flags (what was typed) ─▶ snapshot, restore, … ─▶ print
//! ```
//!
//! Started as `etcdutl` it keeps etcdutl 3.7's texts, log lines and exit codes; as `quorate utl` it says what it did in plain
//! words, and has `export`. Two things are better in both: a failed restore leaves nothing behind, and no command changes
//! a file that it only reads.

mod command;
mod defrag;
mod error;
mod export;
mod file;
mod hashkv;
mod log;
mod print;
mod restore;
pub(crate) mod snapshot;
mod version;

use std::ffi::OsString;
use std::io::Write;
use std::os::unix::ffi::OsStringExt;
use std::process::ExitCode;

use bytes::Bytes;

use crate::ctl::flags::FlagError;
use crate::ctl::flags::Values;
use crate::program::Manner;
use crate::utl::command::Action;
use crate::utl::error::UtlError;
use crate::utl::log::Log;

/// A command at work.
pub struct Session<'a> {
    pub values: Values,
    /// Arguments that are no flags.
    pub words: Vec<String>,
    pub manner: Manner,
    pub log: Log<'a>,
    out: &'a mut dyn Write,
}

impl Session<'_> {
    /// Writes to standard output.
    pub fn print(&mut self, text: &str) -> Result<(), UtlError> {
        self.out.write_all(text.as_bytes()).and_then(|()| self.out.flush()).map_err(UtlError::Console)
    }

    /// Says what was done, in the native manner only: etcdutl says nothing.
    pub fn report(&mut self, text: &str) -> Result<(), UtlError> {
        match self.manner {
            Manner::Native => self.print(text),
            Manner::Original => Ok(()),
        }
    }
}

/// Runs a command line, given without the program's own name.
pub fn main(words: Vec<OsString>, manner: Manner) -> ExitCode {
    let words = words.into_iter().map(|word| Bytes::from(word.into_vec())).collect();
    ExitCode::from(run(words, manner, &mut std::io::stdout().lock(), &mut std::io::stderr()))
}

/// Runs a command line with these streams: the exit code.
pub fn run(words: Vec<Bytes>, manner: Manner, out: &mut dyn Write, err: &mut dyn Write) -> u8 {
    match dispatch(words, manner, out, err) {
        Ok(()) => 0,
        Err(error) => {
            // Nobody is left to tell when even this cannot be written.
            let _ = err.write_all(error.message(manner).as_bytes()).and_then(|()| err.flush());
            error.exit_code()
        }
    }
}

/// How help and errors name the program.
fn program(manner: Manner) -> &'static str {
    match manner {
        Manner::Original => "etcdutl",
        Manner::Native => "quorate utl",
    }
}

fn dispatch(words: Vec<Bytes>, manner: Manner, out: &mut dyn Write, err: &mut dyn Write) -> Result<(), UtlError> {
    let found = command::find(&words, manner)?;
    let usage = || command::usage(program(manner), &found, manner);
    let (values, words) = match Values::parse(&found.flags(), &found.args) {
        Ok(parsed) => parsed,
        Err(FlagError::Help) => return print(out, &usage()),
        Err(FlagError::Wrong(text)) => return Err(UtlError::Usage { text, usage: usage() }),
    };
    let words: Vec<String> = words.iter().map(|word| String::from_utf8_lossy(word).into_owned()).collect();
    let command = found.command();
    let missing: Vec<String> =
        command.required.iter().filter(|name| !values.is_given(name)).map(|name| format!("\"{name}\"")).collect();
    if !missing.is_empty() {
        let text = format!("required flag(s) {} not set", missing.join(", "));
        return Err(UtlError::Usage { text, usage: usage() });
    }
    match command.action {
        Action::Group(_) => print(out, &usage()),
        Action::Help => print(out, &command::help(program(manner), &words, manner)),
        Action::Run(action) => {
            if command.one_argument && words.len() != 1 {
                let text = format!("accepts 1 arg(s), received {}", words.len());
                return Err(UtlError::Usage { text, usage: usage() });
            }
            let log = Log::new(manner, err);
            action(&mut Session { values, words, manner, log, out })
        }
    }
}

fn print(out: &mut dyn Write, text: &str) -> Result<(), UtlError> {
    out.write_all(text.as_bytes()).and_then(|()| out.flush()).map_err(UtlError::Console)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Exit code, standard output and standard error.
    pub fn utl(manner: Manner, line: &str) -> (u8, String, String) {
        let words = line.split_whitespace().map(|word| Bytes::copy_from_slice(word.as_bytes())).collect();
        let (mut out, mut err) = (Vec::new(), Vec::new());
        let code = run(words, manner, &mut out, &mut err);
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).expect("text");
        (code, text(out), text(err))
    }

    #[test]
    fn mistakes_are_told_as_etcdutl_tells_them() {
        let check = |line: &str, code: u8, text: &str| {
            assert_eq!(utl(Manner::Original, line), (code, String::new(), format!("Error: {text}\n")), "{line}");
        };
        check("snapshot status", 128, "snapshot status requires exactly one argument");
        check("snapshot status a b", 128, "snapshot status requires exactly one argument");
        check("snapshot restore", 128, "snapshot restore requires exactly one argument");
        let bump = "--mark-compacted required if --revision-bump > 0";
        check("snapshot restore f --bump-revision=5", 128, bump);
        check("snapshot restore f --mark-compacted", 128, bump);
        check("snapshot status -w bogus f", 4, "unsupported output format");
        check("snapshot status /none/x", 1, "stat /none/x: no such file or directory");
        check("hashkv /none/x", 1, "stat /none/x: no such file or directory");
        check(
            "snapshot restore /none/x --data-dir /none/y --name foo",
            1,
            "couldn't find local name \"foo\" in the initial cluster configuration",
        );
        check(
            "snapshot restore /none/x --data-dir /none/y --initial-cluster foo=http://127.0.0.1:1 --name foo",
            1,
            "--initial-cluster has foo=http://127.0.0.1:1 but missing from \
             --initial-advertise-peer-urls=http://localhost:2380 (resolved urls: \"http://localhost:2380\" != \
             \"http://127.0.0.1:1\")",
        );
        check(
            "snapshot restore f --initial-advertise-peer-urls=",
            1,
            "URL scheme must be http, https, unix, or unixs: ",
        );
        check("snapshot restore f --initial-cluster default", 1, "URL scheme must be http, https, unix, or unixs: ");
        check(
            "defrag --data-dir /none/d",
            1,
            "Failed to defragment etcd data[/none/d] (stat /none/d/member/snap/db: no such file or directory)",
        );
        let (code, out, err) = utl(Manner::Original, "snapshot save f");
        assert_eq!((code, out.as_str()), (128, ""));
        assert!(err.ends_with("Error: In order to download snapshot use: `etcdctl snapshot save ...`\n"), "{err}");
    }

    #[test]
    fn errors_of_the_command_line_stand_around_the_usage() {
        let check = |line: &str, text: &str, usage: &str| {
            let (code, out, err) = utl(Manner::Original, line);
            assert_eq!((code, out.as_str()), (1, ""), "{line}");
            assert!(err.starts_with(&format!("Error: {text}\nUsage:\n  {usage}")), "{err}");
            assert!(err.ends_with(&format!("\n\nError: {text}\n")), "{err}");
            let (code, _, err) = utl(Manner::Native, line);
            assert_eq!((code, err.matches(text).count()), (1, 1), "{err}");
        };
        check("snapshot status --bogus", "unknown flag: --bogus", "etcdutl snapshot status <filename> [flags]\n");
        check("defrag", "required flag(s) \"data-dir\" not set", "etcdutl defrag [flags]\n");
        check("hashkv", "accepts 1 arg(s), received 0", "etcdutl hashkv <filename> [flags]\n");
        check(
            "snapshot restore f --bump-revision=-1",
            "invalid argument \"-1\" for \"--bump-revision\" flag: strconv.ParseUint: parsing \"-1\": invalid syntax",
            "etcdutl snapshot restore <filename> --data-dir {output dir} [options] [flags]\n",
        );
    }

    #[test]
    fn unknown_commands_and_groups_behave_as_cobras() {
        let (code, out, err) = utl(Manner::Original, "bogus");
        let error = "Error: unknown command \"bogus\" for \"etcdutl\"\n";
        assert_eq!((code, out.as_str()), (1, ""));
        assert_eq!(err, format!("{error}Run 'etcdutl --help' for usage.\n{error}"));
        let (code, _, err) = utl(Manner::Original, "defrak");
        assert!(code == 1 && err.contains("\n\nDid you mean this?\n\tdefrag\n"), "{err}");
        // etcdutl has no such command, and abbreviates those that it has.
        assert_eq!(utl(Manner::Original, "export").0, 1);
        assert_eq!(utl(Manner::Original, "snap stat").0, 128);
        for line in ["", "snapshot", "snapshot bogus", "help", "-h", "snapshot status -h", "help snapshot"] {
            let (code, out, err) = utl(Manner::Original, line);
            assert_eq!((code, err.as_str()), (0, ""), "{line}");
            assert!(out.starts_with("Usage:\n  etcdutl "), "{line}: {out}");
        }
        let (_, root, _) = utl(Manner::Original, "");
        assert!(root.contains("\n\nAvailable Commands:\n  defrag      ") && !root.contains("save"), "{root}");
        assert!(root.ends_with("\nUse \"etcdutl [command] --help\" for more information about a command.\n"), "{root}");
        let (_, leaf, _) = utl(Manner::Original, "snapshot restore --help");
        assert!(
            leaf.contains("\n\nFlags:\n      --bump-revision uint  ") && leaf.contains("\nGlobal Flags:\n"),
            "{leaf}"
        );
        assert!(utl(Manner::Native, "export -h").1.starts_with("Usage:\n  quorate utl export "));
    }

    #[test]
    fn versions_are_etcdutls() {
        assert_eq!(utl(Manner::Original, "version").1, "etcdutl version: 3.7.1\nAPI version: 3.7\n");
        assert!(utl(Manner::Native, "version").1.starts_with("quorate version: "));
    }
}

//! The programs that this binary is, and how a command line chooses one.

use std::ffi::OsString;
use std::process::ExitCode;

use crate::common::version::ETCD_VERSION;
use crate::common::version::QUORATE_VERSION;
use crate::ctl::Personality;

/// A command line that cannot be understood.
const EXIT_USAGE: u8 = 2;

const HELP: &str = "\
quorate: a replicated key-value store that speaks etcd's API, its client and a Procfile supervisor in one binary

Usage:
  quorate server [flags]            run a member (etcd's flags; `quorate server --help` lists them)
  quorate ctl [flags] <command>     talk to a cluster (etcdctl's commands; `quorate ctl help`)
  quorate utl <command>             work on files offline: snapshots, hashes, a directory for etcd (`quorate utl help`)
  quorate supervisor <command>      run and control the processes of a Procfile (`quorate supervisor help`)
  quorate cluster [flags]           write a Procfile for a cluster on this machine, and start it with --run
  quorate bench <workload>          put load on any etcd and measure it; `bench compare` measures two programs
  quorate torture [flags]           run a cluster under faults and judge what its clients saw; any etcd
  quorate version                   print the version

Started under the name etcd, etcdctl, etcdutl or goreman (a symlink), it takes that program's command line.
";

/// Bytes and exit codes of the original, or our own manners.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Manner {
    /// Under the original's name: its command line, output bytes and exit codes.
    Original,
    /// As a word of `quorate`: improved where the original annoys (DESIGN.md 7).
    Native,
}

/// What to be, with the words that are left for it.
#[derive(Debug, PartialEq, Eq)]
pub enum Program {
    Server(Manner, Vec<OsString>),
    Ctl(Manner, Vec<OsString>),
    Supervisor(Manner, Vec<OsString>),
    Utl(Manner, Vec<OsString>),
    Cluster(Vec<OsString>),
    Bench(Vec<OsString>),
    Torture(Vec<OsString>),
    Help,
    Version,
    Unknown(String),
}

impl Program {
    /// The program for the name that the process was started under and the words behind it.
    pub fn of(name: &str, mut words: Vec<OsString>) -> Program {
        match name {
            "etcd" => return Program::Server(Manner::Original, words),
            "etcdctl" => return Program::Ctl(Manner::Original, words),
            "etcdutl" => return Program::Utl(Manner::Original, words),
            "goreman" => return Program::Supervisor(Manner::Original, words),
            _ => {}
        }
        if words.is_empty() {
            return Program::Help;
        }
        let first = words.remove(0).to_string_lossy().into_owned();
        match first.as_str() {
            "server" => Program::Server(Manner::Native, words),
            "ctl" => Program::Ctl(Manner::Native, words),
            "utl" => Program::Utl(Manner::Native, words),
            "supervisor" => Program::Supervisor(Manner::Native, words),
            "cluster" => Program::Cluster(words),
            "bench" => Program::Bench(words),
            "torture" => Program::Torture(words),
            "help" | "-h" | "--help" | "-help" => Program::Help,
            "version" | "--version" | "-version" => Program::Version,
            _ => Program::Unknown(first),
        }
    }

    /// Runs it to its end.
    pub fn run(self) -> ExitCode {
        match self {
            Program::Server(manner, words) => crate::server::run::main(words, manner),
            Program::Ctl(manner, words) => {
                let personality = match manner {
                    Manner::Original => Personality::Etcdctl,
                    Manner::Native => Personality::Native,
                };
                crate::ctl::main(words, personality)
            }
            Program::Utl(manner, words) => crate::utl::main(words, manner),
            Program::Supervisor(manner, words) => crate::supervisor::main(words, manner),
            Program::Cluster(words) => crate::cluster::main(words),
            Program::Bench(words) => crate::bench::main(words),
            Program::Torture(words) => crate::torture::main(words),
            Program::Help => {
                anstream::print!("{HELP}");
                ExitCode::SUCCESS
            }
            Program::Version => {
                anstream::println!("quorate {QUORATE_VERSION} (etcd API {ETCD_VERSION})");
                ExitCode::SUCCESS
            }
            Program::Unknown(word) => {
                anstream::eprintln!("quorate: unknown program \"{word}\"; `quorate help` lists what there is");
                ExitCode::from(EXIT_USAGE)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(line: &str) -> Vec<OsString> {
        line.split_whitespace().map(OsString::from).collect()
    }

    #[test]
    fn the_name_or_the_first_word_chooses() {
        let check = |name: &str, line: &str, expected: Program| assert_eq!(Program::of(name, words(line)), expected);
        check("etcd", "-name m1", Program::Server(Manner::Original, words("-name m1")));
        check("etcdctl", "get a", Program::Ctl(Manner::Original, words("get a")));
        check("goreman", "start", Program::Supervisor(Manner::Original, words("start")));
        check("quorate", "server --name m1", Program::Server(Manner::Native, words("--name m1")));
        check("anything", "ctl get a", Program::Ctl(Manner::Native, words("get a")));
        check("quorate", "supervisor start", Program::Supervisor(Manner::Native, words("start")));
        check("etcdutl", "hashkv f", Program::Utl(Manner::Original, words("hashkv f")));
        check("quorate", "utl version", Program::Utl(Manner::Native, words("version")));
        check("quorate", "cluster --size 5", Program::Cluster(words("--size 5")));
        check("quorate", "bench put --total 5", Program::Bench(words("put --total 5")));
        check("quorate", "torture --seed 5", Program::Torture(words("--seed 5")));
        check("quorate", "", Program::Help);
        check("quorate", "sever", Program::Unknown("sever".to_owned()));
    }
}

//! What was typed.

use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

use clap::Parser;

use crate::common::go_duration;
use crate::faults::kind;
use crate::faults::kind::Kind;

/// Longer runs are typing mistakes.
const DURATION_MAX: Duration = Duration::from_secs(30 * 24 * 3600);

/// Runs a cluster on this machine under faults that a seed chooses, and judges everything that its clients saw.
#[derive(Clone, Debug, Parser)]
#[command(name = "quorate torture", disable_help_subcommand = true)]
pub struct Options {
    /// Members of the cluster
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u8).range(1..=9))]
    pub members: u8,
    /// How long faults are made (s, m, h)
    #[arg(long, default_value = "60s", value_parser = duration)]
    pub duration: Duration,
    /// Chooses faults and requests; the same seed makes the same choices [default: from the clock]
    #[arg(long)]
    pub seed: Option<u64>,
    /// kill, pause, partition, delay, restart, compact, member, disk-full, power-cut (the last two as root), or all
    #[arg(long, value_delimiter = ',', default_value = "kill,pause,partition,delay,restart,compact")]
    pub faults: Vec<String>,
    /// The program whose members are tortured: any etcd [default: this one]
    #[arg(long)]
    pub binary: Option<PathBuf>,
    /// Where the run's own directory is made [default: the directory for temporary files]
    #[arg(long)]
    pub dir: Option<PathBuf>,
    /// Clients: most talk to one member each, every fourth one to all in turn
    #[arg(long, default_value_t = 9, value_parser = clap::value_parser!(u16).range(1..=1000))]
    pub clients: u16,
    /// Watchers: most watch one member each, every fourth one all in turn
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u16).range(0..=1000))]
    pub watchers: u16,
    /// Clients that take locks: one by the lock service, one by the recipe over leases, one by elections, and so on
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u16).range(0..=1000))]
    pub lockers: u16,
    /// Requests a second at most, of all clients together
    #[arg(long, default_value_t = 500, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    pub rate: u32,
    /// Keys that clients write; few, so that they meet
    #[arg(long, default_value_t = 12, value_parser = clap::value_parser!(u16).range(1..=10_000))]
    pub keys: u16,
    /// Keep the run's directory also when nothing was found
    #[arg(long)]
    pub keep: bool,
    /// One JSON object instead of text
    #[arg(long)]
    pub json: bool,
    /// Run nothing: judge the kept directory of an earlier run again
    #[arg(long, value_name = "DIR", conflicts_with_all = ["duration", "seed", "faults", "binary", "members"])]
    pub judge: Option<PathBuf>,
    /// Further flags for every member, after `--`
    #[arg(last = true)]
    pub flags: Vec<OsString>,
}

/// Why the command line means nothing although it can be read.
#[derive(Debug, thiserror::Error)]
pub enum MeaningError {
    #[error(transparent)]
    Faults(#[from] kind::KindsError),
    #[error("the binary {}: {reason}", path.display())]
    Binary { path: PathBuf, reason: std::io::Error },
    #[error("a flag for the members is not UTF-8: {0:?}")]
    Flag(OsString),
}

impl Options {
    /// The faults that are meant.
    pub fn kinds(&self) -> Result<std::collections::BTreeSet<Kind>, MeaningError> {
        Ok(kind::parse(&self.faults, nix::unistd::geteuid().is_root())?)
    }

    /// The words that run the same seed again.
    pub fn again(&self, seed: u64, binary: &std::path::Path) -> String {
        let mut words = format!(
            "quorate torture --members {} --duration {}s --seed {seed} --faults {} --clients {} --watchers {} --lockers {} \
             --rate {} --keys {}",
            self.members,
            self.duration.as_secs_f64(),
            self.faults.join(","),
            self.clients,
            self.watchers,
            self.lockers,
            self.rate,
            self.keys,
        );
        if self.binary.is_some() {
            words.push_str(&format!(" --binary {}", binary.display()));
        }
        if !self.flags.is_empty() {
            let flags: Vec<_> = self.flags.iter().map(|flag| flag.to_string_lossy()).collect();
            words.push_str(&format!(" -- {}", flags.join(" ")));
        }
        words
    }
}

fn duration(text: &str) -> Result<Duration, String> {
    let duration = go_duration::parse(text)?;
    if duration.is_zero() || duration > DURATION_MAX {
        return Err(format!("{text} is no time to run for"));
    }
    Ok(duration)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(line: &str) -> Result<Options, clap::Error> {
        Options::try_parse_from(std::iter::once("torture").chain(line.split_whitespace()))
    }

    #[test]
    fn a_command_line_is_read_and_repeats_itself() {
        let line = "--members 5 --duration 90s --seed 7 --faults kill,pause --clients 3 --watchers 2 --lockers 1 \
                    --rate 50 --keys 4 -- --a b";
        let options = parse(line).unwrap();
        let again = options.again(7, std::path::Path::new("x"));
        assert_eq!(again, format!("quorate torture {line}"));
        assert_eq!(parse("--duration 1m30s").unwrap().duration, Duration::from_secs(90));
    }

    #[test]
    fn wrong_words_are_refused() {
        for line in ["--members 0", "--duration 0s", "--duration soon", "--clients x", "--judge d --seed 1", "word"] {
            assert!(parse(line).is_err(), "{line}");
        }
        assert!(parse("--faults quake").unwrap().kinds().is_err());
    }
}

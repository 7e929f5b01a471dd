//! What was typed. Options that etcd's own benchmark tool has carry its names, its defaults and its places.

use std::path::PathBuf;

use clap::ArgAction;
use clap::Args;
use clap::Parser;
use clap::Subcommand;
use clap::ValueEnum;

use super::compare::Case;
use super::keys;
use super::keys::Keys;
use super::load::Load;
use super::watching::Watching;
use super::workload::Ranges;
use super::workload::Work;

/// Where a member listens when nothing is said.
const ENDPOINT: &str = "127.0.0.1:2379";

/// Larger values than a server takes in one request (1.5 MiB) are typing mistakes.
const BYTES_MAX: i64 = 16 << 20;

/// Puts load on an etcd and measures it.
#[derive(Debug, Parser)]
#[command(name = "quorate bench", disable_help_subcommand = true)]
pub struct Options {
    #[command(flatten)]
    pub common: Common,
    #[command(subcommand)]
    pub command: Command,
}

/// For every workload, in front of its name or behind it.
#[derive(Debug, Args)]
pub struct Common {
    /// Addresses of members; connections take them in turn [default: 127.0.0.1:2379]
    #[arg(long, global = true, value_delimiter = ',')]
    pub endpoints: Vec<String>,
    /// Connections [default: 1]
    #[arg(long, global = true, value_parser = clap::value_parser!(u32).range(1..=65_536))]
    pub conns: Option<u32>,
    /// Clients that each send one request after the other, spread over the connections [default: as --conns]
    #[arg(long, global = true, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    pub clients: Option<u32>,
    /// Send everything to the member that leads
    #[arg(long, global = true)]
    pub target_leader: bool,
    /// Processes whose CPU time and memory are shown: the servers, when they run on this machine
    #[arg(long = "pid", global = true, value_delimiter = ',')]
    pub pids: Vec<u32>,
    /// Measure first what this machine and client allow: a service without work, and one that only syncs a file
    #[arg(long, global = true)]
    pub floors: bool,
    /// One JSON object instead of text
    #[arg(long, global = true)]
    pub json: bool,
    /// Threads that make the load [default: one a core]
    #[arg(long, global = true, value_parser = clap::value_parser!(u16).range(1..=1024))]
    pub threads: Option<u16>,
}

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Writes one key a request
    Put(PutOptions),
    /// Reads one key, a range, or a whole list in pages
    Range(RangeOptions),
    /// Writes keys in transactions
    #[command(alias = "txn-put")]
    Txn(TxnOptions),
    /// Reads and writes
    #[command(alias = "txn-mixed")]
    Mixed(MixedOptions),
    /// Grants leases
    LeaseGrant(LeaseGrantOptions),
    /// Renews leases, each renewal on a stream of its own
    LeaseKeepalive(LeaseKeepaliveOptions),
    /// Puts before the eyes of watchers: how many events come to them, and how late
    Watch(WatchOptions),
    /// The same at a pace that a server keeps up with: how late events are when nothing piles up
    WatchLatency(WatchLatencyOptions),
    /// Starts two programs in turn and compares them under the same workloads
    Compare(CompareOptions),
    /// The service without work behind --floors; ends with its standard input
    #[command(name = super::floors::WORD, hide = true)]
    Floor {
        port: u16,
        /// Where to sync a file before each answer
        dir: Option<PathBuf>,
    },
}

/// How much and how fast.
#[derive(Debug, Args)]
pub struct Pace {
    /// Requests in all
    #[arg(long, default_value_t = 10_000)]
    pub total: u64,
    /// Requests a second at most; 0 is no limit. With a limit, latency counts from the moment a request was due
    #[arg(long, default_value_t = 0)]
    pub rate: u64,
}

/// Which keys.
#[derive(Debug, Args)]
pub struct KeyOptions {
    /// Bytes of a key
    #[arg(long, default_value_t = 8, value_parser = clap::value_parser!(i64).range(1..=BYTES_MAX))]
    pub key_size: i64,
    /// Different keys [default: 1; with --sequential-keys as --total]
    #[arg(long)]
    pub key_space_size: Option<u64>,
    /// Keys in their order, not at random
    #[arg(long, num_args = 0..=1, require_equals = true, action = ArgAction::Set, default_value_t = false,
          default_missing_value = "true")]
    pub sequential_keys: bool,
}

#[derive(Debug, Args)]
pub struct PutOptions {
    #[command(flatten)]
    pub keys: KeyOptions,
    /// Bytes of a value
    #[arg(long, default_value_t = 8, value_parser = clap::value_parser!(i64).range(0..=BYTES_MAX))]
    pub val_size: i64,
    #[command(flatten)]
    pub pace: Pace,
}

/// Which guarantee reads have.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Consistency {
    /// Linearizable
    L,
    /// Serializable
    S,
}

#[derive(Debug, Args)]
pub struct RangeOptions {
    /// The key to read [default: a key of the key space, as `put` names them]
    pub key: Option<String>,
    /// The end of the range, itself not in it
    pub end_range: Option<String>,
    /// Linearizable (l) or serializable (s)
    #[arg(long, value_enum, default_value = "l")]
    pub consistency: Consistency,
    /// Keys in one answer at most; 0 is no limit
    #[arg(long, default_value_t = 0, value_parser = clap::value_parser!(i64).range(0..))]
    pub limit: i64,
    /// Read on to the end of the range in pages of --limit keys; one request is then a whole list
    #[arg(long, requires = "limit")]
    pub pages: bool,
    #[command(flatten)]
    pub keys: KeyOptions,
    #[command(flatten)]
    pub pace: Pace,
}

#[derive(Debug, Args)]
pub struct TxnOptions {
    /// Puts in one transaction
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u64).range(1..=100_000))]
    pub txn_ops: u64,
    #[command(flatten)]
    pub put: PutOptions,
}

#[derive(Debug, Args)]
pub struct MixedOptions {
    /// Reads for each write
    #[arg(long, default_value_t = 1.0)]
    pub rw_ratio: f64,
    /// Of the reads: linearizable (l) or serializable (s)
    #[arg(long, value_enum, default_value = "l")]
    pub consistency: Consistency,
    /// Keys that a read returns at most, from its key on; 0 reads one key
    #[arg(long, default_value_t = 0, value_parser = clap::value_parser!(i64).range(0..))]
    pub limit: i64,
    #[command(flatten)]
    pub put: PutOptions,
}

#[derive(Debug, Args)]
pub struct LeaseGrantOptions {
    /// Seconds that a lease lives
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(i64).range(1..=9_000_000_000))]
    pub ttl: i64,
    #[command(flatten)]
    pub pace: Pace,
}

#[derive(Debug, Args)]
pub struct LeaseKeepaliveOptions {
    /// Different leases
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u64).range(1..=1_000_000))]
    pub leases: u64,
    #[command(flatten)]
    pub pace: Pace,
}

#[derive(Debug, Args)]
pub struct WatchOptions {
    /// Streams, spread over the connections
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    pub streams: u32,
    /// Watchers on each stream
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    pub watch_per_stream: u32,
    /// Keys that are watched, the first of the key space; watchers take them in turn
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u64).range(1..=100_000_000))]
    pub watched_key_total: u64,
    /// Puts in all
    #[arg(long, default_value_t = 1000, value_parser = clap::value_parser!(u64).range(1..=10_000_000))]
    pub put_total: u64,
    /// Puts a second at most; 0 is no limit
    #[arg(long, default_value_t = 0)]
    pub put_rate: u64,
    /// Have the pair before each change sent along
    #[arg(long)]
    pub prevkv: bool,
    /// Bytes of a key
    #[arg(long, default_value_t = 32, value_parser = clap::value_parser!(i64).range(1..=BYTES_MAX))]
    pub key_size: i64,
    /// Different keys that are written [default: as --watched-key-total]
    #[arg(long)]
    pub key_space_size: Option<u64>,
    /// Keys in their order, not at random
    #[arg(long)]
    pub sequential_keys: bool,
    /// Bytes of a value; the first eight name the put
    #[arg(long, default_value_t = 32, value_parser = clap::value_parser!(i64).range(8..=BYTES_MAX))]
    pub val_size: i64,
}

#[derive(Debug, Args)]
pub struct WatchLatencyOptions {
    /// Streams, spread over the connections
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    pub streams: u32,
    /// Watchers on each stream
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    pub watchers_per_stream: u32,
    /// Puts in all
    #[arg(long, default_value_t = 1000, value_parser = clap::value_parser!(u64).range(1..=10_000_000))]
    pub put_total: u64,
    /// Puts a second at most; 0 is no limit
    #[arg(long, default_value_t = 100)]
    pub put_rate: u64,
    /// Have the pair before each change sent along
    #[arg(long)]
    pub prevkv: bool,
    /// Bytes of a key
    #[arg(long, default_value_t = 32, value_parser = clap::value_parser!(i64).range(1..=BYTES_MAX))]
    pub key_size: i64,
    /// Bytes of a value; the first eight name the put
    #[arg(long, default_value_t = 32, value_parser = clap::value_parser!(i64).range(8..=BYTES_MAX))]
    pub val_size: i64,
}

#[derive(Debug, Args)]
pub struct CompareOptions {
    /// The etcd to compare with
    #[arg(long)]
    pub against: PathBuf,
    /// The program to judge [default: this one]
    #[arg(long)]
    pub binary: Option<PathBuf>,
    /// Only clusters of so many members: 1 or 3 [default: the whole table, which has both]
    #[arg(long, value_parser = members)]
    pub members: Option<usize>,
    /// Rounds; each measures both programs, in alternating order
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub rounds: u32,
    /// A fiftieth of the work: shows that it runs, not how fast
    #[arg(long)]
    pub quick: bool,
    /// Only these cases
    #[arg(long, value_enum, value_delimiter = ',')]
    pub cases: Vec<Case>,
    /// Also write the table to this Markdown file; where it has the two marker lines, between them
    #[arg(long)]
    pub out: Option<PathBuf>,
    /// Where data directories are made; should lie on the disk that counts [default: the system's temporary directory]
    #[arg(long)]
    pub dir: Option<PathBuf>,
}

/// A command line that can be read but means nothing.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MeaningError {
    #[error(transparent)]
    Keys(#[from] keys::KeysError),
    #[error("{clients} clients cannot use {conns} connections: --clients must be at least --conns")]
    IdleConnections { clients: u32, conns: u32 },
    #[error("--rw-ratio must be a number of reads for each write, 0 or more")]
    Ratio,
    #[error("--total must be at least 1")]
    Nothing,
    #[error("--pages needs a --limit of at least 1")]
    NoPageSize,
    #[error("{0} has no floor: the service behind --floors knows only keys")]
    NoFloor(&'static str),
    #[error("compare starts its own servers: --{0} has no meaning there")]
    NotForCompare(&'static str),
    #[error("leader-kill is for members that elect another leader: --members must be 3")]
    NobodyElseLeads,
}

fn members(text: &str) -> Result<usize, String> {
    match text {
        "1" => Ok(1),
        "3" => Ok(3),
        _ => Err("must be 1 or 3".to_owned()),
    }
}

impl Common {
    /// Where to connect.
    pub fn addresses(&self) -> Vec<String> {
        if self.endpoints.is_empty() { vec![ENDPOINT.to_owned()] } else { self.endpoints.clone() }
    }

    fn load(&self, name: &'static str, work: Work, pace: &Pace) -> Result<Load, MeaningError> {
        let conns = self.conns.unwrap_or(1);
        let clients = self.clients.unwrap_or(conns);
        if clients < conns {
            return Err(MeaningError::IdleConnections { clients, conns });
        }
        if pace.total == 0 {
            return Err(MeaningError::Nothing);
        }
        if self.floors && !work.has_floors() {
            return Err(MeaningError::NoFloor(name));
        }
        Ok(Load { name, conns, clients, total: pace.total, rate: pace.rate, work })
    }

    /// Refuses what only a workload on somebody else's server can use.
    pub fn check_for_compare(&self) -> Result<(), MeaningError> {
        let given = [
            ("endpoints", !self.endpoints.is_empty()),
            ("conns", self.conns.is_some()),
            ("clients", self.clients.is_some()),
            ("target-leader", self.target_leader),
            ("pid", !self.pids.is_empty()),
        ];
        match given.into_iter().find(|(_, given)| *given) {
            Some((name, _)) => Err(MeaningError::NotForCompare(name)),
            None => Ok(()),
        }
    }
}

impl CompareOptions {
    /// Refuses cases that the clusters asked for cannot show.
    pub fn check(&self) -> Result<(), MeaningError> {
        match self.members {
            Some(1) if self.cases.contains(&Case::LeaderKill) => Err(MeaningError::NobodyElseLeads),
            _ => Ok(()),
        }
    }
}

impl KeyOptions {
    fn keys(&self, requests: u64) -> Result<Keys, MeaningError> {
        // etcd's tool writes the one same key over and over when told only --sequential-keys: nobody means that.
        let space = self.key_space_size.unwrap_or(if self.sequential_keys { requests } else { 1 });
        Ok(Keys::new(size(self.key_size), space, self.sequential_keys)?)
    }
}

fn size(given: i64) -> usize {
    usize::try_from(given).expect("the range of the option was checked")
}

impl PutOptions {
    fn load(&self, common: &Common) -> Result<Load, MeaningError> {
        let work = Work::Put { keys: self.keys.keys(self.pace.total)?, value: keys::value(size(self.val_size)) };
        common.load("put", work, &self.pace)
    }
}

impl TxnOptions {
    fn load(&self, common: &Common) -> Result<Load, MeaningError> {
        let keys = self.put.keys.keys(self.put.pace.total.saturating_mul(self.txn_ops))?;
        let work = Work::Txn { keys, value: keys::value(size(self.put.val_size)), ops: self.txn_ops };
        common.load("txn", work, &self.put.pace)
    }
}

impl MixedOptions {
    fn load(&self, common: &Common) -> Result<Load, MeaningError> {
        if !(self.rw_ratio.is_finite() && self.rw_ratio >= 0.0) {
            return Err(MeaningError::Ratio);
        }
        let work = Work::Mixed {
            keys: self.put.keys.keys(self.put.pace.total)?,
            value: keys::value(size(self.put.val_size)),
            reads: self.rw_ratio / (1.0 + self.rw_ratio),
            limit: self.limit,
            serializable: self.consistency == Consistency::S,
        };
        common.load("mixed", work, &self.put.pace)
    }
}

impl RangeOptions {
    fn load(&self, common: &Common) -> Result<Load, MeaningError> {
        let end = self.end_range.as_ref().map(|end| end.clone().into());
        let which = match &self.key {
            Some(key) => Ranges::Fixed { key: key.clone().into(), end: end.unwrap_or_default() },
            None => Ranges::Keys(self.keys.keys(self.pace.total)?),
        };
        let serializable = self.consistency == Consistency::S;
        if !self.pages {
            return common.load("range", Work::Range { which, limit: self.limit, serializable }, &self.pace);
        }
        if self.limit == 0 {
            return Err(MeaningError::NoPageSize);
        }
        common.load("range", Work::List { from: which.to_end(), limit: self.limit, serializable }, &self.pace)
    }
}

impl WatchOptions {
    fn watching(&self, common: &Common) -> Result<Watching, MeaningError> {
        if common.floors {
            return Err(MeaningError::NoFloor("watch"));
        }
        let conns = common.conns.unwrap_or(1);
        let space = self.key_space_size.unwrap_or(self.watched_key_total).max(self.watched_key_total);
        Ok(Watching {
            name: "watch",
            conns,
            streams: self.streams,
            watchers_per_stream: self.watch_per_stream,
            watched: self.watched_key_total,
            prev_kv: self.prevkv,
            clients: common.clients.unwrap_or(1),
            puts: self.put_total,
            rate: self.put_rate,
            keys: Keys::new(size(self.key_size), space, self.sequential_keys)?,
            value_bytes: size(self.val_size),
        })
    }
}

impl WatchLatencyOptions {
    fn watching(&self, common: &Common) -> Result<Watching, MeaningError> {
        let watch = WatchOptions {
            streams: self.streams,
            watch_per_stream: self.watchers_per_stream,
            watched_key_total: 1,
            put_total: self.put_total,
            put_rate: self.put_rate,
            prevkv: self.prevkv,
            key_size: self.key_size,
            key_space_size: None,
            sequential_keys: true,
            val_size: self.val_size,
        };
        Ok(Watching { name: "watch-latency", ..watch.watching(common)? })
    }
}

impl Command {
    /// The watchers that a workload means; `None` for the commands that have none.
    pub fn watching(&self, common: &Common) -> Option<Result<Watching, MeaningError>> {
        match self {
            Command::Watch(watch) => Some(watch.watching(common)),
            Command::WatchLatency(watch) => Some(watch.watching(common)),
            _ => None,
        }
    }

    /// The load that a workload means; `None` for the commands that are none.
    pub fn load(&self, common: &Common) -> Option<Result<Load, MeaningError>> {
        match self {
            Command::Put(put) => Some(put.load(common)),
            Command::Range(range) => Some(range.load(common)),
            Command::Txn(txn) => Some(txn.load(common)),
            Command::Mixed(mixed) => Some(mixed.load(common)),
            Command::LeaseGrant(LeaseGrantOptions { ttl, pace }) => {
                Some(common.load("lease-grant", Work::Grant { ttl: *ttl }, pace))
            }
            Command::LeaseKeepalive(LeaseKeepaliveOptions { leases, pace }) => {
                Some(common.load("lease-keepalive", Work::KeepAlive { leases: *leases }, pace))
            }
            Command::Watch(_) | Command::WatchLatency(_) | Command::Compare(_) | Command::Floor { .. } => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn load(line: &str) -> Result<Load, String> {
        let words = std::iter::once("bench").chain(line.split_whitespace());
        let options = Options::try_parse_from(words).map_err(|error| error.to_string())?;
        let load = options.command.load(&options.common).unwrap_or_else(|| panic!("{line} is no workload"));
        load.map_err(|error| error.to_string())
    }

    #[test]
    fn the_tree_of_options_is_sound() {
        <Options as clap::CommandFactory>::command().debug_assert();
    }

    #[test]
    fn a_command_line_for_etcds_tool_is_understood() {
        let line = "--endpoints=h:1,h:2 --conns=10 --clients=100 put --key-size=8 --sequential-keys --total=500 \
                    --val-size=256 --rate=1000";
        let load = load(line).expect("understood");
        assert_eq!((load.conns, load.clients, load.total, load.rate), (10, 100, 500, 1000));
        let Work::Put { keys, value } = load.work else { panic!("{:?}", load.work) };
        assert_eq!((keys, value.len()), (Keys { size: 8, space: 500, sequential: true }, 256));
    }

    #[test]
    fn defaults_are_those_of_etcds_tool() {
        let put = load("put").expect("understood");
        assert_eq!((put.conns, put.clients, put.total, put.rate), (1, 1, 10_000, 0));
        let Work::Put { keys, value } = put.work else { panic!("{:?}", put.work) };
        assert_eq!((keys, value.len()), (Keys { size: 8, space: 1, sequential: false }, 8));
        assert_eq!(load("put --sequential-keys=false").map(|load| load.total), Ok(10_000));
        assert_eq!(load("--conns 4 put").map(|load| load.clients), Ok(4));
    }

    #[test]
    fn reads_are_of_one_key_a_range_or_pages() {
        let work = |line: &str| load(line).expect("understood").work;
        let fixed = |key: &'static str, end: &'static str| Ranges::Fixed { key: key.into(), end: end.into() };
        let check = |line: &str, which: Ranges, limit: i64, serializable: bool| {
            assert_eq!(work(line), Work::Range { which, limit, serializable }, "{line}");
        };
        check("range a", fixed("a", ""), 0, false);
        check("range a b --consistency=s", fixed("a", "b"), 0, true);
        check("range a b --limit 5", fixed("a", "b"), 5, false);
        let keys = Keys { size: 8, space: 9, sequential: false };
        check("range --key-space-size 9", Ranges::Keys(keys), 0, false);
        let list = |line: &str, key: &'static str, end: &'static str| {
            let from = (key.into(), end.into());
            assert_eq!(work(line), Work::List { from, limit: 5, serializable: false }, "{line}");
        };
        list("range --pages --limit 5", "\0", "\0");
        list("range a --pages --limit 5", "a", "\0");
        list("range a b --pages --limit 5", "a", "b");
    }

    #[test]
    fn what_means_nothing_is_refused() {
        let check = |line: &str, expected: &str| {
            let error = load(line).expect_err("must be refused");
            assert!(error.contains(expected), "{line}: {error}");
        };
        check("--conns 5 --clients 2 put", "--clients must be at least --conns");
        check("put --total 0", "--total must be at least 1");
        check("put --key-size 2 --key-space-size 1000", "need --key-size 3");
        check("put --val-size=-1", "--val-size");
        check("--conns 0 put", "--conns");
        check("range --pages", "--limit");
        check("range a --pages --limit 0", "--limit");
        check("range a b c", "unexpected argument");
        check("range a --consistency x", "--consistency");
        check("mixed --rw-ratio=-1", "--rw-ratio");
        check("mixed --rw-ratio NaN", "--rw-ratio");
        check("compare --against x --members 2", "must be 1 or 3");
        check("gut", "unrecognized subcommand");
        check("--floors lease-keepalive", "lease-keepalive has no floor");
        check("lease-grant --ttl 0", "--ttl");
    }

    #[test]
    fn watchers_are_where_etcds_tool_has_them() {
        let watching = |line: &str| {
            let words = std::iter::once("bench").chain(line.split_whitespace());
            let options = Options::try_parse_from(words).map_err(|error| error.to_string())?;
            let watching =
                options.command.watching(&options.common).unwrap_or_else(|| panic!("{line} watches nothing"));
            watching.map_err(|error| error.to_string())
        };
        let line = "--conns 2 watch --streams 3 --watch-per-stream 4 --watched-key-total 5 --put-total 6 --put-rate 7";
        let found = watching(line).expect("understood");
        assert_eq!((found.conns, found.streams, found.watchers_per_stream, found.watched), (2, 3, 4, 5));
        assert_eq!((found.puts, found.rate, found.clients, found.keys.space), (6, 7, 1, 5));
        assert_eq!(watching("watch --key-space-size 9").expect("understood").keys.space, 9);
        let found = watching("watch-latency --watchers-per-stream 2").expect("understood");
        assert_eq!((found.name, found.streams, found.watchers_per_stream, found.rate), ("watch-latency", 10, 2, 100));
        assert!(watching("watch --val-size 7").is_err_and(|error| error.contains("--val-size")));
        assert!(watching("--floors watch").is_err_and(|error| error.contains("watch has no floor")));
    }

    #[test]
    fn compare_takes_no_address() {
        let check = |line: &str, expected: Result<(), &'static str>| {
            let words = std::iter::once("bench").chain(line.split_whitespace());
            let options = Options::try_parse_from(words).expect("readable");
            assert_eq!(options.common.check_for_compare(), expected.map_err(MeaningError::NotForCompare));
        };
        check("compare --against x", Ok(()));
        check("compare --against x --json --floors", Ok(()));
        check("--endpoints h:1 compare --against x", Err("endpoints"));
        check("compare --against x --conns 5", Err("conns"));
    }

    #[test]
    fn cases_are_refused_where_they_show_nothing() {
        let check = |words: &str, expected: Result<(), MeaningError>| {
            let line = format!("bench compare --against x {words}");
            let options = Options::try_parse_from(line.split_whitespace()).expect("readable");
            let Command::Compare(compare) = options.command else { panic!("{line} compares") };
            assert_eq!(compare.check(), expected, "{words}");
        };
        check("", Ok(()));
        check("--members 1", Ok(()));
        check("--cases leader-kill", Ok(()));
        check("--cases idle,leader-kill --members 3", Ok(()));
        check("--cases idle,leader-kill --members 1", Err(MeaningError::NobodyElseLeads));
    }
}

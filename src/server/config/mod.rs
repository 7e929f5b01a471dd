//! The configuration of a member: `flags` is what may be typed, `typed` what was, `Config` what is meant.
//!
//! ```text
//!  words, variables ──▶ typed (kinds, Go's syntax) ──▶ Config (units, defaults, combinations) ──▶ run
//!                            └─▶ Exit 2: usage              └─▶ Exit 1: a log line
//! ```

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

use crate::common::logging::LogConfig;
use crate::common::tls::Settings;
use crate::common::urls::Urls;
use crate::server::config::exit::Exit;
use crate::server::config::features::FeatureGates;
use crate::server::config::initial_cluster::InitialCluster;
use crate::server::config::typed::Typed;

pub mod compaction;
pub mod exit;
pub mod features;
pub mod flags;
pub mod help;
pub mod initial_cluster;
pub mod typed;
pub mod value;
mod verify;

pub use compaction::AutoCompaction;

/// Whose command line it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Personality {
    /// Started as `etcd`: the same option by flag and environment is fatal.
    Etcd,
    /// `quorate server`: a flag wins over the environment.
    Native,
}

/// Something to log once the log is open.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Note {
    /// `info` or `warn`.
    pub level: &'static str,
    pub message: String,
    pub fields: Vec<(String, String)>,
}

/// `--initial-cluster-state`. Means nothing once there is a log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ClusterState {
    New,
    Existing,
}

/// A member's settings, checked against each other.
#[derive(Clone, Debug)]
pub struct Config {
    pub name: String,
    pub data_dir: PathBuf,
    /// Elsewhere than inside `data_dir`.
    pub wal_dir: Option<PathBuf>,

    pub listen_peer_urls: Urls,
    pub listen_client_urls: Urls,
    /// When not empty: HTTP is served here, and `listen_client_urls` serve gRPC alone.
    pub listen_client_http_urls: Urls,
    pub listen_metrics_urls: Urls,
    pub advertise_peer_urls: Urls,
    pub advertise_client_urls: Urls,
    pub reuse_port: bool,
    pub reuse_address: bool,

    pub client_tls: Settings,
    pub peer_tls: Settings,
    pub auto_tls: bool,
    pub peer_auto_tls: bool,
    /// Years.
    pub self_signed_cert_validity: u64,

    /// As typed: it is only read when there is no log yet (`initial_cluster()`).
    pub initial_cluster_text: String,
    pub initial_cluster_state: ClusterState,
    pub initial_cluster_token: String,

    /// One raft tick.
    pub heartbeat_interval: Duration,
    pub election_timeout: Duration,
    pub initial_election_tick_advance: bool,
    pub pre_vote: bool,
    pub strict_reconfig_check: bool,
    /// Go on alone, without the members that are lost for good. Only with data of an earlier start.
    pub force_new_cluster: bool,
    pub max_learners: usize,
    pub raft_read_timeout: Duration,
    pub raft_write_timeout: Duration,

    /// Applied entries between two snapshot marks; never 0.
    pub snapshot_count: u64,
    pub snapshot_catchup_entries: u64,
    /// As typed: 0 is the default, negative is none.
    pub quota_backend_bytes: i64,
    pub auto_compaction: Option<AutoCompaction>,
    /// Revisions in one step of a compaction; never 0.
    pub compaction_batch_limit: usize,
    pub compaction_sleep_interval: Duration,
    /// Between two comparisons of the members; zero for none.
    pub corrupt_check_time: Duration,
    pub compact_hash_check_time: Duration,
    /// False loses acknowledged writes in a power failure.
    pub fsync: bool,

    pub max_txn_ops: usize,
    pub max_request_bytes: usize,
    pub max_concurrent_streams: u32,
    /// Between progress notices of a watch stream.
    pub watch_progress_interval: Duration,
    pub grpc_keepalive_min_time: Duration,
    /// `None` sends no pings.
    pub grpc_keepalive_interval: Option<Duration>,
    pub grpc_keepalive_timeout: Duration,
    /// Both sets: `*` is everybody.
    pub cors: BTreeSet<String>,
    pub host_whitelist: BTreeSet<String>,

    pub extensive_metrics: bool,
    pub log: LogConfig,
    pub warning_unary_request: Duration,
    pub warning_apply: Duration,
    pub features: FeatureGates,

    /// What the operator should read in the log.
    pub notes: Vec<Note>,
    /// For stderr at once, before the log is open; may be empty.
    pub warnings: String,
}

impl Config {
    /// Reads a command line (without the program's name) and the environment. The error says how the process ends.
    pub fn from_args(
        words: &[OsString],
        env: impl Iterator<Item = (String, String)>,
        personality: Personality,
    ) -> Result<Config, Exit> {
        let typed = Typed::read(words, env, personality)?;
        let warnings = typed.warnings.clone();
        verify::config(typed).map_err(|exit| Exit { stderr: format!("{warnings}{}", exit.stderr), ..exit })
    }

    /// RT: how long a request may take (server.md 12).
    pub fn request_timeout(&self) -> Duration {
        Duration::from_secs(5) + 2 * self.election_timeout
    }

    /// Ticks without a leader before an election.
    pub fn election_ticks(&self) -> usize {
        (self.election_timeout.as_millis() / self.heartbeat_interval.as_millis().max(1)) as usize
    }

    /// The first members. An error is what etcd reports as `discovery failed` (`Exit::discovery_failed`).
    pub fn initial_cluster(&self) -> Result<InitialCluster, String> {
        initial_cluster::parse(&self.initial_cluster_text)
    }

    /// Logs the notes.
    pub fn log_notes(&self) {
        for note in &self.notes {
            let fields: Vec<String> = note.fields.iter().map(|(name, text)| format!("{name}={text}")).collect();
            let detail = fields.join(" ");
            match (note.level, detail.is_empty()) {
                ("warn", true) => tracing::warn!("{}", note.message),
                ("warn", false) => tracing::warn!(detail, "{}", note.message),
                (_, true) => tracing::info!("{}", note.message),
                (_, false) => tracing::info!(detail, "{}", note.message),
            }
        }
    }
}

#[cfg(test)]
mod tests;

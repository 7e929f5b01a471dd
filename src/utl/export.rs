//! `export`: from a stopped member's directory, one that etcd opens as the same member of the same cluster: the way back.
//!
//! What is committed is applied and written as etcd's database, with a `.snap` file; the log begins there and holds what raft
//! has promised beyond: term, vote, and every entry that is not committed yet.

use std::path::Path;
use std::path::PathBuf;
use std::sync::Arc;

use bytes::Bytes;

use crate::common::ids::MemberId;
use crate::common::version::Version;
use crate::ctl::flags::Flag;
use crate::ctl::flags::Kind;
use crate::ctl::go_text;
use crate::proto::raftpb::Entry;
use crate::proto::raftpb::HardState;
use crate::proto::walpb;
use crate::server::apply::alarm::AlarmsHandle;
use crate::server::apply::decode::Command as Applied;
use crate::server::apply::decode::Request;
use crate::server::apply::decode::decode;
use crate::server::apply::machine::Machine;
use crate::server::apply::machine::MachineConfig;
use crate::server::apply::published::Published;
use crate::server::apply::quota::Space;
use crate::server::checkpoint::Bucket;
use crate::server::checkpoint::Buckets;
use crate::server::cluster::handle::ClusterHandle;
use crate::server::cluster::membership::CLUSTER_VERSION_KEY;
use crate::server::cluster::membership::Membership;
use crate::server::cluster::v2_store;
use crate::server::raft::wal::WalOptions;
use crate::server::run::ports::ViewRecords;
use crate::server::run::storage::Directories;
use crate::server::run::storage::Restored;
use crate::server::run::storage::Storage;
use crate::server::snapshot::contents::Frozen;
use crate::server::snapshot::contents::STORAGE_VERSION;
use crate::server::snapshot::install;
use crate::server::snapshot::member_dir::Draft;
use crate::server::snapshot::member_dir::Layout;
use crate::server::snapshot::member_dir::Log;
use crate::utl::Session;
use crate::utl::command::Command;
use crate::utl::command::Reach;
use crate::utl::error::UtlError;

pub static COMMAND: Command = Command {
    flags: &FLAGS,
    required: &["data-dir", "output"],
    reach: Reach::Native,
    ..Command::leaf("export", "Makes a directory that etcd opens from a stopped member's", run)
};

static FLAGS: [Flag; 5] = [
    Flag::new("data-dir", Kind::Text, "", "data directory of the stopped member (required)"),
    Flag::new("output", Kind::Text, "", "data directory to make for etcd (required)"),
    Flag::new("output-wal-dir", Kind::Text, "", "directory of etcd's log, if it is not to lie in its data directory"),
    Flag::new("target-version", Kind::Text, "", "release line of the etcd that is to open it, X.Y; else the cluster's"),
    Flag::new("wal-dir", Kind::Text, "", "directory of the member's log, if it does not lie in the data directory"),
];

/// ceil(1.5 x etcd's default election timeout): what a server would raise shorter leases to.
const TTL_SECONDS_MIN: i64 = 2;

/// The oldest release line whose directories we know.
const OLDEST: Version = Version::new(3, 4, 0);

/// The first release line that notes its version in the database.
const FIRST_WITH_STORAGE_VERSION: Version = Version::new(3, 6, 0);

fn run(session: &mut Session<'_>) -> Result<(), UtlError> {
    let path = |name: &str| Some(session.values.text(name)).filter(|text| !text.is_empty()).map(PathBuf::from);
    let data = path("data-dir").unwrap_or_default();
    let output = path("output").unwrap_or_default();
    let (wal, output_wal) = (path("wal-dir"), path("output-wal-dir"));
    let target = match session.values.text("target-version") {
        "" => None,
        text => Some(parse_line(text)?),
    };
    if !Draft::is_free(&output).unwrap_or(false) {
        let quoted = go_text::quote(output.display().to_string().as_bytes());
        return Err(UtlError::failed(format!("output {quoted} not empty or could not be read")));
    }
    if let Some(wal) = output_wal.as_ref().filter(|wal| wal.exists()) {
        let quoted = go_text::quote(wal.display().to_string().as_bytes());
        return Err(UtlError::failed(format!("output-wal-dir {quoted} exists")));
    }
    let directories = Directories::new(&data, wal.as_deref());
    let database = directories.snap.join(install::DATABASE);
    if !database.exists() {
        let text =
            format!("{} is no member's data directory of ours: {} is not there", data.display(), database.display());
        return Err(UtlError::failed(text));
    }
    let storage = Storage::open(directories, WalOptions { allocate_ahead: false, ..WalOptions::default() })?;
    let config = MachineConfig { space: Space::new(-1), ttl_seconds_min: TTL_SECONDS_MIN, learners_max: usize::MAX };
    let exported = Exported::of(storage.restore(config)?, target)?;
    exported.write(&output, output_wal.as_deref())?;
    session.print(&exported.summary(&output))
}

/// Reads `X.Y`.
fn parse_line(text: &str) -> Result<Version, UtlError> {
    let version = Version::parse(&format!("{text}.0")).ok_or_else(|| {
        UtlError::bad_arguments(format!("wrong target version format, expected \"X.Y\", got {text:?}"))
    })?;
    if version < OLDEST {
        let text = format!("target version \"{text}\" not supported. Minimal \"{}.{}\"", OLDEST.major, OLDEST.minor);
        return Err(UtlError::bad_arguments(text));
    }
    Ok(version)
}

/// What goes into the directory.
struct Exported {
    state: Frozen,
    v2_store: Bytes,
    log: Log,
    revision: i64,
    version: Option<Version>,
    members: usize,
    is_lowered: bool,
}

impl Exported {
    fn of(restored: Restored, target: Option<Version>) -> Result<Exported, UtlError> {
        let Restored { local, cluster, mut machine, start, .. } = restored;
        let published = Published::new(
            ClusterHandle::new(cluster, local),
            AlarmsHandle::default(),
            machine.config().space.clone(),
            machine.store().views(),
        );
        let entries = commit_alone(&mut machine, local, start.entries)?;
        let commit = start.hard_state.commit.max(machine.applied().index);
        machine.take_batch();
        machine.publish_all(&published);
        let frozen = machine.freeze();
        let applied = frozen.applied;
        if applied.index == 0 {
            return Err(UtlError::failed("nothing was ever applied here: let etcd join the cluster instead"));
        }
        let mut buckets = frozen.buckets;
        let is_lowered = lower(&mut buckets, machine.membership().version(), target)?;
        if is_lowered && let Some(entry) = entries.iter().find(|entry| !every_etcd_knows(entry)) {
            let text = format!(
                "log entry {} is not committed yet, and an older etcd may not know it: start the cluster, let it agree, \
                 and stop it again",
                entry.index
            );
            return Err(UtlError::failed(text));
        }
        let membership = Membership::restore(&buckets, usize::MAX)?;
        let snapshot =
            walpb::Snapshot { index: applied.index, term: applied.term, conf_state: Some(applied.conf_state.clone()) };
        Ok(Exported {
            v2_store: Bytes::from(v2_store::to_json(&membership)),
            log: Log {
                metadata: walpb::Metadata { node_id: local.0, cluster_id: cluster.0 },
                hard_state: HardState { commit, ..start.hard_state },
                snapshot,
                entries,
            },
            revision: machine.revision(),
            version: membership.version(),
            members: membership.members().count(),
            is_lowered,
            state: Frozen { records: Arc::new(ViewRecords(frozen.view)), buckets, applied },
        })
    }

    fn write(&self, output: &Path, wal: Option<&Path>) -> Result<(), UtlError> {
        let draft = Draft::begin(output, wal)?;
        draft.write_state(Layout::Etcd, &self.state, self.v2_store.clone())?;
        draft.write_log(&self.log)?;
        Ok(draft.finish()?)
    }

    fn summary(&self, output: &Path) -> String {
        let Exported { revision, log, version, members, is_lowered, .. } = self;
        let opens = match version {
            Some(version) => format!("etcd {}.{} opens it", version.major, version.minor),
            None => "any etcd opens it".to_owned(),
        };
        let mut text = format!(
            "Exported revision {revision} into {}: member {:x} of the cluster {:x}, {opens}\n",
            output.display(),
            log.metadata.node_id,
            log.metadata.cluster_id
        );
        if *is_lowered && *members > 1 {
            text.push_str(&format!(
                "The cluster version was lowered here: export all {members} members so, and start none before\n"
            ));
        }
        text
    }
}

/// Applies what is not committed as far as this member alone is the quorum, for then its own log commits it: a lone voter that
/// was killed has acknowledged entries of which its log does not say yet that they are committed. What is left behind them.
fn commit_alone(machine: &mut Machine, local: MemberId, entries: Vec<Entry>) -> Result<Vec<Entry>, UtlError> {
    let applied = machine.applied().index;
    let mut waiting = entries.into_iter().filter(|entry| entry.index > applied);
    // Asked before each: a change among them may bring in a second voter.
    while machine.applied().conf_state.voters == [local.0]
        && let Some(entry) = waiting.next()
    {
        machine.apply_entry(&entry)?;
    }
    Ok(waiting.collect())
}

/// Whether an entry means the same to every etcd since 3.4: a key, a lease, a member, but no word about versions.
fn every_etcd_knows(entry: &Entry) -> bool {
    match decode(entry) {
        Ok(Applied::Request { request, .. }) => {
            !matches!(request, Request::ClusterVersion(_) | Request::MemberAttributes { .. } | Request::Downgrade(_))
        }
        Ok(Applied::Empty | Applied::Reconfigure { .. }) => true,
        Err(_) => false,
    }
}

/// Makes the state one of an older release line, if that is asked for. Whether it was.
fn lower(buckets: &mut Buckets, version: Option<Version>, target: Option<Version>) -> Result<bool, UtlError> {
    let (Some(version), Some(target)) = (version, target) else { return Ok(false) };
    if target.line() > version.line() {
        let text =
            format!("the cluster version is {version}: export for that, and etcd {target} will raise it by itself");
        return Err(UtlError::failed(text));
    }
    if target.line() == version.line() {
        return Ok(false);
    }
    let text = Bytes::from(target.line().to_string());
    let storage = (Bucket::Meta, Bytes::from_static(STORAGE_VERSION));
    if target >= FIRST_WITH_STORAGE_VERSION {
        buckets.insert(storage, text.clone());
    } else {
        buckets.remove(&storage);
    }
    buckets.insert((Bucket::Cluster, Bytes::from_static(CLUSTER_VERSION_KEY)), text);
    Ok(true)
}

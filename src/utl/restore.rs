//! `snapshot restore`: a member's directory from a snapshot file, as the first state of a new cluster.
//!
//! Keys, revisions, leases, alarms, users and roles stay; the members are those of `--initial-cluster`, with ids that every
//! member computes alike. The log begins with an entry for each of them, and a snapshot record at the last.

use std::fs::File;
use std::ops::ControlFlow;
use std::path::Path;
use std::path::PathBuf;
use std::sync::Arc;

use bytes::Bytes;

use crate::common::failure::Failure;
use crate::common::ids::MemberId;
use crate::common::os_reason::os_reason;
use crate::common::revision::Revision;
use crate::common::urls;
use crate::ctl::flags::Flag;
use crate::ctl::flags::Kind;
use crate::ctl::flags::Values;
use crate::ctl::go_text;
use crate::program::Manner;
use crate::proto::mvccpb::KeyValue;
use crate::proto::raftpb::HardState;
use crate::proto::walpb;
use crate::server::bootstrap;
use crate::server::bootstrap::Identity;
use crate::server::checkpoint::Applied;
use crate::server::checkpoint::Bucket;
use crate::server::checkpoint::Buckets;
use crate::server::checkpoint::Record;
use crate::server::cluster::member::Member;
use crate::server::cluster::membership::Change;
use crate::server::cluster::membership::Membership;
use crate::server::cluster::v2_store;
use crate::server::config::initial_cluster;
use crate::server::mvcc::compaction::SCHEDULED;
use crate::server::raft::bootstrap::bootstrap_entries;
use crate::server::run::identity::resolve;
use crate::server::snapshot::boltfile::reader::Digest;
use crate::server::snapshot::contents::Frozen;
use crate::server::snapshot::contents::Import;
use crate::server::snapshot::contents::RecordSource;
use crate::server::snapshot::contents::import_file;
use crate::server::snapshot::member_dir;
use crate::server::snapshot::member_dir::Draft;
use crate::server::snapshot::member_dir::Layout;
use crate::utl::Session;
use crate::utl::command::Command;
use crate::utl::error::UtlError;
use crate::utl::file;
use crate::utl::log;
use crate::utl::log::Log;

/// Restored members are all voters, however many.
const LEARNERS_MAX: usize = 0;

/// Bytes of a digest, which every snapshot file is at least as long as.
const DIGEST_BYTES: u64 = 32;

pub static COMMAND: Command = Command {
    arguments: "<filename> --data-dir {output dir} [options]",
    flags: &FLAGS,
    ..Command::leaf("restore", "Makes a member's directory from a snapshot file", run)
};

static FLAGS: [Flag; 11] = [
    Flag::new("bump-revision", Kind::Uint, "", "how far to move the newest revision on; needs --mark-compacted"),
    Flag::new("data-dir", Kind::Text, "", "directory to make, NAME.etcd if none is given"),
    Flag::new("format", Kind::Text, "", "whose files to write, quorate or etcd; etcdutl writes etcd's"),
    Flag::new("initial-advertise-peer-urls", Kind::Text, "http://localhost:2380", "peer URLs of this member"),
    Flag::new("initial-cluster", Kind::Text, "default=http://localhost:2380", "members of the new cluster"),
    Flag::new("initial-cluster-token", Kind::Text, "etcd-cluster", "token that member ids are computed with"),
    Flag::new("initial-memory-map-size", Kind::Uint, "10737418240", "taken for etcdutl's sake; nothing is mapped"),
    Flag::new("mark-compacted", Kind::Bool, "", "compact everything below the newest revision; needs --bump-revision"),
    Flag::new("name", Kind::Text, "default", "name of this member"),
    Flag::new("skip-hash-check", Kind::Bool, "", "take a file without digest, or with a wrong one"),
    Flag::new("wal-dir", Kind::Text, "", "directory of the log, if it is not to lie in the data directory"),
];

/// What was asked for.
struct Plan {
    file: PathBuf,
    identity: Identity,
    data_dir: PathBuf,
    wal_dir: Option<PathBuf>,
    layout: Layout,
    skip_hash_check: bool,
    bump: i64,
    memory_map_bytes: u64,
}

fn run(session: &mut Session<'_>) -> Result<(), UtlError> {
    let [file] = &session.words[..] else {
        return Err(UtlError::bad_arguments("snapshot restore requires exactly one argument"));
    };
    let plan = Plan::of(PathBuf::from(file), &session.values, session.manner)?;
    let fields = plan.log_fields();
    let mut more = fields.clone();
    more.push(("initial-memory-map-size", plan.memory_map_bytes.to_string()));
    session.log.info("snapshot/v3_snapshot.go:306", "restoring snapshot", &more);
    let revision = plan.restore(&mut session.log)?;
    session.log.info("snapshot/v3_snapshot.go:334", "restored snapshot", &fields);
    let Plan { identity, data_dir, .. } = &plan;
    session.report(&format!(
        "Restored revision {revision} into {}: member {} of the new cluster {}, {} voters\n",
        data_dir.display(),
        identity.local,
        identity.cluster,
        identity.members.len()
    ))
}

impl Plan {
    /// The checks of the command line, in etcdutl's order.
    fn of(file: PathBuf, values: &Values, manner: Manner) -> Result<Plan, UtlError> {
        let (bump, mark) = (values.uint("bump-revision"), values.bool("mark-compacted"));
        if (bump > 0) != mark {
            return Err(UtlError::bad_arguments("--mark-compacted required if --revision-bump > 0"));
        }
        let layout = match (values.text("format"), manner) {
            ("etcd", _) | ("", Manner::Original) => Layout::Etcd,
            ("quorate", _) | ("", Manner::Native) => Layout::Quorate,
            (other, _) => {
                let text = format!("unknown format {}, expected quorate or etcd", go_text::quote(other.as_bytes()));
                return Err(UtlError::bad_feature(text));
            }
        };
        let advertised = urls::parse_all(values.text("initial-advertise-peer-urls").split(','));
        let advertised = urls::strings(&advertised.map_err(UtlError::failed)?);
        let cluster = initial_cluster::parse(values.text("initial-cluster"));
        // The server's own message names the flag; etcdutl's does not.
        let cluster =
            cluster.map_err(|text| UtlError::failed(text.trim_start_matches("error setting up initial cluster: ")))?;
        let (name, token) = (values.text("name"), values.text("initial-cluster-token"));
        let identity = bootstrap::new_cluster(name, &advertised, &cluster, token, &resolve);
        let identity = identity.map_err(|error| UtlError::failed(error.to_string()))?;
        let data_dir = match values.text("data-dir") {
            "" => PathBuf::from(format!("{name}.etcd")),
            given => PathBuf::from(given),
        };
        let wal_dir = Some(values.text("wal-dir")).filter(|given| !given.is_empty()).map(PathBuf::from);
        if !Draft::is_free(&data_dir).unwrap_or(false) {
            let quoted = go_text::quote(data_dir.display().to_string().as_bytes());
            return Err(UtlError::failed(format!("data-dir {quoted} not empty or could not be read")));
        }
        if let Some(wal_dir) = wal_dir.as_ref().filter(|wal_dir| wal_dir.exists()) {
            let quoted = go_text::quote(wal_dir.display().to_string().as_bytes());
            return Err(UtlError::failed(format!("wal-dir {quoted} exists")));
        }
        let bump = i64::try_from(bump).map_err(|_| UtlError::bad_arguments(format!("cannot move on by {bump}")))?;
        let skip_hash_check = values.bool("skip-hash-check");
        let memory_map_bytes = values.uint("initial-memory-map-size");
        Ok(Plan { file, identity, data_dir, wal_dir, layout, skip_hash_check, bump, memory_map_bytes })
    }

    fn log_fields(&self) -> Vec<(&'static str, String)> {
        let member = self.data_dir.join(member_dir::MEMBER);
        let wal = self.wal_dir.clone().unwrap_or_else(|| member.join("wal"));
        vec![
            ("path", log::text(self.file.display())),
            ("wal-dir", log::text(wal.display())),
            ("data-dir", log::text(self.data_dir.display())),
            ("snap-dir", log::text(member.join("snap").display())),
        ]
    }

    /// Makes the directory: the newest revision in it.
    fn restore(&self, log: &mut Log<'_>) -> Result<i64, UtlError> {
        let import = self.open()?;
        let newest = import.last_revision()?.map_or(0, |revision| revision.main);
        let bumped = match self.bump {
            0 => None,
            bump => Some(
                newest
                    .checked_add(bump)
                    .filter(|bumped| *bumped <= i64::MAX / 2)
                    .ok_or_else(|| UtlError::failed(format!("revision {newest} cannot be moved on by {bump}")))?,
            ),
        };
        log.info("schema/membership.go:139", "Trimming membership information from the backend...", &[]);
        if let Some(bumped) = bumped {
            let number = |number: i64| number.to_string();
            let fields = [
                ("latest-revision", number(newest)),
                ("bump-amount", number(self.bump)),
                ("new-latest-revision", number(bumped)),
            ];
            log.info("snapshot/v3_snapshot.go:373", "bumping latest revision", &fields);
            log.info("snapshot/v3_snapshot.go:389", "marking revision compacted", &[("revision", number(bumped))]);
        }
        let members: Vec<Member> = self
            .identity
            .members
            .iter()
            .map(|founder| Member {
                id: founder.id,
                name: founder.name.clone(),
                peer_urls: founder.peer_urls.clone(),
                ..Member::default()
            })
            .collect();
        for member in &members {
            log.info("membership/cluster.go:424", "added member", &self.added_fields(member));
        }
        let mut buckets = import.buckets.clone();
        new_members(&mut buckets, &members);
        if let Some(bumped) = bumped {
            let mark = Bytes::copy_from_slice(&Revision::new(bumped, 0).storage_key());
            buckets.insert((Bucket::Meta, Bytes::from_static(SCHEDULED.as_bytes())), mark);
        }
        if self.layout == Layout::Quorate {
            // What our own server would refuse to start from is told now.
            Membership::restore(&buckets, LEARNERS_MAX)?;
        }
        let founders: Vec<_> =
            members.iter().map(|member| (member.id, member.name.clone(), member.peer_urls.clone())).collect();
        let (entries, hard_state, conf_state) = bootstrap_entries(&founders);
        let applied = Applied { index: hard_state.commit, term: hard_state.term, conf_state: conf_state.clone() };
        let snapshot = walpb::Snapshot { index: applied.index, term: applied.term, conf_state: Some(conf_state) };
        let first = members.first().map_or(0, |member| member.id.0);
        let new_log = member_dir::Log {
            metadata: walpb::Metadata { node_id: self.identity.local.0, cluster_id: self.identity.cluster.0 },
            hard_state: HardState { vote: first, ..hard_state },
            snapshot,
            entries,
        };
        let state = Frozen { records: Arc::new(Bumped { import, bumped }), buckets, applied };
        let draft = Draft::begin(&self.data_dir, self.wal_dir.as_deref())?;
        draft.write_state(self.layout, &state, Bytes::from(v2_store::to_json(&bare(&members))))?;
        draft.write_log(&new_log)?;
        draft.finish()?;
        Ok(bumped.unwrap_or(newest))
    }

    fn added_fields(&self, member: &Member) -> Vec<(&'static str, String)> {
        let urls: Vec<String> = member.peer_urls.iter().map(log::text).collect();
        vec![
            ("cluster-id", log::text(self.identity.cluster)),
            ("local-member-id", log::text(MemberId(0))),
            ("added-peer-id", log::text(member.id)),
            ("added-peer-peer-urls", format!("[{}]", urls.join(","))),
            ("added-peer-is-learner", member.is_learner.to_string()),
        ]
    }

    /// Opens the snapshot file; its digest decides whether it is one.
    fn open(&self) -> Result<Import, UtlError> {
        let path: &Path = &self.file;
        let file = File::open(path).map_err(|error| UtlError::call("open", path, &error))?;
        let bytes = file.metadata().map_err(|error| UtlError::call("stat", path, &error))?.len();
        if bytes < DIGEST_BYTES {
            let invalid = std::io::Error::from(nix::errno::Errno::EINVAL);
            return Err(UtlError::failed(format!("seek {}: {}", path.display(), os_reason(&invalid))));
        }
        if !self.skip_hash_check {
            match Digest::of(&file, path)? {
                None => return Err(UtlError::failed("snapshot missing hash but --skip-hash-check=false")),
                Some(digest) if !digest.matches() => {
                    let text =
                        format!("expected sha256 {}, got {}", bytes_text(&digest.stored), bytes_text(&digest.computed));
                    return Err(UtlError::failed(text));
                }
                Some(_) => {}
            }
        }
        Ok(import_file(file::bolt(&file, path)?)?)
    }
}

/// Bytes as Go prints a slice of them.
fn bytes_text(bytes: &[u8]) -> String {
    format!("[{}]", bytes.iter().map(u8::to_string).collect::<Vec<_>>().join(" "))
}

/// Puts the new members in the old ones' place, and forgets who was removed.
fn new_members(buckets: &mut Buckets, members: &[Member]) {
    buckets.retain(|(bucket, _), _| !matches!(bucket, Bucket::Members | Bucket::MembersRemoved));
    for member in members {
        buckets.insert((Bucket::Members, Bytes::from(member.id.to_string())), Bytes::from(member.to_json()));
    }
}

/// The members as etcd's old store has them before they have published themselves: without names.
fn bare(members: &[Member]) -> Membership {
    let mut membership = Membership::new(LEARNERS_MAX);
    for member in members {
        let added = membership.change(Change::Add(Member { name: String::new(), ..member.clone() }));
        added.expect("members of one cluster string have ids and URLs of their own: checked with it");
    }
    membership
}

/// A file's records, and behind them the empty one of the revision that was moved on to.
struct Bumped {
    import: Import,
    bumped: Option<i64>,
}

impl RecordSource for Bumped {
    fn records(
        &self,
        first: Revision,
        last: Revision,
        visit: &mut dyn FnMut(Record) -> ControlFlow<()>,
    ) -> Result<(), Failure> {
        let mut stopped = false;
        RecordSource::records(&self.import, first, last, &mut |record| {
            let flow = visit(record);
            stopped = flow.is_break();
            flow
        })?;
        let revision =
            self.bumped.map(|main| Revision::new(main, 0)).filter(|revision| (first..=last).contains(revision));
        if let Some(revision) = revision.filter(|_| !stopped) {
            // Nothing is behind it that a break could spare.
            let _ = visit(Record { revision, tombstone: false, kv: KeyValue::default() });
        }
        Ok(())
    }
}

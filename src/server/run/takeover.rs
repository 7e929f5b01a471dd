//! Taking over a data directory that etcd 3.4 to 3.7 wrote: the same member goes on, on our database.
//!
//! ```text
//! member/snap/db          etcd's database, or <index>.snap.db when etcd died before it took a sent snapshot into use
//!    │ convert ─▶ member/snap/<index>.redb.part          and the state is restored from it and the log, to the last entry
//!    │ back up ─▶ member.etcd/{snap,wal}                 links and copies of what etcd left: the way back
//!    ▼ switch  ─▶ member/snap/db.redb                    one rename; from here on the directory is ours
//! clean up       etcd's database and .snap files go from member/snap
//! ```
//! The log is etcd's own format and stays where it is. Up to the rename nothing of etcd's is changed, so whoever dies before
//! leaves its directory as it was, and the next start begins again. What we could not serve is refused before as well.

use std::collections::BTreeSet;
use std::fs;
use std::fs::File;
use std::fs::OpenOptions;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::path::PathBuf;

use nix::errno::Errno;
use nix::fcntl::Flock;
use nix::fcntl::FlockArg;
use prost::Message;

use crate::common::failure::Failure;
use crate::disk::create_dir_durably;
use crate::disk::real::RealDisk;
use crate::proto::raft_numbers as numbers;
use crate::proto::raftpb::ConfChange;
use crate::proto::raftpb::ConfState;
use crate::proto::raftpb::Entry;
use crate::server::apply::machine::MachineConfig;
use crate::server::checkpoint::Applied;
use crate::server::checkpoint::store::RedbCheckpoint;
use crate::server::checkpoint::store::remove_if_there;
use crate::server::checkpoint::store::sync_parent;
use crate::server::cluster::membership::Membership;
use crate::server::raft::wal::Recovered;
use crate::server::raft::wal::Wal;
use crate::server::run::storage::Directories;
use crate::server::run::storage::resume;
use crate::server::snapshot::contents::Import;
use crate::server::snapshot::contents::import;
use crate::server::snapshot::install;
use crate::server::snapshot::member_dir::ETCD_DATABASE;
use crate::server::snapshot::member_dir::remove_dir_if_there;

/// Beside `member`: what etcd left. A number follows where the name is taken.
const BACKUP: &str = "member.etcd";

/// A backup that is not whole yet.
const BACKUP_PART: &str = "member.etcd.part";

/// How the names of a log's segments that are not in use yet end: zeros, which nobody needs.
const SPARE_SUFFIX: &str = ".tmp";

/// Takes over what etcd left in these directories, if that is what they hold: then true. The caller holds our lock on them.
pub fn take_over(directories: &Directories, config: MachineConfig) -> Result<bool, Failure> {
    let (ours, theirs) = (directories.snap.join(install::DATABASE), directories.snap.join(ETCD_DATABASE));
    if !exists(&theirs)? {
        return Ok(false);
    }
    if exists(&ours)? {
        match backup_of(directories)? {
            // The switch was the last thing that was done.
            Some(_) => clean_up(&directories.snap)?,
            None => tracing::warn!(
                database = %theirs.display(),
                "a database of etcd lies beside ours and is not looked at; the log tells what was written"
            ),
        }
        return Ok(false);
    }
    let _lock = lock(&theirs)?;
    let recovered = Wal::inspect(&RealDisk, &directories.wal)?;
    tracing::info!(database = %theirs.display(), "taking over a data directory of etcd");
    let converted = convert(directories, &recovered, config)?;
    let backup = back_up(directories)?;
    install::rename_durably(&converted, &ours)?;
    clean_up(&directories.snap)?;
    tracing::info!(backup = %backup.display(), "took over a data directory of etcd, which is kept beside");
    Ok(true)
}

fn exists(path: &Path) -> Result<bool, Failure> {
    path.try_exists().map_err(Failure::io("cannot look for", path))
}

/// etcd holds this lock on its database as long as it runs.
fn lock(database: &Path) -> Result<Flock<File>, Failure> {
    let file =
        OpenOptions::new().read(true).write(true).open(database).map_err(Failure::io("cannot open", database))?;
    Flock::lock(file, FlockArg::LockExclusiveNonblock).map_err(|(_, errno)| match errno {
        Errno::EWOULDBLOCK => {
            Failure::Refused(format!("{} is open in another process: etcd still runs on it", database.display()))
        }
        errno => Failure::io("cannot lock", database)(errno.into()),
    })
}

/// Writes our database of etcd's, and proves that the member goes on from it: its path. Leaves nothing behind when not.
fn convert(directories: &Directories, recovered: &Recovered, config: MachineConfig) -> Result<PathBuf, Failure> {
    let import = newest_database(&directories.snap, recovered)?;
    let index = import.applied.index;
    let membership = Membership::restore(&import.buckets, usize::MAX)?;
    check_configuration(&membership, recovered, index)?;
    // A 3.4 notes no term; the log knows it, unless the entry is gone.
    let term = term_at(recovered, index).unwrap_or(import.applied.term);
    let applied = Applied { index, term, conf_state: membership.conf_state() };
    let part = directories.snap.join(install::part_name(index));
    let proven = install::write_database(&import, &import.buckets, applied, &part)
        .and_then(|()| install::sync_file(&part))
        .and_then(|()| resume(config, &RedbCheckpoint::open(&part)?, recovered.clone()));
    match proven {
        Ok(_) => Ok(part),
        Err(failure) => {
            // The first failure is the one to tell; the next start removes what this could not.
            let _ = remove_if_there(&part);
            Err(failure)
        }
    }
}

/// The database that goes with the log: `db`, or the image of the snapshot that the log goes on from.
fn newest_database(snap: &Path, recovered: &Recovered) -> Result<Import, Failure> {
    let path = snap.join(ETCD_DATABASE);
    let database = import(&path)?;
    let start = recovered.snapshots.last().map_or(0, |snapshot| snapshot.index);
    if database.applied.index >= start {
        return Ok(database);
    }
    let sent = snap.join(install::incoming_name(start));
    if !exists(&sent)? {
        return Err(Failure::Refused(format!(
            "the log goes on from a snapshot at entry {start}, but {} ends with entry {} and {} is not there",
            path.display(),
            database.applied.index,
            sent.display()
        )));
    }
    import(&sent)
}

fn term_at(recovered: &Recovered, index: u64) -> Option<u64> {
    let base = recovered.base;
    match index.checked_sub(base.index)? {
        0 => Some(base.term),
        distance => recovered.entries.get(usize::try_from(distance - 1).ok()?).map(|entry| entry.term),
    }
}

/// Voters and learners.
type Configuration = (BTreeSet<u64>, BTreeSet<u64>);

/// Members that the database lists and raft does not know, or the other way round, come from mistakes of some 3.5 releases
/// (reliability.md 2.1, B12). Whom to believe is for etcd itself to say.
fn check_configuration(membership: &Membership, recovered: &Recovered, index: u64) -> Result<(), Failure> {
    let Some(of_log) = configuration_at(recovered, index)? else { return Ok(()) };
    let of_database = configuration(&membership.conf_state());
    if of_log == of_database {
        return Ok(());
    }
    let text = |(voters, learners): &Configuration| {
        let ids = |ids: &BTreeSet<u64>| ids.iter().map(|id| format!("{id:x}")).collect::<Vec<_>>().join(" ");
        format!("voters [{}] and learners [{}]", ids(voters), ids(learners))
    };
    Err(Failure::Refused(format!(
        "the log says that the cluster has {}, the database says {}: start the directory once with the newest etcd of \
         its release line, which brings them together, and then again with this program",
        text(&of_log),
        text(&of_database)
    )))
}

fn configuration(state: &ConfState) -> Configuration {
    (state.voters.iter().copied().collect(), state.learners.iter().copied().collect())
}

/// The configuration that the log made up to `index`; `None` if it does not reach back to one that it tells.
fn configuration_at(recovered: &Recovered, index: u64) -> Result<Option<Configuration>, Failure> {
    let told = recovered.snapshots.iter().rev().filter(|snapshot| snapshot.index <= index);
    let told = told.filter_map(|snapshot| snapshot.conf_state.as_ref().map(|state| (snapshot.index, state)));
    let told = told.map(|(from, state)| (from, configuration(state))).find(|(from, _)| *from >= recovered.base.index);
    let (from, (mut voters, mut learners)) = match told {
        // The first record, {0, 0}, tells of none: everything is in the entries.
        Some((from, configuration)) => (from, configuration),
        None if recovered.base.index == 0 => (0, Configuration::default()),
        None => return Ok(None),
    };
    let changes = recovered.entries.iter().filter(|entry| entry.index > from && entry.index <= index);
    for entry in changes.filter(|entry| entry.r#type == numbers::ENTRY_CONF_CHANGE) {
        let change = decode_change(entry)?;
        match change.r#type {
            numbers::CONF_ADD_NODE => {
                learners.remove(&change.node_id);
                voters.insert(change.node_id);
            }
            numbers::CONF_ADD_LEARNER if !voters.contains(&change.node_id) => {
                learners.insert(change.node_id);
            }
            numbers::CONF_REMOVE_NODE => {
                voters.remove(&change.node_id);
                learners.remove(&change.node_id);
            }
            _ => {}
        }
    }
    Ok(Some((voters, learners)))
}

fn decode_change(entry: &Entry) -> Result<ConfChange, Failure> {
    ConfChange::decode(entry.data.clone())
        .map_err(|error| Failure::Refused(format!("log entry {} is no configuration change: {error}", entry.index)))
}

/// Keeps what etcd left beside `member`: its path. Files that we never write to are linked; the log's last segment, which
/// we go on with, is copied.
fn back_up(directories: &Directories) -> Result<PathBuf, Failure> {
    let part = directories.data.join(BACKUP_PART);
    remove_dir_if_there(&part)?;
    let (snap, wal) = (part.join("snap"), part.join("wal"));
    for dir in [&snap, &wal] {
        create_dir_durably(&RealDisk, dir).map_err(Failure::io("cannot create directory", dir))?;
    }
    for name in install::names(&directories.snap)?.iter().filter(|name| is_etcds(name)) {
        keep(&directories.snap.join(name), &snap.join(name), true)?;
    }
    let segments = install::names(&directories.wal)?;
    let segments: Vec<&String> = segments.iter().filter(|name| !name.ends_with(SPARE_SUFFIX)).collect();
    let last = segments.iter().filter(|name| name.ends_with(".wal")).max();
    for name in &segments {
        keep(&directories.wal.join(name), &wal.join(name), Some(name) != last)?;
    }
    for dir in [&snap, &wal] {
        sync_parent(&dir.join("any"))?;
    }
    let backup = free_name(directories)?;
    install::rename_durably(&part, &backup)?;
    Ok(backup)
}

/// Links a file into the backup, or copies it where that is not wanted or not possible.
fn keep(from: &Path, to: &Path, link: bool) -> Result<(), Failure> {
    if link && fs::hard_link(from, to).is_ok() {
        return Ok(());
    }
    fs::copy(from, to).map_err(Failure::io("cannot copy", from))?;
    install::sync_file(to)
}

/// The first name for a backup that is not taken. One that was made for this very take-over, which then was interrupted,
/// makes room: the log may have gone on in between, and its copy with it would not be etcd's last word.
fn free_name(directories: &Directories) -> Result<PathBuf, Failure> {
    if let Some(stale) = backup_of(directories)? {
        remove_dir_if_there(&stale)?;
    }
    for path in backups(directories) {
        if !exists(&path)? {
            return Ok(path);
        }
    }
    unreachable!("a directory does not hold 2^64 backups")
}

/// The names that backups may have, in order.
fn backups(directories: &Directories) -> impl Iterator<Item = PathBuf> {
    let data = directories.data.clone();
    (1_u64..).map(move |number| match number {
        1 => data.join(BACKUP),
        number => data.join(format!("{BACKUP}.{number}")),
    })
}

/// The backup whose database is the very file that still lies in `member/snap`.
fn backup_of(directories: &Directories) -> Result<Option<PathBuf>, Failure> {
    let inode = |path: &Path| match fs::metadata(path) {
        Ok(metadata) => Ok(Some((metadata.dev(), metadata.ino()))),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(Failure::io("cannot read", path)(error)),
    };
    let ours = inode(&directories.snap.join(ETCD_DATABASE))?;
    for path in backups(directories) {
        if !exists(&path)? {
            break;
        }
        if ours.is_some() && inode(&path.join("snap").join(ETCD_DATABASE))? == ours {
            return Ok(Some(path));
        }
    }
    Ok(None)
}

/// Removes etcd's files from beside our database. They are in the backup.
fn clean_up(snap: &Path) -> Result<(), Failure> {
    // The database last: it is what tells the next start that there is something to do.
    let names = install::names(snap)?;
    let (database, others): (Vec<&String>, Vec<&String>) =
        names.iter().filter(|name| is_etcds(name)).partition(|name| *name == ETCD_DATABASE);
    for name in others.into_iter().chain(database) {
        remove_if_there(&snap.join(name))?;
    }
    sync_parent(&snap.join(ETCD_DATABASE))
}

/// Whether a file of `member/snap` is etcd's: its database, `.snap`, `.snap.db` and temporary files.
fn is_etcds(name: &str) -> bool {
    name == ETCD_DATABASE
        || [".snap", ".snap.db", ".snap.broken"].iter().any(|end| name.ends_with(end))
        || ["db.tmp", "tmp"].iter().any(|begin| name.starts_with(begin))
}

#[cfg(test)]
#[path = "takeover_tests.rs"]
mod tests;

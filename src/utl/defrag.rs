//! `defrag`: gives back what a database file no longer needs, while no server has it open.
//!
//! Nobody has to run it: freed pages are used again. The file is written anew beside the old one, synced, and renamed over
//! it; a crash leaves the old file or the new one.

use std::fs::File;
use std::fs::OpenOptions;
use std::io;
use std::path::Path;
use std::path::PathBuf;
use std::time::Instant;

use nix::fcntl::FlockArg;

use crate::common::failure::Failure;
use crate::common::os_reason::os_reason;
use crate::ctl::flags::Flag;
use crate::ctl::flags::Kind;
use crate::ctl::print::simple::size;
use crate::disk::lock::DirLock;
use crate::program::Manner;
use crate::server::checkpoint::Checkpoint;
use crate::server::checkpoint::store::RedbCheckpoint;
use crate::server::checkpoint::store::remove_if_there;
use crate::server::run::storage::Directories;
use crate::server::snapshot::contents::Frozen;
use crate::server::snapshot::contents::TableRecords;
use crate::server::snapshot::contents::import;
use crate::server::snapshot::install;
use crate::server::snapshot::member_dir::ETCD_DATABASE;
use crate::server::snapshot::member_dir::write_etcd_database;
use crate::utl::Session;
use crate::utl::command::Command;
use crate::utl::error::UtlError;
use crate::utl::file;
use crate::utl::log;

pub static COMMAND: Command = Command {
    flags: &[Flag::new("data-dir", Kind::Text, "", "data directory that no server uses (required)")],
    required: &["data-dir"],
    ..Command::leaf("defrag", "Shrinks the database file of a data directory", run)
};

/// Ends the name of the file that will take the database's place. Below `member/snap` a start removes it.
const NEW_SUFFIX: &str = ".new";

fn run(session: &mut Session<'_>) -> Result<(), UtlError> {
    let given = session.values.text("data-dir").to_owned();
    let timeout = session.values.duration("timeout");
    let failed = |why: String| UtlError::failed(format!("Failed to defragment etcd data[{given}] ({why})"));
    let snap = Directories::new(Path::new(&given), None).snap;
    let (ours, theirs) = (snap.join(install::DATABASE), snap.join(ETCD_DATABASE));
    let path = if ours.exists() { ours } else { theirs };
    let before = length(&path).map_err(|error| failed(format!("stat {}: {}", path.display(), os_reason(&error))))?;
    let sizes = |bytes: u64| (bytes.to_string(), log::text(size(i64::try_from(bytes).unwrap_or(i64::MAX))));
    let (number, text) = sizes(before);
    let place = log::text(path.display());
    let fields = [("path", place.clone()), ("current-db-size-bytes", number), ("current-db-size", text)];
    session.log.info("backend/backend.go:520", "defragmenting", &fields);
    let since = Instant::now();
    let is_ours = path.ends_with(install::DATABASE);
    let done = if is_ours { shrink_ours(Path::new(&given), &path) } else { shrink_etcds(&path, timeout) };
    done.map_err(|error| failed(error.message(Manner::Native).trim_start_matches("Error: ").trim_end().to_owned()))?;
    let after = length(&path).map_err(|error| failed(os_reason(&error)))?;
    let (number, text) = sizes(after);
    let difference = i128::from(after) - i128::from(before);
    let fields = [
        ("path", place),
        ("current-db-size-bytes-diff", difference.to_string()),
        ("current-db-size-bytes", number),
        ("current-db-size", text),
        ("took", log::text(crate::common::go_duration::format(since.elapsed()))),
    ];
    session.log.info("backend/backend.go:585", "finished defragmenting directory", &fields);
    session.report(&format!("{}: {before} bytes before, {after} now\n", path.display()))
}

fn length(path: &Path) -> io::Result<u64> {
    Ok(std::fs::metadata(path)?.len())
}

fn shrink_ours(data: &Path, path: &Path) -> Result<(), UtlError> {
    let _lock = DirLock::acquire(data).map_err(|error| UtlError::failed(error.to_string()))?;
    let new = beside(path);
    let checkpoint = RedbCheckpoint::open(path)?;
    let (buckets, applied) = checkpoint.buckets()?;
    replace(path, &new, || {
        install::write_database(&TableRecords(checkpoint.tables()?), &buckets, applied, &new)?;
        RedbCheckpoint::shrink(&new)?;
        install::sync_file(&new)
    })
}

fn shrink_etcds(path: &Path, timeout: i64) -> Result<(), UtlError> {
    let file = OpenOptions::new().read(true).write(true).open(path);
    let file: File = file.map_err(|error| UtlError::call("open", path, &error))?;
    let _lock = file::lock(file, path, timeout, FlockArg::LockExclusiveNonblock)?;
    let new = beside(path);
    let import = import(path)?;
    let (buckets, applied) = (import.buckets.clone(), import.applied.clone());
    let state = Frozen { records: std::sync::Arc::new(import), buckets, applied };
    replace(path, &new, || write_etcd_database(&state, &new))
}

/// Writes the new file and puts it in place; nothing of it stays when that fails.
fn replace(path: &Path, new: &Path, write: impl FnOnce() -> Result<(), Failure>) -> Result<(), UtlError> {
    let written = write().and_then(|()| install::rename_durably(new, path));
    if written.is_err() {
        // The first error is the one to tell.
        let _ = remove_if_there(new);
    }
    Ok(written?)
}

fn beside(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(NEW_SUFFIX);
    PathBuf::from(name)
}

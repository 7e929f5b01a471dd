//! Installs an image that a leader sent: verify and convert before raft hears of it, rename after the log has it.
//!
//! ```text
//! peer handler   <index>.snap.db ──prepare──▶ <index>.redb.part ──fsync, rename, dir fsync──▶ <index>.redb
//! raft thread    snapshot record and hard state in the log, fdatasync
//! apply thread   <index>.redb ──finish: rename, dir fsync──▶ db.redb, opened anew, swapped in
//! start          `recover` does what `finish` had not done, and removes what nobody needs
//! ```
//!
//! Every step may be the last before a crash (reliability.md 3.3, sentence 8). Two snapshots may be on their way at once, in
//! either order (2.1, B10): a prepared file is removed only when it can no longer be the one that the log names.

use std::collections::BTreeSet;
use std::fs;
use std::fs::File;
use std::io;
use std::ops::ControlFlow;
use std::path::Path;
use std::path::PathBuf;
use std::sync::Mutex;
use std::sync::MutexGuard;
use std::sync::PoisonError;

use crate::common::failure::Failure;
use crate::common::revision::Revision;
use crate::proto::raftpb::Message;
use crate::server::checkpoint::Applied;
use crate::server::checkpoint::Batch;
use crate::server::checkpoint::Buckets;
use crate::server::checkpoint::Checkpoint;
use crate::server::checkpoint::store::NEW_SUFFIX;
use crate::server::checkpoint::store::RedbCheckpoint;
use crate::server::checkpoint::store::remove_if_there;
use crate::server::checkpoint::store::sync_parent;
use crate::server::checkpoint::tables::EVERYTHING_LAST;
use crate::server::snapshot::ImageSink;
use crate::server::snapshot::contents::RecordSource;
use crate::server::snapshot::contents::import;
use crate::server::snapshot::metrics::SnapshotMetrics;
use crate::server::snapshot::send::IMAGE_PREFIX;

/// The live database, in the member's `snap` directory.
pub const DATABASE: &str = "db.redb";

/// Ends the name of an image that arrives (etcd's own name for it).
const INCOMING_SUFFIX: &str = ".snap.db";

/// Ends the name of a database that was converted whole.
const PREPARED_SUFFIX: &str = ".redb";

/// Ends the name of a database that is being converted.
const PART_SUFFIX: &str = ".redb.part";

/// Bytes of records converted in one transaction: bounds memory, and makes commits few.
const CONVERT_BYTES: usize = 8 << 20;

/// Where received images become databases. One per member, shared by the peer handler and apply.
pub struct Installer {
    dir: PathBuf,
    state: Mutex<State>,
    /// Held during a conversion: one at a time is enough for one disk.
    converting: Mutex<()>,
    metrics: SnapshotMetrics,
}

#[derive(Default)]
struct State {
    /// Indexes whose `<index>.redb` is complete and durable.
    prepared: BTreeSet<u64>,
    /// This member has applied or installed this much: raft ignores a snapshot at or below it.
    floor: u64,
}

impl Installer {
    /// For the `snap` directory of a member whose database has applied `applied_index`, after `recover`.
    pub fn new(dir: &Path, applied_index: u64, metrics: SnapshotMetrics) -> Installer {
        let state = State { prepared: BTreeSet::new(), floor: applied_index };
        Installer { dir: dir.to_owned(), state: Mutex::new(state), converting: Mutex::new(()), metrics }
    }

    /// Tells that entries up to `index` were applied: images at or below it are of no use any more. Cheap.
    pub fn applied(&self, index: u64) {
        let mut state = self.lock();
        state.floor = state.floor.max(index);
    }

    /// Makes the prepared database of `index` the live one. The log must have the snapshot durably; the old database stays
    /// readable through tables that are open. Again for the same index: nothing to do.
    pub fn finish(&self, index: u64) -> Result<(), Failure> {
        let mut state = self.lock();
        if !state.prepared.contains(&index) {
            if index <= state.floor {
                return Ok(());
            }
            return Err(Failure::Refused(format!(
                "the snapshot at index {index} was put into the log, but {} was not prepared",
                self.dir.join(prepared_name(index)).display()
            )));
        }
        rename_durably(&self.dir.join(prepared_name(index)), &self.dir.join(DATABASE))?;
        state.prepared.remove(&index);
        state.floor = state.floor.max(index);
        self.remove_stale(&mut state)
    }

    /// Converts the image at `incoming_path(index)`, unless that is done or no longer wanted.
    fn convert(&self, index: u64, message_mark: Applied) -> Result<(), Failure> {
        let _one_at_a_time = self.converting.lock().unwrap_or_else(PoisonError::into_inner);
        let incoming = self.dir.join(incoming_name(index));
        let needed = {
            let state = self.lock();
            index > state.floor && !state.prepared.contains(&index)
        };
        if needed {
            let timer = self.metrics.save_seconds.start_timer();
            let import = import(&incoming)?;
            let applied = agreed_mark(&import.applied, message_mark, &incoming)?;
            let part = self.dir.join(part_name(index));
            write_database(&import, &import.buckets, applied, &part)?;
            self.metrics.fsync_seconds.observe_closure_duration(|| sync_file(&part))?;
            rename_durably(&part, &self.dir.join(prepared_name(index)))?;
            timer.observe_duration();
            self.lock().prepared.insert(index);
        }
        remove_if_there(&incoming)
    }

    /// Removes prepared databases that raft ignored and the member has passed. Never one that the log may name: that one is
    /// above the floor until `finish`.
    fn remove_stale(&self, state: &mut State) -> Result<(), Failure> {
        let stale: Vec<u64> = state.prepared.range(..=state.floor).copied().collect();
        for index in stale {
            remove_if_there(&self.dir.join(prepared_name(index)))?;
            state.prepared.remove(&index);
        }
        Ok(())
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl ImageSink for Installer {
    fn incoming_path(&self, index: u64) -> PathBuf {
        let mut state = self.lock();
        // What cannot be removed costs disk, and the next start tries again.
        if let Err(failure) = self.remove_stale(&mut state) {
            tracing::warn!(%failure, "cannot remove an old snapshot");
        }
        for name in names(&self.dir).unwrap_or_default() {
            let older = index_in(&name, INCOMING_SUFFIX).is_some_and(|older| older < index);
            if older && let Err(failure) = remove_if_there(&self.dir.join(&name)) {
                tracing::warn!(%failure, "cannot remove an old snapshot");
            }
        }
        self.dir.join(incoming_name(index))
    }

    fn prepare(&self, message: &Message) -> Result<(), Failure> {
        let metadata = message.snapshot.as_ref().and_then(|snapshot| snapshot.metadata.as_ref());
        let metadata = metadata.filter(|metadata| metadata.index > 0);
        let metadata = metadata.ok_or_else(|| Failure::Refused("a snapshot message without an index".into()))?;
        let conf_state = metadata.conf_state.clone().unwrap_or_default();
        self.convert(metadata.index, Applied { index: metadata.index, term: metadata.term, conf_state })
    }
}

/// Brings `dir` in order at start: finishes an install that the log has and the database has not, removes leftovers.
///
/// `log_base` is the index behind which the log begins: that of the snapshot that was installed last, unless entries were
/// released since. Opens and closes the database: call it before anything else has it open. Refuses when the log goes on from
/// a snapshot that is in neither file: entries between them are gone.
pub fn recover(dir: &Path, log_base: u64) -> Result<(), Failure> {
    let database = dir.join(DATABASE);
    let prepared = dir.join(prepared_name(log_base));
    let applied = applied_of(&database)?;
    if applied.unwrap_or(0) < log_base {
        if applied_of(&prepared)? != Some(log_base) {
            let has = applied.map_or("is missing".to_owned(), |index| format!("ends with entry {index}"));
            return Err(Failure::Refused(format!(
                "the log begins behind entry {log_base}, but {} {has} and {} is not there",
                database.display(),
                prepared.display()
            )));
        }
        tracing::info!(index = log_base, "finishing the install of a snapshot");
        rename_durably(&prepared, &database)?;
    }
    remove_leftovers(dir)
}

/// Removes all images and databases but the live one.
fn remove_leftovers(dir: &Path) -> Result<(), Failure> {
    for name in names(dir)? {
        let plain = name.strip_suffix(NEW_SUFFIX).unwrap_or(&name);
        let suffixes = [INCOMING_SUFFIX, PREPARED_SUFFIX, PART_SUFFIX];
        let ours = suffixes.iter().any(|suffix| index_in(plain, suffix).is_some())
            || name.starts_with(IMAGE_PREFIX)
            || name.strip_suffix(NEW_SUFFIX) == Some(DATABASE);
        if ours {
            remove_if_there(&dir.join(&name))?;
        }
    }
    sync_parent(&dir.join(DATABASE))
}

/// Applied index of a database; `None` if there is no such file.
fn applied_of(path: &Path) -> Result<Option<u64>, Failure> {
    match fs::metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(Failure::io("cannot read", path)(error)),
        Ok(_) => Ok(Some(RedbCheckpoint::open(path)?.applied()?.index)),
    }
}

/// What the new database will say it has applied. Image and message must agree on the index: with entries missing from the
/// image, or contained in it and applied again, members would diverge (2.1, B1). An etcd 3.4 image names no term and no
/// ConfState; the message is what raft goes on with, so it wins.
fn agreed_mark(image: &Applied, message: Applied, path: &Path) -> Result<Applied, Failure> {
    if image.index != message.index {
        let detail = format!("it ends with entry {}, its message with entry {}", image.index, message.index);
        return Err(Failure::damaged(path, detail));
    }
    if message.conf_state.voters.is_empty() {
        return Err(Failure::Refused("a snapshot message without voters".into()));
    }
    let sorted = |ids: &[u64]| ids.iter().copied().collect::<BTreeSet<u64>>();
    if !image.conf_state.voters.is_empty() && sorted(&image.conf_state.voters) != sorted(&message.conf_state.voters) {
        tracing::warn!(?image.conf_state, ?message.conf_state, "image and message differ in voters; the message counts");
    }
    Ok(message)
}

/// Writes a database with these records and buckets. Its applied mark comes with the last transaction, the only one that
/// is synced: a file that was cut short is removed and written again.
pub fn write_database(
    records: &dyn RecordSource,
    buckets: &Buckets,
    applied: Applied,
    path: &Path,
) -> Result<(), Failure> {
    remove_if_there(path)?;
    let mut database = RedbCheckpoint::open(path)?;
    let mut batch = Batch::default();
    let mut bytes = 0;
    let mut outcome = Ok(());
    records.records(Revision::default(), EVERYTHING_LAST, &mut |record| {
        bytes += record.hashed_bytes();
        batch.records.push(record);
        if bytes >= CONVERT_BYTES {
            outcome = database.write_ahead(&std::mem::take(&mut batch));
            bytes = 0;
        }
        if outcome.is_ok() { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
    })?;
    outcome?;
    batch.pairs = buckets.iter().map(|((bucket, key), value)| (*bucket, key.clone(), Some(value.clone()))).collect();
    batch.applied = applied;
    database.write(&batch)?;
    Ok(())
}

pub fn sync_file(path: &Path) -> Result<(), Failure> {
    let file = File::open(path).map_err(Failure::io("cannot open", path))?;
    file.sync_all().map_err(Failure::io("cannot fsync", path))
}

pub fn rename_durably(from: &Path, to: &Path) -> Result<(), Failure> {
    fs::rename(from, to).map_err(Failure::io("cannot rename", from))?;
    sync_parent(to)
}

/// The name of an image that arrives.
pub fn incoming_name(index: u64) -> String {
    format!("{index:016x}{INCOMING_SUFFIX}")
}

/// The name of a database that is being converted: a start removes it.
pub fn part_name(index: u64) -> String {
    format!("{index:016x}{PART_SUFFIX}")
}

fn prepared_name(index: u64) -> String {
    format!("{index:016x}{PREPARED_SUFFIX}")
}

/// The index in a name of ours: 16 hexadecimal digits, then the suffix.
fn index_in(name: &str, suffix: &str) -> Option<u64> {
    let digits = name.strip_suffix(suffix)?;
    let plain = digits.len() == 16 && digits.bytes().all(|byte| byte.is_ascii_hexdigit());
    plain.then(|| u64::from_str_radix(digits, 16).ok()).flatten()
}

pub fn names(dir: &Path) -> Result<Vec<String>, Failure> {
    let entries = fs::read_dir(dir).map_err(Failure::io("cannot list", dir))?;
    let names: io::Result<Vec<String>> =
        entries.map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned())).collect();
    names.map_err(Failure::io("cannot list", dir))
}

#[cfg(test)]
mod tests;

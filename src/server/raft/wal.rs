//! The write-ahead log: what raft promised, on disk before it is promised, in etcd's format (server.md 14.4).
//!
//! ```text
//! member/wal/0000000000000000-0000000000000000.wal   crc 0 · metadata · snapshot {0,0} · entries · hard state · ..
//!            0000000000000001-00000000000003e8.wal   crc · metadata · hard state · entries · hard state · ..  zeros
//!            0.tmp                                   the next segment, allocated ahead
//! ```
//!
//! A save is one write and at most one fdatasync, however many entries it carries, and always ends with the hard
//! state: so a reader sees which saves are finished. A full segment is cut to its length and the next one is complete up
//! to its hard state before it gets its name, so that a directory always holds a readable log. Whole segments are
//! released from the front when nothing needs them any more.
//!
//! After the first IO error nothing works: what reached the disk is unknown then, and a repeated fdatasync that
//! succeeds says nothing about the pages that an earlier one lost.
//!
//! Code: `record` spells and reads records, `segment` reads a file, `torn` tells a torn write from damage, `replay`
//! makes a log of records, `scan` reads a directory, `output` and `shape` serve the writer below.

mod harvest;
mod metrics;
mod name;
mod output;
mod record;
mod replay;
mod scan;
mod segment;
mod shape;
mod torn;

#[cfg(test)]
mod tests;

use std::collections::VecDeque;
use std::io;
use std::path::Path;
use std::path::PathBuf;
use std::sync::Arc;

use bytes::Bytes;

pub use crate::server::raft::wal::harvest::committed_entries;
pub use crate::server::raft::wal::metrics::Clock;
pub use crate::server::raft::wal::metrics::WalMetrics;
pub use crate::server::raft::wal::replay::Position;
pub use crate::server::raft::wal::replay::Recovered;

use crate::common::failure::Failure;
use crate::disk::Disk;
use crate::disk::File;
use crate::disk::create_dir_durably;
use crate::proto::raftpb::Entry;
use crate::proto::raftpb::HardState;
use crate::proto::walpb::Metadata;
use crate::proto::walpb::Snapshot;
use crate::server::raft::wal::metrics::Meter;
use crate::server::raft::wal::name::SPARES;
use crate::server::raft::wal::name::SegmentName;
use crate::server::raft::wal::name::spare_name;
use crate::server::raft::wal::output::Output;
use crate::server::raft::wal::output::Spare;
use crate::server::raft::wal::output::SpareFile;
use crate::server::raft::wal::output::make_spare;
use crate::server::raft::wal::record::Encoder;
use crate::server::raft::wal::record::RECORD_BYTES_MAX;
use crate::server::raft::wal::record::encode_metadata;
use crate::server::raft::wal::record::entry_frame_bytes_max;
use crate::server::raft::wal::replay::Effect;
use crate::server::raft::wal::scan::Segment;
use crate::server::raft::wal::scan::Tail;
use crate::server::raft::wal::scan::scan;
use crate::server::raft::wal::scan::segment_names;
use crate::server::raft::wal::shape::Shape;

/// A segment is cut when a save takes it to this length or beyond (etcd: SegmentSizeBytes).
const SEGMENT_BYTES: u64 = 64_000_000;
/// A segment that is not filled (the first one, or what a start finds) is left for one that is, which begins to be made
/// at this length: a log that hardly grows is not worth it.
const UNFILLED_BYTES: u64 = 4 << 20;
/// More than a save of one entry has beside the entry.
const SAVE_OVERHEAD_BYTES: u64 = 4096;
/// A larger buffer is given back after the save that needed it.
const BUFFER_BYTES_KEPT: usize = 1 << 20;
/// The end of the name under which a torn segment is kept.
const BROKEN_SUFFIX: &str = ".broken";
/// Bytes copied at once when a torn segment is kept.
const COPY_BYTES: usize = 1 << 20;

/// How a log is written.
#[derive(Clone, Copy, Debug)]
pub struct WalOptions {
    /// Length from which a segment is cut, and which is allocated for it.
    pub segment_bytes: u64,
    /// False with `--unsafe-no-fsync`: nothing is synced, and a power cut may lose everything.
    pub fsync: bool,
    /// Allocate the next segment on a thread of its own. False where runs must repeat exactly (the simulator).
    pub allocate_ahead: bool,
}

impl Default for WalOptions {
    fn default() -> WalOptions {
        WalOptions { segment_bytes: SEGMENT_BYTES, fsync: true, allocate_ahead: true }
    }
}

/// An open log. It belongs to one thread; the data directory's lock keeps other processes away.
pub struct Wal {
    disk: Arc<dyn Disk>,
    dir: PathBuf,
    options: WalOptions,
    output: Output,
    spare: Spare,
    encoder: Encoder,
    /// Encoded; the same bytes in every segment.
    metadata: Bytes,
    hard_state: HardState,
    shape: Shape,
    /// A snapshot that does not fit the log: it becomes its base with the hard state that commits it.
    install: Option<Position>,
    /// Oldest first; the last one is written to.
    segments: VecDeque<Segment>,
    meter: Meter,
    stopped: Option<Stopped>,
}

/// The first IO error, to be told again.
struct Stopped {
    what: &'static str,
    path: PathBuf,
    errno: Option<i32>,
    kind: io::ErrorKind,
    text: String,
}

impl Wal {
    /// Whether the directory holds a log. One whose creation did not finish is none.
    pub fn exists(disk: &dyn Disk, dir: &Path) -> Result<bool, Failure> {
        if !disk.exists(dir).map_err(Failure::io("cannot look for", dir))? {
            return Ok(false);
        }
        Ok(!segment_names(disk, dir)?.is_empty())
    }

    /// Creates the directory and an empty log in it, durable when this returns. Refused if there is one.
    pub fn create(disk: Arc<dyn Disk>, dir: &Path, metadata: Metadata, options: WalOptions) -> Result<Wal, Failure> {
        Wal::found(disk, dir, metadata, options, &HardState::default(), &[])
    }

    /// Creates a log that begins with these entries. They are there as soon as the log is: one without them would be a
    /// joining member's, and its owner could never lead.
    pub fn found(
        disk: Arc<dyn Disk>,
        dir: &Path,
        metadata: Metadata,
        options: WalOptions,
        hard_state: &HardState,
        entries: &[Entry],
    ) -> Result<Wal, Failure> {
        create_dir_durably(&*disk, dir).map_err(Failure::io("cannot create", dir))?;
        if Wal::exists(&*disk, dir)? {
            return Err(Failure::Refused(format!("there is a log in {} already", dir.display())));
        }
        let metadata = Bytes::from(encode_metadata(&metadata));
        let mut encoder = Encoder::default();
        encoder.crc();
        encoder.metadata(&metadata);
        encoder.snapshot(&Snapshot::default());
        let mut shape = Shape::default();
        for entry in entries {
            shape.append(entry);
            encoder.entry(entry);
        }
        if !entries.is_empty() {
            encoder.hard_state(hard_state);
        }
        let path = dir.join(spare_name(SegmentName::FIRST.sequence));
        let file = make_spare(&*disk, &path, options.segment_bytes)?;
        let mut wal = Wal {
            output: Output { filled: filled_at_first(&*file, options), file, path, offset: 0, fsync: options.fsync },
            spare: Spare::new(disk.clone(), dir, options.segment_bytes),
            encoder,
            metadata,
            hard_state: *hard_state,
            shape,
            install: None,
            segments: VecDeque::from([Segment { name: SegmentName::FIRST, begin: None, last: 0 }]),
            meter: Meter::default(),
            stopped: None,
            disk,
            dir: dir.to_owned(),
            options,
        };
        wal.publish(SegmentName::FIRST)?;
        entries.iter().for_each(|entry| wal.current_segment().note(Effect::Entry(entry.index)));
        Ok(wal)
    }

    /// Reads the log and makes it ready for more. A torn end is cut, after a copy of the file was saved beside it as
    /// `<name>.broken`; damage is refused.
    pub fn open(disk: Arc<dyn Disk>, dir: &Path, options: WalOptions) -> Result<(Wal, Recovered), Failure> {
        let found = scan(&*disk, dir, options.fsync)?;
        let Tail { file, path, offset, crc, leftover } = found.tail;
        let mut wal = Wal {
            output: Output { filled: filled_at_first(&*file, options), file, path, offset, fsync: options.fsync },
            spare: Spare::new(disk.clone(), dir, options.segment_bytes),
            encoder: Encoder { buffer: Vec::new(), crc },
            metadata: found.metadata,
            hard_state: found.recovered.hard_state,
            shape: Shape::of(&found.recovered),
            install: None,
            segments: found.segments.into(),
            meter: Meter::default(),
            stopped: None,
            disk,
            dir: dir.to_owned(),
            options,
        };
        wal.make_writable(&leftover)?;
        Ok((wal, found.recovered))
    }

    /// Reads the log and changes nothing: for tools.
    pub fn inspect(disk: &dyn Disk, dir: &Path) -> Result<Recovered, Failure> {
        Ok(scan(disk, dir, true)?.recovered)
    }

    /// Measures from now on. `clock` gives the time since some fixed point.
    pub fn measure(&mut self, metrics: WalMetrics, clock: Clock) {
        self.meter = Meter::new(metrics, clock);
    }

    /// Appends entries, then the hard state (the one before if there is no new one). Durable on return if there are
    /// entries or with `must_sync` (term or vote changed); a commit index alone may wait. The entries are contiguous,
    /// and follow the last one or replace entries that are not committed.
    pub fn save(&mut self, hard_state: Option<&HardState>, entries: &[Entry], must_sync: bool) -> Result<(), Failure> {
        self.check_usable()?;
        let result = self.try_save(hard_state, entries, must_sync);
        self.stop_on_error(result)
    }

    /// Records a snapshot, durably: one that this member has made of what it applied, or one it was sent, which takes the
    /// place of the log with the next hard state that commits up to it.
    pub fn save_snapshot(&mut self, snapshot: &Snapshot) -> Result<(), Failure> {
        self.check_usable()?;
        let result = self.try_save_snapshot(snapshot);
        self.stop_on_error(result)
    }

    /// Unlinks the segments that hold nothing at or above `index`; the entries behind `index` stay, and its term. The
    /// caller has made sure that nothing below is needed (DESIGN.md 4, "WAL release").
    pub fn release_to(&mut self, index: u64) -> Result<(), Failure> {
        self.check_usable()?;
        let result = self.try_release(index.min(self.last_index()));
        self.stop_on_error(result)
    }

    /// The lowest index whose entry the log still holds, or would hold next.
    pub fn first_index(&self) -> u64 {
        self.shape.first_index()
    }

    pub fn last_index(&self) -> u64 {
        self.shape.last_index()
    }

    /// The term of an entry that the log holds, or of what its first one follows.
    pub fn term_at(&self, index: u64) -> Option<u64> {
        self.shape.term_at(index)
    }

    pub fn hard_state(&self) -> HardState {
        self.hard_state
    }

    pub fn segment_count(&self) -> usize {
        self.segments.len()
    }

    /// Whether a save of about so many bytes of entries is one write and one sync: the segment is not full with it.
    pub fn only_appends(&self, bytes: usize) -> bool {
        self.stopped.is_none()
            && !self.better_segment_waits()
            && self.output.offset + 2 * bytes as u64 + SAVE_OVERHEAD_BYTES < self.options.segment_bytes
    }

    fn try_save(&mut self, hard_state: Option<&HardState>, entries: &[Entry], must_sync: bool) -> Result<(), Failure> {
        self.encode_save(hard_state, entries)?;
        self.flush()?;
        if self.output.offset >= self.options.segment_bytes || self.better_segment_waits() {
            return self.cut();
        }
        if must_sync || !entries.is_empty() {
            self.output.sync(&self.meter)?;
        }
        self.prepare_ahead();
        Ok(())
    }

    /// Encodes a save, for the next flush.
    fn encode_save(&mut self, hard_state: Option<&HardState>, entries: &[Entry]) -> Result<(), Failure> {
        entries.iter().try_for_each(check_size)?;
        let state = *hard_state.unwrap_or(&self.hard_state);
        assert!(state.term >= self.hard_state.term, "term {} after {}", state.term, self.hard_state.term);
        let installed = self.install.take_if(|install| install.index <= state.commit);
        if let Some(install) = installed {
            self.note_install(install);
        }
        if state.term > self.hard_state.term && !entries.is_empty() {
            // A torn save may keep its entries and lose its end: their term must not be news then.
            self.encoder.hard_state(&HardState { commit: self.hard_state.commit, ..state });
        }
        for entry in entries {
            assert!(entry.index > self.hard_state.commit, "entry {} is committed and was to change", entry.index);
            self.shape.append(entry);
            self.current_segment().note(Effect::Entry(entry.index));
            self.encoder.entry(entry);
        }
        assert!(
            state.commit <= self.last_index(),
            "commit {} behind the last entry {}",
            state.commit,
            self.last_index()
        );
        if hard_state.is_some() || !entries.is_empty() {
            self.encoder.hard_state(&state);
            self.hard_state = state;
        }
        Ok(())
    }

    fn try_save_snapshot(&mut self, snapshot: &Snapshot) -> Result<(), Failure> {
        let at = Position { index: snapshot.index, term: snapshot.term };
        if self.shape.has(at) {
            // Ours. What was applied is committed, though the hard state may not have said so yet, and a snapshot
            // record above the commit index does not count (server.md 10.1).
            if at.index > self.hard_state.commit {
                self.hard_state.commit = at.index;
                self.encoder.hard_state(&self.hard_state);
            }
        } else if at.index > self.hard_state.commit {
            self.install = Some(at);
        } else {
            assert!(at.index < self.first_index(), "snapshot of index {} and term {} fits no entry", at.index, at.term);
        }
        self.encoder.snapshot(snapshot);
        self.flush()?;
        // No cut here: an install and the hard state that commits it stay in one segment, and so are released together.
        self.output.sync(&self.meter)
    }

    fn try_release(&mut self, index: u64) -> Result<(), Failure> {
        while self.segments.len() > 1 && self.segments[0].last < index {
            let path = self.dir.join(self.segments[0].name.to_string());
            self.disk.remove(&path).map_err(Failure::io("cannot remove", &path))?;
            // One by one: after a power cut the oldest must be the ones that are gone, for a gap cannot be read.
            self.sync_dir()?;
            self.segments.pop_front();
        }
        if self.segments[0].name.sequence > 0
            && let Some(begin) = self.segments.iter().find_map(|segment| segment.begin)
        {
            self.shape.release(begin);
        }
        Ok(())
    }

    fn note_install(&mut self, install: Position) {
        if !self.shape.has(install) {
            self.shape.install(install);
            self.current_segment().note(Effect::Install { base: install.index, last: install.index });
        }
    }

    fn current_segment(&mut self) -> &mut Segment {
        self.segments.back_mut().expect("a log has a segment from its creation on")
    }

    /// Writes what was encoded.
    fn flush(&mut self) -> Result<(), Failure> {
        if self.encoder.buffer.is_empty() {
            return Ok(());
        }
        self.output.append(&self.encoder.buffer, &self.meter)?;
        self.encoder.buffer.clear();
        self.encoder.buffer.shrink_to(BUFFER_BYTES_KEPT);
        Ok(())
    }

    /// Closes the full segment and goes on in the next one.
    fn cut(&mut self) -> Result<(), Failure> {
        self.output.truncate()?;
        // The save that filled the segment is synced here, too.
        self.output.sync(&self.meter)?;
        let sequence = self.current_segment().name.sequence + 1;
        let (path, SpareFile { file, filled }) = self.spare.take(sequence)?;
        self.output = Output {
            file,
            path,
            offset: 0,
            fsync: self.options.fsync,
            filled: if self.fills() { filled } else { u64::MAX },
        };
        self.encoder.crc();
        self.encoder.metadata(&self.metadata);
        self.encoder.hard_state(&self.hard_state);
        let name = SegmentName { sequence, first_index: self.last_index() + 1 };
        self.publish(name)?;
        self.segments.push_back(Segment { name, begin: None, last: self.shape.last_index() });
        Ok(())
    }

    /// Writes the head that was encoded into a new file and gives it its name, in the order that leaves a readable log
    /// wherever the power fails.
    fn publish(&mut self, name: SegmentName) -> Result<(), Failure> {
        self.flush()?;
        self.output.sync(&self.meter)?;
        self.output.rename(&*self.disk, self.dir.join(name.to_string()))?;
        self.sync_dir()
    }

    fn sync_dir(&self) -> Result<(), Failure> {
        if !self.options.fsync {
            return Ok(());
        }
        self.disk.sync_dir(&self.dir).map_err(Failure::io("cannot fsync", &self.dir))
    }

    fn prepare_ahead(&mut self) {
        let due = self.output.filled.max(UNFILLED_BYTES).min(self.options.segment_bytes / 2);
        if self.options.allocate_ahead && self.output.offset >= due {
            let sequence = self.current_segment().name.sequence + 1;
            self.spare.prepare(sequence, self.fills());
        }
    }

    /// The next segment is filled and the rest of this one is not: the log goes on there, however short this one is.
    fn better_segment_waits(&self) -> bool {
        self.output.offset >= self.output.filled && self.spare.is_ready()
    }

    /// Without syncs there is nothing to make quicker.
    fn fills(&self) -> bool {
        self.options.allocate_ahead && self.options.fsync
    }

    /// After reading: cuts a torn end and makes sure that what was read is durable. A process that died may have left
    /// records in the page cache; raft will count on them, so a later power cut must not take them away.
    fn make_writable(&mut self, leftover: &[u8]) -> Result<(), Failure> {
        if !leftover.is_empty() {
            tracing::warn!(
                file = %self.output.path.display(),
                offset = self.output.offset,
                bytes = leftover.len(),
                "cutting an unfinished write off the log, a copy is kept beside it"
            );
            self.keep_broken(leftover)?;
            self.output.truncate()?;
        }
        self.output.allocate(self.options.segment_bytes)?;
        self.output.sync(&self.meter)?;
        for spare in SPARES {
            let path = self.dir.join(spare);
            if self.disk.exists(&path).map_err(Failure::io("cannot look for", &path))? {
                self.disk.remove(&path).map_err(Failure::io("cannot remove", &path))?;
            }
        }
        self.sync_dir()
    }

    /// Copies the torn segment, without the zeros at its end.
    fn keep_broken(&self, leftover: &[u8]) -> Result<(), Failure> {
        let mut path = self.output.path.clone().into_os_string();
        path.push(BROKEN_SUFFIX);
        let path = PathBuf::from(path);
        let mut copy = make_spare(&*self.disk, &path, 0)?;
        let mut buffer = vec![0; COPY_BYTES];
        let mut at = 0;
        while at < self.output.offset {
            let rest = usize::try_from(self.output.offset - at).unwrap_or(usize::MAX).min(COPY_BYTES);
            let piece = &mut buffer[..rest];
            let read = self.output.file.read_at(at, piece).map_err(Failure::io("cannot read", &self.output.path))?;
            if read < rest {
                return Err(Failure::damaged(&self.output.path, "it became shorter while it was read"));
            }
            copy.write_at(at, piece).map_err(Failure::io("cannot write", &path))?;
            at += rest as u64;
        }
        copy.write_at(at, leftover).map_err(Failure::io("cannot write", &path))?;
        copy.sync_data().map_err(Failure::io("cannot fdatasync", &path))?;
        self.sync_dir()
    }

    fn check_usable(&self) -> Result<(), Failure> {
        let Some(stopped) = &self.stopped else { return Ok(()) };
        let source = match stopped.errno {
            Some(errno) => io::Error::from_raw_os_error(errno),
            None => io::Error::new(stopped.kind, stopped.text.clone()),
        };
        Err(Failure::Io { what: stopped.what, path: stopped.path.clone(), source })
    }

    fn stop_on_error(&mut self, result: Result<(), Failure>) -> Result<(), Failure> {
        if let Err(Failure::Io { what, path, source }) = &result {
            let (errno, kind, text) = (source.raw_os_error(), source.kind(), source.to_string());
            self.stopped = Some(Stopped { what, path: path.clone(), errno, kind, text });
        }
        result
    }
}

/// What `Output::filled` says of a file that was only allocated, or of which that is not known.
fn filled_at_first(file: &dyn File, options: WalOptions) -> u64 {
    if options.allocate_ahead && options.fsync && file.overwrites_in_place() { 0 } else { u64::MAX }
}

/// What is written must be readable.
fn check_size(entry: &Entry) -> Result<(), Failure> {
    if entry_frame_bytes_max(entry) <= RECORD_BYTES_MAX {
        return Ok(());
    }
    Err(Failure::Refused(format!("entry {} of {} bytes is too large for the log", entry.index, entry.data.len())))
}

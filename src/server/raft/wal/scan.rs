//! Reads a whole log directory: every segment in order, and where the last one may go on.

use std::path::Path;
use std::path::PathBuf;

use bytes::Bytes;

use crate::common::failure::Failure;
use crate::disk::Disk;
use crate::disk::File;
use crate::server::raft::wal::name::SegmentName;
use crate::server::raft::wal::record::Kind;
use crate::server::raft::wal::replay::Effect;
use crate::server::raft::wal::replay::Recovered;
use crate::server::raft::wal::replay::Replay;
use crate::server::raft::wal::segment::SegmentReader;
use crate::server::raft::wal::segment::Step;
use crate::server::raft::wal::torn;

/// Records that a segment begins with: CRC, metadata, and the snapshot {0, 0} in the first or the hard state in others.
const HEAD_RECORDS: u64 = 3;

/// Which entries a segment holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segment {
    pub name: SegmentName,
    /// Where a log would begin whose oldest segment is this one: its first entry, or the snapshot it installs. `None`
    /// while it has neither.
    pub begin: Option<u64>,
    /// Last index of the log when the segment was closed.
    pub last: u64,
}

impl Segment {
    pub fn note(&mut self, effect: Effect) {
        match effect {
            Effect::None => {}
            Effect::Entry(index) => {
                self.begin = Some(self.begin.map_or(index, |begin| begin.min(index)));
                self.last = index;
            }
            Effect::Install { base, last } => {
                self.begin = Some(base);
                self.last = last;
            }
        }
    }
}

/// A log as found.
pub struct Scan {
    pub recovered: Recovered,
    pub segments: Vec<Segment>,
    pub tail: Tail,
    /// As written: repeated byte for byte in the next segment.
    pub metadata: Bytes,
}

/// The end of the last segment.
pub struct Tail {
    pub file: Box<dyn File>,
    pub path: PathBuf,
    /// End of the last good record.
    pub offset: u64,
    /// The running CRC there.
    pub crc: u32,
    /// Bytes of an unfinished write behind it, up to the last that is not zero.
    pub leftover: Bytes,
}

/// Names of the segments in a directory, in order. Other files are none of the log's.
pub fn segment_names(disk: &dyn Disk, dir: &Path) -> Result<Vec<SegmentName>, Failure> {
    let names = disk.list(dir).map_err(Failure::io("cannot list", dir))?;
    Ok(names.iter().filter_map(|name| SegmentName::parse(name)).collect())
}

/// Reads the log from its oldest segment. With `synced` every save was followed by a sync where it had to be, so that
/// a bad record before a finished save is damage (see `torn`).
pub fn scan(disk: &dyn Disk, dir: &Path, synced: bool) -> Result<Scan, Failure> {
    let names = segment_names(disk, dir)?;
    let Some(oldest) = names.first() else {
        return Err(Failure::Refused(format!("no log in {}", dir.display())));
    };
    for pair in names.windows(2) {
        if pair[0].sequence.checked_add(1) != Some(pair[1].sequence) {
            return Err(Failure::damaged(dir, format!("a segment is missing between {} and {}", pair[0], pair[1])));
        }
    }
    let mut reading = Reading { replay: Replay::new(oldest.sequence == 0), segments: Vec::new(), metadata: None };
    let mut crc = 0;
    for (position, name) in names.iter().enumerate() {
        let path = dir.join(name.to_string());
        let file = disk.open(&path).map_err(Failure::io("cannot open", &path))?;
        let mut reader = SegmentReader::new(file, path, crc)?;
        let torn = reading.segment(*name, &mut reader)?;
        crc = reader.crc();
        if position + 1 < names.len() {
            match torn {
                Some(failure) => return Err(failure),
                None => continue,
            }
        }
        let tail = judge_tail(reader, torn, synced)?;
        return reading.finish(tail);
    }
    unreachable!("the last of at least one name returns")
}

/// What the segments said so far.
struct Reading {
    replay: Replay,
    segments: Vec<Segment>,
    metadata: Option<Bytes>,
}

impl Reading {
    /// Reads a segment to its end. What stopped it, if that is more than zeros.
    fn segment(&mut self, name: SegmentName, reader: &mut SegmentReader) -> Result<Option<Failure>, Failure> {
        let mut segment = Segment { name, begin: None, last: self.replay.last_index().unwrap_or_default() };
        let mut records = 0_u64;
        let torn = loop {
            let position = reader.offset();
            let record = match reader.step()? {
                Step::Record(record) => record,
                Step::End => break None,
                Step::Torn(failure) => break Some(failure),
            };
            let expected = [Kind::Crc, Kind::Metadata].get(usize::try_from(records).unwrap_or(usize::MAX));
            if expected.is_some_and(|kind| *kind != record.kind)
                || (records == 0 && name.sequence == 0 && record.crc != 0)
            {
                return Err(Failure::damaged(
                    reader.path(),
                    format!("not the head of a segment at position {position}"),
                ));
            }
            if record.kind == Kind::Metadata {
                self.metadata = Some(record.data.clone());
            }
            let apply = |detail| Failure::damaged(reader.path(), format!("{detail} at position {position}"));
            segment.note(self.replay.apply(record).map_err(apply)?);
            records += 1;
        };
        // Its head is synced before it has its name, so no power cut takes that away.
        if records < HEAD_RECORDS {
            return Err(torn.unwrap_or_else(|| reader.damaged("the segment has no head")));
        }
        self.segments.push(segment);
        Ok(torn)
    }

    fn finish(self, tail: Tail) -> Result<Scan, Failure> {
        let recovered = self.replay.finish().map_err(|detail| Failure::damaged(&tail.path, detail))?;
        let metadata = self.metadata.ok_or_else(|| Failure::damaged(&tail.path, "no metadata"))?;
        Ok(Scan { recovered, segments: self.segments, tail, metadata })
    }
}

/// Decides whether what is behind the last good record of the last segment may be cut.
fn judge_tail(mut reader: SegmentReader, torn: Option<Failure>, synced: bool) -> Result<Tail, Failure> {
    let leftover = reader.leftover()?;
    if synced && torn::was_synced(reader.last_kind(), &leftover) {
        return Err(torn.unwrap_or_else(|| reader.damaged("zeros before valid records")));
    }
    let (path, offset, crc) = (reader.path().to_owned(), reader.offset(), reader.crc());
    Ok(Tail { file: reader.into_file(), path, offset, crc, leftover })
}

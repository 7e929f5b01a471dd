//! Reads one segment, record by record, and tells an end, a torn write and damage apart.

use std::path::Path;
use std::path::PathBuf;

use bytes::Bytes;
use crc32c::crc32c_append;

use crate::common::failure::Failure;
use crate::disk::File;
use crate::server::raft::wal::record::FRAME_BYTES;
use crate::server::raft::wal::record::Kind;
use crate::server::raft::wal::record::RECORD_BYTES_MAX;
use crate::server::raft::wal::record::Record;
use crate::server::raft::wal::record::decode_length;
use crate::server::raft::wal::record::decode_record;

/// What is read at once. Entries are slices of these pieces, so that an entry which outlives its neighbours pins one
/// piece and not the file.
const CHUNK_BYTES: u64 = 1 << 20;
/// More than any save writes, which is what a power cut can leave unfinished: a file with more behind its last good
/// record is not one of ours, and not worth the memory.
const LEFTOVER_BYTES_MAX: u64 = 1 << 30;
/// A disk writes sectors whole or not at all (server.md 14.4).
const SECTOR_BYTES: usize = 512;

/// What stands at a position of a segment.
#[derive(Debug)]
pub enum Step {
    /// A record whose CRC is right.
    Record(Record),
    /// A zero length, or the end of the file.
    End,
    /// Bytes that a power cut may have left of an unfinished write, if they are the last ones of the log. The failure
    /// is what they are otherwise.
    Torn(Failure),
}

/// Goes through a segment from its beginning.
pub struct SegmentReader {
    file: Box<dyn File>,
    path: PathBuf,
    file_bytes: u64,
    /// Where the next frame starts.
    offset: u64,
    crc: u32,
    last_kind: Option<Kind>,
    chunk: Bytes,
    chunk_start: u64,
}

impl SegmentReader {
    /// `crc` is the running CRC at the end of the segment before; 0 for the oldest one that is left.
    pub fn new(file: Box<dyn File>, path: PathBuf, crc: u32) -> Result<SegmentReader, Failure> {
        let file_bytes = file.len().map_err(Failure::io("cannot read the length of", &path))?;
        Ok(SegmentReader {
            file,
            path,
            file_bytes,
            offset: 0,
            crc,
            last_kind: None,
            chunk: Bytes::new(),
            chunk_start: 0,
        })
    }

    /// Where the next frame starts, in bytes: the end of the last good record.
    pub fn offset(&self) -> u64 {
        self.offset
    }

    /// The CRC of everything read so far.
    pub fn crc(&self) -> u32 {
        self.crc
    }

    /// What the last good record was; `None` before the first.
    pub fn last_kind(&self) -> Option<Kind> {
        self.last_kind
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    pub fn into_file(self) -> Box<dyn File> {
        self.file
    }

    /// The next record. After `End` or `Torn` the reader stays where it is. `Err` is damage that no power cut makes, or
    /// a read error.
    pub fn step(&mut self) -> Result<Step, Failure> {
        let rest = self.file_bytes - self.offset;
        if rest == 0 {
            return Ok(Step::End);
        }
        if rest < FRAME_BYTES as u64 {
            return Ok(Step::Torn(self.damaged("the file ends in the length of a record")));
        }
        let field = self.read(self.offset, FRAME_BYTES as u64)?;
        let field = u64::from_le_bytes(field[..].try_into().expect("read as many bytes as a u64 has"));
        if field == 0 {
            return Ok(Step::End);
        }
        let Some((record_bytes, padding)) = decode_length(field) else {
            return Err(self.damaged(&format!("no record has the length field {field:#x}")));
        };
        if record_bytes > RECORD_BYTES_MAX as u64 {
            return Err(self.damaged(&format!("a record of {record_bytes} bytes is over the limit")));
        }
        if record_bytes + padding > rest - FRAME_BYTES as u64 {
            return Ok(Step::Torn(self.damaged(&format!("a record of {record_bytes} bytes exceeds the file"))));
        }
        let start = self.offset + FRAME_BYTES as u64;
        let framed = self.read(start, record_bytes + padding)?;
        let body = framed.slice(..framed.len() - padding as usize);
        match self.check(&body) {
            Ok((record, crc)) => {
                self.crc = crc;
                self.last_kind = Some(record.kind);
                self.offset = start + record_bytes + padding;
                Ok(Step::Record(record))
            }
            Err(failure) if has_zero_sector(start, &framed) => Ok(Step::Torn(failure)),
            Err(failure) => Err(failure),
        }
    }

    /// Decodes a record and checks it against the running CRC: the record and the CRC after it.
    fn check(&self, body: &Bytes) -> Result<(Record, u32), Failure> {
        let Some(record) = decode_record(body) else {
            return Err(self.damaged("not a record"));
        };
        if record.kind == Kind::Crc {
            // Seeds the chain in the oldest segment that is left, and repeats it in the others.
            let agrees = self.crc == 0 || self.crc == record.crc;
            if !record.data.is_empty() || !agrees {
                return Err(self.crc_mismatch(record.crc, self.crc));
            }
            let crc = record.crc;
            return Ok((record, crc));
        }
        let computed = crc32c_append(self.crc, &record.data);
        if computed != record.crc {
            return Err(self.crc_mismatch(record.crc, computed));
        }
        Ok((record, computed))
    }

    /// What follows the last good record, without the zeros at the end but for what completes the last eight bytes;
    /// empty if there is nothing else.
    pub fn leftover(&mut self) -> Result<Bytes, Failure> {
        let mut end = self.file_bytes;
        while end > self.offset {
            let start = end.saturating_sub(CHUNK_BYTES).max(self.offset);
            let piece = self.read(start, end - start)?;
            // Mostly there are zeros only. One comparison with itself, a byte further, sees that: a loop over the bytes of
            // a fresh segment took half a second in a debug build.
            if piece.first() == Some(&0) && piece[1..] == piece[..piece.len() - 1] {
                end = start;
                continue;
            }
            if let Some(last) = piece.iter().rposition(|byte| *byte != 0) {
                let end = (start + last as u64 + 1).next_multiple_of(FRAME_BYTES as u64).min(self.file_bytes);
                if end - self.offset > LEFTOVER_BYTES_MAX {
                    return Err(self.damaged("more than any write leaves behind the last record"));
                }
                return self.read(self.offset, end - self.offset);
            }
            end = start;
        }
        Ok(Bytes::new())
    }

    fn read(&mut self, offset: u64, len: u64) -> Result<Bytes, Failure> {
        let within = offset.checked_sub(self.chunk_start).filter(|at| at + len <= self.chunk.len() as u64);
        let at = match within {
            Some(at) => at,
            None => {
                self.fill(offset, len)?;
                0
            }
        };
        let at = usize::try_from(at).expect("inside a chunk in memory");
        let len = usize::try_from(len).expect("inside a chunk in memory");
        Ok(self.chunk.slice(at..at + len))
    }

    fn fill(&mut self, offset: u64, len: u64) -> Result<(), Failure> {
        let wanted = len.max(CHUNK_BYTES.min(self.file_bytes - offset));
        let wanted = usize::try_from(wanted).map_err(|_| self.damaged("the file is larger than memory"))?;
        let mut chunk = vec![0; wanted];
        let read = self.file.read_at(offset, &mut chunk).map_err(Failure::io("cannot read", &self.path))?;
        if read < wanted {
            return Err(self.damaged("the file became shorter while it was read"));
        }
        self.chunk = Bytes::from(chunk);
        self.chunk_start = offset;
        Ok(())
    }

    fn crc_mismatch(&self, expected: u32, computed: u32) -> Failure {
        let name = self.path.file_name().unwrap_or_default().to_string_lossy();
        let position = self.offset;
        Failure::Refused(format!(
            "walpb: crc mismatch: expected: {expected:x} computed: {computed:x}: in file '{name}' at position: {position}"
        ))
    }

    /// Damage at the position where the reader stands.
    pub fn damaged(&self, detail: &str) -> Failure {
        Failure::damaged(&self.path, format!("{detail} at position {}", self.offset))
    }
}

/// Whether some sector's part of a record is all zero: it was never written.
fn has_zero_sector(start: u64, framed: &[u8]) -> bool {
    let first = SECTOR_BYTES - (start % SECTOR_BYTES as u64) as usize;
    let (head, rest) = framed.split_at(first.min(framed.len()));
    let zero = |part: &[u8]| !part.is_empty() && part.iter().all(|byte| *byte == 0);
    zero(head) || rest.chunks(SECTOR_BYTES).any(zero)
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::disk::Disk;
    use crate::disk::real::RealDisk;
    use crate::disk::sim::SimDisk;
    use crate::proto::raftpb::Entry;
    use crate::server::raft::wal::record::Encoder;

    fn reader(bytes: &[u8]) -> SegmentReader {
        let path = Path::new("/a.wal");
        let mut file = SimDisk::new(0).create(path).unwrap();
        file.write_at(0, bytes).unwrap();
        SegmentReader::new(file, path.to_owned(), 0).unwrap()
    }

    fn encoded(sizes: &[usize]) -> Vec<u8> {
        let mut encoder = Encoder::default();
        for (number, size) in sizes.iter().enumerate() {
            let data = Bytes::from(vec![0xaa; *size]);
            encoder.entry(&Entry { r#type: 0, term: 1, index: number as u64 + 1, data });
        }
        encoder.buffer
    }

    #[test]
    fn records_of_any_size_read_across_chunks() {
        let sizes = [0, 1, 500, 1 << 20, 17, (2 << 20) + 3, 5];
        let mut bytes = encoded(&sizes);
        bytes.resize(bytes.len() + 4096, 0);
        let mut reader = reader(&bytes);
        for size in sizes {
            let Step::Record(record) = reader.step().unwrap() else { panic!("a record of {size} is missing") };
            assert!(record.data.len() >= size);
        }
        assert!(matches!(reader.step().unwrap(), Step::End));
        assert!(reader.leftover().unwrap().is_empty());
    }

    #[test]
    fn leftover_is_what_follows_the_last_record_without_zeros() {
        let mut bytes = encoded(&[10]);
        let end = bytes.len();
        bytes.resize(end + (3 << 20), 0);
        bytes[end + 600] = 1;
        let mut reader = reader(&bytes);
        reader.step().unwrap();
        assert!(matches!(reader.step().unwrap(), Step::End));
        assert_eq!(reader.leftover().unwrap().len(), 608);
        assert_eq!(reader.offset(), end as u64);
    }

    #[test]
    fn leftover_of_a_huge_file_is_refused_before_anything_is_allocated() {
        let temp = tempfile::tempdir().unwrap();
        let path = temp.path().join("a.wal");
        let mut file = RealDisk.create(&path).unwrap();
        file.write_at(1 << 40, b"x").unwrap();
        let mut reader = SegmentReader::new(file, path, 0).unwrap();
        assert!(matches!(reader.step().unwrap(), Step::End));
        assert!(reader.leftover().unwrap_err().to_string().contains("more than any write leaves"));
    }

    #[test]
    fn huge_lengths_are_refused_before_anything_is_allocated() {
        for length in [(1_u64 << 56) - 8, (RECORD_BYTES_MAX as u64) + 8] {
            let mut bytes = length.to_le_bytes().to_vec();
            bytes.resize(64, 0);
            assert!(reader(&bytes).step().unwrap_err().to_string().contains("over the limit"), "{length}");
        }
        let mut bytes = (RECORD_BYTES_MAX as u64).to_le_bytes().to_vec();
        bytes.resize(64, 0);
        assert!(matches!(reader(&bytes).step().unwrap(), Step::Torn(_)));
    }

    #[test]
    fn record_with_a_missing_sector_is_torn_and_one_with_a_wrong_byte_is_damaged() {
        let mut torn = encoded(&[2000]);
        torn[512..1024].fill(0);
        assert!(matches!(reader(&torn).step().unwrap(), Step::Torn(_)));
        let mut damaged = encoded(&[2000]);
        damaged[700] ^= 1;
        let text = reader(&damaged).step().unwrap_err().to_string();
        assert!(text.starts_with("walpb: crc mismatch: expected: "), "{text}");
        assert!(text.ends_with(": in file 'a.wal' at position: 0"), "{text}");
    }
}

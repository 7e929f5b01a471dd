//! The newest records, in memory in revision order: all that the flusher has not stored, and a few MiB before them.
//!
//! A ring is a list of chunks of fixed size. The writer fills the slots of the last chunk one by one, each once, so a
//! picture of the ring (a clone: one pointer) shares even the chunk that still fills: it ignores what is newer than
//! its revision. Chunks leave at the old end when the tables have their records.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::OnceLock;

use crate::common::revision::Revision;
use crate::server::checkpoint::Record;

/// Slots of a chunk.
const CHUNK_RECORDS: usize = 256;

/// A chunk with so many bytes takes no more records, so that large values leave memory one by one.
const CHUNK_BYTES: usize = 256 << 10;

/// Bytes of stored records that stay in memory, for watchers that catch up and compactions of what is young.
pub const KEPT_BYTES_MAX: usize = 4 << 20;

#[derive(Debug)]
struct Chunk {
    first: Revision,
    /// Filled from the front.
    slots: Box<[OnceLock<Record>]>,
}

impl Chunk {
    fn new(first: Revision) -> Chunk {
        Chunk { first, slots: (0..CHUNK_RECORDS).map(|_| OnceLock::new()).collect() }
    }

    /// The slot of the first record not before `revision`.
    fn position(&self, revision: Revision) -> usize {
        self.slots.partition_point(|slot| slot.get().is_some_and(|record| record.revision < revision))
    }

    fn last(&self) -> Option<Revision> {
        let filled = self.slots.partition_point(|slot| slot.get().is_some());
        self.slots.get(filled.checked_sub(1)?)?.get().map(|record| record.revision)
    }
}

/// A picture of the newest records. Everything not older than its first record is in it.
#[derive(Clone, Debug, Default)]
pub struct Ring {
    chunks: Arc<Vec<Arc<Chunk>>>,
}

impl Ring {
    pub fn record(&self, revision: Revision) -> Option<&Record> {
        let at = self.chunks.partition_point(|chunk| chunk.first <= revision).checked_sub(1)?;
        let chunk = &self.chunks[at];
        let record = chunk.slots.get(chunk.position(revision))?.get()?;
        (record.revision == revision).then_some(record)
    }

    /// Records with `first <= revision <= last`, ascending.
    pub fn between<'a>(&'a self, first: Revision, last: Revision) -> impl Iterator<Item = &'a Record> {
        let from = self.chunks.partition_point(|chunk| chunk.first <= first).saturating_sub(1);
        // An empty slot ends its chunk, not the ring: a chunk of large records is closed before it is full.
        let filled = move |chunk: &'a Arc<Chunk>| chunk.slots[chunk.position(first)..].iter().map_while(OnceLock::get);
        let records = self.chunks[from..].iter().flat_map(filled);
        records.take_while(move |record| record.revision <= last)
    }

    /// The oldest revision in memory.
    pub fn first(&self) -> Option<Revision> {
        self.chunks.first().map(|chunk| chunk.first)
    }
}

/// The ring as its writer sees it.
#[derive(Debug, Default)]
pub struct RingWriter {
    ring: Ring,
    /// Filled slots of the last chunk.
    filled: usize,
    /// Bytes of the records of each chunk.
    bytes: VecDeque<usize>,
    newest: Revision,
}

impl RingWriter {
    /// Adds a record newer than all others; `bytes` is its share of memory.
    pub fn push(&mut self, record: Record, bytes: usize) {
        assert!(record.revision > self.newest, "record {} after {}", record.revision, self.newest);
        self.newest = record.revision;
        let is_full = self.filled == CHUNK_RECORDS || self.bytes.back().is_none_or(|bytes| *bytes >= CHUNK_BYTES);
        if is_full {
            Arc::make_mut(&mut self.ring.chunks).push(Arc::new(Chunk::new(record.revision)));
            self.bytes.push_back(0);
            self.filled = 0;
        }
        let chunk = self.ring.chunks.last().expect("pushed above if there was none");
        let was_empty = chunk.slots[self.filled].set(record).is_ok();
        assert!(was_empty, "slots are filled once, in order");
        self.filled += 1;
        *self.bytes.back_mut().expect("one for each chunk") += bytes;
    }

    /// Drops the oldest chunks once the tables have their records (all up to `stored`), but keeps `kept_bytes` of them.
    pub fn trim(&mut self, stored: Revision, kept_bytes: usize) {
        let chunks = &self.ring.chunks;
        let full_and_stored = |chunk: &Arc<Chunk>| {
            let is_last = Arc::ptr_eq(chunk, chunks.last().expect("there is a chunk"));
            !is_last && chunk.last().is_some_and(|last| last <= stored)
        };
        let droppable = chunks.iter().take_while(|chunk| full_and_stored(chunk)).count();
        let mut kept: usize = self.bytes.iter().take(droppable).sum();
        let mut dropped = 0;
        while dropped < droppable && kept > kept_bytes {
            kept -= self.bytes.pop_front().expect("one for each chunk");
            dropped += 1;
        }
        if dropped > 0 {
            Arc::make_mut(&mut self.ring.chunks).drain(..dropped);
        }
    }

    pub fn ring(&self) -> &Ring {
        &self.ring
    }

    /// The newest record ever pushed.
    pub fn newest(&self) -> Revision {
        self.newest
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(main: i64, sub: i64) -> Record {
        Record { revision: Revision::new(main, sub), tombstone: false, kv: Default::default() }
    }

    fn filled(count: i64) -> RingWriter {
        let mut writer = RingWriter::default();
        (1..=count).for_each(|i| writer.push(record(i / 2, i % 2), 10));
        writer
    }

    #[test]
    fn records_are_found_by_revision() {
        for count in [1, 255, 256, 257, 1000] {
            let writer = filled(count);
            let ring = writer.ring();
            for i in 1..=count {
                assert!(ring.record(Revision::new(i / 2, i % 2)).is_some(), "{i} of {count}");
            }
            for absent in [Revision::new(0, 0), Revision::new(count / 2, 2), Revision::new(count, 0)] {
                assert!(ring.record(absent).is_none());
            }
            let (first, last) = (Revision::new(count / 4, 1), Revision::new(count / 3, 0));
            let expected = (1..=count).filter(|i| (first..=last).contains(&Revision::new(i / 2, i % 2))).count();
            assert_eq!(ring.between(first, last).count(), expected);
            assert_eq!(ring.between(Revision::default(), Revision::new(i64::MAX, 0)).count() as i64, count);
        }
        assert_eq!(Ring::default().between(Revision::default(), Revision::new(9, 9)).count(), 0);
    }

    #[test]
    fn a_picture_keeps_what_the_writer_drops() {
        let mut writer = filled(1000);
        let picture = writer.ring().clone();
        writer.trim(Revision::new(300, 0), 0);
        assert_eq!(writer.ring().first(), Some(Revision::new(256, 1)));
        assert!(picture.record(Revision::new(1, 0)).is_some());
        writer.trim(Revision::new(500, 0), 2560);
        assert_eq!(writer.ring().first(), Some(Revision::new(256, 1)), "2560 bytes are stored, and may stay");
    }

    #[test]
    fn large_records_leave_one_by_one() {
        let mut writer = RingWriter::default();
        (1..=9).for_each(|main| writer.push(record(main, 0), 1 << 20));
        writer.trim(Revision::new(8, 0), KEPT_BYTES_MAX);
        assert_eq!(writer.ring().first(), Some(Revision::new(5, 0)));
    }

    #[test]
    fn large_records_hide_none_behind_them() {
        let mut writer = RingWriter::default();
        (1..=20).for_each(|main| writer.push(record(main, 0), CHUNK_BYTES / 4));
        let between = writer.ring().between(Revision::new(3, 0), Revision::new(18, 0));
        let found: Vec<i64> = between.map(|record| record.revision.main).collect();
        assert_eq!(found, (3..=18).collect::<Vec<i64>>());
    }

    #[test]
    fn trimming_never_drops_what_is_not_stored() {
        let mut writer = filled(1000);
        writer.trim(Revision::new(127, 0), 0);
        assert_eq!(writer.ring().first(), Some(Revision::new(0, 1)));
        writer.trim(Revision::new(128, 0), 0);
        assert_eq!(writer.ring().first(), Some(Revision::new(128, 1)));
    }
}

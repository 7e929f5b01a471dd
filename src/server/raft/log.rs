//! The raft library's view of the log: the recent entries, in memory, so that no disk error surfaces inside it.
//!
//! ```text
//!   base (index, term)   entries: base.index + 1 ..= last_index
//!   ─────────┤├───────────────────────────────────┤
//!            └ compacted up to here    └ applied    └ persisted
//! ```
//! Only persisted entries are in here: the node appends after the durable log has them.

use std::cell::Cell;
use std::collections::VecDeque;

use raft::Error;
use raft::GetEntriesContext;
use raft::RaftState;
use raft::Storage;
use raft::StorageError;
use raft::eraftpb;

use super::config::CatchUp;

/// Bytes of an entry beside its data, for the size of messages and of what is kept.
const ENTRY_OVERHEAD_BYTES: u64 = 32;

/// The persisted log from `base` on, and the snapshot that followers behind it get.
pub struct MemoryLog {
    initial: RaftState,
    base_index: u64,
    base_term: u64,
    entries: VecDeque<eraftpb::Entry>,
    bytes: u64,
    snapshot: Option<eraftpb::Snapshot>,
    /// Set when the library asked for a snapshot that is not there. A cell, because it asks through `&self`.
    snapshot_wanted: Cell<bool>,
}

/// Bytes an entry counts for.
pub fn entry_bytes(entry: &eraftpb::Entry) -> u64 {
    entry.data.len() as u64 + entry.context.len() as u64 + ENTRY_OVERHEAD_BYTES
}

impl MemoryLog {
    /// A log that starts behind `base`; `entries` follow it without a gap.
    pub fn new(
        hard_state: eraftpb::HardState,
        conf_state: eraftpb::ConfState,
        base: (u64, u64),
        entries: Vec<eraftpb::Entry>,
    ) -> MemoryLog {
        let mut log = MemoryLog {
            initial: RaftState::new(hard_state, conf_state),
            base_index: base.0,
            base_term: base.1,
            entries: VecDeque::new(),
            bytes: 0,
            snapshot: None,
            snapshot_wanted: Cell::new(false),
        };
        log.append(entries);
        log
    }

    pub fn base_index(&self) -> u64 {
        self.base_index
    }

    pub fn last(&self) -> u64 {
        self.base_index + self.entries.len() as u64
    }

    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Appends persisted entries; one with a known index replaces it and everything behind it.
    pub fn append(&mut self, entries: Vec<eraftpb::Entry>) {
        let Some(first) = entries.first() else { return };
        assert!(
            first.index > self.base_index && first.index <= self.last() + 1,
            "entry {} does not follow a log of {} to {}",
            first.index,
            self.base_index,
            self.last()
        );
        while self.last() >= first.index {
            let replaced = self.entries.pop_back().expect("last() counts the entries");
            self.bytes -= entry_bytes(&replaced);
        }
        for entry in entries {
            assert!(entry.index == self.last() + 1, "entry {} after {}", entry.index, self.last());
            self.bytes += entry_bytes(&entry);
            self.entries.push_back(entry);
        }
    }

    /// Starts over behind a snapshot that was received and persisted.
    pub fn restore(&mut self, index: u64, term: u64) {
        self.base_index = index;
        self.base_term = term;
        self.entries.clear();
        self.bytes = 0;
        self.snapshot = None;
    }

    /// Drops entries outside the catch-up window, up to `limit` at most. A hold of zero entries keeps none but the newest.
    pub fn compact(&mut self, window: CatchUp, limit: u64) {
        while self.base_index < limit
            && (self.entries.len() as u64 > window.entries || self.bytes > window.bytes)
            && let Some(first) = self.entries.pop_front()
        {
            self.bytes -= entry_bytes(&first);
            self.base_index = first.index;
            self.base_term = first.term;
        }
        // A follower that installs a snapshot must find the entry behind it here, or it would need another.
        if self.snapshot.as_ref().is_some_and(|snapshot| snapshot.get_metadata().index < self.base_index) {
            self.snapshot = None;
        }
    }

    /// Whether the library asked for a snapshot since the last call.
    pub fn take_snapshot_wanted(&mut self) -> bool {
        self.snapshot_wanted.replace(false)
    }

    /// Offers a snapshot to followers. False if it does not reach the log any more.
    pub fn offer_snapshot(&mut self, snapshot: eraftpb::Snapshot) -> bool {
        let reaches = snapshot.get_metadata().index >= self.base_index;
        self.snapshot = reaches.then_some(snapshot);
        reaches
    }

    /// Forgets the offered snapshot, so that the next follower in need gets a new one.
    pub fn drop_snapshot(&mut self) {
        self.snapshot = None;
    }

    fn position(&self, index: u64) -> Option<usize> {
        usize::try_from(index.checked_sub(self.base_index + 1)?).ok()
    }
}

impl Storage for MemoryLog {
    fn initial_state(&self) -> raft::Result<RaftState> {
        Ok(self.initial.clone())
    }

    fn entries(
        &self,
        low: u64,
        high: u64,
        max_size: impl Into<Option<u64>>,
        _context: GetEntriesContext,
    ) -> raft::Result<Vec<eraftpb::Entry>> {
        let Some(start) = self.position(low) else { return Err(Error::Store(StorageError::Compacted)) };
        let max_size = max_size.into().unwrap_or(u64::MAX);
        let count = usize::try_from(high.saturating_sub(low)).unwrap_or(usize::MAX);
        let mut size = 0u64;
        let fits = |entry: &&eraftpb::Entry| {
            let first = size == 0;
            size = size.saturating_add(entry_bytes(entry));
            first || size <= max_size
        };
        Ok(self.entries.iter().skip(start).take(count).take_while(fits).cloned().collect())
    }

    fn term(&self, index: u64) -> raft::Result<u64> {
        if index == self.base_index {
            return Ok(self.base_term);
        }
        let Some(position) = self.position(index) else { return Err(Error::Store(StorageError::Compacted)) };
        self.entries.get(position).map(|entry| entry.term).ok_or(Error::Store(StorageError::Unavailable))
    }

    fn first_index(&self) -> raft::Result<u64> {
        Ok(self.base_index + 1)
    }

    fn last_index(&self) -> raft::Result<u64> {
        Ok(self.last())
    }

    fn snapshot(&self, _request_index: u64, _to: u64) -> raft::Result<eraftpb::Snapshot> {
        match &self.snapshot {
            Some(snapshot) => Ok(snapshot.clone()),
            None => {
                self.snapshot_wanted.set(true);
                Err(Error::Store(StorageError::SnapshotTemporarilyUnavailable))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(index: u64, term: u64, bytes: usize) -> eraftpb::Entry {
        eraftpb::Entry { index, term, data: vec![0u8; bytes].into(), ..Default::default() }
    }

    fn log(base: (u64, u64), count: u64) -> MemoryLog {
        let entries = (1..=count).map(|i| entry(base.0 + i, base.1.max(1), 100)).collect();
        MemoryLog::new(eraftpb::HardState::default(), eraftpb::ConfState::default(), base, entries)
    }

    fn indexes(log: &MemoryLog, low: u64, high: u64, max: u64) -> Vec<u64> {
        let entries = log.entries(low, high, max, GetEntriesContext::empty(false)).unwrap();
        entries.iter().map(|entry| entry.index).collect()
    }

    #[test]
    fn entries_honours_size_but_gives_at_least_one() {
        let log = log((10, 2), 5);
        assert_eq!(indexes(&log, 11, 16, u64::MAX), [11, 12, 13, 14, 15]);
        assert_eq!(indexes(&log, 12, 14, u64::MAX), [12, 13]);
        assert_eq!(indexes(&log, 11, 16, 0), [11]);
        assert_eq!(indexes(&log, 11, 16, 264), [11, 12]);
        let compacted = log.entries(10, 12, None, GetEntriesContext::empty(false)).unwrap_err();
        assert_eq!(compacted, Error::Store(StorageError::Compacted));
    }

    #[test]
    fn terms_are_known_from_the_base_on() {
        let log = log((10, 2), 1);
        assert_eq!(log.term(10).unwrap(), 2);
        assert_eq!(log.term(11).unwrap(), 2);
        assert_eq!(log.term(9).unwrap_err(), Error::Store(StorageError::Compacted));
        assert_eq!(log.term(12).unwrap_err(), Error::Store(StorageError::Unavailable));
    }

    #[test]
    fn a_conflicting_append_cuts_the_tail() {
        let mut log = log((0, 0), 5);
        log.append(vec![entry(3, 9, 1)]);
        assert_eq!((log.last(), log.term(3).unwrap()), (3, 9));
        assert_eq!(log.bytes(), 2 * 132 + 33);
    }

    #[test]
    fn compaction_keeps_the_window_and_respects_the_limit() {
        let mut kept = log((0, 0), 20);
        kept.compact(CatchUp { entries: 5, bytes: u64::MAX }, 3);
        assert_eq!(kept.base_index(), 3);
        kept.compact(CatchUp { entries: 5, bytes: u64::MAX }, 20);
        assert_eq!((kept.base_index(), kept.term(15).unwrap()), (15, 1));
        kept.compact(CatchUp { entries: 5, bytes: 132 * 2 }, 20);
        assert_eq!((kept.base_index(), kept.last()), (18, 20));
    }

    #[test]
    fn a_missing_snapshot_is_wanted_once_and_served_while_it_reaches_the_log() {
        let mut log = log((0, 0), 10);
        let unavailable = Error::Store(StorageError::SnapshotTemporarilyUnavailable);
        assert_eq!(log.snapshot(0, 2).unwrap_err(), unavailable);
        assert!(log.take_snapshot_wanted() && !log.take_snapshot_wanted());
        let mut snapshot = eraftpb::Snapshot::default();
        snapshot.mut_metadata().index = 6;
        assert!(log.offer_snapshot(snapshot.clone()));
        assert_eq!(log.snapshot(0, 2).unwrap().get_metadata().index, 6);
        log.compact(CatchUp { entries: 2, bytes: u64::MAX }, 10);
        assert_eq!(log.snapshot(0, 2).unwrap_err(), unavailable);
        assert!(!log.offer_snapshot(snapshot));
    }
}

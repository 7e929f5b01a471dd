//! What the raft thread needs of a durable log: the write-ahead log in a member, a simulated one in tests.

use crate::common::failure::Failure;
use crate::proto::raftpb::Entry;
use crate::proto::raftpb::HardState;
use crate::proto::walpb;
use crate::server::raft::wal::Wal;

/// A durable log. The first error is final: the raft thread stops and never calls again (reliability.md 3.3, 9).
pub trait LogStore: Send {
    /// Appends entries, then the hard state. With `must_sync` everything written so far is durable when this returns.
    /// An entry whose index was written before replaces it and everything behind it.
    fn save(&mut self, hard_state: Option<&HardState>, entries: &[Entry], must_sync: bool) -> Result<(), Failure>;
    /// Appends a snapshot record; durable, with everything before it, when this returns.
    fn save_snapshot(&mut self, snapshot: &walpb::Snapshot) -> Result<(), Failure>;
    /// Entries up to and including `index` are not needed any more. What is kept beyond that is the log's affair.
    fn release_to(&mut self, index: u64) -> Result<(), Failure>;
    /// Whether a save of about so many bytes is one write and one sync, and nothing has to be made room for.
    fn only_appends(&self, bytes: usize) -> bool;
}

impl LogStore for Wal {
    fn save(&mut self, hard_state: Option<&HardState>, entries: &[Entry], must_sync: bool) -> Result<(), Failure> {
        Wal::save(self, hard_state, entries, must_sync)
    }

    fn save_snapshot(&mut self, snapshot: &walpb::Snapshot) -> Result<(), Failure> {
        Wal::save_snapshot(self, snapshot)
    }

    fn release_to(&mut self, index: u64) -> Result<(), Failure> {
        Wal::release_to(self, index)
    }

    fn only_appends(&self, bytes: usize) -> bool {
        Wal::only_appends(self, bytes)
    }
}

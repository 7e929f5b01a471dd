//! What one member's consensus is set to, and what it starts from.

use std::time::Duration;

use crate::common::ids::MemberId;
use crate::proto::raftpb::ConfState;
use crate::proto::raftpb::Entry;
use crate::proto::raftpb::HardState;

/// Entries of one append message. With `INFLIGHT_MAX` messages a slow peer pins at most 32 MiB (reliability.md R4, R5).
pub const MESSAGE_BYTES_MAX: u64 = 128 * 1024;
/// Append messages on their way to one peer.
pub const INFLIGHT_MAX: usize = 256;
/// Entries in the leader's log that no quorum has yet; above it proposals are refused (R4).
pub const UNCOMMITTED_BYTES_MAX: u64 = 64 << 20;
/// Committed entries handed to apply at once.
pub const COMMITTED_BYTES_MAX: u64 = 4 << 20;
/// Committed entries that apply has not reported yet: above it a follower drops appends and clients are refused.
pub const UNAPPLIED_BYTES_MAX: u64 = 64 << 20;
/// Committed entries behind which clients are refused (server.md 12).
pub const UNAPPLIED_ENTRIES_MAX: u64 = 5_000;

/// How much of the applied log stays in memory for followers that are a little behind; the smaller one counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CatchUp {
    pub entries: u64,
    pub bytes: u64,
}

impl Default for CatchUp {
    fn default() -> CatchUp {
        CatchUp { entries: 5_000, bytes: 64 << 20 }
    }
}

/// Settings of one member. Times are in ticks but for the tick itself.
#[derive(Clone, Debug)]
pub struct RaftConfig {
    pub id: MemberId,
    /// etcd's `--heartbeat-interval`.
    pub tick: Duration,
    /// A follower campaigns after this many to twice this many ticks without a leader.
    pub election_ticks: usize,
    pub heartbeat_ticks: usize,
    /// Ask before raising the term, so that a member that was away does not disturb (Raft thesis 9.6).
    pub pre_vote: bool,
    /// Start with the election timer nearly run down (`--initial-election-tick-advance`).
    pub initial_tick_advance: bool,
    pub catch_up: CatchUp,
    /// A WAL snapshot record is written once a checkpoint is this many entries ahead of the last one (`--snapshot-count`).
    pub snapshot_entries: u64,
    /// Randomises election timeouts; equal seeds give equal runs (reliability.md R23).
    pub seed: u64,
}

impl RaftConfig {
    /// etcd's defaults: 100 ms, 10 ticks, pre-vote on.
    pub fn new(id: MemberId, seed: u64) -> RaftConfig {
        RaftConfig {
            id,
            tick: Duration::from_millis(100),
            election_ticks: 10,
            heartbeat_ticks: 1,
            pre_vote: true,
            initial_tick_advance: true,
            catch_up: CatchUp::default(),
            snapshot_entries: 10_000,
            seed,
        }
    }
}

/// What a member starts from: its log as recovered, and how far its state has applied it.
#[derive(Clone, Debug, Default)]
pub struct Start {
    /// The newest one in the log; all zero for a member that joins.
    pub hard_state: HardState,
    /// Index and term of the entry before the first of `entries`; (0, 0) for a whole log.
    pub base: (u64, u64),
    /// In index order without gaps, starting at `base.0 + 1`.
    pub entries: Vec<Entry>,
    /// The checkpoint's applied index. What was replayed behind it is only in memory, so the log must keep it.
    pub durable_index: u64,
    /// The state's applied index, its entry's term, and the configuration at exactly that index (R14).
    pub applied: (u64, u64),
    pub conf_state: ConfState,
}

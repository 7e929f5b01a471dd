//! Consensus: the log on disk, the raft node, the thread that drives both.
//!
//! Nothing outside this folder names a type of the raft library; nothing inside knows what an entry means.

pub mod state_machine;
pub mod wal;

//! Consensus: the log on disk, the raft node, the thread that drives both.
//!
//! Nothing outside this folder names a type of the raft library; nothing inside knows what an entry means.
//!
//! ```text
//!   handle ──▶ inbox ──▶ driver (thread `raft`) ──▶ node (pure) ──▶ library
//!     ▲                    │   │   └──▶ log store: one fdatasync a round
//!     │ applied, built     │   └──▶ transport: messages
//!   apply ◀────────────────┘ state machine: committed entries, reads, status
//! ```

pub mod bootstrap;
pub mod config;
pub mod convert;
pub mod driver;
pub mod guard;
pub mod handed_out;
pub mod handle;
pub mod input;
pub mod log;
pub mod log_store;
pub mod mailbox;
pub mod metrics;
pub mod node;
pub mod recover;
pub mod state_machine;
#[cfg(test)]
mod testing;
pub mod wal;

//! The key-value store: every revision of every key, in memory and in the checkpoint.
//!
//! ```text
//!   apply thread                                   readers
//!   store ─ begin() ─▶ write: puts, deletes        views.current() ─▶ View ─▶ read, pages, hash
//!     │                  │                                             ▲
//!     │ compaction_step  ▼                                             │ pictures
//!     └──────────▶ view::Live { index, records (ring), tables } ───────┘
//!                        │ take_changes        ▲ flushed
//!                        ▼                     │
//!                      the flusher ──▶ checkpoint
//! ```
//!
//! Written against the `Tables` trait of the checkpoint; knows no clock, no network, no lease beyond its number.

pub mod compaction;
mod counts;
pub mod hash;
pub mod index;
pub mod pages;
pub mod read;
pub mod records;
pub mod restore;
pub mod store;
pub mod view;
pub mod write;

#[cfg(test)]
pub mod testing;

#[cfg(test)]
mod tests;

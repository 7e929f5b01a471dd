//! Who is told of changes: any number of watchers on any range of keys, from any revision on.
//!
//! ```text
//!  apply ── records of a batch ──▶ hub ──▶ outbox of each stream ──▶ its response body
//!             (dropped when full)   │ ▲
//!                        jobs of    ▼ │ slices
//!                     those behind  catchup (a thread of its own, over Views)
//! ```
//!
//! The hub takes revisions in order, each once, from apply or, when some were dropped or a snapshot took their place,
//! from history. `head` is the last one it has seen: a watcher is *synced* when everything up to `head` that concerns it
//! lies in its stream's outbox. A watcher that starts in the past, or whose stream has no room, is *behind*: it has a
//! cursor of its own and gets slices of history, one watcher after the other, until it stands at `head` again.
//!
//! * `group` finds the watchers of a key without looking at the others; `event` encodes a change once for all of them.
//! * `stream` is what waits to be read by one client, bounded in bytes.
//! * `hub` is the machine: an event in, bytes into outboxes and jobs out. It knows no clock, no thread and no socket.
//! * `catchup` reads history; `thread` gives both their threads.

pub mod catchup;
pub mod event;
pub mod group;
pub mod hub;
pub mod metrics;
pub mod stream;
pub mod thread;

#[cfg(test)]
mod tests;

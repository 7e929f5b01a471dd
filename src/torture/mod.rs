//! The judge of clusters under faults: what clients saw, held against what the protocol promises.
//!
//! `checker` reads a recorded history and the log behind it. The simulator (`sim`) records its own; `quorate torture`
//! records one of real processes. Nothing in here knows how a cluster is run.

pub mod checker;

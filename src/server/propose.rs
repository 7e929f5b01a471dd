//! The only way to write: an id, a size check, a place in the log, and the outcome.

//! The key-value store: every revision of every key, in memory and in the checkpoint.

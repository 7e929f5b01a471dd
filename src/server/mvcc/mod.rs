//! The key-value store: every revision of every key, in memory and in the checkpoint.

pub mod index;

#[cfg(test)]
pub mod testing;

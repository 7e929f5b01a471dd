//! The apply thread: committed entries in order, into the state, deterministically.

pub mod kv;
pub mod txn;

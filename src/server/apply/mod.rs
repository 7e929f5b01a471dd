//! The apply thread: committed entries in order, into the state, deterministically.

//! The read barrier: one ReadIndex for all who wait, then a view.

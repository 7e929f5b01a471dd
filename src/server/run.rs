//! Composition root: puts a member together, starts it, stops it in order.

//! What the tests of the store and of apply share: tables in memory, a store over them, a naive model, seeded numbers.

pub mod dice;
pub mod harness;
pub mod model;
pub mod tables;

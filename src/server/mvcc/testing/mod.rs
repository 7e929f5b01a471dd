//! What the tests of the store and of apply share: tables in memory, seeded numbers.

pub mod dice;
pub mod tables;

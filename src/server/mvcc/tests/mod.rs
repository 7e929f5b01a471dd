//! The store as a whole: against a naive model, with readers on other threads, and in scripts.

mod random;
mod readers;
mod restart;
mod scripts;

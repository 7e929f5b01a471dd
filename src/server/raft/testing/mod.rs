//! Tests of the node in company: a seeded network, crashes, and a judge that knows what Raft promises.

mod chaos;
mod cluster;
mod conf_changes;
mod driver;
mod lent;
mod scenarios;

//! The log as a whole: round trips, crashes, damage, and the logs of real members.

mod crash;
mod damage;
mod fixtures;
mod round_trip;

use std::path::Path;
use std::path::PathBuf;
use std::sync::Arc;

use bytes::Bytes;

use crate::common::failure::Failure;
use crate::disk::sim::SimDisk;
use crate::proto::raftpb::ConfState;
use crate::proto::raftpb::Entry;
use crate::proto::raftpb::HardState;
use crate::proto::walpb::Metadata;
use crate::proto::walpb::Snapshot;
use crate::server::raft::wal::Recovered;
use crate::server::raft::wal::Wal;
use crate::server::raft::wal::WalOptions;

const METADATA: Metadata = Metadata { node_id: 0xd916_fb8a_2b4f_dd15, cluster_id: 7 };

/// Small segments, and nothing on other threads.
const SMALL: WalOptions = WalOptions { segment_bytes: 2048, fsync: true, allocate_ahead: false };
/// One segment for everything.
const LARGE: WalOptions = WalOptions { segment_bytes: 65536, fsync: true, allocate_ahead: false };

fn dir() -> &'static Path {
    Path::new("/member/wal")
}

fn create(disk: &SimDisk, options: WalOptions) -> Wal {
    Wal::create(Arc::new(disk.clone()), dir(), METADATA, options).unwrap()
}

fn open(disk: &SimDisk, options: WalOptions) -> Result<(Wal, Recovered), Failure> {
    Wal::open(Arc::new(disk.clone()), dir(), options)
}

fn entry(index: u64, term: u64, size: usize) -> Entry {
    let mut data = format!("{index}.{term}").into_bytes();
    data.resize(data.len().max(size), 0x5a);
    Entry { r#type: 0, term, index, data: Bytes::from(data) }
}

fn entries(indexes: std::ops::RangeInclusive<u64>, term: u64) -> Vec<Entry> {
    indexes.map(|index| entry(index, term, 100)).collect()
}

fn state(term: u64, commit: u64) -> HardState {
    HardState { term, vote: 1, commit }
}

fn snapshot(index: u64, term: u64) -> Snapshot {
    let conf_state = ConfState { voters: vec![1, 2, 3], ..ConfState::default() };
    Snapshot { index, term, conf_state: Some(conf_state) }
}

/// Paths of the segments, in order.
fn segment_paths(disk: &SimDisk) -> Vec<PathBuf> {
    let names = super::segment_names(disk, dir()).unwrap();
    names.iter().map(|name| dir().join(name.to_string())).collect()
}

//! Whole-state transfer in etcd's database file format: building an image, reading one, installing it.

pub mod boltfile;
pub mod contents;
pub mod hash;
pub mod install;
pub mod member_dir;
pub mod metrics;
pub mod send;

use std::fs::File;
use std::path::PathBuf;

use crate::common::failure::Failure;
use crate::proto::raftpb::Message;
use crate::proto::raftpb::Snapshot;

/// An image for followers: an unlinked temporary file in etcd's format that belongs to exactly one raft snapshot.
#[derive(Debug)]
pub struct Image {
    pub snapshot: Snapshot,
    pub file: File,
    pub bytes: u64,
}

/// Where the sender of a MsgSnap finds the image that goes with it.
pub trait ImageSource: Send + Sync {
    /// A reader of its own for the image of this snapshot index; `None` when it was dropped meanwhile.
    fn open(&self, index: u64) -> Result<Option<Image>, Failure>;
}

/// Where a received image goes. Both calls run on a blocking thread.
pub trait ImageSink: Send + Sync {
    /// A path for the incoming image of this index, in the member's snapshot directory; older leftovers are removed.
    fn incoming_path(&self, index: u64) -> PathBuf;
    /// Verifies the complete image at `incoming_path`, converts it to `<index>.redb` and removes it. After this the
    /// message may be stepped.
    fn prepare(&self, message: &Message) -> Result<(), Failure>;
}

#[cfg(test)]
pub mod testing;

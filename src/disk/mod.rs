//! Durable files: what a log and a checkpoint need of a disk, real and simulated.
//!
//! Nothing here knows what a file means. Errors are plain `io::Error`; whoever knows the file's purpose adds its name.

pub mod lock;
pub mod real;
pub mod sim;

use std::io;
use std::path::Path;

/// A directory tree that survives crashes as far as it was synced.
pub trait Disk: Send + Sync {
    /// Creates a file of mode 0600 that must not exist, open for reading and writing.
    fn create(&self, path: &Path) -> io::Result<Box<dyn File>>;
    /// Opens an existing file for reading and writing.
    fn open(&self, path: &Path) -> io::Result<Box<dyn File>>;
    /// Renames within one file system, replacing `to`. Durable after `sync_dir` of the parent.
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()>;
    /// Unlinks a file. Durable after `sync_dir` of the parent.
    fn remove(&self, path: &Path) -> io::Result<()>;
    /// Creates a directory of mode 0700 and its parents; existing ones are fine.
    fn create_dir_all(&self, path: &Path) -> io::Result<()>;
    /// Makes creations, renames and unlinks in `path` durable.
    fn sync_dir(&self, path: &Path) -> io::Result<()>;
    /// Names in a directory, sorted.
    fn list(&self, path: &Path) -> io::Result<Vec<String>>;
    fn exists(&self, path: &Path) -> io::Result<bool>;
}

/// An open file, positioned by the caller.
pub trait File: Send {
    /// Reads until `buffer` is full or the file ends: the number of bytes read.
    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<usize>;
    /// Writes all of `bytes`, growing the file where needed. Durable after `sync_data`.
    fn write_at(&mut self, offset: u64, bytes: &[u8]) -> io::Result<()>;
    /// Cuts or grows the file (with zeros).
    fn set_len(&mut self, len: u64) -> io::Result<()>;
    /// Reserves space up to `len` and makes it read as zeros.
    fn allocate(&mut self, len: u64) -> io::Result<()>;
    fn len(&self) -> io::Result<u64>;
    fn is_empty(&self) -> io::Result<bool> {
        Ok(self.len()? == 0)
    }
    /// fdatasync.
    fn sync_data(&mut self) -> io::Result<()>;
    /// Whether a block that was written once is overwritten where it is: then syncing later writes to it waits for them
    /// only, and not for the file system's own log.
    fn overwrites_in_place(&self) -> bool {
        false
    }
}

/// Creates a directory and its missing parents, and makes all of them durable: one that vanishes at a power cut takes
/// every synced file in it along. The entry of `path` itself is synced even if it exists, for whoever created it may
/// have died before doing so.
pub fn create_dir_durably(disk: &dyn Disk, path: &Path) -> io::Result<()> {
    let mut fresh = vec![path];
    for ancestor in path.ancestors().skip(1) {
        if ancestor.as_os_str().is_empty() || disk.exists(ancestor)? {
            break;
        }
        fresh.push(ancestor);
    }
    disk.create_dir_all(path)?;
    // The outermost first: an entry is of no use in a directory that is not durable itself.
    fresh.iter().rev().try_for_each(|created| disk.sync_dir(parent_of(created)))
}

/// The directory that holds `path`; the current one for a bare name.
pub fn parent_of(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        Some(_) => Path::new("."),
        None => path,
    }
}

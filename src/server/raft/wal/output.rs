//! The segment that is written to, and the one that is prepared to follow it.

use std::io;
use std::path::Path;
use std::path::PathBuf;
use std::sync::Arc;
use std::thread;
use std::thread::JoinHandle;

use crate::common::failure::Failure;
use crate::disk::Disk;
use crate::disk::File;
use crate::server::raft::wal::metrics::Meter;
use crate::server::raft::wal::name::spare_name;

/// An open segment and the position behind its last record.
pub struct Output {
    pub file: Box<dyn File>,
    pub path: PathBuf,
    pub offset: u64,
    /// False leaves it to the operating system when bytes reach the disk (`--unsafe-no-fsync`).
    pub fsync: bool,
}

impl Output {
    pub fn append(&mut self, bytes: &[u8], meter: &Meter) -> Result<(), Failure> {
        let written = meter.write(bytes.len(), || self.file.write_at(self.offset, bytes));
        written.map_err(Failure::io("cannot write", &self.path))?;
        self.offset += bytes.len() as u64;
        Ok(())
    }

    pub fn sync(&mut self, meter: &Meter) -> Result<(), Failure> {
        if !self.fsync {
            return Ok(());
        }
        meter.fsync(|| self.file.sync_data()).map_err(Failure::io("cannot fdatasync", &self.path))
    }

    /// Drops everything behind the last record.
    pub fn truncate(&mut self) -> Result<(), Failure> {
        self.file.set_len(self.offset).map_err(Failure::io("cannot truncate", &self.path))
    }

    /// Reserves space, which reads as zeros.
    pub fn allocate(&mut self, bytes: u64) -> Result<(), Failure> {
        self.file.allocate(bytes).map_err(Failure::io("cannot allocate", &self.path))
    }

    /// Gives the file its place among the segments.
    pub fn rename(&mut self, disk: &dyn Disk, path: PathBuf) -> Result<(), Failure> {
        disk.rename(&self.path, &path).map_err(Failure::io("cannot rename to", &path))?;
        self.path = path;
        Ok(())
    }
}

/// Makes the file of a segment before it has its name, without its bytes. What an earlier process left is replaced.
pub fn make_spare(disk: &dyn Disk, path: &Path, bytes: u64) -> Result<Box<dyn File>, Failure> {
    let exists = disk.exists(path).map_err(Failure::io("cannot look for", path))?;
    if exists {
        disk.remove(path).map_err(Failure::io("cannot remove", path))?;
    }
    let mut file = disk.create(path).map_err(Failure::io("cannot create", path))?;
    file.allocate(bytes).map_err(Failure::io("cannot allocate", path))?;
    Ok(file)
}

/// The next segment's file, made by a thread of its own while this one fills, so that no save waits for it.
pub struct Spare {
    disk: Arc<dyn Disk>,
    dir: PathBuf,
    bytes: u64,
    making: Option<(PathBuf, Making)>,
}

/// The thread that makes a file.
type Making = JoinHandle<Result<Box<dyn File>, Failure>>;

impl Spare {
    pub fn new(disk: Arc<dyn Disk>, dir: &Path, bytes: u64) -> Spare {
        Spare { disk, dir: dir.to_owned(), bytes, making: None }
    }

    fn path(&self, sequence: u64) -> PathBuf {
        self.dir.join(spare_name(sequence))
    }

    /// Begins to make the file for the segment of this sequence, unless that was begun before.
    pub fn prepare(&mut self, sequence: u64) {
        if self.making.is_some() {
            return;
        }
        let path = self.path(sequence);
        let (disk, bytes, name) = (self.disk.clone(), self.bytes, path.clone());
        let make = move || make_spare(&*disk, &name, bytes);
        // Without a thread the file is made when it is needed.
        self.making = thread::Builder::new().name("wal-spare".into()).spawn(make).ok().map(|thread| (path, thread));
    }

    /// The file for the segment of this sequence: the prepared one, or one made now.
    pub fn take(&mut self, sequence: u64) -> Result<(PathBuf, Box<dyn File>), Failure> {
        if let Some((path, thread)) = self.making.take() {
            let file = thread.join().map_err(|_| panicked(&path))??;
            return Ok((path, file));
        }
        let path = self.path(sequence);
        let file = make_spare(&*self.disk, &path, self.bytes)?;
        Ok((path, file))
    }
}

fn panicked(path: &Path) -> Failure {
    Failure::io("cannot allocate", path)(io::Error::other("the thread that makes it panicked"))
}

impl Drop for Spare {
    /// A clean stop leaves no spare behind. After an unclean one the next start removes it.
    fn drop(&mut self) {
        if let Some((path, thread)) = self.making.take() {
            thread.join().ok();
            self.disk.remove(&path).ok();
        }
    }
}

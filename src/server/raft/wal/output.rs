//! The segment that is written to, and the one that is prepared to follow it.

use std::io;
use std::path::Path;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering;
use std::thread;
use std::thread::JoinHandle;
use std::time::Instant;

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
    /// So many bytes from its front were written before; all that can be, if nothing is gained by it.
    pub filled: u64,
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
///
/// It is not only allocated but written, with zeros, where the file system overwrites in place. The first write to an
/// allocated block changes the file system's own log, and its sync waits for that log and for all others who sync
/// theirs: with batches of a few hundred kilobytes beside the checkpoint's writes, several times as long.
pub struct Spare {
    disk: Arc<dyn Disk>,
    dir: PathBuf,
    bytes: u64,
    making: Option<Making>,
}

/// A file being made.
struct Making {
    path: PathBuf,
    /// The file is needed now, written or not.
    hurry: Arc<AtomicBool>,
    thread: JoinHandle<Result<SpareFile, Failure>>,
}

/// A file for a segment.
pub struct SpareFile {
    pub file: Box<dyn File>,
    /// See `Output::filled`.
    pub filled: u64,
}

/// Zeros written and synced at once: a save meanwhile waits for so many at most.
const FILL_BYTES: usize = 1 << 20;
/// After each such write the disk is the others' for so many times as long as it took.
const FILL_PAUSE: u32 = 4;

impl Spare {
    pub fn new(disk: Arc<dyn Disk>, dir: &Path, bytes: u64) -> Spare {
        Spare { disk, dir: dir.to_owned(), bytes, making: None }
    }

    fn path(&self, sequence: u64) -> PathBuf {
        self.dir.join(spare_name(sequence))
    }

    /// Begins to make the file for the segment of this sequence, unless that was begun before.
    pub fn prepare(&mut self, sequence: u64, fill: bool) {
        if self.making.is_some() {
            return;
        }
        let path = self.path(sequence);
        let hurry = Arc::new(AtomicBool::new(false));
        let (disk, bytes, name, hurried) = (self.disk.clone(), self.bytes, path.clone(), hurry.clone());
        let make = move || {
            let mut file = make_spare(&*disk, &name, bytes)?;
            let filled = match fill && file.overwrites_in_place() {
                true => fill_with_zeros(&mut *file, bytes, &hurried).map_err(Failure::io("cannot write", &name))?,
                false => u64::MAX,
            };
            Ok(SpareFile { file, filled })
        };
        // Without a thread the file is made when it is needed.
        let thread = thread::Builder::new().name("wal-spare".into()).spawn(make).ok();
        self.making = thread.map(|thread| Making { path, hurry, thread });
    }

    /// Whether a prepared file is there.
    pub fn is_ready(&self) -> bool {
        self.making.as_ref().is_some_and(|making| making.thread.is_finished())
    }

    /// The file for the segment of this sequence: the prepared one, or one made now.
    pub fn take(&mut self, sequence: u64) -> Result<(PathBuf, SpareFile), Failure> {
        if let Some(Making { path, hurry, thread }) = self.making.take() {
            hurry.store(true, Ordering::Relaxed);
            thread.thread().unpark();
            let spare = thread.join().map_err(|_| panicked(&path))??;
            return Ok((path, spare));
        }
        let path = self.path(sequence);
        let file = make_spare(&*self.disk, &path, self.bytes)?;
        let filled = if file.overwrites_in_place() { 0 } else { u64::MAX };
        Ok((path, SpareFile { file, filled }))
    }
}

/// Writes zeros from front to end, durably, until it is done or hurried. How far it came.
fn fill_with_zeros(file: &mut dyn File, bytes: u64, hurry: &AtomicBool) -> io::Result<u64> {
    let zeros = vec![0; FILL_BYTES];
    let mut at = 0;
    while at < bytes && !hurry.load(Ordering::Relaxed) {
        let rest = usize::try_from(bytes - at).unwrap_or(usize::MAX).min(FILL_BYTES);
        let started = Instant::now();
        file.write_at(at, &zeros[..rest])?;
        file.sync_data()?;
        at += rest as u64;
        // Woken when it is hurried.
        thread::park_timeout(started.elapsed() * FILL_PAUSE);
    }
    Ok(at)
}

fn panicked(path: &Path) -> Failure {
    Failure::io("cannot allocate", path)(io::Error::other("the thread that makes it panicked"))
}

impl Drop for Spare {
    /// A clean stop leaves no spare behind. After an unclean one the next start removes it.
    fn drop(&mut self) {
        if let Some(Making { path, hurry, thread }) = self.making.take() {
            hurry.store(true, Ordering::Relaxed);
            thread.thread().unpark();
            thread.join().ok();
            self.disk.remove(&path).ok();
        }
    }
}

//! A disk in memory that can lose power, for tests and the simulator.
//!
//! Every operation that changes something has a number. A test names the one at which the power fails, or the one that
//! returns an error; afterwards `restart` gives the disk that a machine would find when it boots again. Unsynced
//! writes are kept, dropped or torn sector by sector, unsynced lengths and directory entries are kept or dropped. All
//! choices come from the seed, so that a seed and the operations decide the outcome.

mod dice;
mod inode;
mod tree;

use std::collections::BTreeMap;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::MutexGuard;
use std::sync::PoisonError;

pub use crate::disk::sim::dice::Dice;
pub use crate::disk::sim::inode::SECTOR_BYTES;

use crate::disk::Disk;
use crate::disk::File;
use crate::disk::sim::inode::Inode;
use crate::disk::sim::tree::Node;
use crate::disk::sim::tree::Tree;

/// A handle; clones share the disk.
#[derive(Clone, Debug)]
pub struct SimDisk {
    state: Arc<Mutex<State>>,
}

#[derive(Debug)]
struct State {
    dice: Dice,
    tree: Tree,
    inodes: Vec<Inode>,
    /// Operations begun since the disk was made, reads excepted.
    operations: u64,
    crash_at: Option<u64>,
    /// Raw error numbers by operation.
    faults: BTreeMap<u64, i32>,
    powerless: bool,
    syncs: u64,
}

/// What becomes of an operation.
enum Fate {
    Succeeds,
    /// It may or may not have reached the disk when the power went.
    LosesPower,
    Fails(i32),
}

impl SimDisk {
    pub fn new(seed: u64) -> SimDisk {
        SimDisk::with(Dice::new(seed), Tree::new(), Vec::new())
    }

    fn with(dice: Dice, tree: Tree, inodes: Vec<Inode>) -> SimDisk {
        let state = State {
            dice,
            tree,
            inodes,
            operations: 0,
            crash_at: None,
            faults: BTreeMap::new(),
            powerless: false,
            syncs: 0,
        };
        SimDisk { state: Arc::new(Mutex::new(state)) }
    }

    /// The power fails at the `n`-th changing operation from now (1 is the next): it and all later ones return errors.
    pub fn crash_at(&self, n: u64) {
        let mut state = self.lock();
        state.crash_at = Some(state.operations + n);
    }

    /// The `n`-th changing operation from now (1 is the next) returns this error number; later ones go on. A write
    /// leaves its first part, up to a sector, as a full disk does; a failed sync loses what it should have saved.
    pub fn fail_at(&self, n: u64, errno: i32) {
        let mut state = self.lock();
        let at = state.operations + n;
        state.faults.insert(at, errno);
    }

    /// Changing operations begun so far.
    pub fn operations(&self) -> u64 {
        self.lock().operations
    }

    /// File syncs that succeeded so far.
    pub fn syncs(&self) -> u64 {
        self.lock().syncs
    }

    pub fn has_crashed(&self) -> bool {
        self.lock().powerless
    }

    /// Cuts the power, if it is not off already, and gives the disk that survives. Handles to the old one stay dead.
    pub fn restart(&self) -> SimDisk {
        let mut state = self.lock();
        state.powerless = true;
        let mut dice = Dice::new(state.dice.roll());
        let tree = state.tree.crash(&mut dice);
        let inodes = state.inodes.iter().map(|inode| inode.crash(&mut dice)).collect();
        SimDisk::with(dice, tree, inodes)
    }

    /// The content of a file as a reader sees it now.
    pub fn content(&self, path: &Path) -> io::Result<Vec<u8>> {
        let state = self.lock();
        let inode = state.tree.find_file(path)?;
        Ok(state.inodes[inode].content().to_vec())
    }

    /// Gives an existing file another content, durably: damage made on purpose.
    pub fn damage(&self, path: &Path, content: Vec<u8>) -> io::Result<()> {
        let mut state = self.lock();
        let inode = state.tree.find_file(path)?;
        state.inodes[inode].replace(content);
        Ok(())
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Runs a directory operation under its fate. One that loses power may still survive, so it is done, not reported.
    fn change<T>(&self, operation: impl FnOnce(&mut State) -> io::Result<T>) -> io::Result<T> {
        let mut state = self.lock();
        match state.begin()? {
            Fate::Succeeds => operation(&mut state),
            Fate::LosesPower => {
                operation(&mut state).ok();
                Err(power_is_off())
            }
            Fate::Fails(errno) => Err(io::Error::from_raw_os_error(errno)),
        }
    }
}

impl State {
    fn begin(&mut self) -> io::Result<Fate> {
        self.powered()?;
        self.operations += 1;
        if self.crash_at.is_some_and(|at| self.operations >= at) {
            self.powerless = true;
            return Ok(Fate::LosesPower);
        }
        Ok(self.faults.remove(&self.operations).map_or(Fate::Succeeds, Fate::Fails))
    }

    fn powered(&self) -> io::Result<()> {
        if self.powerless { Err(power_is_off()) } else { Ok(()) }
    }
}

fn power_is_off() -> io::Error {
    io::Error::other("simulated power cut")
}

impl Disk for SimDisk {
    fn create(&self, path: &Path) -> io::Result<Box<dyn File>> {
        let inode = self.change(|state| {
            state.tree.create_file(path, state.inodes.len())?;
            state.inodes.push(Inode::default());
            Ok(state.inodes.len() - 1)
        })?;
        Ok(Box::new(SimFile { disk: self.clone(), inode }))
    }

    fn open(&self, path: &Path) -> io::Result<Box<dyn File>> {
        let state = self.lock();
        state.powered()?;
        let inode = state.tree.find_file(path)?;
        Ok(Box::new(SimFile { disk: self.clone(), inode }))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.change(|state| state.tree.rename(from, to))
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        self.change(|state| state.tree.remove(path))
    }

    fn create_dir_all(&self, path: &Path) -> io::Result<()> {
        self.change(|state| state.tree.create_dir_all(path))
    }

    fn sync_dir(&self, path: &Path) -> io::Result<()> {
        let mut state = self.lock();
        match state.begin()? {
            Fate::Succeeds => state.tree.sync(path),
            // What it would have saved is still pending: some of it may survive.
            Fate::LosesPower => Err(power_is_off()),
            Fate::Fails(errno) => Err(io::Error::from_raw_os_error(errno)),
        }
    }

    fn list(&self, path: &Path) -> io::Result<Vec<String>> {
        let state = self.lock();
        state.powered()?;
        state.tree.list(path)
    }

    fn exists(&self, path: &Path) -> io::Result<bool> {
        let state = self.lock();
        state.powered()?;
        match state.tree.find(path) {
            Ok(Node::File(_) | Node::Dir(_)) => Ok(true),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(error) => Err(error),
        }
    }
}

struct SimFile {
    disk: SimDisk,
    inode: usize,
}

impl SimFile {
    fn resize(&self, choose: impl FnOnce(usize) -> usize) -> io::Result<()> {
        self.disk.change(|state| {
            let inode = &mut state.inodes[self.inode];
            let len = choose(inode.content().len());
            inode.resize(len);
            Ok(())
        })
    }
}

impl File for SimFile {
    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<usize> {
        let state = self.disk.lock();
        state.powered()?;
        let content = state.inodes[self.inode].content();
        let rest = content.get(position(offset)?..).unwrap_or_default();
        let count = rest.len().min(buffer.len());
        buffer[..count].copy_from_slice(&rest[..count]);
        Ok(count)
    }

    fn write_at(&mut self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        let offset = position(offset)?;
        let mut state = self.disk.lock();
        let fate = state.begin()?;
        let inode = &mut state.inodes[self.inode];
        match fate {
            Fate::Succeeds => inode.write(offset, bytes),
            Fate::LosesPower => {
                inode.write(offset, bytes);
                return Err(power_is_off());
            }
            Fate::Fails(errno) => {
                let end = (offset + bytes.len() / 2) / SECTOR_BYTES * SECTOR_BYTES;
                inode.write(offset, &bytes[..end.saturating_sub(offset)]);
                return Err(io::Error::from_raw_os_error(errno));
            }
        }
        Ok(())
    }

    fn set_len(&mut self, len: u64) -> io::Result<()> {
        let len = position(len)?;
        self.resize(|_| len)
    }

    fn allocate(&mut self, len: u64) -> io::Result<()> {
        let len = position(len)?;
        self.resize(|current| current.max(len))
    }

    fn len(&self) -> io::Result<u64> {
        let state = self.disk.lock();
        state.powered()?;
        Ok(state.inodes[self.inode].content().len() as u64)
    }

    fn sync_data(&mut self) -> io::Result<()> {
        let mut state = self.disk.lock();
        match state.begin()? {
            Fate::Succeeds => {
                state.inodes[self.inode].sync();
                state.syncs += 1;
                Ok(())
            }
            Fate::LosesPower => Err(power_is_off()),
            Fate::Fails(errno) => {
                state.inodes[self.inode].fail_sync();
                Err(io::Error::from_raw_os_error(errno))
            }
        }
    }
}

fn position(offset: u64) -> io::Result<usize> {
    usize::try_from(offset).map_err(|_| io::ErrorKind::FileTooLarge.into())
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    const ENOSPC: i32 = 28;

    fn write_and_sync(disk: &SimDisk) -> io::Result<()> {
        disk.create_dir_all(Path::new("/d"))?;
        disk.sync_dir(Path::new("/"))?;
        let mut file = disk.create(Path::new("/d/a"))?;
        file.write_at(0, &[5; 1024])?;
        file.sync_data()?;
        disk.sync_dir(Path::new("/d"))
    }

    #[test]
    fn power_fails_at_the_numbered_operation_and_stays_off() {
        for n in 1..=6 {
            let disk = SimDisk::new(n);
            disk.crash_at(n);
            assert_eq!(write_and_sync(&disk).unwrap_err().to_string(), "simulated power cut");
            assert_eq!(disk.operations(), n);
            assert!(disk.exists(Path::new("/d")).is_err());
            assert!(disk.create_dir_all(Path::new("/e")).is_err());
        }
        let disk = SimDisk::new(7);
        disk.crash_at(7);
        write_and_sync(&disk).unwrap();
    }

    #[test]
    fn synced_file_survives_and_an_unsynced_entry_may_not() {
        let mut outcomes = BTreeSet::new();
        for seed in 0..50 {
            let disk = SimDisk::new(seed);
            disk.crash_at(6);
            write_and_sync(&disk).unwrap_err();
            let after = disk.restart();
            match after.content(Path::new("/d/a")) {
                Ok(content) => outcomes.insert(Some(content == [5; 1024])),
                Err(_) => outcomes.insert(None),
            };
            assert!(after.exists(Path::new("/d")).unwrap());
        }
        assert_eq!(outcomes, BTreeSet::from([None, Some(true)]));
    }

    #[test]
    fn equal_seeds_leave_equal_disks() {
        let survivor = |seed| {
            let disk = SimDisk::new(seed);
            disk.crash_at(5);
            write_and_sync(&disk).unwrap_err();
            disk.restart().content(Path::new("/d/a")).ok()
        };
        for seed in 0..50 {
            assert_eq!(survivor(seed), survivor(seed));
        }
    }

    #[test]
    fn injected_fault_hits_once_and_a_full_disk_leaves_whole_sectors() {
        let disk = SimDisk::new(1);
        let mut file = disk.create(Path::new("/a")).unwrap();
        disk.fail_at(1, ENOSPC);
        let error = file.write_at(0, &[3; 2000]).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::StorageFull);
        assert_eq!(disk.content(Path::new("/a")).unwrap(), [3; 512]);
        file.write_at(0, &[4; 100]).unwrap();
    }

    #[test]
    fn handles_of_a_crashed_disk_stay_dead_and_the_survivor_works() {
        let disk = SimDisk::new(1);
        let mut file = disk.create(Path::new("/a")).unwrap();
        let after = disk.restart();
        assert!(file.write_at(0, b"x").is_err());
        assert!(file.len().is_err());
        write_and_sync(&after).unwrap();
        assert_eq!(after.syncs(), 1);
    }
}

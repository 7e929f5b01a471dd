//! A file system for one data directory: an ext4 in a file, which can be filled or cut off from its power. For root.
//!
//! The power cut is the abort that ext4 offers to its testers: from then on nothing reaches the device any more, and a
//! fresh mount shows what was synced, as after a real one (tried here: synced bytes stayed, unsynced ones were zeros).

use std::fs::File;
use std::io;
use std::path::Path;
use std::path::PathBuf;
use std::process::Command;

use nix::fcntl::FallocateFlags;
use nix::fcntl::fallocate;
use nix::sched::CloneFlags;
use nix::sched::unshare;
use nix::sys::statvfs::statvfs;

/// Room for a log that is never thinned out, and more; the file is sparse.
const IMAGE_BYTES: u64 = 8 << 30;
/// The file that takes all the space.
const BALLOON: &str = "balloon";

/// Moves the calling thread, and all that it starts, to a mount table of its own: whatever is mounted is gone when the
/// last of them ends, however it ends. For the main thread, before there are others.
pub fn own_mount_table() -> io::Result<()> {
    unshare(CloneFlags::CLONE_NEWNS)?;
    run(Command::new("mount").args(["--make-rprivate", "/"]))
}

/// The file system, mounted or not.
#[derive(Debug)]
pub struct Volume {
    image: PathBuf,
    dir: PathBuf,
    mounted: bool,
}

impl Volume {
    /// Makes `<dir>.image` and mounts it at `dir`.
    pub fn new(dir: &Path) -> io::Result<Volume> {
        std::fs::create_dir_all(dir)?;
        let image = dir.with_extension("image");
        File::create(&image)?.set_len(IMAGE_BYTES)?;
        // Nothing is kept back for root: full means full. A small journal and no lazy work, so that it is quick.
        let options = ["-q", "-F", "-m", "0", "-J", "size=16", "-E", "lazy_itable_init=1,lazy_journal_init=1"];
        run(Command::new("mkfs.ext4").args(options).arg(&image))?;
        let mut volume = Volume { image, dir: dir.to_owned(), mounted: false };
        volume.mount()?;
        Ok(volume)
    }

    pub fn is_mounted(&self) -> bool {
        self.mounted
    }

    fn mount(&mut self) -> io::Result<()> {
        run(Command::new("mount").args(["-o", "loop"]).arg(&self.image).arg(&self.dir))?;
        self.mounted = true;
        Ok(())
    }

    /// From now on nothing that is written here is kept.
    pub fn cut_power(&mut self) -> io::Result<()> {
        run(Command::new("mount").args(["-o", "remount,abort"]).arg(&self.dir))
    }

    /// Mounts it anew. Nobody may have a file open here.
    pub fn restore_power(&mut self) -> io::Result<()> {
        self.unmount()?;
        self.mount()
    }

    fn unmount(&mut self) -> io::Result<()> {
        if self.mounted {
            run(Command::new("umount").arg(&self.dir))?;
            self.mounted = false;
        }
        Ok(())
    }

    /// Leaves no space.
    pub fn fill(&self) -> io::Result<()> {
        let file = File::create(self.dir.join(BALLOON))?;
        let mut taken = 0;
        // Large pieces first: what is left in the end is less than a block.
        let mut piece = statvfs(&self.dir)?.blocks_available().saturating_mul(4096);
        while piece >= 4096 {
            let length = i64::try_from(piece).unwrap_or(i64::MAX);
            match fallocate(&file, FallocateFlags::empty(), taken, length) {
                Ok(()) => taken += length,
                Err(_) => piece /= 2,
            }
        }
        Ok(())
    }

    /// Gives the space back.
    pub fn empty(&self) -> io::Result<()> {
        match std::fs::remove_file(self.dir.join(BALLOON)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }
}

impl Drop for Volume {
    fn drop(&mut self) {
        // Detached at least: the mount table ends with us.
        if self.unmount().is_err() {
            let _ = run(Command::new("umount").arg("-l").arg(&self.dir));
        }
    }
}

fn run(command: &mut Command) -> io::Result<()> {
    let output = command.output().map_err(|error| io::Error::new(error.kind(), format!("{command:?}: {error}")))?;
    if output.status.success() {
        return Ok(());
    }
    Err(io::Error::other(format!("{command:?}: {}", String::from_utf8_lossy(&output.stderr).trim())))
}

//! The disk of this machine, through the operating system.

use std::fs;
use std::fs::DirBuilder;
use std::fs::OpenOptions;
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::os::unix::fs::FileExt;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use nix::errno::Errno;
use nix::fcntl::FallocateFlags;
use nix::fcntl::fallocate;
use nix::sys::statfs::EXT4_SUPER_MAGIC;
use nix::sys::statfs::XFS_SUPER_MAGIC;
use nix::sys::statfs::fstatfs;

use crate::disk::Disk;
use crate::disk::File;

/// Only the owner reads a member's data (etcd: fileutil.PrivateFileMode).
const FILE_MODE: u32 = 0o600;
/// Only the owner enters a member's directories (etcd: fileutil.PrivateDirMode).
const DIR_MODE: u32 = 0o700;

/// Files of the operating system.
#[derive(Clone, Copy, Debug, Default)]
pub struct RealDisk;

impl Disk for RealDisk {
    fn create(&self, path: &Path) -> io::Result<Box<dyn File>> {
        let file = OpenOptions::new().read(true).write(true).create_new(true).mode(FILE_MODE).open(path)?;
        Ok(Box::new(RealFile(file)))
    }

    fn open(&self, path: &Path) -> io::Result<Box<dyn File>> {
        Ok(Box::new(RealFile(OpenOptions::new().read(true).write(true).open(path)?)))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        fs::rename(from, to)
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        fs::remove_file(path)
    }

    fn create_dir_all(&self, path: &Path) -> io::Result<()> {
        DirBuilder::new().recursive(true).mode(DIR_MODE).create(path)
    }

    fn sync_dir(&self, path: &Path) -> io::Result<()> {
        fs::File::open(path)?.sync_all()
    }

    fn list(&self, path: &Path) -> io::Result<Vec<String>> {
        let mut names = Vec::new();
        for entry in fs::read_dir(path)? {
            // A name that is not UTF-8 is none of ours.
            if let Ok(name) = entry?.file_name().into_string() {
                names.push(name);
            }
        }
        names.sort();
        Ok(names)
    }

    fn exists(&self, path: &Path) -> io::Result<bool> {
        path.try_exists()
    }
}

struct RealFile(fs::File);

impl File for RealFile {
    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<usize> {
        let mut read = 0;
        while read < buffer.len() {
            match self.0.read_at(&mut buffer[read..], offset + read as u64) {
                Ok(0) => break,
                Ok(count) => read += count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(read)
    }

    fn write_at(&mut self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        self.0.write_all_at(bytes, offset)
    }

    fn set_len(&mut self, len: u64) -> io::Result<()> {
        self.0.set_len(len)
    }

    fn allocate(&mut self, len: u64) -> io::Result<()> {
        let wanted = i64::try_from(len).map_err(|_| io::Error::from(io::ErrorKind::FileTooLarge))?;
        if wanted == 0 {
            return Ok(());
        }
        loop {
            match fallocate(&self.0, FallocateFlags::empty(), 0, wanted) {
                Ok(()) => return Ok(()),
                Err(Errno::EINTR) => {}
                // Not every file system can reserve; a length without blocks still reads as zeros.
                Err(Errno::EOPNOTSUPP | Errno::ENOSYS) if self.len()? < len => return self.set_len(len),
                Err(Errno::EOPNOTSUPP | Errno::ENOSYS) => return Ok(()),
                Err(errno) => return Err(errno.into()),
            }
        }
    }

    fn len(&self) -> io::Result<u64> {
        Ok(self.0.metadata()?.len())
    }

    fn sync_data(&mut self) -> io::Result<()> {
        self.0.sync_data()
    }

    fn overwrites_in_place(&self) -> bool {
        // ext2 and ext3 share the number. Where blocks are copied on write, a second write would cost the space that was
        // reserved for the first.
        fstatfs(&self.0).is_ok_and(|kind| matches!(kind.filesystem_type(), EXT4_SUPER_MAGIC | XFS_SUPER_MAGIC))
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;
    use crate::disk::create_dir_durably;

    #[test]
    fn files_and_directories_are_private() {
        let temp = tempfile::tempdir().unwrap();
        let dir = temp.path().join("member").join("wal");
        create_dir_durably(&RealDisk, &dir).unwrap();
        RealDisk.create(&dir.join("a")).unwrap();
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode(&dir), 0o700);
        assert_eq!(mode(dir.parent().unwrap()), 0o700);
        assert_eq!(mode(&dir.join("a")), 0o600);
    }

    #[test]
    fn allocated_space_reads_as_zeros_and_never_shrinks_a_file() {
        let temp = tempfile::tempdir().unwrap();
        let mut file = RealDisk.create(&temp.path().join("a")).unwrap();
        file.allocate(4096).unwrap();
        file.write_at(4000, &[7; 200]).unwrap();
        file.allocate(100).unwrap();
        file.sync_data().unwrap();
        assert_eq!(file.len().unwrap(), 4200);
        let mut buffer = vec![1; 5000];
        assert_eq!(file.read_at(0, &mut buffer).unwrap(), 4200);
        assert!(buffer[..4000].iter().all(|byte| *byte == 0));
        assert_eq!(buffer[4000..4200], [7; 200]);
        file.set_len(10).unwrap();
        assert_eq!(file.len().unwrap(), 10);
    }

    #[test]
    fn create_refuses_an_existing_file_and_open_a_missing_one() {
        let temp = tempfile::tempdir().unwrap();
        let (a, b) = (temp.path().join("a"), temp.path().join("b"));
        RealDisk.create(&a).unwrap();
        let kind = |result: io::Result<Box<dyn File>>| result.err().map(|error| error.kind());
        assert_eq!(kind(RealDisk.create(&a)), Some(io::ErrorKind::AlreadyExists));
        assert_eq!(kind(RealDisk.open(&b)), Some(io::ErrorKind::NotFound));
        RealDisk.rename(&a, &b).unwrap();
        assert_eq!(RealDisk.list(temp.path()).unwrap(), ["b"]);
        RealDisk.sync_dir(temp.path()).unwrap();
        RealDisk.remove(&b).unwrap();
        assert!(!RealDisk.exists(&b).unwrap());
    }
}

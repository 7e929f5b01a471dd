//! One process a data directory: an exclusive lock that lasts as long as its holder lives.

use std::fs::File;
use std::fs::OpenOptions;
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::path::PathBuf;

use nix::errno::Errno;
use nix::fcntl::Flock;
use nix::fcntl::FlockArg;

/// The file that is locked, in the directory that it stands for.
pub const LOCK_FILE: &str = "lock";

/// Why a directory could not be locked.
#[derive(Debug, thiserror::Error)]
pub enum LockError {
    #[error("data directory {path} is locked by another process", path = .0.display())]
    Locked(PathBuf),
    #[error("cannot lock {path}: {source}", path = path.display())]
    Io { path: PathBuf, source: io::Error },
}

/// Holds the lock until dropped. The kernel drops it with the process, however that ends.
#[derive(Debug)]
pub struct DirLock {
    _held: Flock<File>,
}

impl DirLock {
    /// Locks an existing directory without waiting. The lock file stays behind: removing it would let a third process
    /// lock a new file while a second one waits for the old.
    pub fn acquire(dir: &Path) -> Result<DirLock, LockError> {
        let path = dir.join(LOCK_FILE);
        let failed = |source| LockError::Io { path: path.clone(), source };
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(&path)
            .map_err(failed)?;
        match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Ok(held) => Ok(DirLock { _held: held }),
            Err((_, Errno::EWOULDBLOCK)) => Err(LockError::Locked(dir.to_owned())),
            Err((_, errno)) => Err(LockError::Io { path, source: errno.into() }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn second_lock_is_refused_until_the_first_ends() {
        let temp = tempfile::tempdir().unwrap();
        let held = DirLock::acquire(temp.path()).unwrap();
        let error = DirLock::acquire(temp.path()).unwrap_err();
        assert_eq!(error.to_string(), format!("data directory {} is locked by another process", temp.path().display()));
        drop(held);
        DirLock::acquire(temp.path()).unwrap();
    }

    #[test]
    fn missing_directory_is_an_error_that_names_the_file() {
        let temp = tempfile::tempdir().unwrap();
        let error = DirLock::acquire(&temp.path().join("none")).unwrap_err().to_string();
        assert!(error.contains("none/lock"), "{error}");
    }
}

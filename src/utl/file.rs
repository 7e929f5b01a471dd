//! Opening a database file that somebody may have open: etcd's, or ours.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::thread;
use std::time::Duration;
use std::time::Instant;

use nix::errno::Errno;
use nix::fcntl::Flock;
use nix::fcntl::FlockArg;

use crate::common::failure::Failure;
use crate::server::snapshot::boltfile::reader::BoltFile;
use crate::utl::error::UtlError;

/// How our own database files begin (redb's magic number).
const OURS: [u8; 9] = *b"redb\x1a\x0a\xa9\x0d\x0a";

/// The shortest database: two meta pages.
const BOLT_BYTES_MIN: u64 = 2 * 4096;

/// How often a lock is asked for.
const LOCK_POLL: Duration = Duration::from_millis(50);

/// Whether the file is a database of ours.
pub fn is_ours(path: &Path) -> Result<bool, UtlError> {
    let file = File::open(path).map_err(|error| UtlError::call("open", path, &error))?;
    let mut begin = [0; OURS.len()];
    Ok(file.read_exact_at(&mut begin, 0).is_ok() && begin == OURS)
}

/// Opens an etcd database file for reading, its digest (if any) unread. The lock, which etcd takes on a database that it has
/// open, is waited for as long as `timeout` nanoseconds say; 0 is for ever.
pub fn open_bolt(path: &Path, timeout: i64) -> Result<Flock<File>, UtlError> {
    std::fs::metadata(path).map_err(|error| UtlError::call("stat", path, &error))?;
    let file = File::open(path).map_err(|error| UtlError::call("open", path, &error))?;
    lock(file, path, timeout, FlockArg::LockSharedNonblock)
}

/// Locks an open file, waiting for as long as `timeout` says.
pub fn lock(mut file: File, path: &Path, timeout: i64, how: FlockArg) -> Result<Flock<File>, UtlError> {
    let timeout = u64::try_from(timeout).ok().filter(|nanos| *nanos > 0).map(Duration::from_nanos);
    let since = Instant::now();
    loop {
        match Flock::lock(file, how) {
            Ok(locked) => return Ok(locked),
            Err((back, Errno::EWOULDBLOCK)) => file = back,
            Err((_, errno)) => return Err(UtlError::call("flock", path, &io::Error::from(errno))),
        }
        if timeout.is_some_and(|timeout| since.elapsed() >= timeout) {
            return Err(UtlError::failed(format!("timeout: another process has {} open", path.display())));
        }
        thread::sleep(LOCK_POLL);
    }
}

/// The database in an open file, with etcdutl's texts for what is none.
pub fn bolt(file: &File, path: &Path) -> Result<BoltFile, UtlError> {
    let call = |error: io::Error| UtlError::call("stat", path, &error);
    let metadata = file.metadata().map_err(call)?;
    if metadata.is_dir() {
        return Err(UtlError::failed("invalid database"));
    }
    if metadata.len() == 0 {
        // A database opened for writing would be made of it.
        return Err(UtlError::failed(format!("write {}: bad file descriptor", path.display())));
    }
    let again = file.try_clone().map_err(call)?;
    match BoltFile::without_digest(again, path) {
        Ok(bolt) => Ok(bolt),
        Err(Failure::Damaged { .. }) if metadata.len() < BOLT_BYTES_MIN && begins_with_meta(file) => {
            Err(UtlError::failed(format!("file size too small {}", metadata.len())))
        }
        Err(Failure::Damaged { .. }) if !begins_with_meta(file) => Err(UtlError::failed("invalid database")),
        Err(failure) => Err(failure.into()),
    }
}

/// Whether the first page claims to be a database's: cut off, then, rather than something else.
fn begins_with_meta(file: &File) -> bool {
    let mut magic = [0; 4];
    file.read_exact_at(&mut magic, 16).is_ok() && u32::from_le_bytes(magic) == 0xED0C_DAED
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_that_is_open_elsewhere_is_waited_for_and_then_given_up() {
        let temp = tempfile::tempdir().unwrap();
        let path = temp.path().join("db");
        std::fs::write(&path, "x").unwrap();
        let held = Flock::lock(File::open(&path).unwrap(), FlockArg::LockExclusiveNonblock);
        let held = held.unwrap_or_else(|(_, errno)| panic!("{errno}"));
        let refused = open_bolt(&path, 1).err().map(|error| error.message(crate::program::Manner::Native));
        let text = format!("Error: timeout: another process has {} open\n", path.display());
        assert_eq!(refused, Some(text));
        drop(held);
        assert!(open_bolt(&path, 1).is_ok());
    }
}

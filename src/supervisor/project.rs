//! One directory per project under the runtime directory: the lock, the socket, and the log of a detached supervisor.
//!
//! ```text
//!  $XDG_RUNTIME_DIR/quorate/ or /tmp/quorate-UID/      mode 0700, ours
//!    3f2a…/                                            16 hex digits of the SHA-256 of directory and Procfile
//!      lock             held (flock) as long as the supervisor lives; says who holds it
//!      control.sock     mode 0600
//!      supervisor.log   what a detached supervisor prints
//! ```
//!
//! Whether a supervisor lives is told by the lock alone: it goes with the process that holds it, however that ends, and a
//! socket or a pid that was left behind by a power loss means nothing (supervisor.md 6, trap 20).

use std::ffi::OsStr;
use std::fs::DirBuilder;
use std::fs::File;
use std::fs::Permissions;
use std::io;
use std::io::Read;
use std::io::Seek;
use std::io::Write;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::DirBuilderExt;
use std::os::unix::fs::MetadataExt;
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::path::PathBuf;
use std::time::Duration;
use std::time::Instant;

use nix::errno::Errno;
use nix::fcntl::Flock;
use nix::fcntl::FlockArg;
use serde::Deserialize;
use serde::Serialize;
use sha2::Digest;
use sha2::Sha256;

use crate::common::os_reason::os_reason;

/// Longest path of a socket: 108 bytes in the kernel, one of them the zero at the end.
const SOCKET_PATH_BYTES_MAX: usize = 107;
/// Hexadecimal digits of a project's id.
const ID_DIGITS: usize = 16;
/// How long the holder of a lock may take to write who it is.
const HOLDER_PATIENCE: Duration = Duration::from_millis(500);
/// Longest description of a holder that is read.
const HOLDER_BYTES_MAX: u64 = 64 << 10;

const LOCK: &str = "lock";
const SOCKET: &str = "control.sock";
const LOG: &str = "supervisor.log";

/// Who holds a project's lock.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Holder {
    pub pid: u32,
    pub directory: PathBuf,
    /// As it was found; `-` is standard input.
    pub procfile: PathBuf,
    pub detached: bool,
}

/// Why a project cannot be supervised from here.
#[derive(Debug, thiserror::Error)]
pub enum ProjectError {
    #[error("{}", told_holder(.procfile, .holder.as_deref()))]
    Held { procfile: PathBuf, holder: Option<Box<Holder>> },
    #[error("{}: {reason}", path.display())]
    Io { path: PathBuf, reason: String },
    #[error("{} is not a directory of our own: it belongs to user {owner}, with mode {mode:o}", path.display())]
    Foreign { path: PathBuf, owner: u32, mode: u32 },
}

fn told_holder(procfile: &Path, holder: Option<&Holder>) -> String {
    let procfile = procfile.display();
    match holder {
        Some(holder) => format!(
            "the supervisor with pid {} runs {procfile} already (`quorate supervisor ps` shows it, `down` ends it)",
            holder.pid
        ),
        None => format!("another supervisor runs {procfile} already"),
    }
}

/// A Procfile in a directory, and the places where its supervisor may be found.
#[derive(Clone, Debug)]
pub struct Project {
    pub directory: PathBuf,
    pub procfile: PathBuf,
    /// In the order of preference. More than one, because a login shell has `XDG_RUNTIME_DIR` and a cron job has not.
    homes: Vec<PathBuf>,
}

impl Project {
    /// The project of this Procfile, which need not exist, seen from the current directory.
    pub fn locate(procfile: &str) -> Result<Project, ProjectError> {
        let failed = |path: &Path| {
            let path = path.to_owned();
            move |error: io::Error| ProjectError::Io { path, reason: os_reason(&error) }
        };
        let directory = std::env::current_dir().map_err(failed(Path::new(".")))?;
        let directory = directory.canonicalize().map_err(failed(&directory))?;
        let procfile = match procfile {
            "-" => PathBuf::from("-"),
            path => {
                let path = directory.join(path);
                path.canonicalize().unwrap_or(path)
            }
        };
        Ok(Project::under(&bases(), directory, procfile))
    }

    fn under(bases: &[PathBuf], directory: PathBuf, procfile: PathBuf) -> Project {
        let id = id_of(&directory, &procfile);
        let fits = |home: &PathBuf| home.as_os_str().len() + 1 + SOCKET.len() <= SOCKET_PATH_BYTES_MAX;
        let homes = bases.iter().map(|base| base.join(&id)).filter(fits).collect();
        Project { directory, procfile, homes }
    }

    /// Sockets that a supervisor of this project may listen on.
    pub fn sockets(&self) -> impl Iterator<Item = PathBuf> + '_ {
        self.homes.iter().map(|home| home.join(SOCKET))
    }

    /// What a detached supervisor of this project has written.
    pub fn log(&self) -> Option<PathBuf> {
        self.homes.iter().map(|home| home.join(LOG)).find(|log| log.exists())
    }

    /// Takes the project for this process. `ProjectError::Held` names the one that has it.
    pub fn hold(&self, detached: bool) -> Result<Held, ProjectError> {
        let Some((first, others)) = self.homes.split_first() else {
            let reason = format!("no runtime directory leaves {SOCKET_PATH_BYTES_MAX} bytes for the path of a socket");
            return Err(ProjectError::Io { path: self.directory.clone(), reason });
        };
        for other in others {
            let lock = other.join(LOCK);
            if let Ok(file) = File::options().read(true).write(true).open(&lock) {
                // Given back at once: nobody starts there while we look, or he loses nothing but this moment's try.
                drop(self.lock_file(&lock, file)?);
            }
        }
        let base = first.parent().unwrap_or(first);
        own_directory(base)?;
        own_directory(first)?;
        let path = first.join(LOCK);
        let mut lock = loop {
            let file = File::options().read(true).write(true).create(true).truncate(false).mode(0o600).open(&path);
            match file {
                Ok(file) => {
                    let lock = self.lock_file(&path, file)?;
                    // Somebody who ended just now may have removed the file that we have locked.
                    if same_file(&lock, &path) {
                        break lock;
                    }
                }
                // Or the directory.
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(ProjectError::Io { path, reason: os_reason(&error) }),
            }
            own_directory(first)?;
        };
        let holder = Holder {
            pid: std::process::id(),
            directory: self.directory.clone(),
            procfile: self.procfile.clone(),
            detached,
        };
        let written = write_holder(&mut lock, &holder);
        written.map_err(|error| ProjectError::Io { path, reason: os_reason(&error) })?;
        Ok(Held { home: first.clone(), lock: Some(lock), holder, keep_log: false })
    }

    fn lock_file(&self, path: &Path, file: File) -> Result<Flock<File>, ProjectError> {
        match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Ok(lock) => Ok(lock),
            Err((_, Errno::EWOULDBLOCK)) => {
                let holder = read_holder(path).map(Box::new);
                Err(ProjectError::Held { procfile: self.procfile.clone(), holder })
            }
            Err((_, error)) => {
                Err(ProjectError::Io { path: path.to_owned(), reason: os_reason(&io::Error::from(error)) })
            }
        }
    }

    /// Those who hold a project of this directory, whatever their Procfile, with their sockets.
    pub fn neighbours(&self) -> Vec<(Holder, PathBuf)> {
        let bases: Vec<PathBuf> = self.homes.iter().filter_map(|home| home.parent().map(Path::to_owned)).collect();
        let entries = bases.iter().filter_map(|base| std::fs::read_dir(base).ok()).flatten().flatten();
        let holders = entries.filter_map(|entry| {
            let holder = parse_holder(&entry.path().join(LOCK))?;
            Some((holder, entry.path().join(SOCKET)))
        });
        let mut found: Vec<_> = holders.filter(|(holder, _)| holder.directory == self.directory).collect();
        found.sort_by(|one, other| one.0.procfile.cmp(&other.0.procfile));
        found
    }
}

/// The places for projects, the preferred one first.
fn bases() -> Vec<PathBuf> {
    let user = nix::unistd::geteuid();
    let runtime = std::env::var_os("XDG_RUNTIME_DIR").map(PathBuf::from);
    let runtime = runtime.filter(|dir| dir.is_absolute() && dir.is_dir()).map(|dir| dir.join("quorate"));
    runtime.into_iter().chain([PathBuf::from(format!("/tmp/quorate-{user}"))]).collect()
}

fn id_of(directory: &Path, procfile: &Path) -> String {
    let bytes = |path: &Path| -> Vec<u8> { OsStr::as_bytes(path.as_os_str()).to_vec() };
    // No path holds a zero byte: the two cannot run into each other.
    let digest = Sha256::digest([bytes(directory), vec![0], bytes(procfile)].concat());
    digest.iter().map(|byte| format!("{byte:02x}")).collect::<String>()[..ID_DIGITS].to_owned()
}

/// Makes the directory if it is missing, and makes sure that it is ours alone: in /tmp others may have been first.
fn own_directory(path: &Path) -> Result<(), ProjectError> {
    let failed = |error: io::Error| ProjectError::Io { path: path.to_owned(), reason: os_reason(&error) };
    match DirBuilder::new().mode(0o700).create(path) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(failed(error)),
        _ => {}
    }
    // Of a link, the link itself is judged.
    let found = std::fs::symlink_metadata(path).map_err(failed)?;
    let mode = found.mode() & 0o7777;
    if !found.is_dir() || found.uid() != nix::unistd::geteuid().as_raw() || mode & 0o022 != 0 {
        return Err(ProjectError::Foreign { path: path.to_owned(), owner: found.uid(), mode });
    }
    Ok(())
}

fn same_file(lock: &File, path: &Path) -> bool {
    let identity = |found: std::fs::Metadata| (found.dev(), found.ino());
    match (lock.metadata(), std::fs::metadata(path)) {
        (Ok(held), Ok(there)) => identity(held) == identity(there),
        _ => false,
    }
}

fn write_holder(file: &mut File, holder: &Holder) -> io::Result<()> {
    let text = serde_json::to_string(holder).map_err(io::Error::other)?;
    file.set_len(0)?;
    file.rewind()?;
    file.write_all(text.as_bytes())
}

fn parse_holder(path: &Path) -> Option<Holder> {
    let mut text = String::new();
    File::open(path).ok()?.take(HOLDER_BYTES_MAX).read_to_string(&mut text).ok()?;
    let holder: Holder = serde_json::from_str(&text).ok()?;
    // Left behind by one who could not tidy up.
    Path::new("/proc").join(holder.pid.to_string()).exists().then_some(holder)
}

/// Who has locked this file; it may be about to say so.
fn read_holder(path: &Path) -> Option<Holder> {
    let start = Instant::now();
    loop {
        match parse_holder(path) {
            None if start.elapsed() < HOLDER_PATIENCE => std::thread::sleep(Duration::from_millis(10)),
            found => return found,
        }
    }
}

/// Whether whoever listens on this socket still holds its project: the lock's file goes with it.
pub fn is_held(socket: &Path) -> bool {
    socket.with_file_name(LOCK).exists()
}

/// A project that this process supervises. Dropped, it leaves nothing behind but, on request, the log.
#[derive(Debug)]
pub struct Held {
    home: PathBuf,
    lock: Option<Flock<File>>,
    pub holder: Holder,
    /// Somebody may want to read why it ended.
    pub keep_log: bool,
}

impl Held {
    /// Where files of this supervisor may lie: gone with it.
    pub fn home(&self) -> &Path {
        &self.home
    }

    pub fn log(&self) -> PathBuf {
        self.home.join(LOG)
    }

    pub fn socket(&self) -> PathBuf {
        self.home.join(SOCKET)
    }

    /// Listens. What stands at the socket's path is nobody's: the lock is ours.
    pub fn listen(&self) -> Result<UnixListener, ProjectError> {
        let path = self.socket();
        let bound = match std::fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => UnixListener::bind(&path),
        };
        // Between bind and this the directory keeps others out.
        let ready = bound.and_then(|listener| {
            std::fs::set_permissions(&path, Permissions::from_mode(0o600))?;
            listener.set_nonblocking(true)?;
            Ok(listener)
        });
        ready.map_err(|error| ProjectError::Io { path, reason: os_reason(&error) })
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        // Best effort throughout: what stays is told apart from the living by its lock.
        let entries = std::fs::read_dir(&self.home).into_iter().flatten().flatten().map(|entry| entry.path());
        let kept = self.keep_log.then(|| self.log());
        for path in entries.filter(|path| !path.ends_with(LOCK) && Some(path) != kept.as_ref()) {
            let _ = std::fs::remove_file(path);
        }
        // Last, and not with everything else: as soon as it is gone the next one may make his files here.
        let _ = std::fs::remove_file(self.home.join(LOCK));
        let _ = std::fs::remove_dir(&self.home);
        drop(self.lock.take());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn project(base: &Path, procfile: &str) -> Project {
        Project::under(&[base.join("q")], PathBuf::from("/work/stack"), PathBuf::from(procfile))
    }

    #[test]
    fn the_second_holder_is_refused_and_told_the_first() {
        let base = tempfile::tempdir().unwrap();
        let one = project(base.path(), "/work/stack/Procfile").hold(false).unwrap();
        let error = project(base.path(), "/work/stack/Procfile").hold(false).unwrap_err();
        assert!(error.to_string().contains(&format!("pid {}", std::process::id())), "{error}");
        let other = project(base.path(), "/work/stack/Procfile2").hold(false).unwrap();
        let neighbours = project(base.path(), "-").neighbours();
        let procfiles: Vec<_> = neighbours.iter().map(|(holder, _)| holder.procfile.to_str().unwrap()).collect();
        assert_eq!(procfiles, ["/work/stack/Procfile", "/work/stack/Procfile2"]);
        let home = one.home().to_owned();
        drop((one, other));
        assert!(!home.exists(), "nothing is left");
        project(base.path(), "/work/stack/Procfile").hold(false).unwrap();
    }

    #[test]
    fn what_a_power_loss_left_behind_is_nobodys() {
        let base = tempfile::tempdir().unwrap();
        let project = project(base.path(), "/p");
        let held = project.hold(false).unwrap();
        let listener = held.listen().unwrap();
        assert_eq!(std::fs::metadata(held.socket()).unwrap().mode() & 0o777, 0o600);
        assert_eq!(std::fs::metadata(held.home()).unwrap().mode() & 0o777, 0o700);
        // As after kill -9: the files stay, the lock goes.
        drop(listener);
        let mut held = held;
        drop(held.lock.take());
        std::mem::forget(held);
        let again = project.hold(false).unwrap();
        again.listen().unwrap();
    }

    #[test]
    fn a_lock_elsewhere_counts_too() {
        let (one, two) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let bases = [one.path().join("q"), two.path().join("q")];
        let of = |bases: &[PathBuf]| Project::under(bases, PathBuf::from("/d"), PathBuf::from("/d/P"));
        let cron = of(&bases[1..]).hold(true).unwrap();
        assert!(matches!(of(&bases).hold(false), Err(ProjectError::Held { .. })));
        drop(cron);
        of(&bases).hold(false).unwrap();
    }

    #[test]
    fn directories_of_others_are_refused() {
        let base = tempfile::tempdir().unwrap();
        let elsewhere = base.path().join("elsewhere");
        std::fs::create_dir(&elsewhere).unwrap();
        std::os::unix::fs::symlink(&elsewhere, base.path().join("q")).unwrap();
        let error = project(base.path(), "/p").hold(false).unwrap_err();
        assert!(matches!(error, ProjectError::Foreign { .. }), "{error}");
        std::fs::remove_file(base.path().join("q")).unwrap();
        DirBuilder::new().mode(0o700).create(base.path().join("q")).unwrap();
        std::fs::set_permissions(base.path().join("q"), Permissions::from_mode(0o777)).unwrap();
        let error = project(base.path(), "/p").hold(false).unwrap_err();
        assert!(matches!(error, ProjectError::Foreign { .. }), "{error}");
    }

    #[test]
    fn a_runtime_directory_that_is_too_deep_is_passed_over() {
        let deep = PathBuf::from("/").join("x".repeat(90));
        let project = Project::under(&[deep, PathBuf::from("/tmp/q")], PathBuf::from("/d"), PathBuf::from("/d/P"));
        let sockets: Vec<PathBuf> = project.sockets().collect();
        assert_eq!(sockets.len(), 1);
        assert!(sockets[0].starts_with("/tmp/q") && sockets[0].as_os_str().len() <= SOCKET_PATH_BYTES_MAX);
    }
}

//! Servers that bench starts itself: processes and directories that are gone when their owner is.

use std::fs::File;
use std::io;
use std::net::TcpListener;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::path::PathBuf;
use std::process::Child;
use std::process::Command;
use std::process::ExitStatus;
use std::process::Stdio;
use std::sync::atomic::AtomicU16;
use std::sync::atomic::Ordering;

/// Below the range that the kernel takes ports for outgoing connections from: a member that redials a closed port in
/// that range can connect to itself (peer.md 3.7).
const PORT_FIRST: u16 = 11_000;
const PORT_COUNT: u16 = 20_000;

/// A child process; dropping it kills it and waits for its end.
#[derive(Debug)]
pub struct Process(Child);

impl Process {
    /// Starts `program` as `name` with an empty environment, in a group of its own so that the terminal's Ctrl-C is ours
    /// to handle. What it prints goes to `log`; its standard input ends when we do.
    pub fn start(program: &Path, name: &str, args: &[String], log: &Path) -> io::Result<Process> {
        let log = File::options().create(true).append(true).open(log)?;
        let mut command = Command::new(program);
        command.arg0(name).args(args).env_clear().process_group(0);
        command.stdin(Stdio::piped()).stdout(log.try_clone()?).stderr(log);
        Ok(Process(command.spawn()?))
    }

    pub fn pid(&self) -> u32 {
        self.0.id()
    }

    /// kill -9, and waits for its end.
    pub fn kill(&mut self) {
        // It may have ended by itself.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }

    /// How it ended, if it has.
    pub fn ended(&mut self) -> Option<ExitStatus> {
        self.0.try_wait().ok().flatten()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
    }
}

/// A fresh directory; dropping it removes it.
#[derive(Debug)]
pub struct Scratch(PathBuf);

impl Scratch {
    pub fn new(below: &Path) -> io::Result<Scratch> {
        static NEXT: AtomicU16 = AtomicU16::new(0);
        loop {
            let number = NEXT.fetch_add(1, Ordering::Relaxed);
            let path = below.join(format!("quorate-bench-{}-{number}", std::process::id()));
            match std::fs::create_dir(&path) {
                Ok(()) => return Ok(Scratch(path)),
                // Left by a process that had our id and was killed.
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists && number < u16::MAX => {}
                Err(error) => return Err(io::Error::new(error.kind(), format!("{}: {error}", path.display()))),
            }
        }
    }

    pub fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // What cannot be removed now is in the temporary directory's hands.
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// A port on 127.0.0.1 that nothing listens on.
pub fn free_port() -> io::Result<u16> {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    // Two benches at once start their search apart from each other.
    let offset = (std::process::id().wrapping_mul(131) % u32::from(PORT_COUNT)) as u16;
    for _ in 0..PORT_COUNT {
        let step = NEXT.fetch_add(1, Ordering::Relaxed) % PORT_COUNT;
        let port = PORT_FIRST + (offset + step) % PORT_COUNT;
        if TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return Ok(port);
        }
    }
    Err(io::Error::new(io::ErrorKind::AddrInUse, "no free port on 127.0.0.1"))
}

/// The last `count` lines of a log, for what is said when its writer failed.
pub fn tail(log: &Path, count: usize) -> String {
    let bytes = std::fs::read(log).unwrap_or_default();
    let text = String::from_utf8_lossy(&bytes);
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(count)..].join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_and_its_directory_end_with_their_owners() {
        let scratch = Scratch::new(&std::env::temp_dir()).expect("a directory");
        let log = scratch.path().join("log");
        let process = Process::start(Path::new("/bin/sleep"), "sleep", &["600".to_owned()], &log).expect("starts");
        let proc = PathBuf::from(format!("/proc/{}", process.pid()));
        let path = scratch.path().to_owned();
        assert!(proc.exists() && path.exists());
        drop((process, scratch));
        assert!(!proc.exists() && !path.exists());
    }

    #[test]
    fn ports_are_free_different_and_below_the_kernels_own() {
        let (first, second) = (free_port().expect("a port"), free_port().expect("a port"));
        assert_ne!(first, second);
        assert!([first, second].iter().all(|port| (PORT_FIRST..32_768).contains(port)));
    }
}

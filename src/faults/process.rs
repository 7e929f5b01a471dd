//! A child process that faults are done to, and that never outlives us.
//!
//! It is started by a launcher, which is this binary again: the launcher asks the kernel to be killed when its parent
//! ends (a request that stays with the process) and becomes the program. So nothing is left when we are killed, and no
//! code has to run between fork and exec, which only `unsafe` could write.

use std::ffi::OsString;
use std::fs::File;
use std::io;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Child;
use std::process::Command;
use std::process::ExitCode;
use std::process::ExitStatus;
use std::process::Stdio;

use nix::sys::prctl;
use nix::sys::signal::Signal;
use nix::sys::signal::killpg;
use nix::unistd::Pid;
use nix::unistd::getppid;

/// What a shell ends with when it cannot start a program.
const EXIT_NO_PROGRAM: u8 = 127;

/// How children are started: a program, and the words in front of the parent's id, the name and the program.
#[derive(Clone, Debug)]
pub struct Launcher {
    pub program: OsString,
    pub words: Vec<OsString>,
}

/// A child and its group.
#[derive(Debug)]
pub struct Process(Child);

impl Process {
    /// Starts `program` under `name` with an empty environment but for PATH. What it prints is appended to `log`.
    ///
    /// The kernel kills the child when the *thread* that calls this ends: call it from one that lives as long as we do.
    pub fn start(launcher: &Launcher, program: &Path, name: &str, args: &[String], log: &Path) -> io::Result<Process> {
        let log = File::options().create(true).append(true).open(log)?;
        let mut command = Command::new(&launcher.program);
        command.arg0("quorate").args(&launcher.words).arg(std::process::id().to_string()).arg(name).arg(program);
        command.args(args).env_clear();
        if let Some(path) = std::env::var_os("PATH") {
            command.env("PATH", path);
        }
        // A group of its own: the terminal's Ctrl-C is ours to handle, and a program that starts others is one target.
        command.process_group(0).stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        Ok(Process(command.spawn()?))
    }

    pub fn pid(&self) -> u32 {
        self.0.id()
    }

    /// How it ended, if it has.
    pub fn ended(&mut self) -> Option<ExitStatus> {
        self.0.try_wait().ok().flatten()
    }

    /// To all of its group. One that has ended already is no error.
    pub fn signal(&self, signal: Signal) {
        if let Ok(group) = i32::try_from(self.0.id()) {
            let _ = killpg(Pid::from_raw(group), signal);
        }
    }

    /// SIGKILL, and waits for the end.
    pub fn kill(&mut self) -> io::Result<ExitStatus> {
        self.signal(Signal::SIGKILL);
        self.0.wait()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.kill();
    }
}

/// The launcher's whole life: `parent name program args`. Returns only if the program cannot be started.
pub fn launch(words: Vec<OsString>) -> ExitCode {
    let mut words = words.into_iter();
    let (Some(parent), Some(name), Some(program)) = (words.next(), words.next(), words.next()) else {
        eprintln!("the launcher needs its parent's id, a name and a program");
        return ExitCode::from(EXIT_NO_PROGRAM);
    };
    if let Err(error) = prctl::set_pdeathsig(Signal::SIGKILL) {
        eprintln!("cannot ask to be killed with the parent: {error}");
        return ExitCode::from(EXIT_NO_PROGRAM);
    }
    // The parent may have ended before that request.
    if parent.to_str() != Some(getppid().to_string().as_str()) {
        return ExitCode::from(EXIT_NO_PROGRAM);
    }
    let error = Command::new(&program).arg0(name).args(words).exec();
    eprintln!("cannot start {}: {error}", Path::new(&program).display());
    ExitCode::from(EXIT_NO_PROGRAM)
}

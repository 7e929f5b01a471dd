//! One member: its files, its process, and what has been done to it.

use std::ffi::OsString;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::path::PathBuf;
use std::process::Command;
use std::process::ExitStatus;
use std::process::Stdio;
use std::time::Duration;
use std::time::Instant;

use nix::sys::signal::Signal;

use crate::faults::ports;
use crate::faults::process::Launcher;
use crate::faults::process::Process;
use crate::faults::volume::Volume;

/// Longest that a member may take to stop when it is asked to.
const STOP_MAX: Duration = Duration::from_secs(30);
/// Longest that we wait for a port that somebody else has taken while the member was down.
const PORT_WAIT_MAX: Duration = Duration::from_secs(30);
/// A member may end of a full disk so long after there is space again: it may have been paused meanwhile.
const NOTICE: Duration = Duration::from_secs(10);
/// What a member says that ends because it was removed.
const REMOVED: &str = "permanently removed from the cluster";
/// What a joiner says that ends because it could not ask the others, or asked one that does not know of it yet.
const JOIN_TROUBLES: [&str; 3] = [
    "error validating peerURLs",
    "cannot fetch cluster info from peer urls",
    "incompatible with current running cluster",
];
const JOIN_PAUSE: Duration = Duration::from_millis(300);
/// The name that every etcd is started under: it makes our own binary a member.
const NAME: &str = "etcd";

/// What was done to it last.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    Running,
    Paused,
    /// It was asked to stop.
    Stopping(Instant),
    Down,
}

/// What it is to the cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    Member,
    /// It is being removed, or was: it may end when it hears of it.
    Leaving,
    /// Removed, and its data is gone: it must not be started, or it would found a cluster of its own.
    Gone,
    /// It was added and is not a voter yet.
    Joining,
}

/// What all members of a run have in common.
#[derive(Clone, Debug)]
pub struct Common {
    pub launcher: Launcher,
    pub binary: PathBuf,
    pub dir: PathBuf,
    /// Every member's name and advertised peer URL.
    pub initial: String,
    pub flags: Vec<String>,
}

/// Ports on 127.0.0.1.
#[derive(Clone, Copy, Debug)]
pub struct Ports {
    pub client: u16,
    /// Where it listens.
    pub peer: u16,
    /// What it advertises: its relay's.
    pub relay: u16,
}

pub struct Member {
    pub name: String,
    pub ports: Ports,
    pub state: State,
    pub volume: Option<Volume>,
    /// No space is left for it now.
    pub full: bool,
    /// When it was given space for the last time.
    space_again: Option<Instant>,
    /// Its power is off: whatever it says is nothing to judge.
    pub dark: bool,
    pub standing: Standing,
    /// Its id as the cluster has it; 0 before it is known.
    pub id: u64,
    /// `--initial-cluster` of one that joins a cluster that exists.
    joins: Option<String>,
    /// It was told to be at localhost.
    is_readdressed: bool,
    common: Common,
    process: Option<Process>,
    /// Bytes of its log when it was started last.
    log_start: u64,
    /// Since when it waits for its ports to be started again.
    port_taken: Option<Instant>,
    /// When one that could not join is started again.
    again: Option<Instant>,
    /// Directory of links to its log's segments: another one whenever it began a new log.
    generation: u32,
}

impl Member {
    pub fn new(number: usize, ports: Ports, common: &Common) -> Member {
        Member {
            name: format!("m{}", number + 1),
            ports,
            state: State::Down,
            volume: None,
            full: false,
            space_again: None,
            dark: false,
            standing: Standing::Member,
            id: 0,
            joins: None,
            is_readdressed: false,
            common: common.clone(),
            process: None,
            log_start: 0,
            port_taken: None,
            again: None,
            generation: 0,
        }
    }

    pub fn endpoint(&self) -> String {
        format!("127.0.0.1:{}", self.ports.client)
    }

    /// Everything it has, but what it prints.
    pub fn dir(&self) -> PathBuf {
        self.common.dir.join(&self.name)
    }

    fn data_dir(&self) -> PathBuf {
        self.dir().join("data")
    }

    fn log(&self) -> PathBuf {
        self.common.dir.join(format!("{}.log", self.name))
    }

    pub fn peer_url(&self) -> String {
        format!("http://127.0.0.1:{}", self.ports.relay)
    }

    /// Another way to write its address: never the one that it has now.
    pub fn other_url(&mut self) -> String {
        self.is_readdressed = !self.is_readdressed;
        let host = if self.is_readdressed { "localhost" } else { "127.0.0.1" };
        format!("http://{host}:{}", self.ports.relay)
    }

    /// Its part of `--initial-cluster`.
    pub fn initial_entry(number: usize, ports: Ports) -> String {
        format!("m{}=http://127.0.0.1:{}", number + 1, ports.relay)
    }

    fn args(&self) -> Vec<String> {
        let url = |port: u16| format!("http://127.0.0.1:{port}");
        let pairs = [
            ("--name", self.name.clone()),
            ("--data-dir", self.data_dir().display().to_string()),
            ("--listen-client-urls", url(self.ports.client)),
            ("--advertise-client-urls", url(self.ports.client)),
            ("--listen-peer-urls", url(self.ports.peer)),
            ("--initial-advertise-peer-urls", url(self.ports.relay)),
            ("--initial-cluster", self.joins.clone().unwrap_or_else(|| self.common.initial.clone())),
            ("--initial-cluster-state", if self.joins.is_some() { "existing" } else { "new" }.to_owned()),
            ("--initial-cluster-token", "torture".to_owned()),
        ];
        let words = pairs.into_iter().flat_map(|(flag, value)| [flag.to_owned(), value]);
        words.chain(self.common.flags.iter().cloned()).collect()
    }

    /// Starts it if it is down and has a disk, and something on it.
    pub fn start(&mut self) -> io::Result<()> {
        if self.state != State::Down || self.dark || self.standing == Standing::Gone {
            return Ok(());
        }
        std::fs::create_dir_all(self.dir())?;
        self.log_start = std::fs::metadata(self.log()).map_or(0, |log| log.len());
        let args = self.args();
        let common = &self.common;
        self.process = Some(Process::start(&common.launcher, &common.binary, NAME, &args, &self.log())?);
        self.state = State::Running;
        Ok(())
    }

    /// kill -9. Whether it was there.
    pub fn kill(&mut self) -> bool {
        // Gone when it is dropped.
        let was_there = self.process.take().is_some();
        self.state = State::Down;
        was_there
    }

    pub fn pause(&mut self) -> bool {
        self.turn(State::Running, State::Paused, Signal::SIGSTOP)
    }

    /// It does nothing any more; its end must follow.
    pub fn freeze(&self) {
        if let Some(process) = self.process.as_ref().filter(|_| self.volume.is_some() && !self.dark) {
            process.signal(Signal::SIGSTOP);
        }
    }

    /// Notes that its disk is not full any more.
    pub fn has_space(&mut self) {
        if std::mem::replace(&mut self.full, false) {
            self.space_again = Some(Instant::now());
        }
    }

    pub fn resume(&mut self) -> bool {
        self.turn(State::Paused, State::Running, Signal::SIGCONT)
    }

    /// Asks it to stop.
    pub fn stop(&mut self) -> bool {
        self.turn(State::Running, State::Stopping(Instant::now() + STOP_MAX), Signal::SIGTERM)
    }

    fn turn(&mut self, from: State, to: State, signal: Signal) -> bool {
        let Some(process) = self.process.as_ref().filter(|_| self.state == from) else { return false };
        process.signal(signal);
        self.state = to;
        true
    }

    /// What it printed since its last start.
    fn said(&self) -> String {
        let bytes = std::fs::read(self.log()).unwrap_or_default();
        let start = usize::try_from(self.log_start).unwrap_or(usize::MAX).min(bytes.len());
        String::from_utf8_lossy(&bytes[start..]).into_owned()
    }

    /// Looks whether it has ended. An error is what no member may do, in words.
    pub fn look(&mut self) -> Result<(), String> {
        let Some(process) = &mut self.process else { return self.retry() };
        let Some(status) = process.ended() else {
            return match self.state {
                State::Stopping(deadline) if Instant::now() > deadline => {
                    self.kill();
                    Err(format!("{} did not stop within {} s of SIGTERM", self.name, STOP_MAX.as_secs()))
                }
                _ => Ok(()),
            };
        };
        let asked = matches!(self.state, State::Stopping(_));
        self.process = None;
        self.state = State::Down;
        let said = self.said();
        if self.dark || (asked && (status.success() || status.signal() == Some(Signal::SIGTERM as i32))) {
            return Ok(());
        }
        let lacked_space = self.full || self.space_again.is_some_and(|since| since.elapsed() < NOTICE);
        if lacked_space && said.to_lowercase().contains("no space left") {
            // Whoever gives the space back starts it; if that was done already, it comes back by itself.
            self.port_taken = (!self.full).then(Instant::now);
            return Ok(());
        }
        if self.standing == Standing::Leaving && said.contains(REMOVED) {
            return Ok(());
        }
        if self.standing == Standing::Joining && JOIN_TROUBLES.iter().any(|trouble| said.contains(trouble)) {
            self.again = Some(Instant::now() + JOIN_PAUSE);
            return Ok(());
        }
        if said.contains("in use") && !self.ports_are_free() {
            self.port_taken = Some(Instant::now());
            return Ok(());
        }
        let mut lines: Vec<&str> = said.lines().rev().filter(|line| !line.trim().is_empty()).take(3).collect();
        lines.reverse();
        let asked = if asked { "was asked to stop and" } else { "ended by itself:" };
        Err(format!("{} {asked} {}; its last words:\n{}", self.name, how(status), lines.join("\n")))
    }

    fn ports_are_free(&self) -> bool {
        ports::is_free(self.ports.client) && ports::is_free(self.ports.peer)
    }

    /// Starts it again once its ports are free: somebody else had taken one while it was down.
    fn retry(&mut self) -> Result<(), String> {
        if self.again.is_some_and(|due| Instant::now() >= due) {
            self.again = None;
            return self.start().map_err(|error| format!("{} cannot be started: {error}", self.name));
        }
        let Some(since) = self.port_taken else { return Ok(()) };
        if self.ports_are_free() {
            self.port_taken = None;
            return self.start().map_err(|error| format!("{} cannot be started: {error}", self.name));
        }
        if since.elapsed() > PORT_WAIT_MAX {
            self.port_taken = None;
            return Err(format!("another program has taken {}'s ports", self.name));
        }
        Ok(())
    }

    /// Ends it and throws everything away that it had.
    pub fn wipe(&mut self) -> io::Result<()> {
        self.kill();
        self.standing = Standing::Gone;
        self.is_readdressed = false;
        (self.port_taken, self.again) = (None, None);
        self.generation += 1;
        match std::fs::remove_dir_all(self.data_dir()) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        // A power cut must not bring it back: the next member here would be the one that was removed.
        std::fs::File::open(self.dir())?.sync_all()
    }

    /// Starts it as another member.
    pub fn join(&mut self, id: u64, initial: String) -> io::Result<()> {
        (self.id, self.joins, self.standing) = (id, Some(initial), Standing::Joining);
        self.start()
    }

    /// Links the segments of its log where they stay when it releases them, so that the whole log can be judged.
    pub fn keep_log(&mut self) -> io::Result<()> {
        let wal = self.data_dir().join("member/wal");
        let Ok(entries) = std::fs::read_dir(&wal) else { return Ok(()) };
        let mut names: Vec<OsString> = entries.flatten().map(|entry| entry.file_name()).collect();
        names.retain(|name| Path::new(name).extension().is_some_and(|extension| extension == "wal"));
        names.sort();
        for name in names {
            // Released in this moment, or its disk is gone.
            let Ok(found) = std::fs::metadata(wal.join(&name)) else { continue };
            if std::fs::metadata(self.kept().join(&name)).is_ok_and(|kept| kept.ino() != found.ino()) {
                self.generation += 1;
            }
            std::fs::create_dir_all(self.kept())?;
            match std::fs::hard_link(wal.join(&name), self.kept().join(&name)) {
                Err(error) if !matches!(error.kind(), io::ErrorKind::AlreadyExists | io::ErrorKind::NotFound) => {
                    return Err(error);
                }
                _ => {}
            }
        }
        Ok(())
    }

    fn kept(&self) -> PathBuf {
        self.dir().join("kept").join(self.generation.to_string())
    }

    /// Every log that it ever had, oldest first.
    pub fn logs(&self) -> Vec<PathBuf> {
        let all = (0..=self.generation).map(|generation| self.dir().join("kept").join(generation.to_string()));
        all.filter(|dir| dir.is_dir()).collect()
    }

    /// Takes its files out of its volume, which ends, or throws them away with it.
    pub fn leave_volume(&mut self, keep: bool) -> io::Result<()> {
        let Some(volume) = self.volume.take() else { return Ok(()) };
        let (dir, aside) = (self.dir(), self.dir().with_extension("files"));
        if keep && volume.is_mounted() {
            volume.empty()?;
            let copied = Command::new("cp").arg("-a").arg("--sparse=always").arg(&dir).arg(&aside).status()?;
            if !copied.success() {
                return Err(io::Error::other(format!("cannot copy {}", dir.display())));
            }
        }
        drop(volume);
        std::fs::remove_file(dir.with_extension("image"))?;
        if keep && aside.is_dir() {
            std::fs::remove_dir(&dir)?;
            std::fs::rename(&aside, &dir)?;
        }
        Ok(())
    }
}

fn how(status: ExitStatus) -> String {
    match (status.code(), status.signal()) {
        (Some(code), _) => format!("exit code {code}"),
        (None, Some(signal)) => match Signal::try_from(signal) {
            Ok(signal) => format!("killed by {signal}"),
            Err(_) => format!("killed by signal {signal}"),
        },
        (None, None) => status.to_string(),
    }
}

/// Whether the program knows a flag, by its help.
pub fn knows_flag(binary: &Path, flag: &str) -> bool {
    use std::os::unix::process::CommandExt;
    let help = Command::new(binary).arg0(NAME).arg("--help").env_clear().stdin(Stdio::null()).output();
    help.is_ok_and(|help| {
        let said = [help.stdout, help.stderr].concat();
        String::from_utf8_lossy(&said).contains(flag)
    })
}

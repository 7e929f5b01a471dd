//! How we find out that a process is ready, and whether it still is.
//!
//! A probe is a task for one start of a process. It asks at once, then in growing steps until it passes for the first time;
//! after that, if it can be asked again, at leisure, and three failures in a row make a process unhealthy. What it finds is
//! an event like any other. `sd-notify` needs no task: the process speaks by itself (`notify`).

use std::net::SocketAddr;
use std::path::Path;
use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;

use nix::sys::signal::Signal;
use nix::sys::signal::killpg;
use nix::unistd::Pid;
use tokio::io::AsyncReadExt;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use crate::program::Manner;
use crate::supervisor::child;
use crate::supervisor::child::Event;
use crate::supervisor::child::Happened;
use crate::supervisor::listening;
use crate::supervisor::output::store::Followed;
use crate::supervisor::output::store::Follower;
use crate::supervisor::output::store::Stream;
use crate::supervisor::process::Input;
use crate::supervisor::settings::Probe;
use crate::supervisor::settings::Settings;

/// The longest pause between two looks at a process that is not ready.
const INTERVAL_MAX: Duration = Duration::from_secs(1);
/// Between two looks at one that is.
const HEALTH_INTERVAL: Duration = Duration::from_secs(2);
/// Failures in a row that make a ready process unhealthy.
const FAILURES_MAX: u32 = 3;
/// One look takes no longer.
const LOOK_MAX: Duration = Duration::from_secs(5);
/// What is read of an HTTP answer: its first line.
const STATUS_LINE_BYTES_MAX: usize = 256;

/// Whom a probe is for.
#[derive(Clone, Debug)]
pub struct Subject {
    pub index: usize,
    pub generation: u64,
    pub group: Pid,
    pub mark: String,
    pub environment: Vec<(String, String)>,
}

/// A probe at work; it ends with this.
#[derive(Debug)]
pub struct Probing(JoinHandle<()>);

impl Drop for Probing {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl Probing {
    /// Starts what these settings ask for. `lines` is what the process will print.
    pub fn start(
        settings: &Settings,
        subject: Subject,
        lines: Follower,
        events: mpsc::UnboundedSender<Event>,
    ) -> Option<Probing> {
        let probe = settings.ready.clone()?;
        let report = Report { index: subject.index, generation: subject.generation, events };
        let interval = settings.interval;
        let task = match probe {
            Probe::SdNotify => return None,
            Probe::Delay(wait) => tokio::spawn(async move {
                tokio::time::sleep(wait).await;
                report.passed();
            }),
            Probe::Log { pattern } => tokio::spawn(read(lines, pattern, subject.group.as_raw(), report)),
            Probe::Http { .. } | Probe::Tcp { .. } | Probe::Exec { .. } => {
                tokio::spawn(ask(probe, subject, settings.cwd.clone(), interval, report))
            }
        };
        Some(Probing(task))
    }
}

/// Where what is found goes.
struct Report {
    index: usize,
    generation: u64,
    events: mpsc::UnboundedSender<Event>,
}

impl Report {
    fn passed(&self) {
        self.send(Input::ProbePassed);
    }

    fn failed(&self, why: String) {
        self.send(Input::ProbeFailed(why));
    }

    fn send(&self, input: Input) {
        // The loop is gone only when the supervisor has ended.
        let _ = self.events.send(Event {
            index: self.index,
            generation: self.generation,
            happened: Happened::Input(input),
        });
    }
}

/// Waits for a line that matches.
async fn read(mut lines: Follower, pattern: regex::bytes::Regex, pid: i32, report: Report) {
    while let Some(followed) = lines.next().await {
        match followed {
            Followed::Line(line) if line.pid == Some(pid) && line.stream != Stream::Own => {
                if pattern.is_match(line.text.as_bytes()) {
                    return report.passed();
                }
            }
            // It may have been among them: better to say so than to wait in silence.
            Followed::Lost { lost, .. } => report.failed(format!("{lost} lines were too fast to be looked at")),
            Followed::Line(_) => {}
        }
    }
}

async fn ask(probe: Probe, subject: Subject, cwd: Option<PathBuf>, first: Duration, report: Report) {
    let mut interval = first;
    let mut ready = false;
    let mut failures = 0;
    let mut last = None;
    loop {
        let found = tokio::time::timeout(LOOK_MAX, look(&probe, &subject, cwd.as_deref())).await;
        match found.unwrap_or_else(|_| Err("no answer".to_owned())) {
            Ok(()) => {
                if !ready || failures >= FAILURES_MAX {
                    report.passed();
                }
                (ready, failures, last) = (true, 0, None);
            }
            Err(why) => {
                failures += 1;
                let worth_telling = if ready { failures == FAILURES_MAX } else { last.as_ref() != Some(&why) };
                if worth_telling {
                    report.failed(why.clone());
                }
                last = Some(why);
            }
        }
        if ready {
            tokio::time::sleep(HEALTH_INTERVAL).await;
        } else {
            tokio::time::sleep(interval).await;
            interval = (interval * 5 / 4).min(INTERVAL_MAX.max(first));
        }
    }
}

/// One look.
async fn look(probe: &Probe, subject: &Subject, cwd: Option<&Path>) -> Result<(), String> {
    match probe {
        Probe::Tcp { address } => connect(address, subject).await.map(drop),
        Probe::Http { url, status } => get(url, *status).await,
        Probe::Exec { command } => execute(command, subject, cwd).await,
        Probe::SdNotify | Probe::Log { .. } | Probe::Delay(_) => Ok(()),
    }
}

/// A connection to the process itself.
async fn connect(address: &str, subject: &Subject) -> Result<TcpStream, String> {
    let (stream, peer) = dial(address).await?;
    match listening::is_ours(peer, subject.group.as_raw(), &subject.mark) {
        true => Ok(stream),
        false => Err(format!("{address} is held by another process")),
    }
}

async fn dial(address: &str) -> Result<(TcpStream, SocketAddr), String> {
    let failed = |error: std::io::Error| format!("{address}: {}", crate::common::os_reason::os_reason(&error));
    let stream = TcpStream::connect(address).await.map_err(failed)?;
    let peer = stream.peer_addr().map_err(failed)?;
    // A port of the range for clients can be connected to itself while nobody listens.
    match stream.local_addr().map_err(failed)? == peer {
        true => Err(format!("{address}: connection refused")),
        false => Ok((stream, peer)),
    }
}

/// A GET, of whose answer only the status counts.
async fn get(url: &str, wanted: u16) -> Result<(), String> {
    let rest = url.strip_prefix("http://").unwrap_or(url);
    let (host, path) = rest.split_at(rest.find(['/', '?']).unwrap_or(rest.len()));
    let path = if path.starts_with('/') { path.to_owned() } else { format!("/{path}") };
    let has_port = host.rsplit_once(':').is_some_and(|(_, port)| port.parse::<u16>().is_ok());
    let address = if has_port { host.to_owned() } else { format!("{host}:80") };
    let (mut stream, _) = dial(&address).await?;
    let failed = |error: std::io::Error| format!("{url}: {}", crate::common::os_reason::os_reason(&error));
    let request = format!("GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\nAccept: */*\r\n\r\n");
    stream.write_all(request.as_bytes()).await.map_err(failed)?;
    let mut answer = Vec::new();
    let mut limited = stream.take(STATUS_LINE_BYTES_MAX as u64);
    limited.read_to_end(&mut answer).await.map_err(failed)?;
    let status = status_of(&answer).ok_or_else(|| format!("{url}: no HTTP answer"))?;
    if status == wanted { Ok(()) } else { Err(format!("{url}: status {status}")) }
}

fn status_of(answer: &[u8]) -> Option<u16> {
    let line = answer.split(|byte| *byte == b'\r' || *byte == b'\n').next()?;
    let line = std::str::from_utf8(line).ok()?.strip_prefix("HTTP/1.")?;
    line.split(' ').nth(1)?.parse().ok()
}

/// A command of the shell in the process's environment; all of it is gone when this returns or is given up.
async fn execute(command: &str, subject: &Subject, cwd: Option<&Path>) -> Result<(), String> {
    let mut shell = child::shell(command, &subject.environment, cwd, Manner::Native);
    shell.stdout(Stdio::null()).stderr(Stdio::null());
    let mut shell = tokio::process::Command::from(shell);
    let mut child = shell.kill_on_drop(true).spawn().map_err(|error| format!("{command}: {error}"))?;
    let group = child.id().and_then(|pid| i32::try_from(pid).ok()).filter(|pid| *pid > 1).map(Pid::from_raw);
    let _all = KilledGroup(group);
    match child.wait().await {
        Ok(status) if status.success() => Ok(()),
        Ok(status) => Err(format!("{command}: {status}")),
        Err(error) => Err(format!("{command}: {error}")),
    }
}

/// Kills a group when it is dropped.
struct KilledGroup(Option<Pid>);

impl Drop for KilledGroup {
    fn drop(&mut self) {
        if let Some(group) = self.0 {
            // Mostly it has ended.
            let _ = killpg(group, Signal::SIGKILL);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn statuses_are_read_from_the_first_line() {
        for (answer, expected) in [
            (&b"HTTP/1.1 200 OK\r\nA: b\r\n\r\nbody"[..], Some(200)),
            (b"HTTP/1.0 503", Some(503)),
            (b"HTTP/2 200 OK\r\n", None),
            (b"HTTP/1.1\r\n200", None),
            (b"\xff\xfe", None),
            (b"", None),
        ] {
            assert_eq!(status_of(answer), expected, "{answer:?}");
        }
    }

    #[tokio::test]
    async fn only_the_wanted_status_is_good() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let serving = tokio::spawn(async move {
            let mut asked = Vec::new();
            for _ in 0..2 {
                let (mut stream, _) = listener.accept().await.unwrap();
                let mut request = [0; 1024];
                let length = stream.read(&mut request).await.unwrap();
                asked.push(String::from_utf8_lossy(&request[..length]).lines().next().unwrap().to_owned());
                stream.write_all(b"HTTP/1.1 204 No Content\r\n\r\n").await.unwrap();
            }
            asked
        });
        assert_eq!(get(&format!("http://{address}/a?b"), 204).await, Ok(()));
        let url = format!("http://{address}");
        assert_eq!(get(&url, 200).await, Err(format!("{url}: status 204")));
        assert_eq!(serving.await.unwrap(), ["GET /a?b HTTP/1.1", "GET / HTTP/1.1"]);
        assert_eq!(get(&url, 200).await, Err(format!("{address}: connection refused")));
    }
}

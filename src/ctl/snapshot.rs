//! `snapshot save`: fetches a member's database as a file.
//!
//! The file is complete or not there: it is written beside its place, fsynced, checked for its digest's length, renamed.

use std::fs;
use std::fs::File;
use std::fs::OpenOptions;
use std::io;
use std::io::BufWriter;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::path::PathBuf;
use std::time::Duration;
use std::time::Instant;

use super::Personality;
use super::command::Action;
use super::command::Command;
use super::error::CtlError;
use super::error::Exit;
use super::log::Line;
use super::print::simple;
use super::session::Session;
use crate::client::CallError;
use crate::client::Client;
use crate::common::go_duration;

/// Bytes of a sector: a snapshot with its digest is longer than whole ones by exactly that (ctl.md 4.11).
const SECTOR_BYTES: u64 = 512;
/// Bytes of the digest.
const DIGEST_BYTES: u64 = 32;
/// Bytes collected before they go to the file.
const BUFFER_BYTES: usize = 1 << 18;
/// How often progress is told on a terminal.
const PROGRESS_PAUSE: Duration = Duration::from_millis(200);

pub static COMMAND: Command = Command {
    name: "snapshot",
    arguments: "",
    summary: "Looks after snapshots of a member's database",
    flags: &[],
    inherited: &[],
    action: Action::Group { commands: &[&SAVE], names: &["save"] },
};

static SAVE: Command = Command {
    name: "save",
    arguments: "<filename>",
    summary: "Fetches a member's database into a file",
    flags: &[],
    inherited: &[],
    action: Action::Run(run_save),
};

fn run_save(session: &mut Session<'_>) -> Result<(), CtlError> {
    let [name] = &session.args[..] else {
        return Err(CtlError::bad_arguments("snapshot save expects one argument <filename>"));
    };
    let name = String::from_utf8_lossy(name).into_owned();
    session.settle()?;
    let endpoints: Vec<String> = session.endpoints().iter().map(|endpoint| endpoint.trim().to_owned()).collect();
    let [endpoint] = &endpoints[..] else {
        let text = format!("snapshot must be requested to one selected node, not multiple [{}]", endpoints.join(" "));
        return Err(failed(text));
    };
    let endpoint = endpoint.clone();
    let client = session.client(endpoints, "client")?;
    let part = PathBuf::from(format!("{name}.part"));
    let saved = save(session, &client, &endpoint, Path::new(&name), &part);
    if saved.is_err() {
        // It may not have been made at all.
        let _ = fs::remove_file(&part);
    }
    let version = saved?;
    session.console.write_out(format!("Snapshot saved at {name}\n").as_bytes())?;
    if !version.is_empty() {
        session.console.write_out(format!("Server version {version}\n").as_bytes())?;
    }
    Ok(())
}

/// Fetches into `part` and renames it to `path`: the server's storage version.
fn save(session: &Session<'_>, client: &Client, endpoint: &str, path: &Path, part: &Path) -> Result<String, CtlError> {
    let (shown_path, shown_part) = (path.display().to_string(), part.display().to_string());
    let started = Instant::now();
    let file = create(part).map_err(|error| failed(format!("could not open {shown_part} ({error})")))?;
    let logs = Logs(session);
    logs.tell("snapshot/v3_snapshot.go:83", "created temporary db file", &[("path", &shown_part)]);
    let fetched = session.wait(fetch(session, &logs, client, endpoint, file));
    let (bytes, version) = fetched?;
    let (size, took) = (simple::size(i64::try_from(bytes).unwrap_or(i64::MAX)), go_duration::format(started.elapsed()));
    let fields =
        [("endpoint", endpoint), ("size", size.as_str()), ("took", took.as_str()), ("etcd-version", version.as_str())];
    logs.tell("snapshot/v3_snapshot.go:111", "fetched snapshot", &fields);
    if bytes % SECTOR_BYTES != DIGEST_BYTES {
        return Err(failed(format!("sha256 checksum not found [bytes: {bytes}]")));
    }
    fs::rename(part, path).map_err(|error| {
        // Go looks before it asks the system.
        let why = if path.is_dir() { "file exists".to_owned() } else { os_error(&error) };
        failed(format!("could not rename {shown_part} to {shown_path} (rename {shown_part} {shown_path}: {why})"))
    })?;
    logs.tell("snapshot/v3_snapshot.go:121", "saved", &[("path", &shown_path)]);
    Ok(version)
}

async fn fetch(
    session: &Session<'_>,
    logs: &Logs<'_, '_>,
    client: &Client,
    endpoint: &str,
    file: File,
) -> Result<(u64, String), CtlError> {
    // Not unwrapped, and never an answer's plain text (ctl.md 4.11).
    let refused = |error: CallError| failed(error.wrapped());
    let mut chunks = client.snapshot().await.map_err(refused)?;
    logs.tell_client("v3/maintenance.go:236", "opened snapshot stream; downloading");
    logs.tell("snapshot/v3_snapshot.go:96", "fetching snapshot", &[("endpoint", endpoint)]);
    let mut out = BufWriter::with_capacity(BUFFER_BYTES, file);
    let (mut bytes, mut version) = (0, String::new());
    let mut progress = Progress::new(session);
    while let Some(chunk) = chunks.message().await.map_err(|status| refused(CallError::from(status)))? {
        out.write_all(&chunk.blob).map_err(|error| failed(error.to_string()))?;
        bytes += chunk.blob.len() as u64;
        version = chunk.version;
        progress.show(bytes, chunk.remaining_bytes);
    }
    progress.end();
    logs.tell_client("v3/maintenance.go:302", "completed snapshot read; closing");
    let written = out.into_inner().map_err(io::IntoInnerError::into_error).and_then(|file| file.sync_all());
    written.map_err(|error| failed(format!("could not fsync snapshot ({error})")))?;
    Ok((bytes, version))
}

fn create(part: &Path) -> Result<File, String> {
    let mut options = OpenOptions::new();
    options.write(true).create(true).truncate(true).mode(0o600);
    options.open(part).map_err(|error| format!("open {}: {}", part.display(), os_error(&error)))
}

/// An error of the system as Go names it: without its number, in lower case.
fn os_error(error: &io::Error) -> String {
    let text = error.to_string();
    let plain = text.split(" (os error").next().unwrap_or_default();
    let mut letters = plain.chars();
    letters.next().map(|first| first.to_lowercase().chain(letters).collect()).unwrap_or_default()
}

/// Every failure behind the checks of arguments ends alike (ctl.md 1.1).
fn failed(text: String) -> CtlError {
    CtlError::Told { exit: Exit::Interrupted, text }
}

/// The log lines of the original, which `quorate ctl` does without.
struct Logs<'a, 'b>(&'a Session<'b>);

impl Logs<'_, '_> {
    fn tell(&self, caller: &str, message: &str, fields: &[(&str, &str)]) {
        let line = Line::new("info").caller(caller).message(message);
        self.write(fields.iter().fold(line, |line, (key, value)| line.text(key, value)));
    }

    fn tell_client(&self, caller: &str, message: &str) {
        self.write(Line::new("info").text("logger", "client").caller(caller).message(message));
    }

    fn write(&self, line: Line) {
        if self.0.personality() == Personality::Etcdctl && self.0.informs() {
            self.0.console.tell(&line.end());
        }
    }
}

/// How far the download is, on a terminal and for people only: the original has nothing of the kind.
struct Progress<'a, 'b> {
    session: &'a Session<'b>,
    shown: Option<Instant>,
    wanted: bool,
}

impl<'a, 'b> Progress<'a, 'b> {
    fn new(session: &'a Session<'b>) -> Progress<'a, 'b> {
        let wanted = session.personality() == Personality::Native && io::IsTerminal::is_terminal(&io::stderr());
        Progress { session, shown: None, wanted }
    }

    fn show(&mut self, bytes: u64, remaining: u64) {
        if !self.wanted || self.shown.is_some_and(|shown| shown.elapsed() < PROGRESS_PAUSE) {
            return;
        }
        self.shown = Some(Instant::now());
        let size = |bytes: u64| simple::size(i64::try_from(bytes).unwrap_or(i64::MAX));
        self.session.console.tell(&format!("\r\x1b[K{} of {}", size(bytes), size(bytes + remaining)));
    }

    fn end(&self) {
        if self.shown.is_some() {
            self.session.console.tell("\r\x1b[K");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_of_the_system_are_told_as_go_tells_them() {
        let error = create(Path::new("/nonexistent/x.part")).expect_err("no such directory");
        assert_eq!(error, "open /nonexistent/x.part: no such file or directory");
        let directory = tempfile::tempdir().expect("a temporary directory");
        let (from, to) = (directory.path().join("a"), directory.path().join("b"));
        fs::write(&from, "x").expect("a file");
        fs::create_dir(&to).expect("a directory");
        assert_eq!(os_error(&fs::rename(&from, &to).expect_err("a directory")), "is a directory");
    }
}

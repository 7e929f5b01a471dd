//! What every test here needs: waiting for conditions, free ports, saying aloud that a test was skipped.

use std::future::Future;
use std::io::Write;
use std::net::TcpListener;
use std::os::unix::fs::symlink;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::AtomicU16;
use std::sync::atomic::Ordering;
use std::time::Duration;
use std::time::Instant;

use signal_hook::consts::SIGINT;
use tempfile::TempDir;
use tokio::io::AsyncReadExt;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;

/// Longest wait for anything. Long because the machine is shared; a passing test never waits for it.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// Asks `probe` until it answers `Ok`, and panics with its last error when `PATIENCE` is over.
pub async fn eventually<T, F, Fut>(what: &str, mut probe: F) -> T
where
    F: FnMut() -> Fut,
    Fut: Future<Output = Result<T, String>>,
{
    let deadline = Instant::now() + PATIENCE;
    loop {
        match probe().await {
            Ok(value) => return value,
            Err(error) if Instant::now() > deadline => panic!("waited for {what}: {error}"),
            Err(_) => tokio::time::sleep(Duration::from_millis(30)).await,
        }
    }
}

/// A port on 127.0.0.1 that nothing listens on, below the ephemeral range: a member that redials a closed port inside
/// that range can connect to itself (peer.md 3.7).
pub fn free_port() -> u16 {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    const FIRST: u16 = 11_000;
    const SPAN: u16 = 20_000;
    let offset = (std::process::id().wrapping_mul(97) % u32::from(SPAN)) as u16;
    for _ in 0..SPAN {
        let step = NEXT.fetch_add(1, Ordering::Relaxed);
        let port = FIRST + (offset.wrapping_add(step)) % SPAN;
        if TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return port;
        }
    }
    panic!("no free port between {FIRST} and {}", FIRST + SPAN);
}

/// Lets children end by SIGINT also where the tests were started with it ignored, as a shell's job in the background is:
/// an ignored signal is inherited, a caught one is not.
pub fn children_heed_sigint() {
    let always = Arc::new(AtomicBool::new(true));
    signal_hook::flag::register_conditional_default(SIGINT, always).expect("SIGINT can be caught");
}

/// Says on the real stderr, and in a file that `.ci/run` reads, that a test did not run.
pub fn skipped(test: &str, why: &str) {
    let line = format!("SKIPPED {test}: {why}\n");
    // Past libtest's capture: a skipped test must be heard.
    let _ = std::io::stderr().write_all(line.as_bytes());
    let path = target_dir().join("skipped-tests.txt");
    if let Ok(mut file) = std::fs::OpenOptions::new().create(true).append(true).open(path) {
        let _ = file.write_all(line.as_bytes());
    }
}

/// Where cargo builds: tests keep downloads and logs below it.
pub fn target_dir() -> PathBuf {
    let program = PathBuf::from(env!("CARGO_BIN_EXE_quorate"));
    let profile = program.parent().expect("a program lies in a directory");
    profile.parent().expect("a profile lies in the target directory").to_owned()
}

/// A link by this name to our program, in a directory of its own: the name makes it that program.
pub fn named_program(name: &str) -> (TempDir, PathBuf) {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let link = directory.path().join(name);
    symlink(env!("CARGO_BIN_EXE_quorate"), &link).expect("a link in a new directory");
    (directory, link)
}

/// The team's shared folder with fixtures and transcripts, where this checkout has one.
pub fn shared_dir() -> Option<PathBuf> {
    if let Some(named) = std::env::var_os("QUORATE_SHARED") {
        return Some(PathBuf::from(named));
    }
    let root = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
    root.ancestors().map(|dir| dir.join("shared")).find(|dir| dir.join("fixtures").is_dir())
}

/// Asks a plain HTTP port on 127.0.0.1: status and body. Status 0 and the reason when there was no answer.
pub async fn http_get(port: u16, path: &str) -> (u16, String) {
    let asked = async {
        let mut stream = TcpStream::connect(("127.0.0.1", port)).await?;
        // 1.0, so that the body ends with the connection.
        stream.write_all(format!("GET {path} HTTP/1.0\r\nHost: 127.0.0.1\r\n\r\n").as_bytes()).await?;
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).await?;
        Ok::<Vec<u8>, std::io::Error>(answer)
    };
    let answer = match asked.await {
        Ok(answer) => String::from_utf8_lossy(&answer).into_owned(),
        Err(error) => return (0, error.to_string()),
    };
    let (head, body) = answer.split_once("\r\n\r\n").unwrap_or((&answer, ""));
    let status = head.split(' ').nth(1).and_then(|status| status.parse().ok());
    (status.unwrap_or(0), body.to_owned())
}

/// A number from the environment, for longer runs by hand.
pub fn from_environment(name: &str, default: u64) -> u64 {
    std::env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(default)
}

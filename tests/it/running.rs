//! A command that runs while a test does other things, with what it has printed so far.

use std::io::Read;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::Child;
use std::process::Command;
use std::process::Stdio;
use std::sync::Arc;
use std::sync::Mutex;

use nix::sys::signal::Signal;
use nix::unistd::Pid;

use crate::support::children_heed_sigint;
use crate::support::eventually;

/// A command that runs while the test does other things.
pub struct Running {
    pub child: Child,
    out: Arc<Mutex<Vec<u8>>>,
    err: Arc<Mutex<Vec<u8>>>,
    readers: Vec<std::thread::JoinHandle<()>>,
}

fn collect(mut pipe: impl Read + Send + 'static) -> (Arc<Mutex<Vec<u8>>>, std::thread::JoinHandle<()>) {
    let all = Arc::new(Mutex::new(Vec::new()));
    let shared = all.clone();
    let reader = std::thread::spawn(move || {
        let mut buffer = [0; 4096];
        while let Ok(read @ 1..) = pipe.read(&mut buffer) {
            shared.lock().expect("nobody panics").extend_from_slice(&buffer[..read]);
        }
    });
    (all, reader)
}

impl Running {
    pub fn start(program: &Path, words: &[String], environment: &[(String, String)]) -> Running {
        let mut command = Command::new(program);
        let ours = std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("ETCDCTL_"));
        ours.for_each(|(name, _)| {
            command.env_remove(name);
        });
        command.args(words).envs(environment.iter().cloned());
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        children_heed_sigint();
        let mut child = command.spawn().expect("the program starts");
        let (out, out_reader) = collect(child.stdout.take().expect("a pipe"));
        let (err, err_reader) = collect(child.stderr.take().expect("a pipe"));
        Running { child, out, err, readers: vec![out_reader, err_reader] }
    }

    pub fn out(&self) -> Vec<u8> {
        self.out.lock().expect("nobody panics").clone()
    }

    fn lines(bytes: &Mutex<Vec<u8>>) -> Vec<String> {
        let bytes = bytes.lock().expect("nobody panics");
        String::from_utf8_lossy(&bytes).lines().map(str::to_owned).collect()
    }

    pub async fn until_lines(&self, out: usize, err: usize) {
        eventually("what was printed", async || {
            let (printed, told) = (Running::lines(&self.out), Running::lines(&self.err));
            if printed.len() >= out && told.len() >= err { Ok(()) } else { Err(format!("{printed:#?} {told:#?}")) }
        })
        .await;
    }

    /// Waits for the end, after a signal if one is given: its code, or minus the signal.
    pub fn end(mut self, signal: Option<Signal>) -> (i32, Vec<String>, Vec<String>) {
        if let Some(signal) = signal {
            let pid = Pid::from_raw(i32::try_from(self.child.id()).expect("pids fit"));
            nix::sys::signal::kill(pid, signal).expect("it runs");
        }
        let status = self.child.wait().expect("it ends");
        self.readers.drain(..).for_each(|reader| reader.join().expect("no panic"));
        let code = status.code().unwrap_or_else(|| -status.signal().unwrap_or_default());
        (code, Running::lines(&self.out), Running::lines(&self.err))
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // Best effort: it may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

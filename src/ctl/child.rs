//! How programs that a command runs end, in Go's words (ctl.md 5).

use std::io;
use std::os::unix::process::ExitStatusExt;
use std::process::ExitStatus;

use bytes::Bytes;
use nix::sys::signal::Signal;

use super::go_text;

/// How Go words the end of a child.
pub fn ended(status: ExitStatus) -> String {
    match (status.code(), status.signal()) {
        (Some(code), _) => format!("exit status {code}"),
        (None, Some(signal)) => {
            let known = Signal::try_from(signal).map(signal_name).ok().flatten();
            known.map_or_else(|| format!("signal: signal {signal}"), |name| format!("signal: {name}"))
        }
        (None, None) => status.to_string(),
    }
}

/// Go's words for signals that end a child.
fn signal_name(signal: Signal) -> Option<&'static str> {
    Some(match signal {
        Signal::SIGHUP => "hangup",
        Signal::SIGINT => "interrupt",
        Signal::SIGQUIT => "quit",
        Signal::SIGABRT => "aborted",
        Signal::SIGKILL => "killed",
        Signal::SIGSEGV => "segmentation fault",
        Signal::SIGPIPE => "broken pipe",
        Signal::SIGTERM => "terminated",
        _ => return None,
    })
}

pub fn not_started(program: &Bytes, error: &io::Error) -> String {
    let name = String::from_utf8_lossy(program);
    match (error.kind(), name.contains('/')) {
        (io::ErrorKind::NotFound, false) => {
            format!("exec: {}: executable file not found in $PATH", go_text::quote(program))
        }
        (io::ErrorKind::NotFound, true) => format!("fork/exec {name}: no such file or directory"),
        (io::ErrorKind::PermissionDenied, _) => format!("fork/exec {name}: permission denied"),
        _ => format!("fork/exec {name}: {error}"),
    }
}

//! How a command ends when it fails: exit codes and texts of etcdutl (ctl.md 6).

use std::io;
use std::path::Path;

use crate::common::failure::Failure;
use crate::common::os_reason::os_reason;
use crate::program::Manner;

/// What was asked for could not be done.
const FAILED: u8 = 1;
/// A known flag carries an unsupported value.
const BAD_FEATURE: u8 = 4;
/// Number or form of the arguments.
const BAD_ARGUMENTS: u8 = 128;

/// Why a command ends early.
#[derive(Debug)]
pub enum UtlError {
    /// Told as `Error: ` and the text, on one line.
    Told { code: u8, text: String },
    /// The command line makes no sense: told with the usage behind it, and by etcdutl once more behind that.
    Usage { text: String, usage: String },
    /// No such command; with names that were perhaps meant.
    Unknown { text: String, hint: String },
    /// Standard output failed. A reader that went away is no error worth a line.
    Console(io::Error),
}

impl UtlError {
    pub fn failed(text: impl Into<String>) -> UtlError {
        UtlError::Told { code: FAILED, text: text.into() }
    }

    pub fn bad_arguments(text: impl Into<String>) -> UtlError {
        UtlError::Told { code: BAD_ARGUMENTS, text: text.into() }
    }

    pub fn bad_feature(text: impl Into<String>) -> UtlError {
        UtlError::Told { code: BAD_FEATURE, text: text.into() }
    }

    /// Go's text for a system call that failed on a path.
    pub fn call(call: &str, path: &Path, error: &io::Error) -> UtlError {
        UtlError::failed(format!("{call} {}: {}", path.display(), os_reason(error)))
    }

    /// What the process ends with.
    pub fn exit_code(&self) -> u8 {
        match self {
            UtlError::Told { code, .. } => *code,
            UtlError::Usage { .. } | UtlError::Unknown { .. } | UtlError::Console(_) => FAILED,
        }
    }

    /// What standard error is told.
    pub fn message(&self, manner: Manner) -> String {
        let again = |text: &str| match manner {
            Manner::Original => format!("Error: {text}\n"),
            Manner::Native => String::new(),
        };
        match self {
            UtlError::Told { text, .. } => format!("Error: {text}\n"),
            UtlError::Usage { text, usage } => format!("Error: {text}\n{usage}\n{}", again(text)),
            UtlError::Unknown { text, hint } => format!("Error: {text}\n{hint}{}", again(text)),
            UtlError::Console(error) if error.kind() == io::ErrorKind::BrokenPipe => String::new(),
            UtlError::Console(error) => format!("Error: {error}\n"),
        }
    }
}

impl From<Failure> for UtlError {
    fn from(failure: Failure) -> UtlError {
        UtlError::failed(failure.to_string())
    }
}

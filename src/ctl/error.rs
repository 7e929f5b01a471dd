//! How a command ends when it fails: one table of exit codes, one line of text.

use std::io;

use crate::client::CallError;
use crate::client::OpenError;

/// Exit codes (ctl.md 1.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    /// The server refused, or an unknown command or flag was given.
    Failed = 1,
    /// No client could be made.
    BadConnection = 2,
    /// Standard input of `txn` or `watch -i` makes no sense.
    InvalidInput = 3,
    /// A known flag carries an unsupported value.
    BadFeature = 4,
    /// What was under way was broken off, or the server ended a watch.
    Interrupted = 5,
    /// Number or form of the arguments.
    BadArguments = 128,
}

/// Why a command ends early.
#[derive(Debug)]
pub enum CtlError {
    /// Told as `Error: ` and the text, on one line.
    Told { exit: Exit, text: String },
    /// A program that was run failed: told like any error, and its exit code is ours.
    Child { code: u8, text: String },
    /// Everything was told before.
    Silent(Exit),
    /// Told already in the words of a log line or with the usage behind it: printed as it is.
    Raw { exit: Exit, text: String },
    /// Standard output or input failed. A reader that went away is no error worth a line.
    Console(io::Error),
}

impl CtlError {
    pub fn failed(text: impl Into<String>) -> CtlError {
        CtlError::Told { exit: Exit::Failed, text: text.into() }
    }

    pub fn bad_arguments(text: impl Into<String>) -> CtlError {
        CtlError::Told { exit: Exit::BadArguments, text: text.into() }
    }

    pub fn bad_feature(text: impl Into<String>) -> CtlError {
        CtlError::Told { exit: Exit::BadFeature, text: text.into() }
    }

    pub fn invalid_input(text: impl Into<String>) -> CtlError {
        CtlError::Told { exit: Exit::InvalidInput, text: text.into() }
    }

    /// What the process ends with.
    pub fn exit_code(&self) -> u8 {
        match self {
            CtlError::Told { exit, .. } | CtlError::Silent(exit) | CtlError::Raw { exit, .. } => *exit as u8,
            CtlError::Child { code, .. } => *code,
            CtlError::Console(_) => Exit::Failed as u8,
        }
    }

    /// What standard error is told.
    pub fn message(&self) -> String {
        match self {
            CtlError::Told { text, .. } | CtlError::Child { text, .. } => format!("Error: {text}\n"),
            CtlError::Raw { text, .. } => text.clone(),
            CtlError::Silent(_) => String::new(),
            CtlError::Console(error) if error.kind() == io::ErrorKind::BrokenPipe => String::new(),
            CtlError::Console(error) => format!("Error: {error}\n"),
        }
    }
}

impl From<CallError> for CtlError {
    fn from(error: CallError) -> CtlError {
        CtlError::failed(error.to_string())
    }
}

impl From<OpenError> for CtlError {
    fn from(error: OpenError) -> CtlError {
        let exit = match &error {
            OpenError::NoEndpoints => Exit::BadConnection,
            OpenError::Tls(_) | OpenError::BadToken => Exit::BadArguments,
        };
        CtlError::Told { exit, text: error.to_string() }
    }
}

impl From<io::Error> for CtlError {
    fn from(error: io::Error) -> CtlError {
        CtlError::Console(error)
    }
}

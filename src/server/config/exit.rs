//! How a command line ends that does not become a running member.

use serde_json::Value;

use crate::common::logging::json_line;

/// The disk failed, or what it holds is damaged: the member cannot go on.
pub const EXIT_FAILURE: u8 = 74;

/// What to print and the code to exit with.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Exit {
    pub code: u8,
    pub stdout: String,
    pub stderr: String,
}

impl Exit {
    /// A line of the log on stderr and code 1. `caller` is `folder/file.rs:line`.
    fn logged(level: &str, message: &str, fields: &[(&str, String)]) -> Exit {
        let fields: Vec<(String, Value)> =
            fields.iter().map(|(name, text)| ((*name).to_owned(), text.as_str().into())).collect();
        let stderr = json_line(level, concat!("config/exit.rs:", line!()), message, &fields);
        Exit { code: 1, stdout: String::new(), stderr }
    }

    /// Flags that do not fit each other, or values out of bounds.
    pub fn failed_to_verify(error: impl Into<String>) -> Exit {
        Exit::logged("warn", "failed to verify flags", &[("error", error.into())])
    }

    /// What is found while starting. etcd says so whatever it was (server.md 9.1).
    pub fn discovery_failed(error: impl Into<String>) -> Exit {
        Exit::logged("fatal", "discovery failed", &[("error", error.into())])
    }

    /// The data directory cannot be written, or holds what was never written there.
    pub fn disk_failed(error: impl Into<String>) -> Exit {
        Exit {
            code: EXIT_FAILURE,
            ..Exit::logged("fatal", "cannot use the data directory", &[("error", error.into())])
        }
    }

    /// The same option by flag and by environment.
    pub fn conflict(variable: &str) -> Exit {
        let message = "conflicting environment variable is shadowed by corresponding command-line flag \
                       (either unset environment variable or disable flag))";
        Exit::logged("fatal", message, &[("environment-variable", variable.to_owned())])
    }

    /// A flag that cannot be read: the reason on the first line, then how to call.
    pub fn usage(error: &str, usage: &str) -> Exit {
        Exit { code: 2, stdout: String::new(), stderr: format!("{error}\n{usage}") }
    }
}

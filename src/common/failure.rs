//! What stops a node: a disk error or damage. Never sent to a client; the process ends with a sentence that names the file.

use std::io;
use std::path::Path;
use std::path::PathBuf;

/// Why this member cannot go on.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// `what` is a verb phrase: "cannot write", "cannot fdatasync".
    #[error("{what} {path}: {source}", path = path.display())]
    Io { what: &'static str, path: PathBuf, source: io::Error },
    /// Bytes that are not what was written, or contradict each other.
    #[error("{path} is damaged: {detail}", path = path.display())]
    Damaged { path: PathBuf, detail: String },
    /// A state that the rules exclude: an entry that cannot be applied, a log that does not reach.
    #[error("{0}")]
    Refused(String),
}

impl Failure {
    /// For `map_err`: names the step and the file.
    pub fn io(what: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Failure {
        let path = path.to_owned();
        move |source| Failure::Io { what, path, source }
    }

    pub fn damaged(path: &Path, detail: impl Into<String>) -> Failure {
        Failure::Damaged { path: path.to_owned(), detail: detail.into() }
    }
}

//! How a running member ends other than by a signal, and the exit code that says so.

use std::process::ExitCode;
use std::sync::Arc;

use tokio::sync::watch;

use crate::common::failure::Failure;
pub use crate::server::config::exit::EXIT_FAILURE;
use crate::server::raft::driver::EndProcess;

/// A thread panicked: a mistake in the program.
pub const EXIT_PANIC: u8 = 70;

/// Why it ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// Removed from the cluster: nothing went wrong.
    Removed,
    Failed,
    Panicked,
}

impl End {
    pub fn exit_code(self) -> ExitCode {
        match self {
            End::Removed => ExitCode::SUCCESS,
            End::Failed => ExitCode::from(EXIT_FAILURE),
            End::Panicked => ExitCode::from(EXIT_PANIC),
        }
    }
}

/// Takes the first end; clones speak of the same one.
#[derive(Clone)]
pub struct Ends {
    first: Arc<watch::Sender<Option<End>>>,
}

impl Default for Ends {
    fn default() -> Ends {
        Ends { first: Arc::new(watch::Sender::new(None)) }
    }
}

impl Ends {
    pub fn end(&self, end: End) {
        self.first.send_if_modified(|first| {
            let news = first.is_none();
            if news {
                *first = Some(end);
            }
            news
        });
    }

    /// Resolves with the first end.
    pub async fn wait(&self) -> End {
        let mut receiver = self.first.subscribe();
        match receiver.wait_for(Option::is_some).await {
            Ok(end) => end.unwrap_or(End::Failed),
            // The sender is our own field.
            Err(_) => End::Failed,
        }
    }

    /// The hook of the apply queue and the flusher. The failure was logged there.
    pub fn on_failure(&self) -> Arc<dyn Fn(Failure) + Send + Sync> {
        let ends = self.clone();
        Arc::new(move |_| ends.end(End::Failed))
    }

    /// The hook of guarded threads.
    pub fn end_process(&self) -> EndProcess {
        let ends = self.clone();
        Arc::new(move |thread, panic| {
            tracing::error!(thread, panic, "a thread panicked");
            ends.end(End::Panicked);
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_first_end_counts() {
        let ends = Ends::default();
        ends.end(End::Panicked);
        ends.end(End::Removed);
        assert_eq!(ends.wait().await, End::Panicked);
    }
}

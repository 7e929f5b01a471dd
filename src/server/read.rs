//! Linearizable reads: one read index for all who wait, then the applied index, then the newest view.
//!
//! `rounds` decides; this is its shell in the server: a task that turns it when something happened, and the calls.

mod rounds;

use std::sync::Arc;
use std::sync::Mutex;
use std::sync::MutexGuard;
use std::sync::PoisonError;
use std::time::Duration;

use bytes::Bytes;
use prometheus::IntCounter;
use tokio::sync::Notify;
use tokio::sync::oneshot;
use tokio::time::Instant;

use crate::common::answer::Answer;
use crate::common::ids::RequestIds;
use crate::server::apply::published::Published;
use crate::server::mvcc::view::View;
use crate::server::propose::RaftPort;
pub use crate::server::read::rounds::News;
pub use crate::server::read::rounds::Rounds;
pub use crate::server::read::rounds::Timing;
use crate::server::waiters::Desk;

/// A read index that was not confirmed in this time is asked for again, under a new context: the library drops requests
/// silently while there is no leader (reliability.md R2).
pub const READ_INDEX_RETRY: Duration = Duration::from_millis(500);

/// Tells a read from when on this member's state is recent enough. Clones are the same reader.
#[derive(Clone)]
pub struct Reader {
    inner: Arc<Inner>,
}

type Waiting = oneshot::Sender<Result<(), Answer>>;

struct Inner {
    ids: Arc<RequestIds>,
    raft: Arc<dyn RaftPort>,
    desk: Arc<Desk>,
    published: Published,
    /// Where the machine's time begins.
    start: Instant,
    rounds: Mutex<Rounds<Waiting>>,
    arrived: Notify,
    metrics: ReadMetrics,
}

/// What a reader is made of.
pub struct ReaderParts {
    /// RT: 5 s and two election timeouts.
    pub request_timeout: Duration,
    /// `READ_INDEX_RETRY`, shorter in tests.
    pub retry: Duration,
    pub ids: Arc<RequestIds>,
    pub raft: Arc<dyn RaftPort>,
    pub desk: Arc<Desk>,
    pub published: Published,
    pub metrics: ReadMetrics,
}

/// What the machine waits for between two turns.
struct Awaited {
    index: bool,
    applied: bool,
    wake_at: Option<Duration>,
}

impl Reader {
    /// A reader whose `run` has to be spawned.
    pub fn new(parts: ReaderParts) -> Reader {
        let ReaderParts { request_timeout, retry, ids, raft, desk, published, metrics } = parts;
        let rounds = Mutex::new(Rounds::new(Timing { patience: request_timeout, retry }));
        let (start, arrived) = (Instant::now(), Notify::new());
        Reader { inner: Arc::new(Inner { ids, raft, desk, published, start, rounds, arrived, metrics }) }
    }

    /// Returns when a read here sees everything that was acknowledged anywhere before the call.
    pub async fn barrier(&self) -> Result<(), Answer> {
        // A lone voter that leads has nobody to ask: what it acknowledged, it had published.
        if self.inner.raft.lone_leader() {
            return Ok(());
        }
        let (sender, receiver) = oneshot::channel();
        {
            let mut rounds = self.lock();
            // Asked under the lock: `run` answers what is in here after the stop, and nothing comes in behind it.
            if self.inner.desk.is_stopped() {
                return Err(Answer::Stopped);
            }
            let now = self.inner.start.elapsed();
            if let Err(sender) = rounds.ask(sender, now) {
                // Callers that left still hold their place; they make room here.
                rounds.retain(|sender| !sender.is_closed());
                rounds.ask(sender, now).map_err(|_| Answer::TooManyRequests)?;
            }
        }
        self.inner.arrived.notify_one();
        receiver.await.unwrap_or(Err(Answer::Stopped))
    }

    /// The newest view of the store.
    pub fn view(&self) -> Arc<View> {
        self.inner.published.view()
    }

    /// Turns the machine whenever something happened, until the member stops.
    pub async fn run(self) {
        let desk = self.inner.desk.clone();
        let (mut raft, mut applied) = (desk.watch_raft(), desk.watch_applied());
        let stopped = desk.until_stopped();
        tokio::pin!(stopped);
        loop {
            // Marked before the look: what comes during it wakes again.
            raft.mark_unchanged();
            applied.mark_unchanged();
            let Awaited { index, applied: for_applied, wake_at } = self.turn();
            let due = async {
                match wake_at {
                    Some(at) => tokio::time::sleep_until(self.inner.start + at).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                biased;
                () = &mut stopped => break,
                // Who comes during a round waits for its end, and so does the word of it.
                () = self.inner.arrived.notified(), if !index => {}
                () = desk.until_read_ready(), if index => {}
                // The sender is the desk's own field, so the channels cannot close.
                _ = raft.changed(), if index => {}
                _ = applied.changed(), if for_applied => {}
                () = due => {}
            }
        }
        for sender in self.lock().stop() {
            let _ = sender.send(Err(Answer::Stopped));
        }
    }

    fn turn(&self) -> Awaited {
        let inner = &self.inner;
        // Answers first: a change of leader that came with one is seen behind it (B23).
        let ready = inner.desk.take_reads_ready();
        let raft = inner.desk.raft_now();
        let news = News {
            now: inner.start.elapsed(),
            leader_changes: raft.leader_changes,
            terms_started: raft.terms_started,
            applied_index: inner.desk.applied_index(),
            ready,
        };
        let (work, awaited) = {
            let mut rounds = self.lock();
            let work = rounds.turn(news, || Bytes::copy_from_slice(&inner.ids.next().to_be_bytes()));
            let (index, applied) = (rounds.awaits_index(), rounds.awaits_applied());
            let awaited = Awaited { index, applied, wake_at: work.wake_at };
            (work, awaited)
        };
        if let Some(context) = work.question {
            inner.raft.read_index(context);
        }
        if let Some(answer) = work.failed {
            inner.metrics.failed.inc();
            if answer == Answer::Timeout {
                tracing::warn!("timed out waiting for a read index, the network may be slow or cut off");
                inner.metrics.slow.inc();
            }
        }
        for (sender, result) in work.told {
            // A caller that left wants no word.
            let _ = sender.send(result);
        }
        awaited
    }

    fn lock(&self) -> MutexGuard<'_, Rounds<Waiting>> {
        self.inner.rounds.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What reading counts, by etcd's names.
#[derive(Clone)]
pub struct ReadMetrics {
    slow: IntCounter,
    failed: IntCounter,
}

impl ReadMetrics {
    pub fn register(registry: &prometheus::Registry) -> ReadMetrics {
        let counter = |name: &str, help: &str| {
            let counter = IntCounter::new(name, help).expect("a valid name");
            registry.register(Box::new(counter.clone())).expect("registered once");
            counter
        };
        ReadMetrics {
            slow: counter(
                "etcd_server_slow_read_indexes_total",
                "The total number of pending read indexes not in sync with leader's or timed out read index requests.",
            ),
            failed: counter("etcd_server_read_indexes_failed_total", "The total number of failed read indexes seen."),
        }
    }
}

#[cfg(test)]
mod tests;

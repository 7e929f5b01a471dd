//! Linearizable reads: one read index for all who wait, then the applied index, then the newest view.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::MutexGuard;
use std::sync::PoisonError;
use std::time::Duration;
use std::time::Instant;

use bytes::Bytes;
use prometheus::IntCounter;
use tokio::sync::Notify;
use tokio::sync::oneshot;

use crate::common::answer::Answer;
use crate::common::ids::RequestIds;
use crate::server::apply::published::Published;
use crate::server::mvcc::view::View;
use crate::server::propose::RaftPort;
use crate::server::waiters::Desk;
use crate::server::waiters::RaftNow;

/// A read index that was not confirmed in this time is asked for again, under a new context: the library drops requests
/// silently while there is no leader (reliability.md R2).
pub const READ_INDEX_RETRY: Duration = Duration::from_millis(500);

/// Reads that wait for a read index. Full means clients are told that there are too many requests.
pub const READS_MAX: usize = 65_536;

/// Tells a read from when on this member's state is recent enough. Clones are the same reader.
#[derive(Clone)]
pub struct Reader {
    inner: Arc<Inner>,
}

struct Inner {
    /// RT: 5 s and two election timeouts.
    request_timeout: Duration,
    retry: Duration,
    ids: Arc<RequestIds>,
    raft: Arc<dyn RaftPort>,
    desk: Arc<Desk>,
    published: Published,
    /// Reads that take part in the next round.
    next: Mutex<VecDeque<oneshot::Sender<Result<u64, Answer>>>>,
    arrived: Notify,
    metrics: ReadMetrics,
}

/// What a reader is made of.
pub struct ReaderParts {
    pub request_timeout: Duration,
    /// `READ_INDEX_RETRY`, shorter in tests.
    pub retry: Duration,
    pub ids: Arc<RequestIds>,
    pub raft: Arc<dyn RaftPort>,
    pub desk: Arc<Desk>,
    pub published: Published,
    pub metrics: ReadMetrics,
}

impl Reader {
    /// A reader whose `run` has to be spawned.
    pub fn new(parts: ReaderParts) -> Reader {
        let ReaderParts { request_timeout, retry, ids, raft, desk, published, metrics } = parts;
        let (next, arrived) = (Mutex::default(), Notify::new());
        let inner = Inner { request_timeout, retry, ids, raft, desk, published, next, arrived, metrics };
        Reader { inner: Arc::new(inner) }
    }

    /// Returns when a read here sees everything that was acknowledged anywhere before the call.
    pub async fn barrier(&self) -> Result<(), Answer> {
        // A lone voter that leads has nobody to ask: what it acknowledged, it had published.
        if self.inner.raft.lone_leader() {
            return Ok(());
        }
        let (sender, receiver) = oneshot::channel();
        {
            let mut next = self.lock();
            // Asked under the lock: `run` answers what is in here after the stop, and nothing comes in behind it.
            if self.inner.desk.is_stopped() {
                return Err(Answer::Stopped);
            }
            // Callers that left still hold their place until the round ends; they make room here.
            if next.len() >= READS_MAX {
                next.retain(|sender| !sender.is_closed());
            }
            if next.len() >= READS_MAX {
                return Err(Answer::TooManyRequests);
            }
            next.push_back(sender);
        }
        self.inner.arrived.notify_one();
        // By its own clock: without a leader, a read that came during a round would wait for that one and for the next.
        let index = match tokio::time::timeout(self.inner.request_timeout, receiver).await {
            Ok(index) => index.map_err(|_| Answer::Stopped)??,
            Err(_) => return Err(Answer::Timeout),
        };
        self.wait_applied(index).await
    }

    /// Waits until this member has applied the log up to `index`; `Timeout` after RT.
    pub async fn wait_applied(&self, index: u64) -> Result<(), Answer> {
        if self.inner.desk.applied_index() >= index {
            return Ok(());
        }
        let mut applied = self.inner.desk.watch_applied();
        tokio::select! {
            _ = applied.wait_for(|applied| *applied >= index) => Ok(()),
            () = tokio::time::sleep(self.inner.request_timeout) => Err(Answer::Timeout),
            () = self.inner.desk.until_stopped() => Err(Answer::Stopped),
        }
    }

    /// The newest view of the store.
    pub fn view(&self) -> Arc<View> {
        self.inner.published.view()
    }

    /// Serves the reads that wait, round by round, until the member stops.
    pub async fn run(self) {
        loop {
            tokio::select! {
                biased;
                () = self.inner.desk.until_stopped() => break,
                () = self.inner.arrived.notified() => {}
            }
            // Taken before the index is asked for: whoever comes later waits for the next round (B24).
            let round = std::mem::take(&mut *self.lock());
            if round.is_empty() {
                continue;
            }
            let result = self.read_index().await;
            if result.is_err() {
                self.inner.metrics.failed.inc();
            }
            for sender in round {
                // A caller that left wants no word.
                let _ = sender.send(result.clone());
            }
        }
        for sender in std::mem::take(&mut *self.lock()) {
            let _ = sender.send(Err(Answer::Stopped));
        }
    }

    /// Asks raft for a read index until it answers, the leader changes, or RT passed.
    async fn read_index(&self) -> Result<u64, Answer> {
        let inner = &self.inner;
        let mut raft = inner.desk.watch_raft();
        let before = inner.desk.raft_now();
        let deadline = Instant::now() + inner.request_timeout;
        let mut index = inner.desk.open_read_round();
        let mut terms_started = before.terms_started;
        let leader_changed = |now: &RaftNow| now.leader_changes != before.leader_changes;
        loop {
            // A context is never used twice: a late answer to an old question must not confirm a new one (R1, B22).
            let context = Bytes::copy_from_slice(&inner.ids.next().to_be_bytes());
            inner.desk.add_read_context(context.clone());
            inner.raft.read_index(context);
            let retry = tokio::time::sleep(inner.retry);
            tokio::pin!(retry);
            let news = |now: &RaftNow| leader_changed(now) || now.terms_started != terms_started;
            tokio::select! {
                // A change of leader wins over an index that came with it (B23).
                biased;
                () = inner.desk.until_stopped() => return Err(Answer::Stopped),
                now = raft.wait_for(news) => match now.map(|now| *now) {
                    Ok(now) if leader_changed(&now) => return Err(Answer::LeaderChanged),
                    Ok(now) => terms_started = now.terms_started,
                    Err(_) => return Err(Answer::Stopped),
                },
                index = &mut index => {
                    let index = index.map_err(|_| Answer::Stopped)?;
                    return match leader_changed(&inner.desk.raft_now()) {
                        true => Err(Answer::LeaderChanged),
                        false => Ok(index),
                    };
                }
                () = tokio::time::sleep_until(deadline.into()) => {
                    tracing::warn!("timed out waiting for a read index, the network may be slow or cut off");
                    inner.metrics.slow.inc();
                    return Err(Answer::Timeout);
                }
                () = &mut retry => {}
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, VecDeque<oneshot::Sender<Result<u64, Answer>>>> {
        self.inner.next.lock().unwrap_or_else(PoisonError::into_inner)
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

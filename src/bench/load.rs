//! Puts a load on a server: one task a client, each sending its next request when the last one was answered.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::PoisonError;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::task::JoinSet;
use tokio::time::Instant;

use super::latency::Histogram;
use super::latency::Percentiles;
use super::progress;
use super::progress::Progress;
use super::workload::Done;
use super::workload::Work;
use crate::client::direct::Direct;
use crate::client::direct::DirectError;

/// Different error texts that are kept; a server that words each error anew must not fill our memory.
const FAILURES_MAX: usize = 100;

/// A run to make.
#[derive(Clone, Debug, PartialEq)]
pub struct Load {
    pub name: &'static str,
    pub conns: u32,
    pub clients: u32,
    pub total: u64,
    /// Requests a second at most; 0 is no limit.
    pub rate: u64,
    pub work: Work,
}

/// What came of it.
#[derive(Clone, Debug, Default)]
pub struct Outcome {
    pub elapsed: Duration,
    /// Of requests that were answered with success, in milliseconds.
    pub all: Option<Percentiles>,
    pub reads: Option<Percentiles>,
    pub writes: Option<Percentiles>,
    pub keys_read: u64,
    pub pages_read: u64,
    /// How often which error came.
    pub failures: BTreeMap<String, u64>,
}

impl Outcome {
    pub fn succeeded(&self) -> u64 {
        self.all.map_or(0, |all| all.count)
    }

    pub fn failed(&self) -> u64 {
        self.failures.values().sum()
    }

    pub fn requests_per_second(&self) -> f64 {
        self.succeeded() as f64 / self.elapsed.as_secs_f64().max(f64::MIN_POSITIVE)
    }
}

/// Open connections, kept alive by this.
pub struct Links {
    links: Vec<Direct>,
    /// Owned so that the connections end with their owner.
    _connections: JoinSet<()>,
}

impl Links {
    /// `count` connections to `endpoints` in turn.
    pub async fn open(endpoints: &[String], count: u32) -> Result<Links, String> {
        assert!(!endpoints.is_empty(), "there is at least the default endpoint");
        let mut links = Vec::new();
        let mut connections = JoinSet::new();
        for endpoint in endpoints.iter().cycle().take(count as usize) {
            let (link, ended) = Direct::open(endpoint).await?;
            connections.spawn(ended);
            links.push(link);
        }
        Ok(Links { links, _connections: connections })
    }

    /// A connection to the first endpoint, for calls beside a load. It lasts as long as its owner.
    pub async fn one(endpoints: &[String]) -> Result<(Links, Direct), String> {
        let links = Links::open(endpoints, 1).await?;
        let direct = links.links[0].clone();
        Ok((links, direct))
    }

    pub fn links(&self) -> &[Direct] {
        &self.links
    }
}

/// What all clients of a run share.
struct Shared {
    work: Work,
    total: u64,
    start: Instant,
    /// Between two requests of the whole run, when there is a limit.
    gap: Option<Duration>,
    next: AtomicU64,
    /// No more requests, however many are left.
    stop: AtomicBool,
    done: AtomicU64,
    all: Histogram,
    reads: Histogram,
    writes: Histogram,
    keys_read: AtomicU64,
    pages_read: AtomicU64,
    failures: Mutex<BTreeMap<String, u64>>,
}

impl Load {
    /// Does what has to be done once before the first run.
    pub async fn prepare(&self, links: &Links) -> Result<(), String> {
        match links.links.first() {
            Some(link) => self.work.prepare(&mut link.clone()).await,
            None => Ok(()),
        }
    }

    /// Makes all requests over `links` and waits for their answers.
    pub async fn run(&self, links: &Links, progress: &Progress) -> Outcome {
        self.run_while(links, progress, std::future::pending()).await
    }

    /// As `run`, but makes no new request once `event` has come.
    pub async fn run_while(&self, links: &Links, progress: &Progress, event: impl Future<Output = ()>) -> Outcome {
        let shared = Arc::new(Shared {
            work: self.work.clone(),
            total: self.total,
            start: Instant::now(),
            gap: (self.rate > 0).then(|| Duration::from_secs_f64(1.0 / self.rate as f64)),
            next: AtomicU64::new(0),
            stop: AtomicBool::new(false),
            done: AtomicU64::new(0),
            all: Histogram::new(),
            reads: Histogram::new(),
            writes: Histogram::new(),
            keys_read: AtomicU64::new(0),
            pages_read: AtomicU64::new(0),
            failures: Mutex::new(BTreeMap::new()),
        });
        let mut clients = JoinSet::new();
        for link in links.links.iter().cycle().take(self.clients as usize) {
            clients.spawn(client(shared.clone(), link.clone()));
        }
        let mut moves = tokio::time::interval(progress::INTERVAL);
        let mut event = std::pin::pin!(event);
        let mut came = false;
        loop {
            tokio::select! {
                () = &mut event, if !came => {
                    came = true;
                    shared.stop.store(true, Ordering::Relaxed);
                }
                ended = clients.join_next() => match ended {
                    Some(Ok(())) => {}
                    Some(Err(error)) => shared.fail(format!("a client ended: {error}")),
                    None => break,
                },
                _ = moves.tick() => progress.at(shared.done.load(Ordering::Relaxed)),
            }
        }
        shared.outcome()
    }
}

/// One client's whole life.
async fn client(shared: Arc<Shared>, mut link: Direct) {
    while let Some((number, due)) = shared.take() {
        let now = Instant::now();
        if due > now {
            tokio::time::sleep_until(due).await;
        }
        // With a limit a request's time starts when it was due: a server that makes its clients late must not look
        // fast because they ask less (coordinated omission).
        let start = if shared.gap.is_some() { due } else { now };
        let answered = shared.work.perform(&mut link, number).await;
        shared.done.fetch_add(1, Ordering::Relaxed);
        match answered {
            Ok(done) => shared.succeed(done, start.elapsed()),
            Err(DirectError::Refused(error)) => shared.fail(error.to_string()),
            Err(DirectError::Lost(error)) => {
                // Every further request would fail at once, and fast.
                shared.fail(format!("connection lost: {error}"));
                return;
            }
        }
    }
}

impl Shared {
    /// The next request and the moment it is due; `None` when all are taken.
    fn take(&self) -> Option<(u64, Instant)> {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        let due = match self.gap {
            Some(gap) => self.start + gap.mul_f64(number as f64),
            None => self.start,
        };
        (number < self.total && !self.stop.load(Ordering::Relaxed)).then_some((number, due))
    }

    fn succeed(&self, done: Done, latency: Duration) {
        self.all.record(latency);
        match done {
            Done::Write => self.writes.record(latency),
            Done::Read { keys, pages } => {
                self.reads.record(latency);
                self.keys_read.fetch_add(keys, Ordering::Relaxed);
                self.pages_read.fetch_add(pages, Ordering::Relaxed);
            }
        }
    }

    fn fail(&self, error: String) {
        // Counts are whole even if a holder panicked.
        let mut failures = self.failures.lock().unwrap_or_else(PoisonError::into_inner);
        let known = failures.len() < FAILURES_MAX || failures.contains_key(&error);
        *failures.entry(if known { error } else { "other errors".to_owned() }).or_default() += 1;
    }

    fn outcome(&self) -> Outcome {
        Outcome {
            elapsed: self.start.elapsed(),
            all: self.all.percentiles(),
            reads: self.reads.percentiles(),
            writes: self.writes.percentiles(),
            keys_read: self.keys_read.load(Ordering::Relaxed),
            pages_read: self.pages_read.load(Ordering::Relaxed),
            failures: self.failures.lock().unwrap_or_else(PoisonError::into_inner).clone(),
        }
    }
}

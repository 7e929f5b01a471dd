//! Watchers, puts before their eyes, and how long each change takes to reach each of them.
//!
//! ```text
//!  puts ─▶ the server ─▶ streams of watchers      a value carries the number of its put, and so when it was sent
//! ```
//! The run is over when every watcher was told of every put to its key.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::PoisonError;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::keys;
use super::keys::Keys;
use super::latency::Histogram;
use super::latency::Percentiles;
use super::load::Links;
use super::progress::Progress;
use crate::client::direct::Direct;
use crate::client::direct::DirectWatch;
use crate::proto::etcdserverpb::PutRequest;
use crate::proto::etcdserverpb::WatchCreateRequest;

/// Bytes of a value that name its put.
pub const NUMBER_BYTES: usize = 8;

/// A run in which nothing comes for so long has lost something.
const PATIENCE: Duration = Duration::from_secs(60);

/// How often is looked whether all events have come: the run's length is right to so much.
const POLL: Duration = Duration::from_millis(1);

/// A run to make.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Watching {
    pub name: &'static str,
    pub conns: u32,
    pub streams: u32,
    pub watchers_per_stream: u32,
    /// Keys that are watched: the first so many of those that are written, each by every so-manieth watcher.
    pub watched: u64,
    pub prev_kv: bool,
    /// Who puts, each one put after the other.
    pub clients: u32,
    pub puts: u64,
    /// Puts a second at most; 0 is no limit.
    pub rate: u64,
    pub keys: Keys,
    pub value_bytes: usize,
}

/// What came of it.
#[derive(Clone, Debug, Default)]
pub struct Seen {
    /// From the first put to the last event.
    pub elapsed: Duration,
    pub events: u64,
    /// From the put's sending to the watcher, in milliseconds.
    pub delivery: Option<Percentiles>,
    pub puts: Option<Percentiles>,
    pub failures: BTreeMap<String, u64>,
}

impl Seen {
    pub fn events_per_second(&self) -> f64 {
        self.events as f64 / self.elapsed.as_secs_f64().max(f64::MIN_POSITIVE)
    }
}

struct Shared {
    watching: Watching,
    start: Instant,
    next: AtomicU64,
    /// When each put was sent, in nanoseconds from the start.
    sent: Vec<AtomicU64>,
    arrived: AtomicU64,
    delivery: Histogram,
    puts: Histogram,
    failures: Mutex<BTreeMap<String, u64>>,
}

impl Watching {
    pub fn watchers(&self) -> u64 {
        u64::from(self.streams) * u64::from(self.watchers_per_stream)
    }

    /// Events that there have to be: every put to a watched key, once for each of its watchers.
    pub fn expected(&self) -> u64 {
        let on_key = |key: u64| (self.watchers() + self.watched - 1 - key) / self.watched;
        let keys = (0..self.puts).map(|number| self.keys.number(number)).filter(|key| *key < self.watched);
        keys.map(on_key).sum()
    }

    /// The key of a watcher.
    fn key(&self, watcher: u64) -> Bytes {
        Keys { sequential: true, ..self.keys }.of(watcher % self.watched)
    }

    /// Opens all streams, waits until every watcher is there, puts, and waits for the last event.
    pub async fn run(&self, links: &Links, progress: &Progress) -> Result<Seen, String> {
        progress.say("watchers");
        let streams = self.open(links).await?;
        self.put_before(streams, links, progress).await
    }

    /// Opens all streams and waits until every watcher is there.
    pub async fn open(&self, links: &Links) -> Result<Vec<DirectWatch>, String> {
        let mut opening = JoinSet::new();
        for (stream, link) in (0..self.streams).zip(links.links().iter().cycle()) {
            opening.spawn(open(self.clone(), stream, link.clone()));
        }
        let mut streams = Vec::new();
        while let Some(opened) = opening.join_next().await {
            streams.push(opened.map_err(|error| format!("a stream ended: {error}"))??);
        }
        Ok(streams)
    }

    /// Puts before the eyes of open streams, waits for the last event, and closes them.
    pub async fn put_before(
        &self,
        streams: Vec<DirectWatch>,
        links: &Links,
        progress: &Progress,
    ) -> Result<Seen, String> {
        progress.say(self.name);
        let shared = Arc::new(Shared {
            watching: self.clone(),
            start: Instant::now(),
            next: AtomicU64::new(0),
            sent: (0..self.puts).map(|_| AtomicU64::new(0)).collect(),
            arrived: AtomicU64::new(0),
            delivery: Histogram::new(),
            puts: Histogram::new(),
            failures: Mutex::default(),
        });
        // Dropped at the end: a stream has no end of its own.
        let mut watching = JoinSet::new();
        for stream in streams {
            watching.spawn(follow(shared.clone(), stream));
        }
        let mut putting = JoinSet::new();
        for link in links.links().iter().cycle().take(self.clients as usize) {
            putting.spawn(put(shared.clone(), link.clone()));
        }
        shared.until_all_arrived(&mut putting, progress).await?;
        Ok(shared.seen())
    }
}

/// Opens a stream and creates its watchers.
async fn open(watching: Watching, stream: u32, mut link: Direct) -> Result<DirectWatch, String> {
    let told = |error| format!("cannot watch: {error}");
    let mut opened = link.watch().await.map_err(told)?;
    let first = u64::from(stream) * u64::from(watching.watchers_per_stream);
    for watcher in first..first + u64::from(watching.watchers_per_stream) {
        let (key, prev_kv) = (watching.key(watcher), watching.prev_kv);
        opened.create(WatchCreateRequest { key, prev_kv, ..WatchCreateRequest::default() }).map_err(told)?;
    }
    let mut created = 0;
    while created < watching.watchers_per_stream {
        let response = opened.next().await.map_err(told)?;
        if response.canceled {
            return Err(format!("cannot watch: {}", response.cancel_reason));
        }
        created += u32::from(response.created);
    }
    Ok(opened)
}

/// Counts what comes on a stream.
async fn follow(shared: Arc<Shared>, mut stream: DirectWatch) {
    loop {
        let response = match stream.next().await {
            Ok(response) => response,
            Err(error) => return shared.fail(format!("a stream ended: {error}")),
        };
        let now = shared.start.elapsed();
        for event in &response.events {
            let value = event.kv.as_ref().and_then(|kv| kv.value.first_chunk::<NUMBER_BYTES>());
            // Others may write to the same keys.
            let Some(sent) = value.and_then(|number| shared.sent_at(u64::from_be_bytes(*number))) else { continue };
            shared.delivery.record(now.saturating_sub(sent));
            shared.arrived.fetch_add(1, Ordering::Relaxed);
        }
    }
}

/// Puts one value after the other until all are taken.
async fn put(shared: Arc<Shared>, mut link: Direct) {
    let Watching { keys, puts, rate, value_bytes, .. } = shared.watching;
    let filler = keys::value(value_bytes);
    loop {
        let number = shared.next.fetch_add(1, Ordering::Relaxed);
        let Some(slot) = usize::try_from(number).ok().and_then(|at| shared.sent.get(at)).filter(|_| number < puts)
        else {
            return;
        };
        if rate > 0 {
            tokio::time::sleep_until(shared.start + Duration::from_secs_f64(number as f64 / rate as f64)).await;
        }
        let mut value = number.to_be_bytes().to_vec();
        value.extend_from_slice(filler.get(NUMBER_BYTES..).unwrap_or_default());
        let sent = shared.start.elapsed();
        slot.store(u64::try_from(sent.as_nanos()).unwrap_or(u64::MAX), Ordering::Relaxed);
        let request = PutRequest { key: keys.of(number), value: value.into(), ..PutRequest::default() };
        match link.put(&request).await {
            Ok(_) => shared.puts.record(shared.start.elapsed().saturating_sub(sent)),
            Err(error) => return shared.fail(format!("a put failed: {error}")),
        }
    }
}

impl Shared {
    fn sent_at(&self, number: u64) -> Option<Duration> {
        let sent = self.sent.get(usize::try_from(number).ok()?)?;
        Some(Duration::from_nanos(sent.load(Ordering::Relaxed)))
    }

    fn fail(&self, error: String) {
        // Counts are whole even if a holder panicked.
        *self.failures.lock().unwrap_or_else(PoisonError::into_inner).entry(error).or_default() += 1;
    }

    fn failures(&self) -> BTreeMap<String, u64> {
        self.failures.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Waits for all events; for less once something has failed.
    async fn until_all_arrived(&self, putting: &mut JoinSet<()>, progress: &Progress) -> Result<(), String> {
        let expected = self.watching.expected();
        let (mut last, mut since) = (0, Instant::now());
        loop {
            let arrived = self.arrived.load(Ordering::Relaxed);
            progress.at(arrived);
            while putting.try_join_next().is_some() {}
            let is_whole = arrived >= expected && putting.is_empty();
            if is_whole || !self.failures().is_empty() {
                return Ok(());
            }
            if arrived != last {
                (last, since) = (arrived, Instant::now());
            }
            if since.elapsed() > PATIENCE {
                return Err(format!("{arrived} of {expected} events have come, and no more"));
            }
            tokio::time::sleep(POLL).await;
        }
    }

    fn seen(&self) -> Seen {
        Seen {
            elapsed: self.start.elapsed(),
            events: self.arrived.load(Ordering::Relaxed),
            delivery: self.delivery.percentiles(),
            puts: self.puts.percentiles(),
            failures: self.failures(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_put_counts_for_the_watchers_of_its_key() {
        let check = |streams: u32, watchers_per_stream: u32, watched: u64, space: u64, puts: u64, expected: u64| {
            let keys = Keys { size: 8, space, sequential: true };
            let watching = Watching {
                name: "watch",
                conns: 1,
                streams,
                watchers_per_stream,
                watched,
                prev_kv: false,
                clients: 1,
                puts,
                rate: 0,
                keys,
                value_bytes: 8,
            };
            assert_eq!(watching.expected(), expected, "{watching:?}");
        };
        check(10, 100, 1, 1, 7, 7000);
        // Five watchers on two keys: three and two of them.
        check(1, 5, 2, 2, 4, 10);
        // Half of what is written is watched.
        check(1, 4, 2, 4, 8, 8);
        check(1, 1, 3, 3, 3, 1);
    }
}

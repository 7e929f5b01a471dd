//! What every process has printed, as far as memory is granted for it: the last lines of each, to look back and to follow.
//!
//! A ring a process, bounded in lines and in bytes. Followers hold a place in the rings, not a queue of their own: one that
//! is too slow is told how many lines have gone by, and nobody ever waits for it.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::MutexGuard;
use std::sync::PoisonError;
use std::time::Duration;

use serde::Deserialize;
use serde::Serialize;
use tokio::sync::watch;

use crate::supervisor::output::lines::LINE_BYTES_MAX;
use crate::supervisor::output::moment::Moment;

/// Lines that are remembered of a process.
pub const LINES_MAX: usize = 10_000;
/// Bytes of them. A single line always fits.
pub const BYTES_MAX: usize = 2 * LINE_BYTES_MAX;
/// What a follower takes out of the rings at a time.
const STRIDE_LINES: usize = 256;
const STRIDE_BYTES: usize = LINE_BYTES_MAX;

/// Where a line comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Stream {
    /// Standard output; or both, when they share a pipe.
    Out,
    Err,
    /// The supervisor says it about the process.
    Own,
}

/// A line of a process, or a part of one, as others are told of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogLine {
    /// Counts the lines of all processes.
    pub seq: u64,
    /// Nanoseconds since 1970.
    pub time_ns: u64,
    /// Nanoseconds of CLOCK_MONOTONIC.
    pub mono_ns: u64,
    pub name: String,
    pub stream: Stream,
    /// The child that was started, whose output this is.
    pub pid: Option<i32>,
    /// Without line feed; bytes that are no UTF-8 are replaced.
    pub text: String,
    /// The line goes on in the next one of this name and stream.
    #[serde(default)]
    pub partial: bool,
}

impl LogLine {
    pub fn moment(&self) -> Moment {
        Moment { wall_ns: self.time_ns, mono_ns: self.mono_ns }
    }
}

/// What a follower hears.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Followed {
    Line(LogLine),
    /// So many lines of this process were overwritten before they could be read.
    Lost {
        name: String,
        lost: u64,
    },
}

/// A process's place in the store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LogId(usize);

/// What is common to the lines of one read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Origin {
    pub stream: Stream,
    pub pid: Option<i32>,
    pub at: Moment,
}

/// The rings. Cloned for everybody who writes or reads.
#[derive(Clone, Debug)]
pub struct LogStore {
    rings: Arc<Mutex<Rings>>,
    news: Arc<watch::Sender<News>>,
}

#[derive(Clone, Copy, Debug, Default)]
struct News {
    next_seq: u64,
    closed: bool,
}

#[derive(Debug, Default)]
struct Rings {
    next_seq: u64,
    rings: Vec<Ring>,
}

#[derive(Debug)]
struct Ring {
    name: Arc<str>,
    lines: VecDeque<Line>,
    bytes: VecDeque<u8>,
    /// Lines that were overwritten: the ordinal of the first one that is left.
    gone: u64,
}

#[derive(Clone, Copy, Debug)]
struct Line {
    seq: u64,
    at: Moment,
    len: usize,
    pid: Option<i32>,
    stream: Stream,
    partial: bool,
}

impl Default for LogStore {
    fn default() -> LogStore {
        LogStore::new()
    }
}

impl LogStore {
    pub fn new() -> LogStore {
        let (news, _) = watch::channel(News::default());
        LogStore { rings: Arc::default(), news: Arc::new(news) }
    }

    /// The place for lines of this name: the same for the same name.
    pub fn register(&self, name: &str) -> LogId {
        let mut rings = self.lock();
        let known = rings.rings.iter().position(|ring| &*ring.name == name);
        LogId(known.unwrap_or_else(|| {
            rings.rings.push(Ring { name: name.into(), lines: VecDeque::new(), bytes: VecDeque::new(), gone: 0 });
            rings.rings.len() - 1
        }))
    }

    /// Takes lines as `add` gives them: text and whether it goes on.
    pub fn append(&self, id: LogId, origin: Origin, fill: impl FnOnce(&mut dyn FnMut(&[u8], bool))) {
        let mut rings = self.lock();
        let Rings { next_seq, rings: all } = &mut *rings;
        let ring = &mut all[id.0];
        let before = *next_seq;
        fill(&mut |text: &[u8], partial: bool| {
            ring.push(origin, *next_seq, text, partial);
            *next_seq += 1;
        });
        if *next_seq > before {
            self.news.send_modify(|news| news.next_seq = *next_seq);
        }
    }

    /// The last `lines` of each named process, of the last `since`, in the order in which they came. No name means all.
    pub fn tail(&self, names: &[String], lines: Option<usize>, since: Option<Duration>) -> Vec<LogLine> {
        self.lock().tail(names, lines, since)
    }

    /// What comes from now on.
    pub fn follow(&self, names: &[String]) -> Follower {
        self.tail_and_follow(names, Some(0), None).1
    }

    /// Both, with nothing lost or doubled in between.
    pub fn tail_and_follow(
        &self,
        names: &[String],
        lines: Option<usize>,
        since: Option<Duration>,
    ) -> (Vec<LogLine>, Follower) {
        let rings = self.lock();
        let found = rings.tail(names, lines, since);
        let places = rings.rings.iter().map(|ring| ring.gone + ring.lines.len() as u64).collect();
        let follower = Follower {
            rings: Arc::clone(&self.rings),
            news: self.news.subscribe(),
            names: names.to_vec(),
            places,
            ready: VecDeque::new(),
        };
        (found, follower)
    }

    /// Nothing more comes: followers end when they have heard everything.
    pub fn close(&self) {
        self.news.send_modify(|news| news.closed = true);
    }

    fn lock(&self) -> MutexGuard<'_, Rings> {
        lock(&self.rings)
    }
}

/// A panic while the lock was held leaves whole lines.
fn lock(rings: &Mutex<Rings>) -> MutexGuard<'_, Rings> {
    rings.lock().unwrap_or_else(PoisonError::into_inner)
}

fn is_named(names: &[String], name: &str) -> bool {
    names.is_empty() || names.iter().any(|wanted| wanted == name)
}

impl Rings {
    fn tail(&self, names: &[String], lines: Option<usize>, since: Option<Duration>) -> Vec<LogLine> {
        let oldest = since.map_or(0, |since| {
            let span = u64::try_from(since.as_nanos()).unwrap_or(u64::MAX);
            Moment::now().mono_ns.saturating_sub(span)
        });
        let mut found = Vec::new();
        for ring in self.rings.iter().filter(|ring| is_named(names, &ring.name)) {
            let recent = ring.lines.len() - ring.lines.partition_point(|line| line.at.mono_ns < oldest);
            let count = recent.min(lines.unwrap_or(usize::MAX));
            let first = ring.lines.len() - count;
            let mut offset = ring.lines.iter().take(first).map(|line| line.len).sum();
            for line in ring.lines.iter().skip(first) {
                found.push(ring.log_line(line, offset));
                offset += line.len;
            }
        }
        found.sort_by_key(|line| line.seq);
        found
    }
}

impl Ring {
    fn push(&mut self, origin: Origin, seq: u64, text: &[u8], partial: bool) {
        let text = &text[..text.len().min(LINE_BYTES_MAX)];
        while self.lines.len() >= LINES_MAX || self.bytes.len() + text.len() > BYTES_MAX {
            let Some(line) = self.lines.pop_front() else { break };
            self.bytes.drain(..line.len);
            self.gone += 1;
        }
        let wanted = self.bytes.len() + text.len();
        if wanted > self.bytes.capacity() {
            // Grown by doubling, but never beyond the bound.
            let capacity = wanted.max(self.bytes.capacity() * 2).min(BYTES_MAX);
            self.bytes.reserve_exact(capacity - self.bytes.len());
        }
        self.bytes.extend(text);
        let Origin { stream, pid, at } = origin;
        self.lines.push_back(Line { seq, at, len: text.len(), pid, stream, partial });
    }

    fn log_line(&self, line: &Line, offset: usize) -> LogLine {
        let (front, back) = self.bytes.as_slices();
        let end = offset + line.len;
        let mut text = Vec::with_capacity(line.len);
        text.extend_from_slice(&front[offset.min(front.len())..end.min(front.len())]);
        text.extend_from_slice(&back[offset.saturating_sub(front.len())..end.saturating_sub(front.len())]);
        LogLine {
            seq: line.seq,
            time_ns: line.at.wall_ns,
            mono_ns: line.at.mono_ns,
            name: self.name.to_string(),
            stream: line.stream,
            pid: line.pid,
            text: match String::from_utf8(text) {
                Ok(text) => text,
                Err(error) => String::from_utf8_lossy(error.as_bytes()).into_owned(),
            },
            partial: line.partial,
        }
    }
}

/// Hears lines as they come. Holds nobody up.
#[derive(Debug)]
pub struct Follower {
    rings: Arc<Mutex<Rings>>,
    news: watch::Receiver<News>,
    names: Vec<String>,
    /// By ring, the ordinal of the line that is next. Rings that are younger than us are heard from their beginning.
    places: Vec<u64>,
    ready: VecDeque<Followed>,
}

impl Follower {
    /// The next line, or what was lost; `None` when nothing more comes. Nothing is lost by dropping the future.
    pub async fn next(&mut self) -> Option<Followed> {
        loop {
            if let Some(followed) = self.ready.pop_front() {
                return Some(followed);
            }
            let closed = self.news.borrow_and_update().closed;
            self.refill();
            if !self.ready.is_empty() {
                continue;
            }
            if closed || self.news.changed().await.is_err() {
                return None;
            }
        }
    }

    /// Takes a bounded stride out of the rings, oldest first.
    fn refill(&mut self) {
        let rings = lock(&self.rings);
        self.places.resize(rings.rings.len(), 0);
        let mut cursors = Vec::new();
        for (index, ring) in rings.rings.iter().enumerate().filter(|(_, ring)| is_named(&self.names, &ring.name)) {
            let place = &mut self.places[index];
            if *place < ring.gone {
                self.ready.push_back(Followed::Lost { name: ring.name.to_string(), lost: ring.gone - *place });
                *place = ring.gone;
            }
            let at = (*place - ring.gone) as usize;
            let offset: usize = ring.lines.iter().take(at).map(|line| line.len).sum();
            if at < ring.lines.len() {
                cursors.push((index, at, offset));
            }
        }
        let (mut count, mut bytes) = (0, 0);
        while count < STRIDE_LINES && bytes < STRIDE_BYTES {
            let seq =
                |(index, at, _): &&mut (usize, usize, usize)| rings.rings[*index].lines.get(*at).map(|line| line.seq);
            let Some(cursor) = cursors.iter_mut().filter(|cursor| seq(cursor).is_some()).min_by_key(seq) else { break };
            let ring = &rings.rings[cursor.0];
            let line = &ring.lines[cursor.1];
            self.ready.push_back(Followed::Line(ring.log_line(line, cursor.2)));
            cursor.1 += 1;
            cursor.2 += line.len;
            self.places[cursor.0] += 1;
            count += 1;
            bytes += line.len;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn say(store: &LogStore, name: &str, text: &str) {
        let origin = Origin { stream: Stream::Out, pid: Some(7), at: Moment::now() };
        store.append(store.register(name), origin, |add| add(text.as_bytes(), false));
    }

    fn texts(lines: &[LogLine]) -> Vec<String> {
        lines.iter().map(|line| format!("{} {}", line.name, line.text)).collect()
    }

    fn names(names: &[&str]) -> Vec<String> {
        names.iter().map(|name| (*name).to_owned()).collect()
    }

    #[test]
    fn the_tail_is_a_number_of_lines_a_process_in_the_order_in_which_they_came() {
        let store = LogStore::new();
        for (name, text) in [("a", "1"), ("b", "2"), ("a", "3"), ("b", "4"), ("a", "5")] {
            say(&store, name, text);
        }
        assert_eq!(texts(&store.tail(&[], None, None)), ["a 1", "b 2", "a 3", "b 4", "a 5"]);
        assert_eq!(texts(&store.tail(&[], Some(1), None)), ["b 4", "a 5"]);
        assert_eq!(texts(&store.tail(&names(&["b"]), Some(9), None)), ["b 2", "b 4"]);
        assert_eq!(texts(&store.tail(&[], None, Some(Duration::ZERO))), [""; 0]);
        assert_eq!(store.tail(&[], None, Some(Duration::from_secs(60))).len(), 5);
        assert_eq!(store.tail(&names(&["nobody"]), None, None), []);
    }

    #[test]
    fn memory_is_bounded_in_lines_and_in_bytes() {
        let store = LogStore::new();
        for number in 0..LINES_MAX + 10 {
            say(&store, "many", &number.to_string());
        }
        let tail = store.tail(&[], None, None);
        assert_eq!((tail.len(), tail[0].text.as_str()), (LINES_MAX, "10"));
        let store = LogStore::new();
        let long = "x".repeat(300_000);
        for _ in 0..50 {
            say(&store, "long", &long);
        }
        assert_eq!(store.tail(&[], None, None).len(), BYTES_MAX / 300_000);
        assert!(store.lock().rings[0].bytes.capacity() <= BYTES_MAX);
        // Wrapped around the ring's end, it is still itself.
        assert!(store.tail(&[], None, None).iter().all(|line| line.text == long));
    }

    #[test]
    fn bytes_that_are_no_text_are_replaced() {
        let store = LogStore::new();
        let origin = Origin { stream: Stream::Err, pid: None, at: Moment::default() };
        store.append(store.register("a"), origin, |add| add(b"a\xffb", true));
        let line = &store.tail(&[], None, None)[0];
        assert_eq!((line.text.as_str(), line.partial, line.stream), ("a\u{fffd}b", true, Stream::Err));
        let json = serde_json::to_string(line).unwrap();
        assert_eq!(serde_json::from_str::<LogLine>(&json).unwrap(), *line);
    }

    #[tokio::test]
    async fn a_follower_hears_everything_from_where_the_tail_ends() {
        let store = LogStore::new();
        say(&store, "a", "old");
        let (tail, mut follower) = store.tail_and_follow(&names(&["a", "c"]), Some(5), None);
        assert_eq!(texts(&tail), ["a old"]);
        say(&store, "a", "new");
        say(&store, "b", "of another");
        // A process that nobody knew of before.
        say(&store, "c", "younger");
        let mut heard = Vec::new();
        for _ in 0..2 {
            let Some(Followed::Line(line)) = follower.next().await else { panic!("a line") };
            heard.push(line);
        }
        assert_eq!(texts(&heard), ["a new", "c younger"]);
        let waiting = tokio::spawn(async move { (follower.next().await, follower.next().await) });
        say(&store, "a", "last");
        store.close();
        let (last, end) = waiting.await.unwrap();
        assert!(matches!(last, Some(Followed::Line(line)) if line.text == "last"));
        assert_eq!(end, None);
    }

    #[tokio::test]
    async fn a_slow_follower_is_told_how_much_it_missed() {
        let store = LogStore::new();
        say(&store, "a", "first");
        let mut follower = store.follow(&[]);
        for number in 0..LINES_MAX + 7 {
            say(&store, "a", &number.to_string());
        }
        assert_eq!(follower.next().await, Some(Followed::Lost { name: "a".to_owned(), lost: 7 }));
        for number in 7..LINES_MAX + 7 {
            let Some(Followed::Line(line)) = follower.next().await else { panic!("line {number}") };
            assert_eq!(line.text, number.to_string());
        }
    }
}

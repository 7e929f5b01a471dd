//! Answers of the socket that come line by line: what processes printed and print, and the journal.
//!
//! Nothing is queued for a slow reader: both sources hold the lines themselves and tell how many went by.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::stream;
use http_body_util::BodyExt;
use http_body_util::StreamBody;
use http_body_util::combinators::UnsyncBoxBody;
use hyper::body::Frame;
use regex::Regex;
use regex::RegexBuilder;
use serde::Serialize;
use tokio::sync::broadcast;
use tokio::sync::broadcast::error::RecvError;
use tokio::sync::watch;

use crate::supervisor::control::http_server::is_over;
use crate::supervisor::control::query::Query;
use crate::supervisor::journal::Journal;
use crate::supervisor::journal::Record;
use crate::supervisor::output::store::Followed;
use crate::supervisor::output::store::Follower;
use crate::supervisor::output::store::LogLine;
use crate::supervisor::output::store::LogStore;
use crate::supervisor::output::store::Stream;

/// Compiled size of a pattern, so that nobody can take all memory with one.
const PATTERN_BYTES_MAX: usize = 1 << 20;
/// How long the journal's followers get for its last records once everything has stopped.
const LAST_RECORDS: Duration = Duration::from_millis(50);

type Body = UnsyncBoxBody<Bytes, Infallible>;

/// Which lines are wanted.
#[derive(Debug)]
pub struct Wanted {
    pub names: Vec<String>,
    /// Of each process.
    tail: Option<usize>,
    since: Option<Duration>,
    follow: bool,
    pattern: Option<Regex>,
    stderr: bool,
}

impl Wanted {
    /// Reads `tail=20&since_ms=5000&follow=true&grep=elected&stderr=true`.
    pub fn of(query: &Query) -> Result<Wanted, String> {
        let number = |key: &str| match query.value(key).map(str::parse::<u64>) {
            None => Ok(None),
            Some(Ok(number)) => Ok(Some(number)),
            Some(Err(_)) => Err(format!("{key} wants a number")),
        };
        let pattern = query.value("grep").map(|text| RegexBuilder::new(text).size_limit(PATTERN_BYTES_MAX).build());
        Ok(Wanted {
            names: Vec::new(),
            tail: number("tail")?.map(|count| usize::try_from(count).unwrap_or(usize::MAX)),
            since: number("since_ms")?.map(Duration::from_millis),
            follow: query.is_set("follow"),
            pattern: pattern.transpose().map_err(|error| format!("grep: {error}"))?,
            stderr: query.is_set("stderr"),
        })
    }

    fn is_filtered(&self) -> bool {
        self.pattern.is_some() || self.stderr
    }

    fn takes(&self, line: &LogLine) -> bool {
        let stream = !self.stderr || line.stream == Stream::Err;
        stream && self.pattern.as_ref().is_none_or(|pattern| pattern.is_match(&line.text))
    }

    /// The lines that are there. With a filter, the last ones of each process are the last ones that pass it.
    fn remembered(&self, store: &LogStore) -> (VecDeque<LogLine>, Follower) {
        let tail = self.tail.filter(|_| !self.is_filtered());
        let (mut lines, follower) = store.tail_and_follow(&self.names, tail, self.since);
        lines.retain(|line| self.takes(line));
        if let Some(tail) = self.tail {
            let mut counts = std::collections::HashMap::new();
            let mut kept: VecDeque<LogLine> = VecDeque::new();
            for line in lines.into_iter().rev() {
                let count: &mut usize = counts.entry(line.name.clone()).or_default();
                *count += 1;
                if *count <= tail {
                    kept.push_front(line);
                }
            }
            return (kept, follower);
        }
        (lines.into(), follower)
    }
}

/// A line of JSON.
fn line<T: Serialize>(value: &T) -> Bytes {
    // Our own types have no keys that are not texts, which is all that could fail.
    let mut bytes = serde_json::to_vec(value).unwrap_or_default();
    bytes.push(b'\n');
    bytes.into()
}

fn body(lines: impl stream::Stream<Item = Bytes> + Send + 'static) -> Body {
    StreamBody::new(futures_util::StreamExt::map(lines, |bytes| Ok::<_, Infallible>(Frame::data(bytes)))).boxed_unsync()
}

/// What was printed, and what is.
pub fn logs(store: &LogStore, wanted: Wanted) -> Body {
    let (remembered, follower) = wanted.remembered(store);
    let state = (remembered, wanted.follow.then_some(follower), wanted);
    body(stream::unfold(
        state,
        |(mut remembered, mut follower, wanted): (VecDeque<LogLine>, Option<Follower>, Wanted)| async move {
            if let Some(first) = remembered.pop_front() {
                return Some((line(&first), (remembered, follower, wanted)));
            }
            loop {
                let followed = follower.as_mut()?.next().await?;
                match &followed {
                    Followed::Line(text) if !wanted.takes(text) => {}
                    _ => return Some((line(&followed), (remembered, follower, wanted))),
                }
            }
        },
    ))
}

struct Events {
    remembered: VecDeque<Arc<Record>>,
    follower: Option<broadcast::Receiver<Arc<Record>>>,
    stop: watch::Receiver<bool>,
}

/// The journal: its last `tail` records, and with `follow` everything that comes.
pub fn events(journal: &Journal, query: &Query, stop: watch::Receiver<bool>) -> Result<Body, String> {
    let (remembered, follower) = journal.subscribe(0);
    let tail = match query.value("tail").map(str::parse::<usize>) {
        None => remembered.len(),
        Some(Ok(tail)) => tail.min(remembered.len()),
        Some(Err(_)) => return Err("tail wants a number".to_owned()),
    };
    let remembered = remembered[remembered.len() - tail..].iter().cloned().collect();
    let state = Events { remembered, follower: query.is_set("follow").then_some(follower), stop };
    Ok(body(stream::unfold(state, |mut state: Events| async move {
        if let Some(first) = state.remembered.pop_front() {
            return Some((line(&*first), state));
        }
        let follower = state.follower.as_mut()?;
        let heard = tokio::select! {
            biased;
            heard = follower.recv() => heard,
            () = is_over(&mut state.stop) => match tokio::time::timeout(LAST_RECORDS, follower.recv()).await {
                Ok(heard) => heard,
                Err(_) => return None,
            }
        };
        match heard {
            Ok(record) => Some((line(&*record), state)),
            Err(RecvError::Lagged(lost)) => Some((line(&serde_json::json!({ "lost": lost })), state)),
            Err(RecvError::Closed) => None,
        }
    })))
}

//! What happened, in order: one JSON object a line, in memory, in a file, and for whoever follows.
//!
//! Every record has both clocks: the wall's for people, the monotonic one for distances. The file is written as things
//! happen, in one write a record; when it cannot be written the journal goes on in memory and counts what the file lacks.

use std::collections::VecDeque;
use std::fs::File;
use std::io::Write;
use std::path::Path;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::MutexGuard;
use std::time::Instant;

use serde::Deserialize;
use serde::Serialize;
use tokio::sync::broadcast;

use crate::supervisor::control::vocabulary::Requester;

/// Records kept in memory. Older ones are only in the file.
const RECORDS_MAX: usize = 10_000;
/// Records that a follower may be late. Later ones than that are counted to him as lost.
const FOLLOWER_RECORDS_MAX: usize = 1_000;

/// What can happen.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "event")]
pub enum What {
    Spawn {
        pid: i32,
        generation: u64,
    },
    SpawnFailed {
        reason: String,
    },
    Ready {
        after_ms: u64,
    },
    Unhealthy {
        reason: String,
    },
    /// Its leader was reaped.
    Exit {
        pid: i32,
        code: Option<i32>,
        signal: Option<i32>,
        asked: bool,
        /// Processor time of the leader and of everything that it waited for.
        user_ms: Option<u64>,
        system_ms: Option<u64>,
    },
    /// Nothing of it is left.
    Gone {
        state: String,
    },
    /// It will be started again.
    Backoff {
        wait_ms: u64,
        /// How often it was started so far.
        starts: u64,
    },
    Flapping,
    NotReady {
        reason: String,
    },
    /// A hook was started: `pre-start`, `post-stop`. How it ended is an `Exit` of this pid.
    Hook {
        hook: String,
        pid: i32,
    },
    /// A hook whose failure changes nothing else.
    HookFailed {
        hook: String,
        reason: String,
    },
    /// Somebody asked for an action.
    Request {
        action: String,
        by: Requester,
    },
    /// Something was done to it or to its links that breaks things on purpose.
    Fault {
        kind: String,
        detail: String,
    },
    Healed {
        kind: String,
        detail: String,
    },
    /// The supervisor itself: `started`, `ending: …`, `ended`.
    Supervisor {
        text: String,
    },
}

/// One line of the journal.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Record {
    /// From 1, without gaps.
    pub number: u64,
    /// RFC 3339 with nanoseconds.
    pub wall: String,
    /// Since the journal began.
    pub monotonic_us: u64,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub name: Option<String>,
    #[serde(flatten)]
    pub what: What,
}

#[derive(Debug)]
struct Inner {
    last: u64,
    records: VecDeque<Arc<Record>>,
    file: Option<File>,
    /// Records that the file lacks, and why.
    lost: u64,
    trouble: Option<String>,
}

/// A handle; clones write to and read from the same journal.
#[derive(Clone, Debug)]
pub struct Journal {
    began: Instant,
    inner: Arc<Mutex<Inner>>,
    followers: broadcast::Sender<Arc<Record>>,
}

impl Default for Journal {
    fn default() -> Journal {
        let inner = Inner { last: 0, records: VecDeque::new(), file: None, lost: 0, trouble: None };
        let (followers, _) = broadcast::channel(FOLLOWER_RECORDS_MAX);
        Journal { began: Instant::now(), inner: Arc::new(Mutex::new(inner)), followers }
    }
}

impl Journal {
    /// One that also appends to a file.
    pub fn to_file(path: &Path) -> std::io::Result<Journal> {
        let journal = Journal::default();
        journal.lock().file = Some(File::options().create(true).append(true).open(path)?);
        Ok(journal)
    }

    pub fn record(&self, name: Option<&str>, what: What) {
        let mut inner = self.lock();
        inner.last += 1;
        let record = Arc::new(Record {
            number: inner.last,
            wall: chrono::Local::now().to_rfc3339_opts(chrono::SecondsFormat::Nanos, false),
            monotonic_us: u64::try_from(self.began.elapsed().as_micros()).unwrap_or(u64::MAX),
            name: name.map(str::to_owned),
            what,
        });
        write(&mut inner, &record);
        if inner.records.len() == RECORDS_MAX {
            inner.records.pop_front();
        }
        inner.records.push_back(Arc::clone(&record));
        // Under the lock, so that followers see the order of the numbers. Nobody may follow.
        let _ = self.followers.send(record);
    }

    /// What is remembered from this number on, and everything that comes after it.
    pub fn subscribe(&self, from: u64) -> (Vec<Arc<Record>>, broadcast::Receiver<Arc<Record>>) {
        let inner = self.lock();
        let kept = inner.records.iter().filter(|record| record.number >= from).cloned().collect();
        (kept, self.followers.subscribe())
    }

    /// Why the file does not have everything, said once for each trouble.
    pub fn take_trouble(&self) -> Option<String> {
        self.lock().trouble.take()
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        // A panic elsewhere leaves whole records behind.
        self.inner.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

fn write(inner: &mut Inner, record: &Record) {
    let Some(file) = &mut inner.file else { return };
    let text = serde_json::to_string(record).unwrap_or_default();
    // A gap in the file is said in the file, once there is room again.
    let gap = if inner.lost > 0 { format!("{{\"lost\":{}}}\n", inner.lost) } else { String::new() };
    match file.write_all(format!("{gap}{text}\n").as_bytes()) {
        Ok(()) => inner.lost = 0,
        Err(error) => {
            if inner.lost == 0 {
                inner.trouble = Some(format!("the journal is kept in memory only: {error}"));
            }
            inner.lost += 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_are_lines_of_json_with_both_clocks() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("journal");
        let journal = Journal::to_file(&path).unwrap();
        let (before, mut follower) = journal.subscribe(0);
        assert!(before.is_empty());
        journal.record(Some("web"), What::Spawn { pid: 7, generation: 1 });
        journal.record(None, What::Supervisor { text: "ending".to_owned() });
        let text = std::fs::read_to_string(&path).unwrap();
        let read: Vec<Record> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        assert_eq!(read.iter().map(|record| record.number).collect::<Vec<_>>(), [1, 2]);
        assert_eq!(read[0].what, What::Spawn { pid: 7, generation: 1 });
        assert!(text.starts_with("{\"number\":1,\"wall\":\"20"), "{text}");
        assert!(text.contains("\"name\":\"web\",\"event\":\"spawn\",\"pid\":7"), "{text}");
        assert_eq!(follower.try_recv().unwrap().number, 1);
        let (kept, _) = journal.subscribe(2);
        assert_eq!(kept.iter().map(|record| record.number).collect::<Vec<_>>(), [2]);
    }

    #[test]
    fn memory_is_bounded_and_a_full_disk_is_said_once() {
        let journal = Journal::to_file(Path::new("/dev/full")).unwrap();
        for _ in 0..RECORDS_MAX + 5 {
            journal.record(None, What::Flapping);
        }
        let (kept, _) = journal.subscribe(0);
        assert_eq!((kept.len(), kept[0].number), (RECORDS_MAX, 6));
        assert!(journal.take_trouble().is_some_and(|trouble| trouble.contains("memory only")));
        assert_eq!(journal.take_trouble(), None);
    }
}

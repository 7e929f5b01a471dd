//! What became of every process, said when all is over: how long it was up, how often it was started again, how much
//! memory it took, and how it ended.

use std::collections::BTreeSet;
use std::sync::Mutex;
use std::sync::MutexGuard;
use std::sync::PoisonError;
use std::time::Duration;
use std::time::Instant;

use crate::common::procfs;
use crate::supervisor::columns;
use crate::supervisor::columns::Cell;

/// Members of a process tree that are looked at. A fork bomb must not keep us busy.
const TREE_MAX: usize = 256;

/// One process's history.
#[derive(Debug, Default)]
pub struct History(Mutex<Facts>);

#[derive(Clone, Debug, Default)]
struct Facts {
    starts: u64,
    up: Duration,
    /// Of the present start.
    since: Option<Instant>,
    peak_bytes: u64,
    last_exit: Option<String>,
}

impl History {
    pub fn started(&self) {
        let mut facts = self.lock();
        facts.starts += 1;
        facts.since = Some(Instant::now());
    }

    /// Its leader has ended, in these words.
    pub fn ended(&self, words: &str) {
        let mut facts = self.lock();
        if let Some(since) = facts.since.take() {
            facts.up += since.elapsed();
        }
        facts.last_exit = Some(words.to_owned());
    }

    /// Looks at the memory of the tree of this process; the kernel remembers how much it was at most.
    pub fn look(&self, leader: i32) {
        let bytes = tree(leader).into_iter().filter_map(peak).sum();
        let mut facts = self.lock();
        facts.peak_bytes = facts.peak_bytes.max(bytes);
    }

    fn lock(&self) -> MutexGuard<'_, Facts> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn row(&self, name: &str) -> Vec<Cell> {
        let facts = self.lock().clone();
        let up = facts.up + facts.since.map_or(Duration::ZERO, |since| since.elapsed());
        let memory = match facts.peak_bytes {
            0 => "-".to_owned(),
            bytes => format!("{:.1} MiB", bytes as f64 / f64::from(1 << 20)),
        };
        let exit = match (facts.last_exit, facts.starts) {
            (_, 0) => "never started".to_owned(),
            (Some(words), _) => words,
            (None, _) => "-".to_owned(),
        };
        let restarts = facts.starts.saturating_sub(1).to_string();
        [name.to_owned(), span(up), restarts, memory, exit].map(Cell::from).into()
    }
}

/// A table of all of them.
pub fn table<'a>(histories: impl IntoIterator<Item = (&'a str, &'a History)>) -> String {
    let head = ["PROCESS", "UPTIME", "RESTARTS", "MAX RSS", "LAST EXIT"].map(Cell::from).into();
    let rows = histories.into_iter().map(|(name, history)| history.row(name));
    columns::aligned(&std::iter::once(head).chain(rows).collect::<Vec<_>>())
}

/// `0.4s`, `3m12s`, `2h05m`.
fn span(time: Duration) -> String {
    let seconds = time.as_secs();
    match seconds {
        0..60 => format!("{:.1}s", time.as_secs_f64()),
        60..3600 => format!("{}m{:02}s", seconds / 60, seconds % 60),
        _ => format!("{}h{:02}m", seconds / 3600, seconds / 60 % 60),
    }
}

/// The process and its descendants, as far as they are there while we look.
fn tree(leader: i32) -> BTreeSet<i32> {
    let (mut found, mut open) = (BTreeSet::from([leader]), vec![leader]);
    while let Some(pid) = open.pop() {
        for child in procfs::children(pid) {
            if found.len() < TREE_MAX && found.insert(child) {
                open.push(child);
            }
        }
    }
    found
}

/// Most bytes that a process had in memory; none once it has ended.
fn peak(pid: i32) -> Option<u64> {
    procfs::status_number(&procfs::status(pid), "VmHWM").map(|kib| kib << 10)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_says_what_became_of_everyone() {
        let [web, idle] = [History::default(), History::default()];
        for _ in 0..3 {
            web.started();
            web.ended("exit status 3");
        }
        web.look(i32::try_from(std::process::id()).unwrap());
        let text = table([("数据", &web), ("idle", &idle)]);
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines[0].split_whitespace().count(), 7, "{text}");
        assert!(
            lines[1].starts_with("数据     0.0s    2         ") && lines[1].ends_with("MiB  exit status 3"),
            "{text}"
        );
        assert!(
            lines[2].starts_with("idle     0.0s    0         -") && lines[2].ends_with("  never started"),
            "{text}"
        );
    }

    #[test]
    fn spans_are_short() {
        let check = |seconds: f64, text: &str| assert_eq!(span(Duration::from_secs_f64(seconds)), text);
        check(0.44, "0.4s");
        check(192.0, "3m12s");
        check(7500.0, "2h05m");
    }
}

//! One case on one program: start, warm up, measure, stop.

use std::path::Path;
use std::time::Duration;
use std::time::Instant;

use super::case::Case;
use super::case::Measure;
use super::servers::Servers;
use crate::bench::keys;
use crate::bench::keys::Keys;
use crate::bench::load::Links;
use crate::bench::load::Load;
use crate::bench::load::Outcome;
use crate::bench::progress::Progress;
use crate::bench::usage::Reading;
use crate::bench::workload::Ranges;
use crate::bench::workload::Work;

/// Bytes of every value.
const VALUE_BYTES: usize = 256;
const KEY_BYTES: usize = 16;
/// Keys that ranges choose from.
const RANGE_KEYS: u64 = 10_000;
/// Keys of a page.
const PAGE_KEYS: i64 = 500;
/// Of a case's requests, before counting.
const WARM_UP_SHARE: u64 = 5;
/// What quick runs leave of the work.
const QUICK_SHARE: u64 = 50;
/// How long a fresh or filled member is left alone before its memory is read: writes to the database file and garbage
/// collection come late.
const SETTLE: Duration = Duration::from_secs(3);
/// How long an idle member's CPU time is counted.
const IDLE: Duration = Duration::from_secs(10);

/// How everything is run.
#[derive(Clone, Copy, Debug)]
pub struct Scale {
    pub members: usize,
    pub keys: u64,
    pub quick: bool,
}

/// A figure with its value in one round.
pub type Figure = (Measure, f64);

impl Scale {
    fn requests(&self, full: u64) -> u64 {
        if self.quick { (full / QUICK_SHARE).max(1) } else { full }
    }

    fn time(&self, full: Duration) -> Duration {
        if self.quick { full / QUICK_SHARE as u32 } else { full }
    }

    /// Keys of the case that is about keys.
    pub fn key_count(&self) -> u64 {
        self.requests(self.keys)
    }

    /// The load that a case measures.
    pub fn load(&self, case: Case) -> Load {
        let (conns, clients, full) = case.size();
        let total = match case {
            Case::Keys => self.key_count(),
            _ => self.requests(full),
        };
        let value = keys::value(VALUE_BYTES);
        let spread = |sequential: bool, space: u64| Keys { size: KEY_BYTES, space, sequential };
        let work = match case {
            Case::Range100 | Case::Range1 => {
                let which = Ranges::Keys(spread(false, self.requests(RANGE_KEYS)));
                Work::Range { which, limit: 0, serializable: false }
            }
            Case::Idle | Case::Put1 | Case::Put100 | Case::Put1000 | Case::Keys => {
                Work::Put { keys: spread(true, total), value }
            }
        };
        let name = if matches!(case, Case::Range100 | Case::Range1) { "range" } else { "put" };
        Load { name, conns, clients, total, rate: 0, work }
    }
}

/// Runs `case` on fresh servers of `binary` below `dir`.
pub async fn run(case: Case, scale: Scale, binary: &Path, dir: &Path, what: &str) -> Result<Vec<Figure>, String> {
    let progress = Progress::waiting(what);
    let servers = Servers::start(binary, scale.members, dir).await?;
    drop(progress);
    match case {
        Case::Idle => idle(scale, &servers, what).await,
        Case::Put1 | Case::Put100 | Case::Put1000 => loaded(&scale.load(case), None, &servers, what).await,
        Case::Range100 | Case::Range1 => {
            let fill = fill(scale.requests(RANGE_KEYS));
            loaded(&scale.load(case), Some(&fill), &servers, what).await
        }
        Case::Keys => many_keys(scale, servers, what).await,
    }
}

/// Writes keys 0 to `total` - 1.
fn fill(total: u64) -> Load {
    let keys = Keys { size: KEY_BYTES, space: total, sequential: true };
    let work = Work::Put { keys, value: keys::value(VALUE_BYTES) };
    Load { name: "put", conns: 10, clients: 100, total, rate: 0, work }
}

async fn idle(scale: Scale, servers: &Servers, what: &str) -> Result<Vec<Figure>, String> {
    let _progress = Progress::waiting(what);
    tokio::time::sleep(scale.time(SETTLE)).await;
    let (before, start) = (reading(servers)?, Instant::now());
    tokio::time::sleep(scale.time(IDLE)).await;
    let (after, elapsed) = (reading(servers)?, start.elapsed());
    let share = (after.cpu() - before.cpu()).as_secs_f64() / elapsed.as_secs_f64() * 100.0;
    Ok(vec![(Measure::Memory, megabytes(&after)), (Measure::CpuShare, share)])
}

async fn loaded(load: &Load, fill: Option<&Load>, servers: &Servers, what: &str) -> Result<Vec<Figure>, String> {
    let links = Links::open(servers.endpoints(), load.conns).await?;
    if let Some(fill) = fill {
        flawless(fill, &links, what).await?;
    }
    let warm_up = Load { total: (load.total / WARM_UP_SHARE).max(1), ..load.clone() };
    flawless(&warm_up, &links, what).await?;
    let before = reading(servers)?;
    let outcome = flawless(load, &links, what).await?;
    let after = reading(servers)?;
    let latency = outcome.all.ok_or("no request was answered")?;
    Ok(vec![
        (Measure::RequestsPerSecond, outcome.requests_per_second()),
        (Measure::CpuMicros, (after.cpu() - before.cpu()).as_secs_f64() * 1e6 / latency.count as f64),
        (Measure::P50, latency.p50),
        (Measure::P99, latency.p99),
    ])
}

async fn many_keys(scale: Scale, mut servers: Servers, what: &str) -> Result<Vec<Figure>, String> {
    let total = scale.key_count();
    let links = Links::open(servers.endpoints(), 10).await?;
    flawless(&fill(total), &links, what).await?;
    tokio::time::sleep(scale.time(SETTLE)).await;
    let memory = megabytes(&reading(&servers)?);
    let whole = Work::List { from: everything(), limit: PAGE_KEYS, serializable: false };
    let list = Load { name: "range", conns: 1, clients: 1, total: 1, rate: 0, work: whole };
    let outcome = flawless(&list, &links, what).await?;
    if outcome.keys_read != total {
        return Err(format!("{what}: the list has {} keys of {total}", outcome.keys_read));
    }
    let mut figures = vec![(Measure::Memory, memory), (Measure::List, outcome.elapsed.as_secs_f64())];
    drop(links);
    // All members at once would measure their election.
    if scale.members == 1 {
        figures.push((Measure::Restart, servers.kill_and_restart().await?.as_secs_f64()));
    }
    Ok(figures)
}

fn everything() -> (bytes::Bytes, bytes::Bytes) {
    Ranges::Keys(Keys { size: KEY_BYTES, space: 1, sequential: true }).to_end()
}

/// Runs a load in which nothing may fail: figures of a server that refuses would not compare.
async fn flawless(load: &Load, links: &Links, what: &str) -> Result<Outcome, String> {
    let outcome = load.run(links, &Progress::counting(what, load.total)).await;
    match outcome.failures.iter().next() {
        None => Ok(outcome),
        Some((error, count)) => {
            let failed = outcome.failed();
            Err(format!("{what}: {failed} of {} requests failed; {count} times: {error}", load.total))
        }
    }
}

fn reading(servers: &Servers) -> Result<Reading, String> {
    Reading::of(&servers.pids()).map_err(|error| error.to_string())
}

fn megabytes(reading: &Reading) -> f64 {
    reading.memory.resident_bytes as f64 / 1e6
}

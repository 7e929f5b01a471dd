//! One case on one program: start, warm up, measure, stop.

use std::path::Path;
use std::time::Duration;
use std::time::Instant;

use bytes::Bytes;

use super::case::Case;
use super::case::Measure;
use super::case::Trial;
use super::failover;
use super::leases;
use super::saving;
use super::servers::Servers;
use super::watches;
use crate::bench::keys;
use crate::bench::keys::Keys;
use crate::bench::load::Links;
use crate::bench::load::Load;
use crate::bench::load::Outcome;
use crate::bench::progress::Progress;
use crate::bench::usage::Reading;
use crate::bench::workload::Ranges;
use crate::bench::workload::Work;
use crate::client::direct::DirectError;
use crate::proto::etcdserverpb::CompactionRequest;
use crate::proto::etcdserverpb::RangeRequest;

/// Bytes of every value.
pub const VALUE_BYTES: usize = 256;
pub const KEY_BYTES: usize = 16;
/// Keys that ranges choose from.
const RANGE_KEYS: u64 = 10_000;
/// Keys of a page.
const PAGE_KEYS: i64 = 500;
/// Keys that a compaction finds superseded revisions of, and how many of each: 500,000 together.
const COMPACTED_KEYS: u64 = 100_000;
const SUPERSEDED_EACH: u64 = 5;
/// Puts of a transaction where only what they leave behind is of interest.
const TXN_PUTS: u64 = 100;
/// A list that takes longer counts as one that takes so long: etcd 3.5.1 needs nine minutes for a million keys, which
/// no comparison of five rounds has. Its figure is then a lower bound.
const LIST_PATIENCE: Duration = Duration::from_secs(60);
/// Keys whose revisions a watcher from the first one on is told of, and bytes of their values: what such a watcher costs
/// is the finding and the sending of revisions, not of bytes.
const CATCH_UP_KEYS: u64 = 100_000;
const SMALL_VALUE_BYTES: usize = 16;
/// Of a case's requests, before counting.
const WARM_UP_SHARE: u64 = 5;
/// What quick runs leave of the work.
const QUICK_SHARE: u64 = 50;
/// How long a fresh or filled member is left alone before its memory is read: writes to the database file and garbage
/// collection come late.
pub const SETTLE: Duration = Duration::from_secs(3);
/// How long an idle member's CPU time is counted.
const IDLE: Duration = Duration::from_secs(10);

/// How much of the work is done.
#[derive(Clone, Copy, Debug)]
pub struct Scale {
    pub quick: bool,
}

/// A figure with its value in one round.
pub type Figure = (Measure, f64);

impl Scale {
    pub fn requests(&self, full: u64) -> u64 {
        if self.quick { (full / QUICK_SHARE).max(1) } else { full }
    }

    pub fn time(&self, full: Duration) -> Duration {
        if self.quick { full / QUICK_SHARE as u32 } else { full }
    }

    /// What people read in front of a trial's figures.
    pub fn title(&self, trial: Trial) -> String {
        let title = trial.case.title(self.load(trial.case).total);
        if trial.members == 1 { title } else { format!("{} members, {title}", trial.members) }
    }

    /// The load that a case measures.
    pub fn load(&self, case: Case) -> Load {
        let (conns, clients, full) = case.size();
        let total = self.requests(full);
        let value = keys::value(VALUE_BYTES);
        let spread = |sequential: bool, space: u64| Keys { size: KEY_BYTES, space, sequential };
        let (name, work) = match case {
            Case::Range100 | Case::Range1 => {
                let which = Ranges::Keys(spread(false, self.requests(RANGE_KEYS)));
                ("range", Work::Range { which, limit: 0, serializable: false })
            }
            Case::KeepAlive100 => ("lease-keepalive", Work::KeepAlive { leases: 1 }),
            Case::Compaction => ("put", Work::Put { keys: spread(true, self.requests(COMPACTED_KEYS)), value }),
            Case::CatchUp => {
                let value = keys::value(SMALL_VALUE_BYTES);
                ("put", Work::Put { keys: spread(true, self.requests(CATCH_UP_KEYS)), value })
            }
            _ => ("put", Work::Put { keys: spread(true, total), value }),
        };
        Load { name, conns, clients, total, rate: 0, work }
    }
}

/// Runs `trial` on fresh servers of `binary` below `dir`.
pub async fn run(trial: Trial, scale: Scale, binary: &Path, dir: &Path, what: &str) -> Result<Vec<Figure>, String> {
    let progress = Progress::waiting(what);
    let servers = Servers::start(binary, trial.members, dir).await?;
    drop(progress);
    let load = scale.load(trial.case);
    match trial.case {
        Case::Idle => idle(scale, &servers, what).await,
        Case::Put1 | Case::Put100 | Case::Put1000 | Case::KeepAlive100 => loaded(&load, None, &servers, what).await,
        Case::Watch100 => watches::delivered(&load, scale, &servers, what).await,
        Case::Watchers50k => watches::beside_puts(&load, scale, &servers, what).await,
        Case::CatchUp => watches::from_the_first(&load, &servers, what).await,
        Case::LeaseExpiry => leases::expired(&load, scale, &servers, what).await,
        Case::SnapshotSave => saving::saved(&load, scale, &servers, what).await,
        Case::LeaderKill => failover::leader_killed(&load, scale, servers, what).await,
        Case::Range100 | Case::Range1 => {
            let keys = Keys { size: KEY_BYTES, space: scale.requests(RANGE_KEYS), sequential: true };
            let fill = Work::Put { keys, value: keys::value(VALUE_BYTES) };
            let fill = Load { name: "put", conns: 10, clients: 100, total: keys.space, rate: 0, work: fill };
            loaded(&load, Some(&fill), &servers, what).await
        }
        Case::Keys100k => {
            let links = Links::open(servers.endpoints(), load.conns).await?;
            Ok(vec![(Measure::Memory, filled(scale, &load, &links, &servers, what).await?)])
        }
        Case::Keys1m => many_keys(scale, &load, servers, what).await,
        Case::Compaction => compacted(scale, &load, &servers, what).await,
    }
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
    load.prepare(&links).await?;
    flawless(&warm_up(load), &links, what).await?;
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

/// Writes all keys one by one, as applications do: transactions of many would leave the log's newest entries larger
/// than they ever are, and they count as memory. Answers how much there is of it, in MB.
async fn filled(scale: Scale, load: &Load, links: &Links, servers: &Servers, what: &str) -> Result<f64, String> {
    flawless(load, links, what).await?;
    tokio::time::sleep(scale.time(SETTLE)).await;
    Ok(megabytes(&reading(servers)?))
}

async fn many_keys(scale: Scale, load: &Load, mut servers: Servers, what: &str) -> Result<Vec<Figure>, String> {
    let links = Links::open(servers.endpoints(), load.conns).await?;
    let memory = filled(scale, load, &links, &servers, what).await?;
    let whole = Work::List { from: everything(), limit: PAGE_KEYS, serializable: false };
    let list = Load { name: "range", conns: 1, clients: 1, total: 1, rate: 0, work: whole };
    // Dropped, a list ends.
    let listed = match tokio::time::timeout(LIST_PATIENCE, flawless(&list, &links, what)).await {
        Ok(outcome) => {
            let outcome = outcome?;
            if outcome.keys_read != load.total {
                return Err(format!("{what}: the list has {} keys of {}", outcome.keys_read, load.total));
            }
            outcome.elapsed
        }
        Err(_) => LIST_PATIENCE,
    };
    let mut figures = vec![(Measure::Memory, memory), (Measure::List, listed.as_secs_f64())];
    drop(links);
    // All members at once would measure their election.
    if servers.pids().len() == 1 {
        figures.push((Measure::Restart, servers.kill_and_restart().await?.as_secs_f64()));
    }
    Ok(figures)
}

/// The same puts twice on a store with many superseded revisions: left alone, and while these are compacted.
async fn compacted(scale: Scale, load: &Load, servers: &Servers, what: &str) -> Result<Vec<Figure>, String> {
    let links = Links::open(servers.endpoints(), load.conns).await?;
    let keys = Keys { size: KEY_BYTES, space: scale.requests(COMPACTED_KEYS), sequential: true };
    let work = Work::Txn { keys, value: keys::value(VALUE_BYTES), ops: TXN_PUTS };
    let total = keys.space * (1 + SUPERSEDED_EACH) / TXN_PUTS;
    flawless(&Load { name: "txn", total, work, ..load.clone() }, &links, what).await?;
    let (_link, mut direct) = Links::one(servers.endpoints()).await?;
    let told = |error: DirectError| format!("{what}: {error}");
    let read = RangeRequest { key: Bytes::from_static(b"revision"), ..RangeRequest::default() };
    let revision = direct.range(&read).await.map_err(told)?.header.map_or(0, |header| header.revision);
    tokio::time::sleep(scale.time(SETTLE)).await;
    flawless(&warm_up(load), &links, what).await?;
    let before = flawless(load, &links, what).await?;

    // Physical: the answer comes when the last of it is deleted.
    let request = CompactionRequest { revision, physical: true };
    let mut answer = None;
    let endless = Load { total: u64::MAX, ..load.clone() };
    let compaction = async { answer = Some(direct.compact(&request).await) };
    let meanwhile = endless.run_while(&links, &Progress::waiting(what), compaction).await;
    answer.ok_or_else(|| format!("{what}: the compaction was not waited for"))?.map_err(told)?;
    let meanwhile = without_failures(meanwhile, what)?;
    let (quiet, busy) = (p99(&before, what)?, p99(&meanwhile, what)?);
    Ok(vec![
        (Measure::P99Before, quiet),
        (Measure::P99Meanwhile, busy),
        (Measure::Slowdown, busy / quiet),
        (Measure::Compaction, meanwhile.elapsed.as_secs_f64()),
    ])
}

fn everything() -> (Bytes, Bytes) {
    Ranges::Keys(Keys { size: KEY_BYTES, space: 1, sequential: true }).to_end()
}

/// What is done before counting.
pub fn warm_up(load: &Load) -> Load {
    Load { total: (load.total / WARM_UP_SHARE).max(1), ..load.clone() }
}

/// Runs a load in which nothing may fail: figures of a server that refuses would not compare.
pub async fn flawless(load: &Load, links: &Links, what: &str) -> Result<Outcome, String> {
    without_failures(load.run(links, &Progress::counting(what, load.total)).await, what)
}

pub fn without_failures(outcome: Outcome, what: &str) -> Result<Outcome, String> {
    match outcome.failures.iter().next() {
        None => Ok(outcome),
        Some((error, count)) => {
            let (failed, all) = (outcome.failed(), outcome.failed() + outcome.succeeded());
            Err(format!("{what}: {failed} of {all} requests failed; {count} times: {error}"))
        }
    }
}

/// The 99th percentile of a load's answers, in milliseconds.
pub fn p99(outcome: &Outcome, what: &str) -> Result<f64, String> {
    outcome.all.map(|all| all.p99).ok_or_else(|| format!("{what}: no request was answered"))
}

pub fn reading(servers: &Servers) -> Result<Reading, String> {
    Reading::of(&servers.pids()).map_err(|error| error.to_string())
}

pub fn megabytes(reading: &Reading) -> f64 {
    reading.memory.resident_bytes as f64 / 1e6
}

//! A snapshot of a large database, received and thrown away, and those who write meanwhile.

use std::time::Duration;
use std::time::Instant;

use super::case::Measure;
use super::rounds::Figure;
use super::rounds::KEY_BYTES;
use super::rounds::SETTLE;
use super::rounds::Scale;
use super::rounds::flawless;
use super::rounds::p99;
use super::rounds::warm_up;
use super::rounds::without_failures;
use super::servers::Servers;
use crate::bench::keys;
use crate::bench::keys::Keys;
use crate::bench::load::Links;
use crate::bench::load::Load;
use crate::bench::progress::Progress;
use crate::bench::workload::Work;

/// What fills the database, together 1 GB: so many values of so many bytes, so many in a transaction. Three of them fill
/// a page of etcd's file; the next larger ones would leave much of it empty.
const VALUES: u64 = 1_000_000;
const VALUE_BYTES: usize = 1000;
const TXN_PUTS: u64 = 100;
const TXN_CLIENTS: u32 = 10;

/// Bytes of SHA-256, which end a snapshot; its file is whole sectors before them.
const DIGEST_BYTES: u64 = 32;
const SECTOR_BYTES: u64 = 512;

/// Fills a database and receives its snapshot: alone, then beside puts.
pub async fn saved(load: &Load, scale: Scale, servers: &Servers, what: &str) -> Result<Vec<Figure>, String> {
    let links = Links::open(servers.endpoints(), load.conns).await?;
    let values = scale.requests(VALUES);
    // Longer than the load's, and so other keys.
    let keys = Keys { size: KEY_BYTES + 1, space: values, sequential: true };
    let work = Work::Txn { keys, value: keys::value(VALUE_BYTES), ops: TXN_PUTS };
    let fill = Load { name: "txn", clients: TXN_CLIENTS, total: values / TXN_PUTS, work, ..load.clone() };
    flawless(&fill, &links, what).await?;
    flawless(&warm_up(load), &links, what).await?;
    let before = flawless(load, &links, what).await?;
    tokio::time::sleep(scale.time(SETTLE)).await;
    let least = values * VALUE_BYTES as u64;
    let (time, bytes) = receive(servers.endpoints(), least, what).await?;
    let mut received = Err(format!("{what}: the snapshot was not waited for"));
    let receiving = async { received = receive(servers.endpoints(), least, what).await };
    let endless = Load { total: u64::MAX, ..load.clone() };
    let meanwhile = without_failures(endless.run_while(&links, &Progress::waiting(what), receiving).await, what)?;
    received?;
    Ok(vec![
        (Measure::Saved, bytes as f64 / 1e6),
        (Measure::Snapshot, time.as_secs_f64()),
        (Measure::P99Before, p99(&before, what)?),
        (Measure::P99Meanwhile, p99(&meanwhile, what)?),
    ])
}

/// Receives a snapshot on a connection of its own: how long it took and how many bytes it has, `least` at least.
async fn receive(endpoints: &[String], least: u64, what: &str) -> Result<(Duration, u64), String> {
    let (_link, mut direct) = Links::one(endpoints).await?;
    let start = Instant::now();
    let progress = Progress::waiting(what);
    let (mut bytes, mut remaining) = (0, u64::MAX);
    let told = |error| format!("{what}: {error}");
    let mut stream = direct.snapshot().await.map_err(told)?;
    while let Some(response) = stream.next().await.map_err(told)? {
        bytes += response.blob.len() as u64;
        remaining = response.remaining_bytes;
        progress.at(bytes);
    }
    let time = start.elapsed();
    if bytes < least || remaining != 0 || bytes % SECTOR_BYTES != DIGEST_BYTES {
        return Err(format!("{what}: {bytes} bytes came, {remaining} more were promised: no whole snapshot"));
    }
    Ok((time, bytes))
}

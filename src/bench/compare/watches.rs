//! What watchers cost: how fast changes reach many of them, what many cost those who write, and the way through history.

use std::time::Duration;
use std::time::Instant;

use bytes::Bytes;

use super::case::Measure;
use super::rounds::Figure;
use super::rounds::KEY_BYTES;
use super::rounds::SETTLE;
use super::rounds::Scale;
use super::rounds::VALUE_BYTES;
use super::rounds::flawless;
use super::rounds::reading;
use super::rounds::warm_up;
use super::servers::Servers;
use crate::bench::keys::Keys;
use crate::bench::load::Links;
use crate::bench::load::Load;
use crate::bench::load::Outcome;
use crate::bench::progress::Progress;
use crate::bench::watching::Seen;
use crate::bench::watching::Watching;
use crate::client::direct::DirectError;
use crate::proto::etcdserverpb::WatchCreateRequest;

/// Watchers of one key.
const STREAMS: u32 = 100;
const WATCHERS_PER_STREAM: u32 = 100;
/// Puts whose events have time to arrive: so many, and so many a second.
const PACED_PUTS: u64 = 50;
const PACED_RATE: u64 = 10;
/// Watchers of distinct keys, on `STREAMS` streams.
const DISTINCT_WATCHERS: u64 = 50_000;
/// Puts that show that they do watch: one client, one after the other.
const SHOWN_PUTS: u64 = 100;
/// A way through history that takes longer is measured as far as it has come: etcd 3.5.1 reads the whole rest of it for
/// every thousand revisions that it sends. So it begins slowly, and would be about twice as fast over the whole way, which
/// takes it a quarter of an hour.
const CATCH_UP_PATIENCE: Duration = Duration::from_secs(30);
/// How often the way is gone: a fast server needs seconds only.
const WAYS: u64 = 3;

/// Puts as fast as one client makes them, which no server delivers as fast; then so seldom that nothing piles up.
pub async fn delivered(load: &Load, scale: Scale, servers: &Servers, what: &str) -> Result<Vec<Figure>, String> {
    let links = Links::open(servers.endpoints(), load.conns).await?;
    let busy = Watching {
        name: "watch",
        conns: load.conns,
        streams: STREAMS,
        watchers_per_stream: WATCHERS_PER_STREAM,
        watched: 1,
        prev_kv: false,
        clients: load.clients,
        puts: load.total,
        rate: 0,
        keys: Keys { size: KEY_BYTES, space: 1, sequential: true },
        value_bytes: VALUE_BYTES,
    };
    let run = async |watching: &Watching| {
        let progress = Progress::counting(what, watching.expected());
        whole(watching.run(&links, &progress).await?, what)
    };
    run(&Watching { puts: warm_up(load).total, ..busy.clone() }).await?;
    let before = reading(servers)?;
    let seen = run(&busy).await?;
    let spent = reading(servers)?.cpu() - before.cpu();
    let paced = Watching { puts: scale.requests(PACED_PUTS), rate: PACED_RATE, ..busy };
    let delivery = run(&paced).await?.delivery.ok_or_else(|| format!("{what}: no event has come"))?;
    Ok(vec![
        (Measure::EventsPerSecond, seen.events_per_second()),
        (Measure::CpuMicrosEvent, spent.as_secs_f64() * 1e6 / seen.events.max(1) as f64),
        (Measure::DeliveryP50, delivery.p50),
        (Measure::DeliveryP99, delivery.p99),
    ])
}

/// What many watchers hold, and the same puts without them and beside them, none of which concerns them.
pub async fn beside_puts(load: &Load, scale: Scale, servers: &Servers, what: &str) -> Result<Vec<Figure>, String> {
    let links = Links::open(servers.endpoints(), load.conns).await?;
    let watching_links = Links::open(servers.endpoints(), load.conns).await?;
    let watchers = scale.requests(DISTINCT_WATCHERS);
    let watching = Watching {
        name: "watch",
        conns: load.conns,
        streams: STREAMS,
        watchers_per_stream: (watchers / u64::from(STREAMS)) as u32,
        watched: watchers,
        prev_kv: false,
        clients: 1,
        puts: scale.requests(SHOWN_PUTS),
        rate: 0,
        // Longer than what the load writes, and so other keys.
        keys: Keys { size: KEY_BYTES + 1, space: watchers, sequential: false },
        value_bytes: VALUE_BYTES,
    };
    assert!(watching.watchers() == watchers, "{watchers} watchers on {STREAMS} streams leave a rest");
    // Counted before anything was written: a heap that was large once has room for watchers, and shows none of them.
    tokio::time::sleep(scale.time(SETTLE)).await;
    let before = reading(servers)?.memory.resident_bytes as f64;
    let streams = watching.open(&watching_links).await?;
    tokio::time::sleep(scale.time(SETTLE)).await;
    let memory = (reading(servers)?.memory.resident_bytes as f64 - before) / watchers as f64;

    // Beside, without, without, beside: a store that grows slows both alike. A whole load comes before: the first one finds
    // everything cold.
    flawless(load, &links, what).await?;
    let mut beside = vec![flawless(load, &links, what).await?];
    let shown = async |streams| {
        let progress = Progress::counting(what, watching.expected());
        whole(watching.put_before(streams, &watching_links, &progress).await?, what)?;
        tokio::time::sleep(scale.time(SETTLE)).await;
        Ok::<(), String>(())
    };
    shown(streams).await?;
    let mut without = Vec::new();
    for _ in 0..2 {
        without.push(flawless(load, &links, what).await?);
    }
    let streams = watching.open(&watching_links).await?;
    tokio::time::sleep(scale.time(SETTLE)).await;
    beside.push(flawless(load, &links, what).await?);
    shown(streams).await?;
    let rate = |outcomes: &[Outcome]| {
        let requests: u64 = outcomes.iter().map(Outcome::succeeded).sum();
        requests as f64 / outcomes.iter().map(|outcome| outcome.elapsed.as_secs_f64()).sum::<f64>()
    };
    let (without, beside) = (rate(&without), rate(&beside));
    Ok(vec![
        (Measure::Before, without),
        (Measure::Meanwhile, beside),
        (Measure::Lost, (1.0 - beside / without) * 100.0),
        (Measure::WatcherBytes, memory),
    ])
}

/// One watcher of all keys, from the first revision on, when everything is written.
pub async fn from_the_first(load: &Load, servers: &Servers, what: &str) -> Result<Vec<Figure>, String> {
    let links = Links::open(servers.endpoints(), load.conns).await?;
    flawless(load, &links, what).await?;
    drop(links);
    let before = reading(servers)?;
    let start = Instant::now();
    let progress = Progress::counting(what, WAYS * load.total);
    let mut events = 0;
    for _ in 0..WAYS {
        let mut here = 0;
        let way = history(servers.endpoints(), load.total, |told| {
            here = told;
            progress.at(events + told);
        });
        // Dropped, the watcher ends.
        let gone = tokio::time::timeout(CATCH_UP_PATIENCE.saturating_sub(start.elapsed()), way).await;
        events += here;
        match gone {
            Ok(gone) => gone.map_err(|error| format!("{what}: {error}"))?,
            Err(_) => break,
        }
    }
    let elapsed = start.elapsed().as_secs_f64();
    let spent = reading(servers)?.cpu() - before.cpu();
    Ok(vec![
        (Measure::CatchUp, events as f64 / elapsed),
        (Measure::CpuMicrosEvent, spent.as_secs_f64() * 1e6 / events.max(1) as f64),
    ])
}

/// Watches everything from revision 1 on until `revisions` were told, each of one event, in order and none left out.
async fn history(endpoints: &[String], revisions: u64, mut told: impl FnMut(u64)) -> Result<(), String> {
    let (_link, mut direct) = Links::one(endpoints).await?;
    let failed = |error: DirectError| error.to_string();
    let mut stream = direct.watch().await.map_err(failed)?;
    let all = Bytes::from_static(b"\0");
    let request = WatchCreateRequest { key: all.clone(), range_end: all, start_revision: 1, ..Default::default() };
    stream.create(request).map_err(failed)?;
    let (mut count, mut last) = (0, None);
    while count < revisions {
        let response = stream.next().await.map_err(failed)?;
        if response.canceled {
            return Err(format!("the watch has ended: {}", response.cancel_reason));
        }
        for event in &response.events {
            let revision = event.kv.as_ref().map_or(0, |kv| kv.mod_revision);
            if last.is_some_and(|last| revision != last + 1) {
                return Err(format!("revision {revision} came behind {last:?}"));
            }
            last = Some(revision);
        }
        count += response.events.len() as u64;
        told(count);
    }
    Ok(())
}

/// A run in which nothing may fail.
fn whole(seen: Seen, what: &str) -> Result<Seen, String> {
    match seen.failures.keys().next() {
        None => Ok(seen),
        Some(error) => Err(format!("{what}: {error}")),
    }
}

//! Leases that expire all at once, and those who write meanwhile.

use std::time::Duration;

use bytes::Bytes;
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::case::Measure;
use super::rounds::Figure;
use super::rounds::Scale;
use super::rounds::flawless;
use super::rounds::p99;
use super::rounds::warm_up;
use super::rounds::without_failures;
use super::servers::Servers;
use crate::bench::load::Links;
use crate::bench::load::Load;
use crate::bench::progress::Progress;
use crate::client::direct::Direct;
use crate::client::direct::DirectError;
use crate::proto::etcdserverpb::LeaseGrantRequest;
use crate::proto::etcdserverpb::PutRequest;
use crate::proto::etcdserverpb::RangeRequest;

const LEASES: u64 = 10_000;
/// The first of their ids; the others follow.
const FIRST_LEASE: u64 = 0x6265_6e63_6800;
/// Seconds that they live: they are granted and their keys written in less, also by a slow server. The shortest that
/// etcd grants with its default election timeout is 2.
const TTL: u64 = 10;
const QUICK_TTL: u64 = 2;
/// Puts without expiries are counted up to so long before the first one.
const AHEAD: Duration = Duration::from_millis(500);
/// How often is looked whether keys are left.
const POLL: Duration = Duration::from_millis(10);
/// A server that needs longer to get rid of the leases has forgotten one.
const PATIENCE: Duration = Duration::from_secs(120);

/// Keys of the leases: none of those that the load writes, which are digits.
const PREFIX: &str = "lease/";
const PREFIX_END: &str = "lease0";

/// Grants leases and gives each a key, waits for their end under a load of puts.
pub async fn expired(load: &Load, scale: Scale, servers: &Servers, what: &str) -> Result<Vec<Figure>, String> {
    let links = Links::open(servers.endpoints(), load.conns).await?;
    flawless(&warm_up(load), &links, what).await?;
    let leases = scale.requests(LEASES);
    let ttl = if scale.quick { QUICK_TTL } else { TTL };
    let clients = u64::from(load.clients);
    // No lease ends sooner than so long after the first was asked for.
    let due = Instant::now() + Duration::from_secs(ttl);
    for_each(leases, clients, &links, move |link, number| grant(link, number, ttl)).await?;
    for_each(leases, clients, &links, attach).await?;
    let (_link, mut direct) = Links::one(servers.endpoints()).await?;
    let told = |error: DirectError| format!("{what}: {error}");
    let left = count(&mut direct).await.map_err(told)?;
    if left != leases as i64 || Instant::now() >= due {
        return Err(format!("{what}: of {leases} leases of {ttl} s, {left} were left when the last one had its key"));
    }
    let endless = Load { total: u64::MAX, ..load.clone() };
    let progress = Progress::waiting(what);
    let before = endless.run_while(&links, &progress, tokio::time::sleep_until(due - AHEAD)).await;
    let before = without_failures(before, what)?;
    tokio::time::sleep_until(due).await;
    let mut gone = Err(format!("{what}: some of {leases} leases are left {} s after their end", PATIENCE.as_secs()));
    let watching = async {
        while due.elapsed() < PATIENCE {
            match count(&mut direct).await {
                Ok(0) => return gone = Ok(due.elapsed()),
                Ok(_) => tokio::time::sleep(POLL).await,
                Err(error) => return gone = Err(told(error)),
            }
        }
    };
    let meanwhile = without_failures(endless.run_while(&links, &progress, watching).await, what)?;
    Ok(vec![
        (Measure::P99Before, p99(&before, what)?),
        (Measure::P99Meanwhile, p99(&meanwhile, what)?),
        (Measure::AllGone, gone?.as_secs_f64()),
    ])
}

/// Does something for every number up to `total`, by so many clients at once.
async fn for_each<F, D>(total: u64, clients: u64, links: &Links, perform: F) -> Result<(), String>
where
    F: Fn(Direct, u64) -> D + Copy + Send + 'static,
    D: Future<Output = Result<(), DirectError>> + Send,
{
    let mut performing = JoinSet::new();
    for (first, link) in (0..clients).zip(links.links().iter().cycle()) {
        let link = link.clone();
        performing.spawn(async move {
            for number in (first..total).step_by(clients as usize) {
                perform(link.clone(), number).await?;
            }
            Ok::<(), DirectError>(())
        });
    }
    while let Some(performed) = performing.join_next().await {
        let performed = performed.map_err(|error| format!("a client ended: {error}"))?;
        performed.map_err(|error| format!("cannot make leases: {error}"))?;
    }
    Ok(())
}

fn id(number: u64) -> i64 {
    (FIRST_LEASE + number) as i64
}

async fn grant(mut direct: Direct, number: u64, ttl: u64) -> Result<(), DirectError> {
    let request = LeaseGrantRequest { id: id(number), ttl: ttl as i64 };
    direct.lease_grant(&request).await.map(drop)
}

async fn attach(mut direct: Direct, number: u64) -> Result<(), DirectError> {
    let key = Bytes::from(format!("{PREFIX}{number:08}"));
    let request = PutRequest { key, lease: id(number), ..PutRequest::default() };
    direct.put(&request).await.map(drop)
}

/// Keys of leases that are left.
async fn count(direct: &mut Direct) -> Result<i64, DirectError> {
    let (key, range_end) = (Bytes::from_static(PREFIX.as_bytes()), Bytes::from_static(PREFIX_END.as_bytes()));
    let request = RangeRequest { key, range_end, count_only: true, ..RangeRequest::default() };
    Ok(direct.range(&request).await?.count)
}

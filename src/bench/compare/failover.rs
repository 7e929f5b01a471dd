//! How long a cluster is without a leader that was killed.

use std::time::Duration;

use bytes::Bytes;
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::case::Measure;
use super::rounds::Figure;
use super::rounds::SETTLE;
use super::rounds::Scale;
use super::rounds::flawless;
use super::servers::Servers;
use crate::bench::load::Links;
use crate::bench::load::Load;
use crate::bench::progress::Progress;
use crate::client::direct::Direct;
use crate::proto::etcdserverpb::PutRequest;

/// Election timeouts are random, so one kill says little.
const KILLS: usize = 5;
/// How often the client asks each member anew, whatever became of earlier attempts: one that a member sent on to the dead
/// leader gets no answer for seconds.
const ATTEMPT_EVERY: Duration = Duration::from_millis(5);
/// After which an attempt is given up, so that they do not pile up.
const ATTEMPT_TIMEOUT: Duration = Duration::from_millis(500);
/// A cluster that needs longer has lost more than its leader.
const PATIENCE: Duration = Duration::from_secs(60);

/// Kills the leader, waits for a write, starts the killed one again, and so on; the mean of the waits.
pub async fn leader_killed(load: &Load, scale: Scale, mut servers: Servers, what: &str) -> Result<Vec<Figure>, String> {
    let links = Links::open(servers.endpoints(), load.conns).await?;
    flawless(load, &links, what).await?;
    drop(links);
    let _progress = Progress::waiting(what);
    let kills = if scale.quick { 1 } else { KILLS };
    let mut waited = Duration::ZERO;
    for _ in 0..kills {
        // A member that has just come back is still busy with that.
        tokio::time::sleep(scale.time(SETTLE)).await;
        let leader = servers.leader().await?;
        let others = servers.endpoints().iter().enumerate().filter(|(member, _)| *member != leader);
        let others: Vec<String> = others.map(|(_, endpoint)| endpoint.clone()).collect();
        let links = Links::open(&others, others.len() as u32).await?;
        let start = Instant::now();
        servers.kill(leader);
        until_written(&links, start + PATIENCE).await.map_err(|error| format!("{what}: {error}"))?;
        waited += start.elapsed();
        servers.restart(leader).await?;
    }
    Ok(vec![(Measure::Failover, waited.as_secs_f64() / kills as f64)])
}

/// Asks all members again and again until one has written.
async fn until_written(links: &Links, deadline: Instant) -> Result<(), String> {
    let mut attempts = JoinSet::new();
    let mut again = tokio::time::interval(ATTEMPT_EVERY);
    let mut last = "no answer".to_owned();
    loop {
        tokio::select! {
            _ = again.tick() => {
                if Instant::now() > deadline {
                    return Err(format!("nothing was written in {} s: {last}", PATIENCE.as_secs()));
                }
                for link in links.links() {
                    attempts.spawn(attempt(link.clone()));
                }
            }
            Some(attempted) = attempts.join_next() => match attempted {
                Ok(Ok(())) => return Ok(()),
                Ok(Err(error)) => last = error,
                Err(error) => return Err(format!("an attempt ended: {error}")),
            },
        }
    }
}

async fn attempt(mut link: Direct) -> Result<(), String> {
    let request = PutRequest { key: Bytes::from_static(b"failover"), ..PutRequest::default() };
    match tokio::time::timeout(ATTEMPT_TIMEOUT, link.put(&request)).await {
        Ok(answered) => answered.map(drop).map_err(|error| error.to_string()),
        Err(_) => Err("no answer".to_owned()),
    }
}

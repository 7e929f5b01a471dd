//! How far away a peer is: a GET of `/raft/probing` every four seconds.

use std::sync::Arc;
use std::time::Instant;

use http::Method;
use http::Request;
use tokio::time::MissedTickBehavior;
use tokio::time::interval;

use crate::server::peer::http_client::Connection;
use crate::server::peer::http_client::PeerUrl;
use crate::server::peer::http_client::RequestError;
use crate::server::peer::http_client::full;
use crate::server::peer::transport::Peer;
use crate::server::peer::transport::Shared;

/// Runs until its peer goes away. Failures are the streams' to report; this only measures.
pub(super) async fn run(shared: Arc<Shared>, peer: Arc<Peer>) {
    let mut ticks = interval(shared.timing.probe);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut kept = None;
    loop {
        ticks.tick().await;
        let Some(url) = peer.urls.pick() else { continue };
        if probe(&shared, &peer, &url, &mut kept).await.is_err() {
            kept = None;
        }
    }
}

async fn probe(
    shared: &Shared,
    peer: &Peer,
    url: &Arc<PeerUrl>,
    kept: &mut Option<(Arc<PeerUrl>, Connection)>,
) -> Result<(), RequestError> {
    let usable = kept.as_ref().is_some_and(|(kept_url, connection)| kept_url == url && connection.is_open());
    if !usable {
        *kept = Some((Arc::clone(url), Connection::open(&shared.dialer, url).await?));
    }
    let Some((_, connection)) = kept else { return Ok(()) };
    let mut request = Request::new(full(""));
    *request.method_mut() = Method::GET;
    *request.uri_mut() = http::Uri::from_static("/raft/probing");
    let sent = Instant::now();
    let answer = connection.exchange(request, shared.timing.post_timeout).await?;
    if answer.status().is_success() {
        peer.metrics.round_trip.observe(sent.elapsed().as_secs_f64());
    }
    Ok(())
}

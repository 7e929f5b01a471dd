//! Whether a peer is heard, and since when.
//!
//! A peer is active while at least one stream that we dialed delivers: that direction falls silent within the read
//! timeout when the other member stops, while what we write only fills buffers (peer.md 3.4).

use std::sync::Arc;
use std::sync::Mutex;
use std::sync::PoisonError;
use std::time::Instant;

use crate::common::ids::MemberId;
use crate::server::peer::metrics::OnePeer;

/// Shared by the two reading streams of a peer.
#[derive(Debug)]
pub(super) struct Status {
    peer: MemberId,
    metrics: OnePeer,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    streams: usize,
    since: Option<Instant>,
    /// The last failure that was logged, so that a peer that is down costs one line and not ten a second.
    failure: String,
}

impl Status {
    pub fn new(peer: MemberId, metrics: OnePeer) -> Arc<Status> {
        Arc::new(Status { peer, metrics, state: Mutex::default() })
    }

    /// Since when the peer is heard without a break; `None` while it is not.
    pub fn active_since(&self) -> Option<Instant> {
        self.lock().since
    }

    /// A stream delivers until the returned guard is dropped.
    pub fn connected(self: &Arc<Status>) -> Connected {
        let mut state = self.lock();
        state.streams += 1;
        if state.streams == 1 {
            state.since = Some(Instant::now());
            state.failure.clear();
            self.metrics.active.set(1.0);
            tracing::info!(peer = %self.peer, "peer became active");
        }
        Connected { status: Arc::clone(self) }
    }

    /// Something towards this peer failed. Logged when it differs from the last failure.
    pub fn failed(&self, failure: &str) {
        let mut state = self.lock();
        if state.failure != failure {
            failure.clone_into(&mut state.failure);
            tracing::warn!(peer = %self.peer, failure, "cannot reach peer");
        }
    }

    fn disconnected(&self) {
        let mut state = self.lock();
        state.streams -= 1;
        if state.streams == 0 {
            state.since = None;
            self.metrics.active.set(0.0);
            self.metrics.disconnected.inc();
            tracing::warn!(peer = %self.peer, "peer became inactive");
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One stream that delivers.
#[derive(Debug)]
pub(super) struct Connected {
    status: Arc<Status>,
}

impl Drop for Connected {
    fn drop(&mut self) {
        self.status.disconnected();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::server::peer::metrics::PeerMetrics;

    #[test]
    fn a_peer_is_active_while_any_stream_delivers() {
        let metrics = PeerMetrics::register(&prometheus::Registry::new()).of_peer(MemberId(1), MemberId(2));
        let status = Status::new(MemberId(2), metrics.clone());
        assert_eq!(status.active_since(), None);
        let first = status.connected();
        let since = status.active_since();
        assert!(since.is_some());
        let second = status.connected();
        drop(first);
        assert_eq!(status.active_since(), since);
        drop(second);
        assert_eq!(status.active_since(), None);
        assert_eq!((metrics.active.get(), metrics.disconnected.get()), (0.0, 1));
    }
}

//! What the hub counts, by etcd's names (server.md 11.2).

use prometheus::IntCounter;
use prometheus::IntGauge;
use prometheus::Registry;

use crate::server::watch::hub::Counts;

#[derive(Clone)]
pub struct WatchMetrics {
    streams: IntGauge,
    watchers: IntGauge,
    slow: IntGauge,
    pending: IntGauge,
    events: IntCounter,
}

impl WatchMetrics {
    pub fn register(registry: &Registry) -> WatchMetrics {
        let gauge = |name: &str, help: &str| {
            let gauge = IntGauge::new(format!("etcd_debugging_mvcc_{name}"), help).expect("a valid name");
            registry.register(Box::new(gauge.clone())).expect("registered once");
            gauge
        };
        let events = IntCounter::new("etcd_debugging_mvcc_events_total", "Total number of events sent by this member.");
        let events = events.expect("a valid name");
        registry.register(Box::new(events.clone())).expect("registered once");
        WatchMetrics {
            streams: gauge("watch_stream_total", "Total number of watch streams."),
            watchers: gauge("watcher_total", "Total number of watchers."),
            slow: gauge("slow_watcher_total", "Total number of unsynced slow watchers."),
            pending: gauge("pending_events_total", "Total number of pending events to be sent."),
            events,
        }
    }

    /// Shows the counts of the hub, and how many changes it was not yet given.
    pub fn show(&self, counts: Counts, pending: usize) {
        let value = |count: usize| i64::try_from(count).unwrap_or(i64::MAX);
        self.streams.set(value(counts.streams));
        self.watchers.set(value(counts.watchers));
        self.slow.set(value(counts.behind));
        self.pending.set(value(pending));
        self.events.inc_by(counts.events.saturating_sub(self.events.get()));
    }
}

//! What the peer protocol counts, under etcd's names (server.md 11.1) and two of our own.

use prometheus::GaugeVec;
use prometheus::Histogram;
use prometheus::HistogramOpts;
use prometheus::HistogramVec;
use prometheus::IntCounter;
use prometheus::IntCounterVec;
use prometheus::IntGauge;
use prometheus::IntGaugeVec;
use prometheus::Opts;
use prometheus::Registry;
use prometheus::core::Collector;
use prometheus::exponential_buckets;

use crate::common::ids::MemberId;
use crate::server::peer::validate::Refusal;

/// etcd's label for a snapshot whose sender did not say who it is.
const UNKNOWN_SENDER: &str = "UNKNOWN_SNAPSHOT_SENDER";

/// All families; one per server, cloned freely.
#[derive(Clone, Debug)]
pub struct PeerMetrics {
    sent_bytes: IntCounterVec,
    sent_failures: IntCounterVec,
    received_bytes: IntCounterVec,
    received_failures: IntCounterVec,
    round_trip: HistogramVec,
    active: GaugeVec,
    known: GaugeVec,
    disconnected: IntCounterVec,
    snapshot_send_success: IntCounterVec,
    snapshot_send_failures: IntCounterVec,
    snapshot_send_inflights: IntGaugeVec,
    snapshot_send_seconds: HistogramVec,
    snapshot_receive_success: IntCounterVec,
    snapshot_receive_failures: IntCounterVec,
    snapshot_receive_inflights: IntGaugeVec,
    snapshot_receive_seconds: HistogramVec,
    refused: IntCounterVec,
    accept_failures: IntCounter,
}

impl PeerMetrics {
    /// Creates the families in `registry`. A name that is taken there already is a mistake of the composition root.
    pub fn register(registry: &Registry) -> PeerMetrics {
        let counter =
            |name: &str, help: &str, label: &str| added(registry, IntCounterVec::new(Opts::new(name, help), &[label]));
        let pair = |name: &str, help: &str| added(registry, GaugeVec::new(Opts::new(name, help), &["Local", "Remote"]));
        let gauge =
            |name: &str, help: &str, label: &str| added(registry, IntGaugeVec::new(Opts::new(name, help), &[label]));
        let seconds = |name: &str, help: &str, label: &str, start: f64, count: usize| {
            let buckets = exponential_buckets(start, 2.0, count).expect("start and count are positive");
            added(registry, HistogramVec::new(HistogramOpts::new(name, help).buckets(buckets), &[label]))
        };
        let disconnected = Opts::new(
            "etcd_network_disconnected_peers_total",
            "How often a connection to a peer was lost after it had been active.",
        );
        let metrics = PeerMetrics {
            sent_bytes: counter("etcd_network_peer_sent_bytes_total", "Bytes of messages sent to peers.", "To"),
            sent_failures: counter("etcd_network_peer_sent_failures_total", "Messages not sent to peers.", "To"),
            received_bytes: counter(
                "etcd_network_peer_received_bytes_total",
                "Bytes of messages received from peers.",
                "From",
            ),
            received_failures: counter(
                "etcd_network_peer_received_failures_total",
                "Messages from peers that were refused, and streams that broke.",
                "From",
            ),
            round_trip: seconds(
                "etcd_network_peer_round_trip_time_seconds",
                "Round-trip time between peers.",
                "To",
                0.0001,
                16,
            ),
            active: pair("etcd_network_active_peers", "Peers that were heard lately."),
            known: pair("etcd_network_known_peers", "Members of the cluster."),
            disconnected: added(registry, IntCounterVec::new(disconnected, &["Local", "Remote"])),
            snapshot_send_success: counter("etcd_network_snapshot_send_success", "Snapshots delivered.", "To"),
            snapshot_send_failures: counter("etcd_network_snapshot_send_failures", "Snapshots not delivered.", "To"),
            snapshot_send_inflights: gauge(
                "etcd_network_snapshot_send_inflights_total",
                "Snapshots being sent now.",
                "To",
            ),
            snapshot_send_seconds: seconds(
                "etcd_network_snapshot_send_total_duration_seconds",
                "How long sending a snapshot took.",
                "To",
                0.1,
                10,
            ),
            snapshot_receive_success: counter(
                "etcd_network_snapshot_receive_success",
                "Snapshots received and prepared.",
                "From",
            ),
            snapshot_receive_failures: counter(
                "etcd_network_snapshot_receive_failures",
                "Snapshots refused or broken off.",
                "From",
            ),
            snapshot_receive_inflights: gauge(
                "etcd_network_snapshot_receive_inflights_total",
                "Snapshots being received now.",
                "From",
            ),
            snapshot_receive_seconds: seconds(
                "etcd_network_snapshot_receive_total_duration_seconds",
                "How long receiving a snapshot took.",
                "From",
                0.1,
                10,
            ),
            refused: counter(
                "quorate_peer_messages_refused_total",
                "Messages from peers that did not reach raft, by reason.",
                "reason",
            ),
            accept_failures: added(
                registry,
                IntCounter::new("quorate_peer_accept_failures_total", "Connections that could not be accepted."),
            ),
        };
        for refusal in Refusal::ALL {
            metrics.refused.with_label_values(&[refusal.name()]);
        }
        metrics
    }

    /// The handles of one peer.
    pub(super) fn of_peer(&self, local: MemberId, peer: MemberId) -> OnePeer {
        let (local, peer) = (local.to_string(), peer.to_string());
        let (to, pair) = (&[peer.as_str()], &[local.as_str(), peer.as_str()]);
        OnePeer {
            sent_bytes: self.sent_bytes.with_label_values(to),
            sent_failures: self.sent_failures.with_label_values(to),
            received_bytes: self.received_bytes.with_label_values(to),
            received_failures: self.received_failures.with_label_values(to),
            round_trip: self.round_trip.with_label_values(to),
            active: self.active.with_label_values(pair),
            disconnected: self.disconnected.with_label_values(pair),
        }
    }

    /// The handles of snapshots to one peer.
    pub(super) fn of_snapshot_to(&self, peer: MemberId) -> SnapshotMetrics {
        let to = peer.to_string();
        let to = &[to.as_str()];
        SnapshotMetrics {
            success: self.snapshot_send_success.with_label_values(to),
            failures: self.snapshot_send_failures.with_label_values(to),
            inflights: self.snapshot_send_inflights.with_label_values(to),
            seconds: self.snapshot_send_seconds.with_label_values(to),
        }
    }

    /// The handles of snapshots from one peer. Only members get a label of their own: a header is not to be trusted
    /// with memory.
    pub(super) fn of_snapshot_from(&self, peer: Option<MemberId>) -> SnapshotMetrics {
        let from = peer.map_or(UNKNOWN_SENDER.to_owned(), |peer| peer.to_string());
        let from = &[from.as_str()];
        SnapshotMetrics {
            success: self.snapshot_receive_success.with_label_values(from),
            failures: self.snapshot_receive_failures.with_label_values(from),
            inflights: self.snapshot_receive_inflights.with_label_values(from),
            seconds: self.snapshot_receive_seconds.with_label_values(from),
        }
    }

    pub(super) fn count_refusal(&self, refusal: Refusal) {
        self.refused.with_label_values(&[refusal.name()]).inc();
    }

    pub(super) fn count_accept_failure(&self) {
        self.accept_failures.inc();
    }

    /// A member of the cluster, ourselves included, is known or gone.
    pub(super) fn set_known(&self, local: MemberId, member: MemberId, known: bool) {
        let pair = &[local.to_string(), member.to_string()];
        self.known.with_label_values(pair).set(f64::from(u8::from(known)));
    }
}

#[derive(Clone, Debug)]
pub(super) struct OnePeer {
    pub sent_bytes: IntCounter,
    pub sent_failures: IntCounter,
    pub received_bytes: IntCounter,
    pub received_failures: IntCounter,
    pub round_trip: Histogram,
    pub active: prometheus::Gauge,
    pub disconnected: IntCounter,
}

#[derive(Clone, Debug)]
pub(super) struct SnapshotMetrics {
    pub success: IntCounter,
    pub failures: IntCounter,
    pub inflights: IntGauge,
    pub seconds: Histogram,
}

fn added<C: Collector + Clone + 'static>(registry: &Registry, made: prometheus::Result<C>) -> C {
    let collector = made.expect("metric names and labels are constants");
    registry.register(Box::new(collector.clone())).expect("every family is registered once per server");
    collector
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn series_carry_etcds_names_and_labels() {
        let registry = Registry::new();
        let metrics = PeerMetrics::register(&registry);
        metrics.set_known(MemberId(0xa), MemberId(0xb), true);
        metrics.of_peer(MemberId(0xa), MemberId(0xb)).active.set(1.0);
        metrics.of_snapshot_from(None).failures.inc();
        let text = prometheus::TextEncoder::new().encode_to_string(&registry.gather()).unwrap();
        for line in [
            "etcd_network_known_peers{Local=\"a\",Remote=\"b\"} 1",
            "etcd_network_active_peers{Local=\"a\",Remote=\"b\"} 1",
            "etcd_network_peer_sent_failures_total{To=\"b\"} 0",
            "etcd_network_snapshot_receive_failures{From=\"UNKNOWN_SNAPSHOT_SENDER\"} 1",
            "quorate_peer_messages_refused_total{reason=\"continuity\"} 0",
        ] {
            assert!(text.contains(line), "{line} not in {text}");
        }
    }
}

//! What applying counts, by etcd's names (server.md 11).

use std::time::Duration;

use bytes::Bytes;
use prometheus::Histogram;
use prometheus::HistogramOpts;
use prometheus::HistogramVec;
use prometheus::IntCounter;
use prometheus::IntGauge;
use prometheus::IntGaugeVec;
use prometheus::Opts;
use prometheus::Registry;
use prometheus::core::Collector;
use prometheus::exponential_buckets;
use prost::Message;

use crate::common::answer::Answer;
use crate::common::ids::MemberId;
use crate::common::key_range::KeyRange;
use crate::common::version::Version;
use crate::proto::etcdserverpb::AlarmType;
use crate::proto::etcdserverpb::TxnResponse;
use crate::proto::etcdserverpb::response_op::Response;
use crate::server::apply::alarm::Alarms;
use crate::server::apply::outcome::Reply;
use crate::server::checkpoint::Record;
use crate::server::cluster::membership::Membership;
use crate::server::mvcc::store::Store;
use crate::server::mvcc::view::Keys;

/// Handles of the apply thread.
#[derive(Clone)]
pub struct ApplyMetrics {
    durations: HistogramVec,
    /// Resolved for the request that there are most of.
    put_success: Histogram,
    slow: IntCounter,
    alarms: IntGaugeVec,
    cluster_version: IntGaugeVec,
    snapshot_in_progress: IntGauge,
    /// Reads that do not come through the log count here too.
    pub ranges: IntCounter,
    puts: IntCounter,
    deletes: IntCounter,
    /// Transactions of more than one operation.
    txns: IntCounter,
    keys: IntGauge,
    put_bytes: IntGauge,
    leases_granted: IntCounter,
    leases_revoked: IntCounter,
    lease_ttl: Histogram,
    compacted_keys: IntCounter,
    compaction_pause: Histogram,
    compaction_total: Histogram,
}

/// Operations of one transaction, as etcd's store counts them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Tally {
    ranges: u64,
    puts: u64,
    deletes: u64,
}

impl ApplyMetrics {
    pub fn register(registry: &Registry) -> ApplyMetrics {
        let durations = histogram(
            "etcd_server_apply_duration_seconds",
            "The latency distributions of v2 apply called by backend.",
            (0.0001, 20),
        );
        let durations =
            added(registry, HistogramVec::new(durations, &["version", "op", "success"]).expect("a valid name"));
        let counter = |name: &str, help: &str| added(registry, IntCounter::new(name, help).expect("a valid name"));
        let gauge = |name: &str, help: &str| added(registry, IntGauge::new(name, help).expect("a valid name"));
        let gauges = |name: &str, help: &str, labels: &[&str]| {
            added(registry, IntGaugeVec::new(Opts::new(name, help), labels).expect("a valid name"))
        };
        let milliseconds = |name: &str, help: &str, buckets: (f64, usize)| {
            added(registry, Histogram::with_opts(histogram(name, help, buckets)).expect("a valid name"))
        };
        ApplyMetrics {
            put_success: durations.with_label_values(&["v3", "Put", "true"]),
            durations,
            slow: counter(
                "etcd_server_slow_apply_total",
                "The total number of slow apply requests (likely overloaded from slow disk).",
            ),
            alarms: gauges(
                "etcd_debugging_server_alarms",
                "Alarms for every member in cluster. 1 for 'server_id' label with current ID. 2 for 'alarm_type' \
                 label with type of this alarm",
                &["server_id", "alarm_type"],
            ),
            cluster_version: gauges(
                "etcd_cluster_version",
                "Which version is running. 1 for 'cluster_version' label with current cluster version",
                &["cluster_version"],
            ),
            snapshot_in_progress: gauge(
                "etcd_server_snapshot_apply_in_progress_total",
                "1 if the server is applying the incoming snapshot. 0 if none.",
            ),
            ranges: counter("etcd_mvcc_range_total", "Total number of ranges seen by this member."),
            puts: counter("etcd_mvcc_put_total", "Total number of puts seen by this member."),
            deletes: counter("etcd_mvcc_delete_total", "Total number of deletes seen by this member."),
            txns: counter("etcd_mvcc_txn_total", "Total number of txns seen by this member."),
            keys: gauge("etcd_debugging_mvcc_keys_total", "Total number of keys."),
            put_bytes: gauge(
                "etcd_debugging_mvcc_total_put_size_in_bytes",
                "The total size of put kv pairs seen by this member.",
            ),
            leases_granted: counter("etcd_debugging_lease_granted_total", "The total number of granted leases."),
            leases_revoked: counter("etcd_debugging_lease_revoked_total", "The total number of revoked leases."),
            lease_ttl: added(
                registry,
                Histogram::with_opts(histogram(
                    "etcd_debugging_lease_ttl_total",
                    "Bucketed histogram of lease TTLs.",
                    (1.0, 24),
                ))
                .expect("a valid name"),
            ),
            compacted_keys: counter(
                "etcd_debugging_mvcc_db_compaction_keys_total",
                "Total number of db keys compacted.",
            ),
            compaction_pause: milliseconds(
                "etcd_debugging_mvcc_db_compaction_pause_duration_milliseconds",
                "Bucketed histogram of db compaction pause duration.",
                (1.0, 13),
            ),
            compaction_total: milliseconds(
                "etcd_debugging_mvcc_db_compaction_total_duration_milliseconds",
                "Bucketed histogram of db compaction total duration.",
                (100.0, 14),
            ),
        }
    }

    /// A request was applied in `elapsed`; `slow_after` zero counts none as slow.
    pub(super) fn applied(
        &self,
        op: &'static str,
        result: &Result<Reply, Answer>,
        elapsed: Duration,
        slow_after: Duration,
    ) {
        let seconds = elapsed.as_secs_f64();
        match (op, result) {
            ("", _) => return,
            ("Put", Ok(_)) => self.put_success.observe(seconds),
            _ => {
                let success = if result.is_ok() { "true" } else { "false" };
                self.durations.with_label_values(&["v3", op, success]).observe(seconds);
            }
        }
        if let Ok(reply) = result {
            self.count(reply);
        }
        if !slow_after.is_zero() && elapsed > slow_after {
            self.slow.inc();
            tracing::warn!(op, ?elapsed, "applying a request took too long");
        }
    }

    fn count(&self, reply: &Reply) {
        let mut tally = Tally::default();
        match reply {
            Reply::Range(_) => tally.ranges = 1,
            Reply::Put(_) => tally.puts = 1,
            Reply::DeleteRange(_) => tally.deletes = 1,
            Reply::Txn(response) => tally.add(response),
            Reply::LeaseGrant(response) => {
                self.leases_granted.inc();
                self.lease_ttl.observe(response.ttl as f64);
            }
            Reply::LeaseRevoke(_) => self.leases_revoked.inc(),
            Reply::Compaction(_) | Reply::Alarm(_) | Reply::Members(_) | Reply::Done { .. } => {}
        }
        self.ranges.inc_by(tally.ranges);
        self.puts.inc_by(tally.puts);
        self.deletes.inc_by(tally.deletes);
        if tally.ranges + tally.puts + tally.deletes > 1 {
            self.txns.inc();
        }
    }

    /// A slice of a compaction held up the thread for as long.
    pub(super) fn compacted_slice(&self, elapsed: Duration) {
        self.compaction_pause.observe(elapsed.as_secs_f64() * 1000.0);
    }

    /// A compaction is done, so long after its first slice began.
    pub(super) fn compacted(&self, elapsed: Duration) {
        self.compaction_total.observe(elapsed.as_secs_f64() * 1000.0);
    }

    /// A batch was published: these records are new, and so many are gone.
    pub(super) fn published(&self, store: &Store, records: &[Record], removed: usize) {
        self.compacted_keys.inc_by(removed as u64);
        let bytes = records.iter().filter(|record| !record.tombstone).map(|record| record.kv.encoded_len());
        self.put_bytes.add(bytes.sum::<usize>() as i64);
        let everything = KeyRange::From(Bytes::from_static(b"\0"));
        self.keys.set(store.count(&everything, store.revision()) as i64);
    }

    pub(super) fn alarms_changed(&self, alarms: &Alarms) {
        self.alarms.reset();
        for alarm in alarms.list(AlarmType::None as i32) {
            let name = AlarmType::try_from(alarm.alarm).map_or("UNKNOWN", |r#type| r#type.as_str_name());
            self.alarms.with_label_values(&[MemberId(alarm.member_id).to_string().as_str(), name]).set(1);
        }
    }

    pub(super) fn cluster_changed(&self, membership: &Membership) {
        let Some(Version { major, minor, .. }) = membership.version() else { return };
        // etcd keeps the series of earlier versions at 0.
        for family in self.cluster_version.collect() {
            for metric in family.get_metric() {
                let old: Vec<&str> = metric.get_label().iter().map(|label| label.value()).collect();
                self.cluster_version.with_label_values(&old).set(0);
            }
        }
        self.cluster_version.with_label_values(&[format!("{major}.{minor}").as_str()]).set(1);
    }

    pub(super) fn installing(&self, in_progress: bool) {
        self.snapshot_in_progress.set(i64::from(in_progress));
    }
}

impl Tally {
    fn add(&mut self, txn: &TxnResponse) {
        for op in &txn.responses {
            match &op.response {
                Some(Response::ResponseRange(_)) => self.ranges += 1,
                Some(Response::ResponsePut(_)) => self.puts += 1,
                Some(Response::ResponseDeleteRange(_)) => self.deletes += 1,
                Some(Response::ResponseTxn(txn)) => self.add(txn),
                None => {}
            }
        }
    }
}

/// `count` buckets from `first`, each twice the one before.
fn histogram(name: &str, help: &str, (first, count): (f64, usize)) -> HistogramOpts {
    HistogramOpts::new(name, help).buckets(exponential_buckets(first, 2.0, count).expect("ascending"))
}

fn added<T: Collector + Clone + 'static>(registry: &Registry, metric: T) -> T {
    registry.register(Box::new(metric.clone())).expect("registered once");
    metric
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::etcdserverpb::PutResponse;
    use crate::proto::etcdserverpb::ResponseOp;

    fn metrics() -> (ApplyMetrics, Registry) {
        let registry = Registry::new();
        (ApplyMetrics::register(&registry), registry)
    }

    #[test]
    fn operations_inside_transactions_are_counted() {
        let (metrics, _) = metrics();
        let put = || ResponseOp { response: Some(Response::ResponsePut(PutResponse::default())) };
        let nested = TxnResponse { responses: vec![put()], ..TxnResponse::default() };
        let nested = ResponseOp { response: Some(Response::ResponseTxn(nested)) };
        let txn = TxnResponse { responses: vec![put(), nested], ..TxnResponse::default() };
        let second = Duration::from_secs(1);
        metrics.applied("Txn", &Ok(Reply::Txn(txn)), second, Duration::ZERO);
        metrics.applied("Put", &Ok(Reply::Put(PutResponse::default())), second, second / 2);
        metrics.applied("Put", &Err(Answer::NoSpace), second, second);
        assert_eq!((metrics.puts.get(), metrics.txns.get(), metrics.slow.get()), (3, 1, 1));
        assert_eq!(metrics.put_success.get_sample_count(), 1);
        assert_eq!(metrics.durations.with_label_values(&["v3", "Put", "false"]).get_sample_count(), 1);
    }

    #[test]
    fn the_cluster_version_before_falls_to_zero() {
        let (metrics, _) = metrics();
        let mut membership = Membership::new(1);
        for version in [Version::new(3, 6, 0), Version::new(3, 7, 0)] {
            membership.set_version(version).expect("not above our own");
            metrics.cluster_changed(&membership);
        }
        let value = |version: &str| metrics.cluster_version.with_label_values(&[version]).get();
        assert_eq!((value("3.6"), value("3.7")), (0, 1));
    }

    #[test]
    fn names_and_labels_are_etcds() {
        let (metrics, registry) = metrics();
        metrics.applied("Put", &Ok(Reply::Put(PutResponse::default())), Duration::ZERO, Duration::ZERO);
        let mut text = String::new();
        let encoder = prometheus::TextEncoder::new();
        encoder.encode_utf8(&registry.gather(), &mut text).expect("text");
        for line in [
            "etcd_server_apply_duration_seconds_bucket{op=\"Put\",success=\"true\",version=\"v3\",le=\"0.0001\"} 1",
            "etcd_server_slow_apply_total 0",
            "etcd_mvcc_put_total 1",
            "etcd_debugging_lease_ttl_total_bucket{le=\"8388608\"} 0",
        ] {
            assert!(text.contains(line), "{line} in\n{text}");
        }
    }
}

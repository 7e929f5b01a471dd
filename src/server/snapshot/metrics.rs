//! What snapshots measure: building an image, storing a received one.

use prometheus::Histogram;
use prometheus::HistogramOpts;
use prometheus::Registry;

/// Handles of the snapshot metrics; clones share them.
#[derive(Clone, Debug)]
pub struct SnapshotMetrics {
    /// Building an image of our own.
    pub build_seconds: Histogram,
    /// Verifying and converting a received image, with its syncs.
    pub save_seconds: Histogram,
    /// The fsync at the end of that.
    pub fsync_seconds: Histogram,
}

impl SnapshotMetrics {
    /// Creates the metrics and registers them. Once per registry: names are unique in it.
    pub fn register(registry: &Registry) -> SnapshotMetrics {
        let histogram = |name: &str, help: &str, first: f64, count: usize| {
            let buckets = prometheus::exponential_buckets(first, 2.0, count).expect("first and count are positive");
            let histogram = Histogram::with_opts(HistogramOpts::new(name, help).buckets(buckets));
            let histogram = histogram.expect("name and buckets are valid");
            registry.register(Box::new(histogram.clone())).expect("a registry gets these metrics once");
            histogram
        };
        SnapshotMetrics {
            build_seconds: histogram(
                "etcd_disk_backend_snapshot_duration_seconds",
                "The latency distribution of backend snapshots.",
                0.01,
                17,
            ),
            save_seconds: histogram(
                "etcd_snap_db_save_total_duration_seconds",
                "The total latency distributions of v3 snapshot save",
                0.1,
                10,
            ),
            fsync_seconds: histogram(
                "etcd_snap_db_fsync_duration_seconds",
                "The latency distributions of fsyncing .snap.db file",
                0.001,
                14,
            ),
        }
    }
}

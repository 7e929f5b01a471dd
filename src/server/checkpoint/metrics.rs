//! What the checkpoint measures: commits, the backlog, the file.

use prometheus::Histogram;
use prometheus::HistogramOpts;
use prometheus::IntCounter;
use prometheus::IntGauge;
use prometheus::Registry;
use prometheus::core::Collector;

/// Handles of the checkpoint's metrics; clones share them.
#[derive(Clone)]
pub struct CheckpointMetrics {
    /// Time of one commit with its fdatasyncs.
    pub commit_seconds: Histogram,
    /// Bytes of changes that are not durable in the checkpoint yet.
    pub backlog_bytes: IntGauge,
    /// How often apply had to wait because the backlog was full.
    pub backlog_waits: IntCounter,
    /// Length of the database file. Clients are told the size of its contents instead.
    pub file_bytes: IntGauge,
}

impl CheckpointMetrics {
    /// Creates the metrics and registers them. Once per registry: names are unique in it.
    pub fn register(registry: &Registry) -> CheckpointMetrics {
        let name = "etcd_disk_backend_commit_duration_seconds";
        let help = "The latency distributions of commit called by backend.";
        let buckets = prometheus::exponential_buckets(0.001, 2.0, 14).expect("start, factor and count are positive");
        let commit_seconds = Histogram::with_opts(HistogramOpts::new(name, help).buckets(buckets));
        let metrics = CheckpointMetrics {
            commit_seconds: commit_seconds.expect("name and buckets are valid"),
            backlog_bytes: gauge("quorate_checkpoint_backlog_bytes", "Bytes of applied changes not yet checkpointed."),
            backlog_waits: IntCounter::new(
                "quorate_checkpoint_backlog_waits_total",
                "Times that applying waited for the checkpoint.",
            )
            .expect("the name is valid"),
            file_bytes: gauge("quorate_checkpoint_file_bytes", "Length of the database file."),
        };
        let collectors: [Box<dyn Collector>; 4] = [
            Box::new(metrics.commit_seconds.clone()),
            Box::new(metrics.backlog_bytes.clone()),
            Box::new(metrics.backlog_waits.clone()),
            Box::new(metrics.file_bytes.clone()),
        ];
        for collector in collectors {
            registry.register(collector).expect("a registry gets these metrics once");
        }
        metrics
    }
}

fn gauge(name: &str, help: &str) -> IntGauge {
    IntGauge::new(name, help).expect("the name is valid")
}

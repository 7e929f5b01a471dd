//! What the log measures, under etcd's names (server.md 11.1).

use std::time::Duration;

use prometheus::Histogram;
use prometheus::HistogramOpts;
use prometheus::IntGauge;
use prometheus::Registry;
use prometheus::exponential_buckets;

/// Handles of the log's metrics; made once a server.
#[derive(Clone, Debug)]
pub struct WalMetrics {
    pub fsync_seconds: Histogram,
    pub write_seconds: Histogram,
    pub write_bytes: IntGauge,
}

impl WalMetrics {
    /// Registers all of them. Panics if the names are taken: they are, if a server is composed twice.
    pub fn register(registry: &Registry) -> WalMetrics {
        let metrics = WalMetrics {
            fsync_seconds: seconds(
                "etcd_disk_wal_fsync_duration_seconds",
                "The latency distributions of fsync called by WAL.",
            ),
            write_seconds: seconds(
                "etcd_disk_wal_write_duration_seconds",
                "The latency distributions of write called by WAL.",
            ),
            write_bytes: IntGauge::new("etcd_disk_wal_write_bytes_total", "Total number of bytes written in WAL.")
                .expect("a valid name"),
        };
        for collector in [&metrics.fsync_seconds, &metrics.write_seconds] {
            registry.register(Box::new(collector.clone())).expect("registered once");
        }
        registry.register(Box::new(metrics.write_bytes.clone())).expect("registered once");
        metrics
    }
}

/// 1 ms to 8 s (server.md 11.1: H(0.001,2,14)).
fn seconds(name: &str, help: &str) -> Histogram {
    let buckets = exponential_buckets(0.001, 2.0, 14).expect("a positive start and a factor above 1");
    Histogram::with_opts(HistogramOpts::new(name, help).buckets(buckets)).expect("a valid name")
}

/// Time since some fixed point; the log itself knows no clock (DESIGN.md 5).
pub type Clock = Box<dyn Fn() -> Duration + Send>;

/// Measures, if there is something to measure with.
#[derive(Default)]
pub struct Meter(Option<(WalMetrics, Clock)>);

impl Meter {
    pub fn new(metrics: WalMetrics, clock: Clock) -> Meter {
        Meter(Some((metrics, clock)))
    }

    pub fn write<T, E>(&self, bytes: usize, io: impl FnOnce() -> Result<T, E>) -> Result<T, E> {
        let result = self.time(|metrics| &metrics.write_seconds, io)?;
        if let Some((metrics, _)) = &self.0 {
            metrics.write_bytes.add(i64::try_from(bytes).unwrap_or(i64::MAX));
        }
        Ok(result)
    }

    pub fn fsync<T, E>(&self, io: impl FnOnce() -> Result<T, E>) -> Result<T, E> {
        self.time(|metrics| &metrics.fsync_seconds, io)
    }

    fn time<T>(&self, histogram: impl FnOnce(&WalMetrics) -> &Histogram, io: impl FnOnce() -> T) -> T {
        let Some((metrics, clock)) = &self.0 else { return io() };
        let start = clock();
        let result = io();
        histogram(metrics).observe(clock().saturating_sub(start).as_secs_f64());
        result
    }
}

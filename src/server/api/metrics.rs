//! What the API measures: gRPC calls, requests by type, HTTP health, and the gauges that describe this member.

use std::sync::Arc;
use std::sync::OnceLock;
use std::time::Duration;

use prometheus::Histogram;
use prometheus::HistogramVec;
use prometheus::IntCounter;
use prometheus::IntCounterVec;
use prometheus::IntGauge;
use prometheus::IntGaugeVec;
use prometheus::Registry;
use tonic::Code;

use crate::common::version::ETCD_VERSION;
use crate::server::api::backend::Backend;
use crate::server::api::methods;
use crate::server::api::methods::Method;
use crate::server::metrics::buckets;
use crate::server::metrics::counter;
use crate::server::metrics::counter_vec;
use crate::server::metrics::gauge;
use crate::server::metrics::gauge_vec;
use crate::server::metrics::histogram;
use crate::server::metrics::histogram_vec;

/// gRPC codes in the words of the label `grpc_code`, by number.
const CODE_NAMES: [&str; 17] = [
    "OK",
    "Canceled",
    "Unknown",
    "InvalidArgument",
    "DeadlineExceeded",
    "NotFound",
    "AlreadyExists",
    "PermissionDenied",
    "ResourceExhausted",
    "FailedPrecondition",
    "Aborted",
    "OutOfRange",
    "Unimplemented",
    "Internal",
    "Unavailable",
    "DataLoss",
    "Unauthenticated",
];

/// Time of a request by type and outcome.
#[derive(Clone, Debug)]
pub struct RequestMetrics {
    requests: HistogramVec,
    ranges: HistogramVec,
    frequent: Arc<Frequent>,
    hashes: Histogram,
    hashes_by_revision: Histogram,
}

/// Series of what there is most of, looked up at its first request: before that etcd shows none.
#[derive(Debug, Default)]
struct Frequent {
    put: OnceLock<Histogram>,
    range: OnceLock<Histogram>,
    range_itself: OnceLock<Histogram>,
}

impl RequestMetrics {
    pub fn register(registry: &Registry) -> RequestMetrics {
        RequestMetrics {
            requests: histogram_vec(
                registry,
                "etcd_server_request_duration_seconds",
                "Response latency distribution in seconds for each type.",
                buckets(0.001, 2.0, 14),
                &["type", "success"],
            ),
            ranges: histogram_vec(
                registry,
                "etcd_server_range_duration_seconds",
                "The latency distributions of txn.Range",
                buckets(0.0001, 2.0, 20),
                &["success"],
            ),
            frequent: Arc::default(),
            hashes: histogram(
                registry,
                "etcd_mvcc_hash_duration_seconds",
                "The latency distribution of storage hash operation.",
                buckets(0.01, 2.0, 15),
            ),
            hashes_by_revision: histogram(
                registry,
                "etcd_mvcc_hash_rev_duration_seconds",
                "The latency distribution of storage hash by revision operation.",
                buckets(0.01, 2.0, 15),
            ),
        }
    }

    pub fn observe(&self, kind: &str, took: Duration, success: bool) {
        let series = || self.requests.with_label_values(&[kind, bool_label(success)]);
        let seconds = took.as_secs_f64();
        match (kind, success) {
            ("Put", true) => self.frequent.put.get_or_init(series).observe(seconds),
            ("Range", true) => self.frequent.range.get_or_init(series).observe(seconds),
            _ => series().observe(seconds),
        }
    }

    pub fn observe_hash(&self, took: Duration) {
        self.hashes.observe(took.as_secs_f64());
    }

    pub fn observe_hash_by_revision(&self, took: Duration) {
        self.hashes_by_revision.observe(took.as_secs_f64());
    }

    pub fn observe_range(&self, took: Duration, success: bool) {
        let series = || self.ranges.with_label_values(&[bool_label(success)]);
        match success {
            true => self.frequent.range_itself.get_or_init(series).observe(took.as_secs_f64()),
            false => series().observe(took.as_secs_f64()),
        }
        self.observe("Range", took, success);
    }
}

fn bool_label(value: bool) -> &'static str {
    if value { "true" } else { "false" }
}

/// Counters of one gRPC method, looked up once.
#[derive(Debug)]
pub struct MethodMetrics {
    pub started: IntCounter,
    pub received: IntCounter,
    pub sent: IntCounter,
    handled: Vec<IntCounter>,
    handling: Option<Histogram>,
}

impl MethodMetrics {
    pub fn finished(&self, code: Code, took: Duration) {
        if let Some(counter) = self.handled.get(code as usize) {
            counter.inc();
        }
        if let Some(handling) = &self.handling {
            handling.observe(took.as_secs_f64());
        }
    }
}

/// Counters of every gRPC call (names of grpc-prometheus).
#[derive(Debug)]
pub struct GrpcMetrics {
    methods: Vec<(Method, OnceLock<Arc<MethodMetrics>>)>,
    started: IntCounterVec,
    received: IntCounterVec,
    sent: IntCounterVec,
    handled: IntCounterVec,
    /// With `--metrics extensive` only.
    handling: Option<HistogramVec>,
    client_requests: IntCounterVec,
    /// The series of the client version that came first: mostly there is no other.
    first_client: OnceLock<(String, IntCounter)>,
    pub received_bytes: IntCounter,
    pub sent_bytes: IntCounter,
}

impl GrpcMetrics {
    /// Zero series for all methods exist at once, but for those of lock and election.
    pub fn register(registry: &Registry, extensive: bool) -> GrpcMetrics {
        let labels = ["grpc_type", "grpc_service", "grpc_method"];
        let with_code = ["grpc_type", "grpc_service", "grpc_method", "grpc_code"];
        let family = |name: &str, help: &str| counter_vec(registry, name, help, &labels);
        let bytes = |name: &str, help: &str| counter(registry, name, help);
        let handled_help = "Total number of RPCs completed on the server, regardless of success or failure.";
        let handling_help =
            "Histogram of response latency (seconds) of gRPC that had been application-level handled by the server.";
        let metrics = GrpcMetrics {
            methods: methods::all().map(|method| (method, OnceLock::new())).collect(),
            started: family("grpc_server_started_total", "Total number of RPCs started on the server."),
            received: family(
                "grpc_server_msg_received_total",
                "Total number of RPC stream messages received on the server.",
            ),
            sent: family("grpc_server_msg_sent_total", "Total number of gRPC stream messages sent by the server."),
            handled: counter_vec(registry, "grpc_server_handled_total", handled_help, &with_code),
            handling: extensive.then(|| {
                let buckets = prometheus::DEFAULT_BUCKETS.to_vec();
                histogram_vec(registry, "grpc_server_handling_seconds", handling_help, buckets, &labels)
            }),
            first_client: OnceLock::new(),
            client_requests: counter_vec(
                registry,
                "etcd_server_client_requests_total",
                "The total number of client requests per client version.",
                &["type", "client_api_version"],
            ),
            received_bytes: bytes(
                "etcd_network_client_grpc_received_bytes_total",
                "The total number of bytes received from grpc clients.",
            ),
            sent_bytes: bytes(
                "etcd_network_client_grpc_sent_bytes_total",
                "The total number of bytes sent to grpc clients.",
            ),
        };
        for (index, (method, _)) in metrics.methods.iter().enumerate() {
            if method.counts_from_start() {
                metrics.method(index);
            }
        }
        metrics
    }

    /// The counters of the method at this place of the method table.
    pub fn method(&self, index: usize) -> Arc<MethodMetrics> {
        let (method, metrics) = &self.methods[index];
        metrics.get_or_init(|| Arc::new(self.make(method))).clone()
    }

    fn make(&self, method: &Method) -> MethodMetrics {
        let labels = [method.kind.label(), method.service, method.name];
        let handled = |code: &&str| self.handled.with_label_values(&[labels[0], labels[1], labels[2], code]);
        MethodMetrics {
            started: self.started.with_label_values(&labels),
            received: self.received.with_label_values(&labels),
            sent: self.sent.with_label_values(&labels),
            handled: CODE_NAMES.iter().map(handled).collect(),
            handling: self.handling.as_ref().map(|handling| handling.with_label_values(&labels)),
        }
    }

    pub fn count_client(&self, unary: bool, client_api_version: &str) {
        let kind = if unary { "unary" } else { "stream" };
        if unary {
            let series = || self.client_requests.with_label_values(&[kind, client_api_version]);
            let (version, counter) = self.first_client.get_or_init(|| (client_api_version.to_owned(), series()));
            if version == client_api_version {
                counter.inc();
                return;
            }
        }
        self.client_requests.with_label_values(&[kind, client_api_version]).inc();
    }
}

/// What the HTTP side counts.
#[derive(Clone, Debug)]
pub struct HttpMetrics {
    pub health_success: IntCounter,
    pub health_failures: IntCounter,
    pub check_last: IntGaugeVec,
    pub check_total: IntCounterVec,
    pub scrapes: IntCounterVec,
    pub scrapes_in_flight: IntGauge,
}

impl HttpMetrics {
    pub fn register(registry: &Registry) -> HttpMetrics {
        let metrics = HttpMetrics {
            health_success: counter(
                registry,
                "etcd_server_health_success",
                "The total number of successful health checks",
            ),
            health_failures: counter(
                registry,
                "etcd_server_health_failures",
                "The total number of failed health checks",
            ),
            check_last: gauge_vec(
                registry,
                "etcd_server_healthcheck",
                "The result of each kind of healthcheck.",
                &["type", "name"],
            ),
            check_total: counter_vec(
                registry,
                "etcd_server_healthchecks_total",
                "The total number of each kind of healthcheck.",
                &["type", "name", "status"],
            ),
            scrapes: counter_vec(
                registry,
                "promhttp_metric_handler_requests_total",
                "Total number of scrapes by HTTP status code.",
                &["code"],
            ),
            scrapes_in_flight: gauge(
                registry,
                "promhttp_metric_handler_requests_in_flight",
                "Current number of scrapes being served.",
            ),
        };
        for code in ["200", "500", "503"] {
            metrics.scrapes.with_label_values(&[code]);
        }
        metrics
    }
}

/// Gauges that describe the member and that no other part keeps. They are set when somebody asks.
#[derive(Debug)]
pub struct MemberMetrics {
    quota: IntGauge,
    db_total: IntGauge,
    db_in_use: IntGauge,
    current_revision: IntGauge,
    compact_revision: IntGauge,
}

impl MemberMetrics {
    pub fn register(registry: &Registry, backend: &dyn Backend) -> MemberMetrics {
        let one = |name: &str, help: &str| gauge(registry, name, help);
        let constant = |name: &str, help: &str, label: &str, value: &str| {
            gauge_vec(registry, name, help, &[label]).with_label_values(&[value]).set(1);
        };
        constant(
            "etcd_server_id",
            "Server or member ID in hexadecimal format. 1 for 'server_id' label with current ID.",
            "server_id",
            &backend.identity().member.to_string(),
        );
        constant(
            "etcd_server_version",
            "Which version is running. 1 for 'server_version' label with current version.",
            "server_version",
            ETCD_VERSION,
        );
        MemberMetrics {
            quota: one("etcd_server_quota_backend_bytes", "Current backend storage quota size in bytes."),
            db_total: one(
                "etcd_mvcc_db_total_size_in_bytes",
                "Total size of the underlying database physically allocated in bytes.",
            ),
            db_in_use: one(
                "etcd_mvcc_db_total_size_in_use_in_bytes",
                "Total size of the underlying database logically in use in bytes.",
            ),
            current_revision: one("etcd_debugging_mvcc_current_revision", "The current revision of store."),
            compact_revision: one(
                "etcd_debugging_mvcc_compact_revision",
                "The revision of the last compaction in store.",
            ),
        }
    }

    /// Sets every gauge from the member.
    pub fn refresh(&self, backend: &dyn Backend) {
        let sizes = backend.sizes();
        self.quota.set(backend.limits().quota_shown());
        self.db_total.set(sizes.allocated);
        self.db_in_use.set(sizes.in_use);
        self.current_revision.set(backend.revision());
        self.compact_revision.set(backend.compact_revision());
    }
}

//! What applying counts, by etcd's names (server.md 11).

use std::time::Duration;

use prometheus::Histogram;
use prometheus::HistogramOpts;
use prometheus::HistogramVec;
use prometheus::IntCounter;
use prometheus::IntGauge;
use prometheus::IntGaugeVec;
use prometheus::Opts;
use prometheus::exponential_buckets;

use crate::common::ids::MemberId;
use crate::common::version::Version;
use crate::proto::etcdserverpb::AlarmType;
use crate::server::apply::alarm::Alarms;
use crate::server::apply::outcome::Outcome;
use crate::server::apply::outcome::Reply;
use crate::server::cluster::membership::Membership;

/// Handles of the apply thread.
#[derive(Clone)]
pub struct ApplyMetrics {
    durations: HistogramVec,
    /// Resolved for the request that there are most of.
    put_success: Histogram,
    slow: IntCounter,
    alarms: IntGaugeVec,
    cluster_version: IntGaugeVec,
    is_learner: IntGauge,
    snapshot_in_progress: IntGauge,
}

impl ApplyMetrics {
    pub fn register(registry: &prometheus::Registry) -> ApplyMetrics {
        let buckets = exponential_buckets(0.0001, 2.0, 20).expect("ascending");
        let durations = HistogramOpts::new(
            "etcd_server_apply_duration_seconds",
            "The latency distributions of v2 apply called by backend.",
        );
        let durations = HistogramVec::new(durations.buckets(buckets), &["version", "op", "success"]);
        let durations = durations.expect("a valid name");
        let slow = IntCounter::new(
            "etcd_server_slow_apply_total",
            "The total number of slow apply requests (likely overloaded from slow disk).",
        );
        let alarms = Opts::new(
            "etcd_debugging_server_alarms",
            "Alarms for every member in cluster. 1 for 'server_id' label with current ID. 2 for 'alarm_type' label \
             with type of this alarm",
        );
        let cluster_version = Opts::new(
            "etcd_cluster_version",
            "Which version is running. 1 for 'cluster_version' label with current cluster version",
        );
        let gauge = |name: &str, help: &str| IntGauge::new(name, help).expect("a valid name");
        let metrics = ApplyMetrics {
            put_success: durations.with_label_values(&["v3", "Put", "true"]),
            durations,
            slow: slow.expect("a valid name"),
            alarms: IntGaugeVec::new(alarms, &["server_id", "alarm_type"]).expect("a valid name"),
            cluster_version: IntGaugeVec::new(cluster_version, &["cluster_version"]).expect("a valid name"),
            is_learner: gauge(
                "etcd_server_is_learner",
                "Whether or not this member is a learner. 1 if is, 0 otherwise.",
            ),
            snapshot_in_progress: gauge(
                "etcd_server_snapshot_apply_in_progress_total",
                "1 if the server is applying the incoming snapshot. 0 if none.",
            ),
        };
        registry.register(Box::new(metrics.durations.clone())).expect("registered once");
        registry.register(Box::new(metrics.slow.clone())).expect("registered once");
        registry.register(Box::new(metrics.alarms.clone())).expect("registered once");
        registry.register(Box::new(metrics.cluster_version.clone())).expect("registered once");
        registry.register(Box::new(metrics.is_learner.clone())).expect("registered once");
        registry.register(Box::new(metrics.snapshot_in_progress.clone())).expect("registered once");
        metrics
    }

    /// An entry was applied in `elapsed`; `slow_after` zero counts none as slow.
    pub(super) fn applied(&self, outcome: &Outcome, elapsed: Duration, slow_after: Duration) {
        let seconds = elapsed.as_secs_f64();
        match &outcome.result {
            Ok(Reply::Put(_)) => self.put_success.observe(seconds),
            Ok(reply) => self.durations.with_label_values(&["v3", op(reply), "true"]).observe(seconds),
            Err(_) => self.durations.with_label_values(&["v3", "", "false"]).observe(seconds),
        }
        if !slow_after.is_zero() && elapsed > slow_after {
            self.slow.inc();
            tracing::warn!(request = outcome.request_id, ?elapsed, "applying a request took too long");
        }
    }

    pub(super) fn alarms_changed(&self, alarms: &Alarms) {
        self.alarms.reset();
        for alarm in alarms.list(AlarmType::None as i32) {
            let name = AlarmType::try_from(alarm.alarm).map_or("UNKNOWN", |r#type| r#type.as_str_name());
            self.alarms.with_label_values(&[MemberId(alarm.member_id).to_string().as_str(), name]).set(1);
        }
    }

    pub(super) fn cluster_changed(&self, membership: &Membership, local: MemberId) {
        self.is_learner.set(i64::from(membership.member(local).is_some_and(|member| member.is_learner)));
        if let Some(Version { major, minor, .. }) = membership.version() {
            let now = format!("{major}.{minor}");
            // etcd keeps the series of earlier versions at 0.
            for family in prometheus::core::Collector::collect(&self.cluster_version) {
                for metric in family.get_metric() {
                    let old: Vec<&str> = metric.get_label().iter().map(|label| label.value()).collect();
                    self.cluster_version.with_label_values(&old).set(0);
                }
            }
            self.cluster_version.with_label_values(&[now.as_str()]).set(1);
        }
    }

    pub(super) fn installing(&self, in_progress: bool) {
        self.snapshot_in_progress.set(i64::from(in_progress));
    }
}

/// etcd's name of the operation.
fn op(reply: &Reply) -> &'static str {
    match reply {
        Reply::Range(_) => "Range",
        Reply::Put(_) => "Put",
        Reply::DeleteRange(_) => "DeleteRange",
        Reply::Txn(_) => "Txn",
        Reply::Compaction(_) => "Compaction",
        Reply::Alarm(_) => "Alarm",
        Reply::LeaseGrant(_) => "LeaseGrant",
        Reply::LeaseRevoke(_) => "LeaseRevoke",
        Reply::Members(_) | Reply::Done { .. } => "",
    }
}

//! What the raft thread counts, under etcd's names where etcd has one (server.md 11.1).

use prometheus::IntCounter;
use prometheus::IntCounterVec;
use prometheus::IntGauge;
use prometheus::Opts;
use prometheus::Registry;
use prometheus::core::Collector;

use super::state_machine::RaftStatus;
use super::state_machine::Role;
use crate::common::ids::MemberId;

/// Handles of the raft thread's metrics; created once per server.
#[derive(Clone, Debug)]
pub struct RaftMetrics {
    has_leader: IntGauge,
    is_leader: IntGauge,
    is_learner: IntGauge,
    leader_changes: IntCounter,
    committed: IntGauge,
    /// A leader's tick that came more than one interval late.
    pub heartbeat_failures: IntCounter,
    /// Peer messages that were not stepped, by reason.
    pub messages_dropped: IntCounterVec,
}

impl RaftMetrics {
    /// Handles that appear on `registry`'s page. Registering a second set on one registry fails and shows the first.
    pub fn register(registry: &Registry) -> RaftMetrics {
        let metrics = RaftMetrics {
            has_leader: gauge("etcd_server_has_leader", "Whether or not a leader exists. 1 is existence, 0 is not."),
            is_leader: gauge("etcd_server_is_leader", "Whether or not this member is a leader. 1 if is, 0 otherwise."),
            is_learner: gauge(
                "etcd_server_is_learner",
                "Whether or not this member is a learner. 1 if is, 0 otherwise.",
            ),
            leader_changes: counter("etcd_server_leader_changes_seen_total", "The number of leader changes seen."),
            committed: gauge(
                "etcd_server_proposals_committed_total",
                "The total number of consensus proposals committed.",
            ),
            heartbeat_failures: counter(
                "etcd_server_heartbeat_send_failures_total",
                "The total number of leader heartbeat send failures (likely overloaded from slow disk).",
            ),
            messages_dropped: IntCounterVec::new(
                Opts::new("quorate_raft_messages_dropped_total", "Peer messages that did not reach the raft node."),
                &["reason"],
            )
            .expect("the name and the label are valid"),
        };
        let all: [Box<dyn Collector>; 7] = [
            Box::new(metrics.has_leader.clone()),
            Box::new(metrics.is_leader.clone()),
            Box::new(metrics.is_learner.clone()),
            Box::new(metrics.leader_changes.clone()),
            Box::new(metrics.committed.clone()),
            Box::new(metrics.heartbeat_failures.clone()),
            Box::new(metrics.messages_dropped.clone()),
        ];
        for collector in all {
            if let Err(error) = registry.register(collector) {
                tracing::warn!(%error, "raft metric is registered twice");
            }
        }
        metrics
    }

    /// Shows a new status; `leader_before` is the leader of the status before.
    pub fn show(&self, id: MemberId, status: &RaftStatus, is_learner: bool, leader_before: Option<MemberId>) {
        self.has_leader.set(status.leader.is_some().into());
        self.is_leader.set((status.role == Role::Leader && status.leader == Some(id)).into());
        self.is_learner.set(is_learner.into());
        self.committed.set(i64::try_from(status.commit_index).unwrap_or(i64::MAX));
        if status.leader.is_some() && status.leader != leader_before {
            self.leader_changes.inc();
        }
    }
}

fn gauge(name: &str, help: &str) -> IntGauge {
    IntGauge::new(name, help).expect("the name is valid")
}

fn counter(name: &str, help: &str) -> IntCounter {
    IntCounter::new(name, help).expect("the name is valid")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_leader_change_counts_when_a_new_leader_is_seen() {
        let metrics = RaftMetrics::register(&Registry::new());
        let status = |leader| RaftStatus { leader, commit_index: 7, ..RaftStatus::default() };
        metrics.show(MemberId(1), &status(Some(MemberId(2))), true, None);
        metrics.show(MemberId(1), &status(None), true, Some(MemberId(2)));
        metrics.show(MemberId(1), &status(Some(MemberId(2))), true, None);
        metrics.show(MemberId(1), &status(Some(MemberId(2))), true, Some(MemberId(2)));
        assert_eq!((metrics.leader_changes.get(), metrics.committed.get()), (2, 7));
        assert_eq!((metrics.has_leader.get(), metrics.is_leader.get(), metrics.is_learner.get()), (1, 0, 1));
    }
}

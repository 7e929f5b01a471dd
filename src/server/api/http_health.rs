//! `/health`, `/livez` and `/readyz`: can this member serve, in etcd's words (server.md 8.1).

use std::fmt::Write as _;
use std::time::Duration;

use bytes::Bytes;

use crate::proto::etcdserverpb::AlarmType;
use crate::proto::etcdserverpb::RangeRequest;
use crate::server::api::backend::Backend;
use crate::server::api::kv::blocking;
use crate::server::api::metrics::HttpMetrics;

/// What `/health` found: healthy when there is no reason.
#[derive(Debug, PartialEq, Eq)]
pub struct Health {
    pub reason: String,
}

impl Health {
    pub fn is_good(&self) -> bool {
        self.reason.is_empty()
    }

    /// The value of "health" is a string, not a boolean.
    pub fn body(&self) -> String {
        let reason = serde_json::Value::from(self.reason.as_str());
        format!("{{\"health\":\"{}\",\"reason\":{reason}}}", self.is_good())
    }
}

/// Alarms, then leader, then a read. `exclude` names alarm types that do not count.
pub async fn health(backend: &dyn Backend, exclude: &[String], serializable: bool) -> Health {
    let reason = |reason: String| Health { reason };
    for alarm in backend.alarms() {
        let name = alarm_name(alarm.alarm);
        if exclude.contains(&name) {
            continue;
        }
        let known = matches!(AlarmType::try_from(alarm.alarm), Ok(AlarmType::Nospace | AlarmType::Corrupt));
        return reason(format!("ALARM {}", if known { &name } else { "UNKNOWN" }));
    }
    if !serializable && backend.raft_status().leader.is_none() {
        return reason("RAFT NO LEADER".to_owned());
    }
    match probe(backend, serializable).await {
        Ok(()) => reason(String::new()),
        Err(error) => reason(format!("RANGE ERROR:{error}")),
    }
}

/// `NOSPACE`, `CORRUPT`, or the number of a type nobody knows.
pub fn alarm_name(alarm: i32) -> String {
    AlarmType::try_from(alarm).map_or_else(|_| alarm.to_string(), |kind| kind.as_str_name().to_owned())
}

/// Reads one key that need not exist, within RT.
async fn probe(backend: &dyn Backend, serializable: bool) -> Result<(), String> {
    let limit: Duration = backend.limits().request_timeout;
    let read = async {
        if !serializable {
            backend.read_barrier().await?;
        }
        let snapshot = backend.snapshot();
        let request =
            RangeRequest { key: Bytes::from_static(b"\0"), limit: 1, keys_only: true, ..RangeRequest::default() };
        blocking(move || snapshot.range(&request)).await
    };
    match tokio::time::timeout(limit, read).await {
        Ok(Ok(_)) => Ok(()),
        Ok(Err(answer)) => Err(answer.to_string()),
        Err(_) => Err("context deadline exceeded".to_owned()),
    }
}

/// One thing that must hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Check {
    DataCorruption,
    SerializableRead,
    LinearizableRead,
    NonLearner,
}

impl Check {
    pub fn name(self) -> &'static str {
        match self {
            Check::DataCorruption => "data_corruption",
            Check::SerializableRead => "serializable_read",
            Check::LinearizableRead => "linearizable_read",
            Check::NonLearner => "non_learner",
        }
    }

    async fn run(self, backend: &dyn Backend) -> Result<(), String> {
        match self {
            Check::DataCorruption => {
                let corrupt = backend.alarms().iter().any(|alarm| alarm.alarm == AlarmType::Corrupt as i32);
                if corrupt { Err("alarm activated: CORRUPT".to_owned()) } else { Ok(()) }
            }
            Check::SerializableRead => probe(backend, true).await.map_err(|error| format!("range error: {error}")),
            Check::LinearizableRead => probe(backend, false).await.map_err(|error| format!("range error: {error}")),
            Check::NonLearner if backend.is_learner() => Err("not supported for learner".to_owned()),
            Check::NonLearner => Ok(()),
        }
    }
}

/// A root path and what it checks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Probe {
    Livez,
    Readyz,
}

impl Probe {
    pub fn name(self) -> &'static str {
        match self {
            Probe::Livez => "livez",
            Probe::Readyz => "readyz",
        }
    }

    pub fn checks(self) -> &'static [Check] {
        match self {
            Probe::Livez => &[Check::SerializableRead],
            Probe::Readyz => {
                &[Check::DataCorruption, Check::SerializableRead, Check::LinearizableRead, Check::NonLearner]
            }
        }
    }
}

/// Runs checks: whether all held, and a line each.
pub async fn run_checks(
    backend: &dyn Backend,
    metrics: &HttpMetrics,
    probe: Probe,
    checks: &[Check],
) -> (bool, String) {
    let (mut good, mut lines) = (true, String::new());
    for check in checks {
        let result = check.run(backend).await;
        let status = if result.is_ok() { "success" } else { "error" };
        metrics.check_last.with_label_values(&[probe.name(), check.name()]).set(i64::from(result.is_ok()));
        metrics.check_total.with_label_values(&[probe.name(), check.name(), status]).inc();
        let _ = match result {
            Ok(()) => writeln!(lines, "[+]{} ok", check.name()),
            Err(reason) => {
                good = false;
                writeln!(lines, "[-]{} failed: {reason}", check.name())
            }
        };
    }
    (good, lines)
}

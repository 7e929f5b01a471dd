//! The JSON that goes over the project's socket, beside the words in `vocabulary`.
//!
//! ```text
//!  GET  /v1/processes[?quick=true]       Status; quick asks neither the members nor /proc
//!  POST /v1/actions    ActionRequest  ▶  ActionAnswer
//!  GET  /v1/environment?name=web      ▶  list of [key, value]
//!  GET  /v1/logs?name=&tail=&since_ms=&grep=&stderr=&follow=     a LogLine, or {name, lost}, a line
//!  GET  /v1/events?tail=&follow=                                 a journal's Record, or {lost}, a line
//!  GET  /v1/reads                     ▶  ActionAnswer: does every member serve a linearizable read?
//!  POST /v1/links      LinkRequest    ▶  LinkAnswer
//!  POST /v1/chaos      ChaosRequest   ▶  a Progress a line
//!  POST /v1/rolling-restart  RollingRequest  ▶  a Progress a line
//!  POST /v1/members    RosterRequest  ▶  ActionAnswer
//!  POST /v1/reload     ReloadRequest  ▶  a Reloading a line: the plan, then what came of it
//!  POST /v1/end        EndRequest     ▶  null once everything has stopped
//! ```
//!
//! What is refused is answered with a `Refusal` and nothing is done: 400 nonsense, 404 an unknown name or route,
//! 409 nobody has that role now, 413 too long, 422 it cannot be done here, 503 the supervisor is ending.

use std::path::PathBuf;

use serde::Deserialize;
use serde::Serialize;

use crate::supervisor::control::vocabulary::Action;
use crate::supervisor::control::vocabulary::NamedResult;
use crate::supervisor::control::vocabulary::ProcessView;
use crate::supervisor::members::MemberStatus;
use crate::supervisor::procinfo::GroupInfo;
use crate::supervisor::reload::Step;

/// The supervisor itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SupervisorView {
    pub pid: u32,
    pub version: String,
    pub directory: PathBuf,
    pub procfile: PathBuf,
    pub detached: bool,
    pub uptime_ms: u64,
}

/// A process with what /proc and, for a member, the member itself say of it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ProcessStatus {
    #[serde(flatten)]
    pub view: ProcessView,
    pub is_member: bool,
    pub usage: Option<GroupInfo>,
    pub member: Option<MemberStatus>,
    /// Why a member that runs has not answered.
    pub member_error: Option<String>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Status {
    pub supervisor: SupervisorView,
    pub processes: Vec<ProcessStatus>,
}

/// `{"targets": ["leader"], "action": "kill", "signal": 9}`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ActionRequest {
    /// Names, patterns, `all`, roles.
    pub targets: Vec<String>,
    #[serde(flatten)]
    pub action: Action,
    /// Answer once it is asked for, not once it is done.
    #[serde(default)]
    pub no_wait: bool,
    #[serde(default)]
    pub timeout_ms: Option<u64>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ActionAnswer {
    pub results: Vec<NamedResult>,
    /// Something was not done in time.
    #[serde(default)]
    pub timed_out: bool,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LinkAnswer {
    pub text: String,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct EndRequest {
    /// Kill at once.
    #[serde(default)]
    pub force: bool,
}

/// Reads the Procfile, the env files and the settings again.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReloadRequest {
    /// Only tell what would be done.
    #[serde(default)]
    pub dry_run: bool,
}

/// A line of the answer to a reload.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "reload")]
pub enum Reloading {
    Plan {
        steps: Vec<Step>,
        /// Sentences with file and line.
        warnings: Vec<String>,
    },
    /// Not there for a dry run.
    Done { results: Vec<NamedResult> },
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Refusal {
    pub error: String,
}

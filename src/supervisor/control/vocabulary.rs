//! What is said about processes over the supervisor's own socket: the JSON shapes of both sides, and the calls that reach
//! the loop. goreman's RPC has words of its own (`Verb`).

use serde::Deserialize;
use serde::Serialize;
use tokio::sync::mpsc;
use tokio::sync::oneshot;

use crate::supervisor::reload::Definition;
use crate::supervisor::reload::Step;

/// The states that users see (supervisor.md 4.5).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum StateName {
    /// Waits for what it depends on, or for its first start.
    Pending,
    /// Started, and not yet ready by its probe.
    Starting,
    /// Its probe has passed.
    Ready,
    /// Started, and without a probe.
    Running,
    /// Was ready; its probe fails now.
    Unhealthy,
    /// Stopped by SIGSTOP on request.
    Paused,
    /// Asked to end, or its leader has ended and others of it have not.
    Stopping,
    /// Ended, and waits for its next start.
    Backoff,
    /// Ended, and well.
    Exited,
    /// Ended badly, could not be started, or was not ready in time; nothing more is tried.
    Failed,
    /// Ended too often; nothing more is tried until somebody starts it.
    Flapping,
    /// Not chosen to be started.
    Disabled,
}

/// How a process last ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LastExit {
    pub code: Option<i32>,
    /// The number of the signal that ended it.
    pub signal: Option<i32>,
    /// We had asked for it: a stop, a restart, a kill.
    pub asked: bool,
    /// Who asked, where known (`pid 123`).
    pub by: Option<String>,
    pub ago_ms: u64,
}

/// One process as the loop knows it. Times are milliseconds of the monotonic clock.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProcessView {
    pub name: String,
    /// Place in the Procfile, from 0.
    pub place: usize,
    pub command: String,
    pub state: StateName,
    /// How long it has been in that state.
    pub state_ms: u64,
    /// Whether it should be up.
    pub wanted: bool,
    /// The group, which is the pid of the child that was started, while any of it lives.
    pub group: Option<i32>,
    pub uptime_ms: Option<u64>,
    /// From start to ready, of this start.
    pub ready_after_ms: Option<u64>,
    /// Since its probe has passed for the first time in this start.
    #[serde(default)]
    pub ready_ms: Option<u64>,
    /// Starts after the first, whoever asked for them.
    pub restarts: u64,
    pub last_exit: Option<LastExit>,
    /// Until the next start, in `backoff`.
    pub next_start_ms: Option<u64>,
    pub port: Option<u64>,
    /// What it waits for, or why it failed.
    pub why: Option<String>,
}

/// What may be done to processes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "action")]
pub enum Action {
    Start,
    Stop,
    /// `delay_ms` lies between the end and the new start; `clean` removes the data directory in between.
    Restart {
        #[serde(default)]
        delay_ms: u64,
        #[serde(default)]
        clean: bool,
    },
    /// A signal to the whole group, or to its leader alone. With `stay_down` the restart policy is not asked.
    Kill {
        signal: i32,
        #[serde(default)]
        leader_only: bool,
        #[serde(default)]
        stay_down: bool,
    },
    /// SIGSTOP to the group; SIGCONT after `for_ms`, if given.
    Pause {
        #[serde(default)]
        for_ms: Option<u64>,
    },
    Resume,
}

/// Who asks.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Requester {
    pub pid: Option<i32>,
    pub uid: Option<u32>,
}

/// What came of an action for one process.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NamedResult {
    pub name: String,
    pub ok: bool,
    /// What was done, or why it was not.
    pub text: String,
}

/// What reaches the loop from the socket. Names are whole and known: patterns and roles are resolved before.
#[derive(Debug)]
pub enum Call {
    Views {
        answer: oneshot::Sender<Vec<ProcessView>>,
    },
    Act {
        action: Action,
        names: Vec<String>,
        by: Requester,
        answer: oneshot::Sender<Vec<NamedResult>>,
    },
    /// These are all processes from now on; with `dry_run` they would be. `plan` is answered first, `answer` when the plan
    /// is carried out.
    Reload {
        definitions: Vec<Definition>,
        dry_run: bool,
        by: Requester,
        plan: oneshot::Sender<Result<Vec<Step>, String>>,
        answer: oneshot::Sender<Vec<NamedResult>>,
    },
    /// From the next start on these words stand behind its command.
    Append {
        name: String,
        words: Option<String>,
        answer: oneshot::Sender<()>,
    },
    /// Stops everything and ends the supervisor; `force` kills at once. Answered when everything has stopped.
    End {
        force: bool,
        by: Requester,
        answer: oneshot::Sender<()>,
    },
}

/// The way to the loop for everything in this process that is not the loop.
#[derive(Clone, Debug)]
pub struct Handle(mpsc::Sender<Call>);

/// The loop has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the supervisor is ending")]
pub struct Ending;

impl Handle {
    pub fn new(calls: mpsc::Sender<Call>) -> Handle {
        Handle(calls)
    }

    pub async fn views(&self) -> Result<Vec<ProcessView>, Ending> {
        self.call(|answer| Call::Views { answer }).await
    }

    pub async fn act(&self, action: Action, names: Vec<String>, by: Requester) -> Result<Vec<NamedResult>, Ending> {
        self.call(|answer| Call::Act { action, names, by, answer }).await
    }

    /// Asks without waiting for what comes of it.
    pub async fn tell(&self, action: Action, names: Vec<String>, by: Requester) -> Result<(), Ending> {
        let (answer, _unheard) = oneshot::channel();
        self.0.send(Call::Act { action, names, by, answer }).await.map_err(|_| Ending)
    }

    /// The plan of a reload, and where its results come; or why nothing is done.
    pub async fn reload(
        &self,
        definitions: Vec<Definition>,
        dry_run: bool,
        by: Requester,
    ) -> Result<Result<(Vec<Step>, oneshot::Receiver<Vec<NamedResult>>), String>, Ending> {
        let (answer, results) = oneshot::channel();
        let planned = self.call(|plan| Call::Reload { definitions, dry_run, by, plan, answer }).await?;
        Ok(planned.map(|steps| (steps, results)))
    }

    /// Lets these words stand behind a process's command, from its next start on.
    pub async fn append(&self, name: String, words: Option<String>) -> Result<(), Ending> {
        self.call(|answer| Call::Append { name, words, answer }).await
    }

    pub async fn end(&self, force: bool, by: Requester) -> Result<(), Ending> {
        self.call(|answer| Call::End { force, by, answer }).await
    }

    async fn call<T>(&self, call: impl FnOnce(oneshot::Sender<T>) -> Call) -> Result<T, Ending> {
        let (answer, answered) = oneshot::channel();
        self.0.send(call(answer)).await.map_err(|_| Ending)?;
        answered.await.map_err(|_| Ending)
    }
}

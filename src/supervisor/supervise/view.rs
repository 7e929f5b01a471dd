//! What the loop tells of its processes.

use std::time::Instant;

use nix::unistd::Pid;

use crate::supervisor::control::vocabulary::LastExit;
use crate::supervisor::control::vocabulary::ProcessView;
use crate::supervisor::control::vocabulary::StateName;
use crate::supervisor::process::Exit;
use crate::supervisor::process::Last;
use crate::supervisor::process::State;
use crate::supervisor::process::millis;
use crate::supervisor::supervise::Slot;
use crate::supervisor::supervise::Supervisor;

impl Supervisor {
    pub(super) fn views(&self) -> Vec<ProcessView> {
        let now = Instant::now();
        let slots = self.listed().into_iter().map(|index| &self.slots[index]);
        slots.filter(|slot| !slot.shadowed).map(|slot| slot.view(now)).collect()
    }
}

impl Slot {
    pub(super) fn view(&self, now: Instant) -> ProcessView {
        let process = &self.process;
        let alive = process.is_alive();
        let restart_due = self.restart_due();
        let next_start = process.next_start.or(restart_due).map(|due| millis(due.saturating_duration_since(now)));
        let ready = process.ready_at.zip(process.started_at).filter(|_| alive);
        ProcessView {
            name: process.name.clone(),
            place: self.definition.place,
            command: self.definition.command.clone(),
            // Between the two halves of a restart it waits for its next start.
            state: if restart_due.is_some() { StateName::Backoff } else { process.state_name() },
            state_ms: millis(now.saturating_duration_since(process.since)),
            wanted: process.wanted || self.is_to_start(),
            group: self.group.filter(|_| alive).map(Pid::as_raw),
            uptime_ms: process
                .started_at
                .filter(|_| alive)
                .map(|started| millis(now.saturating_duration_since(started))),
            ready_after_ms: ready.map(|(ready, started)| millis(ready.saturating_duration_since(started))),
            ready_ms: ready.map(|(ready, _)| millis(now.saturating_duration_since(ready))),
            restarts: process.generation.saturating_sub(1),
            last_exit: process.last.as_ref().map(|last| last_exit(last, now)),
            next_start_ms: next_start,
            port: self.definition.port,
            why: self.why(),
        }
    }

    fn why(&self) -> Option<String> {
        match self.process.state() {
            State::Draining(exit) => Some(format!("its leader has ended ({exit}), others of it have not")),
            _ => self.process.why.clone(),
        }
    }
}

fn last_exit(last: &Last, now: Instant) -> LastExit {
    let (code, signal) = match last.exit {
        Exit::Code(code) => (Some(code), None),
        Exit::Signal(signal) => (None, Some(signal)),
    };
    let ago_ms = millis(now.saturating_duration_since(last.at));
    LastExit { code, signal, asked: last.asked, by: last.by.clone(), ago_ms }
}

/// A state as it is written everywhere.
pub(super) fn state_words(state: StateName) -> String {
    match serde_json::to_value(state) {
        Ok(serde_json::Value::String(word)) => word,
        _ => format!("{state:?}"),
    }
}

//! What is asked for over our own socket: a queue of tasks a process, so that nobody waits for another process.
//!
//! Signals (kill, pause, resume) act at once. Start, stop and restart wait for their turn, and each name is answered by
//! itself; the call is answered when all of its names are. A stop ends what was to be started: the last word counts.

use std::collections::VecDeque;
use std::path::Path;
use std::path::PathBuf;
use std::time::Duration;
use std::time::Instant;

use nix::sys::signal::Signal;
use nix::unistd::Pid;
use tokio::sync::oneshot;

use crate::supervisor::child::Event;
use crate::supervisor::child::Happened;
use crate::supervisor::control::vocabulary::Action;
use crate::supervisor::control::vocabulary::Call;
use crate::supervisor::control::vocabulary::NamedResult;
use crate::supervisor::control::vocabulary::Requester;
use crate::supervisor::journal::What;
use crate::supervisor::process::Input;
use crate::supervisor::process::State;
use crate::supervisor::supervise::Slot;
use crate::supervisor::supervise::Supervisor;

/// Tasks that may wait for one process. More are refused.
const TASKS_MAX: usize = 64;

/// What comes of one call, name by name.
#[derive(Debug)]
pub struct Answers {
    answer: oneshot::Sender<Vec<NamedResult>>,
    results: Vec<Option<NamedResult>>,
}

/// Where the result of a task goes: which call, and the how-manieth of its names.
#[derive(Clone, Copy, Debug)]
pub(super) struct Place {
    pub(super) call: u64,
    pub(super) at: usize,
}

/// Something that takes time.
#[derive(Debug)]
pub struct Task {
    place: Place,
    kind: Kind,
    stage: Stage,
    by: Option<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Start,
    Stop,
    Restart {
        delay: Duration,
        clean: bool,
    },
    /// Waits for the end of the leader of this start, to which SIGKILL was sent.
    Death(u64),
    /// Of a reload: started when nobody is left who leaves.
    Enter,
    /// Of a reload: stopped, and gone.
    Retire,
    /// Of a reload: stopped, made what it is to be, and started unless a later stop came.
    Renew {
        start: bool,
    },
}

/// How far it is.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Stage {
    New,
    Stopping,
    /// Down, until `due`; with the data directory to be removed first, while `clean` is `None`.
    Down {
        due: Instant,
        clean: Option<Result<(), String>>,
    },
    /// Its start was asked for.
    Started,
}

impl Slot {
    /// When a restart will start it, if one is between its halves.
    pub(super) fn restart_due(&self) -> Option<Instant> {
        match self.tasks.front().map(|task| &task.stage) {
            Some(Stage::Down { due, .. }) if self.process.is_down() => Some(*due),
            _ => None,
        }
    }

    /// Whether somebody wants it to be started in the end.
    pub(super) fn is_to_start(&self) -> bool {
        self.tasks.iter().rev().find_map(|task| match task.kind {
            Kind::Start | Kind::Restart { .. } | Kind::Enter => Some(true),
            Kind::Renew { start } => Some(start),
            Kind::Stop | Kind::Retire => Some(false),
            Kind::Death(_) => None,
        }) == Some(true)
    }

    /// Whether somebody wants it to be down.
    pub(super) fn is_to_stop(&self) -> bool {
        self.tasks.iter().any(|task| task.kind == Kind::Stop)
    }

    /// Whether a reload has something to do with it.
    pub(super) fn is_reloading(&self) -> bool {
        self.tasks.iter().any(|task| matches!(task.kind, Kind::Enter | Kind::Retire | Kind::Renew { .. }))
    }

    /// Whether a reload waits for it to be down.
    pub(super) fn is_leaving(&self) -> bool {
        self.tasks.iter().any(|task| match task.kind {
            Kind::Retire => true,
            Kind::Renew { .. } => task.stage != Stage::Started,
            _ => false,
        })
    }
}

fn requester(by: &Requester) -> Option<String> {
    by.pid.map(|pid| format!("pid {pid}"))
}

impl Supervisor {
    pub(super) fn take_call(&mut self, call: Call) {
        match call {
            // Whoever asked may have hung up: then nobody is told.
            Call::Views { answer } => drop(answer.send(self.views())),
            Call::Act { action, names, by, answer } => self.act(&action, &names, &by, answer),
            Call::Append { name, words, answer } => {
                if let Some(index) = self.find(&name) {
                    self.slots[index].appended = words;
                }
                // Whoever asked may have hung up.
                let _ = answer.send(());
            }
            Call::Reload { definitions, dry_run, by, plan, answer } => {
                self.reload(definitions, dry_run, &by, plan, answer);
            }
            Call::End { force, by, answer } => {
                self.farewells.push(answer);
                let asked = requester(&by).map_or("asked".to_owned(), |who| format!("asked by {who}"));
                if !self.ending {
                    self.ended.asked = true;
                }
                self.end(Signal::SIGTERM, &asked);
                if force {
                    self.kill_all();
                }
            }
        }
    }

    fn act(&mut self, action: &Action, names: &[String], by: &Requester, answer: oneshot::Sender<Vec<NamedResult>>) {
        let call = self.open_call(answer, names.len());
        for (at, name) in names.iter().enumerate() {
            let place = Place { call, at };
            match self.find(name) {
                None => self.resolve(place, name, Err(format!("no process is named \"{name}\""))),
                Some(_) if self.ending => self.resolve(place, name, Err("the supervisor is ending".to_owned())),
                Some(index) => self.act_on(index, place, action, by),
            }
        }
    }

    /// Somebody waits for so many results.
    pub(super) fn open_call(&mut self, answer: oneshot::Sender<Vec<NamedResult>>, count: usize) -> u64 {
        let call = self.answers.last_key_value().map_or(0, |(last, _)| last.wrapping_add(1));
        self.answers.insert(call, Answers { answer, results: vec![None; count] });
        if count == 0 {
            self.close(call);
        }
        call
    }

    fn act_on(&mut self, index: usize, place: Place, action: &Action, by: &Requester) {
        let name = self.slots[index].process.name.clone();
        let words = serde_json::to_string(action).unwrap_or_default();
        self.journal.record(Some(&name), What::Request { action: words, by: by.clone() });
        let kind = match action {
            Action::Start => Kind::Start,
            Action::Stop => Kind::Stop,
            Action::Restart { delay_ms, clean } => {
                Kind::Restart { delay: Duration::from_millis(*delay_ms), clean: *clean }
            }
            Action::Kill { signal, leader_only, stay_down } => {
                return self.kill(index, place, (*signal, *leader_only, *stay_down), by);
            }
            Action::Pause { for_ms } => {
                let result = self.pause(index, for_ms.map(Duration::from_millis));
                return self.resolve(place, &name, result);
            }
            Action::Resume => {
                let paused = self.slots[index].process.is_paused();
                self.slots[index].pauses += 1;
                self.step_now(index, Input::Resume);
                let result = if paused { Ok("resumed".to_owned()) } else { Err("is not paused".to_owned()) };
                return self.resolve(place, &name, result);
            }
        };
        if kind == Kind::Stop {
            self.drop_tasks(index, "a later stop came first");
        }
        if self.slots[index].tasks.len() >= TASKS_MAX {
            return self.resolve(place, &name, Err("too much is waiting to be done with it".to_owned()));
        }
        self.push_task(index, place, kind, by);
    }

    pub(super) fn push_task(&mut self, index: usize, place: Place, kind: Kind, by: &Requester) {
        let task = Task { place, kind, stage: Stage::New, by: requester(by) };
        self.slots[index].tasks.push_back(task);
    }

    /// Gives up what was to be done with a process, but for stops.
    pub(super) fn drop_tasks(&mut self, index: usize, why: &str) {
        let tasks = std::mem::take(&mut self.slots[index].tasks);
        let (kept, dropped): (VecDeque<Task>, VecDeque<Task>) =
            tasks.into_iter().partition(|task| !matches!(task.kind, Kind::Start | Kind::Restart { .. } | Kind::Enter));
        self.slots[index].tasks = kept;
        for task in &mut self.slots[index].tasks {
            if let Kind::Renew { start } = &mut task.kind {
                *start = false;
            }
        }
        let name = self.slots[index].process.name.clone();
        for task in dropped {
            self.resolve(task.place, &name, Err(why.to_owned()));
        }
    }

    fn kill(&mut self, index: usize, place: Place, how: (i32, bool, bool), by: &Requester) {
        let (number, leader_only, stay_down) = how;
        let name = self.slots[index].process.name.clone();
        let Ok(signal) = Signal::try_from(number) else {
            return self.resolve(place, &name, Err(format!("there is no signal {number}")));
        };
        if stay_down {
            self.drop_tasks(index, "it was killed to stay down");
        }
        let process = &self.slots[index].process;
        if !process.is_alive() || (leader_only && !process.has_leader()) {
            let waits = process.state() == State::Backoff && stay_down;
            if waits {
                self.step_now(index, Input::Kill);
            }
            let result = if waits { Ok("is not started again".to_owned()) } else { Err("is not running".to_owned()) };
            return self.resolve(place, &name, result);
        }
        let generation = process.generation;
        self.step_now(index, Input::Send { signal, leader_only, stay_down, by: requester(by) });
        if signal == Signal::SIGKILL && self.slots[index].process.has_leader() {
            let task = Task { place, kind: Kind::Death(generation), stage: Stage::New, by: None };
            // In front: it is over soon, and nothing else can happen before.
            self.slots[index].tasks.push_front(task);
            return;
        }
        let group = self.slots[index].group.map_or(0, Pid::as_raw);
        let whom = if leader_only { format!("pid {group}") } else { format!("group {group}") };
        self.resolve(place, &name, Ok(format!("{} sent to {whom}", signal.as_str())));
    }

    fn pause(&mut self, index: usize, span: Option<Duration>) -> Result<String, String> {
        let slot = &mut self.slots[index];
        match slot.process.state() {
            State::Up(_) => {}
            _ => return Err("is not running".to_owned()),
        }
        let again = slot.process.is_paused();
        slot.pauses += 1;
        let pause = slot.pauses;
        self.step_now(index, Input::Pause);
        if let Some(span) = span {
            self.arm(index, span, Happened::PauseOver(pause));
        }
        let length = span.map(|span| format!(" for {span:?}")).unwrap_or_default();
        Ok(format!("{}paused{length}", if again { "still " } else { "" }))
    }

    /// Sets the result for one name; the call is answered with the last of them.
    pub(super) fn resolve(&mut self, place: Place, name: &str, result: Result<String, String>) {
        let Some(answers) = self.answers.get_mut(&place.call) else { return };
        let (ok, text) = match result {
            Ok(text) => (true, text),
            Err(text) => (false, text),
        };
        answers.results[place.at] = Some(NamedResult { name: name.to_owned(), ok, text });
        if answers.results.iter().all(Option::is_some) {
            self.close(place.call);
        }
    }

    fn close(&mut self, call: u64) {
        if let Some(answers) = self.answers.remove(&call) {
            // Whoever asked may have hung up.
            let _ = answers.answer.send(answers.results.into_iter().flatten().collect());
        }
    }

    /// At the end nothing more is done but to stop.
    pub(super) fn give_up_actions(&mut self) {
        for index in 0..self.slots.len() {
            self.drop_tasks(index, "the supervisor is ending");
        }
    }

    pub(super) fn advance_actions(&mut self) {
        for index in 0..self.slots.len() {
            while let Some(mut task) = self.slots[index].tasks.pop_front() {
                let Some(result) = self.advance_task(index, &mut task) else {
                    self.slots[index].tasks.push_front(task);
                    break;
                };
                let name = self.slots[index].process.name.clone();
                self.resolve(task.place, &name, result);
            }
        }
    }

    /// Moves a task as far as it goes: its result, once it is done.
    fn advance_task(&mut self, index: usize, task: &mut Task) -> Option<Result<String, String>> {
        match task.kind {
            Kind::Start => self.try_start(index, task),
            Kind::Enter if task.stage == Stage::New && self.is_anybody_leaving() => None,
            Kind::Enter => self.try_start(index, task),
            Kind::Retire => {
                let stopped = self.try_stop(index, task)?;
                self.retire(index);
                Some(stopped.map(|text| format!("{text}, and gone")))
            }
            Kind::Renew { start } => self.try_renew(index, task, start),
            Kind::Stop => self.try_stop(index, task),
            Kind::Restart { delay, clean } => self.try_restart(index, task, delay, clean),
            Kind::Death(generation) => {
                let process = &self.slots[index].process;
                let dead = process.generation != generation || !process.has_leader();
                dead.then(|| Ok("killed".to_owned()))
            }
        }
    }

    fn try_start(&mut self, index: usize, task: &mut Task) -> Option<Result<String, String>> {
        if task.stage != Stage::Started {
            match self.slots[index].process.state() {
                State::Stopping(_) | State::Finishing(_) => return None,
                State::Draining(exit) => {
                    let text = format!("its leader has ended ({exit}), others of it have not: stop or restart it");
                    return Some(Err(text));
                }
                State::Starting | State::Up(_) => return Some(Ok("was running".to_owned())),
                State::Waiting | State::Preparing(_) => {}
                State::Down(_) | State::Backoff => self.step_now(index, Input::Start),
            }
            task.stage = Stage::Started;
        }
        let slot = &self.slots[index];
        let why = slot.process.why.clone();
        Some(match slot.process.state() {
            // Whether it starts is not known yet.
            State::Preparing(_) => return None,
            State::Down(_) | State::Backoff => Err(why.unwrap_or_else(|| "has ended at once".to_owned())),
            State::Waiting => Ok(why.unwrap_or_else(|| "waits".to_owned())),
            _ => Ok(slot.group.map_or("started".to_owned(), |group| format!("started, pid {group}"))),
        })
    }

    fn try_stop(&mut self, index: usize, task: &mut Task) -> Option<Result<String, String>> {
        if task.stage == Stage::New {
            if self.slots[index].process.is_down() {
                return Some(Ok("was not running".to_owned()));
            }
            self.ask_to_stop(index, task);
        }
        let process = &self.slots[index].process;
        let ended = || process.last.as_ref().map_or("stopped".to_owned(), |last| format!("stopped ({})", last.exit));
        process.is_down().then(|| Ok(ended()))
    }

    fn ask_to_stop(&mut self, index: usize, task: &mut Task) {
        task.stage = Stage::Stopping;
        let signal = self.stop_signal(index);
        self.step_now(index, Input::Stop { signal, by: task.by.clone() });
    }

    fn try_renew(&mut self, index: usize, task: &mut Task, start: bool) -> Option<Result<String, String>> {
        if task.stage != Stage::Started {
            let was_down = task.stage == Stage::New && self.slots[index].process.is_down();
            if !was_down && self.try_stop(index, task).is_none() || self.is_anybody_leaving() {
                return None;
            }
            if let Some(definition) = self.slots[index].next.take() {
                self.slots[index].define(definition);
                self.slots[index].appended = None;
            }
            if !start {
                return Some(Ok("changed, and stays stopped".to_owned()));
            }
        }
        self.try_start(index, task)
    }

    fn try_restart(
        &mut self,
        index: usize,
        task: &mut Task,
        delay: Duration,
        clean: bool,
    ) -> Option<Result<String, String>> {
        if task.stage == Stage::New {
            if clean && let Err(why) = self.removable(index) {
                return Some(Err(why));
            }
            self.ask_to_stop(index, task);
        }
        if task.stage != Stage::Started && !self.slots[index].process.is_down() {
            return None;
        }
        if task.stage == Stage::Stopping {
            // The time that it is down begins when nothing of it is left.
            self.arm(index, delay, Happened::Moved);
            let clean = if clean { None } else { Some(Ok(())) };
            if clean.is_none() {
                self.clean(index);
            }
            task.stage = Stage::Down { due: Instant::now() + delay, clean };
        }
        match &task.stage {
            Stage::Down { clean: Some(Err(why)), .. } => Some(Err(why.clone())),
            Stage::Down { due, clean: Some(Ok(())) } if Instant::now() >= *due => {
                let started = self.try_start(index, task)?;
                Some(started.map(|text| format!("stopped and {text}")))
            }
            Stage::Started => {
                let started = self.try_start(index, task)?;
                Some(started.map(|text| format!("stopped and {text}")))
            }
            _ => None,
        }
    }

    /// The data directory that may be removed, or why none.
    fn removable(&self, index: usize) -> Result<PathBuf, String> {
        let dir = self.slots[index].definition.settings.data_dir.as_ref();
        let dir = dir.ok_or("its data directory is not known (# @name data-dir=…)")?;
        match std::env::current_dir().and_then(|own| Ok((own.canonicalize()?, dir.canonicalize()))) {
            Ok((own, Ok(found))) if own.starts_with(&found) => {
                Err(format!("{} is not removed: we are in it", found.display()))
            }
            Ok((_, Ok(found))) if found.parent().is_none() => Err("/ is not removed".to_owned()),
            Ok(_) => Ok(dir.clone()),
            Err(error) => Err(format!("cannot find where we are: {error}")),
        }
    }

    /// Removes the data directory beside the loop.
    fn clean(&mut self, index: usize) {
        let dir = self.removable(index);
        let events = self.events.clone();
        let generation = self.slots[index].process.generation;
        tokio::task::spawn_blocking(move || {
            let result = dir.and_then(|dir| remove(&dir));
            // The loop is gone only when everything has ended.
            let _ = events.send(Event { index, generation, happened: Happened::Cleaned(result) });
        });
    }

    pub(super) fn take_cleaned(&mut self, index: usize, result: Result<(), String>) {
        if let Some(Stage::Down { clean, .. }) = self.slots[index].tasks.front_mut().map(|task| &mut task.stage) {
            *clean = Some(result);
        }
    }
}

fn remove(dir: &Path) -> Result<(), String> {
    match std::fs::remove_dir_all(dir) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(format!("cannot remove {}: {error}", dir.display()))
        }
        _ => Ok(()),
    }
}

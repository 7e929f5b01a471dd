//! A reload in the loop: the plan is made and answered, then carried out by tasks in the queues of those it is about.
//!
//! ```text
//!  gone     Retire: stop ─▶ out of the table
//!  changed  Renew:  stop ─▶ wait until all who leave are down ─▶ new definition ─▶ start
//!  new      Enter:          wait until all who leave are down ─▶ start
//! ```
//!
//! Those that come wait for those that leave because they may get their ports. A slot stays where it is, since everything
//! that happens to a process names its place: one that is gone is empty, and used again if its name comes back.

use std::time::Instant;

use tokio::sync::oneshot;

use crate::program::Manner;
use crate::supervisor::control::vocabulary::NamedResult;
use crate::supervisor::control::vocabulary::Requester;
use crate::supervisor::dependencies::Dependencies;
use crate::supervisor::journal::What;
use crate::supervisor::notify::Notify;
use crate::supervisor::output::Output;
use crate::supervisor::process::Down;
use crate::supervisor::process::Process;
use crate::supervisor::process::State;
use crate::supervisor::reload::Definition;
use crate::supervisor::reload::Standing;
use crate::supervisor::reload::Step;
use crate::supervisor::reload::StepKind;
use crate::supervisor::reload::plan;
use crate::supervisor::settings::Settings;
use crate::supervisor::supervise::Slot;
use crate::supervisor::supervise::Supervisor;
use crate::supervisor::supervise::actions::Kind;
use crate::supervisor::supervise::actions::Place;

/// What a reload is answered with: its plan, or why there is none.
pub type Planned = oneshot::Sender<Result<Vec<Step>, String>>;

impl Slot {
    /// The place of a process that was never started.
    pub fn of(definition: Definition, output: &Output) -> Slot {
        let feed = output.feed(definition.place, &definition.name).with_terminal(definition.settings.tty);
        let process = Process::new(definition.name.clone(), None, &definition.settings, Instant::now());
        Slot::new(process, definition, feed)
    }

    /// What it is to be from its next start on.
    pub(super) fn define(&mut self, definition: Definition) {
        self.process.redefine(&definition.settings);
        self.feed = self.feed.clone().seen_at(definition.place).with_terminal(definition.settings.tty);
        self.definition = definition;
    }

    fn standing(&self) -> Standing {
        let is_idle = matches!(self.process.state(), State::Down(Down::Idle | Down::Disabled));
        let is_stopped = (is_idle || self.is_to_stop()) && !self.is_to_start();
        Standing { definition: self.definition.clone(), is_stopped }
    }
}

impl Supervisor {
    /// The slots that are shown, in the order of the files.
    pub(super) fn listed(&self) -> Vec<usize> {
        let mut found: Vec<usize> = (0..self.slots.len()).filter(|index| !self.slots[*index].is_gone).collect();
        found.sort_by_key(|index| self.slots[*index].rank);
        found
    }

    /// The slot of the process of this name, if it is one of ours.
    pub(super) fn find(&self, name: &str) -> Option<usize> {
        self.slots.iter().position(|slot| slot.process.name == name && !slot.shadowed && !slot.is_gone)
    }

    /// Plans, answers the plan, and unless it was only asked for begins to carry it out.
    pub(super) fn reload(
        &mut self,
        definitions: Vec<Definition>,
        dry_run: bool,
        by: &Requester,
        planned: Planned,
        answer: oneshot::Sender<Vec<NamedResult>>,
    ) {
        let (steps, graph) = match self.plan_reload(&definitions) {
            Ok(found) => found,
            Err(why) => return drop(planned.send(Err(why))),
        };
        // Whoever asked may have hung up; what he asked for is done.
        let _ = planned.send(Ok(steps.clone()));
        if dry_run {
            return drop(answer.send(Vec::new()));
        }
        let changing: Vec<&Step> = steps.iter().filter(|step| step.step != StepKind::Unchanged).collect();
        let words = match changing.as_slice() {
            [] => "nothing has changed".to_owned(),
            some => some.iter().map(|step| step.to_string()).collect::<Vec<_>>().join(", "),
        };
        self.output.say(&format!("reload: {words}"));
        self.journal.record(None, What::Supervisor { text: format!("reload: {words}") });
        for step in &changing {
            self.journal.record(Some(&step.name), What::Request { action: format!("reload: {step}"), by: by.clone() });
        }
        self.make_room(&definitions);
        self.dependencies = graph;
        let call = self.open_call(answer, changing.len());
        let mut places = (0..).map(|at| Place { call, at });
        for (step, place) in changing.iter().filter(|step| step.step == StepKind::Stop).zip(places.by_ref()) {
            if let Some(index) = self.find(&step.name) {
                self.drop_tasks(index, "it is no longer in the Procfile");
                self.push_task(index, place, Kind::Retire, by);
            }
        }
        for (rank, definition) in definitions.into_iter().enumerate() {
            let Some(index) = self.find(&definition.name) else { continue };
            self.slots[index].rank = rank;
            let step = steps.iter().find(|step| step.name == definition.name).map(|step| step.step);
            if step == Some(StepKind::Unchanged) {
                // Ports of others in its environment are for its next start.
                self.slots[index].define(definition);
                continue;
            }
            let Some(place) = places.next() else { continue };
            match step {
                Some(StepKind::Restart) => {
                    let start = true;
                    self.drop_tasks(index, "a reload came first");
                    self.slots[index].next = Some(definition);
                    self.push_task(index, place, Kind::Renew { start }, by);
                }
                Some(StepKind::Start) => {
                    self.slots[index].define(definition);
                    self.slots[index].appended = None;
                    self.push_task(index, place, Kind::Enter, by);
                }
                _ => {
                    let name = definition.name.clone();
                    self.slots[index].define(definition);
                    self.resolve(place, &name, Ok("changed, and stays stopped".to_owned()));
                }
            }
        }
    }

    fn plan_reload(&self, definitions: &[Definition]) -> Result<(Vec<Step>, Dependencies), String> {
        if self.ending {
            return Err("the supervisor is ending".to_owned());
        }
        if self.rules.manner == Manner::Original {
            return Err("as goreman nothing is read again".to_owned());
        }
        if self.slots.iter().any(Slot::is_reloading) {
            return Err("a reload is under way".to_owned());
        }
        let standing: Vec<Standing> = self.listed().into_iter().map(|index| self.slots[index].standing()).collect();
        // By the places that slots will have; those of nobody have no name that could be waited for.
        let nobody = Settings::default();
        let mut named: Vec<(&str, &Settings)> = vec![("", &nobody); self.slots.len()];
        for definition in definitions {
            let entry = (definition.name.as_str(), &definition.settings);
            match self.slots.iter().position(|slot| slot.process.name == definition.name) {
                Some(index) => named[index] = entry,
                None => named.push(entry),
            }
        }
        Ok((plan(&standing, definitions), Dependencies::of(&named)?))
    }

    /// A slot for everybody who is new, in the order in which the graph has them.
    fn make_room(&mut self, definitions: &[Definition]) {
        for definition in definitions {
            match self.slots.iter().position(|slot| slot.process.name == definition.name) {
                Some(index) => self.slots[index].is_gone = false,
                None => {
                    let mut slot = Slot::of(definition.clone(), &self.output);
                    let opened = Notify::open(self.guardian.tag().id(), self.slots.len(), self.events.clone());
                    match opened {
                        Ok(notify) => slot.notify = Some(notify),
                        Err(error) => {
                            let name = &definition.name;
                            self.output.say(&format!("{name} cannot say when it is ready: {error}"));
                        }
                    }
                    self.slots.push(slot);
                }
            }
        }
    }

    /// Whether somebody who leaves, or makes room for what he is to be, is not down yet.
    pub(super) fn is_anybody_leaving(&self) -> bool {
        self.slots.iter().any(|slot| slot.is_leaving() && !slot.process.is_down())
    }

    /// It is down, and no longer one of ours.
    pub(super) fn retire(&mut self, index: usize) {
        let slot = &mut self.slots[index];
        slot.is_gone = true;
        slot.process.failed = false;
        self.drop_tasks(index, "it is no longer in the Procfile");
    }
}

//! The one loop that owns the truth: which processes exist, what they do, who asked for what.
//!
//! Everything arrives as an event of one of four kinds (a child, a signal, a request, the end of our output) and is
//! handled to its end before the next one. A request that takes time is an `Operation` that moves on as processes stop.

use std::collections::VecDeque;
use std::time::Duration;

use nix::sys::signal::Signal;
use nix::unistd::Pid;
use tokio::signal::unix::SignalKind;
use tokio::sync::mpsc;
use tokio::sync::oneshot;

use crate::program::Manner;
use crate::supervisor::child;
use crate::supervisor::child::Event;
use crate::supervisor::child::Launch;
use crate::supervisor::control::Request;
use crate::supervisor::control::Verb;
use crate::supervisor::guardian::Guardian;
use crate::supervisor::output::Feed;
use crate::supervisor::process::Effect;
use crate::supervisor::process::Input;
use crate::supervisor::process::Process;
use crate::supervisor::process::State;

/// Time between asking a process to stop and killing its group.
const GRACE: Duration = Duration::from_secs(10);

/// How the supervisor behaves, from flags and personality.
#[derive(Clone, Copy, Debug)]
pub struct Rules {
    pub manner: Manner,
    pub exit_on_error: bool,
    pub exit_on_stop: bool,
}

/// One process of the Procfile as the loop knows it.
#[derive(Debug)]
pub struct Slot {
    pub process: Process,
    pub command: String,
    pub environment: Vec<(String, String)>,
    /// Where it prints.
    pub feed: Feed,
    /// A second entry of the same name: listed, never started (supervisor.md 1.6).
    pub shadowed: bool,
    /// The first slot of an entry that was named twice on the command line: this one shows how that one is.
    pub twin: Option<usize>,
    /// Of the current or last start.
    group: Option<Pid>,
}

impl Slot {
    pub fn new(process: Process, command: String, environment: Vec<(String, String)>, feed: Feed) -> Slot {
        Slot { process, command, environment, feed, shadowed: false, twin: None, group: None }
    }
}

/// How it all ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ended {
    /// Words of the failure that ended everything (`-exit-on-error`).
    pub fatal: Option<String>,
    /// Some process ended by itself and badly, and was not started again.
    pub failures: bool,
    /// Our output broke: nobody reads us any more.
    pub deaf: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Want {
    Start,
    Stop(Signal),
}

/// Steps that are done one after another; a stop is done when the process has stopped.
#[derive(Debug)]
struct Operation {
    steps: VecDeque<(usize, Want)>,
    issued: bool,
    error: Option<String>,
    answer: Option<oneshot::Sender<Result<String, String>>>,
}

/// The loop's state.
pub struct Supervisor {
    rules: Rules,
    slots: Vec<Slot>,
    operations: Vec<Operation>,
    guardian: Guardian,
    events: mpsc::UnboundedSender<Event>,
    incoming: mpsc::UnboundedReceiver<Event>,
    ending: bool,
    ended: Ended,
}

impl Supervisor {
    pub fn new(rules: Rules, slots: Vec<Slot>, guardian: Guardian) -> Supervisor {
        let (events, incoming) = mpsc::unbounded_channel();
        let ended = Ended { fatal: None, failures: false, deaf: false };
        Supervisor { rules, slots, operations: Vec::new(), guardian, events, incoming, ending: false, ended }
    }

    /// Starts everything and runs until there is nothing left to do. No child is left when it returns.
    pub async fn run(
        mut self,
        mut requests: mpsc::Receiver<Request>,
        mut output_ended: oneshot::Receiver<std::io::Result<()>>,
    ) -> std::io::Result<Ended> {
        let mut interrupt = tokio::signal::unix::signal(SignalKind::interrupt())?;
        let mut terminate = tokio::signal::unix::signal(SignalKind::terminate())?;
        let mut hangup = tokio::signal::unix::signal(SignalKind::hangup())?;
        let mut quit = tokio::signal::unix::signal(SignalKind::quit())?;
        // Of these nothing comes; unheard they would end us.
        let _unheard = [SignalKind::user_defined1(), SignalKind::user_defined2()]
            .into_iter()
            .map(tokio::signal::unix::signal)
            .collect::<std::io::Result<Vec<_>>>()?;
        for index in 0..self.slots.len() {
            if !self.slots[index].shadowed {
                self.step_now(index, Input::Start);
            }
        }
        while !self.is_over() {
            tokio::select! {
                biased;
                Some(event) = self.incoming.recv() => self.take_event(event),
                _ = interrupt.recv() => self.take_signal(Signal::SIGINT),
                _ = terminate.recv() => self.take_signal(Signal::SIGTERM),
                _ = hangup.recv() => self.take_signal(Signal::SIGHUP),
                _ = quit.recv() => self.take_signal(Signal::SIGQUIT),
                Some(request) = requests.recv() => self.take_request(request),
                _ = &mut output_ended, if !self.ended.deaf => {
                    self.ended.deaf = true;
                    self.end(Signal::SIGTERM);
                }
            }
            self.advance();
        }
        self.guardian.finish();
        let failures = self.slots.iter().any(|slot| slot.process.failed);
        Ok(Ended { failures, ..self.ended })
    }

    fn is_over(&self) -> bool {
        let quiet = self.slots.iter().all(|slot| slot.process.is_stopped()) && self.operations.is_empty();
        quiet && (self.ending || self.rules.exit_on_stop)
    }

    fn take_event(&mut self, event: Event) {
        let emptied = event.input == Input::Emptied;
        self.step(event.index, event.generation, event.input);
        let slot = &self.slots[event.index];
        if let Some(group) = slot.group.filter(|_| emptied && slot.process.generation == event.generation) {
            // A group with members left over stays with the guardian, which ends it when we end.
            if !child::is_alive(group) {
                self.guardian.forget(group);
            }
        }
    }

    fn step_now(&mut self, index: usize, input: Input) {
        let generation = self.slots[index].process.generation;
        self.step(index, generation, input);
    }

    fn step(&mut self, index: usize, generation: u64, input: Input) {
        for effect in self.slots[index].process.step(generation, input) {
            match effect {
                Effect::Spawn => self.spawn(index),
                Effect::Signal(signal) => {
                    if let Some(group) = self.slots[index].group {
                        child::signal(group, signal);
                    }
                }
                Effect::ArmGrace => self.arm_grace(index),
                Effect::Say(text) => self.slots[index].feed.say(&text),
                Effect::Failed(words) => self.note_failure(words),
            }
        }
    }

    fn spawn(&mut self, index: usize) {
        let slot = &mut self.slots[index];
        let launch = Launch {
            index,
            generation: slot.process.generation,
            command: slot.command.clone(),
            environment: slot.environment.clone(),
            feed: slot.feed.clone(),
            manner: self.rules.manner,
        };
        match child::spawn(launch, self.events.clone()) {
            Ok(group) => {
                slot.group = Some(group);
                self.guardian.watch(group);
                self.step_now(index, Input::Spawned);
            }
            Err(error) => {
                slot.group = None;
                let reason = match error.kind() {
                    // A zero byte in the command, which never comes to the system: this is what it would say.
                    std::io::ErrorKind::InvalidInput => "invalid argument".to_owned(),
                    _ => crate::common::os_reason::os_reason(&error),
                };
                self.step_now(index, Input::SpawnFailed(format!("fork/exec /bin/sh: {reason}")));
            }
        }
    }

    fn arm_grace(&self, index: usize) {
        let events = self.events.clone();
        let generation = self.slots[index].process.generation;
        tokio::spawn(async move {
            tokio::time::sleep(GRACE).await;
            // The loop is gone only when everything has ended.
            let _ = events.send(Event { index, generation, input: Input::GraceOver });
        });
    }

    fn note_failure(&mut self, words: String) {
        if self.rules.exit_on_error && !self.ending {
            self.ended.fatal = Some(words);
            self.end(Signal::SIGINT);
        }
    }

    fn take_signal(&mut self, signal: Signal) {
        if !self.ending {
            self.end(signal);
            return;
        }
        // Asked twice: no more patience.
        for index in 0..self.slots.len() {
            self.step_now(index, Input::Kill);
        }
    }

    /// Stops everything: in goreman's personality one after another with the signal that we got, natively all at once.
    fn end(&mut self, signal: Signal) {
        self.ending = true;
        for operation in &mut self.operations {
            operation.steps.clear();
        }
        let all = 0..self.slots.len();
        match self.rules.manner {
            Manner::Original => self.operations.push(Operation::new(all.map(|index| (index, Want::Stop(signal))))),
            Manner::Native => {
                let single = |index: usize| Operation::new([(index, Want::Stop(Signal::SIGTERM))]);
                self.operations.extend(all.map(single));
            }
        }
    }

    fn take_request(&mut self, request: Request) {
        let answer = request.answer;
        match request.verb {
            // Whoever asked may have hung up: then nobody is told.
            Verb::List => drop(answer.send(Ok(self.lines(|_| "")))),
            Verb::Status => {
                let star = |slot: &Slot| {
                    let shown = slot.twin.map_or(slot, |first| &self.slots[first]);
                    if shown.process.is_stopped() { " " } else { "*" }
                };
                drop(answer.send(Ok(self.lines(star))));
            }
            _ if self.ending => drop(answer.send(Err("the supervisor is ending".to_owned()))),
            verb => {
                let mut operation = self.plan(verb, &request.names);
                operation.answer = Some(answer);
                self.operations.push(operation);
            }
        }
    }

    fn lines(&self, mark: impl Fn(&Slot) -> &'static str) -> String {
        self.slots.iter().map(|slot| format!("{}{}\n", mark(slot), slot.process.name)).collect()
    }

    /// The steps of a request. goreman does the names in front of an unknown one; natively nothing is done then.
    fn plan(&self, verb: Verb, names: &[String]) -> Operation {
        let all = || (0..self.slots.len()).filter(|index| !self.slots[*index].shadowed).collect::<Vec<_>>();
        let mut error = None;
        let mut chosen = Vec::new();
        match verb {
            Verb::StopAll | Verb::RestartAll => chosen = all(),
            Verb::Restart if names.is_empty() => chosen = all(),
            _ => {
                for name in names {
                    match self.slots.iter().position(|slot| slot.process.name == *name) {
                        Some(index) => chosen.push(index),
                        None => {
                            let word = if verb == Verb::Start { "name" } else { "proc" };
                            error = Some(format!("unknown {word}: {name}"));
                            break;
                        }
                    }
                }
            }
        }
        if error.is_some() && self.rules.manner == Manner::Native {
            chosen.clear();
        }
        let signal = match self.rules.manner {
            Manner::Original => Signal::SIGINT,
            // A shell lets its background children ignore SIGINT.
            Manner::Native => Signal::SIGTERM,
        };
        let steps = chosen.into_iter().flat_map(|index| match verb {
            Verb::Start => vec![(index, Want::Start)],
            Verb::Stop | Verb::StopAll => vec![(index, Want::Stop(signal))],
            _ => vec![(index, Want::Stop(signal)), (index, Want::Start)],
        });
        Operation { error, ..Operation::new(steps) }
    }

    /// Moves every operation as far as it goes; finished ones are answered.
    fn advance(&mut self) {
        let mut operations = std::mem::take(&mut self.operations);
        operations.retain_mut(|operation| {
            while let Some((index, want)) = operation.steps.front().copied() {
                if !self.do_step(index, want, &mut operation.issued) {
                    return true;
                }
                operation.steps.pop_front();
                operation.issued = false;
            }
            if let Some(answer) = operation.answer.take() {
                let result = operation.error.take().map_or(Ok(String::new()), Err);
                // Whoever asked may have hung up.
                let _ = answer.send(result);
            }
            false
        });
        // A step may have ended everything and pushed operations of its own.
        operations.append(&mut self.operations);
        self.operations = operations;
    }

    /// Whether the step is done; a stop is asked for once.
    fn do_step(&mut self, index: usize, want: Want, issued: &mut bool) -> bool {
        let state = self.slots[index].process.state();
        match (want, state) {
            (Want::Stop(_), State::Stopped) => true,
            (Want::Stop(signal), _) => {
                if !*issued {
                    *issued = true;
                    self.step_now(index, Input::Stop(signal));
                }
                self.slots[index].process.is_stopped()
            }
            (Want::Start, State::Stopped) => {
                self.step_now(index, Input::Start);
                true
            }
            (Want::Start, State::Stopping(_)) => false,
            (Want::Start, _) => true,
        }
    }
}

impl Operation {
    fn new(steps: impl IntoIterator<Item = (usize, Want)>) -> Operation {
        Operation { steps: steps.into_iter().collect(), issued: false, error: None, answer: None }
    }
}

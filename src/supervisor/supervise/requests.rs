//! What goreman's RPC asks for: steps that are done one after another, a stop to its end before the next.

use std::collections::VecDeque;

use nix::sys::signal::Signal;
use tokio::sync::oneshot;

use crate::program::Manner;
use crate::supervisor::control::Request;
use crate::supervisor::control::Verb;
use crate::supervisor::process::Input;
use crate::supervisor::process::State;
use crate::supervisor::supervise::Slot;
use crate::supervisor::supervise::Supervisor;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Want {
    Start,
    Stop(Signal),
}

/// Steps that are done one after another; a stop is done when the process has stopped.
#[derive(Debug)]
pub struct Operation {
    steps: VecDeque<(usize, Want)>,
    issued: bool,
    error: Option<String>,
    answer: Option<oneshot::Sender<Result<String, String>>>,
}

impl Operation {
    fn new(steps: impl IntoIterator<Item = (usize, Want)>) -> Operation {
        Operation { steps: steps.into_iter().collect(), issued: false, error: None, answer: None }
    }
}

impl Supervisor {
    /// The end as goreman comes to it: everybody in order, each for itself.
    pub(super) fn end_in_order(&mut self, signal: Signal) {
        self.forget_requests();
        let all = 0..self.slots.len();
        self.operations.push(Operation::new(all.map(|index| (index, Want::Stop(signal)))));
    }

    /// Nothing more is done of them; they are answered.
    pub(super) fn forget_requests(&mut self) {
        for operation in &mut self.operations {
            operation.steps.clear();
        }
    }

    pub(super) fn take_request(&mut self, request: Request) {
        let answer = request.answer;
        match request.verb {
            // Whoever asked may have hung up: then nobody is told.
            Verb::List => drop(answer.send(Ok(self.lines(|_| "")))),
            Verb::Status => {
                let star = |slot: &Slot| {
                    let shown = slot.twin.map_or(slot, |first| &self.slots[first]);
                    if shown.process.is_down() { " " } else { "*" }
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
        let slots = self.listed().into_iter().map(|index| &self.slots[index]);
        slots.map(|slot| format!("{}{}\n", mark(slot), slot.process.name)).collect()
    }

    /// The steps of a request. goreman does the names in front of an unknown one; natively nothing is done then.
    fn plan(&self, verb: Verb, names: &[String]) -> Operation {
        let all = || self.listed().into_iter().filter(|index| !self.slots[*index].shadowed).collect::<Vec<_>>();
        let mut error = None;
        let mut chosen = Vec::new();
        match verb {
            Verb::StopAll | Verb::RestartAll => chosen = all(),
            Verb::Restart if names.is_empty() => chosen = all(),
            _ => {
                for name in names {
                    match self.find(name) {
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
        let steps = chosen.into_iter().flat_map(|index| {
            let stop = (index, Want::Stop(self.stop_signal(index)));
            match verb {
                Verb::Start => vec![(index, Want::Start)],
                Verb::Stop | Verb::StopAll => vec![stop],
                _ => vec![stop, (index, Want::Start)],
            }
        });
        Operation { error, ..Operation::new(steps) }
    }

    /// Moves every operation as far as it goes; finished ones are answered.
    pub(super) fn advance_requests(&mut self) {
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
            (Want::Stop(_), State::Down(_)) => true,
            (Want::Stop(signal), _) => {
                if !*issued {
                    *issued = true;
                    self.step_now(index, Input::Stop { signal, by: None });
                }
                self.slots[index].process.is_down()
            }
            (Want::Start, State::Down(_) | State::Backoff) => {
                self.step_now(index, Input::Start);
                true
            }
            (Want::Start, State::Stopping(_) | State::Finishing(_)) => false,
            (Want::Start, _) => true,
        }
    }
}

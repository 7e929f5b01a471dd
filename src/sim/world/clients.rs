//! What clients do: ask, wait, lose patience, go elsewhere.

use std::task::Context;
use std::task::Poll;
use std::task::Waker;
use std::time::Duration;

use crate::common::answer::Answer;
use crate::server::apply::outcome::Reply;
use crate::server::mvcc::read::range_now;
use crate::server::mvcc::view::ReadError;
use crate::server::waiters::Notice;
use crate::sim::workload;
use crate::sim::world::Call;
use crate::sim::world::Event;
use crate::sim::world::Micros;
use crate::sim::world::SECOND;
use crate::sim::world::World;
use crate::torture::checker::Operation;
use crate::torture::checker::Outcome;
use crate::torture::checker::model::Request;
use crate::torture::checker::model::Response;

/// How long a client waits for an answer; RT of a member is 7 s, but clients may be less patient.
const PATIENCE: Micros = 3 * SECOND;

impl World {
    pub(super) fn stamp(&mut self) -> u64 {
        self.stamp += 1;
        self.stamp
    }

    pub(super) fn ask(&mut self, client: usize) {
        if self.closing || self.clients[client].call.is_some() {
            return;
        }
        // A client that fails moves on; others seldom do.
        if self.dice.chance(3) {
            self.clients[client].target = self.pick_member();
        }
        let calm = self.calm;
        let request = self.clients[client].workload.next(&mut self.dice, calm);
        self.call(client, request);
    }

    pub(super) fn call(&mut self, client: usize, request: Request) {
        let target = self.clients[client].target;
        let life = self.slots[target].member.lives;
        if self.clients[client].connected_to != Some((target, life)) {
            self.connections += 1;
            self.clients[client].connection = self.connections;
            self.clients[client].connected_to = Some((target, life));
        }
        let start = self.stamp();
        let connection = self.clients[client].connection;
        let operation = self.history.operations.len();
        self.history.operations.push(Operation { connection, start, end: 0, request, outcome: Outcome::Unknown });
        self.clients[client].call = Some(Call { operation, waiting: None, life });
        let delay = self.dice.below(2_000);
        self.after(delay, Event::Arrive { client, call: operation });
        self.after(PATIENCE, Event::Patience { client, call: operation });
    }

    pub(super) fn is_calling(&self, client: usize, operation: usize) -> bool {
        self.clients[client].call.as_ref().is_some_and(|call| call.operation == operation)
    }

    pub(super) fn arrive(&mut self, client: usize, operation: usize) -> Result<(), String> {
        if !self.is_calling(client, operation) {
            return Ok(());
        }
        let member = self.clients[client].target;
        let slot = &mut self.slots[member];
        if slot.paused_until > self.now {
            let resumed = slot.paused_until;
            self.at(resumed, Event::Arrive { client, call: operation });
            return Ok(());
        }
        let life = slot.member.lives;
        let request = self.history.operations[operation].request.clone();
        let fresh = self.clients[client].call.as_ref().is_some_and(|call| call.life == life);
        let Some(running) = slot.member.running.as_mut().filter(|_| fresh) else {
            self.answer(client, Outcome::Refused);
            return Ok(());
        };
        let members = running.published.cluster.members();
        let is_learner = members.iter().any(|one| one.id == slot.member.id && one.is_learner);
        match &request {
            Request::Range(range) if range.serializable => return self.serve(client),
            // As the API does: others may not have applied what made it a member.
            _ if is_learner => self.answer(client, Outcome::Refused),
            // As `server/read` does: a lone voter that leads has nobody to ask.
            Request::Range(_) if running.raft.lone_leader() => return self.serve(client),
            Request::Range(_) => {
                if running.reads.ask(client, Duration::from_micros(self.now)).is_err() {
                    self.answer(client, Outcome::Refused);
                }
            }
            write => {
                let id = running.ids.next();
                let place = running.desk.waiters.register(id);
                let taken = running.raft.propose(id, workload::encode(id, write));
                match (place, taken) {
                    (Ok(waiting), Ok(())) => {
                        let call = self.clients[client].call.as_mut().expect("checked above: it is calling");
                        call.waiting = Some(waiting);
                    }
                    (_, Err(_)) => self.answer(client, Outcome::Refused),
                    (Err(_), Ok(())) => self.answer(client, Outcome::Unknown),
                }
            }
        }
        self.wake(member);
        Ok(())
    }

    /// Answers a read from its member's newest view.
    pub(super) fn serve(&mut self, client: usize) -> Result<(), String> {
        let Some(call) = &self.clients[client].call else { return Ok(()) };
        let Request::Range(range) = &self.history.operations[call.operation].request else { return Ok(()) };
        let Some(running) = &self.slots[self.clients[client].target].member.running else { return Ok(()) };
        let outcome = match range_now(&running.published.views(), range) {
            Ok(response) => Outcome::Replied(Response::Range(response)),
            Err(ReadError::Answer(answer)) => Outcome::Failed(answer),
            Err(ReadError::Failure(failure)) => return Err(self.sentence(&format!("a read failed: {failure}"))),
        };
        self.answer(client, outcome);
        Ok(())
    }

    /// Looks whether there is word for a client that waits for a proposal.
    pub(super) fn poll(&mut self, client: usize) {
        let Some(waiting) = self.clients[client].call.as_mut().and_then(|call| call.waiting.as_mut()) else { return };
        let notice = std::pin::pin!(waiting.notice()).poll(&mut Context::from_waker(Waker::noop()));
        let Poll::Ready(notice) = notice else { return };
        let outcome = match notice {
            Notice::Answered(Ok(reply)) => replied(reply),
            Notice::Answered(Err(Answer::Stopped)) | Notice::Lost => Outcome::Unknown,
            Notice::Answered(Err(answer)) => Outcome::Failed(answer),
            Notice::Refused(_) => Outcome::Refused,
        };
        self.answer(client, outcome);
    }

    pub(super) fn lose_patience(&mut self, client: usize, operation: usize) {
        if self.is_calling(client, operation) {
            self.answer(client, Outcome::Unknown);
        }
    }

    /// The call is over for its client.
    pub(super) fn answer(&mut self, client: usize, outcome: Outcome) {
        let end = self.stamp();
        let Some(call) = self.clients[client].call.take() else { return };
        let target = self.clients[client].target;
        if let Some(running) = &mut self.slots[target].member.running {
            running.reads.retain(|waiting| *waiting != client);
        }
        let answered = matches!(outcome, Outcome::Replied(_) | Outcome::Failed(_));
        self.summary.answered += usize::from(answered);
        self.trace([6, client as u64, call.operation as u64, u64::from(answered)]);
        if let Outcome::Replied(response) = &outcome {
            let workload = &mut self.clients[client].workload;
            workload.revision = workload.revision.max(response.revision());
            self.clients[client].calm_writes += u64::from(self.calm);
        } else if !answered && self.dice.chance(60) {
            self.clients[client].target = self.pick_member();
        }
        let operation = &mut self.history.operations[call.operation];
        operation.end = end;
        operation.outcome = outcome;
        let think = 1 + self.dice.below(self.plan.think_max) + if answered { 0 } else { 50_000 };
        self.after(think, Event::Client(client));
    }
}

fn replied(reply: Reply) -> Outcome {
    workload::response(reply).map_or(Outcome::Unknown, Outcome::Replied)
}

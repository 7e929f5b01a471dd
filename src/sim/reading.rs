//! Linearizable reads of one member, as `server/read` serves them, on simulated time.
//!
//! The rules are the same (B22 to B24): one round for all who wait, a new context for each try, whoever comes later waits
//! for the next round, a change of leader wins over an index. The desk that matches contexts is the real one.

use bytes::Bytes;
use tokio::sync::oneshot;

use crate::sim::member::Running;
use crate::sim::world::Micros;

/// As `server/read::READ_INDEX_RETRY`.
const RETRY: Micros = 500_000;

/// Reads that wait, by the client that asked.
#[derive(Default)]
pub struct Reading {
    next: Vec<usize>,
    round: Option<Round>,
    /// The index that must be applied first.
    confirmed: Vec<(u64, usize)>,
}

struct Round {
    clients: Vec<usize>,
    index: oneshot::Receiver<u64>,
    leader_changes: u64,
    terms_started: u64,
    retry_at: Micros,
}

/// What a member can say about a read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Barrier {
    /// This member's newest view is recent enough now.
    Passed(usize),
    /// The leader changed: the client may ask again.
    Broken(usize),
}

impl Reading {
    pub fn ask(&mut self, client: usize) {
        self.next.push(client);
    }

    /// The client waits no longer.
    pub fn forget(&mut self, client: usize) {
        self.next.retain(|waiting| *waiting != client);
        self.confirmed.retain(|(_, waiting)| *waiting != client);
        if let Some(round) = &mut self.round {
            round.clients.retain(|waiting| *waiting != client);
        }
    }

    /// Whether there is anything to look after.
    pub fn is_idle(&self) -> bool {
        self.next.is_empty() && self.round.is_none() && self.confirmed.is_empty()
    }
}

impl Running {
    /// Opens, repeats and ends rounds. Before the raft thread's turn, and after it.
    pub fn read(&mut self, now: Micros) -> Vec<Barrier> {
        let mut done = Vec::new();
        if self.raft.lone_leader() {
            done.extend(self.reading.next.drain(..).map(Barrier::Passed));
        }
        self.end_round(&mut done);
        if self.reading.round.is_none() && !self.reading.next.is_empty() {
            let before = self.desk.raft_now();
            let round = Round {
                clients: std::mem::take(&mut self.reading.next),
                index: self.desk.open_read_round(),
                leader_changes: before.leader_changes,
                terms_started: before.terms_started,
                retry_at: now,
            };
            self.reading.round = Some(round);
        }
        self.try_round(now);
        let applied = self.desk.applied_index();
        self.reading.confirmed.retain(|(index, client)| {
            let passed = *index <= applied;
            if passed {
                done.push(Barrier::Passed(*client));
            }
            !passed
        });
        done
    }

    fn end_round(&mut self, done: &mut Vec<Barrier>) {
        let Some(round) = &mut self.reading.round else { return };
        if self.desk.raft_now().leader_changes != round.leader_changes {
            done.extend(round.clients.drain(..).map(Barrier::Broken));
            self.reading.round = None;
        } else if let Ok(index) = round.index.try_recv() {
            self.reading.confirmed.extend(round.clients.drain(..).map(|client| (index, client)));
            self.reading.round = None;
        }
    }

    fn try_round(&mut self, now: Micros) {
        let terms_started = self.desk.raft_now().terms_started;
        let Some(round) = &mut self.reading.round else { return };
        if now >= round.retry_at || terms_started != round.terms_started {
            round.terms_started = terms_started;
            round.retry_at = now + RETRY;
            let context = Bytes::copy_from_slice(&self.ids.next().to_be_bytes());
            self.desk.add_read_context(context.clone());
            self.raft.read_index(context);
        }
    }
}

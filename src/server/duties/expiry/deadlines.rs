//! When leases end: the leader's deadlines, whose turn it is to be revoked, what is worth a checkpoint.
//!
//! Pure: events in, actions out; time is an argument, counted from some start that stays the same. A deadline is never
//! earlier than what a client was told: it restarts in full with every leader, plus the time that the old leader may
//! have gone on renewing (server.md 5). A lease that is over stays until its revoke is applied; until then nobody may
//! renew it.
//!
//! Renewing only moves the deadline. A lease's place in the queue is moved when its turn comes, so a lease that is
//! renewed often costs the queue as much as one that is not.

use std::collections::BTreeMap;
use std::collections::BTreeSet;
use std::time::Duration;

use crate::server::lease::handle::Change;
use crate::server::lease::handle::LeaseTime;

/// Revokes handed out a second. etcd takes 1,000; ours must leave room for puts while 10,000 leases end at once.
pub const REVOKES_PER_SECOND: u32 = 4_000;

/// Revokes that are on their way at once; more wait for answers, so a slow log is not flooded.
pub const REVOKES_IN_FLIGHT_MAX: usize = 256;

/// Revokes that may be handed out at once after a pause.
const REVOKES_BURST: u32 = 80;

/// How often leases are looked at while some wait for their revoke.
const SLICE: Duration = Duration::from_millis(10);

/// How often they are looked at when nothing is due: as often as etcd does. A deadline is met at most so late.
const IDLE: Duration = Duration::from_millis(500);

/// A revoke that failed is tried again after this long.
const RETRY_PAUSE: Duration = Duration::from_millis(500);

/// Nobody looked at the clock for so long: the process stood still, and clients could not renew.
const STALL: Duration = Duration::from_secs(2);

/// Checkpoints of one lease are at least this far apart unless half of its time is less (server.md 5).
const CHECKPOINT_INTERVAL: Duration = Duration::from_secs(5 * 60);

/// Leases shorter than this are not worth a checkpoint.
const CHECKPOINTED_FROM: Duration = Duration::from_secs(10);

/// Checkpoints in one log entry (server.md 12).
pub const CHECKPOINTS_MAX: usize = 1_000;

/// What asking for a renewal came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Renewal {
    /// This member does not lead, or not yet in this term.
    NotPrimary,
    Unknown,
    /// It is over and its revoke is on its way, or soon will be: the answer is known when that is applied.
    Ending,
    /// Renewed for this long.
    Renewed {
        ttl_seconds: i64,
    },
    /// Renewed, but the log says that less is left: to be told only when a checkpoint of 0 is applied.
    Clearing {
        ttl_seconds: i64,
    },
}

/// What to propose now, in the term of `Deadlines::term`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Due {
    /// Each to be reported by `revoke_failed` unless the lease is gone.
    pub revokes: Vec<i64>,
    /// Seconds left by lease, 0 for all; at most `CHECKPOINTS_MAX`. To be reported by `checkpoints_settled`.
    pub checkpoints: Vec<(i64, i64)>,
}

/// One lease.
#[derive(Clone, Debug)]
struct Held {
    ttl_seconds: i64,
    deadline: Duration,
    /// Its place in the queue, never behind the deadline; `None` while its revoke is on its way.
    queued_at: Option<Duration>,
    /// What the log says is left, 0 for all.
    stored_seconds: i64,
    /// Checkpoints on their way that say that less than all is left. Those that say 0 take nothing away, so a renewal
    /// need not wait for another one's.
    checkpoints_under_way: u32,
    /// Granted, renewed or checkpointed last.
    checkpoint_from: Duration,
    /// Its place in the queue of checkpoints.
    checkpoint_at: Option<Duration>,
}

/// All deadlines of one leader.
#[derive(Clone, Debug)]
pub struct Deadlines {
    election_timeout: Duration,
    /// The term this member leads in; `None` while it does not.
    term: Option<u64>,
    leases: BTreeMap<i64, Held>,
    queue: BTreeSet<(Duration, i64)>,
    checkpoint_queue: BTreeSet<(Duration, i64)>,
    /// Leases of which the log says less than is left.
    understated: BTreeSet<i64>,
    revokes_in_flight: usize,
    /// Time for which revokes may be handed out, as of `credited_at`.
    credit: Duration,
    credited_at: Duration,
    /// When the clock was last looked at.
    seen: Duration,
    /// After a stall: what ran out behind the first moment is kept until the second.
    spared: Option<(Duration, Duration)>,
}

impl Deadlines {
    pub fn new(election_timeout: Duration) -> Deadlines {
        Deadlines {
            election_timeout,
            term: None,
            leases: BTreeMap::new(),
            queue: BTreeSet::new(),
            checkpoint_queue: BTreeSet::new(),
            understated: BTreeSet::new(),
            revokes_in_flight: 0,
            credit: Duration::ZERO,
            credited_at: Duration::ZERO,
            seen: Duration::ZERO,
            spared: None,
        }
    }

    /// The term in which this member's deadlines count.
    pub fn term(&self) -> Option<u64> {
        self.term
    }

    /// This member leads from now on, and has applied everything before its term.
    pub fn promote(&mut self, term: u64, now: Duration) {
        *self = Deadlines { term: Some(term), seen: now, credited_at: now, ..Deadlines::new(self.election_timeout) };
    }

    /// This member leads no longer: nothing ends here.
    pub fn demote(&mut self) {
        *self = Deadlines::new(self.election_timeout);
    }

    /// All leases, as the log has them: each has what is left of it, and an election timeout, in which the leader
    /// before may still have renewed it.
    pub fn restore(&mut self, leases: Vec<(i64, LeaseTime)>, now: Duration) {
        self.leases.clear();
        self.queue.clear();
        self.checkpoint_queue.clear();
        self.understated.clear();
        self.revokes_in_flight = 0;
        for (id, time) in leases {
            let stored_seconds = time.remaining_seconds.min(time.ttl_seconds).max(0);
            let left = if stored_seconds > 0 { stored_seconds } else { time.ttl_seconds };
            self.insert(id, time.ttl_seconds, now + seconds(left) + self.election_timeout, now);
            if let Some(held) = self.leases.get_mut(&id) {
                held.stored_seconds = stored_seconds;
            }
        }
    }

    /// An entry was applied.
    pub fn apply(&mut self, change: Change, now: Duration) {
        if self.term.is_none() {
            return;
        }
        match change {
            Change::Granted { id, ttl_seconds } => {
                self.revoked(id);
                self.insert(id, ttl_seconds, now + seconds(ttl_seconds), now);
            }
            Change::Revoked { id } => self.revoked(id),
            Change::Checkpointed { id, remaining_seconds } => self.checkpointed(id, remaining_seconds, now),
        }
    }

    /// Starts a lease's time anew.
    pub fn renew(&mut self, id: i64, now: Duration) -> Renewal {
        if self.term.is_none() {
            return Renewal::NotPrimary;
        }
        self.look_at_clock(now);
        let Some(end) = self.end_of(id) else { return Renewal::Unknown };
        let Some(held) = self.leases.get_mut(&id) else { return Renewal::Unknown };
        if end <= now || held.queued_at.is_none() {
            return Renewal::Ending;
        }
        let ttl_seconds = held.ttl_seconds;
        // Never earlier: the time that a new leader adds is not taken back.
        held.deadline = held.deadline.max(now + seconds(ttl_seconds));
        held.checkpoint_from = now;
        match held.stored_seconds == 0 && held.checkpoints_under_way == 0 {
            true => Renewal::Renewed { ttl_seconds },
            false => Renewal::Clearing { ttl_seconds },
        }
    }

    /// What is to be proposed now. `may_checkpoint`: all members keep checkpoints.
    pub fn due(&mut self, now: Duration, may_checkpoint: bool) -> Due {
        if self.term.is_none() {
            return Due::default();
        }
        self.credit = (self.credit + now.saturating_sub(self.credited_at)).min(cost(REVOKES_BURST));
        self.credited_at = now;
        self.look_at_clock(now);
        Due { revokes: self.due_revokes(now), checkpoints: self.due_checkpoints(now, may_checkpoint) }
    }

    /// The revoke of a lease did not come through; it is tried again.
    pub fn revoke_failed(&mut self, id: i64, now: Duration) {
        let Some(held) = self.leases.get_mut(&id) else { return };
        if held.queued_at.is_none() {
            let again = now + RETRY_PAUSE;
            held.queued_at = Some(again);
            self.queue.insert((again, id));
            self.revokes_in_flight -= 1;
        }
    }

    /// These checkpoints are applied, or were refused.
    pub fn checkpoints_settled(&mut self, checkpoints: &[(i64, i64)]) {
        for (id, left_seconds) in checkpoints {
            if let Some(held) = self.leases.get_mut(id).filter(|_| *left_seconds > 0) {
                held.checkpoints_under_way = held.checkpoints_under_way.saturating_sub(1);
            }
        }
    }

    /// What was granted, in seconds, and what is left: zero for one that is over. `None` for an unknown lease.
    pub fn remaining(&mut self, id: i64, now: Duration) -> Option<(i64, Duration)> {
        self.look_at_clock(now);
        let end = self.end_of(id)?;
        let held = self.leases.get(&id)?;
        let left = if held.queued_at.is_none() { Duration::ZERO } else { end.saturating_sub(now) };
        Some((held.ttl_seconds, left))
    }

    /// All leases, the one that ends first first.
    pub fn by_deadline(&self) -> Vec<i64> {
        let mut ids: Vec<(Duration, i64)> = self.leases.iter().map(|(id, held)| (held.deadline, *id)).collect();
        ids.sort_unstable();
        ids.into_iter().map(|(_, id)| id).collect()
    }

    /// How long nothing will be due.
    pub fn idle_for(&self, now: Duration) -> Duration {
        let first = self.queue.first().into_iter().chain(self.checkpoint_queue.first()).map(|(at, _)| *at).min();
        match first {
            Some(at) if self.term.is_some() => at.saturating_sub(now).clamp(SLICE, IDLE),
            _ => IDLE,
        }
    }

    fn insert(&mut self, id: i64, ttl_seconds: i64, deadline: Duration, now: Duration) {
        let checkpoint_at = checkpoint_interval(ttl_seconds).map(|interval| now + interval);
        let held = Held {
            ttl_seconds,
            deadline,
            queued_at: Some(deadline),
            stored_seconds: 0,
            checkpoints_under_way: 0,
            checkpoint_from: now,
            checkpoint_at,
        };
        self.queue.insert((deadline, id));
        self.checkpoint_queue.extend(checkpoint_at.map(|at| (at, id)));
        self.leases.insert(id, held);
    }

    fn revoked(&mut self, id: i64) {
        let Some(held) = self.leases.remove(&id) else { return };
        match held.queued_at {
            Some(at) => {
                self.queue.remove(&(at, id));
            }
            None => self.revokes_in_flight -= 1,
        }
        if let Some(at) = held.checkpoint_at {
            self.checkpoint_queue.remove(&(at, id));
        }
        self.understated.remove(&id);
    }

    fn checkpointed(&mut self, id: i64, remaining_seconds: i64, now: Duration) {
        let left = self.end_of(id).map_or(Duration::ZERO, |end| end.saturating_sub(now));
        let Some(held) = self.leases.get_mut(&id) else { return };
        held.stored_seconds = remaining_seconds;
        // Meant for a lease of this id that was revoked and granted again meanwhile, or overtaken by a renewal: a new
        // leader would end it too early. The second more is for time that passed on the way.
        let understates = remaining_seconds > 0 && seconds(remaining_seconds) + Duration::from_secs(1) < left;
        match understates && held.checkpoints_under_way == 0 {
            true => self.understated.insert(id),
            false => self.understated.remove(&id),
        };
    }

    /// A process that stood still has not heard its clients. What ran out meanwhile gets an election timeout, in which
    /// the renewals that wait in its sockets are heard.
    fn look_at_clock(&mut self, now: Duration) {
        if now.saturating_sub(self.seen) > STALL {
            self.spared = Some((self.seen, now + self.election_timeout));
        }
        self.seen = self.seen.max(now);
    }

    /// When a lease is over.
    fn end_of(&self, id: i64) -> Option<Duration> {
        let deadline = self.leases.get(&id)?.deadline;
        Some(match self.spared {
            Some((from, until)) if from < deadline && deadline < until => until,
            _ => deadline,
        })
    }

    fn due_revokes(&mut self, now: Duration) -> Vec<i64> {
        let mut revokes = Vec::new();
        while let Some((at, id)) = self.queue.first().copied().filter(|(at, _)| *at <= now) {
            let end = self.end_of(id).unwrap_or(at);
            if end <= now && (self.revokes_in_flight >= REVOKES_IN_FLIGHT_MAX || self.credit < cost(1)) {
                break;
            }
            self.queue.remove(&(at, id));
            let held = self.leases.get_mut(&id).expect("what is queued is held: revoked() takes it out of both");
            if end > now {
                held.queued_at = Some(end);
                self.queue.insert((end, id));
                continue;
            }
            held.queued_at = None;
            self.revokes_in_flight += 1;
            self.credit -= cost(1);
            revokes.push(id);
        }
        revokes
    }

    fn due_checkpoints(&mut self, now: Duration, may_checkpoint: bool) -> Vec<(i64, i64)> {
        let mut checkpoints = Vec::new();
        while may_checkpoint
            && checkpoints.len() < CHECKPOINTS_MAX
            && let Some(id) = self.understated.pop_first()
        {
            checkpoints.push((id, 0));
        }
        while checkpoints.len() < CHECKPOINTS_MAX
            && let Some((at, id)) = self.checkpoint_queue.first().copied().filter(|(at, _)| *at <= now)
        {
            self.checkpoint_queue.remove(&(at, id));
            let left = self.end_of(id).map_or(Duration::ZERO, |end| end.saturating_sub(now));
            let held = self.leases.get_mut(&id).expect("what is queued is held: revoked() takes it out of both");
            let interval = checkpoint_interval(held.ttl_seconds).unwrap_or(CHECKPOINT_INTERVAL);
            let renewed = held.checkpoint_from + interval > now;
            let next = if renewed { held.checkpoint_from + interval } else { now + interval };
            held.checkpoint_at = Some(next);
            self.checkpoint_queue.insert((next, id));
            // Rounded up: what a new leader adds to it must not be too little.
            let left_seconds = i64::try_from(left.as_millis().div_ceil(1000)).unwrap_or(i64::MAX);
            if !renewed && may_checkpoint && left_seconds > 0 && left_seconds < held.ttl_seconds {
                held.checkpoint_from = now;
                held.checkpoints_under_way += 1;
                checkpoints.push((id, left_seconds));
            }
        }
        checkpoints
    }
}

/// How long a lease goes without renewal before what is left of it is written down, and then each time. Clients renew
/// after a third of the time, so those that live cost no entry.
fn checkpoint_interval(ttl_seconds: i64) -> Option<Duration> {
    let ttl = seconds(ttl_seconds);
    (ttl >= CHECKPOINTED_FROM).then(|| CHECKPOINT_INTERVAL.min(ttl / 2))
}

/// The time in which so many revokes may be handed out.
fn cost(revokes: u32) -> Duration {
    Duration::from_secs(1) / REVOKES_PER_SECOND * revokes
}

fn seconds(seconds: i64) -> Duration {
    Duration::from_secs(u64::try_from(seconds).unwrap_or(0))
}

#[cfg(test)]
#[path = "deadlines_tests.rs"]
mod tests;

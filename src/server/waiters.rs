//! Who waits for what: proposals for their outcome, reads for an index, everybody for progress.
//!
//! The raft thread and the apply thread leave word here, through `Listener`, and never wait; tasks pick it up. This is
//! the line between threads and tokio.

use std::collections::HashMap;
use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::MutexGuard;
use std::sync::PoisonError;
use std::time::Instant;

use bytes::Bytes;
use prometheus::IntGauge;
use tokio::sync::Notify;
use tokio::sync::oneshot;
use tokio::sync::watch;

use crate::common::answer::Answer;
use crate::server::apply::outcome::Outcome;
use crate::server::apply::outcome::Reply;
use crate::server::apply::ports::Listener;
use crate::server::raft::state_machine::RaftStatus;
use crate::server::raft::state_machine::Refusal;

/// Proposals that wait for their outcome. Full means clients are told that there are too many requests.
pub const WAITERS_MAX: usize = 4096;

/// Word for one waiter.
#[derive(Debug, PartialEq)]
pub enum Notice {
    Answered(Result<Reply, Answer>),
    /// It is not in the log and will not be by itself.
    Refused(Refusal),
    /// A snapshot took the place of its entry: whether it was applied is unknown.
    Lost,
}

/// Proposals by request id.
#[derive(Clone, Debug, Default)]
pub struct Waiters {
    waiting: Arc<Mutex<HashMap<u64, oneshot::Sender<Notice>>>>,
}

/// A place among the waiters; given up when dropped, for instance because the caller left.
#[derive(Debug)]
pub struct Waiting {
    id: u64,
    told: bool,
    receiver: oneshot::Receiver<Notice>,
    waiters: Waiters,
}

/// All waiters are taken.
#[derive(Debug, PartialEq, Eq)]
pub struct Full;

impl Waiters {
    /// Takes a place for this id. Ids are unique, so none is taken twice.
    pub fn register(&self, id: u64) -> Result<Waiting, Full> {
        let (sender, receiver) = oneshot::channel();
        let mut waiting = lock(&self.waiting);
        if waiting.len() >= WAITERS_MAX {
            return Err(Full);
        }
        waiting.insert(id, sender);
        Ok(Waiting { id, told: false, receiver, waiters: self.clone() })
    }

    /// Leaves word for one waiter; nothing happens if it is gone.
    pub fn notify(&self, id: u64, notice: Notice) {
        let sender = lock(&self.waiting).remove(&id);
        if let Some(sender) = sender {
            // A waiter that left meanwhile wants no word.
            let _ = sender.send(notice);
        }
    }

    /// Leaves word for many at once: one lock for a batch, most of which is unknown here on a follower.
    fn answer(&self, outcomes: Vec<Outcome>) {
        let mut waiting = lock(&self.waiting);
        let known =
            outcomes.into_iter().filter_map(|outcome| Some((waiting.remove(&outcome.request_id)?, outcome.result)));
        let known: Vec<_> = known.collect();
        drop(waiting);
        for (sender, result) in known {
            let _ = sender.send(Notice::Answered(result));
        }
    }

    fn notify_all(&self, notice: impl Fn() -> Notice) {
        let all = std::mem::take(&mut *lock(&self.waiting));
        for sender in all.into_values() {
            let _ = sender.send(notice());
        }
    }

    pub fn len(&self) -> usize {
        lock(&self.waiting).len()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

impl Waiting {
    /// Waits for word.
    pub async fn notice(&mut self) -> Notice {
        // The sender is dropped unused only with the whole desk.
        let notice = (&mut self.receiver).await.unwrap_or(Notice::Answered(Err(Answer::Stopped)));
        self.told = true;
        notice
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        // Whoever left word has cleared the place.
        if !self.told {
            lock(&self.waiters.waiting).remove(&self.id);
        }
    }
}

/// What raft last said, and how often leaders changed.
#[derive(Clone, Copy, Debug, Default)]
pub struct RaftNow {
    pub status: RaftStatus,
    /// Counts changes of the leader to another one (etcd counts no change to none).
    pub leader_changes: u64,
    /// When the present leader became known.
    pub leader_since: Option<Instant>,
    /// Counts terms whose first entry was applied.
    pub terms_started: u64,
}

/// A compaction: ordered up to here, records deleted up to here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CompactionProgress {
    pub scheduled: i64,
    pub finished: i64,
}

/// Answers of raft to questions for a read index that wait to be looked at. Each question has one at most, and the next
/// one comes after its answer or half a second; if there are more all the same, the oldest go, and are asked for again.
const READS_READY_MAX: usize = 64;

/// Where threads leave word and tasks wait for it.
pub struct Desk {
    pub waiters: Waiters,
    raft: watch::Sender<RaftNow>,
    applied: watch::Sender<u64>,
    compaction: watch::Sender<CompactionProgress>,
    stopped: watch::Sender<bool>,
    removed: watch::Sender<bool>,
    /// This member ought to raise NOSPACE; `duties/nospace` does.
    pub space_wanted: Notify,
    /// Contexts and indexes that raft has confirmed, for `read`.
    reads_ready: Mutex<VecDeque<(Bytes, u64)>>,
    read_ready: Notify,
    metrics: DeskMetrics,
}

impl Desk {
    /// A desk for a member whose state has applied the log up to `applied`.
    pub fn new(applied: u64, metrics: DeskMetrics) -> Desk {
        metrics.applied.set(gauge(applied));
        Desk {
            waiters: Waiters::default(),
            raft: watch::Sender::default(),
            applied: watch::Sender::new(applied),
            compaction: watch::Sender::new(CompactionProgress { scheduled: -1, finished: -1 }),
            stopped: watch::Sender::new(false),
            removed: watch::Sender::new(false),
            space_wanted: Notify::new(),
            reads_ready: Mutex::default(),
            read_ready: Notify::new(),
            metrics,
        }
    }

    /// What raft last said.
    pub fn raft_now(&self) -> RaftNow {
        *self.raft.borrow()
    }

    pub fn watch_raft(&self) -> watch::Receiver<RaftNow> {
        self.raft.subscribe()
    }

    pub fn applied_index(&self) -> u64 {
        *self.applied.borrow()
    }

    pub fn watch_applied(&self) -> watch::Receiver<u64> {
        self.applied.subscribe()
    }

    pub fn watch_compaction(&self) -> watch::Receiver<CompactionProgress> {
        self.compaction.subscribe()
    }

    pub fn is_stopped(&self) -> bool {
        *self.stopped.borrow()
    }

    /// Resolves when the member stops.
    pub async fn until_stopped(&self) {
        // The sender is our own field, so the channel cannot close while we wait.
        let _ = self.stopped.subscribe().wait_for(|stopped| *stopped).await;
    }

    /// Resolves when this member was removed from the cluster: the process ends with exit code 0 (server.md 6.2).
    pub async fn until_removed(&self) {
        let _ = self.removed.subscribe().wait_for(|removed| *removed).await;
    }

    /// The member stops: everyone who waits is told so, and everyone who comes later.
    pub fn stop(&self) {
        self.stopped.send_replace(true);
        self.waiters.notify_all(|| Notice::Answered(Err(Answer::Stopped)));
    }

    /// Resolves when a read index was confirmed.
    pub async fn until_read_ready(&self) {
        self.read_ready.notified().await;
    }

    /// What was confirmed since the last call: contexts and their indexes.
    pub fn take_reads_ready(&self) -> Vec<(Bytes, u64)> {
        lock(&self.reads_ready).drain(..).collect()
    }
}

impl Listener for Desk {
    fn answered(&self, outcomes: Vec<Outcome>) {
        self.waiters.answer(outcomes);
    }

    fn applied(&self, index: u64) {
        self.metrics.applied.set(gauge(index));
        self.applied.send_replace(index);
    }

    fn term_started(&self) {
        self.raft.send_modify(|now| now.terms_started += 1);
    }

    fn outcomes_lost(&self) {
        self.waiters.notify_all(|| Notice::Lost);
    }

    fn out_of_space(&self) {
        self.space_wanted.notify_one();
    }

    fn compaction(&self, scheduled: i64, finished: i64) {
        self.compaction.send_replace(CompactionProgress { scheduled, finished });
    }

    fn refused(&self, request_id: u64, why: Refusal) {
        self.waiters.notify(request_id, Notice::Refused(why));
    }

    fn read_ready(&self, context: Bytes, index: u64) {
        {
            let mut ready = lock(&self.reads_ready);
            if ready.len() == READS_READY_MAX {
                ready.pop_front();
            }
            ready.push_back((context, index));
        }
        self.read_ready.notify_one();
    }

    fn removed(&self) {
        self.removed.send_replace(true);
    }

    fn status_changed(&self, status: RaftStatus) {
        self.raft.send_if_modified(|now| {
            let RaftStatus { commit_index, last_index, .. } = status;
            let only_indexes = RaftStatus { commit_index, last_index, ..now.status } == status;
            let new_leader = status.leader.is_some() && status.leader != now.status.leader;
            now.status = status;
            if new_leader {
                now.leader_changes += 1;
                now.leader_since = Some(Instant::now());
            }
            // Indexes move with every write: they are looked up, nobody waits for them here.
            !only_indexes
        });
    }
}

/// What the desk counts, by etcd's name (a gauge there too, server.md trap 40).
#[derive(Clone)]
pub struct DeskMetrics {
    applied: IntGauge,
}

impl DeskMetrics {
    pub fn register(registry: &prometheus::Registry) -> DeskMetrics {
        let applied =
            IntGauge::new("etcd_server_proposals_applied_total", "The total number of consensus proposals applied.");
        let applied = applied.expect("a valid name");
        registry.register(Box::new(applied.clone())).expect("registered once");
        DeskMetrics { applied }
    }
}

/// Locks; a panic of another holder left nothing half done, since every critical section is one step.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn gauge(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    use crate::common::ids::MemberId;

    fn desk() -> Desk {
        Desk::new(0, DeskMetrics::register(&prometheus::Registry::new()))
    }

    fn leader(id: u64) -> RaftStatus {
        RaftStatus { leader: Some(MemberId(id)), ..RaftStatus::default() }
    }

    #[tokio::test]
    async fn a_waiter_gets_its_own_answer_and_leaves_no_trace() {
        let desk = desk();
        let mut one = desk.waiters.register(1).expect("room");
        let two = desk.waiters.register(2).expect("room");
        let done = |revision| Ok(Reply::Done { revision });
        desk.answered(vec![
            Outcome { request_id: 1, result: done(5) },
            Outcome { request_id: 9, result: Err(Answer::NoSpace) },
        ]);
        assert_eq!(one.notice().await, Notice::Answered(done(5)));
        assert_eq!(desk.waiters.len(), 1);
        drop(two);
        assert!(desk.waiters.is_empty());
    }

    #[tokio::test]
    async fn places_are_bounded_and_come_back() {
        let desk = desk();
        let mut all: Vec<Waiting> =
            (0..WAITERS_MAX as u64).map(|id| desk.waiters.register(id).expect("room")).collect();
        assert_eq!(desk.waiters.register(u64::MAX).err(), Some(Full));
        desk.refused(3, Refusal::Dropped);
        assert_eq!(all[3].notice().await, Notice::Refused(Refusal::Dropped));
        assert!(desk.waiters.register(u64::MAX).is_ok());
        desk.outcomes_lost();
        assert_eq!(all[4].notice().await, Notice::Lost);
    }

    #[tokio::test]
    async fn the_stop_reaches_all_who_wait() {
        let desk = desk();
        let mut waiting = desk.waiters.register(1).expect("room");
        desk.stop();
        desk.until_stopped().await;
        assert!(desk.is_stopped());
        desk.removed();
        desk.until_removed().await;
        assert_eq!(waiting.notice().await, Notice::Answered(Err(Answer::Stopped)));
    }

    #[tokio::test]
    async fn confirmed_reads_wait_to_be_taken_and_are_bounded() {
        let desk = desk();
        for index in 0..=READS_READY_MAX as u64 {
            desk.read_ready(Bytes::from_static(b"context"), index);
        }
        desk.until_read_ready().await;
        let taken = desk.take_reads_ready();
        assert_eq!((taken.len(), taken[0].1), (READS_READY_MAX, 1));
        assert!(desk.take_reads_ready().is_empty());
    }

    #[test]
    fn indexes_are_shown_without_waking_anyone() {
        let desk = desk();
        desk.status_changed(leader(1));
        let mut watcher = desk.watch_raft();
        desk.status_changed(RaftStatus { commit_index: 7, last_index: 9, ..leader(1) });
        assert_eq!((desk.raft_now().status.commit_index, watcher.has_changed().expect("open")), (7, false));
        desk.status_changed(RaftStatus { term: 2, commit_index: 7, last_index: 9, ..leader(1) });
        assert!(watcher.has_changed().expect("open"));
        watcher.mark_unchanged();
        desk.status_changed(leader(2));
        assert!(watcher.has_changed().expect("open"));
    }

    #[test]
    fn changes_to_another_leader_are_counted() {
        let desk = desk();
        let check = |status: RaftStatus, changes: u64| {
            desk.status_changed(status);
            assert_eq!(desk.raft_now().leader_changes, changes);
        };
        check(RaftStatus::default(), 0);
        check(leader(1), 1);
        check(leader(1), 1);
        check(leader(2), 2);
        check(RaftStatus::default(), 2);
        check(leader(2), 3);
    }
}

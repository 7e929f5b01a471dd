//! What waits for the raft thread: one lock, one wake-up, everything taken at once.
//!
//! Nothing in here ever blocks a sender. Clients are refused at the door when it is full; peers' messages are dropped
//! (raft repeats them); reports are kept one per member, so they need no bound and are never dropped.

use std::collections::BTreeMap;
use std::collections::BTreeSet;
use std::sync::Condvar;
use std::sync::Mutex;
use std::sync::MutexGuard;
use std::sync::PoisonError;
use std::time::Instant;

use bytes::Bytes;

use super::input::Proposal;
use crate::common::ids::MemberId;
use crate::proto::raftpb::ConfChange;
use crate::proto::raftpb::Message;
use crate::proto::raftpb::Snapshot;
use crate::proto::walpb;

/// Proposals waiting to be stepped. Full means that clients get "too many requests", not a longer queue.
pub const PROPOSALS_MAX: usize = 4_096;
/// Their bytes.
pub const PROPOSAL_BYTES_MAX: usize = 64 << 20;
/// Peer messages waiting to be stepped. Full means that they are dropped.
pub const PEER_MESSAGES_MAX: usize = 4_096;
/// Their bytes; one message is always taken.
pub const PEER_BYTES_MAX: usize = 64 << 20;
/// Reads waiting to be stepped; dropped when full, their callers ask again.
pub const READS_MAX: usize = 1_024;
/// What a message counts beside its contents.
const MESSAGE_OVERHEAD_BYTES: usize = 128;

/// Everything that waits, by kind; in the order in which the driver steps it.
#[derive(Debug, Default)]
pub struct Waiting {
    pub unreachable: BTreeSet<MemberId>,
    pub snapshot_reports: BTreeMap<MemberId, bool>,
    /// In index order; apply reports each before a later applied index.
    pub conf_changes_applied: Vec<(u64, Option<ConfChange>)>,
    /// The highest reported, 0 for none.
    pub applied: u64,
    pub snapshot_built: Option<Snapshot>,
    /// The last two at most: the one before the last bounds the log's release.
    pub checkpoints: Vec<walpb::Snapshot>,
    pub peer: Vec<Message>,
    pub transfer: Option<MemberId>,
    pub campaign: bool,
    pub reads: Vec<Bytes>,
    pub proposals: Vec<Proposal>,
    /// With the term that each is bound to.
    pub term_proposals: Vec<(u64, Proposal)>,
    pub conf_changes: Vec<(u64, ConfChange)>,
    pub stop: bool,
    proposal_bytes: usize,
    peer_bytes: usize,
    any: bool,
}

impl Waiting {
    /// Whether one more proposal of this size may wait.
    fn has_room(&self, bytes: usize) -> bool {
        let count = self.proposals.len() + self.term_proposals.len() + self.conf_changes.len();
        count < PROPOSALS_MAX && self.proposal_bytes + bytes <= PROPOSAL_BYTES_MAX
    }
}

/// The box, shared by the raft thread and everyone else.
#[derive(Debug, Default)]
pub struct Mailbox {
    waiting: Mutex<Inner>,
    wake: Condvar,
}

#[derive(Debug, Default)]
struct Inner {
    waiting: Waiting,
    /// The raft thread sleeps: only then is a wake-up worth a system call.
    asleep: bool,
    /// The raft thread would do something at once if more were applied.
    awaits_applied: bool,
    /// The raft thread has ended: nothing is taken any more.
    closed: bool,
}

impl Mailbox {
    /// Takes one proposal. False if there is no room, or nobody to step it.
    pub fn propose(&self, proposal: Proposal) -> bool {
        self.put(|waiting| {
            let room = waiting.has_room(proposal.data.len());
            if room {
                waiting.proposal_bytes += proposal.data.len();
                waiting.proposals.push(proposal);
            }
            room
        })
    }

    /// Takes one proposal that only the leader of `term` may append.
    pub fn propose_in_term(&self, term: u64, proposal: Proposal) -> bool {
        self.put(|waiting| {
            let room = waiting.has_room(proposal.data.len());
            if room {
                waiting.proposal_bytes += proposal.data.len();
                waiting.term_proposals.push((term, proposal));
            }
            room
        })
    }

    pub fn propose_conf_change(&self, request_id: u64, change: ConfChange) -> bool {
        self.put(|waiting| {
            let room = waiting.has_room(0);
            if room {
                waiting.conf_changes.push((request_id, change));
            }
            room
        })
    }

    /// Takes a peer's message; false if it was dropped.
    pub fn peer(&self, message: Message) -> bool {
        let bytes = message_bytes(&message);
        self.put(|waiting| {
            let empty = waiting.peer.is_empty();
            let room = waiting.peer.len() < PEER_MESSAGES_MAX && waiting.peer_bytes + bytes <= PEER_BYTES_MAX;
            if room || empty {
                waiting.peer_bytes += bytes;
                waiting.peer.push(message);
            }
            room || empty
        })
    }

    pub fn read(&self, context: Bytes) -> bool {
        self.put(|waiting| {
            let room = waiting.reads.len() < READS_MAX;
            if room {
                waiting.reads.push(context);
            }
            room
        })
    }

    /// Takes a report or an order: there is always room for these. False if the raft thread has ended.
    pub fn report(&self, put: impl FnOnce(&mut Waiting)) -> bool {
        self.put(|waiting| {
            put(waiting);
            true
        })
    }

    /// Takes apply's progress. It comes once a batch and seldom changes anything by itself: unless the thread awaits it,
    /// it lies here until the thread wakes for something else, and is stepped before that.
    pub fn applied(&self, index: u64) {
        let mut inner = self.lock();
        if inner.closed {
            return;
        }
        inner.waiting.applied = inner.waiting.applied.max(index);
        if inner.awaits_applied {
            self.wake(inner);
        }
    }

    fn put(&self, put: impl FnOnce(&mut Waiting) -> bool) -> bool {
        let mut inner = self.lock();
        if inner.closed || !put(&mut inner.waiting) {
            return false;
        }
        self.wake(inner);
        true
    }

    fn wake(&self, mut inner: MutexGuard<'_, Inner>) {
        inner.waiting.any = true;
        let wake = std::mem::take(&mut inner.asleep);
        drop(inner);
        if wake {
            self.wake.notify_one();
        }
    }

    /// Everything that waits; sleeps until there is something, or `deadline` has come. Apply's progress counts as
    /// something only with `awaits_applied`.
    pub fn take(&self, deadline: Instant, awaits_applied: bool) -> Waiting {
        let mut inner = self.lock();
        inner.awaits_applied = awaits_applied;
        if awaits_applied && inner.waiting.applied > 0 {
            inner.waiting.any = true;
        }
        while !inner.waiting.any {
            let Some(left) = deadline.checked_duration_since(Instant::now()).filter(|left| !left.is_zero()) else {
                break;
            };
            inner.asleep = true;
            inner = self.wake.wait_timeout(inner, left).unwrap_or_else(PoisonError::into_inner).0;
        }
        inner.asleep = false;
        std::mem::take(&mut inner.waiting)
    }

    /// Everything that waits, if anything does.
    pub fn take_now(&self) -> Waiting {
        std::mem::take(&mut self.lock().waiting)
    }

    /// Refuses everything from now on.
    pub fn close(&self) {
        let mut inner = self.lock();
        inner.closed = true;
        inner.waiting = Waiting::default();
    }

    /// No code panics while it holds the lock, and none leaves half a change behind.
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn message_bytes(message: &Message) -> usize {
    let entries: usize = message.entries.iter().map(|entry| entry.data.len() + MESSAGE_OVERHEAD_BYTES).sum();
    let snapshot = message.snapshot.as_ref().map_or(0, |snapshot| snapshot.data.len());
    entries + snapshot + message.context.len() + MESSAGE_OVERHEAD_BYTES
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::Duration;

    use super::*;

    fn proposal(bytes: usize) -> Proposal {
        Proposal { request_id: 1, data: vec![0; bytes].into() }
    }

    #[test]
    fn proposals_are_refused_above_count_and_bytes() {
        let mailbox = Mailbox::default();
        for _ in 0..PROPOSALS_MAX {
            assert!(mailbox.propose(proposal(1)));
        }
        assert!(!mailbox.propose(proposal(1)) && !mailbox.propose_conf_change(1, ConfChange::default()));
        assert_eq!(mailbox.take(Instant::now(), false).proposals.len(), PROPOSALS_MAX);
        assert!(mailbox.propose(proposal(PROPOSAL_BYTES_MAX)));
        assert!(!mailbox.propose(proposal(1)));
    }

    #[test]
    fn peer_messages_are_dropped_and_reports_are_not() {
        let mailbox = Mailbox::default();
        let taken = (0..PEER_MESSAGES_MAX + 5).filter(|_| mailbox.peer(Message::default())).count();
        assert_eq!(taken, PEER_MESSAGES_MAX);
        for _ in 0..PEER_MESSAGES_MAX {
            assert!(mailbox.report(|waiting| {
                waiting.unreachable.insert(MemberId(7));
            }));
        }
        let waiting = mailbox.take(Instant::now(), false);
        assert_eq!((waiting.peer.len(), waiting.unreachable.len()), (PEER_MESSAGES_MAX, 1));
    }

    #[test]
    fn one_message_above_the_byte_limit_is_taken() {
        let mailbox = Mailbox::default();
        let large = || Message { context: vec![0; PEER_BYTES_MAX + 1].into(), ..Default::default() };
        assert!(mailbox.peer(large()));
        assert!(!mailbox.peer(large()) && !mailbox.peer(Message::default()));
    }

    #[test]
    fn a_put_wakes_the_sleeper_and_a_closed_box_takes_nothing() {
        let mailbox = Arc::new(Mailbox::default());
        let sleeper = {
            let mailbox = mailbox.clone();
            std::thread::spawn(move || mailbox.take(Instant::now() + Duration::from_secs(60), false).reads)
        };
        assert!(mailbox.read(Bytes::from_static(b"r")));
        assert_eq!(sleeper.join().unwrap(), [Bytes::from_static(b"r")]);
        mailbox.close();
        assert!(!mailbox.read(Bytes::from_static(b"r")) && !mailbox.report(|_| {}));
    }

    #[test]
    fn progress_of_apply_wakes_only_a_thread_that_awaits_it_and_is_never_lost() {
        let mailbox = Mailbox::default();
        mailbox.applied(7);
        assert!(!mailbox.lock().waiting.any);
        // It came before the thread said that it awaits it: taken without a sleep all the same.
        assert_eq!(mailbox.take(Instant::now() + Duration::from_secs(60), true).applied, 7);
        mailbox.applied(8);
        assert!(mailbox.lock().waiting.any);
        assert_eq!(mailbox.take(Instant::now() + Duration::from_secs(60), false).applied, 8);
        mailbox.applied(9);
        assert!(mailbox.read(Bytes::from_static(b"r")));
        assert_eq!(mailbox.take(Instant::now() + Duration::from_secs(60), false).applied, 9);
    }
}

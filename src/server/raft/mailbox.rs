//! What waits for the raft thread: one lock, one wake-up, everything taken at once.
//!
//! While the thread sleeps, its work lies here, too, and whoever has a proposal and knows that it is the only one may
//! borrow it: waking the thread and being woken by it costs a lone caller more than the write itself. There is one work,
//! and it is lent only while nothing waits, so what waits is done in its order by whoever has it. A borrower does not
//! keep the thread's deadlines: it gives the work back after one round, and wakes the thread if its time has come or
//! something was put in meanwhile.
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

/// How the work is left while nobody does it.
#[derive(Clone, Copy, Debug, Default)]
pub struct Rest {
    /// Something would be done at once if more were applied.
    pub awaits_applied: bool,
    /// One proposal alone may be done by whoever brings it.
    pub lendable: bool,
    /// The thread is wanted at once, whether anything waits or not.
    pub wanted: bool,
}

/// The box, shared by the raft thread and everyone else. `W` is the thread's work.
#[derive(Debug)]
pub struct Mailbox<W> {
    inner: Mutex<Inner<W>>,
    wake: Condvar,
}

#[derive(Debug)]
struct Inner<W> {
    waiting: Waiting,
    /// The work, while the thread sleeps and nobody has borrowed it.
    work: Option<W>,
    rest: Rest,
    /// The raft thread sleeps and can go on when woken: only then is a wake-up worth a system call.
    asleep: bool,
    /// The thread's deadline has come while the work was lent.
    overdue: bool,
    /// The raft thread has ended: nothing is taken any more.
    closed: bool,
}

impl<W> Default for Mailbox<W> {
    fn default() -> Mailbox<W> {
        let (waiting, rest) = (Waiting::default(), Rest::default());
        let inner = Inner { waiting, work: None, rest, asleep: false, overdue: false, closed: false };
        Mailbox { inner: Mutex::new(inner), wake: Condvar::new() }
    }
}

impl<W> Inner<W> {
    fn leave(&mut self, work: W, rest: Rest) {
        self.work = Some(work);
        self.rest = rest;
        self.waiting.any |= rest.wanted || (rest.awaits_applied && self.waiting.applied > 0);
    }
}

impl<W> Mailbox<W> {
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
        if inner.rest.awaits_applied {
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

    fn wake(&self, mut inner: MutexGuard<'_, Inner<W>>) {
        inner.waiting.any = true;
        let wake = std::mem::take(&mut inner.asleep);
        drop(inner);
        if wake {
            self.wake.notify_one();
        }
    }

    /// Leaves the work here and sleeps until something waits, or `deadline` has come; then takes both. Apply's progress
    /// counts as something only if it is awaited.
    pub fn sleep(&self, work: W, rest: Rest, deadline: Instant) -> (W, Waiting) {
        let mut inner = self.lock();
        inner.leave(work, rest);
        loop {
            let left = deadline.checked_duration_since(Instant::now()).filter(|left| !left.is_zero());
            let lent = inner.work.is_none();
            inner = match left {
                _ if !lent && inner.waiting.any => break,
                None if !lent => break,
                Some(left) => {
                    // Whoever has the work wakes us with it.
                    inner.asleep = !lent;
                    self.wake.wait_timeout(inner, left).unwrap_or_else(PoisonError::into_inner).0
                }
                None => {
                    inner.overdue = true;
                    self.wake.wait(inner).unwrap_or_else(PoisonError::into_inner)
                }
            };
        }
        inner.asleep = false;
        inner.overdue = false;
        let work = inner.work.take().expect("the loop ends only when the work is here");
        (work, std::mem::take(&mut inner.waiting))
    }

    /// The work, with what lies here unawaited, if the thread sleeps over it with nothing to do. To be given back at once.
    pub fn borrow(&self) -> Option<(W, Waiting)> {
        let mut inner = self.lock();
        if inner.closed || !inner.asleep || inner.waiting.any || !inner.rest.lendable {
            return None;
        }
        let work = inner.work.take()?;
        // Nobody wakes the thread to find nothing; `give_back` looks whether it is needed.
        inner.asleep = false;
        Some((work, std::mem::take(&mut inner.waiting)))
    }

    /// The work of `borrow`.
    pub fn give_back(&self, work: W, rest: Rest) {
        let mut inner = self.lock();
        inner.leave(work, rest);
        if inner.waiting.any || inner.overdue {
            drop(inner);
            self.wake.notify_one();
        } else {
            inner.asleep = true;
        }
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
    fn lock(&self) -> MutexGuard<'_, Inner<W>> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
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

    const IDLE: Rest = Rest { awaits_applied: false, lendable: true, wanted: false };
    const AWAITS_APPLIED: Rest = Rest { awaits_applied: true, ..IDLE };

    /// What is there without a sleep.
    fn take(mailbox: &Mailbox<()>, rest: Rest) -> Waiting {
        mailbox.sleep((), rest, Instant::now() + Duration::from_secs(60)).1
    }

    fn proposal(bytes: usize) -> Proposal {
        Proposal { request_id: 1, data: vec![0; bytes].into() }
    }

    #[test]
    fn proposals_are_refused_above_count_and_bytes() {
        let mailbox = Mailbox::<()>::default();
        for _ in 0..PROPOSALS_MAX {
            assert!(mailbox.propose(proposal(1)));
        }
        assert!(!mailbox.propose(proposal(1)) && !mailbox.propose_conf_change(1, ConfChange::default()));
        assert_eq!(mailbox.take_now().proposals.len(), PROPOSALS_MAX);
        assert!(mailbox.propose(proposal(PROPOSAL_BYTES_MAX)));
        assert!(!mailbox.propose(proposal(1)));
    }

    #[test]
    fn peer_messages_are_dropped_and_reports_are_not() {
        let mailbox = Mailbox::<()>::default();
        let taken = (0..PEER_MESSAGES_MAX + 5).filter(|_| mailbox.peer(Message::default())).count();
        assert_eq!(taken, PEER_MESSAGES_MAX);
        for _ in 0..PEER_MESSAGES_MAX {
            assert!(mailbox.report(|waiting| {
                waiting.unreachable.insert(MemberId(7));
            }));
        }
        let waiting = mailbox.take_now();
        assert_eq!((waiting.peer.len(), waiting.unreachable.len()), (PEER_MESSAGES_MAX, 1));
    }

    #[test]
    fn one_message_above_the_byte_limit_is_taken() {
        let mailbox = Mailbox::<()>::default();
        let large = || Message { context: vec![0; PEER_BYTES_MAX + 1].into(), ..Default::default() };
        assert!(mailbox.peer(large()));
        assert!(!mailbox.peer(large()) && !mailbox.peer(Message::default()));
    }

    #[test]
    fn a_put_wakes_the_sleeper_and_a_closed_box_takes_nothing() {
        let mailbox = Arc::new(Mailbox::<()>::default());
        let sleeper = {
            let mailbox = mailbox.clone();
            std::thread::spawn(move || take(&mailbox, IDLE).reads)
        };
        assert!(mailbox.read(Bytes::from_static(b"r")));
        assert_eq!(sleeper.join().unwrap(), [Bytes::from_static(b"r")]);
        mailbox.close();
        assert!(!mailbox.read(Bytes::from_static(b"r")) && !mailbox.report(|_| {}));
    }

    #[test]
    fn progress_of_apply_wakes_only_a_thread_that_awaits_it_and_is_never_lost() {
        let mailbox = Mailbox::<()>::default();
        mailbox.applied(7);
        assert!(!mailbox.lock().waiting.any);
        // It came before the thread said that it awaits it: taken without a sleep all the same.
        assert_eq!(take(&mailbox, AWAITS_APPLIED).applied, 7);
        mailbox.applied(8);
        assert!(mailbox.lock().waiting.any);
        assert_eq!(take(&mailbox, IDLE).applied, 8);
        mailbox.applied(9);
        assert!(mailbox.read(Bytes::from_static(b"r")));
        assert_eq!(take(&mailbox, IDLE).applied, 9);
    }

    fn until(what: &str, condition: impl Fn() -> bool) {
        let end = Instant::now() + Duration::from_secs(30);
        while !condition() {
            assert!(Instant::now() < end, "never: {what}");
            std::thread::yield_now();
        }
    }

    #[test]
    fn work_is_lent_while_its_owner_sleeps_over_an_empty_box() {
        let mailbox = Arc::new(Mailbox::<u32>::default());
        assert_eq!(mailbox.borrow().map(|lent| lent.0), None, "nobody has left anything here");
        let sleeper = {
            let mailbox = mailbox.clone();
            std::thread::spawn(move || mailbox.sleep(1, IDLE, Instant::now() + Duration::from_secs(60)))
        };
        until("it sleeps", || mailbox.lock().asleep);
        mailbox.applied(7);
        let (work, waiting) = mailbox.borrow().expect("it sleeps");
        assert_eq!((work, waiting.applied), (1, 7), "what lies here comes along");
        assert!(mailbox.borrow().is_none(), "there is one work");
        // Nothing was put in: the sleeper sleeps on, and the work is lent again.
        mailbox.give_back(work + 1, IDLE);
        let (work, _) = mailbox.borrow().expect("it sleeps");
        // Put in meanwhile: the sleeper gets it with the work, and not before.
        assert!(mailbox.propose(proposal(1)));
        mailbox.give_back(work + 1, IDLE);
        let (work, waiting) = sleeper.join().unwrap();
        assert_eq!((work, waiting.proposals.len()), (3, 1));
    }

    #[test]
    fn what_waits_or_is_not_idle_is_not_lent() {
        let check = |rest: Rest, put: fn(&Mailbox<()>), lent: bool| {
            let mailbox = Mailbox::<()>::default();
            // As `sleep` leaves it before it waits.
            mailbox.lock().leave((), rest);
            mailbox.lock().asleep = true;
            put(&mailbox);
            assert_eq!(mailbox.borrow().is_some(), lent, "{rest:?}");
        };
        check(IDLE, |_| {}, true);
        check(Rest { lendable: false, ..IDLE }, |_| {}, false);
        check(Rest { wanted: true, ..IDLE }, |_| {}, false);
        check(IDLE, |mailbox| assert!(mailbox.read(Bytes::new())), false);
        check(IDLE, Mailbox::close, false);
        check(IDLE, |mailbox| mailbox.applied(1), true);
        check(AWAITS_APPLIED, |mailbox| mailbox.applied(1), false);
    }

    #[test]
    fn a_deadline_that_comes_while_the_work_is_lent_is_kept_when_it_is_back() {
        let mailbox = Arc::new(Mailbox::<u32>::default());
        let sleeper = {
            let mailbox = mailbox.clone();
            std::thread::spawn(move || mailbox.sleep(1, IDLE, Instant::now() + Duration::from_millis(300)))
        };
        until("it sleeps, or is late", || mailbox.lock().asleep || sleeper.is_finished());
        let Some((work, _)) = mailbox.borrow() else {
            // This machine was busy for longer than the deadline.
            assert_eq!(sleeper.join().unwrap().0, 1);
            return;
        };
        until("the deadline", || mailbox.lock().overdue);
        mailbox.give_back(work + 1, IDLE);
        assert_eq!(sleeper.join().unwrap().0, 2);
        let inner = mailbox.lock();
        assert!(!inner.overdue && !inner.asleep);
    }

    #[test]
    fn work_that_is_wanted_comes_back_with_nothing() {
        let mailbox = Mailbox::<()>::default();
        let waiting = take(&mailbox, Rest { wanted: true, ..IDLE });
        assert_eq!((waiting.proposals.len(), waiting.stop), (0, false));
    }
}

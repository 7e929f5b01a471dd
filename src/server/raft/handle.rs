//! How the rest of the member speaks to the raft thread: every call puts something into the mailbox and returns.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::PoisonError;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering;
use std::thread;
use std::thread::JoinHandle;

use bytes::Bytes;

use super::config::UNAPPLIED_BYTES_MAX;
use super::config::UNAPPLIED_ENTRIES_MAX;
use super::driver::Driver;
use super::driver::LENT_BYTES_MAX;
use super::input::Proposal;
use super::mailbox::Mailbox;
use super::state_machine::Inbox;
use super::state_machine::RaftStatus;
use crate::common::ids::MemberId;
use crate::proto::raftpb::ConfChange;
use crate::proto::raftpb::ConfState;
use crate::proto::raftpb::Message;
use crate::proto::raftpb::Snapshot;
use crate::proto::walpb;

/// The proposal was not taken: it is not in the log and will not be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Busy {
    /// Too many wait, or apply is too far behind.
    #[error("too many requests")]
    TooMany,
    #[error("raft has stopped")]
    Stopped,
}

/// What the raft thread shows and takes.
#[derive(Debug, Default)]
pub(super) struct Shared {
    pub mailbox: Mailbox<Box<Driver>>,
    pub status: Mutex<RaftStatus>,
    pub matches: Mutex<BTreeMap<MemberId, u64>>,
    /// Cleared before any message under a larger configuration, or of a lost leadership, leaves.
    pub lone_leader: AtomicBool,
    pub stopped: AtomicBool,
    pub commit_index: AtomicU64,
    pub applied_index: AtomicU64,
    pub unapplied_bytes: AtomicU64,
    pub peer_messages_dropped: AtomicU64,
}

/// A handle on the raft thread. All clones speak to the same one; the thread lives until `stop`.
#[derive(Clone, Debug)]
pub struct RaftHandle {
    shared: Arc<Shared>,
    thread: Arc<Mutex<Option<JoinHandle<()>>>>,
}

impl RaftHandle {
    pub(super) fn new(shared: Arc<Shared>, thread: Option<JoinHandle<()>>) -> RaftHandle {
        RaftHandle { shared, thread: Arc::new(Mutex::new(thread)) }
    }

    /// Proposes an entry. If it is refused later, `StateMachine::refused` says so; if it is neither applied nor refused,
    /// its fate is unknown. `data` goes into the log as it is: it must own its buffer (DESIGN.md 2).
    pub fn propose(&self, request_id: u64, data: Bytes) -> Result<(), Busy> {
        self.admit()?;
        self.taken(self.shared.mailbox.propose(Proposal { request_id, data }))
    }

    /// The same, by a caller who believes to be the only one and may wait for the disk: if the raft thread has nothing to
    /// do and this member is the only voter, the entry is in the log, committed and given to apply when this returns.
    pub fn propose_here(&self, request_id: u64, data: Bytes) -> Result<(), Busy> {
        if data.len() > LENT_BYTES_MAX {
            return self.propose(request_id, data);
        }
        self.admit()?;
        let Some((mut driver, mut waiting)) = self.shared.mailbox.borrow() else {
            return self.taken(self.shared.mailbox.propose(Proposal { request_id, data }));
        };
        waiting.proposals.push(Proposal { request_id, data });
        driver.work_lent(waiting);
        let rest = driver.rest();
        self.shared.mailbox.give_back(driver, rest);
        Ok(())
    }

    /// The same, but the entry is appended only by this member as the leader of `term`; otherwise it is refused with
    /// `TermOver`. So what a leader decided by its own clock cannot enter the log of another leader's term, and the term
    /// of the entry says whose decision it was (reliability.md B41).
    pub fn propose_in_term(&self, term: u64, request_id: u64, data: Bytes) -> Result<(), Busy> {
        self.admit()?;
        self.taken(self.shared.mailbox.propose_in_term(term, Proposal { request_id, data }))
    }

    /// Proposes a configuration change, encoded as etcd does.
    pub fn propose_conf_change(&self, request_id: u64, change: ConfChange) -> Result<(), Busy> {
        self.admit()?;
        self.taken(self.shared.mailbox.propose_conf_change(request_id, change))
    }

    /// Asks for a read index; `StateMachine::read_ready` answers, or nobody does: ask again after a while, with a new
    /// context. A context must never be used twice (reliability.md R1).
    pub fn read_index(&self, context: Bytes) {
        self.shared.mailbox.read(context);
    }

    /// Apply has applied everything up to `index`.
    pub fn applied(&self, index: u64) {
        self.shared.applied_index.fetch_max(index, Ordering::Relaxed);
        self.shared.mailbox.applied(index);
    }

    /// Apply has applied the configuration change at `index`; `None` if it rejected it. To be called for every entry
    /// that is a configuration change, before `applied` passes it.
    pub fn conf_change_applied(&self, index: u64, change: Option<ConfChange>) {
        self.shared.mailbox.report(|waiting| waiting.conf_changes_applied.push((index, change)));
    }

    /// A checkpoint of the state at `index` is durable.
    pub fn checkpointed(&self, index: u64, term: u64, conf_state: ConfState) {
        let checkpoint = walpb::Snapshot { index, term, conf_state: Some(conf_state) };
        self.shared.mailbox.report(|waiting| {
            if waiting.checkpoints.len() == 2 {
                waiting.checkpoints.remove(0);
            }
            waiting.checkpoints.push(checkpoint);
        });
    }

    /// Answers `StateMachine::build_snapshot`. Its index is at most the applied index reported before.
    pub fn snapshot_built(&self, snapshot: Snapshot) {
        self.shared.mailbox.report(|waiting| waiting.snapshot_built = Some(snapshot));
    }

    /// The snapshot given to `StateMachine::install` is in place.
    pub fn snapshot_installed(&self, index: u64) {
        self.applied(index);
    }

    /// Passes leadership on, or asks the leader to. Nothing says whether it worked but the status.
    pub fn transfer_leader(&self, to: MemberId) {
        self.shared.mailbox.report(|waiting| waiting.transfer = Some(to));
    }

    /// Campaigns without waiting for the election timeout.
    pub fn campaign(&self) {
        self.shared.mailbox.report(|waiting| waiting.campaign = true);
    }

    pub fn status(&self) -> RaftStatus {
        *self.shared.status.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether a read needs no round of heartbeats: take the current View.
    pub fn lone_leader(&self) -> bool {
        self.shared.lone_leader.load(Ordering::SeqCst)
    }

    /// What `member` has of the log, as far as this leader knows; `None` if this is no leader or it is no member.
    pub fn match_index(&self, member: MemberId) -> Option<u64> {
        self.shared.matches.lock().unwrap_or_else(PoisonError::into_inner).get(&member).copied()
    }

    /// Peer messages dropped because the mailbox was full.
    pub fn peer_messages_dropped(&self) -> u64 {
        self.shared.peer_messages_dropped.load(Ordering::Relaxed)
    }

    /// Ends the raft thread and waits for it. What was proposed and not applied has an unknown fate.
    pub fn stop(&self) {
        self.shared.mailbox.report(|waiting| waiting.stop = true);
        let thread = self.thread.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(thread) = thread.filter(|thread| thread.thread().id() != thread::current().id()) {
            // The thread's own guard has reported a panic.
            let _ = thread.join();
        }
    }

    /// Refuses at the door, so that nothing behind it needs a bound (DESIGN.md 2).
    fn admit(&self) -> Result<(), Busy> {
        let committed = self.shared.commit_index.load(Ordering::Relaxed);
        let applied = self.shared.applied_index.load(Ordering::Relaxed);
        let bytes = self.shared.unapplied_bytes.load(Ordering::Relaxed);
        if committed.saturating_sub(applied) > UNAPPLIED_ENTRIES_MAX || bytes > UNAPPLIED_BYTES_MAX {
            return Err(Busy::TooMany);
        }
        Ok(())
    }

    fn taken(&self, taken: bool) -> Result<(), Busy> {
        match taken {
            true => Ok(()),
            false if self.shared.stopped.load(Ordering::Relaxed) => Err(Busy::Stopped),
            false => Err(Busy::TooMany),
        }
    }
}

impl Inbox for RaftHandle {
    fn step(&self, message: Message) {
        if !self.shared.mailbox.peer(message) {
            self.shared.peer_messages_dropped.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn report_unreachable(&self, member: MemberId) {
        self.shared.mailbox.report(|waiting| {
            waiting.unreachable.insert(member);
        });
    }

    fn report_snapshot(&self, member: MemberId, delivered: bool) {
        self.shared.mailbox.report(|waiting| {
            waiting.snapshot_reports.insert(member, delivered);
        });
    }
}

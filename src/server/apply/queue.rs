//! The queue in front of the apply thread, and the handle that others put things into.
//!
//! Putting never waits, because raft must not wait for apply (DESIGN.md 2). The queue is bounded at the door: clients
//! are refused when 5,000 entries or 64 MiB wait, and a follower drops appends.
//!
//! While nothing waits, the thread leaves its work here, and whoever commits a few plain entries takes it and applies them
//! at once: for a lone put, waking the thread costs more than the work. There is one work, and it is taken only while the
//! queue is empty, so entries are applied in their order by whoever has it.

use std::collections::VecDeque;
use std::panic::AssertUnwindSafe;
use std::panic::catch_unwind;
use std::sync::Arc;
use std::sync::Condvar;
use std::sync::Mutex;
use std::sync::MutexGuard;
use std::sync::PoisonError;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::AtomicUsize;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;

use crate::common::failure::Failure;
use crate::common::revision::Revision;
use crate::proto::raftpb::Entry;
use crate::proto::raftpb::Snapshot;
use crate::server::apply::ports::FrozenState;
use crate::server::apply::ports::Listener;
use crate::server::apply::thread::Thread;
use crate::server::apply::thread::panicked;
use crate::server::checkpoint::Tables;
use crate::server::lease::Lessor;
use crate::server::raft::state_machine::RaftStatus;
use crate::server::raft::state_machine::Refusal;
use crate::server::raft::state_machine::StateMachine;

/// Entries that are applied by who commits them, at most: some twenty microseconds, less than waking the thread costs. With
/// more it pays that raft writes the next ones meanwhile.
pub(super) const INLINE_ENTRIES_MAX: usize = 16;

/// Their bytes.
const INLINE_BYTES_MAX: usize = 64 << 10;

/// Why entries were not applied at once.
pub(super) enum NotNow {
    /// They are the thread's, untouched.
    Entries(Vec<Entry>),
    Failure(Failure),
}

/// What the thread takes, in order.
pub enum Input {
    Commit(Vec<Entry>),
    Install(Snapshot),
    BuildSnapshot,
    /// Somebody wants the state as it is between two entries.
    Freeze(OnFrozen),
    /// Somebody wants to look at the leases between two entries.
    Look(OnLook),
    /// A durable write of the flusher: tables that hold it, and its newest record.
    Stored {
        tables: Arc<dyn Tables>,
        up_to: Option<Revision>,
    },
    Stop,
}

/// Takes a frozen state; called on the apply thread, so it only hands it on.
pub type OnFrozen = Box<dyn FnOnce(FrozenState) + Send>;

/// Looks at the leases; called on the apply thread, so it only takes what it needs.
pub type OnLook = Box<dyn FnOnce(&Lessor) + Send>;

/// Ends the process with a sentence.
pub type OnFailure = Arc<dyn Fn(Failure) + Send + Sync>;

/// Puts things into the queue. Clones are the same queue.
#[derive(Clone)]
pub struct ApplyHandle {
    shared: Arc<Shared>,
}

struct Shared {
    queue: Mutex<Queue>,
    filled: Condvar,
    /// Bytes of entries that wait or are being applied.
    unapplied_bytes: AtomicUsize,
    failed: AtomicBool,
    listener: Arc<dyn Listener>,
    on_failure: OnFailure,
}

#[derive(Default)]
struct Queue {
    inputs: VecDeque<Input>,
    /// The work, while its thread has nothing to do and nobody else has taken it.
    parked: Option<Box<Thread>>,
    /// The thread sleeps: only then is a wake-up worth a system call.
    asleep: bool,
    /// The work failed in other hands: there is nothing left to do it with.
    lost: bool,
}

impl ApplyHandle {
    /// A queue before its thread: what is put in waits until `thread::start`.
    pub fn new(listener: Arc<dyn Listener>, on_failure: OnFailure) -> ApplyHandle {
        let shared = Shared {
            queue: Mutex::default(),
            filled: Condvar::new(),
            unapplied_bytes: AtomicUsize::new(0),
            failed: AtomicBool::new(false),
            listener,
            on_failure,
        };
        ApplyHandle { shared: Arc::new(shared) }
    }

    /// Bytes of entries that are committed and not yet applied.
    pub fn unapplied_bytes(&self) -> usize {
        self.shared.unapplied_bytes.load(Ordering::Relaxed)
    }

    /// The flusher wrote durably. `tables` hold everything up to and including `up_to`.
    pub fn stored(&self, tables: Arc<dyn Tables>, up_to: Option<Revision>) {
        self.put(Input::Stored { tables, up_to });
    }

    /// Asks for the state as it is between two entries. Nothing comes when the thread has ended.
    pub fn freeze(&self, on_frozen: OnFrozen) {
        self.put(Input::Freeze(on_frozen));
    }

    /// Asks for a look at the leases, with their keys, between two entries. None comes when the thread has ended.
    pub fn look(&self, on_look: OnLook) {
        self.put(Input::Look(on_look));
    }

    /// Lets the thread end behind everything that waits now.
    pub fn stop(&self) {
        self.put(Input::Stop);
    }

    /// The first failure ends the process; later ones are consequences.
    pub fn fail(&self, failure: Failure) {
        if !self.shared.failed.swap(true, Ordering::SeqCst) {
            tracing::error!(%failure, "this member cannot go on");
            (self.shared.on_failure)(failure);
        }
    }

    pub(super) fn listener(&self) -> &dyn Listener {
        self.shared.listener.as_ref()
    }

    /// Waits for the next input; `None` when `pause` passed without one. Without a pause the work lies here meanwhile.
    pub(super) fn take(&self, work: Box<Thread>, pause: Option<Duration>) -> (Option<Box<Thread>>, Option<Input>) {
        let mut queue = self.lock();
        if let Some(pause) = pause {
            if queue.inputs.is_empty() {
                queue.asleep = true;
                let waited = self.shared.filled.wait_timeout(queue, pause);
                queue = waited.unwrap_or_else(PoisonError::into_inner).0;
                queue.asleep = false;
            }
            return (Some(work), queue.inputs.pop_front());
        }
        queue.parked = Some(work);
        while !queue.lost && (queue.parked.is_none() || queue.inputs.is_empty()) {
            queue.asleep = true;
            queue = self.shared.filled.wait(queue).unwrap_or_else(PoisonError::into_inner);
            queue.asleep = false;
        }
        let work = queue.parked.take();
        (work, queue.inputs.pop_front())
    }

    /// The next input, if any waits.
    pub(super) fn take_now(&self) -> Option<Input> {
        self.lock().inputs.pop_front()
    }

    /// Leaves the work here, as its thread does while it sleeps. For those who have no thread.
    pub fn park(&self, work: Box<Thread>) {
        self.lock().parked = Some(work);
    }

    /// Takes it back; `None` if it failed in other hands.
    pub fn unpark(&self) -> Option<Box<Thread>> {
        self.lock().parked.take()
    }

    /// Applies the entries here and now if they are few and plain and the work lies idle; else gives them back.
    fn apply_now(&self, entries: Vec<Entry>) -> Result<(), Vec<Entry>> {
        if entries.len() > INLINE_ENTRIES_MAX || entries_bytes(&entries) > INLINE_BYTES_MAX {
            return Err(entries);
        }
        let Some(mut work) = self.claim() else { return Err(entries) };
        let result = catch_unwind(AssertUnwindSafe(|| work.commit_now(entries)));
        let result = result.unwrap_or_else(|panic| Err(NotNow::Failure(panicked(&*panic))));
        let mut queue = self.lock();
        match result {
            Ok(()) => queue.parked = Some(work),
            Err(NotNow::Entries(entries)) => {
                queue.parked = Some(work);
                return Err(entries);
            }
            Err(NotNow::Failure(failure)) => {
                queue.lost = true;
                self.wake(queue);
                self.fail(failure);
                return Ok(());
            }
        }
        if !queue.inputs.is_empty() {
            // Somebody else put something in meanwhile and left the wake-up to us.
            self.wake(queue);
        }
        Ok(())
    }

    /// Whether the work lies here.
    #[cfg(test)]
    pub(super) fn is_parked(&self) -> bool {
        self.lock().parked.is_some()
    }

    fn claim(&self) -> Option<Box<Thread>> {
        let mut queue = self.lock();
        if queue.inputs.is_empty() { queue.parked.take() } else { None }
    }

    /// Entries of this many bytes are applied.
    pub(super) fn applied_bytes(&self, bytes: usize) {
        self.shared.unapplied_bytes.fetch_sub(bytes, Ordering::Relaxed);
    }

    /// Forgets reports about a checkpoint that was replaced.
    pub(super) fn drop_stored(&self) {
        self.lock().inputs.retain(|input| !matches!(input, Input::Stored { .. }));
    }

    fn put(&self, input: Input) {
        let mut queue = self.lock();
        queue.inputs.push_back(input);
        self.wake(queue);
    }

    fn wake(&self, queue: MutexGuard<'_, Queue>) {
        let asleep = queue.asleep;
        drop(queue);
        if asleep {
            self.shared.filled.notify_one();
        }
    }

    fn lock(&self) -> MutexGuard<'_, Queue> {
        self.shared.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Bytes that entries count as while they wait.
pub(super) fn entries_bytes(entries: &[Entry]) -> usize {
    entries.iter().map(|entry| entry.data.len()).sum()
}

impl StateMachine for ApplyHandle {
    fn commit(&self, entries: Vec<Entry>) {
        self.shared.unapplied_bytes.fetch_add(entries_bytes(&entries), Ordering::Relaxed);
        if let Err(entries) = self.apply_now(entries) {
            self.put(Input::Commit(entries));
        }
    }

    fn install(&self, snapshot: Snapshot) {
        self.put(Input::Install(snapshot));
    }

    fn build_snapshot(&self) {
        self.put(Input::BuildSnapshot);
    }

    fn refused(&self, request_id: u64, why: Refusal) {
        self.shared.listener.refused(request_id, why);
    }

    fn read_ready(&self, context: Bytes, index: u64) {
        self.shared.listener.read_ready(context, index);
    }

    fn status_changed(&self, status: RaftStatus) {
        self.shared.listener.status_changed(status);
    }

    fn failed(&self, failure: Failure) {
        self.fail(failure);
    }

    fn removed(&self) {
        self.shared.listener.removed();
    }
}

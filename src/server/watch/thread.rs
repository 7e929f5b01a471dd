//! The hub's thread, the thread that reads history for it, and the queues between them and everybody else.
//!
//! Nobody who puts something into the queue waits. Requests are bounded by each stream; changes by bytes: when too many
//! wait, the next ones are dropped and the hub reads them from history. So a hub that cannot follow costs apply nothing.

use std::any::Any;
use std::collections::VecDeque;
use std::panic::AssertUnwindSafe;
use std::panic::catch_unwind;
use std::sync::Arc;
use std::sync::Condvar;
use std::sync::Mutex;
use std::sync::MutexGuard;
use std::sync::PoisonError;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering;
use std::thread;
use std::thread::JoinHandle;
use std::time::Duration;

use crate::common::failure::Failure;
use crate::server::checkpoint::Record;
use crate::server::mvcc::view::View;
use crate::server::watch::catchup;
use crate::server::watch::catchup::Historian;
use crate::server::watch::group;
use crate::server::watch::group::SharedGroup;
use crate::server::watch::hub::Action;
use crate::server::watch::hub::Ask;
use crate::server::watch::hub::Event;
use crate::server::watch::hub::Hub;
use crate::server::watch::hub::Present;
use crate::server::watch::metrics::WatchMetrics;
use crate::server::watch::stream::AllBytes;
use crate::server::watch::stream::Outbox;
use crate::server::watch::stream::WatchStream;

/// Bytes of changes that wait for the hub. Full means that they are dropped here and read from history.
const RECORD_BYTES_MAX: usize = 16 << 20;

/// What a record costs in the queue beside its key and value.
const RECORD_COST_BYTES: usize = 128;

/// Events between two flushes: the first watcher of a crowd need not wait for the last.
const TURN_EVENTS: usize = 256;

/// Time without a job after which slices kept for others are forgotten.
const IDLE_AFTER: Duration = Duration::from_secs(1);

/// What the threads need of the member.
pub trait Member: Present + Send + Sync {
    /// The newest View, for a slice of history.
    fn view(&self) -> Arc<View>;
    /// The node cannot go on.
    fn failed(&self, failure: Failure);
}

#[derive(Default)]
struct Inbox {
    events: VecDeque<Event>,
    record_bytes: usize,
    /// Records were dropped since the last ones that were taken.
    dropped: bool,
    sleeping: bool,
    /// The hub must learn at once how far the revisions are, whatever they changed.
    awaits_head: bool,
    stopped: bool,
}

#[derive(Default)]
struct Jobs {
    waiting: VecDeque<Action>,
    stopped: bool,
}

#[derive(Default)]
struct Shared {
    inbox: Mutex<Inbox>,
    wake: Condvar,
    jobs: Mutex<Jobs>,
    job_added: Condvar,
    /// Somebody watches: written by the hub's thread only.
    wanted: AtomicBool,
    group: SharedGroup,
    streams: AtomicU64,
    all_bytes: AllBytes,
}

/// The way to the hub. Clones share it.
#[derive(Clone, Default)]
pub struct WatchHandle {
    shared: Arc<Shared>,
}

/// Both threads; they end behind `stop`.
pub struct WatchThreads {
    handle: WatchHandle,
    threads: Vec<JoinHandle<()>>,
}

// Every critical section leaves the queues whole.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl WatchHandle {
    /// Opens a stream. It closes when dropped.
    pub fn open(&self) -> WatchStream {
        let id = self.shared.streams.fetch_add(1, Ordering::Relaxed);
        let outbox = Arc::new(Outbox::new(self.shared.all_bytes.clone()));
        self.push(Event::Open { stream: id, outbox: outbox.clone() });
        WatchStream::new(id, outbox, self.clone())
    }

    pub(super) fn close(&self, stream: u64) {
        self.push(Event::Close { stream });
    }

    pub(super) fn ask(&self, stream: u64, ask: Ask) {
        self.push(Event::Ask { stream, ask });
    }

    pub(super) fn tick(&self, stream: u64) {
        self.push(Event::Tick { stream });
    }

    pub(super) fn drained(&self, stream: u64) {
        self.push(Event::Drained { stream });
    }

    /// Whether anybody watches. Apply asks behind publishing a batch; whoever begins to watch later than that reads the
    /// published revision after it, so a batch that is not offered is none that he waits for.
    pub fn is_wanted(&self) -> bool {
        self.shared.wanted.load(Ordering::SeqCst)
    }

    /// Whether anybody watches the key. A watcher that this does not see yet has its place from a revision that it reads
    /// later, and the hub knows it (`Hub::passed`).
    pub fn concerns(&self, key: &[u8]) -> bool {
        group::read(&self.shared.group).concerns(key)
    }

    /// Revisions `first..=last`, which readers can see, changed nothing that is watched. The hub is not woken for that.
    pub fn passed(&self, first: i64, last: i64) {
        let mut inbox = lock(&self.shared.inbox);
        match inbox.events.back_mut() {
            Some(Event::Passed { last: before, .. }) if *before + 1 == first => *before = last,
            _ => inbox.events.push_back(Event::Passed { first, last }),
        }
        if inbox.awaits_head && std::mem::take(&mut inbox.sleeping) {
            drop(inbox);
            self.shared.wake.notify_one();
        }
    }

    /// All changes of revisions `first..=last`, which readers can see. Never waits.
    pub fn records(&self, first: i64, last: i64, records: Vec<Record>) {
        let cost = |record: &Record| record.kv.key.len() + record.kv.value.len() + RECORD_COST_BYTES;
        let bytes: usize = records.iter().map(cost).sum();
        let mut inbox = lock(&self.shared.inbox);
        if inbox.record_bytes > 0 && inbox.record_bytes + bytes > RECORD_BYTES_MAX {
            inbox.dropped = true;
            return;
        }
        inbox.record_bytes += bytes;
        self.put(inbox, Event::Records { first, last, records });
    }

    /// The store was replaced by another one, further on.
    pub fn replaced(&self) {
        self.push(Event::Gap);
    }

    fn push(&self, event: Event) {
        self.put(lock(&self.shared.inbox), event);
    }

    fn put(&self, mut inbox: MutexGuard<'_, Inbox>, event: Event) {
        inbox.events.push_back(event);
        let sleeping = std::mem::take(&mut inbox.sleeping);
        drop(inbox);
        if sleeping {
            self.shared.wake.notify_one();
        }
    }

    /// Everything that waits; `None` at the stop.
    fn take(&self, awaits_head: bool) -> Option<VecDeque<Event>> {
        let mut inbox = lock(&self.shared.inbox);
        inbox.awaits_head = awaits_head;
        loop {
            if inbox.stopped {
                return None;
            }
            if !inbox.events.is_empty() {
                inbox.record_bytes = 0;
                let mut events = std::mem::take(&mut inbox.events);
                if std::mem::take(&mut inbox.dropped) {
                    events.push_back(Event::Gap);
                }
                return Some(events);
            }
            inbox.sleeping = true;
            inbox = self.shared.wake.wait(inbox).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// The next job; `idle` is called when there was none for a while. `None` at the stop.
    fn take_job(&self, mut idle: impl FnMut()) -> Option<Action> {
        let mut jobs = lock(&self.shared.jobs);
        let mut is_idle = false;
        loop {
            if jobs.stopped {
                return None;
            }
            if let Some(job) = jobs.waiting.pop_front() {
                return Some(job);
            }
            if is_idle {
                jobs = self.shared.job_added.wait(jobs).unwrap_or_else(PoisonError::into_inner);
                continue;
            }
            let waited = self.shared.job_added.wait_timeout(jobs, IDLE_AFTER);
            let (waiting, timeout) = waited.unwrap_or_else(PoisonError::into_inner);
            jobs = waiting;
            if timeout.timed_out() {
                is_idle = true;
                idle();
            }
        }
    }

    fn run(&self, mut hub: Hub, member: &dyn Member, metrics: &WatchMetrics) {
        let mut actions = Vec::new();
        while let Some(events) = self.take(hub.awaits_head()) {
            let mut pending = events.iter().map(changes).sum::<usize>();
            for (turn, event) in events.into_iter().enumerate() {
                pending -= changes(&event);
                if matches!(event, Event::Ask { ask: Ask::Create(_), .. }) {
                    // Before the hub reads the revision that the watcher starts from (see `is_wanted`).
                    self.shared.wanted.store(true, Ordering::SeqCst);
                }
                hub.step(event, member, &mut actions);
                self.start(&mut actions);
                if turn % TURN_EVENTS == TURN_EVENTS - 1 {
                    hub.flush();
                    metrics.show(hub.counts(), pending);
                }
            }
            hub.flush();
            metrics.show(hub.counts(), pending);
            if hub.counts().watchers == 0 {
                self.shared.wanted.store(false, Ordering::SeqCst);
            }
        }
    }

    fn start(&self, actions: &mut Vec<Action>) {
        if !actions.is_empty() {
            lock(&self.shared.jobs).waiting.extend(actions.drain(..));
            self.shared.job_added.notify_one();
        }
    }

    fn read_history(&self, member: &dyn Member) {
        let mut historian = Historian::default();
        while let Some(action) = self.take_job(|| historian.forget()) {
            let read = match action {
                Action::Slice(job) => historian.slice(&job, || member.view()).map(Event::Slice),
                Action::Replay { first } => catchup::replay(first, &member.view()).map(Event::Replayed),
            };
            match read {
                Ok(event) => self.push(event),
                Err(failure) => return member.failed(failure),
            }
        }
    }
}

fn changes(event: &Event) -> usize {
    if let Event::Records { records, .. } = event { records.len() } else { 0 }
}

/// Starts both threads over a member.
pub fn start(
    handle: &WatchHandle,
    hub: Hub,
    member: Arc<dyn Member>,
    metrics: WatchMetrics,
) -> Result<WatchThreads, Failure> {
    let hub = hub.sharing(handle.shared.group.clone());
    let (to_hub, to_history) = (handle.clone(), handle.clone());
    let (hub_member, history_member) = (member.clone(), member.clone());
    let hub_thread = spawn("watch", member.clone(), move || to_hub.run(hub, &*hub_member, &metrics))?;
    let mut threads = WatchThreads { handle: handle.clone(), threads: vec![hub_thread] };
    threads.threads.push(spawn("watch-history", member, move || to_history.read_history(&*history_member))?);
    Ok(threads)
}

/// A thread whose panic is the node's failure: watchers that are told nothing more must not look like idle ones.
fn spawn(name: &str, member: Arc<dyn Member>, work: impl FnOnce() + Send + 'static) -> Result<JoinHandle<()>, Failure> {
    let what = name.to_owned();
    let guarded = move || {
        if let Err(panic) = catch_unwind(AssertUnwindSafe(work)) {
            let text = panic_text(&*panic);
            member.failed(Failure::Refused(format!("the {what} thread panicked: {text}")));
        }
    };
    let spawned = thread::Builder::new().name(name.to_owned()).spawn(guarded);
    spawned.map_err(|error| Failure::Refused(format!("cannot start the {name} thread: {error}")))
}

fn panic_text(panic: &(dyn Any + Send)) -> &str {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("without a text")
}

impl WatchThreads {
    /// Ends both threads and waits for them. What watchers were not given, they are not given.
    pub fn stop(self) {
        lock(&self.handle.shared.inbox).stopped = true;
        lock(&self.handle.shared.jobs).stopped = true;
        self.handle.shared.wake.notify_all();
        self.handle.shared.job_added.notify_all();
        for thread in self.threads {
            // A panic was reported by the guard.
            let _ = thread.join();
        }
    }
}

//! The flusher: one thread that writes what was applied to the checkpoint, behind the requests.
//!
//! ```text
//! apply ──submit──▶ backlog (at most 64 MiB) ──4 MiB, 1 s or flush_now──▶ one transaction ──▶ on_stored
//! ```
//!
//! Batches are merged, so a transaction always ends with the applied mark of its last entry (reliability.md 2.1, B1). The
//! first failure, also a panic, is reported once and nothing is written after it (3.3, sentence 9).

use std::panic::AssertUnwindSafe;
use std::panic::catch_unwind;
use std::sync::Arc;
use std::sync::Condvar;
use std::sync::Mutex;
use std::sync::MutexGuard;
use std::sync::PoisonError;
use std::thread;
use std::thread::JoinHandle;
use std::time::Duration;
use std::time::Instant;

use crate::common::failure::Failure;
use crate::common::revision::Revision;
use crate::server::checkpoint::Applied;
use crate::server::checkpoint::Batch;
use crate::server::checkpoint::Checkpoint;
use crate::server::checkpoint::Tables;
use crate::server::checkpoint::metrics::CheckpointMetrics;

/// Waiting changes that start a write.
pub const FLUSH_BYTES: usize = 4 << 20;

/// Changes that wait longer than this are written, however few they are.
pub const FLUSH_AFTER: Duration = Duration::from_secs(1);

/// Changes waiting or being written. Full means that `submit` waits, and with it the apply thread.
pub const BACKLOG_BYTES_MAX: usize = 64 << 20;

/// What one durable write made readable.
pub struct Stored {
    /// Tables that hold everything up to and including this write.
    pub tables: Arc<dyn Tables>,
    /// The newest record of this write; `None` if it had none.
    pub up_to: Option<Revision>,
    /// What the file says now.
    pub applied: Applied,
    /// Applied index of the write before: the log may be released below this one, not below `applied` (3.3, sentence 7).
    pub previous_index: u64,
}

/// Handle of the flusher thread. Dropped without `stop` it ends without writing what waits, as a crash would.
pub struct Flusher {
    shared: Arc<Shared>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

struct Shared {
    state: Mutex<State>,
    /// Work for the thread: bytes, a request, the stop.
    work: Condvar,
    /// Progress for those who wait: room, a finished write, a swap taken, the end.
    progress: Condvar,
    metrics: CheckpointMetrics,
}

#[derive(Default)]
struct State {
    /// Merged batches that wait, and since when.
    pending: Option<(Batch, Instant)>,
    pending_bytes: usize,
    writing_bytes: usize,
    /// Batches submitted and written: `flush_now` waits until the second reaches the first as it was at the call.
    submitted: u64,
    written: u64,
    /// Write without waiting for size or time.
    urgent: bool,
    replacement: Option<Box<dyn Checkpoint>>,
    stopping: bool,
    /// Why nothing is written any more.
    ended: Option<String>,
}

/// What the thread does next.
enum Work {
    Write(Batch, u64),
    Replace(Box<dyn Checkpoint>),
    End,
}

impl Flusher {
    /// Starts the thread. `on_stored` is called on it after every durable write, `on_failure` at most once; neither may
    /// wait for a thread that is inside `submit`, `flush_now`, `swap` or `stop`.
    pub fn start(
        checkpoint: Box<dyn Checkpoint>,
        metrics: CheckpointMetrics,
        on_stored: impl Fn(Stored) + Send + 'static,
        on_failure: impl Fn(Failure) + Send + 'static,
    ) -> Result<Flusher, Failure> {
        let previous_index = checkpoint.buckets()?.1.index;
        let shared =
            Arc::new(Shared { state: Mutex::default(), work: Condvar::new(), progress: Condvar::new(), metrics });
        let writer = Writer { shared: Arc::clone(&shared), checkpoint, previous_index, on_stored };
        let body = {
            let shared = Arc::clone(&shared);
            move || shared.end_with(catch_unwind(AssertUnwindSafe(|| writer.run())), on_failure)
        };
        let thread = thread::Builder::new().name("flusher".into()).spawn(body);
        let thread = thread.map_err(|error| Failure::Refused(format!("cannot start the flusher thread: {error}")))?;
        Ok(Flusher { shared, thread: Mutex::new(Some(thread)) })
    }

    /// Hands over changes that follow all earlier ones. Waits while the backlog is full; after a failure it drops them,
    /// because the process is about to end.
    pub fn submit(&self, batch: Batch) {
        let bytes = batch.bytes();
        let mut state = self.shared.lock();
        // A batch larger than the whole backlog is let in alone.
        if state.backlog() > 0 && state.backlog() + bytes > BACKLOG_BYTES_MAX && state.ended.is_none() {
            self.shared.metrics.backlog_waits.inc();
            state.urgent = true;
            self.shared.work.notify_one();
            while state.backlog() > 0 && state.backlog() + bytes > BACKLOG_BYTES_MAX && state.ended.is_none() {
                state = self.shared.wait(state);
            }
        }
        if state.ended.is_some() {
            return;
        }
        // The thread sleeps until something waits, then until it is old enough or much enough: a wake-up for every batch
        // would find nothing to do.
        let wake = state.pending.is_none() || state.pending_bytes + bytes >= FLUSH_BYTES;
        match &mut state.pending {
            Some((pending, _)) => pending.merge(batch),
            None => state.pending = Some((batch, Instant::now())),
        }
        state.pending_bytes += bytes;
        state.submitted += 1;
        self.shared.metrics.backlog_bytes.set(state.backlog() as i64);
        if wake {
            self.shared.work.notify_one();
        }
    }

    /// Half of the backlog is taken: a small batch still goes in without waiting, and this is the time to stop trying.
    pub fn is_full(&self) -> bool {
        self.shared.lock().backlog() > BACKLOG_BYTES_MAX / 2
    }

    /// Asks for a write of what waits, and does not wait for it.
    pub fn flush_soon(&self) {
        let mut state = self.shared.lock();
        state.urgent = state.pending.is_some();
        self.shared.work.notify_one();
    }

    /// Waits until everything submitted before is durable. An error when it will never be.
    pub fn flush_now(&self) -> Result<(), Failure> {
        let mut state = self.shared.lock();
        let target = state.submitted;
        while state.written < target {
            if let Some(why) = &state.ended {
                return Err(Failure::Refused(format!("the flusher has stopped: {why}")));
            }
            state.urgent = true;
            self.shared.work.notify_one();
            state = self.shared.wait(state);
        }
        Ok(())
    }

    /// Goes on with another checkpoint, after a snapshot was installed: what waits for the old one is dropped, because the
    /// new one contains it. When this returns, no `on_stored` of the old checkpoint is under way or to come.
    pub fn swap(&self, checkpoint: Box<dyn Checkpoint>) -> Result<(), Failure> {
        let mut state = self.shared.lock();
        state.replacement = Some(checkpoint);
        state.pending = None;
        state.pending_bytes = 0;
        self.shared.work.notify_one();
        while state.replacement.is_some() {
            if let Some(why) = &state.ended {
                return Err(Failure::Refused(format!("the flusher has stopped: {why}")));
            }
            state = self.shared.wait(state);
        }
        Ok(())
    }

    /// Writes what waits and ends the thread. An error if not everything became durable.
    pub fn stop(&self) -> Result<(), Failure> {
        let flushed = self.flush_now();
        self.join();
        flushed
    }

    fn join(&self) {
        self.shared.lock().stopping = true;
        self.shared.work.notify_one();
        let thread = self.thread.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(thread) = thread.filter(|thread| thread.thread().id() != thread::current().id()) {
            // The thread's body catches its panics and reports them.
            let _ = thread.join();
        }
    }
}

impl Drop for Flusher {
    fn drop(&mut self) {
        self.join();
    }
}

impl State {
    fn backlog(&self) -> usize {
        self.pending_bytes + self.writing_bytes
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        // Poison would mean a panic between two assignments of this file; the thread's end is told in `ended`.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wait<'a>(&self, state: MutexGuard<'a, State>) -> MutexGuard<'a, State> {
        self.progress.wait(state).unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for something to do. A stop wins over what waits: `Flusher::stop` has flushed before.
    fn next_work(&self) -> Work {
        let mut state = self.lock();
        loop {
            if state.stopping {
                return Work::End;
            }
            if let Some(checkpoint) = state.replacement.take() {
                // Batches of before the swap count as written: nobody shall wait for them.
                state.written = state.submitted;
                return Work::Replace(checkpoint);
            }
            let age = state.pending.as_ref().map(|(_, since)| since.elapsed());
            let due = state.urgent || state.pending_bytes >= FLUSH_BYTES || age.is_some_and(|age| age >= FLUSH_AFTER);
            if due && let Some((batch, _)) = state.pending.take() {
                state.writing_bytes = std::mem::take(&mut state.pending_bytes);
                state.urgent = false;
                return Work::Write(batch, state.submitted);
            }
            state = match age {
                None => self.work.wait(state).unwrap_or_else(PoisonError::into_inner),
                Some(age) => {
                    let left = FLUSH_AFTER.saturating_sub(age);
                    self.work.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0
                }
            };
        }
    }

    /// The thread's guard: tells those who wait why it ended, and reports a failure or a panic once.
    fn end_with(&self, ended: thread::Result<Result<(), Failure>>, on_failure: impl Fn(Failure)) {
        let failure = match ended {
            Ok(Ok(())) => None,
            Ok(Err(failure)) => Some(failure),
            Err(panic) => {
                let text = crate::server::checkpoint::tables::panic_text(&*panic);
                Some(Failure::Refused(format!("the flusher thread panicked: {text}")))
            }
        };
        self.lock().ended = Some(failure.as_ref().map_or("it was told to".to_owned(), Failure::to_string));
        self.progress.notify_all();
        failure.into_iter().for_each(on_failure);
    }
}

/// What the thread owns.
struct Writer<F> {
    shared: Arc<Shared>,
    checkpoint: Box<dyn Checkpoint>,
    previous_index: u64,
    on_stored: F,
}

impl<F: Fn(Stored)> Writer<F> {
    fn run(mut self) -> Result<(), Failure> {
        loop {
            match self.shared.next_work() {
                Work::End => return Ok(()),
                Work::Replace(checkpoint) => self.replace(checkpoint)?,
                Work::Write(batch, submitted) => self.write(batch, submitted)?,
            }
        }
    }

    fn replace(&mut self, checkpoint: Box<dyn Checkpoint>) -> Result<(), Failure> {
        self.checkpoint = checkpoint;
        self.previous_index = self.checkpoint.buckets()?.1.index;
        self.shared.progress.notify_all();
        Ok(())
    }

    fn write(&mut self, batch: Batch, submitted: u64) -> Result<(), Failure> {
        assert!(
            batch.applied.index >= self.previous_index,
            "a batch that ends with entry {} for a file that ends with {}",
            batch.applied.index,
            self.previous_index
        );
        let timer = self.shared.metrics.commit_seconds.start_timer();
        let tables = self.checkpoint.write(&batch)?;
        timer.observe_duration();
        self.shared.metrics.file_bytes.set(self.checkpoint.file_bytes() as i64);
        let up_to = batch.records.last().map(|record| record.revision);
        let previous_index = std::mem::replace(&mut self.previous_index, batch.applied.index);
        (self.on_stored)(Stored { tables, up_to, applied: batch.applied, previous_index });
        let mut state = self.shared.lock();
        state.writing_bytes = 0;
        state.written = state.written.max(submitted);
        self.shared.metrics.backlog_bytes.set(state.backlog() as i64);
        drop(state);
        self.shared.progress.notify_all();
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;
    use std::sync::mpsc::Receiver;

    use bytes::Bytes;

    use super::*;
    use crate::proto::mvccpb::KeyValue;
    use crate::server::checkpoint::Buckets;
    use crate::server::checkpoint::Record;
    use crate::server::checkpoint::memory::MemoryCheckpoint;

    /// A flusher with its reports in channels.
    struct Bench {
        flusher: Arc<Flusher>,
        stored: Receiver<Stored>,
        failures: Receiver<String>,
        metrics: CheckpointMetrics,
    }

    fn start(checkpoint: impl Checkpoint + 'static) -> Bench {
        let metrics = CheckpointMetrics::register(&prometheus::Registry::new());
        let (stored_in, stored) = mpsc::channel();
        let (failures_in, failures) = mpsc::channel();
        let on_stored = move |report| stored_in.send(report).unwrap_or_default();
        let on_failure = move |failure: Failure| failures_in.send(failure.to_string()).unwrap_or_default();
        let flusher = Flusher::start(Box::new(checkpoint), metrics.clone(), on_stored, on_failure).unwrap();
        Bench { flusher: Arc::new(flusher), stored, failures, metrics }
    }

    fn batch(index: u64, value_bytes: usize) -> Batch {
        let revision = Revision::new(index as i64, 0);
        let value = Bytes::from(vec![1; value_bytes]);
        let kv = KeyValue { key: "k".into(), mod_revision: revision.main, value, ..Default::default() };
        let records = vec![Record { revision, tombstone: false, kv }];
        Batch { records, applied: Applied { index, term: 1, ..Default::default() }, ..Default::default() }
    }

    fn index(checkpoint: &MemoryCheckpoint) -> u64 {
        checkpoint.buckets().unwrap().1.index
    }

    /// A checkpoint whose every write waits for a word on a channel, or panics when nobody can send one any more.
    struct Gated {
        inner: MemoryCheckpoint,
        gate: Receiver<()>,
    }

    impl Checkpoint for Gated {
        fn write(&mut self, batch: &Batch) -> Result<Arc<dyn Tables>, Failure> {
            self.gate.recv().expect("the gate is held open");
            self.inner.write(batch)
        }
        fn tables(&self) -> Result<Arc<dyn Tables>, Failure> {
            self.inner.tables()
        }
        fn buckets(&self) -> Result<(Buckets, Applied), Failure> {
            self.inner.buckets()
        }
        fn file_bytes(&self) -> u64 {
            self.inner.file_bytes()
        }
    }

    #[test]
    fn flush_now_returns_when_everything_is_durable() {
        let disk = MemoryCheckpoint::new();
        let bench = start(disk.clone());
        bench.flusher.flush_now().unwrap();
        for index in 2..20 {
            bench.flusher.submit(batch(index, 10));
        }
        bench.flusher.flush_now().unwrap();
        assert_eq!(index(&disk), 19);
        let last = bench.stored.try_iter().last().unwrap();
        assert_eq!((last.applied.index, last.up_to), (19, Some(Revision::new(19, 0))));
        assert!(last.tables.record(Revision::new(2, 0)).unwrap().is_some());
    }

    #[test]
    fn size_alone_and_age_alone_start_a_write() {
        let bench = start(MemoryCheckpoint::new());
        bench.flusher.submit(batch(2, FLUSH_BYTES));
        assert_eq!(bench.stored.recv().unwrap().applied.index, 2);
        bench.flusher.submit(batch(3, 1));
        let report = bench.stored.recv().unwrap();
        assert_eq!((report.applied.index, report.previous_index), (3, 2), "the commit before this one");
        bench.flusher.submit(batch(4, 1));
        bench.flusher.flush_soon();
        assert_eq!(bench.stored.recv().unwrap().applied.index, 4);
    }

    #[test]
    fn a_full_backlog_makes_submit_wait() {
        let (open, gate) = mpsc::channel();
        let bench = start(Gated { inner: MemoryCheckpoint::new(), gate });
        bench.flusher.submit(batch(2, BACKLOG_BYTES_MAX + 1));
        let (done_in, done) = mpsc::channel();
        let flusher = Arc::clone(&bench.flusher);
        let waiter = thread::spawn(move || {
            flusher.submit(batch(3, 1));
            done_in.send(()).unwrap();
        });
        while bench.metrics.backlog_waits.get() == 0 {
            thread::yield_now();
        }
        assert!(done.try_recv().is_err(), "the backlog is full until the gate opens");
        open.send(()).unwrap();
        done.recv().unwrap();
        waiter.join().unwrap();
        open.send(()).unwrap();
        bench.flusher.stop().unwrap();
        assert_eq!(bench.metrics.backlog_bytes.get(), 0);
    }

    #[test]
    fn the_first_failure_is_told_once_and_ends_all_writing() {
        let disk = MemoryCheckpoint::new();
        disk.fail_after(1);
        let bench = start(disk.clone());
        bench.flusher.submit(batch(2, 1));
        bench.flusher.flush_now().unwrap();
        bench.flusher.submit(batch(3, 1));
        let refusal = bench.flusher.flush_now().unwrap_err().to_string();
        assert!(refusal.contains("simulated disk failure"), "{refusal}");
        for index in 4..10 {
            bench.flusher.submit(batch(index, BACKLOG_BYTES_MAX));
        }
        assert!(bench.flusher.stop().is_err());
        assert_eq!(bench.failures.iter().take(2).count(), 1);
        assert_eq!(index(&disk), 2);
    }

    #[test]
    fn a_panic_of_the_thread_is_a_failure() {
        let (open, gate) = mpsc::channel();
        let bench = start(Gated { inner: MemoryCheckpoint::new(), gate });
        bench.flusher.submit(batch(2, 1));
        drop(open);
        assert!(bench.flusher.flush_now().is_err());
        let failure = bench.failures.recv().unwrap();
        assert!(failure.contains("panicked: the gate is held open"), "{failure}");
    }

    #[test]
    fn a_swap_drops_what_waits_for_the_old_checkpoint() {
        let (old, new) = (MemoryCheckpoint::new(), MemoryCheckpoint::new());
        new.clone().write(&batch(50, 1)).unwrap();
        let bench = start(old.clone());
        bench.flusher.submit(batch(2, 1));
        bench.flusher.swap(Box::new(new.clone())).unwrap();
        bench.flusher.flush_now().unwrap();
        bench.flusher.submit(batch(51, 1));
        bench.flusher.flush_now().unwrap();
        assert_eq!((index(&old), index(&new)), (0, 51));
        assert_eq!(bench.stored.recv().unwrap().previous_index, 50);
    }

    #[test]
    fn a_stop_writes_what_waits_and_a_drop_does_not() {
        for (stop, expected) in [(true, 2), (false, 0)] {
            let disk = MemoryCheckpoint::new();
            let bench = start(disk.clone());
            bench.flusher.submit(batch(2, 1));
            if stop {
                bench.flusher.stop().unwrap();
            }
            drop(bench);
            assert_eq!(index(&disk), expected);
        }
    }
}

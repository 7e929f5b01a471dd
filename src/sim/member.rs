//! One member: the real core, put together as `server/run/member` does it, on a simulated disk and without threads.
//!
//! Real are the raft driver with its node and log, the apply thread's work with its machine, the desk where callers wait.
//! Simulated are the disk, the checkpoint (crash semantics in `checkpoint::memory`), the flusher's pace, and images of
//! snapshots, which stay in memory.

mod ports;

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::MutexGuard;
use std::sync::PoisonError;
use std::time::Duration;

use bytes::Bytes;
use prometheus::Registry;

use crate::common::answer::Answer;
use crate::common::failure::Failure;
use crate::common::ids::ClusterId;
use crate::common::ids::MemberId;
use crate::common::ids::RequestIds;
use crate::disk::sim::SimDisk;
use crate::proto::walpb;
use crate::server::apply::alarm::AlarmsHandle;
use crate::server::apply::machine::MachineConfig;
use crate::server::apply::metrics::ApplyMetrics;
use crate::server::apply::published::Published;
use crate::server::apply::queue::ApplyHandle;
use crate::server::apply::quota::Space;
use crate::server::apply::thread::CompactionPace;
use crate::server::apply::thread::Thread;
use crate::server::apply::thread::ThreadParts;
use crate::server::checkpoint::Checkpoint;
use crate::server::checkpoint::memory::MemoryCheckpoint;
use crate::server::cluster::handle::ClusterHandle;
use crate::server::raft::bootstrap::bootstrap_entries;
use crate::server::raft::config::RaftConfig;
use crate::server::raft::driver::Driver;
use crate::server::raft::driver::End;
use crate::server::raft::driver::Parts;
use crate::server::raft::handle::RaftHandle;
use crate::server::raft::metrics::RaftMetrics;
use crate::server::raft::wal::Wal;
use crate::server::raft::wal::WalOptions;
use crate::server::read::News;
use crate::server::read::READ_INDEX_RETRY;
use crate::server::read::Rounds;
use crate::server::read::Timing;
use crate::server::run::storage::resume;
use crate::server::waiters::Desk;
use crate::server::waiters::DeskMetrics;
use crate::sim::judge::Judge;
pub use crate::sim::member::ports::Hooks;
pub use crate::sim::member::ports::Image;
use crate::sim::member::ports::LogTap;
use crate::sim::member::ports::Tap;

/// Segments are small, so that a run cuts and releases many.
const SEGMENT_BYTES: u64 = 8 * 1024;
/// Received images that a member keeps; the oldest is the one that was overtaken.
const IMAGES_MAX: usize = 4;
const LOG_DIR: &str = "/member/wal";
/// RT with etcd's defaults: how long a read waits for its index, and for that to be applied.
const READ_PATIENCE: Duration = Duration::from_secs(7);

/// Shared between everything of a run; one thread, so a lock is never waited for.
pub fn lock<T>(shared: &Mutex<T>) -> MutexGuard<'_, T> {
    shared.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What outlives the process.
struct Files {
    disk: SimDisk,
    checkpoint: MemoryCheckpoint,
    /// Images that were received, by index.
    images: BTreeMap<u64, Arc<Image>>,
    /// Writes to the checkpoint that a power cut may take back: at most the last one since it was opened.
    writes: usize,
}

impl Files {
    /// Puts the image of a snapshot in the place of the checkpoint.
    fn finish_install(&mut self, index: u64) -> Result<(), Failure> {
        let image = self.images.remove(&index);
        let image = image.ok_or_else(|| Failure::Refused(format!("there is no image of the snapshot at {index}")))?;
        self.checkpoint = image.checkpoint()?;
        self.writes = 0;
        Ok(())
    }
}

/// A process.
pub struct Running {
    driver: Driver,
    /// `None` only while raft turns and the work lies in the queue.
    apply: Option<Box<Thread>>,
    /// Whether the apply thread sleeps at raft's next turn, so that raft may apply a few entries itself.
    apply_asleep: bool,
    failure: Arc<Mutex<Option<Failure>>>,
    pub raft: RaftHandle,
    pub desk: Arc<Desk>,
    pub published: Published,
    pub queue: ApplyHandle,
    pub hooks: Arc<Hooks>,
    /// The read barrier; readers are clients.
    pub reads: Rounds<usize>,
    pub ids: RequestIds,
    /// A tick has come and was not taken yet.
    pub tick_due: bool,
}

/// A member, running or not.
pub struct Member {
    pub id: MemberId,
    files: Arc<Mutex<Files>>,
    judge: Arc<Mutex<Judge>>,
    pub running: Option<Running>,
    /// How often it has started.
    pub lives: u64,
    /// An error was injected, or will be: a failure is no surprise.
    pub disk_is_bad: bool,
}

fn options() -> WalOptions {
    WalOptions { segment_bytes: SEGMENT_BYTES, fsync: true, allocate_ahead: false }
}

impl Member {
    /// A founder with a fresh disk, not started.
    pub fn new(id: MemberId, founders: &[MemberId], seed: u64, judge: Arc<Mutex<Judge>>) -> Result<Member, Failure> {
        let disk = SimDisk::new(seed);
        let metadata = walpb::Metadata { node_id: id.0, cluster_id: 1 };
        let named = |id: &MemberId| (*id, format!("m{}", id.0), vec![format!("http://127.0.0.1:{}", id.0)]);
        let (entries, hard_state, _) = bootstrap_entries(&founders.iter().map(named).collect::<Vec<_>>());
        Wal::found(Arc::new(disk.clone()), Path::new(LOG_DIR), metadata, options(), &hard_state, &entries)?;
        lock(&judge).saved(id, Some(&hard_state), &entries, true);
        Ok(Member::with(id, disk, judge))
    }

    /// One that is to join, with an empty log, not started.
    pub fn join(id: MemberId, seed: u64, judge: Arc<Mutex<Judge>>) -> Result<Member, Failure> {
        let disk = SimDisk::new(seed);
        let metadata = walpb::Metadata { node_id: id.0, cluster_id: 1 };
        Wal::create(Arc::new(disk.clone()), Path::new(LOG_DIR), metadata, options())?;
        lock(&judge).saved(id, None, &[], true);
        Ok(Member::with(id, disk, judge))
    }

    fn with(id: MemberId, disk: SimDisk, judge: Arc<Mutex<Judge>>) -> Member {
        let checkpoint = MemoryCheckpoint::new();
        let files = Files { disk, checkpoint, images: BTreeMap::new(), writes: 0 };
        Member { id, files: Arc::new(Mutex::new(files)), judge, running: None, lives: 0, disk_is_bad: false }
    }

    /// Starts the process: the steps of `server/run/storage` and `server/run/member`, in their order.
    pub fn start(&mut self, config: &RaftConfig, now_millis: u64) -> Result<(), Failure> {
        self.lives += 1;
        let disk = lock(&self.files).disk.clone();
        let (wal, recovered) = Wal::open(Arc::new(disk.clone()), Path::new(LOG_DIR), options())?;
        lock(&self.judge).recovered(self.id, &recovered);
        let checkpoint = {
            let mut files = lock(&self.files);
            let needed = recovered.base.index;
            if needed > files.checkpoint.buckets()?.1.index {
                files.finish_install(needed)?;
            }
            files.writes = 0;
            files.checkpoint.clone()
        };
        let machine_config = MachineConfig { space: Space::new(0), ttl_seconds_min: 2, learners_max: 1 };
        let space = machine_config.space.clone();
        let kept = checkpoint.buckets()?.1;
        let (start, machine) = resume(machine_config, &checkpoint, recovered)?;
        {
            let (mut judge, applied) = (lock(&self.judge), machine.applied());
            judge.starts_at(self.id, applied.index);
            judge.configuration(self.id, "its checkpoint", kept.index, &kept.conf_state);
            judge.configuration(self.id, "its state", applied.index, &applied.conf_state);
            judge.configuration(self.id, "raft", applied.index, &start.conf_state);
        }
        let registry = Registry::new();
        let desk = Arc::new(Desk::new(machine.applied().index, DeskMetrics::register(&registry)));
        // What raft applies itself fails behind its back; all else comes back from a turn.
        let failure = Arc::new(Mutex::new(None));
        let failed = failure.clone();
        let queue = ApplyHandle::new(desk.clone(), Arc::new(move |failure| *lock(&failed) = Some(failure)));
        let hooks = Arc::new(Hooks {
            id: self.id,
            judge: self.judge.clone(),
            files: self.files.clone(),
            outbox: Mutex::default(),
            pending: Mutex::default(),
            built: Mutex::default(),
        });
        let parts = Parts {
            log: Box::new(LogTap { wal, disk, hooks: hooks.clone() }),
            state: Arc::new(Tap { queue: queue.clone(), hooks: hooks.clone() }),
            transport: hooks.clone(),
            metrics: RaftMetrics::register(&registry),
            end_process: Arc::new(|_, _| {}),
        };
        let mut driver = Driver::new(config, start, parts)?;
        let raft = driver.handle();
        let cluster = ClusterHandle::new(ClusterId(1), self.id);
        let published = Published::new(cluster, AlarmsHandle::default(), space, machine.store().views());
        let parts = ThreadParts {
            raft: Arc::new(raft.clone()),
            flusher: hooks.clone(),
            snapshots: hooks.clone(),
            peers: hooks.clone(),
            events: None,
            published: published.clone(),
            metrics: ApplyMetrics::register(&registry),
            stopwatch: Box::new(|| Duration::ZERO),
            slow_after: Duration::ZERO,
            compaction: CompactionPace { batch: 8, pause: Duration::ZERO },
        };
        let apply = Some(Box::new(Thread::new(machine, queue.clone(), parts)));
        driver.begin()?;
        let ids = RequestIds::new(self.id, now_millis);
        let reads = Rounds::new(Timing { patience: READ_PATIENCE, retry: READ_INDEX_RETRY });
        self.running = Some(Running {
            driver,
            apply,
            apply_asleep: true,
            failure,
            raft,
            desk,
            published,
            queue,
            hooks,
            reads,
            ids,
            tick_due: false,
        });
        Ok(())
    }

    /// The process dies. With `power` the machine does too: what was not synced is lost or torn, and the newest write of
    /// the checkpoint may be rolled back (reliability.md 3.3, sentence 7).
    pub fn stop(&mut self, power: bool, roll_back: bool) {
        self.running = None;
        let mut files = lock(&self.files);
        // Handles of before are dead either way.
        files.checkpoint = files.checkpoint.crash(if power && roll_back { files.writes.min(1) } else { 0 });
        files.writes = 0;
        if power || files.disk.has_crashed() || self.disk_is_bad {
            files.disk = files.disk.restart();
        }
        self.disk_is_bad = false;
    }

    /// The disk of now: for faults.
    pub fn disk(&self) -> SimDisk {
        lock(&self.files).disk.clone()
    }

    /// The checkpoint's next write fails.
    pub fn fail_checkpoint(&mut self) {
        lock(&self.files).checkpoint.fail_after(0);
        self.disk_is_bad = true;
    }

    /// Whether an image waits to be put in place.
    pub fn is_installing(&self) -> bool {
        !lock(&self.files).images.is_empty()
    }

    /// An image arrived, whole and synced, before the message that names it.
    pub fn prepare(&self, index: u64, image: Arc<Image>) {
        let mut files = lock(&self.files);
        files.images.insert(index, image);
        while files.images.len() > IMAGES_MAX {
            files.images.pop_first();
        }
    }
}

impl Running {
    /// Everything that can be done now, with at most so many inputs for the apply thread. The end of the process, if that
    /// was part of it.
    pub fn work(&mut self, apply_max: usize) -> Result<Option<End>, Failure> {
        let due = std::mem::take(&mut self.tick_due);
        let mut end = self.raft_turn(due, apply_max > 0)?;
        let mut left = apply_max;
        while left > 0 && end.is_none() {
            let before = left;
            while left > 0 && self.apply_turn()? {
                left -= 1;
            }
            if left == before {
                break;
            }
            end = self.raft_turn(false, left > 0)?;
        }
        Ok(end)
    }

    /// Turns the read barrier, as `server/read` does: before the raft thread's turn, and after it. Clients that have waited
    /// long enough, with what became of their reads.
    pub fn turn_reads(&mut self, now_micros: u64) -> Vec<(usize, Result<(), Answer>)> {
        let ready = self.desk.take_reads_ready();
        let raft = self.desk.raft_now();
        let news = News {
            now: Duration::from_micros(now_micros),
            leader_changes: raft.leader_changes,
            terms_started: raft.terms_started,
            applied_index: self.desk.applied_index(),
            ready,
        };
        let work = self.reads.turn(news, || Bytes::copy_from_slice(&self.ids.next().to_be_bytes()));
        if let Some(context) = work.question {
            self.raft.read_index(context);
        }
        work.told
    }

    /// A turn of raft. Every other time the apply thread sleeps meanwhile, unless it is held.
    fn raft_turn(&mut self, due: bool, apply_moves: bool) -> Result<Option<End>, Failure> {
        self.apply_asleep = !self.apply_asleep && apply_moves;
        if self.apply_asleep
            && let Some(apply) = self.apply.take()
        {
            self.queue.park(apply);
        }
        let turned = self.driver.turn(due);
        if self.apply.is_none() {
            self.apply = self.queue.unpark();
        }
        let end = turned?;
        lock(&self.failure).take().map_or(Ok(end), Err)
    }

    fn apply_turn(&mut self) -> Result<bool, Failure> {
        self.apply.as_mut().map_or(Ok(false), |apply| apply.turn())
    }

    /// Whether the flusher has work, and whether it is urgent.
    pub fn flush_wanted(&self) -> (bool, bool) {
        let pending = lock(&self.hooks.pending);
        (pending.0.is_some(), pending.1)
    }

    /// Writes what waits for the flusher, and tells raft and apply.
    pub fn flush(&mut self) -> Result<(), Failure> {
        let batch = std::mem::take(&mut *lock(&self.hooks.pending)).0;
        let Some(batch) = batch else { return Ok(()) };
        let tables = {
            let mut files = lock(&self.hooks.files);
            files.writes += 1;
            files.checkpoint.write(&batch)?
        };
        lock(&self.hooks.judge).configuration(self.hooks.id, "a batch", batch.applied.index, &batch.applied.conf_state);
        let up_to = batch.records.last().map(|record| record.revision);
        self.raft.checkpointed(batch.applied.index, batch.applied.term, batch.applied.conf_state);
        self.queue.stored(tables, up_to);
        Ok(())
    }
}

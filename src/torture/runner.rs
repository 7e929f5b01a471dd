//! One run: a cluster, its clients, and a schedule of faults that is carried out and taken back.
//!
//! ```text
//!  start ─▶ faults, until the time is over, something was found, or the user had enough
//!        ─▶ all faults are taken back ─▶ every member must serve again ─▶ hashes ─▶ stop ─▶ logs
//! ```
//!
//! One loop owns the members and looks at them every few milliseconds; it never waits for one of them.

use std::collections::BTreeMap;
use std::collections::BTreeSet;
use std::path::Path;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;
use std::sync::atomic::Ordering;
use std::time::Duration;
use std::time::Instant;

use tokio::task::JoinHandle;
use tokio::task::JoinSet;

use crate::client::Client as Asking;
use crate::client::Config;
use crate::client::Deadline;
use crate::disk::sim::Dice;
use crate::faults::kind::Kind;
use crate::faults::network::Link as Wire;
use crate::faults::network::Network;
use crate::faults::process::Launcher;
use crate::faults::schedule;
use crate::faults::schedule::Strike;
use crate::faults::schedule::Ways;
use crate::faults::schedule::What;
use crate::faults::schedule::Whom;
use crate::faults::volume::Volume;
use crate::proto::etcdserverpb::RangeRequest;
use crate::torture::changes::Asker;
use crate::torture::changes::Change;
use crate::torture::changes::Joiner;
use crate::torture::changes::Step;
use crate::torture::checker::Fingerprint;
use crate::torture::checker::Operation;
use crate::torture::checker::Outcome;
use crate::torture::checker::leasing::Renewal;
use crate::torture::checker::locking::LockCall;
use crate::torture::checker::model::Request;
use crate::torture::checker::watching::Watch;
use crate::torture::clients::Link;
use crate::torture::clients::Record;
use crate::torture::lockers::Locker;
use crate::torture::logs::Logs;
use crate::torture::member::Member;
use crate::torture::member::Standing;
use crate::torture::member::State;
use crate::torture::starting::clients_of;
use crate::torture::starting::first_start;
use crate::torture::starting::flags_of;
use crate::torture::starting::lockers_of;
use crate::torture::starting::prepare;
use crate::torture::starting::watchers_of;
use crate::torture::workload::Workload;

/// How often the loop looks at the members.
pub const TICK: Duration = Duration::from_millis(10);
/// How often the segments of the members' logs are linked.
const KEEP_EVERY: Duration = Duration::from_millis(500);
/// How often members are asked who leads.
const LEADER_EVERY: Duration = Duration::from_millis(200);
pub const STATUS_MAX: Duration = Duration::from_millis(500);
/// Longest that the cluster may need to serve for the first time, and again when all faults are over. Long, because
/// machines that torture are busy; a cluster that is well does not wait for it.
pub const PATIENCE: Duration = Duration::from_secs(60);
/// The same after an interruption, when somebody waits, and after a finding, when a majority may be gone for good.
const PATIENCE_SHORT: Duration = Duration::from_secs(15);
/// New ports are tried so often when somebody else was quicker.
const STARTS_MAX: u32 = 3;
/// Clients that write to see whether the cluster does.
pub const PROBES: usize = 2;

/// What to run.
#[derive(Clone, Debug)]
pub struct Setup {
    pub launcher: Launcher,
    pub binary: PathBuf,
    /// The run's own directory.
    pub dir: PathBuf,
    pub members: usize,
    pub duration: Duration,
    pub seed: u64,
    pub kinds: std::collections::BTreeSet<Kind>,
    pub clients: usize,
    pub watchers: usize,
    pub lockers: usize,
    pub rate: u32,
    pub keys: u16,
    /// Further flags for every member.
    pub flags: Vec<String>,
}

/// What was done and seen.
#[derive(Debug, Default)]
pub struct Run {
    /// How long faults were made.
    pub lasted: Duration,
    pub interrupted: bool,
    /// The timing and the snapshots that the seed chose.
    pub flags: Vec<String>,
    pub operations: Vec<Operation>,
    pub watches: Vec<Watch>,
    pub renewals: Vec<Renewal>,
    pub locks: Vec<LockCall>,
    pub fingerprints: Vec<Fingerprint>,
    pub logs: Logs,
    /// All served again at the end, so that the logs say everything that was committed.
    pub settled: bool,
    /// Faults that were carried out.
    pub faults: BTreeMap<Kind, u64>,
    /// What was done, with times.
    pub trace: Vec<String>,
    /// What no member may do, seen while it ran.
    pub findings: Vec<String>,
}

/// A fault to be taken back.
struct Pending {
    due: Instant,
    undo: Undo,
}

enum Undo {
    Start(usize),
    Resume(usize),
    /// The partition or delay of this number.
    Links(u64),
    Space(usize),
    Power(usize),
}

/// What is wrong with the links now.
struct Trouble {
    number: u64,
    inside: Vec<bool>,
    what: What,
}

/// The user's wish to end, as a flag that a signal sets: 0, or the number of signals so far.
pub type Interrupts = Arc<AtomicUsize>;

/// A running cluster under its schedule.
pub struct Runner {
    setup: Setup,
    epoch: Instant,
    members: Vec<Member>,
    network: Network,
    record: Arc<Record>,
    clients: JoinSet<()>,
    lockers: JoinSet<Locker>,
    watchers: JoinSet<usize>,
    /// Position of the member that leads, as last seen.
    leader: Arc<AtomicUsize>,
    watcher: JoinHandle<()>,
    pending: Vec<Pending>,
    troubles: Vec<Trouble>,
    /// Of the membership; at most one at a time.
    change: Option<Change>,
    /// Those who have asked for changes so far.
    askers: usize,
    next_trouble: u64,
    /// Of each ordered pair: how often its connections were reset.
    resets: Vec<u64>,
    kept_at: Instant,
    interrupts: Interrupts,
    run: Run,
}

impl Runner {
    /// Starts the cluster and its clients. An error means that there was nothing to torture.
    pub async fn start(setup: Setup, interrupts: Interrupts) -> Result<Runner, String> {
        let flags = flags_of(&setup);
        let mut starts = 1;
        let (members, network) = loop {
            let (mut members, network) = prepare(&setup, &flags).await?;
            match first_start(&mut members, &network, &interrupts).await {
                Ok(()) => break (members, network),
                Err(text) if starts < STARTS_MAX && text.contains("in use") => starts += 1,
                Err(text) => return Err(text),
            }
        };
        let epoch = Instant::now();
        let record = Record::new(epoch);
        let leader = Arc::new(AtomicUsize::new(0));
        let endpoints: Vec<String> = members.iter().map(Member::endpoint).collect();
        let watcher = tokio::spawn(watch_leader(endpoints.clone(), Arc::clone(&leader)));
        let mut clients = JoinSet::new();
        for client in clients_of(&setup, &endpoints, &record) {
            clients.spawn(client.run());
        }
        let lockers = lockers_of(&setup, &endpoints, &record).into_iter().map(Locker::run).collect();
        let mut watchers = JoinSet::new();
        for (number, watcher) in watchers_of(&setup, &endpoints, &record).into_iter().enumerate() {
            watchers.spawn(async move {
                watcher.run().await;
                number
            });
        }
        let size = setup.members;
        Ok(Runner {
            setup,
            epoch,
            members,
            network,
            record,
            clients,
            lockers,
            watchers,
            leader,
            watcher,
            pending: Vec::new(),
            troubles: Vec::new(),
            change: None,
            askers: 0,
            next_trouble: 0,
            resets: vec![0; size * size],
            kept_at: epoch,
            interrupts,
            run: Run { flags, ..Run::default() },
        })
    }

    /// Carries out the schedule, `progress` hearing of it, and everything behind it.
    pub async fn torture(&mut self, progress: &mut dyn FnMut(&str)) -> Run {
        let duration = self.setup.duration;
        let plan = schedule::plan(self.setup.seed, &self.setup.kinds, self.setup.members, duration);
        let mut strikes = plan.into_iter().peekable();
        while self.epoch.elapsed() < duration && self.run.findings.is_empty() && !self.is_interrupted() {
            let now = Instant::now();
            while let Some(strike) = strikes.next_if(|strike| self.epoch + strike.at <= now) {
                self.strike(strike);
            }
            self.undo_due(now);
            self.look();
            self.advance();
            progress(&format!(
                "{:.0} of {:.0} s, {} requests, {} writes acknowledged, {} faults",
                self.epoch.elapsed().as_secs_f64(),
                duration.as_secs_f64(),
                self.record.count(),
                self.record.acknowledged(),
                self.run.faults.values().sum::<u64>(),
            ));
            tokio::time::sleep(TICK).await;
        }
        self.run.lasted = self.epoch.elapsed();
        self.run.interrupted = self.is_interrupted();
        progress("the faults are over; the cluster must serve again");
        self.heal();
        self.run.settled = self.settle().await;
        self.record.stop();
        while self.clients.join_next().await.is_some() {}
        if self.run.settled {
            progress("everyone has to get every lock");
            self.settle_locks().await;
            progress("the leases have to end");
            self.outlive_leases().await;
            progress("the watchers have to be told everything");
            self.end_watches().await;
        }
        self.record.abandon();
        while self.lockers.join_next().await.is_some() {}
        while self.watchers.join_next().await.is_some() {}
        if self.run.settled {
            progress("comparing what the members hold");
            self.compare().await;
        }
        progress("stopping the members");
        self.stop().await;
        progress("reading the members' logs");
        self.read_logs();
        self.run.operations = self.record.take();
        self.run.watches = self.record.take_watches();
        self.run.renewals = self.record.take_renewals();
        self.run.locks = self.record.take_locks();
        std::mem::take(&mut self.run)
    }

    fn is_interrupted(&self) -> bool {
        self.interrupts.load(Ordering::Relaxed) > 0
    }

    fn note(&mut self, what: &str) {
        self.run.trace.push(format!("{:>9.3} s  {what}", self.epoch.elapsed().as_secs_f64()));
    }

    fn find(&mut self, what: String) {
        self.note(&format!("FOUND: {what}"));
        self.run.findings.push(what);
    }

    /// For what goes wrong with our own tools.
    fn tried(&mut self, what: &str, result: std::io::Result<()>) {
        if let Err(error) = result {
            self.note(&format!("{what}: {error}"));
        }
    }

    fn names(&self, hit: &[usize]) -> String {
        hit.iter().map(|at| self.members[*at].name.as_str()).collect::<Vec<_>>().join(" ")
    }

    fn hit(&self, whom: Whom) -> Vec<usize> {
        let size = self.members.len();
        let (first, count) = match whom {
            Whom::Leader { count } => (self.leader.load(Ordering::Relaxed), count),
            Whom::Member { first, count } => (first, count),
        };
        (first..first + count.min(size)).map(|at| at % size).collect()
    }

    fn strike(&mut self, strike: Strike) {
        let hit = self.hit(strike.whom);
        let until = Instant::now() + strike.length;
        if let What::Rejoin { .. } | What::Readdress = strike.what {
            return self.reshape(hit.first().copied().unwrap_or(0), strike.what);
        }
        self.note(&format!("{} of {} for {} ms", strike.what, self.names(&hit), strike.length.as_millis()));
        *self.run.faults.entry(strike.what.kind()).or_default() += 1;
        if let What::Partition { .. } | What::Delay { .. } = strike.what {
            let mut inside = vec![false; self.members.len()];
            hit.iter().for_each(|at| inside[*at] = true);
            let number = self.next_trouble;
            self.next_trouble += 1;
            self.troubles.push(Trouble { number, inside, what: strike.what });
            self.pending.push(Pending { due: until, undo: Undo::Links(number) });
            return self.wire();
        }
        // All at the same moment, as near as can be.
        if strike.what == What::PowerCut {
            hit.iter().for_each(|at| self.members[*at].freeze());
        }
        for at in hit {
            let undo = self.hurt(at, strike.what);
            self.pending.extend(undo.map(|undo| Pending { due: until, undo }));
        }
    }

    /// Does something to one member, unless its state is worse already. How it is taken back.
    fn hurt(&mut self, at: usize, what: What) -> Option<Undo> {
        let member = &mut self.members[at];
        match what {
            What::Kill => member.kill().then_some(Undo::Start(at)),
            What::Pause => member.pause().then_some(Undo::Resume(at)),
            What::Restart => member.stop().then_some(Undo::Start(at)),
            What::DiskFull => {
                let volume = member.volume.as_ref().filter(|_| !member.full && !member.dark)?;
                let filled = volume.fill();
                member.full = true;
                self.tried("cannot fill a disk", filled);
                Some(Undo::Space(at))
            }
            What::PowerCut => {
                let volume = member.volume.as_mut().filter(|_| !member.dark)?;
                member.dark = true;
                let cut = volume.cut_power();
                member.kill();
                self.tried("cannot cut the power of a disk", cut);
                Some(Undo::Power(at))
            }
            What::Partition { .. } | What::Delay { .. } | What::Rejoin { .. } | What::Readdress => None,
        }
    }

    /// Begins a change of the membership, unless there is one.
    fn reshape(&mut self, at: usize, what: What) {
        // A lone member cannot be removed.
        if self.change.is_some() || self.members.len() < 2 {
            return self.note(&format!("{what} of {}: not now", self.members[at].name));
        }
        self.note(&format!("{what} of {}", self.members[at].name));
        *self.run.faults.entry(Kind::Member).or_default() += 1;
        let (asker, member) = (self.asker(at), &mut self.members[at]);
        self.change = Some(match what {
            What::Rejoin { linger, away } => {
                member.standing = Standing::Leaving;
                let (linger, away) = (Duration::from_millis(linger), Duration::from_millis(away));
                Change::remove(at, member.id, asker, linger, away)
            }
            _ => Change::update(at, member.id, member.other_url(), asker),
        });
    }

    /// Who asks all but the member `at`.
    fn asker(&mut self, at: usize) -> Asker {
        self.askers += 1;
        let number = self.setup.clients + PROBES + self.setup.lockers + self.askers;
        let others = self.members.iter().enumerate().filter(|(other, _)| *other != at);
        Asker {
            endpoints: others.map(|(_, member)| member.endpoint()).collect(),
            record: Arc::clone(&self.record),
            writes: Workload::new(number, self.setup.seed, self.setup.keys, false),
            dice: Dice::new(self.setup.seed.wrapping_mul(43).wrapping_add(number as u64)),
        }
    }

    /// Goes on with the change that is under way.
    fn advance(&mut self) {
        let Some(mut change) = self.change.take() else { return };
        let at = change.at;
        match change.step() {
            None => {}
            // Its disk has to be there.
            Some(Step::Wipe) if self.members[at].dark => {}
            Some(Step::Wipe) => {
                self.note(&format!("{} is removed; its data is wiped", self.members[at].name));
                self.wipe(at);
                change.wiped();
            }
            Some(Step::Add) => {
                let names = self.members.iter().map(|member| (member.ports.relay, member.name.clone())).collect();
                change.add(self.members[at].peer_url(), names, self.asker(at));
            }
            Some(Step::Join(Joiner { id, initial })) => {
                let name = self.members[at].name.clone();
                self.note(&format!("{name} is a learner, {id:x}, of {initial}"));
                self.network.name(at, id);
                if let Err(error) = self.members[at].join(id, initial) {
                    self.find(format!("{name} cannot be started: {error}"));
                }
                change.promote(id, self.asker(at));
            }
            Some(Step::Done) => {
                self.members[at].standing = Standing::Member;
                return self.note(&format!("{} is a member like the others", self.members[at].name));
            }
        }
        self.change = Some(change);
    }

    /// Throws away what a member had, but for its log, which is read before.
    fn wipe(&mut self, at: usize) {
        let member = &mut self.members[at];
        member.kill();
        let kept = member.keep_log();
        for dir in member.logs() {
            self.run.logs.read(&member.name, &dir);
            // Logs of many lives would fill the disk.
            if let Err(error) = std::fs::remove_dir_all(&dir) {
                anstream::eprintln!("quorate torture: cannot remove {}: {error}", dir.display());
            }
        }
        let wiped = member.wipe();
        self.tried("cannot keep a log", kept);
        self.tried("cannot wipe a member's data", wiped);
    }

    fn undo_due(&mut self, now: Instant) {
        let (due, later): (Vec<_>, Vec<_>) =
            std::mem::take(&mut self.pending).into_iter().partition(|pending| pending.due <= now);
        self.pending = later;
        for Pending { undo, .. } in due {
            self.undo(undo);
        }
    }

    fn undo(&mut self, undo: Undo) {
        match undo {
            Undo::Start(at) => self.boot(at),
            Undo::Resume(at) => drop(self.members[at].resume()),
            Undo::Links(number) => {
                let Some(at) = self.troubles.iter().position(|trouble| trouble.number == number) else { return };
                let trouble = self.troubles.remove(at);
                if let What::Partition { lost: true, .. } = trouble.what {
                    self.reset(&trouble.inside);
                }
                self.wire();
            }
            Undo::Space(at) => {
                let emptied = self.members[at].volume.as_ref().map_or(Ok(()), Volume::empty);
                // Its power may be off, or it was taken away with the file.
                self.tried("cannot give space back", emptied);
                self.members[at].has_space();
                self.boot(at);
            }
            Undo::Power(at) => {
                let member = &mut self.members[at];
                let restored = member.volume.as_mut().map_or(Ok(()), Volume::restore_power);
                member.dark = restored.is_err();
                member.has_space();
                self.tried("cannot restore the power of a disk", restored);
                let emptied = self.members[at].volume.as_ref().map_or(Ok(()), Volume::empty);
                self.tried("cannot give space back", emptied);
                self.boot(at);
            }
        }
    }

    fn boot(&mut self, at: usize) {
        // It may still be stopping: then it starts as soon as it has.
        if let State::Stopping(_) = self.members[at].state {
            return self.pending.push(Pending { due: Instant::now() + TICK, undo: Undo::Start(at) });
        }
        if let Err(error) = self.members[at].start() {
            let name = self.members[at].name.clone();
            self.find(format!("{name} cannot be started: {error}"));
        }
    }

    /// Connections between those inside and those outside end.
    fn reset(&mut self, inside: &[bool]) {
        let size = self.members.len();
        for from in 0..size {
            for to in 0..size {
                self.resets[from * size + to] += u64::from(inside[from] != inside[to]);
            }
        }
    }

    /// Tells the relays what all troubles together mean.
    fn wire(&self) {
        let size = self.members.len();
        self.network.set(|from, to| {
            let mut wire = Wire { resets: self.resets[from * size + to], ..Wire::default() };
            for trouble in &self.troubles {
                let (out, into) = (trouble.inside[from], trouble.inside[to]);
                // A fault of all members is one of every link.
                let all = trouble.inside.iter().all(|inside| *inside);
                match trouble.what {
                    What::Partition { ways, cut, .. }
                        if all
                            || match ways {
                                Ways::Both => out != into,
                                Ways::Out => out && !into,
                                Ways::In => !out && into,
                            } =>
                    {
                        wire.cut |= cut;
                        wire.held |= !cut;
                    }
                    What::Delay { millis } if all || out != into => {
                        wire.delay = wire.delay.max(Duration::from_millis(millis));
                    }
                    _ => {}
                }
            }
            wire
        });
    }

    /// Looks at every member, and keeps their logs.
    fn look(&mut self) {
        for at in 0..self.members.len() {
            if let Err(what) = self.members[at].look() {
                self.find(what);
            }
        }
        if self.kept_at.elapsed() >= KEEP_EVERY {
            self.kept_at = Instant::now();
            self.keep_logs();
        }
    }

    fn keep_logs(&mut self) {
        for at in 0..self.members.len() {
            if !self.members[at].dark {
                let kept = self.members[at].keep_log();
                // A full disk takes no new name either.
                if !self.members[at].full {
                    self.tried("cannot keep a log", kept);
                }
            }
        }
    }

    /// Takes every fault back. A member that ended by itself stays as it is, for whoever looks for the cause.
    fn heal(&mut self) {
        self.note("all faults are taken back");
        let mut pending = std::mem::take(&mut self.pending);
        // Disks first, for what is started on them.
        pending.sort_by_key(|pending| !matches!(pending.undo, Undo::Power(_) | Undo::Space(_)));
        for Pending { undo, .. } in pending {
            self.undo(undo);
        }
        self.troubles.clear();
        self.wire();
        self.change.iter_mut().for_each(Change::hurry);
    }

    /// Waits until every member answers a linearizable read and a write; not doing so in time is a finding.
    async fn settle(&mut self) -> bool {
        let had_findings = !self.run.findings.is_empty();
        let patience = if self.run.interrupted || had_findings { PATIENCE_SHORT } else { PATIENCE };
        let deadline = Instant::now() + patience;
        let mut probe = Workload::new(self.setup.clients, self.setup.seed, self.setup.keys, false);
        let mut served = vec![false; self.members.len()];
        loop {
            // Restarts that were still under way.
            self.undo_due(Instant::now());
            self.look();
            self.advance();
            let changing = self.change.as_ref().map(|change| change.at);
            for (at, (served, member)) in served.iter_mut().zip(&self.members).enumerate() {
                // Who is about to go, or to come, is to serve behind that.
                if !*served && changing != Some(at) && member.state == State::Running {
                    let put = Request::Put(probe.put());
                    *served = serves(&member.endpoint(), &self.record, put).await;
                }
            }
            if served.iter().all(|served| *served) && self.change.is_none() {
                return true;
            }
            let interrupted = self.interrupts.load(Ordering::Relaxed) > usize::from(self.run.interrupted);
            if Instant::now() > deadline || interrupted || (had_findings && self.is_stuck(&served)) {
                let silent: Vec<usize> = (0..served.len()).filter(|at| !served[*at]).collect();
                let change = self.change.as_ref().map(|change| (&self.members[change.at].name, change.waits_for()));
                let waits = change.map_or(String::new(), |(name, what)| format!(" ({name} waits for {what})"));
                let text = format!(
                    "{}{waits} did not serve a read and a write within {} s after all faults were taken back",
                    self.names(&silent),
                    patience.as_secs()
                );
                if had_findings || interrupted || self.run.interrupted {
                    self.note(&text);
                } else {
                    self.find(text);
                }
                return false;
            }
            tokio::time::sleep(TICK).await;
        }
    }

    /// Whoever is not served yet is not running either.
    fn is_stuck(&self, served: &[bool]) -> bool {
        served.iter().zip(&self.members).all(|(served, member)| *served || member.state == State::Down)
    }

    /// Waits until every locker was granted every lock, now that nobody keeps one.
    async fn settle_locks(&mut self) {
        let deadline = Instant::now() + PATIENCE;
        let mut settling = JoinSet::new();
        while let Some(locker) = self.lockers.join_next().await {
            settling.extend(locker.map(|locker| locker.settle(deadline.into())));
        }
        while let Some(settled) = settling.join_next().await {
            if let Ok(Err(what)) = settled {
                self.find(format!("{what}, {} s after all faults were taken back", PATIENCE.as_secs()));
            }
        }
    }

    /// Waits until no lease is left: nobody renews them any more, and they were granted for seconds.
    async fn outlive_leases(&mut self) {
        let deadline = Instant::now() + PATIENCE;
        for at in 0..self.members.len() {
            let Ok(client) = Asking::open(Config::new(vec![self.members[at].endpoint()])) else { continue };
            loop {
                let left = client.leases(Deadline::after(STATUS_MAX)).await.map(|answer| answer.leases);
                if left.as_ref().is_ok_and(Vec::is_empty) {
                    break;
                }
                if Instant::now() > deadline {
                    let name = self.members[at].name.clone();
                    let seconds = PATIENCE.as_secs();
                    return self.find(format!("{name} has leases {seconds} s after the last renewal: {left:?}"));
                }
                tokio::time::sleep(LEADER_EVERY).await;
            }
        }
    }

    /// Waits until every watcher was told the newest revision.
    async fn end_watches(&mut self) {
        let deadline = Instant::now() + PATIENCE;
        // Something that they watch: a watch from a future revision holds up every notice on its stream, also in etcd.
        let Some(newest) = self.last_write(deadline).await else {
            return self.find(format!("no member answered a write in {} s, without any fault", PATIENCE.as_secs()));
        };
        self.record.end_at(newest);
        let mut waiting: BTreeSet<usize> = (0..self.watchers.len()).collect();
        while let Ok(Some(done)) = tokio::time::timeout_at(deadline.into(), self.watchers.join_next()).await {
            waiting.remove(&done.unwrap_or(usize::MAX));
        }
        if !waiting.is_empty() {
            let seconds = PATIENCE.as_secs();
            self.find(format!("watchers {waiting:?} were not told of revision {newest} within {seconds} s"));
        }
    }

    /// One more write: its revision.
    async fn last_write(&mut self, deadline: Instant) -> Option<i64> {
        let mut asker = self.asker(self.members.len());
        while Instant::now() < deadline {
            for endpoint in &asker.endpoints {
                let Ok(mut link) = Link::open(endpoint, &self.record).await else { continue };
                if let (Outcome::Replied(response), _) = link.ask(Request::Put(asker.writes.put())).await {
                    return Some(response.revision());
                }
            }
            tokio::time::sleep(TICK).await;
        }
        None
    }

    /// Waits until all members have the same revision and compares their hashes and everything they hold.
    async fn compare(&mut self) {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let seen = self.fingerprints().await;
            let even = seen.len() == self.members.len()
                && seen.windows(2).all(|pair| Fingerprint { member: pair[0].member, ..pair[1] } == pair[0]);
            if even || Instant::now() > deadline {
                if seen.len() < self.members.len() {
                    self.find("a member did not tell its hash in time".to_owned());
                }
                self.run.fingerprints = seen;
                break;
            }
            tokio::time::sleep(LEADER_EVERY).await;
        }
        for at in 0..self.members.len() {
            let everything = RangeRequest {
                key: "\0".into(),
                range_end: "\0".into(),
                serializable: true,
                ..RangeRequest::default()
            };
            if let Ok(mut link) = Link::open(&self.members[at].endpoint(), &self.record).await {
                let (outcome, _) = link.ask(Request::Range(everything)).await;
                if outcome == Outcome::Unknown {
                    let name = self.members[at].name.clone();
                    self.find(format!("{name} did not tell what it holds in time"));
                }
            }
        }
    }

    async fn fingerprints(&self) -> Vec<Fingerprint> {
        let mut seen = Vec::new();
        for (member, at) in self.members.iter().zip(1..) {
            let Ok(client) = Asking::open(Config::new(vec![member.endpoint()])) else { continue };
            let Ok(hash) = client.hash_kv(0, Deadline::after(PATIENCE)).await else { continue };
            let revision = hash.header.as_ref().map_or(0, |header| header.revision);
            let (compact_revision, hash) = (hash.compact_revision, hash.hash);
            seen.push(Fingerprint { member: at, revision, compact_revision, hash });
        }
        seen
    }

    /// SIGTERM for all: none may hang.
    async fn stop(&mut self) {
        self.watcher.abort();
        while self.members.iter().any(|member| member.state != State::Down) {
            for member in &mut self.members {
                member.resume();
                member.stop();
            }
            self.look();
            tokio::time::sleep(TICK).await;
        }
    }

    fn read_logs(&mut self) {
        self.keep_logs();
        for member in &self.members {
            for dir in member.logs() {
                self.run.logs.read(&member.name, &dir);
            }
        }
    }

    /// What is left of the members, whose files are taken out of their volumes if they are to be kept.
    pub fn members(&mut self) -> &mut [Member] {
        &mut self.members
    }
}

/// A write and a linearizable read, both recorded.
async fn serves(endpoint: &str, record: &Arc<Record>, put: Request) -> bool {
    let Ok(mut link) = Link::open(endpoint, record).await else { return false };
    let read = Request::Range(RangeRequest { key: "k".into(), range_end: "l".into(), ..RangeRequest::default() });
    for request in [put, read] {
        if !matches!(link.ask(request).await, (Outcome::Replied(_), true)) {
            return false;
        }
    }
    true
}

/// Asks all members again and again who leads.
async fn watch_leader(endpoints: Vec<String>, leader: Arc<AtomicUsize>) {
    let clients: Vec<Asking> =
        endpoints.into_iter().filter_map(|endpoint| Asking::open(Config::new(vec![endpoint])).ok()).collect();
    loop {
        let asked = clients.iter().map(|client| client.status(Deadline::after(STATUS_MAX)));
        let answers = futures_util::future::join_all(asked).await;
        let leads = answers.iter().enumerate().filter_map(|(at, answer)| {
            let status = answer.as_ref().ok()?;
            let id = status.header.as_ref()?.member_id;
            (status.leader == id && id != 0).then_some((status.raft_term, at))
        });
        if let Some((_, at)) = leads.max() {
            leader.store(at, Ordering::Relaxed);
        }
        tokio::time::sleep(LEADER_EVERY).await;
    }
}

/// Removes what a run left, or says why it cannot.
pub fn remove(dir: &Path) {
    if let Err(error) = std::fs::remove_dir_all(dir) {
        anstream::eprintln!("quorate torture: cannot remove {}: {error}", dir.display());
    }
}

//! The run of one seed: events in time order, each given to the member, client or fault that it is for.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::Mutex;
use std::task::Context;
use std::task::Poll;
use std::task::Waker;

use crate::common::answer::Answer;
use crate::common::failure::Failure;
use crate::common::ids::MemberId;
use crate::disk::sim::Dice;
use crate::proto::etcdserverpb::RangeRequest;
use crate::proto::raft_numbers as numbers;
use crate::proto::raftpb::Snapshot;
use crate::server::apply::outcome::Reply;
use crate::server::mvcc::hash::hash_kv;
use crate::server::mvcc::read::range_now;
use crate::server::mvcc::view::ReadError;
use crate::server::raft::config::CatchUp;
use crate::server::raft::config::RaftConfig;
use crate::server::raft::state_machine::Inbox;
use crate::server::raft::state_machine::Role;
use crate::server::waiters::Notice;
use crate::server::waiters::Waiting;
use crate::sim::Summary;
use crate::sim::faults::Fault;
use crate::sim::faults::Plan;
use crate::sim::judge::Judge;
use crate::sim::member::Image;
use crate::sim::member::Member;
use crate::sim::member::lock;
use crate::sim::network::Network;
use crate::sim::network::Parcel;
use crate::sim::reading::Barrier;
use crate::sim::workload;
use crate::sim::workload::Workload;
use crate::torture::checker;
use crate::torture::checker::Fingerprint;
use crate::torture::checker::History;
use crate::torture::checker::Operation;
use crate::torture::checker::Outcome;
use crate::torture::checker::model::Request;
use crate::torture::checker::model::Response;

/// Simulated time since the start of the run.
pub type Micros = u64;

const TICK: Micros = 100_000;
const SECOND: Micros = 1_000_000;
/// How long a client waits for an answer; RT of a member is 7 s, but clients may be less patient.
const PATIENCE: Micros = 3 * SECOND;
/// Within this time of calm every client must have written and all members must agree: 300 ticks.
const CALM_MAX: Micros = 30 * SECOND;
/// Longest time without a disk operation in which a planned power cut waits for one.
const CUT_WITHIN_OPERATIONS: u64 = 40;
/// About as many disk operations as it takes to install a snapshot.
const INSTALL_OPERATIONS: u64 = 6;
const EIO: i32 = 5;
/// 2020-01-01, in milliseconds: where the simulated wall clock starts.
const EPOCH_MILLIS: u64 = 1_577_836_800_000;

enum Event {
    Tick(usize),
    Work(usize),
    Deliver(Parcel),
    /// Whether the image of a snapshot reached its receiver.
    SnapshotReport {
        from: u64,
        to: u64,
        delivered: bool,
    },
    SnapshotBuilt {
        member: usize,
        life: u64,
        snapshot: Snapshot,
        image: Arc<Image>,
    },
    Flush {
        member: usize,
        life: u64,
    },
    Start(usize),
    Client(usize),
    Arrive {
        client: usize,
        call: usize,
    },
    Patience {
        client: usize,
        call: usize,
    },
    Fault,
    HealCuts,
    HealWeather,
}

/// A member with what the world does to it.
struct Slot {
    member: Member,
    tick: Micros,
    work_planned: bool,
    flush_planned: bool,
    start_planned: bool,
    /// The disk or the processor is busy until then.
    busy_until: Micros,
    paused_until: Micros,
    apply_held_until: Micros,
    /// Inputs that the apply thread takes at a time while it is held up.
    apply_pace: usize,
    disk_latency_max: Micros,
    /// Images it has built, by index.
    images: BTreeMap<u64, Arc<Image>>,
}

/// A call on its way.
struct Call {
    /// Position in the history.
    operation: usize,
    waiting: Option<Waiting>,
    /// The life of the member that took it.
    life: u64,
}

struct Client {
    workload: Workload,
    target: usize,
    connection: u64,
    /// The member and its life that the connection is to.
    connected_to: Option<(usize, u64)>,
    call: Option<Call>,
    calm_writes: u64,
}

pub struct World {
    seed: u64,
    now: Micros,
    queue: BTreeMap<(Micros, u64), Event>,
    planned: u64,
    dice: Dice,
    plan: Plan,
    judge: Arc<Mutex<Judge>>,
    slots: Vec<Slot>,
    network: Network,
    clients: Vec<Client>,
    connections: u64,
    stamp: u64,
    history: History,
    calm: bool,
    /// Clients ask nothing new.
    closing: bool,
    summary: Summary,
}

impl World {
    pub fn new(seed: u64) -> Result<World, String> {
        let mut dice = Dice::new(seed);
        let plan = Plan::draw(&mut dice);
        let judge = Arc::new(Mutex::new(Judge::default()));
        let ids: Vec<MemberId> = (1..=plan.members).map(MemberId).collect();
        let mut slots = Vec::new();
        for id in &ids {
            let member = Member::new(*id, &ids, dice.roll(), judge.clone()).map_err(|failure| failure.to_string())?;
            slots.push(Slot {
                member,
                // Clocks differ by some percent.
                tick: TICK - 5_000 + dice.below(10_000),
                work_planned: false,
                flush_planned: false,
                start_planned: false,
                busy_until: 0,
                paused_until: 0,
                apply_held_until: 0,
                apply_pace: 0,
                disk_latency_max: 1_000,
                images: BTreeMap::new(),
            });
        }
        let clients = (0..plan.clients).map(|client| Client {
            workload: Workload::new(client, &plan),
            target: client % slots.len(),
            connection: 0,
            connected_to: None,
            call: None,
            calm_writes: 0,
        });
        let clients = clients.collect();
        let summary = Summary { members: slots.len(), ..Summary::default() };
        Ok(World {
            seed,
            now: 0,
            queue: BTreeMap::new(),
            planned: 0,
            dice,
            plan,
            judge,
            slots,
            network: Network::new(),
            clients,
            connections: 0,
            stamp: 0,
            history: History::default(),
            calm: false,
            closing: false,
            summary,
        })
    }

    /// The whole run.
    pub fn run(mut self) -> Result<Summary, String> {
        for member in 0..self.slots.len() {
            self.at(0, Event::Start(member));
        }
        for client in 0..self.clients.len() {
            self.after(1 + client as u64, Event::Client(client));
        }
        let first = self.plan.fault_every;
        self.after(2 * first, Event::Fault);
        self.until(self.plan.fault_time)?;
        self.calm_down()?;
        self.converge()?;
        self.finish()
    }

    /// Events up to a time.
    fn until(&mut self, end: Micros) -> Result<(), String> {
        while let Some((time, event)) = self.next(end) {
            self.now = time;
            self.happen(event)?;
            self.judged()?;
        }
        self.now = end;
        Ok(())
    }

    fn next(&mut self, end: Micros) -> Option<(Micros, Event)> {
        let first = self.queue.first_entry().filter(|first| first.key().0 <= end)?;
        let ((time, _), event) = first.remove_entry();
        Some((time, event))
    }

    fn judged(&self) -> Result<(), String> {
        match lock(&self.judge).violations().first() {
            Some(violation) => Err(self.sentence(violation)),
            None => Ok(()),
        }
    }

    fn sentence(&self, what: &str) -> String {
        let millis = self.now / 1000;
        format!("seed {} at {}.{:03} s: {what}\n{:?}", self.seed, millis / 1000, millis % 1000, self.plan)
    }

    fn at(&mut self, time: Micros, event: Event) {
        self.planned += 1;
        self.queue.insert((time.max(self.now), self.planned), event);
    }

    fn after(&mut self, delay: Micros, event: Event) {
        self.at(self.now + delay, event);
    }

    /// Folds something into the trace.
    fn trace(&mut self, numbers: [u64; 4]) {
        for number in [self.now].into_iter().chain(numbers) {
            let mixed = (self.summary.trace ^ number).wrapping_mul(0x9e37_79b9_7f4a_7c15);
            self.summary.trace = mixed ^ (mixed >> 29);
        }
    }

    fn happen(&mut self, event: Event) -> Result<(), String> {
        self.summary.events += 1;
        match event {
            Event::Tick(member) => self.tick(member),
            Event::Work(member) => return self.work(member),
            Event::Deliver(parcel) => self.deliver(parcel),
            Event::SnapshotReport { from, to, delivered } => self.snapshot_report(from, to, delivered),
            Event::SnapshotBuilt { member, life, snapshot, image } => self.built(member, life, snapshot, image),
            Event::Flush { member, life } => return self.flush(member, life),
            Event::Start(member) => return self.start(member),
            Event::Client(client) => self.ask(client),
            Event::Arrive { client, call } => self.arrive(client, call)?,
            Event::Patience { client, call } => self.lose_patience(client, call),
            Event::Fault => self.fault(),
            Event::HealCuts => self.network.heal_cuts(),
            Event::HealWeather => self.network.heal_weather(),
        }
        Ok(())
    }

    // Members.

    fn slot_of(&self, id: u64) -> usize {
        usize::try_from(id - 1).expect("members are numbered from one")
    }

    fn wake(&mut self, member: usize) {
        let slot = &mut self.slots[member];
        if !slot.work_planned && slot.member.running.is_some() {
            slot.work_planned = true;
            let time = slot.busy_until.max(slot.paused_until).max(self.now + 50);
            self.at(time, Event::Work(member));
        }
    }

    fn start(&mut self, member: usize) -> Result<(), String> {
        let seed = self.dice.roll();
        let slot = &mut self.slots[member];
        slot.start_planned = false;
        if slot.member.running.is_some() {
            return Ok(());
        }
        let config = RaftConfig {
            catch_up: CatchUp { entries: self.plan.catch_up_entries, ..CatchUp::default() },
            snapshot_entries: self.plan.snapshot_entries,
            ..RaftConfig::new(slot.member.id, seed)
        };
        slot.images.clear();
        slot.flush_planned = false;
        slot.busy_until = self.now;
        let started = slot.member.start(&config, EPOCH_MILLIS + self.now / 1000);
        let tick = slot.tick;
        let life = slot.member.lives;
        self.summary.restarts += u64::from(life > 1);
        self.trace([1, member as u64, life, u64::from(started.is_ok())]);
        if let Err(failure) = started {
            return self.failed(member, &failure);
        }
        self.after(tick, Event::Tick(member));
        self.wake(member);
        Ok(())
    }

    /// A member stopped by itself: its disk had better be the reason.
    fn failed(&mut self, member: usize, failure: &Failure) -> Result<(), String> {
        let slot = &mut self.slots[member];
        let expected = slot.member.disk().has_crashed() || slot.member.disk_is_bad;
        if !expected || !matches!(failure, Failure::Io { .. }) {
            let text = format!("member {} stopped: {failure}", slot.member.id);
            return Err(self.sentence(&text));
        }
        let delay = self.dice.below(3 * SECOND);
        self.down(member, false, delay);
        Ok(())
    }

    /// The process ends, and starts again after `delay`.
    fn down(&mut self, member: usize, power: bool, delay: Micros) {
        let roll_back = self.dice.chance(50);
        self.collect(member);
        let slot = &mut self.slots[member];
        slot.member.stop(power, roll_back);
        slot.work_planned = false;
        slot.paused_until = 0;
        slot.apply_held_until = 0;
        if !slot.start_planned {
            slot.start_planned = true;
            self.after(delay, Event::Start(member));
        }
        self.trace([2, member as u64, u64::from(power), delay]);
        for client in 0..self.clients.len() {
            let (target, life) = (self.clients[client].target, self.slots[member].member.lives);
            let called = self.clients[client].call.as_ref().is_some_and(|call| call.life == life);
            if target == member && called {
                self.answer(client, Outcome::Unknown);
            }
        }
    }

    fn tick(&mut self, member: usize) {
        let slot = &mut self.slots[member];
        let Some(running) = &mut slot.member.running else { return };
        // One at most: a process that stood still does not make up for lost ticks.
        running.tick_due = true;
        let tick = slot.tick;
        self.after(tick, Event::Tick(member));
        self.wake(member);
    }

    fn work(&mut self, member: usize) -> Result<(), String> {
        let now = self.now;
        let slot = &mut self.slots[member];
        if !slot.work_planned {
            return Ok(());
        }
        if slot.paused_until.max(slot.busy_until) > now {
            let time = slot.paused_until.max(slot.busy_until);
            self.at(time, Event::Work(member));
            return Ok(());
        }
        slot.work_planned = false;
        let Some(running) = &mut slot.member.running else { return Ok(()) };
        let mut barriers = running.read(now);
        let worked = running.work(if now < slot.apply_held_until { slot.apply_pace } else { usize::MAX });
        if worked.is_ok() {
            barriers.extend(running.read(now));
        }
        let status = running.raft.status();
        let applied = running.desk.applied_index();
        let latency = self.dice.below(slot.disk_latency_max);
        slot.busy_until = now + latency;
        self.trace([3, member as u64, status.term << 8 | status.role as u64, applied << 20 | status.commit_index]);
        self.collect(member);
        for barrier in barriers {
            match barrier {
                Barrier::Passed(client) => self.serve(client)?,
                Barrier::Broken(client) => self.answer(client, Outcome::Unknown),
            }
        }
        for client in 0..self.clients.len() {
            self.poll(client);
        }
        match worked {
            Ok(()) => Ok(()),
            Err(failure) => self.failed(member, &failure),
        }
    }

    /// Takes what a member has put out.
    fn collect(&mut self, member: usize) {
        let slot = &mut self.slots[member];
        let life = slot.member.lives;
        let Some(running) = &mut slot.member.running else { return };
        let messages = std::mem::take(&mut *lock(&running.hooks.outbox));
        let built = std::mem::take(&mut *lock(&running.hooks.built));
        let (wanted, urgent) = running.flush_wanted();
        let flush = wanted && (urgent || !slot.flush_planned);
        slot.flush_planned |= flush;
        if flush {
            let delay = if urgent { 0 } else { self.dice.below(self.plan.flush_after) };
            self.after(1_000 + delay, Event::Flush { member, life });
        }
        for (snapshot, image) in built {
            let delay = 1_000 + self.dice.below(300_000);
            self.after(delay, Event::SnapshotBuilt { member, life, snapshot, image });
        }
        for message in messages {
            let image = message.snapshot.as_ref().filter(|_| message.r#type == numbers::MSG_SNAP);
            let index = image.and_then(|snapshot| snapshot.metadata.as_ref()).map_or(0, |metadata| metadata.index);
            let image = self.slots[member].images.get(&index).cloned();
            let is_snapshot = message.r#type == numbers::MSG_SNAP;
            self.summary.snapshots_sent += u64::from(is_snapshot);
            let arrivals = match is_snapshot && image.is_none() {
                true => Vec::new(),
                false => self.network.arrivals(&message, self.now, &mut self.dice),
            };
            if arrivals.is_empty() && is_snapshot {
                let report = Event::SnapshotReport { from: message.from, to: message.to, delivered: false };
                self.after(100_000, report);
            }
            for time in arrivals {
                self.at(time, Event::Deliver(Parcel { message: message.clone(), image: image.clone() }));
            }
        }
    }

    fn deliver(&mut self, parcel: Parcel) {
        let Parcel { message, image } = parcel;
        let (from, to) = (message.from, message.to);
        let member = self.slot_of(to);
        let reached = self.slots[member].member.running.is_some() && self.network.passes(&message);
        self.trace([4, from << 8 | to | message.r#type << 16, message.term << 32 | message.index, message.commit]);
        if message.r#type == numbers::MSG_SNAP {
            self.after(500, Event::SnapshotReport { from, to, delivered: reached });
        }
        if !reached {
            let sender = self.slot_of(from);
            if self.dice.chance(30)
                && let Some(running) = &self.slots[sender].member.running
            {
                running.raft.report_unreachable(MemberId(to));
            }
            return;
        }
        let index = message.snapshot.as_ref().and_then(|snapshot| snapshot.metadata.as_ref());
        let index = index.map_or(0, |metadata| metadata.index);
        let slot = &mut self.slots[member];
        if let Some(image) = image {
            slot.member.prepare(index, image);
            // Installing takes several steps on disk, and happens seldom: the power fails there more often than by chance.
            if self.plan.faults.contains(&Fault::PowerCut) && !self.calm && self.dice.chance(40) {
                slot.member.disk().crash_at(1 + self.dice.below(INSTALL_OPERATIONS));
            }
        }
        if let Some(running) = &slot.member.running {
            running.raft.step(message);
        }
        self.wake(member);
    }

    fn snapshot_report(&mut self, from: u64, to: u64, delivered: bool) {
        let member = self.slot_of(from);
        if let Some(running) = &self.slots[member].member.running {
            running.raft.report_snapshot(MemberId(to), delivered);
        }
        self.wake(member);
    }

    fn built(&mut self, member: usize, life: u64, snapshot: Snapshot, image: Arc<Image>) {
        let slot = &mut self.slots[member];
        let Some(running) = slot.member.running.as_ref().filter(|_| slot.member.lives == life) else { return };
        let index = snapshot.metadata.as_ref().map_or(0, |metadata| metadata.index);
        slot.images.insert(index, image);
        running.raft.snapshot_built(snapshot);
        self.wake(member);
    }

    fn flush(&mut self, member: usize, life: u64) -> Result<(), String> {
        let slot = &mut self.slots[member];
        let Some(running) = slot.member.running.as_mut().filter(|_| slot.member.lives == life) else { return Ok(()) };
        slot.flush_planned = false;
        if let Err(failure) = running.flush() {
            return self.failed(member, &failure);
        }
        self.trace([5, member as u64, life, 0]);
        self.wake(member);
        Ok(())
    }

    // Clients.

    fn stamp(&mut self) -> u64 {
        self.stamp += 1;
        self.stamp
    }

    fn ask(&mut self, client: usize) {
        if self.closing || self.clients[client].call.is_some() {
            return;
        }
        // A client that fails moves on; others seldom do.
        if self.dice.chance(3) {
            self.clients[client].target = self.pick_member();
        }
        let calm = self.calm;
        let request = self.clients[client].workload.next(&mut self.dice, calm);
        self.call(client, request);
    }

    fn call(&mut self, client: usize, request: Request) {
        let target = self.clients[client].target;
        let life = self.slots[target].member.lives;
        if self.clients[client].connected_to != Some((target, life)) {
            self.connections += 1;
            self.clients[client].connection = self.connections;
            self.clients[client].connected_to = Some((target, life));
        }
        let start = self.stamp();
        let connection = self.clients[client].connection;
        let operation = self.history.operations.len();
        self.history.operations.push(Operation { connection, start, end: 0, request, outcome: Outcome::Unknown });
        self.clients[client].call = Some(Call { operation, waiting: None, life });
        let delay = self.dice.below(2_000);
        self.after(delay, Event::Arrive { client, call: operation });
        self.after(PATIENCE, Event::Patience { client, call: operation });
    }

    fn is_calling(&self, client: usize, operation: usize) -> bool {
        self.clients[client].call.as_ref().is_some_and(|call| call.operation == operation)
    }

    fn arrive(&mut self, client: usize, operation: usize) -> Result<(), String> {
        if !self.is_calling(client, operation) {
            return Ok(());
        }
        let member = self.clients[client].target;
        let slot = &mut self.slots[member];
        if slot.paused_until > self.now {
            let resumed = slot.paused_until;
            self.at(resumed, Event::Arrive { client, call: operation });
            return Ok(());
        }
        let life = slot.member.lives;
        let request = self.history.operations[operation].request.clone();
        let fresh = self.clients[client].call.as_ref().is_some_and(|call| call.life == life);
        let Some(running) = slot.member.running.as_mut().filter(|_| fresh) else {
            self.answer(client, Outcome::Refused);
            return Ok(());
        };
        match &request {
            Request::Range(range) if range.serializable => return self.serve(client),
            Request::Range(_) => running.reading.ask(client),
            write => {
                let id = running.ids.next();
                let place = running.desk.waiters.register(id);
                let taken = running.raft.propose(id, workload::encode(id, write));
                match (place, taken) {
                    (Ok(waiting), Ok(())) => {
                        let call = self.clients[client].call.as_mut().expect("checked above: it is calling");
                        call.waiting = Some(waiting);
                    }
                    (_, Err(_)) => self.answer(client, Outcome::Refused),
                    (Err(_), Ok(())) => self.answer(client, Outcome::Unknown),
                }
            }
        }
        self.wake(member);
        Ok(())
    }

    /// Answers a read from its member's newest view.
    fn serve(&mut self, client: usize) -> Result<(), String> {
        let Some(call) = &self.clients[client].call else { return Ok(()) };
        let Request::Range(range) = &self.history.operations[call.operation].request else { return Ok(()) };
        let Some(running) = &self.slots[self.clients[client].target].member.running else { return Ok(()) };
        let outcome = match range_now(&running.published.views(), range) {
            Ok(response) => Outcome::Replied(Response::Range(response)),
            Err(ReadError::Answer(answer)) => Outcome::Failed(answer),
            Err(ReadError::Failure(failure)) => return Err(self.sentence(&format!("a read failed: {failure}"))),
        };
        self.answer(client, outcome);
        Ok(())
    }

    /// Looks whether there is word for a client that waits for a proposal.
    fn poll(&mut self, client: usize) {
        let Some(waiting) = self.clients[client].call.as_mut().and_then(|call| call.waiting.as_mut()) else { return };
        let notice = std::pin::pin!(waiting.notice()).poll(&mut Context::from_waker(Waker::noop()));
        let Poll::Ready(notice) = notice else { return };
        let outcome = match notice {
            Notice::Answered(Ok(reply)) => replied(reply),
            Notice::Answered(Err(Answer::Stopped)) | Notice::Lost => Outcome::Unknown,
            Notice::Answered(Err(answer)) => Outcome::Failed(answer),
            Notice::Refused(_) => Outcome::Refused,
        };
        self.answer(client, outcome);
    }

    fn lose_patience(&mut self, client: usize, operation: usize) {
        if self.is_calling(client, operation) {
            self.answer(client, Outcome::Unknown);
        }
    }

    /// The call is over for its client.
    fn answer(&mut self, client: usize, outcome: Outcome) {
        let end = self.stamp();
        let Some(call) = self.clients[client].call.take() else { return };
        let target = self.clients[client].target;
        if let Some(running) = &mut self.slots[target].member.running {
            running.reading.forget(client);
        }
        let answered = matches!(outcome, Outcome::Replied(_) | Outcome::Failed(_));
        self.summary.answered += usize::from(answered);
        self.trace([6, client as u64, call.operation as u64, u64::from(answered)]);
        if let Outcome::Replied(response) = &outcome {
            let workload = &mut self.clients[client].workload;
            workload.revision = workload.revision.max(response.revision());
            self.clients[client].calm_writes += u64::from(self.calm);
        } else if !answered && self.dice.chance(60) {
            self.clients[client].target = self.pick_member();
        }
        let operation = &mut self.history.operations[call.operation];
        operation.end = end;
        operation.outcome = outcome;
        let think = 1 + self.dice.below(self.plan.think_max) + if answered { 0 } else { 50_000 };
        self.after(think, Event::Client(client));
    }

    // Faults.

    fn pick_member(&mut self) -> usize {
        let count = self.slots.len() as u64;
        usize::try_from(self.dice.below(count)).expect("below a number of members")
    }

    /// Often the leader: most harm is done there.
    fn pick_victim(&mut self) -> usize {
        match self.leader().filter(|_| self.dice.chance(40)) {
            Some(leader) => leader,
            None => self.pick_member(),
        }
    }

    fn leader(&self) -> Option<usize> {
        let leads = |slot: &Slot| {
            let running = slot.member.running.as_ref();
            running.map(|running| running.raft.status()).filter(|status| status.role == Role::Leader)
        };
        let leaders = self.slots.iter().enumerate().filter_map(|(at, slot)| Some((leads(slot)?.term, at)));
        leaders.max().map(|(_, at)| at)
    }

    fn fault(&mut self) {
        if self.calm {
            return;
        }
        let wait = self.plan.fault_every / 2 + self.dice.below(self.plan.fault_every);
        self.after(wait, Event::Fault);
        let at = self.dice.below(self.plan.faults.len() as u64);
        let fault = self.plan.faults[usize::try_from(at).expect("below a length")];
        let victim = self.pick_victim();
        let long = self.dice.pick(&[SECOND / 5, SECOND, 4 * SECOND]);
        let delay = self.dice.below(long);
        self.summary.faults += 1;
        self.trace([7, fault as u64, victim as u64, delay]);
        match fault {
            Fault::Kill if self.slots[victim].member.running.is_some() => self.down(victim, false, delay),
            Fault::PowerCut => {
                let operations = 1 + self.dice.below(CUT_WITHIN_OPERATIONS);
                self.slots[victim].member.disk().crash_at(operations);
            }
            Fault::Blackout => self.blackout(delay),
            Fault::DiskError => {
                let operations = 1 + self.dice.below(CUT_WITHIN_OPERATIONS);
                self.slots[victim].member.disk().fail_at(operations, EIO);
                self.slots[victim].member.disk_is_bad = true;
            }
            Fault::Pause => {
                self.slots[victim].paused_until = self.now + delay;
                // Its connections may be gone by the time it wakes up, and it does not know (R3).
                if self.dice.chance(50) {
                    self.isolate(victim, delay + SECOND);
                }
            }
            Fault::OneWayCut => {
                let other = self.pick_member();
                self.network.cut(victim as u64 + 1, other as u64 + 1);
                self.after(delay, Event::HealCuts);
            }
            Fault::Partition => self.split(|_, dice| dice.chance(50), delay),
            Fault::IsolateLeader => self.isolate(self.leader().unwrap_or(victim), delay),
            Fault::Loss => {
                self.network.loss_percent = self.dice.pick(&[2, 10, 40]);
                self.network.double_percent = self.dice.pick(&[0, 5, 30]);
                self.after(delay, Event::HealWeather);
            }
            Fault::Delay => {
                self.network.delay_max = self.dice.pick(&[20_000, 200_000, 2_000_000]);
                self.network.slow_percent = self.dice.pick(&[10, 30, 100]);
                self.after(2 * delay, Event::HealWeather);
            }
            Fault::HoldApply => {
                self.slots[victim].apply_held_until = self.now + delay;
                // A slow one lags behind and still answers: reads must wait for it.
                self.slots[victim].apply_pace = self.dice.pick(&[0, 1, 1]);
            }
            Fault::SlowDisk => self.slots[victim].disk_latency_max = self.dice.pick(&[1_000, 20_000, 150_000]),
            Fault::Transfer => {
                let to = MemberId(victim as u64 + 1);
                if let Some(running) = self.leader().and_then(|leader| self.slots[leader].member.running.as_ref()) {
                    running.raft.transfer_leader(to);
                }
            }
            Fault::Kill => {}
        }
    }

    fn blackout(&mut self, delay: Micros) {
        for member in 0..self.slots.len() {
            if self.slots[member].member.running.is_some() {
                self.down(member, true, delay + 1);
            }
        }
    }

    fn isolate(&mut self, member: usize, delay: Micros) {
        self.split(|other, _| other == member, delay);
    }

    /// Cuts between those that are apart and the others.
    fn split(&mut self, is_apart: impl Fn(usize, &mut Dice) -> bool, delay: Micros) {
        let apart: Vec<bool> = (0..self.slots.len()).map(|member| is_apart(member, &mut self.dice)).collect();
        for from in 0..apart.len() {
            for to in 0..apart.len() {
                if apart[from] != apart[to] {
                    self.network.cut(from as u64 + 1, to as u64 + 1);
                }
            }
        }
        self.after(delay, Event::HealCuts);
    }

    // The end.

    /// No more faults: what is broken is mended, what is armed goes off now.
    fn calm_down(&mut self) -> Result<(), String> {
        self.calm = true;
        self.network.heal();
        for member in 0..self.slots.len() {
            let slot = &mut self.slots[member];
            slot.paused_until = 0;
            slot.apply_held_until = 0;
            slot.busy_until = self.now;
            slot.disk_latency_max = 1_000;
            // A power cut may be armed: a fresh handle of the disk knows nothing of it.
            if slot.member.running.is_some() {
                slot.work_planned = false;
                self.down(member, true, 0);
            }
        }
        Ok(())
    }

    fn converge(&mut self) -> Result<(), String> {
        let end = self.now + CALM_MAX;
        while !self.has_converged() {
            if self.now >= end {
                return Err(self.sentence(&format!(
                    "no progress in {} calm ticks: {}",
                    CALM_MAX / TICK,
                    self.describe()
                )));
            }
            self.closing = self.clients.iter().all(|client| client.calm_writes > 0);
            self.until(self.now + TICK)?;
        }
        Ok(())
    }

    fn has_converged(&self) -> bool {
        let committed = lock(&self.judge).committed_index();
        let settled = |slot: &Slot| {
            slot.member.running.as_ref().is_some_and(|running| {
                let compaction = *running.desk.watch_compaction().borrow();
                let status = running.raft.status();
                let compacted = compaction.finished >= compaction.scheduled;
                let leads = status.leader.is_some() && status.commit_index == committed;
                compacted && leads && running.desk.applied_index() == committed && running.reading.is_idle()
            })
        };
        self.closing && self.slots.iter().all(settled) && self.clients.iter().all(|client| client.call.is_none())
    }

    /// One line a member, for a run that does not come to its end.
    fn describe(&self) -> String {
        let line = |slot: &Slot| {
            let Some(running) = &slot.member.running else { return format!("\n{} is down", slot.member.id) };
            let (status, applied) = (running.raft.status(), running.desk.applied_index());
            let (compaction, reads_idle) = (*running.desk.watch_compaction().borrow(), running.reading.is_idle());
            format!("\n{} applied {applied}, {compaction:?}, reads idle {reads_idle}, {status:?}", slot.member.id)
        };
        let members: String = self.slots.iter().map(line).collect();
        let clients: Vec<(u64, bool)> =
            self.clients.iter().map(|client| (client.calm_writes, client.call.is_some())).collect();
        format!("{members}\nclients' writes and calls {clients:?}, committed {}", lock(&self.judge).committed_index())
    }

    fn finish(mut self) -> Result<Summary, String> {
        for member in 0..self.slots.len() {
            self.last_read(member)?;
        }
        let judge = self.judge.clone();
        let judge = lock(&judge);
        self.history.log = judge.committed().iter().filter_map(workload::decode).collect();
        let violations = checker::check(&self.history);
        if let Some(violation) = violations.first() {
            let text = format!("{violation}\n{}", self.context(violation));
            return Err(self.sentence(&text));
        }
        self.summary.seconds = self.now / SECOND;
        self.summary.operations = self.history.operations.len();
        self.summary.log_entries = judge.committed_index();
        self.summary.elections = judge.terms_led();
        Ok(self.summary)
    }

    /// Everything a member holds, as one more read and as its hash.
    fn last_read(&mut self, member: usize) -> Result<(), String> {
        let running = self.slots[member].member.running.as_ref().ok_or("a member is down after convergence")?;
        let range = RangeRequest { key: "\0".into(), range_end: "\0".into(), ..RangeRequest::default() };
        let views = running.published.views();
        let response = range_now(&views, &range).map_err(|error| self.sentence(&error.to_string()))?;
        let hash = hash_kv(&views, 0).map_err(|error| self.sentence(&error.to_string()))?;
        let view = views.current();
        self.history.fingerprints.push(Fingerprint {
            member: member as u64 + 1,
            revision: view.revision(),
            compact_revision: view.compact_revision(),
            hash: hash.hash,
        });
        self.connections += 1;
        let connection = self.connections;
        let (start, end) = (self.stamp(), self.stamp());
        let outcome = Outcome::Replied(Response::Range(response));
        let request = Request::Range(range);
        self.history.operations.push(Operation { connection, start, end, request, outcome });
        Ok(())
    }

    /// The operation that a violation speaks of.
    fn context(&self, violation: &checker::Violation) -> String {
        violation.operation().map_or_else(String::new, |at| format!("{:?}", self.history.operations[at]))
    }
}

fn replied(reply: Reply) -> Outcome {
    workload::response(reply).map_or(Outcome::Unknown, Outcome::Replied)
}

//! The run of one seed: events in time order, each given to the member, client or fault that it is for.
//!
//! The folder says what each of them does: `members`, `clients`, `misfortune`, `operator` (who changes the membership) and
//! `ending`.

mod clients;
mod ending;
mod members;
mod misfortune;
mod operator;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::Mutex;

use crate::common::ids::MemberId;
use crate::disk::sim::Dice;
use crate::proto::raftpb::Snapshot;
use crate::server::waiters::Waiting;
use crate::sim::Summary;
use crate::sim::faults::Plan;
use crate::sim::judge::Judge;
use crate::sim::member::Image;
use crate::sim::member::Member;
use crate::sim::member::lock;
use crate::sim::network::Network;
use crate::sim::network::Parcel;
use crate::sim::workload::Workload;
use crate::torture::checker::History;

/// Simulated time since the start of the run.
pub type Micros = u64;

const TICK: Micros = 100_000;
const SECOND: Micros = 1_000_000;

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
    /// Somebody looks which members came and went.
    Operator,
    /// A member's process stands still.
    Sleep {
        member: usize,
        resumes: Micros,
    },
    /// Clients turn to this member.
    Rush(usize),
    HealCuts,
    HealWeather,
}

/// Where a member is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    /// Somebody asked for it; whether it will be a member is not known yet.
    Proposed,
    Member,
    /// Removed, or never added.
    Gone,
}

/// A member with what the world does to it.
struct Slot {
    member: Member,
    stage: Stage,
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

impl Slot {
    fn new(member: Member, stage: Stage, dice: &mut Dice) -> Slot {
        Slot {
            member,
            stage,
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
        }
    }
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
            slots.push(Slot::new(member, Stage::Member, &mut dice));
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
        self.after(SECOND, Event::Operator);
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
            Event::Operator => return self.operate(),
            Event::Sleep { member, resumes } if !self.calm => self.slots[member].paused_until = resumes,
            Event::Sleep { .. } => {}
            Event::Rush(member) => self.rush(member),
            Event::HealCuts => self.network.heal_cuts(),
            Event::HealWeather => self.network.heal_weather(),
        }
        Ok(())
    }
}

//! Some nodes over a network in memory, with disks that survive crashes, and a judge over all of them.
//!
//! One seed decides everything. The judge fails the test the moment two leaders share a term, a member votes twice in a
//! term, two members apply different entries at one index, a member skips an index, or a read gets an index below what
//! was applied anywhere when it was asked for.

use std::collections::BTreeMap;
use std::collections::BTreeSet;
use std::collections::VecDeque;

use bytes::Bytes;
use prost::Message as _;

use crate::common::ids::MemberId;
use crate::proto::raft_numbers as numbers;
use crate::proto::raftpb::ConfChange;
use crate::proto::raftpb::ConfState;
use crate::proto::raftpb::Entry;
use crate::proto::raftpb::HardState;
use crate::proto::raftpb::Message;
use crate::proto::raftpb::Snapshot;
use crate::proto::raftpb::SnapshotMetadata;
use crate::server::raft::bootstrap::bootstrap_entries;
use crate::server::raft::config::CatchUp;
use crate::server::raft::config::RaftConfig;
use crate::server::raft::config::Start;
use crate::server::raft::input::Effect;
use crate::server::raft::input::Input;
use crate::server::raft::input::Proposal;
use crate::server::raft::input::Round;
use crate::server::raft::node::Node;
use crate::server::raft::state_machine::Refusal;
use crate::server::raft::state_machine::Role;

/// Seeded numbers (SplitMix64).
pub struct Rng(pub u64);

impl Rng {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    pub fn below(&mut self, bound: usize) -> usize {
        (self.next() % bound.max(1) as u64) as usize
    }

    pub fn chance(&mut self, percent: u64) -> bool {
        self.next() % 100 < percent
    }
}

/// What is on one member's disk: nothing in here is lost by a crash.
#[derive(Clone, Default)]
pub struct Disk {
    pub hard_state: HardState,
    pub base: (u64, u64),
    pub entries: Vec<Entry>,
    pub checkpoint: State,
}

impl Disk {
    fn append(&mut self, entries: &[Entry]) {
        let Some(first) = entries.first() else { return };
        self.entries.retain(|entry| entry.index < first.index);
        self.entries.extend_from_slice(entries);
    }

    fn release(&mut self, index: u64) {
        while self.entries.first().is_some_and(|entry| entry.index <= index) {
            let entry = self.entries.remove(0);
            self.base = (entry.index, entry.term);
        }
    }
}

/// The applied state: what it says is in the judge's book, only how far it got is here.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct State {
    pub index: u64,
    pub term: u64,
    pub voters: BTreeSet<u64>,
    pub learners: BTreeSet<u64>,
}

impl State {
    fn conf_state(&self) -> ConfState {
        ConfState {
            voters: self.voters.iter().copied().collect(),
            learners: self.learners.iter().copied().collect(),
            ..Default::default()
        }
    }

    fn of_snapshot(snapshot: &Snapshot) -> State {
        let metadata = snapshot.metadata.clone().unwrap();
        let conf_state = metadata.conf_state.unwrap();
        State {
            index: metadata.index,
            term: metadata.term,
            voters: conf_state.voters.into_iter().collect(),
            learners: conf_state.learners.into_iter().collect(),
        }
    }

    /// What etcd's apply would say: `None` for a change that it rejects.
    fn change(&mut self, change: ConfChange) -> Option<ConfChange> {
        let id = change.node_id;
        let fits = match change.r#type {
            numbers::CONF_ADD_NODE => {
                self.learners.remove(&id);
                self.voters.insert(id)
            }
            numbers::CONF_ADD_LEARNER => !self.voters.contains(&id) && self.learners.insert(id),
            numbers::CONF_REMOVE_NODE if self.voters.len() == 1 && self.voters.contains(&id) => false,
            numbers::CONF_REMOVE_NODE => self.voters.remove(&id) || self.learners.remove(&id),
            _ => true,
        };
        fits.then_some(change)
    }
}

enum Work {
    Entries(Vec<Entry>),
    Install(Snapshot),
}

pub struct Member {
    pub node: Option<Node>,
    pub disk: Disk,
    pub state: State,
    pub inputs: Vec<Input>,
    work: VecDeque<Work>,
    previous_checkpoint: u64,
    pub refused: Vec<(u64, Refusal)>,
    pub dropped: Vec<&'static str>,
    pub removed: bool,
    /// The failure that stopped the member.
    pub failed: Option<String>,
    pub snapshots_installed: usize,
    /// While set, apply does nothing.
    pub apply_stalled: bool,
}

/// What Raft promises, written down as it happens.
#[derive(Default)]
pub struct Judge {
    leaders: BTreeMap<u64, u64>,
    votes: BTreeMap<(u64, u64), u64>,
    pub applied: BTreeMap<u64, Entry>,
    /// Context of each read in progress, with the highest index applied anywhere when it was asked for.
    asked: BTreeMap<Bytes, u64>,
    pub reads_served: usize,
}

impl Judge {
    fn saw_status(&mut self, id: u64, term: u64, role: Role) {
        if role == Role::Leader {
            let leader = *self.leaders.entry(term).or_insert(id);
            assert_eq!(leader, id, "two leaders in term {term}");
        }
    }

    fn saw_sent(&mut self, message: &Message) {
        if message.r#type == numbers::MSG_VOTE_RESP && !message.reject {
            let candidate = *self.votes.entry((message.term, message.from)).or_insert(message.to);
            assert_eq!(candidate, message.to, "{} voted twice in term {}", message.from, message.term);
        }
    }

    fn saw_applied(&mut self, id: u64, entry: &Entry) {
        let known = self.applied.entry(entry.index).or_insert_with(|| entry.clone());
        assert_eq!(known, entry, "member {id} applied something else at {}", entry.index);
    }

    pub fn last_applied(&self) -> u64 {
        self.applied.last_key_value().map_or(0, |(index, _)| *index)
    }
}

pub struct Cluster {
    pub rng: Rng,
    pub members: BTreeMap<u64, Member>,
    pub judge: Judge,
    pub network: Vec<Message>,
    /// One-way cuts (from, to).
    pub cut: BTreeSet<(u64, u64)>,
    pub catch_up: CatchUp,
    pub pre_vote: bool,
    /// Percent of messages lost, and delivered twice.
    pub loss: u64,
    pub duplicates: u64,
    /// Percent of rounds that end in a crash of the member, at one of its steps.
    pub crashes: u64,
    next_request: u64,
    /// How often a member crashed.
    pub crash_count: usize,
}

impl Cluster {
    /// A bootstrapped cluster of members 1 to `count`.
    pub fn new(seed: u64, count: u64) -> Cluster {
        let members: Vec<_> = (1..=count).map(|id| (MemberId(id), format!("m{id}"), Vec::new())).collect();
        let (entries, hard_state, conf_state) = bootstrap_entries(&members);
        let mut cluster = Cluster {
            rng: Rng(seed),
            members: BTreeMap::new(),
            judge: Judge::default(),
            network: Vec::new(),
            cut: BTreeSet::new(),
            catch_up: CatchUp { entries: 10, bytes: 1 << 20 },
            pre_vote: true,
            loss: 0,
            duplicates: 0,
            crashes: 0,
            next_request: 1,
            crash_count: 0,
        };
        for entry in &entries {
            cluster.judge.saw_applied(0, entry);
        }
        let checkpoint =
            State { index: count, term: 1, voters: conf_state.voters.into_iter().collect(), ..State::default() };
        for id in 1..=count {
            cluster
                .add(id, Disk { hard_state, base: (0, 0), entries: entries.clone(), checkpoint: checkpoint.clone() });
        }
        cluster
    }

    /// Starts a member that joins with an empty log.
    pub fn join(&mut self, id: u64) {
        self.add(id, Disk::default());
    }

    fn add(&mut self, id: u64, disk: Disk) {
        let member = Member {
            node: None,
            state: disk.checkpoint.clone(),
            disk,
            inputs: Vec::new(),
            work: VecDeque::new(),
            previous_checkpoint: 0,
            refused: Vec::new(),
            dropped: Vec::new(),
            removed: false,
            failed: None,
            snapshots_installed: 0,
            apply_stalled: false,
        };
        self.members.insert(id, member);
        self.restart(id);
    }

    pub fn config(&self, id: u64) -> RaftConfig {
        let catch_up = self.catch_up;
        RaftConfig { pre_vote: self.pre_vote, catch_up, ..RaftConfig::new(MemberId(id), self.rng.0) }
    }

    pub fn crash(&mut self, id: u64) {
        self.crash_count += 1;
        let member = self.member(id);
        member.node = None;
        member.inputs.clear();
        member.work.clear();
        member.state = member.disk.checkpoint.clone();
        // A delivery that ends with the sender's crash is not reported by it; one that ends with ours is.
        self.network.retain(|message| message.r#type != numbers::MSG_SNAP || message.from != id);
    }

    /// Starts a crashed member from its disk.
    pub fn restart(&mut self, id: u64) {
        let config = self.config(id);
        let member = self.member(id);
        let (disk, state) = (member.disk.clone(), member.disk.checkpoint.clone());
        let start = Start {
            hard_state: disk.hard_state,
            base: disk.base,
            entries: disk.entries,
            durable_index: state.index,
            applied: (state.index, state.term),
            conf_state: state.conf_state(),
        };
        member.state = state;
        member.node = Some(Node::new(&config, start).unwrap());
        self.run(id);
    }

    pub fn member(&mut self, id: u64) -> &mut Member {
        self.members.get_mut(&id).unwrap()
    }

    pub fn node(&self, id: u64) -> &Node {
        self.members[&id].node.as_ref().expect("the member runs")
    }

    pub fn running(&self) -> Vec<u64> {
        self.members.iter().filter(|(_, member)| member.node.is_some()).map(|(id, _)| *id).collect()
    }

    /// The leader of the highest term among the running.
    pub fn leader(&self) -> Option<u64> {
        let leads = |id: &u64| self.node(*id).status().role == Role::Leader;
        self.running().into_iter().filter(leads).max_by_key(|id| self.node(*id).status().term)
    }

    pub fn input(&mut self, id: u64, input: Input) {
        if self.members[&id].node.is_some() {
            self.member(id).inputs.push(input);
        }
    }

    /// Proposes at `id` and returns the request id; the data names it.
    pub fn propose(&mut self, id: u64) -> u64 {
        let request_id = self.next_request;
        self.next_request += 1;
        let data = Bytes::from(format!("request {request_id}"));
        self.input(id, Input::Propose(vec![Proposal { request_id, data }]));
        request_id
    }

    pub fn propose_change(&mut self, id: u64, kind: u64, node_id: u64) -> u64 {
        let request_id = self.next_request;
        self.next_request += 1;
        let context = Bytes::from(format!("{{\"id\":{node_id}}}"));
        let change = ConfChange { id: request_id, r#type: kind, node_id, context };
        self.input(id, Input::ProposeConfChange { request_id, change });
        request_id
    }

    /// Asks for a read index at `id` and returns the context.
    pub fn read(&mut self, id: u64) -> Bytes {
        let context = Bytes::from(format!("read {} of {id}", self.next_request));
        self.next_request += 1;
        self.judge.asked.insert(context.clone(), self.judge.last_applied());
        self.input(id, Input::ReadIndex(context.clone()));
        context
    }

    pub fn was_served(&self, context: &Bytes) -> bool {
        !self.judge.asked.contains_key(context)
    }

    /// The index at which the proposal was applied, if it was.
    pub fn applied_at(&self, request_id: u64) -> Option<u64> {
        let data = format!("request {request_id}");
        self.judge.applied.values().find(|entry| entry.data == data.as_bytes()).map(|entry| entry.index)
    }

    /// Steps what waits at a member and does its rounds.
    pub fn run(&mut self, id: u64) {
        for input in std::mem::take(&mut self.member(id).inputs) {
            let Some(node) = self.member(id).node.as_mut() else { return };
            match node.step(input) {
                Ok(effects) => self.effects(id, effects),
                Err(failure) => {
                    self.member(id).failed = Some(failure.to_string());
                    return self.crash(id);
                }
            }
        }
        while self.members[&id].node.as_ref().is_some_and(Node::has_ready) {
            self.round(id);
        }
    }

    fn round(&mut self, id: u64) {
        let round = self.member(id).node.as_mut().unwrap().ready();
        let status = self.node(id).status();
        self.judge.saw_status(id, status.term, status.role);
        let crash = if self.rng.chance(self.crashes) { self.rng.below(4) } else { usize::MAX };
        if crash == 0 {
            return self.crash(id);
        }
        self.hand_out(id, &round);
        self.send(round.messages_before.clone());
        if crash == 1 {
            // Part of the entries may have reached the disk without a sync.
            let some = self.rng.below(round.entries.len() + 1);
            if round.snapshot.is_none() {
                self.member(id).disk.append(&round.entries[..some]);
            }
            return self.crash(id);
        }
        self.save(id, &round);
        if crash == 2 {
            return self.crash(id);
        }
        let member = self.member(id);
        if let Some(snapshot) = round.snapshot.clone() {
            member.work.push_back(Work::Install(snapshot));
        }
        let done = member.node.as_mut().unwrap().persisted().unwrap();
        let status = self.node(id).status();
        self.judge.saw_status(id, status.term, status.role);
        self.send(round.messages_after);
        self.send(done.messages);
        if crash == 3 {
            return self.crash(id);
        }
        self.member(id).work.push_back(Work::Entries(done.committed));
        self.effects(id, done.effects);
    }

    fn hand_out(&mut self, id: u64, round: &Round) {
        for read in &round.reads {
            // A read that was repeated by the network is answered once.
            if let Some(asked) = self.judge.asked.remove(&read.context) {
                assert!(read.index >= asked, "stale read at {id}: {} was applied, got {}", asked, read.index);
                self.judge.reads_served += 1;
            }
        }
        self.member(id).work.push_back(Work::Entries(round.committed.clone()));
    }

    /// A synced write. A commit index alone is written without a sync, and may be lost.
    fn save(&mut self, id: u64, round: &Round) {
        let lost = !round.must_sync && self.rng.chance(50);
        let disk = &mut self.member(id).disk;
        if let Some(snapshot) = &round.snapshot {
            let state = State::of_snapshot(snapshot);
            disk.base = (state.index, state.term);
            disk.entries.clear();
            disk.checkpoint = state;
        }
        disk.append(&round.entries);
        if let Some(hard_state) = round.hard_state.filter(|_| !lost) {
            disk.hard_state = hard_state;
        }
    }

    fn send(&mut self, messages: Vec<Message>) {
        for message in messages {
            self.judge.saw_sent(&message);
            self.network.push(message);
        }
    }

    fn effects(&mut self, id: u64, effects: Vec<Effect>) {
        for effect in effects {
            let member = self.member(id);
            match effect {
                Effect::Refused { request_id, why } => member.refused.push((request_id, why)),
                Effect::MessageDropped(why) => member.dropped.push(why),
                Effect::Removed => member.removed = true,
                Effect::BuildSnapshot => {
                    let metadata = SnapshotMetadata {
                        conf_state: Some(member.state.conf_state()),
                        index: member.state.index,
                        term: member.state.term,
                    };
                    let applied = member.state.index;
                    let snapshot = Snapshot { data: Bytes::new(), metadata: Some(metadata) };
                    // Apply reports before it builds.
                    member.inputs.push(Input::Applied(applied));
                    member.inputs.push(Input::SnapshotBuilt(snapshot));
                }
            }
        }
    }

    /// Applies what a member was given, and reports it.
    pub fn apply(&mut self, id: u64) {
        if self.members[&id].apply_stalled {
            return;
        }
        while let Some(work) = self.member(id).work.pop_front() {
            match work {
                Work::Entries(entries) => entries.iter().for_each(|entry| self.apply_entry(id, entry)),
                Work::Install(snapshot) => {
                    let member = self.member(id);
                    member.state = State::of_snapshot(&snapshot);
                    member.snapshots_installed += 1;
                }
            }
        }
        let index = self.members[&id].state.index;
        self.input(id, Input::Applied(index));
    }

    fn apply_entry(&mut self, id: u64, entry: &Entry) {
        assert_eq!(entry.index, self.members[&id].state.index + 1, "member {id} skips an entry");
        self.judge.saw_applied(id, entry);
        let state = &mut self.member(id).state;
        state.index = entry.index;
        state.term = entry.term;
        if entry.r#type == numbers::ENTRY_CONF_CHANGE {
            let change = state.change(ConfChange::decode(entry.data.clone()).unwrap());
            self.input(id, Input::ConfChangeApplied { index: entry.index, change });
        }
    }

    /// Makes the applied state durable and releases the log before the previous checkpoint.
    pub fn checkpoint(&mut self, id: u64) {
        let member = self.member(id);
        let Some(node) = &member.node else { return };
        if member.state.index < member.disk.checkpoint.index {
            // A received snapshot is durable and not installed yet: it is the newer checkpoint.
            return;
        }
        let release = member.previous_checkpoint.min(node.base_index());
        member.previous_checkpoint = member.disk.checkpoint.index;
        member.disk.checkpoint = member.state.clone();
        member.disk.release(release);
        let index = member.state.index;
        self.input(id, Input::Checkpointed(index));
    }

    /// Delivers, loses or repeats one message of the network, picked at random.
    pub fn deliver_one(&mut self) {
        if self.network.is_empty() {
            return;
        }
        let message = self.network.swap_remove(self.rng.below(self.network.len()));
        let gone = self.cut.contains(&(message.from, message.to)) || self.rng.chance(self.loss);
        let reached = !gone && self.members.get(&message.to).is_some_and(|member| member.node.is_some());
        let (from, to) = (message.from, message.to);
        if message.r#type == numbers::MSG_SNAP {
            self.input(from, Input::SnapshotReport { member: MemberId(to), delivered: reached });
        } else if reached && self.rng.chance(self.duplicates) {
            self.network.push(message.clone());
        } else if !reached && self.rng.chance(20) && self.members.contains_key(&from) {
            self.input(from, Input::Unreachable(MemberId(to)));
        }
        if reached {
            self.input(to, Input::Peer(message));
        }
    }

    pub fn tick_all(&mut self) {
        for id in self.running() {
            self.input(id, Input::Tick);
        }
    }

    /// One tick of calm: everything is delivered, applied and answered.
    pub fn calm_tick(&mut self) {
        self.tick_all();
        loop {
            for id in self.running() {
                self.run(id);
                self.apply(id);
                self.run(id);
            }
            if self.network.is_empty() {
                return;
            }
            for _ in 0..self.network.len() {
                self.deliver_one();
            }
        }
    }

    /// Calm ticks until the condition holds; fails after `ticks`.
    pub fn until(&mut self, what: &str, ticks: usize, condition: impl Fn(&Cluster) -> bool) {
        for _ in 0..ticks {
            if condition(self) {
                return;
            }
            self.calm_tick();
        }
        assert!(condition(self), "not within {ticks} ticks: {what}\n{}", self.describe());
    }

    /// One line a member, for a test that failed.
    fn describe(&self) -> String {
        let line = |(id, member): (&u64, &Member)| {
            let status = member.node.as_ref().map(Node::status);
            format!("{id}: applied {:?}, removed {}, {:?}, {status:?}\n", member.state, member.removed, member.failed)
        };
        self.members.iter().map(line).collect()
    }

    pub fn until_leader(&mut self) -> u64 {
        self.until("a leader", 200, |cluster| {
            cluster.leader().is_some_and(|id| {
                let node = cluster.node(id);
                node.status().commit_index == node.status().last_index
            })
        });
        self.leader().unwrap()
    }

    pub fn until_applied(&mut self, request_id: u64) -> u64 {
        self.until("the proposal is applied", 200, |cluster| cluster.applied_at(request_id).is_some());
        self.applied_at(request_id).unwrap()
    }

    /// All running members have applied the same, and logs with equal terms at an index are equal there.
    pub fn until_converged(&mut self) {
        self.until("all members have applied the same", 600, |cluster| {
            let last = cluster.judge.last_applied();
            cluster.running().iter().all(|id| cluster.members[id].state.index == last)
        });
        let mut seen: BTreeMap<(u64, u64), &Entry> = BTreeMap::new();
        for entry in self.members.values().flat_map(|member| &member.disk.entries) {
            let known = *seen.entry((entry.index, entry.term)).or_insert(entry);
            assert_eq!(known, entry, "log matching");
        }
    }

    pub fn isolate(&mut self, id: u64) {
        for other in self.members.keys().copied().filter(|other| *other != id).collect::<Vec<_>>() {
            self.cut.insert((id, other));
            self.cut.insert((other, id));
        }
    }

    pub fn heal(&mut self) {
        self.cut.clear();
    }
}

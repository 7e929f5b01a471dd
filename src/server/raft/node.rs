//! One member's consensus as a pure machine: inputs in, rounds of work out. No clock, no thread, no randomness, no disk.
//!
//! The protocol with its driver (reliability.md R10):
//!
//! ```text
//!   step(input)* ─▶ ready() ─▶ [send before] ─▶ write, one fdatasync ─▶ persisted() ─▶ [send after, apply]
//! ```
//! Between `ready` and `persisted` nothing may be stepped. The library's applied index moves only when apply reports
//! (`Input::Applied`), so that a second configuration change cannot start against a stale configuration. Around the
//! library stand the guards that it needs (R1-R27): each is named where it is.

use std::collections::VecDeque;
use std::time::Duration;

use bytes::Bytes;
use prost::Message as _;
use raft::ProgressState;
use raft::RawNode;
use raft::ReadOnlyOption;
use raft::SnapshotStatus;
use raft::StateRole;
use raft::eraftpb;

use super::config::COMMITTED_BYTES_MAX;
use super::config::CatchUp;
use super::config::INFLIGHT_MAX;
use super::config::MESSAGE_BYTES_MAX;
use super::config::RaftConfig;
use super::config::Start;
use super::config::UNAPPLIED_BYTES_MAX;
use super::config::UNCOMMITTED_BYTES_MAX;
use super::convert;
use super::guard;
use super::guard::Verdict;
use super::handed_out::HandedOut;
use super::input::Effect;
use super::input::Input;
use super::input::Persisted;
use super::input::Proposal;
use super::input::ReadReady;
use super::input::Round;
use super::log::MemoryLog;
use super::recover;
use super::state_machine::RaftStatus;
use super::state_machine::Refusal;
use super::state_machine::Role;
use crate::common::failure::Failure;
use crate::common::ids::MemberId;
use crate::proto::raft_numbers as numbers;
use crate::proto::raftpb::ConfChange;
use crate::proto::raftpb::Entry;
use crate::proto::raftpb::HardState;
use crate::proto::raftpb::Message;
use crate::proto::raftpb::Snapshot;

/// Reads that wait for a leader, or for its first commit. Full means the oldest is dropped: its caller asks again.
const HELD_READS_MAX: usize = 256;
/// Configuration changes that wait for the one before them. Full means that further ones are refused or dropped: their
/// proposers ask again.
const HELD_CHANGES_MAX: usize = 64;
/// How long a removed member goes on telling its peers (peer.md 3.6; R17).
const REMOVAL_GRACE: Duration = Duration::from_secs(1);
/// How long the log behind a snapshot is kept after it left, for the receiver to install it (server.md 12).
const SNAPSHOT_HOLD: Duration = Duration::from_secs(30);
/// The catch-up window may grow to this many times its bytes while a snapshot is on its way; then the log goes first.
const HOLD_BYTES_FACTOR: u64 = 4;

/// With so many bytes unapplied every report of apply is awaited: a small part of what refuses proposals.
const AWAITED_BYTES: u64 = UNAPPLIED_BYTES_MAX / 16;

/// A round that was given out and is not persisted yet.
struct OpenRound {
    ready: raft::Ready,
    entries: Vec<eraftpb::Entry>,
    snapshot: Option<(u64, u64)>,
}

/// The raft library and what must stand around it.
pub struct Node {
    raw: RawNode<MemoryLog>,
    id: u64,
    seed: u64,
    election_ticks: usize,
    catch_up: CatchUp,
    /// Counts campaigns, so that election timeouts differ from one to the next (R23).
    attempts: u64,
    ticks: u64,
    removal_grace_ticks: u64,
    snapshot_hold_ticks: u64,
    open: Option<OpenRound>,
    /// The hard state last given out to be persisted.
    saved: HardState,
    /// Inputs that must not be stepped while the log has an unpersisted tail.
    deferred: Vec<Input>,
    held_reads: VecDeque<eraftpb::Message>,
    /// Configuration changes that this leader takes when the one before them is applied, with the request's id if it was
    /// made here.
    held_changes: VecDeque<(Option<u64>, eraftpb::Entry)>,
    handed_out: HandedOut,
    /// The checkpoint's applied index: the log is never compacted beyond it (R12).
    durable_index: u64,
    /// The tick at which this member applied its own removal.
    removed_at: Option<u64>,
    /// Where the configuration changed last. A member that was added since ignores older snapshots: it is not in them.
    conf_index: u64,
    /// What was committed when the configuration changed last. Until it is applied here, another voter of before may have
    /// acknowledged something that the View of a leader who is alone now lacks.
    committed_before_conf: u64,
    /// A snapshot is being built; the index applied when it was asked for.
    building: Option<u64>,
    /// The next build is not asked for before this tick: a failed delivery must not start one build after the other.
    build_not_before: u64,
    /// The lowest snapshot on its way to a follower, and the last tick at which it was.
    sending: Option<(u64, u64)>,
}

impl Node {
    /// A node on a recovered log. Refuses a log that does not reach the checkpoint's applied index (R13, R14).
    pub fn new(config: &RaftConfig, start: Start) -> Result<Node, Failure> {
        let saved = start.hard_state;
        let applied = start.applied.0;
        let durable_index = start.durable_index;
        let log = recover::checked_log(start)?;
        let settings = raft::Config {
            id: config.id.0,
            election_tick: config.election_ticks,
            heartbeat_tick: config.heartbeat_ticks,
            applied,
            max_size_per_msg: MESSAGE_BYTES_MAX,
            max_inflight_msgs: INFLIGHT_MAX,
            check_quorum: true,
            pre_vote: config.pre_vote,
            // Lease reads trust ticks, and ticks stop while a process is paused (R3).
            read_only_option: ReadOnlyOption::Safe,
            max_uncommitted_size: UNCOMMITTED_BYTES_MAX,
            max_committed_size_per_ready: COMMITTED_BYTES_MAX,
            ..raft::Config::default()
        };
        let silent = slog::Logger::root(slog::Discard, slog::o!());
        let raw = RawNode::new(&settings, log, &silent)
            .map_err(|error| Failure::Refused(format!("raft cannot start: {error}")))?;
        let in_ticks = |time: Duration| time.as_nanos().div_ceil(config.tick.as_nanos().max(1)) as u64;
        let mut node = Node {
            raw,
            id: config.id.0,
            seed: config.seed,
            election_ticks: config.election_ticks,
            catch_up: config.catch_up,
            attempts: 0,
            ticks: 0,
            removal_grace_ticks: in_ticks(REMOVAL_GRACE),
            snapshot_hold_ticks: in_ticks(SNAPSHOT_HOLD),
            open: None,
            saved,
            deferred: Vec::new(),
            held_reads: VecDeque::new(),
            held_changes: VecDeque::new(),
            handed_out: HandedOut::new(applied),
            durable_index,
            removed_at: None,
            conf_index: applied,
            committed_before_conf: 0,
            building: None,
            build_not_before: 0,
            sending: None,
        };
        if node.alone() {
            // Nobody else could vote: waiting for a timeout would only delay the start. The library itself refuses
            // while a committed configuration change is not applied; `settle` tries again then.
            node.campaign();
        }
        node.set_election_timeout();
        Ok(node)
    }

    /// Takes one input. Not between `ready` and `persisted`.
    pub fn step(&mut self, input: Input) -> Result<Vec<Effect>, Failure> {
        assert!(self.open.is_none(), "an input was stepped inside a round");
        let mut effects = Vec::new();
        self.admit(input, &mut effects)?;
        self.settle(&mut effects);
        Ok(effects)
    }

    pub fn has_ready(&self) -> bool {
        self.raw.has_ready()
    }

    /// The work that waits. To be done in full, then `persisted` is called.
    pub fn ready(&mut self) -> Round {
        assert!(self.open.is_none(), "a round was started inside a round");
        let mut ready = self.raw.ready();
        let state = convert::hard_state_out(&self.raw.raft.hard_state());
        let promises_unchanged = (state.term, state.vote) == (self.saved.term, self.saved.vote);
        let snapshot = (!ready.snapshot().is_empty()).then(|| ready.snapshot().clone());
        let entries = ready.take_entries();
        if let Some(snapshot) = &snapshot {
            self.handed_out.jump(snapshot.get_metadata().index);
        }
        // Of a leader only, and of one that leads by a vote already on disk: a lone voter's first messages wait.
        let leading = messages_out(ready.take_messages());
        let (messages_before, mut messages_after) =
            if promises_unchanged { (leading, Vec::new()) } else { (Vec::new(), leading) };
        messages_after.extend(messages_out(ready.take_persisted_messages()));
        let round = Round {
            committed: self.give_out(ready.take_committed_entries()),
            reads: ready.take_read_states().into_iter().map(read_ready).collect(),
            messages_before,
            snapshot: snapshot.clone().map(convert::snapshot_out),
            entries: entries.iter().cloned().map(convert::entry_out).collect(),
            hard_state: self.take_unsaved_hard_state(),
            must_sync: ready.must_sync() || !promises_unchanged,
            messages_after,
        };
        let snapshot = snapshot.map(|snapshot| (snapshot.get_metadata().index, snapshot.get_metadata().term));
        self.open = Some(OpenRound { ready, entries, snapshot });
        round
    }

    /// The round's snapshot, entries and hard state are durable.
    pub fn persisted(&mut self) -> Result<Persisted, Failure> {
        let open = self.open.take().expect("persisted follows ready");
        if let Some((index, term)) = open.snapshot {
            self.raw.mut_store().restore(index, term);
        }
        self.raw.mut_store().append(open.entries);
        let mut light = self.raw.advance_append(open.ready);
        if let Some((index, _)) = open.snapshot {
            // The library switched to the snapshot's configuration when it was stepped, and would look for entries
            // that are gone if a campaign came before apply reports.
            self.raft_applied(index);
        }
        let messages = messages_out(light.take_messages());
        let committed = self.give_out(light.take_committed_entries());
        let mut effects = Vec::new();
        for input in std::mem::take(&mut self.deferred) {
            self.admit(input, &mut effects)?;
        }
        self.compact();
        self.settle(&mut effects);
        Ok(Persisted { messages, committed, effects })
    }

    /// The hard state, if it is not the one last given out: for a checkpoint and for the stop.
    pub fn take_unsaved_hard_state(&mut self) -> Option<HardState> {
        let state = convert::hard_state_out(&self.raw.raft.hard_state());
        let changed = state != self.saved;
        self.saved = state;
        changed.then_some(state)
    }

    pub fn status(&self) -> RaftStatus {
        let raft = &self.raw.raft;
        RaftStatus {
            role: match raft.state {
                StateRole::Follower => Role::Follower,
                StateRole::PreCandidate => Role::PreCandidate,
                StateRole::Candidate => Role::Candidate,
                StateRole::Leader => Role::Leader,
            },
            term: raft.term,
            leader: (raft.leader_id != 0).then_some(MemberId(raft.leader_id)),
            commit_index: raft.raft_log.committed,
            last_index: raft.raft_log.last_index(),
            // Applied, not only committed: after a restart the View lacks what the log still replays.
            lone_leader: raft.state == StateRole::Leader
                && self.alone()
                && raft.apply_to_current_term()
                // A learner applies its promotion, takes requests and answers them, while apply is late here.
                && !raft.has_pending_conf()
                && self.applied_index() >= self.committed_before_conf,
            transferring: raft.lead_transferee.is_some(),
        }
    }

    pub fn is_learner(&self) -> bool {
        self.raw.raft.prs().conf().learners().contains(&self.id)
    }

    /// What each member has of the log, as the leader knows it; empty elsewhere. Ascending ids.
    pub fn matches(&self) -> Vec<(MemberId, u64)> {
        if self.raw.raft.state != StateRole::Leader {
            return Vec::new();
        }
        let mut matches: Vec<_> =
            self.raw.raft.prs().iter().map(|(id, progress)| (MemberId(*id), progress.matched)).collect();
        matches.sort_unstable();
        matches
    }

    /// Everything up to this index may leave the durable log, as far as raft is concerned.
    pub fn base_index(&self) -> u64 {
        self.raw.store().base_index()
    }

    /// The applied index the library knows.
    pub fn applied_index(&self) -> u64 {
        self.raw.raft.raft_log.applied
    }

    /// Whether more applied entries would change something at once: a lone voter campaigns or serves reads then, and
    /// much that is unapplied keeps clients out. What else depends on them looks when an input or a tick comes.
    pub fn awaits_applied(&self) -> bool {
        let starts_alone = self.alone() && !self.status().lone_leader;
        starts_alone || self.unapplied_bytes() >= AWAITED_BYTES
    }

    /// Bytes given to apply and not reported back.
    pub fn unapplied_bytes(&self) -> u64 {
        self.handed_out.bytes()
    }

    /// Steps the input, or keeps it until the log's tail is persisted.
    fn admit(&mut self, input: Input, effects: &mut Vec<Effect>) -> Result<(), Failure> {
        if self.must_wait(&input) {
            self.deferred.push(input);
            return Ok(());
        }
        match input {
            Input::Tick => self.tick(effects),
            Input::Propose(proposals) => self.propose(proposals, effects),
            Input::ProposeInTerm { term, proposals } => self.propose_in_term(term, proposals, effects),
            Input::ProposeConfChange { request_id, change } => self.propose_conf_change(request_id, &change, effects),
            Input::Peer(message) => self.peer(message, effects)?,
            Input::Unreachable(member) => self.raw.report_unreachable(member.0),
            Input::SnapshotReport { member, delivered } => self.snapshot_report(member, delivered),
            Input::ReadIndex(context) => self.read_index(context),
            Input::Applied(index) => {
                self.handed_out.applied(index)?;
                self.raft_applied(index);
            }
            Input::ConfChangeApplied { index, change } => self.conf_change_applied(index, change)?,
            Input::Checkpointed(index) => {
                self.durable_index = self.durable_index.max(index);
                self.compact();
            }
            Input::SnapshotBuilt(snapshot) => self.snapshot_built(snapshot)?,
            Input::TransferLeader(member) => self.raw.transfer_leader(member.0),
            Input::Campaign => self.campaign(),
        }
        Ok(())
    }

    /// The library asserts that a new leader's log is persisted, and that a leader that removed itself persists nothing
    /// more (R11, R17). So what may bring either about waits for the round that persists the tail.
    fn must_wait(&self, input: &Input) -> bool {
        let log = &self.raw.raft.raft_log;
        if log.unstable_entries().is_empty() && log.unstable_snapshot().is_none() {
            return false;
        }
        let leading = self.raw.raft.state == StateRole::Leader;
        match input {
            Input::Tick | Input::Campaign => !leading,
            Input::Peer(message) => message.r#type == numbers::MSG_TIMEOUT_NOW,
            Input::ConfChangeApplied { change, .. } => {
                let removal = change.as_ref().is_some_and(|change| self.removes_self(change));
                (leading && removal) || self.conf_change_waits()
            }
            Input::Applied(_) => self.conf_change_waits(),
            _ => false,
        }
    }

    fn conf_change_waits(&self) -> bool {
        self.deferred.iter().any(|input| matches!(input, Input::ConfChangeApplied { .. }))
    }

    fn removes_self(&self, change: &ConfChange) -> bool {
        change.r#type == numbers::CONF_REMOVE_NODE && change.node_id == self.id
    }

    /// What follows from any input.
    fn settle(&mut self, effects: &mut Vec<Effect>) {
        let log = &self.raw.raft.raft_log;
        let quiet = log.unstable_entries().is_empty() && log.unstable_snapshot().is_none();
        let undecided = self.raw.raft.state == StateRole::Follower && self.raw.raft.leader_id == 0;
        if undecided && quiet && log.applied >= log.committed && self.alone() {
            self.campaign();
        }
        while !self.held_reads.is_empty() && self.accepts_reads() {
            let read = self.held_reads.pop_front().expect("checked above: not empty");
            self.step_read(read);
        }
        self.settle_changes(effects);
        if self.raw.mut_store().take_snapshot_wanted() && self.building.is_none() && self.ticks >= self.build_not_before
        {
            self.building = Some(self.applied_index());
            effects.push(Effect::BuildSnapshot);
        }
        self.set_election_timeout();
    }

    fn tick(&mut self, effects: &mut Vec<Effect>) {
        self.ticks += 1;
        if let Some(since) = self.removed_at {
            if self.ticks >= since + self.removal_grace_ticks / 2 {
                self.hand_over();
            }
            if self.ticks == since + self.removal_grace_ticks {
                effects.push(Effect::Removed);
            }
        }
        let leading = self.raw.raft.state == StateRole::Leader;
        if self.raw.tick() && !leading {
            self.attempts += 1;
        }
    }

    fn campaign(&mut self) {
        self.attempts += 1;
        // The only error is a dropped proposal, and this is none.
        let _ = self.raw.campaign();
    }

    /// The only voter.
    fn alone(&self) -> bool {
        self.raw.raft.promotable() && self.raw.raft.prs().is_singleton()
    }

    /// A removed leader tells the most complete voter to campaign: the others would wait out an election timeout (B48).
    /// Not by a transfer, which waits for acknowledgements that a removed leader does not count.
    fn hand_over(&mut self) {
        if self.raw.raft.state != StateRole::Leader {
            return;
        }
        let voters = self.raw.raft.prs().conf().voters().ids();
        let candidates = self.matches().into_iter().filter(|(id, _)| voters.contains(id.0));
        if let Some((id, _)) = candidates.max_by_key(|(id, matched)| (*matched, std::cmp::Reverse(*id))) {
            self.raw.raft.send_timeout_now(id.0);
        }
    }

    fn propose(&mut self, proposals: Vec<Proposal>, effects: &mut Vec<Effect>) {
        let mut ids = Vec::new();
        let mut entries = Vec::new();
        let mut bytes = 0;
        for proposal in proposals {
            bytes += proposal.data.len() as u64;
            if bytes > MESSAGE_BYTES_MAX && !entries.is_empty() {
                self.propose_entries(&ids, std::mem::take(&mut entries), effects);
                ids.clear();
                bytes = proposal.data.len() as u64;
            }
            ids.push(proposal.request_id);
            entries.push(eraftpb::Entry { data: proposal.data, ..Default::default() });
        }
        if !entries.is_empty() {
            self.propose_entries(&ids, entries, effects);
        }
    }

    /// The library hands a follower's proposals to the leader; these end here instead.
    fn propose_in_term(&mut self, term: u64, proposals: Vec<Proposal>, effects: &mut Vec<Effect>) {
        if self.raw.raft.state == StateRole::Leader && self.raw.raft.term == term {
            return self.propose(proposals, effects);
        }
        let refused = |proposal: Proposal| Effect::Refused { request_id: proposal.request_id, why: Refusal::TermOver };
        effects.extend(proposals.into_iter().map(refused));
    }

    fn propose_conf_change(&mut self, request_id: u64, change: &ConfChange, effects: &mut Vec<Effect>) {
        let entry =
            Entry { r#type: numbers::ENTRY_CONF_CHANGE, data: change.encode_to_vec().into(), ..Entry::default() };
        match convert::entry_in(entry) {
            Ok(entry) if self.must_hold_changes() => self.hold_change(Some(request_id), entry, effects),
            Ok(entry) => self.propose_entries(&[request_id], vec![entry], effects),
            Err(_) => effects.push(Effect::Refused { request_id, why: Refusal::Dropped }),
        }
    }

    /// The library would put an empty entry in the place of a second change, silently (R19), and drop it while leadership
    /// is handed over.
    fn must_hold_changes(&self) -> bool {
        let raft = &self.raw.raft;
        raft.state == StateRole::Leader && (raft.has_pending_conf() || raft.lead_transferee.is_some())
    }

    /// Whether a change proposed now would not have to wait for another one.
    #[cfg(test)]
    pub fn takes_changes_at_once(&self) -> bool {
        self.held_changes.is_empty() && !self.must_hold_changes()
    }

    fn hold_change(&mut self, request_id: Option<u64>, entry: eraftpb::Entry, effects: &mut Vec<Effect>) {
        if self.held_changes.len() < HELD_CHANGES_MAX {
            self.held_changes.push_back((request_id, entry));
        } else if let Some(request_id) = request_id {
            effects.push(Effect::Refused { request_id, why: Refusal::Dropped });
        }
    }

    /// Proposes what was held as soon as that has a chance; gives it back when this member leads no longer.
    fn settle_changes(&mut self, effects: &mut Vec<Effect>) {
        if self.raw.raft.state != StateRole::Leader {
            let ids = self.held_changes.drain(..).filter_map(|(request_id, _)| request_id);
            effects.extend(ids.map(|request_id| Effect::Refused { request_id, why: Refusal::Dropped }));
        }
        while !self.must_hold_changes()
            && let Some((request_id, entry)) = self.held_changes.pop_front()
        {
            let ids: Vec<u64> = request_id.into_iter().collect();
            self.propose_entries(&ids, vec![entry], effects);
        }
    }

    /// Appends to the log here, or sends to the leader; refused ones are reported (R6).
    fn propose_entries(&mut self, ids: &[u64], entries: Vec<eraftpb::Entry>, effects: &mut Vec<Effect>) {
        let message = eraftpb::Message {
            msg_type: eraftpb::MessageType::MsgPropose,
            from: self.id,
            entries: entries.into(),
            ..Default::default()
        };
        if self.raw.step(message).is_err() {
            let why = if self.raw.raft.leader_id == 0 { Refusal::NoLeader } else { Refusal::Dropped };
            effects.extend(ids.iter().map(|id| Effect::Refused { request_id: *id, why }));
        }
    }

    fn peer(&mut self, message: Message, effects: &mut Vec<Effect>) -> Result<(), Failure> {
        match guard::judge(&message, &self.facts()) {
            Verdict::Step => {}
            Verdict::Drop(why) => {
                effects.push(Effect::MessageDropped(why));
                return Ok(());
            }
            Verdict::LogLost { index } => {
                return Err(Failure::Refused(format!(
                    "member {:x} acknowledged the log up to {index} to {:x}, but its log ends at {}: the local log was \
                     lost; remove this member from the cluster and add it again",
                    self.id,
                    message.from,
                    self.raw.raft.raft_log.last_index()
                )));
            }
        }
        let (kind, from, rejected) = (message.r#type, message.from, message.reject);
        let message = match convert::message_in(message) {
            Ok(message) => message,
            Err(_) => {
                effects.push(Effect::MessageDropped("malformed"));
                return Ok(());
            }
        };
        if kind == numbers::MSG_READ_INDEX {
            self.take_read(message);
        } else if kind == numbers::MSG_PROP && self.must_hold_changes() && is_conf_change(&message) {
            let entry = message.entries.into_iter().next().expect("checked above: it has one");
            self.hold_change(None, entry, effects);
        } else if self.raw.step(message).is_err() {
            // A forwarded proposal that is refused here: its member's client runs into its deadline, as with etcd (R6).
            let why = if kind == numbers::MSG_PROP { "proposal refused" } else { "from an unknown member" };
            effects.push(Effect::MessageDropped(why));
        }
        if rejected && kind == numbers::MSG_APP_RESP {
            self.keep_next_behind_match(from);
        }
        Ok(())
    }

    fn facts(&self) -> guard::Facts {
        let raft = &self.raw.raft;
        guard::Facts {
            id: self.id,
            term: raft.term,
            last_index: raft.raft_log.last_index(),
            leading: raft.state == StateRole::Leader,
            removed_as_leader: self.removed_at.is_some() && raft.state == StateRole::Leader,
            apply_is_behind: self.handed_out.bytes() >= UNAPPLIED_BYTES_MAX,
        }
    }

    /// A stale rejection can move the next index to send below what the follower has acknowledged (R15).
    fn keep_next_behind_match(&mut self, from: u64) {
        if let Some(progress) = self.raw.raft.mut_prs().get_mut(from) {
            progress.next_idx = progress.next_idx.max(progress.matched + 1);
        }
    }

    fn read_index(&mut self, context: Bytes) {
        let entry = eraftpb::Entry { data: context, ..Default::default() };
        self.take_read(eraftpb::Message {
            msg_type: eraftpb::MessageType::MsgReadIndex,
            entries: vec![entry].into(),
            ..Default::default()
        });
    }

    /// The library drops a read while there is no leader, or its leader has not committed in its term (R2). Here it waits:
    /// its context is still unused, so stepping it later is as good as a new one.
    fn take_read(&mut self, read: eraftpb::Message) {
        if self.accepts_reads() {
            self.step_read(read);
            return;
        }
        let local = read.from == 0;
        if local || self.raw.raft.state == StateRole::Leader {
            if self.held_reads.len() == HELD_READS_MAX {
                self.held_reads.pop_front();
            }
            self.held_reads.push_back(read);
        }
    }

    fn accepts_reads(&self) -> bool {
        match self.raw.raft.state {
            StateRole::Leader => self.raw.raft.commit_to_current_term(),
            StateRole::Follower => self.raw.raft.leader_id != 0,
            StateRole::PreCandidate | StateRole::Candidate => false,
        }
    }

    fn step_read(&mut self, read: eraftpb::Message) {
        // The only error is a dropped proposal, and this is none.
        let _ = self.raw.step(read);
    }

    fn conf_change_applied(&mut self, index: u64, change: Option<ConfChange>) -> Result<(), Failure> {
        let outstanding = self.handed_out.conf_change_applied(index);
        let snapshot = self.raw.snap().map_or(0, |snapshot| snapshot.get_metadata().index);
        if !outstanding || index <= snapshot || index <= self.applied_index() {
            // A snapshot overtook it: the configuration is already a later one.
            return Ok(());
        }
        if let Some(change) = change {
            let refused = |why: String| Failure::Refused(format!("configuration change at {index}: {why}"));
            let inside = convert::applied_change(&change).map_err(|error| refused(error.to_string()))?;
            if let Some(inside) = inside.filter(|inside| inside.node_id != 0) {
                self.raw.apply_conf_change(&inside).map_err(|error| refused(error.to_string()))?;
                self.conf_index = index;
                self.committed_before_conf = self.raw.raft.raft_log.committed;
                self.raw.mut_store().drop_snapshot();
            }
            if self.removes_self(&change) {
                self.removed_at = Some(self.ticks);
            }
        }
        self.raft_applied(index);
        Ok(())
    }

    fn raft_applied(&mut self, index: u64) {
        if index > self.applied_index() {
            self.raw.advance_apply_to(index);
        }
    }

    fn snapshot_report(&mut self, member: MemberId, delivered: bool) {
        let status = if delivered { SnapshotStatus::Finish } else { SnapshotStatus::Failure };
        if !delivered {
            // The image behind it may be gone; a little later the follower gets a new one.
            self.raw.mut_store().drop_snapshot();
            self.build_not_before = self.ticks + self.election_ticks as u64;
        }
        self.raw.report_snapshot(member.0, status);
    }

    fn snapshot_built(&mut self, snapshot: Snapshot) -> Result<(), Failure> {
        self.building = None;
        let inside = convert::snapshot_in(snapshot)
            .map_err(|error| Failure::Refused(format!("the snapshot that was built for followers: {error}")))?;
        let index = inside.get_metadata().index;
        if index > self.applied_index() {
            return Err(Failure::Refused(format!(
                "a snapshot was built at {index}, but only {} is applied",
                self.applied_index()
            )));
        }
        // One that the log or the configuration has left behind is useless; the follower's next answer asks for another.
        if index >= self.conf_index {
            self.raw.mut_store().offer_snapshot(inside);
        }
        Ok(())
    }

    /// Drops what is applied, durable, outside the catch-up window and not needed behind a snapshot on its way.
    fn compact(&mut self) {
        let in_flight = |progress: &raft::Progress| {
            (progress.state == ProgressState::Snapshot && progress.pending_snapshot > 0)
                .then_some(progress.pending_snapshot)
        };
        let raft = &self.raw.raft;
        if raft.state == StateRole::Leader
            && let Some(index) = raft.prs().iter().filter_map(|(_, progress)| in_flight(progress)).min()
        {
            self.sending = Some((index, self.ticks));
        }
        let hold_ticks = self.snapshot_hold_ticks;
        let ticks = self.ticks;
        self.sending = self.sending.filter(|(_, last)| ticks - last <= hold_ticks);
        let mut limit = self.applied_index().min(self.durable_index);
        if self.raw.store().bytes() < self.catch_up.bytes.saturating_mul(HOLD_BYTES_FACTOR) {
            let sending = self.sending.map(|(index, _)| index);
            limit = sending.into_iter().chain(self.building).fold(limit, u64::min);
        }
        let window = self.catch_up;
        self.raw.mut_store().compact(window, limit);
    }

    fn give_out(&mut self, entries: Vec<eraftpb::Entry>) -> Vec<Entry> {
        let entries: Vec<Entry> = entries.into_iter().map(convert::entry_out).collect();
        self.handed_out.give(&entries);
        entries
    }

    /// Replaces the library's random timeout, so that equal seeds give equal runs (R23). Never the same for one campaign
    /// as for the next, nor for two members.
    ///
    /// One tick more than the time for which others stand by the leader, whose ticks come at other moments: who asks them
    /// before is refused and waits for a whole timeout more. The spread is half of etcd's, so a leader is missed less.
    fn set_election_timeout(&mut self) {
        let spread = (self.election_ticks as u64).div_ceil(2);
        let draw = scramble(self.seed ^ scramble(self.id ^ scramble(self.raw.raft.term ^ scramble(self.attempts))));
        let timeout = self.election_ticks + 1 + (draw % spread) as usize;
        self.raw.raft.set_randomized_election_timeout(timeout);
    }
}

/// A proposal of one configuration change and nothing else, as members make them.
fn is_conf_change(message: &eraftpb::Message) -> bool {
    message.entries.len() == 1 && message.entries[0].entry_type == eraftpb::EntryType::EntryConfChange
}

/// Mixes bits so that neighbouring numbers give unrelated ones (the finaliser of SplitMix64).
fn scramble(number: u64) -> u64 {
    let mut mixed = number.wrapping_add(0x9e37_79b9_7f4a_7c15);
    mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    mixed ^ (mixed >> 31)
}

fn messages_out(messages: Vec<eraftpb::Message>) -> Vec<Message> {
    messages.into_iter().map(convert::message_out).collect()
}

fn read_ready(state: raft::ReadState) -> ReadReady {
    ReadReady { context: state.request_ctx.into(), index: state.index }
}

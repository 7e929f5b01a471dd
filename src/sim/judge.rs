//! What must hold at every step, whatever the faults: seen from above all members, where no member can look.
//!
//! The judge stands between each member's core and its log, its network and its state machine. It remembers what each
//! member made durable, and so knows what a message may promise and what a restart must find.

use std::collections::BTreeMap;

use crate::common::ids::MemberId;
use crate::proto::raft_numbers as numbers;
use crate::proto::raftpb::ConfState;
use crate::proto::raftpb::Entry;
use crate::proto::raftpb::HardState;
use crate::proto::raftpb::Message;
use crate::server::cluster::handle::ClusterView;
use crate::server::raft::state_machine::RaftStatus;
use crate::server::raft::state_machine::Role;
use crate::server::raft::wal::Recovered;
use crate::sim::electorate::Electorate;

/// What one member's disk holds for certain.
#[derive(Debug, Default)]
struct Durable {
    /// Terms of the entries as last written, by index.
    terms: BTreeMap<u64, u64>,
    /// Entries at and below it are part of a snapshot.
    base: u64,
    /// The last entry that is on disk.
    last: u64,
    /// The lowest entry written since the last sync: a crash may leave the old one or the new one there.
    unsynced_from: Option<u64>,
    hard_state: HardState,
    /// As last written, synced or not.
    written: HardState,
}

impl Durable {
    fn last_written(&self) -> u64 {
        self.terms.keys().next_back().copied().unwrap_or(0).max(self.base)
    }

    fn synced(&mut self) {
        self.last = self.last_written();
        self.unsynced_from = None;
        self.hard_state = self.written;
    }

    fn holds(&self, index: u64, term: u64) -> bool {
        index <= self.base || (index <= self.last && self.terms.get(&index) == Some(&term))
    }
}

/// The judge of one run.
#[derive(Debug, Default)]
pub struct Judge {
    durable: BTreeMap<u64, Durable>,
    leaders: BTreeMap<u64, u64>,
    /// (member, term) to whom it gave its vote.
    votes: BTreeMap<(u64, u64), u64>,
    /// The committed log from index 1 on, as the first member to apply an entry saw it.
    committed: Vec<Entry>,
    /// The index of each accepted configuration change, and the members behind it.
    electorates: Vec<(u64, Electorate)>,
    /// The next entry each member has to be given.
    applied: BTreeMap<u64, u64>,
    violations: Vec<String>,
}

impl Judge {
    pub fn blame(&mut self, text: String) {
        self.violations.push(text);
    }

    pub fn violations(&self) -> &[String] {
        &self.violations
    }

    pub fn committed(&self) -> &[Entry] {
        &self.committed
    }

    pub fn committed_index(&self) -> u64 {
        self.committed.len() as u64
    }

    /// Accepted changes of the membership, the founders' aside.
    pub fn conf_changes(&self) -> u64 {
        let founders = self.committed.iter().take_while(|entry| entry.term == 1).count();
        self.electorates.len().saturating_sub(founders) as u64
    }

    /// Whether the committed log has made it a member.
    pub fn is_member(&self, id: MemberId) -> bool {
        self.electorates.last().is_some_and(|(_, electorate)| electorate.has(id))
    }

    pub fn is_removed(&self, id: MemberId) -> bool {
        self.electorates.last().is_some_and(|(_, electorate)| electorate.has_removed(id))
    }

    /// The members behind entry `index`, which must be committed.
    fn electorate_at(&self, index: u64) -> Electorate {
        let count = self.electorates.partition_point(|(at, _)| *at <= index);
        count.checked_sub(1).map(|last| self.electorates[last].1.clone()).unwrap_or_default()
    }

    /// A configuration that is kept or sent with the state at `index`: the one that the log makes (B12).
    pub fn configuration(&mut self, id: MemberId, what: &str, index: u64, conf_state: &ConfState) {
        let expected = self.electorate_at(index).conf_state();
        let same = sorted(&conf_state.voters) == expected.voters && sorted(&conf_state.learners) == expected.learners;
        if !same {
            self.blame(format!("{id} has {conf_state:?} in {what} at entry {index}, where the log makes {expected:?}"));
        }
    }

    /// What a member says about all members, with the whole log applied.
    pub fn members(&mut self, id: MemberId, view: &ClusterView) {
        let members = view.members.iter().map(|member| (member.id.0, member.is_learner, member.peer_urls.clone()));
        let said = (members.collect::<Vec<_>>(), view.removed.iter().map(|removed| removed.0).collect::<Vec<_>>());
        let expected = self.electorate_at(u64::MAX).listed();
        if said != expected {
            self.blame(format!("{id} knows the members {said:?}, where the log makes {expected:?}"));
        }
    }

    /// Terms that had a leader.
    pub fn terms_led(&self) -> u64 {
        self.leaders.len() as u64
    }

    /// A member's log was written; `synced` if the disk has confirmed it.
    pub fn saved(&mut self, id: MemberId, hard_state: Option<&HardState>, entries: &[Entry], synced: bool) {
        let durable = self.durable.entry(id.0).or_default();
        if let Some(first) = entries.first() {
            durable.terms.split_off(&first.index);
            durable.terms.extend(entries.iter().map(|entry| (entry.index, entry.term)));
            durable.unsynced_from = Some(durable.unsynced_from.map_or(first.index, |from| from.min(first.index)));
        }
        if let Some(hard_state) = hard_state {
            durable.written = *hard_state;
        }
        if synced {
            durable.synced();
        }
    }

    /// A snapshot record was written: of the member's own state, or one that takes the place of its log.
    pub fn saved_snapshot(&mut self, id: MemberId, index: u64, term: u64, synced: bool) {
        let durable = self.durable.entry(id.0).or_default();
        if !durable.holds(index, term) && index > durable.base {
            durable.terms.clear();
            durable.base = index;
            // Until the hard state follows, a restart may still go on from the old log.
            durable.unsynced_from = Some(0);
        }
        if synced {
            durable.last = durable.last.max(index);
            durable.hard_state = HardState { commit: durable.hard_state.commit, ..durable.written };
        }
    }

    /// What a restart found, against what was durable before.
    pub fn recovered(&mut self, id: MemberId, recovered: &Recovered) {
        let durable = self.durable.entry(id.0).or_default();
        let (found, known) = (recovered.hard_state, durable.hard_state);
        if found.term < known.term || (found.term == known.term && known.vote != 0 && found.vote != known.vote) {
            self.violations.push(format!("{id} forgot its vote: {found:?} after {known:?}"));
        }
        let certain = durable.unsynced_from.map_or(durable.last, |from| durable.last.min(from.saturating_sub(1)));
        let first = recovered.base.index + 1;
        let term_at = |index: u64| {
            let at = usize::try_from(index - first).ok()?;
            recovered.entries.get(at).map(|entry| entry.term)
        };
        for index in first.max(durable.base + 1)..=certain {
            if term_at(index) != durable.terms.get(&index).copied() {
                let text = format!("{id} lost entry {index}: term {:?} now, {durable:?}", term_at(index));
                self.violations.push(text);
                break;
            }
        }
        durable.terms = recovered.entries.iter().map(|entry| (entry.index, entry.term)).collect();
        durable.base = recovered.base.index;
        durable.written = found;
        durable.synced();
        let commit = recovered.hard_state.commit;
        for entry in recovered.entries.iter().filter(|entry| entry.index <= commit) {
            self.agree(id, entry);
        }
    }

    /// A message leaves: what it promises must be durable.
    pub fn sent(&mut self, message: &Message) {
        let Some(durable) = self.durable.get(&message.from) else { return };
        let state = durable.hard_state;
        let asks = matches!(message.r#type, numbers::MSG_PRE_VOTE | numbers::MSG_PRE_VOTE_RESP);
        // A promise of an older term is kept by never going back to it: the durable term says that.
        let current = message.term == state.term;
        let mut wrong = None;
        if !asks && message.term > state.term {
            wrong = Some("a term that is not durable");
        }
        match message.r#type {
            numbers::MSG_APP_RESP if current && !message.reject && message.index > durable.last => {
                wrong = Some("acknowledges what is not durable");
            }
            numbers::MSG_VOTE if current && state.vote != message.from => {
                wrong = Some("a candidate without its own vote")
            }
            numbers::MSG_VOTE_RESP if !message.reject => {
                if current && state.vote != message.to {
                    wrong = Some("a vote that is not durable");
                }
                let before = *self.votes.entry((message.from, message.term)).or_insert(message.to);
                if before != message.to {
                    wrong = Some("a second vote in one term");
                }
            }
            _ => {}
        }
        if let Some(wrong) = wrong {
            let (from, last) = (message.from, durable.last);
            self.blame(format!("{from:x} sends {wrong}: {message:?}; durable are {state:?} and entries to {last}"));
        }
    }

    /// Two leaders never share a term.
    pub fn status(&mut self, id: MemberId, status: &RaftStatus) {
        if status.role == Role::Leader {
            let leader = *self.leaders.entry(status.term).or_insert(id.0);
            if leader != id.0 {
                self.blame(format!("{leader:x} and {id} both lead term {}", status.term));
            }
        }
    }

    /// A member starts with everything up to `index` applied.
    pub fn starts_at(&mut self, id: MemberId, index: u64) {
        self.applied.insert(id.0, index);
    }

    /// Entries were given to a member's apply thread: the same on all, in order, each durable on a majority.
    pub fn applies(&mut self, id: MemberId, entries: &[Entry]) {
        for entry in entries {
            let expected = self.applied.entry(id.0).or_default();
            if entry.index != *expected + 1 {
                let text = format!("{id} is given entry {} after {expected}", entry.index);
                self.violations.push(text);
            }
            *expected = entry.index;
            if self.committed_index() < entry.index {
                self.check_majority(id, entry);
            }
            self.agree(id, entry);
        }
    }

    /// Whoever led it to its commit had applied all configuration changes before it, or all but the last.
    fn check_majority(&mut self, id: MemberId, entry: &Entry) {
        let holds = |voter: &u64| self.durable.get(voter).is_some_and(|durable| durable.holds(entry.index, entry.term));
        let is_majority = |electorate: &Electorate| {
            let voters = electorate.voters();
            voters.iter().filter(|voter| holds(voter)).count() * 2 > voters.len()
        };
        let founded = entry.term == 1;
        if !founded && !self.electorates.iter().rev().take(2).any(|(_, electorate)| is_majority(electorate)) {
            let holders: Vec<&u64> = self.durable.keys().filter(|member| holds(member)).collect();
            self.blame(format!("{id} applies entry {}, which only {holders:?} have on disk", entry.index));
        }
    }

    /// Logs and applied sequences are one sequence.
    fn agree(&mut self, id: MemberId, entry: &Entry) {
        let at = usize::try_from(entry.index - 1).expect("an index of a run in memory");
        match self.committed.get(at) {
            Some(known) if known == entry => {}
            Some(known) => {
                let text = format!("{id} commits {entry:?}, others have committed {known:?}");
                self.violations.push(text);
            }
            None if at == self.committed.len() => {
                let last = self.electorates.last().map(|(_, electorate)| electorate.clone()).unwrap_or_default();
                self.electorates.extend(last.after(entry).map(|next| (entry.index, next)));
                self.committed.push(entry.clone());
            }
            None => self.blame(format!("{id} commits entry {} before anybody had the one before", entry.index)),
        }
    }
}

fn sorted(ids: &[u64]) -> Vec<u64> {
    let mut sorted = ids.to_vec();
    sorted.sort_unstable();
    sorted
}

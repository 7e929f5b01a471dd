//! Who changes the membership: adds learners and voters, promotes, moves and removes, and runs the processes that go with it.
//!
//! An operator asks and does not wait: what became of a change, the members' published membership says.

use crate::common::ids::MemberId;
use crate::server::cluster::member::Member as ClusterMember;
use crate::server::cluster::membership::Change;
use crate::server::propose::conf_change;
use crate::sim::faults::Fault;
use crate::sim::member::Member;
use crate::sim::member::lock;
use crate::sim::world::Event;
use crate::sim::world::Micros;
use crate::sim::world::SECOND;
use crate::sim::world::Slot;
use crate::sim::world::Stage;
use crate::sim::world::World;

/// Members of a run, those that are gone included.
const MEMBERS_EVER: usize = 9;
/// Members at a time.
const MEMBERS_MAX: usize = 6;
/// An operator looks so often.
const LOOK_EVERY: Micros = SECOND / 5;

impl World {
    /// Asks for one change of the membership, through the leader or some other member.
    pub(super) fn reconfigure(&mut self) {
        let Some(leader) = self.leader() else { return };
        let Some(running) = &self.slots[leader].member.running else { return };
        let members = running.published.cluster.members();
        let leader_id = self.slots[leader].member.id;
        let Some(change) = self.choose_change(&members, leader_id) else { return };
        if let Change::Add(member) = &change {
            let founded = Member::join(member.id, self.dice.roll(), self.judge.clone());
            let Ok(joining) = founded else { return };
            self.slots.push(Slot::new(joining, Stage::Proposed, &mut self.dice));
        }
        let via = if self.dice.chance(70) { leader } else { self.pick_member() };
        self.trace([8, via as u64, change.member().0, change.context().len() as u64]);
        let Some(running) = &self.slots[via].member.running else { return };
        let id = running.ids.next();
        // Refused or lost, it is one change less.
        let _ = running.raft.propose_conf_change(id, conf_change(id, &change));
        self.wake(via);
    }

    fn choose_change(&mut self, members: &[ClusterMember], leader: MemberId) -> Option<Change> {
        let ids = |learner: bool| members.iter().filter(move |member| member.is_learner == learner);
        let learners: Vec<MemberId> = ids(true).map(|member| member.id).collect();
        let voters: Vec<MemberId> = ids(false).map(|member| member.id).collect();
        let some = |of: &[MemberId], at: u64| of[usize::try_from(at).expect("a small number") % of.len()];
        let chosen = self.dice.roll();
        match self.dice.below(10) {
            0..4 if !learners.is_empty() => Some(Change::Promote(some(&learners, chosen))),
            0..5 if self.slots.len() < MEMBERS_EVER && members.len() < MEMBERS_MAX => {
                let id = MemberId(self.slots.len() as u64 + 1);
                let is_learner = learners.is_empty() && self.dice.chance(70);
                Some(Change::Add(ClusterMember {
                    id,
                    peer_urls: vec![url(id, 0)],
                    is_learner,
                    ..ClusterMember::default()
                }))
            }
            5 if !learners.is_empty() => Some(Change::Remove(some(&learners, chosen))),
            // Two must stay: a change that was asked for before may still come.
            5..8 if voters.len() > 2 => {
                Some(Change::Remove(if self.dice.chance(40) { leader } else { some(&voters, chosen) }))
            }
            // Sometimes a change that has to be rejected: an address that another has, a promotion of a voter.
            8 if !voters.is_empty() => {
                let id = some(&voters, chosen);
                let owner = if self.dice.chance(30) { some(&voters, chosen >> 8) } else { id };
                Some(Change::Update(id, vec![url(owner, chosen % 3)]))
            }
            9 if !voters.is_empty() && self.dice.chance(30) => Some(Change::Promote(some(&voters, chosen))),
            _ => None,
        }
    }

    pub(super) fn operate(&mut self) -> Result<(), String> {
        self.look_after_members()?;
        if !self.calm {
            // Where members change at all, they change often.
            if self.plan.faults.contains(&Fault::Reconfigure) && self.dice.chance(10) {
                self.reconfigure();
            }
            self.after(LOOK_EVERY, Event::Operator);
        }
        Ok(())
    }

    /// Starts the processes of members that were added, and stops those of members that were removed and do not notice.
    pub(super) fn look_after_members(&mut self) -> Result<(), String> {
        for member in 0..self.slots.len() {
            let id = self.slots[member].member.id;
            let (is_member, is_removed) = {
                let judge = lock(&self.judge);
                (judge.is_member(id), judge.is_removed(id))
            };
            let unnoticed = self.calm || self.dice.chance(3);
            match self.slots[member].stage {
                Stage::Proposed if is_member => {
                    self.slots[member].stage = Stage::Member;
                    self.summary.joined += 1;
                    self.at(self.now, Event::Start(member));
                }
                Stage::Proposed if is_removed => self.slots[member].stage = Stage::Gone,
                Stage::Member if is_removed && unnoticed => self.retire(member)?,
                _ => {}
            }
        }
        Ok(())
    }

    /// A member's process ends for good. Only one that was removed may do so.
    pub(super) fn retire(&mut self, member: usize) -> Result<(), String> {
        let id = self.slots[member].member.id;
        if !lock(&self.judge).is_removed(id) {
            return Err(self.sentence(&format!("member {id} ended as if it were removed")));
        }
        self.slots[member].stage = Stage::Gone;
        self.summary.removed += 1;
        self.down(member, false, 0);
        Ok(())
    }
}

fn url(id: MemberId, variant: u64) -> String {
    format!("http://10.0.{variant}.{}:2380", id.0)
}

//! Whether a cluster keeps a quorum that can be had when a member comes or goes: etcd's strict reconfiguration check.
//!
//! Pure: who was heard, and for how long, is asked of the caller. Source: server.md 6.2.

use std::fmt;

use crate::common::answer::Answer;
use crate::common::ids::MemberId;
use crate::server::cluster::member::Member;

/// The cluster as one member sees it when it is asked for a change.
pub struct Electorate<'a> {
    pub members: &'a [Member],
    /// The member that is asked. It always hears itself.
    pub local: MemberId,
    /// Whether a member has been heard without a break for as long as etcd wants (5 s).
    pub heard: &'a dyn Fn(MemberId) -> bool,
}

/// Votes that there are, that decide, and that can be had.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Votes {
    pub voters: usize,
    pub majority: usize,
    pub reachable: usize,
}

/// Votes that decide among so many.
pub fn majority(voters: usize) -> usize {
    voters / 2 + 1
}

impl Votes {
    pub fn new(voters: usize, reachable: usize) -> Votes {
        Votes { voters, majority: majority(voters), reachable }
    }

    pub fn is_quorum(self) -> bool {
        self.reachable >= self.majority
    }

    /// Members that may be lost before nothing can be written any more.
    pub fn spare(self) -> usize {
        self.reachable.saturating_sub(self.majority)
    }
}

impl fmt::Display for Votes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} voters, {} needed, {} reachable: ", self.voters, self.majority, self.reachable)?;
        match (self.is_quorum(), self.spare()) {
            (false, _) => f.write_str("nothing can be written until another voter is up"),
            (true, 0) => f.write_str("the loss of any one of these stops all writes"),
            (true, spare) => write!(f, "{spare} of these may be lost"),
        }
    }
}

impl Electorate<'_> {
    /// A voter counts as not started and not heard; a learner has no vote, but its adder must not be cut off.
    pub fn may_add(&self, is_learner: bool) -> Result<(), Answer> {
        let (voters, started) = (self.voters().count(), self.started(None));
        // A lone member may always grow: that is how a cluster is put together again.
        let grows_from_one = started == 1 && voters == 1;
        if !is_learner && !grows_from_one && started < majority(voters + 1) {
            return Err(Answer::NotEnoughStartedMembers);
        }
        if voters > 1 && self.reachable() < majority(voters + 1) {
            return Err(Answer::Unhealthy);
        }
        Ok(())
    }

    /// `is_connected`: the member is heard at the moment, or is the one that is asked.
    pub fn may_remove(&self, id: MemberId, is_connected: bool) -> Result<(), Answer> {
        if self.members.iter().any(|member| member.id == id && member.is_learner) {
            return Ok(());
        }
        let rest = self.voters().filter(|member| member.id != id).count();
        if self.started(Some(id)) < majority(rest) {
            return Err(Answer::NotEnoughStartedMembers);
        }
        // One that is away already is in no quorum. Of an unknown one apply says that it is not there.
        if !is_connected {
            return Ok(());
        }
        let others = self.voters().count().saturating_sub(1);
        if self.reachable().saturating_sub(1) < majority(others) {
            return Err(Answer::Unhealthy);
        }
        Ok(())
    }

    /// The learner counts as started: it has followed the log.
    pub fn may_promote(&self) -> Result<(), Answer> {
        match self.started(None) + 1 < majority(self.voters().count() + 1) {
            true => Err(Answer::NotEnoughStartedMembers),
            false => Ok(()),
        }
    }

    /// The votes of these members as they are.
    pub fn votes(&self) -> Votes {
        Votes::new(self.voters().count(), self.reachable())
    }

    fn voters(&self) -> impl Iterator<Item = &Member> {
        self.members.iter().filter(|member| !member.is_learner)
    }

    fn started(&self, except: Option<MemberId>) -> usize {
        self.voters().filter(|member| Some(member.id) != except && member.is_started()).count()
    }

    fn reachable(&self) -> usize {
        self.voters().filter(|member| member.id == self.local || (self.heard)(member.id)).count()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Members 1, 2, … as letters: a started voter `v`, one that has not started `u`, a learner `l`. Member 1 is asked.
    fn check<T>(cluster: &str, heard: &[u64], ask: impl Fn(&Electorate<'_>) -> T) -> T {
        let members = (1..).zip(cluster.chars()).map(|(id, kind)| Member {
            id: MemberId(id),
            name: if kind == 'u' { String::new() } else { format!("m{id}") },
            is_learner: kind == 'l',
            ..Member::default()
        });
        let members: Vec<Member> = members.collect();
        let heard = |id: MemberId| heard.contains(&id.0);
        ask(&Electorate { members: &members, local: MemberId(1), heard: &heard })
    }

    #[test]
    fn a_voter_is_added_only_where_a_quorum_with_it_can_be_had() {
        let add = |cluster, heard| check(cluster, heard, |all| all.may_add(false));
        assert_eq!(add("v", &[]), Ok(()));
        assert_eq!(add("vv", &[2]), Ok(()));
        assert_eq!(add("vvv", &[2, 3]), Ok(()));
        // Three of four are there with the new one away.
        assert_eq!(add("vvv", &[2]), Err(Answer::Unhealthy));
        assert_eq!(add("vvvv", &[2, 3]), Ok(()));
        assert_eq!(add("vvvv", &[2]), Err(Answer::Unhealthy));
        assert_eq!(add("vu", &[]), Err(Answer::NotEnoughStartedMembers));
        assert_eq!(add("vvu", &[2]), Err(Answer::NotEnoughStartedMembers));
        assert_eq!(add("vvvu", &[2, 3]), Ok(()));
        assert_eq!(add("vl", &[]), Ok(()));
    }

    #[test]
    fn a_learner_is_added_by_a_member_that_hears_a_quorum() {
        let add = |cluster, heard| check(cluster, heard, |all| all.may_add(true));
        assert_eq!(add("v", &[]), Ok(()));
        assert_eq!(add("vu", &[]), Err(Answer::Unhealthy));
        assert_eq!(add("vvv", &[]), Err(Answer::Unhealthy));
        assert_eq!(add("vvv", &[2, 3]), Ok(()));
    }

    #[test]
    fn a_removal_leaves_a_quorum() {
        let remove = |cluster, heard, id: u64, is_connected| {
            check(cluster, heard, |all| all.may_remove(MemberId(id), is_connected))
        };
        assert_eq!(remove("v", &[], 1, true), Err(Answer::NotEnoughStartedMembers), "the last one stays");
        assert_eq!(remove("v", &[], 9, false), Ok(()), "apply does not find it");
        assert_eq!(remove("vvv", &[2, 3], 3, true), Ok(()));
        assert_eq!(remove("vvv", &[2, 3], 1, true), Ok(()));
        assert_eq!(remove("vvv", &[2], 2, true), Err(Answer::Unhealthy));
        assert_eq!(remove("vvv", &[2], 3, false), Ok(()), "one that is down already");
        assert_eq!(remove("vu", &[], 1, true), Err(Answer::NotEnoughStartedMembers));
        assert_eq!(remove("vu", &[], 2, false), Ok(()));
        assert_eq!(remove("vul", &[], 3, true), Ok(()), "a learner is in no quorum");
    }

    #[test]
    fn a_promotion_needs_started_voters() {
        let promote = |cluster| check(cluster, &[], |all| all.may_promote());
        assert_eq!(promote("vl"), Ok(()));
        assert_eq!(promote("vul"), Ok(()));
        assert_eq!(promote("vuul"), Err(Answer::NotEnoughStartedMembers));
    }

    #[test]
    fn votes_say_what_they_stand() {
        let said = |cluster, heard| check(cluster, heard, |all| all.votes().to_string());
        let stops = "nothing can be written until another voter is up";
        assert_eq!(said("vu", &[]), format!("2 voters, 2 needed, 1 reachable: {stops}"));
        assert_eq!(
            said("vvvu", &[2, 3]),
            "4 voters, 3 needed, 3 reachable: the loss of any one of these stops all writes"
        );
        assert_eq!(said("vvvvvl", &[2, 3, 4, 5, 6]), "5 voters, 3 needed, 5 reachable: 2 of these may be lost");
    }
}

//! What the hashes of several members say about each other (server.md 6.9). Pure: who was asked is the caller's business.
//!
//! Two hashes are comparable only when they leave out the same compacted revisions. An answer that is missing, or is
//! about something else, never counts as equal: it is counted as not compared.

use std::collections::BTreeMap;

use crate::common::ids::MemberId;
use crate::server::mvcc::hash::HashKv;
use crate::server::mvcc::hash::HashValue;

/// The whole cluster, where no majority says which members are wrong.
pub const EVERYBODY: MemberId = MemberId(0);

/// What a member answered. The error says why there is nothing to compare.
pub type Heard = Result<HashKv, String>;

/// What came out of one comparison.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Verdict {
    /// Others with our hash.
    pub equal: Vec<MemberId>,
    /// Others of whom nothing is known, and why.
    pub not_compared: Vec<(MemberId, String)>,
    /// Members to be reported, ourselves included, and why.
    pub wrong: Vec<(MemberId, &'static str)>,
}

impl Verdict {
    /// Everybody was compared, or somebody was found wrong: nothing is left to find out about this revision.
    pub fn is_final(&self) -> bool {
        self.not_compared.is_empty() || !self.wrong.is_empty()
    }
}

/// Before serving: does anybody who left out what we left out hold something else?
pub fn initial(own: &HashKv, heard: &[(MemberId, Heard)]) -> Verdict {
    let mut verdict = Verdict::default();
    for (member, heard) in heard {
        verdict.note(*member, own, heard);
    }
    verdict
}

/// The leader's look now and then. `own` is what the members were asked about; `newest` is this leader's revision and
/// compact revision after a read barrier behind their answers: nobody can be ahead of those.
pub fn periodic(own: &HashKv, newest: (i64, i64), heard: &[(MemberId, Heard)]) -> Verdict {
    let (revision, compact_revision) = newest;
    let mut verdict = Verdict::default();
    for (member, heard) in heard {
        match heard {
            Ok(theirs) if theirs.revision > revision => {
                verdict.wrong.push((*member, "its revision is ahead of the leader's"));
            }
            Ok(theirs) if theirs.compact_revision > compact_revision => {
                verdict.wrong.push((*member, "its compact revision is ahead of the leader's"));
            }
            _ => verdict.note(*member, own, heard),
        }
    }
    verdict
}

/// The leader's look at the hash that a compaction left: the majority is right, the others are wrong; without a majority
/// the whole cluster is.
pub fn of_compaction(local: MemberId, own: &HashValue, heard: &[(MemberId, Heard)]) -> Verdict {
    let own = HashKv {
        hash: own.hash,
        compact_revision: own.compact_revision,
        hash_revision: own.revision,
        revision: own.revision,
    };
    let mut verdict = Verdict::default();
    let mut holders: BTreeMap<u32, Vec<MemberId>> = BTreeMap::from([(own.hash, vec![local])]);
    for (member, heard) in heard {
        match heard {
            Ok(theirs) if comparable(&own, theirs).is_ok() => holders.entry(theirs.hash).or_default().push(*member),
            _ => verdict.note(*member, &own, heard),
        }
    }
    let majority = (heard.len() + 1).div_euclid(2) + 1;
    if let ([members], true) = (&holders.values().collect::<Vec<_>>()[..], holders.len() == 1) {
        verdict.equal.extend(members.iter().filter(|member| **member != local));
        return verdict;
    }
    let Some(right) = holders.iter().find(|(_, members)| members.len() >= majority).map(|(hash, _)| *hash) else {
        verdict.wrong.push((EVERYBODY, "members differ after a compaction, and no majority agrees"));
        return verdict;
    };
    for (hash, members) in holders {
        match hash == right {
            true => verdict.equal.extend(members.into_iter().filter(|member| *member != local)),
            false => verdict.wrong.extend(
                members.into_iter().map(|member| (member, "its hash after a compaction is not the majority's")),
            ),
        }
    }
    verdict
}

impl Verdict {
    fn note(&mut self, member: MemberId, own: &HashKv, heard: &Heard) {
        let theirs = match heard {
            Ok(theirs) => theirs,
            Err(reason) => return self.not_compared.push((member, reason.clone())),
        };
        match comparable(own, theirs) {
            Ok(()) if theirs.hash == own.hash => self.equal.push(member),
            Ok(()) => self.wrong.push((member, "its hash at the same revision is another one")),
            Err(reason) => self.not_compared.push((member, reason)),
        }
    }
}

fn comparable(own: &HashKv, theirs: &HashKv) -> Result<(), String> {
    // A 3.5 does not tell the revision of its hash.
    if theirs.hash_revision != 0 && theirs.hash_revision != own.hash_revision {
        return Err(format!("its hash is of revision {}, not {}", theirs.hash_revision, own.hash_revision));
    }
    if theirs.compact_revision != own.compact_revision {
        return Err(format!("it is compacted to {}, not {}", theirs.compact_revision, own.compact_revision));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOCAL: MemberId = MemberId(1);

    fn answer(hash: u32, compact_revision: i64) -> Heard {
        Ok(HashKv { hash, compact_revision, hash_revision: 9, revision: 9 })
    }

    fn heard(answers: &[Heard]) -> Vec<(MemberId, Heard)> {
        answers.iter().cloned().enumerate().map(|(at, heard)| (MemberId(at as u64 + 2), heard)).collect()
    }

    fn ids(verdict: &Verdict) -> (Vec<u64>, Vec<u64>, Vec<u64>) {
        (
            verdict.equal.iter().map(|member| member.0).collect(),
            verdict.not_compared.iter().map(|(member, _)| member.0).collect(),
            verdict.wrong.iter().map(|(member, _)| member.0).collect(),
        )
    }

    fn silent() -> Heard {
        Err("gone".to_owned())
    }

    #[test]
    fn what_cannot_be_compared_is_never_equal() {
        let own = answer(7, 4).expect("an answer");
        let other_revision = Ok(HashKv { hash_revision: 8, ..own });
        let answers = heard(&[answer(7, 4), answer(7, 3), answer(8, 4), answer(8, 3), silent(), other_revision]);
        let expected = (vec![2], vec![3, 5, 6, 7], vec![4]);
        assert_eq!(ids(&initial(&own, &answers)), expected);
        assert_eq!(ids(&periodic(&own, (9, 4), &answers)), expected);
        let old = Ok(HashKv { hash_revision: 0, ..own });
        assert_eq!(ids(&initial(&own, &heard(&[old]))), (vec![2], vec![], vec![]));
    }

    #[test]
    fn nobody_can_be_ahead_of_the_leader() {
        let own = answer(7, 4).expect("an answer");
        let ahead = Ok(HashKv { revision: 11, ..own });
        assert_eq!(ids(&periodic(&own, (10, 4), &heard(std::slice::from_ref(&ahead)))), (vec![], vec![], vec![2]));
        assert_eq!(ids(&periodic(&own, (11, 4), &heard(&[ahead]))), (vec![2], vec![], vec![]));
        assert_eq!(ids(&periodic(&own, (9, 4), &heard(&[answer(7, 5)]))), (vec![], vec![], vec![2]));
        assert_eq!(ids(&periodic(&own, (9, 5), &heard(&[answer(7, 5)]))), (vec![], vec![2], vec![]));
    }

    #[test]
    fn after_a_compaction_the_majority_is_right() {
        let own = HashValue { hash: 7, revision: 9, compact_revision: 4 };
        let check = |answers: &[Heard], equal: &[u64], not_compared: &[u64], wrong: &[u64]| {
            let verdict = of_compaction(LOCAL, &own, &heard(answers));
            assert_eq!(ids(&verdict), (equal.to_vec(), not_compared.to_vec(), wrong.to_vec()), "{answers:?}");
        };
        check(&[answer(7, 4), answer(7, 4)], &[2, 3], &[], &[]);
        check(&[answer(7, 4), answer(8, 4)], &[2], &[], &[3]);
        check(&[answer(8, 4), answer(8, 4)], &[2, 3], &[], &[1]);
        check(&[answer(8, 4), answer(9, 4)], &[], &[], &[0]);
        check(&[answer(8, 4), silent()], &[], &[3], &[0]);
        check(&[answer(7, 4), silent()], &[2], &[3], &[]);
        check(&[answer(8, 4)], &[], &[], &[0]);
        check(&[answer(8, 4), answer(7, 4), answer(7, 4)], &[3, 4], &[], &[2]);
        check(&[answer(8, 4), answer(8, 4), answer(7, 4)], &[], &[], &[0]);
        check(&[answer(8, 3), answer(7, 4)], &[3], &[2], &[]);
        assert!(of_compaction(LOCAL, &own, &heard(&[answer(8, 4), silent()])).is_final());
        assert!(!of_compaction(LOCAL, &own, &heard(&[answer(7, 4), silent()])).is_final());
    }
}

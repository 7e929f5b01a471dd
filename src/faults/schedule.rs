//! When which fault hits whom, and for how long: all of it follows from a seed.
//!
//! Strikes overlap as they fall. Who leads is known only when it happens, so a strike may name the leader instead of a
//! member. Nothing keeps a majority alive: sometimes all members are hit at once. But what a fault takes away comes back:
//! only a removed member loses its data, and there is never more than one.

use std::collections::BTreeSet;
use std::fmt;
use std::time::Duration;

use crate::disk::sim::Dice;
use crate::faults::kind::Kind;

/// Longest calm between two strikes; half of it is the mean.
const GAP_MILLIS_MAX: u64 = 2_600;

/// Who is hit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Whom {
    /// The member that leads then, and as many after it as are wanted.
    Leader { count: usize },
    /// This member, and as many after it as are wanted.
    Member { first: usize, count: usize },
}

/// Which way is closed between those who are hit and the others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ways {
    Both,
    /// What they send.
    Out,
    /// What they are sent.
    In,
}

/// What is done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum What {
    Kill,
    Pause,
    Restart,
    /// `cut`: connections that are opened this way end at once. Otherwise what is sent this way is held; `lost`: it is
    /// lost at the end, not delivered.
    Partition {
        ways: Ways,
        cut: bool,
        lost: bool,
    },
    Delay {
        millis: u64,
    },
    DiskFull,
    PowerCut,
    /// Removed, wiped and added again. Goes on for `linger` ms after the removal, and is away for `away` ms then.
    Rejoin {
        linger: u64,
        away: u64,
    },
    /// Another peer URL for the same address.
    Readdress,
}

/// One fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Strike {
    /// Since the beginning.
    pub at: Duration,
    /// Until it is taken back.
    pub length: Duration,
    pub what: What,
    pub whom: Whom,
}

impl fmt::Display for Whom {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (who, count) = match self {
            Whom::Leader { count } => ("the leader".to_owned(), *count),
            Whom::Member { first, count } => (format!("member {}", first + 1), *count),
        };
        match count {
            1 => f.write_str(&who),
            count => write!(f, "{who} and {} more", count - 1),
        }
    }
}

impl What {
    pub fn kind(&self) -> Kind {
        match self {
            What::Kill => Kind::Kill,
            What::Pause => Kind::Pause,
            What::Restart => Kind::Restart,
            What::Partition { .. } => Kind::Partition,
            What::Delay { .. } => Kind::Delay,
            What::DiskFull => Kind::DiskFull,
            What::PowerCut => Kind::PowerCut,
            What::Rejoin { .. } | What::Readdress => Kind::Member,
        }
    }
}

impl fmt::Display for What {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            What::Partition { ways, cut, lost } => {
                let ways = match ways {
                    Ways::Both => "both ways",
                    Ways::Out => "outwards",
                    Ways::In => "inwards",
                };
                let how = match (cut, lost) {
                    (true, _) => "cut",
                    (false, true) => "held and lost",
                    (false, false) => "held and delivered late",
                };
                write!(f, "partition ({ways}, {how})")
            }
            What::Delay { millis } => write!(f, "delay ({millis} ms)"),
            What::Rejoin { linger, away } => write!(f, "member (removed, goes on for {linger} ms, away for {away} ms)"),
            What::Readdress => f.write_str("member (another peer URL)"),
            other => write!(f, "{}", other.kind()),
        }
    }
}

/// The strikes of a run of `duration` on `members`, in order.
pub fn plan(seed: u64, kinds: &BTreeSet<Kind>, members: usize, duration: Duration) -> Vec<Strike> {
    plan_paced(seed, kinds, members, duration, Duration::from_millis(GAP_MILLIS_MAX / 2))
}

/// The same, with so much calm between strikes on average.
pub fn plan_paced(
    seed: u64,
    kinds: &BTreeSet<Kind>,
    members: usize,
    duration: Duration,
    interval: Duration,
) -> Vec<Strike> {
    let gap_max = u64::try_from(interval.as_millis()).unwrap_or(u64::MAX).saturating_mul(2).max(1);
    let mut dice = Dice::new(seed);
    // Compaction is what clients do.
    let kinds: Vec<Kind> = kinds.iter().copied().filter(|kind| *kind != Kind::Compact).collect();
    let mut strikes = Vec::new();
    if kinds.is_empty() {
        return strikes;
    }
    let mut at = Duration::from_millis(500);
    while at < duration {
        let kind = dice.pick(&kinds);
        let whom = whom(&mut dice, members);
        // Killed again while it comes back, now and then.
        let repeats = if kind == Kind::Kill && dice.chance(15) { 3 } else { 1 };
        for _ in 0..repeats {
            let what = what(&mut dice, kind);
            strikes.push(Strike { at, length: length(&mut dice), what, whom });
            at += Duration::from_millis(if repeats > 1 { dice.below(600) } else { dice.below(gap_max) });
        }
    }
    strikes.retain(|strike| strike.at < duration);
    strikes
}

fn whom(dice: &mut Dice, members: usize) -> Whom {
    let members = members.max(1);
    let count = match dice.below(20) {
        0..13 => 1,
        13..17 => members / 2 + 1,
        _ => members,
    };
    if dice.chance(45) {
        return Whom::Leader { count };
    }
    let first = usize::try_from(dice.below(members as u64)).unwrap_or_default();
    Whom::Member { first, count }
}

/// Most faults are short: the interesting moments are beginnings and ends. Some outlast elections and requests.
fn length(dice: &mut Dice) -> Duration {
    Duration::from_millis(match dice.below(10) {
        0..3 => dice.below(60),
        3..7 => dice.below(800),
        7..9 => 500 + dice.below(2_000),
        _ => 2_000 + dice.below(3_000),
    })
}

fn what(dice: &mut Dice, kind: Kind) -> What {
    match kind {
        Kind::Pause => What::Pause,
        Kind::Restart => What::Restart,
        Kind::Partition => What::Partition {
            ways: dice.pick(&[Ways::Both, Ways::Both, Ways::Out, Ways::In]),
            cut: dice.chance(40),
            lost: dice.chance(60),
        },
        Kind::Delay => What::Delay { millis: dice.pick(&[5, 25, 80, 250]) },
        Kind::DiskFull => What::DiskFull,
        Kind::PowerCut => What::PowerCut,
        Kind::Member if dice.chance(20) => What::Readdress,
        Kind::Member => What::Rejoin { linger: dice.pick(&[0, 0, 300, 2_000]), away: dice.pick(&[0, 0, 500, 4_000]) },
        Kind::Kill | Kind::Compact => What::Kill,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::faults::kind::KINDS;

    fn all() -> BTreeSet<Kind> {
        KINDS.map(|(_, kind)| kind).into_iter().collect()
    }

    #[test]
    fn one_seed_has_one_schedule() {
        let plan = |seed| plan(seed, &all(), 3, Duration::from_secs(60));
        assert_eq!(plan(7), plan(7));
        assert_ne!(plan(7), plan(8));
    }

    #[test]
    fn a_long_schedule_has_every_fault_and_hits_all_members_at_once() {
        let strikes = plan(1, &all(), 3, Duration::from_secs(600));
        let seen: BTreeSet<Kind> = strikes.iter().map(|strike| strike.what.kind()).collect();
        assert_eq!(seen.len(), KINDS.len() - 1, "all but compaction, which clients do: {seen:?}");
        assert!(strikes.iter().any(|strike| matches!(strike.whom, Whom::Member { count: 3, .. })));
        assert!(strikes.windows(2).all(|pair| pair[0].at <= pair[1].at));
        assert!(strikes.len() > 300, "{} strikes in ten minutes", strikes.len());
    }

    #[test]
    fn only_what_was_asked_for_is_done() {
        let strikes = plan(3, &BTreeSet::from([Kind::Pause]), 5, Duration::from_secs(60));
        assert!(!strikes.is_empty() && strikes.iter().all(|strike| strike.what == What::Pause));
        assert!(plan(3, &BTreeSet::from([Kind::Compact]), 3, Duration::from_secs(60)).is_empty());
    }

    #[test]
    fn an_interval_sets_the_pace() {
        let plan = |millis| {
            let kinds = BTreeSet::from([Kind::Pause]);
            plan_paced(7, &kinds, 3, Duration::from_secs(100), Duration::from_millis(millis)).len()
        };
        assert!((80..130).contains(&plan(1000)) && (160..260).contains(&plan(500)), "{} {}", plan(1000), plan(500));
    }
}

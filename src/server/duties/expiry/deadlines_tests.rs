//! Deadlines beside a simple model: what clients were told, by whichever leader, holds until its time is over.

use super::*;

const TIMEOUT: Duration = Duration::from_secs(1);

fn millis(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

fn secs(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

fn granted(id: i64, ttl_seconds: i64) -> Change {
    Change::Granted { id, ttl_seconds }
}

/// A leader of term 1 since time 0 without leases.
fn leader() -> Deadlines {
    let mut deadlines = Deadlines::new(TIMEOUT);
    deadlines.promote(1, Duration::ZERO);
    deadlines
}

/// Looks every 100 ms from `from` on, until `until`; the revokes with their times. Nothing is applied.
fn revokes(deadlines: &mut Deadlines, from: Duration, until: Duration) -> Vec<(u128, i64)> {
    let mut revokes = Vec::new();
    let mut now = from;
    while now <= until {
        revokes.extend(deadlines.due(now, true).revokes.into_iter().map(|id| (now.as_millis(), id)));
        now += millis(100);
    }
    revokes
}

#[test]
fn a_lease_ends_at_its_deadline_and_a_renewal_moves_it() {
    let mut deadlines = leader();
    deadlines.apply(granted(1, 5), millis(0));
    deadlines.apply(granted(2, 5), millis(0));
    assert!(revokes(&mut deadlines, millis(0), millis(3000)).is_empty());
    assert_eq!(deadlines.renew(1, millis(3000)), Renewal::Renewed { ttl_seconds: 5 });
    assert_eq!(deadlines.renew(9, millis(3000)), Renewal::Unknown);
    assert_eq!(deadlines.remaining(1, millis(4000)), Some((5, secs(4))));
    assert_eq!(deadlines.by_deadline(), [2, 1]);
    assert_eq!(revokes(&mut deadlines, millis(3100), millis(8500)), [(5000, 2), (8000, 1)]);
    // Until the revoke is applied nobody renews it, and it shows as over.
    assert_eq!(deadlines.renew(1, millis(8600)), Renewal::Ending);
    assert_eq!(deadlines.remaining(1, millis(8600)), Some((5, Duration::ZERO)));
    deadlines.apply(Change::Revoked { id: 1 }, millis(8700));
    assert_eq!(deadlines.renew(1, millis(8700)), Renewal::Unknown);
}

#[test]
fn an_overdue_lease_cannot_be_renewed_before_its_turn_came() {
    let mut deadlines = leader();
    deadlines.apply(granted(1, 2), millis(0));
    assert_eq!(deadlines.renew(1, millis(1999)), Renewal::Renewed { ttl_seconds: 2 });
    assert_eq!(deadlines.renew(1, millis(3999)), Renewal::Ending);
}

#[test]
fn a_failed_revoke_is_tried_again() {
    let mut deadlines = leader();
    deadlines.apply(granted(1, 2), millis(0));
    assert_eq!(deadlines.due(millis(2000), true).revokes, [1]);
    deadlines.revoke_failed(1, millis(2100));
    deadlines.revoke_failed(7, millis(2100));
    assert!(deadlines.due(millis(2500), true).revokes.is_empty());
    assert_eq!(deadlines.renew(1, millis(2500)), Renewal::Ending);
    assert_eq!(deadlines.due(millis(2600), true).revokes, [1]);
}

#[test]
fn nothing_ends_on_a_member_that_does_not_lead() {
    let mut deadlines = Deadlines::new(TIMEOUT);
    deadlines.apply(granted(1, 2), millis(0));
    assert_eq!(deadlines.due(secs(100), true), Due::default());
    assert_eq!(deadlines.renew(1, secs(100)), Renewal::NotPrimary);
    deadlines.promote(3, secs(100));
    deadlines.restore(vec![(1, LeaseTime { ttl_seconds: 2, remaining_seconds: 0 })], secs(100));
    deadlines.demote();
    assert_eq!(deadlines.due(secs(200), true), Due::default());
}

#[test]
fn a_new_leader_gives_what_is_left_and_an_election_timeout() {
    let check = |ttl_seconds: i64, remaining_seconds: i64, expected: Duration| {
        let mut deadlines = Deadlines::new(TIMEOUT);
        deadlines.promote(2, secs(50));
        deadlines.restore(vec![(1, LeaseTime { ttl_seconds, remaining_seconds })], secs(50));
        assert_eq!(
            deadlines.remaining(1, secs(50)),
            Some((ttl_seconds, expected)),
            "{ttl_seconds} {remaining_seconds}"
        );
    };
    check(60, 0, secs(61));
    check(60, 20, secs(21));
    check(60, 70, secs(61));
    check(60, -5, secs(61));
    check(9_000_000_000, 0, secs(9_000_000_001));
}

#[test]
fn many_that_end_at_once_are_paced_and_bounded() {
    let mut deadlines = leader();
    (0..10_000).for_each(|id| deadlines.apply(granted(id, 2), millis(0)));
    let mut now = millis(2000);
    let mut gone = 0;
    while gone < 10_000 {
        let due = deadlines.due(now, true);
        assert!(due.revokes.len() <= REVOKES_BURST as usize);
        gone += due.revokes.len();
        due.revokes.iter().for_each(|id| deadlines.apply(Change::Revoked { id: *id }, now));
        assert!(gone == 10_000 || deadlines.idle_for(now) == SLICE);
        now += SLICE;
    }
    assert_eq!((now - millis(2000)).as_millis(), 2_490);
    // Without answers no more than so many are on their way.
    (0..10_000).for_each(|id| deadlines.apply(granted(id, 2), now));
    assert_eq!(revokes(&mut deadlines, now, now + secs(10)).len(), REVOKES_IN_FLIGHT_MAX);
}

#[test]
fn silent_leases_are_checkpointed_and_renewed_ones_cost_nothing() {
    let mut deadlines = leader();
    for (id, ttl) in [(1, 60), (2, 60), (3, 9), (4, 3600)] {
        deadlines.apply(granted(id, ttl), millis(0));
    }
    let mut checkpoints = Vec::new();
    for second in 1..=601 {
        if second % 20 == 0 {
            deadlines.renew(1, secs(second));
        }
        for (id, left) in deadlines.due(secs(second), second != 30).checkpoints {
            checkpoints.push((second, id, left));
            deadlines.apply(Change::Checkpointed { id, remaining_seconds: left }, secs(second));
            deadlines.checkpoints_settled(&[(id, left)]);
        }
    }
    // At 30 it was not allowed, and 2 was over at 60.
    assert_eq!(checkpoints, [(300, 4, 3300), (600, 4, 3000)]);
    // The log says that less is left: told only when the log knows better.
    assert_eq!(deadlines.renew(4, secs(601)), Renewal::Clearing { ttl_seconds: 3600 });
    deadlines.apply(Change::Checkpointed { id: 4, remaining_seconds: 0 }, secs(602));
    assert_eq!(deadlines.renew(4, secs(602)), Renewal::Renewed { ttl_seconds: 3600 });
}

#[test]
fn a_renewal_behind_a_checkpoint_on_its_way_takes_it_back() {
    let mut deadlines = leader();
    deadlines.apply(granted(1, 60), millis(0));
    assert_eq!(deadlines.due(secs(30), true).checkpoints, [(1, 30)]);
    assert_eq!(deadlines.renew(1, secs(31)), Renewal::Clearing { ttl_seconds: 60 });
}

#[test]
fn a_checkpoint_that_hits_a_later_lease_of_the_same_id_is_taken_back() {
    let mut deadlines = leader();
    deadlines.apply(granted(1, 60), millis(0));
    assert_eq!(deadlines.due(secs(30), true).checkpoints, [(1, 30)]);
    deadlines.apply(Change::Revoked { id: 1 }, secs(30));
    deadlines.apply(granted(1, 100), secs(30));
    deadlines.apply(Change::Checkpointed { id: 1, remaining_seconds: 30 }, secs(30));
    assert_eq!(deadlines.due(secs(31), true).checkpoints, [(1, 0)]);
    assert!(deadlines.due(secs(32), true).checkpoints.is_empty());
}

#[test]
fn what_ran_out_while_the_process_stood_still_is_spared_once() {
    let mut deadlines = leader();
    for (id, ttl) in [(1, 5), (2, 5), (3, 2)] {
        deadlines.apply(granted(id, ttl), millis(0));
    }
    assert_eq!(revokes(&mut deadlines, millis(0), millis(3000)), [(2000, 3)]);
    // Still until 20 s; the renewal of lease 1 waited in a socket.
    assert!(deadlines.due(secs(20), true).revokes.is_empty());
    assert_eq!(deadlines.remaining(2, secs(20)), Some((5, TIMEOUT)));
    assert_eq!(deadlines.renew(1, millis(20_500)), Renewal::Renewed { ttl_seconds: 5 });
    assert_eq!(revokes(&mut deadlines, millis(20_600), millis(25_600)), [(21_000, 2), (25_500, 1)]);
    // A process that is always late ends its leases all the same.
    deadlines.apply(granted(4, 2), secs(30));
    assert!(deadlines.due(secs(33), true).revokes.is_empty());
    assert_eq!(deadlines.due(secs(36), true).revokes, [4]);
}

/// B43, etcd PR 13508: every change of the leader gave a lease its whole time again.
#[test]
fn b43_over_ten_changes_of_the_leader_a_lease_lives_little_longer_than_it_was_granted() {
    let ttl_seconds = 3600;
    let mut stored = LeaseTime { ttl_seconds, remaining_seconds: 0 };
    let mut now = Duration::ZERO;
    for term in 1.. {
        let mut deadlines = Deadlines::new(TIMEOUT);
        deadlines.promote(term, now);
        deadlines.restore(vec![(1, stored)], now);
        // Ten leaders in the time of the lease.
        for _ in 0..ttl_seconds / 10 {
            now += secs(1);
            let due = deadlines.due(now, true);
            if !due.revokes.is_empty() {
                assert!(now >= seconds(ttl_seconds), "ended early, at {now:?}");
                assert!(now <= seconds(ttl_seconds) * 13 / 10, "still there at {now:?}");
                return;
            }
            for (_, left) in due.checkpoints {
                stored.remaining_seconds = left;
                deadlines.apply(Change::Checkpointed { id: 1, remaining_seconds: left }, now);
                deadlines.checkpoints_settled(&[(1, left)]);
            }
        }
    }
}

/// A small generator of numbers, the same for the same seed.
struct Dice(u64);

impl Dice {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % bound
    }
}

/// An entry of the model's log.
#[derive(Clone, Copy, Debug)]
enum Entry {
    Change(Change),
    /// A checkpoint of 0 that a renewal at this leader waits for.
    Clear {
        id: i64,
        term: u64,
    },
}

/// Three members, the log between them, and what clients were told.
struct World {
    dice: Dice,
    now: Duration,
    term: u64,
    leader: usize,
    members: Vec<Deadlines>,
    /// A leader that was replaced goes on until this moment, without knowing it.
    stale: Option<(usize, Duration)>,
    log: Vec<Entry>,
    leases: BTreeMap<i64, LeaseTime>,
    /// Until when each lease was promised to live.
    promised: BTreeMap<i64, Duration>,
    revoked: usize,
    cleared: usize,
}

impl World {
    fn new(seed: u64) -> World {
        let members = vec![Deadlines::new(TIMEOUT); 3];
        let mut world = World {
            dice: Dice(seed),
            now: Duration::ZERO,
            term: 0,
            leader: 0,
            members,
            stale: None,
            log: Vec::new(),
            leases: BTreeMap::new(),
            promised: BTreeMap::new(),
            revoked: 0,
            cleared: 0,
        };
        world.elect();
        world
    }

    fn step(&mut self) {
        match self.dice.below(20) {
            0..6 => self.now += millis(self.dice.below(1500)),
            6 => self.now += secs(self.dice.below(12)),
            7..10 => self.grant(),
            10..13 => self.renew(),
            13 if self.dice.below(4) == 0 => self.elect(),
            14 => self.revoke_by_client(),
            _ => self.work(),
        }
    }

    fn work(&mut self) {
        for member in 0..self.members.len() {
            let due = self.members[member].due(self.now, true);
            // The guard of the log: what was decided in another term does not enter it (`Proposer::propose_in_term`).
            let counts = self.members[member].term() == Some(self.term);
            for id in due.revokes {
                assert!(!counts || self.is_over(id), "lease {id} is revoked before its time");
                match counts && self.dice.below(5) > 0 {
                    true => self.log.push(Entry::Change(Change::Revoked { id })),
                    false => self.members[member].revoke_failed(id, self.now),
                }
            }
            for (id, remaining_seconds) in due.checkpoints {
                match counts && self.dice.below(5) > 0 {
                    true => self.log.push(Entry::Change(Change::Checkpointed { id, remaining_seconds })),
                    false => self.members[member].checkpoints_settled(&[(id, remaining_seconds)]),
                }
            }
        }
        // Some of the log is applied.
        let applied = self.dice.below(self.log.len() as u64 + 1) as usize;
        self.apply(applied);
    }

    /// Whether nothing is promised of the lease any more. One that is granted anew in the log is another one.
    fn is_over(&self, id: i64) -> bool {
        let again = |entry: &Entry| matches!(entry, Entry::Change(Change::Granted { id: found, .. }) if *found == id);
        self.promised.get(&id).is_none_or(|until| *until <= self.now) || self.log.iter().any(again)
    }

    fn apply(&mut self, count: usize) {
        for entry in self.log.drain(..count).collect::<Vec<_>>() {
            let change = match entry {
                Entry::Change(change) => change,
                Entry::Clear { id, .. } => Change::Checkpointed { id, remaining_seconds: 0 },
            };
            if self.note(change) {
                self.members.iter_mut().for_each(|member| member.apply(change, self.now));
            }
            match (entry, change) {
                (Entry::Clear { id, term }, _) => {
                    if term == self.term {
                        self.renew_at(self.leader, id);
                    }
                    self.cleared += 1;
                }
                (_, Change::Checkpointed { id, remaining_seconds }) => {
                    self.members[self.leader].checkpoints_settled(&[(id, remaining_seconds)]);
                }
                _ => {}
            }
        }
    }

    /// Whether the change says anything, as apply decides.
    fn note(&mut self, change: Change) -> bool {
        match change {
            Change::Granted { id, ttl_seconds } => {
                if self.leases.contains_key(&id) {
                    return false;
                }
                self.leases.insert(id, LeaseTime { ttl_seconds, remaining_seconds: 0 });
                self.promised.insert(id, self.now + seconds(ttl_seconds));
                true
            }
            Change::Revoked { id } => {
                self.promised.remove(&id);
                self.revoked += 1;
                self.leases.remove(&id).is_some()
            }
            Change::Checkpointed { id, remaining_seconds } => self.leases.get_mut(&id).is_some_and(|time| {
                time.remaining_seconds = remaining_seconds;
                true
            }),
        }
    }

    fn grant(&mut self) {
        let ttl_seconds = 2 + self.dice.below(60) as i64;
        let id = self.dice.below(30) as i64;
        self.log.push(Entry::Change(granted(id, ttl_seconds)));
    }

    fn revoke_by_client(&mut self) {
        let id = self.dice.below(30) as i64;
        // Nothing is promised any more to a client that gives up its lease.
        self.promised.remove(&id);
        self.log.push(Entry::Change(Change::Revoked { id }));
    }

    fn renew(&mut self) {
        let id = self.dice.below(30) as i64;
        let stale = self.stale.filter(|(_, until)| self.now < *until).map(|(member, _)| member);
        let member = stale.filter(|_| self.dice.below(2) == 0).unwrap_or(self.leader);
        self.renew_at(member, id);
    }

    fn renew_at(&mut self, member: usize, id: i64) {
        let pending_revoke =
            self.log.iter().any(|entry| matches!(entry, Entry::Change(Change::Revoked { id: found }) if *found == id));
        match self.members[member].renew(id, self.now) {
            Renewal::Renewed { ttl_seconds } => {
                if !pending_revoke && self.leases.contains_key(&id) {
                    let until = self.now + seconds(ttl_seconds);
                    let promised = self.promised.entry(id).or_insert(until);
                    *promised = (*promised).max(until);
                }
            }
            Renewal::Clearing { .. } if self.members[member].term() == Some(self.term) => {
                self.log.push(Entry::Clear { id, term: self.term });
            }
            // A leader of the past proposes in vain.
            Renewal::Clearing { .. } => {}
            Renewal::Ending => {
                assert!(member != self.leader || pending_revoke || self.is_over(id), "lease {id} ends before its time");
            }
            Renewal::NotPrimary | Renewal::Unknown => {}
        }
    }

    /// Another leader, or the same again; a part of the log that was not applied is lost.
    fn elect(&mut self) {
        let kept = self.dice.below(self.log.len() as u64 + 1) as usize;
        self.log.truncate(kept);
        self.apply(kept);
        let old = self.leader;
        self.leader = self.dice.below(3) as usize;
        self.term += 1;
        if let Some((member, _)) = self.stale.take() {
            self.members[member].demote();
        }
        if old != self.leader {
            self.stale = Some((old, self.now + TIMEOUT));
        }
        let leases = self.leases.iter().map(|(id, time)| (*id, *time)).collect();
        self.members[self.leader].promote(self.term, self.now);
        self.members[self.leader].restore(leases, self.now);
    }
}

#[test]
fn over_leader_changes_no_lease_ends_early_and_all_end() {
    let (mut revoked, mut cleared) = (0, 0);
    for seed in 0..300 {
        let mut world = World::new(seed);
        for _ in 0..600 {
            world.step();
        }
        // Nobody renews any more, and one leader stays.
        while !world.log.is_empty() {
            let left = world.log.len();
            world.apply(left);
        }
        let end = world.now + secs(62) + TIMEOUT + secs(5);
        while world.now < end {
            world.now += millis(400);
            world.work();
        }
        let left = world.log.len();
        world.apply(left);
        assert_eq!(world.leases.len(), 0, "seed {seed}");
        (revoked, cleared) = (revoked + world.revoked, cleared + world.cleared);
    }
    assert!(revoked > 1000 && cleared > 100, "the runs did something: {revoked} revoked, {cleared} cleared");
}

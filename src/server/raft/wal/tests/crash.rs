//! Random saves on a disk that loses power at random operations: what was acknowledged is there, and nothing else than
//! what was written, in its order.
//!
//! The model is a list of records. After a crash the log must say what some first part of that list says, at least as
//! long as what was acknowledged.

use std::collections::BTreeMap;

use super::*;
use crate::disk::sim::Dice;

#[derive(Clone, Debug)]
enum Logged {
    Entry(Entry),
    State(HardState),
    Snapshot(Snapshot),
}

/// What a list of records means, worked out in the plainest way.
#[derive(Clone, Debug, Default, PartialEq)]
struct Meaning {
    state: HardState,
    base: (u64, u64),
    entries: BTreeMap<u64, Entry>,
    snapshots: Vec<Snapshot>,
    /// A snapshot that no hard state commits yet, and the entries that came after it.
    install: Option<(u64, u64, BTreeMap<u64, Entry>)>,
}

impl Meaning {
    fn of(records: &[Logged]) -> Meaning {
        let mut meaning = Meaning { snapshots: vec![Snapshot::default()], ..Meaning::default() };
        records.iter().for_each(|record| meaning.add(record));
        meaning
    }

    fn add(&mut self, record: &Logged) {
        match record {
            Logged::Entry(entry) => {
                if entry.index <= self.last() + 1 {
                    self.entries.split_off(&entry.index);
                    self.entries.insert(entry.index, entry.clone());
                }
                if let Some((index, _, after)) = &mut self.install
                    && entry.index > *index
                {
                    after.split_off(&entry.index);
                    after.insert(entry.index, entry.clone());
                }
            }
            Logged::State(state) => {
                self.state = *state;
                if let Some((index, term, after)) = self.install.take_if(|install| install.0 <= state.commit)
                    && self.term_at(index) != Some(term)
                {
                    self.base = (index, term);
                    self.entries = after;
                }
            }
            Logged::Snapshot(snapshot) => {
                self.snapshots.push(snapshot.clone());
                if self.term_at(snapshot.index) != Some(snapshot.term) && snapshot.index > self.state.commit {
                    self.install = Some((snapshot.index, snapshot.term, BTreeMap::new()));
                }
            }
        }
    }

    fn last(&self) -> u64 {
        self.entries.keys().next_back().copied().unwrap_or(self.base.0)
    }

    fn term_at(&self, index: u64) -> Option<u64> {
        if index == self.base.0 {
            return Some(self.base.1);
        }
        self.entries.get(&index).map(|entry| entry.term)
    }

    /// Whether the log says this, its oldest segments up to `released` at most gone. Whether the `doubtful` snapshot
    /// records are there does not matter.
    fn agrees(&self, recovered: &Recovered, released: u64, doubtful: &[Snapshot]) -> bool {
        let base = recovered.base.index;
        let counts = |one: &&Snapshot| one.index <= self.state.commit && !doubtful.contains(one);
        let counted: Vec<&Snapshot> = self.snapshots.iter().filter(counts).collect();
        let found: Vec<&Snapshot> = recovered.snapshots.iter().filter(counts).collect();
        recovered.hard_state == self.state
            && base >= self.base.0
            && (base == self.base.0 || base <= released)
            && self.term_at(base) == Some(recovered.base.term)
            && recovered.last_index() == self.last()
            && recovered.entries.iter().eq(self.entries.range(base + 1..).map(|(_, entry)| entry))
            && counted.ends_with(&found)
            && (released > 0 || counted.len() == found.len())
    }
}

/// One member's log, its disk, and what should be in it.
struct Story {
    disk: SimDisk,
    dice: Dice,
    records: Vec<Logged>,
    /// So many records are durable for certain.
    acknowledged: usize,
    released: u64,
    /// Snapshot records whose sync was cut short: not committed, so that nothing shows whether they are there.
    doubtful: Vec<Snapshot>,
    trace: Vec<String>,
}

impl Story {
    fn new(seed: u64) -> Story {
        let dice = Dice::new(seed ^ 0x5eed);
        Story {
            disk: SimDisk::new(seed),
            dice,
            records: Vec::new(),
            acknowledged: 0,
            released: 0,
            doubtful: Vec::new(),
            trace: Vec::new(),
        }
    }

    /// Opens the log, or creates it, as a starting member does; through power cuts if need be.
    fn start(&mut self, crash_at: Option<u64>) -> Wal {
        if let Some(n) = crash_at {
            self.disk.crash_at(n);
        }
        loop {
            let started = self.try_start();
            if self.disk.has_crashed() {
                self.disk = self.disk.restart();
                continue;
            }
            let (wal, recovered) = started.unwrap_or_else(|failure| panic!("{failure}\n{}", self.trace.join("\n")));
            self.compare(&recovered);
            assert_eq!(wal.last_index(), recovered.last_index());
            return wal;
        }
    }

    fn try_start(&self) -> Result<(Wal, Recovered), Failure> {
        if !Wal::exists(&self.disk, dir())? {
            assert_eq!(self.acknowledged, 0, "the log is gone\n{}", self.trace.join("\n"));
            drop(Wal::create(Arc::new(self.disk.clone()), dir(), METADATA, SMALL)?);
        }
        open(&self.disk, SMALL)
    }

    /// Finds the first part of the records that the log agrees with. It is durable from now on.
    fn compare(&mut self, recovered: &Recovered) {
        let kept = (self.acknowledged..=self.records.len())
            .rev()
            .find(|kept| Meaning::of(&self.records[..*kept]).agrees(recovered, self.released, &self.doubtful));
        let Some(kept) = kept else {
            panic!(
                "{} records acknowledged of {}; recovered {:?} base {:?} to {}\n{}",
                self.acknowledged,
                self.records.len(),
                recovered.hard_state,
                recovered.base,
                recovered.last_index(),
                self.trace.join("\n")
            )
        };
        self.trace.push(format!("recovered {kept} records of {}", self.records.len()));
        if let Some(Logged::Snapshot(snapshot)) = self.records[self.acknowledged..kept].last() {
            self.doubtful.push(snapshot.clone());
        }
        self.records.truncate(kept);
        self.acknowledged = kept;
    }

    fn save(&mut self, wal: &mut Wal, state: HardState, entries: &[Entry], must_sync: bool) -> bool {
        self.trace.push(format!("save {state:?} {:?}", entries.iter().map(|entry| entry.index).collect::<Vec<_>>()));
        let before = Meaning::of(&self.records).state;
        if state.term > before.term && !entries.is_empty() {
            self.records.push(Logged::State(HardState { commit: before.commit, ..state }));
        }
        self.records.extend(entries.iter().cloned().map(Logged::Entry));
        self.records.push(Logged::State(state));
        let result = wal.save(Some(&state), entries, must_sync);
        self.judge(wal, result, must_sync || !entries.is_empty())
    }

    fn save_snapshot(&mut self, wal: &mut Wal, snapshot: &Snapshot, now: &Meaning) -> bool {
        self.trace.push(format!("snapshot {} {}", snapshot.index, snapshot.term));
        if now.term_at(snapshot.index) == Some(snapshot.term) && snapshot.index > now.state.commit {
            self.records.push(Logged::State(HardState { commit: snapshot.index, ..now.state }));
        }
        self.records.push(Logged::Snapshot(snapshot.clone()));
        let result = wal.save_snapshot(snapshot);
        self.judge(wal, result, true)
    }

    fn judge(&mut self, wal: &mut Wal, result: Result<(), Failure>, synced: bool) -> bool {
        match result {
            Ok(()) if synced => self.acknowledged = self.records.len(),
            Ok(()) => {}
            Err(_) => {
                assert!(self.disk.has_crashed());
                wal.save(None, &[], true).unwrap_err();
                return false;
            }
        }
        true
    }

    /// One random thing that raft does. False if the disk failed.
    fn step(&mut self, wal: &mut Wal) -> bool {
        let now = Meaning::of(&self.records);
        let (last, commit, term) = (now.last(), now.state.commit, now.state.term);
        if now.install.is_some() {
            return self.install(wal, &now);
        }
        match self.dice.below(12) {
            0..=4 => {
                let commit = commit + self.dice.below(last - commit + 1);
                let entries = self.entries(last + 1, term.max(1));
                self.save(wal, HardState { term: term.max(1), vote: 1, commit }, &entries, true)
            }
            5 | 6 => {
                let commit = commit + self.dice.below(last - commit + 1);
                self.save(wal, HardState { commit, ..now.state }, &[], false)
            }
            7 => {
                let vote = self.dice.below(4);
                self.save(wal, HardState { term: term + 1, vote, commit }, &[], true)
            }
            8 => {
                let first = commit + 1 + self.dice.below(last - commit + 1);
                let entries = self.entries(first, term + 1);
                self.save(wal, HardState { term: term + 1, vote: 2, commit }, &entries, true)
            }
            9 => {
                // What was applied; the hard state may not have been told that it is committed.
                let index = last - self.dice.below(last - commit.max(now.base.0) + 1);
                let term = now.term_at(index).unwrap();
                self.save_snapshot(wal, &snapshot(index, term), &now)
            }
            10 if self.dice.chance(30) => self.install(wal, &now),
            _ => {
                let index = now.snapshots.iter().map(|one| one.index).filter(|index| *index <= commit).max().unwrap();
                self.released = self.released.max(index);
                self.trace.push(format!("release {index}"));
                let result = wal.release_to(index);
                self.judge(wal, result, false)
            }
        }
    }

    /// A follower is sent a whole state: beyond its log, or in place of entries of another history.
    fn install(&mut self, wal: &mut Wal, now: &Meaning) -> bool {
        let term = now.state.term + 1;
        let lowest = now.install.as_ref().map_or(now.state.commit + 1, |install| install.0.max(now.last()) + 1);
        let index = lowest + self.dice.below(20);
        if !self.save_snapshot(wal, &snapshot(index, term), now) {
            return false;
        }
        let entries = if self.dice.chance(30) { self.entries(index + 1, term) } else { Vec::new() };
        self.save(wal, HardState { term, vote: 0, commit: index }, &entries, true)
    }

    fn entries(&mut self, first: u64, term: u64) -> Vec<Entry> {
        let count = 1 + self.dice.below(4);
        let sizes = [0, 8, 60, 300, 700, 1600];
        let mut made = Vec::new();
        for index in first..first + count {
            let size = self.dice.pick(&sizes);
            let mut entry = entry(index, term, usize::try_from(size).unwrap());
            if self.dice.chance(10) {
                // Zeros look like what was never written.
                entry.data = Bytes::from(vec![0; usize::try_from(size).unwrap()]);
            }
            made.push(entry);
        }
        made
    }

    /// Lives until the power fails, or is killed without that, several times over.
    fn live(&mut self, lives: usize) {
        for _ in 0..lives {
            let during_start = self.dice.chance(30).then(|| 1 + self.dice.below(8));
            let mut wal = self.start(during_start);
            let crash_at = 1 + self.dice.below(60);
            self.disk.crash_at(crash_at);
            let killed_after = if self.dice.chance(20) { self.dice.below(12) } else { u64::MAX };
            let mut steps = 0;
            while steps < killed_after && self.step(&mut wal) {
                steps += 1;
            }
            drop(wal);
            if self.disk.has_crashed() {
                self.trace.push("power cut".into());
                self.disk = self.disk.restart();
            } else {
                self.trace.push("killed".into());
                self.disk.crash_at(u64::MAX / 2);
            }
        }
        self.start(None);
    }
}

/// B14, etcd 6378, 6379 and 5230: after a power cut unsynced appends were there in another order or in pieces, and the
/// member did not start, or started with what nobody had written.
#[test]
fn b14_nothing_acknowledged_is_lost_and_nothing_else_appears() {
    for seed in 0..2000 {
        Story::new(seed).live(4);
    }
}

/// B9, etcd 10219 and 11888, in the log: the power goes between snapshot record, hard state, cut and release. What is
/// left must never say that an entry is committed which is in neither log nor snapshot.
#[test]
fn b09_every_operation_of_one_life_may_be_the_last() {
    let mut n = 1;
    loop {
        let mut crashed = false;
        for seed in 0..12 {
            let mut story = Story::new(seed);
            story.disk.crash_at(n);
            crashed = whole_life(&mut story);
            if crashed {
                story.disk = story.disk.restart();
            }
            story.start(None);
        }
        if !crashed {
            break;
        }
        n += 1;
    }
    assert!(n > 40, "{n}");
}

/// True if the power failed on the way.
fn whole_life(story: &mut Story) -> bool {
    let created = Wal::create(Arc::new(story.disk.clone()), dir(), METADATA, SMALL);
    let Ok(mut wal) = created else { return true };
    let save = |story: &mut Story, wal: &mut Wal, term, commit, entries: &[Entry]| {
        story.save(wal, state(term, commit), entries, !entries.is_empty())
    };
    let big = |range: std::ops::RangeInclusive<u64>, term| -> Vec<Entry> {
        range.map(|index| entry(index, term, 900)).collect()
    };
    let lived = save(story, &mut wal, 1, 0, &entries(1..=6, 1))
        && save(story, &mut wal, 1, 4, &[])
        && save(story, &mut wal, 1, 6, &big(7..=8, 1))
        && save(story, &mut wal, 2, 6, &big(7..=9, 2))
        && {
            let now = Meaning::of(&story.records);
            story.save_snapshot(&mut wal, &snapshot(6, 1), &now)
        }
        && {
            story.released = 6;
            let result = wal.release_to(6);
            story.judge(&mut wal, result, false)
        }
        && {
            let now = Meaning::of(&story.records);
            story.save_snapshot(&mut wal, &snapshot(40, 3), &now)
        }
        && save(story, &mut wal, 3, 40, &big(41..=42, 3))
        && save(story, &mut wal, 3, 42, &[])
        && {
            let now = Meaning::of(&story.records);
            story.save_snapshot(&mut wal, &snapshot(42, 3), &now)
        }
        && {
            story.released = 42;
            let result = wal.release_to(42);
            story.judge(&mut wal, result, false)
        }
        && save(story, &mut wal, 3, 42, &big(43..=46, 3));
    !lived
}

/// B13, etcd 6368: the first entries of a new file were synced, the directory that names the file was not, and the file
/// went with the power. In a new data directory, and in every segment behind it.
#[test]
fn b13_the_first_entry_of_a_new_file_outlives_the_power() {
    let mut segments = 0;
    for seed in 0..40 {
        for count in 1..=12 {
            let disk = SimDisk::new(seed);
            let mut wal = create(&disk, SMALL);
            for index in 1..=count {
                wal.save(Some(&state(1, index)), &[entry(index, 1, 900)], true).unwrap();
            }
            segments = wal.segment_count();
            let disk = disk.restart();
            let (_, recovered) = open(&disk, SMALL).unwrap_or_else(|failure| panic!("seed {seed}, {count}: {failure}"));
            assert_eq!(recovered.last_index(), count, "seed {seed}: {segments} segments");
        }
    }
    assert!(segments > 3, "{segments}");
}

/// A founder's log without its entries would be taken for that of a member that joins, and never have a leader.
#[test]
fn a_founders_log_is_there_with_its_entries_or_not_at_all() {
    let mut found = [0, 0];
    let mut n = 1;
    loop {
        let mut crashed = false;
        for seed in 0..12 {
            let disk = SimDisk::new(seed);
            disk.crash_at(n);
            let (state, entries) = (state(1, 3), entries(1..=3, 1));
            let created = Wal::found(Arc::new(disk.clone()), dir(), METADATA, LARGE, &state, &entries).is_ok();
            crashed = disk.has_crashed();
            let disk = disk.restart();
            let exists = Wal::exists(&disk, dir()).unwrap();
            found[usize::from(exists)] += 1;
            assert!(exists || !created, "seed {seed}, operation {n}");
            if exists {
                let (_, recovered) = open(&disk, LARGE).unwrap();
                assert_eq!((recovered.hard_state, recovered.entries), (state, entries), "seed {seed}, operation {n}");
            }
        }
        if !crashed {
            break;
        }
        n += 1;
    }
    assert!(found[0] > 10 && found[1] > 10, "{found:?}");
}

#[test]
fn what_a_killed_process_left_in_the_cache_is_durable_once_it_was_read() {
    for seed in 0..200 {
        let disk = SimDisk::new(seed);
        let mut wal = create(&disk, LARGE);
        wal.save(Some(&state(1, 0)), &entries(1..=3, 1), true).unwrap();
        wal.save(Some(&state(1, 3)), &[], false).unwrap();
        drop(wal);
        let (_, before) = open(&disk, LARGE).unwrap();
        assert_eq!(before.hard_state, state(1, 3));
        let (_, after) = open(&disk.restart(), LARGE).unwrap();
        assert_eq!(after, before, "seed {seed}");
    }
}

#[test]
fn equal_seeds_write_equal_bytes() {
    let bytes = |seed| {
        let mut story = Story::new(seed);
        story.live(3);
        let paths = segment_paths(&story.disk);
        paths.iter().map(|path| story.disk.content(path).unwrap()).collect::<Vec<_>>()
    };
    for seed in 0..20 {
        assert_eq!(bytes(seed), bytes(seed));
    }
}

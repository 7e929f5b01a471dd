//! The revision-ordered checker: is this history one of a linearizable store that lost nothing? (reliability.md 5.4)
//!
//! Every reply names a revision and the log names the order, so the order is given, not searched for. The log is
//! replayed against a small model of the store, then:
//!
//! 1. every acknowledged write is one entry of the log, no entry is two of them, and their order agrees with real time;
//! 2. every reply is the model's, to the last field (values, versions, prev_kv, branch, counts), and so is every error;
//! 3. a linearizable read is not older than what was acknowledged before it began, no read is newer than what was sent
//!    before it ended, and all content is the state at the reply's revision;
//! 4. a write of unknown outcome is in the log once or never, never before it was sent; a refused one never;
//! 5. the revision that one connection sees never goes back;
//! 6. the members' HashKV are equal at the end, at the revision where the log ends;
//! 7. a watch is told every change from where it starts, once, in order, a revision in one piece, before any notice that
//!    says so (`watching`);
//! 8. no lease ends by itself before the time that its clients were promised (`leasing`);
//! 9. no lock has two holders at any revision, and no election two leaders (`locking`).
//!
//! Times are any numbers that order starts and ends; a start and an end that are equal count as concurrent.

pub mod leasing;
pub mod locking;
pub mod model;
#[cfg(test)]
mod tests;
pub mod unlogged;
pub mod watching;

use std::collections::BTreeMap;
use std::collections::HashMap;

use crate::common::answer::Answer;
use crate::proto::etcdserverpb::RangeRequest;
use crate::proto::etcdserverpb::RangeResponse;
use crate::torture::checker::leasing::Renewal;
use crate::torture::checker::locking::LockCall;
use crate::torture::checker::model::Model;
use crate::torture::checker::model::Request;
use crate::torture::checker::model::Response;
use crate::torture::checker::watching::Watch;

/// Violations that are told; after so many the rest says nothing new.
const VIOLATIONS_MAX: usize = 20;

/// What became of an operation, as its client knows it.
#[derive(Clone, Debug, PartialEq)]
pub enum Outcome {
    Replied(Response),
    /// The store's own answer: it was decided in its place in the order.
    Failed(Answer),
    /// The server said that it was not done and will not be.
    Refused,
    /// A timeout, a broken connection, a dead member.
    Unknown,
}

/// One call of one client.
#[derive(Clone, Debug)]
pub struct Operation {
    /// Calls of one connection follow each other.
    pub connection: u64,
    pub start: u64,
    /// Without meaning while the outcome is unknown.
    pub end: u64,
    pub request: Request,
    pub outcome: Outcome,
}

impl Operation {
    /// The revision that it was told, if it was answered.
    fn revision(&self) -> Option<i64> {
        match &self.outcome {
            Outcome::Replied(response) => Some(response.revision()),
            Outcome::Failed(_) | Outcome::Refused | Outcome::Unknown => None,
        }
    }
}

/// What a member holds at the end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fingerprint {
    pub member: u64,
    pub revision: i64,
    pub compact_revision: i64,
    pub hash: u32,
}

/// Everything that was seen of a run.
#[derive(Clone, Debug, Default)]
pub struct History {
    pub operations: Vec<Operation>,
    /// Every request of the committed log, in its order.
    pub log: Vec<Request>,
    pub fingerprints: Vec<Fingerprint>,
    /// More may have been committed than `log` says: what is behind its end is neither lost nor invented.
    pub tail_unknown: bool,
    pub watches: Vec<Watch>,
    pub renewals: Vec<Renewal>,
    pub locks: Vec<LockCall>,
    /// Members revoke leases whose time is over: such entries are nobody's.
    pub leases_expire: bool,
}

/// A broken promise. Numbers are positions in `History::operations` and `History::log`.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum Violation {
    #[error("acknowledged write lost: operation {operation} is not in the log")]
    Lost { operation: usize },
    #[error("operation {operation} was answered differently from log entry {entry}, which is its request: {detail}")]
    WrongReply { operation: usize, entry: usize, detail: String },
    #[error("log entry {entry} is nobody's: it was never sent, or sent once and logged twice")]
    Phantom { entry: usize },
    #[error("operation {operation} was refused, and is log entry {entry}")]
    RefusedButDone { operation: usize, entry: usize },
    #[error("log entry {entry} (operation {operation}) was sent after a later one had been answered")]
    RealTime { operation: usize, entry: usize },
    #[error("stale read: operation {operation} at revision {revision}, after revision {acknowledged} was acknowledged")]
    Stale { operation: usize, revision: i64, acknowledged: i64 },
    #[error("operation {operation} saw revision {revision} before it was sent")]
    FromTheFuture { operation: usize, revision: i64 },
    #[error("operation {operation} read what was not the state at its revision: {detail}")]
    WrongContent { operation: usize, detail: String },
    #[error("operation {operation} saw revision {revision} on a connection that had seen {before}")]
    WentBack { operation: usize, revision: i64, before: i64 },
    #[error("members differ at the end: {0:?} and {1:?}")]
    Diverged(Fingerprint, Fingerprint),
    #[error("watch {watch}: {detail}")]
    Watch { watch: usize, detail: String },
    #[error("lease {lease:x}: {detail}")]
    Lease { lease: i64, detail: String },
    #[error("lock call {lock}: {detail}")]
    Lock { lock: usize, detail: String },
    #[error("log entry {entry}: {detail}")]
    Guard { entry: usize, detail: String },
    #[error("the lock's key {key}: {detail}")]
    Place { key: String, detail: String },
    #[error("the log ends at revision {revision}, and a member has at the end: {member:?}")]
    Adrift { revision: i64, member: Fingerprint },
}

impl Violation {
    /// The operation it speaks of.
    pub fn operation(&self) -> Option<usize> {
        match self {
            Violation::Lost { operation }
            | Violation::WrongReply { operation, .. }
            | Violation::RefusedButDone { operation, .. }
            | Violation::RealTime { operation, .. }
            | Violation::Stale { operation, .. }
            | Violation::FromTheFuture { operation, .. }
            | Violation::WrongContent { operation, .. }
            | Violation::WentBack { operation, .. } => Some(*operation),
            Violation::Phantom { .. }
            | Violation::Diverged(..)
            | Violation::Adrift { .. }
            | Violation::Watch { .. }
            | Violation::Lease { .. }
            | Violation::Lock { .. }
            | Violation::Guard { .. }
            | Violation::Place { .. } => None,
        }
    }
}

/// Every broken promise of a history, the first `VIOLATIONS_MAX` of each kind of look.
pub fn check(history: &History) -> Vec<Violation> {
    let replayed = Replayed::of(&history.log);
    let owners = Owners::find(history, &replayed);
    let mut found = owners.violations.clone();
    found.extend(real_time(history, &replayed, &owners));
    let first_seen = first_seen(history, &replayed, &owners);
    let (compaction_sent, compacted) = compactions(history, &replayed, &owners);
    found.extend(watching::check(history, &replayed.model, &first_seen, &compaction_sent));
    found.extend(leasing::check(history, &replayed));
    let acknowledged = acknowledged(&history.operations);
    found.extend(locking::check(history, &replayed, &first_seen, &acknowledged));
    found.extend(reads(history, &replayed, acknowledged, first_seen, compaction_sent, compacted));
    found.extend(connections(&history.operations));
    found.extend(fingerprints(history, &replayed));
    found
}

/// The model after the whole log, and what it said to each entry.
struct Replayed {
    model: Model,
    answers: Vec<Result<Response, Answer>>,
    /// The store's revision after each entry.
    revisions: Vec<i64>,
    /// Compactions that were carried out: entry and revision.
    compactions: Vec<(usize, i64)>,
}

impl Replayed {
    fn of(log: &[Request]) -> Replayed {
        let mut model = Model::default();
        let mut answers = Vec::with_capacity(log.len());
        let mut revisions = Vec::with_capacity(log.len());
        let mut compactions = Vec::new();
        for (entry, request) in log.iter().enumerate() {
            let answer = model.apply(request);
            if let (Request::Compact(compaction), Ok(_)) = (request, &answer) {
                compactions.push((entry, compaction.revision));
            }
            answers.push(answer);
            revisions.push(model.revision());
        }
        Replayed { model, answers, revisions, compactions }
    }

    /// Whether the entry made a revision.
    fn has_effect(&self, entry: usize) -> bool {
        let before = entry.checked_sub(1).map_or(1, |before| self.revisions[before]);
        self.revisions[entry] > before
    }
}

/// Which operation each log entry is.
struct Owners {
    of_entry: Vec<Option<usize>>,
    violations: Vec<Violation>,
}

impl Owners {
    /// Answered operations first: an answer fits one entry, or several without effect that are as good as each other.
    /// Then those of unknown outcome, the earliest sent to the earliest entry, which is right if anything is.
    fn find(history: &History, replayed: &Replayed) -> Owners {
        let mut owners = Owners { of_entry: vec![None; history.log.len()], violations: Vec::new() };
        let mut entries: HashMap<Vec<u8>, Candidates> = HashMap::new();
        for (entry, request) in history.log.iter().enumerate() {
            entries.entry(request.to_bytes()).or_default().add(entry, replayed);
        }
        let mut by_start: Vec<usize> = (0..history.operations.len()).collect();
        by_start.sort_by_key(|operation| history.operations[*operation].start);
        let writes =
            by_start.iter().copied().filter(|at| !matches!(history.operations[*at].request, Request::Range(_)));
        let (answered, others): (Vec<_>, Vec<_>) =
            writes.partition(|at| matches!(history.operations[*at].outcome, Outcome::Replied(_) | Outcome::Failed(_)));
        for operation in answered {
            let call = &history.operations[operation];
            let candidates = entries.get_mut(&call.request.to_bytes());
            // What is behind the known end of the log may be there or not.
            let known = !history.tail_unknown || call.revision().is_none_or(|said| said <= replayed.model.revision());
            if known || candidates.is_some() {
                owners.own_answered(operation, call, candidates, replayed);
            }
        }
        let (unknown, refused): (Vec<_>, Vec<_>) =
            others.into_iter().partition(|at| history.operations[*at].outcome == Outcome::Unknown);
        for operation in unknown.iter().chain(&refused) {
            let candidates = entries.get_mut(&history.operations[*operation].request.to_bytes());
            if let Some(entry) = candidates.and_then(|all| all.first_free(&owners.of_entry)) {
                owners.of_entry[entry] = Some(*operation);
                if history.operations[*operation].outcome == Outcome::Refused {
                    owners.blame(Violation::RefusedButDone { operation: *operation, entry });
                }
            }
        }
        let expiry = |entry: usize| history.leases_expire && matches!(history.log[entry], Request::LeaseRevoke(_));
        // Whose these are is told by `locking`.
        let nobodys = (0..history.log.len()).filter(|entry| {
            owners.of_entry[*entry].is_none() && !expiry(*entry) && !locking::is_of_locks(&history.log[*entry])
        });
        let nobodys: Vec<_> = nobodys.collect();
        nobodys.into_iter().for_each(|entry| owners.blame(Violation::Phantom { entry }));
        owners
    }

    fn own_answered(
        &mut self,
        operation: usize,
        call: &Operation,
        candidates: Option<&mut Candidates>,
        replayed: &Replayed,
    ) {
        let said = match &call.outcome {
            Outcome::Replied(response) => Ok(response.plain()),
            Outcome::Failed(answer) => Err(answer.clone()),
            Outcome::Refused | Outcome::Unknown => return,
        };
        let free = |entry: &&usize| self.of_entry[**entry].is_none();
        let fits = |entry: &&usize| free(entry) && agrees(&said, &replayed.answers[**entry]);
        let like = candidates.as_ref().and_then(|all| all.by_revision.get(&placed(&said)));
        let fitting = like.and_then(|like| like.iter().find(fits)).copied();
        let any = match fitting {
            Some(entry) => Some(entry),
            None => candidates.and_then(|all| all.first_free(&self.of_entry)),
        };
        let Some(entry) = any else { return self.blame(Violation::Lost { operation }) };
        self.of_entry[entry] = Some(operation);
        if fitting.is_none() {
            let detail = format!("{said:?} instead of {:?}", replayed.answers[entry]);
            self.blame(Violation::WrongReply { operation, entry, detail });
        }
    }

    fn blame(&mut self, violation: Violation) {
        if self.violations.len() < VIOLATIONS_MAX {
            self.violations.push(violation);
        }
    }
}

/// The revision that tells where an answer belongs.
fn placed(answer: &Result<Response, Answer>) -> Option<i64> {
    match answer {
        // etcd reads it when it answers, and others may have written since.
        Ok(Response::Compact(_)) | Err(_) => None,
        Ok(response) => Some(response.revision()),
    }
}

/// Whether an answer is the model's.
fn agrees(said: &Result<Response, Answer>, model: &Result<Response, Answer>) -> bool {
    match (said, model) {
        (Ok(said @ Response::Compact(_)), Ok(model @ Response::Compact(_))) => said.revision() >= model.revision(),
        _ => said == model,
    }
}

/// The log entries that are one request.
#[derive(Default)]
struct Candidates {
    all: Vec<usize>,
    /// By `placed`: an answer need not be held against all of them.
    by_revision: HashMap<Option<i64>, Vec<usize>>,
    /// Those before it in `all` are taken.
    taken: usize,
}

impl Candidates {
    fn add(&mut self, entry: usize, replayed: &Replayed) {
        self.all.push(entry);
        self.by_revision.entry(placed(&replayed.answers[entry])).or_default().push(entry);
    }

    fn first_free(&mut self, owners: &[Option<usize>]) -> Option<usize> {
        while self.all.get(self.taken).is_some_and(|entry| owners[*entry].is_some()) {
            self.taken += 1;
        }
        self.all.get(self.taken).copied()
    }
}

/// No entry stands before one that had been answered when it was sent. Entries without effect are left to `reads`: which
/// of several equal requests each of them is, nobody can tell.
fn real_time(history: &History, replayed: &Replayed, owners: &Owners) -> Vec<Violation> {
    let mut found = Vec::new();
    let mut earliest_end = u64::MAX;
    for (entry, operation) in owners.of_entry.iter().enumerate().rev() {
        let Some(operation) = operation.filter(|_| replayed.has_effect(entry)) else { continue };
        let call = &history.operations[operation];
        if call.start > earliest_end && found.len() < VIOLATIONS_MAX {
            found.push(Violation::RealTime { operation, entry });
        }
        if matches!(call.outcome, Outcome::Replied(_) | Outcome::Failed(_)) {
            earliest_end = earliest_end.min(call.end);
        }
    }
    found
}

/// Revisions that something had reached by a time.
struct Marks {
    /// (time, highest revision up to there), ascending.
    marks: Vec<(u64, i64)>,
}

impl Marks {
    fn new(mut marks: Vec<(u64, i64)>) -> Marks {
        marks.sort_unstable();
        let mut highest = i64::MIN;
        for (_, revision) in &mut marks {
            highest = highest.max(*revision);
            *revision = highest;
        }
        Marks { marks }
    }

    /// The highest before `time`.
    fn before(&self, time: u64) -> Option<i64> {
        let count = self.marks.partition_point(|(at, _)| *at < time);
        count.checked_sub(1).map(|last| self.marks[last].1)
    }
}

/// What linearizable replies had shown by a time: the highest revision of all that ended before it.
fn acknowledged(operations: &[Operation]) -> Marks {
    let seen = operations.iter().filter_map(|call| match (&call.request, &call.outcome) {
        (Request::Range(range), _) if range.serializable => None,
        (_, Outcome::Replied(response)) => Some((call.end, response.revision())),
        _ => None,
    });
    Marks::new(seen.collect())
}

/// From when on a revision can have been seen: every entry up to it had been sent.
fn first_seen(history: &History, replayed: &Replayed, owners: &Owners) -> BTreeMap<i64, u64> {
    let mut latest = 0;
    let mut seen = BTreeMap::new();
    for (entry, revision) in replayed.revisions.iter().enumerate() {
        if let Some(operation) = owners.of_entry[entry].filter(|_| replayed.has_effect(entry)) {
            latest = latest.max(history.operations[operation].start);
        }
        seen.entry(*revision).or_insert(latest);
    }
    seen
}

fn reads(
    history: &History,
    replayed: &Replayed,
    acknowledged: Marks,
    first_seen: BTreeMap<i64, u64>,
    compaction_sent: Marks,
    compacted: Marks,
) -> Vec<Violation> {
    let judge = Reads { history, replayed, acknowledged, compaction_sent, compacted, first_seen };
    let calls = history.operations.iter().enumerate();
    calls.filter_map(|(operation, call)| judge.one(operation, call)).take(VIOLATIONS_MAX).collect()
}

struct Reads<'a> {
    history: &'a History,
    replayed: &'a Replayed,
    acknowledged: Marks,
    compaction_sent: Marks,
    compacted: Marks,
    first_seen: BTreeMap<i64, u64>,
}

impl Reads<'_> {
    fn one(&self, operation: usize, call: &Operation) -> Option<Violation> {
        let Request::Range(range) = &call.request else {
            return match &call.outcome {
                Outcome::Replied(response) => self.time(operation, call, false, response.revision()),
                _ => None,
            };
        };
        match &call.outcome {
            Outcome::Replied(Response::Range(response)) => self.content(operation, call, range, response),
            Outcome::Failed(answer) => self.error(operation, call, range, answer),
            Outcome::Refused | Outcome::Unknown => None,
            Outcome::Replied(other) => Some(Violation::WrongContent { operation, detail: format!("{other:?}") }),
        }
    }

    /// Neither older than what was known when the call began, nor newer than what was sent when it ended.
    fn time(&self, operation: usize, call: &Operation, may_be_old: bool, revision: i64) -> Option<Violation> {
        let acknowledged = self.acknowledged.before(call.start).unwrap_or(0);
        if !may_be_old && revision < acknowledged {
            return Some(Violation::Stale { operation, revision, acknowledged });
        }
        let unsent = self.first_seen.get(&revision).is_some_and(|seen| *seen > call.end);
        let unknown = revision > self.replayed.model.revision() && !self.history.tail_unknown;
        (unsent || unknown).then_some(Violation::FromTheFuture { operation, revision })
    }

    fn content(
        &self,
        operation: usize,
        call: &Operation,
        range: &RangeRequest,
        response: &RangeResponse,
    ) -> Option<Violation> {
        let said = Response::Range(response.clone()).plain();
        let revision = said.revision();
        let untimely = self.time(operation, call, range.serializable, revision);
        if untimely.is_some() {
            return untimely;
        }
        let compacted = self.compacted_before(call.start);
        if !range.serializable && range.revision > 0 && range.revision < compacted {
            let detail = format!("revision {} is readable after a compaction to {compacted}", range.revision);
            return Some(Violation::WrongContent { operation, detail });
        }
        if revision.max(range.revision) > self.replayed.model.revision() {
            // Behind the known end of the log.
            return None;
        }
        let state = self.replayed.model.read(range, revision);
        (state != said).then(|| Violation::WrongContent { operation, detail: format!("{said:?} instead of {state:?}") })
    }

    /// Only the two errors about revisions are answers to a read.
    fn error(&self, operation: usize, call: &Operation, range: &RangeRequest, answer: &Answer) -> Option<Violation> {
        let fits = match answer {
            Answer::Compacted => range.revision > 0 && range.revision < self.compaction_sent_before(call.end),
            Answer::FutureRevision => {
                range.serializable || range.revision > self.acknowledged.before(call.start).unwrap_or(0)
            }
            _ => false,
        };
        (!fits).then(|| Violation::WrongContent { operation, detail: format!("{answer:?} to {range:?}") })
    }

    /// The highest compaction that was acknowledged before `time`.
    fn compacted_before(&self, time: u64) -> i64 {
        self.compacted.before(time).unwrap_or(-1)
    }

    fn compaction_sent_before(&self, time: u64) -> i64 {
        self.compaction_sent.before(time).unwrap_or(-1)
    }
}

/// When each compaction of the log was sent, and when it was acknowledged.
fn compactions(history: &History, replayed: &Replayed, owners: &Owners) -> (Marks, Marks) {
    let owned = replayed.compactions.iter().filter_map(|(entry, revision)| {
        let call = &history.operations[owners.of_entry[*entry]?];
        Some((call, *revision))
    });
    let owned: Vec<_> = owned.collect();
    let sent = owned.iter().map(|(call, revision)| (call.start, *revision)).collect();
    let answered = owned.iter().filter(|(call, _)| matches!(call.outcome, Outcome::Replied(_)));
    let answered = answered.map(|(call, revision)| (call.end, *revision)).collect();
    (Marks::new(sent), Marks::new(answered))
}

fn connections(operations: &[Operation]) -> Vec<Violation> {
    let mut replied: Vec<(u64, usize, i64)> = Vec::new();
    for (operation, call) in operations.iter().enumerate() {
        if let Outcome::Replied(response) = &call.outcome {
            replied.push((call.end, operation, response.revision()));
        }
    }
    replied.sort_unstable();
    let mut highest: BTreeMap<u64, i64> = BTreeMap::new();
    let mut found = Vec::new();
    for (_, operation, revision) in replied {
        let before = highest.entry(operations[operation].connection).or_insert(revision);
        if revision < *before && found.len() < VIOLATIONS_MAX {
            found.push(Violation::WentBack { operation, revision, before: *before });
        }
        *before = revision.max(*before);
    }
    found
}

fn fingerprints(history: &History, replayed: &Replayed) -> Vec<Violation> {
    let mut found = differences(&history.fingerprints);
    let revision = replayed.model.revision();
    // Members that differ are told of already.
    if let Some(first) = history.fingerprints.first().filter(|first| found.is_empty() && first.revision != revision)
        && !history.tail_unknown
    {
        found.push(Violation::Adrift { revision, member: *first });
    }
    found
}

/// Members that are not as the first one is.
fn differences(all: &[Fingerprint]) -> Vec<Violation> {
    let Some(first) = all.first() else { return Vec::new() };
    let differs = |other: &&Fingerprint| Fingerprint { member: first.member, ..**other } != *first;
    all.iter().filter(differs).map(|other| Violation::Diverged(*first, *other)).collect()
}

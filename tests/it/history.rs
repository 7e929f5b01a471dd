//! What clients asked and were told, and the judge over it (reliability.md 5.4).
//!
//! The order of writes is not searched for: every acknowledged write names its revision, and the members' logs say what
//! stands at each one, also for writes whose outcome no client learned. So the log is replayed through a naive model, and
//! every reply is held against the model at the revision that it names; real time then bounds that revision from below.

use std::collections::BTreeMap;
use std::collections::HashMap;
use std::fmt;

use prost::Message;
use quorate::proto::etcdserverpb::DeleteRangeRequest;
use quorate::proto::etcdserverpb::PutRequest;
use quorate::proto::etcdserverpb::TxnRequest;
use quorate::proto::etcdserverpb::compare::TargetUnion;
use quorate::proto::etcdserverpb::request_op::Request;
use quorate::proto::raftinternalpb::InternalRaftRequest;
use quorate::proto::raftpb::Entry;

/// A key's value as far as the judge cares: `value` is the short form of what was written (see `torture`).
#[derive(Clone, PartialEq, Eq)]
pub struct Kv {
    pub value: String,
    pub created: i64,
    pub modified: i64,
    pub version: i64,
}

impl fmt::Debug for Kv {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} @{}..{} v{}", self.value, self.created, self.modified, self.version)
    }
}

/// What a client asked. Values are unique in a run.
#[derive(Clone, Debug)]
pub enum Action {
    Put {
        key: String,
        value: String,
    },
    Delete {
        key: String,
    },
    /// Puts if the key was last modified at `modified` (0: there is none), else reads the key.
    PutIf {
        key: String,
        value: String,
        modified: i64,
    },
    /// One key, or all of them; at the newest revision (0) or an older one.
    Read {
        key: Option<String>,
        revision: i64,
        serializable: bool,
    },
    Compact {
        revision: i64,
    },
}

/// What it was told.
#[derive(Clone, Debug)]
pub enum Reply {
    /// It was carried out at `revision`, over `previous`.
    Written { revision: i64, previous: Option<Kv> },
    /// What a read found; also of a delete that found nothing and of a condition that did not hold.
    Seen { revision: i64, kvs: Vec<(String, Kv)> },
    /// A compaction was done.
    Done { revision: i64 },
    /// The revision asked for is compacted.
    Compacted,
    /// The revision asked for is a future one: never true, because clients ask only for what somebody was told.
    Future,
    /// An error: it may have happened or not, or may happen yet.
    Unknown,
}

/// One request of one client. Times are nanoseconds of one clock.
#[derive(Clone, Debug)]
pub struct Operation {
    /// Unique for each connection ever made.
    pub connection: u64,
    pub action: Action,
    pub sent: u64,
    pub done: u64,
    pub reply: Reply,
}

/// What stands at one revision.
#[derive(Clone, Debug)]
struct Write {
    key: String,
    /// `None`: deleted.
    value: Option<String>,
    previous: Option<Kv>,
}

/// Every state the cluster ever had, from the log.
#[derive(Debug)]
pub struct Model {
    revision: i64,
    keys: BTreeMap<String, Vec<(i64, Option<Kv>)>>,
    writes: BTreeMap<i64, Write>,
}

impl Model {
    /// Replays committed entries, which must reach from the first one to the last without a gap.
    pub fn replay(entries: &BTreeMap<u64, Entry>) -> Result<Model, String> {
        let mut model = Model { revision: 1, keys: BTreeMap::new(), writes: BTreeMap::new() };
        for (at, (index, entry)) in entries.iter().enumerate() {
            if *index != at as u64 + 1 {
                return Err(format!("no log has entry {}", at + 1));
            }
            // Configuration changes, and the empty entry of a new leader, change no key.
            if entry.r#type != 0 || entry.data.is_empty() {
                continue;
            }
            let request = InternalRaftRequest::decode(entry.data.clone())
                .map_err(|error| format!("entry {index} does not decode: {error}"))?;
            model.apply(&request);
        }
        Ok(model)
    }

    pub fn revision(&self) -> i64 {
        self.revision
    }

    fn apply(&mut self, request: &InternalRaftRequest) {
        if let Some(put) = &request.put {
            self.put(put);
        } else if let Some(delete) = &request.delete_range {
            self.delete(delete);
        } else if let Some(txn) = &request.txn {
            self.put_if(txn);
        }
    }

    fn put(&mut self, put: &PutRequest) {
        let key = text(&put.key);
        let value = short(&put.value);
        self.write(key, Some(value));
    }

    fn delete(&mut self, delete: &DeleteRangeRequest) {
        let key = text(&delete.key);
        if self.newest(&key).is_some() {
            self.write(key, None);
        }
    }

    /// The one form of transaction that clients of a run send.
    fn put_if(&mut self, txn: &TxnRequest) {
        let [compare] = &txn.compare[..] else { panic!("a transaction that nobody sent: {txn:?}") };
        let Some(TargetUnion::ModRevision(expected)) = &compare.target_union else {
            panic!("a comparison that nobody sent: {txn:?}")
        };
        let modified = self.newest(&text(&compare.key)).map_or(0, |kv| kv.modified);
        if modified != *expected {
            return;
        }
        let Some(Request::RequestPut(put)) = &txn.success[0].request else {
            panic!("an operation that nobody sent: {txn:?}")
        };
        self.put(put);
    }

    fn write(&mut self, key: String, value: Option<String>) {
        self.revision += 1;
        let previous = self.newest(&key);
        let kv = value.clone().map(|value| Kv {
            value,
            created: previous.as_ref().map_or(self.revision, |kv| kv.created),
            modified: self.revision,
            version: previous.as_ref().map_or(1, |kv| kv.version + 1),
        });
        self.keys.entry(key.clone()).or_default().push((self.revision, kv));
        self.writes.insert(self.revision, Write { key, value, previous });
    }

    fn newest(&self, key: &str) -> Option<Kv> {
        self.at(key, self.revision)
    }

    fn at(&self, key: &str, revision: i64) -> Option<Kv> {
        let history = self.keys.get(key)?;
        let behind = history.partition_point(|(written, _)| *written <= revision);
        history[..behind].last().and_then(|(_, kv)| kv.clone())
    }

    /// What a read of one key, or of all, finds at a revision.
    pub fn read(&self, key: Option<&str>, revision: i64) -> Vec<(String, Kv)> {
        match key {
            Some(key) => self.at(key, revision).map(|kv| (key.to_owned(), kv)).into_iter().collect(),
            None => self.keys.keys().filter_map(|key| Some((key.clone(), self.at(key, revision)?))).collect(),
        }
    }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// Values are `name:` and padding; their short form is `name:length`, and another one if the padding is not as written.
pub fn short(value: &[u8]) -> String {
    let value = text(value);
    match value.split_once(':') {
        Some((name, padding)) if padding.bytes().all(|byte| byte == b'x') => format!("{name}:{}", padding.len()),
        _ => format!("damaged {value:.40}"),
    }
}

/// The written form of a value whose short form is `name:length`.
pub fn padded(name: &str, length: usize) -> String {
    format!("{name}:{}", "x".repeat(length))
}

/// Holds every reply against the log and against real time. `Err` describes the first thing that must not be.
pub fn judge(operations: &[Operation], model: &Model) -> Result<(), String> {
    let revisions = written_values(model)?;
    acknowledged_once(operations)?;
    for operation in operations {
        agrees(operation, model).map_err(|what| format!("{what}: {operation:?}"))?;
    }
    connections_go_forward(operations)?;
    real_time(operations, &revisions)?;
    compactions(operations)?;
    nothing_from_nowhere(operations, &revisions)
}

/// Where each value stands. A value that stands twice is a write that was carried out twice.
fn written_values(model: &Model) -> Result<HashMap<String, i64>, String> {
    let mut revisions = HashMap::new();
    for (revision, write) in &model.writes {
        let Some(value) = &write.value else { continue };
        if let Some(before) = revisions.insert(value.clone(), *revision) {
            return Err(format!("{value} was written twice, at {before} and at {revision}"));
        }
    }
    Ok(revisions)
}

fn acknowledged_once(operations: &[Operation]) -> Result<(), String> {
    let mut seen: HashMap<i64, &Operation> = HashMap::new();
    for operation in operations {
        let Reply::Written { revision, .. } = operation.reply else { continue };
        if let Some(other) = seen.insert(revision, operation) {
            return Err(format!("one revision for two writes: {operation:?} and {other:?}"));
        }
    }
    Ok(())
}

/// The reply is what the model has at its revision.
fn agrees(operation: &Operation, model: &Model) -> Result<(), String> {
    match (&operation.action, &operation.reply) {
        (action, Reply::Written { revision, previous }) => {
            let (key, value) = match action {
                Action::Put { key, value } | Action::PutIf { key, value, .. } => (key, Some(value)),
                Action::Delete { key } => (key, None),
                _ => return Err("a write as the answer to something else".into()),
            };
            let Some(write) = model.writes.get(revision) else { return Err("acknowledged, and in no log".into()) };
            if write.key != *key || write.value.as_ref() != value {
                return Err(format!("acknowledged, but the log has {write:?}"));
            }
            if write.previous != *previous {
                return Err(format!("the value before was {:?}", write.previous));
            }
            match action {
                Action::PutIf { modified, .. }
                    if previous.as_ref().map_or(0, |previous| previous.modified) != *modified =>
                {
                    Err("the condition did not hold".into())
                }
                _ => Ok(()),
            }
        }
        (action, Reply::Seen { revision, kvs }) => {
            let (key, at) = match action {
                Action::Read { key, revision: asked, .. } if *asked > 0 => (key.as_deref(), *asked),
                Action::Read { key, .. } => (key.as_deref(), *revision),
                Action::Delete { key } => (Some(key.as_str()), *revision),
                Action::PutIf { key, modified, .. } => {
                    if kvs.first().map_or(0, |(_, kv)| kv.modified) == *modified {
                        return Err("the condition held".into());
                    }
                    (Some(key.as_str()), *revision)
                }
                _ => return Err("a read as the answer to something else".into()),
            };
            if *revision > model.revision {
                return Err(format!("a revision that never was; the last is {}", model.revision));
            }
            let expected = model.read(key, at);
            if expected == *kvs { Ok(()) } else { Err(format!("at revision {at} there was {expected:?}")) }
        }
        (Action::Read { serializable: true, .. }, Reply::Future) => Ok(()),
        (_, Reply::Future) => Err(format!("somebody was told of that revision; the last is {}", model.revision)),
        _ => Ok(()),
    }
}

fn revision(reply: &Reply) -> Option<i64> {
    match reply {
        Reply::Written { revision, .. } | Reply::Seen { revision, .. } | Reply::Done { revision } => Some(*revision),
        Reply::Compacted | Reply::Future | Reply::Unknown => None,
    }
}

fn is_write(action: &Action) -> bool {
    matches!(action, Action::Put { .. } | Action::Delete { .. } | Action::PutIf { .. })
}

fn is_linearizable(action: &Action) -> bool {
    !matches!(action, Action::Read { serializable: true, .. })
}

/// A connection leads to one process, whose revision never goes back.
fn connections_go_forward(operations: &[Operation]) -> Result<(), String> {
    let mut newest: HashMap<u64, &Operation> = HashMap::new();
    let mut in_order: Vec<&Operation> = operations.iter().collect();
    in_order.sort_by_key(|operation| operation.sent);
    for operation in in_order {
        let Some(now) = revision(&operation.reply) else { continue };
        if let Some(before) = newest.insert(operation.connection, operation)
            && revision(&before.reply).is_some_and(|before| before > now)
        {
            return Err(format!("the revision went back on one connection: {before:?}, then {operation:?}"));
        }
    }
    Ok(())
}

/// No linearizable reply is older than one that was complete before it was asked for; no write stands at or before a
/// revision that was known before the write was sent.
fn real_time(operations: &[Operation], revisions: &HashMap<String, i64>) -> Result<(), String> {
    let mut by_sent: Vec<&Operation> = operations.iter().collect();
    by_sent.sort_by_key(|operation| operation.sent);
    let mut by_done: Vec<&Operation> = operations.iter().filter(|o| revision(&o.reply).is_some()).collect();
    by_done.sort_by_key(|operation| operation.done);
    let mut completed = by_done.into_iter().peekable();
    let mut newest: Option<&Operation> = None;
    for operation in by_sent {
        while let Some(earlier) = completed.next_if(|earlier| earlier.done < operation.sent) {
            if newest.is_none_or(|newest| revision(&newest.reply) < revision(&earlier.reply)) {
                newest = Some(earlier);
            }
        }
        let Some(newest) = newest else { continue };
        let floor = revision(&newest.reply).unwrap_or_default();
        let stands = match (&operation.action, &operation.reply) {
            (action, Reply::Seen { revision, .. }) if is_linearizable(action) => *revision + 1,
            (_, Reply::Written { revision, .. }) => *revision,
            (Action::Put { value, .. } | Action::PutIf { value, .. }, Reply::Unknown) => {
                revisions.get(value).copied().unwrap_or(i64::MAX)
            }
            _ => continue,
        };
        if stands <= floor {
            return Err(format!("older than what was known before: {operation:?} after {newest:?}"));
        }
    }
    Ok(())
}

/// A revision is refused as compacted only if somebody asked for that, and once it was done always.
fn compactions(operations: &[Operation]) -> Result<(), String> {
    let asked = |until: u64| {
        let sent = operations.iter().filter(move |operation| operation.sent < until);
        sent.filter_map(|operation| match operation.action {
            Action::Compact { revision } => Some(revision),
            _ => None,
        })
    };
    let done: Vec<(u64, i64)> = operations
        .iter()
        .filter_map(|operation| match (&operation.action, &operation.reply) {
            (Action::Compact { revision }, Reply::Done { .. }) => Some((operation.done, *revision)),
            _ => None,
        })
        .collect();
    for operation in operations {
        let Action::Read { revision: at, serializable, .. } = operation.action else { continue };
        match operation.reply {
            Reply::Compacted if asked(operation.done).max().is_none_or(|highest| at >= highest) => {
                return Err(format!("nobody compacted that: {operation:?}"));
            }
            Reply::Seen { .. } if at > 0 && !serializable => {
                let compacted = done.iter().find(|(done, revision)| *done < operation.sent && at < *revision);
                if let Some((_, revision)) = compacted {
                    return Err(format!("read after the compaction at {revision}: {operation:?}"));
                }
            }
            _ => {}
        }
    }
    Ok(())
}

/// Every value in the log was sent by somebody.
fn nothing_from_nowhere(operations: &[Operation], revisions: &HashMap<String, i64>) -> Result<(), String> {
    let sent: std::collections::HashSet<&String> = operations
        .iter()
        .filter(|operation| is_write(&operation.action))
        .filter_map(|operation| match &operation.action {
            Action::Put { value, .. } | Action::PutIf { value, .. } => Some(value),
            _ => None,
        })
        .collect();
    match revisions.iter().find(|(value, _)| !sent.contains(value)) {
        Some((value, revision)) => Err(format!("nobody wrote {value}, which stands at {revision}")),
        None => Ok(()),
    }
}

/// A judge that lets everything pass is none: each kind of lie is found.
mod tests {
    use super::*;

    /// The log of: put a=1 (2), put b=2 (3), put a=3 (4), delete b (5).
    fn model() -> Model {
        let mut model = Model { revision: 1, keys: BTreeMap::new(), writes: BTreeMap::new() };
        for (key, value) in [("a", Some("1:0")), ("b", Some("2:0")), ("a", Some("3:0")), ("b", None)] {
            model.write(key.to_owned(), value.map(str::to_owned));
        }
        model
    }

    fn kv(value: &str, created: i64, modified: i64, version: i64) -> Kv {
        Kv { value: value.to_owned(), created, modified, version }
    }

    fn operation(time: u64, action: Action, reply: Reply) -> Operation {
        Operation { connection: time, action, sent: time, done: time + 5, reply }
    }

    fn put(time: u64, key: &str, value: &str, revision: i64, previous: Option<Kv>) -> Operation {
        let action = Action::Put { key: key.to_owned(), value: value.to_owned() };
        operation(time, action, Reply::Written { revision, previous })
    }

    fn read(time: u64, key: &str, at: i64, revision: i64, kvs: &[Kv]) -> Operation {
        let action = Action::Read { key: Some(key.to_owned()), revision: at, serializable: false };
        let kvs = kvs.iter().map(|kv| (key.to_owned(), kv.clone())).collect();
        operation(time, action, Reply::Seen { revision, kvs })
    }

    fn honest() -> Vec<Operation> {
        let delete = Action::Delete { key: "b".to_owned() };
        vec![
            put(0, "a", "1:0", 2, None),
            put(10, "b", "2:0", 3, None),
            put(20, "a", "3:0", 4, Some(kv("1:0", 2, 2, 1))),
            operation(30, delete, Reply::Written { revision: 5, previous: Some(kv("2:0", 3, 3, 1)) }),
            read(40, "a", 0, 5, &[kv("3:0", 2, 4, 2)]),
            read(50, "a", 3, 5, &[kv("1:0", 2, 2, 1)]),
            read(60, "b", 0, 5, &[]),
        ]
    }

    fn found(change: impl FnOnce(&mut Vec<Operation>), expected: &str) {
        let mut operations = honest();
        change(&mut operations);
        let verdict = judge(&operations, &model()).expect_err(expected);
        assert!(verdict.contains(expected), "{verdict}");
    }

    #[test]
    fn an_honest_history_passes() {
        judge(&honest(), &model()).expect("nothing is wrong with it");
    }

    #[test]
    fn a_lost_write_is_found() {
        found(|all| all.push(put(70, "a", "9:0", 6, None)), "in no log");
    }

    #[test]
    fn another_write_in_its_place_is_found() {
        found(|all| all[1] = put(10, "b", "9:0", 3, None), "the log has");
    }

    #[test]
    fn a_wrong_previous_value_is_found() {
        found(|all| all[2] = put(20, "a", "3:0", 4, None), "the value before");
    }

    #[test]
    fn a_stale_read_is_found() {
        found(|all| all.push(read(70, "a", 0, 3, &[kv("1:0", 2, 2, 1)])), "older than what was known");
    }

    #[test]
    fn a_wrong_value_is_found() {
        found(|all| all[4] = read(40, "a", 0, 5, &[kv("1:0", 2, 2, 1)]), "there was");
    }

    #[test]
    fn a_wrong_old_value_is_found() {
        found(|all| all[5] = read(50, "a", 3, 5, &[kv("3:0", 2, 4, 2)]), "there was");
    }

    #[test]
    fn a_revision_that_goes_back_is_found() {
        let older = |serializable| Action::Read { key: Some("b".to_owned()), revision: 0, serializable };
        let back = |all: &mut Vec<Operation>| {
            let kvs = vec![("b".to_owned(), kv("2:0", 3, 3, 1))];
            let mut late = operation(70, older(true), Reply::Seen { revision: 4, kvs });
            late.connection = all[6].connection;
            all.push(late);
        };
        found(back, "went back on one connection");
    }

    #[test]
    fn a_write_before_it_was_sent_is_found() {
        let late = |all: &mut Vec<Operation>| {
            all[0].sent = 12;
            all[0].done = 19;
            all[1].done = 11;
        };
        found(late, "older than what was known");
    }

    #[test]
    fn a_write_that_nobody_sent_is_found() {
        found(|all| drop(all.remove(0)), "nobody wrote");
    }

    #[test]
    fn an_unknown_write_may_stand_or_not() {
        let mut operations = honest();
        operations[0].reply = Reply::Unknown;
        let never = Action::Put { key: "a".to_owned(), value: "9:0".to_owned() };
        operations.push(operation(70, never, Reply::Unknown));
        judge(&operations, &model()).expect("both may be");
    }

    #[test]
    fn a_compaction_that_nobody_asked_for_is_found() {
        found(|all| all[5].reply = Reply::Compacted, "nobody compacted");
    }

    #[test]
    fn a_read_of_what_was_compacted_is_found() {
        let compact = operation(45, Action::Compact { revision: 4 }, Reply::Done { revision: 5 });
        let insert = |all: &mut Vec<Operation>| {
            all[5].sent = 55;
            all.push(compact);
        };
        found(insert, "read after the compaction");
    }

    #[test]
    fn a_write_carried_out_twice_is_found() {
        let mut twice = model();
        twice.write("a".to_owned(), Some("1:0".to_owned()));
        let verdict = judge(&honest(), &twice).expect_err("written twice");
        assert!(verdict.contains("written twice"), "{verdict}");
    }
}

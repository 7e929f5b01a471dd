//! Locks and elections: at no revision are there two holders, whatever clients were told and whenever.
//!
//! A place in a queue is a key `name/lease`; its rank is its create revision. The log says when each place came and went,
//! so it says who holds a lock at which revision: a place *leads* from the revision at which every older place of its
//! queue is gone until it is gone itself. Create revisions only grow, so a place that leads once leads until its end, and
//! at each revision at most one does. What is left to judge is what clients were told:
//!
//! 1. a lock that was granted at revision R was led by the granted place at R: its key was there, and no older one.
//!    R is not older than what was acknowledged before the call began, nor newer than what was sent before it ended. That
//!    the place is gone when the client hears of it is nobody's fault: that is what guards are for;
//! 2. a campaign that was won names no such revision (etcd answers with that of the entry into the queue): its place led
//!    at some revision that could be seen before the call ended;
//! 3. a place that was given up at revision R is gone at R;
//! 4. a write guarded by a place's create revision succeeds only while that place leads;
//! 5. places are made by calls: at most one each.
//!
//! That everyone is granted the lock at last is for the clients to see, when all faults are over.

use std::collections::BTreeMap;
use std::collections::HashMap;

use serde::Deserialize;
use serde::Serialize;

use crate::proto::etcdserverpb::DeleteRangeRequest;
use crate::proto::etcdserverpb::RequestOp;
use crate::proto::etcdserverpb::TxnRequest;
use crate::proto::etcdserverpb::compare::TargetUnion;
use crate::proto::etcdserverpb::request_op;
use crate::torture::checker::History;
use crate::torture::checker::Marks;
use crate::torture::checker::Replayed;
use crate::torture::checker::VIOLATIONS_MAX;
use crate::torture::checker::Violation;
use crate::torture::checker::model::Model;
use crate::torture::checker::model::Request;
use crate::torture::checker::model::Response;

/// What the names of all locks begin with. Members and clients write there on behalf of calls that are not recorded as
/// requests of their own.
pub const PREFIX: &str = "lock/";

/// One call for a place in a queue, or for its end.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LockCall {
    /// Nanoseconds.
    pub start: u64,
    pub end: u64,
    /// The place's key.
    pub key: String,
    pub said: Said,
}

/// How it ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Said {
    /// The lock was granted at `revision`. `created`: the place's create revision, where the client is told of it.
    Granted { revision: i64, created: Option<i64> },
    /// The campaign was won with the place that was made at `created`.
    Elected { created: i64 },
    /// The place with this create revision, or whatever there was, is given up.
    Released { revision: i64, created: Option<i64> },
    /// It asked for a place, and there was an error, a timeout, a broken connection: anything may have happened.
    Not(String),
}

/// The end of what did not end.
const NEVER: i64 = i64::MAX;

/// A place from its creation to its end.
#[derive(Clone, Copy, Debug)]
struct Place {
    created: i64,
    /// The revision at which it was not there any more.
    gone: i64,
    /// The revision from which on it was the oldest.
    leads: i64,
}

impl Place {
    fn is_there(&self, revision: i64) -> bool {
        (self.created..self.gone).contains(&revision)
    }
}

/// `first_seen`: from when on each revision can have been seen; `acknowledged`: the highest revision known by a time.
pub(super) fn check(
    history: &History,
    replayed: &Replayed,
    first_seen: &BTreeMap<i64, u64>,
    acknowledged: &Marks,
) -> Vec<Violation> {
    let places = places(&replayed.model);
    let judge = Judge { history, model: &replayed.model, places, first_seen, acknowledged };
    let calls = history.locks.iter().enumerate().filter_map(|(lock, call)| {
        let detail = judge.call(call).err()?;
        Some(Violation::Lock { lock, detail: format!("{detail}\n  {call:?}") })
    });
    let mut found: Vec<Violation> = calls.take(VIOLATIONS_MAX).collect();
    found.extend(judge.guards(replayed));
    found.extend(judge.makers());
    found
}

/// The place that an entry of the log makes or gives up, if it does nothing else: the work of locks and elections.
pub(super) fn is_of_locks(request: &Request) -> bool {
    match request {
        Request::DeleteRange(DeleteRangeRequest { key, range_end, .. }) => range_end.is_empty() && is_place(key),
        Request::Txn(txn) => {
            let ops = || txn.success.iter().chain(&txn.failure);
            txn.compare.iter().all(|compare| is_place(&compare.key)) && ops().count() > 0 && ops().all(is_of_a_place)
        }
        _ => false,
    }
}

fn is_place(key: &[u8]) -> bool {
    key.starts_with(PREFIX.as_bytes())
}

fn is_of_a_place(op: &RequestOp) -> bool {
    match &op.request {
        Some(request_op::Request::RequestPut(put)) => is_place(&put.key),
        Some(request_op::Request::RequestDeleteRange(delete)) => delete.range_end.is_empty() && is_place(&delete.key),
        Some(request_op::Request::RequestRange(range)) => is_place(&range.key),
        Some(request_op::Request::RequestTxn(_)) | None => false,
    }
}

/// The queue of a place's key: all in front of the lease.
fn queue_of(key: &str) -> &str {
    key.rsplit_once('/').map_or(key, |(queue, _)| queue)
}

type Places = HashMap<String, Vec<Place>>;

/// Every place that ever was, by key, oldest first.
fn places(model: &Model) -> Places {
    let mut queues: HashMap<String, Vec<(String, Place)>> = HashMap::new();
    // Of keys that are there: position in its queue.
    let mut alive: HashMap<String, usize> = HashMap::new();
    for (revision, key) in model.changes().iter().filter(|(_, key)| is_place(key)) {
        let name = String::from_utf8_lossy(key).into_owned();
        let queue = queues.entry(queue_of(&name).to_owned()).or_default();
        match (model.get(key, *revision), alive.get(&name)) {
            (Some(pair), None) => {
                alive.insert(name.clone(), queue.len());
                queue.push((name, Place { created: pair.create_revision, gone: NEVER, leads: 0 }));
            }
            (None, Some(at)) => {
                queue[*at].1.gone = *revision;
                alive.remove(&name);
            }
            // A new value.
            (Some(_), Some(_)) | (None, None) => {}
        }
    }
    let mut places = Places::new();
    for queue in queues.into_values() {
        let mut oldest_from = 0;
        // In the order of creation, which is that of changes.
        for (name, mut place) in queue {
            place.leads = oldest_from.max(place.created);
            oldest_from = oldest_from.max(place.gone);
            places.entry(name).or_default().push(place);
        }
    }
    places
}

struct Judge<'a> {
    history: &'a History,
    model: &'a Model,
    places: Places,
    first_seen: &'a BTreeMap<i64, u64>,
    acknowledged: &'a Marks,
}

impl Judge<'_> {
    fn of_key(&self, key: &str) -> &[Place] {
        self.places.get(key).map_or(&[], Vec::as_slice)
    }

    fn call(&self, call: &LockCall) -> Result<(), String> {
        match call.said {
            Said::Granted { revision, created } => {
                if !self.is_known(revision)? {
                    return Ok(());
                }
                let there = self.of_key(&call.key).iter().find(|place| place.is_there(revision));
                let place = there.ok_or_else(|| format!("granted at revision {revision}, where its key was not"))?;
                if created.is_some_and(|created| created != place.created) {
                    return Err(format!("granted to a place of another time: this one is of {}", place.created));
                }
                if place.leads > revision {
                    let until =
                        if place.leads == NEVER { "for ever".to_owned() } else { format!("until {}", place.leads) };
                    return Err(format!("granted at revision {revision}, where an older one stood before it {until}"));
                }
                self.in_time(call, revision)
            }
            Said::Elected { created } => {
                if !self.is_known(created)? {
                    return Ok(());
                }
                let made = self.of_key(&call.key).iter().find(|place| place.created == created);
                let place = made.ok_or_else(|| format!("elected with a place that was not made at {created}"))?;
                if place.leads == NEVER {
                    // Behind the end of the log that is known it may have gone.
                    let refuted = !self.history.tail_unknown;
                    return if refuted { Err("elected although an older one never went".to_owned()) } else { Ok(()) };
                }
                if place.leads >= place.gone {
                    return Err(format!("elected, and its place was gone at {} before it led", place.gone));
                }
                match self.first_seen.get(&place.leads).is_some_and(|seen| *seen > call.end) {
                    true => Err("elected before the one that led had been asked to go".to_owned()),
                    false => Ok(()),
                }
            }
            Said::Released { revision, created } => {
                if !self.is_known(revision)? {
                    return Ok(());
                }
                self.in_time(call, revision)?;
                let left = self.of_key(&call.key).iter().find(|place| place.is_there(revision));
                match left.filter(|place| created.is_none_or(|created| created == place.created)) {
                    Some(place) => Err(format!("given up at {revision}, and still there: {place:?}")),
                    None => Ok(()),
                }
            }
            Said::Not(_) => Ok(()),
        }
    }

    /// Whether the revision is in the known part of the log.
    fn is_known(&self, revision: i64) -> Result<bool, String> {
        match revision > self.model.revision() {
            true if self.history.tail_unknown => Ok(false),
            true => Err(format!("revision {revision} never was")),
            false => Ok(true),
        }
    }

    fn in_time(&self, call: &LockCall, revision: i64) -> Result<(), String> {
        let known = self.acknowledged.before(call.start).unwrap_or(0);
        if revision < known {
            return Err(format!("answered from revision {revision}, after {known} had been acknowledged"));
        }
        match self.first_seen.get(&revision).is_some_and(|seen| *seen > call.end) {
            true => Err(format!("answered from revision {revision} before it was sent")),
            false => Ok(()),
        }
    }

    fn guards(&self, replayed: &Replayed) -> Vec<Violation> {
        let guarded = self.history.log.iter().enumerate().filter_map(|(entry, request)| {
            let Request::Txn(txn) = request else { return None };
            let (key, created) = guard(txn).filter(|_| !is_of_locks(request))?;
            let Ok(Response::Txn(response)) = &replayed.answers[entry] else { return None };
            let before = entry.checked_sub(1).map_or(1, |before| replayed.revisions[before]);
            let leads = self
                .of_key(&key)
                .iter()
                .any(|place| place.created == created && (place.leads..place.gone).contains(&before));
            let detail =
                format!("a write guarded by {key} of {created} succeeded at {before}, where it did not hold the lock");
            (response.succeeded && !leads).then_some(Violation::Guard { entry, detail })
        });
        guarded.take(VIOLATIONS_MAX).collect()
    }

    /// Every place was asked for.
    fn makers(&self) -> Vec<Violation> {
        let mut calls: HashMap<&str, usize> = HashMap::new();
        for call in self.history.locks.iter().filter(|call| !matches!(call.said, Said::Released { .. })) {
            *calls.entry(&call.key).or_default() += 1;
        }
        let mut made: Vec<(&String, usize, usize)> = self
            .places
            .iter()
            .map(|(key, places)| (key, places.len(), calls.get(key.as_str()).copied().unwrap_or(0)))
            .filter(|(_, made, asked)| made > asked)
            .collect();
        made.sort();
        let told = |(key, made, asked): (&String, usize, usize)| Violation::Place {
            key: key.clone(),
            detail: format!("made {made} times, asked for {asked} times"),
        };
        made.into_iter().take(VIOLATIONS_MAX).map(told).collect()
    }
}

/// The place that a transaction is guarded by: the key, and its create revision.
fn guard(txn: &TxnRequest) -> Option<(String, i64)> {
    let compare = txn.compare.iter().find(|compare| is_place(&compare.key))?;
    match compare.target_union {
        Some(TargetUnion::CreateRevision(created)) => {
            Some((String::from_utf8_lossy(&compare.key).into_owned(), created))
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests;

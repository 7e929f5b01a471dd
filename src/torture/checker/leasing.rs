//! Leases: none ends by itself before the time that a grant or a renewal promised, and none is forgotten.
//!
//! That the keys of a lease go with it, and that nothing is written under one that is over, is the model's part.

use std::collections::HashMap;
use std::collections::HashSet;

use prost::Message;
use serde::Deserialize;
use serde::Serialize;

use crate::proto::etcdserverpb::WatchResponse;
use crate::torture::checker::History;
use crate::torture::checker::Outcome;
use crate::torture::checker::Replayed;
use crate::torture::checker::VIOLATIONS_MAX;
use crate::torture::checker::Violation;
use crate::torture::checker::model::Request;
use crate::torture::checker::model::Response;

const SECOND: u64 = 1_000_000_000;

/// A renewal that was answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Renewal {
    pub connection: u64,
    /// Nanoseconds.
    pub start: u64,
    pub end: u64,
    pub lease: i64,
    /// Seconds that it has again; none when there is no such lease.
    pub ttl: i64,
}

/// What clients know of one lease.
#[derive(Default)]
struct Known {
    /// Alive until then at least: a promise counts from when it was asked for.
    until: u64,
    granted: Option<u64>,
    /// When a client first asked for its end.
    revoked: Option<u64>,
}

/// Times are nanoseconds here.
pub(super) fn check(history: &History, replayed: &Replayed) -> Vec<Violation> {
    let known = known(history);
    let seen = Sightings::of(history);
    let mut ended = HashSet::new();
    let mut found = Vec::new();
    let mut judge = |lease: i64, gone: u64, how: &str| {
        let Some(known) = known.get(&lease) else { return };
        if known.revoked.is_none_or(|asked| asked > gone) && known.until > gone {
            let early = (known.until - gone) as f64 / SECOND as f64;
            let at = gone as f64 / SECOND as f64;
            found.push(Violation::Lease { lease, detail: format!("{how} at {at:.6} s, {early:.3} s early") });
        }
    };
    for (entry, request) in history.log.iter().enumerate() {
        let Request::LeaseRevoke(revoke) = request else { continue };
        ended.insert(revoke.id);
        if replayed.has_effect(entry)
            && let Some(gone) = seen.first(replayed.revisions[entry])
        {
            judge(revoke.id, gone, "its keys were gone");
        }
    }
    for renewal in history.renewals.iter().filter(|renewal| renewal.ttl <= 0) {
        judge(renewal.lease, renewal.end, "a renewal was told that there is none");
    }
    for renewal in history.renewals.iter().filter(|renewal| renewal.ttl <= 0 && !history.tail_unknown) {
        let granted = known.get(&renewal.lease).and_then(|known| known.granted);
        if granted.is_some_and(|granted| granted < renewal.start) && !ended.contains(&renewal.lease) {
            let detail = format!("forgotten: {renewal:?}, and nothing in the log ends it");
            found.push(Violation::Lease { lease: renewal.lease, detail });
        }
    }
    found.truncate(VIOLATIONS_MAX);
    found
}

fn known(history: &History) -> HashMap<i64, Known> {
    let mut all: HashMap<i64, Known> = HashMap::new();
    let lasts = |start: u64, ttl: i64| start + u64::try_from(ttl).unwrap_or(0) * SECOND;
    for call in &history.operations {
        match (&call.request, &call.outcome) {
            (Request::LeaseGrant(grant), Outcome::Replied(Response::LeaseGrant(response))) => {
                let known = all.entry(grant.id).or_default();
                known.until = known.until.max(lasts(call.start, response.ttl));
                known.granted = Some(call.end);
            }
            (Request::LeaseRevoke(revoke), _) => {
                let known = all.entry(revoke.id).or_default();
                known.revoked = Some(known.revoked.map_or(call.start, |asked| asked.min(call.start)));
            }
            _ => {}
        }
    }
    for renewal in history.renewals.iter().filter(|renewal| renewal.ttl > 0) {
        let known = all.entry(renewal.lease).or_default();
        known.until = known.until.max(lasts(renewal.start, renewal.ttl));
    }
    all
}

/// When anybody was first told of a revision, or of a later one.
struct Sightings {
    /// Ascending by revision; the time is the earliest of this one and all behind it.
    all: Vec<(i64, u64)>,
}

impl Sightings {
    fn of(history: &History) -> Sightings {
        let replied = history.operations.iter().filter_map(|call| Some((call.revision()?, call.end)));
        let mut all: Vec<(i64, u64)> = replied.collect();
        for told in history.watches.iter().flat_map(|watch| &watch.told) {
            let Ok(response) = WatchResponse::decode(told.response.clone()) else { continue };
            let header = response.header.map_or(0, |header| header.revision);
            all.push((header, told.time));
        }
        all.sort_unstable();
        let mut earliest = u64::MAX;
        for (_, time) in all.iter_mut().rev() {
            earliest = earliest.min(*time);
            *time = earliest;
        }
        Sightings { all }
    }

    fn first(&self, revision: i64) -> Option<u64> {
        let at = self.all.partition_point(|(seen, _)| *seen < revision);
        self.all.get(at).map(|(_, time)| *time)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::etcdserverpb::LeaseGrantRequest;
    use crate::proto::etcdserverpb::LeaseGrantResponse;
    use crate::proto::etcdserverpb::LeaseRevokeRequest;
    use crate::proto::etcdserverpb::PutRequest;
    use crate::proto::etcdserverpb::RangeRequest;
    use crate::proto::etcdserverpb::RangeResponse;
    use crate::proto::etcdserverpb::ResponseHeader;
    use crate::torture::checker::Operation;

    fn header(revision: i64) -> Option<ResponseHeader> {
        Some(ResponseHeader { revision, ..ResponseHeader::default() })
    }

    fn call(start: u64, end: u64, request: Request, outcome: Outcome) -> Operation {
        Operation { connection: start, start: start * SECOND, end: end * SECOND, request, outcome }
    }

    /// Lease 7 of 3 s, granted at 0, with a key, renewed at 2; revoked by the cluster, seen by a read at `seen`.
    fn history(seen: u64) -> History {
        let grant = Request::LeaseGrant(LeaseGrantRequest { id: 7, ttl: 3 });
        let put = Request::Put(PutRequest { key: "k".into(), lease: 7, ..PutRequest::default() });
        let granted = LeaseGrantResponse { header: header(1), id: 7, ttl: 3, ..LeaseGrantResponse::default() };
        let read = Request::Range(RangeRequest { key: "k".into(), ..RangeRequest::default() });
        let nothing = RangeResponse { header: header(3), ..RangeResponse::default() };
        History {
            operations: vec![
                call(0, 1, grant.clone(), Outcome::Replied(Response::LeaseGrant(granted))),
                call(1, 2, put.clone(), Outcome::Unknown),
                call(seen, seen, read, Outcome::Replied(Response::Range(nothing))),
            ],
            log: vec![grant, put, Request::LeaseRevoke(LeaseRevokeRequest { id: 7 })],
            renewals: vec![Renewal { connection: 1, start: 2 * SECOND, end: 3 * SECOND, lease: 7, ttl: 3 }],
            leases_expire: true,
            ..History::default()
        }
    }

    fn found(history: &History) -> Vec<String> {
        super::super::check(history).iter().map(ToString::to_string).collect()
    }

    #[test]
    fn a_lease_that_lasts_as_long_as_promised_passes() {
        assert_eq!(found(&history(5)), Vec::<String>::new());
        // Somebody asked for it.
        let mut asked = history(4);
        let revoke = Request::LeaseRevoke(LeaseRevokeRequest { id: 7 });
        asked.operations.push(call(3, 4, revoke, Outcome::Unknown));
        assert_eq!(found(&asked), Vec::<String>::new());
    }

    #[test]
    fn an_early_end_and_a_forgotten_lease_are_found() {
        assert!(found(&history(4))[0].contains("its keys were gone at 4.000000 s, 1.000 s early"));
        let mut told = history(5);
        told.renewals.push(Renewal { connection: 2, start: 4 * SECOND, end: 4 * SECOND, lease: 7, ttl: 0 });
        let mut late = history(5);
        late.renewals.push(Renewal { connection: 2, start: 9 * SECOND, end: 9 * SECOND, lease: 7, ttl: 0 });
        assert_eq!(found(&late), Vec::<String>::new());
        assert!(found(&told)[0].contains("there is none at 4.000000 s"));
        let mut lost = history(9);
        lost.log.pop();
        lost.operations.pop();
        lost.renewals.push(Renewal { connection: 2, start: 6 * SECOND, end: 6 * SECOND, lease: 7, ttl: 0 });
        assert!(found(&lost)[0].contains("forgotten"));
        // Without expiry such an entry is nobody's.
        let strict = History { leases_expire: false, ..history(5) };
        assert!(found(&strict)[0].contains("nobody's"));
    }
}

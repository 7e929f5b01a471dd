//! What watches were told, held against the log: every change from where a watch starts, once, in order, a revision in
//! one piece, and no notice of a revision before the changes up to it.

use std::collections::BTreeMap;

use bytes::Bytes;
use prost::Message;

use crate::proto::etcdserverpb::WatchCreateRequest;
use crate::proto::etcdserverpb::WatchResponse;
use crate::proto::etcdserverpb::watch_create_request::FilterType;
use crate::proto::mvccpb::Event;
use crate::proto::mvccpb::KeyValue;
use crate::proto::mvccpb::event::EventType;
use crate::torture::checker::History;
use crate::torture::checker::Marks;
use crate::torture::checker::VIOLATIONS_MAX;
use crate::torture::checker::Violation;
use crate::torture::checker::model::Model;

/// One response, when it came.
#[derive(Clone, Debug, PartialEq)]
pub struct Told {
    pub time: u64,
    /// As protobuf, which is a third of its size in memory.
    pub response: Bytes,
}

/// One watch of one stream: what it asked for, and everything it was told.
#[derive(Clone, Debug, PartialEq)]
pub struct Watch {
    pub connection: u64,
    pub request: WatchCreateRequest,
    pub told: Vec<Told>,
}

/// `first_seen`: from when on each revision can have been seen; `compaction_sent`: the highest compaction sent by a time.
pub(super) fn check(
    history: &History,
    model: &Model,
    first_seen: &BTreeMap<i64, u64>,
    compaction_sent: &Marks,
) -> Vec<Violation> {
    let judge = Judge { model, first_seen, compaction_sent, tail_unknown: history.tail_unknown };
    let mut found = Vec::new();
    for (number, watch) in history.watches.iter().enumerate() {
        if let Err(detail) = judge.watch(watch) {
            found.push(Violation::Watch { watch: number, detail });
        }
        if found.len() == VIOLATIONS_MAX {
            break;
        }
    }
    found
}

struct Judge<'a> {
    model: &'a Model,
    first_seen: &'a BTreeMap<i64, u64>,
    compaction_sent: &'a Marks,
    tail_unknown: bool,
}

/// Where a watch is.
struct Place {
    /// Position in the model's changes of the first that was not passed.
    at: usize,
    /// Everything before this revision was told, or is not asked for.
    next: i64,
    created: bool,
    /// Behind the known end of the log, or canceled.
    over: bool,
}

impl Judge<'_> {
    fn watch(&self, watch: &Watch) -> Result<(), String> {
        let start = watch.request.start_revision;
        let mut place = Place { at: 0, next: start.max(1), created: false, over: false };
        for told in &watch.told {
            let response = WatchResponse::decode(told.response.clone()).map_err(|error| error.to_string())?;
            self.response(watch, &mut place, told.time, &response).map_err(|what| {
                format!(
                    "{what}\n  connection {}, {:?}\n  {:.6} s: {response:?}",
                    watch.connection,
                    watch.request,
                    told.time as f64 / 1e9
                )
            })?;
            if place.over {
                break;
            }
        }
        Ok(())
    }

    fn response(&self, watch: &Watch, place: &mut Place, time: u64, response: &WatchResponse) -> Result<(), String> {
        let revision = response.header.as_ref().map_or(0, |header| header.revision);
        if revision > self.model.revision() {
            place.over = self.tail_unknown;
            return if self.tail_unknown { Ok(()) } else { Err(format!("revision {revision} never was")) };
        }
        if response.created && !place.created {
            place.created = true;
            if watch.request.start_revision == 0 {
                place.next = revision + 1;
            }
            place.at = self.model.changes().partition_point(|(made, _)| *made < place.next);
            if !response.canceled {
                return Ok(());
            }
        }
        if response.canceled {
            place.over = true;
            return self.canceled(place, time, response.compact_revision);
        }
        if !place.created {
            return Err("told something before it was created".to_owned());
        }
        for event in &response.events {
            self.event(watch, place, time, event)?;
        }
        let wanted = self.wanted(&watch.request, place);
        if response.events.is_empty() {
            // A notice: nothing up to its revision is to come.
            if let Some((made, key)) = wanted.filter(|(made, _)| *made <= revision) {
                return Err(format!("told that it had seen revision {revision} without {key:?} at {made}"));
            }
            place.next = place.next.max(revision + 1);
        } else if let Some((made, key)) = wanted.filter(|(made, _)| *made < place.next && !response.fragment) {
            return Err(format!("revision {made} was told without its change of {key:?}"));
        }
        Ok(())
    }

    fn canceled(&self, place: &Place, time: u64, compact_revision: i64) -> Result<(), String> {
        let sent = self.compaction_sent.before(time).unwrap_or(0);
        if compact_revision > sent && !self.tail_unknown {
            return Err(format!("canceled for a compaction to {compact_revision}, when {sent} was the highest sent"));
        }
        if compact_revision > 0 && place.next >= compact_revision {
            return Err(format!("canceled for a compaction to {compact_revision} although it was at {}", place.next));
        }
        Ok(())
    }

    fn event(&self, watch: &Watch, place: &mut Place, time: u64, event: &Event) -> Result<(), String> {
        let wanted = self.wanted(&watch.request, place);
        let Some((made, key)) = wanted else { return Err(format!("nothing is to be told after {}", place.next - 1)) };
        let (made, key) = (*made, key.clone());
        place.at += 1;
        place.next = made + 1;
        let mut expected = self.change(&watch.request, made, &key);
        // What a compaction took away cannot be told.
        if event.prev_kv.is_none() && self.compaction_sent.before(time).is_some_and(|sent| sent >= made) {
            expected.prev_kv = None;
        }
        if *event != expected {
            return Err(format!("{event:?} was told instead of {expected:?}"));
        }
        if self.first_seen.get(&made).is_some_and(|sent| *sent > time) {
            return Err(format!("revision {made} was told before it was sent"));
        }
        Ok(())
    }

    /// The next change that the watch has to be told.
    fn wanted(&self, request: &WatchCreateRequest, place: &mut Place) -> Option<&(i64, Bytes)> {
        let rest = &self.model.changes()[place.at..];
        let passed = rest.iter().position(|(made, key)| covers(request, key) && self.passes(request, *made, key));
        place.at += passed.unwrap_or(rest.len());
        self.model.changes().get(place.at)
    }

    fn passes(&self, request: &WatchCreateRequest, made: i64, key: &Bytes) -> bool {
        let filtered = if self.model.get(key, made).is_some() { FilterType::Noput } else { FilterType::Nodelete };
        !request.filters.contains(&(filtered as i32))
    }

    fn change(&self, request: &WatchCreateRequest, made: i64, key: &Bytes) -> Event {
        let prev_kv = self.model.get(key, made - 1).filter(|_| request.prev_kv).cloned();
        let (kind, kv) = match self.model.get(key, made) {
            Some(pair) => (EventType::Put, pair.clone()),
            None => {
                let gone = KeyValue { key: key.clone(), mod_revision: made, ..KeyValue::default() };
                (EventType::Delete, gone)
            }
        };
        Event { r#type: kind as i32, kv: Some(kv), prev_kv }
    }
}

fn covers(request: &WatchCreateRequest, key: &Bytes) -> bool {
    match request.range_end.as_ref() {
        [] => request.key == key,
        [0] => request.key <= key,
        _ => request.key <= key && key < &request.range_end,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::etcdserverpb::CompactionRequest;
    use crate::proto::etcdserverpb::CompactionResponse;
    use crate::proto::etcdserverpb::DeleteRangeRequest;
    use crate::proto::etcdserverpb::PutRequest;
    use crate::proto::etcdserverpb::RequestOp;
    use crate::proto::etcdserverpb::ResponseHeader;
    use crate::proto::etcdserverpb::TxnRequest;
    use crate::proto::etcdserverpb::request_op;
    use crate::torture::checker::Operation;
    use crate::torture::checker::Outcome;
    use crate::torture::checker::model::Request;
    use crate::torture::checker::model::Response;

    fn put(key: &'static str, value: &'static str) -> PutRequest {
        PutRequest { key: key.into(), value: value.into(), ..PutRequest::default() }
    }

    /// With the times at which they came.
    type Responses = Vec<(u64, WatchResponse)>;

    /// Revisions 2: a=1, 3: a=2 and b=3, 4: a deleted, 5: c=4.
    fn history(told: Responses, request: WatchCreateRequest) -> History {
        let op = |put| RequestOp { request: Some(request_op::Request::RequestPut(put)) };
        let both = TxnRequest { success: vec![op(put("a", "2")), op(put("b", "3"))], ..TxnRequest::default() };
        let delete = DeleteRangeRequest { key: "a".into(), ..DeleteRangeRequest::default() };
        let log = vec![
            Request::Put(put("a", "1")),
            Request::Txn(both),
            Request::DeleteRange(delete),
            Request::Put(put("c", "4")),
        ];
        let operation = |(at, request): (usize, &Request)| Operation {
            connection: at as u64,
            start: at as u64 * 10,
            end: 0,
            request: request.clone(),
            outcome: Outcome::Unknown,
        };
        let operations = log.iter().enumerate().map(operation).collect();
        let told =
            told.into_iter().map(|(time, response)| Told { time, response: response.encode_to_vec().into() }).collect();
        let watches = vec![Watch { connection: 9, request, told }];
        History { operations, log, watches, ..History::default() }
    }

    fn all() -> WatchCreateRequest {
        WatchCreateRequest {
            key: "a".into(),
            range_end: "z".into(),
            start_revision: 2,
            prev_kv: true,
            ..WatchCreateRequest::default()
        }
    }

    fn response(revision: i64, events: &[Event]) -> WatchResponse {
        let header = Some(ResponseHeader { revision, ..ResponseHeader::default() });
        WatchResponse { header, events: events.to_vec(), ..WatchResponse::default() }
    }

    fn created(revision: i64) -> WatchResponse {
        WatchResponse { created: true, ..response(revision, &[]) }
    }

    fn pair(key: &'static str, value: &'static str, made: i64, create: i64, version: i64) -> KeyValue {
        let (create_revision, mod_revision) = (create, made);
        KeyValue { key: key.into(), value: value.into(), mod_revision, create_revision, version, lease: 0 }
    }

    fn events() -> Vec<Event> {
        let (old, new) = (pair("a", "1", 2, 2, 1), pair("a", "2", 3, 2, 2));
        let put = |kv: &KeyValue, prev_kv: Option<&KeyValue>| Event {
            r#type: EventType::Put as i32,
            kv: Some(kv.clone()),
            prev_kv: prev_kv.cloned(),
        };
        let gone = KeyValue { key: "a".into(), mod_revision: 4, ..KeyValue::default() };
        vec![
            put(&old, None),
            put(&new, Some(&old)),
            put(&pair("b", "3", 3, 3, 1), None),
            Event { r#type: EventType::Delete as i32, kv: Some(gone), prev_kv: Some(new) },
            put(&pair("c", "4", 5, 5, 1), None),
        ]
    }

    fn honest() -> Responses {
        let events = events();
        vec![
            (100, created(2)),
            (101, response(3, &events[..3])),
            (102, response(3, &[])),
            (103, response(5, &events[3..])),
            (104, response(5, &[])),
        ]
    }

    fn found(told: Responses, request: WatchCreateRequest) -> Vec<String> {
        let violations = super::super::check(&history(told, request));
        violations.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn an_honest_watch_passes_whole_filtered_and_from_now() {
        assert_eq!(found(honest(), all()), Vec::<String>::new());
        let now = WatchCreateRequest { start_revision: 0, ..all() };
        let late = vec![(100, created(4)), (101, response(5, &events()[4..]))];
        assert_eq!(found(late, now), Vec::<String>::new());
        let deletes = WatchCreateRequest { filters: vec![FilterType::Noput as i32], ..all() };
        assert_eq!(found(vec![(1, created(5)), (99, response(5, &events()[3..4]))], deletes), Vec::<String>::new());
        let one = WatchCreateRequest { key: "b".into(), range_end: Bytes::new(), prev_kv: false, ..all() };
        assert_eq!(found(vec![(1, created(1)), (99, response(3, &events()[2..3]))], one), Vec::<String>::new());
    }

    #[test]
    fn each_kind_of_lie_is_found() {
        let lie = |change: &dyn Fn(&mut Responses), expected: &str| {
            let mut told = honest();
            change(&mut told);
            let found = found(told, all());
            assert!(found.iter().any(|text| text.contains(expected)), "{expected}: {found:?}");
        };
        lie(&|told| drop(told[1].1.events.remove(0)), "instead of");
        lie(&|told| told[3].1.events.insert(0, events()[2].clone()), "instead of");
        lie(&|told| told[1].1.events.swap(0, 1), "instead of");
        lie(&|told| drop(told[1].1.events.pop()), "without its change");
        lie(&|told| told[2].1 = response(4, &[]), "without b\"a\" at 4");
        lie(&|told| told[3].1.events[1].kv.as_mut().unwrap().value = "5".into(), "instead of");
        lie(&|told| told[3].1.events[0].prev_kv = None, "instead of");
        lie(&|told| told[3].0 = 20, "before it was sent");
        lie(&|told| told.push((105, response(6, &[]))), "never was");
        lie(&|told| told.push((105, response(5, &events()[4..]))), "nothing is to be told");
        lie(&|told| drop(told.remove(0)), "before it was created");
        let canceled = WatchResponse { canceled: true, compact_revision: 4, ..response(5, &[]) };
        lie(&|told| told.insert(1, (101, canceled.clone())), "the highest sent");
    }

    #[test]
    fn a_compaction_takes_watches_and_previous_values_that_it_reaches() {
        let compaction = CompactionRequest { revision: 4, physical: false };
        let with = |told: Responses| {
            let mut history = history(told, all());
            history.log.push(Request::Compact(compaction));
            history.operations.push(Operation {
                connection: 77,
                start: 50,
                end: 60,
                request: Request::Compact(compaction),
                outcome: Outcome::Replied(Response::Compact(CompactionResponse {
                    header: Some(ResponseHeader { revision: 5, ..ResponseHeader::default() }),
                })),
            });
            super::super::check(&history)
        };
        let canceled = WatchResponse { canceled: true, compact_revision: 4, ..response(5, &[]) };
        assert_eq!(with(vec![(100, created(5)), (101, canceled.clone())]), vec![]);
        let mut told = honest();
        told[3].1.events[0].prev_kv = None;
        assert_eq!(with(told), vec![]);
        let mut told = honest();
        told.push((105, canceled));
        assert!(with(told)[0].to_string().contains("although it was at 6"));
    }
}

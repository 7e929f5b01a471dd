//! The recipes over a store whose answers are written down.

use std::sync::Mutex;

use super::*;
use crate::proto::mvccpb::Event;

/// Answers in the order in which they are asked for.
#[derive(Default)]
struct Script {
    answers: Mutex<VecDeque<Answer>>,
    asked: Mutex<Vec<String>>,
}

enum Answer {
    Txn(TxnResponse),
    Range(RangeResponse),
    Watch(VecDeque<WatchResponse>),
}

/// What went wrong in a script.
type Wrong = String;

struct Told(VecDeque<WatchResponse>);

impl Script {
    fn of(answers: impl IntoIterator<Item = Answer>) -> Script {
        Script { answers: Mutex::new(answers.into_iter().collect()), ..Script::default() }
    }

    fn next(&self, asked: String) -> Result<Answer, Wrong> {
        self.asked.lock().expect("nobody panics").push(asked);
        self.answers.lock().expect("nobody panics").pop_front().ok_or_else(|| "the script is over".to_owned())
    }

    fn asked(&self) -> Vec<String> {
        std::mem::take(&mut *self.asked.lock().expect("nobody panics"))
    }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

impl Store for Script {
    type Error = Wrong;
    type Changes<'a> = Told;

    async fn txn(&self, request: TxnRequest) -> Result<TxnResponse, Wrong> {
        let key = request.compare.first().map(|compare| text(&compare.key)).unwrap_or_default();
        match self.next(format!("txn {key}"))? {
            Answer::Txn(response) => Ok(response),
            _ => Err("no txn was expected".to_owned()),
        }
    }

    async fn range(&self, request: RangeRequest) -> Result<RangeResponse, Wrong> {
        let RangeRequest { key, max_create_revision, .. } = &request;
        match self.next(format!("range {} up to {max_create_revision}", text(key)))? {
            Answer::Range(response) => Ok(response),
            _ => Err("no range was expected".to_owned()),
        }
    }

    fn watch(&self, request: WatchCreateRequest) -> Result<Told, Wrong> {
        match self.next(format!("watch {} from {}", text(&request.key), request.start_revision))? {
            Answer::Watch(responses) => Ok(Told(responses)),
            _ => Err("no watch was expected".to_owned()),
        }
    }
}

impl Changes for Told {
    type Error = Wrong;

    async fn next(&mut self) -> Result<WatchResponse, Wrong> {
        self.0.pop_front().ok_or_else(|| "no more changes".to_owned())
    }
}

fn header(revision: i64) -> ResponseHeader {
    ResponseHeader { revision, ..ResponseHeader::default() }
}

fn kv(key: &str, value: &str, create_revision: i64, mod_revision: i64) -> KeyValue {
    let (key, value) = (key.to_owned().into(), value.to_owned().into());
    KeyValue { key, value, create_revision, mod_revision, ..KeyValue::default() }
}

fn range(revision: i64, kvs: &[KeyValue]) -> RangeResponse {
    RangeResponse { header: Some(header(revision)), kvs: kvs.to_vec(), ..RangeResponse::default() }
}

fn found(revision: i64, kvs: &[KeyValue]) -> Answer {
    Answer::Range(range(revision, kvs))
}

/// The answer to who asks for a place.
fn entered(revision: i64, succeeded: bool, own: Option<KeyValue>, first: KeyValue) -> Answer {
    let op = |kvs: &[KeyValue]| ResponseOp { response: Some(Response::ResponseRange(range(0, kvs))) };
    let responses = vec![op(own.as_slice()), op(&[first])];
    Answer::Txn(TxnResponse { header: Some(header(revision)), succeeded, responses })
}

fn put(kv: KeyValue) -> Event {
    Event { r#type: EventType::Put.into(), kv: Some(kv), prev_kv: None }
}

fn deleted(key: &str, revision: i64) -> Event {
    Event { r#type: EventType::Delete.into(), kv: Some(kv(key, "", 0, revision)), prev_kv: None }
}

fn changes(revision: i64, events: &[Event]) -> WatchResponse {
    WatchResponse { header: Some(header(revision)), events: events.to_vec(), ..WatchResponse::default() }
}

fn compacted(revision: i64) -> WatchResponse {
    WatchResponse { canceled: true, compact_revision: revision, ..WatchResponse::default() }
}

fn watched(responses: impl IntoIterator<Item = WatchResponse>) -> Answer {
    Answer::Watch(responses.into_iter().collect())
}

#[test]
fn keys_are_written_as_go_writes_them() {
    let check = |name: &[u8], lease: i64, key: &[u8]| assert_eq!(Queue::new(name).key(lease), key);
    check(b"deploy", 0x694d_9a1f_903b_7f06, b"deploy/694d9a1f903b7f06");
    check(b"", 10, b"/a");
    check(b"n", -5, b"n/-5");
    check(b"n", i64::MIN, b"n/-8000000000000000");
    check(b"\xff", 1, b"\xff/1");
}

#[tokio::test]
async fn the_first_place_is_not_waited_for_and_may_be_asked_for_twice() {
    let queue = Queue::new(b"l");
    let own = kv("l/7", "", 5, 5);
    let store = Script::of([entered(5, true, None, own.clone()), entered(9, false, Some(own.clone()), own)]);
    for revision in [5, 9] {
        let place = queue.enter(&store, 7, Bytes::new()).await.expect("a place");
        assert_eq!((place.revision, place.key.as_ref()), (5, &b"l/7"[..]));
        assert_eq!(queue.wait(&store, &place).await, Ok(header(revision)));
    }
    assert_eq!(store.asked(), ["txn l/7", "txn l/7"]);
}

#[tokio::test]
async fn everybody_waits_for_the_newest_before_them_until_nobody_is_left() {
    let queue = Queue::new(b"l");
    let (oldest, older, own) = (kv("l/1", "", 2, 2), kv("l/2", "", 3, 3), kv("l/7", "", 5, 5));
    let store = Script::of([
        entered(5, true, None, oldest.clone()),
        found(6, &[older]),
        // Its value may change, which is nobody's turn.
        watched([changes(7, &[put(kv("l/2", "x", 3, 7))]), changes(8, &[deleted("l/2", 8)])]),
        found(8, std::slice::from_ref(&oldest)),
        // What it should have told is gone: only a look can say who is there.
        watched([compacted(20)]),
        found(21, &[oldest]),
        watched([changes(22, &[deleted("l/1", 22)])]),
        found(22, &[]),
        found(23, &[own]),
    ]);
    let place = queue.enter(&store, 7, Bytes::new()).await.expect("a place");
    assert_eq!(queue.wait(&store, &place).await, Ok(header(23)));
    let (look, own) = ("range l/ up to 4", "range l/7 up to 0");
    let asked = ["txn l/7", look, "watch l/2 from 6", look, "watch l/1 from 8", look, "watch l/1 from 21", look, own];
    assert_eq!(store.asked(), asked);
}

#[tokio::test]
async fn a_place_that_is_gone_or_was_made_again_is_none() {
    let queue = Queue::new(b"l");
    for own in [None, Some(kv("l/7", "", 9, 9))] {
        let answers = [entered(5, true, None, kv("l/1", "", 2, 2)), found(6, &[]), found(10, own.as_slice())];
        let store = Script::of(answers);
        let place = queue.enter(&store, 7, Bytes::new()).await.expect("a place");
        assert_eq!(queue.wait(&store, &place).await, Err(Refused::SessionExpired), "{own:?}");
    }
}

#[tokio::test]
async fn a_watch_that_the_member_ends_is_told_of() {
    let reason = "etcdserver: permission denied".to_owned();
    let ended = WatchResponse { canceled: true, cancel_reason: reason.clone(), ..WatchResponse::default() };
    let oldest = kv("l/1", "", 2, 2);
    let store = Script::of([entered(5, true, None, oldest.clone()), found(6, &[oldest]), watched([ended])]);
    let queue = Queue::new(b"l");
    let place = queue.enter(&store, 7, Bytes::new()).await.expect("a place");
    assert_eq!(queue.wait(&store, &place).await, Err(Refused::WatchEnded(reason)));
}

#[tokio::test]
async fn a_candidate_that_comes_back_with_another_value_proclaims_it() {
    let queue = Queue::new(b"e");
    let done = |succeeded: bool| Answer::Txn(TxnResponse { header: Some(header(9)), succeeded, ..Default::default() });
    let own = kv("e/7", "old", 5, 5);
    let again = || entered(8, false, Some(own.clone()), own.clone());
    let store = Script::of([again(), again(), done(true), again(), done(false), done(true)]);
    queue.stand(&store, 7, "old".into()).await.expect("a place");
    queue.stand(&store, 7, "new".into()).await.expect("a place");
    assert_eq!(store.asked(), ["txn e/7", "txn e/7", "txn e/7"]);
    // It was gone in between: what is there now is given up.
    assert_eq!(queue.stand(&store, 7, "new".into()).await, Err(Refused::NotLeader));
    assert_eq!(store.asked(), ["txn e/7", "txn e/7", "txn e/7"]);
}

#[tokio::test]
async fn an_observer_tells_every_leader_and_every_value() {
    let queue = Queue::new(b"e");
    let store = Script::of([
        found(4, &[]),
        // Others are deleted first; the first put is the leader, told at its own revision.
        watched([
            changes(5, &[deleted("e/0", 5)]),
            changes(8, &[put(kv("e/1", "a", 7, 7)), put(kv("e/2", "later", 8, 8))]),
        ]),
        watched([
            changes(9, &[put(kv("e/1", "b", 7, 9)), put(kv("e/1", "c", 7, 9))]),
            changes(11, &[put(kv("e/1", "d", 7, 10)), deleted("e/1", 11), put(kv("e/1", "not its own", 12, 12))]),
        ]),
        found(13, &[kv("e/2", "later", 8, 8)]),
        watched([compacted(15)]),
        found(16, &[kv("e/3", "next", 14, 14)]),
        watched([]),
    ]);
    let mut observer = queue.observe();
    let mut told = Vec::new();
    let ended = loop {
        match observer.next(&store).await {
            Ok(leader) => told.push((text(&leader.kv.value), leader.header.revision)),
            Err(error) => break error,
        }
    };
    let expected = [("a", 7), ("b", 9), ("c", 9), ("d", 11), ("later", 13), ("next", 16)];
    assert_eq!(told, expected.map(|(value, revision)| (value.to_owned(), revision)));
    assert_eq!(ended, Refused::Store("no more changes".to_owned()));
    let watches: Vec<String> = store.asked().into_iter().filter(|asked| asked.starts_with("watch")).collect();
    assert_eq!(watches, ["watch e/ from 4", "watch e/1 from 8", "watch e/2 from 14", "watch e/3 from 17"]);
}

//! The hub over a real store, one step at a time: whatever happens in whatever order, every watcher gets what a list of
//! all changes says, in order, each once, whole revisions, until it is told that history is gone.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::task::Waker;

use bytes::Bytes;
use prost::Message;

use super::catchup;
use super::catchup::Historian;
use super::event::FRAME_HEAD_BYTES;
use super::group;
use super::group::SharedGroup;
use super::hub::Action;
use super::hub::Ask;
use super::hub::Event;
use super::hub::Hub;
use super::hub::Present;
use super::stream::AllBytes;
use super::stream::Outbox;
use crate::common::ids::ClusterId;
use crate::common::ids::MemberId;
use crate::common::key_range::KeyRange;
use crate::proto::etcdserverpb::RangeRequest;
use crate::proto::etcdserverpb::WatchCreateRequest;
use crate::proto::etcdserverpb::WatchResponse;
use crate::proto::mvccpb;
use crate::proto::mvccpb::KeyValue;
use crate::server::checkpoint::Record;
use crate::server::mvcc::read;
use crate::server::mvcc::testing::dice::Dice;
use crate::server::mvcc::testing::harness::Harness;
use crate::server::mvcc::view::Views;

/// Small, so that it happens.
const FRAGMENT_BYTES: usize = 40_000;

struct Now {
    views: Views,
    /// Memory is said to hold nothing, so that everything comes from history.
    forgetful: Cell<bool>,
}

impl Present for Now {
    fn revision(&self) -> i64 {
        self.views.marks().0
    }

    fn compact_revision(&self) -> i64 {
        self.views.marks().1
    }

    fn term(&self) -> u64 {
        3
    }

    fn pair_at(&self, key: &Bytes, revision: i64) -> Option<KeyValue> {
        let request = RangeRequest { key: key.clone(), revision, ..RangeRequest::default() };
        read::range_now(&self.views, &request).ok().and_then(|mut response| response.kvs.pop())
    }

    fn recent(&self, first: i64, revisions_max: i64) -> Option<(Vec<Record>, i64)> {
        if self.forgetful.get() { None } else { self.views.recent(first, revisions_max) }
    }
}

/// A watch as its client sees it.
#[derive(Debug)]
struct Seen {
    request: WatchCreateRequest,
    /// The revision of the created response.
    created_at: i64,
    events: Vec<mvccpb::Event>,
    canceled: bool,
    compact_revision: i64,
    /// A piece came and its rest did not yet.
    in_fragment: bool,
    /// A progress notice said that everything up to here was delivered.
    bookmark: i64,
}

struct Client {
    outbox: Arc<Outbox>,
    bytes: Vec<u8>,
    requests: std::collections::VecDeque<Ask>,
    watches: BTreeMap<i64, Seen>,
    /// Watches that were canceled, with what they saw.
    past: Vec<Seen>,
    failed: Vec<String>,
    progress: Vec<i64>,
}

struct World {
    harness: Harness,
    now: Now,
    hub: Hub,
    historian: Historian,
    actions: Vec<Action>,
    clients: BTreeMap<u64, Client>,
    next_stream: u64,
    all_bytes: AllBytes,
    /// Every change there ever was.
    history: Vec<Record>,
    /// What the hub keeps and apply looks into.
    group: SharedGroup,
    /// Published, but not told to the hub: revisions, and whether they concerned a watcher when they were published.
    untold: Vec<(i64, bool)>,
    gone: Vec<Client>,
}

fn key(at: u64) -> Bytes {
    Bytes::from(format!("k{at}"))
}

impl World {
    fn new() -> World {
        let harness = Harness::default();
        let now = Now { views: harness.store.views(), forgetful: Cell::new(false) };
        let group = SharedGroup::default();
        World {
            harness,
            now,
            hub: Hub::new(ClusterId(1), MemberId(2), FRAGMENT_BYTES).sharing(group.clone()),
            group,
            historian: Historian::default(),
            actions: Vec::new(),
            clients: BTreeMap::new(),
            next_stream: 0,
            all_bytes: AllBytes::default(),
            history: Vec::new(),
            untold: Vec::new(),
            gone: Vec::new(),
        }
    }

    fn step(&mut self, event: Event) {
        self.hub.step(event, &self.now, &mut self.actions);
        self.hub.check();
    }

    fn open(&mut self) -> u64 {
        let (stream, outbox) = (self.next_stream, Arc::new(Outbox::new(self.all_bytes.clone())));
        self.next_stream += 1;
        self.step(Event::Open { stream, outbox: outbox.clone() });
        let client = Client {
            outbox,
            bytes: Vec::new(),
            requests: Default::default(),
            watches: BTreeMap::new(),
            past: Vec::new(),
            failed: Vec::new(),
            progress: Vec::new(),
        };
        self.clients.insert(stream, client);
        stream
    }

    fn close(&mut self, stream: u64) {
        self.step(Event::Close { stream });
        let mut client = self.clients.remove(&stream).expect("an open stream");
        client.outbox = Arc::new(Outbox::new(AllBytes::default()));
        self.gone.push(client);
    }

    fn ask(&mut self, stream: u64, ask: Ask) {
        let client = self.clients.get_mut(&stream).expect("an open stream");
        client.outbox.ask();
        if let Ask::Create(request) = &ask {
            client.requests.push_back(Ask::Create(request.clone()));
        }
        self.step(Event::Ask { stream, ask });
    }

    fn create(&mut self, stream: u64, request: WatchCreateRequest) {
        self.ask(stream, Ask::Create(Box::new(request)));
    }

    /// One transaction; readers see it, the hub is not told.
    fn write(&mut self, puts: &[(Bytes, Bytes)], deletes: &[Bytes]) {
        let mut txn = self.harness.store.begin();
        puts.iter().for_each(|(key, value)| txn.put(key, value.clone(), 0));
        deletes.iter().for_each(|key| {
            txn.delete(key);
        });
        let committed = txn.commit();
        if committed.changes == 0 {
            return;
        }
        let revision = committed.revision;
        self.history.extend(self.harness.store.recent(revision, revision));
        self.harness.store.publish();
        let concerned = |key: &[u8]| group::read(&self.group).concerns(key);
        self.untold.push((revision, self.harness.store.has_recent(revision, revision, &concerned)));
    }

    /// Tells the hub what it was not told.
    fn tell(&mut self) {
        let untold = std::mem::take(&mut self.untold);
        for alike in untold.chunk_by(|(_, one), (_, next)| one == next) {
            let (first, concerned) = alike[0];
            let last = alike[alike.len() - 1].0;
            if concerned {
                let records = self.history.iter().filter(|record| (first..=last).contains(&record.revision.main));
                let records = records.cloned().collect();
                self.step(Event::Records { first, last, records });
            } else {
                self.step(Event::Passed { first, last });
            }
        }
    }

    /// The hub is told only that it was told nothing.
    fn drop_untold(&mut self) {
        self.untold.clear();
        self.step(Event::Gap);
    }

    /// Does one job, if there is one.
    fn work(&mut self) -> bool {
        if self.actions.is_empty() {
            return false;
        }
        let event = match self.actions.remove(0) {
            Action::Slice(job) => Event::Slice(self.historian.slice(&job, || self.now.views.current()).unwrap()),
            Action::Replay { first } => Event::Replayed(catchup::replay(first, &self.now.views.current()).unwrap()),
        };
        self.step(event);
        true
    }

    /// The client reads one chunk, if there is one.
    fn read(&mut self, stream: u64) -> bool {
        let Some(client) = self.clients.get_mut(&stream) else { return false };
        let Some((chunk, drained)) = client.outbox.take(Waker::noop()) else { return false };
        client.bytes.extend_from_slice(&chunk);
        client.decode();
        if drained {
            self.step(Event::Drained { stream });
        }
        true
    }

    /// Everything goes on until nothing moves.
    fn settle(&mut self) {
        self.tell();
        loop {
            self.hub.flush();
            let streams: Vec<u64> = self.clients.keys().copied().collect();
            let mut moved = false;
            for stream in streams {
                while self.read(stream) {
                    moved = true;
                }
            }
            if !self.work() && !moved {
                return;
            }
        }
    }

    fn compact(&mut self, revision: i64) {
        if self.harness.store.compact(revision).is_ok() {
            self.harness.store.publish();
        }
    }

    fn previous(&self, key: &[u8], revision: i64) -> Option<&KeyValue> {
        let before = |record: &&Record| record.revision.main < revision && record.kv.key == key;
        self.history.iter().rfind(before).filter(|record| !record.tombstone).map(|record| &record.kv)
    }

    /// What a watch should have seen by now.
    fn expected(&self, seen: &Seen) -> Vec<&Record> {
        let request = &seen.request;
        let start = if request.start_revision == 0 { seen.created_at + 1 } else { request.start_revision };
        let key = if request.key.is_empty() { Bytes::from_static(&[0]) } else { request.key.clone() };
        let range = KeyRange::new(key, request.range_end.clone());
        let wanted = |record: &&Record| {
            let filtered = request.filters.contains(&i32::from(record.tombstone));
            record.revision.main >= start && range.contains(&record.kv.key) && !filtered
        };
        self.history.iter().filter(wanted).collect()
    }

    fn check_seen(&self, seen: &Seen, all: bool) {
        let expected = self.expected(seen);
        assert!(seen.events.len() <= expected.len(), "{seen:?} saw more than {}", expected.len());
        for (event, record) in seen.events.iter().zip(&expected) {
            let kv = event.kv.as_ref().expect("every event has one");
            assert_eq!((&kv.key, kv.mod_revision), (&record.kv.key, record.revision.main), "{:?}", seen.request);
            assert_eq!(event.r#type, i32::from(record.tombstone));
            let put = KeyValue { key: kv.key.clone(), mod_revision: kv.mod_revision, ..KeyValue::default() };
            assert_eq!(*kv, if record.tombstone { put } else { record.kv.clone() });
            let previous = self.previous(&kv.key, kv.mod_revision).filter(|_| seen.request.prev_kv);
            if event.prev_kv.is_some() || kv.mod_revision > self.now.compact_revision() {
                assert_eq!(event.prev_kv.as_ref(), previous, "before {kv:?}");
            }
        }
        if !seen.in_fragment && !seen.canceled {
            let cut = expected.get(seen.events.len()).map(|next| next.revision.main);
            let last = seen.events.last().and_then(|event| event.kv.as_ref()).map(|kv| kv.mod_revision);
            assert!(cut.is_none() || cut != last, "a revision is cut in {:?}", seen.request);
        }
        if all && !seen.canceled {
            assert_eq!(seen.events.len(), expected.len(), "{:?} since {}", seen.request, seen.created_at);
        }
        if seen.compact_revision > 0 {
            let next = expected.get(seen.events.len()).map_or(i64::MAX, |record| record.revision.main);
            let start = seen.request.start_revision;
            let lost = next < seen.compact_revision || start < seen.compact_revision;
            assert!(lost, "{:?} was ended at {} and needed {next}", seen.request, seen.compact_revision);
        }
    }

    fn check(&self, all: bool) {
        for client in self.clients.values().chain(&self.gone) {
            client.watches.values().chain(&client.past).for_each(|seen| {
                self.check_seen(seen, all && !self.gone.iter().any(|gone| std::ptr::eq(gone, client)));
            });
        }
    }
}

impl Client {
    fn decode(&mut self) {
        let bytes = std::mem::take(&mut self.bytes);
        let mut rest = bytes.as_slice();
        while let Some(head) = rest.get(1..FRAME_HEAD_BYTES) {
            let length = u32::from_be_bytes(head.try_into().expect("four bytes")) as usize;
            let Some(message) = rest.get(FRAME_HEAD_BYTES..FRAME_HEAD_BYTES + length) else { break };
            self.take(WatchResponse::decode(message).expect("a response"));
            rest = &rest[FRAME_HEAD_BYTES + length..];
        }
        self.bytes = rest.to_vec();
    }

    fn take(&mut self, response: WatchResponse) {
        let header = response.header.expect("every response has a header");
        assert_eq!((header.cluster_id, header.member_id, header.raft_term), (1, 2, 3));
        let id = response.watch_id;
        if response.created {
            let Some(Ask::Create(request)) = self.requests.pop_front() else { panic!("nothing was asked") };
            if response.canceled {
                assert_eq!(id, -1);
                return self.failed.push(response.cancel_reason);
            }
            let (created_at, events) = (header.revision, Vec::new());
            let seen = Seen {
                request: *request,
                created_at,
                events,
                canceled: false,
                compact_revision: 0,
                in_fragment: false,
                bookmark: 0,
            };
            assert!(self.watches.insert(id, seen).is_none(), "id {id} was in use");
        } else if response.canceled {
            let compact_revision = response.compact_revision;
            assert_eq!(header.revision == 0, compact_revision > 0);
            let seen = self.watches.get_mut(&id).expect("a watch of ours");
            seen.canceled = true;
            if compact_revision > 0 {
                assert_eq!(seen.compact_revision, 0, "told once");
                seen.compact_revision = compact_revision;
            } else {
                self.past.extend(self.watches.remove(&id));
            }
        } else if response.events.is_empty() {
            self.progressed(id, header.revision);
        } else {
            let seen = self.watches.get_mut(&id).expect("created before its first event");
            assert!(!seen.canceled, "an event behind the end");
            assert!(!response.fragment || seen.request.fragment);
            assert!(
                response
                    .events
                    .iter()
                    .all(|event| event.kv.as_ref().is_some_and(|kv| kv.mod_revision <= header.revision))
            );
            let late = response.events.iter().flat_map(|event| &event.kv).find(|kv| kv.mod_revision <= seen.bookmark);
            assert!(late.is_none(), "{late:?} behind a notice of {}", seen.bookmark);
            seen.in_fragment = response.fragment;
            seen.events.extend(response.events);
        }
    }

    fn progressed(&mut self, id: i64, revision: i64) {
        self.progress.push(revision);
        // A watch may have the id -1 itself: then nothing tells its notices from those of the stream.
        if id != -1 {
            self.watches.get_mut(&id).expect("a watch of ours").bookmark = revision;
        } else if !self.watches.contains_key(&-1) {
            self.watches.values_mut().for_each(|seen| seen.bookmark = revision);
        }
    }
}

fn random_request(dice: &mut Dice, revision: i64) -> WatchCreateRequest {
    let (one, other) = (dice.below(6), dice.below(8));
    let range_end = match dice.below(5) {
        0 | 1 => Bytes::new(),
        2 => key(other),
        3 => Bytes::from_static(b"\0"),
        _ => Bytes::from_static(b"l"),
    };
    let start_revision = match dice.below(6) {
        0..3 => 0,
        3 | 4 => dice.between(1, revision),
        _ => revision + dice.between(0, 20),
    };
    let filters = if dice.one_in(4) { vec![i32::from(dice.one_in(2)), 9] } else { Vec::new() };
    WatchCreateRequest {
        key: if dice.one_in(9) { Bytes::new() } else { key(one) },
        range_end,
        start_revision,
        filters,
        prev_kv: dice.one_in(2),
        fragment: dice.one_in(3),
        progress_notify: dice.one_in(2),
        watch_id: if dice.one_in(5) { dice.between(-2, 9) } else { 0 },
    }
}

fn random_step(world: &mut World, dice: &mut Dice) {
    let streams: Vec<u64> = world.clients.keys().copied().collect();
    let stream = streams[dice.below(streams.len() as u64) as usize];
    match dice.below(100) {
        0..30 => {
            let size = if dice.one_in(3) { dice.below(60_000) } else { 3 } as usize;
            let value = Bytes::from(vec![b'v'; size]);
            let puts: Vec<_> = (0..=dice.below(2)).map(|at| (key(dice.below(3) * 2 + at), value.clone())).collect();
            let deletes = if dice.one_in(3) { vec![key(6 + dice.below(2)), key(dice.below(6))] } else { Vec::new() };
            let deletes: Vec<_> = deletes.into_iter().filter(|key| !puts.iter().any(|(put, _)| put == key)).collect();
            world.write(&puts, &deletes);
        }
        30..50 => world.tell(),
        50..52 => world.drop_untold(),
        52..60 => {
            let request = random_request(dice, world.now.revision());
            world.create(stream, request);
        }
        60..63 => world.ask(stream, Ask::Cancel(dice.between(-2, 9))),
        63..67 => world.ask(stream, Ask::Progress),
        67..69 => world.step(Event::Tick { stream }),
        69..81 => {
            world.work();
        }
        81..90 => {
            world.hub.flush();
            for _ in 0..dice.below(6) {
                world.read(stream);
            }
        }
        90..92 => {
            let revision = dice.between(1, world.now.revision());
            world.compact(revision);
        }
        92..94 => world.harness.finish_compactions(),
        94..96 => world.harness.flush(),
        96 => world.now.forgetful.set(dice.one_in(2)),
        97 if streams.len() < 5 => drop(world.open()),
        98 if streams.len() > 1 => world.close(stream),
        _ => world.hub.flush(),
    }
}

#[test]
fn whatever_happens_every_watcher_gets_what_the_list_says() {
    let (mut behind, mut ended) = (0, 0);
    for seed in 0..12 {
        let (mut world, mut dice) = (World::new(), Dice::new(seed));
        world.open();
        for at in 0..400 {
            random_step(&mut world, &mut dice);
            behind = behind.max(world.hub.counts().behind);
            if at % 50 == 49 {
                world.check(false);
            }
        }
        world.settle();
        world.check(true);
        let clients = world.clients.values();
        ended += clients.flat_map(|client| client.watches.values()).filter(|seen| seen.compact_revision > 0).count();
        assert_eq!(world.hub.counts().behind, 0, "seed {seed}");
        assert_eq!(world.all_bytes.load(std::sync::atomic::Ordering::Relaxed), 0, "nothing is left unread");
    }
    assert!(behind > 3 && ended > 3, "the runs must reach slow watchers ({behind}) and compacted ones ({ended})");
}

fn watch(key: &str, range_end: &str) -> WatchCreateRequest {
    WatchCreateRequest {
        key: Bytes::copy_from_slice(key.as_bytes()),
        range_end: Bytes::copy_from_slice(range_end.as_bytes()),
        ..WatchCreateRequest::default()
    }
}

fn put(world: &mut World, key: &str, value: &'static str) {
    world.write(&[(Bytes::copy_from_slice(key.as_bytes()), Bytes::from_static(value.as_bytes()))], &[]);
}

#[test]
fn a_hundred_thousand_watchers_cost_a_change_only_its_own() {
    let mut world = World::new();
    for at in 0..100 {
        let stream = world.open();
        for watcher in 0..500 {
            let name = format!("key/{:06}", at * 500 + watcher);
            world.hub.step(
                Event::Ask { stream, ask: Ask::Create(Box::new(watch(&name, ""))) },
                &world.now,
                &mut world.actions,
            );
            let end = format!("{name}~");
            world.hub.step(
                Event::Ask { stream, ask: Ask::Create(Box::new(watch(&name, &end))) },
                &world.now,
                &mut world.actions,
            );
        }
    }
    assert_eq!(world.hub.counts().watchers, 100_000);
    for _ in 0..10 {
        put(&mut world, "other", "v");
        world.tell();
    }
    assert_eq!((world.hub.counts().looked_at, world.hub.counts().events), (0, 0));
    put(&mut world, "key/031415", "v");
    world.tell();
    assert_eq!((world.hub.counts().looked_at, world.hub.counts().events), (2, 2));
}

#[test]
fn events_are_shared_by_all_who_are_behind_at_the_same_place() {
    let mut world = World::new();
    world.now.forgetful.set(true);
    (0..5000).for_each(|_| put(&mut world, "k", "v"));
    world.untold.clear();
    let stream = world.open();
    for _ in 0..50 {
        world.create(stream, WatchCreateRequest { start_revision: 2, ..watch("k", "") });
    }
    let mut views = 0;
    let mut slices = 0;
    loop {
        world.hub.flush();
        while world.read(stream) {}
        let Some(action) = (!world.actions.is_empty()).then(|| world.actions.remove(0)) else { break };
        let Action::Slice(job) = action else { panic!("nothing was dropped") };
        slices += 1;
        let slice = world.historian.slice(&job, || {
            views += 1;
            world.now.views.current()
        });
        world.step(Event::Slice(slice.unwrap()));
    }
    world.check(true);
    assert_eq!(slices, 50 * 5, "5000 revisions, 1000 a slice, for fifty watchers");
    assert_eq!(views, 5, "each slice is read once");
}

#[test]
fn a_reader_that_stands_still_costs_its_buffer_and_nobody_else_anything() {
    let mut world = World::new();
    let (slow, quick) = (world.open(), world.open());
    for stream in [slow, quick] {
        (0..20).for_each(|_| world.create(stream, WatchCreateRequest { prev_kv: true, ..watch("k", "\0") }));
    }
    for _ in 0..200 {
        world.write(&[(key(1), Bytes::from(vec![b'x'; 5000]))], &[]);
        world.tell();
        world.hub.flush();
        while world.read(quick) {}
        assert!(world.clients[&slow].outbox.queued() < 1_200_000, "bounded, whatever is written");
        while world.work() {}
    }
    assert_eq!(world.hub.counts().behind, 20, "all of the slow one's, none of the quick one's");
    world.settle();
    world.check(true);
}

#[test]
fn requests_fail_in_the_order_and_words_of_etcd() {
    let mut world = World::new();
    let stream = world.open();
    world.create(stream, WatchCreateRequest { watch_id: 1, ..watch("a", "") });
    let check = |world: &mut World, request: WatchCreateRequest, reason: &str| {
        world.create(stream, request);
        world.settle();
        assert_eq!(world.clients[&stream].failed.last().map(String::as_str), Some(reason));
    };
    let compacted = "etcdserver: mvcc: required revision has been compacted";
    check(&mut world, WatchCreateRequest { start_revision: -1, watch_id: 1, ..watch("b", "a") }, compacted);
    check(&mut world, WatchCreateRequest { watch_id: 1, ..watch("b", "a") }, "mvcc: watcher range is empty");
    let duplicate = "mvcc: duplicate watch ID provided on the WatchStream";
    check(&mut world, WatchCreateRequest { watch_id: 1, ..watch("a", "b") }, duplicate);
    // Automatic ids skip those in use and are never given again.
    world.create(stream, watch("a", ""));
    world.create(stream, watch("a", ""));
    world.settle();
    assert_eq!(world.clients[&stream].watches.keys().copied().collect::<Vec<_>>(), [0, 1, 2]);
    world.ask(stream, Ask::Cancel(2));
    world.ask(stream, Ask::Cancel(77));
    world.create(stream, watch("a", ""));
    world.create(stream, WatchCreateRequest { watch_id: 2, ..watch("a", "") });
    world.settle();
    assert_eq!(world.clients[&stream].watches.keys().copied().collect::<Vec<_>>(), [0, 1, 2, 3]);
}

#[test]
fn a_compacted_watch_keeps_its_id_and_silences_progress_until_it_is_canceled() {
    let mut world = World::new();
    (0..5).for_each(|_| put(&mut world, "k", "v"));
    world.compact(4);
    let stream = world.open();
    world.create(stream, WatchCreateRequest { start_revision: 3, watch_id: 7, ..watch("k", "") });
    world.create(stream, WatchCreateRequest { start_revision: 4, watch_id: 8, ..watch("k", "") });
    world.ask(stream, Ask::Progress);
    world.create(stream, WatchCreateRequest { watch_id: 7, ..watch("k", "") });
    world.settle();
    let client = &world.clients[&stream];
    assert_eq!((client.watches[&7].compact_revision, client.watches[&8].events.len()), (4, 3));
    assert_eq!((client.progress.len(), client.failed.len()), (0, 1));
    world.ask(stream, Ask::Cancel(7));
    world.ask(stream, Ask::Progress);
    world.settle();
    assert_eq!(world.clients[&stream].progress, [6]);
    world.check(true);
}

#[test]
fn progress_waits_until_the_hub_has_seen_what_readers_saw() {
    let mut world = World::new();
    let stream = world.open();
    world.ask(stream, Ask::Progress);
    world.create(stream, watch("k", ""));
    put(&mut world, "k", "v");
    world.ask(stream, Ask::Progress);
    world.hub.flush();
    while world.read(stream) {}
    assert_eq!(world.clients[&stream].progress, [] as [i64; 0], "none without a watch, none before the event");
    world.settle();
    let client = &world.clients[&stream];
    assert_eq!((client.progress.as_slice(), client.watches[&0].events.len()), (&[2][..], 1));
    // Not while one of them starts in the future.
    world.create(stream, WatchCreateRequest { start_revision: 4, ..watch("k", "") });
    world.ask(stream, Ask::Progress);
    put(&mut world, "k", "v");
    world.tell();
    world.ask(stream, Ask::Progress);
    put(&mut world, "k", "v");
    world.tell();
    world.ask(stream, Ask::Progress);
    world.settle();
    assert_eq!(world.clients[&stream].progress, [2, 4]);
    world.check(true);
}

#[test]
fn whoever_comes_between_a_change_and_word_of_it_misses_nothing() {
    let mut world = World::new();
    let stream = world.open();
    world.create(stream, watch("other", ""));
    // Nobody watched it when it was published; somebody does, from just there, when the hub learns that it concerned nobody.
    put(&mut world, "k", "v");
    world.create(stream, WatchCreateRequest { start_revision: 2, ..watch("k", "") });
    put(&mut world, "nobody", "v");
    world.settle();
    assert_eq!(world.clients[&stream].watches[&1].events.len(), 1);
    world.check(true);
    // What nobody watches moves the head, and a request for progress that waits for it is answered.
    put(&mut world, "nobody", "v");
    assert!(!world.hub.awaits_head());
    world.ask(stream, Ask::Progress);
    assert!(world.hub.awaits_head());
    world.settle();
    assert_eq!(world.clients[&stream].progress, [4]);
}

#[test]
fn a_tick_reports_to_those_who_want_it_and_were_told_nothing() {
    let mut world = World::new();
    let stream = world.open();
    world.create(stream, WatchCreateRequest { progress_notify: true, ..watch("a", "") });
    world.create(stream, WatchCreateRequest { progress_notify: true, ..watch("b", "") });
    world.create(stream, watch("c", ""));
    put(&mut world, "a", "v");
    world.tell();
    world.step(Event::Tick { stream });
    world.settle();
    assert_eq!(world.clients[&stream].progress, [2], "only the one without an event");
    world.step(Event::Tick { stream });
    world.settle();
    assert_eq!(world.clients[&stream].progress, [2, 2, 2]);
}

#[test]
fn fragments_are_filled_greedily_and_only_for_those_who_ask() {
    let mut world = World::new();
    let stream = world.open();
    world.create(stream, WatchCreateRequest { fragment: true, ..watch("k", "l") });
    world.create(stream, watch("k", "l"));
    let puts: Vec<_> = (0..5).map(|at| (key(at), Bytes::from(vec![b'x'; 15_000]))).collect();
    world.write(&puts, &[]);
    world.tell();
    world.hub.flush();
    let mut bytes = Vec::new();
    while let Some((chunk, _)) = world.clients[&stream].outbox.take(Waker::noop()) {
        bytes.extend_from_slice(&chunk);
    }
    let mut pieces = Vec::new();
    while !bytes.is_empty() {
        let end = FRAME_HEAD_BYTES + u32::from_be_bytes(bytes[1..5].try_into().unwrap()) as usize;
        let response = WatchResponse::decode(&bytes[FRAME_HEAD_BYTES..end]).unwrap();
        assert!(response.events.len() == 1 || end < FRAGMENT_BYTES || response.watch_id == 1);
        pieces.push((response.watch_id, response.events.len(), response.fragment));
        bytes.drain(..end);
    }
    assert_eq!(pieces[2..], [(0, 2, true), (0, 2, true), (0, 1, false), (1, 5, false)]);
}

#[test]
fn who_missed_nothing_survives_a_snapshot_beyond_the_compaction() {
    let mut world = World::new();
    let stream = world.open();
    world.create(stream, watch("k", ""));
    world.create(stream, WatchCreateRequest { start_revision: 30, ..watch("k", "") });
    (0..5).for_each(|_| put(&mut world, "k", "v"));
    world.settle();
    // The member was cut off; a snapshot brings it to revision 16, compacted at 12.
    (0..10).for_each(|_| put(&mut world, "k", "v"));
    world.now.forgetful.set(true);
    world.compact(12);
    world.drop_untold();
    world.settle();
    let client = &world.clients[&stream];
    assert_eq!((client.watches[&0].compact_revision, client.watches[&0].events.len()), (12, 5));
    assert_eq!(client.watches[&1].compact_revision, 0, "it starts beyond");
    // A compaction at the first missing revision or before loses nothing.
    let mut world = World::new();
    let stream = world.open();
    world.create(stream, watch("k", ""));
    (0..5).for_each(|_| put(&mut world, "k", "v"));
    world.settle();
    (0..10).for_each(|_| put(&mut world, "k", "v"));
    world.now.forgetful.set(true);
    world.compact(7);
    world.drop_untold();
    world.settle();
    assert_eq!(world.clients[&stream].watches[&0].events.len(), 15);
    world.check(true);
}

#[test]
fn a_stream_and_its_watchers_leave_nothing_behind() {
    let mut world = World::new();
    for round in 0..20 {
        let stream = world.open();
        for at in 0..50 {
            world.create(stream, watch(&format!("key/{at}"), if at % 2 == 0 { "l" } else { "" }));
        }
        put(&mut world, "key/7", "v");
        if round % 2 == 0 {
            world.settle();
        }
        world.close(stream);
        assert_eq!(world.hub.counts().watchers, 0);
    }
    world.settle();
}

//! The machine that every watcher of a member goes through: an event in, bytes into outboxes and jobs out.
//!
//! Invariants:
//! * `head` only grows, and every revision up to it was offered to all watchers in order, each once, or is known to be
//!   compacted, which ended those who missed something.
//! * A synced watcher has everything below `max(next, head + 1)` in its stream's outbox. One that is behind has
//!   everything below `next`.
//! * What goes into an outbox stays in order. A progress notice names `head` and goes the same way, so it cannot overtake
//!   an event (reliability.md B30).

use std::collections::BTreeMap;
use std::collections::HashMap;
use std::collections::VecDeque;
use std::sync::Arc;

use bytes::Bytes;

use crate::common::answer::Answer;
use crate::common::ids::ClusterId;
use crate::common::ids::MemberId;
use crate::proto::etcdserverpb::ResponseHeader;
use crate::proto::etcdserverpb::WatchCreateRequest;
use crate::proto::etcdserverpb::WatchResponse;
use crate::proto::etcdserverpb::watch_create_request::FilterType;
use crate::proto::mvccpb::KeyValue;
use crate::server::checkpoint::Record;
use crate::server::watch::catchup::Block;
use crate::server::watch::catchup::Found;
use crate::server::watch::catchup::Job;
use crate::server::watch::catchup::Replayed;
use crate::server::watch::catchup::Slice;
use crate::server::watch::catchup::Wants;
use crate::server::watch::event;
use crate::server::watch::event::SharedEvent;
use crate::server::watch::group;
use crate::server::watch::group::Interest;
use crate::server::watch::group::SharedGroup;
use crate::server::watch::group::Slot;
use crate::server::watch::stream::Outbox;

/// Revisions up to which a watcher that is behind is served at once from memory, without a job.
const NEAR_REVISIONS: i64 = 128;

/// Revisions of the hub's own gap that it takes from memory at once.
const NEAR_GAP: i64 = 4096;

/// Jobs at work: enough that the next one waits for no answer.
const JOBS_MAX: usize = 4;

/// Bytes of one response after which its events are shared between streams instead of copied.
const COPIED_BYTES_MAX: usize = 4 << 10;

/// Bytes of a stream's next chunk at which another one begins.
const CHUNK_BYTES: usize = 32 << 10;

/// Progress requests that wait for the hub to reach what readers saw. Full means an answer at once, for what it has
/// reached: as true, only older.
const PROGRESS_WAITS_MAX: usize = 4096;

/// Bytes of changes up to which a watcher is served at once from memory.
const NEAR_BYTES: usize = 256 << 10;

/// The id of responses that belong to no watch.
const NO_WATCH: i64 = -1;

/// Reasons of failed creates (server.md 4.2).
const DUPLICATE_ID: &str = "mvcc: duplicate watch ID provided on the WatchStream";
const EMPTY_RANGE: &str = "mvcc: watcher range is empty";

/// The store and the member as the hub sees them.
pub trait Present {
    /// The newest revision that reads see.
    fn revision(&self) -> i64;
    /// The lowest revision that can be read; -1 before the first compaction.
    fn compact_revision(&self) -> i64;
    fn term(&self) -> u64;
    /// The pair of the key at a revision; `None` also when that is compacted.
    fn pair_at(&self, key: &Bytes, revision: i64) -> Option<KeyValue>;
    /// All changes of `first` and later, with the revision they reach to, if they are few and in memory.
    fn recent(&self, first: i64, revisions_max: i64) -> Option<(Vec<Record>, i64)>;
}

/// A request of a stream.
#[derive(Debug)]
pub enum Ask {
    Create(Box<WatchCreateRequest>),
    Cancel(i64),
    Progress,
}

/// What happens to the hub.
pub enum Event {
    Open {
        stream: u64,
        outbox: Arc<Outbox>,
    },
    Close {
        stream: u64,
    },
    Ask {
        stream: u64,
        ask: Ask,
    },
    /// The interval of progress notices has passed for a stream.
    Tick {
        stream: u64,
    },
    /// A stream that had no room has some.
    Drained {
        stream: u64,
    },
    /// All changes of revisions `first..=last`, which readers can see.
    Records {
        first: i64,
        last: i64,
        records: Vec<Record>,
    },
    /// Revisions `first..=last`, which readers can see, changed nothing that was watched when apply looked.
    Passed {
        first: i64,
        last: i64,
    },
    /// Changes were dropped, or the store was replaced: what comes next is not what follows.
    Gap,
    Slice(Slice),
    Replayed(Replayed),
}

/// What is to be read from history for the hub.
#[derive(Debug)]
pub enum Action {
    Slice(Job),
    Replay { first: i64 },
}

/// What metrics show.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    pub streams: usize,
    pub watchers: usize,
    pub behind: usize,
    /// Events that were put into outboxes since the start.
    pub events: u64,
    /// Watchers that were looked at because a change concerned them.
    pub looked_at: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Synced,
    /// Reads history, or waits for its turn or for room.
    Behind,
    /// Ended by a compaction; its id stays taken until the client cancels it (server.md 4.2).
    Compacted,
}

struct Watcher {
    interest: Interest,
    watch_id: i64,
    /// The first revision it has not been given, as far as `head` does not say.
    next: i64,
    serial: u32,
    /// Its stream's slot.
    stream: u32,
    state: State,
    wants: Wants,
    fragment: bool,
    progress_notify: bool,
    /// Got something since the last tick.
    busy: bool,
    /// Started beyond what there was.
    future: bool,
}

struct Stream {
    outbox: Arc<Outbox>,
    /// Watchers by id.
    watchers: BTreeMap<i64, Slot>,
    next_id: i64,
    /// Bytes to go out with the next flush: whole chunks, then the one that fills.
    chunks: Vec<Bytes>,
    pending: Vec<u8>,
    /// What the outbox and the above hold, as of the last flush and since.
    load: usize,
    /// Requests answered since the last flush.
    answered: usize,
    /// In the list of streams to flush.
    touched: bool,
    /// Watchers that wait for room.
    starved: VecDeque<(Slot, u32)>,
}

/// All watchers of a member.
pub struct Hub {
    cluster: ClusterId,
    member: MemberId,
    /// Bytes of a response from which on it is cut for those who ask for it.
    fragment_bytes: usize,
    head: i64,
    /// Its own gap is being read from history.
    replaying: bool,
    group: SharedGroup,
    /// What readers saw when the last watcher had its place in the group. Of a revision up to that, apply may have asked the
    /// group before.
    entered_at: i64,
    watchers: Vec<Option<Watcher>>,
    free_watchers: Vec<Slot>,
    serial: u32,
    streams: Vec<Option<Stream>>,
    free_streams: Vec<u32>,
    by_id: HashMap<u64, u32>,
    touched: Vec<u32>,
    /// Those behind whose turn comes, one slice each.
    runnable: VecDeque<(Slot, u32)>,
    jobs: usize,
    /// Streams that asked for progress at a revision that the hub has not seen yet.
    progress_waits: Vec<(u64, i64)>,
    counts: Counts,
    /// Reused between revisions.
    matches: Vec<Slot>,
}

impl Hub {
    /// Responses of at least `fragment_bytes` are cut for watchers that ask for it.
    pub fn new(cluster: ClusterId, member: MemberId, fragment_bytes: usize) -> Hub {
        Hub {
            cluster,
            member,
            fragment_bytes,
            head: 0,
            replaying: false,
            group: SharedGroup::default(),
            entered_at: 0,
            watchers: Vec::new(),
            free_watchers: Vec::new(),
            serial: 0,
            streams: Vec::new(),
            free_streams: Vec::new(),
            by_id: HashMap::new(),
            touched: Vec::new(),
            runnable: VecDeque::new(),
            jobs: 0,
            progress_waits: Vec::new(),
            counts: Counts::default(),
            matches: Vec::new(),
        }
    }

    /// The same with another group, which others look into; before the first watcher.
    pub fn sharing(mut self, group: SharedGroup) -> Hub {
        self.group = group;
        self
    }

    /// Whether somebody waits for `head` to move.
    pub fn awaits_head(&self) -> bool {
        !self.progress_waits.is_empty()
    }

    pub fn counts(&self) -> Counts {
        self.counts
    }

    /// Takes one event. Bytes reach the outboxes with `flush`, or before.
    pub fn step(&mut self, event: Event, present: &dyn Present, actions: &mut Vec<Action>) {
        match event {
            Event::Open { stream, outbox } => self.open(stream, outbox),
            Event::Close { stream } => self.close(stream),
            Event::Ask { stream, ask } => self.ask(stream, ask, present),
            Event::Tick { stream } => self.tick(stream, present),
            Event::Drained { stream } => self.drained(stream),
            Event::Records { first, last, records } => self.records(first, last, &records, present, actions),
            Event::Passed { first, last } => self.passed(first, last, present, actions),
            Event::Gap => self.close_gap(present, actions),
            Event::Slice(slice) => self.slice(slice, present),
            Event::Replayed(replayed) => self.replayed(replayed, present, actions),
        }
        self.start_jobs(actions);
    }

    /// Hands everything that waits to the outboxes.
    pub fn flush(&mut self) {
        for slot in std::mem::take(&mut self.touched) {
            if let Some(stream) = self.streams[slot as usize].as_mut() {
                stream.flush();
            }
        }
    }

    // ---- streams

    fn open(&mut self, id: u64, outbox: Arc<Outbox>) {
        let stream = Stream {
            outbox,
            watchers: BTreeMap::new(),
            next_id: 0,
            chunks: Vec::new(),
            pending: Vec::new(),
            load: 0,
            answered: 0,
            touched: false,
            starved: VecDeque::new(),
        };
        let slot = match self.free_streams.pop() {
            Some(slot) => {
                self.streams[slot as usize] = Some(stream);
                slot
            }
            None => {
                self.streams.push(Some(stream));
                u32::try_from(self.streams.len() - 1).expect("streams are fewer than connections times 2^32")
            }
        };
        self.by_id.insert(id, slot);
        self.counts.streams += 1;
    }

    fn close(&mut self, id: u64) {
        let Some(slot) = self.by_id.remove(&id) else { return };
        let Some(stream) = self.streams[slot as usize].take() else { return };
        for watcher in stream.watchers.into_values() {
            self.forget(watcher);
        }
        self.touched.retain(|touched| *touched != slot);
        self.progress_waits.retain(|(waiting, _)| *waiting != id);
        self.free_streams.push(slot);
        self.counts.streams -= 1;
    }

    /// Takes a watcher out of the table. Its stream forgets it by itself.
    fn forget(&mut self, slot: Slot) -> Option<Watcher> {
        let watcher = self.watchers[slot as usize].take()?;
        if watcher.state != State::Compacted {
            group::write(&self.group).remove(&watcher.interest, slot);
            self.counts.watchers -= 1;
        }
        self.counts.behind -= usize::from(watcher.state == State::Behind);
        self.free_watchers.push(slot);
        Some(watcher)
    }

    fn slot_of(&self, id: u64) -> Option<u32> {
        self.by_id.get(&id).copied()
    }

    fn stream(&mut self, slot: u32) -> &mut Stream {
        let stream = self.streams[slot as usize].as_mut().expect("its slot is taken from the map or from a watcher");
        if !stream.touched {
            stream.touched = true;
            stream.load = stream.outbox.queued();
            self.touched.push(slot);
        }
        stream
    }

    fn header(&self, revision: i64, present: &dyn Present) -> ResponseHeader {
        let (cluster_id, member_id) = (self.cluster.0, self.member.0);
        ResponseHeader { cluster_id, member_id, revision, raft_term: present.term() }
    }

    /// Puts a response without events behind everything that its stream was given before.
    fn answer(&mut self, stream: u32, revision: i64, response: WatchResponse, present: &dyn Present) {
        let header = Some(self.header(revision, present));
        let stream = self.stream(stream);
        let before = stream.pending.len();
        event::write_response(&WatchResponse { header, ..response }, &mut stream.pending);
        stream.load += stream.pending.len() - before;
        stream.cut();
    }

    // ---- requests

    fn ask(&mut self, id: u64, ask: Ask, present: &dyn Present) {
        let Some(slot) = self.slot_of(id) else { return };
        self.stream(slot).answered += 1;
        match ask {
            Ask::Create(request) => self.create(slot, &request, present),
            Ask::Cancel(watch_id) => self.cancel(slot, watch_id, present),
            Ask::Progress => self.progress(id, slot, present),
        }
    }

    fn create(&mut self, stream: u32, request: &WatchCreateRequest, present: &dyn Present) {
        // Read behind the moment at which apply was told that somebody watches: no change falls between.
        let revision = present.revision();
        if self.counts.watchers == 0 {
            self.head = self.head.max(revision);
        }
        let (interest, watch_id) = match self.judge(stream, request) {
            Ok(judged) => judged,
            Err(reason) => {
                let failed = WatchResponse {
                    watch_id: NO_WATCH,
                    created: true,
                    canceled: true,
                    cancel_reason: reason,
                    ..WatchResponse::default()
                };
                return self.answer(stream, revision, failed, present);
            }
        };
        self.answer(stream, revision, WatchResponse { watch_id, created: true, ..WatchResponse::default() }, present);
        let start = request.start_revision;
        let next = if start == 0 { revision + 1 } else { start };
        let filters = |filter: FilterType| request.filters.contains(&i32::from(filter));
        self.serial = self.serial.wrapping_add(1);
        let watcher = Watcher {
            interest,
            watch_id,
            next,
            serial: self.serial,
            stream,
            state: State::Synced,
            wants: Wants {
                previous: request.prev_kv,
                no_puts: filters(FilterType::Noput),
                no_deletes: filters(FilterType::Nodelete),
            },
            fragment: request.fragment,
            progress_notify: request.progress_notify,
            busy: false,
            future: start > revision,
        };
        self.enter(watcher, present);
    }

    /// What a create request asks for, or why it fails; in etcd's order (server.md 4.2).
    fn judge(&mut self, stream: u32, request: &WatchCreateRequest) -> Result<(Interest, i64), String> {
        if request.start_revision < 0 {
            return Err(Answer::Compacted.to_string());
        }
        let interest = Interest::new(&request.key, &request.range_end).ok_or(EMPTY_RANGE)?;
        let stream = self.stream(stream);
        if request.watch_id != 0 {
            let taken = stream.watchers.contains_key(&request.watch_id);
            return if taken { Err(DUPLICATE_ID.to_owned()) } else { Ok((interest, request.watch_id)) };
        }
        while stream.watchers.contains_key(&stream.next_id) {
            stream.next_id = stream.next_id.wrapping_add(1);
        }
        let watch_id = stream.next_id;
        stream.next_id = stream.next_id.wrapping_add(1);
        Ok((interest, watch_id))
    }

    /// Puts a new watcher into the table and finds out where it stands.
    fn enter(&mut self, watcher: Watcher, present: &dyn Present) {
        let (stream, watch_id, serial, next) = (watcher.stream, watcher.watch_id, watcher.serial, watcher.next);
        let slot = match self.free_watchers.pop() {
            Some(slot) => slot,
            None => {
                self.watchers.push(None);
                Slot::try_from(self.watchers.len() - 1).expect("memory ends before 2^32 watchers")
            }
        };
        group::write(&self.group).add(&watcher.interest, slot);
        self.entered_at = present.revision();
        self.watchers[slot as usize] = Some(watcher);
        self.stream(stream).watchers.insert(watch_id, slot);
        self.counts.watchers += 1;
        if next > self.head {
            return;
        }
        self.set_behind(slot);
        let compact_revision = present.compact_revision();
        if next < compact_revision {
            self.end_compacted(slot, compact_revision, present);
        } else if !self.catch_up_near(slot, present) {
            self.runnable.push_back((slot, serial));
        }
    }

    fn cancel(&mut self, stream: u32, watch_id: i64, present: &dyn Present) {
        let Some(slot) = self.stream(stream).watchers.remove(&watch_id) else { return };
        self.forget(slot);
        let canceled = WatchResponse { watch_id, canceled: true, ..WatchResponse::default() };
        self.answer(stream, present.revision(), canceled, present);
    }

    // ---- progress

    /// Answers at a revision that is not before what readers saw when it was asked.
    fn progress(&mut self, id: u64, stream: u32, present: &dyn Present) {
        let revision = present.revision();
        if self.counts.watchers > 0 && self.head < revision && self.progress_waits.len() < PROGRESS_WAITS_MAX {
            self.progress_waits.push((id, revision));
        } else {
            self.report_progress(stream, present);
        }
    }

    fn report_progress(&mut self, stream: u32, present: &dyn Present) {
        let head = self.head;
        let all = self.streams[stream as usize].as_ref().map(|stream| &stream.watchers);
        let synced = |slot: &Slot| self.watchers[*slot as usize].as_ref().is_some_and(|watcher| watcher.is_at(head));
        if all.is_some_and(|all| !all.is_empty() && all.values().all(synced)) {
            self.answer(stream, head, WatchResponse { watch_id: NO_WATCH, ..WatchResponse::default() }, present);
        }
    }

    fn tick(&mut self, id: u64, present: &dyn Present) {
        let Some(slot) = self.slot_of(id) else { return };
        let head = self.head;
        let stream = self.stream(slot);
        let has_room = stream.outbox.has_room(stream.load);
        let watchers: Vec<(i64, Slot)> = stream.watchers.iter().map(|(id, slot)| (*id, *slot)).collect();
        for (watch_id, watcher) in watchers {
            let Some(watcher) = self.watchers[watcher as usize].as_mut() else { continue };
            let was_busy = std::mem::take(&mut watcher.busy);
            if watcher.progress_notify && !was_busy && watcher.is_at(head) && has_room {
                self.answer(slot, head, WatchResponse { watch_id, ..WatchResponse::default() }, present);
            }
        }
    }

    // ---- new revisions

    fn records(&mut self, first: i64, last: i64, records: &[Record], present: &dyn Present, actions: &mut Vec<Action>) {
        if self.counts.watchers == 0 {
            self.head = self.head.max(last);
        } else if first > self.head + 1 {
            return self.close_gap(present, actions);
        } else {
            self.offer(records, last, present);
        }
        self.head_moved(present);
    }

    /// Of changes that concern nobody only the revision counts. Unless a watcher took its place behind apply's look: then
    /// it may have missed one.
    fn passed(&mut self, first: i64, last: i64, present: &dyn Present, actions: &mut Vec<Action>) {
        if self.counts.watchers > 0 && (first > self.head + 1 || first <= self.entered_at && last > self.head) {
            return self.close_gap(present, actions);
        }
        self.head = self.head.max(last);
        self.head_moved(present);
    }

    /// Gets what is missing between `head` and now: from memory, or by a job.
    fn close_gap(&mut self, present: &dyn Present, actions: &mut Vec<Action>) {
        if self.counts.watchers == 0 {
            return;
        }
        if let Some((records, last)) = present.recent(self.head + 1, NEAR_GAP) {
            self.offer(&records, last, present);
            self.head_moved(present);
        } else if !self.replaying {
            self.replaying = true;
            actions.push(Action::Replay { first: self.head + 1 });
        }
    }

    fn replayed(&mut self, replayed: Replayed, present: &dyn Present, actions: &mut Vec<Action>) {
        self.replaying = false;
        let Replayed { records, upto, compact_revision } = replayed;
        if compact_revision > self.head + 1 {
            self.lost(compact_revision, present);
            self.head = compact_revision - 1;
        }
        self.offer(&records, upto, present);
        self.head_moved(present);
        if self.head < present.revision() {
            self.close_gap(present, actions);
        }
    }

    /// Changes below `compact_revision` will never be offered: ends every synced watcher that may have missed one.
    fn lost(&mut self, compact_revision: i64, present: &dyn Present) {
        let missed = |watcher: &Watcher| watcher.state == State::Synced && watcher.next < compact_revision;
        let ended = (0..).zip(&self.watchers).filter(|(_, watcher)| watcher.as_ref().is_some_and(missed));
        for slot in ended.map(|(slot, _)| slot).collect::<Vec<Slot>>() {
            self.end_compacted(slot, compact_revision, present);
        }
    }

    fn head_moved(&mut self, present: &dyn Present) {
        let head = self.head;
        if self.progress_waits.is_empty() {
            return;
        }
        let (due, waiting) = std::mem::take(&mut self.progress_waits).into_iter().partition(|(_, at)| *at <= head);
        self.progress_waits = waiting;
        for (id, _) in due {
            if let Some(slot) = self.slot_of(id) {
                self.report_progress(slot, present);
            }
        }
    }

    /// Offers revisions behind `head` up to `last` to all watchers.
    fn offer(&mut self, records: &[Record], last: i64, present: &dyn Present) {
        let seen = records.partition_point(|record| record.revision.main <= self.head);
        for revision in records[seen..].chunk_by(|one, next| one.revision.main == next.revision.main) {
            let main = revision[0].revision.main;
            // The usual case where 50,000 watch what seldom changes: then a put costs them a look-up and nothing else.
            if !revision.iter().any(|record| group::read(&self.group).concerns(&record.kv.key)) {
                self.head = self.head.max(main);
                continue;
            }
            let mut events: Vec<SharedEvent> = revision.iter().map(SharedEvent::new).collect();
            let header = event::header_field(&self.header(main, present));
            if let [only] = &mut events[..] {
                self.offer_one(only, &header, present);
            } else {
                self.offer_many(&mut events, &header, present);
            }
            self.head = self.head.max(main);
        }
        self.head = self.head.max(last);
    }

    fn matches(&mut self, key: &[u8]) -> Vec<Slot> {
        let mut matches = std::mem::take(&mut self.matches);
        matches.clear();
        group::read(&self.group).matching(key, &mut |slots| matches.extend_from_slice(slots));
        matches
    }

    /// A revision with one change: the usual case.
    fn offer_one(&mut self, event: &mut SharedEvent, header: &[u8], present: &dyn Present) {
        let matches = self.matches(&event.record().kv.key);
        let main = event.record().revision.main;
        for slot in &matches {
            let Some(wants) = self.ready(*slot, main) else { continue };
            if wants.passes(event.record()) {
                let bytes = event.bytes(wants.previous, |record| previous(record, present));
                self.deliver(*slot, header, &[bytes]);
            }
        }
        self.matches = matches;
    }

    /// A revision with several changes: each watcher gets all of its own in one response.
    fn offer_many(&mut self, events: &mut [SharedEvent], header: &[u8], present: &dyn Present) {
        let mut matches: Vec<(Slot, usize)> = Vec::new();
        for (at, event) in events.iter().enumerate() {
            group::read(&self.group).matching(&event.record().kv.key, &mut |slots| {
                matches.extend(slots.iter().map(|slot| (*slot, at)));
            });
        }
        matches.sort_unstable();
        let main = events[0].record().revision.main;
        for of_one in matches.chunk_by(|(one, _), (next, _)| one == next) {
            let slot = of_one[0].0;
            let Some(wants) = self.ready(slot, main) else { continue };
            let wanted = of_one.iter().filter(|(_, at)| wants.passes(events[*at].record())).map(|(_, at)| *at);
            let wanted: Vec<usize> = wanted.collect();
            let bytes = wanted.into_iter();
            let bytes: Vec<Bytes> =
                bytes.map(|at| events[at].bytes(wants.previous, |record| previous(record, present))).collect();
            if !bytes.is_empty() {
                self.deliver(slot, header, &bytes);
            }
        }
    }

    /// What a synced watcher wants of this revision. `None` if nothing: it starts later, is behind already, or falls
    /// behind now because its stream has no room.
    fn ready(&mut self, slot: Slot, revision: i64) -> Option<Wants> {
        self.counts.looked_at += 1;
        let watcher = self.watchers[slot as usize].as_ref().expect("a member of the group is in the table");
        if watcher.state != State::Synced || revision < watcher.next {
            return None;
        }
        let (wants, stream) = (watcher.wants, watcher.stream);
        let stream = self.stream(stream);
        if stream.outbox.has_room(stream.load) {
            return Some(wants);
        }
        self.set_behind(slot);
        let watcher = self.watchers[slot as usize].as_mut().expect("it was there");
        watcher.next = revision;
        self.runnable.push_back((slot, watcher.serial));
        None
    }

    fn deliver(&mut self, slot: Slot, header: &[u8], events: &[Bytes]) {
        let watcher = self.watchers[slot as usize].as_mut().expect("the caller has just looked at it");
        watcher.busy = true;
        let (stream, watch_id, fragment) = (watcher.stream, watcher.watch_id, watcher.fragment);
        self.counts.events += events.len() as u64;
        let limit = if fragment { self.fragment_bytes } else { event::RESPONSE_BYTES_MAX };
        self.stream(stream).respond(header, watch_id, events, limit);
    }

    // ---- those behind

    fn set_behind(&mut self, slot: Slot) {
        if let Some(watcher) = self.watchers[slot as usize].as_mut() {
            watcher.state = State::Behind;
            self.counts.behind += 1;
        }
    }

    /// Tells a watcher that history it needs is gone. Its header says no revision, and it has no reason (server.md 4.2).
    fn end_compacted(&mut self, slot: Slot, compact_revision: i64, present: &dyn Present) {
        let Some(watcher) = self.watchers[slot as usize].as_mut() else { return };
        let (stream, watch_id) = (watcher.stream, watcher.watch_id);
        self.counts.behind -= usize::from(watcher.state == State::Behind);
        watcher.state = State::Compacted;
        group::write(&self.group).remove(&watcher.interest, slot);
        self.counts.watchers -= 1;
        let ended = WatchResponse { watch_id, canceled: true, compact_revision, ..WatchResponse::default() };
        self.answer(stream, 0, ended, present);
    }

    /// Serves a watcher that misses little from memory. True if it is synced now.
    fn catch_up_near(&mut self, slot: Slot, present: &dyn Present) -> bool {
        let Some(watcher) = self.watchers[slot as usize].as_ref() else { return true };
        let (next, wants, stream) = (watcher.next, watcher.wants, watcher.stream);
        if self.head - next >= NEAR_REVISIONS {
            return false;
        }
        let stream = self.stream(stream);
        if !stream.outbox.has_room(stream.load) {
            return false;
        }
        let Some((records, upto)) = present.recent(next, NEAR_REVISIONS) else { return false };
        if records.iter().map(|record| record.kv.key.len() + record.kv.value.len()).sum::<usize>() > NEAR_BYTES {
            return false;
        }
        let concerned =
            records.iter().filter(|record| watcher_of(&self.watchers, slot).interest.contains(&record.kv.key));
        let concerned = concerned
            .filter(|record| wants.passes(record))
            .map(|record| SharedEvent::new(record).bytes(wants.previous, |record| previous(record, present)));
        let events: Vec<Bytes> = concerned.collect();
        if !events.is_empty() {
            let header = event::header_field(&self.header(upto, present));
            self.deliver(slot, &header, &events);
        }
        self.caught_up(slot, upto)
    }

    /// A watcher was given everything up to a revision. True if it is synced now.
    fn caught_up(&mut self, slot: Slot, upto: i64) -> bool {
        let Some(watcher) = self.watchers[slot as usize].as_mut() else { return true };
        watcher.next = watcher.next.max(upto + 1);
        if watcher.next <= self.head {
            return false;
        }
        watcher.state = State::Synced;
        self.counts.behind -= 1;
        true
    }

    /// Starts jobs for those whose turn it is and whose stream has room.
    fn start_jobs(&mut self, actions: &mut Vec<Action>) {
        while self.jobs < JOBS_MAX
            && let Some((slot, serial)) = self.runnable.pop_front()
        {
            let Some(watcher) = self.behind(slot, serial) else { continue };
            let (stream, interest) = (watcher.stream, watcher.interest.clone());
            let job = Job { slot, serial, interest, from: watcher.next, wants: watcher.wants };
            if self.park(stream, slot, serial) {
                continue;
            }
            self.jobs += 1;
            actions.push(Action::Slice(job));
        }
    }

    /// The watcher, if it is still the same and still behind.
    fn behind(&self, slot: Slot, serial: u32) -> Option<&Watcher> {
        let watcher = self.watchers.get(slot as usize)?.as_ref()?;
        (watcher.serial == serial && watcher.state == State::Behind).then_some(watcher)
    }

    /// Lets a watcher wait for room if its stream has none.
    fn park(&mut self, stream: u32, slot: Slot, serial: u32) -> bool {
        let stream = self.stream(stream);
        if stream.outbox.has_room(stream.load) {
            return false;
        }
        // What the reader took meanwhile counts.
        stream.hand_over();
        if stream.outbox.has_room(stream.load) || !stream.outbox.starve() {
            return false;
        }
        stream.starved.push_back((slot, serial));
        true
    }

    fn drained(&mut self, id: u64) {
        if let Some(slot) = self.slot_of(id) {
            let stream = self.stream(slot);
            stream.load = stream.outbox.queued() + stream.waiting();
            let starved = std::mem::take(&mut stream.starved);
            self.runnable.extend(starved);
        }
    }

    fn slice(&mut self, slice: Slice, present: &dyn Present) {
        self.jobs -= 1;
        let Slice { slot, serial, found } = slice;
        if self.behind(slot, serial).is_none() {
            return;
        }
        match found {
            Found::Compacted(revision) => self.end_compacted(slot, revision, present),
            Found::Events(block) => {
                self.deliver_block(slot, &block, present);
                if !self.caught_up(slot, block.upto) && !self.catch_up_near(slot, present) {
                    self.runnable.push_back((slot, serial));
                }
            }
        }
    }

    fn deliver_block(&mut self, slot: Slot, block: &Block, present: &dyn Present) {
        if block.ends.is_empty() {
            return;
        }
        let header = event::header_field(&self.header(block.head, present));
        let fragment = watcher_of(&self.watchers, slot).fragment;
        let is_cut = fragment && block.bytes.len() + header.len() + 64 >= self.fragment_bytes
            || block.bytes.len() > event::RESPONSE_BYTES_MAX / 2;
        let counted = self.counts.events + block.ends.len() as u64;
        match is_cut {
            true => self.deliver(slot, &header, &block.events()),
            false => self.deliver(slot, &header, std::slice::from_ref(&block.bytes)),
        }
        self.counts.events = counted;
    }

    #[cfg(test)]
    pub fn check(&self) {
        let alive = || self.watchers.iter().flatten();
        assert_eq!(self.counts.behind, alive().filter(|watcher| watcher.state == State::Behind).count());
        assert_eq!(self.counts.watchers, alive().filter(|watcher| watcher.state != State::Compacted).count());
        assert_eq!(self.counts.streams, self.by_id.len());
        let listed: usize = self.streams.iter().flatten().map(|stream| stream.watchers.len()).sum();
        assert_eq!(listed, alive().count());
        assert_eq!(group::read(&self.group).is_empty(), self.counts.watchers == 0);
    }
}

impl Watcher {
    /// Whether everything up to `head` was given to it and its start is not beyond.
    fn is_at(&self, head: i64) -> bool {
        self.state == State::Synced && !(self.future && head < self.next)
    }
}

impl Stream {
    /// Appends a response with these events, in pieces if it is not below `limit` (server.md 4.6).
    fn respond(&mut self, header: &[u8], watch_id: i64, events: &[Bytes], limit: usize) {
        let bytes: usize = events.iter().map(Bytes::len).sum();
        if events.len() < 2 || event::head_bytes(header, watch_id, false) + bytes < limit {
            return self.append(header, watch_id, false, events, bytes);
        }
        let head = event::head_bytes(header, watch_id, true);
        let mut rest = events;
        while !rest.is_empty() {
            let (mut taken, mut bytes) = (1, rest[0].len());
            while taken < rest.len() && head + bytes + rest[taken].len() < limit {
                bytes += rest[taken].len();
                taken += 1;
            }
            let (piece, behind) = rest.split_at(taken);
            self.append(header, watch_id, !behind.is_empty(), piece, bytes);
            rest = behind;
        }
    }

    fn append(&mut self, header: &[u8], watch_id: i64, fragment: bool, events: &[Bytes], bytes: usize) {
        let before = self.pending.len();
        event::write_head(header, watch_id, fragment, bytes, &mut self.pending);
        self.load += self.pending.len() - before + bytes;
        for event in events {
            if event.len() <= COPIED_BYTES_MAX {
                self.pending.extend_from_slice(event);
            } else {
                self.chunks.push(Bytes::from(std::mem::take(&mut self.pending)));
                self.chunks.push(event.clone());
            }
        }
        self.cut();
    }

    fn cut(&mut self) {
        if self.pending.len() >= CHUNK_BYTES {
            self.chunks.push(Bytes::from(std::mem::take(&mut self.pending)));
        }
    }

    /// Bytes that the outbox has not got yet.
    fn waiting(&self) -> usize {
        self.chunks.iter().map(Bytes::len).sum::<usize>() + self.pending.len()
    }

    /// Hands over what waits.
    fn hand_over(&mut self) {
        if !self.pending.is_empty() {
            self.chunks.push(Bytes::from(std::mem::take(&mut self.pending)));
        }
        self.load = self.outbox.put(&mut self.chunks, std::mem::take(&mut self.answered));
    }

    fn flush(&mut self) {
        self.hand_over();
        self.touched = false;
        if self.chunks.capacity() > 16 {
            self.chunks = Vec::new();
        }
    }
}

fn watcher_of(watchers: &[Option<Watcher>], slot: Slot) -> &Watcher {
    watchers[slot as usize].as_ref().expect("the caller has just looked at it")
}

/// The pair that a change replaced, as far as it can still be read.
fn previous(record: &Record, present: &dyn Present) -> Option<KeyValue> {
    present.pair_at(&record.kv.key, record.revision.main - 1)
}

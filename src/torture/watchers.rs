//! Watchers that record what they are told: on one member or on all in turn, from now, from where the last stream ended,
//! or from further back; closed and opened again all the time, and whenever their member goes away.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use prost::Message;
use tokio::sync::mpsc;
use tokio::time::Instant;

use crate::client::Client;
use crate::client::Config;
use crate::disk::sim::Dice;
use crate::proto::etcdserverpb::WatchCreateRequest;
use crate::proto::etcdserverpb::WatchProgressRequest;
use crate::proto::etcdserverpb::WatchRequest;
use crate::proto::etcdserverpb::WatchResponse;
use crate::proto::etcdserverpb::watch_create_request::FilterType;
use crate::proto::etcdserverpb::watch_request::RequestUnion;
use crate::torture::checker::watching::Told;
use crate::torture::checker::watching::Watch;
use crate::torture::clients::Record;
use crate::torture::values;

/// A stream that was not opened by then is given up.
const OPEN_MAX: Duration = Duration::from_secs(2);
/// Milliseconds that a stream is kept.
const LIVES: [u64; 4] = [300, 1_000, 3_000, 10_000];
/// Milliseconds between two requests for a notice of progress.
const ASK_EVERY: [u64; 3] = [20, 150, 700];
/// The same while nothing is written any more.
const ASK_AT_THE_END: Duration = Duration::from_millis(50);
/// Before a member that could not be watched is tried again.
const PAUSE: Duration = Duration::from_millis(50);
const WATCHES_MAX: u64 = 3;
/// The id of responses that are for all watches of a stream.
const ALL: i64 = -1;

/// One watcher of a run.
pub struct Watcher {
    /// The only one for a watcher that is bound to a member.
    pub endpoints: Vec<String>,
    pub keys: u16,
    pub dice: Dice,
    pub record: Arc<Record>,
    /// The first revision that it has not been told of; 0 before it was told of any.
    next: i64,
}

/// A stream and its watches.
struct Stream {
    watches: Vec<Watch>,
    /// By position in `watches`, as they are created.
    ids: Vec<i64>,
    /// Of each watch: the first revision that it has not been told of.
    next: Vec<i64>,
}

impl Watcher {
    pub fn new(endpoints: Vec<String>, keys: u16, dice: Dice, record: Arc<Record>) -> Watcher {
        Watcher { endpoints, keys, dice, record, next: 0 }
    }

    /// Until the run's last revision was told.
    pub async fn run(mut self) {
        while !self.record.is_abandoned() && self.record.end().is_none_or(|last| self.next <= last) {
            let endpoint = self.dice.below(self.endpoints.len() as u64);
            let endpoint = self.endpoints[usize::try_from(endpoint).unwrap_or_default()].clone();
            let stream = self.stream(&endpoint).await;
            // The first watch is the one that goes on where the last one ended.
            self.next = self.next.max(stream.next.first().copied().unwrap_or_default());
            self.record.watched(stream.watches.into_iter().filter(|watch| !watch.told.is_empty()));
            tokio::time::sleep(PAUSE).await;
        }
    }

    /// Opens a stream and reads it to its end, or to ours.
    async fn stream(&mut self, endpoint: &str) -> Stream {
        let connection = self.record.connection();
        let mut requests = vec![self.everything()];
        requests.extend((0..self.dice.below(WATCHES_MAX)).map(|_| self.some()));
        let (asking, asked) = mpsc::unbounded_channel();
        let ask = |union| asking.send(WatchRequest { request_union: Some(union) }).is_ok();
        for request in &requests {
            ask(RequestUnion::CreateRequest(request.clone()));
        }
        if self.dice.chance(50) {
            // Before the past was told.
            ask(RequestUnion::ProgressRequest(WatchProgressRequest {}));
        }
        let next = requests.iter().map(|request| request.start_revision).collect();
        let watches = requests.into_iter().map(|request| Watch { connection, request, told: Vec::new() });
        let mut stream = Stream { watches: watches.collect(), ids: Vec::new(), next };
        let Ok(client) = Client::open(Config::new(vec![endpoint.to_owned()])) else { return stream };
        let Ok(Ok(mut responses)) = tokio::time::timeout(OPEN_MAX, client.watch_stream(asked)).await else {
            return stream;
        };
        let life = Instant::now() + Duration::from_millis(self.dice.pick(&LIVES));
        let every = Duration::from_millis(self.dice.pick(&ASK_EVERY));
        let mut ask_at = Instant::now() + every;
        loop {
            let last = self.record.end();
            if self.record.is_abandoned()
                || last.is_some_and(|last| stream.next[0] > last)
                || (last.is_none() && Instant::now() > life)
            {
                return stream;
            }
            let response = tokio::select! {
                response = responses.message() => response,
                () = tokio::time::sleep_until(ask_at) => {
                    ask_at = Instant::now() + if last.is_some() { ASK_AT_THE_END } else { every };
                    if !ask(RequestUnion::ProgressRequest(WatchProgressRequest {})) {
                        return stream;
                    }
                    continue;
                }
            };
            let Ok(Some(response)) = response else { return stream };
            if !stream.take(self.record.now(), response) {
                return stream;
            }
        }
    }

    /// All keys, from where the last stream ended.
    fn everything(&mut self) -> WatchCreateRequest {
        WatchCreateRequest {
            key: Bytes::from_static(b"k"),
            range_end: Bytes::from_static(b"l"),
            start_revision: self.next,
            prev_kv: self.dice.chance(50),
            progress_notify: self.dice.chance(30),
            fragment: self.dice.chance(50),
            ..WatchCreateRequest::default()
        }
    }

    /// Some keys, from anywhere.
    fn some(&mut self) -> WatchCreateRequest {
        let key = format!("k{:02}", self.dice.below(u64::from(self.keys)));
        let (one, some) = (Bytes::new(), Bytes::from_static(b"l"));
        let newest = self.record.newest();
        let back = |dice: &mut Dice, most| i64::try_from(dice.below(most)).unwrap_or_default();
        let start_revision = match self.dice.below(4) {
            0 => 0,
            1 => (newest - back(&mut self.dice, 400)).max(1),
            2 => (newest - back(&mut self.dice, 20)).max(1),
            _ => newest + back(&mut self.dice, 10),
        };
        let filters = [FilterType::Noput, FilterType::Nodelete].map(|filter| filter as i32);
        WatchCreateRequest {
            key: key.into(),
            range_end: if self.dice.chance(50) { one } else { some },
            start_revision,
            prev_kv: self.dice.chance(50),
            filters: if self.dice.chance(20) { vec![self.dice.pick(&filters)] } else { Vec::new() },
            ..WatchCreateRequest::default()
        }
    }
}

impl Stream {
    /// Notes a response. False when nothing more can be learned from the stream.
    fn take(&mut self, time: u64, mut response: WatchResponse) -> bool {
        values::shorten_events(&mut response);
        let encoded: Bytes = response.encode_to_vec().into();
        let told = || Told { time, response: encoded.clone() };
        if response.created {
            // Answers to creations come in their order.
            let at = self.ids.len();
            self.ids.push(response.watch_id);
            let Some(watch) = self.watches.get_mut(at) else { return false };
            watch.told.push(told());
            return self.advance(at, &response);
        }
        let of_all = response.watch_id == ALL && !self.ids.contains(&ALL);
        let meant = (0..self.ids.len()).filter(|at| of_all || self.ids[*at] == response.watch_id);
        for at in meant.collect::<Vec<_>>() {
            self.watches[at].told.push(told());
            if !self.advance(at, &response) {
                return false;
            }
        }
        true
    }

    fn advance(&mut self, at: usize, response: &WatchResponse) -> bool {
        let revision = response.header.as_ref().map_or(0, |header| header.revision);
        let next = &mut self.next[at];
        if response.canceled {
            *next = (*next).max(response.compact_revision);
            return false;
        }
        if response.created {
            if *next == 0 {
                *next = revision + 1;
            }
        } else if let Some(kv) = response.events.last().and_then(|event| event.kv.as_ref()) {
            // The rest of a revision in pieces is asked for again.
            *next = (*next).max(kv.mod_revision + i64::from(!response.fragment));
        } else {
            *next = (*next).max(revision + 1);
        }
        true
    }
}

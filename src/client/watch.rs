//! Watches that outlive their member: one stream for all of them, opened again on another member when it breaks.
//!
//! Each watch remembers the revision behind the last one it was given, and asks for that one when the stream is opened
//! again: nothing is missed and nothing comes twice. Pieces of a response are put together before they are handed out, so
//! a stream that breaks between two of them loses nothing.

use std::collections::BTreeMap;
use std::collections::VecDeque;
use std::time::Duration;

use futures_util::StreamExt;
use tokio::sync::mpsc;
use tokio_stream::wrappers::UnboundedReceiverStream;
use tonic::Code;
use tonic::Status;
use tonic::Streaming;

use super::CallError;
use super::Client;
use super::call;
use crate::common::answer::Answer;
use crate::proto::etcdserverpb::WatchCancelRequest;
use crate::proto::etcdserverpb::WatchCreateRequest;
use crate::proto::etcdserverpb::WatchProgressRequest;
use crate::proto::etcdserverpb::WatchRequest;
use crate::proto::etcdserverpb::WatchResponse;
use crate::proto::etcdserverpb::watch_request::RequestUnion;

const WATCH: &str = "/etcdserverpb.Watch/Watch";

/// Pause before the stream is opened again; each failure doubles it.
const REOPEN_MIN: Duration = Duration::from_millis(1);

/// The longest such pause.
const REOPEN_MAX: Duration = Duration::from_millis(100);

/// The id of responses that belong to no watch.
const NO_WATCH: i64 = -1;

/// A response for one watch, named by the number that `watch` gave.
#[derive(Clone, Debug, PartialEq)]
pub struct Delivered {
    pub watch: usize,
    /// Events, a progress notice (no events), or the end of the watch (canceled).
    pub response: WatchResponse,
}

/// One watch, across streams.
#[derive(Debug)]
struct Watching {
    request: WatchCreateRequest,
    /// The first revision it has not been given; 0 while it does not know where it began.
    next: i64,
    /// The first pieces of a response whose last one has not come.
    pieces: Option<WatchResponse>,
}

/// A stream that is open.
struct Open {
    requests: mpsc::UnboundedSender<WatchRequest>,
    responses: Streaming<WatchResponse>,
    /// Watches whose creation is not answered, in order: answers come in that order.
    creating: VecDeque<usize>,
    by_id: BTreeMap<i64, usize>,
}

/// Any number of watches on one stream.
pub struct Watcher<'a> {
    client: &'a Client,
    /// A member without a leader ends the watches, as with etcd's client; otherwise another one is tried.
    needs_leader: bool,
    open: Option<Open>,
    watches: BTreeMap<usize, Watching>,
    made: usize,
    ready: VecDeque<Delivered>,
    pause: Duration,
    /// The opening of the next stream waits for this.
    failed: bool,
}

impl Client {
    /// One bare stream on a member of its choice: what it says is told as it comes, and its end is the end. At least one
    /// request has to lie in `requests`: some members answer nothing before.
    pub async fn watch_stream(
        &self,
        requests: mpsc::UnboundedReceiver<WatchRequest>,
    ) -> Result<Streaming<WatchResponse>, CallError> {
        self.bidi_stream(WATCH, UnboundedReceiverStream::new(requests), false).await.map_err(CallError::of)
    }

    /// Watches over this client. `needs_leader`: a member that loses its leader ends them.
    pub fn watcher(&self, needs_leader: bool) -> Watcher<'_> {
        Watcher {
            client: self,
            needs_leader,
            open: None,
            watches: BTreeMap::new(),
            made: 0,
            ready: VecDeque::new(),
            pause: REOPEN_MIN,
            failed: false,
        }
    }
}

impl Watcher<'_> {
    /// Adds a watch. Its number; ids are the stream's own affair. What becomes of it is told by `next`.
    pub fn watch(&mut self, request: WatchCreateRequest) -> usize {
        let watch = self.made;
        self.made += 1;
        let next = request.start_revision.max(0);
        let watching = Watching { request: WatchCreateRequest { watch_id: 0, ..request }, next, pieces: None };
        if let Some(open) = &mut self.open {
            open.create(watch, &watching);
        }
        self.watches.insert(watch, watching);
        watch
    }

    /// Ends a watch. Nothing more is delivered for it.
    pub fn cancel(&mut self, watch: usize) {
        self.watches.remove(&watch);
        self.ready.retain(|delivered| delivered.watch != watch);
        if let Some(open) = &self.open
            && let Some((id, _)) = open.by_id.iter().find(|(_, of)| **of == watch)
        {
            open.send(RequestUnion::CancelRequest(WatchCancelRequest { watch_id: *id }));
        }
    }

    /// Asks for a progress notice, which comes for every watch, if the member can give one now.
    pub fn request_progress(&mut self) {
        if let Some(open) = &self.open {
            open.send(RequestUnion::ProgressRequest(WatchProgressRequest {}));
        }
    }

    /// The next response of any watch. Waits for ever while no member answers, or there is no watch. An error ends all
    /// of them. May be dropped before it is done without losing anything.
    pub async fn next(&mut self) -> Result<Delivered, CallError> {
        loop {
            if let Some(delivered) = self.ready.pop_front() {
                return Ok(delivered);
            }
            if self.watches.is_empty() && self.open.is_none() {
                return std::future::pending().await;
            }
            let Some(open) = &mut self.open else {
                self.reopen().await?;
                continue;
            };
            match open.responses.message().await {
                Ok(Some(response)) => {
                    self.pause = REOPEN_MIN;
                    self.take(response);
                }
                // The member ended the stream without a word.
                Ok(None) => self.open = None,
                Err(status) => self.broken(call::unwrap_transport(status))?,
            }
        }
    }

    /// The stream broke: fatal, or to be opened again.
    fn broken(&mut self, status: Status) -> Result<(), CallError> {
        self.open = None;
        self.failed = true;
        let leaderless = self.needs_leader && Answer::from_text(status.message()) == Some(Answer::NoLeader);
        if leaderless || !matches!(status.code(), Code::Unavailable | Code::Internal) {
            return Err(CallError::of(status));
        }
        Ok(())
    }

    async fn reopen(&mut self) -> Result<(), CallError> {
        if self.failed {
            tokio::time::sleep(self.pause).await;
            self.pause = (self.pause * 2).min(REOPEN_MAX);
            self.failed = false;
        }
        let (requests, queue) = mpsc::unbounded_channel();
        // Asked before the stream is answered: some servers answer with their first response only.
        let (mut creating, mut asked) = (VecDeque::new(), VecDeque::new());
        for (watch, watching) in &mut self.watches {
            watching.pieces = None;
            creating.push_back(*watch);
            asked.push_back(watching.create_request());
        }
        let queue = futures_util::stream::iter(asked).chain(UnboundedReceiverStream::new(queue));
        match self.client.bidi_stream(WATCH, queue, true).await {
            Ok(responses) => {
                self.open = Some(Open { requests, responses, creating, by_id: BTreeMap::new() });
                Ok(())
            }
            // While it is opened a missing leader is no end: the election may be under way.
            Err(status) if matches!(status.code(), Code::Unavailable | Code::Internal) => {
                self.failed = true;
                Ok(())
            }
            Err(status) => Err(CallError::of(status)),
        }
    }

    fn take(&mut self, response: WatchResponse) {
        let Some(open) = &mut self.open else { return };
        let id = response.watch_id;
        if response.created {
            return self.created(response);
        }
        if response.events.is_empty() && !response.canceled {
            let of_all = id == NO_WATCH && !open.by_id.contains_key(&id);
            let of_one = open.by_id.get(&id).copied();
            let watches: Vec<usize> =
                if of_all { self.watches.keys().copied().collect() } else { of_one.into_iter().collect() };
            watches.into_iter().for_each(|watch| self.deliver(watch, response.clone()));
            return;
        }
        let known = if response.canceled { open.by_id.remove(&id) } else { open.by_id.get(&id).copied() };
        if let Some(watch) = known {
            self.deliver(watch, response);
        }
    }

    fn created(&mut self, response: WatchResponse) {
        let Some(open) = &mut self.open else { return };
        let Some(watch) = open.creating.pop_front() else { return };
        if response.canceled {
            return self.deliver(watch, WatchResponse { created: false, header: Some(Default::default()), ..response });
        }
        open.by_id.insert(response.watch_id, watch);
        let Some(watching) = self.watches.get_mut(&watch) else {
            // It was canceled before it was created.
            return open.send(RequestUnion::CancelRequest(WatchCancelRequest { watch_id: response.watch_id }));
        };
        if watching.next == 0 {
            watching.next = response.header.map_or(0, |header| header.revision) + 1;
        }
    }

    fn deliver(&mut self, watch: usize, mut response: WatchResponse) {
        let Some(watching) = self.watches.get_mut(&watch) else { return };
        if let Some(mut pieces) = watching.pieces.take() {
            pieces.events.append(&mut response.events);
            response.events = pieces.events;
        }
        if response.fragment {
            watching.pieces = Some(response);
            return;
        }
        let next = watching.next;
        let is_new = |revision: i64| revision >= next;
        let had_events = !response.events.is_empty();
        response.events.retain(|event| event.kv.as_ref().is_none_or(|kv| is_new(kv.mod_revision)));
        if let Some(kv) = response.events.last().and_then(|event| event.kv.as_ref()) {
            watching.next = kv.mod_revision + 1;
        } else if had_events {
            return;
        } else if !response.canceled {
            let revision = response.header.as_ref().map_or(0, |header| header.revision);
            watching.next = watching.next.max(revision + 1);
        }
        if response.canceled {
            self.watches.remove(&watch);
        }
        self.ready.push_back(Delivered { watch, response });
    }
}

impl Watching {
    fn create_request(&self) -> WatchRequest {
        let create = WatchCreateRequest { start_revision: self.start(), ..self.request.clone() };
        WatchRequest { request_union: Some(RequestUnion::CreateRequest(create)) }
    }

    /// Where it goes on. A negative revision is the caller's own, and the server's to refuse.
    fn start(&self) -> i64 {
        if self.request.start_revision < 0 { self.request.start_revision } else { self.next }
    }
}

impl Open {
    // A stream that is gone is noticed when its responses are read.
    fn send(&self, request: RequestUnion) {
        let _gone = self.requests.send(WatchRequest { request_union: Some(request) });
    }

    fn create(&mut self, watch: usize, watching: &Watching) {
        self.creating.push_back(watch);
        let _gone = self.requests.send(watching.create_request());
    }
}

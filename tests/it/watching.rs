//! A stream of watches as a test holds it: asks, collects what comes, waits for conditions.

use std::collections::BTreeMap;
use std::time::Duration;

use quorate::proto::etcdserverpb::WatchCancelRequest;
use quorate::proto::etcdserverpb::WatchCreateRequest;
use quorate::proto::etcdserverpb::WatchProgressRequest;
use quorate::proto::etcdserverpb::WatchRequest;
use quorate::proto::etcdserverpb::WatchResponse;
use quorate::proto::etcdserverpb::watch_client::WatchClient;
use quorate::proto::etcdserverpb::watch_request::RequestUnion;
use quorate::proto::mvccpb::Event;
use tokio::sync::mpsc;
use tokio_stream::wrappers::UnboundedReceiverStream;
use tonic::Status;
use tonic::Streaming;
use tonic::transport::Channel;

use crate::support::PATIENCE;

/// One stream and everything that came on it.
pub struct Watches {
    /// `None` once this half is closed.
    requests: Option<mpsc::UnboundedSender<WatchRequest>>,
    responses: Streaming<WatchResponse>,
    /// Watches by id, with what was told of them.
    pub seen: BTreeMap<i64, Seen>,
    /// Revisions of notices for the whole stream.
    pub progress: Vec<i64>,
}

/// What was told of one watch.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Seen {
    pub created_at: i64,
    pub events: Vec<Event>,
    /// The response that ended it.
    pub ended: Option<(i64, String)>,
    /// The last notice: nothing at or below may come.
    pub bookmark: i64,
}

impl Seen {
    pub fn revisions(&self) -> Vec<i64> {
        self.events.iter().flat_map(|event| &event.kv).map(|kv| kv.mod_revision).collect()
    }
}

/// A request for a key or, with a range end, a range.
pub fn on(key: &str, range_end: &str) -> WatchCreateRequest {
    WatchCreateRequest {
        key: key.to_owned().into(),
        range_end: range_end.to_owned().into(),
        ..WatchCreateRequest::default()
    }
}

impl Watches {
    /// Opens a stream with its first watch, and waits until that is created.
    pub async fn open(channel: Channel, first: WatchCreateRequest) -> Result<Watches, Status> {
        let (requests, queue) = mpsc::unbounded_channel();
        let ask = |request: RequestUnion| WatchRequest { request_union: Some(request) };
        requests.send(ask(RequestUnion::CreateRequest(first))).expect("the queue is ours");
        let mut client = WatchClient::new(channel).max_decoding_message_size(usize::MAX);
        let responses = client.watch(UnboundedReceiverStream::new(queue)).await?.into_inner();
        let mut watches = Watches { requests: Some(requests), responses, seen: BTreeMap::new(), progress: Vec::new() };
        watches.next().await?;
        Ok(watches)
    }

    fn ask(&self, request: RequestUnion) {
        // A stream that is gone shows when it is read.
        let requests = self.requests.as_ref().expect("this half is open");
        let _ = requests.send(WatchRequest { request_union: Some(request) });
    }

    /// Closes the half of the connection that asks.
    pub fn close_requests(&mut self) {
        self.requests = None;
    }

    pub fn create(&self, request: WatchCreateRequest) {
        self.ask(RequestUnion::CreateRequest(request));
    }

    pub fn cancel(&self, watch_id: i64) {
        self.ask(RequestUnion::CancelRequest(WatchCancelRequest { watch_id }));
    }

    pub fn ask_progress(&self) {
        self.ask(RequestUnion::ProgressRequest(WatchProgressRequest {}));
    }

    /// Takes the next response; checks what must hold of any: order, once, nothing behind a notice or an end.
    pub async fn next(&mut self) -> Result<WatchResponse, Status> {
        let next = tokio::time::timeout(PATIENCE, self.responses.message()).await;
        let next = next.unwrap_or_else(|_| panic!("nothing came; seen {:?}", self.summary()))?;
        let response = next.ok_or_else(|| Status::unavailable("the stream ended"))?;
        self.take(response.clone());
        Ok(response)
    }

    /// What comes within a short time, if anything does: for waiting on a condition elsewhere.
    pub async fn poll(&mut self) -> bool {
        match tokio::time::timeout(Duration::from_millis(20), self.responses.message()).await {
            Ok(Ok(Some(response))) => {
                self.take(response);
                true
            }
            _ => false,
        }
    }

    /// Reads until the condition holds.
    pub async fn until(&mut self, what: &str, mut holds: impl FnMut(&Watches) -> bool) {
        while !holds(self) {
            let next = self.next().await;
            next.unwrap_or_else(|status| panic!("waited for {what}: {status}; seen {:?}", self.summary()));
        }
    }

    fn summary(&self) -> Vec<(i64, usize, Option<i64>)> {
        let last = |seen: &Seen| seen.revisions().last().copied();
        self.seen.iter().map(|(id, seen)| (*id, seen.events.len(), last(seen))).collect()
    }

    fn take(&mut self, response: WatchResponse) {
        let header = response.header.expect("every response has a header");
        assert!(header.cluster_id != 0 && header.member_id != 0 && header.raft_term != 0, "{header:?}");
        let id = response.watch_id;
        if response.created {
            let ended = response.canceled.then_some((response.compact_revision, response.cancel_reason));
            let seen = Seen { created_at: header.revision, ended, ..Seen::default() };
            let before = self.seen.insert(id, seen);
            assert!(id == -1 || before.is_none_or(|before| before.ended.is_some()), "id {id} was in use");
            return;
        }
        if response.events.is_empty() && !response.canceled && id == -1 {
            self.progress.push(header.revision);
            self.seen.values_mut().for_each(|seen| seen.bookmark = header.revision);
            return;
        }
        let seen = self.seen.get_mut(&id).unwrap_or_else(|| panic!("{response:?} before it was created"));
        if response.canceled {
            assert!(response.events.is_empty());
            assert_eq!(header.revision == 0, response.compact_revision > 0, "{response:?}");
            seen.ended = Some((response.compact_revision, response.cancel_reason));
            return;
        }
        if response.events.is_empty() {
            seen.bookmark = header.revision;
            return;
        }
        assert_eq!(seen.ended, None, "{response:?} behind the end");
        let last = seen.revisions().last().copied().unwrap_or(0);
        let revisions: Vec<i64> =
            response.events.iter().flat_map(|event| &event.kv).map(|kv| kv.mod_revision).collect();
        assert!(revisions.is_sorted() && revisions[0] >= last, "{revisions:?} behind {last}");
        assert!(revisions[0] > seen.bookmark, "{revisions:?} behind a notice of {}", seen.bookmark);
        assert!(
            revisions[revisions.len() - 1] <= header.revision,
            "{revisions:?} in a response of {}",
            header.revision
        );
        for event in response.events {
            let key = |event: &Event| event.kv.as_ref().map(|kv| (kv.key.clone(), kv.mod_revision));
            assert!(!seen.events.iter().rev().take(200).any(|old| key(old) == key(&event)), "twice: {event:?}");
            seen.events.push(event);
        }
    }
}

//! The writing side of a stream: a bounded queue that the raft thread fills, and the HTTP body that empties it.
//!
//! A peer has one slot for each kind. A newer stream replaces the older; a stream that ends takes its waiting messages
//! with it and reports the peer unreachable, so that raft probes again. The body is driven by the connection: when the
//! socket takes no more, the queue fills, and a queue that nobody has emptied for the write timeout closes the
//! connection.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::MutexGuard;
use std::sync::PoisonError;
use std::task::Context;
use std::task::Poll;
use std::task::Waker;
use std::time::Duration;
use std::time::Instant;

use bytes::Bytes;
use bytes::BytesMut;
use http_body::Frame;
use prost::Message as _;
use tokio::sync::Notify;
use tokio::time::Interval;
use tokio::time::MissedTickBehavior;
use tokio::time::interval;

use crate::common::ids::MemberId;
use crate::proto::raftpb::Message;
use crate::server::peer::codec::Encoder;
use crate::server::peer::codec::StreamKind;
use crate::server::peer::inbox::LateInbox;
use crate::server::peer::metrics::OnePeer;
use crate::server::peer::timing::Timing;

/// Messages waiting for one stream, as in etcd. More are dropped and the peer reported unreachable.
const QUEUE_MESSAGES_MAX: usize = 4096;

/// Bytes waiting for one stream; a single message may exceed it. More are dropped like too many messages.
const QUEUE_BYTES_MAX: usize = 64 << 20;

/// Messages are encoded together up to about this many bytes, then given to the socket.
const CHUNK_BYTES: usize = 256 << 10;

/// A chunk buffer that grew beyond this is not kept for the next chunk.
const CHUNK_BYTES_KEPT: usize = 64 << 10;

/// Ends one connection from outside.
#[derive(Debug, Default)]
pub(super) struct Closer {
    notify: Notify,
}

impl Closer {
    pub fn close(&self) {
        // Keeps a permit when nobody waits yet.
        self.notify.notify_one();
    }

    pub async fn closed(&self) {
        self.notify.notified().await;
    }
}

/// The place for the one stream of a kind to a peer.
pub(super) struct Slot {
    kind: StreamKind,
    local: MemberId,
    peer: MemberId,
    inbox: LateInbox,
    metrics: OnePeer,
    timing: Timing,
    current: Mutex<Option<Arc<Queue>>>,
}

/// Between whom, and how fast.
#[derive(Clone)]
pub(super) struct Link {
    pub local: MemberId,
    pub peer: MemberId,
    pub inbox: LateInbox,
    pub metrics: OnePeer,
    pub timing: Timing,
}

impl Slot {
    pub fn new(kind: StreamKind, link: &Link) -> Arc<Slot> {
        let Link { local, peer, inbox, metrics, timing } = link.clone();
        Arc::new(Slot { kind, local, peer, inbox, metrics, timing, current: Mutex::default() })
    }

    /// The stream that is up, to push to.
    pub fn stream(&self) -> Option<OpenStream<'_>> {
        let queue = self.current().clone()?;
        Some(OpenStream { slot: self, queue })
    }

    /// Opens the body of a new stream, ending the one before. `closer` ends the connection it is written to.
    pub fn attach(self: &Arc<Slot>, closer: Arc<Closer>) -> StreamBody {
        let queue = Arc::new(Queue { closer, state: Mutex::new(QueueState::new()) });
        let older = self.current().replace(Arc::clone(&queue));
        if let Some(older) = older {
            self.end(&older);
        }
        tracing::info!(peer = %self.peer, kind = self.kind.path_name(), "peer reads our stream");
        // The first one at once: a reader counts us as active when it hears something.
        let mut heartbeat = interval(self.timing.link_heartbeat);
        heartbeat.set_missed_tick_behavior(MissedTickBehavior::Delay);
        StreamBody {
            slot: Arc::clone(self),
            queue,
            encoder: Encoder::new(self.kind, self.local, self.peer),
            heartbeat,
            out: BytesMut::new(),
        }
    }

    /// Ends the stream, if one is up.
    pub fn close(&self) {
        let queue = self.current().clone();
        if let Some(queue) = queue {
            self.end(&queue);
        }
    }

    /// Takes `queue` out of use. What waits in it is lost, which raft must know.
    fn end(&self, queue: &Arc<Queue>) {
        let mut current = self.current();
        if current.as_ref().is_some_and(|current| Arc::ptr_eq(current, queue)) {
            *current = None;
        }
        drop(current);
        let lost = queue.close();
        if lost > 0 {
            self.metrics.sent_failures.inc_by(lost as u64);
            self.inbox.report_unreachable(self.peer);
        }
    }

    fn current(&self) -> MutexGuard<'_, Option<Arc<Queue>>> {
        self.current.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A stream that was up a moment ago.
pub(super) struct OpenStream<'a> {
    slot: &'a Slot,
    queue: Arc<Queue>,
}

impl OpenStream<'_> {
    /// Queues a message; called on the raft thread. `false`: it is dropped, for want of room or because the stream has
    /// just ended.
    pub fn push(&self, message: Message) -> bool {
        let pushed = self.queue.push(message, self.slot.timing.write_timeout);
        if pushed == Pushed::Stuck {
            let kind = self.slot.kind.path_name();
            tracing::warn!(peer = %self.slot.peer, kind, "peer does not read its stream");
            self.slot.end(&self.queue);
        }
        pushed == Pushed::Queued
    }
}

#[derive(Debug)]
struct Queue {
    closer: Arc<Closer>,
    state: Mutex<QueueState>,
}

#[derive(Debug)]
struct QueueState {
    messages: VecDeque<(Message, usize)>,
    bytes: usize,
    waker: Option<Waker>,
    /// When the connection last asked for bytes.
    polled: Instant,
    closed: bool,
}

impl QueueState {
    fn new() -> QueueState {
        QueueState { messages: VecDeque::new(), bytes: 0, waker: None, polled: Instant::now(), closed: false }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Pushed {
    Queued,
    Full,
    Stuck,
    Closed,
}

impl Queue {
    fn push(&self, message: Message, write_timeout: Duration) -> Pushed {
        let bytes = message.encoded_len();
        let mut state = self.lock();
        if state.closed {
            return Pushed::Closed;
        }
        if !state.messages.is_empty() {
            if state.polled.elapsed() >= write_timeout {
                return Pushed::Stuck;
            }
            if state.messages.len() >= QUEUE_MESSAGES_MAX || state.bytes + bytes > QUEUE_BYTES_MAX {
                return Pushed::Full;
            }
        } else if state.waker.is_some() {
            // The connection waits for us, so the time it has to answer starts now.
            state.polled = Instant::now();
        }
        state.bytes += bytes;
        state.messages.push_back((message, bytes));
        let waker = state.waker.take();
        drop(state);
        if let Some(waker) = waker {
            waker.wake();
        }
        Pushed::Queued
    }

    /// Messages for one chunk, oldest first; `None` when the queue is closed. Leaves the waker when there are none.
    fn take(&self, context: &Context<'_>) -> Option<Vec<(Message, usize)>> {
        let mut state = self.lock();
        state.polled = Instant::now();
        if state.closed {
            return None;
        }
        let mut batch = Vec::new();
        let mut batch_bytes = 0;
        while let Some((_, bytes)) = state.messages.front() {
            if !batch.is_empty() && batch_bytes + bytes > CHUNK_BYTES {
                break;
            }
            batch_bytes += bytes;
            batch.extend(state.messages.pop_front());
        }
        state.bytes -= batch_bytes;
        state.waker = Some(context.waker().clone());
        Some(batch)
    }

    /// How many messages were lost.
    fn close(&self) -> usize {
        let mut state = self.lock();
        state.closed = true;
        state.bytes = 0;
        let lost = std::mem::take(&mut state.messages).len();
        let waker = state.waker.take();
        drop(state);
        if let Some(waker) = waker {
            waker.wake();
        }
        self.closer.close();
        lost
    }

    fn lock(&self) -> MutexGuard<'_, QueueState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A body that stays open: messages as they come, link heartbeats in between. Dropping it ends the stream.
pub(super) struct StreamBody {
    slot: Arc<Slot>,
    queue: Arc<Queue>,
    encoder: Encoder,
    heartbeat: Interval,
    out: BytesMut,
}

impl http_body::Body for StreamBody {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let this = self.get_mut();
        let Some(batch) = this.queue.take(context) else { return Poll::Ready(None) };
        for (message, bytes) in &batch {
            this.encoder.message(message, &mut this.out);
            this.slot.metrics.sent_bytes.inc_by(*bytes as u64);
        }
        if this.heartbeat.poll_tick(context).is_ready() {
            this.encoder.heartbeat(&mut this.out);
        }
        if this.out.is_empty() {
            return Poll::Pending;
        }
        let chunk = this.out.split().freeze();
        if this.out.capacity() > CHUNK_BYTES_KEPT {
            this.out = BytesMut::new();
        }
        Poll::Ready(Some(Ok(Frame::data(chunk))))
    }
}

impl Drop for StreamBody {
    fn drop(&mut self) {
        self.slot.end(&self.queue);
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;

    use http_body::Body;

    use super::*;
    use crate::proto::raft_numbers::MSG_HEARTBEAT;
    use crate::server::peer::codec::Decoder;
    use crate::server::peer::metrics::PeerMetrics;

    const LOCAL: MemberId = MemberId(1);
    const PEER: MemberId = MemberId(2);
    const LONG: Duration = Duration::from_secs(1000);

    fn slot(write_timeout: Duration) -> Arc<Slot> {
        let metrics = PeerMetrics::register(&prometheus::Registry::new()).of_peer(LOCAL, PEER);
        let timing = Timing { link_heartbeat: Duration::from_millis(20), write_timeout, ..Timing::default() };
        let link = Link { local: LOCAL, peer: PEER, inbox: LateInbox::default(), metrics, timing };
        Slot::new(StreamKind::Message, &link)
    }

    fn message(term: u64) -> Message {
        Message { r#type: MSG_HEARTBEAT, from: LOCAL.0, to: PEER.0, term, ..Message::default() }
    }

    async fn chunk(body: &mut StreamBody) -> Option<Bytes> {
        let frame = poll_fn(|context| Pin::new(&mut *body).poll_frame(context)).await?;
        frame.unwrap().into_data().ok()
    }

    #[tokio::test]
    async fn messages_leave_in_order_and_heartbeats_follow() {
        let slot = slot(LONG);
        assert!(slot.stream().is_none());
        let mut body = slot.attach(Arc::default());
        for term in 1..=3 {
            assert!(slot.stream().unwrap().push(message(term)));
        }
        let mut decoder = Decoder::new(StreamKind::Message, PEER, LOCAL);
        decoder.push(&chunk(&mut body).await.unwrap());
        // The messages, and the heartbeat that every stream begins with.
        for term in 1..=3 {
            assert_eq!(decoder.next_message().unwrap(), Some(message(term)));
        }
        assert_eq!(decoder.next_message().unwrap(), None);
        assert_eq!(chunk(&mut body).await.unwrap(), &b"\0\0\0\0\0\0\0\x02\x08\x08"[..]);
    }

    #[tokio::test]
    async fn a_newer_stream_ends_the_older_and_its_end_leaves_the_newer_alone() {
        let slot = slot(LONG);
        let closer = Arc::new(Closer::default());
        let mut older = slot.attach(Arc::clone(&closer));
        let mut newer = slot.attach(Arc::default());
        closer.closed().await;
        assert_eq!(chunk(&mut older).await, None);
        drop(older);
        assert!(slot.stream().unwrap().push(message(1)));
        assert!(chunk(&mut newer).await.is_some());
        drop(newer);
        assert!(slot.stream().is_none());
    }

    #[tokio::test]
    async fn a_full_queue_drops() {
        let slot = slot(LONG);
        let _body = slot.attach(Arc::default());
        for _ in 0..QUEUE_MESSAGES_MAX {
            assert!(slot.stream().unwrap().push(message(1)));
        }
        assert!(!slot.stream().unwrap().push(message(1)));
        slot.close();
        assert_eq!(slot.metrics.sent_failures.get(), QUEUE_MESSAGES_MAX as u64);
    }

    #[tokio::test]
    async fn a_stream_that_nobody_reads_closes_its_connection() {
        let slot = slot(Duration::ZERO);
        let closer = Arc::new(Closer::default());
        let _body = slot.attach(Arc::clone(&closer));
        assert!(slot.stream().unwrap().push(message(1)));
        assert!(!slot.stream().unwrap().push(message(1)));
        closer.closed().await;
        assert!(slot.stream().is_none());
    }
}

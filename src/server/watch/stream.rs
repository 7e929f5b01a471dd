//! What waits to be read by one client: framed responses, bounded in bytes, from the hub's thread to a socket's.
//!
//! The hub looks at `queued` before it adds events and leaves a watcher behind when there is no room, so a reader that
//! stands still costs this buffer and nothing else. Answers to requests are always added: their number is bounded at the
//! other end, which asks nothing more while `may_ask` is false.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::MutexGuard;
use std::sync::PoisonError;
use std::sync::atomic::AtomicUsize;
use std::sync::atomic::Ordering;
use std::task::Context;
use std::task::Poll;
use std::task::Waker;

use bytes::Buf;
use bytes::Bytes;
use prost::Message;

use crate::proto::etcdserverpb::WatchRequest;
use crate::proto::etcdserverpb::WatchResponse;
use crate::proto::etcdserverpb::watch_request::RequestUnion;
use crate::server::watch::event::FRAME_HEAD_BYTES;
use crate::server::watch::hub::Ask;
use crate::server::watch::thread::WatchHandle;

/// Bytes of a stream that it may always hold.
const OWN_BYTES: usize = 64 << 10;

/// Bytes that a stream may hold while all together hold less than `ALL_BYTES_MAX`. Full means that its watchers fall
/// behind and read history when the client has caught up.
const STREAM_BYTES_MAX: usize = 1 << 20;

/// See above.
const ALL_BYTES_MAX: usize = 128 << 20;

/// A stream whose watchers wait for room gets word when it holds less than this.
const DRAINED_BYTES: usize = 32 << 10;

/// Requests of one stream that the hub has not seen yet. Full means that no more are read from the socket.
const ASKED_MAX: usize = 64;

/// Bytes handed to the socket at once: it keeps what it was given even if the client does not read. Smaller chunks are put
/// together to so much, as far as there are any: clients take many small frames for an attack.
const CHUNK_BYTES: usize = 64 << 10;

/// A chunk of so many bytes is handed on as it is: copying it would cost more than a frame of its own.
const WHOLE_BYTES: usize = 16 << 10;

/// Bytes in all outboxes of a member.
pub type AllBytes = Arc<AtomicUsize>;

/// Responses of one stream on their way out.
pub struct Outbox {
    state: Mutex<State>,
    all: AllBytes,
}

#[derive(Default)]
struct State {
    chunks: VecDeque<Bytes>,
    bytes: usize,
    /// Requests that the hub has not answered.
    asked: usize,
    reader: Option<Waker>,
    /// The hub wants word when there is room again.
    starved: bool,
}

impl Outbox {
    pub fn new(all: AllBytes) -> Outbox {
        Outbox { state: Mutex::default(), all }
    }

    // Every critical section leaves the state whole, so a panic of another holder is no reason to stop.
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds bytes and counts requests as answered; what is queued now.
    pub fn put(&self, chunks: &mut Vec<Bytes>, answered: usize) -> usize {
        let added: usize = chunks.iter().map(Bytes::len).sum();
        self.all.fetch_add(added, Ordering::Relaxed);
        let mut state = self.state();
        state.chunks.extend(chunks.drain(..));
        state.bytes += added;
        state.asked = state.asked.saturating_sub(answered);
        let (queued, reader) = (state.bytes, state.reader.take());
        drop(state);
        if let Some(reader) = reader {
            reader.wake();
        }
        queued
    }

    pub fn queued(&self) -> usize {
        self.state().bytes
    }

    /// Whether events may be added to a stream that holds so much.
    pub fn has_room(&self, queued: usize) -> bool {
        queued < OWN_BYTES || (queued < STREAM_BYTES_MAX && self.all.load(Ordering::Relaxed) < ALL_BYTES_MAX)
    }

    /// Asks for word when the stream is drained. False if it is already: then there will be none.
    pub fn starve(&self) -> bool {
        let mut state = self.state();
        state.starved = state.bytes >= DRAINED_BYTES;
        state.starved
    }

    /// Takes the next bytes, and says whether the hub wants word now. Without any, the reader is woken when some come or
    /// a request is answered.
    pub(super) fn take(&self, reader: &Waker) -> Option<(Bytes, bool)> {
        let mut state = self.state();
        let Some(mut chunk) = state.chunks.pop_front() else {
            state.reader = Some(reader.clone());
            return None;
        };
        if chunk.len() > CHUNK_BYTES {
            let rest = chunk.split_off(CHUNK_BYTES);
            state.chunks.push_front(rest);
        } else if chunk.len() < WHOLE_BYTES && !state.chunks.is_empty() {
            let mut gathered = Vec::with_capacity(CHUNK_BYTES.min(state.bytes));
            gathered.extend_from_slice(&chunk);
            while let Some(next) = state.chunks.front_mut().filter(|_| gathered.len() < CHUNK_BYTES) {
                gathered.extend_from_slice(&next.split_to(next.len().min(CHUNK_BYTES - gathered.len())));
                if next.is_empty() {
                    state.chunks.pop_front();
                }
            }
            chunk = Bytes::from(gathered);
        }
        if state.chunks.is_empty() {
            // An idle stream keeps no memory for what it once held.
            state.chunks = VecDeque::new();
        }
        state.bytes -= chunk.len();
        self.all.fetch_sub(chunk.len(), Ordering::Relaxed);
        let drained = state.starved && state.bytes < DRAINED_BYTES;
        state.starved &= !drained;
        Some((chunk, drained))
    }

    fn may_ask(&self) -> bool {
        let state = self.state();
        state.asked < ASKED_MAX && state.bytes < STREAM_BYTES_MAX
    }

    pub(super) fn ask(&self) {
        self.state().asked += 1;
    }
}

impl Drop for Outbox {
    fn drop(&mut self) {
        let bytes = self.state().bytes;
        self.all.fetch_sub(bytes, Ordering::Relaxed);
    }
}

/// One client's stream: it asks, and reads what comes. Closed when dropped.
pub struct WatchStream {
    id: u64,
    outbox: Arc<Outbox>,
    handle: WatchHandle,
    /// The part of a response that was read: only for callers in process.
    partial: Vec<u8>,
}

impl WatchStream {
    pub fn new(id: u64, outbox: Arc<Outbox>, handle: WatchHandle) -> WatchStream {
        WatchStream { id, outbox, handle, partial: Vec::new() }
    }

    /// Whether another request may be read: not while many are unanswered, or their answers unread.
    pub fn may_ask(&self) -> bool {
        self.outbox.may_ask()
    }

    /// Hands a request to the hub. Variants that nobody knows are ignored (server.md 4.1).
    pub fn ask(&self, request: WatchRequest) {
        let ask = match request.request_union {
            Some(RequestUnion::CreateRequest(create)) => Ask::Create(Box::new(create)),
            Some(RequestUnion::CancelRequest(cancel)) => Ask::Cancel(cancel.watch_id),
            Some(RequestUnion::ProgressRequest(_)) => Ask::Progress,
            None => return,
        };
        self.outbox.ask();
        self.handle.ask(self.id, ask);
    }

    /// The interval of progress notices has passed.
    pub fn tick(&self) {
        self.handle.tick(self.id);
    }

    /// The next bytes to send: whole frames, cut anywhere.
    pub fn poll_bytes(&self, context: &Context<'_>) -> Poll<Bytes> {
        match self.outbox.take(context.waker()) {
            None => Poll::Pending,
            Some((chunk, drained)) => {
                if drained {
                    self.handle.drained(self.id);
                }
                Poll::Ready(chunk)
            }
        }
    }

    /// The next response, for callers in process.
    pub async fn next(&mut self) -> WatchResponse {
        loop {
            if let Some(response) = self.whole() {
                return response;
            }
            let chunk = std::future::poll_fn(|context| self.poll_bytes(context)).await;
            self.partial.extend_from_slice(&chunk);
        }
    }

    fn whole(&mut self) -> Option<WatchResponse> {
        let mut head = self.partial.get(1..FRAME_HEAD_BYTES)?;
        let end = FRAME_HEAD_BYTES + head.get_u32() as usize;
        let response = WatchResponse::decode(self.partial.get(FRAME_HEAD_BYTES..end)?).ok();
        self.partial.drain(..end);
        Some(response.expect("the hub writes whole messages"))
    }
}

impl Drop for WatchStream {
    fn drop(&mut self) {
        self.handle.close(self.id);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn filled(sizes: &[usize]) -> (Outbox, AllBytes) {
        let all = AllBytes::default();
        let outbox = Outbox::new(all.clone());
        let mut chunks = sizes.iter().map(|size| Bytes::from(vec![7; *size])).collect();
        outbox.put(&mut chunks, 0);
        (outbox, all)
    }

    #[test]
    fn bytes_are_counted_in_and_out() {
        let (outbox, all) = filled(&[10, 3 * CHUNK_BYTES + 1]);
        assert_eq!((outbox.queued(), all.load(Ordering::Relaxed)), (3 * CHUNK_BYTES + 11, 3 * CHUNK_BYTES + 11));
        let mut sizes = Vec::new();
        while let Some((chunk, drained)) = outbox.take(Waker::noop()) {
            assert!(!drained, "nobody waits for room");
            sizes.push(chunk.len());
        }
        assert_eq!(
            sizes,
            [CHUNK_BYTES, CHUNK_BYTES, CHUNK_BYTES, 11],
            "the small one takes some of the large one along"
        );
        assert_eq!((outbox.queued(), all.load(Ordering::Relaxed)), (0, 0));
        let (outbox, all) = filled(&[100]);
        drop(outbox);
        assert_eq!(all.load(Ordering::Relaxed), 0);
    }

    #[test]
    fn word_of_room_comes_once_and_only_if_there_was_none() {
        let (outbox, _) = filled(&[CHUNK_BYTES, DRAINED_BYTES - 1]);
        assert!(outbox.starve());
        assert!(outbox.take(Waker::noop()).is_some_and(|(_, drained)| drained));
        assert!(outbox.take(Waker::noop()).is_some_and(|(_, drained)| !drained));
        assert!(!outbox.starve(), "it is drained already");
    }

    #[test]
    fn a_stream_has_its_own_share_and_more_while_there_is_some() {
        let (outbox, all) = filled(&[]);
        assert!(outbox.has_room(OWN_BYTES) && !outbox.has_room(STREAM_BYTES_MAX));
        all.fetch_add(ALL_BYTES_MAX, Ordering::Relaxed);
        assert!(outbox.has_room(OWN_BYTES - 1) && !outbox.has_room(OWN_BYTES));
    }

    #[test]
    fn requests_wait_for_answers_to_earlier_ones() {
        let (outbox, _) = filled(&[]);
        (0..ASKED_MAX).for_each(|_| outbox.ask());
        assert!(!outbox.may_ask());
        outbox.put(&mut Vec::new(), 1);
        assert!(outbox.may_ask());
        outbox.put(&mut vec![Bytes::from(vec![0; STREAM_BYTES_MAX])], 1);
        assert!(!outbox.may_ask(), "the answers are not read");
    }
}

//! Bytes of answers that a client has not taken yet: bounded on each connection, by letting its next reads wait.
//!
//! HTTP/2 lets a client ask thousands of times and take no answer; each answer would keep its values in memory. A read
//! waits while its own connection holds too much, so nobody else is held up. A read of one key is counted once it is made.

use std::sync::Arc;
use std::sync::atomic::AtomicUsize;
use std::sync::atomic::Ordering;

use bytes::Bytes;
use tokio::sync::Notify;

/// Bytes that one connection may leave untaken before its next read waits.
const CONNECTION_BYTES_MAX: usize = 64 << 20;

/// Beyond this over all connections, each one may leave only `CROWDED_BYTES_MAX`.
const TOTAL_BYTES_MAX: usize = 256 << 20;
const CROWDED_BYTES_MAX: usize = 2 << 20;

/// What a read of many keys counts as until it is made.
pub const MANY_KEYS_BYTES: usize = 1 << 20;

/// What a write that answers with what was stored counts as until it is applied.
pub const STORED_BYTES: usize = 256 << 10;

/// Answers below this are not counted: as many as there may be streams of them do no harm.
const COUNTED_BYTES_MIN: usize = 4 << 10;

/// What one connection has not taken.
#[derive(Debug, Default)]
pub struct Unsent {
    bytes: AtomicUsize,
    freed: Notify,
    total: Arc<AtomicUsize>,
}

/// Bytes that count until this is dropped.
#[derive(Debug)]
pub struct Held {
    unsent: Arc<Unsent>,
    bytes: usize,
}

/// An answer with what counts it until it is sent.
pub struct Counted<T> {
    pub response: T,
    pub held: Option<Arc<Held>>,
}

/// A frame of an answer: counts until the connection has sent it.
struct HeldBytes {
    bytes: Bytes,
    _held: Arc<Held>,
}

impl<T> Counted<T> {
    /// As the gRPC library wants it; `GrpcServer` takes the count back out.
    pub fn into_response(self) -> tonic::Response<T> {
        let mut response = tonic::Response::new(self.response);
        if let Some(held) = self.held {
            response.extensions_mut().insert(held);
        }
        response
    }
}

/// Where the answers of this request's connection are counted. A request that came over none counts for itself.
pub fn unsent_of(extensions: &http::Extensions) -> Arc<Unsent> {
    extensions.get::<Arc<Unsent>>().cloned().unwrap_or_default()
}

impl Unsent {
    /// Of one connection; `total` is of all.
    pub fn new(total: Arc<AtomicUsize>) -> Arc<Unsent> {
        Arc::new(Unsent { total, ..Unsent::default() })
    }

    /// Waits until the client has taken enough, then counts `bytes`.
    pub async fn admit(self: &Arc<Unsent>, bytes: usize) -> Held {
        loop {
            // Asked for before the look, so that nothing that is freed in between is missed.
            let freed = self.freed.notified();
            if self.bytes.load(Ordering::Relaxed) < self.limit() {
                return Held::new(self, bytes);
            }
            freed.await;
        }
    }

    fn limit(&self) -> usize {
        match self.total.load(Ordering::Relaxed) < TOTAL_BYTES_MAX {
            true => CONNECTION_BYTES_MAX,
            false => CROWDED_BYTES_MAX,
        }
    }

    fn free(&self, bytes: usize) {
        if bytes > 0 {
            self.bytes.fetch_sub(bytes, Ordering::Relaxed);
            self.total.fetch_sub(bytes, Ordering::Relaxed);
            self.freed.notify_waiters();
        }
    }
}

impl Held {
    fn new(unsent: &Arc<Unsent>, bytes: usize) -> Held {
        unsent.bytes.fetch_add(bytes, Ordering::Relaxed);
        unsent.total.fetch_add(bytes, Ordering::Relaxed);
        Held { unsent: Arc::clone(unsent), bytes }
    }

    /// The answer is made and has so many bytes; `None` if they are too few to count.
    pub fn made(self, bytes: usize) -> Option<Arc<Held>> {
        (bytes >= COUNTED_BYTES_MIN).then(|| Arc::new(Held::new(&self.unsent, bytes)))
    }

    /// The frame, counted until it is dropped.
    pub fn frame(self: &Arc<Held>, bytes: Bytes) -> Bytes {
        Bytes::from_owner(HeldBytes { bytes, _held: Arc::clone(self) })
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.unsent.free(self.bytes);
    }
}

impl AsRef<[u8]> for HeldBytes {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures_util::FutureExt;

    #[tokio::test]
    async fn a_connection_waits_for_its_own_client_only() {
        let total = Arc::new(AtomicUsize::new(0));
        let (slow, other) = (Unsent::new(total.clone()), Unsent::new(total.clone()));
        assert!(slow.admit(0).await.made(COUNTED_BYTES_MIN - 1).is_none());
        let held = slow.admit(0).await.made(CONNECTION_BYTES_MAX).expect("enough to count");
        assert!(slow.admit(0).now_or_never().is_none());
        assert!(other.admit(MANY_KEYS_BYTES).now_or_never().is_some());
        let frame = held.frame(Bytes::from_static(b"data"));
        drop(held);
        assert!(slow.admit(0).now_or_never().is_none(), "the frame is still to be sent");
        let mut waiting = Box::pin(slow.admit(0));
        assert!((&mut waiting).now_or_never().is_none());
        assert_eq!(&frame[..], b"data");
        drop(frame);
        drop(waiting.await);
        assert_eq!(total.load(Ordering::Relaxed), 0);
    }

    #[tokio::test]
    async fn when_all_hold_much_each_may_hold_little() {
        let total = Arc::new(AtomicUsize::new(0));
        let (large, small) = (Unsent::new(total.clone()), Unsent::new(total));
        let _small = small.admit(CROWDED_BYTES_MAX).await;
        assert!(small.admit(0).now_or_never().is_some());
        let held = large.admit(TOTAL_BYTES_MAX).await;
        assert!(small.admit(0).now_or_never().is_none());
        drop(held);
        assert!(small.admit(0).now_or_never().is_some());
    }
}

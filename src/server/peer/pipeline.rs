//! `POST /raft`: the way for messages while a stream is down, and for whoever has no stream.
//!
//! Four workers empty one bounded queue, each over a connection that it keeps.

use std::sync::Arc;
use std::sync::atomic::AtomicUsize;
use std::sync::atomic::Ordering;

use bytes::Bytes;
use http::HeaderValue;
use http::Method;
use http::StatusCode;
use http::header::CONTENT_TYPE;
use prost::Message as _;
use tokio::sync::Mutex;
use tokio::sync::mpsc;

use crate::proto::raftpb::Message;
use crate::server::peer::http_client::Connection;
use crate::server::peer::http_client::PeerUrl;
use crate::server::peer::http_client::RequestError;
use crate::server::peer::http_client::full;
use crate::server::peer::transport::Peer;
use crate::server::peer::transport::Shared;

/// Messages waiting for a worker, as in etcd. More are dropped and the peer reported unreachable.
const QUEUE_MESSAGES_MAX: usize = 64;

/// Bytes waiting for a worker; a single message may exceed it. More are dropped like too many messages.
const QUEUE_BYTES_MAX: usize = 64 << 20;

/// Requests under way to one peer, as in etcd.
pub(super) const WORKERS: usize = 4;

/// The queue of one peer.
#[derive(Debug)]
pub(super) struct Pipeline {
    sender: mpsc::Sender<Message>,
    receiver: Mutex<mpsc::Receiver<Message>>,
    bytes: AtomicUsize,
}

impl Pipeline {
    pub fn new() -> Pipeline {
        let (sender, receiver) = mpsc::channel(QUEUE_MESSAGES_MAX);
        Pipeline { sender, receiver: Mutex::new(receiver), bytes: AtomicUsize::new(0) }
    }

    /// Queues a message; `false` when there is no room. Never blocks.
    pub fn push(&self, message: Message) -> bool {
        let bytes = message.encoded_len();
        let waiting = self.bytes.fetch_add(bytes, Ordering::Relaxed);
        let fits = waiting == 0 || waiting + bytes <= QUEUE_BYTES_MAX;
        if fits && self.sender.try_send(message).is_ok() {
            return true;
        }
        self.bytes.fetch_sub(bytes, Ordering::Relaxed);
        false
    }

    /// The next message, encoded. The lock is held while waiting: the others wait for the same thing.
    async fn next(&self) -> Option<Bytes> {
        let message = self.receiver.lock().await.recv().await?;
        let encoded = Bytes::from(message.encode_to_vec());
        self.bytes.fetch_sub(encoded.len(), Ordering::Relaxed);
        Some(encoded)
    }
}

/// Why a message was not delivered.
#[derive(Debug, thiserror::Error)]
enum PostError {
    #[error(transparent)]
    Request(#[from] RequestError),
    #[error("peer answers {0} to a message: {1}")]
    Refused(StatusCode, String),
}

/// One worker. Runs until its peer goes away.
pub(super) async fn run(shared: Arc<Shared>, peer: Arc<Peer>) {
    let mut connection = None;
    while let Some(message) = peer.pipeline.next().await {
        let bytes = message.len() as u64;
        let Some(url) = peer.urls.pick() else {
            peer.unsent(&shared);
            continue;
        };
        match post(&shared, &url, &mut connection, message).await {
            Ok(()) => peer.metrics.sent_bytes.inc_by(bytes),
            Err(error) => {
                connection = None;
                peer.urls.failed(&url);
                peer.status.failed(&error.to_string());
                peer.unsent(&shared);
            }
        }
    }
}

/// Posts one message, over the kept connection if there is one to the same address. The other side closes idle
/// connections, perhaps just now, so a kept one that fails is replaced once.
async fn post(
    shared: &Shared,
    url: &Arc<PeerUrl>,
    kept: &mut Option<(Arc<PeerUrl>, Connection)>,
    message: Bytes,
) -> Result<(), PostError> {
    if let Some((kept_url, connection)) = kept
        && kept_url == url
        && connection.is_open()
    {
        match send(shared, connection, message.clone()).await {
            Err(PostError::Request(RequestError::Broken(..))) => {}
            done => return done,
        }
    }
    let (_, connection) = kept.insert((Arc::clone(url), Connection::open(url).await?));
    send(shared, connection, message).await
}

async fn send(shared: &Shared, connection: &mut Connection, message: Bytes) -> Result<(), PostError> {
    let mut request = shared.request(Method::POST, "/raft", full(message));
    request.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/protobuf"));
    let answer = connection.exchange(request, shared.timing.post_timeout).await?;
    match answer.status() {
        status if status.is_success() => Ok(()),
        status => {
            let body = String::from_utf8_lossy(answer.body()).trim().chars().take(200).collect();
            Err(PostError::Refused(status, body))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::raftpb::Entry;

    #[tokio::test]
    async fn the_queue_is_bounded_by_count_and_bytes() {
        let pipeline = Pipeline::new();
        for _ in 0..QUEUE_MESSAGES_MAX {
            assert!(pipeline.push(Message::default()));
        }
        assert!(!pipeline.push(Message::default()));
        assert!(pipeline.next().await.is_some());

        let large = || Message {
            entries: vec![Entry { data: Bytes::from(vec![0; QUEUE_BYTES_MAX]), ..Entry::default() }],
            ..Message::default()
        };
        let pipeline = Pipeline::new();
        assert!(pipeline.push(large()));
        assert!(!pipeline.push(large()));
        assert!(pipeline.next().await.is_some());
        assert!(pipeline.push(large()));
    }
}

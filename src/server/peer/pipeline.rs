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

use crate::proto::raft_numbers as numbers;
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

    /// The next message. The lock is held while waiting: the others wait for the same thing.
    async fn next(&self) -> Option<Letter> {
        let message = self.receiver.lock().await.recv().await?;
        let letter = Letter { bytes: Bytes::from(message.encode_to_vec()), repeatable: is_repeatable(&message) };
        self.bytes.fetch_sub(letter.bytes.len(), Ordering::Relaxed);
        Some(letter)
    }
}

/// A message on its way.
struct Letter {
    /// Encoded.
    bytes: Bytes,
    /// It may arrive twice.
    repeatable: bool,
}

/// Raft takes every message twice but one: a proposal that arrives twice is two entries, and a client's write is carried
/// out twice.
fn is_repeatable(message: &Message) -> bool {
    message.r#type != numbers::MSG_PROP
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
    while let Some(letter) = peer.pipeline.next().await {
        let bytes = letter.bytes.len() as u64;
        let Some(url) = peer.urls.pick() else {
            peer.unsent(&shared);
            continue;
        };
        match post(&shared, &url, &mut connection, letter).await {
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
/// connections, perhaps just now, so a kept one that fails is replaced once, unless the message may have arrived and
/// must not do so again.
async fn post(
    shared: &Shared,
    url: &Arc<PeerUrl>,
    kept: &mut Option<(Arc<PeerUrl>, Connection)>,
    letter: Letter,
) -> Result<(), PostError> {
    if let Some((kept_url, connection)) = kept
        && kept_url == url
        && connection.is_open()
    {
        match send(shared, connection, letter.bytes.clone()).await {
            Err(PostError::Request(RequestError::Broken(..))) if letter.repeatable => {}
            done => return done,
        }
    }
    let (_, connection) = kept.insert((Arc::clone(url), Connection::open(&shared.dialer, url).await?));
    send(shared, connection, letter.bytes).await
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

    /// Found by torture: a connection that broke behind a delivered proposal made two writes of one.
    #[tokio::test]
    async fn a_proposal_is_sent_once_and_other_messages_may_come_twice() {
        let pipeline = Pipeline::new();
        for (kind, repeatable) in
            [(numbers::MSG_PROP, false), (numbers::MSG_APP, true), (numbers::MSG_READ_INDEX, true)]
        {
            assert!(pipeline.push(Message { r#type: kind, ..Message::default() }));
            assert_eq!(pipeline.next().await.map(|letter| letter.repeatable), Some(repeatable));
        }
    }

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

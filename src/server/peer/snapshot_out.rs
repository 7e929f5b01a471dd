//! Sending a snapshot: the message and the image that goes with it, in one POST.
//!
//! Raft pauses a follower until it hears how the snapshot went (reliability.md R21), so every way out of here reports,
//! also a timeout, a cancelled task and a refusal at the door.

use std::io;
use std::os::unix::fs::FileExt;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering;
use std::task::Context;
use std::task::Poll;
use std::time::Duration;
use std::time::Instant;

use bytes::BufMut;
use bytes::Bytes;
use bytes::BytesMut;
use http::HeaderValue;
use http::Method;
use http::StatusCode;
use http::header::CONTENT_TYPE;
use http_body::Frame;
use http_body_util::BodyExt;
use prost::Message as _;
use tokio::sync::OwnedSemaphorePermit;
use tokio::sync::mpsc;
use tokio::task::spawn_blocking;
use tokio::time::timeout;

use crate::common::failure::Failure;
use crate::proto::raftpb::Message;
use crate::server::peer::http_client::Connection;
use crate::server::peer::http_client::PeerUrl;
use crate::server::peer::http_client::RequestError;
use crate::server::peer::http_client::read_body;
use crate::server::peer::transport::Peer;
use crate::server::peer::transport::Shared;
use crate::server::snapshot::Image;

/// Snapshots sent at once, to all peers together; more are reported as failed and asked for again by raft.
pub(super) const SENDS_MAX: usize = 2;

/// One read of the image.
const CHUNK_BYTES: usize = 256 << 10;

/// Chunks read ahead of the socket.
const CHUNKS_AHEAD: usize = 2;

/// Body of a refusal that is worth a log line.
const REFUSAL_BYTES_MAX: usize = 4096;

/// Why a snapshot did not arrive.
#[derive(Debug, thiserror::Error)]
enum SendError {
    #[error(transparent)]
    Request(#[from] RequestError),
    #[error(transparent)]
    Image(#[from] Failure),
    #[error("cannot read the image: {0}")]
    Read(io::Error),
    #[error("there is no image for snapshot {0} any more")]
    Gone(u64),
    #[error("peer has no usable url")]
    NoUrl,
    #[error("peer does not take the image")]
    Stalled,
    #[error("peer did not answer after the image")]
    NoAnswer,
    #[error("peer answers {0}: {1}")]
    Refused(StatusCode, String),
    #[error("task was cancelled")]
    Cancelled,
}

/// Sends `message` in a task of its own, or reports at once that it cannot. Called on the raft thread.
pub(super) fn start(shared: &Arc<Shared>, peer: &Arc<Peer>, message: Message) {
    let permit = Arc::clone(&shared.snapshot_sends).try_acquire_owned().ok();
    let permit = permit.filter(|_| !peer.sends_snapshot.swap(true, Ordering::AcqRel));
    let Some(permit) = permit else {
        tracing::info!(peer = %peer.id, "too many snapshots are being sent, this one has to wait");
        shared.inbox.report_snapshot(peer.id, false);
        return;
    };
    let report = Report::new(Arc::clone(shared), Arc::clone(peer), permit);
    let shared = Arc::clone(shared);
    peer.spawn(&shared.handle.clone(), Box::pin(async move { report.run(shared, message).await }));
}

/// Holds the right to send and reports the outcome when dropped, whatever the reason.
struct Report {
    shared: Arc<Shared>,
    peer: Arc<Peer>,
    started: Instant,
    delivered: AtomicBool,
    _permit: OwnedSemaphorePermit,
}

impl Report {
    fn new(shared: Arc<Shared>, peer: Arc<Peer>, permit: OwnedSemaphorePermit) -> Report {
        peer.snapshot_metrics.inflights.inc();
        Report { shared, peer, started: Instant::now(), delivered: AtomicBool::new(false), _permit: permit }
    }

    async fn run(self, shared: Arc<Shared>, message: Message) {
        let index = index_of(&message);
        match send(&shared, &self.peer, message).await {
            Ok(bytes) => {
                tracing::info!(peer = %self.peer.id, index, bytes, "sent snapshot");
                self.delivered.store(true, Ordering::Release);
            }
            Err(error) => tracing::warn!(peer = %self.peer.id, index, %error, "cannot send snapshot"),
        }
    }
}

impl Drop for Report {
    fn drop(&mut self) {
        let delivered = self.delivered.load(Ordering::Acquire);
        let metrics = &self.peer.snapshot_metrics;
        metrics.inflights.dec();
        metrics.seconds.observe(self.started.elapsed().as_secs_f64());
        if delivered {
            metrics.success.inc()
        } else {
            metrics.failures.inc()
        }
        self.peer.sends_snapshot.store(false, Ordering::Release);
        self.shared.inbox.report_snapshot(self.peer.id, delivered);
    }
}

fn index_of(message: &Message) -> u64 {
    let metadata = message.snapshot.as_ref().and_then(|snapshot| snapshot.metadata.as_ref());
    metadata.map_or(0, |metadata| metadata.index)
}

/// The number of image bytes delivered.
async fn send(shared: &Arc<Shared>, peer: &Peer, mut message: Message) -> Result<u64, SendError> {
    let index = index_of(&message);
    let images = Arc::clone(&shared.images);
    let opened = spawn_blocking(move || images.open(index)).await.map_err(|_| SendError::Cancelled)?;
    let image = opened?.ok_or(SendError::Gone(index))?;
    let metadata = message.snapshot.as_ref().and_then(|snapshot| snapshot.metadata.as_ref());
    if image.snapshot.metadata.as_ref() != metadata {
        return Err(SendError::Gone(index));
    }
    // The image knows the data that 3.4 to 3.6 want beside it (server.md 14.1).
    message.snapshot = Some(image.snapshot.clone());
    let bytes = image.bytes;
    let url = peer.urls.pick().ok_or(SendError::NoUrl)?;
    let outcome = post(shared, &url, message, image).await;
    if outcome.is_err() {
        peer.urls.failed(&url);
    }
    outcome.map(|()| bytes)
}

async fn post(shared: &Shared, url: &PeerUrl, message: Message, image: Image) -> Result<(), SendError> {
    let mut connection = Connection::open(&shared.dialer, url).await?;
    let (sender, pieces) = mpsc::channel(CHUNKS_AHEAD);
    let mut request = shared.request(Method::POST, "/raft/snapshot", ImageBody { pieces, ended: false }.boxed_unsync());
    request.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/octet-stream"));
    let mut feeding = std::pin::pin!(feed(message, image, sender, shared.timing.snapshot_stall));
    let mut answering = std::pin::pin!(connection.send(request));
    let answer = tokio::select! {
        // A refusal comes before the image was taken.
        answer = &mut answering => answer?,
        fed = &mut feeding => match fed {
            Ok(()) => {
                let answer = timeout(shared.timing.snapshot_answer, &mut answering).await;
                answer.map_err(|_| SendError::NoAnswer)??
            }
            // The connection is gone: its own error says more.
            Err(SendError::Cancelled) => answering.await?,
            Err(error) => return Err(error),
        },
    };
    let (head, body) = answer.into_parts();
    if head.status.is_success() {
        return Ok(());
    }
    let body = timeout(shared.timing.post_timeout, read_body(body, REFUSAL_BYTES_MAX)).await;
    let body = body.ok().and_then(Result::ok).unwrap_or_default();
    Err(SendError::Refused(head.status, String::from_utf8_lossy(&body).trim().to_owned()))
}

/// What the feeding task gives to the body of the request.
#[derive(Debug)]
enum Piece {
    Chunk(Bytes),
    End,
}

/// The body of the request. Unless the end was announced it ends with an error, which breaks the connection: an image
/// carries no digest, so one that was cut off must not look complete.
struct ImageBody {
    pieces: mpsc::Receiver<Piece>,
    ended: bool,
}

impl http_body::Body for ImageBody {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, io::Error>>> {
        let this = self.get_mut();
        if this.ended {
            return Poll::Ready(None);
        }
        let piece = std::task::ready!(this.pieces.poll_recv(context));
        this.ended = !matches!(piece, Some(Piece::Chunk(_)));
        Poll::Ready(match piece {
            Some(Piece::Chunk(chunk)) => Some(Ok(Frame::data(chunk))),
            Some(Piece::End) => None,
            None => Some(Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the image ended early"))),
        })
    }
}

/// Gives envelope and image to the request's body. Reads on blocking threads, from the start of the image, whatever
/// position its file has.
async fn feed(message: Message, image: Image, sender: mpsc::Sender<Piece>, stall: Duration) -> Result<(), SendError> {
    let mut envelope = BytesMut::with_capacity(8 + message.encoded_len());
    envelope.put_u64(message.encoded_len() as u64);
    message.encode_raw(&mut envelope);
    give(&sender, Piece::Chunk(envelope.freeze()), stall).await?;
    let file = Arc::new(image.file);
    let mut offset = 0;
    while offset < image.bytes {
        let wanted = (image.bytes - offset).min(CHUNK_BYTES as u64) as usize;
        let file = Arc::clone(&file);
        let read = spawn_blocking(move || {
            let mut chunk = vec![0; wanted];
            file.read_exact_at(&mut chunk, offset).map(|()| Bytes::from(chunk))
        });
        let chunk = read.await.map_err(|_| SendError::Cancelled)?.map_err(SendError::Read)?;
        offset += wanted as u64;
        give(&sender, Piece::Chunk(chunk), stall).await?;
    }
    give(&sender, Piece::End, stall).await
}

async fn give(sender: &mpsc::Sender<Piece>, piece: Piece, stall: Duration) -> Result<(), SendError> {
    match timeout(stall, sender.send(piece)).await {
        Err(_) => Err(SendError::Stalled),
        Ok(Err(_)) => Err(SendError::Cancelled),
        Ok(Ok(())) => Ok(()),
    }
}

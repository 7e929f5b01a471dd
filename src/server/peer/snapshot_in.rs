//! Receiving a snapshot: the message first, then the image into a file, then the member prepares it, then raft hears.
//!
//! One at a time. The image is verified and converted before raft learns of the snapshot (DESIGN.md 4), and once it is
//! complete that work is finished even if the sender goes away meanwhile.

use std::io;
use std::path::Path;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use bytes::BytesMut;
use http::StatusCode;
use http_body_util::BodyExt;
use hyper::body::Incoming;
use tokio::fs::File;
use tokio::fs::OpenOptions;
use tokio::io::AsyncWriteExt;
use tokio::sync::OwnedSemaphorePermit;
use tokio::task::spawn_blocking;
use tokio::time::timeout;

use crate::common::failure::Failure;
use crate::common::ids::MemberId;
use crate::proto::raft_numbers::MSG_SNAP;
use crate::proto::raftpb::Message;
use crate::server::peer::codec::CodecError;
use crate::server::peer::codec::decode_message;
use crate::server::peer::metrics::SnapshotMetrics;
use crate::server::peer::transport::Shared;
use crate::server::peer::validate::Refusal;
use crate::server::peer::validate::Way;

/// The message in front of the image (reliability.md 4.4).
const ENVELOPE_BYTES_MAX: u64 = 1 << 20;

/// An image beyond this is no one's database: etcd advises against more than 8 GiB.
const IMAGE_BYTES_MAX: u64 = 64 << 30;

/// Why a snapshot was not taken. The texts are etcd's answers.
#[derive(Debug, thiserror::Error)]
pub(super) enum ReceiveError {
    #[error("failed to decode raft message ({0})")]
    Envelope(String),
    #[error("wrong raft message type")]
    Type,
    #[error("failed to process raft message (cannot process message to mismatch member)")]
    NotForUs,
    #[error("failed to process raft message ({0})")]
    Refused(Refusal),
    #[error("failed to save KV snapshot ({0})")]
    Save(String),
}

impl ReceiveError {
    pub fn status(&self) -> StatusCode {
        match self {
            ReceiveError::Envelope(_) | ReceiveError::Type => StatusCode::BAD_REQUEST,
            _ => StatusCode::INTERNAL_SERVER_ERROR,
        }
    }

    fn save(error: impl std::fmt::Display) -> ReceiveError {
        ReceiveError::Save(error.to_string())
    }
}

/// Takes a snapshot from the body of a request; `from` is the sender by its own words.
pub(super) async fn receive(shared: &Arc<Shared>, from: Option<MemberId>, body: Incoming) -> Result<(), ReceiveError> {
    let known = from.filter(|from| shared.member(*from).is_some());
    let progress = Progress::new(shared.metrics.of_snapshot_from(known));
    let mut body = Chunks { body, ahead: BytesMut::new(), stall: shared.timing.snapshot_stall };
    let message = read_envelope(shared, from, &mut body).await?;
    let index = message.snapshot.as_ref().and_then(|snapshot| snapshot.metadata.as_ref()).map_or(0, |meta| meta.index);
    let permit = Arc::clone(&shared.snapshot_receives).try_acquire_owned();
    let permit = permit.map_err(|_| ReceiveError::save("another snapshot is being received"))?;

    let sink = Arc::clone(&shared.sink);
    let path = spawn_blocking(move || sink.incoming_path(index)).await.map_err(ReceiveError::save)?;
    let incoming = IncomingFile { path: Some(path) };
    let bytes = incoming.fill(&mut body).await.map_err(ReceiveError::save)?;
    let sender = from.unwrap_or_default();
    tracing::info!(from = %sender, index, bytes, "received a snapshot");
    let shared = Arc::clone(shared);
    let prepared = spawn_blocking(move || finish(&shared, message, incoming, permit, progress)).await;
    prepared.map_err(ReceiveError::save)?.map_err(ReceiveError::save)
}

/// Everything from the complete image to raft, on a blocking thread.
fn finish(
    shared: &Shared,
    message: Message,
    incoming: IncomingFile,
    permit: OwnedSemaphorePermit,
    mut progress: Progress,
) -> Result<(), Failure> {
    let prepared = shared.sink.prepare(&message);
    if let Err(failure) = &prepared {
        tracing::error!(%failure, "cannot prepare a received snapshot");
    } else {
        shared.inbox.step(message);
        progress.succeeded = true;
        incoming.keep();
    }
    drop(permit);
    prepared
}

/// Reads and judges the message in front of the image.
async fn read_envelope(shared: &Shared, from: Option<MemberId>, body: &mut Chunks) -> Result<Message, ReceiveError> {
    let envelope = |error: EnvelopeError| ReceiveError::Envelope(error.to_string());
    let head = body.exactly(8).await.map_err(envelope)?;
    let length = u64::from_be_bytes(head.as_ref().try_into().expect("exactly 8 bytes were asked for"));
    if length > ENVELOPE_BYTES_MAX {
        return Err(envelope(EnvelopeError::Limit));
    }
    let bytes = body.exactly(length as usize).await.map_err(envelope)?;
    let mut message = decode_message(&bytes).map_err(|error| envelope(error.into()))?;
    if message.r#type != MSG_SNAP {
        return Err(ReceiveError::Type);
    }
    shared.check(&mut message, from, Way::Snapshot).map_err(|refusal| match refusal {
        Refusal::NotForUs => ReceiveError::NotForUs,
        other => ReceiveError::Refused(other),
    })?;
    Ok(message)
}

/// Texts as etcd's decoder has them.
#[derive(Debug, thiserror::Error)]
enum EnvelopeError {
    #[error("EOF")]
    Empty,
    #[error("unexpected EOF")]
    Eof,
    #[error("rafthttp: error limit exceeded")]
    Limit,
    #[error("{0}")]
    Io(#[from] io::Error),
    #[error("{0}")]
    Codec(#[from] CodecError),
}

/// A body read in pieces, each of which has to come within `stall`.
struct Chunks {
    body: Incoming,
    ahead: BytesMut,
    stall: std::time::Duration,
}

impl Chunks {
    /// What is there; `None` at the end of the body.
    async fn next(&mut self) -> io::Result<Option<Bytes>> {
        if !self.ahead.is_empty() {
            return Ok(Some(self.ahead.split().freeze()));
        }
        loop {
            let frame = timeout(self.stall, self.body.frame()).await;
            let frame = frame.map_err(|_| io::Error::new(io::ErrorKind::TimedOut, "sender stalled"))?;
            match frame {
                None => return Ok(None),
                Some(Err(error)) => return Err(io::Error::other(error)),
                Some(Ok(frame)) => match frame.into_data() {
                    Ok(data) if !data.is_empty() => return Ok(Some(data)),
                    _ => {}
                },
            }
        }
    }

    /// The next `length` bytes, which the caller has limited.
    async fn exactly(&mut self, length: usize) -> Result<Bytes, EnvelopeError> {
        let mut bytes = BytesMut::new();
        while bytes.len() < length {
            match self.next().await? {
                Some(chunk) => bytes.extend_from_slice(&chunk),
                None if bytes.is_empty() => return Err(EnvelopeError::Empty),
                None => return Err(EnvelopeError::Eof),
            }
        }
        self.ahead = bytes.split_off(length);
        Ok(bytes.freeze())
    }
}

/// The file an image is written to; removed when dropped before it was prepared.
struct IncomingFile {
    path: Option<PathBuf>,
}

impl IncomingFile {
    /// Writes the rest of `body` to the file. Not synced: a crash before `prepare` has finished loses nothing that
    /// anyone was told.
    async fn fill(&self, body: &mut Chunks) -> io::Result<u64> {
        let path = self.path.as_deref().unwrap_or(Path::new(""));
        let mut file: File = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(path).await?;
        let mut bytes = 0;
        while let Some(chunk) = body.next().await? {
            bytes += chunk.len() as u64;
            if bytes > IMAGE_BYTES_MAX {
                return Err(io::Error::new(io::ErrorKind::FileTooLarge, "image is too large"));
            }
            file.write_all(&chunk).await?;
        }
        file.flush().await?;
        Ok(bytes)
    }

    /// `prepare` has taken care of the file.
    fn keep(mut self) {
        self.path = None;
    }
}

impl Drop for IncomingFile {
    fn drop(&mut self) {
        if let Some(path) = &self.path
            && let Err(error) = std::fs::remove_file(path)
            && error.kind() != io::ErrorKind::NotFound
        {
            tracing::warn!(path = %path.display(), %error, "cannot remove an unfinished snapshot");
        }
    }
}

/// Counts one receipt, whatever becomes of it.
struct Progress {
    metrics: SnapshotMetrics,
    started: Instant,
    succeeded: bool,
}

impl Progress {
    fn new(metrics: SnapshotMetrics) -> Progress {
        metrics.inflights.inc();
        Progress { metrics, started: Instant::now(), succeeded: false }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.metrics.inflights.dec();
        self.metrics.seconds.observe(self.started.elapsed().as_secs_f64());
        if self.succeeded { self.metrics.success.inc() } else { self.metrics.failures.inc() }
    }
}

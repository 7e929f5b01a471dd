//! The reading side of a stream: dials a peer, reads what it writes, and dials again.
//!
//! Runs as one task for each peer and kind until the peer goes away or tells that we were removed.

use std::sync::Arc;

use http::Method;
use http::Request;
use http::StatusCode;
use http_body_util::BodyExt;
use hyper::body::Incoming;
use tokio::time::sleep;
use tokio::time::timeout;

use crate::common::ids::MemberId;
use crate::server::peer::codec::CodecError;
use crate::server::peer::codec::Decoder;
use crate::server::peer::codec::StreamKind;
use crate::server::peer::headers;
use crate::server::peer::http_client::Body;
use crate::server::peer::http_client::Connection;
use crate::server::peer::http_client::DIAL_TIMEOUT;
use crate::server::peer::http_client::PeerUrl;
use crate::server::peer::http_client::RequestError;
use crate::server::peer::http_client::full;
use crate::server::peer::http_client::read_body;
use crate::server::peer::transport::Peer;
use crate::server::peer::transport::Shared;

/// Body of a refusal that is worth a log line.
const REFUSAL_BYTES_MAX: usize = 4096;

/// Why a stream ended or never began.
#[derive(Debug, thiserror::Error)]
enum StreamError {
    #[error(transparent)]
    Request(#[from] RequestError),
    #[error("peer {0} did not answer the dial in time")]
    DialTimeout(MemberId),
    #[error("peer {0} removed this member")]
    Removed(MemberId),
    #[error("peer answers {0}: {1}")]
    Refused(StatusCode, String),
    #[error("peer answers without a version that knows streams")]
    Version,
    #[error("stream broke: {0}")]
    Broken(hyper::Error),
    #[error("stream ended")]
    Ended,
    #[error("nothing was heard for the read timeout")]
    Silent,
    #[error("stream cannot be decoded: {0}")]
    Codec(#[from] CodecError),
}

/// Keeps one stream from `peer` up. Returns only when the peer says that we are not a member any more.
pub(super) async fn run(shared: Arc<Shared>, peer: Arc<Peer>, kind: StreamKind) {
    loop {
        let Some(url) = peer.urls.pick() else {
            sleep(shared.timing.dial_retry).await;
            continue;
        };
        let ended = match dial(&shared, &peer, kind, &url).await {
            Ok((connection, body)) => {
                let ended = read(&shared, &peer, kind, body).await;
                drop(connection);
                peer.metrics.received_failures.inc();
                ended
            }
            Err(StreamError::Removed(by)) => {
                tracing::warn!(%by, kind = kind.path_name(), "peer says that this member was removed from the cluster");
                shared.events.removed(by);
                return;
            }
            Err(error) => {
                peer.urls.failed(&url);
                error
            }
        };
        peer.status.failed(&ended.to_string());
        sleep(shared.timing.dial_retry).await;
    }
}

async fn dial(
    shared: &Shared,
    peer: &Peer,
    kind: StreamKind,
    url: &PeerUrl,
) -> Result<(Connection, Incoming), StreamError> {
    let mut connection = Connection::open(&shared.dialer, url).await?;
    let request = dial_request(shared, peer.id, kind);
    let answer = timeout(DIAL_TIMEOUT, connection.send(request)).await;
    let answer = answer.map_err(|_| StreamError::DialTimeout(peer.id))??;
    let (head, body) = answer.into_parts();
    match head.status {
        StatusCode::OK if headers::answers_with_version(&head.headers) => Ok((connection, body)),
        StatusCode::OK => Err(StreamError::Version),
        // Only a member of our own cluster may send us away for good: all its answers carry the id.
        StatusCode::GONE if headers::Signature::read(&head.headers).cluster == Some(shared.cluster) => {
            Err(StreamError::Removed(peer.id))
        }
        status => {
            let body = timeout(DIAL_TIMEOUT, read_body(body, REFUSAL_BYTES_MAX)).await;
            let body = body.ok().and_then(Result::ok).unwrap_or_default();
            Err(StreamError::Refused(status, String::from_utf8_lossy(&body).trim().to_owned()))
        }
    }
}

fn dial_request(shared: &Shared, peer: MemberId, kind: StreamKind) -> Request<Body> {
    let path = format!("/raft/stream/{}/{}", kind.path_name(), shared.local);
    let mut request = shared.request(Method::GET, &path, full(""));
    request.headers_mut().insert(headers::RAFT_TO, headers::text_value(peer.to_string()));
    request
}

/// Reads until the stream ends, which it always does with an error.
async fn read(shared: &Shared, peer: &Peer, kind: StreamKind, mut body: Incoming) -> StreamError {
    tracing::info!(peer = %peer.id, kind = kind.path_name(), "reads the stream of peer");
    let mut decoder = Decoder::new(kind, shared.local, peer.id);
    // A head alone says little: something that answers 200 and then nothing, again and again, is not heard.
    let mut connected = None;
    loop {
        let chunk = match timeout(shared.timing.read_timeout, body.frame()).await {
            Err(_) => return StreamError::Silent,
            Ok(None) => return StreamError::Ended,
            Ok(Some(Err(error))) => return StreamError::Broken(error),
            Ok(Some(Ok(frame))) => frame.into_data().unwrap_or_default(),
        };
        connected.get_or_insert_with(|| peer.status.connected());
        peer.metrics.received_bytes.inc_by(chunk.len() as u64);
        decoder.push(&chunk);
        loop {
            match decoder.next_message() {
                Ok(Some(message)) => shared.accept_from_stream(message, peer),
                Ok(None) => break,
                Err(error) => return error.into(),
            }
        }
    }
}

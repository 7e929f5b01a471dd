//! Calls on one bare HTTP/2 connection: no balancing, no second attempt, no deadline, no metadata.
//!
//! A load generator shares its cores with the server that it judges, so a request must cost it little: `Client` spends
//! about as much on choosing a connection and guarding an attempt as on the request itself.

use std::marker::PhantomData;
use std::sync::Arc;

use bytes::BufMut;
use bytes::Bytes;
use bytes::BytesMut;
use h2::RecvStream;
use h2::SendStream;
use h2::client::ResponseFuture;
use h2::client::SendRequest;
use http::Uri;
use prost::Message;
use tonic::Code;
use tonic::Status;

use super::CallError;
use super::RECEIVE_BYTES_MAX;
use super::connection::WINDOW_BYTES;
use super::endpoint::Endpoint;
use super::endpoint::Transport;
use crate::proto::etcdserverpb::CompactionRequest;
use crate::proto::etcdserverpb::CompactionResponse;
use crate::proto::etcdserverpb::DeleteRangeRequest;
use crate::proto::etcdserverpb::DeleteRangeResponse;
use crate::proto::etcdserverpb::LeaseGrantRequest;
use crate::proto::etcdserverpb::LeaseGrantResponse;
use crate::proto::etcdserverpb::LeaseKeepAliveRequest;
use crate::proto::etcdserverpb::LeaseKeepAliveResponse;
use crate::proto::etcdserverpb::LeaseRevokeRequest;
use crate::proto::etcdserverpb::LeaseRevokeResponse;
use crate::proto::etcdserverpb::PutRequest;
use crate::proto::etcdserverpb::PutResponse;
use crate::proto::etcdserverpb::RangeRequest;
use crate::proto::etcdserverpb::RangeResponse;
use crate::proto::etcdserverpb::SnapshotRequest;
use crate::proto::etcdserverpb::SnapshotResponse;
use crate::proto::etcdserverpb::TxnRequest;
use crate::proto::etcdserverpb::TxnResponse;
use crate::proto::etcdserverpb::WatchCreateRequest;
use crate::proto::etcdserverpb::WatchRequest;
use crate::proto::etcdserverpb::WatchResponse;
use crate::proto::etcdserverpb::watch_request::RequestUnion;
use crate::proto::v3electionpb::CampaignRequest;
use crate::proto::v3electionpb::CampaignResponse;
use crate::proto::v3electionpb::ResignRequest;
use crate::proto::v3electionpb::ResignResponse;
use crate::proto::v3lockpb::LockRequest;
use crate::proto::v3lockpb::LockResponse;
use crate::proto::v3lockpb::UnlockRequest;
use crate::proto::v3lockpb::UnlockResponse;

/// A flag byte (compressed or not) and four bytes of length stand before every message (gRPC over HTTP/2).
const FRAME_HEAD_BYTES: usize = 5;

/// Why a call failed.
#[derive(Debug, thiserror::Error)]
pub enum DirectError {
    /// The server said no. The connection is as good as before.
    #[error("{0}")]
    Refused(CallError),
    /// The connection is gone or what arrives on it is not gRPC: nothing more can be asked.
    #[error("{0}")]
    Lost(String),
}

/// A connection. Clones share it; each caller has its own clone.
#[derive(Clone)]
pub struct Direct {
    sender: SendRequest<Bytes>,
    targets: Arc<Targets>,
}

/// The methods' addresses, read once.
struct Targets {
    put: Uri,
    range: Uri,
    txn: Uri,
    delete_range: Uri,
    compact: Uri,
    lease_grant: Uri,
    lease_revoke: Uri,
    lease_keep_alive: Uri,
    watch: Uri,
    snapshot: Uri,
    lock: Uri,
    unlock: Uri,
    campaign: Uri,
    resign: Uri,
}

impl Direct {
    /// Dials `endpoint`. The second value runs until the connection ends and must be polled meanwhile.
    pub async fn open(endpoint: &str) -> Result<(Direct, impl Future<Output = ()> + Send + use<>), String> {
        let parsed = Endpoint::parse(endpoint);
        if parsed.transport == Transport::Tls {
            return Err(format!("endpoint {endpoint} asks for TLS, which these calls do not speak"));
        }
        let target = |method: &str| {
            let path = format!("/{method}");
            let uri = Uri::builder().scheme("http").authority(parsed.authority()).path_and_query(path).build();
            uri.map_err(|error| format!("{endpoint}: {error}"))
        };
        let targets = Arc::new(Targets {
            put: target("etcdserverpb.KV/Put")?,
            range: target("etcdserverpb.KV/Range")?,
            txn: target("etcdserverpb.KV/Txn")?,
            delete_range: target("etcdserverpb.KV/DeleteRange")?,
            compact: target("etcdserverpb.KV/Compact")?,
            lease_grant: target("etcdserverpb.Lease/LeaseGrant")?,
            lease_revoke: target("etcdserverpb.Lease/LeaseRevoke")?,
            lease_keep_alive: target("etcdserverpb.Lease/LeaseKeepAlive")?,
            watch: target("etcdserverpb.Watch/Watch")?,
            lock: target("v3lockpb.Lock/Lock")?,
            unlock: target("v3lockpb.Lock/Unlock")?,
            campaign: target("v3electionpb.Election/Campaign")?,
            resign: target("v3electionpb.Election/Resign")?,
            snapshot: target("etcdserverpb.Maintenance/Snapshot")?,
        });
        let socket = parsed.dial().await?;
        let (sender, connection) = h2::client::Builder::new()
            .initial_window_size(WINDOW_BYTES)
            .initial_connection_window_size(WINDOW_BYTES)
            .handshake(socket.stream)
            .await
            .map_err(|error| format!("{endpoint}: {error}"))?;
        // How the connection ended shows in the requests that it carried.
        let ended = async move { drop(connection.await) };
        Ok((Direct { sender, targets }, ended))
    }

    pub async fn put(&mut self, request: &PutRequest) -> Result<PutResponse, DirectError> {
        let target = self.targets.put.clone();
        self.call(target, request).await
    }

    pub async fn range(&mut self, request: &RangeRequest) -> Result<RangeResponse, DirectError> {
        let target = self.targets.range.clone();
        self.call(target, request).await
    }

    pub async fn txn(&mut self, request: &TxnRequest) -> Result<TxnResponse, DirectError> {
        let target = self.targets.txn.clone();
        self.call(target, request).await
    }

    pub async fn delete_range(&mut self, request: &DeleteRangeRequest) -> Result<DeleteRangeResponse, DirectError> {
        let target = self.targets.delete_range.clone();
        self.call(target, request).await
    }

    pub async fn compact(&mut self, request: &CompactionRequest) -> Result<CompactionResponse, DirectError> {
        let target = self.targets.compact.clone();
        self.call(target, request).await
    }

    pub async fn lease_grant(&mut self, request: &LeaseGrantRequest) -> Result<LeaseGrantResponse, DirectError> {
        let target = self.targets.lease_grant.clone();
        self.call(target, request).await
    }

    pub async fn lease_revoke(&mut self, request: &LeaseRevokeRequest) -> Result<LeaseRevokeResponse, DirectError> {
        let target = self.targets.lease_revoke.clone();
        self.call(target, request).await
    }

    /// One renewal on a stream of its own, which is as good as a call without a stream.
    pub async fn lease_keep_alive(
        &mut self,
        request: &LeaseKeepAliveRequest,
    ) -> Result<LeaseKeepAliveResponse, DirectError> {
        let target = self.targets.lease_keep_alive.clone();
        self.call(target, request).await
    }

    /// Returns when the lock is held, or will not be.
    pub async fn lock(&mut self, request: &LockRequest) -> Result<LockResponse, DirectError> {
        let target = self.targets.lock.clone();
        self.call(target, request).await
    }

    pub async fn unlock(&mut self, request: &UnlockRequest) -> Result<UnlockResponse, DirectError> {
        let target = self.targets.unlock.clone();
        self.call(target, request).await
    }

    /// Returns when the campaign is won, or lost.
    pub async fn campaign(&mut self, request: &CampaignRequest) -> Result<CampaignResponse, DirectError> {
        let target = self.targets.campaign.clone();
        self.call(target, request).await
    }

    pub async fn resign(&mut self, request: &ResignRequest) -> Result<ResignResponse, DirectError> {
        let target = self.targets.resign.clone();
        self.call(target, request).await
    }

    /// Opens a stream of watches.
    pub async fn watch(&mut self) -> Result<DirectWatch, DirectError> {
        let (answer, requests) = self.open_stream(self.targets.watch.clone()).await?;
        Ok(DirectWatch { requests, responses: Responses::new(answer) })
    }

    /// The member's database in chunks, its digest last.
    pub async fn snapshot(&mut self) -> Result<Responses<SnapshotResponse>, DirectError> {
        let (answer, mut requests) = self.open_stream(self.targets.snapshot.clone()).await?;
        requests.send_data(frame(&SnapshotRequest {}), true).map_err(lost)?;
        Ok(Responses::new(answer))
    }

    async fn open_stream(&mut self, target: Uri) -> Result<(ResponseFuture, SendStream<Bytes>), DirectError> {
        // Waits while the server's limit of concurrent streams is reached.
        std::future::poll_fn(|context| self.sender.poll_ready(context)).await.map_err(lost)?;
        let head = http::Request::post(target)
            .header(http::header::CONTENT_TYPE, "application/grpc")
            .header(http::header::TE, "trailers")
            .body(())
            .map_err(|error| DirectError::Lost(error.to_string()))?;
        self.sender.send_request(head, false).map_err(lost)
    }

    async fn call<Q: Message, R: Message + Default>(&mut self, target: Uri, request: &Q) -> Result<R, DirectError> {
        let (answer, mut stream) = self.open_stream(target).await?;
        stream.send_data(frame(request), true).map_err(lost)?;
        let mut body = body_of(answer).await?;
        let message = receive(&mut body).await?;
        if let Some(trailers) = body.trailers().await.map_err(lost)? {
            accept(Status::from_header_map(&trailers).unwrap_or_else(|| Status::unknown("no grpc-status")))?;
        }
        read_frame(message)
    }
}

/// A stream of watches, without any of what `client::watch` does to keep it going.
pub struct DirectWatch {
    requests: SendStream<Bytes>,
    responses: Responses<WatchResponse>,
}

impl DirectWatch {
    /// Asks for a watch; its creation is a response.
    pub fn create(&mut self, request: WatchCreateRequest) -> Result<(), DirectError> {
        let request = WatchRequest { request_union: Some(RequestUnion::CreateRequest(request)) };
        self.requests.send_data(frame(&request), false).map_err(lost)
    }

    /// The next response: this stream has no good end.
    pub async fn next(&mut self) -> Result<WatchResponse, DirectError> {
        let response = self.responses.next().await?;
        response.ok_or_else(|| DirectError::Lost("the stream has ended".to_owned()))
    }
}

/// Responses that come one after the other.
pub struct Responses<R> {
    /// Until the server has begun to answer.
    answer: Option<ResponseFuture>,
    body: Option<RecvStream>,
    /// What has come of the next response.
    buffer: BytesMut,
    kind: PhantomData<fn() -> R>,
}

impl<R: Message + Default> Responses<R> {
    fn new(answer: ResponseFuture) -> Responses<R> {
        Responses { answer: Some(answer), body: None, buffer: BytesMut::new(), kind: PhantomData }
    }

    /// The next response; `None` when the server says that there was the last.
    pub async fn next(&mut self) -> Result<Option<R>, DirectError> {
        loop {
            if let Some(response) = self.whole()? {
                return Ok(Some(response));
            }
            if let Some(answer) = self.answer.take() {
                self.body = Some(body_of(answer).await?);
            }
            let Some(body) = self.body.as_mut() else { return Ok(None) };
            let Some(piece) = body.data().await else {
                let trailers = body.trailers().await.map_err(lost)?.unwrap_or_default();
                accept(Status::from_header_map(&trailers).unwrap_or_else(|| Status::unknown("no grpc-status")))?;
                self.body = None;
                return match self.buffer.len() {
                    0 => Ok(None),
                    bytes => Err(DirectError::Lost(format!("the stream has ended {bytes} bytes into a response"))),
                };
            };
            let piece = piece.map_err(lost)?;
            body.flow_control().release_capacity(piece.len()).map_err(lost)?;
            self.buffer.extend_from_slice(&piece);
        }
    }

    /// A response that has come whole.
    fn whole(&mut self) -> Result<Option<R>, DirectError> {
        let Some(length) = self.buffer.get(1..FRAME_HEAD_BYTES) else { return Ok(None) };
        let length = length.iter().fold(0, |length, byte| length << 8 | usize::from(*byte));
        if length > RECEIVE_BYTES_MAX {
            return Err(DirectError::Lost("a response larger than 2 GiB".to_owned()));
        }
        if self.buffer.len() < FRAME_HEAD_BYTES + length {
            return Ok(None);
        }
        read_frame(self.buffer.split_to(FRAME_HEAD_BYTES + length).freeze()).map(Some)
    }
}

/// Waits for the head of an answer: its body.
async fn body_of(answer: ResponseFuture) -> Result<RecvStream, DirectError> {
    let (head, body) = answer.await.map_err(lost)?.into_parts();
    // An error without a message comes as headers alone.
    if let Some(status) = Status::from_header_map(&head.headers) {
        accept(status)?;
    }
    match head.status {
        http::StatusCode::OK => Ok(body),
        status => Err(DirectError::Lost(format!("HTTP status {status}"))),
    }
}

fn lost(error: h2::Error) -> DirectError {
    DirectError::Lost(error.to_string())
}

fn accept(status: Status) -> Result<(), DirectError> {
    match status.code() {
        Code::Ok => Ok(()),
        _ => Err(DirectError::Refused(CallError::of(status))),
    }
}

/// A message with gRPC's head, in one buffer.
fn frame<Q: Message>(message: &Q) -> Bytes {
    let length = message.encoded_len();
    let mut buffer = BytesMut::with_capacity(FRAME_HEAD_BYTES + length);
    buffer.put_u8(0);
    buffer.put_u32(u32::try_from(length).expect("requests are far smaller than 4 GiB"));
    message.encode(&mut buffer).expect("the buffer grows as needed");
    buffer.freeze()
}

/// The whole body. A small one arrives in one piece and is not copied.
async fn receive(body: &mut RecvStream) -> Result<Bytes, DirectError> {
    let mut first = Bytes::new();
    let mut whole = BytesMut::new();
    while let Some(piece) = body.data().await {
        let piece = piece.map_err(lost)?;
        // Given back at once: the window is for the server's pace, not for ours.
        body.flow_control().release_capacity(piece.len()).map_err(lost)?;
        if first.is_empty() {
            first = piece;
            continue;
        }
        if whole.is_empty() {
            whole.extend_from_slice(&first);
        }
        whole.extend_from_slice(&piece);
        if whole.len() > RECEIVE_BYTES_MAX {
            return Err(DirectError::Lost("a response larger than 2 GiB".to_owned()));
        }
    }
    Ok(if whole.is_empty() { first } else { whole.freeze() })
}

fn read_frame<R: Message + Default>(body: Bytes) -> Result<R, DirectError> {
    let broken = || DirectError::Lost("a response that is no gRPC message".to_owned());
    let (head, message) = body.split_at_checked(FRAME_HEAD_BYTES).ok_or_else(broken)?;
    let length = u32::from_be_bytes([head[1], head[2], head[3], head[4]]);
    if head[0] != 0 || usize::try_from(length).ok() != Some(message.len()) {
        return Err(broken());
    }
    R::decode(body.slice(FRAME_HEAD_BYTES..)).map_err(|_| broken())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_frame_is_read_back_and_a_broken_one_is_refused() {
        let request = PutRequest { key: "k".into(), value: "v".into(), ..PutRequest::default() };
        let framed = frame(&request);
        assert_eq!(framed[..5], [0, 0, 0, 0, 6]);
        assert_eq!(read_frame::<PutRequest>(framed.clone()).expect("our own frame"), request);
        let check = |bytes: Bytes| assert!(matches!(read_frame::<PutRequest>(bytes), Err(DirectError::Lost(_))));
        check(Bytes::new());
        check(framed.slice(..framed.len() - 1));
        check([&[1], &framed[1..]].concat().into());
        check(Bytes::from_static(&[0, 0, 0, 0, 1, 0xff]));
    }
}

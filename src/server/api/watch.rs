//! The Watch service: requests to the hub, its bytes to the socket.
//!
//! What the hub writes is framed already, many responses in one piece, so nothing is encoded here. One stream is one
//! body: whoever polls it for bytes also reads the requests, so an idle stream has no task of its own. Requests are read
//! while the client reads its answers, and no further.

use std::hash::BuildHasher;
use std::hash::RandomState;
use std::pin::Pin;
use std::sync::Arc;
use std::task::Context;
use std::task::Poll;
use std::time::Duration;

use bytes::Buf;
use bytes::Bytes;
use http::HeaderMap;
use http::HeaderValue;
use http::Request;
use http::Response;
use http::header::CONTENT_TYPE;
use http_body::Frame;
use prost::Message;
use tokio::time::Sleep;
use tonic::Status;
use tonic::body::Body;

use crate::proto::etcdserverpb::WatchRequest;
use crate::proto::etcdserverpb::watch_request::RequestUnion;
use crate::server::api::backend::Backend;
use crate::server::watch::event::FRAME_HEAD_BYTES;
use crate::server::watch::stream::WatchStream;

type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// Opens a stream for this call. Its request body bounds the size of a message.
pub fn serve<B>(backend: &Arc<dyn Backend>, request: Request<B>) -> Response<Body>
where
    B: http_body::Body<Data = Bytes> + Send + 'static,
    B::Error: Into<BoxError> + Send,
{
    let stream = match backend.open_watch() {
        Ok(stream) => stream,
        Err(answer) => return Status::from(answer).into_http(),
    };
    let every = jittered(backend.limits().progress_interval);
    let requests = Requests { body: Some(Box::pin(request.into_body())), buffer: Vec::new() };
    let mut response = Response::new(Body::new(WatchBody { requests, stream, every, tick: None, ended: false }));
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
    response
}

/// Up to a tenth is added, so that streams opened together do not all report together (server.md 4.5).
fn jittered(interval: Duration) -> Duration {
    interval + interval.mul_f64((RandomState::new().hash_one(interval) % 1000) as f64 / 10_000.0)
}

/// Messages of a request body.
struct Requests<B> {
    /// `None` once the client has closed its half, which does not end the stream (server.md 4.1).
    body: Option<Pin<Box<B>>>,
    /// A message that has not arrived whole.
    buffer: Vec<u8>,
}

impl<B> Requests<B>
where
    B: http_body::Body<Data = Bytes>,
    B::Error: Into<BoxError>,
{
    /// The next request. Pending for ever once the client has closed its half.
    fn poll(&mut self, context: &mut Context<'_>) -> Poll<Result<WatchRequest, Status>> {
        loop {
            if let Some(request) = self.whole()? {
                return Poll::Ready(Ok(request));
            }
            let Some(body) = &mut self.body else { return Poll::Pending };
            match std::task::ready!(body.as_mut().poll_frame(context)) {
                None => self.body = None,
                Some(Err(error)) => return Poll::Ready(Err(Status::from_error(error.into()))),
                Some(Ok(frame)) => {
                    if let Ok(data) = frame.into_data() {
                        self.buffer.extend_from_slice(&data);
                    }
                }
            }
        }
    }

    fn whole(&mut self) -> Result<Option<WatchRequest>, Status> {
        let Some((head, rest)) = self.buffer.split_at_checked(FRAME_HEAD_BYTES) else { return Ok(None) };
        if head[0] != 0 {
            return Err(Status::unimplemented("grpc: compressed messages are not supported"));
        }
        let length = (&head[1..]).get_u32() as usize;
        let Some(message) = rest.get(..length) else { return Ok(None) };
        let request = WatchRequest::decode(message);
        let request = request.map_err(|error| {
            Status::internal(format!("grpc: error unmarshalling request: {error}"))
        })?;
        self.buffer.drain(..FRAME_HEAD_BYTES + length);
        if self.buffer.is_empty() {
            // An idle stream keeps no memory for what it once asked.
            self.buffer = Vec::new();
        }
        Ok(Some(request))
    }
}

/// The response's body.
struct WatchBody<B> {
    requests: Requests<B>,
    stream: WatchStream,
    /// Between progress notices.
    every: Duration,
    /// Runs once a watch wants notices.
    tick: Option<Pin<Box<Sleep>>>,
    ended: bool,
}

impl<B> WatchBody<B>
where
    B: http_body::Body<Data = Bytes>,
    B::Error: Into<BoxError>,
{
    /// Hands on what the client asks. An error ends the stream.
    fn read_requests(&mut self, context: &mut Context<'_>) -> Result<(), Status> {
        while self.stream.may_ask() {
            let Poll::Ready(request) = self.requests.poll(context) else { break };
            let request = request?;
            if let Some(RequestUnion::CreateRequest(create)) = &request.request_union
                && create.progress_notify
                && self.tick.is_none()
            {
                self.tick = Some(Box::pin(tokio::time::sleep(self.every)));
            }
            self.stream.ask(request);
        }
        Ok(())
    }
}

impl<B> http_body::Body for WatchBody<B>
where
    B: http_body::Body<Data = Bytes>,
    B::Error: Into<BoxError>,
{
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let this = self.get_mut();
        if this.ended {
            return Poll::Ready(None);
        }
        if let Some(tick) = &mut this.tick {
            while tick.as_mut().poll(context).is_ready() {
                this.stream.tick();
                tick.as_mut().reset(tokio::time::Instant::now() + this.every);
            }
        }
        if let Err(status) = this.read_requests(context) {
            this.ended = true;
            let mut trailers = HeaderMap::new();
            return Poll::Ready(Some(status.add_header(&mut trailers).map(|()| Frame::trailers(trailers))));
        }
        this.stream.poll_bytes(context).map(|chunk| Some(Ok(Frame::data(chunk))))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::etcdserverpb::WatchProgressRequest;
    use http_body_util::StreamBody;

    fn frame(request: &WatchRequest) -> Vec<u8> {
        let mut frame = vec![0];
        frame.extend_from_slice(&(request.encoded_len() as u32).to_be_bytes());
        frame.extend(request.encode_to_vec());
        frame
    }

    /// Everything that is read from a body that arrives in pieces of this many bytes, and then ends.
    fn read(bytes: &[u8], piece: usize) -> Vec<Result<WatchRequest, String>> {
        let pieces = bytes.chunks(piece).map(|piece| Ok::<_, Status>(Frame::data(Bytes::copy_from_slice(piece))));
        let body = StreamBody::new(tokio_stream::iter(pieces.collect::<Vec<_>>()));
        let mut requests = Requests { body: Some(Box::pin(body)), buffer: Vec::new() };
        let mut context = Context::from_waker(std::task::Waker::noop());
        let mut all = Vec::new();
        while let Poll::Ready(request) = requests.poll(&mut context) {
            let failed = request.is_err();
            all.push(request.map_err(|status| status.message().to_owned()));
            if failed {
                break;
            }
        }
        all
    }

    #[test]
    fn requests_are_read_however_they_are_cut_and_the_end_is_none() {
        let progress = RequestUnion::ProgressRequest(WatchProgressRequest {});
        let requests = [WatchRequest { request_union: Some(progress) }, WatchRequest::default()];
        let bytes: Vec<u8> = requests.iter().flat_map(frame).collect();
        for piece in [1, 2, 3, 5, 7, 100] {
            assert_eq!(read(&bytes, piece), requests.clone().map(Ok), "pieces of {piece}");
        }
        assert_eq!(read(&bytes[..3], 100), [], "half a message is no request");
    }

    #[test]
    fn what_is_no_request_ends_the_stream() {
        let check = |bytes: &[u8], text: &str| {
            let read = read(bytes, 100);
            assert!(matches!(&read[..], [Err(error)] if error.starts_with(text)), "{read:?}");
        };
        check(&[1, 0, 0, 0, 0], "grpc: compressed");
        check(&[0, 0, 0, 0, 2, 0x0a, 0x7f], "grpc: error unmarshalling request");
    }

    #[test]
    fn a_tenth_of_the_interval_is_left_to_chance() {
        let interval = Duration::from_secs(600);
        assert!((0..100).all(|_| (interval..interval.mul_f64(1.1)).contains(&jittered(interval))));
    }
}

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
use bytes::BytesMut;
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

/// Bytes of requests that wait for the hub to answer earlier ones. Full means that the client may send no more.
const BUFFERED_BYTES_MAX: usize = 256 << 10;

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
    let requests = Requests { body: Some(Box::pin(request.into_body())), buffer: BytesMut::new() };
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
    buffer: BytesMut,
}

impl<B> Requests<B>
where
    B: http_body::Body<Data = Bytes>,
    B::Error: Into<BoxError>,
{
    /// Bytes of the first message with its head, as far as they are known.
    fn wanted_bytes(&self) -> usize {
        let length = self.buffer.get(1..FRAME_HEAD_BYTES).map_or(0, |mut length| length.get_u32() as usize);
        FRAME_HEAD_BYTES + length
    }

    /// Takes in what has arrived, also if nothing is decoded of it yet: the connection takes many small frames that
    /// nobody fetches for an attack.
    fn fetch(&mut self, context: &mut Context<'_>) -> Result<(), Status> {
        while self.buffer.len() < self.wanted_bytes().max(BUFFERED_BYTES_MAX)
            && let Some(body) = &mut self.body
            && let Poll::Ready(frame) = body.as_mut().poll_frame(context)
        {
            match frame {
                None => self.body = None,
                Some(Err(error)) => return Err(Status::from_error(error.into())),
                Some(Ok(frame)) => {
                    if let Ok(data) = frame.into_data() {
                        self.buffer.extend_from_slice(&data);
                    }
                }
            }
        }
        Ok(())
    }

    /// The next request that has arrived whole.
    fn next(&mut self, context: &mut Context<'_>) -> Result<Option<WatchRequest>, Status> {
        if let Some(request) = self.whole()? {
            return Ok(Some(request));
        }
        self.fetch(context)?;
        self.whole()
    }

    fn whole(&mut self) -> Result<Option<WatchRequest>, Status> {
        if self.buffer.first().is_some_and(|compressed| *compressed != 0) {
            return Err(Status::unimplemented("grpc: compressed messages are not supported"));
        }
        let whole = self.wanted_bytes();
        if self.buffer.len() < whole {
            return Ok(None);
        }
        let message = self.buffer.split_to(whole).split_off(FRAME_HEAD_BYTES);
        if self.buffer.is_empty() {
            // An idle stream keeps no memory for what it once asked.
            self.buffer = BytesMut::new();
        }
        let request = WatchRequest::decode(message);
        let request =
            request.map_err(|error| Status::internal(format!("grpc: error unmarshalling request: {error}")))?;
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
        self.requests.fetch(context)?;
        while self.stream.may_ask()
            && let Some(request) = self.requests.next(context)?
        {
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
        let mut requests = Requests { body: Some(Box::pin(body)), buffer: BytesMut::new() };
        let mut context = Context::from_waker(std::task::Waker::noop());
        let mut all = Vec::new();
        while let Some(request) = requests.next(&mut context).transpose() {
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

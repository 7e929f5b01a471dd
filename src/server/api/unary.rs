//! Calls of one message each way: the message is decoded where it lies, and the answer is one buffer.
//!
//! The gRPC library's way to the same end costs two buffers of 8 KB and five boxes a call. It still serves whatever is
//! not the plain case of one whole uncompressed message in one frame: then it gets all that was read, and words the errors.

use std::future::Future;
use std::pin::Pin;
use std::task::Context;
use std::task::Poll;

use bytes::BufMut;
use bytes::Bytes;
use bytes::BytesMut;
use http::HeaderMap;
use http::HeaderValue;
use http::Response;
use http::header::CONTENT_TYPE;
use http_body::Frame;
use http_body::SizeHint;
use prost::Message;
use tonic::Status;
use tonic::body::Body;

use crate::server::api::unsent::Counted;

/// Bytes in front of each message: a compression flag and a length (gRPC over HTTP/2).
const PREFIX_BYTES: usize = 5;

/// What a body began with.
pub enum Read<M, B: http_body::Body> {
    /// One message and nothing else.
    Message(M),
    /// Anything else, in full.
    Other(Replay<B>),
}

/// A body of which something was read already: gives it out again, then the rest.
pub struct Replay<B: http_body::Body> {
    read: Vec<Result<Frame<Bytes>, B::Error>>,
    ended: bool,
    rest: B,
}

impl<B: http_body::Body> Replay<B> {
    /// The body as it is.
    pub fn nothing_read(rest: B) -> Replay<B> {
        Replay { read: Vec::new(), ended: false, rest }
    }
}

/// Reads a request's body up to its end if it is one plain message, else as far as needed to know that it is not.
pub async fn read<M, B>(mut body: B) -> Read<M, B>
where
    M: Message + Default,
    B: http_body::Body<Data = Bytes> + Unpin,
{
    let mut read = Vec::new();
    let mut message = None;
    let mut plain = true;
    while plain && !body.is_end_stream() {
        match std::future::poll_fn(|cx| Pin::new(&mut body).poll_frame(cx)).await {
            None => break,
            Some(Ok(frame)) => {
                match frame.data_ref() {
                    Some(data) if data.is_empty() => {}
                    Some(data) if message.is_none() => {
                        message = decode(data);
                        plain = message.is_some();
                    }
                    _ => plain = false,
                }
                read.push(Ok(frame));
            }
            Some(Err(error)) => {
                plain = false;
                read.push(Err(error));
            }
        }
    }
    match message {
        Some(message) if plain => Read::Message(message),
        _ => {
            read.reverse();
            // A body says its end once.
            Read::Other(Replay { read, ended: plain, rest: body })
        }
    }
}

/// The message of a frame that holds one uncompressed message and nothing else.
fn decode<M: Message + Default>(data: &Bytes) -> Option<M> {
    let (prefix, _) = data.split_first_chunk::<PREFIX_BYTES>()?;
    let [flag, length @ ..] = *prefix;
    let length = usize::try_from(u32::from_be_bytes(length)).ok()?;
    if flag != 0 || length != data.len() - PREFIX_BYTES {
        return None;
    }
    M::decode(data.slice(PREFIX_BYTES..)).ok()
}

impl<B: http_body::Body<Data = Bytes> + Unpin> http_body::Body for Replay<B>
where
    B::Error: Unpin,
{
    type Data = Bytes;
    type Error = B::Error;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, B::Error>>> {
        let this = self.get_mut();
        match this.read.pop() {
            Some(read) => Poll::Ready(Some(read)),
            None if this.ended => Poll::Ready(None),
            None => Pin::new(&mut this.rest).poll_frame(cx),
        }
    }

    fn is_end_stream(&self) -> bool {
        self.read.is_empty() && (self.ended || self.rest.is_end_stream())
    }
}

/// The response of a handler.
pub fn respond<M: Message>(answer: Result<Counted<M>, Status>) -> Response<Reply> {
    match answer.and_then(|answer| Ok((encode(&answer.response)?, answer.held))) {
        Ok((data, held)) => {
            let mut response = Response::new(Reply::One { data: Some(data), done: false });
            if let Some(held) = held {
                response.extensions_mut().insert(held);
            }
            response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
            response
        }
        Err(status) => status.into_http::<Body>().map(Reply::Stream),
    }
}

fn encode(message: &impl Message) -> Result<Bytes, Status> {
    let length = message.encoded_len();
    let Ok(prefix) = u32::try_from(length) else {
        return Err(Status::resource_exhausted(format!("a response of {length} bytes is larger than gRPC can say")));
    };
    let mut data = BytesMut::with_capacity(PREFIX_BYTES + length);
    data.put_u8(0);
    data.put_u32(prefix);
    message.encode(&mut data).expect("a BytesMut grows");
    Ok(data.freeze())
}

/// The body of a response.
pub enum Reply {
    /// One message, then the status OK.
    One { data: Option<Bytes>, done: bool },
    /// What the gRPC library made.
    Stream(Body),
}

impl http_body::Body for Reply {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        match self.get_mut() {
            Reply::One { data, done } => {
                if let Some(data) = data.take() {
                    return Poll::Ready(Some(Ok(Frame::data(data))));
                }
                if std::mem::replace(done, true) {
                    return Poll::Ready(None);
                }
                let mut trailers = HeaderMap::with_capacity(1);
                trailers.insert("grpc-status", HeaderValue::from_static("0"));
                Poll::Ready(Some(Ok(Frame::trailers(trailers))))
            }
            Reply::Stream(body) => Pin::new(body).poll_frame(cx),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Reply::One { done, .. } => *done,
            Reply::Stream(body) => body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            // Trailers follow: no length is to be announced.
            Reply::One { .. } => SizeHint::new(),
            Reply::Stream(body) => body.size_hint(),
        }
    }
}

/// Answers a plain call by `handler`; hands everything else on.
pub async fn serve<M, A, B, F>(body: B, handler: impl FnOnce(M) -> F) -> Result<Response<Reply>, Replay<B>>
where
    M: Message + Default,
    A: Message,
    B: http_body::Body<Data = Bytes> + Unpin,
    F: Future<Output = Result<Counted<A>, Status>>,
{
    match read(body).await {
        Read::Message(message) => Ok(respond(handler(message).await)),
        Read::Other(replay) => Err(replay),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::etcdserverpb::PutRequest;
    use http_body::Body as _;
    use http_body_util::BodyExt;
    use http_body_util::StreamBody;

    type Frames = Vec<Result<Frame<Bytes>, Status>>;

    fn put() -> PutRequest {
        PutRequest { key: Bytes::from_static(b"key"), value: Bytes::from_static(b"value"), ..PutRequest::default() }
    }

    fn message() -> Bytes {
        encode(&put()).expect("small")
    }

    fn data(bytes: impl Into<Bytes>) -> Result<Frame<Bytes>, Status> {
        Ok(Frame::data(bytes.into()))
    }

    /// What was read: the message, or the bytes of the replay and the error at its end.
    async fn check(frames: Frames) -> Result<PutRequest, (Vec<u8>, bool)> {
        match read::<PutRequest, _>(StreamBody::new(tokio_stream::iter(frames))).await {
            Read::Message(message) => Ok(message),
            Read::Other(mut replay) => {
                let (mut bytes, mut failed) = (Vec::new(), false);
                while let Some(frame) = replay.frame().await {
                    match frame {
                        Ok(frame) => bytes.extend_from_slice(frame.data_ref().map_or(&[], |data| data)),
                        Err(_) => failed = true,
                    }
                }
                Err((bytes, failed))
            }
        }
    }

    #[tokio::test]
    async fn one_whole_message_is_plain() {
        assert_eq!(check(vec![data(message())]).await, Ok(put()));
        assert_eq!(check(vec![data(message()), data("")]).await, Ok(put()));
    }

    #[tokio::test]
    async fn everything_else_is_passed_on_whole() {
        let whole = message();
        let cases: Vec<Frames> = vec![
            vec![],
            vec![data("")],
            vec![data(whole.slice(..3)), data(whole.slice(3..))],
            vec![data(whole.slice(..9)), data(whole.slice(9..))],
            vec![data([&whole[..], &whole[..]].concat())],
            vec![data(whole.clone()), data(whole.clone())],
            vec![data([&[1], &whole[1..]].concat())],
            vec![data(b"\0\0\0\0\x02\x0a\x09".to_vec())],
        ];
        for frames in cases {
            let sent: Vec<u8> =
                frames.iter().flatten().flat_map(|frame| frame.data_ref().expect("data").to_vec()).collect();
            assert_eq!(check(frames).await, Err((sent, false)));
        }
        let broken = vec![data(whole.clone()), Err(Status::cancelled("gone")), data(whole.clone())];
        assert_eq!(check(broken).await, Err(([&whole[..], &whole[..]].concat(), true)));
    }

    #[tokio::test]
    async fn an_answer_is_one_frame_and_the_status() {
        let mut response = respond(Ok(Counted { response: put(), held: None }));
        assert_eq!(response.headers()[CONTENT_TYPE], "application/grpc");
        let body = response.body_mut();
        assert!(!body.is_end_stream());
        assert_eq!(body.frame().await.expect("data").expect("no error").into_data().expect("data"), message());
        let trailers = body.frame().await.expect("trailers").expect("no error").into_trailers().expect("trailers");
        assert_eq!((trailers.len(), &trailers["grpc-status"]), (1, &HeaderValue::from_static("0")));
        assert!(body.is_end_stream() && body.frame().await.is_none());
        let refused = respond::<PutRequest>(Err(Status::not_found("no")));
        assert_eq!(refused.headers()["grpc-status"], "5");
    }
}

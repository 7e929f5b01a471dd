//! Bodies of gRPC calls with eyes: they count messages, bound their size, and end a call that must end.

use std::pin::Pin;
use std::sync::Arc;
use std::task::Context;
use std::task::Poll;
use std::time::Instant;

use bytes::Bytes;
use http::HeaderMap;
use http_body::Body;
use http_body::Frame;
use http_body::SizeHint;
use prometheus::IntCounter;
use tonic::Code;
use tonic::Status;

use crate::server::api::ending::Ending;
use crate::server::api::metrics::MethodMetrics;
use crate::server::api::unsent::Held;

type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// Bytes in front of each message: a compression flag and a length (gRPC over HTTP/2).
const PREFIX_BYTES: usize = 5;

/// Finds the messages in a body, however it is cut into frames.
#[derive(Debug, Default)]
struct Messages {
    prefix: [u8; PREFIX_BYTES],
    prefix_len: usize,
    /// Bytes of the current message still to come.
    rest: usize,
}

impl Messages {
    /// Walks over the next bytes; calls `found` with the length of each message whose prefix ends in them.
    fn walk(&mut self, mut bytes: &[u8], mut found: impl FnMut(usize)) {
        while !bytes.is_empty() {
            if self.rest > 0 {
                let skipped = self.rest.min(bytes.len());
                self.rest -= skipped;
                bytes = &bytes[skipped..];
                continue;
            }
            let wanted = (PREFIX_BYTES - self.prefix_len).min(bytes.len());
            self.prefix[self.prefix_len..self.prefix_len + wanted].copy_from_slice(&bytes[..wanted]);
            self.prefix_len += wanted;
            bytes = &bytes[wanted..];
            if self.prefix_len == PREFIX_BYTES {
                let [_, length @ ..] = self.prefix;
                self.rest = u32::from_be_bytes(length) as usize;
                self.prefix_len = 0;
                found(self.rest);
            }
        }
    }
}

/// The request's body. A message above the limit ends it before any of its bytes is kept.
pub struct RequestBody<B> {
    inner: B,
    messages: Messages,
    message_bytes_max: usize,
    metrics: Arc<MethodMetrics>,
    received_bytes: IntCounter,
}

impl<B> RequestBody<B> {
    pub fn new(
        inner: B,
        message_bytes_max: usize,
        metrics: Arc<MethodMetrics>,
        received_bytes: IntCounter,
    ) -> RequestBody<B> {
        RequestBody { inner, messages: Messages::default(), message_bytes_max, metrics, received_bytes }
    }
}

impl<B> Body for RequestBody<B>
where
    B: Body<Data = Bytes> + Unpin,
    B::Error: Into<BoxError>,
{
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let this = self.get_mut();
        let frame = match std::task::ready!(Pin::new(&mut this.inner).poll_frame(cx)) {
            None => return Poll::Ready(None),
            Some(Err(error)) => return Poll::Ready(Some(Err(error.into()))),
            Some(Ok(frame)) => frame,
        };
        let mut too_large = None;
        if let Some(data) = frame.data_ref() {
            let max = this.message_bytes_max;
            this.messages.walk(data, |length| match length > max {
                true => too_large = Some(length),
                false => {
                    this.metrics.received.inc();
                    this.received_bytes.inc_by(length as u64);
                }
            });
        }
        match too_large {
            // grpc-go's words: clients test for them.
            Some(length) => {
                let text = format!("grpc: received message larger than max ({length} vs. {})", this.message_bytes_max);
                Poll::Ready(Some(Err(Status::resource_exhausted(text).into())))
            }
            None => Poll::Ready(Some(Ok(frame))),
        }
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}

/// Says once how a call ended. Dropped before: the caller went away.
pub struct Outcome {
    metrics: Arc<MethodMetrics>,
    start: Instant,
    told: bool,
}

impl Outcome {
    pub fn new(metrics: Arc<MethodMetrics>, start: Instant) -> Outcome {
        Outcome { metrics, start, told: false }
    }

    pub fn tell(&mut self, code: Code) {
        if !std::mem::replace(&mut self.told, true) {
            self.metrics.finished(code, self.start.elapsed());
        }
    }
}

impl Drop for Outcome {
    fn drop(&mut self) {
        self.tell(Code::Cancelled);
    }
}

/// The response's body: passes frames on, counts messages, reports the status, and cuts the call when it must end.
pub struct ResponseBody<B> {
    inner: B,
    messages: Messages,
    outcome: Outcome,
    ending: Ending,
    metrics: Arc<MethodMetrics>,
    sent_bytes: IntCounter,
    /// Where the answer is large: counts it until its frames are sent.
    held: Option<Arc<Held>>,
    ended: bool,
}

impl<B> ResponseBody<B> {
    pub fn new(
        inner: B,
        outcome: Outcome,
        ending: Ending,
        metrics: Arc<MethodMetrics>,
        sent_bytes: IntCounter,
        held: Option<Arc<Held>>,
    ) -> ResponseBody<B> {
        ResponseBody { inner, messages: Messages::default(), outcome, ending, metrics, sent_bytes, held, ended: false }
    }
}

impl<B> Body for ResponseBody<B>
where
    B: Body<Data = Bytes> + Unpin,
{
    type Data = Bytes;
    type Error = B::Error;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, B::Error>>> {
        let this = self.get_mut();
        if this.ended {
            return Poll::Ready(None);
        }
        match Pin::new(&mut this.inner).poll_frame(cx) {
            Poll::Ready(Some(Ok(frame))) => {
                if let Some(data) = frame.data_ref() {
                    this.messages.walk(data, |length| {
                        this.metrics.sent.inc();
                        this.sent_bytes.inc_by(length as u64);
                    });
                } else if let Some(trailers) = frame.trailers_ref() {
                    this.outcome.tell(code_of(trailers));
                }
                let frame = match &this.held {
                    Some(held) => frame.map_data(|data| held.frame(data)),
                    None => frame,
                };
                Poll::Ready(Some(Ok(frame)))
            }
            Poll::Ready(end) => {
                this.outcome.tell(Code::Unknown);
                Poll::Ready(end)
            }
            Poll::Pending => {
                let status = std::task::ready!(this.ending.poll(cx));
                this.ended = true;
                this.outcome.tell(status.code());
                let mut trailers = HeaderMap::new();
                let written = status.add_header(&mut trailers);
                Poll::Ready(written.is_ok().then(|| Ok(Frame::trailers(trailers))))
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.ended || self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}

/// The gRPC code in headers or trailers; UNKNOWN when there is none or it is no number.
pub fn code_of(headers: &HeaderMap) -> Code {
    headers.get("grpc-status").map_or(Code::Unknown, |value| Code::from_bytes(value.as_bytes()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_found_in_any_cut() {
        let mut body = Vec::new();
        for length in [3u32, 0, 300] {
            body.push(0);
            body.extend_from_slice(&length.to_be_bytes());
            body.extend(std::iter::repeat_n(7u8, length as usize));
        }
        for cut in 1..20 {
            let (mut messages, mut found) = (Messages::default(), Vec::new());
            for part in body.chunks(cut) {
                messages.walk(part, |length| found.push(length));
            }
            assert_eq!(found, [3, 0, 300], "cut every {cut} bytes");
        }
    }
}

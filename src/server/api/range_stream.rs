//! A range in pages: chunks that grow and shrink with the size of values (server.md 3.4).
//!
//! Every page is read from a view of its own, at the revision of the first: nothing is held between two pages, so a slow
//! receiver pins neither memory nor disk, and a compaction in between is noticed.

use std::pin::Pin;
use std::sync::Arc;
use std::task::Context;
use std::task::Poll;

use bytes::BytesMut;
use futures_core::Stream;
use futures_util::StreamExt;
use futures_util::stream;
use prost::Message;
use tonic::Status;

use crate::common::answer::Answer;
use crate::proto::etcdserverpb::RangeRequest;
use crate::proto::etcdserverpb::RangeResponse;
use crate::proto::etcdserverpb::RangeStreamResponse;
use crate::proto::etcdserverpb::ResponseHeader;
use crate::server::api::backend::Backend;
use crate::server::api::header;
use crate::server::api::kv::blocking;

/// Keys of the first chunk.
const FIRST_CHUNK_KEYS: i64 = 10;

/// The stream of one call.
pub struct RangeStream {
    chunks: Pin<Box<dyn Stream<Item = Result<RangeStreamResponse, Status>> + Send>>,
}

impl RangeStream {
    /// The request was checked, and the barrier passed if it wants one.
    pub fn new(backend: Arc<dyn Backend>, request: RangeRequest) -> RangeStream {
        let chunks = stream::unfold(Some(Pager::new(backend, request)), |pager| async move {
            let mut pager = pager?;
            match pager.next().await {
                Ok((chunk, true)) => Some((Ok(chunk), None)),
                Ok((chunk, false)) => Some((Ok(chunk), Some(pager))),
                Err(answer) => Some((Err(answer.into()), None)),
            }
        });
        RangeStream { chunks: Box::pin(chunks) }
    }
}

impl Stream for RangeStream {
    type Item = Result<RangeStreamResponse, Status>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.chunks.poll_next_unpin(cx)
    }
}

/// Where the stream is: the request for the next page, and what the last chunk has to say.
struct Pager {
    backend: Arc<dyn Backend>,
    /// Key, revision and limit change from page to page.
    page: RangeRequest,
    /// Keys still allowed; `None` without a limit.
    remaining: Option<i64>,
    chunk_keys: i64,
    /// Set by the first page: the full count and the header's revision.
    first: Option<(i64, i64)>,
}

impl Pager {
    fn new(backend: Arc<dyn Backend>, request: RangeRequest) -> Pager {
        let remaining = (request.limit > 0).then_some(request.limit);
        // A negative limit sends everything as one chunk; one key and a count are one chunk anyhow.
        let whole = request.limit < 0 || request.count_only || request.range_end.is_empty();
        let chunk_keys = if whole { i64::MAX } else { FIRST_CHUNK_KEYS };
        Pager { backend, page: request, remaining, chunk_keys, first: None }
    }

    /// The next chunk, and whether it is the last.
    async fn next(&mut self) -> Result<(RangeStreamResponse, bool), Answer> {
        let mut page = self.page.clone();
        page.limit = match self.chunk_keys.min(self.remaining.unwrap_or(i64::MAX)) {
            i64::MAX => 0,
            keys => keys,
        };
        let snapshot = self.backend.snapshot();
        let revision = snapshot.revision();
        if self.first.is_none() && page.revision <= 0 {
            page.revision = revision;
            self.page.revision = revision;
        }
        let response = blocking(move || snapshot.range(&page)).await?;
        let (count, first_revision) = *self.first.get_or_insert((response.count, revision));
        if let Some(remaining) = &mut self.remaining {
            *remaining -= response.kvs.len() as i64;
        }
        let last = !response.more || response.kvs.is_empty() || self.remaining == Some(0);
        let chunk = match last {
            true => {
                let header = Some(ResponseHeader { revision: first_revision, ..ResponseHeader::default() });
                RangeResponse { header: header::complete(&*self.backend, header), count, ..response }
            }
            false => {
                self.advance(&response);
                RangeResponse { kvs: response.kvs, ..RangeResponse::default() }
            }
        };
        Ok((RangeStreamResponse { range_response: Some(chunk) }, last))
    }

    /// The next page starts at the smallest key behind the last one; its size follows the bytes of this one.
    fn advance(&mut self, sent: &RangeResponse) {
        let Some(last) = sent.kvs.last() else { return };
        let mut key = BytesMut::with_capacity(last.key.len() + 1);
        key.extend_from_slice(&last.key);
        key.extend_from_slice(&[0]);
        self.page.key = key.freeze();
        let (bytes, goal) = (sent.encoded_len(), self.backend.limits().request_bytes_max);
        if bytes < goal / 2 {
            self.chunk_keys = self.chunk_keys.saturating_mul(2);
        } else if bytes > goal.saturating_mul(2) {
            self.chunk_keys = (self.chunk_keys / 2).max(1);
        }
    }
}

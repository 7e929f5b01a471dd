//! The KV service: checks, barriers and routing. What a request means is decided by the store.

use std::sync::Arc;
use std::time::Instant;

use prost::Message;
use tonic::Request;
use tonic::Response;
use tonic::Status;

use crate::common::answer::Answer;
use crate::proto::etcdserverpb::CompactionRequest;
use crate::proto::etcdserverpb::CompactionResponse;
use crate::proto::etcdserverpb::DeleteRangeRequest;
use crate::proto::etcdserverpb::DeleteRangeResponse;
use crate::proto::etcdserverpb::PutRequest;
use crate::proto::etcdserverpb::PutResponse;
use crate::proto::etcdserverpb::RangeRequest;
use crate::proto::etcdserverpb::RangeResponse;
use crate::proto::etcdserverpb::RequestOp;
use crate::proto::etcdserverpb::TxnRequest;
use crate::proto::etcdserverpb::TxnResponse;
use crate::proto::etcdserverpb::kv_server::Kv;
use crate::proto::etcdserverpb::range_request::SortOrder;
use crate::proto::etcdserverpb::request_op::Request as RequestUnion;
use crate::proto::mvccpb::KeyValue;
use crate::server::api::backend::Backend;
use crate::server::api::check;
use crate::server::api::header;
use crate::server::api::metrics::RequestMetrics;
use crate::server::api::range_stream::RangeStream;
use crate::server::api::unsent::Counted;
use crate::server::api::unsent::MANY_KEYS_BYTES;
use crate::server::api::unsent::STORED_BYTES;
use crate::server::api::unsent::Unsent;
use crate::server::api::unsent::unsent_of;
use crate::server::apply::quota;
use crate::server::apply::txn;

/// A range of at most this many keys is read on the socket's thread: moving it costs more than reading it.
const INLINE_KEYS_MAX: i64 = 16;

/// Serves KV over the member behind it.
#[derive(Clone)]
pub struct KvService {
    backend: Arc<dyn Backend>,
    metrics: RequestMetrics,
}

impl KvService {
    pub fn new(backend: Arc<dyn Backend>, metrics: RequestMetrics) -> KvService {
        KvService { backend, metrics }
    }

    async fn read(&self, request: RangeRequest, unsent: &Arc<Unsent>) -> Result<Counted<RangeResponse>, Answer> {
        if !request.serializable {
            self.backend.read_barrier().await?;
        }
        let is_small = is_small(&request);
        let held = unsent.admit(if is_small { 0 } else { MANY_KEYS_BYTES }).await;
        let mut response = if is_small {
            self.backend.range(&request)?
        } else {
            let snapshot = self.backend.snapshot();
            Box::pin(blocking(move || snapshot.range(&request))).await?
        };
        response.header = header::complete(&*self.backend, response.header);
        let held = held.made(pairs_bytes(&response.kvs));
        Ok(Counted { response, held })
    }

    async fn read_txn(&self, request: TxnRequest, unsent: &Arc<Unsent>) -> Result<Counted<TxnResponse>, Answer> {
        if !txn::is_serializable(&request) {
            self.backend.read_barrier().await?;
        }
        let is_small = is_small_txn(&request);
        let held = unsent.admit(if is_small { 0 } else { MANY_KEYS_BYTES }).await;
        let snapshot = self.backend.snapshot();
        let mut response = match is_small {
            true => snapshot.txn(&request)?,
            false => blocking(move || snapshot.txn(&request)).await?,
        };
        response.header = header::complete(&*self.backend, response.header);
        let held = held.made(response.encoded_len());
        Ok(Counted { response, held })
    }

    async fn write_txn(&self, request: TxnRequest, unsent: &Arc<Unsent>) -> Result<Counted<TxnResponse>, Answer> {
        let held = unsent.admit(STORED_BYTES).await;
        let mut response = self.backend.txn(request).await?;
        response.header = header::complete(&*self.backend, response.header);
        let held = held.made(response.encoded_len());
        Ok(Counted { response, held })
    }
}

fn pairs_bytes(pairs: &[KeyValue]) -> usize {
    pairs.iter().map(|kv| kv.key.len() + kv.value.len()).sum()
}

/// Whether a range reads a few records whatever the store holds: a sort or a filter would look at all of the interval.
fn is_small(request: &RangeRequest) -> bool {
    let limited = (1..=INLINE_KEYS_MAX).contains(&request.limit);
    let sorted = request.sort_target != 0 || request.sort_order == SortOrder::Descend as i32;
    let bounds =
        [request.min_mod_revision, request.max_mod_revision, request.min_create_revision, request.max_create_revision];
    request.range_end.is_empty() || (limited && !sorted && bounds.iter().all(|bound| *bound == 0))
}

fn is_small_txn(request: &TxnRequest) -> bool {
    let ops = request.compare.len() + request.success.len().max(request.failure.len());
    let single =
        |op: &RequestOp| matches!(&op.request, Some(RequestUnion::RequestRange(range)) if range.range_end.is_empty());
    ops <= INLINE_KEYS_MAX as usize
        && request.compare.iter().all(|compare| compare.range_end.is_empty())
        && request.success.iter().chain(&request.failure).all(single)
}

/// Runs a read that may go to the disk on a thread of its own.
pub(crate) async fn blocking<T: Send + 'static>(
    read: impl FnOnce() -> Result<T, Answer> + Send + 'static,
) -> Result<T, Answer> {
    tokio::task::spawn_blocking(read).await.unwrap_or_else(|_| Err(Answer::Other("the read panicked".to_owned())))
}

/// The unary calls, as both the plain way (`unary`) and the gRPC library call them.
impl KvService {
    pub async fn answer_range(
        &self,
        request: RangeRequest,
        unsent: &Arc<Unsent>,
    ) -> Result<Counted<RangeResponse>, Status> {
        if self.backend.is_learner() && !request.serializable {
            return Err(Answer::NotSupportedForLearner.into());
        }
        check::range(&request)?;
        let start = Instant::now();
        let result = self.read(request, unsent).await;
        self.metrics.observe_range(start.elapsed(), result.is_ok());
        Ok(result?)
    }

    pub async fn answer_put(&self, request: PutRequest, unsent: &Arc<Unsent>) -> Result<Counted<PutResponse>, Status> {
        let start = Instant::now();
        // The quota comes before the shape (server.md 6.4).
        self.backend.check_quota(quota::put_cost(&request)).await?;
        check::put(&request)?;
        let held = if request.prev_kv { Some(unsent.admit(STORED_BYTES).await) } else { None };
        let result = self.backend.put(request).await;
        self.metrics.observe("Put", start.elapsed(), result.is_ok());
        let mut response = result?;
        response.header = header::complete(&*self.backend, response.header);
        let held = held.and_then(|held| held.made(response.encoded_len()));
        Ok(Counted { response, held })
    }

    pub async fn answer_delete_range(
        &self,
        request: DeleteRangeRequest,
        unsent: &Arc<Unsent>,
    ) -> Result<Counted<DeleteRangeResponse>, Status> {
        check::delete_range(&request)?;
        let start = Instant::now();
        let held = if request.prev_kv { Some(unsent.admit(STORED_BYTES).await) } else { None };
        let result = self.backend.delete_range(request).await;
        self.metrics.observe("DeleteRange", start.elapsed(), result.is_ok());
        let mut response = result?;
        response.header = header::complete(&*self.backend, response.header);
        let held = held.and_then(|held| held.made(response.encoded_len()));
        Ok(Counted { response, held })
    }

    pub async fn answer_txn(&self, request: TxnRequest, unsent: &Arc<Unsent>) -> Result<Counted<TxnResponse>, Status> {
        let start = Instant::now();
        let cost = quota::txn_cost(&request);
        if cost > 0 {
            self.backend.check_quota(cost).await?;
        }
        check::txn(&request, self.backend.limits().txn_ops_max)?;
        let (kind, result) = match txn::is_read_only(&request) {
            true => ("ReadonlyTxn", self.read_txn(request, unsent).await),
            false => ("Txn", self.write_txn(request, unsent).await),
        };
        self.metrics.observe(kind, start.elapsed(), result.is_ok());
        Ok(result?)
    }
}

#[tonic::async_trait]
impl Kv for KvService {
    async fn range(&self, request: Request<RangeRequest>) -> Result<Response<RangeResponse>, Status> {
        let unsent = unsent_of(request.extensions());
        self.answer_range(request.into_inner(), &unsent).await.map(Counted::into_response)
    }

    type RangeStreamStream = RangeStream;

    async fn range_stream(&self, request: Request<RangeRequest>) -> Result<Response<RangeStream>, Status> {
        let request = request.into_inner();
        check::range_stream(&request)?;
        if !request.serializable {
            self.backend.read_barrier().await?;
        }
        Ok(Response::new(RangeStream::new(self.backend.clone(), request)))
    }

    async fn put(&self, request: Request<PutRequest>) -> Result<Response<PutResponse>, Status> {
        let unsent = unsent_of(request.extensions());
        self.answer_put(request.into_inner(), &unsent).await.map(Counted::into_response)
    }

    async fn delete_range(
        &self,
        request: Request<DeleteRangeRequest>,
    ) -> Result<Response<DeleteRangeResponse>, Status> {
        let unsent = unsent_of(request.extensions());
        self.answer_delete_range(request.into_inner(), &unsent).await.map(Counted::into_response)
    }

    async fn txn(&self, request: Request<TxnRequest>) -> Result<Response<TxnResponse>, Status> {
        let unsent = unsent_of(request.extensions());
        self.answer_txn(request.into_inner(), &unsent).await.map(Counted::into_response)
    }

    async fn compact(&self, request: Request<CompactionRequest>) -> Result<Response<CompactionResponse>, Status> {
        let start = Instant::now();
        let result = self.backend.compact(request.into_inner()).await;
        self.metrics.observe("Compaction", start.elapsed(), result.is_ok());
        let mut response = result?;
        response.header = header::complete(&*self.backend, response.header);
        Ok(Response::new(response))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::Bytes;

    #[test]
    fn only_reads_of_a_few_records_stay_on_the_sockets_thread() {
        let check = |change: fn(&mut RangeRequest), small: bool| {
            let mut request = RangeRequest { key: Bytes::from_static(b"k"), ..RangeRequest::default() };
            change(&mut request);
            assert_eq!(is_small(&request), small, "{request:?}");
            let op = RequestOp { request: Some(RequestUnion::RequestRange(request.clone())) };
            let txn = TxnRequest { success: vec![op], ..TxnRequest::default() };
            assert_eq!(is_small_txn(&txn), request.range_end.is_empty());
        };
        check(|_| (), true);
        check(|request| request.range_end = Bytes::from_static(b"z"), false);
        check(|request| (request.range_end, request.limit) = (Bytes::from_static(b"z"), 3), true);
        check(|request| (request.range_end, request.limit) = (Bytes::from_static(b"z"), 1000), false);
        check(
            |request| (request.range_end, request.limit, request.sort_order) = (Bytes::from_static(b"z"), 3, 2),
            false,
        );
        check(
            |request| (request.range_end, request.limit, request.min_mod_revision) = (Bytes::from_static(b"z"), 3, 2),
            false,
        );
    }
}

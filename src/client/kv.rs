//! Calls of the key-value service.

use tonic::Streaming;

use super::CallError;
use super::Client;
use super::Deadline;
use super::call;
use super::call::Method;
use crate::proto::etcdserverpb::CompactionRequest;
use crate::proto::etcdserverpb::CompactionResponse;
use crate::proto::etcdserverpb::DeleteRangeRequest;
use crate::proto::etcdserverpb::DeleteRangeResponse;
use crate::proto::etcdserverpb::PutRequest;
use crate::proto::etcdserverpb::PutResponse;
use crate::proto::etcdserverpb::RangeRequest;
use crate::proto::etcdserverpb::RangeResponse;
use crate::proto::etcdserverpb::RangeStreamResponse;
use crate::proto::etcdserverpb::TxnRequest;
use crate::proto::etcdserverpb::TxnResponse;
use crate::proto::etcdserverpb::request_op::Request as Op;

const RANGE: Method = Method::read("/etcdserverpb.KV/Range");
const RANGE_STREAM: Method = Method::read("/etcdserverpb.KV/RangeStream");
const PUT: Method = Method::write("/etcdserverpb.KV/Put");
const DELETE_RANGE: Method = Method::write("/etcdserverpb.KV/DeleteRange");
const TXN: Method = Method::write("/etcdserverpb.KV/Txn");
const READ_ONLY_TXN: Method = Method::read("/etcdserverpb.KV/Txn");
const COMPACT: Method = Method::write("/etcdserverpb.KV/Compact");

impl Client {
    pub async fn range(&self, request: RangeRequest, deadline: Deadline) -> Result<RangeResponse, CallError> {
        self.unary(&RANGE, request, deadline).await
    }

    /// A range that the server sends in pieces, put together again: the answer that `range` would have given.
    pub async fn range_stream(&self, request: RangeRequest, deadline: Deadline) -> Result<RangeResponse, CallError> {
        let mut pieces: Streaming<RangeStreamResponse> = self.server_stream(&RANGE_STREAM, request, deadline).await?;
        let mut whole = RangeResponse::default();
        let gather = async {
            while let Some(piece) = pieces.message().await? {
                let Some(piece) = piece.range_response else { continue };
                // Every piece may bring any part; the numbers come with the last one that has them.
                whole.header = piece.header.or(whole.header.take());
                whole.kvs.extend(piece.kvs);
                whole.more |= piece.more;
                whole.count = whole.count.max(piece.count);
            }
            Ok(())
        };
        match call::within(deadline, gather).await {
            Some(gathered) => gathered.map(|()| whole),
            None => Err(CallError::Deadline { last: None }),
        }
    }

    pub async fn put(&self, request: PutRequest, deadline: Deadline) -> Result<PutResponse, CallError> {
        self.unary(&PUT, request, deadline).await
    }

    pub async fn delete_range(
        &self,
        request: DeleteRangeRequest,
        deadline: Deadline,
    ) -> Result<DeleteRangeResponse, CallError> {
        self.unary(&DELETE_RANGE, request, deadline).await
    }

    /// A transaction; one that only reads may be repeated like a read.
    pub async fn txn(&self, request: TxnRequest, deadline: Deadline) -> Result<TxnResponse, CallError> {
        let method = if only_reads(&request) { &READ_ONLY_TXN } else { &TXN };
        self.unary(method, request, deadline).await
    }

    pub async fn compact(
        &self,
        request: CompactionRequest,
        deadline: Deadline,
    ) -> Result<CompactionResponse, CallError> {
        self.unary(&COMPACT, request, deadline).await
    }
}

fn only_reads(txn: &TxnRequest) -> bool {
    txn.success.iter().chain(&txn.failure).all(|op| match &op.request {
        Some(Op::RequestRange(_)) | None => true,
        Some(Op::RequestTxn(nested)) => only_reads(nested),
        Some(Op::RequestPut(_) | Op::RequestDeleteRange(_)) => false,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::etcdserverpb::RequestOp;

    #[test]
    fn a_txn_with_a_write_anywhere_is_a_write() {
        let txn = |op: Op| TxnRequest { failure: vec![RequestOp { request: Some(op) }], ..TxnRequest::default() };
        assert!(only_reads(&txn(Op::RequestRange(RangeRequest::default()))));
        assert!(!only_reads(&txn(Op::RequestPut(PutRequest::default()))));
        assert!(!only_reads(&txn(Op::RequestTxn(txn(Op::RequestDeleteRange(DeleteRangeRequest::default()))))));
        assert!(only_reads(&txn(Op::RequestTxn(txn(Op::RequestRange(RangeRequest::default()))))));
    }
}

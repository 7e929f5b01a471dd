//! Values in two forms: long as members store them, short as a history keeps them.
//!
//! The long form of `name:3` is `name:xxx`. A value that does not have the form keeps its bytes, so that a damaged one
//! is never equal to what was written. Memory then follows the number of requests and not the size of values.

use bytes::Bytes;

use crate::proto::etcdserverpb::RequestOp;
use crate::proto::etcdserverpb::ResponseOp;
use crate::proto::etcdserverpb::WatchResponse;
use crate::proto::etcdserverpb::request_op;
use crate::proto::etcdserverpb::response_op;
use crate::proto::mvccpb::KeyValue;
use crate::torture::checker::model::Request;
use crate::torture::checker::model::Response;

const PADDING: u8 = b'x';

/// The short form of a long value.
pub fn short(value: &Bytes) -> Bytes {
    let Some(colon) = value.iter().position(|byte| *byte == b':') else { return Bytes::copy_from_slice(value) };
    let (name, padding) = (&value[..colon], &value[colon + 1..]);
    if !padding.iter().all(|byte| *byte == PADDING) {
        return Bytes::copy_from_slice(value);
    }
    let mut short = name.to_vec();
    short.extend_from_slice(format!(":{}", padding.len()).as_bytes());
    short.into()
}

/// The long form of a short value.
pub fn long(value: &Bytes) -> Bytes {
    let text = String::from_utf8_lossy(value);
    let Some((name, length)) = text.split_once(':') else { return value.clone() };
    let Ok(length) = length.parse::<usize>() else { return value.clone() };
    let mut long = format!("{name}:").into_bytes();
    long.resize(long.len() + length, PADDING);
    long.into()
}

/// Changes every value that a request writes.
pub fn in_request(request: &mut Request, change: fn(&Bytes) -> Bytes) {
    match request {
        Request::Put(put) => put.value = change(&put.value),
        Request::Txn(txn) => {
            for compare in &mut txn.compare {
                if let Some(crate::proto::etcdserverpb::compare::TargetUnion::Value(value)) = &mut compare.target_union
                {
                    *value = change(value);
                }
            }
            let ops = txn.success.iter_mut().chain(&mut txn.failure);
            ops.for_each(|op: &mut RequestOp| {
                if let Some(request_op::Request::RequestPut(put)) = &mut op.request {
                    put.value = change(&put.value);
                }
            });
        }
        Request::DeleteRange(_)
        | Request::Compact(_)
        | Request::Range(_)
        | Request::LeaseGrant(_)
        | Request::LeaseRevoke(_) => {}
    }
}

/// Shortens every value that a response tells.
pub fn shorten_response(response: &mut Response) {
    match response {
        Response::Put(put) => put.prev_kv.iter_mut().for_each(shorten),
        Response::DeleteRange(delete) => delete.prev_kvs.iter_mut().for_each(shorten),
        Response::Range(range) => range.kvs.iter_mut().for_each(shorten),
        Response::Txn(txn) => txn.responses.iter_mut().for_each(|op: &mut ResponseOp| match &mut op.response {
            Some(response_op::Response::ResponseRange(range)) => range.kvs.iter_mut().for_each(shorten),
            Some(response_op::Response::ResponsePut(put)) => put.prev_kv.iter_mut().for_each(shorten),
            Some(response_op::Response::ResponseDeleteRange(delete)) => delete.prev_kvs.iter_mut().for_each(shorten),
            Some(response_op::Response::ResponseTxn(_)) | None => {}
        }),
        Response::Compact(_) | Response::LeaseGrant(_) | Response::LeaseRevoke(_) => {}
    }
}

/// Shortens every value that a watch is told.
pub fn shorten_events(response: &mut WatchResponse) {
    for event in &mut response.events {
        event.kv.iter_mut().chain(&mut event.prev_kv).for_each(shorten);
    }
}

fn shorten(kv: &mut KeyValue) {
    // Also the key: a slice would hold the whole message that it came in.
    kv.key = Bytes::copy_from_slice(&kv.key);
    kv.value = short(&kv.value);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn forms_go_back_and_forth_and_damage_shows() {
        for text in ["c1-2:0", "c1-2:7", "c1-2:70000"] {
            let value = Bytes::from(text);
            assert_eq!(short(&long(&value)), value);
        }
        assert_eq!(short(&Bytes::from_static(b"c1-2:xxyx")), Bytes::from_static(b"c1-2:xxyx"));
        assert_eq!(short(&Bytes::from_static(b"plain")), Bytes::from_static(b"plain"));
        assert_eq!(long(&Bytes::from_static(b"c1:3")), Bytes::from_static(b"c1:xxx"));
    }
}

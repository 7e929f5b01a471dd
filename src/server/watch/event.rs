//! The bytes of responses: a change is encoded once, and each watcher gets it behind a head of its own.
//!
//! ```text
//!  0 · length (4 bytes) │ header │ watch id │ fragment │ event │ event …
//!  ──── gRPC's frame ───┴────── the watcher's head ────┴── shared ──────
//! ```

use bytes::BufMut;
use bytes::Bytes;
use prost::Message;
use prost::encoding::WireType;
use prost::encoding::encode_key;
use prost::encoding::encode_varint;
use prost::encoding::encoded_len_varint;

use crate::proto::etcdserverpb::ResponseHeader;
use crate::proto::etcdserverpb::WatchResponse;
use crate::proto::mvccpb::Event;
use crate::proto::mvccpb::KeyValue;
use crate::proto::mvccpb::event::EventType;
use crate::server::checkpoint::Record;

/// Fields of a WatchResponse (server.md 1.4).
const HEADER_FIELD: u32 = 1;
const WATCH_ID_FIELD: u32 = 2;
const FRAGMENT_FIELD: u32 = 7;
const EVENTS_FIELD: u32 = 11;

/// A compression flag and a length stand before every message (gRPC over HTTP/2).
pub const FRAME_HEAD_BYTES: usize = 5;

/// No response may be larger, whatever the watcher asked for: lengths in gRPC are Go's `int32` at many ends.
pub const RESPONSE_BYTES_MAX: usize = i32::MAX as usize;

/// Whether this change creates its key, so that there is no previous pair to look for (server.md 4.3).
pub fn is_creation(record: &Record) -> bool {
    !record.tombstone && record.kv.create_revision == record.revision.main
}

/// Appends one change as a field of a response.
pub fn encode(record: &Record, previous: Option<KeyValue>, buffer: &mut impl BufMut) {
    let (kind, kv) = match record.tombstone {
        true => {
            let (key, mod_revision) = (record.kv.key.clone(), record.revision.main);
            (EventType::Delete, KeyValue { key, mod_revision, ..KeyValue::default() })
        }
        false => (EventType::Put, record.kv.clone()),
    };
    let event = Event { r#type: kind.into(), kv: Some(kv), prev_kv: previous };
    encode_key(EVENTS_FIELD, WireType::LengthDelimited, buffer);
    encode_varint(event.encoded_len() as u64, buffer);
    event.encode_raw(buffer);
}

/// A change in the two forms that watchers want, each made when the first of them wants it.
pub struct SharedEvent<'a> {
    record: &'a Record,
    plain: Option<Bytes>,
    with_previous: Option<Bytes>,
}

impl SharedEvent<'_> {
    pub fn new(record: &Record) -> SharedEvent<'_> {
        SharedEvent { record, plain: None, with_previous: None }
    }

    pub fn record(&self) -> &Record {
        self.record
    }

    /// The encoded change. `previous` is asked at most once, and only if somebody wants it.
    pub fn bytes(&mut self, wants_previous: bool, previous: impl FnOnce(&Record) -> Option<KeyValue>) -> Bytes {
        let slot = if wants_previous { &mut self.with_previous } else { &mut self.plain };
        let encoded = slot.get_or_insert_with(|| {
            let before = if wants_previous && !is_creation(self.record) { previous(self.record) } else { None };
            let mut buffer = Vec::with_capacity(self.record.kv.encoded_len() + 32);
            encode(self.record, before, &mut buffer);
            Bytes::from(buffer)
        });
        encoded.clone()
    }
}

/// The header of responses as a field, made once for all watchers of a revision.
pub fn header_field(header: &ResponseHeader) -> Vec<u8> {
    let mut buffer = Vec::with_capacity(header.encoded_len() + 2);
    encode_key(HEADER_FIELD, WireType::LengthDelimited, &mut buffer);
    encode_varint(header.encoded_len() as u64, &mut buffer);
    header.encode_raw(&mut buffer);
    buffer
}

/// Bytes of a response beside its events, without the frame's head.
pub fn head_bytes(header: &[u8], watch_id: i64, fragment: bool) -> usize {
    // An id that is 0 is left out, as every zero is; negative ones take ten bytes.
    let id = if watch_id == 0 { 0 } else { 1 + encoded_len_varint(watch_id as u64) };
    header.len() + id + if fragment { 2 } else { 0 }
}

/// Appends the head of a response with `event_bytes` of events to follow.
pub fn write_head(header: &[u8], watch_id: i64, fragment: bool, event_bytes: usize, buffer: &mut Vec<u8>) {
    let length = head_bytes(header, watch_id, fragment) + event_bytes;
    buffer.put_u8(0);
    buffer.put_u32(u32::try_from(length).expect("responses are cut below 2 GiB"));
    buffer.extend_from_slice(header);
    if watch_id != 0 {
        encode_key(WATCH_ID_FIELD, WireType::Varint, buffer);
        encode_varint(watch_id as u64, buffer);
    }
    if fragment {
        encode_key(FRAGMENT_FIELD, WireType::Varint, buffer);
        encode_varint(1, buffer);
    }
}

/// Appends a whole response without events.
pub fn write_response(response: &WatchResponse, buffer: &mut Vec<u8>) {
    buffer.put_u8(0);
    buffer.put_u32(u32::try_from(response.encoded_len()).expect("a response without events is small"));
    response.encode_raw(buffer);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::common::revision::Revision;

    fn put(create: i64, revision: i64) -> Record {
        let kv = KeyValue {
            key: "k".into(),
            value: "v".into(),
            create_revision: create,
            mod_revision: revision,
            version: 1,
            lease: 7,
        };
        Record { revision: Revision::new(revision, 0), tombstone: false, kv }
    }

    #[test]
    fn a_response_in_pieces_is_the_message_that_prost_writes() {
        let tombstone = Record {
            revision: Revision::new(9, 1),
            tombstone: true,
            kv: KeyValue { key: "k".into(), ..KeyValue::default() },
        };
        for (watch_id, fragment) in [(0, false), (1, true), (300, false), (-1, true), (i64::MIN, false)] {
            let header = ResponseHeader { cluster_id: u64::MAX, member_id: 3, revision: 9, raft_term: 2 };
            let mut events = Vec::new();
            let previous = put(2, 8).kv;
            encode(&put(2, 9), None, &mut events);
            encode(&tombstone, Some(previous.clone()), &mut events);
            let mut written = Vec::new();
            write_head(&header_field(&header), watch_id, fragment, events.len(), &mut written);
            written.extend_from_slice(&events);
            let deleted = KeyValue { key: "k".into(), mod_revision: 9, ..KeyValue::default() };
            let response = WatchResponse {
                header: Some(header),
                watch_id,
                fragment,
                events: vec![
                    Event { r#type: 0, kv: Some(put(2, 9).kv), prev_kv: None },
                    Event { r#type: 1, kv: Some(deleted), prev_kv: Some(previous) },
                ],
                ..WatchResponse::default()
            };
            let mut expected = Vec::new();
            write_response(&response, &mut expected);
            assert_eq!(written, expected, "watch id {watch_id}");
            assert_eq!(written.len(), FRAME_HEAD_BYTES + response.encoded_len());
        }
    }

    #[test]
    fn a_previous_pair_is_looked_up_once_and_never_for_a_creation() {
        let record = put(2, 9);
        let mut event = SharedEvent::new(&record);
        let mut asked = 0;
        for _ in 0..3 {
            event.bytes(false, |_| unreachable!("nobody wants it"));
            event.bytes(true, |_| {
                asked += 1;
                Some(put(2, 8).kv)
            });
        }
        assert_eq!(asked, 1);
        let created = put(9, 9);
        SharedEvent::new(&created).bytes(true, |_| unreachable!("it was created"));
    }
}

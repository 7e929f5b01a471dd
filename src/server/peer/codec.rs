//! The bytes on the two kinds of stream: messages behind a length, and appends in the short form `msgappv2`.
//!
//! Encoders append to a buffer; decoders take bytes as they come and hand out whole frames. A decoder holds only what
//! was received, never what a length promised, and every error means: close this connection. Source: server.md 14.2,
//! bytes in peer.md 6.

use bytes::Buf;
use bytes::BufMut;
use bytes::BytesMut;
use prost::Message as _;

use crate::common::ids::MemberId;
use crate::proto::raft_numbers::MSG_APP;
use crate::proto::raft_numbers::MSG_HEARTBEAT;
use crate::proto::raftpb::Entry;
use crate::proto::raftpb::Message;

/// The longest message accepted from a peer (reliability.md 4.4). More closes the connection.
pub const MESSAGE_BYTES_MAX: u64 = 64 << 20;

/// Entries in one message. An entry of two bytes on the wire takes 56 in memory; this bounds the difference.
pub const ENTRIES_MAX: u64 = 1 << 20;

/// A receive buffer that grew beyond this for one large message is given back once it is empty.
const BUFFER_BYTES_KEPT: usize = 1 << 20;

/// Below this length even a message of nothing but empty entries stays small in memory.
const COUNT_ENTRIES_FROM_BYTES: usize = 1 << 20;

const FRAME_HEARTBEAT: u8 = 0;
const FRAME_ENTRIES: u8 = 1;
const FRAME_MESSAGE: u8 = 2;

/// The path segment and the format of a stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StreamKind {
    /// Everything but appends (and appends too, while the other one is down).
    Message,
    /// Appends in `msgappv2`.
    Append,
}

impl StreamKind {
    pub const ALL: [StreamKind; 2] = [StreamKind::Message, StreamKind::Append];

    /// The name in the path `/raft/stream/<name>/<id>`.
    pub fn path_name(self) -> &'static str {
        match self {
            StreamKind::Message => "message",
            StreamKind::Append => "msgapp",
        }
    }
}

/// Why a stream cannot be read any further.
#[derive(Debug, thiserror::Error)]
pub enum CodecError {
    #[error("message of {0} bytes is longer than {MESSAGE_BYTES_MAX}")]
    TooLong(u64),
    #[error("message of {0} entries has more than {ENTRIES_MAX}")]
    TooManyEntries(u64),
    #[error("frame type {0} is unknown")]
    UnknownFrame(u8),
    #[error("message of type {0} on an append stream")]
    NotAppend(u64),
    #[error("malformed message: {0}")]
    Malformed(#[from] prost::DecodeError),
}

/// Decodes one raft message; every `bytes` field becomes a buffer of its own, so that a log that keeps one entry does
/// not keep the message (DESIGN.md 2).
pub fn decode_message(bytes: &[u8]) -> Result<Message, CodecError> {
    if bytes.len() as u64 > MESSAGE_BYTES_MAX {
        return Err(CodecError::TooLong(bytes.len() as u64));
    }
    if bytes.len() > COUNT_ENTRIES_FROM_BYTES {
        let entries = count_entries(bytes)?;
        if entries > ENTRIES_MAX {
            return Err(CodecError::TooManyEntries(entries));
        }
    }
    Ok(Message::decode(bytes)?)
}

/// Counts field 7 without allocating: a message of 64 MiB can hold 32 million empty entries.
fn count_entries(mut bytes: &[u8]) -> Result<u64, CodecError> {
    const ENTRIES_FIELD: u32 = 7;
    let mut entries = 0;
    while !bytes.is_empty() {
        let (tag, wire_type) = prost::encoding::decode_key(&mut bytes)?;
        entries += u64::from(tag == ENTRIES_FIELD);
        let context = prost::encoding::DecodeContext::default();
        prost::encoding::skip_field(wire_type, tag, &mut bytes, context)?;
    }
    Ok(entries)
}

fn put_prefixed(out: &mut BytesMut, message: &impl prost::Message) {
    let length = message.encoded_len();
    out.reserve(8 + length);
    out.put_u64(length as u64);
    message.encode_raw(out);
}

/// Writes one stream.
#[derive(Debug)]
pub enum Encoder {
    Message,
    Append(AppendEncoder),
}

impl Encoder {
    /// For the stream that `local` writes to `peer`.
    pub fn new(kind: StreamKind, local: MemberId, peer: MemberId) -> Encoder {
        match kind {
            StreamKind::Message => Encoder::Message,
            StreamKind::Append => Encoder::Append(AppendEncoder { kept: Kept::new(local, peer) }),
        }
    }

    pub fn message(&mut self, message: &Message, out: &mut BytesMut) {
        match self {
            Encoder::Message => put_prefixed(out, message),
            Encoder::Append(append) => append.message(message, out),
        }
    }

    pub fn heartbeat(&self, out: &mut BytesMut) {
        match self {
            Encoder::Message => put_prefixed(out, &Message { r#type: MSG_HEARTBEAT, ..Message::default() }),
            Encoder::Append(_) => out.put_u8(FRAME_HEARTBEAT),
        }
    }
}

/// What both ends of an append stream remember between frames, 0 and 0 at its start.
#[derive(Debug)]
struct Kept {
    /// The writing member: the sender of every message.
    from: MemberId,
    to: MemberId,
    term: u64,
    index: u64,
}

impl Kept {
    fn new(from: MemberId, to: MemberId) -> Kept {
        Kept { from, to, term: 0, index: 0 }
    }

    fn remember(&mut self, message: &Message) {
        self.term = message.term;
        self.index = message.entries.last().map_or(message.index, |entry| entry.index);
    }

    /// Whether `message` is exactly what a reader would make of its entries and commit index.
    fn continues(&self, message: &Message) -> bool {
        message.index == self.index
            && message.log_term == self.term
            && message.term == self.term
            && message.from == self.from.0
            && message.to == self.to.0
            && message.r#type == MSG_APP
    }
}

/// Writes `msgappv2`.
#[derive(Debug)]
pub struct AppendEncoder {
    kept: Kept,
}

impl AppendEncoder {
    fn message(&mut self, message: &Message, out: &mut BytesMut) {
        if !self.kept.continues(message) {
            out.put_u8(FRAME_MESSAGE);
            put_prefixed(out, message);
            self.kept.remember(message);
            return;
        }
        out.put_u8(FRAME_ENTRIES);
        out.put_u64(message.entries.len() as u64);
        for entry in &message.entries {
            put_prefixed(out, entry);
        }
        out.put_u64(message.commit);
        // Counted, as the reader counts, and not read from the entries: both ends must agree whatever the entries say.
        self.kept.index += message.entries.len() as u64;
    }
}

/// Reads one stream.
#[derive(Debug)]
pub enum Decoder {
    Message(Buffer),
    Append(AppendDecoder),
}

impl Decoder {
    /// For the stream that `local` reads from `peer`.
    pub fn new(kind: StreamKind, local: MemberId, peer: MemberId) -> Decoder {
        match kind {
            StreamKind::Message => Decoder::Message(Buffer::default()),
            StreamKind::Append => Decoder::Append(AppendDecoder {
                buffer: Buffer::default(),
                kept: Kept::new(peer, local),
                state: AppendState::Start,
            }),
        }
    }

    /// Takes what arrived.
    pub fn push(&mut self, bytes: &[u8]) {
        match self {
            Decoder::Message(buffer) => buffer.bytes.extend_from_slice(bytes),
            Decoder::Append(append) => append.buffer.bytes.extend_from_slice(bytes),
        }
    }

    /// The next message; `None` until more bytes arrive. Link heartbeats are passed over: that they came is all they
    /// say.
    pub fn next_message(&mut self) -> Result<Option<Message>, CodecError> {
        match self {
            Decoder::Message(buffer) => loop {
                match buffer.take_prefixed(decode_message)? {
                    Some(message) if is_link_heartbeat(&message) => {}
                    other => return Ok(other),
                }
            },
            Decoder::Append(append) => append.next_message(),
        }
    }
}

fn is_link_heartbeat(message: &Message) -> bool {
    message.r#type == MSG_HEARTBEAT && message.from == 0 && message.to == 0
}

/// What was received and not yet understood.
#[derive(Debug, Default)]
pub struct Buffer {
    bytes: BytesMut,
}

impl Buffer {
    fn take_u8(&mut self) -> Option<u8> {
        (!self.bytes.is_empty()).then(|| self.bytes.get_u8())
    }

    fn take_u64(&mut self) -> Option<u64> {
        (self.bytes.len() >= 8).then(|| self.bytes.get_u64())
    }

    /// A length and what it counts, decoded; the length is checked before anything waits for that many bytes.
    fn take_prefixed<T>(&mut self, decode: impl Fn(&[u8]) -> Result<T, CodecError>) -> Result<Option<T>, CodecError> {
        let Some(head) = self.bytes.first_chunk::<8>() else { return Ok(None) };
        let length = u64::from_be_bytes(*head);
        if length > MESSAGE_BYTES_MAX {
            return Err(CodecError::TooLong(length));
        }
        let end = 8 + length as usize;
        if self.bytes.len() < end {
            return Ok(None);
        }
        let decoded = decode(&self.bytes[8..end])?;
        self.bytes.advance(end);
        if self.bytes.is_empty() && self.bytes.capacity() > BUFFER_BYTES_KEPT {
            self.bytes = BytesMut::new();
        }
        Ok(Some(decoded))
    }
}

/// Reads `msgappv2`.
#[derive(Debug)]
pub struct AppendDecoder {
    buffer: Buffer,
    kept: Kept,
    state: AppendState,
}

/// How far into a frame the decoder is; entries already read are not read again when more bytes arrive.
#[derive(Debug)]
enum AppendState {
    Start,
    Message,
    EntryCount,
    Entries { left: u64, bytes: u64, entries: Vec<Entry> },
}

impl AppendDecoder {
    fn next_message(&mut self) -> Result<Option<Message>, CodecError> {
        loop {
            match &mut self.state {
                AppendState::Start => {
                    let Some(frame_type) = self.buffer.take_u8() else { return Ok(None) };
                    match frame_type {
                        FRAME_HEARTBEAT => {}
                        FRAME_ENTRIES => self.state = AppendState::EntryCount,
                        FRAME_MESSAGE => self.state = AppendState::Message,
                        other => return Err(CodecError::UnknownFrame(other)),
                    }
                }
                AppendState::Message => {
                    let Some(message) = self.buffer.take_prefixed(decode_message)? else { return Ok(None) };
                    if message.r#type != MSG_APP {
                        return Err(CodecError::NotAppend(message.r#type));
                    }
                    self.kept.remember(&message);
                    self.state = AppendState::Start;
                    return Ok(Some(message));
                }
                AppendState::EntryCount => {
                    let Some(left) = self.buffer.take_u64() else { return Ok(None) };
                    if left > ENTRIES_MAX {
                        return Err(CodecError::TooManyEntries(left));
                    }
                    self.state = AppendState::Entries { left, bytes: 0, entries: Vec::new() };
                }
                AppendState::Entries { left: 0, entries, .. } => {
                    let Some(commit) = self.buffer.take_u64() else { return Ok(None) };
                    let entries = std::mem::take(entries);
                    self.state = AppendState::Start;
                    return Ok(Some(self.append_message(entries, commit)));
                }
                AppendState::Entries { left, bytes, entries } => {
                    let decode = |slice: &[u8]| Ok((Entry::decode(slice)?, slice.len() as u64));
                    let Some((entry, length)) = self.buffer.take_prefixed(decode)? else { return Ok(None) };
                    *bytes += 8 + length;
                    if *bytes > MESSAGE_BYTES_MAX {
                        return Err(CodecError::TooLong(*bytes));
                    }
                    entries.push(entry);
                    *left -= 1;
                }
            }
        }
    }

    /// The message that a short frame stands for.
    fn append_message(&mut self, entries: Vec<Entry>, commit: u64) -> Message {
        let index = self.kept.index;
        // A kept index near the end of the range came from the peer; validate refuses such a message.
        self.kept.index = index.saturating_add(entries.len() as u64);
        Message {
            r#type: MSG_APP,
            from: self.kept.from.0,
            to: self.kept.to.0,
            term: self.kept.term,
            log_term: self.kept.term,
            index,
            entries,
            commit,
            ..Message::default()
        }
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use proptest::prelude::*;

    use super::*;
    use crate::proto::raft_numbers::*;

    const M1: MemberId = MemberId(0x4064c276627c13e8);
    const M2: MemberId = MemberId(0xa50afd602f55893f);
    const M3: MemberId = MemberId(0x67a8c1728f351fbd);

    fn hex(text: &str) -> Vec<u8> {
        let digits: Vec<u8> = text.bytes().filter(u8::is_ascii_hexdigit).collect();
        digits.chunks(2).map(|pair| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap()).collect()
    }

    fn read_all(decoder: &mut Decoder, bytes: &[u8]) -> Result<Vec<Message>, CodecError> {
        decoder.push(bytes);
        let mut messages = Vec::new();
        while let Some(message) = decoder.next_message()? {
            messages.push(message);
        }
        Ok(messages)
    }

    /// Bytes that a decoder holds back.
    fn held(decoder: &Decoder) -> usize {
        match decoder {
            Decoder::Message(buffer) => buffer.bytes.len(),
            Decoder::Append(append) => append.buffer.bytes.len(),
        }
    }

    fn append(index: u64, entries: u64, commit: u64) -> Message {
        let entries = (1..=entries).map(|offset| Entry {
            term: 2,
            index: index + offset,
            data: Bytes::from(vec![7; 20]),
            ..Entry::default()
        });
        let entries = entries.collect();
        Message {
            r#type: MSG_APP,
            to: M3.0,
            from: M2.0,
            term: 2,
            log_term: 2,
            index,
            entries,
            commit,
            ..Message::default()
        }
    }

    #[test]
    fn messages_have_the_bytes_of_a_real_member() {
        // peer.md 6, as 3.7.1 writes them.
        let message = |r#type, to: MemberId, from: MemberId, term| Message {
            r#type,
            to: to.0,
            from: from.0,
            term,
            ..Message::default()
        };
        let table = [
            (
                Message { log_term: 1, index: 3, ..message(MSG_PRE_VOTE, M3, M2, 2) },
                "081110bdbfd4f9a8aeb0d46718bf92d6fa82acbf85a501200228013003",
            ),
            (message(MSG_PRE_VOTE_RESP, M2, M3, 2), "081210bf92d6fa82acbf85a50118bdbfd4f9a8aeb0d4672002"),
            (message(MSG_TIMEOUT_NOW, M3, M2, 2), "080e10bdbfd4f9a8aeb0d46718bf92d6fa82acbf85a5012002"),
            (
                Message {
                    context: Bytes::from_static(&[1, 0, 0, 0, 0, 0, 0, 0]),
                    commit: 7,
                    ..message(MSG_HEARTBEAT_RESP, M2, M3, 2)
                },
                "080910bf92d6fa82acbf85a50118bdbfd4f9a8aeb0d4672002400762080100000000000000",
            ),
            (
                Message {
                    log_term: 2,
                    index: 14,
                    commit: 7,
                    reject: true,
                    reject_hint: 8,
                    ..message(MSG_APP_RESP, M2, M3, 2)
                },
                "080410bf92d6fa82acbf85a50118bdbfd4f9a8aeb0d46720022802300e400750015808",
            ),
        ];
        for (message, bytes) in table {
            assert_eq!(decode_message(&hex(bytes)).unwrap(), message);
            assert_eq!(message.encode_to_vec(), hex(bytes));
        }
    }

    #[test]
    fn every_sample_of_the_spec_survives_decode_and_encode() {
        for sample in [
            "080510e8a7f093e6ceb0b24018bdbfd4f9a8aeb0d4672003280230cd1340cd13621043616d706169676e5472616e73666572",
            "080f10bdbfd4f9a8aeb0d46718e8a7f093e6ceb0b2403a0a220813e8a1f93ce7e5ca",
            "081010e8a7f093e6ceb0b24018bdbfd4f9a8aeb0d467200330de163a0a220813e8a1f93ce7e5ca",
            "080710ce9483899b8bd19bd80118bdbfd4f9a8aeb0d46720034a3312310a2a08e8a7f093e6ceb0b24008bdbfd4f9a8aeb0d46708\
             bf92d6fa82acbf85a50110ce9483899b8bd19bd80110b6021803",
        ] {
            let bytes = hex(sample);
            assert_eq!(decode_message(&bytes).unwrap().encode_to_vec(), bytes, "{sample}");
        }
    }

    #[test]
    fn link_heartbeats_of_both_releases_are_read_and_the_newer_is_written() {
        for sample in ["00000000000000020808", "00000000000000140808100018002000280030004000500058006800"] {
            let mut decoder = Decoder::new(StreamKind::Message, M3, M2);
            assert_eq!(read_all(&mut decoder, &hex(sample)).unwrap(), []);
            assert_eq!(held(&decoder), 0);
        }
        let mut out = BytesMut::new();
        Encoder::new(StreamKind::Message, M3, M2).heartbeat(&mut out);
        assert_eq!(out, hex("00000000000000020808"));
        out.clear();
        Encoder::new(StreamKind::Append, M3, M2).heartbeat(&mut out);
        assert_eq!(out, hex("00"));
        let mut decoder = Decoder::new(StreamKind::Append, M3, M2);
        assert_eq!((read_all(&mut decoder, &out).unwrap(), held(&decoder)), (vec![], 0));
    }

    #[test]
    fn an_append_stream_of_a_real_member_is_read_frame_by_frame() {
        let full = "02 0000000000000025|080310bdbfd4f9a8aeb0d46718bf92d6fa82acbf85a5012002280130033a04100218044003";
        let entries = "01 0000000000000001|0000000000000040
            10021805223aa2060b0881ace3dc93bfe89f8901aa512908bf92d6fa82acbf85a501121c0a026d321216687474703a2f2f
            3132372e302e302e313a3533303132|0000000000000004";
        let commit = "01 0000000000000000|0000000000000005";
        let bytes = hex(&[full, "00", entries, commit].concat());
        let mut decoder = Decoder::new(StreamKind::Append, M3, M2);
        let messages = read_all(&mut decoder, &bytes).unwrap();
        let [full, entries, commit] = &messages[..] else { panic!("{messages:?}") };
        assert_eq!((full.term, full.log_term, full.index, full.entries[0].index), (2, 1, 3, 4));
        assert_eq!((entries.from, entries.to, entries.term, entries.log_term), (M2.0, M3.0, 2, 2));
        assert_eq!((entries.index, entries.commit, entries.entries[0].index), (4, 4, 5));
        assert_eq!(entries.entries[0].data.len(), 0x3a);
        assert_eq!((commit.index, commit.commit, commit.entries.len()), (5, 5, 0));

        let mut out = BytesMut::new();
        let mut encoder = Encoder::new(StreamKind::Append, M2, M3);
        encoder.message(full, &mut out);
        encoder.heartbeat(&mut out);
        encoder.message(entries, &mut out);
        encoder.message(commit, &mut out);
        assert_eq!(out, bytes);
    }

    #[test]
    fn zeros_spelled_out_read_as_zeros_left_out() {
        let m1_from_m3 = "080310e8a7f093e6ceb0b24018bdbfd4f9a8aeb0d4672003280230cd133a05100318ce1340cd13";
        let older = "080310e8a7f093e6ceb0b24018bdbfd4f9a8aeb0d4672003280230cd133a07080010031 8ce1340cd13500058006800";
        assert_eq!(decode_message(&hex(m1_from_m3)).unwrap(), decode_message(&hex(older)).unwrap());
    }

    #[test]
    fn a_new_term_or_a_retry_is_written_in_full() {
        let mut out = BytesMut::new();
        let mut encoder = Encoder::new(StreamKind::Append, M2, M3);
        let mut frame_type = |message: &Message| {
            out.clear();
            encoder.message(message, &mut out);
            out[0]
        };
        assert_eq!(frame_type(&append(5, 2, 3)), FRAME_MESSAGE);
        assert_eq!(frame_type(&append(7, 1, 7)), FRAME_ENTRIES);
        assert_eq!(frame_type(&append(7, 1, 7)), FRAME_MESSAGE);
        assert_eq!(frame_type(&append(8, 0, 8)), FRAME_ENTRIES);
        assert_eq!(frame_type(&Message { term: 3, ..append(8, 1, 8) }), FRAME_MESSAGE);
        assert_eq!(frame_type(&Message { from: M1.0, ..append(9, 1, 8) }), FRAME_MESSAGE);
        assert_eq!(frame_type(&Message { log_term: 1, ..append(10, 1, 8) }), FRAME_MESSAGE);
    }

    #[test]
    fn impossible_lengths_and_types_are_refused_before_any_memory_is_taken() {
        let check = |kind, sample: &str, expected: &str| {
            let error = read_all(&mut Decoder::new(kind, M3, M2), &hex(sample)).unwrap_err();
            assert!(error.to_string().contains(expected), "{sample}: {error}");
        };
        check(StreamKind::Message, "ffffffffffffffff", "is longer");
        check(StreamKind::Message, "0000000004000001", "is longer");
        check(StreamKind::Append, "02 ffffffffffffffff", "is longer");
        check(StreamKind::Append, "01 ffffffffffffffff", "more than");
        check(StreamKind::Append, "01 0000000000000001 ffffffffffffffff", "is longer");
        check(StreamKind::Append, "03", "frame type 3");
        check(StreamKind::Append, "02 0000000000000002 0808", "type 8");
        check(StreamKind::Message, "0000000000000002 ffff", "malformed");
    }

    #[test]
    fn a_message_of_millions_of_empty_entries_is_refused() {
        let bytes: Vec<u8> = [0x3a, 0].repeat(ENTRIES_MAX as usize + 1);
        assert!(matches!(decode_message(&bytes), Err(CodecError::TooManyEntries(_))));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(200))]

        #[test]
        fn messages_split_anywhere_arrive_equal(
            runs in proptest::collection::vec((0u64..20, 0u64..5, 0u64..20), 1..8),
            piece in 1usize..40,
            append_kind in any::<bool>(),
        ) {
            let kind = if append_kind { StreamKind::Append } else { StreamKind::Message };
            let sent: Vec<Message> = runs.iter().map(|(index, count, commit)| append(*index, *count, *commit)).collect();
            let mut encoder = Encoder::new(kind, M2, M3);
            let mut out = BytesMut::new();
            for message in &sent {
                encoder.message(message, &mut out);
                encoder.heartbeat(&mut out);
            }
            let mut decoder = Decoder::new(kind, M3, M2);
            let mut received = Vec::new();
            for chunk in out.chunks(piece) {
                received.extend(read_all(&mut decoder, chunk).unwrap());
            }
            prop_assert_eq!(received, sent);
        }

        #[test]
        fn garbage_never_panics(bytes in proptest::collection::vec(any::<u8>(), 0..300), zeros in 0usize..8) {
            let bytes = [vec![0; zeros], bytes].concat();
            for kind in StreamKind::ALL {
                let _ = read_all(&mut Decoder::new(kind, M3, M2), &bytes);
            }
            let _ = decode_message(&bytes);
        }
    }
}

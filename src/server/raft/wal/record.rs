//! Bytes of one record: its frame, its CRC, and how etcd spells what it carries (server.md 14.4).
//!
//! ```text
//! | length: u64 little-endian                   | walpb.Record            | zeros      |
//! | low 56 bits: bytes of the record            | 08 kind                 | up to a    |
//! | top byte: 0x80 | padding, or 0 without any  | 10 crc  [1a length data]| multiple of 8
//! ```
//!
//! The CRC is a CRC-32C of the data of all records since the log began, this one included. Everything is spelled
//! out, zeros too, as etcd up to 3.6 does: all versions read that, and every record of ours has one form only.

use bytes::Bytes;
use crc32c::crc32c_append;
use prost::Message;

use crate::proto::raftpb::Entry;
use crate::proto::raftpb::HardState;
use crate::proto::walpb::Metadata;
use crate::proto::walpb::Snapshot;

/// Bytes of the length field before a record. Frames start at multiples of this.
pub const FRAME_BYTES: usize = 8;
/// The longest record: far above any entry that is proposed (1.5 MiB unless configured), and below what would let
/// one damaged length field take the machine's memory.
pub const RECORD_BYTES_MAX: usize = 512 << 20;
/// Low bits of the length field that hold the record's length.
const LENGTH_BITS: u32 = 56;
/// In the top byte of the length field: padding follows, its length is in the low three bits.
const PADDED: u64 = 0x80;

/// What a record carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Metadata = 1,
    Entry = 2,
    HardState = 3,
    Crc = 4,
    Snapshot = 5,
}

impl Kind {
    fn from_number(number: u64) -> Option<Kind> {
        [Kind::Metadata, Kind::Entry, Kind::HardState, Kind::Crc, Kind::Snapshot]
            .into_iter()
            .find(|kind| *kind as u64 == number)
    }
}

/// A record as read, its CRC not yet checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    pub kind: Kind,
    pub crc: u32,
    pub data: Bytes,
}

/// Appends frames to a buffer and carries the running CRC from one to the next.
#[derive(Debug, Default)]
pub struct Encoder {
    pub buffer: Vec<u8>,
    pub crc: u32,
}

impl Encoder {
    /// Opens a segment: hands the running CRC over from the one before.
    pub fn crc(&mut self) {
        self.frame(Kind::Crc, None);
    }

    /// `data` is an encoded `walpb.Metadata`, the same bytes in every segment.
    pub fn metadata(&mut self, data: &[u8]) {
        self.frame(Kind::Metadata, Some((data, &[])));
    }

    pub fn entry(&mut self, entry: &Entry) {
        let mut head = Head::default();
        head.field(1, entry.r#type);
        head.field(2, entry.term);
        head.field(3, entry.index);
        if !entry.data.is_empty() {
            head.length_field(4, entry.data.len());
        }
        self.frame(Kind::Entry, Some((head.bytes(), &entry.data)));
    }

    pub fn hard_state(&mut self, state: &HardState) {
        let mut head = Head::default();
        head.field(1, state.term);
        head.field(2, state.vote);
        head.field(3, state.commit);
        self.frame(Kind::HardState, Some((head.bytes(), &[])));
    }

    pub fn snapshot(&mut self, snapshot: &Snapshot) {
        let mut head = Head::default();
        head.field(1, snapshot.index);
        head.field(2, snapshot.term);
        let conf_state = snapshot.conf_state.as_ref().map(Message::encode_to_vec);
        if let Some(conf_state) = &conf_state {
            head.length_field(3, conf_state.len());
        }
        self.frame(Kind::Snapshot, Some((head.bytes(), conf_state.as_deref().unwrap_or_default())));
    }

    /// One frame; its data is the two parts in a row.
    fn frame(&mut self, kind: Kind, data: Option<(&[u8], &[u8])>) {
        if let Some((first, second)) = data {
            self.crc = crc32c_append(crc32c_append(self.crc, first), second);
        }
        let mut head = Head::default();
        head.field(1, kind as u64);
        head.field(2, u64::from(self.crc));
        let mut record_len = head.len;
        if let Some((first, second)) = data {
            head.length_field(3, first.len() + second.len());
            record_len = head.len + first.len() + second.len();
        }
        let padding = padding_of(record_len);
        let flags = if padding > 0 { PADDED | padding as u64 } else { 0 };
        self.buffer.extend_from_slice(&(record_len as u64 | flags << LENGTH_BITS).to_le_bytes());
        self.buffer.extend_from_slice(head.bytes());
        if let Some((first, second)) = data {
            self.buffer.extend_from_slice(first);
            self.buffer.extend_from_slice(second);
        }
        self.buffer.extend_from_slice(&[0; FRAME_BYTES][..padding]);
    }
}

/// Bytes that an entry's frame may need at most.
pub fn entry_frame_bytes_max(entry: &Entry) -> usize {
    FRAME_BYTES + 2 * HEAD_BYTES_MAX + entry.data.len() + FRAME_BYTES
}

/// Metadata as etcd spells it.
pub fn encode_metadata(metadata: &Metadata) -> Vec<u8> {
    let mut head = Head::default();
    head.field(1, metadata.node_id);
    head.field(2, metadata.cluster_id);
    head.bytes().to_vec()
}

/// Room for three numbers and one length, each with its tag.
const HEAD_BYTES_MAX: usize = 4 * 11;

/// The small fields of a message, without an allocation.
struct Head {
    bytes: [u8; HEAD_BYTES_MAX],
    len: usize,
}

impl Default for Head {
    fn default() -> Head {
        Head { bytes: [0; HEAD_BYTES_MAX], len: 0 }
    }
}

impl Head {
    /// A number; written even when it is 0.
    fn field(&mut self, number: u8, value: u64) {
        self.push(number << 3);
        self.varint(value);
    }

    /// Announces bytes that the caller puts behind this head.
    fn length_field(&mut self, number: u8, len: usize) {
        self.push(number << 3 | 2);
        self.varint(len as u64);
    }

    fn varint(&mut self, mut value: u64) {
        while value >= 0x80 {
            self.push((value & 0x7f) as u8 | 0x80);
            value >>= 7;
        }
        self.push(value as u8);
    }

    fn push(&mut self, byte: u8) {
        self.bytes[self.len] = byte;
        self.len += 1;
    }

    fn bytes(&self) -> &[u8] {
        &self.bytes[..self.len]
    }
}

fn padding_of(record_len: usize) -> usize {
    record_len.next_multiple_of(FRAME_BYTES) - record_len
}

/// What a length field says: bytes of the record and of the padding behind it. `None` if no writer spells it so.
pub fn decode_length(field: u64) -> Option<(u64, u64)> {
    let record_len = field & ((1 << LENGTH_BITS) - 1);
    let padding = record_len.checked_next_multiple_of(FRAME_BYTES as u64)? - record_len;
    let flags = if padding > 0 { PADDED | padding } else { 0 };
    (field >> LENGTH_BITS == flags).then_some((record_len, padding))
}

/// A record: exactly the fields that etcd writes, in its order. Only the data is covered by the CRC, so that anything
/// else around it is taken for damage.
pub fn decode_record(bytes: &Bytes) -> Option<Record> {
    let mut at = 0;
    let (1, Field::Number(number)) = field(bytes, &mut at)? else { return None };
    let kind = Kind::from_number(number)?;
    let (2, Field::Number(crc)) = field(bytes, &mut at)? else { return None };
    let crc = u32::try_from(crc).ok()?;
    let data = if at == bytes.len() {
        Bytes::new()
    } else {
        let (3, Field::Bytes(start)) = field(bytes, &mut at)? else { return None };
        bytes.slice(start..at)
    };
    (at == bytes.len()).then_some(Record { kind, crc, data })
}

/// A hard state: numbers in fields 1 to 3 only. An entry whose record kind was damaged does not pass for one.
pub fn decode_hard_state(data: &[u8]) -> Option<HardState> {
    let mut state = HardState::default();
    let mut at = 0;
    while at < data.len() {
        match field(data, &mut at)? {
            (1, Field::Number(term)) => state.term = term,
            (2, Field::Number(vote)) => state.vote = vote,
            (3, Field::Number(commit)) => state.commit = commit,
            _ => return None,
        }
    }
    Some(state)
}

enum Field {
    Number(u64),
    /// Where the bytes start; they end where reading goes on.
    Bytes(usize),
}

fn field(bytes: &[u8], at: &mut usize) -> Option<(u64, Field)> {
    let tag = varint(bytes, at)?;
    match tag & 7 {
        0 => Some((tag >> 3, Field::Number(varint(bytes, at)?))),
        2 => {
            let len = usize::try_from(varint(bytes, at)?).ok()?;
            let start = *at;
            *at = start.checked_add(len).filter(|end| *end <= bytes.len())?;
            Some((tag >> 3, Field::Bytes(start)))
        }
        _ => None,
    }
}

fn varint(bytes: &[u8], at: &mut usize) -> Option<u64> {
    let mut value = 0_u64;
    for shift in (0..64).step_by(7) {
        let byte = *bytes.get(*at)?;
        *at += 1;
        let bits = u64::from(byte & 0x7f);
        if shift == 63 && bits > 1 {
            return None;
        }
        value |= bits << shift;
        if byte < 0x80 {
            return Some(value);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::raftpb::ConfState;

    fn hex(bytes: &[u8]) -> String {
        bytes.iter().map(|byte| format!("{byte:02x}")).collect()
    }

    #[test]
    fn first_records_are_etcds_to_the_byte() {
        // The head of the fixture etcd-3.6.14/m1-stopped.
        let mut encoder = Encoder::default();
        encoder.crc();
        assert_eq!(hex(&encoder.buffer), "04000000000000840804100000000000");
        let metadata = Metadata { node_id: 0xd916_fb8a_2b4f_dd15, cluster_id: 0x3a9d_1631_51e9_4ce1 };
        encoder.metadata(&encode_metadata(&metadata));
        encoder.snapshot(&Snapshot::default());
        assert_eq!(
            hex(&encoder.buffer[16..]),
            "1f00000000000081080110d0b2a0c7081a150895babfdaa2f1be8bd90110e199a58f95c6c5ce3a00\
             0e00000000000082080510bbb3ca870c1a04080010000000"
        );
    }

    #[test]
    fn records_read_back() {
        let mut encoder = Encoder::default();
        let conf_state = ConfState { voters: vec![1, u64::MAX], ..ConfState::default() };
        encoder.entry(&Entry { r#type: 0, term: 1, index: 2, data: Bytes::from(vec![7; 300]) });
        encoder.entry(&Entry { r#type: 0, term: 1, index: 3, data: Bytes::new() });
        encoder.hard_state(&HardState::default());
        encoder.snapshot(&Snapshot { index: 3, term: 1, conf_state: Some(conf_state.clone()) });
        let (mut at, mut crc, mut records) = (0, 0, Vec::new());
        let buffer = Bytes::from(encoder.buffer);
        while at < buffer.len() {
            let field = u64::from_le_bytes(buffer[at..at + 8].try_into().unwrap());
            let (len, padding) = decode_length(field).unwrap();
            let record = decode_record(&buffer.slice(at + 8..at + 8 + len as usize)).unwrap();
            crc = crc32c_append(crc, &record.data);
            assert_eq!(record.crc, crc);
            at += 8 + (len + padding) as usize;
            assert_eq!(at % 8, 0);
            records.push(record);
        }
        let entry = Entry::decode(records[0].data.clone()).unwrap();
        assert_eq!((entry.index, entry.data.len()), (2, 300));
        assert_eq!(hex(&records[1].data), "080010011803");
        assert_eq!(hex(&records[2].data), "080010001800");
        assert_eq!(decode_hard_state(&records[2].data), Some(HardState::default()));
        assert_eq!(Snapshot::decode(records[3].data.clone()).unwrap().conf_state, Some(conf_state));
        assert_eq!(decode_hard_state(&records[0].data), None, "an entry is no hard state");
    }

    #[test]
    fn length_fields_that_no_writer_spells_are_refused() {
        assert_eq!(decode_length(0x8400_0000_0000_0004), Some((4, 4)));
        assert_eq!(decode_length(16), Some((16, 0)));
        for field in [4, 0x8300_0000_0000_0004, 0x8000_0000_0000_0008, 0x0100_0000_0000_0008, u64::MAX] {
            assert_eq!(decode_length(field), None, "{field:x}");
        }
        assert_eq!(decode_length(0), Some((0, 0)));
    }

    #[test]
    fn malformed_records_are_refused() {
        for bytes in [
            &[][..],
            &[0x08],
            &[0x08, 0x09, 0x10, 0x00],
            &[0x10, 0x00, 0x08, 0x02],
            &[0x08, 0x02, 0x10, 0x00, 0x1a, 0x05, 0x00],
            &[0x08, 0x02, 0x10, 0x00, 0x1a, 0x00, 0x00],
            &[0x08, 0x02, 0x10, 0xff, 0xff, 0xff, 0xff, 0x7f],
            &[0x08, 0x02, 0x10, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x7f],
        ] {
            assert_eq!(decode_record(&Bytes::copy_from_slice(bytes)), None, "{bytes:x?}");
        }
    }
}

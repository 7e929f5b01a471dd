//! All tables of the database file, on one page: names, keys, values, and how a header is laid out.
//!
//! ```text
//! table               key                            value
//! headers             revision, 16 bytes big-endian  header: see below
//! values              revision                       the value of a put; no row when it is empty
//! bucket.<name>       as in etcd's bucket <name>     sealed: as in etcd's bucket <name> (server.md 14.6)
//! meta                name                           format: u64 little-endian
//!                                                    applied_index, applied_term: sealed u64 little-endian
//!                                                    conf_state: sealed raftpb.ConfState
//!
//! sealed  | what it is about … | crc u32 over the table's name, the key and all before it |
//!
//! header  | 0 tombstone u8 | 1 create i64 | 9 version i64 | 17 lease i64 | 25 value bytes u32 | 29 crc u32 |
//!         | 33 hashed bytes u32 | 37 header crc u32 | 41 key …                    (little-endian)
//! ```
//!
//! `crc` covers what etcd hashes of the record and needs the value to be checked; `header crc` covers revision and header,
//! so that a scan of headers alone cannot take in a damaged key (reliability.md 3.2, D6). A seal does the same for the
//! small rows: redb checks its pages when it repairs a file, not when it reads.

use bytes::Bytes;
use redb::TableDefinition;

use crate::common::revision::Revision;
use crate::proto::mvccpb::KeyValue;
use crate::server::checkpoint::Bucket;
use crate::server::checkpoint::Header;
use crate::server::checkpoint::Record;

/// Number of this layout, in `meta`. A file with another one is refused by name. (1 had no seals.)
pub const FORMAT: u64 = 2;

/// A revision as a table key.
pub type RevisionKey = &'static [u8; 16];

pub const HEADERS: TableDefinition<RevisionKey, &[u8]> = TableDefinition::new("headers");
pub const VALUES: TableDefinition<RevisionKey, &[u8]> = TableDefinition::new("values");
pub const META: TableDefinition<&str, &[u8]> = TableDefinition::new("meta");

pub const META_FORMAT: &str = "format";
pub const META_APPLIED_INDEX: &str = "applied_index";
pub const META_APPLIED_TERM: &str = "applied_term";
pub const META_CONF_STATE: &str = "conf_state";

/// The table that holds one of etcd's buckets.
pub const fn bucket_table(bucket: Bucket) -> TableDefinition<'static, &'static [u8], &'static [u8]> {
    TableDefinition::new(match bucket {
        Bucket::Alarm => "bucket.alarm",
        Bucket::Auth => "bucket.auth",
        Bucket::AuthRoles => "bucket.authRoles",
        Bucket::AuthUsers => "bucket.authUsers",
        Bucket::Cluster => "bucket.cluster",
        Bucket::Lease => "bucket.lease",
        Bucket::Members => "bucket.members",
        Bucket::MembersRemoved => "bucket.members_removed",
        Bucket::Meta => "bucket.meta",
    })
}

/// Bytes of a seal.
const SEAL_BYTES: usize = 4;

/// The row of `table` under `key` that says `content`.
pub fn seal(table: &str, key: &[u8], content: &[u8]) -> Vec<u8> {
    let mut row = Vec::with_capacity(content.len() + SEAL_BYTES);
    row.extend_from_slice(content);
    row.extend_from_slice(&seal_crc(table, key, content).to_le_bytes());
    row
}

/// What a sealed row says. The error says which row is not what was written.
pub fn unseal<'a>(table: &str, key: &[u8], row: &'a [u8]) -> Result<&'a [u8], String> {
    let content = row.split_last_chunk::<SEAL_BYTES>();
    match content.filter(|(content, crc)| u32::from_le_bytes(**crc) == seal_crc(table, key, content)) {
        Some((content, _)) => Ok(content),
        None => Err(format!("a row of table {table} fails its checksum (key {:?})", Bytes::copy_from_slice(key))),
    }
}

fn seal_crc(table: &str, key: &[u8], content: &[u8]) -> u32 {
    // The key's length keeps a byte from changing sides unseen.
    let length = (key.len() as u64).to_le_bytes();
    [table.as_bytes(), &length, key, content].into_iter().fold(0, crc32c::crc32c_append)
}

/// Where the key starts in a header.
const FIXED_BYTES: usize = 41;

/// Where the header's own CRC stands: over the revision, everything before it, and the key.
const HEADER_CRC_AT: usize = 37;

/// The row of `headers` for this header.
pub fn encode_header(header: &Header) -> Vec<u8> {
    let mut row = Vec::with_capacity(FIXED_BYTES + header.key.len());
    row.push(u8::from(header.tombstone));
    for number in [header.create_revision, header.version, header.lease] {
        row.extend_from_slice(&number.to_le_bytes());
    }
    for number in [header.value_bytes, header.crc, header.hashed_bytes] {
        row.extend_from_slice(&number.to_le_bytes());
    }
    let crc = header_crc(header.revision, &row, &header.key);
    row.extend_from_slice(&crc.to_le_bytes());
    row.extend_from_slice(&header.key);
    row
}

/// Reads a row of `headers`. The error says what is wrong with it.
pub fn decode_header(revision: Revision, row: &[u8]) -> Result<Header, String> {
    if row.len() < FIXED_BYTES {
        return Err(format!("the header of revision {revision} has {} bytes", row.len()));
    }
    let (fixed, key) = row.split_at(FIXED_BYTES);
    if header_crc(revision, &fixed[..HEADER_CRC_AT], key) != u32_at(fixed, HEADER_CRC_AT) {
        return Err(format!("the header of revision {revision} fails its checksum"));
    }
    Ok(Header {
        revision,
        tombstone: fixed[0] != 0,
        key: Bytes::copy_from_slice(key),
        create_revision: i64_at(fixed, 1),
        version: i64_at(fixed, 9),
        lease: i64_at(fixed, 17),
        value_bytes: u32_at(fixed, 25),
        crc: u32_at(fixed, 29),
        hashed_bytes: u32_at(fixed, 33),
    })
}

/// Puts a header and its value together again and checks the record's CRC.
pub fn join_record(header: Header, value: Bytes) -> Result<Record, String> {
    let revision = header.revision;
    if value.len() != header.value_bytes as usize {
        return Err(format!("revision {revision} has a value of {} bytes, not {}", value.len(), header.value_bytes));
    }
    let kv = KeyValue {
        key: header.key,
        create_revision: header.create_revision,
        mod_revision: 0,
        version: header.version,
        value,
        lease: header.lease,
    };
    let kv = KeyValue { mod_revision: mod_revision(revision, header.tombstone, &kv.key), ..kv };
    let record = Record { revision, tombstone: header.tombstone, kv };
    if record.crc() != header.crc {
        return Err(format!("revision {revision} fails its checksum"));
    }
    Ok(record)
}

/// What `mod_revision` of a stored pair is: not kept in the header because the revision says it. A pair without a key is
/// the empty one with which `snapshot restore --bump-revision` moves the revision on; no put makes one.
pub fn mod_revision(revision: Revision, tombstone: bool, key: &[u8]) -> i64 {
    if tombstone || key.is_empty() { 0 } else { revision.main }
}

fn header_crc(revision: Revision, fixed: &[u8], key: &[u8]) -> u32 {
    crc32c::crc32c_append(crc32c::crc32c_append(crc32c::crc32c(&revision.to_bytes()), fixed), key)
}

fn i64_at(row: &[u8], at: usize) -> i64 {
    i64::from_le_bytes(row[at..at + 8].try_into().expect("eight bytes of a row whose length was checked"))
}

fn u32_at(row: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(row[at..at + 4].try_into().expect("four bytes of a row whose length was checked"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record() -> Record {
        let kv = KeyValue {
            key: "greeting".into(),
            create_revision: 5,
            mod_revision: 9,
            version: 2,
            value: "hello".into(),
            lease: -3,
        };
        Record { revision: Revision::new(9, 1), tombstone: false, kv }
    }

    #[test]
    fn a_sealed_row_is_read_only_where_it_was_written() {
        let row = seal("bucket.lease", b"key", b"content");
        assert_eq!(unseal("bucket.lease", b"key", &row), Ok(&b"content"[..]));
        assert_eq!(unseal("t", b"", &seal("t", b"", b"")), Ok(&b""[..]));
        let refused =
            |table: &str, key: &[u8], row: &[u8]| assert!(unseal(table, key, row).is_err(), "{table} {key:?}");
        refused("bucket.alarm", b"key", &row);
        refused("bucket.lease", b"ke", &[b"y", &row[..]].concat());
        refused("bucket.lease", b"other", &row);
        (0..row.len()).for_each(|length| refused("bucket.lease", b"key", &row[..length]));
        for bit in 0..row.len() * 8 {
            let mut flipped = row.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            refused("bucket.lease", b"key", &flipped);
        }
    }

    #[test]
    fn headers_go_both_ways_and_join_with_their_value() {
        let header = Header::of(&record());
        let row = encode_header(&header);
        let read = decode_header(header.revision, &row).unwrap();
        assert_eq!(read, header);
        assert_eq!(join_record(read, "hello".into()).unwrap(), record());
    }

    #[test]
    fn every_flipped_bit_of_a_header_is_noticed() {
        let header = Header::of(&record());
        let row = encode_header(&header);
        for bit in 0..row.len() * 8 {
            let mut damaged = row.clone();
            damaged[bit / 8] ^= 1 << (bit % 8);
            assert!(decode_header(header.revision, &damaged).is_err(), "bit {bit}");
        }
        assert!(decode_header(Revision::new(9, 2), &row).is_err(), "a header under another revision");
        for length in 0..row.len() {
            assert!(decode_header(header.revision, &row[..length]).is_err(), "{length} bytes");
        }
    }

    #[test]
    fn a_wrong_value_is_noticed() {
        let header = Header::of(&record());
        assert!(join_record(header.clone(), "hellO".into()).is_err());
        assert!(join_record(header, "hell".into()).is_err());
    }

    #[test]
    fn bucket_tables_carry_etcds_names() {
        use redb::TableHandle;
        for bucket in Bucket::ALL {
            assert_eq!(bucket_table(bucket).name(), format!("bucket.{}", bucket.name()));
        }
    }
}

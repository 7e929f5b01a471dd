//! The output formats of `snapshot status` and `hashkv`.

use crate::ctl::print::json::quote_plainly;
use crate::ctl::print::simple::size;
use crate::ctl::print::table::draw;
use crate::utl::error::UtlError;

/// `--write-out`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    Simple,
    Json,
    Fields,
    Table,
    Protobuf,
}

impl Format {
    pub fn parse(text: &str) -> Result<Format, UtlError> {
        Ok(match text {
            "simple" => Format::Simple,
            "json" => Format::Json,
            "fields" => Format::Fields,
            "table" => Format::Table,
            "protobuf" => Format::Protobuf,
            _ => return Err(UtlError::bad_feature("unsupported output format")),
        })
    }
}

/// What a snapshot file holds.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Status {
    /// CRC-32C over all buckets.
    pub hash: u32,
    pub revision: i64,
    /// Live keys of users.
    pub keys: u64,
    /// Length of the database in bytes, digest and preallocation left out.
    pub bytes: u64,
    /// The storage version; empty below 3.6.
    pub version: String,
}

impl Status {
    pub fn format(&self, format: Format) -> Result<String, UtlError> {
        let Status { hash, revision, keys, bytes, version } = self;
        let length = size(i64::try_from(*bytes).unwrap_or(i64::MAX));
        Ok(match format {
            Format::Simple => format!("{hash:x}, {revision}, {keys}, {length}, {version}\n"),
            Format::Json => format!(
                "{{\"hash\":{hash},\"revision\":{revision},\"totalKey\":{keys},\"totalSize\":{bytes},\"version\":{}}}\n",
                quote_plainly(version)
            ),
            Format::Fields => format!(
                "\"Hash\" : {hash}\n\"Revision\" : {revision}\n\"Keys\" : {keys}\n\"Size\" : {bytes}\n\"Version\" : {version}\n"
            ),
            Format::Table => draw(
                &["HASH", "REVISION", "TOTAL KEYS", "TOTAL SIZE", "VERSION"],
                vec![vec![format!("{hash:x}"), revision.to_string(), keys.to_string(), length, version.clone()]],
            ),
            Format::Protobuf => return Err(unsupported()),
        })
    }
}

/// The hash of a file's keys.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HashKv {
    pub hash: u32,
    pub hash_revision: i64,
    /// -1 before the first compaction.
    pub compact_revision: i64,
}

impl HashKv {
    pub fn format(&self, format: Format) -> Result<String, UtlError> {
        let HashKv { hash, hash_revision, compact_revision } = self;
        Ok(match format {
            Format::Simple => format!("{hash}, {hash_revision}, {compact_revision}\n"),
            Format::Json => {
                format!("{{\"hash\":{hash},\"hashRevision\":{hash_revision},\"compactRevision\":{compact_revision}}}\n")
            }
            Format::Fields => format!(
                "\"Hash\" : {hash}\n\"Hash revision\" : {hash_revision}\n\"Compact revision\" : {compact_revision}\n"
            ),
            Format::Table => draw(
                &["HASH", "HASH REVISION", "COMPACT REVISION"],
                vec![vec![hash.to_string(), hash_revision.to_string(), compact_revision.to_string()]],
            ),
            Format::Protobuf => return Err(unsupported()),
        })
    }
}

fn unsupported() -> UtlError {
    UtlError::bad_feature("protobuf not supported as output format")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_status_is_printed_in_etcdutls_bytes() {
        let status = Status { hash: 278714988, revision: 78, keys: 12, bytes: 24576, version: "3.7.0".to_owned() };
        let check = |format: &str, expected: &str| {
            let format = Format::parse(format).unwrap();
            assert_eq!(status.format(format).unwrap(), expected);
        };
        check("simple", "109cda6c, 78, 12, 25 kB, 3.7.0\n");
        check(
            "json",
            "{\"hash\":278714988,\"revision\":78,\"totalKey\":12,\"totalSize\":24576,\"version\":\"3.7.0\"}\n",
        );
        check(
            "fields",
            "\"Hash\" : 278714988\n\"Revision\" : 78\n\"Keys\" : 12\n\"Size\" : 24576\n\"Version\" : 3.7.0\n",
        );
        check(
            "table",
            "┌──────────┬──────────┬────────────┬────────────┬─────────┐\n\
             │   HASH   │ REVISION │ TOTAL KEYS │ TOTAL SIZE │ VERSION │\n\
             ├──────────┼──────────┼────────────┼────────────┼─────────┤\n\
             │ 109cda6c │       78 │         12 │      25 kB │   3.7.0 │\n\
             └──────────┴──────────┴────────────┴────────────┴─────────┘\n",
        );
        // The hash is not padded, and a file of 3.5 has no version: the blank at the end is scripts' to rely on.
        let old = Status { hash: 0x1ce56e, revision: 21, keys: 6, bytes: 20480, version: String::new() };
        assert_eq!(old.format(Format::Simple).unwrap(), "1ce56e, 21, 6, 20 kB, \n");
        assert_eq!(old.format(Format::Protobuf).unwrap_err().exit_code(), 4);
    }

    #[test]
    fn a_hash_is_printed_in_etcdutls_bytes() {
        let hash = HashKv { hash: 3555930479, hash_revision: 78, compact_revision: -1 };
        assert_eq!(hash.format(Format::Simple).unwrap(), "3555930479, 78, -1\n");
        assert_eq!(
            hash.format(Format::Json).unwrap(),
            "{\"hash\":3555930479,\"hashRevision\":78,\"compactRevision\":-1}\n"
        );
        assert_eq!(
            hash.format(Format::Fields).unwrap(),
            "\"Hash\" : 3555930479\n\"Hash revision\" : 78\n\"Compact revision\" : -1\n"
        );
        assert!(hash.format(Format::Table).unwrap().contains("│ HASH REVISION │ COMPACT REVISION │\n"));
    }
}

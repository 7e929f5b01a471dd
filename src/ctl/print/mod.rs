//! What commands have to say, in the format that was asked for: one file a format (ctl.md 3).

pub mod fields;
pub mod json;
pub mod lease;
pub mod protobuf;
pub mod simple;
pub mod table;

use std::io;
use std::io::Write;

use crate::proto::etcdserverpb::DeleteRangeResponse;
use crate::proto::etcdserverpb::HashKvResponse;
use crate::proto::etcdserverpb::MemberAddResponse;
use crate::proto::etcdserverpb::MemberListResponse;
use crate::proto::etcdserverpb::MemberPromoteResponse;
use crate::proto::etcdserverpb::MemberRemoveResponse;
use crate::proto::etcdserverpb::MemberUpdateResponse;
use crate::proto::etcdserverpb::MoveLeaderResponse;
use crate::proto::etcdserverpb::PutResponse;
use crate::proto::etcdserverpb::RangeResponse;
use crate::proto::etcdserverpb::StatusResponse;
use crate::proto::etcdserverpb::TxnResponse;
use crate::proto::etcdserverpb::WatchResponse;

/// Values of `--write-out`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    Fields,
    Json,
    Protobuf,
    Simple,
    Table,
}

impl Format {
    pub fn parse(text: &str) -> Option<Format> {
        Some(match text {
            "fields" => Format::Fields,
            "json" => Format::Json,
            "protobuf" => Format::Protobuf,
            "simple" => Format::Simple,
            "table" => Format::Table,
            _ => return None,
        })
    }

    pub fn name(self) -> &'static str {
        match self {
            Format::Fields => "fields",
            Format::Json => "json",
            Format::Protobuf => "protobuf",
            Format::Simple => "simple",
            Format::Table => "table",
        }
    }
}

/// One endpoint's answer to `endpoint status`.
#[derive(Clone, Debug, PartialEq)]
pub struct EndpointStatus {
    pub endpoint: String,
    pub status: StatusResponse,
}

/// One endpoint's answer to `endpoint hashkv`.
#[derive(Clone, Debug, PartialEq)]
pub struct EndpointHash {
    pub endpoint: String,
    pub hash: HashKvResponse,
}

/// What `endpoint health` found of one endpoint.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EndpointHealth {
    pub endpoint: String,
    pub healthy: bool,
    /// Go's form of a duration.
    pub took: String,
    /// Empty when healthy.
    pub error: String,
}

/// A result to print.
pub enum Report<'a> {
    Put(&'a PutResponse),
    /// `value_only`: the simple format leaves the keys out.
    Get {
        response: &'a RangeResponse,
        value_only: bool,
    },
    Delete(&'a DeleteRangeResponse),
    Txn(&'a TxnResponse),
    Lease(lease::LeaseReport<'a>),
    Watch(&'a WatchResponse),
    MemberList(&'a MemberListResponse),
    /// `name` and `peer_urls` as typed: what the new member is to be started with.
    MemberAdd {
        response: &'a MemberAddResponse,
        name: &'a str,
        peer_urls: &'a str,
    },
    MemberRemove {
        id: u64,
        response: &'a MemberRemoveResponse,
    },
    MemberUpdate {
        id: u64,
        response: &'a MemberUpdateResponse,
    },
    MemberPromote {
        id: u64,
        response: &'a MemberPromoteResponse,
    },
    MoveLeader {
        from: u64,
        to: u64,
        response: &'a MoveLeaderResponse,
    },
    Status(&'a [EndpointStatus]),
    Health(&'a [EndpointHealth]),
    HashKv(&'a [EndpointHash]),
}

impl Report<'_> {
    /// The support matrix.
    fn is_supported_in(&self, format: Format) -> bool {
        let per_endpoint = matches!(self, Report::Status(_) | Report::Health(_) | Report::HashKv(_));
        let changes_members = matches!(
            self,
            Report::MemberAdd { .. }
                | Report::MemberRemove { .. }
                | Report::MemberUpdate { .. }
                | Report::MemberPromote { .. }
                | Report::MoveLeader { .. }
        );
        match format {
            Format::Simple | Format::Json => true,
            Format::Fields => !changes_members,
            Format::Table => per_endpoint || matches!(self, Report::MemberList(_)),
            Format::Protobuf => match self {
                Report::Lease(report) => report.is_known_to_protobuf(),
                _ => !per_endpoint,
            },
        }
    }
}

/// Prints a result; false, and nothing printed, when the format does not know it. Only the simple format's unhealthy
/// endpoints go to `err`.
pub fn print(
    report: &Report<'_>,
    format: Format,
    hex: bool,
    out: &mut dyn Write,
    err: &mut dyn Write,
) -> io::Result<bool> {
    if !report.is_supported_in(format) {
        return Ok(false);
    }
    match format {
        Format::Fields => fields::write(report, hex, out)?,
        Format::Json => json::write(report, hex, out)?,
        Format::Protobuf => protobuf::write(report, out)?,
        Format::Simple => simple::write(report, hex, out, err)?,
        Format::Table => table::write(report, out)?,
    }
    Ok(true)
}

#[cfg(test)]
pub(super) mod samples {
    //! Responses of the transcripts, for the tests of all formats.

    use bytes::Bytes;

    use super::*;
    use crate::proto::etcdserverpb::DowngradeInfo;
    use crate::proto::etcdserverpb::Member;
    use crate::proto::etcdserverpb::ResponseHeader;
    use crate::proto::etcdserverpb::ResponseOp;
    use crate::proto::etcdserverpb::response_op::Response;
    use crate::proto::mvccpb::KeyValue;

    pub fn header(revision: i64) -> Option<ResponseHeader> {
        let (cluster_id, member_id) = (12101053776118486841, 15985099378392235387);
        Some(ResponseHeader { cluster_id, member_id, revision, raft_term: 2 })
    }

    /// A response inside a transaction says the revision only.
    pub fn inner_header(revision: i64) -> Option<ResponseHeader> {
        Some(ResponseHeader { revision, ..ResponseHeader::default() })
    }

    pub fn pair(key: &'static [u8], value: &'static [u8], create: i64, modified: i64, version: i64) -> KeyValue {
        KeyValue {
            key: Bytes::from_static(key),
            value: Bytes::from_static(value),
            create_revision: create,
            mod_revision: modified,
            version,
            lease: 0,
        }
    }

    pub fn put_with_prev() -> PutResponse {
        PutResponse { header: header(20), prev_kv: Some(pair(b"w", b"val2", 16, 19, 4)) }
    }

    pub fn one_pair() -> RangeResponse {
        RangeResponse { header: header(22), kvs: vec![pair(b"k1", b"v1", 9, 9, 1)], more: false, count: 1 }
    }

    pub fn txn() -> TxnResponse {
        let range =
            RangeResponse { header: inner_header(51), kvs: vec![pair(b"x", b"2", 9, 9, 1)], more: false, count: 1 };
        let put = PutResponse { header: inner_header(52), prev_kv: None };
        let delete = DeleteRangeResponse { header: inner_header(52), deleted: 1, prev_kvs: Vec::new() };
        let op = |response| ResponseOp { response: Some(response) };
        let responses = vec![
            op(Response::ResponseRange(range)),
            op(Response::ResponsePut(put)),
            op(Response::ResponseDeleteRange(delete)),
        ];
        TxnResponse { header: header(52), succeeded: true, responses }
    }

    pub fn members() -> MemberListResponse {
        let member = |id, name: &str, port: u16, started: bool| Member {
            id,
            name: name.to_owned(),
            peer_ur_ls: vec![format!("http://127.0.0.1:{port}")],
            client_ur_ls: if started { vec![format!("http://127.0.0.1:{}", port - 1)] } else { Vec::new() },
            is_learner: !started,
        };
        let members = vec![member(0x628170c800dbcee, "m3", 32380, true), member(0xb3a845f0edf5def2, "", 42380, false)];
        MemberListResponse { header: header(0), members }
    }

    pub fn status() -> Vec<EndpointStatus> {
        let status = StatusResponse {
            header: header(70),
            version: "3.7.1".to_owned(),
            db_size: 24576,
            leader: 15985099378392235387,
            raft_index: 112,
            raft_term: 2,
            raft_applied_index: 112,
            errors: Vec::new(),
            db_size_in_use: 16384,
            is_learner: false,
            storage_version: "3.7.0".to_owned(),
            db_size_quota: 2147483648,
            downgrade_info: Some(DowngradeInfo::default()),
        };
        vec![EndpointStatus { endpoint: "127.0.0.1:12379".to_owned(), status }]
    }

    pub fn hashes() -> Vec<EndpointHash> {
        let hash = HashKvResponse { header: header(2), hash: 3305255506, compact_revision: -1, hash_revision: 2 };
        vec![EndpointHash { endpoint: "127.0.0.1:12379".to_owned(), hash }]
    }

    pub fn health() -> Vec<EndpointHealth> {
        let found = |endpoint: &str, healthy, took: &str, error: &str| EndpointHealth {
            endpoint: endpoint.to_owned(),
            healthy,
            took: took.to_owned(),
            error: error.to_owned(),
        };
        vec![
            found("127.0.0.1:12379", true, "2.467018ms", ""),
            found("127.0.0.1:1", false, "1.000520246s", "context deadline exceeded"),
        ]
    }

    /// What a format prints on standard output.
    pub fn printed(report: &Report<'_>, format: Format, hex: bool) -> String {
        let (mut out, mut err) = (Vec::new(), Vec::new());
        let known = print(report, format, hex, &mut out, &mut err).expect("a Vec takes everything");
        assert!(known, "{} must know this", format.name());
        String::from_utf8(out).expect("samples are text")
    }
}

#[cfg(test)]
mod tests {
    use super::samples;
    use super::*;

    #[test]
    fn unsupported_formats_print_nothing() {
        let (put, status) = (samples::put_with_prev(), samples::status());
        let mut out = Vec::new();
        let mut check = |report: Report<'_>, format: Format| {
            let known = print(&report, format, false, &mut out, &mut Vec::new()).expect("a Vec takes everything");
            assert!(!known && out.is_empty(), "{}", format.name());
        };
        check(Report::Put(&put), Format::Table);
        check(Report::Status(&status), Format::Protobuf);
        assert_eq!(Format::parse("bogus"), None);
        assert_eq!(Format::parse(""), None);
    }
}

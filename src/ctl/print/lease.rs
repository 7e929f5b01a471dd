//! What lease commands have to say, in every format that knows them.

use std::io;
use std::io::Write;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use prost::Message;

use crate::ctl::go_text::quote;
use crate::proto::etcdserverpb::LeaseGrantResponse;
use crate::proto::etcdserverpb::LeaseKeepAliveResponse;
use crate::proto::etcdserverpb::LeaseLeasesResponse;
use crate::proto::etcdserverpb::LeaseRevokeResponse;
use crate::proto::etcdserverpb::LeaseTimeToLiveResponse;
use crate::proto::etcdserverpb::ResponseHeader;

/// A result of a lease command.
pub enum LeaseReport<'a> {
    Grant(&'a LeaseGrantResponse),
    Revoke {
        id: i64,
        response: &'a LeaseRevokeResponse,
    },
    /// `keys`: they were asked for.
    TimeToLive {
        response: &'a LeaseTimeToLiveResponse,
        keys: bool,
    },
    List(&'a LeaseLeasesResponse),
    KeepAlive(&'a LeaseKeepAliveResponse),
}

impl LeaseReport<'_> {
    pub fn header(&self) -> Option<&ResponseHeader> {
        match self {
            LeaseReport::Grant(response) => response.header.as_ref(),
            LeaseReport::Revoke { response, .. } => response.header.as_ref(),
            LeaseReport::TimeToLive { response, .. } => response.header.as_ref(),
            LeaseReport::List(response) => response.header.as_ref(),
            LeaseReport::KeepAlive(response) => response.header.as_ref(),
        }
    }

    /// All but the revoke, whose Go type etcdctl cannot write (ctl.md 3).
    pub fn is_known_to_protobuf(&self) -> bool {
        !matches!(self, LeaseReport::Revoke { .. })
    }
}

/// A lease's id as Go writes `%016x`: a minus counts as a digit.
pub fn padded(id: i64) -> String {
    if id < 0 { format!("-{:015x}", id.unsigned_abs()) } else { format!("{id:016x}") }
}

pub fn simple(report: &LeaseReport<'_>, out: &mut dyn Write) -> io::Result<()> {
    match report {
        LeaseReport::Grant(response) => {
            writeln!(out, "lease {} granted with TTL({}s)", padded(response.id), response.ttl)
        }
        LeaseReport::Revoke { id, .. } => writeln!(out, "lease {} revoked", padded(*id)),
        LeaseReport::TimeToLive { response, .. } if response.granted_ttl == 0 && response.ttl == -1 => {
            writeln!(out, "lease {} already expired", padded(response.id))
        }
        LeaseReport::TimeToLive { response, keys } => {
            let id = padded(response.id);
            write!(out, "lease {id} granted with TTL({}s), remaining({}s)", response.granted_ttl, response.ttl)?;
            if *keys {
                // Raw bytes, also under --hex.
                out.write_all(b", attached keys([")?;
                out.write_all(&response.keys.join(&b' '))?;
                out.write_all(b"])")?;
            }
            out.write_all(b"\n")
        }
        LeaseReport::List(response) => {
            writeln!(out, "found {} leases", response.leases.len())?;
            response.leases.iter().try_for_each(|lease| writeln!(out, "{}", padded(lease.id)))
        }
        LeaseReport::KeepAlive(response) => {
            writeln!(out, "lease {} keepalived with TTL({})", padded(response.id), response.ttl)
        }
    }
}

/// `header` are the members of the header's object. They stand beside the lease's own, but for the revoke.
pub fn json(report: &LeaseReport<'_>, header: &str) -> String {
    let own = match report {
        LeaseReport::Grant(response) => format!("\"ID\":{},\"TTL\":{},\"Error\":\"\"", response.id, response.ttl),
        LeaseReport::Revoke { .. } => return format!("{{\"header\":{{{header}}}}}"),
        LeaseReport::TimeToLive { response, .. } => format!(
            "\"id\":{},\"ttl\":{},\"granted-ttl\":{},\"keys\":{}",
            response.id,
            response.ttl,
            response.granted_ttl,
            json_keys(response)
        ),
        LeaseReport::List(response) => {
            let leases: Vec<String> = response.leases.iter().map(|lease| format!("{{\"id\":{}}}", lease.id)).collect();
            format!("\"leases\":[{}]", leases.join(","))
        }
        LeaseReport::KeepAlive(response) => format!("\"ID\":{},\"TTL\":{}", response.id, response.ttl),
    };
    let comma = if header.is_empty() { "" } else { "," };
    format!("{{{header}{comma}{own}}}")
}

fn json_keys(response: &LeaseTimeToLiveResponse) -> String {
    if response.keys.is_empty() {
        return "null".to_owned();
    }
    let keys: Vec<String> = response.keys.iter().map(|key| format!("\"{}\"", STANDARD.encode(key))).collect();
    format!("[{}]", keys.join(","))
}

/// Everything behind the header's lines.
pub fn fields(report: &LeaseReport<'_>, hex: bool, out: &mut dyn Write) -> io::Result<()> {
    let id = |out: &mut dyn Write, id: i64| match hex {
        true => writeln!(out, "\"ID\" : {}", padded(id)),
        false => writeln!(out, "\"ID\" : {id}"),
    };
    match report {
        LeaseReport::Grant(response) => {
            id(out, response.id)?;
            writeln!(out, "\"TTL\" : {}", response.ttl)
        }
        LeaseReport::Revoke { .. } => Ok(()),
        LeaseReport::TimeToLive { response, .. } => {
            id(out, response.id)?;
            writeln!(out, "\"TTL\" : {}\n\"GrantedTTL\" : {}", response.ttl, response.granted_ttl)?;
            response.keys.iter().try_for_each(|key| writeln!(out, "\"Key\" : {}", quote(key)))
        }
        LeaseReport::List(response) => response.leases.iter().try_for_each(|lease| id(out, lease.id)),
        LeaseReport::KeepAlive(response) => {
            id(out, response.id)?;
            writeln!(out, "\"TTL\" : {}", response.ttl)
        }
    }
}

/// The header alone, as every release of etcdctl writes it: its Go type for these responses is the header's.
pub fn protobuf(report: &LeaseReport<'_>) -> Vec<u8> {
    report.header().map(Message::encode_to_vec).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::super::Format;
    use super::super::Report;
    use super::super::print;
    use super::super::samples;
    use super::*;

    const ID: i64 = 0x7d7b_a1f9_03b7_f065;

    fn time_to_live(keys: &[&'static [u8]]) -> LeaseTimeToLiveResponse {
        let keys = keys.iter().map(|key| bytes::Bytes::from_static(key)).collect();
        LeaseTimeToLiveResponse { header: samples::header(31), id: ID, ttl: 59, granted_ttl: 60, keys }
    }

    #[test]
    fn ids_are_padded_as_go_does() {
        assert_eq!(padded(0x1234), "0000000000001234");
        assert_eq!(padded(ID), "7d7ba1f903b7f065");
        assert_eq!(padded(-5), "-000000000000005");
        assert_eq!(padded(i64::MIN), "-8000000000000000");
    }

    #[test]
    fn every_format_says_what_was_recorded() {
        let check = |report: LeaseReport<'_>, format: Format, hex: bool, expected: &str| {
            assert_eq!(samples::printed(&Report::Lease(report), format, hex), expected);
        };
        let shown = time_to_live(&[b"lk", b"lk2"]);
        let keys = |keys| LeaseReport::TimeToLive { response: &shown, keys };
        let line = "lease 7d7ba1f903b7f065 granted with TTL(60s), remaining(59s)";
        check(keys(false), Format::Simple, false, &format!("{line}\n"));
        check(keys(true), Format::Simple, true, &format!("{line}, attached keys([lk lk2])\n"));
        let header =
            "\"cluster_id\":12101053776118486841,\"member_id\":15985099378392235387,\"revision\":31,\"raft_term\":2";
        let json = format!("{{{header},\"id\":{ID},\"ttl\":59,\"granted-ttl\":60,\"keys\":[\"bGs=\",\"bGsy\"]}}\n");
        check(keys(true), Format::Json, false, &json);
        let fields = "\"ClusterID\" : a7ef944b95711739\n\"MemberID\" : ddd67b312462fd7b\n\"Revision\" : 31\n\
                      \"RaftTerm\" : 2\n\"ID\" : 7d7ba1f903b7f065\n\"TTL\" : 59\n\"GrantedTTL\" : 60\n\
                      \"Key\" : \"lk\"\n\"Key\" : \"lk2\"\n";
        check(keys(true), Format::Fields, true, fields);
        let revoked = LeaseRevokeResponse { header: samples::header(31) };
        let revoke = || LeaseReport::Revoke { id: ID, response: &revoked };
        check(revoke(), Format::Json, false, &format!("{{\"header\":{{{header}}}}}\n"));
        let none = LeaseLeasesResponse::default();
        check(LeaseReport::List(&none), Format::Json, false, "{\"leases\":[]}\n");
        check(LeaseReport::List(&none), Format::Simple, false, "found 0 leases\n");
    }

    #[test]
    fn protobuf_is_the_header_and_table_is_unknown() {
        let shown = time_to_live(&[]);
        let mut out = Vec::new();
        let report = Report::Lease(LeaseReport::TimeToLive { response: &shown, keys: true });
        assert!(print(&report, Format::Protobuf, false, &mut out, &mut Vec::new()).expect("a Vec"));
        assert_eq!(out, samples::header(31).expect("a header").encode_to_vec());
        assert!(!print(&report, Format::Table, false, &mut out, &mut Vec::new()).expect("a Vec"));
    }
}

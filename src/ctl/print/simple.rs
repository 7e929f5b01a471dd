//! The `simple` format: for people and grep.

use std::io;
use std::io::Write;

use super::EndpointHealth;
use super::EndpointStatus;
use super::Report;
use super::lease;
use crate::ctl::go_text;
use crate::proto::etcdserverpb::DeleteRangeResponse;
use crate::proto::etcdserverpb::Member;
use crate::proto::etcdserverpb::MemberAddResponse;
use crate::proto::etcdserverpb::MemberListResponse;
use crate::proto::etcdserverpb::PutResponse;
use crate::proto::etcdserverpb::RangeResponse;
use crate::proto::etcdserverpb::ResponseHeader;
use crate::proto::etcdserverpb::TxnResponse;
use crate::proto::etcdserverpb::response_op::Response;
use crate::proto::mvccpb::Event;
use crate::proto::mvccpb::KeyValue;
use crate::proto::mvccpb::event::EventType;

pub fn write(report: &Report<'_>, hex: bool, out: &mut dyn Write, err: &mut dyn Write) -> io::Result<()> {
    match report {
        Report::Put(response) => put(response, hex, out),
        Report::Get { response, value_only } => range(response, *value_only, hex, out),
        Report::Delete(response) => delete(response, hex, out),
        Report::Txn(response) => txn(response, hex, out),
        Report::Lease(report) => lease::simple(report, out),
        Report::Watch(response) => response.events.iter().try_for_each(|of| event(of, hex, out)),
        Report::MemberList(response) => rows(&member_rows(response), out),
        Report::MemberAdd { response, name, peer_urls } => member_added(response, name, peer_urls, out),
        Report::MemberRemove { id, response } => member_changed(*id, "removed from", &response.header, out),
        Report::MemberUpdate { id, response } => member_changed(*id, "updated in", &response.header, out),
        Report::MemberPromote { id, response } => member_changed(*id, "promoted in", &response.header, out),
        Report::MoveLeader { from, to, .. } => writeln!(out, "Leadership transferred from {from:x} to {to:x}"),
        Report::Status(list) => rows(&status_rows(list), out),
        Report::Health(list) => list.iter().try_for_each(|found| health(found, out, err)),
        Report::HashKv(list) => list.iter().try_for_each(|found| {
            writeln!(out, "{}, {}, {}", found.endpoint, found.hash.hash, found.hash.hash_revision)
        }),
    }
}

fn put(response: &PutResponse, hex: bool, out: &mut dyn Write) -> io::Result<()> {
    out.write_all(b"OK\n")?;
    response.prev_kv.iter().try_for_each(|kv| pair(kv, false, hex, out))
}

fn range(response: &RangeResponse, value_only: bool, hex: bool, out: &mut dyn Write) -> io::Result<()> {
    response.kvs.iter().try_for_each(|kv| pair(kv, value_only, hex, out))
}

fn delete(response: &DeleteRangeResponse, hex: bool, out: &mut dyn Write) -> io::Result<()> {
    writeln!(out, "{}", response.deleted)?;
    response.prev_kvs.iter().try_for_each(|kv| pair(kv, false, hex, out))
}

fn txn(response: &TxnResponse, hex: bool, out: &mut dyn Write) -> io::Result<()> {
    out.write_all(if response.succeeded { b"SUCCESS\n" } else { b"FAILURE\n" })?;
    for op in &response.responses {
        out.write_all(b"\n")?;
        match &op.response {
            Some(Response::ResponseRange(nested)) => range(nested, false, hex, out)?,
            Some(Response::ResponsePut(nested)) => put(nested, hex, out)?,
            Some(Response::ResponseDeleteRange(nested)) => delete(nested, hex, out)?,
            Some(Response::ResponseTxn(nested)) => txn(nested, hex, out)?,
            None => {}
        }
    }
    Ok(())
}

fn event(event: &Event, hex: bool, out: &mut dyn Write) -> io::Result<()> {
    out.write_all(event_type(event).as_bytes())?;
    out.write_all(b"\n")?;
    event.prev_kv.iter().chain(&event.kv).try_for_each(|kv| pair(kv, false, hex, out))
}

/// `PUT` or `DELETE`; etcd's Go code prints the number of any other.
pub fn event_type(event: &Event) -> String {
    EventType::try_from(event.r#type).map_or_else(|_| event.r#type.to_string(), |kind| kind.as_str_name().to_owned())
}

fn pair(kv: &KeyValue, value_only: bool, hex: bool, out: &mut dyn Write) -> io::Result<()> {
    if !value_only {
        bytes(&kv.key, hex, out)?;
    }
    bytes(&kv.value, hex, out)
}

/// A key or value on its line: raw, or every byte as `\x6b`.
fn bytes(bytes: &[u8], hex: bool, out: &mut dyn Write) -> io::Result<()> {
    if hex {
        bytes.iter().try_for_each(|byte| write!(out, "\\x{byte:02x}"))?;
    } else {
        out.write_all(bytes)?;
    }
    out.write_all(b"\n")
}

fn health(found: &EndpointHealth, out: &mut dyn Write, err: &mut dyn Write) -> io::Result<()> {
    let EndpointHealth { endpoint, healthy, took, error } = found;
    if *healthy {
        writeln!(out, "{endpoint} is healthy: successfully committed proposal: took = {took}")
    } else {
        writeln!(err, "{endpoint} is unhealthy: failed to commit proposal: {error}")
    }
}

fn rows(rows: &[Vec<String>], out: &mut dyn Write) -> io::Result<()> {
    rows.iter().try_for_each(|row| writeln!(out, "{}", row.join(", ")))
}

/// Ids in sentences are padded to 16 letters, unlike those in lists (ctl.md 9).
fn member_changed(id: u64, done: &str, header: &Option<ResponseHeader>, out: &mut dyn Write) -> io::Result<()> {
    let cluster = header.as_ref().map_or(0, |header| header.cluster_id);
    writeln!(out, "Member {id:16x} {done} cluster {cluster:16x}")
}

/// The sentence, and what the new member is to be started with.
fn member_added(response: &MemberAddResponse, name: &str, peer_urls: &str, out: &mut dyn Write) -> io::Result<()> {
    let added = response.member.clone().unwrap_or_default();
    let done = if added.is_learner { "added as learner to" } else { "added to" };
    member_changed(added.id, done, &response.header, out)?;
    let entries = response.members.iter().flat_map(|member| {
        let name = if member.id == added.id { name } else { &member.name };
        member.peer_ur_ls.iter().map(move |url| format!("{name}={url}"))
    });
    let entries = entries.collect::<Vec<_>>().join(",");
    let quoted = |text: &str| go_text::quote(text.as_bytes());
    writeln!(out)?;
    writeln!(out, "ETCD_NAME={}", quoted(name))?;
    writeln!(out, "ETCD_INITIAL_CLUSTER={}", quoted(&entries))?;
    writeln!(out, "ETCD_INITIAL_ADVERTISE_PEER_URLS={}", quoted(peer_urls))?;
    writeln!(out, "ETCD_INITIAL_CLUSTER_STATE=\"existing\"")
}

/// Cells of `member list`, for this format and the table.
pub fn member_rows(response: &MemberListResponse) -> Vec<Vec<String>> {
    let row = |member: &Member| {
        vec![
            format!("{:x}", member.id),
            if member.name.is_empty() { "unstarted" } else { "started" }.to_owned(),
            member.name.clone(),
            member.peer_ur_ls.join(","),
            member.client_ur_ls.join(","),
            member.is_learner.to_string(),
        ]
    };
    response.members.iter().map(row).collect()
}

/// Cells of `endpoint status`, for this format and the table.
pub fn status_rows(list: &[EndpointStatus]) -> Vec<Vec<String>> {
    let row = |found: &EndpointStatus| {
        let status = &found.status;
        let member = status.header.as_ref().map_or(0, |header| header.member_id);
        let downgrade = status.downgrade_info.clone().unwrap_or_default();
        vec![
            found.endpoint.clone(),
            format!("{member:x}"),
            status.version.clone(),
            status.storage_version.clone(),
            size(status.db_size),
            size(status.db_size_in_use),
            format!("{}%", percent_unused(status.db_size, status.db_size_in_use)),
            size(status.db_size_quota),
            (status.leader == member).to_string(),
            status.is_learner.to_string(),
            status.raft_term.to_string(),
            status.raft_index.to_string(),
            status.raft_applied_index.to_string(),
            status.errors.join(", "),
            downgrade.target_version,
            downgrade.enabled.to_string(),
        ]
    };
    list.iter().map(row).collect()
}

/// Rounded by integer division as etcd does it. An empty database has nothing unused (etcdctl divides by zero there).
fn percent_unused(size: i64, in_use: i64) -> i128 {
    match size {
        0 => 0,
        _ => 100 - i128::from(in_use) * 100 / i128::from(size),
    }
}

/// Bytes with SI units: `20 kB`, `2.1 GB`; one decimal below ten.
pub fn size(bytes: i64) -> String {
    const UNITS: [&str; 7] = ["B", "kB", "MB", "GB", "TB", "PB", "EB"];
    let bytes = u64::try_from(bytes).unwrap_or(0);
    if bytes < 10 {
        return format!("{bytes} B");
    }
    let mut power = 0;
    while power + 1 < UNITS.len() && bytes / 1000u64.pow(power as u32 + 1) > 0 {
        power += 1;
    }
    let value = (bytes as f64 / 1000f64.powi(power as i32) * 10.0 + 0.5).floor() / 10.0;
    let unit = UNITS[power];
    if value < 10.0 { format!("{value:.1} {unit}") } else { format!("{value:.0} {unit}") }
}

#[cfg(test)]
mod tests {
    use super::super::Format;
    use super::super::samples;
    use super::*;
    use crate::proto::etcdserverpb::MemberRemoveResponse;
    use crate::proto::etcdserverpb::MoveLeaderResponse;

    fn check(report: Report<'_>, hex: bool, expected: &str) {
        assert_eq!(samples::printed(&report, Format::Simple, hex), expected);
    }

    #[test]
    fn every_response_has_its_lines() {
        check(Report::Put(&PutResponse::default()), false, "OK\n");
        check(Report::Put(&samples::put_with_prev()), false, "OK\nw\nval2\n");
        check(Report::Get { response: &samples::one_pair(), value_only: false }, false, "k1\nv1\n");
        check(Report::Get { response: &samples::one_pair(), value_only: true }, false, "v1\n");
        check(Report::Get { response: &samples::one_pair(), value_only: false }, true, "\\x6b\\x31\n\\x76\\x31\n");
        check(Report::Get { response: &RangeResponse::default(), value_only: false }, false, "");
        let prev_kvs = vec![samples::pair(b"k5", b"v5", 1, 1, 1)];
        check(Report::Delete(&DeleteRangeResponse { deleted: 1, prev_kvs, header: None }), false, "1\nk5\nv5\n");
        check(Report::Txn(&samples::txn()), false, "SUCCESS\n\nx\n2\n\nOK\n\n1\n");
        check(Report::Txn(&TxnResponse::default()), false, "FAILURE\n");
        check(
            Report::MemberList(&samples::members()),
            true,
            "628170c800dbcee, started, m3, http://127.0.0.1:32380, http://127.0.0.1:32379, false\n\
             b3a845f0edf5def2, unstarted, , http://127.0.0.1:42380, , true\n",
        );
        check(
            Report::Status(&samples::status()),
            false,
            "127.0.0.1:12379, ddd67b312462fd7b, 3.7.1, 3.7.0, 25 kB, 16 kB, 34%, 2.1 GB, true, false, 2, 112, 112, \
             , , false\n",
        );
        check(Report::HashKv(&samples::hashes()), false, "127.0.0.1:12379, 3305255506, 2\n");
    }

    #[test]
    fn changes_of_members_are_sentences() {
        let header = samples::header(0);
        let members = samples::members().members;
        let added = MemberAddResponse { header, member: Some(members[1].clone()), members };
        check(
            Report::MemberAdd { response: &added, name: "m4", peer_urls: "http://127.0.0.1:42380" },
            false,
            "Member b3a845f0edf5def2 added as learner to cluster a7ef944b95711739\n\nETCD_NAME=\"m4\"\n\
             ETCD_INITIAL_CLUSTER=\"m3=http://127.0.0.1:32380,m4=http://127.0.0.1:42380\"\n\
             ETCD_INITIAL_ADVERTISE_PEER_URLS=\"http://127.0.0.1:42380\"\nETCD_INITIAL_CLUSTER_STATE=\"existing\"\n",
        );
        let response = MemberRemoveResponse { header, members: Vec::new() };
        check(
            Report::MemberRemove { id: 0x628170c800dbcee, response: &response },
            false,
            "Member  628170c800dbcee removed from cluster a7ef944b95711739\n",
        );
        let response = MoveLeaderResponse { header: None };
        check(
            Report::MoveLeader { from: 0x628170c800dbcee, to: 1, response: &response },
            false,
            "Leadership transferred from 628170c800dbcee to 1\n",
        );
    }

    #[test]
    fn unhealthy_lines_go_to_standard_error() {
        let (mut out, mut err) = (Vec::new(), Vec::new());
        write(&Report::Health(&samples::health()), false, &mut out, &mut err).expect("a Vec takes everything");
        let text = |bytes| String::from_utf8(bytes).expect("text");
        assert_eq!(text(out), "127.0.0.1:12379 is healthy: successfully committed proposal: took = 2.467018ms\n");
        assert_eq!(text(err), "127.0.0.1:1 is unhealthy: failed to commit proposal: context deadline exceeded\n");
    }

    #[test]
    fn sizes_are_si() {
        let check = |bytes: i64, expected: &str| assert_eq!(size(bytes), expected, "{bytes}");
        check(0, "0 B");
        check(9, "9 B");
        check(10, "10 B");
        check(999, "999 B");
        check(1000, "1.0 kB");
        check(9_950, "10 kB");
        check(20_480, "20 kB");
        check(24_576, "25 kB");
        check(32_768, "33 kB");
        check(999_999, "1000 kB");
        check(2_147_483_648, "2.1 GB");
        check(i64::MAX, "9.2 EB");
        check(-1, "0 B");
        assert_eq!(percent_unused(0, 0), 0);
        assert_eq!(percent_unused(32_768, 24_576), 25);
    }
}

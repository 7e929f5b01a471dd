//! The `table` format of 3.7: box characters, centred upper-case headings, cells to the right (ctl.md 9).

use std::io;
use std::io::Write;

use tabled::builder::Builder;
use tabled::settings::Alignment;
use tabled::settings::Style;
use tabled::settings::object::Rows;

use super::Report;
use super::simple;

const MEMBER_HEADINGS: [&str; 6] = ["ID", "STATUS", "NAME", "PEER ADDRS", "CLIENT ADDRS", "IS LEARNER"];

const STATUS_HEADINGS: [&str; 16] = [
    "ENDPOINT",
    "ID",
    "VERSION",
    "STORAGE VERSION",
    "DB SIZE",
    "IN USE",
    "PERCENTAGE NOT IN USE",
    "QUOTA",
    "IS LEADER",
    "IS LEARNER",
    "RAFT TERM",
    "RAFT INDEX",
    "RAFT APPLIED INDEX",
    "ERRORS",
    "DOWNGRADE TARGET VERSION",
    "DOWNGRADE ENABLED",
];

const HEALTH_HEADINGS: [&str; 4] = ["ENDPOINT", "HEALTH", "TOOK", "ERROR"];

const HASH_HEADINGS: [&str; 3] = ["ENDPOINT", "HASH", "HASH REVISION"];

pub fn write(report: &Report<'_>, out: &mut dyn Write) -> io::Result<()> {
    let text = match report {
        Report::MemberList(response) => draw(&MEMBER_HEADINGS, simple::member_rows(response)),
        Report::Status(list) => draw(&STATUS_HEADINGS, simple::status_rows(list)),
        Report::Health(list) => {
            let row = |found: &super::EndpointHealth| {
                vec![found.endpoint.clone(), found.healthy.to_string(), found.took.clone(), found.error.clone()]
            };
            draw(&HEALTH_HEADINGS, list.iter().map(row).collect())
        }
        Report::HashKv(list) => {
            let row = |found: &super::EndpointHash| {
                vec![found.endpoint.clone(), found.hash.hash.to_string(), found.hash.hash_revision.to_string()]
            };
            draw(&HASH_HEADINGS, list.iter().map(row).collect())
        }
        // Not in the support matrix.
        Report::Put(_)
        | Report::Get { .. }
        | Report::Delete(_)
        | Report::Txn(_)
        | Report::Lease(_)
        | Report::Watch(_)
        | Report::MemberAdd { .. }
        | Report::MemberRemove { .. }
        | Report::MemberUpdate { .. }
        | Report::MemberPromote { .. }
        | Report::MoveLeader { .. } => String::new(),
    };
    out.write_all(text.as_bytes())
}

/// A table of these rows, with its newline.
pub fn draw(headings: &[&str], rows: Vec<Vec<String>>) -> String {
    let header_only = rows.is_empty();
    let mut builder = Builder::new();
    builder.push_record(headings.iter().copied());
    rows.into_iter().for_each(|row| builder.push_record(row));
    let mut table = builder.build();
    if header_only {
        table.with(Style::sharp().remove_horizontals());
    } else {
        table.with(Style::sharp());
    }
    table.with(Alignment::right()).modify(Rows::first(), Alignment::center());
    format!("{table}\n")
}

#[cfg(test)]
mod tests {
    use super::super::Format;
    use super::super::samples;
    use super::*;

    fn check(report: Report<'_>, expected: &str) {
        assert_eq!(samples::printed(&report, Format::Table, false), format!("{}\n", expected.trim()));
    }

    #[test]
    fn tables_are_drawn_as_3_7_draws_them() {
        check(
            Report::MemberList(&samples::members()),
            "
┌──────────────────┬───────────┬──────┬────────────────────────┬────────────────────────┬────────────┐
│        ID        │  STATUS   │ NAME │       PEER ADDRS       │      CLIENT ADDRS      │ IS LEARNER │
├──────────────────┼───────────┼──────┼────────────────────────┼────────────────────────┼────────────┤
│  628170c800dbcee │   started │   m3 │ http://127.0.0.1:32380 │ http://127.0.0.1:32379 │      false │
│ b3a845f0edf5def2 │ unstarted │      │ http://127.0.0.1:42380 │                        │       true │
└──────────────────┴───────────┴──────┴────────────────────────┴────────────────────────┴────────────┘
",
        );
        check(
            Report::Health(&samples::health()),
            "
┌─────────────────┬────────┬──────────────┬───────────────────────────┐
│    ENDPOINT     │ HEALTH │     TOOK     │           ERROR           │
├─────────────────┼────────┼──────────────┼───────────────────────────┤
│ 127.0.0.1:12379 │   true │   2.467018ms │                           │
│     127.0.0.1:1 │  false │ 1.000520246s │ context deadline exceeded │
└─────────────────┴────────┴──────────────┴───────────────────────────┘
",
        );
        check(
            Report::HashKv(&samples::hashes()),
            "
┌─────────────────┬────────────┬───────────────┐
│    ENDPOINT     │    HASH    │ HASH REVISION │
├─────────────────┼────────────┼───────────────┤
│ 127.0.0.1:12379 │ 3305255506 │             2 │
└─────────────────┴────────────┴───────────────┘
",
        );
    }

    #[test]
    fn without_rows_only_the_headings_stand() {
        check(
            Report::HashKv(&[]),
            "
┌──────────┬──────┬───────────────┐
│ ENDPOINT │ HASH │ HASH REVISION │
└──────────┴──────┴───────────────┘
",
        );
    }
}

//! Golden scripts: each file of `testscripts/` is named for a fact and shows it, commands and their exact output.
//!
//! Lines that begin with `> ` are commands, those up to the next one their output:
//!
//! ```text
//! put KEY VALUE [LEASE] · del KEY [END] · txn COMMAND ; COMMAND ...        print the revision
//! range KEY [END] [rev=N] [limit=N] [desc] [keys] [count]                   `*` as END: all that follow
//! history [KEY END] · watch KEY END after=N                                 records that are there; revisions named
//! compact N · step N · finish · take · land · flush · restart · stored      `stored`: records in the tables
//! hash [N] · status
//! ```

use std::fmt::Write;
use std::fs;
use std::ops::ControlFlow;
use std::path::Path;

use bytes::Bytes;

use crate::common::key_range::KeyRange;
use crate::common::revision::Revision;
use crate::proto::etcdserverpb::RangeRequest;
use crate::proto::mvccpb::KeyValue;
use crate::server::mvcc::hash::hash_kv;
use crate::server::mvcc::read::range;
use crate::server::mvcc::testing::harness::Harness;
use crate::server::mvcc::view::Keys;
use crate::server::mvcc::view::ReadError;
use crate::server::mvcc::write::WriteTxn;

fn end_of(word: Option<&&str>) -> Bytes {
    match word {
        None => Bytes::new(),
        Some(&"*") => Bytes::from_static(b"\0"),
        Some(word) => Bytes::copy_from_slice(word.as_bytes()),
    }
}

fn pair(kv: &KeyValue) -> String {
    let text = |bytes: &Bytes| String::from_utf8_lossy(bytes).into_owned();
    let lease = if kv.lease == 0 { String::new() } else { format!(" lease {}", kv.lease) };
    let KeyValue { create_revision, mod_revision, version, .. } = kv;
    let (key, value) = (text(&kv.key), text(&kv.value));
    format!("{key}={value} create {create_revision} mod {mod_revision} version {version}{lease}\n")
}

fn write(txn: &mut WriteTxn<'_>, words: &[&str]) {
    let key = Bytes::copy_from_slice(words[1].as_bytes());
    match words[0] {
        "put" => {
            let lease = words.get(3).map_or(0, |lease| lease.parse().unwrap());
            txn.put(&key, Bytes::copy_from_slice(words[2].as_bytes()), lease);
        }
        "del" => {
            for found in txn.find(&KeyRange::new(key, end_of(words.get(2))), txn.revision(), usize::MAX) {
                txn.delete(&Bytes::copy_from_slice(&found.key));
            }
        }
        other => panic!("no write {other}"),
    }
}

fn read(harness: &Harness, words: &[&str]) -> String {
    let (options, keys): (Vec<&str>, Vec<&str>) =
        words[1..].iter().partition(|word| word.contains('=') || ["desc", "keys", "count"].contains(word));
    let number = |name: &str| {
        let value = options.iter().find_map(|option| option.strip_prefix(name)?.strip_prefix('='));
        value.map_or(0, |value| value.parse().unwrap())
    };
    let request = RangeRequest {
        key: Bytes::copy_from_slice(keys[0].as_bytes()),
        range_end: end_of(keys.get(1)),
        revision: number("rev"),
        limit: number("limit"),
        sort_order: if options.contains(&"desc") { 2 } else { 0 },
        keys_only: options.contains(&"keys"),
        count_only: options.contains(&"count"),
        ..RangeRequest::default()
    };
    match range(harness.store.views().current().as_ref(), &request) {
        Ok(response) => {
            let mut out: String = response.kvs.iter().map(pair).collect();
            let more = if response.more { ", more" } else { "" };
            let _ = writeln!(out, "{} in all{more}", response.count);
            out
        }
        Err(ReadError::Answer(answer)) => format!("{answer}\n"),
        Err(ReadError::Failure(failure)) => panic!("{failure}"),
    }
}

fn history(harness: &Harness) -> String {
    let mut out = String::new();
    let mut visit = |record: crate::server::checkpoint::Record| {
        let key = String::from_utf8_lossy(&record.kv.key).into_owned();
        let what = if record.tombstone { "deleted".to_owned() } else { format!("version {}", record.kv.version) };
        let _ = writeln!(out, "{} {key} {what}", record.revision);
        ControlFlow::Continue(())
    };
    let view = harness.store.views().current();
    view.records(Revision::default(), Revision::new(i64::MAX, 0), &mut visit).unwrap();
    out
}

fn hash(harness: &Harness, words: &[&str]) -> String {
    let requested = words.get(1).map_or(0, |word| word.parse().unwrap());
    match hash_kv(&harness.store.views(), requested) {
        Ok(hash) => format!("{} at {} compacted {}\n", hash.hash, hash.hash_revision, hash.compact_revision),
        Err(error) => format!("{error}\n"),
    }
}

fn command(harness: &mut Harness, line: &str) -> String {
    let words: Vec<&str> = line.split_whitespace().collect();
    let number = || words[1].parse::<i64>().unwrap();
    match words[0] {
        "put" | "del" | "txn" => {
            let mut txn = harness.store.begin();
            for part in line.trim_start_matches("txn ").split(" ; ") {
                write(&mut txn, &part.split_whitespace().collect::<Vec<_>>());
            }
            let out = format!("{}\n", txn.commit().revision);
            harness.store.publish();
            return out;
        }
        "range" => return read(harness, &words),
        "history" => return history(harness),
        "watch" => {
            let after = words[3].strip_prefix("after=").unwrap().parse().unwrap();
            let range = KeyRange::new(Bytes::copy_from_slice(words[1].as_bytes()), end_of(words.get(2)));
            let revisions = harness.store.views().current().revisions_after(&range, after);
            return revisions.iter().map(|revision| format!("{revision}\n")).collect();
        }
        "compact" => {
            let result = harness.store.compact(number());
            harness.store.publish();
            return result.map_or_else(|answer| format!("{answer}\n"), |()| String::new());
        }
        "step" => return format!("{:?}\n", harness.store.compaction_step(number() as usize).unwrap()),
        "hash" => return hash(harness, &words),
        "stored" => return format!("{}\n", harness.tables.stored()),
        "status" => {
            let view = harness.store.views().current();
            let (revision, compacted) = (view.revision(), view.compact_revision());
            return format!("revision {revision} compacted {compacted} keys {}\n", view.index().live_keys());
        }
        "finish" => harness.finish_compactions(),
        "take" => harness.take(),
        "land" => harness.land(),
        "flush" => harness.flush(),
        "restart" => harness.restart(),
        other => panic!("no command {other}"),
    }
    String::new()
}

/// Runs a script's commands: the script with the real output.
fn replay(script: &str) -> String {
    let mut harness = Harness::default();
    let mut out = String::new();
    for line in script.lines() {
        if let Some(line) = line.strip_prefix("> ") {
            let _ = writeln!(out, "> {line}");
            out += &command(&mut harness, line);
        } else if line.starts_with('#') {
            let _ = writeln!(out, "{line}");
        }
    }
    out
}

#[test]
fn scripts_say_what_happens() {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/server/mvcc/testscripts");
    let mut names: Vec<_> = fs::read_dir(&dir).unwrap().map(|entry| entry.unwrap().path()).collect();
    names.sort();
    assert!(!names.is_empty());
    for path in names {
        let script = fs::read_to_string(&path).unwrap();
        let real = replay(&script);
        if std::env::var_os("QUORATE_WRITE_SCRIPTS").is_some() {
            fs::write(&path, &real).unwrap();
        } else {
            assert_eq!(real, script, "{}", path.display());
        }
    }
}

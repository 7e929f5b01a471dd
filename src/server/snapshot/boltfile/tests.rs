//! Files that we write and etcd wrote, read again; files that nobody should have written, refused.

use std::fs;
use std::path::Path;
use std::path::PathBuf;
use std::process::Command;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use serde_json::Value;
use sha2::Digest;
use sha2::Sha256;

use super::page;
use super::page::HEADER_BYTES;
use super::page::Meta;
use super::page::NO_FREELIST;
use super::page::PAGE_BYTES;
use super::reader::BoltFile;
use super::writer::BoltWriter;
use crate::common::failure::Failure;
use crate::server::checkpoint::Record;
use crate::server::snapshot::contents::Frozen;
use crate::server::snapshot::contents::Import;
use crate::server::snapshot::contents::import;
use crate::server::snapshot::hash::HashOf;
use crate::server::snapshot::hash::hash;
use crate::server::snapshot::send::begin_image;
use crate::server::snapshot::send::write_image;
use crate::server::snapshot::testing::Seed;
use crate::server::snapshot::testing::all_records;
use crate::server::snapshot::testing::fixture;
use crate::server::snapshot::testing::records;
use crate::server::snapshot::testing::state;

/// Writes the state's image to a named file.
fn write(state: &Frozen, path: &Path) {
    let mut image = write_image(state, path.parent().unwrap(), Bytes::new()).unwrap();
    use std::io::Seek;
    image.file.rewind().unwrap();
    let copied = std::io::copy(&mut image.file, &mut fs::File::create(path).unwrap()).unwrap();
    assert_eq!(copied, image.bytes);
}

fn check_round_trip(state: &Frozen, records: &[Record]) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("db");
    write(state, &path);
    let import = import(&path).unwrap();
    assert_eq!(import.buckets, state.buckets);
    assert_eq!(import.applied, state.applied);
    assert!(all_records(&import) == records, "records");
    assert_eq!(import.image_bytes(), fs::metadata(&path).unwrap().len());
    assert!(grown(state, dir.path()) == fs::read(&path).unwrap(), "the file that is read while it grows is the same");
}

/// The state's image as it is read while it is written: at each word of its growth so much as that says.
fn grown(state: &Frozen, dir: &Path) -> Vec<u8> {
    use std::io::Read;
    let (growing, mut reader) = begin_image(state.clone(), dir).unwrap();
    let (mut read, bytes) = (Vec::new(), growing.bytes);
    let mut grown = |readable: u64| {
        reader.by_ref().take(readable - read.len() as u64).read_to_end(&mut read).unwrap();
        assert_eq!(read.len() as u64, readable, "what is readable is there");
        true
    };
    growing.write(&mut grown, &mut || 0).unwrap();
    assert_eq!(read.len() as u64, bytes);
    read
}

#[test]
fn an_image_that_nobody_reads_is_not_written_to_its_end() {
    let dir = tempfile::tempdir().unwrap();
    let mut seed = Seed(4);
    let records = records(&mut seed, 3000, 5000);
    let (growing, reader) = begin_image(state(&mut seed, records, 0, 5), dir.path()).unwrap();
    let (bytes, mut heard) = (growing.bytes, 0);
    let mut grown = |_| {
        heard += 1;
        heard < 2
    };
    let failure = growing.write(&mut grown, &mut || 0).unwrap_err().to_string();
    assert_eq!((failure.as_str(), heard), ("nobody reads the image any more", 2));
    assert!(reader.metadata().unwrap().len() < bytes);
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0, "nothing is left of it");
}

#[test]
fn what_is_written_is_read() {
    for (count, value_bytes_max, pairs) in
        [(0, 0, 0), (1, 10, 3), (300, 100, 100), (2000, 5000, 1000), (8, 2 << 20, 10), (40, 1200, 60)]
    {
        let mut seed = Seed(count as u64);
        let records = records(&mut seed, count, value_bytes_max);
        check_round_trip(&state(&mut seed, records.clone(), pairs, 77), &records);
    }
}

#[test]
fn a_hundred_thousand_small_keys_fill_three_levels() {
    let mut seed = Seed(9);
    let records = records(&mut seed, 100_000, 8);
    check_round_trip(&state(&mut seed, records.clone(), 0, 5), &records);
}

#[test]
fn pairs_of_every_size_around_a_page_fit() {
    let mut seed = Seed(3);
    let mut records = records(&mut seed, 900, 0);
    records.retain(|record| !record.tombstone);
    for (index, record) in records.iter_mut().enumerate() {
        record.kv.value = vec![b'x'; 3600 + index].into();
    }
    check_round_trip(&state(&mut seed, records.clone(), 0, 5), &records);
}

#[test]
fn two_pairs_larger_than_a_page_share_three() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("db");
    let mut seed = Seed(6);
    let mut records = records(&mut seed, 400, 0);
    records.retain(|record| !record.tombstone);
    records.iter_mut().for_each(|record| record.kv.value = vec![b'x'; 4096].into());
    let count = records.len() as u64;
    write(&state(&mut seed, records, 0, 5), &path);
    let pages = BoltFile::open(&path).unwrap().image_bytes() / PAGE_BYTES as u64;
    // Metas, the free page, branches and the other buckets beside them.
    assert!((count * 3 / 2..count * 3 / 2 + 12).contains(&pages), "{pages} pages for {count} pairs");
}

#[test]
fn all_ten_buckets_are_there_and_empty_ones_are_inline() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("db");
    write(&state(&mut Seed(1), Vec::new(), 0, 1), &path);
    let file = BoltFile::open(&path).unwrap();
    let names: Vec<String> =
        file.buckets().unwrap().iter().map(|name| String::from_utf8(name.to_vec()).unwrap()).collect();
    assert_eq!(names, super::BUCKETS);
    // Two metas, the free page, the root leaf.
    assert_eq!(file.image_bytes(), 4 * PAGE_BYTES as u64);
    assert_eq!(file.txid(), 1);
    assert_eq!(file.pairs("no such bucket").unwrap().count(), 0);
}

/// Reads everything that can be read.
fn read_all(path: &Path) -> Result<(usize, Import), Failure> {
    let import = import(path)?;
    let mut count = 0;
    for record in import.records()? {
        record?;
        count += 1;
    }
    Ok((count, import))
}

#[test]
fn damaged_files_never_panic() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("db");
    let mut seed = Seed(7);
    let records = records(&mut seed, 400, 300);
    write(&state(&mut seed, records, 200, 5), &path);
    let good = fs::read(&path).unwrap();
    let (mut refused, rounds) = (0, 3000);
    for _ in 0..rounds {
        let mut bytes = good.clone();
        for _ in 0..1 + seed.below(4) {
            // Half of the damage goes where structure is: the first bytes of a page.
            let at = match seed.below(2) {
                0 => seed.below(bytes.len() as u64) as usize,
                _ => (seed.below((bytes.len() / PAGE_BYTES) as u64) as usize) * PAGE_BYTES + seed.below(120) as usize,
            };
            bytes[at] = [0, 1, 0xff, seed.roll() as u8][seed.below(4) as usize];
        }
        if seed.below(10) == 0 {
            bytes.truncate(seed.below(bytes.len() as u64) as usize);
        }
        fs::write(&path, &bytes).unwrap();
        refused += usize::from(read_all(&path).is_err());
    }
    assert!(refused > rounds / 10, "{refused}");
    for length in [0, 1, 15, 79, 80, 4096, 8192, 20_000] {
        for byte in [0, 0xff, 0x5a] {
            fs::write(&path, vec![byte; length]).unwrap();
            assert!(read_all(&path).is_err());
        }
    }
}

/// A file of a meta pair and one page, whose root leaf or branch the test makes up.
fn made_up(path: &Path, root_page: &[u8], high_water: u64) -> String {
    let meta = Meta { page_bytes: PAGE_BYTES as u32, root: 2, freelist: NO_FREELIST, high_water, txid: 0 };
    let mut bytes = vec![0; 3 * PAGE_BYTES];
    for id in [0, 1] {
        let header = page::PageHeader { id, flags: page::META_FLAG, count: 0, overflow: 0 };
        let at = id as usize * PAGE_BYTES;
        bytes[at..at + HEADER_BYTES].copy_from_slice(&header.encode());
        bytes[at + HEADER_BYTES..at + HEADER_BYTES + page::META_BYTES].copy_from_slice(&meta.encode());
    }
    bytes[2 * PAGE_BYTES..2 * PAGE_BYTES + root_page.len()].copy_from_slice(root_page);
    fs::write(path, &bytes).unwrap();
    let outcome = BoltFile::open(path).and_then(|file| file.buckets());
    outcome.err().map(|failure| failure.to_string()).unwrap_or_default()
}

#[test]
fn circles_and_lies_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("db");
    let page = |flags: u16, count: u16, overflow: u32, id: u64, body: &[u8]| {
        [&page::PageHeader { id, flags, count, overflow }.encode()[..], body].concat()
    };
    // A branch whose only child, under key `k`, is itself.
    let circle = [&16_u32.to_le_bytes()[..], &1_u32.to_le_bytes(), &2_u64.to_le_bytes(), b"k"].concat();
    let elsewhere = [&16_u32.to_le_bytes()[..], &1_u32.to_le_bytes(), &9_u64.to_le_bytes(), b"k"].concat();
    let plain: Vec<u8> = [0_u32, 16, 1, 0].iter().flat_map(|word| word.to_le_bytes()).chain(*b"k").collect();
    let cut_off: Vec<u8> = [1_u32, 16, 1, 5000].iter().flat_map(|word| word.to_le_bytes()).chain(*b"k").collect();
    for (expected, root_page, high_water) in [
        ("too deep", page(page::BRANCH_FLAG, 1, 0, 2, &circle), 3),
        ("page 9 of 3 is referred to", page(page::BRANCH_FLAG, 1, 0, 2, &elsewhere), 3),
        ("an empty branch", page(page::BRANCH_FLAG, 0, 0, 2, &[]), 3),
        ("neither branch nor leaf", page(0x10, 0, 0, 2, &[]), 3),
        ("cut off", page(page::LEAF_FLAG, 1, 0, 2, &cut_off), 3),
        ("a pair among the buckets", page(page::LEAF_FLAG, 1, 0, 2, &plain), 3),
        ("page 2 says it is 2 with 4294967295 more", page(page::LEAF_FLAG, 0, u32::MAX, 2, &[]), 3),
        ("page 2 says it is 5 with 0 more", page(page::LEAF_FLAG, 0, 0, 5, &[]), 3),
        ("4 pages of 4096 bytes in 12288 bytes", page(page::LEAF_FLAG, 0, 0, 2, &[]), 4),
        ("18446744073709551615 pages", page(page::LEAF_FLAG, 0, 0, 2, &[]), u64::MAX),
        ("page 2 of 2 is referred to", page(page::LEAF_FLAG, 0, 0, 2, &[]), 2),
    ] {
        let failure = made_up(&path, &root_page, high_water);
        assert!(failure.contains(expected), "{failure} for {expected}");
    }
    assert_eq!(made_up(&path, &page(page::LEAF_FLAG, 0, 0, 2, &[]), 3), "", "no buckets at all are a valid file");
}

#[test]
fn one_valid_meta_page_is_enough_and_the_newer_one_counts() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("db");
    write(&state(&mut Seed(1), Vec::new(), 5, 1), &path);
    let good = fs::read(&path).unwrap();
    for (broken, txid) in [(0, 1), (1, 0)] {
        let mut bytes = good.clone();
        bytes[broken * PAGE_BYTES + 20] ^= 1;
        fs::write(&path, &bytes).unwrap();
        assert_eq!(BoltFile::open(&path).unwrap().txid(), txid);
        import(&path).unwrap();
    }
}

#[test]
fn a_saved_snapshot_is_held_against_its_digest() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("db");
    write(&state(&mut Seed(1), Vec::new(), 5, 1), &path);
    let mut bytes = fs::read(&path).unwrap();
    bytes.extend_from_slice(&Sha256::digest(&bytes));
    fs::write(&path, &bytes).unwrap();
    import(&path).unwrap();
    // In the free page: only the digest can tell.
    bytes[2 * PAGE_BYTES + 99] ^= 1;
    fs::write(&path, &bytes).unwrap();
    assert!(read_all(&path).err().is_some_and(|failure| failure.to_string().contains("SHA-256")));
}

/// Pairs at the newest revision as `expected.json` has them, out of the records.
fn latest(records: &[Record]) -> Vec<Value> {
    let mut newest = std::collections::BTreeMap::new();
    for record in records {
        newest.insert(record.kv.key.clone(), record);
    }
    newest.retain(|_, record| !record.tombstone);
    let pair = |record: &&Record| {
        let kv = &record.kv;
        let mut pair = serde_json::json!({
            "key": STANDARD.encode(&kv.key), "create_revision": kv.create_revision,
            "mod_revision": kv.mod_revision, "version": kv.version, "value": STANDARD.encode(&kv.value),
        });
        if kv.lease != 0 {
            pair["lease"] = kv.lease.into();
        }
        if kv.value.is_empty() {
            pair.as_object_mut().unwrap().remove("value");
        }
        pair
    };
    newest.values().map(pair).collect()
}

#[test]
fn snapshots_of_real_members_hold_what_they_should() {
    for version in ["etcd-3.6.14", "etcd-3.7.1"] {
        let dir = tempfile::tempdir().unwrap();
        let Some(path) = fixture(dir.path(), version, "snapshot.db.gz") else { return };
        let expected = fixture(dir.path(), version, "expected.json").unwrap();
        let expected: Value = serde_json::from_slice(&fs::read(expected).unwrap()).unwrap();
        let import = import(&path).unwrap();
        let records = all_records(&import);
        assert_eq!(Value::from(latest(&records)), expected["kvs"], "{version}");
        assert_eq!(records.last().unwrap().revision.main, expected["revision"].as_i64().unwrap());
        let status = &expected["snapshot_status"];
        assert!(!status.is_null(), "{version}: {:?}", expected.as_object().unwrap().keys());
        assert_eq!(import.image_bytes(), status["totalSize"].as_u64().unwrap());
        let tables = crate::server::checkpoint::memory::MemoryTables::of(records.clone());
        let state = Frozen {
            records: std::sync::Arc::new(tables),
            buckets: import.buckets.clone(),
            applied: import.applied.clone(),
        };
        assert_eq!(u64::from(hash(&state, HashOf::File).unwrap()), status["hash"].as_u64().unwrap(), "{version}");
        check_round_trip(&state, &records);
    }
}

#[test]
fn databases_of_stopped_and_killed_members_are_read() {
    for version in ["etcd-3.6.14", "etcd-3.7.1"] {
        for name in ["m1-stopped", "m2-killed"] {
            let dir = tempfile::tempdir().unwrap();
            let Some(archive) = fixture(dir.path(), version, &format!("{name}.tar.gz")) else { return };
            // `fixture` has unpacked the outer layer.
            let tar = Command::new("tar").arg("-xf").arg(archive).arg("-C").arg(dir.path()).status().unwrap();
            assert!(tar.success());
            let path = find(dir.path(), "db").unwrap_or_else(|| panic!("{version} {name} has a database"));
            let (count, import) = read_all(&path).unwrap();
            assert!(count > 50 && import.applied.index > 60, "{version} {name}: {count} {:?}", import.applied);
            assert!(import.applied.conf_state.voters.len() >= 3, "{:?}", import.applied);
        }
    }
}

/// A file of this name below `dir`.
fn find(dir: &Path, name: &str) -> Option<PathBuf> {
    let entries: Vec<PathBuf> = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path()).collect();
    let here = entries.iter().find(|path| path.is_file() && path.ends_with(name)).cloned();
    here.or_else(|| entries.iter().filter(|path| path.is_dir()).find_map(|path| find(path, name)))
}

/// A bucket and its pairs.
type BucketPairs<'a> = (&'static str, &'a [(&'a [u8], &'a [u8])]);

/// A file with these buckets.
fn with_buckets(path: &Path, buckets: &[BucketPairs<'_>]) -> Result<Import, Failure> {
    let file = fs::File::options().read(true).write(true).create(true).truncate(true).open(path).unwrap();
    let mut writer = BoltWriter::create(file, path).unwrap();
    for (name, pairs) in buckets {
        writer.bucket(name).unwrap();
        for (key, value) in *pairs {
            writer.pair(key, value).unwrap();
        }
    }
    writer.finish().unwrap();
    import(path)
}

#[test]
fn files_of_older_members_lack_buckets_term_and_conf_state() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("db");
    let index: &[(&[u8], &[u8])] = &[(b"consistent_index", &9_u64.to_be_bytes())];
    let import = with_buckets(&path, &[("key", &[]), ("meta", index)]).unwrap();
    assert_eq!(import.applied, crate::server::checkpoint::Applied { index: 9, ..Default::default() });
    assert!(import.buckets.is_empty());
}

#[test]
fn files_that_are_not_a_members_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("db");
    let short: &[(&[u8], &[u8])] = &[(b"consistent_index", b"123")];
    let no_json: &[(&[u8], &[u8])] = &[(b"confState", b"voters")];
    for (expected, buckets) in [
        ("has no bucket key", &[("auth", &[][..]), ("meta", &[])][..]),
        ("has no bucket meta", &[("key", &[])]),
        ("a bucket other that no known etcd has", &[("key", &[]), ("meta", &[]), ("other", &[])]),
        ("consistent_index has 3 bytes", &[("key", &[]), ("meta", short)]),
        ("confState", &[("key", &[]), ("meta", no_json)]),
    ] {
        let failure = with_buckets(&path, buckets).unwrap_err().to_string();
        assert!(failure.contains(expected), "{failure} for {expected}");
    }
}

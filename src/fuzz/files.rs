//! Files: the log, etcd's database file, rows of our own database.

use std::io::Seek;
use std::io::SeekFrom;
use std::io::Write;
use std::path::Path;
use std::path::PathBuf;
use std::sync::Arc;

use bytes::Bytes;

use crate::common::revision::Revision;
use crate::disk::sim::SimDisk;
use crate::fuzz::fuzz;
use crate::proto::mvccpb::KeyValue;
use crate::proto::raftpb::Entry;
use crate::proto::raftpb::HardState;
use crate::proto::walpb::Metadata;
use crate::server::checkpoint::Header;
use crate::server::checkpoint::Record;
use crate::server::checkpoint::schema;
use crate::server::raft::wal::Wal;
use crate::server::raft::wal::WalOptions;
use crate::server::snapshot::boltfile::reader::BoltFile;
use crate::server::snapshot::contents::import;
use crate::server::snapshot::send::write_image;
use crate::server::snapshot::testing::Seed;
use crate::server::snapshot::testing::records;
use crate::server::snapshot::testing::state;
use crate::utl::snapshot::status_of;

/// F3: what is read is a first part of what was written, or an error.
#[test]
fn log() {
    let dir = Path::new("/member/wal");
    let disk = SimDisk::new(1);
    let metadata = Metadata { node_id: 7, cluster_id: 9 };
    let options = WalOptions { segment_bytes: 4096, fsync: true, allocate_ahead: false };
    let mut wal = Wal::create(Arc::new(disk.clone()), dir, metadata, options).expect("a log");
    let mut written = Vec::new();
    for index in 1..=8_u64 {
        let data = Bytes::from(vec![index as u8; 30 + 40 * index as usize]);
        let entry = Entry { index, term: 1 + index / 4, r#type: 0, data };
        let hard_state = HardState { term: entry.term, vote: 7, commit: index };
        wal.save(Some(&hard_state), std::slice::from_ref(&entry), true).expect("saved");
        written.push(entry);
    }
    let path = PathBuf::from("/member/wal/0000000000000000-0000000000000000.wal");
    let content = disk.content(&path).expect("the only segment");
    let end = content.iter().rposition(|byte| *byte != 0).expect("records") + 1;
    fuzz("fuzz::files::log", &[content[..end].to_vec(), content], |input| {
        disk.damage(&path, input.to_vec()).expect("damaged");
        if let Ok(recovered) = Wal::inspect(&disk, dir) {
            assert_eq!(recovered.metadata, metadata);
            assert!(written.starts_with(&recovered.entries), "{:?}", recovered.entries);
        }
    });
}

/// F4: every pair and record that is read, or an error.
#[test]
fn database_file() {
    let dir = tempfile::tempdir().expect("a directory");
    let mut seed = Seed(3);
    let records = records(&mut seed, 60, 300);
    let image = state(&mut seed, records, 12, 40);
    let mut image = write_image(&image, dir.path(), Bytes::new()).expect("an image");
    let path = dir.path().join("db");
    image.file.rewind().expect("rewound");
    std::io::copy(&mut image.file, &mut std::fs::File::create(&path).expect("a file")).expect("copied");
    let valid = std::fs::read(&path).expect("a file");
    let mut file = std::fs::File::options().write(true).open(&path).expect("a file");
    fuzz("fuzz::files::database_file", &[valid], |input| {
        file_with(&file, input);
        if let Ok(status) = BoltFile::open(&path).and_then(|bolt| status_of(&bolt)) {
            assert!(status.bytes <= input.len() as u64);
        }
        let Ok(import) = import(&path) else { return };
        // Each is a record or a failure; the last one is found without a walk as well.
        let Ok(Ok(records)) = import.records().map(Iterator::collect::<Result<Vec<Record>, _>>) else { return };
        assert_eq!(import.last_revision().expect("readable"), records.last().map(|record| record.revision));
    });
    file.flush().expect("flushed");
}

fn file_with(mut file: &std::fs::File, content: &[u8]) {
    file.set_len(0).expect("emptied");
    file.seek(SeekFrom::Start(0)).expect("rewound");
    file.write_all(content).expect("written");
}

/// F5: a row that is not what was written is refused.
#[test]
fn rows_of_the_database() {
    let kv = KeyValue {
        key: "some key".into(),
        create_revision: 3,
        mod_revision: 9,
        version: 2,
        value: "some value".into(),
        lease: 5,
    };
    let record = Record { revision: Revision::new(9, 1), tombstone: false, kv };
    let header = schema::encode_header(&Header::of(&record));
    let sealed = schema::seal("bucket.lease", b"key", b"content");
    fuzz("fuzz::files::rows_of_the_database", &[header.clone(), sealed.clone()], |input| {
        match schema::decode_header(record.revision, input) {
            Ok(decoded) => assert_eq!((schema::encode_header(&decoded), input), (header.clone(), &header[..])),
            Err(reason) => assert!(!reason.is_empty()),
        }
        if let Ok(content) = schema::unseal("bucket.lease", b"key", input) {
            assert_eq!((content, input), (&b"content"[..], &sealed[..]));
        }
    });
}

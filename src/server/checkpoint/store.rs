//! The checkpoint on a real disk: one redb file.
//!
//! Rules kept here (reliability.md 3.2): every write transaction since creation commits with quick-repair, never another
//! mode (D5); the cache is named (D12); the file is created with mode 0600 and its directory synced (D8); opening a damaged
//! file is a `Failure`, not a panic (D9). Damage and IO errors end the process, so nothing is retried (D7).

use std::fs;
use std::fs::File;
use std::fs::OpenOptions;
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::path::PathBuf;
use std::sync::Arc;

use bytes::Bytes;
use prost::Message;
use redb::Database;
use redb::Durability;
use redb::ReadTransaction;
use redb::ReadableDatabase;
use redb::ReadableTable;
use redb::ReadableTableMetadata;
use redb::TableHandle;
use redb::WriteTransaction;

use crate::common::failure::Failure;
use crate::proto::raftpb::ConfState;
use crate::server::checkpoint::Applied;
use crate::server::checkpoint::Batch;
use crate::server::checkpoint::Bucket;
use crate::server::checkpoint::Buckets;
use crate::server::checkpoint::Checkpoint;
use crate::server::checkpoint::Header;
use crate::server::checkpoint::Tables;
use crate::server::checkpoint::schema;
use crate::server::checkpoint::tables::RedbTables;
use crate::server::checkpoint::tables::guarded;
use crate::server::checkpoint::tables::redb_failure;

/// Pages that redb may keep in memory. Small: requests read from the index and the ring, old values from the page cache.
pub const CACHE_BYTES: usize = 16 << 20;

/// As much of a file that is shrunk is kept: every page is looked at about ten times, and nobody else needs the memory of
/// a member that stands still.
const SHRINK_CACHE_BYTES_MAX: usize = 1 << 30;

/// Stands behind the name of a file that is being created.
pub const NEW_SUFFIX: &str = ".new";

/// A checkpoint in one redb file.
pub struct RedbCheckpoint {
    path: PathBuf,
    /// Shared with the tables, so that readers outlive a checkpoint that was replaced.
    database: Arc<Database>,
    /// A second handle of the same open file, for its length: the path may name another file after an install.
    file: File,
}

impl RedbCheckpoint {
    /// Opens the file, or creates it with all tables (mode 0600, directory synced). Refuses a locked or newer file and
    /// reports a damaged one, by name.
    pub fn open(path: &Path) -> Result<RedbCheckpoint, Failure> {
        if is_missing(path)? {
            // Under another name first: a crash must not leave half a database where the next start looks for one.
            let mut new = path.as_os_str().to_owned();
            new.push(NEW_SUFFIX);
            let new = PathBuf::from(new);
            remove_if_there(&new)?;
            RedbCheckpoint::open_file(&new)?.create_tables()?;
            fs::rename(&new, path).map_err(Failure::io("cannot rename", &new))?;
            sync_parent(path)?;
        }
        let checkpoint = RedbCheckpoint::open_file(path)?;
        checkpoint.check_format()?;
        Ok(checkpoint)
    }

    fn open_file(path: &Path) -> Result<RedbCheckpoint, Failure> {
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(true).truncate(false).mode(0o600);
        let file = options.open(path).map_err(Failure::io("cannot open", path))?;
        let second = file.try_clone().map_err(Failure::io("cannot open", path))?;
        let database = guarded(path, || {
            let mut builder = Database::builder();
            builder.set_cache_size(CACHE_BYTES);
            Ok(Arc::new(builder.create_file(file)?))
        })?;
        Ok(RedbCheckpoint { path: path.to_owned(), database, file: second })
    }

    /// Gives back the free pages of a file that is not in use: its own transactions keep none of our rules, so the live
    /// database is never given to it.
    pub fn shrink(path: &Path) -> Result<(), Failure> {
        let file = OpenOptions::new().read(true).write(true).open(path).map_err(Failure::io("cannot open", path))?;
        let length = file.metadata().map_err(Failure::io("cannot stat", path))?.len();
        let cache =
            usize::try_from(length).unwrap_or(SHRINK_CACHE_BYTES_MAX).clamp(CACHE_BYTES, SHRINK_CACHE_BYTES_MAX);
        let mut database = guarded(path, || Ok(Database::builder().set_cache_size(cache).create_file(file)?))?;
        // Moves pages until it finds none to move.
        database.compact().map_err(|error| redb_failure(path, error.into()))?;
        Ok(())
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// How far the newest durable batch had applied the log.
    pub fn applied(&self) -> Result<Applied, Failure> {
        let transaction = guarded(&self.path, || Ok(self.database.begin_read()?))?;
        self.read_applied(&transaction)
    }

    /// Writes a batch that is durable with the next one of `write`: for a file that nobody uses before that. Hundreds of
    /// syncs less make a large one twice as fast.
    pub fn write_ahead(&mut self, batch: &Batch) -> Result<(), Failure> {
        let written =
            begin_with(&self.database, Durability::None).and_then(|transaction| write_batch(transaction, batch));
        written.map_err(|error| redb_failure(&self.path, error))
    }

    fn check_format(&self) -> Result<(), Failure> {
        let transaction = guarded(&self.path, || Ok(self.database.begin_read()?))?;
        let format = self.meta_bytes(&transaction, schema::META_FORMAT)?;
        match format.map(|bytes| self.number(schema::META_FORMAT, &bytes)).transpose()? {
            Some(schema::FORMAT) => Ok(()),
            Some(other) => Err(Failure::Refused(format!(
                "{} has database format {other}, this program reads format {}; use the release that wrote it",
                self.path.display(),
                schema::FORMAT
            ))),
            None => Err(Failure::damaged(&self.path, "it has no format number")),
        }
    }

    fn create_tables(&self) -> Result<(), Failure> {
        let write = || -> Result<(), redb::Error> {
            let transaction = begin_write(&self.database)?;
            transaction.open_table(schema::HEADERS)?;
            transaction.open_table(schema::VALUES)?;
            for bucket in Bucket::ALL {
                transaction.open_table(schema::bucket_table(bucket))?;
            }
            transaction.open_table(schema::META)?.insert(schema::META_FORMAT, &schema::FORMAT.to_le_bytes()[..])?;
            write_applied(&transaction, &Applied::default())?;
            Ok(transaction.commit()?)
        };
        write().map_err(|error| redb_failure(&self.path, error))
    }

    fn meta_bytes(&self, transaction: &ReadTransaction, name: &str) -> Result<Option<Bytes>, Failure> {
        guarded(&self.path, || {
            let table = transaction.open_table(schema::META)?;
            Ok(table.get(name)?.map(|guard| Bytes::copy_from_slice(guard.value())))
        })
    }

    fn number(&self, name: &str, bytes: &[u8]) -> Result<u64, Failure> {
        let number = <[u8; 8]>::try_from(bytes).map(u64::from_le_bytes);
        number.map_err(|_| Failure::damaged(&self.path, format!("{name} has {} bytes", bytes.len())))
    }

    /// What a sealed row of `meta` says; every database has it.
    fn meta_sealed(&self, transaction: &ReadTransaction, name: &str) -> Result<Bytes, Failure> {
        let row = self.meta_bytes(transaction, name)?;
        let row = row.ok_or_else(|| Failure::damaged(&self.path, format!("{name} is missing")))?;
        let content = schema::unseal(schema::META.name(), name.as_bytes(), &row);
        content.map(|content| row.slice_ref(content)).map_err(|detail| Failure::damaged(&self.path, detail))
    }

    fn read_applied(&self, transaction: &ReadTransaction) -> Result<Applied, Failure> {
        let number = |name: &'static str| self.number(name, &self.meta_sealed(transaction, name)?);
        let conf_state = ConfState::decode(self.meta_sealed(transaction, schema::META_CONF_STATE)?)
            .map_err(|error| Failure::damaged(&self.path, format!("{}: {error}", schema::META_CONF_STATE)))?;
        let index = number(schema::META_APPLIED_INDEX)?;
        Ok(Applied { index, term: number(schema::META_APPLIED_TERM)?, conf_state })
    }
}

impl Checkpoint for RedbCheckpoint {
    fn write(&mut self, batch: &Batch) -> Result<Arc<dyn Tables>, Failure> {
        // No catch_unwind around a write transaction (D13): a panic here ends the flusher, and with it the process.
        let written = begin_write(&self.database).and_then(|transaction| write_batch(transaction, batch));
        written.map_err(|error| redb_failure(&self.path, error))?;
        self.tables()
    }

    fn tables(&self) -> Result<Arc<dyn Tables>, Failure> {
        Ok(Arc::new(RedbTables::open(&self.path, &self.database)?))
    }

    fn buckets(&self) -> Result<(Buckets, Applied), Failure> {
        let transaction = guarded(&self.path, || Ok(self.database.begin_read()?))?;
        let mut buckets = Buckets::new();
        for bucket in Bucket::ALL {
            let read = guarded(&self.path, || read_bucket(&transaction, bucket))?;
            buckets.extend(read.map_err(|detail| Failure::damaged(&self.path, detail))?);
        }
        Ok((buckets, self.read_applied(&transaction)?))
    }

    fn file_bytes(&self) -> u64 {
        // A metric: a file whose length cannot be asked counts as empty, the next write tells what is wrong.
        self.file.metadata().map_or(0, |metadata| metadata.len())
    }
}

/// All pairs of one bucket; the inner error is damage. A scan must meet as many rows as redb counted.
fn read_bucket(transaction: &ReadTransaction, bucket: Bucket) -> Result<Result<Buckets, String>, redb::Error> {
    let definition = schema::bucket_table(bucket);
    let table = transaction.open_table(definition)?;
    let mut buckets = Buckets::new();
    for pair in table.iter()? {
        let (key, row) = pair?;
        match schema::unseal(definition.name(), key.value(), row.value()) {
            Ok(content) => {
                buckets.insert((bucket, Bytes::copy_from_slice(key.value())), Bytes::copy_from_slice(content))
            }
            Err(detail) => return Ok(Err(detail)),
        };
    }
    let (seen, stored) = (buckets.len() as u64, table.len()?);
    if seen != stored {
        return Ok(Err(format!("{seen} of {stored} rows of table {} were found", definition.name())));
    }
    Ok(Ok(buckets))
}

/// The one way to begin a write that lasts: durable, with quick-repair (and so in two phases), from the first commit on
/// (D5).
fn begin_write(database: &Database) -> Result<WriteTransaction, redb::Error> {
    let mut transaction = begin_with(database, Durability::Immediate)?;
    transaction.set_quick_repair(true);
    Ok(transaction)
}

fn begin_with(database: &Database, durability: Durability) -> Result<WriteTransaction, redb::Error> {
    let mut transaction = database.begin_write()?;
    transaction.set_durability(durability).expect("no savepoint was made in this transaction");
    Ok(transaction)
}

fn write_batch(transaction: WriteTransaction, batch: &Batch) -> Result<(), redb::Error> {
    {
        let mut headers = transaction.open_table(schema::HEADERS)?;
        let mut values = transaction.open_table(schema::VALUES)?;
        for record in &batch.records {
            let kv = &record.kv;
            assert!(
                kv.mod_revision == schema::mod_revision(record.revision, record.tombstone, &kv.key),
                "mod revision {} in the record of revision {}",
                kv.mod_revision,
                record.revision
            );
            let key = record.revision.to_bytes();
            headers.insert(&key, &schema::encode_header(&Header::of(record))[..])?;
            if !kv.value.is_empty() {
                values.insert(&key, &kv.value[..])?;
            }
        }
        for revision in &batch.removed {
            // A removal that was already stored comes again when a compaction is resumed.
            let key = revision.to_bytes();
            headers.remove(&key)?;
            values.remove(&key)?;
        }
    }
    write_pairs(&transaction, &batch.pairs)?;
    write_applied(&transaction, &batch.applied)?;
    Ok(transaction.commit()?)
}

fn write_pairs(transaction: &WriteTransaction, pairs: &[(Bucket, Bytes, Option<Bytes>)]) -> Result<(), redb::Error> {
    for bucket in Bucket::ALL {
        let mut changes = pairs.iter().filter(|(of, _, _)| *of == bucket).peekable();
        if changes.peek().is_none() {
            continue;
        }
        let definition = schema::bucket_table(bucket);
        let mut table = transaction.open_table(definition)?;
        for (_, key, value) in changes {
            match value {
                Some(value) => table.insert(&key[..], &schema::seal(definition.name(), key, value)[..])?,
                None => table.remove(&key[..])?,
            };
        }
    }
    Ok(())
}

fn write_applied(transaction: &WriteTransaction, applied: &Applied) -> Result<(), redb::Error> {
    let mut meta = transaction.open_table(schema::META)?;
    let mut insert = |name: &str, content: &[u8]| {
        meta.insert(name, &schema::seal(schema::META.name(), name.as_bytes(), content)[..]).map(drop)
    };
    insert(schema::META_APPLIED_INDEX, &applied.index.to_le_bytes())?;
    insert(schema::META_APPLIED_TERM, &applied.term.to_le_bytes())?;
    insert(schema::META_CONF_STATE, &applied.conf_state.encode_to_vec())?;
    Ok(())
}

/// No file, or one that was created and never written.
fn is_missing(path: &Path) -> Result<bool, Failure> {
    match fs::metadata(path) {
        Ok(metadata) => Ok(metadata.len() == 0),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(true),
        Err(error) => Err(Failure::io("cannot open", path)(error)),
    }
}

/// Removes a file that may be missing.
pub fn remove_if_there(path: &Path) -> Result<(), Failure> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(Failure::io("cannot remove", path)(error)),
        _ => Ok(()),
    }
}

/// Makes the creation, rename or removal of `path` durable.
pub fn sync_parent(path: &Path) -> Result<(), Failure> {
    let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let directory = File::open(parent).map_err(Failure::io("cannot open directory", parent))?;
    directory.sync_all().map_err(Failure::io("cannot fsync directory", parent))
}

#[cfg(test)]
mod crash_tests;

#[cfg(test)]
mod tests {
    use std::ops::ControlFlow;

    use super::*;
    use crate::common::revision::Revision;
    use crate::proto::mvccpb::KeyValue;
    use crate::server::checkpoint::Record;
    use crate::server::checkpoint::tables::EVERYTHING_LAST;

    pub fn put(main: i64, key: &str, value: &[u8]) -> Record {
        let kv = KeyValue {
            key: key.to_owned().into(),
            create_revision: main,
            mod_revision: main,
            version: 1,
            value: Bytes::copy_from_slice(value),
            lease: 7,
        };
        Record { revision: Revision::new(main, 0), tombstone: false, kv }
    }

    fn tombstone(main: i64, key: &str) -> Record {
        let kv = KeyValue { key: key.to_owned().into(), ..Default::default() };
        Record { revision: Revision::new(main, 0), tombstone: true, kv }
    }

    fn applied(index: u64) -> Applied {
        Applied { index, term: 3, conf_state: ConfState { voters: vec![1, 2], ..Default::default() } }
    }

    fn all(tables: &dyn Tables) -> Result<Vec<Record>, Failure> {
        let mut records = Vec::new();
        tables.records(Revision::default(), EVERYTHING_LAST, &mut |record| {
            records.push(record);
            ControlFlow::Continue(())
        })?;
        Ok(records)
    }

    fn text(result: Result<RedbCheckpoint, Failure>) -> String {
        result.err().map(|failure| failure.to_string()).unwrap_or_default()
    }

    #[test]
    fn what_was_written_is_there_after_reopening() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("db.redb");
        let mut store = RedbCheckpoint::open(&path).unwrap();
        assert_eq!(store.applied().unwrap(), Applied::default());
        let records = vec![put(2, "a", b"1"), put(3, "b", b""), put(4, "c", &vec![9; 1 << 20]), tombstone(5, "a")];
        let key = Bytes::from_static(b"k");
        let batch = Batch {
            records: records.clone(),
            pairs: vec![
                (Bucket::Lease, key.clone(), Some("x".into())),
                (Bucket::Auth, key.clone(), Some("old".into())),
                (Bucket::Auth, key.clone(), Some("new".into())),
                (Bucket::Alarm, key.clone(), Some("gone".into())),
                (Bucket::Alarm, key.clone(), None),
            ],
            applied: applied(9),
            ..Default::default()
        };
        assert_eq!(all(&*store.write(&batch).unwrap()).unwrap(), records);
        drop(store);

        let store = RedbCheckpoint::open(&path).unwrap();
        let tables = store.tables().unwrap();
        assert_eq!(all(&*tables).unwrap(), records);
        for record in &records {
            assert_eq!(tables.record(record.revision).unwrap().as_ref(), Some(record));
        }
        assert_eq!(tables.record(Revision::new(4, 1)).unwrap(), None);
        let (buckets, mark) = store.buckets().unwrap();
        let expected = [((Bucket::Auth, key.clone()), "new".into()), ((Bucket::Lease, key), "x".into())];
        assert_eq!((buckets, mark), (Buckets::from(expected), applied(9)));
        assert!(store.file_bytes() > 1 << 20);
    }

    #[test]
    fn tables_keep_what_they_showed_while_records_go() {
        let dir = tempfile::tempdir().unwrap();
        let mut store = RedbCheckpoint::open(&dir.path().join("db.redb")).unwrap();
        let records = vec![put(2, "a", b"1"), put(3, "a", b"2")];
        let old = store.write(&Batch { records: records.clone(), applied: applied(1), ..Default::default() }).unwrap();
        let removed = vec![Revision::new(2, 0), Revision::new(99, 0)];
        let new = store.write(&Batch { removed, applied: applied(2), ..Default::default() }).unwrap();
        assert_eq!(all(&*new).unwrap(), records[1..]);
        drop(store);
        assert_eq!(all(&*old).unwrap(), records, "tables outlive the checkpoint");
    }

    #[test]
    fn ranges_of_headers_include_both_ends_and_stop_when_told() {
        let dir = tempfile::tempdir().unwrap();
        let mut store = RedbCheckpoint::open(&dir.path().join("db.redb")).unwrap();
        let records: Vec<Record> = (2..10).map(|main| put(main, "k", b"v")).collect();
        let tables = store.write(&Batch { records: records.clone(), ..Default::default() }).unwrap();
        let mut seen = Vec::new();
        let mut visit = |header: Header| {
            seen.push(header.clone());
            if header.revision.main == 6 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        };
        tables.headers(Revision::new(3, 0), Revision::new(4, 0), &mut visit).unwrap();
        tables.headers(Revision::new(5, 0), Revision::new(9, 0), &mut visit).unwrap();
        tables.headers(Revision::new(9, 0), Revision::new(3, 0), &mut visit).unwrap();
        assert_eq!(seen, records[1..5].iter().map(Header::of).collect::<Vec<_>>());
    }

    #[test]
    fn the_file_is_private_and_locked() {
        use std::os::unix::fs::PermissionsExt;
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("db.redb");
        let store = RedbCheckpoint::open(&path).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        let refusal = text(RedbCheckpoint::open(&path));
        assert!(refusal.contains("db.redb") && refusal.contains("is the server running?"), "{refusal}");
        drop(store);
        RedbCheckpoint::open(&path).unwrap();
    }

    #[test]
    fn a_newer_format_is_refused_by_name() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("db.redb");
        let store = RedbCheckpoint::open(&path).unwrap();
        let transaction = begin_write(&store.database).unwrap();
        let newer = &(schema::FORMAT + 1).to_le_bytes()[..];
        transaction.open_table(schema::META).unwrap().insert(schema::META_FORMAT, newer).unwrap();
        transaction.commit().unwrap();
        drop(store);
        let refusal = text(RedbCheckpoint::open(&path));
        assert!(refusal.contains("db.redb has database format 3"), "{refusal}");
    }

    #[test]
    fn a_creation_cut_short_is_begun_again() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("db.redb");
        fs::write(dir.path().join("db.redb.new"), b"half a database").unwrap();
        fs::write(&path, b"").unwrap();
        RedbCheckpoint::open(&path).unwrap();
        assert!(!dir.path().join("db.redb.new").exists());
    }

    /// Where `needle` stands in the file, every time.
    fn places(file: &[u8], needle: &[u8]) -> Vec<usize> {
        (0..file.len() - needle.len()).filter(|at| file[*at..].starts_with(needle)).collect()
    }

    /// redb does not check its pages when it reads: our own checksums must (reliability.md D6, B18, B19).
    #[test]
    fn every_flipped_byte_of_what_is_stored_is_noticed() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("db.redb");
        let mut store = RedbCheckpoint::open(&path).unwrap();
        let long: Vec<u8> = (0..3000_u32).map(|at| (at * 7 + at / 251) as u8 | 0x80).collect();
        let record = put(2, "a key to be found", &long);
        let pair = (Bucket::Lease, Bytes::from("lease key"), Some(Bytes::from("lease pair that says much")));
        let applied = Applied { index: 0x1122_3344_5566, ..applied(0) };
        let batch = Batch { records: vec![record], pairs: vec![pair], applied, ..Default::default() };
        store.write(&batch).unwrap();
        drop(store);
        let good = fs::read(&path).unwrap();
        let index = &batch.applied.index.to_le_bytes()[..];
        let mut flipped = 0;
        for needle in [&long[..], b"a key to be found", b"lease key", b"lease pair that says much", index] {
            let places = places(&good, needle);
            assert!(!places.is_empty(), "{needle:?} is in the file");
            for at in (0..needle.len()).step_by(needle.len().div_ceil(60)) {
                // Old pages may still hold a copy: all of them go, so that the one that is read does.
                let mut bytes = good.clone();
                places.iter().for_each(|place| bytes[place + at] ^= 1 << (at % 8));
                fs::write(&path, &bytes).unwrap();
                let opened = RedbCheckpoint::open(&path);
                let read = opened.and_then(|store| Ok((all(&*store.tables()?)?, store.buckets()?)));
                let failure = read.expect_err("what was flipped is read").to_string();
                assert!(failure.contains("db.redb"), "{failure}");
                flipped += 1;
            }
        }
        assert!(flipped > 100, "{flipped}");
    }

    #[test]
    fn damaged_files_are_failures_and_never_wrong_answers() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("db.redb");
        let mut store = RedbCheckpoint::open(&path).unwrap();
        let records: Vec<Record> = (2..60).map(|main| put(main, "some key", &[main as u8; 900])).collect();
        store.write(&Batch { records: records.clone(), applied: applied(1), ..Default::default() }).unwrap();
        drop(store);
        let good = fs::read(&path).unwrap();
        let used = good.iter().rposition(|byte| *byte != 0).unwrap();
        let mut noticed = 0;
        for round in 0..150_usize {
            let mut bytes = good.clone();
            let at = 4096 + (round * 7919 * 13) % (used - 4096);
            bytes[at] ^= 1 << (round % 8);
            fs::write(&path, &bytes).unwrap();
            let read = RedbCheckpoint::open(&path).and_then(|store| all(&*store.tables()?));
            match read {
                Ok(read) => assert!(read.iter().all(|record| records.contains(record)), "byte {at}"),
                Err(_) => noticed += 1,
            }
        }
        assert!(noticed > 20, "{noticed} of 150");
        for bytes in [&b"not a database"[..], &[0; 8192], &good[..5000], &good[..good.len() / 2]] {
            fs::write(&path, bytes).unwrap();
            let failure = text(RedbCheckpoint::open(&path));
            assert!(failure.contains("db.redb"), "{} bytes: {failure}", bytes.len());
        }
    }
}

//! Tables of one redb read transaction: what a View reads records from.
//!
//! The opened tables keep their transaction, and with it their pages, until they are dropped. redb does not check its
//! pages on reads and may panic on damaged ones (reliability.md 3.2, D6): every call into it is guarded, so that damage is a
//! `Failure`, and every header and record is checked against its CRC.

use std::ops::ControlFlow;
use std::panic::AssertUnwindSafe;
use std::panic::catch_unwind;
use std::path::Path;
use std::path::PathBuf;
use std::sync::Arc;

use bytes::Bytes;
use redb::Database;
use redb::Range;
use redb::ReadOnlyTable;
use redb::ReadableDatabase;
use redb::ReadableTableMetadata;

use crate::common::failure::Failure;
use crate::common::revision::Revision;
use crate::server::checkpoint::Header;
use crate::server::checkpoint::Record;
use crate::server::checkpoint::Tables;
use crate::server::checkpoint::schema;
use crate::server::checkpoint::schema::RevisionKey;

type Table = ReadOnlyTable<RevisionKey, &'static [u8]>;
type Rows = Range<'static, RevisionKey, &'static [u8]>;

/// The record tables as one transaction left them.
pub struct RedbTables {
    path: PathBuf,
    headers: Table,
    values: Table,
    /// Last: the file stays open until the tables are gone, also when another checkpoint has taken its place.
    _database: Arc<Database>,
}

impl RedbTables {
    /// Opens the tables of the newest commit.
    pub fn open(path: &Path, database: &Arc<Database>) -> Result<RedbTables, Failure> {
        let (headers, values) = guarded(path, || {
            let transaction = database.begin_read()?;
            Ok((transaction.open_table(schema::HEADERS)?, transaction.open_table(schema::VALUES)?))
        })?;
        Ok(RedbTables { path: path.to_owned(), headers, values, _database: Arc::clone(database) })
    }

    fn scan(&self, table: &Table, first: Revision, last: Revision) -> Result<Rows, Failure> {
        guarded(&self.path, || Ok(table.range::<&[u8; 16]>(&first.to_bytes()..=&last.to_bytes())?))
    }

    /// The value of a header that is met in a scan of both tables.
    fn next_value(&self, values: &mut Rows, header: &Header) -> Result<Bytes, Failure> {
        if header.value_bytes == 0 {
            return Ok(Bytes::new());
        }
        let row = guarded(&self.path, || {
            let Some(row) = values.next() else { return Ok(None) };
            let (key, value) = row?;
            Ok((*key.value() == header.revision.to_bytes()).then(|| Bytes::copy_from_slice(value.value())))
        })?;
        row.ok_or_else(|| self.damaged(format!("revision {} has no value", header.revision)))
    }

    /// The value that belongs to a header; empty values have no row.
    fn join(&self, header: Header) -> Result<Record, Failure> {
        let value = match header.value_bytes {
            0 => Bytes::new(),
            _ => {
                let key = header.revision.to_bytes();
                let row = guarded(&self.path, || {
                    Ok(self.values.get(&key)?.map(|guard| Bytes::copy_from_slice(guard.value())))
                })?;
                row.ok_or_else(|| self.damaged(format!("revision {} has no value", header.revision)))?
            }
        };
        schema::join_record(header, value).map_err(|detail| self.damaged(detail))
    }

    /// A scan of everything, as at start, must meet as many rows as redb counted: a damaged branch page may hide some.
    fn check_complete(&self, seen: u64, first: Revision, last: Revision) -> Result<(), Failure> {
        if first > Revision::default() || last < EVERYTHING_LAST {
            return Ok(());
        }
        let stored = guarded(&self.path, || Ok(self.headers.len()?))?;
        if stored != seen {
            return Err(self.damaged(format!("{seen} of {stored} headers were found")));
        }
        Ok(())
    }

    fn damaged(&self, detail: String) -> Failure {
        Failure::damaged(&self.path, detail)
    }
}

/// No revision is later: the end of a scan of everything.
pub const EVERYTHING_LAST: Revision = Revision::new(i64::MAX, i64::MAX);

impl Tables for RedbTables {
    fn record(&self, revision: Revision) -> Result<Option<Record>, Failure> {
        let key = revision.to_bytes();
        let header = guarded(&self.path, || {
            Ok(self.headers.get(&key)?.map(|guard| schema::decode_header(revision, guard.value())))
        })?;
        match header {
            None => Ok(None),
            Some(header) => Ok(Some(self.join(header.map_err(|detail| self.damaged(detail))?)?)),
        }
    }

    fn headers(
        &self,
        first: Revision,
        last: Revision,
        visit: &mut dyn FnMut(Header) -> ControlFlow<()>,
    ) -> Result<(), Failure> {
        if first > last {
            return Ok(());
        }
        let mut rows = self.scan(&self.headers, first, last)?;
        let mut previous = None;
        let mut seen = 0;
        loop {
            // Only redb's steps are guarded: a panic of the visitor is the visitor's.
            let header = guarded(&self.path, || {
                let Some(row) = rows.next() else { return Ok(None) };
                let (key, row) = row?;
                let revision = Revision::from_bytes(*key.value());
                Ok(Some((revision, schema::decode_header(revision, row.value()))))
            })?;
            let Some((revision, header)) = header else {
                return self.check_complete(seen, first, last);
            };
            seen += 1;
            if revision < first || revision > last || previous.is_some_and(|previous| previous >= revision) {
                return Err(self.damaged(format!("revision {revision} is out of order")));
            }
            previous = Some(revision);
            if visit(header.map_err(|detail| self.damaged(detail))?).is_break() {
                return Ok(());
            }
        }
    }

    fn records(
        &self,
        first: Revision,
        last: Revision,
        visit: &mut dyn FnMut(Record) -> ControlFlow<()>,
    ) -> Result<(), Failure> {
        if first > last {
            return Ok(());
        }
        // Values are walked beside the headers: looking each one up costs several times as much.
        let mut values = self.scan(&self.values, first, last)?;
        let mut failure = None;
        self.headers(first, last, &mut |header| {
            let value = self.next_value(&mut values, &header);
            match value.and_then(|value| schema::join_record(header, value).map_err(|detail| self.damaged(detail))) {
                Ok(record) => visit(record),
                Err(error) => {
                    failure = Some(error);
                    ControlFlow::Break(())
                }
            }
        })?;
        failure.map_or(Ok(()), Err)
    }
}

/// Runs a step inside redb; its errors and its panics name the file.
pub fn guarded<T>(path: &Path, step: impl FnOnce() -> Result<T, redb::Error>) -> Result<T, Failure> {
    match catch_unwind(AssertUnwindSafe(step)) {
        Ok(result) => result.map_err(|error| redb_failure(path, error)),
        Err(panic) => Err(Failure::damaged(path, format!("redb gave up: {}", panic_text(&*panic)))),
    }
}

/// Says what a redb error means to an operator.
pub fn redb_failure(path: &Path, error: redb::Error) -> Failure {
    let refused = |why: &str| Failure::Refused(format!("cannot use {}: {why}", path.display()));
    match error {
        redb::Error::DatabaseAlreadyOpen => refused("another process has it open; is the server running?"),
        redb::Error::UpgradeRequired(version) => refused(&format!("its redb file format {version} is not ours")),
        redb::Error::Io(source) if damage(&source) => Failure::damaged(path, source.to_string()),
        redb::Error::Io(source) => Failure::Io { what: "cannot use", path: path.to_owned(), source },
        redb::Error::PreviousIo => refused("an earlier disk error was not recovered"),
        other => Failure::damaged(path, other.to_string()),
    }
}

/// IO errors by which redb says that bytes are not its own.
fn damage(error: &std::io::Error) -> bool {
    matches!(error.kind(), std::io::ErrorKind::InvalidData | std::io::ErrorKind::UnexpectedEof)
}

/// The message of a caught panic.
pub fn panic_text(panic: &(dyn std::any::Any + Send)) -> &str {
    let owned = panic.downcast_ref::<String>().map(String::as_str);
    owned.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("panic without a message")
}

//! What etcd's database file says, as our state, and our state as what that file says.
//!
//! Buckets go pair by pair; records go between bucket `key` and `Record`; the applied mark goes between `Applied` and three
//! pairs of bucket `meta` (server.md 14.6). Files of etcd 3.4 to 3.7 are read: 3.4 writes no `term`, and `confState` and
//! `storageVersion` came later still.

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use prost::Message;
use serde::Deserialize;
use serde::Serialize;

use crate::common::failure::Failure;
use crate::common::revision::Revision;
use crate::proto::mvccpb::KeyValue;
use crate::proto::raftpb::ConfState;
use crate::server::checkpoint::Applied;
use crate::server::checkpoint::Bucket;
use crate::server::checkpoint::Buckets;
use crate::server::checkpoint::Header;
use crate::server::checkpoint::Record;
use crate::server::checkpoint::Tables;
use crate::server::checkpoint::schema::mod_revision;
use crate::server::checkpoint::tables::EVERYTHING_LAST;
use crate::server::snapshot::boltfile::BUCKETS;
use crate::server::snapshot::boltfile::KEY_BUCKET;
use crate::server::snapshot::boltfile::reader::BoltFile;
use crate::server::snapshot::boltfile::reader::Pairs;
use crate::server::snapshot::boltfile::writer::BoltWriter;
use crate::server::snapshot::boltfile::writer::Layout;

/// Pairs of bucket `meta` that are our `Applied`.
pub const CONSISTENT_INDEX: &[u8] = b"consistent_index";
pub const TERM: &[u8] = b"term";
pub const CONF_STATE: &[u8] = b"confState";

/// Pair of bucket `meta` that names the release line of the file's layout.
pub const STORAGE_VERSION: &[u8] = b"storageVersion";

/// Where the records of one state come from: a View, or tables.
pub trait RecordSource: Send + Sync {
    /// Records with `first <= revision <= last`, ascending, until `visit` breaks.
    fn records(
        &self,
        first: Revision,
        last: Revision,
        visit: &mut dyn FnMut(Record) -> ControlFlow<()>,
    ) -> Result<(), Failure>;

    /// The same without their values. A source that need not read these overrides it.
    fn headers(
        &self,
        first: Revision,
        last: Revision,
        visit: &mut dyn FnMut(Header) -> ControlFlow<()>,
    ) -> Result<(), Failure> {
        self.records(first, last, &mut |record| visit(Header::of(&record)))
    }
}

impl<T: Tables + ?Sized> RecordSource for T {
    fn records(
        &self,
        first: Revision,
        last: Revision,
        visit: &mut dyn FnMut(Record) -> ControlFlow<()>,
    ) -> Result<(), Failure> {
        Tables::records(self, first, last, visit)
    }

    fn headers(
        &self,
        first: Revision,
        last: Revision,
        visit: &mut dyn FnMut(Header) -> ControlFlow<()>,
    ) -> Result<(), Failure> {
        Tables::headers(self, first, last, visit)
    }
}

/// Tables as the source of records.
pub struct TableRecords(pub Arc<dyn Tables>);

impl RecordSource for TableRecords {
    fn records(
        &self,
        first: Revision,
        last: Revision,
        visit: &mut dyn FnMut(Record) -> ControlFlow<()>,
    ) -> Result<(), Failure> {
        self.0.records(first, last, visit)
    }
}

/// A whole state at one applied index, which does not change any more.
#[derive(Clone)]
pub struct Frozen {
    pub records: Arc<dyn RecordSource>,
    pub buckets: Buckets,
    pub applied: Applied,
}

/// Whether records come with their values, or only as long as they are.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Values {
    Read,
    Zeros,
}

/// A step through etcd's database file: a bucket begins, or the next pair of the current one.
pub enum Part<'a> {
    Bucket(&'static str),
    Pair(&'a [u8], &'a [u8]),
}

impl Part<'_> {
    fn write(self, writer: &mut BoltWriter) -> Result<(), Failure> {
        match self {
            Part::Bucket(name) => writer.bucket(name),
            Part::Pair(key, value) => writer.pair(key, value),
        }
    }
}

impl Frozen {
    /// Walks what etcd's file of this state holds: all ten buckets by name, their pairs by key. Ends at the first error.
    pub fn visit(&self, visit: &mut dyn FnMut(Part<'_>) -> Result<(), Failure>) -> Result<(), Failure> {
        self.walk(Values::Read, visit)
    }

    fn walk(&self, values: Values, visit: &mut dyn FnMut(Part<'_>) -> Result<(), Failure>) -> Result<(), Failure> {
        for name in BUCKETS {
            visit(Part::Bucket(name))?;
            match Bucket::ALL.into_iter().find(|bucket| bucket.name() == name) {
                None if values == Values::Zeros => self.visit_headers(visit)?,
                None => self.visit_records(visit)?,
                Some(Bucket::Meta) => {
                    for (key, value) in self.meta() {
                        visit(Part::Pair(&key, &value))?;
                    }
                }
                Some(bucket) => {
                    for (key, value) in pairs_of(&self.buckets, bucket) {
                        visit(Part::Pair(key, value))?;
                    }
                }
            }
        }
        Ok(())
    }

    /// Writes etcd's file of this state. `rest` sees the writer behind every pair, and ends the writing with an error.
    pub fn write_to(
        &self,
        writer: &mut BoltWriter,
        rest: &mut dyn FnMut(&BoltWriter) -> Result<(), Failure>,
    ) -> Result<(), Failure> {
        self.visit(&mut |part| {
            part.write(writer)?;
            rest(writer)
        })
    }

    /// Where etcd's file of this state has its root, and its end: found out without reading values.
    pub fn layout(&self) -> Result<Layout, Failure> {
        let mut writer = BoltWriter::measuring();
        self.walk(Values::Zeros, &mut |part| part.write(&mut writer))?;
        writer.layout()
    }

    /// Records as pairs of the right length.
    fn visit_headers(&self, visit: &mut dyn FnMut(Part<'_>) -> Result<(), Failure>) -> Result<(), Failure> {
        let mut outcome = Ok(());
        let mut zeros = Vec::new();
        self.records.headers(Revision::default(), EVERYTHING_LAST, &mut |header| {
            let key = header.storage_key();
            let value_bytes = (header.hashed_bytes as usize).saturating_sub(key.len());
            if zeros.len() < value_bytes {
                zeros.resize(value_bytes, 0);
            }
            outcome = visit(Part::Pair(&key, &zeros[..value_bytes]));
            if outcome.is_ok() { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
        })?;
        outcome
    }

    fn visit_records(&self, visit: &mut dyn FnMut(Part<'_>) -> Result<(), Failure>) -> Result<(), Failure> {
        let mut outcome = Ok(());
        self.records.records(Revision::default(), EVERYTHING_LAST, &mut |record| {
            outcome = visit(Part::Pair(&record.storage_key(), &record.encoded()));
            if outcome.is_ok() { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
        })?;
        outcome
    }

    /// Bucket `meta` with the applied mark in it.
    fn meta(&self) -> BTreeMap<Bytes, Bytes> {
        let number = |number: u64| Bytes::copy_from_slice(&number.to_be_bytes());
        let mut meta: BTreeMap<Bytes, Bytes> =
            pairs_of(&self.buckets, Bucket::Meta).map(|(key, value)| (key.clone(), value.clone())).collect();
        meta.insert(Bytes::from_static(CONSISTENT_INDEX), number(self.applied.index));
        meta.insert(Bytes::from_static(TERM), number(self.applied.term));
        if self.applied.conf_state != ConfState::default() {
            // etcd has none before the first configuration change either.
            meta.insert(Bytes::from_static(CONF_STATE), encode_conf_state(&self.applied.conf_state));
        }
        meta
    }
}

fn pairs_of(buckets: &Buckets, bucket: Bucket) -> impl Iterator<Item = (&Bytes, &Bytes)> {
    let from = buckets.range((bucket, Bytes::new())..);
    from.take_while(move |((of, _), _)| *of == bucket).map(|((_, key), value)| (key, value))
}

/// An etcd database file whose small buckets were read and whose records can be walked.
#[derive(Debug)]
pub struct Import {
    file: BoltFile,
    pub buckets: Buckets,
    /// Index 0, term 0 and no voters where the file does not say.
    pub applied: Applied,
}

/// Opens an etcd database file, a saved snapshot with its digest included.
pub fn import(path: &Path) -> Result<Import, Failure> {
    import_file(BoltFile::open(path)?)
}

/// As `import`, of a file that was opened before.
pub fn import_file(file: BoltFile) -> Result<Import, Failure> {
    let path = file.path().to_owned();
    let path = path.as_path();
    let names = file.buckets()?;
    for name in [KEY_BUCKET, Bucket::Meta.name()] {
        if !names.iter().any(|other| other[..] == *name.as_bytes()) {
            return Err(Failure::damaged(path, format!("it has no bucket {name}, so it is not an etcd member's")));
        }
    }
    if let Some(name) = names.iter().find(|name| !BUCKETS.iter().any(|known| known.as_bytes() == &name[..])) {
        let name = name.escape_ascii();
        return Err(Failure::Refused(format!("{} has a bucket {name} that no known etcd has", path.display())));
    }
    let mut buckets = Buckets::new();
    for bucket in Bucket::ALL {
        for pair in file.pairs(bucket.name())? {
            let (key, value) = pair?;
            // Copied out of its page: a bucket's pairs live as long as the member.
            buckets.insert((bucket, Bytes::copy_from_slice(&key)), Bytes::copy_from_slice(&value));
        }
    }
    let applied = take_applied(&mut buckets).map_err(|detail| Failure::damaged(path, detail))?;
    Ok(Import { file, buckets, applied })
}

impl Import {
    /// All records in revision order. Ends after the first error.
    pub fn records(&self) -> Result<Records<'_>, Failure> {
        Ok(Records { pairs: self.file.pairs(KEY_BUCKET)?, path: self.file.path() })
    }

    /// The newest revision of the file; `None` if it has no record.
    pub fn last_revision(&self) -> Result<Option<Revision>, Failure> {
        let Some(key) = self.file.last_key(KEY_BUCKET)? else { return Ok(None) };
        match Revision::from_storage_key(&key) {
            Some((revision, _)) => Ok(Some(revision)),
            None => Err(Failure::damaged(self.file.path(), format!("{} is no revision", key.escape_ascii()))),
        }
    }

    /// Length of the image without its digest.
    pub fn image_bytes(&self) -> u64 {
        self.file.image_bytes()
    }
}

impl RecordSource for Import {
    fn records(
        &self,
        first: Revision,
        last: Revision,
        visit: &mut dyn FnMut(Record) -> ControlFlow<()>,
    ) -> Result<(), Failure> {
        for record in Import::records(self)? {
            let record = record?;
            let wanted = (first..=last).contains(&record.revision);
            if record.revision > last || (wanted && visit(record).is_break()) {
                break;
            }
        }
        Ok(())
    }
}

/// Iterator over the records of an etcd database file.
pub struct Records<'a> {
    pairs: Pairs<'a>,
    path: &'a Path,
}

impl Iterator for Records<'_> {
    type Item = Result<Record, Failure>;

    fn next(&mut self) -> Option<Self::Item> {
        let pair = self.pairs.next()?;
        let path = self.path;
        Some(pair.and_then(|(key, value)| decode_record(&key, &value).map_err(|detail| Failure::damaged(path, detail))))
    }
}

/// Reads one pair of bucket `key`. Only what etcd itself would have written passes, because hashes run over its bytes.
fn decode_record(key: &[u8], value: &[u8]) -> Result<Record, String> {
    let (revision, tombstone) = Revision::from_storage_key(key)
        .filter(|(revision, _)| revision.main >= 0 && revision.sub >= 0)
        .ok_or_else(|| format!("{} is no revision", key.escape_ascii()))?;
    // Decoded from a copy, so that a record does not keep its whole page.
    let kv = KeyValue::decode(Bytes::copy_from_slice(value))
        .map_err(|error| format!("the pair of revision {revision} cannot be decoded: {error}"))?;
    if kv.mod_revision != mod_revision(revision, tombstone, &kv.key) {
        return Err(format!("the pair of revision {revision} says that it is of revision {}", kv.mod_revision));
    }
    let record = Record { revision, tombstone, kv };
    if record.encoded() != value {
        return Err(format!("the pair of revision {revision} has fields that no known etcd has"));
    }
    Ok(record)
}

fn take_applied(buckets: &mut Buckets) -> Result<Applied, String> {
    let mut take = |name: &'static [u8]| buckets.remove(&(Bucket::Meta, Bytes::from_static(name)));
    let number = |name: &[u8], value: Option<Bytes>| match value {
        None => Ok(0),
        Some(value) => <[u8; 8]>::try_from(&value[..])
            .map(u64::from_be_bytes)
            .map_err(|_| format!("{} has {} bytes", name.escape_ascii(), value.len())),
    };
    let index = number(CONSISTENT_INDEX, take(CONSISTENT_INDEX))?;
    let term = number(TERM, take(TERM))?;
    let conf_state = match take(CONF_STATE) {
        Some(json) => decode_conf_state(&json)?,
        None => ConfState::default(),
    };
    Ok(Applied { index, term, conf_state })
}

/// A ConfState as Go writes it into `confState`: empty lists are left out, auto_leave is not.
#[derive(Default, Deserialize, Serialize)]
#[serde(default)]
struct ConfStateJson {
    #[serde(skip_serializing_if = "Vec::is_empty")]
    voters: Vec<u64>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    learners: Vec<u64>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    voters_outgoing: Vec<u64>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    learners_next: Vec<u64>,
    auto_leave: bool,
}

/// The JSON of `confState` in bucket `meta`.
pub fn encode_conf_state(conf_state: &ConfState) -> Bytes {
    let conf_state = conf_state.clone();
    let json = ConfStateJson {
        voters: conf_state.voters,
        learners: conf_state.learners,
        voters_outgoing: conf_state.voters_outgoing,
        learners_next: conf_state.learners_next,
        auto_leave: conf_state.auto_leave,
    };
    Bytes::from(serde_json::to_vec(&json).expect("numbers and a flag are JSON"))
}

fn decode_conf_state(json: &[u8]) -> Result<ConfState, String> {
    let json: ConfStateJson = serde_json::from_slice(json).map_err(|error| format!("confState: {error}"))?;
    Ok(ConfState {
        voters: json.voters,
        learners: json.learners,
        voters_outgoing: json.voters_outgoing,
        learners_next: json.learners_next,
        auto_leave: json.auto_leave,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn conf_states_are_json_as_go_writes_it() {
        let conf_state = ConfState { voters: vec![3, u64::MAX], learners: vec![7], ..Default::default() };
        let json = encode_conf_state(&conf_state);
        assert_eq!(json, r#"{"voters":[3,18446744073709551615],"learners":[7],"auto_leave":false}"#);
        assert_eq!(decode_conf_state(&json).unwrap(), conf_state);
        assert!(decode_conf_state(b"{\"voters\":[-1]}").is_err());
    }

    #[test]
    fn pairs_that_etcd_would_not_have_written_are_refused() {
        let revision = Revision::new(5, 0);
        let kv = KeyValue { key: "k".into(), mod_revision: 5, version: 1, ..Default::default() };
        let record = Record { revision, tombstone: false, kv };
        let (key, value) = (record.storage_key(), record.encoded());
        assert_eq!(decode_record(&key, &value), Ok(record));
        let other = Revision::new(6, 0).storage_key();
        let with_zero = [&value[..], b"\x30\x00"].concat();
        let unknown = [&value[..], b"\x78\x01"].concat();
        for (key, value) in [
            (&key[..16], &value[..]),
            (&[0xff; 17], &value),
            (&other, &value),
            (&key, &value[..3]),
            (&key, &with_zero),
            (&key, &unknown),
        ] {
            assert!(decode_record(key, value).is_err(), "{} {}", key.escape_ascii(), value.escape_ascii());
        }
    }
}

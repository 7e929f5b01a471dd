//! What the records of a log say when read in order: hard state, snapshots, and one contiguous run of entries.
//!
//! Two records need thought. An *overwrite* is an entry with an index seen before: it replaces that one and all behind.
//! An *install* is a snapshot record that does not fit the entries before it: a follower was sent a whole state. It
//! counts only once a hard state commits up to it, because the member may have died in between; until then the
//! log as it was and the log behind the snapshot are both carried on.

use bytes::Bytes;
use prost::Message;

use crate::proto::raft_numbers::ENTRY_CONF_CHANGE;
use crate::proto::raft_numbers::ENTRY_NORMAL;
use crate::proto::raftpb::Entry;
use crate::proto::raftpb::HardState;
use crate::proto::walpb::Metadata;
use crate::proto::walpb::Snapshot;
use crate::server::raft::wal::record::Kind;
use crate::server::raft::wal::record::Record;
use crate::server::raft::wal::record::decode_hard_state;

/// A position in the log.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Position {
    pub index: u64,
    pub term: u64,
}

/// What a log holds.
#[derive(Clone, Debug, PartialEq)]
pub struct Recovered {
    pub metadata: Metadata,
    /// The newest one; all zeros if none was ever written.
    pub hard_state: HardState,
    /// Snapshot records in log order, those at or below the commit index: the last one is etcd's start point
    /// (server.md 10.1). The others belong to installs that never finished.
    pub snapshots: Vec<Snapshot>,
    /// What the first entry follows: {0, 0} in a whole log, else a snapshot or the oldest entry that is left.
    pub base: Position,
    /// Contiguous from `base.index + 1`. The data are slices of what was read.
    pub entries: Vec<Entry>,
}

impl Recovered {
    pub fn last_index(&self) -> u64 {
        self.base.index + self.entries.len() as u64
    }
}

/// What a record did to the log, for whoever keeps track of which segment holds what.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Effect {
    None,
    /// An entry of this index became the log's last one.
    Entry(u64),
    /// The log begins anew behind `base` and ends with `last`.
    Install {
        base: u64,
        last: u64,
    },
}

/// The state of reading.
#[derive(Debug, Default)]
pub struct Replay {
    metadata: Option<Metadata>,
    hard_state: HardState,
    snapshots: Vec<Snapshot>,
    /// `None` until a log that begins in the middle has shown where.
    log: Option<Run>,
    /// The log behind a snapshot record that is not committed yet.
    install: Option<Run>,
    /// A committed snapshot of which the log has no entries yet.
    start: Option<Position>,
}

/// Entries without gaps.
#[derive(Debug)]
struct Run {
    base: Position,
    /// The base is an entry of the log, so that an overwrite may still reach it.
    base_is_entry: bool,
    entries: Vec<Entry>,
}

impl Replay {
    /// `whole` if the log's first segment is there.
    pub fn new(whole: bool) -> Replay {
        Replay { log: whole.then(|| Run::behind(Position::default())), ..Replay::default() }
    }

    /// Takes the next record in. `Err` says what is wrong with it.
    pub fn apply(&mut self, record: Record) -> Result<Effect, String> {
        if self.metadata.is_none() && !matches!(record.kind, Kind::Crc | Kind::Metadata) {
            return Err("a record before the metadata".into());
        }
        match record.kind {
            Kind::Crc => Ok(Effect::None),
            Kind::Metadata => self.metadata(record.data),
            Kind::Entry => self.entry(record.data),
            Kind::HardState => self.hard_state(&record.data),
            Kind::Snapshot => self.snapshot(record.data),
        }
    }

    /// Index of the last entry; `None` while the log has not shown where it begins.
    pub fn last_index(&self) -> Option<u64> {
        self.log.as_ref().map(Run::last_index)
    }

    pub fn finish(mut self) -> Result<Recovered, String> {
        let metadata = self.metadata.ok_or("no metadata")?;
        let commit = self.hard_state.commit;
        let log = match (self.log, self.start) {
            (Some(log), _) => log,
            (None, Some(start)) => Run::behind(start),
            (None, None) => return Err("neither an entry nor a snapshot says where the log begins".into()),
        };
        if commit > log.last_index() {
            return Err(format!("the commit index {commit} is behind the last entry {}", log.last_index()));
        }
        self.snapshots.retain(|snapshot| snapshot.index <= commit);
        Ok(Recovered {
            metadata,
            hard_state: self.hard_state,
            snapshots: self.snapshots,
            base: log.base,
            entries: log.entries,
        })
    }

    fn metadata(&mut self, data: Bytes) -> Result<Effect, String> {
        let metadata = Metadata::decode(data).map_err(|error| format!("metadata: {error}"))?;
        match self.metadata.replace(metadata) {
            Some(before) if before != metadata => Err("metadata that differ from those before".into()),
            _ => Ok(Effect::None),
        }
    }

    fn hard_state(&mut self, data: &[u8]) -> Result<Effect, String> {
        let state = decode_hard_state(data).ok_or("not a hard state")?;
        if state.term < self.hard_state.term || (state.term == 0 && state.vote != 0) {
            return Err(format!("a hard state of term {} after term {}", state.term, self.hard_state.term));
        }
        self.hard_state = state;
        let Some(install) = self.install.take_if(|install| install.base.index <= state.commit) else {
            return Ok(Effect::None);
        };
        // The member may have died before it took the snapshot, and have reached that point entry by entry later.
        if self.log.as_ref().is_some_and(|log| log.has(install.base)) {
            return Ok(Effect::None);
        }
        let effect = Effect::Install { base: install.base.index, last: install.last_index() };
        self.log = Some(install);
        Ok(effect)
    }

    fn snapshot(&mut self, data: Bytes) -> Result<Effect, String> {
        let snapshot = Snapshot::decode(data).map_err(|error| format!("snapshot: {error}"))?;
        let at = Position { index: snapshot.index, term: snapshot.term };
        self.snapshots.push(snapshot);
        match &self.log {
            Some(log) if log.has(at) => {}
            _ if at.index > self.hard_state.commit => self.install = Some(Run::behind(at)),
            None => self.start = Some(at),
            // Below what is kept: its entry is in a segment that was released.
            Some(log) if at.index < log.base.index => {}
            Some(_) => return Err(format!("a snapshot of index {} and term {} that no entry has", at.index, at.term)),
        }
        Ok(Effect::None)
    }

    fn entry(&mut self, data: Bytes) -> Result<Effect, String> {
        let entry = Entry::decode(data).map_err(|error| format!("entry: {error}"))?;
        check_entry(&entry)?;
        let index = entry.index;
        let mut fits_install = false;
        if let Some(install) = self.install.as_mut().filter(|install| install.takes(index)) {
            install.push(entry.clone())?;
            fits_install = true;
        }
        match &mut self.log {
            Some(log) if log.takes(index) => log.push(entry)?,
            // Only the log behind the snapshot goes on here.
            _ if fits_install => return Ok(Effect::None),
            Some(log) => return Err(format!("entry {index} after entry {}", log.last_index())),
            None => self.log = Some(self.begin(entry)),
        }
        Ok(Effect::Entry(index))
    }

    /// The first entry of a log that begins in the middle.
    fn begin(&self, entry: Entry) -> Run {
        match self.start {
            Some(start) if start.index.checked_add(1) == Some(entry.index) && start.term <= entry.term => {
                Run { base: start, base_is_entry: false, entries: vec![entry] }
            }
            _ => Run::at(&entry),
        }
    }
}

/// Refuses what no raft log holds. Other kinds of record that pass for an entry after damage are caught here too, for
/// their kind is not covered by the CRC.
fn check_entry(entry: &Entry) -> Result<(), String> {
    let known = match entry.r#type {
        ENTRY_NORMAL => true,
        ENTRY_CONF_CHANGE => !entry.data.is_empty(),
        _ => false,
    };
    if known && entry.index > 0 && entry.index < u64::MAX && entry.term > 0 {
        return Ok(());
    }
    Err(format!("an entry of type {}, term {} and index {}", entry.r#type, entry.term, entry.index))
}

impl Run {
    fn behind(base: Position) -> Run {
        Run { base, base_is_entry: false, entries: Vec::new() }
    }

    fn at(entry: &Entry) -> Run {
        let base = Position { index: entry.index, term: entry.term };
        Run { base, base_is_entry: true, entries: Vec::new() }
    }

    fn last_index(&self) -> u64 {
        self.base.index + self.entries.len() as u64
    }

    /// Whether an entry of this index follows or replaces one of these.
    fn takes(&self, index: u64) -> bool {
        index <= self.last_index() + 1 && (index > self.base.index || self.base_is_entry)
    }

    fn term_at(&self, index: u64) -> Option<u64> {
        match index.checked_sub(self.base.index)? {
            0 => Some(self.base.term),
            distance => self.entries.get(usize::try_from(distance - 1).ok()?).map(|entry| entry.term),
        }
    }

    fn has(&self, at: Position) -> bool {
        self.term_at(at.index) == Some(at.term)
    }

    fn push(&mut self, entry: Entry) -> Result<(), String> {
        let Some(distance) = entry.index.checked_sub(self.base.index).filter(|distance| *distance > 0) else {
            *self = Run::at(&entry);
            return Ok(());
        };
        let before = self.term_at(entry.index - 1).unwrap_or(self.base.term);
        if entry.term < before {
            return Err(format!("entry {} of term {} after one of term {before}", entry.index, entry.term));
        }
        self.entries.truncate(usize::try_from(distance - 1).unwrap_or(usize::MAX));
        self.entries.push(entry);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::server::raft::wal::record::Encoder;
    use crate::server::raft::wal::record::decode_record;

    /// Replays a script: `e5.2` entry 5 of term 2, `h2.4` hard state of term 2 with commit 4, `s7.2` snapshot record.
    /// The result reads `base+entries`, each as index.term, or the error.
    fn replay(whole: bool, script: &str) -> String {
        let mut replay = Replay::new(whole);
        let metadata = Record { kind: Kind::Metadata, crc: 0, data: Bytes::new() };
        let mut result = replay.apply(metadata).map(drop);
        for word in script.split_whitespace() {
            let (a, b) = word[1..].split_once('.').unwrap();
            let (a, b) = (a.parse().unwrap(), b.parse().unwrap());
            let mut encoder = Encoder::default();
            match &word[..1] {
                "e" => encoder.entry(&Entry { r#type: 0, term: b, index: a, data: Bytes::from_static(b"x") }),
                "h" => encoder.hard_state(&HardState { term: a, vote: 1, commit: b }),
                _ => encoder.snapshot(&Snapshot { index: a, term: b, conf_state: None }),
            }
            let padding = usize::from(encoder.buffer[7] & 7);
            let body = encoder.buffer[8..encoder.buffer.len() - padding].to_vec();
            let record = decode_record(&Bytes::from(body)).unwrap();
            result = result.and_then(|()| replay.apply(record).map(drop));
        }
        match result.and_then(|()| replay.finish()) {
            Ok(recovered) => {
                let entries = recovered.entries.iter().map(|entry| format!(" {}.{}", entry.index, entry.term));
                format!("{}.{}+{}", recovered.base.index, recovered.base.term, entries.collect::<String>())
            }
            Err(error) => format!("error: {error}"),
        }
    }

    #[test]
    fn whole_logs() {
        for (script, expected) in [
            ("", "0.0+"),
            ("e1.1 e2.1 h1.2", "0.0+ 1.1 2.1"),
            ("e1.1 e2.1 e3.1 e2.2 h2.2", "0.0+ 1.1 2.2"),
            ("e1.1 e2.1 e1.2", "0.0+ 1.2"),
            ("e1.1 e2.1 h1.2 s2.1 e3.1", "0.0+ 1.1 2.1 3.1"),
            // A checkpoint whose commit index was not written in time.
            ("e1.1 e2.1 h1.1 s2.1 e3.1 h1.3", "0.0+ 1.1 2.1 3.1"),
            ("e1.1 e3.1", "error: entry 3 after entry 1"),
            ("e1.2 e2.1", "error: entry 2 of term 1 after one of term 2"),
            ("e1.1 h1.2", "error: the commit index 2 is behind the last entry 1"),
            ("e0.1", "error: an entry of type 0, term 1 and index 0"),
            ("e1.0", "error: an entry of type 0, term 0 and index 1"),
            ("h2.0 h1.0", "error: a hard state of term 1 after term 2"),
            ("e1.1 e2.1 h1.2 s2.2", "error: a snapshot of index 2 and term 2 that no entry has"),
        ] {
            assert_eq!(replay(true, script), expected, "{script}");
        }
    }

    #[test]
    fn installs() {
        for (script, expected) in [
            // A follower far behind.
            ("e1.1 e2.1 h1.2 s9.3 h3.9 e10.3 h3.10", "9.3+ 10.3"),
            // With the first entry in the same save.
            ("e1.1 h1.1 s9.3 e10.3 h3.9 e11.3", "9.3+ 10.3 11.3"),
            // Entries of its own beyond the snapshot are of another history.
            ("e1.1 e2.1 e3.1 e4.1 e5.1 h1.1 s3.2 h2.3", "3.2+"),
            ("e1.1 e2.1 e3.1 e4.1 e5.1 h1.1 s3.2 e4.2 h2.3", "3.2+ 4.2"),
            // It died before the hard state: the old log goes on.
            ("e1.1 e2.1 h1.2 s9.3", "0.0+ 1.1 2.1"),
            ("e1.1 e2.1 h1.2 s5.3 e6.3", "0.0+ 1.1 2.1"),
            ("e1.1 e2.1 h1.2 s5.3 e6.3 e3.3 e4.3 e5.3 e6.4 h4.6", "0.0+ 1.1 2.1 3.3 4.3 5.3 6.4"),
            // And got a newer snapshot.
            ("e1.1 h1.1 s5.3 s9.3 h3.9", "9.3+"),
        ] {
            assert_eq!(replay(true, script), expected, "{script}");
        }
    }

    #[test]
    fn logs_that_begin_in_the_middle() {
        for (script, expected) in [
            ("h1.6 e7.1 e8.1", "7.1+ 8.1"),
            ("h1.6 e7.1 e8.1 e7.2 e8.2", "7.2+ 8.2"),
            ("h1.6 e7.1 e8.1 e6.2 e7.2", "6.2+ 7.2"),
            ("h1.6 s6.1 e7.1 e8.1", "6.1+ 7.1 8.1"),
            ("h1.6 s4.1 e7.1 e8.1", "7.1+ 8.1"),
            ("h1.6 s6.1", "6.1+"),
            ("h1.6 e7.1 s4.1 h1.7", "7.1+"),
            ("h1.6 s9.2 h2.9 e10.2", "9.2+ 10.2"),
            ("h1.6 s9.2 e10.2 h2.9", "9.2+ 10.2"),
            ("h1.6", "error: neither an entry nor a snapshot says where the log begins"),
            ("h1.6 s9.2", "error: neither an entry nor a snapshot says where the log begins"),
        ] {
            assert_eq!(replay(false, script), expected, "{script}");
        }
    }

    #[test]
    fn snapshots_above_the_commit_index_are_left_out() {
        let mut replay = Replay::new(true);
        let mut apply = |kind, data: Vec<u8>| {
            replay.apply(Record { kind, crc: 0, data: Bytes::from(data) }).unwrap();
        };
        apply(Kind::Metadata, Metadata { node_id: 1, cluster_id: 2 }.encode_to_vec());
        apply(Kind::Snapshot, Snapshot::default().encode_to_vec());
        apply(Kind::Entry, Entry { r#type: 0, term: 1, index: 1, data: Bytes::new() }.encode_to_vec());
        apply(Kind::HardState, HardState { term: 1, vote: 0, commit: 1 }.encode_to_vec());
        apply(Kind::Snapshot, Snapshot { index: 1, term: 1, conf_state: None }.encode_to_vec());
        apply(Kind::Snapshot, Snapshot { index: 8, term: 1, conf_state: None }.encode_to_vec());
        let recovered = replay.finish().unwrap();
        assert_eq!(recovered.snapshots.iter().map(|snapshot| snapshot.index).collect::<Vec<_>>(), [0, 1]);
        assert_eq!(recovered.metadata, Metadata { node_id: 1, cluster_id: 2 });
    }

    #[test]
    fn records_before_the_metadata_and_other_metadata_are_refused() {
        let mut replay = Replay::new(true);
        let entry = Entry { r#type: 0, term: 1, index: 1, data: Bytes::new() }.encode_to_vec();
        replay.apply(Record { kind: Kind::Entry, crc: 0, data: Bytes::from(entry) }).unwrap_err();
        let metadata = |node_id| Metadata { node_id, cluster_id: 1 }.encode_to_vec().into();
        replay.apply(Record { kind: Kind::Metadata, crc: 0, data: metadata(1) }).unwrap();
        replay.apply(Record { kind: Kind::Metadata, crc: 0, data: metadata(1) }).unwrap();
        replay.apply(Record { kind: Kind::Metadata, crc: 0, data: metadata(2) }).unwrap_err();
    }
}

//! Every entry that a log ever said was committed, also those before a snapshot that the member was sent later.
//!
//! For judges: a member starts from what `scan` finds, which forgets what an install has replaced.

use std::collections::BTreeMap;
use std::path::Path;

use prost::Message;

use crate::common::failure::Failure;
use crate::disk::Disk;
use crate::proto::raftpb::Entry;
use crate::proto::walpb::Snapshot;
use crate::server::raft::wal::record::Kind;
use crate::server::raft::wal::record::Record;
use crate::server::raft::wal::record::decode_hard_state;
use crate::server::raft::wal::scan::segment_names;
use crate::server::raft::wal::segment::SegmentReader;
use crate::server::raft::wal::segment::Step;

/// What the records said so far.
#[derive(Default)]
struct Harvest {
    commit: u64,
    /// Not committed yet, as far as this log knows.
    pending: BTreeMap<u64, Entry>,
    /// Indexes that were committed and written again as something else.
    rewritten: Vec<u64>,
}

/// Gives every committed entry of the log in `dir` to `take`, in the order of their commits. Segments may be missing at
/// the front and between others. Returns the indexes of committed entries that were replaced later, which must not be.
pub fn committed_entries(disk: &dyn Disk, dir: &Path, mut take: impl FnMut(Entry)) -> Result<Vec<u64>, Failure> {
    let mut harvest = Harvest::default();
    let mut last_sequence = None;
    let mut crc = 0;
    for name in segment_names(disk, dir)? {
        let path = dir.join(name.to_string());
        let follows = last_sequence.is_some_and(|last: u64| last.checked_add(1) == Some(name.sequence));
        let file = disk.open(&path).map_err(Failure::io("cannot open", &path))?;
        let mut reader = SegmentReader::new(file, path.clone(), if follows { crc } else { 0 })?;
        // A torn end is the member's to judge: whatever is behind it was never synced.
        while let Step::Record(record) = reader.step()? {
            harvest.record(record, &mut take).map_err(|detail| Failure::damaged(&path, detail))?;
        }
        crc = reader.crc();
        last_sequence = Some(name.sequence);
    }
    Ok(harvest.rewritten)
}

impl Harvest {
    fn record(&mut self, record: Record, take: &mut impl FnMut(Entry)) -> Result<(), String> {
        match record.kind {
            Kind::Crc | Kind::Metadata => {}
            Kind::Entry => {
                let entry = Entry::decode(record.data).map_err(|error| format!("entry: {error}"))?;
                if entry.index <= self.commit {
                    self.rewritten.push(entry.index);
                }
                self.pending.split_off(&entry.index);
                self.pending.insert(entry.index, entry);
            }
            Kind::HardState => {
                let state = decode_hard_state(&record.data).ok_or("not a hard state")?;
                self.commit = self.commit.max(state.commit);
                while let Some(first) = self.pending.first_entry().filter(|first| *first.key() <= self.commit) {
                    take(first.remove());
                }
            }
            Kind::Snapshot => {
                let snapshot = Snapshot::decode(record.data).map_err(|error| format!("snapshot: {error}"))?;
                let own = self.pending.get(&snapshot.index).is_some_and(|entry| entry.term == snapshot.term);
                // A state that was sent takes the place of what this log had beyond its commit index.
                if !own && snapshot.index > self.commit {
                    self.pending.clear();
                }
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::proto::raftpb::HardState;
    use crate::server::raft::wal::record::Encoder;
    use crate::server::raft::wal::record::decode_record;

    /// As in `replay`: `e5.2` entry 5 of term 2, `h2.4` hard state of term 2 with commit 4, `s7.2` snapshot record.
    fn harvest(script: &str) -> String {
        let mut harvest = Harvest::default();
        let mut taken = Vec::new();
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
            harvest.record(record, &mut |entry| taken.push(format!("{}.{}", entry.index, entry.term))).unwrap();
        }
        format!("{} {:?}", taken.join(" "), harvest.rewritten)
    }

    #[test]
    fn what_was_committed_is_taken_once_and_what_was_replaced_is_not() {
        for (script, expected) in [
            ("e1.1 e2.1 h1.1 h1.2", "1.1 2.1 []"),
            ("e1.1 e2.1 e3.1 h1.1 e2.2 h2.2", "1.1 2.2 []"),
            // A snapshot is installed over entries of another history; what was committed before stays.
            ("e1.1 h1.1 e2.1 e3.1 s9.3 h3.9 e10.3 h3.10", "1.1 10.3 []"),
            ("e1.1 e2.1 h1.1 s2.1 h1.2", "1.1 2.1 []"),
            // A log that begins in the middle.
            ("h1.6 e7.1 e8.1 h1.8", "7.1 8.1 []"),
            ("e1.1 e2.1 h1.2 e2.2 h2.2", "1.1 2.1 2.2 [2]"),
        ] {
            assert_eq!(harvest(script), expected, "{script}");
        }
    }
}

//! Whether the bytes behind a bad record prove that it was synced once, so that it is damage and not a torn write.
//!
//! A power cut tears what was not synced: any number of saves without entries, then at most one with entries or
//! one snapshot record, because those return only after a sync. So a record that follows a *finished* save with
//! entries, or follows a snapshot record, was written after the bad one had been synced. Cutting the log there would
//! lose what this member has promised (reliability.md 3.3, sentence 4), and etcd would: it takes every record with a
//! zero sector, and every zero length, for the log's end.

use bytes::Bytes;
use crc32c::crc32c_append;

use crate::server::raft::wal::record::FRAME_BYTES;
use crate::server::raft::wal::record::Kind;
use crate::server::raft::wal::record::Record;
use crate::server::raft::wal::record::decode_length;
use crate::server::raft::wal::record::decode_record;

/// True if what follows was written after a sync that covered the bad record. `leftover` starts at the bad frame,
/// `before` is the record in front of it.
pub fn was_synced(before: Option<Kind>, leftover: &Bytes) -> bool {
    let mut order = SaveOrder { entry: before == Some(Kind::Entry), finished: false };
    // Of the bad record, only the kind that is there to be read counts.
    match leftover.get(8..10) {
        Some([0x08, 0x02]) => order.entry = true,
        Some([0x08, 0x03]) => order.finished = order.entry,
        _ => {}
    }
    let mut at = FRAME_BYTES;
    while at < leftover.len() {
        let run = chained_run(leftover, at);
        // One record alone may be an accident of the bytes; two that chain are not.
        if run.kinds.len() < 2 {
            at += FRAME_BYTES;
            continue;
        }
        if run.kinds.into_iter().any(|kind| order.proves_sync(kind)) {
            return true;
        }
        at = run.end;
    }
    false
}

/// Follows saves through the records that are left of them.
struct SaveOrder {
    /// An entry was seen, or the bad record is one.
    entry: bool,
    /// A save that syncs before it returns was seen to its end.
    finished: bool,
}

impl SaveOrder {
    fn proves_sync(&mut self, kind: Kind) -> bool {
        if self.finished {
            return true;
        }
        match kind {
            Kind::Entry => self.entry = true,
            // A save with entries ends with the hard state.
            Kind::HardState => self.finished = self.entry,
            Kind::Snapshot => self.finished = true,
            Kind::Metadata | Kind::Crc => {}
        }
        false
    }
}

struct Run {
    kinds: Vec<Kind>,
    end: usize,
}

/// Records from `at` on, each of which continues the CRC of the one before.
fn chained_run(bytes: &Bytes, at: usize) -> Run {
    let mut run = Run { kinds: Vec::new(), end: at };
    let mut crc = None;
    while let Some((record, next)) = frame_at(bytes, run.end) {
        if crc.is_some_and(|crc| crc32c_append(crc, &record.data) != record.crc) {
            break;
        }
        crc = Some(record.crc);
        run.kinds.push(record.kind);
        run.end = next;
    }
    run
}

fn frame_at(bytes: &Bytes, at: usize) -> Option<(Record, usize)> {
    let body = at.checked_add(FRAME_BYTES)?;
    let field = u64::from_le_bytes(bytes.get(at..body)?.try_into().ok()?);
    let (len, padding) = decode_length(field)?;
    let end = body.checked_add(usize::try_from(len).ok()?)?;
    // Padding at the very end may have been trimmed with the zeros behind it.
    let record = (end <= bytes.len()).then(|| decode_record(&bytes.slice(body..end)))??;
    Some((record, end + usize::try_from(padding).ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::raftpb::Entry;
    use crate::proto::raftpb::HardState;
    use crate::proto::walpb::Snapshot;
    use crate::server::raft::wal::record::Encoder;

    /// Writes records named by letters (e entry, h hard state, s snapshot), spoils the first and judges the rest.
    fn check(records: &str, expected: bool, spoil: impl Fn(&mut [u8])) {
        let mut encoder = Encoder { crc: 77, ..Encoder::default() };
        for (number, letter) in (1..).zip(records.chars()) {
            match letter {
                'e' => {
                    let data = Bytes::from(vec![number as u8; 100]);
                    encoder.entry(&Entry { r#type: 0, term: 1, index: number, data });
                }
                'h' => encoder.hard_state(&HardState { term: 1, vote: 1, commit: number }),
                _ => encoder.snapshot(&Snapshot { index: number, term: 1, conf_state: None }),
            }
        }
        spoil(&mut encoder.buffer);
        let buffer = Bytes::from(encoder.buffer);
        assert_eq!(was_synced(Some(Kind::HardState), &buffer), expected, "{records}");
    }

    #[test]
    fn what_a_power_cut_can_leave_is_torn() {
        for records in ["e", "eh", "eeh", "heh", "hheeh", "hs", "hhh", "s", "eee"] {
            check(records, false, |bytes| bytes[12] ^= 1);
        }
    }

    #[test]
    fn records_of_a_later_save_prove_the_sync() {
        for records in ["eheh", "ehee", "eehh", "heheh", "hshh", "ehs"] {
            check(records, true, |bytes| bytes[12] ^= 1);
        }
    }

    #[test]
    fn proof_is_found_behind_a_lost_length_too() {
        check("eeheh", true, |bytes| bytes[..24].fill(0));
        check("eeh", false, |bytes| bytes[..24].fill(0));
    }

    #[test]
    fn hard_state_that_ends_a_save_with_entries_was_synced_before_the_next_record() {
        let mut encoder = Encoder::default();
        for commit in [1, 2, 3] {
            encoder.hard_state(&HardState { term: 1, vote: 1, commit });
        }
        encoder.buffer[..8].fill(0);
        let leftover = Bytes::from(encoder.buffer);
        assert!(was_synced(Some(Kind::Entry), &leftover));
        assert!(!was_synced(Some(Kind::HardState), &leftover));
    }

    #[test]
    fn arbitrary_bytes_prove_nothing() {
        let mut dice = crate::disk::sim::Dice::new(5);
        for len in 0..300 {
            let bytes: Vec<u8> = (0..len).map(|_| dice.roll() as u8).collect();
            assert!(!was_synced(Some(Kind::Entry), &Bytes::from(bytes)));
        }
    }
}

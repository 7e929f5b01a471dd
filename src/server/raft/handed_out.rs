//! What was given to apply and not reported back: bounds a follower's memory, and catches an apply that loses a change.

use std::collections::VecDeque;

use crate::common::failure::Failure;
use crate::proto::raft_numbers as numbers;
use crate::proto::raftpb::Entry;

/// Entries between the applied index and the last committed one given out.
#[derive(Debug, Default)]
pub struct HandedOut {
    last_index: u64,
    /// (last index, bytes) of each piece given out.
    pieces: VecDeque<(u64, u64)>,
    bytes: u64,
    /// Indexes of configuration changes that apply must report before it reports anything later.
    conf_changes: VecDeque<u64>,
}

impl HandedOut {
    pub fn new(applied: u64) -> HandedOut {
        HandedOut { last_index: applied, ..HandedOut::default() }
    }

    /// Bytes of entry data that apply has yet to report.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    pub fn give(&mut self, entries: &[Entry]) {
        let Some(last) = entries.last() else { return };
        assert!(entries[0].index == self.last_index + 1, "committed {} after {}", entries[0].index, self.last_index);
        self.last_index = last.index;
        let bytes = entries.iter().map(|entry| entry.data.len() as u64).sum();
        self.bytes += bytes;
        self.pieces.push_back((last.index, bytes));
        let changes = entries.iter().filter(|entry| entry.r#type == numbers::ENTRY_CONF_CHANGE);
        self.conf_changes.extend(changes.map(|entry| entry.index));
    }

    /// A snapshot up to `index` took the place of entries; changes before it are part of its configuration.
    pub fn jump(&mut self, index: u64) {
        self.last_index = self.last_index.max(index);
        self.conf_changes.retain(|change| *change > index);
    }

    /// Apply reports `index`. Fails if it reports what it was not given, or skipped a configuration change.
    pub fn applied(&mut self, index: u64) -> Result<(), Failure> {
        if index > self.last_index {
            return Err(Failure::Refused(format!("applied {index}, but only {} is committed", self.last_index)));
        }
        if let Some(change) = self.conf_changes.front().filter(|change| **change <= index) {
            return Err(Failure::Refused(format!("applied {index}, but not the configuration change at {change}")));
        }
        while let Some((_, bytes)) = self.pieces.pop_front_if(|(last, _)| *last <= index) {
            self.bytes -= bytes;
        }
        Ok(())
    }

    /// Apply reports the change at `index`. False if none is outstanding there (a snapshot overtook it).
    pub fn conf_change_applied(&mut self, index: u64) -> bool {
        self.conf_changes.pop_front_if(|change| *change == index).is_some()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entries(indexes: std::ops::RangeInclusive<u64>) -> Vec<Entry> {
        let data = bytes::Bytes::from_static(b"0123456789");
        indexes.map(|index| Entry { index, data: data.clone(), ..Default::default() }).collect()
    }

    #[test]
    fn bytes_count_until_a_whole_piece_is_applied() {
        let mut given = HandedOut::new(4);
        given.give(&entries(5..=6));
        given.give(&entries(7..=9));
        assert_eq!(given.bytes(), 50);
        given.applied(7).unwrap();
        assert_eq!(given.bytes(), 30);
        given.applied(9).unwrap();
        assert_eq!(given.bytes(), 0);
    }

    #[test]
    fn applying_what_was_not_given_or_past_a_change_fails() {
        let mut given = HandedOut::new(0);
        let mut three = entries(1..=3);
        three[1].r#type = numbers::ENTRY_CONF_CHANGE;
        given.give(&three);
        assert!(given.applied(4).is_err());
        given.applied(1).unwrap();
        assert!(given.applied(3).is_err());
        assert!(!given.conf_change_applied(1) && given.conf_change_applied(2));
        given.applied(3).unwrap();
    }

    #[test]
    fn a_snapshot_settles_the_changes_before_it() {
        let mut given = HandedOut::new(0);
        let mut two = entries(1..=2);
        two[0].r#type = numbers::ENTRY_CONF_CHANGE;
        given.give(&two);
        given.jump(50);
        assert!(!given.conf_change_applied(1));
        given.applied(50).unwrap();
        given.give(&entries(51..=51));
    }
}

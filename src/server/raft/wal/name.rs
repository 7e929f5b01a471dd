//! Names of the files in a log directory.

use std::fmt;

/// Ends the name of every segment.
const SUFFIX: &str = ".wal";
/// Hexadecimal digits of each number in a name.
const DIGITS: usize = 16;

/// `<sequence>-<first index>.wal`, both in 16 hexadecimal digits (server.md 14.4).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct SegmentName {
    /// Counts segments from 0, without gaps.
    pub sequence: u64,
    /// Index of the first entry that the segment may hold when it is begun; 0 in the first.
    pub first_index: u64,
}

impl SegmentName {
    pub const FIRST: SegmentName = SegmentName { sequence: 0, first_index: 0 };

    /// `None` for any other file.
    pub fn parse(name: &str) -> Option<SegmentName> {
        let (sequence, first_index) = name.strip_suffix(SUFFIX)?.split_once('-')?;
        Some(SegmentName { sequence: parse_hex(sequence)?, first_index: parse_hex(first_index)? })
    }
}

impl fmt::Display for SegmentName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}-{:016x}{SUFFIX}", self.sequence, self.first_index)
    }
}

fn parse_hex(digits: &str) -> Option<u64> {
    let lower = digits.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
    if lower && digits.len() == DIGITS { u64::from_str_radix(digits, 16).ok() } else { None }
}

/// A segment that is not begun yet; two names so that a finished one never meets the next.
pub fn spare_name(sequence: u64) -> &'static str {
    if sequence.is_multiple_of(2) { "0.tmp" } else { "1.tmp" }
}

/// Both names of spare segments.
pub const SPARES: [&str; 2] = ["0.tmp", "1.tmp"];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_read_back_and_sort_by_sequence() {
        assert_eq!(SegmentName::FIRST.to_string(), "0000000000000000-0000000000000000.wal");
        let later = SegmentName { sequence: 0x1f, first_index: u64::MAX };
        assert_eq!(later.to_string(), "000000000000001f-ffffffffffffffff.wal");
        assert_eq!(SegmentName::parse(&later.to_string()), Some(later));
        assert!(SegmentName::FIRST < later);
    }

    #[test]
    fn other_files_are_not_segments() {
        for name in [
            "0.tmp",
            "",
            ".wal",
            "-.wal",
            "0-0.wal",
            "0000000000000000-0000000000000000.wal.broken",
            "000000000000000A-0000000000000000.wal",
            "+000000000000000-0000000000000000.wal",
            "0000000000000000_0000000000000000.wal",
        ] {
            assert_eq!(SegmentName::parse(name), None, "{name}");
        }
    }
}

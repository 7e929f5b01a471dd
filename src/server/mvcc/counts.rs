//! What is left of lists that clients read page by page: the next page's count without counting.
//!
//! Every page of a list at a pinned revision says how many keys its interval has, and the next page's interval begins
//! behind this one's last key: its count is this one's less what was answered. How many keys an interval has at a past
//! revision never changes, so what is kept here is right for as long as the revision can be read. Counting anew would
//! visit every leaf that was changed since the list began.

use std::collections::VecDeque;

use bytes::Bytes;

use crate::common::key_range::KeyRange;

/// Lists in progress that are remembered. Full means that the one that went on longest ago is forgotten, and its next
/// page is counted.
const LISTS_MAX: usize = 64;

/// Longer keys are not kept: a list of them is counted page by page.
const KEY_BYTES_MAX: usize = 1024;

/// The interval that a list goes on with.
struct Rest {
    range: KeyRange,
    at: i64,
    count: usize,
}

/// The newest lists at the back.
#[derive(Default)]
pub(super) struct Counts {
    rests: VecDeque<Rest>,
}

impl Counts {
    /// How many keys the interval has at main revision `at`, if it is the rest of a list; forgotten with this, because
    /// the page that asks brings the next.
    pub fn take(&mut self, range: &KeyRange, at: i64) -> Option<usize> {
        let found = self.rests.iter().position(|rest| rest.at == at && rest.range == *range)?;
        self.rests.remove(found).map(|rest| rest.count)
    }

    /// Of an interval with `count` keys at `at` the first ones up to `last` were answered, `answered` in number.
    pub fn went_on(&mut self, range: &KeyRange, at: i64, last: &[u8], count: usize, answered: usize) {
        assert!(answered <= count, "{answered} keys of an interval of {count}");
        // Owned: what came in a request is a slice of its socket's buffer.
        let end = match range {
            KeyRange::Span(_, end) => Some(Bytes::copy_from_slice(end)),
            KeyRange::From(_) => None,
            KeyRange::One(_) => return,
        };
        if last.len().max(end.as_ref().map_or(0, Bytes::len)) >= KEY_BYTES_MAX {
            return;
        }
        let start = Bytes::from([last, &[0]].concat());
        let range = end.map_or(KeyRange::From(start.clone()), |end| KeyRange::Span(start, end));
        if self.rests.len() == LISTS_MAX {
            self.rests.pop_front();
        }
        self.rests.push_back(Rest { range, at, count: count - answered });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn span(start: &'static str, end: &'static str) -> KeyRange {
        KeyRange::new(start.into(), end.into())
    }

    #[test]
    fn the_rest_of_a_list_is_known_once_and_only_for_its_own_page() {
        let mut counts = Counts::default();
        counts.went_on(&span("a", "z"), 7, b"f", 100, 30);
        counts.went_on(&span("a", "\0"), 7, b"f", 200, 30);
        assert_eq!(counts.take(&span("f\0", "z"), 8), None);
        assert_eq!(counts.take(&span("f", "z"), 7), None);
        assert_eq!(counts.take(&span("f\0", "y"), 7), None);
        assert_eq!(counts.take(&span("f\0", "z"), 7), Some(70));
        assert_eq!(counts.take(&span("f\0", "z"), 7), None);
        assert_eq!(counts.take(&span("f\0", "\0"), 7), Some(170));
    }

    #[test]
    fn memory_for_lists_is_bounded() {
        let mut counts = Counts::default();
        counts.went_on(&span("a", "z"), 7, &[b'f'; KEY_BYTES_MAX], 100, 30);
        assert!(counts.rests.is_empty());
        (0..1000).for_each(|at| counts.went_on(&span("a", "z"), at, b"f", 2, 1));
        assert_eq!(counts.rests.len(), LISTS_MAX);
        assert_eq!(counts.take(&span("f\0", "z"), 999), Some(1));
        assert_eq!(counts.take(&span("f\0", "z"), 0), None);
    }
}

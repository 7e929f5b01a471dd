//! A Range in pages: each goes on behind the last key of the one before, at the same revision (server.md 3.4).
//!
//! The cursor holds no View: every page may be read from a newer one, so a slow receiver pins nothing.

use bytes::Bytes;

use crate::common::key_range::KeyRange;
use crate::proto::etcdserverpb::RangeRequest;
use crate::proto::mvccpb::KeyValue;
use crate::server::mvcc::read::pairs;
use crate::server::mvcc::read::read_revision;
use crate::server::mvcc::read::wire_count;
use crate::server::mvcc::view::ReadError;
use crate::server::mvcc::view::Source;

/// Where a paged Range stands.
#[derive(Debug)]
pub struct Pages {
    rest: KeyRange,
    /// The requested number once it is pinned; a negative request stays negative, and reads the newest each time.
    revision: i64,
    /// Keys that the limit still allows.
    left: usize,
    keys_only: bool,
    count_only: bool,
    end: PageEnd,
}

/// Some pairs in key order.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Page {
    pub kvs: Vec<KeyValue>,
    /// On the last page only.
    pub end: Option<PageEnd>,
}

/// What the last page adds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PageEnd {
    /// The store's revision when the range began.
    pub revision: i64,
    /// Keys remain beyond the limit.
    pub more: bool,
    /// Keys of the whole interval.
    pub count: i64,
}

impl Pages {
    /// Pins the revision. Sort order and filters of the request are the caller's to refuse.
    pub fn start(source: &dyn Source, request: &RangeRequest) -> Result<Pages, ReadError> {
        let at = read_revision(source, request.revision)?;
        let rest = KeyRange::new(request.key.clone(), request.range_end.clone());
        let count = wire_count(source.count(&rest, at));
        Ok(Pages {
            rest,
            revision: if request.revision < 0 { request.revision } else { at },
            left: usize::try_from(request.limit).ok().filter(|limit| *limit > 0).unwrap_or(usize::MAX),
            keys_only: request.keys_only,
            count_only: request.count_only,
            end: PageEnd { revision: source.revision(), more: false, count },
        })
    }

    /// The next at most `keys` (at least one) pairs. Not to be called behind the last page.
    pub fn next(&mut self, source: &dyn Source, keys: usize) -> Result<Page, ReadError> {
        let at = read_revision(source, self.revision)?;
        if self.count_only {
            return Ok(Page { kvs: Vec::new(), end: Some(self.end) });
        }
        let wanted = keys.max(1).min(self.left);
        let mut found = source.find(&self.rest, at, wanted.saturating_add(1));
        let more = found.len() > wanted;
        found.truncate(wanted);
        let kvs = pairs(source, &found, self.keys_only)?;
        if self.left != usize::MAX {
            self.left -= found.len();
        }
        match found.last() {
            Some(last) if more && self.left > 0 => {
                self.go_on_behind(&last.key);
                Ok(Page { kvs, end: None })
            }
            _ => Ok(Page { kvs, end: Some(PageEnd { more, ..self.end }) }),
        }
    }

    fn go_on_behind(&mut self, key: &[u8]) {
        let start = Bytes::from([key, &[0]].concat());
        self.rest = match &self.rest {
            KeyRange::Span(_, end) => KeyRange::Span(start, end.clone()),
            KeyRange::From(_) | KeyRange::One(_) => KeyRange::From(start),
        };
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::common::answer::Answer;
    use crate::server::mvcc::read::range;
    use crate::server::mvcc::store::Store;
    use crate::server::mvcc::testing::tables::MemoryTables;

    fn put(store: &mut Store, key: &str) {
        let mut txn = store.begin();
        txn.put(&Bytes::from(key.to_owned()), Bytes::from_static(b"v"), 0);
        txn.commit();
    }

    #[test]
    fn pages_together_equal_the_range_also_while_writes_go_on() {
        for (limit, end) in [(0, "k2"), (7, "k2"), (10, "\0"), (25, "k2"), (100, "\0"), (-1, "")] {
            for size in [1, 3, 10, 1000] {
                let mut store = Store::new(Arc::new(MemoryTables::default()));
                (0..30).for_each(|i| put(&mut store, &format!("k{i:02}")));
                let request = RangeRequest {
                    key: "k0".into(),
                    range_end: Bytes::copy_from_slice(end.as_bytes()),
                    limit,
                    ..Default::default()
                };
                let expected = range(&store, &request).unwrap();
                let mut pages = Pages::start(&store, &request).unwrap();
                let mut kvs = Vec::new();
                let end = loop {
                    let page = pages.next(&store, size).unwrap();
                    kvs.extend(page.kvs);
                    put(&mut store, &format!("k0{}x", kvs.len()));
                    put(&mut store, "k11");
                    if let Some(end) = page.end {
                        break end;
                    }
                };
                assert_eq!((kvs, end.more, end.count), (expected.kvs, expected.more, expected.count));
                assert_eq!(end.revision, expected.header.unwrap().revision);
            }
        }
    }

    #[test]
    fn a_compaction_of_the_pinned_revision_ends_the_pages() {
        let mut store = Store::new(Arc::new(MemoryTables::default()));
        (0..5).for_each(|i| put(&mut store, &format!("k{i}")));
        let request = RangeRequest { key: "k".into(), range_end: "l".into(), ..Default::default() };
        let mut pages = Pages::start(&store, &request).unwrap();
        pages.next(&store, 2).unwrap();
        put(&mut store, "k9");
        store.compact(7).unwrap();
        assert!(matches!(pages.next(&store, 2), Err(ReadError::Answer(Answer::Compacted))));
    }
}

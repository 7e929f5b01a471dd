//! The interval that a key and a range end name: the same rules for reads, deletes, compares, watches, permissions.

use bytes::Bytes;

/// Keys of one request (server.md 3.2).
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum KeyRange {
    /// Exactly this key.
    One(Bytes),
    /// From the first, up to but without the second. Empty when the second is not greater.
    Span(Bytes, Bytes),
    /// This key and all after it.
    From(Bytes),
}

impl KeyRange {
    /// Reads the pair as requests carry it: an empty end is one key, a single zero byte is no end.
    pub fn new(key: Bytes, range_end: Bytes) -> KeyRange {
        match range_end.as_ref() {
            [] => KeyRange::One(key),
            [0] => KeyRange::From(key),
            _ => KeyRange::Span(key, range_end),
        }
    }

    /// The smallest key that can be in the range.
    pub fn start(&self) -> &Bytes {
        match self {
            KeyRange::One(key) | KeyRange::Span(key, _) | KeyRange::From(key) => key,
        }
    }

    pub fn contains(&self, key: &[u8]) -> bool {
        match self {
            KeyRange::One(one) => one == key,
            KeyRange::Span(start, end) => key >= start.as_ref() && key < end.as_ref(),
            KeyRange::From(start) => key >= start.as_ref(),
        }
    }

    /// Whether `key` lies at or behind the end, so that a walk in key order may stop.
    pub fn is_past(&self, key: &[u8]) -> bool {
        match self {
            KeyRange::One(one) => key > one.as_ref(),
            KeyRange::Span(_, end) => key >= end.as_ref(),
            KeyRange::From(_) => false,
        }
    }

    /// Whether no key can be in the range.
    pub fn is_empty(&self) -> bool {
        matches!(self, KeyRange::Span(start, end) if end <= start)
    }
}

/// The range end that makes `key` a prefix: its last byte plus one, trailing 0xff dropped; one zero byte if none is left.
pub fn prefix_end(key: &[u8]) -> Vec<u8> {
    let kept = key.iter().rposition(|byte| *byte != 0xff);
    match kept {
        Some(last) => {
            let mut end = key[..=last].to_vec();
            end[last] += 1;
            end
        }
        None => vec![0],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn range_ends_mean_what_etcd_says() {
        let range = |key: &'static str, end: &'static [u8]| KeyRange::new(Bytes::from(key), Bytes::from_static(end));
        assert!(range("k", b"").contains(b"k"));
        assert!(!range("k", b"").contains(b"ka"));
        assert!(range("k", b"\0").contains(b"z"));
        assert!(!range("k", b"\0").contains(b"a"));
        assert!(range("b", b"d").contains(b"c"));
        assert!(!range("b", b"d").contains(b"d"));
        assert!(range("b", b"a").is_empty());
        assert!(range("b", b"b").is_empty());
    }

    #[test]
    fn prefix_ends_carry() {
        assert_eq!(prefix_end(b"a"), b"b");
        assert_eq!(prefix_end(b"a\xff\xff"), b"b");
        assert_eq!(prefix_end(b"\xff\xff"), b"\0");
        assert_eq!(prefix_end(b""), b"\0");
    }
}

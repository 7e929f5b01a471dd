//! The order of all changes: main counts write transactions, sub the changes inside one.

use std::fmt;

/// One change. Ordered by main, then sub.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Revision {
    pub main: i64,
    pub sub: i64,
}

/// Length of a revision as a storage key: main, `_`, sub (server.md 3.1).
pub const STORAGE_KEY_BYTES: usize = 17;

impl Revision {
    pub const fn new(main: i64, sub: i64) -> Revision {
        Revision { main, sub }
    }

    /// 16 bytes, big-endian main then sub: sorts like the revision for the non-negative numbers a store holds.
    pub fn to_bytes(self) -> [u8; 16] {
        let mut bytes = [0; 16];
        bytes[..8].copy_from_slice(&self.main.to_be_bytes());
        bytes[8..].copy_from_slice(&self.sub.to_be_bytes());
        bytes
    }

    pub fn from_bytes(bytes: [u8; 16]) -> Revision {
        let half = |at: usize| i64::from_be_bytes(bytes[at..at + 8].try_into().expect("eight of sixteen bytes"));
        Revision { main: half(0), sub: half(8) }
    }

    /// etcd's storage key: 8 bytes main, `_`, 8 bytes sub. A tombstone's has a `t` behind it.
    pub fn storage_key(self) -> [u8; STORAGE_KEY_BYTES] {
        let mut bytes = [0; STORAGE_KEY_BYTES];
        bytes[..8].copy_from_slice(&self.main.to_be_bytes());
        bytes[8] = b'_';
        bytes[9..].copy_from_slice(&self.sub.to_be_bytes());
        bytes
    }

    /// Reads a storage key of 17 bytes, or 18 with the tombstone's mark: the revision and whether it is a tombstone.
    pub fn from_storage_key(bytes: &[u8]) -> Option<(Revision, bool)> {
        let tombstone = match bytes.len() {
            17 => false,
            18 if bytes[17] == b't' => true,
            _ => return None,
        };
        if bytes[8] != b'_' {
            return None;
        }
        let main = i64::from_be_bytes(bytes[..8].try_into().ok()?);
        let sub = i64::from_be_bytes(bytes[9..17].try_into().ok()?);
        Some((Revision { main, sub }, tombstone))
    }
}

impl fmt::Display for Revision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.main, self.sub)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn storage_keys_go_both_ways() {
        let revision = Revision::new(0x0102, 3);
        let key = revision.storage_key();
        assert_eq!(key, [0, 0, 0, 0, 0, 0, 1, 2, b'_', 0, 0, 0, 0, 0, 0, 0, 3]);
        assert_eq!(Revision::from_storage_key(&key), Some((revision, false)));
        let mut tombstone = key.to_vec();
        tombstone.push(b't');
        assert_eq!(Revision::from_storage_key(&tombstone), Some((revision, true)));
        for wrong in [&key[..16], &[0; 17], &[&key[..], b"x"].concat()] {
            assert_eq!(Revision::from_storage_key(wrong), None);
        }
        assert_eq!(Revision::from_bytes(revision.to_bytes()), revision);
    }
}

//! One change of one key as the index remembers it: which record, and what a reader wants to know without reading it.

use crate::common::revision::Revision;

/// The largest sub revision an index holds: one transaction changes at most so many keys.
pub const SUB_MAX: i64 = (1 << 31) - 1;

/// Set in `sub_and_lease` when the put attached a lease: only then does a later change read the record for its id.
const LEASED: u32 = 1 << 31;

/// 32 bytes. A tombstone has version 0, which no put has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mark {
    pub main: i64,
    sub_and_lease: u32,
    /// Length of what etcd hashes for the record (storage key and encoded pair): its share of the store's size.
    pub hashed_bytes: u32,
    /// Main revision of the put that began this life of the key; 0 in a tombstone.
    pub create_revision: i64,
    /// Puts in this life of the key so far; 0 in a tombstone.
    pub version: i64,
}

impl Mark {
    /// A put. `sub` is at most `SUB_MAX`.
    pub fn put(revision: Revision, create_revision: i64, version: i64, leased: bool, hashed_bytes: u32) -> Mark {
        assert!(version > 0, "a put has a version");
        let flag = if leased { LEASED } else { 0 };
        let sub_and_lease = sub_of(revision) | flag;
        Mark { main: revision.main, sub_and_lease, hashed_bytes, create_revision, version }
    }

    pub fn tombstone(revision: Revision, hashed_bytes: u32) -> Mark {
        let sub_and_lease = sub_of(revision);
        Mark { main: revision.main, sub_and_lease, hashed_bytes, create_revision: 0, version: 0 }
    }

    pub fn revision(&self) -> Revision {
        Revision::new(self.main, i64::from(self.sub_and_lease & !LEASED))
    }

    pub fn is_tombstone(&self) -> bool {
        self.version == 0
    }

    /// Whether the put attached a lease.
    pub fn is_leased(&self) -> bool {
        self.sub_and_lease & LEASED != 0
    }
}

fn sub_of(revision: Revision) -> u32 {
    assert!((0..=SUB_MAX).contains(&revision.sub), "sub revision {} out of range", revision.sub);
    u32::try_from(revision.sub).expect("checked above: fits 31 bits")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mark_is_32_bytes() {
        assert_eq!(size_of::<Mark>(), 32);
    }

    #[test]
    fn marks_say_what_they_were_made_of() {
        let put = Mark::put(Revision::new(7, SUB_MAX), 3, 2, true, 40);
        assert_eq!((put.revision(), put.is_leased(), put.is_tombstone()), (Revision::new(7, SUB_MAX), true, false));
        let gone = Mark::tombstone(Revision::new(8, 1), 20);
        assert_eq!((gone.revision(), gone.is_leased(), gone.is_tombstone()), (Revision::new(8, 1), false, true));
    }
}

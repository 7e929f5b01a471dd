//! etcd's Hash over a whole state (server.md 3.9): CRC-32C of bucket names and pairs, ascending.

use crate::common::failure::Failure;
use crate::server::snapshot::contents::CONSISTENT_INDEX;
use crate::server::snapshot::contents::Frozen;
use crate::server::snapshot::contents::Part;
use crate::server::snapshot::contents::STORAGE_VERSION;
use crate::server::snapshot::contents::TERM;

/// Which of etcd's two hashes over all buckets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HashOf {
    /// Method Hash: without the pairs of `meta` in which members of one cluster may differ.
    Member,
    /// `snapshot status`: every pair of the file.
    File,
}

/// Hashes a state. Members that applied the same entries have the same `HashOf::Member`.
pub fn hash(state: &Frozen, of: HashOf) -> Result<u32, Failure> {
    let mut hash = 0;
    let mut bucket = "";
    state.visit(&mut |part| {
        match part {
            Part::Bucket(name) => {
                bucket = name;
                hash = crc32c::crc32c_append(hash, name.as_bytes());
            }
            Part::Pair(key, _) if of == HashOf::Member && bucket == "meta" && left_out(key) => {}
            Part::Pair(key, value) => hash = crc32c::crc32c_append(crc32c::crc32c_append(hash, key), value),
        }
        Ok(())
    })?;
    Ok(hash)
}

fn left_out(key: &[u8]) -> bool {
    [CONSISTENT_INDEX, TERM, STORAGE_VERSION].contains(&key)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::server::checkpoint::Applied;
    use crate::server::checkpoint::Bucket;
    use crate::server::checkpoint::Buckets;
    use crate::server::checkpoint::memory::MemoryTables;

    #[test]
    fn the_members_hash_leaves_out_what_members_may_differ_in() {
        let state = |index: u64, buckets: &[(Bucket, &'static str)]| Frozen {
            records: Arc::new(MemoryTables::of([])),
            buckets: buckets.iter().map(|(bucket, key)| ((*bucket, (*key).into()), "v".into())).collect::<Buckets>(),
            applied: Applied { index, term: index + 1, ..Default::default() },
        };
        let names = "alarmauthauthRolesauthUsersclusterkeyleasemembersmembers_removedmeta";
        let empty = hash(&state(5, &[]), HashOf::Member).unwrap();
        assert_eq!(empty, crc32c::crc32c(names.as_bytes()));
        assert_eq!(hash(&state(6, &[(Bucket::Meta, "storageVersion")]), HashOf::Member).unwrap(), empty);
        assert_ne!(hash(&state(6, &[(Bucket::Auth, "term")]), HashOf::Member).unwrap(), empty);
        let file = [names.as_bytes(), b"consistent_index", &5_u64.to_be_bytes(), b"term", &6_u64.to_be_bytes()];
        assert_eq!(hash(&state(5, &[]), HashOf::File).unwrap(), crc32c::crc32c(&file.concat()));
    }
}

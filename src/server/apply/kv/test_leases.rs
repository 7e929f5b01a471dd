//! Leases in memory, which check what writes may do with them.

use std::collections::BTreeMap;
use std::collections::BTreeSet;

use bytes::Bytes;

use crate::server::apply::kv::Leases;

/// Lease ids with the keys they hold.
#[derive(Default)]
pub struct TestLeases {
    pub keys: BTreeMap<i64, BTreeSet<Bytes>>,
}

impl TestLeases {
    pub fn with(ids: &[i64]) -> TestLeases {
        TestLeases { keys: ids.iter().map(|id| (*id, BTreeSet::new())).collect() }
    }

    /// `5:a,b 7:` and so on.
    pub fn text(&self) -> String {
        let keys = |keys: &BTreeSet<Bytes>| {
            keys.iter().map(|key| String::from_utf8_lossy(key).into_owned()).collect::<Vec<_>>().join(",")
        };
        self.keys.iter().map(|(id, of)| format!("{id}:{}", keys(of))).collect::<Vec<_>>().join(" ")
    }
}

impl Leases for TestLeases {
    fn exists(&self, id: i64) -> bool {
        self.keys.contains_key(&id)
    }

    fn attach(&mut self, id: i64, key: &Bytes) {
        assert!(self.keys.values().all(|keys| !keys.contains(key)), "a key has at most one lease");
        assert!(self.keys.get_mut(&id).unwrap().insert(key.clone()));
    }

    fn detach(&mut self, id: i64, key: &Bytes) {
        assert!(self.keys.get_mut(&id).unwrap().remove(key), "{key:?} was not attached to {id}");
    }
}

//! The store as the specification words it: a list of every change, searched from end to end.

use std::collections::BTreeMap;
use std::collections::BTreeSet;

use bytes::Bytes;

use crate::common::key_range::KeyRange;
use crate::common::revision::Revision;
use crate::proto::etcdserverpb::RangeRequest;
use crate::proto::mvccpb::KeyValue;
use crate::server::checkpoint::Record;

/// All changes that a real store would still have, oldest first.
#[derive(Clone)]
pub struct Model {
    pub records: Vec<Record>,
    pub revision: i64,
    pub compact_revision: i64,
}

/// One change of a transaction.
#[derive(Clone, Debug)]
pub enum Change {
    Put(Bytes, Bytes, i64),
    Delete(KeyRange),
}

impl Default for Model {
    fn default() -> Model {
        Model { records: Vec::new(), revision: 1, compact_revision: -1 }
    }
}

impl Model {
    pub fn apply(&mut self, changes: &[Change]) {
        let main = self.revision + 1;
        let mut sub = 0;
        for change in changes {
            match change {
                Change::Put(key, value, lease) => {
                    let old = self.alive(main).remove(key);
                    let kv = KeyValue {
                        key: key.clone(),
                        create_revision: old.as_ref().map_or(main, |old| old.create_revision),
                        mod_revision: main,
                        version: old.as_ref().map_or(0, |old| old.version) + 1,
                        value: value.clone(),
                        lease: *lease,
                    };
                    self.records.push(Record { revision: Revision::new(main, sub), tombstone: false, kv });
                    sub += 1;
                }
                Change::Delete(range) => {
                    for key in self.alive(main).into_keys().filter(|key| range.contains(key)) {
                        let kv = KeyValue { key, ..KeyValue::default() };
                        self.records.push(Record { revision: Revision::new(main, sub), tombstone: true, kv });
                        sub += 1;
                    }
                }
            }
        }
        self.revision += i64::from(sub > 0);
    }

    /// What a reader at `at` sees.
    pub fn alive(&self, at: i64) -> BTreeMap<Bytes, KeyValue> {
        let mut alive = BTreeMap::new();
        for record in self.records.iter().filter(|record| record.revision.main <= at) {
            match record.tombstone {
                true => alive.remove(&record.kv.key),
                false => alive.insert(record.kv.key.clone(), record.kv.clone()),
            };
        }
        alive
    }

    /// Drops what server.md 3.8 drops, the same way.
    pub fn compact(&mut self, at: i64) {
        self.compact_revision = at;
        let mut newest: BTreeMap<Bytes, Revision> = BTreeMap::new();
        for record in self.records.iter().filter(|record| record.revision.main <= at) {
            newest.insert(record.kv.key.clone(), record.revision);
        }
        self.records.retain(|record| {
            let main = record.revision.main;
            main > at
                || if record.tombstone { main == at } else { newest.get(&record.kv.key) == Some(&record.revision) }
        });
    }

    /// Etcd's kept set at `at` (server.md 3.9, step 3).
    pub fn kept(&self, at: i64) -> BTreeSet<Revision> {
        let deleted_in = |key: &Bytes| {
            let mut of_key = self.records.iter().filter(|record| record.kv.key == *key);
            of_key.any(|record| record.tombstone && record.revision.main == at)
        };
        let mut newest: BTreeMap<&Bytes, &Record> = BTreeMap::new();
        for record in self.records.iter().filter(|record| record.revision.main <= at) {
            newest.insert(&record.kv.key, record);
        }
        newest.retain(|key, record| !record.tombstone && !deleted_in(key));
        newest.into_values().map(|record| record.revision).collect()
    }

    /// The hash at `at`, over the very bytes (server.md 3.9, step 4).
    pub fn hash(&self, at: i64, compact_revision: i64, by_compaction: bool) -> u32 {
        let mut kept = self.kept(at);
        if by_compaction {
            let of_at = self.records.iter().filter(|record| record.tombstone && record.revision.main == at);
            kept.extend(of_at.map(|record| record.revision));
        }
        let mut bytes = b"key".to_vec();
        for record in &self.records {
            let main = record.revision.main;
            let dropped = main <= compact_revision && !kept.is_empty() && !kept.contains(&record.revision);
            if main > at || dropped || main == compact_revision && record.tombstone {
                continue;
            }
            bytes.extend(record.storage_key());
            bytes.extend(record.encoded());
        }
        crc32c::crc32c(&bytes)
    }

    /// Range at a revision that can be read: pairs, more, count (server.md 3.3).
    pub fn range(&self, request: &RangeRequest) -> (Vec<KeyValue>, bool, i64) {
        let range = KeyRange::new(request.key.clone(), request.range_end.clone());
        let at = if request.revision > 0 { request.revision } else { self.revision };
        let mut kvs: Vec<KeyValue> = self.alive(at).into_values().filter(|kv| range.contains(&kv.key)).collect();
        let count = kvs.len() as i64;
        if request.count_only {
            return (Vec::new(), false, count);
        }
        let bounds = [
            (request.min_mod_revision, request.max_mod_revision, 0),
            (request.min_create_revision, request.max_create_revision, 1),
        ];
        let filtered = bounds.iter().any(|(min, max, _)| *min != 0 || *max != 0);
        let limit = if request.limit > 0 { request.limit as usize } else { usize::MAX };
        let in_key_order = request.sort_target == 0 && request.sort_order == 1;
        if !filtered && (request.sort_order == 0 || in_key_order) {
            kvs.truncate(limit.saturating_add(1));
        }
        for (min, max, which) in bounds {
            let value = |kv: &KeyValue| if which == 0 { kv.mod_revision } else { kv.create_revision };
            kvs.retain(|kv| (min == 0 || value(kv) >= min) && (max == 0 || value(kv) <= max));
        }
        let by = |a: &KeyValue, b: &KeyValue| match request.sort_target {
            0 => a.key.cmp(&b.key),
            1 => a.version.cmp(&b.version),
            2 => a.create_revision.cmp(&b.create_revision),
            3 => a.mod_revision.cmp(&b.mod_revision),
            _ => a.value.cmp(&b.value),
        };
        if request.sort_order == 2 {
            kvs.sort_by(|a, b| by(b, a));
        } else {
            kvs.sort_by(by);
        }
        let more = kvs.len() > limit;
        kvs.truncate(limit);
        if request.keys_only {
            for kv in &mut kvs {
                kv.value = Bytes::new();
                kv.lease = if request.sort_target == 4 { kv.lease } else { 0 };
            }
        }
        (kvs, more, count)
    }
}

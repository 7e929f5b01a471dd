//! Which leases exist and which keys they hold.
//!
//! Pure: time is no part of it. A lease ends only by an applied revoke, so members agree; deadlines are the leader's
//! business (server.md 5).

pub mod handle;

use std::collections::BTreeMap;
use std::collections::BTreeSet;

use bytes::Bytes;
use prost::Message;

use crate::common::answer::Answer;
use crate::common::failure::Failure;
use crate::proto::leasepb;
use crate::server::checkpoint::Bucket;
use crate::server::checkpoint::Buckets;
use crate::server::lease::handle::Change;

/// A change of a bucket: `None` deletes.
type Pair = (Bucket, Bytes, Option<Bytes>);

/// Longest time to live in seconds (server.md 5).
pub const TTL_SECONDS_MAX: i64 = 9_000_000_000;

/// One lease. Seconds throughout.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lease {
    pub id: i64,
    pub ttl_seconds: i64,
    /// What a checkpoint left of the time to live; 0 for all of it.
    pub remaining_seconds: i64,
    keys: BTreeSet<Bytes>,
}

/// All leases.
#[derive(Clone, Debug)]
pub struct Lessor {
    leases: BTreeMap<i64, Lease>,
    /// Shorter times to live are raised to this: ceil(1.5 x election timeout), the same on all members.
    ttl_seconds_min: i64,
    pairs: Vec<Pair>,
    /// Not shown yet.
    changes: Vec<Change>,
}

impl Lease {
    /// Keys attached now, ascending.
    pub fn keys(&self) -> impl Iterator<Item = &Bytes> {
        self.keys.iter()
    }

    fn to_pair(&self) -> (Bytes, Bytes) {
        let stored = leasepb::Lease { id: self.id, ttl: self.ttl_seconds, remaining_ttl: self.remaining_seconds };
        (lease_key(self.id), Bytes::from(stored.encode_to_vec()))
    }
}

impl Lessor {
    pub fn new(ttl_seconds_min: i64) -> Lessor {
        Lessor { leases: BTreeMap::new(), ttl_seconds_min, pairs: Vec::new(), changes: Vec::new() }
    }

    /// Reads bucket `lease` back. Keys are attached afterwards, from the index. A pair that cannot be read is damage.
    pub fn restore(buckets: &Buckets, ttl_seconds_min: i64) -> Result<Lessor, Failure> {
        let mut lessor = Lessor::new(ttl_seconds_min);
        for ((_, key), value) in
            buckets.range((Bucket::Lease, Bytes::new())..).take_while(|((b, _), _)| *b == Bucket::Lease)
        {
            let stored = leasepb::Lease::decode(value.clone()).ok().filter(|stored| lease_key(stored.id) == *key);
            let stored = stored.ok_or_else(|| Failure::Refused(format!("bucket lease holds a bad pair at {key:?}")))?;
            let lease = Lease {
                id: stored.id,
                ttl_seconds: stored.ttl.max(ttl_seconds_min),
                remaining_seconds: stored.remaining_ttl,
                keys: BTreeSet::new(),
            };
            lessor.leases.insert(lease.id, lease);
        }
        Ok(lessor)
    }

    /// Grants a lease. The id was chosen before; 0 is none. Times too short are raised; see the lease for what it got.
    pub fn grant(&mut self, id: i64, ttl_seconds: i64) -> Result<&Lease, Answer> {
        if id == 0 {
            return Err(Answer::LeaseNotFound);
        }
        if ttl_seconds > TTL_SECONDS_MAX {
            return Err(Answer::LeaseTtlTooLarge);
        }
        if self.leases.contains_key(&id) {
            return Err(Answer::LeaseExists);
        }
        let ttl_seconds = ttl_seconds.max(self.ttl_seconds_min);
        let lease = Lease { id, ttl_seconds, remaining_seconds: 0, keys: BTreeSet::new() };
        let (key, value) = lease.to_pair();
        self.pairs.push((Bucket::Lease, key, Some(value)));
        self.changes.push(Change::Granted { id, ttl_seconds });
        Ok(self.leases.entry(id).or_insert(lease))
    }

    /// Ends a lease: the keys it held, ascending, for the caller to delete.
    pub fn revoke(&mut self, id: i64) -> Result<Vec<Bytes>, Answer> {
        let lease = self.leases.remove(&id).ok_or(Answer::LeaseNotFound)?;
        self.pairs.push((Bucket::Lease, lease_key(id), None));
        self.changes.push(Change::Revoked { id });
        Ok(lease.keys.into_iter().collect())
    }

    /// Notes what is left of a lease's time, so that a new leader does not start it afresh. `persist`: from cluster
    /// version 3.6 on it is written down too (server.md 5). Nothing happens for a lease that does not exist: it was
    /// revoked while the checkpoint was on its way.
    pub fn checkpoint(&mut self, id: i64, remaining_seconds: i64, persist: bool) {
        let Some(lease) = self.leases.get_mut(&id) else { return };
        lease.remaining_seconds = remaining_seconds;
        self.changes.push(Change::Checkpointed { id, remaining_seconds });
        if persist {
            let (key, value) = lease.to_pair();
            self.pairs.push((Bucket::Lease, key, Some(value)));
        }
    }

    pub fn exists(&self, id: i64) -> bool {
        self.leases.contains_key(&id)
    }

    /// Attaches a key. Nothing happens for a lease that does not exist.
    pub fn attach(&mut self, id: i64, key: &Bytes) {
        if let Some(lease) = self.leases.get_mut(&id) {
            lease.keys.insert(key.clone());
        }
    }

    pub fn detach(&mut self, id: i64, key: &Bytes) {
        if let Some(lease) = self.leases.get_mut(&id) {
            lease.keys.remove(key);
        }
    }

    pub fn lease(&self, id: i64) -> Option<&Lease> {
        self.leases.get(&id)
    }

    /// All leases in id order.
    pub fn leases(&self) -> impl Iterator<Item = &Lease> {
        self.leases.values()
    }

    /// Changes of pairs since the last call, in order.
    pub fn take_pairs(&mut self) -> Vec<Pair> {
        std::mem::take(&mut self.pairs)
    }

    /// What happened to leases since the last call, in order.
    pub fn take_changes(&mut self) -> Vec<Change> {
        std::mem::take(&mut self.changes)
    }

    /// All pairs as they are now.
    pub fn buckets(&self) -> Buckets {
        let pairs = self.leases.values().map(Lease::to_pair);
        pairs.map(|(key, value)| ((Bucket::Lease, key), value)).collect()
    }
}

fn lease_key(id: i64) -> Bytes {
    Bytes::copy_from_slice(&id.to_be_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(text: &'static str) -> Bytes {
        Bytes::from(text)
    }

    #[test]
    fn grants_are_checked_in_etcds_order() {
        let mut lessor = Lessor::new(2);
        let mut check = |id: i64, ttl: i64, expected: Result<i64, Answer>| {
            assert_eq!(lessor.grant(id, ttl).map(|lease| lease.ttl_seconds), expected, "{id} {ttl}");
        };
        check(7, 60, Ok(60));
        check(7, 60, Err(Answer::LeaseExists));
        check(7, TTL_SECONDS_MAX + 1, Err(Answer::LeaseTtlTooLarge));
        check(-5, 0, Ok(2));
        check(8, -9, Ok(2));
        check(9, TTL_SECONDS_MAX, Ok(TTL_SECONDS_MAX));
        check(0, 60, Err(Answer::LeaseNotFound));
    }

    #[test]
    fn revoke_hands_out_the_attached_keys_in_order() {
        let mut lessor = Lessor::new(2);
        lessor.grant(1, 10).expect("new");
        lessor.grant(2, 10).expect("new");
        for text in ["b", "a", "c"] {
            lessor.attach(1, &key(text));
        }
        lessor.detach(1, &key("c"));
        lessor.attach(3, &key("x"));
        assert_eq!(lessor.revoke(1), Ok(vec![key("a"), key("b")]));
        assert_eq!(lessor.revoke(1), Err(Answer::LeaseNotFound));
        assert_eq!(lessor.revoke(2), Ok(Vec::new()));
        assert!(!lessor.exists(3));
    }

    #[test]
    fn pairs_are_etcds_and_restore_the_leases() {
        let mut lessor = Lessor::new(2);
        lessor.grant(1, 10).expect("new");
        lessor.grant(-1, 20).expect("new");
        lessor.grant(5, 30).expect("new");
        lessor.checkpoint(-1, 7, true);
        lessor.checkpoint(1, 7, false);
        lessor.checkpoint(9, 7, true);
        assert_eq!(lessor.take_changes().len(), 5);
        lessor.revoke(5).expect("exists");
        let mut written = Buckets::new();
        for (bucket, key, value) in lessor.take_pairs() {
            match value {
                Some(value) => written.insert((bucket, key), value),
                None => written.remove(&(bucket, key)),
            };
        }
        let one = (Bucket::Lease, Bytes::from_static(&[0, 0, 0, 0, 0, 0, 0, 1]));
        assert_eq!(written[&one].as_ref(), [0x08, 1, 0x10, 10]);
        let back = Lessor::restore(&written, 2).expect("pairs of our own");
        assert_eq!(back.lease(-1).map(|lease| (lease.ttl_seconds, lease.remaining_seconds)), Some((20, 7)));
        assert_eq!(back.lease(1).map(|lease| lease.remaining_seconds), Some(0));
        assert_eq!(back.leases().count(), 2);
        assert_eq!(back.buckets(), written);
        let bad = Buckets::from([((Bucket::Lease, key("short")), key(""))]);
        assert!(Lessor::restore(&bad, 2).is_err());
    }
}

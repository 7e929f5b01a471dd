//! What everybody but apply sees of the leases: how long each lives, and what changed since somebody last looked.
//!
//! Apply shows changes before it answers anyone, so a lease that was told to exist exists here. Keys stay with apply:
//! only few ask for them.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::MutexGuard;
use std::sync::PoisonError;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering;

use crate::server::lease::Lessor;

/// A lease as the log has it. Seconds throughout.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LeaseTime {
    pub ttl_seconds: i64,
    /// What a checkpoint left of the time to live; 0 for all of it.
    pub remaining_seconds: i64,
}

/// What an applied entry did to a lease.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    Granted { id: i64, ttl_seconds: i64 },
    Revoked { id: i64 },
    Checkpointed { id: i64, remaining_seconds: i64 },
}

/// What a follower of the changes has missed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum News {
    /// In order of application.
    Changes(Vec<Change>),
    /// Nobody followed before, or a snapshot replaced everything: these are all leases now.
    Everything(Vec<(i64, LeaseTime)>),
}

/// Reads the leases from any thread. Clones show the same.
#[derive(Clone, Debug, Default)]
pub struct LeasesHandle {
    shared: Arc<Shared>,
}

#[derive(Debug, Default)]
struct Shared {
    state: Mutex<State>,
    /// The term of the newest applied entry.
    applied_term: AtomicU64,
}

#[derive(Debug, Default)]
struct State {
    leases: BTreeMap<i64, LeaseTime>,
    /// Kept while somebody follows, who takes them at least twice a second; `None` stands for everything.
    changes: Option<Vec<Change>>,
    followed: bool,
}

impl LeasesHandle {
    /// Shows what a batch of entries did, the last of which is of `applied_term`.
    pub fn publish(&self, changes: Vec<Change>, applied_term: u64) {
        if !changes.is_empty() {
            let mut state = self.lock();
            for change in &changes {
                state.note(*change);
            }
            if state.followed
                && let Some(kept) = &mut state.changes
            {
                kept.extend(changes);
            }
        }
        // Behind the changes: whoever sees a term sees everything that was applied before it began.
        self.shared.applied_term.store(applied_term, Ordering::Release);
    }

    /// Shows the whole state: after a start or a snapshot.
    pub fn replace(&self, lessor: &Lessor, applied_term: u64) {
        let leases = lessor.leases().map(|lease| {
            (lease.id, LeaseTime { ttl_seconds: lease.ttl_seconds, remaining_seconds: lease.remaining_seconds })
        });
        let mut state = self.lock();
        state.leases = leases.collect();
        state.changes = None;
        drop(state);
        self.shared.applied_term.store(applied_term, Ordering::Release);
    }

    /// The term of the newest applied entry.
    pub fn applied_term(&self) -> u64 {
        self.shared.applied_term.load(Ordering::Acquire)
    }

    pub fn lease(&self, id: i64) -> Option<LeaseTime> {
        self.lock().leases.get(&id).copied()
    }

    /// All ids, ascending.
    pub fn ids(&self) -> Vec<i64> {
        self.lock().leases.keys().copied().collect()
    }

    /// Everything at first and after a snapshot, else what changed since the last call. One follower at a time.
    pub fn follow(&self) -> News {
        let mut state = self.lock();
        state.followed = true;
        match &mut state.changes {
            Some(changes) => News::Changes(std::mem::take(changes)),
            None => {
                state.changes = Some(Vec::new());
                News::Everything(state.leases.iter().map(|(id, time)| (*id, *time)).collect())
            }
        }
    }

    /// Changes are no longer kept.
    pub fn unfollow(&self) {
        let mut state = self.lock();
        state.followed = false;
        state.changes = None;
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.shared.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn note(&mut self, change: Change) {
        match change {
            Change::Granted { id, ttl_seconds } => {
                self.leases.insert(id, LeaseTime { ttl_seconds, remaining_seconds: 0 });
            }
            Change::Revoked { id } => {
                self.leases.remove(&id);
            }
            Change::Checkpointed { id, remaining_seconds } => {
                if let Some(time) = self.leases.get_mut(&id) {
                    time.remaining_seconds = remaining_seconds;
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_follower_gets_everything_once_and_then_what_changed() {
        let handle = LeasesHandle::default();
        let granted = |id| Change::Granted { id, ttl_seconds: 10 };
        let time = |remaining_seconds| LeaseTime { ttl_seconds: 10, remaining_seconds };
        handle.publish(vec![granted(1), granted(2), granted(-3)], 4);
        assert_eq!((handle.applied_term(), handle.ids()), (4, vec![-3, 1, 2]));
        assert_eq!(handle.follow(), News::Everything(vec![(-3, time(0)), (1, time(0)), (2, time(0))]));
        let changes = vec![Change::Revoked { id: 1 }, Change::Checkpointed { id: 2, remaining_seconds: 7 }, granted(1)];
        handle.publish(changes.clone(), 5);
        assert_eq!((handle.lease(2), handle.lease(9)), (Some(time(7)), None));
        assert_eq!(handle.follow(), News::Changes(changes));
        assert_eq!(handle.follow(), News::Changes(Vec::new()));
        handle.unfollow();
        handle.publish(vec![Change::Revoked { id: -3 }], 5);
        assert_eq!(handle.follow(), News::Everything(vec![(1, time(0)), (2, time(7))]));
        handle.replace(&Lessor::new(2), 6);
        assert_eq!((handle.follow(), handle.applied_term()), (News::Everything(Vec::new()), 6));
    }
}

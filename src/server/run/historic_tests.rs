//! Bugs of history that took several parts of a member to happen: its state, the image of it, its database, its log.
//!
//! A member that never stops is compared with members that went on from an image or from a checkpoint of it, taken behind
//! each entry in turn. The table of all such bugs is in `tests/it/historic/mod.rs`.

use std::collections::BTreeSet;
use std::fs::File;
use std::io;
use std::io::Seek;
use std::ops::ControlFlow;
use std::path::Path;
use std::sync::Arc;

use prometheus::Registry;

use super::ports::ViewRecords;
use crate::common::ids::ClusterId;
use crate::common::ids::MemberId;
use crate::common::revision::Revision;
use crate::disk::sim::Dice;
use crate::proto::raft_numbers as numbers;
use crate::proto::raftinternalpb::InternalRaftRequest;
use crate::proto::raftpb::ConfChange;
use crate::proto::raftpb::ConfState;
use crate::proto::raftpb::Entry;
use crate::proto::raftpb::Message;
use crate::server::apply::alarm::AlarmsHandle;
use crate::server::apply::machine::Machine;
use crate::server::apply::outcome::Effect;
use crate::server::apply::outcome::Step;
use crate::server::apply::ports::FrozenState;
use crate::server::apply::published::Published;
use crate::server::apply::testing::Written;
use crate::server::apply::testing::bootstrap;
use crate::server::apply::testing::compaction;
use crate::server::apply::testing::conf_entry;
use crate::server::apply::testing::delete;
use crate::server::apply::testing::entry;
use crate::server::apply::testing::grant;
use crate::server::apply::testing::put;
use crate::server::apply::testing::revoke;
use crate::server::apply::testing::txn_of_delete;
use crate::server::apply::testing::txn_of_puts;
use crate::server::checkpoint::Applied;
use crate::server::checkpoint::Buckets;
use crate::server::checkpoint::Checkpoint;
use crate::server::checkpoint::store::RedbCheckpoint;
use crate::server::checkpoint::tables::EVERYTHING_LAST;
use crate::server::cluster::handle::ClusterHandle;
use crate::server::mvcc::hash::hash_view;
use crate::server::snapshot::ImageSink;
use crate::server::snapshot::contents::Frozen;
use crate::server::snapshot::install::DATABASE;
use crate::server::snapshot::install::Installer;
use crate::server::snapshot::metrics::SnapshotMetrics;
use crate::server::snapshot::send::write_image;

const OFF: i64 = -1;

/// A state machine and what its flusher has written.
struct Member {
    machine: Machine,
    written: Written,
}

impl Member {
    fn new() -> Member {
        let written = Written::default();
        Member { machine: written.machine(OFF), written }
    }

    fn apply(&mut self, entry: &Entry) -> Step {
        let step = self.machine.apply_entry(entry).unwrap();
        while self.machine.store().is_compacting() {
            self.machine.compaction_step(100).unwrap();
        }
        if let Some(batch) = self.machine.take_batch() {
            self.written.write(&batch);
            let last = batch.records.last().map(|record| record.revision);
            self.machine.flushed(Arc::new(self.written.tables.clone()), last);
        }
        let cluster = ClusterHandle::new(ClusterId(9), MemberId(1));
        let space = self.machine.config().space.clone();
        let published = Published::new(cluster, AlarmsHandle::default(), space, self.machine.store().views());
        self.machine.publish(&published);
        step
    }

    fn restarted(&self) -> Member {
        Member { machine: self.written.machine(OFF), written: self.written.clone() }
    }

    /// Who is sent this member's state as an image, installs it, and goes on from it.
    fn by_image(&self) -> Member {
        let dir = tempfile::tempdir().unwrap();
        let dir = dir.path();
        let FrozenState { view, buckets, applied, v2_store } = self.machine.freeze();
        let index = applied.index;
        let state = Frozen { records: Arc::new(ViewRecords(view)), buckets, applied };
        let mut image = write_image(&state, dir, v2_store).unwrap();
        image.file.rewind().unwrap();
        let installer = Installer::new(dir, 0, SnapshotMetrics::register(&Registry::new()));
        let mut incoming = File::create(installer.incoming_path(index)).unwrap();
        io::copy(&mut image.file, &mut incoming).unwrap();
        installer.prepare(&Message { snapshot: Some(image.snapshot), ..Message::default() }).unwrap();
        installer.finish(index).unwrap();
        let written = written(&dir.join(DATABASE));
        Member { machine: written.machine(OFF), written }
    }

    fn state(&self) -> (Applied, Buckets, Vec<String>, u32) {
        let view = self.machine.store().views().current();
        let hash = hash_view(&view, view.revision()).unwrap().hash;
        // Each lease with the keys attached to it.
        let leases = self.machine.lessor().leases().map(|lease| format!("{lease:?}")).collect();
        (self.machine.applied().clone(), self.machine.buckets(), leases, hash)
    }
}

/// What a database on disk holds.
fn written(path: &Path) -> Written {
    let checkpoint = RedbCheckpoint::open(path).unwrap();
    let (buckets, applied) = checkpoint.buckets().unwrap();
    let mut records = Vec::new();
    let visit = &mut |record| {
        records.push(record);
        ControlFlow::Continue(())
    };
    checkpoint.tables().unwrap().records(Revision::default(), EVERYTHING_LAST, visit).unwrap();
    let tables = Written::default().tables.with(&records, &[]);
    Written { tables, buckets, applied }
}

/// Applies the log at once, and again by a member that went on from an image or a checkpoint, at each place in it.
fn same_however_it_got_there(log: &[Entry]) -> Vec<Step> {
    let mut straight = Member::new();
    let mut steps = Vec::new();
    let mut others = Vec::new();
    for entry in log {
        steps.push(straight.apply(entry));
        let behind = entry.index as usize;
        others.push((behind, "an image", straight.by_image()));
        others.push((behind, "a restart", straight.restarted()));
    }
    for (behind, what, mut other) in others {
        for (entry, step) in log.iter().zip(&steps).skip(behind) {
            assert_eq!(other.apply(entry), *step, "entry {} after {what} behind {behind}", entry.index);
        }
        assert_eq!(other.state(), straight.state(), "{what} behind {behind}");
    }
    steps
}

fn numbered(mut log: Vec<Entry>, requests: &[InternalRaftRequest]) -> Vec<Entry> {
    for request in requests {
        log.push(entry(log.len() as u64 + 1, request));
    }
    log
}

/// B6, etcd 11689 and 12535; B7, etcd 13205: a member that was sent a snapshot, or had restarted, missed a lease or the
/// keys attached to it, and the next revoke deleted keys on the others only. What ends a lease is the log alone, so
/// every member must hold the same leases with the same keys at every index.
#[test]
fn b06_leases_and_their_keys_are_the_same_after_an_image_and_after_a_restart() {
    let log = numbered(
        bootstrap(1),
        &[
            grant(1, 60),
            grant(2, 60),
            grant(3, 60),
            put("a", "v", 1),
            put("b", "v", 1),
            put("c", "v", 2),
            // Moves to another lease, leaves one, goes with its key, comes back.
            put("a", "v", 2),
            put("d", "v", 3),
            put("d", "v", 0),
            txn_of_delete("b"),
            put("b", "v", 3),
            txn_of_puts(&["c"]),
            revoke(2),
            grant(2, 60),
            put("e", "v", 2),
            compaction(6),
            revoke(3),
            revoke(3),
            put("f", "v", 3),
            delete("a", "c"),
            revoke(1),
            revoke(2),
        ],
    );
    let steps = same_however_it_got_there(&log);
    let refused = steps.iter().filter(|step| step.outcome.as_ref().is_some_and(|outcome| outcome.result.is_err()));
    assert_eq!(refused.count(), 2, "the second revoke of one lease, and the put with it");
}

/// A change of some kind for one of a few members, accepted or not.
fn some_change(dice: &mut Dice, index: u64) -> Entry {
    let id = 1 + dice.below(6);
    let context = |extra: &str| format!(r#"{{"id":{id},"peerURLs":["http://h:{id}"]{extra}}}"#);
    match dice.below(8) {
        0 | 1 => conf_entry(index, numbers::CONF_ADD_LEARNER, id, &context(r#","isLearner":true"#)),
        2 | 3 => conf_entry(index, numbers::CONF_ADD_NODE, id, &context(r#","isPromote":true"#)),
        4 => conf_entry(index, numbers::CONF_ADD_NODE, id, &context("")),
        5 => conf_entry(index, numbers::CONF_UPDATE_NODE, id, &context("")),
        6 => conf_entry(index, numbers::CONF_REMOVE_NODE, id, ""),
        _ => entry(index, &put("k", "v", 0)),
    }
}

/// Who votes and who learns.
type Roles = (BTreeSet<u64>, BTreeSet<u64>);

fn roles(state: &ConfState) -> Roles {
    (state.voters.iter().copied().collect(), state.learners.iter().copied().collect())
}

/// What raft makes of the changes that apply tells it.
fn tell((voters, learners): &mut Roles, change: &ConfChange) {
    let id = change.node_id;
    if change.r#type == numbers::CONF_UPDATE_NODE {
        return;
    }
    voters.remove(&id);
    learners.remove(&id);
    match change.r#type {
        numbers::CONF_ADD_NODE => drop(voters.insert(id)),
        numbers::CONF_ADD_LEARNER => drop(learners.insert(id)),
        _ => {}
    }
}

/// B12, etcd 19557 and 19563, 20967, 20339: the members stood in two places, and these came to differ: promotions were
/// lost, removed members came back, an upgrade failed. What raft is told, the ConfState of the applied index and the
/// list of members must name the same voters and learners behind every entry, by whatever way a member got there.
#[test]
fn b12_raft_database_and_image_name_the_same_members() {
    let (mut accepted, mut refused) = (0, 0);
    for seed in 0..6 {
        let mut dice = Dice::new(seed);
        let mut log = bootstrap(3);
        for index in 4..=16 {
            log.push(some_change(&mut dice, index));
        }
        let mut told = Roles::default();
        let mut member = Member::new();
        for (entry, step) in log.iter().zip(same_however_it_got_there(&log)) {
            assert_eq!(member.apply(entry), step);
            for effect in &step.effects {
                match effect {
                    Effect::ConfChange(Some(change)) => {
                        tell(&mut told, change);
                        accepted += 1;
                    }
                    Effect::ConfChange(None) => refused += 1,
                    _ => {}
                }
            }
            for (what, member) in
                [("it", &member), ("a restart", &member.restarted()), ("an image", &member.by_image())]
            {
                let (applied, listed) =
                    (&member.machine.applied().conf_state, member.machine.membership().conf_state());
                let what = format!("{what}, seed {seed}, entry {}", entry.index);
                assert_eq!(roles(applied), told, "what raft was told, {what}");
                assert_eq!(roles(applied), roles(&listed), "the members, {what}");
            }
        }
    }
    assert!(accepted > 30 && refused > 10, "{accepted} accepted, {refused} refused");
}

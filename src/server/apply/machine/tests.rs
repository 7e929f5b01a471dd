//! Facts about the machine: verdicts under alarms, order, configuration changes, and that a restart changes nothing.

use super::*;

use prost::Message;

use crate::proto::etcdserverpb::AlarmRequest;
use crate::proto::etcdserverpb::LeaseCheckpoint;
use crate::proto::etcdserverpb::LeaseCheckpointRequest;
use crate::proto::etcdserverpb::RangeRequest;
use crate::proto::membershippb::Attributes;
use crate::proto::membershippb::ClusterMemberAttrSetRequest;
use crate::proto::membershippb::ClusterVersionSetRequest;
use crate::proto::membershippb::DowngradeInfoSetRequest;
use crate::proto::raftinternalpb::InternalRaftRequest;
use crate::server::apply::outcome::PeerChange;
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
use crate::server::checkpoint::Checkpoint;
use crate::server::checkpoint::store::RedbCheckpoint;
use crate::server::mvcc::testing::dice::Dice;
use crate::server::mvcc::view::Keys;

const OFF: i64 = -1;

fn apply(machine: &mut Machine, request: &InternalRaftRequest) -> Step {
    let index = machine.applied().index + 1;
    machine.apply_entry(&entry(index, request)).expect("an entry that can be applied")
}

/// What the proposer of the request hears.
fn verdict(machine: &mut Machine, request: &InternalRaftRequest) -> Result<Reply, Answer> {
    apply(machine, request).outcome.expect("it has an id").result
}

fn alarm(action: AlarmAction, member_id: u64, r#type: AlarmType) -> InternalRaftRequest {
    let alarm = AlarmRequest { action: action as i32, member_id, alarm: r#type as i32 };
    InternalRaftRequest { alarm: Some(alarm), ..InternalRaftRequest::default() }
}

fn range() -> InternalRaftRequest {
    let range = RangeRequest { key: Bytes::from_static(b"a"), ..RangeRequest::default() };
    InternalRaftRequest { range: Some(range), ..InternalRaftRequest::default() }
}

fn cluster_version(ver: &str) -> InternalRaftRequest {
    let set = ClusterVersionSetRequest { ver: ver.to_owned() };
    InternalRaftRequest { cluster_version_set: Some(set), ..InternalRaftRequest::default() }
}

fn attributes(member_id: u64, name: &str) -> InternalRaftRequest {
    let member_attributes = Some(Attributes { name: name.to_owned(), client_urls: vec![format!("http://c:{name}")] });
    let set = ClusterMemberAttrSetRequest { member_id, member_attributes };
    InternalRaftRequest { cluster_member_attr_set: Some(set), ..InternalRaftRequest::default() }
}

fn checkpoint(id: i64, remaining_ttl: i64) -> InternalRaftRequest {
    let checkpoints = vec![LeaseCheckpoint { id, remaining_ttl }];
    let request = LeaseCheckpointRequest { checkpoints };
    InternalRaftRequest { lease_checkpoint: Some(request), ..InternalRaftRequest::default() }
}

fn downgrade(enabled: bool) -> InternalRaftRequest {
    let set = DowngradeInfoSetRequest { enabled, ver: "3.6.0".to_owned() };
    InternalRaftRequest { downgrade_info_set: Some(set), ..InternalRaftRequest::default() }
}

#[test]
fn alarms_forbid_what_etcd_forbids() {
    let kinds: [(&str, InternalRaftRequest); 11] = [
        ("range", range()),
        ("put", put("b", "v", 0)),
        ("put with an unknown lease", put("b", "v", 99)),
        ("delete", delete("a", "")),
        ("txn of puts", txn_of_puts(&["c"])),
        ("txn of a delete", txn_of_delete("a")),
        ("compaction", compaction(2)),
        ("grant", grant(8, 60)),
        ("grant of a taken id", grant(7, 60)),
        ("revoke", revoke(7)),
        ("alarm", alarm(AlarmAction::Get, 0, AlarmType::None)),
    ];
    let check = |raised: &[AlarmType], name: &str, request: &InternalRaftRequest, expected: Option<Answer>| {
        let mut machine = Written::default().machine(OFF);
        verdict(&mut machine, &grant(7, 60)).expect("a lease");
        verdict(&mut machine, &put("a", "v", 7)).expect("a put");
        for r#type in raised {
            verdict(&mut machine, &alarm(AlarmAction::Activate, 5, *r#type)).expect("an alarm");
        }
        assert_eq!(verdict(&mut machine, request).err(), expected, "{name} under {raised:?}");
    };
    for (name, request) in &kinds {
        let own = match *name {
            "put with an unknown lease" => Some(Answer::LeaseNotFound),
            "grant of a taken id" => Some(Answer::LeaseExists),
            _ => None,
        };
        check(&[], name, request, own.clone());
        let adds = name.starts_with("put") || name.starts_with("grant") || *name == "txn of puts";
        check(&[AlarmType::Nospace], name, request, if adds { Some(Answer::NoSpace) } else { own });
        let corrupt = (*name != "alarm").then_some(Answer::Corrupt);
        check(&[AlarmType::Corrupt], name, request, corrupt.clone());
        check(&[AlarmType::Nospace, AlarmType::Corrupt], name, request, corrupt);
    }
}

#[test]
fn disarming_lifts_the_ban() {
    let mut machine = Written::default().machine(OFF);
    assert_eq!(apply(&mut machine, &alarm(AlarmAction::Activate, 5, AlarmType::Nospace)).effects, [Effect::Alarms]);
    assert_eq!(verdict(&mut machine, &put("a", "v", 0)), Err(Answer::NoSpace));
    verdict(&mut machine, &alarm(AlarmAction::Deactivate, 5, AlarmType::Nospace)).expect("it was up");
    verdict(&mut machine, &put("a", "v", 0)).expect("no alarm");
}

#[test]
fn a_write_beyond_the_quota_is_applied_and_answered_with_the_space_error() {
    let mut machine = Written::default().machine(300);
    let step = apply(&mut machine, &put("k", &"v".repeat(100), 0));
    assert_eq!(step.outcome.map(|outcome| outcome.result), Some(Err(Answer::NoSpace)));
    assert_eq!(step.effects, [Effect::RaiseNoSpace]);
    assert_eq!(machine.revision(), 2);
    assert_eq!(machine.store().count(&crate::common::key_range::KeyRange::One(Bytes::from_static(b"k")), 2), 1);
    // One that fails for another reason says so, and asks for no alarm.
    let step = apply(&mut machine, &put("k", &"v".repeat(100), 99));
    assert_eq!(step.outcome.map(|outcome| outcome.result), Some(Err(Answer::LeaseNotFound)));
    assert_eq!(step.effects, []);
}

#[test]
fn entries_are_applied_once_and_in_order() {
    let mut machine = Written::default().machine(OFF);
    machine.apply_entry(&entry(1, &put("a", "1", 0))).expect("the first");
    assert_eq!(machine.apply_entry(&entry(1, &put("a", "2", 0))).expect("known"), Step::default());
    assert_eq!(machine.revision(), 2);
    let gap = machine.apply_entry(&entry(3, &put("a", "3", 0))).expect_err("a gap").to_string();
    assert_eq!(gap, "log entry 3 cannot be applied behind entry 1");
    let empty = Entry { index: 2, term: 3, ..Entry::default() };
    let step = machine.apply_entry(&empty).expect("a leader's first entry");
    assert_eq!(step, Step { effects: vec![Effect::TermStarted], ..Step::default() });
    assert_eq!((machine.applied().index, machine.applied().term), (2, 3));
}

#[test]
fn replies_carry_the_revision_of_their_entry() {
    let mut machine = Written::default().machine(OFF);
    let mut check = |request: InternalRaftRequest, expected: i64| {
        let reply = verdict(&mut machine, &request).expect("applied");
        let header = match reply {
            Reply::Range(response) => response.header,
            Reply::Put(response) => response.header,
            Reply::DeleteRange(response) => response.header,
            Reply::Txn(response) => response.header,
            Reply::Compaction(response) => response.header,
            Reply::Alarm(response) => response.header,
            Reply::LeaseGrant(response) => response.header,
            Reply::LeaseRevoke(response) => response.header,
            Reply::Done { revision } => header(revision),
            Reply::Members(_) => None,
        };
        assert_eq!(header.map(|header| header.revision), Some(expected), "{request:?}");
    };
    check(grant(7, 60), 1);
    check(put("a", "v", 7), 2);
    check(put("b", "v", 7), 3);
    check(range(), 3);
    check(txn_of_puts(&["c", "d"]), 4);
    check(delete("x", ""), 4);
    check(delete("c", ""), 5);
    check(alarm(AlarmAction::Get, 0, AlarmType::None), 5);
    check(compaction(3), 5);
    check(cluster_version("3.6.0"), 5);
    check(revoke(7), 6);
    assert_eq!(verdict(&mut machine, &compaction(9)), Err(Answer::FutureRevision));
    assert_eq!(verdict(&mut machine, &compaction(3)), Err(Answer::Compacted));
}

#[test]
fn revoke_deletes_the_attached_keys_in_one_revision() {
    let mut machine = Written::default().machine(OFF);
    for request in [grant(7, 60), grant(8, 60), put("b", "v", 7), put("a", "v", 7), put("a", "v", 8), put("c", "v", 7)]
    {
        verdict(&mut machine, &request).expect("applied");
    }
    verdict(&mut machine, &revoke(7)).expect("it exists");
    let records = machine.store().recent(6, 6);
    let keys: Vec<&[u8]> = records.iter().map(|record| record.kv.key.as_ref()).collect();
    assert_eq!(keys, [b"b", b"c"]);
    assert!(records.iter().all(|record| record.tombstone));
    assert_eq!(verdict(&mut machine, &revoke(7)), Err(Answer::LeaseNotFound));
    verdict(&mut machine, &delete("a", "")).expect("applied");
    verdict(&mut machine, &revoke(8)).expect("it exists");
    assert_eq!(machine.revision(), 7, "a lease without keys leaves the revision");
}

#[test]
fn configuration_changes_tell_raft_the_peers_and_the_waiter() {
    let check = |entry: Entry, raft: Option<(u64, u64)>, peer: Option<PeerChange>, answer: Option<Answer>| {
        let mut machine = Written::default().machine(OFF);
        for entry in bootstrap(3) {
            machine.apply_entry(&entry).expect("a bootstrap entry");
        }
        let learner = conf_entry(4, 3, 9, r#"{"id":9,"peerURLs":["http://h:9"],"isLearner":true}"#);
        machine.apply_entry(&learner).expect("a learner");
        let before = machine.applied().conf_state.clone();
        let step = machine.apply_entry(&entry).expect("a change");
        let told = step.effects.iter().find_map(|effect| match effect {
            Effect::ConfChange(change) => Some(change.clone()),
            _ => None,
        });
        let told = told.expect("raft hears of every change");
        assert!(told.iter().all(|change| change.id == 0 && change.context.is_empty()));
        assert_eq!(told.map(|change| (change.r#type, change.node_id)), raft);
        let peers = step.effects.iter().find_map(|effect| match effect {
            Effect::Peer(change) => Some(change.clone()),
            _ => None,
        });
        assert_eq!(peers, peer);
        assert_eq!(step.effects.contains(&Effect::Cluster), answer.is_none());
        let result = step.outcome.expect("it has an id").result;
        assert_eq!(result.clone().err(), answer);
        if let Ok(Reply::Members(members)) = result {
            assert_eq!(members.len(), machine.membership().members().count());
        }
        assert_eq!(machine.applied().conf_state, machine.membership().conf_state());
        assert_eq!(machine.applied().conf_state == before, raft.is_none());
    };
    let urls = |port: u64| vec![format!("http://h:{port}")];
    let id = MemberId;
    check(
        conf_entry(5, 0, 4, r#"{"id":4,"peerURLs":["http://h:4"]}"#),
        Some((0, 4)),
        Some(PeerChange::Added(id(4), urls(4))),
        None,
    );
    check(conf_entry(5, 0, 9, r#"{"id":9,"peerURLs":null,"isPromote":true}"#), Some((0, 9)), None, None);
    check(conf_entry(5, 1, 2, ""), Some((1, 2)), Some(PeerChange::Removed(id(2))), None);
    check(
        conf_entry(5, 2, 2, r#"{"id":2,"peerURLs":["http://h:8"]}"#),
        None,
        Some(PeerChange::Updated(id(2), urls(8))),
        None,
    );
    check(
        conf_entry(5, 3, 4, r#"{"id":4,"peerURLs":["http://h:4"],"isLearner":true}"#),
        None,
        None,
        Some(Answer::TooManyLearners),
    );
    check(conf_entry(5, 0, 1, r#"{"id":1,"peerURLs":["http://h:7"]}"#), None, None, Some(Answer::MemberExists));
    check(conf_entry(5, 1, 77, ""), None, None, Some(Answer::MemberNotFound));
}

#[test]
fn the_cluster_version_sets_the_storage_version_from_3_6_on() {
    let mut machine = Written::default().machine(OFF);
    let storage = |machine: &Machine| {
        machine.buckets().get(&(Bucket::Meta, Bytes::from_static(cluster::STORAGE_VERSION_KEY))).cloned()
    };
    verdict(&mut machine, &cluster_version("3.5.0")).expect("applied");
    assert_eq!(storage(&machine), None);
    verdict(&mut machine, &cluster_version("3.7.0")).expect("applied");
    assert_eq!(storage(&machine), Some(Bytes::from_static(b"3.7.0")));
    let index = machine.applied().index + 1;
    assert!(machine.apply_entry(&entry(index, &cluster_version("4.0.0"))).is_err());
}

#[test]
fn data_with_authentication_is_refused() {
    let mut written = Written::default();
    let key = (Bucket::Auth, Bytes::from_static(AUTH_ENABLED_KEY));
    written.buckets.insert(key.clone(), Bytes::from_static(&[0]));
    assert_eq!(written.machine(OFF).buckets(), written.buckets, "what is not understood is carried along");
    written.buckets.insert(key, Bytes::from_static(&[1]));
    let config = written.machine_config(OFF);
    let tables = Arc::new(written.tables.clone());
    assert!(Machine::restore(config, tables, &written.buckets, written.applied.clone()).is_err());
}

/// Entries of every kind, from a seed.
fn log(seed: u64, entries: usize) -> Vec<Entry> {
    const KEYS: [&str; 6] = ["a", "b", "c", "d", "e", "f"];
    let mut dice = Dice::new(seed);
    let mut log = bootstrap(3);
    // From 3.6 on lease checkpoints are stored; before, a restart forgets them, in etcd too.
    log.push(entry(4, &cluster_version("3.6.0")));
    for index in log.len() as u64 + 1..=entries as u64 {
        let key = KEYS[dice.below(6) as usize];
        let lease = dice.below(4) as i64;
        log.push(match dice.below(20) {
            0..=6 => entry(index, &put(key, &format!("{index}"), 0)),
            7..=8 => entry(index, &put(key, "leased", lease)),
            9 => entry(index, &delete(key, "e")),
            10 => entry(index, &txn_of_puts(&[key, "g"])),
            11 => entry(index, &txn_of_delete(key)),
            12 => entry(index, &compaction((index / 3) as i64)),
            13 => entry(index, &grant(lease, 60)),
            14 => entry(index, &revoke(lease)),
            15 => entry(index, &checkpoint(lease, 5)),
            16 => {
                let action = if dice.below(3) == 0 { AlarmAction::Activate } else { AlarmAction::Deactivate };
                entry(index, &alarm(action, 1, AlarmType::Nospace))
            }
            17 => match dice.below(3) {
                0 => entry(index, &cluster_version("3.6.0")),
                1 => entry(index, &downgrade(index % 2 == 0)),
                _ => entry(index, &attributes(dice.below(5), "new")),
            },
            18 => match dice.below(3) {
                0 => conf_entry(index, 3, 9, r#"{"id":9,"peerURLs":["http://h:9"],"isLearner":true}"#),
                1 => conf_entry(index, 0, 9, r#"{"id":9,"peerURLs":null,"isPromote":true}"#),
                _ => conf_entry(index, 1, 9, ""),
            },
            _ => Entry { index, term: 2, ..Entry::default() },
        });
    }
    log
}

/// Does all physical compaction that is due and writes what changed.
fn settle(machine: &mut Machine, written: &mut Written) {
    while machine.store().is_compacting() {
        machine.compaction_step(3).expect("tables of our own");
    }
    if let Some(batch) = machine.take_batch() {
        written.write(&batch);
        machine.flushed(Arc::new(written.tables.clone()), batch.records.last().map(|record| record.revision));
    }
}

/// Everything that two members must have in common.
fn state(machine: &mut Machine) -> (Applied, Buckets, String, i64, u64) {
    let view = machine.store().views().current();
    let mut records = String::new();
    view.records(Revision::default(), Revision::new(i64::MAX, i64::MAX), &mut |record| {
        records.push_str(&format!("{record:?}\n"));
        std::ops::ControlFlow::Continue(())
    })
    .expect("tables of our own");
    let leases: Vec<String> = machine.lessor().leases().map(|lease| format!("{lease:?}")).collect();
    records.push_str(&leases.join("\n"));
    (machine.applied().clone(), machine.buckets(), records, machine.revision(), machine.store().bytes_in_use())
}

#[test]
fn the_same_entries_give_the_same_state_and_verdicts() {
    for seed in 0..4 {
        let log = log(seed, 150);
        let run = |batches: usize| {
            let (mut machine, mut written) = (Written::default().machine(OFF), Written::default());
            let mut steps = Vec::new();
            for entries in log.chunks(batches) {
                steps.extend(entries.iter().map(|entry| machine.apply_entry(entry).expect("can be applied")));
                settle(&mut machine, &mut written);
            }
            machine.store.publish();
            assert_eq!(machine.buckets(), written.buckets, "what was written is what is held");
            (steps, state(&mut machine))
        };
        let (steps, expected) = run(1);
        assert_eq!(run(7), (steps, expected), "seed {seed}");
    }
}

#[test]
fn a_restart_between_any_two_entries_changes_nothing() {
    let log = log(11, 120);
    let mut straight = Written::default().machine(OFF);
    let mut straight_written = Written::default();
    let mut steps = Vec::new();
    for entry in &log {
        steps.push(straight.apply_entry(entry).expect("can be applied"));
        settle(&mut straight, &mut straight_written);
    }
    straight.store.publish();
    let expected = state(&mut straight);
    for stop in 0..log.len() {
        // The crash loses what was not written: up to eight entries.
        let (mut machine, mut written) = (Written::default().machine(OFF), Written::default());
        for entry in &log[..stop] {
            machine.apply_entry(entry).expect("can be applied");
            if entry.index % 8 == 0 {
                settle(&mut machine, &mut written);
            }
        }
        let mut machine = written.machine(OFF);
        assert_eq!(machine.applied(), &written.applied);
        let first = machine.applied().index as usize;
        for (entry, step) in log.iter().zip(&steps) {
            let again = machine.apply_entry(entry).expect("can be applied");
            let known = entry.index as usize <= first;
            assert_eq!(
                again,
                if known { Step::default() } else { step.clone() },
                "entry {} after a stop at {stop}",
                entry.index
            );
            if !known {
                settle(&mut machine, &mut written);
            }
        }
        machine.store.publish();
        assert_eq!(state(&mut machine), expected, "stopped at {stop}");
    }
}

#[test]
fn a_frozen_state_restores_the_same_machine() {
    let mut machine = Written::default().machine(OFF);
    let mut written = Written::default();
    for entry in log(5, 90) {
        machine.apply_entry(&entry).expect("can be applied");
    }
    settle(&mut machine, &mut written);
    machine.store.publish();
    let frozen = machine.freeze();
    assert_eq!((&frozen.buckets, &frozen.applied), (&written.buckets, machine.applied()));
    assert_eq!(frozen.view.revision(), machine.revision());
    let copy = Written { buckets: frozen.buckets, applied: frozen.applied, tables: written.tables };
    assert_eq!(state(&mut copy.machine(OFF)), state(&mut machine));
}

#[test]
fn a_checkpoint_on_disk_restores_the_same_machine() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("db.redb");
    let mut checkpoint = RedbCheckpoint::open(&path).expect("a new file");
    let mut machine = Written::default().machine(OFF);
    for entries in log(3, 120).chunks(40) {
        for entry in entries {
            machine.apply_entry(entry).expect("can be applied");
        }
        while machine.store().is_compacting() {
            machine.compaction_step(3).expect("tables on disk");
        }
        let batch = machine.take_batch().expect("changes");
        let tables = checkpoint.write(&batch).expect("a disk");
        machine.flushed(tables, batch.records.last().map(|record| record.revision));
    }
    machine.store.publish();
    let expected = state(&mut machine);
    drop(machine);
    drop(checkpoint);
    let checkpoint = RedbCheckpoint::open(&path).expect("the same file");
    let (buckets, applied) = checkpoint.buckets().expect("readable");
    let config = Written::default().machine_config(OFF);
    let tables = checkpoint.tables().expect("readable");
    let mut machine = Machine::restore(config, tables, &buckets, applied).expect("a checkpoint of our own");
    assert_eq!(state(&mut machine), expected);
}

#[test]
fn entries_without_an_id_answer_nobody() {
    let mut machine = Written::default().machine(OFF);
    let data = put("a", "v", 0).encode_to_vec();
    let entry = Entry { index: 1, term: 1, data: data.into(), ..Entry::default() };
    assert_eq!(machine.apply_entry(&entry).expect("a put").outcome, None);
    assert_eq!(machine.revision(), 2);
}

//! Configuration changes: all four kinds, one at a time, through every path; and members that come and go in a storm.

use prost::Message as _;

use super::cluster::Cluster;
use crate::proto::raft_numbers as numbers;
use crate::proto::raftpb::ConfChange;
use crate::proto::raftpb::Entry;
use crate::server::raft::input::Input;
use crate::server::raft::state_machine::Refusal;
use crate::server::raft::state_machine::Role;

fn change_of(entry: &Entry) -> ConfChange {
    ConfChange::decode(entry.data.clone()).unwrap()
}

/// Found by the simulator: the other voter of two applies its removal and what was committed behind it, and answers; the
/// leader is alone as soon as it has applied the removal, and its View may not have the rest.
#[test]
fn a_leader_is_alone_only_when_it_has_applied_all_that_others_may_have_answered() {
    let mut cluster = Cluster::new(11, 2);
    let leader = cluster.until_leader();
    let other = 3 - leader;
    cluster.member(leader).apply_stalled = true;
    let removal = cluster.propose_change(leader, numbers::CONF_REMOVE_NODE, other);
    cluster.run(leader);
    let put = cluster.propose(leader);
    cluster.until("the other one to apply what is behind its removal", 60, |cluster| cluster.applied_at(put).is_some());
    let entry =
        cluster.judge.applied.values().find(|entry| entry.r#type == 1 && change_of(entry).id == removal).unwrap();
    let (index, change) = (entry.index, Some(change_of(entry)));
    assert!(cluster.applied_at(put) > Some(index));
    cluster.input(leader, Input::ConfChangeApplied { index, change });
    cluster.run(leader);
    let status = cluster.node(leader).status();
    assert!(status.role == Role::Leader && !status.lone_leader, "{status:?}");
    cluster.member(leader).apply_stalled = false;
    cluster.until("the leader to be alone", 60, |cluster| cluster.node(leader).status().lone_leader);
}

/// Proposes at `id`, waits until the change is applied everywhere, and returns its entry.
fn change(cluster: &mut Cluster, id: u64, kind: u64, node_id: u64) -> Entry {
    let request_id = cluster.propose_change(id, kind, node_id);
    let is_it = move |entry: &&Entry| entry.r#type == 1 && change_of(entry).id == request_id;
    cluster.until("the change is applied", 60, |cluster| cluster.judge.applied.values().any(|entry| is_it(&entry)));
    cluster.calm_tick();
    cluster.judge.applied.values().find(is_it).unwrap().clone()
}

#[test]
fn all_four_kinds_survive_propose_wire_log_and_apply_byte_for_byte() {
    let mut cluster = Cluster::new(1, 3);
    let leader = cluster.until_leader();
    let follower = 1 + leader % 3;
    // Proposed at a follower they travel as MsgProp, come back in appends, and are written by everyone.
    for (by, kind) in [
        (follower, numbers::CONF_ADD_LEARNER),
        (leader, numbers::CONF_UPDATE_NODE),
        (follower, numbers::CONF_UPDATE_NODE),
        (leader, numbers::CONF_ADD_NODE),
        (follower, numbers::CONF_REMOVE_NODE),
        (leader, numbers::CONF_ADD_LEARNER),
        (follower, numbers::CONF_ADD_NODE),
        (leader, numbers::CONF_REMOVE_NODE),
    ] {
        if kind == numbers::CONF_ADD_LEARNER {
            cluster.join(4);
        }
        let entry = change(&mut cluster, by, kind, 4);
        let expected = ConfChange {
            id: change_of(&entry).id,
            r#type: kind,
            node_id: 4,
            context: bytes::Bytes::from_static(b"{\"id\":4}"),
        };
        assert_eq!(entry.data, expected.encode_to_vec(), "kind {kind} by {by}");
        for id in 1..=3 {
            assert!(cluster.members[&id].disk.entries.contains(&entry), "kind {kind} on the disk of {id}");
        }
        if kind == numbers::CONF_REMOVE_NODE {
            cluster.crash(4);
            cluster.members.remove(&4);
        }
    }
}

#[test]
fn the_kinds_do_what_they_say() {
    let mut cluster = Cluster::new(2, 1);
    cluster.join(2);
    change(&mut cluster, 1, numbers::CONF_ADD_LEARNER, 2);
    cluster.until_converged();
    assert!(cluster.node(2).is_learner() && cluster.node(1).status().lone_leader);
    change(&mut cluster, 1, numbers::CONF_UPDATE_NODE, 2);
    assert!(cluster.node(2).is_learner());
    change(&mut cluster, 1, numbers::CONF_ADD_NODE, 2);
    assert!(!cluster.node(2).is_learner() && !cluster.node(1).status().lone_leader);
    let last = cluster.node(1).status().last_index;
    let matches: Vec<_> = cluster.node(1).matches().into_iter().map(|(id, index)| (id.0, index)).collect();
    assert_eq!(matches, [(1, last), (2, last)]);
    change(&mut cluster, 1, numbers::CONF_REMOVE_NODE, 2);
    assert!(cluster.node(1).status().lone_leader);
}

#[test]
fn further_changes_wait_until_the_one_before_is_applied() {
    let mut cluster = Cluster::new(3, 3);
    let leader = cluster.until_leader();
    let follower = 1 + leader % 3;
    cluster.member(leader).apply_stalled = true;
    let matches = |cluster: &Cluster| cluster.node(leader).matches().len();
    cluster.propose_change(leader, numbers::CONF_ADD_LEARNER, 4);
    cluster.run(leader);
    // One made here and one that a follower sends: the library would drop both without a word.
    let here = cluster.propose_change(leader, numbers::CONF_ADD_LEARNER, 5);
    let there = cluster.propose_change(follower, numbers::CONF_ADD_LEARNER, 6);
    (0..5).for_each(|_| cluster.calm_tick());
    assert_eq!((matches(&cluster), &cluster.members[&leader].refused), (3, &Vec::new()));
    cluster.member(leader).apply_stalled = false;
    cluster.until("all three are applied", 60, |cluster| matches(cluster) == 6);
    let mut applied = cluster.judge.applied.values().filter(|entry| entry.r#type == 1).map(|entry| change_of(entry).id);
    assert!(applied.any(|id| id == here) && applied.any(|id| id == there), "in this order");
}

#[test]
fn changes_that_wait_at_a_leader_are_given_back_when_it_leads_no_longer() {
    let mut cluster = Cluster::new(5, 3);
    let leader = cluster.until_leader();
    cluster.member(leader).apply_stalled = true;
    cluster.propose_change(leader, numbers::CONF_ADD_LEARNER, 4);
    cluster.run(leader);
    let second = cluster.propose_change(leader, numbers::CONF_ADD_LEARNER, 5);
    cluster.run(leader);
    cluster.isolate(leader);
    cluster.until("it notices", 60, |cluster| cluster.node(leader).status().role != Role::Leader);
    assert_eq!(cluster.members[&leader].refused, [(second, Refusal::Dropped)]);
}

#[test]
fn a_change_that_apply_rejects_changes_nothing_and_blocks_nothing() {
    let mut cluster = Cluster::new(4, 3);
    let leader = cluster.until_leader();
    // Member 2 is there already.
    change(&mut cluster, leader, numbers::CONF_ADD_NODE, 2);
    change(&mut cluster, leader, numbers::CONF_REMOVE_NODE, 77);
    let before = cluster.node(leader).matches().len();
    change(&mut cluster, leader, numbers::CONF_ADD_LEARNER, 9);
    assert_eq!(cluster.node(leader).matches().len(), before + 1);
}

#[test]
fn an_apply_that_passes_a_change_without_reporting_it_stops_the_member() {
    let mut cluster = Cluster::new(5, 1);
    cluster.propose_change(1, numbers::CONF_UPDATE_NODE, 1);
    cluster.run(1);
    let last = cluster.node(1).status().commit_index;
    cluster.input(1, Input::Applied(last));
    cluster.run(1);
    let failed = cluster.members[&1].failed.clone().expect("it must stop");
    assert!(failed.contains("not the configuration change"), "{failed}");
}

/// B48, raft-rs PR 584, qdrant 10684 and 10691: a leader that removed itself went on with its heartbeats, or went away
/// before the others knew that its removal is committed: nobody led any more.
#[test]
fn b48_a_removed_leader_tells_its_peers_and_a_new_one_takes_over() {
    for (seed, voters) in [(6, 2), (7, 3), (8, 5)] {
        let mut cluster = Cluster::new(seed, voters);
        let old = cluster.until_leader();
        let request = cluster.propose_change(old, numbers::CONF_REMOVE_NODE, old);
        // More in the same batch: entries that are not persisted when the removal is applied (R17).
        cluster.propose(old);
        cluster.until("a new leader", 20, |cluster| cluster.leader().is_some_and(|id| id != old));
        cluster.until("the old one stops", 20, |cluster| cluster.members[&old].removed);
        assert!(cluster.judge.applied.values().any(|entry| entry.r#type == 1 && change_of(entry).id == request));
        cluster.crash(old);
        cluster.members.remove(&old);
        let new = cluster.until_leader();
        let after = cluster.propose(new);
        cluster.until_applied(after);
        cluster.until_converged();
    }
}

/// B46, etcd PR 21667: with one of three members down nobody could be added, though the others are a majority before
/// and after, and the one to be added was to replace it.
#[test]
fn b46_a_member_is_added_while_another_is_down() {
    let mut cluster = Cluster::new(12, 3);
    let leader = cluster.until_leader();
    let down = 1 + leader % 3;
    cluster.crash(down);
    // Long enough for the leader to know that it is gone.
    for _ in 0..30 {
        cluster.calm_tick();
    }
    let leader = cluster.until_leader();
    cluster.join(4);
    change(&mut cluster, leader, numbers::CONF_ADD_LEARNER, 4);
    change(&mut cluster, leader, numbers::CONF_ADD_NODE, 4);
    let request = cluster.propose(leader);
    cluster.until_applied(request);
    change(&mut cluster, leader, numbers::CONF_REMOVE_NODE, down);
    cluster.until_converged();
    assert!(cluster.running().iter().all(|id| cluster.node(*id).status().leader.is_some()));
}

#[test]
fn entries_unpersisted_when_a_leader_removes_itself_do_no_harm() {
    // The removal is applied while a later entry is stepped and not yet written: the library would panic.
    let mut cluster = Cluster::new(9, 2);
    let old = cluster.until_leader();
    cluster.member(old).apply_stalled = true;
    cluster.propose_change(old, numbers::CONF_REMOVE_NODE, old);
    cluster.calm_tick();
    cluster.member(old).apply_stalled = false;
    cluster.propose(old);
    cluster.apply(old);
    cluster.run(old);
    cluster.until("the other one leads alone", 30, |cluster| {
        cluster.leader().is_some_and(|id| id != old && cluster.node(id).status().lone_leader)
    });
}

#[test]
fn a_lone_leader_stops_being_one_before_a_message_reaches_the_new_voter() {
    let mut cluster = Cluster::new(10, 1);
    cluster.until("alone", 2, |cluster| cluster.node(1).status().lone_leader);
    cluster.join(2);
    cluster.propose_change(1, numbers::CONF_ADD_NODE, 2);
    cluster.run(1);
    assert!(cluster.network.is_empty());
    cluster.apply(1);
    // The step that applies the change ends the privilege; messages come from the round behind it.
    let inputs = std::mem::take(&mut cluster.member(1).inputs);
    let node = cluster.member(1).node.as_mut().unwrap();
    for input in inputs {
        node.step(input).unwrap();
    }
    assert!(!node.status().lone_leader && node.status().role == Role::Leader);
    cluster.run(1);
    assert!(!cluster.network.is_empty());
}

/// Members join as learners, are promoted and removed, leaders included, while messages get lost and members crash.
fn storm(seed: u64) -> usize {
    let mut cluster = Cluster::new(seed, 3);
    cluster.loss = cluster.rng.next() % 10;
    cluster.crashes = cluster.rng.next() % 2;
    let mut next_id = 4;
    for _ in 0..6_000 {
        let ids: Vec<u64> = cluster.members.keys().copied().collect();
        let id = ids[cluster.rng.below(ids.len())];
        match cluster.rng.below(100) {
            0..50 => cluster.deliver_one(),
            50..65 => cluster.run(id),
            65..80 => cluster.apply(id),
            80..89 => cluster.tick_all(),
            89..93 => {
                cluster.propose(id);
            }
            93 => cluster.checkpoint(id),
            94 if cluster.members[&id].node.is_none() => cluster.restart(id),
            95 => {
                cluster.read(id);
            }
            96 if cluster.rng.chance(20) => change_something(&mut cluster, &mut next_id),
            _ => {}
        }
        bury_removed(&mut cluster);
    }
    (cluster.loss, cluster.crashes) = (0, 0);
    for id in cluster.members.keys().copied().collect::<Vec<_>>() {
        if cluster.members[&id].node.is_none() {
            cluster.restart(id);
        }
    }
    // Whoever does not know of its removal yet keeps trying, and must not keep the others from a leader.
    cluster.until("a leader with a quorum", 300, |cluster| cluster.leader().is_some());
    for _ in 0..100 {
        cluster.calm_tick();
        bury_removed(&mut cluster);
    }
    let leader = cluster.until_leader();
    let voters = cluster.members[&leader].state.clone();
    cluster.members.retain(|id, _| voters.voters.contains(id) || voters.learners.contains(id));
    let last = cluster.propose(leader);
    cluster.until_applied(last);
    cluster.until_converged();
    cluster.judge.applied.values().filter(|entry| entry.r#type == 1).count()
}

fn change_something(cluster: &mut Cluster, next_id: &mut u64) {
    let Some(leader) = cluster.leader() else { return };
    // What to do is chosen by the members as they are now.
    if !cluster.node(leader).takes_changes_at_once() {
        return;
    }
    let state = cluster.members[&leader].state.clone();
    let members: Vec<u64> = state.voters.iter().chain(&state.learners).copied().collect();
    match cluster.rng.below(3) {
        0 if members.len() < 5 => {
            cluster.join(*next_id);
            cluster.propose_change(leader, numbers::CONF_ADD_LEARNER, *next_id);
            *next_id += 1;
        }
        1 if state.voters.len() > 2 => {
            let id = members[cluster.rng.below(members.len())];
            cluster.propose_change(leader, numbers::CONF_REMOVE_NODE, id);
        }
        _ => {
            if let Some(id) = state.learners.first() {
                cluster.propose_change(leader, numbers::CONF_ADD_NODE, *id);
            }
        }
    }
}

fn bury_removed(cluster: &mut Cluster) {
    for id in cluster.members.keys().copied().collect::<Vec<_>>() {
        if cluster.members[&id].removed {
            cluster.crash(id);
            cluster.members.remove(&id);
        }
    }
}

#[test]
fn members_come_and_go_in_a_storm() {
    let changes: usize = (100..160).map(storm).sum();
    assert!(changes > 300, "only {changes} changes were applied");
}

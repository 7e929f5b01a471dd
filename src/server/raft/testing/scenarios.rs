//! What one cluster does in one situation: elections, reads, transfers, snapshots, lost logs, slow disks and slow applies.

use bytes::Bytes;
use prost::Message as _;

use super::cluster::Cluster;
use super::cluster::Disk;
use super::cluster::Rng;
use crate::common::ids::MemberId;
use crate::proto::raft_numbers as numbers;
use crate::proto::raftpb::ConfChange;
use crate::proto::raftpb::ConfState;
use crate::proto::raftpb::Entry;
use crate::proto::raftpb::HardState;
use crate::proto::raftpb::Message;
use crate::proto::raftpb::Snapshot;
use crate::proto::raftpb::SnapshotMetadata;
use crate::server::raft::config::RaftConfig;
use crate::server::raft::config::Start;
use crate::server::raft::input::Effect;
use crate::server::raft::input::Input;
use crate::server::raft::input::Proposal;
use crate::server::raft::node::Node;
use crate::server::raft::state_machine::Refusal;
use crate::server::raft::state_machine::Role;

/// Ticks within which a new leader must be there: detection and two rounds of voting.
const NEW_LEADER_TICKS: usize = 60;

#[test]
fn a_lone_voter_leads_and_commits_without_a_tick() {
    let mut cluster = Cluster::new(1, 1);
    assert_eq!(cluster.node(1).status().role, Role::Leader);
    let request = cluster.propose(1);
    cluster.run(1);
    cluster.apply(1);
    assert!(cluster.applied_at(request).is_some());
}

#[test]
fn a_lone_leader_is_one_only_when_it_has_applied_its_term() {
    let mut cluster = Cluster::new(1, 1);
    let request = cluster.propose(1);
    cluster.until_applied(request);
    assert!(cluster.node(1).status().lone_leader);
    // Restarted from the first checkpoint: what was acknowledged is in the log, and not yet in the state.
    cluster.crash(1);
    cluster.member(1).apply_stalled = true;
    cluster.restart(1);
    assert_eq!(cluster.node(1).status().role, Role::Leader);
    assert!(!cluster.node(1).status().lone_leader);
    cluster.member(1).apply_stalled = false;
    cluster.calm_tick();
    assert!(cluster.node(1).status().lone_leader);
}

#[test]
fn a_lost_leader_is_replaced_and_nothing_is_lost() {
    let mut cluster = Cluster::new(2, 3);
    let old = cluster.until_leader();
    let before = cluster.propose(old);
    let index = cluster.until_applied(before);
    cluster.crash(old);
    cluster.until("a new leader", NEW_LEADER_TICKS, |cluster| cluster.leader().is_some());
    let new = cluster.leader().unwrap();
    let after = cluster.propose(new);
    assert!(cluster.until_applied(after) > index);
    cluster.restart(old);
    cluster.until_converged();
}

#[test]
fn an_isolated_leader_steps_down_and_serves_no_read() {
    let mut cluster = Cluster::new(3, 3);
    let old = cluster.until_leader();
    cluster.isolate(old);
    let read = cluster.read(old);
    let lost = cluster.propose(old);
    cluster.until("another leader", NEW_LEADER_TICKS, |cluster| cluster.leader().is_some_and(|id| id != old));
    cluster.until("the old one steps down", 30, |cluster| cluster.node(old).status().role != Role::Leader);
    let new = cluster.leader().unwrap();
    let kept = cluster.propose(new);
    cluster.until_applied(kept);
    assert!(!cluster.was_served(&read));
    cluster.heal();
    cluster.until_converged();
    assert_eq!(cluster.applied_at(lost), None);
}

#[test]
fn with_pre_vote_an_isolated_follower_comes_back_quietly() {
    for (pre_vote, quiet) in [(true, true), (false, false)] {
        let mut cluster = Cluster::new(4, 3);
        cluster.pre_vote = pre_vote;
        for id in 1..=3 {
            cluster.crash(id);
            cluster.restart(id);
        }
        let leader = cluster.until_leader();
        let term = cluster.node(leader).status().term;
        let away = 1 + leader % 3;
        cluster.isolate(away);
        for _ in 0..100 {
            cluster.calm_tick();
        }
        assert_eq!(cluster.node(away).status().term == term, quiet, "pre-vote {pre_vote}");
        cluster.heal();
        for _ in 0..20 {
            cluster.calm_tick();
        }
        let leader_now = cluster.until_leader();
        assert_eq!((leader_now, cluster.node(leader_now).status().term) == (leader, term), quiet);
    }
}

#[test]
fn a_lagging_follower_gets_one_snapshot_and_then_entries() {
    let mut cluster = Cluster::new(5, 3);
    let leader = cluster.until_leader();
    let away = 1 + leader % 3;
    cluster.isolate(away);
    for _ in 0..5 {
        (0..20).for_each(|_| {
            cluster.propose(leader);
        });
        cluster.calm_tick();
        cluster.checkpoint(leader);
    }
    cluster.calm_tick();
    assert!(cluster.node(leader).base_index() > 50);
    cluster.heal();
    cluster.until_converged();
    assert_eq!(cluster.members[&away].snapshots_installed, 1);
    let request = cluster.propose(leader);
    cluster.until_applied(request);
    cluster.until_converged();
    assert_eq!(cluster.members[&away].snapshots_installed, 1);
    // What was installed is what it starts from.
    cluster.crash(away);
    cluster.restart(away);
    cluster.until_converged();
}

#[test]
fn a_snapshot_that_did_not_arrive_is_built_and_sent_again() {
    let mut cluster = Cluster::new(6, 3);
    let leader = cluster.until_leader();
    let away = 1 + leader % 3;
    cluster.isolate(away);
    for _ in 0..5 {
        (0..20).for_each(|_| {
            cluster.propose(leader);
        });
        cluster.calm_tick();
        cluster.checkpoint(leader);
    }
    cluster.calm_tick();
    cluster.heal();
    let mut lost = 0;
    for _ in 0..60 {
        cluster.tick_all();
        for id in cluster.running() {
            cluster.run(id);
            cluster.apply(id);
        }
        if lost < 2
            && let Some(at) = cluster.network.iter().position(|message| message.r#type == numbers::MSG_SNAP)
        {
            cluster.network.remove(at);
            cluster.input(leader, Input::SnapshotReport { member: MemberId(away), delivered: false });
            lost += 1;
        }
        for _ in 0..cluster.network.len() {
            cluster.deliver_one();
        }
    }
    assert_eq!(lost, 2);
    cluster.until_converged();
    assert_eq!(cluster.members[&away].snapshots_installed, 1);
}

#[test]
fn proposals_are_forwarded_by_followers_and_refused_without_a_leader() {
    let mut cluster = Cluster::new(7, 3);
    let early = cluster.propose(1);
    cluster.run(1);
    assert_eq!(cluster.members[&1].refused, [(early, Refusal::NoLeader)]);
    let leader = cluster.until_leader();
    let request = cluster.propose(1 + leader % 3);
    cluster.until_applied(request);
}

#[test]
fn reads_asked_for_without_a_leader_are_served_once_there_is_one() {
    let mut cluster = Cluster::new(8, 3);
    let reads: Vec<Bytes> = (1..=3).map(|id| cluster.read(id)).collect();
    cluster
        .until("all reads are served", NEW_LEADER_TICKS, |cluster| reads.iter().all(|read| cluster.was_served(read)));
}

/// One tick in which no append arrives anywhere: leaders are elected and heard, and commit nothing.
fn tick_without_appends(cluster: &mut Cluster) {
    cluster.tick_all();
    for _ in 0..20 {
        for id in cluster.running() {
            cluster.run(id);
            cluster.apply(id);
        }
        cluster.network.retain(|message| message.r#type != numbers::MSG_APP);
        for _ in 0..cluster.network.len() {
            cluster.deliver_one();
        }
    }
}

/// B24, TiKV 6340 and 7971, Redis-Raft 18 and 19: a fresh leader answered reads from its commit index, before it had
/// committed anything in its term and so before it could know what its predecessors had committed.
#[test]
fn b24_a_fresh_leader_serves_no_read_before_it_committed_in_its_term() {
    let mut cluster = Cluster::new(19, 3);
    let old = cluster.until_leader();
    // Committed by the old leader, and the others have the entry but not the news.
    let request = cluster.propose(old);
    cluster.run(old);
    for _ in 0..cluster.network.len() {
        cluster.deliver_one();
    }
    let others: Vec<u64> = cluster.running().into_iter().filter(|id| *id != old).collect();
    others.iter().for_each(|id| cluster.run(*id));
    for _ in 0..cluster.network.len() {
        cluster.deliver_one();
    }
    cluster.run(old);
    cluster.apply(old);
    let committed = cluster.applied_at(request).expect("the old leader committed it");
    cluster.network.clear();
    cluster.crash(old);
    for _ in 0..NEW_LEADER_TICKS {
        tick_without_appends(&mut cluster);
        if cluster.leader().is_some() {
            break;
        }
    }
    let new = cluster.leader().expect("elections need no appends");
    assert!(cluster.node(new).status().commit_index < committed, "it does not know yet");
    let read = cluster.read(new);
    for _ in 0..3 {
        tick_without_appends(&mut cluster);
    }
    assert_eq!(cluster.leader(), Some(new), "confirmed by heartbeats all the while");
    assert!(!cluster.was_served(&read));
    // It is kept until the term has begun (R2); the judge holds its index against what was committed when it was asked.
    cluster.until_leader();
    cluster.until("the read is served", 20, |cluster| cluster.was_served(&read));
}

#[test]
fn leadership_moves_on_request_and_proposals_meanwhile_are_refused() {
    let mut cluster = Cluster::new(9, 3);
    let old = cluster.until_leader();
    let new = 1 + old % 3;
    cluster.input(old, Input::TransferLeader(MemberId(new)));
    let request = cluster.propose(old);
    cluster.run(old);
    assert!(cluster.node(old).status().transferring);
    assert_eq!(cluster.members[&old].refused, [(request, Refusal::Dropped)]);
    cluster.until("leadership moved", 10, |cluster| cluster.leader() == Some(new));
}

#[test]
fn a_member_that_lost_its_log_stops_instead_of_voting() {
    let mut cluster = Cluster::new(10, 3);
    let leader = cluster.until_leader();
    let request = cluster.propose(leader);
    cluster.until_applied(request);
    cluster.until_converged();
    let victim = 1 + leader % 3;
    cluster.crash(victim);
    cluster.member(victim).disk = Disk::default();
    cluster.restart(victim);
    cluster.calm_tick();
    let failed = cluster.members[&victim].failed.clone().expect("it must stop");
    assert!(failed.contains("local log was lost"), "{failed}");
}

#[test]
fn more_uncommitted_than_the_limit_is_refused() {
    let mut cluster = Cluster::new(11, 3);
    let leader = cluster.until_leader();
    cluster.isolate(leader);
    let data = Bytes::from(vec![0u8; 16 << 20]);
    for request_id in 1_000..1_006 {
        cluster.input(leader, Input::Propose(vec![Proposal { request_id, data: data.clone() }]));
    }
    cluster.run(leader);
    let refused: Vec<_> = cluster.members[&leader].refused.iter().map(|(id, _)| *id).collect();
    assert_eq!(refused, [1_004, 1_005]);
}

#[test]
fn a_follower_whose_apply_is_behind_takes_no_more_entries() {
    let mut cluster = Cluster::new(12, 3);
    let leader = cluster.until_leader();
    let slow = 1 + leader % 3;
    cluster.member(slow).apply_stalled = true;
    let data = Bytes::from(vec![0u8; 16 << 20]);
    for request_id in 1_000..1_006 {
        cluster.input(leader, Input::Propose(vec![Proposal { request_id, data: data.clone() }]));
        cluster.calm_tick();
    }
    assert!(cluster.members[&slow].dropped.contains(&"apply is behind"));
    assert!(cluster.node(slow).status().last_index < cluster.node(leader).status().last_index);
    cluster.member(slow).apply_stalled = false;
    cluster.until_converged();
}

fn snapshot_message(index: u64, term: u64) -> Message {
    let conf_state = ConfState { voters: vec![1, 2, 3], ..Default::default() };
    let metadata = SnapshotMetadata { conf_state: Some(conf_state), index, term };
    Message {
        r#type: numbers::MSG_SNAP,
        to: 1,
        from: 2,
        term,
        snapshot: Some(Snapshot { data: Bytes::new(), metadata: Some(metadata) }),
        ..Default::default()
    }
}

fn round(node: &mut Node) {
    while node.has_ready() {
        node.ready();
        node.persisted().unwrap();
    }
}

/// B10, etcd 18055 and 20133, in the core: the second snapshot comes before the first is applied, then the first again;
/// apply reports late. The library must not look for entries that are gone (R12).
#[test]
fn b10_snapshots_close_together_end_at_the_newest_and_old_reports_are_harmless() {
    let mut cluster = Cluster::new(13, 3);
    let mut node = cluster.member(1).node.take().unwrap();
    // Long enough for campaigns: with apply still at work, the library must not look for entries that are gone.
    let wait = |node: &mut Node| {
        for _ in 0..40 {
            node.step(Input::Tick).unwrap();
            round(node);
        }
    };
    for index in [20, 30, 20] {
        node.step(Input::Peer(snapshot_message(index, 5))).unwrap();
        round(&mut node);
        wait(&mut node);
    }
    for applied in [3, 20, 30] {
        node.step(Input::Applied(applied)).unwrap();
    }
    assert_eq!((node.applied_index(), node.base_index(), node.status().last_index), (30, 30, 30));
    wait(&mut node);
}

fn append(index: u64, log_term: u64, commit: u64, entry: Entry) -> Message {
    let entries = vec![Entry { term: 2, index: index + 1, ..entry }];
    Message {
        r#type: numbers::MSG_APP,
        to: 1,
        from: 2,
        term: 2,
        index,
        log_term,
        commit,
        entries,
        ..Default::default()
    }
}

fn conf_entry(change: &ConfChange) -> Entry {
    Entry { r#type: numbers::ENTRY_CONF_CHANGE, data: change.encode_to_vec().into(), ..Default::default() }
}

#[test]
fn an_election_waits_for_the_tail_to_be_persisted() {
    // A removal that leaves this member alone, entries and the order to campaign, all in one batch (R11).
    let timeout = Message { r#type: numbers::MSG_TIMEOUT_NOW, to: 1, from: 2, term: 2, ..Default::default() };
    for order in [Input::Peer(timeout), Input::Campaign] {
        let mut cluster = Cluster::new(14, 2);
        let mut node = cluster.member(1).node.take().unwrap();
        let removal = ConfChange { id: 9, r#type: numbers::CONF_REMOVE_NODE, node_id: 2, context: Bytes::new() };
        node.step(Input::Peer(append(2, 1, 3, conf_entry(&removal)))).unwrap();
        round(&mut node);
        node.step(Input::Peer(append(3, 2, 3, Entry::default()))).unwrap();
        node.step(Input::ConfChangeApplied { index: 3, change: Some(removal) }).unwrap();
        node.step(Input::Applied(3)).unwrap();
        node.step(order).unwrap();
        assert_eq!(node.status().role, Role::Follower);
        round(&mut node);
        assert_eq!(node.status().role, Role::Leader);
    }
}

#[test]
fn a_change_that_a_snapshot_overtook_does_not_touch_the_newer_configuration() {
    for settled in [false, true] {
        let mut cluster = Cluster::new(17, 3);
        let mut node = cluster.member(1).node.take().unwrap();
        let change = ConfChange { id: 9, r#type: numbers::CONF_ADD_LEARNER, node_id: 1, context: Bytes::new() };
        node.step(Input::Peer(append(3, 1, 4, conf_entry(&change)))).unwrap();
        round(&mut node);
        node.step(Input::Peer(snapshot_message(20, 5))).unwrap();
        if settled {
            round(&mut node);
        }
        node.step(Input::ConfChangeApplied { index: 4, change: Some(change) }).unwrap();
        round(&mut node);
        node.step(Input::Applied(20)).unwrap();
        assert!(!node.is_learner(), "settled {settled}");
    }
}

/// Does the rounds and returns the indexes of the snapshots that were sent.
fn snapshots_sent(node: &mut Node) -> Vec<u64> {
    let mut sent = Vec::new();
    while node.has_ready() {
        let round = node.ready();
        let messages = round.messages_before.into_iter().chain(round.messages_after);
        let snapshots = messages.filter_map(|message| message.snapshot?.metadata);
        sent.extend(snapshots.map(|metadata| metadata.index));
        node.persisted().unwrap();
    }
    sent
}

#[test]
fn a_follower_is_sent_only_a_snapshot_that_knows_it_and_was_not_lost() {
    let mut cluster = Cluster::new(18, 1);
    for _ in 0..40 {
        cluster.propose(1);
    }
    cluster.calm_tick();
    cluster.propose_change(1, numbers::CONF_ADD_LEARNER, 2);
    cluster.calm_tick();
    cluster.checkpoint(1);
    cluster.calm_tick();
    let mut node = cluster.member(1).node.take().unwrap();
    let (last, term) = (node.status().last_index, node.status().term);
    let built = |index| {
        let conf_state = ConfState { voters: vec![1], learners: vec![2], ..Default::default() };
        let metadata = SnapshotMetadata { conf_state: Some(conf_state), index, term };
        Input::SnapshotBuilt(Snapshot { data: Bytes::new(), metadata: Some(metadata) })
    };
    let answer = |kind, index, reject| {
        Input::Peer(Message { r#type: kind, to: 1, from: 2, term, index, reject, ..Default::default() })
    };
    let asks = |node: &mut Node, input| node.step(input).unwrap().contains(&Effect::BuildSnapshot);
    // Its log is empty, and the beginning of ours is gone.
    let mut asked = false;
    for probe in (0..=last).rev() {
        asked |= asks(&mut node, answer(numbers::MSG_APP_RESP, probe, true));
    }
    assert!(asked && snapshots_sent(&mut node).is_empty());
    // Built before the member was added: of no use to it, another is asked for.
    node.step(built(last - 1)).unwrap();
    assert!(asks(&mut node, answer(numbers::MSG_HEARTBEAT_RESP, 0, false)) && snapshots_sent(&mut node).is_empty());
    node.step(built(last)).unwrap();
    node.step(answer(numbers::MSG_HEARTBEAT_RESP, 0, false)).unwrap();
    assert_eq!(snapshots_sent(&mut node), [last]);
    // Lost: its image may be gone, so that the next one is a new one, but not at once.
    node.step(Input::SnapshotReport { member: MemberId(2), delivered: false }).unwrap();
    let mut ticks = 0;
    while !asks(&mut node, answer(numbers::MSG_HEARTBEAT_RESP, 0, false)) {
        assert!(snapshots_sent(&mut node).is_empty());
        node.step(Input::Tick).unwrap();
        ticks += 1;
    }
    assert!((2..30).contains(&ticks), "{ticks}");
}

/// Numbers around everything a small log has, and the extremes.
fn odd_number(rng: &mut Rng) -> u64 {
    match rng.below(200) {
        0 => u64::MAX,
        1 => u64::MAX >> 1,
        2..6 => 50,
        other => other as u64 % 9,
    }
}

#[test]
fn random_messages_never_panic() {
    let mut rng = Rng(99);
    for run in 0..500 {
        let mut cluster = Cluster::new(run, 3);
        cluster.until_leader();
        for _ in 0..400 {
            let id = 1 + rng.next() % 3;
            let mut number = || odd_number(&mut rng);
            let (index, term) = (number(), number());
            let conf_state = ConfState { voters: vec![number(), 1, 2], learners: vec![3], ..Default::default() };
            let metadata = SnapshotMetadata { conf_state: Some(conf_state), index: number(), term: number() };
            let mut entries =
                vec![Entry { r#type: number() % 2, term: number(), index: index.wrapping_add(1), data: Bytes::new() }];
            entries.truncate((number() % 2) as usize);
            let message = Message {
                r#type: number() % 20,
                to: id,
                from: 1 + number() % 3,
                term,
                log_term: number(),
                index,
                entries,
                commit: number(),
                snapshot: Some(Snapshot { data: Bytes::new(), metadata: Some(metadata) }),
                reject: number() % 2 == 0,
                reject_hint: number(),
                context: Bytes::new(),
            };
            // A failure is an answer too (a log that was lost); what must not happen is a panic.
            let node = cluster.member(id).node.as_mut().unwrap();
            let _ = node.step(Input::Peer(message));
            if rng.chance(20) {
                node.step(Input::Tick).unwrap();
            }
            if rng.chance(50) {
                round(node);
            }
        }
    }
}

fn start(applied: (u64, u64), hard_state: (u64, u64, u64), entries: &[(u64, u64)]) -> Start {
    Start {
        hard_state: HardState { term: hard_state.0, vote: hard_state.1, commit: hard_state.2 },
        base: (0, 0),
        entries: entries
            .iter()
            .map(|(index, term)| Entry { index: *index, term: *term, ..Default::default() })
            .collect(),
        durable_index: applied.0,
        applied,
        conf_state: ConfState { voters: vec![1, 2], ..Default::default() },
    }
}

#[test]
fn a_log_that_does_not_fit_its_checkpoint_is_refused() {
    let config = RaftConfig::new(MemberId(1), 1);
    let cases = [
        (start((3, 1), (1, 0, 2), &[(1, 1), (2, 1)]), "log was lost"),
        (start((2, 2), (1, 0, 2), &[(1, 1), (2, 1)]), "of term 2, but the log holds term 1"),
        (start((1, 1), (1, 0, 3), &[(1, 1), (2, 1)]), "but 3 was committed"),
        (start((1, 1), (1, 0, 1), &[(1, 1), (3, 1)]), "follows"),
        (start((1, 2), (2, 0, 1), &[(1, 2), (2, 1)]), "follows"),
        (Start { base: (5, 1), ..start((4, 1), (1, 0, 5), &[]) }, "log was lost"),
    ];
    for (start, expected) in cases {
        let failure = Node::new(&config, start).err().expect(expected).to_string();
        assert!(failure.contains(expected), "{failure}");
    }
}

#[test]
fn a_start_raises_commit_to_applied_and_the_term_to_the_logs() {
    let config = RaftConfig::new(MemberId(1), 1);
    let mut node = Node::new(&config, start((2, 1), (2, 7, 1), &[(1, 1), (2, 1), (3, 3)])).unwrap();
    assert_eq!((node.status().commit_index, node.status().term), (2, 3));
    // The vote of the lower term does not count in the higher one, and what is promised now is written first.
    assert_eq!(node.take_unsaved_hard_state(), Some(HardState { term: 3, vote: 0, commit: 2 }));
}

#[test]
fn an_apply_that_reports_what_it_was_not_given_stops_the_member() {
    let mut cluster = Cluster::new(15, 1);
    let node = cluster.member(1).node.as_mut().unwrap();
    assert!(node.step(Input::Applied(99)).is_err());
    assert!(node.step(Input::SnapshotBuilt(snapshot_message(99, 5).snapshot.unwrap())).is_err());
}

#[test]
fn messages_that_cannot_happen_are_dropped_without_a_panic() {
    let mut cluster = Cluster::new(16, 3);
    cluster.until_leader();
    let mut kinds = Vec::new();
    for id in 1..=3u64 {
        for kind in 0..25 {
            for number in [0, 1, 5, 1_000, u64::MAX] {
                for term in [0, 1, 2, 100, u64::MAX] {
                    let entry = Entry { r#type: number, term, index: number, data: Bytes::from_static(b"x") };
                    let message = Message {
                        r#type: kind,
                        to: id,
                        from: 1 + id % 3,
                        term,
                        log_term: term,
                        index: number,
                        entries: vec![entry; (number % 3) as usize],
                        commit: if kind == numbers::MSG_HEARTBEAT { 0 } else { number },
                        reject: number == 5,
                        reject_hint: number,
                        ..Default::default()
                    };
                    let node = cluster.member(id).node.as_mut().unwrap();
                    kinds.extend(node.step(Input::Peer(message)).unwrap());
                    round(node);
                }
            }
        }
    }
    assert!(kinds.iter().filter(|effect| matches!(effect, Effect::MessageDropped(_))).count() > 1_000);
}

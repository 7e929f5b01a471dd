//! `--force-new-cluster`: a member whose cluster has lost its quorum for good goes on alone, with all its data.
//!
//! As in etcd the others are removed by configuration changes that this member writes into its own log, committed by
//! itself (server.md 10.5); ids and data stay. Two things differ. Entries that this member does not know to be committed
//! are kept: the lost majority may have acknowledged them. And a learner gets a vote first, where etcd's raft panics.

use prost::Message;

use crate::common::failure::Failure;
use crate::common::ids::MemberId;
use crate::proto::raft_numbers::ENTRY_CONF_CHANGE;
use crate::proto::raftpb::Entry;
use crate::proto::raftpb::HardState;
use crate::server::cluster::member::Member;
use crate::server::cluster::membership::Change;
use crate::server::cluster::membership::Membership;
use crate::server::propose::conf_change;
use crate::server::run::storage::Restored;

/// Makes the restored member the only one of its cluster, durably. Does nothing if it is that already. `peer_urls` are
/// for a member that its own membership does not know.
pub fn go_alone(restored: &mut Restored, peer_urls: &[String]) -> Result<(), Failure> {
    let local = restored.local;
    let known_commit = restored.start.hard_state.commit;
    for entry in restored.start.entries.iter().filter(|entry| entry.index > known_commit) {
        restored.machine.apply_entry(entry)?;
    }
    let last = restored.machine.applied().index;
    let changes = changes_to_one(restored.machine.membership(), local, peer_urls)?;
    let removed = changes.iter().filter(|change| matches!(change, Change::Remove(_))).count();
    tracing::warn!(
        member = %local,
        kept = last - known_commit,
        removed,
        "forcing a new cluster of this member alone; start it without --force-new-cluster before others join"
    );
    let HardState { term, vote, .. } = restored.start.hard_state;
    // The votes of the past were given in terms that end now: this member votes for itself in the next one.
    let term = term.max(restored.machine.applied().term).max(1);
    let entries: Vec<Entry> = (last + 1..)
        .zip(&changes)
        .map(|(index, change)| {
            let data = conf_change(0, change).encode_to_vec().into();
            Entry { r#type: ENTRY_CONF_CHANGE, term, index, data }
        })
        .collect();
    let commit = last + entries.len() as u64;
    let vote = if term == restored.start.hard_state.term { vote } else { 0 };
    let hard_state = HardState { term, vote, commit };
    restored.wal.save(Some(&hard_state), &entries, true)?;
    for entry in &entries {
        restored.machine.apply_entry(entry)?;
    }
    let applied = restored.machine.applied();
    if applied.index != commit || applied.conf_state.voters != [local.0] {
        let text =
            format!("member {local} cannot be made a cluster of its own: its membership does not take the change");
        return Err(Failure::Refused(text));
    }
    restored.start.hard_state = hard_state;
    restored.start.applied = (applied.index, applied.term);
    restored.start.conf_state = applied.conf_state.clone();
    restored.start.entries.extend(entries);
    Ok(())
}

/// The member itself as a voter, then nobody else, in ascending order.
fn changes_to_one(membership: &Membership, local: MemberId, peer_urls: &[String]) -> Result<Vec<Change>, Failure> {
    if membership.removed().any(|id| id == local) {
        let text = format!(
            "member {local} was removed from its cluster, and its data may be old: restore a snapshot instead of forcing \
             a new cluster"
        );
        return Err(Failure::Refused(text));
    }
    let mut changes = Vec::new();
    match membership.member(local) {
        None => changes.push(Change::Add(Member { id: local, peer_urls: peer_urls.to_vec(), ..Member::default() })),
        Some(member) if member.is_learner => changes.push(Change::Promote(local)),
        Some(_) => {}
    }
    let others = membership.members().map(|member| member.id).filter(|id| *id != local);
    changes.extend(others.map(Change::Remove));
    Ok(changes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::common::ids::ClusterId;
    use crate::proto::etcdserverpb::PutRequest;
    use crate::proto::raftinternalpb::InternalRaftRequest;
    use crate::server::apply::testing::Written;
    use crate::server::bootstrap::Founder;
    use crate::server::bootstrap::Identity;
    use crate::server::raft::wal::WalOptions;
    use crate::server::run::storage::Directories;
    use crate::server::run::storage::Storage;

    fn storage(dir: &std::path::Path) -> Storage {
        Storage::open(Directories::new(dir, None), WalOptions::default()).unwrap()
    }

    fn urls(port: u64) -> Vec<String> {
        vec![format!("http://h:{port}")]
    }

    /// Three founders, of which this is 7, with `changes` applied behind them.
    fn restored(storage: &Storage, changes: &[Change]) -> Restored {
        let founders = [5, 7, 9].map(|id| Founder { id: MemberId(id), name: format!("m{id}"), peer_urls: urls(id) });
        let identity = Identity { local: MemberId(7), cluster: ClusterId(1), members: founders.to_vec() };
        storage.create_log(&identity, true).unwrap();
        let mut restored = storage.restore(Written::default().machine_config(-1)).unwrap();
        let entries: Vec<Entry> = (4..).zip(changes).map(|(index, change)| change_entry(index, change)).collect();
        restored
            .wal
            .save(Some(&HardState { term: 2, vote: 9, commit: 3 + entries.len() as u64 }), &entries, true)
            .unwrap();
        drop(restored);
        storage.restore(Written::default().machine_config(-1)).unwrap()
    }

    fn change_entry(index: u64, change: &Change) -> Entry {
        let data = conf_change(77, change).encode_to_vec().into();
        Entry { r#type: ENTRY_CONF_CHANGE, term: 2, index, data }
    }

    fn members(restored: &Restored) -> Vec<(u64, bool)> {
        restored.machine.membership().members().map(|member| (member.id.0, member.is_learner)).collect()
    }

    #[test]
    fn the_others_are_gone_for_good_and_a_later_start_finds_it_so() {
        let temp = tempfile::tempdir().unwrap();
        let storage = storage(temp.path());
        let learner = Member { id: MemberId(3), peer_urls: urls(3), is_learner: true, ..Member::default() };
        let mut found = restored(&storage, &[Change::Add(learner), Change::Update(MemberId(7), urls(17))]);
        go_alone(&mut found, &urls(99)).unwrap();
        assert_eq!(members(&found), [(7, false)]);
        assert_eq!(found.machine.membership().member(MemberId(7)).unwrap().peer_urls, urls(17), "its address stays");
        assert_eq!((found.start.applied, found.start.hard_state.commit), ((8, 2), 8));
        drop(found);
        // Without the flag, and with it once more.
        let mut again = storage.restore(Written::default().machine_config(-1)).unwrap();
        assert_eq!(members(&again), [(7, false)]);
        assert_eq!((again.local, again.cluster), (MemberId(7), ClusterId(1)));
        let removed: Vec<u64> = again.machine.membership().removed().map(|id| id.0).collect();
        assert_eq!(removed, [3, 5, 9]);
        go_alone(&mut again, &urls(99)).unwrap();
        assert_eq!(again.start.applied, (8, 2), "nothing was to be done");
    }

    #[test]
    fn what_the_majority_may_have_acknowledged_is_kept() {
        let temp = tempfile::tempdir().unwrap();
        let storage = storage(temp.path());
        let mut found = restored(&storage, &[]);
        let put = PutRequest { key: "k".into(), value: "v".into(), ..PutRequest::default() };
        let put = InternalRaftRequest { put: Some(put), ..InternalRaftRequest::default() };
        let entry = Entry { term: 2, index: 4, data: put.encode_to_vec().into(), ..Entry::default() };
        found.wal.save(None, &[entry], true).unwrap();
        drop(found);
        let mut found = storage.restore(Written::default().machine_config(-1)).unwrap();
        assert_eq!((found.start.applied.0, found.machine.revision()), (3, 1), "not known to be committed");
        go_alone(&mut found, &urls(99)).unwrap();
        assert_eq!((found.machine.revision(), found.start.applied.0), (2, 6));
    }

    #[test]
    fn a_learner_gets_a_vote_and_a_stranger_an_entry() {
        let learner = Member { id: MemberId(7), peer_urls: urls(7), is_learner: true, ..Member::default() };
        let mut membership = Membership::new(1);
        for id in [5, 9] {
            let voter = Member { id: MemberId(id), peer_urls: urls(id), ..Member::default() };
            membership.change(Change::Add(voter)).unwrap();
        }
        let stranger = changes_to_one(&membership, MemberId(7), &urls(99)).unwrap();
        let added = Member { id: MemberId(7), peer_urls: urls(99), ..Member::default() };
        let removals = [Change::Remove(MemberId(5)), Change::Remove(MemberId(9))];
        assert_eq!(stranger, [&[Change::Add(added)][..], &removals].concat());
        membership.change(Change::Add(learner)).unwrap();
        let promoted = changes_to_one(&membership, MemberId(7), &urls(99)).unwrap();
        assert_eq!(promoted, [&[Change::Promote(MemberId(7))][..], &removals].concat());
        membership.change(Change::Remove(MemberId(7))).unwrap();
        assert!(changes_to_one(&membership, MemberId(7), &urls(99)).is_err(), "it was removed");
    }
}

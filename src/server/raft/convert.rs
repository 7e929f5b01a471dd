//! Between our raft messages and the raft library's, field by field, in the one place where both are named.
//!
//! The library parses the data of every proposed configuration change with its own enumeration, in which etcd's AddLearner
//! does not exist (reliability.md R27). So inward (proposals, peers, recovered log) such an entry carries a rewritten
//! change that the library understands in `data` and etcd's bytes in `context`, a field the library never looks at and
//! etcd's format does not have; outward (log, wire, apply) etcd's bytes come back. Other entries share their buffer.

use bytes::Bytes;
use prost::Message as _;
use raft::eraftpb;

use crate::proto::raft_numbers as numbers;
use crate::proto::raftpb;

/// Terms and indexes above this are refused: no cluster gets there, and the library adds to them unchecked.
pub const NUMBER_MAX: u64 = u64::MAX >> 1;

/// Why something from outside was not handed to the library.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Malformed {
    #[error("message type is not one that members send")]
    MessageType,
    #[error("entry type is not a normal entry or a configuration change")]
    EntryType,
    #[error("configuration change does not decode")]
    ConfChange,
    #[error("term or index is out of range")]
    Number,
    #[error("snapshot has no usable metadata")]
    Snapshot,
    #[error("configuration of a snapshot is not a plain set of voters and learners")]
    ConfState,
}

/// An entry for the library: of our own proposal, a peer's message or the recovered log.
pub fn entry_in(entry: raftpb::Entry) -> Result<eraftpb::Entry, Malformed> {
    in_range(&[entry.term, entry.index])?;
    let mut inside = eraftpb::Entry { term: entry.term, index: entry.index, ..Default::default() };
    match entry.r#type {
        numbers::ENTRY_NORMAL => inside.data = entry.data,
        numbers::ENTRY_CONF_CHANGE => {
            inside.entry_type = eraftpb::EntryType::EntryConfChange;
            inside.data = conf_change_data_in(&entry.data)?;
            inside.context = entry.data;
        }
        _ => return Err(Malformed::EntryType),
    }
    Ok(inside)
}

/// The entry as etcd writes it.
pub fn entry_out(entry: eraftpb::Entry) -> raftpb::Entry {
    let (kind, data) = match entry.entry_type {
        eraftpb::EntryType::EntryConfChange => (numbers::ENTRY_CONF_CHANGE, entry.context),
        // The second form is never proposed by us and refused from peers; an empty normal entry is what it would do.
        _ => (numbers::ENTRY_NORMAL, entry.data),
    };
    raftpb::Entry { r#type: kind, term: entry.term, index: entry.index, data }
}

/// A change that the library can parse, with nothing but what it looks at.
fn conf_change_data_in(original: &Bytes) -> Result<Bytes, Malformed> {
    let change = raftpb::ConfChange::decode(original.clone()).map_err(|_| Malformed::ConfChange)?;
    let kind = match change.r#type {
        numbers::CONF_ADD_NODE | numbers::CONF_UPDATE_NODE => eraftpb::ConfChangeType::AddNode,
        numbers::CONF_REMOVE_NODE => eraftpb::ConfChangeType::RemoveNode,
        numbers::CONF_ADD_LEARNER => eraftpb::ConfChangeType::AddLearnerNode,
        _ => return Err(Malformed::ConfChange),
    };
    let rewritten = raftpb::ConfChange { r#type: kind as u64, node_id: change.node_id, ..Default::default() };
    Ok(rewritten.encode_to_vec().into())
}

/// The change that apply accepted, for the library's configuration. `None` where nothing changes: an address update.
pub fn applied_change(change: &raftpb::ConfChange) -> Result<Option<eraftpb::ConfChange>, Malformed> {
    let kind = match change.r#type {
        numbers::CONF_ADD_NODE => eraftpb::ConfChangeType::AddNode,
        numbers::CONF_REMOVE_NODE => eraftpb::ConfChangeType::RemoveNode,
        numbers::CONF_ADD_LEARNER => eraftpb::ConfChangeType::AddLearnerNode,
        numbers::CONF_UPDATE_NODE => return Ok(None),
        _ => return Err(Malformed::ConfChange),
    };
    Ok(Some(eraftpb::ConfChange { change_type: kind, node_id: change.node_id, ..Default::default() }))
}

/// A peer's message for the library. Types 2 to 9 and 13 to 18 only; what etcd lacks stays zero (peer.md 2.2).
pub fn message_in(message: raftpb::Message) -> Result<eraftpb::Message, Malformed> {
    let msg_type = message_type_in(message.r#type)?;
    in_range(&[message.term, message.log_term, message.index, message.commit, message.reject_hint])?;
    let entries: Vec<_> = message.entries.into_iter().map(entry_in).collect::<Result<_, _>>()?;
    Ok(eraftpb::Message {
        msg_type,
        to: message.to,
        from: message.from,
        term: message.term,
        log_term: message.log_term,
        index: message.index,
        entries: entries.into(),
        commit: message.commit,
        // 3.5 and older spell out an empty snapshot in every message (server.md 14.3): only MsgSnap has one.
        snapshot: match msg_type {
            eraftpb::MessageType::MsgSnapshot => Some(snapshot_in(message.snapshot.unwrap_or_default())?).into(),
            _ => None.into(),
        },
        reject: message.reject,
        reject_hint: message.reject_hint,
        context: message.context,
        ..Default::default()
    })
}

/// A message of the library as etcd reads it: what only the library knows (commit term, priority) is left behind.
pub fn message_out(message: eraftpb::Message) -> raftpb::Message {
    raftpb::Message {
        r#type: message.msg_type as u64,
        to: message.to,
        from: message.from,
        term: message.term,
        log_term: message.log_term,
        index: message.index,
        entries: message.entries.into_iter().map(entry_out).collect(),
        commit: message.commit,
        snapshot: message.snapshot.into_option().map(snapshot_out),
        reject: message.reject,
        reject_hint: message.reject_hint,
        context: message.context,
    }
}

fn message_type_in(kind: u64) -> Result<eraftpb::MessageType, Malformed> {
    use eraftpb::MessageType as To;
    Ok(match kind {
        numbers::MSG_PROP => To::MsgPropose,
        numbers::MSG_APP => To::MsgAppend,
        numbers::MSG_APP_RESP => To::MsgAppendResponse,
        numbers::MSG_VOTE => To::MsgRequestVote,
        numbers::MSG_VOTE_RESP => To::MsgRequestVoteResponse,
        numbers::MSG_SNAP => To::MsgSnapshot,
        numbers::MSG_HEARTBEAT => To::MsgHeartbeat,
        numbers::MSG_HEARTBEAT_RESP => To::MsgHeartbeatResponse,
        numbers::MSG_TRANSFER_LEADER => To::MsgTransferLeader,
        numbers::MSG_TIMEOUT_NOW => To::MsgTimeoutNow,
        numbers::MSG_READ_INDEX => To::MsgReadIndex,
        numbers::MSG_READ_INDEX_RESP => To::MsgReadIndexResp,
        numbers::MSG_PRE_VOTE => To::MsgRequestPreVote,
        numbers::MSG_PRE_VOTE_RESP => To::MsgRequestPreVoteResponse,
        _ => return Err(Malformed::MessageType),
    })
}

/// A snapshot for the library, its configuration checked: the library panics on one that contradicts itself.
pub fn snapshot_in(snapshot: raftpb::Snapshot) -> Result<eraftpb::Snapshot, Malformed> {
    let metadata = snapshot.metadata.ok_or(Malformed::Snapshot)?;
    if metadata.index == 0 || metadata.term == 0 {
        return Err(Malformed::Snapshot);
    }
    in_range(&[metadata.index, metadata.term])?;
    let conf_state = conf_state_in(metadata.conf_state.as_ref().ok_or(Malformed::ConfState)?)?;
    if conf_state.voters.is_empty() {
        return Err(Malformed::ConfState);
    }
    let metadata = eraftpb::SnapshotMetadata {
        conf_state: Some(conf_state).into(),
        index: metadata.index,
        term: metadata.term,
        ..Default::default()
    };
    Ok(eraftpb::Snapshot { data: snapshot.data, metadata: Some(metadata).into(), ..Default::default() })
}

pub fn snapshot_out(snapshot: eraftpb::Snapshot) -> raftpb::Snapshot {
    let metadata = snapshot.metadata.into_option().map(|metadata| raftpb::SnapshotMetadata {
        conf_state: metadata.conf_state.as_ref().map(conf_state_out),
        index: metadata.index,
        term: metadata.term,
    });
    raftpb::Snapshot { data: snapshot.data, metadata }
}

/// A configuration of single changes: ids distinct and not 0, nothing of a joint configuration (reliability.md R18).
pub fn conf_state_in(state: &raftpb::ConfState) -> Result<eraftpb::ConfState, Malformed> {
    if !state.voters_outgoing.is_empty() || !state.learners_next.is_empty() || state.auto_leave {
        return Err(Malformed::ConfState);
    }
    let mut ids: Vec<u64> = state.voters.iter().chain(&state.learners).copied().collect();
    ids.sort_unstable();
    if ids.first() == Some(&0) || ids.windows(2).any(|pair| pair[0] == pair[1]) {
        return Err(Malformed::ConfState);
    }
    Ok(eraftpb::ConfState { voters: state.voters.clone(), learners: state.learners.clone(), ..Default::default() })
}

/// Ids ascending, as etcd keeps them: the library's order is that of a hash map.
pub fn conf_state_out(state: &eraftpb::ConfState) -> raftpb::ConfState {
    let sorted = |ids: &[u64]| {
        let mut ids = ids.to_vec();
        ids.sort_unstable();
        ids
    };
    raftpb::ConfState {
        voters: sorted(&state.voters),
        learners: sorted(&state.learners),
        voters_outgoing: sorted(&state.voters_outgoing),
        learners_next: sorted(&state.learners_next),
        auto_leave: state.auto_leave,
    }
}

pub fn hard_state_in(state: &raftpb::HardState) -> eraftpb::HardState {
    eraftpb::HardState { term: state.term, vote: state.vote, commit: state.commit, ..Default::default() }
}

pub fn hard_state_out(state: &eraftpb::HardState) -> raftpb::HardState {
    raftpb::HardState { term: state.term, vote: state.vote, commit: state.commit }
}

fn in_range(numbers: &[u64]) -> Result<(), Malformed> {
    if numbers.iter().any(|number| *number > NUMBER_MAX) {
        return Err(Malformed::Number);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn conf_entry(kind: u64) -> raftpb::Entry {
        let change = raftpb::ConfChange { id: 7, r#type: kind, node_id: 9, context: Bytes::from_static(b"{\"id\":9}") };
        raftpb::Entry { r#type: numbers::ENTRY_CONF_CHANGE, term: 3, index: 5, data: change.encode_to_vec().into() }
    }

    #[test]
    fn all_four_conf_changes_come_back_byte_for_byte() {
        use protobuf::Message as _;
        for (kind, inside) in [(0, 0), (1, 1), (2, 0), (3, 2)] {
            let original = conf_entry(kind);
            let entry = entry_in(original.clone()).unwrap();
            let parsed = eraftpb::ConfChange::parse_from_bytes(&entry.data).expect("the library must parse it");
            assert_eq!((parsed.change_type as u64, parsed.node_id), (inside, 9), "kind {kind}");
            assert_eq!(entry_out(entry), original, "kind {kind}");
        }
    }

    #[test]
    fn spelled_out_zeros_of_older_members_survive() {
        // peer.md 1.5: 3.6.14 writes the zero id and type of a bootstrap change.
        let data = Bytes::from_static(&[0x08, 0, 0x10, 0, 0x18, 9]);
        let original = raftpb::Entry { r#type: 1, term: 1, index: 1, data };
        assert_eq!(entry_out(entry_in(original.clone()).unwrap()), original);
        let empty = raftpb::Entry { r#type: 1, term: 1, index: 1, data: Bytes::new() };
        assert_eq!(entry_out(entry_in(empty.clone()).unwrap()), empty);
    }

    #[test]
    fn a_normal_entry_shares_its_buffer() {
        let data = Bytes::from(vec![1u8; 100]);
        let entry = entry_in(raftpb::Entry { data: data.clone(), ..Default::default() }).unwrap();
        assert_eq!(entry.data.as_ptr(), data.as_ptr());
        assert_eq!(entry_out(entry).data.as_ptr(), data.as_ptr());
    }

    #[test]
    fn what_members_never_send_is_refused() {
        let cases = [
            (raftpb::Message { r#type: 0, ..Default::default() }, Malformed::MessageType),
            (raftpb::Message { r#type: 11, ..Default::default() }, Malformed::MessageType),
            (raftpb::Message { r#type: 19, ..Default::default() }, Malformed::MessageType),
            (raftpb::Message { r#type: 3, term: u64::MAX, ..Default::default() }, Malformed::Number),
            (raftpb::Message { r#type: 7, ..Default::default() }, Malformed::Snapshot),
            (
                raftpb::Message {
                    r#type: 3,
                    entries: vec![raftpb::Entry { r#type: 2, ..Default::default() }],
                    ..Default::default()
                },
                Malformed::EntryType,
            ),
            (raftpb::Message { r#type: 2, entries: vec![conf_entry(4)], ..Default::default() }, Malformed::ConfChange),
        ];
        for (message, expected) in cases {
            assert_eq!(message_in(message.clone()).unwrap_err(), expected, "{message:?}");
        }
    }

    #[test]
    fn contradicting_configurations_are_refused() {
        let state = |voters: &[u64], learners: &[u64]| raftpb::ConfState {
            voters: voters.to_vec(),
            learners: learners.to_vec(),
            ..Default::default()
        };
        for wrong in [state(&[1, 1], &[]), state(&[0], &[]), state(&[1], &[1])] {
            assert_eq!(conf_state_in(&wrong).unwrap_err(), Malformed::ConfState);
        }
        let joint = raftpb::ConfState { voters: vec![1], voters_outgoing: vec![2], ..Default::default() };
        assert_eq!(conf_state_in(&joint).unwrap_err(), Malformed::ConfState);
        assert_eq!(conf_state_out(&conf_state_in(&state(&[2, 1], &[3])).unwrap()), state(&[1, 2], &[3]));
    }

    #[test]
    fn every_message_field_that_etcd_has_survives() {
        let metadata = raftpb::SnapshotMetadata {
            conf_state: Some(raftpb::ConfState { voters: vec![1, 2], ..Default::default() }),
            index: 8,
            term: 2,
        };
        let message = raftpb::Message {
            r#type: numbers::MSG_SNAP,
            to: 1,
            from: 2,
            term: 3,
            log_term: 4,
            index: 5,
            entries: vec![conf_entry(3)],
            commit: 6,
            snapshot: Some(raftpb::Snapshot { data: Bytes::from_static(b"{}"), metadata: Some(metadata) }),
            reject: true,
            reject_hint: 7,
            context: Bytes::from_static(b"abc"),
        };
        assert_eq!(message_out(message_in(message.clone()).unwrap()), message);
    }
}

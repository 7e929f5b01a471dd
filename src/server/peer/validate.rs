//! Which messages from the network may reach raft: everything else is refused here, with a reason, and counted.
//!
//! The library trusts its input; a proposal without entries, a read without a context, an append whose term cannot be
//! checked or an index near the end of the range ends its process (reliability.md R8, peer.md 2.4). An index gap
//! between messages is none of our business: 3.7.1 sends a round's messages in reverse order (peer.md 2.1).

use prost::Message as _;

use crate::common::ids::MemberId;
use crate::proto::raft_numbers::CONF_ADD_LEARNER;
use crate::proto::raft_numbers::ENTRY_CONF_CHANGE;
use crate::proto::raft_numbers::ENTRY_NORMAL;
use crate::proto::raft_numbers::MSG_APP;
use crate::proto::raft_numbers::MSG_APP_RESP;
use crate::proto::raft_numbers::MSG_HEARTBEAT;
use crate::proto::raft_numbers::MSG_HEARTBEAT_RESP;
use crate::proto::raft_numbers::MSG_PRE_VOTE;
use crate::proto::raft_numbers::MSG_PRE_VOTE_RESP;
use crate::proto::raft_numbers::MSG_PROP;
use crate::proto::raft_numbers::MSG_READ_INDEX;
use crate::proto::raft_numbers::MSG_READ_INDEX_RESP;
use crate::proto::raft_numbers::MSG_SNAP;
use crate::proto::raft_numbers::MSG_TIMEOUT_NOW;
use crate::proto::raft_numbers::MSG_TRANSFER_LEADER;
use crate::proto::raft_numbers::MSG_VOTE;
use crate::proto::raft_numbers::MSG_VOTE_RESP;
use crate::proto::raftpb::ConfChange;
use crate::proto::raftpb::Entry;
use crate::proto::raftpb::Message;
use crate::proto::raftpb::Snapshot;

/// Terms and indexes above this are not reached by counting; next to the end of the range the library would overflow.
const NUMBER_MAX: u64 = 1 << 62;

/// Contexts are request ids (8 bytes) or a campaign's name (16); a larger one is no one's.
const CONTEXT_BYTES_MAX: usize = 1024;

/// Members named by one configuration.
const MEMBERS_MAX: usize = 1024;

/// Why a message was refused. The name is the label of the metric.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    #[error("to field mismatch")]
    NotForUs,
    #[error("cannot process message from removed member")]
    Removed,
    #[error("message type is not accepted from peers")]
    Type,
    #[error("sender is not the member at the other end")]
    Sender,
    #[error("term is missing or does not belong")]
    Term,
    #[error("index or term out of range")]
    Range,
    #[error("wrong number or kind of entries")]
    Entries,
    #[error("entries do not follow each other")]
    Continuity,
    #[error("configuration change cannot be read")]
    ConfChange,
    #[error("context out of range")]
    Context,
    #[error("snapshot is missing or incomplete")]
    Snapshot,
}

impl Refusal {
    pub const ALL: [Refusal; 11] = [
        Refusal::NotForUs,
        Refusal::Removed,
        Refusal::Type,
        Refusal::Sender,
        Refusal::Term,
        Refusal::Range,
        Refusal::Entries,
        Refusal::Continuity,
        Refusal::ConfChange,
        Refusal::Context,
        Refusal::Snapshot,
    ];

    /// Label of the metric.
    pub fn name(self) -> &'static str {
        match self {
            Refusal::NotForUs => "to",
            Refusal::Removed => "removed",
            Refusal::Type => "type",
            Refusal::Sender => "sender",
            Refusal::Term => "term",
            Refusal::Range => "range",
            Refusal::Entries => "entries",
            Refusal::Continuity => "continuity",
            Refusal::ConfChange => "conf_change",
            Refusal::Context => "context",
            Refusal::Snapshot => "snapshot",
        }
    }
}

/// The way a message came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// A stream or `POST /raft`.
    Stream,
    /// `POST /raft/snapshot`: the only way for MsgSnap, because only there an image follows it.
    Snapshot,
}

/// What the message is held against.
#[derive(Clone, Copy, Debug)]
pub struct Expected {
    pub local: MemberId,
    /// The member at the other end of the connection, if it said who it is.
    pub peer: Option<MemberId>,
    pub way: Way,
}

/// Checks everything about a message that can be checked without the log, and drops what raft must not see: 3.5 and
/// older put an empty snapshot into every message (server.md 14.3).
pub fn validate(message: &mut Message, expected: Expected) -> Result<(), Refusal> {
    if message.to != expected.local.0 {
        return Err(Refusal::NotForUs);
    }
    let is_snapshot = message.r#type == MSG_SNAP;
    if is_snapshot != (expected.way == Way::Snapshot) {
        return Err(Refusal::Type);
    }
    if !is_snapshot {
        message.snapshot = None;
    }
    check_numbers(message)?;
    check_sender(message, expected)?;
    check_term(message)?;
    if message.context.len() > CONTEXT_BYTES_MAX {
        return Err(Refusal::Context);
    }
    match message.r#type {
        MSG_PROP => check_proposal(&message.entries),
        MSG_APP => check_append(message),
        MSG_SNAP => check_snapshot(message.snapshot.as_ref()).and_then(|()| check_no_entries(message)),
        MSG_READ_INDEX | MSG_READ_INDEX_RESP => check_read(&message.entries),
        MSG_APP_RESP | MSG_VOTE | MSG_VOTE_RESP | MSG_HEARTBEAT | MSG_HEARTBEAT_RESP | MSG_TRANSFER_LEADER
        | MSG_TIMEOUT_NOW | MSG_PRE_VOTE | MSG_PRE_VOTE_RESP => check_no_entries(message),
        _ => Err(Refusal::Type),
    }
}

/// What a member passes on for another one, and what a transfer names: `from` is then not the member that sends.
fn is_forwarded(message_type: u64) -> bool {
    matches!(message_type, MSG_PROP | MSG_READ_INDEX | MSG_TRANSFER_LEADER)
}

fn check_numbers(message: &Message) -> Result<(), Refusal> {
    let numbers = [message.term, message.log_term, message.index, message.commit, message.reject_hint];
    if numbers.iter().all(|number| *number <= NUMBER_MAX) { Ok(()) } else { Err(Refusal::Range) }
}

fn check_sender(message: &Message, expected: Expected) -> Result<(), Refusal> {
    let from = MemberId(message.from);
    let is_peer = expected.peer.is_none_or(|peer| peer == from);
    let fits = from.0 != 0 && (is_forwarded(message.r#type) || (is_peer && from != expected.local));
    if fits { Ok(()) } else { Err(Refusal::Sender) }
}

/// Term 0 makes a message a local one to the library, and a term on a proposal would end the leader's reign.
fn check_term(message: &Message) -> Result<(), Refusal> {
    let fits = match message.r#type {
        MSG_PROP | MSG_READ_INDEX => message.term == 0,
        MSG_TRANSFER_LEADER => true,
        _ => message.term != 0,
    };
    if fits { Ok(()) } else { Err(Refusal::Term) }
}

fn check_no_entries(message: &Message) -> Result<(), Refusal> {
    if message.entries.is_empty() { Ok(()) } else { Err(Refusal::Entries) }
}

fn check_proposal(entries: &[Entry]) -> Result<(), Refusal> {
    if entries.is_empty() || entries.iter().any(|entry| entry.data.is_empty()) {
        return Err(Refusal::Entries);
    }
    entries.iter().try_for_each(check_entry_kind)
}

fn check_read(entries: &[Entry]) -> Result<(), Refusal> {
    match entries {
        [entry] if entry.r#type == ENTRY_NORMAL && (1..=CONTEXT_BYTES_MAX).contains(&entry.data.len()) => Ok(()),
        _ => Err(Refusal::Entries),
    }
}

fn check_append(message: &Message) -> Result<(), Refusal> {
    // term() of an index that is not in the log is 0 in the library, so a zero log_term would match anything.
    if (message.log_term == 0) != (message.index == 0) || message.log_term > message.term {
        return Err(Refusal::Term);
    }
    let (mut index, mut term) = (message.index, message.log_term.max(1));
    for entry in &message.entries {
        index += 1;
        if entry.index != index || entry.term < term || entry.term > message.term {
            return Err(Refusal::Continuity);
        }
        term = entry.term;
        check_entry_kind(entry)?;
    }
    Ok(())
}

/// Configuration changes of the second form are never written; applying one ends an etcd (peer.md 1.3).
fn check_entry_kind(entry: &Entry) -> Result<(), Refusal> {
    match entry.r#type {
        ENTRY_NORMAL => Ok(()),
        ENTRY_CONF_CHANGE => match ConfChange::decode(&entry.data[..]) {
            Ok(change) if change.r#type <= CONF_ADD_LEARNER => Ok(()),
            _ => Err(Refusal::ConfChange),
        },
        _ => Err(Refusal::Entries),
    }
}

fn check_snapshot(snapshot: Option<&Snapshot>) -> Result<(), Refusal> {
    let metadata = snapshot.and_then(|snapshot| snapshot.metadata.as_ref()).ok_or(Refusal::Snapshot)?;
    let state = metadata.conf_state.as_ref().ok_or(Refusal::Snapshot)?;
    if metadata.index > NUMBER_MAX || metadata.term > NUMBER_MAX {
        return Err(Refusal::Range);
    }
    let joint = !state.voters_outgoing.is_empty() || !state.learners_next.is_empty();
    let mut members: Vec<u64> = state.voters.iter().chain(&state.learners).copied().collect();
    members.sort_unstable();
    let distinct = members.first() != Some(&0) && members.windows(2).all(|pair| pair[0] != pair[1]);
    let complete = metadata.index != 0 && metadata.term != 0 && !state.voters.is_empty() && !joint;
    if complete && distinct && members.len() <= MEMBERS_MAX { Ok(()) } else { Err(Refusal::Snapshot) }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use proptest::prelude::*;

    use super::*;
    use crate::proto::raftpb::ConfState;
    use crate::proto::raftpb::SnapshotMetadata;

    const LOCAL: MemberId = MemberId(1);
    const PEER: MemberId = MemberId(2);

    fn check(mut message: Message, expected: Result<(), Refusal>) {
        let way = if message.r#type == MSG_SNAP { Way::Snapshot } else { Way::Stream };
        let outcome = validate(&mut message, Expected { local: LOCAL, peer: Some(PEER), way });
        assert_eq!(outcome, expected, "{message:?}");
    }

    fn of(r#type: u64) -> Message {
        let term = if matches!(r#type, MSG_PROP | MSG_READ_INDEX) { 0 } else { 5 };
        Message { r#type, to: LOCAL.0, from: PEER.0, term, ..Message::default() }
    }

    fn entry(index: u64, term: u64, data: &[u8]) -> Entry {
        Entry { index, term, data: Bytes::copy_from_slice(data), ..Entry::default() }
    }

    fn append(log_term: u64, index: u64, entries: Vec<Entry>) -> Message {
        Message { log_term, index, entries, ..of(MSG_APP) }
    }

    fn snapshot(voters: &[u64], learners: &[u64], index: u64, term: u64) -> Message {
        let conf_state =
            Some(ConfState { voters: voters.to_vec(), learners: learners.to_vec(), ..ConfState::default() });
        let metadata = Some(SnapshotMetadata { conf_state, index, term });
        Message { snapshot: Some(Snapshot { metadata, ..Snapshot::default() }), ..of(MSG_SNAP) }
    }

    #[test]
    fn types_outside_the_list_are_refused() {
        let bare = [4, 5, 6, 8, 9, 13, 14, 17, 18];
        for message_type in (0..25).chain([u64::MAX]) {
            let outcome = match message_type {
                2 | 15 | 16 => Err(Refusal::Entries),
                3 => Ok(()),
                7 => Err(Refusal::Snapshot),
                known if bare.contains(&known) => Ok(()),
                _ => Err(Refusal::Type),
            };
            check(of(message_type), outcome);
        }
        check(Message { entries: vec![entry(1, 1, b"x")], ..of(MSG_HEARTBEAT) }, Err(Refusal::Entries));
    }

    #[test]
    fn messages_for_others_and_from_others_are_refused() {
        check(Message { to: 3, ..of(MSG_VOTE) }, Err(Refusal::NotForUs));
        check(Message { from: 3, ..of(MSG_VOTE) }, Err(Refusal::Sender));
        check(Message { from: LOCAL.0, ..of(MSG_VOTE) }, Err(Refusal::Sender));
        check(Message { from: 0, ..of(MSG_TRANSFER_LEADER) }, Err(Refusal::Sender));
        // A transfer names the transferee, a stale leader passes on what a third member proposed.
        check(Message { from: 3, ..of(MSG_TRANSFER_LEADER) }, Ok(()));
        check(Message { from: 3, entries: vec![entry(0, 0, b"x")], ..of(MSG_PROP) }, Ok(()));
        check(Message { from: LOCAL.0, entries: vec![entry(0, 0, b"x")], ..of(MSG_READ_INDEX) }, Ok(()));
        let unknown = Expected { local: LOCAL, peer: None, way: Way::Stream };
        assert_eq!(validate(&mut Message { from: 3, ..of(MSG_VOTE) }, unknown), Ok(()));
    }

    #[test]
    fn terms_are_where_they_belong() {
        check(Message { term: 0, ..of(MSG_HEARTBEAT) }, Err(Refusal::Term));
        check(Message { term: 5, entries: vec![entry(0, 0, b"x")], ..of(MSG_PROP) }, Err(Refusal::Term));
        check(Message { term: u64::MAX, ..of(MSG_VOTE) }, Err(Refusal::Range));
        check(Message { index: u64::MAX, ..of(MSG_APP_RESP) }, Err(Refusal::Range));
        check(Message { reject_hint: u64::MAX, ..of(MSG_APP_RESP) }, Err(Refusal::Range));
    }

    #[test]
    fn proposals_and_reads_carry_what_the_library_takes_for_granted() {
        let proposal = |entries| Message { entries, ..of(MSG_PROP) };
        check(proposal(vec![entry(0, 0, b"x"), entry(0, 0, b"")]), Err(Refusal::Entries));
        check(proposal(vec![entry(0, 0, b"x"), entry(0, 0, b"y")]), Ok(()));
        let learner = Entry { r#type: ENTRY_CONF_CHANGE, ..entry(0, 0, &[0x10, 3, 0x18, 9]) };
        check(proposal(vec![learner.clone()]), Ok(()));
        check(proposal(vec![Entry { data: Bytes::from_static(&[0x10, 4]), ..learner }]), Err(Refusal::ConfChange));
        check(proposal(vec![Entry { r#type: 2, ..entry(0, 0, b"x") }]), Err(Refusal::Entries));
        for message_type in [MSG_READ_INDEX, MSG_READ_INDEX_RESP] {
            let read = |entries| Message { entries, ..of(message_type) };
            check(read(vec![entry(0, 0, &[1; 8])]), Ok(()));
            check(read(vec![entry(0, 0, b"")]), Err(Refusal::Entries));
            check(read(vec![entry(0, 0, b"a"), entry(0, 0, b"b")]), Err(Refusal::Entries));
        }
        let context = Bytes::from(vec![0; CONTEXT_BYTES_MAX + 1]);
        check(Message { context, ..of(MSG_HEARTBEAT) }, Err(Refusal::Context));
    }

    #[test]
    fn appends_continue_themselves() {
        check(append(0, 0, vec![entry(1, 1, b""), entry(2, 5, b"x")]), Ok(()));
        check(append(4, 7, vec![entry(8, 4, b"x"), entry(9, 5, b"x")]), Ok(()));
        check(append(0, 7, vec![]), Err(Refusal::Term));
        check(append(4, 0, vec![]), Err(Refusal::Term));
        check(append(6, 7, vec![]), Err(Refusal::Term));
        check(append(4, 7, vec![entry(9, 4, b"x")]), Err(Refusal::Continuity));
        check(append(4, 7, vec![entry(8, 3, b"x")]), Err(Refusal::Continuity));
        check(append(4, 7, vec![entry(8, 6, b"x")]), Err(Refusal::Continuity));
        check(append(0, 0, vec![entry(1, 0, b"x")]), Err(Refusal::Continuity));
        let broken = Entry { r#type: ENTRY_CONF_CHANGE, ..entry(8, 4, &[0xff]) };
        check(append(4, 7, vec![broken]), Err(Refusal::ConfChange));
        check(append(4, NUMBER_MAX, vec![entry(NUMBER_MAX + 1, 4, b"x")]), Ok(()));
        check(append(4, u64::MAX, vec![entry(0, 4, b"x")]), Err(Refusal::Range));
    }

    #[test]
    fn snapshots_are_whole_and_come_with_an_image() {
        check(snapshot(&[1, 2], &[3], 10, 4), Ok(()));
        check(snapshot(&[], &[3], 10, 4), Err(Refusal::Snapshot));
        check(snapshot(&[1, 1], &[], 10, 4), Err(Refusal::Snapshot));
        check(snapshot(&[1], &[1], 10, 4), Err(Refusal::Snapshot));
        check(snapshot(&[0, 1], &[], 10, 4), Err(Refusal::Snapshot));
        check(snapshot(&[1], &[], 0, 4), Err(Refusal::Snapshot));
        check(snapshot(&[1], &[], u64::MAX, 4), Err(Refusal::Range));
        let on_stream = Expected { local: LOCAL, peer: Some(PEER), way: Way::Stream };
        assert_eq!(validate(&mut snapshot(&[1], &[], 10, 4), on_stream), Err(Refusal::Type));
        let beside_an_image = Expected { way: Way::Snapshot, ..on_stream };
        assert_eq!(validate(&mut of(MSG_HEARTBEAT), beside_an_image), Err(Refusal::Type));
    }

    #[test]
    fn the_empty_snapshot_of_older_members_is_dropped() {
        let mut message = Message { snapshot: Some(Snapshot::default()), ..of(MSG_HEARTBEAT) };
        validate(&mut message, Expected { local: LOCAL, peer: Some(PEER), way: Way::Stream }).unwrap();
        assert_eq!(message.snapshot, None);
    }

    #[test]
    fn every_refusal_has_a_label_of_its_own() {
        let names: std::collections::BTreeSet<_> = Refusal::ALL.iter().map(|refusal| refusal.name()).collect();
        assert_eq!(names.len(), Refusal::ALL.len());
    }

    proptest! {
        #[test]
        fn no_decoded_message_panics(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            if let Ok(mut message) = Message::decode(&bytes[..]) {
                message.to = LOCAL.0;
                for way in [Way::Stream, Way::Snapshot] {
                    let _ = validate(&mut message.clone(), Expected { local: LOCAL, peer: None, way });
                }
            }
        }
    }
}

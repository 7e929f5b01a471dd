//! Judges a peer's message by what this member's log says, before the raft library sees it: the library panics on what
//! cannot happen between honest members with whole logs (reliability.md R7-R9).
//!
//! Shape (types, sizes, sender, decodable changes) is `peer/validate`'s and `convert`'s part; a check here needs the state.

use crate::proto::raft_numbers as numbers;
use crate::proto::raftpb::Message;

/// Longest context of a read: etcd's are 8 bytes, ours about 24. Every heartbeat echoes it.
const READ_CONTEXT_BYTES_MAX: usize = 1024;

/// What the judgement depends on.
#[derive(Clone, Copy, Debug)]
pub struct Facts {
    pub id: u64,
    pub term: u64,
    pub last_index: u64,
    pub leading: bool,
    /// This member applied its own removal while leading: its library must not count votes for commits any more (R17).
    pub removed_as_leader: bool,
    /// Too much is committed and not applied (config::UNAPPLIED_BYTES_MAX).
    pub apply_is_behind: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    Step,
    /// Not stepped; raft repeats what matters. The word is a metric's label.
    Drop(&'static str),
    /// A leader knows that this member had entries up to `index`, and they are not here.
    LogLost {
        index: u64,
    },
}

/// The verdict on one message.
pub fn judge(message: &Message, facts: &Facts) -> Verdict {
    if message.to != facts.id {
        return Verdict::Drop("to another member");
    }
    if let Some(why) = addressing(message, facts).or_else(|| shape(message)) {
        return Verdict::Drop(why);
    }
    // The library ignores or answers older terms without looking at the log.
    if message.term != 0 && message.term < facts.term {
        return Verdict::Step;
    }
    match message.r#type {
        numbers::MSG_APP if facts.apply_is_behind && !message.entries.is_empty() => Verdict::Drop("apply is behind"),
        // A leader's heartbeat commits at most what this member acknowledged (Raft paper 5.3; issue TiKV 7353).
        numbers::MSG_HEARTBEAT if message.commit > facts.last_index => Verdict::LogLost { index: message.commit },
        // The library would believe it, and send from beyond its own log.
        numbers::MSG_APP_RESP if message.term == facts.term => {
            if facts.removed_as_leader {
                Verdict::Drop("removed")
            } else if !message.reject && message.index > facts.last_index {
                Verdict::Drop("acknowledges what was not sent")
            } else {
                Verdict::Step
            }
        }
        // A follower would forward it, and the library panics on its term.
        numbers::MSG_TRANSFER_LEADER if !facts.leading || message.term > facts.term => Verdict::Drop("not the leader"),
        _ => Verdict::Step,
    }
}

/// Forwarded requests carry no term, and may come back to the one they started from; nothing else may do either.
fn addressing(message: &Message, facts: &Facts) -> Option<&'static str> {
    let forwarded =
        matches!(message.r#type, numbers::MSG_PROP | numbers::MSG_READ_INDEX | numbers::MSG_TRANSFER_LEADER);
    if message.from == 0 || (message.from == facts.id && !forwarded) {
        return Some("from nobody");
    }
    if message.term == 0 && !forwarded {
        return Some("without a term");
    }
    // The library takes requests as local ones, without a term. With one they would move ours.
    if message.term != 0 && matches!(message.r#type, numbers::MSG_PROP | numbers::MSG_READ_INDEX) {
        return Some("request with a term");
    }
    None
}

fn shape(message: &Message) -> Option<&'static str> {
    match message.r#type {
        numbers::MSG_PROP if message.entries.is_empty() => Some("empty proposal"),
        numbers::MSG_APP => append_shape(message),
        numbers::MSG_READ_INDEX | numbers::MSG_READ_INDEX_RESP => match &message.entries[..] {
            [entry] if !entry.data.is_empty() && entry.data.len() <= READ_CONTEXT_BYTES_MAX => None,
            _ => Some("read without a context"),
        },
        numbers::MSG_SNAP => {
            let metadata = message.snapshot.as_ref().and_then(|snapshot| snapshot.metadata.as_ref());
            metadata.is_none_or(|metadata| metadata.term > message.term).then_some("snapshot of a later term")
        }
        _ => None,
    }
}

/// Entries follow `index` without a gap, their terms never sink, and none is above the message's term.
fn append_shape(message: &Message) -> Option<&'static str> {
    // The library takes term 0 for "unknown index" and would see a match there (R8).
    if (message.log_term == 0) != (message.index == 0) {
        return Some("append without a previous term");
    }
    let mut last = (message.index, message.log_term);
    for entry in &message.entries {
        if last.0.checked_add(1) != Some(entry.index) || entry.term == 0 || entry.term < last.1 {
            return Some("append with a gap");
        }
        last = (entry.index, entry.term);
    }
    (last.1 > message.term).then_some("append of a later term")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::raftpb::Entry;

    const FACTS: Facts =
        Facts { id: 1, term: 5, last_index: 10, leading: true, removed_as_leader: false, apply_is_behind: false };

    fn message(kind: u64) -> Message {
        Message { r#type: kind, to: 1, from: 2, term: 5, ..Default::default() }
    }

    fn entry(index: u64, term: u64) -> Entry {
        Entry { index, term, ..Default::default() }
    }

    fn check(message: Message, expected: Verdict) {
        assert_eq!(judge(&message, &FACTS), expected, "{message:?}");
    }

    fn check_dropped(message: Message) {
        assert!(matches!(judge(&message, &FACTS), Verdict::Drop(_)), "{message:?}");
    }

    #[test]
    fn a_heartbeat_beyond_the_log_means_the_log_was_lost() {
        let beat = |term, commit| Message { term, commit, ..message(numbers::MSG_HEARTBEAT) };
        check(beat(5, 10), Verdict::Step);
        check(beat(5, 11), Verdict::LogLost { index: 11 });
        check(beat(6, 11), Verdict::LogLost { index: 11 });
        check(beat(4, 11), Verdict::Step);
    }

    #[test]
    fn messages_for_or_from_nobody_are_dropped() {
        check_dropped(Message { to: 3, ..message(numbers::MSG_HEARTBEAT) });
        check_dropped(Message { from: 0, ..message(numbers::MSG_HEARTBEAT) });
        check_dropped(Message { from: 1, ..message(numbers::MSG_VOTE) });
        check_dropped(Message { term: 0, ..message(numbers::MSG_READ_INDEX_RESP) });
        check_dropped(Message { entries: vec![entry(0, 0)], ..message(numbers::MSG_PROP) });
    }

    #[test]
    fn requests_may_come_back_to_where_they_started() {
        let entries = vec![Entry { data: bytes::Bytes::from_static(b"x"), ..Default::default() }];
        for kind in [numbers::MSG_PROP, numbers::MSG_READ_INDEX] {
            check(Message { from: 1, term: 0, entries: entries.clone(), ..message(kind) }, Verdict::Step);
        }
        check(Message { from: 1, term: 5, ..message(numbers::MSG_TRANSFER_LEADER) }, Verdict::Step);
    }

    #[test]
    fn only_a_leader_takes_a_transfer() {
        let transfer = message(numbers::MSG_TRANSFER_LEADER);
        check(transfer.clone(), Verdict::Step);
        check_dropped(Message { term: 6, ..transfer.clone() });
        let follower = Facts { leading: false, ..FACTS };
        assert_eq!(judge(&transfer, &follower), Verdict::Drop("not the leader"));
    }

    #[test]
    fn requests_without_content_are_dropped() {
        for kind in [numbers::MSG_PROP, numbers::MSG_READ_INDEX] {
            check_dropped(Message { term: 0, ..message(kind) });
        }
        check_dropped(message(numbers::MSG_READ_INDEX_RESP));
        check_dropped(Message { term: 0, entries: vec![entry(0, 0)], ..message(numbers::MSG_READ_INDEX) });
        check_dropped(message(numbers::MSG_SNAP));
    }

    #[test]
    fn appends_must_be_gapless_with_known_terms() {
        let append = |index, log_term, entries: &[(u64, u64)]| Message {
            index,
            log_term,
            entries: entries.iter().map(|(index, term)| entry(*index, *term)).collect(),
            ..message(numbers::MSG_APP)
        };
        check(append(10, 4, &[(11, 4), (12, 5)]), Verdict::Step);
        check(append(0, 0, &[(1, 1)]), Verdict::Step);
        // A gap to our log is an everyday matter (peer.md 2.1): the library answers it.
        check(append(20, 5, &[(21, 5)]), Verdict::Step);
        for wrong in [
            append(20, 0, &[(21, 5)]),
            append(10, 4, &[(12, 5)]),
            append(10, 4, &[(11, 5), (11, 5)]),
            append(10, 4, &[(11, 3)]),
            append(10, 4, &[(11, 6)]),
            append(10, 6, &[]),
            append(0, 0, &[(1, 0)]),
        ] {
            check_dropped(wrong);
        }
    }

    #[test]
    fn acknowledgements_of_the_future_are_dropped() {
        let ack = |term, index, reject| Message { term, index, reject, ..message(numbers::MSG_APP_RESP) };
        check(ack(5, 10, false), Verdict::Step);
        check(ack(5, 99, true), Verdict::Step);
        check_dropped(ack(5, 11, false));
    }

    #[test]
    fn a_removed_leader_counts_no_acknowledgement_and_a_late_apply_no_append() {
        let removed = Facts { removed_as_leader: true, ..FACTS };
        assert_eq!(judge(&message(numbers::MSG_APP_RESP), &removed), Verdict::Drop("removed"));
        let behind = Facts { apply_is_behind: true, ..FACTS };
        let append = Message { index: 10, log_term: 5, entries: vec![entry(11, 5)], ..message(numbers::MSG_APP) };
        assert_eq!(judge(&append, &behind), Verdict::Drop("apply is behind"));
        assert_eq!(judge(&message(numbers::MSG_HEARTBEAT), &behind), Verdict::Step);
    }
}

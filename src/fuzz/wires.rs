//! What comes over sockets: requests, entries, peers' messages and streams, frames, the supervisor's control.

use bytes::Bytes;
use bytes::BytesMut;
use prost::Message as _;

use crate::common::ids::MemberId;
use crate::fuzz::fuzz;
use crate::fuzz::pieces;
use crate::proto::etcdserverpb::Compare;
use crate::proto::etcdserverpb::DeleteRangeRequest;
use crate::proto::etcdserverpb::PutRequest;
use crate::proto::etcdserverpb::RangeRequest;
use crate::proto::etcdserverpb::TxnRequest;
use crate::proto::raft_numbers::MSG_APP;
use crate::proto::raft_numbers::MSG_HEARTBEAT;
use crate::proto::raft_numbers::MSG_SNAP;
use crate::proto::raftinternalpb::InternalRaftRequest;
use crate::proto::raftpb::ConfState;
use crate::proto::raftpb::Entry;
use crate::proto::raftpb::Message;
use crate::proto::raftpb::Snapshot;
use crate::proto::raftpb::SnapshotMetadata;
use crate::server::api::authority::Opening;
use crate::server::api::check;
use crate::server::apply::testing::Written;
use crate::server::apply::testing::bootstrap;
use crate::server::apply::testing::compaction;
use crate::server::apply::testing::delete;
use crate::server::apply::testing::put;
use crate::server::apply::testing::txn_of_delete;
use crate::server::apply::testing::txn_of_puts;
use crate::server::mvcc::hash::hash_view;
use crate::server::peer::codec::Decoder;
use crate::server::peer::codec::Encoder;
use crate::server::peer::codec::StreamKind;
use crate::server::peer::codec::decode_message;
use crate::server::peer::validate::Expected;
use crate::server::peer::validate::Way;
use crate::server::peer::validate::validate;
use crate::supervisor::control::gob;

const LOCAL: MemberId = MemberId(1);
const PEER: MemberId = MemberId(2);

/// F1: decode, check, apply: it returns, and two members come to the same.
#[test]
fn requests() {
    let mut txn = txn_of_puts(&["a", "b"]);
    if let Some(txn) = &mut txn.txn {
        txn.compare.push(Compare { key: "a".into(), result: 3, target: 1, ..Compare::default() });
    }
    let internal = [put("a", "value", 0), delete("a", "c"), txn, txn_of_delete("b"), compaction(3)];
    let mut corpus: Vec<Vec<u8>> = internal.iter().map(InternalRaftRequest::encode_to_vec).collect();
    let range =
        RangeRequest { key: "a".into(), range_end: "z".into(), limit: 5, sort_order: 1, ..RangeRequest::default() };
    corpus.push(range.encode_to_vec());
    corpus.extend(internal.iter().filter_map(|request| request.txn.as_ref()).map(TxnRequest::encode_to_vec));
    let written = Written::default();
    fuzz("fuzz::wires::requests", &corpus, |input| {
        let _ = RangeRequest::decode(input).map(|request| check::range(&request));
        let _ = PutRequest::decode(input).map(|request| check::put(&request));
        let _ = DeleteRangeRequest::decode(input).map(|request| check::delete_range(&request));
        let _ = TxnRequest::decode(input).map(|request| check::txn(&request, 128));
        let mut replicas = [written.machine(-1), written.machine(-1)];
        let applied = replicas.each_mut().map(|machine| {
            let mut entries = bootstrap(1);
            // The input twice: what it says the second time depends on what it did.
            for data in [put("a", "before", 0).encode_to_vec(), input.to_vec(), input.to_vec()] {
                entries.push(Entry { index: entries.len() as u64 + 1, term: 1, r#type: 0, data: data.into() });
            }
            let mut outcomes = Vec::new();
            for entry in &entries {
                let step = machine.apply_entry(entry);
                outcomes.push(step.map(|step| format!("{:?}", step.outcome)).map_err(|failure| failure.to_string()));
                if outcomes.last().is_some_and(Result::is_err) {
                    break;
                }
            }
            (outcomes, machine.revision(), hash_view(&machine.store().views().current(), 0).ok())
        });
        assert_eq!(applied[0], applied[1]);
    });
}

fn messages() -> Vec<Message> {
    let entry = |index: u64| Entry { index, term: 3, r#type: 0, data: Bytes::from(vec![7; 40]) };
    let append = Message {
        r#type: MSG_APP,
        to: LOCAL.0,
        from: PEER.0,
        term: 3,
        log_term: 3,
        index: 8,
        entries: vec![entry(9), entry(10)],
        commit: 8,
        ..Message::default()
    };
    let beat =
        Message { r#type: MSG_HEARTBEAT, commit: 4, context: "12345678".into(), entries: Vec::new(), ..append.clone() };
    let conf_state = Some(ConfState { voters: vec![1, 2], ..ConfState::default() });
    let metadata = Some(SnapshotMetadata { conf_state, index: 12, term: 3 });
    let snapshot = Some(Snapshot { metadata, ..Snapshot::default() });
    let snapshot = Message { r#type: MSG_SNAP, snapshot, entries: Vec::new(), ..append.clone() };
    vec![append, beat, snapshot]
}

/// F2: a message that is let through is stable: encoded and read again it is the same, and let through again.
#[test]
fn peer_messages() {
    let corpus: Vec<Vec<u8>> = messages().iter().map(Message::encode_to_vec).collect();
    fuzz("fuzz::wires::peer_messages", &corpus, |input| {
        let Ok(message) = decode_message(input) else { return };
        for way in [Way::Stream, Way::Snapshot] {
            let expected = Expected { local: LOCAL, peer: Some(PEER), way };
            let mut judged = message.clone();
            if validate(&mut judged, expected).is_ok() {
                let mut again = decode_message(&judged.encode_to_vec()).expect("what was let through");
                assert_eq!(again, judged);
                assert_eq!(validate(&mut again, expected), Ok(()));
                assert_eq!(again, judged);
            }
        }
    });
}

/// What a stream says does not depend on how its bytes arrive.
#[test]
fn peer_streams() {
    for kind in StreamKind::ALL {
        let mut stream = BytesMut::new();
        let mut encoder = Encoder::new(kind, PEER, LOCAL);
        messages().iter().take(1).for_each(|message| encoder.message(message, &mut stream));
        let next = Message {
            index: 10,
            entries: vec![Entry { index: 11, term: 3, ..Entry::default() }],
            ..messages().remove(0)
        };
        encoder.message(&next, &mut stream);
        encoder.heartbeat(&mut stream);
        let corpus: Vec<Vec<u8>> = [0, 9, 200].iter().map(|cut| [&[*cut][..], &stream].concat()).collect();
        fuzz("fuzz::wires::peer_streams", &corpus, |input| {
            let read = |pieces: &[&[u8]]| {
                let mut decoder = Decoder::new(kind, LOCAL, PEER);
                let mut found = Vec::new();
                for piece in pieces {
                    decoder.push(piece);
                    loop {
                        match decoder.next_message() {
                            Ok(Some(message)) => found.push(message),
                            Ok(None) => break,
                            Err(error) => return (found, Some(error.to_string())),
                        }
                    }
                }
                (found, None)
            };
            assert_eq!(read(&pieces(input)), read(&[input.get(1..).unwrap_or_default()]));
        });
    }
}

/// The opening of an HTTP/2 connection goes through with its length, however it is cut.
#[test]
fn openings() {
    let authority = b"http://127.0.0.1:2379";
    let block = [&[0x83, 0x86, 0x01, authority.len() as u8][..], authority, b"\x04\x02/x"].concat();
    let headers = [&[0, 0, block.len() as u8, 1, 4, 0, 0, 0, 1][..], &block].concat();
    let opening = [&[0, 0, 0, 4, 0, 0, 0, 0, 0][..], &headers, b"more"].concat();
    let corpus: Vec<Vec<u8>> = [0, 3, 250].iter().map(|cut| [&[*cut][..], &opening].concat()).collect();
    fuzz("fuzz::wires::openings", &corpus, |input| {
        let read = |pieces: &[&[u8]]| {
            let (mut opening, mut out, mut is_done) = (Opening::default(), Vec::new(), false);
            for piece in pieces {
                match is_done {
                    true => out.extend_from_slice(piece),
                    false => is_done = opening.take(piece, &mut out),
                }
            }
            opening.end(&mut out);
            out
        };
        let whole = input.get(1..).unwrap_or_default();
        let out = read(&[whole]);
        assert_eq!(out.len(), whole.len());
        assert_eq!(read(&pieces(input)), out);
    });
}

/// F11: goreman's control messages.
#[test]
fn control() {
    let request = gob::encode_request("Goreman.Restart", &["web".to_owned(), "db".to_owned()]);
    fuzz("fuzz::wires::control", &[request], |input| {
        let mut buffer = input.to_vec();
        while let Ok(Some(frame)) = gob::take_frame(&mut buffer) {
            assert!(frame.len() < input.len());
            let _ = gob::is_type(&frame);
            let _ = gob::header(&frame);
            let _ = gob::list(&frame);
            let _ = gob::string(&frame);
        }
        assert!(buffer.len() <= input.len());
    });
}

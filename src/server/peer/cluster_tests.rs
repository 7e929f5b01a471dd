//! What one member sends, the other's raft gets, whatever happens to the connections between them.

use std::net::TcpListener;
use std::sync::Arc;

use bytes::Bytes;
use prost::Message as _;

use crate::common::ids::ClusterId;
use crate::common::ids::MemberId;
use crate::proto::raft_numbers::*;
use crate::proto::raftpb::Message;
use crate::server::peer::listener::PeerListener;
use crate::server::peer::test_members::*;
use crate::server::raft::state_machine::Transport;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn messages_of_every_type_arrive_equal_and_in_order_of_their_stream() {
    let (one, two) = Member::pair().await;
    let others = every_type(M1, M2);
    // Index 30 again is a retry: that one and the first travel in full, the rest in the short form.
    let appends: Vec<Message> = (10..40).chain(30..50).map(|index| append(M1, M2, index, &[7; 300])).collect();
    one.peers.send(others.iter().cloned().chain(appends.iter().cloned()).collect());
    until("all messages", || two.messages().len() == others.len() + appends.len()).await;
    let (received_appends, received): (Vec<Message>, Vec<Message>) =
        two.messages().into_iter().partition(|message| message.r#type == MSG_APP);
    assert_eq!(received, others);
    assert_eq!(received_appends, appends);
    until("both hear each other", || one.peers.active_since(M2).is_some() && two.peers.active_since(M1).is_some())
        .await;
    assert_eq!(one.peers.peer_ids(), [M2]);
    one.stop().await;
    two.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_streams_messages_go_by_post() {
    let (one, two) = (Member::start(M1), Member::start(M2));
    // Only one knows the other: nobody dials one, so it has no stream to write to. Two learns where one is from its
    // header and can answer.
    one.knows(&two);
    one.peers.send(vec![append(M1, M2, 5, b"x")]);
    until("the append", || two.messages() == [append(M1, M2, 5, b"x")]).await;
    let answer = Message { index: 6, ..message(MSG_APP_RESP, M2, M1) };
    two.peers.send(vec![answer.clone()]);
    until("the answer", || one.messages() == [answer.clone()]).await;
    one.stop().await;
    two.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn streams_come_back_after_the_listener_did() {
    let (mut one, two) = Member::pair().await;
    one.listener.take().unwrap().stop().await;
    until("two notices", || two.peers.active_since(M1).is_none()).await;
    until("one has no stream", || !one.has_streams_to(M2)).await;
    // A dial of the closed port may connect to itself for a moment and hold it (peer.md 3.7).
    let mut socket = TcpListener::bind(one.address);
    while socket.is_err() {
        tokio::time::sleep(std::time::Duration::from_millis(5)).await;
        socket = TcpListener::bind(one.address);
    }
    let socket = socket.unwrap();
    one.listener = Some(PeerListener::start(&one.peers, Arc::new(Facts), vec![socket.into()]).unwrap());
    one.is_connected(&two).await;
    one.peers.send(vec![append(M1, M2, 5, b"x")]);
    until("the append", || two.messages() == [append(M1, M2, 5, b"x")]).await;
    until("two hears one again", || two.peers.active_since(M1).is_some()).await;
    one.stop().await;
    two.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_cannot_be_delivered_is_reported() {
    let one = Member::start(M1);
    let gone = bind().local_addr().unwrap();
    one.peers.add_peer(M2, &[url(gone)]);
    one.peers.send(vec![append(M1, M2, 5, b"x")]);
    until("the report", || one.seen.unreachable.lock().unwrap().contains(&M2)).await;
    // Nobody knows M3: a snapshot to it has failed, anything else is dropped.
    one.peers.send(vec![message(MSG_SNAP, M1, M3), message(MSG_HEARTBEAT, M1, M3)]);
    until("the snapshot report", || *one.seen.snapshots.lock().unwrap() == [(M3, false)]).await;
    one.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_removed_member_is_told_and_heard_no_more() {
    let (one, two) = Member::pair().await;
    one.peers.remove_peer(M2);
    until("two is told", || two.seen.removed_by.lock().unwrap().contains(&M1)).await;
    assert_eq!(one.peers.active_since(M2), None);
    one.peers.add_peer(M2, &[url(two.address)]);
    assert_eq!(one.peers.peer_ids(), []);
    let posted = post(one.address, "/raft", M2, &message(MSG_VOTE, M2, M1).encode_to_vec());
    assert_eq!(posted.status, 500);
    assert_eq!(posted.body, "error processing raft message\n");
    assert_eq!(one.messages(), []);
    one.stop().await;
    two.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn members_removed_before_the_start_are_refused_too() {
    let one = Member::start_as(M1, CLUSTER, vec![M2], false);
    let two = Member::start(M2);
    two.knows(&one);
    until("two is told", || two.seen.removed_by.lock().unwrap().contains(&M1)).await;
    one.stop().await;
    two.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn members_of_another_cluster_do_not_talk() {
    let one = Member::start(M1);
    let two = Member::start_as(M2, ClusterId(1), vec![M1], false);
    one.knows(&two);
    two.knows(&one);
    one.peers.send(vec![append(M1, M2, 5, b"x")]);
    until("the report", || one.seen.unreachable.lock().unwrap().contains(&M2)).await;
    assert_eq!(two.messages(), []);
    // Removed there, but there is another cluster: no reason to stop.
    assert_eq!(*one.seen.removed_by.lock().unwrap(), []);
    one.stop().await;
    two.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_snapshot_arrives_whole_and_is_reported() {
    let (one, two) = Member::pair().await;
    let message = snapshot_message(M1, M2, 110);
    let image = one.has_image(&message, 5_000_001);
    one.peers.send(vec![message.clone()]);
    until("the report", || *one.seen.snapshots.lock().unwrap() == [(M2, true)]).await;
    assert_eq!(*two.seen.prepared.lock().unwrap(), [image]);
    let mut expected = message;
    expected.snapshot.as_mut().unwrap().data = Bytes::from_static(b"{}");
    assert_eq!(two.messages(), [expected]);
    assert_eq!(std::fs::read_dir(&two.seen.incoming).unwrap().count(), 0);
    one.stop().await;
    two.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_snapshot_that_fails_anywhere_is_reported_once() {
    let one = Member::start(M1);
    let two = Member::start_as(M2, CLUSTER, Vec::new(), true);
    one.knows(&two);
    let message = snapshot_message(M1, M2, 110);
    let reports = |count: usize| {
        let seen = Arc::clone(&one.seen);
        move || *seen.snapshots.lock().unwrap() == vec![(M2, false); count]
    };
    one.peers.send(vec![message.clone()]);
    until("there is no image", reports(1)).await;
    one.has_image(&message, 3_000_000);
    one.peers.send(vec![message.clone()]);
    until("the receiver cannot use it", reports(2)).await;
    one.seen.images.lock().unwrap().get_mut(&110).unwrap().2 += 1;
    one.peers.send(vec![message.clone()]);
    until("the image is shorter than it should be", reports(3)).await;
    one.has_image(&Message { snapshot: snapshot_message(M1, M3, 110).snapshot, ..message.clone() }, 10);
    one.peers.send(vec![message.clone()]);
    until("the image belongs to another snapshot", reports(4)).await;
    assert_eq!(two.messages(), []);
    until("nothing is left", || std::fs::read_dir(&two.seen.incoming).unwrap().count() == 0).await;
    one.stop().await;
    two.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_image_that_was_cut_off_never_looks_complete() {
    let (one, two) = Member::pair().await;
    for round in 1..=20 {
        let message = snapshot_message(M1, M2, 110);
        one.has_image(&message, 1000 * round);
        // More is announced than there is, so that reading it fails after the envelope was sent.
        one.seen.images.lock().unwrap().get_mut(&110).unwrap().2 += 1;
        one.peers.send(vec![message]);
        until("the report", || one.seen.snapshots.lock().unwrap().len() == round).await;
    }
    until("nothing is left", || std::fs::read_dir(&two.seen.incoming).unwrap().count() == 0).await;
    assert!(one.seen.snapshots.lock().unwrap().iter().all(|report| *report == (M2, false)));
    assert_eq!(two.seen.prepared.lock().unwrap().len(), 0);
    assert_eq!(two.messages(), []);
    one.stop().await;
    two.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_snapshot_to_a_silent_receiver_is_reported_when_the_peer_goes() {
    let one = Member::start(M1);
    let silent = bind();
    one.peers.add_peer(M2, &[url(silent.local_addr().unwrap())]);
    let message = snapshot_message(M1, M2, 110);
    one.has_image(&message, 1000);
    // The second is refused while the first waits; the first ends with its peer.
    one.peers.send(vec![message.clone(), message]);
    until("the second", || *one.seen.snapshots.lock().unwrap() == [(M2, false)]).await;
    one.peers.remove_peer(M2);
    until("the first", || *one.seen.snapshots.lock().unwrap() == [(M2, false), (M2, false)]).await;
    one.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_peer_that_falls_silent_is_noticed_and_dialed_again() {
    let silent = b"HTTP/1.1 200 OK\r\nX-Server-Version: 3.5.1\r\nTransfer-Encoding: chunked\r\n\r\n";
    let one = Member::start(M1);
    one.peers.add_peer(M2, &[url(false_peer(silent))]);
    let failures = one.peers.shared.member(M2).unwrap().metrics.received_failures.clone();
    // Both streams once, and at least one of them again.
    until("it is noticed", || failures.get() >= 3).await;
    assert_eq!(one.peers.active_since(M2), None);
    one.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn answers_without_a_version_and_garbage_on_a_stream_are_refused() {
    let chunked = "Transfer-Encoding: chunked\r\n\r\n";
    let without_version: &[u8] = Box::leak(format!("HTTP/1.1 200 OK\r\n{chunked}").into_bytes().into_boxed_slice());
    let garbage: &[u8] = Box::leak(
        format!("HTTP/1.1 200 OK\r\nX-Server-Version: 3.7.1\r\n{chunked}8\r\n\u{7f}1234567\r\n")
            .into_bytes()
            .into_boxed_slice(),
    );
    let gone: &[u8] = b"HTTP/1.1 410 Gone\r\nContent-Length: 0\r\n\r\n";
    let one = Member::start(M1);
    one.peers.add_peer(M2, &[url(false_peer(without_version))]);
    one.peers.add_peer(M3, &[url(false_peer(garbage))]);
    one.peers.add_peer(MemberId(9), &[url(false_peer(gone))]);
    let failures = |id| one.peers.shared.member(id).unwrap().metrics.received_failures.get();
    // Streams to M3 come up and break, again and again; those to M2 never come up.
    until("the garbage is noticed", || failures(M3) >= 4).await;
    assert_eq!(one.peers.active_since(M2), None);
    assert_eq!(failures(M2), 0);
    // 410 of a peer that does not name our cluster is no reason to stop.
    assert_eq!(*one.seen.removed_by.lock().unwrap(), []);
    assert_eq!(one.messages(), []);
    one.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_peer_with_a_dead_first_address_is_found_at_its_next() {
    let (one, two) = (Member::start(M1), Member::start(M2));
    let dead = bind().local_addr().unwrap();
    one.peers.add_peer(M2, &[url(dead), url(two.address)]);
    two.knows(&one);
    one.is_connected(&two).await;
    one.peers.update_peer(M2, &[url(dead)]);
    two.peers.send(vec![message(MSG_HEARTBEAT, M2, M1)]);
    until("the heartbeat", || one.messages() == [message(MSG_HEARTBEAT, M2, M1)]).await;
    one.stop().await;
    two.stop().await;
}

/// B21, etcd fb769c430: a member stepped a message that was for another one, committed what it did not have, and
/// panicked.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn b21_misdelivered_and_forged_messages_never_reach_raft() {
    let (one, two) = Member::pair().await;
    let forged = vec![
        message(MSG_HEARTBEAT, M3, M2),
        message(MSG_HEARTBEAT, M1, M3),
        Message { term: 0, ..message(MSG_HEARTBEAT, M1, M2) },
        Message { log_term: 0, ..append(M1, M2, 5, b"x") },
    ];
    // Straight into the stream, past the routing that would not send them there.
    let slot = Arc::clone(one.peers.shared.member(M2).unwrap().slot(crate::server::peer::codec::StreamKind::Message));
    for forged in forged {
        assert!(slot.stream().unwrap().push(forged));
    }
    one.peers.send(vec![message(MSG_HEARTBEAT, M1, M2)]);
    until("the good one", || two.messages() == [message(MSG_HEARTBEAT, M1, M2)]).await;
    assert_eq!(two.peers.shared.member(M1).unwrap().metrics.received_failures.get(), 4);
    one.stop().await;
    two.stop().await;
}

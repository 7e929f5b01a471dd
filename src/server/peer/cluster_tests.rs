//! Members in one process, over real sockets: what one sends, the other's raft gets; who must be refused, is.

use std::collections::BTreeMap;
use std::io::Read;
use std::io::Write;
use std::net::SocketAddr;
use std::net::TcpListener;
use std::net::TcpStream;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::Mutex;
use std::time::Duration;
use std::time::Instant;

use bytes::Bytes;
use prost::Message as _;
use tokio::runtime::Handle;

use crate::common::answer::Answer;
use crate::common::failure::Failure;
use crate::common::ids::ClusterId;
use crate::common::ids::MemberId;
use crate::proto::etcdserverpb::HashKvResponse;
use crate::proto::etcdserverpb::LeaseKeepAliveRequest;
use crate::proto::etcdserverpb::LeaseTimeToLiveResponse;
use crate::proto::etcdserverpb::ResponseHeader;
use crate::proto::raft_numbers::*;
use crate::proto::raftpb::ConfState;
use crate::proto::raftpb::Entry;
use crate::proto::raftpb::Message;
use crate::proto::raftpb::Snapshot;
use crate::proto::raftpb::SnapshotMetadata;
use crate::server::peer::facts::PeerFacts;
use crate::server::peer::fetch::FetchError;
use crate::server::peer::fetch::fetch_hash_kv;
use crate::server::peer::fetch::fetch_members;
use crate::server::peer::fetch::fetch_version;
use crate::server::peer::listener::PeerListener;
use crate::server::peer::metrics::PeerMetrics;
use crate::server::peer::timing::Timing;
use crate::server::peer::transport::PeerConfig;
use crate::server::peer::transport::PeerEvents;
use crate::server::peer::transport::Peers;
use crate::server::raft::state_machine::Inbox;
use crate::server::raft::state_machine::Transport;
use crate::server::snapshot::Image;
use crate::server::snapshot::ImageSink;
use crate::server::snapshot::ImageSource;

const CLUSTER: ClusterId = ClusterId(0xa9a3f2aa4603e843);
const M1: MemberId = MemberId(0x4064c276627c13e8);
const M2: MemberId = MemberId(0xa50afd602f55893f);
const M3: MemberId = MemberId(0x67a8c1728f351fbd);

/// Far beyond what any condition needs on a busy machine.
const PATIENCE: Duration = Duration::from_secs(30);

/// What one member's raft and application would have seen, and the images it has.
#[derive(Default)]
struct Seen {
    messages: Mutex<Vec<Message>>,
    unreachable: Mutex<Vec<MemberId>>,
    snapshots: Mutex<Vec<(MemberId, bool)>>,
    removed_by: Mutex<Vec<MemberId>>,
    images: Mutex<BTreeMap<u64, (Snapshot, PathBuf, u64)>>,
    prepared: Mutex<Vec<Vec<u8>>>,
    refuse_images: bool,
    incoming: PathBuf,
}

impl Inbox for Seen {
    fn step(&self, message: Message) {
        self.messages.lock().unwrap().push(message);
    }

    fn report_unreachable(&self, member: MemberId) {
        self.unreachable.lock().unwrap().push(member);
    }

    fn report_snapshot(&self, member: MemberId, delivered: bool) {
        self.snapshots.lock().unwrap().push((member, delivered));
    }
}

impl PeerEvents for Seen {
    fn removed(&self, by: MemberId) {
        self.removed_by.lock().unwrap().push(by);
    }
}

impl ImageSource for Seen {
    fn open(&self, index: u64) -> Result<Option<Image>, Failure> {
        let images = self.images.lock().unwrap();
        let Some((snapshot, path, bytes)) = images.get(&index) else { return Ok(None) };
        let file = std::fs::File::open(path).map_err(Failure::io("cannot open", path))?;
        Ok(Some(Image { snapshot: snapshot.clone(), file, bytes: *bytes }))
    }
}

impl ImageSink for Seen {
    fn incoming_path(&self, index: u64) -> PathBuf {
        self.incoming.join(format!("{index:016x}.snap.db"))
    }

    fn prepare(&self, message: &Message) -> Result<(), Failure> {
        let metadata = message.snapshot.as_ref().unwrap().metadata.as_ref().unwrap();
        let path = self.incoming_path(metadata.index);
        if self.refuse_images {
            return Err(Failure::damaged(&path, "it is a test"));
        }
        self.prepared.lock().unwrap().push(std::fs::read(&path).unwrap());
        std::fs::remove_file(&path).unwrap();
        Ok(())
    }
}

struct Facts;

#[tonic::async_trait]
impl PeerFacts for Facts {
    fn members_json(&self) -> String {
        r#"[{"id":1,"peerURLs":["http://127.0.0.1:1"]}]"#.to_owned()
    }

    fn version_json(&self) -> String {
        r#"{"etcdserver":"3.7.1","etcdcluster":"3.7.0","storage":"3.7.0"}"#.to_owned()
    }

    async fn hash_kv(&self, revision: i64) -> Result<HashKvResponse, Answer> {
        if revision > 7 {
            return Err(Answer::FutureRevision);
        }
        let header = Some(ResponseHeader { revision: 7, ..ResponseHeader::default() });
        Ok(HashKvResponse { header, hash: 9, compact_revision: -1, hash_revision: revision })
    }

    async fn downgrade_enabled(&self) -> Result<bool, Answer> {
        Ok(false)
    }

    async fn lease_keep_alive(&self, lease: i64) -> Result<i64, Answer> {
        match lease {
            5 => Ok(60),
            6 => Err(Answer::TimeoutWaitAppliedIndex),
            7 => Err(Answer::NotLeader),
            _ => Err(Answer::LeaseNotFound),
        }
    }

    async fn lease_time_to_live(&self, lease: i64, _keys: bool) -> Result<LeaseTimeToLiveResponse, Answer> {
        Ok(LeaseTimeToLiveResponse { id: lease, ttl: 3, ..LeaseTimeToLiveResponse::default() })
    }

    async fn promote(&self, member: MemberId, token: Option<String>) -> Result<String, Answer> {
        match (member.0, token.as_deref()) {
            (1, Some("secret")) => Ok(self.members_json()),
            (1, _) => Err(Answer::LearnerNotReady),
            (2, _) => Err(Answer::MemberNotLearner),
            _ => Err(Answer::MemberNotFound),
        }
    }
}

/// One member: transport, listener and what its raft saw.
struct Member {
    id: MemberId,
    peers: Arc<Peers>,
    listener: Option<PeerListener>,
    address: SocketAddr,
    seen: Arc<Seen>,
    _dir: tempfile::TempDir,
}

fn quick() -> Timing {
    Timing {
        dial_retry: Duration::from_millis(20),
        link_heartbeat: Duration::from_millis(100),
        read_timeout: Duration::from_secs(2),
        probe: Duration::from_millis(200),
        header_timeout: Duration::from_secs(1),
        snapshot_stall: Duration::from_secs(5),
        ..Timing::default()
    }
}

/// A port that nothing else of this process uses and that no outgoing connection is given.
fn bind() -> TcpListener {
    TcpListener::bind("127.0.0.1:0").unwrap()
}

impl Member {
    fn start(id: MemberId) -> Member {
        Member::start_as(id, CLUSTER, Vec::new(), false)
    }

    fn start_as(id: MemberId, cluster: ClusterId, removed: Vec<MemberId>, refuse_images: bool) -> Member {
        let dir = tempfile::tempdir().unwrap();
        let seen = Arc::new(Seen { refuse_images, incoming: dir.path().to_owned(), ..Seen::default() });
        let socket = bind();
        let address = socket.local_addr().unwrap();
        let config = PeerConfig { local: id, cluster, peer_urls: vec![url(address)], removed, timing: quick() };
        let metrics = PeerMetrics::register(&prometheus::Registry::new());
        let (images, sink, events) = (Arc::clone(&seen), Arc::clone(&seen), Arc::clone(&seen));
        let peers = Peers::new(config, images, sink, events, metrics, Handle::current());
        peers.set_inbox(Arc::clone(&seen) as Arc<dyn Inbox>);
        let listener = PeerListener::start(&peers, Arc::new(Facts), vec![socket]).unwrap();
        Member { id, peers, listener: Some(listener), address, seen, _dir: dir }
    }

    /// Two members that know each other, with all four streams up.
    async fn pair() -> (Member, Member) {
        let (one, two) = (Member::start(M1), Member::start(M2));
        one.knows(&two);
        two.knows(&one);
        one.is_connected(&two).await;
        (one, two)
    }

    fn knows(&self, other: &Member) {
        self.peers.add_peer(other.id, &[url(other.address)]);
    }

    async fn is_connected(&self, other: &Member) {
        for (here, there) in [(self, other), (other, self)] {
            until("streams are up", || here.has_streams_to(there.id)).await;
        }
    }

    fn has_streams_to(&self, id: MemberId) -> bool {
        let kinds = crate::server::peer::codec::StreamKind::ALL;
        self.peers.shared.member(id).is_some_and(|peer| kinds.iter().all(|kind| peer.slot(*kind).stream().is_some()))
    }

    fn messages(&self) -> Vec<Message> {
        self.seen.messages.lock().unwrap().clone()
    }

    async fn stop(mut self) {
        self.peers.stop().await;
        if let Some(listener) = self.listener.take() {
            listener.stop().await;
        }
    }
}

fn url(address: SocketAddr) -> String {
    format!("http://{address}")
}

async fn until(what: &str, condition: impl Fn() -> bool) {
    let started = Instant::now();
    while !condition() {
        assert!(started.elapsed() < PATIENCE, "not in time: {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

fn message(r#type: u64, from: MemberId, to: MemberId) -> Message {
    let term = if matches!(r#type, MSG_PROP | MSG_READ_INDEX) { 0 } else { 4 };
    Message { r#type, from: from.0, to: to.0, term, ..Message::default() }
}

fn append(from: MemberId, to: MemberId, index: u64, data: &[u8]) -> Message {
    let entry = Entry { term: 4, index: index + 1, data: Bytes::copy_from_slice(data), ..Entry::default() };
    Message { log_term: 4, index, entries: vec![entry], commit: index, ..message(MSG_APP, from, to) }
}

/// One of each type that travels, but MsgSnap.
fn every_type(from: MemberId, to: MemberId) -> Vec<Message> {
    let payload = |index| Entry { index, data: Bytes::from_static(b"12345678"), ..Entry::default() };
    vec![
        Message { entries: vec![payload(0)], ..message(MSG_PROP, from, to) },
        Message { index: 9, reject: true, reject_hint: 8, log_term: 4, ..message(MSG_APP_RESP, from, to) },
        Message { index: 9, log_term: 3, ..message(MSG_VOTE, from, to) },
        message(MSG_VOTE_RESP, from, to),
        Message { context: Bytes::from_static(b"12345678"), commit: 3, ..message(MSG_HEARTBEAT, from, to) },
        message(MSG_HEARTBEAT_RESP, from, to),
        message(MSG_TRANSFER_LEADER, from, to),
        message(MSG_TIMEOUT_NOW, from, to),
        Message { entries: vec![payload(0)], ..message(MSG_READ_INDEX, from, to) },
        Message { index: 9, entries: vec![payload(0)], ..message(MSG_READ_INDEX_RESP, from, to) },
        Message { index: 9, log_term: 3, ..message(MSG_PRE_VOTE, from, to) },
        Message { reject: true, ..message(MSG_PRE_VOTE_RESP, from, to) },
    ]
}

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
    assert!(one.peers.active_since(M2).is_some());
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
    let socket = TcpListener::bind(one.address).unwrap();
    one.listener = Some(PeerListener::start(&one.peers, Arc::new(Facts), vec![socket]).unwrap());
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

fn snapshot_message(from: MemberId, to: MemberId, index: u64) -> Message {
    let conf_state = Some(ConfState { voters: vec![from.0, to.0], ..ConfState::default() });
    let metadata = Some(SnapshotMetadata { conf_state, index, term: 4 });
    Message { snapshot: Some(Snapshot { data: Bytes::new(), metadata }), ..message(MSG_SNAP, from, to) }
}

impl Member {
    /// Gives it an image of `bytes` for the snapshot of `message`, with data that raft does not have.
    fn has_image(&self, message: &Message, bytes: usize) -> Vec<u8> {
        let mut snapshot = message.snapshot.clone().unwrap();
        snapshot.data = Bytes::from_static(b"{}");
        let image: Vec<u8> = (0..bytes).map(|at| (at / 7) as u8).collect();
        let path = self._dir.path().join("image");
        std::fs::write(&path, &image).unwrap();
        let index = snapshot.metadata.as_ref().unwrap().index;
        self.seen.images.lock().unwrap().insert(index, (snapshot, path, bytes as u64));
        image
    }
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
    assert_eq!(std::fs::read_dir(&two.seen.incoming).unwrap().count(), 0);
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

/// An answer as read from the socket.
#[derive(Debug)]
struct Answered {
    status: u16,
    head: String,
    body: String,
}

/// The headers of a member of this cluster.
fn signed(from: MemberId) -> String {
    format!(
        "X-Server-From: {from}\r\nX-Server-Version: 3.7.1\r\nX-Min-Cluster-Version: 3.0.0\r\nX-Etcd-Cluster-ID: {CLUSTER}\r\n"
    )
}

fn post(address: SocketAddr, path: &str, from: MemberId, body: &[u8]) -> Answered {
    ask(address, "POST", path, &signed(from), body)
}

/// One request by hand; reads until the connection ends or the announced body is complete.
fn ask(address: SocketAddr, method: &str, path: &str, headers: &str, body: &[u8]) -> Answered {
    let length = if body.is_empty() { String::new() } else { format!("Content-Length: {}\r\n", body.len()) };
    let head = format!("{method} {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n{headers}{length}\r\n");
    let mut socket = TcpStream::connect(address).unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    socket.write_all(&[head.as_bytes(), body].concat()).unwrap();
    let mut answer = Vec::new();
    let mut chunk = [0; 4096];
    // A connection cut by the server after its answer may end in a reset.
    while let Ok(bytes @ 1..) = socket.read(&mut chunk) {
        answer.extend_from_slice(&chunk[..bytes]);
    }
    let answer = String::from_utf8_lossy(&answer).into_owned();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap_or_else(|| panic!("no answer to {path}: {answer}"));
    let status = head.split(' ').nth(1).unwrap().parse().unwrap();
    Answered { status, head: head.to_owned(), body: body.to_owned() }
}

type Row<'a> = (&'a str, &'a str, &'a str, &'a [u8], u16, &'a str, &'a str);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_path_answers_as_etcd_does() {
    let member = Member::start(M1);
    member.peers.remove_peer(M3);
    member.peers.add_peer(M2, &["http://127.0.0.1:1".to_owned()]);
    let signed_by_2 = signed(M2);
    let to_1 = format!("{signed_by_2}X-Raft-To: {M1}\r\n");
    let other_cluster = to_1.replace(&CLUSTER.to_string(), "1");
    let old = to_1.replace("3.7.1", "2.3.8");
    let future = to_1.replace("Version: 3.0.0", "Version: 3.8.0");
    let stream_2 = format!("/raft/stream/message/{M2}");
    let stream_3 = format!("/raft/stream/msgapp/{M3}");
    let nobody: &[u8] = b"";
    let version = Facts.version_json();
    let json = r#"{"revision":3}"#.as_bytes();
    let lease = |id| LeaseKeepAliveRequest { id }.encode_to_vec();
    let (lease_5, lease_6, lease_7, lease_8) = (lease(5), lease(6), lease(7), lease(8));
    let members = "[{\"id\":1,\"peerURLs\":[\"http://127.0.0.1:1\"]}]\n";
    let id = "X-Etcd-Cluster-Id: a9a3f2aa4603e843";
    let hash = r#"{"header":{"revision":7},"hash":9,"compact_revision":-1,"hash_revision":3}"#;
    // Method, path, headers, body; status, body, a piece of the head.
    let table: Vec<Row> = vec![
        ("GET", "/raft", "", nobody, 405, "Method Not Allowed\n", "Allow: POST"),
        ("POST", "/raft", "", b"x", 412, "incompatible version\n", id),
        ("POST", "/raft", &old, b"x", 412, "incompatible version\n", id),
        ("POST", "/raft", &future, b"x", 412, "incompatible version\n", id),
        ("POST", "/raft", &other_cluster, b"x", 412, "cluster ID mismatch\n", id),
        ("POST", "/raft", &to_1, b"x", 400, "error unmarshalling raft message\n", id),
        ("POST", "/raft", &to_1, b"", 500, "error processing raft message\n", id),
        ("POST", &stream_2, &to_1, nobody, 405, "Method Not Allowed\n", "Allow: GET"),
        ("GET", &stream_2, "", nobody, 412, "incompatible version\n", id),
        ("GET", &stream_2, &other_cluster, nobody, 412, "cluster ID mismatch\n", id),
        ("GET", &stream_2, &signed_by_2, nobody, 412, "to field mismatch\n", "X-Server-Version: 3.7.1"),
        ("GET", "/raft/stream/x/1", &to_1, nobody, 404, "invalid path\n", id),
        ("GET", "/raft/stream/x", &to_1, nobody, 404, "invalid path\n", id),
        ("GET", "/raft/stream/message/zz", &to_1, nobody, 404, "invalid from\n", id),
        ("GET", "/raft/stream/message/77", &to_1, nobody, 404, "error sender not found\n", id),
        ("GET", &stream_3, &to_1, nobody, 410, "removed member\n", id),
        ("POST", "/raft/snapshot", "", b"x", 412, "incompatible version\n", id),
        ("POST", "/raft/snapshot", &to_1, b"x", 400, "failed to decode raft message (unexpected EOF)\n", id),
        (
            "POST",
            "/raft/snapshot",
            &to_1,
            &[0, 0, 0, 0, 0, 16, 0, 1],
            400,
            "failed to decode raft message (rafthttp: error limit exceeded)\n",
            id,
        ),
        ("POST", "/raft/snapshot", &to_1, &[0, 0, 0, 0, 0, 0, 0, 2, 8, 8], 400, "wrong raft message type\n", id),
        (
            "POST",
            "/raft/snapshot",
            &to_1,
            &[0, 0, 0, 0, 0, 0, 0, 2, 8, 7],
            500,
            "failed to process raft message (cannot process message to mismatch member)\n",
            id,
        ),
        ("GET", "/members", "", nobody, 200, members, id),
        ("POST", "/members", "", nobody, 405, "Method Not Allowed\n", "Allow: GET"),
        ("GET", "/version", "", nobody, 200, &version, "Content-Type: application/json"),
        ("GET", "/members/hashkv", "", nobody, 400, "error unmarshalling request\n", ""),
        ("GET", "/members/hashkv", "", json, 200, hash, id),
        ("GET", "/members/hashkv", &other_cluster, json, 412, "cluster ID mismatch\n", ""),
        (
            "GET",
            "/members/hashkv",
            "",
            br#"{"revision":8}"#,
            400,
            "mvcc: required revision is a future revision\n",
            "text/plain; charset=utf-8",
        ),
        ("GET", "/downgrade/enabled", "", nobody, 200, "false", id),
        ("GET", "/leases", "", nobody, 405, "Method Not Allowed\n", ""),
        ("POST", "/leases", "", b"garbage", 400, "error unmarshalling request\n", ""),
        ("POST", "/leases", "", &lease_5, 200, "\u{10}\u{5}\u{18}\u{3c}", "application/protobuf"),
        (
            "POST",
            "/leases",
            "",
            &lease_6,
            408,
            "waiting for node to catch up its applied index has timed out\n",
            "text/plain",
        ),
        ("POST", "/leases", "", &lease_7, 400, "etcdserver: not leader\n", ""),
        ("POST", "/leases", "", &lease_8, 404, "lease not found\n", ""),
        ("POST", "/leases/internal", "", &[0x0a, 2, 8, 5], 200, "\u{a}\u{4}\u{10}\u{5}\u{18}\u{3}", ""),
        ("POST", "/leases/internal", "", nobody, 400, "error unmarshalling request\n", ""),
        ("GET", "/members/promote/1", "", nobody, 405, "Method Not Allowed\n", "Allow: POST"),
        ("POST", "/members/promote/1", "Authorization: secret\r\n", nobody, 200, members, id),
        ("POST", "/members/promote/zz", "", nobody, 404, "member zz not found in cluster\n", id),
        ("POST", "/members/promote/3", "", nobody, 404, "membership: ID not found\n", id),
        ("POST", "/members/promote/2", "", nobody, 412, "membership: can only promote a learner member\n", id),
        ("GET", "/nosuch", "", nobody, 404, "404 page not found\n", "X-Content-Type-Options: nosniff"),
        ("GET", "/health", "", nobody, 404, "404 page not found\n", ""),
        ("GET", "/", "", nobody, 404, "404 page not found\n", ""),
    ];
    for (method, path, headers, body, status, text, head) in table {
        let answered = ask(member.address, method, path, headers, body);
        assert_eq!((answered.status, answered.body.as_str()), (status, text), "{method} {path} {headers}");
        assert!(answered.head.contains(head), "{method} {path}: no {head} in {}", answered.head);
    }
    let probed = ask(member.address, "PUT", "/raft/probing", "", b"");
    assert!(probed.body.starts_with("{\"OK\":true,\"Now\":\"20") && probed.body.ends_with("Z\"}\n"), "{probed:?}");
    assert!(!ask(member.address, "GET", "/leases", "", b"").head.contains("Allow:"));
    member.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dialed_stream_is_flushed_at_once_and_carries_exact_bytes() {
    let member = Member::start(M1);
    let gone = bind().local_addr().unwrap();
    member.peers.add_peer(M2, &[url(gone)]);
    let head = format!("GET /raft/stream/message/{M2} HTTP/1.1\r\nHost: x\r\n{}X-Raft-To: {M1}\r\n\r\n", signed(M2));
    let mut socket = TcpStream::connect(member.address).unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    socket.write_all(head.as_bytes()).unwrap();
    let mut received = Vec::new();
    let mut read_until = |wanted: &str| {
        let mut chunk = [0; 4096];
        loop {
            let text = String::from_utf8_lossy(&received).into_owned();
            if text.contains(wanted) {
                return text;
            }
            let bytes = socket.read(&mut chunk).unwrap();
            assert!(bytes > 0, "stream ended without {wanted:?}: {text}");
            received.extend_from_slice(&chunk[..bytes]);
        }
    };
    let head = read_until("\r\n\r\n");
    for piece in ["200 OK", "X-Server-Version: 3.7.1", "X-Etcd-Cluster-Id: a9a3f2aa4603e843", "chunked"] {
        assert!(head.to_lowercase().contains(&piece.to_lowercase()), "{piece} not in {head}");
    }
    read_until("\r\nA\r\n\0\0\0\0\0\0\0\u{2}\u{8}\u{8}\r\n");
    member.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn garbage_ends_only_its_own_connection() {
    let (one, two) = Member::pair().await;
    for garbage in
        [&b"\0\x01\x02\x03\r\n\r\n"[..], b"GET /raft\r\n", b"POST /raft HTTP/1.1\r\nContent-Length: x\r\n\r\n"]
    {
        let mut socket = TcpStream::connect(one.address).unwrap();
        socket.write_all(garbage).unwrap();
        let _ = socket.shutdown(std::net::Shutdown::Write);
        let mut answer = Vec::new();
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        let _ = socket.read_to_end(&mut answer);
    }
    for body in [&b"\xff\xff\xff"[..], &message(0, M2, M1).encode_to_vec(), &message(MSG_SNAP, M2, M1).encode_to_vec()]
    {
        assert!(post(one.address, "/raft", M2, body).status >= 400);
    }
    // Cut off in the middle of a message.
    let mut socket = TcpStream::connect(one.address).unwrap();
    let head = format!("POST /raft HTTP/1.1\r\nHost: x\r\n{}Content-Length: 100\r\n\r\nabc", signed(M2));
    socket.write_all(head.as_bytes()).unwrap();
    drop(socket);
    one.peers.send(vec![append(M1, M2, 5, b"x")]);
    two.peers.send(vec![message(MSG_HEARTBEAT, M2, M1)]);
    until("the append", || two.messages() == [append(M1, M2, 5, b"x")]).await;
    until("the heartbeat", || one.messages() == [message(MSG_HEARTBEAT, M2, M1)]).await;
    one.stop().await;
    two.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn idle_and_half_heard_connections_are_closed_while_streams_stay() {
    let (one, two) = Member::pair().await;
    let since = two.peers.active_since(M1);
    for beginning in ["", "GET /version HT", "GET /version HTTP/1.1\r\nHost: x\r\n\r\n"] {
        let mut socket = TcpStream::connect(one.address).unwrap();
        socket.write_all(beginning.as_bytes()).unwrap();
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        let mut answer = Vec::new();
        let closed = tokio::task::spawn_blocking(move || socket.read_to_end(&mut answer)).await.unwrap();
        assert!(closed.is_ok(), "{beginning:?}: {closed:?}");
    }
    assert_eq!(two.peers.active_since(M1), since);
    one.stop().await;
    two.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_peer_that_falls_silent_is_noticed_and_dialed_again() {
    let silent = b"HTTP/1.1 200 OK\r\nX-Server-Version: 3.5.1\r\nTransfer-Encoding: chunked\r\n\r\n";
    let one = Member::start(M1);
    one.peers.add_peer(M2, &[url(false_peer(silent))]);
    until("it seems active", || one.peers.active_since(M2).is_some()).await;
    until("it is noticed", || one.peers.active_since(M2).is_none()).await;
    until("it is dialed again", || one.peers.active_since(M2).is_some()).await;
    one.stop().await;
}

/// A peer that answers every connection with `answer` and then listens silently.
fn false_peer(answer: &'static [u8]) -> SocketAddr {
    let socket = bind();
    let address = socket.local_addr().unwrap();
    std::thread::spawn(move || {
        let mut open = Vec::new();
        for connection in socket.incoming() {
            let Ok(mut connection) = connection else { return };
            let _ = connection.write_all(answer);
            open.push(connection);
        }
    });
    address
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

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn misdelivered_and_forged_messages_never_reach_raft() {
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

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bootstrap_questions_are_answered_by_the_first_who_can() {
    let member = Member::start(M1);
    let dead = url(bind().local_addr().unwrap());
    let urls = [dead.clone(), url(member.address)];
    let (cluster, members) = fetch_members(&urls, PATIENCE).await.unwrap();
    assert_eq!((cluster, members), (CLUSTER, format!("{}\n", Facts.members_json())));
    assert_eq!(fetch_version(&urls[1], PATIENCE).await.unwrap(), Facts.version_json());
    let hash = fetch_hash_kv(&urls[1], CLUSTER, 3, PATIENCE).await.unwrap();
    assert_eq!((hash.hash, hash.header.revision, hash.compact_revision), (9, 7, -1));
    let refused = fetch_hash_kv(&urls[1], CLUSTER, 8, PATIENCE).await.unwrap_err();
    let expected = "mvcc: required revision is a future revision";
    assert!(matches!(refused, FetchError::Refused { text, .. } if text == expected));
    let refused = fetch_hash_kv(&urls[1], ClusterId(1), 3, PATIENCE).await.unwrap_err();
    assert!(matches!(refused, FetchError::Refused { text, .. } if text == "cluster ID mismatch"));
    assert!(fetch_members(&[dead], PATIENCE).await.is_err());
    assert!(matches!(fetch_members(&[], PATIENCE).await, Err(FetchError::NoUrls)));
    member.stop().await;
}

//! Members for tests: transport, listener and a raft that only records, in one process, over real sockets.

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
use tokio::runtime::Handle;

use crate::common::answer::Answer;
use crate::common::failure::Failure;
use crate::common::ids::ClusterId;
use crate::common::ids::MemberId;
use crate::proto::etcdserverpb::HashKvResponse;
use crate::proto::etcdserverpb::LeaseTimeToLiveResponse;
use crate::proto::etcdserverpb::ResponseHeader;
use crate::proto::raft_numbers::*;
use crate::proto::raftpb::ConfState;
use crate::proto::raftpb::Entry;
use crate::proto::raftpb::Message;
use crate::proto::raftpb::Snapshot;
use crate::proto::raftpb::SnapshotMetadata;
use crate::server::peer::dialer::Dialer;
use crate::server::peer::facts::PeerFacts;
use crate::server::peer::listener::PeerListener;
use crate::server::peer::metrics::PeerMetrics;
use crate::server::peer::timing::Timing;
use crate::server::peer::transport::PeerConfig;
use crate::server::peer::transport::PeerEvents;
use crate::server::peer::transport::Peers;
use crate::server::raft::state_machine::Inbox;
use crate::server::snapshot::Image;
use crate::server::snapshot::ImageSink;
use crate::server::snapshot::ImageSource;

pub(super) const CLUSTER: ClusterId = ClusterId(0xa9a3f2aa4603e843);
pub(super) const M1: MemberId = MemberId(0x4064c276627c13e8);
pub(super) const M2: MemberId = MemberId(0xa50afd602f55893f);
pub(super) const M3: MemberId = MemberId(0x67a8c1728f351fbd);

/// Far beyond what any condition needs on a busy machine.
pub(super) const PATIENCE: Duration = Duration::from_secs(30);

/// What one member's raft and application would have seen, and the images it has.
#[derive(Default)]
pub(super) struct Seen {
    pub messages: Mutex<Vec<Message>>,
    pub unreachable: Mutex<Vec<MemberId>>,
    pub snapshots: Mutex<Vec<(MemberId, bool)>>,
    pub removed_by: Mutex<Vec<MemberId>>,
    pub images: Mutex<BTreeMap<u64, (Snapshot, PathBuf, u64)>>,
    pub prepared: Mutex<Vec<Vec<u8>>>,
    pub refuse_images: bool,
    pub incoming: PathBuf,
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

pub(super) struct Facts;

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
pub(super) struct Member {
    pub id: MemberId,
    pub peers: Arc<Peers>,
    pub listener: Option<PeerListener>,
    pub address: SocketAddr,
    pub seen: Arc<Seen>,
    _dir: tempfile::TempDir,
}

pub(super) fn quick() -> Timing {
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
pub(super) fn bind() -> TcpListener {
    TcpListener::bind("127.0.0.1:0").unwrap()
}

impl Member {
    pub fn start(id: MemberId) -> Member {
        Member::start_as(id, CLUSTER, Vec::new(), false)
    }

    pub fn start_as(id: MemberId, cluster: ClusterId, removed: Vec<MemberId>, refuse_images: bool) -> Member {
        let dir = tempfile::tempdir().unwrap();
        let seen = Arc::new(Seen { refuse_images, incoming: dir.path().to_owned(), ..Seen::default() });
        let socket = bind();
        let address = socket.local_addr().unwrap();
        let dialer = Dialer::default();
        let config = PeerConfig { local: id, cluster, peer_urls: vec![url(address)], dialer, removed, timing: quick() };
        let metrics = PeerMetrics::register(&prometheus::Registry::new());
        let (images, sink, events) = (Arc::clone(&seen), Arc::clone(&seen), Arc::clone(&seen));
        let peers = Peers::new(config, images, sink, events, metrics, Handle::current());
        peers.set_inbox(Arc::clone(&seen) as Arc<dyn Inbox>);
        let listener = PeerListener::start(&peers, Arc::new(Facts), vec![socket.into()]).unwrap();
        Member { id, peers, listener: Some(listener), address, seen, _dir: dir }
    }

    /// Two members that know each other, with all four streams up.
    pub async fn pair() -> (Member, Member) {
        let (one, two) = (Member::start(M1), Member::start(M2));
        one.knows(&two);
        two.knows(&one);
        one.is_connected(&two).await;
        (one, two)
    }

    pub fn knows(&self, other: &Member) {
        self.peers.add_peer(other.id, &[url(other.address)]);
    }

    pub async fn is_connected(&self, other: &Member) {
        for (here, there) in [(self, other), (other, self)] {
            until("streams are up", || here.has_streams_to(there.id)).await;
        }
    }

    pub fn has_streams_to(&self, id: MemberId) -> bool {
        let kinds = crate::server::peer::codec::StreamKind::ALL;
        self.peers.shared.member(id).is_some_and(|peer| kinds.iter().all(|kind| peer.slot(*kind).stream().is_some()))
    }

    pub fn messages(&self) -> Vec<Message> {
        self.seen.messages.lock().unwrap().clone()
    }

    pub async fn stop(mut self) {
        self.peers.stop().await;
        if let Some(listener) = self.listener.take() {
            listener.stop().await;
        }
    }
}

pub(super) fn url(address: SocketAddr) -> String {
    format!("http://{address}")
}

pub(super) async fn until(what: &str, condition: impl Fn() -> bool) {
    let started = Instant::now();
    while !condition() {
        assert!(started.elapsed() < PATIENCE, "not in time: {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

pub(super) fn message(r#type: u64, from: MemberId, to: MemberId) -> Message {
    let term = if matches!(r#type, MSG_PROP | MSG_READ_INDEX) { 0 } else { 4 };
    Message { r#type, from: from.0, to: to.0, term, ..Message::default() }
}

pub(super) fn append(from: MemberId, to: MemberId, index: u64, data: &[u8]) -> Message {
    let entry = Entry { term: 4, index: index + 1, data: Bytes::copy_from_slice(data), ..Entry::default() };
    Message { log_term: 4, index, entries: vec![entry], commit: index, ..message(MSG_APP, from, to) }
}

/// One of each type that travels, but MsgSnap.
pub(super) fn every_type(from: MemberId, to: MemberId) -> Vec<Message> {
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

/// An answer as read from the socket.
#[derive(Debug)]
pub(super) struct Answered {
    pub status: u16,
    pub head: String,
    pub body: String,
}

/// The headers of a member of this cluster.
pub(super) fn signed(from: MemberId) -> String {
    format!(
        "X-Server-From: {from}\r\nX-Server-Version: 3.7.1\r\nX-Min-Cluster-Version: 3.0.0\r\nX-Etcd-Cluster-ID: {CLUSTER}\r\n"
    )
}

pub(super) fn post(address: SocketAddr, path: &str, from: MemberId, body: &[u8]) -> Answered {
    ask(address, "POST", path, &signed(from), body)
}

/// One request by hand; reads until the connection ends or the announced body is complete.
pub(super) fn ask(address: SocketAddr, method: &str, path: &str, headers: &str, body: &[u8]) -> Answered {
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

/// A peer that answers every connection with `answer` and then listens silently.
pub(super) fn false_peer(answer: &'static [u8]) -> SocketAddr {
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

pub(super) fn snapshot_message(from: MemberId, to: MemberId, index: u64) -> Message {
    let conf_state = Some(ConfState { voters: vec![from.0, to.0], ..ConfState::default() });
    let metadata = Some(SnapshotMetadata { conf_state, index, term: 4 });
    Message { snapshot: Some(Snapshot { data: Bytes::new(), metadata }), ..message(MSG_SNAP, from, to) }
}

impl Member {
    /// Gives it an image of `bytes` for the snapshot of `message`, with data that raft does not have.
    pub fn has_image(&self, message: &Message, bytes: usize) -> Vec<u8> {
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

//! The peer port: strangers, members of other clusters, broken members, and snapshots that are none.

use prost::Message as _;
use quorate::proto::raft_numbers::MSG_HEARTBEAT;
use quorate::proto::raft_numbers::MSG_SNAP;
use quorate::proto::raftpb::ConfState;
use quorate::proto::raftpb::Message;
use quorate::proto::raftpb::Snapshot;
use quorate::proto::raftpb::SnapshotMetadata;
use tokio::io::AsyncReadExt;
use tokio::io::AsyncWriteExt;

use crate::cluster::Cluster;
use crate::cluster::Member;
use crate::sockets::connect;
use crate::sockets::http1;
use crate::sockets::is_well;
use crate::sockets::pour;

/// Who a request says that it is from and for.
struct Letter {
    cluster: u64,
    from: u64,
    to: u64,
}

impl Letter {
    fn head(&self, method: &str, path: &str, framing: &str) -> String {
        let Letter { cluster, from, to } = self;
        format!(
            "{method} {path} HTTP/1.1\r\nHost: h\r\nX-Server-From: {from:x}\r\nX-Server-Version: 3.7.1\r\n\
             X-Min-Cluster-Version: 3.0.0\r\nX-Etcd-Cluster-ID: {cluster:x}\r\nX-Raft-To: {to:x}\r\n{framing}\r\n"
        )
    }

    async fn post(&self, member: &Member, path: &str, body: &[u8]) -> (u16, String) {
        let framing = format!("Content-Length: {}\r\nConnection: close\r\n", body.len());
        let request = [self.head("POST", path, &framing).as_bytes(), body].concat();
        http1(member.peer_port, &request).await
    }
}

/// The ids of the cluster, and of its two members: whom we ask, and whom we play.
async fn ids(cluster: &Cluster) -> Letter {
    let header = cluster.members[0].status().await.expect("a status").header.expect("a header");
    Letter { cluster: header.cluster_id, from: cluster.members[1].id().await, to: header.member_id }
}

fn heartbeat(letter: &Letter, to: u64) -> Vec<u8> {
    let message = Message { r#type: MSG_HEARTBEAT, to, from: letter.from, term: 1, ..Message::default() };
    message.encode_to_vec()
}

/// Three members, so that the one whose port is attacked always has somebody to agree with.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn letters_that_are_not_for_us_or_no_letters_change_nothing() {
    let mut cluster = Cluster::ours(3, &[]).await;
    let good = ids(&cluster).await;
    let term = cluster.members[0].status().await.expect("a status").raft_term;
    let stranger = Letter { cluster: good.cluster ^ 1, ..good };
    let member = &cluster.members[0];
    let check = |what: &str, (status, text): (u16, String), expected: u16| {
        assert_eq!(status, expected, "{what}: {text}");
    };
    let beat = heartbeat(&good, good.to);
    check("of our own", good.post(member, "/raft", &beat).await, 204);
    check("another cluster's", stranger.post(member, "/raft", &beat).await, 412);
    check("another cluster's snapshot", stranger.post(member, "/raft/snapshot", &beat).await, 412);
    check("for somebody else", good.post(member, "/raft", &heartbeat(&good, 77)).await, 500);
    check("no protobuf", good.post(member, "/raft", &[0xff; 300]).await, 400);
    check("half a message", good.post(member, "/raft", &beat[..beat.len() - 1]).await, 400);
    check("nothing", good.post(member, "/raft", b"").await, 500);
    for number in 0..40 {
        // Whatever the type, what is in it makes no sense: it is refused or ignored, and nobody is impressed.
        let wild = Message {
            r#type: number,
            to: good.to,
            from: good.from,
            term: 1 << 40,
            log_term: 7,
            index: u64::MAX - 3,
            commit: u64::MAX,
            ..Message::default()
        };
        let (status, text) = good.post(member, "/raft", &wild.encode_to_vec()).await;
        assert!([204, 400, 500].contains(&status), "type {number}: {status} {text}");
    }
    // Beyond 64 MiB nothing is read, let alone kept.
    let mut socket = connect(member.peer_port).await;
    let head = good.head("POST", "/raft", "Content-Length: 3000000000\r\n");
    socket.write_all(head.as_bytes()).await.expect("sent");
    let taken = pour(&mut socket, &[0x0a; 1 << 16], 300 << 20).await;
    println!("{taken} bytes of a message were taken");
    drop(socket);
    is_well(&mut cluster.members[0], "wrong letters").await;
    for member in &cluster.members {
        member.put("all", "well").await.expect("every member takes writes");
    }
    println!("term {term}, now {}", cluster.members[0].status().await.expect("a status").raft_term);
    cluster.hashes_agree().await;
}

fn snapshot_message(letter: &Letter, index: u64) -> Vec<u8> {
    let conf_state = Some(ConfState { voters: vec![letter.from, letter.to], ..ConfState::default() });
    let metadata = Some(SnapshotMetadata { conf_state, index, term: 2 });
    let message = Message {
        r#type: MSG_SNAP,
        to: letter.to,
        from: letter.from,
        term: 2,
        snapshot: Some(Snapshot { metadata, ..Snapshot::default() }),
        ..Message::default()
    };
    let bytes = message.encode_to_vec();
    [&(bytes.len() as u64).to_be_bytes()[..], &bytes].concat()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn snapshots_that_are_none_leave_nothing_behind() {
    let mut cluster = Cluster::ours(2, &[]).await;
    let good = ids(&cluster).await;
    cluster.members[0].put("kept", "value").await.expect("a put");
    let image: Vec<u8> = (0..3 << 20_u32).map(|at: u32| (at / 13) as u8).collect();
    let envelope = snapshot_message(&good, 1_000_000);
    let member = &cluster.members[0];
    for (what, body) in [
        ("nothing", Vec::new()),
        ("half a length", vec![0; 4]),
        ("a length of all bytes", vec![0xff; 64]),
        ("an envelope of 2 MiB", [&(2_u64 << 20).to_be_bytes()[..], &[0; 100]].concat()),
        ("half an envelope", envelope[..envelope.len() - 3].to_vec()),
        ("no protobuf", [&9_u64.to_be_bytes()[..], &[0xff; 9]].concat()),
        ("no image", envelope.clone()),
        ("garbage", [&envelope[..], &image].concat()),
        ("another type", {
            let beat = heartbeat(&good, good.to);
            [&(beat.len() as u64).to_be_bytes()[..], &beat, &image].concat()
        }),
    ] {
        let (status, text) = good.post(member, "/raft/snapshot", &body).await;
        assert!(status == 400 || status == 500, "{what}: {status} {text}");
    }
    // Cut in the middle, and one that goes on for some time.
    let mut cut = connect(member.peer_port).await;
    let head = good.head("POST", "/raft/snapshot", "Content-Length: 999999999\r\n");
    cut.write_all(&[head.as_bytes(), &envelope, &image].concat()).await.expect("sent");
    drop(cut);
    let mut endless = connect(member.peer_port).await;
    let head = good.head("POST", "/raft/snapshot", "Transfer-Encoding: chunked\r\n");
    let chunk = |bytes: &[u8]| [format!("{:x}\r\n", bytes.len()).as_bytes(), bytes, b"\r\n"].concat();
    endless.write_all(&[head.as_bytes(), &chunk(&envelope)].concat()).await.expect("sent");
    let taken = pour(&mut endless, &chunk(&image), 200 << 20).await;
    println!("{taken} bytes of an image were taken");
    drop(endless);
    is_well(&mut cluster.members[0], "snapshots that are none").await;
    let dir = cluster.members[0].data_dir.join("member/snap");
    crate::support::eventually("no file of a snapshot to be left", async || {
        let names = std::fs::read_dir(&dir).expect("a directory").flatten().map(|entry| entry.file_name());
        let names: Vec<String> = names.map(|name| name.to_string_lossy().into_owned()).collect();
        if names == ["db.redb"] { Ok(()) } else { Err(format!("{names:?}")) }
    })
    .await;
    assert_eq!(cluster.members[0].get("kept").await.expect("a read").count, 1);
    cluster.hashes_agree().await;
}

/// Streams that are dialed and never read, more than there may be connections.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn streams_that_nobody_reads_are_dropped_for_newer_ones() {
    let mut cluster = Cluster::ours(3, &[]).await;
    let good = ids(&cluster).await;
    let port = cluster.members[0].peer_port;
    let mut half_open = Vec::new();
    for number in 0..300 {
        let kind = ["message", "msgapp"][number % 2];
        let path = format!("/raft/stream/{kind}/{:x}", good.from);
        let mut socket = connect(port).await;
        socket.write_all(good.head("GET", &path, "").as_bytes()).await.expect("sent");
        half_open.push(socket);
    }
    let mut first = half_open.remove(0);
    let mut head = [0; 12];
    first.read_exact(&mut head).await.expect("an answer");
    assert_eq!(&head, b"HTTP/1.1 200");
    // It was replaced by the next one of its kind, so it ends.
    let mut rest = Vec::new();
    let end = tokio::time::timeout(crate::support::PATIENCE, first.read_to_end(&mut rest)).await;
    assert!(end.is_ok(), "the first stream is still open");
    for path in ["/raft/stream/nonsense/1", "/raft/stream/message/zz", "/raft/stream/message/", "/raft/stream/"] {
        let (status, text) = http1(port, good.head("GET", path, "Connection: close\r\n").as_bytes()).await;
        assert_eq!(status, 404, "{path}: {text}");
    }
    is_well(&mut cluster.members[0], "half-open streams").await;
    drop(half_open);
    cluster.members[0].put("after", "value").await.expect("a put");
    cluster.hashes_agree().await;
}

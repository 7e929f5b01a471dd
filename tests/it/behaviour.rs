//! What clients of a member see when space, leaders or data are short: tables over real processes (server.md 2, 3, 6.4, 8.1).
//!
//! Where etcd 3.5.1 does the same, the same table runs against it.

use std::time::Duration;

use bytes::Bytes;
use quorate::proto::etcdserverpb::AlarmRequest;
use quorate::proto::etcdserverpb::AlarmResponse;
use quorate::proto::etcdserverpb::AlarmType;
use quorate::proto::etcdserverpb::CompactionRequest;
use quorate::proto::etcdserverpb::DeleteRangeRequest;
use quorate::proto::etcdserverpb::HashRequest;
use quorate::proto::etcdserverpb::MemberListRequest;
use quorate::proto::etcdserverpb::PutRequest;
use quorate::proto::etcdserverpb::RangeRequest;
use quorate::proto::etcdserverpb::RangeResponse;
use quorate::proto::etcdserverpb::RequestOp;
use quorate::proto::etcdserverpb::TxnRequest;
use quorate::proto::etcdserverpb::alarm_request::AlarmAction;
use quorate::proto::etcdserverpb::cluster_client::ClusterClient;
use quorate::proto::etcdserverpb::kv_client::KvClient;
use quorate::proto::etcdserverpb::maintenance_client::MaintenanceClient;
use quorate::proto::etcdserverpb::request_op;
use tonic::Code;
use tonic::Request;
use tonic::Status;
use tonic::transport::Channel;
use tonic::transport::Endpoint;

use crate::cluster::Cluster;
use crate::cluster::Member;
use crate::cluster::Program;
use crate::oracle::oracle;
use crate::support::eventually;
use crate::support::free_port;
use crate::support::http_get;

const NO_SPACE: &str = "etcdserver: mvcc: database space exceeded";
const CORRUPT: &str = "etcdserver: corrupt cluster";

async fn kv(member: &Member) -> KvClient<Channel> {
    KvClient::new(member.connect().await.expect("a connection"))
}

fn put(key: &str, bytes: usize) -> PutRequest {
    PutRequest { key: key.to_owned().into(), value: Bytes::from(vec![b'x'; bytes]), ..PutRequest::default() }
}

fn get(key: &str) -> RangeRequest {
    RangeRequest { key: key.to_owned().into(), ..RangeRequest::default() }
}

fn delete(key: &str) -> DeleteRangeRequest {
    DeleteRangeRequest { key: key.to_owned().into(), ..DeleteRangeRequest::default() }
}

fn op(request: request_op::Request) -> RequestOp {
    RequestOp { request: Some(request) }
}

/// A transaction that carries out `then` and never `otherwise`.
fn txn(then: Vec<RequestOp>, otherwise: Vec<RequestOp>) -> TxnRequest {
    TxnRequest { success: then, failure: otherwise, ..TxnRequest::default() }
}

fn compaction(revision: i64) -> CompactionRequest {
    CompactionRequest { revision, physical: true }
}

async fn alarm(member: &Member, action: AlarmAction, kind: AlarmType) -> AlarmResponse {
    let member_id = member.status().await.expect("a status").header.expect("a header").member_id;
    let channel = member.connect().await.expect("a connection");
    let request = AlarmRequest { action: action as i32, member_id, alarm: kind as i32 };
    MaintenanceClient::new(channel).alarm(request).await.expect("an answer").into_inner()
}

/// Code and text of an answer; OK and nothing when it was none.
fn said<T>(result: Result<T, Status>) -> (Code, String) {
    match result {
        Ok(_) => (Code::Ok, String::new()),
        Err(status) => (status.code(), status.message().to_owned()),
    }
}

fn no_space() -> (Code, String) {
    (Code::ResourceExhausted, NO_SPACE.to_owned())
}

fn ok() -> (Code, String) {
    (Code::Ok, String::new())
}

#[tokio::test]
async fn a_full_member_refuses_what_grows_until_it_was_compacted_and_disarmed() {
    let mut cluster = Cluster::ours(1, &["--quota-backend-bytes", "20000"]).await;
    let mut client = kv(&cluster.members[0]).await;
    let mut revision = 0;
    let refused = loop {
        match client.put(put("k", 3000)).await {
            Ok(response) => revision = response.into_inner().header.expect("a header").revision,
            Err(status) => break said::<()>(Err(status)),
        }
        assert!(revision < 20, "the quota is never reached");
    };
    assert_eq!((refused, revision), (no_space(), 7));
    let status = cluster.members[0].status().await.expect("a status");
    let id = status.header.expect("a header").member_id;
    assert_eq!(status.errors, [format!("memberID:{id} alarm:NOSPACE")]);
    // In pages, above those that etcd shows of an empty store.
    assert_eq!((status.db_size, status.db_size_in_use), (20_480 + 20_480, 16_384 + 20_480), "{status:?}");
    assert_eq!(status.db_size_quota, 20_000);

    // The alarm is in the log: it is there after a restart, whatever the quota is then.
    cluster.members[0].kill();
    cluster.members[0].set_arg("--quota-backend-bytes", "0");
    cluster.members[0].start();
    cluster.wait_ready().await;
    let member = &cluster.members[0];
    let mut client = kv(member).await;
    let put_op = || op(request_op::Request::RequestPut(put("k", 1)));
    let delete_op = || op(request_op::Request::RequestDeleteRange(delete("other")));
    let nested = op(request_op::Request::RequestTxn(txn(vec![], vec![put_op()])));
    assert_eq!(said(client.put(put("k", 1)).await), no_space());
    assert_eq!(said(client.txn(txn(vec![], vec![put_op()])).await), no_space(), "a put in the other branch");
    assert_eq!(said(client.txn(txn(vec![nested], vec![])).await), no_space(), "a nested put");
    assert_eq!(said(client.txn(txn(vec![delete_op()], vec![])).await), ok());
    assert_eq!(said(client.delete_range(delete("other")).await), ok());
    assert_eq!(said(client.range(get("k")).await), ok());
    assert_eq!(
        http_get(member.client_port, "/health").await,
        (503, "{\"health\":\"false\",\"reason\":\"ALARM NOSPACE\"}\n".into())
    );
    assert_eq!(http_get(member.client_port, "/health?exclude=NOSPACE").await.0, 200);
    assert_eq!(http_get(member.client_port, "/readyz").await.0, 200);

    // Compaction alone frees the space (DESIGN.md 4), and only a word of the operator ends the alarm.
    cluster.members[0].kill();
    cluster.members[0].set_arg("--quota-backend-bytes", "20000");
    cluster.members[0].start();
    cluster.wait_ready().await;
    let member = &cluster.members[0];
    let mut client = kv(member).await;
    assert_eq!(said(client.compact(compaction(revision)).await), ok());
    let freed = member.status().await.expect("a status").db_size;
    assert_eq!(freed, 20_480 + 4096, "one value is left");
    assert_eq!(said(client.put(put("k", 1)).await), no_space());
    disarm(member, "a_full_member_refuses_what_grows_until_it_was_compacted_and_disarmed").await;
    assert_eq!(said(client.put(put("k", 3000)).await), ok());
    assert_eq!(alarm(member, AlarmAction::Get, AlarmType::None).await.alarms, []);
    assert_eq!(http_get(member.client_port, "/health").await.0, 200);
}

/// By the real etcdctl, where it can be had.
async fn disarm(member: &Member, test: &str) {
    let Some(oracle) = oracle(test) else {
        let response = alarm(member, AlarmAction::Deactivate, AlarmType::Nospace).await;
        assert_eq!(response.alarms.len(), 1);
        return;
    };
    let id = member.status().await.expect("a status").header.expect("a header").member_id;
    let line = format!("memberID:{id} alarm:NOSPACE \n");
    for (word, expected) in [("list", line.as_str()), ("disarm", &line), ("list", ""), ("disarm", "")] {
        let output = std::process::Command::new(&oracle.etcdctl)
            .args(["--endpoints", &member.endpoint(), "alarm", word])
            .output()
            .expect("etcdctl runs");
        assert_eq!(String::from_utf8_lossy(&output.stdout), expected, "alarm {word}: {output:?}");
    }
}

/// The quota is each member's own; what it means is everybody's.
#[tokio::test]
async fn a_full_follower_raises_the_alarm_for_all_and_applies_all_the_same() {
    let mut cluster = Cluster::prepare(&vec![Program::Ours; 3], &[]);
    for (member, quota) in cluster.members.iter_mut().zip(["0", "2000", "0"]) {
        member.add_args(&["--quota-backend-bytes", quota]);
        member.start();
    }
    cluster.wait_ready().await;
    let mut client = kv(&cluster.members[0]).await;
    assert_eq!(said(client.put(put("large", 5000)).await), ok(), "it fits where it was asked");
    let small = cluster.members[1].status().await.expect("a status").header.expect("a header").member_id;
    eventually("the alarm of the small member", async || {
        let alarms = alarm(&cluster.members[2], AlarmAction::Get, AlarmType::Nospace).await.alarms;
        match alarms.as_slice() {
            [only] if only.member_id == small => Ok(()),
            other => Err(format!("{other:?}")),
        }
    })
    .await;
    for member in &cluster.members {
        assert_eq!(said(kv(member).await.put(put("k", 1)).await), no_space());
    }
    cluster.hashes_agree().await;
    assert_eq!(cluster.members[1].get("large").await.expect("an answer").count, 1);
}

#[tokio::test]
async fn a_corrupt_cluster_answers_plain_reads_only() {
    let mut cluster = Cluster::ours(1, &[]).await;
    cluster.members[0].put("k", "v").await.expect("a put");
    assert_eq!(alarm(&cluster.members[0], AlarmAction::Activate, AlarmType::Corrupt).await.alarms.len(), 1);
    // It says so after a restart, too.
    cluster.members[0].kill();
    cluster.members[0].start();
    cluster.wait_ready().await;
    let member = &cluster.members[0];
    let mut client = kv(member).await;
    let corrupt = || (Code::DataLoss, CORRUPT.to_owned());
    let get_op = || op(request_op::Request::RequestRange(get("k")));
    assert_eq!(said(client.put(put("k", 1)).await), corrupt());
    assert_eq!(
        said(client.put(PutRequest { lease: 7, ..put("k", 1) }).await),
        corrupt(),
        "before the lease is looked at"
    );
    assert_eq!(said(client.delete_range(delete("k")).await), corrupt());
    assert_eq!(said(client.compact(compaction(1)).await), corrupt());
    let put_op = op(request_op::Request::RequestPut(put("k", 1)));
    assert_eq!(said(client.txn(txn(vec![put_op], vec![])).await), corrupt());
    let nested = op(request_op::Request::RequestTxn(txn(vec![get_op()], vec![])));
    assert_eq!(said(client.txn(txn(vec![nested], vec![])).await), corrupt(), "it goes through the log");
    assert_eq!(said(client.txn(txn(vec![get_op()], vec![])).await), ok());
    assert_eq!(said(client.range(get("k")).await), ok());
    assert_eq!(said(member.hash_kv(0).await), ok());
    let health = http_get(member.client_port, "/health").await;
    assert_eq!(health, (503, "{\"health\":\"false\",\"reason\":\"ALARM CORRUPT\"}\n".into()));
    let (code, text) = http_get(member.client_port, "/readyz").await;
    assert!(code == 503 && text.contains("[-]data_corruption failed: alarm activated: CORRUPT"), "{code} {text}");
    assert_eq!(http_get(member.client_port, "/livez").await, (200, "ok\n".into()));
    assert_eq!(alarm(member, AlarmAction::Deactivate, AlarmType::Nospace).await.alarms, [], "there is none");
    assert_eq!(alarm(member, AlarmAction::Deactivate, AlarmType::Corrupt).await.alarms.len(), 1);
    assert_eq!(said(client.put(put("k", 1)).await), ok());
}

/// RT is 5 s and two of these.
const FAST: [&str; 4] = ["--heartbeat-interval", "20", "--election-timeout", "200"];

#[tokio::test]
async fn without_a_leader_writes_and_linearizable_reads_end_and_local_ones_go_on() {
    leaderless(Program::Ours, Code::DeadlineExceeded, true).await;
}

#[tokio::test]
async fn the_real_etcd_does_the_same_without_a_leader() {
    if let Some(oracle) = oracle("the_real_etcd_does_the_same_without_a_leader") {
        // 3.7 has a code for it; 3.5 had the text only.
        leaderless(Program::Etcd(oracle.etcd.clone()), Code::Unknown, false).await;
    }
}

/// `ours`: 3.5.1 does not know /livez and /readyz, and lets the second of two reads wait twice RT.
async fn leaderless(program: Program, of_writes: Code, ours: bool) {
    let mut cluster = Cluster::start(&vec![program; 3], &FAST).await;
    cluster.members[0].put("k", "v").await.expect("a put");
    cluster.hashes_agree().await;
    cluster.members[1].kill();
    cluster.members[2].kill();
    let member = &cluster.members[0];
    eventually("no leader", async || match member.status().await {
        Ok(status) if status.leader == 0 => Ok(()),
        other => Err(format!("{other:?}")),
    })
    .await;
    let status = member.status().await.expect("a status");
    assert_eq!(status.errors, ["etcdserver: no leader"]);
    let client = kv(member).await;
    let deadline = (of_writes, "context deadline exceeded".to_owned());
    let timed_out = (Code::Unavailable, "etcdserver: request timed out".to_owned());
    let no_leader = (Code::Unavailable, "etcdserver: no leader".to_owned());
    let local = RangeRequest { serializable: true, ..get("k") };
    let list = MemberListRequest { linearizable: true };
    let mut members = ClusterClient::new(member.connect().await.expect("a connection"));
    let (mut one, mut two, mut three, mut four) = (client.clone(), client.clone(), client.clone(), client.clone());
    // Together: each of the slow ones takes RT.
    let (put_said, txn_said, range_said, list_said, health) = tokio::join!(
        async { said(one.put(put("k", 1)).await) },
        async { said(two.txn(txn(vec![op(request_op::Request::RequestDeleteRange(delete("k")))], vec![])).await) },
        async { said(three.range(get("k")).await) },
        async { if ours { said(members.member_list(list).await) } else { timed_out.clone() } },
        http_get(member.client_port, "/health"),
    );
    assert_eq!(put_said, deadline);
    assert_eq!(txn_said, deadline);
    assert_eq!(range_said, timed_out);
    assert_eq!(list_said, timed_out);
    assert_eq!(health, (503, "{\"health\":\"false\",\"reason\":\"RAFT NO LEADER\"}\n".into()));
    let answer = four.range(local.clone()).await.expect("a local read").into_inner();
    assert_eq!(answer.count, 1);
    assert_eq!(said(four.txn(txn(vec![], vec![])).await), ok(), "a transaction of nothing is a local read");
    let demanding = |mut request: Request<RangeRequest>| {
        request.metadata_mut().insert("hasleader", "true".parse().expect("a value"));
        request
    };
    assert_eq!(said(four.range(demanding(Request::new(local))).await), no_leader);
    if ours {
        // 3.5.1 has other codes for this, now one, now another.
        let mut hasty = Request::new(put("k", 1));
        hasty.set_timeout(Duration::from_millis(50));
        let (code, _) = said(four.put(hasty).await);
        assert!(matches!(code, Code::DeadlineExceeded | Code::Cancelled), "{code:?}");
        assert_eq!(http_get(member.client_port, "/livez").await.0, 200);
        assert_eq!(http_get(member.client_port, "/readyz?exclude=linearizable_read").await.0, 200);
    }
    // Nothing of all this was lost for good: with a quorum the member serves again.
    cluster.members[1].start();
    cluster.wait_ready().await;
    cluster.members[0].put("k", "w").await.expect("a put");
}

#[tokio::test]
async fn nobody_is_answered_before_the_member_has_published_itself() {
    let mut cluster = Cluster::prepare(&vec![Program::Ours; 3], &FAST);
    let metrics = free_port();
    let url = format!("http://127.0.0.1:{metrics}");
    cluster.members[0].add_args(&["--listen-metrics-urls", &url]);
    cluster.members[0].start();
    let endpoint = Endpoint::from_shared(format!("http://{}", cluster.members[0].endpoint())).expect("an address");
    let early = eventually("the socket", async || endpoint.connect().await.map_err(|error| error.to_string())).await;
    // Metrics and health answer meanwhile: that is what a separate listener is for.
    eventually("metrics", async || match http_get(metrics, "/metrics").await {
        (200, text) if text.contains("etcd_server_has_leader 0") => Ok(()),
        (code, _) => Err(code.to_string()),
    })
    .await;
    assert_eq!(http_get(metrics, "/version").await.0, 404);
    let local = RangeRequest { serializable: true, ..get("k") };
    let waiting = tokio::spawn(async move { said(KvClient::new(early).range(local).await) });
    // The member is up, and the others are not: no leader can have been elected since.
    assert_eq!(http_get(metrics, "/livez").await.0, 200);
    assert!(!waiting.is_finished());
    for member in &mut cluster.members[1..] {
        member.start();
    }
    assert_eq!(waiting.await.expect("no panic"), ok());
}

#[tokio::test]
async fn a_stream_of_a_range_adds_up_to_the_range() {
    let cluster = Cluster::ours(1, &["--max-request-bytes", "4000"]).await;
    let mut client = kv(&cluster.members[0]).await;
    for number in 0..300 {
        client.put(put(&format!("k{number:03}"), number)).await.expect("a put");
    }
    let all = RangeRequest { key: "k".into(), range_end: "l".into(), ..RangeRequest::default() };
    let requests = [
        all.clone(),
        RangeRequest { limit: 7, ..all.clone() },
        RangeRequest { limit: 300, ..all.clone() },
        RangeRequest { limit: 299, ..all.clone() },
        RangeRequest { limit: -1, ..all.clone() },
        RangeRequest { revision: 100, ..all.clone() },
        RangeRequest { keys_only: true, ..all.clone() },
        RangeRequest { count_only: true, ..all.clone() },
        RangeRequest { serializable: true, limit: 11, ..all.clone() },
        RangeRequest { sort_order: 1, ..all.clone() },
        RangeRequest { key: "zz".into(), range_end: Bytes::new(), ..all.clone() },
    ];
    for request in requests {
        let whole = client.range(request.clone()).await.expect("a range").into_inner();
        let mut stream = client.range_stream(request.clone()).await.expect("a stream").into_inner();
        let (mut kvs, mut last) = (Vec::new(), RangeResponse::default());
        let mut chunks = 0;
        while let Some(chunk) = stream.message().await.expect("a chunk") {
            assert_eq!(last.header, None, "only the last chunk has a header");
            last = chunk.range_response.expect("a part of the answer");
            kvs.append(&mut last.kvs);
            chunks += 1;
        }
        assert_eq!(RangeResponse { kvs, ..last }, whole, "{request:?}");
        if whole.kvs.len() > 10 && request.limit >= 0 {
            assert!(chunks > 1, "{request:?} came as one");
        }
    }
    let refused = [
        (RangeRequest { key: Bytes::new(), ..all.clone() }, Code::InvalidArgument, "etcdserver: key is not provided"),
        (RangeRequest { sort_order: 9, ..all.clone() }, Code::InvalidArgument, "etcdserver: invalid sort option"),
        (
            RangeRequest { sort_order: 2, ..all.clone() },
            Code::Unimplemented,
            "RangeStream does not support custom sort orders",
        ),
        (
            RangeRequest { sort_target: 1, ..all.clone() },
            Code::Unimplemented,
            "RangeStream does not support custom sort orders",
        ),
        (
            RangeRequest { max_mod_revision: -1, ..all.clone() },
            Code::Unimplemented,
            "RangeStream does not support revision filters",
        ),
        (
            RangeRequest { revision: 999, ..all.clone() },
            Code::OutOfRange,
            "etcdserver: mvcc: required revision is a future revision",
        ),
    ];
    for (request, code, text) in refused {
        let answer = match client.range_stream(request).await {
            Ok(stream) => said(stream.into_inner().message().await),
            Err(status) => said::<()>(Err(status)),
        };
        assert_eq!(answer, (code, text.to_owned()));
    }
}

#[tokio::test]
async fn hashes_are_equal_on_all_members_and_remembered_over_compactions() {
    let cluster = Cluster::ours(3, &[]).await;
    let mut client = kv(&cluster.members[0]).await;
    for number in 0..40 {
        client.put(put(&format!("k{}", number % 7), number)).await.expect("a put");
    }
    client.delete_range(delete("k3")).await.expect("a deletion");
    let at_20 = cluster.members[0].hash_kv(20).await.expect("a hash");
    client.compact(compaction(20)).await.expect("a compaction");
    client.compact(compaction(30)).await.expect("a compaction");
    cluster.hashes_agree().await;
    for member in &cluster.members {
        eventually("the hash of the compacted revision", async || {
            let hash = member.hash_kv(20).await.map_err(|status| status.to_string())?;
            // It answers for a revision that was compacted away, with the compaction before (server.md 3.9).
            let seen = (hash.hash, hash.compact_revision, hash.hash_revision);
            if seen == (at_20.hash, -1, 20) { Ok(()) } else { Err(format!("{seen:?}")) }
        })
        .await;
        let refused = |revision| async move { said(member.hash_kv(revision).await) };
        let text = "etcdserver: mvcc: required revision has been compacted";
        assert_eq!(refused(21).await, (Code::OutOfRange, text.to_owned()));
        let text = "etcdserver: mvcc: required revision is a future revision";
        assert_eq!(refused(43).await, (Code::OutOfRange, text.to_owned()));
    }
    eventually("equal hashes of everything", async || {
        let mut seen = Vec::new();
        for member in &cluster.members {
            let channel = member.connect().await.map_err(|status| status.to_string())?;
            let hash = MaintenanceClient::new(channel).hash(HashRequest {}).await;
            seen.push(hash.map_err(|status| status.to_string())?.into_inner().hash);
        }
        if seen.windows(2).all(|pair| pair[0] == pair[1]) { Ok(()) } else { Err(format!("{seen:?}")) }
    })
    .await;
}

#[tokio::test]
async fn history_older_than_the_period_is_compacted_by_the_leader_alone() {
    let cluster = Cluster::ours(3, &["--auto-compaction-retention", "500ms"]).await;
    let mut client = kv(&cluster.members[0]).await;
    for _ in 0..10 {
        client.put(put("k", 1)).await.expect("a put");
    }
    for member in &cluster.members {
        eventually("the compaction", async || {
            let old = RangeRequest { revision: 5, ..get("k") };
            match said(kv(member).await.range(old).await) {
                (Code::OutOfRange, _) => Ok(()),
                other => Err(format!("{other:?}")),
            }
        })
        .await;
    }
    let newest = client.range(RangeRequest { revision: 11, ..get("k") }).await.expect("the newest stays").into_inner();
    assert_eq!(newest.count, 1);
    let leader = cluster.leader().await;
    for (position, member) in cluster.members.iter().enumerate() {
        assert_eq!(member.log_text().contains("auto-compacted"), position == leader, "member {position}");
    }
}

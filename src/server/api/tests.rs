//! The whole port over a fake member: the generated gRPC clients, and HTTP/1.1 by hand.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use prometheus::Registry;
use tokio::io::AsyncReadExt;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio_stream::StreamExt;
use tonic::Code;
use tonic::Request;
use tonic::transport::Channel;

use crate::common::answer::Answer;
use crate::common::urls::Url;
use crate::proto::etcdserverpb::DowngradeRequest;
use crate::proto::etcdserverpb::MemberAddRequest;
use crate::proto::etcdserverpb::MemberPromoteRequest;
use crate::proto::etcdserverpb::MemberRemoveRequest;
use crate::proto::etcdserverpb::MemberUpdateRequest;
use crate::proto::etcdserverpb::MoveLeaderRequest;
use crate::proto::etcdserverpb::auth_client::AuthClient;
use crate::proto::etcdserverpb::cluster_client::ClusterClient;
use crate::proto::etcdserverpb::kv_client::KvClient;
use crate::proto::etcdserverpb::lease_client::LeaseClient;
use crate::proto::etcdserverpb::maintenance_client::MaintenanceClient;
use crate::proto::etcdserverpb::*;
use crate::proto::health::HealthCheckRequest;
use crate::proto::health::health_client::HealthClient;
use crate::server::api::fake::CLUSTER;
use crate::server::api::fake::Fake;
use crate::server::api::fake::MEMBER;
use crate::server::api::http::Access;
use crate::server::api::interceptors::GrpcServer;
use crate::server::api::listener::Listener;
use crate::server::api::listener::Reuse;
use crate::server::api::metrics::GrpcMetrics;
use crate::server::api::metrics::RequestMetrics;
use crate::server::api::server::ApiServer;
use crate::server::api::server::Role;
use crate::server::api::server::ServeOptions;
use crate::server::api::services::Services;
use crate::server::metrics::new_registry;

struct Port {
    fake: Arc<Fake>,
    server: Arc<ApiServer>,
    registry: Registry,
    address: SocketAddr,
}

fn options() -> ServeOptions {
    ServeOptions {
        company: Arc::default(),
        access: Access::default(),
        streams_max: 100,
        keepalive_interval: None,
        keepalive_timeout: Duration::from_secs(20),
        connections_max: 100,
        extensive_metrics: false,
    }
}

impl Port {
    async fn start() -> Port {
        Port::start_with(Role::Client, options(), std::future::ready(())).await
    }

    async fn start_with(role: Role, options: ServeOptions, gate: impl Future<Output = ()> + Send + 'static) -> Port {
        let (fake, registry) = (Fake::new(), new_registry());
        let server = ApiServer::new(fake.clone(), &registry, options);
        let url = Url::parse("http://127.0.0.1:0").expect("valid");
        let listener = Listener::bind(&url, Reuse::default()).await.expect("binds");
        let address = listener.local_address().expect("TCP");
        server.serve(listener, role, gate);
        Port { fake, server, registry, address }
    }

    async fn channel(&self) -> Channel {
        let endpoint = Channel::from_shared(format!("http://{}", self.address)).expect("valid");
        endpoint.connect().await.expect("connects")
    }

    async fn kv(&self) -> KvClient<Channel> {
        KvClient::new(self.channel().await)
    }

    /// One HTTP/1.1 request on a connection of its own: head and body of the response.
    async fn http(&self, request: &str) -> (String, String) {
        let mut stream = TcpStream::connect(self.address).await.expect("connects");
        let request = format!("{request}\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.expect("written");
        let mut response = String::new();
        stream.read_to_string(&mut response).await.expect("read");
        let (head, body) = response.split_once("\r\n\r\n").unwrap_or((&response, ""));
        (head.to_ascii_lowercase(), body.to_owned())
    }

    async fn get(&self, path: &str) -> (u16, String, String) {
        let (head, body) = self.http(&format!("GET {path} HTTP/1.1\r\nHost: x")).await;
        let status = head.split(' ').nth(1).and_then(|code| code.parse().ok()).expect("a status line");
        (status, head, body)
    }

    fn metrics(&self) -> String {
        crate::server::metrics::exposition(&self.registry)
    }
}

fn put(key: &str, value: &str) -> PutRequest {
    PutRequest { key: Bytes::copy_from_slice(key.as_bytes()), value: value.to_owned().into(), ..Default::default() }
}

fn all_keys() -> RangeRequest {
    RangeRequest { key: Bytes::from_static(b"\0"), range_end: Bytes::from_static(b"\0"), ..Default::default() }
}

fn header(revision: i64) -> Option<ResponseHeader> {
    Some(ResponseHeader { cluster_id: CLUSTER.0, member_id: MEMBER.0, revision, raft_term: 2 })
}

#[tokio::test]
async fn puts_and_ranges_carry_complete_headers() {
    let port = Port::start().await;
    let mut kv = port.kv().await;
    let response = kv.put(put("a", "1")).await.expect("put").into_inner();
    assert_eq!(response.header, header(2));
    let response = kv.range(all_keys()).await.expect("range").into_inner();
    assert_eq!((response.header, response.count, response.kvs.len()), (header(2), 1, 1));
    assert_eq!(port.fake.state().barriers, 1);
    kv.range(RangeRequest { serializable: true, ..all_keys() }).await.expect("range");
    assert_eq!(port.fake.state().barriers, 1, "serializable reads take no barrier");
    let deleted = kv
        .delete_range(DeleteRangeRequest { key: Bytes::from_static(b"a"), ..Default::default() })
        .await
        .expect("delete")
        .into_inner();
    assert_eq!((deleted.header, deleted.deleted), (header(3), 1));
}

#[tokio::test]
async fn refusals_have_etcds_codes_and_texts() {
    let port = Port::start().await;
    let mut kv = port.kv().await;
    let status = kv.put(put("", "1")).await.expect_err("no key");
    assert_eq!((status.code(), status.message()), (Code::InvalidArgument, "etcdserver: key is not provided"));
    // The quota comes before the shape.
    port.fake.state().quota = Err(Answer::NoSpace);
    let status = kv.put(put("", "1")).await.expect_err("no space");
    assert_eq!(
        (status.code(), status.message()),
        (Code::ResourceExhausted, "etcdserver: mvcc: database space exceeded")
    );
    port.fake.state().barrier = Err(Answer::LeaderChanged);
    let status = kv.range(all_keys()).await.expect_err("no barrier");
    assert_eq!((status.code(), status.message()), (Code::Unavailable, "etcdserver: leader changed"));
    let status = kv.compact(CompactionRequest { revision: 99, physical: false }).await.expect_err("in the future");
    assert_eq!(status.code(), Code::OutOfRange);
}

#[tokio::test]
async fn transactions_go_where_they_must() {
    let port = Port::start().await;
    let mut kv = port.kv().await;
    let op = |request| RequestOp { request: Some(request) };
    let range = |serializable| op(request_op::Request::RequestRange(RangeRequest { serializable, ..all_keys() }));
    let check = async |kv: &mut KvClient<Channel>, success: Vec<RequestOp>, barriers: usize, revision: i64| {
        port.fake.state().barriers = 0;
        let request = TxnRequest { success, ..Default::default() };
        let response = kv.txn(request).await.expect("txn").into_inner();
        assert_eq!((port.fake.state().barriers, response.header), (barriers, header(revision)));
    };
    check(&mut kv, vec![], 0, 1).await;
    check(&mut kv, vec![range(false)], 1, 1).await;
    check(&mut kv, vec![range(true)], 0, 1).await;
    check(&mut kv, vec![op(request_op::Request::RequestPut(put("a", "1")))], 0, 2).await;
}

#[tokio::test]
async fn streams_of_a_range_merge_to_the_range() {
    let port = Port::start().await;
    let mut kv = port.kv().await;
    for number in 0..100 {
        kv.put(put(&format!("k{number:03}"), "v")).await.expect("put");
    }
    let check = async |kv: &mut KvClient<Channel>, limit: i64, count_only: bool, sizes: &[usize], more: bool| {
        let request = RangeRequest { limit, count_only, ..all_keys() };
        let mut stream = kv.range_stream(request.clone()).await.expect("streams").into_inner();
        let (mut kvs, mut found, mut last) = (Vec::new(), Vec::new(), None);
        while let Some(chunk) = stream.message().await.expect("chunk") {
            let chunk = chunk.range_response.expect("always there");
            assert!(last.is_none(), "only the last chunk has a header");
            found.push(chunk.kvs.len());
            kvs.extend(chunk.kvs.clone());
            last = chunk.header.is_some().then_some(chunk);
        }
        let (last, plain) = (last.expect("a last chunk"), kv.range(request).await.expect("range").into_inner());
        assert_eq!((kvs, last.count, last.more), (plain.kvs, plain.count, plain.more), "limit {limit}");
        assert_eq!((found.as_slice(), last.more, last.header), (sizes, more, header(101)), "limit {limit}");
    };
    check(&mut kv, 0, false, &[10, 20, 40, 30], false).await;
    check(&mut kv, 25, false, &[10, 15], true).await;
    check(&mut kv, 10, false, &[10], true).await;
    check(&mut kv, 100, false, &[10, 20, 40, 30], false).await;
    check(&mut kv, -1, false, &[100], false).await;
    check(&mut kv, 0, true, &[0], false).await;
    let status = kv.range_stream(RangeRequest { sort_order: 2, ..all_keys() }).await.expect_err("sorted");
    assert_eq!(status.code(), Code::Unimplemented);
}

#[tokio::test]
async fn chunks_of_large_values_shrink() {
    let port = Port::start().await;
    let mut kv = port.kv().await;
    let value = "x".repeat(3000);
    for number in 0..24 {
        kv.put(put(&format!("k{number:03}"), &value)).await.expect("put");
    }
    let mut stream = kv.range_stream(all_keys()).await.expect("streams").into_inner();
    let mut sizes = Vec::new();
    while let Some(chunk) = stream.message().await.expect("chunk") {
        sizes.push(chunk.range_response.expect("always there").kvs.len());
    }
    // The goal is 4,096 bytes here: 10 and 5 values are above twice of it, 2 are between.
    assert_eq!(sizes, [10, 5, 2, 2, 2, 2, 1]);
}

#[tokio::test]
async fn status_and_members_are_local() {
    let port = Port::start().await;
    let mut maintenance = MaintenanceClient::new(port.channel().await);
    let status = maintenance.status(StatusRequest {}).await.expect("status").into_inner();
    assert_eq!(
        (status.header, status.version.as_str(), status.leader, status.raft_index, status.raft_applied_index),
        (header(1), "3.7.1", MEMBER.0, 9, 8)
    );
    assert_eq!((status.db_size, status.db_size_in_use, status.db_size_quota), (20480, 16384, 2_147_483_648));
    assert_eq!(status.downgrade_info, Some(DowngradeInfo::default()));
    {
        let mut state = port.fake.state();
        state.leader = None;
        state.alarms = vec![AlarmMember { member_id: 7, alarm: 1 }];
    }
    let status = maintenance.status(StatusRequest {}).await.expect("status").into_inner();
    assert_eq!(status.errors, ["etcdserver: no leader", "memberID:7 alarm:NOSPACE"]);
    let mut cluster = ClusterClient::new(port.channel().await);
    let list = cluster.member_list(MemberListRequest::default()).await.expect("list").into_inner();
    assert_eq!((list.header, list.members.len(), port.fake.state().barriers), (header(0), 1, 0));
    cluster.member_list(MemberListRequest { linearizable: true }).await.expect("list");
    assert_eq!(port.fake.state().barriers, 1);
    let defragmented = maintenance.defragment(DefragmentRequest {}).await.expect("answers").into_inner();
    assert_eq!(defragmented.header, None);
    let status = maintenance
        .alarm(AlarmRequest { action: 3, ..Default::default() })
        .await
        .expect_err("etcd's members would crash on it");
    assert_eq!(status.code(), Code::InvalidArgument);
}

#[tokio::test]
async fn leases_are_granted_renewed_shown_and_revoked() {
    let port = Port::start().await;
    let mut client = LeaseClient::new(port.channel().await);
    let granted = client.lease_grant(LeaseGrantRequest { ttl: 60, id: 0 }).await.expect("granted").into_inner();
    assert_eq!((granted.id, granted.ttl, granted.header.map(|header| header.member_id)), (77, 60, Some(MEMBER.0)));
    let asked = tokio_stream::iter([77, 5, 77].map(|id| LeaseKeepAliveRequest { id }));
    let mut answers = client.lease_keep_alive(asked).await.expect("a stream").into_inner();
    let mut told = Vec::new();
    // The caller has said all it wants: the stream ends behind the last answer, without an error.
    while let Some(answer) = answers.message().await.expect("no error") {
        told.push((answer.id, answer.ttl, answer.header.map(|header| header.revision)));
    }
    assert_eq!(told, [(77, 60, Some(1)), (5, 0, Some(1)), (77, 60, Some(1))]);
    let shown = client.lease_time_to_live(LeaseTimeToLiveRequest { id: 77, keys: true }).await.expect("shown");
    let shown = shown.into_inner();
    assert_eq!((shown.ttl, shown.granted_ttl, shown.keys.len()), (59, 60, 1));
    assert_eq!(shown.header.map(|header| header.revision), Some(1));
    let gone = client.lease_time_to_live(LeaseTimeToLiveRequest { id: 5, keys: true }).await.expect("no error");
    let gone = gone.into_inner();
    assert_eq!((gone.id, gone.ttl, gone.granted_ttl, gone.header.is_some()), (5, -1, 0, true));
    let listed = client.lease_leases(LeaseLeasesRequest {}).await.expect("listed").into_inner();
    assert_eq!(listed.leases, [LeaseStatus { id: 77 }]);
    client.lease_revoke(LeaseRevokeRequest { id: 77 }).await.expect("revoked");
    let status = client.lease_revoke(LeaseRevokeRequest { id: 77 }).await.expect_err("gone");
    assert_eq!((status.code(), status.message()), (Code::NotFound, "etcdserver: requested lease not found"));
}

#[tokio::test]
async fn a_stream_of_renewals_ends_with_the_first_error_and_grants_ask_for_space() {
    let port = Port::start().await;
    let mut client = LeaseClient::new(port.channel().await);
    port.fake.state().barrier = Err(Answer::NoLeader);
    let asked = tokio_stream::iter([1, 2].map(|id| LeaseKeepAliveRequest { id })).chain(tokio_stream::pending());
    let mut answers = client.lease_keep_alive(asked).await.expect("a stream").into_inner();
    let status = answers.message().await.expect_err("no leader");
    assert_eq!((status.code(), status.message()), (Code::Unavailable, "etcdserver: no leader"));
    port.fake.state().quota = Err(Answer::NoSpace);
    let status = client.lease_grant(LeaseGrantRequest { ttl: 60, id: 0 }).await.expect_err("full");
    assert_eq!(status.code(), Code::ResourceExhausted);
}

#[tokio::test]
async fn a_snapshot_comes_in_chunks_with_its_digest_last() {
    let port = Port::start().await;
    let mut client = MaintenanceClient::new(port.channel().await);
    // Learners serve it too (server.md 0.3).
    port.fake.state().learner = true;
    let mut chunks = client.snapshot(SnapshotRequest {}).await.expect("a stream").into_inner();
    let mut told = Vec::new();
    while let Some(chunk) = chunks.message().await.expect("no error") {
        told.push((chunk.remaining_bytes, chunk.blob.len(), chunk.version, chunk.header));
    }
    assert_eq!(told, [(0, 5, "3.7.0".to_owned(), None), (0, 32, "3.7.0".to_owned(), None)]);
}

#[tokio::test]
async fn methods_of_later_releases_are_unimplemented() {
    let port = Port::start().await;
    let channel = port.channel().await;
    let mut codes = Vec::new();
    codes.push(MaintenanceClient::new(channel.clone()).downgrade(DowngradeRequest::default()).await.err());
    codes.push(AuthClient::new(channel.clone()).user_list(AuthUserListRequest::default()).await.err());
    for status in codes {
        assert_eq!(status.map(|status| status.code()), Some(Code::Unimplemented));
    }
    assert!(port.metrics().contains(
        "grpc_server_handled_total{grpc_code=\"Unimplemented\",grpc_method=\"UserList\",grpc_service=\"etcdserverpb.Auth\",\
         grpc_type=\"unary\"} 1"
    ));
}

#[tokio::test]
async fn members_are_changed_by_usable_urls_only_and_answers_carry_no_revision() {
    let port = Port::start().await;
    let mut cluster = ClusterClient::new(port.channel().await);
    let urls = |texts: &[&str]| texts.iter().map(|text| (*text).to_owned()).collect::<Vec<String>>();
    for wrong in [&[][..], &["bogus"], &["http://h:1", "http://h:2/"], &["http://h"], &[""]] {
        let add = MemberAddRequest { peer_ur_ls: urls(wrong), is_learner: false };
        let update = MemberUpdateRequest { id: 1, peer_ur_ls: urls(wrong) };
        for refused in [cluster.member_add(add).await.err(), cluster.member_update(update).await.err()] {
            let refused = refused.map(|status| (status.code(), status.message().to_owned()));
            let expected = (Code::InvalidArgument, "etcdserver: given member URLs are invalid".to_owned());
            assert_eq!(refused, Some(expected), "{wrong:?}");
        }
    }
    let add = MemberAddRequest { peer_ur_ls: urls(&[" http://h:2 ", "http://h:1"]), is_learner: true };
    let added = cluster.member_add(add).await.expect("valid").into_inner();
    let member = added.member.expect("the new one");
    assert_eq!((member.peer_ur_ls, member.is_learner), (urls(&["http://h:1", "http://h:2"]), true));
    let header = added.header.expect("a header");
    assert_eq!((header.revision, header.raft_term), (0, 2));
    assert_eq!(added.members.len(), 2);
    // An update keeps the order: etcd does not sort here.
    let update = MemberUpdateRequest { id: 9, peer_ur_ls: urls(&["http://h:2", "http://h:1"]) };
    let updated = cluster.member_update(update).await.expect("valid").into_inner();
    assert_eq!(updated.members[0].peer_ur_ls, urls(&["http://h:2", "http://h:1"]));
    let gone = cluster.member_remove(MemberRemoveRequest { id: 77 }).await.expect_err("nobody");
    assert_eq!((gone.code(), gone.message()), (Code::NotFound, "etcdserver: member not found"));
    let early = cluster.member_promote(MemberPromoteRequest { id: 9 }).await.expect_err("the fake says so");
    assert_eq!(early.code(), Code::FailedPrecondition);
    let mut maintenance = MaintenanceClient::new(port.channel().await);
    let moved = maintenance.move_leader(MoveLeaderRequest { target_id: 77 }).await.expect_err("nobody");
    assert_eq!((moved.code(), moved.message()), (Code::FailedPrecondition, "etcdserver: bad leader transferee"));
}

#[tokio::test]
async fn the_health_service_knows_the_empty_name() {
    let port = Port::start().await;
    let mut health = HealthClient::new(port.channel().await);
    let serving = health.check(HealthCheckRequest::default()).await.expect("known").into_inner();
    assert_eq!(serving.status, 1);
    let status = health.check(HealthCheckRequest { service: "x".to_owned() }).await.expect_err("unknown");
    assert_eq!(status.code(), Code::NotFound);
    let mut watch = health.watch(HealthCheckRequest::default()).await.expect("streams").into_inner();
    assert_eq!(watch.message().await.expect("first").map(|first| first.status), Some(1));
}

#[tokio::test]
async fn a_learner_serves_little() {
    let port = Port::start().await;
    port.fake.state().learner = true;
    let mut kv = port.kv().await;
    let refused = (Code::FailedPrecondition, "etcdserver: rpc not supported for learner");
    let status = kv.range(all_keys()).await.expect_err("linearizable");
    assert_eq!((status.code(), status.message()), refused);
    kv.range(RangeRequest { serializable: true, ..all_keys() }).await.expect("serializable");
    assert_eq!(kv.put(put("a", "1")).await.expect_err("write").code(), Code::FailedPrecondition);
    assert!(kv.range_stream(RangeRequest { serializable: true, ..all_keys() }).await.is_err());
    MaintenanceClient::new(port.channel().await).status(StatusRequest {}).await.expect("status");
    let mut cluster = ClusterClient::new(port.channel().await);
    assert!(cluster.member_list(MemberListRequest::default()).await.is_err());
    assert!(HealthClient::new(port.channel().await).check(HealthCheckRequest::default()).await.is_err());
}

#[tokio::test]
async fn metadata_is_heeded() {
    let port = Port::start().await;
    let mut kv = port.kv().await;
    let with = |name: &'static str, value: &'static str| {
        let mut request = Request::new(RangeRequest { serializable: true, ..all_keys() });
        request.metadata_mut().insert(name, value.parse().expect("ASCII"));
        request
    };
    kv.range(with("hasleader", "true")).await.expect("there is a leader");
    kv.range(with("client-api-version", "3.7.1")).await.expect("counted");
    port.fake.state().leader = None;
    let status = kv.range(with("hasleader", "true")).await.expect_err("no leader");
    assert_eq!((status.code(), status.message()), (Code::Unavailable, "etcdserver: no leader"));
    kv.range(with("hasleader", "false")).await.expect("did not ask");
    let metrics = port.metrics();
    assert!(metrics.contains("etcd_server_client_requests_total{client_api_version=\"3.7.1\",type=\"unary\"} 1"));
    assert!(metrics.contains("etcd_server_client_requests_total{client_api_version=\"unknown\",type=\"unary\"} 3"));
}

#[tokio::test]
async fn a_stream_that_needs_a_leader_ends_without_one() {
    let port = Port::start().await;
    // The health stream never ends by itself.
    let mut health = HealthClient::new(port.channel().await);
    let mut request = Request::new(HealthCheckRequest::default());
    request.metadata_mut().insert("hasleader", "true".parse().expect("ASCII"));
    let mut stream = health.watch(request).await.expect("there is a leader").into_inner();
    stream.message().await.expect("first");
    port.fake.state().leader = None;
    let status = stream.message().await.expect_err("cut");
    assert_eq!((status.code(), status.message()), (Code::Unavailable, "etcdserver: no leader"));
}

/// Straight into the server: a client of its own would end the call itself.
#[tokio::test]
async fn deadlines_end_calls() {
    let fake = Fake::new();
    fake.state().stuck = true;
    let registry = Registry::new();
    let services = Services::new(fake.clone(), RequestMetrics::register(&registry));
    let server = GrpcServer::new(services, fake, Arc::new(GrpcMetrics::register(&registry, true)));
    let message = prost::Message::encode_to_vec(&put("a", "1"));
    let mut body = vec![0, 0, 0, 0, message.len() as u8];
    body.extend(message);
    let request = http::Request::post("http://x/etcdserverpb.KV/Put")
        .header("content-type", "application/grpc")
        .header("grpc-timeout", "20m")
        .body(http_body_util::Full::new(Bytes::from(body)))
        .expect("well formed");
    let response = server.call(request).await;
    let status = tonic::Status::from_header_map(response.headers()).expect("a status");
    assert_eq!((status.code(), status.message()), (Code::DeadlineExceeded, "context deadline exceeded"));
    let metrics = crate::server::metrics::exposition(&registry);
    assert!(metrics.contains("grpc_server_handling_seconds_count{grpc_method=\"Put\""), "{metrics}");
}

#[tokio::test]
async fn too_large_messages_are_exhausting() {
    let port = Port::start().await;
    let max = 4096 + 512 * 1024;
    let status = port.kv().await.put(put("a", &"x".repeat(max))).await.expect_err("too large");
    assert_eq!(status.code(), Code::ResourceExhausted);
    let expected = format!("grpc: received message larger than max ({} vs. {max})", max + 7);
    assert_eq!(status.message(), expected);
}

#[tokio::test]
async fn calls_are_counted_by_method_and_code() {
    let port = Port::start().await;
    let line = |name: &str, labels: &str, count: u32| {
        format!("{name}{{{labels}grpc_method=\"Put\",grpc_service=\"etcdserverpb.KV\",grpc_type=\"unary\"}} {count}\n")
    };
    assert!(port.metrics().contains(&line("grpc_server_handled_total", "grpc_code=\"DataLoss\",", 0)));
    assert!(!port.metrics().contains("v3lockpb"));
    let mut kv = port.kv().await;
    kv.put(put("a", "1")).await.expect("put");
    kv.put(put("", "1")).await.expect_err("no key");
    let metrics = port.metrics();
    for expected in [
        line("grpc_server_started_total", "", 2),
        line("grpc_server_handled_total", "grpc_code=\"OK\",", 1),
        line("grpc_server_handled_total", "grpc_code=\"InvalidArgument\",", 1),
        line("grpc_server_msg_received_total", "", 2),
        line("grpc_server_msg_sent_total", "", 1),
    ] {
        assert!(metrics.contains(&expected), "{expected} in {metrics}");
    }
    assert!(metrics.contains("etcd_network_client_grpc_received_bytes_total 9\n"), "{metrics}");
}

#[tokio::test]
async fn http_pages_have_etcds_bytes() {
    let port = Port::start().await;
    let text = "content-type: text/plain; charset=utf-8";
    let check = async |path: &str, status: u16, content_type: &str, body: &str| {
        let (found, head, found_body) = port.get(path).await;
        assert_eq!((found, found_body.as_str()), (status, body), "{path}");
        assert!(head.contains(content_type), "{path}: {head}");
    };
    let version = r#"{"etcdserver":"3.7.1","etcdcluster":"3.7.0","storage":"3.7.0"}"#;
    check("/version", 200, "content-type: application/json", version).await;
    check("/health", 200, text, r#"{"health":"true","reason":""}"#).await;
    check("/health?serializable=true&exclude=NOSPACE", 200, text, r#"{"health":"true","reason":""}"#).await;
    check("/livez", 200, text, "ok\n").await;
    check("/livez?verbose", 200, text, "[+]serializable_read ok\nok\n").await;
    let ready = "[+]data_corruption ok\n[+]serializable_read ok\n[+]linearizable_read ok\n[+]non_learner ok\nok\n";
    check("/readyz?verbose", 200, text, ready).await;
    check(
        "/readyz?verbose&exclude=linearizable_read&exclude=nosuch&exclude=non_learner",
        200,
        text,
        "[+]data_corruption ok\n[+]serializable_read ok\nok\n",
    )
    .await;
    check("/readyz/data_corruption", 200, text, "ok\n").await;
    for path in ["/livez/nosuch", "/config/local/log", "/debug/pprof/", "/", "/v2/keys/", "/nosuch"] {
        check(path, 404, text, "404 page not found\n").await;
    }
    let (status, head, body) = port.get("/metrics").await;
    assert_eq!(status, 200);
    assert!(head.contains("content-type: text/plain; version=0.0.4; charset=utf-8; escaping=underscores"), "{head}");
    assert!(body.contains("etcd_server_id{server_id=\"ddd67b312462fd7b\"} 1\n"), "{body}");
    assert!(body.contains("etcd_server_quota_backend_bytes 2.147483648e+09\n"), "{body}");
    let (_, _, body) = port.get("/debug/vars").await;
    let value: serde_json::Value = serde_json::from_str(&body).expect("JSON");
    assert_eq!(value["raft.status"]["raftState"], "StateLeader");
}

#[tokio::test]
async fn wrong_methods_are_told_the_right_one() {
    let port = Port::start().await;
    for (request, body) in
        [("POST /health", "Method Not Allowed\n"), ("HEAD /health", ""), ("POST /version", "Method Not Allowed\n")]
    {
        let (head, found) = port.http(&format!("{request} HTTP/1.1\r\nHost: x\r\nContent-Length: 0")).await;
        assert!(head.starts_with("http/1.1 405 ") && head.contains("\r\nallow: get"), "{head}");
        assert_eq!(found, body);
    }
}

#[tokio::test]
async fn health_says_why_not() {
    let port = Port::start().await;
    let check = async |path: &str, status: u16, body: &str| {
        let (found, _, found_body) = port.get(path).await;
        assert_eq!((found, found_body.as_str()), (status, body), "{path}");
    };
    port.fake.state().barrier = Err(Answer::Timeout);
    check("/health", 503, "{\"health\":\"false\",\"reason\":\"RANGE ERROR:etcdserver: request timed out\"}\n").await;
    check("/health?serializable=true", 200, r#"{"health":"true","reason":""}"#).await;
    check(
        "/readyz/linearizable_read",
        503,
        "[-]linearizable_read failed: range error: etcdserver: request timed out\n",
    )
    .await;
    port.fake.state().leader = None;
    check("/health", 503, "{\"health\":\"false\",\"reason\":\"RAFT NO LEADER\"}\n").await;
    port.fake.state().alarms = vec![AlarmMember { member_id: 1, alarm: 1 }];
    check("/health", 503, "{\"health\":\"false\",\"reason\":\"ALARM NOSPACE\"}\n").await;
    check("/health?exclude=NOSPACE&serializable=true", 200, r#"{"health":"true","reason":""}"#).await;
    check("/readyz/data_corruption", 200, "ok\n").await;
    port.fake.state().alarms = vec![AlarmMember { member_id: 1, alarm: 2 }];
    check("/health", 503, "{\"health\":\"false\",\"reason\":\"ALARM CORRUPT\"}\n").await;
    check("/readyz/data_corruption", 503, "[-]data_corruption failed: alarm activated: CORRUPT\n").await;
    port.fake.state().alarms = vec![AlarmMember { member_id: 1, alarm: 9 }];
    check("/health", 503, "{\"health\":\"false\",\"reason\":\"ALARM UNKNOWN\"}\n").await;
    port.fake.state().learner = true;
    check("/readyz/non_learner", 503, "[-]non_learner failed: not supported for learner\n").await;
    let metrics = port.metrics();
    assert!(metrics.contains("etcd_server_health_failures 5\n"), "{metrics}");
    assert!(
        metrics.contains("etcd_server_healthchecks_total{name=\"non_learner\",status=\"error\",type=\"readyz\"} 1\n")
    );
}

#[tokio::test]
async fn hosts_and_origins_are_guarded() {
    let access = Access { hosts: ["good".to_owned()].into(), origins: ["http://page".to_owned()].into() };
    let port = Port::start_with(Role::Client, ServeOptions { access, ..options() }, std::future::ready(())).await;
    let (head, _) = port.http("GET /version HTTP/1.1\r\nHost: evil:2379").await;
    assert!(head.starts_with("http/1.1 421 "), "{head}");
    let (head, _) = port.http("GET /version HTTP/1.1\r\nHost: good:2379\r\nOrigin: http://other").await;
    assert!(head.starts_with("http/1.1 200 ") && !head.contains("access-control"), "{head}");
    let (head, body) = port.http("OPTIONS /v3/kv/range HTTP/1.1\r\nHost: good:2379\r\nOrigin: http://page").await;
    assert!(head.starts_with("http/1.1 200 ") && head.contains("access-control-allow-origin: http://page"), "{head}");
    assert_eq!(body, "");
}

#[tokio::test]
async fn metrics_listeners_show_metrics_and_health_only() {
    let port = Port::start_with(Role::Metrics, options(), std::future::ready(())).await;
    for (path, status) in
        [("/metrics", 200), ("/health", 200), ("/livez", 200), ("/version", 404), ("/debug/vars", 404)]
    {
        assert_eq!(port.get(path).await.0, status, "{path}");
    }
}

#[tokio::test]
async fn nobody_is_answered_before_the_gate_opens() {
    let (open, opened) = tokio::sync::oneshot::channel::<()>();
    let gate = async move { opened.await.unwrap_or(()) };
    let port = Port::start_with(Role::Client, options(), gate).await;
    let mut early = TcpStream::connect(port.address).await.expect("connects");
    early.write_all(b"GET /livez HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").await.expect("written");
    let mut byte = [0];
    let answered = tokio::time::timeout(Duration::from_millis(20), early.read(&mut byte)).await;
    assert!(answered.is_err(), "answered too early");
    open.send(()).expect("the gate waits");
    let mut response = String::new();
    early.read_to_string(&mut response).await.expect("answered");
    assert!(response.starts_with("HTTP/1.1 200 "), "{response}");
}

#[tokio::test]
async fn connections_above_the_limit_wait() {
    let limited = ServeOptions { connections_max: 1, ..options() };
    let port = Port::start_with(Role::Client, limited, std::future::ready(())).await;
    let mut first = TcpStream::connect(port.address).await.expect("connects");
    first.write_all(b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\n").await.expect("written");
    let mut byte = [0];
    first.read_exact(&mut byte).await.expect("answered");
    let second = tokio::spawn({
        let address = port.address;
        async move {
            let mut stream = TcpStream::connect(address).await.expect("connects");
            stream.write_all(b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\n").await.expect("written");
            let mut byte = [0];
            stream.read_exact(&mut byte).await.map(|_| ())
        }
    });
    tokio::task::yield_now().await;
    assert!(!second.is_finished());
    drop(first);
    second.await.expect("no panic").expect("answered once the first has gone");
}

#[tokio::test]
async fn stopping_lets_calls_end_and_then_cuts() {
    let port = Port::start().await;
    let mut kv = port.kv().await;
    kv.put(put("a", "1")).await.expect("put");
    port.fake.state().stuck = true;
    let stuck = tokio::spawn(async move { kv.put(put("b", "1")).await });
    while port.fake.state().keys.len() != 1
        || !port.metrics().contains(
            "grpc_server_started_total{grpc_method=\"Put\",grpc_service=\"etcdserverpb.KV\",grpc_type=\"unary\"} 2",
        )
    {
        tokio::task::yield_now().await;
    }
    port.server.stop(Duration::from_millis(20)).await;
    assert!(stuck.await.expect("no panic").is_err());
    assert!(TcpStream::connect(port.address).await.is_err());
}

#[tokio::test]
async fn strangers_are_told_plainly() {
    let port = Port::start().await;
    // TLS hears nothing at all, as from etcd.
    for (words, answer) in [(&b"\x17garbage"[..], &b"HTTP/1.1 400 "[..]), (b"\x16\x03\x01\x02\x00garbage", b"")] {
        let mut stream = TcpStream::connect(port.address).await.expect("connects");
        stream.write_all(&[words, &[b'x'; 300], b"\r\n\r\n"].concat()).await.expect("written");
        let mut response = Vec::new();
        stream.read_to_end(&mut response).await.expect("read");
        assert!(response.starts_with(answer) && response.is_empty() == answer.is_empty(), "{response:?}");
    }
    let mut client = tonic::client::Grpc::new(port.channel().await);
    client.ready().await.expect("ready");
    let codec: tonic_prost::ProstCodec<RangeRequest, RangeResponse> = tonic_prost::ProstCodec::default();
    let path = http::uri::PathAndQuery::from_static("/etcdserverpb.KV/Nope");
    let status = client.unary(Request::new(all_keys()), path, codec).await.expect_err("unknown method");
    assert_eq!(
        (status.code(), status.message()),
        (Code::Unimplemented, "unknown method Nope for service etcdserverpb.KV")
    );
}

#[tokio::test]
async fn a_handler_that_panics_costs_its_request_only() {
    let port = Port::start().await;
    let mut maintenance = MaintenanceClient::new(port.channel().await);
    assert_eq!(maintenance.hash(HashRequest {}).await.expect("answers").into_inner().header, header(1));
    port.fake.state().stuck = true;
    assert_eq!(maintenance.hash(HashRequest {}).await.expect_err("panics").code(), Code::Internal);
    port.fake.state().stuck = false;
    maintenance.hash(HashRequest {}).await.expect("the connection lives on");
}

#[tokio::test]
async fn split_listeners_answer_their_part_only() {
    let port = Port::start_with(Role::GrpcOnly, options(), std::future::ready(())).await;
    port.kv().await.put(put("a", "1")).await.expect("gRPC");
    let mut stream = TcpStream::connect(port.address).await.expect("connects");
    stream.write_all(b"GET /version HTTP/1.1\r\nHost: x\r\n\r\n").await.expect("written");
    let mut response = Vec::new();
    // The end comes as a reset when the kernel still held bytes of ours.
    let _ = stream.read_to_end(&mut response).await;
    assert_eq!(response, b"");
    let port = Port::start_with(Role::HttpOnly, options(), std::future::ready(())).await;
    assert_eq!(port.get("/version").await.0, 200);
    let endpoint = Channel::from_shared(format!("http://{}", port.address)).expect("valid");
    let gone = match endpoint.connect().await {
        Err(_) => true,
        Ok(channel) => KvClient::new(channel).put(put("a", "1")).await.is_err(),
    };
    assert!(gone);
}

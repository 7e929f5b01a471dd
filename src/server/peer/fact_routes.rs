//! The paths of the peer port that answer about the member: members, versions, hashes, leases, promotion.

use bytes::Bytes;
use http::HeaderMap;
use http::Method;
use http::Request;
use http::StatusCode;
use http::header::AUTHORIZATION;
use hyper::body::Incoming;
use prost::Message as _;
use serde::Deserialize;
use serde::Serialize;

use crate::common::answer::Answer;
use crate::common::ids::MemberId;
use crate::proto::etcdserverpb::HashKvResponse;
use crate::proto::etcdserverpb::LeaseKeepAliveRequest;
use crate::proto::etcdserverpb::LeaseKeepAliveResponse;
use crate::proto::leasepb::LeaseInternalRequest;
use crate::proto::leasepb::LeaseInternalResponse;
use crate::server::peer::headers;
use crate::server::peer::http_client::read_paced;
use crate::server::peer::reply;
use crate::server::peer::reply::Reply;
use crate::server::peer::routes::Context;

/// A request about a lease or a hash (reliability.md 4.4).
const REQUEST_BYTES_MAX: usize = 64 << 10;

/// etcd's texts that are not on the client's list.
const LEASE_NOT_FOUND: &str = "lease not found";
const LEASE_TIMEOUT: &str = "waiting for node to catch up its applied index has timed out";
const MEMBER_NOT_FOUND: &str = "membership: ID not found";
pub(super) const MEMBER_NOT_LEARNER: &str = "membership: can only promote a learner member";

/// What peers send to `/members/hashkv`.
#[derive(Debug, Default, Deserialize, Serialize)]
#[serde(default)]
pub(super) struct HashKvAsk {
    pub revision: i64,
}

/// HashKV as peers exchange it: proto names, bare numbers, zeros left out.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(default)]
pub struct PeerHash {
    pub header: PeerHashHeader,
    #[serde(skip_serializing_if = "is_default")]
    pub hash: u32,
    #[serde(skip_serializing_if = "is_default")]
    pub compact_revision: i64,
    #[serde(skip_serializing_if = "is_default")]
    pub hash_revision: i64,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(default)]
pub struct PeerHashHeader {
    #[serde(skip_serializing_if = "is_default")]
    pub revision: i64,
}

fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

/// Answers every path that is not raft's.
pub(super) async fn answer(context: &Context, path: &str, request: Request<Incoming>) -> Reply {
    let get =
        |answer: Reply| if request.method() == Method::GET { answer } else { reply::not_allowed(Some(&Method::GET)) };
    let cluster = context.shared.cluster;
    match path {
        "/version" => get(reply::json(context.facts.version_json())),
        "/members" => get(reply::with_cluster(reply::json(format!("{}\n", context.facts.members_json())), cluster)),
        "/members/hashkv" | "/downgrade/enabled" if request.method() != Method::GET => {
            reply::not_allowed(Some(&Method::GET))
        }
        "/members/hashkv" => hash_kv(context, request).await,
        "/downgrade/enabled" => downgrade_enabled(context, request.headers()).await,
        "/leases" | "/leases/internal" if request.method() != Method::POST => reply::not_allowed(None),
        "/leases" => lease_keep_alive(context, request).await,
        "/leases/internal" => lease_time_to_live(context, request).await,
        _ => match path.strip_prefix("/members/promote/") {
            Some(_) if request.method() != Method::POST => reply::not_allowed(Some(&Method::POST)),
            Some(id) => reply::with_cluster(promote(context, id, request.headers()).await, cluster),
            None => reply::not_found(),
        },
    }
}

/// These two are refused to members of another cluster that say so; one that does not say is answered.
fn check_cluster(context: &Context, headers: &HeaderMap) -> Result<(), Box<Reply>> {
    let ours = context.shared.cluster;
    match headers.contains_key(headers::CLUSTER_ID) {
        true if headers::Signature::read(headers).cluster != Some(ours) => {
            Err(Box::new(reply::error(StatusCode::PRECONDITION_FAILED, headers::CLUSTER_MISMATCH)))
        }
        _ => Ok(()),
    }
}

async fn body_of(context: &Context, request: Request<Incoming>) -> Result<Bytes, Box<Reply>> {
    let body = read_paced(request.into_body(), REQUEST_BYTES_MAX, context.shared.timing.post_timeout).await;
    body.map_err(|_| Box::new(reply::error(StatusCode::BAD_REQUEST, "error reading body")))
}

fn not_readable() -> Reply {
    reply::error(StatusCode::BAD_REQUEST, "error unmarshalling request")
}

/// Inside a cluster errors travel without the name that the client API puts in front.
fn inner_text(answer: &Answer) -> String {
    let text = answer.to_string();
    text.strip_prefix("etcdserver: mvcc").map_or(text.clone(), |rest| format!("mvcc{rest}"))
}

async fn hash_kv(context: &Context, request: Request<Incoming>) -> Reply {
    if let Err(refusal) = check_cluster(context, request.headers()) {
        return *refusal;
    }
    let body = match body_of(context, request).await {
        Ok(body) => body,
        Err(refusal) => return *refusal,
    };
    let Ok(ask) = serde_json::from_slice::<HashKvAsk>(&body) else { return not_readable() };
    match context.facts.hash_kv(ask.revision).await {
        Ok(response) => {
            let json = serde_json::to_vec(&peer_hash(&response)).expect("numbers are always JSON");
            reply::with_cluster(reply::json(json), context.shared.cluster)
        }
        Err(answer) => reply::error(StatusCode::BAD_REQUEST, inner_text(&answer)),
    }
}

fn peer_hash(response: &HashKvResponse) -> PeerHash {
    let revision = response.header.as_ref().map_or(0, |header| header.revision);
    PeerHash {
        header: PeerHashHeader { revision },
        hash: response.hash,
        compact_revision: response.compact_revision,
        hash_revision: response.hash_revision,
    }
}

async fn downgrade_enabled(context: &Context, headers: &HeaderMap) -> Reply {
    if let Err(refusal) = check_cluster(context, headers) {
        return *refusal;
    }
    let answer = match context.facts.downgrade_enabled().await {
        Ok(enabled) => reply::whole(StatusCode::OK, "text/plain", enabled.to_string()),
        Err(answer) => reply::error(StatusCode::INTERNAL_SERVER_ERROR, answer),
    };
    reply::with_cluster(answer, context.shared.cluster)
}

async fn lease_keep_alive(context: &Context, request: Request<Incoming>) -> Reply {
    let body = match body_of(context, request).await {
        Ok(body) => body,
        Err(refusal) => return *refusal,
    };
    let Ok(ask) = LeaseKeepAliveRequest::decode(body) else { return not_readable() };
    match context.facts.lease_keep_alive(ask.id).await {
        Ok(ttl) => protobuf(&LeaseKeepAliveResponse { header: None, id: ask.id, ttl }),
        Err(answer) => lease_error(&answer),
    }
}

async fn lease_time_to_live(context: &Context, request: Request<Incoming>) -> Reply {
    let body = match body_of(context, request).await {
        Ok(body) => body,
        Err(refusal) => return *refusal,
    };
    let ask = LeaseInternalRequest::decode(body).ok().and_then(|ask| ask.lease_time_to_live_request);
    let Some(ask) = ask else { return not_readable() };
    match context.facts.lease_time_to_live(ask.id, ask.keys).await {
        Ok(response) => protobuf(&LeaseInternalResponse { lease_time_to_live_response: Some(response) }),
        Err(answer) => lease_error(&answer),
    }
}

fn protobuf(message: &impl prost::Message) -> Reply {
    reply::whole(StatusCode::OK, "application/protobuf", message.encode_to_vec())
}

/// The caller knows three cases: not found, behind, and try again (server.md 5).
fn lease_error(answer: &Answer) -> Reply {
    match answer {
        Answer::LeaseNotFound => reply::error(StatusCode::NOT_FOUND, LEASE_NOT_FOUND),
        Answer::TimeoutWaitAppliedIndex => reply::error(StatusCode::REQUEST_TIMEOUT, LEASE_TIMEOUT),
        other => reply::error(StatusCode::BAD_REQUEST, other),
    }
}

async fn promote(context: &Context, id: &str, headers: &HeaderMap) -> Reply {
    // Decimal as Go reads it: digits only, no sign.
    let number = id.bytes().all(|byte| byte.is_ascii_digit()).then(|| id.parse::<u64>().ok()).flatten();
    let Some(number) = number else {
        return reply::error(StatusCode::NOT_FOUND, format_args!("member {id} not found in cluster"));
    };
    let token = headers::text(headers, &AUTHORIZATION).filter(|token| !token.is_empty()).map(str::to_owned);
    match context.facts.promote(MemberId(number), token).await {
        Ok(members) => reply::json(format!("{members}\n")),
        Err(Answer::MemberNotFound) => reply::error(StatusCode::NOT_FOUND, MEMBER_NOT_FOUND),
        Err(Answer::MemberNotLearner) => reply::error(StatusCode::PRECONDITION_FAILED, MEMBER_NOT_LEARNER),
        Err(answer @ Answer::LearnerNotReady) => reply::error(StatusCode::PRECONDITION_FAILED, answer),
        Err(answer) => reply::error(StatusCode::INTERNAL_SERVER_ERROR, answer),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::etcdserverpb::ResponseHeader;

    #[test]
    fn hashes_travel_with_proto_names_and_without_zeros() {
        let header = Some(ResponseHeader { cluster_id: 1, member_id: 2, revision: 7, raft_term: 3 });
        let response = HashKvResponse { header, hash: 9, compact_revision: -1, hash_revision: 7 };
        let json = serde_json::to_string(&peer_hash(&response)).unwrap();
        assert_eq!(json, r#"{"header":{"revision":7},"hash":9,"compact_revision":-1,"hash_revision":7}"#);
        assert_eq!(serde_json::from_str::<PeerHash>(&json).unwrap(), peer_hash(&response));
        let empty = serde_json::from_str::<PeerHash>(r#"{"header":{},"hash":9,"unknown":1}"#).unwrap();
        assert_eq!((empty.hash, empty.hash_revision), (9, 0));
    }

    #[test]
    fn inner_errors_lose_the_outer_name() {
        assert_eq!(inner_text(&Answer::FutureRevision), "mvcc: required revision is a future revision");
        assert_eq!(inner_text(&Answer::Compacted), "mvcc: required revision has been compacted");
        assert_eq!(inner_text(&Answer::NoLeader), "etcdserver: no leader");
    }
}

//! What a member asks others before it is one of them, and what it compares with them: members, version, hash.

use std::time::Duration;

use bytes::Bytes;
use http::HeaderMap;
use http::Method;
use http::Request;
use http::Response;
use http::StatusCode;
use tokio::time::timeout;

use crate::common::answer::Answer;
use crate::common::ids::ClusterId;
use crate::common::ids::MemberId;
use crate::server::peer::dialer::Dialer;
use crate::server::peer::fact_routes::HashKvAsk;
use crate::server::peer::fact_routes::MEMBER_NOT_LEARNER;
use crate::server::peer::fact_routes::PeerHash;
use crate::server::peer::headers;
use crate::server::peer::http_client::Connection;
use crate::server::peer::http_client::PeerUrl;
use crate::server::peer::http_client::RequestError;
use crate::server::peer::http_client::full;

/// Characters of a refusal that are kept.
const REFUSAL_CHARS_MAX: usize = 200;

/// Why nobody answered, or what the answer was.
#[derive(Debug, thiserror::Error)]
pub enum FetchError {
    #[error(transparent)]
    Request(#[from] RequestError),
    /// The answer was no. `text` is the body without its line end.
    #[error("{url} answers {status}: {text}")]
    Refused { url: String, status: StatusCode, text: String },
    #[error("{url} gives an answer that cannot be read: {detail}")]
    Malformed { url: String, detail: String },
    #[error("no peer url to ask")]
    NoUrls,
}

/// `GET /members` from the first of `urls` that answers, `limit` for each: the cluster's id and the JSON array.
pub async fn fetch_members(
    dialer: &Dialer,
    urls: &[String],
    limit: Duration,
) -> Result<(ClusterId, String), FetchError> {
    let mut last = FetchError::NoUrls;
    for url in urls {
        match members_of(dialer, url, limit).await {
            Ok(members) => return Ok(members),
            Err(error) => {
                tracing::warn!(url, %error, "cannot get the members of the cluster");
                last = error;
            }
        }
    }
    Err(last)
}

async fn members_of(dialer: &Dialer, url: &str, limit: Duration) -> Result<(ClusterId, String), FetchError> {
    let answer = ask(dialer, url, Method::GET, "/members", HeaderMap::new(), Bytes::new(), limit).await?;
    let malformed = |detail: &str| FetchError::Malformed { url: url.to_owned(), detail: detail.to_owned() };
    let cluster = headers::Signature::read(answer.headers()).cluster.ok_or_else(|| malformed("no cluster id"))?;
    let json = String::from_utf8(answer.into_body().into()).map_err(|_| malformed("not UTF-8"))?;
    Ok((cluster, json))
}

/// `GET /version`: the JSON object.
pub async fn fetch_version(dialer: &Dialer, url: &str, limit: Duration) -> Result<String, FetchError> {
    let answer = ask(dialer, url, Method::GET, "/version", HeaderMap::new(), Bytes::new(), limit).await?;
    let malformed = |_| FetchError::Malformed { url: url.to_owned(), detail: "not UTF-8".to_owned() };
    String::from_utf8(answer.into_body().into()).map_err(malformed)
}

/// `GET /members/hashkv` at `revision` (0: now). A future or compacted revision is `Refused` with etcd's text.
pub async fn fetch_hash_kv(
    dialer: &Dialer,
    url: &str,
    cluster: ClusterId,
    revision: i64,
    limit: Duration,
) -> Result<PeerHash, FetchError> {
    let mut headers = HeaderMap::new();
    headers.insert(headers::CLUSTER_ID, headers::text_value(cluster.to_string()));
    let body = serde_json::to_vec(&HashKvAsk { revision }).expect("a number is always JSON");
    let answer = ask(dialer, url, Method::GET, "/members/hashkv", headers, body.into(), limit).await?;
    serde_json::from_slice(answer.body())
        .map_err(|error| FetchError::Malformed { url: url.to_owned(), detail: error.to_string() })
}

/// `POST /members/promote/<id>` to a leader: the JSON array of all members afterwards, or what the leader says for good.
/// Any other refusal may pass when it is asked again (server.md 6.2).
pub async fn ask_promotion(
    dialer: &Dialer,
    url: &str,
    id: MemberId,
    limit: Duration,
) -> Result<Result<String, Answer>, FetchError> {
    let path = format!("/members/promote/{}", id.0);
    let refused = match ask(dialer, url, Method::POST, &path, HeaderMap::new(), Bytes::new(), limit).await {
        Ok(answer) => {
            let json = String::from_utf8(answer.into_body().into());
            return json
                .map(Ok)
                .map_err(|_| FetchError::Malformed { url: url.to_owned(), detail: "not UTF-8".to_owned() });
        }
        Err(refused) => refused,
    };
    let FetchError::Refused { status, text, .. } = &refused else { return Err(refused) };
    match *status {
        StatusCode::NOT_FOUND => Ok(Err(Answer::MemberNotFound)),
        StatusCode::PRECONDITION_FAILED if text.contains(&Answer::LearnerNotReady.to_string()) => {
            Ok(Err(Answer::LearnerNotReady))
        }
        StatusCode::PRECONDITION_FAILED if text.contains(MEMBER_NOT_LEARNER) => Ok(Err(Answer::MemberNotLearner)),
        _ => Err(refused),
    }
}

/// One request over a connection of its own, connecting included in `limit`.
async fn ask(
    dialer: &Dialer,
    url: &str,
    method: Method,
    path: &str,
    headers: HeaderMap,
    body: Bytes,
    limit: Duration,
) -> Result<Response<Bytes>, FetchError> {
    let peer_url = PeerUrl::parse(url)?;
    let mut request = Request::new(full(body));
    *request.method_mut() = method;
    *request.uri_mut() = path.parse().expect("paths are made of constants and numbers");
    *request.headers_mut() = headers;
    let exchange = async { Connection::open(dialer, &peer_url).await?.exchange(request, limit).await };
    let answer = timeout(limit, exchange).await.unwrap_or_else(|_| Err(RequestError::Timeout(url.to_owned())))?;
    if answer.status() == StatusCode::OK {
        return Ok(answer);
    }
    let text = String::from_utf8_lossy(answer.body()).trim().chars().take(REFUSAL_CHARS_MAX).collect();
    Err(FetchError::Refused { url: url.to_owned(), status: answer.status(), text })
}

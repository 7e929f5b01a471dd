//! Which path of the peer port does what; raft's own paths in full, the member's in `fact_routes`.
//!
//! Order of checks, codes and texts are etcd's (server.md 8.3, 14.2): an etcd on the other side acts on them.

use std::sync::Arc;
use std::time::SystemTime;
use std::time::UNIX_EPOCH;

use http::HeaderMap;
use http::HeaderValue;
use http::Method;
use http::Request;
use http::StatusCode;
use http::header::CONNECTION;
use hyper::body::Incoming;

use crate::common::ids::MemberId;
use crate::common::version::ETCD_VERSION;
use crate::server::peer::codec::MESSAGE_BYTES_MAX;
use crate::server::peer::codec::StreamKind;
use crate::server::peer::codec::decode_message;
use crate::server::peer::fact_routes;
use crate::server::peer::facts::PeerFacts;
use crate::server::peer::headers;
use crate::server::peer::headers::Signature;
use crate::server::peer::http_client::ReadError;
use crate::server::peer::http_client::read_paced;
use crate::server::peer::reply;
use crate::server::peer::reply::Reply;
use crate::server::peer::reply::ReplyBody;
use crate::server::peer::snapshot_in;
use crate::server::peer::stream_out::Closer;
use crate::server::peer::transport::Shared;

/// What the handlers share.
pub(super) struct Context {
    pub shared: Arc<Shared>,
    pub facts: Arc<dyn PeerFacts>,
}

/// Answers one request. `closer` ends the connection it came over.
pub(super) async fn answer(context: Arc<Context>, closer: Arc<Closer>, request: Request<Incoming>) -> Reply {
    let path = request.uri().path().to_owned();
    match path.as_str() {
        "/raft" => message(&context.shared, request).await,
        "/raft/snapshot" => snapshot(&context.shared, request).await,
        "/raft/probing" => reply::plain(probing_json(SystemTime::now())),
        _ => match path.strip_prefix("/raft/stream/") {
            Some(rest) => stream(&context.shared, &closer, rest, &request),
            None => fact_routes::answer(&context, &path, request).await,
        },
    }
}

/// Checks that come first on each of raft's paths.
fn admit(shared: &Shared, request: &Request<Incoming>, method: &Method) -> Result<Signature, Box<Reply>> {
    if request.method() != method {
        return Err(Box::new(reply::not_allowed(Some(method))));
    }
    let refuse = |text| {
        let refusal = reply::error(StatusCode::PRECONDITION_FAILED, text);
        Err(Box::new(reply::with_cluster(refusal, shared.cluster)))
    };
    if !headers::versions_are_compatible(request.headers()) {
        return refuse(headers::INCOMPATIBLE_VERSION);
    }
    let signature = Signature::read(request.headers());
    if signature.cluster != Some(shared.cluster) {
        return refuse(headers::CLUSTER_MISMATCH);
    }
    Ok(signature)
}

async fn message(shared: &Arc<Shared>, request: Request<Incoming>) -> Reply {
    let signature = match admit(shared, &request, &Method::POST) {
        Ok(signature) => signature,
        Err(refusal) => return *refusal,
    };
    if let Some(from) = signature.from {
        shared.remember(from, &signature.peer_urls);
    }
    let bytes_max = MESSAGE_BYTES_MAX as usize;
    let body = read_paced(request.into_body(), bytes_max, shared.timing.post_timeout).await;
    let answer = match body.map(|body| (body.len(), decode_message(&body))) {
        Err(ReadError::TooLong) => reply::error(StatusCode::BAD_REQUEST, "error reading raft message"),
        Err(_) => closing(reply::error(StatusCode::BAD_REQUEST, "error reading raft message")),
        Ok((_, Err(_))) => reply::error(StatusCode::BAD_REQUEST, "error unmarshalling raft message"),
        Ok((bytes, Ok(message))) => {
            let peer = signature.from.and_then(|from| shared.member(from));
            if let Some(peer) = &peer {
                peer.metrics.received_bytes.inc_by(bytes as u64);
            }
            match shared.accept(message, signature.from) {
                Ok(()) => reply::no_content(),
                Err(refusal) => {
                    if let Some(peer) = &peer {
                        peer.metrics.received_failures.inc();
                    }
                    tracing::debug!(from = %signature.from.unwrap_or_default(), %refusal, "posted message is refused");
                    closing(reply::error(StatusCode::INTERNAL_SERVER_ERROR, "error processing raft message"))
                }
            }
        }
    };
    reply::with_cluster(answer, shared.cluster)
}

async fn snapshot(shared: &Arc<Shared>, request: Request<Incoming>) -> Reply {
    let signature = match admit(shared, &request, &Method::POST) {
        Ok(signature) => signature,
        Err(refusal) => return *refusal,
    };
    if let Some(from) = signature.from {
        shared.remember(from, &signature.peer_urls);
    }
    let answer = match snapshot_in::receive(shared, signature.from, request.into_body()).await {
        Ok(()) => reply::no_content(),
        Err(error) => closing(reply::error(error.status(), error)),
    };
    reply::with_cluster(answer, shared.cluster)
}

/// The dialer's id is the end of the path; it is compared with the removed set before anything about membership.
fn stream(shared: &Arc<Shared>, closer: &Arc<Closer>, rest: &str, request: &Request<Incoming>) -> Reply {
    let signature = match admit(shared, request, &Method::GET) {
        Ok(signature) => signature,
        Err(refusal) => return *refusal,
    };
    let mut answer = match open_stream(shared, closer, rest, &signature) {
        Ok(reply) => reply,
        Err((status, text)) => reply::error(status, text),
    };
    answer.headers_mut().insert(headers::SERVER_VERSION, HeaderValue::from_static(ETCD_VERSION));
    reply::with_cluster(answer, shared.cluster)
}

fn open_stream(
    shared: &Arc<Shared>,
    closer: &Arc<Closer>,
    rest: &str,
    signature: &Signature,
) -> Result<Reply, (StatusCode, &'static str)> {
    let (kind, from) = rest.rsplit_once('/').ok_or((StatusCode::NOT_FOUND, "invalid path"))?;
    let kind = StreamKind::ALL.into_iter().find(|known| known.path_name() == kind);
    let kind = kind.ok_or((StatusCode::NOT_FOUND, "invalid path"))?;
    let from = MemberId::from_hex(from).ok_or((StatusCode::NOT_FOUND, "invalid from"))?;
    if shared.is_removed(from) {
        tracing::warn!(%from, "a removed member dials a stream");
        return Err((StatusCode::GONE, "removed member"));
    }
    let Some(peer) = shared.member(from) else {
        shared.remember(from, &signature.peer_urls);
        return Err((StatusCode::NOT_FOUND, "error sender not found"));
    };
    if signature.to != Some(shared.local) {
        return Err((StatusCode::PRECONDITION_FAILED, "to field mismatch"));
    }
    let body = peer.slot(kind).attach(Arc::clone(closer));
    Ok(Reply::new(ReplyBody::Stream(Box::new(body))))
}

/// Ends the connection after this answer.
fn closing(mut reply: Reply) -> Reply {
    let headers: &mut HeaderMap = reply.headers_mut();
    headers.insert(CONNECTION, HeaderValue::from_static("close"));
    reply
}

/// `{"OK":true,"Now":"2026-11-20T13:02:04.291879639Z"}` and a line end.
fn probing_json(now: SystemTime) -> String {
    format!("{{\"OK\":true,\"Now\":\"{}\"}}\n", rfc3339_nanos(now))
}

/// UTC with nanoseconds, their trailing zeros left out as Go does. Before 1970 counts as 1970.
fn rfc3339_nanos(time: SystemTime) -> String {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    let (days, seconds) = (since.as_secs() / 86_400, since.as_secs() % 86_400);
    let (year, month, day) = civil_date(days);
    let (hour, minute, second) = (seconds / 3600, seconds / 60 % 60, seconds % 60);
    let nanos = format!(".{:09}", since.subsec_nanos());
    let nanos = nanos.trim_end_matches('0').trim_end_matches('.');
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}{nanos}Z")
}

/// Year, month and day of a count of days since 1970: years are counted from March, so that a leap day ends one.
fn civil_date(days: u64) -> (u64, u64, u64) {
    const DAYS_OF_400_YEARS: u64 = 146_097;
    let from_year_0 = days + 719_468;
    let (era, day_of_era) = (from_year_0 / DAYS_OF_400_YEARS, from_year_0 % DAYS_OF_400_YEARS);
    let leap_days = day_of_era / 1_460 + day_of_era / 146_096 - day_of_era / 36_524;
    let year_of_era = (day_of_era - leap_days) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 { month_from_march + 3 } else { month_from_march - 9 };
    (era * 400 + year_of_era + u64::from(month <= 2), month, day)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn times_are_written_as_go_writes_them() {
        let check = |seconds: u64, nanos: u32, text: &str| {
            assert_eq!(rfc3339_nanos(UNIX_EPOCH + Duration::new(seconds, nanos)), text);
        };
        check(0, 0, "1970-01-01T00:00:00Z");
        check(951_782_400, 0, "2000-02-29T00:00:00Z");
        check(4_107_542_399, 500_000_000, "2100-02-28T23:59:59.5Z");
        check(4_107_542_400, 10, "2100-03-01T00:00:00.00000001Z");
        check(1_795_179_724, 291_879_639, "2026-11-20T13:02:04.291879639Z");
        check(1_735_689_599, 999_999_999, "2024-12-31T23:59:59.999999999Z");
    }
}

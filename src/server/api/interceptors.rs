//! What every gRPC call passes before its handler: counting, who may be asked what, metadata, deadlines.
//!
//! Order of the checks is etcd's (server.md 0.3). Its first one, whether the cluster can speak v3 at all, is left out: no
//! cluster that we can join does not.

use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;
use std::time::Instant;

use bytes::Bytes;
use futures_util::FutureExt;
use http::HeaderMap;
use http::Request;
use http::Response;
use http::StatusCode;
use http::header::CONTENT_TYPE;
use tonic::Status;
use tonic::body::Body;

use crate::common::answer::Answer;
use crate::server::api::MESSAGE_OVERHEAD_BYTES;
use crate::server::api::backend::Backend;
use crate::server::api::body::Outcome;
use crate::server::api::body::RequestBody;
use crate::server::api::body::ResponseBody;
use crate::server::api::body::code_of;
use crate::server::api::ending::Ending;
use crate::server::api::methods::Method;
use crate::server::api::methods::MethodTable;
use crate::server::api::methods::unknown_path;
use crate::server::api::metrics::GrpcMetrics;
use crate::server::api::metrics::MethodMetrics;
use crate::server::api::not_served;
use crate::server::api::services::Services;
use crate::server::api::unary::Reply;

/// The gRPC side of the client port.
pub struct GrpcServer {
    services: Services,
    backend: Arc<dyn Backend>,
    metrics: Arc<GrpcMetrics>,
    methods: MethodTable,
    message_bytes_max: usize,
}

impl GrpcServer {
    /// Messages more than `MESSAGE_OVERHEAD_BYTES` above the request limit end here.
    pub fn new(services: Services, backend: Arc<dyn Backend>, metrics: Arc<GrpcMetrics>) -> GrpcServer {
        let message_bytes_max = backend.limits().request_bytes_max.saturating_add(MESSAGE_OVERHEAD_BYTES);
        GrpcServer { services, backend, metrics, methods: MethodTable::new(), message_bytes_max }
    }

    /// Answers one request. Never fails: what goes wrong is a status.
    pub async fn call<B>(&self, request: Request<B>) -> Response<Body>
    where
        B: http_body::Body<Data = Bytes> + Send + Unpin + 'static,
        B::Error: Into<Box<dyn std::error::Error + Send + Sync>> + Send,
    {
        if !is_grpc(request.headers()) {
            let mut response = Response::new(Body::empty());
            *response.status_mut() = StatusCode::UNSUPPORTED_MEDIA_TYPE;
            return response;
        }
        let Some((index, method)) = self.methods.find(request.uri().path()) else {
            return Status::unimplemented(unknown_path(request.uri().path())).into_http();
        };
        let metrics = self.metrics.method(index);
        metrics.started.inc();
        let start = Instant::now();
        let mut outcome = Outcome::new(metrics.clone(), start);
        match self.handle(request, &method, &metrics).await {
            Ok((response, ending)) => self.watch(response, ending, outcome, metrics, &method, start),
            Err(status) => {
                outcome.tell(status.code());
                status.into_http()
            }
        }
    }

    async fn handle<B>(
        &self,
        request: Request<B>,
        method: &Method,
        metrics: &Arc<MethodMetrics>,
    ) -> Result<(Response<Reply>, Ending), Status>
    where
        B: http_body::Body<Data = Bytes> + Send + Unpin + 'static,
        B::Error: Into<Box<dyn std::error::Error + Send + Sync>> + Send,
    {
        let mut ending = Ending::from_headers(request.headers());
        self.check(request.headers(), method, &mut ending)?;
        if !method.is_served() {
            return Err(not_served(method.name));
        }
        let request = request.map(|body| {
            RequestBody::new(body, self.message_bytes_max, metrics.clone(), self.metrics.received_bytes.clone())
        });
        // A handler that panics costs its request only (DESIGN.md 2).
        let guarded = AssertUnwindSafe(Box::pin(self.services.call(method, request))).catch_unwind();
        match ending.bound(guarded).await? {
            Ok(response) => Ok((response, ending)),
            Err(_) => Err(Status::internal(format!("quorate: {} panicked, see the log of this member", method.name))),
        }
    }

    fn check(&self, headers: &HeaderMap, method: &Method, ending: &mut Ending) -> Result<(), Answer> {
        if self.backend.is_learner() && !learner_serves(method) {
            return Err(Answer::NotSupportedForLearner);
        }
        let version = match headers.get("client-api-version").map(|value| std::str::from_utf8(value.as_bytes())) {
            None => "unknown",
            Some(Ok(version)) => version,
            Some(Err(_)) => return Err(Answer::InvalidClientApiVersion),
        };
        self.metrics.count_client(method.kind.is_unary(), bounded(version));
        if headers.get("hasleader").is_some_and(|value| value == "true") {
            if self.backend.raft_status().leader.is_none() {
                return Err(Answer::NoLeader);
            }
            if !method.kind.is_unary() {
                ending.require_leader(self.backend.clone());
            }
        }
        Ok(())
    }

    /// The response with a body that counts and can end the call.
    fn watch(
        &self,
        mut response: Response<Reply>,
        ending: Ending,
        mut outcome: Outcome,
        metrics: Arc<MethodMetrics>,
        method: &Method,
        start: Instant,
    ) -> Response<Body> {
        self.log_slow(method, start.elapsed());
        if response.headers().contains_key("grpc-status") {
            outcome.tell(code_of(response.headers()));
            return response.map(Body::new);
        }
        let sent_bytes = self.metrics.sent_bytes.clone();
        let held = response.extensions_mut().remove();
        response.map(|body| Body::new(ResponseBody::new(body, outcome, ending, metrics, sent_bytes, held)))
    }

    fn log_slow(&self, method: &Method, took: Duration) {
        let limit = self.backend.limits().slow_request;
        // To wait for others is what these are asked for.
        let waits = matches!(method.name, "Lock" | "Campaign");
        if method.kind.is_unary() && !waits && !limit.is_zero() && took > limit {
            tracing::warn!(method = method.name, took = ?took, expected = ?limit, "a request took too long");
        }
    }
}

/// What a learner answers: Status, Snapshot, and ranges, of which the handler lets serializable ones pass.
fn learner_serves(method: &Method) -> bool {
    matches!(
        (method.service, method.name),
        ("etcdserverpb.KV", "Range") | ("etcdserverpb.Maintenance", "Status" | "Snapshot")
    )
}

/// Versions are labels of a metric: what no release of etcd would send must not make a series each.
fn bounded(version: &str) -> &str {
    let plain =
        version.len() <= 16 && version.bytes().all(|byte| byte.is_ascii_alphanumeric() || b".-+".contains(&byte));
    if plain && !version.is_empty() { version } else { "unknown" }
}

fn is_grpc(headers: &HeaderMap) -> bool {
    let Some(kind) = headers.get(CONTENT_TYPE).map(|value| value.as_bytes()) else { return false };
    kind.strip_prefix(b"application/grpc").is_some_and(|rest| matches!(rest.first(), None | Some(b'+' | b';')))
}

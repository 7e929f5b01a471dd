//! Plain HTTP on the client port and on metrics listeners: bytes as etcd's (server.md 8.1, 8.2).

use std::collections::BTreeMap;
use std::collections::BTreeSet;
use std::sync::Arc;

use bytes::Bytes;
use http::HeaderMap;
use http::HeaderValue;
use http::Method;
use http::Request;
use http::Response;
use http::StatusCode;
use http::header;
use http_body_util::Full;
use prometheus::Registry;
use tonic::body::Body;

use crate::common::urls::split_host_port;
use crate::common::version::ETCD_VERSION;
use crate::server::api::backend::Backend;
use crate::server::api::backend::Role;
use crate::server::api::http_health;
use crate::server::api::http_health::Probe;
use crate::server::api::metrics::HttpMetrics;
use crate::server::api::metrics::MemberMetrics;
use crate::server::metrics;

const TEXT: &str = "text/plain; charset=utf-8";
const JSON: &str = "application/json";

/// Which hosts and origins may use the plain HTTP endpoints. A set that holds `*` allows all.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Access {
    pub hosts: BTreeSet<String>,
    pub origins: BTreeSet<String>,
}

/// The HTTP side of one server.
pub struct HttpServer {
    backend: Arc<dyn Backend>,
    registry: Registry,
    access: Access,
    metrics: HttpMetrics,
    member: MemberMetrics,
}

/// What a listener shows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Surface {
    /// Everything, guarded by the host whitelist and CORS.
    Client,
    /// The same over TLS: who asks there cannot be lured by a name (server.md 8.2).
    SecureClient,
    /// `/metrics` and health only.
    Metrics,
}

impl HttpServer {
    pub fn new(backend: Arc<dyn Backend>, registry: Registry, access: Access) -> HttpServer {
        let (metrics, member) = (HttpMetrics::register(&registry), MemberMetrics::register(&registry, &*backend));
        HttpServer { backend, registry, access, metrics, member }
    }

    /// Answers one request. The body of a request is never read: no endpoint has one.
    pub async fn call<B>(&self, surface: Surface, request: Request<B>) -> Response<Body> {
        let (parts, _) = request.into_parts();
        if surface == Surface::Metrics {
            return self.route(surface, &parts.method, parts.uri.path(), parts.uri.query()).await;
        }
        let host = host_of(&parts.headers, &parts.uri);
        if surface == Surface::Client && !allows(&self.access.hosts, &host) {
            return refused_host(&host);
        }
        let cors = self.cors(&parts.headers);
        let mut response = match parts.method {
            Method::OPTIONS => Response::new(Body::empty()),
            _ => self.route(surface, &parts.method, parts.uri.path(), parts.uri.query()).await,
        };
        response.headers_mut().extend(cors);
        response
    }

    async fn route(&self, surface: Surface, method: &Method, path: &str, query: Option<&str>) -> Response<Body> {
        let client = surface != Surface::Metrics;
        match path {
            "/metrics" => self.metrics_page(),
            "/health" => only_get(method, self.health(query)).await,
            "/version" if client => only_get(method, async { self.version() }).await,
            "/debug/vars" if client => only_get(method, async { self.debug_vars() }).await,
            _ => match self.probe(method, path, query).await {
                Some(response) => response,
                None => not_found(),
            },
        }
    }

    async fn health(&self, query: Option<&str>) -> Response<Body> {
        let query = parse_query(query);
        let exclude = query.get("exclude").map_or(&[][..], Vec::as_slice);
        let serializable = query.get("serializable").is_some_and(|values| values[0] == "true");
        let health = http_health::health(&*self.backend, exclude, serializable).await;
        let (status, counter) = match health.is_good() {
            true => (StatusCode::OK, &self.metrics.health_success),
            false => {
                tracing::warn!(reason = health.reason, "serving /health false");
                (StatusCode::SERVICE_UNAVAILABLE, &self.metrics.health_failures)
            }
        };
        counter.inc();
        if health.is_good() {
            return answer(status, TEXT, health.body());
        }
        // An error of Go's: with a line end, and not to be taken for anything but text.
        let mut response = answer(status, TEXT, format!("{}\n", health.body()));
        no_sniff(&mut response);
        response
    }

    /// `/livez`, `/readyz` and each of their checks alone; `None` for another path.
    async fn probe(&self, method: &Method, path: &str, query: Option<&str>) -> Option<Response<Body>> {
        let mut parts = path.strip_prefix('/')?.splitn(2, '/');
        let probe = match parts.next()? {
            "livez" => Probe::Livez,
            "readyz" => Probe::Readyz,
            _ => return None,
        };
        let query = parse_query(query);
        let checks = match parts.next() {
            None => {
                let excluded = query.get("exclude").map_or(&[][..], Vec::as_slice);
                let wanted = probe.checks().iter().filter(|check| !excluded.iter().any(|name| name == check.name()));
                wanted.copied().collect::<Vec<_>>()
            }
            Some(name) => vec![*probe.checks().iter().find(|check| check.name() == name)?],
        };
        Some(only_get(method, self.run_probe(probe, &checks, query.contains_key("verbose"))).await)
    }

    async fn run_probe(&self, probe: Probe, checks: &[http_health::Check], verbose: bool) -> Response<Body> {
        let (good, lines) = http_health::run_checks(&*self.backend, &self.metrics, probe, checks).await;
        let mut response = match good {
            true => answer(StatusCode::OK, TEXT, format!("{}ok\n", if verbose { &lines } else { "" })),
            false => answer(StatusCode::SERVICE_UNAVAILABLE, TEXT, lines),
        };
        no_sniff(&mut response);
        response
    }

    fn version(&self) -> Response<Body> {
        let cluster = self.backend.cluster_version().unwrap_or_else(|| "not_decided".to_owned());
        let storage = self.backend.storage_version().unwrap_or_else(|| "unknown".to_owned());
        let body = format!(r#"{{"etcdserver":"{ETCD_VERSION}","etcdcluster":"{cluster}","storage":"{storage}"}}"#);
        answer(StatusCode::OK, JSON, body)
    }

    fn metrics_page(&self) -> Response<Body> {
        self.metrics.scrapes_in_flight.inc();
        self.member.refresh(&*self.backend);
        let body = metrics::exposition(&self.registry);
        self.metrics.scrapes_in_flight.dec();
        self.metrics.scrapes.with_label_values(&["200"]).inc();
        answer(StatusCode::OK, metrics::CONTENT_TYPE, body)
    }

    /// The page of Go's expvar. Memory is what the kernel counts: there is no garbage collector to ask.
    fn debug_vars(&self) -> Response<Body> {
        let arguments: Vec<String> = std::env::args_os().map(|word| word.to_string_lossy().into_owned()).collect();
        let (resident, virtual_bytes) = metrics::memory_bytes();
        let body = format!(
            "{{\n\"cmdline\": {},\n\"file_descriptor_limit\": {},\n\"memstats\": {},\n\"raft.status\": {}\n}}\n",
            serde_json::json!(arguments),
            metrics::fd_limit(),
            serde_json::json!({ "Alloc": resident, "Sys": virtual_bytes }),
            self.raft_status(),
        );
        answer(StatusCode::OK, "application/json; charset=utf-8", body)
    }

    fn raft_status(&self) -> serde_json::Value {
        let raft = self.backend.raft_status();
        let state = match raft.role {
            Role::Follower => "StateFollower",
            Role::PreCandidate => "StatePreCandidate",
            Role::Candidate => "StateCandidate",
            Role::Leader => "StateLeader",
        };
        serde_json::json!({
            "id": self.backend.identity().member.to_string(),
            "term": raft.term,
            "commit": raft.commit_index,
            "lead": raft.leader.unwrap_or_default().to_string(),
            "raftState": state,
            "applied": self.backend.applied_index(),
        })
    }

    /// Headers for a browser whose origin is allowed.
    fn cors(&self, headers: &HeaderMap) -> HeaderMap {
        let origin = headers.get(header::ORIGIN);
        let allowed = match self.access.origins.contains("*") {
            true => Some(HeaderValue::from_static("*")),
            false => {
                origin.filter(|origin| origin.to_str().is_ok_and(|text| allows(&self.access.origins, text))).cloned()
            }
        };
        let mut cors = HeaderMap::new();
        if let Some(origin) = allowed {
            let methods = HeaderValue::from_static("POST, GET, OPTIONS, PUT, DELETE");
            let accepted = HeaderValue::from_static("accept, content-type, authorization");
            cors.insert(header::ACCESS_CONTROL_ALLOW_METHODS, methods);
            cors.insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, origin);
            cors.insert(header::ACCESS_CONTROL_ALLOW_HEADERS, accepted);
        }
        cors
    }
}

fn allows(set: &BTreeSet<String>, name: &str) -> bool {
    set.is_empty() || set.contains("*") || set.contains(name)
}

/// The host that the request names, without its port.
fn host_of(headers: &HeaderMap, uri: &http::Uri) -> String {
    let named = headers.get(header::HOST).and_then(|host| host.to_str().ok());
    let host = named.or(uri.authority().map(|authority| authority.as_str())).unwrap_or("");
    split_host_port(host).map_or(host, |(host, _)| host).to_owned()
}

/// Repeated keys keep their order; a key without value has an empty one.
fn parse_query(query: Option<&str>) -> BTreeMap<String, Vec<String>> {
    let mut found: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for pair in query.unwrap_or("").split('&').filter(|pair| !pair.is_empty()) {
        let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
        found.entry(key.to_owned()).or_default().push(value.to_owned());
    }
    found
}

async fn only_get(method: &Method, page: impl Future<Output = Response<Body>>) -> Response<Body> {
    if method == Method::GET {
        return page.await;
    }
    let mut response = answer(StatusCode::METHOD_NOT_ALLOWED, TEXT, "Method Not Allowed\n");
    response.headers_mut().insert(header::ALLOW, HeaderValue::from_static("GET"));
    no_sniff(&mut response);
    response
}

fn not_found() -> Response<Body> {
    let mut response = answer(StatusCode::NOT_FOUND, TEXT, "404 page not found\n");
    no_sniff(&mut response);
    response
}

/// Protects against DNS rebinding (CVE-2018-5702): a page of a stranger must not reach a member through a name of its own.
fn refused_host(host: &str) -> Response<Body> {
    tracing::warn!(host, "refused a request: its host is not in the host whitelist");
    let body = format!(
        "Host {host:?} is not allowed here: add it to --host-whitelist if this member should answer under that name \
         (protection against DNS rebinding, CVE-2018-5702).\n"
    );
    let mut response = answer(StatusCode::MISDIRECTED_REQUEST, TEXT, body);
    no_sniff(&mut response);
    response
}

fn no_sniff(response: &mut Response<Body>) {
    response.headers_mut().insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
}

fn answer(status: StatusCode, content_type: &'static str, body: impl Into<Bytes>) -> Response<Body> {
    let mut response = Response::new(Body::new(Full::new(body.into())));
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type));
    response
}

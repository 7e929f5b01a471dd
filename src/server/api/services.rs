//! The gRPC services of this release, by name.

use std::convert::Infallible;
use std::future::Future;
use std::sync::Arc;

use bytes::Bytes;
use http::Request;
use http::Response;
use tonic::body::Body;
use tower::Service;

use crate::proto::etcdserverpb::cluster_server::ClusterServer;
use crate::proto::etcdserverpb::kv_server::KvServer;
use crate::proto::etcdserverpb::lease_server::LeaseServer;
use crate::proto::etcdserverpb::maintenance_server::MaintenanceServer;
use crate::proto::health::health_server::HealthServer;
use crate::proto::v3electionpb::election_server::ElectionServer;
use crate::proto::v3lockpb::lock_server::LockServer;
use crate::server::api::MESSAGE_OVERHEAD_BYTES;
use crate::server::api::backend::Backend;
use crate::server::api::cluster::ClusterService;
use crate::server::api::election::ElectionService;
use crate::server::api::health_service::HealthService;
use crate::server::api::in_process::InProcess;
use crate::server::api::kv::KvService;
use crate::server::api::lease::LeaseService;
use crate::server::api::lock::LockService;
use crate::server::api::maintenance::MaintenanceService;
use crate::server::api::methods::Method;
use crate::server::api::metrics::RequestMetrics;
use crate::server::api::not_served;
use crate::server::api::unary;
use crate::server::api::unary::Replay;
use crate::server::api::unary::Reply;
use crate::server::api::unsent::unsent_of;
use crate::server::api::watch;

const KV: &str = "etcdserverpb.KV";

/// One of each. Cloning a service is cloning a handle.
pub struct Services {
    plain_kv: KvService,
    kv: KvServer<KvService>,
    lease: LeaseServer<LeaseService>,
    cluster: ClusterServer<ClusterService>,
    maintenance: MaintenanceServer<MaintenanceService>,
    lock: LockServer<LockService>,
    election: ElectionServer<ElectionService>,
    health: HealthServer<HealthService>,
    backend: Arc<dyn Backend>,
}

impl Services {
    pub fn new(backend: Arc<dyn Backend>, metrics: RequestMetrics) -> Services {
        // The interceptor ends larger messages before, in grpc-go's words; this bound only agrees with it.
        let bytes_max = backend.limits().request_bytes_max.saturating_add(MESSAGE_OVERHEAD_BYTES);
        let maintenance = MaintenanceService::new(backend.clone(), metrics.clone());
        let lease = LeaseService::new(backend.clone(), metrics.clone());
        let kv = KvService::new(backend.clone(), metrics);
        let in_process = InProcess::new(kv.clone(), backend.clone());
        Services {
            plain_kv: kv.clone(),
            kv: KvServer::new(kv).max_decoding_message_size(bytes_max).max_encoding_message_size(usize::MAX),
            lease: LeaseServer::new(lease).max_decoding_message_size(bytes_max).max_encoding_message_size(usize::MAX),
            cluster: ClusterServer::new(ClusterService::new(backend.clone())).max_decoding_message_size(bytes_max),
            maintenance: MaintenanceServer::new(maintenance).max_decoding_message_size(bytes_max),
            lock: LockServer::new(LockService::new(in_process.clone())).max_decoding_message_size(bytes_max),
            election: ElectionServer::new(ElectionService::new(in_process)).max_decoding_message_size(bytes_max),
            health: HealthServer::new(HealthService).max_decoding_message_size(bytes_max),
            backend,
        }
    }

    /// Calls the handler of a served method: the frequent ones by a shorter way, if what comes is plain.
    pub fn call<'a, B>(
        &'a self,
        method: &'a Method,
        request: Request<B>,
    ) -> impl Future<Output = Response<Reply>> + Send + 'a
    where
        B: http_body::Body<Data = Bytes> + Send + Unpin + 'static,
        B::Error: Into<Box<dyn std::error::Error + Send + Sync>> + Send + Unpin,
    {
        // Taken apart here: a future keeps room for everything that is moved inside it.
        let (head, body) = request.into_parts();
        async move {
            let kv = &self.plain_kv;
            let unsent = unsent_of(&head.extensions);
            let is_plain = method.service == KV && !head.headers.contains_key("grpc-encoding");
            let served = match method.name {
                "Range" if is_plain => unary::serve(body, |request| kv.answer_range(request, &unsent)).await,
                "Put" if is_plain => unary::serve(body, |request| kv.answer_put(request, &unsent)).await,
                "DeleteRange" if is_plain => {
                    Box::pin(unary::serve(body, |request| kv.answer_delete_range(request, &unsent))).await
                }
                "Txn" if is_plain => Box::pin(unary::serve(body, |request| kv.answer_txn(request, &unsent))).await,
                _ => Err(Replay::nothing_read(body)),
            };
            match served {
                Ok(response) => response,
                Err(replay) => {
                    Box::pin(self.library(method, Request::from_parts(head, replay))).await.map(Reply::Stream)
                }
            }
        }
    }

    /// The way of the gRPC library.
    async fn library<B>(&self, method: &Method, request: Request<B>) -> Response<Body>
    where
        B: http_body::Body<Data = Bytes> + Send + 'static,
        B::Error: Into<Box<dyn std::error::Error + Send + Sync>> + Send,
    {
        let result: Result<Response<Body>, Infallible> = match method.service {
            KV => self.kv.clone().call(request).await,
            "etcdserverpb.Lease" => self.lease.clone().call(request).await,
            "etcdserverpb.Watch" => Ok(watch::serve(&self.backend, request)),
            "etcdserverpb.Cluster" => self.cluster.clone().call(request).await,
            "etcdserverpb.Maintenance" => self.maintenance.clone().call(request).await,
            "v3lockpb.Lock" => self.lock.clone().call(request).await,
            "v3electionpb.Election" => self.election.clone().call(request).await,
            "grpc.health.v1.Health" => self.health.clone().call(request).await,
            _ => Ok(not_served(method.name).into_http()),
        };
        match result {
            Ok(response) => response,
            Err(never) => match never {},
        }
    }
}

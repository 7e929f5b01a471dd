//! The Lease service: grants and revokes go through the log, the rest is the leader's knowledge.

use std::pin::Pin;
use std::sync::Arc;
use std::time::Instant;

use futures_util::Stream;
use futures_util::StreamExt;
use tonic::Request;
use tonic::Response;
use tonic::Status;
use tonic::Streaming;

use crate::common::answer::Answer;
use crate::proto::etcdserverpb::LeaseGrantRequest;
use crate::proto::etcdserverpb::LeaseGrantResponse;
use crate::proto::etcdserverpb::LeaseKeepAliveRequest;
use crate::proto::etcdserverpb::LeaseKeepAliveResponse;
use crate::proto::etcdserverpb::LeaseLeasesRequest;
use crate::proto::etcdserverpb::LeaseLeasesResponse;
use crate::proto::etcdserverpb::LeaseRevokeRequest;
use crate::proto::etcdserverpb::LeaseRevokeResponse;
use crate::proto::etcdserverpb::LeaseStatus;
use crate::proto::etcdserverpb::LeaseTimeToLiveRequest;
use crate::proto::etcdserverpb::LeaseTimeToLiveResponse;
use crate::proto::etcdserverpb::lease_server::Lease;
use crate::server::api::backend::Backend;
use crate::server::api::header;
use crate::server::api::metrics::RequestMetrics;
use crate::server::apply::quota;

/// Renewals of one stream that are under way at once; their answers keep the order of the requests. One client renews
/// all its leases over one stream, and a follower asks the leader for each.
const RENEWALS_MAX: usize = 32;

/// Serves Lease over the member behind it.
#[derive(Clone)]
pub struct LeaseService {
    backend: Arc<dyn Backend>,
    metrics: RequestMetrics,
}

impl LeaseService {
    pub fn new(backend: Arc<dyn Backend>, metrics: RequestMetrics) -> LeaseService {
        LeaseService { backend, metrics }
    }
}

/// The answer to one renewal: 0 for a lease that is gone, which ends no stream (server.md 5).
async fn renew(
    backend: Arc<dyn Backend>,
    request: Result<LeaseKeepAliveRequest, Status>,
) -> Result<LeaseKeepAliveResponse, Status> {
    let id = request?.id;
    // Taken before the renewal: a client that sees revision 4 must not have been renewed at 3, where it was revoked.
    let header = header::complete(&*backend, None);
    let ttl = match backend.lease_keep_alive(id).await {
        Err(Answer::LeaseNotFound) => 0,
        renewed => renewed?,
    };
    Ok(LeaseKeepAliveResponse { header, id, ttl })
}

/// Ends behind the first error: etcd ends the stream with it.
fn until_error<T: Send + 'static>(
    answers: impl Stream<Item = Result<T, Status>> + Send + 'static,
) -> Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>> {
    let ended = answers.scan(false, |failed, answer| {
        let item = (!*failed).then_some(answer);
        *failed |= matches!(item, Some(Err(_)));
        std::future::ready(item)
    });
    Box::pin(ended)
}

#[tonic::async_trait]
impl Lease for LeaseService {
    async fn lease_grant(&self, request: Request<LeaseGrantRequest>) -> Result<Response<LeaseGrantResponse>, Status> {
        let request = request.into_inner();
        let start = Instant::now();
        self.backend.check_quota(quota::LEASE_GRANT_BYTES).await?;
        let result = self.backend.lease_grant(request).await;
        self.metrics.observe("LeaseGrant", start.elapsed(), result.is_ok());
        let mut response = result?;
        response.header = header::complete(&*self.backend, response.header);
        Ok(Response::new(response))
    }

    async fn lease_revoke(
        &self,
        request: Request<LeaseRevokeRequest>,
    ) -> Result<Response<LeaseRevokeResponse>, Status> {
        let start = Instant::now();
        let result = self.backend.lease_revoke(request.into_inner()).await;
        self.metrics.observe("LeaseRevoke", start.elapsed(), result.is_ok());
        let mut response = result?;
        response.header = header::complete(&*self.backend, response.header);
        Ok(Response::new(response))
    }

    type LeaseKeepAliveStream = Pin<Box<dyn Stream<Item = Result<LeaseKeepAliveResponse, Status>> + Send>>;

    async fn lease_keep_alive(
        &self,
        request: Request<Streaming<LeaseKeepAliveRequest>>,
    ) -> Result<Response<Self::LeaseKeepAliveStream>, Status> {
        let backend = self.backend.clone();
        let answers = request.into_inner().map(move |request| renew(backend.clone(), request)).buffered(RENEWALS_MAX);
        Ok(Response::new(until_error(answers)))
    }

    async fn lease_time_to_live(
        &self,
        request: Request<LeaseTimeToLiveRequest>,
    ) -> Result<Response<LeaseTimeToLiveResponse>, Status> {
        let LeaseTimeToLiveRequest { id, keys } = request.into_inner();
        let mut response = match self.backend.lease_time_to_live(id, keys).await {
            // No error (server.md 15, trap 29).
            Err(Answer::LeaseNotFound) => LeaseTimeToLiveResponse { id, ttl: -1, ..LeaseTimeToLiveResponse::default() },
            found => found?,
        };
        response.header = header::complete(&*self.backend, response.header);
        Ok(Response::new(response))
    }

    async fn lease_leases(&self, _: Request<LeaseLeasesRequest>) -> Result<Response<LeaseLeasesResponse>, Status> {
        let leases = self.backend.leases().into_iter().map(|id| LeaseStatus { id }).collect();
        Ok(Response::new(LeaseLeasesResponse { header: header::complete(&*self.backend, None), leases }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn nothing_comes_behind_the_first_error_of_a_stream() {
        let answers = [Ok(1), Err(Status::unavailable("gone")), Ok(2)];
        let told: Vec<_> = until_error(futures_util::stream::iter(answers)).collect().await;
        assert_eq!(told.len(), 2);
        assert_eq!(told[1].as_ref().map_err(Status::message), Err("gone"));
    }
}

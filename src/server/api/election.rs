//! The Election service: elections for clients that bring no recipe of their own.

use std::pin::Pin;

use futures_util::Stream;
use futures_util::stream;
use tonic::Request;
use tonic::Response;
use tonic::Status;

use crate::common::concurrency::Leader;
use crate::common::concurrency::Place;
use crate::common::concurrency::Queue;
use crate::common::concurrency::Refused;
use crate::proto::v3electionpb::CampaignRequest;
use crate::proto::v3electionpb::CampaignResponse;
use crate::proto::v3electionpb::LeaderKey;
use crate::proto::v3electionpb::LeaderRequest;
use crate::proto::v3electionpb::LeaderResponse;
use crate::proto::v3electionpb::ProclaimRequest;
use crate::proto::v3electionpb::ProclaimResponse;
use crate::proto::v3electionpb::ResignRequest;
use crate::proto::v3electionpb::ResignResponse;
use crate::proto::v3electionpb::election_server::Election;
use crate::server::api::in_process::InProcess;
use crate::server::api::in_process::plain;
use crate::server::api::in_process::refused;

/// Serves Election over the member itself.
#[derive(Clone)]
pub struct ElectionService {
    store: InProcess,
}

impl ElectionService {
    pub fn new(store: InProcess) -> ElectionService {
        ElectionService { store }
    }
}

fn leader_key(leader: Option<LeaderKey>) -> Result<LeaderKey, Status> {
    leader.ok_or_else(|| Status::unknown("\"leader\" field must be provided"))
}

#[tonic::async_trait]
impl Election for ElectionService {
    /// Returns when the caller leads. A caller that goes away before withdraws.
    async fn campaign(&self, request: Request<CampaignRequest>) -> Result<Response<CampaignResponse>, Status> {
        let CampaignRequest { name, lease, value } = request.into_inner();
        let store = &self.store;
        let lease = store.lease(lease).await.map_err(plain)?;
        let queue = Queue::new(&name);
        let place = queue.stand(store, lease, value).await.map_err(refused)?;
        let held = store.hold(&place);
        let elected = queue.wait(store, &place).await;
        // Whatever went wrong while the caller was there, it may campaign again with this place.
        held.keep();
        elected.map_err(|error| match error {
            // etcd believes in a place that ended with its lease.
            Refused::SessionExpired => refused(Refused::NotLeader),
            error => refused(error),
        })?;
        let leader = LeaderKey { name, key: place.key, rev: place.revision, lease };
        Ok(Response::new(CampaignResponse { header: Some(place.header), leader: Some(leader) }))
    }

    async fn proclaim(&self, request: Request<ProclaimRequest>) -> Result<Response<ProclaimResponse>, Status> {
        let ProclaimRequest { leader, value } = request.into_inner();
        let LeaderKey { key, rev, lease, .. } = leader_key(leader)?;
        let lease = self.store.lease(lease).await.map_err(plain)?;
        let header = Place::known(key, rev, lease).proclaim(&self.store, value).await.map_err(refused)?;
        Ok(Response::new(ProclaimResponse { header: Some(header) }))
    }

    async fn leader(&self, request: Request<LeaderRequest>) -> Result<Response<LeaderResponse>, Status> {
        let queue = Queue::new(&request.into_inner().name);
        let response = queue.leader(&self.store).await.map_err(refused)?;
        Ok(Response::new(LeaderResponse { header: response.header, kv: response.kvs.into_iter().next() }))
    }

    type ObserveStream = Pin<Box<dyn Stream<Item = Result<LeaderResponse, Status>> + Send>>;

    /// Ends only with an error, where etcd ends without one.
    async fn observe(&self, request: Request<LeaderRequest>) -> Result<Response<Self::ObserveStream>, Status> {
        let queue = Queue::new(&request.into_inner().name);
        let observing = Some((self.store.clone(), queue.observe()));
        let leaders = stream::unfold(observing, |observing| async move {
            let (store, mut observer) = observing?;
            match observer.next(&store).await {
                Ok(Leader { header, kv }) => {
                    Some((Ok(LeaderResponse { header: Some(header), kv: Some(kv) }), Some((store, observer))))
                }
                Err(error) => Some((Err(refused(error)), None)),
            }
        });
        Ok(Response::new(Box::pin(leaders)))
    }

    async fn resign(&self, request: Request<ResignRequest>) -> Result<Response<ResignResponse>, Status> {
        let LeaderKey { key, rev, lease, .. } = leader_key(request.into_inner().leader)?;
        let header = Place::known(key, rev, lease).leave(&self.store).await.map_err(plain)?;
        Ok(Response::new(ResignResponse { header: Some(header) }))
    }
}

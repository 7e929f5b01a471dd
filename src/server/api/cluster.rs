//! The Cluster service: who the members are. Changing them is not served by this release.

use std::sync::Arc;

use tonic::Request;
use tonic::Response;
use tonic::Status;

use crate::proto::etcdserverpb::MemberAddRequest;
use crate::proto::etcdserverpb::MemberAddResponse;
use crate::proto::etcdserverpb::MemberListRequest;
use crate::proto::etcdserverpb::MemberListResponse;
use crate::proto::etcdserverpb::MemberPromoteRequest;
use crate::proto::etcdserverpb::MemberPromoteResponse;
use crate::proto::etcdserverpb::MemberRemoveRequest;
use crate::proto::etcdserverpb::MemberRemoveResponse;
use crate::proto::etcdserverpb::MemberUpdateRequest;
use crate::proto::etcdserverpb::MemberUpdateResponse;
use crate::proto::etcdserverpb::cluster_server::Cluster;
use crate::server::api::backend::Backend;
use crate::server::api::header;
use crate::server::api::not_served;

/// Serves Cluster over the member behind it.
#[derive(Clone)]
pub struct ClusterService {
    backend: Arc<dyn Backend>,
}

impl ClusterService {
    pub fn new(backend: Arc<dyn Backend>) -> ClusterService {
        ClusterService { backend }
    }
}

#[tonic::async_trait]
impl Cluster for ClusterService {
    async fn member_list(&self, request: Request<MemberListRequest>) -> Result<Response<MemberListResponse>, Status> {
        if request.into_inner().linearizable {
            self.backend.read_barrier().await?;
        }
        let members = self.backend.members();
        Ok(Response::new(MemberListResponse { header: header::without_revision(&*self.backend), members }))
    }

    async fn member_add(&self, _: Request<MemberAddRequest>) -> Result<Response<MemberAddResponse>, Status> {
        Err(not_served("MemberAdd"))
    }

    async fn member_remove(&self, _: Request<MemberRemoveRequest>) -> Result<Response<MemberRemoveResponse>, Status> {
        Err(not_served("MemberRemove"))
    }

    async fn member_update(&self, _: Request<MemberUpdateRequest>) -> Result<Response<MemberUpdateResponse>, Status> {
        Err(not_served("MemberUpdate"))
    }

    async fn member_promote(
        &self,
        _: Request<MemberPromoteRequest>,
    ) -> Result<Response<MemberPromoteResponse>, Status> {
        Err(not_served("MemberPromote"))
    }
}

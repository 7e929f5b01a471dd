//! The Cluster service: who the members are, and changes of it.
//!
//! Headers carry no revision here (server.md 15, trap 34).

use std::sync::Arc;

use tonic::Request;
use tonic::Response;
use tonic::Status;

use crate::common::answer::Answer;
use crate::common::ids::MemberId;
use crate::common::urls;
use crate::common::urls::Url;
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

    async fn member_add(&self, request: Request<MemberAddRequest>) -> Result<Response<MemberAddResponse>, Status> {
        let request = request.into_inner();
        let mut peer_urls = checked_urls(&request.peer_ur_ls)?;
        peer_urls.sort_unstable();
        let (member, members) = self.backend.member_add(peer_urls, request.is_learner).await?;
        let header = header::without_revision(&*self.backend);
        Ok(Response::new(MemberAddResponse { header, member: Some(member), members }))
    }

    async fn member_remove(
        &self,
        request: Request<MemberRemoveRequest>,
    ) -> Result<Response<MemberRemoveResponse>, Status> {
        let members = self.backend.member_remove(MemberId(request.into_inner().id)).await?;
        Ok(Response::new(MemberRemoveResponse { header: header::without_revision(&*self.backend), members }))
    }

    async fn member_update(
        &self,
        request: Request<MemberUpdateRequest>,
    ) -> Result<Response<MemberUpdateResponse>, Status> {
        let request = request.into_inner();
        // etcd takes anything here, and what is no URL ends all other members (server.md 15, trap 54).
        let peer_urls = checked_urls(&request.peer_ur_ls)?;
        let members = self.backend.member_update(MemberId(request.id), peer_urls).await?;
        Ok(Response::new(MemberUpdateResponse { header: header::without_revision(&*self.backend), members }))
    }

    async fn member_promote(
        &self,
        request: Request<MemberPromoteRequest>,
    ) -> Result<Response<MemberPromoteResponse>, Status> {
        let members = self.backend.member_promote(MemberId(request.into_inner().id)).await?;
        Ok(Response::new(MemberPromoteResponse { header: header::without_revision(&*self.backend), members }))
    }
}

/// The URLs without blanks around them, in order; at least one, all of them usable.
fn checked_urls(texts: &[String]) -> Result<Vec<String>, Answer> {
    let urls: Result<Vec<Url>, String> = texts.iter().map(|text| Url::parse(text)).collect();
    match urls {
        Ok(urls) if !urls.is_empty() => Ok(urls::strings(&urls)),
        _ => Err(Answer::BadMemberUrls),
    }
}

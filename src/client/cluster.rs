//! Calls of the cluster service.

use super::CallError;
use super::Client;
use super::Deadline;
use super::call::Method;
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

const MEMBER_LIST: Method = Method::read("/etcdserverpb.Cluster/MemberList");
const MEMBER_ADD: Method = Method::write("/etcdserverpb.Cluster/MemberAdd");
const MEMBER_REMOVE: Method = Method::write("/etcdserverpb.Cluster/MemberRemove");
const MEMBER_UPDATE: Method = Method::write("/etcdserverpb.Cluster/MemberUpdate");
const MEMBER_PROMOTE: Method = Method::write("/etcdserverpb.Cluster/MemberPromote");

impl Client {
    pub async fn member_list(
        &self,
        request: MemberListRequest,
        deadline: Deadline,
    ) -> Result<MemberListResponse, CallError> {
        self.unary(&MEMBER_LIST, request, deadline).await
    }

    pub async fn member_add(
        &self,
        request: MemberAddRequest,
        deadline: Deadline,
    ) -> Result<MemberAddResponse, CallError> {
        self.unary(&MEMBER_ADD, request, deadline).await
    }

    pub async fn member_remove(&self, id: u64, deadline: Deadline) -> Result<MemberRemoveResponse, CallError> {
        self.unary(&MEMBER_REMOVE, MemberRemoveRequest { id }, deadline).await
    }

    pub async fn member_update(
        &self,
        request: MemberUpdateRequest,
        deadline: Deadline,
    ) -> Result<MemberUpdateResponse, CallError> {
        self.unary(&MEMBER_UPDATE, request, deadline).await
    }

    pub async fn member_promote(&self, id: u64, deadline: Deadline) -> Result<MemberPromoteResponse, CallError> {
        self.unary(&MEMBER_PROMOTE, MemberPromoteRequest { id }, deadline).await
    }
}

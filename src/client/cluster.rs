//! Calls of the cluster service.

use super::CallError;
use super::Client;
use super::Deadline;
use super::call::Method;
use crate::proto::etcdserverpb::MemberListRequest;
use crate::proto::etcdserverpb::MemberListResponse;

const MEMBER_LIST: Method = Method::read("/etcdserverpb.Cluster/MemberList");

impl Client {
    pub async fn member_list(
        &self,
        request: MemberListRequest,
        deadline: Deadline,
    ) -> Result<MemberListResponse, CallError> {
        self.unary(&MEMBER_LIST, request, deadline).await
    }
}

//! Calls of the maintenance service. Each concerns the one member that answers, so clients for them have one endpoint.

use tonic::Streaming;

use super::CallError;
use super::Client;
use super::Deadline;
use super::call::Method;
use crate::proto::etcdserverpb::AlarmRequest;
use crate::proto::etcdserverpb::AlarmResponse;
use crate::proto::etcdserverpb::HashKvRequest;
use crate::proto::etcdserverpb::HashKvResponse;
use crate::proto::etcdserverpb::MoveLeaderRequest;
use crate::proto::etcdserverpb::MoveLeaderResponse;
use crate::proto::etcdserverpb::SnapshotRequest;
use crate::proto::etcdserverpb::SnapshotResponse;
use crate::proto::etcdserverpb::StatusRequest;
use crate::proto::etcdserverpb::StatusResponse;
use crate::proto::etcdserverpb::alarm_request::AlarmAction;

const ALARM_LIST: Method = Method::read("/etcdserverpb.Maintenance/Alarm");
const STATUS: Method = Method::read("/etcdserverpb.Maintenance/Status");
const SNAPSHOT: Method = Method::read("/etcdserverpb.Maintenance/Snapshot");
const HASH_KV: Method = Method::read("/etcdserverpb.Maintenance/HashKV");
const MOVE_LEADER: Method = Method::write("/etcdserverpb.Maintenance/MoveLeader");

impl Client {
    /// All alarms of all members.
    pub async fn alarm_list(&self, deadline: Deadline) -> Result<AlarmResponse, CallError> {
        let request = AlarmRequest { action: AlarmAction::Get.into(), ..AlarmRequest::default() };
        self.unary(&ALARM_LIST, request, deadline).await
    }

    pub async fn status(&self, deadline: Deadline) -> Result<StatusResponse, CallError> {
        self.unary(&STATUS, StatusRequest {}, deadline).await
    }

    /// The member's database in chunks, its digest last. Without a deadline: it takes as long as it takes.
    pub async fn snapshot(&self) -> Result<Streaming<SnapshotResponse>, CallError> {
        self.server_stream(&SNAPSHOT, SnapshotRequest {}, Deadline::none()).await
    }

    /// The hash over all keys at `revision`; 0 is the latest.
    pub async fn hash_kv(&self, revision: i64, deadline: Deadline) -> Result<HashKvResponse, CallError> {
        self.unary(&HASH_KV, HashKvRequest { revision }, deadline).await
    }

    /// Returns when `target_id` leads. Only the leader can be asked.
    pub async fn move_leader(&self, target_id: u64, deadline: Deadline) -> Result<MoveLeaderResponse, CallError> {
        self.unary(&MOVE_LEADER, MoveLeaderRequest { target_id }, deadline).await
    }
}

//! The Maintenance service: status, alarms, hashes, who leads.

use std::sync::Arc;
use std::time::Instant;

use tonic::Request;
use tonic::Response;
use tonic::Status;

use crate::common::answer::Answer;
use crate::common::ids::MemberId;
use crate::common::version::ETCD_VERSION;
use crate::proto::etcdserverpb::AlarmMember;
use crate::proto::etcdserverpb::AlarmRequest;
use crate::proto::etcdserverpb::AlarmResponse;
use crate::proto::etcdserverpb::AlarmType;
use crate::proto::etcdserverpb::DefragmentRequest;
use crate::proto::etcdserverpb::DefragmentResponse;
use crate::proto::etcdserverpb::DowngradeInfo;
use crate::proto::etcdserverpb::DowngradeRequest;
use crate::proto::etcdserverpb::DowngradeResponse;
use crate::proto::etcdserverpb::HashKvRequest;
use crate::proto::etcdserverpb::HashKvResponse;
use crate::proto::etcdserverpb::HashRequest;
use crate::proto::etcdserverpb::HashResponse;
use crate::proto::etcdserverpb::MoveLeaderRequest;
use crate::proto::etcdserverpb::MoveLeaderResponse;
use crate::proto::etcdserverpb::SnapshotRequest;
use crate::proto::etcdserverpb::StatusRequest;
use crate::proto::etcdserverpb::StatusResponse;
use crate::proto::etcdserverpb::alarm_request::AlarmAction;
use crate::proto::etcdserverpb::maintenance_server::Maintenance;
use crate::server::api::backend::Backend;
use crate::server::api::backend::Limits;
use crate::server::api::header;
use crate::server::api::image_stream::ImageStream;
use crate::server::api::metrics::RequestMetrics;
use crate::server::api::not_served;

/// The quota when the flag is 0 (server.md 12).
pub const QUOTA_DEFAULT_BYTES: i64 = 2 * 1024 * 1024 * 1024;

impl Limits {
    /// The quota as Status and the metrics show it: the default for 0, negative passed through.
    pub fn quota_shown(&self) -> i64 {
        if self.quota_backend_bytes == 0 { QUOTA_DEFAULT_BYTES } else { self.quota_backend_bytes }
    }
}

/// Serves Maintenance over the member behind it.
#[derive(Clone)]
pub struct MaintenanceService {
    backend: Arc<dyn Backend>,
    metrics: RequestMetrics,
}

impl MaintenanceService {
    pub fn new(backend: Arc<dyn Backend>, metrics: RequestMetrics) -> MaintenanceService {
        MaintenanceService { backend, metrics }
    }

    fn errors(&self, has_leader: bool) -> Vec<String> {
        let leaderless = (!has_leader).then(|| Answer::NoLeader.to_string());
        leaderless.into_iter().chain(self.backend.alarms().iter().map(alarm_text)).collect()
    }
}

/// An alarm in protobuf's text form, zero fields left out.
fn alarm_text(alarm: &AlarmMember) -> String {
    let member = (alarm.member_id != 0).then(|| format!("memberID:{}", alarm.member_id));
    let kind = match AlarmType::try_from(alarm.alarm) {
        Ok(AlarmType::None) => None,
        Ok(kind) => Some(format!("alarm:{}", kind.as_str_name())),
        Err(_) => Some(format!("alarm:{}", alarm.alarm)),
    };
    member.into_iter().chain(kind).collect::<Vec<String>>().join(" ")
}

#[tonic::async_trait]
impl Maintenance for MaintenanceService {
    async fn alarm(&self, request: Request<AlarmRequest>) -> Result<Response<AlarmResponse>, Status> {
        let request = request.into_inner();
        // A number that etcd does not know would crash its members when they apply the entry (server.md 6.4).
        if AlarmAction::try_from(request.action).is_err() {
            return Err(Status::invalid_argument("etcdserver: unknown alarm action"));
        }
        let start = Instant::now();
        let result = self.backend.alarm(request).await;
        self.metrics.observe("Alarm", start.elapsed(), result.is_ok());
        let mut response = result?;
        response.header = header::complete(&*self.backend, response.header);
        Ok(Response::new(response))
    }

    async fn status(&self, _: Request<StatusRequest>) -> Result<Response<StatusResponse>, Status> {
        let backend = &*self.backend;
        let (raft, sizes) = (backend.raft_status(), backend.sizes());
        Ok(Response::new(StatusResponse {
            header: header::complete(backend, None),
            version: ETCD_VERSION.to_owned(),
            db_size: sizes.allocated,
            leader: raft.leader.map_or(0, |leader| leader.0),
            raft_index: raft.commit_index,
            raft_term: raft.term,
            raft_applied_index: backend.applied_index(),
            errors: self.errors(raft.leader.is_some()),
            db_size_in_use: sizes.in_use,
            is_learner: backend.is_learner(),
            storage_version: backend.storage_version().unwrap_or_default(),
            db_size_quota: backend.limits().quota_shown(),
            downgrade_info: Some(DowngradeInfo::default()),
        }))
    }

    /// Header absent (server.md 0.4).
    async fn defragment(&self, _: Request<DefragmentRequest>) -> Result<Response<DefragmentResponse>, Status> {
        self.backend.flush().await?;
        Ok(Response::new(DefragmentResponse { header: None }))
    }

    async fn hash(&self, _: Request<HashRequest>) -> Result<Response<HashResponse>, Status> {
        let start = Instant::now();
        let mut response = self.backend.hash().await?;
        self.metrics.observe_hash(start.elapsed());
        response.header = header::complete(&*self.backend, response.header);
        Ok(Response::new(response))
    }

    async fn hash_kv(&self, request: Request<HashKvRequest>) -> Result<Response<HashKvResponse>, Status> {
        let start = Instant::now();
        let mut response = self.backend.hash_kv(request.into_inner().revision).await?;
        self.metrics.observe_hash_by_revision(start.elapsed());
        response.header = header::complete(&*self.backend, response.header);
        Ok(Response::new(response))
    }

    type SnapshotStream = ImageStream;

    async fn snapshot(&self, _: Request<SnapshotRequest>) -> Result<Response<Self::SnapshotStream>, Status> {
        let image = self.backend.image().await?;
        let version = self.backend.storage_version().unwrap_or_default();
        Ok(Response::new(ImageStream::start(image, version)))
    }

    /// Header absent (server.md 0.4).
    async fn move_leader(&self, request: Request<MoveLeaderRequest>) -> Result<Response<MoveLeaderResponse>, Status> {
        self.backend.move_leader(MemberId(request.into_inner().target_id)).await?;
        Ok(Response::new(MoveLeaderResponse { header: None }))
    }

    async fn downgrade(&self, _: Request<DowngradeRequest>) -> Result<Response<DowngradeResponse>, Status> {
        Err(not_served("Downgrade"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn alarms_are_written_as_text() {
        let check = |member_id: u64, alarm: i32, expected: &str| {
            assert_eq!(alarm_text(&AlarmMember { member_id, alarm }), expected);
        };
        check(7, 1, "memberID:7 alarm:NOSPACE");
        check(7, 2, "memberID:7 alarm:CORRUPT");
        check(0, 2, "alarm:CORRUPT");
        check(7, 9, "memberID:7 alarm:9");
    }
}

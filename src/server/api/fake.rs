//! A member over a map, for tests of the API: one revision, no history, every state settable.

use std::collections::BTreeMap;
use std::io::Seek;
use std::io::Write;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::MutexGuard;
use std::time::Duration;

use bytes::Bytes;

use crate::common::answer::Answer;
use crate::common::ids::ClusterId;
use crate::common::ids::MemberId;
use crate::common::key_range::KeyRange;
use crate::proto::etcdserverpb::*;
use crate::proto::mvccpb::KeyValue;
use crate::server::api::backend::Backend;
use crate::server::api::backend::Identity;
use crate::server::api::backend::Image;
use crate::server::api::backend::Limits;
use crate::server::api::backend::RaftStatus;
use crate::server::api::backend::Role;
use crate::server::api::backend::Snapshot;
use crate::server::api::backend::StoreSizes;
use crate::server::watch::stream::WatchStream;

pub const MEMBER: MemberId = MemberId(0xddd6_7b31_2462_fd7b);
pub const CLUSTER: ClusterId = ClusterId(0xa7ef_944b_9571_1739);

/// What tests set.
#[derive(Clone, Debug)]
pub struct State {
    pub keys: BTreeMap<Bytes, KeyValue>,
    /// Times to live by lease.
    pub leases: BTreeMap<i64, i64>,
    pub revision: i64,
    pub leader: Option<MemberId>,
    pub alarms: Vec<AlarmMember>,
    pub learner: bool,
    pub barrier: Result<(), Answer>,
    pub quota: Result<(), Answer>,
    pub barriers: usize,
    /// Every write waits for ever.
    pub stuck: bool,
}

pub struct Fake {
    identity: Identity,
    limits: Limits,
    state: Mutex<State>,
}

impl Fake {
    pub fn new() -> Arc<Fake> {
        let limits = Limits {
            request_bytes_max: 4096,
            txn_ops_max: 128,
            quota_backend_bytes: 0,
            request_timeout: Duration::from_secs(7),
            election_timeout: Duration::from_millis(20),
            progress_interval: Duration::from_secs(600),
            slow_request: Duration::ZERO,
        };
        let state = State {
            keys: BTreeMap::new(),
            leases: BTreeMap::new(),
            revision: 1,
            leader: Some(MEMBER),
            alarms: Vec::new(),
            learner: false,
            barrier: Ok(()),
            quota: Ok(()),
            barriers: 0,
            stuck: false,
        };
        let identity = Identity { member: MEMBER, cluster: CLUSTER, name: "m1".to_owned() };
        Arc::new(Fake { identity, limits, state: Mutex::new(state) })
    }

    pub fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no test panics while it holds this")
    }

    async fn wait_if_stuck(&self) {
        if self.state().stuck {
            std::future::pending::<()>().await;
        }
    }
}

impl State {
    fn header(&self) -> Option<ResponseHeader> {
        Some(ResponseHeader { revision: self.revision, ..Default::default() })
    }

    fn put(&mut self, request: PutRequest) -> PutResponse {
        self.revision += 1;
        let old = self.keys.get(&request.key).cloned();
        let kv = KeyValue {
            key: request.key.clone(),
            value: request.value,
            mod_revision: self.revision,
            create_revision: old.as_ref().map_or(self.revision, |old| old.create_revision),
            version: old.as_ref().map_or(1, |old| old.version + 1),
            lease: request.lease,
        };
        self.keys.insert(request.key, kv);
        PutResponse { header: self.header(), prev_kv: old.filter(|_| request.prev_kv) }
    }

    fn range(&self, request: &RangeRequest) -> RangeResponse {
        let range = KeyRange::new(request.key.clone(), request.range_end.clone());
        let found: Vec<KeyValue> = self.keys.values().filter(|kv| range.contains(&kv.key)).cloned().collect();
        let count = found.len() as i64;
        let limit = if request.limit > 0 { request.limit as usize } else { usize::MAX };
        let more = found.len() > limit && !request.count_only;
        let kvs = if request.count_only { Vec::new() } else { found.into_iter().take(limit).collect() };
        RangeResponse { header: self.header(), kvs, more, count }
    }
}

impl Snapshot for State {
    fn revision(&self) -> i64 {
        self.revision
    }

    fn range(&self, request: &RangeRequest) -> Result<RangeResponse, Answer> {
        if request.revision > self.revision {
            return Err(Answer::FutureRevision);
        }
        Ok(State::range(self, request))
    }

    fn txn(&self, request: &TxnRequest) -> Result<TxnResponse, Answer> {
        let responses = request.success.iter().map(|op| match &op.request {
            Some(request_op::Request::RequestRange(range)) => {
                ResponseOp { response: Some(response_op::Response::ResponseRange(State::range(self, range))) }
            }
            _ => ResponseOp::default(),
        });
        Ok(TxnResponse { header: self.header(), succeeded: true, responses: responses.collect() })
    }
}

#[tonic::async_trait]
impl Backend for Fake {
    fn identity(&self) -> &Identity {
        &self.identity
    }

    fn limits(&self) -> &Limits {
        &self.limits
    }

    fn raft_status(&self) -> RaftStatus {
        let leader = self.state().leader;
        RaftStatus { role: Role::Leader, term: 2, leader, commit_index: 9, last_index: 9, ..RaftStatus::default() }
    }

    fn applied_index(&self) -> u64 {
        8
    }

    fn revision(&self) -> i64 {
        self.state().revision
    }

    fn compact_revision(&self) -> i64 {
        -1
    }

    fn sizes(&self) -> StoreSizes {
        StoreSizes { allocated: 20480, in_use: 16384 }
    }

    fn alarms(&self) -> Vec<AlarmMember> {
        self.state().alarms.clone()
    }

    fn members(&self) -> Vec<Member> {
        vec![Member {
            id: MEMBER.0,
            name: "m1".to_owned(),
            peer_ur_ls: vec!["http://127.0.0.1:12380".to_owned()],
            client_ur_ls: vec!["http://127.0.0.1:12379".to_owned()],
            is_learner: false,
        }]
    }

    fn is_learner(&self) -> bool {
        self.state().learner
    }

    fn cluster_version(&self) -> Option<String> {
        Some("3.7.0".to_owned())
    }

    fn storage_version(&self) -> Option<String> {
        Some("3.7.0".to_owned())
    }

    async fn read_barrier(&self) -> Result<(), Answer> {
        let mut state = self.state();
        state.barriers += 1;
        state.barrier.clone()
    }

    fn snapshot(&self) -> Arc<dyn Snapshot> {
        Arc::new(self.state().clone())
    }

    fn range(&self, request: &RangeRequest) -> Result<RangeResponse, Answer> {
        self.snapshot().range(request)
    }

    async fn check_quota(&self, _: u64) -> Result<(), Answer> {
        self.state().quota.clone()
    }

    async fn put(&self, request: PutRequest) -> Result<PutResponse, Answer> {
        self.wait_if_stuck().await;
        Ok(self.state().put(request))
    }

    async fn delete_range(&self, request: DeleteRangeRequest) -> Result<DeleteRangeResponse, Answer> {
        let range = KeyRange::new(request.key, request.range_end);
        let mut state = self.state();
        let before = state.keys.len();
        state.keys.retain(|key, _| !range.contains(key));
        let deleted = (before - state.keys.len()) as i64;
        state.revision += i64::from(deleted > 0);
        Ok(DeleteRangeResponse { header: state.header(), deleted, prev_kvs: Vec::new() })
    }

    async fn txn(&self, request: TxnRequest) -> Result<TxnResponse, Answer> {
        let mut state = self.state();
        let responses = request.success.into_iter().map(|op| match op.request {
            Some(request_op::Request::RequestPut(put)) => {
                ResponseOp { response: Some(response_op::Response::ResponsePut(state.put(put))) }
            }
            _ => ResponseOp::default(),
        });
        let responses = responses.collect();
        Ok(TxnResponse { header: state.header(), succeeded: true, responses })
    }

    async fn compact(&self, request: CompactionRequest) -> Result<CompactionResponse, Answer> {
        let state = self.state();
        match request.revision > state.revision {
            true => Err(Answer::FutureRevision),
            false => Ok(CompactionResponse { header: state.header() }),
        }
    }

    async fn alarm(&self, _: AlarmRequest) -> Result<AlarmResponse, Answer> {
        let state = self.state();
        Ok(AlarmResponse { header: state.header(), alarms: state.alarms.clone() })
    }

    async fn lease_grant(&self, request: LeaseGrantRequest) -> Result<LeaseGrantResponse, Answer> {
        let mut state = self.state();
        let id = if request.id == 0 { 77 } else { request.id };
        state.leases.insert(id, request.ttl);
        Ok(LeaseGrantResponse { header: state.header(), id, ttl: request.ttl, ..LeaseGrantResponse::default() })
    }

    async fn lease_revoke(&self, request: LeaseRevokeRequest) -> Result<LeaseRevokeResponse, Answer> {
        let mut state = self.state();
        state.leases.remove(&request.id).ok_or(Answer::LeaseNotFound)?;
        Ok(LeaseRevokeResponse { header: state.header() })
    }

    async fn lease_keep_alive(&self, id: i64) -> Result<i64, Answer> {
        let state = self.state();
        state.barrier.clone()?;
        state.leases.get(&id).copied().ok_or(Answer::LeaseNotFound)
    }

    async fn lease_time_to_live(&self, id: i64, keys: bool) -> Result<LeaseTimeToLiveResponse, Answer> {
        let granted_ttl = self.state().leases.get(&id).copied().ok_or(Answer::LeaseNotFound)?;
        let keys = if keys { vec![Bytes::from_static(b"k")] } else { Vec::new() };
        // As etcd's members send it to each other: there, and empty.
        let header = Some(ResponseHeader::default());
        Ok(LeaseTimeToLiveResponse { header, id, ttl: granted_ttl - 1, granted_ttl, keys })
    }

    fn leases(&self) -> Vec<i64> {
        self.state().leases.keys().copied().collect()
    }

    fn open_watch(&self) -> Result<WatchStream, Answer> {
        Err(Answer::Stopped)
    }

    async fn member_add(&self, peer_ur_ls: Vec<String>, is_learner: bool) -> Result<(Member, Vec<Member>), Answer> {
        let added = Member { id: 9, peer_ur_ls, is_learner, ..Member::default() };
        Ok((added.clone(), self.members().into_iter().chain([added]).collect()))
    }

    async fn member_remove(&self, id: MemberId) -> Result<Vec<Member>, Answer> {
        let members = self.members();
        match members.iter().any(|member| member.id == id.0) {
            true => Ok(members.into_iter().filter(|member| member.id != id.0).collect()),
            false => Err(Answer::MemberNotFound),
        }
    }

    async fn member_update(&self, id: MemberId, peer_ur_ls: Vec<String>) -> Result<Vec<Member>, Answer> {
        Ok(vec![Member { id: id.0, peer_ur_ls, ..Member::default() }])
    }

    async fn member_promote(&self, _: MemberId) -> Result<Vec<Member>, Answer> {
        Err(Answer::LearnerNotReady)
    }

    async fn move_leader(&self, to: MemberId) -> Result<(), Answer> {
        if to == MEMBER { Ok(()) } else { Err(Answer::BadLeaderTransferee) }
    }

    async fn hash_kv(&self, revision: i64) -> Result<HashKvResponse, Answer> {
        let state = self.state();
        let hash_revision = if revision == 0 { state.revision } else { revision };
        Ok(HashKvResponse { header: state.header(), hash: 1_084_519_789, compact_revision: -1, hash_revision })
    }

    /// The one handler that panics, when it is told to.
    async fn hash(&self) -> Result<HashResponse, Answer> {
        assert!(!self.state().stuck, "told to panic");
        Ok(HashResponse { header: None, hash: 7 })
    }

    async fn image(&self) -> Result<Image, Answer> {
        let mut file = tempfile::tempfile().expect("a temporary file");
        file.write_all(b"image").and_then(|()| file.rewind()).expect("a writable file");
        Ok(Image::whole(file, 5))
    }

    async fn flush(&self) -> Result<(), Answer> {
        Ok(())
    }
}

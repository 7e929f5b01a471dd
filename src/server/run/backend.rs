//! The member as the API sees it: proposals, reads and facts put together from the parts.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use prometheus::IntCounter;
use tokio::sync::watch;

use crate::common::answer::Answer;
use crate::common::failure::Failure;
use crate::common::ids::MemberId;
use crate::proto::etcdserverpb;
use crate::proto::etcdserverpb::AlarmMember;
use crate::proto::etcdserverpb::AlarmRequest;
use crate::proto::etcdserverpb::AlarmResponse;
use crate::proto::etcdserverpb::CompactionRequest;
use crate::proto::etcdserverpb::CompactionResponse;
use crate::proto::etcdserverpb::DeleteRangeRequest;
use crate::proto::etcdserverpb::DeleteRangeResponse;
use crate::proto::etcdserverpb::HashKvResponse;
use crate::proto::etcdserverpb::HashResponse;
use crate::proto::etcdserverpb::LeaseGrantRequest;
use crate::proto::etcdserverpb::LeaseGrantResponse;
use crate::proto::etcdserverpb::LeaseRevokeRequest;
use crate::proto::etcdserverpb::LeaseRevokeResponse;
use crate::proto::etcdserverpb::LeaseTimeToLiveResponse;
use crate::proto::etcdserverpb::PutRequest;
use crate::proto::etcdserverpb::PutResponse;
use crate::proto::etcdserverpb::RangeRequest;
use crate::proto::etcdserverpb::RangeResponse;
use crate::proto::etcdserverpb::TxnRequest;
use crate::proto::etcdserverpb::TxnResponse;
use crate::proto::raftinternalpb::InternalRaftRequest;
use crate::server::api::backend::Backend;
use crate::server::api::backend::Identity;
use crate::server::api::backend::Image;
use crate::server::api::backend::Limits;
use crate::server::api::backend::Snapshot;
use crate::server::api::backend::StoreSizes;
use crate::server::apply::kv::ApplyError;
use crate::server::apply::outcome::Reply;
use crate::server::apply::outcome::header;
use crate::server::apply::ports::FrozenState;
use crate::server::apply::published::Published;
use crate::server::apply::queue::ApplyHandle;
use crate::server::apply::txn;
use crate::server::checkpoint::flusher::Flusher;
use crate::server::cluster::member::Member;
use crate::server::mvcc::hash;
use crate::server::mvcc::read;
use crate::server::mvcc::view::ReadError;
use crate::server::mvcc::view::View;
use crate::server::propose::Proposer;
use crate::server::raft::state_machine::RaftStatus;
use crate::server::read::Reader;
use crate::server::reconfigure::Reconfigurer;
use crate::server::run::leases::LeaseRouter;
use crate::server::run::ports::ViewRecords;
use crate::server::run::promotions::Promotions;
use crate::server::snapshot::contents::Frozen;
use crate::server::snapshot::hash::HashOf;
use crate::server::snapshot::send::begin_image;
use crate::server::waiters::Desk;
use crate::server::watch::stream::WatchStream;
use crate::server::watch::thread::WatchHandle;

/// How long a hash of everything waits for the apply thread to hand out its state.
const FREEZE_TIMEOUT: Duration = Duration::from_secs(5);

/// A member's parts as the API needs them.
pub struct MemberBackend {
    pub identity: Identity,
    pub limits: Limits,
    pub proposer: Proposer,
    pub reader: Reader,
    pub leases: LeaseRouter,
    pub reconfigurer: Arc<Reconfigurer>,
    pub promotions: Promotions,
    pub desk: Arc<Desk>,
    pub published: Published,
    pub queue: ApplyHandle,
    pub flusher: Arc<Flusher>,
    /// Where images are written: a file system with room for another copy of the data.
    pub snap_dir: PathBuf,
    pub watches: WatchHandle,
    /// Reads that do not come through the log.
    pub ranges: IntCounter,
}

/// A view with the way to say that the node cannot go on.
struct ViewSnapshot {
    view: Arc<View>,
    queue: ApplyHandle,
    ranges: IntCounter,
}

impl MemberBackend {
    fn write<T>(
        &self,
        request: InternalRaftRequest,
        kind: impl FnOnce(Reply) -> Option<T> + Send,
    ) -> impl Future<Output = Result<T, Answer>> + Send {
        let proposed = self.proposer.propose(request);
        async move { expect(proposed.await?, kind) }
    }

    /// The whole state as it is between two entries.
    async fn freeze(&self) -> Result<FrozenState, Answer> {
        let (sender, receiver) = tokio::sync::oneshot::channel();
        self.queue.freeze(Box::new(move |frozen| {
            // The caller may have left.
            let _ = sender.send(frozen);
        }));
        let frozen = tokio::time::timeout(FREEZE_TIMEOUT, receiver).await;
        frozen.map_err(|_| Answer::Timeout)?.map_err(|_| Answer::Stopped)
    }
}

/// Apply answers each kind of request with its own kind of reply.
fn expect<T>(reply: Reply, kind: impl FnOnce(Reply) -> Option<T>) -> Result<T, Answer> {
    kind(reply).ok_or_else(|| Answer::Other("etcdserver: unexpected reply".to_owned()))
}

impl Snapshot for ViewSnapshot {
    fn revision(&self) -> i64 {
        self.view.revision()
    }

    fn range(&self, request: &RangeRequest) -> Result<RangeResponse, Answer> {
        self.ranges.inc();
        read::range(self.view.as_ref(), request).map_err(|error| stop_or_answer(&self.queue, error))
    }

    fn txn(&self, request: &TxnRequest) -> Result<TxnResponse, Answer> {
        txn::txn_read_only(&self.view, request).map_err(|error| match error {
            ApplyError::Answer(answer) => answer,
            ApplyError::Failure(failure) => stop(&self.queue, failure),
        })
    }
}

/// A client's error is an answer; damage stops the node and looks to the client as if it had stopped before.
fn stop_or_answer(queue: &ApplyHandle, error: ReadError) -> Answer {
    match error {
        ReadError::Answer(answer) => answer,
        ReadError::Failure(failure) => stop(queue, failure),
    }
}

fn stop(queue: &ApplyHandle, failure: Failure) -> Answer {
    queue.fail(failure);
    Answer::Stopped
}

/// A disk that has no room for a copy is as good as before.
fn stop_unless_full(queue: &ApplyHandle, failure: Failure) -> Answer {
    match failure {
        Failure::Io { ref source, .. } if source.kind() == io::ErrorKind::StorageFull => {
            Answer::Other(failure.to_string())
        }
        failure => stop(queue, failure),
    }
}

#[tonic::async_trait]
impl Backend for MemberBackend {
    fn identity(&self) -> &Identity {
        &self.identity
    }

    fn limits(&self) -> &Limits {
        &self.limits
    }

    fn raft_status(&self) -> RaftStatus {
        self.desk.raft_now().status
    }

    fn applied_index(&self) -> u64 {
        self.desk.applied_index()
    }

    fn revision(&self) -> i64 {
        self.published.view().revision()
    }

    fn compact_revision(&self) -> i64 {
        self.published.view().compact_revision()
    }

    fn sizes(&self) -> StoreSizes {
        StoreSizes::of_used(self.published.space.used_bytes())
    }

    fn alarms(&self) -> Vec<AlarmMember> {
        self.published.alarms.list().as_ref().clone()
    }

    fn members(&self) -> Vec<etcdserverpb::Member> {
        api_members(self.published.cluster.members())
    }

    fn is_learner(&self) -> bool {
        self.published.cluster.is_learner()
    }

    fn cluster_version(&self) -> Option<String> {
        self.published.cluster.version().map(|version| version.to_string())
    }

    fn storage_version(&self) -> Option<String> {
        // The layout follows the cluster version (server.md 6.8).
        self.cluster_version()
    }

    async fn read_barrier(&self) -> Result<(), Answer> {
        self.reader.barrier().await
    }

    fn snapshot(&self) -> Arc<dyn Snapshot> {
        let (view, queue, ranges) = (self.published.view(), self.queue.clone(), self.ranges.clone());
        Arc::new(ViewSnapshot { view, queue, ranges })
    }

    fn range(&self, request: &RangeRequest) -> Result<RangeResponse, Answer> {
        read::range_now(&self.published.views(), request).map_err(|error| stop_or_answer(&self.queue, error))
    }

    async fn check_quota(&self, cost: u64) -> Result<(), Answer> {
        self.proposer.check_space(cost).await
    }

    async fn put(&self, request: PutRequest) -> Result<PutResponse, Answer> {
        let proposed = self.proposer.propose_put(&request);
        expect(proposed.await?, |reply| if let Reply::Put(response) = reply { Some(response) } else { None })
    }

    async fn delete_range(&self, request: DeleteRangeRequest) -> Result<DeleteRangeResponse, Answer> {
        let request = InternalRaftRequest { delete_range: Some(request), ..InternalRaftRequest::default() };
        self.write(request, |reply| if let Reply::DeleteRange(response) = reply { Some(response) } else { None }).await
    }

    async fn txn(&self, request: TxnRequest) -> Result<TxnResponse, Answer> {
        let request = InternalRaftRequest { txn: Some(request), ..InternalRaftRequest::default() };
        self.write(request, |reply| if let Reply::Txn(response) = reply { Some(response) } else { None }).await
    }

    async fn compact(&self, request: CompactionRequest) -> Result<CompactionResponse, Answer> {
        let physical = request.physical;
        let request = InternalRaftRequest { compaction: Some(request), ..InternalRaftRequest::default() };
        let written = self
            .write(request, |reply| if let Reply::Compaction(response) = reply { Some(response) } else { None })
            .await;
        if physical && matches!(written, Ok(_) | Err(Answer::Compacted)) {
            self.proposer.compacted_physically().await?;
            self.flush().await?;
        }
        written
    }

    async fn alarm(&self, request: AlarmRequest) -> Result<AlarmResponse, Answer> {
        let request = InternalRaftRequest { alarm: Some(request), ..InternalRaftRequest::default() };
        self.write(request, |reply| if let Reply::Alarm(response) = reply { Some(response) } else { None }).await
    }

    async fn lease_grant(&self, mut request: LeaseGrantRequest) -> Result<LeaseGrantResponse, Answer> {
        if request.id == 0 {
            request.id = self.proposer.ids().next_lease();
        }
        let request = InternalRaftRequest { lease_grant: Some(request), ..InternalRaftRequest::default() };
        self.write(request, |reply| if let Reply::LeaseGrant(response) = reply { Some(response) } else { None }).await
    }

    async fn lease_revoke(&self, request: LeaseRevokeRequest) -> Result<LeaseRevokeResponse, Answer> {
        let request = InternalRaftRequest { lease_revoke: Some(request), ..InternalRaftRequest::default() };
        self.write(request, |reply| if let Reply::LeaseRevoke(response) = reply { Some(response) } else { None }).await
    }

    async fn lease_keep_alive(&self, id: i64) -> Result<i64, Answer> {
        self.leases.keep_alive(id).await
    }

    async fn lease_time_to_live(&self, id: i64, keys: bool) -> Result<LeaseTimeToLiveResponse, Answer> {
        self.leases.time_to_live(id, keys).await
    }

    fn leases(&self) -> Vec<i64> {
        self.leases.keeper.leases()
    }

    fn open_watch(&self) -> Result<WatchStream, Answer> {
        Ok(self.watches.open())
    }

    async fn member_add(
        &self,
        peer_urls: Vec<String>,
        is_learner: bool,
    ) -> Result<(etcdserverpb::Member, Vec<etcdserverpb::Member>), Answer> {
        let (member, members) = self.reconfigurer.add(peer_urls, is_learner).await?;
        Ok((api_member(member), api_members(members)))
    }

    async fn member_remove(&self, id: MemberId) -> Result<Vec<etcdserverpb::Member>, Answer> {
        self.reconfigurer.remove(id).await.map(api_members)
    }

    async fn member_update(&self, id: MemberId, peer_urls: Vec<String>) -> Result<Vec<etcdserverpb::Member>, Answer> {
        self.reconfigurer.update(id, peer_urls).await.map(api_members)
    }

    async fn member_promote(&self, id: MemberId) -> Result<Vec<etcdserverpb::Member>, Answer> {
        self.promotions.promote(id).await.map(api_members)
    }

    async fn move_leader(&self, to: MemberId) -> Result<(), Answer> {
        self.reconfigurer.move_leader(to).await
    }

    async fn hash_kv(&self, revision: i64) -> Result<HashKvResponse, Answer> {
        let (published, queue) = (self.published.clone(), self.queue.clone());
        let hash = blocking(move || {
            hash::hash_kv(&published.views(), revision).map_err(|error| stop_or_answer(&queue, error))
        });
        let hash = hash.await?;
        Ok(HashKvResponse {
            header: header(self.revision()),
            hash: hash.hash,
            compact_revision: hash.compact_revision,
            hash_revision: hash.hash_revision,
        })
    }

    async fn hash(&self) -> Result<HashResponse, Answer> {
        let frozen = self.freeze().await?;
        let queue = self.queue.clone();
        let revision = frozen.view.revision();
        let hash = blocking(move || {
            let records = Arc::new(ViewRecords(frozen.view));
            let state = Frozen { records, buckets: frozen.buckets, applied: frozen.applied };
            crate::server::snapshot::hash::hash(&state, HashOf::Member).map_err(|failure| stop(&queue, failure))
        });
        Ok(HashResponse { header: header(revision), hash: hash.await? })
    }

    async fn image(&self) -> Result<Image, Answer> {
        let frozen = self.freeze().await?;
        let (queue, dir, desk) = (self.queue.clone(), self.snap_dir.clone(), self.desk.clone());
        let begun = blocking({
            let queue = queue.clone();
            move || {
                let records = Arc::new(ViewRecords(frozen.view));
                let state = Frozen { records, buckets: frozen.buckets, applied: frozen.applied };
                begin_image(state, &dir).map_err(|failure| stop_unless_full(&queue, failure))
            }
        });
        let (growing, file) = begun.await?;
        let bytes = growing.bytes;
        let (sender, written) = watch::channel(Ok(0));
        // It ends with the image, or when its reader is gone.
        tokio::task::spawn_blocking(move || {
            let mut grown = |bytes: u64| sender.send(Ok(bytes)).is_ok();
            let outcome = growing.write(&mut grown, &mut || desk.applied_index());
            match outcome {
                Ok(()) => {}
                // Its reader is gone: that is why it ended.
                Err(_) if sender.is_closed() => {}
                Err(failure) => drop(sender.send_replace(Err(stop_unless_full(&queue, failure).to_string()))),
            }
        });
        Ok(Image { file, bytes, written })
    }

    async fn flush(&self) -> Result<(), Answer> {
        let (flusher, queue) = (Arc::clone(&self.flusher), self.queue.clone());
        blocking(move || flusher.flush_now().map_err(|failure| stop(&queue, failure))).await
    }
}

/// Runs what reads the disk off the sockets' threads.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T, Answer> + Send + 'static) -> Result<T, Answer> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        // It panicked, which costs this request only, or the runtime ends.
        Err(error) => Err(Answer::Other(format!("etcdserver: {error}"))),
    }
}

fn api_members(members: Vec<Member>) -> Vec<etcdserverpb::Member> {
    members.into_iter().map(api_member).collect()
}

fn api_member(member: Member) -> etcdserverpb::Member {
    etcdserverpb::Member {
        id: member.id.0,
        name: member.name,
        peer_ur_ls: member.peer_urls,
        client_ur_ls: member.client_urls,
        is_learner: member.is_learner,
    }
}

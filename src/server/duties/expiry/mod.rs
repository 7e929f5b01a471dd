//! Lease expiry, on the leader: keeps deadlines, renews, revokes what is over, writes down what is left.
//!
//! Renewals live in the leader's memory and cost no log entry. Everything that the leader decides by its clock is
//! proposed for its own term only, so a leader that was replaced without knowing it revokes nothing (reliability.md B41).
//!
//! ```text
//!  apply ─▶ LeasesHandle ─▶ Deadlines (pure) ─▶ revokes, checkpoints ─▶ propose, in this leader's term
//!                              ▲ renew, remaining
//!              API and peer port
//! ```

pub mod deadlines;

use std::sync::Arc;
use std::sync::Mutex;
use std::sync::MutexGuard;
use std::sync::PoisonError;
use std::time::Duration;
use std::time::Instant;

use prometheus::IntCounter;
use tokio::sync::oneshot;
use tokio::task::JoinSet;

use crate::common::answer::Answer;
use crate::proto::etcdserverpb::LeaseCheckpoint;
use crate::proto::etcdserverpb::LeaseCheckpointRequest;
use crate::proto::etcdserverpb::LeaseRevokeRequest;
use crate::proto::etcdserverpb::LeaseTimeToLiveResponse;
use crate::proto::etcdserverpb::ResponseHeader;
use crate::proto::raftinternalpb::InternalRaftRequest;
use crate::server::apply::lease::CHECKPOINTS_STORED_FROM;
use crate::server::apply::published::Published;
use crate::server::apply::queue::ApplyHandle;
use crate::server::duties::expiry::deadlines::Deadlines;
use crate::server::duties::expiry::deadlines::Due;
use crate::server::duties::expiry::deadlines::Renewal;
use crate::server::lease::handle::News;
use crate::server::propose::Proposer;
use crate::server::propose::RaftPort;
use crate::server::raft::state_machine::Role;
use crate::server::read::Reader;
use crate::server::waiters::Desk;

/// How long a request about a lease waits for apply to catch up with what is committed (server.md 5).
const CATCH_UP_MAX: Duration = Duration::from_secs(1);

/// What a leader says that cannot prove that it still is one (server.md 2.2).
const NOT_PRIMARY: &str = "not a primary lessor";

/// The deadlines of this member, for as long as it leads. Clones are the same.
#[derive(Clone)]
pub struct Keeper {
    inner: Arc<Inner>,
}

struct Inner {
    deadlines: Mutex<Deadlines>,
    /// The term that a majority last confirmed, and when it was asked.
    confirmed: Mutex<Option<(u64, Instant)>>,
    /// Time is counted from here.
    epoch: Instant,
    parts: KeeperParts,
}

/// What a keeper is made of.
pub struct KeeperParts {
    pub election_timeout: Duration,
    /// RT: 5 s and two election timeouts.
    pub request_timeout: Duration,
    /// Gate `LeaseCheckpoint`.
    pub checkpoints: bool,
    pub proposer: Proposer,
    pub reader: Reader,
    pub raft: Arc<dyn RaftPort>,
    pub desk: Arc<Desk>,
    pub published: Published,
    pub queue: ApplyHandle,
    pub metrics: ExpiryMetrics,
}

impl Keeper {
    /// A keeper whose `run` has to be spawned.
    pub fn new(parts: KeeperParts) -> Keeper {
        let deadlines = Mutex::new(Deadlines::new(parts.election_timeout));
        Keeper { inner: Arc::new(Inner { deadlines, confirmed: Mutex::new(None), epoch: Instant::now(), parts }) }
    }

    /// Revokes what is over, until the member stops.
    pub async fn run(self) {
        let parts = &self.inner.parts;
        let mut raft = parts.desk.watch_raft();
        let mut proposals = JoinSet::new();
        loop {
            raft.borrow_and_update();
            let (term, due, idle) = {
                let mut deadlines = self.synced();
                let now = self.now();
                (deadlines.term(), deadlines.due(now, self.may_checkpoint()), deadlines.idle_for(now))
            };
            if let Some(term) = term {
                self.propose(term, due, &mut proposals);
            }
            tokio::select! {
                () = parts.desk.until_stopped() => return,
                _ = raft.changed() => {}
                () = tokio::time::sleep(idle) => {}
                Some(_) = proposals.join_next() => {}
            }
            while proposals.try_join_next().is_some() {}
        }
    }

    /// Renews a lease on the leader: its time to live in seconds. `NotLeader` on another member, `LeaseNotFound` for one
    /// that does not exist or has just ended.
    pub async fn renew(&self, id: i64) -> Result<i64, Answer> {
        self.confirm().await?;
        self.catch_up().await?;
        let parts = &self.inner.parts;
        let deadline = Instant::now() + parts.request_timeout;
        loop {
            // Subscribed before the look, so that no news is missed.
            let (mut applied, mut raft) = (parts.desk.watch_applied(), parts.desk.watch_raft());
            let (term, renewal) = {
                let mut deadlines = self.synced();
                (deadlines.term(), deadlines.renew(id, self.now()))
            };
            match (renewal, term) {
                (Renewal::NotPrimary, _) | (_, None) => return Err(Answer::NotLeader),
                (Renewal::Unknown, _) => return Err(Answer::LeaseNotFound),
                (Renewal::Renewed { ttl_seconds }, _) => {
                    parts.metrics.renewed.inc();
                    return Ok(ttl_seconds);
                }
                // Then asked again: the lease's time counts from when the client is told.
                (Renewal::Clearing { .. }, Some(term)) => self.checkpoint(term, &[(id, 0)]).await?,
                (Renewal::Ending, _) => tokio::select! {
                    _ = applied.changed() => {}
                    _ = raft.changed() => {}
                    () = parts.desk.until_stopped() => return Err(Answer::Stopped),
                    () = tokio::time::sleep_until(deadline.into()) => return Err(Answer::Timeout),
                },
            }
            if Instant::now() > deadline {
                return Err(Answer::Timeout);
            }
        }
    }

    /// What the leader knows of a lease. `NotLeader` on another member, `LeaseNotFound` for one that does not exist. The
    /// header is empty but there: members of etcd fill it and fail without one.
    pub async fn time_to_live(&self, id: i64, keys: bool) -> Result<LeaseTimeToLiveResponse, Answer> {
        self.confirm().await?;
        self.catch_up().await?;
        let found = {
            let mut deadlines = self.synced();
            deadlines.term().ok_or(Answer::NotLeader)?;
            deadlines.remaining(id, self.now())
        };
        let (granted_ttl, left) = found.ok_or(Answer::LeaseNotFound)?;
        let keys = if keys { self.keys(id).await? } else { Vec::new() };
        let ttl = i64::try_from(left.as_secs()).unwrap_or(i64::MAX);
        Ok(LeaseTimeToLiveResponse { header: Some(ResponseHeader::default()), id, ttl, granted_ttl, keys })
    }

    /// All leases as this member has them: by deadline on the leader, else by id.
    pub fn leases(&self) -> Vec<i64> {
        let deadlines = self.synced();
        match deadlines.term() {
            Some(_) => deadlines.by_deadline(),
            None => self.inner.parts.published.leases.ids(),
        }
    }

    /// Keys attached to a lease, ascending.
    async fn keys(&self, id: i64) -> Result<Vec<bytes::Bytes>, Answer> {
        let (sender, receiver) = oneshot::channel();
        self.inner.parts.queue.look(Box::new(move |lessor| {
            let keys = lessor.lease(id).map(|lease| lease.keys().cloned().collect());
            // The caller may have left.
            let _ = sender.send(keys);
        }));
        tokio::select! {
            keys = receiver => keys.map_err(|_| Answer::Stopped)?.ok_or(Answer::LeaseNotFound),
            () = self.inner.parts.desk.until_stopped() => Err(Answer::Stopped),
        }
    }

    /// Leads, or has led so lately that a new leader's leases last longer than what is promised here.
    ///
    /// A majority's word given to a question that was asked at T proves that no other leader was elected before T. One
    /// elected later gives every lease its time again from then, and an election timeout more: a renewal until T plus
    /// that timeout is covered. Ticks and late messages prove nothing: a leader may be replaced without knowing it.
    async fn confirm(&self) -> Result<(), Answer> {
        let parts = &self.inner.parts;
        let before = parts.desk.raft_now().status;
        if before.role != Role::Leader {
            return Err(Answer::NotLeader);
        }
        let asked = Instant::now();
        let confirmed = *self.confirmed();
        let holds = |(term, at)| term == before.term && asked.saturating_duration_since(at) < parts.election_timeout;
        if parts.raft.lone_leader() || confirmed.is_some_and(holds) {
            return Ok(());
        }
        let mut raft = parts.desk.watch_raft();
        tokio::select! {
            answer = parts.reader.barrier() => {
                let now = parts.desk.raft_now().status;
                match answer {
                    Ok(()) if (now.role, now.term) == (before.role, before.term) => {
                        *self.confirmed() = Some((before.term, asked));
                        Ok(())
                    }
                    Ok(()) => Err(Answer::NotLeader),
                    Err(_) => Err(Answer::Other(NOT_PRIMARY.to_owned())),
                }
            }
            _ = raft.wait_for(|now| (now.status.role, now.status.term) != (before.role, before.term)) => {
                Err(Answer::NotLeader)
            }
        }
    }

    fn confirmed(&self) -> MutexGuard<'_, Option<(u64, Instant)>> {
        self.inner.confirmed.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What was committed before the call is applied: a lease that was granted is known, one that was revoked is gone
    /// (reliability.md B42).
    async fn catch_up(&self) -> Result<(), Answer> {
        let desk = &self.inner.parts.desk;
        let committed = desk.raft_now().status.commit_index;
        if desk.applied_index() >= committed {
            return Ok(());
        }
        let mut applied = desk.watch_applied();
        match tokio::time::timeout(CATCH_UP_MAX, applied.wait_for(|applied| *applied >= committed)).await {
            Ok(_) => Ok(()),
            Err(_) => Err(Answer::TimeoutWaitAppliedIndex),
        }
    }

    /// The deadlines as of everything that was applied, if this member leads.
    fn synced(&self) -> MutexGuard<'_, Deadlines> {
        let parts = &self.inner.parts;
        let leases = &parts.published.leases;
        let mut deadlines = self.inner.deadlines.lock().unwrap_or_else(PoisonError::into_inner);
        let status = parts.desk.raft_now().status;
        // A term counts from its first entry on: everything before it is applied then.
        let leads = status.role == Role::Leader && leases.applied_term() == status.term;
        let term = leads.then_some(status.term);
        if term != deadlines.term() {
            leases.unfollow();
            match term {
                Some(term) => deadlines.promote(term, self.now()),
                None => deadlines.demote(),
            }
        }
        if term.is_some() {
            let now = self.now();
            match leases.follow() {
                News::Everything(leases) => deadlines.restore(leases, now),
                News::Changes(changes) => changes.into_iter().for_each(|change| deadlines.apply(change, now)),
            }
        }
        deadlines
    }

    fn propose(&self, term: u64, due: Due, proposals: &mut JoinSet<()>) {
        for id in due.revokes {
            let keeper = self.clone();
            proposals.spawn(async move { keeper.revoke(term, id).await });
        }
        if !due.checkpoints.is_empty() {
            let keeper = self.clone();
            proposals.spawn(async move {
                if let Err(answer) = keeper.checkpoint(term, &due.checkpoints).await {
                    let count = due.checkpoints.len();
                    tracing::debug!(count, %answer, "cannot write down what is left of leases");
                }
                let mut deadlines = keeper.synced();
                if deadlines.term() == Some(term) {
                    deadlines.checkpoints_settled(&due.checkpoints);
                }
            });
        }
    }

    async fn revoke(&self, term: u64, id: i64) {
        let parts = &self.inner.parts;
        let revoke = Some(LeaseRevokeRequest { id });
        let request = InternalRaftRequest { lease_revoke: revoke, ..InternalRaftRequest::default() };
        match parts.proposer.propose_in_term(term, request).await {
            Ok(_) => parts.metrics.expired.inc(),
            // Somebody else was faster.
            Err(Answer::LeaseNotFound) => {}
            Err(answer) => {
                tracing::debug!(lease = format_args!("{id:016x}"), %answer, "cannot revoke a lease that is over yet");
                let mut deadlines = self.synced();
                if deadlines.term() == Some(term) {
                    deadlines.revoke_failed(id, self.now());
                }
            }
        }
    }

    /// Writes down how many seconds are left of leases, in this term.
    async fn checkpoint(&self, term: u64, left: &[(i64, i64)]) -> Result<(), Answer> {
        let checkpoint = |(id, remaining_ttl): &(i64, i64)| LeaseCheckpoint { id: *id, remaining_ttl: *remaining_ttl };
        let checkpoints = left.iter().map(checkpoint).collect();
        let lease_checkpoint = Some(LeaseCheckpointRequest { checkpoints });
        let request = InternalRaftRequest { lease_checkpoint, ..InternalRaftRequest::default() };
        self.inner.parts.proposer.propose_in_term(term, request).await.map(|_| ())
    }

    /// Whether all members keep checkpoints. Members of etcd before 3.6 do not, and renew a checkpointed lease for what
    /// the checkpoint left of it.
    fn may_checkpoint(&self) -> bool {
        let parts = &self.inner.parts;
        parts.checkpoints && parts.published.cluster.version().is_some_and(|version| version >= CHECKPOINTS_STORED_FROM)
    }

    fn now(&self) -> Duration {
        self.inner.epoch.elapsed()
    }
}

/// What the keeper counts, by etcd's names.
#[derive(Clone)]
pub struct ExpiryMetrics {
    renewed: IntCounter,
    expired: IntCounter,
}

impl ExpiryMetrics {
    pub fn register(registry: &prometheus::Registry) -> ExpiryMetrics {
        let counter = |name: &str, help: &str| {
            let counter = IntCounter::new(name, help).expect("a valid name");
            registry.register(Box::new(counter.clone())).expect("registered once");
            counter
        };
        ExpiryMetrics {
            renewed: counter("etcd_debugging_lease_renewed_total", "The number of renewed leases seen by the leader."),
            expired: counter("etcd_debugging_server_lease_expired_total", "The total number of expired leases."),
        }
    }
}

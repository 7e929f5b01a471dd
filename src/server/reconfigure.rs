//! Changes of the membership for clients: what is checked before one is proposed, what is done first, and the warning
//! when votes become scarce.
//!
//! Checks and their order are etcd's (server.md 6.2). What it leaves to luck is done here: a leader that is to be removed
//! hands over first, and whoever gives votes to a member that is not there is told what the rest can stand.

use std::sync::Arc;
use std::time::Duration;
use std::time::Instant;
use std::time::SystemTime;
use std::time::UNIX_EPOCH;

use tokio::sync::Mutex;

use crate::common::answer::Answer;
use crate::common::ids::MemberId;
use crate::server::cluster::handle::ClusterHandle;
use crate::server::cluster::member::Member;
use crate::server::cluster::membership::Change;
use crate::server::cluster::quorum::Electorate;
use crate::server::propose::Connectivity;
use crate::server::propose::Proposer;
use crate::server::waiters::Desk;

/// A member counts as healthy when it has been connected for so long (server.md 12).
pub const HEALTHY_AFTER: Duration = Duration::from_secs(5);

/// What a learner must have of the leader's log to be promoted, in tenths.
const READY_TENTHS: u128 = 9;

/// How long a promotion waits for this member to have applied what is committed (server.md 12).
const CATCH_UP_MAX: Duration = Duration::from_secs(1);

/// What raft knows as a leader, and may be asked as one.
pub trait Leadership: Send + Sync {
    /// What `member` has of the log; `None` if this member does not lead or does not know it.
    fn match_index(&self, member: MemberId) -> Option<u64>;
    /// Passes leadership on, or asks the leader to. Only the status says whether it worked.
    fn transfer_leader(&self, to: MemberId);
}

/// What changing the membership takes.
pub struct ReconfigurerParts {
    /// `--strict-reconfig-check`.
    pub strict: bool,
    pub election_timeout: Duration,
    pub proposer: Proposer,
    pub raft: Arc<dyn Leadership>,
    pub desk: Arc<Desk>,
    pub cluster: ClusterHandle,
    pub connectivity: Arc<dyn Connectivity>,
}

/// Carries out changes of the membership.
pub struct Reconfigurer {
    parts: ReconfigurerParts,
    /// One change at a time: each is weighed on what the one before it left.
    changing: Mutex<()>,
}

impl Reconfigurer {
    pub fn new(parts: ReconfigurerParts) -> Reconfigurer {
        Reconfigurer { parts, changing: Mutex::new(()) }
    }

    /// Adds a member with these peer URLs, valid and sorted: the new member, and all members afterwards.
    pub async fn add(&self, peer_urls: Vec<String>, is_learner: bool) -> Result<(Member, Vec<Member>), Answer> {
        let _changing = self.changing.lock().await;
        if self.parts.strict {
            self.weighed("add", |electorate| electorate.may_add(is_learner))?;
        }
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let id = MemberId::of_added_member(&peer_urls, now.as_secs());
        let member = Member { id, peer_urls, is_learner, ..Member::default() };
        let members = self.parts.proposer.configure(Change::Add(member.clone())).await?;
        tracing::info!(member = %id, is_learner, urls = ?member.peer_urls, "added a member");
        if !is_learner {
            self.warn_of_votes(id, &members);
        }
        Ok((member, members))
    }

    /// Removes a member for good: all members afterwards.
    pub async fn remove(&self, id: MemberId) -> Result<Vec<Member>, Answer> {
        let _changing = self.changing.lock().await;
        let parts = &self.parts;
        if parts.strict {
            let is_connected = id == parts.cluster.local_id() || parts.connectivity.active_since(id).is_some();
            self.weighed("remove", |electorate| electorate.may_remove(id, is_connected))?;
        }
        self.relieve(id).await;
        let members = parts.proposer.configure(Change::Remove(id)).await?;
        tracing::info!(member = %id, "removed a member");
        Ok(members)
    }

    /// Gives a member other peer URLs, valid ones: all members afterwards.
    pub async fn update(&self, id: MemberId, peer_urls: Vec<String>) -> Result<Vec<Member>, Answer> {
        let _changing = self.changing.lock().await;
        let members = self.parts.proposer.configure(Change::Update(id, peer_urls.clone())).await?;
        tracing::info!(member = %id, urls = ?peer_urls, "changed the addresses of a member");
        Ok(members)
    }

    /// Makes a learner a voter: all members afterwards. Only the leader knows how far it has come; `NotLeader` elsewhere.
    pub async fn promote_here(&self, id: MemberId) -> Result<Vec<Member>, Answer> {
        let _changing = self.changing.lock().await;
        let parts = &self.parts;
        self.catch_up().await?;
        let ours = parts.raft.match_index(parts.cluster.local_id()).ok_or(Answer::NotLeader)?;
        let theirs = parts.raft.match_index(id).ok_or(Answer::MemberNotFound)?;
        if u128::from(theirs) * 10 < u128::from(ours) * READY_TENTHS {
            tracing::info!(member = %id, matched = theirs, leader = ours, "a learner is not ready to be promoted");
            return Err(Answer::LearnerNotReady);
        }
        if parts.strict {
            self.weighed("promote", |electorate| electorate.may_promote())?;
        }
        let members = parts.proposer.configure(Change::Promote(id)).await?;
        tracing::info!(member = %id, "promoted a learner");
        if parts.connectivity.active_since(id).is_none() {
            self.warn_of_votes(id, &members);
        }
        Ok(members)
    }

    /// Hands leadership to a voter and waits, with the caller's patience, until it leads.
    pub async fn move_leader(&self, to: MemberId) -> Result<(), Answer> {
        let parts = &self.parts;
        let local = parts.cluster.local_id();
        if parts.desk.raft_now().status.leader != Some(local) {
            return Err(Answer::NotLeader);
        }
        if parts.cluster.member(to).is_none_or(|member| member.is_learner) {
            return Err(Answer::BadLeaderTransferee);
        }
        if to == local {
            return Ok(());
        }
        tracing::info!(%to, "handing leadership over as asked");
        parts.raft.transfer_leader(to);
        let mut raft = parts.desk.watch_raft();
        tokio::select! {
            // The desk keeps the sender for as long as we do.
            _ = raft.wait_for(|now| now.status.leader == Some(to)) => Ok(()),
            () = parts.desk.until_stopped() => Err(Answer::Stopped),
        }
    }

    /// A leader that is removed takes the proposals with it that wait there, and leaves the others without one. So it
    /// hands over before (reliability.md R17, B48). If that does not work in time, raft hands over behind the removal.
    async fn relieve(&self, id: MemberId) {
        let parts = &self.parts;
        let before = parts.desk.raft_now();
        if before.status.leader != Some(id) {
            return;
        }
        let Some(heir) = self.heir(id) else { return };
        tracing::info!(leader = %id, %heir, "the leader hands over before it is removed");
        parts.raft.transfer_leader(heir);
        let mut raft = parts.desk.watch_raft();
        // A new leader takes no change of the configuration before it has applied what came before its term.
        let relieved = raft.wait_for(|now| {
            now.status.leader.is_some_and(|leader| leader != id) && now.terms_started > before.terms_started
        });
        if tokio::time::timeout(parts.election_timeout, relieved).await.is_err() {
            tracing::warn!(leader = %id, %heir, "nobody took over in time, removing the leader as it is");
        }
    }

    /// Who takes over from the leader: of those it hears the one with the longest log; this member when it does not lead.
    fn heir(&self, leader: MemberId) -> Option<MemberId> {
        let parts = &self.parts;
        let local = parts.cluster.local_id();
        let voters = parts.cluster.voters();
        if leader != local {
            return voters.contains(&local).then_some(local);
        }
        let heard = voters.into_iter().filter(|voter| parts.connectivity.active_since(*voter).is_some());
        heard.max_by_key(|voter| parts.raft.match_index(*voter))
    }

    /// Waits until what is committed is applied here.
    async fn catch_up(&self) -> Result<(), Answer> {
        let desk = &self.parts.desk;
        let committed = desk.raft_now().status.commit_index;
        let mut applied = desk.watch_applied();
        match tokio::time::timeout(CATCH_UP_MAX, applied.wait_for(|applied| *applied >= committed)).await {
            Ok(_) => Ok(()),
            Err(_) => Err(Answer::TimeoutWaitAppliedIndex),
        }
    }

    /// Asks the electorate as it is now; a refusal is logged with the votes.
    fn weighed(
        &self,
        change: &'static str,
        ask: impl FnOnce(&Electorate<'_>) -> Result<(), Answer>,
    ) -> Result<(), Answer> {
        let parts = &self.parts;
        let members = parts.cluster.members();
        let heard = |id: MemberId| {
            let since: Option<Instant> = parts.connectivity.active_since(id);
            since.is_some_and(|since| since.elapsed() > HEALTHY_AFTER)
        };
        let electorate = Electorate { members: &members, local: parts.cluster.local_id(), heard: &heard };
        ask(&electorate).inspect_err(|answer| {
            tracing::warn!(change, votes = %electorate.votes(), %answer, "a change of the membership is refused");
        })
    }

    /// A member has a vote and is not there: says what that means.
    fn warn_of_votes(&self, absent: MemberId, members: &[Member]) {
        let parts = &self.parts;
        let heard = |id: MemberId| id != absent && parts.connectivity.active_since(id).is_some();
        let electorate = Electorate { members, local: parts.cluster.local_id(), heard: &heard };
        tracing::warn!(member = %absent, votes = %electorate.votes(), "a member that cannot be reached has a vote now");
    }
}

//! Do the members hold the same? The leader compares their hashes and raises CORRUPT for those that differ.
//!
//! Two looks (server.md 6.9): at the newest revision every `--corrupt-check-time`, and at the hash that each compaction
//! left every `--compact-hash-check-time`. A third one, before a member serves, is the composition root's; all three
//! count what they found, and what they could not compare counts as that, never as equal.

pub mod verdict;

use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use prometheus::IntCounterVec;
use prometheus::Registry;

use crate::common::answer::Answer;
use crate::common::ids::MemberId;
use crate::proto::etcdserverpb::AlarmRequest;
use crate::proto::etcdserverpb::AlarmType;
use crate::proto::etcdserverpb::alarm_request::AlarmAction;
use crate::proto::raftinternalpb::InternalRaftRequest;
use crate::server::apply::published::Published;
use crate::server::cluster::member::Member;
use crate::server::duties::integrity::verdict::Heard;
use crate::server::duties::integrity::verdict::Verdict;
use crate::server::metrics::counter_vec;
use crate::server::mvcc::hash::HashKv;
use crate::server::mvcc::hash::HashValue;
use crate::server::propose::Proposer;
use crate::server::raft::state_machine::Role;
use crate::server::read::Reader;
use crate::server::waiters::Desk;

/// Where hashes come from.
#[tonic::async_trait]
pub trait HashSource: Send + Sync {
    /// This member's HashKV.
    async fn own(&self, revision: i64) -> Result<HashKv, Answer>;
    /// Another member's.
    async fn of(&self, member: &Member, revision: i64) -> Heard;
}

/// What was compared, by check and result.
#[derive(Clone)]
pub struct IntegrityMetrics {
    comparisons: IntCounterVec,
}

/// Which of the looks it was.
#[derive(Clone, Copy, Debug)]
pub enum Check {
    Initial,
    Periodic,
    Compaction,
}

impl IntegrityMetrics {
    pub fn register(registry: &Registry) -> IntegrityMetrics {
        let help = "Comparisons of a member's hash with another one's, by check and result.";
        let name = "quorate_server_integrity_comparisons_total";
        IntegrityMetrics { comparisons: counter_vec(registry, name, help, &["check", "result"]) }
    }

    /// Counts a verdict, and writes the log of it.
    pub fn note(&self, check: Check, revision: i64, verdict: &Verdict) {
        let name = match check {
            Check::Initial => "initial",
            Check::Periodic => "periodic",
            Check::Compaction => "compaction",
        };
        let count = |result: &str, found: usize| {
            self.comparisons.with_label_values(&[name, result]).inc_by(found as u64);
        };
        count("equal", verdict.equal.len());
        count("different", verdict.wrong.len());
        count("not_compared", verdict.not_compared.len());
        for (member, reason) in &verdict.not_compared {
            tracing::warn!(check = name, %member, revision, reason, "a member's hash could not be compared");
        }
        for (member, reason) in &verdict.wrong {
            tracing::error!(check = name, %member, revision, reason, "members do not hold the same");
        }
    }
}

/// What both tasks of a leader need.
#[derive(Clone)]
pub struct Integrity {
    pub proposer: Proposer,
    pub reader: Reader,
    pub desk: Arc<Desk>,
    pub published: Published,
    pub source: Arc<dyn HashSource>,
    pub metrics: IntegrityMetrics,
}

impl Integrity {
    /// The task behind `--corrupt-check-time`: ends when the member stops.
    pub async fn run_periodic(self, interval: Duration) {
        while self.wait(interval).await {
            if let Err(answer) = self.compare_newest().await {
                tracing::warn!(%answer, "cannot compare the members yet");
            }
        }
    }

    /// The task behind the gate CompactHashCheck: ends when the member stops.
    pub async fn run_compactions(self, interval: Duration) {
        // The newest compaction that was compared to the end: older ones are of no interest any more.
        let mut done = 0;
        while self.wait(interval).await {
            let hashes = self.published.views().compaction_hashes();
            for hash in hashes.iter().rev().take_while(|hash| hash.revision > done) {
                if self.compare_compaction(hash).await.is_final() {
                    done = hash.revision;
                    break;
                }
            }
        }
    }

    /// Until this member leads at the end of an interval; false once it stops.
    async fn wait(&self, interval: Duration) -> bool {
        loop {
            tokio::select! {
                () = self.desk.until_stopped() => return false,
                () = tokio::time::sleep(interval) => {}
            }
            if self.desk.raft_now().status.role == Role::Leader {
                return true;
            }
        }
    }

    async fn compare_newest(&self) -> Result<(), Answer> {
        if self.others().is_empty() {
            return Ok(());
        }
        let own = self.source.own(self.reader.view().revision()).await?;
        let heard = self.ask(own.hash_revision).await;
        self.reader.barrier().await?;
        let view = self.reader.view();
        let verdict = verdict::periodic(&own, (view.revision(), view.compact_revision()), &heard);
        self.report(Check::Periodic, own.hash_revision, &verdict).await;
        Ok(())
    }

    async fn compare_compaction(&self, hash: &HashValue) -> Verdict {
        let heard = self.ask(hash.revision).await;
        let verdict = verdict::of_compaction(self.published.cluster.local_id(), hash, &heard);
        self.report(Check::Compaction, hash.revision, &verdict).await;
        verdict
    }

    fn others(&self) -> Vec<Member> {
        let local = self.published.cluster.local_id();
        self.published.cluster.members().into_iter().filter(|member| member.id != local).collect()
    }

    async fn ask(&self, revision: i64) -> Vec<(MemberId, Heard)> {
        ask_all(self.source.as_ref(), &self.others(), revision).await
    }

    async fn report(&self, check: Check, revision: i64, verdict: &Verdict) {
        self.metrics.note(check, revision, verdict);
        for (member, _) in &verdict.wrong {
            if self.published.alarms.has(member.0, AlarmType::Corrupt) {
                continue;
            }
            let action = AlarmAction::Activate as i32;
            let alarm = AlarmRequest { action, member_id: member.0, alarm: AlarmType::Corrupt as i32 };
            let request = InternalRaftRequest { alarm: Some(alarm), ..InternalRaftRequest::default() };
            if let Err(answer) = self.proposer.propose(request).await {
                tracing::error!(%member, %answer, "cannot raise the alarm CORRUPT");
            }
        }
    }
}

/// The hashes of these members at a revision, asked at once.
pub async fn ask_all(source: &dyn HashSource, members: &[Member], revision: i64) -> Vec<(MemberId, Heard)> {
    join_all(members.iter().map(async |member| (member.id, source.of(member, revision).await))).await
}

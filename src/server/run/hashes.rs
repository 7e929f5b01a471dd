//! Hashes of the members for the integrity checks, and the check before a restarted member serves (server.md 6.9).

use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::Duration;

use crate::common::answer::Answer;
use crate::common::failure::Failure;
use crate::common::ids::ClusterId;
use crate::common::ids::MemberId;
use crate::common::revision::Revision;
use crate::server::api::backend::Backend;
use crate::server::cluster::member::Member;
use crate::server::duties::integrity::Check;
use crate::server::duties::integrity::HashSource;
use crate::server::duties::integrity::IntegrityMetrics;
use crate::server::duties::integrity::verdict;
use crate::server::duties::integrity::verdict::Heard;
use crate::server::mvcc::hash;
use crate::server::mvcc::hash::HashKv;
use crate::server::mvcc::view::ReadError;
use crate::server::mvcc::view::View;
use crate::server::peer::dialer::Dialer;
use crate::server::peer::fetch::FetchError;
use crate::server::peer::fetch::fetch_hash_kv;
use crate::server::run::backend::MemberBackend;
use crate::server::run::storage::Restored;

/// Asks other members over their peer port.
#[derive(Clone, Debug)]
pub struct PeerHashes {
    pub dialer: Dialer,
    pub cluster: ClusterId,
    /// For one answer: hashing takes as long as a store is large.
    pub timeout: Duration,
}

/// The same, with what this member holds.
pub struct MemberHashes {
    pub backend: Arc<MemberBackend>,
    pub peers: PeerHashes,
}

impl PeerHashes {
    /// The first of the member's URLs that answers. What it refuses is an answer too.
    async fn of(&self, member: &Member, revision: i64) -> Heard {
        let mut last = "it has no peer url".to_owned();
        for url in &member.peer_urls {
            match fetch_hash_kv(&self.dialer, url, self.cluster, revision, self.timeout).await {
                Ok(hash) => {
                    return Ok(HashKv {
                        hash: hash.hash,
                        compact_revision: hash.compact_revision,
                        hash_revision: hash.hash_revision,
                        revision: hash.header.revision,
                    });
                }
                Err(error @ FetchError::Refused { .. }) => return Err(error.to_string()),
                Err(error) => last = error.to_string(),
            }
        }
        Err(last)
    }
}

#[tonic::async_trait]
impl HashSource for MemberHashes {
    async fn own(&self, revision: i64) -> Result<HashKv, Answer> {
        let hash = self.backend.hash_kv(revision).await?;
        let revision = hash.header.map_or(0, |header| header.revision);
        let (compact_revision, hash_revision) = (hash.compact_revision, hash.hash_revision);
        Ok(HashKv { hash: hash.hash, compact_revision, hash_revision, revision })
    }

    async fn of(&self, member: &Member, revision: i64) -> Heard {
        self.peers.of(member, revision).await
    }
}

/// Reads everything that this member restored, and compares it with the others. The error says why it must not serve.
pub async fn check_before_serving(
    restored: &Restored,
    dialer: &Dialer,
    timeout: Duration,
    metrics: &IntegrityMetrics,
) -> Result<(), Failure> {
    let view = restored.machine.store().views().current();
    let reading = tokio::task::spawn_blocking(move || read_everything(&view));
    let own =
        reading.await.unwrap_or_else(|error| Err(Failure::Refused(format!("cannot check the database: {error}"))))?;
    let peers = PeerHashes { dialer: dialer.clone(), cluster: restored.cluster, timeout };
    let mut heard: Vec<(MemberId, Heard)> = Vec::new();
    for member in restored.machine.membership().members().filter(|member| member.id != restored.local) {
        heard.push((member.id, peers.of(member, own.hash_revision).await));
    }
    let verdict = verdict::initial(&own, &heard);
    metrics.note(Check::Initial, own.hash_revision, &verdict);
    match verdict.wrong.is_empty() {
        true => Ok(()),
        false => Err(Failure::Refused(format!("{} found data inconsistency with peers", restored.local))),
    }
}

/// Checks every record's checksum, and gives the hash of them all.
fn read_everything(view: &View) -> Result<HashKv, Failure> {
    view.records(Revision::default(), Revision::new(i64::MAX, i64::MAX), &mut |_| ControlFlow::Continue(()))?;
    hash::hash_view(view, 0).map_err(|error| match error {
        ReadError::Failure(failure) => failure,
        ReadError::Answer(answer) => Failure::Refused(format!("cannot hash the database: {answer}")),
    })
}

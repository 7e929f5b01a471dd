//! Locks and elections over keys: who has come first, and how the others wait.
//!
//! ```text
//!  deploy/694d9a1f903b7f06   created at 12   holds the lock, or leads
//!  deploy/694d9a1f903b7f0a   created at 15   waits until 12 is gone
//!  deploy/694d9a1f903b7f11   created at 19   waits until 15 is gone, then looks again
//! ```
//! A place in the queue is a key under a lease; the oldest one is the first. Each waits for the newest key older than its
//! own, so that one that goes wakes one. A lease may end in the queue, so whoever's turn it is reads its own key again
//! before it believes it (reliability.md B44).
//!
//! Nothing is kept outside the store, and the steps are the same for our client as for the lock and election services,
//! which take them for clients that have none of this (server.md 1.9; etcd client/v3/concurrency).

use std::collections::VecDeque;
use std::future::Future;

use bytes::Bytes;

use crate::common::key_range;
use crate::proto::etcdserverpb::Compare;
use crate::proto::etcdserverpb::DeleteRangeRequest;
use crate::proto::etcdserverpb::PutRequest;
use crate::proto::etcdserverpb::RangeRequest;
use crate::proto::etcdserverpb::RangeResponse;
use crate::proto::etcdserverpb::RequestOp;
use crate::proto::etcdserverpb::ResponseHeader;
use crate::proto::etcdserverpb::ResponseOp;
use crate::proto::etcdserverpb::TxnRequest;
use crate::proto::etcdserverpb::TxnResponse;
use crate::proto::etcdserverpb::WatchCreateRequest;
use crate::proto::etcdserverpb::WatchResponse;
use crate::proto::etcdserverpb::compare::CompareResult;
use crate::proto::etcdserverpb::compare::CompareTarget;
use crate::proto::etcdserverpb::compare::TargetUnion;
use crate::proto::etcdserverpb::range_request::SortOrder;
use crate::proto::etcdserverpb::range_request::SortTarget;
use crate::proto::etcdserverpb::request_op::Request;
use crate::proto::etcdserverpb::response_op::Response;
use crate::proto::mvccpb::KeyValue;
use crate::proto::mvccpb::event::EventType;

/// Seconds that a lease lives when nobody said how long.
pub const DEFAULT_TTL_SECONDS: i64 = 60;

/// Where the keys are: a cluster behind a client, or the member itself.
pub trait Store: Sync {
    type Error: Send;
    type Changes<'a>: Changes<Error = Self::Error>
    where
        Self: 'a;

    fn txn(&self, request: TxnRequest) -> impl Future<Output = Result<TxnResponse, Self::Error>> + Send;
    /// Linearizable.
    fn range(&self, request: RangeRequest) -> impl Future<Output = Result<RangeResponse, Self::Error>> + Send;
    fn watch(&self, request: WatchCreateRequest) -> Result<Self::Changes<'_>, Self::Error>;
}

/// The responses of one watch.
pub trait Changes: Send {
    type Error;

    fn next(&mut self) -> impl Future<Output = Result<WatchResponse, Self::Error>> + Send;
}

/// Why somebody does not hold a lock or lead. The texts are etcd's.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refused<E> {
    /// The key was gone when its turn had come.
    #[error("mutex: session is expired")]
    SessionExpired,
    #[error("election: not leader")]
    NotLeader,
    #[error("election: no leader")]
    NoLeader,
    /// The member ended a watch, and says why.
    #[error("{0}")]
    WatchEnded(String),
    #[error("{0}")]
    Store(E),
}

impl<E> From<E> for Refused<E> {
    fn from(error: E) -> Refused<E> {
        Refused::Store(error)
    }
}

/// The queue of one lock or election.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Queue {
    prefix: Bytes,
}

/// A key in a queue.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    pub key: Bytes,
    /// Revision at which the key was created: its rank, and what tells it from one created later under its name.
    pub revision: i64,
    pub lease: i64,
    /// Of the transaction that took or found it.
    pub header: ResponseHeader,
    /// The value that it was found with; `None` if it was taken new.
    found: Option<Bytes>,
    is_first: bool,
}

impl Queue {
    pub fn new(name: &[u8]) -> Queue {
        Queue { prefix: [name, b"/"].concat().into() }
    }

    /// The key that a lease has here. Its id is written as Go's `%x` writes it.
    fn key(&self, lease: i64) -> Bytes {
        let sign = if lease < 0 { "-" } else { "" };
        [&self.prefix, format!("{sign}{:x}", lease.unsigned_abs()).as_bytes()].concat().into()
    }

    /// Takes a place, or finds the one that the lease has: asking twice is asking once.
    pub async fn enter<S: Store>(&self, store: &S, lease: i64, value: Bytes) -> Result<Place, Refused<S::Error>> {
        let key = self.key(lease);
        let put = Request::RequestPut(PutRequest { key: key.clone(), value, lease, ..PutRequest::default() });
        let own = Request::RequestRange(RangeRequest { key: key.clone(), ..RangeRequest::default() });
        let first = Request::RequestRange(self.first());
        let taken = store.txn(TxnRequest {
            compare: vec![created_at(&key, 0)],
            success: ops([put, first.clone()]),
            failure: ops([own, first]),
        });
        let TxnResponse { header, succeeded, responses } = taken.await?;
        let header = header.unwrap_or_default();
        let [own, first] = &responses[..] else { return Err(Refused::SessionExpired) };
        let (revision, found) = match succeeded {
            true => (header.revision, None),
            false => {
                let own = first_pair(own).ok_or(Refused::SessionExpired)?;
                (own.create_revision, Some(own.value.clone()))
            }
        };
        let is_first = first_pair(first).is_none_or(|first| first.create_revision == revision);
        Ok(Place { key, revision, lease, header, found, is_first })
    }

    /// Waits until nobody stands before `place`, and checks that it is still there. The header of the last answer.
    pub async fn wait<S: Store>(&self, store: &S, place: &Place) -> Result<ResponseHeader, Refused<S::Error>> {
        if place.is_first {
            return Ok(place.header);
        }
        while let Some((ahead, revision)) = self.ahead_of(store, place).await? {
            until_deleted(store, ahead, revision).await?;
        }
        let own = store.range(RangeRequest { key: place.key.clone(), ..RangeRequest::default() }).await?;
        // Also one that was created again has lost its rank: somebody may have come in between.
        match own.kvs.first() {
            Some(kv) if kv.create_revision == place.revision => Ok(own.header.unwrap_or_default()),
            _ => Err(Refused::SessionExpired),
        }
    }

    /// The newest key that is older than `place`, and the revision at which that was so.
    async fn ahead_of<S: Store>(&self, store: &S, place: &Place) -> Result<Option<(Bytes, i64)>, S::Error> {
        let newest = RangeRequest {
            sort_order: SortOrder::Descend.into(),
            max_create_revision: place.revision - 1,
            ..self.first()
        };
        let response = store.range(newest).await?;
        let revision = response.header.map_or(0, |header| header.revision);
        Ok(response.kvs.into_iter().next().map(|kv| (kv.key, revision)))
    }

    /// Stands for election: a place with a value, and the wait. A place that was there before gets the new value at once.
    pub async fn stand<S: Store>(&self, store: &S, lease: i64, value: Bytes) -> Result<Place, Refused<S::Error>> {
        let place = self.enter(store, lease, value.clone()).await?;
        if place.found.as_ref().is_some_and(|found| *found != value)
            && let Err(error) = place.proclaim(store, value).await
        {
            // The answer is the error, whatever becomes of this.
            let _ = place.leave(store).await;
            return Err(error);
        }
        Ok(place)
    }

    /// Who leads: the first key of the queue.
    pub async fn leader<S: Store>(&self, store: &S) -> Result<RangeResponse, Refused<S::Error>> {
        let response = store.range(self.first()).await?;
        if response.kvs.is_empty() { Err(Refused::NoLeader) } else { Ok(response) }
    }

    /// Reads the place that was created first.
    fn first(&self) -> RangeRequest {
        RangeRequest {
            key: self.prefix.clone(),
            range_end: key_range::prefix_end(&self.prefix).into(),
            limit: 1,
            sort_order: SortOrder::Ascend.into(),
            sort_target: SortTarget::Create.into(),
            ..RangeRequest::default()
        }
    }

    /// Every leader from now on.
    pub fn observe<C: Changes>(&self) -> Observer<C> {
        Observer { queue: self.clone(), stage: Stage::Look, untold: VecDeque::new() }
    }
}

impl Place {
    /// A place known from before: a leader's key, with the revision that it was created at.
    pub fn known(key: Bytes, revision: i64, lease: i64) -> Place {
        Place { key, revision, lease, header: ResponseHeader::default(), found: None, is_first: false }
    }

    /// Gives the key a new value if it is still this place.
    pub async fn proclaim<S: Store>(&self, store: &S, value: Bytes) -> Result<ResponseHeader, Refused<S::Error>> {
        let (key, lease) = (self.key.clone(), self.lease);
        let put = Request::RequestPut(PutRequest { key, value, lease, ..PutRequest::default() });
        let response = store.txn(self.guarded(put)).await?;
        if response.succeeded { Ok(response.header.unwrap_or_default()) } else { Err(Refused::NotLeader) }
    }

    /// Gives the place up, if it is still there; nothing is wrong if it is not.
    pub async fn leave<S: Store>(&self, store: &S) -> Result<ResponseHeader, S::Error> {
        let delete = Request::RequestDeleteRange(DeleteRangeRequest { key: self.key.clone(), ..Default::default() });
        Ok(store.txn(self.guarded(delete)).await?.header.unwrap_or_default())
    }

    /// `request`, if the key is the one that was created at the place's revision.
    fn guarded(&self, request: Request) -> TxnRequest {
        let compare = vec![created_at(&self.key, self.revision)];
        TxnRequest { compare, success: ops([request]), failure: Vec::new() }
    }
}

fn created_at(key: &Bytes, revision: i64) -> Compare {
    Compare {
        result: CompareResult::Equal.into(),
        target: CompareTarget::Create.into(),
        key: key.clone(),
        target_union: Some(TargetUnion::CreateRevision(revision)),
        ..Compare::default()
    }
}

fn ops<const N: usize>(requests: [Request; N]) -> Vec<RequestOp> {
    requests.into_iter().map(|request| RequestOp { request: Some(request) }).collect()
}

/// The first pair of a range that was part of a transaction.
fn first_pair(op: &ResponseOp) -> Option<&KeyValue> {
    match &op.response {
        Some(Response::ResponseRange(range)) => range.kvs.first(),
        _ => None,
    }
}

/// Waits until a key that was there at `revision` is deleted, or until nobody can tell from its history.
async fn until_deleted<S: Store>(store: &S, key: Bytes, revision: i64) -> Result<(), Refused<S::Error>> {
    let mut changes =
        store.watch(WatchCreateRequest { key, start_revision: revision, ..WatchCreateRequest::default() })?;
    loop {
        let response = changes.next().await?;
        if response.events.iter().any(|event| event.r#type == EventType::Delete as i32) || is_compacted(&response)? {
            return Ok(());
        }
    }
}

/// Whether the history that a watch should have told is gone: whoever wants to know must look again. etcd lets the caller
/// fail instead. Any other end is an error.
fn is_compacted<E>(response: &WatchResponse) -> Result<bool, Refused<E>> {
    match response.canceled && response.compact_revision == 0 {
        true => Err(Refused::WatchEnded(response.cancel_reason.clone())),
        false => Ok(response.canceled),
    }
}

/// A leader as observers are told of it.
#[derive(Clone, Debug, PartialEq)]
pub struct Leader {
    pub header: ResponseHeader,
    pub kv: KeyValue,
}

/// Tells every leader and every value that it proclaims, in order; of values that follow each other closely before the
/// first one was read, perhaps only the last.
///
/// `C` are the changes of the store, which is named at each call.
pub struct Observer<C> {
    queue: Queue,
    stage: Stage<C>,
    /// Known, and not told yet.
    untold: VecDeque<Leader>,
}

enum Stage<C> {
    /// Read who leads.
    Look,
    /// There is nobody: wait for the first key.
    Await(C),
    /// Somebody leads: see what becomes of the key.
    Follow(C),
}

impl<C: Changes> Observer<C> {
    /// The next leader or value. Waits without end while there is none. Must be run to its end.
    pub async fn next<'a, S>(&mut self, store: &'a S) -> Result<Leader, Refused<S::Error>>
    where
        S: Store<Changes<'a> = C, Error = C::Error>,
    {
        loop {
            if let Some(leader) = self.untold.pop_front() {
                return Ok(leader);
            }
            match &mut self.stage {
                Stage::Look => self.look(store).await?,
                Stage::Await(changes) => {
                    let response = changes.next().await?;
                    self.awaited(store, response)?;
                }
                Stage::Follow(changes) => {
                    let response = changes.next().await?;
                    self.followed(response)?;
                }
            }
        }
    }

    async fn look<'a, S>(&mut self, store: &'a S) -> Result<(), Refused<S::Error>>
    where
        S: Store<Changes<'a> = C, Error = C::Error>,
    {
        let first = self.queue.first();
        let response = store.range(first.clone()).await?;
        let header = response.header.unwrap_or_default();
        if let Some(kv) = response.kvs.into_iter().next() {
            return self.follow(store, Leader { header, kv });
        }
        let RangeRequest { key, range_end, .. } = first;
        let start_revision = header.revision;
        let request = WatchCreateRequest { key, range_end, start_revision, ..WatchCreateRequest::default() };
        self.stage = Stage::Await(store.watch(request)?);
        Ok(())
    }

    fn awaited<'a, S>(&mut self, store: &'a S, response: WatchResponse) -> Result<(), Refused<S::Error>>
    where
        S: Store<Changes<'a> = C, Error = C::Error>,
    {
        if is_compacted(&response)? {
            self.stage = Stage::Look;
        }
        let header = response.header.unwrap_or_default();
        match response.events.into_iter().find(|event| event.r#type == EventType::Put as i32) {
            Some(event) => {
                let kv = event.kv.unwrap_or_default();
                // The response may be of later changes, too, which are still to be told.
                self.follow(store, Leader { header: ResponseHeader { revision: kv.mod_revision, ..header }, kv })
            }
            None => Ok(()),
        }
    }

    fn followed(&mut self, response: WatchResponse) -> Result<(), Refused<C::Error>> {
        let deleted = response.events.iter().position(|event| event.r#type == EventType::Delete as i32);
        if is_compacted(&response)? || deleted.is_some() {
            self.stage = Stage::Look;
        }
        let header = response.header.unwrap_or_default();
        let values = response.events.into_iter().take(deleted.unwrap_or(usize::MAX));
        self.untold.extend(values.map(|event| Leader { header, kv: event.kv.unwrap_or_default() }));
        Ok(())
    }

    /// Tells of a leader and goes on with its key.
    fn follow<'a, S>(&mut self, store: &'a S, leader: Leader) -> Result<(), Refused<S::Error>>
    where
        S: Store<Changes<'a> = C, Error = C::Error>,
    {
        let (key, start_revision) = (leader.kv.key.clone(), leader.header.revision + 1);
        let request = WatchCreateRequest { key, start_revision, ..WatchCreateRequest::default() };
        self.stage = Stage::Follow(store.watch(request)?);
        self.untold.push_back(leader);
        Ok(())
    }
}

#[cfg(test)]
mod tests;

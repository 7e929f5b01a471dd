//! The member as a caller of its own API: the lock and election services work on keys like any client, without a socket.
//!
//! Requests pass the same checks, quota and metrics as those of clients.

use std::sync::Arc;
use std::sync::Mutex;
use std::sync::PoisonError;

use tokio::runtime::Handle;
use tokio::task::JoinSet;
use tonic::Status;

use crate::common::concurrency::Changes;
use crate::common::concurrency::DEFAULT_TTL_SECONDS;
use crate::common::concurrency::Place;
use crate::common::concurrency::Refused;
use crate::common::concurrency::Store;
use crate::proto::etcdserverpb::DeleteRangeRequest;
use crate::proto::etcdserverpb::DeleteRangeResponse;
use crate::proto::etcdserverpb::LeaseGrantRequest;
use crate::proto::etcdserverpb::RangeRequest;
use crate::proto::etcdserverpb::RangeResponse;
use crate::proto::etcdserverpb::TxnRequest;
use crate::proto::etcdserverpb::TxnResponse;
use crate::proto::etcdserverpb::WatchCreateRequest;
use crate::proto::etcdserverpb::WatchRequest;
use crate::proto::etcdserverpb::WatchResponse;
use crate::proto::etcdserverpb::watch_request::RequestUnion;
use crate::server::api::backend::Backend;
use crate::server::api::kv::KvService;
use crate::server::api::unsent::Unsent;
use crate::server::apply::quota;
use crate::server::watch::stream::WatchStream;

/// Cloning it is cloning a handle.
#[derive(Clone)]
pub struct InProcess {
    kv: KvService,
    backend: Arc<dyn Backend>,
    leaving: Arc<Mutex<JoinSet<()>>>,
}

/// A watch of ours.
pub struct InProcessWatch(WatchStream);

impl InProcess {
    pub fn new(kv: KvService, backend: Arc<dyn Backend>) -> InProcess {
        InProcess { kv, backend, leaving: Arc::default() }
    }

    /// The caller's lease, or a new one if it names none. One that it names is for it to keep alive.
    pub async fn lease(&self, id: i64) -> Result<i64, Status> {
        if id != 0 {
            return Ok(id);
        }
        self.backend.check_quota(quota::LEASE_GRANT_BYTES).await?;
        let request = LeaseGrantRequest { ttl: DEFAULT_TTL_SECONDS, id };
        Ok(self.backend.lease_grant(request).await?.id)
    }

    pub async fn delete_range(&self, request: DeleteRangeRequest) -> Result<DeleteRangeResponse, Status> {
        Ok(self.kv.answer_delete_range(request, &Arc::default()).await?.response)
    }

    /// From now on the place is given up when what is returned is dropped, unless it is kept before.
    pub fn hold(&self, place: &Place) -> Held {
        Held { store: self.clone(), place: Some(place.clone()) }
    }
}

impl Store for InProcess {
    type Error = Status;
    type Changes<'a> = InProcessWatch;

    async fn txn(&self, request: TxnRequest) -> Result<TxnResponse, Status> {
        // A connection's untaken answers are not to hold up what is needed to make one.
        Ok(self.kv.answer_txn(request, &Arc::<Unsent>::default()).await?.response)
    }

    async fn range(&self, request: RangeRequest) -> Result<RangeResponse, Status> {
        Ok(self.kv.answer_range(request, &Arc::<Unsent>::default()).await?.response)
    }

    fn watch(&self, request: WatchCreateRequest) -> Result<InProcessWatch, Status> {
        let stream = self.backend.open_watch()?;
        stream.ask(WatchRequest { request_union: Some(RequestUnion::CreateRequest(request)) });
        Ok(InProcessWatch(stream))
    }
}

impl Changes for InProcessWatch {
    type Error = Status;

    async fn next(&mut self) -> Result<WatchResponse, Status> {
        Ok(self.0.next().await)
    }
}

/// A place of a caller that waits: one that goes away, or whose time is over, must not stand in the way of those behind.
pub struct Held {
    store: InProcess,
    place: Option<Place>,
}

impl Held {
    /// The caller has got what it waited for.
    pub fn keep(mut self) {
        self.place = None;
    }

    /// Gives the place up now.
    pub async fn leave(mut self) {
        if let Some(place) = &self.place {
            leave(&self.store, place).await;
        }
        // Not before: if the caller goes away meanwhile, another attempt is made.
        self.place = None;
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        let (Some(place), Ok(runtime)) = (self.place.take(), Handle::try_current()) else { return };
        let store = self.store.clone();
        let mut leaving = self.store.leaving.lock().unwrap_or_else(PoisonError::into_inner);
        while leaving.try_join_next().is_some() {}
        // Ends when the proposal does, which is after the request timeout at the latest.
        leaving.spawn_on(async move { leave(&store, &place).await }, &runtime);
    }
}

async fn leave(store: &InProcess, place: &Place) {
    if let Err(error) = place.leave(store).await {
        tracing::warn!(%error, "the key of a caller that no longer waits stays until its lease ends");
    }
}

/// Errors of these services are plain ones: the text of what went wrong, and no code of their own (server.md 1.9).
pub fn plain(error: Status) -> Status {
    Status::unknown(error.message())
}

/// The same for what the recipes refuse.
pub fn refused(error: Refused<Status>) -> Status {
    match error {
        Refused::Store(error) => plain(error),
        error => Status::unknown(error.to_string()),
    }
}

//! Sessions: a lease that is kept alive while something is done under it, such as holding a lock or leading.
//!
//! The recipes are `common::concurrency`; a client is a store for them.

use std::future::Future;
use std::pin::Pin;
use std::pin::pin;
use std::task::Poll;
use std::time::Duration;

use super::CallError;
use super::Client;
use super::Deadline;
use super::watch::Watcher;
use crate::common::concurrency::Changes;
use crate::common::concurrency::Store;
use crate::proto::etcdserverpb::LeaseGrantRequest;
use crate::proto::etcdserverpb::RangeRequest;
use crate::proto::etcdserverpb::RangeResponse;
use crate::proto::etcdserverpb::TxnRequest;
use crate::proto::etcdserverpb::TxnResponse;
use crate::proto::etcdserverpb::WatchCreateRequest;
use crate::proto::etcdserverpb::WatchResponse;

/// No call has a deadline: who waits for a lock waits out what befalls the cluster.
impl Store for Client {
    type Error = CallError;
    type Changes<'a> = ClientWatch<'a>;

    async fn txn(&self, request: TxnRequest) -> Result<TxnResponse, CallError> {
        Client::txn(self, request, Deadline::none()).await
    }

    async fn range(&self, request: RangeRequest) -> Result<RangeResponse, CallError> {
        Client::range(self, request, Deadline::none()).await
    }

    fn watch(&self, request: WatchCreateRequest) -> Result<ClientWatch<'_>, CallError> {
        let mut watcher = self.watcher(false);
        watcher.watch(request);
        Ok(ClientWatch(watcher))
    }
}

/// The only watch of a watcher.
pub struct ClientWatch<'a>(Watcher<'a>);

impl Changes for ClientWatch<'_> {
    type Error = CallError;

    async fn next(&mut self) -> Result<WatchResponse, CallError> {
        Ok(self.0.next().await?.response)
    }
}

/// A lease, renewed while `during` or `ended` are waited for.
pub struct Session<'a> {
    lease: i64,
    /// Until the lease is over.
    renewals: Pin<Box<dyn Future<Output = ()> + Send + 'a>>,
    is_over: bool,
}

impl Client {
    /// Grants a lease for a session. The first renewal has to be answered within `first`.
    pub async fn session(&self, ttl: i64, first: Duration) -> Result<Session<'_>, CallError> {
        let lease = self.lease_grant(LeaseGrantRequest { ttl, id: 0 }, Deadline::none()).await?.id;
        let renewals = Box::pin(async move {
            let mut answers = self.lease_keep_alive(lease, first);
            while answers.next().await.is_some() {}
        });
        Ok(Session { lease, renewals, is_over: false })
    }
}

impl Session<'_> {
    pub fn lease(&self) -> i64 {
        self.lease
    }

    /// Returns when the lease is over or the cluster will not renew it.
    pub async fn ended(&mut self) {
        if !self.is_over {
            self.renewals.as_mut().await;
            self.is_over = true;
        }
    }

    /// Does something, and keeps the lease alive meanwhile. The end of the lease does not end it.
    pub async fn during<T>(&mut self, work: impl Future<Output = T>) -> T {
        let mut work = pin!(work);
        std::future::poll_fn(|context| {
            if let Poll::Ready(done) = work.as_mut().poll(context) {
                return Poll::Ready(done);
            }
            if !self.is_over {
                self.is_over = self.renewals.as_mut().poll(context).is_ready();
            }
            Poll::Pending
        })
        .await
    }
}

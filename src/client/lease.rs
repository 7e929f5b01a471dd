//! Calls of the lease service, and keeping a lease alive over members that come and go.

use std::time::Duration;
use std::time::Instant;

use http::uri::PathAndQuery;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Code;
use tonic::Status;
use tonic::Streaming;
use tonic_prost::ProstCodec;

use super::CallError;
use super::Client;
use super::Deadline;
use super::call;
use super::call::Method;
use crate::common::answer::Answer;
use crate::proto::etcdserverpb::LeaseGrantRequest;
use crate::proto::etcdserverpb::LeaseGrantResponse;
use crate::proto::etcdserverpb::LeaseKeepAliveRequest;
use crate::proto::etcdserverpb::LeaseKeepAliveResponse;
use crate::proto::etcdserverpb::LeaseLeasesRequest;
use crate::proto::etcdserverpb::LeaseLeasesResponse;
use crate::proto::etcdserverpb::LeaseRevokeRequest;
use crate::proto::etcdserverpb::LeaseRevokeResponse;
use crate::proto::etcdserverpb::LeaseTimeToLiveRequest;
use crate::proto::etcdserverpb::LeaseTimeToLiveResponse;

const GRANT: Method = Method::write("/etcdserverpb.Lease/LeaseGrant");
const REVOKE: Method = Method::write("/etcdserverpb.Lease/LeaseRevoke");
const TIME_TO_LIVE: Method = Method::read("/etcdserverpb.Lease/LeaseTimeToLive");
const LEASES: Method = Method::read("/etcdserverpb.Lease/LeaseLeases");
const KEEP_ALIVE_PATH: &str = "/etcdserverpb.Lease/LeaseKeepAlive";

/// Pause before a stream that broke is opened again.
const REOPEN_PAUSE: Duration = Duration::from_millis(500);

/// Requests handed to a stream before the next answer: one renewal at a time.
const REQUESTS_MAX: usize = 1;

/// A stream of renewals over one connection.
struct Renewals {
    requests: mpsc::Sender<LeaseKeepAliveRequest>,
    answers: Streaming<LeaseKeepAliveResponse>,
    /// The first request went out with the stream, its answer was not read yet.
    asked: bool,
}

/// Keeps one lease alive for as long as it is asked for the next answer.
pub struct KeepAlive<'a> {
    client: &'a Client,
    id: i64,
    /// The lease is over unless an answer comes before.
    deadline: Instant,
    next_at: Instant,
    renewals: Option<Renewals>,
}

impl Client {
    /// Grants a lease; its id is the server's choice if the request has none.
    pub async fn lease_grant(
        &self,
        request: LeaseGrantRequest,
        deadline: Deadline,
    ) -> Result<LeaseGrantResponse, CallError> {
        self.unary(&GRANT, request, deadline).await
    }

    pub async fn lease_revoke(&self, id: i64, deadline: Deadline) -> Result<LeaseRevokeResponse, CallError> {
        self.unary(&REVOKE, LeaseRevokeRequest { id }, deadline).await
    }

    /// A lease that does not exist has the TTL -1: no error.
    pub async fn lease_time_to_live(
        &self,
        id: i64,
        keys: bool,
        deadline: Deadline,
    ) -> Result<LeaseTimeToLiveResponse, CallError> {
        self.unary(&TIME_TO_LIVE, LeaseTimeToLiveRequest { id, keys }, deadline).await
    }

    pub async fn leases(&self, deadline: Deadline) -> Result<LeaseLeasesResponse, CallError> {
        self.unary(&LEASES, LeaseLeasesRequest {}, deadline).await
    }

    /// Renews a lease once; tries again while members cannot be reached. `LeaseNotFound` for one that is over.
    pub async fn lease_keep_alive_once(
        &self,
        id: i64,
        deadline: Deadline,
    ) -> Result<LeaseKeepAliveResponse, CallError> {
        let attempts = async {
            loop {
                let renewed = async { self.renewals(id, deadline).await?.renew(id).await };
                match renewed.await {
                    Ok(answer) if answer.ttl > 0 => return Ok(answer),
                    Ok(_) => return Err(CallError::Answer(Answer::LeaseNotFound)),
                    Err(status) if halts(&status) => return Err(CallError::of(status)),
                    Err(_) => tokio::time::sleep(REOPEN_PAUSE).await,
                }
            }
        };
        call::within(deadline, attempts).await.unwrap_or(Err(CallError::Deadline { last: None }))
    }

    /// Keeps a lease alive. The first answer has to come within `first`, each further one before the lease is over.
    pub fn lease_keep_alive(&self, id: i64, first: Duration) -> KeepAlive<'_> {
        let now = Instant::now();
        KeepAlive { client: self, id, deadline: now + first, next_at: now, renewals: None }
    }

    /// Opens a stream with a first renewal in it: etcd's members answer nothing, not even the opening, before they
    /// were asked something.
    async fn renewals(&self, id: i64, deadline: Deadline) -> Result<Renewals, Status> {
        let connection = self.balancer.pick().await;
        let (requests, outgoing) = mpsc::channel(REQUESTS_MAX);
        // There is room for one.
        let _ = requests.try_send(LeaseKeepAliveRequest { id });
        let codec = ProstCodec::<LeaseKeepAliveRequest, LeaseKeepAliveResponse>::default();
        let mut grpc = self.grpc(connection.wire(&self.authority));
        let request = self.dress(ReceiverStream::new(outgoing), deadline);
        let opened = grpc.streaming(request, PathAndQuery::from_static(KEEP_ALIVE_PATH), codec).await?;
        Ok(Renewals { requests, answers: opened.into_inner(), asked: true })
    }
}

impl Renewals {
    async fn renew(&mut self, id: i64) -> Result<LeaseKeepAliveResponse, Status> {
        let broken = || Status::unavailable("error reading from server: EOF");
        if !std::mem::take(&mut self.asked) {
            // A stream whose other end is gone says why when it is read.
            let _ = self.requests.send(LeaseKeepAliveRequest { id }).await;
        }
        self.answers.message().await.map_err(call::unwrap_transport)?.ok_or_else(broken)
    }
}

impl KeepAlive<'_> {
    /// The answer to the next renewal, sent when a third of the lease's time is over; `None` when the lease is over or
    /// the cluster will not renew it.
    pub async fn next(&mut self) -> Option<LeaseKeepAliveResponse> {
        loop {
            let deadline = self.deadline;
            let renewed = tokio::time::timeout_at(deadline.into(), self.renew()).await.ok()?;
            match renewed {
                Ok(answer) => {
                    let ttl = Duration::from_secs(u64::try_from(answer.ttl).ok().filter(|ttl| *ttl > 0)?);
                    let now = Instant::now();
                    // A lease of centuries needs no deadline that a clock can show.
                    self.deadline = now.checked_add(ttl)?;
                    self.next_at = now + ttl / 3;
                    return Some(answer);
                }
                Err(status) if halts(&status) => return None,
                Err(_) => {
                    self.renewals = None;
                    self.next_at = Instant::now() + REOPEN_PAUSE;
                }
            }
        }
    }

    async fn renew(&mut self) -> Result<LeaseKeepAliveResponse, Status> {
        tokio::time::sleep_until(self.next_at.into()).await;
        let renewals = match &mut self.renewals {
            Some(open) => open,
            None => self.renewals.insert(self.client.renewals(self.id, Deadline::none()).await?),
        };
        renewals.renew(self.id).await
    }
}

/// Whether trying again is in vain, as etcd's client decides.
fn halts(status: &Status) -> bool {
    !matches!(status.code(), Code::Unavailable | Code::Internal)
}

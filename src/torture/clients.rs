//! Clients that ask without end and record everything they see.

use std::sync::Arc;
use std::sync::Mutex;
use std::sync::MutexGuard;
use std::sync::PoisonError;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::AtomicI64;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering;
use std::time::Duration;
use std::time::Instant;

use crate::client::CallError;
use crate::client::direct::Direct;
use crate::client::direct::DirectError;
use crate::common::answer::Answer;
use crate::disk::sim::Dice;
use crate::proto::etcdserverpb::LeaseKeepAliveRequest;
use crate::proto::etcdserverpb::RangeRequest;
use crate::torture::checker::Operation;
use crate::torture::checker::Outcome;
use crate::torture::checker::leasing::Renewal;
use crate::torture::checker::locking::LockCall;
use crate::torture::checker::model::Request;
use crate::torture::checker::model::Response;
use crate::torture::checker::watching::Watch;
use crate::torture::values;
use crate::torture::workload::Workload;

/// Longer than an election, shorter than many faults: then the outcome is unknown.
pub const REQUEST_TIMEOUT: Duration = Duration::from_millis(2_000);
const CONNECT_TIMEOUT: Duration = Duration::from_secs(1);
/// Before a member that did not take a connection, or said that it could not serve, is asked again.
pub const PAUSE: Duration = Duration::from_millis(25);

/// What the clients of one run share.
pub struct Record {
    epoch: Instant,
    stop: AtomicBool,
    connections: AtomicU64,
    /// The newest revision that anybody was told.
    newest: AtomicI64,
    /// Writes that were answered.
    acknowledged: AtomicU64,
    operations: Mutex<Vec<Operation>>,
    renewals: Mutex<Vec<Renewal>>,
    watches: Mutex<Vec<Watch>>,
    locks: Mutex<Vec<LockCall>>,
    /// The revision that watchers have to be told of before they end; 0 while the run goes on.
    last: AtomicI64,
    abandoned: AtomicBool,
    /// The cluster's id, once somebody was told.
    cluster: AtomicU64,
}

impl Record {
    pub fn new(epoch: Instant) -> Arc<Record> {
        Arc::new(Record {
            epoch,
            stop: AtomicBool::new(false),
            connections: AtomicU64::new(0),
            newest: AtomicI64::new(1),
            acknowledged: AtomicU64::new(0),
            operations: Mutex::new(Vec::new()),
            renewals: Mutex::new(Vec::new()),
            watches: Mutex::new(Vec::new()),
            locks: Mutex::new(Vec::new()),
            last: AtomicI64::new(0),
            abandoned: AtomicBool::new(false),
            cluster: AtomicU64::new(0),
        })
    }

    /// Nanoseconds since the run began.
    pub fn now(&self) -> u64 {
        u64::try_from(self.epoch.elapsed().as_nanos()).unwrap_or(u64::MAX)
    }

    pub fn acknowledged(&self) -> u64 {
        self.acknowledged.load(Ordering::Relaxed)
    }

    /// Asks the clients to end after what they are doing.
    pub fn stop(&self) {
        self.stop.store(true, Ordering::Relaxed);
    }

    pub fn is_stopped(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }

    pub fn count(&self) -> usize {
        self.operations().len()
    }

    /// Everything so far, which is forgotten here.
    pub fn take(&self) -> Vec<Operation> {
        std::mem::take(&mut *self.operations())
    }

    fn operations(&self) -> MutexGuard<'_, Vec<Operation>> {
        // A client that panicked has pushed its operation or not: the list is whole.
        self.operations.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn take_renewals(&self) -> Vec<Renewal> {
        std::mem::take(&mut *self.renewals.lock().unwrap_or_else(PoisonError::into_inner))
    }

    pub fn take_watches(&self) -> Vec<Watch> {
        std::mem::take(&mut *self.watches.lock().unwrap_or_else(PoisonError::into_inner))
    }

    pub fn take_locks(&self) -> Vec<LockCall> {
        std::mem::take(&mut *self.locks.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// A call for a lock, when it is over.
    pub fn locked(&self, call: LockCall) {
        self.locks.lock().unwrap_or_else(PoisonError::into_inner).push(call);
    }

    /// What a stream's watches were told, when it is over.
    pub fn watched(&self, watches: impl IntoIterator<Item = Watch>) {
        self.watches.lock().unwrap_or_else(PoisonError::into_inner).extend(watches);
    }

    /// The number of a new connection.
    pub fn connection(&self) -> u64 {
        self.connections.fetch_add(1, Ordering::Relaxed)
    }

    /// The newest revision that anybody was told.
    pub fn newest(&self) -> i64 {
        self.newest.load(Ordering::Relaxed)
    }

    /// Nothing is written any more: watchers end when they were told of `revision`.
    pub fn end_at(&self, revision: i64) {
        self.last.store(revision, Ordering::Relaxed);
    }

    /// Watchers end, whatever they were told.
    pub fn abandon(&self) {
        self.abandoned.store(true, Ordering::Relaxed);
    }

    pub fn is_abandoned(&self) -> bool {
        self.abandoned.load(Ordering::Relaxed)
    }

    /// The revision that was given to `end_at`.
    pub fn end(&self) -> Option<i64> {
        Some(self.last.load(Ordering::Relaxed)).filter(|last| *last > 0)
    }

    fn add(&self, operation: Operation) {
        if let Outcome::Replied(response) = &operation.outcome {
            self.newest.fetch_max(response.revision(), Ordering::Relaxed);
            if !matches!(operation.request, Request::Range(_)) {
                self.acknowledged.fetch_add(1, Ordering::Relaxed);
            }
        }
        self.operations().push(operation);
    }
}

/// One connection, whose calls are recorded.
pub struct Link {
    direct: Direct,
    connection: u64,
    record: Arc<Record>,
    driver: tokio::task::JoinHandle<()>,
}

impl Link {
    pub async fn open(endpoint: &str, record: &Arc<Record>) -> Result<Link, String> {
        let opened = tokio::time::timeout(CONNECT_TIMEOUT, Direct::open(endpoint)).await;
        let (direct, ended) = opened.map_err(|_| format!("{endpoint}: no connection in time"))??;
        let driver = tokio::spawn(ended);
        let mut link = Link { direct, connection: record.connection(), record: Arc::clone(record), driver };
        match tokio::time::timeout(CONNECT_TIMEOUT, link.is_ours()).await {
            Ok(true) => Ok(link),
            Ok(false) => Err(format!("{endpoint}: no member of this cluster")),
            Err(_) => Err(format!("{endpoint}: no answer in time")),
        }
    }

    /// Whether a member of this run's cluster has answered: while ours is down, somebody else's may have taken its port.
    async fn is_ours(&mut self) -> bool {
        let request = RangeRequest { key: vec![0].into(), serializable: true, count_only: true, ..Default::default() };
        let cluster = match self.direct.range(&request).await {
            Ok(response) => response.header.map_or(0, |header| header.cluster_id),
            Err(_) => return false,
        };
        // The first one is: all members run then.
        let known = self.record.cluster.compare_exchange(0, cluster, Ordering::Relaxed, Ordering::Relaxed);
        known.is_ok() || known == Err(cluster)
    }

    /// The connection, for calls that are recorded otherwise.
    pub fn direct(&self) -> Direct {
        self.direct.clone()
    }

    /// Asks, and records what came of it. False when the connection is not to be used again.
    pub async fn ask(&mut self, request: Request) -> (Outcome, bool) {
        let mut sent = request.clone();
        values::in_request(&mut sent, values::long);
        let start = self.record.now();
        let answer = tokio::time::timeout(REQUEST_TIMEOUT, call(&mut self.direct, &sent)).await;
        let end = self.record.now();
        let (outcome, usable) = match answer {
            Ok(Ok(mut response)) => {
                values::shorten_response(&mut response);
                forget_leases(&request, &mut response);
                (Outcome::Replied(response), true)
            }
            Ok(Err(DirectError::Refused(error))) => (refused(error), true),
            Ok(Err(DirectError::Lost(_))) | Err(_) => (Outcome::Unknown, false),
        };
        let operation = Operation { connection: self.connection, start, end, request, outcome: outcome.clone() };
        self.record.add(operation);
        (outcome, usable)
    }

    /// Renews a lease. The time it has again, if there was an answer; false when the connection is not to be used again.
    pub async fn renew(&mut self, lease: i64) -> (Option<i64>, bool) {
        let start = self.record.now();
        let request = LeaseKeepAliveRequest { id: lease };
        let answer = tokio::time::timeout(REQUEST_TIMEOUT, self.direct.lease_keep_alive(&request)).await;
        let end = self.record.now();
        match answer {
            Ok(Ok(response)) => {
                let renewal = Renewal { connection: self.connection, start, end, lease, ttl: response.ttl };
                self.record.renewals.lock().unwrap_or_else(PoisonError::into_inner).push(renewal);
                (Some(response.ttl), true)
            }
            Ok(Err(DirectError::Refused(_))) => (None, true),
            Ok(Err(DirectError::Lost(_))) | Err(_) => (None, false),
        }
    }
}

/// A read of keys alone tells their leases in etcd 3.5, and does not in 3.7.
fn forget_leases(request: &Request, response: &mut Response) {
    if let (Request::Range(RangeRequest { keys_only: true, .. }), Response::Range(range)) = (request, response) {
        range.kvs.iter_mut().for_each(|kv| kv.lease = 0);
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        self.driver.abort();
    }
}

async fn call(direct: &mut Direct, request: &Request) -> Result<Response, DirectError> {
    Ok(match request {
        Request::Put(put) => Response::Put(direct.put(put).await?),
        Request::DeleteRange(delete) => Response::DeleteRange(direct.delete_range(delete).await?),
        Request::Txn(txn) => Response::Txn(direct.txn(txn).await?),
        Request::Compact(compaction) => Response::Compact(direct.compact(compaction).await?),
        Request::LeaseGrant(grant) => Response::LeaseGrant(direct.lease_grant(grant).await?),
        Request::LeaseRevoke(revoke) => Response::LeaseRevoke(direct.lease_revoke(revoke).await?),
        Request::Range(range) => Response::Range(direct.range(range).await?),
    })
}

/// These errors are the store's own; one is said before anything is proposed; after all others anything may have happened.
fn refused(error: CallError) -> Outcome {
    match error {
        CallError::Answer(
            answer @ (Answer::Compacted | Answer::FutureRevision | Answer::LeaseNotFound | Answer::LeaseExists),
        ) => Outcome::Failed(answer),
        CallError::Answer(Answer::TooManyRequests) => Outcome::Refused,
        _ => Outcome::Unknown,
    }
}

/// One client of a run.
pub struct Client {
    /// The only one for a client that is bound to a member.
    pub endpoints: Vec<String>,
    pub workload: Workload,
    pub dice: Dice,
    /// Between the beginnings of two requests.
    pub interval: Duration,
    pub record: Arc<Record>,
}

impl Client {
    pub async fn run(mut self) {
        let mut due = tokio::time::Instant::now();
        while !self.record.is_stopped() {
            let endpoint = self.dice.below(self.endpoints.len() as u64);
            let endpoint = &self.endpoints[usize::try_from(endpoint).unwrap_or_default()];
            let Ok(link) = Link::open(endpoint, &self.record).await else {
                tokio::time::sleep(PAUSE).await;
                continue;
            };
            self.talk(link, &mut due).await;
        }
    }

    /// Sends requests one by one until the connection is not to be used again.
    async fn talk(&mut self, mut link: Link, due: &mut tokio::time::Instant) {
        let wanders = self.endpoints.len() > 1;
        while !self.record.is_stopped() {
            tokio::time::sleep_until(*due).await;
            // Time that was lost in waiting for an answer is not made up for.
            *due = (*due + self.interval).max(tokio::time::Instant::now());
            if let Some(lease) = self.workload.renewal() {
                let (ttl, usable) = link.renew(lease).await;
                if ttl.is_some_and(|ttl| ttl <= 0) {
                    self.workload.forget(lease);
                }
                if !usable {
                    return;
                }
                continue;
            }
            let request = self.workload.next(self.record.newest());
            let (outcome, usable) = link.ask(request).await;
            if !usable || (wanders && self.dice.chance(10)) {
                return;
            }
            if outcome == Outcome::Unknown {
                tokio::time::sleep(PAUSE).await;
            }
        }
    }
}

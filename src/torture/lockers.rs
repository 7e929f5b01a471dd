//! Clients that take locks, write under them and give them up, or die with them: by the lock service, by the recipe over
//! keys, by the election service. All three stand in the same queues.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::time::Instant;

use crate::client::Client as Asking;
use crate::client::Config;
use crate::client::direct::Direct;
use crate::common::concurrency::Queue;
use crate::disk::sim::Dice;
use crate::proto::etcdserverpb::Compare;
use crate::proto::etcdserverpb::LeaseGrantRequest;
use crate::proto::etcdserverpb::LeaseRevokeRequest;
use crate::proto::etcdserverpb::PutRequest;
use crate::proto::etcdserverpb::RangeRequest;
use crate::proto::etcdserverpb::RequestOp;
use crate::proto::etcdserverpb::ResponseHeader;
use crate::proto::etcdserverpb::TxnRequest;
use crate::proto::etcdserverpb::compare::CompareResult;
use crate::proto::etcdserverpb::compare::CompareTarget;
use crate::proto::etcdserverpb::compare::TargetUnion;
use crate::proto::etcdserverpb::request_op;
use crate::proto::v3electionpb::CampaignRequest;
use crate::proto::v3electionpb::LeaderKey;
use crate::proto::v3electionpb::ResignRequest;
use crate::proto::v3lockpb::LockRequest;
use crate::proto::v3lockpb::UnlockRequest;
use crate::torture::checker::Outcome;
use crate::torture::checker::locking::LockCall;
use crate::torture::checker::locking::PREFIX;
use crate::torture::checker::locking::Said;
use crate::torture::checker::model::Request;
use crate::torture::checker::model::Response;
use crate::torture::clients::Link;
use crate::torture::clients::PAUSE;
use crate::torture::clients::REQUEST_TIMEOUT;
use crate::torture::clients::Record;

/// Few, so that many wait.
const NAMES: [&str; 2] = ["a", "b"];
/// Seconds. Short, so that some end in the queue and some in the hand.
const TTLS: [i64; 3] = [2, 3, 4];
/// Milliseconds that one waits for a lock.
const PATIENCES: [u64; 4] = [300, 2_000, 5_000, 8_000];
/// Milliseconds that a lock is held; the last is longer than some leases.
const HOLDS: [u64; 4] = [0, 20, 150, 2_500];
/// How often the lease of a waiting or holding client is renewed.
const RENEW_EVERY: Duration = Duration::from_millis(500);

/// How it asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    Service,
    Recipe,
    Election,
}

/// What becomes of a client, a lease or a lock, if nothing else happens first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fate {
    GivesUp,
    /// It takes its lease back, and with it the lock.
    Revokes,
    /// It lets its lease end while it holds the lock, and does not know.
    DiesHolding,
    /// The same while it waits.
    DiesWaiting,
}

/// A place that a client believes to hold.
struct Held {
    name: String,
    key: Bytes,
    /// Its create revision.
    created: i64,
    lease: i64,
}

/// One client of a run.
pub struct Locker {
    way: Way,
    name: String,
    /// The only one for a client that is bound to a member.
    endpoints: Vec<String>,
    /// Leases have the client's number in their upper half, as in the workload.
    number: i64,
    leases: i64,
    values: u64,
    dice: Dice,
    record: Arc<Record>,
}

impl Locker {
    /// `number` tells it from all other clients of the run.
    pub fn new(locker: usize, number: usize, endpoints: Vec<String>, dice: Dice, record: Arc<Record>) -> Locker {
        let number = i64::try_from(number).unwrap_or_default() + 1;
        let way = [Way::Service, Way::Recipe, Way::Election][locker % 3];
        let name = format!("l{locker}");
        Locker { way, name, endpoints, number, leases: 0, values: 0, dice, record }
    }

    /// Until the clients of the run are asked to end. Returns itself, for `settle`.
    pub async fn run(mut self) -> Locker {
        while !self.record.is_stopped() {
            let endpoint = self.endpoint();
            let Ok(link) = Link::open(&endpoint, &self.record).await else {
                tokio::time::sleep(PAUSE).await;
                continue;
            };
            self.session(link).await;
        }
        self
    }

    /// Takes every lock once more, now that all is quiet. What it did not get by `deadline`, in words.
    pub async fn settle(mut self, deadline: Instant) -> Result<(), String> {
        for name in NAMES {
            let mut taken = false;
            while !taken {
                if Instant::now() > deadline {
                    let (own, way) = (&self.name, self.way);
                    return Err(format!("{own} ({way:?}) was not granted the lock {name} although nobody keeps it"));
                }
                let endpoint = self.endpoint();
                // Between two attempts, and behind the last.
                tokio::time::sleep(PAUSE).await;
                let Ok(mut link) = Link::open(&endpoint, &self.record).await else { continue };
                let Some(lease) = self.lease(&mut link).await else { continue };
                if let Some(held) = self.take(&mut link, name, lease, deadline, true).await {
                    taken = self.give_up(&mut link, &held).await;
                }
                link.ask(Request::LeaseRevoke(LeaseRevokeRequest { id: lease })).await;
            }
        }
        Ok(())
    }

    fn endpoint(&mut self) -> String {
        let at = self.dice.below(self.endpoints.len() as u64);
        self.endpoints[usize::try_from(at).unwrap_or_default()].clone()
    }

    async fn lease(&mut self, link: &mut Link) -> Option<i64> {
        self.leases += 1;
        let id = (self.number << 32) | self.leases;
        let grant = Request::LeaseGrant(LeaseGrantRequest { id, ttl: self.dice.pick(&TTLS) });
        let (outcome, _) = link.ask(grant).await;
        matches!(outcome, Outcome::Replied(_)).then_some(id)
    }

    /// A lease and what is done under it.
    async fn session(&mut self, mut link: Link) {
        let Some(lease) = self.lease(&mut link).await else { return tokio::time::sleep(PAUSE).await };
        for _ in 0..=self.dice.below(3) {
            let name = self.dice.pick(&NAMES);
            let fate = match self.dice.below(10) {
                0 => Fate::Revokes,
                1 => Fate::DiesHolding,
                2 => Fate::DiesWaiting,
                _ => Fate::GivesUp,
            };
            let patience = Instant::now() + Duration::from_millis(self.dice.pick(&PATIENCES));
            let renews = fate != Fate::DiesWaiting;
            let Some(held) = self.take(&mut link, name, lease, patience, renews).await else { return };
            let hold = Duration::from_millis(self.dice.pick(&HOLDS));
            if !self.hold(&mut link, &held, hold, renews && fate != Fate::DiesHolding).await {
                return;
            }
            match fate {
                Fate::Revokes => {
                    link.ask(Request::LeaseRevoke(LeaseRevokeRequest { id: lease })).await;
                    return;
                }
                Fate::DiesHolding | Fate::DiesWaiting => return,
                // Whoever could not say that it goes comes back with another lease.
                Fate::GivesUp if !self.give_up(&mut link, &held).await => return,
                Fate::GivesUp => {}
            }
        }
    }

    /// Waits for a lock, and renews the lease meanwhile.
    async fn take(&mut self, link: &mut Link, name: &str, lease: i64, deadline: Instant, renews: bool) -> Option<Held> {
        let name = format!("{PREFIX}{name}");
        let key = format!("{name}/{lease:x}");
        let start = self.record.now();
        let asked = ask(self.way, link.direct(), self.endpoints.clone(), name.clone(), lease);
        let said = self.during(link, asked, lease, deadline, renews).await;
        let end = self.record.now();
        let said = said.unwrap_or_else(|| Said::Not("no answer in time".to_owned()));
        let made = match &said {
            Said::Granted { created, .. } => Some(*created),
            Said::Elected { created } => Some(Some(*created)),
            Said::Released { .. } | Said::Not(_) => None,
        };
        self.record.locked(LockCall { start, end, key: key.clone(), said });
        let key = Bytes::from(key);
        let created = match made? {
            Some(created) => created,
            // The service does not say which place it was.
            None => {
                let read = RangeRequest { key: key.clone(), ..RangeRequest::default() };
                let (outcome, _) = link.ask(Request::Range(read)).await;
                let Outcome::Replied(Response::Range(response)) = outcome else { return None };
                response.kvs.first()?.create_revision
            }
        };
        Some(Held { name, key, created, lease })
    }

    /// Waits for `work`; `None` when it is not done in time, or the run is over before. Gives up waiting, not the place.
    async fn during<T>(
        &self,
        link: &mut Link,
        work: impl Future<Output = T>,
        lease: i64,
        deadline: Instant,
        renews: bool,
    ) -> Option<T> {
        let mut work = std::pin::pin!(work);
        let was_stopped = self.record.is_stopped();
        let mut renews = renews;
        loop {
            let next = deadline.min(Instant::now() + RENEW_EVERY);
            if let Ok(done) = tokio::time::timeout_at(next, &mut work).await {
                return Some(done);
            }
            if Instant::now() >= deadline || self.record.is_stopped() != was_stopped {
                return None;
            }
            if renews {
                (_, renews) = link.renew(lease).await;
            }
        }
    }

    /// Writes under the lock. False when the connection is not to be used again.
    async fn hold(&mut self, link: &mut Link, held: &Held, hold: Duration, renews: bool) -> bool {
        for number in 0..2 {
            let (outcome, usable) = link.ask(self.guarded(held)).await;
            if !usable {
                return false;
            }
            let lost = matches!(outcome, Outcome::Replied(Response::Txn(txn)) if !txn.succeeded);
            if lost {
                return false;
            }
            if number == 0 {
                self.during(link, tokio::time::sleep(hold), held.lease, Instant::now() + hold, renews).await;
            }
        }
        true
    }

    fn guarded(&mut self, held: &Held) -> Request {
        self.values += 1;
        let compare = Compare {
            result: CompareResult::Equal.into(),
            target: CompareTarget::Create.into(),
            key: held.key.clone(),
            target_union: Some(TargetUnion::CreateRevision(held.created)),
            ..Compare::default()
        };
        // Where watchers look.
        let key = format!("k-{}", held.name);
        let value = format!("{}-{}:{}", self.name, self.values, self.dice.below(80));
        let put = PutRequest { key: key.into(), value: value.into(), ..PutRequest::default() };
        let put = RequestOp { request: Some(request_op::Request::RequestPut(put)) };
        Request::Txn(TxnRequest { compare: vec![compare], success: vec![put], failure: Vec::new() })
    }

    /// Whether the place is certainly given up.
    async fn give_up(&mut self, link: &mut Link, held: &Held) -> bool {
        let start = self.record.now();
        let left = leave(self.way, link.direct(), self.endpoints.clone(), held);
        let Ok(Some(header)) = tokio::time::timeout(REQUEST_TIMEOUT, left).await else { return false };
        // The service gives up whatever has the key.
        let created = (self.way != Way::Service).then_some(held.created);
        let said = Said::Released { revision: header.revision, created };
        let key = String::from_utf8_lossy(&held.key).into_owned();
        self.record.locked(LockCall { start, end: self.record.now(), key, said });
        true
    }
}

/// Waits for a place at the head of the queue.
async fn ask(way: Way, mut direct: Direct, endpoints: Vec<String>, name: String, lease: i64) -> Said {
    let not = |error: String| Said::Not(error);
    match way {
        Way::Service => match direct.lock(&LockRequest { name: name.into(), lease }).await {
            Ok(response) => Said::Granted { revision: revision(response.header), created: None },
            Err(error) => not(error.to_string()),
        },
        Way::Election => {
            // One value for all: a place that is found is not changed.
            let request = CampaignRequest { name: name.into(), lease, value: Bytes::from_static(b"leader") };
            match direct.campaign(&request).await {
                Ok(response) => Said::Elected { created: response.leader.map_or(0, |leader| leader.rev) },
                Err(error) => not(error.to_string()),
            }
        }
        Way::Recipe => {
            let client = match Asking::open(Config::new(endpoints)) {
                Ok(client) => client,
                Err(error) => return not(error.to_string()),
            };
            let queue = Queue::new(name.as_bytes());
            let place = match queue.enter(&client, lease, Bytes::new()).await {
                Ok(place) => place,
                Err(error) => return not(error.to_string()),
            };
            match queue.wait(&client, &place).await {
                Ok(header) => Said::Granted { revision: header.revision, created: Some(place.revision) },
                Err(error) => not(error.to_string()),
            }
        }
    }
}

/// Gives a place up: what the answer's header says, if there is one.
async fn leave(way: Way, mut direct: Direct, endpoints: Vec<String>, held: &Held) -> Option<ResponseHeader> {
    let Held { name, key, created, lease } = held;
    match way {
        Way::Service => direct.unlock(&UnlockRequest { key: key.clone() }).await.ok()?.header,
        Way::Election => {
            let name = Bytes::from(name.clone());
            let leader = Some(LeaderKey { name, key: key.clone(), rev: *created, lease: *lease });
            direct.resign(&ResignRequest { leader }).await.ok()?.header
        }
        Way::Recipe => {
            let client = Asking::open(Config::new(endpoints)).ok()?;
            let place = crate::common::concurrency::Place::known(key.clone(), *created, *lease);
            place.leave(&client).await.ok()
        }
    }
}

fn revision(header: Option<ResponseHeader>) -> i64 {
    header.map_or(0, |header| header.revision)
}

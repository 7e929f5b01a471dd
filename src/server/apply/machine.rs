//! The state that the log makes, and what one entry does to it.
//!
//! Pure and deterministic: no thread, no clock, no random source; two members, or one before and after a restart, that
//! apply the same entries hold the same bytes and give the same verdicts (reliability.md B5, B8).

use std::sync::Arc;

use bytes::Bytes;

use crate::common::answer::Answer;
use crate::common::failure::Failure;
use crate::common::ids::MemberId;
use crate::common::revision::Revision;
use crate::proto::etcdserverpb::AlarmResponse;
use crate::proto::etcdserverpb::AlarmType;
use crate::proto::etcdserverpb::alarm_request::AlarmAction;
use crate::proto::raftpb::Entry;
use crate::server::apply::alarm::Alarms;
use crate::server::apply::cluster;
use crate::server::apply::decode::Command;
use crate::server::apply::decode::Request;
use crate::server::apply::decode::decode;
use crate::server::apply::kv;
use crate::server::apply::kv::ApplyError;
use crate::server::apply::lease;
use crate::server::apply::outcome::Effect;
use crate::server::apply::outcome::Outcome;
use crate::server::apply::outcome::Reply;
use crate::server::apply::outcome::Step;
use crate::server::apply::outcome::header;
use crate::server::apply::ports::FrozenState;
use crate::server::apply::published::Published;
use crate::server::apply::quota;
use crate::server::apply::quota::Space;
use crate::server::apply::txn;
use crate::server::checkpoint::Applied;
use crate::server::checkpoint::Batch;
use crate::server::checkpoint::Bucket;
use crate::server::checkpoint::Buckets;
use crate::server::checkpoint::Tables;
use crate::server::cluster::handle::ClusterHandle;
use crate::server::cluster::membership::Change;
use crate::server::cluster::membership::Membership;
use crate::server::cluster::v2_store;
use crate::server::lease::Lessor;
use crate::server::mvcc::store::Store;

/// The key of bucket `auth` that says whether authentication is on.
const AUTH_ENABLED_KEY: &[u8] = b"authEnabled";

/// What is the same for the whole life of a member.
#[derive(Clone, Debug)]
pub struct MachineConfig {
    pub space: Space,
    /// Shorter leases are raised to this: ceil(1.5 x election timeout).
    pub ttl_seconds_min: i64,
    /// `--max-learners`.
    pub learners_max: usize,
}

/// Everything that entries change.
pub struct Machine {
    config: MachineConfig,
    store: Store,
    lessor: Lessor,
    membership: Membership,
    alarms: Alarms,
    applied: Applied,
    /// Pairs that nothing above looks at as a whole: bucket meta, and auth as it was found.
    carried: Buckets,
    /// Changes of `carried` since the last batch.
    carried_pairs: Vec<(Bucket, Bytes, Option<Bytes>)>,
    /// Something was applied since the last batch.
    dirty: bool,
}

impl Machine {
    /// The state of a checkpoint; an empty one gives the empty state.
    pub fn restore(
        config: MachineConfig,
        tables: Arc<dyn Tables>,
        buckets: &Buckets,
        applied: Applied,
    ) -> Result<Machine, Failure> {
        if buckets.get(&(Bucket::Auth, Bytes::from_static(AUTH_ENABLED_KEY))).is_some_and(|on| on.as_ref() == [1]) {
            let text = "authentication is enabled in this data, and this release does not serve such clusters";
            return Err(Failure::Refused(text.to_owned()));
        }
        let mut lessor = Lessor::restore(buckets, config.ttl_seconds_min)?;
        let membership = Membership::restore(buckets, config.learners_max)?;
        let mut store = Store::restore(tables, buckets)?;
        for (key, id) in store.take_leased() {
            lessor.attach(id, &key);
        }
        config.space.set_used_bytes(store.bytes_in_use());
        let of_others = [Bucket::Meta, Bucket::Auth, Bucket::AuthUsers, Bucket::AuthRoles];
        let carried = buckets.iter().filter(|((bucket, _), _)| of_others.contains(bucket));
        let carried = carried.map(|(key, value)| (key.clone(), value.clone())).collect();
        // The members bucket is the one source of the configuration, as in etcd 3.7 (reliability.md B12).
        let applied = Applied { conf_state: membership.conf_state(), ..applied };
        Ok(Machine {
            config,
            store,
            lessor,
            membership,
            alarms: Alarms::restore(buckets)?,
            applied,
            carried,
            carried_pairs: Vec::new(),
            dirty: false,
        })
    }

    /// Applies the next entry. Entries up to the applied index were applied before and do nothing; any other gap is a
    /// failure. After a failure the state is not to be used.
    pub fn apply_entry(&mut self, entry: &Entry) -> Result<Step, Failure> {
        self.apply_decoded(entry, None)
    }

    /// As `apply_entry`, with what the entry was decoded to, if it was.
    pub fn apply_decoded(&mut self, entry: &Entry, command: Option<Command>) -> Result<Step, Failure> {
        if entry.index <= self.applied.index {
            return Ok(Step::default());
        }
        if entry.index != self.applied.index + 1 {
            let text = format!("log entry {} cannot be applied behind entry {}", entry.index, self.applied.index);
            return Err(Failure::Refused(text));
        }
        let command = match command {
            Some(command) => command,
            None => decode(entry)?,
        };
        let step = match command {
            Command::Empty => Step { effects: vec![Effect::TermStarted], ..Step::default() },
            Command::Request { id, request } => {
                let op = request.op();
                let mut effects = Vec::new();
                let result = match self.request(request, &mut effects) {
                    Ok(reply) => Ok(reply),
                    Err(ApplyError::Answer(answer)) => Err(answer),
                    Err(ApplyError::Failure(failure)) => return Err(failure),
                };
                Step { outcome: outcome(id, result), effects, op }
            }
            Command::Reconfigure { id, change, .. } => self.reconfigure(id, change),
        };
        self.applied.index = entry.index;
        self.applied.term = entry.term;
        self.dirty = true;
        Ok(step)
    }

    /// Shows the state to readers: all of it after a start, else what changed.
    pub fn publish(&mut self, published: &Published) {
        self.store.publish();
        published.leases.publish(self.lessor.take_changes(), self.applied.term);
        published.space.set_used_bytes(self.store.bytes_in_use());
    }

    /// Shows everything: after a start or a snapshot.
    pub fn publish_all(&mut self, published: &Published) {
        self.publish(published);
        published.set_views(self.store.views());
        published.leases.replace(&self.lessor, self.applied.term);
        self.publish_cluster(&published.cluster);
        published.alarms.publish(&self.alarms);
    }

    pub fn publish_cluster(&self, cluster: &ClusterHandle) {
        cluster.publish(&self.membership);
    }

    pub fn publish_alarms(&self, published: &Published) {
        published.alarms.publish(&self.alarms);
    }

    /// What changed since the last batch, for the flusher; `None` if nothing did.
    pub fn take_batch(&mut self) -> Option<Batch> {
        let changes = self.store.take_changes();
        for (bucket, key, value) in &changes.pairs {
            match value {
                Some(value) => self.carried.insert((*bucket, key.clone()), value.clone()),
                None => self.carried.remove(&(*bucket, key.clone())),
            };
        }
        let mut pairs = changes.pairs;
        pairs.append(&mut self.lessor.take_pairs());
        pairs.append(&mut self.membership.take_pairs());
        pairs.append(&mut self.alarms.take_pairs());
        pairs.append(&mut self.carried_pairs);
        let empty = changes.records.is_empty() && changes.removed.is_empty() && pairs.is_empty();
        if empty && !std::mem::take(&mut self.dirty) {
            return None;
        }
        self.dirty = false;
        Some(Batch { records: changes.records, removed: changes.removed, pairs, applied: self.applied.clone() })
    }

    /// All pairs of all buckets as they are now.
    pub fn buckets(&self) -> Buckets {
        let mut buckets = self.carried.clone();
        buckets.extend(self.lessor.buckets());
        buckets.extend(self.membership.buckets());
        buckets.extend(self.alarms.buckets());
        buckets
    }

    /// The published state at the applied index, for an image. Batches must have been taken before.
    pub fn freeze(&self) -> FrozenState {
        FrozenState {
            view: self.store.views().current(),
            buckets: self.buckets(),
            applied: self.applied.clone(),
            v2_store: Bytes::from(v2_store::to_json(&self.membership)),
        }
    }

    pub fn config(&self) -> &MachineConfig {
        &self.config
    }

    pub fn applied(&self) -> &Applied {
        &self.applied
    }

    pub fn store(&self) -> &Store {
        &self.store
    }

    /// The newest revision.
    pub fn revision(&self) -> i64 {
        self.store.revision()
    }

    /// The flusher wrote durably: `tables` hold every record up to `up_to`, or no new one.
    pub fn flushed(&mut self, tables: Arc<dyn Tables>, up_to: Option<Revision>) {
        self.store.flushed(tables, up_to.unwrap_or_default());
    }

    /// Deletes a slice of what was compacted: about `budget` keys or records.
    pub fn compaction_step(&mut self, budget: usize) -> Result<(), Failure> {
        self.store.compaction_step(budget)?;
        Ok(())
    }

    pub fn lessor(&self) -> &Lessor {
        &self.lessor
    }

    pub fn membership(&self) -> &Membership {
        &self.membership
    }

    pub fn alarms(&self) -> &Alarms {
        &self.alarms
    }

    /// What an alarm forbids, before anything of the request is looked at: CORRUPT first (server.md 6.4).
    fn forbidden(&self, request: &Request) -> Option<Answer> {
        let corrupt = matches!(
            request,
            Request::Range(_)
                | Request::Put(_)
                | Request::DeleteRange(_)
                | Request::Txn(_)
                | Request::Compaction(_)
                | Request::LeaseGrant(_)
                | Request::LeaseRevoke(_)
        );
        if corrupt && self.alarms.any(AlarmType::Corrupt) {
            return Some(Answer::Corrupt);
        }
        (cost(request) > 0 && self.alarms.any(AlarmType::Nospace)).then_some(Answer::NoSpace)
    }

    fn request(&mut self, request: Request, effects: &mut Vec<Effect>) -> Result<Reply, ApplyError> {
        if let Some(answer) = self.forbidden(&request) {
            return Err(answer.into());
        }
        let fits = self.config.space.allows(cost(&request));
        let reply = self.dispatch(request, effects)?;
        self.config.space.set_used_bytes(self.store.bytes_in_use());
        if !fits {
            // It is applied all the same: all members must do the same, whatever their quota.
            effects.push(Effect::RaiseNoSpace);
            return Err(Answer::NoSpace.into());
        }
        Ok(reply)
    }

    fn dispatch(&mut self, request: Request, effects: &mut Vec<Effect>) -> Result<Reply, ApplyError> {
        let Machine { store, lessor, .. } = self;
        Ok(match request {
            Request::Nothing => Reply::Done { revision: store.revision() },
            Request::Range(request) => Reply::Range(kv::range(store, &request)?),
            Request::Put(request) => Reply::Put(kv::put(store, lessor, &request)?),
            Request::DeleteRange(request) => Reply::DeleteRange(kv::delete_range(store, lessor, &request)?),
            Request::Txn(request) => Reply::Txn(txn::txn(store, lessor, &request)?),
            Request::Compaction(request) => {
                let response = kv::compact(store, &request)?;
                effects.push(Effect::Compacted(request.revision));
                Reply::Compaction(response)
            }
            Request::LeaseGrant(request) => Reply::LeaseGrant(lease::grant(store, lessor, &request)?),
            Request::LeaseRevoke(request) => Reply::LeaseRevoke(lease::revoke(store, lessor, &request)?),
            Request::LeaseCheckpoint(request) => {
                lease::checkpoint(lessor, &request, self.membership.version());
                self.done()
            }
            Request::Alarm(request) => {
                let alarms = self.alarms.apply(&request);
                if request.action != AlarmAction::Get as i32 {
                    effects.push(Effect::Alarms);
                }
                Reply::Alarm(AlarmResponse { header: header(self.store.revision()), alarms })
            }
            Request::ClusterVersion(version) => {
                self.membership.set_version(version)?;
                self.set_carried(Bucket::Meta, cluster::STORAGE_VERSION_KEY, cluster::storage_version(version));
                effects.push(Effect::Cluster);
                self.done()
            }
            Request::MemberAttributes { id, name, client_urls } => {
                self.set_attributes(id, name, client_urls, effects);
                self.done()
            }
            Request::Downgrade(target) => {
                self.membership.set_downgrade(target);
                effects.push(Effect::Cluster);
                self.done()
            }
        })
    }

    fn done(&self) -> Reply {
        Reply::Done { revision: self.store.revision() }
    }

    fn set_attributes(&mut self, id: MemberId, name: String, client_urls: Vec<String>, effects: &mut Vec<Effect>) {
        if self.membership.set_attributes(id, name, client_urls) {
            effects.push(Effect::Cluster);
        } else {
            tracing::warn!(member = %id, "attributes of a member that is not in the cluster are ignored");
        }
    }

    /// Carries out a configuration change, or rejects it: raft hears of it either way (server.md 14.3).
    fn reconfigure(&mut self, id: u64, change: Change) -> Step {
        if let Err(answer) = self.membership.change(change.clone()) {
            tracing::warn!(member = %change.member(), %answer, "configuration change rejected");
            let effects = vec![Effect::ConfChange(None)];
            return Step { outcome: outcome(id, Err(answer)), effects, ..Step::default() };
        }
        self.applied.conf_state = self.membership.conf_state();
        let mut effects = vec![Effect::ConfChange(cluster::for_raft(&change)), Effect::Cluster];
        effects.extend(cluster::for_peers(&change).map(Effect::Peer));
        let members = self.membership.members().cloned().collect();
        Step { outcome: outcome(id, Ok(Reply::Members(members))), effects, ..Step::default() }
    }

    fn set_carried(&mut self, bucket: Bucket, key: &'static [u8], value: Option<Bytes>) {
        let key = Bytes::from_static(key);
        match &value {
            Some(value) => self.carried.insert((bucket, key.clone()), value.clone()),
            None => self.carried.remove(&(bucket, key.clone())),
        };
        self.carried_pairs.push((bucket, key, value));
    }
}

/// What a request adds at most, as the quota counts; 0 for what adds nothing.
fn cost(request: &Request) -> u64 {
    match request {
        Request::Put(put) => quota::put_cost(put),
        Request::Txn(txn) => quota::txn_cost(txn),
        Request::LeaseGrant(_) => quota::LEASE_GRANT_BYTES,
        _ => 0,
    }
}

fn outcome(request_id: u64, result: Result<Reply, Answer>) -> Option<Outcome> {
    (request_id != 0).then_some(Outcome { request_id, result })
}

#[cfg(test)]
mod replay;
#[cfg(test)]
mod tests;

//! Three processes under a seeded storm of kills, pauses and restarts, with clients that record everything they see.
//!
//! Snapshots happen all the time (a mark every 50 entries, 20 kept). `history` judges at the end, with the members' logs
//! as witnesses. By hand: `QUORATE_TORTURE_SECONDS` (storm of one run), `QUORATE_TORTURE_RUNS`, `QUORATE_TORTURE_SEED`;
//! the files of a run that failed are kept, and the panic says where.

use std::collections::BTreeMap;
use std::collections::HashMap;
use std::os::unix::process::ExitStatusExt;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::AtomicI64;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::AtomicUsize;
use std::sync::atomic::Ordering;
use std::time::Duration;
use std::time::Instant;

use nix::sys::signal::Signal;
use quorate::disk::real::RealDisk;
use quorate::proto::etcdserverpb::CompactionRequest;
use quorate::proto::etcdserverpb::Compare;
use quorate::proto::etcdserverpb::DeleteRangeRequest;
use quorate::proto::etcdserverpb::PutRequest;
use quorate::proto::etcdserverpb::RangeRequest;
use quorate::proto::etcdserverpb::RequestOp;
use quorate::proto::etcdserverpb::ResponseHeader;
use quorate::proto::etcdserverpb::TxnRequest;
use quorate::proto::etcdserverpb::compare::CompareTarget;
use quorate::proto::etcdserverpb::compare::TargetUnion;
use quorate::proto::etcdserverpb::kv_client::KvClient;
use quorate::proto::etcdserverpb::request_op::Request;
use quorate::proto::etcdserverpb::response_op::Response;
use quorate::proto::mvccpb::KeyValue;
use quorate::proto::raftpb::Entry;
use quorate::server::raft::wal::Wal;
use tokio::task::JoinHandle;
use tonic::Code;
use tonic::Status;
use tonic::transport::Channel;
use tonic::transport::Endpoint;

use crate::cluster::Cluster;
use crate::differential_gen::Random;
use crate::history::Action;
use crate::history::Kv;
use crate::history::Model;
use crate::history::Operation;
use crate::history::Reply;
use crate::history::judge;
use crate::history::padded;
use crate::history::short;
use crate::support::PATIENCE;

/// Few, so that clients meet at them.
const KEYS: u64 = 24;
const CLIENTS_PER_MEMBER: usize = 2;
/// Longer than an election; shorter than the pauses that a client should give up on.
const REQUEST_TIMEOUT: Duration = Duration::from_millis(2500);

/// What clients of one run share.
struct Shared {
    epoch: Instant,
    stop: AtomicBool,
    connections: AtomicU64,
    /// The newest revision anybody was told.
    newest: AtomicI64,
    acknowledged: AtomicUsize,
    operations: Mutex<Vec<Operation>>,
}

impl Shared {
    fn now(&self) -> u64 {
        u64::try_from(self.epoch.elapsed().as_nanos()).expect("a run is shorter than centuries")
    }
}

/// One client, bound to one member.
struct Client {
    number: usize,
    endpoint: String,
    random: Random,
    shared: Arc<Shared>,
    values: u64,
    /// Where it last saw each key modified.
    modified: HashMap<String, i64>,
}

impl Client {
    async fn run(mut self) {
        while !self.shared.stop.load(Ordering::Relaxed) {
            let endpoint = Endpoint::from_shared(format!("http://{}", self.endpoint)).expect("an address");
            let endpoint = endpoint.connect_timeout(Duration::from_secs(1)).timeout(REQUEST_TIMEOUT);
            let Ok(channel) = endpoint.connect().await else {
                tokio::time::sleep(Duration::from_millis(20)).await;
                continue;
            };
            self.talk(KvClient::new(channel)).await;
        }
    }

    /// Sends requests one by one until one fails: the next may go over another connection only.
    async fn talk(&mut self, mut kv: KvClient<Channel>) {
        let connection = self.shared.connections.fetch_add(1, Ordering::Relaxed);
        while !self.shared.stop.load(Ordering::Relaxed) {
            let action = self.choose();
            let sent = self.shared.now();
            let answer = send(&mut kv, &action).await;
            let done = self.shared.now();
            let failed = answer.is_err();
            let reply = answer.unwrap_or(Reply::Unknown);
            self.learn(&action, &reply);
            let operation = Operation { connection, action, sent, done, reply };
            self.shared.operations.lock().expect("nobody panicked").push(operation);
            if failed {
                return;
            }
        }
    }

    fn choose(&mut self) -> Action {
        let key = format!("k{:02}", self.random.below(KEYS));
        let newest = self.shared.newest.load(Ordering::Relaxed);
        match self.random.below(100) {
            0..40 => Action::Put { key, value: self.value() },
            40..50 => Action::Delete { key },
            50..65 => {
                let modified = self.modified.get(&key).copied().unwrap_or_default();
                Action::PutIf { key, value: self.value(), modified }
            }
            65..78 => Action::Read { key: Some(key), revision: 0, serializable: false },
            78..84 => Action::Read { key: None, revision: 0, serializable: false },
            84..92 => {
                let key = self.random.one_in(2).then_some(key);
                Action::Read { key, revision: 0, serializable: true }
            }
            92..98 if newest > 1 => {
                let revision = (newest - self.random.below(80) as i64).max(1);
                let key = self.random.one_in(2).then_some(key);
                Action::Read { key, revision, serializable: false }
            }
            _ if newest > 40 => Action::Compact { revision: newest - self.random.below(30) as i64 },
            _ => Action::Put { key, value: self.value() },
        }
    }

    /// A value that nobody else writes, in its short form; some are large.
    fn value(&mut self) -> String {
        self.values += 1;
        let length = if self.random.one_in(40) { 30_000 } else { self.random.below(200) };
        format!("c{}-{}:{length}", self.number, self.values)
    }

    fn learn(&mut self, action: &Action, reply: &Reply) {
        let known = match reply {
            Reply::Written { revision, .. } => {
                self.shared.acknowledged.fetch_add(1, Ordering::Relaxed);
                match action {
                    Action::Delete { key } => drop(self.modified.remove(key)),
                    Action::Put { key, .. } | Action::PutIf { key, .. } => {
                        self.modified.insert(key.clone(), *revision);
                    }
                    _ => {}
                }
                *revision
            }
            Reply::Seen { revision, kvs } => {
                for (key, kv) in kvs {
                    self.modified.insert(key.clone(), kv.modified);
                }
                *revision
            }
            Reply::Done { revision } => *revision,
            Reply::Compacted | Reply::Future | Reply::Unknown => return,
        };
        self.shared.newest.fetch_max(known, Ordering::Relaxed);
    }
}

/// The long form of a value.
fn long(value: &str) -> String {
    let (name, length) = value.split_once(':').expect("made by Client::value");
    padded(name, length.parse().expect("made by Client::value"))
}

async fn send(kv: &mut KvClient<Channel>, action: &Action) -> Result<Reply, Status> {
    match action {
        Action::Put { key, value } => {
            let response = kv.put(put_request(key, value)).await?.into_inner();
            let previous = response.prev_kv.as_ref().map(convert);
            Ok(Reply::Written { revision: revision(response.header), previous })
        }
        Action::Delete { key } => {
            let request = DeleteRangeRequest { key: key.clone().into(), prev_kv: true, ..Default::default() };
            let response = kv.delete_range(request).await?.into_inner();
            let revision = revision(response.header);
            Ok(match response.deleted {
                0 => Reply::Seen { revision, kvs: Vec::new() },
                _ => Reply::Written { revision, previous: response.prev_kvs.first().map(convert) },
            })
        }
        Action::PutIf { key, value, modified } => put_if(kv, key, value, *modified).await,
        Action::Read { key, revision: at, serializable } => {
            let (start, end) = match key {
                Some(key) => (key.as_str(), ""),
                None => ("k", "l"),
            };
            let request = RangeRequest {
                key: start.to_owned().into(),
                range_end: end.to_owned().into(),
                revision: *at,
                serializable: *serializable,
                ..Default::default()
            };
            match kv.range(request).await {
                Ok(response) => {
                    let response = response.into_inner();
                    Ok(Reply::Seen { revision: revision(response.header), kvs: pairs(&response.kvs) })
                }
                Err(status) => refused(status),
            }
        }
        Action::Compact { revision: at } => {
            match kv.compact(CompactionRequest { revision: *at, physical: at % 2 == 0 }).await {
                Ok(response) => Ok(Reply::Done { revision: revision(response.into_inner().header) }),
                Err(status) => refused(status),
            }
        }
    }
}

fn put_request(key: &str, value: &str) -> PutRequest {
    PutRequest { key: key.to_owned().into(), value: long(value).into(), prev_kv: true, ..Default::default() }
}

async fn put_if(kv: &mut KvClient<Channel>, key: &str, value: &str, modified: i64) -> Result<Reply, Status> {
    let compare = Compare {
        target: CompareTarget::Mod as i32,
        key: key.to_owned().into(),
        target_union: Some(TargetUnion::ModRevision(modified)),
        ..Default::default()
    };
    let read = RangeRequest { key: key.to_owned().into(), ..Default::default() };
    let request = TxnRequest {
        compare: vec![compare],
        success: vec![RequestOp { request: Some(Request::RequestPut(put_request(key, value))) }],
        failure: vec![RequestOp { request: Some(Request::RequestRange(read)) }],
    };
    let response = kv.txn(request).await?.into_inner();
    let revision = revision(response.header);
    match response.responses.into_iter().next().and_then(|first| first.response) {
        Some(Response::ResponsePut(put)) if response.succeeded => {
            Ok(Reply::Written { revision, previous: put.prev_kv.as_ref().map(convert) })
        }
        Some(Response::ResponseRange(range)) if !response.succeeded => {
            Ok(Reply::Seen { revision, kvs: pairs(&range.kvs) })
        }
        other => panic!("a transaction was answered with {other:?}"),
    }
}

fn refused(status: Status) -> Result<Reply, Status> {
    if status.code() != Code::OutOfRange {
        return Err(status);
    }
    match status.message().contains("has been compacted") {
        true => Ok(Reply::Compacted),
        false => Ok(Reply::Future),
    }
}

fn revision(header: Option<ResponseHeader>) -> i64 {
    header.expect("every answer has a header").revision
}

fn pairs(kvs: &[KeyValue]) -> Vec<(String, Kv)> {
    kvs.iter().map(|kv| (String::from_utf8_lossy(&kv.key).into_owned(), convert(kv))).collect()
}

fn convert(kv: &KeyValue) -> Kv {
    Kv { value: short(&kv.value), created: kv.create_revision, modified: kv.mod_revision, version: kv.version }
}

/// One run: a cluster, its clients, what was done to it, and what its logs had.
struct Storm {
    seed: u64,
    random: Random,
    cluster: Cluster,
    shared: Arc<Shared>,
    tasks: Vec<JoinHandle<()>>,
    trace: Vec<String>,
    /// Committed entries from the logs of all members.
    entries: BTreeMap<u64, Entry>,
}

impl Storm {
    async fn start(seed: u64) -> Storm {
        let extra = ["--snapshot-count", "50", "--snapshot-catchup-entries", "20"];
        let cluster = Cluster::ours(3, &extra).await;
        let shared = Arc::new(Shared {
            epoch: Instant::now(),
            stop: AtomicBool::new(false),
            connections: AtomicU64::new(0),
            newest: AtomicI64::new(0),
            acknowledged: AtomicUsize::new(0),
            operations: Mutex::new(Vec::new()),
        });
        let endpoints = cluster.members.iter().map(|member| member.endpoint());
        let endpoints: Vec<String> = endpoints.flat_map(|one| vec![one; CLIENTS_PER_MEMBER]).collect();
        let clients = endpoints.into_iter().enumerate().map(|(number, endpoint)| Client {
            number,
            endpoint,
            random: Random::new(seed.wrapping_mul(1000).wrapping_add(number as u64)),
            shared: Arc::clone(&shared),
            values: 0,
            modified: HashMap::new(),
        });
        let tasks = clients.map(|client| tokio::spawn(client.run())).collect();
        let random = Random::new(seed);
        Storm { seed, random, cluster, shared, tasks, trace: Vec::new(), entries: BTreeMap::new() }
    }

    fn note(&mut self, what: String) {
        self.trace.push(format!("{:>9.3} s  {what}", self.shared.epoch.elapsed().as_secs_f64()));
    }

    fn panic(&self, what: &str) -> ! {
        let trace = self.trace.join("\n");
        panic!("seed {}: {what}\n{trace}\n{}", self.seed, self.cluster.logs("the ends of the logs"))
    }

    /// Waits until clients were told of `more` further writes: the cluster lives.
    async fn progress(&mut self, more: usize) {
        let goal = self.shared.acknowledged.load(Ordering::Relaxed) + more;
        let deadline = Instant::now() + PATIENCE;
        while self.shared.acknowledged.load(Ordering::Relaxed) < goal {
            self.nobody_ended();
            if Instant::now() > deadline {
                self.panic("no progress");
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    /// A member ends when the storm kills it, and at no other time.
    fn nobody_ended(&mut self) {
        if self.tasks.iter().any(JoinHandle::is_finished) {
            self.panic("a client panicked");
        }
        let ended = self.cluster.members.iter_mut().find_map(|member| {
            let status = member.ended()?;
            Some(format!("{} ended by itself, {status}", member.name))
        });
        if let Some(what) = ended {
            self.panic(&what);
        }
    }

    /// kill -9 of some at the same moment.
    fn kill(&mut self, positions: &[usize]) {
        self.note(format!("kill {positions:?}"));
        for position in positions {
            self.cluster.members[*position].signal(Signal::SIGKILL);
        }
        for position in positions {
            let status = self.cluster.members[*position].wait_exit();
            if status.signal() != Some(Signal::SIGKILL as i32) {
                self.panic(&format!("m{} ended by itself, {status}", position + 1));
            }
            self.read_log(*position);
        }
    }

    fn boot(&mut self, positions: &[usize]) {
        self.note(format!("start {positions:?}"));
        for position in positions {
            self.cluster.members[*position].start();
        }
    }

    /// Takes in the committed entries of a member that does not run. What is committed is the same in all logs.
    fn read_log(&mut self, position: usize) {
        let dir = self.cluster.members[position].data_dir.join("member/wal");
        if !dir.join("0000000000000000-0000000000000000.wal").exists() {
            return;
        }
        let recovered = match Wal::inspect(&RealDisk, &dir) {
            Ok(recovered) => recovered,
            Err(failure) => self.panic(&format!("the log of m{}: {failure}", position + 1)),
        };
        let commit = recovered.hard_state.commit;
        for entry in recovered.entries.into_iter().filter(|entry| entry.index <= commit) {
            match self.entries.get(&entry.index) {
                Some(known) if *known != entry => {
                    self.panic(&format!("two committed entries {}: {known:?}, {entry:?}", entry.index));
                }
                Some(_) => {}
                None => drop(self.entries.insert(entry.index, entry)),
            }
        }
    }

    /// The logs of those who run, as far as they can be read under their owners' hands: a later snapshot may leave them
    /// only what is behind it.
    fn peek(&mut self) {
        for member in &self.cluster.members {
            let Ok(recovered) = Wal::inspect(&RealDisk, &member.data_dir.join("member/wal")) else { continue };
            let commit = recovered.hard_state.commit;
            for entry in recovered.entries.into_iter().filter(|entry| entry.index <= commit) {
                self.entries.entry(entry.index).or_insert(entry);
            }
        }
    }

    async fn wait(&mut self, millis_max: u64) {
        let millis = self.random.below(millis_max);
        tokio::time::sleep(Duration::from_millis(millis)).await;
    }

    /// The member that the others follow, as far as one of them can be asked.
    async fn leader(&mut self) -> usize {
        for member in &self.cluster.members {
            let Ok(status) = member.status().await else { continue };
            for (position, other) in self.cluster.members.iter().enumerate() {
                let Ok(other) = other.status().await else { continue };
                if other.header.is_some_and(|header| header.member_id == status.leader) {
                    return position;
                }
            }
        }
        self.random.below(3) as usize
    }

    /// Does one bad thing and takes it back.
    async fn strike(&mut self) {
        let one = match self.random.one_in(2) {
            true => self.leader().await,
            false => self.random.below(3) as usize,
        };
        let two = [one, (one + 1) % 3];
        match self.random.below(12) {
            0 | 1 => {
                self.kill(&[one]);
                let missed = self.random.below(200) as usize;
                self.progress(missed).await;
                self.boot(&[one]);
            }
            2 | 3 => {
                self.kill(&two);
                self.wait(800).await;
                self.boot(&two);
            }
            4 | 5 => {
                self.kill(&[0, 1, 2]);
                self.boot(&[0, 1, 2]);
            }
            6 => {
                // Killed again while it comes back.
                for _ in 0..4 {
                    self.kill(&[one]);
                    let missed = self.random.below(60) as usize;
                    self.progress(missed).await;
                    self.boot(&[one]);
                    self.wait(400).await;
                }
            }
            7 | 8 => {
                self.pause(&[one]);
                let missed = self.random.below(250) as usize;
                self.progress(missed).await;
                self.resume(&[one]);
            }
            9 => {
                self.pause(&two);
                self.wait(2500).await;
                self.resume(&two);
            }
            10 => {
                self.pause(&[one]);
                tokio::time::sleep(Duration::from_secs(5)).await;
                self.resume(&[one]);
            }
            _ => {
                self.note(format!("stop m{} in order", one + 1));
                let status = self.cluster.members[one].terminate();
                if status.signal() != Some(Signal::SIGTERM as i32) {
                    self.panic(&format!("m{} was asked to stop, and: {status}", one + 1));
                }
                self.read_log(one);
                let missed = self.random.below(150) as usize;
                self.progress(missed).await;
                self.boot(&[one]);
            }
        }
        self.peek();
    }

    fn pause(&mut self, positions: &[usize]) {
        self.note(format!("pause {positions:?}"));
        for position in positions {
            self.cluster.members[*position].signal(Signal::SIGSTOP);
        }
    }

    fn resume(&mut self, positions: &[usize]) {
        self.note(format!("resume {positions:?}"));
        for position in positions {
            self.cluster.members[*position].signal(Signal::SIGCONT);
        }
    }

    async fn finish(mut self) {
        self.progress(30).await;
        self.shared.stop.store(true, Ordering::Relaxed);
        for task in std::mem::take(&mut self.tasks) {
            if let Err(error) = task.await {
                self.panic(&format!("a client: {error}"));
            }
        }
        self.cluster.wait_ready().await;
        self.cluster.hashes_agree().await;
        let mut finals = Vec::new();
        for member in &self.cluster.members {
            let channel = member.connect().await.expect("a connection");
            let all = Action::Read { key: None, revision: 0, serializable: true };
            let mut kv = KvClient::new(channel).max_decoding_message_size(usize::MAX);
            finals.push(send(&mut kv, &all).await.expect("a read"));
        }
        for position in 0..3 {
            self.cluster.members[position].terminate();
            self.read_log(position);
        }
        let model = match Model::replay(&self.entries) {
            Ok(model) => model,
            Err(what) => self.panic(&what),
        };
        for reply in finals {
            match reply {
                Reply::Seen { revision, kvs } if revision == model.revision() && kvs == model.read(None, revision) => {}
                other => {
                    self.panic(&format!("at the end {:?}, but there is {other:?}", model.read(None, model.revision())))
                }
            }
        }
        let operations = std::mem::take(&mut *self.shared.operations.lock().expect("nobody panicked"));
        if let Err(what) = judge(&operations, &model) {
            self.panic(&what);
        }
        let installs: usize = self.cluster.members.iter().map(|m| m.log_text().matches("snapshot").count()).sum();
        println!(
            "{}\nseed {}: {} operations, {} acknowledged writes, revision {}, {} events, {installs} lines on snapshots",
            self.trace.join("\n"),
            self.seed,
            operations.len(),
            self.shared.acknowledged.load(Ordering::Relaxed),
            model.revision(),
            self.trace.len(),
        );
    }
}

fn number(name: &str, default: u64) -> u64 {
    std::env::var(name).ok().map_or(default, |text| text.parse().unwrap_or_else(|_| panic!("{name} is no number")))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_storm_of_kills_and_pauses_breaks_no_promise() {
    let seconds = number("QUORATE_TORTURE_SECONDS", 12);
    let first = number("QUORATE_TORTURE_SEED", 1);
    for seed in first..first + number("QUORATE_TORTURE_RUNS", 1) {
        let mut storm = Storm::start(seed).await;
        let end = Instant::now() + Duration::from_secs(seconds);
        while Instant::now() < end {
            storm.progress(60).await;
            storm.strike().await;
        }
        storm.finish().await;
    }
}

/// B29. `QUORATE_TORTURE_CRASHES` makes it more.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn crash_upon_crash_of_all_members_and_it_still_serves() {
    let mut storm = Storm::start(29).await;
    for round in 0..number("QUORATE_TORTURE_CRASHES", 20) {
        // Killed at every stage of coming back, from the first instruction to writes under way.
        tokio::time::sleep(Duration::from_millis(round % 20 * 50)).await;
        storm.kill(&[0, 1, 2]);
        storm.boot(&[0, 1, 2]);
    }
    storm.finish().await;
}

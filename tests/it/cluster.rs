//! Real processes: members of ours, members of real etcd, in one cluster; every one is gone when it is dropped.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::fs::File;
use std::path::Path;
use std::path::PathBuf;
use std::process::Child;
use std::process::Command;
use std::process::ExitStatus;
use std::process::Stdio;
use std::time::Duration;

use nix::sys::signal::Signal;
use nix::sys::wait::WaitPidFlag;
use nix::sys::wait::WaitStatus;
use nix::sys::wait::waitpid;
use nix::unistd::Pid;
use prost::Message;
use quorate::disk::real::RealDisk;
use quorate::faults::network::Network;
use quorate::proto::etcdserverpb::HashKvRequest;
use quorate::proto::etcdserverpb::HashKvResponse;
use quorate::proto::etcdserverpb::MoveLeaderRequest;
use quorate::proto::etcdserverpb::PutRequest;
use quorate::proto::etcdserverpb::RangeRequest;
use quorate::proto::etcdserverpb::RangeResponse;
use quorate::proto::etcdserverpb::StatusRequest;
use quorate::proto::etcdserverpb::StatusResponse;
use quorate::proto::etcdserverpb::kv_client::KvClient;
use quorate::proto::etcdserverpb::maintenance_client::MaintenanceClient;
use quorate::proto::raft_numbers::ENTRY_CONF_CHANGE;
use quorate::proto::raftpb::ConfChange;
use quorate::proto::raftpb::Entry;
use quorate::server::raft::wal::Wal;
use tempfile::TempDir;
use tonic::Status;
use tonic::transport::Channel;
use tonic::transport::Endpoint;

use crate::support::eventually;
use crate::support::free_port;

/// How both kinds refuse a revision that was compacted.
const COMPACTED: &str = "etcdserver: mvcc: required revision has been compacted";

/// Which program a member runs.
#[derive(Clone, Debug)]
pub enum Program {
    Ours,
    /// Path of a real etcd.
    Etcd(PathBuf),
}

/// One member process, running or not.
pub struct Member {
    pub name: String,
    number: usize,
    pub client_port: u16,
    pub peer_port: u16,
    pub data_dir: PathBuf,
    program: Program,
    args: Vec<String>,
    log: PathBuf,
    child: Option<Child>,
}

/// A cluster on 127.0.0.1 with its files in one temporary directory.
pub struct Cluster {
    pub members: Vec<Member>,
    pub dir: TempDir,
}

impl Cluster {
    /// Starts one member per program and waits until each serves a linearizable read.
    pub async fn start(programs: &[Program], extra: &[&str]) -> Cluster {
        let mut cluster = Cluster::prepare(programs, extra);
        for member in &mut cluster.members {
            member.start();
        }
        cluster.wait_ready().await;
        cluster
    }

    /// `count` members of ours.
    pub async fn ours(count: usize, extra: &[&str]) -> Cluster {
        Cluster::start(&vec![Program::Ours; count], extra).await
    }

    /// Everything but the start.
    pub fn prepare(programs: &[Program], extra: &[&str]) -> Cluster {
        let ports: Vec<(u16, u16)> = programs.iter().map(|_| (free_port(), free_port())).collect();
        Cluster::prepare_at(programs, &ports, extra)
    }

    /// The same on these client and peer ports.
    pub fn prepare_at(programs: &[Program], ports: &[(u16, u16)], extra: &[&str]) -> Cluster {
        let dir = tempfile::Builder::new().prefix("quorate-it-").tempdir().expect("a temporary directory");
        let named = ports.iter().zip(1..);
        let initial: Vec<String> = named.map(|((_, peer), number)| initial_entry(number, *peer)).collect();
        let initial = initial.join(",");
        let members = programs.iter().zip(ports.iter().copied()).zip(1..);
        let members = members
            .map(|((program, ports), number)| Member::new(dir.path(), number, program, ports, &initial, "new", extra))
            .collect();
        Cluster { members, dir }
    }

    /// A further member that will join: the cluster must have been told of its peer URL before it starts. Its position.
    pub fn prepare_joiner(&mut self, program: &Program, extra: &[&str]) -> usize {
        let position = self.members.len();
        // Names stand for directories: those of members that are gone are not used again.
        let is_free = |number: &usize| !self.dir.path().join(format!("m{number}.etcd")).exists();
        let highest = self.members.iter().map(|member| member.number).max().unwrap_or_default();
        let number = (highest + 1..).find(is_free).expect("numbers do not run out");
        let ports = (free_port(), free_port());
        let mut initial: Vec<String> =
            self.members.iter().map(|member| initial_entry(member.number, member.peer_port)).collect();
        initial.push(initial_entry(number, ports.1));
        let initial = initial.join(",");
        self.members.push(Member::new(self.dir.path(), number, program, ports, &initial, "existing", extra));
        position
    }

    /// Has members speak TLS with each other; `words` are the flags of the member at a position.
    pub fn secure_peers(&mut self, words: impl Fn(usize) -> Vec<String>) {
        for (position, member) in self.members.iter_mut().enumerate() {
            for flag in ["--listen-peer-urls", "--initial-advertise-peer-urls", "--initial-cluster"] {
                let value = member.arg(flag).replace("http://", "https://");
                member.set_arg(flag, &value);
            }
            member.args.extend(words(position));
        }
    }

    /// Waits until every running member serves a linearizable read.
    pub async fn wait_ready(&self) {
        for member in self.members.iter().filter(|member| member.is_running()) {
            member.wait_ready().await;
        }
    }

    /// The position of the running member that says that it leads, once all running members agree on it.
    pub async fn leader(&self) -> usize {
        eventually("one leader", async || {
            let mut leader = None;
            let mut ids = Vec::new();
            for (position, member) in self.members.iter().enumerate() {
                if !member.is_running() {
                    continue;
                }
                let status = member.status().await.map_err(|status| status.to_string())?;
                let id = status.header.as_ref().map(|header| header.member_id).unwrap_or_default();
                if status.leader == id && id != 0 {
                    leader = Some((position, id));
                }
                ids.push(status.leader);
            }
            let (position, id) = leader.ok_or_else(|| self.logs("nobody leads"))?;
            if ids.iter().all(|seen| *seen == id) { Ok(position) } else { Err(self.logs("they disagree")) }
        })
        .await
    }

    /// Moves leadership to a member whose position is wanted, in an orderly way: a real leader is asked to, one of ours
    /// hands over when it stops (to whom is its choice, so this repeats). The new leader's position.
    pub async fn move_leader(&mut self, wanted: impl Fn(usize) -> bool) -> usize {
        for _ in 0..20 {
            let leader = self.leader().await;
            if wanted(leader) {
                return leader;
            }
            match self.members[leader].program {
                Program::Ours => {
                    self.members[leader].terminate();
                    self.leader().await;
                    self.members[leader].start();
                    self.members[leader].wait_ready().await;
                }
                Program::Etcd(_) => {
                    let running = |position: &usize| self.members[*position].is_running();
                    let mut targets = (0..self.members.len()).filter(running).filter(|position| wanted(*position));
                    let target = targets.next().expect("somebody is wanted");
                    let target_id = self.members[target].id().await;
                    let channel = self.members[leader].connect().await.expect("a connection");
                    let moved = MaintenanceClient::new(channel).move_leader(MoveLeaderRequest { target_id }).await;
                    moved.unwrap_or_else(|status| panic!("{}", self.logs(&format!("not moved: {status}"))));
                }
            }
        }
        panic!("{}", self.logs("leadership never got there"));
    }

    /// Every entry that two members have committed is the same in both logs, byte for byte. For stopped members. The
    /// number of entries that more than one of them had.
    pub fn logs_agree(&self) -> usize {
        let mut seen: BTreeMap<u64, (&str, Entry)> = BTreeMap::new();
        let mut shared = 0;
        for member in &self.members {
            assert!(!member.is_running(), "{} still writes its log", member.name);
            let log = Wal::inspect(&RealDisk, &member.data_dir.join("member").join("wal")).expect("a whole log");
            let commit = log.hard_state.commit;
            for entry in log.entries.into_iter().filter(|entry| entry.index <= commit) {
                match seen.get(&entry.index) {
                    // Every founder writes these itself, and 3.5's spell out zeros (peer.md 1.5).
                    Some((other, theirs)) if entry.r#type == ENTRY_CONF_CHANGE && entry.term == 1 => {
                        let meaning = |entry: &Entry| ConfChange::decode(entry.data.clone()).expect("a change");
                        assert_eq!(meaning(&entry), meaning(theirs), "entry of {} and of {other}", member.name);
                    }
                    Some((other, theirs)) => {
                        assert_eq!(&entry, theirs, "entry of {} and of {other}", member.name);
                        shared += 1;
                    }
                    None => {
                        seen.insert(entry.index, (&member.name, entry));
                    }
                }
            }
        }
        shared
    }

    /// The same HashKV on all running members, also while somebody writes: at one revision, the highest that any of them
    /// has told of, and at another one only when that one was compacted. That hash, or a panic that shows the difference.
    pub async fn hashes_agree(&self) -> HashKvResponse {
        let chosen = Cell::new(None);
        eventually("equal hashes on all members", async || {
            let revision = match chosen.get() {
                Some(revision) => revision,
                None => self.highest_revision().await?,
            };
            chosen.set(Some(revision));
            let mut seen: Vec<HashKvResponse> = Vec::new();
            for member in self.members.iter().filter(|member| member.is_running()) {
                let hash = member.hash_kv(revision).await.map_err(|status| {
                    if status.message() == COMPACTED {
                        chosen.set(None);
                    }
                    self.logs(&format!("{} at {revision}: {status}", member.name))
                })?;
                // A real 3.5.1 does not know the field yet and leaves it 0.
                let hash_revision = if hash.hash_revision == 0 { revision } else { hash.hash_revision };
                seen.push(HashKvResponse { header: None, hash_revision, ..hash });
            }
            let first = *seen.first().ok_or_else(|| "nobody runs".to_owned())?;
            // Of a revision that was compacted at, a member answers what it kept from then, and one that restarted since
            // computes it: the same hash, below the compaction before and below this one (server.md 3.9).
            let compacted_here = seen.iter().any(|hash| hash.compact_revision == revision);
            let alike = |hash: &HashKvResponse| match compacted_here {
                true => HashKvResponse { compact_revision: first.compact_revision, ..*hash } == first,
                false => *hash == first,
            };
            let same = first.hash_revision == revision && seen.iter().all(alike);
            if same { Ok(first) } else { Err(self.logs(&format!("at {revision} they are {seen:?}"))) }
        })
        .await
    }

    /// The newest revision that a running member tells of.
    async fn highest_revision(&self) -> Result<i64, String> {
        let mut highest = 0;
        for member in self.members.iter().filter(|member| member.is_running()) {
            let status = member.status().await.map_err(|status| format!("{}: {status}", member.name))?;
            highest = highest.max(status.header.map(|header| header.revision).unwrap_or_default());
        }
        Ok(highest)
    }

    /// `what` followed by the end of every member's log, for messages of failed tests.
    pub fn logs(&self, what: &str) -> String {
        let mut text = what.to_owned();
        for member in &self.members {
            text.push_str(&format!("\n--- {} ---\n{}", member.name, tail(&member.log_text(), 12)));
        }
        text
    }
}

/// Three members of ours, each reached by its peers through a relay of its own.
pub async fn relayed(extra: &[&str]) -> (Cluster, Network) {
    let mut cluster = Cluster::prepare(&[Program::Ours, Program::Ours, Program::Ours], extra);
    let ports: Vec<(u16, u16)> = cluster.members.iter().map(|member| (free_port(), member.peer_port)).collect();
    let initial: Vec<String> =
        cluster.members.iter().zip(&ports).map(|(member, (relay, _))| initial_entry(member.number, *relay)).collect();
    let network = Network::start(&ports).await.expect("free ports");
    for (member, (relay, _)) in cluster.members.iter_mut().zip(&ports) {
        member.set_arg("--initial-advertise-peer-urls", &format!("http://127.0.0.1:{relay}"));
        member.set_arg("--initial-cluster", &initial.join(","));
        member.start();
    }
    cluster.wait_ready().await;
    for (at, member) in cluster.members.iter().enumerate() {
        network.name(at, member.id().await);
    }
    (cluster, network)
}

/// A failed test leaves its files for whoever looks for the cause.
impl Drop for Cluster {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.dir.disable_cleanup(true);
            eprintln!("the files are in {}", self.dir.path().display());
        }
    }
}

/// A member's part of `--initial-cluster`.
fn initial_entry(number: usize, peer_port: u16) -> String {
    format!("m{number}=http://127.0.0.1:{peer_port}")
}

impl Member {
    fn new(
        dir: &Path,
        number: usize,
        program: &Program,
        (client_port, peer_port): (u16, u16),
        initial: &str,
        state: &str,
        extra: &[&str],
    ) -> Member {
        let name = format!("m{number}");
        let data_dir = dir.join(format!("{name}.etcd"));
        let client = format!("http://127.0.0.1:{client_port}");
        let peer = format!("http://127.0.0.1:{peer_port}");
        let pairs = [
            ("--name", name.as_str()),
            ("--data-dir", data_dir.to_str().expect("temporary paths are UTF-8")),
            ("--listen-client-urls", &client),
            ("--advertise-client-urls", &client),
            ("--listen-peer-urls", &peer),
            ("--initial-advertise-peer-urls", &peer),
            ("--initial-cluster", initial),
            ("--initial-cluster-state", state),
            ("--initial-cluster-token", "it"),
        ];
        let mut args: Vec<String> =
            pairs.iter().flat_map(|(flag, value)| [flag, value]).map(|word| word.to_string()).collect();
        args.extend(extra.iter().map(|word| word.to_string()));
        let log = dir.join(format!("{name}.log"));
        Member { name, number, client_port, peer_port, data_dir, program: program.clone(), args, log, child: None }
    }

    pub fn start(&mut self) {
        assert!(self.child.is_none(), "{} is running", self.name);
        let log = File::options().create(true).append(true).open(&self.log).expect("a log file");
        let mut command = match &self.program {
            Program::Ours => {
                let mut command = Command::new(env!("CARGO_BIN_EXE_quorate"));
                command.arg("server");
                command
            }
            Program::Etcd(path) => Command::new(path),
        };
        let child = command
            .args(&self.args)
            .env_clear()
            .stdin(Stdio::null())
            .stdout(log.try_clone().expect("a second handle"))
            .stderr(log)
            .spawn()
            .unwrap_or_else(|error| panic!("cannot start {}: {error}", self.name));
        self.child = Some(child);
    }

    /// Adds words to the command line of later starts.
    pub fn add_args(&mut self, words: &[&str]) {
        self.args.extend(words.iter().map(|word| word.to_string()));
    }

    fn arg(&self, flag: &str) -> String {
        let at = self.args.iter().position(|word| word == flag).unwrap_or_else(|| panic!("{flag} is not set"));
        self.args[at + 1].clone()
    }

    /// Takes a word off the command line of later starts.
    pub fn remove_arg(&mut self, word: &str) {
        self.args.retain(|given| given != word);
    }

    /// Changes the value of a flag that every member has.
    pub fn set_arg(&mut self, flag: &str, value: &str) {
        let at = self.args.iter().position(|word| word == flag).unwrap_or_else(|| panic!("{flag} is not set"));
        self.args[at + 1] = value.to_owned();
    }

    /// Gives a real etcd its flags, and `settings`, which have no flag, in a file: it reads flags or a file, not both.
    pub fn use_config_file(&mut self, settings: &[(&str, &str)]) {
        let pairs = self.args.chunks_exact(2).map(|pair| (pair[0].trim_start_matches('-'), pair[1].as_str()));
        let lines = pairs.chain(settings.iter().copied()).map(|(name, value)| format!("{name}: {value}\n"));
        let path = self.log.with_extension("yaml");
        std::fs::write(&path, lines.collect::<String>()).expect("a configuration file");
        self.args = vec!["--config-file".to_owned(), path.to_str().expect("temporary paths are UTF-8").to_owned()];
    }

    /// Puts another program with another data directory in this member's place from the next start on.
    pub fn replace(&mut self, program: Program, data_dir: PathBuf) {
        let at = self.args.iter().position(|word| word == "--data-dir").expect("every member has one");
        self.args[at + 1] = data_dir.to_str().expect("temporary paths are UTF-8").to_owned();
        self.data_dir = data_dir;
        self.program = program;
    }

    pub fn is_running(&self) -> bool {
        self.child.is_some()
    }

    pub fn pid(&self) -> u32 {
        self.child.as_ref().map(Child::id).unwrap_or_else(|| panic!("{} is not running", self.name))
    }

    /// kill -9, and waits for the end.
    pub fn kill(&mut self) {
        self.signal(Signal::SIGKILL);
        self.wait_exit();
    }

    /// SIGTERM, and waits for the end.
    pub fn terminate(&mut self) -> ExitStatus {
        self.signal(Signal::SIGTERM);
        self.wait_exit()
    }

    /// SIGSTOP, and waits until every thread stands still: the signal stops one at first, which may get to run late on
    /// a busy machine, and the others answer their peers until then.
    pub fn pause(&self) {
        self.signal(Signal::SIGSTOP);
        let pid = Pid::from_raw(i32::try_from(self.pid()).expect("pids fit"));
        let status = waitpid(pid, Some(WaitPidFlag::WUNTRACED));
        assert_eq!(status, Ok(WaitStatus::Stopped(pid, Signal::SIGSTOP)), "{} was to stand still", self.name);
    }

    pub fn signal(&self, signal: Signal) {
        let pid = Pid::from_raw(i32::try_from(self.pid()).expect("pids fit"));
        nix::sys::signal::kill(pid, signal).unwrap_or_else(|error| panic!("cannot signal {}: {error}", self.name));
    }

    /// How the process ended, if it has; it counts as running until `wait_exit`.
    pub fn ended(&mut self) -> Option<ExitStatus> {
        let child = self.child.as_mut()?;
        child.try_wait().unwrap_or_else(|error| panic!("cannot look after {}: {error}", self.name))
    }

    /// Waits until the process has ended by itself.
    pub fn wait_exit(&mut self) -> ExitStatus {
        let mut child = self.child.take().unwrap_or_else(|| panic!("{} is not running", self.name));
        child.wait().unwrap_or_else(|error| panic!("cannot wait for {}: {error}", self.name))
    }

    /// How the process has ended, if it has.
    pub fn try_exit(&mut self) -> Option<ExitStatus> {
        let child = self.child.as_mut().unwrap_or_else(|| panic!("{} is not running", self.name));
        let status = child.try_wait().unwrap_or_else(|error| panic!("cannot wait for {}: {error}", self.name));
        if status.is_some() {
            self.child = None;
        }
        status
    }

    pub fn endpoint(&self) -> String {
        format!("127.0.0.1:{}", self.client_port)
    }

    pub fn log_text(&self) -> String {
        let bytes = std::fs::read(&self.log).unwrap_or_default();
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// How often the log says this.
    pub fn log_count(&self, text: &str) -> usize {
        self.log_text().lines().filter(|line| line.contains(text)).count()
    }

    /// A fresh connection; requests over it take at most ten seconds.
    pub async fn connect(&self) -> Result<Channel, Status> {
        channel(&self.endpoint()).await
    }

    /// A fresh connection whose requests are given up after `patience`, their outcome unknown.
    pub async fn connect_for(&self, patience: Duration) -> Result<Channel, Status> {
        connect(&self.endpoint(), patience).await
    }

    pub async fn wait_ready(&self) {
        eventually(&format!("{} to serve", self.name), async || match self.get("ready").await {
            Ok(_) => Ok(()),
            Err(status) => Err(format!("{status}\n{}", tail(&self.log_text(), 20))),
        })
        .await;
    }

    pub async fn status(&self) -> Result<StatusResponse, Status> {
        let channel = self.connect().await?;
        Ok(MaintenanceClient::new(channel).status(StatusRequest {}).await?.into_inner())
    }

    /// The member's id, asked from itself.
    pub async fn id(&self) -> u64 {
        let status = self.status().await.unwrap_or_else(|status| panic!("{} has no status: {status}", self.name));
        status.header.map(|header| header.member_id).unwrap_or_default()
    }

    pub async fn hash_kv(&self, revision: i64) -> Result<HashKvResponse, Status> {
        let channel = self.connect().await?;
        Ok(MaintenanceClient::new(channel).hash_kv(HashKvRequest { revision }).await?.into_inner())
    }

    /// Puts one key; the revision it got.
    pub async fn put(&self, key: &str, value: &str) -> Result<i64, Status> {
        let channel = self.connect().await?;
        put(&mut KvClient::new(channel), key, value).await
    }

    pub async fn get(&self, key: &str) -> Result<RangeResponse, Status> {
        let channel = self.connect().await?;
        let read = RangeRequest { key: key.to_owned().into(), ..RangeRequest::default() };
        Ok(KvClient::new(channel).range(read).await?.into_inner())
    }
}

impl Drop for Member {
    fn drop(&mut self) {
        if let Some(child) = &mut self.child {
            // Best effort: it may have ended by itself.
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// Puts one key over an open connection; the revision it got.
pub async fn put(client: &mut KvClient<Channel>, key: &str, value: &str) -> Result<i64, Status> {
    let request = PutRequest { key: key.to_owned().into(), value: value.to_owned().into(), ..PutRequest::default() };
    let response = client.put(request).await?.into_inner();
    Ok(response.header.map(|header| header.revision).unwrap_or_default())
}

pub async fn channel(endpoint: &str) -> Result<Channel, Status> {
    connect(endpoint, Duration::from_secs(10)).await
}

async fn connect(endpoint: &str, patience: Duration) -> Result<Channel, Status> {
    let endpoint = Endpoint::from_shared(format!("http://{endpoint}")).expect("an address");
    let endpoint = endpoint.connect_timeout(Duration::from_secs(2)).timeout(patience);
    endpoint.connect().await.map_err(|error| Status::unavailable(format!("{error:?}")))
}

/// The last `count` lines.
pub fn tail(text: &str, count: usize) -> String {
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(count)..].join("\n")
}

/// Copies a directory with plain files, for tests that look at a data directory without its owner.
pub fn copy_dir(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).expect("a directory");
    for entry in std::fs::read_dir(from).expect("a readable directory").flatten() {
        let target = to.join(entry.file_name());
        if entry.path().is_dir() {
            copy_dir(&entry.path(), &target);
        } else {
            std::fs::copy(entry.path(), target).expect("a copied file");
        }
    }
}

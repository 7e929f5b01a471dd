//! The members of one program, started for one case.

use std::path::Path;
use std::path::PathBuf;
use std::time::Duration;
use std::time::Instant;

use bytes::Bytes;

use crate::bench::process;
use crate::bench::process::Process;
use crate::bench::process::Scratch;
use crate::client::Client;
use crate::client::Config;
use crate::client::Deadline;
use crate::client::direct::Direct;
use crate::client::direct::DirectError;
use crate::proto::etcdserverpb::RangeRequest;

/// Longest wait for a cluster to serve: long, because the way back with a million keys is one of the cases.
const PATIENCE: Duration = Duration::from_secs(120);
/// How long a member may take to say who leads.
const STATUS_TIMEOUT: Duration = Duration::from_secs(5);
/// How often a member that does not serve yet is asked: a wait shorter than what is measured, a load smaller than it.
const POLL: Duration = Duration::from_millis(3);

/// A running cluster. Dropping it kills its members and removes its files.
pub struct Servers {
    binary: PathBuf,
    args: Vec<Vec<String>>,
    logs: Vec<PathBuf>,
    processes: Vec<Process>,
    endpoints: Vec<String>,
    /// Behind the processes, which write into it: fields are dropped in this order.
    _scratch: Scratch,
}

impl Servers {
    /// Starts `members` members of `binary` below `dir` and waits until each serves a linearizable read.
    pub async fn start(binary: &Path, members: usize, dir: &Path) -> Result<Servers, String> {
        let told = |error: std::io::Error| format!("cannot start {}: {error}", binary.display());
        let scratch = Scratch::new(dir).map_err(told)?;
        let mut ports = Vec::new();
        for _ in 0..members {
            ports.push((process::free_port().map_err(told)?, process::free_port().map_err(told)?));
        }
        let peer = |port: u16| format!("http://127.0.0.1:{port}");
        let initial: Vec<String> =
            ports.iter().enumerate().map(|(number, (_, port))| format!("m{number}={}", peer(*port))).collect();
        let mut servers = Servers {
            binary: binary.to_owned(),
            args: Vec::new(),
            logs: Vec::new(),
            processes: Vec::new(),
            endpoints: ports.iter().map(|(client, _)| format!("127.0.0.1:{client}")).collect(),
            _scratch: scratch,
        };
        for (number, (client, own)) in ports.into_iter().enumerate() {
            let name = format!("m{number}");
            let files = servers._scratch.path().to_owned();
            let pairs = [
                ("--data-dir", files.join(&name).display().to_string()),
                ("--name", name.clone()),
                ("--listen-client-urls", format!("http://127.0.0.1:{client}")),
                ("--advertise-client-urls", format!("http://127.0.0.1:{client}")),
                ("--listen-peer-urls", peer(own)),
                ("--initial-advertise-peer-urls", peer(own)),
                ("--initial-cluster", initial.join(",")),
                ("--initial-cluster-state", "new".to_owned()),
                // A million values of 256 bytes need more than the 2 GB that is allowed when nothing is said.
                ("--quota-backend-bytes", (8u64 << 30).to_string()),
            ];
            servers.args.push(pairs.into_iter().flat_map(|(flag, value)| [flag.to_owned(), value]).collect());
            servers.logs.push(files.join(format!("{name}.log")));
        }
        servers.launch().await?;
        Ok(servers)
    }

    /// kill -9 for all members and starts them again: how long until the first read was served.
    pub async fn kill_and_restart(&mut self) -> Result<Duration, String> {
        self.processes.clear();
        let start = Instant::now();
        self.launch().await?;
        Ok(start.elapsed())
    }

    /// kill -9 for one member.
    pub fn kill(&mut self, member: usize) {
        self.processes[member].kill();
    }

    /// Starts a killed member again and waits until all serve.
    pub async fn restart(&mut self, member: usize) -> Result<(), String> {
        self.processes[member] = self.process(member)?;
        self.until_all_serve().await
    }

    /// The member that leads in the eyes of all.
    pub async fn leader(&self) -> Result<usize, String> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(leader) = self.agreed_leader().await? {
                return Ok(leader);
            }
            if Instant::now() > deadline {
                return Err(format!("the members of {} agree on no leader", self.binary.display()));
            }
            tokio::time::sleep(POLL).await;
        }
    }

    async fn agreed_leader(&self) -> Result<Option<usize>, String> {
        let (mut own, mut leaders) = (Vec::new(), Vec::new());
        for endpoint in &self.endpoints {
            let client = Client::open(Config::new(vec![endpoint.clone()])).map_err(|error| error.to_string())?;
            let Ok(status) = client.status(Deadline::after(STATUS_TIMEOUT)).await else { return Ok(None) };
            own.push(status.header.map_or(0, |header| header.member_id));
            leaders.push(status.leader);
        }
        let agreed = leaders.iter().all(|leader| *leader == leaders[0]);
        Ok(own.iter().position(|id| agreed && *id == leaders[0]))
    }

    fn process(&self, member: usize) -> Result<Process, String> {
        let process = Process::start(&self.binary, "etcd", &self.args[member], &self.logs[member]);
        process.map_err(|error| format!("cannot start {}: {error}", self.binary.display()))
    }

    async fn launch(&mut self) -> Result<(), String> {
        for member in 0..self.args.len() {
            self.processes.push(self.process(member)?);
        }
        self.until_all_serve().await
    }

    async fn until_all_serve(&mut self) -> Result<(), String> {
        let deadline = Instant::now() + PATIENCE;
        for ((endpoint, process), log) in self.endpoints.iter().zip(&mut self.processes).zip(&self.logs) {
            while let Err(error) = serves(endpoint).await {
                let ended = process.ended().map(|status| format!(" and ended: {status}")).unwrap_or_default();
                if !ended.is_empty() || Instant::now() > deadline {
                    let (binary, log) = (self.binary.display(), process::tail(log, 10));
                    return Err(format!("{binary} does not serve{ended}: {error}\n{log}"));
                }
                tokio::time::sleep(POLL).await;
            }
        }
        Ok(())
    }

    pub fn endpoints(&self) -> &[String] {
        &self.endpoints
    }

    pub fn pids(&self) -> Vec<u32> {
        self.processes.iter().map(Process::pid).collect()
    }
}

/// Whether a linearizable read is answered.
async fn serves(endpoint: &str) -> Result<(), String> {
    let (mut direct, ended) = Direct::open(endpoint).await?;
    let read = RangeRequest { key: Bytes::from_static(b"ready"), ..RangeRequest::default() };
    let asked = async {
        match direct.range(&read).await {
            Ok(_) => Ok(()),
            Err(DirectError::Refused(error)) => Err(error.to_string()),
            Err(DirectError::Lost(error)) => Err(error),
        }
    };
    tokio::select! {
        // The answer counts also when the connection ends behind it.
        biased;
        asked = asked => asked,
        () = ended => Err("the connection ended".to_owned()),
    }
}

//! What this machine allows with this client: the same load on a service that does next to nothing.
//!
//! ```text
//!  empty     request ─▶ answer                                            what HTTP/2, gRPC and wake-ups cost
//!  durable   write ─▶ one thread: append what waits, one fdatasync ─▶ answers     and what no durable server can save
//! ```
//!
//! The service is a process of its own, so that its CPU time is told from the client's the way a server's is.

use std::fs::File;
use std::io;
use std::io::Read;
use std::io::Seek;
use std::io::SeekFrom;
use std::io::Write;
use std::net::Ipv4Addr;
use std::path::Path;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::mpsc;
use std::time::Duration;
use std::time::Instant;

use bytes::Bytes;
use hyper::server::conn::http2;
use hyper_util::rt::TokioExecutor;
use hyper_util::rt::TokioIo;
use hyper_util::service::TowerToHyperService;
use prost::Message;
use serde::Serialize;
use tokio::net::TcpListener;
use tokio::sync::oneshot;
use tokio::task::JoinSet;
use tokio_stream::Empty;
use tonic::Request;
use tonic::Response;
use tonic::Status;

use super::load::Links;
use super::load::Load;
use super::process;
use super::process::Process;
use super::process::Scratch;
use super::progress::Progress;
use super::usage::Reading;
use crate::proto::etcdserverpb::CompactionRequest;
use crate::proto::etcdserverpb::CompactionResponse;
use crate::proto::etcdserverpb::DeleteRangeRequest;
use crate::proto::etcdserverpb::DeleteRangeResponse;
use crate::proto::etcdserverpb::PutRequest;
use crate::proto::etcdserverpb::PutResponse;
use crate::proto::etcdserverpb::RangeRequest;
use crate::proto::etcdserverpb::RangeResponse;
use crate::proto::etcdserverpb::RangeStreamResponse;
use crate::proto::etcdserverpb::ResponseHeader;
use crate::proto::etcdserverpb::TxnRequest;
use crate::proto::etcdserverpb::TxnResponse;
use crate::proto::etcdserverpb::kv_server::Kv;
use crate::proto::etcdserverpb::kv_server::KvServer;
use crate::proto::mvccpb::KeyValue;

/// The hidden word that makes our binary the service.
pub const WORD: &str = "__floor";

/// A floor is found with fewer requests than a claim needs.
const REQUESTS_MAX: u64 = 50_000;

/// Of these, before counting.
const WARM_UP_SHARE: u64 = 5;

/// Longest that the service may take to listen.
const PATIENCE: Duration = Duration::from_secs(20);
const REDIAL: Duration = Duration::from_millis(10);

/// Bytes of the file that is written round and round: written once before, because a growing file costs more to sync.
const FILE_BYTES: u64 = 16 << 20;

/// Writes that wait for the thread. Full means that the request waits.
const WAITING_MAX: usize = 8192;

/// Most writes that one sync serves.
const BATCH_MAX: usize = 1024;

/// What was found with one service.
#[derive(Clone, Debug, Serialize)]
pub struct Floor {
    pub service: &'static str,
    pub conns: u32,
    pub clients: u32,
    pub requests_per_second: f64,
    pub server_cpu_us: f64,
    pub p50_ms: f64,
    pub p99_ms: f64,
}

/// The floors for a load: the empty one, and for loads that write the durable one, with its file in `dir`.
pub async fn measure(load: &Load, dir: &Path) -> Result<Vec<Floor>, String> {
    let load = Load { total: load.total.min(REQUESTS_MAX), rate: 0, ..load.clone() };
    let mut floors = vec![with_service(&load, dir, false).await?];
    if (0..load.total.min(1000)).any(|number| !load.work.reads(number)) {
        floors.push(with_service(&load, dir, true).await?);
    }
    Ok(floors)
}

async fn with_service(load: &Load, dir: &Path, durable: bool) -> Result<Floor, String> {
    let service = if durable { "durable hop" } else { "empty service" };
    let told = |error: io::Error| format!("cannot start the {service}: {error}");
    let scratch = Scratch::new(dir).map_err(told)?;
    let program = std::env::current_exe().map_err(told)?;
    let port = process::free_port().map_err(told)?;
    let mut args = vec!["bench".to_owned(), WORD.to_owned(), port.to_string()];
    if durable {
        args.push(scratch.path().display().to_string());
    }
    let log = scratch.path().join("log");
    let mut process = Process::start(&program, "quorate", &args, &log).map_err(told)?;
    let links = open(port, load.conns, &mut process, &log).await?;
    let progress = Progress::counting(&format!("floor: {service}"), load.total);
    let warm_up = Load { total: (load.total / WARM_UP_SHARE).max(1), ..load.clone() };
    warm_up.run(&links, &progress).await;
    let pids = [process.pid()];
    let before = Reading::of(&pids).map_err(|error| error.to_string())?;
    let outcome = load.run(&links, &progress).await;
    let after = Reading::of(&pids).map_err(|error| error.to_string())?;
    let Some(latency) = outcome.all.filter(|_| outcome.failed() == 0) else {
        return Err(format!("the {service} failed: {:?}", outcome.failures));
    };
    Ok(Floor {
        service,
        conns: load.conns,
        clients: load.clients,
        requests_per_second: outcome.requests_per_second(),
        server_cpu_us: (after.cpu() - before.cpu()).as_secs_f64() * 1e6 / latency.count as f64,
        p50_ms: latency.p50,
        p99_ms: latency.p99,
    })
}

/// Dials the service until it listens.
async fn open(port: u16, conns: u32, process: &mut Process, log: &Path) -> Result<Links, String> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        match Links::open(&[format!("127.0.0.1:{port}")], conns).await {
            Ok(links) => return Ok(links),
            Err(error) if process.ended().is_some() || Instant::now() > deadline => {
                return Err(format!("the floor's service does not answer: {error}\n{}", process::tail(log, 5)));
            }
            Err(_) => tokio::time::sleep(REDIAL).await,
        }
    }
}

/// The service's whole life: it ends with its standard input, that is, with the bench that started it.
pub fn serve(port: u16, dir: Option<PathBuf>) -> ExitCode {
    let served = || -> io::Result<()> {
        let disk = dir.map(|dir| Disk::open(&dir)).transpose()?;
        let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
        let listener = runtime.block_on(TcpListener::bind((Ipv4Addr::LOCALHOST, port)))?;
        runtime.spawn(accept(listener, KvServer::new(Service { disk })));
        // On this thread: a reader on the runtime would cost the service wake-ups.
        io::copy(&mut io::stdin().lock().take(u64::MAX), &mut io::sink())?;
        Ok(())
    };
    match served() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("quorate bench: the floor's service: {error}");
            ExitCode::FAILURE
        }
    }
}

async fn accept(listener: TcpListener, service: KvServer<Service>) {
    let mut connections = JoinSet::new();
    loop {
        let Ok((socket, _)) = listener.accept().await else {
            // Gone before it was accepted, or no descriptor left: the next one may fare better.
            tokio::time::sleep(REDIAL).await;
            continue;
        };
        // Answers are small and waited for.
        if socket.set_nodelay(true).is_err() {
            continue;
        }
        let service = TowerToHyperService::new(service.clone());
        let serving = http2::Builder::new(TokioExecutor::new()).serve_connection(TokioIo::new(socket), service);
        connections.spawn(async move { drop(serving.await) });
    }
}

/// One write on its way to the disk, and who waits for it.
struct Pending {
    bytes: Bytes,
    synced: oneshot::Sender<()>,
}

/// The thread that syncs.
struct Disk {
    inbox: mpsc::SyncSender<Pending>,
}

impl Disk {
    fn open(dir: &Path) -> io::Result<Disk> {
        let mut file = File::options().create(true).truncate(true).write(true).open(dir.join("floor"))?;
        io::copy(&mut io::repeat(0).take(FILE_BYTES), &mut file)?;
        file.sync_all()?;
        file.seek(SeekFrom::Start(0))?;
        let (inbox, waiting) = mpsc::sync_channel(WAITING_MAX);
        std::thread::Builder::new().name("floor-disk".to_owned()).spawn(move || sync_batches(file, &waiting))?;
        Ok(Disk { inbox })
    }

    async fn write(&self, bytes: Vec<u8>) -> Result<(), Status> {
        let (synced, answer) = oneshot::channel();
        let sent = self.inbox.send(Pending { bytes: bytes.into(), synced });
        sent.map_err(|_| Status::internal("the disk's thread has ended"))?;
        answer.await.map_err(|_| Status::internal("the disk failed"))
    }
}

fn sync_batches(mut file: File, waiting: &mpsc::Receiver<Pending>) {
    let mut batch = Vec::new();
    let mut answers = Vec::new();
    let mut at = 0;
    while let Ok(first) = waiting.recv() {
        for write in std::iter::once(first).chain(waiting.try_iter()).take(BATCH_MAX) {
            batch.extend_from_slice(&write.bytes);
            answers.push(write.synced);
        }
        let wrap = at + batch.len() as u64 > FILE_BYTES;
        let written = if wrap { file.seek(SeekFrom::Start(0)).map(|_| ()) } else { Ok(()) };
        at = if wrap { 0 } else { at } + batch.len() as u64;
        if let Err(error) = written.and_then(|()| file.write_all(&batch)).and_then(|()| file.sync_data()) {
            // Whoever waits learns it from the answers that are dropped.
            eprintln!("quorate bench: the floor's file: {error}");
            return;
        }
        batch.clear();
        // Gone is who no longer waits.
        for synced in answers.drain(..) {
            let _ = synced.send(());
        }
    }
}

/// Answers without work.
struct Service {
    disk: Option<Disk>,
}

impl Service {
    async fn persist(&self, request: &impl Message) -> Result<(), Status> {
        match &self.disk {
            Some(disk) => disk.write(request.encode_to_vec()).await,
            None => Ok(()),
        }
    }
}

/// As long as a real one's.
fn header() -> Option<ResponseHeader> {
    Some(ResponseHeader { cluster_id: u64::MAX, member_id: u64::MAX, revision: 1 << 20, raft_term: 2 })
}

const UNSERVED: &str = "the floor's service does not do this";

#[tonic::async_trait]
impl Kv for Service {
    async fn put(&self, request: Request<PutRequest>) -> Result<Response<PutResponse>, Status> {
        self.persist(request.get_ref()).await?;
        Ok(Response::new(PutResponse { header: header(), prev_kv: None }))
    }

    async fn txn(&self, request: Request<TxnRequest>) -> Result<Response<TxnResponse>, Status> {
        self.persist(request.get_ref()).await?;
        Ok(Response::new(TxnResponse { header: header(), succeeded: true, responses: Vec::new() }))
    }

    async fn range(&self, request: Request<RangeRequest>) -> Result<Response<RangeResponse>, Status> {
        static VALUE: [u8; 256] = [7; 256];
        let key = request.into_inner().key;
        let value = Bytes::from_static(&VALUE);
        let found = KeyValue { key, value, create_revision: 1 << 20, mod_revision: 1 << 20, version: 1, lease: 0 };
        Ok(Response::new(RangeResponse { header: header(), kvs: vec![found], more: false, count: 1 }))
    }

    type RangeStreamStream = Empty<Result<RangeStreamResponse, Status>>;

    async fn range_stream(&self, _: Request<RangeRequest>) -> Result<Response<Self::RangeStreamStream>, Status> {
        Err(Status::unimplemented(UNSERVED))
    }

    async fn delete_range(&self, _: Request<DeleteRangeRequest>) -> Result<Response<DeleteRangeResponse>, Status> {
        Err(Status::unimplemented(UNSERVED))
    }

    async fn compact(&self, _: Request<CompactionRequest>) -> Result<Response<CompactionResponse>, Status> {
        Err(Status::unimplemented(UNSERVED))
    }
}

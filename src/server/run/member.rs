//! One member, put together: storage, consensus, apply, peers, clients, duties; started in order, stopped in order.
//!
//! ```text
//!  storage ─▶ flusher ─▶ apply (queue) ─▶ peers ─▶ raft ─▶ peer port ─▶ duties ─▶ client port (opens once published)
//! ```
//! A stop goes the other way: clients first, then leadership is handed over, then raft, apply and the flusher, which
//! makes everything durable that was applied.

use std::sync::Arc;
use std::sync::OnceLock;
use std::time::Duration;
use std::time::Instant;
use std::time::SystemTime;
use std::time::UNIX_EPOCH;

use prometheus::Registry;
use tokio::runtime::Handle;
use tokio::task::JoinSet;

use crate::common::failure::Failure;
use crate::common::ids::MemberId;
use crate::common::ids::RequestIds;
use crate::common::urls;
use crate::server::api::backend::Identity;
use crate::server::api::backend::Limits;
use crate::server::api::http::Access;
use crate::server::api::server::ApiServer;
use crate::server::api::server::ServeOptions;
use crate::server::api::server::connections_max;
use crate::server::apply;
use crate::server::apply::alarm::AlarmsHandle;
use crate::server::apply::machine::MachineConfig;
use crate::server::apply::metrics::ApplyMetrics;
use crate::server::apply::published::Published;
use crate::server::apply::queue::ApplyHandle;
use crate::server::apply::quota::Space;
use crate::server::apply::thread::CompactionPace;
use crate::server::apply::thread::ThreadParts;
use crate::server::bootstrap::Founder;
use crate::server::checkpoint::flusher::Flusher;
use crate::server::checkpoint::flusher::Stored;
use crate::server::checkpoint::metrics::CheckpointMetrics;
use crate::server::cluster::handle::ClusterHandle;
use crate::server::config::Config;
use crate::server::duties::compactor;
use crate::server::duties::nospace;
use crate::server::duties::publish::PublishGate;
use crate::server::duties::publish::Publisher;
use crate::server::duties::version;
use crate::server::peer::listener::PeerListener;
use crate::server::peer::metrics::PeerMetrics;
use crate::server::peer::timing::Timing;
use crate::server::peer::transport::PeerConfig;
use crate::server::peer::transport::PeerEvents;
use crate::server::peer::transport::Peers;
use crate::server::propose::ProposeLimits;
use crate::server::propose::ProposeMetrics;
use crate::server::propose::Proposer;
use crate::server::propose::ProposerParts;
use crate::server::raft;
use crate::server::raft::config::CatchUp;
use crate::server::raft::config::RaftConfig;
use crate::server::raft::driver::Parts as RaftParts;
use crate::server::raft::handle::RaftHandle;
use crate::server::raft::metrics::RaftMetrics;
use crate::server::raft::wal::WalMetrics;
use crate::server::read::READ_INDEX_RETRY;
use crate::server::read::ReadMetrics;
use crate::server::read::Reader;
use crate::server::read::ReaderParts;
use crate::server::run::backend::MemberBackend;
use crate::server::run::ends::End;
use crate::server::run::ends::Ends;
use crate::server::run::facts::Facts;
use crate::server::run::ports::Links;
use crate::server::run::ports::PeerList;
use crate::server::run::ports::Raft;
use crate::server::run::ports::SnapshotPort;
use crate::server::run::ports::SnapshotWork;
use crate::server::run::sockets::Sockets;
use crate::server::run::storage::Restored;
use crate::server::run::storage::Storage;
use crate::server::run::versions::PeerVersions;
use crate::server::snapshot::install::Installer;
use crate::server::snapshot::metrics::SnapshotMetrics;
use crate::server::snapshot::send::Images;
use crate::server::waiters::Desk;
use crate::server::waiters::DeskMetrics;

/// How long a stopping leader waits for another one to take over.
const HANDOVER_MAX: Duration = Duration::from_secs(3);
/// How often it looks.
const HANDOVER_POLL: Duration = Duration::from_millis(10);

/// A running member.
pub struct Member {
    api: Arc<ApiServer>,
    /// Duties and the read loop; they end with the desk.
    tasks: JoinSet<()>,
    gate: PublishGate,
    peer_listener: PeerListener,
    peers: Arc<Peers>,
    raft: RaftHandle,
    desk: Arc<Desk>,
    published: Published,
    queue: ApplyHandle,
    apply_thread: std::thread::JoinHandle<()>,
    flusher: Arc<Flusher>,
    local: MemberId,
    /// The lock on the data directory.
    _storage: Storage,
}

/// The part of the state that does not come from the log.
pub fn machine_config(config: &Config) -> MachineConfig {
    // ceil(1.5 x election ticks x heartbeat), with whole ticks (server.md 5).
    let ttl_millis = (3 * config.election_ticks() as u128).div_ceil(2) * config.heartbeat_interval.as_millis();
    MachineConfig {
        space: Space::new(config.quota_backend_bytes),
        ttl_seconds_min: i64::try_from(ttl_millis.div_ceil(1000)).unwrap_or(i64::MAX),
        learners_max: config.max_learners,
    }
}

impl Member {
    /// Starts every part on what `storage` gave. Nothing is served to clients before this member has published itself.
    pub fn start(
        config: &Config,
        storage: Storage,
        restored: Restored,
        founders: Vec<Founder>,
        sockets: Sockets,
        ends: &Ends,
        registry: Registry,
    ) -> Result<Member, Failure> {
        let Restored { local, cluster, mut wal, start, machine, checkpoint } = restored;
        let handle = Handle::current();
        let epoch = Instant::now();
        wal.measure(WalMetrics::register(&registry), Box::new(move || epoch.elapsed()));
        let applied = machine.applied().clone();
        let space = machine.config().space.clone();
        let desk = Arc::new(Desk::new(applied.index, DeskMetrics::register(&registry)));
        let queue = ApplyHandle::new(desk.clone(), ends.on_failure());
        let raft = Arc::new(Raft::default());
        let snapshot_metrics = SnapshotMetrics::register(&registry);
        let images = Arc::new(Images::new(&storage.directories.snap, snapshot_metrics.clone()));
        let installer = Arc::new(Installer::new(&storage.directories.snap, applied.index, snapshot_metrics));
        let flusher = start_flusher(checkpoint, &registry, &queue, &raft, &installer)?;
        let cluster_handle = ClusterHandle::new(cluster, local);
        let views = machine.store().views();
        let published = Published::new(cluster_handle, AlarmsHandle::default(), space, views);
        let peers = Peers::new(
            PeerConfig {
                local,
                cluster,
                peer_urls: urls::strings(&config.advertise_peer_urls),
                removed: machine.membership().removed().collect(),
                timing: Timing::default(),
            },
            images.clone(),
            installer.clone(),
            Arc::new(Removal(ends.clone())),
            PeerMetrics::register(&registry),
            handle,
        );
        // A member that joins has no membership before its first entries: it must be able to answer those who send them.
        for founder in &founders {
            peers.add_peer(founder.id, &founder.peer_urls);
        }
        for member in machine.membership().members() {
            peers.add_peer(member.id, &member.peer_urls);
        }
        let snapshots = SnapshotPort(Arc::new(SnapshotWork {
            images,
            installer,
            flusher: flusher.clone(),
            raft: raft.clone(),
            database: storage.database(),
            queue: OnceLock::from(queue.clone()),
        }));
        let apply_metrics = ApplyMetrics::register(&registry);
        let apply_thread = apply::thread::start(
            machine,
            queue.clone(),
            ThreadParts {
                raft: raft.clone(),
                flusher: flusher.clone(),
                snapshots: Arc::new(snapshots),
                peers: Arc::new(PeerList { peers: peers.clone(), local }),
                events: None,
                published: published.clone(),
                metrics: apply_metrics.clone(),
                stopwatch: Box::new(move || epoch.elapsed()),
                slow_after: config.warning_apply,
                compaction: CompactionPace {
                    batch: config.compaction_batch_limit,
                    pause: config.compaction_sleep_interval,
                },
            },
        )?;
        let parts = RaftParts {
            log: Box::new(wal),
            state: Arc::new(queue.clone()),
            transport: peers.clone(),
            metrics: RaftMetrics::register(&registry),
            end_process: ends.end_process(),
        };
        let raft_handle = raft::driver::start(&raft_config(config, local), start, parts)?;
        raft.connect(raft_handle.clone());
        peers.set_inbox(Arc::new(raft_handle.clone()));
        let ids = Arc::new(RequestIds::new(local, unix_millis()));
        let timeout = config.request_timeout();
        let proposer = Proposer::new(ProposerParts {
            limits: ProposeLimits {
                request_bytes_max: config.max_request_bytes,
                request_timeout: timeout,
                election_timeout: config.election_timeout,
            },
            ids: ids.clone(),
            raft: raft.clone(),
            desk: desk.clone(),
            queue: queue.clone(),
            published: published.clone(),
            connectivity: Arc::new(Links(peers.clone())),
            metrics: ProposeMetrics::register(&registry),
        });
        let reader = Reader::new(ReaderParts {
            request_timeout: timeout,
            retry: READ_INDEX_RETRY,
            ids,
            raft,
            desk: desk.clone(),
            published: published.clone(),
            metrics: ReadMetrics::register(&registry),
        });
        let mut tasks = JoinSet::new();
        tasks.spawn(reader.clone().run());
        let (removal_desk, removal_ends) = (desk.clone(), ends.clone());
        tasks.spawn(async move {
            removal_desk.until_removed().await;
            removal_ends.end(End::Removed);
        });
        let backend = Arc::new(MemberBackend {
            identity: Identity { member: local, cluster, name: config.name.clone() },
            limits: Limits {
                request_bytes_max: config.max_request_bytes,
                txn_ops_max: config.max_txn_ops,
                quota_backend_bytes: config.quota_backend_bytes,
                request_timeout: timeout,
                election_timeout: config.election_timeout,
                slow_request: config.warning_unary_request,
            },
            proposer: proposer.clone(),
            reader: reader.clone(),
            desk: desk.clone(),
            published: published.clone(),
            queue: queue.clone(),
            flusher: flusher.clone(),
            ranges: apply_metrics.ranges,
        });
        let facts = Facts { backend: backend.clone(), published: published.clone(), reader: reader.clone() };
        let peer_listener = PeerListener::start(&peers, Arc::new(facts), sockets.peer)
            .map_err(|error| Failure::Refused(format!("cannot serve peers: {error}")))?;
        let (publisher, gate) = Publisher::new(
            proposer.clone(),
            desk.clone(),
            local,
            config.name.clone(),
            urls::strings(&config.advertise_client_urls),
        );
        tasks.spawn(publisher.run());
        tasks.spawn(nospace::run(proposer.clone(), desk.clone()));
        let versions = Arc::new(PeerVersions);
        tasks.spawn(version::run(
            proposer.clone(),
            desk.clone(),
            published.cluster.clone(),
            versions,
            version::CHECK_INTERVAL,
        ));
        if let Some(mode) = config.auto_compaction {
            tasks.spawn(compactor::run(mode, proposer, reader, desk.clone()));
        }
        config.features.register(&registry);
        let api = ApiServer::new(backend, &registry, serve_options(config)?);
        for (listener, role) in sockets.client {
            let gate = gate.clone();
            api.serve(listener, role, async move { gate.published().await });
        }
        for (listener, role) in sockets.metrics {
            api.serve(listener, role, std::future::ready(()));
        }
        Ok(Member {
            api,
            tasks,
            gate,
            peer_listener,
            peers,
            raft: raft_handle,
            desk,
            published,
            queue,
            apply_thread,
            flusher,
            local,
            _storage: storage,
        })
    }

    /// Resolves when this member has told the cluster who it is and answers clients.
    pub async fn ready(&self) {
        self.gate.published().await;
    }

    /// Stops everything in order. What was applied is durable in the checkpoint when this returns.
    pub async fn stop(mut self, grace: Duration) -> Result<(), Failure> {
        self.api.stop(grace).await;
        self.hand_over().await;
        self.desk.stop();
        self.tasks.shutdown().await;
        let raft = self.raft.clone();
        let stop_raft = tokio::task::spawn_blocking(move || raft.stop());
        // A panic of the thread was reported by its guard.
        let _ = stop_raft.await;
        self.peer_listener.stop().await;
        self.peers.stop().await;
        let (queue, apply_thread, flusher) = (self.queue, self.apply_thread, self.flusher);
        let rest = tokio::task::spawn_blocking(move || {
            queue.stop();
            // A panic of the thread was reported by its guard.
            let _ = apply_thread.join();
            flusher.stop()
        });
        rest.await.unwrap_or_else(|error| Err(Failure::Refused(format!("cannot stop: {error}"))))
    }

    /// A leader of several voters hands over to the one it has heard longest, so that nobody waits for an election.
    async fn hand_over(&self) {
        let status = self.desk.raft_now().status;
        if status.leader != Some(self.local) {
            return;
        }
        let others = self.published.cluster.voters().into_iter().filter(|voter| *voter != self.local);
        let heard = others.filter_map(|voter| Some((self.peers.active_since(voter)?, voter)));
        let Some((_, heir)) = heard.min() else { return };
        tracing::info!(to = %heir, "handing leadership over before stopping");
        self.raft.transfer_leader(heir);
        let deadline = Instant::now() + HANDOVER_MAX;
        while self.desk.raft_now().status.leader == Some(self.local) && Instant::now() < deadline {
            tokio::time::sleep(HANDOVER_POLL).await;
        }
    }
}

/// A peer says that we were removed.
struct Removal(Ends);

impl PeerEvents for Removal {
    fn removed(&self, by: MemberId) {
        tracing::warn!(%by, "the member has been permanently removed from the cluster");
        self.0.end(End::Removed);
    }
}

fn start_flusher(
    checkpoint: crate::server::checkpoint::store::RedbCheckpoint,
    registry: &Registry,
    queue: &ApplyHandle,
    raft: &Arc<Raft>,
    installer: &Arc<Installer>,
) -> Result<Arc<Flusher>, Failure> {
    let (stored_queue, failed_queue, raft, installer) = (queue.clone(), queue.clone(), raft.clone(), installer.clone());
    let on_stored = move |stored: Stored| {
        // Images that raft did not want are removed once they are overtaken.
        installer.applied(stored.applied.index);
        if let Some(raft) = raft.handle() {
            raft.checkpointed(stored.applied.index, stored.applied.term, stored.applied.conf_state);
        }
        stored_queue.stored(stored.tables, stored.up_to);
    };
    let on_failure = move |failure: Failure| failed_queue.fail(failure);
    let metrics = CheckpointMetrics::register(registry);
    Ok(Arc::new(Flusher::start(Box::new(checkpoint), metrics, on_stored, on_failure)?))
}

fn raft_config(config: &Config, local: MemberId) -> RaftConfig {
    RaftConfig {
        tick: config.heartbeat_interval,
        election_ticks: config.election_ticks(),
        pre_vote: config.pre_vote,
        initial_tick_advance: config.initial_election_tick_advance,
        catch_up: CatchUp { entries: config.snapshot_catchup_entries, ..CatchUp::default() },
        snapshot_entries: config.snapshot_count,
        // Members that start in the same moment must not choose the same timeouts.
        ..RaftConfig::new(local, local.0 ^ unix_millis())
    }
}

fn serve_options(config: &Config) -> Result<ServeOptions, Failure> {
    Ok(ServeOptions {
        access: Access { hosts: config.host_whitelist.clone(), origins: config.cors.clone() },
        streams_max: config.max_concurrent_streams,
        keepalive_interval: config.grpc_keepalive_interval,
        keepalive_timeout: config.grpc_keepalive_timeout,
        connections_max: connections_max().map_err(Failure::Refused)?,
        extensive_metrics: config.extensive_metrics,
    })
}

fn unix_millis() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

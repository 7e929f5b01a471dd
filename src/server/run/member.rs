//! One member, put together: storage, consensus, apply, peers, clients, duties; started in order, stopped in order.
//!
//! ```text
//!  storage ─▶ flusher ─▶ apply (queue) ─▶ peers ─▶ raft ─▶ peer port ─▶ duties ─▶ client port (opens once published)
//! ```
//! A stop goes the other way: clients first, then leadership is handed over, then raft, apply and the flusher, which
//! makes everything durable that was applied.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::OnceLock;
use std::thread::JoinHandle;
use std::time::Duration;
use std::time::Instant;
use std::time::SystemTime;
use std::time::UNIX_EPOCH;

use prometheus::Registry;
use tokio::runtime::Handle;
use tokio::task::JoinSet;

use crate::common::failure::Failure;
use crate::common::ids::ClusterId;
use crate::common::ids::MemberId;
use crate::common::ids::RequestIds;
use crate::common::urls;
use crate::server::api::MESSAGE_OVERHEAD_BYTES;
use crate::server::api::backend::Identity;
use crate::server::api::backend::Limits;
use crate::server::api::http::Access;
use crate::server::api::listener::Listener;
use crate::server::api::server::ApiServer;
use crate::server::api::server::Role;
use crate::server::api::server::ServeOptions;
use crate::server::api::server::connections_max;
use crate::server::apply;
use crate::server::apply::alarm::AlarmsHandle;
use crate::server::apply::machine::Machine;
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
use crate::server::checkpoint::store::RedbCheckpoint;
use crate::server::cluster::handle::ClusterHandle;
use crate::server::company::Company;
use crate::server::config::Config;
use crate::server::duties::compactor;
use crate::server::duties::expiry::ExpiryMetrics;
use crate::server::duties::expiry::Keeper;
use crate::server::duties::expiry::KeeperParts;
use crate::server::duties::integrity::Integrity;
use crate::server::duties::integrity::IntegrityMetrics;
use crate::server::duties::nospace;
use crate::server::duties::publish::PublishGate;
use crate::server::duties::publish::Publisher;
use crate::server::duties::version;
use crate::server::peer::dialer::Dialer;
use crate::server::peer::lease_client::LeaseClient;
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
use crate::server::raft::config::Start;
use crate::server::raft::driver::Parts as RaftParts;
use crate::server::raft::handle::RaftHandle;
use crate::server::raft::metrics::RaftMetrics;
use crate::server::raft::wal::Wal;
use crate::server::raft::wal::WalMetrics;
use crate::server::read::READ_INDEX_RETRY;
use crate::server::read::ReadMetrics;
use crate::server::read::Reader;
use crate::server::read::ReaderParts;
use crate::server::reconfigure::Reconfigurer;
use crate::server::reconfigure::ReconfigurerParts;
use crate::server::run::backend::MemberBackend;
use crate::server::run::ends::End;
use crate::server::run::ends::Ends;
use crate::server::run::facts::Facts;
use crate::server::run::hashes::MemberHashes;
use crate::server::run::hashes::PeerHashes;
use crate::server::run::leases::LeaseRouter;
use crate::server::run::ports::Links;
use crate::server::run::ports::PeerList;
use crate::server::run::ports::Raft;
use crate::server::run::ports::SnapshotPort;
use crate::server::run::ports::SnapshotWork;
use crate::server::run::promotions::PromotionMetrics;
use crate::server::run::promotions::Promotions;
use crate::server::run::sockets::Sockets;
use crate::server::run::storage::Restored;
use crate::server::run::storage::Storage;
use crate::server::run::versions::PeerVersions;
use crate::server::run::watching::HubSink;
use crate::server::run::watching::Watched;
use crate::server::snapshot::install::Installer;
use crate::server::snapshot::metrics::SnapshotMetrics;
use crate::server::snapshot::send::Images;
use crate::server::waiters::Desk;
use crate::server::waiters::DeskMetrics;
use crate::server::watch;
use crate::server::watch::hub::Hub;
use crate::server::watch::metrics::WatchMetrics;
use crate::server::watch::thread::WatchHandle;
use crate::server::watch::thread::WatchThreads;

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
    apply_thread: JoinHandle<()>,
    watch_threads: WatchThreads,
    flusher: Arc<Flusher>,
    local: MemberId,
    /// The lock on the data directory.
    _storage: Storage,
}

/// What a member is started with beside its state.
pub struct Surroundings<'a> {
    pub config: &'a Config,
    pub registry: &'a Registry,
    pub ends: &'a Ends,
    pub integrity: IntegrityMetrics,
    pub dialer: Dialer,
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

/// What the parts share while they are put together.
struct Assembly<'a> {
    config: &'a Config,
    registry: &'a Registry,
    ends: &'a Ends,
    integrity: IntegrityMetrics,
    dialer: Dialer,
    local: MemberId,
    cluster: ClusterId,
    /// Durations are measured from here.
    epoch: Instant,
    desk: Arc<Desk>,
    queue: ApplyHandle,
    company: Arc<Company>,
    raft: Arc<Raft>,
    flusher: Arc<Flusher>,
    images: Arc<Images>,
    /// The member's snapshot directory.
    snap_dir: PathBuf,
    installer: Arc<Installer>,
    published: Published,
    apply_metrics: ApplyMetrics,
    ids: Arc<RequestIds>,
    watches: WatchHandle,
}

impl<'a> Assembly<'a> {
    /// What needs nothing but the restored state: where threads leave word, and the flusher.
    fn new(
        surroundings: &Surroundings<'a>,
        storage: &Storage,
        (local, cluster): (MemberId, ClusterId),
        machine: &Machine,
        checkpoint: RedbCheckpoint,
    ) -> Result<Assembly<'a>, Failure> {
        let Surroundings { config, registry, ends, integrity, dialer } = surroundings;
        let applied = machine.applied().index;
        let desk = Arc::new(Desk::new(applied, DeskMetrics::register(registry)));
        let queue = ApplyHandle::new(desk.clone(), ends.on_failure());
        let raft = Arc::new(Raft::default());
        let snapshot_metrics = SnapshotMetrics::register(registry);
        let images = Arc::new(Images::new(&storage.directories.snap, snapshot_metrics.clone()));
        let installer = Arc::new(Installer::new(&storage.directories.snap, applied, snapshot_metrics));
        let flusher = start_flusher(checkpoint, registry, &queue, &raft, &installer)?;
        let views = machine.store().views();
        Ok(Assembly {
            config,
            registry,
            ends,
            integrity: integrity.clone(),
            dialer: dialer.clone(),
            local,
            cluster,
            epoch: Instant::now(),
            desk,
            queue,
            company: Arc::default(),
            raft,
            flusher,
            images,
            snap_dir: storage.directories.snap.clone(),
            installer,
            published: Published::new(
                ClusterHandle::new(cluster, local),
                AlarmsHandle::default(),
                machine.config().space.clone(),
                views,
            ),
            apply_metrics: ApplyMetrics::register(registry),
            ids: Arc::new(RequestIds::new(local, unix_millis())),
            watches: WatchHandle::default(),
        })
    }

    /// The transport with every member that the state knows. Nothing comes in before raft is connected.
    fn peers(&self, machine: &Machine, founders: &[Founder]) -> Arc<Peers> {
        let peers = Peers::new(
            PeerConfig {
                local: self.local,
                cluster: self.cluster,
                peer_urls: urls::strings(&self.config.advertise_peer_urls),
                dialer: self.dialer.clone(),
                removed: machine.membership().removed().collect(),
                timing: Timing::default(),
            },
            self.images.clone(),
            self.installer.clone(),
            Arc::new(Removal(self.ends.clone())),
            PeerMetrics::register(self.registry),
            Handle::current(),
        );
        // A member that joins has no membership before its first entries: it must be able to answer those who send them.
        for founder in founders {
            peers.add_peer(founder.id, &founder.peer_urls);
        }
        for member in machine.membership().members() {
            peers.add_peer(member.id, &member.peer_urls);
        }
        peers
    }

    fn apply_thread(&self, machine: Machine, peers: &Arc<Peers>, database: PathBuf) -> Result<JoinHandle<()>, Failure> {
        let snapshots = SnapshotPort(Arc::new(SnapshotWork {
            images: self.images.clone(),
            installer: self.installer.clone(),
            flusher: self.flusher.clone(),
            raft: self.raft.clone(),
            database,
            queue: OnceLock::from(self.queue.clone()),
        }));
        let epoch = self.epoch;
        let parts = ThreadParts {
            raft: self.raft.clone(),
            flusher: self.flusher.clone(),
            snapshots: Arc::new(snapshots),
            peers: Arc::new(PeerList { peers: peers.clone(), local: self.local }),
            events: Some(Arc::new(HubSink(self.watches.clone()))),
            published: self.published.clone(),
            metrics: self.apply_metrics.clone(),
            stopwatch: Box::new(move || epoch.elapsed()),
            slow_after: self.config.warning_apply,
            compaction: CompactionPace {
                batch: self.config.compaction_batch_limit,
                pause: self.config.compaction_sleep_interval,
            },
        };
        apply::thread::start(machine, self.queue.clone(), parts)
    }

    /// The watch hub and the thread that reads history for it.
    fn watch_threads(&self) -> Result<WatchThreads, Failure> {
        let fragment_bytes = self.config.max_request_bytes.saturating_add(MESSAGE_OVERHEAD_BYTES);
        let hub = Hub::new(self.cluster, self.local, fragment_bytes);
        let watched = Watched { published: self.published.clone(), desk: self.desk.clone(), queue: self.queue.clone() };
        watch::thread::start(&self.watches, hub, Arc::new(watched), WatchMetrics::register(self.registry))
    }

    /// Starts raft and connects everybody who waited for it.
    fn raft_thread(&self, mut wal: Wal, start: Start, peers: &Arc<Peers>) -> Result<RaftHandle, Failure> {
        let epoch = self.epoch;
        wal.measure(WalMetrics::register(self.registry), Box::new(move || epoch.elapsed()));
        let parts = RaftParts {
            log: Box::new(wal),
            state: Arc::new(self.queue.clone()),
            transport: peers.clone(),
            metrics: RaftMetrics::register(self.registry),
            end_process: self.ends.end_process(),
        };
        let handle = raft::driver::start(&raft_config(self.config, self.local), start, parts)?;
        self.raft.connect(handle.clone());
        peers.set_inbox(Arc::new(handle.clone()));
        Ok(handle)
    }

    fn proposer(&self, peers: &Arc<Peers>) -> Proposer {
        Proposer::new(ProposerParts {
            limits: ProposeLimits {
                request_bytes_max: self.config.max_request_bytes,
                request_timeout: self.config.request_timeout(),
                election_timeout: self.config.election_timeout,
            },
            ids: self.ids.clone(),
            raft: self.raft.clone(),
            desk: self.desk.clone(),
            queue: self.queue.clone(),
            company: self.company.clone(),
            published: self.published.clone(),
            connectivity: Arc::new(Links(peers.clone())),
            metrics: ProposeMetrics::register(self.registry),
        })
    }

    fn reader(&self) -> Reader {
        Reader::new(ReaderParts {
            request_timeout: self.config.request_timeout(),
            retry: READ_INDEX_RETRY,
            ids: self.ids.clone(),
            raft: self.raft.clone(),
            desk: self.desk.clone(),
            published: self.published.clone(),
            metrics: ReadMetrics::register(self.registry),
        })
    }

    fn keeper(&self, proposer: &Proposer, reader: &Reader) -> Keeper {
        Keeper::new(KeeperParts {
            election_timeout: self.config.election_timeout,
            request_timeout: self.config.request_timeout(),
            checkpoints: self.config.features.is_on("LeaseCheckpoint"),
            proposer: proposer.clone(),
            reader: reader.clone(),
            raft: self.raft.clone(),
            desk: self.desk.clone(),
            published: self.published.clone(),
            queue: self.queue.clone(),
            metrics: ExpiryMetrics::register(self.registry),
        })
    }

    fn backend(&self, proposer: &Proposer, reader: &Reader, keeper: &Keeper, peers: &Arc<Peers>) -> Arc<MemberBackend> {
        let config = self.config;
        let reconfigurer = Arc::new(Reconfigurer::new(ReconfigurerParts {
            strict: config.strict_reconfig_check,
            election_timeout: config.election_timeout,
            proposer: proposer.clone(),
            raft: self.raft.clone(),
            desk: self.desk.clone(),
            cluster: self.published.cluster.clone(),
            connectivity: Arc::new(Links(peers.clone())),
        }));
        let promotions = Promotions {
            dialer: self.dialer.clone(),
            reconfigurer: reconfigurer.clone(),
            desk: self.desk.clone(),
            cluster: self.published.cluster.clone(),
            request_timeout: config.request_timeout(),
            metrics: PromotionMetrics::register(self.registry),
        };
        let leases = LeaseRouter {
            keeper: keeper.clone(),
            client: LeaseClient::new(self.dialer.clone()),
            desk: self.desk.clone(),
            cluster: self.published.cluster.clone(),
            request_timeout: config.request_timeout(),
        };
        Arc::new(MemberBackend {
            identity: Identity { member: self.local, cluster: self.cluster, name: config.name.clone() },
            limits: Limits {
                request_bytes_max: config.max_request_bytes,
                txn_ops_max: config.max_txn_ops,
                quota_backend_bytes: config.quota_backend_bytes,
                request_timeout: config.request_timeout(),
                election_timeout: config.election_timeout,
                progress_interval: config.watch_progress_interval,
                slow_request: config.warning_unary_request,
            },
            proposer: proposer.clone(),
            reader: reader.clone(),
            leases,
            reconfigurer,
            promotions,
            desk: self.desk.clone(),
            published: self.published.clone(),
            queue: self.queue.clone(),
            flusher: self.flusher.clone(),
            snap_dir: self.snap_dir.clone(),
            watches: self.watches.clone(),
            ranges: self.apply_metrics.ranges.clone(),
        })
    }

    /// Everything this member does unasked, and the gate that opens once it has published itself.
    fn duties(&self, proposer: &Proposer, reader: &Reader, keeper: Keeper) -> (JoinSet<()>, PublishGate) {
        let mut tasks = JoinSet::new();
        tasks.spawn(keeper.run());
        tasks.spawn(reader.clone().run());
        let (desk, ends) = (self.desk.clone(), self.ends.clone());
        tasks.spawn(async move {
            desk.until_removed().await;
            ends.end(End::Removed);
        });
        let (publisher, gate) = Publisher::new(
            proposer.clone(),
            self.desk.clone(),
            self.local,
            self.config.name.clone(),
            urls::strings(&self.config.advertise_client_urls),
        );
        tasks.spawn(publisher.run());
        tasks.spawn(nospace::run(proposer.clone(), self.desk.clone()));
        tasks.spawn(version::run(
            proposer.clone(),
            self.desk.clone(),
            self.published.cluster.clone(),
            Arc::new(PeerVersions(self.dialer.clone())),
            version::CHECK_INTERVAL,
        ));
        if let Some(mode) = self.config.auto_compaction {
            tasks.spawn(compactor::run(mode, proposer.clone(), reader.clone(), self.desk.clone()));
        }
        (tasks, gate)
    }

    /// Comparisons of this member with the others, as far as the operator wants them (server.md 6.9).
    fn integrity_checks(
        &self,
        tasks: &mut JoinSet<()>,
        proposer: &Proposer,
        reader: &Reader,
        backend: &Arc<MemberBackend>,
    ) {
        let (dialer, timeout) = (self.dialer.clone(), self.config.request_timeout());
        let peers = PeerHashes { dialer, cluster: self.cluster, timeout };
        let integrity = Integrity {
            proposer: proposer.clone(),
            reader: reader.clone(),
            desk: self.desk.clone(),
            published: self.published.clone(),
            source: Arc::new(MemberHashes { backend: backend.clone(), peers }),
            metrics: self.integrity.clone(),
        };
        if !self.config.corrupt_check_time.is_zero() {
            tasks.spawn(integrity.clone().run_periodic(self.config.corrupt_check_time));
        }
        if self.config.features.is_on("CompactHashCheck") {
            tasks.spawn(integrity.run_compactions(self.config.compact_hash_check_time));
        }
    }

    /// The client and metrics ports. Clients are answered once the gate opens, scrapes at once.
    fn api(
        &self,
        backend: Arc<MemberBackend>,
        client: Vec<(Listener, Role)>,
        metrics: Vec<(Listener, Role)>,
        gate: &PublishGate,
    ) -> Result<Arc<ApiServer>, Failure> {
        self.config.features.register(self.registry);
        let api = ApiServer::new(backend, self.registry, serve_options(self.config, self.company.clone())?);
        for (listener, role) in client {
            let gate = gate.clone();
            api.serve(listener, role, async move { gate.published().await });
        }
        for (listener, role) in metrics {
            api.serve(listener, role, std::future::ready(()));
        }
        Ok(api)
    }
}

impl Member {
    /// Starts every part on what `storage` gave. Nothing is served to clients before this member has published itself.
    pub fn start(
        surroundings: &Surroundings<'_>,
        storage: Storage,
        restored: Restored,
        founders: &[Founder],
        sockets: Sockets,
    ) -> Result<Member, Failure> {
        let Restored { local, cluster, wal, start, machine, checkpoint } = restored;
        let assembly = Assembly::new(surroundings, &storage, (local, cluster), &machine, checkpoint)?;
        let peers = assembly.peers(&machine, founders);
        let apply_thread = assembly.apply_thread(machine, &peers, storage.database())?;
        let watch_threads = assembly.watch_threads()?;
        let raft = assembly.raft_thread(wal, start, &peers)?;
        let (proposer, reader) = (assembly.proposer(&peers), assembly.reader());
        let keeper = assembly.keeper(&proposer, &reader);
        let backend = assembly.backend(&proposer, &reader, &keeper, &peers);
        let facts = Facts { backend: backend.clone(), published: assembly.published.clone(), reader: reader.clone() };
        let peer_listener = PeerListener::start(&peers, Arc::new(facts), sockets.peer)
            .map_err(|error| Failure::Refused(format!("cannot serve peers: {error}")))?;
        let (mut tasks, gate) = assembly.duties(&proposer, &reader, keeper);
        assembly.integrity_checks(&mut tasks, &proposer, &reader, &backend);
        let api = assembly.api(backend, sockets.client, sockets.metrics, &gate)?;
        let Assembly { desk, published, queue, flusher, .. } = assembly;
        Ok(Member {
            api,
            tasks,
            gate,
            peer_listener,
            peers,
            raft,
            desk,
            published,
            queue,
            apply_thread,
            watch_threads,
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
        let watch_threads = self.watch_threads;
        let rest = tokio::task::spawn_blocking(move || {
            queue.stop();
            // A panic of the thread was reported by its guard.
            let _ = apply_thread.join();
            watch_threads.stop();
            flusher.stop()
        });
        rest.await.unwrap_or_else(|error| Err(Failure::Refused(format!("cannot stop: {error}"))))
    }

    /// A leader of several voters hands over to the one it has heard longest, so that nobody waits for an election. Where
    /// all members stop at once the heir may go before it is one; then it is the next one's turn, until nobody is heard.
    async fn hand_over(&self) {
        let voters = self.published.cluster.voters();
        let heir_now = || {
            let others = voters.iter().filter(|voter| **voter != self.local);
            others.filter_map(|voter| Some((self.peers.active_since(*voter)?, *voter))).min()
        };
        let mut asked = None;
        let deadline = Instant::now() + HANDOVER_MAX;
        while self.desk.raft_now().status.leader == Some(self.local) && Instant::now() < deadline {
            // One that was lost and came again is asked again: it may have started anew.
            if asked.is_none_or(|(since, voter)| self.peers.active_since(voter) != Some(since)) {
                let Some((since, heir)) = heir_now() else { return };
                tracing::info!(to = %heir, "handing leadership over before stopping");
                self.raft.transfer_leader(heir);
                asked = Some((since, heir));
            }
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
    checkpoint: RedbCheckpoint,
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

fn serve_options(config: &Config, company: Arc<Company>) -> Result<ServeOptions, Failure> {
    Ok(ServeOptions {
        access: Access { hosts: config.host_whitelist.clone(), origins: config.cors.clone() },
        streams_max: config.max_concurrent_streams,
        keepalive_interval: config.grpc_keepalive_interval,
        keepalive_timeout: config.grpc_keepalive_timeout,
        connections_max: connections_max().map_err(Failure::Refused)?,
        extensive_metrics: config.extensive_metrics,
        company,
    })
}

fn unix_millis() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

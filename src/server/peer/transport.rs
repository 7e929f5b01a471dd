//! All peers of this member: who they are, how a message finds its way to one, and what came in from one.
//!
//! `Peers` is raft's `Transport`: `send` runs on the raft thread and only puts messages into bounded queues; tasks on
//! the runtime do the rest. Raft's inbox is set afterwards with `set_inbox`, because raft is built with the transport
//! in hand; until then what comes in is dropped. `listener` shares everything here.

use std::collections::BTreeMap;
use std::collections::BTreeSet;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::PoisonError;
use std::sync::RwLock;
use std::sync::atomic::AtomicBool;
use std::time::Instant;

use arc_swap::ArcSwap;
use http::Method;
use http::Request;
use tokio::runtime::Handle;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use crate::common::ids::ClusterId;
use crate::common::ids::MemberId;
use crate::proto::raft_numbers::MSG_APP;
use crate::proto::raft_numbers::MSG_SNAP;
use crate::proto::raftpb::Message;
use crate::server::peer::codec::StreamKind;
use crate::server::peer::dialer::Dialer;
use crate::server::peer::headers;
use crate::server::peer::http_client::Body;
use crate::server::peer::inbox::LateInbox;
use crate::server::peer::metrics::OnePeer;
use crate::server::peer::metrics::PeerMetrics;
use crate::server::peer::metrics::SnapshotMetrics;
use crate::server::peer::pipeline;
use crate::server::peer::pipeline::Pipeline;
use crate::server::peer::probe;
use crate::server::peer::remote_urls::RemoteUrls;
use crate::server::peer::snapshot_out;
use crate::server::peer::status::Status;
use crate::server::peer::stream_in;
use crate::server::peer::stream_out::Link;
use crate::server::peer::stream_out::Slot;
use crate::server::peer::timing::Timing;
use crate::server::peer::validate::Expected;
use crate::server::peer::validate::Refusal;
use crate::server::peer::validate::Way;
use crate::server::peer::validate::validate;
use crate::server::raft::state_machine::Inbox;
use crate::server::raft::state_machine::Transport;
use crate::server::snapshot::ImageSink;
use crate::server::snapshot::ImageSource;

/// Senders that are no members here yet, whose addresses are kept so that they can be answered. More are forgotten.
const REMOTES_MAX: usize = 16;

/// Who we are to peers.
#[derive(Clone, Debug)]
pub struct PeerConfig {
    pub local: MemberId,
    pub cluster: ClusterId,
    /// Our own advertised peer URLs.
    pub peer_urls: Vec<String>,
    pub dialer: Dialer,
    /// Members removed earlier, by the membership this member starts with.
    pub removed: Vec<MemberId>,
    pub timing: Timing,
}

/// What peers tell the member as a whole.
pub trait PeerEvents: Send + Sync {
    /// `by` says that this member was removed from the cluster for good: it has to stop. May come more than once.
    fn removed(&self, by: MemberId);
}

/// The transport. Cheap to share; `stop` ends all it started.
pub struct Peers {
    pub(super) shared: Arc<Shared>,
}

/// What every task of the peer protocol may use.
pub(super) struct Shared {
    pub local: MemberId,
    pub cluster: ClusterId,
    pub timing: Timing,
    pub dialer: Dialer,
    pub handle: Handle,
    pub inbox: LateInbox,
    pub images: Arc<dyn ImageSource>,
    pub sink: Arc<dyn ImageSink>,
    pub events: Arc<dyn PeerEvents>,
    pub metrics: PeerMetrics,
    pub snapshot_sends: Arc<Semaphore>,
    pub snapshot_receives: Arc<Semaphore>,
    own_urls: RwLock<Vec<String>>,
    table: ArcSwap<Table>,
    /// Held while the table is replaced; readers never wait for it.
    table_writer: Mutex<()>,
}

/// Who is who; replaced as a whole.
#[derive(Clone, Default)]
struct Table {
    members: BTreeMap<MemberId, Arc<Peer>>,
    /// Senders unknown so far: no streams, only answers by POST (server.md 14.2).
    remotes: BTreeMap<MemberId, Arc<Peer>>,
    removed: BTreeSet<MemberId>,
    stopped: bool,
}

/// One other member.
pub(super) struct Peer {
    pub id: MemberId,
    pub urls: RemoteUrls,
    pub status: Arc<Status>,
    pub metrics: OnePeer,
    pub snapshot_metrics: SnapshotMetrics,
    pub pipeline: Pipeline,
    pub sends_snapshot: AtomicBool,
    messages: Arc<Slot>,
    appends: Arc<Slot>,
    tasks: Mutex<Tasks>,
}

/// Tasks hold the peer and the peer holds its tasks, until `close` aborts them; after that none is started.
#[derive(Default)]
struct Tasks {
    set: JoinSet<()>,
    closed: bool,
}

impl Peers {
    /// A transport without peers. Nothing is sent or dialed before `add_peer`, nothing reaches raft before `set_inbox`.
    pub fn new(
        config: PeerConfig,
        images: Arc<dyn ImageSource>,
        sink: Arc<dyn ImageSink>,
        events: Arc<dyn PeerEvents>,
        metrics: PeerMetrics,
        handle: Handle,
    ) -> Arc<Peers> {
        metrics.set_known(config.local, config.local, true);
        let removed = config.removed.into_iter().collect();
        let shared = Shared {
            local: config.local,
            cluster: config.cluster,
            timing: config.timing,
            dialer: config.dialer,
            handle,
            inbox: LateInbox::default(),
            images,
            sink,
            events,
            metrics,
            snapshot_sends: Arc::new(Semaphore::new(snapshot_out::SENDS_MAX)),
            snapshot_receives: Arc::new(Semaphore::new(1)),
            own_urls: RwLock::new(config.peer_urls),
            table: ArcSwap::from_pointee(Table { removed, ..Table::default() }),
            table_writer: Mutex::default(),
        };
        Arc::new(Peers { shared: Arc::new(shared) })
    }

    /// Connects raft. Only the first call counts.
    pub fn set_inbox(&self, inbox: Arc<dyn Inbox>) {
        self.shared.inbox.set(inbox);
    }

    /// Starts talking to a member. Does nothing for ourselves, for a removed member, and for one that is there already
    /// (its addresses are then replaced).
    pub fn add_peer(&self, id: MemberId, urls: &[String]) {
        if id == self.shared.local {
            return;
        }
        let known = self.shared.table.load().members.get(&id).cloned();
        match known {
            Some(peer) => peer.urls.replace(urls),
            None => self.shared.add_member(id, urls),
        }
    }

    /// Replaces the addresses of a member, of ourselves too.
    pub fn update_peer(&self, id: MemberId, urls: &[String]) {
        if id == self.shared.local {
            urls.clone_into(&mut self.shared.own_urls.write().unwrap_or_else(PoisonError::into_inner));
        } else if let Some(peer) = self.shared.table.load().members.get(&id) {
            peer.urls.replace(urls);
        }
    }

    /// Stops talking to a member for good: from now on its streams get 410 and its messages 500.
    pub fn remove_peer(&self, id: MemberId) {
        let (member, remote) = self.shared.change(|table| {
            table.removed.insert(id);
            (table.members.remove(&id), table.remotes.remove(&id))
        });
        for peer in [member, remote].into_iter().flatten() {
            peer.close();
        }
        self.shared.metrics.set_known(self.shared.local, id, false);
    }

    /// The members we talk to, ascending.
    pub fn peer_ids(&self) -> Vec<MemberId> {
        self.shared.table.load().members.keys().copied().collect()
    }

    /// Since when a member is heard without a break. `None` for one that is not, and for ourselves.
    pub fn active_since(&self, id: MemberId) -> Option<Instant> {
        self.shared.table.load().members.get(&id).and_then(|peer| peer.status.active_since())
    }

    /// Ends every task and connection towards peers. Messages sent afterwards are dropped.
    pub async fn stop(&self) {
        let peers: Vec<Arc<Peer>> = self.shared.change(|table| {
            table.stopped = true;
            let members = std::mem::take(&mut table.members);
            members.into_values().chain(std::mem::take(&mut table.remotes).into_values()).collect()
        });
        for peer in peers {
            let mut tasks = peer.close();
            tasks.shutdown().await;
        }
    }
}

impl Transport for Peers {
    fn send(&self, messages: Vec<Message>) {
        let table = self.shared.table.load();
        for message in messages {
            let to = MemberId(message.to);
            match table.members.get(&to).or_else(|| table.remotes.get(&to)) {
                Some(peer) => self.shared.route(peer, message),
                // Raft waits for the outcome of a snapshot, and for nothing else.
                None if message.r#type == MSG_SNAP => self.shared.inbox.report_snapshot(to, false),
                None => tracing::debug!(%to, "no address for a message"),
            }
        }
    }
}

impl Shared {
    /// Routing of server.md 14.2. A full queue drops: raft repeats what matters once it knows.
    fn route(self: &Arc<Shared>, peer: &Arc<Peer>, message: Message) {
        let stream = match message.r#type {
            MSG_SNAP => return snapshot_out::start(self, peer, message),
            MSG_APP => peer.appends.stream().or_else(|| peer.messages.stream()),
            _ => peer.messages.stream(),
        };
        let sent = match stream {
            Some(stream) => stream.push(message),
            None => peer.pipeline.push(message),
        };
        if !sent {
            peer.unsent(self);
        }
    }

    /// A message read from the stream of `peer`.
    pub fn accept_from_stream(&self, message: Message, peer: &Peer) {
        if let Err(refusal) = self.accept(message, Some(peer.id)) {
            peer.metrics.received_failures.inc();
            tracing::debug!(peer = %peer.id, %refusal, "message from peer is refused");
        }
    }

    /// Gives a message to raft, if it may pass. `peer` is who sent it, as far as known.
    pub fn accept(&self, mut message: Message, peer: Option<MemberId>) -> Result<(), Refusal> {
        self.check(&mut message, peer, Way::Stream)?;
        self.inbox.step(message);
        Ok(())
    }

    /// Whether a message may pass; a refusal is counted.
    pub fn check(&self, message: &mut Message, peer: Option<MemberId>, way: Way) -> Result<(), Refusal> {
        let outcome = if self.is_removed(MemberId(message.from)) || peer.is_some_and(|peer| self.is_removed(peer)) {
            Err(Refusal::Removed)
        } else {
            validate(message, Expected { local: self.local, peer, way })
        };
        outcome.inspect_err(|refusal| self.metrics.count_refusal(*refusal))
    }

    pub fn is_removed(&self, member: MemberId) -> bool {
        self.table.load().removed.contains(&member)
    }

    pub fn member(&self, member: MemberId) -> Option<Arc<Peer>> {
        self.table.load().members.get(&member).cloned()
    }

    /// A request that says who we are.
    pub fn request(&self, method: Method, path: &str, body: Body) -> Request<Body> {
        let mut request = Request::new(body);
        *request.method_mut() = method;
        *request.uri_mut() = path.parse().expect("paths are made of constants and hex digits");
        let own_urls = self.own_urls.read().unwrap_or_else(PoisonError::into_inner);
        headers::sign(request.headers_mut(), self.local, self.cluster, &own_urls);
        request
    }

    fn add_member(self: &Arc<Shared>, id: MemberId, urls: &[String]) {
        let peer = self.new_peer(id, urls);
        let (added, remote) = self.change(|table| {
            if table.stopped || table.removed.contains(&id) || table.members.contains_key(&id) {
                return (false, None);
            }
            table.members.insert(id, Arc::clone(&peer));
            (true, table.remotes.remove(&id))
        });
        if let Some(remote) = remote {
            remote.close();
        }
        if !added {
            return;
        }
        self.metrics.set_known(self.local, id, true);
        for kind in StreamKind::ALL {
            peer.spawn(&self.handle, Box::pin(stream_in::run(Arc::clone(self), Arc::clone(&peer), kind)));
        }
        peer.spawn(&self.handle, Box::pin(probe::run(Arc::clone(self), Arc::clone(&peer))));
        self.start_workers(&peer);
        tracing::info!(peer = %id, ?urls, "added peer");
    }

    /// Keeps the addresses of a sender that is no member here yet. A new member that is behind must be able to answer
    /// the leader before it has learned who that is.
    pub fn remember(self: &Arc<Shared>, id: MemberId, urls: &[String]) {
        let full = |table: &Table| {
            let known = table.members.contains_key(&id) || table.remotes.contains_key(&id);
            known || table.stopped || table.removed.contains(&id) || table.remotes.len() >= REMOTES_MAX
        };
        if urls.is_empty() || id == self.local || id.0 == 0 || full(&self.table.load()) {
            return;
        }
        let peer = self.new_peer(id, urls);
        let added = self.change(|table| {
            let add = !full(table);
            if add {
                table.remotes.insert(id, Arc::clone(&peer));
            }
            add
        });
        if added {
            self.start_workers(&peer);
            tracing::info!(peer = %id, ?urls, "remembers the addresses of a sender that is no member yet");
        }
    }

    fn start_workers(self: &Arc<Shared>, peer: &Arc<Peer>) {
        for _ in 0..pipeline::WORKERS {
            peer.spawn(&self.handle, Box::pin(pipeline::run(Arc::clone(self), Arc::clone(peer))));
        }
    }

    fn new_peer(&self, id: MemberId, urls: &[String]) -> Arc<Peer> {
        let metrics = self.metrics.of_peer(self.local, id);
        let link = Link {
            local: self.local,
            peer: id,
            inbox: self.inbox.clone(),
            metrics: metrics.clone(),
            timing: self.timing,
        };
        Arc::new(Peer {
            id,
            urls: RemoteUrls::new(urls),
            status: Status::new(id, metrics.clone()),
            metrics,
            snapshot_metrics: self.metrics.of_snapshot_to(id),
            pipeline: Pipeline::new(),
            sends_snapshot: AtomicBool::new(false),
            messages: Slot::new(StreamKind::Message, &link),
            appends: Slot::new(StreamKind::Append, &link),
            tasks: Mutex::default(),
        })
    }

    fn change<T>(&self, change: impl FnOnce(&mut Table) -> T) -> T {
        let _writer = self.table_writer.lock().unwrap_or_else(PoisonError::into_inner);
        let mut table = Table::clone(&self.table.load());
        let outcome = change(&mut table);
        self.table.store(Arc::new(table));
        outcome
    }
}

impl Peer {
    pub fn slot(&self, kind: StreamKind) -> &Arc<Slot> {
        match kind {
            StreamKind::Message => &self.messages,
            StreamKind::Append => &self.appends,
        }
    }

    /// A message to this peer was dropped.
    pub fn unsent(&self, shared: &Shared) {
        self.metrics.sent_failures.inc();
        shared.inbox.report_unreachable(self.id);
    }

    /// Runs a task until it ends or the peer goes away.
    pub fn spawn(&self, handle: &Handle, task: Pin<Box<dyn Future<Output = ()> + Send>>) {
        let mut tasks = self.tasks.lock().unwrap_or_else(PoisonError::into_inner);
        while tasks.set.try_join_next().is_some() {}
        if !tasks.closed {
            tasks.set.spawn_on(task, handle);
        }
    }

    /// Ends streams and tasks: they are aborted now, and gone once the returned set was awaited.
    fn close(&self) -> JoinSet<()> {
        self.messages.close();
        self.appends.close();
        let mut tasks = self.tasks.lock().unwrap_or_else(PoisonError::into_inner);
        tasks.closed = true;
        let mut set = std::mem::take(&mut tasks.set);
        set.abort_all();
        set
    }
}

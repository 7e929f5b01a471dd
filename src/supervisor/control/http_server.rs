//! The listening side of the project's socket: HTTP/1.1 and JSON for whoever may open it, which is our user alone.
//!
//! Nothing here owns a truth: what processes are and do is asked of the loop by `Handle`; /proc and the members are asked
//! here, so that a slow member holds up no more than the one answer that wants it.

use std::collections::hash_map::RandomState;
use std::convert::Infallible;
use std::hash::BuildHasher;
use std::hash::Hasher;
use std::pin::pin;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::PoisonError;
use std::time::Duration;
use std::time::Instant;

use bytes::Bytes;
use futures_util::StreamExt;
use futures_util::future::join_all;
use futures_util::stream;
use http::Method;
use http::Request;
use http::Response;
use http::StatusCode;
use http::header::CONNECTION;
use http::header::CONTENT_TYPE;
use http::header::HeaderValue;
use http::header::UPGRADE;
use http_body_util::BodyExt;
use http_body_util::Full;
use http_body_util::Limited;
use http_body_util::StreamBody;
use http_body_util::combinators::UnsyncBoxBody;
use hyper::body::Frame;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use hyper_util::rt::TokioTimer;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::io::AsyncRead;
use tokio::io::AsyncWrite;
use tokio::net::TcpListener;
use tokio::net::TcpStream;
use tokio::net::UnixListener;
use tokio::net::UnixStream;
use tokio::sync::watch;
use tokio::task::JoinSet;

use crate::common::version::QUORATE_VERSION;
use crate::supervisor::control::campaigns::Campaigns;
use crate::supervisor::control::campaigns::Scene;
use crate::supervisor::control::messages::ActionAnswer;
use crate::supervisor::control::messages::ActionRequest;
use crate::supervisor::control::messages::EndRequest;
use crate::supervisor::control::messages::LinkAnswer;
use crate::supervisor::control::messages::ProcessStatus;
use crate::supervisor::control::messages::Refusal;
use crate::supervisor::control::messages::ReloadRequest;
use crate::supervisor::control::messages::Reloading;
use crate::supervisor::control::messages::Status;
use crate::supervisor::control::messages::SupervisorView;
use crate::supervisor::control::query::Query;
use crate::supervisor::control::streams;
use crate::supervisor::control::streams::Wanted;
use crate::supervisor::control::token::Token;
use crate::supervisor::control::vocabulary::Action;
use crate::supervisor::control::vocabulary::Ending;
use crate::supervisor::control::vocabulary::Handle;
use crate::supervisor::control::vocabulary::NamedResult;
use crate::supervisor::control::vocabulary::ProcessView;
use crate::supervisor::control::vocabulary::Requester;
use crate::supervisor::journal::Journal;
use crate::supervisor::journal::What;
use crate::supervisor::links::LinkRequest;
use crate::supervisor::links::Links;
use crate::supervisor::links::NO_RELAYS;
use crate::supervisor::members::Member;
use crate::supervisor::members::MemberStatus;
use crate::supervisor::output::Output;
use crate::supervisor::output::attach;
use crate::supervisor::procinfo::GroupInfo;
use crate::supervisor::procinfo::Listeners;
use crate::supervisor::procinfo::Table;
use crate::supervisor::project::Holder;
use crate::supervisor::reload::Definition;
use crate::supervisor::rolling::RollingRequest;
use crate::supervisor::roster::Change;
use crate::supervisor::roster::Place;
use crate::supervisor::roster::Roster;
use crate::supervisor::roster::RosterRequest;
use crate::supervisor::targets;
use crate::supervisor::targets::Candidate;
use crate::supervisor::targets::Role;
use crate::supervisor::targets::TargetError;

/// Open connections. More are accepted and closed: followers of logs are few, and each costs memory.
const CONNECTIONS_MAX: usize = 64;
const ACCEPT_PAUSE: Duration = Duration::from_millis(10);
/// Longest request: a few names.
const BODY_BYTES_MAX: usize = 1 << 20;
/// How long a caller may take to say what he wants.
const HEADER_PATIENCE: Duration = Duration::from_secs(10);
/// What a member may take to say how it is, before its columns stay empty.
pub const MEMBER_BUDGET: Duration = Duration::from_millis(300);
/// What a member may take to serve a read, when somebody asks whether the cluster works.
const READ_BUDGET: Duration = Duration::from_secs(2);
/// What a member may take to say what it is, before it counts as nothing: somebody is about to act on it.
const ROLE_BUDGET: Duration = Duration::from_secs(1);
/// How long an election is waited for when somebody asks for the leader.
const ROLE_PATIENCE: Duration = Duration::from_secs(5);
/// Between two looks for a leader.
const ROLE_POLL: Duration = Duration::from_millis(50);
/// CPU use is that of this time, unless somebody asked not long before.
const CPU_SAMPLE: Duration = Duration::from_millis(100);
/// A sample that is older than this says nothing about now.
const CPU_SAMPLE_AGE_MAX: Duration = Duration::from_secs(10);

type Body = UnsyncBoxBody<Bytes, Infallible>;

/// What is known of a process of the Procfile before it runs.
#[derive(Clone, Debug)]
pub struct Entry {
    pub name: String,
    /// What it finds in its environment beside what we were started with.
    pub environment: Vec<(String, String)>,
    pub member: Option<Member>,
    /// Its settings name what a start with clean data removes.
    pub has_data_dir: bool,
}

/// What the files say when they are read again.
pub struct Reread {
    pub definitions: Vec<Definition>,
    pub entries: Vec<Entry>,
    /// Sentences with file and line.
    pub warnings: Vec<String>,
}

/// Reads them: the error is a sentence with file and line.
pub type Reader = Arc<dyn Fn() -> Result<Reread, String> + Send + Sync>;

/// What the socket serves, and from what.
pub struct Sources {
    pub handle: Handle,
    pub holder: Holder,
    /// Until a reload.
    pub entries: Vec<Entry>,
    pub reader: Reader,
    pub output: Output,
    pub journal: Journal,
    /// `None` where no member has a relay.
    pub links: Option<Links>,
}

/// Where callers come in.
trait Door: Send + Sync {
    type Stream: AsyncRead + AsyncWrite + Send + Unpin + 'static;

    /// The next one, and who it is, where the kernel says so.
    fn admit(&self) -> impl Future<Output = std::io::Result<(Self::Stream, Requester)>> + Send;
}

impl Door for UnixListener {
    type Stream = UnixStream;

    async fn admit(&self) -> std::io::Result<(UnixStream, Requester)> {
        let (stream, _) = self.accept().await?;
        let by = match stream.peer_cred() {
            Ok(peer) => Requester { pid: peer.pid(), uid: Some(peer.uid()) },
            Err(_) => Requester::default(),
        };
        Ok((stream, by))
    }
}

impl Door for TcpListener {
    type Stream = TcpStream;

    async fn admit(&self) -> std::io::Result<(TcpStream, Requester)> {
        Ok((self.accept().await?.0, Requester::default()))
    }
}

/// The server's side of all connections.
pub struct Control {
    sources: Sources,
    entries: Mutex<Arc<Vec<Entry>>>,
    started: Instant,
    stop: watch::Receiver<bool>,
    campaigns: Campaigns,
    /// Members are changed one at a time.
    turn: Arc<tokio::sync::Mutex<()>>,
    /// The last look at /proc, for CPU use.
    sample: Mutex<Option<(Instant, Arc<Table>)>>,
}

/// An answer that is no success.
struct Refused(StatusCode, String);

impl From<Ending> for Refused {
    fn from(ending: Ending) -> Refused {
        Refused(StatusCode::SERVICE_UNAVAILABLE, ending.to_string())
    }
}

impl Control {
    /// One that serves until `stop` says so.
    pub fn new(mut sources: Sources, stop: watch::Receiver<bool>) -> Control {
        let entries = Mutex::new(Arc::new(std::mem::take(&mut sources.entries)));
        let (started, campaigns, sample) = (Instant::now(), Campaigns::default(), Mutex::new(None));
        Control { sources, entries, started, stop, campaigns, turn: Arc::default(), sample }
    }

    /// The processes of the Procfile as it was read last.
    fn entries(&self) -> Arc<Vec<Entry>> {
        // Each assignment leaves a whole list.
        Arc::clone(&self.entries.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Serves until the stop, and then until the answers that are owed have left.
    pub async fn serve(self: Arc<Self>, listener: UnixListener) {
        self.serve_all(listener, None).await;
    }

    /// The same on a port, for whoever has the token.
    pub async fn serve_with_token(self: Arc<Self>, listener: TcpListener, token: Token) {
        self.serve_all(listener, Some(token)).await;
    }

    async fn serve_all<D: Door>(self: Arc<Self>, door: D, token: Option<Token>) {
        let mut stop = self.stop.clone();
        let mut connections = JoinSet::new();
        loop {
            tokio::select! {
                () = is_over(&mut stop) => break,
                accepted = door.admit() => match accepted {
                    Ok((stream, by)) if connections.len() < CONNECTIONS_MAX => {
                        connections.spawn(Arc::clone(&self).serve_connection(stream, by, token.clone()));
                    }
                    // Too many: whoever asks next may have more luck.
                    Ok(_) => {}
                    // Out of descriptors, most likely: some may be free a little later.
                    Err(_) => tokio::time::sleep(ACCEPT_PAUSE).await,
                },
                Some(_) = connections.join_next() => {}
            }
        }
        while connections.join_next().await.is_some() {}
    }

    async fn serve_connection<S: AsyncRead + AsyncWrite + Send + Unpin + 'static>(
        self: Arc<Self>,
        stream: S,
        by: Requester,
        token: Option<Token>,
    ) {
        let mut stop = self.stop.clone();
        let service = service_fn(move |request: Request<Incoming>| {
            let (control, by) = (Arc::clone(&self), by.clone());
            let is_known = token.as_ref().is_none_or(|token| token.is_in(request.headers()));
            async move {
                Ok::<_, Infallible>(match is_known {
                    true => control.answer(request, by).await,
                    false => refusal(Refused(StatusCode::UNAUTHORIZED, "the token is missing or wrong".to_owned())),
                })
            }
        });
        let mut builder = hyper::server::conn::http1::Builder::new();
        builder.timer(TokioTimer::new()).header_read_timeout(HEADER_PATIENCE);
        let mut connection = pin!(builder.serve_connection(TokioIo::new(stream), service).with_upgrades());
        // A caller that speaks something else, or has gone, is nobody to tell.
        tokio::select! {
            _ = connection.as_mut() => return,
            () = is_over(&mut stop) => connection.as_mut().graceful_shutdown(),
        }
        let _ = connection.await;
    }

    async fn answer(&self, mut request: Request<Incoming>, by: Requester) -> Response<Body> {
        let upgrade = hyper::upgrade::on(&mut request);
        let (head, body) = request.into_parts();
        let query = Query::parse(head.uri.query().unwrap_or_default());
        let done = match (&head.method, head.uri.path()) {
            (&Method::GET, "/v1/logs") => self.logs(&query).await,
            (&Method::GET, "/v1/events") => self.events(&query),
            (&Method::GET, "/v1/attach") => self.attach(&query, upgrade, head.headers.get(UPGRADE)).await,
            (&Method::GET, "/v1/reads") => self.reads().await.and_then(|done| json(&done)),
            (&Method::POST, "/v1/links") => match read(body).await {
                Ok(request) => self.change_links(request, by).await.and_then(|done| json(&done)),
                Err(refused) => Err(refused),
            },
            (&Method::POST, "/v1/chaos") => match read(body).await {
                Ok(request) => self.campaign(self.campaigns.chaos(self.scene(by), request)),
                Err(refused) => Err(refused),
            },
            (&Method::POST, "/v1/rolling-restart") => match read(body).await {
                Ok(request) => self.rolling(request, by).await,
                Err(refused) => Err(refused),
            },
            (&Method::GET, "/v1/processes") => self.status(query.is_set("quick")).await.and_then(|found| json(&found)),
            (&Method::GET, "/v1/environment") => self.environment(&query).and_then(|found| json(&found)),
            (&Method::POST, "/v1/actions") => match read(body).await {
                Ok(request) => self.act(request, by).await.and_then(|done| json(&done)),
                Err(refused) => Err(refused),
            },
            (&Method::POST, "/v1/members") => match read(body).await {
                Ok(request) => self.change_members(request, by).await.and_then(|done| json(&done)),
                Err(refused) => Err(refused),
            },
            (&Method::POST, "/v1/reload") => match read(body).await {
                Ok(request) => self.reload(request, by).await,
                Err(refused) => Err(refused),
            },
            (&Method::POST, "/v1/end") => match read::<EndRequest>(body).await {
                Ok(request) => {
                    self.sources.handle.end(request.force, by).await.map_err(Refused::from).and_then(|()| json(&()))
                }
                Err(refused) => Err(refused),
            },
            (method, path) => Err(Refused(StatusCode::NOT_FOUND, format!("there is no {method} {path}"))),
        };
        done.unwrap_or_else(refusal)
    }

    async fn status(&self, quick: bool) -> Result<Status, Refused> {
        let views = self.sources.handle.views().await?;
        let (usages, members) = match quick {
            true => (vec![None; views.len()], vec![None; views.len()]),
            false => tokio::join!(self.usages(&views), self.ask_members(&views, MEMBER_BUDGET)),
        };
        let process = |((view, usage), member): ((ProcessView, Option<GroupInfo>), Option<Asked>)| {
            let is_member = self.member(&view.name).is_some();
            let (member, member_error) = match member {
                Some(Ok(status)) => (Some(status), None),
                Some(Err(error)) => (None, Some(error)),
                None => (None, None),
            };
            ProcessStatus { view, is_member, usage, member, member_error }
        };
        Ok(Status {
            supervisor: SupervisorView {
                pid: self.sources.holder.pid,
                version: QUORATE_VERSION.to_owned(),
                directory: self.sources.holder.directory.clone(),
                procfile: self.sources.holder.procfile.clone(),
                detached: self.sources.holder.detached,
                uptime_ms: u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX),
            },
            processes: views.into_iter().zip(usages).zip(members).map(process).collect(),
        })
    }

    fn member(&self, name: &str) -> Option<Member> {
        self.entries().iter().find(|entry| entry.name == name)?.member.clone()
    }

    /// What the groups use, on a thread of its own: /proc may be long.
    async fn usages(&self, views: &[ProcessView]) -> Vec<Option<GroupInfo>> {
        let last = self.sample.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let fresh = last.filter(|(at, _)| (CPU_SAMPLE..CPU_SAMPLE_AGE_MAX).contains(&at.elapsed()));
        let before = match fresh {
            Some((_, table)) => table,
            None => {
                let table = tokio::task::spawn_blocking(Table::read).await;
                tokio::time::sleep(CPU_SAMPLE).await;
                match table {
                    Ok(table) => Arc::new(table),
                    Err(_) => return vec![None; views.len()],
                }
            }
        };
        let groups: Vec<Option<i32>> = views.iter().map(|view| view.group).collect();
        let looked = tokio::task::spawn_blocking(move || {
            let (table, listeners) = (Table::read(), Listeners::read());
            let one = |group: &Option<i32>| table.group(Some(&before), (*group)?, &listeners);
            let found = groups.iter().map(one).collect();
            (found, table)
        });
        // It fails only if the runtime is ending.
        let Ok((found, table)) = looked.await else { return vec![None; views.len()] };
        *self.sample.lock().unwrap_or_else(PoisonError::into_inner) = Some((Instant::now(), Arc::new(table)));
        found
    }

    /// What the members say, all asked at once, none of them longer than the budget.
    async fn ask_members(&self, views: &[ProcessView], budget: Duration) -> Vec<Option<Asked>> {
        let ask = async |view: &ProcessView| match self.member(&view.name).filter(|_| view.group.is_some()) {
            Some(member) => Some(member.status(budget).await),
            None => None,
        };
        join_all(views.iter().map(ask)).await
    }

    /// What processes printed. No name means all of them, and what we say ourselves.
    async fn logs(&self, query: &Query) -> Result<Response<Body>, Refused> {
        let mut wanted = Wanted::of(query).map_err(|error| Refused(StatusCode::BAD_REQUEST, error))?;
        let words: Vec<String> = query.values("name").map(str::to_owned).collect();
        if !words.is_empty() {
            wanted.names = self.names(&words).await?;
        }
        lines(streams::logs(self.sources.output.store(), wanted))
    }

    /// The terminal of one process, until either side goes.
    async fn attach(
        &self,
        query: &Query,
        upgrade: OnUpgrade,
        protocol: Option<&HeaderValue>,
    ) -> Result<Response<Body>, Refused> {
        if protocol.is_none_or(|protocol| protocol != attach::PROTOCOL) {
            return Err(Refused(StatusCode::UPGRADE_REQUIRED, format!("ask for an upgrade to {}", attach::PROTOCOL)));
        }
        let words: Vec<String> = query.values("name").map(str::to_owned).collect();
        let names = self.names(&words).await?;
        let [name] = names.as_slice() else {
            return Err(Refused(StatusCode::BAD_REQUEST, format!("one process at a time, not {}", names.join(", "))));
        };
        let terminal = self.sources.output.terminal(name).ok_or_else(|| {
            let text = format!("{name} has no terminal (tty=yes in its settings gives it one), or does not run");
            Refused(StatusCode::UNPROCESSABLE_ENTITY, text)
        })?;
        // Ends with the client or with the process; all processes have ended before the supervisor does.
        tokio::spawn(async move {
            if let Ok(stream) = upgrade.await {
                // A client that goes is nobody to tell.
                let _ = attach::serve(terminal, TokioIo::new(stream)).await;
            }
        });
        let response = Response::builder().status(StatusCode::SWITCHING_PROTOCOLS).header(CONNECTION, "upgrade");
        let response = response.header(UPGRADE, attach::PROTOCOL).body(text(Bytes::new()));
        response.map_err(|error| Refused(StatusCode::INTERNAL_SERVER_ERROR, error.to_string()))
    }

    fn events(&self, query: &Query) -> Result<Response<Body>, Refused> {
        let body = streams::events(&self.sources.journal, query, self.stop.clone());
        lines(body.map_err(|error| Refused(StatusCode::BAD_REQUEST, error))?)
    }

    /// Whether every member that runs serves a read that its leader has confirmed. Learners only tell who leads.
    async fn reads(&self) -> Result<ActionAnswer, Refused> {
        let views = self.sources.handle.views().await?;
        let one = async |view: &ProcessView| {
            let member = self.member(&view.name).filter(|_| view.group.is_some())?;
            let status = match member.status(READ_BUDGET).await {
                Err(error) => Err(error),
                Ok(status) if status.leader_id == 0 => Err("it knows no leader".to_owned()),
                Ok(status) if status.role == Role::Learner => Ok("it is a learner and knows its leader"),
                Ok(_) => member.linearizable_read(READ_BUDGET).await.map(|()| "a linearizable read has passed"),
            };
            let (ok, text) = match status {
                Ok(text) => (true, text.to_owned()),
                Err(text) => (false, text),
            };
            Some(NamedResult { name: view.name.clone(), ok, text })
        };
        let results = join_all(views.iter().map(one)).await.into_iter().flatten().collect();
        Ok(ActionAnswer { results, timed_out: false })
    }

    fn scene(&self, by: Requester) -> Scene {
        Scene {
            handle: self.sources.handle.clone(),
            members: self.entries().iter().filter_map(|entry| entry.member.clone()).collect(),
            links: self.sources.links.clone(),
            journal: self.sources.journal.clone(),
            by,
            stop: self.stop.clone(),
        }
    }

    async fn rolling(&self, mut request: RollingRequest, by: Requester) -> Result<Response<Body>, Refused> {
        if !request.names.is_empty() {
            request.names = self.names(&request.names).await?;
        }
        self.campaign(self.campaigns.rolling(self.scene(by), request))
    }

    fn campaign(&self, begun: Option<Body>) -> Result<Response<Body>, Refused> {
        let busy = || Refused(StatusCode::LOCKED, "chaos or a rolling restart is under way".to_owned());
        lines(begun.ok_or_else(busy)?)
    }

    /// Links are faults: they are in the journal with who asked for them.
    async fn change_links(&self, mut request: LinkRequest, by: Requester) -> Result<LinkAnswer, Refused> {
        let links = self.sources.links.as_ref();
        let refused = |error: String| Refused(StatusCode::UNPROCESSABLE_ENTITY, error);
        let links = links.ok_or_else(|| refused(NO_RELAYS.to_owned()))?;
        for words in request.names_mut().into_iter().filter(|words| !words.is_empty()) {
            *words = self.names(words).await?;
        }
        let done = links.apply(request.clone()).await.map_err(refused)?;
        let who = by.pid.map_or_else(String::new, |pid| format!(" (asked by pid {pid})"));
        match &request {
            LinkRequest::Show => {}
            LinkRequest::Heal { .. } => {
                let detail = format!("{request}{who}");
                self.sources.journal.record(None, What::Healed { kind: "links".to_owned(), detail });
            }
            _ => {
                let detail = format!("{request}{who}");
                self.sources.journal.record(None, What::Fault { kind: "links".to_owned(), detail });
            }
        }
        Ok(LinkAnswer { text: done })
    }

    fn environment(&self, query: &Query) -> Result<Vec<(String, String)>, Refused> {
        let name = query.value("name").unwrap_or_default();
        let entries = self.entries();
        let entry = entries.iter().find(|entry| entry.name == name);
        let known = || entries.iter().map(|entry| entry.name.clone()).collect();
        let unknown = || TargetError::Unknown { unknown: vec![name.to_owned()], known: known() };
        entry.map(|entry| entry.environment.clone()).ok_or_else(|| refused_target(&unknown()))
    }

    /// Reads everything again and makes it so. Told in two lines: what is to be done, and what came of it.
    async fn reload(&self, request: ReloadRequest, by: Requester) -> Result<Response<Body>, Refused> {
        let refused = |error: String| Refused(StatusCode::UNPROCESSABLE_ENTITY, error);
        let reader = Arc::clone(&self.sources.reader);
        // On a thread of its own: a file may be slow to come.
        let reread = tokio::task::spawn_blocking(move || reader()).await;
        // It fails only if the runtime is ending.
        let reread = reread.map_err(|_| Refused::from(Ending))?.map_err(refused)?;
        let reloaded = self.sources.handle.reload(reread.definitions, request.dry_run, by).await?;
        let (steps, results) = reloaded.map_err(refused)?;
        if !request.dry_run {
            *self.entries.lock().unwrap_or_else(PoisonError::into_inner) = Arc::new(reread.entries);
        }
        let plan = Reloading::Plan { steps, warnings: reread.warnings };
        let done = async move {
            let results = results.await.ok().filter(|_| !request.dry_run)?;
            Some(Reloading::Done { results })
        };
        let told = stream::once(async { Some(plan) }).chain(stream::once(done));
        let told = told.filter_map(|line| async {
            // Our own types have no keys that are not texts, which is all that could fail.
            let mut bytes = serde_json::to_vec(&line?).unwrap_or_default();
            bytes.push(b'\n');
            Some(Ok::<_, Infallible>(Frame::data(Bytes::from(bytes))))
        });
        lines(StreamBody::new(told).boxed_unsync())
    }

    async fn act(&self, request: ActionRequest, by: Requester) -> Result<ActionAnswer, Refused> {
        let names = self.names(&request.targets).await?;
        let replaced = self.replaced(&request.action, &names, &by).await?;
        let one = async |name: String| -> Result<(Vec<NamedResult>, bool), Ending> {
            if let Some(change) = replaced.filter(|_| self.member(&name).is_some()) {
                return self.change_one(name, change, false, (request.no_wait, request.timeout_ms), &by).await;
            }
            if request.no_wait {
                self.sources.handle.tell(request.action.clone(), vec![name.clone()], by.clone()).await?;
                return Ok((vec![asked_for(name)], false));
            }
            let acted = self.sources.handle.act(request.action.clone(), vec![name.clone()], by.clone());
            within(request.timeout_ms, name, acted).await
        };
        // One call a name: who is done says so whatever the others do.
        gather(join_all(names.into_iter().map(one)).await)
    }

    /// How members restart with clean data: they leave their cluster and come in anew, unless all of it begins anew. Then
    /// nobody is started before all are down: those with data would know the others for whom they were.
    async fn replaced(&self, action: &Action, names: &[String], by: &Requester) -> Result<Option<Change>, Refused> {
        let Action::Restart { delay_ms, clean: true } = action else { return Ok(None) };
        let entries = self.entries();
        let members: Vec<String> =
            entries.iter().filter(|entry| entry.member.is_some()).map(|entry| entry.name.clone()).collect();
        if members.iter().any(|member| !names.contains(member)) {
            return Ok(Some(Change::Replace { delay_ms: *delay_ms }));
        }
        for member in &members {
            self.sources.handle.append(member.clone(), None).await?;
        }
        if members.len() > 1 {
            self.sources.handle.act(Action::Stop, members, by.clone()).await?;
        }
        Ok(None)
    }

    async fn change_members(&self, request: RosterRequest, by: Requester) -> Result<ActionAnswer, Refused> {
        let names = self.names(&request.names).await?;
        let patience = (request.no_wait, request.timeout_ms);
        let one = async |name: String| self.change_one(name, request.change, request.force, patience, &by).await;
        gather(join_all(names.into_iter().map(one)).await)
    }

    /// Goes on to its end, whether it is waited for or not.
    async fn change_one(
        &self,
        name: String,
        change: Change,
        force: bool,
        (no_wait, timeout_ms): (bool, Option<u64>),
        by: &Requester,
    ) -> Result<(Vec<NamedResult>, bool), Ending> {
        let action = serde_json::to_string(&change).unwrap_or_default();
        self.sources.journal.record(Some(&name), What::Request { action, by: by.clone() });
        let entries = self.entries();
        let place = |entry: &Entry| Some(Place { member: entry.member.clone()?, has_data_dir: entry.has_data_dir });
        let roster = Roster {
            handle: self.sources.handle.clone(),
            places: Arc::new(entries.iter().filter_map(place).collect()),
            by: by.clone(),
            turn: Arc::clone(&self.turn),
        };
        let task = tokio::spawn(roster.change(name.clone(), change, force));
        if no_wait {
            return Ok((vec![asked_for(name)], false));
        }
        // It fails only if the runtime is ending.
        within(timeout_ms, name, async { task.await.map(|result| vec![result]).map_err(|_| Ending) }).await
    }

    /// The names that are meant. A role that nobody has is waited for: an election may be under way.
    pub async fn resolve(&self, words: &[String]) -> Result<Result<Vec<String>, TargetError>, Ending> {
        let deadline = Instant::now() + ROLE_PATIENCE;
        let mut dice = |below: usize| (RandomState::new().build_hasher().finish() % below.max(1) as u64) as usize;
        loop {
            let views = self.sources.handle.views().await?;
            let mut known: Vec<Candidate> = views.iter().map(|view| self.candidate(view)).collect();
            if !targets::need_roles(words, &known) {
                return Ok(targets::resolve(words, &known, &mut dice));
            }
            let statuses: Vec<Option<MemberStatus>> = self
                .ask_members(&views, ROLE_BUDGET)
                .await
                .into_iter()
                .map(|asked| asked.and_then(Result::ok))
                .collect();
            let last_term = statuses.iter().flatten().map(|status| status.term).max().unwrap_or_default();
            for (candidate, status) in known.iter_mut().zip(statuses) {
                // One that was cut off may still think that it leads.
                let is_former = |status: &MemberStatus| status.role == Role::Leader && status.term < last_term;
                candidate.role = status.map(|status| if is_former(&status) { Role::Candidate } else { status.role });
            }
            let found = targets::resolve(words, &known, &mut dice);
            let members = known.iter().any(|candidate| candidate.is_member);
            if !members || !matches!(found, Err(TargetError::Nobody(_))) || Instant::now() > deadline {
                return Ok(found);
            }
            tokio::time::sleep(ROLE_POLL).await;
        }
    }

    async fn names(&self, words: &[String]) -> Result<Vec<String>, Refused> {
        if words.is_empty() {
            return Err(Refused(StatusCode::BAD_REQUEST, "no targets".to_owned()));
        }
        self.resolve(words).await?.map_err(|error| refused_target(&error))
    }

    fn candidate(&self, view: &ProcessView) -> Candidate {
        Candidate { name: view.name.clone(), is_member: self.member(&view.name).is_some(), role: None }
    }
}

fn asked_for(name: String) -> NamedResult {
    NamedResult { name, ok: true, text: "asked for".to_owned() }
}

/// What came of it in this time, and whether that was too short.
async fn within(
    timeout_ms: Option<u64>,
    name: String,
    acted: impl Future<Output = Result<Vec<NamedResult>, Ending>>,
) -> Result<(Vec<NamedResult>, bool), Ending> {
    let Some(timeout) = timeout_ms.map(Duration::from_millis) else { return Ok((acted.await?, false)) };
    match tokio::time::timeout(timeout, acted).await {
        Ok(done) => Ok((done?, false)),
        Err(_) => {
            let text = format!("not done within {timeout:?}; it goes on");
            Ok((vec![NamedResult { name, ok: false, text }], true))
        }
    }
}

fn gather(done: Vec<Result<(Vec<NamedResult>, bool), Ending>>) -> Result<ActionAnswer, Refused> {
    let done: Result<Vec<_>, Ending> = done.into_iter().collect();
    let (results, late): (Vec<_>, Vec<bool>) = done?.into_iter().unzip();
    Ok(ActionAnswer { results: results.concat(), timed_out: late.contains(&true) })
}

/// Resolves at the end. What the channel lends is given back at once: it must not be held while others are waited for.
pub(super) async fn is_over(stop: &mut watch::Receiver<bool>) {
    // A sender that is gone says the same.
    let _ = stop.wait_for(|stop| *stop).await;
}

fn refusal(Refused(status, error): Refused) -> Response<Body> {
    let mut response = json(&Refusal { error }).unwrap_or_else(|_| Response::new(text(Bytes::new())));
    *response.status_mut() = status;
    response
}

type Asked = Result<MemberStatus, String>;

fn refused_target(error: &TargetError) -> Refused {
    let status = match error {
        TargetError::Unknown { .. } => StatusCode::NOT_FOUND,
        TargetError::Nobody(_) => StatusCode::CONFLICT,
    };
    Refused(status, error.to_string())
}

/// An answer of one JSON object a line.
fn lines(body: Body) -> Result<Response<Body>, Refused> {
    let response = Response::builder().header(CONTENT_TYPE, "application/x-ndjson").body(body);
    response.map_err(|error| Refused(StatusCode::INTERNAL_SERVER_ERROR, error.to_string()))
}

fn text(bytes: Bytes) -> Body {
    Full::new(bytes).boxed_unsync()
}

fn json<T: Serialize>(value: &T) -> Result<Response<Body>, Refused> {
    let failed = |error: String| Refused(StatusCode::INTERNAL_SERVER_ERROR, error);
    let mut bytes = serde_json::to_vec(value).map_err(|error| failed(error.to_string()))?;
    bytes.push(b'\n');
    let response = Response::builder().header(CONTENT_TYPE, "application/json").body(text(bytes.into()));
    response.map_err(|error| failed(error.to_string()))
}

/// A request's body, bounded, as what it is to be. An empty one is `{}`.
async fn read<T: DeserializeOwned>(body: Incoming) -> Result<T, Refused> {
    let collected = Limited::new(body, BODY_BYTES_MAX).collect().await;
    let bytes = match collected {
        Ok(collected) => collected.to_bytes(),
        Err(error) if error.is::<http_body_util::LengthLimitError>() => {
            return Err(Refused(StatusCode::PAYLOAD_TOO_LARGE, format!("more than {BODY_BYTES_MAX} bytes")));
        }
        Err(error) => return Err(Refused(StatusCode::BAD_REQUEST, error.to_string())),
    };
    let bytes = if bytes.is_empty() { Bytes::from_static(b"{}") } else { bytes };
    serde_json::from_slice(&bytes).map_err(|error| Refused(StatusCode::BAD_REQUEST, error.to_string()))
}

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
use futures_util::future::join_all;
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
use http_body_util::combinators::UnsyncBoxBody;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use hyper_util::rt::TokioTimer;
use serde::Serialize;
use serde::de::DeserializeOwned;
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
use crate::supervisor::control::messages::Status;
use crate::supervisor::control::messages::SupervisorView;
use crate::supervisor::control::query::Query;
use crate::supervisor::control::streams;
use crate::supervisor::control::streams::Wanted;
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
use crate::supervisor::rolling::RollingRequest;
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
}

/// What the socket serves, and from what.
pub struct Sources {
    pub handle: Handle,
    pub holder: Holder,
    pub entries: Vec<Entry>,
    pub output: Output,
    pub journal: Journal,
    /// `None` where no member has a relay.
    pub links: Option<Links>,
}

/// The server's side of all connections.
pub struct Control {
    sources: Sources,
    started: Instant,
    stop: watch::Receiver<bool>,
    campaigns: Campaigns,
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
    pub fn new(sources: Sources, stop: watch::Receiver<bool>) -> Control {
        Control { sources, started: Instant::now(), stop, campaigns: Campaigns::default(), sample: Mutex::new(None) }
    }

    /// Serves until the stop, and then until the answers that are owed have left.
    pub async fn serve(self: Arc<Self>, listener: UnixListener) {
        let mut stop = self.stop.clone();
        let mut connections = JoinSet::new();
        loop {
            tokio::select! {
                () = is_over(&mut stop) => break,
                accepted = listener.accept() => match accepted {
                    Ok((stream, _)) if connections.len() < CONNECTIONS_MAX => {
                        connections.spawn(Arc::clone(&self).serve_connection(stream));
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

    async fn serve_connection(self: Arc<Self>, stream: UnixStream) {
        let mut stop = self.stop.clone();
        let by = match stream.peer_cred() {
            Ok(peer) => Requester { pid: peer.pid(), uid: Some(peer.uid()) },
            Err(_) => Requester::default(),
        };
        let service = service_fn(move |request| {
            let (control, by) = (Arc::clone(&self), by.clone());
            async move { Ok::<_, Infallible>(control.answer(request, by).await) }
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
            (&Method::POST, "/v1/end") => match read::<EndRequest>(body).await {
                Ok(request) => {
                    self.sources.handle.end(request.force, by).await.map_err(Refused::from).and_then(|()| json(&()))
                }
                Err(refused) => Err(refused),
            },
            (method, path) => Err(Refused(StatusCode::NOT_FOUND, format!("there is no {method} {path}"))),
        };
        done.unwrap_or_else(|Refused(status, error)| {
            let mut response = json(&Refusal { error }).unwrap_or_else(|_| Response::new(text(Bytes::new())));
            *response.status_mut() = status;
            response
        })
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

    fn member(&self, name: &str) -> Option<&Member> {
        self.sources.entries.iter().find(|entry| entry.name == name)?.member.as_ref()
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
            members: self.sources.entries.iter().filter_map(|entry| entry.member.clone()).collect(),
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
        let entry = self.sources.entries.iter().find(|entry| entry.name == name);
        let known = || self.sources.entries.iter().map(|entry| entry.name.clone()).collect();
        let unknown = || TargetError::Unknown { unknown: vec![name.to_owned()], known: known() };
        entry.map(|entry| entry.environment.clone()).ok_or_else(|| refused_target(&unknown()))
    }

    async fn act(&self, request: ActionRequest, by: Requester) -> Result<ActionAnswer, Refused> {
        let names = self.names(&request.targets).await?;
        let one = async |name: String| -> Result<(Vec<NamedResult>, bool), Ending> {
            if request.no_wait {
                self.sources.handle.tell(request.action.clone(), vec![name.clone()], by.clone()).await?;
                return Ok((vec![NamedResult { name, ok: true, text: "asked for".to_owned() }], false));
            }
            let acted = self.sources.handle.act(request.action.clone(), vec![name.clone()], by.clone());
            let Some(timeout) = request.timeout_ms.map(Duration::from_millis) else { return Ok((acted.await?, false)) };
            match tokio::time::timeout(timeout, acted).await {
                Ok(done) => Ok((done?, false)),
                Err(_) => {
                    let text = format!("not done within {timeout:?}; it goes on");
                    Ok((vec![NamedResult { name, ok: false, text }], true))
                }
            }
        };
        // One call a name: who is done says so whatever the others do.
        let done: Result<Vec<_>, Ending> = join_all(names.into_iter().map(one)).await.into_iter().collect();
        let (results, late): (Vec<_>, Vec<bool>) = done?.into_iter().unzip();
        Ok(ActionAnswer { results: results.concat(), timed_out: late.contains(&true) })
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

/// Resolves at the end. What the channel lends is given back at once: it must not be held while others are waited for.
pub(super) async fn is_over(stop: &mut watch::Receiver<bool>) {
    // A sender that is gone says the same.
    let _ = stop.wait_for(|stop| *stop).await;
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

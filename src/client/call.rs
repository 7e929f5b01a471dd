//! One call from request to answer: deadline, attempts, metadata, limits.

use std::sync::Arc;
use std::time::Duration;
use std::time::Instant;

use futures_core::Stream;
use http::uri::PathAndQuery;
use prost::Message;
use tonic::Code;
use tonic::Request;
use tonic::Status;
use tonic::Streaming;
use tonic::client::Grpc;
use tonic::metadata::MetadataValue;
use tonic_prost::ProstCodec;

use super::CallError;
use super::Client;
use super::Deadline;
use super::FailedAttempt;
use super::connection::Connection;
use super::connection::Wire;
use super::error;
use super::retry;
use super::retry::Repeat;

/// Major and minor version that we speak, sent with every call (ctl.md 2.8).
const CLIENT_API_VERSION: &str = "3.7";

/// Name and version in the `user-agent` of every call.
const USER_AGENT: &str = concat!("quorate/", env!("CARGO_PKG_VERSION"));

/// What a server is told of the deadline beyond what is left: our own clock is to end the call, so that a server's
/// refusal does not arrive just before and read differently.
const DEADLINE_SLACK: Duration = Duration::from_millis(5);

/// A longer deadline is not told to the server: the header has eight digits, and nobody means it.
const TOLD_DEADLINE_MAX: Duration = Duration::from_secs(365 * 24 * 3600);

/// A method and what may be done with it.
pub(super) struct Method {
    pub path: &'static str,
    pub repeat: Repeat,
}

impl Method {
    /// May be sent any number of times.
    pub const fn read(path: &'static str) -> Method {
        Method { path, repeat: Repeat::Harmless }
    }

    /// Must not be applied twice.
    pub const fn write(path: &'static str) -> Method {
        Method { path, repeat: Repeat::OnlyUnproposed }
    }
}

/// How far a call has come, for what is said when its deadline passes.
#[derive(Default)]
struct Progress {
    attempt: u32,
    /// Set while a connection has the request.
    peer: Option<Arc<(String, String)>>,
}

impl Client {
    /// Makes a call with one answer.
    pub(super) async fn unary<Q, R>(&self, method: &Method, request: Q, deadline: Deadline) -> Result<R, CallError>
    where
        Q: Message + Clone + 'static,
        R: Message + Default + 'static,
    {
        self.check_size(&request).inspect_err(|status| self.tell(method, &Progress::default(), status))?;
        let mut progress = Progress::default();
        let attempts = self.attempts(method, &request, deadline, &mut progress);
        match within(deadline, attempts).await {
            Some(done) => done,
            None => Err(self.deadline_passed(method, &progress)),
        }
    }

    /// Makes a call that is answered by a stream. Only the opening waits for a connection; nothing is repeated.
    pub(super) async fn server_stream<Q, R>(
        &self,
        method: &Method,
        request: Q,
        deadline: Deadline,
    ) -> Result<Streaming<R>, CallError>
    where
        Q: Message + Clone + 'static,
        R: Message + Default + 'static,
    {
        self.check_size(&request)?;
        let open = async {
            let connection = self.balancer.pick().await;
            let mut grpc = self.grpc(connection.wire(&self.authority));
            let path = PathAndQuery::from_static(method.path);
            let codec = ProstCodec::<Q, R>::default();
            let opened = grpc.server_streaming(self.dress(request, deadline), path, codec).await;
            opened.map_err(|status| CallError::of(unwrap_transport(status)))
        };
        match within(deadline, open).await {
            Some(opened) => Ok(opened?.into_inner()),
            None => Err(CallError::Deadline { last: self.balancer.last_error() }),
        }
    }

    /// Opens a stream in both directions on the next open connection; waits for one without end. Nothing is repeated.
    /// `requires_leader`: the member is to end it when it has no leader (ctl.md 2.8).
    pub(super) async fn bidi_stream<Q, R>(
        &self,
        path: &'static str,
        requests: impl Stream<Item = Q> + Send + 'static,
        requires_leader: bool,
    ) -> Result<Streaming<R>, Status>
    where
        Q: Message + 'static,
        R: Message + Default + 'static,
    {
        let connection = self.balancer.pick().await;
        let mut grpc = self.grpc(connection.wire(&self.authority));
        let mut request = self.dress(requests, Deadline::none());
        if requires_leader {
            request.metadata_mut().insert("hasleader", MetadataValue::from_static("true"));
        }
        let opened = grpc.streaming(request, PathAndQuery::from_static(path), ProstCodec::<Q, R>::default()).await;
        Ok(opened.map_err(unwrap_transport)?.into_inner())
    }

    async fn attempts<Q, R>(
        &self,
        method: &Method,
        request: &Q,
        deadline: Deadline,
        progress: &mut Progress,
    ) -> Result<R, CallError>
    where
        Q: Message + Clone + 'static,
        R: Message + Default + 'static,
    {
        loop {
            let connection = self.balancer.pick().await;
            progress.peer = Some(connection.peer.clone());
            let (sent, never_left) = self.attempt(&connection, method, request.clone(), deadline).await;
            let status = match sent {
                Ok(response) => return Ok(response),
                Err(status) => status,
            };
            self.tell(method, progress, &status);
            progress.attempt += 1;
            let again = retry::may_repeat(method.repeat, &status, never_left);
            if !again || progress.attempt == retry::ATTEMPTS_MAX {
                return Err(CallError::of(status));
            }
            progress.peer = None;
            tokio::time::sleep(retry::pause_before(progress.attempt, self.endpoints)).await;
        }
    }

    /// Sends once. The flag says that the request provably never left.
    async fn attempt<Q, R>(
        &self,
        connection: &Connection,
        method: &Method,
        request: Q,
        deadline: Deadline,
    ) -> (Result<R, Status>, bool)
    where
        Q: Message + 'static,
        R: Message + Default + 'static,
    {
        let wire = connection.wire(&self.authority);
        let mut grpc = self.grpc(wire.clone());
        let path = PathAndQuery::from_static(method.path);
        let sent = grpc.unary(self.dress(request, deadline), path, ProstCodec::<Q, R>::default()).await;
        (sent.map(tonic::Response::into_inner).map_err(unwrap_transport), wire.never_left())
    }

    pub(super) fn grpc(&self, wire: Wire) -> Grpc<Wire> {
        Grpc::new(wire).max_decoding_message_size(self.receive_bytes_max).max_encoding_message_size(usize::MAX)
    }

    /// Adds the metadata that every call carries.
    pub(super) fn dress<Q>(&self, message: Q, deadline: Deadline) -> Request<Q> {
        let mut request = Request::new(message);
        if let Some(left) = deadline.left().filter(|left| *left < TOLD_DEADLINE_MAX) {
            request.set_timeout(left + DEADLINE_SLACK);
        }
        let metadata = request.metadata_mut();
        metadata.insert("client-api-version", MetadataValue::from_static(CLIENT_API_VERSION));
        metadata.insert("user-agent", MetadataValue::from_static(USER_AGENT));
        if let Some(token) = &self.token {
            metadata.insert("token", token.clone());
        }
        request
    }

    fn check_size<Q: Message>(&self, request: &Q) -> Result<(), Status> {
        let (size, max) = (request.encoded_len(), self.send_bytes_max);
        if size > max {
            let text = format!("trying to send message larger than max ({size} vs. {max})");
            return Err(Status::resource_exhausted(text));
        }
        Ok(())
    }

    fn deadline_passed(&self, method: &Method, progress: &Progress) -> CallError {
        let last = if progress.peer.is_none() { self.balancer.last_error() } else { None };
        let text = match (&progress.peer, &last) {
            (Some(_), _) => "context deadline exceeded".to_owned(),
            (None, Some(error)) => {
                format!("latest balancer error: connection error: desc = \"transport: {error}\"")
            }
            (None, None) => "context deadline exceeded while waiting for connections to become ready".to_owned(),
        };
        self.tell(method, progress, &Status::deadline_exceeded(text));
        CallError::Deadline { last }
    }

    fn tell(&self, method: &Method, progress: &Progress, status: &Status) {
        if let Some(observer) = &self.observer {
            let peer = progress.peer.as_deref();
            let error = error::wrapped(status);
            let (attempt, is_tls) = (progress.attempt, self.is_tls);
            observer(&FailedAttempt { method: method.path, attempt, peer, is_tls, error });
        }
    }
}

impl Deadline {
    /// Time until it passes; `None` without a deadline.
    fn left(self) -> Option<Duration> {
        self.0.map(|at| at.saturating_duration_since(Instant::now()))
    }
}

impl From<Status> for CallError {
    fn from(status: Status) -> CallError {
        CallError::of(status)
    }
}

/// Waits for `work` until the deadline. `None` when that passed, also when it had passed before.
pub(super) async fn within<T>(deadline: Deadline, work: impl Future<Output = T>) -> Option<T> {
    match deadline.left() {
        Some(Duration::ZERO) => None,
        Some(left) => tokio::time::timeout(left, work).await.ok(),
        None => Some(work.await),
    }
}

/// Replaces what tonic says of a broken connection or an oversized answer by what grpc-go says.
pub(super) fn unwrap_transport(status: Status) -> Status {
    if let Some(limits) = status.message().strip_prefix("Error, decoded message length too large: found ") {
        let numbers: Vec<&str> =
            limits.split(|at: char| !at.is_ascii_digit()).filter(|part| !part.is_empty()).collect();
        if let [found, limit] = numbers[..] {
            let text = format!("grpc: received message larger than max ({found} vs. {limit})");
            return Status::resource_exhausted(text);
        }
    }
    // A status that the server sent has no source: the transport made this one.
    if std::error::Error::source(&status).is_some() && status.code() != Code::DeadlineExceeded {
        return Status::unavailable("error reading from server: EOF");
    }
    status
}

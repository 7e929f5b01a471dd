//! The asking side of the project's socket, or of a port: one connection a call.

use std::io;
use std::net::SocketAddr;
use std::path::Path;
use std::path::PathBuf;

use bytes::Bytes;
use http::Method;
use http::Request;
use http::Response;
use http::StatusCode;
use http::header::AUTHORIZATION;
use http::header::CONNECTION;
use http::header::HOST;
use http::header::UPGRADE;
use http_body_util::BodyExt;
use http_body_util::Full;
use http_body_util::Limited;
use hyper::body::Incoming;
use hyper::upgrade::Upgraded;
use hyper_util::rt::TokioIo;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::io::AsyncRead;
use tokio::io::AsyncWrite;
use tokio::net::TcpStream;
use tokio::net::UnixStream;
use tokio::task::JoinHandle;

use crate::common::os_reason::os_reason;
use crate::supervisor::control::messages::Refusal;
use crate::supervisor::control::token::Token;
use crate::supervisor::project;
use crate::supervisor::project::Project;

/// Longest answer that is read at once; streams are read piece by piece.
const ANSWER_BYTES_MAX: usize = 64 << 20;
/// Longest line of a stream: a line of a log may have 1 MiB, and JSON may write a byte as six.
const LINE_BYTES_MAX: usize = 16 << 20;

/// Why a call failed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ControlError {
    #[error("{0}")]
    NoSupervisor(String),
    /// A name or a route that is not there; nothing was done.
    #[error("{0}")]
    Unknown(String),
    /// A role that nobody has now; nothing was done.
    #[error("{0}")]
    Nobody(String),
    /// Nothing was done.
    #[error("{0}")]
    Refused(String),
    #[error("the supervisor did not answer: {0}")]
    Broken(String),
}

/// The way to a supervisor that was there when this was made.
#[derive(Clone, Debug)]
pub struct Caller {
    way: Way,
}

#[derive(Clone, Debug)]
enum Way {
    Socket(PathBuf),
    Port { address: SocketAddr, token: Token },
}

/// Either kind of connection.
trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}

impl<S: AsyncRead + AsyncWrite + Send + Unpin> Stream for S {}

/// An answer that comes line by line. Dropped, it hangs up.
#[derive(Debug)]
pub struct Lines {
    body: Incoming,
    buffer: Vec<u8>,
    connection: JoinHandle<()>,
}

impl Caller {
    /// The supervisor of this project. Without one of this Procfile, the only one of the same directory will do, unless
    /// the Procfile was named.
    pub async fn find(project: &Project, procfile_named: bool) -> Result<Caller, ControlError> {
        for socket in project.sockets() {
            if UnixStream::connect(&socket).await.is_ok() {
                return Ok(Caller::at(&socket));
            }
        }
        let mut living = Vec::new();
        for (holder, socket) in project.neighbours() {
            if !procfile_named && UnixStream::connect(&socket).await.is_ok() {
                living.push((holder, socket));
            }
        }
        match living.as_slice() {
            [(_, socket)] => Ok(Caller::at(socket)),
            [] => Err(ControlError::NoSupervisor(format!(
                "no supervisor runs {} (`quorate supervisor up -d` starts one)",
                project.procfile.display()
            ))),
            several => {
                let procfiles: Vec<String> =
                    several.iter().map(|(holder, _)| holder.procfile.display().to_string()).collect();
                let text = format!("several supervisors run here; choose with --procfile: {}", procfiles.join(", "));
                Err(ControlError::NoSupervisor(text))
            }
        }
    }

    /// The one that listens there.
    pub fn at(socket: &Path) -> Caller {
        Caller { way: Way::Socket(socket.to_owned()) }
    }

    /// The one that listens on this port and wants this token.
    pub fn with_token(address: SocketAddr, token: Token) -> Caller {
        Caller { way: Way::Port { address, token } }
    }

    async fn dial(&self) -> io::Result<Box<dyn Stream>> {
        Ok(match &self.way {
            Way::Socket(socket) => Box::new(UnixStream::connect(socket).await?),
            Way::Port { address, .. } => Box::new(TcpStream::connect(address).await?),
        })
    }

    /// Whether it has not ended altogether.
    pub fn is_there(&self) -> bool {
        match &self.way {
            Way::Socket(socket) => project::is_held(socket),
            Way::Port { address, .. } => std::net::TcpStream::connect(address).is_ok(),
        }
    }

    pub async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, ControlError> {
        self.call(Method::GET, path, Bytes::new()).await
    }

    pub async fn post<Q: Serialize, T: DeserializeOwned>(&self, path: &str, request: &Q) -> Result<T, ControlError> {
        let body = serde_json::to_vec(request).map_err(|error| ControlError::Refused(error.to_string()))?;
        self.call(Method::POST, path, body.into()).await
    }

    /// An answer that may never end.
    pub async fn stream(&self, path: &str) -> Result<Lines, ControlError> {
        let (response, connection) = self.send(Method::GET, path, Bytes::new()).await?;
        if response.status() != StatusCode::OK {
            return Err(refusal(response).await);
        }
        Ok(Lines { body: response.into_body(), buffer: Vec::new(), connection })
    }

    /// A stream of bytes in both directions, of a protocol of its own.
    pub async fn upgrade(&self, path: &str, protocol: &str) -> Result<Upgraded, ControlError> {
        let (response, _connection) = self.send_with(Method::GET, path, Bytes::new(), Some(protocol)).await?;
        if response.status() != StatusCode::SWITCHING_PROTOCOLS {
            return Err(refusal(response).await);
        }
        hyper::upgrade::on(response).await.map_err(|error| ControlError::Broken(error.to_string()))
    }

    /// The same for something that is asked for with a body.
    pub async fn post_stream<Q: Serialize>(&self, path: &str, request: &Q) -> Result<Lines, ControlError> {
        let body = serde_json::to_vec(request).map_err(|error| ControlError::Refused(error.to_string()))?;
        let (response, connection) = self.send(Method::POST, path, body.into()).await?;
        if response.status() != StatusCode::OK {
            return Err(refusal(response).await);
        }
        Ok(Lines { body: response.into_body(), buffer: Vec::new(), connection })
    }

    async fn call<T: DeserializeOwned>(&self, method: Method, path: &str, body: Bytes) -> Result<T, ControlError> {
        let (response, _connection) = self.send(method, path, body).await?;
        if response.status() != StatusCode::OK {
            return Err(refusal(response).await);
        }
        let bytes = collect(response).await?;
        serde_json::from_slice(&bytes).map_err(|error| ControlError::Broken(error.to_string()))
    }

    async fn send(
        &self,
        method: Method,
        path: &str,
        body: Bytes,
    ) -> Result<(Response<Incoming>, JoinHandle<()>), ControlError> {
        self.send_with(method, path, body, None).await
    }

    async fn send_with(
        &self,
        method: Method,
        path: &str,
        body: Bytes,
        protocol: Option<&str>,
    ) -> Result<(Response<Incoming>, JoinHandle<()>), ControlError> {
        let broken = |error: &dyn std::fmt::Display| ControlError::Broken(error.to_string());
        let stream = self.dial().await.map_err(|error| match &self.way {
            Way::Socket(_) => ControlError::NoSupervisor("the supervisor has ended".to_owned()),
            Way::Port { address, .. } => {
                ControlError::NoSupervisor(format!("no supervisor answers on {address}: {}", os_reason(&error)))
            }
        })?;
        let greeted = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await;
        let (mut sender, connection) = greeted.map_err(|error| broken(&error))?;
        // How the connection ended shows in the answer that it carries.
        let connection = tokio::spawn(async move { drop(connection.with_upgrades().await) });
        let mut request = Request::builder().method(method).uri(path).header(HOST, "supervisor");
        if let Way::Port { token, .. } = &self.way {
            request = request.header(AUTHORIZATION, token.header());
        }
        if let Some(protocol) = protocol {
            request = request.header(CONNECTION, "upgrade").header(UPGRADE, protocol);
        }
        let request = request.body(Full::new(body)).map_err(|error| ControlError::Refused(error.to_string()))?;
        let response = sender.send_request(request).await.map_err(|error| broken(&error))?;
        Ok((response, connection))
    }
}

async fn collect(response: Response<Incoming>) -> Result<Bytes, ControlError> {
    let collected = Limited::new(response.into_body(), ANSWER_BYTES_MAX).collect().await;
    collected.map(|collected| collected.to_bytes()).map_err(|error| ControlError::Broken(error.to_string()))
}

async fn refusal(response: Response<Incoming>) -> ControlError {
    let status = response.status();
    let bytes = match collect(response).await {
        Ok(bytes) => bytes,
        Err(error) => return error,
    };
    let text = match serde_json::from_slice::<Refusal>(&bytes) {
        Ok(refusal) => refusal.error,
        Err(_) => format!("status {status}"),
    };
    match status {
        StatusCode::NOT_FOUND => ControlError::Unknown(text),
        StatusCode::CONFLICT => ControlError::Nobody(text),
        StatusCode::SERVICE_UNAVAILABLE => ControlError::NoSupervisor(text),
        _ => ControlError::Refused(text),
    }
}

impl Lines {
    /// The next line without its line feed; `None` at the end.
    pub async fn next(&mut self) -> Result<Option<String>, ControlError> {
        loop {
            if let Some(end) = self.buffer.iter().position(|byte| *byte == b'\n') {
                let line = self.buffer.drain(..=end).collect::<Vec<u8>>();
                return Ok(Some(String::from_utf8_lossy(&line[..end]).into_owned()));
            }
            if self.buffer.len() > LINE_BYTES_MAX {
                return Err(ControlError::Broken(format!("a line of more than {LINE_BYTES_MAX} bytes")));
            }
            match self.body.frame().await {
                None => return Ok(None),
                Some(Ok(frame)) => self.buffer.extend(frame.into_data().unwrap_or_default()),
                Some(Err(error)) => return Err(ControlError::Broken(error.to_string())),
            }
        }
    }
}

impl Drop for Lines {
    fn drop(&mut self) {
        self.connection.abort();
    }
}

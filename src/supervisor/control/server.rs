//! The listening side: reads calls, hands them to the loop, writes answers.

use tokio::io::AsyncReadExt;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpListener;
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio::sync::oneshot;
use tokio::task::JoinSet;

use crate::supervisor::control::Request;
use crate::supervisor::control::Verb;
use crate::supervisor::control::gob;
use crate::supervisor::control::gob::GobError;
use crate::supervisor::control::gob::Header;
use crate::supervisor::control::gob::Responder;

/// Open control connections. More are accepted and closed.
const CONNECTIONS_MAX: usize = 64;

/// Serves until the task is dropped.
pub async fn serve(listener: TcpListener, requests: mpsc::Sender<Request>) {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((socket, _)) if connections.len() < CONNECTIONS_MAX => {
                    connections.spawn(serve_connection(socket, requests.clone()));
                }
                // Too many, or out of descriptors: whoever asks next may have more luck.
                _ => tokio::task::yield_now().await,
            },
            Some(_) = connections.join_next() => {}
        }
    }
}

async fn serve_connection(mut socket: TcpStream, requests: mpsc::Sender<Request>) {
    let mut responder = Responder::default();
    let mut buffer = Vec::new();
    // A connection that says something else than a call is closed.
    while let Ok(Some((header, names))) = read_call(&mut socket, &mut buffer).await {
        let answer = ask(&requests, &header, names).await;
        if socket.write_all(&responder.encode(&header, &answer)).await.is_err() {
            return;
        }
    }
    let _ = socket.shutdown().await;
}

async fn ask(requests: &mpsc::Sender<Request>, header: &Header, names: Vec<String>) -> Result<String, String> {
    let Some(verb) = Verb::from_method(&header.method) else {
        return Err(format!("rpc: can't find method {}", header.method));
    };
    let (answer, answered) = oneshot::channel();
    let ending = || "the supervisor is ending".to_owned();
    requests.send(Request { verb, names, answer }).await.map_err(|_| ending())?;
    answered.await.map_err(|_| ending())?
}

/// One header and its list; `None` when the caller has hung up.
async fn read_call(socket: &mut TcpStream, buffer: &mut Vec<u8>) -> Result<Option<(Header, Vec<String>)>, GobError> {
    let Some(frame) = read_value(socket, buffer).await? else { return Ok(None) };
    let header = gob::header(&frame)?;
    let Some(frame) = read_value(socket, buffer).await? else { return Ok(None) };
    Ok(Some((header, gob::list(&frame)?)))
}

/// The next frame that is no type definition.
async fn read_value(socket: &mut TcpStream, buffer: &mut Vec<u8>) -> Result<Option<Vec<u8>>, GobError> {
    loop {
        while let Some(frame) = gob::take_frame(buffer)? {
            if !gob::is_type(&frame)? {
                return Ok(Some(frame));
            }
        }
        let mut chunk = [0; 4096];
        match socket.read(&mut chunk).await {
            Ok(0) | Err(_) => return Ok(None),
            Ok(count) => buffer.extend_from_slice(&chunk[..count]),
        }
    }
}

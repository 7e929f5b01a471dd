//! Clients and peers that are broken, slow or hostile: the member's memory stays bounded, and everybody else is served.
//!
//! Bounds on memory are absolute and generous: what they exclude is growth with what a stranger sends.

mod client_port;
mod descriptors;
mod frames;
mod peer_port;

use std::time::Duration;

use tokio::io::AsyncReadExt;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::cluster::Member;
use crate::cluster::tail;
use crate::support::PATIENCE;
use crate::support::eventually;

/// What a member may hold whatever strangers do to it. A debug build that serves nobody takes about 25 MiB.
const RESIDENT_BYTES_MAX: u64 = 400 << 20;

/// The member's resident memory now and at most since it started.
fn resident(member: &Member) -> (u64, u64) {
    let status = std::fs::read_to_string(format!("/proc/{}/status", member.pid())).expect("the member runs");
    let bytes = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name)).expect("a line of /proc/pid/status");
        line.trim().trim_end_matches(" kB").parse::<u64>().expect("a number") * 1024
    };
    (bytes("VmRSS:"), bytes("VmHWM:"))
}

/// The member is the same process, not grown, without a panic in its log, and serves a live client.
async fn is_well(member: &mut Member, what: &str) {
    assert!(member.ended().is_none(), "{what} ended it: {}", tail(&member.log_text(), 12));
    let served = eventually("a live client to be served", async || {
        member.put("alive", "yes").await.map_err(|status| status.to_string())?;
        member.get("alive").await.map_err(|status| status.to_string())
    });
    assert_eq!(served.await.count, 1, "{what}");
    let (_, most) = resident(member);
    println!("{what}: at most {} KiB", most >> 10);
    assert!(most < RESIDENT_BYTES_MAX, "{what}: {} MiB", most >> 20);
    assert_eq!(member.log_count("panicked"), 0, "{what}: {}", tail(&member.log_text(), 12));
}

async fn connect(port: u16) -> TcpStream {
    TcpStream::connect(("127.0.0.1", port)).await.expect("the kernel completes the connection")
}

/// Sends everything, or as much as the other side takes before it closes; then reads to the end. What came.
async fn exchange(port: u16, bytes: &[u8]) -> Vec<u8> {
    let (mut reading, mut writing) = connect(port).await.into_split();
    let bytes = bytes.to_vec();
    let sending = tokio::spawn(async move {
        // It may be closed before everything is written; the half that is not closed says that no more comes.
        let _ = writing.write_all(&bytes).await;
        writing
    });
    let mut answer = Vec::new();
    // A reset is an end, too.
    let _ = timeout(PATIENCE, reading.read_to_end(&mut answer)).await.expect("the other side ends the connection");
    sending.abort();
    answer
}

/// The same for a request of HTTP/1: status, head and body as text.
async fn http1(port: u16, request: &[u8]) -> (u16, String) {
    let answer = String::from_utf8_lossy(&exchange(port, request).await).into_owned();
    let status = answer.split(' ').nth(1).and_then(|status| status.parse().ok()).unwrap_or(0);
    (status, answer)
}

/// Sends `piece` again and again until the other side closes or takes no more for a while, at most `bytes_max`.
async fn pour(socket: &mut TcpStream, piece: &[u8], bytes_max: usize) -> usize {
    const NO_MORE: Duration = Duration::from_secs(2);
    let mut sent = 0;
    while sent < bytes_max {
        match timeout(NO_MORE, socket.write(piece)).await {
            Ok(Ok(more)) if more > 0 => sent += more,
            _ => break,
        }
    }
    sent
}

//! Free ports on 127.0.0.1.

use std::io;
use std::net::TcpListener;
use std::sync::atomic::AtomicU16;
use std::sync::atomic::Ordering;

/// Below the range that the kernel takes ports for outgoing connections from: a member that redials a closed port in
/// that range can connect to itself (peer.md 3.7).
const PORT_FIRST: u16 = 11_000;
const PORT_COUNT: u16 = 20_000;

/// A port that nothing listens on. Two processes that look at once start their search apart from each other.
pub fn free_port() -> io::Result<u16> {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    let offset = (std::process::id().wrapping_mul(173) % u32::from(PORT_COUNT)) as u16;
    for _ in 0..PORT_COUNT {
        let step = NEXT.fetch_add(1, Ordering::Relaxed) % PORT_COUNT;
        let port = PORT_FIRST + (offset + step) % PORT_COUNT;
        if is_free(port) {
            return Ok(port);
        }
    }
    Err(io::Error::new(io::ErrorKind::AddrInUse, "no free port on 127.0.0.1"))
}

/// Whether somebody could listen there now.
pub fn is_free(port: u16) -> bool {
    TcpListener::bind(("127.0.0.1", port)).is_ok()
}

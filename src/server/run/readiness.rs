//! Tells whoever started us that the member serves: `READY=1` to the socket that `NOTIFY_SOCKET` names, as etcd does
//! (sd_notify(3)).

use std::ffi::OsStr;
use std::ffi::OsString;
use std::io;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::SocketAddr;
use std::os::unix::net::UnixDatagram;

const READY: &[u8] = b"READY=1";

/// Says that we serve, if anybody wants to know. One who cannot be told is logged: we serve all the same.
pub fn announce(socket: Option<OsString>) {
    let Some(socket) = socket.filter(|socket| !socket.is_empty()) else { return };
    match send(&socket) {
        Ok(()) => tracing::info!("notified the service manager"),
        Err(error) => tracing::warn!(socket = %socket.to_string_lossy(), %error, "cannot notify the service manager"),
    }
}

fn send(socket: &OsStr) -> io::Result<()> {
    let address = match socket.as_bytes().split_first() {
        // How an abstract name, which is no file, is written.
        Some((b'@', name)) => SocketAddr::from_abstract_name(name)?,
        _ => SocketAddr::from_pathname(socket)?,
    };
    let ours = UnixDatagram::unbound()?;
    // A manager that does not read must not hold up a member.
    ours.set_nonblocking(true)?;
    ours.send_to_addr(READY, &address).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whoever_listens_is_told() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("notify");
        let manager = UnixDatagram::bind(&path).unwrap();
        announce(Some(path.clone().into()));
        let mut said = [0; 64];
        let count = manager.recv(&mut said).unwrap();
        assert_eq!(&said[..count], READY);
        let name = format!("quorate-readiness-{}", std::process::id());
        let address = SocketAddr::from_abstract_name(&name).unwrap();
        let manager = UnixDatagram::bind_addr(&address).unwrap();
        announce(Some(format!("@{name}").into()));
        assert_eq!(manager.recv(&mut said).unwrap(), READY.len());
    }

    #[test]
    fn nobody_there_is_no_harm() {
        announce(None);
        announce(Some(OsString::new()));
        announce(Some("/nowhere/notify".into()));
        announce(Some("x".repeat(300).into()));
    }
}

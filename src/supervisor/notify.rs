//! The socket on which a process says that it is ready: systemd's protocol, without systemd.
//!
//! Every process has one of its own, an abstract name that leaves no file behind, in NOTIFY_SOCKET. The kernel says who sends;
//! only members of the process count (supervisor.md 5.1). A sender that has ended by the time we look (`systemd-notify`
//! does) is believed if it was the same user: the name of the socket is told to nobody else.

use std::io;
use std::io::IoSliceMut;
use std::os::fd::AsRawFd;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::SocketAddr;
use std::os::unix::net::UnixDatagram as StdDatagram;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::PoisonError;

use nix::sys::socket::ControlMessageOwned;
use nix::sys::socket::MsgFlags;
use nix::sys::socket::UnixCredentials;
use nix::sys::socket::recvmsg;
use nix::sys::socket::setsockopt;
use nix::sys::socket::sockopt::PassCred;
use tokio::io::Interest;
use tokio::net::UnixDatagram;
use tokio::sync::mpsc;

use crate::supervisor::child::Event;
use crate::supervisor::child::Happened;
use crate::supervisor::orphans::Seen;
use crate::supervisor::process::Input;

pub const VARIABLE: &str = "NOTIFY_SOCKET";
/// Longer messages are cut: the words that count stand alone on their lines.
const MESSAGE_BYTES_MAX: usize = 4096;

/// Who may speak on a socket: the start of a process that is running.
#[derive(Clone, Debug, Default)]
struct Speaker {
    generation: u64,
    group: i32,
    mark: String,
}

/// One process's socket.
#[derive(Debug)]
pub struct Notify {
    address: String,
    speaker: Arc<Mutex<Speaker>>,
}

impl Notify {
    /// Opens it and starts to listen.
    pub fn open(id: &str, index: usize, events: mpsc::UnboundedSender<Event>) -> io::Result<Notify> {
        let name = format!("quorate/{id}/{index}");
        let socket = StdDatagram::bind_addr(&SocketAddr::from_abstract_name(name.as_bytes())?)?;
        // Before anybody can send: messages from before would come without their sender.
        setsockopt(&socket, PassCred, &true)?;
        socket.set_nonblocking(true)?;
        let socket = UnixDatagram::from_std(socket)?;
        let speaker = Arc::new(Mutex::new(Speaker::default()));
        tokio::spawn(listen(socket, Arc::clone(&speaker), index, events));
        Ok(Notify { address: format!("@{name}"), speaker })
    }

    /// The variable's value.
    pub fn address(&self) -> &str {
        &self.address
    }

    /// From now on this start of the process is believed.
    pub fn expect(&self, generation: u64, group: i32, mark: &str) {
        *lock(&self.speaker) = Speaker { generation, group, mark: mark.to_owned() };
    }
}

/// Each assignment leaves a whole speaker.
fn lock(speaker: &Mutex<Speaker>) -> std::sync::MutexGuard<'_, Speaker> {
    speaker.lock().unwrap_or_else(PoisonError::into_inner)
}

async fn listen(
    socket: UnixDatagram,
    speaker: Arc<Mutex<Speaker>>,
    index: usize,
    events: mpsc::UnboundedSender<Event>,
) {
    let mut buffer = vec![0; MESSAGE_BYTES_MAX];
    loop {
        let received = socket.async_io(Interest::READABLE, || receive(&socket, &mut buffer)).await;
        let (length, sender) = match received {
            Ok(received) => received,
            // A socket that is not connected fails only for want of memory: the next message may fare better.
            Err(_) => {
                tokio::time::sleep(std::time::Duration::from_millis(100)).await;
                continue;
            }
        };
        let speaker = lock(&speaker).clone();
        if !says_ready(&buffer[..length]) || !sender.is_some_and(|sender| may_speak(sender, &speaker)) {
            continue;
        }
        let happened = Happened::Input(Input::Notified);
        if events.send(Event { index, generation: speaker.generation, happened }).is_err() {
            return;
        }
    }
}

/// The length of the next message and its sender.
fn receive(socket: &UnixDatagram, buffer: &mut [u8]) -> io::Result<(usize, Option<UnixCredentials>)> {
    let mut space = nix::cmsg_space!(UnixCredentials);
    let mut parts = [IoSliceMut::new(buffer)];
    let message = recvmsg::<()>(socket.as_raw_fd(), &mut parts, Some(&mut space), MsgFlags::MSG_CMSG_CLOEXEC)?;
    let sender = message.cmsgs().ok().and_then(|mut found| {
        found.find_map(|one| match one {
            ControlMessageOwned::ScmCredentials(sender) => Some(sender),
            _ => None,
        })
    });
    Ok((message.bytes, sender))
}

fn may_speak(sender: UnixCredentials, speaker: &Speaker) -> bool {
    match Seen::of(sender.pid()) {
        Some(seen) => seen.group == speaker.group || seen.is_marked(&speaker.mark),
        None => sender.uid() == nix::unistd::getuid().as_raw(),
    }
}

fn says_ready(message: &[u8]) -> bool {
    message.split(|byte| *byte == b'\n').any(|line| line.trim_ascii() == b"READY=1")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn readiness_is_a_line_of_its_own() {
        for (message, expected) in [
            (&b"READY=1"[..], true),
            (b"STATUS=up\nREADY=1\n", true),
            (b"READY=0", false),
            (b"STATUS=READY=1", false),
            (b"READY=10", false),
            (b"\xff\n\n", false),
            (b"", false),
        ] {
            assert_eq!(says_ready(message), expected, "{message:?}");
        }
    }

    #[tokio::test]
    async fn only_the_process_itself_is_believed() {
        let (events, mut heard) = mpsc::unbounded_channel();
        let id = format!("test-{}", std::process::id());
        let notify = Notify::open(&id, 3, events).expect("an abstract socket");
        let name = notify.address().strip_prefix('@').expect("an abstract name").to_owned();
        let say = |text: &[u8]| {
            let socket = StdDatagram::unbound().unwrap();
            socket.send_to_addr(text, &SocketAddr::from_abstract_name(name.as_bytes()).unwrap()).unwrap();
        };
        let own = Seen::of(i32::try_from(std::process::id()).unwrap()).expect("we are there");
        notify.expect(1, own.group + 1, "no-such-mark");
        say(b"READY=1");
        // Passed over, and the socket goes on: what is said afterwards is heard, with its generation.
        for _ in 0..100 {
            tokio::task::yield_now().await;
            assert!(heard.try_recv().is_err());
        }
        notify.expect(2, own.group, "no-such-mark");
        say(b"STATUS=starting");
        say(b"READY=1");
        let event = heard.recv().await.expect("one event");
        assert_eq!((event.index, event.generation), (3, 2));
        assert!(matches!(event.happened, Happened::Input(Input::Notified)));
    }
}

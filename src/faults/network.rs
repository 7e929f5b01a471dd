//! Wires that can be cut: a TCP relay in front of each member's peer port, which the member advertises as its own.
//!
//! Who dials is read from the request that opens the connection (`X-Server-From`, etcd's peer protocol), so each
//! ordered pair of members is a link of its own. A link can be *held* (what is sent waits, also for minutes), *late*, or
//! *cut*: connections that its first member opened end, and no new one is taken. What was held arrives in the end, or
//! is lost with its connection.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use tokio::io::AsyncReadExt;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpListener;
use tokio::net::TcpStream;
use tokio::net::tcp::OwnedReadHalf;
use tokio::net::tcp::OwnedWriteHalf;
use tokio::sync::mpsc;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::task::JoinSet;
use tokio::time::Instant;

/// Read at once from one end.
const CHUNK_BYTES: usize = 64 << 10;
/// Chunks under way in one direction of a connection. Full means that its sender waits, as on a slow line.
const CHUNKS_MAX: usize = 64;
/// A request line with its headers; whoever sends more of them stays unknown.
const HEAD_BYTES_MAX: usize = 8 << 10;
/// How often a request that has begun is looked at until its headers are complete.
const HEAD_POLL: Duration = Duration::from_millis(5);
/// Looks at the beginning of a request at most.
const HEAD_POLLS_MAX: u32 = 200;
/// The header with the sender's id, in lower case.
const SENDER: &str = "x-server-from:";

/// One direction between two members.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Link {
    /// Nothing passes in this direction, whoever opened the connection.
    pub held: bool,
    /// No connection is opened in this direction.
    pub cut: bool,
    pub delay: Duration,
    /// Another value than before: connections that use the link end now.
    pub resets: u64,
}

/// Every link, and who the ends are.
#[derive(Clone, Debug)]
struct Links {
    size: usize,
    /// Ids of the members, once they are known.
    ids: Vec<u64>,
    /// `from * size + to`.
    links: Vec<Link>,
}

impl Links {
    /// The link between two members. One whose sender nobody knows is cut or held if all links there are.
    fn link(&self, from: Option<usize>, to: Option<usize>) -> Link {
        let at = |from: usize, to: usize| self.links[from * self.size + to];
        let merged = |links: &mut dyn Iterator<Item = Link>| {
            links.reduce(|one, other| Link {
                held: one.held && other.held,
                cut: one.cut && other.cut,
                delay: one.delay.min(other.delay),
                resets: 0,
            })
        };
        let all = 0..self.size;
        let link = match (from, to) {
            (Some(from), Some(to)) => Some(at(from, to)),
            (None, Some(to)) => merged(&mut all.filter(|from| *from != to).map(|from| at(from, to))),
            (Some(from), None) => merged(&mut all.filter(|to| *to != from).map(|to| at(from, to))),
            (None, None) => None,
        };
        link.unwrap_or_default()
    }
}

/// Relays for all members of a cluster. Dropping it ends them.
pub struct Network {
    links: watch::Sender<Links>,
    relays: Vec<JoinHandle<()>>,
}

impl Network {
    /// Listens on each first port for a member that listens on the second.
    pub async fn start(ports: &[(u16, u16)]) -> io::Result<Network> {
        let size = ports.len();
        let links = Links { size, ids: vec![0; size], links: vec![Link::default(); size * size] };
        let links = watch::Sender::new(links);
        let mut relays = Vec::new();
        for (member, (port, target)) in ports.iter().copied().enumerate() {
            let listener = TcpListener::bind(("127.0.0.1", port)).await?;
            relays.push(tokio::spawn(relay(listener, target, member, links.clone())));
        }
        Ok(Network { links, relays })
    }

    /// Tells which member a sender's id is.
    pub fn name(&self, member: usize, id: u64) {
        self.links.send_modify(|links| links.ids[member] = id);
    }

    /// Changes links: `of(from, to)` is what the link is from now on.
    pub fn set(&self, of: impl Fn(usize, usize) -> Link) {
        self.links.send_modify(|links| {
            for from in 0..links.size {
                for to in (0..links.size).filter(|to| *to != from) {
                    links.links[from * links.size + to] = of(from, to);
                }
            }
        });
    }

    /// Ends every connection to or from a member, and takes no new one.
    pub fn isolate(&self, member: usize) {
        let cut = |from: usize, to: usize| Link { cut: from == member || to == member, ..Link::default() };
        self.set(cut);
    }

    /// Everything passes again.
    pub fn heal(&self) {
        self.set(|_, _| Link::default());
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        self.relays.iter().for_each(JoinHandle::abort);
    }
}

/// Takes connections for one member. Those that it has end with it.
async fn relay(listener: TcpListener, target: u16, member: usize, links: watch::Sender<Links>) {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => {
                // An error is about one connection that its dialler will try again.
                let Ok((near, _)) = accepted else { continue };
                connections.spawn(carry(near, target, member, links.subscribe()));
            }
            Some(_) = connections.join_next() => {}
        }
    }
}

/// One connection to its end. How it ends is told to its two ends by its end.
async fn carry(near: TcpStream, target: u16, to: usize, links: watch::Receiver<Links>) {
    let Some(sender) = sender(&near).await else { return };
    let way = Way { sender, dialled: to };
    let start = way.state(&mut links.clone());
    if start.is_cut() {
        return;
    }
    let Ok(far) = TcpStream::connect(SocketAddr::from(([127, 0, 0, 1], target))).await else { return };
    // Each of our ends writes whole chunks; waiting for more would only be a delay that nobody asked for.
    if near.set_nodelay(true).is_err() || far.set_nodelay(true).is_err() {
        return;
    }
    let (near_read, near_write) = near.into_split();
    let (far_read, far_write) = far.into_split();
    let mut watched = links.clone();
    let broken = async {
        while watched.changed().await.is_ok() {
            let now = way.state(&mut watched);
            if now.is_cut() || now.resets() != start.resets() {
                return;
            }
        }
    };
    let both = async {
        tokio::join!(
            pump(near_read, far_write, way, Direction::Dialled, links.clone()),
            pump(far_read, near_write, way, Direction::Back, links.clone()),
        )
    };
    tokio::select! {
        _ = both => {}
        () = broken => {}
    }
}

/// Which two members a connection joins.
#[derive(Clone, Copy)]
struct Way {
    /// The dialler's id as it says; 0 if it does not.
    sender: u64,
    dialled: usize,
}

#[derive(Clone, Copy)]
enum Direction {
    Dialled,
    Back,
}

/// Both links of a connection.
struct State {
    there: Link,
    back: Link,
}

impl State {
    fn is_cut(&self) -> bool {
        self.there.cut
    }

    fn resets(&self) -> (u64, u64) {
        (self.there.resets, self.back.resets)
    }
}

impl Way {
    fn state(self, links: &mut watch::Receiver<Links>) -> State {
        let links = links.borrow_and_update();
        let from = links.ids.iter().position(|id| *id != 0 && *id == self.sender);
        let to = Some(self.dialled);
        State { there: links.link(from, to), back: links.link(to, from) }
    }

    fn link(self, links: &mut watch::Receiver<Links>, direction: Direction) -> Link {
        let state = self.state(links);
        match direction {
            Direction::Dialled => state.there,
            Direction::Back => state.back,
        }
    }
}

/// Carries one direction: what is read is written later by the link's delay, and not while the link is held.
async fn pump(
    mut from: OwnedReadHalf,
    mut to: OwnedWriteHalf,
    way: Way,
    direction: Direction,
    mut links: watch::Receiver<Links>,
) {
    let (sender, mut chunks) = mpsc::channel::<(Instant, Vec<u8>)>(CHUNKS_MAX);
    let read = async move {
        let mut buffer = vec![0; CHUNK_BYTES];
        while let Ok(count) = from.read(&mut buffer).await {
            if count == 0 || sender.send((Instant::now(), buffer[..count].to_vec())).await.is_err() {
                return;
            }
        }
    };
    let write = async move {
        while let Some((arrived, chunk)) = chunks.recv().await {
            loop {
                let link = way.link(&mut links, direction);
                let due = arrived + link.delay;
                if link.held {
                    // Ends with the network.
                    if links.changed().await.is_err() {
                        return;
                    }
                } else if due > Instant::now() {
                    tokio::time::sleep_until(due).await;
                } else {
                    break;
                }
            }
            if to.write_all(&chunk).await.is_err() {
                return;
            }
        }
        // The other end may still have something to say.
        let _ = to.shutdown().await;
    };
    tokio::join!(read, write);
}

/// Whose request opens the connection, without taking anything from it; 0 if it does not say. `None` if it ended.
async fn sender(stream: &TcpStream) -> Option<u64> {
    let mut head = vec![0; HEAD_BYTES_MAX];
    for _ in 0..HEAD_POLLS_MAX {
        let count = stream.peek(&mut head).await.ok().filter(|count| *count > 0)?;
        let text = String::from_utf8_lossy(&head[..count]);
        let Some((headers, _)) = text.split_once("\r\n\r\n") else {
            if count == head.len() {
                return Some(0);
            }
            tokio::time::sleep(HEAD_POLL).await;
            continue;
        };
        return Some(sender_of(headers));
    }
    Some(0)
}

fn sender_of(headers: &str) -> u64 {
    let lines = headers.lines().map(str::to_ascii_lowercase);
    let mut values = lines.filter_map(|line| line.strip_prefix(SENDER).map(|value| value.trim().to_owned()));
    values.next().and_then(|value| u64::from_str_radix(&value, 16).ok()).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::faults::ports::free_port;

    const A: &str = "POST /raft HTTP/1.1\r\nX-Server-From: 0a\r\n\r\n";

    /// A server that answers every line with itself, behind member 1's relay of two; member 0 has the id 0xa.
    async fn network() -> (Network, u16) {
        let (port, target) = (free_port().unwrap(), free_port().unwrap());
        let other = (free_port().unwrap(), free_port().unwrap());
        let listener = TcpListener::bind(("127.0.0.1", target)).await.unwrap();
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                tokio::spawn(async move {
                    let (mut read, mut write) = stream.split();
                    let _ = tokio::io::copy(&mut read, &mut write).await;
                });
            }
        });
        let network = Network::start(&[other, (port, target)]).await.unwrap();
        network.name(0, 10);
        (network, port)
    }

    async fn dial(port: u16) -> TcpStream {
        let mut stream = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
        stream.write_all(A.as_bytes()).await.unwrap();
        stream
    }

    /// Waits for `count` bytes; the number that came before the end.
    async fn receive(stream: &mut TcpStream, count: usize) -> usize {
        let mut buffer = vec![0; count];
        let mut got = 0;
        while got < count {
            match stream.read(&mut buffer[got..]).await {
                Ok(0) | Err(_) => break,
                Ok(more) => got += more,
            }
        }
        got
    }

    #[test]
    fn the_sender_is_read_from_its_header() {
        assert_eq!(sender_of("GET / HTTP/1.1\r\nx-SERVER-from:  ff\r\nA: b"), 255);
        assert_eq!(sender_of("GET / HTTP/1.1\r\nX-Server-From: none"), 0);
        assert_eq!(sender_of(""), 0);
    }

    #[tokio::test]
    async fn a_cut_link_ends_its_connections_and_a_healed_one_takes_new_ones() {
        let (network, port) = network().await;
        let mut stream = dial(port).await;
        assert_eq!(receive(&mut stream, A.len()).await, A.len());
        network.isolate(0);
        assert_eq!(receive(&mut stream, 1).await, 0);
        assert_eq!(receive(&mut dial(port).await, 1).await, 0);
        network.heal();
        assert_eq!(receive(&mut dial(port).await, A.len()).await, A.len());
    }

    #[tokio::test]
    async fn a_held_link_passes_nothing_one_way_until_it_is_released() {
        let (network, port) = network().await;
        let mut stream = dial(port).await;
        assert_eq!(receive(&mut stream, A.len()).await, A.len());
        // From member 1 back to member 0: the echo.
        network.set(|from, _| Link { held: from == 1, ..Link::default() });
        stream.write_all(b"later").await.unwrap();
        let nothing = tokio::time::timeout(Duration::from_millis(100), receive(&mut stream, 1)).await;
        assert!(nothing.is_err(), "something came through");
        network.heal();
        assert_eq!(receive(&mut stream, 5).await, 5);
    }

    #[tokio::test]
    async fn a_reset_loses_what_was_held() {
        let (network, port) = network().await;
        let mut stream = dial(port).await;
        assert_eq!(receive(&mut stream, A.len()).await, A.len());
        network.set(|_, _| Link { held: true, ..Link::default() });
        stream.write_all(b"lost").await.unwrap();
        network.set(|_, _| Link { resets: 1, ..Link::default() });
        assert!(receive(&mut stream, 4).await < 4);
    }
}

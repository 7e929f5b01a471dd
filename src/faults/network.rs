//! Wires that can be cut: a TCP relay in front of each member's peer port, which the member advertises as its own.
//!
//! Who dials is read from the request that opens the connection (`X-Server-From`, etcd's peer protocol), or is asked of
//! whoever knows the processes of this machine (`Diallers`; the request may be encrypted). So each ordered pair of
//! members is a link of its own. A link can be *held* (what is sent waits, also for minutes), *late*, *lossy*, *narrow*,
//! or *cut*: connections that its first member opened end, and no new one is taken. What was held arrives in the end, or
//! is lost with its connection.
//!
//! A stream of TCP never shows a lost packet to its reader: what is lost is sent again, and comes late. So a lossy link
//! takes no bytes out of a stream, which no network does; it makes pieces late as resending would, and holds everything
//! when everything is lost.

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::PoisonError;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering;
use std::time::Duration;

use futures_util::future::BoxFuture;
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

use crate::disk::sim::Dice;

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
/// What every TLS connection begins with: a handshake.
const TLS_HANDSHAKE: u8 = 0x16;
/// Linux sends again what was not acknowledged after this long at the least, and after twice as long each further time.
const RESEND_AFTER: Duration = Duration::from_millis(200);
/// Losses of one piece in a row that are played; more would only be a longer silence.
const LOSSES_MAX: i32 = 8;
/// A narrow link is written to in as many pieces a second.
const PIECES_A_SECOND: u64 = 20;

/// Says which member has opened the connection whose other end this is.
pub type Diallers = Arc<dyn Fn(SocketAddr) -> BoxFuture<'static, Option<usize>> + Send + Sync>;

/// One direction between two members.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Link {
    /// Nothing passes in this direction, whoever opened the connection.
    pub held: bool,
    /// No connection is opened in this direction.
    pub cut: bool,
    pub delay: Duration,
    /// The delay is up to so much shorter or longer, differently for each piece.
    pub jitter: Duration,
    /// So many of a hundred pieces are lost, and sent again.
    pub loss_percent: u8,
    /// Bytes a second, of all its connections together; 0 is no limit.
    pub rate: u64,
    /// Another value than before: connections that use the link end now.
    pub resets: u64,
}

/// What chance has for one piece of a stream.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Luck {
    /// From -1 to 1: how much of the jitter it is given.
    jitter: f64,
    /// Between 0 and 1: the smaller, the more often it is lost.
    loss: f64,
}

impl Luck {
    fn roll(dice: &mut Dice) -> Luck {
        const STEPS: u64 = 1 << 20;
        let mut unit = || (dice.below(STEPS) as f64 + 0.5) / STEPS as f64;
        Luck { jitter: 2.0 * unit() - 1.0, loss: unit() }
    }
}

impl Link {
    /// Whether nothing passes.
    fn is_silent(&self) -> bool {
        self.held || self.loss_percent >= 100
    }

    /// How late a piece comes.
    fn lateness(&self, luck: Luck) -> Duration {
        let jitter = self.jitter.mul_f64(luck.jitter.abs());
        let way = if luck.jitter < 0.0 { self.delay.saturating_sub(jitter) } else { self.delay.saturating_add(jitter) };
        way.saturating_add(self.resending(luck))
    }

    /// How long it takes until a piece that is lost again and again gets through.
    fn resending(&self, luck: Luck) -> Duration {
        if self.loss_percent == 0 || self.loss_percent >= 100 {
            return Duration::ZERO;
        }
        // Lost n times in a row with the n-th power of the chance to be lost once.
        let losses = (luck.loss.ln() / (f64::from(self.loss_percent) / 100.0).ln()).floor();
        RESEND_AFTER.mul_f64(losses.clamp(0.0, f64::from(LOSSES_MAX)).exp2() - 1.0)
    }

    /// Bytes to write at once.
    fn piece(&self) -> usize {
        match self.rate {
            0 => CHUNK_BYTES,
            rate => usize::try_from(rate / PIECES_A_SECOND).unwrap_or(CHUNK_BYTES).clamp(1, CHUNK_BYTES),
        }
    }
}

impl fmt::Display for Link {
    /// `delay 100ms±50ms, drop 10%`; nothing for a link on which everything passes.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let millis = |duration: Duration| duration.as_millis();
        let jitter = if self.jitter.is_zero() { String::new() } else { format!("±{}ms", millis(self.jitter)) };
        let parts = [
            self.cut.then(|| "cut".to_owned()),
            self.held.then(|| "silent".to_owned()),
            (!self.delay.is_zero() || !self.jitter.is_zero())
                .then(|| format!("delay {}ms{jitter}", millis(self.delay))),
            (self.loss_percent > 0).then(|| format!("drop {}%", self.loss_percent)),
            (self.rate > 0).then(|| format!("throttle {}B/s", self.rate)),
        ];
        f.write_str(&parts.into_iter().flatten().collect::<Vec<_>>().join(", "))
    }
}

/// When each narrow link is free again.
#[derive(Debug)]
struct Narrows(Vec<Mutex<Option<Instant>>>);

impl Narrows {
    fn new(size: usize) -> Narrows {
        Narrows((0..size * size).map(|_| Mutex::new(None)).collect())
    }

    /// Takes the link for so many bytes; when they have passed.
    fn reserve(&self, place: usize, bytes: usize, rate: u64, now: Instant) -> Instant {
        let mut free = self.0[place].lock().unwrap_or_else(PoisonError::into_inner);
        let begin = free.unwrap_or(now).max(now);
        let end = begin + Duration::from_secs_f64(bytes as f64 / rate.max(1) as f64);
        *free = Some(end);
        end
    }
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
                jitter: one.jitter.min(other.jitter),
                loss_percent: one.loss_percent.min(other.loss_percent),
                // The widest: 0 is no limit.
                rate: if one.rate == 0 || other.rate == 0 { 0 } else { one.rate.max(other.rate) },
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

    /// Where bytes of a link are counted. Those of nobody known are counted where no link is, at an end's link to itself.
    fn place(&self, from: Option<usize>, to: Option<usize>) -> usize {
        let one = from.or(to).unwrap_or_default();
        one * self.size + to.unwrap_or(one)
    }
}

/// What the connections of a network share.
#[derive(Clone)]
struct Shared {
    links: watch::Sender<Links>,
    narrows: Arc<Narrows>,
    diallers: Option<Diallers>,
    /// Connections that were taken: each has dice of its own.
    taken: Arc<AtomicU64>,
}

/// Relays for all members of a cluster. Dropping it ends them.
pub struct Network {
    links: watch::Sender<Links>,
    relays: Vec<JoinHandle<()>>,
}

impl Network {
    /// Listens on each first port for a member that listens on the second.
    pub async fn start(ports: &[(u16, u16)]) -> io::Result<Network> {
        Network::start_asking(ports, None).await
    }

    /// The same; who dials is asked of `diallers` before the request is looked at.
    pub async fn start_asking(ports: &[(u16, u16)], diallers: Option<Diallers>) -> io::Result<Network> {
        let size = ports.len();
        let links = Links { size, ids: vec![0; size], links: vec![Link::default(); size * size] };
        let links = watch::Sender::new(links);
        let narrows = Arc::new(Narrows::new(size));
        let shared = Shared { links: links.clone(), narrows, diallers, taken: Arc::default() };
        let mut relays = Vec::new();
        for (member, (port, target)) in ports.iter().copied().enumerate() {
            let listener = TcpListener::bind(("127.0.0.1", port)).await?;
            relays.push(tokio::spawn(relay(listener, target, member, shared.clone())));
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
async fn relay(listener: TcpListener, target: u16, member: usize, shared: Shared) {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => {
                // An error is about one connection that its dialler will try again.
                let Ok((near, dialler)) = accepted else { continue };
                connections.spawn(carry(near, dialler, target, member, shared.clone()));
            }
            Some(_) = connections.join_next() => {}
        }
    }
}

/// One connection to its end. How it ends is told to its two ends by its end.
async fn carry(near: TcpStream, dialler: SocketAddr, target: u16, to: usize, shared: Shared) {
    let known = match &shared.diallers {
        Some(ask) => ask(dialler).await,
        None => None,
    };
    let from = match known {
        Some(member) => Dialler::Member(member),
        None => match sender(&near).await {
            Some(id) => Dialler::Id(id),
            None => return,
        },
    };
    let mut links = shared.links.subscribe();
    let way = Way { from, dialled: to };
    let start = way.state(&mut links);
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
            pump(near_read, far_write, way, Direction::Dialled, &shared),
            pump(far_read, near_write, way, Direction::Back, &shared),
        )
    };
    tokio::select! {
        _ = both => {}
        () = broken => {}
    }
}

/// Who has opened a connection.
#[derive(Clone, Copy)]
enum Dialler {
    Member(usize),
    /// The id that it says; 0 if it does not say one.
    Id(u64),
}

/// Which two members a connection joins.
#[derive(Clone, Copy)]
struct Way {
    from: Dialler,
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

/// One direction of a connection at a moment.
struct Lane {
    link: Link,
    /// Where its bytes are counted.
    place: usize,
}

impl Way {
    fn ends(self, links: &Links) -> (Option<usize>, Option<usize>) {
        let from = match self.from {
            Dialler::Member(member) => Some(member),
            Dialler::Id(sender) => links.ids.iter().position(|id| *id != 0 && *id == sender),
        };
        (from, Some(self.dialled))
    }

    fn state(self, links: &mut watch::Receiver<Links>) -> State {
        let links = links.borrow_and_update();
        let (from, to) = self.ends(&links);
        State { there: links.link(from, to), back: links.link(to, from) }
    }

    fn lane(self, links: &mut watch::Receiver<Links>, direction: Direction) -> Lane {
        let links = links.borrow_and_update();
        let (from, to) = self.ends(&links);
        let (from, to) = match direction {
            Direction::Dialled => (from, to),
            Direction::Back => (to, from),
        };
        Lane { link: links.link(from, to), place: links.place(from, to) }
    }
}

/// Carries one direction: what is read is written as late as the link is, and not while the link is held.
async fn pump(mut from: OwnedReadHalf, mut to: OwnedWriteHalf, way: Way, direction: Direction, shared: &Shared) {
    let (sender, mut chunks) = mpsc::channel::<(Instant, Vec<u8>)>(CHUNKS_MAX);
    let mut links = shared.links.subscribe();
    let mut dice = Dice::new(shared.taken.fetch_add(1, Ordering::Relaxed));
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
            let luck = Luck::roll(&mut dice);
            let mut rest = chunk.as_slice();
            while !rest.is_empty() {
                // Ends with the network.
                let Some(lane) = passable(way, direction, arrived, luck, &mut links).await else { return };
                let (piece, later) = rest.split_at(lane.link.piece().min(rest.len()));
                if lane.link.rate > 0 {
                    let free = shared.narrows.reserve(lane.place, piece.len(), lane.link.rate, Instant::now());
                    tokio::time::sleep_until(free).await;
                }
                if to.write_all(piece).await.is_err() {
                    return;
                }
                rest = later;
            }
        }
        // The other end may still have something to say.
        let _ = to.shutdown().await;
    };
    tokio::join!(read, write);
}

/// Waits until something that arrived then may pass, under what the link is now. `None` when the network has ended.
async fn passable(
    way: Way,
    direction: Direction,
    arrived: Instant,
    luck: Luck,
    links: &mut watch::Receiver<Links>,
) -> Option<Lane> {
    loop {
        let lane = way.lane(links, direction);
        if lane.link.is_silent() {
            links.changed().await.ok()?;
            continue;
        }
        let due = arrived + lane.link.lateness(luck);
        if due <= Instant::now() {
            return Some(lane);
        }
        tokio::select! {
            () = tokio::time::sleep_until(due) => {}
            changed = links.changed() => changed.ok()?,
        }
    }
}

/// Whose request opens the connection, without taking anything from it; 0 if it does not say. `None` if it ended.
async fn sender(stream: &TcpStream) -> Option<u64> {
    let mut head = vec![0; HEAD_BYTES_MAX];
    for _ in 0..HEAD_POLLS_MAX {
        let count = stream.peek(&mut head).await.ok().filter(|count| *count > 0)?;
        if head[0] == TLS_HANDSHAKE {
            return Some(0);
        }
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

    #[test]
    fn a_piece_is_as_late_as_its_luck_has_it() {
        let fair = Luck { jitter: 0.0, loss: 0.99 };
        let millis = |link: Link, luck: Luck| link.lateness(luck).as_millis();
        let late = |delay, jitter| Link {
            delay: Duration::from_millis(delay),
            jitter: Duration::from_millis(jitter),
            ..Link::default()
        };
        assert_eq!(millis(Link::default(), fair), 0);
        assert_eq!(millis(late(100, 50), Luck { jitter: -1.0, ..fair }), 50);
        assert_eq!(millis(late(100, 50), Luck { jitter: 0.5, ..fair }), 125);
        assert_eq!(millis(late(10, 50), Luck { jitter: -1.0, ..fair }), 0);
        let lossy = Link { loss_percent: 10, ..Link::default() };
        let lost = |loss| millis(lossy, Luck { jitter: 0.0, loss });
        // One of ten is lost, one of a hundred twice.
        assert_eq!([lost(0.11), lost(0.09), lost(0.009), lost(0.0)], [0, 200, 600, 200 * 255]);
        assert!(Link { loss_percent: 100, ..Link::default() }.is_silent());
    }

    #[test]
    fn a_link_says_what_is_wrong_with_it() {
        let text = |link: Link| link.to_string();
        assert_eq!(text(Link::default()), "");
        let link = Link { delay: Duration::from_millis(100), jitter: Duration::from_millis(5), ..Link::default() };
        assert_eq!(text(Link { loss_percent: 10, rate: 1000, ..link }), "delay 100ms±5ms, drop 10%, throttle 1000B/s");
        assert_eq!(text(Link { cut: true, held: true, ..Link::default() }), "cut, silent");
    }

    #[test]
    fn a_narrow_link_is_shared_by_all_that_use_it() {
        let narrows = Narrows::new(2);
        let now = Instant::now();
        let passed = |place, bytes| narrows.reserve(place, bytes, 1000, now).duration_since(now).as_millis();
        assert_eq!([passed(1, 500), passed(1, 500), passed(2, 100)], [500, 1000, 100]);
        assert_eq!(Link { rate: 2000, ..Link::default() }.piece(), 100);
        assert_eq!(Link { rate: 3, ..Link::default() }.piece(), 1);
    }

    #[tokio::test]
    async fn a_healed_link_does_not_wait_for_the_delay_that_it_had() {
        let (network, port) = network().await;
        network.set(|_, _| Link { delay: Duration::from_secs(3600), ..Link::default() });
        let mut stream = dial(port).await;
        let nothing = tokio::time::timeout(Duration::from_millis(100), receive(&mut stream, 1)).await;
        assert!(nothing.is_err(), "something came through");
        network.heal();
        assert_eq!(receive(&mut stream, A.len()).await, A.len());
    }

    #[tokio::test]
    async fn whoever_knows_the_diallers_is_asked_before_the_request_is_read() {
        let (port, target, other) = (free_port().unwrap(), free_port().unwrap(), free_port().unwrap());
        let listener = TcpListener::bind(("127.0.0.1", target)).await.unwrap();
        tokio::spawn(async move {
            let mut all = Vec::new();
            while let Ok((mut stream, _)) = listener.accept().await {
                // It says who it is before anything was sent to it.
                let _ = stream.write_all(b"hello").await;
                all.push(stream);
            }
        });
        let ask: Diallers = Arc::new(|_| Box::pin(async { Some(0) }));
        let network = Network::start_asking(&[(other, 1), (port, target)], Some(ask)).await.unwrap();
        let mut stream = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
        assert_eq!(receive(&mut stream, 5).await, 5);
        network.isolate(0);
        assert_eq!(receive(&mut stream, 1).await, 0);
    }
}

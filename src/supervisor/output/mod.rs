//! What processes print, and what we say: to the screen, into memory and into files, whole lines and never in a child's way.
//!
//! ```text
//!  pipe of a process ─▶ reading ─▶ lines ─▶ Feed ─┬─▶ painter ─▶ screen   bounded; the oldest go, or children wait
//!                                                 ├─▶ store               the last lines of each, to look back and to follow
//!  what we say ───────────────────▶ Feed::say ────┘
//! ```
//!
//! A terminal that is slow or stopped must not stop a process: 64 KiB later an etcd would stand still in its logger, and
//! its followers would elect (supervisor.md 6, trap 6). So lines that wait for the screen are bounded and the oldest are
//! dropped, counted and told of, unless `lossless` says that children are to wait. goreman's children wait.

pub mod escapes;
pub mod lines;
pub mod moment;
pub mod painter;
pub mod queue;
pub mod reading;
pub mod screen;
pub mod store;

use std::io::Write;
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::io::AsyncRead;
use tokio::sync::Notify;
use tokio::sync::oneshot;

use crate::program::Manner;
use crate::supervisor::output::lines::Piece;
use crate::supervisor::output::moment::Moment;
use crate::supervisor::output::painter::Face;
use crate::supervisor::output::painter::Painter;
use crate::supervisor::output::painter::SYSTEM;
use crate::supervisor::output::painter::Style;
use crate::supervisor::output::reading::Cut;
use crate::supervisor::output::reading::Reading;
use crate::supervisor::output::screen::Screen;
use crate::supervisor::output::store::LogId;
use crate::supervisor::output::store::LogStore;
use crate::supervisor::output::store::Source;
use crate::supervisor::output::store::Stream;

/// How long readers that make no progress keep us from ending.
const STALLED_MAX: Duration = Duration::from_secs(2);

/// Everything about output that is asked for.
#[derive(Debug)]
pub struct Settings {
    pub style: Style,
    /// Children wait for a slow screen; otherwise the oldest lines are dropped.
    pub lossless: bool,
}

/// Where all lines go. Cloned for everybody who has something to say.
#[derive(Clone, Debug)]
pub struct Output(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    manner: Manner,
    painter: Arc<Painter>,
    screen: Screen,
    store: LogStore,
    system: LogId,
    readers: Readers,
}

/// How many readers are at work.
#[derive(Debug, Default)]
struct Readers {
    count: AtomicUsize,
    /// One has read something, or has ended.
    progress: Notify,
}

/// Counts a reader while it lives.
pub struct CountedReader(Arc<Shared>);

impl Drop for CountedReader {
    fn drop(&mut self) {
        self.0.readers.count.fetch_sub(1, Ordering::AcqRel);
        self.0.readers.progress.notify_one();
    }
}

impl Output {
    /// Starts to write, for processes of these names. The receiver resolves when the screen is broken.
    pub fn start<'a>(
        sink: impl Write + Send + 'static,
        settings: Settings,
        names: impl IntoIterator<Item = &'a str>,
    ) -> (Output, oneshot::Receiver<std::io::Result<()>>) {
        let manner = settings.style.manner;
        let painter = Arc::new(Painter::new(settings.style, names));
        let marks = Arc::clone(&painter);
        let mark = move |count: u64| {
            let lines = if count == 1 { "line" } else { "lines" };
            marks.own(&format!("{count} {lines} dropped: the screen is too slow (--lossless lets the processes wait)"))
        };
        let (screen, ended) = Screen::start(sink, settings.lossless, Box::new(mark));
        let store = LogStore::new();
        let system = store.register(SYSTEM);
        let readers = Readers::default();
        (Output(Arc::new(Shared { manner, painter, screen, store, system, readers })), ended)
    }

    /// The way for what the process at this place of the Procfile prints, and what is said about it.
    pub fn feed(&self, place: usize, name: &str) -> Feed {
        let id = self.0.store.register(name);
        Feed { shared: Arc::clone(&self.0), id, face: Arc::new(self.0.painter.face(place, name)) }
    }

    /// What was printed, to look back and to follow.
    pub fn store(&self) -> &LogStore {
        &self.0.store
    }

    /// Says something that is about no process in particular.
    pub fn say(&self, text: &str) {
        self.0.say(self.0.system, text);
    }

    /// Waits until everything is shown, as long as there is progress. Nothing is to be said after it.
    pub async fn finish(&self) {
        let readers = &self.0.readers;
        while readers.count.load(Ordering::Acquire) > 0 {
            if tokio::time::timeout(STALLED_MAX, readers.progress.notified()).await.is_err() {
                break;
            }
        }
        self.0.store.close();
        self.0.screen.finish().await;
    }
}

impl Shared {
    fn say(&self, id: LogId, text: &str) {
        let source = Source { id, stream: Stream::Own, pid: None, at: Moment::now() };
        self.store.append(source, |add| text.lines().for_each(|line| add(line.as_bytes(), false)));
        self.screen.own(self.painter.own(text));
    }
}

/// One process's way to the screen, to memory and to files.
#[derive(Clone, Debug)]
pub struct Feed {
    shared: Arc<Shared>,
    id: LogId,
    face: Arc<Face>,
}

impl Feed {
    /// Says something about the process. goreman says it in the process's own name.
    pub fn say(&self, text: &str) {
        match self.shared.manner {
            Manner::Native => self.shared.say(self.id, text),
            Manner::Original => {
                let mut bytes = Vec::new();
                let painter = &self.shared.painter;
                painter.original(&mut bytes, &self.face, &painter.clock(Moment::now()), format!("{text}\n").as_bytes());
                self.shared.screen.own(bytes);
            }
        }
    }

    /// Reads what a start of the process prints. `pid` is the child that was started.
    pub fn read(&self, reader: impl AsyncRead + Unpin + Send + 'static, stream: Stream, pid: i32) -> Reading {
        Reading::start(self.clone(), reader, stream, pid)
    }

    fn manner(&self) -> Manner {
        self.shared.manner
    }

    fn count_reader(&self) -> CountedReader {
        self.shared.readers.count.fetch_add(1, Ordering::AcqRel);
        CountedReader(Arc::clone(&self.shared))
    }

    /// Takes what was read. How many lines it ended.
    async fn deliver(&self, cut: &mut Cut, stream: Stream, pid: i32, bytes: &[u8]) -> u64 {
        let mut sheet = Sheet::new(self, stream, pid);
        match cut {
            Cut::Original(lines) => lines.push(bytes, |line| sheet.original(line)),
            Cut::Native(cutter) => sheet.fill(|give| cutter.push(bytes, give)),
        }
        self.show(sheet).await
    }

    /// Takes what was held back: the line goes on later, or it ends here.
    async fn release(&self, cut: &mut Cut, stream: Stream, pid: i32, at_end: bool) {
        let mut sheet = Sheet::new(self, stream, pid);
        match cut {
            Cut::Original(lines) => lines.flush(|line| sheet.original(line)),
            Cut::Native(cutter) if at_end => sheet.fill(|give| cutter.finish(give)),
            Cut::Native(cutter) => sheet.fill(|give| cutter.release(give)),
        }
        self.show(sheet).await;
    }

    async fn show(&self, sheet: Sheet<'_>) -> u64 {
        let (bytes, lines) = (sheet.bytes, sheet.lines);
        if !bytes.is_empty() {
            self.shared.screen.lines(bytes, lines).await;
        }
        self.shared.readers.progress.notify_one();
        lines
    }
}

/// Lines of one read on their way.
struct Sheet<'a> {
    feed: &'a Feed,
    source: Source,
    clock: String,
    bytes: Vec<u8>,
    lines: u64,
}

impl Sheet<'_> {
    fn new(feed: &Feed, stream: Stream, pid: i32) -> Sheet<'_> {
        let at = Moment::now();
        let source = Source { id: feed.id, stream, pid: Some(pid), at };
        Sheet { feed, source, clock: feed.shared.painter.clock(at), bytes: Vec::new(), lines: 0 }
    }

    fn original(&mut self, line: &[u8]) {
        self.feed.shared.painter.original(&mut self.bytes, &self.feed.face, &self.clock, line);
        self.lines += 1;
    }

    /// Remembers and paints every piece that `cut` gives.
    fn fill(&mut self, cut: impl FnOnce(&mut dyn FnMut(Piece<'_>))) {
        let Sheet { feed, source, clock, bytes, lines } = self;
        let painter = &feed.shared.painter;
        feed.shared.store.append(*source, |add| {
            cut(&mut |piece| {
                add(piece.text, !piece.ends);
                painter.line(bytes, &feed.face, source.stream, clock, source.at, piece);
                *lines += u64::from(piece.ends);
            });
        });
    }
}

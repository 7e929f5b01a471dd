//! What processes print, and what we say: to the screen, into memory and into files, whole lines and never in a child's way.
//!
//! ```text
//!  pipe of a process ─▶ reading ─▶ lines ─▶ Feed ─┬─▶ painter ─▶ screen   bounded: the oldest go, or children wait
//!                          │                      ├─▶ store               the last lines, to look back and to follow
//!  what we say ────────────┼───────▶ Feed::say ───┴─▶ painter ─▶ files    all of them together
//!                          └────────────────────────────────────▶ files   one a process, its bytes as they are
//! ```
//!
//! A terminal that is slow or stopped must not stop a process: 64 KiB later an etcd would stand still in its logger, and
//! its followers would elect (supervisor.md 6, trap 6). So lines that wait for the screen are bounded and the oldest are
//! dropped, counted and told of, unless `lossless` says that children are to wait. goreman's children wait.

pub mod args;
pub mod attach;
pub mod escapes;
pub mod files;
pub mod json;
pub mod lines;
pub mod log_file;
pub mod moment;
pub mod painter;
pub mod pretty;
pub mod queue;
pub mod reading;
pub mod screen;
pub mod sheet;
pub mod store;
pub mod summary;
pub mod terminal;

use std::io::Write;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::MutexGuard;
use std::sync::PoisonError;
use std::sync::atomic::AtomicUsize;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::signal::unix::SignalKind;
use tokio::signal::unix::signal;
use tokio::sync::Notify;
use tokio::sync::oneshot;

use crate::program::Manner;
use crate::supervisor::output::files::FileId;
use crate::supervisor::output::files::Files;
use crate::supervisor::output::files::FilesSettings;
use crate::supervisor::output::files::OpenError;
use crate::supervisor::output::moment::Moment;
use crate::supervisor::output::painter::Face;
use crate::supervisor::output::painter::Painter;
use crate::supervisor::output::painter::SYSTEM;
use crate::supervisor::output::painter::Stamp;
use crate::supervisor::output::painter::Style;
use crate::supervisor::output::reading::Cut;
use crate::supervisor::output::screen::Screen;
use crate::supervisor::output::sheet::Sheet;
use crate::supervisor::output::store::LogId;
use crate::supervisor::output::store::LogStore;
use crate::supervisor::output::store::Origin;
use crate::supervisor::output::store::Stream;
use crate::supervisor::output::summary::History;
use crate::supervisor::output::terminal::Size;
use crate::supervisor::output::terminal::Terminal;

/// How long readers keep us from ending: what is left in their pipes is read at once.
const READERS_MAX: Duration = Duration::from_secs(3);

/// Everything about output that is asked for.
#[derive(Clone, Debug)]
pub struct Settings {
    pub style: Style,
    /// Children wait for a slow screen; otherwise the oldest lines are dropped.
    pub lossless: bool,
    /// Processes whose lines are not shown.
    pub quiet: Vec<String>,
    /// Standard error has a pipe of its own.
    pub split: bool,
    pub files: FilesSettings,
    /// At the end it is said what became of every process.
    pub summary: bool,
}

impl Settings {
    /// Only a screen: children wait for goreman's.
    pub fn plain(style: Style) -> Settings {
        let lossless = style.manner == Manner::Original;
        Settings { style, lossless, quiet: Vec::new(), split: false, files: FilesSettings::default(), summary: false }
    }
}

/// Where all lines go. Cloned for everybody who has something to say.
#[derive(Clone, Debug)]
pub struct Output(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    settings: Settings,
    painter: Arc<Painter>,
    screen: Screen,
    store: LogStore,
    system: LogId,
    files: Option<Merged>,
    readers: Readers,
    /// The processes that have a feed, in the order in which they got it.
    known: Mutex<Vec<Known>>,
}

/// The files, and how the one of all processes looks.
#[derive(Debug)]
struct Merged {
    files: Files,
    file: Option<FileId>,
    painter: Painter,
}

/// What is asked for by name.
#[derive(Debug)]
struct Known {
    name: String,
    history: Arc<History>,
    terminal: terminal::Place,
}

/// How many readers are at work.
#[derive(Debug, Default)]
struct Readers {
    count: AtomicUsize,
    /// One has ended.
    less: Notify,
}

/// Counts a reader while it lives.
pub struct CountedReader(Arc<Shared>);

impl Drop for CountedReader {
    fn drop(&mut self) {
        self.0.readers.count.fetch_sub(1, Ordering::AcqRel);
        self.0.readers.less.notify_one();
    }
}

impl Readers {
    async fn ended(&self) {
        while self.count.load(Ordering::Acquire) > 0 {
            self.less.notified().await;
        }
    }
}

/// Resolves when somebody wants us to end who has wanted it before.
async fn asked_again() {
    let heard = async |kind: SignalKind| match signal(kind) {
        Ok(mut signal) => drop(signal.recv().await),
        Err(_) => std::future::pending().await,
    };
    tokio::select! {
        () = heard(SignalKind::interrupt()) => {}
        () = heard(SignalKind::terminate()) => {}
        () = heard(SignalKind::hangup()) => {}
    }
}

impl Output {
    /// Starts to write, for processes of these names. The receiver resolves when the screen is broken.
    pub fn start(
        sink: impl Write + Send + 'static,
        settings: Settings,
        names: &[&str],
    ) -> Result<(Output, oneshot::Receiver<std::io::Result<()>>), OpenError> {
        let painter = Arc::new(Painter::new(settings.style.clone(), names.iter().copied()));
        let marks = Arc::clone(&painter);
        let mark = move |count: u64| {
            let lines = if count == 1 { "line" } else { "lines" };
            marks.own(&format!("{count} {lines} dropped: the screen is too slow (--lossless lets the processes wait)"))
        };
        let (screen, ended) = Screen::start(sink, settings.lossless, Box::new(mark));
        let store = LogStore::new();
        let system = store.register(SYSTEM);
        let has_files = settings.files.dir.is_some() || settings.files.merged.is_some();
        let files = has_files.then(|| Merged::start(&settings, names, &screen, &store, &painter)).transpose()?;
        let (readers, known) = (Readers::default(), Mutex::default());
        let shared = Shared { settings, painter, screen, store, system, files, readers, known };
        Ok((Output(Arc::new(shared)), ended))
    }

    /// The way for what the process at this place of the Procfile prints, and what is said about it.
    pub fn feed(&self, place: usize, name: &str) -> Feed {
        let shared = &self.0;
        let history = Arc::<History>::default();
        let terminal = terminal::Place::default();
        let known = Known { name: name.to_owned(), history: Arc::clone(&history), terminal: terminal.clone() };
        shared.known().push(known);
        if let Some(merged) = &shared.files {
            merged.painter.admit(name);
        }
        Feed {
            id: shared.store.register(name),
            face: Arc::new(shared.painter.face(place, name)),
            is_quiet: shared.settings.quiet.iter().any(|quiet| quiet == name),
            // It could be opened at the start; a name that came later and cannot have a file has none.
            file: shared.files.as_ref().and_then(|merged| merged.files.of_process(name).ok().flatten()),
            history,
            terminal,
            has_terminal: false,
            shared: Arc::clone(shared),
        }
    }

    /// What was printed, to look back and to follow.
    pub fn store(&self) -> &LogStore {
        &self.0.store
    }

    /// Says something that is about no process in particular.
    pub fn say(&self, text: &str) {
        self.0.say(self.0.system, self.0.painter.system(), text);
    }

    /// As long as the runtime lives, SIGUSR1 opens the log files anew, and processes with a terminal hear of a window
    /// that has another size.
    pub fn heed_signals(&self) -> std::io::Result<()> {
        let mut reopen = signal(SignalKind::user_defined1())?;
        let mut window = signal(SignalKind::window_change())?;
        let output = self.clone();
        tokio::spawn(async move {
            loop {
                tokio::select! {
                    Some(()) = reopen.recv() => {
                        if let Some(merged) = &output.0.files {
                            merged.files.reopen();
                        }
                    }
                    Some(()) = window.recv() => output.window_changed(),
                    else => return,
                }
            }
        });
        Ok(())
    }

    /// Waits until everything is shown and written. A screen that stands still is not waited for, unless nothing may be
    /// lost: then only somebody who asks again ends the waiting. Nothing is to be said after it.
    pub async fn finish(&self) {
        let lossless = self.0.settings.lossless;
        let all = async {
            let readers = self.0.readers.ended();
            match lossless {
                true => readers.await,
                false => drop(tokio::time::timeout(READERS_MAX, readers).await),
            }
            if self.0.settings.summary {
                self.say(&self.summary());
            }
            if let Some(merged) = &self.0.files {
                // In front of the screen, which hears of what could not be written.
                merged.files.finish().await;
            }
            self.0.store.close();
            self.0.screen.finish(lossless).await;
        };
        tokio::select! {
            () = all => {}
            () = asked_again() => self.0.store.close(),
        }
    }

    /// What became of every process.
    pub fn summary(&self) -> String {
        summary::table(self.0.known().iter().map(|known| (known.name.as_str(), &*known.history)))
    }

    /// The terminal of a process that has one and runs.
    pub fn terminal(&self, name: &str) -> Option<Terminal> {
        self.0.known().iter().find(|known| known.name == name)?.terminal.get()
    }

    fn window_changed(&self) {
        for terminal in self.0.known().iter().filter_map(|known| known.terminal.get()) {
            // One that has just ended needs no size.
            let _ = terminal.resize(self.0.window());
        }
    }
}

impl Merged {
    fn start(
        settings: &Settings,
        names: &[&str],
        screen: &Screen,
        store: &LogStore,
        painter: &Arc<Painter>,
    ) -> Result<Merged, OpenError> {
        let (screen, store, painter) = (screen.clone(), store.clone(), Arc::clone(painter));
        let system = store.register(SYSTEM);
        let report = move |text: &str| {
            let origin = Origin { stream: Stream::Own, pid: None, at: Moment::now() };
            store.append(system, origin, |add| add(text.as_bytes(), false));
            screen.own(painter.own(text));
        };
        let files = Files::start(settings.files.clone(), Box::new(report));
        for name in names {
            files.of_process(name)?;
        }
        let file = files.of_all()?;
        let style = Style { json: settings.files.json, ..Style::new(Manner::Native, false, Stamp::Rfc3339) };
        Ok(Merged { files, file, painter: Painter::new(style, names.iter().copied()) })
    }

    fn own(&self, face: &Face, origin: Origin, text: &str) {
        if let Some(file) = self.file {
            self.files.own(file, self.painter.own_of(face, origin, text));
        }
    }
}

impl Shared {
    fn known(&self) -> MutexGuard<'_, Vec<Known>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What a process with a terminal has of our window.
    fn window(&self) -> Size {
        Size::here().narrowed(self.painter.prefix_width())
    }

    fn say(&self, id: LogId, face: &Face, text: &str) {
        let origin = Origin { stream: Stream::Own, pid: None, at: Moment::now() };
        self.store.append(id, origin, |add| text.lines().for_each(|line| add(line.as_bytes(), false)));
        self.screen.own(self.painter.own_of(face, origin, text));
        if let Some(merged) = &self.files {
            merged.own(face, origin, text);
        }
    }
}

/// One process's way to the screen, to memory and to files.
#[derive(Clone, Debug)]
pub struct Feed {
    shared: Arc<Shared>,
    id: LogId,
    face: Arc<Face>,
    is_quiet: bool,
    file: Option<FileId>,
    history: Arc<History>,
    terminal: terminal::Place,
    has_terminal: bool,
}

impl Feed {
    /// Whether the process gets a terminal, from its next start on, or a pipe.
    pub fn with_terminal(self, has_terminal: bool) -> Feed {
        Feed { has_terminal, ..self }
    }

    /// It stands at this place of the Procfile: its colour is that of the place.
    pub fn seen_at(self, place: usize) -> Feed {
        self.face.move_to(place);
        self
    }

    /// Says something about the process. goreman says it in the process's own name.
    pub fn say(&self, text: &str) {
        match self.manner() {
            Manner::Native => self.shared.say(self.id, &self.face, text),
            Manner::Original => {
                let mut bytes = Vec::new();
                let painter = &self.shared.painter;
                painter.original(&mut bytes, &self.face, &painter.clock(Moment::now()), format!("{text}\n").as_bytes());
                self.shared.screen.own(bytes);
            }
        }
    }

    /// Remembers for the summary how its leader ended.
    pub fn note_exit(&self, words: &str) {
        self.history.ended(words);
    }

    fn manner(&self) -> Manner {
        self.shared.settings.style.manner
    }

    fn count_reader(&self) -> CountedReader {
        self.shared.readers.count.fetch_add(1, Ordering::AcqRel);
        CountedReader(Arc::clone(&self.shared))
    }

    /// Takes what was read. How many lines it ended.
    async fn deliver(&self, cut: &mut Cut, stream: Stream, pid: i32, bytes: &[u8]) -> u64 {
        if let (Some(merged), Some(file)) = (&self.shared.files, self.file) {
            merged.files.write(file, bytes.to_vec()).await;
        }
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
        let Sheet { shown, shown_lines, merged, ended, .. } = sheet;
        if let Some(files) = self.shared.files.as_ref().filter(|_| !merged.is_empty())
            && let Some(file) = files.file
        {
            files.files.write(file, merged).await;
        }
        if !shown.is_empty() {
            self.shared.screen.lines(shown, shown_lines).await;
        }
        ended
    }
}

//! What `top` hears and does while it is on: keys, signals, what the supervisor says.
//!
//! ```text
//!  keyboard (a thread) ───────┐
//!  signals                    ├─▶ Input ─▶ Screen (pure) ─▶ frame, at most every FRAME
//!  status, log, answers (News)┘              └─▶ Wish ─▶ a task that asks the supervisor
//! ```

use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use nix::sys::signal::Signal;
use ratatui::crossterm::event;
use ratatui::crossterm::event::Event;
use ratatui::crossterm::event::KeyEventKind;
use tokio::sync::Notify;
use tokio::sync::mpsc;
use tokio::task::AbortHandle;
use tokio::task::JoinError;
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::keys::Wish;
use super::screen::Mood;
use super::screen::Screen;
use super::terminal::Place;
use super::terminal::Signals;
use crate::common::os_reason::os_reason;
use crate::supervisor::control::http_client::Caller;
use crate::supervisor::control::http_client::ControlError;
use crate::supervisor::control::messages::ActionAnswer;
use crate::supervisor::control::messages::ActionRequest;
use crate::supervisor::control::messages::LinkAnswer;
use crate::supervisor::control::messages::Status;
use crate::supervisor::control::query::Query;
use crate::supervisor::links::LinkRequest;
use crate::supervisor::native::EXIT_FAILED;
use crate::supervisor::native::Failure;
use crate::supervisor::output::store::Followed;

/// Processes and their states alone, which needs nobody but the supervisor.
pub const STATES: &str = "/v1/processes?quick=true";
/// Between two looks at the processes when nothing happens.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// And when much does.
const LOOK_PAUSE: Duration = Duration::from_millis(100);
/// How long members and /proc may take to tell; then the states alone are asked for, which takes as long at most.
const LOOK_PATIENCE: Duration = Duration::from_secs(3);
/// Before a stream that has broken off is asked for again.
const AGAIN_AFTER: Duration = Duration::from_millis(500);
/// Between two frames.
const FRAME: Duration = Duration::from_millis(30);
/// How often the keyboard's thread looks whether it is still wanted.
const KEYS_POLL: Duration = Duration::from_millis(100);
/// Lines of the past that are fetched for the chosen process.
const TAIL: usize = 1_000;
/// News and keys that wait to be shown. Full means that whoever tells them waits.
const NEWS_MAX: usize = 256;
const KEYS_MAX: usize = 64;
/// Requests that have not been answered. More are not sent.
const ASKED_MAX: usize = 16;

/// What the supervisor says.
#[derive(Debug)]
enum News {
    Status(Result<Status, ControlError>),
    /// The states alone.
    States(Status),
    /// Not even those in time.
    Silent,
    /// Links that are not as they should be.
    Links(usize),
    /// A line of the process that was chosen when this was the how-manieth choice.
    Line(u64, Followed),
    /// The log is told from its beginning again.
    Again(u64),
    /// What came of a wish.
    Answered(Mood, String),
}

#[derive(Debug)]
enum Input {
    /// `None` is the end of the keyboard.
    Terminal(Option<Event>),
    News(Option<News>),
    Signal(Signal),
    /// A task is done.
    Ended(Result<(), JoinError>),
}

/// What an input leads to beyond another frame.
#[derive(Debug)]
enum Step {
    GoOn,
    End(ExitCode),
    Suspend,
    Redraw,
}

pub struct Session<'a> {
    caller: &'a Caller,
    screen: Screen,
    signals: Signals,
    keys: mpsc::Receiver<Event>,
    news: mpsc::Receiver<News>,
    tell: mpsc::Sender<News>,
    tasks: JoinSet<()>,
    /// Wakes the task that looks at the processes.
    look: Arc<Notify>,
    /// Whose log is followed, by which task, as the how-manieth choice.
    chosen: Option<String>,
    following: Option<AbortHandle>,
    choice: u64,
    /// Wishes that were not answered yet.
    asked: usize,
}

impl<'a> Session<'a> {
    /// Starts to listen, to the terminal and to the supervisor, whose processes were as `first` says.
    pub fn start(caller: &'a Caller, first: Status) -> Result<Session<'a>, Failure> {
        let failed = |error: std::io::Error| Failure::new(format!("cannot listen for signals: {}", os_reason(&error)));
        let signals = Signals::listen().map_err(failed)?;
        let (tell, news) = mpsc::channel(NEWS_MAX);
        let (tell_keys, keys) = mpsc::channel(KEYS_MAX);
        std::thread::spawn(move || read_keys(&tell_keys));
        let look = Arc::new(Notify::new());
        let mut tasks = JoinSet::new();
        tasks.spawn(look_at_processes(caller.clone(), tell.clone(), Arc::clone(&look)));
        tasks.spawn(watch_events(caller.clone(), Arc::clone(&look)));
        let mut screen = Screen::default();
        screen.set_states(first);
        Ok(Session {
            caller,
            screen,
            signals,
            keys,
            news,
            tell,
            tasks,
            look,
            chosen: None,
            following: None,
            choice: 0,
            asked: 0,
        })
    }

    /// Until somebody or something ends it.
    pub async fn run(mut self, place: &mut Place) -> Result<ExitCode, Failure> {
        let failed = |error: std::io::Error| Failure::new(format!("the terminal: {}", os_reason(&error)));
        loop {
            self.follow_the_chosen();
            place.draw(|frame| self.screen.draw(frame)).map_err(failed)?;
            let mut input = self.next().await;
            // What comes together is drawn together.
            let until = Instant::now() + FRAME;
            loop {
                match self.take(input)? {
                    Step::GoOn => {}
                    Step::End(code) => return Ok(code),
                    Step::Suspend => place.suspend().map_err(failed)?,
                    Step::Redraw => place.enter_again().map_err(failed)?,
                }
                match tokio::time::timeout_at(until, self.next()).await {
                    Ok(next) => input = next,
                    Err(_) => break,
                }
            }
        }
    }

    /// Nothing is lost by dropping the future.
    async fn next(&mut self) -> Input {
        tokio::select! {
            signal = self.signals.next() => Input::Signal(signal),
            event = self.keys.recv() => Input::Terminal(event),
            Some(done) = self.tasks.join_next() => Input::Ended(done),
            news = self.news.recv() => Input::News(news),
        }
    }

    fn take(&mut self, input: Input) -> Result<Step, Failure> {
        match input {
            // We were stopped, and somebody else may have drawn meanwhile.
            Input::Signal(Signal::SIGCONT) => return Ok(Step::Redraw),
            Input::Signal(signal) => {
                let code = u8::try_from(128 + signal as i32).unwrap_or(EXIT_FAILED);
                return Ok(Step::End(ExitCode::from(code)));
            }
            Input::Terminal(Some(Event::Key(key))) if key.kind != KeyEventKind::Release => {
                if let Some(wish) = self.screen.press(key) {
                    return Ok(self.grant(wish));
                }
            }
            // A resize draws anew by itself; pasted text is not for us.
            Input::Terminal(Some(_)) => {}
            Input::Terminal(None) => return Err(Failure::new("the keyboard is gone")),
            Input::News(Some(news)) => self.hear(news)?,
            // We hold a sender ourselves.
            Input::News(None) => {}
            Input::Ended(Err(error)) if error.is_panic() => std::panic::resume_unwind(error.into_panic()),
            Input::Ended(_) => {}
        }
        Ok(Step::GoOn)
    }

    fn hear(&mut self, news: News) -> Result<(), Failure> {
        match news {
            News::Status(Ok(status)) => self.screen.set_status(status),
            News::Status(Err(error @ ControlError::NoSupervisor(_))) => return Err(error.into()),
            News::Status(Err(error)) => self.screen.set_trouble(error.to_string()),
            News::States(status) => {
                self.screen.set_states(status);
                self.screen.set_trouble("slow to tell what members say and what processes use".to_owned());
            }
            News::Silent => self.screen.set_trouble("the supervisor does not answer".to_owned()),
            News::Links(count) => self.screen.set_links_changed(count),
            News::Line(choice, line) if choice == self.choice => self.screen.add_line(line),
            News::Again(choice) if choice == self.choice => self.screen.clear_lines(),
            News::Line(..) | News::Again(_) => {}
            News::Answered(mood, text) => {
                self.asked -= 1;
                self.screen.say(mood, &text);
                self.look.notify_one();
            }
        }
        Ok(())
    }

    fn grant(&mut self, wish: Wish) -> Step {
        match wish {
            Wish::Leave => return Step::End(ExitCode::SUCCESS),
            Wish::Suspend => return Step::Suspend,
            Wish::Redraw => return Step::Redraw,
            wish if self.asked == ASKED_MAX => {
                self.screen.say(Mood::Failed, &format!("{wish}: not asked for, {ASKED_MAX} answers are outstanding"));
            }
            wish => {
                self.asked += 1;
                self.screen.say(Mood::Waiting, &format!("{wish} …"));
                self.tasks.spawn(ask(self.caller.clone(), wish, self.tell.clone()));
            }
        }
        Step::GoOn
    }

    fn follow_the_chosen(&mut self) {
        if self.screen.chosen() == self.chosen.as_deref() {
            return;
        }
        if let Some(task) = self.following.take() {
            task.abort();
        }
        self.chosen = self.screen.chosen().map(str::to_owned);
        self.choice += 1;
        self.screen.clear_lines();
        if let Some(name) = self.chosen.clone() {
            let task = follow(self.caller.clone(), name, self.choice, self.tell.clone());
            self.following = Some(self.tasks.spawn(task));
        }
    }
}

/// The keyboard's thread: ends when nobody listens any more.
fn read_keys(tell: &mpsc::Sender<Event>) {
    while !tell.is_closed() {
        let event = match event::poll(KEYS_POLL) {
            Ok(false) => continue,
            Ok(true) => event::read(),
            Err(error) => Err(error),
        };
        // Without a keyboard there is no end; that this thread ends says so.
        let Ok(event) = event else { return };
        if tell.blocking_send(event).is_err() {
            return;
        }
    }
}

async fn look_at_processes(caller: Caller, tell: mpsc::Sender<News>, look: Arc<Notify>) {
    // Not asked for again where there are no relays.
    let mut has_links = true;
    loop {
        let whole = tokio::time::timeout(LOOK_PATIENCE, caller.get("/v1/processes")).await;
        let news = match whole {
            Ok(status) => News::Status(status),
            Err(_) => match tokio::time::timeout(LOOK_PATIENCE, caller.get(STATES)).await {
                Ok(Ok(status)) => News::States(status),
                Ok(Err(error)) => News::Status(Err(error)),
                Err(_) => News::Silent,
            },
        };
        if tell.send(news).await.is_err() {
            return;
        }
        if has_links {
            let shown = caller.post::<_, LinkAnswer>("/v1/links", &LinkRequest::Show);
            match tokio::time::timeout(LOOK_PATIENCE, shown).await {
                Ok(Ok(answer)) => {
                    // One line a link, `from -> to: how`.
                    let count = answer.text.lines().filter(|line| line.contains(" -> ")).count();
                    // The next news would find the same listener gone.
                    let _ = tell.send(News::Links(count)).await;
                }
                Ok(Err(ControlError::Refused(_))) => has_links = false,
                Ok(Err(_)) | Err(_) => {}
            }
        }
        tokio::time::sleep(LOOK_PAUSE).await;
        tokio::select! {
            () = look.notified() => {}
            () = tokio::time::sleep(LOOK_EVERY) => {}
        }
    }
}

/// Has the processes looked at whenever the journal tells of something.
async fn watch_events(caller: Caller, look: Arc<Notify>) {
    let query = Query::default().with("tail", 0).with("follow", true);
    loop {
        if let Ok(mut events) = caller.stream(&format!("/v1/events?{query}")).await {
            while let Ok(Some(_)) = events.next().await {
                look.notify_one();
            }
        }
        // Most likely the supervisor has ended: the next look will tell.
        look.notify_one();
        tokio::time::sleep(AGAIN_AFTER).await;
    }
}

async fn follow(caller: Caller, name: String, choice: u64, tell: mpsc::Sender<News>) {
    let query = Query::default().with("name", &name).with("tail", TAIL).with("follow", true);
    loop {
        if let Ok(mut lines) = caller.stream(&format!("/v1/logs?{query}")).await {
            if tell.send(News::Again(choice)).await.is_err() {
                return;
            }
            while let Ok(Some(line)) = lines.next().await {
                let Ok(line) = serde_json::from_str::<Followed>(&line) else { continue };
                if tell.send(News::Line(choice, line)).await.is_err() {
                    return;
                }
            }
        }
        tokio::time::sleep(AGAIN_AFTER).await;
    }
}

/// Does what a key has asked for, and tells what came of it.
async fn ask(caller: Caller, wish: Wish, tell: mpsc::Sender<News>) {
    let answer = match &wish {
        Wish::Act { action, name } => {
            let targets = vec![name.clone()];
            let request = ActionRequest { targets, action: action.clone(), no_wait: false, timeout_ms: None };
            caller.post("/v1/actions", &request).await.map(|answer: ActionAnswer| {
                let mood = if answer.results.iter().all(|result| result.ok) { Mood::Done } else { Mood::Failed };
                let texts: Vec<&str> = answer.results.iter().map(|result| result.text.as_str()).collect();
                (mood, texts.join(", "))
            })
        }
        // The answer repeats what was asked for, with roles replaced by names.
        Wish::Link(request) => {
            caller.post("/v1/links", request).await.map(|_: LinkAnswer| (Mood::Done, "done".to_owned()))
        }
        Wish::Leave | Wish::Suspend | Wish::Redraw => return,
    };
    let (mood, text) = answer.unwrap_or_else(|error| (Mood::Failed, error.to_string()));
    // Whoever asked may have left.
    let _ = tell.send(News::Answered(mood, format!("{wish}: {text}"))).await;
}

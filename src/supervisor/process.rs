//! One process of a Procfile as a pure state machine: what happened goes in, what to do comes out.
//!
//! ```text
//!            Start            Released           Spawned          LeaderExited           Emptied
//!   Down ───────────▶ Waiting ─────────▶ Starting ───────▶ Up ──────────────▶ Draining ─────┬──▶ Down
//!    ▲                   ▲                  │ SpawnFailed   │ Stop, not ready    │ Stop       │ restart policy
//!    │                   │ BackoffOver      ▼               ▼                    ▼            ▼
//!    │                Backoff ◀─────── Down or Backoff   Stopping ── GraceOver: kill ──▶   Backoff
//!    └────────────────── Emptied ───────────────────────────┘
//!
//!   Preparing (pre-start runs) lies between Waiting and Starting, Finishing (post-stop runs) between Emptied and what follows.
//!   Up:   Plain (no probe) · Probing ── ProbePassed ─▶ Ready ◀─▶ Unhealthy;  each of them may be paused
//!   Down: Idle (not yet, or on request) · Exited · Failed · Flapping · Disabled
//! ```
//!
//! A process has ended when its leader was reaped *and* nobody of it is left: a shell dies before the program it started
//! (supervisor.md 6, traps 1 to 5). Events of an earlier generation change nothing (trap 12). Whether it should be up is
//! kept beside what it does (trap 13). Time and chance are arguments.

use std::time::Duration;
use std::time::Instant;

use nix::sys::signal::Signal;

use crate::supervisor::control::vocabulary::StateName;
use crate::supervisor::journal::What;
use crate::supervisor::restart::Backoff;
use crate::supervisor::settings::Hook;
use crate::supervisor::settings::Policy;
use crate::supervisor::settings::Settings;

/// How a leader ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    Code(i32),
    Signal(i32),
}

impl Exit {
    /// What a shell would say of it: the code, or 128 and the signal.
    pub fn shell_code(self) -> u8 {
        let number = match self {
            Exit::Code(code) => code,
            Exit::Signal(signal) => signal.saturating_add(128),
        };
        u8::try_from(number).unwrap_or(u8::MAX)
    }

    /// Whether this signal may be behind it: itself, or as a shell or a handler passes it on.
    fn is_by(self, signal: i32) -> bool {
        self == Exit::Signal(signal) || self == Exit::Code(signal.saturating_add(128))
    }
}

impl std::fmt::Display for Exit {
    /// Go's words: `exit status 3`, `signal: killed`.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Exit::Code(code) => write!(f, "exit status {code}"),
            Exit::Signal(number) => write!(f, "signal: {}", signal_words(*number)),
        }
    }
}

fn signal_words(number: i32) -> String {
    match Signal::try_from(number) {
        Ok(Signal::SIGHUP) => "hangup".to_owned(),
        Ok(Signal::SIGINT) => "interrupt".to_owned(),
        Ok(Signal::SIGQUIT) => "quit".to_owned(),
        Ok(Signal::SIGABRT) => "aborted".to_owned(),
        Ok(Signal::SIGKILL) => "killed".to_owned(),
        Ok(Signal::SIGSEGV) => "segmentation fault".to_owned(),
        Ok(Signal::SIGPIPE) => "broken pipe".to_owned(),
        Ok(Signal::SIGTERM) => "terminated".to_owned(),
        _ => format!("signal {number}"),
    }
}

/// Why nothing of it runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Down {
    /// Not started yet, or stopped on request.
    Idle,
    /// Ended by itself, and well.
    Exited,
    /// Ended badly, could not be started, or was not ready in time.
    Failed,
    /// Ended too often.
    Flapping,
    /// Not chosen.
    Disabled,
}

/// How a process that runs is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Health {
    /// Nobody knows: it has no probe and has said nothing.
    Plain,
    Probing,
    Ready,
    Unhealthy,
}

/// What a process is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    Down(Down),
    /// Waits for what it depends on.
    Waiting,
    /// Its pre-start runs; `Some` once the leader of that has ended.
    Preparing(Option<Exit>),
    Starting,
    Up(Health),
    /// The leader has ended by itself, others of it have not.
    Draining(Exit),
    /// Asked to stop; `Some` once the leader has ended.
    Stopping(Option<Exit>),
    /// Nothing is left of it, and its post-stop runs; `Some` once the leader of that has ended.
    Finishing(Option<Exit>),
    /// Waits for its next start.
    Backoff,
}

/// What happened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Input {
    Start,
    /// What it depends on is there.
    Released,
    /// What it depends on will never be there.
    Refused(String),
    /// Asked to end, by whom where known.
    Stop {
        signal: Signal,
        by: Option<String>,
    },
    /// Kill now, whatever was asked before.
    Kill,
    /// A signal that somebody wants sent; the restart policy is asked if it ends the process, unless it is to stay down.
    Send {
        signal: Signal,
        leader_only: bool,
        stay_down: bool,
        by: Option<String>,
    },
    Pause,
    Resume,
    Spawned,
    SpawnFailed(String),
    /// The probe has passed.
    ProbePassed,
    ProbeFailed(String),
    /// It says itself that it is ready.
    Notified,
    ReadyTimeout,
    LeaderExited(Exit),
    /// The leader is reaped and nobody of it is left.
    Emptied,
    GraceOver,
    BackoffOver,
    /// A hook has had its time.
    HookTimeout(Hook),
}

/// What to do now.
#[derive(Clone, Debug, PartialEq)]
pub enum Effect {
    /// Answer `Released` or `Refused` as soon as that is known.
    AskRelease,
    Spawn,
    /// Start the hook, and ask for `HookTimeout` when its time is over.
    Hook(Hook),
    /// To all of it.
    Signal(Signal),
    SignalLeader(Signal),
    /// Ask for `GraceOver` when the time to stop is over.
    ArmGrace,
    /// Ask for `ReadyTimeout` when the time to be ready is over.
    ArmReady,
    ArmBackoff(Duration),
    /// A line of our own in this process's log.
    Say(String),
    /// All of it is gone.
    Ended {
        exit: Exit,
        asked: bool,
    },
    /// For the journal.
    Note(What),
    /// It ended by itself and badly, and is not started again: the words for it, and how it ended if it ever began.
    Failed(String, Option<Exit>),
    /// It ended by itself and well, and is not started again.
    Finished(Exit),
}

/// When something happens, and a number that nobody can foresee.
#[derive(Clone, Copy, Debug)]
pub struct Moment {
    pub at: Instant,
    pub dice: u64,
}

/// What the machine needs of a process's settings.
#[derive(Clone, Debug)]
pub struct Habits {
    /// It counts as ready only when a probe says so.
    pub probed: bool,
    pub restart: Policy,
    pub restart_max: u32,
    pub success: Vec<i32>,
    pub can_exit: bool,
    /// Ends what is left of it before a new start.
    pub stop: Signal,
    pub timeout: Duration,
    pub grace: Duration,
    pub pre_start: bool,
    pub post_stop: bool,
    pub hook_timeout: Duration,
}

impl Habits {
    pub fn of(settings: &Settings) -> Habits {
        Habits {
            probed: settings.ready.is_some(),
            restart: settings.restart,
            restart_max: settings.restart_max,
            success: settings.success.clone(),
            can_exit: settings.can_exit,
            stop: settings.stop.unwrap_or(Signal::SIGTERM),
            timeout: settings.timeout,
            grace: settings.grace,
            pre_start: settings.pre_start.is_some(),
            post_stop: settings.post_stop.is_some(),
            hook_timeout: settings.hook_timeout,
        }
    }
}

/// What follows the end of a start, once its post-stop is over.
#[derive(Clone, Copy, Debug)]
struct Ending {
    exit: Exit,
    asked: bool,
    /// Asked by a stop: whatever the policy says, it is over.
    stopped: bool,
    good: bool,
    restarted: bool,
}

/// How it last ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Last {
    pub exit: Exit,
    /// Somebody had asked for it.
    pub asked: bool,
    pub by: Option<String>,
    pub at: Instant,
}

/// One process; `generation` counts its starts.
#[derive(Clone, Debug)]
pub struct Process {
    pub name: String,
    pub generation: u64,
    state: State,
    /// When it came to be in this state, or was paused or resumed.
    pub since: Instant,
    /// Said at each start; `None` says nothing.
    greeting: Option<String>,
    habits: Habits,
    backoff: Backoff,
    /// It should be up.
    pub wanted: bool,
    pub last: Option<Last>,
    /// Its last end, if it ended, was by itself and a bad one. A new start is a new chance.
    pub failed: bool,
    /// Why it is where it is, where that needs words.
    pub why: Option<String>,
    pub started_at: Option<Instant>,
    pub ready_at: Option<Instant>,
    pub next_start: Option<Instant>,
    /// When patience with a stop ends.
    pub stop_deadline: Option<Instant>,
    paused: bool,
    /// What was sent to this start of it on request, and by whom it was sent last.
    sent: Vec<Signal>,
    by: Option<String>,
    /// It was stopped because it did not get ready, or ended before it was.
    unready: bool,
    /// How long it was well, once its leader has ended.
    healthy_for: Duration,
    /// This start of it came as far as its own command: its end is followed by its post-stop.
    began: bool,
    /// Killed because nobody has patience: no hook is waited for.
    hurried: bool,
    ending: Option<Ending>,
}

impl Process {
    pub fn new(name: String, greeting: Option<String>, settings: &Settings, now: Instant) -> Process {
        Process {
            name,
            generation: 0,
            state: State::Down(Down::Idle),
            since: now,
            greeting,
            habits: Habits::of(settings),
            backoff: Backoff::default(),
            wanted: false,
            last: None,
            failed: false,
            why: None,
            started_at: None,
            ready_at: None,
            next_start: None,
            stop_deadline: None,
            paused: false,
            sent: Vec::new(),
            by: None,
            unready: false,
            healthy_for: Duration::ZERO,
            began: false,
            hurried: false,
            ending: None,
        }
    }

    /// Other settings, from its next start on. It must be down, or its old ones must do for what is left of this start.
    pub fn redefine(&mut self, settings: &Settings) {
        self.habits = Habits::of(settings);
    }

    /// Not to be started with the others.
    pub fn disable(&mut self) {
        self.state = State::Down(Down::Disabled);
    }

    pub fn state(&self) -> State {
        self.state
    }

    pub fn is_down(&self) -> bool {
        matches!(self.state, State::Down(_))
    }

    /// Some of it may be alive.
    pub fn is_alive(&self) -> bool {
        !matches!(self.state, State::Down(_) | State::Waiting | State::Backoff)
    }

    pub fn is_paused(&self) -> bool {
        self.paused
    }

    /// Its leader, or that of its hook, is not reaped.
    pub fn has_leader(&self) -> bool {
        matches!(
            self.state,
            State::Preparing(None) | State::Starting | State::Up(_) | State::Stopping(None) | State::Finishing(None)
        )
    }

    /// The state as users see it.
    pub fn state_name(&self) -> StateName {
        match self.state {
            State::Down(Down::Idle) if self.last.is_some() => StateName::Exited,
            State::Down(Down::Idle) | State::Waiting => StateName::Pending,
            State::Down(Down::Exited) => StateName::Exited,
            State::Down(Down::Failed) => StateName::Failed,
            State::Down(Down::Flapping) => StateName::Flapping,
            State::Down(Down::Disabled) => StateName::Disabled,
            State::Up(_) if self.paused => StateName::Paused,
            State::Preparing(_) | State::Starting | State::Up(Health::Probing) => StateName::Starting,
            State::Up(Health::Plain) => StateName::Running,
            State::Up(Health::Ready) => StateName::Ready,
            State::Up(Health::Unhealthy) => StateName::Unhealthy,
            State::Draining(_) | State::Stopping(_) | State::Finishing(_) => StateName::Stopping,
            State::Backoff => StateName::Backoff,
        }
    }

    /// Whether an end like this would be one that somebody asked for.
    pub fn is_asked(&self, exit: Exit) -> bool {
        let stopped = matches!(self.state, State::Stopping(_)) && !self.unready;
        stopped || self.sent.iter().any(|signal| exit.is_by(*signal as i32))
    }

    /// Takes one input that belongs to `generation`; inputs of earlier starts change nothing.
    pub fn step(&mut self, generation: u64, now: Moment, input: Input) -> Vec<Effect> {
        if generation != self.generation {
            return Vec::new();
        }
        let before = (self.state, self.paused);
        let effects = self.take(now, input);
        if before != (self.state, self.paused) {
            self.since = now.at;
        }
        effects
    }

    fn take(&mut self, now: Moment, input: Input) -> Vec<Effect> {
        match (self.state, input) {
            (State::Down(_) | State::Backoff, Input::Start) => {
                // Whoever starts it by hand gives it a new chance.
                self.backoff = Backoff::default();
                self.wanted = true;
                self.wait()
            }
            (State::Backoff, Input::BackoffOver) => self.wait(),
            (State::Waiting, Input::Released) => self.begin(),
            (State::Waiting, Input::Refused(why)) => {
                let said = Effect::Say(format!("{} is not started: {why}", self.name));
                [said].into_iter().chain(self.fail(Down::Failed, None, why)).collect()
            }
            (State::Starting, Input::Spawned) => self.rise(now),
            (State::Preparing(None), Input::LeaderExited(exit)) => {
                self.state = State::Preparing(Some(exit));
                Vec::new()
            }
            (State::Preparing(Some(exit)), Input::Emptied) => self.be_prepared(now, exit),
            (State::Preparing(_), Input::HookTimeout(Hook::PreStart)) => self.be_late_before(Hook::PreStart),
            (State::Finishing(None), Input::LeaderExited(exit)) => {
                self.state = State::Finishing(Some(exit));
                if exit == Exit::Code(0) { Vec::new() } else { self.complain(Hook::PostStop, exit.to_string()) }
            }
            (State::Finishing(_), Input::Emptied) => self.conclude(now),
            (State::Finishing(_), Input::SpawnFailed(why)) => {
                let complaint = self.complain(Hook::PostStop, why);
                complaint.into_iter().chain(self.conclude(now)).collect()
            }
            (State::Finishing(_), Input::HookTimeout(Hook::PostStop)) => self.be_late_before(Hook::PostStop),
            (State::Finishing(_), Input::Kill) => vec![Effect::Signal(Signal::SIGKILL)],
            (State::Preparing(_) | State::Starting | State::Stopping(_), Input::SpawnFailed(why)) => {
                self.last = None;
                let said = Effect::Say(format!("Failed to start {}: {why}", self.name));
                let note = Effect::Note(What::SpawnFailed { reason: why.clone() });
                [said, note].into_iter().chain(self.fail(Down::Failed, None, why)).collect()
            }
            (state, Input::Stop { signal, by }) => self.stop(state, now, signal, by),
            (State::Down(_), Input::Kill) => Vec::new(),
            (State::Waiting | State::Backoff, Input::Kill) => self.settle(Down::Idle),
            (state, Input::Kill) => {
                self.hurried = true;
                self.become_stopping(state);
                vec![Effect::Signal(Signal::SIGKILL)]
            }
            (state, Input::Send { signal, leader_only, stay_down, by }) if self.is_alive() => {
                self.wanted &= !stay_down;
                self.send(state, signal, leader_only, by)
            }
            (State::Up(_), Input::Pause) if !self.paused => {
                self.paused = true;
                vec![Effect::Signal(Signal::SIGSTOP)]
            }
            (_, Input::Resume) if self.paused => {
                self.paused = false;
                vec![Effect::Signal(Signal::SIGCONT)]
            }
            (State::Up(health), Input::ProbePassed) => self.pass(now, health),
            (State::Up(Health::Plain), Input::Notified) => self.pass(now, Health::Probing),
            (State::Up(Health::Ready), Input::ProbeFailed(reason)) => {
                self.state = State::Up(Health::Unhealthy);
                self.why = Some(reason.clone());
                vec![Effect::Note(What::Unhealthy { reason })]
            }
            (State::Up(_), Input::ProbeFailed(reason)) => {
                self.why = Some(reason);
                Vec::new()
            }
            (State::Up(Health::Probing), Input::ReadyTimeout) => self.be_late(now),
            (State::Up(health), Input::LeaderExited(exit)) => self.lose_leader(now, health, exit),
            (State::Stopping(_), Input::LeaderExited(exit)) => {
                self.state = State::Stopping(Some(exit));
                Vec::new()
            }
            (State::Draining(exit), Input::Emptied) => self.end_by_itself(now, exit),
            (State::Stopping(exit), Input::Emptied) if self.unready => {
                self.end_by_itself(now, exit.unwrap_or(Exit::Code(0)))
            }
            (State::Stopping(exit), Input::Emptied) => self.end_as_asked(now, exit.unwrap_or(Exit::Code(0))),
            (State::Stopping(_) | State::Draining(_), Input::GraceOver) if self.stop_deadline.is_some() => {
                vec![Effect::Signal(Signal::SIGKILL)]
            }
            _ => Vec::new(),
        }
    }

    fn wait(&mut self) -> Vec<Effect> {
        self.state = State::Waiting;
        self.failed = false;
        self.why = None;
        self.next_start = None;
        vec![Effect::AskRelease]
    }

    fn begin(&mut self) -> Vec<Effect> {
        self.generation += 1;
        self.began = false;
        self.hurried = false;
        self.why = None;
        self.sent.clear();
        self.by = None;
        self.unready = false;
        self.stop_deadline = None;
        self.ready_at = None;
        let greeting = self.greeting.clone().map(Effect::Say);
        let (state, first) = match self.habits.pre_start {
            true => (State::Preparing(None), Effect::Hook(Hook::PreStart)),
            false => (State::Starting, Effect::Spawn),
        };
        self.state = state;
        greeting.into_iter().chain([first]).collect()
    }

    /// All of its pre-start has ended.
    fn be_prepared(&mut self, now: Moment, exit: Exit) -> Vec<Effect> {
        if exit == Exit::Code(0) && !self.unready {
            self.state = State::Starting;
            return vec![Effect::Spawn];
        }
        let late = self.why.take().filter(|_| self.unready);
        let reason = format!("{}: {}", Hook::PreStart, late.unwrap_or_else(|| exit.to_string()));
        self.why = Some(reason.clone());
        self.unready = true;
        self.healthy_for = Duration::ZERO;
        let note = Effect::Note(What::NotReady { reason });
        [note].into_iter().chain(self.end_by_itself(now, exit)).collect()
    }

    /// A hook that took too long is killed with all that it started.
    fn be_late_before(&mut self, hook: Hook) -> Vec<Effect> {
        let reason = format!("not done within {:?}", self.habits.hook_timeout);
        let kill = Effect::Signal(Signal::SIGKILL);
        match hook {
            Hook::PreStart => {
                self.unready = true;
                self.why = Some(reason);
                vec![kill]
            }
            Hook::PostStop => self.complain(hook, reason).into_iter().chain([kill]).collect(),
        }
    }

    /// A hook whose failure changes nothing.
    fn complain(&self, hook: Hook, reason: String) -> Vec<Effect> {
        vec![Effect::Note(What::HookFailed { hook: hook.to_string(), reason })]
    }

    fn rise(&mut self, now: Moment) -> Vec<Effect> {
        self.started_at = Some(now.at);
        self.began = true;
        if !self.habits.probed {
            self.state = State::Up(Health::Plain);
            return Vec::new();
        }
        self.state = State::Up(Health::Probing);
        vec![Effect::ArmReady]
    }

    fn pass(&mut self, now: Moment, health: Health) -> Vec<Effect> {
        self.why = None;
        self.state = State::Up(Health::Ready);
        if health != Health::Probing {
            return Vec::new();
        }
        self.ready_at = Some(now.at);
        vec![Effect::Note(What::Ready { after_ms: millis(self.up_for(now.at)) })]
    }

    /// Since its start.
    pub fn up_for(&self, now: Instant) -> Duration {
        self.started_at.map_or(Duration::ZERO, |started| now.saturating_duration_since(started))
    }

    /// Not ready in time. A paused process cannot get ready, so it gets its time again.
    fn be_late(&mut self, now: Moment) -> Vec<Effect> {
        if self.paused {
            return vec![Effect::ArmReady];
        }
        let last = self.why.take().map(|why| format!(": {why}")).unwrap_or_default();
        let reason = format!("not ready within {:?}{last}", self.habits.timeout);
        self.why = Some(reason.clone());
        self.unready = true;
        self.state = State::Stopping(None);
        let note = Effect::Note(What::NotReady { reason });
        [note].into_iter().chain(self.ask(now, self.habits.stop)).collect()
    }

    fn stop(&mut self, state: State, now: Moment, signal: Signal, by: Option<String>) -> Vec<Effect> {
        self.wanted = false;
        match state {
            State::Down(_) => Vec::new(),
            State::Waiting | State::Backoff => self.settle(Down::Idle),
            State::Stopping(_) => {
                // It is asked once: many programs read a second time as "now" (trap 10).
                self.unready = false;
                self.by = self.by.take().or(by);
                Vec::new()
            }
            // It has ended; what cleans up behind it is let be.
            State::Finishing(_) => Vec::new(),
            State::Preparing(_) | State::Starting | State::Up(_) | State::Draining(_) => {
                self.by = by;
                // A pre-start that is late and stopped was stopped.
                self.unready &= !matches!(state, State::Preparing(_));
                let asked_before = self.stop_deadline.is_some();
                self.become_stopping(state);
                if asked_before { Vec::new() } else { self.ask(now, signal) }
            }
        }
    }

    fn become_stopping(&mut self, state: State) {
        let exit = match state {
            State::Draining(exit) => Some(exit),
            State::Stopping(exit) | State::Preparing(exit) => exit,
            _ => None,
        };
        self.state = State::Stopping(exit);
    }

    /// Asks all of it to end. A stopped process takes the signal only once it continues (trap 9).
    fn ask(&mut self, now: Moment, signal: Signal) -> Vec<Effect> {
        self.paused = false;
        self.stop_deadline = Some(now.at + self.habits.grace);
        vec![Effect::Signal(signal), Effect::Signal(Signal::SIGCONT), Effect::ArmGrace]
    }

    fn send(&mut self, state: State, signal: Signal, leader_only: bool, by: Option<String>) -> Vec<Effect> {
        let first = if leader_only { Effect::SignalLeader(signal) } else { Effect::Signal(signal) };
        match signal {
            Signal::SIGSTOP => self.paused = matches!(state, State::Up(_)),
            Signal::SIGCONT => self.paused = false,
            _ => {
                self.sent.push(signal);
                self.by = by;
                if std::mem::take(&mut self.paused) {
                    return vec![first, Effect::Signal(Signal::SIGCONT)];
                }
            }
        }
        vec![first]
    }

    fn lose_leader(&mut self, now: Moment, health: Health, exit: Exit) -> Vec<Effect> {
        self.state = State::Draining(exit);
        self.paused = false;
        self.healthy_for = match health {
            Health::Plain => self.up_for(now.at),
            Health::Probing => Duration::ZERO,
            Health::Ready | Health::Unhealthy => {
                self.ready_at.map_or(Duration::ZERO, |ready| now.at.saturating_duration_since(ready))
            }
        };
        self.why = None;
        let mut effects = Vec::new();
        if health == Health::Probing && !self.is_asked(exit) {
            let reason = format!("ended before it was ready ({exit})");
            self.unready = true;
            self.why = Some(reason.clone());
            effects.push(Effect::Note(What::NotReady { reason }));
        }
        // What is left of it holds its ports and its files: it goes before the new start (trap 2).
        if self.is_restarted(exit) {
            effects.extend(self.ask(now, self.habits.stop));
        }
        effects
    }

    fn is_good(&self, exit: Exit) -> bool {
        !self.unready && matches!(exit, Exit::Code(code) if self.habits.success.contains(&code))
    }

    fn is_restarted(&self, exit: Exit) -> bool {
        let policy = match self.habits.restart {
            Policy::No => false,
            Policy::OnFailure => !self.is_good(exit),
            Policy::Always | Policy::UnlessStopped => true,
        };
        policy && self.wanted
    }

    fn end_by_itself(&mut self, now: Moment, exit: Exit) -> Vec<Effect> {
        let asked = self.is_asked(exit);
        let (good, restarted) = (self.is_good(exit), self.is_restarted(exit));
        self.last = Some(Last { exit, asked, by: self.by.take().filter(|_| asked), at: now.at });
        self.finish(now, Ending { exit, asked, stopped: false, good, restarted })
    }

    /// Says that it has ended, and runs what is to be run then, before anything else comes of it.
    fn finish(&mut self, now: Moment, ending: Ending) -> Vec<Effect> {
        let Ending { exit, asked, .. } = ending;
        self.ending = Some(ending);
        let follows = match self.began && self.habits.post_stop && !self.hurried {
            true => {
                self.state = State::Finishing(None);
                (self.paused, self.started_at, self.stop_deadline) = (false, None, None);
                vec![Effect::Hook(Hook::PostStop)]
            }
            false => self.conclude(now),
        };
        [Effect::Ended { exit, asked }].into_iter().chain(follows).collect()
    }

    /// What comes of it, now that everything is over.
    fn conclude(&mut self, now: Moment) -> Vec<Effect> {
        let Some(Ending { exit, asked, stopped, good, restarted }) = self.ending.take() else { return Vec::new() };
        let mut effects = Vec::new();
        if stopped {
            effects.extend(self.settle(Down::Idle));
        } else if restarted && self.wanted {
            effects.extend(self.back_off(now, exit, asked));
        } else if good || asked {
            self.wanted &= !(asked || self.habits.can_exit);
            effects.extend(self.settle(if asked { Down::Idle } else { Down::Exited }));
            if !asked {
                effects.push(Effect::Finished(exit));
            }
        } else {
            let why = self.why.clone().unwrap_or_else(|| exit.to_string());
            effects.extend(self.fail(Down::Failed, Some(exit), why));
        }
        effects
    }

    fn back_off(&mut self, now: Moment, exit: Exit, asked: bool) -> Vec<Effect> {
        let wait = match asked {
            true => Some(self.backoff.after_request(now.dice)),
            false => self.backoff.next(self.healthy_for, self.habits.restart_max, now.dice),
        };
        let Some(wait) = wait else {
            let why =
                format!("ended {} times in a row, the last with {exit}", self.habits.restart_max.saturating_add(1));
            let failed = self.fail(Down::Flapping, Some(exit), why);
            return [Effect::Note(What::Flapping)].into_iter().chain(failed).collect();
        };
        let why = self.why.take().filter(|_| !self.began).unwrap_or_else(|| exit.to_string());
        self.settle(Down::Idle);
        self.why = Some(why);
        self.state = State::Backoff;
        self.next_start = Some(now.at + wait);
        let note = What::Backoff { wait_ms: millis(wait), starts: self.generation };
        vec![Effect::Note(note), Effect::ArmBackoff(wait)]
    }

    fn end_as_asked(&mut self, now: Moment, exit: Exit) -> Vec<Effect> {
        self.last = Some(Last { exit, asked: true, by: self.by.take(), at: now.at });
        self.finish(now, Ending { exit, asked: true, stopped: true, good: false, restarted: false })
    }

    fn fail(&mut self, down: Down, exit: Option<Exit>, why: String) -> Vec<Effect> {
        self.settle(down);
        self.failed = true;
        self.why = Some(why.clone());
        vec![Effect::Failed(why, exit)]
    }

    /// Nothing of it is left, and nothing is planned.
    fn settle(&mut self, down: Down) -> Vec<Effect> {
        self.state = State::Down(down);
        self.paused = false;
        self.why = None;
        self.started_at = None;
        self.next_start = None;
        self.stop_deadline = None;
        Vec::new()
    }
}

pub fn millis(span: Duration) -> u64 {
    u64::try_from(span.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    const THREE: Exit = Exit::Code(3);
    const ZERO: Exit = Exit::Code(0);

    fn stop() -> Input {
        Input::Stop { signal: Signal::SIGTERM, by: None }
    }

    fn kill(stay_down: bool) -> Input {
        Input::Send { signal: Signal::SIGKILL, leader_only: false, stay_down, by: Some("pid 7".to_owned()) }
    }

    /// By itself, and on request.
    fn ended(exit: Exit) -> Effect {
        Effect::Ended { exit, asked: false }
    }

    fn obeyed(exit: Exit) -> Effect {
        Effect::Ended { exit, asked: true }
    }

    fn asked() -> Vec<Effect> {
        vec![Effect::Signal(Signal::SIGTERM), Effect::Signal(Signal::SIGCONT), Effect::ArmGrace]
    }

    fn failed(words: &str, exit: Exit) -> Effect {
        Effect::Failed(words.to_owned(), Some(exit))
    }

    /// A process whose settings are these words of a pragma, and its clock.
    struct Table {
        process: Process,
        at: Instant,
    }

    impl Table {
        fn new(pragma: &str) -> Table {
            let names = ["web".to_owned()];
            let lines = [(1, format!("# @web {pragma}"))];
            let settings = crate::supervisor::settings::collect("Procfile", &lines, &names).unwrap();
            let at = Instant::now();
            let process =
                Process::new("web".to_owned(), Some("Starting web on port 5000".into()), &settings["web"], at);
            Table { process, at }
        }

        fn started(pragma: &str) -> Table {
            let mut table = Table::new(pragma);
            assert_eq!(table.step(Input::Start), [Effect::AskRelease]);
            let greeting = Effect::Say("Starting web on port 5000".to_owned());
            assert_eq!(table.step(Input::Released), [greeting, Effect::Spawn]);
            table
        }

        fn up(pragma: &str) -> Table {
            let mut table = Table::started(pragma);
            table.step(Input::Spawned);
            table
        }

        fn step(&mut self, input: Input) -> Vec<Effect> {
            let generation = self.process.generation;
            self.process.step(generation, Moment { at: self.at, dice: 0 }, input)
        }

        /// Steps in a row: what the last one asks for, without notes for the journal.
        fn steps(&mut self, inputs: &[Input]) -> Vec<Effect> {
            let mut last = Vec::new();
            for input in inputs {
                last = self.step(input.clone());
            }
            last.retain(|effect| !matches!(effect, Effect::Note(_)));
            last
        }

        fn name(&self) -> StateName {
            self.process.state_name()
        }
    }

    /// Steps of a process that was just spawned.
    fn check(pragma: &str, inputs: &[Input], name: StateName, effects: &[Effect]) {
        let mut table = Table::up(pragma);
        let last = table.steps(inputs);
        assert_eq!((table.name(), last.as_slice()), (name, effects), "{pragma} {inputs:?}");
    }

    #[test]
    fn a_process_that_ends_by_itself_is_judged_by_its_status() {
        let ends = |exit| [Input::LeaderExited(exit), Input::Emptied];
        check("", &[], StateName::Running, &[]);
        check("", &ends(THREE)[..1], StateName::Stopping, &[]);
        check("", &ends(ZERO), StateName::Exited, &[ended(ZERO), Effect::Finished(ZERO)]);
        check("", &ends(THREE), StateName::Failed, &[ended(THREE), failed("exit status 3", THREE)]);
        let killed = Exit::Signal(9);
        check("", &ends(killed), StateName::Failed, &[ended(killed), failed("signal: killed", killed)]);
        check("success=0,3", &ends(THREE), StateName::Exited, &[ended(THREE), Effect::Finished(THREE)]);
        check("success=3", &ends(ZERO), StateName::Failed, &[ended(ZERO), failed("exit status 0", ZERO)]);
    }

    #[test]
    fn what_we_stopped_is_no_failure() {
        let gone = Input::LeaderExited(Exit::Signal(15));
        check("", &[stop()], StateName::Stopping, &asked());
        check("", &[stop(), gone.clone(), Input::Emptied], StateName::Exited, &[obeyed(Exit::Signal(15))]);
        check("restart=always", &[stop(), gone, Input::Emptied], StateName::Exited, &[obeyed(Exit::Signal(15))]);
        check("", &[stop(), stop()], StateName::Stopping, &[]);
        check("", &[stop(), Input::GraceOver], StateName::Stopping, &[Effect::Signal(Signal::SIGKILL)]);
        // The leader is gone, a child of it is not: it is asked too.
        check("", &[Input::LeaderExited(ZERO), stop()], StateName::Stopping, &asked());
        let mut table = Table::started("");
        assert_eq!(table.steps(&[stop()]), asked(), "also before the spawn is confirmed");
    }

    #[test]
    fn a_failed_spawn_is_said_and_counts() {
        let mut table = Table::started("");
        let effects = table.steps(&[Input::SpawnFailed("no such file".to_owned())]);
        let said = Effect::Say("Failed to start web: no such file".to_owned());
        assert_eq!(effects, [said, Effect::Failed("no such file".to_owned(), None)]);
        assert_eq!(table.name(), StateName::Failed);
        table.step(Input::Start);
        assert!(!table.process.failed, "a new start is a new chance");
    }

    #[test]
    fn events_of_an_earlier_start_change_nothing() {
        let mut table = Table::up("");
        table.steps(&[Input::LeaderExited(ZERO), Input::Emptied, Input::Start, Input::Released, Input::Spawned]);
        let now = Moment { at: table.at, dice: 0 };
        for late in [Input::LeaderExited(THREE), Input::Emptied, Input::GraceOver, Input::ProbePassed, stop()] {
            assert!(table.process.step(1, now, late).is_empty());
        }
        assert_eq!((table.name(), table.process.failed), (StateName::Running, false));
        assert!(table.step(Input::Start).is_empty(), "starting a running process is nothing");
    }

    #[test]
    fn it_waits_for_what_it_depends_on() {
        let mut table = Table::new("");
        table.step(Input::Start);
        assert_eq!((table.name(), table.process.wanted), (StateName::Pending, true));
        let effects = table.steps(&[Input::Refused("db failed".to_owned())]);
        let said = Effect::Say("web is not started: db failed".to_owned());
        assert_eq!(effects, [said, Effect::Failed("db failed".to_owned(), None)]);
        assert_eq!(table.name(), StateName::Failed);
        table.steps(&[Input::Start, stop()]);
        assert_eq!((table.process.state(), table.process.wanted), (State::Down(Down::Idle), false));
    }

    #[test]
    fn a_policy_starts_it_again_after_a_wait() {
        let dies = [Input::LeaderExited(THREE), Input::Emptied];
        let waits = |millis| [ended(THREE), Effect::ArmBackoff(Duration::from_millis(millis))];
        check("restart=on-failure", &dies[..1], StateName::Stopping, &asked());
        check("restart=on-failure", &dies, StateName::Backoff, &waits(100));
        check("restart=always", &dies, StateName::Backoff, &waits(100));
        let well = [Input::LeaderExited(ZERO), Input::Emptied];
        check("restart=on-failure", &well, StateName::Exited, &[ended(ZERO), Effect::Finished(ZERO)]);
        let again = [ended(ZERO), Effect::ArmBackoff(Duration::from_millis(100))];
        check("restart=unless-stopped", &well, StateName::Backoff, &again);
        let mut table = Table::up("restart=on-failure");
        table.steps(&dies);
        let again = [Input::BackoffOver, Input::Released, Input::Spawned];
        table.steps(&again);
        assert_eq!((table.name(), table.process.generation), (StateName::Running, 2));
        assert_eq!(table.steps(&dies), waits(200));
        table.steps(&again);
        table.at += Duration::from_secs(10);
        assert_eq!(table.steps(&dies), waits(100), "ten good seconds begin anew");
        table.steps(&[stop()]);
        assert_eq!((table.name(), table.process.wanted), (StateName::Exited, false), "a stop ends the wait");
    }

    #[test]
    fn too_many_ends_in_a_row_are_flapping_until_somebody_starts_it() {
        let dies = [Input::LeaderExited(THREE), Input::Emptied];
        let again = [Input::BackoffOver, Input::Released, Input::Spawned];
        let mut table = Table::up("restart=always restart-max=2");
        for _ in 0..2 {
            table.steps(&dies);
            table.steps(&again);
        }
        let words = "ended 3 times in a row, the last with exit status 3";
        assert_eq!(table.steps(&dies), [ended(THREE), failed(words, THREE)]);
        assert_eq!((table.name(), table.process.failed), (StateName::Flapping, true));
        assert!(table.steps(&again).is_empty());
        table.steps(&[Input::Start, Input::Released, Input::Spawned]);
        assert_eq!((table.name(), table.process.failed), (StateName::Running, false));
        table.steps(&dies);
        assert_eq!(table.name(), StateName::Backoff, "and counts from the beginning");
    }

    #[test]
    fn a_signal_that_was_sent_on_request_is_no_failure() {
        let dies = [kill(false), Input::LeaderExited(Exit::Signal(9)), Input::Emptied];
        let killed = Exit::Signal(9);
        check("", &dies, StateName::Exited, &[obeyed(killed)]);
        // A shell passes it on as a code.
        let by_code = [kill(false), Input::LeaderExited(Exit::Code(137)), Input::Emptied];
        check("", &by_code, StateName::Exited, &[obeyed(Exit::Code(137))]);
        let backs_off = [obeyed(killed), Effect::ArmBackoff(Duration::from_millis(100))];
        check("restart=on-failure", &dies, StateName::Backoff, &backs_off);
        let stays = [kill(true), Input::LeaderExited(Exit::Signal(9)), Input::Emptied];
        check("restart=always", &stays, StateName::Exited, &[obeyed(killed)]);
        let mut table = Table::up("");
        table.steps(&dies);
        let last = table.process.last.clone().expect("it ended");
        assert_eq!((last.asked, last.by.as_deref()), (true, Some("pid 7")));
        // Another end than the one that was asked for is its own.
        let other = [kill(false), Input::LeaderExited(THREE), Input::Emptied];
        check("", &other, StateName::Failed, &[ended(THREE), failed("exit status 3", THREE)]);
        // Requested deaths do not make it flap.
        let mut table = Table::up("restart=always restart-max=1");
        for _ in 0..5 {
            table.steps(&dies);
            table.steps(&[Input::BackoffOver, Input::Released, Input::Spawned]);
        }
        assert_eq!(table.name(), StateName::Running);
    }

    #[test]
    fn nothing_starts_unless_its_pre_start_ends_well() {
        let hooked = |pragma: &str| {
            let mut table = Table::new(&format!("pre-start=x {pragma}"));
            assert_eq!(table.steps(&[Input::Start, Input::Released])[1..], [Effect::Hook(Hook::PreStart)]);
            assert_eq!((table.name(), table.process.has_leader()), (StateName::Starting, true));
            table
        };
        let ends = |exit| [Input::LeaderExited(exit), Input::Emptied];
        let mut well = hooked("post-stop=y");
        assert_eq!(well.steps(&ends(ZERO)), [Effect::Spawn]);
        well.steps(&[Input::Spawned]);
        assert!(well.steps(&[Input::HookTimeout(Hook::PreStart)]).is_empty(), "that is over");
        assert_eq!(well.name(), StateName::Running);
        // What never began has nothing behind it to clean up.
        let mut bad = hooked("post-stop=y");
        assert_eq!(bad.steps(&ends(THREE)), [ended(THREE), failed("pre-start: exit status 3", THREE)]);
        assert_eq!(bad.process.why.as_deref(), Some("pre-start: exit status 3"));
        let mut again = hooked("restart=on-failure");
        assert_eq!(again.steps(&ends(THREE)), [ended(THREE), Effect::ArmBackoff(Duration::from_millis(100))]);
        assert_eq!(again.process.why.as_deref(), Some("pre-start: exit status 3"));
        assert_eq!(again.steps(&[Input::BackoffOver, Input::Released])[1..], [Effect::Hook(Hook::PreStart)]);
        let mut late = hooked("hook-timeout=2s");
        assert_eq!(late.steps(&[Input::HookTimeout(Hook::PreStart)]), [Effect::Signal(Signal::SIGKILL)]);
        let killed = Exit::Signal(9);
        assert_eq!(late.steps(&ends(killed)), [ended(killed), failed("pre-start: not done within 2s", killed)]);
        let mut stopped = hooked("restart=always");
        assert_eq!(stopped.steps(&[stop()]), asked());
        let term = Exit::Signal(15);
        assert_eq!((stopped.steps(&ends(term)), stopped.name()), (vec![obeyed(term)], StateName::Exited));
        let mut missing = hooked("");
        let effects = missing.steps(&[Input::SpawnFailed("no".to_owned())]);
        assert_eq!((effects.len(), missing.name()), (2, StateName::Failed));
    }

    #[test]
    fn a_post_stop_runs_before_anything_comes_of_an_end() {
        let ends = |exit| [Input::LeaderExited(exit), Input::Emptied];
        let hook = Effect::Hook(Hook::PostStop);
        let mut table = Table::up("post-stop=y restart=on-failure");
        assert_eq!(table.steps(&ends(THREE)), [ended(THREE), hook.clone()]);
        assert_eq!(
            (table.name(), table.process.has_leader(), table.process.is_alive()),
            (StateName::Stopping, true, true)
        );
        assert_eq!(table.steps(&ends(ZERO)), [Effect::ArmBackoff(Duration::from_millis(100))]);
        // How it ends itself is only told.
        let mut table = Table::up("post-stop=y hook-timeout=2s");
        assert_eq!(table.steps(&[stop(), Input::LeaderExited(ZERO), Input::Emptied]), [obeyed(ZERO), hook.clone()]);
        let late = table.step(Input::HookTimeout(Hook::PostStop));
        assert_eq!((late.len(), &late[1]), (2, &Effect::Signal(Signal::SIGKILL)));
        assert!(matches!(table.step(Input::LeaderExited(THREE))[..], [Effect::Note(What::HookFailed { .. })]));
        assert!(!table.process.is_down());
        assert!(table.steps(&[Input::Emptied]).is_empty());
        assert_eq!((table.process.state(), table.process.failed), (State::Down(Down::Idle), false));
        // A stop meanwhile is the last word; somebody without patience is not kept waiting.
        let mut table = Table::up("post-stop=y restart=always");
        table.steps(&ends(ZERO));
        assert!(table.steps(&[stop()]).is_empty());
        table.steps(&ends(ZERO));
        assert!(table.process.is_down());
        let killed = Exit::Signal(9);
        check(
            "post-stop=y",
            &[Input::Kill, Input::LeaderExited(killed), Input::Emptied],
            StateName::Exited,
            &[obeyed(killed)],
        );
        let mut table = Table::up("post-stop=y");
        table.steps(&ends(ZERO));
        assert_eq!(table.steps(&[Input::Kill]), [Effect::Signal(Signal::SIGKILL)]);
        assert_eq!(table.steps(&ends(killed)), [Effect::Finished(ZERO)]);
    }

    #[test]
    fn readiness_comes_from_the_probe() {
        let mut table = Table::up("ready=sd-notify");
        assert_eq!(table.name(), StateName::Starting);
        table.at += Duration::from_millis(40);
        assert_eq!(table.step(Input::ProbePassed), [Effect::Note(What::Ready { after_ms: 40 })]);
        assert_eq!(table.name(), StateName::Ready);
        table.step(Input::ReadyTimeout);
        table.step(Input::ProbeFailed("refused".to_owned()));
        assert_eq!((table.name(), table.process.why.as_deref()), (StateName::Unhealthy, Some("refused")));
        assert!(table.step(Input::ProbePassed).is_empty());
        assert_eq!((table.name(), &table.process.why), (StateName::Ready, &None));
        let mut plain = Table::up("");
        plain.step(Input::Notified);
        assert_eq!(plain.name(), StateName::Ready, "who says so without being asked is ready");
        let mut other = Table::up("ready=tcp=127.0.0.1:1");
        other.step(Input::Notified);
        assert_eq!(other.name(), StateName::Starting, "another probe was asked for");
    }

    #[test]
    fn who_is_not_ready_in_time_has_failed() {
        let late = [Input::ProbeFailed("refused".to_owned()), Input::ReadyTimeout];
        check("ready=delay=1s timeout=2s", &late, StateName::Stopping, &asked());
        let mut table = Table::up("ready=delay=1s timeout=2s");
        table.steps(&late);
        let dead = [Input::LeaderExited(Exit::Signal(15)), Input::Emptied];
        let words = "not ready within 2s: refused";
        assert_eq!(table.steps(&dead), [ended(Exit::Signal(15)), failed(words, Exit::Signal(15))]);
        assert_eq!(table.name(), StateName::Failed);
        let mut again = Table::up("ready=delay=1s restart=on-failure");
        again.steps(&late);
        again.steps(&dead);
        assert_eq!(again.name(), StateName::Backoff);
        // An end before readiness is a failure at once, also a good one.
        let words = "ended before it was ready (exit status 0)";
        let early = [Input::LeaderExited(ZERO), Input::Emptied];
        check("ready=delay=1s", &early, StateName::Failed, &[ended(ZERO), failed(words, ZERO)]);
        // A stop in between is a request like any other.
        let mut stopped = Table::up("ready=delay=1s restart=always");
        stopped.steps(&late);
        assert!(stopped.steps(&[stop()]).is_empty());
        assert_eq!((stopped.steps(&dead), stopped.name()), (vec![obeyed(Exit::Signal(15))], StateName::Exited));
    }

    #[test]
    fn a_pause_is_over_before_anything_else() {
        let mut table = Table::up("ready=delay=1s");
        assert_eq!(table.step(Input::Pause), [Effect::Signal(Signal::SIGSTOP)]);
        assert_eq!(table.name(), StateName::Paused);
        assert!(table.step(Input::Pause).is_empty());
        assert_eq!(table.step(Input::ReadyTimeout), [Effect::ArmReady], "who is paused cannot get ready");
        table.step(Input::ProbePassed);
        assert_eq!(table.name(), StateName::Paused);
        assert_eq!(table.step(Input::Resume), [Effect::Signal(Signal::SIGCONT)]);
        assert_eq!(table.name(), StateName::Ready);
        assert!(table.step(Input::Resume).is_empty());
        check("", &[Input::Pause, stop()], StateName::Stopping, &asked());
        let term = Input::Send { signal: Signal::SIGTERM, leader_only: true, stay_down: false, by: None };
        let wakes = [Effect::SignalLeader(Signal::SIGTERM), Effect::Signal(Signal::SIGCONT)];
        check("", &[Input::Pause, term], StateName::Running, &wakes);
        let by_signal = Input::Send { signal: Signal::SIGSTOP, leader_only: false, stay_down: false, by: None };
        check("", &[by_signal], StateName::Paused, &[Effect::Signal(Signal::SIGSTOP)]);
        let mut down = Table::new("");
        assert!(down.step(Input::Pause).is_empty() && down.step(kill(false)).is_empty());
    }

    #[test]
    fn a_kill_needs_no_patience() {
        let dead = [Effect::Signal(Signal::SIGKILL)];
        check("", &[Input::Kill], StateName::Stopping, &dead);
        check("", &[stop(), Input::Kill], StateName::Stopping, &dead);
        let mut waiting = Table::new("");
        waiting.steps(&[Input::Start, Input::Kill]);
        assert!(waiting.process.is_down());
    }

    #[test]
    fn shells_see_codes_and_signals_as_one_number() {
        assert_eq!([ZERO, THREE, Exit::Signal(9), Exit::Code(-1)].map(Exit::shell_code), [0, 3, 137, 255]);
    }
}

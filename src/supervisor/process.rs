//! One process of a Procfile as a pure state machine: what happened goes in, what to do comes out.
//!
//! ```text
//!            Start              Spawned             LeaderExited          Emptied
//!  Stopped ─────────▶ Starting ─────────▶ Running ───────────────▶ Draining ─────▶ Stopped
//!     ▲                  │ SpawnFailed       │ Stop                   │ Stop
//!     └──────────────────┘                   ▼                        ▼
//!                                        Stopping ── GraceOver: kill ─▶ (the same, until Emptied)
//! ```
//!
//! A process has ended when its leader was reaped *and* nothing holds its output any more: a shell dies before the
//! program it started (supervisor.md 6, traps 1 to 5). Events of an earlier generation change nothing (trap 12).

use nix::sys::signal::Signal;

/// How a leader ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    Code(i32),
    Signal(i32),
}

impl Exit {
    fn is_success(self) -> bool {
        self == Exit::Code(0)
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

/// What a process is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    Stopped,
    Starting,
    Running,
    /// The leader has ended, something of it still holds the output.
    Draining(Exit),
    /// Asked to stop; `Some` once the leader has ended.
    Stopping(Option<Exit>),
}

/// What happened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Input {
    Start,
    Stop(Signal),
    /// Kill now, whatever was asked before.
    Kill,
    Spawned,
    SpawnFailed(String),
    LeaderExited(Exit),
    /// The leader is reaped and its output is closed.
    Emptied,
    GraceOver,
}

/// What to do now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Effect {
    Spawn,
    /// To the whole group.
    Signal(Signal),
    /// Ask for `GraceOver` when the time to stop is over.
    ArmGrace,
    /// A line of our own in this process's log.
    Say(String),
    /// It ended by itself and badly: these are the words for it.
    Failed(String),
}

/// One process; `generation` counts its starts.
#[derive(Clone, Debug)]
pub struct Process {
    pub name: String,
    pub generation: u64,
    state: State,
    /// Said at each start; `None` says nothing.
    greeting: Option<String>,
    /// How it last ended.
    pub last_exit: Option<Exit>,
    /// Its last end, if it ended, was by itself and a bad one. A new start is a new chance.
    pub failed: bool,
}

impl Process {
    pub fn new(name: String, greeting: Option<String>) -> Process {
        Process { name, generation: 0, state: State::Stopped, greeting, last_exit: None, failed: false }
    }

    pub fn state(&self) -> State {
        self.state
    }

    pub fn is_stopped(&self) -> bool {
        self.state == State::Stopped
    }

    /// Takes one input that belongs to `generation`; inputs of earlier starts change nothing.
    pub fn step(&mut self, generation: u64, input: Input) -> Vec<Effect> {
        if generation != self.generation {
            return Vec::new();
        }
        match (self.state, input) {
            (State::Stopped, Input::Start) => self.begin(),
            (State::Starting, Input::Spawned) => self.become_state(State::Running),
            (State::Starting, Input::SpawnFailed(why)) => self.refuse(why),
            // Asked to stop before the spawn was confirmed: the signal follows it.
            (State::Starting | State::Running, Input::Stop(signal)) => self.ask(None, signal),
            (State::Draining(exit), Input::Stop(signal)) => self.ask(Some(exit), signal),
            (State::Running, Input::LeaderExited(exit)) => self.become_state(State::Draining(exit)),
            (State::Stopping(_), Input::LeaderExited(exit)) => self.become_state(State::Stopping(Some(exit))),
            (State::Draining(exit), Input::Emptied) => self.end(exit, true),
            (State::Stopping(exit), Input::Emptied) => self.end(exit.unwrap_or(Exit::Code(0)), false),
            (State::Stopping(_), Input::SpawnFailed(why)) => self.refuse(why),
            (State::Stopping(_), Input::GraceOver) => vec![Effect::Signal(Signal::SIGKILL)],
            (State::Stopped, Input::Kill) => Vec::new(),
            (state, Input::Kill) => {
                let exit = match state {
                    State::Draining(exit) => Some(exit),
                    State::Stopping(exit) => exit,
                    _ => None,
                };
                self.state = State::Stopping(exit);
                vec![Effect::Signal(Signal::SIGKILL)]
            }
            _ => Vec::new(),
        }
    }

    fn begin(&mut self) -> Vec<Effect> {
        self.generation += 1;
        self.failed = false;
        self.state = State::Starting;
        let greeting = self.greeting.clone().map(Effect::Say);
        greeting.into_iter().chain([Effect::Spawn]).collect()
    }

    fn become_state(&mut self, state: State) -> Vec<Effect> {
        self.state = state;
        Vec::new()
    }

    fn ask(&mut self, exit: Option<Exit>, signal: Signal) -> Vec<Effect> {
        self.state = State::Stopping(exit);
        // A stopped process takes the signal only once it continues (trap 9).
        vec![Effect::Signal(signal), Effect::Signal(Signal::SIGCONT), Effect::ArmGrace]
    }

    fn refuse(&mut self, why: String) -> Vec<Effect> {
        self.state = State::Stopped;
        self.last_exit = None;
        self.failed = true;
        vec![Effect::Say(format!("Failed to start {}: {why}", self.name)), Effect::Failed(why)]
    }

    fn end(&mut self, exit: Exit, by_itself: bool) -> Vec<Effect> {
        self.state = State::Stopped;
        self.last_exit = Some(exit);
        let mut effects = vec![Effect::Say(format!("Terminating {}", self.name))];
        if by_itself && !exit.is_success() {
            self.failed = true;
            effects.push(Effect::Failed(exit.to_string()));
        }
        effects
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn started() -> Process {
        let mut process = Process::new("web".to_owned(), Some("Starting web on port 5000".to_owned()));
        let effects = process.step(0, Input::Start);
        assert_eq!(effects, [Effect::Say("Starting web on port 5000".to_owned()), Effect::Spawn]);
        process
    }

    /// Steps of the current generation, and what the last one asks for.
    fn check(inputs: &[Input], state: State, effects: &[Effect]) {
        let mut process = started();
        let mut last = Vec::new();
        for input in inputs {
            last = process.step(1, input.clone());
        }
        assert_eq!((process.state(), last.as_slice()), (state, effects), "{inputs:?}");
    }

    fn terminating() -> Effect {
        Effect::Say("Terminating web".to_owned())
    }

    #[test]
    fn a_process_that_ends_by_itself_is_judged_by_its_status() {
        let three = Exit::Code(3);
        check(&[Input::Spawned], State::Running, &[]);
        check(&[Input::Spawned, Input::LeaderExited(three)], State::Draining(three), &[]);
        check(&[Input::Spawned, Input::LeaderExited(Exit::Code(0)), Input::Emptied], State::Stopped, &[terminating()]);
        check(
            &[Input::Spawned, Input::LeaderExited(three), Input::Emptied],
            State::Stopped,
            &[terminating(), Effect::Failed("exit status 3".to_owned())],
        );
        check(
            &[Input::Spawned, Input::LeaderExited(Exit::Signal(9)), Input::Emptied],
            State::Stopped,
            &[terminating(), Effect::Failed("signal: killed".to_owned())],
        );
    }

    #[test]
    fn what_we_stopped_is_no_failure() {
        let stop = Input::Stop(Signal::SIGTERM);
        let asked = [Effect::Signal(Signal::SIGTERM), Effect::Signal(Signal::SIGCONT), Effect::ArmGrace];
        check(&[Input::Spawned, stop.clone()], State::Stopping(None), &asked);
        check(
            &[Input::Spawned, stop.clone(), Input::LeaderExited(Exit::Signal(15)), Input::Emptied],
            State::Stopped,
            &[terminating()],
        );
        check(&[Input::Spawned, stop.clone(), stop.clone()], State::Stopping(None), &[]);
        check(
            &[Input::Spawned, stop.clone(), Input::GraceOver],
            State::Stopping(None),
            &[Effect::Signal(Signal::SIGKILL)],
        );
        // The leader is gone, a child of it is not: it is asked too.
        let zero = Exit::Code(0);
        check(&[Input::Spawned, Input::LeaderExited(zero), stop], State::Stopping(Some(zero)), &asked);
    }

    #[test]
    fn a_failed_spawn_is_said_and_counts() {
        check(
            &[Input::SpawnFailed("no such file".to_owned())],
            State::Stopped,
            &[Effect::Say("Failed to start web: no such file".to_owned()), Effect::Failed("no such file".to_owned())],
        );
    }

    #[test]
    fn a_new_start_forgets_the_failure_before() {
        let mut process = started();
        for input in [Input::Spawned, Input::LeaderExited(Exit::Signal(9)), Input::Emptied] {
            process.step(1, input);
        }
        assert!(process.failed);
        process.step(1, Input::Start);
        assert!(!process.failed);
    }

    #[test]
    fn events_of_an_earlier_start_change_nothing() {
        let mut process = started();
        process.step(1, Input::Spawned);
        process.step(1, Input::LeaderExited(Exit::Code(0)));
        process.step(1, Input::Emptied);
        process.step(1, Input::Start);
        process.step(2, Input::Spawned);
        assert!(process.step(1, Input::LeaderExited(Exit::Code(1))).is_empty());
        assert!(process.step(1, Input::Emptied).is_empty());
        assert_eq!(process.state(), State::Running);
        assert!(!process.failed);
        assert!(process.step(2, Input::Start).is_empty(), "starting a running process is nothing");
    }
}

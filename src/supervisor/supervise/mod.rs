//! The one loop that owns the truth: which processes exist, what they do, who asked for what.
//!
//! Everything arrives as an event (a child, a timer, a signal, a request, a call, the end of our output) and is handled to
//! its end before the next one. What takes time moves on as processes do: `requests` are goreman's, one after another;
//! `actions` are ours, a queue a process, so that one process never waits for another.
//!
//! ```text
//!  signals to us:  1st  ask everything to end (SIGHUP, SIGINT, SIGQUIT, SIGTERM alike)
//!                  2nd  SIGKILL to everything      3rd  do not wait for it (natively)
//!  Ctrl-Z          natively nothing: a stopped supervisor would not read its children's output, and they would stand still
//!
//!  exit code, natively                                   as goreman
//!    0          all ended well, or were stopped, or `down`   0
//!    n, 128+s   any-failure, any-exit: of the process that    1 with -exit-on-error
//!               ended it, by itself or by signal s
//!    128+s      we were signalled                             0
//!    1          something failed for good; our output broke   0
//! ```

mod actions;
mod reload;
mod requests;
mod view;

use std::collections::BTreeMap;
use std::collections::BTreeSet;
use std::collections::VecDeque;
use std::hash::BuildHasher;
use std::hash::Hasher;
use std::hash::RandomState;
use std::str::FromStr;
use std::time::Duration;
use std::time::Instant;

use nix::sys::signal::Signal;
use nix::unistd::Pid;
use tokio::signal::unix::SignalKind;
use tokio::sync::mpsc;
use tokio::sync::oneshot;

use crate::program::Manner;
use crate::supervisor::child;
use crate::supervisor::child::Event;
use crate::supervisor::child::Happened;
use crate::supervisor::child::Launch;
use crate::supervisor::child::Usage;
use crate::supervisor::control::Request;
use crate::supervisor::control::vocabulary::Call;
use crate::supervisor::dependencies::Dependencies;
use crate::supervisor::dependencies::Verdict;
use crate::supervisor::guardian::Guardian;
use crate::supervisor::journal::Journal;
use crate::supervisor::journal::What;
use crate::supervisor::notify;
use crate::supervisor::notify::Notify;
use crate::supervisor::orphans;
use crate::supervisor::orphans::Adopted;
use crate::supervisor::output::Feed;
use crate::supervisor::output::Output;
use crate::supervisor::output::store::Follower;
use crate::supervisor::output::store::Stream;
use crate::supervisor::probes::Probing;
use crate::supervisor::probes::Subject;
use crate::supervisor::process::Down;
use crate::supervisor::process::Effect;
use crate::supervisor::process::Exit;
use crate::supervisor::process::Input;
use crate::supervisor::process::Moment;
use crate::supervisor::process::Process;
use crate::supervisor::process::State;
use crate::supervisor::process::millis;
use crate::supervisor::reload::Definition;
use crate::supervisor::settings::Hook;
use crate::supervisor::settings::Probe;
use crate::supervisor::supervise::actions::Answers;
use crate::supervisor::supervise::actions::Task;
use crate::supervisor::supervise::requests::Operation;

/// How often an ending supervisor says for whom it waits.
const BLOCKERS_EVERY: Duration = Duration::from_secs(1);
/// How often we look for orphans that came without a sign, and how soon after a sign.
const ORPHANS_EVERY: Duration = Duration::from_secs(1);
const ORPHANS_SOON: Duration = Duration::from_millis(100);
/// Of what a pre-start has printed before it failed.
const HOOK_LINES_TOLD: usize = 3;
/// Among these there are lines of our own.
const HOOK_LINES_READ: usize = 20;

/// What ends everything by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ExitOn {
    /// Nothing runs and nothing is planned.
    pub all_stopped: bool,
    /// A process has ended by itself, unless it may (`can-exit`) and did so well.
    pub any_exit: bool,
    /// A process has failed for good.
    pub any_failure: bool,
}

impl FromStr for ExitOn {
    type Err = String;

    /// The words of `--exit-on`.
    fn from_str(word: &str) -> Result<ExitOn, String> {
        let on = |all_stopped, any_exit, any_failure| Ok(ExitOn { all_stopped, any_exit, any_failure });
        match word {
            "all-stopped" => on(true, false, false),
            "any-exit" => on(true, true, true),
            "any-failure" => on(true, false, true),
            "never" => on(false, false, false),
            _ => Err(format!("\"{word}\" is not all-stopped, any-exit, any-failure or never")),
        }
    }
}

/// How the supervisor behaves, from flags and personality.
#[derive(Clone, Copy, Debug)]
pub struct Rules {
    pub manner: Manner,
    pub exit_on: ExitOn,
    /// At the end a process is stopped only when those that wait for it at the start are.
    pub stop_in_reverse: bool,
}

/// One process of the Procfile as the loop knows it.
#[derive(Debug)]
pub struct Slot {
    pub process: Process,
    /// What it is to be from its next start on.
    pub definition: Definition,
    /// Among those that are shown.
    pub rank: usize,
    /// Where it prints.
    pub feed: Feed,
    /// A second entry of the same name: listed, never started (supervisor.md 1.6).
    pub shadowed: bool,
    /// The first slot of an entry that was named twice on the command line: this one shows how that one is.
    pub twin: Option<usize>,
    /// Of the current or last start.
    group: Option<Pid>,
    mark: String,
    /// The last request to end, and the strays that got it.
    request: Option<Signal>,
    asked: BTreeSet<(i32, u64)>,
    /// Counts pauses, so that the end of one does not end the next.
    pauses: u64,
    tasks: VecDeque<Task>,
    /// Words behind its command that the cluster has made necessary (`roster`).
    appended: Option<String>,
    /// What a reload makes of it as soon as it is down.
    next: Option<Definition>,
    /// A reload has taken it out: the slot is empty.
    is_gone: bool,
    /// Where it says that it is ready; natively only.
    notify: Option<Notify>,
    probing: Option<Probing>,
}

impl Slot {
    pub fn new(process: Process, definition: Definition, feed: Feed) -> Slot {
        Slot {
            process,
            definition,
            rank: 0,
            feed,
            shadowed: false,
            twin: None,
            group: None,
            mark: String::new(),
            request: None,
            asked: BTreeSet::new(),
            pauses: 0,
            tasks: VecDeque::new(),
            appended: None,
            next: None,
            is_gone: false,
            notify: None,
            probing: None,
        }
    }

    fn whole_command(&self) -> String {
        self.appended.iter().fold(self.definition.command.clone(), |command, words| format!("{command} {words}"))
    }
}

/// How it all ended.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Ended {
    /// Words of the failure or the end that ended everything, and how the process ended if it ever began.
    pub fatal: Option<(String, Option<Exit>)>,
    /// Some process ended by itself and badly, and was not started again.
    pub failures: bool,
    /// Our output broke: nobody reads us any more.
    pub deaf: bool,
    /// The first signal that we got.
    pub signal: Option<i32>,
    /// Somebody asked for the end over the socket.
    pub asked: bool,
}

impl Ended {
    /// The native exit code (module doc).
    pub fn code(&self) -> u8 {
        match self {
            Ended { fatal: Some((_, exit)), .. } => exit.map_or(1, Exit::shell_code),
            Ended { signal: Some(signal), .. } => Exit::Signal(*signal).shell_code(),
            Ended { deaf: true, .. } => 1,
            Ended { asked: true, .. } => 0,
            Ended { failures: true, .. } => 1,
            _ => 0,
        }
    }
}

/// The loop's state.
pub struct Supervisor {
    rules: Rules,
    slots: Vec<Slot>,
    dependencies: Dependencies,
    operations: Vec<Operation>,
    answers: BTreeMap<u64, Answers>,
    /// Who asked for the end, and is told when it has come.
    farewells: Vec<oneshot::Sender<()>>,
    output: Output,
    journal: Journal,
    guardian: Guardian,
    adopted: Adopted,
    orphans_due: Instant,
    blockers_due: Option<Instant>,
    events: mpsc::UnboundedSender<Event>,
    incoming: mpsc::UnboundedReceiver<Event>,
    ending: bool,
    /// Signals that we got, as long as they count.
    signals: u32,
    ended: Ended,
}

impl Supervisor {
    /// Fails if processes wait for each other, or for somebody who is not there.
    pub fn new(
        rules: Rules,
        mut slots: Vec<Slot>,
        output: Output,
        guardian: Guardian,
        journal: Journal,
    ) -> Result<Supervisor, String> {
        let (events, incoming) = mpsc::unbounded_channel();
        for (rank, slot) in slots.iter_mut().enumerate() {
            slot.rank = rank;
        }
        let named: Vec<_> = slots.iter().map(|slot| (slot.process.name.as_str(), &slot.definition.settings)).collect();
        Ok(Supervisor {
            rules,
            dependencies: Dependencies::of(&named)?,
            slots,
            operations: Vec::new(),
            answers: BTreeMap::new(),
            farewells: Vec::new(),
            output,
            journal,
            guardian,
            adopted: Adopted::default(),
            orphans_due: Instant::now() + ORPHANS_EVERY,
            blockers_due: None,
            events,
            incoming,
            ending: false,
            signals: 0,
            ended: Ended::default(),
        })
    }

    /// Starts everything and runs until there is nothing left to do. No child is left when it returns.
    pub async fn run(
        mut self,
        mut requests: mpsc::Receiver<Request>,
        mut calls: mpsc::Receiver<Call>,
        mut output_ended: oneshot::Receiver<std::io::Result<()>>,
    ) -> std::io::Result<Ended> {
        let mut interrupt = tokio::signal::unix::signal(SignalKind::interrupt())?;
        let mut terminate = tokio::signal::unix::signal(SignalKind::terminate())?;
        let mut hangup = tokio::signal::unix::signal(SignalKind::hangup())?;
        let mut quit = tokio::signal::unix::signal(SignalKind::quit())?;
        let mut changes = tokio::signal::unix::signal(SignalKind::child())?;
        let _unheard = self.unheard()?;
        orphans::adopt();
        if self.rules.manner == Manner::Native {
            for (index, slot) in self.slots.iter_mut().enumerate() {
                slot.notify = Some(Notify::open(self.guardian.tag().id(), index, self.events.clone())?);
            }
        }
        self.journal.record(None, What::Supervisor { text: "started".to_owned() });
        for index in 0..self.slots.len() {
            let slot = &self.slots[index];
            if !slot.shadowed && slot.process.state() != State::Down(Down::Disabled) {
                self.step_now(index, Input::Start);
            }
        }
        self.advance();
        while !self.is_over() {
            let due = self.next_due();
            tokio::select! {
                biased;
                Some(event) = self.incoming.recv() => self.take_event(event),
                _ = interrupt.recv() => self.take_signal(Signal::SIGINT),
                _ = terminate.recv() => self.take_signal(Signal::SIGTERM),
                _ = hangup.recv() => self.take_signal(Signal::SIGHUP),
                _ = quit.recv() => self.take_signal(Signal::SIGQUIT),
                Some(request) = requests.recv() => self.take_request(request),
                Some(call) = calls.recv() => self.take_call(call),
                _ = changes.recv() => self.orphans_due = self.orphans_due.min(Instant::now() + ORPHANS_SOON),
                () = tokio::time::sleep_until(due.into()) => self.take_time(),
                _ = &mut output_ended, if !self.ended.deaf => {
                    self.ended.deaf = true;
                    self.end(Signal::SIGTERM, "our output is closed");
                }
            }
            self.advance();
        }
        Ok(self.finish().await)
    }

    /// Signals of which nothing comes; unheard they would end or stop us.
    fn unheard(&self) -> std::io::Result<Vec<tokio::signal::unix::Signal>> {
        let mut kinds = vec![SignalKind::user_defined1(), SignalKind::user_defined2()];
        if self.rules.manner == Manner::Native {
            kinds.push(SignalKind::from_raw(Signal::SIGTSTP as i32));
        }
        kinds.into_iter().map(tokio::signal::unix::signal).collect()
    }

    /// The end: whoever is left is killed, then whoever waits for the end is told.
    async fn finish(self) -> Ended {
        let abandoned = self.is_abandoned();
        if !abandoned {
            orphans::sweep(self.guardian.pid()).await;
        }
        // What hangs is the guardian's.
        self.guardian.finish();
        self.journal.record(None, What::Supervisor { text: "ended".to_owned() });
        for answer in self.farewells {
            // Whoever asked may have hung up.
            let _ = answer.send(());
        }
        let failures = self.slots.iter().any(|slot| slot.process.failed);
        Ended { failures, ..self.ended }
    }

    /// Asked for the third time: nobody is waited for.
    fn is_abandoned(&self) -> bool {
        self.rules.manner == Manner::Native && self.signals > 2
    }

    fn is_over(&self) -> bool {
        let quiet = self.slots.iter().all(|slot| slot.process.is_down() && slot.tasks.is_empty());
        let done = quiet && self.operations.is_empty() && (self.ending || self.rules.exit_on.all_stopped);
        done || self.is_abandoned()
    }

    fn next_due(&self) -> Instant {
        self.blockers_due.map_or(self.orphans_due, |due| due.min(self.orphans_due))
    }

    /// Some time that was waited for has come.
    fn take_time(&mut self) {
        let now = Instant::now();
        if now >= self.orphans_due {
            self.look_for_orphans(now);
        }
        if self.blockers_due.is_some_and(|due| now >= due) {
            self.blockers_due = Some(now + BLOCKERS_EVERY);
            self.say_blockers(now);
        }
    }

    fn look_for_orphans(&mut self, now: Instant) {
        let alive = self.slots.iter().filter(|slot| slot.process.has_leader()).filter_map(|slot| slot.group);
        let known: BTreeSet<i32> = alive.map(Pid::as_raw).chain([self.guardian.pid()]).collect();
        let changes = self.adopted.look(&known);
        self.guardian.adopt(&changes.come, &changes.gone);
        let stopping = self.ask_orphans();
        self.orphans_due = now + if changes.again || stopping { ORPHANS_SOON } else { ORPHANS_EVERY };
        if let Some(trouble) = self.journal.take_trouble() {
            self.output.say(&trouble);
        }
    }

    /// Asks those of a stop to end whose parents have ended before they could. Whether there may be more of them.
    fn ask_orphans(&mut self) -> bool {
        let mut stopping = false;
        for slot in &mut self.slots {
            let ending = matches!(slot.process.state(), State::Stopping(_) | State::Draining(_));
            let asked = slot.request.filter(|_| ending && slot.process.stop_deadline.is_some());
            if let Some((signal, group)) = asked.zip(slot.group) {
                child::ask_orphans(group, &slot.mark, signal, &mut slot.asked);
                stopping = true;
            }
        }
        stopping
    }

    /// Whom an ending supervisor waits for.
    fn say_blockers(&self, now: Instant) {
        let blocker = |slot: &Slot| {
            let pid = slot.group.map(|group| format!("pid {group}, ")).unwrap_or_default();
            let left = slot.process.stop_deadline.map(|deadline| deadline.saturating_duration_since(now));
            let left = left.map_or(String::new(), |left| match left.is_zero() {
                true => ", killed".to_owned(),
                false => format!(", killed in {:.0}s", left.as_secs_f64().ceil()),
            });
            format!("{} ({pid}{}{left})", slot.process.name, view::state_words(slot.process.state_name()))
        };
        let blockers: Vec<String> = self.slots.iter().filter(|slot| slot.process.is_alive()).map(blocker).collect();
        if !blockers.is_empty() {
            self.output.say(&format!("waiting for {}", blockers.join(", ")));
        }
    }

    fn take_event(&mut self, event: Event) {
        let Event { index, generation, happened } = event;
        match happened {
            Happened::Input(Input::Emptied) => self.take_emptied(index, generation),
            Happened::Input(Input::Notified)
                if matches!(self.slots[index].definition.settings.ready, Some(Probe::SdNotify)) =>
            {
                self.step(index, generation, Input::ProbePassed);
            }
            Happened::Input(input) => self.step(index, generation, input),
            Happened::Exited(exit, usage) => self.note_exit(index, generation, exit, usage),
            Happened::PauseOver(pause) => {
                if self.slots[index].pauses == pause {
                    self.step(index, generation, Input::Resume);
                }
            }
            // What it was about is looked at after every event.
            Happened::Moved => {}
            Happened::Cleaned(result) => self.take_cleaned(index, result),
        }
    }

    /// Nothing is left of a process or of its hook.
    fn take_emptied(&mut self, index: usize, generation: u64) {
        let slot = &self.slots[index];
        let group = slot.group.filter(|_| slot.process.generation == generation);
        let was_preparing = matches!(slot.process.state(), State::Preparing(_));
        self.step(index, generation, Input::Emptied);
        if was_preparing {
            self.explain_hook(index, group);
        }
        self.forget_group(group);
    }

    /// Adds to the words for a pre-start that failed what it has printed last.
    fn explain_hook(&mut self, index: usize, group: Option<Pid>) {
        let process = &mut self.slots[index].process;
        if matches!(process.state(), State::Starting | State::Up(_)) {
            return;
        }
        let lines = self.output.store().tail(std::slice::from_ref(&process.name), Some(HOOK_LINES_READ), None);
        let theirs = lines.iter().filter(|line| line.stream != Stream::Own && line.pid == group.map(Pid::as_raw));
        let texts: Vec<&str> = theirs.map(|line| line.text.as_str()).collect();
        let last = &texts[texts.len().saturating_sub(HOOK_LINES_TOLD)..];
        if let Some(why) = process.why.as_mut().filter(|_| !last.is_empty()) {
            why.push_str(&format!(": {}", last.join(" / ")));
        }
    }

    fn forget_group(&mut self, group: Option<Pid>) {
        if let Some(group) = group {
            // A group with members left over stays with the guardian, which ends it when we end.
            if !child::is_alive(group) {
                self.guardian.forget(group);
            }
        }
    }

    fn note_exit(&mut self, index: usize, generation: u64, exit: Exit, usage: Option<Usage>) {
        let slot = &self.slots[index];
        if slot.process.generation == generation {
            let (code, signal) = match exit {
                Exit::Code(code) => (Some(code), None),
                Exit::Signal(signal) => (None, Some(signal)),
            };
            let what = What::Exit {
                pid: slot.group.map_or(0, Pid::as_raw),
                code,
                signal,
                asked: slot.process.is_asked(exit),
                user_ms: usage.map(|usage| millis(usage.user)),
                system_ms: usage.map(|usage| millis(usage.system)),
            };
            self.journal.record(Some(&slot.process.name), what);
        }
        self.step(index, generation, Input::LeaderExited(exit));
    }

    fn step_now(&mut self, index: usize, input: Input) {
        let generation = self.slots[index].process.generation;
        self.step(index, generation, input);
    }

    fn step(&mut self, index: usize, generation: u64, input: Input) {
        let moment = Moment { at: Instant::now(), dice: RandomState::new().build_hasher().finish() };
        let was_alive = self.slots[index].process.is_alive();
        for effect in self.slots[index].process.step(generation, moment, input) {
            self.carry_out(index, effect);
        }
        let slot = &mut self.slots[index];
        if !matches!(slot.process.state(), State::Starting | State::Up(_)) {
            slot.probing = None;
        }
        if was_alive && !slot.process.is_alive() {
            let state = view::state_words(slot.process.state_name());
            self.journal.record(Some(&slot.process.name), What::Gone { state });
        }
    }

    fn carry_out(&mut self, index: usize, effect: Effect) {
        let slot = &self.slots[index];
        match effect {
            Effect::AskRelease => self.release(index),
            Effect::Spawn => self.spawn(index),
            Effect::Hook(hook) => self.spawn_hook(index, hook),
            Effect::Signal(signal) => {
                let slot = &mut self.slots[index];
                if child::is_request(signal) {
                    slot.request = Some(signal);
                }
                if let Some(group) = slot.group {
                    child::signal(group, &slot.mark, signal);
                }
            }
            Effect::SignalLeader(signal) => {
                if let Some(leader) = slot.group.filter(|_| slot.process.has_leader()) {
                    child::signal_leader(leader, signal);
                }
            }
            Effect::ArmGrace => self.arm(index, slot.definition.settings.grace, Happened::Input(Input::GraceOver)),
            Effect::ArmReady => self.arm(index, slot.definition.settings.timeout, Happened::Input(Input::ReadyTimeout)),
            Effect::ArmBackoff(wait) => self.arm(index, wait, Happened::Input(Input::BackoffOver)),
            Effect::Say(text) => slot.feed.say(&text),
            Effect::Ended { exit, asked } => slot.feed.say(&self.words_of_end(&slot.process, exit, asked)),
            Effect::Note(what) => {
                if let Some(words) = words_of_note(&slot.process.name, &what) {
                    slot.feed.say(&words);
                }
                self.journal.record(Some(&slot.process.name), what);
            }
            Effect::Failed(words, exit) => {
                if self.rules.exit_on.any_failure {
                    self.end_because(index, words, exit);
                }
            }
            Effect::Finished(exit) => {
                if self.rules.exit_on.any_exit && !slot.definition.settings.can_exit {
                    self.end_because(index, exit.to_string(), Some(exit));
                }
            }
        }
    }

    fn words_of_end(&self, process: &Process, exit: Exit, asked: bool) -> String {
        let by = process.last.as_ref().and_then(|last| last.by.as_ref());
        let by = by.map(|by| format!(" by {by}")).unwrap_or_default();
        match self.rules.manner {
            Manner::Original => format!("Terminating {}", process.name),
            Manner::Native if asked => format!("{} ended as asked{by}: {exit}", process.name),
            Manner::Native => format!("{} ended: {exit}", process.name),
        }
    }

    /// Lets it start, fails it, or lets it wait on.
    fn release(&mut self, index: usize) {
        match self.dependencies.verdict(index, |other| &self.slots[other].process) {
            Verdict::Free => self.step_now(index, Input::Released),
            Verdict::Never(why) => self.step_now(index, Input::Refused(why)),
            Verdict::Waits(why) => self.slots[index].process.why = Some(why),
        }
    }

    /// A new start of the process, or of one of its hooks in its place.
    fn launch(&mut self, index: usize, hook: Option<Hook>) -> Launch {
        let tag = self.guardian.tag();
        let slot = &mut self.slots[index];
        slot.mark = tag.mark(index, slot.process.generation);
        slot.request = None;
        slot.asked.clear();
        let mut environment = slot.definition.environment.clone();
        environment.push((orphans::VARIABLE.to_owned(), tag.value(&slot.mark)));
        let (command, feed) = match hook {
            None => (slot.whole_command(), slot.feed.clone()),
            Some(hook) => (
                slot.definition.settings.hook(hook).cloned().unwrap_or_default(),
                slot.feed.clone().with_terminal(false),
            ),
        };
        // What a hook has to say is no word of the process.
        if let Some(notify) = slot.notify.as_ref().filter(|_| hook.is_none()) {
            environment.push((notify::VARIABLE.to_owned(), notify.address().to_owned()));
        }
        Launch {
            index,
            generation: slot.process.generation,
            command,
            environment,
            cwd: slot.definition.settings.cwd.clone(),
            mark: slot.mark.clone(),
            feed,
            manner: self.rules.manner,
            hook,
        }
    }

    fn spawn(&mut self, index: usize) {
        let launch = self.launch(index, None);
        let environment = launch.environment.clone();
        let slot = &mut self.slots[index];
        // Before there can be any.
        let lines = self.output.store().follow(std::slice::from_ref(&slot.process.name));
        let missing = slot.definition.settings.cwd.as_ref().filter(|cwd| !cwd.is_dir());
        let spawned = match missing {
            Some(cwd) => Err(format!("chdir {}: not a directory", cwd.display())),
            None => child::spawn(launch, self.events.clone()).map_err(|error| words_of_spawn(&error)),
        };
        match spawned {
            Ok(group) => {
                slot.group = Some(group);
                let what = What::Spawn { pid: group.as_raw(), generation: slot.process.generation };
                self.journal.record(Some(&slot.process.name), what);
                self.guardian.watch(group);
                if self.rules.manner == Manner::Native {
                    let port = slot.definition.port.map(|port| format!(", on port {port}")).unwrap_or_default();
                    slot.feed.say(&format!("{} started, pid {group}{port}", slot.process.name));
                }
                self.observe(index, group, environment, lines);
                self.step_now(index, Input::Spawned);
            }
            Err(why) => {
                slot.group = None;
                self.step_now(index, Input::SpawnFailed(why));
            }
        }
    }

    /// Starts a hook in the place of the process: its events are the process's.
    fn spawn_hook(&mut self, index: usize, hook: Hook) {
        let launch = self.launch(index, Some(hook));
        let slot = &mut self.slots[index];
        match child::spawn(launch, self.events.clone()) {
            Ok(group) => {
                slot.group = Some(group);
                let what = What::Hook { hook: hook.to_string(), pid: group.as_raw() };
                self.journal.record(Some(&slot.process.name), what);
                self.guardian.watch(group);
                let wait = slot.definition.settings.hook_timeout;
                self.arm(index, wait, Happened::Input(Input::HookTimeout(hook)));
            }
            Err(error) => {
                slot.group = None;
                self.step_now(index, Input::SpawnFailed(format!("{hook}: {}", words_of_spawn(&error))));
            }
        }
    }

    /// Begins to find out whether a start of a process is ready.
    fn observe(&mut self, index: usize, group: Pid, environment: Vec<(String, String)>, lines: Follower) {
        let slot = &mut self.slots[index];
        let generation = slot.process.generation;
        if let Some(notify) = &slot.notify {
            notify.expect(generation, group.as_raw(), &slot.mark);
        }
        let subject = Subject { index, generation, group, mark: slot.mark.clone(), environment };
        slot.probing = Probing::start(&slot.definition.settings, subject, lines, self.events.clone());
    }

    /// Sends something to ourselves after a while, for this start of a process.
    fn arm(&self, index: usize, wait: Duration, happened: Happened) {
        let events = self.events.clone();
        let generation = self.slots[index].process.generation;
        tokio::spawn(async move {
            tokio::time::sleep(wait).await;
            // The loop is gone only when everything has ended.
            let _ = events.send(Event { index, generation, happened });
        });
    }

    fn end_because(&mut self, index: usize, words: String, exit: Option<Exit>) {
        if self.ending {
            return;
        }
        let name = self.slots[index].process.name.clone();
        let why = format!("{name}: {words}");
        let said = match self.rules.manner {
            Manner::Original => words,
            Manner::Native => why.clone(),
        };
        self.ended.fatal = Some((said, exit));
        self.end(Signal::SIGINT, &why);
    }

    fn take_signal(&mut self, signal: Signal) {
        self.signals = self.signals.saturating_add(1);
        if !self.ending {
            self.signals = 1;
            self.ended.signal = Some(signal as i32);
            self.end(signal, signal.as_str());
            return;
        }
        // Asked twice: no more patience.
        self.signals = self.signals.max(2);
        self.kill_all();
    }

    fn kill_all(&mut self) {
        for index in 0..self.slots.len() {
            self.step_now(index, Input::Kill);
        }
    }

    /// Stops everything: in goreman's personality one after another with the signal that we got, natively all at once
    /// with the signal of each.
    fn end(&mut self, signal: Signal, why: &str) {
        if self.ending {
            return;
        }
        self.ending = true;
        self.journal.record(None, What::Supervisor { text: format!("ending: {why}") });
        self.give_up_actions();
        match self.rules.manner {
            Manner::Original => self.end_in_order(signal),
            Manner::Native => {
                self.forget_requests();
                self.blockers_due = Some(Instant::now() + BLOCKERS_EVERY);
            }
        }
    }

    /// Natively, at the end: asks everybody whose turn it is.
    fn stop_next(&mut self) {
        for index in 0..self.slots.len() {
            let held = self.rules.stop_in_reverse
                && self.dependencies.dependents(index).any(|other| !self.slots[other].process.is_down());
            let state = self.slots[index].process.state();
            let asked = matches!(state, State::Stopping(_) | State::Finishing(_) | State::Down(_));
            if !held && !asked {
                let signal = self.stop_signal(index);
                self.step_now(index, Input::Stop { signal, by: None });
            }
        }
    }

    /// How a process is asked to end.
    fn stop_signal(&self, index: usize) -> Signal {
        let usual = match self.rules.manner {
            Manner::Original => Signal::SIGINT,
            // A shell lets its background children ignore SIGINT.
            Manner::Native => Signal::SIGTERM,
        };
        self.slots[index].definition.settings.stop.unwrap_or(usual)
    }

    /// Moves everything as far as it goes: what one does may be what another waits for.
    fn advance(&mut self) {
        loop {
            let before: Vec<State> = self.slots.iter().map(|slot| slot.process.state()).collect();
            for (index, state) in before.iter().enumerate() {
                if *state == State::Waiting {
                    self.release(index);
                }
            }
            if self.ending && self.rules.manner == Manner::Native {
                self.stop_next();
            }
            self.advance_requests();
            self.advance_actions();
            if self.slots.iter().map(|slot| slot.process.state()).eq(before) {
                return;
            }
        }
    }
}

fn words_of_spawn(error: &std::io::Error) -> String {
    match error.kind() {
        // A zero byte in the command, which never comes to the system: this is what it would say.
        std::io::ErrorKind::InvalidInput => "fork/exec /bin/sh: invalid argument".to_owned(),
        _ => format!("fork/exec /bin/sh: {}", crate::common::os_reason::os_reason(error)),
    }
}

/// What of the journal is also said. As goreman nothing of it happens.
fn words_of_note(name: &str, what: &What) -> Option<String> {
    match what {
        What::Ready { after_ms } => Some(format!("{name} is ready after {:?}", Duration::from_millis(*after_ms))),
        What::Unhealthy { reason } => Some(format!("{name} is unhealthy: {reason}")),
        What::NotReady { reason } => Some(format!("{name}: {reason}")),
        What::HookFailed { hook, reason } => Some(format!("{name}: {hook}: {reason}")),
        What::Backoff { wait_ms, .. } => {
            Some(format!("{name} is started again in {:?}", Duration::from_millis(*wait_ms)))
        }
        What::Flapping => Some(format!("{name} ends too often and is not started again")),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exit_codes_are_as_documented() {
        let check = |ended: Ended, code: u8| assert_eq!(ended.code(), code, "{ended:?}");
        let fatal = |exit| Ended { fatal: Some((String::new(), exit)), failures: true, ..Ended::default() };
        check(Ended::default(), 0);
        check(Ended { failures: true, ..Ended::default() }, 1);
        check(fatal(Some(Exit::Code(3))), 3);
        check(fatal(Some(Exit::Code(0))), 0);
        check(fatal(Some(Exit::Signal(9))), 137);
        check(fatal(None), 1);
        check(Ended { signal: Some(15), failures: true, ..Ended::default() }, 143);
        check(Ended { signal: Some(2), ..Ended::default() }, 130);
        check(Ended { asked: true, failures: true, ..Ended::default() }, 0);
        check(Ended { deaf: true, ..Ended::default() }, 1);
        check(Ended { signal: Some(15), ..fatal(Some(Exit::Code(3))) }, 3);
        assert!("all".parse::<ExitOn>().is_err());
        assert!("never".parse::<ExitOn>().is_ok_and(|on| !on.all_stopped));
    }
}

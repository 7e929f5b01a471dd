//! The native composition: from what is to run to the loop, its socket, its relays, and the end of all of them.
//!
//! ```text
//!  Stack ─▶ settings ─▶ preflight ─▶ slots ─▶ Supervisor::run ─▶ Ended ─▶ exit code
//!                                              ▲ Handle
//!            http_server on the project's socket, links (relays of the members)
//! ```

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::io::Write;
use std::path::Path;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use std::time::Instant;

use tokio::net::TcpListener;
use tokio::net::UnixListener;
use tokio::sync::mpsc;
use tokio::sync::watch;

use super::EndArgs;
use super::Failure;
use super::UpArgs;
use super::preflight;
use super::preflight::Wish;
use crate::common::os_reason::os_reason;
use crate::program::Manner;
use crate::supervisor::CALLS_MAX;
use crate::supervisor::FAREWELL;
use crate::supervisor::REQUESTS_MAX;
use crate::supervisor::control;
use crate::supervisor::control::http_server::Control;
use crate::supervisor::control::http_server::Entry;
use crate::supervisor::control::http_server::Sources;
use crate::supervisor::control::vocabulary::Handle;
use crate::supervisor::environment;
use crate::supervisor::flags::Flags;
use crate::supervisor::guardian::Guardian;
use crate::supervisor::journal::Journal;
use crate::supervisor::links;
use crate::supervisor::links::Links;
use crate::supervisor::members::Member;
use crate::supervisor::output::Output;
use crate::supervisor::output::args::OutputArgs;
use crate::supervisor::output::args::Surroundings;
use crate::supervisor::output::log_file::Gap;
use crate::supervisor::output::log_file::LogFile;
use crate::supervisor::output::log_file::Rotation;
use crate::supervisor::output::painter::Stamp;
use crate::supervisor::process::Process;
use crate::supervisor::procinfo::Listeners;
use crate::supervisor::project::Held;
use crate::supervisor::settings;
use crate::supervisor::settings::Settings;
use crate::supervisor::stack::Planned;
use crate::supervisor::stack::Stack;
use crate::supervisor::stack::StackArgs;
use crate::supervisor::supervise::Ended;
use crate::supervisor::supervise::ExitOn;
use crate::supervisor::supervise::Rules;
use crate::supervisor::supervise::Slot;
use crate::supervisor::supervise::Supervisor;

/// A detached supervisor's own output begins anew beyond this; one former file is kept.
const LOG_BYTES_MAX: u64 = 16 << 20;
/// How often a full disk is tried again.
const LOG_RETRY: Duration = Duration::from_secs(1);

/// Everything that is decided before anything is done.
#[derive(Debug)]
pub struct Plan {
    stack: Stack,
    settings: BTreeMap<String, Settings>,
    rules: Rules,
    journal: Option<PathBuf>,
    output: OutputArgs,
    /// goreman's control port, for `start`.
    rpc: Option<Flags>,
}

/// Where lines go.
#[derive(Debug)]
pub enum Sink {
    Screen,
    /// Of a supervisor in the background.
    File(BackgroundLog),
}

/// Told once, when processes are started and the socket answers.
pub type Ready = Box<dyn FnOnce(usize)>;

impl Plan {
    pub fn of(args: &UpArgs) -> Result<Plan, Failure> {
        let detached = args.detach || args.wait;
        let stack = args.stack.read().map_err(Failure::new)?;
        let plan = Plan {
            settings: settings_of(&stack)?,
            stack,
            rules: rules(&args.end, detached),
            journal: args.journal.clone(),
            output: args.output.clone(),
            rpc: None,
        };
        plan.checked()
    }

    /// What `start` means with goreman's flags.
    pub fn of_flags(flags: &Flags, names: &[String]) -> Result<Plan, Failure> {
        let args = stack_args(flags, names)?;
        let stack = args.read().map_err(Failure::new)?;
        let exit_on = ExitOn { all_stopped: flags.exit_on_stop, any_exit: false, any_failure: flags.exit_on_error };
        let plan = Plan {
            settings: settings_of(&stack)?,
            stack,
            rules: Rules { manner: Manner::Native, exit_on, stop_in_reverse: false },
            journal: None,
            output: OutputArgs {
                time: if flags.logtime { Stamp::Seconds } else { Stamp::Off },
                log_keep: 5,
                // As goreman, it ends without a word.
                no_summary: true,
                ..OutputArgs::default()
            },
            rpc: flags.rpc_server.then(|| flags.clone()),
        };
        plan.checked()
    }

    /// Tells the warnings; fails on what would fail at once.
    fn checked(self) -> Result<Plan, Failure> {
        for warning in &self.stack.warnings {
            anstream::eprintln!("warning: {warning}");
        }
        let members: Vec<Option<Member>> = self.stack.processes.iter().map(member).collect();
        let wishes: Vec<Wish<'_>> = self
            .stack
            .processes
            .iter()
            .zip(&members)
            .map(|(process, member)| Wish {
                name: &process.name,
                command: &process.command,
                port: process.port,
                member: member.as_ref(),
            })
            .collect();
        let found = preflight::look(&wishes, &Listeners::read());
        for warning in &found.warnings {
            anstream::eprintln!("warning: {warning}");
        }
        if found.errors.is_empty() { Ok(self) } else { Err(Failure::new(found.errors.join("\n"))) }
    }
}

/// What goreman's flags say of the stack.
pub fn stack_args(flags: &Flags, names: &[String]) -> Result<StackArgs, Failure> {
    Ok(StackArgs {
        files: vec![flags.procfile.clone()],
        formation: Vec::new(),
        only: names.to_vec(),
        ignore: Vec::new(),
        env: flags.env.split(',').map(str::to_owned).collect(),
        env_override: false,
        base_port: u16::try_from(flags.base_port)
            .map_err(|_| Failure::new(format!("there is no port {}", flags.base_port)))?,
        no_port: !flags.set_ports,
    })
}

fn rules(end: &EndArgs, detached: bool) -> Rules {
    // In the background nobody sees the end: whoever asks later is to find out what happened.
    let default = ExitOn { all_stopped: !detached, any_exit: false, any_failure: false };
    Rules { manner: Manner::Native, exit_on: end.exit_on.unwrap_or(default), stop_in_reverse: end.reverse_stop }
}

/// What the comments of each file say about the processes of that file.
fn settings_of(stack: &Stack) -> Result<BTreeMap<String, Settings>, Failure> {
    let mut found = BTreeMap::new();
    let mut files: Vec<&str> = stack.processes.iter().map(|process| process.at.file.as_str()).collect();
    files.dedup();
    for file in files {
        let lines: Vec<(usize, String)> = stack
            .pragmas
            .iter()
            .filter(|pragma| pragma.at.file == file)
            .map(|pragma| (pragma.at.number, pragma.text.clone()))
            .collect();
        // Entries that are not to run may be spoken of, too.
        let entries = stack.entries.iter().filter(|(_, at)| at.file == file).map(|(name, _)| name);
        let ours = stack.processes.iter().filter(|process| process.at.file == file).map(|process| &process.name);
        let mut names: Vec<String> = entries.cloned().collect();
        names.extend(ours.filter(|name| !stack.entries.iter().any(|(entry, _)| entry == *name)).cloned());
        let settings = settings::collect(file, &lines, &names).map_err(|error| Failure::new(error.to_string()))?;
        for (name, settings) in settings {
            let is_here = |process: &Planned| process.name == name && process.at.file == file;
            if stack.processes.iter().any(is_here) {
                found.insert(name, settings);
            }
        }
    }
    Ok(found)
}

/// The member that a process's command runs, as the process will see its environment.
fn member(process: &Planned) -> Option<Member> {
    let variable = |name: &str| {
        let own = process.environment.iter().rev().find(|(key, _)| key == name).map(|(_, value)| value.clone());
        own.or_else(|| std::env::var(name).ok())
    };
    Member::of(&process.name, &process.command, &variable)
}

/// Supervises until the end: the exit code. `ready` is called when everything is on its way.
pub fn run(plan: Plan, mut held: Held, sink: Sink, ready: Option<Ready>) -> Result<u8, Failure> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(|error| Failure::new(format!("cannot start: {}", os_reason(&error))))?;
    let ended = runtime.block_on(supervise(plan, &held, sink, ready))?;
    let code = ended.code();
    // Somebody may want to know why it ended: nobody has seen it.
    held.keep_log = held.holder.detached && !ended.asked;
    match ended.fatal {
        Some((words, _)) if code != 0 => Err(Failure { text: words, code }),
        _ => Ok(code),
    }
}

async fn supervise(plan: Plan, held: &Held, sink: Sink, ready: Option<Ready>) -> Result<Ended, Failure> {
    let failed = |what: &str| {
        let what = what.to_owned();
        move |error: io::Error| Failure::new(format!("{what}: {}", os_reason(&error)))
    };
    let Plan { stack, mut settings, rules, journal, output, rpc } = plan;
    let listener = match &rpc {
        Some(flags) => crate::supervisor::listen(flags, &[]).await.map_err(|(text, code)| Failure { text, code })?,
        None => None,
    };
    let socket = UnixListener::from_std(held.listen()?).map_err(failed("cannot listen on the socket"))?;
    let journal = match &journal {
        None => Journal::default(),
        Some(path) => Journal::to_file(path).map_err(failed(&path.display().to_string()))?,
    };
    let program = std::env::current_exe().map_err(failed("cannot find myself"))?;
    let path = std::env::var("PATH").unwrap_or_default();
    let offered = environment::Links::make(&program, &path).map_err(failed("cannot offer myself as etcd"))?;
    let guardian = Guardian::start(&program, offered.as_ref().map(|links| links.dir.as_path()));
    let guardian = guardian.map_err(failed("cannot start my guardian"))?;
    let names: Vec<&str> = stack.processes.iter().map(|process| process.name.as_str()).collect();
    let here = match sink {
        Sink::Screen => Surroundings::here(),
        Sink::File(_) => Surroundings::default(),
    };
    let shown = output.settings(&here, &names).map_err(Failure::new)?;
    let started = match sink {
        Sink::Screen => Output::start(std::io::stdout(), shown, &names),
        Sink::File(file) => Output::start(file, shown, &names),
    };
    let (output, output_ended) = started.map_err(|error| Failure::new(error.to_string()))?;
    output.heed_signals().map_err(failed("cannot catch signals"))?;
    let relays = links::relays(&stack.pragmas).map_err(Failure::new)?;
    let mut entries = Vec::new();
    let mut slots = Vec::new();
    for process in stack.processes {
        let member = member(&process);
        let set = settings.remove(&process.name).unwrap_or_default();
        let environment = environment_of(&process, &set, &path, &program, offered.as_ref())?;
        entries.push(Entry { name: process.name.clone(), environment: environment.clone(), member });
        slots.push(slot(process, set, environment, &output));
    }
    let count = slots.len();
    let supervisor = Supervisor::new(rules, slots, output.clone(), guardian, journal.clone()).map_err(Failure::new)?;
    let (call, calls) = mpsc::channel(CALLS_MAX);
    let handle = Handle::new(call);
    let links = match relays.is_empty() {
        true => None,
        false => Some(Links::start(&relays, handle.clone()).await.map_err(Failure::new)?),
    };
    let (stop, stopped) = watch::channel(false);
    let sources = Sources { handle, holder: held.holder.clone(), entries, output: output.clone(), journal, links };
    let server = tokio::spawn(Arc::new(Control::new(sources, stopped)).serve(socket));
    let (request, requests) = mpsc::channel(REQUESTS_MAX);
    let rpc_server = listener.map(|listener: TcpListener| tokio::spawn(control::server::serve(listener, request)));
    if let Some(ready) = ready {
        ready(count);
    }
    let ended = supervisor.run(requests, calls, output_ended).await.map_err(failed("cannot catch signals"))?;
    // Answers first, then the end (supervisor.md 6, trap 21); followers of logs end with the output.
    output.finish().await;
    // Nobody is left who would not hear it.
    let _ = stop.send(true);
    let _ = tokio::time::timeout(FAREWELL, server).await;
    if let Some(server) = rpc_server {
        let _ = tokio::time::timeout(FAREWELL, server).await;
    }
    Ok(ended)
}

/// What a process finds in its environment: its plan, the file that its settings name, and ourselves on its PATH.
fn environment_of(
    process: &Planned,
    settings: &Settings,
    path: &str,
    program: &Path,
    offered: Option<&environment::Links>,
) -> Result<Vec<(String, String)>, Failure> {
    let mut pairs = process.environment.clone();
    if let Some(file) = &settings.env_file {
        let names = [file.to_string_lossy().into_owned()];
        let loaded = environment::load_files(&names, &|name| std::env::var(name).ok()).map_err(Failure::new)?;
        if let Some(missing) = loaded.missing.first() {
            return Err(Failure::new(format!("{}: env file {missing} is not there", process.at)));
        }
        pairs.extend(loaded.pairs);
    }
    let base = pairs.iter().rev().find(|(key, _)| key == "PATH").map_or(path, |(_, value)| value.as_str());
    let search_path = environment::search_path(base, program, offered);
    pairs.retain(|(key, _)| key != "PATH");
    pairs.push(("PATH".to_owned(), search_path));
    Ok(pairs)
}

fn slot(process: Planned, settings: Settings, environment: Vec<(String, String)>, output: &Output) -> Slot {
    let feed = output.feed(process.place, &process.name);
    let feed = if settings.tty { feed.on_terminal() } else { feed };
    let machine = Process::new(process.name, None, &settings, Instant::now());
    let mut slot = Slot::new(machine, process.command, environment, feed);
    slot.settings = settings;
    slot.place = process.place;
    slot.port = process.port;
    slot
}

/// The file that a supervisor in the background writes to, bounded.
#[derive(Debug)]
pub struct BackgroundLog(LogFile);

impl BackgroundLog {
    /// Begins anew; what a former supervisor has written goes.
    pub fn create(path: &Path) -> io::Result<BackgroundLog> {
        match std::fs::remove_file(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let rotation = Rotation { size: Some(LOG_BYTES_MAX), age: None, keep: 1, gzip: false };
        LogFile::open(path, Gap::Text, rotation).map(BackgroundLog)
    }

    pub fn file(&self) -> &File {
        self.0.file()
    }
}

impl Write for BackgroundLog {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.recover(LOG_RETRY);
        // Nobody reads along: what cannot be kept is counted in the file, and the processes go on.
        let _ = self.0.write(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_background_log_begins_anew_and_is_bounded() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("supervisor.log");
        std::fs::write(&path, "yesterday\n").unwrap();
        let mut log = BackgroundLog::create(&path).unwrap();
        assert_eq!(std::fs::metadata(&path).unwrap().len(), 0);
        let mut line = vec![b'x'; 1 << 20];
        line.push(b'\n');
        for _ in 0..40 {
            log.write_all(&line).unwrap();
        }
        let size = |path: &Path| std::fs::metadata(path).unwrap().len();
        let former = path.with_extension("log.1");
        assert!(size(&path) <= LOG_BYTES_MAX && size(&former) <= LOG_BYTES_MAX);
        assert_eq!((size(&path) + size(&former)) % line.len() as u64, 0, "whole lines");
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 2);
    }
}

//! `quorate supervisor`: the native command line.
//!
//! ```text
//!  up ─▶ launch (this process supervises)         -d: detach (a child does), --wait: waiting
//!  down, ps, logs, stop, kill, …  ─▶ control::http_client ─ the project's socket ─▶ whoever supervises
//! ```
//!
//! Words that goreman has too keep its form: `start`, `run`, `export`, `version` go to `supervisor::main`'s other half.
//! Exit codes are those of `EXIT_CODES`, for every command.

mod act;
mod attach;
mod campaign;
mod detach;
mod launch;
mod logs;
mod preflight;
mod table;
mod top;
mod waiting;

use std::ffi::OsString;
use std::path::Path;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::Args;
use clap::Parser;
use clap::Subcommand;

use crate::common::go_duration;
use crate::common::os_reason::os_reason;
use crate::supervisor::chaos::ChaosArgs;
use crate::supervisor::control::http_client::Caller;
use crate::supervisor::control::http_client::ControlError;
use crate::supervisor::flags::Flags;
use crate::supervisor::links::LinkCommand;
use crate::supervisor::output::args::OutputArgs;
use crate::supervisor::project::Project;
use crate::supervisor::project::ProjectError;
use crate::supervisor::rolling::RollingArgs;
use crate::supervisor::stack;
use crate::supervisor::stack::CheckArgs;
use crate::supervisor::stack::StackArgs;
use crate::supervisor::supervise::ExitOn;

/// What every command means by its exit code. Those of `up` in the foreground are `supervise::Ended::code`'s.
pub const EXIT_CODES: &str = "\
Exit codes:
  0  everything was done; ps: every process that should be up is ready
  1  it failed
  2  the command line cannot be understood
  3  some of it was done, some failed; ps: not every process that should be up is ready
  4  a name, pattern or role means nobody: nothing was done
  5  no supervisor runs here
  6  the time of --timeout is over
  `up` in the foreground ends with the code of the process that ended it by --exit-on, with 128 and the number of the
  signal that it was ended by (130, 143), with 1 if a process has failed, or with 0. `top` ends with 0 by its key, with 128
  and the number of a signal, and with 5 when the supervisor ends.

Processes are named by their names, by patterns (etcd*, web.[1-3]), by `all`, or, members of a cluster, by their roles:
leader, followers, learners, minority (as many voters as may be lost, followers first), majority (as few as are too many,
the leader first); random:N takes any N.";

const EXIT_FAILED: u8 = 1;
const EXIT_PARTIALLY: u8 = 3;
const EXIT_UNKNOWN: u8 = 4;
const EXIT_NO_SUPERVISOR: u8 = 5;
const EXIT_TIMEOUT: u8 = 6;

/// Tasks that are spelled as goreman spells them.
const GOREMANS_TASKS: [&str; 4] = ["start", "run", "export", "version"];
/// Flags in front of a task that take the next word.
const TAKING_A_WORD: [&str; 9] = ["f", "p", "b", "basedir", "env", "C", "directory", "procfile", "file"];

/// Why a command did not do what it should, and its exit code.
#[derive(Debug)]
pub struct Failure {
    pub text: String,
    pub code: u8,
}

impl Failure {
    fn new(text: impl Into<String>) -> Failure {
        Failure { text: text.into(), code: EXIT_FAILED }
    }
}

impl From<ControlError> for Failure {
    fn from(error: ControlError) -> Failure {
        let code = match &error {
            ControlError::NoSupervisor(_) => EXIT_NO_SUPERVISOR,
            ControlError::Unknown(_) | ControlError::Nobody(_) => EXIT_UNKNOWN,
            ControlError::Refused(_) | ControlError::Broken(_) => EXIT_FAILED,
        };
        Failure { text: error.to_string(), code }
    }
}

impl From<ProjectError> for Failure {
    fn from(error: ProjectError) -> Failure {
        Failure::new(error.to_string())
    }
}

/// Starts the processes of a Procfile and controls them while they run.
#[derive(Debug, Parser)]
#[command(name = "quorate supervisor", bin_name = "quorate supervisor", after_help = EXIT_CODES)]
#[command(subcommand_required = true, arg_required_else_help = true, disable_version_flag = true)]
struct Line {
    #[command(flatten)]
    place: Place,
    #[command(subcommand)]
    task: Task,
}

#[derive(Clone, Debug, Args)]
struct Place {
    /// Work as if started in this directory
    #[arg(short = 'C', long, global = true, value_name = "DIR")]
    directory: Option<PathBuf>,
    /// The Procfile whose supervisor is meant, if several run in this directory
    #[arg(long, global = true, value_name = "FILE")]
    procfile: Option<String>,
    /// The same, in front of the command
    #[arg(short = 'f', value_name = "FILE", hide = true, conflicts_with = "procfile")]
    file: Option<String>,
    /// We are the child that `up -d` leaves behind
    #[arg(long = "detached-child", hide = true)]
    child: bool,
}

impl Place {
    fn named(&self) -> Option<&String> {
        self.procfile.as_ref().or(self.file.as_ref())
    }

    fn project(&self) -> Result<Project, Failure> {
        Ok(Project::locate(self.named().map_or("Procfile", String::as_str))?)
    }

    async fn caller(&self) -> Result<Caller, Failure> {
        Ok(Caller::find(&self.project()?, self.named().is_some()).await?)
    }
}

#[derive(Debug, Subcommand)]
enum Task {
    /// Start the processes of the Procfile and stay with them, or with -d leave them in the background
    Up(Box<UpArgs>),
    /// Stop every process and end the supervisor
    Down(DownArgs),
    /// Show the processes: state, pids, uptime, use of the machine, ports; of cluster members role, term, index and size
    #[command(visible_alias = "status")]
    Ps(table::PsArgs),
    /// Watch the processes and the log of one of them on the whole terminal; keys pause, kill, restart, cut off; ? shows all
    Top,
    /// Show what processes have printed
    Logs(logs::LogsArgs),
    /// Show the journal: every start, end, request and fault, one JSON object a line
    Events(logs::EventsArgs),
    /// Stop processes
    Stop(act::StopArgs),
    /// Stop processes and start them again
    Restart(act::RestartArgs),
    /// Send a signal to processes, SIGKILL if no other is named
    Kill(act::KillArgs),
    /// Let processes stand still until they are resumed
    Pause(act::PauseArgs),
    /// Let paused processes go on
    Resume(act::TargetArgs),
    #[command(flatten)]
    Links(LinkCommand),
    /// Restart the members of a cluster one at a time, the leader last, never without a quorum
    RollingRestart(RollingArgs),
    /// Do to a cluster what a seed chooses: kill, pause, restart, partition, delay; Ctrl-C ends it and takes all back
    Chaos(ChaosArgs),
    /// Wait until processes are ready, or until they have ended
    Wait(waiting::WaitArgs),
    /// Sit at the terminal of a process that has one (tty=yes in its settings): type to it, see what it prints
    Attach(attach::AttachArgs),
    /// Run a command with the environment of a process
    Exec(act::ExecArgs),
    /// Show which processes the Procfile names, and what is wrong with it
    Check(CheckArgs),
    /// Start processes: of a running supervisor by name, else in the foreground as goreman does
    #[command(disable_help_flag = true)]
    Start(Words),
    /// Control a supervisor that `start` runs, in goreman's words: start, stop, restart, list, status and others
    #[command(disable_help_flag = true)]
    Run(Words),
    /// Write jobs for another supervisor: systemd, supervisord, compose, kubernetes or upstart, and a directory
    #[command(disable_help_flag = true)]
    Export(Words),
    /// Show the version
    #[command(disable_help_flag = true)]
    Version(Words),
}

/// Words that are understood elsewhere.
#[derive(Debug, Args)]
struct Words {
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    #[arg(value_name = "WORD")]
    _words: Vec<String>,
}

/// What ends a supervisor that nobody ends.
#[derive(Debug, Args)]
struct EndArgs {
    /// When to end by itself: all-stopped, any-exit, any-failure, never [default: all-stopped; with -d never]
    #[arg(long, value_name = "WHEN")]
    exit_on: Option<ExitOn>,
    /// At the end, stop processes only after those that wait for them
    #[arg(long)]
    reverse_stop: bool,
}

#[derive(Debug, Args)]
struct UpArgs {
    #[command(flatten)]
    stack: StackArgs,
    /// Only these processes: names or patterns
    #[arg(value_name = "NAME")]
    names: Vec<String>,
    /// Go to the background; `quorate supervisor down` ends it
    #[arg(short, long)]
    detach: bool,
    /// With -d, which it implies: return when every process is ready and the cluster serves a linearizable read
    #[arg(long)]
    wait: bool,
    /// How long --wait waits
    #[arg(long, value_name = "DURATION", default_value = "60s", value_parser = duration)]
    timeout: Duration,
    /// Leave everything running if --wait fails
    #[arg(long)]
    keep: bool,
    /// Write the journal to this file, too
    #[arg(long, value_name = "FILE")]
    journal: Option<PathBuf>,
    #[command(flatten)]
    end: EndArgs,
    #[command(flatten)]
    output: OutputArgs,
}

#[derive(Debug, Args)]
struct DownArgs {
    /// Kill at once
    #[arg(long)]
    force: bool,
}

/// Go's durations, as everywhere here.
fn duration(text: &str) -> Result<Duration, String> {
    go_duration::parse(text)
}

/// Whether these words are the native half's: all but goreman's own tasks.
pub fn takes(words: &[String]) -> bool {
    let mut rest = words.iter();
    while let Some(word) = rest.next() {
        match word.strip_prefix('-') {
            None => return !GOREMANS_TASKS.contains(&word.as_str()),
            Some(flag) => {
                if TAKING_A_WORD.contains(&flag.trim_start_matches('-')) {
                    rest.next();
                }
            }
        }
    }
    true
}

/// Runs a native command line to its end.
pub fn main(words: &[OsString]) -> ExitCode {
    let line = match Line::try_parse_from(
        std::iter::once(OsString::from("quorate supervisor")).chain(words.iter().cloned()),
    ) {
        Ok(line) => line,
        Err(error) => {
            // A reader that has gone wants no more text.
            let _ = error.print();
            return ExitCode::from(u8::try_from(error.exit_code()).unwrap_or(2));
        }
    };
    let child = line.place.child;
    match run(line, words) {
        Ok(code) => code,
        // The child of `up -d` has told its parent.
        Err(_) if child => ExitCode::FAILURE,
        Err(failure) => {
            tell(&failure.text);
            ExitCode::from(failure.code)
        }
    }
}

fn tell(text: &str) {
    anstream::eprintln!("quorate supervisor: {text}");
}

fn run(line: Line, words: &[OsString]) -> Result<ExitCode, Failure> {
    let Line { place, task } = line;
    // The child of `up -d` is there already.
    if let Some(directory) = place.directory.as_ref().filter(|_| !place.child) {
        let failed = |error: std::io::Error| Failure::new(format!("{}: {}", directory.display(), os_reason(&error)));
        std::env::set_current_dir(directory).map_err(failed)?;
    }
    match task {
        Task::Up(args) => up(&place, *args, words),
        Task::Check(args) => Ok(stack::check(&args)),
        // `takes` has sent them elsewhere; with an unusual flag in front they may still come here.
        Task::Start(_) | Task::Run(_) | Task::Export(_) | Task::Version(_) => {
            Err(Failure { text: "flags of this task stand behind it".to_owned(), code: 2 })
        }
        other => block_on(ask(&place, other)),
    }
}

/// Commands that ask a running supervisor.
async fn ask(place: &Place, task: Task) -> Result<ExitCode, Failure> {
    let caller = place.caller().await?;
    match task {
        Task::Down(args) => act::down(&caller, args.force).await,
        Task::Ps(args) => table::ps(&caller, &args).await,
        Task::Top => top::top(&caller).await,
        Task::Logs(args) => logs::logs(&caller, &args).await,
        Task::Events(args) => logs::events(&caller, &args).await,
        Task::Stop(args) => act::stop(&caller, args).await,
        Task::Restart(args) => act::restart(&caller, args).await,
        Task::Kill(args) => act::kill(&caller, args).await,
        Task::Pause(args) => act::pause(&caller, args).await,
        Task::Resume(args) => act::resume(&caller, args).await,
        Task::Links(command) => act::links(&caller, &command).await,
        Task::RollingRestart(args) => campaign::rolling(&caller, &args).await,
        Task::Chaos(args) => campaign::chaos(&caller, &args).await,
        Task::Wait(args) => waiting::wait(&caller, &args).await,
        Task::Attach(args) => attach::attach(&caller, &args).await,
        Task::Exec(args) => act::exec(&caller, &args).await,
        Task::Up(_) | Task::Check(_) | Task::Start(_) | Task::Run(_) | Task::Export(_) | Task::Version(_) => {
            Err(Failure::new("this needs no supervisor"))
        }
    }
}

/// Runs a client's work. One thread is enough for it.
fn block_on<T>(work: impl Future<Output = Result<T, Failure>>) -> Result<T, Failure> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.map_err(|error| Failure::new(format!("cannot start: {}", os_reason(&error))))?.block_on(work)
}

fn up(place: &Place, mut args: UpArgs, words: &[OsString]) -> Result<ExitCode, Failure> {
    if let Some(file) = place.named() {
        args.stack.files = vec![file.clone()];
    }
    args.stack.only.append(&mut args.names);
    let first = args.stack.files.first().map_or("Procfile", String::as_str);
    let project = Project::locate(first)?;
    if place.child {
        return detach::child(&project, args);
    }
    if args.detach || args.wait {
        let until_ready = args.wait.then_some(args.timeout);
        return detach::parent(&project, words, until_ready, args.keep);
    }
    let held = project.hold(false)?;
    let plan = launch::Plan::of(&args)?;
    launch::run(plan, held, launch::Sink::Screen, None).map(ExitCode::from)
}

/// `quorate supervisor start`: goreman's flags, our manner. With names and a supervisor that runs, they are started there.
pub fn start(flags: &Flags, names: &[String]) -> Result<ExitCode, Failure> {
    let project = Project::locate(&flags.procfile)?;
    if !names.is_empty() {
        let named = flags.given.contains("f");
        let started = block_on(async {
            match Caller::find(&project, named).await {
                Ok(caller) => act::start(&caller, names).await.map(Some),
                Err(_) => Ok(None),
            }
        })?;
        if let Some(code) = started {
            return Ok(code);
        }
    }
    let held = project.hold(false)?;
    let plan = launch::Plan::of_flags(flags, names)?;
    launch::run(plan, held, launch::Sink::Screen, None).map(ExitCode::from)
}

/// `export FORMAT DIR` in the formats that goreman does not have.
pub fn export(flags: &Flags, format: &str, location: &str) -> Result<ExitCode, Failure> {
    let stack = launch::stack_args(flags, &[])?.read().map_err(Failure::new)?;
    for warning in &stack.warnings {
        tell(&format!("warning: {warning}"));
    }
    let home = match Path::new(&flags.procfile).parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    let failed = |error: std::io::Error| Failure::new(format!("cannot find myself: {}", os_reason(&error)));
    let program = std::env::current_exe().map_err(failed)?;
    let written = crate::supervisor::export::write_native(format, Path::new(location), &stack, home, &program);
    for path in written.map_err(Failure::new)? {
        anstream::println!("{}", path.display());
    }
    Ok(ExitCode::SUCCESS)
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    fn words(line: &str) -> Vec<String> {
        line.split_whitespace().map(str::to_owned).collect()
    }

    #[test]
    fn the_tree_of_commands_is_sound() {
        Line::command().debug_assert();
        let help = Line::command().render_help().to_string();
        assert!(help.contains("Exit codes:") && help.contains("partition"), "{help}");
    }

    #[test]
    fn goremans_tasks_stay_goremans() {
        for line in
            ["start", "-p 1 start web", "-logtime=false start", "-f P run list", "version", "-basedir d export x y"]
        {
            assert!(!takes(&words(line)), "{line}");
        }
        for line in ["", "up", "-C start up", "ps start", "--help", "-f P logs -f", "check", "bogus"] {
            assert!(takes(&words(line)), "{line}");
        }
    }

    #[test]
    fn lines_are_understood() {
        let parse = |line: &str| Line::try_parse_from(std::iter::once("s").chain(line.split_whitespace()));
        for line in [
            "up -d --wait --timeout 5s -f P web db",
            "-f P logs -f -n 20 --since 5m --grep elected etcd1",
            "kill leader -s INT",
            "kill leader -9",
            "pause followers --for 5s",
            "restart etcd2 --delay 10s --clean --no-wait",
            "partition a | b",
            "chaos --seed 7 --keep-quorum --duration 2m --interval 1s --faults kill,pause",
            "rolling-restart followers --pause-between 1s",
            "exec web -- env -x",
            "wait --for exit web",
            "ps --watch --procfile P",
            "top --procfile P",
            "status",
        ] {
            assert!(parse(line).is_ok(), "{line}: {}", parse(line).unwrap_err());
        }
        for line in
            ["", "bogus", "stop", "top web", "up --timeout soon", "up --exit-on sometimes", "kill web -s NOSUCH"]
        {
            assert!(parse(line).is_err(), "{line}");
        }
    }
}

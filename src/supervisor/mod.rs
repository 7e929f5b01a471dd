//! goreman and beyond: the processes of a Procfile, started, shown, controlled and stopped.
//!
//! ```text
//!  flags ─▶ procfile + environment ─▶ slots ─▶ supervise (the one loop) ─▶ exit code
//!                                                 ▲  ▲  ▲        │
//!          child: shell, group, pipe, exit ───────┘  │  │        ├─▶ output: lines with prefixes, one writer
//!          control: requests over goreman's RPC ─────┘  │        └─▶ guardian: kills what is left when we are gone
//!          signals ─────────────────────────────────────┘
//! ```
//!
//! Under the name goreman the bytes and exit codes are goreman's; as `quorate supervisor` its defects are mended
//! (supervisor.md 1.17): colours only on a terminal, failures in the exit code, everything stopped at once.

pub mod chaos;
pub mod child;
pub mod columns;
pub mod control;
pub mod dependencies;
pub mod dotenv;
pub mod dotfile;
pub mod environment;
pub mod export;
pub mod flags;
pub mod guardian;
pub mod journal;
pub mod links;
pub mod listening;
pub mod members;
pub mod native;
pub mod notify;
pub mod orphans;
pub mod output;
pub mod probes;
pub mod process;
pub mod procfile;
pub mod procinfo;
pub mod project;
pub mod reload;
pub mod restart;
pub mod rolling;
pub mod roster;
pub mod settings;
pub mod stack;
pub mod supervise;
pub mod targets;

use std::ffi::OsString;
use std::io::Write;
use std::path::Path;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;
use std::time::Instant;

use tokio::net::TcpListener;
use tokio::sync::mpsc;

use crate::common::version::QUORATE_VERSION;
use crate::program::Manner;
use crate::supervisor::control::Verb;
use crate::supervisor::environment::Links;
use crate::supervisor::flags::FlagExit;
use crate::supervisor::flags::Flags;
use crate::supervisor::guardian::Guardian;
use crate::supervisor::journal::Journal;
use crate::supervisor::output::Output;
use crate::supervisor::output::Settings as OutputSettings;
use crate::supervisor::output::painter::Stamp;
use crate::supervisor::output::painter::Style;
use crate::supervisor::process::Process;
use crate::supervisor::procfile::Entry;
use crate::supervisor::procinfo::Listeners;
use crate::supervisor::reload::Definition;
use crate::supervisor::settings::Settings;
use crate::supervisor::supervise::Ended;
use crate::supervisor::supervise::ExitOn;
use crate::supervisor::supervise::Rules;
use crate::supervisor::supervise::Slot;
use crate::supervisor::supervise::Supervisor;

/// goreman's release whose manners these are.
const GOREMAN_VERSION: &str = "0.3.19";
/// Ports of neighbouring processes differ by this.
pub const PORT_STEP: u64 = 100;
/// Requests that wait for the loop. Full means that callers wait.
const REQUESTS_MAX: usize = 10;
/// Calls from our own socket that wait for the loop. Full means that callers wait.
const CALLS_MAX: usize = 64;
/// How long the last answers may take to leave before we end.
const FAREWELL: Duration = Duration::from_millis(500);
/// A command line that cannot be understood.
const EXIT_USAGE: u8 = 2;

/// An error and the exit code it ends with.
type Failed = (String, u8);

/// Runs the supervisor's command line to its end.
pub fn main(words: Vec<OsString>, manner: Manner) -> ExitCode {
    let typed = words;
    let words: Vec<String> = typed.iter().map(|word| word.to_string_lossy().into_owned()).collect();
    if words.first().is_some_and(|word| word == guardian::WORD) {
        guardian::run(words.get(1).map_or("", String::as_str), words.get(2).map(PathBuf::from));
        return ExitCode::SUCCESS;
    }
    if words.first().is_some_and(|word| word == child::LAUNCH) {
        return crate::faults::process::launch(typed.get(1..).unwrap_or_default().to_vec());
    }
    if manner == Manner::Native && native::takes(&words) {
        return native::main(&typed);
    }
    let program = match manner {
        Manner::Original => {
            std::env::args_os().next().map_or_else(|| "goreman".to_owned(), |name| name.to_string_lossy().into_owned())
        }
        Manner::Native => "quorate supervisor".to_owned(),
    };
    let rpc_port = std::env::var("GOREMAN_RPC_PORT").ok();
    let parsed = match manner {
        Manner::Original => Flags::parse(&words, rpc_port.as_deref()),
        Manner::Native => Flags::parse_around_task(&words, rpc_port.as_deref()),
    };
    let (mut flags, mut rest) = match parsed {
        Ok(parsed) => parsed,
        Err(FlagExit::Listing) => {
            eprint!("{}", flags::listing(&program));
            return ExitCode::SUCCESS;
        }
        Err(FlagExit::Wrong(text)) => {
            eprint!("{text}\n{}", flags::listing(&program));
            return ExitCode::from(EXIT_USAGE);
        }
    };
    // Nobody who only types the name has his settings read.
    let asked = !rest.is_empty();
    let settings = if asked { dotfile::apply(Path::new(dotfile::NAME), &mut flags, &mut rest, manner) } else { Ok(()) };
    let settings = settings.map_err(|text| (text, 1)).and_then(|()| match asked && rest.is_empty() {
        // goreman panics here.
        true => Err((format!("{}: args is empty", dotfile::NAME), EXIT_USAGE)),
        false => Ok(()),
    });
    match settings.and_then(|()| dispatch(&flags, &rest, manner)) {
        Ok(code) => code,
        Err((text, code)) => {
            let head = if text.starts_with("chdir ") && manner == Manner::Original { "goreman" } else { &program };
            eprintln!("{head}: {text}");
            ExitCode::from(code)
        }
    }
}

fn dispatch(flags: &Flags, rest: &[String], manner: Manner) -> Result<ExitCode, Failed> {
    if !flags.basedir.is_empty() {
        std::env::set_current_dir(&flags.basedir).map_err(|error| {
            (format!("chdir {}: {}", flags.basedir, crate::common::os_reason::os_reason(&error)), 1)
        })?;
    }
    let task = rest.first().map(String::as_str);
    match (task, rest.get(1..).unwrap_or_default()) {
        (Some("check"), _) => check(flags),
        (Some("version"), _) => {
            say(&match manner {
                Manner::Original => format!("{GOREMAN_VERSION}\n"),
                Manner::Native => format!("{QUORATE_VERSION} (goreman {GOREMAN_VERSION})\n"),
            });
            Ok(ExitCode::SUCCESS)
        }
        (Some("start"), names) if manner == Manner::Native => {
            native::start(flags, names).map_err(|failure| (failure.text, failure.code))
        }
        (Some("start"), names) => start(flags, names),
        (Some("run"), [command, names @ ..]) => run(flags, command, names),
        (Some("export"), [format, location]) => export(flags, format, location, manner),
        (Some("help"), _) | (None, _) => Ok(usage(manner, ExitCode::SUCCESS)),
        (Some(word), _) if manner == Manner::Native => {
            eprintln!("quorate supervisor: unknown task \"{word}\"");
            Ok(usage(manner, ExitCode::from(EXIT_USAGE)))
        }
        _ => Ok(usage(manner, ExitCode::SUCCESS)),
    }
}

fn usage(manner: Manner, code: ExitCode) -> ExitCode {
    eprint!("{}", flags::usage(manner));
    code
}

fn say(text: &str) {
    // A reader that has gone wants no more text.
    let _ = std::io::stdout().write_all(text.as_bytes());
}

fn read_procfile(flags: &Flags) -> Result<Vec<Entry>, Failed> {
    procfile::read(&flags.procfile).map_err(|error| (error.to_string(), 1))
}

fn check(flags: &Flags) -> Result<ExitCode, Failed> {
    let mut names: Vec<String> = read_procfile(flags)?.into_iter().map(|entry| entry.name).collect();
    names.sort_unstable();
    say(&format!("valid procfile detected ({})\n", names.join(", ")));
    Ok(ExitCode::SUCCESS)
}

fn run(flags: &Flags, command: &str, names: &[String]) -> Result<ExitCode, Failed> {
    let address = std::env::var("GOREMAN_RPC_SERVER").unwrap_or_else(|_| format!("127.0.0.1:{}", flags.port));
    let text = control::client::call(&address, Verb::from_word(command), names).map_err(|error| (error, 1))?;
    say(&text);
    Ok(ExitCode::SUCCESS)
}

fn export(flags: &Flags, format: &str, location: &str, manner: Manner) -> Result<ExitCode, Failed> {
    if manner == Manner::Native && format != "upstart" {
        return native::export(flags, format, location).map_err(|failure| (failure.text, failure.code));
    }
    let entries = read_procfile(flags)?;
    let jobs = export::Jobs::beside(&flags.procfile, manner == Manner::Original).map_err(|text| (text, 1))?;
    let port = |entry: &Entry| flags.set_ports.then(|| port_of(flags, entry));
    export::write(format, location, &entries, &jobs, &port).map_err(|text| (text, 1))?;
    Ok(ExitCode::SUCCESS)
}

/// PORT of a process, by its place in the file.
fn port_of(flags: &Flags, entry: &Entry) -> u64 {
    flags.base_port.saturating_add(PORT_STEP * entry.place as u64)
}

/// goreman's `start`, with its exit codes.
fn start(flags: &Flags, names: &[String]) -> Result<ExitCode, Failed> {
    let entries = select(read_procfile(flags)?, names)?;
    let extra = environment::load_as_goreman(&flags.env, &|key| std::env::var_os(key).is_some());
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(|error| (format!("cannot start: {error}"), 1))?;
    match runtime.block_on(supervise(flags, entries, extra.into_iter().collect()))? {
        Ended { fatal: Some((words, _)), .. } => Err((words, 1)),
        Ended { deaf: true, .. } => {
            // Ends as goreman does, but with nobody left behind. Returns only if the signal could not be raised.
            let _ = signal_hook::low_level::emulate_default_handler(signal_hook::consts::SIGPIPE);
            Ok(ExitCode::FAILURE)
        }
        // goreman ends well whatever its children did.
        _ => Ok(ExitCode::SUCCESS),
    }
}

/// The entries that were asked for, in the order in which they were; all of them when none was.
fn select(entries: Vec<Entry>, names: &[String]) -> Result<Vec<Entry>, Failed> {
    if names.is_empty() {
        return Ok(entries);
    }
    let find = |name: &String| {
        let entry = entries.iter().find(|entry| entry.name == *name).cloned();
        entry.ok_or_else(|| (format!("unknown proc: {name}"), 1))
    };
    names.iter().map(find).collect()
}

async fn supervise(flags: &Flags, entries: Vec<Entry>, extra: Vec<(String, String)>) -> Result<Ended, Failed> {
    let failed = |what: &str| {
        let what = what.to_owned();
        move |error: std::io::Error| (format!("{what}: {}", crate::common::os_reason::os_reason(&error)), 1)
    };
    // goreman goes on without a word when the port is taken.
    let listener = listen(flags, &extra).await.unwrap_or_default();
    let program = std::env::current_exe().map_err(failed("cannot find myself"))?;
    let path = std::env::var("PATH").unwrap_or_default();
    let links = Links::make(&program, &path).map_err(failed("cannot offer myself as etcd"))?;
    let guardian = Guardian::start(&program, links.as_ref().map(|links| links.dir.as_path()));
    let guardian = guardian.map_err(failed("cannot start my guardian"))?;
    let search_path = environment::search_path(&path, &program, links.as_ref());
    let names: Vec<&str> = entries.iter().map(|entry| entry.name.as_str()).collect();
    let stamp = if flags.logtime { Stamp::Seconds } else { Stamp::Off };
    let settings = OutputSettings::plain(Style::new(Manner::Original, true, stamp));
    let output = Output::start(Unnoticing(std::io::stdout()), settings, &names);
    let (output, output_ended) = output.map_err(|error| (error.to_string(), 1))?;
    let slots = make_slots(flags, entries, &extra, &search_path, &output);
    let (request, requests) = mpsc::channel(REQUESTS_MAX);
    let server = listener.map(|listener| tokio::spawn(control::server::serve(listener, request)));
    let exit_on = ExitOn { all_stopped: flags.exit_on_stop, any_exit: false, any_failure: flags.exit_on_error };
    let rules = Rules { manner: Manner::Original, exit_on, stop_in_reverse: false };
    let supervisor = Supervisor::new(rules, slots, output.clone(), guardian, Journal::default());
    let supervisor = supervisor.map_err(|text| (text, 1))?;
    // goreman has no socket of ours: nobody calls on it.
    let (_call, calls) = mpsc::channel(CALLS_MAX);
    let ended = supervisor.run(requests, calls, output_ended).await.map_err(failed("cannot catch signals"))?;
    if let Some(server) = server {
        // Answers first, then the end (supervisor.md 6, trap 21).
        let _ = tokio::time::timeout(FAREWELL, server).await;
    }
    output.finish().await;
    Ok(ended)
}

/// A full or closed output is not noticed, as by goreman; only a reader that goes is.
struct Unnoticing<W>(W);

impl<W: Write> Write for Unnoticing<W> {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        unnoticed(self.0.write(bytes), bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        unnoticed(self.0.flush(), ())
    }
}

fn unnoticed<T>(result: std::io::Result<T>, instead: T) -> std::io::Result<T> {
    match result {
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => Ok(instead),
        other => other,
    }
}

/// goreman's control listener, unless it is not wanted. The address may stand in an env file, too.
async fn listen(flags: &Flags, extra: &[(String, String)]) -> Result<Option<TcpListener>, Failed> {
    if !flags.rpc_server {
        return Ok(None);
    }
    let from_files = || extra.iter().find(|(key, _)| key == "GOREMAN_RPC_ADDR").map(|(_, value)| value.clone());
    let host = std::env::var("GOREMAN_RPC_ADDR").ok().or_else(from_files);
    // Not goreman's 0.0.0.0: anyone who reaches the port controls the processes.
    let host = host.unwrap_or_else(|| "127.0.0.1".to_owned());
    let host = if host.is_empty() { "0.0.0.0".to_owned() } else { host };
    let address = format!("{host}:{}", flags.port);
    TcpListener::bind(&address).await.map(Some).map_err(|error| {
        let owner = address.parse().ok().and_then(|wanted| Listeners::read().owner(wanted));
        let reason = match owner.filter(|_| error.kind() == std::io::ErrorKind::AddrInUse) {
            Some(owner) => format!("cannot listen for control: {owner}; -p chooses another port"),
            None => format!("cannot listen for control on {address}: {}", crate::common::os_reason::os_reason(&error)),
        };
        (reason, 1)
    })
}

fn make_slots(
    flags: &Flags,
    entries: Vec<Entry>,
    extra: &[(String, String)],
    search_path: &str,
    output: &Output,
) -> Vec<Slot> {
    // goreman does not read the settings in comments.
    let settings = Settings::default();
    let mut seen: Vec<(String, usize)> = Vec::new();
    let slot = |entry: Entry| {
        let port = port_of(flags, &entry);
        let greeting = flags.set_ports.then(|| format!("Starting {} on port {port}", entry.name));
        let mut environment = extra.to_vec();
        environment.push(("PATH".to_owned(), search_path.to_owned()));
        if flags.set_ports {
            environment.push(("PORT".to_owned(), port.to_string()));
        }
        let feed = output.feed(entry.place, &entry.name);
        let first = seen.iter().position(|(name, _)| *name == entry.name);
        let twin = first.filter(|first| seen[*first].1 == entry.place);
        seen.push((entry.name.clone(), entry.place));
        let process = Process::new(entry.name.clone(), greeting, &settings, Instant::now());
        let definition = Definition {
            name: entry.name,
            command: entry.command,
            environment,
            settings: settings.clone(),
            place: entry.place,
            port: flags.set_ports.then_some(port),
        };
        let mut slot = Slot::new(process, definition, feed);
        slot.shadowed = first.is_some();
        slot.twin = twin;
        slot
    };
    entries.into_iter().map(slot).collect()
}

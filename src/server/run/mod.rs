//! Composition root: reads the command line, puts a member together, waits for its end, stops it in order.

pub mod backend;
pub mod ends;
pub mod facts;
pub mod force_new;
pub mod hashes;
#[cfg(test)]
mod historic_tests;
pub mod identity;
pub mod leases;
pub mod member;
pub mod ports;
#[cfg(test)]
mod powercut_tests;
pub mod promotions;
pub mod readiness;
pub mod security;
pub mod sockets;
pub mod storage;
pub mod takeover;
pub mod versions;
pub mod watching;

use std::ffi::OsString;
use std::io::ErrorKind::NotADirectory;
use std::io::ErrorKind::NotFound;
use std::io::ErrorKind::PermissionDenied;
use std::io::Write;
use std::num::NonZero;
use std::process::ExitCode;

use nix::sys::signal::Signal;
use tokio::runtime::Builder;
use tokio::runtime::Runtime;
use tokio::signal::unix::SignalKind;

use crate::common::failure::Failure;
use crate::common::logging;
use crate::common::urls;
use crate::common::version::ETCD_VERSION;
use crate::common::version::QUORATE_VERSION;
use crate::program::Manner;
use crate::server::config::Config;
use crate::server::config::Personality;
use crate::server::config::exit::Exit;
use crate::server::duties::integrity::IntegrityMetrics;
use crate::server::metrics::new_registry;
use crate::server::raft::wal::WalOptions;
use crate::server::run::ends::Ends;
use crate::server::run::hashes::check_before_serving;
use crate::server::run::member::Member;
use crate::server::run::member::Surroundings;
use crate::server::run::member::machine_config;
use crate::server::run::security::Security;
use crate::server::run::sockets::Sockets;
use crate::server::run::storage::Directories;
use crate::server::run::storage::Restored;
use crate::server::run::storage::Storage;

/// With so many processors or fewer, raft, apply and the flusher are enough company for one thread of sockets.
const ONE_THREAD_PROCESSORS_MAX: usize = 2;

/// How a running member was asked to end, or ended by itself.
enum Stop {
    Signal(Signal),
    End(ends::End),
}

/// Runs a member's command line to its end.
pub fn main(words: Vec<OsString>, manner: Manner) -> ExitCode {
    let personality = match manner {
        Manner::Original => Personality::Etcd,
        Manner::Native => Personality::Native,
    };
    let config = variables().and_then(|variables| Config::from_args(&words, variables.into_iter(), personality));
    let config = match config {
        Ok(config) => config,
        Err(exit) => return leave(&exit),
    };
    say(&mut std::io::stderr(), &config.warnings);
    match logging::subscriber(&config.log).map(tracing::subscriber::set_global_default) {
        Ok(_) => {}
        Err(error) => return leave(&Exit::failed_to_verify(error.to_string())),
    }
    let runtime = sockets_runtime();
    let runtime = match runtime {
        Ok(runtime) => runtime,
        Err(error) => return leave(&Exit::discovery_failed(format!("cannot start: {error}"))),
    };
    let stopped = runtime.block_on(serve(&config));
    // What still runs are blocking tasks of requests that nobody waits for.
    runtime.shutdown_background();
    match stopped {
        Ok(Stop::Signal(signal)) => end_by(signal),
        Ok(Stop::End(end)) => end.exit_code(),
        Err(StartError::Refused(text)) => leave(&Exit::discovery_failed(text)),
        Err(StartError::Disk(text)) => leave(&Exit::disk_failed(text)),
    }
}

/// The runtime that serves sockets and nothing else: what takes long has threads of its own. Handing work between workers
/// costs a tenth of a request's CPU, so a small machine, which has little to hand it to, gets one thread.
fn sockets_runtime() -> std::io::Result<Runtime> {
    let processors = std::thread::available_parallelism().map_or(1, NonZero::get);
    match processors <= ONE_THREAD_PROCESSORS_MAX {
        true => Builder::new_current_thread().enable_all().build(),
        false => Builder::new_multi_thread().enable_all().build(),
    }
}

/// The environment. Variables that are not UTF-8 are nobody's, but for ours.
fn variables() -> Result<Vec<(String, String)>, Exit> {
    let mut variables = Vec::new();
    for (name, text) in std::env::vars_os() {
        match (name.into_string(), text.into_string()) {
            (Ok(name), Ok(text)) => variables.push((name, text)),
            (Ok(name), Err(text)) if name.starts_with("ETCD_") => {
                return Err(Exit::failed_to_verify(format!("value {text:?} of {name} is not UTF-8")));
            }
            _ => {}
        }
    }
    Ok(variables)
}

/// Why a member did not start.
enum StartError {
    Refused(String),
    /// The disk failed, or what it holds is damaged. The text names the file.
    Disk(String),
}

impl From<Failure> for StartError {
    fn from(failure: Failure) -> StartError {
        match &failure {
            // A directory that is none, or not ours: the operator's mistake, not the disk's.
            Failure::Io { source, .. } if matches!(source.kind(), NotADirectory | PermissionDenied | NotFound) => {
                StartError::Refused(failure.to_string())
            }
            Failure::Io { .. } | Failure::Damaged { .. } => StartError::Disk(failure.to_string()),
            Failure::Refused(_) => StartError::Refused(failure.to_string()),
        }
    }
}

async fn serve(config: &Config) -> Result<Stop, StartError> {
    config.log_notes();
    tracing::info!(
        etcd_version = ETCD_VERSION,
        quorate_version = QUORATE_VERSION,
        name = config.name,
        data_dir = %config.data_dir.display(),
        "starting a member"
    );
    let mut signals = Signals::new().map_err(StartError::Refused)?;
    let ends = Ends::default();
    let member = tokio::select! {
        member = start(config, &ends) => member?,
        // Reading a long log or asking others may take long. Nothing was acknowledged yet, and the disk holds what a
        // crash at this moment would leave.
        signal = signals.next() => {
            tracing::info!(signal = signal.as_str(), "stopping before the start was finished");
            return Ok(Stop::Signal(signal));
        }
    };
    let ready = async {
        member.ready().await;
        tracing::info!(name = config.name, "ready to serve client requests");
        readiness::announce(std::env::var_os("NOTIFY_SOCKET"));
        std::future::pending::<()>().await;
    };
    let stop = tokio::select! {
        () = ready => Stop::End(ends::End::Failed),
        end = ends.wait() => Stop::End(end),
        signal = signals.next() => Stop::Signal(signal),
    };
    if let Stop::Signal(signal) = stop {
        tracing::info!(signal = signal.as_str(), "stopping");
        let stopping = member.stop(config.request_timeout());
        tokio::select! {
            stopped = stopping => {
                if let Err(failure) = stopped {
                    tracing::error!(%failure, "stopped, but not everything was written");
                    return Ok(Stop::End(ends::End::Failed));
                }
                tracing::info!("stopped");
            }
            end = ends.wait() => return Ok(Stop::End(end)),
            // Asked twice: no more patience. Nothing acknowledged depends on an orderly stop.
            again = signals.next() => tracing::warn!(signal = again.as_str(), "stopping at once"),
        }
    }
    Ok(stop)
}

/// Sockets, then the disk, then the member on both.
async fn start(config: &Config, ends: &Ends) -> Result<Member, StartError> {
    let security = Security::open(config).map_err(StartError::Refused)?;
    let sockets = Sockets::bind(config, &security).await.map_err(StartError::Refused)?;
    let dialer = security.dialer;
    let directories = Directories::new(&config.data_dir, config.wal_dir.as_deref());
    let identity = match Storage::has_log_in(&directories)? {
        true => None,
        false => Some(identity::decide(config, &dialer).await.map_err(StartError::Refused)?),
    };
    let is_restart = identity.is_none();
    let founders = identity.as_ref().map(|(identity, _)| identity.members.clone()).unwrap_or_default();
    let learners_max = config.max_learners;
    let options = WalOptions { fsync: config.fsync, ..WalOptions::default() };
    let machine_config = machine_config(config);
    let force_new = (config.force_new_cluster && is_restart).then(|| urls::strings(&config.advertise_peer_urls));
    let reading = tokio::task::spawn_blocking(move || -> Result<(Storage, Restored), Failure> {
        let storage = Storage::open(directories, options)?;
        if identity.is_none() {
            takeover::take_over(&storage.directories, machine_config.clone())?;
        }
        if let Some((identity, founder)) = &identity {
            storage.create_log(identity, *founder)?;
        }
        let mut restored = storage.restore(machine_config)?;
        if let Some(peer_urls) = force_new {
            force_new::go_alone(&mut restored, &peer_urls)?;
        }
        check_learners(&restored, learners_max)?;
        Ok((storage, restored))
    });
    let (storage, restored) = match reading.await {
        Ok(read) => read?,
        // A panic: its message was printed, and what it was about is a mistake of ours or a damaged file.
        Err(error) => return Err(StartError::Refused(format!("cannot read the data directory: {error}"))),
    };
    tracing::info!(
        member = %restored.local,
        cluster = %restored.cluster,
        applied = restored.machine.applied().index,
        revision = restored.machine.revision(),
        "restored"
    );
    let registry = new_registry();
    let integrity = IntegrityMetrics::register(&registry);
    if is_restart && config.features.is_on("InitialCorruptCheck") {
        check_before_serving(&restored, &dialer, config.request_timeout(), &integrity).await?;
    }
    let surroundings = Surroundings { config, registry: &registry, ends, integrity, dialer };
    Ok(Member::start(&surroundings, storage, restored, &founders, sockets)?)
}

/// More learners than this member is told to accept: it would refuse what the others accepted (server.md 6.2).
fn check_learners(restored: &Restored, learners_max: usize) -> Result<(), Failure> {
    let learners = restored.machine.membership().members().filter(|member| member.is_learner).count();
    match learners > learners_max {
        true => Err(Failure::Refused(format!(
            "membership: too many learner members in cluster: {learners}, and --max-learners is {learners_max}"
        ))),
        false => Ok(()),
    }
}

/// SIGINT and SIGTERM.
struct Signals {
    interrupt: tokio::signal::unix::Signal,
    terminate: tokio::signal::unix::Signal,
}

impl Signals {
    fn new() -> Result<Signals, String> {
        let listen = |kind| tokio::signal::unix::signal(kind).map_err(|error| format!("cannot catch signals: {error}"));
        Ok(Signals { interrupt: listen(SignalKind::interrupt())?, terminate: listen(SignalKind::terminate())? })
    }

    async fn next(&mut self) -> Signal {
        tokio::select! {
            _ = self.interrupt.recv() => Signal::SIGINT,
            _ = self.terminate.recv() => Signal::SIGTERM,
        }
    }
}

/// Ends as etcd does after a clean stop: killed by the very signal, so that a parent sees why. Pid 1 cannot be.
fn end_by(signal: Signal) -> ExitCode {
    if std::process::id() == 1 {
        return ExitCode::SUCCESS;
    }
    // Returns only if the signal could not be raised.
    let _ = signal_hook::low_level::emulate_default_handler(signal as i32);
    ExitCode::SUCCESS
}

fn leave(exit: &Exit) -> ExitCode {
    say(&mut std::io::stdout(), &exit.stdout);
    say(&mut std::io::stderr(), &exit.stderr);
    ExitCode::from(exit.code)
}

fn say(stream: &mut dyn Write, text: &str) {
    // Nobody is left to tell when even this cannot be written.
    let _ = stream.write_all(text.as_bytes()).and_then(|()| stream.flush());
}

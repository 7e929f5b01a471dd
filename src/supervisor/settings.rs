//! What the comments of a Procfile say about its processes: `# @name key=value …`, which goreman passes over.
//!
//! ```text
//!  # @etcd1 ready=http=http://127.0.0.1:2379/readyz timeout=30s stop=INT grace=5s restart=on-failure
//!  # @web   after=etcd1:ready,migrate:exited-ok log="level=info msg=\"up\""
//!  # @*     restart-max=3
//! ```
//!
//! The name is a process's, that of a formation (`web` is also for `web.1`), or `*` for all. Lines for one process add up; of a
//! key that is said twice the later line counts, and a line for the name counts more than one for `*`. Values with blanks
//! stand in single or double quotes. Every error names the file and the line.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use nix::sys::signal::Signal;
use regex::bytes::Regex;

use crate::common::go_duration;

/// Between asking a process to stop and killing it.
pub const GRACE: Duration = Duration::from_secs(10);
/// Between two looks at a process that is not ready; it grows while nothing changes.
const PROBE_INTERVAL: Duration = Duration::from_millis(100);
/// How long a process may take to be ready.
const READY_TIMEOUT: Duration = Duration::from_secs(60);
/// Starts in a row, each soon after the last end, before a process is left alone.
const RESTARTS_MAX: u32 = 10;
/// Compiled size of a pattern, so that a Procfile cannot take all memory.
const PATTERN_BYTES_MAX: usize = 1 << 20;

/// How to find out that a process is ready.
#[derive(Clone, Debug)]
pub enum Probe {
    /// It says so: READY=1 to the socket that NOTIFY_SOCKET names.
    SdNotify,
    /// A GET is answered with this status.
    Http { url: String, status: u16 },
    /// Something of the process accepts connections there.
    Tcp { address: String },
    /// A line of its output matches.
    Log { pattern: Regex },
    /// A shell command ends well.
    Exec { command: String },
    /// It has lived so long.
    Delay(Duration),
}

impl Probe {
    /// Whether it goes on being asked once it has passed.
    pub fn is_repeated(&self) -> bool {
        matches!(self, Probe::Http { .. } | Probe::Tcp { .. } | Probe::Exec { .. })
    }
}

/// When a process that ended by itself is started again.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Policy {
    #[default]
    No,
    OnFailure,
    Always,
    /// As `Always`: a stop that somebody asked for is kept by both.
    UnlessStopped,
}

/// What must be true of another process first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Condition {
    Started,
    Ready,
    ExitedOk,
}

/// `after=name:condition`. Without a condition it is `ready` where the other has a probe, else `started`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct After {
    pub name: String,
    pub condition: Option<Condition>,
}

/// All that may be said about one process.
#[derive(Clone, Debug)]
pub struct Settings {
    pub ready: Option<Probe>,
    pub interval: Duration,
    pub timeout: Duration,
    /// The signal of a stop; `None` is that of the personality.
    pub stop: Option<Signal>,
    pub grace: Duration,
    pub restart: Policy,
    pub restart_max: u32,
    /// Exit codes that are no failure.
    pub success: Vec<i32>,
    pub after: Vec<After>,
    /// Its good end is expected: it ends nothing else.
    pub can_exit: bool,
    pub env_file: Option<PathBuf>,
    /// Runs on a terminal of its own.
    pub tty: bool,
    pub cwd: Option<PathBuf>,
    /// What a restart with clean data removes.
    pub data_dir: Option<PathBuf>,
    /// Where it is said, for errors that are found later.
    pub line: Option<usize>,
}

impl Default for Settings {
    fn default() -> Settings {
        Settings {
            ready: None,
            interval: PROBE_INTERVAL,
            timeout: READY_TIMEOUT,
            stop: None,
            grace: GRACE,
            restart: Policy::No,
            restart_max: RESTARTS_MAX,
            success: vec![0],
            after: Vec::new(),
            can_exit: false,
            env_file: None,
            tty: false,
            cwd: None,
            data_dir: None,
            line: None,
        }
    }
}

/// A line that says something we do not understand.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{file}:{line}: {what}")]
pub struct SettingsError {
    pub file: String,
    pub line: usize,
    pub what: String,
}

/// A pragma's parts: for whom, and the pairs in their order. A word without `=` is a key alone.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Pragma {
    name: String,
    pairs: Vec<(String, Option<String>)>,
}

/// The pragmas of a Procfile's text, with the numbers of their lines.
#[cfg(test)]
pub fn pragma_lines(text: &str) -> Vec<(usize, String)> {
    let mut file = crate::supervisor::procfile::Procfile::default();
    // A text without any process is an error, but read all the same.
    let _ = file.add("Procfile", text);
    file.pragmas.into_iter().map(|pragma| (pragma.at.number, pragma.text)).collect()
}

/// The settings of these processes by name, from the pragma lines of one file. A line for a process that is not there is an
/// error: it would silently do nothing.
pub fn collect(
    file: &str,
    lines: &[(usize, String)],
    names: &[String],
) -> Result<BTreeMap<String, Settings>, SettingsError> {
    let mut found: BTreeMap<String, Settings> = names.iter().map(|name| (name.clone(), Settings::default())).collect();
    let mut pragmas = Vec::new();
    for (number, text) in lines {
        let fail = |what: String| SettingsError { file: file.to_owned(), line: *number, what };
        let pragma = split(text).map_err(fail)?;
        if pragma.name != "*" && !names.iter().any(|name| is_for(&pragma.name, name)) {
            return Err(fail(format!("no process is named \"{}\" (there are {})", pragma.name, names.join(", "))));
        }
        pragmas.push((*number, pragma));
    }
    // What is said about all comes first, so that what is said about one counts.
    pragmas.sort_by_key(|(_, pragma)| pragma.name != "*");
    for (number, pragma) in pragmas {
        for (name, settings) in found.iter_mut().filter(|(name, _)| is_for(&pragma.name, name)) {
            apply(settings, name, &pragma.pairs).map_err(|what| SettingsError {
                file: file.to_owned(),
                line: number,
                what,
            })?;
            settings.line = Some(number);
        }
    }
    Ok(found)
}

/// Whether a pragma's name means this process: itself, its formation, or everybody.
fn is_for(pragma: &str, name: &str) -> bool {
    let instance_of = |rest: &str| rest.strip_prefix('.').is_some_and(|number| number.parse::<u32>().is_ok());
    pragma == "*" || name.strip_prefix(pragma).is_some_and(|rest| rest.is_empty() || instance_of(rest))
}

fn split(text: &str) -> Result<Pragma, String> {
    let text = text.trim().trim_start_matches('#').trim_start();
    let Some(text) = text.strip_prefix('@') else { return Err("a pragma begins with # @name".to_owned()) };
    let mut words = words(text)?.into_iter();
    let name = words.next().filter(|name| !name.is_empty()).ok_or("a pragma needs a name behind the @")?;
    let pair = |word: String| match word.split_once('=') {
        Some((key, value)) => (key.to_owned(), Some(value.to_owned())),
        None => (word, None),
    };
    Ok(Pragma { name, pairs: words.map(pair).collect() })
}

/// Words between blanks; quotes keep blanks together and disappear, and a backslash keeps the next letter in double ones.
fn words(text: &str) -> Result<Vec<String>, String> {
    let mut words = Vec::new();
    let mut word: Option<String> = None;
    let mut letters = text.chars();
    while let Some(letter) = letters.next() {
        match letter {
            '"' | '\'' => {
                let word = word.get_or_insert_default();
                loop {
                    match letters.next() {
                        None => return Err(format!("a quotation is not closed: {text}")),
                        Some(end) if end == letter => break,
                        Some('\\') if letter == '"' => match letters.next() {
                            Some(next @ ('"' | '\\')) => word.push(next),
                            Some(next) => word.extend(['\\', next]),
                            None => return Err(format!("a quotation is not closed: {text}")),
                        },
                        Some(inner) => word.push(inner),
                    }
                }
            }
            blank if blank.is_whitespace() => words.extend(word.take()),
            other => word.get_or_insert_default().push(other),
        }
    }
    words.extend(word);
    Ok(words)
}

fn apply(settings: &mut Settings, name: &str, pairs: &[(String, Option<String>)]) -> Result<(), String> {
    let mut status = None;
    for (key, value) in pairs {
        let needed =
            || value.as_deref().filter(|value| !value.is_empty()).ok_or_else(|| format!("{key}= needs a value"));
        let bad = |why: String| format!("{key}={}: {why}", value.as_deref().unwrap_or_default());
        match key.as_str() {
            "ready" => settings.ready = Some(probe(needed()?).map_err(bad)?),
            "status" => status = Some(needed()?.parse().map_err(|_| bad("not an HTTP status".to_owned()))?),
            "interval" => settings.interval = positive(needed()?).map_err(bad)?,
            "timeout" => settings.timeout = positive(needed()?).map_err(bad)?,
            "stop" => settings.stop = Some(signal(needed()?).map_err(bad)?),
            "grace" => settings.grace = go_duration::parse(needed()?).map_err(bad)?,
            "restart" => settings.restart = policy(needed()?).map_err(bad)?,
            "restart-max" => {
                settings.restart_max = needed()?.parse().map_err(|_| bad("not a number".to_owned()))?;
            }
            "success" => {
                let codes = needed()?.split(',').map(|code| code.trim().parse::<u8>().map(i32::from));
                settings.success =
                    codes.collect::<Result<_, _>>().map_err(|_| bad("exit codes are 0 to 255".to_owned()))?;
            }
            "after" => settings.after = needed()?.split(',').map(after).collect::<Result<_, _>>().map_err(bad)?,
            "can-exit" => settings.can_exit = flag(value.as_deref()).map_err(bad)?,
            "tty" => settings.tty = flag(value.as_deref()).map_err(bad)?,
            "env-file" => settings.env_file = Some(PathBuf::from(needed()?)),
            "cwd" => settings.cwd = Some(PathBuf::from(needed()?)),
            "data-dir" => settings.data_dir = Some(PathBuf::from(needed()?)),
            // `links::relays` reads it.
            "relay" => {}
            other => {
                return Err(format!(
                    "@{name}: unknown setting \"{other}\" (there are ready, status, interval, timeout, stop, grace, restart, \
                     restart-max, success, after, can-exit, env-file, tty, cwd, data-dir, relay)"
                ));
            }
        }
    }
    match (&mut settings.ready, status) {
        (Some(Probe::Http { status, .. }), Some(wanted)) => *status = wanted,
        (_, Some(_)) => return Err("status= is for ready=http=URL".to_owned()),
        _ => {}
    }
    Ok(())
}

fn probe(text: &str) -> Result<Probe, String> {
    let (kind, rest) = text.split_once('=').unwrap_or((text, ""));
    if rest.is_empty() != (kind == "sd-notify") {
        return Err(
            "a probe is sd-notify, http=URL, tcp=host:port, log=REGEX, exec=COMMAND or delay=DURATION".to_owned()
        );
    }
    match kind {
        "sd-notify" => Ok(Probe::SdNotify),
        "http" => {
            let plain = rest.strip_prefix("http://").filter(|rest| !rest.is_empty() && !rest.starts_with('/'));
            plain.ok_or("only http:// can be asked; for TLS use sd-notify or exec=")?;
            Ok(Probe::Http { url: rest.to_owned(), status: 200 })
        }
        "tcp" => {
            let port = rest.rsplit_once(':').and_then(|(_, port)| port.parse::<u16>().ok());
            port.filter(|port| *port > 0).ok_or("an address is host:port")?;
            Ok(Probe::Tcp { address: rest.to_owned() })
        }
        "log" => {
            let pattern = regex::bytes::RegexBuilder::new(rest).size_limit(PATTERN_BYTES_MAX).build();
            Ok(Probe::Log { pattern: pattern.map_err(|error| error.to_string())? })
        }
        "exec" => Ok(Probe::Exec { command: rest.to_owned() }),
        "delay" => Ok(Probe::Delay(go_duration::parse(rest)?)),
        other => Err(format!("no probe is named \"{other}\"")),
    }
}

fn positive(text: &str) -> Result<Duration, String> {
    go_duration::parse(text).and_then(|found| match found.is_zero() {
        true => Err("must be more than nothing".to_owned()),
        false => Ok(found),
    })
}

/// `TERM`, `SIGTERM`, `term` or 15.
pub fn signal(text: &str) -> Result<Signal, String> {
    let upper = text.to_ascii_uppercase();
    let name = if upper.starts_with("SIG") { upper } else { format!("SIG{upper}") };
    let number = text.parse::<i32>().ok().and_then(|number| Signal::try_from(number).ok());
    number.or_else(|| Signal::from_str(&name).ok()).ok_or_else(|| format!("no signal is named \"{text}\""))
}

fn policy(text: &str) -> Result<Policy, String> {
    match text {
        "no" => Ok(Policy::No),
        "on-failure" => Ok(Policy::OnFailure),
        "always" => Ok(Policy::Always),
        "unless-stopped" => Ok(Policy::UnlessStopped),
        _ => Err("a policy is no, on-failure, always or unless-stopped".to_owned()),
    }
}

fn after(text: &str) -> Result<After, String> {
    let (name, condition) = match text.rsplit_once(':') {
        None => (text, None),
        Some((name, "started")) => (name, Some(Condition::Started)),
        Some((name, "ready")) => (name, Some(Condition::Ready)),
        Some((name, "exited-ok")) => (name, Some(Condition::ExitedOk)),
        Some((_, other)) => return Err(format!("\"{other}\" is not started, ready or exited-ok")),
    };
    match name.trim() {
        "" => Err("a name is missing".to_owned()),
        name => Ok(After { name: name.to_owned(), condition }),
    }
}

fn flag(value: Option<&str>) -> Result<bool, String> {
    match value {
        None | Some("yes" | "true" | "1") => Ok(true),
        Some("no" | "false" | "0") => Ok(false),
        _ => Err("yes or no".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(list: &[&str]) -> Vec<String> {
        list.iter().map(|name| (*name).to_owned()).collect()
    }

    fn of(text: &str, name: &str) -> Result<Settings, String> {
        let known = names(&["web", "web.1", "db", "website"]);
        let mut found = collect("Procfile", &pragma_lines(text), &known).map_err(|error| error.to_string())?;
        Ok(found.remove(name).expect("known"))
    }

    #[test]
    fn everything_can_be_said_and_goreman_would_not_see_it() {
        let text = "web: x\n\n# prose about @web: nothing\n  #@web  ready=log='up and running' interval=1s timeout=5s stop=int \
                    grace=0s restart=always restart-max=3 success=0,3 after=db:ready,website can-exit tty=yes cwd=sub \
                    env-file=.env.web data-dir=\"my data\"\n";
        let web = of(text, "web").unwrap();
        assert!(matches!(&web.ready, Some(Probe::Log { pattern }) if pattern.as_str() == "up and running"));
        assert_eq!((web.interval, web.timeout), (Duration::from_secs(1), Duration::from_secs(5)));
        assert_eq!((web.stop, web.grace), (Some(Signal::SIGINT), Duration::ZERO));
        assert_eq!((web.restart, web.restart_max, web.success), (Policy::Always, 3, vec![0, 3]));
        let db = After { name: "db".to_owned(), condition: Some(Condition::Ready) };
        assert_eq!(web.after, [db, After { name: "website".to_owned(), condition: None }]);
        assert!(web.can_exit && web.tty);
        assert_eq!(web.data_dir, Some(PathBuf::from("my data")));
        assert_eq!((web.cwd, web.env_file), (Some("sub".into()), Some(".env.web".into())));
        assert_eq!(web.line, Some(4));
        let entries = crate::supervisor::procfile::parse(text);
        assert_eq!(entries.len(), 1, "{entries:?}");
    }

    #[test]
    fn a_line_is_for_a_name_its_formation_or_all() {
        let text = "# @web grace=1s\n# @* grace=9s restart=always\n";
        let grace = |name: &str| of(text, name).unwrap().grace.as_secs();
        assert_eq!((grace("web"), grace("web.1"), grace("website"), grace("db")), (1, 1, 9, 9));
        assert_eq!(of(text, "web").unwrap().restart, Policy::Always);
        assert_eq!(of("# @db grace=1s\n# @db grace=2s\n", "db").unwrap().grace.as_secs(), 2, "the later line counts");
    }

    #[test]
    fn errors_name_the_file_and_the_line() {
        let check = |line: &str, expected: &str| {
            let error = of(&format!("web: x\n{line}\n"), "web").unwrap_err();
            assert!(error.starts_with("Procfile:2: ") && error.contains(expected), "{error}");
        };
        check("# @nosuch grace=1s", "no process is named \"nosuch\" (there are web, web.1, db, website)");
        check("# @", "needs a name");
        check("# @web colour=red", "unknown setting \"colour\"");
        check("# @web grace", "grace= needs a value");
        check("# @web grace=soon", "invalid duration");
        check("# @web interval=0s", "more than nothing");
        check("# @web stop=NOSUCH", "no signal is named \"NOSUCH\"");
        check("# @web stop=99", "no signal");
        check("# @web restart=maybe", "a policy is");
        check("# @web success=0,x", "exit codes are");
        check("# @web success=256", "exit codes are");
        check("# @web after=db:done", "\"done\" is not");
        check("# @web after=db,,", "a name is missing");
        check("# @web ready=soon", "a probe is");
        check("# @web ready=log=", "a probe is");
        check("# @web ready=log=(", "unclosed group");
        check("# @web ready=tcp=host", "host:port");
        check("# @web ready=tcp=host:0", "host:port");
        check("# @web ready=http=https://host/", "only http://");
        check("# @web status=204", "status= is for");
        check("# @web ready=log=\"open", "not closed");
        check("# @web can-exit=maybe", "yes or no");
    }
}

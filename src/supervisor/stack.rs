//! Which processes are to run, with which port and environment: the flags that `up`, `start`, `check` and `export` share,
//! and what they mean.
//!
//! ```text
//!  files ─▶ procfile ─▶ formation (web=2: web.1, web.2) ─▶ only and ignored ─▶ port, environment ─▶ Planned
//! ```

use std::collections::BTreeMap;
use std::io::Write;
use std::process::ExitCode;

use crate::supervisor::PORT_STEP;
use crate::supervisor::columns;
use crate::supervisor::columns::Cell;
use crate::supervisor::environment;
use crate::supervisor::procfile;
use crate::supervisor::procfile::Entry;
use crate::supervisor::procfile::Line;
use crate::supervisor::procfile::Pragma;
use crate::supervisor::procfile::Procfile;
use crate::supervisor::procfile::Warning;
use crate::supervisor::targets::glob;

/// Instances of one entry: their ports must not reach those of the next one.
const INSTANCES_MAX: u64 = PORT_STEP;
/// In front of the names of variables by which processes find each other's ports.
const PORT_OF: &str = "QUORATE_PORT_";
/// In a formation: every entry that is not named.
const ALL: &str = "all";
/// `check --strict` found something to warn of, or there is nothing to run.
const EXIT_CHECK: u8 = 1;

/// The flags that say what is run.
#[derive(Clone, Debug, clap::Args)]
pub struct StackArgs {
    /// Procfile to read, - for the standard input; may be given several times
    #[arg(short = 'f', long = "file", value_name = "FILE", default_value = "Procfile")]
    pub files: Vec<String>,
    /// How many of each: web=2,all=1; 0 leaves a process out
    #[arg(short = 'm', long, value_name = "NAME=COUNT", value_delimiter = ',')]
    pub formation: Vec<String>,
    /// Only these processes: names, or patterns with * and ?
    #[arg(short = 'l', long, value_name = "NAME", value_delimiter = ',')]
    pub only: Vec<String>,
    /// All but these processes: names, or patterns with * and ?
    #[arg(short = 'x', long, value_name = "NAME", value_delimiter = ',')]
    pub ignore: Vec<String>,
    /// Env files; a later one wins over an earlier one, the environment over all; an empty name reads none
    #[arg(short = 'e', long = "env", value_name = "FILE", value_delimiter = ',', default_value = environment::DEFAULT_FILE)]
    pub env: Vec<String>,
    /// Env files win over the environment
    #[arg(long)]
    pub env_override: bool,
    /// PORT of the first process; the others follow in steps of 100, instances in steps of 1
    #[arg(short = 'b', long, value_name = "PORT", default_value_t = 5000, value_parser = clap::value_parser!(u16).range(1..))]
    pub base_port: u16,
    /// Give processes no PORT
    #[arg(long)]
    pub no_port: bool,
}

/// One process that is to run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Planned {
    /// Of the entry, or with its number behind a dot if there are several.
    pub name: String,
    /// The entry's own name: settings are given to it.
    pub family: String,
    pub command: String,
    /// Of the entry in its file.
    pub place: usize,
    pub port: Option<u64>,
    /// Beside what we were started with.
    pub environment: Vec<(String, String)>,
    pub at: Line,
}

/// Everything that is to run.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Stack {
    pub processes: Vec<Planned>,
    /// Every entry of the files, also those that are not to run: settings may name them.
    pub entries: Vec<(String, Line)>,
    /// Settings, by the names of entries, in the order of the files.
    pub pragmas: Vec<Pragma>,
    /// Sentences with file and line.
    pub warnings: Vec<String>,
}

/// `check`: what would run.
#[derive(Clone, Debug, clap::Args)]
pub struct CheckArgs {
    #[command(flatten)]
    pub stack: StackArgs,
    /// Exit with 1 if there is anything to warn of
    #[arg(long)]
    pub strict: bool,
}

impl StackArgs {
    /// Reads what is said; the error is a sentence.
    pub fn read(&self) -> Result<Stack, String> {
        let file = procfile::load(&self.files).map_err(|error| error.to_string())?;
        let names: Vec<String> = self.env.iter().filter(|name| !name.is_empty()).cloned().collect();
        let mut loaded = environment::load_files(&names, &|name| std::env::var(name).ok())?;
        if !self.env_override {
            loaded.pairs.retain(|key, _| std::env::var_os(key).is_none());
        }
        let mut stack = self.plan(&file, &loaded.pairs)?;
        let missing = loaded.missing.iter().map(|name| format!("{name}: env file is not there"));
        stack.warnings.extend(missing);
        Ok(stack)
    }

    /// What a file and env pairs mean under these flags.
    fn plan(&self, file: &Procfile, pairs: &BTreeMap<String, String>) -> Result<Stack, String> {
        let counts = formation(&self.formation, file)?;
        let base = u64::from(self.base_port);
        let mut processes = Vec::new();
        for ((entry, at), count) in file.entries.iter().zip(counts) {
            for instance in 0..count.unwrap_or(1) {
                let port = base + PORT_STEP * entry.place as u64 + instance;
                let name = match count {
                    None => entry.name.clone(),
                    Some(_) => format!("{}.{}", entry.name, instance + 1),
                };
                processes.push(planned(entry, at, name, (!self.no_port).then_some(port)));
            }
        }
        let chosen = choose(processes, &self.only, &self.ignore)?;
        let mut stack = Stack {
            processes: chosen,
            entries: file.entries.iter().map(|(entry, at)| (entry.name.clone(), at.clone())).collect(),
            pragmas: file.pragmas.clone(),
            warnings: file.warnings.iter().map(Warning::to_string).collect(),
        };
        for process in &stack.processes {
            if process.port.is_some_and(|port| port > u64::from(u16::MAX)) {
                stack.warnings.push(format!("{}: PORT of {} is above 65535", process.at, process.name));
            }
        }
        let ports: Vec<(String, String)> = stack.processes.iter().filter_map(port_variable).collect();
        for process in &mut stack.processes {
            process.environment.extend(pairs.iter().map(|(key, value)| (key.clone(), value.clone())));
            process.environment.extend(ports.iter().cloned());
            process.environment.push(("PS".to_owned(), process.name.clone()));
            if let Some(port) = process.port {
                process.environment.push(("PORT".to_owned(), port.to_string()));
            }
        }
        Ok(stack)
    }
}

fn planned(entry: &Entry, at: &Line, name: String, port: Option<u64>) -> Planned {
    Planned {
        name,
        family: entry.name.clone(),
        command: entry.command.clone(),
        place: entry.place,
        port,
        environment: Vec::new(),
        at: at.clone(),
    }
}

/// The variable by which others find a process's port: `QUORATE_PORT_WEB_1`.
fn port_variable(process: &Planned) -> Option<(String, String)> {
    let letter = |letter: char| if letter.is_ascii_alphanumeric() { letter.to_ascii_uppercase() } else { '_' };
    let name: String = process.name.chars().map(letter).collect();
    process.port.map(|port| (format!("{PORT_OF}{name}"), port.to_string()))
}

/// How many of each entry; `None` for one that keeps its plain name, because nothing was said of it.
fn formation(words: &[String], file: &Procfile) -> Result<Vec<Option<u64>>, String> {
    let names: Vec<&str> = file.entries.iter().map(|(entry, _)| entry.name.as_str()).collect();
    let mut counts: BTreeMap<&str, u64> = BTreeMap::new();
    for word in words.iter().filter(|word| !word.is_empty()) {
        let (name, count) = word.split_once('=').ok_or_else(|| format!("formation \"{word}\" is not NAME=COUNT"))?;
        if name != ALL && !names.contains(&name) {
            return Err(unknown(name, names.iter().copied()));
        }
        let count = count.parse::<u64>().ok().filter(|count| *count <= INSTANCES_MAX);
        let count =
            count.ok_or_else(|| format!("formation \"{word}\": a count from 0 to {INSTANCES_MAX} is expected"))?;
        counts.insert(name, count);
    }
    Ok(names.iter().map(|name| counts.get(name).or_else(|| counts.get(ALL)).copied()).collect())
}

fn unknown<'a>(name: &str, known: impl Iterator<Item = &'a str>) -> String {
    format!("there is no process \"{name}\"; there are {}", known.collect::<Vec<_>>().join(", "))
}

/// Those that are asked for, in the order of the files.
fn choose(processes: Vec<Planned>, only: &[String], ignore: &[String]) -> Result<Vec<Planned>, String> {
    let matches = |pattern: &String, process: &Planned| glob(pattern, &process.name) || glob(pattern, &process.family);
    for pattern in only.iter().chain(ignore) {
        if !processes.iter().any(|process| matches(pattern, process)) {
            return Err(unknown(pattern, processes.iter().map(|process| process.name.as_str())));
        }
    }
    let wanted = |process: &Planned| {
        (only.is_empty() || only.iter().any(|pattern| matches(pattern, process)))
            && !ignore.iter().any(|pattern| matches(pattern, process))
    };
    let chosen: Vec<Planned> = processes.into_iter().filter(wanted).collect();
    if chosen.is_empty() { Err("nothing is left to run".to_owned()) } else { Ok(chosen) }
}

/// `check`, to its end: the processes as a table, warnings on stderr.
pub fn check(args: &CheckArgs) -> ExitCode {
    let stack = match args.stack.read() {
        Ok(stack) => stack,
        Err(error) => {
            eprintln!("quorate supervisor: {error}");
            return ExitCode::from(EXIT_CHECK);
        }
    };
    // A reader that has gone wants no more text.
    let _ = std::io::stdout().write_all(table(&stack.processes).as_bytes());
    for warning in &stack.warnings {
        eprintln!("warning: {warning}");
    }
    if args.strict && !stack.warnings.is_empty() { ExitCode::from(EXIT_CHECK) } else { ExitCode::SUCCESS }
}

/// NAME, PORT, COMMAND, aligned.
pub fn table(processes: &[Planned]) -> String {
    let row = |process: &Planned| {
        let port = process.port.map_or_else(|| "-".to_owned(), |port| port.to_string());
        vec![process.name.as_str().into(), port.into(), process.command.as_str().into()]
    };
    let head = ["NAME", "PORT", "COMMAND"].map(Cell::from).to_vec();
    columns::aligned(&std::iter::once(head).chain(processes.iter().map(row)).collect::<Vec<_>>())
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Typed {
        #[command(flatten)]
        stack: StackArgs,
    }

    const FILE: &str = "web: x\nworker: y\ndb: z\n# @web ready=tcp\n";

    fn stack(line: &str, pairs: &[(&str, &str)]) -> Result<Stack, String> {
        let words = std::iter::once("check").chain(line.split_whitespace());
        let args = Typed::try_parse_from(words).map_err(|error| error.to_string())?.stack;
        let mut file = Procfile::default();
        file.add("P", FILE).map_err(|error| error.to_string())?;
        let pairs = pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
        args.plan(&file, &pairs)
    }

    fn named(line: &str) -> Result<String, String> {
        let text = |process: &Planned| format!("{}:{}", process.name, process.port.unwrap_or(0));
        Ok(stack(line, &[])?.processes.iter().map(text).collect::<Vec<_>>().join(" "))
    }

    #[test]
    fn ports_follow_the_place_in_the_file_and_the_instance() {
        assert_eq!(named("").unwrap(), "web:5000 worker:5100 db:5200");
        assert_eq!(named("-b 7000 -l db,w?b").unwrap(), "web:7000 db:7200");
        assert_eq!(named("-m web=2,db=0").unwrap(), "web.1:5000 web.2:5001 worker:5100");
        assert_eq!(named("-m all=1,db=0").unwrap(), "web.1:5000 worker.1:5100");
        assert_eq!(named("--no-port -x w*").unwrap(), "db:0");
        assert_eq!(named("-m web=2 -l web.2").unwrap(), "web.2:5001");
        assert_eq!(named("-m web=2 -l web").unwrap(), "web.1:5000 web.2:5001");
    }

    #[test]
    fn unknown_names_are_told_with_those_that_are_known() {
        let error = "there is no process \"w1*\"; there are web, worker, db";
        assert_eq!(named("-l web,w1*").unwrap_err(), error);
        assert_eq!(named("-x w1*").unwrap_err(), error);
        assert!(named("-m wob=1").unwrap_err().contains("\"wob\""));
        assert_eq!(named("-m web").unwrap_err(), "formation \"web\" is not NAME=COUNT");
        assert!(named("-m web=101").unwrap_err().contains("from 0 to 100"));
        assert_eq!(named("-x *").unwrap_err(), "nothing is left to run");
    }

    #[test]
    fn processes_find_each_other_by_their_ports() {
        let stack = stack("-m web=2 -x db", &[("A", "1")]).unwrap();
        let variables: Vec<String> =
            stack.processes[1].environment.iter().map(|(key, value)| format!("{key}={value}")).collect();
        assert_eq!(
            variables.join(" "),
            "A=1 QUORATE_PORT_WEB_1=5000 QUORATE_PORT_WEB_2=5001 QUORATE_PORT_WORKER=5100 PS=web.2 PORT=5001"
        );
        assert_eq!(stack.pragmas.len(), 1);
        assert_eq!(stack.processes[1].family, "web");
    }

    #[test]
    fn the_table_is_aligned_and_ports_that_are_none_are_told() {
        let stack = stack("-b 65500", &[]).unwrap();
        assert_eq!(
            table(&stack.processes),
            "NAME    PORT   COMMAND\nweb     65500  x\nworker  65600  y\ndb      65700  z\n"
        );
        assert_eq!(stack.warnings[0], "P:2: PORT of worker is above 65535");
    }

    #[test]
    fn env_files_lose_to_the_environment_unless_they_are_to_win() {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
        std::fs::write(path("P"), "a: x\n").unwrap();
        std::fs::write(path("env"), "PATH=/mine\nB=1\n").unwrap();
        let read = |more: &[&str]| {
            let words = ["check", "-f", &path("P"), "-e", &path("env"), "-e", &path("none")].map(str::to_owned);
            let words = words.into_iter().chain(more.iter().map(|word| (*word).to_owned()));
            let stack = Typed::try_parse_from(words).unwrap().stack.read().unwrap();
            let keys: Vec<String> = stack.processes[0].environment.iter().map(|(key, _)| key.clone()).collect();
            (keys.join(" "), stack.warnings)
        };
        let (keys, warnings) = read(&[]);
        assert_eq!(keys, "B QUORATE_PORT_A PS PORT");
        assert_eq!(warnings, [format!("{}: env file is not there", path("none"))]);
        assert_eq!(read(&["--env-override"]).0, "B PATH QUORATE_PORT_A PS PORT");
    }
}

//! `export FORMAT DIR`: jobs for other supervisors, for each process of the Procfile.
//!
//! ```text
//!  upstart      app-NAME.conf                       goreman's bytes (supervisor.md 1.15)
//!  systemd      APP.target, APP-NAME.service        user units
//!  supervisord  APP.conf                            programs and their group
//!  compose      docker-compose.yaml                 a service each, on the host's network
//!  kubernetes   APP.yaml                            a StatefulSet of the members of a cluster
//! ```
//!
//! The same Procfile gives the same bytes. Each format quotes in its own way; what it cannot express is refused.

mod compose;
mod kubernetes;
mod supervisord;
mod systemd;

use std::collections::BTreeMap;
use std::io::ErrorKind;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::path::PathBuf;

use crate::common::os_reason::os_reason;
use crate::supervisor::dotenv;
use crate::supervisor::procfile::Entry;
use crate::supervisor::stack::Stack;

/// The user of the jobs, and the first part of their names.
const APP: &str = "app";

/// What goes into the jobs beside their commands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Jobs {
    /// Where the Procfile lies: the jobs' working directory.
    pub home: PathBuf,
    /// From the `.env` beside the Procfile.
    pub variables: BTreeMap<String, String>,
}

impl Jobs {
    /// Reads the `.env` beside the Procfile. `lenient`, as goreman, takes a bad one for none.
    pub fn beside(procfile: &str, lenient: bool) -> Result<Jobs, String> {
        let dir = match Path::new(procfile).parent() {
            Some(parent) if !parent.as_os_str().is_empty() => parent,
            _ => Path::new("."),
        };
        let path = dir.join(".env");
        let parsed = match std::fs::read(&path) {
            Ok(bytes) => dotenv::parse(&String::from_utf8_lossy(&bytes)).map_err(|error| error.to_string()),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(BTreeMap::new()),
            Err(error) => Err(os_reason(&error)),
        };
        let variables = match parsed {
            Ok(variables) => variables,
            Err(_) if lenient => BTreeMap::new(),
            Err(error) => return Err(format!("{}: {error}", path.display())),
        };
        Ok(Jobs { home: absolute(dir).map_err(|error| format!("getwd: {}", os_reason(&error)))?, variables })
    }

    /// The file of one process. Without a port it is given none.
    fn upstart(&self, entry: &Entry, port: Option<u64>) -> String {
        let job = format!("{APP}-{}", entry.name);
        let port = port.map(|port| format!("env PORT={port}\n")).unwrap_or_default();
        let variable = |(key, value): (&String, &String)| format!("env {key}='{}'\n", value.replace('\'', "\\'"));
        let variables: String = self.variables.iter().map(variable).collect();
        format!(
            "start on starting {job}\nstop on stopping {job}\nrespawn\n\n{port}{variables}\nsetuid {APP}\n\n\
             chdir {}\n\nexec {}\n",
            self.home.display(),
            entry.command
        )
    }
}

/// Formats beside goreman's.
pub const FORMATS: [&str; 4] = ["systemd", "supervisord", "compose", "kubernetes"];
/// Where programs are looked for, as a login has it; our own directory is behind it.
const SEARCH_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// What is exported natively.
#[derive(Clone, Debug)]
struct Site {
    /// The stack's name: that of its directory.
    app: String,
    /// Where commands are run.
    home: String,
    services: Vec<Service>,
}

#[derive(Clone, Debug)]
struct Service {
    name: String,
    command: String,
    environment: Vec<(String, String)>,
}

impl Site {
    fn new(stack: &Stack, home: &Path, program: &Path) -> Result<Site, String> {
        let home_text = home.to_str().ok_or_else(|| format!("{} is not UTF-8", home.display()))?;
        let app = home.file_name().map_or_else(|| APP.to_owned(), |name| name.to_string_lossy().into_owned());
        let app: String = app.chars().map(|letter| if is_plain(letter) { letter } else { '-' }).collect();
        let own = program.parent().map(|dir| format!(":{}", dir.display())).unwrap_or_default();
        let service = |process: &crate::supervisor::stack::Planned| {
            let mut environment = process.environment.clone();
            if !environment.iter().any(|(key, _)| key == "PATH") {
                environment.push(("PATH".to_owned(), format!("{SEARCH_PATH}{own}")));
            }
            // The last of a name counts, as in a process's environment.
            let pairs: BTreeMap<String, String> = environment.into_iter().collect();
            Service {
                name: process.name.clone(),
                command: process.command.clone(),
                environment: pairs.into_iter().collect(),
            }
        };
        let app = app.trim_matches(['-', '.']).to_owned();
        let app = if app.is_empty() { APP.to_owned() } else { app };
        Ok(Site { app, home: home_text.to_owned(), services: stack.processes.iter().map(service).collect() })
    }
}

/// Letters that every format takes in a name.
fn is_plain(letter: char) -> bool {
    letter.is_ascii_alphanumeric() || "_.-".contains(letter)
}

/// Refuses a name that a format has no way to write.
fn plain_name(name: &str, format: &str) -> Result<(), String> {
    match name.chars().all(is_plain) {
        true => Ok(()),
        false => Err(format!("{format} cannot have a process named \"{name}\"; letters, digits, _ . and - can be")),
    }
}

/// A word in single quotes, as a shell reads it.
fn shell_quoted(word: &str) -> String {
    format!("'{}'", word.replace('\'', "'\\''"))
}

/// A text as YAML reads it in double quotes: JSON's way.
fn yaml_quoted(text: &str) -> String {
    serde_json::Value::from(text).to_string()
}

/// Writes a stack in one of `FORMATS`: the files that were written. Nothing is written if any of it cannot be.
pub fn write_native(
    format: &str,
    location: &Path,
    stack: &Stack,
    home: &Path,
    program: &Path,
) -> Result<Vec<PathBuf>, String> {
    let site = Site::new(stack, &absolute(home).map_err(|error| os_reason(&error))?, program)?;
    let files = match format {
        "systemd" => systemd::files(&site),
        "supervisord" => supervisord::files(&site)?,
        "compose" | "docker-compose" => compose::files(&site)?,
        "kubernetes" | "k8s" => kubernetes::files(&site)?,
        other => return Err(format!("there is no format \"{other}\"; there are upstart, {}", FORMATS.join(", "))),
    };
    make_dirs(location)?;
    let mut written = Vec::new();
    for (name, text) in files {
        let path = location.join(name);
        std::fs::write(&path, text)
            .map_err(|error| format!("cannot write {}: {}", path.display(), os_reason(&error)))?;
        written.push(path);
    }
    Ok(written)
}

/// Writes the files of all entries; what lies there under their names is replaced. The directory is made before the
/// format is looked at, as by goreman.
pub fn write(
    format: &str,
    location: &str,
    entries: &[Entry],
    jobs: &Jobs,
    port: &dyn Fn(&Entry) -> Option<u64>,
) -> Result<(), String> {
    make_dirs(Path::new(location))?;
    if format != "upstart" {
        return Err(format!("unknown format: {format}"));
    }
    for entry in entries {
        let path = Path::new(location).join(format!("{APP}-{}.conf", entry.name));
        std::fs::write(&path, jobs.upstart(entry, port(entry)))
            .map_err(|error| format!("open {}: {}", path.display(), os_reason(&error)))?;
    }
    Ok(())
}

/// Makes a directory and its parents. The error names the part of the path that is in the way.
fn make_dirs(path: &Path) -> Result<(), String> {
    let failed = |reason: &str| Err(format!("mkdir {}: {reason}", path.display()));
    match std::fs::metadata(path) {
        Ok(found) if found.is_dir() => return Ok(()),
        Ok(_) => return failed("not a directory"),
        Err(_) => {}
    }
    if let Some(parent) = path.parent().filter(|parent| !parent.as_os_str().is_empty()) {
        make_dirs(parent)?;
    }
    std::fs::create_dir(path).or_else(|error| failed(&os_reason(&error)))
}

/// A directory's whole path. Links in the way that the shell went to the current directory are kept, as Go keeps them.
fn absolute(dir: &Path) -> std::io::Result<PathBuf> {
    let current = std::env::current_dir()?;
    let same = |named: &PathBuf| {
        let place = |path: &Path| std::fs::metadata(path).map(|found| (found.dev(), found.ino())).ok();
        named.is_absolute() && place(named).is_some() && place(named) == place(&current)
    };
    let named = std::env::var_os("PWD").map(PathBuf::from).filter(same);
    let whole = named.unwrap_or(current).join(dir);
    let mut clean = PathBuf::new();
    for part in whole.components() {
        match part {
            std::path::Component::CurDir => {}
            std::path::Component::ParentDir => {
                clean.pop();
            }
            part => clean.push(part),
        }
    }
    Ok(clean)
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    fn entry(name: &str, command: &str, place: usize) -> Entry {
        Entry { name: name.to_owned(), command: command.to_owned(), place }
    }

    #[test]
    fn a_job_has_its_port_its_variables_its_place_and_its_command() {
        let variables = [("B", "it's"), ("A", "two\nlines")].map(|(key, value)| (key.to_owned(), value.to_owned()));
        let jobs = Jobs { home: "/srv/x".into(), variables: variables.into_iter().collect() };
        assert_eq!(
            jobs.upstart(&entry("web", "bin/web -p $PORT", 0), Some(5000)),
            "start on starting app-web\nstop on stopping app-web\nrespawn\n\nenv PORT=5000\nenv A='two\nlines'\n\
             env B='it\\'s'\n\nsetuid app\n\nchdir /srv/x\n\nexec bin/web -p $PORT\n"
        );
        let bare = Jobs { home: "/".into(), variables: BTreeMap::new() };
        assert!(bare.upstart(&entry("web", "x", 0), None).contains("respawn\n\n\nsetuid"));
    }

    #[test]
    fn files_are_written_until_one_cannot_be() {
        let dir = tempfile::tempdir().unwrap();
        let out = dir.path().join("deep").join("out");
        let jobs = Jobs { home: "/".into(), variables: BTreeMap::new() };
        let entries = [entry("ok", "x", 0), entry("a/b", "y", 1), entry("c", "z", 2)];
        let place = out.to_str().unwrap();
        let error = write("upstart", place, &entries, &jobs, &|_| None).unwrap_err();
        assert_eq!(error, format!("open {place}/app-a/b.conf: no such file or directory"));
        assert!(out.join("app-ok.conf").exists() && !out.join("app-c.conf").exists());
        assert_eq!(write("systemd", place, &entries, &jobs, &|_| None).unwrap_err(), "unknown format: systemd");
        let file = out.join("app-ok.conf");
        let inside = file.join("x");
        let error = write("upstart", inside.to_str().unwrap(), &entries, &jobs, &|_| None).unwrap_err();
        assert_eq!(error, format!("mkdir {}: not a directory", file.display()));
    }

    #[test]
    fn the_env_file_beside_the_procfile_counts() {
        let dir = tempfile::tempdir().unwrap();
        let procfile = dir.path().join("Procfile");
        let procfile = procfile.to_str().unwrap();
        assert!(Jobs::beside(procfile, false).unwrap().variables.is_empty());
        std::fs::write(dir.path().join(".env"), "A=1\nbad line\n").unwrap();
        assert!(Jobs::beside(procfile, true).unwrap().variables.is_empty());
        let error = Jobs::beside(procfile, false).unwrap_err();
        assert!(error.starts_with(dir.path().join(".env").to_str().unwrap()), "{error}");
        std::fs::write(dir.path().join(".env"), "A=1\n").unwrap();
        assert_eq!(Jobs::beside(procfile, false).unwrap().variables["A"], "1");
    }

    /// A stack of these processes with this much environment.
    pub(super) fn site(processes: &[(&str, &str)], pairs: &[(&str, &str)]) -> Site {
        let environment: Vec<(String, String)> =
            pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
        let service = |(name, command): &(&str, &str)| Service {
            name: (*name).to_owned(),
            command: (*command).to_owned(),
            environment: environment.clone(),
        };
        Site { app: "app".into(), home: "/srv/my app".into(), services: processes.iter().map(service).collect() }
    }

    #[test]
    fn native_formats_are_written_whole_or_not_at_all() {
        let dir = tempfile::tempdir().unwrap();
        let home = dir.path().join("my stack!");
        std::fs::create_dir(&home).unwrap();
        let mut file = crate::supervisor::procfile::Procfile::default();
        file.add("P", "web: echo $PORT\n").unwrap();
        let mut stack = Stack::default();
        stack.processes.push(crate::supervisor::stack::Planned {
            name: "web".into(),
            family: "web".into(),
            command: "echo $PORT".into(),
            place: 0,
            port: Some(5000),
            environment: vec![("PORT".into(), "1".into()), ("PORT".into(), "5000".into())],
            at: file.entries[0].1.clone(),
        });
        let write = |format: &str, to: &str, stack: &Stack| {
            write_native(format, &dir.path().join(to), stack, &home, Path::new("/opt/q/quorate"))
        };
        let names = |files: Vec<PathBuf>| {
            files.iter().map(|file| file.file_name().unwrap().to_string_lossy().into_owned()).collect::<Vec<_>>()
        };
        assert_eq!(names(write("systemd", "s", &stack).unwrap()), ["my-stack.target", "my-stack-web.service"]);
        assert_eq!(names(write("supervisord", "s", &stack).unwrap()), ["my-stack.conf"]);
        let unit = std::fs::read_to_string(dir.path().join("s/my-stack-web.service")).unwrap();
        assert!(unit.contains("Environment=\"PORT=5000\"") && !unit.contains("PORT=1\""), "{unit}");
        assert!(unit.contains(":/bin:/opt/q\""), "{unit}");
        stack.processes[0].name = "a b".into();
        assert!(write("compose", "c", &stack).unwrap_err().contains("\"a b\""));
        assert!(!dir.path().join("c").exists());
        let error = write("runit", "r", &stack).unwrap_err();
        assert_eq!(error, "there is no format \"runit\"; there are upstart, systemd, supervisord, compose, kubernetes");
    }
}

//! The Procfile: which processes there are, in which order, with which command.
//!
//! goreman's grammar (supervisor.md 1.6): lines are split at the first colon, names may be anything, and the order of the
//! file decides ports and colours. Natively what goreman passes over in silence is told with its line, and comments of
//! the form `# @name key=value ...` are settings of a process (`Pragma`), which goreman does not see.

use std::collections::BTreeMap;
use std::fmt;
use std::io::Read;
use std::path::Path;

use crate::common::os_reason::os_reason;

/// The name of a file that stands for the standard input.
pub const STANDARD_INPUT: &str = "-";
/// Longer Procfiles are not Procfiles.
const FILE_BYTES_MAX: u64 = 16 << 20;
const BYTE_ORDER_MARK: char = '\u{feff}';

/// One line that names a process.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    pub name: String,
    /// Handed to `/bin/sh -c` as it stands.
    pub command: String,
    /// Place in the file, from 0; decides port and colour, also when only some entries are started.
    pub place: usize,
}

/// A line of a file.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Line {
    pub file: String,
    /// From 1.
    pub number: usize,
}

impl fmt::Display for Line {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let file = if self.file == STANDARD_INPUT { "standard input" } else { &self.file };
        write!(f, "{file}:{}", self.number)
    }
}

/// A comment with settings: `@name key=value ...`, from its `@` on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pragma {
    pub at: Line,
    pub text: String,
}

/// Something that the author will not have meant.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Warning {
    pub at: Line,
    pub what: String,
}

impl fmt::Display for Warning {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.at, self.what)
    }
}

/// One or more files, read natively: names differ.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Procfile {
    /// In order; places count on over all files.
    pub entries: Vec<(Entry, Line)>,
    pub pragmas: Vec<Pragma>,
    pub warnings: Vec<Warning>,
}

/// Why there is nothing to run. Texts are goreman's, as far as it has any.
#[derive(Debug, thiserror::Error)]
pub enum ProcfileError {
    #[error("{verb} {path}: {reason}")]
    Unreadable { verb: &'static str, path: String, reason: String },
    #[error("no valid entry")]
    Empty,
    /// Of a file that is read natively, with what may have been meant.
    #[error("{file}: no line names a process (NAME: COMMAND)")]
    Nothing { file: String },
    #[error("{at}: process \"{name}\" stands twice; the first is at {first}")]
    Twice { at: Line, name: String, first: Line },
    #[error("{0}: larger than {mib} MiB: not a Procfile", mib = FILE_BYTES_MAX >> 20)]
    TooLarge(String),
}

/// Reads and parses the file at `path`.
pub fn read(path: &str) -> Result<Vec<Entry>, ProcfileError> {
    let entries = parse(&String::from_utf8_lossy(&bytes(path)?));
    if entries.is_empty() { Err(ProcfileError::Empty) } else { Ok(entries) }
}

fn bytes(path: &str) -> Result<Vec<u8>, ProcfileError> {
    std::fs::read(path).map_err(|error| {
        let verb = if Path::new(path).is_dir() { "read" } else { "open" };
        ProcfileError::Unreadable { verb, path: path.to_owned(), reason: os_reason(&error) }
    })
}

/// The entries of a Procfile's text. Lines without a colon, without a name or with a `#` in front are no entries.
pub fn parse(text: &str) -> Vec<Entry> {
    let pairs = text.split('\n').filter_map(|line| line.split_once(':'));
    let named = pairs.map(|(name, command)| (name.trim(), command.trim()));
    let valid = named.filter(|(name, _)| !name.is_empty() && !name.starts_with('#'));
    valid
        .enumerate()
        .map(|(place, (name, command))| Entry { name: name.to_owned(), command: command.to_owned(), place })
        .collect()
}

/// Reads files natively, `-` being the standard input, as if they were one.
pub fn load(files: &[String]) -> Result<Procfile, ProcfileError> {
    let mut whole = Procfile::default();
    for file in files {
        let bytes = match file.as_str() {
            STANDARD_INPUT => {
                let mut bytes = Vec::new();
                std::io::stdin().lock().take(FILE_BYTES_MAX + 1).read_to_end(&mut bytes).map_err(|error| {
                    ProcfileError::Unreadable {
                        verb: "read",
                        path: "standard input".to_owned(),
                        reason: os_reason(&error),
                    }
                })?;
                bytes
            }
            path => {
                if std::fs::metadata(path).is_ok_and(|found| found.len() > FILE_BYTES_MAX) {
                    return Err(ProcfileError::TooLarge(path.to_owned()));
                }
                bytes(path)?
            }
        };
        if bytes.len() as u64 > FILE_BYTES_MAX {
            return Err(ProcfileError::TooLarge(file.clone()));
        }
        whole.add(file, &String::from_utf8_lossy(&bytes))?;
    }
    Ok(whole)
}

impl Procfile {
    /// Adds the text of a file, which must name at least one process.
    pub fn add(&mut self, file: &str, text: &str) -> Result<(), ProcfileError> {
        let at = |number: usize| Line { file: file.to_owned(), number };
        let before = self.entries.len();
        let text = match text.strip_prefix(BYTE_ORDER_MARK) {
            Some(rest) => {
                self.warn(at(1), "begins with a byte order mark, which goreman takes for part of the first name");
                rest
            }
            None => text,
        };
        if let Some(line) = text.split('\n').position(|line| line.ends_with('\r')) {
            self.warn(at(line + 1), "lines end with CR LF; the CR is left out");
        }
        let mut known: BTreeMap<String, Line> =
            self.entries.iter().map(|(entry, line)| (entry.name.clone(), line.clone())).collect();
        for (number, line) in text.split('\n').enumerate().map(|(index, line)| (index + 1, line.trim())) {
            if let Some(comment) = line.strip_prefix('#') {
                let comment = comment.trim_start();
                if comment.starts_with('@') {
                    self.pragmas.push(Pragma { at: at(number), text: comment.to_owned() });
                }
                continue;
            }
            let Some((name, command)) = line.split_once(':').map(|(name, command)| (name.trim(), command.trim()))
            else {
                if !line.is_empty() {
                    self.warn(at(number), "no colon behind a name: the line is passed over");
                }
                continue;
            };
            if name.is_empty() {
                self.warn(at(number), "no name in front of the colon: the line is passed over");
                continue;
            }
            if let Some(first) = known.get(name) {
                return Err(ProcfileError::Twice { at: at(number), name: name.to_owned(), first: first.clone() });
            }
            if command.is_empty() {
                self.warn(at(number), &format!("process \"{name}\" has an empty command"));
            }
            known.insert(name.to_owned(), at(number));
            let place = self.entries.len();
            self.entries.push((Entry { name: name.to_owned(), command: command.to_owned(), place }, at(number)));
        }
        match self.entries.len() > before {
            true => Ok(()),
            false => Err(ProcfileError::Nothing { file: file.to_owned() }),
        }
    }

    fn warn(&mut self, at: Line, what: &str) {
        self.warnings.push(Warning { at, what: what.to_owned() });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(text: &str, expected: &[(&str, &str)]) {
        let found = parse(text);
        let pairs: Vec<(&str, &str)> =
            found.iter().map(|entry| (entry.name.as_str(), entry.command.as_str())).collect();
        assert_eq!(pairs, expected, "{text:?}");
    }

    #[test]
    fn entries_are_split_at_the_first_colon() {
        check("web: x\ndb: y", &[("web", "x"), ("db", "y")]);
        check("  web : x\n\tdb\t:\ty  \n", &[("web", "x"), ("db", "y")]);
        check("a:x:y:z\nhttp://host\n", &[("a", "x:y:z"), ("http", "//host")]);
        check("a: x\r\nb: y\r\n", &[("a", "x"), ("b", "y")]);
        check("a:\nb: x", &[("a", ""), ("b", "x")]);
        check("a: one \\\n  two\n  three: x\n", &[("a", "one \\"), ("three", "x")]);
        check("\u{feff}a: x\n", &[("\u{feff}a", "x")]);
        check("a: x\na: y\n", &[("a", "x"), ("a", "y")]);
    }

    #[test]
    fn comments_and_lines_without_a_name_are_no_entries() {
        check(
            "# a comment\n\n#a: x\n   #b: y\nnot an entry\n# prose: with a colon\nc: echo # kept: x\n",
            &[("c", "echo # kept: x")],
        );
        check(": x\n  : y\n", &[]);
    }

    #[test]
    fn unreadable_files_are_named_as_goreman_names_them() {
        let dir = tempfile::tempdir().unwrap();
        let missing = dir.path().join("none");
        let error = read(missing.to_str().unwrap()).unwrap_err().to_string();
        assert_eq!(error, format!("open {}: no such file or directory", missing.display()));
        let error = read(dir.path().to_str().unwrap()).unwrap_err().to_string();
        assert_eq!(error, format!("read {}: is a directory", dir.path().display()));
        let empty = dir.path().join("empty");
        std::fs::write(&empty, "# nothing\n").unwrap();
        assert_eq!(read(empty.to_str().unwrap()).unwrap_err().to_string(), "no valid entry");
    }

    #[test]
    fn natively_what_goreman_passes_over_is_told_with_its_line() {
        let mut file = Procfile::default();
        file.add("P", "\u{feff}a: x\r\nprose\n : y\n\n# note: z\nb:\n#@b ready=delay:1s\n   # @a stop=INT  \n")
            .unwrap();
        let names: Vec<&str> = file.entries.iter().map(|(entry, _)| entry.name.as_str()).collect();
        assert_eq!(names, ["a", "b"]);
        assert_eq!(file.entries[1].1.to_string(), "P:6");
        let told: Vec<String> = file.warnings.iter().map(Warning::to_string).collect();
        assert_eq!(
            told,
            [
                "P:1: begins with a byte order mark, which goreman takes for part of the first name",
                "P:1: lines end with CR LF; the CR is left out",
                "P:2: no colon behind a name: the line is passed over",
                "P:3: no name in front of the colon: the line is passed over",
                "P:6: process \"b\" has an empty command",
            ]
        );
        let pragmas: Vec<(usize, &str)> =
            file.pragmas.iter().map(|pragma| (pragma.at.number, pragma.text.as_str())).collect();
        assert_eq!(pragmas, [(7, "@b ready=delay:1s"), (8, "@a stop=INT")]);
    }

    #[test]
    fn several_files_are_one_and_names_differ() {
        let mut file = Procfile::default();
        file.add("one", "a: x\nb: y\n").unwrap();
        file.add("-", "c: z\n").unwrap();
        assert_eq!(file.entries.iter().map(|(entry, _)| entry.place).collect::<Vec<_>>(), [0, 1, 2]);
        assert_eq!(file.entries[2].1.to_string(), "standard input:1");
        let error = file.add("two", "d: z\nb: z\n").unwrap_err().to_string();
        assert_eq!(error, "two:2: process \"b\" stands twice; the first is at one:2");
        let error = file.add("three", "# nothing\n").unwrap_err().to_string();
        assert_eq!(error, "three: no line names a process (NAME: COMMAND)");
    }

    #[test]
    fn files_are_loaded_by_their_names() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("P").to_str().unwrap().to_owned();
        assert_eq!(
            load(std::slice::from_ref(&path)).unwrap_err().to_string(),
            format!("open {path}: no such file or directory")
        );
        std::fs::write(&path, "a: x\n").unwrap();
        assert_eq!(load(std::slice::from_ref(&path)).unwrap().entries.len(), 1);
        assert!(matches!(load(&[path.clone(), path]), Err(ProcfileError::Twice { .. })));
    }
}

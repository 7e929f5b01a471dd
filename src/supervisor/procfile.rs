//! The Procfile: which processes there are, in which order, with which command.
//!
//! goreman's grammar (supervisor.md 1.6): lines are split at the first colon, names may be anything, and the order of the
//! file decides ports and colours.

use std::io;
use std::path::Path;

use crate::common::os_reason::os_reason;

/// One line that names a process.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    pub name: String,
    /// Handed to `/bin/sh -c` as it stands.
    pub command: String,
    /// Place in the file, from 0; decides port and colour, also when only some entries are started.
    pub place: usize,
}

/// Why there is nothing to run. Texts are goreman's.
#[derive(Debug, thiserror::Error)]
pub enum ProcfileError {
    #[error("{verb} {path}: {reason}")]
    Unreadable { verb: &'static str, path: String, reason: String },
    #[error("no valid entry")]
    Empty,
}

/// Reads and parses the file at `path`.
pub fn read(path: &str) -> Result<Vec<Entry>, ProcfileError> {
    let bytes = std::fs::read(Path::new(path)).map_err(|error| {
        let verb = if error.kind() == io::ErrorKind::IsADirectory { "read" } else { "open" };
        ProcfileError::Unreadable { verb, path: path.to_owned(), reason: os_reason(&error) }
    })?;
    let entries = parse(&String::from_utf8_lossy(&bytes));
    if entries.is_empty() { Err(ProcfileError::Empty) } else { Ok(entries) }
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
}

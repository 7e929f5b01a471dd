//! `.goreman`, the settings of a directory (supervisor.md 1.5).
//!
//! As goreman: the file wins over the flags, its `args` replace the command line, and what is wrong in it is passed over
//! without a word. Natively a flag that was given wins, and what is wrong is an error with its line.

use std::collections::BTreeSet;
use std::io::ErrorKind;
use std::path::Path;

use crate::common::os_reason::os_reason;
use crate::common::yaml;
use crate::common::yaml::Entry;
use crate::common::yaml::Value;
use crate::program::Manner;
use crate::supervisor::flags::Flags;
use crate::supervisor::flags::uint;

/// The file's name, in the directory in which the command was typed.
pub const NAME: &str = ".goreman";

/// Reads the file, if there is one, into the flags and, as goreman, the words.
pub fn apply(path: &Path, flags: &mut Flags, words: &mut Vec<String>, manner: Manner) -> Result<(), String> {
    let bytes = match std::fs::read(path) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == ErrorKind::NotFound || manner == Manner::Original => return Ok(()),
        Err(error) => return Err(format!("open {NAME}: {}", os_reason(&error))),
    };
    let document = String::from_utf8(bytes).map_err(|_| "not UTF-8".to_owned()).and_then(|text| yaml::document(&text));
    let entries = match document {
        Ok(Value::Map(entries)) => entries,
        Ok(other) if other.is_null() => return Ok(()),
        _ if manner == Manner::Original => return Ok(()),
        Ok(_) => return Err(format!("{NAME}: keys and values are expected")),
        Err(error) => return Err(format!("{NAME}: {error}")),
    };
    let given = flags.given.clone();
    for Entry { key, line, value } in entries {
        let known = match manner {
            Manner::Original => set_as_goreman(&key, &value, flags, words),
            Manner::Native => set(&key, &value, flags, &given),
        };
        if manner == Manner::Native {
            known.map_err(|why| format!("{NAME}: line {line}: {why}"))?;
        }
    }
    Ok(())
}

/// The flag that a key stands for.
fn flag_of(key: &str) -> Option<&'static str> {
    Some(match key {
        "procfile" => "f",
        "port" => "p",
        "basedir" => "basedir",
        "baseport" => "b",
        "exit_on_error" => "exit-on-error",
        "envfiles" => "env",
        _ => return None,
    })
}

fn set_as_goreman(key: &str, value: &Value, flags: &mut Flags, words: &mut Vec<String>) -> Result<(), String> {
    if key == "args" {
        *words = texts(value).ok_or_else(|| wrong(key, "a list"))?;
        return Ok(());
    }
    set(key, value, flags, &BTreeSet::new())
}

/// Sets the flag that a key stands for, unless it is one of those that win.
fn set(key: &str, value: &Value, flags: &mut Flags, winning: &BTreeSet<String>) -> Result<(), String> {
    let Some(flag) = flag_of(key) else {
        return Err(format!(
            "unknown key {key:?} (known are procfile, port, basedir, baseport, exit_on_error, envfiles)"
        ));
    };
    let given = winning.contains(flag);
    if value.is_null() && flag != "env" {
        return Ok(());
    }
    let text = || value.text().map(str::to_owned).ok_or_else(|| wrong(key, "a text"));
    let number = || number(value).ok_or_else(|| wrong(key, "a number"));
    // Said of a key that a flag overrides, too.
    match flag {
        "f" => text().map(|text| replace(&mut flags.procfile, text, given)),
        "basedir" => text().map(|text| replace(&mut flags.basedir, text, given)),
        "p" => number().map(|port| replace(&mut flags.port, port, given)),
        "b" => number().map(|port| replace(&mut flags.base_port, port, given)),
        "exit-on-error" => {
            let truth = value.truth().ok_or_else(|| wrong(key, "true or false"));
            truth.map(|truth| replace(&mut flags.exit_on_error, truth, given))
        }
        _ => {
            let files = texts(value).ok_or_else(|| wrong(key, "a list of files"));
            files.map(|files| replace(&mut flags.env, files.join(","), given))
        }
    }
}

fn replace<T>(setting: &mut T, value: T, given: bool) {
    if !given {
        *setting = value;
    }
}

fn wrong(key: &str, expected: &str) -> String {
    format!("{key} wants {expected}")
}

/// A whole number that is not quoted, in Go's spellings.
fn number(value: &Value) -> Option<u64> {
    match value {
        Value::Scalar(scalar) if scalar.plain => uint(&scalar.text),
        _ => None,
    }
}

/// The texts of a list; nothing is an empty one.
fn texts(value: &Value) -> Option<Vec<String>> {
    match value {
        Value::List(list) => Some(list.iter().filter_map(|item| item.text().map(str::to_owned)).collect()),
        nothing if nothing.is_null() => Some(Vec::new()),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Flags of a command line with this file in place, and the words that are left.
    fn with(file: &str, line: &str, manner: Manner) -> Result<(Flags, Vec<String>), String> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(NAME);
        std::fs::write(&path, file).unwrap();
        let words: Vec<String> = line.split_whitespace().map(str::to_owned).collect();
        let (mut flags, mut rest) = Flags::parse(&words, None).unwrap();
        apply(&path, &mut flags, &mut rest, manner).map(|()| (flags, rest))
    }

    #[test]
    fn as_goreman_the_file_wins_and_what_is_wrong_is_passed_over() {
        let goreman = |file: &str| with(file, "-f F -p 1 -b 2 start", Manner::Original).unwrap();
        let settings = |file: &str| {
            let (flags, _) = goreman(file);
            (flags.procfile, flags.port, flags.base_port, flags.exit_on_error)
        };
        let as_typed = ("F".to_owned(), 1, 2, false);
        assert_eq!(
            settings("procfile: P2\nport: 0x10\nbaseport: 7000\nexit_on_error: on\nlogtime: false\n"),
            ("P2".to_owned(), 16, 7000, true)
        );
        assert_eq!(settings("port: abc\nprocfile: P2\nbaseport: '9'\n"), ("P2".to_owned(), 1, 2, false));
        assert_eq!(settings("procfile: 12\nport: -1\n"), ("12".to_owned(), 1, 2, false));
        for nothing in
            ["procfile: P2\n  bad: [\n", "procfile: P2\nprocfile: P2\n", "procfile:\n", "Procfile: P2\n", "- a\n"]
        {
            assert_eq!(settings(nothing), as_typed, "{nothing:?}");
        }
        assert_eq!(settings("procfile: \"\"\n").0, "");
        assert_eq!(goreman("args: [run, list]\n").1, ["run", "list"]);
        assert_eq!(goreman("args: check\n").1, ["start"]);
        assert!(goreman("args:\n").1.is_empty() && goreman("args: []\n").1.is_empty());
        assert_eq!(goreman("envfiles: [a, b]\n").0.env, "a,b");
        assert_eq!(goreman("envfiles: []\n").0.env, "");
    }

    #[test]
    fn natively_a_given_flag_wins_and_what_is_wrong_has_a_line() {
        let native = |file: &str| with(file, "-p 1 start", Manner::Native);
        let (flags, _) = native("port: 2\nbaseport: 7000\n").unwrap();
        assert_eq!((flags.port, flags.base_port), (1, 7000));
        let wrong = |file: &str, expected: &str| assert_eq!(native(file).unwrap_err(), expected, "{file:?}");
        wrong("procfile: P\nport: abc\n", ".goreman: line 2: port wants a number");
        wrong("baseport: '1'\n", ".goreman: line 1: baseport wants a number");
        wrong("exit_on_error: maybe\n", ".goreman: line 1: exit_on_error wants true or false");
        wrong("procfile: [a]\n", ".goreman: line 1: procfile wants a text");
        wrong("- a\n", ".goreman: keys and values are expected");
        wrong("port: 1\nport: 2\n", ".goreman: line 2: key \"port\" stands there twice");
        assert!(native("logtime: no\n").unwrap_err().starts_with(".goreman: line 1: unknown key \"logtime\""));
        assert!(native("args: [check]\n").unwrap_err().contains("unknown key \"args\""));
        assert!(native("# nothing\n").is_ok());
    }
}

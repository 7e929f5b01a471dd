//! Flags as Go's pflag reads them: declaration, parsing, the values that come out.
//!
//! Flags stand anywhere before `--`; `--x=v`, `--x v`, `-wv`, `-w=v`, `-w v`; a boolean never takes the next word.
//! clap is not used because its messages, its order of checks and its exit codes are others (ctl.md 1.3).

use bytes::Bytes;

use super::go_number;
use super::go_text;
use crate::common::go_duration;

/// What a flag's value is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Bool,
    Int,
    Uint,
    /// Signed: Go's durations may be negative.
    Duration,
    Text,
    /// A list separated by commas, with CSV's quoting.
    List,
}

/// A flag that a command knows.
#[derive(Debug)]
pub struct Flag {
    pub name: &'static str,
    pub short: Option<char>,
    pub kind: Kind,
    /// As it would be typed. Must be readable as `kind`; empty is the kind's zero.
    pub default: &'static str,
    pub help: &'static str,
}

impl Flag {
    pub const fn new(name: &'static str, kind: Kind, default: &'static str, help: &'static str) -> Flag {
        Flag { name, short: None, kind, default, help }
    }

    pub const fn with_short(mut self, short: char) -> Flag {
        self.short = Some(short);
        self
    }

    fn described(&self) -> String {
        match self.short {
            Some(short) => format!("-{short}, --{}", self.name),
            None => format!("--{}", self.name),
        }
    }
}

/// One flag's value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Value {
    Bool(bool),
    Int(i64),
    Uint(u64),
    /// Nanoseconds.
    Duration(i64),
    Text(String),
    List(Vec<String>),
}

impl Value {
    fn read(kind: Kind, text: &str) -> Result<Value, String> {
        Ok(match kind {
            Kind::Bool => Value::Bool(go_number::parse_bool(text)?),
            Kind::Int => Value::Int(go_number::parse_int(text, 0)?),
            Kind::Uint => Value::Uint(go_number::parse_uint(text, 0)?),
            Kind::Duration => Value::Duration(go_duration::parse_signed(text)?),
            Kind::Text => Value::Text(text.to_owned()),
            Kind::List => Value::List(read_list(text)?),
        })
    }

    fn default_of(flag: &Flag) -> Value {
        match (flag.kind, flag.default) {
            (Kind::Bool, "") => Value::Bool(false),
            (Kind::Int, "") => Value::Int(0),
            (Kind::Uint, "") => Value::Uint(0),
            (Kind::Duration, "") => Value::Duration(0),
            (kind, text) => Value::read(kind, text).expect("a default is written by us and read in a test"),
        }
    }
}

/// What parsing ended with instead of values.
#[derive(Debug, PartialEq, Eq)]
pub enum FlagError {
    /// `--help` or `-h` was met.
    Help,
    /// pflag's text.
    Wrong(String),
}

/// A flag with its present value.
#[derive(Debug)]
pub struct Entry {
    pub flag: &'static Flag,
    pub value: Value,
    /// Whether the command line named it.
    pub changed: bool,
}

/// The values of all flags that a command knows.
#[derive(Debug)]
pub struct Values {
    entries: Vec<Entry>,
}

impl Values {
    /// Reads `args` for a command with `flags`; returns the values and the arguments that are no flags.
    pub fn parse(flags: &[&'static Flag], args: &[Bytes]) -> Result<(Values, Vec<Bytes>), FlagError> {
        let entry = |flag: &&'static Flag| Entry { flag, value: Value::default_of(flag), changed: false };
        let mut values = Values { entries: flags.iter().map(entry).collect() };
        let mut words = Vec::new();
        let mut rest = args.iter();
        while let Some(arg) = rest.next() {
            if arg.as_ref() == b"--" {
                words.extend(rest.by_ref().cloned());
            } else if let Some(long) = arg.strip_prefix(b"--") {
                values.parse_long(&String::from_utf8_lossy(long), &mut rest)?;
            } else if arg.len() > 1 && arg[0] == b'-' {
                values.parse_short(&String::from_utf8_lossy(&arg[1..]), &mut rest)?;
            } else {
                words.push(arg.clone());
            }
        }
        Ok((values, words))
    }

    fn parse_long(&mut self, text: &str, rest: &mut std::slice::Iter<'_, Bytes>) -> Result<(), FlagError> {
        if text.starts_with(['-', '=']) {
            return Err(FlagError::Wrong(format!("bad flag syntax: --{text}")));
        }
        let (name, given) = match text.split_once('=') {
            Some((name, given)) => (name, Some(given.to_owned())),
            None => (text, None),
        };
        let Some(at) = self.entries.iter().position(|entry| entry.flag.name == name) else {
            let unknown = FlagError::Wrong(format!("unknown flag: --{name}"));
            return Err(if name == "help" { FlagError::Help } else { unknown });
        };
        let value = match given {
            Some(given) => given,
            None if self.entries[at].flag.kind == Kind::Bool => "true".to_owned(),
            None => match rest.next() {
                Some(next) => String::from_utf8_lossy(next).into_owned(),
                None => return Err(FlagError::Wrong(format!("flag needs an argument: --{name}"))),
            },
        };
        self.set(at, &value)
    }

    /// Reads `abc` of `-abc`: booleans may stand together, the rest behind another flag is its value.
    fn parse_short(&mut self, group: &str, rest: &mut std::slice::Iter<'_, Bytes>) -> Result<(), FlagError> {
        for (start, short) in group.char_indices() {
            let tail = &group[start + short.len_utf8()..];
            let Some(at) = self.entries.iter().position(|entry| entry.flag.short == Some(short)) else {
                let unknown = FlagError::Wrong(format!("unknown shorthand flag: '{short}' in -{}", &group[start..]));
                return Err(if short == 'h' { FlagError::Help } else { unknown });
            };
            if let Some(given) = tail.strip_prefix('=').filter(|given| !given.is_empty()) {
                return self.set(at, given);
            }
            if self.entries[at].flag.kind == Kind::Bool {
                self.set(at, "true")?;
                continue;
            }
            if !tail.is_empty() {
                return self.set(at, tail);
            }
            return match rest.next() {
                Some(next) => self.set(at, &String::from_utf8_lossy(next)),
                None => Err(FlagError::Wrong(format!("flag needs an argument: '{short}' in -{}", &group[start..]))),
            };
        }
        Ok(())
    }

    fn set(&mut self, at: usize, text: &str) -> Result<(), FlagError> {
        let entry = &mut self.entries[at];
        let value = Value::read(entry.flag.kind, text).map_err(|why| {
            let (text, name) = (go_text::quote(text.as_bytes()), entry.flag.described());
            FlagError::Wrong(format!("invalid argument {text} for \"{name}\" flag: {why}"))
        })?;
        match (&mut entry.value, value) {
            // The first use replaces the default, later ones add to it.
            (Value::List(kept), Value::List(more)) if entry.changed => kept.extend(more),
            (kept, value) => *kept = value,
        }
        entry.changed = true;
        Ok(())
    }

    /// Takes a value from the environment; false when it cannot be read.
    pub fn set_from_environment(&mut self, name: &str, text: &str) -> bool {
        let Some(entry) = self.entries.iter_mut().find(|entry| entry.flag.name == name) else { return false };
        let read = Value::read(entry.flag.kind, text);
        let readable = read.is_ok();
        entry.value = read.unwrap_or_else(|_| entry.value.clone());
        readable
    }

    pub fn entries(&self) -> &[Entry] {
        &self.entries
    }

    pub fn bool(&self, name: &str) -> bool {
        matches!(self.value(name), Value::Bool(true))
    }

    /// 0 when `name` is no number.
    pub fn int(&self, name: &str) -> i64 {
        if let Value::Int(value) = self.value(name) { *value } else { 0 }
    }

    /// 0 when `name` is no unsigned number.
    pub fn uint(&self, name: &str) -> u64 {
        if let Value::Uint(value) = self.value(name) { *value } else { 0 }
    }

    /// Whether the command line named the flag.
    pub fn is_given(&self, name: &str) -> bool {
        self.entries.iter().any(|entry| entry.flag.name == name && entry.changed)
    }

    /// Nanoseconds.
    pub fn duration(&self, name: &str) -> i64 {
        if let Value::Duration(value) = self.value(name) { *value } else { 0 }
    }

    pub fn text(&self, name: &str) -> &str {
        if let Value::Text(value) = self.value(name) { value } else { "" }
    }

    pub fn list(&self, name: &str) -> &[String] {
        if let Value::List(value) = self.value(name) { value } else { &[] }
    }

    fn value(&self, name: &str) -> &Value {
        let entry = self.entries.iter().find(|entry| entry.flag.name == name);
        &entry.expect("a command asks only for flags that it declares").value
    }
}

/// Splits one line of CSV: items may be quoted to hold commas and doubled quotes.
fn read_list(text: &str) -> Result<Vec<String>, String> {
    let mut items = Vec::new();
    let mut rest = text;
    while !text.is_empty() {
        let column = text.len() - rest.len() + 1;
        let (item, tail) = match rest.strip_prefix('"') {
            Some(quoted) => read_quoted(quoted, column)?,
            None => {
                let end = rest.find(',').unwrap_or(rest.len());
                if let Some(at) = rest[..end].find('"') {
                    let column = column + at;
                    return Err(format!("parse error on line 1, column {column}: bare \" in non-quoted-field"));
                }
                (rest[..end].to_owned(), &rest[end..])
            }
        };
        items.push(item);
        match tail.strip_prefix(',') {
            Some(next) => rest = next,
            None => break,
        }
    }
    Ok(items)
}

/// Reads a quoted item behind its opening quote, which stands in `column`.
fn read_quoted(text: &str, column: usize) -> Result<(String, &str), String> {
    let wrong = |at: usize| format!("parse error on line 1, column {at}: extraneous or missing \" in quoted-field");
    let mut item = String::new();
    let mut rest = text;
    loop {
        let end = rest.find('"').ok_or_else(|| wrong(column + text.len() + 1))?;
        item.push_str(&rest[..end]);
        rest = &rest[end + 1..];
        match rest.strip_prefix('"') {
            Some(more) => {
                item.push('"');
                rest = more;
            }
            None if rest.is_empty() || rest.starts_with(',') => return Ok((item, rest)),
            None => return Err(wrong(column + text.len() - rest.len())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    static FLAGS: [Flag; 6] = [
        Flag::new("hex", Kind::Bool, "", "").with_short('x'),
        Flag::new("limit", Kind::Int, "", ""),
        Flag::new("bump", Kind::Uint, "", ""),
        Flag::new("write-out", Kind::Text, "simple", "").with_short('w'),
        Flag::new("endpoints", Kind::List, "127.0.0.1:2379", ""),
        Flag::new("command-timeout", Kind::Duration, "5s", ""),
    ];

    fn parse(args: &[&str]) -> Result<(Values, Vec<Bytes>), FlagError> {
        let args: Vec<Bytes> = args.iter().map(|arg| Bytes::copy_from_slice(arg.as_bytes())).collect();
        Values::parse(&FLAGS.iter().collect::<Vec<_>>(), &args)
    }

    #[test]
    fn every_form_of_a_flag_is_read() {
        let check = |args: &[&str], name: &str, expected: Value, words: &[&str]| {
            let (values, rest) = parse(args).expect("must parse");
            assert_eq!(values.value(name), &expected, "{args:?}");
            assert_eq!(rest, words, "{args:?}");
        };
        let text = |text: &str| Value::Text(text.to_owned());
        let list = |items: &[&str]| Value::List(items.iter().map(|&item| item.to_owned()).collect());
        check(&["-w", "json", "k"], "write-out", text("json"), &["k"]);
        check(&["-wjson"], "write-out", text("json"), &[]);
        check(&["-w=json"], "write-out", text("json"), &[]);
        check(&["--write-out="], "write-out", text(""), &[]);
        check(&["a", "--write-out", "json", "b"], "write-out", text("json"), &["a", "b"]);
        check(&["-xwjson"], "write-out", text("json"), &[]);
        check(&["--hex", "false"], "hex", Value::Bool(true), &["false"]);
        check(&["--hex=false"], "hex", Value::Bool(false), &[]);
        check(&["--", "-k", "--hex"], "hex", Value::Bool(false), &["-k", "--hex"]);
        check(&["-", ""], "hex", Value::Bool(false), &["-", ""]);
        check(&["--bump=18446744073709551615"], "bump", Value::Uint(u64::MAX), &[]);
        check(&["--limit=0x10"], "limit", Value::Int(16), &[]);
        check(&["--command-timeout", "-1s"], "command-timeout", Value::Duration(-1_000_000_000), &[]);
        check(&[], "endpoints", list(&["127.0.0.1:2379"]), &[]);
        check(&["--endpoints", "a,b", "--endpoints=\"c,d\""], "endpoints", list(&["a", "b", "c,d"]), &[]);
        check(&["--endpoints="], "endpoints", list(&[]), &[]);
        check(&["--endpoints=a,"], "endpoints", list(&["a", ""]), &[]);
    }

    #[test]
    fn wrong_flags_are_told_in_pflags_words() {
        let check = |args: &[&str], expected: &str| {
            assert_eq!(parse(args).err(), Some(FlagError::Wrong(expected.to_owned())), "{args:?}");
        };
        check(&["--bogus"], "unknown flag: --bogus");
        check(&["--bogus=1"], "unknown flag: --bogus");
        check(&["-name"], "unknown shorthand flag: 'n' in -name");
        check(&["-xn"], "unknown shorthand flag: 'n' in -n");
        check(&["--limit"], "flag needs an argument: --limit");
        check(&["-w"], "flag needs an argument: 'w' in -w");
        check(&["---x"], "bad flag syntax: ---x");
        check(
            &["--limit", "x"],
            "invalid argument \"x\" for \"--limit\" flag: strconv.ParseInt: parsing \"x\": invalid syntax",
        );
        check(
            &["--bump", "-1"],
            "invalid argument \"-1\" for \"--bump\" flag: strconv.ParseUint: parsing \"-1\": invalid syntax",
        );
        check(
            &["-x=maybe"],
            "invalid argument \"maybe\" for \"-x, --hex\" flag: strconv.ParseBool: parsing \"maybe\": invalid syntax",
        );
        check(
            &["--command-timeout", "5"],
            "invalid argument \"5\" for \"--command-timeout\" flag: time: missing unit in duration \"5\"",
        );
        check(
            &["--endpoints", "a\"b"],
            "invalid argument \"a\\\"b\" for \"--endpoints\" flag: parse error on line 1, column 2: bare \" in \
             non-quoted-field",
        );
        assert_eq!(parse(&["a", "--help"]).err(), Some(FlagError::Help));
        assert_eq!(parse(&["-h"]).err(), Some(FlagError::Help));
    }
}

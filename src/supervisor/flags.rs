//! What was typed: goreman's flags in Go's syntax, before anything is meant by them (supervisor.md 1.1 to 1.4).

use std::collections::BTreeSet;

use crate::program::Manner;

/// Port of the control listener when nothing else is said.
const RPC_PORT: u64 = 8555;
/// PORT of the first process.
const BASE_PORT: u64 = 5000;

/// The flags, in goreman's words.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Flags {
    pub procfile: String,
    pub port: u64,
    pub base_port: u64,
    pub basedir: String,
    pub set_ports: bool,
    pub exit_on_error: bool,
    pub exit_on_stop: bool,
    pub logtime: bool,
    pub rpc_server: bool,
    pub env: String,
    /// Names of those that were typed.
    pub given: BTreeSet<String>,
}

/// Why the command line ends here: what to print on stderr, and the exit code.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FlagExit {
    /// `-h` or `-help`.
    Listing,
    /// A sentence, then the listing; exit code 2.
    Wrong(String),
}

/// Name, argument's name (empty for booleans), text and default, as Go lists them.
const LISTING: [(&str, &str, &str, &str); 10] = [
    ("b", "uint", "base number of port", "(default 5000)"),
    ("basedir", "string", "base directory", ""),
    ("env", "string", "environment files to load, separated by commas", "(default \".env\")"),
    ("exit-on-error", "", "exit when a process ends with an error", ""),
    ("exit-on-stop", "", "exit when all processes have stopped", "(default true)"),
    ("f", "string", "Procfile to read", "(default \"Procfile\")"),
    ("logtime", "", "show the time in front of each line", "(default true)"),
    ("p", "uint", "port of the control listener", "(default 8555)"),
    ("rpc-server", "", "start the control listener", "(default true)"),
    ("set-ports", "", "give each process a PORT", "(default true)"),
];

impl Flags {
    /// Reads flags up to the first word that is none: the flags and the words that are left.
    pub fn parse(words: &[String], rpc_port: Option<&str>) -> Result<(Flags, Vec<String>), FlagExit> {
        let mut flags = Flags::defaults(rpc_port);
        let mut at = 0;
        while let Some(word) = words.get(at) {
            let Some(body) = word.strip_prefix('-').filter(|body| !body.is_empty()) else { break };
            at += 1;
            if body == "-" {
                break;
            }
            let body = body.strip_prefix('-').unwrap_or(body);
            if body.is_empty() || body.starts_with(['-', '=']) {
                return Err(FlagExit::Wrong(format!("bad flag syntax: {word}")));
            }
            let (name, value) = match body.split_once('=') {
                Some((name, value)) => (name, Some(value.to_owned())),
                None => (body, None),
            };
            if name == "h" || name == "help" {
                return Err(FlagExit::Listing);
            }
            flags.given.insert(name.to_owned());
            if let Some(target) = flags.boolean(name) {
                *target = parse_bool(name, value.as_deref())?;
                continue;
            }
            if !LISTING.iter().any(|(known, ..)| *known == name) {
                return Err(FlagExit::Wrong(format!("flag provided but not defined: -{name}")));
            }
            let value = match value {
                Some(value) => value,
                None => {
                    let next = words.get(at).cloned();
                    at += 1;
                    next.ok_or_else(|| FlagExit::Wrong(format!("flag needs an argument: -{name}")))?
                }
            };
            flags.set(name, value)?;
        }
        Ok((flags, words[at.min(words.len())..].to_vec()))
    }

    /// The same, and flags may also stand right behind the task, where people put them: goreman takes them for processes.
    pub fn parse_around_task(words: &[String], rpc_port: Option<&str>) -> Result<(Flags, Vec<String>), FlagExit> {
        let (flags, rest) = Flags::parse(words, rpc_port)?;
        let Some((task, behind)) = rest.split_first().filter(|(_, behind)| is_flag(behind.first())) else {
            return Ok((flags, rest));
        };
        let before = &words[..words.len() - rest.len()];
        let (flags, rest) = Flags::parse(&[before, behind].concat(), rpc_port)?;
        Ok((flags, [std::slice::from_ref(task), &rest].concat()))
    }

    fn defaults(rpc_port: Option<&str>) -> Flags {
        // Decimal and 16 bits; anything else counts as not set (supervisor.md 1.4).
        let port = rpc_port.and_then(|text| text.parse::<u16>().ok());
        Flags {
            procfile: "Procfile".to_owned(),
            port: port.map_or(RPC_PORT, u64::from),
            base_port: BASE_PORT,
            basedir: String::new(),
            set_ports: true,
            exit_on_error: false,
            exit_on_stop: true,
            logtime: true,
            rpc_server: true,
            env: ".env".to_owned(),
            given: BTreeSet::new(),
        }
    }

    fn boolean(&mut self, name: &str) -> Option<&mut bool> {
        Some(match name {
            "set-ports" => &mut self.set_ports,
            "exit-on-error" => &mut self.exit_on_error,
            "exit-on-stop" => &mut self.exit_on_stop,
            "logtime" => &mut self.logtime,
            "rpc-server" => &mut self.rpc_server,
            _ => return None,
        })
    }

    fn set(&mut self, name: &str, value: String) -> Result<(), FlagExit> {
        match name {
            "f" => self.procfile = value,
            "basedir" => self.basedir = value,
            "env" => self.env = value,
            "p" => self.port = parse_uint(name, &value)?,
            _ => self.base_port = parse_uint(name, &value)?,
        }
        Ok(())
    }
}

fn is_flag(word: Option<&String>) -> bool {
    word.is_some_and(|word| word.len() > 1 && word.starts_with('-') && word != "--")
}

/// Go's listing of flags: `Usage of NAME:` and two lines a flag.
pub fn listing(program: &str) -> String {
    let mut text = format!("Usage of {program}:\n");
    text.push_str(&options());
    text
}

/// The two lines of every flag.
pub fn options() -> String {
    let mut text = String::new();
    for (name, argument, what, default) in LISTING {
        let head = if argument.is_empty() { format!("  -{name}") } else { format!("  -{name} {argument}") };
        let tail = if default.is_empty() { what.to_owned() } else { format!("{what} {default}") };
        text.push_str(&format!("{head}\n    \t{tail}\n"));
    }
    text
}

/// What `help` prints: the tasks, then the options.
pub fn usage(manner: Manner) -> String {
    let head = match manner {
        Manner::Original => "goreman",
        Manner::Native => "quorate supervisor",
    };
    let tasks = [
        (format!("{head} check"), "# show the entries of the Procfile"),
        (format!("{head} export FORMAT LOCATION"), "# write a job for each process (upstart)"),
        (format!("{head} help [TASK]"), "# show this help"),
        (format!("{head} run COMMAND [PROCESS...]"), "# control what a running `start` runs"),
        ("    start".to_owned(), "# start processes"),
        ("    stop".to_owned(), "# stop processes"),
        ("    stop-all".to_owned(), "# stop every process"),
        ("    restart".to_owned(), "# restart processes"),
        ("    restart-all".to_owned(), "# restart every process, one after another"),
        ("    list".to_owned(), "# list processes"),
        ("    status".to_owned(), "# list processes, running ones with a star"),
        (format!("{head} start [PROCESS...]"), "# start the processes of the Procfile"),
        (format!("{head} version"), "# show the version"),
    ];
    let width = tasks.iter().map(|(task, _)| task.len()).max().unwrap_or_default();
    let lines: String = tasks.iter().map(|(task, what)| format!("  {task:width$}  {what}\n")).collect();
    format!("Tasks:\n{lines}\nOptions:\n{}", options())
}

fn parse_bool(name: &str, value: Option<&str>) -> Result<bool, FlagExit> {
    match value {
        None => Ok(true),
        Some("1" | "t" | "T" | "true" | "TRUE" | "True") => Ok(true),
        Some("0" | "f" | "F" | "false" | "FALSE" | "False") => Ok(false),
        Some(other) => Err(FlagExit::Wrong(format!("invalid boolean value \"{other}\" for -{name}: parse error"))),
    }
}

fn parse_uint(name: &str, text: &str) -> Result<u64, FlagExit> {
    let wrong = |why: &str| FlagExit::Wrong(format!("invalid value \"{text}\" for flag -{name}: {why}"));
    let (digits, radix) = go_integer(text).ok_or_else(|| wrong("parse error"))?;
    u64::from_str_radix(&digits, radix).map_err(|_| wrong("value out of range"))
}

/// What a Go integer literal stands for.
pub fn uint(text: &str) -> Option<u64> {
    let (digits, radix) = go_integer(text)?;
    u64::from_str_radix(&digits, radix).ok()
}

/// Digits and base of a Go integer literal: decimal, `0x`, `0b`, `0o`, a leading 0 for octal, `_` between digits.
fn go_integer(text: &str) -> Option<(String, u32)> {
    let lower = text.to_ascii_lowercase();
    let (digits, radix) = match lower.as_bytes() {
        [b'0', b'x', ..] => (&lower[2..], 16),
        [b'0', b'b', ..] => (&lower[2..], 2),
        [b'0', b'o', ..] => (&lower[2..], 8),
        [b'0', _, ..] => (&lower[1..], 8),
        _ => (lower.as_str(), 10),
    };
    let plain = digits.replace('_', "");
    let good = !plain.is_empty() && !digits.ends_with('_') && plain.chars().all(|digit| digit.is_digit(radix));
    good.then_some((plain, radix))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(line: &str) -> Result<(Flags, Vec<String>), FlagExit> {
        let words: Vec<String> = line.split_whitespace().map(str::to_owned).collect();
        Flags::parse(&words, None)
    }

    #[test]
    fn flags_come_before_the_task() {
        let (flags, rest) = parse("-f x/P2 --p=0x10 -logtime=false start -f web").unwrap();
        assert_eq!((flags.procfile.as_str(), flags.port, flags.logtime), ("x/P2", 16, false));
        assert_eq!(rest, ["start", "-f", "web"]);
        assert_eq!(parse("-set-ports false start").unwrap().1, ["false", "start"]);
        assert_eq!(parse("-- version").unwrap().1, ["version"]);
        assert_eq!(parse("-").unwrap().1, ["-"]);
        assert_eq!(parse("-p 010 x").unwrap().0.port, 8);
        assert_eq!(parse("-p 1_000 x").unwrap().0.port, 1000);
    }

    #[test]
    fn natively_flags_may_follow_the_task() {
        let parse = |line: &str| {
            let words: Vec<String> = line.split_whitespace().map(str::to_owned).collect();
            Flags::parse_around_task(&words, None)
        };
        let (flags, rest) = parse("-p 16 start -f P2 web").unwrap();
        assert_eq!((flags.procfile.as_str(), flags.port, rest.join(" ").as_str()), ("P2", 16, "start web"));
        let (flags, rest) = parse("start web -f P2").unwrap();
        assert_eq!((flags.procfile.as_str(), rest.join(" ").as_str()), ("Procfile", "start web -f P2"));
        assert_eq!(parse("start -zz"), Err(FlagExit::Wrong("flag provided but not defined: -zz".to_owned())));
    }

    #[test]
    fn wrong_flags_are_named_in_gos_words() {
        let check = |line: &str, text: &str| assert_eq!(parse(line), Err(FlagExit::Wrong(text.to_owned())), "{line}");
        check("-zz check", "flag provided but not defined: -zz");
        check("-p abc check", "invalid value \"abc\" for flag -p: parse error");
        check("-p -1 check", "invalid value \"-1\" for flag -p: parse error");
        check("-p= check", "invalid value \"\" for flag -p: parse error");
        check(
            "-b 99999999999999999999999 check",
            "invalid value \"99999999999999999999999\" for flag -b: value out of range",
        );
        check("-logtime=maybe check", "invalid boolean value \"maybe\" for -logtime: parse error");
        check("-f", "flag needs an argument: -f");
        check("-=x check", "bad flag syntax: -=x");
        check("---f x check", "bad flag syntax: ---f");
        assert_eq!(parse("-h"), Err(FlagExit::Listing));
    }

    #[test]
    fn the_environment_gives_the_port_only_when_it_is_one() {
        let port = |text: &str| Flags::parse(&[], Some(text)).unwrap().0.port;
        assert_eq!([port("25033"), port("99999"), port("0x61a8"), port("")], [25033, 8555, 8555, 8555]);
    }
}

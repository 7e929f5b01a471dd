//! Help and usage texts in etcdctl 3.7's layout (ctl.md 1.4), and the two commands that print them.

use bytes::Bytes;

use super::command::Action;
use super::command::Command;
use super::command::Found;
use super::command::find;
use super::error::CtlError;
use super::flags::Flag;
use super::flags::Kind;
use super::flags::Value;
use super::flags::Values;
use super::go_text;
use super::root::ROOT;
use super::session::Session;
use crate::common::go_duration;

pub static HELP: Command = Command {
    name: "help",
    arguments: "[command]",
    summary: "Explains a command",
    flags: &[],
    inherited: &[],
    action: Action::Run(run_help),
};

pub static OPTIONS: Command = Command {
    name: "options",
    arguments: "",
    summary: "Lists the options that all commands know",
    flags: &[],
    inherited: &[],
    action: Action::Run(run_options),
};

/// Headings of the root's help and what stands under each.
const GROUPS: [(&str, &[&str]); 5] = [
    ("Key-value commands", &["compaction", "del", "get", "lease", "put", "txn", "watch"]),
    (
        "Cluster maintenance commands",
        &["alarm", "defrag", "downgrade", "endpoint", "member", "move-leader", "snapshot"],
    ),
    ("Concurrency commands", &["elect", "lock"]),
    ("Authentication commands", &["auth", "role", "user"]),
    ("Utility commands", &["check", "completion", "help", "make-mirror", "options", "version"]),
];

/// Width of the column of command names.
const NAME_WIDTH: usize = 11;

fn run_help(session: &mut Session<'_>) -> Result<(), CtlError> {
    let words: Vec<Bytes> = session.args.clone();
    let program = session.program();
    match find(&ROOT, &words) {
        Ok(found) => session.console.write_out(help(program, &found).as_bytes()),
        Err(_) => {
            let topics: Vec<String> = words.iter().map(|word| format!("`{}`", String::from_utf8_lossy(word))).collect();
            let root = Found { path: vec![&ROOT], args: Vec::new() };
            session.console.tell(&format!("Unknown help topic [{}]\n{}", topics.join(" "), usage(program, &root)));
            Ok(())
        }
    }
}

fn run_options(session: &mut Session<'_>) -> Result<(), CtlError> {
    let flags: Vec<&Flag> = ROOT.inherited.iter().collect();
    let text = format!("The following options can be passed to any command:\n\n{}", flag_lines(&flags));
    session.console.write_out(text.as_bytes())
}

/// The whole help of a command.
pub fn help(program: &str, found: &Found) -> String {
    let tail =
        format!("Use \"{program} options\" for a list of global command-line options (applies to all commands).\n");
    format!("{}\n\n{}{tail}", found.command().summary, usage(program, found))
}

/// The block from `Usage:` on that follows a flag error.
pub fn usage(program: &str, found: &Found) -> String {
    let name = full_name(program, found);
    match &found.command().action {
        Action::Run(_) => leaf_usage(&name, found),
        Action::Group { .. } if found.path.len() == 1 => root_usage(program),
        Action::Group { commands, .. } => group_usage(&name, found, commands),
    }
}

fn full_name(program: &str, found: &Found) -> String {
    found.path[1..].iter().fold(program.to_owned(), |name, command| format!("{name} {}", command.name))
}

fn leaf_usage(name: &str, found: &Found) -> String {
    let command = found.command();
    let arguments = if command.arguments.is_empty() { String::new() } else { format!(" {}", command.arguments) };
    let own = flag_lines(&with_help(found).iter().collect::<Vec<_>>());
    let mut text = format!("Usage:\n  {name}{arguments} [flags]\n\nFlags:\n{own}");
    // The root's flags are left to `options`; those of a group between are shown.
    let groups: Vec<&Flag> = found.path[1..].iter().flat_map(|command| command.inherited).collect();
    if !groups.is_empty() {
        text.push_str(&format!("\nGlobal Flags:\n{}", flag_lines(&groups)));
    }
    text
}

fn group_usage(name: &str, found: &Found, commands: &[&Command]) -> String {
    let mut sorted: Vec<&&Command> = commands.iter().collect();
    sorted.sort_by_key(|command| command.name);
    let line = |command: &&&Command| format!("  {:NAME_WIDTH$} {}\n", command.name, command.summary);
    let children: String = sorted.iter().map(line).collect();
    let own = with_help(found);
    let mut flags: Vec<&Flag> = own.iter().chain(found.command().inherited).collect();
    flags.sort_by_key(|flag| flag.name);
    let flags = flag_lines(&flags);
    format!(
        "Usage:\n  {name} [command]\n\nAvailable Commands:\n{children}\nFlags:\n{flags}\n\
         Use \"{name} [command] --help\" for more information about a command.\n"
    )
}

fn root_usage(program: &str) -> String {
    let Action::Group { commands, .. } = ROOT.action else { return String::new() };
    let mut text = format!("Usage:\n  {program} [command]\n");
    for (heading, names) in GROUPS {
        let line = |command: &&Command| format!("  {:NAME_WIDTH$} {}\n", command.name, command.summary);
        let built = names.iter().filter_map(|name| commands.iter().find(|command| command.name == *name));
        let lines: String = built.map(line).collect();
        // A group whose commands all come with later releases is not shown.
        if !lines.is_empty() {
            text.push_str(&format!("\n{heading}\n{lines}"));
        }
    }
    text.push_str(&format!("\nUse \"{program} [command] --help\" for more information about a command.\n"));
    text
}

/// The command's own flags and `--help`, sorted.
fn with_help(found: &Found) -> Vec<Flag> {
    let copy = |flag: &Flag| Flag { short: flag.short, ..Flag::new(flag.name, flag.kind, flag.default, flag.help) };
    let mut flags: Vec<Flag> = found.command().flags.iter().map(copy).collect();
    flags.push(Flag::new("help", Kind::Bool, "", "show this text").with_short('h'));
    flags.sort_by_key(|flag| flag.name);
    flags
}

/// One line a flag: name and type padded to the longest, what it does, its default.
pub fn flag_lines(flags: &[&Flag]) -> String {
    let head = |flag: &Flag| {
        let short = flag.short.map_or("      ".to_owned(), |short| format!("  -{short}, "));
        let word = match flag.kind {
            Kind::Bool => "",
            Kind::Int => " int",
            Kind::Uint => " uint",
            Kind::Duration => " duration",
            Kind::Text => " string",
            Kind::List => " strings",
        };
        format!("{short}--{}{word}", flag.name)
    };
    let width = flags.iter().map(|flag| head(flag).len()).max().unwrap_or(0);
    let line = |flag: &&Flag| format!("{:width$}   {}{}\n", head(flag), flag.help, default_text(flag));
    flags.iter().map(line).collect()
}

fn default_text(flag: &Flag) -> String {
    match (flag.kind, flag.default) {
        (_, "") => String::new(),
        (Kind::Text, text) => format!(" (default {})", go_text::quote(text.as_bytes())),
        (Kind::List, text) => format!(" (default [{text}])"),
        (_, text) => format!(" (default {text})"),
    }
}

/// Every option in force as `--debug` tells it: `ETCDCTL_NAME=value`, in order of names.
pub fn debug_lines(values: &Values, flags: &[&'static Flag]) -> String {
    let mut inherited: Vec<_> =
        values.entries().iter().filter(|entry| flags.iter().any(|flag| flag.name == entry.flag.name)).collect();
    inherited.sort_by_key(|entry| entry.flag.name);
    let line = |entry: &&super::flags::Entry| {
        format!("{}={}\n", super::environment::variable(entry.flag.name), value_text(&entry.value))
    };
    inherited.iter().map(line).collect()
}

fn value_text(value: &Value) -> String {
    match value {
        Value::Bool(on) => on.to_string(),
        Value::Int(number) => number.to_string(),
        Value::Uint(number) => number.to_string(),
        Value::Duration(nanos) => {
            let sign = if *nanos < 0 { "-" } else { "" };
            format!("{sign}{}", go_duration::format(std::time::Duration::from_nanos(nanos.unsigned_abs())))
        }
        Value::Text(text) => text.clone(),
        Value::List(items) => format!("[{}]", items.join(",")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(line: &str) -> Found {
        let args: Vec<Bytes> = line.split_whitespace().map(|word| Bytes::copy_from_slice(word.as_bytes())).collect();
        find(&ROOT, &args).unwrap_or_else(|error| panic!("{line}: {error:?}"))
    }

    #[test]
    fn a_leaf_shows_usage_flags_and_the_hint() {
        let text = help("etcdctl", &found("get"));
        assert!(text.contains("\n\nUsage:\n  etcdctl get [options] <key> [range_end] [flags]\n\nFlags:\n"), "{text}");
        assert!(text.contains("\n      --limit int            number"), "{text}");
        assert!(text.contains(" (default \"l\")\n"), "{text}");
        assert!(!text.contains("--endpoints"), "{text}");
        let hint = "\nUse \"etcdctl options\" for a list of global command-line options (applies to all commands).\n";
        assert!(text.ends_with(hint) && !text.contains(&format!("\n{hint}")), "{text}");
    }

    #[test]
    fn groups_list_their_commands() {
        let text = help("etcdctl", &found("endpoint"));
        assert!(text.contains("Usage:\n  etcdctl endpoint [command]\n\nAvailable Commands:\n  hashkv      "), "{text}");
        assert!(text.contains("\nFlags:\n      --cluster   "), "{text}");
        assert!(text.contains("\n\nUse \"etcdctl endpoint [command] --help\" for more information"), "{text}");
        assert!(help("etcdctl", &found("endpoint status")).contains("\nGlobal Flags:\n      --cluster   "));
        let text = help("etcdctl", &found(""));
        assert!(text.contains("Usage:\n  etcdctl [command]\n\nKey-value commands\n  compaction  "), "{text}");
    }

    #[test]
    fn options_are_padded_to_the_longest() {
        let flags: Vec<&Flag> = ROOT.inherited.iter().collect();
        let text = flag_lines(&flags);
        assert!(text.contains("\n  -w, --write-out string             output format"), "{text}");
        assert!(text.contains("\n      --insecure-skip-tls-verify     do not"), "{text}");
        assert!(text.contains("(default [127.0.0.1:2379])\n"), "{text}");
        assert!(text.contains("(default 5s)\n"), "{text}");
    }
}

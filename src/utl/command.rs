//! The tree of commands, how one is found in a command line, and help in cobra's plain layout (ctl.md 6).

use bytes::Bytes;

use crate::ctl::command::SUGGESTION_DISTANCE_MAX;
use crate::ctl::command::distance;
use crate::ctl::command::first_word;
use crate::ctl::flags::Flag;
use crate::ctl::flags::Kind;
use crate::ctl::go_text;
use crate::ctl::help::flag_lines;
use crate::program::Manner;
use crate::utl::Session;
use crate::utl::defrag;
use crate::utl::error::UtlError;
use crate::utl::export;
use crate::utl::hashkv;
use crate::utl::program;
use crate::utl::restore;
use crate::utl::snapshot;
use crate::utl::version;

/// One command: a leaf that does something or a group of others.
pub struct Command {
    pub name: &'static str,
    /// What follows the name in the usage line.
    pub arguments: &'static str,
    pub summary: &'static str,
    pub flags: &'static [Flag],
    /// Flags that must be given.
    pub required: &'static [&'static str],
    /// Takes exactly one argument, and says so in cobra's words.
    pub one_argument: bool,
    pub reach: Reach,
    pub action: Action,
}

/// Who is shown a command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reach {
    Everybody,
    /// etcdutl has no such command.
    Native,
    /// There for those who type it, not listed.
    Hidden,
}

pub enum Action {
    Run(fn(&mut Session<'_>) -> Result<(), UtlError>),
    Group(&'static [&'static Command]),
    Help,
}

impl Command {
    pub const fn leaf(
        name: &'static str,
        summary: &'static str,
        action: fn(&mut Session<'_>) -> Result<(), UtlError>,
    ) -> Command {
        let (arguments, flags, required) = ("", &[], &[]);
        let (one_argument, reach, action) = (false, Reach::Everybody, Action::Run(action));
        Command { name, arguments, summary, flags, required, one_argument, reach, action }
    }

    fn children(&self, manner: Manner) -> impl Iterator<Item = &'static Command> {
        let commands = match self.action {
            Action::Group(commands) => commands,
            Action::Run(_) | Action::Help => &[],
        };
        commands.iter().copied().filter(move |child| manner == Manner::Native || child.reach != Reach::Native)
    }
}

static ROOT: Command = Command {
    action: Action::Group(&[&defrag::COMMAND, &export::COMMAND, &hashkv::COMMAND, &HELP, &SNAPSHOT, &version::COMMAND]),
    ..Command::leaf("", "", nothing)
};

static SNAPSHOT: Command = Command {
    action: Action::Group(&[&restore::COMMAND, &snapshot::SAVE, &snapshot::STATUS]),
    ..Command::leaf("snapshot", "Looks into snapshot files and makes members of them", nothing)
};

static HELP: Command =
    Command { arguments: "[command]", action: Action::Help, ..Command::leaf("help", "Explains a command", nothing) };

fn nothing(_: &mut Session<'_>) -> Result<(), UtlError> {
    Ok(())
}

/// Flags that all commands know.
static GLOBAL_FLAGS: [Flag; 2] = [
    Flag::new("timeout", Kind::Duration, "10s", "time to wait for a file that another process has locked, 0 for ever"),
    Flag::new("write-out", Kind::Text, "simple", "output format: fields, json, protobuf, simple, table")
        .with_short('w'),
];

/// A command that was found, with the way to it from the root.
pub struct Found {
    path: Vec<&'static Command>,
    /// Flags and words, without the commands' names.
    pub args: Vec<Bytes>,
}

impl Found {
    pub fn command(&self) -> &'static Command {
        self.path.last().expect("a path starts with the root")
    }

    pub fn flags(&self) -> Vec<&'static Flag> {
        self.command().flags.iter().chain(&GLOBAL_FLAGS).collect()
    }
}

/// Finds the command that `args` name: names may be cut short as long as one command is meant.
pub fn find(args: &[Bytes], manner: Manner) -> Result<Found, UtlError> {
    let mut found = Found { path: vec![&ROOT], args: args.to_vec() };
    while let Some(at) = first_word(&found.flags(), &found.args) {
        let word = String::from_utf8_lossy(&found.args[at]).into_owned();
        let children: Vec<&'static Command> = found.command().children(manner).collect();
        let begun: Vec<&Command> = children.iter().copied().filter(|child| child.name.starts_with(&word)).collect();
        let exact = children.iter().copied().find(|child| child.name == word);
        let only = if begun.len() == 1 { begun.first().copied() } else { None };
        match exact.or(only) {
            Some(child) => {
                found.args.remove(at);
                found.path.push(child);
            }
            // Only the root minds unknown words; a group shows its help, a leaf takes them as arguments.
            None if found.path.len() > 1 => break,
            None => return Err(unknown(&word, &children, manner)),
        }
    }
    Ok(found)
}

fn unknown(word: &str, commands: &[&'static Command], manner: Manner) -> UtlError {
    let lower = word.to_lowercase();
    let near = |name: &str| distance(&lower, name) <= SUGGESTION_DISTANCE_MAX || name.starts_with(&lower);
    let names = commands.iter().filter(|command| command.reach != Reach::Hidden && near(command.name));
    let lines: String = names.map(|command| format!("\t{}\n", command.name)).collect();
    let meant = if lines.is_empty() { String::new() } else { format!("\n\nDid you mean this?\n{lines}") };
    let (program, word) = (program(manner), go_text::quote(word.as_bytes()));
    UtlError::Unknown {
        text: format!("unknown command {word} for \"{program}\"{meant}"),
        hint: format!("Run '{program} --help' for usage.\n"),
    }
}

/// The text of `help WORDS`.
pub fn help(program: &str, words: &[String], manner: Manner) -> String {
    let args: Vec<Bytes> = words.iter().map(|word| Bytes::copy_from_slice(word.as_bytes())).collect();
    match find(&args, manner) {
        Ok(found) => usage(program, &found, manner),
        Err(_) => usage(program, &Found { path: vec![&ROOT], args: Vec::new() }, manner),
    }
}

/// The block from `Usage:` on, which is all the help there is.
pub fn usage(program: &str, found: &Found, manner: Manner) -> String {
    let command = found.command();
    let name = found.path[1..].iter().fold(program.to_owned(), |name, command| format!("{name} {}", command.name));
    let is_root = found.path.len() == 1;
    let mut own: Vec<Flag> = command.flags.iter().map(copy).collect();
    own.push(Flag::new("help", Kind::Bool, "", "show this text").with_short('h'));
    if is_root {
        own.extend(GLOBAL_FLAGS.iter().map(copy));
    }
    own.sort_by_key(|flag| flag.name);
    let own = flag_lines(&own.iter().collect::<Vec<_>>());
    let global = match is_root {
        true => String::new(),
        false => format!("\nGlobal Flags:\n{}", flag_lines(&GLOBAL_FLAGS.iter().collect::<Vec<_>>())),
    };
    let Action::Group(_) = command.action else {
        let arguments = if command.arguments.is_empty() { String::new() } else { format!(" {}", command.arguments) };
        return format!("Usage:\n  {name}{arguments} [flags]\n\nFlags:\n{own}{global}");
    };
    let listed = command.children(manner).filter(|child| child.reach != Reach::Hidden);
    let lines: String = listed.map(|child| format!("  {:11} {}\n", child.name, child.summary)).collect();
    format!(
        "Usage:\n  {name} [command]\n\nAvailable Commands:\n{lines}\nFlags:\n{own}{global}\n\
         Use \"{name} [command] --help\" for more information about a command.\n"
    )
}

fn copy(flag: &Flag) -> Flag {
    Flag { short: flag.short, ..Flag::new(flag.name, flag.kind, flag.default, flag.help) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ctl::flags::Values;

    #[test]
    fn commands_and_flags_are_sorted_and_every_default_can_be_read() {
        fn walk(command: &'static Command) {
            let flags: Vec<&Flag> = command.flags.iter().collect();
            assert!(flags.windows(2).all(|pair| pair[0].name < pair[1].name), "{}", command.name);
            assert!(Values::parse(&flags, &[]).is_ok(), "{}", command.name);
            assert!(command.required.iter().all(|name| flags.iter().any(|flag| flag.name == *name)));
            if let Action::Group(commands) = command.action {
                assert!(commands.windows(2).all(|pair| pair[0].name < pair[1].name), "{}", command.name);
                commands.iter().for_each(|child| walk(child));
            }
        }
        walk(&ROOT);
    }
}

//! The tree of commands and how cobra finds one in a command line (ctl.md 1.3).

use bytes::Bytes;

use super::error::CtlError;
use super::flags::Flag;
use super::flags::Kind;
use super::session::Session;

/// One command: a leaf that does something or a group of others.
pub struct Command {
    pub name: &'static str,
    /// What follows the name in the usage line, such as `[options] <key>`.
    pub arguments: &'static str,
    /// One line, for the list of commands and as the opening of the help.
    pub summary: &'static str,
    /// Its own flags.
    pub flags: &'static [Flag],
    /// Flags of its children.
    pub inherited: &'static [Flag],
    pub action: Action,
}

/// What a command is there for.
pub enum Action {
    Run(fn(&mut Session<'_>) -> Result<(), CtlError>),
    Group {
        commands: &'static [&'static Command],
        /// All names that etcdctl has here, in its order of registration: abbreviations and suggestions follow them,
        /// also where the command itself comes with a later release of ours.
        names: &'static [&'static str],
    },
}

/// A command that was found, with the way to it from the root.
#[derive(Clone)]
pub struct Found {
    pub path: Vec<&'static Command>,
    /// What is left of the command line: flags and words, without the commands' names.
    pub args: Vec<Bytes>,
}

/// Why no command was found.
#[derive(Debug, PartialEq, Eq)]
pub enum FindError {
    /// etcdctl has no such command; names that were perhaps meant.
    Unknown { word: String, suggestions: Vec<&'static str> },
    /// etcdctl has it, we do not yet. The full name.
    Unsupported(String),
}

impl Command {
    fn children(&self) -> (&'static [&'static Command], &'static [&'static str]) {
        match self.action {
            Action::Group { commands, names } => (commands, names),
            Action::Run(_) => (&[], &[]),
        }
    }

    /// The full name below `word`: itself, or the only name that starts with it.
    fn resolve(&self, word: &str) -> Option<&'static str> {
        let (_, names) = self.children();
        let mut begun = names.iter().filter(|name| name.starts_with(word));
        let exact = names.iter().find(|name| **name == word);
        match (exact, begun.next(), begun.next()) {
            (Some(name), _, _) | (None, Some(name), None) => Some(name),
            _ => None,
        }
    }

    fn suggestions(&self, word: &str) -> Vec<&'static str> {
        let (_, names) = self.children();
        let lower = word.to_lowercase();
        let near = |name: &&&str| distance(&lower, name) <= SUGGESTION_DISTANCE_MAX || name.starts_with(&lower);
        names.iter().filter(near).copied().collect()
    }
}

/// Changed letters up to which a name is taken for a slip of another.
pub const SUGGESTION_DISTANCE_MAX: usize = 2;

impl Found {
    pub fn command(&self) -> &'static Command {
        self.path.last().expect("a path starts with the root")
    }

    /// Flags of the command itself.
    pub fn own_flags(&self) -> Vec<&'static Flag> {
        self.command().flags.iter().collect()
    }

    /// Flags that it has from the groups above it, the root's last.
    pub fn inherited_flags(&self) -> Vec<&'static Flag> {
        self.path.iter().rev().flat_map(|command| command.inherited).collect()
    }
}

/// Finds the command that `args` name: the first word that is neither a flag nor a flag's value, then below it.
pub fn find(root: &'static Command, args: &[Bytes]) -> Result<Found, FindError> {
    let mut found = Found { path: vec![root], args: args.to_vec() };
    loop {
        let known: Vec<&Flag> = found.own_flags().into_iter().chain(found.inherited_flags()).collect();
        let Some(at) = first_word(&known, &found.args) else { return Ok(found) };
        let word = String::from_utf8_lossy(&found.args[at]).into_owned();
        let command = found.command();
        let Some(name) = command.resolve(&word) else {
            // Only the root minds unknown words; a group shows its help, a leaf takes them as arguments.
            if found.path.len() > 1 {
                return Ok(found);
            }
            let suggestions = command.suggestions(&word);
            return Err(FindError::Unknown { word, suggestions });
        };
        let (commands, _) = command.children();
        let Some(child) = commands.iter().find(|child| child.name == name) else {
            let groups = found.path[1..].iter().map(|group| group.name);
            return Err(FindError::Unsupported(groups.chain([name]).collect::<Vec<_>>().join(" ")));
        };
        found.args.remove(at);
        found.path.push(child);
    }
}

/// Position of the first argument that is a word. An unknown flag without `=` is taken to have a value, as cobra does.
pub fn first_word(known: &[&Flag], args: &[Bytes]) -> Option<usize> {
    let takes_value = |flag: Option<&&Flag>| flag.is_none_or(|flag| flag.kind != Kind::Bool);
    let mut at = 0;
    while let Some(arg) = args.get(at) {
        let text = String::from_utf8_lossy(arg);
        if text == "--" {
            return None;
        }
        let skips = if let Some(name) = text.strip_prefix("--") {
            !text.contains('=') && name != "help" && takes_value(known.iter().find(|flag| flag.name == name))
        } else if let Some(short) = text.strip_prefix('-') {
            let flag = known.iter().find(|flag| flag.short.is_some_and(|letter| short == letter.to_string()));
            short.chars().count() == 1 && short != "h" && takes_value(flag)
        } else if text.is_empty() {
            false
        } else {
            return Some(at);
        };
        at += if skips { 2 } else { 1 };
    }
    None
}

/// Edits that turn one word into the other (Levenshtein).
pub fn distance(from: &str, to: &str) -> usize {
    let to: Vec<char> = to.to_lowercase().chars().collect();
    let mut row: Vec<usize> = (0..=to.len()).collect();
    for (deleted, letter) in from.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = deleted + 1;
        for (at, other) in to.iter().enumerate() {
            let changed = diagonal + usize::from(letter != *other);
            diagonal = row[at + 1];
            row[at + 1] = changed.min(row[at] + 1).min(diagonal + 1);
        }
    }
    row[to.len()]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ctl::root;

    fn look(line: &str) -> Result<(String, String), FindError> {
        let args: Vec<Bytes> = line.split_whitespace().map(|word| Bytes::copy_from_slice(word.as_bytes())).collect();
        let found = find(&root::ROOT, &args)?;
        let path: Vec<&str> = found.path[1..].iter().map(|command| command.name).collect();
        let rest: Vec<String> = found.args.iter().map(|arg| String::from_utf8_lossy(arg).into_owned()).collect();
        Ok((path.join(" "), rest.join(" ")))
    }

    #[test]
    fn commands_are_found_between_flags_and_by_prefix() {
        let check = |line: &str, path: &str, rest: &str| {
            assert_eq!(look(line), Ok((path.to_owned(), rest.to_owned())), "{line}");
        };
        check("get k", "get", "k");
        check("--endpoints a:1 -w json get k", "get", "--endpoints a:1 -w json k");
        check("--hex get k", "get", "--hex k");
        check("ge k", "get", "k");
        check("compact 5", "compaction", "5");
        check("mem li", "member list", "");
        check("endpoint --cluster status", "endpoint status", "--cluster");
        check("endpoint bogus", "endpoint", "bogus");
        check("--version", "", "--version");
        check("-- put a b", "", "-- put a b");
        check("put get x", "put", "get x");
    }

    #[test]
    fn unknown_commands_come_with_suggestions_in_order() {
        let check = |line: &str, suggestions: &[&'static str]| {
            let expected = FindError::Unknown { word: line.to_owned(), suggestions: suggestions.to_vec() };
            assert_eq!(look(line), Err(expected), "{line}");
        };
        check("bogus", &[]);
        check("nosuchcmd", &[]);
        check("gett", &["get"]);
        check("m", &["move-leader", "member", "make-mirror"]);
        check("e", &["get", "del", "endpoint", "elect"]);
        check("co", &["compaction", "completion"]);
        assert_eq!(look("make-mirror k"), Err(FindError::Unsupported("make-mirror".to_owned())));
        assert_eq!(look("make-mirror x"), Err(FindError::Unsupported("make-mirror".to_owned())));
    }
}

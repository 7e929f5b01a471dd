//! What a changed Procfile means for the processes that there are: who is new, who goes, who changed, and why.
//!
//! ```text
//!  files, flags ─▶ Definition (new) ─┐
//!                                    ├─▶ plan ─▶ Step: start · stop · restart · update · unchanged
//!  slots ────────▶ Standing (old) ───┘
//! ```
//!
//! Pure. A process is the same if its name is; it is restarted if anything that it could notice is different. The ports of
//! other processes, which stand in its environment, too, count only where its command names them: one more line in a Procfile
//! must not restart every member of a cluster.

use std::collections::BTreeMap;
use std::collections::BTreeSet;
use std::fmt;

use serde::Deserialize;
use serde::Serialize;

use crate::supervisor::settings::Settings;
use crate::supervisor::stack::PORT_OF;
use crate::supervisor::stack::port_variable_of;

/// A process as the files say it is to be.
#[derive(Clone, Debug)]
pub struct Definition {
    pub name: String,
    pub command: String,
    /// Beside what we were started with; of a name that stands there twice the later one counts.
    pub environment: Vec<(String, String)>,
    pub settings: Settings,
    /// Of its entry in the files, from 0: decides port and colour.
    pub place: usize,
    pub port: Option<u64>,
}

/// A process as it is.
#[derive(Clone, Debug)]
pub struct Standing {
    pub definition: Definition,
    /// Somebody has stopped it: it is not started because it changed.
    pub is_stopped: bool,
}

/// What is to be done about one process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum StepKind {
    Start,
    Stop,
    Restart,
    /// It changed and stays stopped.
    Update,
    Unchanged,
}

/// One line of a plan.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Step {
    pub name: String,
    pub step: StepKind,
    /// Empty for one that is unchanged.
    pub why: String,
}

impl Step {
    fn new(name: &str, step: StepKind, why: impl Into<String>) -> Step {
        Step { name: name.to_owned(), step, why: why.into() }
    }
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let word = match self.step {
            StepKind::Start => "start",
            StepKind::Stop => "stop",
            StepKind::Restart => "restart",
            StepKind::Update => "update",
            StepKind::Unchanged => "unchanged",
        };
        match self.why.as_str() {
            "" => write!(f, "{word} {}", self.name),
            why => write!(f, "{word} {} ({why})", self.name),
        }
    }
}

/// What makes `old` into `new`: first who goes, then everybody in the order of the files.
pub fn plan(old: &[Standing], new: &[Definition]) -> Vec<Step> {
    let is_kept = |standing: &&Standing| !new.iter().any(|definition| definition.name == standing.definition.name);
    let gone = old.iter().filter(is_kept);
    let mut steps: Vec<Step> = gone
        .map(|standing| Step::new(&standing.definition.name, StepKind::Stop, "no longer in the Procfile"))
        .collect();
    for definition in new {
        let name = definition.name.as_str();
        steps.push(match old.iter().find(|standing| standing.definition.name == name) {
            None => Step::new(name, StepKind::Start, "new in the Procfile"),
            Some(standing) => match (changes(&standing.definition, definition), standing.is_stopped) {
                (why, _) if why.is_empty() => Step::new(name, StepKind::Unchanged, ""),
                (why, true) => Step::new(name, StepKind::Update, format!("{}; it stays stopped", why.join("; "))),
                (why, false) => Step::new(name, StepKind::Restart, why.join("; ")),
            },
        });
    }
    steps
}

/// What a process could notice, in words.
fn changes(old: &Definition, new: &Definition) -> Vec<String> {
    let mut found = Vec::new();
    if old.command != new.command {
        found.push("its command changed".to_owned());
    }
    if old.port != new.port {
        let told = |port: Option<u64>| port.map_or_else(|| "none".to_owned(), |port| port.to_string());
        found.push(format!("its PORT {} becomes {}", told(old.port), told(new.port)));
    }
    let variables = changed_variables(old, new);
    if !variables.is_empty() {
        found.push(format!("its environment changed: {}", variables.join(", ")));
    }
    let (before, after) = (old.settings.facts(), new.settings.facts());
    let differing: Vec<&str> =
        before.iter().zip(&after).filter(|(before, after)| before != after).map(|(before, _)| before.0).collect();
    if !differing.is_empty() {
        found.push(format!("its settings changed: {}", differing.join(", ")));
    }
    found
}

fn changed_variables(old: &Definition, new: &Definition) -> Vec<String> {
    let map =
        |definition: &Definition| -> BTreeMap<String, String> { definition.environment.iter().cloned().collect() };
    let (before, after) = (map(old), map(new));
    let names: BTreeSet<&String> = before.keys().chain(after.keys()).collect();
    let own = port_variable_of(&new.name);
    let hooks = [&new.settings.pre_start, &new.settings.post_stop].into_iter().flatten();
    let commands: Vec<&String> = hooks.chain([&new.command]).collect();
    let is_named = |name: &str| commands.iter().any(|command| command.contains(name));
    let differs = |name: &&String| match before.get(*name) != after.get(*name) {
        // Told as the port.
        _ if *name == "PORT" || **name == own => false,
        true if name.starts_with(PORT_OF) => is_named(name),
        differs => differs,
    };
    names.into_iter().filter(differs).cloned().collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::supervisor::settings;

    /// `name place: command` and, behind `@`, its settings; variables behind `$`.
    fn definition(text: &str) -> Definition {
        let (text, pragma) = text.split_once(" @ ").unwrap_or((text, ""));
        let (text, variables) = text.split_once(" $ ").unwrap_or((text, ""));
        let (head, command) = text.split_once(": ").expect("a colon");
        let (name, place) = head.split_once(' ').expect("a place");
        let place: usize = place.parse().expect("a number");
        let lines = [(1, format!("# @{name} {pragma}"))];
        let mut found = settings::collect("P", &lines, &[name.to_owned()]).expect("settings");
        let pairs = variables.split_whitespace().filter_map(|pair| pair.split_once('='));
        Definition {
            name: name.to_owned(),
            command: command.to_owned(),
            environment: pairs.map(|(key, value)| (key.to_owned(), value.to_owned())).collect(),
            settings: found.remove(name).expect("it is there"),
            place,
            port: Some(5000 + 100 * place as u64),
        }
    }

    fn check(old: &[&str], new: &[&str], expected: &[&str]) {
        let standing = |text: &&str| Standing {
            definition: definition(text.trim_start_matches('!')),
            is_stopped: text.starts_with('!'),
        };
        let old: Vec<Standing> = old.iter().map(standing).collect();
        let new: Vec<Definition> = new.iter().map(|text| definition(text)).collect();
        let told: Vec<String> = plan(&old, &new).iter().map(Step::to_string).collect();
        assert_eq!(told, expected);
    }

    #[test]
    fn who_comes_goes_and_stays_is_told_in_the_order_of_the_files() {
        check(
            &["a 0: x", "b 1: y", "c 2: z"],
            &["c 0: z", "b 1: y", "d 2: w"],
            &[
                "stop a (no longer in the Procfile)",
                "restart c (its PORT 5200 becomes 5000)",
                "unchanged b",
                "start d (new in the Procfile)",
            ],
        );
    }

    #[test]
    fn a_change_is_named() {
        let one = |old: &str, new: &str, expected: &str| check(&[old], &[new], &[expected]);
        one("a 0: x", "a 0: y", "restart a (its command changed)");
        one("a 0: x", "a 0: x @ grace=3s stop=INT", "restart a (its settings changed: stop, grace)");
        one("a 0: x @ ready=log=up", "a 0: x @ ready=log=down", "restart a (its settings changed: ready)");
        one("a 0: x $ A=1 B=1 C=1", "a 0: x $ B=2 C=1 D=1", "restart a (its environment changed: A, B, D)");
        one("a 0: x $ A=1 A=2", "a 0: x $ A=2", "unchanged a");
        one("a 0: x", "a 1: y", "restart a (its command changed; its PORT 5000 becomes 5100)");
        one("!a 0: x", "a 0: y", "update a (its command changed; it stays stopped)");
    }

    #[test]
    fn where_a_setting_stands_and_who_else_has_a_port_change_nobody() {
        let mut moved = definition("a 0: x @ grace=3s");
        moved.settings.line = Some(9);
        let standing = Standing { definition: definition("a 0: x @ grace=3s"), is_stopped: false };
        assert_eq!(plan(&[standing], &[moved])[0].step, StepKind::Unchanged);
        check(&["a 0: x $ QUORATE_PORT_B=1"], &["a 0: x $ QUORATE_PORT_C=1"], &["unchanged a"]);
        check(&["a 0: x $ QUORATE_PORT_A=1"], &["a 0: x $ QUORATE_PORT_A=2"], &["unchanged a"]);
        check(&["a 0: x $ QUORATE_PORT_B=1"], &["a 0: x $ QUORATE_PORT_B=2"], &["unchanged a"]);
        let why = "restart a (its environment changed: QUORATE_PORT_B)";
        let named = "a 0: x -p ${QUORATE_PORT_B} $ QUORATE_PORT_B";
        check(&[&format!("{named}=1")], &[&format!("{named}=2")], &[why]);
    }
}

//! What keys mean, said in one place: for the help line, for the page of help, and to whoever presses one.

use std::fmt;

use nix::sys::signal::Signal;
use unicode_width::UnicodeWidthStr;

use crate::supervisor::control::messages::ProcessStatus;
use crate::supervisor::control::vocabulary::Action;
use crate::supervisor::control::vocabulary::StateName;
use crate::supervisor::links::LinkRequest;

/// What a key asks for beyond the screen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Wish {
    Leave,
    /// Give the terminal back for a while, as Ctrl-Z does.
    Suspend,
    /// Draw everything anew.
    Redraw,
    Act {
        action: Action,
        name: String,
    },
    Link(LinkRequest),
}

impl fmt::Display for Wish {
    /// As the same thing is asked for on the command line.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Wish::Leave => f.write_str("quit"),
            Wish::Suspend => f.write_str("suspend"),
            Wish::Redraw => f.write_str("redraw"),
            Wish::Act { action, name } => {
                let verb = match action {
                    Action::Start => "start",
                    Action::Stop => "stop",
                    Action::Restart { .. } => "restart",
                    Action::Kill { .. } => "kill",
                    Action::Pause { .. } => "pause",
                    Action::Resume => "resume",
                };
                write!(f, "{verb} {name}")
            }
            Wish::Link(request) => write!(f, "{request}"),
        }
    }
}

/// What a letter does to this process.
pub fn wish(letter: char, process: &ProcessStatus) -> Option<Wish> {
    let name = process.view.name.clone();
    let action = match letter {
        's' if is_up(process) => Action::Stop,
        's' => Action::Start,
        'r' => Action::Restart { delay_ms: 0, clean: false },
        'p' if process.view.state == StateName::Paused => Action::Resume,
        'p' => Action::Pause { for_ms: None },
        'x' => Action::Kill { signal: Signal::SIGKILL as i32, leader_only: false, stay_down: false },
        'c' => return Some(Wish::Link(LinkRequest::Partition { sides: vec![vec![name]], silent: false })),
        'h' => return Some(Wish::Link(LinkRequest::Heal { names: Vec::new() })),
        _ => return None,
    };
    Some(Wish::Act { action, name })
}

/// Whether there is something to stop: it runs, or will without being asked again.
fn is_up(process: &ProcessStatus) -> bool {
    let view = &process.view;
    view.group.is_some() || matches!(view.state, StateName::Backoff | StateName::Pending) && view.wanted
}

/// Keys and what they do to the chosen process now, as many as there is room for.
pub fn help_line(process: Option<&ProcessStatus>, members: bool, room: usize) -> Vec<(&'static str, &'static str)> {
    let pause = match process {
        Some(process) if process.view.state == StateName::Paused => "resume",
        _ => "pause",
    };
    let stop = if process.is_none_or(is_up) { "stop" } else { "start" };
    let mut keys = vec![("q", "quit"), ("?", "keys"), ("↑↓", "choose"), ("p", pause), ("x", "kill"), ("r", "restart")];
    keys.push(("s", stop));
    if members {
        keys.extend([("c", "cut off"), ("h", "heal")]);
    }
    keys.extend([("w", "wrap"), ("Enter", "view"), ("PgUp", "look back")]);
    let mut used = 0;
    keys.into_iter()
        .take_while(|(key, what)| {
            // A blank in front of each, and one between the key and what it does.
            used += 2 + key.width() + what.width();
            used <= room
        })
        .collect()
}

/// All keys, for the page of help.
pub const ALL: [(&str, &str); 15] = [
    ("↑ ↓ j k", "choose a process"),
    ("p", "pause it, or let it go on"),
    ("s", "stop it, or start it"),
    ("r", "restart it"),
    ("x", "kill it: SIGKILL to all of its group"),
    ("c", "cut it off from all other members, instead of whoever was cut off"),
    ("h", "heal: let everything pass again between all members"),
    ("Enter", "its log alone, the processes alone, both"),
    ("w", "long lines go on below, or are cut"),
    ("v", "logs in JSON are readable, or as they were printed"),
    ("PgUp PgDn", "look back in the log, and on"),
    ("Home End", "its oldest line that is at hand; follow the newest"),
    ("Ctrl-L", "draw everything anew"),
    ("Ctrl-Z", "back to the shell for a while"),
    ("q Ctrl-C", "quit; the supervisor and its processes go on"),
];

#[cfg(test)]
mod tests {
    use super::*;
    use crate::supervisor::native::table::sample;

    #[test]
    fn letters_do_what_the_state_allows() {
        let said = |letter, state, group: Option<i32>, wanted| {
            let mut process = sample("web", state);
            (process.view.group, process.view.wanted) = (group, wanted);
            wish(letter, &process).map(|wish| wish.to_string())
        };
        let up = |letter| said(letter, StateName::Running, Some(7), true);
        assert_eq!(up('p').as_deref(), Some("pause web"));
        assert_eq!(up('s').as_deref(), Some("stop web"));
        assert_eq!(up('x').as_deref(), Some("kill web"));
        assert_eq!(up('r').as_deref(), Some("restart web"));
        assert_eq!(up('c').as_deref(), Some("partition web"));
        assert_eq!(up('h').as_deref(), Some("heal"));
        assert_eq!(up('z'), None);
        assert_eq!(said('p', StateName::Paused, Some(7), true).as_deref(), Some("resume web"));
        assert_eq!(said('s', StateName::Exited, None, false).as_deref(), Some("start web"));
        assert_eq!(said('s', StateName::Failed, None, true).as_deref(), Some("start web"));
        assert_eq!(said('s', StateName::Backoff, None, true).as_deref(), Some("stop web"));
        let kill = Action::Kill { signal: 9, leader_only: false, stay_down: false };
        assert_eq!(wish('x', &sample("a", StateName::Ready)), Some(Wish::Act { action: kill, name: "a".to_owned() }));
    }

    #[test]
    fn the_line_of_help_fits() {
        let text = |process: Option<&ProcessStatus>, members, room| {
            let keys = help_line(process, members, room).into_iter();
            keys.map(|(key, what)| format!(" {key} {what}")).collect::<String>()
        };
        assert_eq!(text(None, false, 20), " q quit ? keys");
        let mut paused = sample("a", StateName::Paused);
        paused.view.group = Some(7);
        let eighty = text(Some(&paused), true, 80);
        assert!(eighty.width() <= 80, "{eighty}");
        for part in ["q quit", "? keys", "p resume", "x kill", "r restart", "s stop", "c cut off", "h heal"] {
            assert!(eighty.contains(part), "{part} in {eighty}");
        }
        let exited = sample("a", StateName::Exited);
        let whole = text(Some(&exited), false, 200);
        assert!(whole.contains("s start") && !whole.contains("heal") && whole.contains("PgUp"), "{whole}");
        assert_eq!(text(None, true, 0), "");
    }
}

//! Who waits for whom: `after=` as a graph without circles.
//!
//! ```text
//!  verdict(process):  Free ─ start it      Waits(why) ─ not yet      Never(why) ─ what it needs has failed
//! ```

use crate::supervisor::process::Down;
use crate::supervisor::process::Health;
use crate::supervisor::process::Process;
use crate::supervisor::process::State;
use crate::supervisor::settings::Condition;
use crate::supervisor::settings::Settings;

/// An edge of the graph.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Edge {
    on: usize,
    condition: Condition,
}

/// The edges of every process, by its index.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Dependencies(Vec<Vec<Edge>>);

/// Whether a process may start.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    Free,
    Waits(String),
    Never(String),
}

impl Dependencies {
    /// Checks that everything that is waited for is there, and that nobody waits for himself in the end.
    pub fn of(processes: &[(&str, &Settings)]) -> Result<Dependencies, String> {
        let place = |settings: &Settings| settings.line.map(|line| format!("line {line}: ")).unwrap_or_default();
        let mut edges = Vec::new();
        for (name, settings) in processes {
            let edge = |after: &crate::supervisor::settings::After| {
                let on = processes.iter().position(|(other, _)| *other == after.name);
                let on = on.ok_or_else(|| {
                    format!("{}{name} waits for {}, which is not among the processes", place(settings), after.name)
                })?;
                let implied = if processes[on].1.ready.is_some() { Condition::Ready } else { Condition::Started };
                Ok::<Edge, String>(Edge { on, condition: after.condition.unwrap_or(implied) })
            };
            edges.push(settings.after.iter().map(edge).collect::<Result<Vec<_>, _>>()?);
        }
        let found = Dependencies(edges);
        if let Some(circle) = found.circle() {
            let names: Vec<&str> = circle.iter().map(|index| processes[*index].0).collect();
            let line = place(processes[circle[0]].1);
            return Err(format!("{line}{} wait for each other", names.join(" → ")));
        }
        Ok(found)
    }

    /// The first circle, with its first member again at the end.
    fn circle(&self) -> Option<Vec<usize>> {
        let mut done = vec![false; self.0.len()];
        (0..self.0.len()).find_map(|start| {
            // A path and, for each of its members, the next edge to follow.
            let mut path: Vec<(usize, usize)> = vec![(start, 0)];
            while let Some((index, next)) = path.last_mut() {
                let index = *index;
                let Some(edge) = self.0[index].get(*next).filter(|_| !done[index]) else {
                    done[index] = true;
                    path.pop();
                    continue;
                };
                *next += 1;
                if let Some(at) = path.iter().position(|(known, _)| *known == edge.on) {
                    return Some(path[at..].iter().map(|(known, _)| *known).chain([edge.on]).collect());
                }
                path.push((edge.on, 0));
            }
            None
        })
    }

    /// Whether this process may start, as the others are now.
    pub fn verdict<'a>(&self, index: usize, look: impl Fn(usize) -> &'a Process) -> Verdict {
        let mut waits = None;
        for edge in &self.0[index] {
            match judge(look(edge.on), edge.condition) {
                Verdict::Free => {}
                Verdict::Never(why) => return Verdict::Never(why),
                Verdict::Waits(why) => waits = waits.or(Some(why)),
            }
        }
        waits.map_or(Verdict::Free, Verdict::Waits)
    }

    /// Those that wait for this one.
    pub fn dependents(&self, index: usize) -> impl Iterator<Item = usize> {
        let waits = move |edges: &Vec<Edge>| edges.iter().any(|edge| edge.on == index);
        self.0.iter().enumerate().filter(move |(_, edges)| waits(edges)).map(|(other, _)| other)
    }
}

fn judge(process: &Process, condition: Condition) -> Verdict {
    let name = &process.name;
    let wanted = match condition {
        Condition::Started => "started",
        Condition::Ready => "ready",
        Condition::ExitedOk => "done",
    };
    let waits = Verdict::Waits(format!("waits for {name} to be {wanted}"));
    let never = |how: &str| Verdict::Never(format!("{name} {how}"));
    match (process.state(), condition) {
        (State::Down(Down::Failed), _) => never("has failed"),
        (State::Down(Down::Flapping), _) => never("is flapping"),
        (State::Down(Down::Disabled), _) => never("is not started"),
        (State::Up(_), Condition::Started) | (State::Up(Health::Ready), Condition::Ready) => Verdict::Free,
        (State::Down(Down::Exited) | State::Draining(_), Condition::Started) => Verdict::Free,
        (State::Down(Down::Exited), Condition::ExitedOk) => Verdict::Free,
        (State::Down(Down::Exited), Condition::Ready) => never("ended without being ready"),
        _ => waits,
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::time::Instant;

    use super::*;
    use crate::supervisor::process::Exit;
    use crate::supervisor::process::Input;
    use crate::supervisor::process::Moment;
    use crate::supervisor::settings::collect;
    use crate::supervisor::settings::pragma_lines;

    const NAMES: [&str; 3] = ["a", "b", "c"];

    fn settings(text: &str) -> BTreeMap<String, Settings> {
        collect("Procfile", &pragma_lines(text), &NAMES.map(str::to_owned)).unwrap()
    }

    fn graph(text: &str) -> Result<Dependencies, String> {
        let settings = settings(text);
        Dependencies::of(&NAMES.map(|name| (name, &settings[name])))
    }

    #[test]
    fn circles_and_strangers_are_refused_with_their_line() {
        let check = |text: &str, expected: &str| assert_eq!(graph(text).unwrap_err(), expected);
        check("# @a after=a", "line 1: a → a wait for each other");
        check("# @a after=b\n# @b after=c\n# @c after=a", "line 1: a → b → c → a wait for each other");
        check("# @a after=b\n\n# @b after=c\n# @c after=b", "line 3: b → c → b wait for each other");
        check("\n# @a after=x:ready", "line 2: a waits for x, which is not among the processes");
        let diamond = graph("# @a after=b,c\n# @b after=c").expect("no circle");
        assert_eq!(diamond.dependents(2).collect::<Vec<_>>(), [0, 1]);
    }

    /// `b` after these inputs, and what `a`, which waits for it, is told.
    fn check(pragmas: &str, inputs: &[Input], expected: Verdict) {
        let settings = settings(pragmas);
        let graph = graph(pragmas).expect("no circle");
        let now = Moment { at: Instant::now(), dice: 0 };
        let mut process = Process::new("b".to_owned(), None, &settings["b"], now.at);
        for input in inputs {
            process.step(process.generation, now, input.clone());
        }
        assert_eq!(graph.verdict(0, |_| &process), expected, "{pragmas} {inputs:?}");
    }

    #[test]
    fn conditions_hold_as_they_are_said() {
        let up = [Input::Start, Input::Released, Input::Spawned];
        let with = |more: &[Input]| [&up, more].concat();
        let ends = |code| with(&[Input::LeaderExited(Exit::Code(code)), Input::Emptied]);
        let waits = |how: &str| Verdict::Waits(format!("waits for b to be {how}"));
        let never = |how: &str| Verdict::Never(format!("b {how}"));
        check("# @a after=b", &[], waits("started"));
        check("# @a after=b", &up, Verdict::Free);
        check("# @a after=b", &ends(0), Verdict::Free);
        check("# @a after=b", &ends(1), never("has failed"));
        let probed = "# @a after=b\n# @b ready=sd-notify";
        check(probed, &up, waits("ready"));
        check(probed, &with(&[Input::ProbePassed]), Verdict::Free);
        check(probed, &with(&[Input::ProbePassed, Input::ProbeFailed(String::new())]), waits("ready"));
        check("# @a after=b:ready", &up, waits("ready"));
        check("# @a after=b:ready", &ends(0), never("ended without being ready"));
        check("# @a after=b:exited-ok", &up, waits("done"));
        check("# @a after=b:exited-ok", &ends(0), Verdict::Free);
        check("# @a after=b:exited-ok", &ends(2), never("has failed"));
        check("# @a after=b:exited-ok\n# @b success=2", &ends(2), Verdict::Free);
        check("# @a after=b\n# @b restart=always", &ends(0), waits("started"));
        check("# @a after=b\n# @b restart=always restart-max=0", &ends(0), never("is flapping"));
    }
}

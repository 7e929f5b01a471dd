//! The figures of all rounds, as a table for people and as JSON for scripts.

use std::fmt::Write;
use std::path::PathBuf;

use clap::ValueEnum;
use serde_json::Value;
use serde_json::json;

use super::OURS;
use super::THEIRS;
use super::case::Case;
use super::case::Goal;
use super::case::Measure;
use super::rounds::Figure;
use super::rounds::Scale;
use super::stats::Ratio;
use super::stats::median;
use crate::bench::floors::Floor;
use crate::bench::report::number;

/// One of the two that are compared.
#[derive(Clone, Debug)]
pub struct Program {
    pub path: PathBuf,
    /// As the server tells it.
    pub version: String,
}

/// Everything that was found.
pub struct Table {
    scale: Scale,
    rounds: u32,
    programs: Vec<Program>,
    cases: Vec<Case>,
    pub floors: Vec<(Case, Vec<Floor>)>,
    rows: Vec<Row>,
}

/// One figure of one case, by side and round.
struct Row {
    case: Case,
    measure: Measure,
    values: [Vec<f64>; 2],
}

impl Row {
    fn ratio(&self) -> Option<Ratio> {
        Ratio::of(&self.values[OURS], &self.values[THEIRS])
    }
}

impl Table {
    pub fn new(scale: Scale, rounds: u32, programs: Vec<Program>, cases: &[Case]) -> Table {
        assert!(programs.len() == 2, "two are compared, not {}", programs.len());
        Table { scale, rounds, programs, cases: cases.to_vec(), floors: Vec::new(), rows: Vec::new() }
    }

    /// Takes the figures of one case on one side in one round.
    pub fn add(&mut self, case: Case, side: usize, figures: &[Figure]) {
        for (measure, value) in figures {
            let known = self.rows.iter().position(|row| (row.case, row.measure) == (case, *measure));
            let at = known.unwrap_or_else(|| {
                self.rows.push(Row { case, measure: *measure, values: [Vec::new(), Vec::new()] });
                self.rows.len() - 1
            });
            self.rows[at].values[side].push(*value);
        }
    }

    /// What is wished for; nothing when the work was cut short.
    fn goal(&self, row: &Row) -> Option<Goal> {
        if self.scale.quick {
            return None;
        }
        row.case.goal(row.measure, self.scale.members, self.scale.key_count())
    }

    pub fn text(&self) -> String {
        let mut text = String::new();
        let say = |text: &mut String, line: String| writeln!(text, "{}", line.trim_end()).expect("a String grows");
        for (name, program) in ["ours", "theirs"].iter().zip(&self.programs) {
            say(&mut text, format!("{name:<7} {} (version {})", program.path.display(), program.version));
        }
        let members =
            if self.scale.members == 1 { "1 member".to_owned() } else { format!("{} members", self.scale.members) };
        let rounds = if self.rounds == 1 { "1 round".to_owned() } else { format!("{} rounds", self.rounds) };
        say(
            &mut text,
            format!("{members}, medians of {rounds}, values of 256 bytes; CPU and memory of all members together"),
        );
        say(&mut text, "spread: our lowest by their highest to our highest by their lowest".to_owned());
        if self.scale.quick {
            say(&mut text, "quick: a fiftieth of the work; these figures claim nothing".to_owned());
        }
        for (case, floors) in &self.floors {
            for floor in floors {
                let title = case.title(self.scale.key_count());
                say(&mut text, format!("floor, {title}, {}: {}", floor.service, floor.text()));
            }
        }
        let mut lines = vec![["case", "figure", "ours", "theirs", "ratio", "spread", "goal"].map(str::to_owned)];
        let mut last = None;
        for row in self.ordered() {
            let title = if last == Some(row.case) { String::new() } else { row.case.title(self.scale.key_count()) };
            last = Some(row.case);
            lines.push(self.cells(row, title));
        }
        let widths: Vec<usize> =
            (0..7).map(|column| lines.iter().map(|cells| cells[column].chars().count()).max().unwrap_or(0)).collect();
        for cells in &lines {
            let padded: Vec<String> = cells
                .iter()
                .zip(&widths)
                .enumerate()
                // Numbers stand at the right of their column.
                .map(
                    |(at, (cell, width))| {
                        if (2..5).contains(&at) { format!("{cell:>width$}") } else { format!("{cell:<width$}") }
                    },
                )
                .collect();
            say(&mut text, padded.join("  "));
        }
        text
    }

    fn cells(&self, row: &Row, title: String) -> [String; 7] {
        let figure = row.measure.title().to_owned();
        let middle = |side: usize| median(&row.values[side]).map_or_else(|| "-".to_owned(), number);
        let (ratio, spread) = match row.ratio() {
            Some(found) => (format!("{:.2}", found.ratio), format!("{:.2}-{:.2}", found.low, found.high)),
            None => ("-".to_owned(), "-".to_owned()),
        };
        let goal = match (self.goal(row), row.ratio()) {
            (Some(goal), Some(found)) => {
                format!("{} {}", goal.text(), if goal.is_met(found.ours, found.ratio) { "met" } else { "missed" })
            }
            _ => String::new(),
        };
        [title, figure, middle(OURS), middle(THEIRS), ratio, spread, goal]
    }

    /// In the order of the cases, whatever came first.
    fn ordered(&self) -> impl Iterator<Item = &Row> {
        self.cases.iter().flat_map(|case| self.rows.iter().filter(move |row| row.case == *case))
    }

    pub fn json(&self) -> String {
        let figures: Vec<Value> = self.ordered().map(|row| self.figure(row)).collect();
        let program = |side: usize| {
            let Program { path, version } = &self.programs[side];
            json!({ "path": path, "version": version })
        };
        let floors: Vec<Value> =
            self.floors.iter().map(|(case, floors)| json!({ "case": name(*case), "floors": floors })).collect();
        let whole = json!({
            "ours": program(OURS),
            "theirs": program(THEIRS),
            "members": self.scale.members,
            "rounds": self.rounds,
            "keys": self.scale.key_count(),
            "quick": self.scale.quick,
            "floors": floors,
            "figures": figures,
        });
        format!("{whole:#}\n")
    }

    fn figure(&self, row: &Row) -> Value {
        let goal = self.goal(row);
        json!({
            "case": name(row.case),
            "figure": row.measure.title(),
            "rounds_ours": row.values[OURS],
            "rounds_theirs": row.values[THEIRS],
            "median": row.ratio(),
            "goal": goal,
            "met": goal.zip(row.ratio()).map(|(goal, found)| goal.is_met(found.ours, found.ratio)),
        })
    }
}

/// A case as `--only` names it.
fn name(case: Case) -> String {
    case.to_possible_value().map(|value| value.get_name().to_owned()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table(quick: bool) -> Table {
        let program = |version: &str| Program { path: "/bin/etcd".into(), version: version.to_owned() };
        let scale = Scale { members: 1, keys: 100_000, quick };
        let mut table = Table::new(scale, 2, vec![program("3.7.1"), program("3.5.1")], &[Case::Idle, Case::Put1]);
        // The order in which cases are measured changes nothing in the table.
        table.add(Case::Put1, THEIRS, &[(Measure::P50, 1.0)]);
        table.add(Case::Put1, OURS, &[(Measure::P50, 0.5)]);
        table.add(Case::Idle, OURS, &[(Measure::Memory, 30.0), (Measure::CpuShare, 0.2)]);
        table.add(Case::Idle, THEIRS, &[(Measure::Memory, 40.0), (Measure::CpuShare, 0.0)]);
        table.add(Case::Put1, OURS, &[(Measure::P50, 0.7)]);
        table.add(Case::Put1, THEIRS, &[(Measure::P50, 2.0)]);
        table
    }

    #[test]
    fn people_read_this() {
        let expected = "\
ours    /bin/etcd (version 3.7.1)
theirs  /bin/etcd (version 3.5.1)
1 member, medians of 2 rounds, values of 256 bytes; CPU and memory of all members together
spread: our lowest by their highest to our highest by their lowest
case           figure             ours  theirs  ratio  spread     goal
idle           memory, MB         30.0    40.0   0.75  0.75-0.75  ours ≤ 20 missed
               CPU, % of a core  0.200       0      -  -
put, 1 client  p50, ms           0.600    1.50   0.40  0.25-0.70  ratio ≤ 0.7 met
";
        assert_eq!(table(false).text(), expected);
    }

    #[test]
    fn scripts_read_the_same_and_quick_runs_have_no_goals() {
        let told: Value = serde_json::from_str(&table(false).json()).expect("JSON");
        assert_eq!(told["figures"][2]["case"], "put-1");
        assert_eq!(told["figures"][2]["median"]["ratio"], 0.4);
        assert_eq!(told["figures"][2]["met"], true);
        assert_eq!(told["figures"][2]["rounds_ours"], json!([0.5, 0.7]));
        let quick: Value = serde_json::from_str(&table(true).json()).expect("JSON");
        assert_eq!(quick["figures"][2]["goal"], Value::Null);
        assert!(!table(true).text().contains("met"));
    }
}

//! The figures of all rounds, as a table for people and as JSON for scripts.

use std::ops::Range;
use std::path::PathBuf;

use clap::ValueEnum;
use serde_json::Value;
use serde_json::json;

use super::OURS;
use super::THEIRS;
use super::case::Case;
use super::case::Goal;
use super::case::Measure;
use super::case::Trial;
use super::machine::Machine;
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
    machine: Machine,
    trials: Vec<Trial>,
    pub floors: Vec<(Trial, Vec<Floor>)>,
    rows: Vec<Row>,
}

/// One figure of one trial, by side and round.
struct Row {
    trial: Trial,
    measure: Measure,
    values: [Vec<f64>; 2],
}

impl Row {
    fn ratio(&self) -> Option<Ratio> {
        Ratio::of(&self.values[OURS], &self.values[THEIRS])
    }
}

/// A line of the table: case, figure, ours, theirs, ratio, spread, goal.
pub type Cells = [String; 7];

/// What stands above them.
pub const HEADINGS: [&str; 7] = ["case", "figure", "ours", "theirs", "ratio", "spread", "goal"];

/// The columns that hold numbers.
pub const NUMBERS: Range<usize> = 2..5;

impl Table {
    pub fn new(scale: Scale, rounds: u32, programs: Vec<Program>, trials: &[Trial], machine: Machine) -> Table {
        assert!(programs.len() == 2, "two are compared, not {}", programs.len());
        Table { scale, rounds, programs, machine, trials: trials.to_vec(), floors: Vec::new(), rows: Vec::new() }
    }

    pub fn trials(&self) -> &[Trial] {
        &self.trials
    }

    /// Takes the figures of one trial on one side in one round.
    pub fn add(&mut self, trial: Trial, side: usize, figures: &[Figure]) {
        for (measure, value) in figures {
            let known = self.rows.iter().position(|row| (row.trial, row.measure) == (trial, *measure));
            let at = known.unwrap_or_else(|| {
                self.rows.push(Row { trial, measure: *measure, values: [Vec::new(), Vec::new()] });
                self.rows.len() - 1
            });
            self.rows[at].values[side].push(*value);
        }
    }

    /// What is wished for; nothing when the work was cut short.
    fn goals(&self, row: &Row) -> &'static [Goal] {
        if self.scale.quick { &[] } else { row.trial.goals(row.measure) }
    }

    /// What was measured, on what, and how to read it.
    pub fn preamble(&self) -> Vec<String> {
        let mut lines = Vec::new();
        for (name, program) in ["ours", "theirs"].iter().zip(&self.programs) {
            lines.push(format!("{name:<7} {} (version {})", program.path.display(), program.version));
        }
        lines.push(format!("machine {}", self.machine));
        let rounds = if self.rounds == 1 { "1 round".to_owned() } else { format!("{} rounds", self.rounds) };
        lines.push(format!("medians of {rounds}, values of 256 bytes; CPU and memory of all members together"));
        lines.push("spread: our lowest by their highest to our highest by their lowest".to_owned());
        if self.scale.quick {
            lines.push("quick: a fiftieth of the work; these figures claim nothing".to_owned());
        }
        for (trial, floors) in &self.floors {
            let title = self.scale.title(*trial);
            lines.extend(floors.iter().map(|floor| format!("floor, {title}, {}: {}", floor.service, floor.text())));
        }
        lines
    }

    /// A line for every figure, in the order of the trials, whatever came first; a case is named once.
    pub fn lines(&self) -> Vec<Cells> {
        let mut last = None;
        let title_once = |row: &Row| match last.replace(row.trial) == Some(row.trial) {
            true => String::new(),
            false => self.scale.title(row.trial),
        };
        let titles: Vec<String> = self.ordered().map(title_once).collect();
        self.ordered().zip(titles).map(|(row, title)| self.cells(row, title)).collect()
    }

    pub fn text(&self) -> String {
        let mut text = self.preamble().join("\n");
        text.push('\n');
        let mut lines = self.lines();
        lines.insert(0, HEADINGS.map(str::to_owned));
        let widths: Vec<usize> =
            (0..7).map(|column| lines.iter().map(|cells| cells[column].chars().count()).max().unwrap_or(0)).collect();
        for cells in &lines {
            let pad = |(at, (cell, width)): (usize, (&String, &usize))| match NUMBERS.contains(&at) {
                true => format!("{cell:>width$}"),
                false => format!("{cell:<width$}"),
            };
            let padded: Vec<String> = cells.iter().zip(&widths).enumerate().map(pad).collect();
            text.push_str(padded.join("  ").trim_end());
            text.push('\n');
        }
        text
    }

    fn cells(&self, row: &Row, title: String) -> Cells {
        let figure = row.measure.title().to_owned();
        let middle = |side: usize| median(&row.values[side]).map_or_else(|| "-".to_owned(), number);
        let (ratio, spread) = match row.ratio() {
            Some(found) => (format!("{:.2}", found.ratio), format!("{:.2}-{:.2}", found.low, found.high)),
            None => ("-".to_owned(), "-".to_owned()),
        };
        let verdict = |(goal, met): (Goal, bool)| format!("{} {}", goal.text(), if met { "met" } else { "missed" });
        let goals: Vec<String> = self.verdicts(row).into_iter().map(verdict).collect();
        [title, figure, middle(OURS), middle(THEIRS), ratio, spread, goals.join(", ")]
    }

    /// Each goal of a figure and whether it is met; nothing where a figure is missing.
    fn verdicts(&self, row: &Row) -> Vec<(Goal, bool)> {
        let judge = |goal: &Goal| {
            let met = match goal {
                // Needs no other side: theirs may be zero.
                Goal::OursAtMost(_) => goal.is_met(median(&row.values[OURS])?, 1.0),
                Goal::RatioAtMost(_) | Goal::RatioAtLeast(_) => {
                    let found = row.ratio()?;
                    goal.is_met(found.ours, found.ratio)
                }
            };
            Some((*goal, met))
        };
        self.goals(row).iter().filter_map(judge).collect()
    }

    fn ordered(&self) -> impl Iterator<Item = &Row> {
        self.trials.iter().flat_map(|trial| self.rows.iter().filter(move |row| row.trial == *trial))
    }

    pub fn json(&self) -> String {
        let cases: Vec<Value> = self.trials.iter().map(|trial| self.case(*trial)).collect();
        let program = |side: usize| {
            let Program { path, version } = &self.programs[side];
            json!({ "path": path, "version": version })
        };
        let whole = json!({
            "ours": program(OURS),
            "theirs": program(THEIRS),
            "machine": self.machine,
            "rounds": self.rounds,
            "quick": self.scale.quick,
            "cases": cases,
        });
        format!("{whole:#}\n")
    }

    fn case(&self, trial: Trial) -> Value {
        let floors = self.floors.iter().filter(|(of, _)| *of == trial).flat_map(|(_, floors)| floors);
        let figures: Vec<Value> =
            self.rows.iter().filter(|row| row.trial == trial).map(|row| self.figure(row)).collect();
        json!({
            "case": name(trial.case),
            "members": trial.members,
            "requests": self.scale.load(trial.case).total,
            "floors": floors.collect::<Vec<&Floor>>(),
            "figures": figures,
        })
    }

    fn figure(&self, row: &Row) -> Value {
        let goals: Vec<Value> =
            self.verdicts(row).into_iter().map(|(goal, met)| json!({ "goal": goal, "met": met })).collect();
        json!({
            "figure": row.measure.title(),
            "rounds_ours": row.values[OURS],
            "rounds_theirs": row.values[THEIRS],
            "median": row.ratio(),
            "goals": goals,
        })
    }
}

/// A case as `--cases` names it.
fn name(case: Case) -> String {
    case.to_possible_value().map(|value| value.get_name().to_owned()).unwrap_or_default()
}

#[cfg(test)]
pub mod tests {
    use super::*;

    pub fn table(quick: bool) -> Table {
        let program = |version: &str| Program { path: "/bin/etcd".into(), version: version.to_owned() };
        let [idle, put, many] = [Case::Idle, Case::Put1, Case::Keys1m].map(|case| Trial { case, members: 1 });
        let programs = vec![program("3.7.1"), program("3.5.1")];
        let machine = Machine {
            cores: 2,
            processor: "P".to_owned(),
            memory_bytes: 8 << 30,
            kernel: "Linux 6.1".to_owned(),
            disk: "ext4 (/dev/vda)".to_owned(),
        };
        let mut table = Table::new(Scale { quick }, 2, programs, &[idle, put, many], machine);
        // The order in which cases are measured changes nothing in the table.
        table.add(put, THEIRS, &[(Measure::P50, 1.0)]);
        table.add(put, OURS, &[(Measure::P50, 0.5)]);
        table.add(idle, OURS, &[(Measure::Memory, 30.0), (Measure::CpuShare, 0.2)]);
        table.add(idle, THEIRS, &[(Measure::Memory, 40.0), (Measure::CpuShare, 0.0)]);
        table.add(put, OURS, &[(Measure::P50, 0.7)]);
        table.add(put, THEIRS, &[(Measure::P50, 2.0)]);
        table.add(many, OURS, &[(Measure::Restart, 2.0)]);
        table.add(many, THEIRS, &[(Measure::Restart, 5.0)]);
        table
    }

    #[test]
    fn people_read_this() {
        let expected = "\
ours    /bin/etcd (version 3.7.1)
theirs  /bin/etcd (version 3.5.1)
machine 2 cores (P), 8.6 GB, Linux 6.1, data on ext4 (/dev/vda)
medians of 2 rounds, values of 256 bytes; CPU and memory of all members together
spread: our lowest by their highest to our highest by their lowest
case           figure                     ours  theirs  ratio  spread     goal
idle           memory, MB                 30.0    40.0   0.75  0.75-0.75  ours ≤ 20 missed
               CPU, % of a core          0.200       0      -  -          ours ≤ 1 met
put, 1 client  p50, ms                   0.600    1.50   0.40  0.25-0.70  ratio ≤ 0.7 met
1000000 keys   kill -9 to first read, s   2.00    5.00   0.40  0.40-0.40  ours ≤ 1.5 missed, ratio ≤ 0.5 met
";
        assert_eq!(table(false).text(), expected);
    }

    #[test]
    fn scripts_read_the_same_and_quick_runs_have_no_goals() {
        let told: Value = serde_json::from_str(&table(false).json()).expect("JSON");
        assert_eq!(told["cases"][1]["case"], "put-1");
        let figure = &told["cases"][1]["figures"][0];
        assert_eq!(figure["median"]["ratio"], 0.4);
        assert_eq!(figure["goals"], json!([{ "goal": { "ratio_at_most": 0.7 }, "met": true }]));
        assert_eq!(figure["rounds_ours"], json!([0.5, 0.7]));
        assert_eq!(told["machine"]["cores"], 2);
        let quick: Value = serde_json::from_str(&table(true).json()).expect("JSON");
        assert_eq!(quick["cases"][1]["figures"][0]["goals"], json!([]));
        assert!(!table(true).text().contains(" met"));
    }
}

//! Runs etcdctl's commands against a cluster and compares what they print with what was recorded.
//!
//! A transcript of the real etcdctl 3.7.1 (`shared/transcripts`) is parsed into steps; a `Replayer` runs them against a
//! cluster and lists what differs. Names that the running cluster has in place of the recorded ones (addresses, ids) are
//! put back; numbers that vary from run to run (raft terms and indexes, sizes, durations) are masked on both sides;
//! everything else must be equal. A caller that kills members in between runs the slices of steps before and after.

use std::collections::BTreeSet;
use std::io::Write;
use std::path::Path;
use std::path::PathBuf;
use std::process::Command;
use std::process::Stdio;

/// A command of a transcript and what it did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Step {
    /// Line of the file, from 1.
    pub line: usize,
    pub environment: Vec<(String, String)>,
    /// Program and arguments.
    pub words: Vec<String>,
    pub input: String,
    pub out: Vec<String>,
    pub err: Vec<String>,
    pub code: i32,
}

/// What a replay found.
#[derive(Debug, Default)]
pub struct Outcome {
    pub equal: usize,
    /// Steps that were left out, with their reasons.
    pub skipped: Vec<String>,
    /// A description for each step that printed something else.
    pub different: Vec<String>,
}

/// Runs steps against a cluster.
pub struct Replayer {
    program: PathBuf,
    /// Text of the steps and what stands for it in the running cluster.
    names: Vec<(String, String)>,
    /// Whether it is chance who leads.
    pub leader_varies: bool,
}

/// Marks that stand in a transcript for text that was left out.
const RETRY_MARK: &str = "(a JSON log line of the client: retrying of unary invoker failed)";
const HELP_MARK: &str = "(help text of the command)";

/// Reads a transcript.
pub fn parse(text: &str) -> Vec<Step> {
    let mut steps: Vec<Step> = Vec::new();
    let mut inputs: Vec<&str> = Vec::new();
    let mut lines = text.lines().enumerate();
    while let Some((at, line)) = lines.next() {
        let (mark, rest) = line.split_at(line.len().min(2));
        match (mark, steps.last_mut()) {
            ("$ ", _) => {
                let mut command = rest.to_owned();
                // A quoted argument may run over several lines.
                while split_command(&command).is_none() {
                    let Some((_, more)) = lines.next() else { break };
                    command.push('\n');
                    command.push_str(more);
                }
                steps.push(step(at + 1, &command));
                inputs.clear();
            }
            ("< ", Some(step)) => {
                inputs.push(rest);
                step.input = inputs.join("\n");
            }
            ("> ", Some(step)) => step.out.push(rest.to_owned()),
            ("! ", Some(step)) => step.err.push(rest.to_owned()),
            ("= ", Some(step)) => step.code = rest.parse().expect("an exit code is a number"),
            _ => {}
        }
    }
    steps
}

fn step(line: usize, command: &str) -> Step {
    let mut words = split_command(command).expect("quotes are closed");
    let is_variable = |word: &String| word.split_once('=').is_some_and(|(name, _)| name.starts_with("ETCDCTL_"));
    let variables = words.iter().take_while(|word| is_variable(word)).count();
    let environment = words
        .drain(..variables)
        .filter_map(|word| word.split_once('=').map(|(name, value)| (name.to_owned(), value.to_owned())));
    let environment = environment.collect();
    Step { line, environment, words, ..Step::default() }
}

/// Splits a command line as a shell does; `None` while a quote is open.
fn split_command(text: &str) -> Option<Vec<String>> {
    let mut words = Vec::new();
    let mut word: Option<String> = None;
    let mut quote = None;
    for at in text.chars() {
        match quote {
            Some(open) if at == open => quote = None,
            Some(_) => word.get_or_insert_default().push(at),
            None if at == '\'' || at == '"' => {
                quote = Some(at);
                word.get_or_insert_default();
            }
            None if at == ' ' => words.extend(word.take()),
            None => word.get_or_insert_default().push(at),
        }
    }
    words.extend(word);
    quote.is_none().then_some(words)
}

impl Step {
    /// The words that are neither the program nor flags before the command.
    fn command(&self) -> Vec<&str> {
        let mut rest = self.words[1..].iter().map(String::as_str);
        let mut words = Vec::new();
        while let Some(word) = rest.next() {
            match word {
                "--endpoints" | "-w" | "--command-timeout" | "--dial-timeout" if words.is_empty() => {
                    rest.next();
                }
                _ if word.starts_with('-') && words.is_empty() => {}
                _ => words.push(word),
            }
        }
        words
    }

    fn has(&self, word: &str) -> bool {
        self.words.iter().any(|given| given == word)
    }

    /// Whether any of several members may have answered.
    fn asks_anyone(&self) -> bool {
        self.command().first() != Some(&"endpoint") && self.words.iter().any(|word| word.contains(','))
    }

    /// Command, output and errors as one text.
    fn text(&self) -> String {
        format!("{}\n{}\n{}", self.words.join(" "), self.out.join("\n"), self.err.join("\n"))
    }
}

impl Replayer {
    /// `program` is started with each step's arguments. `names` pairs texts of the steps with those of the cluster.
    pub fn new(program: &Path, names: &[(String, String)]) -> Replayer {
        Replayer { program: program.to_owned(), names: names.to_vec(), leader_varies: false }
    }

    /// Runs the steps in order, but for those in whose command or record one of the texts of `left_out` stands; the
    /// reason is beside it. A text that no step has is an error: nothing is left out that is not there.
    pub fn run(&self, steps: &[Step], left_out: &[(&str, &str)]) -> Outcome {
        let mut outcome = Outcome::default();
        let mut unused: BTreeSet<&str> = left_out.iter().map(|(text, _)| *text).collect();
        for step in steps {
            let text = step.text();
            let reasons: Vec<_> = left_out.iter().filter(|(part, _)| text.contains(part)).collect();
            if let Some((_, why)) = reasons.first() {
                reasons.iter().for_each(|(part, _)| {
                    unused.remove(part);
                });
                outcome.skipped.push(format!("line {}: {}: {why}", step.line, step.words.join(" ")));
                continue;
            }
            let actual = self.run_step(step);
            let (expected, actual) = (self.comparable(step, step), self.comparable(step, &actual));
            if expected == actual {
                outcome.equal += 1;
            } else {
                let command = step.words.join(" ");
                let place = format!("line {}: {command}", step.line);
                outcome.different.push(format!("{place}\n--- expected\n{expected}--- actual\n{actual}"));
            }
        }
        outcome.different.extend(unused.iter().map(|part| format!("no step has what is left out: {part}")));
        outcome
    }

    /// What the program does with a step's arguments, environment and input.
    pub fn run_step(&self, step: &Step) -> Step {
        let to_actual: Vec<_> = self.names.iter().map(|(name, actual)| (name.as_str(), actual.as_str())).collect();
        let to_name: Vec<_> = self.names.iter().map(|(name, actual)| (actual.as_str(), name.as_str())).collect();
        let mut command = Command::new(&self.program);
        let ours = std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("ETCDCTL_"));
        ours.for_each(|(name, _)| {
            command.env_remove(name);
        });
        command.args(step.words[1..].iter().map(|word| replaced(word, &to_actual)));
        command.envs(step.environment.iter().map(|(name, value)| (name, replaced(value, &to_actual))));
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().expect("the program starts");
        // A command that reads nothing closes its end: that is no failure.
        let _ = child.stdin.take().expect("a pipe").write_all(step.input.as_bytes());
        let done = child.wait_with_output().expect("the program ends");
        let lines = |bytes: &[u8]| {
            let text = replaced(&String::from_utf8_lossy(bytes), &to_name);
            text.lines().map(str::to_owned).collect()
        };
        let code = done.status.code().unwrap_or(-1);
        Step { out: lines(&done.stdout), err: lines(&done.stderr), code, ..step.clone() }
    }

    /// A step's result with everything masked that may differ.
    pub fn comparable(&self, step: &Step, result: &Step) -> String {
        let mut text = String::new();
        let mut out = result.out.clone();
        if out.iter().any(|line| line == HELP_MARK || line.starts_with("Usage:")) {
            out = vec![HELP_MARK.to_owned()];
        }
        let masks = Masks {
            member: step.asks_anyone(),
            leader: self.leader_varies,
            status: step.has("status") && step.has("endpoint"),
        };
        out.iter_mut().for_each(|line| *line = masks.apply(line));
        // Health is told in the order of answers.
        if step.has("health") {
            out = out
                .iter()
                .flat_map(|line| line.split("},{"))
                .map(|part| part.trim_matches(['[', ']', '{', '}']).to_owned())
                .collect();
            out.sort();
        }
        out.iter().for_each(|line| text.push_str(&format!("> {line}\n")));
        let mut errors = comparable_errors(&result.err);
        // Clients before 3.6 tell good health here, too.
        if step.has("health") {
            errors.iter_mut().for_each(|line| *line = masks.apply(line));
            errors.sort();
        }
        errors.iter().for_each(|line| text.push_str(&format!("! {line}\n")));
        text + &format!("= {}\n", result.code)
    }
}

/// What of a line varies.
struct Masks {
    /// Who answered.
    member: bool,
    /// Who leads.
    leader: bool,
    /// Columns of `endpoint status`.
    status: bool,
}

impl Masks {
    fn apply(&self, line: &str) -> String {
        let mut line = line.to_owned();
        let varying = VARYING.iter().chain(self.member.then_some(&MEMBER).into_iter().flatten());
        for (name, end) in varying.chain(self.leader.then_some(&LEADER).into_iter().flatten()) {
            line = mask_behind(&line, name, end);
        }
        if self.status {
            line = self.mask_status_row(&line);
        }
        line = mask_words(&line, is_duration, "<took>");
        // Cells are padded to masked values: only the text between the borders is left to compare.
        if line.starts_with(['│', '┌', '├', '└', '|', '+']) {
            while ["  ", "──", "--"].iter().any(|twice| line.contains(twice)) {
                line = line.replace("  ", " ").replace("──", "─").replace("--", "-");
            }
        }
        line
    }

    /// Columns of `endpoint status` that vary: sizes, share unused, term, indexes, and who leads.
    fn mask_status_row(&self, line: &str) -> String {
        let separator = ["│", "|"].into_iter().find(|separator| line.starts_with(separator)).unwrap_or(", ");
        let shift = usize::from(separator != ", ");
        let cells: Vec<&str> = line.split(separator).collect();
        let is_heading = line.contains("RAFT TERM");
        // Clients before 3.6 know fewer columns.
        let (varying, leader): (&[usize], usize) = match cells.len() - shift {
            16.. if !is_heading => (&[4, 5, 6, 10, 11, 12], 8),
            10.. if !is_heading => (&[3, 6, 7, 8], 4),
            _ => return line.to_owned(),
        };
        let masked = cells.iter().enumerate().map(|(at, cell)| {
            let varies = at.checked_sub(shift).is_some_and(|at| varying.contains(&at) || (self.leader && at == leader));
            if varies { " <varies> " } else { *cell }
        });
        masked.collect::<Vec<_>>().join(separator)
    }
}

/// Numbers that vary, by what stands before them and what ends them.
const VARYING: [(&str, &str); 11] = [
    ("\"raft_term\":", ",}"),
    ("\"raftIndex\":", ",}"),
    ("\"raftTerm\":", ",}"),
    ("\"raftAppliedIndex\":", ",}"),
    ("\"dbSize\":", ",}"),
    ("\"dbSizeInUse\":", ",}"),
    ("\"RaftTerm\" : ", ""),
    ("\"RaftIndex\" : ", ""),
    ("\"RaftAppliedIndex\" : ", ""),
    ("\"DBSize\" : ", ""),
    ("\"DBSizeInUse\" : ", ""),
];
const MEMBER: [(&str, &str); 2] = [("\"member_id\":", ",}"), ("\"MemberID\" : ", "")];
const LEADER: [(&str, &str); 2] = [("\"leader\":", ",}"), ("\"Leader\" : ", "")];

/// Replaces every first text of a pair by the second, in one pass: what was put in is not looked at again.
fn replaced(text: &str, pairs: &[(&str, &str)]) -> String {
    let mut done = String::new();
    let mut rest = text;
    while let Some(first) = rest.chars().next() {
        if let Some((from, to)) = pairs.iter().find(|(from, _)| rest.starts_with(from)) {
            done.push_str(to);
            rest = &rest[from.len()..];
        } else {
            done.push(first);
            rest = &rest[first.len_utf8()..];
        }
    }
    done
}

fn mask_behind(line: &str, name: &str, end: &str) -> String {
    let mut parts = line.split(name);
    let mut masked = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        let value = part.find(|at| end.contains(at)).unwrap_or(part.len());
        masked.push_str(name);
        masked.push_str("<varies>");
        masked.push_str(&part[value..]);
    }
    masked
}

/// Replaces every word that `is` recognises; words end at blanks and JSON's marks.
fn mask_words(line: &str, is: impl Fn(&str) -> bool, by: &str) -> String {
    let separators = |at: char| matches!(at, ' ' | '"' | ',' | '{' | '}' | '[' | ']' | ':');
    let mut masked = String::new();
    for part in line.split_inclusive(separators) {
        let word = part.trim_end_matches(separators);
        masked.push_str(if is(word) { by } else { word });
        masked.push_str(&part[word.len()..]);
    }
    masked
}

/// A duration with a fraction or a small unit: `4.58ms`, `965.89µs`, `1.000520246s`.
fn is_duration(word: &str) -> bool {
    let number = word.trim_end_matches(['n', 'µ', 'm', 's']);
    let unit = &word[number.len()..];
    matches!(unit, "ns" | "µs" | "ms" | "s")
        && !number.is_empty()
        && number.chars().all(|at| at.is_ascii_digit() || at == '.')
}

/// Standard error without what only the original says: empty lines, usage behind a flag error, how often was retried.
fn comparable_errors(lines: &[String]) -> Vec<String> {
    let mut kept: Vec<String> = Vec::new();
    for line in lines.iter().filter(|line| !line.is_empty() && !line.starts_with('\t')) {
        if line == HELP_MARK || line.starts_with("Usage:") {
            kept.push(HELP_MARK.to_owned());
            break;
        }
        let line = match line.starts_with('{') {
            true if line.contains("retrying of unary invoker failed") => RETRY_MARK.to_owned(),
            true => log_line(line),
            false => line.clone(),
        };
        if kept.last() != Some(&line) {
            kept.push(line);
        }
    }
    kept
}

/// A JSON log line without its time and stack trace.
fn log_line(line: &str) -> String {
    let line = mask_behind(line, "\"ts\":", ",");
    line.split(",\"stacktrace\"").next().unwrap_or_default().trim_end_matches('}').to_owned()
}

#[test]
fn transcripts_are_parsed() {
    let text = "# remark\n\n$ A=1 etcdctl put bin 'a\tb\nc\"d'\n< x\n< \n> OK\n! w\n= 3\n\n$ ETCDCTL_HEX=1 etcdctl \
     -w json get ''\n= 0\n";
    let steps = parse(text);
    assert_eq!(steps.len(), 2);
    let first = &steps[0];
    assert_eq!(first.words, ["A=1", "etcdctl", "put", "bin", "a\tb\nc\"d"]);
    assert_eq!((first.input.as_str(), first.code, first.line), ("x\n", 3, 3));
    assert_eq!((&first.out[..], &first.err[..]), (&["OK".to_owned()][..], &["w".to_owned()][..]));
    assert_eq!(steps[1].environment, [("ETCDCTL_HEX".to_owned(), "1".to_owned())]);
    assert_eq!(steps[1].words, ["etcdctl", "-w", "json", "get", ""]);
    assert_eq!(steps[1].command(), ["get", ""]);
}

#[test]
fn only_what_varies_is_masked() {
    let masks = Masks { member: true, leader: false, status: true };
    let check = |one: &str, other: &str, equal: bool| {
        assert_eq!(masks.apply(one) == masks.apply(other), equal, "{one} / {other}");
    };
    check("{\"member_id\":1,\"revision\":5,\"raft_term\":2}", "{\"member_id\":2,\"revision\":5,\"raft_term\":9}", true);
    check("{\"revision\":5,\"raft_term\":2}", "{\"revision\":6,\"raft_term\":2}", false);
    check("a is healthy: took = 4.58ms", "a is healthy: took = 965.8µs", true);
    check("a is healthy: took = 4.58ms", "b is healthy: took = 4.58ms", false);
    let row = "a:1, d1, 3.7.1, 3.7.0, 20 kB, 16 kB, 20%, 2.1 GB, true, false, 2, 9, 9, , , false";
    check(row, "a:1, d1, 3.7.1, 3.7.0, 1.0 MB, 0 B, 0%, 2.1 GB, true, false, 7, 19, 19, , , false", true);
    check(row, "a:1, d1, 3.7.1, 3.7.0, 20 kB, 16 kB, 20%, 2.0 GB, true, false, 2, 9, 9, , , false", false);
    check(row, "a:1, d1, 3.7.1, 3.7.0, 20 kB, 16 kB, 20%, 2.1 GB, false, false, 2, 9, 9, , , false", false);
    check("a:1, d1, 3.5.1, 20 kB, true, false, 2, 9, 9, ", "a:1, d1, 3.5.1, 25 kB, true, false, 3, 8, 8, ", true);
    check("│  a │ 20 kB │", "│ a │ 20 kB │", true);
}

#[test]
fn names_are_replaced_once() {
    assert_eq!(replaced("a:1 b:2 µ a:1", &[("a:1", "b:2"), ("b:2", "c:3")]), "b:2 c:3 µ b:2");
}

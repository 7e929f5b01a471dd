//! Replays what the real etcdctl 3.7.1 printed (`shared/transcripts`) with our own, and compares.
//!
//! A transcript is parsed into steps; a `Replayer` runs them against a cluster and lists what differs. Fields that
//! vary from run to run (raft terms and indexes, sizes, durations, who leads) are masked on both sides, everything
//! else must be equal. A caller that kills members in between runs the slices of steps before and after.

use std::io::Write;
use std::os::unix::fs::symlink;
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
    /// Why steps were left out, with their lines.
    pub skipped: Vec<String>,
    /// A description for each step that printed something else.
    pub different: Vec<String>,
}

/// Runs steps against a cluster.
pub struct Replayer {
    /// Holds a link named etcdctl to the program.
    directory: tempfile::TempDir,
    /// Recorded `host:port` and that of the running cluster.
    addresses: Vec<(String, String)>,
    /// With other peer addresses than the recorded ones, all ids are others too.
    mask_ids: bool,
}

/// Marks that stand in a transcript for text that was left out.
const RETRY_MARK: &str = "(a JSON log line of the client: retrying of unary invoker failed)";
const HELP_MARK: &str = "(help text of the command)";

/// Words that begin commands which this release of etcdctl has.
const BUILT: [&str; 14] = [
    "put",
    "get",
    "ge",
    "del",
    "txn",
    "compaction",
    "compact",
    "endpoint",
    "member",
    "version",
    "nosuchcmd",
    "e",
    "options",
    "help",
];

/// The folder of transcripts, if this checkout has one beside it.
pub fn folder() -> Option<PathBuf> {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    let candidates = [here.join("../shared/transcripts"), here.join("../../shared/transcripts")];
    candidates.into_iter().find(|folder| folder.is_dir())
}

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

    /// Why this step cannot be compared, if so.
    fn unsupported(&self) -> Option<&'static str> {
        let command = self.command();
        match command.first() {
            Some(first) if !BUILT.contains(first) => return Some("command of a later release"),
            Some(&"member") if !matches!(command.get(1), None | Some(&"list")) => {
                return Some("command of a later release");
            }
            _ => {}
        }
        if self.words[0] != "etcdctl" {
            return Some("another program");
        }
        if self.has("--debug") || self.has("--user") {
            return Some("option of a later release, or traces of Go's gRPC library");
        }
        if self.err.iter().any(|line| line.starts_with("panic:")) {
            return Some("the original panics");
        }
        (self.has("protobuf") && !self.out.is_empty()).then_some("bytes that the transcript could not hold")
    }
}

impl Replayer {
    /// `binary` is started under the name etcdctl. `addresses` pairs recorded with actual `host:port`, client and peer
    /// ports.
    pub fn new(binary: &Path, addresses: &[(&str, &str)]) -> Replayer {
        let directory = tempfile::tempdir().expect("a temporary directory");
        symlink(binary, directory.path().join("etcdctl")).expect("a link in a new directory");
        let mask_ids = addresses.iter().any(|(recorded, actual)| recorded != actual);
        let owned = |&(recorded, actual): &(&str, &str)| (recorded.to_owned(), actual.to_owned());
        Replayer { directory, addresses: addresses.iter().map(owned).collect(), mask_ids }
    }

    /// Runs the steps in order.
    pub fn run(&self, steps: &[Step]) -> Outcome {
        let mut outcome = Outcome::default();
        for step in steps {
            if let Some(why) = step.unsupported() {
                outcome.skipped.push(format!("line {}: {why}: {}", step.line, step.words.join(" ")));
                continue;
            }
            let actual = self.run_step(step);
            let (expected, actual) = (self.comparable(step, step), self.comparable(step, &actual));
            if expected == actual {
                outcome.equal += 1;
            } else {
                let command = step.words.join(" ");
                outcome
                    .different
                    .push(format!("line {}: {command}\n--- expected\n{expected}--- actual\n{actual}", step.line));
            }
        }
        outcome
    }

    fn run_step(&self, step: &Step) -> Step {
        let actual_of = |text: &String| {
            self.addresses.iter().fold(text.clone(), |text, (recorded, actual)| text.replace(recorded, actual))
        };
        let mut command = Command::new(self.directory.path().join("etcdctl"));
        let ours = std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("ETCDCTL_"));
        ours.for_each(|(name, _)| {
            command.env_remove(name);
        });
        command.args(step.words[1..].iter().map(actual_of));
        command.envs(step.environment.iter().map(|(name, value)| (name, actual_of(value))));
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().expect("the program starts");
        // A command that reads nothing closes its end: that is no failure.
        let _ = child.stdin.take().expect("a pipe").write_all(step.input.as_bytes());
        let done = child.wait_with_output().expect("the program ends");
        let lines = |bytes: &[u8]| {
            let text = String::from_utf8_lossy(bytes).into_owned();
            let text = self.addresses.iter().fold(text, |text, (recorded, actual)| text.replace(actual, recorded));
            text.lines().map(str::to_owned).collect()
        };
        let code = done.status.code().unwrap_or(-1);
        Step { out: lines(&done.stdout), err: lines(&done.stderr), code, ..step.clone() }
    }

    /// A step's result with everything masked that may differ.
    fn comparable(&self, step: &Step, result: &Step) -> String {
        let mut text = String::new();
        let mut out = result.out.clone();
        if out.iter().any(|line| line == HELP_MARK || line.starts_with("Usage:")) {
            out = vec![HELP_MARK.to_owned()];
        }
        let is_endpoint = step.command().first() == Some(&"endpoint");
        out.iter_mut().for_each(|line| *line = self.mask(line, is_endpoint));
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
        comparable_errors(&result.err).iter().for_each(|line| text.push_str(&format!("! {line}\n")));
        text + &format!("= {}\n", result.code)
    }

    fn mask(&self, line: &str, is_endpoint: bool) -> String {
        let mut line = line.to_owned();
        for (name, end) in VARYING {
            line = mask_behind(&line, name, end);
        }
        if is_endpoint {
            line = mask_endpoint_row(&line);
        }
        line = mask_words(&line, is_duration, "<took>");
        if self.mask_ids {
            line = mask_words(&line, is_id, "<id>");
        }
        // Cells are padded to masked values: only the text between the borders is left to compare.
        if line.starts_with(['│', '┌', '├', '└']) {
            while line.contains("  ") || line.contains("──") {
                line = line.replace("  ", " ").replace("──", "─");
            }
        }
        line
    }
}

/// Numbers that vary, by what stands before them and what ends them.
const VARYING: [(&str, &str); 15] = [
    ("\"member_id\":", ",}"),
    ("\"raft_term\":", ",}"),
    ("\"leader\":", ",}"),
    ("\"raftIndex\":", ",}"),
    ("\"raftTerm\":", ",}"),
    ("\"raftAppliedIndex\":", ",}"),
    ("\"dbSize\":", ",}"),
    ("\"dbSizeInUse\":", ",}"),
    ("\"MemberID\" : ", ""),
    ("\"RaftTerm\" : ", ""),
    ("\"RaftIndex\" : ", ""),
    ("\"RaftAppliedIndex\" : ", ""),
    ("\"Leader\" : ", ""),
    ("\"DBSize\" : ", ""),
    ("\"DBSizeInUse\" : ", ""),
];

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

/// Columns of `endpoint status` that vary: sizes, share unused, leader, term, indexes.
fn mask_endpoint_row(line: &str) -> String {
    let separator = if line.contains('│') { "│" } else { ", " };
    let shift = usize::from(separator == "│");
    let cells: Vec<&str> = line.split(separator).collect();
    if cells.len() < 16 {
        return line.to_owned();
    }
    let mask = |(at, cell): (usize, &&str)| {
        let varies = at >= shift && matches!(at - shift, 4..=6 | 8 | 10..=12);
        if varies && !cell.chars().any(char::is_uppercase) { " <varies> ".to_owned() } else { (*cell).to_owned() }
    };
    // A size in units of bytes holds capitals like headings do, so it is told apart by its digits.
    let sized = |(at, cell): (usize, &&str)| {
        let is_size = at >= shift && matches!(at - shift, 4 | 5) && cell.chars().any(|at| at.is_ascii_digit());
        if is_size { " <varies> ".to_owned() } else { mask((at, cell)) }
    };
    cells.iter().enumerate().map(sized).collect::<Vec<_>>().join(separator)
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

/// An id in decimal or hexadecimal.
fn is_id(word: &str) -> bool {
    let digits = |base| word.chars().all(|at| at.is_digit(base));
    (word.len() >= 17 && digits(10)) || (matches!(word.len(), 14..=16) && digits(16))
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
    let replayer = Replayer::new(Path::new("/bin/true"), &[("127.0.0.1:12379", "127.0.0.1:12379")]);
    let check = |one: &str, other: &str, equal: bool| {
        assert_eq!(replayer.mask(one, true) == replayer.mask(other, true), equal, "{one} / {other}");
    };
    check("{\"member_id\":1,\"revision\":5,\"raft_term\":2}", "{\"member_id\":2,\"revision\":5,\"raft_term\":9}", true);
    check("{\"revision\":5,\"raft_term\":2}", "{\"revision\":6,\"raft_term\":2}", false);
    check("a is healthy: took = 4.58ms", "a is healthy: took = 965.8µs", true);
    check("a is healthy: took = 4.58ms", "b is healthy: took = 4.58ms", false);
    let row = "a:1, d1, 3.7.1, 3.7.0, 20 kB, 16 kB, 20%, 2.1 GB, true, false, 2, 9, 9, , , false";
    check(row, "a:1, d1, 3.7.1, 3.7.0, 1.0 MB, 0 B, 0%, 2.1 GB, false, false, 7, 19, 19, , , false", true);
    check(row, "a:1, d1, 3.7.1, 3.7.0, 20 kB, 16 kB, 20%, 2.0 GB, true, false, 2, 9, 9, , , false", false);
    check("│  a │ 20 kB │", "│ a │ 20 kB │", true);
    assert!(is_id("ddd67b312462fd7b") && is_id("628170c800dbcee") && is_id("12101053776118486841"));
    assert!(!is_id("started") && !is_id("2147483648"));
}

/// Replays against a fresh cluster that someone else started: QUORATE_REPLAY_BINARY is the program to run,
/// QUORATE_REPLAY_FILES the transcripts in order (`name` or `name:last_line`), QUORATE_REPLAY_ADDRESSES pairs
/// `recorded=actual`.
#[test]
fn transcripts_of_a_named_cluster_are_equal() {
    let (Some(folder), Ok(binary)) = (folder(), std::env::var("QUORATE_REPLAY_BINARY")) else {
        println!("skipped: no transcripts beside this checkout, or QUORATE_REPLAY_BINARY names no program");
        return;
    };
    let addresses = std::env::var("QUORATE_REPLAY_ADDRESSES").unwrap_or_default();
    let addresses: Vec<(&str, &str)> = addresses.split(',').filter_map(|pair| pair.split_once('=')).collect();
    let replayer = Replayer::new(Path::new(&binary), &addresses);
    let mut different = Vec::new();
    for file in std::env::var("QUORATE_REPLAY_FILES").unwrap_or_default().split(',') {
        let (name, last) = file.split_once(':').unwrap_or((file, "1000000"));
        let last: usize = last.parse().expect("a line's number");
        let text = std::fs::read_to_string(folder.join("etcdctl-3.7.1").join(name)).expect("a transcript by that name");
        let steps: Vec<Step> = parse(&text).into_iter().filter(|step| step.line <= last).collect();
        let outcome = replayer.run(&steps);
        println!("{name}: {} equal, {} different, skipped:", outcome.equal, outcome.different.len());
        outcome.skipped.iter().for_each(|why| println!("  {why}"));
        different.extend(outcome.different);
    }
    assert!(different.is_empty(), "{}", different.join("\n"));
}

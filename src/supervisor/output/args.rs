//! What is asked about output on the command line, and what it means where we are: the flags of `up` and `start`.

use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use clap::ValueEnum;
use regex::bytes::Regex;

use crate::common::go_duration;
use crate::program::Manner;
use crate::supervisor::output::Settings;
use crate::supervisor::output::escapes::Escapes;
use crate::supervisor::output::files::FilesSettings;
use crate::supervisor::output::log_file::Rotation;
use crate::supervisor::output::painter::Stamp;
use crate::supervisor::output::painter::Style;

/// When there are colours.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum ColourChoice {
    /// On a terminal, as NO_COLOR, FORCE_COLOR and CLICOLOR_FORCE say
    #[default]
    Auto,
    Always,
    Never,
}

/// What becomes of the terminal sequences that processes print.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum AnsiChoice {
    /// Colours where we have colours, nothing elsewhere
    #[default]
    Auto,
    Keep,
    Strip,
}

#[derive(Args, Clone, Debug, Default)]
#[command(next_help_heading = "Output")]
pub struct OutputArgs {
    /// When to use colours
    #[arg(long, alias = "colour", value_enum, value_name = "WHEN", default_value = "auto")]
    pub color: ColourChoice,
    /// Terminal sequences of the processes themselves
    #[arg(long, value_enum, value_name = "WHAT", default_value = "auto")]
    pub ansi: AnsiChoice,
    /// Time in front of every line
    #[arg(long, value_enum, value_name = "FORMAT", default_value = "seconds")]
    pub time: Stamp,
    /// Do not show what these processes print (it is kept for `logs` and in files)
    #[arg(long, value_name = "NAME", value_delimiter = ',')]
    pub quiet: Vec<String>,
    /// Show only lines of processes that match
    #[arg(long, value_name = "REGEX")]
    pub grep: Option<Regex>,
    /// Show no lines of processes that match
    #[arg(long, value_name = "REGEX")]
    pub hide: Option<Regex>,
    /// Make what matches stand out (on a terminal)
    #[arg(long, value_name = "REGEX")]
    pub highlight: Option<Regex>,
    /// Show logs in JSON, as etcd's and ours, readable: time, level, message, fields
    #[arg(long)]
    pub pretty: bool,
    /// Show every line as a JSON object
    #[arg(long = "json-lines", conflicts_with = "pretty")]
    pub json: bool,
    /// Tell standard error from standard output: `!` instead of `|` (their order may then differ)
    #[arg(long)]
    pub split: bool,
    /// Let the processes wait when the terminal is slow, instead of dropping lines
    #[arg(long)]
    pub lossless: bool,
    /// Keep a file DIR/NAME.log for every process, with its bytes as they are
    #[arg(long, value_name = "DIR")]
    pub log_dir: Option<PathBuf>,
    /// Keep a file of all processes, with names and times
    #[arg(long, value_name = "FILE")]
    pub log_file: Option<PathBuf>,
    /// Lines of --log-file are JSON objects
    #[arg(long, requires = "log_file")]
    pub log_json: bool,
    /// Begin a new log file when one has this size (10M, 512K, 1G; 0 means never)
    #[arg(long, value_name = "SIZE", value_parser = size)]
    pub log_max_size: Option<u64>,
    /// Begin a new log file when one is this old (24h, 7d)
    #[arg(long, value_name = "AGE", value_parser = age)]
    pub log_max_age: Option<Duration>,
    /// How many older files are kept of each
    #[arg(long, value_name = "COUNT", default_value_t = 5)]
    pub log_keep: usize,
    /// Compress older files
    #[arg(long)]
    pub log_gzip: bool,
    /// Do not say at the end what became of every process
    #[arg(long)]
    pub no_summary: bool,
}

/// What the place where we write to is like.
#[derive(Clone, Debug, Default)]
pub struct Surroundings {
    pub is_terminal: bool,
    pub no_color: Option<String>,
    pub force_color: Option<String>,
    pub clicolor_force: Option<String>,
    pub term: Option<String>,
}

impl Surroundings {
    /// Those of our standard output.
    pub fn here() -> Surroundings {
        let variable = |name: &str| std::env::var_os(name).map(|value| value.to_string_lossy().into_owned());
        Surroundings {
            is_terminal: std::io::IsTerminal::is_terminal(&std::io::stdout()),
            no_color: variable("NO_COLOR"),
            force_color: variable("FORCE_COLOR"),
            clicolor_force: variable("CLICOLOR_FORCE"),
            term: variable("TERM"),
        }
    }

    /// Set and empty counts as not set, for all three of them (no-color.org).
    fn has_colours(&self) -> bool {
        let is_set = |value: &Option<String>| value.as_ref().is_some_and(|value| !value.is_empty());
        let forces = |value: &Option<String>| is_set(value) && value.as_deref() != Some("0");
        if is_set(&self.no_color) {
            return false;
        }
        if forces(&self.force_color) || forces(&self.clicolor_force) {
            return true;
        }
        self.is_terminal && self.term.as_deref() != Some("dumb")
    }
}

impl OutputArgs {
    /// What it all means for these processes. An error names what does not exist.
    pub fn settings(&self, here: &Surroundings, names: &[&str]) -> Result<Settings, String> {
        if let Some(unknown) = self.quiet.iter().find(|name| !names.contains(&name.as_str())) {
            return Err(format!("--quiet: no process \"{unknown}\" (there are {})", names.join(", ")));
        }
        let rotation = Rotation {
            size: self.log_max_size.filter(|size| *size > 0),
            age: self.log_max_age,
            keep: self.log_keep,
            gzip: self.log_gzip,
        };
        Ok(Settings {
            style: self.style(here),
            lossless: self.lossless,
            quiet: self.quiet.clone(),
            split: self.split,
            files: FilesSettings {
                dir: self.log_dir.clone(),
                merged: self.log_file.clone(),
                json: self.log_json,
                rotation,
            },
            summary: !self.no_summary,
        })
    }

    /// How lines look; `logs` asks for no more.
    pub fn style(&self, here: &Surroundings) -> Style {
        let colour = match self.color {
            ColourChoice::Always => true,
            ColourChoice::Never => false,
            ColourChoice::Auto => here.has_colours(),
        };
        let mut style = Style::new(Manner::Native, colour, self.time);
        match self.ansi {
            AnsiChoice::Auto => {}
            AnsiChoice::Keep => style.escapes = Escapes::Keep,
            AnsiChoice::Strip => style.escapes = Escapes::Strip,
        }
        let (grep, hide, highlight) = (self.grep.clone(), self.hide.clone(), self.highlight.clone());
        Style { pretty: self.pretty, json: self.json, highlight, grep, hide, ..style }
    }
}

/// `10M`, `512K`, `1G`, `1000`; the units are powers of 1024.
fn size(text: &str) -> Result<u64, String> {
    let wrong = || format!("\"{text}\" is no size (10M, 512K, 1G)");
    let digits = text.trim_end_matches(|letter: char| letter.is_ascii_alphabetic());
    let shift = match text[digits.len()..].to_ascii_uppercase().as_str() {
        "" | "B" => 0,
        "K" | "KB" | "KIB" => 10,
        "M" | "MB" | "MIB" => 20,
        "G" | "GB" | "GIB" => 30,
        _ => return Err(wrong()),
    };
    let number: u64 = digits.parse().map_err(|_| wrong())?;
    number.checked_mul(1 << shift).ok_or_else(wrong)
}

/// Go's durations, and days.
fn age(text: &str) -> Result<Duration, String> {
    let wrong = || format!("\"{text}\" is no age (30m, 24h, 7d)");
    let found = match text.strip_suffix('d') {
        Some(days) => {
            let days: u64 = days.parse().map_err(|_| wrong())?;
            days.checked_mul(24 * 60 * 60).map(Duration::from_secs).ok_or_else(wrong)?
        }
        None => go_duration::parse(text).map_err(|_| wrong())?,
    };
    if found.is_zero() { Err(wrong()) } else { Ok(found) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        output: OutputArgs,
    }

    fn parse(line: &str) -> Result<OutputArgs, clap::Error> {
        Line::try_parse_from(std::iter::once("up").chain(line.split_whitespace())).map(|line| line.output)
    }

    #[test]
    fn colours_are_where_they_are_wanted() {
        let check = |line: &str, terminal: bool, variables: [&str; 3], expected: bool| {
            let set = |value: &str| (!value.is_empty()).then(|| value.trim().to_owned());
            let [no_color, force_color, clicolor_force] = variables.map(set);
            let here = Surroundings { is_terminal: terminal, no_color, force_color, clicolor_force, term: None };
            assert_eq!(parse(line).unwrap().style(&here).colour, expected, "{line} {here:?}");
        };
        check("", true, ["", "", ""], true);
        check("", false, ["", "", ""], false);
        check("", true, ["1", "", ""], false);
        check("", true, [" ", "", ""], true);
        check("", false, ["", "1", ""], true);
        check("", false, ["", "0", "0"], false);
        check("", false, ["", "", "1"], true);
        check("", true, ["1", "1", "1"], false);
        check("--color never", true, ["", "1", "1"], false);
        check("--color=always", false, ["1", "", ""], true);
        check("--colour=always", false, ["1", "", ""], true);
        let dumb = Surroundings { is_terminal: true, term: Some("dumb".to_owned()), ..Surroundings::default() };
        assert!(!parse("").unwrap().style(&dumb).colour);
    }

    #[test]
    fn childrens_colours_go_with_ours() {
        let check = |line: &str, expected: Escapes| {
            assert_eq!(parse(line).unwrap().style(&Surroundings::default()).escapes, expected, "{line}");
        };
        check("", Escapes::Strip);
        check("--color always", Escapes::Colours);
        check("--ansi keep", Escapes::Keep);
        check("--color always --ansi strip", Escapes::Strip);
    }

    #[test]
    fn what_cannot_be_meant_is_refused() {
        let refused = |line: &str, text: &str| {
            let error = parse(line).unwrap_err().to_string();
            assert!(error.contains(text), "{line}: {error}");
        };
        refused("--log-max-size 10X", "no size");
        refused("--log-max-size 99999999999999G", "no size");
        refused("--log-max-age 0s", "no age");
        refused("--grep (", "regex");
        refused("--log-json", "--log-file");
        refused("--pretty --json-lines", "cannot be used with");
        let wrong = parse("--quiet a,c").unwrap().settings(&Surroundings::default(), &["a", "b"]).unwrap_err();
        assert_eq!(wrong, "--quiet: no process \"c\" (there are a, b)");
        let args = parse("--quiet a --log-max-size 10M --log-max-age 7d").unwrap();
        let rotation = args.settings(&Surroundings::default(), &["a"]).unwrap().files.rotation;
        assert_eq!(
            (rotation.size, rotation.age, rotation.keep),
            (Some(10 << 20), Some(Duration::from_secs(604_800)), 5)
        );
    }
}

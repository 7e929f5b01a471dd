//! What was typed: the command line and the environment, each value checked by its kind, nothing decided yet.
//!
//! Reads flags as Go's flag package does: `-x` and `--x` alike, values behind `=` or as the next word, booleans with `=`
//! only. A flag pasted with an en dash or em dash in front is understood, with a note.

use std::collections::BTreeMap;
use std::ffi::OsString;

use crate::common::urls;
use crate::common::urls::Urls;
use crate::server::config::Note;
use crate::server::config::Personality;
use crate::server::config::exit::Exit;
use crate::server::config::features::FeatureGates;
use crate::server::config::flags;
use crate::server::config::flags::Flag;
use crate::server::config::flags::Kind;
use crate::server::config::flags::LEGACY;
use crate::server::config::flags::Support;
use crate::server::config::help;
use crate::server::config::value;

/// Values by flag name. Every one was checked, so the getters cannot fail.
#[derive(Debug, Default)]
pub struct Typed {
    values: BTreeMap<&'static str, String>,
    /// The first word that is no flag.
    stray: Option<String>,
    pub notes: Vec<Note>,
    /// Lines for stderr that belong before everything else.
    pub warnings: String,
}

impl Typed {
    /// Reads words (without the program's name), then variables.
    pub fn read(
        words: &[OsString],
        env: impl Iterator<Item = (String, String)>,
        personality: Personality,
    ) -> Result<Typed, Exit> {
        let mut typed = Typed::default();
        let result = typed.read_words(words, personality);
        let with_warnings = |warnings: &str, exit: Exit| Exit { stderr: format!("{warnings}{}", exit.stderr), ..exit };
        result.map_err(|exit| with_warnings(&typed.warnings, exit))?;
        if let Some(stray) = &typed.stray {
            let exit = Exit::failed_to_verify(format!("\"{stray}\" is not a valid flag"));
            return Err(with_warnings(&typed.warnings, exit));
        }
        if typed.boolean("version") {
            return Err(Exit { code: 0, stdout: help::version(personality), stderr: typed.warnings });
        }
        let result = typed.read_variables(env, personality).and_then(|()| typed.refuse_unserved());
        result.map_err(|exit| with_warnings(&typed.warnings, exit))?;
        Ok(typed)
    }

    fn read_words(&mut self, words: &[OsString], personality: Personality) -> Result<(), Exit> {
        let usage = |error: String| Exit::usage(&error, &help::usage(personality));
        let mut words = words.iter();
        while let Some(word) = words.next() {
            let Some(word) = word.to_str() else {
                return Err(usage(format!("argument is not UTF-8: {}", word.to_string_lossy())));
            };
            let word = self.plain_dashes(word);
            let Some(body) = word.strip_prefix('-').filter(|rest| !rest.is_empty()) else {
                self.stray = Some(word);
                return Ok(());
            };
            let body = body.strip_prefix('-').unwrap_or(body);
            if body.is_empty() {
                self.stray = words.next().map(|word| word.to_string_lossy().into_owned());
                return Ok(());
            }
            if body.starts_with(['-', '=']) {
                return Err(usage(format!("bad flag syntax: {word}")));
            }
            let (name, given) = match body.split_once('=') {
                Some((name, given)) => (name, Some(given.to_owned())),
                None => (body, None),
            };
            if LEGACY.contains(&name) {
                self.note("warn", "ignored a flag of an old release", &[("flag", name.to_owned())]);
                continue;
            }
            let Some(flag) = flags::find(name) else {
                if matches!(name, "help" | "h") {
                    return Err(help::exit(personality));
                }
                return Err(usage(format!("flag provided but not defined: -{name}")));
            };
            let given = match (given, flag.kind) {
                (Some(given), _) => given,
                (None, Kind::Bool) => "true".to_owned(),
                (None, _) => match words.next().map(|word| word.to_str().map(str::to_owned)) {
                    Some(Some(given)) => given,
                    Some(None) => return Err(usage(format!("value of flag -{name} is not UTF-8"))),
                    None => return Err(usage(format!("flag needs an argument: -{name}"))),
                },
            };
            value::check(flag.kind, &given).map_err(|reason| usage(refusal(flag, &given, &reason)))?;
            self.values.insert(flag.name, given);
        }
        Ok(())
    }

    /// Blog posts turn `--name` into a dash of another kind.
    fn plain_dashes(&mut self, word: &str) -> String {
        let name = word.trim_start_matches(['-', '\u{2013}', '\u{2014}']);
        if word[..word.len() - name.len()].contains(['\u{2013}', '\u{2014}']) {
            self.warnings += &format!("note: understood \"{word}\" as \"--{name}\"\n");
            return format!("--{name}");
        }
        word.to_owned()
    }

    fn read_variables(
        &mut self,
        env: impl Iterator<Item = (String, String)>,
        personality: Personality,
    ) -> Result<(), Exit> {
        let mut given: BTreeMap<String, String> = env.filter(|(name, _)| name.starts_with("ETCD_")).collect();
        if given.remove("ETCD_VERSION").is_some() {
            self.note("warn", "ignored environment variable ETCD_VERSION: it would ask for --version", &[]);
        }
        let mut sorted: Vec<&Flag> = flags::all().filter(|flag| flag.name != "version").collect();
        sorted.sort_by_key(|flag| flag.name);
        for flag in sorted {
            let variable = flags::variable(flag.name);
            let Some(text) = given.remove(&variable).filter(|text| !text.is_empty()) else { continue };
            if self.values.contains_key(flag.name) {
                match personality {
                    Personality::Etcd => return Err(Exit::conflict(&variable)),
                    Personality::Native => continue,
                }
            }
            value::check(flag.kind, &text).map_err(|reason| {
                Exit::failed_to_verify(format!("invalid value \"{text}\" for {variable}: {reason}"))
            })?;
            let fields = [("variable-name", variable), ("variable-value", text.clone())];
            self.note("info", "recognized and used environment variable", &fields);
            self.values.insert(flag.name, text);
        }
        for (name, text) in given {
            if !matches!(name.as_str(), "ETCD_UNSUPPORTED_ARCH" | "ETCD_VERIFY") {
                let variable = format!("{name}={text}");
                self.note("warn", "unrecognized environment variable", &[("environment-variable", variable)]);
            }
        }
        Ok(())
    }

    /// A flag whose part of etcd is not built yet must not be taken and forgotten.
    fn refuse_unserved(&self) -> Result<(), Exit> {
        for (name, text) in &self.values {
            let flag = flags::find(name).expect("only known flags are set");
            if flag.support == Support::Later && !value::same(flag.kind, text, flag.default) {
                let error = format!("--{name} is not supported by this release of quorate (given: \"{text}\")");
                return Err(Exit::failed_to_verify(error));
            }
        }
        let unserved = self.features().unserved();
        match unserved.first() {
            Some(gate) => Err(Exit::failed_to_verify(format!(
                "feature gate {gate} is not supported by this release of quorate (--feature-gates)"
            ))),
            None => Ok(()),
        }
    }

    fn note(&mut self, level: &'static str, message: &str, fields: &[(&str, String)]) {
        let fields = fields.iter().map(|(name, text)| ((*name).to_owned(), text.clone())).collect();
        self.notes.push(Note { level, message: message.to_owned(), fields });
    }

    /// Whether the operator said anything about it.
    pub fn is_set(&self, name: &str) -> bool {
        self.values.contains_key(name)
    }

    /// The value, or the default.
    pub fn text(&self, name: &str) -> &str {
        let given = self.values.get(name).map(String::as_str);
        given.unwrap_or_else(|| flags::find(name).map_or("", |flag| flag.default))
    }

    pub fn boolean(&self, name: &str) -> bool {
        value::boolean(self.text(name)).unwrap_or(false)
    }

    pub fn unsigned(&self, name: &str) -> u64 {
        value::unsigned(self.text(name)).unwrap_or(0)
    }

    pub fn signed(&self, name: &str) -> i64 {
        value::signed(self.text(name)).unwrap_or(0)
    }

    pub fn duration(&self, name: &str) -> std::time::Duration {
        value::duration(self.text(name))
    }

    /// Sorted; empty when nothing was given.
    pub fn urls(&self, name: &str) -> Urls {
        let text = self.text(name);
        if text.is_empty() { Urls::new() } else { urls::parse_list(text).unwrap_or_default() }
    }

    pub fn words(&self, name: &str) -> Vec<String> {
        self.text(name).split(',').map(|word| word.trim().to_owned()).filter(|word| !word.is_empty()).collect()
    }

    pub fn features(&self) -> FeatureGates {
        FeatureGates::parse(self.text("feature-gates")).unwrap_or_default()
    }
}

fn refusal(flag: &Flag, given: &str, reason: &str) -> String {
    match flag.kind {
        Kind::Bool => format!("invalid boolean value \"{given}\" for -{}: {reason}", flag.name),
        _ => format!("invalid value \"{given}\" for flag -{}: {reason}", flag.name),
    }
}

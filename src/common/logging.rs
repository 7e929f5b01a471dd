//! The log: etcd's JSON lines or its console form, to stderr, stdout and files.
//!
//! A line is built whole and written with one call, so lines of several threads never mix (server.md 9.6).

use std::fmt;
use std::fmt::Write as _;
use std::fs::File;
use std::fs::OpenOptions;
use std::io;
use std::io::Write as _;
use std::path::Path;
use std::path::PathBuf;
use std::sync::Mutex;
use std::time::Duration;
use std::time::SystemTime;
use std::time::UNIX_EPOCH;

use tracing::Event;
use tracing::Metadata;
use tracing::Subscriber;
use tracing::field::Field;
use tracing::field::Visit;
use tracing_subscriber::Layer;
use tracing_subscriber::filter::LevelFilter;
use tracing_subscriber::filter::Targets;
use tracing_subscriber::layer::Context;
use tracing_subscriber::layer::SubscriberExt;

/// The lowest level that is written. etcd has dpanic, panic and fatal above error: they silence errors here.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Level {
    Debug,
    #[default]
    Info,
    Warn,
    Error,
    /// `panic` and `fatal`: nothing that a running member writes.
    Off,
}

impl Level {
    /// Reads `--log-level`. `None` for what etcd does not know either.
    pub fn parse(text: &str) -> Option<Level> {
        Some(match text.to_ascii_lowercase().as_str() {
            "debug" => Level::Debug,
            "info" | "" => Level::Info,
            "warn" => Level::Warn,
            "error" => Level::Error,
            "dpanic" | "panic" | "fatal" => Level::Off,
            _ => return None,
        })
    }

    fn filter(self) -> LevelFilter {
        match self {
            Level::Debug => LevelFilter::DEBUG,
            Level::Info => LevelFilter::INFO,
            Level::Warn => LevelFilter::WARN,
            Level::Error => LevelFilter::ERROR,
            Level::Off => LevelFilter::OFF,
        }
    }
}

/// The form of a line.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Format {
    #[default]
    Json,
    /// Tabs between time, level, caller, message and a JSON object of the fields.
    Console,
}

/// Where lines go. Each line goes to every output.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Output {
    Stderr,
    Stdout,
    /// Appended to; created with mode 0600.
    File(PathBuf),
}

/// What `--log-*` asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogConfig {
    pub level: Level,
    pub format: Format,
    pub outputs: Vec<Output>,
}

impl Default for LogConfig {
    fn default() -> LogConfig {
        LogConfig { level: Level::default(), format: Format::default(), outputs: vec![Output::Stderr] }
    }
}

/// The subscriber for these settings. Install it once, with `tracing::subscriber::set_global_default`.
///
/// A file that cannot be opened is an error that names it.
pub fn subscriber(config: &LogConfig) -> Result<impl Subscriber + Send + Sync + use<>, io::Error> {
    let sinks = config.outputs.iter().map(Sink::open).collect::<Result<Vec<Sink>, io::Error>>()?;
    let lines = Lines { format: config.format, sinks };
    // Libraries speak only when something is wrong: their debug lines are about frames, not about members.
    let level = config.level.filter();
    let targets = Targets::new().with_default(level.min(LevelFilter::WARN)).with_target("quorate", level);
    Ok(tracing_subscriber::registry().with(lines.with_filter(targets)))
}

/// One line in etcd's JSON form, for what has to be said before (or instead of) a running subscriber.
/// `caller` is `folder/file.rs:line`.
pub fn json_line(level: &str, caller: &str, message: &str, fields: &[(String, serde_json::Value)]) -> String {
    let mut line = String::with_capacity(160);
    write_json(&mut line, level, SystemTime::now(), caller, message, fields);
    line
}

enum Sink {
    Stderr,
    Stdout,
    File(Mutex<File>),
}

impl Sink {
    fn open(output: &Output) -> Result<Sink, io::Error> {
        match output {
            Output::Stderr => Ok(Sink::Stderr),
            Output::Stdout => Ok(Sink::Stdout),
            Output::File(path) => open_file(path).map(|file| Sink::File(Mutex::new(file))),
        }
    }

    /// A log that cannot be written must not stop a member: the error is dropped.
    fn write(&self, line: &str) {
        let _ = match self {
            Sink::Stderr => io::stderr().lock().write_all(line.as_bytes()),
            Sink::Stdout => io::stdout().lock().write_all(line.as_bytes()),
            Sink::File(file) => match file.lock() {
                Ok(mut file) => file.write_all(line.as_bytes()),
                Err(poisoned) => poisoned.into_inner().write_all(line.as_bytes()),
            },
        };
    }
}

fn open_file(path: &Path) -> Result<File, io::Error> {
    use std::os::unix::fs::OpenOptionsExt;
    OpenOptions::new()
        .create(true)
        .append(true)
        .mode(0o600)
        .open(path)
        .map_err(|error| io::Error::new(error.kind(), format!("cannot open log file {}: {error}", path.display())))
}

struct Lines {
    format: Format,
    sinks: Vec<Sink>,
}

impl<S: Subscriber> Layer<S> for Lines {
    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        let mut fields = Fields::default();
        event.record(&mut fields);
        let metadata = event.metadata();
        let level = level_name(*metadata.level());
        let caller = caller(metadata);
        let mut line = String::with_capacity(256);
        let now = SystemTime::now();
        match self.format {
            Format::Json => write_json(&mut line, level, now, &caller, &fields.message, &fields.rest),
            Format::Console => write_console(&mut line, level, now, &caller, &fields.message, &fields.rest),
        }
        for sink in &self.sinks {
            sink.write(&line);
        }
    }
}

fn level_name(level: tracing::Level) -> &'static str {
    match level {
        tracing::Level::ERROR => "error",
        tracing::Level::WARN => "warn",
        tracing::Level::INFO => "info",
        tracing::Level::DEBUG | tracing::Level::TRACE => "debug",
    }
}

/// `folder/file.rs:line`: the last two parts of the source path, as zap shortens its callers.
fn caller(metadata: &Metadata<'_>) -> String {
    let file = metadata.file().unwrap_or("unknown");
    let start = file.rmatch_indices('/').nth(1).map_or(0, |(at, _)| at + 1);
    format!("{}:{}", &file[start..], metadata.line().unwrap_or(0))
}

#[derive(Default)]
struct Fields {
    message: String,
    rest: Vec<(String, serde_json::Value)>,
}

impl Fields {
    fn push(&mut self, field: &Field, value: serde_json::Value) {
        match (field.name(), value) {
            ("message", serde_json::Value::String(text)) => self.message = text,
            // Go's names have dashes: `local_member_id` is written `local-member-id`.
            (name, value) => self.rest.push((name.replace('_', "-"), value)),
        }
    }
}

impl Visit for Fields {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.push(field, format!("{value:?}").into());
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.push(field, value.into());
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.push(field, value.into());
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.push(field, value.into());
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.push(field, value.into());
    }

    fn record_f64(&mut self, field: &Field, value: f64) {
        self.push(field, value.into());
    }

    fn record_error(&mut self, field: &Field, value: &(dyn std::error::Error + 'static)) {
        self.push(field, value.to_string().into());
    }
}

fn write_json(
    line: &mut String,
    level: &str,
    time: SystemTime,
    caller: &str,
    message: &str,
    fields: &[(String, serde_json::Value)],
) {
    line.push_str("{\"level\":\"");
    line.push_str(level);
    line.push_str("\",\"ts\":\"");
    write_time(line, time);
    line.push_str("\",\"caller\":");
    push_json(line, &caller.into());
    line.push_str(",\"msg\":");
    push_json(line, &message.into());
    for (name, value) in fields {
        line.push(',');
        push_json(line, &name.as_str().into());
        line.push(':');
        push_json(line, value);
    }
    line.push_str("}\n");
}

fn write_console(
    line: &mut String,
    level: &str,
    time: SystemTime,
    caller: &str,
    message: &str,
    fields: &[(String, serde_json::Value)],
) {
    write_time(line, time);
    let _ = write!(line, "\t{level}\t{caller}\t{message}");
    for (index, (name, value)) in fields.iter().enumerate() {
        line.push_str(if index == 0 { "\t{" } else { ", " });
        push_json(line, &name.as_str().into());
        line.push_str(": ");
        push_json(line, value);
    }
    line.push_str(if fields.is_empty() { "\n" } else { "}\n" });
}

fn push_json(line: &mut String, value: &serde_json::Value) {
    let _ = write!(line, "{value}");
}

/// UTC with microseconds: `2026-11-20T13:02:04.291879Z`.
fn write_time(line: &mut String, time: SystemTime) {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO);
    let (year, month, day) = civil_date(since.as_secs() / 86_400);
    let second = since.as_secs() % 86_400;
    let (hour, minute, second) = (second / 3600, second / 60 % 60, second % 60);
    let micros = since.subsec_micros();
    let _ = write!(line, "{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{micros:06}Z");
}

/// Days since 1970 to year, month, day: eras of 400 years that start on 1 March (Hinnant, "chrono-compatible algorithms").
fn civil_date(days: u64) -> (u64, u64, u64) {
    let days = days + 719_468;
    let (era, day_of_era) = (days / 146_097, days % 146_097);
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted_month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted_month + 2) / 5 + 1;
    let month = if shifted_month < 10 { shifted_month + 3 } else { shifted_month - 9 };
    (year_of_era + era * 400 + u64::from(month <= 2), month, day)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn logged(format: Format, level: Level) -> String {
        let dir = tempfile::tempdir().expect("temp dir");
        let path = dir.path().join("log");
        let config = LogConfig { level, format, outputs: vec![Output::File(path.clone())] };
        let subscriber = subscriber(&config).expect("opens");
        tracing::subscriber::with_default(subscriber, || {
            tracing::info!(local_member_id = %"a1", count = 3, urls = ?["u"], "ready \"now\"");
            tracing::debug!("detail");
        });
        std::fs::read_to_string(&path).expect("log exists")
    }

    #[test]
    fn json_lines_have_etcds_keys_in_etcds_order() {
        let text = logged(Format::Json, Level::Info);
        assert_eq!(text.lines().count(), 1, "{text}");
        let value: serde_json::Value = serde_json::from_str(&text).expect("JSON");
        assert_eq!(value["level"], "info");
        assert_eq!(value["msg"], "ready \"now\"");
        assert_eq!(value["local-member-id"], "a1");
        assert_eq!(value["count"], 3);
        assert!(value["caller"].as_str().is_some_and(|caller| caller.starts_with("common/logging.rs:")), "{text}");
        let order = ["\"level\"", "\"ts\"", "\"caller\"", "\"msg\"", "\"local-member-id\""];
        let positions: Vec<Option<usize>> = order.iter().map(|key| text.find(key)).collect();
        assert!(positions.is_sorted() && positions[0].is_some(), "{text}");
    }

    #[test]
    fn console_lines_are_tabbed() {
        let text = logged(Format::Console, Level::Debug);
        let mut lines = text.lines();
        let first: Vec<&str> = lines.next().expect("two lines").split('\t').collect();
        assert_eq!((first[1], first[3]), ("info", "ready \"now\""));
        assert_eq!(first[4], r#"{"local-member-id": "a1", "count": 3, "urls": "[\"u\"]"}"#);
        assert!(lines.next().is_some_and(|line| line.ends_with("\tdetail")));
    }

    #[test]
    fn levels_are_etcds() {
        let check = |text: &str, level: Option<Level>| assert_eq!(Level::parse(text), level, "{text}");
        check("debug", Some(Level::Debug));
        check("WARN", Some(Level::Warn));
        check("fatal", Some(Level::Off));
        check("trace", None);
    }

    #[test]
    fn times_are_utc_with_microseconds() {
        let check = |seconds: u64, micros: u32, expected: &str| {
            let mut line = String::new();
            write_time(&mut line, UNIX_EPOCH + Duration::new(seconds, micros * 1000));
            assert_eq!(line, expected);
        };
        check(0, 0, "1970-01-01T00:00:00.000000Z");
        check(951_782_400, 1, "2000-02-29T00:00:00.000001Z");
        check(1_795_179_724, 291_879, "2026-11-20T13:02:04.291879Z");
    }

    #[test]
    fn an_unusable_file_is_named() {
        let config = LogConfig { outputs: vec![Output::File("/nonexistent/x.log".into())], ..LogConfig::default() };
        let error = subscriber(&config).err().expect("cannot open").to_string();
        assert!(error.contains("/nonexistent/x.log"), "{error}");
    }
}

//! etcdutl's log on standard error: time, level, place and text between tabs, and a JSON object (ctl.md 6).

use std::io::Write;

use crate::ctl::print::json::quote_plainly;
use crate::program::Manner;

/// Writes lines in etcdutl's manner; nothing in ours, which tells what it did on standard output.
pub struct Log<'a> {
    err: Option<&'a mut dyn Write>,
}

impl<'a> Log<'a> {
    pub fn new(manner: Manner, err: &'a mut dyn Write) -> Log<'a> {
        Log { err: (manner == Manner::Original).then_some(err) }
    }

    /// One line. `fields` are names with values that are JSON already.
    pub fn info(&mut self, place: &str, text: &str, fields: &[(&str, String)]) {
        let Some(err) = &mut self.err else { return };
        let time = chrono::Local::now().to_rfc3339_opts(chrono::SecondsFormat::Secs, true);
        let fields: Vec<String> = fields.iter().map(|(name, value)| format!("\"{name}\": {value}")).collect();
        let object = if fields.is_empty() { String::new() } else { format!("\t{{{}}}", fields.join(", ")) };
        // A log that nobody can read is no reason to fail.
        let _ = writeln!(err, "{time}\tinfo\t{place}\t{text}{object}");
    }
}

/// A text as a field's value.
pub fn text(value: impl std::fmt::Display) -> String {
    quote_plainly(&value.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_zaps_console_form() {
        let mut written = Vec::new();
        let mut log = Log::new(Manner::Original, &mut written);
        log.info("a/b.go:7", "said", &[("path", text("x\"y")), ("count", "5".to_owned())]);
        log.info("a/b.go:8", "bare", &[]);
        let written = String::from_utf8(written).unwrap();
        let (time, rest) = written.split_once('\t').unwrap();
        assert!(time.len() >= 20 && time.as_bytes()[10] == b'T', "{time}");
        assert!(rest.starts_with("info\ta/b.go:7\tsaid\t{\"path\": \"x\\\"y\", \"count\": 5}\n"), "{rest}");
        assert!(rest.ends_with("\tinfo\ta/b.go:8\tbare\n"), "{rest}");
        let mut silent = Vec::new();
        Log::new(Manner::Native, &mut silent).info("a", "b", &[]);
        assert!(silent.is_empty());
    }
}

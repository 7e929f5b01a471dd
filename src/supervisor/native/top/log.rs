//! The lines of the chosen process that are at hand, and which of them are on the screen.

use std::collections::VecDeque;

use super::text;
use crate::supervisor::output::pretty;
use crate::supervisor::output::store::Followed;
use crate::supervisor::output::store::LogLine;
use crate::supervisor::output::store::Stream;

/// Lines that are kept. `logs` has more of them.
const LINES_MAX: usize = 2_000;
/// Bytes that are kept of one line.
const LINE_BYTES_MAX: usize = 4 << 10;

/// Where a line comes from, as far as its looks tell.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tone {
    Out,
    Err,
    /// We say it.
    Note,
}

/// How lines are laid out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Layout {
    /// Long lines go on in the next row, else they are cut.
    pub wraps: bool,
    /// Logs in JSON are made readable.
    pub readable: bool,
}

#[derive(Debug)]
struct Kept {
    tone: Tone,
    text: String,
    readable: Option<String>,
    /// It goes on with the next line of the same stream.
    partial: bool,
}

#[derive(Debug, Default)]
pub struct Log {
    lines: VecDeque<Kept>,
    /// Lines from the end that are below the screen. 0 follows what comes.
    back: usize,
    /// Rows there were when it was last drawn.
    page: usize,
}

impl Log {
    pub fn add(&mut self, followed: Followed) {
        match followed {
            Followed::Line(line) => self.add_line(line),
            Followed::Lost { lost, .. } => {
                let text = format!("[{lost} lines were overwritten before they could be shown]");
                self.push(Kept { tone: Tone::Note, text, readable: None, partial: false });
            }
        }
    }

    fn add_line(&mut self, line: LogLine) {
        let tone = match line.stream {
            Stream::Out => Tone::Out,
            Stream::Err => Tone::Err,
            Stream::Own => Tone::Note,
        };
        if let Some(last) = self.lines.back_mut().filter(|last| last.partial && last.tone == tone) {
            last.text.push_str(&line.text);
            shorten(&mut last.text);
            last.partial = line.partial;
            return;
        }
        let mut readable = pretty::render(line.text.as_bytes(), false);
        if let Some(readable) = &mut readable {
            shorten(readable);
        }
        let mut text = line.text;
        shorten(&mut text);
        self.push(Kept { tone, text, readable, partial: line.partial });
    }

    fn push(&mut self, line: Kept) {
        if self.lines.len() == LINES_MAX {
            self.lines.pop_front();
        }
        self.lines.push_back(line);
        // Whoever looks back is not moved by what comes.
        if self.back > 0 {
            self.back = (self.back + 1).min(self.back_max());
        }
    }

    pub fn clear(&mut self) {
        self.lines.clear();
        self.back = 0;
    }

    /// Lines between the screen's last one and the newest.
    pub fn back(&self) -> usize {
        self.back
    }

    pub fn page_up(&mut self) {
        self.back = (self.back + self.step()).min(self.back_max());
    }

    pub fn page_down(&mut self) {
        self.back = self.back.saturating_sub(self.step());
    }

    pub fn home(&mut self) {
        self.back = self.back_max();
    }

    pub fn end(&mut self) {
        self.back = 0;
    }

    /// One line is seen on both pages.
    fn step(&self) -> usize {
        self.page.saturating_sub(1).max(1)
    }

    /// The oldest lines fill a page.
    fn back_max(&self) -> usize {
        self.lines.len().saturating_sub(self.page.max(1))
    }

    /// What stands in so many rows of so many columns, the newest in the last.
    pub fn rows(&mut self, width: usize, height: usize, layout: Layout) -> Vec<(Tone, String)> {
        self.page = height;
        self.back = self.back.min(self.back_max());
        let mut rows = Vec::with_capacity(height);
        for line in self.lines.iter().rev().skip(self.back) {
            let text = line.readable.as_ref().filter(|_| layout.readable).unwrap_or(&line.text);
            let text = text::showable(text);
            match layout.wraps {
                true => rows.extend(text::fold(&text, width).into_iter().rev().map(|row| (line.tone, row.to_owned()))),
                false => rows.push((line.tone, text::cut(&text, width))),
            }
            if rows.len() >= height {
                break;
            }
        }
        rows.truncate(height);
        rows.reverse();
        rows
    }
}

fn shorten(text: &mut String) {
    if text.len() > LINE_BYTES_MAX {
        text.truncate(text.floor_char_boundary(LINE_BYTES_MAX));
        text.push('…');
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PLAIN: Layout = Layout { wraps: false, readable: false };

    fn line(text: &str, partial: bool) -> Followed {
        Followed::Line(LogLine {
            seq: 0,
            time_ns: 0,
            mono_ns: 0,
            name: "web".to_owned(),
            stream: Stream::Out,
            pid: None,
            text: text.to_owned(),
            partial,
        })
    }

    fn log(lines: usize) -> Log {
        let mut log = Log::default();
        (0..lines).for_each(|number| log.add(line(&format!("line {number}"), false)));
        log
    }

    fn shown(log: &mut Log, layout: Layout) -> Vec<String> {
        log.rows(10, 3, layout).into_iter().map(|(_, text)| text).collect()
    }

    #[test]
    fn the_newest_lines_are_shown_until_one_looks_back() {
        let mut log = log(50);
        assert_eq!(shown(&mut log, PLAIN), ["line 47", "line 48", "line 49"]);
        log.page_up();
        assert_eq!(shown(&mut log, PLAIN), ["line 45", "line 46", "line 47"]);
        log.add(line("line 50", false));
        assert_eq!(shown(&mut log, PLAIN), ["line 45", "line 46", "line 47"]);
        assert_eq!(log.back(), 3);
        log.home();
        assert_eq!(shown(&mut log, PLAIN), ["line 0", "line 1", "line 2"]);
        log.page_up();
        assert_eq!(shown(&mut log, PLAIN), ["line 0", "line 1", "line 2"]);
        log.page_down();
        assert_eq!(shown(&mut log, PLAIN), ["line 2", "line 3", "line 4"]);
        log.end();
        assert_eq!(shown(&mut log, PLAIN), ["line 48", "line 49", "line 50"]);
        log.clear();
        log.home();
        assert_eq!(shown(&mut log, PLAIN), [""; 0]);
    }

    #[test]
    fn memory_is_bounded() {
        let mut log = log(LINES_MAX + 5);
        assert_eq!(log.lines.len(), LINES_MAX);
        log.home();
        assert_eq!(shown(&mut log, PLAIN)[0], "line 5");
        log.add(line(&"é".repeat(LINE_BYTES_MAX), true));
        log.add(line(&"é".repeat(LINE_BYTES_MAX), false));
        assert!(log.lines.back().unwrap().text.len() <= LINE_BYTES_MAX + 3);
    }

    #[test]
    fn long_lines_are_cut_or_folded_and_parts_are_joined() {
        let mut log = Log::default();
        log.add(line("password", true));
        log.add(line(": is secret", false));
        assert_eq!(shown(&mut log, PLAIN), ["password:…"]);
        let wraps = Layout { wraps: true, ..PLAIN };
        assert_eq!(shown(&mut log, wraps), ["password: ", "is secret"]);
        log.add(line("0123456789012345678901234567890123456789", false));
        assert_eq!(shown(&mut log, wraps), ["0123456789"; 3]);
        log.add(Followed::Lost { name: "web".to_owned(), lost: 7 });
        assert_eq!(log.rows(10, 1, PLAIN), [(Tone::Note, "[7 lines …".to_owned())]);
    }

    #[test]
    fn logs_in_json_are_shown_as_one_likes() {
        let mut log = Log::default();
        log.add(line(r#"{"level":"info","msg":"ready","n":1}"#, false));
        let rows = |log: &mut Log, readable| log.rows(99, 3, Layout { wraps: false, readable })[0].1.clone();
        assert_eq!(rows(&mut log, true), "INFO  ready  n=1");
        assert_eq!(rows(&mut log, false), r#"{"level":"info","msg":"ready","n":1}"#);
    }
}

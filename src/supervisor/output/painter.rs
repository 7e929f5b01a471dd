//! What a line looks like on the screen: time, name, text; goreman's bytes, or ours.
//!
//! ```text
//! goreman:  ESC[32m14:39:42    web | ESC[mtext       always coloured, names to the right
//! ours:     14:39:42 web    | text                   names to the left, by display width
//!           14:39:42 web    | half a line…           it goes on
//!           14:39:43 web    | …and its end
//!           14:39:43 system | web ended              what we say ourselves
//!           14:39:43 web    ! text                   with --split, of standard error
//! ```

use std::sync::atomic::AtomicU8;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::AtomicUsize;
use std::sync::atomic::Ordering;

use chrono::DateTime;
use chrono::Local;
use clap::ValueEnum;
use regex::bytes::Regex;
use unicode_width::UnicodeWidthStr;

use crate::program::Manner;
use crate::supervisor::output::escapes::Escapes;
use crate::supervisor::output::json;
use crate::supervisor::output::lines::Piece;
use crate::supervisor::output::moment::Moment;
use crate::supervisor::output::pretty;
use crate::supervisor::output::store::LogLine;
use crate::supervisor::output::store::Origin;
use crate::supervisor::output::store::Stream;

/// The name under which we speak ourselves.
pub const SYSTEM: &str = "system";
/// goreman's cycle, by place in the Procfile: green, cyan, magenta, yellow, blue, red.
const COLOURS: [u8; 6] = [32, 36, 35, 33, 34, 31];
/// Grey: what we say ourselves stands back.
const SYSTEM_COLOUR: u8 = 90;
/// A line goes on.
const MORE: &str = "…";

/// How lines show their time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Stamp {
    /// No time
    Off,
    /// 14:39:42
    #[default]
    Seconds,
    /// 14:39:42.123
    Millis,
    /// 2026-05-01T14:39:42.123456+02:00
    Rfc3339,
    /// Seconds since the line before
    Delta,
    /// Seconds of the monotonic clock, as dmesg counts them
    Monotonic,
}

/// How lines are painted.
#[derive(Clone, Debug)]
pub struct Style {
    pub manner: Manner,
    pub colour: bool,
    pub stamp: Stamp,
    /// What becomes of children's own colours.
    pub escapes: Escapes,
    /// Log lines in JSON become readable.
    pub pretty: bool,
    /// Lines become JSON.
    pub json: bool,
    /// What matches stands out.
    pub highlight: Option<Regex>,
    /// Of processes, only what matches this is shown,
    pub grep: Option<Regex>,
    /// and nothing that matches this.
    pub hide: Option<Regex>,
}

impl Style {
    pub fn new(manner: Manner, colour: bool, stamp: Stamp) -> Style {
        let escapes = match (manner, colour) {
            (Manner::Original, _) => Escapes::Keep,
            (Manner::Native, true) => Escapes::Colours,
            (Manner::Native, false) => Escapes::Strip,
        };
        let (pretty, json, highlight, grep, hide) = (false, false, None, None, None);
        Style { manner, colour, stamp, escapes, pretty, json, highlight, grep, hide }
    }
}

/// The looks of one process's lines.
#[derive(Debug)]
pub struct Face {
    name: String,
    /// What it is padded by: letters as goreman, columns natively.
    cells: usize,
    colour: AtomicU8,
}

impl Face {
    fn new(manner: Manner, name: &str, colour: u8) -> Face {
        let cells = match manner {
            // goreman counts bytes, and pads characters (supervisor.md 1.10).
            Manner::Original => name.chars().count(),
            Manner::Native => name.width(),
        };
        Face { name: name.to_owned(), cells, colour: AtomicU8::new(colour) }
    }

    /// It stands at another place of the Procfile now.
    pub fn move_to(&self, place: usize) {
        self.colour.store(COLOURS[place % COLOURS.len()], Ordering::Relaxed);
    }
}

#[derive(Debug)]
pub struct Painter {
    style: Style,
    /// Of the widest name so far.
    width: AtomicUsize,
    system: Face,
    /// When the last line was painted, for differences.
    last_ns: AtomicU64,
}

impl Painter {
    /// For processes of these names.
    pub fn new<'a>(style: Style, names: impl IntoIterator<Item = &'a str>) -> Painter {
        let own = (style.manner == Manner::Native).then_some(SYSTEM);
        let widths = names.into_iter().chain(own).map(|name| name_width(style.manner, name));
        let width = AtomicUsize::new(widths.max().unwrap_or_default());
        let system = Face::new(style.manner, SYSTEM, SYSTEM_COLOUR);
        Painter { style, width, system, last_ns: AtomicU64::new(0) }
    }

    /// Of the process at this place of the Procfile.
    pub fn face(&self, place: usize, name: &str) -> Face {
        self.admit(name);
        Face::new(self.style.manner, name, COLOURS[place % COLOURS.len()])
    }

    /// Makes room for a name that may be wider than those so far.
    pub fn admit(&self, name: &str) {
        self.width.fetch_max(name_width(self.style.manner, name), Ordering::Relaxed);
    }

    /// Columns in front of a line's text, without its time.
    pub fn prefix_width(&self) -> usize {
        self.width.load(Ordering::Relaxed) + " | ".len()
    }

    /// Our own.
    pub fn system(&self) -> &Face {
        &self.system
    }

    /// The time in front of lines of this moment. The same for all of them, so it is made once.
    pub fn clock(&self, at: Moment) -> String {
        let local =
            || DateTime::from_timestamp_nanos(i64::try_from(at.wall_ns).unwrap_or(i64::MAX)).with_timezone(&Local);
        match self.style.stamp {
            Stamp::Off | Stamp::Delta => String::new(),
            Stamp::Seconds => local().format("%H:%M:%S ").to_string(),
            Stamp::Millis => local().format("%H:%M:%S%.3f ").to_string(),
            Stamp::Rfc3339 => local().format("%Y-%m-%dT%H:%M:%S%.6f%:z ").to_string(),
            Stamp::Monotonic => format!("{:>13.6} ", at.mono_ns as f64 / 1e9),
        }
    }

    /// goreman's line; `line` has its line feed.
    pub fn original(&self, into: &mut Vec<u8>, face: &Face, clock: &str, line: &[u8]) {
        self.head(into, face, clock, " | ", "\x1b[m");
        into.extend_from_slice(line);
    }

    /// Our line, if it is to be shown.
    pub fn line(&self, into: &mut Vec<u8>, face: &Face, origin: Origin, clock: &str, piece: Piece<'_>) -> bool {
        // The end of a line that was shown already is no line.
        let is_end = piece.text.is_empty() && !piece.begins;
        if is_end || (origin.stream != Stream::Own && self.is_hidden(piece.text)) {
            return false;
        }
        if self.style.json {
            json::line(into, &face.name, origin, piece.text, !piece.ends);
            return true;
        }
        let (face, bar) = match origin.stream {
            Stream::Out => (face, " | "),
            Stream::Err => (face, " ! "),
            Stream::Own => (&self.system, " | "),
        };
        match self.style.stamp {
            Stamp::Delta => self.head(into, face, &self.delta(origin.at), bar, "\x1b[0m"),
            _ => self.head(into, face, clock, bar, "\x1b[0m"),
        }
        if !piece.begins {
            into.extend_from_slice(MORE.as_bytes());
        }
        if self.text(into, piece) {
            // A colour that a child left on ends with its line.
            into.extend_from_slice(b"\x1b[0m");
        }
        if !piece.ends {
            into.extend_from_slice(MORE.as_bytes());
        }
        into.push(b'\n');
        true
    }

    fn is_hidden(&self, text: &[u8]) -> bool {
        let Style { grep, hide, .. } = &self.style;
        grep.as_ref().is_some_and(|grep| !grep.is_match(text)) || hide.as_ref().is_some_and(|hide| hide.is_match(text))
    }

    /// Since the line before.
    fn delta(&self, at: Moment) -> String {
        let last = self.last_ns.swap(at.mono_ns, Ordering::Relaxed);
        let span = if last == 0 { 0 } else { at.mono_ns.saturating_sub(last) };
        format!("{:>+9.3} ", span as f64 / 1e9)
    }

    /// The text itself. Whether there are colours in it.
    fn text(&self, into: &mut Vec<u8>, piece: Piece<'_>) -> bool {
        let style = &self.style;
        let whole = piece.begins && piece.ends;
        let pretty = (style.pretty && whole).then(|| pretty::render(piece.text, style.colour)).flatten();
        let text = pretty.as_ref().map_or(piece.text, |text| text.as_bytes());
        match &style.highlight {
            Some(highlight) if style.colour && highlight.is_match(text) => {
                let inverse = |found: &regex::bytes::Captures<'_>| [&b"\x1b[7m"[..], &found[0], b"\x1b[27m"].concat();
                style.escapes.copy(&highlight.replace_all(text, inverse), into)
            }
            _ => style.escapes.copy(text, into),
        }
    }

    /// A line of our own.
    pub fn own(&self, text: &str) -> Vec<u8> {
        let origin = Origin { stream: Stream::Own, pid: None, at: Moment::now() };
        self.own_of(&self.system, origin, text)
    }

    /// A line of our own about a process.
    pub fn own_of(&self, face: &Face, origin: Origin, text: &str) -> Vec<u8> {
        let clock = self.clock(origin.at);
        let mut bytes = Vec::new();
        for line in text.lines() {
            self.line(&mut bytes, face, origin, &clock, Piece::whole(line.as_bytes()));
        }
        bytes
    }

    /// A line that was remembered.
    pub fn remembered(&self, into: &mut Vec<u8>, face: &Face, line: &LogLine) {
        let origin = Origin { stream: line.stream, pid: line.pid, at: line.moment() };
        let piece = Piece { text: line.text.as_bytes(), begins: true, ends: !line.partial };
        self.line(into, face, origin, &self.clock(origin.at), piece);
    }

    fn head(&self, into: &mut Vec<u8>, face: &Face, clock: &str, bar: &str, reset: &str) {
        if self.style.colour {
            into.extend_from_slice(format!("\x1b[{}m", face.colour.load(Ordering::Relaxed)).as_bytes());
        }
        into.extend_from_slice(clock.as_bytes());
        let gap = self.width.load(Ordering::Relaxed).saturating_sub(face.cells);
        let spaces =
            |into: &mut Vec<u8>, wanted: bool| into.extend(std::iter::repeat_n(b' ', if wanted { gap } else { 0 }));
        spaces(into, self.style.manner == Manner::Original);
        into.extend_from_slice(face.name.as_bytes());
        spaces(into, self.style.manner == Manner::Native);
        into.extend_from_slice(bar.as_bytes());
        if self.style.colour {
            into.extend_from_slice(reset.as_bytes());
        }
    }
}

/// What counts as the width of a name.
fn name_width(manner: Manner, name: &str) -> usize {
    match manner {
        // goreman counts bytes, and pads characters (supervisor.md 1.10).
        Manner::Original => name.len(),
        Manner::Native => name.width(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const AT: Moment = Moment { wall_ns: 1_000_000_000, mono_ns: 12_345_678_901 };

    fn native(colour: bool, stamp: Stamp) -> Style {
        Style::new(Manner::Native, colour, stamp)
    }

    #[test]
    fn prefixes_are_goremans_bytes() {
        let check = |names: &[&str], place: usize, name: &str, clock: &str, expected: &[u8]| {
            let style = Style::new(Manner::Original, true, Stamp::Seconds);
            let painter = Painter::new(style, names.iter().copied());
            let mut bytes = Vec::new();
            painter.original(&mut bytes, &painter.face(place, name), clock, b"up\n");
            assert_eq!(bytes, expected);
        };
        check(&["web", "worker"], 0, "web", "14:39:42 ", b"\x1b[32m14:39:42    web | \x1b[mup\n");
        check(&["web", "worker"], 7, "worker", "14:39:42 ", b"\x1b[36m14:39:42 worker | \x1b[mup\n");
        check(&["a"], 0, "a", "", b"\x1b[32ma | \x1b[mup\n");
        // Two letters of two bytes each: counted as four, padded to four characters.
        check(&["éé"], 0, "éé", "", "\x1b[32m  éé | \x1b[mup\n".as_bytes());
    }

    fn painted(style: Style, name: &str, stream: Stream, piece: Piece<'_>) -> String {
        let painter = Painter::new(style, [name]);
        let mut bytes = Vec::new();
        painter.line(&mut bytes, &painter.face(0, name), Origin { stream, pid: None, at: AT }, "", piece);
        String::from_utf8(bytes).unwrap()
    }

    #[test]
    fn ours_are_aligned_by_what_is_seen() {
        let check = |name: &str, stream: Stream, piece: Piece<'_>, expected: &str| {
            assert_eq!(painted(native(false, Stamp::Off), name, stream, piece), expected);
        };
        check("web", Stream::Out, Piece::whole(b"up"), "web    | up\n");
        check("数据库", Stream::Out, Piece::whole(b""), "数据库 | \n");
        check("e\u{301}", Stream::Err, Piece::whole(b"up"), "e\u{301}      ! up\n");
        check("web", Stream::Own, Piece::whole(b"web ended"), "system | web ended\n");
        check("web", Stream::Out, Piece { text: b"ha", begins: true, ends: false }, "web    | ha…\n");
        check("web", Stream::Out, Piece { text: b"lf", begins: false, ends: true }, "web    | …lf\n");
        check("web", Stream::Out, Piece { text: b"", begins: false, ends: true }, "");
        check("web", Stream::Out, Piece::whole(b"\x1b[31mred"), "web    | red\n");
    }

    #[test]
    fn a_childs_colour_ends_with_its_line() {
        let text = painted(native(true, Stamp::Off), "web", Stream::Out, Piece::whole(b"\x1b[31mred"));
        assert_eq!(text, "\x1b[32mweb    | \x1b[0m\x1b[31mred\x1b[0m\n");
        let text = painted(native(true, Stamp::Off), "web", Stream::Own, Piece::whole(b"up"));
        assert_eq!(text, "\x1b[90msystem | \x1b[0mup\n");
    }

    #[test]
    fn a_wider_name_that_comes_later_moves_the_bar_and_a_place_gives_its_colour() {
        let painter = Painter::new(native(true, Stamp::Off), ["web"]);
        let web = painter.face(0, "web");
        let shown = |face: &Face| {
            let mut bytes = Vec::new();
            let origin = Origin { stream: Stream::Out, pid: None, at: AT };
            painter.line(&mut bytes, face, origin, "", Piece::whole(b"up"));
            String::from_utf8(bytes).unwrap()
        };
        assert_eq!(shown(&web), "\x1b[32mweb    | \x1b[0mup\n");
        let wide = painter.face(1, "database");
        web.move_to(2);
        assert_eq!(shown(&web), "\x1b[35mweb      | \x1b[0mup\n");
        assert_eq!(shown(&wide), "\x1b[36mdatabase | \x1b[0mup\n");
    }

    #[test]
    fn lines_are_chosen_made_readable_and_marked() {
        let regex = |text: &str| Some(Regex::new(text).unwrap());
        let check = |style: Style, text: &str, expected: &str| {
            assert_eq!(painted(style, "web", Stream::Out, Piece::whole(text.as_bytes())), expected);
        };
        let plain = native(false, Stamp::Off);
        check(Style { grep: regex("up"), ..plain.clone() }, "it is up", "web    | it is up\n");
        check(Style { grep: regex("up"), ..plain.clone() }, "it is down", "");
        check(Style { hide: regex("^it"), ..plain.clone() }, "it is up", "");
        check(Style { pretty: true, ..plain.clone() }, r#"{"level":"info","msg":"up"}"#, "web    | INFO  up\n");
        let bright = Style { highlight: regex("u+p"), ..native(true, Stamp::Off) };
        check(bright, "it is uup", "\x1b[32mweb    | \x1b[0mit is \x1b[7muup\x1b[27m\x1b[0m\n");
        // Ours are never hidden.
        let text = painted(Style { grep: regex("up"), ..plain.clone() }, "web", Stream::Own, Piece::whole(b"ended"));
        assert_eq!(text, "system | ended\n");
        let text = painted(Style { json: true, ..plain }, "web", Stream::Own, Piece::whole(b"ended"));
        assert!(text.contains(r#""name":"web","stream":"own","pid":null,"text":"ended""#), "{text}");
    }

    #[test]
    fn times_are_shown_as_asked() {
        let clock = |stamp: Stamp| Painter::new(native(false, stamp), []).clock(AT);
        assert_eq!(clock(Stamp::Off), "");
        assert_eq!(clock(Stamp::Monotonic), "    12.345679 ");
        // The rest depends on where we are.
        assert!(clock(Stamp::Seconds).ends_with(":01 ") && clock(Stamp::Seconds).len() == 9);
        assert!(clock(Stamp::Millis).ends_with(":01.000 ") && clock(Stamp::Millis).len() == 13);
        let rfc = clock(Stamp::Rfc3339);
        assert!(DateTime::parse_from_rfc3339(rfc.trim_end()).is_ok(), "{rfc}");
        let painter = Painter::new(native(false, Stamp::Delta), []);
        let mut bytes = Vec::new();
        let later = Moment { mono_ns: AT.mono_ns + 1_250_000_000, ..AT };
        for at in [AT, later, later] {
            let origin = Origin { stream: Stream::Own, pid: None, at };
            painter.line(&mut bytes, &painter.face(0, ""), origin, "", Piece::whole(b"x"));
        }
        let text = String::from_utf8(bytes).unwrap();
        assert_eq!(text, "   +0.000 system | x\n   +1.250 system | x\n   +0.000 system | x\n");
    }
}

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

use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering;

use chrono::DateTime;
use chrono::Local;
use clap::ValueEnum;
use unicode_width::UnicodeWidthStr;

use crate::program::Manner;
use crate::supervisor::output::escapes::Escapes;
use crate::supervisor::output::lines::Piece;
use crate::supervisor::output::moment::Moment;
use crate::supervisor::output::store::LogLine;
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
#[derive(Debug)]
pub struct Style {
    pub manner: Manner,
    pub colour: bool,
    pub stamp: Stamp,
    /// What becomes of children's own colours.
    pub escapes: Escapes,
}

/// The looks of one process's lines.
#[derive(Clone, Debug)]
pub struct Face {
    padded: String,
    colour: u8,
}

#[derive(Debug)]
pub struct Painter {
    style: Style,
    width: usize,
    system: Face,
    /// When the last line was painted, for differences.
    last_ns: AtomicU64,
}

impl Painter {
    /// For processes of these names.
    pub fn new<'a>(style: Style, names: impl IntoIterator<Item = &'a str>) -> Painter {
        let own = (style.manner == Manner::Native).then_some(SYSTEM);
        let widths = names.into_iter().chain(own).map(|name| name_width(style.manner, name));
        let width = widths.max().unwrap_or_default();
        let system = Face { padded: padded(style.manner, SYSTEM, width), colour: SYSTEM_COLOUR };
        Painter { style, width, system, last_ns: AtomicU64::new(0) }
    }

    /// Of the process at this place of the Procfile.
    pub fn face(&self, place: usize, name: &str) -> Face {
        Face { padded: padded(self.style.manner, name, self.width), colour: COLOURS[place % COLOURS.len()] }
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
        self.head(into, face, clock, '|', "\x1b[m");
        into.extend_from_slice(line);
    }

    /// Our line.
    pub fn line(&self, into: &mut Vec<u8>, face: &Face, stream: Stream, clock: &str, at: Moment, piece: Piece<'_>) {
        if piece.text.is_empty() && !piece.begins {
            // The end of a line that was shown already.
            return;
        }
        let delta;
        let clock = match self.style.stamp {
            Stamp::Delta => {
                let last = self.last_ns.swap(at.mono_ns, Ordering::Relaxed);
                let span = if last == 0 { 0 } else { at.mono_ns.saturating_sub(last) };
                delta = format!("{:>+9.3} ", span as f64 / 1e9);
                &delta
            }
            _ => clock,
        };
        let bar = if stream == Stream::Err { '!' } else { '|' };
        let face = if stream == Stream::Own { &self.system } else { face };
        self.head(into, face, clock, bar, "\x1b[0m");
        if !piece.begins {
            into.extend_from_slice(MORE.as_bytes());
        }
        let coloured = self.style.escapes.copy(piece.text, into);
        if coloured {
            // A colour that a child left on ends with its line.
            into.extend_from_slice(b"\x1b[0m");
        }
        if !piece.ends {
            into.extend_from_slice(MORE.as_bytes());
        }
        into.push(b'\n');
    }

    /// A line of our own.
    pub fn own(&self, text: &str) -> Vec<u8> {
        let at = Moment::now();
        let mut bytes = Vec::new();
        for line in text.lines() {
            self.line(&mut bytes, &self.system, Stream::Own, &self.clock(at), at, Piece::whole(line.as_bytes()));
        }
        bytes
    }

    /// A line that was remembered.
    pub fn remembered(&self, into: &mut Vec<u8>, face: &Face, line: &LogLine) {
        let piece = Piece { text: line.text.as_bytes(), begins: true, ends: !line.partial };
        self.line(into, face, line.stream, &self.clock(line.moment()), line.moment(), piece);
    }

    fn head(&self, into: &mut Vec<u8>, face: &Face, clock: &str, bar: char, reset: &str) {
        if self.style.colour {
            into.extend_from_slice(format!("\x1b[{}m", face.colour).as_bytes());
        }
        into.extend_from_slice(clock.as_bytes());
        into.extend_from_slice(face.padded.as_bytes());
        into.extend_from_slice(if bar == '!' { b" ! " } else { b" | " });
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

fn padded(manner: Manner, name: &str, width: usize) -> String {
    match manner {
        Manner::Original => format!("{name:>width$}"),
        Manner::Native => format!("{name}{}", " ".repeat(width.saturating_sub(name.width()))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const AT: Moment = Moment { wall_ns: 1_000_000_000, mono_ns: 12_345_678_901 };

    fn native(colour: bool, stamp: Stamp) -> Style {
        let escapes = if colour { Escapes::Colours } else { Escapes::Strip };
        Style { manner: Manner::Native, colour, stamp, escapes }
    }

    #[test]
    fn prefixes_are_goremans_bytes() {
        let check = |names: &[&str], place: usize, name: &str, clock: &str, expected: &[u8]| {
            let style = Style { manner: Manner::Original, colour: true, stamp: Stamp::Seconds, escapes: Escapes::Keep };
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
        painter.line(&mut bytes, &painter.face(0, name), stream, "", AT, piece);
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
            painter.line(&mut bytes, &painter.face(0, ""), Stream::Own, "", at, Piece::whole(b"x"));
        }
        let text = String::from_utf8(bytes).unwrap();
        assert_eq!(text, "   +0.000 system | x\n   +1.250 system | x\n   +0.000 system | x\n");
    }
}

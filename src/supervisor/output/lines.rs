//! Cuts what a process prints into lines.
//!
//! goreman's way (`Lines`) keeps every byte and drops blank lines. Ours (`Cutter`) gives lines in pieces: a line that does
//! not end in time is shown as far as it has come and goes on later, and one that is too long is cut short. A carriage
//! return inside a line is the end of a progress bar's state and breaks the line; files never see any of this.

/// Bytes of one line that are shown and remembered. The rest of it is counted.
pub const LINE_BYTES_MAX: usize = 1 << 20;
/// goreman sets no limit; neither do we, short of what a machine holds.
const ORIGINAL_BYTES_MAX: usize = 64 << 20;

/// A line, or a part of one. Without its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Piece<'a> {
    pub text: &'a [u8],
    /// It is the beginning of its line.
    pub begins: bool,
    /// It is the end of its line.
    pub ends: bool,
}

impl<'a> Piece<'a> {
    /// A whole line.
    pub fn whole(text: &'a [u8]) -> Piece<'a> {
        Piece { text, begins: true, ends: true }
    }
}

/// Our way. Gives pieces to a function, so that nothing is copied that arrived whole.
#[derive(Debug, Default)]
pub struct Cutter {
    held: Vec<u8>,
    /// Bytes of the current line that were given out.
    given: usize,
    /// Bytes of it that were too many.
    skipped: u64,
    /// A line ended with a carriage return; a line feed right behind it belongs to it.
    returned: bool,
}

impl Cutter {
    pub fn push(&mut self, mut bytes: &[u8], mut give: impl FnMut(Piece<'_>)) {
        if self.returned && !bytes.is_empty() {
            self.returned = false;
            bytes = bytes.strip_prefix(b"\n").unwrap_or(bytes);
        }
        while let Some(at) = memchr::memchr2(b'\n', b'\r', bytes) {
            let is_return = bytes[at] == b'\r';
            self.take(&bytes[..at], &mut give);
            bytes = &bytes[at + 1..];
            if !is_return {
                self.end_line(&mut give);
                continue;
            }
            // A bar that begins with a carriage return has nothing in front of it to show.
            if self.has_line() {
                self.end_line(&mut give);
                match bytes.first() {
                    Some(b'\n') => bytes = &bytes[1..],
                    Some(_) => {}
                    None => self.returned = true,
                }
            }
        }
        self.take(bytes, &mut give);
    }

    /// Whether something waits for its line's end.
    pub fn is_holding(&self) -> bool {
        !self.held.is_empty()
    }

    /// Gives out what is held: its line goes on later.
    pub fn release(&mut self, mut give: impl FnMut(Piece<'_>)) {
        if self.is_holding() {
            give(Piece { text: &self.held, begins: self.given == 0, ends: false });
            self.given += self.held.len();
            self.held.clear();
        }
    }

    /// Nothing more comes: a line without its end ends here.
    pub fn finish(&mut self, mut give: impl FnMut(Piece<'_>)) {
        if self.has_line() {
            self.end_line(&mut give);
        }
    }

    fn has_line(&self) -> bool {
        self.is_holding() || self.given > 0
    }

    /// Holds `text`, which has no line end, as far as the line may become longer.
    fn take(&mut self, text: &[u8], give: &mut impl FnMut(Piece<'_>)) {
        let room = LINE_BYTES_MAX.saturating_sub(self.given + self.held.len());
        let kept = room.min(text.len());
        self.held.extend_from_slice(&text[..kept]);
        if kept < text.len() {
            self.release(&mut *give);
            self.skipped += (text.len() - kept) as u64;
        }
    }

    fn end_line(&mut self, give: &mut impl FnMut(Piece<'_>)) {
        let begins = self.given == 0;
        if self.skipped > 0 {
            let note = format!("[{} more bytes of this line are not shown]", self.skipped);
            give(Piece { text: note.as_bytes(), begins, ends: true });
        } else {
            give(Piece { text: &self.held, begins, ends: true });
        }
        self.held.clear();
        (self.given, self.skipped) = (0, 0);
        // What one huge line needed is not kept for ever.
        self.held.shrink_to(64 << 10);
    }
}

/// goreman's way: lines with their line feed; empty ones are dropped.
#[derive(Debug, Default)]
pub struct Lines {
    partial: Vec<u8>,
}

impl Lines {
    pub fn push(&mut self, bytes: &[u8], mut give: impl FnMut(&[u8])) {
        for piece in bytes.split_inclusive(|byte| *byte == b'\n') {
            self.partial.extend_from_slice(piece);
            if piece.ends_with(b"\n") {
                if self.partial != b"\n" {
                    give(&self.partial);
                }
                self.partial.clear();
            } else if self.partial.len() > ORIGINAL_BYTES_MAX {
                self.flush(&mut give);
            }
        }
    }

    pub fn is_holding(&self) -> bool {
        !self.partial.is_empty()
    }

    /// What is left without a line feed, with one added.
    pub fn flush(&mut self, mut give: impl FnMut(&[u8])) {
        if self.is_holding() {
            self.partial.push(b'\n');
            give(&self.partial);
            self.partial.clear();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Pieces as text: `+` in front of one that goes on a line, `+` behind one whose line goes on.
    fn pieces(cutter: &mut Cutter, bytes: &[u8]) -> Vec<String> {
        let mut found = Vec::new();
        cutter.push(bytes, |piece| found.push(shown(piece)));
        found
    }

    fn shown(piece: Piece<'_>) -> String {
        let mark = |whole: bool| if whole { "" } else { "+" };
        format!("{}{}{}", mark(piece.begins), String::from_utf8_lossy(piece.text), mark(piece.ends))
    }

    #[test]
    fn lines_come_out_whole_and_blank_ones_stay() {
        let mut cutter = Cutter::default();
        assert_eq!(pieces(&mut cutter, b"one\ntw"), ["one"]);
        assert!(cutter.is_holding());
        assert_eq!(pieces(&mut cutter, b"o\n\n \n"), ["two", "", " "]);
        assert!(!cutter.is_holding());
    }

    #[test]
    fn a_line_that_does_not_end_goes_on_later_and_is_never_lost() {
        let mut cutter = Cutter::default();
        let mut found = pieces(&mut cutter, b"abc");
        cutter.release(|piece| found.push(shown(piece)));
        found.extend(pieces(&mut cutter, b"def"));
        cutter.release(|piece| found.push(shown(piece)));
        found.extend(pieces(&mut cutter, b"\nnext"));
        cutter.finish(|piece| found.push(shown(piece)));
        assert_eq!(found, ["abc+", "+def+", "+", "next"]);
        cutter.finish(|piece| panic!("nothing is left: {piece:?}"));
    }

    #[test]
    fn a_carriage_return_breaks_a_line_and_a_line_feed_behind_it_is_the_same_end() {
        let check = |input: &[&str], expected: &[&str]| {
            let mut cutter = Cutter::default();
            let found: Vec<String> = input.iter().flat_map(|text| pieces(&mut cutter, text.as_bytes())).collect();
            assert_eq!(found, expected, "{input:?}");
        };
        check(&["10%\r20%\r\ndone\n"], &["10%", "20%", "done"]);
        check(&["\r10%", "\r20%\r", "\nnext\r\n\r\n"], &["10%", "20%", "next", ""]);
        check(&["a\r", "b\n"], &["a", "b"]);
        check(&["a\r\r\nb\n"], &["a", "", "b"]);
    }

    #[test]
    fn a_line_without_end_needs_no_more_than_its_bound() {
        let mut cutter = Cutter::default();
        let (mut given, mut lines) = (0, Vec::new());
        let block = vec![b'x'; 300_000];
        for _ in 0..10 {
            cutter.push(&block, |piece| given += piece.text.len());
            assert!(cutter.held.len() <= LINE_BYTES_MAX);
        }
        cutter.push(b"\nnext\n", |piece| lines.push(shown(piece)));
        assert_eq!(given, LINE_BYTES_MAX);
        let note = format!("+[{} more bytes of this line are not shown]", 3_000_000 - LINE_BYTES_MAX);
        assert_eq!(lines, [note, "next".to_owned()]);
    }

    #[test]
    fn goreman_drops_blank_lines_and_ends_what_has_no_end() {
        let mut lines = Lines::default();
        let mut found = Vec::new();
        lines.push(b"one\n\n\n \n\r\nab", |line| found.push(line.to_vec()));
        assert_eq!(found, [b"one\n".to_vec(), b" \n".to_vec(), b"\r\n".to_vec()]);
        lines.push(b"c", |line| panic!("{line:?}"));
        lines.flush(|line| found.push(line.to_vec()));
        assert_eq!(found.last(), Some(&b"abc\n".to_vec()));
        lines.flush(|line| panic!("{line:?}"));
    }
}

//! What a line of a log may put on a screen that it shares: text whose width is known, cut or folded to the room there is.

use unicode_width::UnicodeWidthChar;

use crate::supervisor::output::escapes;

/// Columns from one tab stop to the next.
const TAB: usize = 8;
/// Stands for what did not fit.
const MORE: char = '…';

/// The text without what moves, rings or hides: sequences are gone, tabs are blanks.
///
/// Letters that change the width of their neighbours go too, for no two terminals agree on the width of what they make:
/// an emoji of several parts is shown part by part.
pub fn showable(text: &str) -> String {
    let mut shown = String::with_capacity(text.len());
    let mut column = 0;
    for letter in escapes::strip(text).chars() {
        match letter {
            '\t' => {
                let gap = TAB - column % TAB;
                shown.extend(std::iter::repeat_n(' ', gap));
                column += gap;
            }
            '\n' => shown.push(' '),
            letter if is_unseen(letter) => {}
            letter => {
                column += letter.width().unwrap_or_default();
                shown.push(letter);
            }
        }
    }
    shown
}

/// Controls, joiners, marks of direction, and those that choose between looks of the letter before.
fn is_unseen(letter: char) -> bool {
    letter.is_control()
        || matches!(letter, '\u{ad}' | '\u{61c}' | '\u{feff}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}')
        || matches!(letter, '\u{2060}'..='\u{206f}' | '\u{fe00}'..='\u{fe0f}' | '\u{1f3fb}'..='\u{1f3ff}')
        || matches!(letter, '\u{e0000}'..='\u{e0fff}')
}

/// As much of showable text as so many columns hold; its last column tells that there is more.
pub fn cut(text: &str, width: usize) -> String {
    let (first, rest) = split(text, width);
    if rest.is_empty() || width == 0 {
        return first.to_owned();
    }
    format!("{}{MORE}", split(text, width - 1).0)
}

/// The same with the end kept, as paths are best known by theirs.
pub fn cut_front(text: &str, width: usize) -> String {
    let mut rest = text;
    let columns = |text: &str| text.chars().filter_map(UnicodeWidthChar::width).sum::<usize>();
    if columns(text) <= width {
        return text.to_owned();
    }
    while columns(rest) + 1 > width {
        let mut letters = rest.chars();
        if letters.next().is_none() {
            return String::new();
        }
        rest = letters.as_str();
    }
    format!("{MORE}{rest}")
}

/// Showable text in pieces of at most so many columns. Blank text is one piece.
pub fn fold(text: &str, width: usize) -> Vec<&str> {
    let (first, mut rest) = split(text, width);
    let mut pieces = vec![first];
    while !rest.is_empty() {
        let (piece, after) = split(rest, width);
        if piece.is_empty() {
            // Not even one letter fits.
            return pieces;
        }
        pieces.push(piece);
        rest = after;
    }
    pieces
}

/// What so many columns hold, and the rest.
fn split(text: &str, width: usize) -> (&str, &str) {
    let mut columns = 0;
    for (at, letter) in text.char_indices() {
        columns += letter.width().unwrap_or_default();
        if columns > width {
            return text.split_at(at);
        }
    }
    (text, "")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_that_is_shown_moves_anything() {
        let check = |text: &str, expected: &str| assert_eq!(showable(text), expected, "{text:?}");
        check("plain", "plain");
        check("\x1b[31mred\x1b[0m\x1b[2J\x1b[5;5Hhome", "redhome");
        check("a\tb\tc", "a       b       c");
        check("12345678\tx", "12345678        x");
        check("网\tx", "网      x");
        check("bell\x07 back\x08 return\rx\u{9b}31m", "bell back returnx31m");
        check("two\nlines", "two lines");
        check("\u{202e}left\u{200d}\u{feff}", "left");
        check("👩\u{200d}👧 ❤\u{fe0f} 👍\u{1f3fd}", "👩👧 ❤ 👍");
        check("e\u{301}", "e\u{301}");
    }

    #[test]
    fn text_is_cut_and_folded_by_columns() {
        assert_eq!((cut("abcdef", 6), cut("abcdef", 4)), ("abcdef".to_owned(), "abc…".to_owned()));
        assert_eq!((cut("网站网站", 4), cut("网站网站", 5)), ("网…".to_owned(), "网站…".to_owned()));
        assert_eq!((cut("ab", 1), cut("ab", 0)), ("…".to_owned(), String::new()));
        assert_eq!((cut_front("/a/bc", 5), cut_front("/a/bc", 4)), ("/a/bc".to_owned(), "…/bc".to_owned()));
        assert_eq!((cut_front("网站", 3), cut_front("ab", 0)), ("…站".to_owned(), String::new()));
        assert_eq!(fold("abcde", 2), ["ab", "cd", "e"]);
        assert_eq!(fold("a网b", 2), ["a", "网", "b"]);
        assert_eq!(fold("", 2), [""]);
        assert_eq!(fold("网", 1), [""], "no letter fits, and it ends all the same");
    }
}

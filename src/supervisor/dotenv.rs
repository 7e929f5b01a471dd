//! `.env` files: godotenv's grammar, as goreman reads it (supervisor.md 1.7).

use std::collections::BTreeMap;

/// What is wrong with a file, and where.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("line {line}: {what}")]
pub struct DotenvError {
    /// From 1: where the pair begins that cannot be read.
    pub line: usize,
    pub what: String,
}

/// The value of a name that a file does not set before it uses it.
pub type Outer<'a> = &'a dyn Fn(&str) -> Option<String>;

/// The pairs of one file, or what is wrong with it. Within a file the last line of a key counts.
pub fn parse(text: &str) -> Result<BTreeMap<String, String>, DotenvError> {
    parse_within(text, &|_| None)
}

/// The same, for a file whose `$NAME`s may stand outside of it.
pub fn parse_within(text: &str, outer: Outer) -> Result<BTreeMap<String, String>, DotenvError> {
    let mut pairs = BTreeMap::new();
    let text = text.replace("\r\n", "\n");
    let mut rest = text.as_str();
    loop {
        rest = skip_blank(rest);
        if rest.is_empty() {
            return Ok(pairs);
        }
        let line = 1 + text[..text.len() - rest.len()].matches('\n').count();
        let failed = |what: String| DotenvError { line, what };
        let (key, after) = key(rest).map_err(failed)?;
        let known = |name: &str| pairs.get(name).cloned().or_else(|| outer(name));
        let (value, after) = value(after, &known).map_err(failed)?;
        pairs.insert(key, value);
        rest = after;
    }
}

/// Drops blanks, empty lines and comment lines.
fn skip_blank(mut text: &str) -> &str {
    loop {
        text = text.trim_start();
        match text.strip_prefix('#') {
            Some(comment) => text = comment.split_once('\n').map_or("", |(_, rest)| rest),
            None => return text,
        }
    }
}

/// `export KEY =`, `KEY:`: the key and what follows the separator.
fn key(text: &str) -> Result<(String, &str), String> {
    let line = text.split('\n').next().unwrap_or_default();
    let body = match text.strip_prefix("export") {
        Some(rest) if rest.starts_with([' ', '\t']) => rest.trim_start_matches([' ', '\t']),
        _ => text,
    };
    for (at, letter) in body.char_indices() {
        match letter {
            '=' | ':' => return Ok((body[..at].trim().to_owned(), &body[at + 1..])),
            '\n' => break,
            '_' | '.' | ' ' | '\t' => {}
            _ if letter.is_alphanumeric() => {}
            _ => return Err(format!("unexpected character {letter:?} in variable name near {line:?}")),
        }
    }
    Err(format!("no \"=\" in {line:?}"))
}

/// A value behind the separator and what follows its line.
fn value<'a>(text: &'a str, known: Outer) -> Result<(String, &'a str), String> {
    let text = text.trim_start_matches([' ', '\t']);
    let Some(quote) = text.chars().next().filter(|letter| matches!(letter, '"' | '\'')) else {
        let (line, rest) = text.split_once('\n').unwrap_or((text, ""));
        return Ok((expand(cut_comment(line).trim_end(), known), rest));
    };
    let body = &text[1..];
    let end = closing(body, quote).ok_or_else(|| format!("unterminated quoted value {:?}", first_line(text)))?;
    let (line, rest) = body[end + 1..].split_once('\n').unwrap_or((&body[end + 1..], ""));
    let tail = line.trim();
    if !tail.is_empty() && !tail.starts_with('#') {
        return Err(format!("unexpected text {tail:?} after a quoted value"));
    }
    let raw = &body[..end];
    let value = if quote == '"' { expand(&unescape(raw), known) } else { raw.to_owned() };
    Ok((value, rest))
}

fn first_line(text: &str) -> &str {
    text.split('\n').next().unwrap_or_default()
}

/// Where the quote ends that is not escaped.
fn closing(body: &str, quote: char) -> Option<usize> {
    let mut escaped = false;
    for (at, letter) in body.char_indices() {
        if letter == quote && !escaped {
            return Some(at);
        }
        escaped = letter == '\\' && !escaped;
    }
    None
}

/// An unquoted value ends at its last ` #`; a `#` with no blank in front belongs to it.
fn cut_comment(line: &str) -> &str {
    let hashes = line.char_indices().rev().filter(|(_, letter)| *letter == '#');
    let blank_before = |at: usize| line[..at].chars().next_back().is_some_and(char::is_whitespace);
    match hashes.map(|(at, _)| at).find(|at| blank_before(*at)) {
        Some(at) => &line[..at],
        None => line,
    }
}

/// `\n` and `\r` become line ends, `\$` is kept for `expand`, other backslashes go.
fn unescape(raw: &str) -> String {
    let mut text = String::new();
    let mut letters = raw.chars();
    while let Some(letter) = letters.next() {
        match (letter, letter == '\\') {
            (_, false) => text.push(letter),
            (_, true) => match letters.next() {
                Some('n') => text.push('\n'),
                Some('r') => text.push('\r'),
                Some('$') => text.push_str("\\$"),
                Some(other) => text.push(other),
                None => text.push('\\'),
            },
        }
    }
    text
}

/// `$NAME` and `${NAME}` from what is known; names are capitals, digits and `_`.
fn expand(text: &str, known: Outer) -> String {
    let mut out = String::new();
    let mut rest = text;
    while let Some(at) = rest.find('$') {
        let before = &rest[..at];
        let after = &rest[at + 1..];
        if let Some(kept) = before.strip_suffix('\\') {
            out.push_str(kept);
            out.push('$');
            rest = after;
            continue;
        }
        out.push_str(before);
        let (braced, body) = after.strip_prefix('{').map_or((false, after), |body| (true, body));
        let is_name = |letter: char| letter.is_ascii_uppercase() || letter.is_ascii_digit() || letter == '_';
        let end = body.find(|letter: char| !is_name(letter)).unwrap_or(body.len());
        if end == 0 {
            out.push('$');
            rest = after;
            continue;
        }
        out.push_str(&known(&body[..end]).unwrap_or_default());
        rest = &body[end..];
        if braced {
            rest = rest.strip_prefix('}').unwrap_or(rest);
        }
    }
    out.push_str(rest);
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(text: &str, expected: &[(&str, &str)]) {
        let found = parse(text).unwrap_or_else(|error| panic!("{text:?}: {error}"));
        let pairs: Vec<(&str, &str)> = found.iter().map(|(key, value)| (key.as_str(), value.as_str())).collect();
        assert_eq!(pairs, expected, "{text:?}");
    }

    #[test]
    fn every_accepted_form_is_read() {
        check("K=V\n", &[("K", "V")]);
        check("export K=V", &[("K", "V")]);
        check("K: V\n", &[("K", "V")]);
        check("  K  =  V  \r\n# comment\n\n", &[("K", "V")]);
        check("K=a # c # d\n", &[("K", "a # c")]);
        check("K=a#b\n", &[("K", "a#b")]);
        check("K='a $X \\n'\n", &[("K", "a $X \\n")]);
        check("K=\"a\\nb\\tc\"\n", &[("K", "a\nbtc")]);
        check("K=\"two\nlines\"\nL=1\n", &[("K", "two\nlines"), ("L", "1")]);
        check("K=1\nK=2\n", &[("K", "2")]);
    }

    #[test]
    fn variables_come_from_earlier_lines_of_the_file_only() {
        check("A=1\nB=$A-${A}\n", &[("A", "1"), ("B", "1-1")]);
        check("B=$HOME.\n", &[("B", ".")]);
        check("B=$lower\n", &[("B", "$lower")]);
        check("A=1\nB=\\$A\n", &[("A", "1"), ("B", "$A")]);
        check("B=$(date) `x` $$ $\n", &[("B", "$(date) `x` $$ $")]);
    }

    #[test]
    fn what_does_not_parse_is_an_error() {
        for text in ["novalue\n", "export K\n", "K=\"x\"y\n", "K=\"open\n", "a-b=1\n", "\u{feff}K=1\n"] {
            assert!(parse(text).is_err(), "{text:?}");
        }
    }

    #[test]
    fn errors_name_the_line_where_the_pair_begins() {
        let line = |text: &str| parse(text).unwrap_err().line;
        assert_eq!(line("A=1\n# c\n\nB=\"two\nlines\"\nnonsense\n"), 6);
        assert_eq!(line("A=1\nB=\"open\nfor ever\n"), 2);
        let error = parse("A=1\r\nnonsense\r\n").unwrap_err();
        assert_eq!(error.to_string(), "line 2: no \"=\" in \"nonsense\"");
    }

    #[test]
    fn a_file_may_use_what_stands_outside_of_it() {
        let outer = |name: &str| (name == "HOME").then(|| "/root".to_owned());
        let pairs = parse_within("A=$HOME/a\nHOME=/x\nB=$HOME/b\nC=$NONE.\n", &outer).unwrap();
        assert_eq!((pairs["A"].as_str(), pairs["B"].as_str(), pairs["C"].as_str()), ("/root/a", "/x/b", "."));
    }
}

//! Go's quoted strings, as `%q` prints them and as `strconv.Unquote` reads them.

/// Prints bytes as Go's `%q`: printable Unicode stays, everything else is escaped (ctl.md 9).
pub(crate) fn quote(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(bytes.len() + 2);
    text.push('"');
    for chunk in bytes.utf8_chunks() {
        chunk.valid().chars().for_each(|at| quote_char(at, &mut text));
        chunk.invalid().iter().for_each(|byte| text.push_str(&format!("\\x{byte:02x}")));
    }
    text.push('"');
    text
}

fn quote_char(at: char, text: &mut String) {
    match at {
        '"' => text.push_str("\\\""),
        '\\' => text.push_str("\\\\"),
        '\x07' => text.push_str("\\a"),
        '\x08' => text.push_str("\\b"),
        '\x0c' => text.push_str("\\f"),
        '\n' => text.push_str("\\n"),
        '\r' => text.push_str("\\r"),
        '\t' => text.push_str("\\t"),
        '\x0b' => text.push_str("\\v"),
        _ if is_printable(at) => text.push(at),
        _ => match u32::from(at) {
            code @ ..0x20 | code @ 0x7f => text.push_str(&format!("\\x{code:02x}")),
            code @ ..0x1_0000 => text.push_str(&format!("\\u{code:04x}")),
            code => text.push_str(&format!("\\U{code:08x}")),
        },
    }
}

/// Whether Go prints the character as it is: letters, marks, numbers, punctuation, symbols and the ASCII blank.
fn is_printable(at: char) -> bool {
    // Behind another character, so that a combining mark is not escaped for standing alone.
    let text: String = ['a', at].iter().collect();
    matches!(at, '\'' | '"' | '\\') || text.escape_debug().count() == 2
}

/// Reads the Go string at the start of `text`: `"…"` with escapes or a back-quoted raw one. Returns the bytes it means
/// and what is left behind it; `None` when it is malformed or not closed.
pub(super) fn unquote_prefix(text: &str) -> Option<(Vec<u8>, &str)> {
    if let Some(rest) = text.strip_prefix('`') {
        let end = rest.find('`')?;
        return Some((rest[..end].replace('\r', "").into_bytes(), &rest[end + 1..]));
    }
    let mut rest = text.strip_prefix('"')?;
    let mut bytes = Vec::new();
    loop {
        let at = rest.chars().next()?;
        rest = &rest[at.len_utf8()..];
        match at {
            '"' => return Some((bytes, rest)),
            '\n' => return None,
            '\\' => rest = unescape(rest, &mut bytes)?,
            _ => bytes.extend_from_slice(at.encode_utf8(&mut [0; 4]).as_bytes()),
        }
    }
}

/// Reads one escape behind its backslash; returns what follows.
fn unescape<'a>(text: &'a str, bytes: &mut Vec<u8>) -> Option<&'a str> {
    let kind = text.chars().next()?;
    let rest = &text[kind.len_utf8()..];
    let simple = match kind {
        'a' => 0x07,
        'b' => 0x08,
        'f' => 0x0c,
        'n' => b'\n',
        'r' => b'\r',
        't' => b'\t',
        'v' => 0x0b,
        '\\' => b'\\',
        '"' => b'"',
        'x' => return unescape_number(rest, 2, 16, bytes, true),
        'u' => return unescape_number(rest, 4, 16, bytes, false),
        'U' => return unescape_number(rest, 8, 16, bytes, false),
        '0'..='7' => return unescape_number(text, 3, 8, bytes, true),
        _ => return None,
    };
    bytes.push(simple);
    Some(rest)
}

/// Reads `digits` digits and adds the byte or the character that they name.
fn unescape_number<'a>(text: &'a str, digits: usize, base: u32, bytes: &mut Vec<u8>, byte: bool) -> Option<&'a str> {
    let number = text.get(..digits).filter(|number| number.bytes().all(|digit| digit.is_ascii_hexdigit()))?;
    let value = u32::from_str_radix(number, base).ok()?;
    if byte {
        bytes.push(u8::try_from(value).ok()?);
    } else {
        bytes.extend_from_slice(char::from_u32(value)?.encode_utf8(&mut [0; 4]).as_bytes());
    }
    Some(&text[digits..])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quoting_is_gos() {
        let check = |bytes: &[u8], expected: &str| assert_eq!(quote(bytes), expected);
        check(b"a\tb\nc\"d\\e\x01", r#""a\tb\nc\"d\\e\x01""#);
        check("uni✓é 世'".as_bytes(), "\"uni✓é 世'\"");
        check(b"\xff\x00\x7f\x1b", r#""\xff\x00\x7f\x1b""#);
        check("\u{a0}\u{ad}\u{200b}\u{e0001}".as_bytes(), r#""\u00a0\u00ad\u200b\U000e0001""#);
        check("e\u{301}".as_bytes(), "\"e\u{301}\"");
        check(b"", "\"\"");
    }

    #[test]
    fn unquoting_is_gos() {
        let check = |text: &str, expected: Option<(&[u8], &str)>| {
            let read = unquote_prefix(text);
            assert_eq!(read.as_ref().map(|(bytes, rest)| (bytes.as_slice(), *rest)), expected, "{text}");
        };
        check(r#""a b" rest"#, Some((b"a b", " rest")));
        check(r#""\x41\101\u00e9\n\"\\""#, Some((b"AA\xc3\xa9\n\"\\", "")));
        check("`raw \\n` x", Some((b"raw \\n", " x")));
        check(r#""\xff""#, Some((b"\xff", "")));
        for wrong in [
            "",
            "x",
            "\"open",
            "\"\\",
            "\"\\q\"",
            "\"\\x4\"",
            "\"\\400\"",
            "\"\\ud800\"",
            "'a'",
            "\"\\é\"",
            "\"\\x+1\"",
        ] {
            check(wrong, None);
        }
    }
}

//! JSON as Go's encoder spells it: the bytes that etcd stores for members and that a hash over the buckets covers.

/// Appends `text` as a JSON string with Go's escapes: `<`, `>`, `&` and U+2028/2029 as `\u` sequences.
pub fn push_string(out: &mut String, text: &str) {
    out.push('"');
    for c in text.chars() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            '\u{8}' => out.push_str("\\b"),
            '\u{c}' => out.push_str("\\f"),
            '<' | '>' | '&' | '\u{2028}' | '\u{2029}' | '\u{0}'..='\u{1f}' => {
                out.push_str(&format!("\\u{:04x}", u32::from(c)));
            }
            other => out.push(other),
        }
    }
    out.push('"');
}

/// Appends a list of strings.
pub fn push_strings(out: &mut String, texts: &[String]) {
    out.push('[');
    for (at, text) in texts.iter().enumerate() {
        if at > 0 {
            out.push(',');
        }
        push_string(out, text);
    }
    out.push(']');
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn strings_are_escaped_like_gos() {
        let check = |text: &str, expected: &str| {
            let mut out = String::new();
            push_string(&mut out, text);
            assert_eq!(out, expected);
        };
        check("plain/é", "\"plain/é\"");
        check("a\"b\\c", r#""a\"b\\c""#);
        check("<&>", r#""\u003c\u0026\u003e""#);
        check("\n\t\r\u{1}\u{8}\u{c}", r#""\n\t\r\u0001\b\f""#);
        check("\u{2028}", r#""\u2028""#);
    }

    #[test]
    fn lists_are_joined_by_commas() {
        let mut out = String::new();
        push_strings(&mut out, &["a".to_owned(), "b".to_owned()]);
        push_strings(&mut out, &[]);
        assert_eq!(out, r#"["a","b"][]"#);
    }
}

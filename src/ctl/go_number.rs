//! Numbers and truth values as Go's strconv reads them, with its error texts.

/// Reads a signed number in `base`; base 0 takes `0x`, `0o`, `0b`, a leading 0, and underscores between digits.
pub(super) fn parse_int(text: &str, base: u32) -> Result<i64, String> {
    let failed = |why: &str| format!("strconv.ParseInt: parsing {}: {why}", super::go_text::quote(text.as_bytes()));
    let (negative, digits) = match text.as_bytes().first() {
        Some(b'-') => (true, &text[1..]),
        Some(b'+') => (false, &text[1..]),
        _ => (false, text),
    };
    let size = magnitude(digits, base).map_err(|why| failed(why.text()))?;
    let value = if negative { -i128::from(size) } else { i128::from(size) };
    i64::try_from(value).map_err(|_| failed(Why::Range.text()))
}

/// Reads a number without a sign in `base`; with base 0 the text says it, as with `0x`.
pub(super) fn parse_uint(text: &str, base: u32) -> Result<u64, String> {
    let failed =
        |why: Why| format!("strconv.ParseUint: parsing {}: {}", super::go_text::quote(text.as_bytes()), why.text());
    magnitude(text, base).map_err(failed)
}

/// Reads a truth value: `1 t T TRUE true True` and their opposites.
pub(super) fn parse_bool(text: &str) -> Result<bool, String> {
    match text {
        "1" | "t" | "T" | "TRUE" | "true" | "True" => Ok(true),
        "0" | "f" | "F" | "FALSE" | "false" | "False" => Ok(false),
        _ => Err(format!("strconv.ParseBool: parsing {}: invalid syntax", super::go_text::quote(text.as_bytes()))),
    }
}

enum Why {
    Syntax,
    Range,
}

impl Why {
    fn text(&self) -> &'static str {
        match self {
            Why::Syntax => "invalid syntax",
            Why::Range => "value out of range",
        }
    }
}

fn magnitude(text: &str, base: u32) -> Result<u64, Why> {
    let (digits, base, free) = if base == 0 { split_base(text) } else { (text.to_owned(), base, false) };
    if free && !underscores_fit(text) {
        return Err(Why::Syntax);
    }
    if digits.is_empty() || !digits.chars().all(|digit| digit.is_digit(base)) {
        return Err(Why::Syntax);
    }
    u64::from_str_radix(&digits, base).map_err(|_| Why::Range)
}

/// Takes the prefix that names the base off, and the underscores out.
fn split_base(text: &str) -> (String, u32, bool) {
    let lower = text.to_ascii_lowercase();
    let named = [("0x", 16), ("0o", 8), ("0b", 2)].into_iter().find(|(prefix, _)| lower.starts_with(prefix));
    let (digits, base) = match named {
        Some((prefix, base)) => (&lower[prefix.len()..], base),
        None if lower.len() > 1 && lower.starts_with('0') => (&lower[1..], 8),
        None => (lower.as_str(), 10),
    };
    (digits.replace('_', ""), base, true)
}

/// Underscores stand only between digits or behind the base's prefix.
fn underscores_fit(text: &str) -> bool {
    let bytes = text.as_bytes();
    bytes.iter().enumerate().all(|(at, byte)| {
        let beside = |at: Option<usize>| at.and_then(|at| bytes.get(at)).is_some_and(u8::is_ascii_alphanumeric);
        *byte != b'_' || (beside(at.checked_sub(1)) && beside(Some(at + 1)))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_read_as_go_does() {
        let check = |text: &str, base: u32, expected: Result<i64, &str>| {
            let expected = expected.map_err(|why| format!("strconv.ParseInt: parsing \"{text}\": {why}"));
            assert_eq!(parse_int(text, base), expected, "{text}");
        };
        check("42", 10, Ok(42));
        check("-9223372036854775808", 10, Ok(i64::MIN));
        check("9223372036854775808", 10, Err("value out of range"));
        check("zz", 16, Err("invalid syntax"));
        check("0x10", 16, Err("invalid syntax"));
        check("", 16, Err("invalid syntax"));
        check("7eeda1f7b4ec4329", 16, Ok(0x7eed_a1f7_b4ec_4329));
        check("ffffffffffffffff", 16, Err("value out of range"));
        check("0x10", 0, Ok(16));
        check("0b1", 0, Ok(1));
        check("010", 0, Ok(8));
        check("1_000", 0, Ok(1000));
        check("1__0", 0, Err("invalid syntax"));
        check("_1", 0, Err("invalid syntax"));
        check("1_", 0, Err("invalid syntax"));
        check("0", 0, Ok(0));
        check("0x", 0, Err("invalid syntax"));
        check("+-1", 0, Err("invalid syntax"));
        check("1.5", 0, Err("invalid syntax"));
    }

    #[test]
    fn truth_values_are_read_as_go_does() {
        assert_eq!(parse_bool("T"), Ok(true));
        assert_eq!(parse_bool("False"), Ok(false));
        assert_eq!(parse_bool("yes"), Err("strconv.ParseBool: parsing \"yes\": invalid syntax".to_owned()));
    }
}

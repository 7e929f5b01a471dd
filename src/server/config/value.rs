//! Whether a typed value fits its flag, with the words of Go's flag package, and what it means.

use std::time::Duration;

use crate::common::go_duration;
use crate::common::urls;
use crate::server::config::features::FeatureGates;
use crate::server::config::flags::Kind;

/// Go's flag package says no more than this about numbers, booleans and durations.
const PARSE_ERROR: &str = "parse error";
const RANGE_ERROR: &str = "value out of range";

/// The reason that etcd gives for refusing the value.
pub fn check(kind: Kind, text: &str) -> Result<(), String> {
    match kind {
        Kind::Text => Ok(()),
        Kind::Bool => boolean(text).map(drop).ok_or_else(|| PARSE_ERROR.to_owned()),
        Kind::Unsigned => unsigned(text).map(drop).map_err(|error| flag_words(error).to_owned()),
        Kind::Unsigned32 => match unsigned(text).and_then(|value| u32::try_from(value).map_err(|_| NumberError::Range))
        {
            Ok(_) => Ok(()),
            Err(NumberError::Syntax) => Err(format!("strconv.ParseUint: parsing \"{text}\": invalid syntax")),
            Err(NumberError::Range) => Err(format!("strconv.ParseUint: parsing \"{text}\": {RANGE_ERROR}")),
        },
        Kind::Signed => signed(text).map(drop).map_err(|error| flag_words(error).to_owned()),
        Kind::Duration => go_duration::parse_signed(text).map(drop).map_err(|_| PARSE_ERROR.to_owned()),
        Kind::Urls => urls::parse_list(text).map(drop),
        Kind::UrlsOrNone if text.is_empty() => Ok(()),
        Kind::UrlsOrNone => urls::parse_list(text).map(drop),
        Kind::OneOf(words) if words.contains(&text) => Ok(()),
        Kind::OneOf(_) => Err("invalid value".to_owned()),
        Kind::FeatureGates => FeatureGates::parse(text).map(drop),
    }
}

/// Whether two valid values of a kind mean the same: `1h` and `60m`, `true` and `1`.
pub fn same(kind: Kind, left: &str, right: &str) -> bool {
    match kind {
        Kind::Bool => boolean(left) == boolean(right),
        Kind::Unsigned | Kind::Unsigned32 => unsigned(left) == unsigned(right),
        Kind::Signed => signed(left) == signed(right),
        Kind::Duration => go_duration::parse_signed(left) == go_duration::parse_signed(right),
        _ => left == right,
    }
}

/// Go's strconv.ParseBool.
pub fn boolean(text: &str) -> Option<bool> {
    match text {
        "1" | "t" | "T" | "true" | "TRUE" | "True" => Some(true),
        "0" | "f" | "F" | "false" | "FALSE" | "False" => Some(false),
        _ => None,
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NumberError {
    Syntax,
    Range,
}

fn flag_words(error: NumberError) -> &'static str {
    match error {
        NumberError::Syntax => PARSE_ERROR,
        NumberError::Range => RANGE_ERROR,
    }
}

/// Go's strconv.ParseUint with base 0: decimal, or `0x`, `0o`, `0b`, `0` in front.
pub fn unsigned(text: &str) -> Result<u64, NumberError> {
    let (base, digits) = match text.as_bytes() {
        [b'0', b'x' | b'X', ..] => (16, &text[2..]),
        [b'0', b'b' | b'B', ..] => (2, &text[2..]),
        [b'0', b'o' | b'O', ..] => (8, &text[2..]),
        [b'0', _, ..] => (8, &text[1..]),
        _ => (10, text),
    };
    if digits.is_empty() || !digits.chars().all(|digit| digit.is_digit(base)) {
        return Err(NumberError::Syntax);
    }
    u64::from_str_radix(digits, base).map_err(|_| NumberError::Range)
}

/// Go's strconv.ParseInt with base 0.
pub fn signed(text: &str) -> Result<i64, NumberError> {
    let (negative, digits) = match text.as_bytes().first() {
        Some(b'-') => (true, &text[1..]),
        Some(b'+') => (false, &text[1..]),
        _ => (false, text),
    };
    let value = i128::from(unsigned(digits)?);
    i64::try_from(if negative { -value } else { value }).map_err(|_| NumberError::Range)
}

/// A duration of a flag: negative ones, which no flag gives a meaning, count as 0.
pub fn duration(text: &str) -> Duration {
    go_duration::parse(text).unwrap_or(Duration::ZERO)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_refused_in_gos_words() {
        let check_error = |kind: Kind, text: &str, error: &str| {
            assert_eq!(check(kind, text), Err(error.to_owned()), "{text}");
        };
        check_error(Kind::Bool, "yes", "parse error");
        check_error(Kind::Unsigned, "-1", "parse error");
        check_error(Kind::Unsigned, "99999999999999999999", "value out of range");
        check_error(Kind::Unsigned32, "x", "strconv.ParseUint: parsing \"x\": invalid syntax");
        check_error(Kind::Unsigned32, "4294967296", "strconv.ParseUint: parsing \"4294967296\": value out of range");
        check_error(Kind::Signed, "1.5", "parse error");
        check_error(Kind::Duration, "5", "parse error");
        check_error(Kind::Urls, "foo", "URL scheme must be http, https, unix, or unixs: foo");
        check_error(Kind::Urls, "", "URL scheme must be http, https, unix, or unixs: ");
        check_error(Kind::OneOf(&["new"]), "foo", "invalid value");
        check_error(Kind::FeatureGates, "Nope=true", "unrecognized feature gate: Nope");
        assert_eq!(check(Kind::UrlsOrNone, ""), Ok(()));
    }

    #[test]
    fn numbers_have_gos_bases() {
        assert_eq!(unsigned("0x10"), Ok(16));
        assert_eq!(unsigned("010"), Ok(8));
        assert_eq!(unsigned("0"), Ok(0));
        assert_eq!(signed("-0b11"), Ok(-3));
        assert_eq!(signed("-9223372036854775808"), Ok(i64::MIN));
        assert_eq!(signed("9223372036854775808"), Err(NumberError::Range));
    }
}

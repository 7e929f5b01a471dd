//! Durations as Go's flags and log lines spell them: `1h30m`, `300ms`, `1.5s`.

use std::time::Duration;

/// Reads Go's form. Errors carry Go's text: `time: invalid duration "x"`.
pub fn parse(text: &str) -> Result<Duration, String> {
    parse_signed(text).and_then(|nanos| match u64::try_from(nanos) {
        Ok(nanos) => Ok(Duration::from_nanos(nanos)),
        Err(_) => Err(format!("time: negative duration \"{text}\"")),
    })
}

/// Reads Go's form with its sign: nanoseconds.
pub fn parse_signed(text: &str) -> Result<i64, String> {
    let invalid = || format!("time: invalid duration \"{text}\"");
    let (negative, mut rest) = match text.as_bytes().first() {
        Some(b'-') => (true, &text[1..]),
        Some(b'+') => (false, &text[1..]),
        _ => (false, text),
    };
    if rest == "0" {
        return Ok(0);
    }
    if rest.is_empty() {
        return Err(invalid());
    }
    let mut total: i128 = 0;
    while !rest.is_empty() {
        let number_len = rest.bytes().take_while(|byte| byte.is_ascii_digit() || *byte == b'.').count();
        let (number, tail) = rest.split_at(number_len);
        let unit_len = tail.bytes().take_while(|byte| !byte.is_ascii_digit() && *byte != b'.').count();
        let (unit, next) = tail.split_at(unit_len);
        if number.is_empty() || number == "." || number.matches('.').count() > 1 {
            return Err(invalid());
        }
        if unit.is_empty() {
            return Err(format!("time: missing unit in duration \"{text}\""));
        }
        let nanos = unit_nanos(unit).ok_or_else(|| format!("time: unknown unit \"{unit}\" in duration \"{text}\""))?;
        let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
        let whole: i128 = if whole.is_empty() { 0 } else { whole.parse().map_err(|_| invalid())? };
        let part = whole.checked_mul(i128::from(nanos)).and_then(|part| total.checked_add(part));
        total = part.and_then(|part| part.checked_add(fraction_nanos(fraction, nanos))).ok_or_else(invalid)?;
        rest = next;
    }
    i64::try_from(if negative { -total } else { total }).map_err(|_| invalid())
}

/// A fraction of a unit, cut to whole nanoseconds as Go does: its digits as one number, so that what `format` wrote is
/// read exactly. Digits beyond 63 bits are passed over.
fn fraction_nanos(digits: &str, unit_nanos: u64) -> i128 {
    let (mut number, mut scale) = (0_i64, 1.0);
    for digit in digits.bytes() {
        let next = number.checked_mul(10).and_then(|tens| tens.checked_add(i64::from(digit - b'0')));
        let Some(next) = next else { break };
        number = next;
        scale *= 10.0;
    }
    (number as f64 * (unit_nanos as f64 / scale)) as i128
}

/// Writes Go's form: `1m30s`, `1.5s`, `250ms`, `0s`.
pub fn format(duration: Duration) -> String {
    let nanos = duration.as_nanos();
    let with_fraction = |unit_nanos: u128, unit: &str| {
        let digits = unit_nanos.ilog10() as usize;
        let fraction = format!("{:0digits$}", nanos % unit_nanos);
        let fraction = fraction.trim_end_matches('0');
        let point = if fraction.is_empty() { "" } else { "." };
        format!("{}{point}{fraction}{unit}", nanos / unit_nanos)
    };
    match nanos {
        0 => "0s".to_owned(),
        1..1_000 => format!("{nanos}ns"),
        1_000..1_000_000 => with_fraction(1_000, "µs"),
        1_000_000..1_000_000_000 => with_fraction(1_000_000, "ms"),
        _ => {
            let seconds = nanos / 1_000_000_000;
            let (hours, minutes) = (seconds / 3600, seconds / 60 % 60);
            let rest = Duration::from_nanos((nanos - (seconds / 60 * 60) * 1_000_000_000) as u64);
            let fraction = format!("{:09}", rest.subsec_nanos());
            let fraction = fraction.trim_end_matches('0');
            let point = if fraction.is_empty() { "" } else { "." };
            let tail = format!("{}{point}{fraction}s", rest.as_secs());
            match (hours, minutes) {
                (0, 0) => tail,
                (0, _) => format!("{minutes}m{tail}"),
                _ => format!("{hours}h{minutes}m{tail}"),
            }
        }
    }
}

fn unit_nanos(unit: &str) -> Option<u64> {
    Some(match unit {
        "ns" => 1,
        "us" | "µs" | "μs" => 1_000,
        "ms" => 1_000_000,
        "s" => 1_000_000_000,
        "m" => 60_000_000_000,
        "h" => 3_600_000_000_000,
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn go_forms_are_read() {
        let check = |text: &str, nanos: i64| assert_eq!(parse_signed(text), Ok(nanos), "{text}");
        check("0", 0);
        check("300ms", 300_000_000);
        check("1h30m", 5_400_000_000_000);
        check("1.5s", 1_500_000_000);
        check("-2s", -2_000_000_000);
        check(".5s", 500_000_000);
        assert_eq!(parse_signed("x"), Err("time: invalid duration \"x\"".to_owned()));
        assert_eq!(parse_signed("5"), Err("time: missing unit in duration \"5\"".to_owned()));
        assert_eq!(parse_signed("5d"), Err("time: unknown unit \"d\" in duration \"5d\"".to_owned()));
        assert!(parse("-1s").is_err());
    }

    #[test]
    fn fractions_are_read_to_the_nanosecond() {
        for (text, nanos) in
            [("0.126614242s", 126_614_242), ("0.507069464s", 507_069_464), ("1.000000003s", 1_000_000_003)]
        {
            assert_eq!(parse(text), Ok(Duration::from_nanos(nanos)), "{text}");
        }
        assert_eq!(parse_signed("-9223372036854775808ns"), Ok(i64::MIN));
    }

    #[test]
    fn go_forms_are_written() {
        let check = |nanos: u64, text: &str| assert_eq!(format(Duration::from_nanos(nanos)), text);
        check(0, "0s");
        check(1_500, "1.5µs");
        check(250_000_000, "250ms");
        check(1_500_000_000, "1.5s");
        check(90_000_000_000, "1m30s");
        check(7_000_000_000, "7s");
        check(3_600_000_000_000, "1h0m0s");
    }
}

//! The JSON lines that etcd's client library writes to standard error, key for key (ctl.md 1.2).

use std::time::Duration;
use std::time::SystemTime;
use std::time::UNIX_EPOCH;

use super::print::json;
use crate::client::FailedAttempt;

/// A line being written: level and time first, then what the caller adds, in order.
pub struct Line {
    text: String,
}

impl Line {
    pub fn new(level: &str) -> Line {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Line { text: format!("{{\"level\":\"{level}\",\"ts\":\"{}\"", zulu(now)) }
    }

    pub fn text(mut self, key: &str, value: &str) -> Line {
        self.text.push_str(&format!(",\"{key}\":{}", json::quote_plainly(value)));
        self
    }

    pub fn number(mut self, key: &str, value: u32) -> Line {
        self.text.push_str(&format!(",\"{key}\":{value}"));
        self
    }

    pub fn caller(self, place: &str) -> Line {
        self.text("caller", place)
    }

    pub fn message(self, text: &str) -> Line {
        self.text("msg", text)
    }

    /// The finished line with its newline.
    pub fn end(self) -> String {
        self.text + "}\n"
    }
}

/// The line for one failed attempt of a call. `target` is the first endpoint's authority.
pub fn failed_attempt(logger: &str, target: &str, failed: &FailedAttempt<'_>) -> String {
    let peer = match failed.peer {
        Some((peer, local)) => {
            let kind = if failed.is_tls { "tls" } else { "insecure" };
            format!("Peer{{Addr: '{peer}', LocalAddr: '{local}', AuthInfo: '{kind}'}}")
        }
        None => "Peer{Addr: <nil>, LocalAddr: <nil>, AuthInfo: <nil>}".to_owned(),
    };
    Line::new("warn")
        .text("logger", logger)
        .caller("v3/retry_interceptor.go:68")
        .message("retrying of unary invoker failed")
        .text("target", &format!("etcd-endpoints://0x{:x}/{target}", std::process::id()))
        .text("peer", &peer)
        .text("method", failed.method)
        .number("attempt", failed.attempt)
        .text("error", &failed.error)
        .end()
}

/// Whether warnings are shown under this value of `ETCD_CLIENT_DEBUG`; `None` for a value that is no level.
pub fn shows_warnings(level: Option<&str>) -> Option<bool> {
    match level.unwrap_or_default() {
        "" | "true" | "debug" | "info" | "warn" => Some(true),
        "error" | "dpanic" | "panic" | "fatal" => Some(false),
        _ => None,
    }
}

/// Whether news are shown under this value of `ETCD_CLIENT_DEBUG`.
pub fn shows_news(level: Option<&str>) -> bool {
    shows_warnings(level).unwrap_or(true) && level != Some("warn")
}

/// What is told of a level that is none, with the date as Go's log package writes it.
pub fn bad_level() -> String {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let date = zulu(now)[..19].replace('-', "/").replace('T', " ");
    format!("{date} Invalid value for environment variable 'ETCD_CLIENT_DEBUG'. Using default level: 'info'\n")
}

/// RFC 3339 in UTC with microseconds.
fn zulu(since_epoch: Duration) -> String {
    let seconds = since_epoch.as_secs();
    let (year, month, day) = civil(seconds / 86_400);
    let (hour, minute, second) = (seconds / 3600 % 24, seconds / 60 % 60, seconds % 60);
    let micros = since_epoch.subsec_micros();
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{micros:06}Z")
}

/// Year, month and day of a day counted from 1970-01-01 (Gregorian, by eras of 400 years that begin in March).
fn civil(days: u64) -> (u64, u64, u64) {
    let shifted = days + 719_468;
    let (era, day_of_era) = (shifted / 146_097, shifted % 146_097);
    let year_of_era = (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let march_month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * march_month + 2) / 5 + 1;
    let month = if march_month < 10 { march_month + 3 } else { march_month - 9 };
    (year_of_era + era * 400 + u64::from(month <= 2), month, day)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_rfc_3339() {
        let check = |seconds: u64, expected: &str| assert_eq!(zulu(Duration::from_secs(seconds)), expected);
        check(0, "1970-01-01T00:00:00.000000Z");
        check(951_782_399, "2000-02-28T23:59:59.000000Z");
        check(951_782_400, "2000-02-29T00:00:00.000000Z");
        check(1_795_157_230, "2026-11-20T06:47:10.000000Z");
        assert_eq!(zulu(Duration::from_micros(724_871)), "1970-01-01T00:00:00.724871Z");
    }

    #[test]
    fn a_failed_attempt_has_etcds_keys_in_order() {
        let peer = ("127.0.0.1:30079".to_owned(), "127.0.0.1:50890".to_owned());
        let error = "rpc error: code = OutOfRange desc = x \"y\"".to_owned();
        let failed =
            FailedAttempt { method: "/etcdserverpb.KV/Range", attempt: 0, peer: Some(&peer), is_tls: false, error };
        let line = failed_attempt("etcd-client", "127.0.0.1:30079", &failed);
        let fixed = line.split_once("\"logger\"").expect("after the time").1;
        let (head, tail) = fixed.split_once("etcd-endpoints://").expect("a target");
        assert_eq!(
            head,
            ":\"etcd-client\",\"caller\":\"v3/retry_interceptor.go:68\",\"msg\":\"retrying of unary invoker failed\",\
             \"target\":\""
        );
        assert!(tail.ends_with(
            "/127.0.0.1:30079\",\"peer\":\"Peer{Addr: '127.0.0.1:30079', LocalAddr: '127.0.0.1:50890', AuthInfo: \
             'insecure'}\",\"method\":\"/etcdserverpb.KV/Range\",\"attempt\":0,\"error\":\"rpc error: code = \
             OutOfRange \
             desc = x \\\"y\\\"\"}\n"
        ));
    }
}

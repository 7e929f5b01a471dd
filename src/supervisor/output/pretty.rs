//! A JSON log line of etcd (zap) or of ours, made readable: time, level, message, fields.
//!
//! ```text
//! {"level":"warn","ts":"2026-05-01T14:39:42.123456Z","caller":"raft/raft.go:1","msg":"lost leader","term":3}
//! 14:39:42.123 WARN  lost leader  term=3
//! ```

use std::fmt;
use std::fmt::Write;

use serde::Deserialize;
use serde::Deserializer;
use serde::de::MapAccess;
use serde::de::Visitor;
use serde_json::Value;

/// The members of an object in the order in which they stand.
struct Members(Vec<(String, Value)>);

impl<'de> Deserialize<'de> for Members {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Members, D::Error> {
        struct Object;
        impl<'de> Visitor<'de> for Object {
            type Value = Members;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Members, A::Error> {
                let mut members = Vec::new();
                while let Some(member) = map.next_entry()? {
                    members.push(member);
                }
                Ok(Members(members))
            }
        }
        deserializer.deserialize_map(Object)
    }
}

/// The line made readable, or `None` if it is no log line in JSON.
pub fn render(line: &[u8], colour: bool) -> Option<String> {
    if !line.starts_with(b"{") {
        return None;
    }
    let Members(members) = serde_json::from_slice(line).ok()?;
    let find = |names: &[&str]| members.iter().find(|(name, _)| names.contains(&name.as_str())).map(|(_, value)| value);
    let level = find(&["level"])?.as_str()?.to_ascii_uppercase();
    let message = find(&["msg", "message"])?.as_str()?;
    let mut text = String::new();
    if let Some(time) = find(&["ts", "time", "timestamp"]) {
        text.push_str(&clock(time));
        text.push(' ');
    }
    let shade = match level.as_str() {
        "ERROR" | "FATAL" | "PANIC" | "DPANIC" => 31,
        "WARN" | "WARNING" => 33,
        "DEBUG" | "TRACE" => 90,
        _ => 32,
    };
    // Writing into a string does not fail.
    let _ = match colour {
        true => write!(text, "\x1b[{shade}m{level:<5}\x1b[0m {}", plain(message)),
        false => write!(text, "{level:<5} {}", plain(message)),
    };
    let mut gap = "  ";
    for (name, value) in &members {
        if !matches!(name.as_str(), "level" | "msg" | "message" | "ts" | "time" | "timestamp" | "caller") {
            let _ = write!(text, "{gap}{}={}", plain(name), field(value));
            gap = " ";
        }
    }
    Some(text)
}

/// Time of day of a time stamp, which may be text or seconds.
fn clock(time: &Value) -> String {
    let Some(text) = time.as_str() else {
        let millis = time.as_f64().map(|seconds| (seconds * 1e3) as i64);
        let local = millis.and_then(chrono::DateTime::from_timestamp_millis);
        return local.map_or_else(|| time.to_string(), |time| time.format("%H:%M:%S%.3f").to_string());
    };
    let day = text.split_once(['T', ' ']).map_or(text, |(_, day)| day);
    let end = day.find(|letter: char| !letter.is_ascii_digit() && letter != ':' && letter != '.').unwrap_or(day.len());
    let short = day.char_indices().map(|(at, _)| at).nth("14:39:42.123".len()).unwrap_or(day.len()).min(end);
    plain(&day[..short])
}

/// Text that stays on its line.
fn plain(text: &str) -> String {
    text.chars()
        .flat_map(|letter| match letter.is_control() {
            true => letter.escape_default().collect::<Vec<_>>(),
            false => vec![letter],
        })
        .collect()
}

fn field(value: &Value) -> String {
    match value {
        Value::String(text) => {
            let bare = |letter: char| !letter.is_whitespace() && !letter.is_control() && !"\"=".contains(letter);
            if !text.is_empty() && text.chars().all(bare) { text.clone() } else { value.to_string() }
        }
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn logs_in_json_become_readable() {
        let check = |line: &str, expected: &str| {
            assert_eq!(render(line.as_bytes(), false).as_deref(), Some(expected), "{line}");
        };
        check(
            r#"{"level":"info","ts":"2026-05-01T14:39:42.123456Z","caller":"a/b.go:1","msg":"ready","z":"a b","a":[1,2],"n":3}"#,
            r#"14:39:42.123 INFO  ready  z="a b" a=[1,2] n=3"#,
        );
        check(r#"{"level":"warn","ts":"2026-05-01T14:39:42.5+0200","msg":"slow"}"#, "14:39:42.5 WARN  slow");
        check(r#"{"level":"error","ts":1.5,"msg":"bad","error":""}"#, "00:00:01.500 ERROR bad  error=\"\"");
        check(r#"{"level":"info","msg":"two\nlines","k":"x\ny"}"#, r#"INFO  two\nlines  k="x\ny""#);
        check(r#"{"level":"info","ts":"é","msg":""}"#, " INFO  ");
    }

    #[test]
    fn anything_else_stays_what_it_is() {
        for line in ["", "plain", "{", "{}", "[1]", r#"{"level":"info"}"#, r#"{"level":1,"msg":"x"}"#, r#"{"msg":"x"}"#]
        {
            assert_eq!(render(line.as_bytes(), false), None, "{line}");
        }
        assert_eq!(render(b"{\"level\":\"info\",\"msg\":\"\xff\"}", false), None);
    }

    #[test]
    fn levels_have_colours() {
        let text = render(br#"{"level":"fatal","msg":"end"}"#, true).unwrap();
        assert_eq!(text, "\x1b[31mFATAL\x1b[0m end");
    }
}

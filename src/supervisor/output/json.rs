//! A line as a JSON object, one a line: what the merged file and `--json` hold.

use std::borrow::Cow;

use serde::Serialize;

use crate::supervisor::output::moment::Moment;
use crate::supervisor::output::painter::SYSTEM;
use crate::supervisor::output::store::Origin;
use crate::supervisor::output::store::Stream;

#[derive(Serialize)]
struct JsonLine<'a> {
    time_ns: u64,
    mono_ns: u64,
    name: &'a str,
    stream: Stream,
    pid: Option<i32>,
    /// Bytes that are no UTF-8 are replaced.
    text: Cow<'a, str>,
    /// The line goes on in the next one of this name and stream.
    partial: bool,
}

/// Appends the line.
pub fn line(into: &mut Vec<u8>, name: &str, origin: Origin, text: &[u8], partial: bool) {
    let line = JsonLine {
        time_ns: origin.at.wall_ns,
        mono_ns: origin.at.mono_ns,
        name,
        stream: origin.stream,
        pid: origin.pid,
        text: String::from_utf8_lossy(text),
        partial,
    };
    let before = into.len();
    match serde_json::to_writer(&mut *into, &line) {
        Ok(()) => into.push(b'\n'),
        // Numbers, text and names always serialize; half an object would spoil the file.
        Err(_) => into.truncate(before),
    }
}

/// Something that we say ourselves.
pub fn own_line(text: &str) -> Vec<u8> {
    let mut bytes = Vec::new();
    let origin = Origin { stream: Stream::Own, pid: None, at: Moment::now() };
    line(&mut bytes, SYSTEM, origin, text.as_bytes(), false);
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_line_is_one_object() {
        let mut bytes = Vec::new();
        let at = Moment { wall_ns: 1, mono_ns: 2 };
        line(&mut bytes, "web", Origin { stream: Stream::Err, pid: Some(7), at }, b"a\"\n\xff", true);
        let expected =
            r#"{"time_ns":1,"mono_ns":2,"name":"web","stream":"err","pid":7,"text":"a\"\n�","partial":true}"#;
        assert_eq!(String::from_utf8(bytes).unwrap(), format!("{expected}\n"));
    }
}

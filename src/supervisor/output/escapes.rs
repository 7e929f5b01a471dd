//! Terminal sequences that children print: what may stay on a screen that others share.
//!
//! Colours may; anything that moves, erases or asks would act on lines of other processes (ECMA-48 names the sequences).

const ESCAPE: u8 = 0x1b;
const BELL: u8 = 0x07;

/// What becomes of children's sequences.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Escapes {
    /// All pass.
    Keep,
    /// Colours pass.
    Colours,
    /// None passes.
    Strip,
}

impl Escapes {
    /// Appends what may stay of `text`. Whether a sequence is in it.
    pub fn copy(self, text: &[u8], into: &mut Vec<u8>) -> bool {
        if memchr::memchr(ESCAPE, text).is_none() {
            into.extend_from_slice(text);
            return false;
        }
        if self == Escapes::Keep {
            into.extend_from_slice(text);
            return true;
        }
        let mut rest = text;
        let mut stayed = false;
        while let Some(at) = memchr::memchr(ESCAPE, rest) {
            into.extend_from_slice(&rest[..at]);
            let length = sequence(&rest[at..]);
            let sequence = &rest[at..at + length];
            if self == Escapes::Colours && sequence.starts_with(b"\x1b[") && sequence.ends_with(b"m") {
                into.extend_from_slice(sequence);
                stayed = true;
            }
            rest = &rest[at + length..];
        }
        into.extend_from_slice(rest);
        stayed
    }
}

/// Text without any sequence.
pub fn strip(text: &str) -> String {
    let mut bytes = Vec::with_capacity(text.len());
    Escapes::Strip.copy(text.as_bytes(), &mut bytes);
    // Sequences are cut out between characters.
    String::from_utf8(bytes).unwrap_or_default()
}

/// Length of the sequence that `text` begins with. One that does not end has all of the text.
fn sequence(text: &[u8]) -> usize {
    let until = |from: usize, is_end: fn(u8) -> bool| {
        text.iter().skip(from).position(|byte| is_end(*byte)).map_or(text.len(), |at| from + at + 1)
    };
    match text.get(1) {
        None => 1,
        // CSI: parameters and intermediates, then one letter. A control character breaks it off.
        Some(b'[') => match text.iter().skip(2).position(|byte| !(0x20..0x40).contains(byte)) {
            Some(at) if (0x40..0x7f).contains(&text[at + 2]) => at + 3,
            Some(at) => at + 2,
            None => text.len(),
        },
        // Strings: until ST or a bell.
        Some(b']' | b'P' | b'X' | b'^' | b'_') => {
            let bell = text.iter().position(|byte| *byte == BELL).map(|at| at + 1);
            let terminator = memchr::memmem::find(text, b"\x1b\\").map(|at| at + 2);
            [bell, terminator].into_iter().flatten().min().unwrap_or(text.len())
        }
        Some(0x20..0x30) => until(2, |byte| !(0x20..0x30).contains(&byte)),
        Some(byte) if byte.is_ascii() => 2,
        Some(_) => 1,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn colours_may_stay_and_nothing_else() {
        let check = |text: &str, colours: &str, stripped: &str| {
            let mut bytes = Vec::new();
            Escapes::Colours.copy(text.as_bytes(), &mut bytes);
            assert_eq!(String::from_utf8(bytes).unwrap(), colours, "{text:?}");
            assert_eq!(strip(text), stripped, "{text:?}");
        };
        check("plain", "plain", "plain");
        check("a\x1b[31;1mred\x1b[0m.", "a\x1b[31;1mred\x1b[0m.", "ared.");
        check("\x1b[2K\x1b[1A50%", "50%", "50%");
        check("\x1b]0;title\x07x\x1b]8;;http://a\x1b\\link", "xlink", "xlink");
        check("\x1b(Bx\x1b7y\x1bMz", "xyz", "xyz");
        check("end\x1b[3", "end", "end");
        check("end\x1b", "end", "end");
        check("\x1b[3é", "é", "é");
        check("\x1bé", "é", "é");
    }
}

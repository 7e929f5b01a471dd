//! One stream of lines from all processes: prefixed, coloured, whole, and never in a child's way.
//!
//! Lines are formed where they are read and written by one thread, one write a line. The bytes that wait for the terminal
//! are bounded: a reader of a child's output waits for room; lines of our own never do.

use std::io::Write;
use std::sync::Arc;

use tokio::sync::Semaphore;
use tokio::sync::mpsc;

use crate::program::Manner;

/// Bytes of children's lines that may wait for the terminal. Full means that their pipes fill up.
const WAITING_BYTES_MAX: usize = 8 << 20;

/// goreman's cycle, by place in the Procfile: green, cyan, magenta, yellow, blue, red.
const COLOURS: [u8; 6] = [32, 36, 35, 33, 34, 31];

/// How prefixes look.
#[derive(Clone, Copy, Debug)]
pub struct Look {
    pub manner: Manner,
    pub time: bool,
    pub colour: bool,
}

/// The prefix of one process.
#[derive(Clone, Debug)]
pub struct Prefix {
    look: Look,
    colour: u8,
    padded: String,
}

impl Prefix {
    /// `width` is that of the longest selected name, by `name_width`.
    pub fn new(look: Look, place: usize, name: &str, width: usize) -> Prefix {
        let padded = match look.manner {
            // The width counts bytes, the padding characters (supervisor.md 1.10).
            Manner::Original => format!("{name:>width$}"),
            Manner::Native => format!("{name:<width$}"),
        };
        Prefix { look, colour: COLOURS[place % COLOURS.len()], padded }
    }

    /// One line with its prefix. `line` has its line feed.
    pub fn line(&self, now: &str, line: &[u8]) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(line.len() + self.padded.len() + 32);
        let time = if self.look.time { format!("{now} ") } else { String::new() };
        let head = format!("{time}{} | ", self.padded);
        if self.look.colour {
            bytes.extend_from_slice(format!("\x1b[{}m{head}\x1b[m", self.colour).as_bytes());
        } else {
            bytes.extend_from_slice(head.as_bytes());
        }
        bytes.extend_from_slice(line);
        bytes
    }
}

/// What counts as the width of a name.
pub fn name_width(manner: Manner, name: &str) -> usize {
    match manner {
        Manner::Original => name.len(),
        Manner::Native => name.chars().count(),
    }
}

/// Cuts a byte stream into lines.
#[derive(Debug, Default)]
pub struct Lines {
    partial: Vec<u8>,
}

impl Lines {
    /// The whole lines that `bytes` complete, each with its line feed. goreman drops empty ones; so does its personality.
    pub fn push(&mut self, bytes: &[u8], manner: Manner) -> Vec<Vec<u8>> {
        let mut lines = Vec::new();
        for piece in bytes.split_inclusive(|byte| *byte == b'\n') {
            self.partial.extend_from_slice(piece);
            if piece.ends_with(b"\n") {
                let line = std::mem::take(&mut self.partial);
                if manner == Manner::Native || line != b"\n" {
                    lines.push(line);
                }
            }
        }
        lines
    }

    pub fn has_partial(&self) -> bool {
        !self.partial.is_empty()
    }

    /// What is left without a line feed, with one added.
    pub fn flush(&mut self) -> Option<Vec<u8>> {
        if self.partial.is_empty() {
            return None;
        }
        let mut line = std::mem::take(&mut self.partial);
        line.push(b'\n');
        Some(line)
    }
}

/// A line on its way to the terminal, with the room that it gives back.
#[derive(Debug)]
struct Waiting {
    line: Vec<u8>,
    room_taken: usize,
}

/// Where lines go. Cloned for every reader.
#[derive(Clone, Debug)]
pub struct Output {
    lines: mpsc::UnboundedSender<Waiting>,
    room: Arc<Semaphore>,
}

impl Output {
    /// Starts the writing thread. The receiver resolves when the sink is broken or every sender is gone.
    pub fn start(
        mut sink: impl Write + Send + 'static,
    ) -> (Output, tokio::sync::oneshot::Receiver<std::io::Result<()>>) {
        let (lines, mut waiting) = mpsc::unbounded_channel::<Waiting>();
        let room = Arc::new(Semaphore::new(WAITING_BYTES_MAX));
        let (done, ended) = tokio::sync::oneshot::channel();
        let output = Output { lines, room: Arc::clone(&room) };
        std::thread::spawn(move || {
            let mut result = Ok(());
            while let Some(Waiting { line, room_taken }) = waiting.blocking_recv() {
                result = sink.write_all(&line).and_then(|()| sink.flush());
                room.add_permits(room_taken);
                if result.is_err() {
                    // Readers must not wait for a terminal that is gone.
                    room.close();
                    break;
                }
            }
            // Nobody waits for it once the supervisor itself has ended.
            let _ = done.send(result);
        });
        (output, ended)
    }

    /// A line of a child: waits for room.
    pub async fn child_line(&self, line: Vec<u8>) {
        // A line may be longer than all the room there is; it then takes all of it.
        let bytes = line.len().min(WAITING_BYTES_MAX);
        let room_taken = match self.room.acquire_many(bytes as u32).await {
            Ok(permit) => {
                permit.forget();
                bytes
            }
            Err(_) => return,
        };
        self.send(Waiting { line, room_taken });
    }

    /// A line of our own: never waits.
    pub fn own_line(&self, line: Vec<u8>) {
        self.send(Waiting { line, room_taken: 0 });
    }

    fn send(&self, waiting: Waiting) {
        // The writer is gone only after a broken sink, which ends the supervisor anyway.
        let _ = self.lines.send(waiting);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ORIGINAL: Look = Look { manner: Manner::Original, time: true, colour: true };
    const NATIVE: Look = Look { manner: Manner::Native, time: false, colour: false };

    #[test]
    fn prefixes_are_goremans_bytes() {
        let check = |look: Look, place: usize, name: &str, width: usize, expected: &[u8]| {
            assert_eq!(Prefix::new(look, place, name, width).line("14:39:42", b"up\n"), expected);
        };
        check(ORIGINAL, 0, "web", 6, b"\x1b[32m14:39:42    web | \x1b[mup\n");
        check(ORIGINAL, 7, "worker", 6, b"\x1b[36m14:39:42 worker | \x1b[mup\n");
        check(Look { time: false, ..ORIGINAL }, 0, "a", 1, b"\x1b[32ma | \x1b[mup\n");
        // Two letters of two bytes each: counted as four, padded to four characters.
        let width = name_width(Manner::Original, "éé");
        check(Look { time: false, ..ORIGINAL }, 0, "éé", width, "\x1b[32m  éé | \x1b[mup\n".as_bytes());
        check(NATIVE, 0, "web", 6, b"web    | up\n");
    }

    #[test]
    fn lines_come_out_whole() {
        let mut lines = Lines::default();
        assert_eq!(lines.push(b"one\ntw", Manner::Native), [b"one\n".to_vec()]);
        assert!(lines.has_partial());
        assert_eq!(lines.push(b"o\n\n \n", Manner::Native), [b"two\n".to_vec(), b"\n".to_vec(), b" \n".to_vec()]);
        assert_eq!(
            lines.push(b"one\n\n\n \n\r\n", Manner::Original),
            [b"one\n".to_vec(), b" \n".to_vec(), b"\r\n".to_vec()]
        );
        assert_eq!(lines.flush(), None);
        lines.push(b"abc", Manner::Original);
        assert_eq!(lines.flush(), Some(b"abc\n".to_vec()));
    }
}

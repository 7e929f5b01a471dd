//! Standard input, output and error of a command: the process's own, or buffers in tests.

use std::io;
use std::io::BufRead;
use std::io::BufReader;
use std::io::BufWriter;
use std::io::Write;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::PoisonError;

use super::error::CtlError;

/// Standard error: log lines come from within calls too, so it is shared.
pub type ErrorStream = Arc<Mutex<dyn Write + Send>>;

/// The three streams of a command.
pub struct Console {
    pub input: Box<dyn BufRead + Send>,
    pub out: Box<dyn Write>,
    err: ErrorStream,
}

impl Console {
    /// The process's own streams. Output is buffered until the command ends.
    pub fn standard() -> Console {
        Console::new(
            Box::new(BufReader::new(io::stdin())),
            Box::new(BufWriter::new(io::stdout())),
            Arc::new(Mutex::new(io::stderr())),
        )
    }

    pub fn new(input: Box<dyn BufRead + Send>, out: Box<dyn Write>, err: ErrorStream) -> Console {
        Console { input, out, err }
    }

    /// Writes to standard output.
    pub fn write_out(&mut self, bytes: &[u8]) -> Result<(), CtlError> {
        self.out.write_all(bytes).map_err(CtlError::Console)
    }

    pub fn flush(&mut self) -> Result<(), CtlError> {
        self.out.flush().map_err(CtlError::Console)
    }

    /// Writes to standard error.
    pub fn tell(&self, text: &str) {
        tell(&self.err, text);
    }

    pub fn error_stream(&self) -> ErrorStream {
        self.err.clone()
    }
}

/// Writes whole lines to a shared standard error. That nobody can read them is no reason to fail.
pub fn tell(err: &ErrorStream, text: &str) {
    let mut err = err.lock().unwrap_or_else(PoisonError::into_inner);
    let _unread = err.write_all(text.as_bytes()).and_then(|()| err.flush());
}

#[cfg(test)]
pub mod capture {
    use super::*;

    /// A stream that remembers what was written.
    #[derive(Clone, Default)]
    pub struct Capture(Arc<Mutex<Vec<u8>>>);

    impl Capture {
        pub fn text(&self) -> String {
            String::from_utf8_lossy(&self.0.lock().expect("no writer panics")).into_owned()
        }
    }

    impl Write for Capture {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().expect("no writer panics").write(bytes)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    impl Console {
        /// A console that reads `input`, with what it writes.
        pub fn captured(input: &'static [u8]) -> (Console, Capture, Capture) {
            let (out, err) = (Capture::default(), Capture::default());
            let console = Console::new(Box::new(input), Box::new(out.clone()), Arc::new(Mutex::new(err.clone())));
            (console, out, err)
        }
    }
}

//! The one thread that writes to our standard output: whole lines of everybody, many with each write.

use std::io::ErrorKind;
use std::io::Write;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::sync::Notify;
use tokio::sync::oneshot;

use crate::supervisor::output::queue::Batch;
use crate::supervisor::output::queue::Queue;
use crate::supervisor::output::queue::Taken;

/// Bytes that may wait for the terminal. Full means that the oldest lines are dropped, or that children wait.
const WAITING_BYTES_MAX: usize = 4 << 20;
/// How long a terminal that accepts nothing keeps us from ending.
const STALLED_MAX: Duration = Duration::from_secs(2);
/// How long a terminal that somebody made non-blocking is left alone when it is full.
const FULL_PAUSE: Duration = Duration::from_millis(5);

/// What is written in place of so many lines.
pub type Mark = Box<dyn Fn(u64) -> Vec<u8> + Send>;

/// The way to the screen. Cloned for every reader.
#[derive(Clone, Debug)]
pub struct Screen {
    queue: Arc<Queue>,
    lossless: bool,
    writer: Arc<Writer>,
}

#[derive(Debug, Default)]
struct Writer {
    progress: Notify,
    ended: AtomicBool,
}

impl Screen {
    /// Starts the writing thread. The receiver resolves when the sink is broken, or all is written after `finish`.
    pub fn start(
        sink: impl Write + Send + 'static,
        lossless: bool,
        mark: Mark,
    ) -> (Screen, oneshot::Receiver<std::io::Result<()>>) {
        let queue = Arc::new(Queue::new(WAITING_BYTES_MAX));
        let writer = Arc::<Writer>::default();
        let (done, ended) = oneshot::channel();
        let screen = Screen { queue: Arc::clone(&queue), lossless, writer: Arc::clone(&writer) };
        std::thread::spawn(move || {
            let result = write_all(sink, &queue, &writer.progress, &mark);
            queue.break_off();
            writer.ended.store(true, Ordering::Release);
            writer.progress.notify_one();
            // Nobody waits for it once the supervisor itself has ended.
            let _ = done.send(result);
        });
        (screen, ended)
    }

    /// Lines of a child: wait for room only if nothing may be lost.
    pub async fn lines(&self, bytes: Vec<u8>, lines: u64) {
        let batch = Batch::new(bytes, lines, 0);
        match self.lossless {
            true => self.queue.push_waiting(batch).await,
            false => self.queue.push_dropping(batch),
        }
    }

    /// Lines of our own: never wait.
    pub fn own(&self, bytes: Vec<u8>) {
        self.queue.push_own(bytes, 0);
    }

    /// Waits until everything is written, as long as there is progress; or `patiently`, however long it takes.
    pub async fn finish(&self, patiently: bool) {
        self.queue.close();
        while !self.writer.ended.load(Ordering::Acquire) {
            let progress = self.writer.progress.notified();
            match patiently {
                true => progress.await,
                false if tokio::time::timeout(STALLED_MAX, progress).await.is_err() => return,
                false => {}
            }
        }
    }
}

fn write_all(mut sink: impl Write, queue: &Queue, progress: &Notify, mark: &Mark) -> std::io::Result<()> {
    while let Some(Taken { dropped, mut batches, bytes }) = queue.take(None) {
        if dropped > 0 {
            write(&mut sink, &mark(dropped))?;
        }
        match batches.len() {
            0 => {}
            1 => write(&mut sink, &batches[0].bytes)?,
            _ => {
                let mut together = Vec::with_capacity(bytes);
                batches.iter_mut().for_each(|batch| together.append(&mut batch.bytes));
                write(&mut sink, &together)?;
            }
        }
        flush(&mut sink)?;
        queue.written(bytes);
        progress.notify_one();
    }
    Ok(())
}

/// `write_all` that bears a non-blocking terminal: programs that share it leave it so.
fn write(sink: &mut impl Write, mut bytes: &[u8]) -> std::io::Result<()> {
    while !bytes.is_empty() {
        match sink.write(bytes) {
            Ok(0) => return Err(ErrorKind::WriteZero.into()),
            Ok(count) => bytes = &bytes[count..],
            Err(error) => bear(error)?,
        }
    }
    Ok(())
}

fn flush(sink: &mut impl Write) -> std::io::Result<()> {
    while let Err(error) = sink.flush() {
        bear(error)?;
    }
    Ok(())
}

fn bear(error: std::io::Error) -> std::io::Result<()> {
    match error.kind() {
        ErrorKind::Interrupted => Ok(()),
        ErrorKind::WouldBlock => {
            std::thread::sleep(FULL_PAUSE);
            Ok(())
        }
        _ => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Mutex;

    fn mark() -> Mark {
        Box::new(|count| format!("{count} dropped\n").into_bytes())
    }

    /// Takes nothing while it is locked, and refuses every second write as a non-blocking terminal does.
    #[derive(Clone, Default)]
    struct Terminal(Arc<Mutex<(Vec<u8>, u64)>>);

    impl Write for Terminal {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            let mut inner = self.0.lock().unwrap();
            inner.1 += 1;
            if inner.1.is_multiple_of(2) {
                return Err(ErrorKind::WouldBlock.into());
            }
            let count = bytes.len().min(50_000);
            inner.0.extend_from_slice(&bytes[..count]);
            Ok(count)
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    #[tokio::test]
    async fn a_stopped_terminal_holds_nobody_up_and_later_says_what_is_missing() {
        let terminal = Terminal::default();
        let (screen, ended) = Screen::start(terminal.clone(), false, mark());
        let line = vec![b'x'; 64 << 10];
        {
            let inner = terminal.0.clone();
            let _stopped = inner.lock().unwrap();
            for _ in 0..200 {
                screen.queue.push_dropping(Batch::new(line.clone(), 1, 0));
            }
            screen.own(b"own\n".to_vec());
        }
        screen.finish(false).await;
        ended.await.unwrap().unwrap();
        let text = String::from_utf8(terminal.0.lock().unwrap().0.clone()).unwrap();
        // The writer may have taken some before it stood still: then it says twice what is missing.
        let marks =
            text.split(" dropped").filter_map(|part| part.rsplit(|letter: char| !letter.is_ascii_digit()).next());
        let dropped: usize = marks.filter_map(|number| number.parse::<usize>().ok()).sum();
        assert!(dropped > 100, "{dropped}");
        let shown = text.bytes().filter(|byte| *byte == b'x').count() / line.len();
        assert_eq!(shown + dropped, 200, "every line is shown or counted");
        assert!(text.ends_with("own\n"));
    }

    #[tokio::test]
    async fn a_broken_screen_is_reported_and_keeps_nobody_waiting() {
        struct Broken;
        impl Write for Broken {
            fn write(&mut self, _: &[u8]) -> std::io::Result<usize> {
                Err(ErrorKind::BrokenPipe.into())
            }
            fn flush(&mut self) -> std::io::Result<()> {
                Ok(())
            }
        }
        let (screen, ended) = Screen::start(Broken, true, mark());
        for _ in 0..100 {
            screen.lines(vec![b'x'; 1 << 20], 1).await;
        }
        assert_eq!(ended.await.unwrap().unwrap_err().kind(), ErrorKind::BrokenPipe);
        screen.finish(false).await;
    }
}

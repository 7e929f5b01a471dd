//! Reads what one start of a process prints, to its end, and hands it on line by line.
//!
//! The end of the output is not the end of the process, nor the other way round: somebody who left the group may hold the
//! pipe for hours. So the reader learns when the group is gone, and then reads only what is still in the pipe.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::AsyncRead;
use tokio::io::AsyncReadExt;
use tokio::sync::Notify;
use tokio::task::JoinHandle;
use tokio::time::Instant;

use crate::program::Manner;
use crate::supervisor::output::Feed;
use crate::supervisor::output::lines::Cutter;
use crate::supervisor::output::lines::Lines;
use crate::supervisor::output::store::Stream;

/// How long a line without its end is held back for the rest.
const PARTIAL_HOLD_ORIGINAL: Duration = Duration::from_millis(2);
const PARTIAL_HOLD_NATIVE: Duration = Duration::from_millis(100);
/// How long the output may stay open and silent once the whole group is gone: then somebody outside the group holds it.
const DRAIN_MAX: Duration = Duration::from_millis(300);
/// What can be in a pipe when the group is gone. Anything beyond comes from outside the group.
const LEFT_BYTES_MAX: usize = 1 << 20;
/// As much as a pipe holds.
const READ_BYTES: usize = 64 << 10;

/// A reader at work.
#[derive(Debug)]
pub struct Reading {
    task: JoinHandle<()>,
    outlived: Arc<Notify>,
}

impl Reading {
    /// Starts to read. `pid` is the child that was started.
    pub fn start(feed: Feed, reader: impl AsyncRead + Unpin + Send + 'static, stream: Stream, pid: i32) -> Reading {
        let outlived = Arc::<Notify>::default();
        let reads = Reader { feed, stream, pid, outlived: Arc::clone(&outlived) };
        Reading { task: tokio::spawn(reads.run(reader)), outlived }
    }

    /// Resolves when the output has ended, or when the group is gone and the output has had time to drain. Lines that
    /// wait for a slow terminal then are still shown; nobody waits for them here.
    pub async fn ended(mut self, group_gone: impl Future<Output = ()>) {
        tokio::select! {
            _ = &mut self.task => return,
            () = group_gone => self.outlived.notify_one(),
        }
        let _ = tokio::time::timeout(DRAIN_MAX, &mut self.task).await;
    }
}

/// What one read brought.
enum Read {
    Bytes(usize),
    HoldOver,
    End,
}

struct Reader {
    feed: Feed,
    stream: Stream,
    pid: i32,
    outlived: Arc<Notify>,
}

impl Reader {
    async fn run(self, mut reader: impl AsyncRead + Unpin) {
        let _counted = self.feed.count_reader();
        let mut cut = match self.feed.manner() {
            Manner::Original => Cut::Original(Lines::default()),
            Manner::Native => Cut::Native(Cutter::default()),
        };
        let mut buffer = vec![0; READ_BYTES];
        // Of the line that is held back.
        let mut deadline = None;
        let mut left = None;
        loop {
            match self.read(&mut reader, &mut buffer, deadline, &mut left).await {
                Read::Bytes(count) => {
                    let lines = self.feed.deliver(&mut cut, self.stream, self.pid, &buffer[..count]).await;
                    deadline = match &cut {
                        cut if !cut.is_holding() => None,
                        // goreman waits for silence; we show what has waited long enough.
                        Cut::Original(_) => Some(Instant::now() + PARTIAL_HOLD_ORIGINAL),
                        Cut::Native(_) if lines == 0 && deadline.is_some() => deadline,
                        Cut::Native(_) => Some(Instant::now() + PARTIAL_HOLD_NATIVE),
                    };
                }
                Read::HoldOver => {
                    deadline = None;
                    self.feed.release(&mut cut, self.stream, self.pid, false).await;
                }
                Read::End => break,
            }
        }
        self.feed.release(&mut cut, self.stream, self.pid, true).await;
    }

    /// `left` counts the bytes that are still taken once the group is gone.
    async fn read(
        &self,
        reader: &mut (impl AsyncRead + Unpin),
        buffer: &mut [u8],
        deadline: Option<Instant>,
        left: &mut Option<usize>,
    ) -> Read {
        let far = Instant::now() + Duration::from_secs(3600);
        let read = loop {
            let outlived = left.is_some();
            tokio::select! {
                biased;
                read = reader.read(buffer) => break read,
                () = tokio::time::sleep_until(deadline.unwrap_or(far)), if deadline.is_some() => return Read::HoldOver,
                () = self.outlived.notified(), if !outlived => *left = Some(LEFT_BYTES_MAX),
                () = tokio::time::sleep(DRAIN_MAX), if outlived => return Read::End,
            }
        };
        match (read, &mut *left) {
            (Ok(count), Some(0)) if count > 0 => Read::End,
            (Ok(count), Some(left)) if count > 0 => {
                *left = left.saturating_sub(count);
                Read::Bytes(count)
            }
            (Ok(count), None) if count > 0 => Read::Bytes(count),
            // The end; a pseudo terminal's is an error (EIO).
            _ => Read::End,
        }
    }
}

/// Either way of cutting lines.
#[derive(Debug)]
pub enum Cut {
    Original(Lines),
    Native(Cutter),
}

impl Cut {
    pub fn is_holding(&self) -> bool {
        match self {
            Cut::Original(lines) => lines.is_holding(),
            Cut::Native(cutter) => cutter.is_holding(),
        }
    }
}

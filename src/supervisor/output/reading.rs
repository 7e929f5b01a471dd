//! Reads what one start of a process prints, to its end, and hands it on line by line.
//!
//! The end of the output is not the end of the process, nor the other way round: somebody who left the group may hold the
//! pipe for hours. So the reader learns when the group is gone, and then reads only what is still in the pipe.

use std::future::Future;
use std::io;
use std::io::PipeReader;
use std::os::fd::OwnedFd;
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::AsyncRead;
use tokio::io::AsyncReadExt;
use tokio::net::unix::pipe;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::program::Manner;
use crate::supervisor::output::Feed;
use crate::supervisor::output::lines::Cutter;
use crate::supervisor::output::lines::Lines;
use crate::supervisor::output::store::Stream;
use crate::supervisor::output::summary::History;
use crate::supervisor::output::terminal;
use crate::supervisor::output::terminal::Terminal;

/// How long a line without its end is held back for the rest.
const PARTIAL_HOLD_ORIGINAL: Duration = Duration::from_millis(2);
const PARTIAL_HOLD_NATIVE: Duration = Duration::from_millis(100);
/// How long the output may stay open and silent once the whole group is gone: then somebody outside the group holds it.
const DRAIN_MAX: Duration = Duration::from_millis(300);
/// What can be in a pipe when the group is gone. Anything beyond comes from outside the group.
const LEFT_BYTES_MAX: usize = 1 << 20;
/// Between looks at the memory of a process: at first, and later.
const LOOK_FIRST: Duration = Duration::from_millis(100);
const LOOK_MAX: Duration = Duration::from_secs(5);
/// As much as a pipe holds.
const READ_BYTES: usize = 64 << 10;

/// What a child writes to.
#[derive(Debug)]
pub struct Ends {
    pub stdin: Stdio,
    pub stdout: Stdio,
    pub stderr: Stdio,
}

/// Our side of it, before there is a child.
#[derive(Debug)]
pub struct Unread {
    feed: Feed,
    sources: Vec<(Stream, Source)>,
}

#[derive(Debug)]
enum Source {
    Pipe(PipeReader),
    Terminal(OwnedFd),
}

impl Feed {
    /// The ends for one start of the process. Both streams share a pipe, which keeps their order, unless they are split.
    pub fn connect(&self) -> io::Result<(Ends, Unread)> {
        if self.has_terminal {
            let (ours, theirs) = terminal::open(self.shared.window())?;
            let (stdin, stdout) = (theirs.try_clone()?.into(), theirs.try_clone()?.into());
            let sources = vec![(Stream::Out, Source::Terminal(ours))];
            return Ok((Ends { stdin, stdout, stderr: theirs.into() }, Unread { feed: self.clone(), sources }));
        }
        let (reader, writer) = io::pipe()?;
        let mut sources = vec![(Stream::Out, Source::Pipe(reader))];
        let stderr = match self.shared.settings.split {
            true => {
                let (reader, writer) = io::pipe()?;
                sources.push((Stream::Err, Source::Pipe(reader)));
                writer
            }
            false => writer.try_clone()?,
        };
        let ends = Ends { stdin: Stdio::null(), stdout: writer.into(), stderr: stderr.into() };
        Ok((ends, Unread { feed: self.clone(), sources }))
    }
}

impl Unread {
    /// Starts to read. `pid` is the child that was started; a hook is no start of the process.
    pub fn read(self, pid: i32, is_hook: bool) -> io::Result<Reading> {
        let Unread { feed, sources } = self;
        if !is_hook {
            feed.history.started();
        }
        let outlived = watch::Sender::new(false);
        let mut tasks = JoinSet::new();
        for (stream, reader) in sources {
            let work = Reader { feed: feed.clone(), stream, pid, outlived: outlived.subscribe() };
            match reader {
                Source::Pipe(reader) => {
                    let reader = pipe::Receiver::from_owned_fd(OwnedFd::from(reader))?;
                    tasks.spawn(work.run(reader));
                }
                Source::Terminal(ours) => {
                    let (terminal, reader) = Terminal::new(ours, pid)?;
                    feed.terminal.put(terminal);
                    let place = feed.terminal.clone();
                    tasks.spawn(async move {
                        work.run(reader).await;
                        place.leave(pid);
                    });
                }
            }
        }
        let looks = tokio::spawn(look_at_memory(Arc::clone(&feed.history), pid));
        Ok(Reading { tasks, outlived, looks })
    }
}

/// Readers at work.
#[derive(Debug)]
pub struct Reading {
    tasks: JoinSet<()>,
    outlived: watch::Sender<bool>,
    looks: JoinHandle<()>,
}

impl Reading {
    /// Resolves when the output has ended, or when the group is gone and the output has had time to drain. Lines that
    /// wait for a slow terminal then are still shown; nobody waits for them here.
    pub async fn ended(mut self, group_gone: impl Future<Output = ()>) {
        let mut group_gone = std::pin::pin!(group_gone);
        let outlived = tokio::select! {
            () = all(&mut self.tasks) => false,
            () = &mut group_gone => true,
        };
        if outlived {
            self.outlived.send_replace(true);
            let _ = tokio::time::timeout(DRAIN_MAX, all(&mut self.tasks)).await;
        }
        self.looks.abort();
        // The rest of them ends by itself.
        self.tasks.detach_all();
    }
}

async fn all(tasks: &mut JoinSet<()>) {
    while tasks.join_next().await.is_some() {}
}

/// How much memory the process takes, seldom: the kernel keeps the peak of each, so only the last moment can be missed.
async fn look_at_memory(history: Arc<History>, leader: i32) {
    let mut pause = LOOK_FIRST;
    loop {
        tokio::time::sleep(pause).await;
        history.look(leader);
        pause = (pause * 2).min(LOOK_MAX);
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
    outlived: watch::Receiver<bool>,
}

impl Reader {
    async fn run(mut self, mut reader: impl AsyncRead + Unpin) {
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
        &mut self,
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
                _ = self.outlived.wait_for(|gone| *gone), if !outlived => *left = Some(LEFT_BYTES_MAX),
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

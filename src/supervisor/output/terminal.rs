//! A pseudo terminal in place of a pipe, for a process that wants one (`tty=yes`): it prints line by line and in colours,
//! and somebody can type to it.
//!
//! The process is in a group, not in a session, of its own: nothing here is its *controlling* terminal. So what a terminal
//! does for a session is done here: the key for an interrupt and a new window size become signals to the group.

use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::os::fd::OwnedFd;
use std::os::unix::fs::OpenOptionsExt;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::MutexGuard;
use std::sync::PoisonError;
use std::task::Context;
use std::task::Poll;
use std::task::ready;

use bytes::Bytes;
use nix::errno::Errno;
use nix::fcntl::FcntlArg;
use nix::fcntl::OFlag;
use nix::fcntl::fcntl;
use nix::sys::signal::Signal;
use nix::sys::signal::killpg;
use nix::sys::termios::LocalFlags;
use nix::sys::termios::tcgetattr;
use nix::unistd::Pid;
use rustix::pty::OpenptFlags;
use rustix::termios::Winsize;
use tokio::io::AsyncRead;
use tokio::io::ReadBuf;
use tokio::net::unix::pipe;
use tokio::sync::broadcast;
use tokio::sync::watch;

/// Reads that somebody who watches may be behind. Who is further behind misses some.
const WATCHED_MAX: usize = 64;
/// Of a terminal that is no terminal.
const DEFAULT_SIZE: Size = Size { columns: 80, rows: 24 };
/// What the keys for an interrupt and for quitting send.
const INTERRUPT: u8 = 0x03;
const QUIT: u8 = 0x1c;

/// Of a window, in characters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Size {
    pub columns: u16,
    pub rows: u16,
}

impl Size {
    /// That of the terminal which our standard output is, or the usual one.
    pub fn here() -> Size {
        match rustix::termios::tcgetwinsize(io::stdout()) {
            Ok(size) if size.ws_col > 0 && size.ws_row > 0 => Size { columns: size.ws_col, rows: size.ws_row },
            _ => DEFAULT_SIZE,
        }
    }

    /// What is left of it behind a prefix.
    pub fn narrowed(self, columns: usize) -> Size {
        let columns = u16::try_from(columns).unwrap_or(u16::MAX);
        Size { columns: self.columns.saturating_sub(columns).max(1), ..self }
    }
}

/// Both sides of a new pseudo terminal: ours, and the process's. No other child gets either.
pub fn open(size: Size) -> io::Result<(OwnedFd, File)> {
    let ours = rustix::pty::openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC)?;
    rustix::pty::grantpt(&ours)?;
    rustix::pty::unlockpt(&ours)?;
    let name = rustix::pty::ptsname(&ours, Vec::new())?;
    let name = name.to_str().map_err(io::Error::other)?.to_owned();
    let theirs = File::options().read(true).write(true).custom_flags(OFlag::O_NOCTTY.bits()).open(name)?;
    resize(&ours, size)?;
    let flags = OFlag::from_bits_truncate(fcntl(&ours, FcntlArg::F_GETFL)?);
    fcntl(&ours, FcntlArg::F_SETFL(flags | OFlag::O_NONBLOCK))?;
    Ok((ours, theirs))
}

fn resize(ours: impl AsFd, size: Size) -> io::Result<()> {
    let size = Winsize { ws_row: size.rows, ws_col: size.columns, ws_xpixel: 0, ws_ypixel: 0 };
    Ok(rustix::termios::tcsetwinsize(ours, size)?)
}

/// Our side of the terminal of one start of a process. Cloned for whoever reads, watches or types.
#[derive(Clone, Debug)]
pub struct Terminal {
    input: Arc<pipe::Sender>,
    watched: broadcast::Sender<Bytes>,
    ended: Arc<watch::Sender<bool>>,
    group: Pid,
}

impl Terminal {
    /// Ours, and what reads from it. `group` is the process's, which takes the signals of keys.
    pub fn new(ours: OwnedFd, group: i32) -> io::Result<(Terminal, TerminalReader)> {
        let (watched, _) = broadcast::channel(WATCHED_MAX);
        let ended = Arc::new(watch::Sender::new(false));
        // No pipe, but read and written like one; `open` has made it non-blocking.
        let input = Arc::new(pipe::Sender::from_owned_fd_unchecked(ours.try_clone()?)?);
        let output = pipe::Receiver::from_owned_fd_unchecked(ours)?;
        let terminal = Terminal { input, watched, ended, group: Pid::from_raw(group) };
        Ok((terminal.clone(), TerminalReader { output, watched: terminal.watched }))
    }

    /// Resolves when nothing more is read from it.
    pub async fn ended(&self) {
        // We hold the sender ourselves.
        let _ = self.ended.subscribe().wait_for(|ended| *ended).await;
    }

    /// What the process prints from now on, as it is. `Lagged` is for who was too slow.
    pub fn watch(&self) -> broadcast::Receiver<Bytes> {
        self.watched.subscribe()
    }

    /// Types to the process. Keys for an interrupt and for quitting are signals, as long as the process lets them be.
    pub async fn type_in(&self, bytes: &[u8]) -> io::Result<()> {
        let keys_signal = tcgetattr(&*self.input).is_ok_and(|modes| modes.local_flags.contains(LocalFlags::ISIG));
        let is_key = |byte: &u8| keys_signal && matches!(*byte, INTERRUPT | QUIT);
        for piece in bytes.split_inclusive(is_key) {
            match piece.split_last() {
                Some((key, before)) if is_key(key) => {
                    self.write(before).await?;
                    self.signal(if *key == INTERRUPT { Signal::SIGINT } else { Signal::SIGQUIT });
                }
                _ => self.write(piece).await?,
            }
        }
        Ok(())
    }

    async fn write(&self, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            self.input.writable().await?;
            match self.input.try_write(bytes) {
                Ok(count) => bytes = &bytes[count..],
                // Not writable after all: it is waited for again.
                Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// The window has another size.
    pub fn resize(&self, size: Size) -> io::Result<()> {
        resize(&*self.input, size)?;
        self.signal(Signal::SIGWINCH);
        Ok(())
    }

    fn signal(&self, signal: Signal) {
        assert!(self.group.as_raw() > 1, "process group {} is ourselves or everything", self.group);
        // A group that is gone is fine.
        let _ = killpg(self.group, signal);
    }
}

/// Reads what the process prints, for us and for those who watch.
#[derive(Debug)]
pub struct TerminalReader {
    output: pipe::Receiver,
    watched: broadcast::Sender<Bytes>,
}

impl AsyncRead for TerminalReader {
    fn poll_read(self: Pin<&mut Self>, context: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let TerminalReader { output, watched } = self.get_mut();
        let before = buffer.filled().len();
        // A read that fills less than there is room empties a pipe, but not a terminal, which gives a piece at a time: so
        // nobody would wake us for the rest. What is there already is taken here.
        let there = rustix::io::read(output.as_fd(), buffer.initialize_unfilled());
        let read = match there {
            Ok(count) => {
                buffer.advance(count);
                Ok(())
            }
            Err(rustix::io::Errno::AGAIN | rustix::io::Errno::INTR) => {
                ready!(Pin::new(output).poll_read(context, buffer))
            }
            Err(error) => Err(error.into()),
        };
        match read {
            // Nobody has the other side open any more: this is how a terminal ends.
            Err(error) if error.raw_os_error() == Some(Errno::EIO as i32) => return Poll::Ready(Ok(())),
            Err(error) => return Poll::Ready(Err(error)),
            Ok(()) => {}
        }
        let read = &buffer.filled()[before..];
        if !read.is_empty() && watched.receiver_count() > 0 {
            // Whoever watched may have gone this moment.
            let _ = watched.send(Bytes::copy_from_slice(read));
        }
        Poll::Ready(Ok(()))
    }
}

/// The terminal of a process's present start, if it has one.
#[derive(Clone, Debug, Default)]
pub struct Place(Arc<Mutex<Option<Terminal>>>);

impl Place {
    pub fn get(&self) -> Option<Terminal> {
        self.lock().clone()
    }

    pub fn put(&self, terminal: Terminal) {
        *self.lock() = Some(terminal);
    }

    /// The start with this group has ended.
    pub fn leave(&self, group: i32) {
        let mut place = self.lock();
        if let Some(terminal) = place.take_if(|terminal| terminal.group.as_raw() == group) {
            terminal.ended.send_replace(true);
        }
    }

    fn lock(&self) -> MutexGuard<'_, Option<Terminal>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::process::CommandExt;
    use std::process::Command;
    use tokio::io::AsyncReadExt;

    async fn read_until(reader: &mut TerminalReader, end: &str) -> String {
        let mut text = String::new();
        let mut buffer = [0; 1000];
        while !text.contains(end) {
            let count = reader.read(&mut buffer).await.unwrap();
            assert!(count > 0, "ended: {text}");
            text.push_str(std::str::from_utf8(&buffer[..count]).unwrap());
        }
        text
    }

    #[tokio::test]
    async fn a_process_has_a_terminal_is_typed_to_and_ends() {
        let (ours, theirs) = open(Size { columns: 61, rows: 17 }).unwrap();
        let script = "test -t 1 && stty size; trap 'stty size; echo wound' WINCH; trap 'echo told; exit 3' INT; \
                      read word; echo got $word; while :; do sleep 0.05; done";
        // A shell cannot trap what it was started to ignore, as tests in the background of a script are.
        let mut command = Command::new("env");
        command
            .args(["--default-signal", "/bin/sh", "-c", script])
            .stdin(theirs.try_clone().unwrap())
            .stdout(theirs.try_clone().unwrap());
        let mut child = command.stderr(theirs).process_group(0).spawn().unwrap();
        drop(command);
        let (terminal, mut reader) = Terminal::new(ours, i32::try_from(child.id()).unwrap()).unwrap();
        assert!(read_until(&mut reader, "\n").await.starts_with("17 61\r\n"));
        let mut watching = terminal.watch();
        terminal.type_in(b"hello\n").await.unwrap();
        read_until(&mut reader, "got hello\r\n").await;
        assert!(!watching.recv().await.unwrap().is_empty());
        terminal.resize(Size { columns: 20, rows: 5 }).unwrap();
        assert!(read_until(&mut reader, "wound\r\n").await.contains("5 20\r\n"));
        terminal.type_in(&[b'x', INTERRUPT]).await.unwrap();
        read_until(&mut reader, "told\r\n").await;
        assert_eq!(reader.read(&mut [0; 10]).await.unwrap(), 0, "the end");
        assert_eq!(child.wait().unwrap().code(), Some(3));
    }

    #[test]
    fn a_prefix_takes_its_columns() {
        let size = Size { columns: 80, rows: 24 };
        assert_eq!(size.narrowed(9), Size { columns: 71, rows: 24 });
        assert_eq!(size.narrowed(1000), Size { columns: 1, rows: 24 });
    }
}

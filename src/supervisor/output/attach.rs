//! Sitting at the terminal of a process: what is typed goes to it, what it prints comes as it is, until the detach key.
//!
//! ```text
//!  client ── frames: kind (1 byte), length (2 bytes, big endian), payload ─▶ supervisor
//!            0 what was typed       1 the window: columns, rows (2 bytes each)
//!  client ◀── the bytes that the process prints ── supervisor; the end of them is the end of the process
//! ```

use std::io;
use std::io::IsTerminal;
use std::io::Read;

use nix::sys::termios::SetArg;
use nix::sys::termios::Termios;
use nix::sys::termios::cfmakeraw;
use nix::sys::termios::tcgetattr;
use nix::sys::termios::tcsetattr;
use tokio::io::AsyncRead;
use tokio::io::AsyncReadExt;
use tokio::io::AsyncWrite;
use tokio::io::AsyncWriteExt;
use tokio::signal::unix::SignalKind;
use tokio::signal::unix::signal;
use tokio::sync::broadcast::error::RecvError;
use tokio::sync::mpsc;

use crate::supervisor::output::terminal::Size;
use crate::supervisor::output::terminal::Terminal;

/// The protocol that a connection is upgraded to.
pub const PROTOCOL: &str = "quorate-terminal";
/// `Ctrl-]`, as telnet has it.
pub const DETACH_KEY: &str = "ctrl-]";
/// What may be typed ahead. Full means that our own terminal waits.
const TYPED_MAX: usize = 16;

const TYPED: u8 = 0;
const WINDOW: u8 = 1;

/// How it ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    Detached,
    /// The process, or the supervisor, is gone.
    Process,
}

/// The key that `ctrl-X` or `^X` means.
pub fn detach_key(text: &str) -> Result<u8, String> {
    let lower = text.to_ascii_lowercase();
    let key = lower.strip_prefix("ctrl-").or_else(|| lower.strip_prefix('^')).unwrap_or_default();
    match key.as_bytes() {
        [key @ (b'a'..=b'z' | b'[' | b'\\' | b']' | b'_')] => Ok(key & 0x1f),
        [b'^'] => Ok(b'^' & 0x1f),
        _ => Err(format!("\"{text}\" is no key (ctrl-], ctrl-q, ^p)")),
    }
}

/// The supervisor's side: until the client goes or the process ends.
pub async fn serve(terminal: Terminal, stream: impl AsyncRead + AsyncWrite + Unpin) -> io::Result<()> {
    let (mut reader, mut writer) = tokio::io::split(stream);
    let mut watched = terminal.watch();
    let shown = async {
        loop {
            tokio::select! {
                biased;
                bytes = watched.recv() => match bytes {
                    Ok(bytes) => writer.write_all(&bytes).await?,
                    // The client is too slow for this process; it misses some and goes on.
                    Err(RecvError::Lagged(_)) => {}
                    Err(RecvError::Closed) => break,
                },
                () = terminal.ended() => break,
            }
        }
        writer.shutdown().await
    };
    let typed = async {
        loop {
            let mut head = [0; 3];
            if reader.read_exact(&mut head).await.is_err() {
                return Ok(());
            }
            let mut payload = vec![0; usize::from(u16::from_be_bytes([head[1], head[2]]))];
            reader.read_exact(&mut payload).await?;
            match (head[0], payload.as_slice()) {
                (TYPED, bytes) => terminal.type_in(bytes).await?,
                (WINDOW, [a, b, c, d]) => {
                    let (columns, rows) = (u16::from_be_bytes([*a, *b]), u16::from_be_bytes([*c, *d]));
                    terminal.resize(Size { columns: columns.max(1), rows: rows.max(1) })?;
                }
                (kind, _) => return Err(io::Error::new(io::ErrorKind::InvalidData, format!("frame of kind {kind}"))),
            }
        }
    };
    tokio::select! {
        done = shown => done,
        done = typed => done,
    }
}

/// The client's side, at our own terminal.
pub async fn attach(stream: impl AsyncRead + AsyncWrite + Unpin, detach: u8) -> io::Result<Ended> {
    let _raw = Raw::enter()?;
    let (send, typed) = mpsc::channel(TYPED_MAX);
    // A thread, since nothing interrupts the reading of a terminal; it goes with the program.
    std::thread::spawn(move || {
        let mut buffer = [0; 4096];
        while let Ok(count @ 1..) = io::stdin().lock().read(&mut buffer) {
            if send.blocking_send(buffer[..count].to_vec()).is_err() {
                return;
            }
        }
    });
    let window = signal(SignalKind::window_change())?;
    converse(stream, typed, tokio::io::stdout(), detach, window).await
}

async fn converse(
    stream: impl AsyncRead + AsyncWrite + Unpin,
    mut typed: mpsc::Receiver<Vec<u8>>,
    mut screen: impl AsyncWrite + Unpin,
    detach: u8,
    mut window: tokio::signal::unix::Signal,
) -> io::Result<Ended> {
    let (mut reader, mut writer) = tokio::io::split(stream);
    writer.write_all(&window_frame(Size::here())).await?;
    let mut buffer = vec![0; 64 << 10];
    let mut is_open = true;
    loop {
        tokio::select! {
            count = reader.read(&mut buffer) => match count {
                // Gone without a word, as when the supervisor is killed, is gone, too.
                Ok(0) | Err(_) => return Ok(Ended::Process),
                Ok(count) => {
                    screen.write_all(&buffer[..count]).await?;
                    screen.flush().await?;
                }
            },
            keys = typed.recv(), if is_open => match keys {
                // Input that ends, from a file, is no wish to leave.
                None => is_open = false,
                Some(keys) => {
                    let end = memchr::memchr(detach, &keys);
                    for piece in keys[..end.unwrap_or(keys.len())].chunks(usize::from(u16::MAX)) {
                        writer.write_all(&frame(TYPED, piece)).await?;
                    }
                    if end.is_some() {
                        return Ok(Ended::Detached);
                    }
                }
            },
            Some(()) = window.recv() => writer.write_all(&window_frame(Size::here())).await?,
        }
    }
}

fn frame(kind: u8, payload: &[u8]) -> Vec<u8> {
    // Callers send no longer ones.
    let length = u16::try_from(payload.len()).unwrap_or(u16::MAX).to_be_bytes();
    [&[kind][..], &length, payload].concat()
}

fn window_frame(size: Size) -> Vec<u8> {
    frame(WINDOW, &[size.columns.to_be_bytes(), size.rows.to_be_bytes()].concat())
}

/// Our terminal hands every key on at once while this lives.
struct Raw(Option<Termios>);

impl Raw {
    fn enter() -> io::Result<Raw> {
        let stdin = io::stdin();
        if !stdin.is_terminal() {
            return Ok(Raw(None));
        }
        let before = tcgetattr(&stdin)?;
        let mut raw = before.clone();
        cfmakeraw(&mut raw);
        tcsetattr(&stdin, SetArg::TCSADRAIN, &raw)?;
        Ok(Raw(Some(before)))
    }
}

impl Drop for Raw {
    fn drop(&mut self) {
        if let Some(before) = &self.0 {
            // A terminal that is gone needs no manners.
            let _ = tcsetattr(io::stdin(), SetArg::TCSADRAIN, before);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::supervisor::output::terminal;
    use crate::supervisor::output::terminal::Place;
    use std::os::unix::process::CommandExt;
    use std::process::Child;
    use std::process::Command;
    use tokio::io::DuplexStream;
    use tokio::task::JoinHandle;

    #[test]
    fn keys_have_names() {
        assert_eq!(detach_key(DETACH_KEY), Ok(0x1d));
        assert_eq!((detach_key("^P"), detach_key("ctrl-q"), detach_key("^^")), (Ok(16), Ok(17), Ok(30)));
        for wrong in ["", "q", "ctrl-", "ctrl-qq", "ctrl-é", "^1"] {
            assert!(detach_key(wrong).is_err(), "{wrong}");
        }
    }

    /// A shell at a terminal, and the reader that the supervisor has.
    fn shell(script: &str) -> (Terminal, Child) {
        let (ours, theirs) = terminal::open(Size { columns: 80, rows: 24 }).unwrap();
        let mut command = Command::new("/bin/sh");
        command.args(["-c", script]).stdin(theirs.try_clone().unwrap()).stdout(theirs.try_clone().unwrap());
        let child = command.stderr(theirs).process_group(0).spawn().unwrap();
        let group = i32::try_from(child.id()).unwrap();
        let (terminal, mut reader) = Terminal::new(ours, group).unwrap();
        let place = Place::default();
        place.put(terminal.clone());
        tokio::spawn(async move {
            let mut buffer = [0; 1000];
            while let Ok(1..) = reader.read(&mut buffer).await {}
            place.leave(group);
        });
        (terminal, child)
    }

    /// Somebody who sits at a terminal.
    struct Talk {
        serving: JoinHandle<io::Result<()>>,
        talking: JoinHandle<io::Result<Ended>>,
        send: mpsc::Sender<Vec<u8>>,
        seen: DuplexStream,
    }

    fn talk(terminal: Terminal) -> Talk {
        let (near, far) = tokio::io::duplex(1000);
        let serving = tokio::spawn(serve(terminal, far));
        let (send, typed) = mpsc::channel(9);
        let (seen, screen) = tokio::io::duplex(1000);
        let window = signal(SignalKind::window_change()).unwrap();
        let talking = tokio::spawn(converse(near, typed, screen, 0x1d, window));
        Talk { serving, talking, send, seen }
    }

    #[tokio::test]
    async fn one_types_sees_and_leaves() {
        let (terminal, mut child) = shell("stty -echo; while read word; do echo got $word; done");
        let Talk { serving, talking, send, mut seen } = talk(terminal);
        let mut text = String::new();
        while !text.contains("got hello\r\n") {
            // The shell may not have been there at the first time, to be seen by us.
            send.send(b"hello\n".to_vec()).await.unwrap();
            let mut buffer = [0; 100];
            let count = seen.read(&mut buffer).await.unwrap();
            text.push_str(std::str::from_utf8(&buffer[..count]).unwrap());
        }
        // Each line that was typed before the shell was there is answered, too.
        tokio::spawn(async move { tokio::io::copy(&mut seen, &mut tokio::io::sink()).await });
        send.send(b"unsent\x1drest".to_vec()).await.unwrap();
        assert_eq!(talking.await.unwrap().unwrap(), Ended::Detached);
        // An answer may have been on its way to whoever has left.
        let served = serving.await.unwrap();
        assert!(served.is_ok() || served.is_err_and(|error| error.kind() == io::ErrorKind::BrokenPipe));
        assert!(child.try_wait().unwrap().is_none(), "who leaves ends nothing");
        child.kill().unwrap();
        child.wait().unwrap();
    }

    #[tokio::test]
    async fn the_end_of_the_process_is_the_end() {
        let (terminal, mut child) = shell("read word; echo bye");
        let Talk { serving, talking, send, mut seen } = talk(terminal);
        send.send(b"x\n".to_vec()).await.unwrap();
        assert_eq!(talking.await.unwrap().unwrap(), Ended::Process);
        serving.await.unwrap().unwrap();
        let mut text = String::new();
        seen.read_to_string(&mut text).await.unwrap();
        assert!(text.ends_with("bye\r\n"), "{text:?}");
        child.wait().unwrap();
    }
}

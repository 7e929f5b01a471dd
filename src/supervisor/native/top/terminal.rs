//! The terminal while `top` has it, and its return to what it was, however `top` ends; and the signals that end it.

use std::io;
use std::io::BufWriter;
use std::io::Stdout;
use std::io::Write;
use std::sync::Once;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering;

use nix::sys::signal;
use ratatui::Frame;
use ratatui::Terminal;
use ratatui::backend::CrosstermBackend;
use ratatui::crossterm::cursor::Show;
use ratatui::crossterm::event::DisableBracketedPaste;
use ratatui::crossterm::event::EnableBracketedPaste;
use ratatui::crossterm::execute;
use ratatui::crossterm::terminal::Clear;
use ratatui::crossterm::terminal::ClearType;
use ratatui::crossterm::terminal::EnterAlternateScreen;
use ratatui::crossterm::terminal::LeaveAlternateScreen;
use ratatui::crossterm::terminal::disable_raw_mode;
use ratatui::crossterm::terminal::enable_raw_mode;
use tokio::signal::unix::Signal;
use tokio::signal::unix::SignalKind;

/// Room for a frame, so that it leaves in one write.
const FRAME_BYTES: usize = 64 << 10;

/// Whether the terminal is ours. A panic on any thread gives it back.
static IS_OURS: AtomicBool = AtomicBool::new(false);

type Canvas = Terminal<CrosstermBackend<BufWriter<Stdout>>>;

/// The terminal, ours until this is dropped.
pub struct Place {
    terminal: Option<Canvas>,
}

impl Place {
    pub fn enter() -> io::Result<Place> {
        // What a panic says is then read on the usual screen.
        static HOOK: Once = Once::new();
        HOOK.call_once(|| {
            let hook = std::panic::take_hook();
            std::panic::set_hook(Box::new(move |info| {
                leave();
                hook(info);
            }));
        });
        // From here on, whatever goes wrong, the terminal is given back.
        let mut place = Place { terminal: None };
        take()?;
        place.terminal = Some(canvas()?);
        Ok(place)
    }

    pub fn draw(&mut self, draw: impl FnOnce(&mut Frame<'_>)) -> io::Result<()> {
        match &mut self.terminal {
            Some(terminal) => terminal.draw(draw).map(|_| ()),
            None => Ok(()),
        }
    }

    /// Back to the shell until somebody lets us go on. Where no shell could do that, the kernel does not stop us either.
    pub fn suspend(&mut self) -> io::Result<()> {
        leave();
        signal::raise(signal::Signal::SIGTSTP)?;
        self.enter_again()
    }

    /// Whatever others have done to the terminal meanwhile.
    pub fn enter_again(&mut self) -> io::Result<()> {
        // Raw mode is set only where it is not known to be.
        disable_raw_mode()?;
        take()?;
        execute!(io::stdout(), Clear(ClearType::All))?;
        // A new one knows of nothing that is drawn. (The old one's `clear` would ask the terminal where the cursor is, and
        // fail if the answer is slow to come.)
        self.terminal = Some(canvas()?);
        Ok(())
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        leave();
        // It has nothing left to give back, and would complain aloud of a terminal that is gone.
        std::mem::forget(self.terminal.take());
    }
}

fn canvas() -> io::Result<Canvas> {
    Terminal::new(CrosstermBackend::new(BufWriter::with_capacity(FRAME_BYTES, io::stdout())))
}

fn take() -> io::Result<()> {
    let was_ours = IS_OURS.swap(true, Ordering::SeqCst);
    enable_raw_mode()?;
    // Whoever enters twice may find the cursor elsewhere afterwards.
    if !was_ours {
        execute!(io::stdout(), EnterAlternateScreen)?;
    }
    // Pasted text must not be taken for keys: an `x` in it would kill.
    execute!(io::stdout(), EnableBracketedPaste)
}

/// Once: a second time would move the cursor back over what was said since. A terminal that is gone needs no manners.
fn leave() {
    if IS_OURS.swap(false, Ordering::SeqCst) {
        // Cleared first: tmux shows rows of it on the usual screen if the window has grown meanwhile.
        let _ = execute!(io::stdout(), DisableBracketedPaste, Clear(ClearType::All), LeaveAlternateScreen, Show);
        let _ = disable_raw_mode();
        let _ = io::stdout().flush();
    }
}

/// Signals that end us, and the one that says that we go on.
pub struct Signals {
    interrupt: Signal,
    terminate: Signal,
    hangup: Signal,
    quit: Signal,
    proceed: Signal,
}

impl Signals {
    pub fn listen() -> io::Result<Signals> {
        let listen = |signal: signal::Signal| tokio::signal::unix::signal(SignalKind::from_raw(signal as i32));
        Ok(Signals {
            interrupt: listen(signal::Signal::SIGINT)?,
            terminate: listen(signal::Signal::SIGTERM)?,
            hangup: listen(signal::Signal::SIGHUP)?,
            quit: listen(signal::Signal::SIGQUIT)?,
            proceed: listen(signal::Signal::SIGCONT)?,
        })
    }

    /// The next one. Nothing is lost by dropping the future.
    pub async fn next(&mut self) -> signal::Signal {
        tokio::select! {
            _ = self.interrupt.recv() => signal::Signal::SIGINT,
            _ = self.terminate.recv() => signal::Signal::SIGTERM,
            _ = self.hangup.recv() => signal::Signal::SIGHUP,
            _ = self.quit.recv() => signal::Signal::SIGQUIT,
            _ = self.proceed.recv() => signal::Signal::SIGCONT,
        }
    }
}

//! `top`: the processes on the left, what the chosen one prints on the right, and keys that act on it.
//!
//! ```text
//!  terminal   takes the terminal and gives it back, however we end
//!  session    hears keys, signals and the supervisor, and asks it
//!  screen     what is shown: columns (left), log (right), keys (help, and what they mean), text (what may be drawn)
//! ```
//!
//! It is a client like any other: what it shows comes from the project's socket, and it ends without a trace there.

mod columns;
mod keys;
mod log;
mod screen;
mod session;
mod terminal;
mod text;

use std::io::IsTerminal;
use std::process::ExitCode;

use self::session::STATES;
use self::session::Session;
use self::terminal::Place;
use super::Failure;
use crate::common::os_reason::os_reason;
use crate::supervisor::control::http_client::Caller;
use crate::supervisor::control::messages::Status;

/// Until `q` (0), a signal (128 and its number), or the end of the supervisor (5).
pub async fn top(caller: &Caller) -> Result<ExitCode, Failure> {
    if !std::io::stdout().is_terminal() {
        return Err(Failure::new("top draws on a terminal, which standard output is not (`ps --watch` needs none)"));
    }
    // A supervisor that cannot even say this is better told of before the screen changes.
    let first: Status = caller.get(STATES).await?;
    // Signals first: one that came in between would leave the terminal as we need it.
    let session = Session::start(caller, first)?;
    let entered = Place::enter();
    let mut place = entered.map_err(|error| Failure::new(format!("the terminal: {}", os_reason(&error))))?;
    session.run(&mut place).await
}

//! How far a run has come: a bar on stderr, and only where somebody looks.

use std::io::IsTerminal;
use std::time::Duration;

use indicatif::ProgressBar;
use indicatif::ProgressStyle;

/// How often the bar moves. Seldom, because it shares the cores with the load.
pub const INTERVAL: Duration = Duration::from_millis(200);

const COUNTING: &str = "{msg:28} {bar:30} {pos}/{len} {per_sec} {eta}";
const WAITING: &str = "{msg}";

/// A bar, or nothing when stderr is no terminal.
#[derive(Debug)]
pub struct Progress(ProgressBar);

impl Progress {
    /// A bar from 0 to `total`.
    pub fn counting(what: &str, total: u64) -> Progress {
        Progress::styled(what, COUNTING, total)
    }

    /// A line that says what is going on.
    pub fn waiting(what: &str) -> Progress {
        Progress::styled(what, WAITING, 0)
    }

    fn styled(what: &str, template: &str, total: u64) -> Progress {
        if !std::io::stderr().is_terminal() {
            return Progress(ProgressBar::hidden());
        }
        let style = ProgressStyle::with_template(template).expect("a constant template");
        let bar = ProgressBar::new(total).with_style(style).with_message(what.to_owned());
        bar.tick();
        Progress(bar)
    }

    pub fn say(&self, what: &str) {
        self.0.set_message(what.to_owned());
    }

    pub fn at(&self, done: u64) {
        self.0.set_position(done);
    }
}

impl Drop for Progress {
    /// The line is gone when its work is.
    fn drop(&mut self) {
        self.0.finish_and_clear();
    }
}

//! The lines of one read on their way: remembered at once, painted for the screen and for the file of all processes.

use crate::supervisor::output::Feed;
use crate::supervisor::output::lines::Piece;
use crate::supervisor::output::moment::Moment;
use crate::supervisor::output::store::Origin;
use crate::supervisor::output::store::Stream;

/// All lines of one read have the same time: when they were read.
pub(super) struct Sheet<'a> {
    feed: &'a Feed,
    origin: Origin,
    clock: String,
    /// Of the file of all processes, if there is one.
    merged_clock: Option<String>,
    /// Bytes for the screen.
    pub shown: Vec<u8>,
    pub shown_lines: u64,
    /// Bytes for that file.
    pub merged: Vec<u8>,
    /// Lines that came to their end.
    pub ended: u64,
}

impl Sheet<'_> {
    pub fn new(feed: &Feed, stream: Stream, pid: i32) -> Sheet<'_> {
        let at = Moment::now();
        let clock = feed.shared.painter.clock(at);
        let files = feed.shared.files.as_ref().filter(|files| files.file.is_some());
        let merged_clock = files.map(|files| files.painter.clock(at));
        let origin = Origin { stream, pid: Some(pid), at };
        Sheet { feed, origin, clock, merged_clock, shown: Vec::new(), shown_lines: 0, merged: Vec::new(), ended: 0 }
    }

    /// goreman's line; there is nothing else of it.
    pub fn original(&mut self, line: &[u8]) {
        self.feed.shared.painter.original(&mut self.shown, &self.feed.face, &self.clock, line);
        self.shown_lines += 1;
        self.ended += 1;
    }

    /// Takes every piece that `cut` gives.
    pub fn fill(&mut self, cut: impl FnOnce(&mut dyn FnMut(Piece<'_>))) {
        let Sheet { feed, origin, clock, merged_clock, shown, shown_lines, merged, ended } = self;
        let shared = &feed.shared;
        shared.store.append(feed.id, *origin, |add| {
            cut(&mut |piece| {
                add(piece.text, !piece.ends);
                *ended += u64::from(piece.ends);
                if !feed.is_quiet && shared.painter.line(shown, &feed.face, *origin, clock, piece) {
                    *shown_lines += 1;
                }
                if let (Some(files), Some(clock)) = (&shared.files, merged_clock.as_ref()) {
                    files.painter.line(merged, &feed.face, *origin, clock, piece);
                }
            });
        });
    }
}

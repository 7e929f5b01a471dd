//! Auto-compaction: by age or by number of revisions, on the leader only (server.md 3.8).

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;
use std::time::Instant;

use crate::common::answer::Answer;
use crate::proto::etcdserverpb::CompactionRequest;
use crate::proto::raftinternalpb::InternalRaftRequest;
use crate::server::config::AutoCompaction;
use crate::server::propose::Proposer;
use crate::server::raft::state_machine::Role;
use crate::server::read::Reader;
use crate::server::waiters::Desk;

/// How often compaction by number looks.
const REVISION_INTERVAL: Duration = Duration::from_secs(5 * 60);

/// Compaction by age compacts at least this often.
const PERIOD_MAX: Duration = Duration::from_secs(60 * 60);

/// Samples of the revision in a period of at most `PERIOD_MAX`.
const SAMPLES: u32 = 10;

/// When to compact to what. Pure: time is an argument, counted from the start of the task.
#[derive(Clone, Debug)]
pub struct Schedule {
    mode: AutoCompaction,
    /// Revisions seen, one an interval, oldest first; by age only.
    samples: VecDeque<i64>,
    last_revision: i64,
    last_success: Duration,
    compacted_once: bool,
}

impl Schedule {
    pub fn new(mode: AutoCompaction) -> Schedule {
        Schedule {
            mode,
            samples: VecDeque::new(),
            last_revision: 0,
            last_success: Duration::ZERO,
            compacted_once: false,
        }
    }

    /// Time between a sample and the question behind it.
    pub fn interval(&self) -> Duration {
        match self.mode {
            AutoCompaction::Periodic(period) => period.min(PERIOD_MAX) / SAMPLES,
            AutoCompaction::Revision(_) => REVISION_INTERVAL,
        }
    }

    /// Notes the revision as it is now.
    pub fn sample(&mut self, revision: i64) {
        if let AutoCompaction::Periodic(period) = self.mode {
            self.samples.push_back(revision);
            // One more than there are intervals: the oldest is then a whole period old.
            let kept = (period.as_nanos() / self.interval().as_nanos().max(1)) as usize + 1;
            while self.samples.len() > kept {
                self.samples.pop_front();
            }
        }
    }

    /// The revision to compact to, if it is time.
    pub fn due(&self, now: Duration, revision_now: i64) -> Option<i64> {
        match self.mode {
            AutoCompaction::Periodic(period) => {
                let wait = if self.compacted_once { period.min(PERIOD_MAX) } else { period };
                let revision = self.samples.front().copied()?;
                (now.saturating_sub(self.last_success) >= wait && revision != self.last_revision).then_some(revision)
            }
            AutoCompaction::Revision(kept) => {
                let revision = revision_now - kept;
                (revision > 0 && revision != self.last_revision).then_some(revision)
            }
        }
    }

    /// The compaction to this revision is done, or was done before.
    pub fn done(&mut self, now: Duration, revision: i64) {
        self.last_revision = revision;
        self.last_success = now;
        self.compacted_once = true;
    }
}

/// The task: ends when the member stops.
pub async fn run(mode: AutoCompaction, proposer: Proposer, reader: Reader, desk: Arc<Desk>) {
    let start = Instant::now();
    let mut schedule = Schedule::new(mode);
    loop {
        schedule.sample(reader.view().revision());
        tokio::select! {
            () = desk.until_stopped() => return,
            () = tokio::time::sleep(schedule.interval()) => {}
        }
        // Followers go on sampling: one that becomes leader knows what was there a period ago.
        if desk.raft_now().status.role != Role::Leader {
            continue;
        }
        let Some(revision) = schedule.due(start.elapsed(), reader.view().revision()) else { continue };
        let compaction = CompactionRequest { revision, physical: false };
        let request = InternalRaftRequest { compaction: Some(compaction), ..InternalRaftRequest::default() };
        match proposer.propose(request).await {
            Ok(_) | Err(Answer::Compacted) => {
                tracing::info!(revision, "auto-compacted");
                schedule.done(start.elapsed(), revision);
            }
            Err(answer) => tracing::warn!(revision, %answer, "cannot auto-compact yet"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MINUTE: Duration = Duration::from_secs(60);

    #[test]
    fn by_age_the_first_comes_after_the_period_and_goes_to_what_was_seen_then() {
        let mut schedule = Schedule::new(AutoCompaction::Periodic(10 * MINUTE));
        assert_eq!(schedule.interval(), MINUTE);
        let mut compacted = Vec::new();
        for minute in 1..=35 {
            let now = minute * MINUTE;
            schedule.sample(i64::from(minute) * 10);
            if let Some(revision) = schedule.due(now, 0) {
                compacted.push((minute, revision));
                schedule.done(now, revision);
            }
        }
        assert_eq!(compacted, [(10, 10), (20, 100), (30, 200)]);
    }

    #[test]
    fn by_age_long_periods_compact_hourly_after_the_first() {
        let hour = 60 * MINUTE;
        let mut schedule = Schedule::new(AutoCompaction::Periodic(3 * hour));
        assert_eq!(schedule.interval(), 6 * MINUTE);
        let mut compacted = Vec::new();
        for step in 1..=60 {
            let now = step * schedule.interval();
            schedule.sample(i64::from(step));
            if let Some(revision) = schedule.due(now, 0) {
                compacted.push((now.as_secs() / 3600, revision));
                schedule.done(now, revision);
            }
        }
        assert_eq!(compacted, [(3, 1), (4, 10), (5, 20), (6, 30)]);
    }

    #[test]
    fn by_age_nothing_new_is_skipped_and_failures_are_tried_again() {
        let mut schedule = Schedule::new(AutoCompaction::Periodic(10 * MINUTE));
        for _ in 0..11 {
            schedule.sample(5);
        }
        assert_eq!(schedule.due(9 * MINUTE, 5), None);
        assert_eq!(schedule.due(10 * MINUTE, 5), Some(5));
        assert_eq!(schedule.due(11 * MINUTE, 5), Some(5));
        schedule.done(11 * MINUTE, 5);
        assert_eq!(schedule.due(40 * MINUTE, 5), None);
    }

    #[test]
    fn by_number_the_newest_are_kept() {
        let mut schedule = Schedule::new(AutoCompaction::Revision(100));
        assert_eq!(schedule.interval(), Duration::from_secs(300));
        assert_eq!(schedule.due(Duration::ZERO, 100), None);
        assert_eq!(schedule.due(Duration::ZERO, 150), Some(50));
        schedule.done(Duration::ZERO, 50);
        assert_eq!(schedule.due(Duration::ZERO, 150), None);
        assert_eq!(schedule.due(Duration::ZERO, 151), Some(51));
    }
}

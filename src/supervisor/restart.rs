//! How long to wait before a process is started again, and when to give up.
//!
//! The wait doubles with every start in a row and is up to a quarter shorter by chance, so that processes that fell
//! together do not rise together. Somebody who was up long enough begins anew.

use std::time::Duration;

const FIRST: Duration = Duration::from_millis(100);
const LONGEST: Duration = Duration::from_secs(30);
/// Up so long, a process counts as healthy.
pub const HEALTHY: Duration = Duration::from_secs(10);

/// The starts in a row of one process.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Backoff {
    attempts: u32,
}

impl Backoff {
    /// The wait after an end, or `None` after `max` attempts in a row. `healthy_for` is how long it was up; `dice` is any number.
    pub fn next(&mut self, healthy_for: Duration, max: u32, dice: u64) -> Option<Duration> {
        if healthy_for >= HEALTHY {
            self.attempts = 0;
        }
        if self.attempts >= max {
            return None;
        }
        let whole = FIRST.saturating_mul(1 << self.attempts.min(16)).min(LONGEST);
        self.attempts = self.attempts.saturating_add(1);
        Some(shorter(whole, dice))
    }

    /// The wait after an end that somebody asked for: it is nobody's failure and does not count.
    pub fn after_request(&self, dice: u64) -> Duration {
        shorter(FIRST, dice)
    }
}

/// Up to a quarter less.
fn shorter(whole: Duration, dice: u64) -> Duration {
    const PARTS: u64 = 1024;
    let part = u32::try_from(dice % PARTS).unwrap_or_default();
    whole - whole / 4 * part / PARTS as u32
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_double_up_to_thirty_seconds_and_end_at_the_maximum() {
        let mut backoff = Backoff::default();
        let waits: Vec<u128> =
            (0..11).map(|_| backoff.next(Duration::ZERO, 11, 0).expect("not yet").as_millis()).collect();
        assert_eq!(waits, [100, 200, 400, 800, 1600, 3200, 6400, 12800, 25600, 30000, 30000]);
        assert_eq!(backoff.next(Duration::ZERO, 11, 0), None);
        assert_eq!(backoff.next(HEALTHY, 11, 0), Some(FIRST), "up long enough, it begins anew");
        assert_eq!(Backoff::default().next(Duration::ZERO, 0, 0), None);
        let mut long = Backoff { attempts: u32::MAX };
        assert_eq!(long.next(Duration::ZERO, u32::MAX, 0), None);
    }

    #[test]
    fn chance_takes_up_to_a_quarter() {
        for dice in [0, 1, 511, 1023, 1024, u64::MAX] {
            let wait = Backoff::default().next(Duration::ZERO, 1, dice).expect("the first");
            assert!(wait <= FIRST && wait > FIRST * 3 / 4, "{dice}: {wait:?}");
        }
        assert_ne!(Backoff::default().after_request(0), Backoff::default().after_request(512));
    }
}

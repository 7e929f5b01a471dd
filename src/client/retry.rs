//! When a failed call may be made again.
//!
//! A write that may have been proposed is never repeated: it would be applied twice (reliability.md B27). Reads are
//! repeated on anything that says "not now" (ctl.md 2.8).

use std::hash::BuildHasher;
use std::hash::RandomState;
use std::time::Duration;

use tonic::Code;
use tonic::Status;

use crate::common::answer::Answer;

/// Attempts of one call at most, by etcd's client.
pub(super) const ATTEMPTS_MAX: u32 = 100;

/// Pause after each quorum of endpoints was tried.
const PAUSE: Duration = Duration::from_millis(25);

/// Whether the same request may reach the cluster twice.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Repeat {
    /// Reads: any number of times.
    Harmless,
    /// Writes: only while it is certain that nothing was proposed.
    OnlyUnproposed,
}

/// Whether the call that ended so may be sent again. `never_left`: no byte of it reached the connection.
pub(super) fn may_repeat(repeat: Repeat, status: &Status, never_left: bool) -> bool {
    if never_left {
        return true;
    }
    match repeat {
        Repeat::Harmless => status.code() == Code::Unavailable,
        // The server refuses with these two before anything enters the log; every other answer, a broken connection
        // above all, leaves the outcome open.
        Repeat::OnlyUnproposed => {
            matches!(Answer::from_text(status.message()), Some(Answer::NoLeader | Answer::NotLeader))
        }
    }
}

/// Pause before attempt number `attempt` (1 is the second): 25 ms give or take a tenth once per quorum of endpoints.
pub(super) fn pause_before(attempt: u32, endpoints: usize) -> Duration {
    let quorum = u32::try_from(endpoints / 2 + 1).unwrap_or(u32::MAX);
    if !attempt.is_multiple_of(quorum) {
        return Duration::ZERO;
    }
    // Spread so that clients cut off together do not come back together; the quality of randomness does not matter.
    let random = RandomState::new().hash_one(attempt) % 2001;
    PAUSE.mul_f64(0.9 + random as f64 / 10_000.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn writes_are_repeated_only_when_nothing_was_proposed() {
        let check = |repeat: Repeat, code: Code, text: &str, never_left: bool, expected: bool| {
            assert_eq!(may_repeat(repeat, &Status::new(code, text), never_left), expected, "{repeat:?} {text}");
        };
        check(Repeat::OnlyUnproposed, Code::Unavailable, "etcdserver: no leader", false, true);
        check(Repeat::OnlyUnproposed, Code::FailedPrecondition, "etcdserver: not leader", false, true);
        check(Repeat::OnlyUnproposed, Code::Unavailable, "etcdserver: leader changed", false, false);
        check(Repeat::OnlyUnproposed, Code::Unavailable, "etcdserver: request timed out", false, false);
        check(Repeat::OnlyUnproposed, Code::Unavailable, "etcdserver: server stopped", false, false);
        check(Repeat::OnlyUnproposed, Code::Unavailable, "error reading from server: EOF", false, false);
        check(Repeat::OnlyUnproposed, Code::Unavailable, "error reading from server: EOF", true, true);
        check(Repeat::Harmless, Code::Unavailable, "error reading from server: EOF", false, true);
        check(Repeat::Harmless, Code::InvalidArgument, "etcdserver: key is not provided", false, false);
    }

    #[test]
    fn a_pause_comes_once_per_quorum() {
        let paused = |endpoints| (1..=6).map(|n| !pause_before(n, endpoints).is_zero()).collect::<Vec<_>>();
        assert_eq!(paused(1), [true; 6]);
        assert_eq!(paused(3), [false, true, false, true, false, true]);
        assert!((0..100).all(|_| (22..=28).contains(&pause_before(1, 1).as_millis())));
    }
}

//! What ends a call from outside: its own deadline, and a leader that stays away from a caller who needs one.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::Context;
use std::task::Poll;
use std::time::Duration;

use http::HeaderMap;
use tokio::time::Interval;
use tokio::time::MissedTickBehavior;
use tokio::time::Sleep;
use tonic::Status;

use crate::common::answer::Answer;
use crate::server::api::backend::Backend;

/// Checks in a row without a leader that end a stream (server.md 0.3).
const MISSES_MAX: u32 = 3;

/// A `grpc-timeout` has at most eight digits (gRPC over HTTP/2).
const TIMEOUT_DIGITS_MAX: usize = 8;

/// Resolves with the status that the caller gets when the call has to end.
pub struct Ending {
    deadline: Option<Pin<Box<Sleep>>>,
    leader: Option<LeaderCheck>,
}

struct LeaderCheck {
    backend: Arc<dyn Backend>,
    every: Interval,
    misses: u32,
}

impl Ending {
    /// Never ends but by the caller's deadline, if there is one in the headers.
    pub fn from_headers(headers: &HeaderMap) -> Ending {
        let deadline = headers.get("grpc-timeout").and_then(|value| timeout(value.to_str().ok()?));
        Ending { deadline: deadline.map(|after| Box::pin(tokio::time::sleep(after))), leader: None }
    }

    /// Ends as well after three checks without a leader, one each election timeout.
    pub fn require_leader(&mut self, backend: Arc<dyn Backend>) {
        let period = backend.limits().election_timeout.max(Duration::from_millis(1));
        let mut every = tokio::time::interval_at(tokio::time::Instant::now() + period, period);
        every.set_missed_tick_behavior(MissedTickBehavior::Delay);
        self.leader = Some(LeaderCheck { backend, every, misses: 0 });
    }

    pub fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Status> {
        if let Some(deadline) = &mut self.deadline
            && deadline.as_mut().poll(cx).is_ready()
        {
            return Poll::Ready(Answer::ContextDeadlineExceeded.into());
        }
        if let Some(leader) = &mut self.leader {
            while leader.every.poll_tick(cx).is_ready() {
                let known = leader.backend.raft_status().leader.is_some();
                leader.misses = if known { 0 } else { leader.misses + 1 };
                if leader.misses >= MISSES_MAX {
                    return Poll::Ready(Answer::NoLeader.into());
                }
            }
        }
        Poll::Pending
    }

    /// Runs `work`, unless the call has to end before: then its status.
    pub async fn bound<T>(&mut self, work: impl Future<Output = T>) -> Result<T, Status> {
        let mut work = std::pin::pin!(work);
        std::future::poll_fn(|cx| match work.as_mut().poll(cx) {
            Poll::Ready(done) => Poll::Ready(Ok(done)),
            Poll::Pending => self.poll(cx).map(Err),
        })
        .await
    }
}

/// Reads a `grpc-timeout`: digits and a unit. What is malformed counts as none.
fn timeout(text: &str) -> Option<Duration> {
    let (digits, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    if digits.is_empty() || digits.len() > TIMEOUT_DIGITS_MAX || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let number: u64 = digits.parse().ok()?;
    Some(match unit {
        "H" => Duration::from_secs(number * 3600),
        "M" => Duration::from_secs(number * 60),
        "S" => Duration::from_secs(number),
        "m" => Duration::from_millis(number),
        "u" => Duration::from_micros(number),
        "n" => Duration::from_nanos(number),
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn timeouts_are_read_as_grpc_writes_them() {
        let check = |text: &str, expected: Option<Duration>| assert_eq!(timeout(text), expected, "{text}");
        check("5S", Some(Duration::from_secs(5)));
        check("99999999H", Some(Duration::from_secs(99_999_999 * 3600)));
        check("250m", Some(Duration::from_millis(250)));
        check("7u", Some(Duration::from_micros(7)));
        for wrong in ["", "S", "5", "5x", "-5S", "123456789S", "5é"] {
            check(wrong, None);
        }
    }
}

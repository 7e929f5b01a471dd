//! Whether one client has this member to itself.
//!
//! A caller who is alone gains when its call is done at once by the thread that read it; with others about, that thread
//! must be free to read theirs, and what they write together costs one sync. Calls that lie unread in sockets cannot be
//! counted, so the judgement is made of the past: so many calls in a row, one at a time, on one connection.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::AtomicU32;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering;
use std::time::Duration;
use std::time::Instant;

/// Calls without company before a client counts as alone. Company ends it at once.
const ALONE_CALLS: u32 = 16;
/// A client who writes one thing after the other is waited for awake, for so long. To be woken costs half as much as the
/// disk's sync, and a machine that dozed off in between has lost its caches; a client on this machine asks again sooner.
const AWAKE: Duration = Duration::from_micros(150);
/// Calls that came within that time before it is spent on waiting for the next. One that does not come ends it.
const QUICK_CALLS: u32 = 16;

/// Where connections say that calls came. One a member.
#[derive(Debug, Default)]
pub struct Company {
    visitors: AtomicU64,
    /// Whose call was the last. Nobody's is 0.
    last: AtomicU64,
    /// Calls of it without company.
    alone: AtomicU32,
    /// The last call wrote something, and its caller was alone.
    wrote: AtomicBool,
}

/// A connection in company.
#[derive(Debug)]
pub struct Visitor {
    id: u64,
    company: Arc<Company>,
    /// When nothing was left to do.
    idle_since: Option<Instant>,
    /// Calls in a row that came soon after the one before was done.
    quick: u32,
}

impl Company {
    /// One connection more.
    pub fn visitor(self: &Arc<Company>) -> Visitor {
        let id = self.visitors.fetch_add(1, Ordering::Relaxed) + 1;
        Visitor { id, company: self.clone(), idle_since: None, quick: 0 }
    }

    /// Whether the client whose call is being done is the only one that has asked for anything for a while.
    pub fn is_alone(&self) -> bool {
        // All of this is a guess about what comes next: nothing depends on the order of its parts.
        self.alone.load(Ordering::Relaxed) >= ALONE_CALLS
    }

    /// The call that is being done writes something, for a client who is alone.
    pub fn writes_alone(&self) {
        self.wrote.store(true, Ordering::Relaxed);
    }
}

impl Visitor {
    /// Calls were begun, while others of this connection go on.
    pub fn calls(&mut self, begun: usize, going_on: usize, now: Instant) {
        if let Some(since) = self.idle_since.take() {
            self.quick = if now.saturating_duration_since(since) < AWAKE { self.quick.saturating_add(1) } else { 0 };
        }
        let company = &self.company;
        company.wrote.store(false, Ordering::Relaxed);
        let same = company.last.load(Ordering::Relaxed) == self.id;
        if same && begun + going_on == 1 {
            let alone = company.alone.load(Ordering::Relaxed).saturating_add(1);
            company.alone.store(alone, Ordering::Relaxed);
        } else {
            company.alone.store(0, Ordering::Relaxed);
            company.last.store(self.id, Ordering::Relaxed);
        }
    }

    /// All calls of this connection are done: whether to stay awake for the next one. Asked again and again until it comes.
    pub fn waits_awake(&mut self, now: Instant) -> bool {
        let since = *self.idle_since.get_or_insert(now);
        if self.quick < QUICK_CALLS || !self.company.wrote.load(Ordering::Relaxed) {
            return false;
        }
        let awake = now.saturating_duration_since(since) < AWAKE;
        if !awake {
            self.quick = 0;
        }
        awake
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn call_alone(visitor: &mut Visitor, calls: u32) {
        (0..calls).for_each(|_| visitor.calls(1, 0, Instant::now()));
    }

    #[test]
    fn a_client_is_alone_after_a_while_and_company_ends_it_at_once() {
        let company = Arc::new(Company::default());
        assert!(!company.is_alone());
        let company_ends_it = |company_comes: &dyn Fn(&mut Visitor, &mut Visitor)| {
            let (mut one, mut other) = (company.visitor(), company.visitor());
            call_alone(&mut one, ALONE_CALLS);
            assert!(!company.is_alone(), "the first call only says who is there");
            call_alone(&mut one, 1);
            assert!(company.is_alone());
            company_comes(&mut one, &mut other);
            assert!(!company.is_alone());
        };
        let now = Instant::now();
        company_ends_it(&|_, other| other.calls(1, 0, now));
        company_ends_it(&|one, _| one.calls(2, 0, now));
        company_ends_it(&|one, _| one.calls(1, 1, now));
    }

    /// Calls of one client, each so long after the answer to the one before, and each writing. The time of the last answer.
    fn write_alone(company: &Company, visitor: &mut Visitor, mut now: Instant, calls: u32, pause: Duration) -> Instant {
        for _ in 0..calls {
            now += pause;
            visitor.calls(1, 0, now);
            if company.is_alone() {
                company.writes_alone();
            }
            visitor.waits_awake(now);
        }
        now
    }

    #[test]
    fn whoever_writes_without_pause_is_waited_for_awake_and_not_for_long() {
        let (company, soon) = (Arc::new(Company::default()), AWAKE / 2);
        let mut visitor = company.visitor();
        let now = write_alone(&company, &mut visitor, Instant::now(), QUICK_CALLS + 1, soon);
        assert!(visitor.waits_awake(now) && visitor.waits_awake(now + soon));
        assert!(!visitor.waits_awake(now + AWAKE), "it does not come");
        assert!(!visitor.waits_awake(now + AWAKE + soon));
        // Nor is it waited for when it comes again, until it has been quick for as long as at first.
        let now = write_alone(&company, &mut visitor, now + AWAKE, QUICK_CALLS, soon);
        assert!(!visitor.waits_awake(now));
        let now = write_alone(&company, &mut visitor, now, 1, soon);
        assert!(visitor.waits_awake(now));
        // A read costs no sync beside which the wait would be short.
        visitor.calls(1, 0, now + soon);
        assert!(!visitor.waits_awake(now + soon));
    }

    #[test]
    fn whoever_takes_time_or_has_company_is_not_waited_for() {
        let company = Arc::new(Company::default());
        let (mut one, mut other) = (company.visitor(), company.visitor());
        let now = write_alone(&company, &mut one, Instant::now(), 10 * QUICK_CALLS, AWAKE);
        assert!(!one.waits_awake(now));
        let now = write_alone(&company, &mut one, now, 10 * QUICK_CALLS, AWAKE / 2);
        assert!(one.waits_awake(now));
        other.calls(1, 0, now);
        assert!(!one.waits_awake(now));
    }
}

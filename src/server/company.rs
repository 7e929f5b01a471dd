//! Whether one client has this member to itself.
//!
//! A caller who is alone gains when its call is done at once by the thread that read it; with others about, that thread
//! must be free to read theirs, and what they write together costs one sync. Calls that lie unread in sockets cannot be
//! counted, so the judgement is made of the past: so many calls in a row, one at a time, on one connection.

use std::sync::Arc;
use std::sync::atomic::AtomicU32;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering;

/// Calls without company before a client counts as alone. Company ends it at once.
const ALONE_CALLS: u32 = 16;

/// Where connections say that calls came. One a member.
#[derive(Debug, Default)]
pub struct Company {
    visitors: AtomicU64,
    /// Whose call was the last. Nobody's is 0.
    last: AtomicU64,
    /// Calls of it without company.
    alone: AtomicU32,
}

/// A connection in company.
#[derive(Debug)]
pub struct Visitor {
    id: u64,
    company: Arc<Company>,
}

impl Company {
    /// One connection more.
    pub fn visitor(self: &Arc<Company>) -> Visitor {
        Visitor { id: self.visitors.fetch_add(1, Ordering::Relaxed) + 1, company: self.clone() }
    }

    /// Whether the client whose call is being done is the only one that has asked for anything for a while.
    pub fn is_alone(&self) -> bool {
        // All of this is a guess about what comes next: nothing depends on the order of its parts.
        self.alone.load(Ordering::Relaxed) >= ALONE_CALLS
    }
}

impl Visitor {
    /// Calls were begun, while others of this connection go on.
    pub fn calls(&self, begun: usize, going_on: usize) {
        let company = &self.company;
        let same = company.last.load(Ordering::Relaxed) == self.id;
        if same && begun + going_on == 1 {
            let alone = company.alone.load(Ordering::Relaxed).saturating_add(1);
            company.alone.store(alone, Ordering::Relaxed);
        } else {
            company.alone.store(0, Ordering::Relaxed);
            company.last.store(self.id, Ordering::Relaxed);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn call_alone(visitor: &Visitor, calls: u32) {
        (0..calls).for_each(|_| visitor.calls(1, 0));
    }

    #[test]
    fn a_client_is_alone_after_a_while_and_company_ends_it_at_once() {
        let company = Arc::new(Company::default());
        assert!(!company.is_alone());
        let (one, other) = (company.visitor(), company.visitor());
        let company_ends_it = |company_comes: &dyn Fn()| {
            call_alone(&one, ALONE_CALLS);
            assert!(!company.is_alone(), "the first call only says who is there");
            call_alone(&one, 1);
            assert!(company.is_alone());
            company_comes();
            assert!(!company.is_alone());
            // Whoever comes next begins anew.
            other.calls(1, 0);
        };
        company_ends_it(&|| other.calls(1, 0));
        company_ends_it(&|| one.calls(2, 0));
        company_ends_it(&|| one.calls(1, 1));
    }
}

//! The read barrier as a pure machine: who waits, which round is under way, which contexts count for it, when to ask again.
//!
//! ```text
//!   ask ──▶ next ──(no round is open)──▶ round: one read index for all in it ──▶ confirmed ──(applied)──▶ told
//!             ▲                            │ asked for again: new context
//!             └── whoever comes meanwhile  └─ leader changed, too late ──▶ told
//! ```
//!
//! Three rules make it linearizable. A context is never used twice: a late answer to an old question must not confirm a
//! new one (reliability.md R1, B22). Whoever comes after the question waits for the next round, for an index taken earlier
//! may be too old for it (B24). A change of leader wins over an index that came with it (B23). The server and the
//! simulator turn this same machine; time, contexts and news of raft are arguments.

use std::collections::VecDeque;
use std::time::Duration;

use bytes::Bytes;

use crate::common::answer::Answer;

/// Reads that wait for a read index. Full means clients are told that there are too many requests.
pub const READS_MAX: usize = 65_536;

/// How long things may take.
#[derive(Clone, Copy, Debug)]
pub struct Timing {
    /// A read waits so long for its index, and so long again until that is applied.
    pub patience: Duration,
    /// A question that nobody answered is repeated: the library drops some silently (reliability.md R2).
    pub retry: Duration,
}

/// What is known at the moment of a turn.
#[derive(Clone, Debug, Default)]
pub struct News {
    /// Since some fixed point.
    pub now: Duration,
    pub leader_changes: u64,
    pub terms_started: u64,
    pub applied_index: u64,
    /// Answers that came since the last turn: context and index.
    pub ready: Vec<(Bytes, u64)>,
}

/// What a turn asks of whoever turns the machine.
#[derive(Debug)]
pub struct Work<R> {
    /// Ask raft for a read index under this context.
    pub question: Option<Bytes>,
    /// Readers that wait no longer. `Ok`: the newest View is recent enough for them.
    pub told: Vec<(R, Result<(), Answer>)>,
    /// A round ended without an index, for this reason.
    pub failed: Option<Answer>,
    /// When the next turn is due, if nothing happens before.
    pub wake_at: Option<Duration>,
}

/// The machine. `R` is a reader: whatever its answer goes to.
#[derive(Debug)]
pub struct Rounds<R> {
    timing: Timing,
    /// Reads that take part in the next round, in the order of their deadlines.
    next: VecDeque<Reader<R>>,
    round: Option<Round<R>>,
    confirmed: Vec<Confirmed<R>>,
}

#[derive(Debug)]
struct Reader<R> {
    reader: R,
    deadline: Duration,
}

#[derive(Debug)]
struct Round<R> {
    readers: VecDeque<Reader<R>>,
    /// Everything that was asked for these readers, and only that, is an answer to them.
    contexts: Vec<Bytes>,
    leader_changes: u64,
    terms_started: u64,
    retry_at: Duration,
    deadline: Duration,
}

/// Readers that know their index and wait until it is applied.
#[derive(Debug)]
struct Confirmed<R> {
    index: u64,
    readers: VecDeque<Reader<R>>,
    deadline: Duration,
}

impl<R> Rounds<R> {
    pub fn new(timing: Timing) -> Rounds<R> {
        Rounds { timing, next: VecDeque::new(), round: None, confirmed: Vec::new() }
    }

    /// Takes a reader in; a turn is due. It gets its place back if there are too many.
    pub fn ask(&mut self, reader: R, now: Duration) -> Result<(), R> {
        if self.next.len() >= READS_MAX {
            return Err(reader);
        }
        self.next.push_back(Reader { reader, deadline: now + self.timing.patience });
        Ok(())
    }

    /// Forgets readers that have left.
    pub fn retain(&mut self, mut stays: impl FnMut(&R) -> bool) {
        let round = self.round.iter_mut().map(|round| &mut round.readers);
        let all = round.chain(self.confirmed.iter_mut().map(|confirmed| &mut confirmed.readers));
        all.chain([&mut self.next]).for_each(|readers| readers.retain(|waiting| stays(&waiting.reader)));
    }

    /// Whether an answer of raft would change anything.
    pub fn awaits_index(&self) -> bool {
        self.round.is_some()
    }

    /// Whether progress of apply would change anything.
    pub fn awaits_applied(&self) -> bool {
        !self.confirmed.is_empty()
    }

    pub fn is_idle(&self) -> bool {
        self.next.is_empty() && self.round.is_none() && self.confirmed.is_empty()
    }

    /// Looks at the news and says what follows. `new_context` gives one that was never used before, by anyone.
    pub fn turn(&mut self, news: News, new_context: impl FnOnce() -> Bytes) -> Work<R> {
        let mut work = Work { question: None, told: Vec::new(), failed: None, wake_at: None };
        self.end_round(&news, &mut work);
        // Taken before the index is asked for: whoever comes later waits for the next round.
        if self.round.is_none() && !self.next.is_empty() {
            self.round = Some(Round {
                readers: std::mem::take(&mut self.next),
                contexts: Vec::new(),
                leader_changes: news.leader_changes,
                terms_started: news.terms_started,
                retry_at: news.now,
                deadline: news.now + self.timing.patience,
            });
        }
        if let Some(round) = &mut self.round
            && (news.now >= round.retry_at || news.terms_started != round.terms_started)
        {
            round.terms_started = news.terms_started;
            round.retry_at = news.now + self.timing.retry;
            let context = new_context();
            round.contexts.push(context.clone());
            work.question = Some(context);
        }
        self.pass_applied(&news, &mut work);
        self.lose_patience(news.now, &mut work);
        work.wake_at = self.wake_at();
        work
    }

    /// The member stops: everyone who waits.
    pub fn stop(&mut self) -> Vec<R> {
        let round = self.round.take().map(|round| round.readers);
        let confirmed = std::mem::take(&mut self.confirmed).into_iter().map(|confirmed| confirmed.readers);
        let all = round.into_iter().chain(confirmed).chain([std::mem::take(&mut self.next)]);
        all.flatten().map(|waiting| waiting.reader).collect()
    }

    fn end_round(&mut self, news: &News, work: &mut Work<R>) {
        let Some(round) = &self.round else { return };
        let answer = news.ready.iter().find(|(context, _)| round.contexts.contains(context));
        let end = if news.leader_changes != round.leader_changes {
            Err(Answer::LeaderChanged)
        } else if let Some((_, index)) = answer {
            Ok(*index)
        } else if news.now >= round.deadline {
            Err(Answer::Timeout)
        } else {
            return;
        };
        let readers = self.round.take().map(|round| round.readers).unwrap_or_default();
        match end {
            Ok(index) => {
                self.confirmed.push(Confirmed { index, readers, deadline: news.now + self.timing.patience });
            }
            Err(answer) => {
                work.told.extend(readers.into_iter().map(|waiting| (waiting.reader, Err(answer.clone()))));
                work.failed = Some(answer);
            }
        }
    }

    fn pass_applied(&mut self, news: &News, work: &mut Work<R>) {
        let passed = self.confirmed.extract_if(.., |confirmed| confirmed.index <= news.applied_index);
        for confirmed in passed {
            work.told.extend(confirmed.readers.into_iter().map(|waiting| (waiting.reader, Ok(()))));
        }
    }

    /// Each reader by its own clock: without a leader, one that came during a round would wait for that and for the next.
    fn lose_patience(&mut self, now: Duration, work: &mut Work<R>) {
        let round = self.round.iter_mut().map(|round| &mut round.readers);
        for readers in round.chain([&mut self.next]) {
            while let Some(late) = readers.pop_front_if(|waiting| now >= waiting.deadline) {
                work.told.push((late.reader, Err(Answer::Timeout)));
            }
        }
        for late in self.confirmed.extract_if(.., |confirmed| now >= confirmed.deadline) {
            work.told.extend(late.readers.into_iter().map(|waiting| (waiting.reader, Err(Answer::Timeout))));
        }
    }

    fn wake_at(&self) -> Option<Duration> {
        let round = self.round.iter().flat_map(|round| [round.retry_at, round.deadline]);
        let first = |readers: &VecDeque<Reader<R>>| readers.front().map(|waiting| waiting.deadline);
        let readers = self.round.iter().filter_map(|round| first(&round.readers)).chain(first(&self.next));
        round.chain(readers).chain(self.confirmed.iter().map(|confirmed| confirmed.deadline)).min()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PATIENCE: Duration = Duration::from_secs(7);
    const RETRY: Duration = Duration::from_millis(500);

    fn at(millis: u64) -> News {
        News { now: Duration::from_millis(millis), ..News::default() }
    }

    /// The machine with contexts that count up.
    struct Bench {
        rounds: Rounds<u32>,
        contexts: u64,
    }

    impl Bench {
        fn new() -> Bench {
            Bench { rounds: Rounds::new(Timing { patience: PATIENCE, retry: RETRY }), contexts: 0 }
        }

        fn ask(&mut self, reader: u32, millis: u64) {
            self.rounds.ask(reader, Duration::from_millis(millis)).expect("room");
        }

        fn turn(&mut self, news: News) -> Work<u32> {
            let contexts = &mut self.contexts;
            self.rounds.turn(news, || {
                *contexts += 1;
                Bytes::copy_from_slice(&contexts.to_be_bytes())
            })
        }

        /// A turn in which these contexts, by number, have this index.
        fn ready(&mut self, millis: u64, contexts: &[u64], index: u64, applied_index: u64) -> Work<u32> {
            let ready =
                contexts.iter().map(|context| (Bytes::copy_from_slice(&context.to_be_bytes()), index)).collect();
            self.turn(News { ready, applied_index, ..at(millis) })
        }
    }

    #[test]
    fn whoever_comes_after_the_question_waits_for_the_next_round() {
        let mut bench = Bench::new();
        bench.ask(1, 0);
        bench.ask(2, 0);
        assert!(bench.turn(at(0)).question.is_some());
        bench.ask(3, 1);
        assert!(bench.turn(at(1)).question.is_none());
        let work = bench.ready(2, &[1], 5, 5);
        assert_eq!(work.told, [(1, Ok(())), (2, Ok(()))]);
        assert!(work.question.is_some());
        assert_eq!(bench.ready(3, &[2], 5, 5).told, [(3, Ok(()))]);
        assert!(bench.rounds.is_idle());
    }

    #[test]
    fn every_question_has_a_new_context_and_any_answer_to_the_round_counts() {
        let mut bench = Bench::new();
        bench.ask(1, 0);
        let one = bench.turn(at(0)).question;
        assert_eq!(bench.turn(at(499)).question, None);
        let two = bench.turn(at(500)).question;
        assert!(two.is_some() && one != two);
        assert_eq!(bench.ready(501, &[1], 5, 5).told, [(1, Ok(()))]);
        // The other answer comes during the next round, to which it says nothing.
        bench.ask(2, 502);
        let three = bench.turn(at(502)).question;
        assert!(three.is_some() && three != two && three != one);
        assert!(bench.ready(503, &[2, 1], 5, 5).told.is_empty());
        assert_eq!(bench.ready(504, &[3], 6, 6).told, [(2, Ok(()))]);
    }

    #[test]
    fn an_index_is_awaited_until_it_is_applied() {
        let mut bench = Bench::new();
        bench.ask(1, 0);
        bench.turn(at(0));
        assert!(bench.ready(1, &[1], 8, 7).told.is_empty() && bench.rounds.awaits_applied());
        // A later round may pass it by.
        bench.ask(2, 2);
        bench.turn(News { applied_index: 7, ..at(2) });
        assert_eq!(bench.ready(3, &[2], 7, 7).told, [(2, Ok(()))]);
        assert_eq!(bench.turn(News { applied_index: 8, ..at(4) }).told, [(1, Ok(()))]);
    }

    #[test]
    fn a_change_of_leader_wins_over_an_index_that_came_with_it() {
        let mut bench = Bench::new();
        bench.ask(1, 0);
        bench.turn(at(0));
        bench.ask(2, 1);
        let ready = vec![(Bytes::copy_from_slice(&1u64.to_be_bytes()), 5)];
        let work = bench.turn(News { ready, applied_index: 5, leader_changes: 1, ..at(2) });
        assert_eq!((work.told, work.failed), (vec![(1, Err(Answer::LeaderChanged))], Some(Answer::LeaderChanged)));
        assert!(work.question.is_some(), "the next round goes on under the new leader");
        let ready = vec![(Bytes::copy_from_slice(&2u64.to_be_bytes()), 5)];
        let work = bench.turn(News { ready, applied_index: 5, leader_changes: 1, ..at(3) });
        assert_eq!(work.told, [(2, Ok(()))]);
    }

    #[test]
    fn a_started_term_asks_again_at_once_and_once() {
        let mut bench = Bench::new();
        bench.ask(1, 0);
        bench.turn(at(0));
        assert!(bench.turn(News { terms_started: 1, ..at(1) }).question.is_some());
        assert!(bench.turn(News { terms_started: 1, ..at(2) }).question.is_none());
    }

    #[test]
    fn every_reader_has_its_own_patience() {
        let mut bench = Bench::new();
        bench.ask(1, 0);
        assert_eq!(bench.turn(at(0)).wake_at, Some(RETRY));
        bench.ask(2, 3000);
        // The round ends for all in it; the one that waited behind it does not wait for a whole round more.
        let work = bench.turn(at(7000));
        assert_eq!((work.told, work.failed), (vec![(1, Err(Answer::Timeout))], Some(Answer::Timeout)));
        let work = bench.turn(at(10_000));
        assert_eq!((work.told, work.failed), (vec![(2, Err(Answer::Timeout))], None));
        // And one whose index is not applied.
        bench.ask(3, 20_000);
        bench.turn(at(20_000));
        let context = bench.contexts;
        assert!(bench.ready(20_001, &[context], 9, 8).told.is_empty());
        assert_eq!(bench.turn(at(27_001)).told, [(3, Err(Answer::Timeout))]);
    }

    #[test]
    fn readers_that_left_are_forgotten_everywhere_and_places_are_bounded() {
        let mut bench = Bench::new();
        bench.ask(1, 0);
        bench.turn(at(0));
        bench.ready(0, &[1], 9, 8);
        bench.ask(2, 0);
        bench.turn(at(0));
        (3..3 + READS_MAX as u32).for_each(|reader| bench.ask(reader, 0));
        assert_eq!(bench.rounds.ask(0, Duration::ZERO), Err(0));
        bench.rounds.retain(|reader| *reader == 7);
        bench.ask(0, 0);
        assert_eq!(bench.rounds.stop(), [7, 0]);
        assert!(bench.rounds.is_idle());
    }
}

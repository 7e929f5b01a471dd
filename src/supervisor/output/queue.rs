//! The bytes that wait for a writer: bounded, and each with its own idea of what happens when there is no room.
//!
//! Who may wait, waits (`push_waiting`); who must not, overwrites the oldest and lets it be counted (`push_dropping`); what
//! we say ourselves is rare and goes in front of neither (`push_own`).

use std::collections::VecDeque;
use std::sync::Condvar;
use std::sync::Mutex;
use std::sync::MutexGuard;
use std::sync::PoisonError;
use std::time::Duration;

use tokio::sync::Notify;

/// What a writer takes at a time; a larger batch goes alone.
pub const WRITE_BYTES_MAX: usize = 256 << 10;
/// Bytes of our own lines that may wait. More of them are dropped, and counted.
const OWN_BYTES_MAX: usize = 1 << 20;

/// Whole lines for one place.
#[derive(Debug, Default)]
pub struct Batch {
    pub bytes: Vec<u8>,
    pub lines: u64,
    /// Which of the writer's files it is for.
    pub target: usize,
    own: bool,
}

impl Batch {
    pub fn new(bytes: Vec<u8>, lines: u64, target: usize) -> Batch {
        Batch { bytes, lines, target, own: false }
    }
}

/// What a writer gets.
#[derive(Debug, Default)]
pub struct Taken {
    /// Lines that had to go in front of these.
    pub dropped: u64,
    pub batches: VecDeque<Batch>,
    pub bytes: usize,
}

#[derive(Debug)]
pub struct Queue {
    state: Mutex<State>,
    filled: Condvar,
    room: Notify,
    bytes_max: usize,
}

#[derive(Debug, Default)]
struct State {
    batches: VecDeque<Batch>,
    /// Of all batches, and of those that are being written.
    bytes: usize,
    own_bytes: usize,
    dropped: u64,
    /// Nothing more is pushed.
    closed: bool,
    /// Nothing more is written: pushes go nowhere.
    broken: bool,
}

impl Queue {
    pub fn new(bytes_max: usize) -> Queue {
        Queue { state: Mutex::default(), filled: Condvar::new(), room: Notify::new(), bytes_max }
    }

    /// Waits for room. A batch that is larger than all the room there is waits until it is alone.
    pub async fn push_waiting(&self, batch: Batch) {
        loop {
            let mut room = std::pin::pin!(self.room.notified());
            room.as_mut().enable();
            {
                let mut state = self.lock();
                if state.broken {
                    return;
                }
                if state.bytes == 0 || state.bytes + batch.bytes.len() <= self.bytes_max {
                    self.put(&mut state, batch);
                    return;
                }
            }
            room.await;
        }
    }

    /// Makes room by dropping the oldest.
    pub fn push_dropping(&self, batch: Batch) {
        let mut state = self.lock();
        while state.bytes + batch.bytes.len() > self.bytes_max {
            let Some(oldest) = state.batches.iter().position(|waiting| !waiting.own) else { break };
            let Some(gone) = state.batches.remove(oldest) else { break };
            state.bytes -= gone.bytes.len();
            state.dropped += gone.lines;
        }
        self.put(&mut state, batch);
    }

    /// Never waits, and is not dropped for a child's lines.
    pub fn push_own(&self, bytes: Vec<u8>, target: usize) {
        let mut state = self.lock();
        if state.own_bytes + bytes.len() > OWN_BYTES_MAX {
            state.dropped += 1;
            return;
        }
        state.own_bytes += bytes.len();
        self.put(&mut state, Batch { own: true, ..Batch::new(bytes, 1, target) });
    }

    fn put(&self, state: &mut State, batch: Batch) {
        if !state.broken {
            state.bytes += batch.bytes.len();
            state.batches.push_back(batch);
            self.filled.notify_one();
        }
    }

    /// Blocks until there is something to write, or `patience` is over; `None` when nothing more comes.
    pub fn take(&self, patience: Option<Duration>) -> Option<Taken> {
        let mut state = self.lock();
        loop {
            if !state.batches.is_empty() || state.dropped > 0 {
                break;
            }
            if state.closed {
                return None;
            }
            let Some(patience) = patience else {
                state = self.filled.wait(state).unwrap_or_else(PoisonError::into_inner);
                continue;
            };
            let (woken, timeout) = self.filled.wait_timeout(state, patience).unwrap_or_else(PoisonError::into_inner);
            state = woken;
            if timeout.timed_out() {
                break;
            }
        }
        let mut taken = Taken { dropped: std::mem::take(&mut state.dropped), ..Taken::default() };
        while let Some(next) = state.batches.front() {
            if !taken.batches.is_empty() && taken.bytes + next.bytes.len() > WRITE_BYTES_MAX {
                break;
            }
            taken.bytes += next.bytes.len();
            taken.batches.extend(state.batches.pop_front());
        }
        state.own_bytes -= taken.batches.iter().filter(|batch| batch.own).map(|batch| batch.bytes.len()).sum::<usize>();
        Some(taken)
    }

    /// So many bytes that were taken are written.
    pub fn written(&self, bytes: usize) {
        self.lock().bytes -= bytes;
        self.room.notify_waiters();
    }

    pub fn close(&self) {
        self.lock().closed = true;
        self.filled.notify_one();
    }

    /// The writer is gone: nobody waits for it any more.
    pub fn break_off(&self) {
        let mut state = self.lock();
        state.broken = true;
        state.batches.clear();
        drop(state);
        self.room.notify_waiters();
    }

    /// A panic while the lock was held leaves counts that are still whole batches.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn batch(text: &str) -> Batch {
        Batch::new(text.as_bytes().to_vec(), 1, 0)
    }

    fn texts(taken: &Taken) -> Vec<String> {
        taken.batches.iter().map(|batch| String::from_utf8_lossy(&batch.bytes).into_owned()).collect()
    }

    #[test]
    fn the_oldest_lines_go_and_are_counted_but_never_our_own() {
        let queue = Queue::new(10);
        queue.push_dropping(batch("aaaa"));
        queue.push_own(b"own".to_vec(), 0);
        queue.push_dropping(batch("bbbb"));
        queue.push_dropping(batch("cccc"));
        let taken = queue.take(None).unwrap();
        assert_eq!((texts(&taken), taken.dropped), (vec!["own".to_owned(), "cccc".to_owned()], 2));
        queue.written(taken.bytes);
        queue.close();
        assert!(queue.take(None).is_none());
    }

    #[tokio::test]
    async fn who_may_wait_loses_nothing_and_one_larger_than_all_room_goes_alone() {
        let queue = std::sync::Arc::new(Queue::new(10));
        let writer = {
            let queue = std::sync::Arc::clone(&queue);
            std::thread::spawn(move || {
                let mut found = Vec::new();
                while let Some(taken) = queue.take(None) {
                    assert_eq!(taken.dropped, 0);
                    found.extend(texts(&taken));
                    queue.written(taken.bytes);
                }
                found
            })
        };
        let sent: Vec<String> = (0..100).map(|number| format!("{number:>0$}", number % 15 + 2)).collect();
        for text in &sent {
            queue.push_waiting(batch(text)).await;
        }
        queue.close();
        assert_eq!(writer.join().unwrap(), sent);
    }

    #[tokio::test]
    async fn a_writer_that_is_gone_keeps_nobody_waiting() {
        let queue = std::sync::Arc::new(Queue::new(2));
        queue.push_waiting(batch("aa")).await;
        let waiting = {
            let queue = std::sync::Arc::clone(&queue);
            tokio::spawn(async move { queue.push_waiting(batch("bb")).await })
        };
        tokio::task::yield_now().await;
        assert!(!waiting.is_finished());
        queue.break_off();
        waiting.await.unwrap();
    }
}

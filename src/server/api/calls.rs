//! The calls of one HTTP/2 connection, worked on by the connection's own task.
//!
//! A task for each call would cost a trip through the scheduler when it starts and one when its answer comes, and the
//! connection would be woken to write after the first answer of a batch, while the others still wait for their turn.
//! Here all answers that are there are turned into frames first, and then the connection writes them in one go. What takes
//! long (a large read) goes to a thread of its own either way.

use std::future::Future;
use std::panic::AssertUnwindSafe;
use std::pin::Pin;
use std::pin::pin;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::PoisonError;
use std::task::Poll;
use std::time::Instant;

use futures_util::FutureExt;
use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use hyper::rt::Executor;

use crate::server::company::Visitor;

type Call = Pin<Box<dyn Future<Output = ()> + Send>>;

/// Where the HTTP/2 library leaves the calls that it starts. Clones are the same place.
#[derive(Clone, Default)]
pub struct Starts {
    started: Arc<Mutex<Vec<Call>>>,
}

impl Starts {
    fn take(&self) -> Vec<Call> {
        std::mem::take(&mut *self.started.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl<F> Executor<F> for Starts
where
    F: Future + Send + 'static,
{
    fn execute(&self, call: F) {
        // A panic costs its call only, as it would in a task of its own; it was printed.
        let guarded = AssertUnwindSafe(call).catch_unwind().map(|_| ());
        self.started.lock().unwrap_or_else(PoisonError::into_inner).push(Box::pin(guarded));
    }
}

/// The calls of one connection. They end with it.
pub struct Calls {
    starts: Starts,
    running: FuturesUnordered<Call>,
    visitor: Visitor,
}

impl Calls {
    /// `starts` is the connection's executor; the visitor tells the member of its calls.
    pub fn new(starts: Starts, visitor: Visitor) -> Calls {
        Calls { starts, running: FuturesUnordered::new(), visitor }
    }

    /// Runs the connection and its calls until the connection ends.
    pub async fn run_with<C: Future>(&mut self, mut connection: Pin<&mut C>) -> C::Output {
        std::future::poll_fn(|cx| {
            loop {
                while let Poll::Ready(Some(())) = self.running.poll_next_unpin(cx) {}
                if let Poll::Ready(ended) = connection.as_mut().poll(cx) {
                    return Poll::Ready(ended);
                }
                let started = self.starts.take();
                if started.is_empty() {
                    if self.running.is_empty() && self.visitor.waits_awake(Instant::now()) {
                        // Polled again as soon as the sockets were looked at.
                        let _ = pin!(tokio::task::yield_now()).poll(cx);
                    }
                    return Poll::Pending;
                }
                self.visitor.calls(started.len(), self.running.len(), Instant::now());
                self.running.extend(started);
            }
        })
        .await
    }
}

impl Drop for Calls {
    fn drop(&mut self) {
        // Each call holds a clone of its executor: one left there would keep itself alive.
        drop(self.starts.take());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::server::company::Company;
    use std::sync::atomic::AtomicUsize;
    use std::sync::atomic::Ordering;
    use tokio::sync::oneshot;

    fn visitor() -> Visitor {
        Arc::new(Company::default()).visitor()
    }

    /// A connection that starts calls when told to, counts how often it is polled, and ends when its channel does.
    struct Connection {
        starts: Starts,
        orders: tokio::sync::mpsc::UnboundedReceiver<Call>,
        polls: Arc<AtomicUsize>,
    }

    impl Future for Connection {
        type Output = ();

        fn poll(mut self: Pin<&mut Self>, cx: &mut std::task::Context<'_>) -> Poll<()> {
            self.polls.fetch_add(1, Ordering::SeqCst);
            loop {
                match std::task::ready!(self.orders.poll_recv(cx)) {
                    Some(call) => self.starts.execute(call),
                    None => return Poll::Ready(()),
                }
            }
        }
    }

    #[tokio::test]
    async fn answers_that_come_together_make_the_connection_write_once() {
        let starts = Starts::default();
        let (order, orders) = tokio::sync::mpsc::unbounded_channel::<Call>();
        let polls = Arc::new(AtomicUsize::new(0));
        let connection = Connection { starts: starts.clone(), orders, polls: polls.clone() };
        let (done, mut ended) = tokio::sync::mpsc::unbounded_channel();
        let mut answers = Vec::new();
        for number in 0..10 {
            let (sender, answer) = oneshot::channel::<()>();
            let done = done.clone();
            answers.push(sender);
            order
                .send(Box::pin(async move {
                    answer.await.expect("answered");
                    done.send(number).expect("wanted");
                }))
                .expect("taken");
        }
        let task = tokio::spawn(async move {
            let mut connection = std::pin::pin!(connection);
            Calls::new(starts, visitor()).run_with(connection.as_mut()).await;
        });
        while polls.load(Ordering::SeqCst) < 2 {
            tokio::task::yield_now().await;
        }
        let before = polls.load(Ordering::SeqCst);
        // This test's runtime has one thread: the connection's task runs behind these.
        answers.into_iter().for_each(|answer| answer.send(()).expect("waited for"));
        for _ in 0..10 {
            ended.recv().await.expect("done");
        }
        assert_eq!(polls.load(Ordering::SeqCst), before + 1);
        drop(order);
        task.await.expect("ended");
    }

    #[tokio::test]
    async fn a_panic_costs_its_call_only_and_calls_end_with_their_connection() {
        let starts = Starts::default();
        let (order, orders) = tokio::sync::mpsc::unbounded_channel::<Call>();
        let connection = Connection { starts: starts.clone(), orders, polls: Arc::default() };
        let (sender, answer) = oneshot::channel::<()>();
        let (kept, gone) = oneshot::channel::<()>();
        order.send(Box::pin(async { panic!("a mistake") })).expect("taken");
        order.send(Box::pin(async move { sender.send(()).expect("waited for") })).expect("taken");
        let stays = |kept: oneshot::Sender<()>, executor: Starts| {
            Box::pin(async move {
                let _kept = (kept, executor);
                std::future::pending::<()>().await;
            })
        };
        order.send(stays(kept, starts.clone())).expect("taken");
        let (kept_to_the_end, mut gone_at_the_end) = oneshot::channel::<()>();
        let last = stays(kept_to_the_end, starts.clone());
        let task = tokio::spawn(async move {
            let mut connection = std::pin::pin!(connection);
            Calls::new(starts, visitor()).run_with(connection.as_mut()).await;
        });
        answer.await.expect("the call behind the panic was run");
        // Started in the very moment in which the connection ends.
        order.send(last).expect("taken");
        drop(order);
        task.await.expect("ended");
        assert!(gone.await.is_err());
        assert_eq!(gone_at_the_end.try_recv(), Err(oneshot::error::TryRecvError::Closed));
    }
}

//! Lets the snapshots of a thread take turns, so that calls do not wait for hundreds of them.
//!
//! A runtime polls its tasks in the order in which they became ready. If hundreds of streams have the next message of a
//! snapshot ready, then a call waits for all of them, and several times until it is answered. So only a few streams at
//! a time may produce a message.

use std::{
    cell::RefCell,
    collections::VecDeque,
    convert::Infallible,
    future::poll_fn,
    task::{Context, Poll, Waker},
};

use tokio::task::yield_now;

/// How many streams have a turn while each of the thread's other tasks runs once. A turn takes less than 100 us, most of
/// it for writing to the socket.
const TURNS_A_ROUND: u64 = 8;

/// How many messages a stream may produce in one turn. Two leave in one write, which costs little more than one.
const MESSAGES_A_TURN: usize = 2;

thread_local! {
    /// The turns of this thread, while [`take_turns`] runs on it.
    static TURNS: RefCell<Option<Turns>> = const { RefCell::new(None) };
}

#[derive(Default)]
struct Turns {
    /// The streams that wait for their turn.
    waiting: VecDeque<Waker>,
    /// How many streams have asked for a turn so far, and how many of these may take it.
    asked: u64,
    granted: u64,
    /// The task that grants turns, while it has nothing to do.
    granter: Option<Waker>,
}

/// The turn of a stream.
#[derive(Default)]
pub(super) struct Turn {
    /// The number of the turn that the stream waits for.
    number: Option<u64>,
    /// How many messages it may still produce in its last turn.
    left: usize,
}

impl Turn {
    /// Waits until the stream may produce a message. Always ready on threads that do not [take turns](take_turns).
    pub(super) fn poll(&mut self, context: &Context<'_>) -> Poll<()> {
        if self.left > 0 {
            self.left -= 1;
            return Poll::Ready(());
        }
        let is_granted = with_turns(|turns| {
            let number = *self.number.get_or_insert_with(|| turns.ask(context));
            number < turns.granted
        });
        if is_granted == Some(false) {
            return Poll::Pending;
        }
        *self = Self { number: None, left: MESSAGES_A_TURN - 1 };
        Poll::Ready(())
    }
}

impl Turns {
    /// Returns the number of a new turn. If it is not granted yet, the stream is woken when it is.
    fn ask(&mut self, context: &Context<'_>) -> u64 {
        let number = self.asked;
        self.asked += 1;
        if number >= self.granted {
            self.waiting.push_back(context.waker().clone());
        }
        if let Some(granter) = self.granter.take() {
            granter.wake();
        }
        number
    }

    /// Grants the turns of the next round. Returns the streams to wake.
    fn grant(&mut self) -> Vec<Waker> {
        if self.waiting.is_empty() {
            self.granted = self.asked + TURNS_A_ROUND;
            return Vec::new();
        }
        let count = self.waiting.len().min(TURNS_A_ROUND as usize);
        self.granted += count as u64;
        self.waiting.drain(..count).collect()
    }

    /// Returns whether no turn was taken since the last round. If so, the next one that is asked for wakes the task.
    fn is_idle(&mut self, context: &Context<'_>) -> bool {
        let is_idle = self.granted == self.asked + TURNS_A_ROUND;
        self.granter = is_idle.then(|| context.waker().clone());
        is_idle
    }
}

/// Lets the snapshots on this thread take turns while this future runs on it.
///
/// Never returns. Run it on a single-threaded runtime together with the streams. It may be dropped at any time.
pub(crate) async fn take_turns() -> Infallible {
    TURNS.set(Some(Turns::default()));
    let _running = Running;
    loop {
        let woken = with_turns(Turns::grant).unwrap_or_default();
        woken.into_iter().for_each(Waker::wake);
        // Until all ready tasks have run and the runtime has looked for new input.
        yield_now().await;
        poll_fn(|context| match with_turns(|turns| turns.is_idle(context)) {
            Some(true) => Poll::Pending,
            _ => Poll::Ready(()),
        })
        .await;
    }
}

fn with_turns<R>(call: impl FnOnce(&mut Turns) -> R) -> Option<R> {
    TURNS.with_borrow_mut(|turns| turns.as_mut().map(call))
}

/// Turns that are granted. Dropping it lets all streams go on.
struct Running;

impl Drop for Running {
    fn drop(&mut self) {
        let waiting = TURNS.take().map(|turns| turns.waiting).unwrap_or_default();
        waiting.into_iter().for_each(Waker::wake);
    }
}

#[cfg(test)]
mod tests {
    use std::{cell::Cell, rc::Rc};

    use tokio::task::{LocalSet, spawn_local};

    use super::*;

    const STREAMS: usize = 100;
    const MESSAGES: usize = 50;

    /// Runs streams with many messages, and a task that runs in between. Returns the most messages that it had to wait
    /// for at once.
    async fn most_at_once(turns: bool) -> usize {
        let local = LocalSet::new();
        local
            .run_until(async {
                let turns = turns.then(|| spawn_local(take_turns()));
                yield_now().await;
                let sent = Rc::new(Cell::new(0));
                for _ in 0..STREAMS {
                    let sent = Rc::clone(&sent);
                    spawn_local(async move {
                        let mut turn = Turn::default();
                        for _ in 0..MESSAGES {
                            poll_fn(|context| turn.poll(context)).await;
                            sent.set(sent.get() + 1);
                            yield_now().await;
                        }
                    });
                }
                let call = spawn_local(async move {
                    let (mut before, mut most) = (0, 0);
                    while sent.get() < STREAMS * MESSAGES {
                        yield_now().await;
                        most = most.max(sent.get() - before);
                        before = sent.get();
                    }
                    most
                });
                let most = call.await.unwrap();
                turns.inspect(|turns| turns.abort());
                most
            })
            .await
    }

    #[tokio::test]
    async fn other_tasks_wait_for_few_messages() {
        let (without, with) = (most_at_once(false).await, most_at_once(true).await);
        assert!(without >= STREAMS, "{without} messages at once without turns");
        assert!(with <= 2 * MESSAGES_A_TURN * TURNS_A_ROUND as usize, "{with} messages at once");
    }

    #[tokio::test]
    async fn streams_go_on_when_turns_are_no_longer_granted() {
        LocalSet::new()
            .run_until(async {
                let turns = spawn_local(take_turns());
                yield_now().await;
                let streams: Vec<_> = (0..STREAMS)
                    .map(|_| {
                        spawn_local(async {
                            let mut turn = Turn::default();
                            poll_fn(|context| turn.poll(context)).await;
                        })
                    })
                    .collect();
                yield_now().await;
                turns.abort();
                for stream in streams {
                    tokio::time::timeout(std::time::Duration::from_secs(60), stream).await.unwrap().unwrap();
                }
            })
            .await;
    }
}

//! Lets the connections of a thread take turns at large writes, so that calls do not wait for hundreds of them.
//!
//! A runtime polls its tasks in the order in which they became ready. If hundreds of connections can write the next part
//! of a snapshot, then a call waits for all of them, and several times until it is answered. So only a few at a time may
//! write much.

use std::{
    cell::RefCell,
    collections::VecDeque,
    convert::Infallible,
    future::poll_fn,
    task::{Context, Poll, Waker},
};

use tokio::task::yield_now;

/// How many connections have a turn while each of the thread's other tasks runs once. A turn takes less than 100 us.
const TURNS_A_ROUND: u64 = 4;

thread_local! {
    /// The turns of this thread, while [`take_turns`] runs on it.
    static TURNS: RefCell<Option<Turns>> = const { RefCell::new(None) };
}

#[derive(Default)]
struct Turns {
    /// The connections that wait for their turn, in the order of its number.
    waiting: VecDeque<Waker>,
    /// How many turns were asked for so far, and how many of these may be taken.
    asked: u64,
    granted: u64,
    /// The task that grants turns, while it has nothing to do.
    granter: Option<Waker>,
}

/// The turn of a connection.
#[derive(Default)]
pub(super) struct Turn {
    /// The number of the turn that the connection waits for.
    number: Option<u64>,
    is_taken: bool,
}

impl Turn {
    /// Waits for the turn, unless it is taken already. Always ready on threads that do not [take turns](take_turns).
    pub(super) fn poll(&mut self, context: &Context<'_>) -> Poll<()> {
        if self.is_taken {
            return Poll::Ready(());
        }
        let is_granted = with_turns(|turns| {
            let number = *self.number.get_or_insert_with(|| turns.ask());
            turns.is_granted(number, context)
        });
        if is_granted == Some(false) {
            return Poll::Pending;
        }
        *self = Self { number: None, is_taken: true };
        Poll::Ready(())
    }

    pub(super) fn is_taken(&self) -> bool {
        self.is_taken
    }

    /// Ends the turn. The connection waits for another before it goes on.
    pub(super) fn end(&mut self) {
        self.is_taken = false;
    }
}

impl Turns {
    /// Returns the number of a new turn.
    fn ask(&mut self) -> u64 {
        let number = self.asked;
        self.asked += 1;
        if number >= self.granted {
            self.waiting.push_back(Waker::noop().clone());
        }
        if let Some(granter) = self.granter.take() {
            granter.wake();
        }
        number
    }

    /// Returns whether this turn may be taken. If not, the task is woken when it may.
    fn is_granted(&mut self, number: u64, context: &Context<'_>) -> bool {
        let Some(place) = number.checked_sub(self.granted) else { return true };
        if let Some(waker) = self.waiting.get_mut(place as usize) {
            waker.clone_from(context.waker());
        }
        false
    }

    /// Grants the turns of the next round. Returns the tasks to wake.
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

/// Lets the connections on this thread take turns while this future runs on it.
///
/// Never returns. Run it on a single-threaded runtime together with the connections. It may be dropped at any time.
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

/// Turns that are granted. Dropping it lets all connections go on.
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

    const CONNECTIONS: usize = 100;
    const WRITES: usize = 50;

    /// Runs connections with many writes, and a task that runs in between. Returns the most writes that it had to wait
    /// for at once.
    async fn most_at_once(turns: bool) -> usize {
        let local = LocalSet::new();
        local
            .run_until(async {
                let turns = turns.then(|| spawn_local(take_turns()));
                yield_now().await;
                let written = Rc::new(Cell::new(0));
                for _ in 0..CONNECTIONS {
                    let written = Rc::clone(&written);
                    spawn_local(async move {
                        let mut turn = Turn::default();
                        for _ in 0..WRITES {
                            poll_fn(|context| turn.poll(context)).await;
                            turn.end();
                            written.set(written.get() + 1);
                            yield_now().await;
                        }
                    });
                }
                let call = spawn_local(async move {
                    let (mut before, mut most) = (0, 0);
                    while written.get() < CONNECTIONS * WRITES {
                        yield_now().await;
                        most = most.max(written.get() - before);
                        before = written.get();
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
    async fn other_tasks_wait_for_few_writes() {
        let (without, with) = (most_at_once(false).await, most_at_once(true).await);
        assert!(without >= CONNECTIONS, "{without} writes at once without turns");
        assert!(with <= 2 * TURNS_A_ROUND as usize, "{with} writes at once");
    }

    #[tokio::test]
    async fn connections_go_on_when_turns_are_no_longer_granted() {
        LocalSet::new()
            .run_until(async {
                let turns = spawn_local(take_turns());
                yield_now().await;
                let connections: Vec<_> = (0..CONNECTIONS)
                    .map(|_| {
                        spawn_local(async {
                            let mut turn = Turn::default();
                            poll_fn(|context| turn.poll(context)).await;
                        })
                    })
                    .collect();
                yield_now().await;
                turns.abort();
                for connection in connections {
                    tokio::time::timeout(std::time::Duration::from_secs(60), connection).await.unwrap().unwrap();
                }
            })
            .await;
    }
}

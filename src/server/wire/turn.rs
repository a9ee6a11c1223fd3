//! Lets the connections of a thread take turns at large writes, so that calls do not wait for hundreds of them.
//!
//! A runtime polls its tasks in the order in which they became ready. If hundreds of connections can write the next part
//! of a snapshot, then a call waits for all of them, and several times until it is answered. So only a few at a time may
//! write much.

use std::{
    cell::RefCell,
    collections::VecDeque,
    convert::Infallible,
    future::{pending, poll_fn},
    mem,
    task::{Context, Poll, Waker},
};

use tokio::{
    runtime::{Handle, RuntimeFlavor},
    task::yield_now,
};

/// How many connections have a turn before the thread's other tasks run. A turn takes less than 100 us.
const TURNS_A_ROUND: u64 = 4;

thread_local! {
    static TURNS: RefCell<Turns> = RefCell::default();
}

/// The turns of a thread. Their numbers count on for as long as the thread lives, because connections hold some.
#[derive(Default)]
struct Turns {
    /// Whether [`take_turns`] grants turns on this thread.
    is_running: bool,
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
        let may_write = TURNS.with_borrow_mut(|turns| {
            !turns.is_running || {
                let number = *self.number.get_or_insert_with(|| turns.ask());
                turns.is_granted(number, context)
            }
        });
        if !may_write {
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

    /// Returns whether no turn was asked for since the last round. If so, the next one that is asked for wakes the task.
    fn is_idle(&mut self, context: &Context<'_>) -> bool {
        let is_idle = self.granted == self.asked + TURNS_A_ROUND;
        self.granter = is_idle.then(|| context.waker().clone());
        is_idle
    }
}

/// Lets the connections on this thread take turns while this future runs on it.
///
/// Never returns. Run it on a single-threaded runtime together with the connections. It may be dropped at any time. On
/// a multi-threaded runtime, whose tasks change their thread, it does nothing. If several run on one thread, one of them
/// grants the turns, and there are none once it is dropped.
pub(crate) async fn take_turns() -> Infallible {
    let keeps_thread = Handle::current().runtime_flavor() == RuntimeFlavor::CurrentThread;
    if !keeps_thread || TURNS.with_borrow_mut(|turns| mem::replace(&mut turns.is_running, true)) {
        return pending().await;
    }
    let _running = Running;
    loop {
        let woken = TURNS.with_borrow_mut(Turns::grant);
        woken.into_iter().for_each(Waker::wake);
        // Until the ready tasks have run, or many of them, and the runtime has looked for new input.
        yield_now().await;
        poll_fn(|context| match TURNS.with_borrow_mut(|turns| turns.is_idle(context)) {
            true => Poll::Pending,
            false => Poll::Ready(()),
        })
        .await;
    }
}

/// Turns that are granted. Dropping it lets all connections go on.
struct Running;

impl Drop for Running {
    fn drop(&mut self) {
        let waiting = TURNS.with_borrow_mut(|turns| {
            turns.is_running = false;
            turns.granter = None;
            turns.granted = turns.granted.max(turns.asked);
            mem::take(&mut turns.waiting)
        });
        waiting.into_iter().for_each(Waker::wake);
    }
}

#[cfg(test)]
mod tests {
    use std::{cell::Cell, pin::pin, rc::Rc, thread, time::Duration};

    use futures_util::{FutureExt as _, future::select};
    use tokio::{
        sync::Notify,
        task::{LocalSet, spawn_local},
        time::timeout,
    };

    use super::*;

    const CONNECTIONS: usize = 100;
    const WRITES: usize = 50;
    const HANGS: Duration = Duration::from_secs(60);

    /// A connection that writes so often, and reports each write.
    async fn write(writes: usize, wrote: impl Fn()) {
        let mut turn = Turn::default();
        for _ in 0..writes {
            poll_fn(|context| turn.poll(context)).await;
            turn.end();
            wrote();
            yield_now().await;
        }
    }

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
                    spawn_local(write(WRITES, move || written.set(written.get() + 1)));
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
                let connections: Vec<_> = (0..CONNECTIONS).map(|_| spawn_local(write(1, || ()))).collect();
                yield_now().await;
                turns.abort();
                for connection in connections {
                    timeout(HANGS, connection).await.unwrap().unwrap();
                }
            })
            .await;
    }

    #[tokio::test]
    async fn servers_on_one_thread_do_not_disturb_each_other() {
        LocalSet::new()
            .run_until(async {
                let first = spawn_local(take_turns());
                yield_now().await;
                // The task of a server's worker is also polled for other reasons.
                let (polls, poke) = (Rc::new(Cell::new(0)), Rc::new(Notify::new()));
                let second = spawn_local({
                    let (polls, poke) = (Rc::clone(&polls), Rc::clone(&poke));
                    let mut worker = Box::pin(async move {
                        let other = async {
                            loop {
                                poke.notified().await;
                            }
                        };
                        select(pin!(take_turns()), pin!(other)).await;
                    });
                    poll_fn(move |context| {
                        polls.set(polls.get() + 1);
                        worker.as_mut().poll(context)
                    })
                });
                let connections: Vec<_> = (0..CONNECTIONS).map(|_| spawn_local(write(WRITES, || ()))).collect();
                for _ in 0..WRITES {
                    yield_now().await;
                }
                first.abort();
                for connection in connections {
                    timeout(HANGS, connection).await.unwrap().unwrap();
                }
                let before = polls.get();
                poke.notify_one();
                for _ in 0..WRITES {
                    yield_now().await;
                }
                assert!(polls.get() <= before + 2, "{} polls: it wakes itself", polls.get() - before);
                second.abort();
            })
            .await;
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 1)]
    async fn a_task_that_changes_its_thread_leaves_no_turns_behind() {
        let mut server = Box::pin(take_turns());
        assert!(server.as_mut().now_or_never().is_none());
        thread::spawn(move || drop(server)).join().unwrap();
        for _ in 0..CONNECTIONS {
            timeout(HANGS, write(1, || ())).await.unwrap();
        }
    }
}

//! Wakes many tasks of another thread with one system call.
//!
//! Waking a task on another thread's runtime takes a system call, and the woken thread may handle each task before the
//! next one is woken. A change with a hundred observers could therefore cost a hundred system calls. A thread that runs
//! a [`relay`] is woken once, and then wakes all its tasks itself.

use std::{
    cell::RefCell,
    convert::Infallible,
    future::poll_fn,
    sync::Arc,
    task::{Context, Poll, Waker},
};

use futures_util::task::AtomicWaker;
use parking_lot::Mutex;

thread_local! {
    /// The relay that was started last on this thread, while it runs.
    static HERE: RefCell<Option<Arc<Relay>>> = const { RefCell::new(None) };
}

struct Relay {
    task: AtomicWaker,
    /// The tasks for the relay to wake. `None` once the relay has ended.
    woken: Mutex<Option<Vec<Waker>>>,
}

/// A waiting task, and the relay of its thread, if there is one.
pub(crate) struct Waiter {
    waker: Waker,
    relay: Option<Arc<Relay>>,
}

impl Waiter {
    /// Returns a waiter for the task that is being polled.
    pub(crate) fn new(context: &Context<'_>) -> Self {
        Self { waker: context.waker().clone(), relay: HERE.with_borrow(Option::clone) }
    }

    /// Updates the waiter to the task that is being polled. In most cases it is the same task.
    pub(crate) fn renew(&mut self, context: &Context<'_>) {
        self.waker.clone_from(context.waker());
        HERE.with_borrow(|here| {
            if !is_same(here.as_ref(), self.relay.as_ref()) {
                self.relay.clone_from(here);
            }
        });
    }
}

fn is_same(one: Option<&Arc<Relay>>, other: Option<&Arc<Relay>>) -> bool {
    one.map(Arc::as_ptr) == other.map(Arc::as_ptr)
}

/// Wakes all waiters. Tasks of other threads are woken through their thread's relay, if there is one.
pub(crate) fn wake_all(waiters: impl IntoIterator<Item = Waiter>) {
    let here = HERE.with_borrow(Option::clone);
    let mut relays: Vec<Arc<Relay>> = Vec::new();
    for Waiter { waker, relay } in waiters {
        let Some(relay) = relay.filter(|relay| !is_same(Some(relay), here.as_ref())) else {
            waker.wake();
            continue;
        };
        let mut woken = relay.woken.lock();
        let Some(list) = &mut *woken else {
            drop(woken);
            waker.wake();
            continue;
        };
        let is_first = list.is_empty();
        list.push(waker);
        drop(woken);
        // If the list was not empty, the thread that added its first waiter wakes the relay.
        if is_first {
            relays.push(relay);
        }
    }
    relays.into_iter().for_each(|relay| relay.task.wake());
}

/// Wakes the tasks of this thread on behalf of other threads: observers, and calls that wait for a file to be written.
///
/// Waking a task on another thread's runtime takes a system call. A thread that runs a relay is woken once for all of
/// its tasks. This pays off if a few threads have many observers each. `sessiond::server` runs a relay on each worker.
///
/// Never returns. Run it on a single-threaded runtime, and let only that runtime wait on this thread: a second executor
/// that blocks there would not be woken. On a multi-threaded runtime all tasks are still woken, but without the saving.
///
/// It may be dropped at any time. Pending tasks are woken then, and from that moment each task is woken directly again.
pub async fn relay() -> Infallible {
    let running = Running(Arc::new(Relay { task: AtomicWaker::new(), woken: Mutex::new(Some(Vec::new())) }));
    HERE.set(Some(Arc::clone(&running.0)));
    let mut woken = Vec::new();
    poll_fn(|context| {
        running.0.task.register(context.waker());
        if let Some(list) = &mut *running.0.woken.lock() {
            std::mem::swap(list, &mut woken);
        }
        woken.drain(..).for_each(Waker::wake);
        Poll::Pending
    })
    .await
}

/// A running relay. Dropping it wakes the pending tasks.
struct Running(Arc<Relay>);

impl Drop for Running {
    fn drop(&mut self) {
        let left = self.0.woken.lock().take();
        left.into_iter().flatten().for_each(Waker::wake);
        HERE.with_borrow_mut(|here| here.take_if(|here| Arc::ptr_eq(here, &self.0)));
    }
}

#[cfg(test)]
mod tests {
    use std::{
        pin::pin,
        sync::atomic::{AtomicUsize, Ordering},
        task::Wake,
        thread,
    };

    use futures_util::FutureExt;

    use super::*;

    #[derive(Default)]
    struct Count(AtomicUsize);

    impl Wake for Count {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::SeqCst);
        }
    }

    impl Count {
        fn get(&self) -> usize {
            self.0.load(Ordering::SeqCst)
        }
    }

    /// Returns `count` waiters on this thread, and a counter of how often they were woken.
    fn waiting(count: usize) -> (Vec<Waiter>, Arc<Count>) {
        let woken = Arc::<Count>::default();
        let waker = Waker::from(Arc::clone(&woken));
        ((0..count).map(|_| Waiter::new(&Context::from_waker(&waker))).collect(), woken)
    }

    fn wake_from_another_thread(waiters: Vec<Waiter>) {
        thread::spawn(|| wake_all(waiters)).join().unwrap();
    }

    #[test]
    fn relay_is_woken_once_for_all_waiters_of_its_thread() {
        let called = Arc::<Count>::default();
        let waker = Waker::from(Arc::clone(&called));
        let mut context = Context::from_waker(&waker);
        let mut relay = pin!(relay());
        assert!(relay.poll_unpin(&mut context).is_pending());

        let (waiters, woken) = waiting(100);
        wake_from_another_thread(waiters);
        assert_eq!((called.get(), woken.get()), (1, 0));
        // More waiters, before the relay was polled.
        let (more, more_woken) = waiting(2);
        wake_from_another_thread(more);
        assert_eq!(called.get(), 1);
        assert!(relay.poll_unpin(&mut context).is_pending());
        assert_eq!((woken.get(), more_woken.get()), (100, 2));
        // A second round wakes only the new waiters.
        let (waiters, woken_again) = waiting(3);
        wake_from_another_thread(waiters);
        assert!(relay.poll_unpin(&mut context).is_pending());
        assert_eq!((called.get(), woken.get(), woken_again.get()), (2, 100, 3));

        let (waiters, woken) = waiting(5);
        wake_all(waiters);
        assert_eq!((called.get(), woken.get()), (2, 5), "a thread wakes its own tasks directly");
    }

    #[test]
    fn waiters_are_woken_without_a_relay_and_after_it_ended() {
        let (without, woken_without) = waiting(2);
        let mut relay = Box::pin(relay());
        assert!(relay.poll_unpin(&mut Context::from_waker(Waker::noop())).is_pending());
        let (before, woken_before) = waiting(3);
        let (after, woken_after) = waiting(4);
        wake_from_another_thread(without);
        wake_from_another_thread(before);
        assert_eq!((woken_without.get(), woken_before.get()), (2, 0));
        drop(relay);
        assert_eq!(woken_before.get(), 3);
        wake_from_another_thread(after);
        assert_eq!(woken_after.get(), 4);
        let (new, _) = waiting(1);
        assert!(new.iter().all(|waiter| waiter.relay.is_none()), "the thread has no relay any more");
    }

    #[test]
    fn no_wakeup_is_lost_while_two_threads_wake_a_third() {
        const TASKS: usize = 8;
        const ROUNDS: usize = 5000;
        let waiting = Arc::<Mutex<Vec<Waiter>>>::default();
        let done = Arc::new(AtomicUsize::new(0));
        let wakers = [(); 2].map(|()| {
            let (waiting, done) = (Arc::clone(&waiting), Arc::clone(&done));
            thread::spawn(move || {
                while done.load(Ordering::SeqCst) < TASKS {
                    wake_all(std::mem::take(&mut *waiting.lock()));
                    thread::yield_now();
                }
            })
        });
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        runtime.block_on(async {
            tokio::spawn(relay());
            let tasks = (0..TASKS).map(|_| {
                let (waiting, done) = (Arc::clone(&waiting), Arc::clone(&done));
                tokio::spawn(async move {
                    for _ in 0..ROUNDS {
                        let mut is_waiting = false;
                        poll_fn(|context| {
                            if is_waiting {
                                return Poll::Ready(());
                            }
                            is_waiting = true;
                            waiting.lock().push(Waiter::new(context));
                            Poll::Pending
                        })
                        .await;
                    }
                    done.fetch_add(1, Ordering::SeqCst);
                })
            });
            for task in tasks.collect::<Vec<_>>() {
                tokio::time::timeout(std::time::Duration::from_secs(60), task).await.unwrap().unwrap();
            }
        });
        wakers.into_iter().for_each(|waker| waker.join().unwrap());
    }

    #[test]
    fn waiter_that_moves_to_another_thread_is_woken_there() {
        let runtime = || tokio::runtime::Builder::new_current_thread().build().unwrap();
        let (sender, receiver) = std::sync::mpsc::channel();
        let there = thread::spawn(move || {
            runtime().block_on(async {
                tokio::spawn(relay());
                tokio::task::yield_now().await;
                let (mut waiters, _) = waiting(1);
                let task = tokio::sync::oneshot::channel::<()>();
                let waiter = waiters.pop().unwrap();
                sender.send((waiter, task.0)).unwrap();
                task.1.await.unwrap();
            });
        });
        let (mut waiter, done) = receiver.recv().unwrap();
        assert!(waiter.relay.is_some());
        let (_, woken) = waiting(0);
        let waker = Waker::from(Arc::clone(&woken));
        waiter.renew(&Context::from_waker(&waker));
        assert!(waiter.relay.is_none(), "this thread has no relay");
        wake_all([waiter]);
        assert_eq!(woken.get(), 1);
        done.send(()).unwrap();
        there.join().unwrap();
    }
}

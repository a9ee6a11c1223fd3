//! Callers that wait until records are on disk.

use std::{
    collections::BTreeMap,
    future::poll_fn,
    mem,
    sync::atomic::{AtomicU64, Ordering},
    task::{Context, Poll},
    time::{Duration, Instant},
};

use parking_lot::Mutex;

use super::Lsn;
use crate::{
    relay::{Waiter, wake_all},
    storage::WriteRefusal,
};

/// The newest record on disk, and the callers that wait for later ones.
pub(super) struct Durability {
    durable: AtomicU64,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// The waiting tasks, by the record that they wait for and a unique number.
    waiting: BTreeMap<(Lsn, u64), Waiter>,
    next: u64,
    /// Why nothing reaches the disk. Only set while some record is not on disk.
    outage: Option<Outage>,
    /// Why nothing will reach the disk any more.
    end: Option<WriteRefusal>,
    /// The length of the longest outage that ended since this was last taken.
    recovered_after: Option<Duration>,
}

struct Outage {
    refusal: WriteRefusal,
    began: Instant,
}

impl Durability {
    pub(super) fn new(durable: Lsn) -> Self {
        Self { durable: AtomicU64::new(durable.0), state: Mutex::default() }
    }

    pub(super) fn durable(&self) -> Lsn {
        Lsn(self.durable.load(Ordering::Acquire))
    }

    pub(super) fn outage(&self) -> Option<WriteRefusal> {
        self.state.lock().refusal()
    }

    /// Returns the length of the longest outage that ended since the last call.
    pub(super) fn recovered_after(&self) -> Option<Duration> {
        self.state.lock().recovered_after.take()
    }

    /// Waits until record `lsn` is on disk, or nothing reaches the disk.
    pub(super) async fn wait(&self, lsn: Lsn) -> Result<(), WriteRefusal> {
        let mut turn = Turn { durability: self, lsn, number: None };
        poll_fn(|context| turn.poll(context)).await
    }

    /// Notes that the records up to `lsn` are on disk. This ends an outage.
    pub(super) fn publish(&self, lsn: Lsn) {
        let mut state = self.state.lock();
        self.durable.store(lsn.0, Ordering::Release);
        // Set in the same step: a caller that finds the outage gone also finds its length.
        if let Some(outage) = state.outage.take() {
            state.recovered_after = state.recovered_after.max(Some(outage.began.elapsed()));
        }
        let later = state.waiting.split_off(&(Lsn(lsn.0 + 1), 0));
        let woken = mem::replace(&mut state.waiting, later);
        drop(state);
        wake_all(woken.into_values());
    }

    /// Notes that record `lsn` could not be written: all waiting callers fail, and an outage begins. It ends when the
    /// next records reach the disk. If record `lsn` is on disk already, does nothing and returns false.
    pub(super) fn fail(&self, lsn: Lsn, refusal: WriteRefusal) -> bool {
        let mut state = self.state.lock();
        // Checked under the lock, because outages end under that lock.
        if self.durable() >= lsn {
            return false;
        }
        let began = state.outage.take().map_or_else(Instant::now, |outage| outage.began);
        state.outage = Some(Outage { refusal, began });
        let woken = mem::take(&mut state.waiting);
        drop(state);
        wake_all(woken.into_values());
        true
    }

    /// Notes that nothing will reach the disk any more. All waiting callers fail.
    pub(super) fn end(&self, refusal: WriteRefusal) {
        let mut state = self.state.lock();
        state.end = Some(refusal);
        let woken = mem::take(&mut state.waiting);
        drop(state);
        wake_all(woken.into_values());
    }
}

impl State {
    fn refusal(&self) -> Option<WriteRefusal> {
        self.end.as_ref().or(self.outage.as_ref().map(|outage| &outage.refusal)).cloned()
    }
}

/// A caller that waits for a record.
struct Turn<'a> {
    durability: &'a Durability,
    lsn: Lsn,
    /// The caller's number while it is registered, as far as it knows.
    number: Option<u64>,
}

impl Turn<'_> {
    fn poll(&mut self, context: &Context<'_>) -> Poll<Result<(), WriteRefusal>> {
        let mut state = self.durability.state.lock();
        // Checked under the lock, because waiting callers are taken out to be woken under that lock.
        if self.durability.durable() >= self.lsn {
            self.number = None;
            return Poll::Ready(Ok(()));
        }
        if let Some(refusal) = state.refusal() {
            self.number = None;
            return Poll::Ready(Err(refusal));
        }
        let number = *self.number.get_or_insert_with(|| {
            state.next += 1;
            state.next
        });
        // A call may be polled first by its connection and later as a task of its own, so the latest waker counts.
        match state.waiting.get_mut(&(self.lsn, number)) {
            Some(waiter) => waiter.renew(context),
            None => drop(state.waiting.insert((self.lsn, number), Waiter::new(context))),
        }
        Poll::Pending
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        if let Some(number) = self.number {
            self.durability.state.lock().waiting.remove(&(self.lsn, number));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use futures_util::FutureExt;
    use tokio::{task::JoinSet, time::timeout};

    use super::*;
    use crate::storage::RefusalCause;

    #[tokio::test]
    async fn waiting_callers_are_woken_although_others_are_dropped() {
        let durability = Arc::new(Durability::new(Lsn(0)));
        let mut first = Box::pin(durability.wait(Lsn(1)));
        assert!((&mut first).now_or_never().is_none());
        let mut others = JoinSet::new();
        for lsn in [1, 1, 2, 3] {
            let durability = Arc::clone(&durability);
            others.spawn(async move { durability.wait(Lsn(lsn)).await.map(|()| lsn).map_err(|_| lsn) });
        }
        // One call is dropped while it waits, and another is polled here before it becomes a task.
        assert!(durability.wait(Lsn(1)).now_or_never().is_none());
        let mut moved = Box::pin({
            let durability = Arc::clone(&durability);
            async move { durability.wait(Lsn(1)).await.map(|()| 1).map_err(|_| 1) }
        });
        assert!((&mut moved).now_or_never().is_none());
        others.spawn(moved);
        tokio::task::yield_now().await;
        durability.publish(Lsn(2));
        assert!(durability.recovered_after().is_none(), "there was no outage");
        drop(first);
        let mut woken = Vec::new();
        for _ in 0..4 {
            woken.push(timeout(Duration::from_secs(30), others.join_next()).await.unwrap().unwrap().unwrap());
        }
        woken.sort_unstable();
        assert_eq!(woken, [Ok(1), Ok(1), Ok(1), Ok(2)]);
        assert!(others.join_next().now_or_never().is_none());
        let outage = || WriteRefusal::new(RefusalCause::DiskFailed, "gone");
        assert!(!durability.fail(Lsn(2), outage()), "that record is on disk");
        assert!(durability.outage().is_none());
        assert!(durability.fail(Lsn(3), outage()), "an outage has begun");
        assert_eq!(others.join_next().await.unwrap().unwrap(), Err(3));
        assert!(durability.wait(Lsn(3)).now_or_never().unwrap().is_err());
        durability.publish(Lsn(3));
        assert!(durability.recovered_after().is_some(), "an outage has ended");
        assert!(durability.wait(Lsn(3)).now_or_never().unwrap().is_ok());
    }
}

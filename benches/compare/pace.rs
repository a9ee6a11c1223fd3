//! Makes calls as fast as a server answers them.

use std::{
    ops::Range,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use tokio::task::JoinSet;

/// A connection that may have several calls in flight.
pub(crate) trait Caller: Send + 'static {
    /// Queues call number `n`.
    fn call(&mut self, n: u64);

    /// Sends the queued calls.
    fn send(&mut self) -> impl Future<Output = ()> + Send;

    /// Waits for at least one answer. Returns how many there were.
    fn answers(&mut self) -> impl Future<Output = usize> + Send;
}

/// Makes the calls with these numbers, with `in_flight` calls in flight on each connection.
pub(crate) async fn make(calls: Range<u64>, callers: Vec<impl Caller>, in_flight: usize) {
    let next = Arc::new(AtomicU64::new(calls.start));
    let mut drivers = JoinSet::new();
    for mut caller in callers {
        let next = Arc::clone(&next);
        drivers.spawn(async move {
            let mut open = 0;
            loop {
                while open < in_flight {
                    let n = next.fetch_add(1, Ordering::Relaxed);
                    if n >= calls.end {
                        break;
                    }
                    caller.call(n);
                    open += 1;
                }
                if open == 0 {
                    break;
                }
                caller.send().await;
                open -= caller.answers().await;
            }
        });
    }
    drivers.join_all().await;
}

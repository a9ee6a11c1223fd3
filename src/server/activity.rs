//! Whether a connection is of use, and when it is to be closed.

use std::{
    future::pending,
    ops::RangeInclusive,
    sync::{
        Arc,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    time::Duration,
};

use tokio::{
    sync::watch,
    time::{Instant, sleep, sleep_until},
};

use super::connection::ConnectionOptions;
use crate::status::ServiceError;

/// How much later than its connection's GOAWAY a stream of events ends, in milliseconds: the client must know by then that it is to
/// connect anew, and a thousand streams of a connection must not come back at once.
const GRACE: RangeInclusive<u64> = 100..=3000;

/// What a connection does.
pub(super) struct Activity {
    /// How many calls have come.
    calls: AtomicU64,
    /// How many streams are open, but for those that watch the server's health.
    streams: AtomicUsize,
    /// When it is as old as it may become.
    retires: Option<Instant>,
    closing: watch::Sender<Option<Closing>>,
}

/// Why a connection is about to be closed.
#[derive(Clone, Copy, Debug)]
pub(super) enum Closing {
    Idle,
    TooOld,
}

impl Activity {
    pub(super) fn new(options: &ConnectionOptions) -> Arc<Self> {
        let retires = options.max_age.and_then(|age| Instant::now().checked_add(around(age)));
        Arc::new(Self {
            calls: AtomicU64::new(0),
            streams: AtomicUsize::new(0),
            retires,
            closing: watch::Sender::new(None),
        })
    }

    pub(super) fn count_call(&self) {
        self.calls.fetch_add(1, Ordering::Relaxed);
    }

    /// Counts a stream until the answer is dropped.
    pub(super) fn count_stream(self: &Arc<Self>) -> OpenStream {
        self.streams.fetch_add(1, Ordering::Relaxed);
        OpenStream(Arc::clone(self))
    }

    /// When a stream of events that is opened now is to end, if it is synced.
    pub(super) fn stream_retires(&self) -> Option<Instant> {
        self.retires.map(|retires| retires + Duration::from_millis(fastrand::u64(GRACE)))
    }

    /// Waits until the connection is old, or of no use for `idle_timeout`, and tells its streams.
    pub(super) async fn is_over(&self, idle_timeout: Duration) {
        let old = async {
            match self.retires {
                Some(retires) => sleep_until(retires).await,
                None => pending().await,
            }
        };
        let closing = tokio::select! {
            () = old => Closing::TooOld,
            () = self.ceases(idle_timeout) => Closing::Idle,
        };
        self.closing.send_replace(Some(closing));
    }

    /// Waits until the connection is about to be closed, and returns what streams end with that are not of events.
    pub(super) async fn closes(&self) -> ServiceError {
        // An error is that the connection is gone, and nobody hears the answer.
        let closing = self.closing.subscribe().wait_for(Option::is_some).await.map_or(None, |closing| *closing);
        match closing {
            Some(Closing::TooOld) => ServiceError::ConnectionTooOld,
            _ => ServiceError::ConnectionClosing,
        }
    }

    /// Waits until no call came and no stream was open for `timeout`, and for less than twice as long.
    async fn ceases(&self, timeout: Duration) {
        let mut seen = None;
        loop {
            let calls = self.calls.load(Ordering::Relaxed);
            if seen == Some(calls) && self.streams.load(Ordering::Relaxed) == 0 {
                return;
            }
            seen = Some(calls);
            sleep(timeout).await;
        }
    }
}

/// Counts a stream until it ends.
pub(super) struct OpenStream(Arc<Activity>);

impl Drop for OpenStream {
    fn drop(&mut self) {
        self.0.streams.fetch_sub(1, Ordering::Relaxed);
    }
}

/// A tenth more or less: connections that were made at once must not be made again at once.
fn around(age: Duration) -> Duration {
    age.mul_f64(0.9 + fastrand::f64() / 5.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ages_differ_by_a_tenth_at_most() {
        let ages: Vec<_> = (0..1000).map(|_| around(Duration::from_secs(1800))).collect();
        let (least, most) = (ages.iter().min().unwrap(), ages.iter().max().unwrap());
        assert!(*least >= Duration::from_secs(1620) && *most <= Duration::from_secs(1980), "{least:?} to {most:?}");
        assert!(*most - *least > Duration::from_secs(300), "{least:?} to {most:?}");
    }
}

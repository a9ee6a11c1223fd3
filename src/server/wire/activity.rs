//! Tracks the calls and streams of a connection, and decides when to close it.

use std::{
    future::pending,
    net::IpAddr,
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
use crate::{server::monitoring::ServerStats, service::ServiceError};

/// How long after its connection's GOAWAY an event stream ends, in milliseconds. By then the client knows that it must
/// reconnect. The delay is random, so that a thousand streams of one connection do not all come back together.
const GRACE: RangeInclusive<u64> = 100..=3000;

/// The activity of one connection.
pub(super) struct Activity {
    /// How many calls and streams have started.
    calls: AtomicU64,
    /// How many calls and streams are open.
    open: AtomicUsize,
    /// How many of the open streams are health watches.
    probes: AtomicUsize,
    max_streams: usize,
    stats: Arc<ServerStats>,
    /// When the connection reaches its maximum age.
    retires: Option<Instant>,
    closing: watch::Sender<Option<Closing>>,
}

/// Why a connection is being closed.
#[derive(Clone, Copy, Debug)]
pub(super) enum Closing {
    Idle,
    TooOld,
}

impl Activity {
    pub(crate) fn new(options: &ConnectionOptions, stats: &Arc<ServerStats>) -> Self {
        Self {
            calls: AtomicU64::new(0),
            open: AtomicUsize::new(0),
            probes: AtomicUsize::new(0),
            max_streams: options.max_streams as usize,
            stats: Arc::clone(stats),
            retires: options.max_age.and_then(|age| Instant::now().checked_add(jittered(age))),
            closing: watch::Sender::new(None),
        }
    }

    /// Counts a call or a stream that starts.
    pub(super) fn begin(&self, peer: IpAddr) {
        self.calls.fetch_add(1, Ordering::Relaxed);
        if self.open.fetch_add(1, Ordering::Relaxed) + 1 == self.max_streams {
            self.stats.streams_used_up(peer, self.max_streams);
        }
    }

    /// Counts a call or a stream that ends.
    pub(crate) fn end(&self) {
        if self.open.fetch_sub(1, Ordering::Relaxed) == self.max_streams {
            self.stats.stream_is_free();
        }
    }

    /// Counts an open stream as a health watch.
    pub(super) fn begin_probe(&self) {
        self.probes.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn end_probe(&self) {
        self.probes.fetch_sub(1, Ordering::Relaxed);
    }

    /// Returns when an event stream that opens now must end, if it is synced by then.
    pub(super) fn stream_retires(&self) -> Option<Instant> {
        self.retires.map(|retires| retires + Duration::from_millis(fastrand::u64(GRACE)))
    }

    /// Waits until the connection has reached its maximum age or was idle for `idle_timeout`, then notifies its
    /// streams.
    pub(crate) async fn is_over(&self, idle_timeout: Duration) {
        let old = async {
            match self.retires {
                Some(retires) => sleep_until(retires).await,
                None => pending().await,
            }
        };
        let closing = tokio::select! {
            () = old => Closing::TooOld,
            () = self.until_idle(idle_timeout) => Closing::Idle,
        };
        self.closing.send_replace(Some(closing));
    }

    /// Waits until the connection is being closed, and returns the error for its streams other than event streams.
    pub(super) async fn closes(&self) -> ServiceError {
        // An error means that the connection is gone, so the answer does not matter.
        let closing = self.closing.subscribe().wait_for(Option::is_some).await.map_or(None, |closing| *closing);
        match closing {
            Some(Closing::TooOld) => ServiceError::ConnectionTooOld,
            _ => ServiceError::ConnectionClosing,
        }
    }

    /// Waits until no call has started and none was open for at least `timeout`, and for less than twice that.
    async fn until_idle(&self, timeout: Duration) {
        let mut seen = None;
        loop {
            let calls = self.calls.load(Ordering::Relaxed);
            let is_used = self.open.load(Ordering::Relaxed) > self.probes.load(Ordering::Relaxed);
            if seen == Some(calls) && !is_used {
                return;
            }
            seen = Some(calls);
            sleep(timeout).await;
        }
    }
}

/// Changes `age` by up to a tenth at random, so that connections that opened together do not reconnect together.
fn jittered(age: Duration) -> Duration {
    age.mul_f64(0.9 + fastrand::f64() / 5.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ages_vary_by_at_most_a_tenth() {
        let ages: Vec<_> = (0..1000).map(|_| jittered(Duration::from_secs(1800))).collect();
        let (least, most) = (ages.iter().min().unwrap(), ages.iter().max().unwrap());
        assert!(*least >= Duration::from_secs(1620) && *most <= Duration::from_secs(1980), "{least:?} to {most:?}");
        assert!(*most - *least > Duration::from_secs(300), "{least:?} to {most:?}");
    }
}

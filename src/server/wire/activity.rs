//! Whether a connection is of use, and when it is to be closed.

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

/// How much later than its connection's GOAWAY a stream of events ends, in milliseconds: the client must know by then
/// that it is to connect anew, and a thousand streams of a connection must not come back at once.
const GRACE: RangeInclusive<u64> = 100..=3000;

/// What a connection does.
pub(super) struct Activity {
    /// How many calls have come.
    calls: AtomicU64,
    /// How many calls and streams are open.
    open: AtomicUsize,
    /// How many of them watch the server's health.
    probes: AtomicUsize,
    max_streams: usize,
    stats: Arc<ServerStats>,
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
    pub(crate) fn new(options: &ConnectionOptions, stats: &Arc<ServerStats>) -> Self {
        Self {
            calls: AtomicU64::new(0),
            open: AtomicUsize::new(0),
            probes: AtomicUsize::new(0),
            max_streams: options.max_streams as usize,
            stats: Arc::clone(stats),
            retires: options.max_age.and_then(|age| Instant::now().checked_add(around(age))),
            closing: watch::Sender::new(None),
        }
    }

    /// Counts a call or a stream that begins.
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

    /// Counts a stream that watches the server's health, besides.
    pub(super) fn begin_probe(&self) {
        self.probes.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn end_probe(&self) {
        self.probes.fetch_sub(1, Ordering::Relaxed);
    }

    /// When a stream of events that is opened now is to end, if it is synced.
    pub(super) fn stream_retires(&self) -> Option<Instant> {
        self.retires.map(|retires| retires + Duration::from_millis(fastrand::u64(GRACE)))
    }

    /// Waits until the connection is old, or of no use for `idle_timeout`, and tells its streams.
    pub(crate) async fn is_over(&self, idle_timeout: Duration) {
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

    /// Waits until no call came and none was open for `timeout`, and for less than twice as long.
    async fn ceases(&self, timeout: Duration) {
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

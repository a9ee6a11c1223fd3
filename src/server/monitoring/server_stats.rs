//! Counts connections and calls for the metrics.

use std::{
    net::IpAddr,
    sync::{
        Arc,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    time::Duration,
};

use parking_lot::Mutex;
use tokio::time::Instant;

use crate::service::CallStats;

/// The counts of a server since its start.
#[derive(Debug)]
pub(crate) struct ServerStats {
    pub(crate) calls: CallStats,
    pub(crate) max_sessions: u64,
    connections: AtomicUsize,
    /// How many connections have reached their stream limit.
    full_connections: AtomicUsize,
    /// How often a connection has reached its stream limit.
    streams_used_up: AtomicU64,
    /// When the log last warned about such a connection.
    warned: Mutex<Option<Instant>>,
}

/// The minimum time between two warnings about connections at their stream limit.
const WARNING_INTERVAL: Duration = Duration::from_secs(60);

impl ServerStats {
    pub(crate) fn new(max_sessions: u64) -> Arc<Self> {
        Arc::new(Self {
            calls: CallStats::new(),
            max_sessions,
            connections: AtomicUsize::new(0),
            full_connections: AtomicUsize::new(0),
            streams_used_up: AtomicU64::new(0),
            warned: Mutex::new(None),
        })
    }

    /// Returns the number of open connections.
    pub(crate) fn connections(&self) -> usize {
        self.connections.load(Ordering::Relaxed)
    }

    /// Returns how many connections have reached their stream limit.
    pub(super) fn full_connections(&self) -> usize {
        self.full_connections.load(Ordering::Relaxed)
    }

    /// Returns how often a connection has reached its stream limit.
    pub(super) fn times_streams_used_up(&self) -> u64 {
        self.streams_used_up.load(Ordering::Relaxed)
    }

    /// Records that a connection has reached its stream limit, and logs a warning if the last one is long enough ago.
    pub(crate) fn streams_used_up(&self, peer: IpAddr, max_streams: usize) {
        self.full_connections.fetch_add(1, Ordering::Relaxed);
        self.streams_used_up.fetch_add(1, Ordering::Relaxed);
        let mut warned = self.warned.lock();
        if warned.is_none_or(|warned| warned.elapsed() >= WARNING_INTERVAL) {
            *warned = Some(Instant::now());
            tracing::warn!(
                %peer,
                max_streams,
                "a connection has reached its limit of open calls and streams, and further calls wait in the client: \
                 use more connections, or raise --max-streams"
            );
        }
    }

    /// Records that a call or stream of such a connection has ended, so that it is below its limit again.
    pub(crate) fn stream_is_free(&self) {
        self.full_connections.fetch_sub(1, Ordering::Relaxed);
    }

    /// Counts a connection until the returned guard is dropped.
    pub(crate) fn count_connection(&self) -> impl Drop + use<'_> {
        self.connections.fetch_add(1, Ordering::Relaxed);
        Counted(&self.connections)
    }
}

struct Counted<'a>(&'a AtomicUsize);

impl Drop for Counted<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

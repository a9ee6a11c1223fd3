//! What a server counts for metrics.

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

/// Counts that are kept for as long as the server runs.
#[derive(Debug)]
pub(crate) struct ServerStats {
    pub(crate) calls: CallStats,
    pub(crate) max_sessions: u64,
    connections: AtomicUsize,
    /// Connections that have as many calls and streams open as they may.
    full_connections: AtomicUsize,
    /// How often a connection came to that.
    streams_used_up: AtomicU64,
    /// When the log said so last.
    told: Mutex<Option<Instant>>,
}

/// How often the log says at most that a connection is full.
const REMINDER: Duration = Duration::from_secs(60);

impl ServerStats {
    pub(crate) fn new(max_sessions: u64) -> Arc<Self> {
        Arc::new(Self {
            calls: CallStats::new(),
            max_sessions,
            connections: AtomicUsize::new(0),
            full_connections: AtomicUsize::new(0),
            streams_used_up: AtomicU64::new(0),
            told: Mutex::new(None),
        })
    }

    /// How many connections there are.
    pub(crate) fn connections(&self) -> usize {
        self.connections.load(Ordering::Relaxed)
    }

    /// How many connections have as many calls and streams open as they may.
    pub(super) fn full_connections(&self) -> usize {
        self.full_connections.load(Ordering::Relaxed)
    }

    /// How often a connection came to that.
    pub(super) fn times_streams_used_up(&self) -> u64 {
        self.streams_used_up.load(Ordering::Relaxed)
    }

    /// Notes that a connection has as many calls and streams open as it may.
    pub(crate) fn streams_used_up(&self, peer: IpAddr, max_streams: usize) {
        self.full_connections.fetch_add(1, Ordering::Relaxed);
        self.streams_used_up.fetch_add(1, Ordering::Relaxed);
        let mut told = self.told.lock();
        if told.is_none_or(|told| told.elapsed() >= REMINDER) {
            *told = Some(Instant::now());
            tracing::warn!(
                %peer,
                max_streams,
                "a connection has as many calls and streams open as it may, and further calls wait in the client: \
                 use more connections, or raise --max-streams"
            );
        }
    }

    /// Notes that one of them has ended.
    pub(crate) fn stream_is_free(&self) {
        self.full_connections.fetch_sub(1, Ordering::Relaxed);
    }

    /// Counts a connection until the answer is dropped.
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

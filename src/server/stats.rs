//! What a server counts for metrics.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

use crate::service::CallStats;

/// Counts that are kept for as long as the server runs.
#[derive(Debug)]
pub(super) struct ServerStats {
    pub(super) calls: CallStats,
    pub(super) max_sessions: u64,
    connections: AtomicUsize,
}

impl ServerStats {
    pub(super) fn new(max_sessions: u64) -> Arc<Self> {
        Arc::new(Self { calls: CallStats::new(), max_sessions, connections: AtomicUsize::new(0) })
    }

    /// How many connections there are.
    pub(super) fn connections(&self) -> usize {
        self.connections.load(Ordering::Relaxed)
    }

    /// Counts a connection until the answer is dropped.
    pub(super) fn count_connection(&self) -> impl Drop + use<'_> {
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

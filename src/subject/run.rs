//! Runs: the sessions of some buckets, read and encoded once for all observers that need them.

use std::{fmt, ops::Range, sync::Arc};

use bytes::Bytes;

use super::log::EventEncoder;
use crate::{
    session::{LeaseId, SessionKey},
    storage::{BucketRun, LogPoint},
};

/// The maximum number of sessions in a message. The message takes up to 32 KB, or 58 KB with auth keys.
const SESSIONS_A_MESSAGE: usize = 2900;

/// The sessions of consecutive buckets, and the messages that carry them.
#[derive(Default)]
pub(super) struct Run {
    /// The first bucket, as an index into the buckets that a snapshot has to read.
    first: u32,
    /// The point at which each bucket was read.
    pub(super) points: Vec<LogPoint>,
    sessions: Vec<SessionKey>,
    /// The lease of each session, for observers with placements.
    leases: Vec<Option<LeaseId>>,
    /// The messages. Each but the last has `part_len` sessions.
    parts: Vec<Bytes>,
    part_len: usize,
}

impl Run {
    /// Returns the run of no bucket before this one.
    pub(super) fn empty(first: u32) -> Self {
        Self { first, ..Self::default() }
    }

    /// Encodes what was read. Sessions that do not fit one message are divided evenly.
    pub(super) fn new(first: u32, read: BucketRun, encoder: &dyn EventEncoder) -> Self {
        let BucketRun { points, sessions, leases } = read;
        let count = sessions.len().div_ceil(SESSIONS_A_MESSAGE).max(1);
        let part_len = sessions.len().div_ceil(count).max(1);
        let mut run = Self { first, points, sessions, leases, parts: Vec::new(), part_len };
        let parts = run.sessions.chunks(part_len).enumerate();
        run.parts = parts.map(|(n, sessions)| encoder.encode_sessions(sessions, run.leases(n))).collect();
        run
    }

    /// Returns the buckets.
    pub(super) fn buckets(&self) -> Range<u32> {
        self.first..self.first + self.points.len() as u32
    }

    /// Returns the number of sessions.
    pub(super) fn sessions(&self) -> usize {
        self.sessions.len()
    }

    /// Returns how many messages carry the sessions.
    pub(super) fn parts(&self) -> usize {
        self.parts.len()
    }

    fn range(&self, part: usize) -> Range<usize> {
        let start = part * self.part_len;
        start..self.sessions.len().min(start + self.part_len)
    }

    fn leases(&self, part: usize) -> &[Option<LeaseId>] {
        self.leases.get(self.range(part)).unwrap_or_default()
    }

    /// Returns about how many bytes the run takes.
    pub(super) fn bytes(&self) -> usize {
        self.points.capacity() * size_of::<LogPoint>()
            + self.sessions.capacity() * size_of::<SessionKey>()
            + self.leases.capacity() * size_of::<Option<LeaseId>>()
            + self.parts.iter().map(Bytes::len).sum::<usize>()
            + size_of::<Self>()
    }
}

/// Some of the existing sessions, with their leases for an observer with placements. Never empty. Cheap to clone.
#[derive(Clone)]
pub struct Sessions {
    run: Arc<Run>,
    part: usize,
}

impl Sessions {
    pub(super) fn new(run: Arc<Run>, part: usize) -> Self {
        Self { run, part }
    }

    /// Returns the sessions.
    #[must_use]
    pub fn sessions(&self) -> &[SessionKey] {
        &self.run.sessions[self.run.range(self.part)]
    }

    /// Returns the lease of each of the [`sessions`](Self::sessions). Empty for an observer without
    /// [placements](super::Filter::placements).
    #[must_use]
    pub fn leases(&self) -> &[Option<LeaseId>] {
        self.run.leases(self.part)
    }

    /// Returns the message that the subject's [`EventEncoder`] made of the sessions.
    #[must_use]
    pub fn wire(&self) -> Bytes {
        self.run.parts[self.part].clone()
    }
}

impl fmt::Debug for Sessions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sessions")
            .field("sessions", &self.sessions())
            .field("leases", &self.leases())
            .finish()
    }
}

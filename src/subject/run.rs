//! Runs: the sessions of some buckets, read and encoded once for all observers that need them.

use std::{fmt, ops::Range, sync::Arc};

use bytes::Bytes;

use super::log::EventEncoder;
use crate::{
    session::{LeaseId, SessionKey},
    storage::{BucketRun, LogPoint},
};

/// The maximum number of sessions in a message. The message takes up to 32 KB, 58 KB with auth keys, or
/// 84 KB with auth keys and leases.
const SESSIONS_A_MESSAGE: usize = 2900;

/// The sessions of consecutive buckets.
#[derive(Default)]
pub(super) struct Run {
    /// The first bucket, as an index into the buckets that a snapshot has to read.
    first: u32,
    /// The point at which each bucket was read.
    pub(super) points: Vec<LogPoint>,
    pub(super) parts: Vec<Sessions>,
}

impl Run {
    /// Returns the run of no bucket before this one.
    pub(super) fn empty(first: u32) -> Self {
        Self { first, ..Self::default() }
    }

    /// Makes a run of what was read, as values.
    pub(super) fn plain(first: u32, read: BucketRun) -> Self {
        let BucketRun { points, sessions, leases } = read;
        let is_empty = sessions.is_empty();
        let all = Sessions(Content::Plain(Arc::new((sessions, leases))));
        Self { first, points, parts: if is_empty { Vec::new() } else { vec![all] } }
    }

    /// Makes a run of what was read, as messages. Sessions that do not fit one message are divided evenly.
    pub(super) fn encoded(first: u32, read: BucketRun, encoder: &dyn EventEncoder) -> Self {
        let BucketRun { points, sessions, leases } = read;
        let messages = sessions.len().div_ceil(SESSIONS_A_MESSAGE).max(1);
        let len = sessions.len().div_ceil(messages).max(1);
        let encode = |(n, part): (usize, &[SessionKey])| {
            let leases = leases.get(n * len..n * len + part.len()).unwrap_or_default();
            Sessions(Content::Encoded { message: encoder.encode_sessions(part, leases), count: part.len() })
        };
        Self { first, points, parts: sessions.chunks(len).enumerate().map(encode).collect() }
    }

    /// Returns the buckets.
    pub(super) fn buckets(&self) -> Range<u32> {
        self.first..self.first + self.points.len() as u32
    }

    /// Returns the number of sessions.
    pub(super) fn sessions(&self) -> usize {
        self.parts.iter().map(Sessions::count).sum()
    }

    /// Returns about how many bytes the run takes.
    pub(super) fn bytes(&self) -> usize {
        let points = self.points.capacity() * size_of::<LogPoint>();
        points + self.parts.iter().map(Sessions::bytes).sum::<usize>() + size_of::<Self>()
    }
}

/// Some of the existing sessions, with their leases for an observer with placements. Never empty. Cheap to clone.
#[derive(Clone)]
pub struct Sessions(Content);

#[derive(Clone)]
enum Content {
    Plain(Arc<(Vec<SessionKey>, Vec<Option<LeaseId>>)>),
    /// What the service sends. The values are dropped once they are encoded.
    Encoded {
        message: Bytes,
        count: usize,
    },
}

impl Sessions {
    /// Returns the sessions.
    #[must_use]
    pub fn sessions(&self) -> &[SessionKey] {
        match &self.0 {
            Content::Plain(all) => &all.0,
            Content::Encoded { .. } => &[],
        }
    }

    /// Returns the lease of each of the [`sessions`](Self::sessions). Empty for an observer without
    /// [placements](super::Filter::placements).
    #[must_use]
    pub fn leases(&self) -> &[Option<LeaseId>] {
        match &self.0 {
            Content::Plain(all) => &all.1,
            Content::Encoded { .. } => &[],
        }
    }

    /// Returns the message, for an observer that takes messages.
    #[cfg(feature = "server")]
    pub(crate) fn message(&self) -> Bytes {
        match &self.0 {
            Content::Plain(_) => Bytes::new(),
            Content::Encoded { message, .. } => message.clone(),
        }
    }

    /// Returns the number of sessions.
    pub(super) fn count(&self) -> usize {
        match &self.0 {
            Content::Plain(all) => all.0.len(),
            Content::Encoded { count, .. } => *count,
        }
    }

    fn bytes(&self) -> usize {
        match &self.0 {
            Content::Plain(all) => {
                let (sessions, leases) = &**all;
                sessions.capacity() * size_of::<SessionKey>() + leases.capacity() * size_of::<Option<LeaseId>>()
            }
            Content::Encoded { message, .. } => message.len(),
        }
    }
}

impl fmt::Debug for Sessions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (sessions, leases) = (self.sessions(), self.leases());
        f.debug_struct("Sessions").field("sessions", &sessions).field("leases", &leases).finish_non_exhaustive()
    }
}

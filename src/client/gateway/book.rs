//! The book of a gateway: its sessions, their connections, and what remains to be done for each.
//!
//! The book makes no calls and awaits nothing. The loop in `rounds` takes a [`Plan`] from it, makes the calls, and
//! enters the answers.

mod plan;

use std::{
    collections::{HashMap, VecDeque},
    sync::Arc,
    time::Duration,
};

use tokio::{sync::oneshot, time::Instant};

pub(super) use self::plan::{Claim, Lookup, Plan};
use super::connection::{CloseReason, Signal};
use crate::{
    client::ClientError,
    session::{DestroyReason, LeaseId, SessionKey},
};

/// A client that connected longer ago than this may be elsewhere by now, so its connection takes the session from
/// nobody.
const FRESH: Duration = Duration::from_secs(1);

/// Receives the answer to `connect`.
pub(super) type Reply = oneshot::Sender<Result<(), ClientError>>;

/// The sessions of a gateway.
#[derive(Debug)]
pub(super) struct Book {
    lease: LeaseId,
    is_stopped: bool,
    entries: HashMap<SessionKey, Entry>,
    /// The sessions for which something is to be done, each once.
    queue: VecDeque<SessionKey>,
    /// Counts the snapshots of the stream, to find the sessions that are missing from the last one.
    snapshot: u32,
}

/// A session that has a connection here, or may be under one of the gateway's leases.
#[derive(Debug, Default)]
struct Entry {
    open: Vec<Open>,
    /// The leases that the session may be under because of this gateway.
    under: Vec<LeaseId>,
    /// The lease that the registry last said the session is under, if that was one of this gateway.
    registered: Option<LeaseId>,
    /// What the stream said about the session leaving.
    hint: Option<Left>,
    /// The last snapshot that the session was in.
    seen: u32,
    /// Whether the stream said that the session is here since its last plan was made. The answers to that plan may be
    /// older.
    has_appeared: bool,
    is_queued: bool,
}

/// A connection that is not closed.
#[derive(Debug)]
struct Open {
    signal: Arc<Signal>,
    /// `None` once the session is registered for this connection.
    opening: Option<Box<Opening>>,
}

#[derive(Debug)]
struct Opening {
    since: Instant,
    step: Step,
    reply: Reply,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    Waits,
    LooksUp,
    /// Takes the session from this lease or from none. This never changes: a connection that looked up the holder again
    /// before a retry could take the session from a newer connection.
    Claims(Option<LeaseId>),
}

/// How a session left the gateway's lease, according to the stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Left {
    Moved(LeaseId),
    Destroyed(DestroyReason),
    /// It is missing from a snapshot.
    Missing,
}

impl Left {
    fn reason(self) -> CloseReason {
        match self {
            Self::Moved(to) => CloseReason::Moved { to },
            Self::Destroyed(reason) => CloseReason::Destroyed { reason: Some(reason) },
            Self::Missing => CloseReason::Destroyed { reason: None },
        }
    }
}

impl Entry {
    fn has_work(&self, lease: LeaseId) -> bool {
        if self.open.is_empty() {
            return !self.under.is_empty();
        }
        self.hint.is_some() || self.registered != Some(lease) || self.open.iter().any(|open| open.opening.is_some())
    }

    fn may_be_under(&mut self, lease: LeaseId) {
        if !self.under.contains(&lease) {
            self.under.push(lease);
        }
    }

    /// The registry says that the session is under `lease`, which is this gateway's.
    fn is_under(&mut self, lease: LeaseId) {
        self.registered = Some(lease);
        self.under.clear();
        self.under.push(lease);
    }

    /// The registry says that the session is not under `lease`.
    fn is_not_under(&mut self, lease: LeaseId) {
        if !self.has_appeared {
            self.under.retain(|under| *under != lease);
        }
    }

    fn is_registered(&self) -> bool {
        self.open.iter().any(|open| open.opening.is_none())
    }

    fn openings(&mut self) -> impl Iterator<Item = &mut Opening> {
        self.open.iter_mut().filter_map(|open| open.opening.as_deref_mut())
    }

    /// Closes the connections for which the session was registered.
    fn close_registered(&mut self, reason: CloseReason) {
        self.open.retain(|open| {
            if open.opening.is_none() {
                open.signal.give(reason);
            }
            open.opening.is_some()
        });
        self.registered = None;
    }

    /// Answers the connections whose step `is_due`, and keeps them if the answer is that they are registered.
    fn answer(&mut self, is_due: impl Fn(Step) -> bool, answer: impl Fn() -> Result<(), ClientError>) {
        self.open.retain_mut(|open| match open.opening.take() {
            Some(opening) if is_due(opening.step) => {
                let answer = answer();
                let stays = answer.is_ok();
                // The caller of `connect` may be gone. Its connection is then closed like any other.
                let _ = opening.reply.send(answer);
                stays
            }
            opening => {
                open.opening = opening;
                true
            }
        });
    }
}

impl Book {
    pub(super) fn new(lease: LeaseId) -> Self {
        Self { lease, is_stopped: false, entries: HashMap::new(), queue: VecDeque::new(), snapshot: 0 }
    }

    pub(super) fn lease(&self) -> LeaseId {
        self.lease
    }

    pub(super) fn is_stopped(&self) -> bool {
        self.is_stopped
    }

    /// Adds a connection that is opening. Answers it at once if the gateway is stopped.
    pub(super) fn open(&mut self, session: SessionKey, signal: Arc<Signal>, since: Instant, reply: Reply) {
        if self.is_stopped {
            let _ = reply.send(Err(ClientError::GatewayStopped));
            return;
        }
        let opening = Some(Box::new(Opening { since, step: Step::Waits, reply }));
        self.entries.entry(session).or_default().open.push(Open { signal, opening });
        self.settle(session);
    }

    /// Removes a connection, if it is still in the book.
    pub(super) fn close(&mut self, session: SessionKey, signal: &Arc<Signal>) {
        let Some(entry) = self.entries.get_mut(&session) else { return };
        entry.open.retain(|open| !Arc::ptr_eq(&open.signal, signal));
        self.settle(session);
    }

    /// Closes all connections. What remains in the book are sessions to destroy.
    pub(super) fn stop(&mut self) {
        self.is_stopped = true;
        self.entries.retain(|_, entry| {
            let is_closed = entry.open.is_empty();
            entry.answer(|_| true, || Err(ClientError::GatewayStopped));
            entry.close_registered(CloseReason::Stopped);
            is_closed
        });
        self.queue.retain(|session| self.entries.contains_key(session));
    }

    /// The gateway has a new lease, under which all sessions with connections are to be registered.
    pub(super) fn renew(&mut self, lease: LeaseId) {
        self.lease = lease;
        let open: Vec<_> =
            self.entries.iter().filter(|(_, entry)| entry.has_work(lease)).map(|(session, _)| *session).collect();
        open.into_iter().for_each(|session| self.settle(session));
    }

    /// The stream says that a session is under the gateway's lease.
    pub(super) fn appeared(&mut self, session: SessionKey, lease: LeaseId) {
        if lease != self.lease || self.is_stopped {
            return;
        }
        // Without a connection, the session is one that a late call has created. It is destroyed.
        let entry = self.entries.entry(session).or_default();
        entry.may_be_under(lease);
        entry.hint = None;
        entry.has_appeared = true;
        entry.seen = self.snapshot;
        self.settle(session);
    }

    /// The stream says that a session has left `lease`.
    pub(super) fn left(&mut self, session: SessionKey, lease: LeaseId, left: Left) {
        let Some(entry) = self.entries.get_mut(&session).filter(|_| lease == self.lease) else { return };
        if entry.open.is_empty() {
            return;
        }
        if left == Left::Destroyed(DestroyReason::Released) {
            // Only this gateway releases its sessions: a late call has destroyed the session of a newer connection.
            // Register it again.
            entry.registered = None;
        } else {
            entry.hint = Some(left);
        }
        self.settle(session);
    }

    /// A snapshot of the stream begins.
    pub(super) fn snapshot_begins(&mut self) {
        self.snapshot = self.snapshot.wrapping_add(1);
    }

    /// The snapshot of the sessions under `lease` is complete. Those that are not in it may have left.
    pub(super) fn snapshot_ends(&mut self, lease: LeaseId) {
        let missing = |entry: &Entry| entry.registered == Some(lease) && entry.seen != self.snapshot;
        let missing: Vec<_> =
            self.entries.iter().filter(|(_, entry)| missing(entry)).map(|(session, _)| *session).collect();
        missing.into_iter().for_each(|session| self.left(session, lease, Left::Missing));
    }

    /// Queues a session for which something is to be done, and forgets one without connections for which nothing is.
    fn settle(&mut self, session: SessionKey) {
        let Some(entry) = self.entries.get_mut(&session) else { return };
        if entry.open.is_empty() {
            entry.hint = None;
        }
        if !entry.has_work(self.lease) {
            // An entry stays while it is queued, so that it is queued only once however often its client reconnects.
            if entry.open.is_empty() && !entry.is_queued {
                self.entries.remove(&session);
            }
        } else if !std::mem::replace(&mut entry.is_queued, true) {
            self.queue.push_back(session);
        }
    }
}

#[cfg(test)]
mod tests;
